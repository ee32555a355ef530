#include "workload.h"

#include <math.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "elements.h"
#include "rates.h"
#include "rng.h"

enum { PAGE = 4096, MAX_ARRAYS = 16, NORMALS = 1 << 16, CHECKED_TOKENS = 4096, MAX_CHECKED = 8 };

/* The chunks of work items that a thread has not taken yet of its share; a cache line of its own. */
typedef struct share {
    alignas(128) atomic_ptrdiff_t next;
    ptrdiff_t end;
} share;

struct workload {
    gdn_params p;
    threads *threads;
    rng random;
    ptrdiff_t longest;
    void *arrays[MAX_ARRAYS];
    int num_arrays;
    void *normals[GDN_F64 + 1]; /* standard normal numbers in each dtype */
    ptrdiff_t items, chunk;
    share *shares;        /* [threads] */
    size_t scratch_bytes; /* of each thread */
    unsigned char *scratch;
};

static void stop(const char *what) {
    fprintf(stderr, "gdn_bench: %s\n", what);
    exit(2);
}

static void *allocate(workload *w, size_t bytes) {
    void *array = aligned_alloc(PAGE, (bytes + PAGE - 1) / PAGE * PAGE);
    if (array == NULL || w->num_arrays == MAX_ARRAYS) stop("out of memory");
    return w->arrays[w->num_arrays++] = array;
}

static size_t matrix_bytes(const workload *w) {
    return (size_t)(w->p.head_k_dim * w->p.head_v_dim) * element_size((element)w->p.initial_state_source.dtype);
}

static size_t slot_bytes(const workload *w) { return (size_t)w->p.num_value_heads * matrix_bytes(w); }

/* ---- Inputs ---- */

/* Rows of normal numbers: runs of a table, from anywhere in it, as drawing each would take longer than the timing. */
static void fill_normal(workload *w, void *data, gdn_dtype dtype, ptrdiff_t rows, ptrdiff_t inner) {
    const size_t size = element_size((element)dtype);
    if (w->normals[dtype] == NULL) {
        unsigned char *table = w->normals[dtype] = allocate(w, NORMALS * size);
        for (size_t i = 0; i < NORMALS; i++) element_store((element)dtype, table + i * size, rng_normal(&w->random));
    }
    for (ptrdiff_t row = 0; row < rows; row++) {
        const ptrdiff_t from = rng_below(&w->random, NORMALS - inner);
        memcpy((unsigned char *)data + (size_t)(row * inner) * size,
               (const unsigned char *)w->normals[dtype] + (size_t)from * size, (size_t)inner * size);
    }
}

static void *make_normal(workload *w, gdn_dtype dtype, ptrdiff_t rows, ptrdiff_t inner) {
    void *data = allocate(w, (size_t)(rows * inner) * element_size((element)dtype));
    fill_normal(w, data, dtype, rows, inner);
    return data;
}

/* FLA's initialisation: A is uniform up to 16; the time step, the softplus of dt_bias, is log-uniform from 0.001 to
 * 0.1. */
static void make_gate_parameters(workload *w, ptrdiff_t heads, ptrdiff_t biases) {
    float *A_log = allocate(w, (size_t)heads * sizeof *A_log), *dt_bias = allocate(w, (size_t)biases * sizeof *dt_bias);
    for (ptrdiff_t i = 0; i < heads; i++) A_log[i] = (float)log(rng_uniform(&w->random, 1, 16));
    for (ptrdiff_t i = 0; i < biases; i++) {
        const double step = exp(rng_uniform(&w->random, log(0.001), log(0.1)));
        dt_bias[i] = (float)log(expm1(step));
    }
    w->p.A_log = gdn_f32(A_log);
    w->p.dt_bias = gdn_f32(dt_bias);
}

static void normalise(float *rows, ptrdiff_t count, ptrdiff_t inner) {
    for (float *x = rows; x < rows + count * inner; x += inner) {
        double sum = 0;
        for (ptrdiff_t i = 0; i < inner; i++) sum += (double)x[i] * (double)x[i];
        for (ptrdiff_t i = 0; i < inner; i++) x[i] = (float)((double)x[i] / sqrt(sum));
    }
}

