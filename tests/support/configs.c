#include "configs.h"

#include <math.h>

#include "rng.h"
#include "test.h"

const call_config configs[] = {
    /* Shapes, layouts, lengths. */
    {.name = "kv",
     .p = {HEADS(2, 4, 16, 32), POOL(KV, 6, GDN_F32)},
     .lens = LIST(5, 0, 17, 1),
     .initial_state_indices = LIST(4, 0, 2, 5)},
    {.name = "vk",
     .p = {HEADS(2, 4, 24, 40), POOL(VK, 6, GDN_F32)},
     .lens = LIST(0, 5, 17, 1, 0),
     .initial_state_indices = LIST(0, 4, 2, 5, 1)},
    {.name = "kda kv",
     .p = {HEADS(2, 4, 24, 40), POOL(KV, 6, GDN_F32), .is_kda = true},
     .lens = LIST(5, 17, 1),
     .initial_state_indices = LIST(4, 2, 5)},
    {.name = "kda vk",
     .p = {HEADS(2, 4, 16, 32), POOL(VK, 6, GDN_F32), .is_kda = true},
     .lens = LIST(5, 17, 1, 0),
     .initial_state_indices = LIST(4, 2, 5, 0)},
    {.name = "no pool", .p = {FIXED(3, 9), HEADS(2, 2, 32, 48)}},
    {.name = "no pool, kda", .p = {HEADS(1, 3, 20, 20), .is_kda = true}, .lens = LIST(2, 9)},
    {.name = "fixed length, slot n", .p = {FIXED(3, 7), HEADS(3, 6, 17, 15), POOL(KV, 4, GDN_F32)}},
    {.name = "fixed length vk, slot n", .p = {FIXED(2, 7), HEADS(1, 2, 33, 65), POOL(VK, 2, GDN_F32)}},
    {.name = "no tokens", .p = {FIXED(2, 0), HEADS(1, 2, 8, 8), POOL(VK, 2, GDN_F32)}},
    {.name = "one by one", .p = {FIXED(2, 3), HEADS(8, 16, 1, 1), POOL(KV, 2, GDN_F32)}},
    {.name = "one by one, vk", .p = {FIXED(2, 3), HEADS(8, 16, 1, 1), POOL(VK, 2, GDN_F32), .is_kda = true}},
    {.name = "long kv", .p = {HEADS(1, 2, 16, 40), POOL(KV, 3, GDN_F32)}, .lens = LIST(273, 64, 1)},
    {.name = "long kda vk", .p = {HEADS(1, 1, 33, 24), POOL(VK, 3, GDN_F32), .is_kda = true}, .lens = LIST(1, 273, 65)},
    {.name = "decode kv, bfloat16, 4 columns", .p = {FIXED(2, 1), HEADS(1, 2, 20, 4), POOL(KV, 2, GDN_BF16)}},
    {.name = "decode kv, bfloat16, 8 columns", .p = {FIXED(2, 1), HEADS(1, 2, 20, 8), POOL(KV, 2, GDN_BF16)}},
    {.name = "decode kv, bfloat16, 16 columns", .p = {FIXED(2, 1), HEADS(1, 2, 20, 16), POOL(KV, 2, GDN_BF16)}},
    {.name = "decode kv, bfloat16, 24 columns", .p = {FIXED(2, 1), HEADS(1, 2, 20, 24), POOL(KV, 2, GDN_BF16)}},
    {.name = "tall kv", /* sums of 900 products */
     .p = {FIXED(1, 3), HEADS(1, 1, 900, 70), POOL(KV, 1, GDN_F32), .use_qk_l2norm_in_kernel = true},
     .tolerance = 1.5e-6},
    {.name = "tall vk",
     .p = {FIXED(1, 3), HEADS(1, 1, 900, 70), POOL(VK, 1, GDN_F32), .use_qk_l2norm_in_kernel = true},
     .tolerance = 1.5e-6},
    {.name = "two columns beyond a slice", .p = {FIXED(1, 20), HEADS(1, 1, 16, 34), POOL(KV, 1, GDN_F32)}},
    {.name = "many heads", .p = {FIXED(2, 5), HEADS(16, 48, 8, 8), POOL(VK, 2, GDN_F32)}},
    {.name = "decode",
     .p = {FIXED(5, 1), HEADS(2, 4, 64, 64), POOL(VK, 9, GDN_F32)},
     .initial_state_indices = LIST(8, 1, 3, 0, 6)},
    {.name = "decode kv",
     .p = {FIXED(3, 1), HEADS(2, 4, 21, 64), POOL(KV, 5, GDN_F32), .disable_state_update = true},
     .initial_state_indices = LIST(4, 1, 1)},
    {.name = "decode kda kv, bfloat16",
     .p = {FIXED(3, 1), HEADS(2, 4, 33, 32), DTYPES(GDN_BF16), POOL(KV, 5, GDN_BF16), .is_kda = true},
     .initial_state_indices = LIST(4, -1, 1)},
    {.name = "decode vk, float16, slots to write",
     .p = {FIXED(3, 1), HEADS(2, 4, 48, 41), POOL(VK, 6, GDN_F16), .beta_per_column = true},
     .initial_state_indices = LIST(4, 4, 1),
     .output_state_indices = LIST(0, 3, -1)},
    {.name = "decode kda vk, slots for steps",
     .p = {HEADS(2, 4, 32, 7), POOL(VK, 8, GDN_F32), .is_kda = true, .use_qk_l2norm_in_kernel = true},
     .lens = LIST(1, 1, 2),
     .ssm_state_indices = LIST(7, 6, -1, 5, 0, 1),
     .num_accepted_tokens = LIST(2, 2, 1)},
    {.name = "decode kv, tiled heads, slot n",
     .p = {FIXED(2, 1), HEADS(2, 6, 16, 16), POOL(KV, 2, GDN_F32), .head_map = GDN_HEADS_TILED}},
    {.name = "rows behind the last sequence",
     .p = {HEADS(1, 2, 8, 8), POOL(KV, 2, GDN_F32)},
     .lens = LIST(3, 4),
     .tail = 5},
    {.name = "int64 indices",
     .p = {HEADS(1, 2, 8, 8), POOL(KV, 5, GDN_F32)},
     .lens = LIST(3, 4, 1),
     .initial_state_indices = LIST(4, 0, 2),
     .index_dtype = GDN_I64},

    /* q and k. */
    {.name = "l2 sum plus eps",
     .p = {FIXED(2, 5), HEADS(2, 4, 24, 16), POOL(VK, 2, GDN_F32), .use_qk_l2norm_in_kernel = true, .l2norm_eps = 0.5}},
    {.name = "l2 mean plus eps",
     .p = {FIXED(2, 5), HEADS(2, 4, 24, 16), POOL(KV, 2, GDN_F32), .use_qk_l2norm_in_kernel = true, .l2norm_eps = 0.5,
           .l2norm_form = GDN_L2NORM_MEAN_PLUS_EPS}},
    {.name = "l2 max norm eps",
     .p = {FIXED(2, 5), HEADS(2, 4, 24, 16), POOL(VK, 2, GDN_F32), .use_qk_l2norm_in_kernel = true, .l2norm_eps = 5,
           .l2norm_form = GDN_L2NORM_MAX_NORM_EPS}},
    {.name = "l2 norm plus eps",
     .p = {FIXED(2, 5), HEADS(2, 4, 24, 16), POOL(KV, 2, GDN_F32), .is_kda = true, .use_qk_l2norm_in_kernel = true,
           .l2norm_eps = 0.5, .l2norm_form = GDN_L2NORM_NORM_PLUS_EPS}},
    {.name = "l2, eps left at its default", .p = {FIXED(2, 5), HEADS(2, 4, 128, 32), .use_qk_l2norm_in_kernel = true}},
    {.name = "scale", .p = {FIXED(2, 5), HEADS(2, 4, 24, 16), .scale = 0.3}},
    {.name = "scale and l2", .p = {FIXED(2, 5), HEADS(2, 4, 24, 16), .scale = 3, .use_qk_l2norm_in_kernel = true}},
    {.name = "tiled heads", .p = {FIXED(2, 5), HEADS(2, 6, 12, 20), POOL(VK, 2, GDN_F32), .head_map = GDN_HEADS_TILED}},
    {.name = "tiled heads, kda kv",
     .p = {FIXED(2, 5), HEADS(3, 6, 12, 40), POOL(KV, 2, GDN_F32), .is_kda = true, .head_map = GDN_HEADS_TILED}},

    /* Gates. */
    {.name = "softplus beta, threshold",
     .p = {FIXED(2, 9), HEADS(2, 4, 8, 8), .softplus_beta = 2, .softplus_threshold = 0.5}},
    {.name = "lower bound", .p = {FIXED(2, 9), HEADS(2, 4, 8, 8), .has_lower_bound = true, .lower_bound = -5}},
    {.name = "lower bound, kda",
     .p = {FIXED(2, 9), HEADS(2, 4, 8, 8), POOL(VK, 2, GDN_F32), .is_kda = true, .has_lower_bound = true,
           .lower_bound = -0.5}},
    {.name = "log gate", .p = {FIXED(2, 9), HEADS(2, 4, 8, 8), POOL(KV, 2, GDN_F32), .gate_input = GDN_GATE_LOG}},
    {.name = "log gate, kda",
     .p = {FIXED(2, 9), HEADS(2, 4, 24, 8), POOL(VK, 2, GDN_F32), .is_kda = true, .gate_input = GDN_GATE_LOG}},
    {.name = "decay", .p = {FIXED(2, 9), HEADS(2, 4, 8, 8), POOL(VK, 2, GDN_F32), .gate_input = GDN_GATE_DECAY}},
    {.name = "decay, kda",
     .p = {FIXED(2, 9), HEADS(2, 4, 24, 8), POOL(KV, 2, GDN_F32), .is_kda = true, .gate_input = GDN_GATE_DECAY}},
    {.name = "no gates", .p = {FIXED(2, 9), HEADS(2, 4, 8, 8), POOL(KV, 2, GDN_F32)}, .no_a = true},
    {.name = "no gates, kda",
     .p = {FIXED(2, 9), HEADS(2, 4, 24, 8), POOL(VK, 2, GDN_F32), .is_kda = true},
     .no_a = true},
    {.name = "no gates, kda, tall",
     .p = {FIXED(1, 3), HEADS(1, 1, 256, 64), POOL(KV, 1, GDN_F32), .is_kda = true},
     .no_a = true},
    {.name = "no gates, decode",
     .p = {FIXED(2, 1), HEADS(2, 4, 16, 32), POOL(KV, 2, GDN_F32), .is_kda = true, .gate_input = GDN_GATE_LOG},
     .no_a = true},
    {.name = "no dt_bias", .p = {FIXED(2, 9), HEADS(2, 4, 8, 8), POOL(KV, 2, GDN_F32)}, .no_dt_bias = true},
    {.name = "no dt_bias, kda",
     .p = {FIXED(2, 9), HEADS(2, 4, 24, 8), POOL(VK, 2, GDN_F32), .is_kda = true},
     .no_dt_bias = true},
    {.name = "lower bound, no A_log",
     .p = {FIXED(2, 9), HEADS(2, 4, 8, 8), POOL(VK, 2, GDN_F32), .has_lower_bound = true, .lower_bound = -2},
     .no_A_log = true},
    {.name = "lower bound, kda, no A_log, no dt_bias",
     .p = {FIXED(2, 9), HEADS(2, 4, 24, 8), POOL(KV, 2, GDN_F32), .is_kda = true, .has_lower_bound = true,
           .lower_bound = -2},
     .no_A_log = true,
     .no_dt_bias = true},

    /* Beta. */
    {.name = "beta given", .p = {FIXED(2, 9), HEADS(2, 4, 8, 8), .beta_input = GDN_BETA_GIVEN}},
    {.name = "no b", .p = {FIXED(2, 9), HEADS(2, 4, 8, 8), POOL(VK, 2, GDN_F32)}, .no_b = true},
    {.name = "no b, negative eigenvalues",
     .p = {FIXED(2, 9), HEADS(2, 4, 32, 8), .allow_neg_eigval = true, .use_qk_l2norm_in_kernel = true},
     .no_b = true},
    {.name = "beta per column", .p = {FIXED(2, 9), HEADS(2, 4, 8, 40), POOL(KV, 2, GDN_F32), .beta_per_column = true}},
    {.name = "beta per column, given, vk",
     .p = {FIXED(2, 9), HEADS(2, 4, 8, 33), POOL(VK, 2, GDN_F32), .beta_per_column = true,
           .beta_input = GDN_BETA_GIVEN}},
    {.name = "negative eigenvalues",
     .p = {FIXED(2, 9), HEADS(2, 4, 32, 8), POOL(VK, 2, GDN_F32), .allow_neg_eigval = true,
           .use_qk_l2norm_in_kernel = true}},
    {.name = "negative eigenvalues, given, per column",
     .p = {FIXED(2, 9), HEADS(2, 4, 32, 9), .beta_per_column = true, .beta_input = GDN_BETA_GIVEN,
           .allow_neg_eigval = true, .use_qk_l2norm_in_kernel = true}},

    /* Dtypes. */
    {.name = "bfloat16",
     .p = {HEADS(2, 4, 64, 32), DTYPES(GDN_BF16), POOL(VK, 3, GDN_BF16), .use_qk_l2norm_in_kernel = true},
     .lens = LIST(3, 21)},
    {.name = "float16", .p = {HEADS(2, 4, 20, 36), DTYPES(GDN_F16), POOL(KV, 3, GDN_F16)}, .lens = LIST(3, 21)},
    {.name = "bfloat16 kda",
     .p = {HEADS(2, 4, 20, 36), DTYPES(GDN_BF16), POOL(KV, 3, GDN_BF16), .is_kda = true},
     .lens = LIST(3, 21)},
    {.name = "float16 kda",
     .p = {HEADS(2, 4, 33, 35), DTYPES(GDN_F16), POOL(VK, 3, GDN_F16), .is_kda = true, .beta_per_column = true},
     .lens = LIST(3, 21)},
    {.name = "a dtype for each tensor",
     .p = {HEADS(2, 4, 19, 37), POOL(VK, 3, GDN_BF16), .q.dtype = GDN_BF16, .k.dtype = GDN_F16, .a.dtype = GDN_BF16,
           .b.dtype = GDN_F16, .dt_bias.dtype = GDN_BF16, .A_log.dtype = GDN_F16, .o.dtype = GDN_F16},
     .lens = LIST(3, 12)},
    {.name = "bfloat16 projections, float32 gates",
     .p = {HEADS(2, 4, 19, 37), POOL(KV, 3, GDN_F16), DTYPES(GDN_BF16)},
     .lens = LIST(3, 12)},
    {.name = "float32 in, bfloat16 out",
     .p = {FIXED(2, 7), HEADS(1, 2, 16, 33), POOL(KV, 2, GDN_F32), .o.dtype = GDN_BF16, .v.dtype = GDN_F16}},

    /* The pool. */
    {.name = "padding, computed",
     .p = {HEADS(2, 4, 8, 40), POOL(VK, 4, GDN_F32)},
     .lens = LIST(3, 4, 5),
     .initial_state_indices = LIST(-1, 2, -7)},
    {.name = "padding, zero",
     .p = {HEADS(2, 4, 8, 40), POOL(KV, 4, GDN_F32), .padding = GDN_PADDING_ZERO},
     .lens = LIST(3, 4, 0, 5),
     .initial_state_indices = LIST(-1, 2, -1, -7)},
    {.name = "padding, zero, bfloat16",
     .p = {FIXED(3, 4), HEADS(2, 4, 8, 40), POOL(VK, 4, GDN_BF16), DTYPES(GDN_BF16), .padding = GDN_PADDING_ZERO},
     .initial_state_indices = LIST(-1, 2, 1)},
    {.name = "padding, left",
     .p = {HEADS(2, 4, 8, 40), POOL(KV, 4, GDN_F32), .padding = GDN_PADDING_LEAVE},
     .lens = LIST(3, 4, 5),
     .initial_state_indices = LIST(-1, 2, -7)},
    {.name = "null slot",
     .p = {HEADS(2, 2, 8, 16), POOL(KV, 4, GDN_F32), .has_null_slot = true},
     .lens = LIST(3, 4, 5, 2),
     .initial_state_indices = LIST(0, 2, 0, 1)},
    {.name = "null slot 3, zero",
     .p = {FIXED(4, 2), HEADS(2, 2, 8, 16), POOL(KV, 4, GDN_F32), .has_null_slot = true, .null_slot = 3,
           .padding = GDN_PADDING_ZERO},
     .initial_state_indices = LIST(0, 3, -1, 1)},
    {.name = "null slot, left, slot n",
     .p = {FIXED(3, 2), HEADS(2, 2, 8, 16), POOL(VK, 4, GDN_F32), .has_null_slot = true, .null_slot = 3,
           .padding = GDN_PADDING_LEAVE}},
    {.name = "read-only pool",
     .p = {HEADS(2, 4, 16, 8), POOL(VK, 4, GDN_F32), .disable_state_update = true},
     .lens = LIST(3, 4, 5),
     .initial_state_indices = LIST(2, 2, 0)},
    {.name = "slots to write",
     .p = {HEADS(2, 4, 16, 8), POOL(KV, 9, GDN_F32), .has_null_slot = true, .null_slot = 8},
     .lens = LIST(3, 4, 5, 0, 2, 1, 2),
     .initial_state_indices = LIST(2, 2, 0, 5, -1, 6, 7),
     .output_state_indices = LIST(1, 3, 0, 4, 5, -1, 8)},
    {.name = "slots to write, bfloat16",
     .p = {FIXED(2, 4), HEADS(1, 2, 16, 24), POOL(VK, 4, GDN_BF16)},
     .output_state_indices = LIST(3, 2)},

    /* States of every step. */
    {.name = "cache", .p = {FIXED(2, 4), HEADS(2, 4, 16, 40), POOL(KV, 2, GDN_F32), CACHE(3, 6, GDN_F32)}},
    {.name = "cache, rows, read-only pool",
     .p = {HEADS(2, 4, 16, 8), POOL(VK, 5, GDN_F32), CACHE(3, 4, GDN_F32), .disable_state_update = true},
     .lens = LIST(3, 4, 0, 2, 4),
     .initial_state_indices = LIST(2, -1, 1, 4, 0),
     .intermediate_state_indices = LIST(2, 0, 1, -1, 1)},
    {.name = "cache, padding left",
     .p = {HEADS(2, 4, 16, 8), POOL(VK, 5, GDN_F32), CACHE(3, 4, GDN_F32), .padding = GDN_PADDING_LEAVE},
     .lens = LIST(3, 4, 2),
     .initial_state_indices = LIST(2, -1, 1),
     .intermediate_state_indices = LIST(2, 0, 1)},
    {.name = "cache without pool",
     .p = {FIXED(2, 4), HEADS(2, 2, 9, 33), CACHE(2, 4, GDN_F16), .state_layout = GDN_STATE_VK, .is_kda = true}},
    {.name = "bfloat16 cache, float32 pool",
     .p = {FIXED(2, 4), HEADS(2, 2, 16, 33), POOL(KV, 2, GDN_F32), CACHE(2, 4, GDN_BF16)}},
    {.name = "tree",
     .p = {FIXED(2, 6), HEADS(2, 4, 16, 40), POOL(KV, 2, GDN_F32), CACHE(2, 6, GDN_F32)},
     .retrieve_parent_token = LIST(-9, 0, 0, 1, 1, 2, 77, 0, 1, 2, 0, 4)},
    {.name = "tree, kda vk",
     .p = {HEADS(2, 4, 16, 8), POOL(VK, 4, GDN_F32), CACHE(3, 6, GDN_F32), .is_kda = true,
           .disable_state_update = true},
     .lens = LIST(6, 3, 4),
     .initial_state_indices = LIST(1, 3, -1),
     .intermediate_state_indices = LIST(2, -1, 0),
     .retrieve_parent_token = LIST(0, 0, 0, 1, 1, 2, 0, -5, 9, 0, 0, 0, 0, 0, 0, 2, 0, 0)},
    {.name = "tree of several blocks, kda kv",
     .p = {FIXED(1, 20), HEADS(1, 1, 300, 8), CACHE(1, 20, GDN_F32), .state_layout = GDN_STATE_KV, .is_kda = true},
     .retrieve_parent_token = LIST(0, 0, 1, 0, 3, 3, 2, 6, 7, 8, 1, 10, 4, 5, 13, 9, 15, 0, 16, 18)},
    {.name = "tree, bfloat16 cache",
     .p = {FIXED(1, 6), HEADS(2, 4, 16, 8), POOL(VK, 1, GDN_F32), CACHE(1, 6, GDN_BF16)},
     .retrieve_parent_token = LIST(0, 0, 0, 2, 1, 3),
     .tolerance = 0x1p-7},
    {.name = "slots for steps",
     .p = {HEADS(2, 4, 16, 40), POOL(VK, 14, GDN_F32), .is_kda = true},
     .lens = LIST(4, 4, 3),
     .ssm_state_indices = LIST(9, 8, 7, 12, 2, 4, 3, 11, 10, 13, 5, 6),
     .num_accepted_tokens = LIST(1, 3, 4)},
    {.name = "slots for steps, none accepted",
     .p = {FIXED(2, 3), HEADS(2, 2, 16, 8), POOL(KV, 9, GDN_BF16)},
     .ssm_state_indices = LIST(8, 7, -1, 5, 2, 4),
     .index_dtype = GDN_I64},
    {.name = "slots for steps, null slot, cache",
     .p = {HEADS(2, 2, 16, 8), POOL(KV, 9, GDN_F16), CACHE(4, 3, GDN_F32), .has_null_slot = true,
           .padding = GDN_PADDING_ZERO},
     .lens = LIST(3, 2, 3, 0),
     .ssm_state_indices = LIST(8, 0, 3, 0, 7, 5, 4, 2, -3, 1, 1, 1),
     .num_accepted_tokens = LIST(1, 1, 2, 1)},
    {.name = "slots for steps and for final states",
     .p = {HEADS(2, 4, 16, 40), POOL(KV, 12, GDN_F32)},
     .lens = LIST(3, 2, 1),
     .initial_state_indices = LIST(0, 1, 2),
     .output_state_indices = LIST(0, 11, 2),
     .ssm_state_indices = LIST(3, 4, 5, 6, 11, -1, 8, -1, -1)},
    {.name = "slots for steps and for final states, cache, vk",
     .p = {HEADS(2, 4, 32, 9), POOL(VK, 12, GDN_BF16), CACHE(3, 3, GDN_F32), .is_kda = true},
     .lens = LIST(3, 2, 1),
     .initial_state_indices = LIST(0, 1, 2),
     .output_state_indices = LIST(-1, 7, 10),
     .ssm_state_indices = LIST(3, 4, 5, -1, 7, -1, 8, -1, -1)},
    {.name = "slots for steps and for final states, decode",
     .p = {FIXED(2, 1), HEADS(2, 4, 16, 32), POOL(KV, 6, GDN_F32)},
     .output_state_indices = LIST(3, -1),
     .initial_state_indices = LIST(0, 1),
     .ssm_state_indices = LIST(4, 5)},
    {.name = "states every five tokens",
     .p = {HEADS(2, 4, 16, 40), POOL(KV, 12, GDN_F32), CACHE(4, 3, GDN_F32), .step_interval = 5},
     .lens = LIST(15, 4, 0, 12),
     .initial_state_indices = LIST(0, 1, 2, 3),
     .output_state_indices = LIST(0, 5, 2, 6),
     .ssm_state_indices = LIST(7, -1, 8, -1, -1, -1, -1, -1, -1, 9, 10, -1)},
    {.name = "states every sixteen tokens",
     .p = {HEADS(2, 4, 16, 40), POOL(VK, 12, GDN_F32), .step_interval = 16},
     .lens = LIST(48, 15, 40, 16),
     .initial_state_indices = LIST(0, 1, 2, 3),
     .output_state_indices = LIST(0, 1, -1, 3),
     .ssm_state_indices = LIST(4, 5, 6, -1, -1, -1, 7, 8, -1, 9, -1, -1)},
    {.name = "states every 32 tokens, cache",
     .p = {FIXED(2, 70), HEADS(1, 2, 24, 33), CACHE(2, 2, GDN_F32), .state_layout = GDN_STATE_KV, .is_kda = true,
           .step_interval = 32}},

    /* What few systems have. */
    {.name = "key to read",
     .p = {FIXED(2, 19), HEADS(2, 4, 24, 40), POOL(KV, 2, GDN_F32), .k_read.dtype = GDN_F32,
           .use_qk_l2norm_in_kernel = true}},
    {.name = "key to read, kda vk",
     .p = {HEADS(2, 4, 24, 40), POOL(VK, 3, GDN_F32), .k_read.dtype = GDN_F32, .is_kda = true},
     .lens = LIST(20, 1, 4)},
    {.name = "key to read, decode",
     .p = {FIXED(3, 1), HEADS(2, 4, 32, 64), POOL(KV, 3, GDN_F32), .k_read.dtype = GDN_BF16,
           .use_qk_l2norm_in_kernel = true}},
    {.name = "key to read, decode vk, tiled",
     .p = {FIXED(3, 1), HEADS(2, 4, 32, 20), POOL(VK, 3, GDN_F32), .k_read.dtype = GDN_F32, .is_kda = true,
           .head_map = GDN_HEADS_TILED}},
    {.name = "erase",
     .p = {FIXED(2, 19), HEADS(2, 4, 24, 40), POOL(KV, 2, GDN_F32), .erase.dtype = GDN_F32,
           .use_qk_l2norm_in_kernel = true}},
    {.name = "erase, kda vk, key to read",
     .p = {HEADS(2, 4, 24, 40), POOL(VK, 3, GDN_F32), .erase.dtype = GDN_BF16, .k_read.dtype = GDN_F32, .is_kda = true},
     .lens = LIST(20, 1, 4)},
    {.name = "erase, decode",
     .p = {FIXED(3, 1), HEADS(2, 4, 32, 64), POOL(KV, 3, GDN_F32), .erase.dtype = GDN_F32,
           .use_qk_l2norm_in_kernel = true}},
    {.name = "read before the decay",
     .p = {FIXED(2, 19), HEADS(2, 4, 24, 40), POOL(VK, 2, GDN_F32), .k_read.dtype = GDN_F32, .read_before_decay = true,
           .use_qk_l2norm_in_kernel = true}},
    {.name = "read before the decay, kda",
     .p = {FIXED(2, 19), HEADS(2, 4, 24, 40), POOL(KV, 2, GDN_F32), .is_kda = true, .read_before_decay = true,
           .gate_input = GDN_GATE_LOG}},
    {.name = "read before the decay, decode",
     .p = {FIXED(2, 1), HEADS(2, 4, 16, 32), POOL(KV, 2, GDN_F32), .k_read.dtype = GDN_F32, .read_before_decay = true}},
    {.name = "decay per column",
     .p = {FIXED(2, 19), HEADS(2, 4, 24, 40), POOL(KV, 2, GDN_F32), .gv.dtype = GDN_F32, .beta_per_column = true}},
    {.name = "decay per column, kda vk",
     .p = {HEADS(2, 4, 24, 41), POOL(VK, 3, GDN_BF16), .gv.dtype = GDN_BF16, .is_kda = true},
     .lens = LIST(20, 1, 4)},
    {.name = "decay per column alone, decode",
     .p = {FIXED(2, 1), HEADS(2, 4, 16, 64), POOL(KV, 2, GDN_F32), .gv.dtype = GDN_F32},
     .no_a = true},
    {.name = "decay per column, tree",
     .p = {FIXED(1, 6), HEADS(2, 4, 16, 8), POOL(VK, 1, GDN_F32), CACHE(1, 6, GDN_F32), .gv.dtype = GDN_F32},
     .retrieve_parent_token = LIST(0, 0, 0, 2, 1, 3)},
    {.name = "mask",
     .p = {HEADS(2, 4, 24, 40), POOL(KV, 4, GDN_F32)},
     .lens = LIST(20, 1, 0, 40),
     .mask = true},
    {.name = "mask, vk, cache, steps",
     .p = {HEADS(2, 4, 16, 40), POOL(VK, 9, GDN_BF16), CACHE(3, 4, GDN_F32), .is_kda = true, DTYPES(GDN_BF16)},
     .lens = LIST(3, 4, 1),
     .initial_state_indices = LIST(0, 1, 2),
     .output_state_indices = LIST(0, 1, 2),
     .ssm_state_indices = LIST(3, 4, 5, -1, 6, -1, 7, -1, 8, -1, -1, -1),
     .mask = true},
    {.name = "mask, tree",
     .p = {FIXED(1, 6), HEADS(2, 4, 16, 8), POOL(VK, 1, GDN_F32), CACHE(1, 6, GDN_F32)},
     .retrieve_parent_token = LIST(0, 0, 0, 2, 1, 3),
     .mask = true},
    {.name = "mask, padding zero",
     .p = {HEADS(2, 4, 8, 40), POOL(KV, 4, GDN_F32), .padding = GDN_PADDING_ZERO},
     .lens = LIST(3, 4, 5),
     .initial_state_indices = LIST(-1, 2, -7),
     .mask = true},
    {.name = "rounded q and k",
     .p = {FIXED(2, 9), HEADS(2, 4, 24, 16), POOL(VK, 2, GDN_F32), .use_qk_l2norm_in_kernel = true, DTYPES(GDN_BF16),
           .k_read.dtype = GDN_BF16, .rounding = GDN_ROUND_QK | GDN_ROUND_SCALED_Q},
     .tolerance = 0x1p-7},
    {.name = "rounded q and k, before the scale",
     .p = {FIXED(2, 9), HEADS(2, 4, 24, 16), POOL(KV, 2, GDN_F32), .use_qk_l2norm_in_kernel = true, DTYPES(GDN_F16),
           .rounding = GDN_ROUND_QK},
     .tolerance = 0x1p-7},
    {.name = "rounded beta",
     .p = {FIXED(2, 9), HEADS(2, 4, 24, 33), POOL(KV, 2, GDN_F32), DTYPES(GDN_F16), .beta_per_column = true,
           .rounding = GDN_ROUND_BETA | GDN_ROUND_SCALED_Q},
     .tolerance = 0x1p-7},
    {.name = "rounded states",
     .p = {FIXED(2, 9), HEADS(2, 4, 24, 33), POOL(KV, 2, GDN_BF16), CACHE(2, 9, GDN_F32), .rounding = GDN_ROUND_STATE},
     .tolerance = 0x1p-7},
    {.name = "rounded states, vk, all",
     .p = {FIXED(2, 9), HEADS(2, 4, 24, 33), POOL(VK, 2, GDN_F16), DTYPES(GDN_F16), .is_kda = true, .rounding = 15},
     .tolerance = 0x1p-7},
};
const ptrdiff_t num_configs = COUNT(configs);

