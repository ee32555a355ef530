/* Bytes to parameters: sizes, strides, dtypes, options, index arrays and where everything lies in memory. What
 * gdn_validate() accepts must run, as one call and in any partition, with the same result and without touching a byte
 * that it may not touch; what it refuses must not change a byte. The same for gdn_prepare(), whose results must be the
 * same however many are asked for at once. Every function returns, whatever bytes the parameters are made of.
 *
 * Each buffer is a block of the heap that ends with the last byte that the parameters speak of, so that
 * AddressSanitizer sees the first byte read or written outside. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "input.h"
#include "elements.h"
#include "gdn_varlen.h"

enum {
    A_LOG,
    A,
    DT_BIAS,
    Q,
    K,
    V,
    B,
    K_READ,
    ERASE,
    GV,
    MASK,
    O,
    POOL,
    OUTPUTS,
    CACHE, /* tensors */
    CU_SEQLENS,
    READS,
    WRITES,
    ROWS,
    PARENTS,
    STEP_SLOTS,
    ACCEPTED, /* indices */
    SCRATCH,
    RESULT_G,
    RESULT_DECAY,
    RESULT_BETA,
    RESULT_Q,
    RESULT_K,
    RESULT_K_READ, /* of gdn_prepare() */
    NUM_ARRAYS
};

/* What a case may cost. */
enum { MAX_BYTES = 1 << 18, MAX_SEQS = 1 << 10, MAX_WORK = 100000 };

/* An array as the parameters describe it, with every default filled in. */
typedef struct array {
    const void **data; /* the pointer in the parameters */
    ptrdiff_t size[3], stride[3], width;
    size_t element; /* bytes */
    gdn_dtype dtype;
    double bytes;  /* from the first element to the last; a double, which does not overflow */
    int home;      /* array in whose block it lies */
    size_t offset; /* and where in it */
} array;

/* A block of the heap with a copy of what was in it before the call and a flag for every byte that may change. */
typedef struct block {
    unsigned char *start, *data, *before;
    bool *open;
    size_t size;
} block;

typedef struct fuzz_case {
    gdn_params p;
    gdn_prepared results;
    array arrays[NUM_ARRAYS];
    block blocks[NUM_ARRAYS];
} fuzz_case;

static const void *const present = "";

/* ---- sizes, options ------------------------------------------------------------------------------- */

static gdn_dtype draw_dtype(input *b, gdn_compute compute) {
    static const gdn_dtype dtypes[] = {GDN_F32, GDN_F32, GDN_BF16, GDN_F16, GDN_F64};
    gdn_dtype dtype = INPUT_PICK(b, dtypes);
    return dtype == GDN_F64 && compute != GDN_COMPUTE_F64 ? GDN_F32 : dtype;
}

static gdn_tensor draw_tensor(input *b, gdn_compute compute) {
    gdn_tensor x = {present, draw_dtype(b, compute), 0, 0, 0};
    return x;
}

static gdn_indices draw_indices(input *b, ptrdiff_t columns) {
    gdn_indices x = {NULL, input_below(b, 2) ? GDN_I64 : GDN_I32, columns, 0};
    return x;
}

/* A case that is valid as far as can be said without its index arrays. */
static void draw_params(input *b, gdn_params *p) {
    static const ptrdiff_t dims[] = {1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 20, 24, 31, 32, 33, 40, 47, 64, 65};
    const int kind = input_byte(b), states = input_byte(b), more = input_byte(b), options = input_byte(b);
    memset(p, 0, sizeof *p);
    static const gdn_compute computes[] = {GDN_COMPUTE_F32, GDN_COMPUTE_F32, GDN_COMPUTE_F32_CHUNKS, GDN_COMPUTE_F64};
    p->compute = computes[kind % 4];
    p->isa = kind / 4 % 2 ? GDN_ISA_AUTO : kind / 8 % 2 ? GDN_ISA_AVX2 : GDN_ISA_PLAIN;
    if (!gdn_isa_supported(p->isa)) p->isa = GDN_ISA_AUTO;
    p->num_key_heads = 1 + input_below(b, 3);
    p->num_value_heads = p->num_key_heads * (1 + input_below(b, 3));
    p->head_k_dim = INPUT_PICK(b, dims);
    p->head_v_dim = INPUT_PICK(b, dims);
    p->batch_size = kind / 16 % 2 ? 1 : 1 + input_below(b, 3);
    p->seq_len = input_below(b, 8);
    if (kind / 16 % 2) p->num_seqs = 1 + input_below(b, 4);
    const ptrdiff_t n = kind / 16 % 2 ? p->num_seqs : p->batch_size, steps = p->seq_len + 1;

    p->is_kda = options % 2 != 0;
    p->beta_per_column = options / 2 % 2 != 0;
    p->use_qk_l2norm_in_kernel = options / 4 % 2 != 0;
    p->allow_neg_eigval = options / 8 % 2 != 0;
    p->head_map = options / 16 % 2 ? GDN_HEADS_TILED : GDN_HEADS_GROUPED;
    p->gate_input = (gdn_gate_input)(options / 32 % 3);
    p->l2norm_form = (gdn_l2norm_form)input_below(b, 4);
    p->beta_input = (gdn_beta_input)input_below(b, 2);
    p->has_lower_bound = p->gate_input == GDN_GATE_RAW && input_below(b, 3) == 1;

    p->A_log = draw_tensor(b, p->compute);
    p->a = draw_tensor(b, p->compute);
    p->dt_bias = draw_tensor(b, p->compute);
    p->q = draw_tensor(b, p->compute);
    p->k = draw_tensor(b, p->compute);
    p->v = draw_tensor(b, p->compute);
    p->b = draw_tensor(b, p->compute);
    if (!p->beta_per_column && more % 8 == 7) p->b.data = NULL;
    p->o.data = (void *)(uintptr_t)present;
    p->o.dtype = draw_dtype(b, p->compute);

    p->state_layout = states % 2 ? GDN_STATE_KV : GDN_STATE_VK;
    p->cu_seqlens = draw_indices(b, 1);
    if (kind / 16 % 2) p->cu_seqlens.data = present;
    if (states / 2 % 4 != 0) { /* a pool */
        p->initial_state_source =
            gdn_pool_of((void *)(uintptr_t)present, draw_dtype(b, p->compute), n * steps + input_below(b, 3));
        p->initial_state_indices = p->output_state_indices = p->num_accepted_tokens = draw_indices(b, 1);
        p->ssm_state_indices = draw_indices(b, steps);
        if (states / 2 % 4 == 2) p->initial_state_indices.data = present;
        if (states / 2 % 4 == 2 && more / 8 % 2) p->output_state_indices.data = present;
        if (states / 2 % 4 == 3) p->ssm_state_indices.data = present;
        if (states / 2 % 4 == 3 && more / 8 % 2) p->num_accepted_tokens.data = present;
        p->disable_state_update = more / 16 % 4 == 1;
        if (more / 16 % 4 == 3)
            p->output_state_pool = gdn_pool_of((void *)(uintptr_t)present, draw_dtype(b, p->compute), n * steps);
        p->has_null_slot = more / 64 % 2 != 0;
        p->padding = (gdn_padding)(states / 8 % 3);
    }
    if (states / 64 != 0) { /* a cache */
        p->intermediate_states_buffer = gdn_cache_of((void *)(uintptr_t)present, draw_dtype(b, p->compute), n, steps);
        p->intermediate_state_indices = draw_indices(b, 1);
        p->retrieve_parent_token = draw_indices(b, steps);
        if (states / 64 >= 2) p->intermediate_state_indices.data = present;
        if (states / 64 == 3) p->retrieve_parent_token.data = present;
    }
    if (more / 128) p->scratch = (void *)(uintptr_t)present;
}

