#include "call.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "rng.h"
#include "test.h"

const char *const call_array_names[CALL_NUM_ARRAYS] = {
    [CALL_A_LOG] = "A_log",
    [CALL_A] = "a",
    [CALL_DT_BIAS] = "dt_bias",
    [CALL_Q] = "q",
    [CALL_K] = "k",
    [CALL_V] = "v",
    [CALL_B] = "b",
    [CALL_K_READ] = "k_read",
    [CALL_ERASE] = "erase",
    [CALL_GV] = "gv",
    [CALL_MASK] = "token_mask",
    [CALL_INITIAL_POOL] = "initial_state_source before the call",
    [CALL_CU_SEQLENS] = "cu_seqlens",
    [CALL_INITIAL_INDICES] = "initial_state_indices",
    [CALL_OUTPUT_INDICES] = "output_state_indices",
    [CALL_CACHE_INDICES] = "intermediate_state_indices",
    [CALL_PARENTS] = "retrieve_parent_token",
    [CALL_STEP_SLOTS] = "ssm_state_indices",
    [CALL_ACCEPTED] = "num_accepted_tokens",
    [CALL_O] = "o",
    [CALL_POOL] = "initial_state_source",
    [CALL_CACHE] = "intermediate_states_buffer",
};

const call_layout call_layouts[CALL_NUM_LAYOUTS] = {
    {.name = "contiguous", .order = {0, 1, 2}},
    {.name = "contiguous, strides given", .order = {0, 1, 2}, .strides_given = true},
    {.name = "padded", .order = {0, 1, 2}, .gap = {11, 5, 3}, .strides_given = true},
    {.name = "head-major", .order = {0, 2, 1}, .gap = {0, 0, 1}, .strides_given = true},
    {.name = "batch inside", .order = {2, 1, 0}, .gap = {1, 0, 2}, .strides_given = true},
    {.name = "packed", .order = {0, 1, 2}, .gap = {7, 0, 0}, .packed = true, .strides_given = true},
};

/* ---- memory ------------------------------------------------------------------------------------- */

/* Elements from the first to the last of an array, gaps included. */
static ptrdiff_t extent(const strided *s) {
    ptrdiff_t last = s->shape[3];
    for (int axis = 0; axis < 3; axis++) {
        if (s->shape[axis] == 0) return 0;
        last += (s->shape[axis] - 1) * s->stride[axis];
    }
    return s->shape[3] == 0 ? 0 : last;
}

static void set_strides(strided *s, const call_layout *layout) {
    ptrdiff_t pitch = s->shape[3];
    for (int i = 2; i >= 0; i--) {
        int axis = layout->order[i];
        s->stride[axis] = pitch + layout->gap[axis];
        pitch = s->stride[axis] * s->shape[axis];
    }
}

/* Arrays of one dtype, one after the other in the same rows [batch, token]. */
static void set_packed_strides(call *c, const call_array *members, int count, const call_layout *layout) {
    ptrdiff_t row = layout->gap[1];
    for (int i = 0; i < count; i++) row += c->array[members[i]].shape[2] * c->array[members[i]].shape[3];
    for (int i = 0; i < count; i++) {
        strided *s = &c->array[members[i]];
        s->stride[2] = s->shape[3];
        s->stride[1] = row;
        s->stride[0] = s->shape[1] * row + layout->gap[0];
    }
}

static void place(call *c, const call_array *members, int count, guard_side side) {
    ptrdiff_t offset[3], end = 0, start = 0;
    for (int i = 0; i < count; i++) {
        const strided *s = &c->array[members[i]];
        offset[i] = start;
        if (start + extent(s) > end) end = start + extent(s);
        start += s->shape[2] * s->shape[3];
    }
    size_t size = element_size(c->array[members[0]].type);
    guard_block *block = &c->block[c->num_blocks++];
    *block = guard_alloc((size_t)end * size, side);
    for (int i = 0; i < count; i++) {
        c->array[members[i]].block = block;
        c->array[members[i]].data = block->data + (size_t)(end == 0 ? 0 : offset[i]) * size;
    }
}

