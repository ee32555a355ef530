/* Is what is computed what the contract says? The float64 oracle is held to an independent computation with dense
 * matrices, float32 to the oracle, and the gates, conversions and extreme inputs to what is known exactly. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "compare.h"
#include "configs.h"
#include "run.h"
#include "test.h"

/* ---- an independent computation ------------------------------------------------------------------ */

static double *new_doubles(ptrdiff_t count) {
    double *x = calloc((size_t)count, sizeof *x);
    if (x == NULL) abort();
    return x;
}

static double as_element(element type, double x) {
    unsigned char bytes[8];
    element_store(type, bytes, x);
    return element_load(type, bytes);
}

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

static double decay_of(const gdn_params *p, double a, double A_log, double dt_bias) {
    if (p->gate_input == GDN_GATE_DECAY) return a;
    if (p->gate_input == GDN_GATE_LOG) return exp(a);
    double x = a + dt_bias, A = exp(A_log);
    if (p->has_lower_bound) return exp(p->lower_bound * sigmoid(A * x));
    double beta = p->softplus_beta == 0 ? 1 : p->softplus_beta;
    double threshold = p->softplus_threshold == 0 ? 20 : p->softplus_threshold;
    return exp(-A * (beta * x <= threshold ? log1p(exp(beta * x)) / beta : x));
}

static double decay_at(const call *c, ptrdiff_t batch, ptrdiff_t token, ptrdiff_t hv, ptrdiff_t k) {
    ptrdiff_t i = c->p.is_kda ? k : 0;
    if (!call_has(c, CALL_A)) return 1;
    return decay_of(&c->p, call_get(c, CALL_A, batch, token, hv, i),
                    call_has(c, CALL_A_LOG) ? call_get(c, CALL_A_LOG, 0, 0, hv, 0) : 0,
                    call_has(c, CALL_DT_BIAS) ? call_get(c, CALL_DT_BIAS, 0, 0, hv, i) : 0);
}

static double beta_at(const call *c, ptrdiff_t batch, ptrdiff_t token, ptrdiff_t hv, ptrdiff_t v) {
    double beta = call_has(c, CALL_B) ? call_get(c, CALL_B, batch, token, hv, c->p.beta_per_column ? v : 0) : 1;
    if (call_has(c, CALL_B) && c->p.beta_input == GDN_BETA_RAW) beta = sigmoid(beta);
    if (call_has(c, CALL_B) && (c->p.rounding & GDN_ROUND_BETA) != 0) beta = as_element(c->array[CALL_B].type, beta);
    return c->p.allow_neg_eigval ? 2 * beta : beta;
}

/* A row of q, k or k_read, normalised if the call says so; q without its scale. */
static void load_row(const call *c, call_array which, ptrdiff_t batch, ptrdiff_t token, ptrdiff_t hv, double *x) {
    ptrdiff_t K = c->p.head_k_dim;
    double norm = 0, eps = c->p.l2norm_eps == 0 ? 1e-6 : c->p.l2norm_eps;
    for (ptrdiff_t i = 0; i < K; i++) {
        x[i] = call_get(c, which, batch, token, call_key_head(c, hv), i);
        norm = hypot(norm, x[i]);
    }
    if (!c->p.use_qk_l2norm_in_kernel)
        norm = 1;
    else switch (c->p.l2norm_form) {
    case GDN_L2NORM_SUM_PLUS_EPS:
        norm = hypot(norm, sqrt(eps));
        break;
    case GDN_L2NORM_MEAN_PLUS_EPS:
        norm = hypot(norm, sqrt((double)K * eps));
        break;
    case GDN_L2NORM_MAX_NORM_EPS:
        norm = fmax(norm, eps);
        break;
    case GDN_L2NORM_NORM_PLUS_EPS:
        norm = norm + eps;
        break;
    }
    for (ptrdiff_t i = 0; i < K; i++) {
        x[i] /= norm;
        if ((c->p.rounding & GDN_ROUND_QK) != 0 && !(which == CALL_Q && (c->p.rounding & GDN_ROUND_SCALED_Q) != 0)) x[i] = as_element(c->array[which].type, x[i]);
    }
}

static void move_state(call *c, call_array which, ptrdiff_t i0, ptrdiff_t i1, ptrdiff_t hv, bool store, double *S) {
    for (ptrdiff_t k = 0; k < c->p.head_k_dim; k++)
        for (ptrdiff_t v = 0; v < c->p.head_v_dim; v++) {
            double *s = &S[v * c->p.head_k_dim + k];
            ptrdiff_t at = call_state_index(c, k, v);
            if (store)
                call_set(c, which, i0, i1, hv, at, *s);
            else
                *s = call_get(c, which, i0, i1, hv, at);
        }
}

/* One token of one column s of the state: s = (I - beta k k_read^T) diag(decay) s + beta v k, with the matrix written
 * out; or, reading before the decay, (diag(decay) - beta k k_read^T) s + beta v k. */
static void dense_step(const gdn_params *p, const double *k, const double *k_read, const double *decay, double beta,
                       double v, double *s) {
    ptrdiff_t K = p->head_k_dim;
    double *next = new_doubles(K);
    for (ptrdiff_t i = 0; i < K; i++) {
        next[i] = beta * v * k[i];
        for (ptrdiff_t j = 0; j < K; j++)
            next[i] += ((i == j) * decay[j] - beta * k[i] * k_read[j] * (p->read_before_decay ? 1 : decay[j])) * s[j];
    }
    memcpy(s, next, (size_t)K * sizeof *s);
    free(next);
}

static void dense_head(call *c, ptrdiff_t n, ptrdiff_t hv) {
    ptrdiff_t K = c->p.head_k_dim, V = c->p.head_v_dim, start = call_start_slot(c, n), row = call_cache_row(c, n);
    double *q = new_doubles(K), *k = new_doubles(K), *decay = new_doubles(K), *S = new_doubles(K * V);
    double *k_read = new_doubles(K), *decays = new_doubles(K);
    const unsigned rounding = c->p.rounding;
    double scale = c->p.scale == 0 ? pow((double)K, -0.5) : c->p.scale;
    if (start >= 0) move_state(c, CALL_INITIAL_POOL, start, 0, hv, false, S);
    for (ptrdiff_t t = 0; t < call_length(c, n); t++) {
        ptrdiff_t batch = call_batch(c, n), token = call_token(c, n, t);
        if (call_has(c, CALL_PARENTS) && row >= 0 && t > 0)
            move_state(c, CALL_CACHE, row, (ptrdiff_t)call_get(c, CALL_PARENTS, 0, 0, n, t), hv, false, S);
        load_row(c, CALL_Q, batch, token, hv, q);
        load_row(c, CALL_K, batch, token, hv, k);
        load_row(c, call_has(c, CALL_K_READ) ? CALL_K_READ : CALL_K, batch, token, hv, k_read);
        for (ptrdiff_t i = 0; i < K && call_has(c, CALL_ERASE); i++)
            k_read[i] *= call_get(c, CALL_ERASE, batch, token, hv, i);
        for (ptrdiff_t i = 0; i < K; i++) decay[i] = decay_at(c, batch, token, hv, i);
        for (ptrdiff_t i = 0; i < K; i++) q[i] *= scale;
        for (ptrdiff_t i = 0; i < K && (rounding & GDN_ROUND_SCALED_Q) != 0; i++)
            q[i] = as_element(c->array[CALL_Q].type, q[i]);
        for (ptrdiff_t v = 0; v < V && !call_masked(c, n, t); v++) {
            double *s = &S[v * K], o = 0, column = call_has(c, CALL_GV) ? exp(call_get(c, CALL_GV, batch, token, hv, v)) : 1;
            for (ptrdiff_t i = 0; i < K; i++) decays[i] = column * decay[i];
            dense_step(&c->p, k, k_read, decays, beta_at(c, batch, token, hv, v),
                       call_get(c, CALL_V, batch, token, hv, v), s);
            for (ptrdiff_t i = 0; i < K; i++) o += q[i] * s[i];
            for (ptrdiff_t i = 0; i < K && (rounding & GDN_ROUND_STATE) != 0; i++)
                s[i] = as_element(c->array[CALL_POOL].type, s[i]);
            call_set(c, CALL_O, batch, token, hv, v, o);
        }
        if (row >= 0 && call_step(c, t) >= 0) move_state(c, CALL_CACHE, row, call_step(c, t), hv, true, S);
        for (int i = 0; i < CALL_SLOTS; i++) {
            ptrdiff_t slot = call_written_slot(c, n, t, i);
            if (slot >= 0) move_state(c, CALL_POOL, slot, 0, hv, true, S);
        }
    }
    free(k_read);
    free(decays);
    free(q);
    free(k);
    free(decay);
    free(S);
}