/* ---- random calls -------------------------------------------------------------------------------- */

enum { MAX_SEQUENCES = 4, MAX_STEPS = 8, MAX_LIST = MAX_SEQUENCES * MAX_STEPS };

static bool one_in(rng *r, ptrdiff_t n) { return rng_below(r, n) == 0; }

static ptrdiff_t random_size(rng *r, ptrdiff_t usual) {
    static const ptrdiff_t edges[] = {16, 32, 48, 64, 96, 100, 128, 192};
    return one_in(r, 8) ? edges[rng_below(r, COUNT(edges))] : 1 + rng_below(r, usual);
}

/* `count` different numbers below `bound`, each of them -1 instead once in `none` (0: never). */
static call_list random_numbers(rng *r, int *values, ptrdiff_t count, ptrdiff_t bound, ptrdiff_t none) {
    int all[MAX_LIST * 2] = {0};
    for (int i = 0; i < bound; i++) all[i] = i;
    for (ptrdiff_t i = 0; i < count; i++) {
        ptrdiff_t j = i + rng_below(r, bound - i);
        values[i] = none > 0 && one_in(r, none) ? -1 : all[j];
        all[j] = all[i];
    }
    return (call_list){count, values};
}

/* Which slots are read and written: none or n, listed, others to be written, or one for each step. */
static void random_slots(rng *r, call_config *config, ptrdiff_t N, ptrdiff_t steps) {
    static int read[MAX_LIST], write[MAX_LIST], slots[MAX_LIST], accepted[MAX_SEQUENCES];
    gdn_params *p = &config->p;
    gdn_state_pool *pool = &p->initial_state_source;
    pool->num_states = N + rng_below(r, 3);
    switch (rng_below(r, 6)) {
    case 0: /* slot n */
        break;
    case 1: /* read from the lower ones, perhaps several sequences from one, written to the upper ones */
        for (ptrdiff_t n = 0; n < N; n++) read[n] = (int)rng_below(r, N + 1) - 1;
        config->initial_state_indices = (call_list){N, read};
        config->output_state_indices = random_numbers(r, write, N, N, 5);
        for (ptrdiff_t n = 0; n < N; n++) write[n] += write[n] < 0 ? 0 : (int)N;
        pool->num_states = 2 * N;
        break;
    case 2:
        config->ssm_state_indices = random_numbers(r, read, N * steps, N * steps, 8);
        pool->num_states = N * steps;
        if (one_in(r, 2)) break;
        for (ptrdiff_t n = 0; n < N; n++) accepted[n] = 1 + (int)rng_below(r, steps);
        config->num_accepted_tokens = (call_list){N, accepted};
        break;
    case 3: /* from the lower ones, final states to the next, those of steps to the upper ones */
        config->initial_state_indices = random_numbers(r, read, N, N, 5);
        config->output_state_indices = random_numbers(r, write, N, N, 3);
        for (ptrdiff_t n = 0; n < N; n++) write[n] += write[n] < 0 ? 0 : (int)N;
        config->ssm_state_indices = random_numbers(r, slots, N * steps, N * steps, 4);
        for (ptrdiff_t i = 0; i < N * steps; i++) slots[i] += slots[i] < 0 ? 0 : 2 * (int)N;
        pool->num_states = (2 + steps) * N;
        break;
    default:
        config->initial_state_indices = random_numbers(r, read, N, pool->num_states, 5);
    }
    p->has_null_slot = (config->initial_state_indices.count > 0 || config->ssm_state_indices.count > 0) && one_in(r, 4);
    p->null_slot = rng_below(r, pool->num_states);
    p->disable_state_update = one_in(r, 5);
}

