/* The same bits everywhere: fixed calls of the operator, and one hash of what each writes, for every compiler,
 * architecture, instruction set and number of threads. One file that needs the header and the C library:
 *
 *     cc -O2 -I. -Itests/support tests/bits/bits.c -o bits -lm && ./bits
 *
 *     bits [--require ISA,ISA...] [--print]
 *
 * --require  the instances that must be there (none: ""); without it those of the CPU as /proc/cpuinfo describes it
 * --print    the hashes of this machine, in the form of the table below
 *
 * -DBITS_THREADS -pthread runs the work items on 1 to 16 threads; otherwise 1 to 16 shares run one after the other.
 * The data are bit patterns drawn with integers, so that nothing but the operator computes with floats. */
#define GDN_IMPLEMENTATION
#include "gdn_varlen.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef BITS_THREADS
#include <pthread.h>
#endif

#include "cpu.h"

enum { MAX_WORKERS = 16 };

/* ---- memory, random bits ---------------------------------------------------------------------------- */

/* Everything a call needs, until the next one. */
static uint64_t arena[1 << 18];
static size_t arena_used;

static void *take(size_t bytes) {
    void *at = arena + arena_used;
    arena_used += (bytes + 7) / 8;
    if (arena_used <= sizeof arena / sizeof arena[0]) return at;
    fprintf(stderr, "bits: the arena is too small\n");
    exit(2);
}

static uint64_t random_state;

