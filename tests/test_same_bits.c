/* What stays the same, to the bit: however a call is cut into work items and spread over threads, whatever else is in
 * the batch, wherever a sequence is split, however its arrays lie in memory, and on every instruction set. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "compare.h"
#include "configs.h"
#include "cpu.h"
#include "run.h"
#include "test.h"

/* Does something with every call of the table; each has run when it is handed over. Random ones: test_random. */
static void for_each_call(void (*check)(call *c, const char *name)) {
    for (ptrdiff_t i = 0; i < num_configs; i++) {
        call *c = call_new(&configs[i]);
        test_context("%s", configs[i].name);
        run(c, RUN_WHOLE);
        check(c, configs[i].name);
        call_free(c);
    }
}

/* ---- work items, memory ---------------------------------------------------------------------------- */

static void check_partitions(call *c, const char *name) {
    call *other = call_clone(c, &call_layouts[0], GUARD_AFTER);
    for (run_how how = 0; how < RUN_NUM; how++) {
        test_context("%s, %s", name, run_names[how]);
        run(other, how);
        assert_same(c, other);
    }
    call_free(other);
}

static void any_partition_of_the_work(void **state) {
    (void)state;
    for_each_call(check_partitions);
}

static void check_layouts(call *c, const char *name) {
    for (int i = 0; i < 2 * CALL_NUM_LAYOUTS; i++) {
        test_context("%s, %s", name, call_layouts[i / 2].name);
        call *other = call_clone(c, &call_layouts[i / 2], i % 2 ? GUARD_BEFORE : GUARD_AFTER);
        run(other, i % 2 ? RUN_SINGLE_ITEMS : RUN_WHOLE);
        assert_same(c, other);
        call_free(other);
    }
}

static void any_strides(void **state) {
    (void)state;
    for_each_call(check_layouts);
}

static void check_indices(call *c, const char *name) {
    test_context("%s, other index type", name);
    call *other = call_clone_indices(c);
    run(other, RUN_WHOLE);
    assert_same(c, other);
    call_free(other);
}

static void int32_or_int64_indices(void **state) {
    (void)state;
    for_each_call(check_indices);
}

/* The pool that is read, of any dtype, may be another one than the pool that is written. */
static void check_two_pools(call *c, const char *name) {
    test_context("%s, two pools", name);
    run_two_pools(c);
}

static void any_pool_to_read(void **state) {
    (void)state;
    for_each_call(check_two_pools);
}

static void check_repeated(call *c, const char *name) {
    test_context("%s, called twice", name);
    call *other = call_clone(c, &call_layouts[0], GUARD_AFTER);
    for (int i = 0; i < 2; i++) {
        call_reset(other);
        run_params(&other->p);
        assert_same(c, other);
        for (call_array input = 0; input < CALL_O; input++) assert_same_array(c, other, input);
    }
    call_free(other);
}

static void repeated_calls(void **state) {
    (void)state;
    for_each_call(check_repeated);
}

/* ---- batches, lengths ------------------------------------------------------------------------------ */

static void check_batches(call *c, const char *name) {
    ptrdiff_t count = call_num_seqs(c), sequences[16];
    bool same_length = true;
    for (ptrdiff_t n = 0; n < count; n++) {
        test_context("%s, sequence %td alone", name, n);
        run_sequences(c, &n, 1, false);
        run_sequences(c, &n, 1, true);
        sequences[n] = count - 1 - n;
        same_length = same_length && call_length(c, n) == call_length(c, 0);
    }
    test_context("%s, reversed", name);
    run_sequences(c, sequences, count, true);
    if (same_length) run_sequences(c, sequences, count, false);
    test_context("%s, without its last sequence", name);
    if (count > 1) run_sequences(c, sequences + 1, count - 1, true);
}

static void alone_or_in_any_batch(void **state) {
    (void)state;
    for_each_call(check_batches);
}

