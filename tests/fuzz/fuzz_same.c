/* Bytes to a small valid call: every instruction set gives the bits of the plain one, and those are within the stated
 * error of the float64 computation. Keys are normalised or short and gates decay, so that the recurrence itself does
 * not amplify an error. */
#define _POSIX_C_SOURCE 200809L /* setenv */
#include <math.h>

#include "input.h"
#include "compare.h"
#include "configs.h"
#include "run.h"
#include "test.h"

enum { SEQUENCES = 3, STEPS = 4 };

/* The data are drawn from a seed, which is part of the input. */
static void set_seed(input *b) {
    char seed[16];
    snprintf(seed, sizeof seed, "%d", input_byte(b));
    setenv("GDN_TEST_SEED", seed, 1);
}

static gdn_dtype draw_dtype(input *b) {
    static const gdn_dtype dtypes[] = {GDN_F32, GDN_BF16, GDN_F16};
    return INPUT_PICK(b, dtypes);
}

static void draw_options(input *b, gdn_params *p) {
    const int flags = input_byte(b);
    p->use_qk_l2norm_in_kernel = flags % 2 != 0;
    p->is_kda = flags / 2 % 2 != 0;
    p->beta_per_column = flags / 4 % 2 != 0;
    p->head_map = (gdn_head_map)(flags / 8 % 2);
    p->beta_input = (gdn_beta_input)(flags / 16 % 2);
    p->allow_neg_eigval = p->use_qk_l2norm_in_kernel && flags / 32 % 2 != 0;
    p->state_layout = flags / 64 % 2 ? GDN_STATE_VK : GDN_STATE_KV;
    p->compute = flags / 128 ? GDN_COMPUTE_F32_CHUNKS : GDN_COMPUTE_F32;
    p->gate_input = (gdn_gate_input)input_below(b, 3);
    p->has_lower_bound = p->gate_input == GDN_GATE_RAW && input_below(b, 3) == 1;
    p->lower_bound = p->has_lower_bound ? -0.05 * input_byte(b) : 0;
    p->l2norm_form = (gdn_l2norm_form)input_below(b, 4);
    p->l2norm_eps = 0.01 * input_below(b, 100);
    p->scale = 0.02 * input_below(b, 100);
    p->softplus_beta = 0.5 * input_below(b, 5);
    p->softplus_threshold = 0.25 * input_below(b, 100);
    p->padding = (gdn_padding)input_below(b, 3);
    gdn_dtype *const dtypes[] = {&p->A_log.dtype, &p->a.dtype, &p->dt_bias.dtype, &p->q.dtype,
                                 &p->k.dtype,     &p->v.dtype, &p->b.dtype,       &p->o.dtype};
    for (ptrdiff_t i = 0; i < COUNT(dtypes); i++) *dtypes[i] = draw_dtype(b);
}

/* What few systems have; the steps and slots of `config` are drawn before. A zero leaves everything as it is. */
static void draw_extras(input *b, call_config *config) {
    static const ptrdiff_t intervals[] = {1, 2, 3, 5};
    gdn_params *p = &config->p;
    const int kind = input_byte(b);
    if (kind == 0) return;
    const int absent = input_byte(b);
    const bool starts_at_step = config->ssm_state_indices.count > 0 && config->initial_state_indices.count == 0;
    if (kind % 2) p->k_read.dtype = draw_dtype(b);
    if (kind / 2 % 2) p->erase.dtype = draw_dtype(b);
    if (kind / 4 % 2) p->gv.dtype = draw_dtype(b);
    config->mask = kind / 8 % 2 != 0;
    p->read_before_decay = kind / 4 % 2 == 0 && kind / 16 % 2 != 0;
    if (kind / 32 % 2) p->rounding = (unsigned)input_below(b, 16);
    if (p->initial_state_source.num_states == 0) p->rounding &= ~(unsigned)GDN_ROUND_STATE;
    if (kind / 64 % 2 && !starts_at_step && config->retrieve_parent_token.count == 0)
        p->step_interval = INPUT_PICK(b, intervals);
    config->no_a = absent % 4 == 1;
    config->no_dt_bias = absent / 4 % 4 == 1;
    config->no_A_log = p->has_lower_bound && absent / 16 % 4 == 1;
}

