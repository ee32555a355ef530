/* One sequence in parts: the state after a part is M S + B, with M from a homogeneous call and B from a state of zeros.
 * Carried over the parts one by one, or over parts that were joined first, the state is that of the whole sequence. */
#include <math.h>
#include <string.h>

#include "configs.h"
#include "run.h"
#include "test.h"

enum { TOKENS = 70, PARTS = 4, MOST = 2 * 160 * 160 }; /* MOST: elements of the largest M or B below */

static const ptrdiff_t cuts[PARTS + 1] = {0, 1, 40, 40, TOKENS}; /* one token, several blocks, none, the rest */

#define POOL_OF_ONE(layout) FIXED(1, TOKENS), POOL(layout, 1, GDN_F32), .use_qk_l2norm_in_kernel = true
static const call_config calls[] = {
    {.name = "smallest", .p = {HEADS(1, 1, 1, 1), POOL_OF_ONE(KV)}},
    {.name = "odd sizes", .p = {HEADS(2, 4, 7, 37), POOL_OF_ONE(KV)}},
    {.name = "odd sizes, vk", .p = {HEADS(2, 4, 37, 7), POOL_OF_ONE(VK)}},
    {.name = "more columns", .p = {HEADS(1, 2, 96, 160), POOL_OF_ONE(KV)}},
    {.name = "more rows, vk", .p = {HEADS(1, 2, 160, 96), POOL_OF_ONE(VK)}},
    {.name = "kda", .p = {HEADS(2, 2, 32, 48), POOL_OF_ONE(KV), .is_kda = true}},
    {.name = "doubled beta, tiled heads, vk",
     .p = {HEADS(2, 4, 32, 64), POOL_OF_ONE(VK), .allow_neg_eigval = true, .head_map = GDN_HEADS_TILED}},
};

/* Of the value heads of one call, as floats or doubles. */
typedef double matrices[MOST];
static matrices transition[PARTS], from_zero[PARTS], joined_transition[2], joined_from_zero[2], state[2];

static gdn_dtype dtype_of(const call *c) { return (gdn_dtype)c->array[CALL_POOL].type; }

/* Tokens of part i, whose final state overwrites the initial one in `pool`. */
static void run_part(const call *c, int i, bool homogeneous, void *pool) {
    gdn_params p = c->p;
    const ptrdiff_t first = cuts[i] % TOKENS;
    p.seq_len = cuts[i + 1] - cuts[i];
    p.initial_state_source.data = pool;
    p.q.data = call_at(c, CALL_Q, 0, first, 0, 0);
    p.k.data = call_at(c, CALL_K, 0, first, 0, 0);
    p.a.data = call_at(c, CALL_A, 0, first, 0, 0);
    p.b.data = call_at(c, CALL_B, 0, first, 0, 0);
    p.v.data = homogeneous ? NULL : call_at(c, CALL_V, 0, first, 0, 0);
    p.o.data = homogeneous ? NULL : call_at(c, CALL_O, 0, first, 0, 0);
    p.homogeneous = homogeneous;
    if (homogeneous) p.head_v_dim = p.head_k_dim;
    run_params(&p);
}

static void set_identity(const call *c, double *x) {
    const ptrdiff_t K = c->p.head_k_dim;
    const element type = c->array[CALL_POOL].type;
    memset(x, 0, sizeof(matrices));
    for (ptrdiff_t i = 0; i < c->p.num_value_heads * K; i++)
        element_store(type, (char *)x + (size_t)(i * K + i % K) * element_size(type), 1);
}

/* result = added + x * y, over `columns` columns; added NULL: zeros. */
static void apply(const call *c, ptrdiff_t columns, const double *x, const double *y, const double *added,
                  double *result) {
    gdn_error error;
    memset(result, 0, sizeof(matrices));
    if (added != NULL) memcpy(result, added, sizeof(matrices));
    if (gdn_segment_apply(c->p.num_value_heads, c->p.head_k_dim, columns, c->p.state_layout, dtype_of(c), x, y, result,
                          &error) != GDN_OK)
        test_fail("%s at \"%s\"", gdn_status_name(error.status), error.argument);
}

static void set_initial_state(const call *c, double *x) {
    const size_t count = (size_t)(c->p.num_value_heads * c->p.head_k_dim * c->p.head_v_dim);
    memset(x, 0, sizeof(matrices));
    memcpy(x, call_at(c, CALL_INITIAL_POOL, 0, 0, 0, 0), count * element_size(c->array[CALL_POOL].type));
}