static const call_config splits[] = {
    {.name = "fixed", .p = {FIXED(2, 300), HEADS(1, 2, 20, 40), POOL(KV, 2, GDN_F32)}},
    {.name = "fixed, l2, scale",
     .p = {FIXED(1, 300), HEADS(2, 2, 64, 33), POOL(KV, 1, GDN_F32), .use_qk_l2norm_in_kernel = true, .scale = 0.3}},
    {.name = "varlen",
     .p = {HEADS(1, 3, 33, 17), POOL(KV, 5, GDN_F32)},
     .lens = LIST(273, 5, 301),
     .initial_state_indices = LIST(4, 0, 1)},
    {.name = "bfloat16 in and out",
     .p = {HEADS(2, 4, 32, 32), DTYPES(GDN_BF16), POOL(KV, 2, GDN_F32), .beta_per_column = true,
           .use_qk_l2norm_in_kernel = true},
     .lens = LIST(260, 7),
     .initial_state_indices = LIST(1, 0)},
    {.name = "one row", .p = {FIXED(1, 300), HEADS(1, 1, 1, 1), POOL(KV, 1, GDN_F32)}},
    {.name = "key to read, before the decay",
     .p = {FIXED(1, 300), HEADS(1, 2, 20, 24), POOL(KV, 1, GDN_F32), .k_read.dtype = GDN_F32,
           .read_before_decay = true}},
    {.name = "decay per column, mask",
     .p = {FIXED(1, 300), HEADS(1, 2, 20, 24), POOL(KV, 1, GDN_F32), .gv.dtype = GDN_F32},
     .mask = true},
};

/* Splits of sequences longer than any block of tokens inside the library; pieces change the instruction set too. In
 * chunks every split is at a multiple of sixteen, and no piece is a single token. */
static void any_split(void **state) {
    (void)state;
    static const ptrdiff_t ends[][9] = {{1},
                                        {150},
                                        {299},
                                        {64, 65, 129},
                                        {1, 2, 3, 5, 8, 13, 21, 34, 55},
                                        {128, 256}, /* the first that chunks keep */
                                        {32, 64, 96, 128, 160, 192, 224, 256, 288},
                                        {16},
                                        {16, 48, 64, 256}};
    const bool chunks = test_compute() == GDN_COMPUTE_F32_CHUNKS;
    ptrdiff_t single[300];
    for (ptrdiff_t t = 0; t < COUNT(single); t++) single[t] = t + 1;
    for (ptrdiff_t i = 0; i < 8 * COUNT(splits); i++) {
        call_config config = splits[i / 8];
        config.p.state_layout = i & 1 ? GDN_STATE_VK : GDN_STATE_KV;
        config.p.is_kda = (i & 2) != 0;
        call *whole = call_new(&config);
        if (i & 4) { /* an infinity that nothing makes a NaN stays one */
            call_fill(whole, CALL_K, 0.125);
            call_fill(whole, CALL_Q, 0.125);
            for (ptrdiff_t v = 0; v < config.p.head_v_dim; v++) call_set(whole, CALL_V, 0, 2, 0, v, HUGE_VAL);
        }
        call *split = call_clone(whole, &call_layouts[0], GUARD_AFTER);
        run(whole, RUN_WHOLE);
        for (ptrdiff_t j = chunks ? 5 : -1; j < COUNT(ends); j++) {
            ptrdiff_t count = 0;
            while (j >= 0 && count < COUNT(ends[j]) && ends[j][count] > 0) count++;
            test_context("%s%s%s, split %td", config.name, i & 1 ? ", vk" : ", kv", i & 2 ? ", kda" : "", j);
            if (j < 0)
                run_split(split, single, COUNT(single));
            else
                run_split(split, ends[j], count);
            assert_same(whole, split);
        }
        call_free(split);
        call_free(whole);
    }
}

/* States that are rounded after every token are those of one call for each token, through a pool of that dtype. */
static void rounded_states(void **state) {
    (void)state;
    static ptrdiff_t single[70];
    for (ptrdiff_t t = 0; t < COUNT(single); t++) single[t] = t + 1;
    for (int i = 0; i < 8; i++) {
        call_config config = {.p = {FIXED(2, COUNT(single)), HEADS(1, 2, 20, 40), POOL(KV, 2, GDN_BF16)}};
        config.p.state_layout = i & 1 ? GDN_STATE_VK : GDN_STATE_KV;
        config.p.is_kda = (i & 2) != 0;
        config.p.initial_state_source.dtype = i & 4 ? GDN_F16 : GDN_BF16;
        call *split = call_new(&config), *whole = call_clone(split, &call_layouts[0], GUARD_AFTER);
        whole->p.rounding = GDN_ROUND_STATE;
        test_context("rounded states, kind %d", i);
        run_split(split, single, COUNT(single));
        run(whole, RUN_WHOLE);
        assert_same(whole, split);
        call_free(whole);
        call_free(split);
    }
}

