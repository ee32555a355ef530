/* Random small calls over every option: each on every instruction set, cut into work items, laid out, batched and split
 * in some other way, with the states in the other layout, and against the oracle.
 *
 *     test_random [COUNT [FIRST]]        GDN_TEST_SEED=S test_random 1 I repeats call I of seed S */
#include <math.h>
#include <stdlib.h>

#include "compare.h"
#include "configs.h"
#include "rng.h"
#include "run.h"
#include "test.h"

static ptrdiff_t num_calls = 2000, first_call;

/* What was left out: nobody should believe that a check runs that does not. */
static struct { ptrdiff_t splits, layouts, oracles, extremes; } done;

static void any_instruction_set(call *c) {
    for (gdn_isa isa = GDN_ISA_PLAIN; isa < GDN_NUM_ISAS; isa++) {
        if (!gdn_isa_supported(isa)) continue;
        call *other = call_clone(c, &call_layouts[0], GUARD_AFTER);
        other->p.isa = isa;
        run(other, RUN_WHOLE);
        assert_same(c, other);
        call_free(other);
    }
}

static void any_memory_and_partition(call *c, rng *r) {
    const call_layout *layout = &call_layouts[rng_below(r, CALL_NUM_LAYOUTS)];
    call *other = call_clone(c, layout, rng_below(r, 2) ? GUARD_BEFORE : GUARD_AFTER);
    run(other, (run_how)rng_below(r, RUN_NUM));
    assert_same(c, other);
    call_free(other);
}

static void any_batch(const call *c, rng *r) {
    ptrdiff_t order[16] = {0}, count = call_num_seqs(c), taken = 1 + rng_below(r, count);
    bool same_length = true;
    for (ptrdiff_t n = 0; n < count; n++) {
        ptrdiff_t j = rng_below(r, n + 1);
        order[n] = order[j];
        order[j] = n;
    }
    for (ptrdiff_t i = 1; i < taken; i++)
        same_length = same_length && call_length(c, order[i]) == call_length(c, order[0]);
    run_sequences(c, order, taken, !same_length || rng_below(r, 2));
}

/* Only a sequence that goes on where it stopped, from one slot and in float32, can be split; in chunks at multiples of
 * sixteen, where no piece is a single token. */
static void any_split(const call *c, rng *r) {
    ptrdiff_t ends[8], count = 1 + rng_below(r, COUNT(ends)), end = 0;
    bool can = call_has(c, CALL_POOL) && c->array[CALL_POOL].type == ELEMENT_F32 && !c->p.disable_state_update &&
               !call_has(c, CALL_CACHE) && !call_has(c, CALL_STEP_SLOTS) && !call_has(c, CALL_OUTPUT_INDICES) &&
               (call_has(c, CALL_INITIAL_INDICES) || !call_has(c, CALL_CU_SEQLENS));
    const bool chunks = c->p.compute == GDN_COMPUTE_F32_CHUNKS;
    for (ptrdiff_t n = 0; n < call_num_seqs(c); n++)
        can = can && !call_padded(c, n) && !(chunks && call_length(c, n) % 16 == 1);
    if (!can) return;
    for (ptrdiff_t i = 0; i < count; i++) ends[i] = end += chunks ? 16 * rng_below(r, 3) : rng_below(r, 12);
    call *split = call_clone(c, &call_layouts[0], GUARD_AFTER);
    run_split(split, ends, count);
    assert_same(c, split);
    call_free(split);
    done.splits++;
}

/* Two calls that differ in the layout of the states, as one: the second with the states of the first. */
static void copy_states(call *to, const call *from, call_array which) {
    if (!call_has(to, which)) return;
    const ptrdiff_t *n = to->array[which].shape;
    for (ptrdiff_t i0 = 0; i0 < n[0]; i0++)
        for (ptrdiff_t i1 = 0; i1 < n[1]; i1++)
            for (ptrdiff_t i2 = 0; i2 < n[2]; i2++)
                for (ptrdiff_t k = 0; k < to->p.head_k_dim; k++)
                    for (ptrdiff_t v = 0; v < to->p.head_v_dim; v++)
                        call_set(to, which, i0, i1, i2, call_state_index(to, k, v),
                                 call_get(from, which, i0, i1, i2, call_state_index(from, k, v)));
}