static gdn_tensor tensor(const strided *s, bool strides) {
    gdn_tensor x = {s->data, (gdn_dtype)s->type, 0, 0, 0};
    if (strides) {
        x.batch_stride = s->stride[0];
        x.token_stride = s->stride[1];
        x.head_stride = s->stride[2];
    }
    return x;
}

/* A_log and dt_bias have heads and nothing else. */
static gdn_tensor head_tensor(const strided *s, bool strides) {
    gdn_tensor x = tensor(s, strides);
    x.batch_stride = x.token_stride = 0;
    return x;
}

static gdn_indices indices(const strided *s, bool strides) {
    gdn_indices x = {s->data, (gdn_index_dtype)((int)s->type - (int)GDN_F64), s->shape[3], strides ? s->stride[2] : 0};
    return x;
}

/* Points the parameters at the arrays. */
static void set_params(call *c, bool strides) {
    const strided *x = c->array;
    gdn_params *p = &c->p;
    p->A_log = head_tensor(&x[CALL_A_LOG], strides);
    p->a = tensor(&x[CALL_A], strides);
    p->dt_bias = head_tensor(&x[CALL_DT_BIAS], strides);
    p->q = tensor(&x[CALL_Q], strides);
    p->k = tensor(&x[CALL_K], strides);
    p->v = tensor(&x[CALL_V], strides);
    p->b = tensor(&x[CALL_B], strides);
    p->k_read = tensor(&x[CALL_K_READ], strides);
    p->erase = tensor(&x[CALL_ERASE], strides);
    p->gv = tensor(&x[CALL_GV], strides);
    p->token_mask.data = x[CALL_MASK].data;
    p->token_mask.batch_stride = strides ? x[CALL_MASK].stride[0] : 0;
    p->token_mask.token_stride = strides ? x[CALL_MASK].stride[1] : 0;
    gdn_tensor o = tensor(&x[CALL_O], strides);
    p->o = gdn_output_of(x[CALL_O].data, o.dtype);
    p->o.batch_stride = o.batch_stride;
    p->o.token_stride = o.token_stride;
    p->o.head_stride = o.head_stride;
    if (call_has(c, CALL_POOL)) {
        p->initial_state_source = gdn_pool_of(x[CALL_POOL].data, (gdn_dtype)x[CALL_POOL].type, x[CALL_POOL].shape[0]);
        if (strides) {
            p->initial_state_source.slot_stride = x[CALL_POOL].stride[0];
            p->initial_state_source.head_stride = x[CALL_POOL].stride[2];
        }
    }
    if (call_has(c, CALL_CACHE)) {
        p->intermediate_states_buffer = gdn_cache_of(x[CALL_CACHE].data, (gdn_dtype)x[CALL_CACHE].type,
                                                     x[CALL_CACHE].shape[0], x[CALL_CACHE].shape[1]);
        if (strides) {
            p->intermediate_states_buffer.row_stride = x[CALL_CACHE].stride[0];
            p->intermediate_states_buffer.step_stride = x[CALL_CACHE].stride[1];
            p->intermediate_states_buffer.head_stride = x[CALL_CACHE].stride[2];
        }
    }
    p->cu_seqlens = indices(&x[CALL_CU_SEQLENS], strides);
    p->initial_state_indices = indices(&x[CALL_INITIAL_INDICES], strides);
    p->output_state_indices = indices(&x[CALL_OUTPUT_INDICES], strides);
    p->intermediate_state_indices = indices(&x[CALL_CACHE_INDICES], strides);
    p->retrieve_parent_token = indices(&x[CALL_PARENTS], strides);
    p->ssm_state_indices = indices(&x[CALL_STEP_SLOTS], strides);
    p->num_accepted_tokens = indices(&x[CALL_ACCEPTED], strides);
}

/* A call like the one described by `shape`, whose shapes, dtypes and options count and whose memory does not: an array
 * is present where its shape[3] is not 0. */