/* Does what the library does to a call, into its o, pool and cache. */
static void run_dense(call *c) {
    call_reset(c);
    for (ptrdiff_t n = 0; n < call_num_seqs(c); n++)
        for (ptrdiff_t hv = 0; hv < c->p.num_value_heads; hv++)
            if (!call_padded(c, n) || c->p.padding == GDN_PADDING_COMPUTE) dense_head(c, n, hv);
    for (ptrdiff_t n = 0; n < call_num_seqs(c); n++)
        for (ptrdiff_t t = 0; call_padded(c, n) && c->p.padding == GDN_PADDING_ZERO && t < call_length(c, n); t++)
            for (ptrdiff_t hv = 0; hv < c->p.num_value_heads && !call_masked(c, n, t); hv++)
                for (ptrdiff_t v = 0; v < c->p.head_v_dim; v++)
                    call_set(c, CALL_O, call_batch(c, n), call_token(c, n, t), hv, v, 0);
}

/* ---- every option -------------------------------------------------------------------------------- */

static void check_oracle(const call *c) {
    call *oracle = call_clone_f64(c), *dense = call_clone_f64(c);
    run(oracle, RUN_WHOLE);
    run_dense(dense);
    assert_close(oracle, dense, 1e-12);
    call_free(dense);
    call_free(oracle);
}

static void check_f32(call *c) {
    call *oracle = call_clone_f64(c);
    run(c, RUN_WHOLE);
    run(oracle, RUN_WHOLE);
    assert_close(c, oracle, c->tolerance > 0 ? c->tolerance : USUAL_TOLERANCE);
    call_free(oracle);
}

static void oracle_against_dense_matrices(void **state) {
    (void)state;
    for (ptrdiff_t i = 0; i < num_configs; i++) {
        call *c = call_new(&configs[i]);
        test_context("%s, oracle", configs[i].name);
        check_oracle(c);
        call_free(c);
    }
}

static void float64_tensors(void **state) {
    (void)state;
    const call_config config = {.p = {HEADS(2, 4, 9, 35), DTYPES(GDN_F64), POOL(VK, 3, GDN_F64), CACHE(3, 7, GDN_F64)},
                                .lens = LIST(7, 0, 5)};
    call *c = call_new(&config);
    c->p.compute = GDN_COMPUTE_F64;
    test_context("float64 tensors");
    check_oracle(c);
    call_free(c);
}

static void options(void **state) {
    (void)state;
    for (ptrdiff_t i = 0; i < num_configs; i++) {
        call *c = call_new(&configs[i]);
        test_context("%s", configs[i].name);
        check_f32(c);
        call_free(c);
    }
}

/* The four kinds of sweep: both layouts, one gate for each head or for each row. */
static void check_sweeps(call_config config) {
    for (int kind = 0; kind < 4; kind++) {
        config.p.state_layout = kind & 1 ? GDN_STATE_VK : GDN_STATE_KV;
        config.p.is_kda = (kind & 2) != 0;
        call *c = call_new(&config);
        test_context("%td, %td heads of %td x %td, %td tokens, %s%s", c->p.num_key_heads, c->p.num_value_heads,
                     c->p.head_k_dim, c->p.head_v_dim, c->p.seq_len, kind & 1 ? "vk" : "kv", kind & 2 ? ", kda" : "");
        check_f32(c);
        call_free(c);
    }
}

static void head_dims(void **state) {
    (void)state;
    static const ptrdiff_t dims[][2] = {{16, 16},   {32, 32},   {64, 32}, {64, 64},   {64, 128},
                                        {128, 64},  {128, 128}, {60, 60}, {100, 100}, {96, 192},
                                        {256, 256}, {256, 512}, {1, 1},   {7, 5},     {33, 65}};
    for (ptrdiff_t i = 0; i < COUNT(dims); i++) {
        const call_config config = {
            .p = {HEADS(1, 2, dims[i][0], dims[i][1]), POOL(KV, 3, GDN_F32), .use_qk_l2norm_in_kernel = true},
            .lens = LIST(1, 0, 6)};
        check_sweeps(config);
    }
}

static void heads(void **state) {
    (void)state;
    static const ptrdiff_t heads[][2] = {{1, 1}, {1, 2},   {1, 3},   {2, 2},   {3, 6},   {2, 8},   {4, 4},
                                         {4, 8}, {16, 16}, {16, 32}, {16, 48}, {16, 64}, {30, 30}, {32, 32}};
    for (ptrdiff_t i = 0; i < COUNT(heads); i++) {
        call_config config = {.p = {FIXED(2, 3), HEADS(heads[i][0], heads[i][1], 8, 8), POOL(KV, 2, GDN_F32)}};
        check_sweeps(config);
        config.p.head_map = GDN_HEADS_TILED;
        check_sweeps(config);
    }
}

static const call_list varlen[] = {LIST(15),
                                   LIST(256, 244, 500),
                                   LIST(15, 85, 200, 900, 800),
                                   LIST(64, 128, 512),
                                   LIST(511, 501),
                                   LIST(1, 2, 3),
                                   LIST(31, 63, 93, 123, 150, 500),
                                   LIST(63, 64, 65),
                                   LIST(127, 128, 129),
                                   LIST(0, 256),
                                   LIST(255, 0, 1),
                                   LIST(7, 0),
                                   LIST(0, 0, 0),
                                   LIST(1, 1, 1, 1, 1, 1, 1, 1)};

static void lengths(void **state) {
    (void)state;
    static const ptrdiff_t fixed[] = {0,  1,   2,   3,   7,   15,  16,  31,  32,  33,  61,   63,   64,
                                      65, 100, 127, 128, 129, 200, 255, 256, 273, 500, 1000, 2048, 8192};
    for (ptrdiff_t i = 0; i < COUNT(fixed); i++) {
        const call_config config = {.p = {FIXED(1, fixed[i]), HEADS(1, 1, 16, 16), POOL(KV, 1, GDN_F32)}};
        check_sweeps(config);
    }
    for (ptrdiff_t i = 0; i < COUNT(varlen); i++) {
        const call_config config = {.p = {HEADS(1, 2, 12, 20), POOL(KV, 8, GDN_F32)}, .lens = varlen[i]};
        check_sweeps(config);
    }
}