/* ---- inputs that are one element for a whole axis --------------------------------------------------- */

static gdn_tensor *tensor_of(gdn_params *p, call_array which) {
    switch (which) {
    case CALL_A_LOG: return &p->A_log;
    case CALL_A: return &p->a;
    case CALL_DT_BIAS: return &p->dt_bias;
    case CALL_Q: return &p->q;
    case CALL_K: return &p->k;
    case CALL_V: return &p->v;
    case CALL_B: return &p->b;
    case CALL_K_READ: return &p->k_read;
    case CALL_ERASE: return &p->erase;
    case CALL_GV: return &p->gv;
    default: return NULL;
    }
}

/* Every place of an axis holds what its first one does. */
static void repeat_first(call *c, call_array which, int axes) {
    const ptrdiff_t *n = c->array[which].shape;
    for (ptrdiff_t i0 = 0; i0 < n[0]; i0++)
        for (ptrdiff_t i1 = 0; i1 < n[1]; i1++)
            for (ptrdiff_t i2 = 0; i2 < n[2]; i2++)
                for (ptrdiff_t i3 = 0; i3 < n[3]; i3++)
                    call_set(c, which, i0, i1, i2, i3,
                             call_get(c, which, axes & 1 ? 0 : i0, axes & 2 ? 0 : i1, axes & 4 ? 0 : i2, i3));
}

/* The array without those axes, in memory that ends where it does. */
static gdn_tensor without_axes(const call *c, call_array which, int axes, guard_block *block) {
    const strided *s = &c->array[which];
    const size_t size = element_size(s->type);
    ptrdiff_t n[3], count = s->shape[3];
    for (int i = 0; i < 3; i++) {
        n[i] = axes >> i & 1 ? 1 : s->shape[i];
        count *= n[i];
    }
    *block = guard_alloc((size_t)count * size, GUARD_AFTER);
    unsigned char *to = block->data;
    for (ptrdiff_t i0 = 0; i0 < n[0]; i0++)
        for (ptrdiff_t i1 = 0; i1 < n[1]; i1++)
            for (ptrdiff_t i2 = 0; i2 < n[2]; i2++, to += (size_t)s->shape[3] * size)
                memcpy(to, call_at(c, which, i0, i1, i2, 0), (size_t)s->shape[3] * size);
    const bool heads_only = which == CALL_A_LOG || which == CALL_DT_BIAS;
    gdn_tensor x = gdn_tensor_of(block->data, (gdn_dtype)s->type);
    x.batch_stride = axes & 1 && !heads_only ? GDN_BROADCAST : 0;
    x.token_stride = axes & 2 && !heads_only ? GDN_BROADCAST : 0;
    x.head_stride = axes & 4 ? GDN_BROADCAST : 0;
    return x;
}

static void broadcast_inputs(void **state) {
    (void)state;
    for (int kind = 0; kind < 8; kind++)
        for (call_array which = CALL_A_LOG; which <= CALL_MASK; which++)
            for (int axes = 1; axes < 8; axes++) {
                call_config config = {.p = {FIXED(2, kind & 4 ? 1 : 20), HEADS(2, 4, 16, 64), POOL(KV, 2, GDN_F32)}};
                config.p.is_kda = (kind & 1) != 0;
                config.p.state_layout = kind & 2 ? GDN_STATE_VK : GDN_STATE_KV;
                if (which == CALL_K_READ) config.p.k_read.dtype = GDN_F32;
                if (which == CALL_ERASE) config.p.erase.dtype = GDN_F32;
                if (which == CALL_GV) config.p.gv.dtype = GDN_F32;
                config.mask = which == CALL_MASK;
                call *whole = call_new(&config), *narrow;
                guard_block block;
                test_context("%s, axes %d, kind %d", call_array_names[which], axes, kind);
                repeat_first(whole, which, axes);
                narrow = call_clone(whole, &call_layouts[0], GUARD_AFTER);
                const gdn_tensor x = without_axes(whole, which, axes, &block);
                if (which == CALL_MASK) {
                    narrow->p.token_mask.data = x.data;
                    narrow->p.token_mask.batch_stride = x.batch_stride;
                    narrow->p.token_mask.token_stride = x.token_stride;
                } else
                    *tensor_of(&narrow->p, which) = x;
                run(whole, RUN_WHOLE);
                run(narrow, RUN_WHOLE);
                assert_same(whole, narrow);
                guard_free(&block);
                call_free(narrow);
                call_free(whole);
            }
}