static call *allocate(const call *shape, const call_layout *layout, guard_side side) {
    call *c = malloc(sizeof *c);
    if (c == NULL) abort();
    *c = *shape;
    c->num_blocks = 0;
    c->sparse = layout->sparse;
    static const call_array qkv[] = {CALL_Q, CALL_K, CALL_V}, ba[] = {CALL_B, CALL_A};
    const strided *x = c->array;
    bool pack_qkv = layout->packed && x[CALL_Q].type == x[CALL_K].type && x[CALL_Q].type == x[CALL_V].type;
    bool pack_ba = layout->packed && x[CALL_B].shape[3] != 0 && x[CALL_A].shape[3] != 0;
    pack_ba = pack_ba && x[CALL_B].type == x[CALL_A].type;
    for (call_array i = 0; i < CALL_NUM_ARRAYS; i++) {
        c->array[i].data = NULL;
        if (x[i].shape[3] == 0) continue;
        bool packed =
            (pack_qkv && (i == CALL_Q || i == CALL_K || i == CALL_V)) || (pack_ba && (i == CALL_A || i == CALL_B));
        if (packed) continue;
        bool contiguous = i == CALL_INITIAL_POOL || (layout->arrays != 0 && (layout->arrays >> i & 1) == 0);
        set_strides(&c->array[i], contiguous ? &call_layouts[0] : layout);
        place(c, &i, 1, side);
    }
    if (pack_qkv) {
        set_packed_strides(c, qkv, 3, layout);
        place(c, qkv, 3, side);
    }
    if (pack_ba) {
        set_packed_strides(c, ba, 2, layout);
        place(c, ba, 2, side);
    }
    set_params(c, layout->strides_given);
    return c;
}

void call_free(call *c) {
    for (int i = 0; i < c->num_blocks; i++) guard_free(&c->block[i]);
    free(c);
}

void call_protect(const call *c, bool read_only) {
    for (call_array i = 0; i < CALL_O && !c->sparse; i++)
        if (call_has(c, i)) guard_set_read_only(c->array[i].block, read_only);
}

/* ---- elements ------------------------------------------------------------------------------------ */

bool call_has(const call *c, call_array which) { return c->array[which].data != NULL; }

unsigned char *call_at(const call *c, call_array which, ptrdiff_t i0, ptrdiff_t i1, ptrdiff_t i2, ptrdiff_t i3) {
    const strided *s = &c->array[which];
    ptrdiff_t offset = i0 * s->stride[0] + i1 * s->stride[1] + i2 * s->stride[2] + i3;
    return s->data + offset * (ptrdiff_t)element_size(s->type);
}

double call_get(const call *c, call_array which, ptrdiff_t i0, ptrdiff_t i1, ptrdiff_t i2, ptrdiff_t i3) {
    return element_load(c->array[which].type, call_at(c, which, i0, i1, i2, i3));
}

void call_set(call *c, call_array which, ptrdiff_t i0, ptrdiff_t i1, ptrdiff_t i2, ptrdiff_t i3, double value) {
    element_store(c->array[which].type, call_at(c, which, i0, i1, i2, i3), value);
}

void call_fill(call *c, call_array which, double value) {
    const ptrdiff_t *n = c->array[which].shape;
    for (ptrdiff_t i0 = 0; i0 < n[0]; i0++)
        for (ptrdiff_t i1 = 0; i1 < n[1]; i1++)
            for (ptrdiff_t i2 = 0; i2 < n[2]; i2++)
                for (ptrdiff_t i3 = 0; i3 < n[3]; i3++) call_set(c, which, i0, i1, i2, i3, value);
}

/* One row [i0][i1] with all its heads, from one array to another of the same inner shape; the bits stay where the
 * dtypes agree. */
static void copy_row(call *to, call_array to_which, ptrdiff_t to0, ptrdiff_t to1, const call *from,
                     call_array from_which, ptrdiff_t from0, ptrdiff_t from1) {
    const strided *s = &from->array[from_which];
    for (ptrdiff_t i2 = 0; i2 < s->shape[2]; i2++) {
        unsigned char *target = call_at(to, to_which, to0, to1, i2, 0);
        if (to->array[to_which].type == s->type) {
            memcpy(target, call_at(from, from_which, from0, from1, i2, 0), (size_t)s->shape[3] * element_size(s->type));
            continue;
        }
        for (ptrdiff_t i3 = 0; i3 < s->shape[3]; i3++)
            call_set(to, to_which, to0, to1, i2, i3, call_get(from, from_which, from0, from1, i2, i3));
    }
}