static void random_cache(rng *r, call_config *config, ptrdiff_t N, ptrdiff_t steps) {
    static int rows[MAX_LIST], parents[MAX_LIST];
    gdn_state_cache *cache = &config->p.intermediate_states_buffer;
    cache->num_rows = N + rng_below(r, 2);
    cache->num_steps = steps + rng_below(r, 2);
    if (one_in(r, 2)) config->intermediate_state_indices = random_numbers(r, rows, N, cache->num_rows, 5);
    if (one_in(r, 2)) return;
    for (ptrdiff_t i = 0; i < N * steps; i++) parents[i] = i % steps == 0 ? -1 : (int)rng_below(r, i % steps);
    config->retrieve_parent_token = (call_list){N * steps, parents};
}

static void random_options(rng *r, gdn_params *p) {
    p->padding = (gdn_padding)rng_below(r, 3);
    p->scale = one_in(r, 2) ? rng_uniform(r, 0.1, 2) : 0;
    p->use_qk_l2norm_in_kernel = one_in(r, 2);
    p->l2norm_form = (gdn_l2norm_form)rng_below(r, 4);
    p->l2norm_eps = one_in(r, 2) ? rng_uniform(r, 1e-6, 1) : 0;
    p->softplus_beta = one_in(r, 2) ? rng_uniform(r, 0.5, 2) : 0;
    p->softplus_threshold = one_in(r, 4) ? rng_uniform(r, 1e-3, 3) : 0;
    p->is_kda = one_in(r, 2);
    p->gate_input = (gdn_gate_input)rng_below(r, 3);
    p->has_lower_bound = p->gate_input == GDN_GATE_RAW && one_in(r, 3);
    p->lower_bound = p->has_lower_bound ? -rng_uniform(r, 0, 5) : 0;
    p->beta_input = (gdn_beta_input)rng_below(r, 2);
    p->beta_per_column = one_in(r, 3);
    p->allow_neg_eigval = p->use_qk_l2norm_in_kernel && one_in(r, 3);
    p->head_map = (gdn_head_map)rng_below(r, 2);
}