/* A padded sequence under GDN_PADDING_COMPUTE gives what it gives from a slot of zeros. */
static void padding_computes_from_zeros(void **state) {
    (void)state;
    for (int kind = 0; kind < 4; kind++) {
        call_config config = {.p = {HEADS(2, 4, 24, 40), POOL(KV, 4, GDN_F32), .has_null_slot = true, .null_slot = 1},
                              .lens = LIST(4, 3, 5),
                              .initial_state_indices = LIST(-1, 2, 1)};
        config.p.state_layout = kind & 1 ? GDN_STATE_VK : GDN_STATE_KV;
        config.p.is_kda = (kind & 2) != 0;
        test_context("padding, kind %d", kind);
        call *padded = call_new(&config);
        config.p.has_null_slot = false;
        config.initial_state_indices = (call_list)LIST(0, 2, 1);
        call *zeros = call_new(&config);
        for (ptrdiff_t hv = 0; hv < 4; hv++)
            for (ptrdiff_t i = 0; i < 24 * 40; i++) {
                call_set(zeros, CALL_INITIAL_POOL, 0, 0, hv, i, 0);
                call_set(zeros, CALL_INITIAL_POOL, 1, 0, hv, i, 0);
            }
        run(padded, RUN_WHOLE);
        run(zeros, RUN_WHOLE);
        assert_same_array(padded, zeros, CALL_O);
        call_free(zeros);
        call_free(padded);
    }
}

/* Without a pool nothing is padded. */
static void padding_needs_a_pool(void **state) {
    (void)state;
    call_config config = {.p = {FIXED(2, 3), HEADS(1, 2, 5, 7)}};
    call *computed = call_new(&config);
    run(computed, RUN_WHOLE);
    for (int padding = 0; padding < 3; padding++) {
        config.p.padding = (gdn_padding)padding;
        call *c = call_new(&config);
        test_context("no pool, padding %d", padding);
        run(c, RUN_WHOLE);
        assert_same_array(c, computed, CALL_O);
        call_free(c);
    }
    call_free(computed);
}

/* ---- what is computed before the recurrence -------------------------------------------------------- */

/* The results of gdn_prepare() for a call, in float32 or (oracle) in float64. */
typedef struct prepared {
    gdn_params p;
    gdn_prepared results;
    void *memory[6];
} prepared;

static prepared prepare(const call *c) {
    const gdn_dtype dtype = c->p.compute == GDN_COMPUTE_F64 ? GDN_F64 : GDN_F32;
    const ptrdiff_t tokens = c->p.batch_size * c->p.seq_len, K = c->p.head_k_dim, HV = c->p.num_value_heads;
    const ptrdiff_t H = c->p.num_key_heads, gates = HV * (c->p.is_kda ? K : 1);
    const bool has_gates = call_has(c, CALL_A);
    const ptrdiff_t sizes[] = {has_gates && c->p.gate_input != GDN_GATE_DECAY ? gates : 0,
                               has_gates ? gates : 0,
                               call_has(c, CALL_B) ? HV * (c->p.beta_per_column ? c->p.head_v_dim : 1) : 0,
                               H * K,
                               H * K,
                               call_has(c, CALL_K_READ) ? H * K : 0};
    prepared y = {c->p, {.g = {0}}, {NULL}};
    gdn_output *const to[] = {&y.results.g, &y.results.decay, &y.results.beta,
                              &y.results.q, &y.results.k,     &y.results.k_read};
    gdn_error error;
    for (int i = 0; i < 6; i++) {
        if (sizes[i] == 0) continue;
        y.memory[i] = new_doubles(tokens * sizes[i] + 1);
        *to[i] = gdn_output_of(y.memory[i], dtype);
    }
    if (gdn_prepare(&y.p, &y.results, &error) != GDN_OK)
        test_fail("gdn_prepare: %s at %s", gdn_status_name(error.status), error.argument);
    return y;
}

static void free_prepared(prepared *y) {
    for (int i = 0; i < 6; i++) free(y->memory[i]);
}

static double result_at(const gdn_output *x, ptrdiff_t i) {
    return element_load((element)x->dtype, (const char *)x->data + (size_t)i * element_size((element)x->dtype));
}

static void check_result(const char *name, const gdn_output *x, ptrdiff_t i, double expected, double error) {
    if (x->data == NULL) return;
    if (!(fabs(result_at(x, i) - expected) <= error))
        test_fail("%s[%td] is %.17g, expected %.17g", name, i, result_at(x, i), expected);
}

/* Each result against the formula, within some units in the last place, or the step of the dtype it is rounded to. */
static void check_prepared(const call *c) {
    prepared y = prepare(c);
    const ptrdiff_t K = c->p.head_k_dim, V = c->p.head_v_dim, HV = c->p.num_value_heads;
    const bool f64 = c->p.compute == GDN_COMPUTE_F64;
    const double unit = f64 ? 1e-14 : 0x1p-24, coarse = c->p.rounding != 0 && !f64 ? 0x1p-7 : 0;
    const double scale = c->p.scale == 0 ? pow((double)K, -0.5) : c->p.scale;
    double *row = new_doubles(K);
    for (ptrdiff_t i = 0; i < c->p.batch_size * c->p.seq_len * HV; i++) {
        const ptrdiff_t batch = i / HV / c->p.seq_len, token = i / HV % c->p.seq_len, hv = i % HV;
        const ptrdiff_t gates = c->p.is_kda ? K : 1, betas = c->p.beta_per_column ? V : 1;
        for (ptrdiff_t k = 0; k < gates; k++) {
            const double decay = decay_at(c, batch, token, hv, k), g = log(decay);
            check_result("g", &y.results.g, i * gates + k, g, 4 * unit * fabs(g) + 1e-16);
            check_result("decay", &y.results.decay, i * gates + k, decay, (1.3 + fabs(g)) * unit * decay);
        }
        for (ptrdiff_t v = 0; v < betas; v++) {
            const double beta = beta_at(c, batch, token, hv, v);
            check_result("beta", &y.results.beta, i * betas + v, beta, fmax(1.3 * unit, coarse) * beta);
        }
        for (int j = 0; j < 3; j++) {
            static const call_array arrays[] = {CALL_Q, CALL_K, CALL_K_READ};
            const gdn_output *const to[] = {&y.results.q, &y.results.k, &y.results.k_read};
            if (!call_has(c, arrays[j])) continue;
            load_row(c, arrays[j], batch, token, hv, row);
            for (ptrdiff_t k = 0; k < K; k++) {
                double x = j == 0 ? row[k] * scale : row[k];
                if (j == 0 && (c->p.rounding & GDN_ROUND_SCALED_Q) != 0) x = as_element(c->array[CALL_Q].type, x);
                check_result(call_array_names[arrays[j]], to[j],
                             (i / HV * c->p.num_key_heads + call_key_head(c, hv)) * K + k, x,
                             fmax(8 * unit, coarse) * fabs(x));
            }
        }
    }
    free(row);
    free_prepared(&y);
}

static void prepared_values(void **state) {
    (void)state;
    for (ptrdiff_t i = 0; i < num_configs; i++) {
        call *c = call_new(&configs[i]), *oracle = call_clone_f64(c);
        test_context("%s, prepared", configs[i].name);
        check_prepared(c);
        check_prepared(oracle);
        call_free(oracle);
        call_free(c);
    }
}

