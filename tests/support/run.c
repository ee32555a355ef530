#define _DEFAULT_SOURCE /* pthread_* under -std=c11 */
#include "run.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "compare.h"
#include "rng.h"
#include "test.h"

#if defined(__has_feature)
#if __has_feature(memory_sanitizer)
#include <sanitizer/msan_interface.h>
#define MARK_UNINITIALISED(data, size) __msan_poison(data, size)
#endif
#endif
#ifndef MARK_UNINITIALISED
#define MARK_UNINITIALISED(data, size) ((void)0)
#endif

const char *const run_names[RUN_NUM] = {
    [RUN_WHOLE] = "one call",
    [RUN_MALLOC] = "one call without scratch",
    [RUN_MISALIGNED] = "one call with misaligned scratch",
    [RUN_ONE_RANGE] = "one range",
    [RUN_SINGLE_ITEMS] = "single items",
    [RUN_REVERSED] = "single items, reversed",
    [RUN_RANDOM_RANGES] = "random ranges",
    [RUN_THREADS] = "threads",
};

enum { THREADS = 3 };

void run_params(const gdn_params *p) {
    gdn_error error;
    gdn_status status = gdn_fused_sigmoid_gating_delta_rule_update(p, &error);
    if (status != GDN_OK)
        test_fail("%s (%s) at \"%s\"[%lld], [%lld]", gdn_status_name(status), gdn_status_text(status), error.argument,
                  (long long)error.index, (long long)error.other);
}

/* Scratch full of NaN that ends at an unmapped page, or, misaligned, one byte before it. */
static guard_block dirty_scratch(const gdn_params *p, bool misaligned) {
    guard_block block = guard_alloc(gdn_scratch_size(p) + misaligned, GUARD_AFTER);
    memset(block.data, 0xff, block.size);
    MARK_UNINITIALISED(block.data, block.size);
    return block;
}

static void run_with_scratch(const gdn_params *p, bool misaligned) {
    guard_block scratch = dirty_scratch(p, misaligned);
    gdn_params with = *p;
    with.scratch = scratch.data;
    with.scratch_size = scratch.size - misaligned;
    run_params(&with);
    guard_free(&scratch);
}

/* Items of one worker; `status` is the first that is not GDN_OK. */
typedef struct share {
    const gdn_params *p;
    ptrdiff_t first, last;
    gdn_status status;
} share;

static void *work(void *argument) {
    share *s = argument;
    guard_block scratch = dirty_scratch(s->p, false);
    s->status = gdn_run_work_items(s->p, s->first, s->last, scratch.data, scratch.size);
    guard_free(&scratch);
    return NULL;
}

static void run_share(const gdn_params *p, ptrdiff_t first, ptrdiff_t last) {
    share s = {p, first, last, GDN_OK};
    work(&s);
    if (s.status != GDN_OK) test_fail("items %td .. %td: %s", first, last, gdn_status_name(s.status));
}

static void run_random_ranges(const gdn_params *p, ptrdiff_t items) {
    const ptrdiff_t stream[] = {items};
    rng r = rng_stream(stream, 1);
    ptrdiff_t ranges = 1 + rng_below(&r, items < 7 ? items : 7);
    ptrdiff_t ends[8] = {0}, order[7] = {0};
    for (ptrdiff_t i = 1; i < ranges; i++) ends[i] = rng_below(&r, items + 1);
    ends[ranges] = items;
    for (ptrdiff_t i = 1; i < ranges; i++) /* sorted, by insertion */
        for (ptrdiff_t j = i; j > 1 && ends[j] < ends[j - 1]; j--) {
            ptrdiff_t swap = ends[j];
            ends[j] = ends[j - 1];
            ends[j - 1] = swap;
        }
    for (ptrdiff_t i = 0; i < ranges; i++) { /* shuffled */
        ptrdiff_t j = rng_below(&r, i + 1);
        order[i] = order[j];
        order[j] = i;
    }
    for (ptrdiff_t i = 0; i < ranges; i++) run_share(p, ends[order[i]], ends[order[i] + 1]);
}

static void run_threads(const gdn_params *p, ptrdiff_t items) {
    pthread_t thread[THREADS];
    share shares[THREADS];
    for (ptrdiff_t i = 0; i < THREADS; i++) {
        share s = {p, items * i / THREADS, items * (i + 1) / THREADS, GDN_OK};
        shares[i] = s;
        if (pthread_create(&thread[i], NULL, work, &shares[i]) != 0) abort();
    }
    for (ptrdiff_t i = 0; i < THREADS; i++) pthread_join(thread[i], NULL);
    for (ptrdiff_t i = 0; i < THREADS; i++)
        if (shares[i].status != GDN_OK) test_fail("thread %td: %s", i, gdn_status_name(shares[i].status));
}

static void run_items(const gdn_params *p, run_how how) {
    gdn_error error;
    if (gdn_validate(p, &error) != GDN_OK)
        test_fail("%s at \"%s\"[%lld]", gdn_status_name(error.status), error.argument, (long long)error.index);
    ptrdiff_t items = gdn_num_work_items(p);
    if (how == RUN_ONE_RANGE) run_share(p, 0, items);
    if (how == RUN_RANDOM_RANGES) run_random_ranges(p, items);
    if (how == RUN_THREADS) run_threads(p, items);
    for (ptrdiff_t i = 0; how == RUN_SINGLE_ITEMS && i < items; i++) run_share(p, i, i + 1);
    for (ptrdiff_t i = items; how == RUN_REVERSED && i > 0; i--) run_share(p, i - 1, i);
}

