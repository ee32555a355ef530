/*
 * What is computed: every case of tests/golden, on every instruction set that this CPU has, against the float64 truth,
 * against what the system that the case comes from returned, and in what must not change at all.
 * SPDX-License-Identifier: MIT
 *
 * GDN_GOLDEN_DIR names the folder of the cases.
 */
#define _POSIX_C_SOURCE 200809L

#include "gdn_varlen.h"
#include "guard.h"
#include "test.h"

#include <stdlib.h>

/* The arrays of the cases lie in guarded memory. */
#define malloc guard_malloc
#define free guard_release
#include "../examples/case_io.h"
#undef malloc
#undef free

#include <dirent.h>
#include <setjmp.h>
#include <cmocka.h>

enum { MIN_CASES = 73, MAX_CASES = 1024 };

/* Of the largest element: the double computation from the truth, and float32 from the truth or another system. */
static const double f64_tolerance = 1e-12, f32_tolerance = 1e-6;

/* ==== numbers ====================================================================================== */

static double largest(const double *x, ptrdiff_t count) {
    double most = 0;
    for (ptrdiff_t i = 0; i < count; i++) most = fmax(most, fabs(x[i]));
    return most;
}

/* The largest difference, as a fraction of the largest expected element, and its element. */
typedef struct worst {
    double error;
    ptrdiff_t at;
} worst;

static worst relative_error(const double *expected, const void *data, gdn_dtype dtype, ptrdiff_t count) {
    const double scale = largest(expected, count);
    worst most = {0, 0};
    for (ptrdiff_t i = 0; i < count; i++) {
        const double difference = case_difference(expected[i], case_get(data, dtype, i));
        if (difference > most.error) most = (worst){difference, i};
    }
    if (most.error > 0) most.error /= scale;
    return most;
}

static double *to_doubles(const void *data, gdn_dtype dtype, ptrdiff_t count) {
    double *x = (double *)malloc((size_t)count * sizeof *x + 1);
    assert_non_null(x);
    for (ptrdiff_t i = 0; i < count; i++) x[i] = case_get(data, dtype, i);
    return x;
}

static int64_t index_at(const gdn_indices *x, ptrdiff_t i) {
    return x->dtype == GDN_I32 ? ((const int32_t *)x->data)[i] : ((const int64_t *)x->data)[i];
}

/* ==== one case ===================================================================================== */

static const char *const file_names[CASE_NUM_OUTPUTS] = {"o", "final_state", "intermediate_states"};

/* Fails with the place of element i in words, its value, and what was expected there. */
static void fail_at(const case_call *c, int which, ptrdiff_t i, double expected, const char *why) {
    const case_output *out = &c->outputs[which];
    const gdn_params *p = &c->params;
    const bool vk = p->state_layout == GDN_STATE_VK;
    const char *const rows[] = {vk ? "column" : "K row", vk ? "K row" : "column"};
    const char *const axes[CASE_NUM_OUTPUTS][5] = {{"batch row", "token", "head", "column", ""},
                                                   {"slot", "head", rows[0], rows[1], ""},
                                                   {"cache row", "step", "head", rows[0], rows[1]}};
    ptrdiff_t at[NPY_MAX_DIMS] = {0}, rest = i;
    char place[400] = "";
    size_t length = 0;
    for (int axis = out->num_dims - 1; axis >= 0; axis--) {
        at[axis] = rest % out->shape[axis];
        rest /= out->shape[axis];
    }
    for (int axis = 0; axis < out->num_dims; axis++)
        length += (size_t)snprintf(place + length, sizeof place - length, "%s%s %td", axis == 0 ? "" : ", ",
                                   axes[which][axis], at[axis]);
    const gdn_indices *starts = &p->cu_seqlens;
    for (ptrdiff_t n = 0; which == CASE_O && starts->data && n < p->num_seqs; n++) {
        const int64_t first = index_at(starts, n);
        if (first <= at[1] && at[1] < index_at(starts, n + 1))
            snprintf(place + length, sizeof place - length, " (sequence %td, its token %td)", n,
                     at[1] - (ptrdiff_t)first);
    }
    fail_msg("%s at %s: %.9g, expected %.17g: %s", file_names[which], place, case_get(out->data, out->dtype, i),
             expected, why);
}