static void copy_array(call *to, call_array to_which, const call *from, call_array from_which) {
    const ptrdiff_t *n = from->array[from_which].shape;
    for (ptrdiff_t i0 = 0; i0 < n[0]; i0++)
        for (ptrdiff_t i1 = 0; i1 < n[1]; i1++) copy_row(to, to_which, i0, i1, from, from_which, i0, i1);
}

static call *copy_inputs(call *to, const call *from) {
    for (call_array i = 0; i < CALL_O; i++)
        if (call_has(from, i)) copy_array(to, i, from, i);
    call_reset(to);
    return to;
}

void call_reset(call *c) {
    for (call_array i = CALL_O; i < CALL_NUM_ARRAYS; i++) {
        if (!call_has(c, i)) continue;
        const strided *s = &c->array[i];
        if (!c->sparse) memset(s->block->data, 0xff, s->block->size);
        for (ptrdiff_t i0 = 0; c->sparse && i0 < s->shape[0]; i0++)
            for (ptrdiff_t i1 = 0; i1 < s->shape[1]; i1++)
                for (ptrdiff_t i2 = 0; i2 < s->shape[2]; i2++)
                    memset(call_at(c, i, i0, i1, i2, 0), 0xff, (size_t)s->shape[3] * element_size(s->type));
    }
    if (call_has(c, CALL_POOL)) copy_array(c, CALL_POOL, c, CALL_INITIAL_POOL);
}

/* ---- making calls -------------------------------------------------------------------------------- */

static void describe(call *c, call_array which, int type, ptrdiff_t n0, ptrdiff_t n1, ptrdiff_t n2, ptrdiff_t n3) {
    strided s = {(element)type, {n0, n1, n2, n3}, {0, 0, 0}, NULL, NULL};
    c->array[which] = s;
}

static void describe_list(call *c, call_array which, const call_config *config, const call_list *list, ptrdiff_t rows) {
    int type = (int)GDN_F64 + (int)(config->index_dtype == GDN_INDEX_NOT_SET ? GDN_I32 : config->index_dtype);
    describe(c, which, type, 1, 1, rows, rows == 0 ? 0 : list->count / rows);
}

static void fill_list(call *c, call_array which, const call_list *list) {
    ptrdiff_t columns = c->array[which].shape[3];
    for (ptrdiff_t i = 0; i < list->count; i++) call_set(c, which, 0, 0, i / columns, i % columns, list->values[i]);
}

static double inverse_softplus(double x) { return x + log(-expm1(-x)); }

/* dt as flash-linear-attention initialises it: log-uniform in [1e-3, 0.1] with floor 1e-4. */
static double draw_dt(rng *r) { return fmax(exp(rng_uniform(r, log(1e-3), log(0.1))), 1e-4); }

static double draw_gate(rng *r, const gdn_params *p) {
    if (p->gate_input == GDN_GATE_RAW) return rng_normal(r);
    double A = rng_uniform(r, 0, 16), x = inverse_softplus(draw_dt(r)) + rng_normal(r);
    double g = -A * log1p(exp(x));
    return p->gate_input == GDN_GATE_LOG ? g : exp(g);
}

/* Keys that are not normalised have length one on average: longer ones make the recurrence unstable. */
static double draw(rng *r, call_array which, const gdn_params *p) {
    switch (which) {
    case CALL_A_LOG: return log(rng_uniform(r, 0, 16));
    case CALL_DT_BIAS: return inverse_softplus(draw_dt(r));
    case CALL_A: return draw_gate(r, p);
    case CALL_GV: return -fabs(rng_normal(r)) / 2;
    case CALL_ERASE: return 1 / (1 + exp(-rng_normal(r)));
    case CALL_MASK: return rng_below(r, 3) > 0;
    case CALL_K_READ:
    case CALL_K: return rng_normal(r) / (p->use_qk_l2norm_in_kernel ? 1 : sqrt((double)p->head_k_dim));
    case CALL_B: return p->beta_input == GDN_BETA_RAW ? rng_normal(r) : 1 / (1 + exp(-rng_normal(r)));
    default: return rng_normal(r);
    }
}