/* In chunks both layouts give the same bits. */
static void any_state_layout(void **state) {
    (void)state;
    for (ptrdiff_t i = 0; i < 2 * COUNT(splits); i++) {
        call_config config = splits[i / 2];
        config.p.is_kda = i & 1;
        call *kv = call_new(&config), *vk = call_clone_transposed(kv);
        test_context("%s%s, both layouts", config.name, i & 1 ? ", kda" : "");
        if (call_in_chunks(kv)) {
            run(kv, RUN_WHOLE);
            run(vk, RUN_WHOLE);
            assert_same_array(kv, vk, CALL_O);
            for (ptrdiff_t slot = 0; slot < kv->array[CALL_POOL].shape[0]; slot++)
                for (ptrdiff_t j = 0; j < config.p.num_value_heads * config.p.head_k_dim * config.p.head_v_dim; j++) {
                    ptrdiff_t v = j % config.p.head_v_dim, rest = j / config.p.head_v_dim;
                    ptrdiff_t k = rest % config.p.head_k_dim, hv = rest / config.p.head_k_dim;
                    if (call_get(kv, CALL_POOL, slot, 0, hv, call_state_index(kv, k, v)) !=
                        call_get(vk, CALL_POOL, slot, 0, hv, call_state_index(vk, k, v)))
                        test_fail("slot %td, head %td, [%td, %td]", slot, hv, k, v);
                }
        }
        call_free(vk);
        call_free(kv);
    }
}

static void no_pool_is_a_pool_of_zeros(void **state) {
    (void)state;
    for (int kda = 0; kda < 2; kda++) {
        call_config config = {.p = {HEADS(2, 4, 33, 40), .is_kda = kda != 0}, .lens = LIST(9, 0, 270)};
        call *without = call_new(&config);
        config.p.state_layout = GDN_STATE_KV;
        config.p.initial_state_source.num_states = 3;
        call *with = call_new(&config);
        call_fill(with, CALL_INITIAL_POOL, 0);
        call *written = call_clone(with, &call_layouts[0], GUARD_AFTER);
        written->p.output_state_pool = written->p.initial_state_source;
        written->p.initial_state_source.data = NULL;
        test_context("no pool, kda %d", kda);
        run(without, RUN_WHOLE);
        run(with, RUN_WHOLE);
        assert_same_array(without, with, CALL_O);
        test_context("a pool that is only written, kda %d", kda);
        run(written, RUN_WHOLE);
        assert_same(written, with);
        call_free(written);
        call_free(with);
        call_free(without);
    }
}

/* ---- the order of operations that the header documents ---------------------------------------------- */

/* Sixteen partial sums, or (first) all in one. */
static void partial_sums(ptrdiff_t K, const float *x, const float *y, bool sixteen, float *sums) {
    for (int l = 0; l < 16; l++) sums[l] = 0;
    for (ptrdiff_t i = 0; i < K; i++) {
        float *sum = &sums[sixteen ? i % 16 : 0];
        *sum = fmaf(x[i], y[i], *sum);
    }
}

static float sum_over_rows(ptrdiff_t K, const float *x, const float *y, bool sixteen) {
    float sums[16];
    partial_sums(K, x, y, sixteen, sums);
    for (int half = 8; sixteen && half > 0; half /= 2)
        for (int l = 0; l < half; l++) sums[l] += sums[l + half];
    return sums[0];
}

static double sum_folded_in_double(ptrdiff_t K, const float *x, const float *y) {
    float parts[16];
    double sums[16];
    partial_sums(K, x, y, true, parts);
    for (int l = 0; l < 16; l++) sums[l] = (double)parts[l];
    for (int half = 8; half > 0; half /= 2)
        for (int l = 0; l < half; l++) sums[l] += sums[l + half];
    return sums[0];
}