/* What is prepared is what the operator uses: handed to it as it is, it gives the same bits. */
static void prepared_inputs_give_the_same(void **state) {
    (void)state;
    for (ptrdiff_t i = 0; i < 2 * num_configs; i++) {
        call *first = call_new(&configs[i / 2]), *c = i % 2 ? call_clone_f64(first) : first;
        call *other = call_clone(c, &call_layouts[0], GUARD_AFTER);
        prepared y = prepare(c);
        gdn_params *p = &other->p;
        test_context("%s, prepared inputs", configs[i / 2].name);
        if (y.results.decay.data != NULL) {
            p->a = gdn_tensor_of(y.results.decay.data, y.results.decay.dtype);
            p->gate_input = GDN_GATE_DECAY;
            p->has_lower_bound = false;
        }
        if (y.results.beta.data != NULL) {
            p->b = gdn_tensor_of(y.results.beta.data, y.results.beta.dtype);
            p->beta_input = GDN_BETA_GIVEN;
            p->allow_neg_eigval = false;
        }
        p->q = gdn_tensor_of(y.results.q.data, y.results.q.dtype);
        p->k = gdn_tensor_of(y.results.k.data, y.results.k.dtype);
        if (y.results.k_read.data != NULL) p->k_read = gdn_tensor_of(y.results.k_read.data, y.results.k_read.dtype);
        p->use_qk_l2norm_in_kernel = false;
        p->scale = 1;
        p->rounding &= GDN_ROUND_STATE;
        run(c, RUN_WHOLE);
        run(other, RUN_WHOLE);
        assert_same(c, other);
        free_prepared(&y);
        call_free(other);
        if (c != first) call_free(c);
        call_free(first);
    }
}

/* Each rounding, one at a time, is that of the tests' own conversion. */
static void roundings(void **state) {
    (void)state;
    for (int i = 0; i < 2 * 2 * 4; i++) {
        const element type = i & 1 ? ELEMENT_F16 : ELEMENT_BF16;
        call_config config = {.p = {FIXED(2, 19), HEADS(2, 4, 37, 35), DTYPES((gdn_dtype)type),
                                    .k_read.dtype = (gdn_dtype)type, .use_qk_l2norm_in_kernel = true, .scale = 0.5,
                                    .beta_per_column = i / 4 % 2 != 0, .allow_neg_eigval = i / 8 != 0}};
        config.p.compute = i & 2 ? GDN_COMPUTE_F64 : GDN_COMPUTE_F32;
        call *c = call_new(&config);
        for (ptrdiff_t t = 0; t < 19; t++) call_set(c, CALL_B, 0, t, 0, 0, -8 - (double)t / 4); /* to subnormal halves */
        prepared exact = prepare(c);
        test_context("roundings, kind %d", i);
        for (unsigned bit = GDN_ROUND_QK; bit < GDN_ROUND_STATE; bit *= 2) {
            c->p.rounding = bit;
            prepared y = prepare(c);
            const ptrdiff_t keys = 2 * 19 * 2 * 37, betas = 2 * 19 * 4 * (c->p.beta_per_column ? 35 : 1);
            for (ptrdiff_t j = 0; j < keys; j++) {
                const double q = result_at(&exact.results.q, j), k = result_at(&exact.results.k, j);
                const double k_read = result_at(&exact.results.k_read, j);
                const bool qk = bit == GDN_ROUND_QK;
                check_result("q", &y.results.q, j,
                             qk ? as_element(type, 2 * q) / 2 : bit == GDN_ROUND_SCALED_Q ? as_element(type, q) : q, 0);
                check_result("k", &y.results.k, j, qk ? as_element(type, k) : k, 0);
                check_result("k_read", &y.results.k_read, j, qk ? as_element(type, k_read) : k_read, 0);
            }
            for (ptrdiff_t j = 0; j < betas; j++) {
                const double beta = result_at(&exact.results.beta, j), twice = c->p.allow_neg_eigval ? 2 : 1;
                check_result("beta", &y.results.beta, j,
                             bit == GDN_ROUND_BETA ? twice * as_element(type, beta / twice) : beta, 0);
            }
            free_prepared(&y);
        }
        free_prepared(&exact);
        call_free(c);
    }
}

/* ---- gates, beta, conversions: element for element ------------------------------------------------ */

/* The distance of float32 numbers around x. */
static double ulp(double x) { return fmax(ldexp(1, ilogb(fmax(fabs(x), 0x1p-149)) - 23), 0x1p-149); }

/* The arguments of a function worth trying: a fine sweep, the edges of its branches, and numbers around zero. */
static ptrdiff_t arguments(double *x, ptrdiff_t capacity) {
    static const double edges[] = {-316,   -104, -103.98,    -100,   -88,        -87.4,  -87.3, -20,   -17,
                                   -16.64, -2,   -1e-3,      -1e-10, -1e-30,     -1e-42, 0,     1e-42, 1e-30,
                                   1e-10,  1e-3, 19.9999981, 20,     20.0000019, 88,     89,    100};
    ptrdiff_t count = 0;
    for (; count < COUNT(edges); count++) x[count] = (double)(float)edges[count];
    x[count++] = (double)(-0.0f);
    for (double y = -105; count < capacity; y += 210.0 / (double)capacity) x[count++] = (double)(float)y;
    return count;
}

/* With beta and k of 0 a state of ones becomes the decay. */
static void decays(void **state) {
    (void)state;
    enum { BATCH = 111, CHANNELS = 37 };
    static const struct {
        gdn_params p;
        double A_log;
    } gates[] = {
        {.A_log = 0},
        {.A_log = 2.77258872},
        {.A_log = -20},
        {.p = {.softplus_beta = 2, .softplus_threshold = 5}},
        {.p = {.softplus_beta = 0.5, .softplus_threshold = 1e30}, .A_log = -3},
        {.p = {.softplus_threshold = -2}, .A_log = -3}, /* -2 itself is below */
        {.p = {.has_lower_bound = true, .lower_bound = -5}},
        {.p = {.has_lower_bound = true, .lower_bound = -80}},
        {.p = {.gate_input = GDN_GATE_LOG}},
        {.p = {.gate_input = GDN_GATE_DECAY}},
    };
    static double x[BATCH * CHANNELS];
    arguments(x, COUNT(x));
    for (ptrdiff_t i = 0; i < 2 * COUNT(gates); i++) {
        call_config config = {.p = gates[i / 2].p};
        gdn_params *p = &config.p;
        p->is_kda = i % 2 != 0;
        p->batch_size = p->is_kda ? BATCH : BATCH * CHANNELS;
        p->head_k_dim = p->is_kda ? CHANNELS : 1;
        p->seq_len = p->num_key_heads = p->num_value_heads = p->head_v_dim = 1;
        p->state_layout = GDN_STATE_KV;
        p->initial_state_source.num_states = p->batch_size;
        p->beta_input = GDN_BETA_GIVEN;
        call *c = call_new(&config);
        call_fill(c, CALL_INITIAL_POOL, 1);
        call_fill(c, CALL_B, 0);
        call_fill(c, CALL_K, 0);
        if (call_has(c, CALL_A_LOG)) call_fill(c, CALL_A_LOG, gates[i / 2].A_log);
        if (call_has(c, CALL_DT_BIAS)) call_fill(c, CALL_DT_BIAS, 0);
        for (ptrdiff_t j = 0; j < COUNT(x); j++) {
            /* An infinite decay of one channel would make all of its column NaN. */
            double gate = p->gate_input == GDN_GATE_LOG ? fmin(x[j], 88.5) : x[j];
            call_set(c, CALL_A, j / p->head_k_dim, 0, 0, j % p->head_k_dim, gate);
        }
        test_context("decays, gate %td%s", i / 2, p->is_kda ? ", kda" : "");
        run(c, RUN_WHOLE);
        for (ptrdiff_t j = 0; j < COUNT(x); j++) {
            double expected = decay_at(c, j / p->head_k_dim, 0, 0, j % p->head_k_dim);
            double actual = call_get(c, CALL_POOL, j / p->head_k_dim, 0, 0, j % p->head_k_dim);
            /* 0.6 for the last rounding; 0.1 each for softplus or sigmoid and for exp(A_log), times log(decay). */
            double units = 0.6;
            if (p->gate_input == GDN_GATE_DECAY) units = 0;
            if (p->gate_input == GDN_GATE_RAW) units += 0.2 * fabs(log(fmax(expected, 1e-50)));
            if (!(fabs(actual - expected) <= units * ulp(expected)))
                test_fail("decay of %.9g is %.9g, expected %.17g", x[j], actual, expected);
        }
        call_free(c);
    }
}