/* What few systems have. */
static void random_extras(rng *r, call_config *config) {
    static const ptrdiff_t intervals[] = {1, 2, 3, 5, 16, 32};
    gdn_params *p = &config->p;
    const bool starts_at_step = config->ssm_state_indices.count > 0 && config->initial_state_indices.count == 0;
    if (one_in(r, 6)) p->k_read.dtype = GDN_F32;
    if (one_in(r, 8)) p->erase.dtype = GDN_F32;
    if (one_in(r, 8)) p->gv.dtype = GDN_F32;
    config->mask = one_in(r, 8);
    p->read_before_decay = p->gv.dtype == GDN_DTYPE_NOT_SET && one_in(r, 8);
    p->rounding = one_in(r, 8) ? (unsigned)rng_below(r, 16) : 0;
    if (p->initial_state_source.num_states == 0) p->rounding &= ~(unsigned)GDN_ROUND_STATE;
    if (!starts_at_step && config->retrieve_parent_token.count == 0 && one_in(r, 3))
        p->step_interval = intervals[rng_below(r, COUNT(intervals))];
}

/* Keys that the operator does not normalise have at most length one: with longer ones the recurrence would amplify
 * errors without bound. */
static void shorten_keys(call *c, call_array which) {
    const ptrdiff_t *n = c->array[which].shape;
    for (ptrdiff_t i0 = 0; i0 < n[0] && call_has(c, which) && !c->p.use_qk_l2norm_in_kernel; i0++)
        for (ptrdiff_t i1 = 0; i1 < n[1]; i1++)
            for (ptrdiff_t i2 = 0; i2 < n[2]; i2++) {
                double norm = 0;
                for (ptrdiff_t i3 = 0; i3 < n[3]; i3++) norm = hypot(norm, call_get(c, which, i0, i1, i2, i3));
                for (ptrdiff_t i3 = 0; i3 < n[3] && norm > 1; i3++)
                    call_set(c, which, i0, i1, i2, i3, call_get(c, which, i0, i1, i2, i3) / norm);
            }
}