static call *draw_call(input *b) {
    static const int dims[] = {1, 3, 4, 5, 8, 12, 15, 16, 17, 24, 31, 32, 33, 36, 48, 64, 65};
    call_config config = {.name = "drawn"};
    gdn_params *p = &config.p;
    p->num_key_heads = 1 + input_below(b, 2);
    p->num_value_heads = p->num_key_heads * (1 + input_below(b, 3));
    p->head_k_dim = INPUT_PICK(b, dims);
    p->head_v_dim = INPUT_PICK(b, dims);
    draw_options(b, p);
    config.no_b = !p->beta_per_column && input_below(b, 5) == 1;
    config.index_dtype = input_below(b, 2) ? GDN_I64 : GDN_I32;

    int lens[SEQUENCES], reads[SEQUENCES], writes[SEQUENCES], rows[SEQUENCES], slots[SEQUENCES * STEPS];
    int parents[SEQUENCES * STEPS], accepted[SEQUENCES], own[SEQUENCES], last[SEQUENCES];
    const int n = 1 + input_below(b, SEQUENCES);
    const bool varlen = input_below(b, 2) != 0;
    for (int i = 0; i < n; i++) {
        lens[i] = input_below(b, STEPS + 1);
        const int place = input_byte(b);
        reads[i] = place % 5 == 4 ? -1 : i;
        writes[i] = place / 5 % 3 == 1 ? n + i : reads[i];
        rows[i] = place / 15 % 4 == 1 ? -1 : n - 1 - i;
        accepted[i] = 1 + place % STEPS;
        own[i] = place % 5 == 4 ? -1 : i * STEPS + place % 3; /* of the slots of its steps */
        last[i] = place % 7 == 6 ? -1 : i * STEPS + place % 4;
        for (int j = 0; j < STEPS; j++) slots[i * STEPS + j] = place / 15 % 7 == j ? -1 : i * STEPS + j;
        for (int j = 0; j < STEPS; j++) parents[i * STEPS + j] = j == 0 ? 0 : input_below(b, j);
    }
    const int tail = varlen ? input_below(b, 3) : 0, states = input_byte(b);
    /* Several chunks, where no step is stored. */
    const bool chunks = p->compute == GDN_COMPUTE_F32_CHUNKS && states % 4 != 3 && states / 8 % 2 == 0;
    for (int i = 0; i < n && chunks; i++) lens[i] *= 9;
    if (varlen) {
        config.lens = (call_list){n, lens};
        config.tail = tail;
    } else {
        p->batch_size = n;
        p->seq_len = lens[0];
    }
    if (states % 4 != 0) {
        p->initial_state_source.num_states = n * STEPS + 1;
        p->initial_state_source.dtype = draw_dtype(b);
        p->disable_state_update = states / 64 % 4 == 1;
    }
    if (states % 4 == 2) config.initial_state_indices = (call_list){n, reads};
    if (states % 4 == 2 && states / 4 % 2) config.output_state_indices = (call_list){n, writes};
    if (states % 4 == 3) config.ssm_state_indices = (call_list){n * STEPS, slots};
    const bool starts_elsewhere = states % 4 == 3 && states / 4 % 2 == 0 && states / 128 != 0;
    if (states % 4 == 3 && states / 4 % 2) config.num_accepted_tokens = (call_list){n, accepted};
    if (starts_elsewhere) config.initial_state_indices = (call_list){n, own};
    if (starts_elsewhere && states / 16 % 2) config.output_state_indices = (call_list){n, last};
    if (states / 8 % 2) {
        p->intermediate_states_buffer.num_rows = n;
        p->intermediate_states_buffer.num_steps = STEPS;
        p->intermediate_states_buffer.dtype = draw_dtype(b);
        if (states / 16 % 2) config.intermediate_state_indices = (call_list){n, rows};
        if (states / 32 % 2) config.retrieve_parent_token = (call_list){n * STEPS, parents};
    }
    draw_extras(b, &config);
    /* Steps that start again from a rounded state differ by its rounding; so does whatever is rounded on the way. */
    const bool read_back = config.retrieve_parent_token.count > 0 && p->intermediate_states_buffer.dtype != GDN_F32;
    config.tolerance = read_back || p->rounding != 0 ? 0x1p-6 : USUAL_TOLERANCE;
    return call_new(&config);
}