/* Raw inputs to what ggml takes. */
static void prepare_as_caller(workload *w, float *q, float *k, float *a, float *b) {
    gdn_params *p = &w->p;
    const ptrdiff_t heads = p->num_value_heads;
    const float *A_log = p->A_log.data, *dt_bias = p->dt_bias.data;
    normalise(q, p->seq_len * p->num_key_heads, p->head_k_dim);
    normalise(k, p->seq_len * p->num_key_heads, p->head_k_dim);
    for (ptrdiff_t i = 0; i < p->seq_len * heads; i++) {
        a[i] = (float)(-exp((double)A_log[i % heads]) * log1p(exp((double)a[i] + (double)dt_bias[i % heads])));
        b[i] = (float)(1 / (1 + exp(-(double)b[i])));
    }
    p->use_qk_l2norm_in_kernel = false;
    p->gate_input = GDN_GATE_LOG;
    p->beta_input = GDN_BETA_GIVEN;
    p->head_map = GDN_HEADS_TILED;
}

/* cu_seqlens and the sizes that follow from the lengths. */
static void make_lengths(workload *w, const workload_shape *shape) {
    const ptrdiff_t lengths[] = {shape->seqs, shape->tokens};
    rng random = rng_stream(lengths, 2); /* the same for mixed and joined */
    int32_t *ends = allocate(w, ((size_t)shape->seqs + 1) * sizeof *ends);
    ends[0] = 0;
    for (int n = 0; n < shape->seqs; n++) {
        const ptrdiff_t length =
            shape->lengths == LENGTHS_EQUAL ? shape->tokens : 1 + rng_below(&random, shape->tokens);
        ends[n + 1] = ends[n] + (int32_t)length;
        if (length > w->longest) w->longest = length;
    }
    w->p.num_seqs = shape->seqs;
    w->p.seq_len = ends[shape->seqs];
    if (shape->lengths == LENGTHS_JOINED) {
        w->longest = ends[1] = ends[shape->seqs];
        w->p.num_seqs = 1;
    }
    w->p.batch_size = 1;
    w->p.cu_seqlens = gdn_i32(ends);
}

/* The pool, and where the states go. */
static void make_states(workload *w, const workload_shape *shape, gdn_isa isa) {
    gdn_params *p = &w->p;
    const bool apart = shape->states == STATES_APART;
    const int32_t seqs = (int32_t)p->num_seqs;
    p->initial_state_source = gdn_pool_of(NULL, shape->state, apart ? 2 * seqs : seqs);
    const size_t bytes = (size_t)p->initial_state_source.num_states * slot_bytes(w);
    void *pool = p->initial_state_source.data = allocate(w, bytes);
    rates_scale(w->threads, isa, pool, bytes); /* the threads that touch memory first have it near */
    fill_normal(w, pool, shape->state, seqs * p->num_value_heads * p->head_k_dim, p->head_v_dim);
    int32_t *slots = allocate(w, 2 * (size_t)seqs * sizeof *slots);
    for (int32_t n = 0; n < seqs; n++) {
        slots[n] = (n ^ 1) < seqs ? n ^ 1 : n; /* neighbours swapped */
        slots[seqs + n] = seqs + slots[n];
    }
    p->initial_state_indices = gdn_i32(slots);
    if (apart) p->output_state_indices = gdn_i32(slots + seqs);
    if (shape->states != STATES_STEPS) return;
    void *cache = allocate(w, (size_t)p->seq_len * slot_bytes(w));
    p->intermediate_states_buffer = gdn_cache_of(cache, shape->state, seqs, w->longest);
    p->disable_state_update = true;
}

/* ---- Runs ---- */

/* A chunk is the value heads of one key head, which share the work on q and k, or less where that would leave threads
 * with fewer than two: then those on slower processors determine the time. One thread takes everything at once. */