static void draw_array(call *c, call_array which) {
    const ptrdiff_t *n = c->array[which].shape;
    const ptrdiff_t stream[] = {(ptrdiff_t)which, n[0], n[1], n[2], n[3]};
    rng r = rng_stream(stream, COUNT(stream));
    for (ptrdiff_t i0 = 0; i0 < n[0]; i0++)
        for (ptrdiff_t i1 = 0; i1 < n[1]; i1++)
            for (ptrdiff_t i2 = 0; i2 < n[2]; i2++)
                for (ptrdiff_t i3 = 0; i3 < n[3]; i3++) call_set(c, which, i0, i1, i2, i3, draw(&r, which, &c->p));
}

static int or_f32(gdn_dtype dtype) { return (int)(dtype == GDN_DTYPE_NOT_SET ? GDN_F32 : dtype); }

call *call_new(const call_config *config) {
    call shape = {.p = config->p, .tolerance = config->tolerance};
    gdn_params *p = &shape.p;
    bool varlen = config->lens.count > 0;
    if (p->compute == GDN_COMPUTE_F32) p->compute = test_compute();
    if (p->isa == GDN_ISA_AUTO && p->compute != GDN_COMPUTE_F64) p->isa = test_isa();
    if (varlen) {
        p->batch_size = 1;
        p->num_seqs = config->lens.count;
        p->seq_len = config->tail;
        for (ptrdiff_t n = 0; n < p->num_seqs; n++) p->seq_len += config->lens.values[n];
    }
    ptrdiff_t N = varlen ? p->num_seqs : p->batch_size, B = p->batch_size, T = p->seq_len;
    ptrdiff_t H = p->num_key_heads, HV = p->num_value_heads, K = p->head_k_dim, V = p->head_v_dim;
    ptrdiff_t gates = p->is_kda ? K : 1, betas = p->beta_per_column ? V : 1;
    const bool raw = p->gate_input == GDN_GATE_RAW && !config->no_a;
    if (raw && !config->no_A_log) describe(&shape, CALL_A_LOG, or_f32(p->A_log.dtype), 1, 1, HV, 1);
    if (raw && !config->no_dt_bias) describe(&shape, CALL_DT_BIAS, or_f32(p->dt_bias.dtype), 1, 1, HV, gates);
    if (!config->no_a) describe(&shape, CALL_A, or_f32(p->a.dtype), B, T, HV, gates);
    describe(&shape, CALL_Q, or_f32(p->q.dtype), B, T, H, K);
    describe(&shape, CALL_K, or_f32(p->k.dtype), B, T, H, K);
    describe(&shape, CALL_V, or_f32(p->v.dtype), B, T, HV, V);
    if (!config->no_b) describe(&shape, CALL_B, or_f32(p->b.dtype), B, T, HV, betas);
    if (p->k_read.dtype != GDN_DTYPE_NOT_SET) describe(&shape, CALL_K_READ, (int)p->k_read.dtype, B, T, H, K);
    if (p->erase.dtype != GDN_DTYPE_NOT_SET) describe(&shape, CALL_ERASE, (int)p->erase.dtype, B, T, HV, K);
    if (p->gv.dtype != GDN_DTYPE_NOT_SET) describe(&shape, CALL_GV, (int)p->gv.dtype, B, T, HV, V);
    if (config->mask) describe(&shape, CALL_MASK, ELEMENT_U8, B, T, 1, 1);
    describe(&shape, CALL_O, or_f32(p->o.dtype), B, T, HV, V);
    const gdn_state_pool *pool = &p->initial_state_source;
    if (pool->num_states > 0) {
        describe(&shape, CALL_INITIAL_POOL, or_f32(pool->dtype), pool->num_states, 1, HV, K * V);
        describe(&shape, CALL_POOL, or_f32(pool->dtype), pool->num_states, 1, HV, K * V);
    }
    const gdn_state_cache *cache = &p->intermediate_states_buffer;
    if (cache->num_rows > 0)
        describe(&shape, CALL_CACHE, or_f32(cache->dtype), cache->num_rows, cache->num_steps, HV, K * V);

    int ends[64] = {0};
    if (config->lens.count >= COUNT(ends)) test_fail("%s: too many sequences", config->name);
    for (ptrdiff_t n = 0; n < config->lens.count; n++) ends[n + 1] = ends[n] + config->lens.values[n];
    const call_list cu_seqlens = {varlen ? N + 1 : 0, ends};
    const struct {
        call_array which;
        const call_list *list;
        ptrdiff_t rows;
    } lists[] = {
        {CALL_CU_SEQLENS, &cu_seqlens, N + 1},
        {CALL_INITIAL_INDICES, &config->initial_state_indices, N},
        {CALL_OUTPUT_INDICES, &config->output_state_indices, N},
        {CALL_CACHE_INDICES, &config->intermediate_state_indices, N},
        {CALL_PARENTS, &config->retrieve_parent_token, N},
        {CALL_STEP_SLOTS, &config->ssm_state_indices, N},
        {CALL_ACCEPTED, &config->num_accepted_tokens, N},
    };
    for (ptrdiff_t i = 0; i < COUNT(lists); i++)
        describe_list(&shape, lists[i].which, config, lists[i].list, lists[i].rows);

    call *c = allocate(&shape, &call_layouts[0], GUARD_AFTER);
    for (ptrdiff_t i = 0; i < COUNT(lists); i++) fill_list(c, lists[i].which, lists[i].list);
    for (call_array i = CALL_A_LOG; i <= CALL_INITIAL_POOL; i++)
        if (call_has(c, i)) draw_array(c, i);
    call_reset(c);
    return c;
}