/* With zero state, q = k = v = 1 and scale 1 the output is beta. */
static void betas(void **state) {
    (void)state;
    enum { TOKENS = 113, COLUMNS = 37 };
    static double x[TOKENS * COLUMNS];
    arguments(x, COUNT(x));
    for (int kind = 0; kind < 4; kind++) {
        call_config config = {
            .p = {.batch_size = 1, .num_key_heads = 1, .num_value_heads = 1, .head_k_dim = 1, .scale = 1}};
        gdn_params *p = &config.p;
        p->beta_per_column = (kind & 1) != 0;
        p->allow_neg_eigval = (kind & 2) != 0;
        p->gate_input = GDN_GATE_DECAY; /* 0: every token starts afresh */
        p->head_v_dim = p->beta_per_column ? COLUMNS : 1;
        p->seq_len = p->beta_per_column ? TOKENS : TOKENS * COLUMNS;
        call *c = call_new(&config);
        call_fill(c, CALL_Q, 1);
        call_fill(c, CALL_K, 1);
        call_fill(c, CALL_V, 1);
        call_fill(c, CALL_A, 0);
        for (ptrdiff_t j = 0; j < COUNT(x); j++) call_set(c, CALL_B, 0, j / p->head_v_dim, 0, j % p->head_v_dim, x[j]);
        test_context("betas, kind %d", kind);
        run(c, RUN_WHOLE);
        for (ptrdiff_t j = 0; j < COUNT(x); j++) {
            double expected = sigmoid(x[j]) * (p->allow_neg_eigval ? 2 : 1);
            double actual = call_get(c, CALL_O, 0, j / p->head_v_dim, 0, j % p->head_v_dim);
            if (!(fabs(actual - expected) <= 0.6 * ulp(expected)))
                test_fail("beta of %.9g is %.9g, expected %.17g", x[j], actual, expected);
        }
        call_free(c);
    }
}

static bool same_number(double x, double y) { return isnan(x) ? isnan(y) != 0 : x == y; }

/* All numbers of a 16-bit type through v, the output and the pool. A decay and beta of 1 and a zero state hand v on
 * to both; a beta and k of 0 hand the state on. */
static void every_half_is_read_exactly(void **state) {
    (void)state;
    enum { NUMBERS = 65536, ROWS = 16 };
    for (int kind = 0; kind < 4; kind++) {
        gdn_dtype dtype = kind & 1 ? GDN_F16 : GDN_BF16;
        bool vk = (kind & 2) != 0;
        call_config config = {.p = {FIXED(1, 1), HEADS(1, 1, 1, NUMBERS), POOL(KV, 1, GDN_F32), .scale = 1,
                                    .gate_input = GDN_GATE_DECAY, .beta_input = GDN_BETA_GIVEN}};
        config.p.v.dtype = config.p.initial_state_source.dtype = dtype;
        if (vk) {
            config.p.state_layout = GDN_STATE_VK;
            config.p.head_k_dim = ROWS;
            config.p.head_v_dim = NUMBERS / ROWS;
        }
        for (int beta = 0; beta < 2; beta++) {
            call *c = call_new(&config);
            call_fill(c, CALL_A, 1);
            call_fill(c, CALL_B, beta);
            call_fill(c, CALL_Q, 1);
            call_fill(c, CALL_K, 1);
            if (beta == 1) call_fill(c, CALL_INITIAL_POOL, 0);
            for (ptrdiff_t i = 0; i < NUMBERS; i++) {
                uint16_t bits = (uint16_t)i;
                /* In the state, NaN and infinity would not stay alone. */
                if ((vk || beta == 0) && !isfinite(element_load((element)dtype, &bits))) bits = 0;
                if (i < c->p.head_v_dim) memcpy(call_at(c, CALL_V, 0, 0, 0, i), &bits, sizeof bits);
                if (beta == 0) memcpy(call_at(c, CALL_INITIAL_POOL, 0, 0, 0, i), &bits, sizeof bits);
            }
            if (beta == 0) call_fill(c, CALL_V, 0);
            if (beta == 0) call_fill(c, CALL_K, 0);
            test_context("16-bit numbers, kind %d, beta %d", kind, beta);
            run(c, RUN_WHOLE);
            for (ptrdiff_t k = 0; k < c->p.head_k_dim; k++)
                for (ptrdiff_t v = 0; v < c->p.head_v_dim; v++) {
                    ptrdiff_t at = call_state_index(c, k, v);
                    double x =
                        beta == 1 ? call_get(c, CALL_V, 0, 0, 0, v) : call_get(c, CALL_INITIAL_POOL, 0, 0, 0, at);
                    if (!same_number(call_get(c, CALL_POOL, 0, 0, 0, at), x))
                        test_fail("%.9g is not kept by the pool", x);
                    if (!vk && !same_number(call_get(c, CALL_O, 0, 0, 0, v), x))
                        test_fail("%.9g is not read as it is", x);
                }
            call_free(c);
        }
    }
}

/* v is handed on to the output and, with k = 1, to the state: numbers halfway between two of a 16-bit type, and one
 * step of float32 (of float64 in the oracle, where no float32 may come between) to either side. */
static void halves_are_rounded_to_even(void **state) {
    (void)state;
    enum { NUMBERS = 65536 };
    for (int kind = 0; kind < 8; kind++) {
        element type = kind & 1 ? ELEMENT_F16 : ELEMENT_BF16;
        bool oracle = (kind & 2) != 0;
        call_config config = {.p = {FIXED(3, 1), HEADS(1, 1, 1, NUMBERS), POOL(KV, 3, (gdn_dtype)type), .scale = 1,
                                    .gate_input = GDN_GATE_DECAY},
                              .no_b = true};
        config.p.o.dtype = (gdn_dtype)type;
        config.p.v.dtype = oracle ? GDN_F64 : GDN_F32;
        config.p.compute = oracle ? GDN_COMPUTE_F64 : GDN_COMPUTE_F32;
        config.p.state_layout = kind & 4 ? GDN_STATE_VK : GDN_STATE_KV;
        call *c = call_new(&config);
        call_fill(c, CALL_INITIAL_POOL, 0);
        call_fill(c, CALL_A, 1);
        call_fill(c, CALL_Q, 1);
        call_fill(c, CALL_K, 1);
        for (ptrdiff_t i = 0; i < NUMBERS; i++) {
            uint16_t bits[] = {(uint16_t)(i - 1), (uint16_t)i, (uint16_t)(i + 1)};
            double below = element_load(type, &bits[0]), at = element_load(type, &bits[1]);
            double above = element_load(type, &bits[2]);
            /* Above the largest number the half step is as long as below it. */
            double x = isinf(above) && !isinf(at) ? at + (at - below) / 2 : (at + above) / 2;
            for (int side = -1; side <= 1; side++) {
                double toward = side < 0 ? -HUGE_VAL : side > 0 ? HUGE_VAL : x;
                call_set(c, CALL_V, side + 1, 0, 0, i,
                         oracle ? nextafter(x, toward) : (double)nextafterf((float)x, (float)toward));
            }
        }
        test_context("rounding, kind %d", kind);
        run(c, RUN_WHOLE);
        for (ptrdiff_t i = 0; i < 3 * NUMBERS; i++) {
            ptrdiff_t n = i / NUMBERS, v = i % NUMBERS;
            double x = call_get(c, CALL_V, n, 0, 0, v);
            uint16_t rounded;
            element_store(type, &rounded, x);
            if (!element_same(type, &rounded, call_at(c, CALL_POOL, n, 0, 0, v)) && x != 0)
                test_fail("%.17g is stored in the pool as %.9g", x, call_get(c, CALL_POOL, n, 0, 0, v));
            if (!element_same(type, &rounded, call_at(c, CALL_O, n, 0, 0, v)) && x != 0)
                test_fail("%.17g is stored in o as %.9g", x, call_get(c, CALL_O, n, 0, 0, v));
        }
        call_free(c);
    }
}