static void assert_final_state(const call *c, const double *actual, const call *expected, double tolerance) {
    const ptrdiff_t size = c->p.head_k_dim * c->p.head_v_dim;
    const element type = c->array[CALL_POOL].type;
    double largest = 0, worst = 0;
    for (ptrdiff_t i = 0; i < c->p.num_value_heads * size; i++) {
        const double e = call_get(expected, CALL_POOL, 0, 0, i / size, i % size);
        const double difference = fabs(element_load(type, (const char *)actual + (size_t)i * element_size(type)) - e);
        largest = fmax(largest, fabs(e));
        if (!(difference <= worst)) worst = difference; /* a NaN too */
    }
    if (!(worst <= tolerance * largest)) test_fail("off by %g, the largest element is %g", worst, largest);
}

static void check(const call *c, const char *name, double tolerance) {
    const ptrdiff_t K = c->p.head_k_dim, V = c->p.head_v_dim;
    call *whole = call_clone_f64(c);
    run(whole, RUN_WHOLE);

    test_context("%s, float%d, one part after the other", name, dtype_of(c) == GDN_F64 ? 64 : 32);
    set_initial_state(c, state[0]);
    for (int i = 0; i < PARTS; i++) {
        set_identity(c, transition[i]);
        memset(from_zero[i], 0, sizeof from_zero[i]);
        run_part(c, i, true, transition[i]);
        run_part(c, i, false, from_zero[i]);
        apply(c, V, transition[i], state[i % 2], from_zero[i], state[(i + 1) % 2]);
    }
    assert_final_state(c, state[PARTS % 2], whole, tolerance);

    test_context("%s, float%d, joined in pairs", name, dtype_of(c) == GDN_F64 ? 64 : 32);
    set_initial_state(c, state[0]);
    for (int i = 0; i < 2; i++) {
        const int a = 2 * i, b = a + 1;
        apply(c, K, transition[b], transition[a], NULL, joined_transition[i]);
        apply(c, V, transition[b], from_zero[a], from_zero[b], joined_from_zero[i]);
        apply(c, V, joined_transition[i], state[i], joined_from_zero[i], state[1 - i]);
    }
    assert_final_state(c, state[0], whole, tolerance);
    call_free(whole);
}

static void parts_make_the_whole(void **unused) {
    (void)unused;
    for (ptrdiff_t i = 0; i < COUNT(calls); i++) {
        call *c = call_new(&calls[i]), *c64 = call_clone_f64(c);
        call_reset(c);
        call_reset(c64);
        check(c, calls[i].name, 2e-6);
        check(c64, calls[i].name, 1e-13);
        call_free(c64);
        call_free(c);
    }
}

/* M has the same bits on every instruction set, and however the tokens are split. */
static void same_transition(void **unused) {
    (void)unused;
    for (ptrdiff_t i = 0; i < COUNT(calls); i++) {
        call *c = call_new(&calls[i]);
        call_reset(c);
        for (gdn_isa isa = GDN_ISA_PLAIN; isa < GDN_NUM_ISAS; isa = (gdn_isa)(isa + 1)) {
            if (!gdn_isa_supported(isa)) continue;
            test_context("%s, %s", calls[i].name, gdn_isa_name(isa));
            c->p.isa = GDN_ISA_AUTO;
            set_identity(c, transition[0]);
            for (int part = 0; part < PARTS; part++) run_part(c, part, true, transition[0]);

            gdn_params p = c->p;
            set_identity(c, transition[1]);
            p.isa = isa;
            p.homogeneous = true;
            p.head_v_dim = p.head_k_dim;
            p.v.data = p.o.data = NULL;
            p.initial_state_source.data = transition[1];
            run_params(&p);
            if (memcmp(transition[0], transition[1], sizeof transition[0]) != 0) test_fail("other bits");
        }
        call_free(c);
    }
}

static void assert_answer(gdn_status returned, const gdn_error *error, gdn_status status, const char *argument) {
    assert_int_equal(returned, status);
    assert_int_equal(error->status, status);
    assert_string_equal(error->argument, argument);
    assert_true(error->index == -1 && error->other == -1);
}

