/* Presets: each is a call that validates, sets its fields and nothing else, and has a name. */
#include <math.h>
#include <string.h>

#include "case_io.h"
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
        static const int32_t one = 1;
        float x[4] = {0};
        gdn_params p = set((gdn_system)i);
        p.batch_size = p.seq_len = p.num_key_heads = p.num_value_heads = p.head_k_dim = p.head_v_dim = 1;
        p.A_log = p.dt_bias = p.a = p.b = p.q = p.k = p.v = gdn_f32(&x[0]);
        p.o = gdn_out_f32(&x[1]);
        p.initial_state_source = gdn_pool_of(&x[2], GDN_F32, 2);
        p.initial_state_indices = gdn_i32(&one); /* slot 0 may be the null slot */
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
    assert_int_equal(p.l2norm_form, GDN_L2NORM_SUM_PLUS_EPS);

    p = set(GDN_SYSTEM_VLLM);
    assert_int_equal(p.padding, GDN_PADDING_LEAVE);
    assert_true(p.has_null_slot && p.null_slot == 0);

    p = set(GDN_SYSTEM_SGLANG_CPU);
    assert_true(p.l2norm_eps > 0.99e-5 && p.l2norm_eps < 1.01e-5);
    assert_string_equal(gdn_system_name(GDN_SYSTEM_SGLANG_CPU), "sglang_cpu");
}

/* What a system computed, and its preset: the options of the case are those of the preset. `given`: the case has the
 * gates as the system takes them; `padded`: it has a sequence that is padding. */
static void as_recorded(void **unused) {
    (void)unused;
    static const struct {
        const char *name;
        gdn_system system;
        bool given, padded;
    } cases[] = {
        {"sglang_padding_computes", GDN_SYSTEM_SGLANG, true, true},
        {"sglang_round_state", GDN_SYSTEM_SGLANG, true, false},
        {"sglang_kda_packed_decode", GDN_SYSTEM_SGLANG_PACKED_DECODE, true, true},
        {"sglang_packed_decode_round_beta", GDN_SYSTEM_SGLANG_PACKED_DECODE, true, true},
        {"vllm_decode", GDN_SYSTEM_VLLM, true, true},
        {"vllm_packed_decode", GDN_SYSTEM_VLLM_PACKED_DECODE, true, true},
        {"vllm_recurrent_left", GDN_SYSTEM_VLLM_RECURRENT, true, true},
        {"seed_initial_state", GDN_SYSTEM_SGLANG_KV, true, false},
        {"sglang_cpu_chunk", GDN_SYSTEM_SGLANG_CPU_CHUNK, true, false},
        {"vllm_cpu_decode", GDN_SYSTEM_SGLANG_CPU, true, false}, /* the same source */
        {"vllm_cpu_decode", GDN_SYSTEM_VLLM_CPU, true, false},
        {"vllm_cpu_chunk_round_q", GDN_SYSTEM_VLLM_CPU_CHUNK, true, false},
        {"fla_log_gate", GDN_SYSTEM_FLA, true, false},
        {"fla_gdn2", GDN_SYSTEM_FLA, true, false},
        {"fla_comba", GDN_SYSTEM_FLA, true, false},
        {"fla_gv_head_decay", GDN_SYSTEM_FLA, true, false},
        {"fla_chunk_states", GDN_SYSTEM_FLA, true, false},
        {"flashinfer_decode_no_norm", GDN_SYSTEM_FLASHINFER_DECODE, true, false},
        {"flashinfer_mtp_final_and_steps", GDN_SYSTEM_FLASHINFER_MTP, true, true},
        {"flashinfer_prefill_round_qk", GDN_SYSTEM_FLASHINFER_PREFILL, true, false},
        {"flashinfer_paged_prefill", GDN_SYSTEM_FLASHINFER_PREFILL, false, false},
        {"llama_cpp_qwen35", GDN_SYSTEM_GGML, true, false},
        {"llama_cpp_qwen3next", GDN_SYSTEM_LLAMA_QWEN3NEXT, true, false},
        {"mlx_lm_small_norm", GDN_SYSTEM_MLX_LM, false, false},
        {"mlx_lm_mask", GDN_SYSTEM_MLX_LM, false, false},
        {"transformers_qwen3next", GDN_SYSTEM_TRANSFORMERS, true, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char folder[CASE_MAX_PATH];
        case_message message;
        case_call c;
        gdn_params p = set(cases[i].system);
        test_context("%s", cases[i].name);
        if (!case_path(folder, GDN_GOLDEN_DIR, cases[i].name, "", &message) || !case_load(&c, folder, &message))
            test_fail("%s", message.text);
        case_reset(&c, GDN_COMPUTE_F32);
        assert_int_equal(p.state_layout, c.params.state_layout);
        assert_int_equal(p.head_map, c.params.head_map);
        if (c.params.use_qk_l2norm_in_kernel) {
            const double eps = c.params.l2norm_eps > 0 ? c.params.l2norm_eps : 1e-6;
            assert_int_equal(p.l2norm_form, c.params.l2norm_form);
            assert_true(fabs(p.l2norm_eps - eps) <= 1e-9 * eps);
        }
        if (cases[i].given) assert_int_equal(p.gate_input, c.params.gate_input);
        if (cases[i].given && c.params.b.data != NULL) assert_int_equal(p.beta_input, c.params.beta_input);
        if (cases[i].padded) {
            assert_int_equal(p.padding, c.params.padding);
            assert_int_equal(p.has_null_slot, c.params.has_null_slot);
            assert_int_equal(p.null_slot, c.params.null_slot);
        }
        case_free(&c);
    }
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
        cmocka_unit_test(as_recorded),
        cmocka_unit_test(refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