/* The longest row of q or k that the recurrence sees. */
static double longest(const call *c, call_array which) {
    if (c->p.use_qk_l2norm_in_kernel) return 1;
    const ptrdiff_t *n = c->array[which].shape;
    double most = 0;
    for (ptrdiff_t i = 0; i < n[0] * n[1] * n[2]; i++) {
        double length = 0;
        for (ptrdiff_t j = 0; j < n[3]; j++)
            length = hypot(length, call_get(c, which, i / n[2] / n[1], i / n[2] % n[1], i % n[2], j));
        most = fmax(most, length);
    }
    return most;
}

static double largest(const call *c, call_array which) {
    const ptrdiff_t *n = c->array[which].shape;
    double most = 0;
    for (ptrdiff_t i = 0; i < n[0] * n[1] * n[2] * n[3]; i++) {
        const ptrdiff_t row = i / n[3] / n[2];
        most = fmax(most, fabs(call_get(c, which, row / n[1], row % n[1], i / n[3] % n[2], i % n[3])));
    }
    return most;
}

/* Every element is what a number within the stated error of the expected one rounds to. The error is relative to the
 * largest element; but these calls are so small that all elements can be sums that cancel, and the terms of one token
 * are then what to compare with. */
static void require_close(const call *actual, const call *oracle, call_array which) {
    const strided *s = &actual->array[which];
    if (!call_has(actual, which)) return;
    const double update = longest(oracle, CALL_K) * largest(oracle, CALL_V);
    const double before = call_has(oracle, CALL_POOL) ? largest(oracle, CALL_INITIAL_POOL) : 0;
    const double scale = oracle->p.scale == 0 ? 1 / sqrt((double)oracle->p.head_k_dim) : oracle->p.scale;
    const double term = fmax(before, update) * (which == CALL_O ? scale * longest(oracle, CALL_Q) : 1);
    const double error = actual->tolerance * fmax(largest(oracle, which), term);
    for (ptrdiff_t i = 0; i < s->shape[0] * s->shape[1] * s->shape[2] * s->shape[3]; i++) {
        const ptrdiff_t inner = i % s->shape[3], rest = i / s->shape[3], head = rest % s->shape[2];
        const ptrdiff_t row = rest / s->shape[2], i0 = row / s->shape[1], i1 = row % s->shape[1];
        const double x = call_get(actual, which, i0, i1, head, inner), y = call_get(oracle, which, i0, i1, head, inner);
        double low, high; /* room for an element of any type */
        element_store(s->type, &low, y - error);
        element_store(s->type, &high, y + error);
        if (!(isnan(x) && isnan(y)) && !(element_load(s->type, &low) <= x && x <= element_load(s->type, &high)))
            test_fail("%s, element %td: %.9g and not %.9g +- %.1g", call_array_names[which], i, x, y, error);
    }
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    setenv("CMOCKA_TEST_ABORT", "1", 1); /* a failed comparison ends the program */
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input b = {data, data + size};
    set_seed(&b);
    call *plain = draw_call(&b);
    call *other = call_clone(plain, &call_layouts[input_below(&b, CALL_NUM_LAYOUTS)],
                             input_below(&b, 2) ? GUARD_BEFORE : GUARD_AFTER);
    plain->p.isa = GDN_ISA_PLAIN;
    test_context("plain");
    run(plain, RUN_WHOLE);
    for (gdn_isa isa = GDN_ISA_AVX2; isa < GDN_NUM_ISAS; isa = (gdn_isa)(isa + 1)) {
        if (!gdn_isa_supported(isa)) continue;
        test_context("%s", gdn_isa_name(isa));
        other->p.isa = isa;
        run(other, input_below(&b, 2) ? RUN_SINGLE_ITEMS : RUN_WHOLE);
        assert_same(plain, other);
    }
    call *oracle = call_clone_f64(plain);
    test_context("float64");
    run(oracle, RUN_WHOLE);
    for (call_array which = CALL_O; which < CALL_NUM_ARRAYS; which++) require_close(plain, oracle, which);
    call_free(oracle);
    call_free(other);
    call_free(plain);
    return 0;
}
