/* A call of the library with everything it points to: arrays in guarded memory, filled with seeded data. */
#ifndef CALL_H
#define CALL_H

#include <stdbool.h>
#include <stddef.h>

#include "elements.h"
#include "gdn_varlen.h"
#include "guard.h"

/* A list of integers in a table: LIST(5, 0, 7). */
typedef struct call_list {
    ptrdiff_t count;
    const int *values;
} call_list;
#define LIST_VALUES(...) ((const int[]){__VA_ARGS__})
#define LIST(...)                                                                                                      \
    { (ptrdiff_t)(sizeof(LIST_VALUES(__VA_ARGS__)) / sizeof(int)), LIST_VALUES(__VA_ARGS__) }

/* What a call is made from. `p` holds sizes, options and dtypes (float32 where not set) and no pointers; a pool and
 * a cache are present where their sizes are set, k_read, erase and gv where their dtypes are, an index array where its
 * list is not empty. */
typedef struct call_config {
    const char *name;
    gdn_params p;
    call_list lens; /* varlen, these lengths; empty: fixed length, from p.batch_size and p.seq_len */
    ptrdiff_t tail; /* varlen: rows behind the last sequence */
    call_list initial_state_indices, output_state_indices, intermediate_state_indices; /* [N] */
    call_list retrieve_parent_token, ssm_state_indices, num_accepted_tokens;           /* [N, steps], last [N] */
    gdn_index_dtype index_dtype; /* of all index arrays; int32 where not set */
    bool no_b, no_a;             /* leave b absent; leave a, A_log and dt_bias absent */
    bool no_A_log, no_dt_bias;   /* leave one of these absent */
    bool mask;                   /* leave out every third token or so */
    double tolerance;            /* of float32 against float64; 0: the usual one */
} call_config;

typedef enum call_array {
    CALL_A_LOG,
    CALL_A,
    CALL_DT_BIAS,
    CALL_Q,
    CALL_K,
    CALL_V,
    CALL_B,
    CALL_K_READ,
    CALL_ERASE,
    CALL_GV,
    CALL_MASK,
    CALL_INITIAL_POOL, /* the pool before the call; the library sees only its copy CALL_POOL */
    CALL_CU_SEQLENS,
    CALL_INITIAL_INDICES,
    CALL_OUTPUT_INDICES,
    CALL_CACHE_INDICES,
    CALL_PARENTS,
    CALL_STEP_SLOTS,
    CALL_ACCEPTED,
    CALL_O, /* from here on: written by the library */
    CALL_POOL,
    CALL_CACHE,
    CALL_NUM_ARRAYS
} call_array;

extern const char *const call_array_names[CALL_NUM_ARRAYS]; /* as gdn_params calls them */

/* An array of up to four axes, the last one contiguous; tensors [batch, token, head, inner], pool [slot, 1, head,
 * matrix], cache [row, step, head, matrix], index arrays [1, 1, sequence, column]. */
typedef struct strided {
    element type;
    ptrdiff_t shape[4], stride[3]; /* in elements */
    unsigned char *data;           /* NULL: absent */
    const guard_block *block;      /* that holds it */
} strided;

/* How arrays lie in memory: axes from outer to inner, unused elements after each index of an axis, and whether
 * q|k|v share rows, and a|b theirs (where their dtypes agree). All zero: contiguous, strides left at 0. */
typedef struct call_layout {
    const char *name;
    int order[3];
    ptrdiff_t gap[3];
    bool packed, strides_given;
    bool sparse;     /* gaps so long that they must not be touched, and are not checked */
    unsigned arrays; /* bits of the arrays laid out like this, the others being contiguous; 0: all */
} call_layout;
enum { CALL_NUM_LAYOUTS = 6 };
extern const call_layout call_layouts[CALL_NUM_LAYOUTS]; /* the first one is contiguous */

typedef struct call {
    gdn_params p; /* ready to be passed */
    double tolerance;
    bool sparse;
    strided array[CALL_NUM_ARRAYS];
    guard_block block[CALL_NUM_ARRAYS];
    int num_blocks;
} call;

/* Contiguous, seeded; every array ends at an unmapped page. */
call *call_new(const call_config *config);

/* The same call in memory of its own, laid out anew. */
call *call_clone(const call *c, const call_layout *layout, guard_side side);

/* The same call with all index arrays of the other integer type. */
call *call_clone_indices(const call *c);

/* The same call with o, pool and cache of one dtype; a cache that steps start from again keeps its own, and a pool to
 * whose dtype states are rounded. */
call *call_clone_outputs(const call *c, element type);

/* The same call for the oracle: all of those in float64, computed in float64. */
call *call_clone_f64(const call *c);

/* The same call with the states of the pool transposed into the other layout. */
call *call_clone_transposed(const call *c);

/* Some sequences of a call, in the order given, as one varlen call or (equal lengths) one fixed-length call. */
call *call_take(const call *c, const ptrdiff_t *sequences, ptrdiff_t count, bool varlen);

void call_free(call *c);

/* Fresh outputs: bytes 0xff, a NaN in every dtype, in o, the cache and all gaps; the pool as before the call. */
void call_reset(call *c);

/* Sets inputs read-only while the library runs; not sparse ones, whose page tables are long. */
void call_protect(const call *c, bool read_only);

bool call_has(const call *c, call_array which);
unsigned char *call_at(const call *c, call_array which, ptrdiff_t i0, ptrdiff_t i1, ptrdiff_t i2, ptrdiff_t i3);
double call_get(const call *c, call_array which, ptrdiff_t i0, ptrdiff_t i1, ptrdiff_t i2, ptrdiff_t i3);
void call_set(call *c, call_array which, ptrdiff_t i0, ptrdiff_t i1, ptrdiff_t i2, ptrdiff_t i3, double value);
void call_fill(call *c, call_array which, double value);

/* Whether every sequence of the call is computed in chunks. */
bool call_in_chunks(const call *c);

/* The contract's reading of the index arrays. */
ptrdiff_t call_num_seqs(const call *c);
ptrdiff_t call_length(const call *c, ptrdiff_t n);
ptrdiff_t call_batch(const call *c, ptrdiff_t n);              /* batch row of sequence n */
ptrdiff_t call_token(const call *c, ptrdiff_t n, ptrdiff_t t); /* place of its token t in that row */
ptrdiff_t call_key_head(const call *c, ptrdiff_t value_head);
ptrdiff_t call_start_slot(const call *c, ptrdiff_t n); /* -1: from zeros */
bool call_padded(const call *c, ptrdiff_t n);
bool call_masked(const call *c, ptrdiff_t n, ptrdiff_t t);
ptrdiff_t call_step(const call *c, ptrdiff_t t); /* the step that token t ends; -1: none */
/* The slots that get the state after token t, as that of a step and as the final one; -1: none. */
enum { CALL_SLOTS = 2 };
ptrdiff_t call_written_slot(const call *c, ptrdiff_t n, ptrdiff_t t, int i);
ptrdiff_t call_cache_row(const call *c, ptrdiff_t n); /* -1: not cached */
ptrdiff_t call_state_index(const call *c, ptrdiff_t k, ptrdiff_t v);  /* place of S[k][v] in a matrix */

#endif