static void plan(workload *w) {
    const gdn_params *p = &w->p;
    const ptrdiff_t count = threads_count(w->threads);
    w->items = gdn_num_work_items(p);
    const ptrdiff_t key_head = w->items / p->num_seqs / p->num_key_heads, fair = w->items / count / 2;
    w->chunk = count == 1 ? w->items : key_head < fair ? key_head : fair > 0 ? fair : 1;
    w->shares = allocate(w, (size_t)count * sizeof *w->shares);
    for (ptrdiff_t i = 0; i < count; i++) atomic_init(&w->shares[i].next, 0);
    w->scratch_bytes = (gdn_scratch_size(p) + PAGE - 1) / PAGE * PAGE;
    w->scratch = allocate(w, (size_t)count * w->scratch_bytes);
}

/* A thread runs its own share, neighbours after neighbours, and then helps the others. */
static void run_share(void *data, int thread) {
    workload *w = data;
    const int count = threads_count(w->threads);
    void *scratch = w->scratch + (size_t)thread * w->scratch_bytes;
    for (int i = 0; i < count; i++) {
        share *s = &w->shares[(thread + i) % count];
        for (;;) {
            const ptrdiff_t first = atomic_fetch_add(&s->next, 1) * w->chunk;
            if (first >= s->end) break;
            const ptrdiff_t last = first + w->chunk < s->end ? first + w->chunk : s->end;
            if (gdn_run_work_items(&w->p, first, last, scratch, w->scratch_bytes) != GDN_OK) stop("a work item failed");
        }
    }
}

static void validate(const gdn_params *p) {
    gdn_error error;
    if (gdn_validate(p, &error) == GDN_OK) return;
    fprintf(stderr, "gdn_bench: %s: %s\n", error.argument, gdn_status_text(error.status));
    exit(2);
}

void workload_run(workload *w) {
    const ptrdiff_t count = threads_count(w->threads), chunks = (w->items + w->chunk - 1) / w->chunk;
    validate(&w->p);
    for (ptrdiff_t i = 0; i < count; i++) {
        const ptrdiff_t end = chunks * (i + 1) / count * w->chunk;
        w->shares[i].end = end < w->items ? end : w->items;
        atomic_store(&w->shares[i].next, chunks * i / count);
    }
    threads_run(w->threads, run_share, w);
}

workload *workload_new(const workload_shape *shape, gdn_isa isa, threads *t) {
    workload *w = calloc(1, sizeof *w);
    if (w == NULL) stop("out of memory");
    const ptrdiff_t sizes[] = {shape->key_heads, shape->value_heads, shape->k_dim, shape->v_dim};
    w->random = rng_stream(sizes, 4);
    w->threads = t;
    make_lengths(w, shape);

    gdn_params *p = &w->p;
    p->num_key_heads = shape->key_heads;
    p->num_value_heads = shape->value_heads;
    p->head_k_dim = shape->k_dim;
    p->head_v_dim = shape->v_dim;
    p->is_kda = shape->is_kda;
    p->allow_neg_eigval = shape->allow_neg_eigval;
    p->use_qk_l2norm_in_kernel = true;
    p->state_layout = shape->layout;
    p->compute = shape->compute;
    p->isa = isa;

    const ptrdiff_t heads = p->num_value_heads, key_rows = p->seq_len * p->num_key_heads, rows = p->seq_len * heads;
    const ptrdiff_t gates = p->is_kda ? p->head_k_dim : 1;
    const gdn_dtype dtype = shape->inputs;
    make_gate_parameters(w, heads, heads * gates);
    void *q = make_normal(w, dtype, key_rows, p->head_k_dim), *k = make_normal(w, dtype, key_rows, p->head_k_dim);
    void *v = make_normal(w, dtype, rows, p->head_v_dim);
    void *a = make_normal(w, dtype, rows, gates), *b = make_normal(w, dtype, rows, 1);
    if (shape->style == STYLE_GGML) prepare_as_caller(w, q, k, a, b);
    p->q = gdn_tensor_of(q, dtype);
    p->k = gdn_tensor_of(k, dtype);
    p->v = gdn_tensor_of(v, dtype);
    p->a = gdn_tensor_of(a, dtype);
    p->b = gdn_tensor_of(b, dtype);
    p->o = gdn_output_of(allocate(w, (size_t)(rows * p->head_v_dim) * element_size((element)dtype)), dtype);

    make_states(w, shape, isa);
    validate(p);
    plan(w);
    return w;
}