static void scale_row(ptrdiff_t K, float *x, double factor) {
    float high = (float)factor, low = (float)(factor - (double)high);
    for (ptrdiff_t i = 0; i < K; i++) {
        float rest = x[i] * low;
        x[i] = fmaf(x[i], high, rest);
    }
}

enum { MAX_ROWS = 64 };

/* One row of q, k or k_read as the header prepares it. */
static void prepare_row(const call *c, call_array which, ptrdiff_t batch, ptrdiff_t token, ptrdiff_t hv, float *x) {
    ptrdiff_t K = c->p.head_k_dim;
    double factor = which == CALL_Q ? 1 / sqrt((double)K) : 1;
    for (ptrdiff_t i = 0; i < K; i++) x[i] = (float)call_get(c, which, batch, token, call_key_head(c, hv), i);
    if (c->p.use_qk_l2norm_in_kernel) factor *= 1 / sqrt(sum_folded_in_double(K, x, x) + 1e-6);
    if (which == CALL_Q || c->p.use_qk_l2norm_in_kernel) scale_row(K, x, factor);
}

/* What reads the state, where q and k are what they are. */
static void prepare_reads(const call *c, ptrdiff_t batch, ptrdiff_t token, ptrdiff_t hv, float *x) {
    prepare_row(c, call_has(c, CALL_K_READ) ? CALL_K_READ : CALL_K, batch, token, hv, x);
    for (ptrdiff_t i = 0; i < c->p.head_k_dim && call_has(c, CALL_ERASE); i++)
        x[i] *= (float)call_get(c, CALL_ERASE, batch, token, hv, i);
}

/* exp(gv), as the header computes and rounds the decay of a channel: [token, head, column]. */
static float *column_decays(const call *c) {
    const ptrdiff_t tokens = c->p.seq_len, heads = c->p.num_value_heads, V = c->p.head_v_dim;
    gdn_params p = {FIXED(1, tokens), HEADS(heads, heads, V, 1), .gate_input = GDN_GATE_LOG, .is_kda = true};
    float *decays = (float *)malloc((size_t)(tokens * heads * V) * sizeof *decays);
    const gdn_prepared results = {.decay = gdn_out_f32(decays)};
    assert_non_null(decays);
    p.a = c->p.gv;
    assert_int_equal(gdn_prepare(&p, &results, NULL), GDN_OK);
    return decays;
}

static void documented_token(call *c, ptrdiff_t n, ptrdiff_t t, ptrdiff_t hv, const float *column_decay,
                             float (*S)[MAX_ROWS]) {
    ptrdiff_t K = c->p.head_k_dim, batch = call_batch(c, n), token = call_token(c, n, t);
    bool vk = c->p.state_layout == GDN_STATE_VK, kda = c->p.is_kda, before = c->p.read_before_decay;
    float q[MAX_ROWS] = {0}, k[MAX_ROWS] = {0}, decay[MAX_ROWS] = {0}, reads[MAX_ROWS] = {0}, qd[MAX_ROWS];
    prepare_row(c, CALL_Q, batch, token, hv, q);
    prepare_row(c, CALL_K, batch, token, hv, k);
    prepare_reads(c, batch, token, hv, reads);
    float qk = (float)sum_folded_in_double(K, q, k);
    float beta = (float)call_get(c, CALL_B, batch, token, hv, 0);
    for (ptrdiff_t i = 0; i < K; i++) {
        decay[i] = (float)call_get(c, CALL_A, batch, token, hv, kda ? i : 0);
        float factor = kda ? decay[i] : decay[i] == 0 ? 0 : 1;
        if (!before) reads[i] *= factor;
        qd[i] = factor * q[i];
    }
    float p = kda ? 1 : decay[0], read_p = before ? 1 : p;
    for (ptrdiff_t v = 0; v < c->p.head_v_dim; v++) {
        for (ptrdiff_t i = 0; i < K && column_decay != NULL; i++)
            S[v][i] *= column_decay[(token * c->p.num_value_heads + hv) * c->p.head_v_dim + v];
        float A = sum_over_rows(K, reads, S[v], vk), pB = p * sum_over_rows(K, qd, S[v], vk);
        float d = beta * fmaf(-read_p, A, (float)call_get(c, CALL_V, batch, token, hv, v));
        for (ptrdiff_t i = 0; i < K; i++) {
            float decayed = decay[i] * S[v][i];
            S[v][i] = fmaf(k[i], d, decayed);
        }
        call_set(c, CALL_O, batch, token, hv, v, (double)fmaf(qk, d, pB));
    }
}

