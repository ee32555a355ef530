/* What is refused: bad parameters are answered before anything is written, with the argument and the place at fault. */
#include "gdn_varlen.h"
#include "guard.h"
#include "test.h"

#include <float.h>
#include <limits.h>
#include <math.h>
#include <string.h>

/* Two batch rows of three tokens, or the sequences [0,2) [2,5) [5,6) of the same six tokens. */
enum { BATCH = 2, STEPS = 3, TOKENS = 6, SEQS = 3, H = 2, HV = 4, K = 8, V = 4, SLOTS = 7, ROWS = 4 };
enum { STATE = HV * K * V, WIDE = 2 /* floats for one double */, PITCH = 2 * H * K + 2 * HV * V, MANY = 2000 };

/* All the memory of a call, in one guarded block, so that one memcmp says whether anything was written. */
struct memory {
    float A_log[HV * WIDE], a[TOKENS * HV * K * WIDE], dt_bias[HV * K * WIDE];
    float q[TOKENS * H * K * WIDE], k[TOKENS * H * K * WIDE], v[TOKENS * HV * V * WIDE], b[TOKENS * HV * V * WIDE];
    float o[TOKENS * HV * V * WIDE];
    float pool[SLOTS * STATE * WIDE], outputs[SEQS * STATE * WIDE], cache[ROWS * STEPS * STATE * WIDE];
    int32_t cu_seqlens[SEQS + 1], reads[SEQS], writes[SEQS], rows[SEQS];
    int32_t parents[SEQS * STEPS], slots[SEQS * STEPS], accepted[SEQS];
    float packed[(TOKENS + 1) * PITCH];
    float many_inputs[MANY], many_outputs[MANY], many_states[2 * MANY];
    int64_t many_cu_seqlens[MANY + 1], many_reads[MANY], many_writes[MANY];
    unsigned char scratch[1 << 16];
};
static struct memory *memory, before;
#define m (*memory)

static gdn_params p;

/* ---- Calls that are accepted as they are; each case below changes one of them. ---- */

static void fixed_length(void) {
    memset(&m, 0, sizeof m);
    for (size_t i = 0; i < TOKENS * H * K * WIDE; i++) m.q[i] = m.k[i] = 0.125f * (float)(i % 7) + 0.125f;
    for (size_t i = 0; i < TOKENS * HV * V * WIDE; i++) m.v[i] = m.o[i] = 0.25f * (float)(i % 5) + 0.25f;
    for (size_t i = 0; i < SLOTS * STATE * WIDE; i++) m.pool[i] = 0.5f * (float)(i % 3) + 0.5f;
    for (size_t i = 0; i < ROWS * STEPS * STATE * WIDE; i++) m.cache[i] = 3.0f;
    memset(m.scratch, 0x5a, sizeof m.scratch);

    p = (gdn_params){0};
    p.batch_size = BATCH;
    p.seq_len = STEPS;
    p.num_key_heads = H;
    p.num_value_heads = HV;
    p.head_k_dim = K;
    p.head_v_dim = V;
    p.A_log = gdn_f32(m.A_log);
    p.a = gdn_f32(m.a);
    p.dt_bias = gdn_f32(m.dt_bias);
    p.q = gdn_f32(m.q);
    p.k = gdn_f32(m.k);
    p.v = gdn_f32(m.v);
    p.b = gdn_f32(m.b);
    p.o = gdn_out_f32(m.o);
    p.scratch = m.scratch;
    p.scratch_size = sizeof m.scratch;
}

static int lengths(int32_t x, int32_t y, int32_t z) {
    memcpy(m.cu_seqlens, (const int32_t[]){0, x, x + y, x + y + z}, sizeof m.cu_seqlens);
    return 0;
}

static void varlen(void) {
    fixed_length();
    lengths(2, 3, 1);
    p.batch_size = 1;
    p.seq_len = TOKENS;
    p.num_seqs = SEQS;
    p.cu_seqlens = gdn_i32(m.cu_seqlens);
}

/* Slot n of every sequence n. */
static void identity_slots(void) {
    varlen();
    p.initial_state_source = gdn_pool_of(m.pool, GDN_F32, SLOTS);
    p.state_layout = GDN_STATE_KV;
}

static void pooled(void) {
    identity_slots();
    memcpy(m.reads, (const int32_t[]){4, 0, 2}, sizeof m.reads);
    p.initial_state_indices = gdn_i32(m.reads);
}

static void read_and_written(void) {
    pooled();
    memcpy(m.writes, (const int32_t[]){1, 0, 5}, sizeof m.writes);
    p.output_state_indices = gdn_i32(m.writes);
}

/* Slots 4, 0, 2 of one pool are read, slots 0, 1, 2 of another are written. */
static void two_pools(void) {
    pooled();
    p.output_state_pool = gdn_pool_of(m.outputs, GDN_F32, SEQS);
}

static void cached(void) {
    pooled();
    memcpy(m.rows, (const int32_t[]){3, 0, 1}, sizeof m.rows);
    p.intermediate_states_buffer = gdn_cache_of(m.cache, GDN_F32, ROWS, STEPS);
    p.intermediate_state_indices = gdn_i32(m.rows);
}

static void tree(void) {
    cached();
    memcpy(m.parents, (const int32_t[]){-1, 0, 7, -1, 0, 0, -1, 9, 9}, sizeof m.parents);
    p.retrieve_parent_token = gdn_indices_of(m.parents, GDN_I32, STEPS);
}

static void step_slots(void) {
    identity_slots();
    memcpy(m.slots, (const int32_t[]){0, 1, -1, 2, 3, 4, 5, -1, 6}, sizeof m.slots);
    memcpy(m.accepted, (const int32_t[]){2, 1, 1}, sizeof m.accepted);
    p.ssm_state_indices = gdn_indices_of(m.slots, GDN_I32, STEPS);
    p.num_accepted_tokens = gdn_i32(m.accepted);
}

/* What few systems have, all of it that goes together. */
static void everything(void) {
    pooled();
    p.k_read = gdn_f32(m.k);
    p.erase = gdn_f32(m.a);
    p.gv = gdn_f32(m.b);
    memset(m.packed, 1, TOKENS);
    p.token_mask.data = (const uint8_t *)m.packed;
    p.rounding = GDN_ROUND_QK | GDN_ROUND_SCALED_Q | GDN_ROUND_BETA | GDN_ROUND_STATE;
}

/* One sequence of one token, and room for just that. */
static void smallest(void) {
    lengths(1, 0, 0);
    p.num_seqs = p.seq_len = p.initial_state_source.num_states = 1;
}

static void smallest_tree(void) {
    tree();
    smallest();
    m.reads[0] = m.rows[0] = 0;
    p.intermediate_states_buffer.num_rows = p.intermediate_states_buffer.num_steps = 1;
    p.retrieve_parent_token.num_columns = 1;
}

static void smallest_step_slots(void) {
    step_slots();
    smallest();
    m.accepted[0] = 1;
    p.ssm_state_indices.num_columns = 1;
}

/* ---- The two verdicts. A failed case is printed and counted, so that one run shows all of them. ---- */

static int failures;

static int reset_failures(void **state) {
    (void)state;
    failures = 0;
    return 0;
}

static int report_failures(void **state) {
    (void)state;
    return failures ? -1 : 0;
}

static bool same_error(const gdn_error *x, const gdn_error *y) {
    return x->status == y->status && x->argument && y->argument && strcmp(x->argument, y->argument) == 0 &&
           x->index == y->index && x->other == y->other;
}

static void explain(int line, const char *change, const char *caller, const gdn_error *expected,
                    const gdn_error *actual) {
    failures++;
    const gdn_error *const both[] = {expected, actual};
    print_error("line %d: %s: %s\n", line, change, caller);
    for (int i = 0; i < 2; i++)
        print_error("    %s %s \"%s\" index %lld other %lld\n", i ? "actual  " : "expected",
                    gdn_status_name(both[i]->status), both[i]->argument ? both[i]->argument : "(null)",
                    (long long)both[i]->index, (long long)both[i]->other);
}

typedef gdn_status (*call)(const gdn_params *, gdn_error *);

static void check_call(int line, const char *change, const char *caller, call function, const gdn_error *expected) {
    gdn_error actual = {GDN_NUM_STATUSES, NULL, -2, -2};
    gdn_status returned = function(&p, &actual);
    if (returned != actual.status || !same_error(&actual, expected))
        explain(line, change, caller, expected, &actual);
    else if (function(&p, NULL) != expected->status)
        explain(line, change, "the status without an error to fill", expected, &actual);
}

static void check_refused(int line, const char *change, gdn_status status, const char *argument, int64_t index,
                          int64_t other) {
    const gdn_error expected = {status, argument, index, other};
    memcpy(&before, &m, sizeof m);
    check_call(line, change, "gdn_validate", gdn_validate, &expected);
    check_call(line, change, "gdn_fused_sigmoid_gating_delta_rule_update", gdn_fused_sigmoid_gating_delta_rule_update,
               &expected);
    if (memcmp(&m, &before, sizeof m) != 0) explain(line, change, "memory was written", &expected, &expected);
}

static void check_valid(int line, const char *change) {
    const gdn_error success = {GDN_OK, "", -1, -1};
    memcpy(&before, &m, sizeof m);
    check_call(line, change, "gdn_validate", gdn_validate, &success);
    if (memcmp(&m, &before, sizeof m) != 0) explain(line, change, "gdn_validate wrote", &success, &success);
}

static void check_accepted(int line, const char *change) {
    const gdn_error success = {GDN_OK, "", -1, -1};
    check_valid(line, change);
    check_call(line, change, "gdn_fused_sigmoid_gating_delta_rule_update", gdn_fused_sigmoid_gating_delta_rule_update,
               &success);
}