/* splitmix64 */
static uint64_t random_bits(void) {
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

enum sign { ANY_SIGN, POSITIVE, NEGATIVE };

/* Powers of two between which numbers lie, and the signs they have. */
typedef struct range {
    int low, high;
    enum sign sign;
} range;

static uint32_t draw(gdn_dtype dtype, range from) {
    const int digits = dtype == GDN_F32 ? 23 : dtype == GDN_BF16 ? 7 : 10, bias = dtype == GDN_F16 ? 15 : 127;
    const int top = dtype == GDN_F32 ? 31 : 15;
    const uint64_t r = random_bits();
    const int exponent = bias + from.low + (int)((r >> 40) % (uint64_t)(from.high - from.low + 1));
    const uint32_t sign = from.sign == ANY_SIGN ? (uint32_t)(r >> 39 & 1u) : from.sign == NEGATIVE;
    return sign << top | (uint32_t)(exponent < 0 ? 0 : exponent) << digits | (uint32_t)(r & ((1u << digits) - 1u));
}

static size_t size_of(gdn_dtype dtype) { return dtype == GDN_F32 ? 4 : 2; }

static uint32_t get(const void *data, gdn_dtype dtype, size_t i) {
    uint32_t word;
    uint16_t half;
    if (dtype == GDN_F32) {
        memcpy(&word, (const char *)data + 4 * i, 4);
        return word;
    }
    memcpy(&half, (const char *)data + 2 * i, 2);
    return half;
}

static void put(void *data, gdn_dtype dtype, size_t i, uint32_t bits) {
    const uint16_t half = (uint16_t)bits;
    if (dtype == GDN_F32)
        memcpy((char *)data + 4 * i, &bits, 4);
    else
        memcpy((char *)data + 2 * i, &half, 2);
}

/* ---- calls ------------------------------------------------------------------------------------------ */

/* Whether every third element of a and b is of the list below; whether these may make the state grow. */
enum gates { USUAL, EXTREME, GROWING };

/* A call: sizes, options, index arrays and dtypes (float32 where not set) from the functions below, memory and data
 * from fill(). */
typedef struct setup {
    gdn_params p;
    bool no_b;
    enum gates gates;
    int smaller; /* v and the state by so many powers of two */
    void *initial_pool;
} setup;

/* 0 -0 1 -1 20 20.0000019 88 -88 104 -104 1e4 -1e4 1e-45 -1e-38 3.4e38 -3.4e38 infinity -infinity */
static const uint32_t extremes[] = {0,          0x80000000, 0x3f800000, 0xbf800000, 0x41a00000, 0x41a00001,
                                    0x42b00000, 0xc2b00000, 0x42d00000, 0xc2d00000, 0x461c4000, 0xc61c4000,
                                    0x00000001, 0x806ce3ee, 0x7f7fc99e, 0xff7fc99e, 0x7f800000, 0xff800000};

static void sizes(setup *s, ptrdiff_t H, ptrdiff_t HV, ptrdiff_t K, ptrdiff_t V) {
    s->p.num_key_heads = H;
    s->p.num_value_heads = HV;
    s->p.head_k_dim = K;
    s->p.head_v_dim = V;
}

static void fixed(setup *s, ptrdiff_t B, ptrdiff_t T) {
    s->p.batch_size = B;
    s->p.seq_len = T;
}

static void varlen(setup *s, ptrdiff_t N, const int32_t *cu_seqlens) {
    s->p.batch_size = 1;
    s->p.num_seqs = N;
    s->p.seq_len = cu_seqlens[N];
    s->p.cu_seqlens = gdn_i32(cu_seqlens);
}

static void pool(setup *s, gdn_state_layout layout, gdn_dtype dtype, ptrdiff_t num_states) {
    s->p.state_layout = layout;
    s->p.initial_state_source = gdn_pool_of(NULL, dtype, num_states);
}

static void dtypes(setup *s, gdn_dtype dtype) {
    s->p.A_log.dtype = s->p.a.dtype = s->p.dt_bias.dtype = dtype;
    s->p.q.dtype = s->p.k.dtype = s->p.v.dtype = s->p.b.dtype = s->p.o.dtype = dtype;
}

static size_t state_count(const setup *s, ptrdiff_t matrices) {
    return (size_t)(matrices * s->p.num_value_heads * s->p.head_k_dim * s->p.head_v_dim);
}

static void *fill_array(gdn_dtype dtype, size_t count, range from) {
    void *data = take(count * size_of(dtype));
    for (size_t i = 0; i < count; i++) put(data, dtype, i, draw(dtype, from));
    return data;
}

static void fill_tensor(gdn_tensor *x, ptrdiff_t rows, ptrdiff_t width, range from) {
    if (x->dtype == GDN_DTYPE_NOT_SET) x->dtype = GDN_F32;
    x->data = fill_array(x->dtype, (size_t)(rows * width), from);
}

/* a or b, in float32 or bfloat16 where extremes are strewn in. */
static void fill_gates(const setup *s, gdn_tensor *x, ptrdiff_t rows, ptrdiff_t width, range from) {
    const size_t count = (size_t)(rows * width);
    fill_tensor(x, rows, width, from);
    for (size_t i = 1; i < count && s->gates != USUAL; i += 3) {
        uint32_t bits = extremes[random_bits() % (sizeof extremes / sizeof extremes[0])];
        if (from.sign == NEGATIVE && s->gates != GROWING) bits |= 0x80000000u;
        if (from.sign == POSITIVE) bits &= 0x7fffffffu;
        if (from.sign == POSITIVE && s->gates != GROWING && bits > 0x3f800000u) bits = 0x3f800000u;
        put((void *)(uintptr_t)x->data, x->dtype, i, x->dtype == GDN_BF16 ? bits >> 16 : bits);
    }
}

static void fill(setup *s) {
    gdn_params *p = &s->p;
    const ptrdiff_t tokens = p->batch_size * p->seq_len, H = p->num_key_heads, HV = p->num_value_heads;
    const ptrdiff_t K = p->head_k_dim, V = p->head_v_dim, gates = p->is_kda ? K : 1, betas = p->beta_per_column ? V : 1;
    const range usual = {-6, 0, ANY_SIGN}, short_keys = {-8, -3, ANY_SIGN};
    const range content = {-6 - s->smaller, -s->smaller, ANY_SIGN}; /* of the state */
    const range raw = {-4, 1, ANY_SIGN}, log_decay = {-6, 0, NEGATIVE}, fraction = {-3, -1, POSITIVE};
    gdn_state_pool *states = &p->initial_state_source;
    gdn_state_cache *cache = &p->intermediate_states_buffer;
    const range gate = p->gate_input == GDN_GATE_RAW ? raw : p->gate_input == GDN_GATE_LOG ? log_decay : fraction;
    fill_tensor(&p->q, tokens * H, K, usual);
    fill_tensor(&p->k, tokens * H, K, p->use_qk_l2norm_in_kernel ? usual : short_keys);
    if (!p->homogeneous) fill_tensor(&p->v, tokens * HV, V, content);
    fill_tensor(&p->A_log, HV, 1, raw);
    fill_tensor(&p->dt_bias, HV, gates, raw);
    fill_gates(s, &p->a, tokens * HV, gates, gate);
    if (!s->no_b) fill_gates(s, &p->b, tokens * HV, betas, p->beta_input == GDN_BETA_RAW ? raw : fraction);
    if (p->o.dtype == GDN_DTYPE_NOT_SET) p->o.dtype = GDN_F32;
    if (!p->homogeneous) p->o.data = take((size_t)(tokens * HV * V) * size_of(p->o.dtype));
    if (states->num_states > 0) {
        const size_t count = state_count(s, states->num_states);
        s->initial_pool = fill_array(states->dtype, count, content);
        states->data = take(count * size_of(states->dtype));
    }
    if (cache->num_rows > 0)
        cache->data = take(state_count(s, cache->num_rows * cache->num_steps) * size_of(cache->dtype));
}

/* ---- running ---------------------------------------------------------------------------------------- */

/* `error` may be NULL. */
static void must(gdn_status status, const gdn_error *error) {
    if (status == GDN_OK) return;
    fprintf(stderr, "bits: %s %s\n", gdn_status_name(status), error != NULL ? error->argument : "");
    exit(2);
}

typedef struct worker {
    const gdn_params *p;
    ptrdiff_t first, last;
    gdn_status status;
    void *scratch;
} worker;

static void *work(void *argument) {
    worker *w = (worker *)argument;
    w->status = gdn_run_work_items(w->p, w->first, w->last, w->scratch, gdn_scratch_size(w->p));
    return NULL;
}

static void run_shares(const gdn_params *p, int count) {
    const ptrdiff_t items = gdn_num_work_items(p);
    worker workers[MAX_WORKERS];
    gdn_error error;
    must(gdn_validate(p, &error), &error);
    for (int i = 0; i < count; i++) {
        workers[i].p = p;
        workers[i].first = items * i / count;
        workers[i].last = items * (i + 1) / count;
        workers[i].scratch = malloc(gdn_scratch_size(p));
    }
#ifdef BITS_THREADS
    pthread_t threads[MAX_WORKERS];
    for (int i = 0; i < count; i++)
        if (pthread_create(&threads[i], NULL, work, &workers[i]) != 0) exit(2);
    for (int i = 0; i < count; i++) pthread_join(threads[i], NULL);
#else
    for (int i = count; i > 0; i--) work(&workers[i - 1]);
#endif
    for (int i = 0; i < count; i++) {
        must(workers[i].status, NULL);
        free(workers[i].scratch);
    }
}

/* FNV-1a of the elements, the low byte of each first; every NaN counts as one, because its payload is not promised. */
static uint64_t hash_array(uint64_t hash, const void *data, gdn_dtype dtype, size_t count) {
    const uint32_t infinity = dtype == GDN_F32 ? 0x7f800000u : dtype == GDN_BF16 ? 0x7f80u : 0x7c00u;
    for (size_t i = 0; i < count; i++) {
        uint32_t bits = get(data, dtype, i);
        if ((bits & (dtype == GDN_F32 ? 0x7fffffffu : 0x7fffu)) > infinity) bits = infinity + 1;
        for (size_t byte = 0; byte < size_of(dtype); byte++)
            hash = (hash ^ (bits >> 8 * byte & 0xffu)) * 0x100000001b3u;
    }
    return hash;
}

/* The hash of o, pool and cache after a call; workers 0: the call itself, otherwise its work items in shares. */
static uint64_t run(setup *s, gdn_isa isa, int workers) {
    gdn_params *p = &s->p;
    const gdn_state_pool *states = &p->initial_state_source;
    const gdn_state_cache *cache = &p->intermediate_states_buffer;
    const size_t outputs =
        p->homogeneous ? 0 : (size_t)(p->batch_size * p->seq_len * p->num_value_heads * p->head_v_dim);
    const size_t pooled = state_count(s, states->num_states);
    const size_t cached = state_count(s, cache->num_rows * cache->num_steps);
    uint64_t hash = 0xcbf29ce484222325u;
    gdn_error error;
    if (outputs > 0) memset(p->o.data, 0, outputs * size_of(p->o.dtype));
    if (pooled > 0) memcpy(states->data, s->initial_pool, pooled * size_of(states->dtype));
    if (cached > 0) memset(cache->data, 0, cached * size_of(cache->dtype));
    p->isa = isa;
    if (workers == 0)
        must(gdn_fused_sigmoid_gating_delta_rule_update(p, &error), &error);
    else
        run_shares(p, workers);
    hash = hash_array(hash, p->o.data, p->o.dtype, outputs);
    if (pooled > 0) hash = hash_array(hash, states->data, states->dtype, pooled);
    if (cached > 0) hash = hash_array(hash, cache->data, cache->dtype, cached);
    return hash;
}

/* ---- the cases -------------------------------------------------------------------------------------- */

static const int32_t four_lengths[] = {0, 5, 5, 45, 46}, four_slots[] = {4, 0, 2, 5};

static void prefill_kv(setup *s) {
    sizes(s, 1, 2, 32, 48);
    fixed(s, 1, 70);
    pool(s, GDN_STATE_KV, GDN_F32, 1);
}
static void prefill_vk(setup *s) {
    sizes(s, 1, 2, 48, 32);
    fixed(s, 1, 70);
    pool(s, GDN_STATE_VK, GDN_F32, 1);
}
static void prefill_kda_kv(setup *s) {
    prefill_kv(s);
    s->p.is_kda = true;
}
static void prefill_kda_vk(setup *s) {
    prefill_vk(s);
    s->p.is_kda = true;
}
static void varlen_odd_kv(setup *s) {
    sizes(s, 1, 2, 37, 45);
    varlen(s, 4, four_lengths);
    pool(s, GDN_STATE_KV, GDN_F32, 6);
    s->p.initial_state_indices = gdn_i32(four_slots);
}
static void varlen_odd_vk(setup *s) {
    varlen_odd_kv(s);
    s->p.state_layout = GDN_STATE_VK;
}
static void varlen_odd_kda_vk(setup *s) {
    varlen_odd_vk(s);
    s->p.is_kda = true;
}
static void gqa_128_kv(setup *s) {
    sizes(s, 2, 4, 128, 128);
    fixed(s, 1, 4);
    pool(s, GDN_STATE_KV, GDN_F32, 1);
    s->p.use_qk_l2norm_in_kernel = true;
}
static void gqa_128_vk_bf16(setup *s) {
    gqa_128_kv(s);
    s->p.state_layout = GDN_STATE_VK;
    dtypes(s, GDN_BF16);
}
static void gqa_128_kv_bf16_in_f32_out(setup *s) {
    gqa_128_kv(s);
    dtypes(s, GDN_BF16);
    s->p.A_log.dtype = s->p.dt_bias.dtype = s->p.o.dtype = GDN_F32;
}
static void tall_kv(setup *s) {
    sizes(s, 1, 1, 256, 33);
    fixed(s, 1, 35);
    pool(s, GDN_STATE_KV, GDN_F32, 1);
    s->p.use_qk_l2norm_in_kernel = true;
}
static void wide_vk(setup *s) {
    sizes(s, 1, 1, 20, 300);
    fixed(s, 1, 35);
    pool(s, GDN_STATE_VK, GDN_F32, 1);
}
static void one_by_one(setup *s) {
    sizes(s, 8, 16, 1, 1);
    fixed(s, 2, 9);
    pool(s, GDN_STATE_KV, GDN_F32, 2);
}
static void decode_kv(setup *s) {
    static const int32_t slots[] = {4, 1, 3};
    sizes(s, 2, 4, 64, 80);
    fixed(s, 3, 1);
    pool(s, GDN_STATE_KV, GDN_F32, 5);
    s->p.initial_state_indices = gdn_i32(slots);
}
static void decode_vk(setup *s) {
    decode_kv(s);
    s->p.state_layout = GDN_STATE_VK;
}
static void decode_kda_kv_bf16_state(setup *s) {
    decode_kv(s);
    s->p.is_kda = true;
    s->p.initial_state_source.dtype = GDN_BF16;
}
static void decode_vk_f16_state(setup *s) {
    decode_vk(s);
    dtypes(s, GDN_F16);
    s->p.initial_state_source.dtype = GDN_F16;
}
static void prefill_f16(setup *s) {
    prefill_kda_vk(s);
    dtypes(s, GDN_F16);
    s->p.initial_state_source.dtype = GDN_F16;
}
static void prefill_bf16_state_kv(setup *s) {
    prefill_kv(s);
    dtypes(s, GDN_BF16);
    s->p.initial_state_source.dtype = GDN_BF16;
}
static void no_pool_no_b(setup *s) {
    sizes(s, 2, 2, 20, 24);
    fixed(s, 2, 9);
    s->no_b = true;
}
static void lower_bound(setup *s) {
    prefill_vk(s);
    s->p.has_lower_bound = true;
    s->p.lower_bound = -5;
}
static void lower_bound_kda(setup *s) {
    lower_bound(s);
    s->p.is_kda = true;
    s->gates = EXTREME;
}
static void softplus_beta_threshold(setup *s) {
    prefill_kv(s);
    s->p.softplus_beta = 2;
    s->p.softplus_threshold = 0.5;
}
static void extreme_raw_kv(setup *s) {
    varlen_odd_kv(s);
    s->gates = EXTREME;
}
static void extreme_raw_kda_vk_bf16(setup *s) {
    varlen_odd_kda_vk(s);
    dtypes(s, GDN_BF16);
    s->gates = EXTREME;
}
static void extreme_decode(setup *s) {
    decode_kv(s);
    s->gates = EXTREME;
}
static void log_gate(setup *s) {
    prefill_kv(s);
    s->p.gate_input = GDN_GATE_LOG;
    s->p.beta_input = GDN_BETA_GIVEN;
}
static void extreme_log_gate_kda(setup *s) {
    prefill_kda_kv(s);
    s->p.gate_input = GDN_GATE_LOG;
    s->gates = EXTREME;
}
static void extreme_decay_vk(setup *s) {
    prefill_vk(s);
    s->p.gate_input = GDN_GATE_DECAY;
    s->gates = EXTREME;
}
static void growing_decay(setup *s) {
    decode_vk(s);
    fixed(s, 5, 4);
    s->p.initial_state_indices.data = NULL;
    s->p.gate_input = GDN_GATE_DECAY;
    s->gates = GROWING;
}
static void tiled_beta_per_column(setup *s) {
    sizes(s, 2, 6, 24, 40);
    fixed(s, 1, 9);
    pool(s, GDN_STATE_KV, GDN_F32, 1);
    s->p.head_map = GDN_HEADS_TILED;
    s->p.beta_per_column = true;
}
static void l2norm(setup *s, gdn_l2norm_form form, double eps) {
    sizes(s, 2, 4, 40, 24);
    fixed(s, 2, 5);
    pool(s, GDN_STATE_VK, GDN_F32, 2);
    s->p.use_qk_l2norm_in_kernel = s->p.allow_neg_eigval = true;
    s->p.l2norm_form = form;
    s->p.l2norm_eps = eps;
    s->p.scale = 0.3;
}
static void l2_sum_plus_eps(setup *s) { l2norm(s, GDN_L2NORM_SUM_PLUS_EPS, 0); }
static void l2_mean_plus_eps(setup *s) { l2norm(s, GDN_L2NORM_MEAN_PLUS_EPS, 0.1); }
static void l2_max_norm_eps(setup *s) { l2norm(s, GDN_L2NORM_MAX_NORM_EPS, 2); }
static void l2_norm_plus_eps(setup *s) { l2norm(s, GDN_L2NORM_NORM_PLUS_EPS, 0.5); }
static void step_cache_tree(setup *s) {
    static const int32_t parents[] = {0, 0, 0, 1, 1, 2, 0, 0, 1, 2, 0, 4};
    sizes(s, 2, 4, 20, 40);
    fixed(s, 2, 6);
    pool(s, GDN_STATE_KV, GDN_F32, 2);
    s->p.intermediate_states_buffer = gdn_cache_of(NULL, GDN_F32, 2, 6);
    s->p.retrieve_parent_token = gdn_indices_of(parents, GDN_I32, 6);
}
static void step_cache_tree_vk_bf16(setup *s) {
    step_cache_tree(s);
    s->p.state_layout = GDN_STATE_VK;
    s->p.intermediate_states_buffer.dtype = GDN_BF16;
    s->p.is_kda = true;
}
static void step_slots(setup *s) {
    static const int32_t cu_seqlens[] = {0, 4, 8, 11}, slots[] = {9, 8, 7, 12, 2, 4, 3, 11, 10, 13, -1, 6};
    static const int32_t accepted[] = {1, 3, 4};
    sizes(s, 2, 4, 16, 40);
    varlen(s, 3, cu_seqlens);
    pool(s, GDN_STATE_VK, GDN_F32, 14);
    s->p.ssm_state_indices = gdn_indices_of(slots, GDN_I32, 4);
    s->p.num_accepted_tokens = gdn_i32(accepted);
}
static void padding_slots_to_write(setup *s) {
    static const int64_t from[] = {-1, 3, 2, 0}, to[] = {1, 4, 5, 1};
    static const int64_t cu_seqlens[] = {0, 5, 9, 30, 33};
    sizes(s, 2, 4, 24, 24);
    fixed(s, 1, 33);
    s->p.num_seqs = 4;
    s->p.cu_seqlens = gdn_i64(cu_seqlens);
    pool(s, GDN_STATE_KV, GDN_F32, 6);
    s->p.initial_state_indices = gdn_i64(from);
    s->p.output_state_indices = gdn_i64(to);
    s->p.has_null_slot = true;
    s->p.null_slot = 0;
}
static void homogeneous(setup *s) {
    sizes(s, 1, 2, 36, 36);
    fixed(s, 1, 40);
    pool(s, GDN_STATE_KV, GDN_F32, 1);
    s->p.homogeneous = true;
}
static void subnormal(setup *s) {
    prefill_kv(s);
    s->smaller = 120;
}
static void subnormal_vk(setup *s) {
    prefill_vk(s);
    s->smaller = 126;
}
static void overflowing(setup *s) {
    varlen_odd_kv(s);
    s->smaller = -127;
}

static const struct {
    const char *name;
    void (*set)(setup *s);
    uint64_t hash;
} cases[] = {
#define CASE(name, hash)                                                                                               \
    { #name, name, hash }
    CASE(prefill_kv, 0xc5d168887a5b4184u),
    CASE(prefill_vk, 0x27c5cf92403456cau),
    CASE(prefill_kda_kv, 0x89eb4e99845aa119u),
    CASE(prefill_kda_vk, 0x8aa746dddbccaae1u),
    CASE(varlen_odd_kv, 0xc5f5b1e8dcd06eb8u),
    CASE(varlen_odd_vk, 0xe332f52b97b207a4u),
    CASE(varlen_odd_kda_vk, 0x29b182f652e27d8au),
    CASE(gqa_128_kv, 0xa5508d1f7c5e13b5u),
    CASE(gqa_128_vk_bf16, 0xfb9e399efe9be43eu),
    CASE(gqa_128_kv_bf16_in_f32_out, 0xe4b799b27450782au),
    CASE(tall_kv, 0xb6aeccd4f95ecfeeu),
    CASE(wide_vk, 0x11accfcc461f2913u),
    CASE(one_by_one, 0xc2ed78acf7b59751u),
    CASE(decode_kv, 0x67fb81462fe7b52bu),
    CASE(decode_vk, 0x7b5b9797ad213978u),
    CASE(decode_kda_kv_bf16_state, 0x2431be9eb43cc11fu),
    CASE(decode_vk_f16_state, 0x973fd14d0027cea3u),
    CASE(prefill_f16, 0xef5b0f1726b5be6au),
    CASE(prefill_bf16_state_kv, 0xff8ef85e8b3647ccu),
    CASE(no_pool_no_b, 0x1df2b1cb400e9010u),
    CASE(lower_bound, 0xa735efffff8cb728u),
    CASE(lower_bound_kda, 0x10d17074780f1ad5u),
    CASE(softplus_beta_threshold, 0x7ddc505b139ee2e4u),
    CASE(extreme_raw_kv, 0x359090a35440e464u),
    CASE(extreme_raw_kda_vk_bf16, 0x06438f4d9bdd6102u),
    CASE(extreme_decode, 0xe3b4d31d35d29cb4u),
    CASE(log_gate, 0xb1654ecf0461d083u),
    CASE(extreme_log_gate_kda, 0x9b82d3e27fadfa79u),
    CASE(extreme_decay_vk, 0xeb7fd215572bbdcdu),
    CASE(growing_decay, 0x96aab5c244087e7fu),
    CASE(tiled_beta_per_column, 0xe4e6a07a24e7868eu),
    CASE(l2_sum_plus_eps, 0xfc50f8cb5b101814u),
    CASE(l2_mean_plus_eps, 0xf6ada459c8946d09u),
    CASE(l2_max_norm_eps, 0x141150fcae8d0759u),
    CASE(l2_norm_plus_eps, 0x71bb6c930495e572u),
    CASE(step_cache_tree, 0xbf6ba219b1f858a5u),
    CASE(step_cache_tree_vk_bf16, 0x15f7a112dfdc9d10u),
    CASE(step_slots, 0xc24640e2146b82dcu),
    CASE(padding_slots_to_write, 0xf713da88954422bcu),
    CASE(subnormal, 0x881cc7cce28f5a7fu),
    CASE(subnormal_vk, 0xb9ad5b1f4140fde2u),
    CASE(overflowing, 0x247ae83dddddebafu),
    CASE(homogeneous, 0x0ea6a745b20dff7cu),
#undef CASE
};
enum { NUM_CASES = sizeof cases / sizeof cases[0] };

/* ---- main ------------------------------------------------------------------------------------------- */

static bool print_hashes;
static int failures;

/* Whether the hash is the right one; says so if not. */
static bool check(int i, setup *s, gdn_isa isa, int workers) {
    const uint64_t hash = run(s, isa, workers);
    if (hash == cases[i].hash || print_hashes) return true;
    printf("FAILED: %s, %s", cases[i].name, gdn_isa_name(isa));
    if (workers > 0) printf(", %d workers", workers);
    printf(": 0x%08lx%08lx, not 0x%08lx%08lx\n", (unsigned long)(hash >> 32), (unsigned long)(hash & 0xffffffffu),
           (unsigned long)(cases[i].hash >> 32), (unsigned long)(cases[i].hash & 0xffffffffu));
    failures++;
    return false;
}

static void run_case(int i) {
    static setup s;
    memset(&s, 0, sizeof s);
    arena_used = 0;
    random_state = (uint64_t)i;
    cases[i].set(&s);
    fill(&s);
    for (int isa = 0; isa < GDN_NUM_ISAS; isa++)
        if (gdn_isa_supported((gdn_isa)isa)) check(i, &s, (gdn_isa)isa, 0);
    /* Any number beyond that of the items leaves the others nothing to do. */
    bool same = true;
    for (int workers = 1; workers <= MAX_WORKERS && same; workers++)
        if (workers <= gdn_num_work_items(&s.p) || workers == MAX_WORKERS) same = check(i, &s, GDN_ISA_AUTO, workers);
    if (print_hashes) {
        const uint64_t hash = run(&s, GDN_ISA_PLAIN, 0);
        printf("    CASE(%s, 0x%08lx%08lx),\n", cases[i].name, (unsigned long)(hash >> 32),
               (unsigned long)(hash & 0xffffffffu));
    }
}

int main(int argc, char **argv) {
    const char *required = NULL;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--require") == 0 && i + 1 < argc) {
            required = argv[++i];
        } else if (strcmp(argv[i], "--print") == 0) {
            print_hashes = true;
        } else {
            fprintf(stderr, "usage: bits [--require ISA,ISA...] [--print]\n");
            return 2;
        }
    }
    for (int i = 0; i < NUM_CASES; i++) run_case(i);
    for (int i = GDN_ISA_PLAIN; i < GDN_NUM_ISAS; i++) {
        const gdn_isa isa = (gdn_isa)i;
        if (gdn_isa_supported(isa)) continue;
        if (required != NULL ? !cpu_named(required, gdn_isa_name(isa)) : !cpu_requires(isa)) continue;
        printf("FAILED: no instance for %s\n", gdn_isa_name(isa));
        failures++;
    }
    printf("%s: %d cases,", failures == 0 ? "ok" : "FAILED", (int)NUM_CASES);
    for (int i = GDN_ISA_PLAIN; i < GDN_NUM_ISAS; i++)
        if (gdn_isa_supported((gdn_isa)i)) printf(" %s", gdn_isa_name((gdn_isa)i));
#ifdef BITS_THREADS
    printf(", 1 to %d threads\n", (int)MAX_WORKERS);
#else
    printf(", 1 to %d shares\n", (int)MAX_WORKERS);
#endif
    return failures != 0;
}