call *call_clone(const call *c, const call_layout *layout, guard_side side) {
    return copy_inputs(allocate(c, layout, side), c);
}

call *call_clone_indices(const call *c) {
    call shape = *c;
    for (call_array i = CALL_CU_SEQLENS; i <= CALL_ACCEPTED; i++)
        shape.array[i].type = shape.array[i].type == ELEMENT_I32 ? ELEMENT_I64 : ELEMENT_I32;
    return copy_inputs(allocate(&shape, &call_layouts[0], GUARD_AFTER), c);
}

call *call_clone_outputs(const call *c, element type) {
    call shape = *c;
    shape.array[CALL_O].type = type;
    if ((c->p.rounding & GDN_ROUND_STATE) == 0)
        shape.array[CALL_INITIAL_POOL].type = shape.array[CALL_POOL].type = type;
    if (!call_has(c, CALL_PARENTS)) shape.array[CALL_CACHE].type = type;
    return copy_inputs(allocate(&shape, &call_layouts[0], GUARD_AFTER), c);
}

call *call_clone_f64(const call *c) {
    call *oracle = call_clone_outputs(c, ELEMENT_F64);
    oracle->p.compute = GDN_COMPUTE_F64;
    oracle->p.isa = GDN_ISA_AUTO;
    return oracle;
}

call *call_clone_transposed(const call *c) {
    call shape = *c;
    shape.p.state_layout = c->p.state_layout == GDN_STATE_KV ? GDN_STATE_VK : GDN_STATE_KV;
    call *other = copy_inputs(allocate(&shape, &call_layouts[0], GUARD_AFTER), c);
    for (ptrdiff_t slot = 0; slot < c->array[CALL_POOL].shape[0]; slot++)
        for (ptrdiff_t h = 0; h < c->p.num_value_heads; h++)
            for (ptrdiff_t k = 0; k < c->p.head_k_dim; k++)
                for (ptrdiff_t v = 0; v < c->p.head_v_dim; v++)
                    call_set(other, CALL_INITIAL_POOL, slot, 0, h, call_state_index(other, k, v),
                             call_get(c, CALL_INITIAL_POOL, slot, 0, h, call_state_index(c, k, v)));
    call_reset(other);
    return other;
}

static bool is_token_array(call_array which) {
    return which == CALL_A || which == CALL_B || which == CALL_Q || which == CALL_K || which == CALL_V ||
           which == CALL_K_READ || which == CALL_ERASE || which == CALL_GV || which == CALL_MASK || which == CALL_O;
}