/* Tokens first to last of a sequence as a chunk, all of which remember the state before them. */
static void documented_chunk(call *c, ptrdiff_t n, ptrdiff_t first, ptrdiff_t last, ptrdiff_t hv,
                             float (*S)[MAX_ROWS]) {
    static float q[16][MAX_ROWS], k[16][MAX_ROWS], decay[16][MAX_ROWS], G[16][MAX_ROWS], u[16][16][MAX_ROWS];
    static float reads[16][MAX_ROWS];
    static float kk[16][16], qk[16][16], P[16][16];
    const ptrdiff_t K = c->p.head_k_dim, batch = call_batch(c, n), token = call_token(c, n, first), T = last - first;
    const bool kda = c->p.is_kda;
    for (ptrdiff_t t = 0; t < T; t++) {
        prepare_row(c, CALL_Q, batch, token + t, hv, q[t]);
        prepare_row(c, CALL_K, batch, token + t, hv, k[t]);
        prepare_reads(c, batch, token + t, hv, reads[t]);
        for (ptrdiff_t i = 0; i < K; i++) {
            decay[t][i] = (float)call_get(c, CALL_A, batch, token + t, hv, kda ? i : 0);
            G[t][i] = t == 0 ? decay[t][i] : G[t - 1][i] * decay[t][i];
        }
    }
    for (ptrdiff_t j = 0; j < T; j++)
        for (ptrdiff_t t = j; t < T; t++) {
            for (ptrdiff_t i = 0; i < K; i++) u[t][j][i] = t == j ? k[j][i] : u[t - 1][j][i] * decay[t][i];
            P[t][j] = t == j ? 1 : P[t - 1][j] * decay[t][0];
            kk[t][j] = sum_over_rows(K, reads[t], kda ? u[t][j] : k[j], false) * (kda ? 1 : P[t][j]);
            qk[t][j] = sum_over_rows(K, q[t], kda ? u[t][j] : k[j], false) * (kda ? 1 : P[t][j]);
        }
    for (ptrdiff_t v = 0; v < c->p.head_v_dim; v++) {
        float d[16];
        for (ptrdiff_t t = 0; t < T; t++) {
            float kd[MAX_ROWS], qd[MAX_ROWS], p = kda ? 1 : G[t][0];
            for (ptrdiff_t i = 0; i < K; i++) {
                kd[i] = kda ? G[t][i] * reads[t][i] : reads[t][i];
                qd[i] = kda ? G[t][i] * q[t][i] : q[t][i];
            }
            float y = fmaf(-p, sum_over_rows(K, kd, S[v], false), (float)call_get(c, CALL_V, batch, token + t, hv, v));
            float o = p * sum_over_rows(K, qd, S[v], false);
            for (ptrdiff_t j = 0; j < t; j++) y = fmaf(-kk[t][j], d[j], y);
            d[t] = (float)call_get(c, CALL_B, batch, token + t, hv, 0) * y;
            for (ptrdiff_t j = 0; j <= t; j++) o = fmaf(qk[t][j], d[j], o);
            call_set(c, CALL_O, batch, token + t, hv, v, (double)o);
        }
        for (ptrdiff_t j = 0; j < T && !kda; j++) d[j] = P[T - 1][j] * d[j];
        for (ptrdiff_t i = 0; i < K; i++) {
            float s = G[T - 1][i] * S[v][i];
            for (ptrdiff_t j = 0; j < T; j++) s = fmaf(kda ? u[T - 1][j][i] : k[j][i], d[j], s);
            S[v][i] = s;
        }
    }
}

static bool forgets_all(const call *c, ptrdiff_t n, ptrdiff_t t, ptrdiff_t hv) {
    for (ptrdiff_t i = 0; i < (c->p.is_kda ? c->p.head_k_dim : 1); i++)
        if (call_get(c, CALL_A, call_batch(c, n), call_token(c, n, t), hv, i) != 0) return false;
    return true;
}