/* ---- Check ---- */

/* Largest difference, and largest number expected, of one array. */
typedef struct deviation {
    double difference, size;
} deviation;

static void deviate(deviation *d, double actual, double expected) {
    const double difference = fabs(actual - expected);
    if (isnan(difference) || difference > d->difference) d->difference = difference; /* a NaN stays */
    if (fabs(expected) > d->size) d->size = fabs(expected);
}

static bool accept(const char *array, const deviation *d, gdn_dtype dtype) {
    /* The 16-bit types: the float32 result may be rounded to the other neighbour. */
    const double tolerance = dtype == GDN_BF16 ? 0x1p-7 : dtype == GDN_F16 ? 0x1p-10 : 1e-5;
    if (d->difference <= tolerance * d->size) return true;
    fprintf(stderr, "gdn_bench: %s is off by %g from the oracle, its largest element being %g\n", array, d->difference,
            d->size);
    return false;
}

/* Work items are ordered by sequence, key head, value head of that key head, slice of 32 columns. */
enum { SLICE = 32 };
typedef struct place {
    ptrdiff_t item, sequence, head, first, last; /* columns */
} place;

static place place_of(const workload *w, ptrdiff_t item) {
    const gdn_params *p = &w->p;
    const ptrdiff_t heads = p->num_value_heads, group = heads / p->num_key_heads;
    const ptrdiff_t slices = w->items / (p->num_seqs * heads), slice = item % slices, position = item / slices % heads;
    place x = {.item = item, .sequence = item / slices / heads, .head = position};
    if (p->head_map == GDN_HEADS_TILED) x.head = position % group * p->num_key_heads + position / group;
    x.first = slice * SLICE;
    x.last = slice + 1 < slices ? x.first + SLICE : p->head_v_dim;
    return x;
}

static void compare_outputs(deviation *d, const workload *w, const place *x, const double *expected) {
    const gdn_params *p = &w->p;
    const int32_t *ends = p->cu_seqlens.data;
    const element type = (element)p->o.dtype;
    for (ptrdiff_t t = ends[x->sequence]; t < ends[x->sequence + 1]; t++) {
        const ptrdiff_t row = (t * p->num_value_heads + x->head) * p->head_v_dim;
        for (ptrdiff_t c = row + x->first; c < row + x->last; c++)
            deviate(d, element_load(type, (const unsigned char *)p->o.data + (size_t)c * element_size(type)),
                    expected[c]);
    }
}

static unsigned char *slot(const workload *w, const gdn_indices *slots, ptrdiff_t sequence) {
    return (unsigned char *)w->p.initial_state_source.data +
           (size_t)((const int32_t *)slots->data)[sequence] * slot_bytes(w);
}

/* Where the state of its head is before a run, and after one. */
static unsigned char *start_matrix(const workload *w, const place *x) {
    return slot(w, &w->p.initial_state_indices, x->sequence) + (size_t)x->head * matrix_bytes(w);
}

static unsigned char *matrix(const workload *w, const place *x, ptrdiff_t tokens_before) {
    return (unsigned char *)workload_state(w, x->sequence, tokens_before) + (size_t)x->head * matrix_bytes(w);
}

