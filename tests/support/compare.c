#include "compare.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "test.h"

/* ---- bits ---------------------------------------------------------------------------------------- */

/* A row [i0][i1] of x against a row [j0][j1] of y. */
static void same_row(const call *x, ptrdiff_t i0, ptrdiff_t i1, const call *y, ptrdiff_t j0, ptrdiff_t j1,
                     call_array which) {
    const strided *s = &x->array[which];
    size_t bytes = (size_t)s->shape[3] * element_size(s->type);
    for (ptrdiff_t head = 0; head < s->shape[2]; head++) {
        if (memcmp(call_at(x, which, i0, i1, head, 0), call_at(y, which, j0, j1, head, 0), bytes) == 0) continue;
        for (ptrdiff_t i = 0; i < s->shape[3]; i++)
            if (!element_same(s->type, call_at(x, which, i0, i1, head, i), call_at(y, which, j0, j1, head, i)))
                test_fail("%s[%td][%td][%td][%td] = %.17g, but in the other call [%td][%td][%td][%td] = %.17g",
                          call_array_names[which], i0, i1, head, i, call_get(x, which, i0, i1, head, i), j0, j1, head,
                          i, call_get(y, which, j0, j1, head, i));
    }
}

void assert_same_array(const call *x, const call *y, call_array which) {
    const strided *sx = &x->array[which], *sy = &y->array[which];
    if (call_has(x, which) != call_has(y, which)) test_fail("%s is in one call only", call_array_names[which]);
    if (!call_has(x, which)) return;
    if (memcmp(sx->shape, sy->shape, sizeof sx->shape) != 0 || sx->type != sy->type)
        test_fail("%s has two shapes or dtypes", call_array_names[which]);
    for (ptrdiff_t i0 = 0; i0 < sx->shape[0]; i0++)
        for (ptrdiff_t i1 = 0; i1 < sx->shape[1]; i1++) same_row(x, i0, i1, y, i0, i1, which);
}

void assert_same(const call *x, const call *y) {
    for (call_array i = CALL_O; i < CALL_NUM_ARRAYS; i++) assert_same_array(x, y, i);
}

void assert_same_sequence(const call *x, ptrdiff_t nx, const call *y, ptrdiff_t ny) {
    if (call_length(x, nx) != call_length(y, ny)) test_fail("sequences %td and %td differ in length", nx, ny);
    for (ptrdiff_t t = 0; t < call_length(x, nx); t++) {
        same_row(x, call_batch(x, nx), call_token(x, nx, t), y, call_batch(y, ny), call_token(y, ny, t), CALL_O);
        ptrdiff_t row = call_cache_row(x, nx), step = call_step(x, t);
        for (int i = 0; i < CALL_SLOTS; i++) {
            ptrdiff_t slot = call_written_slot(x, nx, t, i);
            if (slot >= 0) same_row(x, slot, 0, y, call_written_slot(y, ny, t, i), 0, CALL_POOL);
        }
        if (row >= 0 && step >= 0) same_row(x, row, step, y, call_cache_row(y, ny), step, CALL_CACHE);
    }
}

/* ---- what was written ---------------------------------------------------------------------------- */

/* One flag for each row [i0][i1] of a written array. */
static bool *written_rows(const call *c, call_array which) {
    const strided *s = &c->array[which];
    bool *written = calloc((size_t)(s->shape[0] * s->shape[1]) + 1, sizeof *written);
    if (written == NULL) abort();
    for (ptrdiff_t n = 0; n < call_num_seqs(c); n++)
        for (ptrdiff_t t = 0; t < call_length(c, n); t++) {
            ptrdiff_t i0 = -1, i1 = 0;
            bool left = (call_padded(c, n) && c->p.padding == GDN_PADDING_LEAVE) || call_masked(c, n, t);
            if (which == CALL_O && !left) {
                i0 = call_batch(c, n);
                i1 = call_token(c, n, t);
            } else if (which == CALL_CACHE && call_step(c, t) >= 0) {
                i0 = call_cache_row(c, n);
                i1 = call_step(c, t);
            }
            if (i0 >= 0) written[i0 * s->shape[1] + i1] = true;
            for (int i = 0; which == CALL_POOL && i < CALL_SLOTS; i++)
                if (call_written_slot(c, n, t, i) >= 0) written[call_written_slot(c, n, t, i)] = true;
        }
    return written;
}

static bool all_bytes_are(const unsigned char *bytes, size_t count, unsigned char value) {
    for (size_t i = 0; i < count; i++)
        if (bytes[i] != value) return false;
    return true;
}

/* The memory of an array with its elements taken out must hold nothing but the bytes of call_reset(). */
static void check_gaps(const call *c, call_array which) {
    const strided *s = &c->array[which];
    const guard_block *block = s->block;
    unsigned char *copy = malloc(block->size + 1);
    if (copy == NULL) abort();
    memcpy(copy, block->data, block->size);
    for (ptrdiff_t i0 = 0; i0 < s->shape[0]; i0++)
        for (ptrdiff_t i1 = 0; i1 < s->shape[1]; i1++)
            for (ptrdiff_t i2 = 0; i2 < s->shape[2]; i2++)
                memset(copy + (call_at(c, which, i0, i1, i2, 0) - block->data), 0xff,
                       (size_t)s->shape[3] * element_size(s->type));
    if (!all_bytes_are(copy, block->size, 0xff)) test_fail("%s: a gap was written", call_array_names[which]);
    free(copy);
}