/* Some axes broadcast, or none. */
static void draw_strides(input *b, ptrdiff_t *batch, ptrdiff_t *token, ptrdiff_t *head) {
    const int axes = input_byte(b) % 16;
    if (axes >= 8) return;
    if (axes % 2) *batch = GDN_BROADCAST;
    if (axes / 2 % 2) *token = GDN_BROADCAST;
    if (axes / 4 % 2) *head = GDN_BROADCAST;
}

/* What few systems have. A zero leaves everything as it is. */
static void draw_extras(input *b, gdn_params *p) {
    static const ptrdiff_t intervals[] = {0, 1, 2, 3, 5, 16};
    static const gdn_tensor none = {NULL, GDN_DTYPE_NOT_SET, 0, 0, 0};
    const int kind = input_byte(b);
    if (kind == 0) return;
    const int inputs = input_byte(b), absent = input_byte(b);
    if (inputs % 2) p->k_read = draw_tensor(b, p->compute);
    if (inputs / 2 % 2) p->erase = draw_tensor(b, p->compute);
    if (inputs / 4 % 4 == 1) p->gv = draw_tensor(b, p->compute);
    if (inputs / 16 % 4 == 1) p->token_mask.data = (const uint8_t *)present;
    p->read_before_decay = inputs / 64 % 4 == 1;
    if (kind % 2) p->step_interval = INPUT_PICK(b, intervals);
    if (kind / 16 % 2 && p->step_interval > 1) /* no more columns than steps, or hardly */
        p->ssm_state_indices.num_columns = p->intermediate_states_buffer.num_steps =
            p->seq_len / p->step_interval + input_below(b, 2);
    if (kind / 2 % 2) p->rounding = (unsigned)input_below(b, 17);
    if (kind / 4 % 2) {
        gdn_tensor *const tensors[] = {&p->a, &p->q, &p->k, &p->v, &p->b, &p->k_read, &p->erase, &p->gv};
        ptrdiff_t unused = 0;
        for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++)
            draw_strides(b, &tensors[i]->batch_stride, &tensors[i]->token_stride, &tensors[i]->head_stride);
        draw_strides(b, &p->token_mask.batch_stride, &p->token_mask.token_stride, &unused);
        draw_strides(b, &unused, &p->A_log.head_stride, &p->dt_bias.head_stride);
    }
    if (kind / 8 % 2 && p->initial_state_source.data != NULL) { /* slots for steps, beside others */
        const int slots = input_byte(b);
        p->ssm_state_indices.data = slots % 2 ? present : NULL;
        p->initial_state_indices.data = slots / 2 % 2 ? present : NULL;
        p->output_state_indices.data = slots / 4 % 2 ? present : NULL;
        if (slots / 8 % 4 != 1) p->num_accepted_tokens.data = NULL;
        if (slots / 32 % 4 == 1) p->output_state_pool = p->initial_state_source;
    }
    if (absent % 2) p->A_log = none;
    if (absent / 2 % 2) p->dt_bias = none;
    if (absent / 4 % 4 == 1) p->a = none;
    if (absent / 16 % 4 == 1) p->q = none;
    if (absent / 64 == 1) {
        p->homogeneous = true;
        p->v = none;
        p->o.data = NULL;
    }
    if (absent / 64 == 2) p->k = none;
    if (absent / 64 == 3) p->b = none;
}