/* An array that the case records, as doubles. */
static double *read_recorded(const char *folder, const char *name, const case_output *out, gdn_dtype declared) {
    char path[CASE_MAX_PATH];
    case_message message;
    npy_array x = {0};
    if (!case_path(path, folder, name, ".npy", &message) || !npy_read(path, &x, &message)) fail_msg("%s", message.text);
    assert_int_equal(npy_dtype(&x, declared), declared);
    assert_int_equal(x.num_dims, out->num_dims);
    for (int i = 0; i < x.num_dims; i++) assert_int_equal(x.shape[i], out->shape[i]);
    double *values = to_doubles(x.data, declared, x.count);
    npy_free(&x);
    return values;
}

static void run(case_call *c, gdn_compute compute, gdn_isa isa) {
    gdn_error error;
    case_reset(c, compute);
    gdn_params p = c->params;
    p.isa = isa;
    /* The outputs of a case have room for doubles; here they end where they end. */
    void **const data[] = {&p.o.data, &p.initial_state_source.data, &p.intermediate_states_buffer.data};
    guard_block exact[CASE_NUM_OUTPUTS];
    for (int i = 0; i < CASE_NUM_OUTPUTS; i++) {
        if (*data[i] == NULL) continue;
        exact[i] = guard_alloc((size_t)c->outputs[i].count * case_dtype_size(c->outputs[i].dtype), GUARD_AFTER);
        memcpy(exact[i].data, c->outputs[i].data, exact[i].size);
        *data[i] = exact[i].data;
    }
    if (gdn_fused_sigmoid_gating_delta_rule_update(&p, &error) != GDN_OK)
        fail_msg("%s[%lld]: %s", error.argument, (long long)error.index, gdn_status_text(error.status));
    for (int i = 0; i < CASE_NUM_OUTPUTS; i++) {
        if (*data[i] == NULL) continue;
        memcpy(c->outputs[i].data, exact[i].data, exact[i].size);
        guard_free(&exact[i]);
    }
}

/* A 16-bit output is the rounded truth, save where float32 lies so close to the middle of two numbers that it falls on
 * the other side. */
static void check_rounded_truth(const case_call *c, int which, const double *truth) {
    const case_output *out = &c->outputs[which];
    ptrdiff_t num_equal = 0;
    for (ptrdiff_t i = 0; i < out->count; i++) {
        const double ulps = case_ulps(truth[i], case_get(out->data, out->dtype, i), out->dtype);
        if (!(ulps <= 1)) fail_at(c, which, i, truth[i], "more than one unit from the truth");
        if (ulps == 0) num_equal++;
    }
    if ((double)num_equal < 0.99 * (double)out->count)
        fail_msg("%s: only %td of %td are the rounded truth", file_names[which], num_equal, out->count);
}

/* Another system's 16-bit output was rounded from another float32: one unit apart, or by what is nothing next to the
 * largest element, where two large terms cancel. */
static void check_rounded_record(const case_call *c, int which, const double *recorded) {
    const case_output *out = &c->outputs[which];
    const double nothing = f32_tolerance * largest(recorded, out->count);
    for (ptrdiff_t i = 0; i < out->count; i++) {
        const double actual = case_get(out->data, out->dtype, i);
        if (!(case_ulps(recorded[i], actual, out->dtype) <= 1 || case_difference(recorded[i], actual) <= nothing))
            fail_at(c, which, i, recorded[i], "more than one unit from what is recorded");
    }
}

static void check_within(const case_call *c, int which, const double *expected, double tolerance, const char *what) {
    const case_output *out = &c->outputs[which];
    const worst most = relative_error(expected, out->data, out->dtype, out->count);
    char why[128];
    snprintf(why, sizeof why, "%.3g of the largest element from %s, allowed are %.3g", most.error, what, tolerance);
    if (!(most.error <= tolerance)) fail_at(c, which, most.at, expected[most.at], why);
}

static void check_output(const case_call *c, int which, const double *truth, const double *recorded) {
    if (c->outputs[which].dtype == GDN_F32) {
        check_within(c, which, truth, f32_tolerance, "the truth");
        check_within(c, which, recorded, f32_tolerance, "what is recorded");
    } else {
        check_rounded_truth(c, which, truth);
        check_rounded_record(c, which, recorded);
    }
}