static void refused(void **unused) {
    (void)unused;
    enum { N = 2, K = 2, V = 3 };
    static const float m[N * K * K] = {1}, s[N * K * V] = {1};
    float y[N * K * V + 1] = {0};
    const struct {
        ptrdiff_t count, k, v;
        gdn_state_layout layout;
        gdn_dtype dtype;
        const void *transition, *state;
        void *result;
        gdn_status status;
        const char *argument;
    } cases[] = {
        {N, K, V, GDN_STATE_KV, GDN_F32, m, s, y, GDN_OK, ""},
        {0, K, V, GDN_STATE_VK, GDN_F64, NULL, NULL, NULL, GDN_OK, ""},
        {-1, K, V, GDN_STATE_KV, GDN_F32, m, s, y, GDN_ERROR_SIZE, "count"},
        {N, 0, V, GDN_STATE_KV, GDN_F32, m, s, y, GDN_ERROR_SIZE, "head_k_dim"},
        {N, K, 0, GDN_STATE_KV, GDN_F32, m, s, y, GDN_ERROR_SIZE, "head_v_dim"},
        {N, K, V, GDN_STATE_LAYOUT_NOT_SET, GDN_F32, m, s, y, GDN_ERROR_ENUM, "layout"},
        {N, K, V, (gdn_state_layout)3, GDN_F32, m, s, y, GDN_ERROR_ENUM, "layout"},
        {N, K, V, GDN_STATE_KV, GDN_BF16, m, s, y, GDN_ERROR_ENUM, "dtype"},
        {N, K, V, GDN_STATE_KV, GDN_DTYPE_NOT_SET, m, s, y, GDN_ERROR_ENUM, "dtype"},
        {N, K, V, GDN_STATE_KV, GDN_F32, NULL, s, y, GDN_ERROR_NULL, "transition"},
        {N, K, V, GDN_STATE_KV, GDN_F32, m, NULL, y, GDN_ERROR_NULL, "state"},
        {N, K, V, GDN_STATE_KV, GDN_F32, m, s, NULL, GDN_ERROR_NULL, "result"},
        {PTRDIFF_MAX / 8, K, V, GDN_STATE_KV, GDN_F32, m, s, y, GDN_ERROR_OVERFLOW, "transition"},
        {1, PTRDIFF_MAX / 2, 1, GDN_STATE_KV, GDN_F32, m, s, y, GDN_ERROR_OVERFLOW, "transition"},
        {1, 1, PTRDIFF_MAX / 2, GDN_STATE_KV, GDN_F32, m, s, y, GDN_ERROR_OVERFLOW, "state"},
        {N, K, V, GDN_STATE_KV, GDN_F32, m, y, y, GDN_ERROR_OVERLAP, "result"},
        {N, K, V, GDN_STATE_KV, GDN_F32, m, y + 1, y, GDN_ERROR_OVERLAP, "result"},
        {N, K, V, GDN_STATE_KV, GDN_F32, y, s, y, GDN_ERROR_OVERLAP, "result"},
    };
    for (ptrdiff_t i = 0; i < COUNT(cases); i++) {
        gdn_error error = {GDN_NUM_STATUSES, NULL, -2, -2};
        memset(y, 0, sizeof y);
        const gdn_status status =
            gdn_segment_apply(cases[i].count, cases[i].k, cases[i].v, cases[i].layout, cases[i].dtype,
                              cases[i].transition, cases[i].state, cases[i].result, &error);
        assert_answer(status, &error, cases[i].status, cases[i].argument);
        for (ptrdiff_t j = 0; status != GDN_OK && j < COUNT(y); j++) assert_true(y[j] == 0);
        assert_int_equal(gdn_segment_apply(cases[i].count, cases[i].k, cases[i].v, cases[i].layout, cases[i].dtype,
                                           cases[i].transition, cases[i].state, cases[i].result, NULL),
                         status);
    }
}

static void homogeneous_excludes(void **unused) {
    (void)unused;
    call *c = call_new(&calls[1]);
    gdn_error error;
    gdn_params p = c->p;
    p.homogeneous = true;
    assert_answer(gdn_validate(&p, &error), &error, GDN_ERROR_COMBINATION, "homogeneous");
    p.v.data = NULL;
    assert_answer(gdn_validate(&p, &error), &error, GDN_ERROR_COMBINATION, "homogeneous");
    p.o.data = NULL;
    assert_answer(gdn_validate(&p, &error), &error, GDN_OK, "");
    p.beta_per_column = true;
    assert_answer(gdn_validate(&p, &error), &error, GDN_ERROR_COMBINATION, "homogeneous");
    p.homogeneous = p.beta_per_column = false;
    assert_answer(gdn_validate(&p, &error), &error, GDN_ERROR_NULL, "v");
    call_free(c);
}

int main(void) {
    test_banner("test_segments");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parts_make_the_whole),
        cmocka_unit_test(same_transition),
        cmocka_unit_test(refused),
        cmocka_unit_test(homogeneous_excludes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