static void other_state_layout(const call *c, double tolerance) {
    call *other = call_clone_transposed(c), *expected = call_clone_transposed(c);
    run(other, RUN_WHOLE);
    call_reset(expected);
    copy_states(expected, c, CALL_POOL);
    copy_states(expected, c, CALL_CACHE);
    const ptrdiff_t *n = c->array[CALL_O].shape;
    for (ptrdiff_t i0 = 0; i0 < n[0]; i0++)
        for (ptrdiff_t i1 = 0; i1 < n[1]; i1++)
            for (ptrdiff_t i2 = 0; i2 < n[2]; i2++)
                for (ptrdiff_t i3 = 0; i3 < n[3]; i3++)
                    call_set(expected, CALL_O, i0, i1, i2, i3, call_get(c, CALL_O, i0, i1, i2, i3));
    if (call_in_chunks(c))
        assert_same(other, expected);
    else
        assert_close(other, expected, tolerance);
    call_free(expected);
    call_free(other);
    done.layouts++;
}

/* In an output of very few rows, q.k may cancel in all of them, and "the largest element" says little. */
static bool has_enough_rows(const call *c) {
    ptrdiff_t tokens = 0;
    for (ptrdiff_t n = 0; n < call_num_seqs(c); n++) tokens += call_length(c, n);
    return tokens * c->p.num_key_heads >= 6;
}

/* Outputs in float32, so that nothing is compared but the computation. */
static void stated_error(const call *c) {
    call *exact = call_clone_outputs(c, ELEMENT_F32), *oracle = call_clone_f64(exact);
    bool half_states_return = call_has(c, CALL_PARENTS) && c->array[CALL_CACHE].type != ELEMENT_F32;
    double tolerance = half_states_return || c->p.rounding != 0 ? 0x1p-7 : USUAL_TOLERANCE;
    run(exact, RUN_WHOLE);
    run(oracle, RUN_WHOLE);
    assert_close(exact, oracle, tolerance);
    if (call_has(c, CALL_POOL) || call_has(c, CALL_CACHE)) other_state_layout(exact, tolerance);
    call_free(oracle);
    call_free(exact);
    done.oracles++;
}

static void check_call(ptrdiff_t i) {
    const ptrdiff_t numbers[] = {i, 1};
    rng r = rng_stream(numbers, COUNT(numbers));
    call *c = random_call(i);
    bool extreme = rng_below(&r, 4) == 0;
    if (!extreme && has_enough_rows(c)) stated_error(c);
    if (extreme) strew_extremes(c, i);
    done.extremes += extreme;
    run(c, RUN_WHOLE);
    any_instruction_set(c);
    any_memory_and_partition(c, &r);
    run_two_pools(c);
    any_batch(c, &r);
    any_split(c, &r);
    call_free(c);
}

static void random_calls(void **state) {
    (void)state;
    for (ptrdiff_t i = first_call; i < first_call + num_calls; i++) {
        test_context("random call %td", i);
        check_call(i);
    }
    printf("%td calls: %td split, %td in both state layouts, %td against the oracle, %td with extreme inputs\n",
           num_calls, done.splits, done.layouts, done.oracles, done.extremes);
    bool all = done.splits > 0 && done.layouts > 0 && done.oracles > 0 && done.extremes > 0;
    if (num_calls >= 100 && !all) test_fail("a kind of check never ran");
}

int main(int argc, char **argv) {
    if (argc > 1) num_calls = strtol(argv[1], NULL, 0);
    if (argc > 2) first_call = strtol(argv[2], NULL, 0);
    test_banner("test_random");
    const struct CMUnitTest tests[] = {cmocka_unit_test(random_calls)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