/* Too large for float32: infinities, in whole vectors and in what is left of a row. */
static void infinities_are_stored(void **state) {
    (void)state;
    for (int kind = 0; kind < 4; kind++) {
        element type = kind & 1 ? ELEMENT_F16 : ELEMENT_BF16;
        call_config config = {.p = {FIXED(1, 1), HEADS(1, 1, 1, 37), .scale = 1, .gate_input = GDN_GATE_DECAY},
                              .no_b = true};
        config.p.o.dtype = (gdn_dtype)type;
        config.p.compute = kind & 2 ? GDN_COMPUTE_F64 : GDN_COMPUTE_F32;
        call *c = call_new(&config);
        call_fill(c, CALL_A, 1);
        call_fill(c, CALL_Q, 10);
        call_fill(c, CALL_K, 1);
        for (ptrdiff_t v = 0; v < 37; v++) call_set(c, CALL_V, 0, 0, 0, v, v % 2 != 0 ? 3e38 : -3e38);
        test_context("infinities, kind %d", kind);
        run(c, RUN_WHOLE);
        for (ptrdiff_t v = 0; v < 37; v++)
            if (call_get(c, CALL_O, 0, 0, 0, v) != (v % 2 != 0 ? HUGE_VAL : -HUGE_VAL))
                test_fail("column %td is %g", v, call_get(c, CALL_O, 0, 0, 0, v));
        call_free(c);
    }
}

/* A 16-bit output, pool or cache is the rounded float32 one (float64 one), so each is rounded once, at the end. */
static void outputs_are_rounded_once(void **state) {
    (void)state;
    for (ptrdiff_t i = 0; i < num_configs; i++) {
        call *c = call_new(&configs[i]);
        for (int type = 0; type < 4 && !call_has(c, CALL_PARENTS); type++) {
            test_context("%s, rounded once, kind %d", configs[i].name, type);
            /* Both start from the same states: those that the 16-bit pool can hold. */
            call *rounded = call_clone_outputs(c, type & 1 ? ELEMENT_F16 : ELEMENT_BF16);
            call *exact = call_clone_outputs(rounded, type & 2 ? ELEMENT_F64 : ELEMENT_F32);
            rounded->p.compute = exact->p.compute = type & 2 ? GDN_COMPUTE_F64 : GDN_COMPUTE_F32;
            run(rounded, RUN_WHOLE);
            run(exact, RUN_WHOLE);
            call *expected = call_clone_outputs(rounded, rounded->array[CALL_O].type);
            for (call_array j = CALL_O; j < CALL_NUM_ARRAYS; j++) {
                const ptrdiff_t *n = expected->array[j].shape;
                for (ptrdiff_t i0 = 0; call_has(c, j) && i0 < n[0]; i0++)
                    for (ptrdiff_t i1 = 0; i1 < n[1]; i1++)
                        for (ptrdiff_t i2 = 0; i2 < n[2]; i2++)
                            for (ptrdiff_t i3 = 0; i3 < n[3]; i3++)
                                call_set(expected, j, i0, i1, i2, i3, call_get(exact, j, i0, i1, i2, i3));
            }
            assert_same(rounded, expected);
            call_free(expected);
            call_free(exact);
            call_free(rounded);
        }
        call_free(c);
    }
}

/* ---- extreme inputs ------------------------------------------------------------------------------- */

static void set_row(call *c, call_array which, ptrdiff_t batch, ptrdiff_t token, double value) {
    for (ptrdiff_t i2 = 0; i2 < c->array[which].shape[2]; i2++)
        for (ptrdiff_t i3 = 0; i3 < c->array[which].shape[3]; i3++) call_set(c, which, batch, token, i2, i3, value);
}

/* All outputs are numbers. */
static void assert_finite(const call *c) {
    for (call_array i = CALL_O; i < CALL_NUM_ARRAYS; i++) {
        const ptrdiff_t *n = c->array[i].shape;
        for (ptrdiff_t i0 = 0; call_has(c, i) && i0 < n[0]; i0++)
            for (ptrdiff_t i1 = 0; i1 < n[1]; i1++)
                for (ptrdiff_t i2 = 0; i2 < n[2]; i2++)
                    for (ptrdiff_t i3 = 0; i3 < n[3]; i3++)
                        if (!isfinite(call_get(c, i, i0, i1, i2, i3)))
                            test_fail("%s[%td][%td][%td][%td] is not finite", call_array_names[i], i0, i1, i2, i3);
    }
}

/* Gates given at two tokens, sharp enough that the decay is 0, in front of a state of the largest finite numbers: k^T S
 * overflows, and must be forgotten all the same. */
static void decay_of_zero_forgets(void **state) {
    (void)state;
    static const struct {
        gdn_gate_input input;
        double gate;
    } gates[] = {{GDN_GATE_DECAY, 0},       {GDN_GATE_DECAY, -0.0}, {GDN_GATE_LOG, -316}, {GDN_GATE_LOG, -1e30},
                 {GDN_GATE_LOG, -HUGE_VAL}, {GDN_GATE_RAW, 1e4},    {GDN_GATE_RAW, 3e38}};
    for (ptrdiff_t i = 0; i < 8 * COUNT(gates); i++) {
        bool one_token = (i & 4) != 0;
        call_config config = {.p = {FIXED(2, one_token ? 1 : 5), HEADS(2, 4, 32, 48), POOL(KV, 2, GDN_F32)}};
        config.p.gate_input = gates[i / 8].input;
        config.p.state_layout = i & 1 ? GDN_STATE_VK : GDN_STATE_KV;
        config.p.is_kda = (i & 2) != 0;
        call *c = call_new(&config);
        call_fill(c, CALL_INITIAL_POOL, 3.4e38);
        for (ptrdiff_t hv = 0; hv < 4; hv++)
            for (ptrdiff_t j = 0; j < 32 * 48; j += 3) call_set(c, CALL_INITIAL_POOL, 0, 0, hv, j, -3.4e38);
        if (call_has(c, CALL_A_LOG)) call_fill(c, CALL_A_LOG, 2);
        set_row(c, CALL_A, 0, 0, gates[i / 8].gate);
        set_row(c, CALL_A, 1, 0, gates[i / 8].gate);
        if (!one_token) set_row(c, CALL_A, 1, 3, gates[i / 8].gate);
        test_context("decay of zero, gate %td, kind %td", i / 8, i % 8);
        check_f32(c);
        assert_finite(c);
        call_free(c);
    }
}