/* Which results are asked for. */
static void draw_results(input *b, gdn_compute compute, gdn_prepared *results) {
    gdn_output *const outputs[] = {&results->g, &results->decay, &results->beta,
                                   &results->q, &results->k,     &results->k_read};
    const int which = input_byte(b);
    for (int i = 0; i < 6; i++) {
        if (!(which >> i & 1)) continue;
        outputs[i]->data = (void *)(uintptr_t)present;
        outputs[i]->dtype = draw_dtype(b, compute);
        if (which / 64 != 1) continue;
        ptrdiff_t *const strides[] = {&outputs[i]->batch_stride, &outputs[i]->token_stride, &outputs[i]->head_stride};
        ptrdiff_t *const stride = INPUT_PICK(b, strides);
        const int value = input_byte(b);
        *stride = value == 255 ? GDN_BROADCAST : value;
    }
    if (which / 64 == 2) outputs[input_below(b, 6)]->dtype = (gdn_dtype)(int8_t)input_byte(b);
}

/* One field changed to something that may not be there. */
static void edit_params(input *b, gdn_params *p) {
    gdn_state_pool *pool = &p->initial_state_source;
    gdn_state_cache *cache = &p->intermediate_states_buffer;
    ptrdiff_t *const sizes[] = {
        &p->batch_size, &p->seq_len, &p->num_seqs, &p->num_key_heads, &p->num_value_heads, &p->head_k_dim,
        &p->head_v_dim, &pool->num_states, &cache->num_rows, &cache->num_steps, &p->retrieve_parent_token.num_columns,
        &p->ssm_state_indices.num_columns, &p->num_accepted_tokens.num_columns, &p->cu_seqlens.num_columns,
        /* strides */
        &p->A_log.head_stride, &p->A_log.token_stride, &p->a.batch_stride, &p->a.token_stride, &p->a.head_stride,
        &p->dt_bias.head_stride, &p->dt_bias.batch_stride, &p->q.batch_stride, &p->q.token_stride, &p->q.head_stride,
        &p->k.batch_stride, &p->k.token_stride, &p->k.head_stride, &p->v.batch_stride, &p->v.token_stride,
        &p->v.head_stride, &p->b.batch_stride, &p->b.token_stride, &p->b.head_stride, &p->o.batch_stride,
        &p->o.token_stride, &p->o.head_stride, &pool->slot_stride, &pool->head_stride, &cache->row_stride,
        &cache->step_stride, &cache->head_stride, &p->output_state_pool.num_states, &p->output_state_pool.slot_stride,
        &p->output_state_pool.head_stride, &p->cu_seqlens.row_stride, &p->initial_state_indices.row_stride,
        &p->output_state_indices.row_stride, &p->intermediate_state_indices.row_stride,
        &p->retrieve_parent_token.row_stride, &p->ssm_state_indices.row_stride, &p->num_accepted_tokens.row_stride};
    gdn_dtype *const dtypes[] = {&p->A_log.dtype,
                                 &p->a.dtype,
                                 &p->dt_bias.dtype,
                                 &p->q.dtype,
                                 &p->k.dtype,
                                 &p->v.dtype,
                                 &p->b.dtype,
                                 &p->o.dtype,
                                 &pool->dtype,
                                 &cache->dtype,
                                 &p->output_state_pool.dtype};
    double *const numbers[] = {&p->scale, &p->l2norm_eps, &p->softplus_beta, &p->softplus_threshold, &p->lower_bound};
    static const double values[] = {0, 1, -1, 1e-300, 1e300, -0.5, 7, DBL_MAX, HUGE_VAL, -HUGE_VAL, (double)NAN};
    static const ptrdiff_t extremes[] = {PTRDIFF_MAX,        PTRDIFF_MIN,         PTRDIFF_MAX / 2, (ptrdiff_t)1 << 40,
                                         (ptrdiff_t)1 << 31, PTRDIFF_MAX / 4 + 1, PTRDIFF_MIN / 2, 4096};
    switch (input_below(b, 8)) {
    case 0:
    case 1:
    case 2: *INPUT_PICK(b, sizes) = (int8_t)input_byte(b); break;
    case 3: { /* wraps */
        ptrdiff_t *const size = INPUT_PICK(b, sizes);
        *size = (ptrdiff_t)((size_t)*size + (size_t)(int8_t)input_byte(b));
        break;
    }
    case 4: *INPUT_PICK(b, sizes) = INPUT_PICK(b, extremes); break;
    case 5: *INPUT_PICK(b, dtypes) = (gdn_dtype)(int8_t)input_byte(b); break;
    case 6: *INPUT_PICK(b, numbers) = INPUT_PICK(b, values); break;
    default: {
        const int which = input_below(b, 13), value = (int8_t)input_byte(b);
        if (which == 0) p->state_layout = (gdn_state_layout)value;
        if (which == 1) p->head_map = (gdn_head_map)value;
        if (which == 2) p->gate_input = (gdn_gate_input)value;
        if (which == 3) p->beta_input = (gdn_beta_input)value;
        if (which == 4) p->l2norm_form = (gdn_l2norm_form)value;
        if (which == 5) p->padding = (gdn_padding)value;
        if (which == 6) p->compute = (gdn_compute)value;
        if (which == 7) p->isa = (gdn_isa)value;
        if (which == 8) p->null_slot = value;
        if (which == 9) p->has_lower_bound = value % 2 != 0;
        if (which == 10) p->disable_state_update = value % 2 != 0;
        if (which == 11) p->is_kda = value % 2 != 0;
        if (which == 12) p->cu_seqlens.dtype = (gdn_index_dtype)value;
    }
    }
}