call *random_call(ptrdiff_t i) {
    static const gdn_dtype dtypes[] = {GDN_F32, GDN_BF16, GDN_F16};
    int lens[MAX_SEQUENCES] = {0};
    rng r = rng_stream(&i, 1);
    ptrdiff_t N = 1 + rng_below(&r, MAX_SEQUENCES), steps = 1 + rng_below(&r, MAX_STEPS);
    ptrdiff_t H = 1 + rng_below(&r, 3), HV = H * (1 + rng_below(&r, 3));
    ptrdiff_t K = random_size(&r, 40), V = random_size(&r, 70);
    call_config config = {.p = {HEADS(H, HV, K, V)}};
    gdn_params *p = &config.p;
    random_options(&r, p);
    p->state_layout = one_in(&r, 2) ? GDN_STATE_VK : GDN_STATE_KV;
    config.no_b = !p->beta_per_column && one_in(&r, 5);
    config.no_a = one_in(&r, 8);
    config.no_A_log = p->has_lower_bound && one_in(&r, 4);
    config.no_dt_bias = one_in(&r, 4);
    config.index_dtype = one_in(&r, 2) ? GDN_I64 : GDN_I32;
    if (!one_in(&r, 4)) random_slots(&r, &config, N, steps);
    if (one_in(&r, 4)) random_cache(&r, &config, N, steps);
    random_extras(&r, &config);

    /* Steps bound the lengths where something is kept for each of them; otherwise a sequence may be long. */
    bool bounded = config.ssm_state_indices.count > 0 || p->intermediate_states_buffer.num_rows > 0;
    ptrdiff_t interval = p->step_interval == 0 ? 1 : p->step_interval;
    for (ptrdiff_t n = 0; n < N; n++) {
        lens[n] = (int)(!bounded && one_in(&r, 12) ? 30 + rng_below(&r, 50) : rng_below(&r, steps + 1));
        if (bounded && interval > 1) lens[n] = (int)rng_below(&r, (steps + 1) * interval < 100 ? (steps + 1) * interval : 100);
    }
    if (one_in(&r, 4)) {
        p->batch_size = N;
        p->seq_len = lens[0];
    } else {
        config.lens = (call_list){N, lens};
        config.tail = one_in(&r, 4) ? rng_below(&r, 4) : 0;
    }

    gdn_dtype *const dtype[] = {&p->A_log.dtype,
                                &p->a.dtype,
                                &p->dt_bias.dtype,
                                &p->q.dtype,
                                &p->k.dtype,
                                &p->v.dtype,
                                &p->b.dtype,
                                &p->o.dtype,
                                &p->initial_state_source.dtype,
                                &p->intermediate_states_buffer.dtype};
    bool mixed = one_in(&r, 2);
    for (ptrdiff_t j = 0; j < COUNT(dtype); j++) *dtype[j] = mixed ? dtypes[rng_below(&r, 3)] : GDN_F32;
    if (mixed && p->k_read.dtype != GDN_DTYPE_NOT_SET) p->k_read.dtype = dtypes[rng_below(&r, 3)];
    if (mixed && p->erase.dtype != GDN_DTYPE_NOT_SET) p->erase.dtype = dtypes[rng_below(&r, 3)];
    if (mixed && p->gv.dtype != GDN_DTYPE_NOT_SET) p->gv.dtype = dtypes[rng_below(&r, 3)];
    call *c = call_new(&config);
    shorten_keys(c, CALL_K);
    shorten_keys(c, CALL_K_READ);
    return c;
}