/* The same where only some of the rows of a state are forgotten, and only those are huge. */
static void decay_of_zero_forgets_single_rows(void **state) {
    (void)state;
    for (int vk = 0; vk < 2; vk++) {
        call_config config = {.p = {FIXED(1, 5), HEADS(2, 4, 24, 40), POOL(KV, 1, GDN_F32), .is_kda = true,
                                    .gate_input = GDN_GATE_DECAY}};
        config.p.state_layout = vk ? GDN_STATE_VK : GDN_STATE_KV;
        call *c = call_new(&config);
        for (ptrdiff_t hv = 0; hv < 4; hv++)
            for (ptrdiff_t k = hv; k < 24; k += 5) {
                call_set(c, CALL_A, 0, 0, hv, k, 0);
                for (ptrdiff_t v = 0; v < 40; v++)
                    call_set(c, CALL_INITIAL_POOL, 0, 0, hv, call_state_index(c, k, v), 3.4e38);
            }
        test_context("decay of zero in single rows, %s", vk ? "vk" : "kv");
        check_f32(c);
        assert_finite(c);
        call_free(c);
    }
}

/* Gates and betas at the ends of their ranges, a value for each token. */
static void extreme_gates(void **state) {
    (void)state;
    static const double raw[] = {-100, -20, -17, 0, 20, 20.0000019, 100, -0.0, 1e-42};
    static const double log_gate[] = {0, -316, -0.0, -1e-42, -1e-7, -88, -104, -5, -17};
    static const double decay[] = {0, 1, -0.0, 1e-42, 1e-30, 0.5, 1, 0, 0.999999940395355225};
    static const double *const gates[] = {raw, log_gate, decay};
    static const double b[] = {-100, 100, 0, -0.0, 88.7, -88.7, -104, 17, 1e-42};
    static const double beta[] = {0, 1, 0, 1e-42, 1, 0.5, 1, 0, 1};
    for (int i = 0; i < 3 * 8; i++) {
        call_config config = {.p = {FIXED(2, COUNT(raw)), HEADS(2, 4, 20, 33), POOL(KV, 2, GDN_F32),
                                    .gate_input = (gdn_gate_input)(i / 8)}};
        config.p.state_layout = i & 1 ? GDN_STATE_VK : GDN_STATE_KV;
        config.p.is_kda = (i & 2) != 0;
        config.p.beta_input = i & 4 ? GDN_BETA_GIVEN : GDN_BETA_RAW;
        call *c = call_new(&config);
        if (call_has(c, CALL_DT_BIAS)) call_fill(c, CALL_DT_BIAS, 0);
        for (ptrdiff_t t = 0; t < COUNT(raw); t++)
            for (ptrdiff_t n = 0; n < 2; n++) {
                ptrdiff_t place = n == 0 ? t : COUNT(raw) - 1 - t;
                set_row(c, CALL_A, n, place, gates[i / 8][t]);
                set_row(c, CALL_B, n, place, i & 4 ? beta[t] : b[t]);
            }
        test_context("extreme gates, kind %d", i);
        check_oracle(c);
        check_f32(c);
        assert_finite(c);
        call_free(c);
    }
}

/* Keys and queries of zero, and so small that their squares vanish in float32. */
static void zero_and_tiny_rows(void **state) {
    (void)state;
    static const double sizes[] = {0, -0.0, 1e-25, 1e-20, 1e-42, 1e-4, 0};
    for (int i = 0; i < 4 * 4 * COUNT(sizes); i++) {
        call_config config = {.p = {FIXED(2, 4), HEADS(2, 4, 20, 33), POOL(KV, 2, GDN_F32),
                                    .use_qk_l2norm_in_kernel = true, .l2norm_form = (gdn_l2norm_form)(i / 4 % 4)}};
        config.p.state_layout = i & 1 ? GDN_STATE_VK : GDN_STATE_KV;
        config.p.is_kda = (i & 2) != 0;
        double size = sizes[i / 16];
        if (i / 16 == COUNT(sizes) - 1) config.p.l2norm_eps = 1e-300; /* one over the norm is then no float */
        call *c = call_new(&config);
        for (ptrdiff_t t = 0; t < 4; t++) {
            set_row(c, CALL_K, 0, t, size);
            set_row(c, CALL_Q, 1, t, size);
        }
        test_context("rows of %g, kind %d", size, i % 16);
        check_f32(c);
        assert_finite(c);
        for (ptrdiff_t t = 0; size == 0 && t < 4; t++)
            for (ptrdiff_t hv = 0; hv < 4; hv++)
                for (ptrdiff_t v = 0; v < 33; v++)
                    if (call_get(c, CALL_O, 1, t, hv, v) != 0) test_fail("the output of a zero q is not zero");
        call_free(c);
    }
}

/* Zeros of either sign everywhere give zeros; denormal numbers are not flushed. */
static void zeros_and_denormals(void **state) {
    (void)state;
    for (int i = 0; i < 8; i++) {
        call_config config = {.p = {FIXED(1, 3), HEADS(1, 2, 17, 33), POOL(KV, 1, GDN_F32), .gate_input = GDN_GATE_LOG,
                                    .beta_input = GDN_BETA_GIVEN, .scale = 1}};
        config.p.state_layout = i & 1 ? GDN_STATE_VK : GDN_STATE_KV;
        config.p.is_kda = (i & 2) != 0;
        config.p.use_qk_l2norm_in_kernel = (i & 4) != 0;
        call *c = call_new(&config);
        static const call_array inputs[] = {CALL_Q, CALL_K, CALL_V, CALL_A, CALL_B, CALL_INITIAL_POOL};
        for (ptrdiff_t j = 0; j < COUNT(inputs); j++) call_fill(c, inputs[j], -0.0);
        test_context("negative zeros, kind %d", i);
        check_f32(c);

        /* One element of q picks one row out of the state, of numbers that float32 has no exponent for. */
        config.p.use_qk_l2norm_in_kernel = false;
        call *denormal = call_new(&config);
        call_fill(denormal, CALL_A, 0);
        call_fill(denormal, CALL_B, 0);
        call_fill(denormal, CALL_Q, 0);
        for (ptrdiff_t t = 0; t < 3; t++) call_set(denormal, CALL_Q, 0, t, 0, 5, 1);
        for (ptrdiff_t hv = 0; hv < 2; hv++)
            for (ptrdiff_t j = 0; j < 17 * 33; j++)
                call_set(denormal, CALL_INITIAL_POOL, 0, 0, hv, j, (double)(j + 1) * 0x1p-149);
        test_context("denormals, kind %d", i);
        run(denormal, RUN_WHOLE);
        for (ptrdiff_t hv = 0; hv < 2; hv++) {
            for (ptrdiff_t j = 0; j < 17 * 33; j++)
                if (call_get(denormal, CALL_POOL, 0, 0, hv, j) != (double)(j + 1) * 0x1p-149)
                    test_fail("a denormal state was not kept");
            for (ptrdiff_t j = 0; j < 3 * 33; j++)
                if (call_get(denormal, CALL_O, 0, j / 33, hv, j % 33) !=
                    call_get(denormal, CALL_INITIAL_POOL, 0, 0, hv, call_state_index(denormal, 5, j % 33)))
                    test_fail("a denormal output was not computed");
        }
        call_free(denormal);
        call_free(c);
    }
}

/* ---- NaN and infinity ----------------------------------------------------------------------------- */

/* Where the spoilt input is. */
enum { BAD_SEQUENCE = 1, BAD_KEY_HEAD = 1, BAD_VALUE_HEAD = 2, BAD_ELEMENT = 3 };

static bool has_tokens(call_array which) {
    return which != CALL_INITIAL_POOL && which != CALL_A_LOG && which != CALL_DT_BIAS;
}