static void check_untouched(const call *c, call_array which, ptrdiff_t i0, ptrdiff_t i1) {
    const strided *s = &c->array[which];
    size_t bytes = (size_t)s->shape[3] * element_size(s->type);
    for (ptrdiff_t head = 0; head < s->shape[2]; head++) {
        const unsigned char *now = call_at(c, which, i0, i1, head, 0);
        bool untouched = which == CALL_POOL ? memcmp(now, call_at(c, CALL_INITIAL_POOL, i0, i1, head, 0), bytes) == 0
                                            : all_bytes_are(now, bytes, 0xff);
        if (!untouched) test_fail("%s[%td][%td][%td] was written", call_array_names[which], i0, i1, head);
    }
}

void assert_writes(const call *c) {
    for (call_array which = CALL_O; which < CALL_NUM_ARRAYS; which++) {
        if (!call_has(c, which)) continue;
        const strided *s = &c->array[which];
        bool *written = written_rows(c, which);
        for (ptrdiff_t i0 = 0; i0 < s->shape[0]; i0++)
            for (ptrdiff_t i1 = 0; i1 < s->shape[1]; i1++)
                if (!written[i0 * s->shape[1] + i1]) check_untouched(c, which, i0, i1);
        free(written);
        if (!c->sparse) check_gaps(c, which);
    }
    for (ptrdiff_t n = 0; n < call_num_seqs(c); n++)
        for (ptrdiff_t t = 0; call_padded(c, n) && c->p.padding == GDN_PADDING_ZERO && t < call_length(c, n); t++)
            for (ptrdiff_t head = 0; head < c->p.num_value_heads; head++)
                if (!call_masked(c, n, t) && !all_bytes_are(call_at(c, CALL_O, call_batch(c, n), call_token(c, n, t), head, 0),
                                   (size_t)c->p.head_v_dim * element_size(c->array[CALL_O].type), 0))
                    test_fail("o of token %td of the padded sequence %td is not zero", t, n);
}

/* ---- error --------------------------------------------------------------------------------------- */

typedef struct worst_element {
    double largest, error; /* of the expectation; of the difference */
    ptrdiff_t at[4];
    ptrdiff_t count, unequal;
} worst_element;

/* The difference of one element that counts towards the tolerance. */
static double difference(const call *actual, call_array which, const void *at, double expected, worst_element *worst) {
    element type = actual->array[which].type;
    double x = element_load(type, at);
    worst->count++;
    if (type == ELEMENT_BF16 || type == ELEMENT_F16) {
        unsigned char rounded[8];
        element_store(type, rounded, expected);
        int steps = element_steps(type, at, rounded);
        worst->unequal += steps != 0;
        if (steps <= 1) return 0;
        expected = element_load(type, rounded);
    }
    bool same = isnan(expected) ? isnan(x) != 0 : x == expected;
    return same ? 0 : isfinite(x) && isfinite(expected) ? fabs(x - expected) : HUGE_VAL;
}

static void close_array(const call *actual, const call *expected, call_array which, double tolerance) {
    const ptrdiff_t *n = actual->array[which].shape;
    worst_element worst = {0, 0, {0, 0, 0, 0}, 0, 0};
    bool *written = written_rows(actual, which);
    for (ptrdiff_t i0 = 0; i0 < n[0]; i0++)
        for (ptrdiff_t i1 = 0; i1 < n[1]; i1++)
            for (ptrdiff_t i2 = 0; i2 < n[2] && written[i0 * n[1] + i1]; i2++)
                for (ptrdiff_t i3 = 0; i3 < n[3]; i3++) {
                    double e = call_get(expected, which, i0, i1, i2, i3);
                    double d = difference(actual, which, call_at(actual, which, i0, i1, i2, i3), e, &worst);
                    if (isfinite(e) && fabs(e) > worst.largest) worst.largest = fabs(e);
                    if (d <= worst.error) continue;
                    worst.error = d;
                    ptrdiff_t at[4] = {i0, i1, i2, i3};
                    memcpy(worst.at, at, sizeof at);
                }
    free(written);
    const ptrdiff_t *at = worst.at;
    if (worst.error > tolerance * worst.largest)
        test_fail("%s[%td][%td][%td][%td] = %.9g, expected %.17g: off by %.3g of the largest element, allowed are %.3g",
                  call_array_names[which], at[0], at[1], at[2], at[3],
                  call_get(actual, which, at[0], at[1], at[2], at[3]),
                  call_get(expected, which, at[0], at[1], at[2], at[3]), worst.error / worst.largest, tolerance);
    if (worst.unequal > 1 + worst.count / 100)
        test_fail("%s: %td of %td elements are not the rounded expectation", call_array_names[which], worst.unequal,
                  worst.count);
}

void assert_close(const call *actual, const call *expected, double tolerance) {
    for (call_array i = CALL_O; i < CALL_NUM_ARRAYS; i++)
        if (call_has(actual, i)) close_array(actual, expected, i, tolerance);
}