void strew_extremes(call *c, ptrdiff_t stream) {
    static const double extremes[] = {0,          -0.0,  1e-45, -1e-42, 1e-38,  1e-20,    -100, 100,       20,
                                      20.0000019, -17,   -316,  -1e4,   3.4e38, 1,        -1,   -88,       88,
                                      1e20,       -1e20, 1e-30, -104,   -3e38,  HUGE_VAL, -20,  -HUGE_VAL, (double)NAN};
    static const call_array inputs[] = {CALL_Q,     CALL_K,       CALL_V,      CALL_A,  CALL_B,
                                        CALL_A_LOG, CALL_DT_BIAS, CALL_K_READ, CALL_ERASE, CALL_GV, CALL_INITIAL_POOL};
    rng r = rng_stream(&stream, 1);
    for (ptrdiff_t i = 0; i < COUNT(inputs); i++) {
        if (!call_has(c, inputs[i])) continue;
        const ptrdiff_t *n = c->array[inputs[i]].shape;
        ptrdiff_t count = 1 + n[0] * n[1] * n[2] * n[3] / 40;
        for (ptrdiff_t j = 0; j < count && n[0] * n[1] > 0; j++)
            call_set(c, inputs[i], rng_below(&r, n[0]), rng_below(&r, n[1]), rng_below(&r, n[2]), rng_below(&r, n[3]),
                     extremes[rng_below(&r, COUNT(extremes))]);
    }
}