static void spoil(call *c, call_array which, ptrdiff_t bad_token, double value) {
    ptrdiff_t n = BAD_SEQUENCE, last = c->array[which].shape[3] - 1;
    ptrdiff_t inner = last < BAD_ELEMENT ? last : BAD_ELEMENT;
    if (which == CALL_A_LOG || which == CALL_DT_BIAS)
        call_set(c, which, 0, 0, BAD_VALUE_HEAD, inner, value);
    else if (which == CALL_INITIAL_POOL)
        call_set(c, which, call_start_slot(c, n), 0, BAD_VALUE_HEAD, inner, value);
    else
        call_set(c, which, call_batch(c, n), call_token(c, n, bad_token),
                 which == CALL_Q || which == CALL_K ? BAD_KEY_HEAD : BAD_VALUE_HEAD, inner, value);
}

/* Whether sequence n's head hv may notice. */
static bool reaches(const call *c, call_array which, ptrdiff_t n, ptrdiff_t hv) {
    if (which == CALL_A_LOG || which == CALL_DT_BIAS) return hv == BAD_VALUE_HEAD;
    if (n != BAD_SEQUENCE) return false;
    return which == CALL_Q || which == CALL_K ? call_key_head(c, hv) == BAD_KEY_HEAD : hv == BAD_VALUE_HEAD;
}

static void same_elements(const call *x, const call *y, call_array which, ptrdiff_t i0, ptrdiff_t i1, ptrdiff_t i2) {
    for (ptrdiff_t i = 0; i < x->array[which].shape[3]; i++)
        if (!element_same(x->array[which].type, call_at(x, which, i0, i1, i2, i), call_at(y, which, i0, i1, i2, i)))
            test_fail("it reaches %s[%td][%td][%td][%td]", call_array_names[which], i0, i1, i2, i);
}

static void check_reach(const call *clean, const call *spoilt, call_array which, ptrdiff_t bad_token) {
    for (ptrdiff_t n = 0; n < call_num_seqs(clean); n++)
        for (ptrdiff_t hv = 0; hv < clean->p.num_value_heads; hv++) {
            bool reached = reaches(clean, which, n, hv);
            for (ptrdiff_t t = 0; t < call_length(clean, n); t++)
                if (!reached || (has_tokens(which) && t < bad_token))
                    same_elements(clean, spoilt, CALL_O, call_batch(clean, n), call_token(clean, n, t), hv);
            if (!reached) same_elements(clean, spoilt, CALL_POOL, call_start_slot(clean, n), 0, hv);
        }
}

/* NaN is where the oracle has NaN, and nowhere else; an infinity may turn into NaN and back, not into a number. */
static void check_kinds(const call *spoilt, const call *oracle, bool nan) {
    ptrdiff_t bad = 0;
    for (call_array i = CALL_O; i <= CALL_POOL; i++) {
        const ptrdiff_t *n = spoilt->array[i].shape;
        for (ptrdiff_t i0 = 0; i0 < n[0]; i0++)
            for (ptrdiff_t i1 = 0; i1 < n[1]; i1++)
                for (ptrdiff_t i2 = 0; i2 < n[2]; i2++)
                    for (ptrdiff_t i3 = 0; i3 < n[3]; i3++) {
                        double x = call_get(spoilt, i, i0, i1, i2, i3), y = call_get(oracle, i, i0, i1, i2, i3);
                        bad += !isfinite(y);
                        if (nan ? !isnan(x) != !isnan(y) : !isfinite(x) != !isfinite(y))
                            test_fail("%s[%td][%td][%td][%td] is %g, but the oracle has %g", call_array_names[i], i0,
                                      i1, i2, i3, x, y);
                    }
    }
    if (nan && bad == 0) test_fail("the NaN is lost");
}

/* The token that is spoilt: in the middle, the last one, the only one. */
static const struct {
    call_list lens;
    ptrdiff_t bad_token, rows;
} places[] = {{LIST(4, 5, 3), 2, 20}, {LIST(4, 5, 3), 4, 20}, {LIST(1, 1, 1), 0, 16}};

static void nan_and_infinity_stay(void **state) {
    (void)state;
    static const call_array inputs[] = {CALL_Q, CALL_K,     CALL_V,       CALL_A,
                                        CALL_B, CALL_A_LOG, CALL_DT_BIAS, CALL_INITIAL_POOL};
    static const double values[] = {(double)NAN, HUGE_VAL, -HUGE_VAL};
    static const char *const names[] = {"raw gates", "log gates", "decay", "decay 0 at the same token"};
    for (ptrdiff_t i = 0; i < 8 * COUNT(places) * COUNT(names); i++) {
        ptrdiff_t place = i / 8 % COUNT(places), gate = i / 8 / COUNT(places), kind = i % 8;
        ptrdiff_t bad_token = places[place].bad_token;
        call_config config = {.p = {HEADS(2, 4, places[place].rows, 40), POOL(KV, 3, GDN_F32)}};
        config.lens = places[place].lens;
        config.p.gate_input = gate == 0 ? GDN_GATE_RAW : gate == 1 ? GDN_GATE_LOG : GDN_GATE_DECAY;
        config.p.state_layout = kind & 1 ? GDN_STATE_VK : GDN_STATE_KV;
        config.p.is_kda = (kind & 2) != 0;
        config.p.use_qk_l2norm_in_kernel = (kind & 4) != 0;
        call *clean = call_new(&config);
        if (gate == 3)
            set_row(clean, CALL_A, call_batch(clean, BAD_SEQUENCE), call_token(clean, BAD_SEQUENCE, bad_token), 0);
        run(clean, RUN_WHOLE);
        for (ptrdiff_t j = 0; j < COUNT(inputs) * COUNT(values); j++) {
            call_array which = inputs[j / COUNT(values)];
            double value = values[j % COUNT(values)];
            if (!call_has(clean, which) || (gate == 3 && which == CALL_A)) continue;
            call *spoilt = call_clone(clean, &call_layouts[0], GUARD_AFTER);
            spoil(spoilt, which, bad_token, value);
            call *oracle = call_clone_f64(spoilt);
            test_context("%g in %s at token %td, %s, kind %td", value, call_array_names[which], bad_token, names[gate],
                         kind);
            run(spoilt, RUN_WHOLE);
            run(oracle, RUN_WHOLE);
            check_reach(clean, spoilt, which, bad_token);
            check_kinds(spoilt, oracle, isnan(value) != 0);
            call_free(oracle);
            call_free(spoilt);
        }
        call_free(clean);
    }
}

int main(void) {
    test_banner("test_computed");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(oracle_against_dense_matrices),
        cmocka_unit_test(float64_tensors),
        cmocka_unit_test(options),
        cmocka_unit_test(head_dims),
        cmocka_unit_test(heads),
        cmocka_unit_test(lengths),
        cmocka_unit_test(padding_computes_from_zeros),
        cmocka_unit_test(padding_needs_a_pool),
        cmocka_unit_test(prepared_values),
        cmocka_unit_test(prepared_inputs_give_the_same),
        cmocka_unit_test(roundings),
        cmocka_unit_test(decays),
        cmocka_unit_test(betas),
        cmocka_unit_test(every_half_is_read_exactly),
        cmocka_unit_test(halves_are_rounded_to_even),
        cmocka_unit_test(infinities_are_stored),
        cmocka_unit_test(outputs_are_rounded_once),
        cmocka_unit_test(decay_of_zero_forgets),
        cmocka_unit_test(decay_of_zero_forgets_single_rows),
        cmocka_unit_test(extreme_gates),
        cmocka_unit_test(zero_and_tiny_rows),
        cmocka_unit_test(zeros_and_denormals),
        cmocka_unit_test(nan_and_infinity_stay),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