/* The same for the fields of few systems. */
static void edit_extras(input *b, gdn_params *p) {
    static const ptrdiff_t extremes[] = {
        PTRDIFF_MAX, GDN_BROADCAST, PTRDIFF_MAX / 2, (ptrdiff_t)1 << 40, PTRDIFF_MIN + 1, (ptrdiff_t)1 << 31, -1, 4096};
    gdn_tensor *const tensors[] = {&p->A_log, &p->a, &p->dt_bias, &p->q,     &p->k,
                                   &p->v,     &p->b, &p->k_read,  &p->erase, &p->gv};
    gdn_tensor *const x = INPUT_PICK(b, tensors);
    const int value = (int8_t)input_byte(b);
    const ptrdiff_t size = value >= 0 ? value : extremes[value & 7];
    switch (input_below(b, 10)) {
    case 0: x->batch_stride = size; break;
    case 1: x->token_stride = size; break;
    case 2: x->head_stride = size; break;
    case 3: x->dtype = (gdn_dtype)value; break;
    case 4: x->data = x->data == NULL ? present : NULL; break;
    case 5: p->token_mask.batch_stride = size; break;
    case 6: p->token_mask.token_stride = size; break;
    case 7: p->step_interval = size; break;
    case 8: p->rounding = (unsigned)value; break;
    default: p->read_before_decay = !p->read_before_decay; break;
    }
}

/* ---- memory --------------------------------------------------------------------------------------- */

/* Bytes from the first element to the last. Strides below zero have no such thing; they are refused. */
static double span(const array *x) {
    double elements = (double)x->width;
    for (int axis = 0; axis < 3; axis++) {
        if (x->size[axis] <= 0) return 0;
        if (x->stride[axis] > 0) elements += ((double)x->size[axis] - 1) * (double)x->stride[axis];
    }
    return x->width <= 0 ? 0 : elements * (double)x->element;
}

/* A product that stays within ptrdiff_t; the arrays that it matters to are far too large to run. */
static ptrdiff_t product(ptrdiff_t x, ptrdiff_t y) {
    const double z = (double)x * (double)y;
    return z > 1e18 ? PTRDIFF_MAX : z < -1e18 ? PTRDIFF_MIN : x * y;
}

/* An axis that is broadcast has one place in what is read; what is written refuses it. */
static array tensor_array(const void **data, gdn_dtype dtype, bool is_read, ptrdiff_t batch, ptrdiff_t tokens,
                          ptrdiff_t heads, ptrdiff_t width, ptrdiff_t s0, ptrdiff_t s1, ptrdiff_t s2) {
    array y = {data, {batch, tokens, heads}, {s0, s1, s2}, width, 8, dtype, 0, 0, 0};
    ptrdiff_t inner = width;
    if (dtype == GDN_F32) y.element = 4;
    if (dtype == GDN_BF16 || dtype == GDN_F16) y.element = 2;
    for (int axis = 2; axis >= 0; axis--) {
        if (y.stride[axis] == 0) y.stride[axis] = inner;
        if (y.stride[axis] != GDN_BROADCAST || !is_read)
            inner = product(y.size[axis], y.stride[axis]);
        else if (y.size[axis] > 1)
            y.size[axis] = 1;
    }
    return y;
}

static array input_array(gdn_tensor *x, ptrdiff_t batch, ptrdiff_t tokens, ptrdiff_t heads, ptrdiff_t width) {
    return tensor_array(&x->data, x->dtype, true, batch, tokens, heads, width, x->batch_stride, x->token_stride,
                        x->head_stride);
}

static array output_array(gdn_output *x, ptrdiff_t batch, ptrdiff_t tokens, ptrdiff_t heads, ptrdiff_t width) {
    return tensor_array((const void **)(uintptr_t)&x->data, x->dtype, false, batch, tokens, heads, width,
                        x->batch_stride, x->token_stride, x->head_stride);
}

static array pool_array(const gdn_params *p, gdn_state_pool *x) {
    return tensor_array((const void **)(uintptr_t)&x->data, x->dtype, false, 1, x->num_states, p->num_value_heads,
                        product(p->head_k_dim, p->head_v_dim), 0, x->slot_stride, x->head_stride);
}

static array index_array(gdn_indices *x, ptrdiff_t rows, ptrdiff_t columns) {
    array y = {&x->data,
               {1, 1, rows},
               {0, 0, x->row_stride == 0 ? columns : x->row_stride},
               columns,
               8,
               GDN_DTYPE_NOT_SET,
               0,
               0,
               0};
    if (x->dtype == GDN_I32) y.element = 4;
    return y;
}

