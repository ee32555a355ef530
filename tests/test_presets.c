/* Presets: each is a call that validates, sets its fields and nothing else, and has a name. */
#include <string.h>

#include "gdn_varlen.h"
#include "test.h"

static gdn_params set(gdn_system system) {
    gdn_params p = {0};
    p.use_qk_l2norm_in_kernel = true;
    p.scale = 0.5;
    p.has_null_slot = true;
    p.null_slot = 7;
    assert_int_equal(gdn_preset(&p, system), GDN_OK);
    assert_true(p.use_qk_l2norm_in_kernel);
    assert_true(p.scale > 0.5 - 1e-15 && p.scale < 0.5 + 1e-15);
    return p;
}

static void every_system(void **unused) {
    (void)unused;
    for (int i = GDN_SYSTEM_NOT_SET + 1; i < GDN_NUM_SYSTEMS; i++) {
        float x[4] = {0};
        gdn_params p = set((gdn_system)i);
        p.batch_size = p.seq_len = p.num_key_heads = p.num_value_heads = p.head_k_dim = p.head_v_dim = 1;
        p.A_log = p.dt_bias = p.a = p.b = p.q = p.k = p.v = gdn_f32(&x[0]);
        p.o = gdn_out_f32(&x[1]);
        p.initial_state_source = gdn_pool_of(&x[2], GDN_F32, 1);
        assert_int_equal(gdn_validate(&p, NULL), GDN_OK);
        assert_string_not_equal(gdn_system_name((gdn_system)i), "?");
        for (int j = GDN_SYSTEM_NOT_SET + 1; j < i; j++)
            assert_string_not_equal(gdn_system_name((gdn_system)i), gdn_system_name((gdn_system)j));
    }
}

static void some_in_full(void **unused) {
    (void)unused;
    gdn_params p = set(GDN_SYSTEM_SGLANG_KV);
    assert_int_equal(p.state_layout, GDN_STATE_KV);
    assert_int_equal(p.gate_input, GDN_GATE_RAW);
    assert_int_equal(p.beta_input, GDN_BETA_RAW);
    assert_int_equal(p.padding, GDN_PADDING_COMPUTE);
    assert_true(!p.has_null_slot && p.null_slot == 0);

    p = set(GDN_SYSTEM_GGML);
    assert_int_equal(p.state_layout, GDN_STATE_VK);
    assert_int_equal(p.head_map, GDN_HEADS_TILED);
    assert_int_equal(p.gate_input, GDN_GATE_LOG);
    assert_int_equal(p.beta_input, GDN_BETA_GIVEN);
    assert_int_equal(p.l2norm_form, GDN_L2NORM_MAX_NORM_EPS);

    p = set(GDN_SYSTEM_VLLM);
    assert_int_equal(p.padding, GDN_PADDING_LEAVE);
    assert_true(p.has_null_slot && p.null_slot == 0);

    p = set(GDN_SYSTEM_SGLANG_CPU);
    assert_true(p.l2norm_eps > 0.99e-5 && p.l2norm_eps < 1.01e-5);
    assert_string_equal(gdn_system_name(GDN_SYSTEM_SGLANG_CPU), "sglang_cpu");
}

static void refused(void **unused) {
    (void)unused;
    const int outside[] = {-1, GDN_SYSTEM_NOT_SET, GDN_NUM_SYSTEMS};
    for (size_t i = 0; i < sizeof outside / sizeof outside[0]; i++) {
        gdn_params p, before;
        memset(&p, 1, sizeof p);
        memcpy(&before, &p, sizeof p);
        assert_int_equal(gdn_preset(&p, (gdn_system)outside[i]), GDN_ERROR_ENUM);
        assert_memory_equal(&p, &before, sizeof p);
        assert_string_equal(gdn_system_name((gdn_system)outside[i]), "?");
    }
    assert_int_equal(gdn_preset(NULL, GDN_SYSTEM_SGLANG), GDN_ERROR_NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_system),
        cmocka_unit_test(some_in_full),
        cmocka_unit_test(refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