static bool is_sequence_array(call_array which) { return which >= CALL_INITIAL_INDICES && which <= CALL_ACCEPTED; }

call *call_take(const call *c, const ptrdiff_t *sequences, ptrdiff_t count, bool varlen) {
    ptrdiff_t tokens = 0;
    for (ptrdiff_t i = 0; i < count; i++) tokens += call_length(c, sequences[i]);
    call shape = *c;
    shape.p.num_seqs = varlen ? count : 0;
    shape.p.batch_size = varlen ? 1 : count;
    shape.p.seq_len = varlen ? tokens : tokens / count;
    describe(&shape, CALL_CU_SEQLENS, ELEMENT_I64, 1, 1, count + 1, varlen);
    /* An absent index array means sequence n itself, which is another number in the new call. */
    if (call_has(c, CALL_POOL) && !call_has(c, CALL_STEP_SLOTS) && !call_has(c, CALL_INITIAL_INDICES))
        describe(&shape, CALL_INITIAL_INDICES, ELEMENT_I64, 1, 1, count, 1);
    if (call_has(c, CALL_CACHE) && !call_has(c, CALL_CACHE_INDICES))
        describe(&shape, CALL_CACHE_INDICES, ELEMENT_I64, 1, 1, count, 1);
    for (call_array i = 0; i < CALL_NUM_ARRAYS; i++) {
        if (is_sequence_array(i)) shape.array[i].shape[2] = count;
        if (is_token_array(i)) shape.array[i].shape[0] = shape.p.batch_size;
        if (is_token_array(i)) shape.array[i].shape[1] = shape.p.seq_len;
    }

    call *part = allocate(&shape, &call_layouts[0], GUARD_AFTER);
    for (call_array i = CALL_A_LOG; i <= CALL_INITIAL_POOL; i++)
        if (call_has(c, i) && !is_token_array(i)) copy_array(part, i, c, i);
    ptrdiff_t end = 0;
    for (ptrdiff_t i = 0; i < count; i++) {
        ptrdiff_t n = sequences[i];
        end += call_length(c, n);
        if (varlen) call_set(part, CALL_CU_SEQLENS, 0, 0, i + 1, 0, (double)end);
        for (call_array j = CALL_INITIAL_INDICES; j <= CALL_ACCEPTED; j++)
            for (ptrdiff_t column = 0; call_has(part, j) && column < part->array[j].shape[3]; column++)
                call_set(part, j, 0, 0, i, column, call_has(c, j) ? call_get(c, j, 0, 0, n, column) : (double)n);
    }
    for (ptrdiff_t i = 0; i < count; i++)
        for (ptrdiff_t t = 0; t < call_length(part, i); t++)
            for (call_array j = 0; j < CALL_O; j++)
                if (is_token_array(j) && call_has(c, j))
                    copy_row(part, j, call_batch(part, i), call_token(part, i, t), c, j, call_batch(c, sequences[i]),
                             call_token(c, sequences[i], t));
    call_reset(part);
    return part;
}

/* ---- reading the index arrays -------------------------------------------------------------------- */

static ptrdiff_t index_at(const call *c, call_array which, ptrdiff_t n, ptrdiff_t column) {
    return (ptrdiff_t)call_get(c, which, 0, 0, n, column);
}

/* A slot as the call means it: -1 for a negative one and for the null slot. */
static ptrdiff_t slot_or_none(const call *c, ptrdiff_t slot) {
    return slot < 0 || (c->p.has_null_slot && slot == c->p.null_slot) ? -1 : slot;
}

bool call_in_chunks(const call *c) {
    bool single = false;
    for (ptrdiff_t n = 0; n < call_num_seqs(c); n++) single = single || call_length(c, n) == 1;
    const bool steps = call_has(c, CALL_CACHE) || call_has(c, CALL_STEP_SLOTS);
    const bool between = call_has(c, CALL_GV) || call_has(c, CALL_MASK) || (c->p.rounding & GDN_ROUND_STATE) != 0;
    return c->p.compute == GDN_COMPUTE_F32_CHUNKS && !single && !between && !c->p.read_before_decay &&
           (!steps || (c->p.step_interval > 0 && c->p.step_interval % 16 == 0));
}