static void list_arrays(fuzz_case *c) {
    gdn_params *p = &c->p;
    array *x = c->arrays;
    const ptrdiff_t batch = p->batch_size, t = p->seq_len, h = p->num_key_heads, hv = p->num_value_heads;
    const ptrdiff_t k = p->head_k_dim, v = p->head_v_dim, n = p->cu_seqlens.data != NULL ? p->num_seqs : batch;
    const ptrdiff_t gates = p->is_kda ? k : 1, betas = p->beta_per_column ? v : 1;
    gdn_state_cache *cache = &p->intermediate_states_buffer;
    gdn_prepared *results = &c->results;
    x[A_LOG] = input_array(&p->A_log, 1, 1, hv, 1);
    x[A] = input_array(&p->a, batch, t, hv, gates);
    x[DT_BIAS] = input_array(&p->dt_bias, 1, 1, hv, gates);
    x[Q] = input_array(&p->q, batch, t, h, k);
    x[K] = input_array(&p->k, batch, t, h, k);
    x[V] = input_array(&p->v, batch, t, hv, v);
    x[B] = input_array(&p->b, batch, t, hv, betas);
    x[K_READ] = input_array(&p->k_read, batch, t, h, k);
    x[ERASE] = input_array(&p->erase, batch, t, hv, k);
    x[GV] = input_array(&p->gv, batch, t, hv, v);
    x[MASK] = tensor_array((const void **)(uintptr_t)&p->token_mask.data, GDN_DTYPE_NOT_SET, true, batch, t, 1, 1,
                           p->token_mask.batch_stride, p->token_mask.token_stride, 0);
    x[MASK].element = 1;
    x[O] = output_array(&p->o, batch, t, hv, v);
    x[POOL] = pool_array(p, &p->initial_state_source);
    x[OUTPUTS] = pool_array(p, &p->output_state_pool);
    x[CACHE] =
        tensor_array((const void **)(uintptr_t)&cache->data, cache->dtype, false, cache->num_rows, cache->num_steps, hv,
                     product(k, v), cache->row_stride, cache->step_stride, cache->head_stride);
    x[RESULT_G] = output_array(&results->g, batch, t, hv, gates);
    x[RESULT_DECAY] = output_array(&results->decay, batch, t, hv, gates);
    x[RESULT_BETA] = output_array(&results->beta, batch, t, hv, betas);
    x[RESULT_Q] = output_array(&results->q, batch, t, h, k);
    x[RESULT_K] = output_array(&results->k, batch, t, h, k);
    x[RESULT_K_READ] = output_array(&results->k_read, batch, t, h, k);
    x[CU_SEQLENS] = index_array(&p->cu_seqlens, n < PTRDIFF_MAX ? n + 1 : n, 1);
    x[READS] = index_array(&p->initial_state_indices, n, 1);
    x[WRITES] = index_array(&p->output_state_indices, n, 1);
    x[ROWS] = index_array(&p->intermediate_state_indices, n, 1);
    x[PARENTS] = index_array(&p->retrieve_parent_token, n, p->retrieve_parent_token.num_columns);
    x[STEP_SLOTS] = index_array(&p->ssm_state_indices, n, p->ssm_state_indices.num_columns);
    x[ACCEPTED] = index_array(&p->num_accepted_tokens, n, 1);
    array scratch = {(const void **)(uintptr_t)&p->scratch,
                     {1, 1, 1},
                     {0, 0, 0},
                     (ptrdiff_t)p->scratch_size,
                     1,
                     GDN_DTYPE_NOT_SET,
                     0,
                     0,
                     0};
    x[SCRATCH] = scratch;
    for (int i = 0; i < NUM_ARRAYS; i++) {
        x[i].bytes = *x[i].data == NULL ? 0 : span(&x[i]);
        x[i].home = i;
    }
}

/* Two arrays in one block, the second at any place in the first. */
static void share_memory(input *b, fuzz_case *c) {
    array *x = &c->arrays[input_below(b, NUM_ARRAYS)], *y = &c->arrays[input_below(b, NUM_ARRAYS)];
    const int home = (int)(y - c->arrays);
    if (x == y || *x->data == NULL || *y->data == NULL || y->home != home || x->home != (int)(x - c->arrays)) return;
    for (int i = 0; i < NUM_ARRAYS; i++)
        if (i != x->home && c->arrays[i].home == x->home) return;
    const size_t place = (size_t)input_byte(b) << 8 | input_byte(b);
    x->home = home;
    x->offset = place % 4 == 3 ? (size_t)y->bytes : place / 4 % ((size_t)y->bytes + 1);
}

/* Places every array; false where the memory is out of proportion. */
static bool place_arrays(input *b, fuzz_case *c) {
    for (int i = 0; i < NUM_ARRAYS; i++)
        if (c->arrays[i].bytes > MAX_BYTES) return false;
    for (int i = input_below(b, 4); i > 1; i--) share_memory(b, c);
    const unsigned fill = input_byte(b);
    uint32_t noise = fill * 2654435761u;
    for (int i = 0; i < NUM_ARRAYS; i++) {
        block *m = &c->blocks[c->arrays[i].home];
        const size_t end = c->arrays[i].offset + (size_t)c->arrays[i].bytes;
        if (*c->arrays[i].data != NULL && end > m->size) m->size = end;
    }
    /* An odd address now and then: nothing has to be aligned. */
    const size_t skew = fill % 5 == 1 ? 1 + fill / 5 % 7 : 0;
    for (int i = 0; i < NUM_ARRAYS; i++) {
        block *m = &c->blocks[i];
        m->start = malloc(m->size + skew);
        m->before = malloc(m->size + 1);
        m->open = calloc(m->size + 1, sizeof *m->open);
        REQUIRE(m->start != NULL && m->before != NULL && m->open != NULL);
        m->data = m->start + skew;
        for (size_t j = 0; j < m->size; j++) {
            noise = noise * 1664525u + 1013904223u;
            /* Mostly numbers around one in every format: their upper bytes are 0x3c to 0x40, with either sign. */
            m->data[j] = (unsigned char)(fill % 4 == 3 ? noise >> 24 : (noise >> 24 & 0x83u) | 0x3cu);
        }
    }
    for (int i = 0; i < NUM_ARRAYS; i++)
        if (*c->arrays[i].data != NULL) *c->arrays[i].data = c->blocks[c->arrays[i].home].data + c->arrays[i].offset;
    return true;
}

static void free_case(fuzz_case *c) {
    for (int i = 0; i < NUM_ARRAYS; i++) {
        free(c->blocks[i].start);
        free(c->blocks[i].before);
        free(c->blocks[i].open);
    }
}