/* The bits of the plain instance, from another one. */
static void check_same(const case_call *c, int which, const void *plain, gdn_isa isa) {
    const case_output *out = &c->outputs[which];
    const size_t size = case_dtype_size(out->dtype);
    char why[64];
    if (plain == NULL) {
        fail_msg("the plain instance has not run before");
        return;
    }
    snprintf(why, sizeof why, "%s and %s differ", gdn_isa_name(isa), gdn_isa_name(GDN_ISA_PLAIN));
    for (ptrdiff_t i = 0; i < out->count; i++)
        if (memcmp((const char *)plain + (size_t)i * size, (const char *)out->data + (size_t)i * size, size) != 0)
            fail_at(c, which, i, case_get(plain, out->dtype, i), why);
}

static void mark_slot(const gdn_params *p, int64_t slot, bool *slots) {
    if (slot >= 0 && !(p->has_null_slot && slot == p->null_slot)) slots[slot] = true;
}

/* Marks the pool slots and the (row, step) places of the cache that the sequences of the case write. */
static void mark_written(const gdn_params *p, bool *slots, bool *places) {
    const gdn_indices *starts = &p->cu_seqlens, *per_step = &p->ssm_state_indices;
    const ptrdiff_t num_seqs = p->num_seqs > 0 ? p->num_seqs : p->batch_size;
    for (ptrdiff_t n = 0; n < num_seqs; n++) {
        const int64_t length = starts->data ? index_at(starts, n + 1) - index_at(starts, n) : p->seq_len;
        if (length == 0) continue;
        const int64_t steps = length / (p->step_interval > 0 ? p->step_interval : 1);
        if (p->initial_state_source.data && !p->disable_state_update) {
            const gdn_indices *final =
                p->output_state_indices.data ? &p->output_state_indices : &p->initial_state_indices;
            for (int64_t s = 0; per_step->data && s < steps; s++)
                mark_slot(p, index_at(per_step, n * per_step->num_columns + (ptrdiff_t)s), slots);
            if (!per_step->data || p->output_state_indices.data)
                mark_slot(p, final->data ? index_at(final, n) : n, slots);
        }
        const gdn_state_cache *cache = &p->intermediate_states_buffer;
        const int64_t row = p->intermediate_state_indices.data ? index_at(&p->intermediate_state_indices, n) : n;
        for (int64_t s = 0; cache->data && row >= 0 && s < steps; s++) places[row * cache->num_steps + s] = true;
    }
}

/* Slots that no sequence writes keep every bit, and places of the cache that none writes stay zero. */
static void check_untouched(const case_call *c) {
    const gdn_params *p = &c->params;
    const case_output *pool = &c->outputs[CASE_FINAL_STATE], *cache = &c->outputs[CASE_INTERMEDIATE_STATES];
    const ptrdiff_t num_slots = pool->shape[0], num_places = cache->shape[0] * cache->shape[1];
    bool *slots = (bool *)calloc((size_t)num_slots + 1, sizeof *slots);
    bool *places = (bool *)calloc((size_t)num_places + 1, sizeof *places);
    assert_non_null(slots);
    assert_non_null(places);
    mark_written(p, slots, places);

    const size_t state_elements = (size_t)(p->num_value_heads * p->head_k_dim * p->head_v_dim);
    const size_t slot_bytes = state_elements * case_dtype_size(pool->dtype);
    for (ptrdiff_t i = 0; i < num_slots; i++) {
        const size_t at = (size_t)i * slot_bytes;
        if (!slots[i] && memcmp((const char *)pool->data + at, (const char *)c->initial_state + at, slot_bytes) != 0)
            fail_msg("slot %lld of the pool was touched", (long long)i);
    }
    const size_t place_bytes = state_elements * case_dtype_size(cache->dtype);
    for (ptrdiff_t i = 0; i < num_places; i++) {
        const char *place = (const char *)cache->data + (size_t)i * place_bytes;
        for (size_t j = 0; j < place_bytes && !places[i]; j++)
            if (place[j] != 0) fail_msg("place %lld of the cache was touched", (long long)i);
    }
    free(slots);
    free(places);
}