/* Chunks end at multiples of sixteen and before a token that forgets. */
static void documented_chunks(call *c, ptrdiff_t n, ptrdiff_t hv, float (*S)[MAX_ROWS]) {
    const ptrdiff_t length = call_length(c, n);
    for (ptrdiff_t first = 0, last; first < length; first = last) {
        for (last = first + 1; last < length && last % 16 != 0 && !forgets_all(c, n, last, hv);) last++;
        for (ptrdiff_t i = 0; i < MAX_ROWS * MAX_ROWS && forgets_all(c, n, first, hv); i++)
            S[i / MAX_ROWS][i % MAX_ROWS] *= 0;
        documented_chunk(c, n, first, last, hv, S);
    }
}

static void documented_order_of_operations(void **state) {
    (void)state;
    static const ptrdiff_t dims[][2] = {{1, 1}, {7, 5}, {16, 32}, {33, 40}, {64, 64}};
    static const struct {
        bool k_read, erase, before, gv;
    } reads[] = {{false, false, false, false}, {true, false, false, false}, {false, true, false, false},
                 {true, true, false, false},   {false, false, true, false}, {true, true, true, false},
                 {false, false, false, true},  {true, true, false, true}};
    static float S[MAX_ROWS][MAX_ROWS];
    for (ptrdiff_t variant = 0; variant < 8 * COUNT(dims) * COUNT(reads); variant++) {
        const ptrdiff_t i = variant % (8 * COUNT(dims)), which = variant / (8 * COUNT(dims));
        call_config config = {
            .p = {HEADS(2, 4, 1, 1), POOL(KV, 3, GDN_F32), .gate_input = GDN_GATE_DECAY, .beta_input = GDN_BETA_GIVEN},
            .lens = LIST(9, 3, 1)};
        const int chunked[] = {41, 3, 1};
        if (test_compute() == GDN_COMPUTE_F32_CHUNKS) config.lens.values = chunked;
        config.p.state_layout = i & 1 ? GDN_STATE_VK : GDN_STATE_KV;
        config.p.is_kda = (i & 2) != 0;
        config.p.use_qk_l2norm_in_kernel = (i & 4) != 0;
        config.p.head_k_dim = dims[i / 8][0];
        config.p.head_v_dim = dims[i / 8][1];
        config.p.k_read.dtype = reads[which].k_read ? GDN_F32 : GDN_DTYPE_NOT_SET;
        config.p.erase.dtype = reads[which].erase ? GDN_F32 : GDN_DTYPE_NOT_SET;
        config.p.gv.dtype = reads[which].gv ? GDN_F32 : GDN_DTYPE_NOT_SET;
        config.p.read_before_decay = reads[which].before;
        call *c = call_new(&config);
        float *const column_decay = reads[which].gv ? column_decays(c) : NULL;
        const bool chunks = c->p.compute == GDN_COMPUTE_F32_CHUNKS && !reads[which].gv && !reads[which].before;
        for (ptrdiff_t hv = 0; hv < 4; hv++) call_set(c, CALL_A, 0, 4 + hv, hv, 0, 0);
        for (ptrdiff_t j = 0; j < (config.p.is_kda ? config.p.head_k_dim : 1) && call_length(c, 0) > 20; j++)
            call_set(c, CALL_A, 0, 20, 1, j, 0);
        call *expected = call_clone(c, &call_layouts[0], GUARD_AFTER);
        for (ptrdiff_t n = 0; n < 3; n++)
            for (ptrdiff_t hv = 0; hv < 4; hv++) {
                for (ptrdiff_t j = 0; j < config.p.head_k_dim * config.p.head_v_dim; j++) {
                    ptrdiff_t row = j % config.p.head_k_dim, column = j / config.p.head_k_dim;
                    S[column][row] = (float)call_get(c, CALL_INITIAL_POOL, n, 0, hv, call_state_index(c, row, column));
                }
                if (chunks && call_length(c, n) > 1)
                    documented_chunks(expected, n, hv, S);
                else
                    for (ptrdiff_t t = 0; t < call_length(c, n); t++)
                        documented_token(expected, n, t, hv, column_decay, S);
                for (ptrdiff_t j = 0; j < config.p.head_k_dim * config.p.head_v_dim; j++) {
                    ptrdiff_t row = j % config.p.head_k_dim, column = j / config.p.head_k_dim;
                    call_set(expected, CALL_POOL, n, 0, hv, call_state_index(c, row, column), (double)S[column][row]);
                }
            }
        test_context("order of operations, %td x %td, kind %td, reads %td", dims[i / 8][0], dims[i / 8][1], i % 8,
                     which);
        run(c, RUN_WHOLE);
        assert_same(c, expected);
        free(column_decay);
        call_free(expected);
        call_free(c);
    }
}