static unsigned char *element_at(const array *x, ptrdiff_t i0, ptrdiff_t i1, ptrdiff_t i2, ptrdiff_t i3) {
    const ptrdiff_t at = i0 * x->stride[0] + i1 * x->stride[1] + i2 * x->stride[2] + i3;
    return (unsigned char *)(uintptr_t)*x->data + at * (ptrdiff_t)x->element;
}

static void set_index(const array *x, ptrdiff_t row, ptrdiff_t column, int64_t value) {
    if (*x->data == NULL || row < 0 || row >= x->size[2] || column >= x->width || x->stride[2] < 0) return;
    const int32_t narrow = (int32_t)value;
    memcpy(element_at(x, 0, 0, row, column), x->element == 4 ? (const void *)&narrow : &value, x->element);
}

/* Index arrays that fit each other, and then a few that need not. */
static void draw_index_values(input *b, fuzz_case *c) {
    const gdn_params *p = &c->p;
    const ptrdiff_t n = c->arrays[READS].size[2];
    const ptrdiff_t steps = p->ssm_state_indices.data == NULL ? 0 : c->arrays[STEP_SLOTS].width;
    const ptrdiff_t parents = p->retrieve_parent_token.data == NULL ? 0 : c->arrays[PARENTS].width;
    ptrdiff_t end = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        const ptrdiff_t rest = p->seq_len - end;
        set_index(&c->arrays[CU_SEQLENS], i, 0, end);
        if (p->cu_seqlens.data != NULL && rest > 0) end += rest < 255 ? input_below(b, (int)rest + 1) : 1;
        set_index(&c->arrays[READS], i, 0, i * (steps > 0 ? steps : 1));
        set_index(&c->arrays[WRITES], i, 0, steps > 0 ? i * steps : n - 1 - i < i ? i : i + n);
        set_index(&c->arrays[ROWS], i, 0, n - 1 - i);
        set_index(&c->arrays[ACCEPTED], i, 0, 1 + i % (steps > 0 ? steps : 1));
        for (ptrdiff_t j = 0; j < steps; j++) set_index(&c->arrays[STEP_SLOTS], i, j, i * steps + j);
        for (ptrdiff_t j = 0; j < parents; j++) set_index(&c->arrays[PARENTS], i, j, j / 2);
    }
    set_index(&c->arrays[CU_SEQLENS], n, 0, end);
    for (int i = input_below(b, 5); i > 0; i--) {
        static const int64_t extremes[] = {INT64_MAX, INT64_MIN, INT32_MAX, INT32_MIN, (int64_t)1 << 32, -1, -1, -1};
        const array *x = &c->arrays[CU_SEQLENS + input_below(b, SCRATCH - CU_SEQLENS)];
        const ptrdiff_t row = input_below(b, 8), column = input_below(b, 8);
        const int small = input_byte(b);
        set_index(x, row, column, small < 224 ? small % 24 : INPUT_PICK(b, extremes));
    }
}

/* ---- the properties -------------------------------------------------------------------------------- */

static void save(fuzz_case *c) {
    for (int i = 0; i < NUM_ARRAYS; i++)
        if (c->blocks[i].size > 0) memcpy(c->blocks[i].before, c->blocks[i].data, c->blocks[i].size);
}

static void restore(fuzz_case *c) {
    for (int i = 0; i < NUM_ARRAYS; i++)
        if (c->blocks[i].size > 0) memcpy(c->blocks[i].data, c->blocks[i].before, c->blocks[i].size);
}

/* No byte changed but those that may. */
static void require_unchanged(const fuzz_case *c) {
    for (int i = 0; i < NUM_ARRAYS; i++) {
        const block *m = &c->blocks[i];
        for (size_t j = 0; m->size > 0 && j < m->size; j++) REQUIRE(m->data[j] == m->before[j] || m->open[j]);
    }
}

/* Whether any byte of an array's elements may change; `open`: marks them all. */
static bool any_open(fuzz_case *c, int which, bool open) {
    const array *x = &c->arrays[which];
    const block *m = &c->blocks[x->home];
    bool any = false;
    if (*x->data == NULL || x->bytes <= 0) return false;
    const ptrdiff_t bytes = x->width * (ptrdiff_t)x->element;
    for (ptrdiff_t i0 = 0; i0 < x->size[0]; i0++)
        for (ptrdiff_t i1 = 0; i1 < x->size[1]; i1++)
            for (ptrdiff_t i2 = 0; i2 < x->size[2]; i2++) {
                bool *const at = &m->open[element_at(x, i0, i1, i2, 0) - m->data];
                for (ptrdiff_t i = 0; i < bytes; i++) any = any || at[i];
                if (open) memset(at, true, (size_t)bytes);
            }
    return any;
}

/* Marks what is written; no byte of it is there twice. */
static void open_elements(fuzz_case *c, int which) { REQUIRE(!any_open(c, which, true)); }

/* Nothing of an array is written. */
static void require_closed(fuzz_case *c, int which) { REQUIRE(!any_open(c, which, false)); }

static void close_elements(fuzz_case *c) {
    for (int i = 0; i < NUM_ARRAYS; i++) memset(c->blocks[i].open, false, c->blocks[i].size);
}