/* What one output was in the computation that the others are held against. */
typedef struct reference {
    double *truth, *recorded;
    void *plain;
} reference;

static void test_case(void **state) {
    const char *name = (const char *)*state;
    char folder[CASE_MAX_PATH];
    case_message message;
    case_call c;
    reference references[CASE_NUM_OUTPUTS] = {{NULL, NULL, NULL}};
    if (!case_path(folder, GDN_GOLDEN_DIR, name, "", &message) || !case_load(&c, folder, &message))
        fail_msg("%s", message.text);

    run(&c, GDN_COMPUTE_F64, GDN_ISA_AUTO);
    for (int i = 0; i < CASE_NUM_OUTPUTS; i++) {
        const case_output *out = &c.outputs[i];
        if (!out->data) continue;
        references[i].truth = to_doubles(out->data, out->dtype, out->count);
        references[i].recorded = read_recorded(folder, file_names[i], out, out->declared);
    }
    const case_output *o = &c.outputs[CASE_O];
    double *o_f64 = read_recorded(folder, "o_f64", o, GDN_F64);
    check_within(&c, CASE_O, o_f64, f64_tolerance, "the truth, in float64");
    free(references[CASE_O].truth);
    references[CASE_O].truth = o_f64;

    for (int isa = GDN_ISA_PLAIN; isa < GDN_NUM_ISAS; isa++) {
        if (!gdn_isa_supported((gdn_isa)isa)) continue;
        run(&c, test_compute(), (gdn_isa)isa);
        check_untouched(&c);
        for (int i = 0; i < CASE_NUM_OUTPUTS; i++) {
            const case_output *out = &c.outputs[i];
            const size_t size = (size_t)out->count * case_dtype_size(out->dtype);
            if (!out->data) continue;
            if (isa == GDN_ISA_PLAIN) {
                check_output(&c, i, references[i].truth, references[i].recorded);
                references[i].plain = malloc(size + 1);
                assert_non_null(references[i].plain);
                memcpy(references[i].plain, out->data, size);
            } else {
                check_same(&c, i, references[i].plain, (gdn_isa)isa);
            }
        }
    }
    print_message("%-38s o: %.1e from float64; %s: %.1e\n", name,
                  relative_error(o_f64, o->data, o->dtype, o->count).error,
                  c.source[0] != '\0' ? c.source : "sglang_triton", c.source_error_o);

    for (int i = 0; i < CASE_NUM_OUTPUTS; i++) {
        free(references[i].truth);
        free(references[i].recorded);
        free(references[i].plain);
    }
    case_free(&c);
}

/* ==== all cases ==================================================================================== */

/* One test for each folder, so that a failure carries the name of its case. */
static struct CMUnitTest tests[MAX_CASES];
static size_t num_tests;

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct CMUnitTest *)a)->name, ((const struct CMUnitTest *)b)->name);
}

static bool find_cases(void) {
    DIR *folder = opendir(GDN_GOLDEN_DIR);
    if (!folder) return false;
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        if (strchr(entry->d_name, '.')) continue; /* itself, its parent and the README */
        if (num_tests == MAX_CASES) break;
        char *name = strdup(entry->d_name);
        if (!name) break;
        tests[num_tests++] = (struct CMUnitTest){name, test_case, NULL, NULL, name};
    }
    closedir(folder);
    qsort(tests, num_tests, sizeof tests[0], by_name);
    return num_tests >= MIN_CASES;
}

int main(void) {
    if (!find_cases()) {
        print_error("%s holds %zu cases where at least %d are expected\n", GDN_GOLDEN_DIR, num_tests, (int)MIN_CASES);
        return 1;
    }
    print_message("instruction sets:");
    for (int isa = GDN_ISA_PLAIN; isa < GDN_NUM_ISAS; isa++)
        if (gdn_isa_supported((gdn_isa)isa)) print_message(" %s", gdn_isa_name((gdn_isa)isa));
    print_message("\n");
    const int failures = _cmocka_run_group_tests("golden", tests, num_tests, NULL, NULL);
    for (size_t i = 0; i < num_tests; i++) free(tests[i].initial_state);
    return failures;
}