void run(call *c, run_how how) {
    call_reset(c);
    call_protect(c, true);
    if (how == RUN_WHOLE || how == RUN_MISALIGNED)
        run_with_scratch(&c->p, how == RUN_MISALIGNED);
    else if (how == RUN_MALLOC)
        run_params(&c->p);
    else
        run_items(&c->p, how);
    call_protect(c, false);
    assert_writes(c);
}

/* With the initial states read from those of `from`, and all of them written to the pool of c alone. */
static void read_elsewhere(call *c, const call *from) {
    const gdn_params before = c->p;
    const strided *initial = &from->array[CALL_INITIAL_POOL];
    int64_t starts[64];
    for (ptrdiff_t n = 0; n < call_num_seqs(c); n++) starts[n] = call_start_slot(c, n);
    c->p.output_state_pool = c->p.initial_state_source;
    c->p.initial_state_source = gdn_pool_of(initial->data, (gdn_dtype)initial->type, initial->shape[0]);
    c->p.initial_state_indices = gdn_i64(starts);
    c->p.num_accepted_tokens.data = NULL;
    if (!call_has(c, CALL_STEP_SLOTS) && !call_has(c, CALL_OUTPUT_INDICES)) c->p.output_state_indices = gdn_i64(starts);
    run(c, RUN_WHOLE);
    c->p = before;
}

void run_two_pools(const call *c) {
    if (!call_has(c, CALL_POOL) || c->p.disable_state_update) return;
    call *one = call_clone_outputs(c, ELEMENT_F32), *two = call_clone(one, &call_layouts[0], GUARD_AFTER);
    run(one, RUN_WHOLE);
    read_elsewhere(two, c);
    assert_same(one, two);
    call_free(two);
    call_free(one);
}

void run_sequences(const call *c, const ptrdiff_t *sequences, ptrdiff_t count, bool varlen) {
    call *part = call_take(c, sequences, count, varlen);
    run(part, RUN_WHOLE);
    for (ptrdiff_t i = 0; i < count; i++) assert_same_sequence(c, sequences[i], part, i);
    call_free(part);
}

/* ---- pieces -------------------------------------------------------------------------------------- */

static gdn_tensor tokens_of(const call *c, call_array which, gdn_tensor x, ptrdiff_t batch, ptrdiff_t token) {
    if (!call_has(c, which)) return x;
    const ptrdiff_t *stride = c->array[which].stride;
    gdn_tensor part = {call_at(c, which, batch, token, 0, 0), x.dtype, stride[0], stride[1], stride[2]};
    return part;
}

/* Tokens [first, last) of sequence n, or of all sequences of a fixed-length call (n < 0). */
static gdn_params piece(const call *c, ptrdiff_t n, ptrdiff_t first, ptrdiff_t last) {
    gdn_params p = c->p;
    ptrdiff_t batch = n < 0 ? 0 : call_batch(c, n), token = n < 0 ? first : call_token(c, n, first);
    p.seq_len = last - first;
    p.q = tokens_of(c, CALL_Q, p.q, batch, token);
    p.k = tokens_of(c, CALL_K, p.k, batch, token);
    p.v = tokens_of(c, CALL_V, p.v, batch, token);
    p.a = tokens_of(c, CALL_A, p.a, batch, token);
    p.b = tokens_of(c, CALL_B, p.b, batch, token);
    p.k_read = tokens_of(c, CALL_K_READ, p.k_read, batch, token);
    p.erase = tokens_of(c, CALL_ERASE, p.erase, batch, token);
    p.gv = tokens_of(c, CALL_GV, p.gv, batch, token);
    if (call_has(c, CALL_MASK)) {
        p.token_mask.data = call_at(c, CALL_MASK, batch, token, 0, 0);
        p.token_mask.batch_stride = c->array[CALL_MASK].stride[0];
        p.token_mask.token_stride = c->array[CALL_MASK].stride[1];
    }
    const ptrdiff_t *stride = c->array[CALL_O].stride;
    p.o.data = call_at(c, CALL_O, batch, token, 0, 0);
    p.o.batch_stride = stride[0];
    p.o.token_stride = stride[1];
    p.o.head_stride = stride[2];
    if (n >= 0) {
        p.batch_size = p.num_seqs = 1;
        p.cu_seqlens.data = NULL;
        p.initial_state_indices.data = call_at(c, CALL_INITIAL_INDICES, 0, 0, n, 0);
    }
    return p;
}

static gdn_isa next_isa(gdn_isa isa) {
    do isa = (gdn_isa)(((int)isa + 1) % GDN_NUM_ISAS);
    while (isa == GDN_ISA_AUTO || !gdn_isa_supported(isa));
    return isa;
}

static void run_pieces(const call *c, ptrdiff_t n, ptrdiff_t length, const ptrdiff_t *ends, ptrdiff_t num_ends) {
    gdn_isa isa = GDN_ISA_AUTO;
    ptrdiff_t first = 0;
    for (ptrdiff_t i = 0; i <= num_ends; i++) {
        ptrdiff_t last = i < num_ends && ends[i] < length ? ends[i] : length;
        if (last == first) continue;
        gdn_params p = piece(c, n, first, last);
        p.isa = isa = next_isa(isa);
        run_params(&p);
        first = last;
    }
}

void run_split(call *c, const ptrdiff_t *ends, ptrdiff_t num_ends) {
    call_reset(c);
    if (!call_has(c, CALL_CU_SEQLENS)) run_pieces(c, -1, c->p.seq_len, ends, num_ends);
    for (ptrdiff_t n = 0; call_has(c, CALL_CU_SEQLENS) && n < call_num_seqs(c); n++)
        run_pieces(c, n, call_length(c, n), ends, num_ends);
    assert_writes(c);
}