/* The elements of arrays first to last that are there, one after the other. */
static unsigned char *gather(const fuzz_case *c, int first, int last) {
    size_t size = 1;
    for (int i = first; i <= last; i++) size += (size_t)c->arrays[i].bytes;
    unsigned char *all = malloc(size), *to = all;
    REQUIRE(all != NULL);
    for (int i = first; i <= last; i++) {
        const array *x = &c->arrays[i];
        const size_t bytes = (size_t)x->width * x->element;
        if (*x->data == NULL || x->bytes <= 0) continue;
        for (ptrdiff_t i0 = 0; i0 < x->size[0]; i0++)
            for (ptrdiff_t i1 = 0; i1 < x->size[1]; i1++)
                for (ptrdiff_t i2 = 0; i2 < x->size[2]; i2++, to += bytes)
                    memcpy(to, element_at(x, i0, i1, i2, 0), bytes);
    }
    return all;
}

/* They have the bits that they had before; any NaN is the same as any other. Frees `before`. */
static void require_same(const fuzz_case *c, int first, int last, unsigned char *before) {
    unsigned char *now = gather(c, first, last);
    size_t at = 0;
    for (int i = first; i <= last; i++) {
        const array *a = &c->arrays[i];
        if (*a->data == NULL || a->bytes <= 0) continue;
        const ptrdiff_t count = a->size[0] * a->size[1] * a->size[2] * a->width;
        for (ptrdiff_t j = 0; j < count; j++, at += a->element)
            REQUIRE(element_same((element)a->dtype, before + at, now + at));
    }
    free(before);
    free(now);
}

static void run_range(const gdn_params *p, ptrdiff_t first, ptrdiff_t last, size_t size) {
    void *scratch = malloc(size);
    REQUIRE(scratch != NULL);
    memset(scratch, 0xff, size);
    REQUIRE(gdn_run_work_items(p, first, last, scratch, size) == GDN_OK);
    free(scratch);
}

/* Cut in up to four ranges, the last of which runs first. */
static void run_partition(input *b, const gdn_params *p) {
    const ptrdiff_t items = gdn_num_work_items(p);
    const size_t size = gdn_scratch_size(p);
    ptrdiff_t last = items;
    for (int i = input_below(b, 4); i > 0 && last > 0; i--) {
        const ptrdiff_t first = last - 1 - (last < 256 ? input_below(b, (int)last) : 0);
        run_range(p, first, last, size);
        last = first;
    }
    run_range(p, 0, last, size);
    REQUIRE(gdn_run_work_items(p, 0, items + 1, NULL, 0) == GDN_ERROR_RANGE);
}

static void require_error(const gdn_error *error, gdn_status status) {
    REQUIRE(error->status == status);
    REQUIRE(status >= 0 && status < GDN_NUM_STATUSES);
    REQUIRE(error->argument != NULL && (status == GDN_OK) == (error->argument[0] == '\0'));
    REQUIRE(status != GDN_OK || (error->index == -1 && error->other == -1));
    REQUIRE(status != GDN_ERROR_CONFLICT || (error->index > error->other && error->other >= 0));
}

static void check(input *b, fuzz_case *c) {
    gdn_error error, called = {GDN_OK, "", -1, -1};
    save(c);
    const gdn_status status = gdn_validate(&c->p, &error);
    require_error(&error, status);
    REQUIRE(gdn_validate(&c->p, NULL) == status);
    /* In any order, validated or not, and without an address. */
    REQUIRE(gdn_num_work_items(&c->p) >= 0 && (status != GDN_OK || gdn_scratch_size(&c->p) > 0));
    REQUIRE(gdn_run_work_items(&c->p, 0, 0, NULL, 0) != GDN_OK);
    const gdn_status plan = gdn_validate_plan(&c->p, &called);
    require_error(&called, plan);
    require_unchanged(c);
    if (status != GDN_OK) {
        REQUIRE(gdn_fused_sigmoid_gating_delta_rule_update(&c->p, &called) == status);
        require_error(&called, status);
        REQUIRE(strcmp(called.argument, error.argument) == 0);
        REQUIRE(called.index == error.index && called.other == error.other);
        require_unchanged(c);
        return;
    }
    const gdn_params *p = &c->p;
    /* The work items of empty sequences take time, too. */
    const double tokens = (double)p->batch_size * fmax(1, (double)p->seq_len);
    const double state = (double)p->num_value_heads * (double)p->head_k_dim * (double)p->head_v_dim;
    if (tokens * state > MAX_WORK || gdn_scratch_size(p) > MAX_BYTES * 16) return;
    const bool pool_written = !p->disable_state_update && p->output_state_pool.data == NULL;
    open_elements(c, O);
    if (pool_written) open_elements(c, POOL);
    open_elements(c, OUTPUTS);
    open_elements(c, CACHE);
    c->arrays[SCRATCH].width = (ptrdiff_t)gdn_scratch_size(p); /* a byte more is nobody's */
    open_elements(c, SCRATCH);
    for (int i = A_LOG; i < O; i++) require_closed(c, i);
    if (!pool_written) require_closed(c, POOL);
    for (int i = CU_SEQLENS; i < SCRATCH; i++) require_closed(c, i);
    REQUIRE(gdn_fused_sigmoid_gating_delta_rule_update(p, &called) == GDN_OK);
    require_error(&called, GDN_OK);
    require_unchanged(c);
    unsigned char *whole = gather(c, O, CACHE);
    restore(c);
    run_partition(b, p);
    require_unchanged(c);
    require_same(c, O, CACHE, whole);
    restore(c);
    close_elements(c);
}