ptrdiff_t call_num_seqs(const call *c) { return call_has(c, CALL_CU_SEQLENS) ? c->p.num_seqs : c->p.batch_size; }

ptrdiff_t call_length(const call *c, ptrdiff_t n) {
    if (!call_has(c, CALL_CU_SEQLENS)) return c->p.seq_len;
    return index_at(c, CALL_CU_SEQLENS, n + 1, 0) - index_at(c, CALL_CU_SEQLENS, n, 0);
}

ptrdiff_t call_batch(const call *c, ptrdiff_t n) { return call_has(c, CALL_CU_SEQLENS) ? 0 : n; }

ptrdiff_t call_token(const call *c, ptrdiff_t n, ptrdiff_t t) {
    return call_has(c, CALL_CU_SEQLENS) ? index_at(c, CALL_CU_SEQLENS, n, 0) + t : t;
}

ptrdiff_t call_key_head(const call *c, ptrdiff_t value_head) {
    ptrdiff_t heads = c->p.num_key_heads;
    return c->p.head_map == GDN_HEADS_TILED ? value_head % heads : value_head / (c->p.num_value_heads / heads);
}

ptrdiff_t call_start_slot(const call *c, ptrdiff_t n) {
    if (!call_has(c, CALL_POOL)) return -1;
    if (call_has(c, CALL_INITIAL_INDICES)) return slot_or_none(c, index_at(c, CALL_INITIAL_INDICES, n, 0));
    if (call_has(c, CALL_STEP_SLOTS)) {
        ptrdiff_t column = call_has(c, CALL_ACCEPTED) ? index_at(c, CALL_ACCEPTED, n, 0) - 1 : 0;
        return slot_or_none(c, index_at(c, CALL_STEP_SLOTS, n, column));
    }
    return n;
}

bool call_padded(const call *c, ptrdiff_t n) { return call_has(c, CALL_POOL) && call_start_slot(c, n) < 0; }

bool call_masked(const call *c, ptrdiff_t n, ptrdiff_t t) {
    return call_has(c, CALL_MASK) && call_get(c, CALL_MASK, call_batch(c, n), call_token(c, n, t), 0, 0) == 0;
}

ptrdiff_t call_step(const call *c, ptrdiff_t t) {
    ptrdiff_t interval = c->p.step_interval == 0 ? 1 : c->p.step_interval;
    return (t + 1) % interval == 0 ? (t + 1) / interval - 1 : -1;
}

ptrdiff_t call_written_slot(const call *c, ptrdiff_t n, ptrdiff_t t, int i) {
    if (!call_has(c, CALL_POOL) || c->p.disable_state_update || call_padded(c, n)) return -1;
    if (i == 0) {
        if (!call_has(c, CALL_STEP_SLOTS) || call_step(c, t) < 0) return -1;
        return slot_or_none(c, index_at(c, CALL_STEP_SLOTS, n, call_step(c, t)));
    }
    if (t != call_length(c, n) - 1) return -1;
    if (call_has(c, CALL_OUTPUT_INDICES)) return slot_or_none(c, index_at(c, CALL_OUTPUT_INDICES, n, 0));
    return call_has(c, CALL_STEP_SLOTS) ? -1 : call_start_slot(c, n);
}

ptrdiff_t call_cache_row(const call *c, ptrdiff_t n) {
    if (!call_has(c, CALL_CACHE) || (call_padded(c, n) && c->p.padding != GDN_PADDING_COMPUTE)) return -1;
    ptrdiff_t row = call_has(c, CALL_CACHE_INDICES) ? index_at(c, CALL_CACHE_INDICES, n, 0) : n;
    return row < 0 ? -1 : row;
}

ptrdiff_t call_state_index(const call *c, ptrdiff_t k, ptrdiff_t v) {
    return c->p.state_layout == GDN_STATE_VK ? v * c->p.head_k_dim + k : k * c->p.head_v_dim + v;
}