/* ---- instruction sets ------------------------------------------------------------------------------ */

static void check_isas(call *c, const char *name) {
    c->p.isa = GDN_ISA_PLAIN;
    run(c, RUN_WHOLE);
    for (gdn_isa isa = GDN_ISA_AUTO; isa < GDN_NUM_ISAS; isa++) {
        if (!gdn_isa_supported(isa)) continue;
        call *other = call_clone(c, &call_layouts[0], GUARD_AFTER);
        other->p.isa = isa;
        test_context("%s, %s against plain", name, gdn_isa_name(isa));
        run(other, RUN_WHOLE);
        assert_same(c, other);
        call_free(other);
    }
}

static void check_isas_on_extremes(call *c, const char *name) {
    check_isas(c, name);
    strew_extremes(c, 1);
    check_isas(c, name);
    strew_extremes(c, 2);
    check_isas(c, name);
}

static void any_instruction_set(void **state) {
    (void)state;
    for_each_call(check_isas_on_extremes);
}

static void any_instruction_set_for_any_size(void **state) {
    (void)state;
    static const ptrdiff_t ks[] = {1, 2, 7, 15, 16, 17, 31, 32, 33, 48, 64, 100, 128, 256};
    static const ptrdiff_t vs[] = {1, 3, 8, 15, 16, 17, 31, 32, 33, 47, 64, 96, 100, 128};
    for (ptrdiff_t i = 0; i < 4 * COUNT(ks) * COUNT(vs); i++) {
        call_config config = {.name = "sizes", .p = {HEADS(1, 2, 1, 1), POOL(KV, 2, GDN_F32)}, .lens = LIST(3, 1)};
        config.p.state_layout = i & 1 ? GDN_STATE_VK : GDN_STATE_KV;
        config.p.is_kda = (i & 2) != 0;
        config.p.head_k_dim = ks[i / 4 % COUNT(ks)];
        config.p.head_v_dim = vs[i / 4 / COUNT(ks)];
        char name[64];
        snprintf(name, sizeof name, "%td x %td, kind %td", config.p.head_k_dim, config.p.head_v_dim, i % 4);
        call *c = call_new(&config);
        check_isas(c, name);
        call_free(c);
    }
}

/* Those of the CPU as /proc/cpuinfo describes it, or those of a list such as GDN_TEST_REQUIRE_ISA=avx2,avx512: what
 * is missing has not been tested. */
static void expected_instruction_sets_ran(void **state) {
    (void)state;
    const char *list = getenv("GDN_TEST_REQUIRE_ISA");
    printf("instruction sets compared:");
    for (gdn_isa isa = GDN_ISA_PLAIN; isa < GDN_NUM_ISAS; isa++)
        if (gdn_isa_supported(isa)) printf(" %s", gdn_isa_name(isa));
    printf("\n");
    fflush(stdout);
    test_context("instruction sets");
    for (gdn_isa isa = GDN_ISA_PLAIN; isa < GDN_NUM_ISAS; isa++)
        if (!gdn_isa_supported(isa) && (list != NULL ? cpu_named(list, gdn_isa_name(isa)) : cpu_requires(isa)))
            test_fail("%s is missing", gdn_isa_name(isa));
}

int main(void) {
    test_banner("test_same_bits");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_partition_of_the_work),
        cmocka_unit_test(any_strides),
        cmocka_unit_test(int32_or_int64_indices),
        cmocka_unit_test(any_pool_to_read),
        cmocka_unit_test(repeated_calls),
        cmocka_unit_test(alone_or_in_any_batch),
        cmocka_unit_test(any_split),
        cmocka_unit_test(rounded_states),
        cmocka_unit_test(broadcast_inputs),
        cmocka_unit_test(any_state_layout),
        cmocka_unit_test(no_pool_is_a_pool_of_zeros),
        cmocka_unit_test(documented_order_of_operations),
        cmocka_unit_test(any_instruction_set),
        cmocka_unit_test(any_instruction_set_for_any_size),
        cmocka_unit_test(expected_instruction_sets_ran),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