/* gdn_prepare() in the same way: all that is asked for at once, then one of it alone. */
static void check_prepare(input *b, fuzz_case *c) {
    const gdn_params *p = &c->p;
    gdn_error error;
    const double tokens = (double)p->batch_size * fmax(1, (double)p->seq_len);
    if (tokens * (double)p->num_value_heads * ((double)p->head_k_dim + (double)p->head_v_dim) > MAX_WORK) return;
    if (gdn_scratch_size(p) > MAX_BYTES * 16) return;
    save(c);
    const gdn_status status = gdn_prepare(p, &c->results, &error);
    require_error(&error, status);
    /* What suffices for the operator suffices here; 0: the operator refuses the sizes. */
    const size_t enough = gdn_scratch_size(p);
    REQUIRE(status != GDN_ERROR_SCRATCH || enough == 0 || (p->scratch != NULL && p->scratch_size < enough));
    for (int i = RESULT_G; i < NUM_ARRAYS && status == GDN_OK; i++) open_elements(c, i);
    for (int i = A_LOG; i <= K_READ && status == GDN_OK; i++)
        if (i != V) require_closed(c, i);
    if (status == GDN_OK) any_open(c, SCRATCH, true);
    require_unchanged(c);
    const int alone = RESULT_G + input_below(b, 6);
    if (status == GDN_OK && *c->arrays[alone].data != NULL) {
        unsigned char *together = gather(c, alone, alone);
        restore(c);
        close_elements(c);
        open_elements(c, alone);
        any_open(c, SCRATCH, true);
        for (int i = RESULT_G; i < NUM_ARRAYS; i++)
            if (i != alone) *c->arrays[i].data = NULL;
        REQUIRE(gdn_prepare(p, &c->results, NULL) == GDN_OK);
        require_unchanged(c);
        require_same(c, alone, alone, together);
    }
    restore(c);
    close_elements(c);
}

/* Parameters of any bytes, save that flags are flags and that no array is there. */
static void check_any_bytes(input *b) {
    gdn_params p = {0};
    gdn_prepared results;
    gdn_error error = {GDN_NUM_STATUSES, NULL, -2, -2};
    const size_t count = (size_t)(b->end - b->at);
    for (size_t i = 0; i < sizeof p; i++) {
        const unsigned char byte = count > 0 ? b->at[i % count] : 0;
        memcpy((unsigned char *)&p + i, &byte, 1);
    }
    const void **const arrays[] = {&p.cu_seqlens.data,
                                   &p.A_log.data,
                                   &p.a.data,
                                   &p.dt_bias.data,
                                   &p.q.data,
                                   &p.k.data,
                                   &p.v.data,
                                   &p.b.data,
                                   &p.k_read.data,
                                   &p.erase.data,
                                   &p.gv.data,
                                   &p.initial_state_indices.data,
                                   &p.output_state_indices.data,
                                   &p.intermediate_state_indices.data,
                                   &p.retrieve_parent_token.data,
                                   &p.ssm_state_indices.data,
                                   &p.num_accepted_tokens.data};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) *arrays[i] = NULL;
    p.token_mask.data = NULL;
    p.o.data = p.initial_state_source.data = p.output_state_pool.data = p.intermediate_states_buffer.data = NULL;
    p.scratch = NULL;
    bool *const flags[] = {&p.has_null_slot,    &p.disable_state_update, &p.use_qk_l2norm_in_kernel,
                           &p.is_kda,           &p.has_lower_bound,      &p.beta_per_column,
                           &p.allow_neg_eigval, &p.read_before_decay,    &p.homogeneous};
    for (size_t i = 0; i < sizeof flags / sizeof flags[0]; i++) {
        unsigned char flag;
        memcpy(&flag, flags[i], 1);
        *flags[i] = flag % 2 != 0;
    }
    memset(&results, 0, sizeof results);
    REQUIRE(gdn_num_work_items(&p) >= 0);
    (void)gdn_scratch_size(&p);
    require_error(&error, gdn_validate_plan(&p, &error));
    REQUIRE(gdn_run_work_items(&p, 0, 0, NULL, 0) != GDN_OK);
    if (p.batch_size <= MAX_SEQS) { /* work grows with the number of sequences */
        require_error(&error, gdn_validate(&p, &error));
        require_error(&error, gdn_prepare(&p, &results, &error));
    }
    (void)gdn_preset(&p, (gdn_system)(count > 0 ? b->at[0] : 0));
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input b = {data, data + size};
    fuzz_case c;
    memset(&c, 0, sizeof c);
    draw_params(&b, &c.p);
    draw_extras(&b, &c.p);
    const int scratch = input_byte(&b);
    const int edits = input_below(&b, 6);
    for (int i = 2; i < edits; i++) edit_params(&b, &c.p);
    if (scratch >= 128) draw_results(&b, c.p.compute, &c.results);
    for (int i = scratch / 16 % 8; i > 5; i--) edit_extras(&b, &c.p);
    check_any_bytes(&b);
    const ptrdiff_t n = c.p.cu_seqlens.data != NULL ? c.p.num_seqs : c.p.batch_size;
    if (n > MAX_SEQS) return 0; /* work grows with the number of sequences */
    /* Sizes that are refused must not be asked for. */
    if (c.p.scratch != NULL && c.p.head_k_dim > 0 && c.p.head_k_dim < 4096 && c.p.head_v_dim > 0 &&
        c.p.num_key_heads > 0 && c.p.num_value_heads > 0)
        c.p.scratch_size = gdn_scratch_size(&c.p) + (scratch % 16 == 2 ? 8 : 0);
    if (scratch % 16 == 1 && c.p.scratch_size > 0) c.p.scratch_size--;
    list_arrays(&c);
    if (place_arrays(&b, &c)) {
        draw_index_values(&b, &c);
        check(&b, &c);
        check_prepare(&b, &c);
    }
    free_case(&c);
    return 0;
}
