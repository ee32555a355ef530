/* Do the shapes that the operator was first tested with give what they must: each sequence of a varlen call exactly
 * what it gives alone, and float32 what float64 gives? */
#include "compare.h"
#include "configs.h"
#include "run.h"
#include "test.h"

/* The call against the oracle, and each of its sequences against that sequence alone in fixed-length mode. */
static void check(const call_config *config) {
    call *c = call_new(config), *oracle = call_clone_f64(c);
    run(c, RUN_WHOLE);
    run(oracle, RUN_WHOLE);
    test_context("%s, float32 against float64", config->name);
    assert_close(c, oracle, USUAL_TOLERANCE);
    for (ptrdiff_t n = 0; n < call_num_seqs(c); n++) {
        test_context("%s, sequence %td alone", config->name, n);
        call *alone = call_take(c, &n, 1, false);
        run(alone, RUN_WHOLE);
        assert_same_sequence(c, n, alone, 0);
        call_free(alone);
    }
    call_free(oracle);
    call_free(c);
}

static void varlen_5_7_6(void **state) {
    (void)state;
    check(&(call_config){.name = "varlen_5_7_6", .p = {HEADS(2, 2, 8, 8)}, .lens = LIST(5, 7, 6)});
}

static void varlen_state_4_6_5(void **state) {
    (void)state;
    check(&(call_config){.name = "varlen_state_4_6_5",
                         .p = {HEADS(2, 2, 8, 8), POOL(KV, 5, GDN_F32)},
                         .lens = LIST(4, 6, 5),
                         .initial_state_indices = LIST(0, 2, 1)});
}

static void basic(void **state) {
    (void)state;
    check(&(call_config){.name = "basic", .p = {FIXED(2, 4), HEADS(2, 2, 8, 8)}});
}

static void initial_state(void **state) {
    (void)state;
    check(&(call_config){.name = "initial_state",
                         .p = {FIXED(2, 4), HEADS(2, 2, 8, 8), POOL(KV, 3, GDN_F32)},
                         .initial_state_indices = LIST(0, 1)});
}

static void l2norm(void **state) {
    (void)state;
    check(&(call_config){.name = "l2norm", .p = {FIXED(2, 4), HEADS(2, 2, 8, 8), .use_qk_l2norm_in_kernel = true}});
}

static void scale_half(void **state) {
    (void)state;
    check(&(call_config){.name = "scale_half", .p = {FIXED(2, 4), HEADS(2, 2, 8, 8), .scale = 0.5}});
}

static void larger(void **state) {
    (void)state;
    check(&(call_config){.name = "larger", .p = {FIXED(4, 8), HEADS(4, 4, 16, 16)}});
}

int main(void) {
    test_banner("test_seed");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(varlen_5_7_6), cmocka_unit_test(varlen_state_4_6_5),
        cmocka_unit_test(basic),        cmocka_unit_test(initial_state),
        cmocka_unit_test(l2norm),       cmocka_unit_test(scale_half),
        cmocka_unit_test(larger),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