static void compare_states(deviation *d, const workload *w, const place *x, const unsigned char *actual,
                           const unsigned char *expected) {
    const gdn_params *p = &w->p;
    const ptrdiff_t K = p->head_k_dim, V = p->head_v_dim;
    const element type = (element)p->initial_state_source.dtype;
    for (ptrdiff_t c = x->first; c < x->last; c++)
        for (ptrdiff_t i = 0; i < K; i++) {
            const size_t at = (size_t)(p->state_layout == GDN_STATE_KV ? i * V + c : c * K + i) * element_size(type);
            deviate(d, element_load(type, actual + at), element_load(type, expected + at));
        }
}

bool workload_check(workload *w) {
    const gdn_params *p = &w->p;
    gdn_params oracle = *p;
    oracle.compute = GDN_COMPUTE_F64;
    oracle.isa = GDN_ISA_AUTO;
    const size_t scratch_bytes = gdn_scratch_size(&oracle), bytes = matrix_bytes(w);
    const ptrdiff_t left = workload_states_left(w);
    double *expected = calloc((size_t)(p->seq_len * p->num_value_heads * p->head_v_dim), sizeof *expected);
    unsigned char *before = malloc(MAX_CHECKED * bytes), *after = malloc((size_t)(MAX_CHECKED * left) * bytes);
    void *scratch = malloc(scratch_bytes);
    if (expected == NULL || before == NULL || after == NULL || scratch == NULL) stop("out of memory");
    oracle.o = gdn_out_f64(expected);
    validate(&oracle);

    const ptrdiff_t affordable = CHECKED_TOKENS / w->longest;
    const ptrdiff_t count = affordable < 2 ? 2 : affordable > MAX_CHECKED ? MAX_CHECKED : affordable;
    place places[MAX_CHECKED];
    for (ptrdiff_t i = 0; i < count; i++) {
        places[i] = place_of(w, (w->items - 1) * i / (count - 1));
        memcpy(before + (size_t)i * bytes, start_matrix(w, &places[i]), bytes);
    }
    workload_run(w);
    for (ptrdiff_t i = 0; i < count * left; i++)
        memcpy(after + (size_t)i * bytes, matrix(w, &places[i / left], i % left), bytes);

    deviation outputs = {0, 0}, states = {0, 0};
    for (ptrdiff_t i = 0; i < count; i++) {
        const place *x = &places[i];
        memcpy(start_matrix(w, x), before + (size_t)i * bytes, bytes);
        if (gdn_run_work_items(&oracle, x->item, x->item + 1, scratch, scratch_bytes) != GDN_OK)
            stop("the oracle failed");
        compare_outputs(&outputs, w, x, expected);
        for (ptrdiff_t j = 0; j < left; j++) {
            const unsigned char *actual = after + (size_t)(i * left + j) * bytes;
            compare_states(&states, w, x, actual, matrix(w, x, j));
            memcpy(matrix(w, x, j), actual, bytes);
        }
    }
    free(expected);
    free(before);
    free(after);
    free(scratch);
    const bool outputs_right = accept("o", &outputs, p->o.dtype);
    return accept("the state", &states, p->initial_state_source.dtype) && outputs_right;
}

const gdn_params *workload_params(const workload *w) { return &w->p; }

ptrdiff_t workload_longest(const workload *w) { return w->longest; }

size_t workload_state_bytes(const workload *w) { return (size_t)w->p.num_seqs * slot_bytes(w); }

ptrdiff_t workload_states_left(const workload *w) {
    return w->p.intermediate_states_buffer.data != NULL ? w->longest : 1;
}

void *workload_state(const workload *w, ptrdiff_t sequence, ptrdiff_t tokens_before) {
    const gdn_params *p = &w->p;
    const gdn_state_cache *cache = &p->intermediate_states_buffer;
    if (cache->data != NULL)
        return (unsigned char *)cache->data +
               (size_t)((sequence + 1) * cache->num_steps - 1 - tokens_before) * slot_bytes(w);
    return slot(w, p->output_state_indices.data != NULL ? &p->output_state_indices : &p->initial_state_indices,
                sequence);
}

void workload_free(workload *w) {
    for (int i = 0; i < w->num_arrays; i++) free(w->arrays[i]);
    free(w);
}