/* A row of the tables below: a good call, what is changed in it (an expression), and the answer. */
#define REFUSED_AT(call, change, status, argument, index, other)                                                       \
    (call(), (void)(change), check_refused(__LINE__, #change, status, argument, index, other))
#define REFUSED(call, change, status, argument) REFUSED_AT(call, change, status, argument, -1, -1)
#define VALID(call, change) (call(), (void)(change), check_valid(__LINE__, #change))
#define ACCEPTED(call, change) (call(), (void)(change), check_accepted(__LINE__, #change))

/* For a row that is accepted as it is. */
#define UNCHANGED 0

/* ---- Pointers, sizes, modes, numbers ---- */

static void good_calls(void **state) {
    (void)state;
    ACCEPTED(fixed_length, UNCHANGED);
    ACCEPTED(varlen, UNCHANGED);
    ACCEPTED(identity_slots, UNCHANGED);
    ACCEPTED(pooled, UNCHANGED);
    ACCEPTED(read_and_written, UNCHANGED);
    ACCEPTED(cached, UNCHANGED);
    ACCEPTED(tree, UNCHANGED);
    ACCEPTED(step_slots, UNCHANGED);
    ACCEPTED(everything, UNCHANGED);
}

static void required_pointers(void **state) {
    (void)state;
    REFUSED(fixed_length, p.A_log.data = NULL, GDN_ERROR_NULL, "A_log");
    REFUSED(fixed_length, p.a.data = NULL, GDN_ERROR_NULL, "a");
    REFUSED(fixed_length, (p.a.data = NULL, p.dt_bias.data = NULL), GDN_ERROR_NULL, "a");
    REFUSED(fixed_length, (p.a.data = NULL, p.A_log.data = NULL), GDN_ERROR_NULL, "a");
    REFUSED(fixed_length, p.q.data = NULL, GDN_ERROR_NULL, "q");
    REFUSED(fixed_length, p.k.data = NULL, GDN_ERROR_NULL, "k");
    REFUSED(fixed_length, p.v.data = NULL, GDN_ERROR_NULL, "v");
    REFUSED(fixed_length, p.o.data = NULL, GDN_ERROR_NULL, "o");
    REFUSED(pooled, p.initial_state_source.data = NULL, GDN_ERROR_NULL, "initial_state_source");
    REFUSED(read_and_written, (p.initial_state_source.data = NULL, p.initial_state_indices.data = NULL), GDN_ERROR_NULL,
            "initial_state_source");
    REFUSED(step_slots, p.initial_state_source.data = NULL, GDN_ERROR_NULL, "initial_state_source");
    REFUSED(cached, p.intermediate_states_buffer.data = NULL, GDN_ERROR_NULL, "intermediate_states_buffer");
    REFUSED(tree, (p.intermediate_states_buffer.data = NULL, p.intermediate_state_indices.data = NULL), GDN_ERROR_NULL,
            "intermediate_states_buffer");

    /* For one token, too; for none they may be absent, whatever the number of sequences. */
    REFUSED(fixed_length, (p.seq_len = 1, p.q.data = NULL), GDN_ERROR_NULL, "q");
    REFUSED(fixed_length, (p.seq_len = 1, p.A_log.data = NULL), GDN_ERROR_NULL, "A_log");
    REFUSED(fixed_length, (p.seq_len = 1, p.o.data = NULL), GDN_ERROR_NULL, "o");
    ACCEPTED(fixed_length,
             (p.seq_len = 0, p.batch_size = (ptrdiff_t)1 << (sizeof(ptrdiff_t) * CHAR_BIT - 8),
              p.q.data = p.k.data = p.v.data = p.A_log.data = p.a.data = p.dt_bias.data = NULL, p.o.data = NULL));

    ACCEPTED(fixed_length, p.b.data = NULL);
    ACCEPTED(fixed_length, p.dt_bias.data = NULL);
    ACCEPTED(fixed_length, p.a.data = p.A_log.data = p.dt_bias.data = NULL);
    ACCEPTED(fixed_length, (p.gate_input = GDN_GATE_LOG, p.a.data = NULL));
    ACCEPTED(fixed_length, (p.has_lower_bound = true, p.lower_bound = -5, p.A_log.data = NULL));
    ACCEPTED(fixed_length, (p.has_lower_bound = true, p.lower_bound = -5, p.A_log.data = p.dt_bias.data = NULL));
    ACCEPTED(fixed_length, (p.gate_input = GDN_GATE_LOG, p.A_log.data = p.dt_bias.data = NULL));
    ACCEPTED(fixed_length, (p.gate_input = GDN_GATE_DECAY, p.A_log.data = p.dt_bias.data = NULL));
    ACCEPTED(identity_slots, p.initial_state_source.data = NULL);
}

static void null_params(void **state) {
    (void)state;
    const gdn_error expected = {GDN_ERROR_NULL, "params", -1, -1};
    gdn_error validated = {GDN_OK, NULL, 0, 0}, called = {GDN_OK, NULL, 0, 0};
    assert_int_equal(gdn_validate(NULL, &validated), GDN_ERROR_NULL);
    assert_int_equal(gdn_fused_sigmoid_gating_delta_rule_update(NULL, &called), GDN_ERROR_NULL);
    assert_true(same_error(&validated, &expected));
    assert_true(same_error(&called, &expected));
    assert_int_equal(gdn_validate(NULL, NULL), GDN_ERROR_NULL);
    assert_int_equal(gdn_fused_sigmoid_gating_delta_rule_update(NULL, NULL), GDN_ERROR_NULL);
}

static void sizes(void **state) {
    (void)state;
    static const ptrdiff_t bad[] = {0, -1, PTRDIFF_MIN};
    for (ptrdiff_t i = 0; i < COUNT(bad); i++) {
        REFUSED(fixed_length, p.batch_size = bad[i], GDN_ERROR_SIZE, "batch_size");
        REFUSED(fixed_length, p.num_key_heads = bad[i], GDN_ERROR_SIZE, "num_key_heads");
        REFUSED(fixed_length, p.num_value_heads = bad[i], GDN_ERROR_SIZE, "num_value_heads");
        REFUSED(fixed_length, p.head_k_dim = bad[i], GDN_ERROR_SIZE, "head_k_dim");
        REFUSED(fixed_length, p.head_v_dim = bad[i], GDN_ERROR_SIZE, "head_v_dim");
        REFUSED(varlen, p.num_seqs = bad[i], GDN_ERROR_SIZE, "num_seqs");
    }
    REFUSED(fixed_length, p.seq_len = -1, GDN_ERROR_SIZE, "seq_len");
    REFUSED(fixed_length, p.seq_len = PTRDIFF_MIN, GDN_ERROR_SIZE, "seq_len");
    REFUSED(varlen, p.seq_len = -1, GDN_ERROR_SIZE, "seq_len");
    REFUSED(fixed_length, p.num_value_heads = 3, GDN_ERROR_SIZE, "num_value_heads");
    REFUSED(fixed_length, p.num_value_heads = 1, GDN_ERROR_SIZE, "num_value_heads");
    REFUSED(fixed_length, p.num_seqs = BATCH + 1, GDN_ERROR_SIZE, "num_seqs");
    REFUSED(fixed_length, p.num_seqs = BATCH - 1, GDN_ERROR_SIZE, "num_seqs");
    REFUSED(fixed_length, p.num_seqs = -1, GDN_ERROR_SIZE, "num_seqs");
    REFUSED(varlen, p.batch_size = 2, GDN_ERROR_SIZE, "batch_size");
    REFUSED(pooled, p.initial_state_source.num_states = -1, GDN_ERROR_SIZE, "initial_state_source");
    REFUSED(cached, p.intermediate_states_buffer.num_rows = -1, GDN_ERROR_SIZE, "intermediate_states_buffer");
    REFUSED(cached, p.intermediate_states_buffer.num_steps = -1, GDN_ERROR_SIZE, "intermediate_states_buffer");
    ACCEPTED(varlen, p.cu_seqlens.num_columns = 7); /* one-dimensional ones have none */
    ACCEPTED(read_and_written, p.initial_state_indices.num_columns = p.output_state_indices.num_columns = 7);
    ACCEPTED(cached, p.intermediate_state_indices.num_columns = 7);
    ACCEPTED(step_slots, p.num_accepted_tokens.num_columns = 7);
    REFUSED(tree, p.retrieve_parent_token.num_columns = -1, GDN_ERROR_SIZE, "retrieve_parent_token");
    REFUSED(step_slots, p.ssm_state_indices.num_columns = -1, GDN_ERROR_SIZE, "ssm_state_indices");
    REFUSED(two_pools, p.output_state_pool.num_states = 0, GDN_ERROR_SIZE, "output_state_pool");
    REFUSED(cached, p.step_interval = -1, GDN_ERROR_SIZE, "step_interval");
    REFUSED(fixed_length, p.step_interval = PTRDIFF_MIN, GDN_ERROR_SIZE, "step_interval");

    ACCEPTED(fixed_length, p.seq_len = 0);
    ACCEPTED(fixed_length, p.num_seqs = BATCH);
    ACCEPTED(pooled, (lengths(0, 0, 0), p.seq_len = 0));
    ACCEPTED(varlen, p.num_seqs = 1);
    ACCEPTED(smallest_tree, UNCHANGED);
    ACCEPTED(smallest_step_slots, UNCHANGED);
}

static void enumerations(void **state) {
    (void)state;
    REFUSED(identity_slots, p.state_layout = GDN_STATE_LAYOUT_NOT_SET, GDN_ERROR_ENUM, "state_layout");
    REFUSED(cached,
            (p.state_layout = GDN_STATE_LAYOUT_NOT_SET, p.initial_state_source.data = NULL,
             p.initial_state_indices.data = NULL),
            GDN_ERROR_ENUM, "state_layout");
    REFUSED(identity_slots, p.state_layout = (gdn_state_layout)(GDN_STATE_VK + 1), GDN_ERROR_ENUM, "state_layout");
    REFUSED(identity_slots, p.state_layout = (gdn_state_layout)-1, GDN_ERROR_ENUM, "state_layout");
    REFUSED(fixed_length, p.padding = (gdn_padding)(GDN_PADDING_LEAVE + 1), GDN_ERROR_ENUM, "padding");
    REFUSED(fixed_length, p.padding = (gdn_padding)-1, GDN_ERROR_ENUM, "padding");
    REFUSED(fixed_length, p.l2norm_form = (gdn_l2norm_form)(GDN_L2NORM_NORM_PLUS_EPS + 1), GDN_ERROR_ENUM,
            "l2norm_form");
    REFUSED(fixed_length, p.l2norm_form = (gdn_l2norm_form)-1, GDN_ERROR_ENUM, "l2norm_form");
    REFUSED(fixed_length, p.gate_input = (gdn_gate_input)(GDN_GATE_DECAY + 1), GDN_ERROR_ENUM, "gate_input");
    REFUSED(fixed_length, p.gate_input = (gdn_gate_input)-1, GDN_ERROR_ENUM, "gate_input");
    REFUSED(fixed_length, p.beta_input = (gdn_beta_input)(GDN_BETA_GIVEN + 1), GDN_ERROR_ENUM, "beta_input");
    REFUSED(fixed_length, p.beta_input = (gdn_beta_input)-1, GDN_ERROR_ENUM, "beta_input");
    REFUSED(fixed_length, p.head_map = (gdn_head_map)(GDN_HEADS_TILED + 1), GDN_ERROR_ENUM, "head_map");
    REFUSED(fixed_length, p.head_map = (gdn_head_map)-1, GDN_ERROR_ENUM, "head_map");
    REFUSED(fixed_length, p.compute = (gdn_compute)(GDN_COMPUTE_F32_CHUNKS + 1), GDN_ERROR_ENUM, "compute");
    REFUSED(fixed_length, p.compute = (gdn_compute)-1, GDN_ERROR_ENUM, "compute");
    REFUSED(fixed_length, p.isa = GDN_NUM_ISAS, GDN_ERROR_ENUM, "isa");
    REFUSED(fixed_length, p.isa = (gdn_isa)-1, GDN_ERROR_ENUM, "isa");

    REFUSED(identity_slots, p.rounding = 2 * GDN_ROUND_STATE, GDN_ERROR_ENUM, "rounding");
    REFUSED(identity_slots, p.rounding = ~0u, GDN_ERROR_ENUM, "rounding");

    ACCEPTED(fixed_length, p.state_layout = GDN_STATE_LAYOUT_NOT_SET);
    ACCEPTED(identity_slots, p.state_layout = GDN_STATE_VK);
}

static void element_types(void **state) {
    (void)state;
    static const gdn_dtype bad[] = {GDN_DTYPE_NOT_SET, GDN_F64, (gdn_dtype)(GDN_F64 + 1), (gdn_dtype)-1};
    for (ptrdiff_t i = 0; i < COUNT(bad); i++) {
        REFUSED(fixed_length, p.A_log.dtype = bad[i], GDN_ERROR_ENUM, "A_log");
        REFUSED(fixed_length, p.a.dtype = bad[i], GDN_ERROR_ENUM, "a");
        REFUSED(fixed_length, p.dt_bias.dtype = bad[i], GDN_ERROR_ENUM, "dt_bias");
        REFUSED(fixed_length, p.q.dtype = bad[i], GDN_ERROR_ENUM, "q");
        REFUSED(fixed_length, p.k.dtype = bad[i], GDN_ERROR_ENUM, "k");
        REFUSED(fixed_length, p.v.dtype = bad[i], GDN_ERROR_ENUM, "v");
        REFUSED(fixed_length, p.b.dtype = bad[i], GDN_ERROR_ENUM, "b");
        REFUSED(fixed_length, p.o.dtype = bad[i], GDN_ERROR_ENUM, "o");
        REFUSED(everything, p.k_read.dtype = bad[i], GDN_ERROR_ENUM, "k_read");
        REFUSED(everything, p.erase.dtype = bad[i], GDN_ERROR_ENUM, "erase");
        REFUSED(everything, p.gv.dtype = bad[i], GDN_ERROR_ENUM, "gv");
        REFUSED(cached, p.initial_state_source.dtype = bad[i], GDN_ERROR_ENUM, "initial_state_source");
        REFUSED(cached, p.intermediate_states_buffer.dtype = bad[i], GDN_ERROR_ENUM, "intermediate_states_buffer");
    }
    REFUSED(fixed_length, (p.compute = GDN_COMPUTE_F64, p.q.dtype = GDN_DTYPE_NOT_SET), GDN_ERROR_ENUM, "q");
    REFUSED(fixed_length, (p.compute = GDN_COMPUTE_F64, p.o.dtype = (gdn_dtype)(GDN_F64 + 1)), GDN_ERROR_ENUM, "o");

    for (gdn_dtype dtype = GDN_F32; dtype <= GDN_F64; dtype = (gdn_dtype)(dtype + 1)) {
        gdn_compute compute = dtype == GDN_F64 ? GDN_COMPUTE_F64 : test_compute();
        ACCEPTED(cached, (p.compute = compute, p.A_log.dtype = p.a.dtype = p.dt_bias.dtype = dtype));
        ACCEPTED(cached, (p.compute = compute, p.q.dtype = p.k.dtype = p.v.dtype = p.b.dtype = dtype));
        ACCEPTED(cached, (p.compute = compute, p.o.dtype = dtype));
        ACCEPTED(cached, (p.compute = compute, p.initial_state_source.dtype = dtype));
        ACCEPTED(cached, (p.compute = compute, p.intermediate_states_buffer.dtype = dtype));
    }
}

static void index_types(void **state) {
    (void)state;
    static const gdn_index_dtype bad[] = {GDN_INDEX_NOT_SET, (gdn_index_dtype)(GDN_I64 + 1), (gdn_index_dtype)-1};
    for (ptrdiff_t i = 0; i < COUNT(bad); i++) {
        REFUSED(varlen, p.cu_seqlens.dtype = bad[i], GDN_ERROR_ENUM, "cu_seqlens");
        REFUSED(pooled, p.initial_state_indices.dtype = bad[i], GDN_ERROR_ENUM, "initial_state_indices");
        REFUSED(read_and_written, p.output_state_indices.dtype = bad[i], GDN_ERROR_ENUM, "output_state_indices");
        REFUSED(cached, p.intermediate_state_indices.dtype = bad[i], GDN_ERROR_ENUM, "intermediate_state_indices");
        REFUSED(tree, p.retrieve_parent_token.dtype = bad[i], GDN_ERROR_ENUM, "retrieve_parent_token");
        REFUSED(step_slots, p.ssm_state_indices.dtype = bad[i], GDN_ERROR_ENUM, "ssm_state_indices");
        REFUSED(step_slots, p.num_accepted_tokens.dtype = bad[i], GDN_ERROR_ENUM, "num_accepted_tokens");
    }
}

static void numbers(void **state) {
    (void)state;
    static const double bad[] = {-1.0, -1e-300, (double)NAN, (double)INFINITY, (double)-INFINITY};
    for (ptrdiff_t i = 0; i < COUNT(bad); i++) {
        REFUSED(fixed_length, p.scale = bad[i], GDN_ERROR_VALUE, "scale");
        REFUSED(fixed_length, p.softplus_beta = bad[i], GDN_ERROR_VALUE, "softplus_beta");
        REFUSED(fixed_length, p.l2norm_eps = bad[i], GDN_ERROR_VALUE, "l2norm_eps");
    }
    static const double bad_bound[] = {1.0, 1e-300, (double)NAN, (double)INFINITY, (double)-INFINITY};
    for (ptrdiff_t i = 0; i < COUNT(bad_bound); i++)
        REFUSED(fixed_length, (p.has_lower_bound = true, p.lower_bound = bad_bound[i]), GDN_ERROR_VALUE, "lower_bound");
    REFUSED(fixed_length, p.softplus_threshold = (double)NAN, GDN_ERROR_VALUE, "softplus_threshold");

    VALID(fixed_length, p.scale = p.softplus_beta = p.l2norm_eps = DBL_MAX);
    VALID(fixed_length, (p.has_lower_bound = true, p.lower_bound = -DBL_MAX));
    ACCEPTED(fixed_length, p.scale = 1e-300);
    ACCEPTED(fixed_length, (p.use_qk_l2norm_in_kernel = true, p.l2norm_eps = 1e-300));
    ACCEPTED(fixed_length, p.softplus_beta = 1e-300);
    ACCEPTED(fixed_length, p.softplus_threshold = -1.0);
    ACCEPTED(fixed_length, p.softplus_threshold = (double)INFINITY);
    ACCEPTED(fixed_length, p.softplus_threshold = (double)-INFINITY);
    ACCEPTED(fixed_length, p.has_lower_bound = true);
    ACCEPTED(fixed_length, (p.has_lower_bound = true, p.lower_bound = -5.0));
}

static void combinations(void **state) {
    (void)state;
    REFUSED(step_slots, p.ssm_state_indices.data = NULL, GDN_ERROR_COMBINATION, "num_accepted_tokens");
    REFUSED(step_slots, p.initial_state_indices = gdn_i32(m.reads), GDN_ERROR_COMBINATION, "num_accepted_tokens");
    REFUSED(two_pools, p.disable_state_update = true, GDN_ERROR_COMBINATION, "disable_state_update");
    REFUSED(identity_slots, p.has_null_slot = true, GDN_ERROR_COMBINATION, "null_slot");
    REFUSED(identity_slots, (p.has_null_slot = true, p.null_slot = SEQS - 1), GDN_ERROR_COMBINATION, "null_slot");
    ACCEPTED(identity_slots, (p.has_null_slot = true, p.null_slot = SEQS));
    REFUSED(two_pools, (p.ssm_state_indices = gdn_i32(m.slots), p.num_accepted_tokens = gdn_i32(m.accepted)),
            GDN_ERROR_COMBINATION, "num_accepted_tokens");
    REFUSED(step_slots, p.step_interval = 2, GDN_ERROR_COMBINATION, "step_interval");
    REFUSED(step_slots, (p.num_accepted_tokens.data = NULL, p.step_interval = 2), GDN_ERROR_COMBINATION,
            "step_interval");
    REFUSED(tree, p.step_interval = 2, GDN_ERROR_COMBINATION, "step_interval");
    ACCEPTED(tree, p.step_interval = 1);
    ACCEPTED(step_slots, p.step_interval = 1);
    ACCEPTED(cached, p.step_interval = PTRDIFF_MAX);
    REFUSED(everything, p.read_before_decay = true, GDN_ERROR_COMBINATION, "read_before_decay");
    ACCEPTED(everything, (p.read_before_decay = true, p.gv.data = NULL));
    REFUSED(everything, (p.homogeneous = true, p.v.data = NULL, p.o.data = NULL), GDN_ERROR_COMBINATION, "homogeneous");
    ACCEPTED(everything, (p.homogeneous = true, p.v.data = p.gv.data = NULL, p.o.data = NULL));
    REFUSED(fixed_length, p.rounding = GDN_ROUND_STATE, GDN_ERROR_COMBINATION, "rounding");
    ACCEPTED(pooled, (p.rounding = GDN_ROUND_STATE, p.disable_state_update = true));
    ACCEPTED(two_pools,
             (p.rounding = GDN_ROUND_STATE, p.initial_state_source.data = NULL, p.initial_state_indices.data = NULL));
    REFUSED(fixed_length, (p.has_lower_bound = true, p.gate_input = GDN_GATE_LOG), GDN_ERROR_COMBINATION,
            "has_lower_bound");
    REFUSED(fixed_length, (p.has_lower_bound = true, p.gate_input = GDN_GATE_DECAY), GDN_ERROR_COMBINATION,
            "has_lower_bound");
    REFUSED(fixed_length, (p.beta_per_column = true, p.b.data = NULL), GDN_ERROR_COMBINATION, "beta_per_column");

    ACCEPTED(fixed_length, p.beta_per_column = true);
    ACCEPTED(fixed_length, p.is_kda = true);
    ACCEPTED(step_slots, p.num_accepted_tokens.data = NULL);
}

/* ---- Strides and extents ---- */

static void strides(void **state) {
    (void)state;
    /* Negative ones, and each axis one element too tight for the one below. */
    REFUSED(fixed_length, p.q.head_stride = -K, GDN_ERROR_STRIDE, "q");
    REFUSED(fixed_length, p.q.token_stride = -(H * K), GDN_ERROR_STRIDE, "q");
    REFUSED(fixed_length, p.q.batch_stride = PTRDIFF_MIN + 1, GDN_ERROR_STRIDE, "q");
    REFUSED(everything, p.k_read.token_stride = H * K - 1, GDN_ERROR_STRIDE, "k_read");
    REFUSED(everything, p.erase.head_stride = K - 1, GDN_ERROR_STRIDE, "erase");
    REFUSED(everything, p.gv.head_stride = V - 1, GDN_ERROR_STRIDE, "gv");
    REFUSED(everything, p.token_mask.token_stride = -1, GDN_ERROR_STRIDE, "token_mask");
    REFUSED(fixed_length, (p.token_mask.data = (const uint8_t *)m.packed, p.token_mask.batch_stride = STEPS - 1),
            GDN_ERROR_STRIDE, "token_mask");
    /* Only what is read can be one element for a whole axis. */
    REFUSED(fixed_length, p.o.head_stride = GDN_BROADCAST, GDN_ERROR_STRIDE, "o");
    REFUSED(fixed_length, p.o.token_stride = GDN_BROADCAST, GDN_ERROR_STRIDE, "o");
    REFUSED(fixed_length, p.o.batch_stride = GDN_BROADCAST, GDN_ERROR_STRIDE, "o");
    REFUSED(identity_slots, p.initial_state_source.slot_stride = GDN_BROADCAST, GDN_ERROR_STRIDE,
            "initial_state_source");
    REFUSED(cached, p.intermediate_states_buffer.step_stride = GDN_BROADCAST, GDN_ERROR_STRIDE,
            "intermediate_states_buffer");
    REFUSED(cached, p.initial_state_indices.row_stride = GDN_BROADCAST, GDN_ERROR_STRIDE, "initial_state_indices");
    REFUSED(fixed_length, p.A_log.token_stride = GDN_BROADCAST, GDN_ERROR_STRIDE, "A_log");
    REFUSED(fixed_length, (p.q.head_stride = GDN_BROADCAST, p.q.token_stride = K - 1), GDN_ERROR_STRIDE, "q");
    REFUSED(fixed_length, p.q.head_stride = K - 1, GDN_ERROR_STRIDE, "q");
    REFUSED(fixed_length, p.k.token_stride = H * K - 1, GDN_ERROR_STRIDE, "k");
    REFUSED(fixed_length, p.k.batch_stride = STEPS * H * K - 1, GDN_ERROR_STRIDE, "k");
    REFUSED(fixed_length, p.v.head_stride = V - 1, GDN_ERROR_STRIDE, "v");
    REFUSED(fixed_length, p.v.token_stride = HV * V - 1, GDN_ERROR_STRIDE, "v");
    REFUSED(fixed_length, p.v.batch_stride = 1, GDN_ERROR_STRIDE, "v");
    REFUSED(fixed_length, p.a.token_stride = HV - 1, GDN_ERROR_STRIDE, "a");
    REFUSED(fixed_length, (p.is_kda = true, p.a.head_stride = K - 1), GDN_ERROR_STRIDE, "a");
    REFUSED(fixed_length, p.b.token_stride = HV - 1, GDN_ERROR_STRIDE, "b");
    REFUSED(fixed_length, (p.beta_per_column = true, p.b.head_stride = V - 1), GDN_ERROR_STRIDE, "b");
    REFUSED(fixed_length, p.o.head_stride = V - 1, GDN_ERROR_STRIDE, "o");
    REFUSED(fixed_length, p.o.token_stride = HV * V - 1, GDN_ERROR_STRIDE, "o");
    REFUSED(fixed_length, p.o.batch_stride = STEPS * HV * V - 1, GDN_ERROR_STRIDE, "o");
    REFUSED(fixed_length, p.o.token_stride = -1, GDN_ERROR_STRIDE, "o");
    REFUSED(identity_slots, p.initial_state_source.head_stride = K * V - 1, GDN_ERROR_STRIDE, "initial_state_source");
    REFUSED(identity_slots, p.initial_state_source.slot_stride = STATE - 1, GDN_ERROR_STRIDE, "initial_state_source");
    REFUSED(identity_slots, p.initial_state_source.slot_stride = -STATE, GDN_ERROR_STRIDE, "initial_state_source");
    REFUSED(cached, p.intermediate_states_buffer.head_stride = K * V - 1, GDN_ERROR_STRIDE,
            "intermediate_states_buffer");
    REFUSED(cached, p.intermediate_states_buffer.step_stride = STATE - 1, GDN_ERROR_STRIDE,
            "intermediate_states_buffer");
    REFUSED(cached, p.intermediate_states_buffer.row_stride = STEPS * STATE - 1, GDN_ERROR_STRIDE,
            "intermediate_states_buffer");
    REFUSED(cached, p.intermediate_states_buffer.row_stride = -1, GDN_ERROR_STRIDE, "intermediate_states_buffer");
    REFUSED(varlen, p.cu_seqlens.row_stride = -1, GDN_ERROR_STRIDE, "cu_seqlens");
    REFUSED(pooled, p.initial_state_indices.row_stride = -1, GDN_ERROR_STRIDE, "initial_state_indices");
    REFUSED(read_and_written, p.output_state_indices.row_stride = -1, GDN_ERROR_STRIDE, "output_state_indices");
    REFUSED(cached, p.intermediate_state_indices.row_stride = -1, GDN_ERROR_STRIDE, "intermediate_state_indices");
    REFUSED(tree, p.retrieve_parent_token.row_stride = STEPS - 1, GDN_ERROR_STRIDE, "retrieve_parent_token");
    REFUSED(step_slots, p.ssm_state_indices.row_stride = STEPS - 1, GDN_ERROR_STRIDE, "ssm_state_indices");
    REFUSED(step_slots, p.num_accepted_tokens.row_stride = -1, GDN_ERROR_STRIDE, "num_accepted_tokens");

    /* Axes that the tensor does not have. */
    REFUSED(fixed_length, p.A_log.batch_stride = HV, GDN_ERROR_STRIDE, "A_log");
    REFUSED(fixed_length, p.A_log.token_stride = HV, GDN_ERROR_STRIDE, "A_log");
    REFUSED(fixed_length, p.A_log.head_stride = -1, GDN_ERROR_STRIDE, "A_log");
    REFUSED(fixed_length, p.dt_bias.batch_stride = HV, GDN_ERROR_STRIDE, "dt_bias");
    REFUSED(fixed_length, p.dt_bias.token_stride = HV, GDN_ERROR_STRIDE, "dt_bias");
    REFUSED(fixed_length, (p.is_kda = true, p.dt_bias.head_stride = K - 1), GDN_ERROR_STRIDE, "dt_bias");

    /* Room between rows, and axes in another order: heads outermost, batch innermost. */
    ACCEPTED(fixed_length, p.v.head_stride = V + 1);
    ACCEPTED(fixed_length, (p.A_log.head_stride = 2, p.dt_bias.head_stride = 2));
    ACCEPTED(fixed_length, (p.q.token_stride = K, p.q.batch_stride = STEPS * K, p.q.head_stride = TOKENS * K));
    ACCEPTED(fixed_length, (p.o.batch_stride = V, p.o.head_stride = BATCH * V, p.o.token_stride = HV * BATCH * V));
    ACCEPTED(identity_slots, p.initial_state_source.slot_stride = STATE + 1);
    /* The same orders, one element too tight. */
    REFUSED(fixed_length, (p.q.token_stride = K, p.q.batch_stride = STEPS * K, p.q.head_stride = TOKENS * K - 1),
            GDN_ERROR_STRIDE, "q");
    REFUSED(fixed_length, (p.o.batch_stride = V, p.o.head_stride = BATCH * V - 1, p.o.token_stride = HV * BATCH * V),
            GDN_ERROR_STRIDE, "o");
}

static void extents(void **state) {
    (void)state;
    REFUSED(fixed_length, p.head_k_dim = PTRDIFF_MAX, GDN_ERROR_OVERFLOW, "q");
    REFUSED(fixed_length, p.head_v_dim = PTRDIFF_MAX, GDN_ERROR_OVERFLOW, "v");
    REFUSED(fixed_length, p.head_v_dim = PTRDIFF_MAX / (TOKENS * HV), GDN_ERROR_OVERFLOW, "v");
    REFUSED(fixed_length, p.seq_len = PTRDIFF_MAX, GDN_ERROR_OVERFLOW, "a");
    REFUSED(fixed_length, p.batch_size = PTRDIFF_MAX, GDN_ERROR_OVERFLOW, "a");
    REFUSED(fixed_length, p.num_value_heads = PTRDIFF_MAX - 1, GDN_ERROR_OVERFLOW, "A_log");
    /* The elements fit, their bytes do not. */
    REFUSED(fixed_length, p.q.batch_stride = PTRDIFF_MAX, GDN_ERROR_OVERFLOW, "q");
    REFUSED(fixed_length, p.k.batch_stride = PTRDIFF_MAX / 4, GDN_ERROR_OVERFLOW, "k");
    REFUSED(fixed_length, p.v.token_stride = PTRDIFF_MAX / 2, GDN_ERROR_OVERFLOW, "v");
    REFUSED(fixed_length, p.b.head_stride = PTRDIFF_MAX / 3, GDN_ERROR_OVERFLOW, "b");
    REFUSED(fixed_length, p.o.batch_stride = PTRDIFF_MAX / 4, GDN_ERROR_OVERFLOW, "o");
    REFUSED(fixed_length, p.A_log.head_stride = PTRDIFF_MAX / 2, GDN_ERROR_OVERFLOW, "A_log");
    REFUSED(identity_slots, p.initial_state_source.num_states = PTRDIFF_MAX / STATE, GDN_ERROR_OVERFLOW,
            "initial_state_source");
    REFUSED(identity_slots, p.initial_state_source.slot_stride = PTRDIFF_MAX / SLOTS, GDN_ERROR_OVERFLOW,
            "initial_state_source");
    REFUSED(cached, p.intermediate_states_buffer.num_rows = PTRDIFF_MAX / STATE, GDN_ERROR_OVERFLOW,
            "intermediate_states_buffer");
    REFUSED(cached, p.intermediate_states_buffer.num_steps = PTRDIFF_MAX, GDN_ERROR_OVERFLOW,
            "intermediate_states_buffer");
    REFUSED(cached, p.intermediate_states_buffer.row_stride = PTRDIFF_MAX / 4, GDN_ERROR_OVERFLOW,
            "intermediate_states_buffer");
    /* No token, and still too much: scratch for one K row, work items. */
    REFUSED(fixed_length, (p.batch_size = 1, p.seq_len = 0, p.head_k_dim = PTRDIFF_MAX / 4), GDN_ERROR_OVERFLOW,
            "head_k_dim");
    REFUSED(fixed_length, (p.batch_size = PTRDIFF_MAX / 2, p.seq_len = 0), GDN_ERROR_OVERFLOW, "num_seqs");
    REFUSED(varlen, p.num_seqs = PTRDIFF_MAX, GDN_ERROR_OVERFLOW, "cu_seqlens");
    REFUSED(varlen, p.cu_seqlens.row_stride = PTRDIFF_MAX / 4, GDN_ERROR_OVERFLOW, "cu_seqlens");
    REFUSED(pooled, p.initial_state_indices.row_stride = PTRDIFF_MAX / 4, GDN_ERROR_OVERFLOW, "initial_state_indices");
    REFUSED(step_slots, (p.ssm_state_indices.num_columns = PTRDIFF_MAX), GDN_ERROR_OVERFLOW, "ssm_state_indices");
}

/* ---- cu_seqlens and the other index arrays ---- */

static void cumulative_lengths(void **state) {
    (void)state;
    REFUSED_AT(varlen, m.cu_seqlens[0] = 1, GDN_ERROR_CU_SEQLENS, "cu_seqlens", 0, -1);
    REFUSED_AT(varlen, m.cu_seqlens[0] = -1, GDN_ERROR_CU_SEQLENS, "cu_seqlens", 0, -1);
    REFUSED_AT(varlen, m.cu_seqlens[1] = -2, GDN_ERROR_CU_SEQLENS, "cu_seqlens", 1, -1);
    REFUSED_AT(varlen, m.cu_seqlens[2] = 1, GDN_ERROR_CU_SEQLENS, "cu_seqlens", 2, -1);
    REFUSED_AT(varlen, m.cu_seqlens[3] = 4, GDN_ERROR_CU_SEQLENS, "cu_seqlens", 3, -1);
    REFUSED_AT(varlen, m.cu_seqlens[3] = TOKENS + 1, GDN_ERROR_CU_SEQLENS, "cu_seqlens", 3, -1);
    REFUSED_AT(varlen, m.cu_seqlens[2] = INT32_MAX, GDN_ERROR_CU_SEQLENS, "cu_seqlens", 2, -1);
    REFUSED_AT(varlen, p.seq_len = 4, GDN_ERROR_CU_SEQLENS, "cu_seqlens", 2, -1);
    static int64_t wide[] = {0, 2, INT64_MAX, 6}, low[] = {0, 2, INT64_MIN, 6};
    REFUSED_AT(varlen, p.cu_seqlens = gdn_i64(wide), GDN_ERROR_CU_SEQLENS, "cu_seqlens", 2, -1);
    REFUSED_AT(varlen, p.cu_seqlens = gdn_i64(low), GDN_ERROR_CU_SEQLENS, "cu_seqlens", 2, -1);

    ACCEPTED(varlen, m.cu_seqlens[3] = 5);
    ACCEPTED(varlen, lengths(0, 6, 0));
    static const int64_t even[] = {0, 2, 4, 6};
    ACCEPTED(varlen, p.cu_seqlens = gdn_i64(even));
    /* Every second entry of a wider table, which has sentinels between them. */
    static const int32_t spread[] = {0, -7, 2, -7, 5, -7, 6};
    ACCEPTED(varlen, (p.cu_seqlens = gdn_i32(spread), p.cu_seqlens.row_stride = 2));
}

static void slots_out_of_range(void **state) {
    (void)state;
    REFUSED_AT(pooled, m.reads[2] = SLOTS, GDN_ERROR_INDEX, "initial_state_indices", 2, -1);
    REFUSED_AT(pooled, m.reads[0] = INT32_MAX, GDN_ERROR_INDEX, "initial_state_indices", 0, -1);
    REFUSED_AT(read_and_written, m.writes[1] = SLOTS, GDN_ERROR_INDEX, "output_state_indices", 1, -1);
    REFUSED_AT(read_and_written, m.reads[1] = SLOTS, GDN_ERROR_INDEX, "initial_state_indices", 1, -1);
    REFUSED_AT(identity_slots, p.initial_state_source.num_states = 2, GDN_ERROR_INDEX, "initial_state_source", 2, -1);
    REFUSED_AT(cached, m.rows[1] = ROWS, GDN_ERROR_INDEX, "intermediate_state_indices", 1, -1);
    REFUSED_AT(cached, (p.intermediate_state_indices.data = NULL, p.intermediate_states_buffer.num_rows = 2),
               GDN_ERROR_INDEX, "intermediate_states_buffer", 2, -1);
    REFUSED_AT(step_slots, m.slots[1 * STEPS + 2] = SLOTS, GDN_ERROR_INDEX, "ssm_state_indices", 5, -1);
    REFUSED_AT(two_pools, p.output_state_pool.num_states = SEQS - 1, GDN_ERROR_INDEX, "output_state_pool", SEQS - 1,
               -1);
    REFUSED_AT(two_pools, (p.output_state_indices = gdn_i32(m.writes), m.writes[1] = SEQS), GDN_ERROR_INDEX,
               "output_state_indices", 1, -1);
    REFUSED_AT(step_slots, (m.accepted[2] = 3, m.slots[2 * STEPS + 2] = SLOTS), GDN_ERROR_INDEX, "ssm_state_indices", 8,
               -1);
    static const int64_t far[] = {4, (int64_t)1 << 32, 2};
    REFUSED_AT(pooled, p.initial_state_indices = gdn_i64(far), GDN_ERROR_INDEX, "initial_state_indices", 1, -1);
    REFUSED_AT(read_and_written, (p.disable_state_update = true, m.reads[1] = SLOTS), GDN_ERROR_INDEX,
               "initial_state_indices", 1, -1);

    ACCEPTED(pooled, m.reads[2] = SLOTS - 1);
    ACCEPTED(pooled, (m.reads[0] = -1, m.reads[1] = -2, m.reads[2] = INT32_MIN));
    ACCEPTED(read_and_written, (m.reads[0] = -1, m.writes[1] = INT32_MIN));
    ACCEPTED(read_and_written, (m.writes[0] = m.writes[1] = m.writes[2] = -1));
    ACCEPTED(cached, (m.rows[0] = m.rows[1] = -1, m.rows[2] = INT32_MIN));
    ACCEPTED(step_slots, memset(m.slots, 0xff, sizeof m.slots));
    ACCEPTED(cached, p.intermediate_state_indices.data = NULL);
    ACCEPTED(cached, (p.intermediate_state_indices.data = NULL, p.intermediate_states_buffer.num_rows = SEQS));
    ACCEPTED(identity_slots, p.initial_state_source.num_states = SEQS);
    static const int64_t lowest[] = {4, INT64_MIN, 2};
    ACCEPTED(pooled, p.initial_state_indices = gdn_i64(lowest));
}

static void steps(void **state) {
    (void)state;
    /* Sequence 1 is the longest, with three tokens. */
    REFUSED_AT(cached, p.intermediate_states_buffer.num_steps = 2, GDN_ERROR_SIZE, "intermediate_states_buffer", 1, -1);
    REFUSED_AT(tree, p.retrieve_parent_token.num_columns = 2, GDN_ERROR_SIZE, "retrieve_parent_token", 1, -1);
    REFUSED_AT(step_slots, p.ssm_state_indices.num_columns = 2, GDN_ERROR_SIZE, "ssm_state_indices", 1, -1);
    REFUSED_AT(two_pools, (p.ssm_state_indices = gdn_indices_of(m.slots, GDN_I32, 1), p.step_interval = 1),
               GDN_ERROR_SIZE, "ssm_state_indices", 0, -1);
    REFUSED_AT(cached, (lengths(1, 5, 0), p.step_interval = 2, p.intermediate_states_buffer.num_steps = 1),
               GDN_ERROR_SIZE, "intermediate_states_buffer", 1, -1);
    ACCEPTED(cached, (lengths(1, 5, 0), p.step_interval = 2, p.intermediate_states_buffer.num_steps = 2));
    ACCEPTED(cached, (lengths(1, 5, 0), p.step_interval = 3, p.intermediate_states_buffer.num_steps = 1));
    /* Parents: [-1 0 7] of two tokens, [-1 0 0] of three, [-1 9 9] of one. */
    REFUSED_AT(tree, m.parents[1 * STEPS + 1] = 1, GDN_ERROR_INDEX, "retrieve_parent_token", 4, -1);
    REFUSED_AT(tree, m.parents[1 * STEPS + 2] = 2, GDN_ERROR_INDEX, "retrieve_parent_token", 5, -1);
    REFUSED_AT(tree, m.parents[1 * STEPS + 2] = INT32_MAX, GDN_ERROR_INDEX, "retrieve_parent_token", 5, -1);
    REFUSED_AT(tree, m.parents[1 * STEPS + 2] = -1, GDN_ERROR_INDEX, "retrieve_parent_token", 5, -1);
    REFUSED_AT(tree, m.parents[0 * STEPS + 1] = INT32_MIN, GDN_ERROR_INDEX, "retrieve_parent_token", 1, -1);
    REFUSED_AT(step_slots, m.accepted[0] = 0, GDN_ERROR_INDEX, "num_accepted_tokens", 0, -1);
    REFUSED_AT(step_slots, m.accepted[1] = -1, GDN_ERROR_INDEX, "num_accepted_tokens", 1, -1);
    REFUSED_AT(step_slots, m.accepted[2] = STEPS + 1, GDN_ERROR_INDEX, "num_accepted_tokens", 2, -1);
    REFUSED_AT(step_slots, m.accepted[2] = INT32_MIN, GDN_ERROR_INDEX, "num_accepted_tokens", 2, -1);

    ACCEPTED(tree, m.parents[1 * STEPS + 2] = 1);
    ACCEPTED(cached, (m.rows[1] = -1, p.intermediate_states_buffer.num_steps = 2));
    ACCEPTED(tree, (m.rows[1] = -1, m.parents[1 * STEPS + 2] = 7));
    ACCEPTED(step_slots, m.accepted[2] = STEPS);
    ACCEPTED(step_slots, (lengths(0, 3, 1), m.accepted[0] = 0));
    ACCEPTED(step_slots, (lengths(0, 3, 1), m.accepted[0] = STEPS + 1));
}

/* A plan has no addresses: what has a dtype is there. */
static void plans(void **state) {
    (void)state;
    static void (*const calls[])(void) = {fixed_length, varlen, identity_slots, read_and_written, two_pools,
                                          cached,       tree,   step_slots,     everything};
    gdn_error error;
    for (size_t i = 0; i < COUNT(calls); i++) {
        calls[i]();
        gdn_tensor *const tensors[] = {&p.A_log, &p.a, &p.dt_bias, &p.q, &p.k, &p.v, &p.b, &p.k_read, &p.erase, &p.gv};
        gdn_indices *const indices[] = {&p.cu_seqlens,
                                        &p.initial_state_indices,
                                        &p.output_state_indices,
                                        &p.intermediate_state_indices,
                                        &p.retrieve_parent_token,
                                        &p.ssm_state_indices,
                                        &p.num_accepted_tokens};
        for (size_t j = 0; j < COUNT(tensors); j++) tensors[j]->data = NULL;
        for (size_t j = 0; j < COUNT(indices); j++) indices[j]->data = NULL;
        p.o.data = p.initial_state_source.data = p.output_state_pool.data = p.intermediate_states_buffer.data = NULL;
        p.scratch = NULL;
        const gdn_params whole = p;
        assert_int_equal(gdn_validate_plan(&p, &error), GDN_OK);
        assert_int_not_equal(gdn_validate(&p, NULL), GDN_OK);
        p.a.dtype = p.A_log.dtype = p.dt_bias.dtype = p.b.dtype = GDN_DTYPE_NOT_SET; /* absent */
        assert_int_equal(gdn_validate_plan(&p, &error), GDN_OK);
        p.v.dtype = p.o.dtype = p.gv.dtype = GDN_DTYPE_NOT_SET, p.homogeneous = true;
        assert_int_equal(gdn_validate_plan(&p, &error), GDN_OK);
        p.homogeneous = false;
        assert_int_equal(gdn_validate_plan(&p, &error), GDN_ERROR_NULL);
        assert_string_equal(error.argument, "v");
        p = whole, p.k.dtype = GDN_DTYPE_NOT_SET;
        assert_int_equal(gdn_validate_plan(&p, &error), GDN_ERROR_NULL);
        assert_string_equal(error.argument, "k");
        p = whole, p.q.dtype = GDN_DTYPE_NOT_SET;
        assert_int_equal(gdn_validate_plan(&p, &error), GDN_ERROR_NULL);
        assert_string_equal(error.argument, "q");
        p = whole, p.v.dtype = GDN_F64;
        assert_int_equal(gdn_validate_plan(&p, &error), GDN_ERROR_ENUM);
        assert_string_equal(error.argument, "v");
        p = whole, p.num_value_heads = 2 * p.num_key_heads + 1;
        assert_int_equal(gdn_validate_plan(&p, &error), GDN_ERROR_SIZE);
        p = whole, p.k.token_stride = 1;
        assert_int_equal(gdn_validate_plan(&p, &error), GDN_ERROR_STRIDE);
        p = whole, p.scale = -1;
        assert_int_equal(gdn_validate_plan(&p, &error), GDN_ERROR_VALUE);
    }
    assert_int_equal(gdn_validate_plan(NULL, &error), GDN_ERROR_NULL);
}

static void conflicts(void **state) {
    (void)state;
    /* Written twice. */
    REFUSED_AT(pooled, m.reads[2] = m.reads[0], GDN_ERROR_CONFLICT, "initial_state_indices", 2, 0);
    REFUSED_AT(pooled, m.reads[1] = m.reads[0], GDN_ERROR_CONFLICT, "initial_state_indices", 1, 0);
    REFUSED_AT(pooled, m.reads[2] = m.reads[1], GDN_ERROR_CONFLICT, "initial_state_indices", 2, 1);
    REFUSED_AT(read_and_written, m.writes[2] = m.writes[0], GDN_ERROR_CONFLICT, "output_state_indices", 2, 0);
    /* Written by one, read by another, from slots 4 0 2 to slots 1 0 5: the later writes; the later reads. */
    REFUSED_AT(read_and_written, m.writes[2] = m.reads[0], GDN_ERROR_CONFLICT, "output_state_indices", 2, 0);
    REFUSED_AT(read_and_written, m.reads[2] = m.writes[0], GDN_ERROR_CONFLICT, "initial_state_indices", 2, 0);
    REFUSED_AT(read_and_written, m.reads[1] = m.writes[0], GDN_ERROR_CONFLICT, "initial_state_indices", 1, 0);
    /* The same where slot n is read without an index array. */
    REFUSED_AT(read_and_written, (p.initial_state_indices.data = NULL, m.writes[0] = 3, m.writes[1] = 0),
               GDN_ERROR_CONFLICT, "output_state_indices", 1, 0);
    REFUSED_AT(read_and_written, (p.initial_state_indices.data = NULL, m.writes[0] = 2, m.writes[1] = 1),
               GDN_ERROR_CONFLICT, "initial_state_source", 2, 0);
    /* One row of the cache for two sequences. */
    REFUSED_AT(cached, m.rows[2] = m.rows[0], GDN_ERROR_CONFLICT, "intermediate_state_indices", 2, 0);
    REFUSED_AT(cached, m.rows[1] = m.rows[0], GDN_ERROR_CONFLICT, "intermediate_state_indices", 1, 0);
    REFUSED_AT(cached, m.rows[2] = m.rows[1], GDN_ERROR_CONFLICT, "intermediate_state_indices", 2, 1);
    REFUSED_AT(cached, (lengths(1, 1, 1), m.rows[1] = m.rows[0]), GDN_ERROR_CONFLICT, "intermediate_state_indices", 1,
               0);
    /* Step slots [0 1 .] [2 3 4] [5 . .], started from columns 1, 0, 0: written twice, then read and written. */
    REFUSED_AT(step_slots, m.slots[1 * STEPS + 1] = m.slots[1], GDN_ERROR_CONFLICT, "ssm_state_indices", 4, 1);
    REFUSED_AT(step_slots, m.slots[1 * STEPS] = m.slots[0], GDN_ERROR_CONFLICT, "ssm_state_indices", 3, 0);
    REFUSED_AT(step_slots, (m.accepted[2] = 3, m.slots[2 * STEPS + 2] = 4), GDN_ERROR_CONFLICT, "ssm_state_indices", 8,
               5);
    REFUSED_AT(step_slots, (m.accepted[0] = 3, m.slots[2] = 3), GDN_ERROR_CONFLICT, "ssm_state_indices", 4, 2);

    /* The start slots in an array of their own. */
    REFUSED_AT(step_slots,
               (p.num_accepted_tokens.data = NULL, p.initial_state_indices = gdn_i32(m.reads), m.reads[0] = 0,
                m.reads[1] = 2, m.reads[2] = 1),
               GDN_ERROR_CONFLICT, "initial_state_indices", 2, 1);
    REFUSED_AT(step_slots,
               (p.num_accepted_tokens.data = NULL, p.initial_state_indices = gdn_i32(m.reads), m.reads[0] = 4,
                m.reads[1] = 2, m.reads[2] = 5),
               GDN_ERROR_CONFLICT, "ssm_state_indices", 5, 0);
    /* And the slots of the final states: [0 1 .] [2 3 4] [5 . .] for the steps. */
    REFUSED_AT(step_slots, (p.output_state_indices = gdn_i32(m.writes), m.writes[0] = -1, m.writes[1] = 1),
               GDN_ERROR_CONFLICT, "output_state_indices", 1, 1);
    REFUSED_AT(step_slots, (p.output_state_indices = gdn_i32(m.writes), m.writes[0] = 3), GDN_ERROR_CONFLICT,
               "ssm_state_indices", 4, 0);
    REFUSED_AT(step_slots,
               (p.output_state_indices = gdn_i32(m.writes), m.writes[0] = m.writes[1] = 6, m.writes[2] = -1),
               GDN_ERROR_CONFLICT, "output_state_indices", 1, 0);
    ACCEPTED(step_slots,
             (p.output_state_indices = gdn_i32(m.writes), m.writes[0] = 1, m.writes[1] = 6, m.writes[2] = -1));
    ACCEPTED(step_slots,
             (p.output_state_indices = gdn_i32(m.writes), m.writes[0] = 0, m.writes[1] = 2, m.writes[2] = 5));
    /* Two pools. */
    REFUSED_AT(two_pools, (p.output_state_indices = gdn_i32(m.writes), m.writes[0] = m.writes[2] = 1),
               GDN_ERROR_CONFLICT, "output_state_indices", 2, 0);
    ACCEPTED(two_pools, m.reads[0] = m.reads[1] = m.reads[2]);
    ACCEPTED(two_pools, (p.initial_state_source.data = NULL, p.initial_state_indices.data = NULL));

    /* Nothing is written, or nothing is read, or by the same sequence. */
    ACCEPTED(pooled, (p.disable_state_update = true, m.reads[0] = m.reads[1] = m.reads[2] = 4));
    ACCEPTED(read_and_written, (p.disable_state_update = true, m.reads[0] = m.reads[1] = 4, m.writes[0] = m.writes[1]));
    ACCEPTED(read_and_written, m.reads[0] = m.reads[2]);
    ACCEPTED(read_and_written, m.writes[2] = m.reads[2]);
    ACCEPTED(step_slots, m.slots[1 * STEPS + 1] = m.slots[1 * STEPS]);
    ACCEPTED(pooled, m.reads[0] = m.reads[2] = -1);
    ACCEPTED(read_and_written, m.writes[0] = m.writes[2] = -1);
    ACCEPTED(cached, m.rows[0] = m.rows[2] = -1);
    ACCEPTED(pooled, (p.has_null_slot = true, p.null_slot = 4, m.reads[0] = m.reads[1] = m.reads[2] = 4));
    ACCEPTED(read_and_written, (p.has_null_slot = true, p.null_slot = 5, m.writes[0] = m.writes[1] = 5));
    ACCEPTED(pooled, (p.has_null_slot = true, p.null_slot = SLOTS, m.reads[0] = m.reads[1] = SLOTS));
    ACCEPTED(step_slots, (p.has_null_slot = true, p.null_slot = 0, m.slots[1] = m.slots[4] = m.slots[6] = 0));
    /* Empty sequences use nothing; neither do columns past the end of a sequence. */
    ACCEPTED(pooled, (lengths(0, 3, 1), m.reads[0] = m.reads[1]));
    ACCEPTED(pooled, (lengths(2, 3, 0), m.reads[2] = m.reads[1]));
    ACCEPTED(read_and_written, (lengths(0, 3, 1), m.writes[0] = m.reads[1]));
    ACCEPTED(cached, (lengths(2, 0, 1), m.rows[1] = m.rows[0]));
    ACCEPTED(step_slots, m.slots[2] = m.slots[3]);
    ACCEPTED(step_slots, (lengths(0, 3, 1), m.slots[0] = m.slots[3]));
}

/* ---- Many sequences, far slots ---- */

/* MANY sequences of one token, one head and one number, over a random permutation of slots. */
static void many(void) {
    fixed_length();
    uint64_t random = 88172645463325252u;
    static int64_t slots[2 * MANY];
    for (int i = 0; i < 2 * MANY; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        size_t j = (size_t)(random >> 33) % (size_t)(i + 1);
        slots[i] = slots[j];
        slots[j] = i;
    }
    for (int n = 0; n < MANY; n++) {
        m.many_cu_seqlens[n] = n;
        m.many_reads[n] = slots[n];
        m.many_writes[n] = slots[MANY + n];
    }
    m.many_cu_seqlens[MANY] = MANY;
    p.batch_size = p.num_key_heads = p.num_value_heads = p.head_k_dim = p.head_v_dim = 1;
    p.seq_len = p.num_seqs = MANY;
    p.cu_seqlens = gdn_i64(m.many_cu_seqlens);
    p.a = p.q = p.k = p.v = p.b = gdn_f32(m.many_inputs);
    p.o = gdn_out_f32(m.many_outputs);
    p.initial_state_source = gdn_pool_of(m.many_states, GDN_F32, 2 * MANY);
    p.state_layout = GDN_STATE_KV;
    p.initial_state_indices = gdn_i64(m.many_reads);
}

static void many_read_and_written(void) {
    many();
    p.output_state_indices = gdn_i64(m.many_writes);
}

/* A pool too large to exist, at an address that nothing else of the call can reach: validation reads no tensor. */
static void far_slots(void) {
    many();
    p.initial_state_source = gdn_pool_of((void *)(UINTPTR_MAX / 4 * 3), GDN_BF16, (ptrdiff_t)1000 * 1000 * 1000 * 1000);
    for (int n = 0; n < MANY; n++) m.many_reads[n] *= 250 * 1000 * 1000 - 1;
}

static void distances_between_slots(void **state) {
    (void)state;
    for (int bit = 0; bit < 40; bit++)
        for (int64_t slot = ((int64_t)1 << bit) - 1; slot <= ((int64_t)1 << bit) + 1; slot++) {
            if (slot < 2) continue;
            VALID(far_slots, (p.num_seqs = 3, m.many_reads[0] = 0, m.many_reads[1] = slot - 1, m.many_reads[2] = slot));
            REFUSED_AT(far_slots, (p.num_seqs = 3, m.many_reads[0] = 0, m.many_reads[1] = m.many_reads[2] = slot),
                       GDN_ERROR_CONFLICT, "initial_state_indices", 2, 1);
            /* One reads what another writes. */
            REFUSED_AT(far_slots,
                       (p.num_seqs = 2, p.output_state_indices = gdn_i64(m.many_writes), m.many_reads[0] = 1,
                        m.many_reads[1] = m.many_writes[0] = slot, m.many_writes[1] = 0),
                       GDN_ERROR_CONFLICT, "initial_state_indices", 1, 0);
            /* And where it is the last one of the pool. */
            VALID(far_slots, (p.num_seqs = 3, p.initial_state_source.num_states = (ptrdiff_t)slot + 1,
                              m.many_reads[0] = 0, m.many_reads[1] = slot - 1, m.many_reads[2] = slot));
            REFUSED_AT(far_slots,
                       (p.num_seqs = 2, p.initial_state_source.num_states = (ptrdiff_t)slot + 1,
                        m.many_reads[0] = m.many_reads[1] = slot),
                       GDN_ERROR_CONFLICT, "initial_state_indices", 1, 0);
        }
}

static void many_sequences(void **state) {
    (void)state;
    ACCEPTED(many, UNCHANGED);
    ACCEPTED(many_read_and_written, UNCHANGED);
    ACCEPTED(many_read_and_written, memcpy(m.many_writes, m.many_reads, sizeof m.many_writes));
    VALID(far_slots, UNCHANGED);
    REFUSED_AT(many, m.many_reads[MANY - 1] = m.many_reads[0], GDN_ERROR_CONFLICT, "initial_state_indices", MANY - 1,
               0);
    REFUSED_AT(many, m.many_reads[1777] = m.many_reads[333], GDN_ERROR_CONFLICT, "initial_state_indices", 1777, 333);
    REFUSED_AT(many, m.many_reads[1778] = m.many_reads[1777], GDN_ERROR_CONFLICT, "initial_state_indices", 1778, 1777);
    REFUSED_AT(many_read_and_written, m.many_writes[1777] = m.many_writes[333], GDN_ERROR_CONFLICT,
               "output_state_indices", 1777, 333);
    REFUSED_AT(many_read_and_written, m.many_writes[1777] = m.many_reads[333], GDN_ERROR_CONFLICT,
               "output_state_indices", 1777, 333);
    REFUSED_AT(many_read_and_written, m.many_reads[1777] = m.many_writes[333], GDN_ERROR_CONFLICT,
               "initial_state_indices", 1777, 333);
    REFUSED_AT(far_slots, m.many_reads[1777] = m.many_reads[333], GDN_ERROR_CONFLICT, "initial_state_indices", 1777,
               333);
    REFUSED_AT(far_slots, m.many_reads[1] = p.initial_state_source.num_states, GDN_ERROR_INDEX, "initial_state_indices",
               1, -1);
    ACCEPTED(many_read_and_written, m.many_reads[1777] = m.many_reads[333]);
    ACCEPTED(many, (p.has_null_slot = true, p.null_slot = m.many_reads[9], m.many_reads[1777] = m.many_reads[9]));
}

/* ---- Overlap ---- */

static gdn_indices moved(gdn_indices x, void *to, size_t bytes) {
    memcpy(to, x.data, bytes);
    x.data = to;
    return x;
}

static void output_overlaps(void **state) {
    (void)state;
    REFUSED(fixed_length, p.A_log.data = m.o, GDN_ERROR_OVERLAP, "o");
    REFUSED(fixed_length, p.a.data = m.o, GDN_ERROR_OVERLAP, "o");
    REFUSED(fixed_length, p.dt_bias.data = m.o, GDN_ERROR_OVERLAP, "o");
    REFUSED(fixed_length, p.q.data = m.o, GDN_ERROR_OVERLAP, "o");
    REFUSED(fixed_length, p.k.data = m.o, GDN_ERROR_OVERLAP, "o");
    REFUSED(fixed_length, p.v.data = m.o, GDN_ERROR_OVERLAP, "o");
    REFUSED(fixed_length, p.b.data = m.o, GDN_ERROR_OVERLAP, "o");
    REFUSED(everything, p.k_read.data = m.o, GDN_ERROR_OVERLAP, "o");
    REFUSED(everything, p.erase.data = m.o, GDN_ERROR_OVERLAP, "o");
    REFUSED(everything, p.gv.data = m.o, GDN_ERROR_OVERLAP, "o");
    REFUSED(everything, p.token_mask.data = (const uint8_t *)m.o, GDN_ERROR_OVERLAP, "o");
    REFUSED(fixed_length, (p.q.head_stride = p.q.token_stride = p.q.batch_stride = GDN_BROADCAST, p.q.data = m.o + 4),
            GDN_ERROR_OVERLAP, "o");
    ACCEPTED(fixed_length,
             (p.q.head_stride = p.q.token_stride = p.q.batch_stride = GDN_BROADCAST, p.q.data = m.o + TOKENS * HV * V));
    REFUSED(fixed_length, p.scratch = m.o, GDN_ERROR_OVERLAP, "o");
    REFUSED(fixed_length, (p.scratch = m.o, p.scratch_size = gdn_scratch_size(&p)), GDN_ERROR_OVERLAP, "o");
    REFUSED(fixed_length, (p.scratch = m.o, p.scratch_size = 1), GDN_ERROR_SCRATCH, "scratch");
    REFUSED(fixed_length, p.q.data = m.scratch, GDN_ERROR_OVERLAP, "scratch");
    REFUSED(cached, p.initial_state_source.data = m.scratch, GDN_ERROR_OVERLAP, "initial_state_source");
    REFUSED(cached, p.o.data = m.pool, GDN_ERROR_OVERLAP, "o");
    REFUSED(cached, p.o.data = m.pool + SLOTS * STATE - 1, GDN_ERROR_OVERLAP, "o");
    REFUSED(cached, (p.disable_state_update = true, p.o.data = m.pool), GDN_ERROR_OVERLAP, "o");
    REFUSED(cached, p.o.data = m.cache + STATE, GDN_ERROR_OVERLAP, "o");
    REFUSED(varlen, p.cu_seqlens = moved(p.cu_seqlens, m.o, sizeof m.cu_seqlens), GDN_ERROR_OVERLAP, "o");
    REFUSED(pooled, p.initial_state_indices = moved(p.initial_state_indices, m.o, sizeof m.reads), GDN_ERROR_OVERLAP,
            "o");
    REFUSED(read_and_written, p.output_state_indices = moved(p.output_state_indices, m.o, sizeof m.writes),
            GDN_ERROR_OVERLAP, "o");
    REFUSED(cached, p.intermediate_state_indices = moved(p.intermediate_state_indices, m.o, sizeof m.rows),
            GDN_ERROR_OVERLAP, "o");
    REFUSED(tree, p.retrieve_parent_token = moved(p.retrieve_parent_token, m.o, sizeof m.parents), GDN_ERROR_OVERLAP,
            "o");
    REFUSED(step_slots, p.ssm_state_indices = moved(p.ssm_state_indices, m.o, sizeof m.slots), GDN_ERROR_OVERLAP, "o");
    REFUSED(two_pools, p.output_state_pool.data = m.pool, GDN_ERROR_OVERLAP, "output_state_pool");
    REFUSED(two_pools, p.output_state_pool.data = m.o, GDN_ERROR_OVERLAP, "o");
    REFUSED(step_slots, p.num_accepted_tokens = moved(p.num_accepted_tokens, m.o, sizeof m.accepted), GDN_ERROR_OVERLAP,
            "o");

    /* By one element at either end, and by none. */
    REFUSED(fixed_length, p.o.data = m.q + TOKENS * H * K - 1, GDN_ERROR_OVERLAP, "o");
    ACCEPTED(fixed_length, p.o.data = m.q + TOKENS * H * K);
    REFUSED(fixed_length, (p.o.data = m.v, p.v.data = m.v + TOKENS * HV * V - 1), GDN_ERROR_OVERLAP, "o");
    ACCEPTED(fixed_length, (p.o.data = m.v, p.v.data = m.v + TOKENS * HV * V));
    ACCEPTED(cached, (lengths(0, 0, 0), p.seq_len = 0, p.o.data = m.pool + 1));
    ACCEPTED(varlen, (p.cu_seqlens = moved(p.cu_seqlens, m.packed, sizeof m.cu_seqlens),
                      p.o.data = (char *)m.packed + sizeof m.cu_seqlens));
    /* Inputs may share memory. */
    ACCEPTED(fixed_length, (p.k.data = p.q.data, p.a.data = p.b.data));
}

/* One row [q | k | v | o] for each token. */
static void packed_rows(void) {
    varlen();
    p.q.data = m.packed;
    p.k.data = m.packed + H * K;
    p.v.data = m.packed + 2 * H * K;
    p.o.data = m.packed + 2 * H * K + HV * V;
    p.q.token_stride = p.k.token_stride = p.v.token_stride = p.o.token_stride = PITCH;
}

enum { SLOT_PITCH = STATE + HV * V };

/* The output in the padding of the slots, one row in each; the second batch row does not fit there. */
static void output_between_slots(void) {
    fixed_length();
    p.initial_state_source = gdn_pool_of(m.pool, GDN_F32, BATCH * STEPS);
    p.initial_state_source.slot_stride = p.o.token_stride = SLOT_PITCH;
    p.state_layout = GDN_STATE_KV;
    p.o.data = m.pool + STATE;
    p.o.batch_stride = STEPS * SLOT_PITCH + HV * V;
}

/* The same between the steps of the cache, where the second row of the cache does not fit. */
static void output_between_steps(void) {
    cached();
    p.intermediate_states_buffer.step_stride = p.o.token_stride = SLOT_PITCH;
    p.intermediate_states_buffer.row_stride = STEPS * SLOT_PITCH + HV * V;
    p.o.data = m.cache + STATE;
}

static void output_between_inputs(void **state) {
    (void)state;
    ACCEPTED(packed_rows, UNCHANGED);
    REFUSED(packed_rows, p.o.data = m.packed + 2 * H * K + HV * V - 1, GDN_ERROR_OVERLAP, "o");
    REFUSED(packed_rows, p.o.data = m.packed + 2 * H * K + HV * V + 1, GDN_ERROR_OVERLAP, "o");
    REFUSED(packed_rows, p.o.data = m.packed + PITCH, GDN_ERROR_OVERLAP, "o");
    REFUSED(packed_rows, p.o.token_stride = PITCH + 1, GDN_ERROR_OVERLAP, "o");
    REFUSED(packed_rows, p.o.head_stride = V + 1, GDN_ERROR_OVERLAP, "o");
    REFUSED(output_between_slots, UNCHANGED, GDN_ERROR_OVERLAP, "o");
    REFUSED(output_between_steps, UNCHANGED, GDN_ERROR_OVERLAP, "o");
    REFUSED(packed_rows, p.k.head_stride = H * K + HV * V, GDN_ERROR_OVERLAP, "o");
    REFUSED(fixed_length,
            (p.batch_size = p.seq_len = 1, p.q.token_stride = p.o.token_stride = PTRDIFF_MAX, p.o.data = m.q + 1),
            GDN_ERROR_OVERLAP, "o");

    ACCEPTED(packed_rows, (p.v.data = m.packed + PITCH - HV * V, p.o.data = m.packed + 2 * H * K));
    static const int32_t one_token[] = {0, 1, 1, 1};
    ACCEPTED(packed_rows, (p.cu_seqlens = gdn_i32(one_token), p.seq_len = 1, p.o.data = m.packed + PITCH));
}

static void state_overlaps(void **state) {
    (void)state;
    REFUSED(pooled, p.A_log.data = m.pool, GDN_ERROR_OVERLAP, "initial_state_source");
    REFUSED(pooled, p.a.data = m.pool, GDN_ERROR_OVERLAP, "initial_state_source");
    REFUSED(pooled, p.dt_bias.data = m.pool, GDN_ERROR_OVERLAP, "initial_state_source");
    REFUSED(pooled, p.q.data = m.pool, GDN_ERROR_OVERLAP, "initial_state_source");
    REFUSED(pooled, p.k.data = m.pool + STATE, GDN_ERROR_OVERLAP, "initial_state_source");
    REFUSED(pooled, p.v.data = m.pool + SLOTS * STATE - 1, GDN_ERROR_OVERLAP, "initial_state_source");
    REFUSED(pooled, p.b.data = m.pool, GDN_ERROR_OVERLAP, "initial_state_source");
    REFUSED(pooled, p.cu_seqlens = moved(p.cu_seqlens, m.pool, sizeof m.cu_seqlens), GDN_ERROR_OVERLAP,
            "initial_state_source");
    REFUSED(pooled, p.initial_state_indices = moved(p.initial_state_indices, m.pool, sizeof m.reads), GDN_ERROR_OVERLAP,
            "initial_state_source");
    REFUSED(step_slots, p.ssm_state_indices = moved(p.ssm_state_indices, m.pool, sizeof m.slots), GDN_ERROR_OVERLAP,
            "initial_state_source");
    REFUSED(cached, p.intermediate_states_buffer.data = m.pool, GDN_ERROR_OVERLAP, "intermediate_states_buffer");
    REFUSED(cached, (p.disable_state_update = true, p.intermediate_states_buffer.data = m.pool + SLOTS * STATE - 1),
            GDN_ERROR_OVERLAP, "intermediate_states_buffer");
    REFUSED(cached, p.q.data = m.cache, GDN_ERROR_OVERLAP, "intermediate_states_buffer");
    REFUSED(cached, p.dt_bias.data = m.cache, GDN_ERROR_OVERLAP, "intermediate_states_buffer");
    REFUSED(cached, p.v.data = m.cache + ROWS * STEPS * STATE - 1, GDN_ERROR_OVERLAP, "intermediate_states_buffer");
    REFUSED(cached, p.intermediate_state_indices = moved(p.intermediate_state_indices, m.cache, sizeof m.rows),
            GDN_ERROR_OVERLAP, "intermediate_states_buffer");
    REFUSED(tree, p.retrieve_parent_token = moved(p.retrieve_parent_token, m.cache, sizeof m.parents),
            GDN_ERROR_OVERLAP, "intermediate_states_buffer");

    ACCEPTED(pooled, p.v.data = m.pool + SLOTS * STATE);
    ACCEPTED(cached, p.v.data = m.cache + ROWS * STEPS * STATE);
    /* A pool that is only read is one input among others. */
    ACCEPTED(pooled, (p.disable_state_update = true, p.q.data = m.pool));
    ACCEPTED(pooled, (p.disable_state_update = true, p.cu_seqlens = moved(p.cu_seqlens, m.pool, sizeof m.cu_seqlens)));
}

/* Addresses that would fault. */
static void unreachable_tensors(void) {
    fixed_length();
    gdn_tensor *const inputs[] = {&p.A_log, &p.a, &p.dt_bias, &p.q, &p.k, &p.v, &p.b};
    for (ptrdiff_t i = 0; i < COUNT(inputs); i++) inputs[i]->data = (const void *)((i + 1) << 16);
    p.o.data = (void *)((uintptr_t)100 << 16);
    p.initial_state_source = gdn_pool_of((void *)((uintptr_t)200 << 16), GDN_F16, SLOTS);
    p.intermediate_states_buffer = gdn_cache_of((void *)((uintptr_t)300 << 16), GDN_F16, ROWS, STEPS);
    p.state_layout = GDN_STATE_VK;
}

static void validation_reads_no_tensor(void **state) {
    (void)state;
    VALID(unreachable_tensors, UNCHANGED);
    REFUSED(unreachable_tensors, p.initial_state_source.data = p.o.data, GDN_ERROR_OVERLAP, "o");
}

/* ---- How to compute ---- */

static void instruction_sets(void **state) {
    (void)state;
    int missing = 0;
    for (gdn_isa isa = GDN_ISA_AUTO; isa < GDN_NUM_ISAS; isa = (gdn_isa)(isa + 1)) {
        if (gdn_isa_supported(isa)) {
            ACCEPTED(pooled, p.isa = isa);
        } else {
            REFUSED(pooled, p.isa = isa, GDN_ERROR_ISA, "isa");
            missing++;
        }
    }
    assert_true(missing > 0); /* no CPU has both AVX and NEON */
    assert_true(gdn_isa_supported(GDN_ISA_AUTO));
    assert_true(gdn_isa_supported(GDN_ISA_PLAIN));
    assert_true(gdn_isa_supported(gdn_isa_selected()));
    assert_int_not_equal(gdn_isa_selected(), GDN_ISA_AUTO);
}

static void scratch(void **state) {
    (void)state;
    REFUSED(fixed_length, p.scratch_size = 0, GDN_ERROR_SCRATCH, "scratch");
    REFUSED(fixed_length, p.scratch_size = gdn_scratch_size(&p) - 1, GDN_ERROR_SCRATCH, "scratch");
    REFUSED(tree, p.scratch_size = gdn_scratch_size(&p) - 1, GDN_ERROR_SCRATCH, "scratch");
    ACCEPTED(fixed_length, (p.scratch = NULL, p.scratch_size = 0));

    /* More than malloc() can give. */
    fixed_length();
    p.batch_size = 1;
    p.seq_len = 0;
    p.head_k_dim = (ptrdiff_t)1 << (sizeof(ptrdiff_t) * CHAR_BIT - 20);
    p.scratch = NULL;
    const gdn_error expected = {GDN_ERROR_SCRATCH, "scratch", -1, -1};
    check_valid(__LINE__, "a scratch of petabytes");
    check_call(__LINE__, "a scratch of petabytes", "gdn_fused_sigmoid_gating_delta_rule_update",
               gdn_fused_sigmoid_gating_delta_rule_update, &expected);

    for (size_t offset = 0; offset < 64; offset += 7) {
        ACCEPTED(tree, (p.scratch = m.scratch + offset, p.scratch_size = gdn_scratch_size(&p)));
        for (size_t i = 0; i < sizeof m.scratch; i++)
            if (i < offset || i >= offset + p.scratch_size) assert_int_equal(m.scratch[i], 0x5a);
    }
}

static void work_items(void **state) {
    (void)state;
    pooled();
    const ptrdiff_t count = gdn_num_work_items(&p);
    const size_t size = gdn_scratch_size(&p);
    assert_int_equal(count, SEQS * HV);
    const struct {
        ptrdiff_t first, last;
        void *scratch;
        size_t scratch_size;
        gdn_status status;
    } cases[] = {
        {-1, 1, m.scratch, size, GDN_ERROR_RANGE},
        {PTRDIFF_MIN, 0, m.scratch, size, GDN_ERROR_RANGE},
        {1, 0, m.scratch, size, GDN_ERROR_RANGE},
        {count, count - 1, m.scratch, size, GDN_ERROR_RANGE},
        {0, count + 1, m.scratch, size, GDN_ERROR_RANGE},
        {count + 1, count + 1, m.scratch, size, GDN_ERROR_RANGE},
        {0, PTRDIFF_MAX, m.scratch, size, GDN_ERROR_RANGE},
        {0, count, NULL, size, GDN_ERROR_SCRATCH},
        {0, count, m.scratch, size - 1, GDN_ERROR_SCRATCH},
        {count - 1, count, m.scratch, 0, GDN_ERROR_SCRATCH},
        {0, 0, m.scratch, size, GDN_OK},
        {count, count, m.scratch, size, GDN_OK},
    };
    memcpy(&before, &m, sizeof m);
    for (ptrdiff_t i = 0; i < COUNT(cases); i++) {
        gdn_status status =
            gdn_run_work_items(&p, cases[i].first, cases[i].last, cases[i].scratch, cases[i].scratch_size);
        assert_int_equal(status, cases[i].status);
        assert_memory_equal(&m, &before, sizeof m);
    }
    assert_int_equal(gdn_run_work_items(&p, 0, count, m.scratch, size), GDN_OK);
    assert_memory_not_equal(m.o, before.o, sizeof m.o);
    for (gdn_isa isa = GDN_ISA_AUTO; isa < GDN_NUM_ISAS; isa = (gdn_isa)(isa + 1)) {
        p.isa = isa;
        assert_int_equal(gdn_run_work_items(&p, 0, count, m.scratch, size),
                         gdn_isa_supported(isa) ? GDN_OK : GDN_ERROR_ISA);
    }
}

/* ---- What is computed before the recurrence ---- */

static gdn_prepared results;

static gdn_status prepare(const gdn_params *params, gdn_error *error) { return gdn_prepare(params, &results, error); }

/* All results, in the memory of the outputs and the cache; nothing else is there. */
static void preparing(void) {
    fixed_length();
    p.v.data = NULL;
    p.o.data = NULL;
    p.k_read = gdn_f32(m.k);
    results.g = gdn_out_f32(m.cache);
    results.decay = gdn_out_f32(m.cache + 100);
    results.beta = gdn_out_f32(m.cache + 200);
    results.q = gdn_out_f32(m.pool);
    results.k = gdn_out_f32(m.pool + TOKENS * H * K);
    results.k_read = gdn_out_f32(m.pool + 2 * TOKENS * H * K);
}

static void check_prepare(int line, const char *change, gdn_status status, const char *argument) {
    const gdn_error expected = {status, argument, -1, -1};
    memcpy(&before, &m, sizeof m);
    check_call(line, change, "gdn_prepare", prepare, &expected);
    if (status != GDN_OK && memcmp(&m, &before, sizeof m) != 0)
        explain(line, change, "memory was written", &expected, &expected);
}
#define PREPARE(change, status, argument)                                                                              \
    (preparing(), (void)(change), check_prepare(__LINE__, #change, status, argument))

static void prepared(void **state) {
    (void)state;
    const gdn_prepared none = {0};
    gdn_error error;
    PREPARE(UNCHANGED, GDN_OK, "");
    PREPARE(results = none, GDN_OK, "");
    PREPARE((p.compute = GDN_COMPUTE_F64, results.g.dtype = GDN_F64, results.decay.data = NULL), GDN_OK, "");
    PREPARE(p.scratch = NULL, GDN_OK, "");
    PREPARE(p.seq_len = 0, GDN_OK, "");
    PREPARE((p.seq_len = 0, p.q.data = p.k.data = p.a.data = p.A_log.data = p.dt_bias.data = NULL), GDN_OK, "");
    assert_int_equal(gdn_prepare(NULL, &results, &error), GDN_ERROR_NULL);
    assert_string_equal(error.argument, "params");
    assert_int_equal(gdn_prepare(&p, NULL, &error), GDN_ERROR_NULL);
    assert_string_equal(error.argument, "results");

    /* What is not asked for may be absent. */
    PREPARE(p.q.data = NULL, GDN_ERROR_NULL, "q");
    PREPARE((p.q.data = NULL, results.q.data = NULL), GDN_OK, "");
    PREPARE(p.k.data = NULL, GDN_ERROR_NULL, "k");
    PREPARE((p.k.data = NULL, results.k.data = NULL), GDN_OK, "");
    PREPARE((p.q.data = p.k.data = NULL, results.q.data = results.k.data = NULL), GDN_OK, "");
    PREPARE(p.k_read.data = NULL, GDN_ERROR_NULL, "k_read");
    PREPARE((p.k_read.data = NULL, results.k_read.data = NULL), GDN_OK, "");
    PREPARE(p.b.data = NULL, GDN_ERROR_NULL, "b");
    PREPARE((p.b.data = NULL, results.beta.data = NULL), GDN_OK, "");
    PREPARE(p.a.data = NULL, GDN_ERROR_NULL, "a");
    PREPARE((p.a.data = p.A_log.data = p.dt_bias.data = NULL), GDN_ERROR_NULL, "a");
    PREPARE((p.a.data = p.A_log.data = p.dt_bias.data = NULL, results.g.data = results.decay.data = NULL), GDN_OK, "");
    PREPARE(p.A_log.data = NULL, GDN_ERROR_NULL, "A_log");
    PREPARE((p.A_log.data = NULL, results.g.data = results.decay.data = NULL), GDN_OK, "");
    PREPARE((p.A_log.data = NULL, p.gate_input = GDN_GATE_LOG), GDN_OK, "");

    PREPARE(p.gate_input = GDN_GATE_DECAY, GDN_ERROR_COMBINATION, "results.g");
    PREPARE((p.gate_input = GDN_GATE_DECAY, results.g.data = NULL), GDN_OK, "");
    PREPARE(p.head_k_dim = 0, GDN_ERROR_SIZE, "head_k_dim");
    PREPARE(p.scale = -1, GDN_ERROR_VALUE, "scale");
    PREPARE(p.k.dtype = GDN_F64, GDN_ERROR_ENUM, "k");
    PREPARE(results.k.dtype = GDN_F64, GDN_ERROR_ENUM, "results.k");
    PREPARE(results.beta.dtype = GDN_DTYPE_NOT_SET, GDN_ERROR_ENUM, "results.beta");
    PREPARE(results.q.head_stride = K - 1, GDN_ERROR_STRIDE, "results.q");
    PREPARE(results.decay.token_stride = GDN_BROADCAST, GDN_ERROR_STRIDE, "results.decay");
    PREPARE(results.g.batch_stride = PTRDIFF_MAX, GDN_ERROR_OVERFLOW, "results.g");
    PREPARE(results.q.data = m.q, GDN_ERROR_OVERLAP, "results.q");
    PREPARE(results.k.data = m.pool, GDN_ERROR_OVERLAP, "results.q"); /* the first of two */
    PREPARE(results.beta.data = m.scratch, GDN_ERROR_OVERLAP, "scratch");
    PREPARE(p.scratch_size = gdn_scratch_size(&p) - 1, GDN_ERROR_SCRATCH, "scratch");
    PREPARE((p.seq_len = 0, p.batch_size = 1, p.head_k_dim = PTRDIFF_MAX / 4), GDN_ERROR_OVERFLOW, "head_k_dim");
    /* One token, or none of any number of sequences. */
    PREPARE((p.seq_len = 1, p.A_log.data = NULL), GDN_ERROR_NULL, "A_log");
    PREPARE((p.seq_len = 1, p.q.data = NULL), GDN_ERROR_NULL, "q");
    PREPARE((p.seq_len = 0, p.batch_size = (ptrdiff_t)1 << (sizeof(ptrdiff_t) * CHAR_BIT - 8)), GDN_OK, "");
    /* States and indices are not looked at, but for their sizes. */
    PREPARE(p.num_seqs = -3, GDN_ERROR_SIZE, "num_seqs");
    PREPARE((p.initial_state_source.num_states = 9, p.initial_state_source.data = m.o,
             p.homogeneous = p.has_null_slot = p.disable_state_update = true, p.rounding = GDN_ROUND_STATE,
             p.token_mask.data = (const uint8_t *)m.cache),
            GDN_OK, "");
}

/* ---- Names ---- */

/* What is asked before anything is validated: sizes of any kind. */
static void sizes_unchecked(void **state) {
    (void)state;
    static const ptrdiff_t values[] = {PTRDIFF_MIN, -1, 0, 1, 2, 3, PTRDIFF_MAX};
    ptrdiff_t *const sizes[] = {&p.batch_size,      &p.seq_len,    &p.num_seqs,  &p.num_key_heads,
                                &p.num_value_heads, &p.head_k_dim, &p.head_v_dim};
    uint64_t random = 1;
    assert_int_equal(gdn_num_work_items(NULL), 0);
    assert_int_equal(gdn_scratch_size(NULL), 0);
    assert_int_equal(gdn_run_work_items(NULL, 0, 0, m.scratch, sizeof m.scratch), GDN_ERROR_NULL);
    memset(&p, 0, sizeof p);
    assert_int_equal(gdn_num_work_items(&p), 0);
    assert_int_equal(gdn_scratch_size(&p), 0);
    assert_int_equal(gdn_run_work_items(&p, 0, 0, m.scratch, sizeof m.scratch), GDN_ERROR_SIZE);
    for (int i = 0; i < 20000; i++) {
        gdn_error error;
        pooled();
        for (size_t j = 0; j < COUNT(sizes); j++) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            *sizes[j] = values[(random >> 33) % COUNT(values)];
        }
        p.cu_seqlens.data = i % 2 == 0 ? NULL : m.cu_seqlens;
        p.compute = i % 4 < 2 ? test_compute() : GDN_COMPUTE_F64;
        const bool refused = gdn_validate(&p, &error) == GDN_ERROR_SIZE && error.index < 0;
        const ptrdiff_t items = gdn_num_work_items(&p);
        assert_true(items >= 0 && (!refused || items == 0));
        assert_true(!refused || gdn_scratch_size(&p) == 0);
    }
}

static void statuses(void **state) {
    (void)state;
    static const struct {
        gdn_status status;
        const char *name, *text;
    } all[] = {
#define ROW(code, text) {code, #code, text},
        GDN_STATUSES(ROW)
#undef ROW
    };
    assert_int_equal(COUNT(all), GDN_NUM_STATUSES);
    for (size_t i = 0; i < GDN_NUM_STATUSES; i++) {
        assert_int_equal(all[i].status, i);
        assert_string_equal(gdn_status_name(all[i].status), all[i].name);
        assert_string_equal(gdn_status_text(all[i].status), all[i].text);
    }
    static const int outside[] = {-1, GDN_NUM_STATUSES, INT_MAX, INT_MIN};
    for (ptrdiff_t i = 0; i < COUNT(outside); i++) {
        assert_string_equal(gdn_status_name((gdn_status)outside[i]), "?");
        assert_string_equal(gdn_status_text((gdn_status)outside[i]), "?");
        assert_string_equal(gdn_isa_name((gdn_isa)outside[i]), "?");
    }
    assert_string_equal(gdn_isa_name(GDN_ISA_AUTO), "auto");
    for (gdn_isa isa = GDN_ISA_AUTO; isa < GDN_NUM_ISAS; isa = (gdn_isa)(isa + 1))
        for (gdn_isa other = GDN_ISA_AUTO; other < isa; other = (gdn_isa)(other + 1))
            assert_string_not_equal(gdn_isa_name(isa), gdn_isa_name(other));
    assert_string_equal(gdn_isa_name(GDN_NUM_ISAS), "?");
    assert_int_equal(gdn_version(), GDN_VERSION);
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, reset_failures, report_failures)

int main(void) {
    test_banner("test_refused");
    guard_block block = guard_alloc(sizeof(struct memory), GUARD_AFTER);
    memory = (struct memory *)(void *)block.data;
    const struct CMUnitTest tests[] = {
        TEST(good_calls),
        TEST(required_pointers),
        TEST(null_params),
        TEST(sizes),
        TEST(enumerations),
        TEST(element_types),
        TEST(index_types),
        TEST(numbers),
        TEST(combinations),
        TEST(strides),
        TEST(extents),
        TEST(cumulative_lengths),
        TEST(slots_out_of_range),
        TEST(steps),
        TEST(plans),
        TEST(conflicts),
        TEST(distances_between_slots),
        TEST(many_sequences),
        TEST(output_overlaps),
        TEST(output_between_inputs),
        TEST(state_overlaps),
        TEST(validation_reads_no_tensor),
        TEST(instruction_sets),
        TEST(scratch),
        TEST(work_items),
        TEST(prepared),
        TEST(sizes_unchecked),
        TEST(statuses),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    guard_free(&block);
    return failed;
}
