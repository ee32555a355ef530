/* The same bits everywhere: fixed calls of the operator, and a hash of what each writes in either float32 computation,
 * for every compiler, architecture, instruction set and number of threads; and the oracle, which calls the C library's
 * exp, within 1e-12. One file that needs the header and the C library:
 *
 *     cc -O2 -I. -Itests/support tests/bits/bits.c -o bits -lm && ./bits
 *
 *     bits [--require ISA,ISA...] [--print]
 *
 * --require  the instances that must be there (none: ""); without it those of the CPU as /proc/cpuinfo describes it
 * --print    the hashes of this machine, in the form of the table below
 *
 * -DBITS_THREADS -pthread runs the work items on 1 to 16 threads; otherwise 1 to 16 shares run one after the other.
 * The data are bit patterns drawn with integers, so that nothing but the operator computes with floats; what adds up
 * the oracle's results is the exception. */
#define GDN_IMPLEMENTATION
#include "gdn_varlen.h"

#include <math.h>
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

static uint64_t draw(gdn_dtype dtype, range from) {
    const int digits = dtype == GDN_F64 ? 52 : dtype == GDN_F32 ? 23 : dtype == GDN_BF16 ? 7 : 10;
    const int bias = dtype == GDN_F64 ? 1023 : dtype == GDN_F16 ? 15 : 127;
    const int top = dtype == GDN_F64 ? 63 : dtype == GDN_F32 ? 31 : 15;
    const uint64_t r = random_bits();
    const int exponent = bias + from.low + (int)((r >> 40) % (uint64_t)(from.high - from.low + 1));
    const uint64_t sign = from.sign == ANY_SIGN ? r >> 39 & 1u : from.sign == NEGATIVE;
    return sign << top | (uint64_t)(exponent < 0 ? 0 : exponent) << digits | (r & ((UINT64_C(1) << digits) - 1u));
}

static size_t size_of(gdn_dtype dtype) { return dtype == GDN_F64 ? 8 : dtype == GDN_F32 ? 4 : 2; }

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

static void put(void *data, gdn_dtype dtype, size_t i, uint64_t bits) {
    const uint32_t word = (uint32_t)bits;
    const uint16_t half = (uint16_t)bits;
    if (dtype == GDN_F64)
        memcpy((char *)data + 8 * i, &bits, 8);
    else if (dtype == GDN_F32)
        memcpy((char *)data + 4 * i, &word, 4);
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
    if (p->k_read.dtype != GDN_DTYPE_NOT_SET)
        fill_tensor(&p->k_read, tokens * H, K, p->use_qk_l2norm_in_kernel ? usual : short_keys);
    if (p->erase.dtype != GDN_DTYPE_NOT_SET) fill_tensor(&p->erase, tokens * HV, K, fraction);
    if (p->gv.dtype != GDN_DTYPE_NOT_SET) fill_tensor(&p->gv, tokens * HV, V, log_decay);
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

/* What a call writes: o, pool, cache. */
enum { NUM_ARRAYS = 3 };
typedef struct array {
    void *data;
    gdn_dtype dtype;
    size_t count;
} array;

static void written(const setup *s, array arrays[NUM_ARRAYS]) {
    const gdn_params *p = &s->p;
    const gdn_state_pool *states = &p->initial_state_source;
    const gdn_state_cache *cache = &p->intermediate_states_buffer;
    const array o = {p->o.data, p->o.dtype,
                     p->homogeneous ? 0 : (size_t)(p->batch_size * p->seq_len * p->num_value_heads * p->head_v_dim)};
    const array pooled = {states->data, states->dtype, state_count(s, states->num_states)};
    const array cached = {cache->data, cache->dtype, state_count(s, cache->num_rows * cache->num_steps)};
    arrays[0] = o;
    arrays[1] = pooled;
    arrays[2] = cached;
}

/* Workers 0: the call itself, otherwise its work items in shares. */
static void run(setup *s, gdn_isa isa, int workers) {
    gdn_params *p = &s->p;
    array arrays[NUM_ARRAYS];
    gdn_error error;
    written(s, arrays);
    for (int i = 0; i < NUM_ARRAYS; i++)
        if (arrays[i].count > 0) memset(arrays[i].data, 0, arrays[i].count * size_of(arrays[i].dtype));
    if (arrays[1].count > 0) memcpy(arrays[1].data, s->initial_pool, arrays[1].count * size_of(arrays[1].dtype));
    p->isa = isa;
    if (workers == 0)
        must(gdn_fused_sigmoid_gating_delta_rule_update(p, &error), &error);
    else
        run_shares(p, workers);
}

static uint64_t run_hashed(setup *s, gdn_isa isa, int workers) {
    array arrays[NUM_ARRAYS];
    uint64_t hash = 0xcbf29ce484222325u;
    run(s, isa, workers);
    written(s, arrays);
    for (int i = 0; i < NUM_ARRAYS; i++) hash = hash_array(hash, arrays[i].data, arrays[i].dtype, arrays[i].count);
    return hash;
}

/* ---- the oracle ------------------------------------------------------------------------------------- */

/* The last bits of the oracle are those of the C library's exp and log1p, so that its results are not hashed but added
 * up, each with a weight of its own. `size` is the sum without signs, which the tolerance is relative to. C libraries,
 * compilers and fused multiply-add move the sum by less than 1e-15 of it, a wrong element by 1e-6 and more. */
typedef struct total {
    double sum, size;
} total;

/* Between -1 and 1, so that no element outweighs all others: x / (1 + |x|) of x times 2^smaller; NaN: 2. */
static double squashed(double x, int smaller) {
    x = ldexp(x, smaller);
    if (x != x) return 2;
    return fabs(x) > 1e300 ? (x < 0 ? -1 : 1) : x / (1 + fabs(x));
}

static total run_oracle(setup *s) {
    array arrays[NUM_ARRAYS];
    total y = {0, 0};
    run(s, GDN_ISA_AUTO, 0);
    written(s, arrays);
    for (int i = 0; i < NUM_ARRAYS; i++)
        for (size_t j = 0; j < arrays[i].count; j++) {
            double x;
            memcpy(&x, (const char *)arrays[i].data + 8 * j, 8);
            x = squashed(x, s->smaller) * (double)(1024 + j * 397 % 1024);
            y.sum += x;
            y.size += fabs(x);
        }
    return y;
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

static void key_to_read_kv(setup *s) {
    prefill_kv(s);
    s->p.k_read.dtype = GDN_F32;
    s->p.use_qk_l2norm_in_kernel = true;
}
static void key_to_read_kda_vk(setup *s) {
    varlen_odd_kda_vk(s);
    s->p.k_read.dtype = GDN_BF16;
}
static void key_to_read_decode(setup *s) {
    decode_kv(s);
    s->p.k_read.dtype = GDN_F16;
}
static void erase_kv(setup *s) {
    key_to_read_kv(s);
    s->p.erase.dtype = GDN_F32;
}
static void erase_kda_vk(setup *s) {
    prefill_kda_vk(s);
    s->p.erase.dtype = GDN_F32;
}
static void read_before_decay(setup *s) {
    key_to_read_kv(s);
    s->p.read_before_decay = true;
}
static void decay_per_column_kv(setup *s) {
    varlen_odd_kv(s);
    s->p.gv.dtype = GDN_F32;
}
static void decay_per_column_kda_vk_bf16_state(setup *s) {
    prefill_kda_vk(s);
    s->p.gv.dtype = s->p.initial_state_source.dtype = GDN_BF16;
}
static void mask_and_steps(setup *s) {
    static const uint8_t mask[] = {1, 0, 1, 1, 0, 0, 1, 1, 1, 0, 1};
    static const int32_t from[] = {14, 15, 16};
    step_slots(s);
    s->p.num_accepted_tokens.data = NULL;
    s->p.initial_state_indices = s->p.output_state_indices = gdn_i32(from);
    s->p.token_mask.data = mask;
    s->p.state_layout = GDN_STATE_KV;
    s->p.initial_state_source.num_states = 17;
}
static void states_every_16(setup *s) {
    static const int32_t slots[] = {2, 3, 4, -1, 6, 7, 8, 9}, from[] = {1, 0};
    sizes(s, 1, 2, 32, 24);
    fixed(s, 2, 70);
    pool(s, GDN_STATE_VK, GDN_F32, 10);
    s->p.step_interval = 16;
    s->p.initial_state_indices = s->p.output_state_indices = gdn_i32(from);
    s->p.ssm_state_indices = gdn_indices_of(slots, GDN_I32, 4);
}
static void roundings(setup *s) {
    gqa_128_vk_bf16(s);
    s->p.initial_state_source.dtype = GDN_F16;
    s->p.rounding = GDN_ROUND_QK | GDN_ROUND_SCALED_Q | GDN_ROUND_BETA | GDN_ROUND_STATE;
}

static const struct {
    const char *name;
    void (*set)(setup *s);
    uint64_t hash;
    uint64_t chunks; /* the hash of GDN_COMPUTE_F32_CHUNKS */
    uint64_t oracle; /* the bits of its sum */
} cases[] = {
#define CASE(name, hash, chunks, oracle)                                                                               \
    { #name, name, hash, chunks, oracle }
    CASE(prefill_kv, 0xc5d168887a5b4184u, 0x8e0edc3d4cdc9957u, 0xc0bfdd1ca36fb772u),
    CASE(prefill_vk, 0x27c5cf92403456cau, 0xdc9bd88eea727072u, 0xc08c7acbb8867392u),
    CASE(prefill_kda_kv, 0x89eb4e99845aa119u, 0xad6b0c8a923b09cfu, 0x40c0c00fb6ef2ff6u),
    CASE(prefill_kda_vk, 0x8aa746dddbccaae1u, 0x7c772362a9468589u, 0x40c4df77b95d1c12u),
    CASE(varlen_odd_kv, 0xc5f5b1e8dcd06eb8u, 0x8a4e0a34ae148affu, 0x40c902167da1d09au),
    CASE(varlen_odd_vk, 0xe332f52b97b207a4u, 0x5765b864128fc737u, 0xc0f16d51dd648fe4u),
    CASE(varlen_odd_kda_vk, 0x29b182f652e27d8au, 0x90ba34ad889414dbu, 0xc0cc3101c488031au),
    CASE(gqa_128_kv, 0xa5508d1f7c5e13b5u, 0xb3913e169e9b2d15u, 0x40eab037b0a2bee0u),
    CASE(gqa_128_vk_bf16, 0xfb9e399efe9be43eu, 0xf48e3888712b13b8u, 0x40c6c6a3f152c7adu),
    CASE(gqa_128_kv_bf16_in_f32_out, 0xe4b799b27450782au, 0xaf1bde81750b4c6eu, 0x40f96e00e24266d1u),
    CASE(tall_kv, 0xb6aeccd4f95ecfeeu, 0x4207f7d5c1ebf03du, 0x409026286ae2c23au),
    CASE(wide_vk, 0x11accfcc461f2913u, 0xc9e59df34761cb88u, 0xc0a3dc21dbf0c08cu),
    CASE(one_by_one, 0xc2ed78acf7b59751u, 0x944b8ef0d58c453fu, 0x40b474b42b3e7628u),
    CASE(decode_kv, 0x67fb81462fe7b52bu, 0x67fb81462fe7b52bu, 0x40df465c5a089ae6u),
    CASE(decode_vk, 0x7b5b9797ad213978u, 0x7b5b9797ad213978u, 0xc0ef92b613d5dad7u),
    CASE(decode_kda_kv_bf16_state, 0x2431be9eb43cc11fu, 0x2431be9eb43cc11fu, 0xc1102f1bc4a4b7ebu),
    CASE(decode_vk_f16_state, 0x973fd14d0027cea3u, 0x973fd14d0027cea3u, 0xc0d8a7fa685f1a4cu),
    CASE(prefill_f16, 0xef5b0f1726b5be6au, 0x44847530be331562u, 0xc0b249b6b46fc347u),
    CASE(prefill_bf16_state_kv, 0xff8ef85e8b3647ccu, 0xff8ef85e8b3647ccu, 0xc0b6826621fa8516u),
    CASE(no_pool_no_b, 0x1df2b1cb400e9010u, 0x53caabf7336208c4u, 0xc07c7799221ca553u),
    CASE(lower_bound, 0xa735efffff8cb728u, 0xf249db683e019b41u, 0xc0b877b3c248217eu),
    CASE(lower_bound_kda, 0x10d17074780f1ad5u, 0x45afb4070421b19fu, 0xc0a60be9e842bef7u),
    CASE(softplus_beta_threshold, 0x7ddc505b139ee2e4u, 0xb80d8332c215257eu, 0x40639a2a310e6962u),
    CASE(extreme_raw_kv, 0x359090a35440e464u, 0xcaabc8de7c69d15au, 0x40d877185bd02e31u),
    CASE(extreme_raw_kda_vk_bf16, 0x06438f4d9bdd6102u, 0x57bf2ebc572b1c60u, 0x40d51cc7303157f1u),
    CASE(extreme_decode, 0xe3b4d31d35d29cb4u, 0xe3b4d31d35d29cb4u, 0xc0d89684af92a166u),
    CASE(log_gate, 0xb1654ecf0461d083u, 0x84fa9b51525d8d7au, 0xc0b319029284e343u),
    CASE(extreme_log_gate_kda, 0x9b82d3e27fadfa79u, 0xcdb6389478c47f3cu, 0x40b133dcb154f81au),
    CASE(extreme_decay_vk, 0xeb7fd215572bbdcdu, 0xaa33a8db1a6f531au, 0xc0980dc9c6c247a3u),
    CASE(growing_decay, 0x96aab5c244087e7fu, 0xef718c58239b4039u, 0x41875c2428f1761fu),
    CASE(tiled_beta_per_column, 0xe4e6a07a24e7868eu, 0x763bd7cfe45d115fu, 0xc0e9c9bd17fc4efeu),
    CASE(l2_sum_plus_eps, 0xfc50f8cb5b101814u, 0x87e5d3f807e5f3bbu, 0x40d2c0807d9816a7u),
    CASE(l2_mean_plus_eps, 0xf6ada459c8946d09u, 0xeefddc8e4ab537b7u, 0x40ce2aecd45cf38fu),
    CASE(l2_max_norm_eps, 0x141150fcae8d0759u, 0xcc050049aeba6068u, 0x40a622a818067a76u),
    CASE(l2_norm_plus_eps, 0x71bb6c930495e572u, 0x18a1ab4e5d2a59bdu, 0xc0cf9960401f97ffu),
    CASE(step_cache_tree, 0xbf6ba219b1f858a5u, 0xbf6ba219b1f858a5u, 0xc0cd56695b8b7849u),
    CASE(step_cache_tree_vk_bf16, 0x15f7a112dfdc9d10u, 0x15f7a112dfdc9d10u, 0x40d2262992d2355au),
    CASE(step_slots, 0xc24640e2146b82dcu, 0xc24640e2146b82dcu, 0xc0fbec9aac5dd4b5u),
    CASE(padding_slots_to_write, 0xf713da88954422bcu, 0x98fc83d6b33068eau, 0xc0ed21cc8ca84cd6u),
    CASE(subnormal, 0x881cc7cce28f5a7fu, 0x393c8cf6b82c4bebu, 0xc0b06b0316e90b7eu),
    CASE(subnormal_vk, 0xb9ad5b1f4140fde2u, 0x4e11e436869a7583u, 0x40b24f9bdd5b7034u),
    CASE(overflowing, 0x247ae83dddddebafu, 0xe48fb5c627cbe76fu, 0xc0f648badca0577bu),
    CASE(homogeneous, 0x0ea6a745b20dff7cu, 0x6edb42a9114a27a4u, 0xc080a23a76821d36u),
    CASE(key_to_read_kv, 0xcc55e064a6c73c96u, 0x14c1b39d2a452c14u, 0x40c967363ea6b0e8u),
    CASE(key_to_read_kda_vk, 0xaeda226a25df69fcu, 0x73f0a6e07c62c036u, 0x40e22eb31caab306u),
    CASE(key_to_read_decode, 0x51dd4592dcfe3dabu, 0x51dd4592dcfe3dabu, 0xc0d29f046d61f93au),
    CASE(erase_kv, 0xada6d1dcdf2a56ecu, 0xcfb96dee9859c6cbu, 0x4091b1db69013960u),
    CASE(erase_kda_vk, 0x3564f855af64d24du, 0xd091758c12bc0bd3u, 0x40afe0f2aed91992u),
    CASE(read_before_decay, 0x80098e1a80ba53c4u, 0x80098e1a80ba53c4u, 0xc0dd8b6f15c0306fu),
    CASE(decay_per_column_kv, 0x0e3b6c5ef4acb96fu, 0x0e3b6c5ef4acb96fu, 0x40b70eb33c2debb8u),
    CASE(decay_per_column_kda_vk_bf16_state, 0x7b294993bb253a0cu, 0x7b294993bb253a0cu, 0x40886b28dd2080e1u),
    CASE(mask_and_steps, 0xf3815d408033fd0au, 0xf3815d408033fd0au, 0xc0f08e4f70dc46eeu),
    CASE(states_every_16, 0x1208667a946dae7du, 0x082176d3fc29f7a6u, 0x40c1a78db7655426u),
    CASE(roundings, 0xf9042349280f580eu, 0xf9042349280f580eu, 0xc0dd705ac5230c42u),
#undef CASE
};
enum { NUM_CASES = sizeof cases / sizeof cases[0] };

/* ---- main ------------------------------------------------------------------------------------------- */

static bool print_hashes;
static int failures;

static void set_up(int i, setup *s, gdn_compute compute) {
    memset(s, 0, sizeof *s);
    arena_used = 0;
    random_state = (uint64_t)i;
    cases[i].set(s);
    if (compute == GDN_COMPUTE_F64) s->p.o.dtype = GDN_F64;
    if (compute == GDN_COMPUTE_F64) s->p.initial_state_source.dtype = s->p.intermediate_states_buffer.dtype = GDN_F64;
    s->p.compute = compute;
    fill(s);
}

/* Two words, because C++ and old C libraries agree on no format for 64 bits. */
static void print_bits(uint64_t bits) {
    printf("0x%08lx%08lx", (unsigned long)(bits >> 32), (unsigned long)(bits & 0xffffffffu));
}

/* Whether the hash is the right one; says so if not. */
static bool check(int i, setup *s, gdn_isa isa, int workers) {
    const bool chunks = s->p.compute == GDN_COMPUTE_F32_CHUNKS;
    const uint64_t hash = run_hashed(s, isa, workers), right = chunks ? cases[i].chunks : cases[i].hash;
    if (hash == right || print_hashes) return true;
    printf("FAILED: %s%s, %s", cases[i].name, chunks ? " in chunks" : "", gdn_isa_name(isa));
    if (workers > 0) printf(", %d workers", workers);
    printf(": ");
    print_bits(hash);
    printf(", not ");
    print_bits(right);
    printf("\n");
    failures++;
    return false;
}

/* The case with data of float64 where the call writes. */
static void check_oracle(int i, uint64_t *bits) {
    static setup s;
    total y;
    double right;
    set_up(i, &s, GDN_COMPUTE_F64);
    y = run_oracle(&s);
    memcpy(bits, &y.sum, 8);
    memcpy(&right, &cases[i].oracle, 8);
    if (fabs(y.sum - right) <= 1e-12 * y.size || print_hashes) return;
    printf("FAILED: %s, oracle: %.17g, not %.17g, of %.3g\n", cases[i].name, y.sum, right, y.size);
    failures++;
}

/* One of the float32 computations; returns its hash where it is asked for. */
static uint64_t run_computation(int i, gdn_compute compute) {
    static setup s;
    set_up(i, &s, compute);
    for (int isa = 0; isa < GDN_NUM_ISAS; isa++)
        if (gdn_isa_supported((gdn_isa)isa)) check(i, &s, (gdn_isa)isa, 0);
    /* Any number beyond that of the items leaves the others nothing to do. */
    bool same = true;
    for (int workers = 1; workers <= MAX_WORKERS && same; workers++)
        if (workers <= gdn_num_work_items(&s.p) || workers == MAX_WORKERS) same = check(i, &s, GDN_ISA_AUTO, workers);
    return print_hashes ? run_hashed(&s, GDN_ISA_PLAIN, 0) : 0;
}

static void run_case(int i) {
    const uint64_t hash = run_computation(i, GDN_COMPUTE_F32);
    const uint64_t chunks = run_computation(i, GDN_COMPUTE_F32_CHUNKS);
    uint64_t oracle;
    check_oracle(i, &oracle);
    if (print_hashes) {
        printf("    CASE(%s, ", cases[i].name);
        print_bits(hash);
        printf("u, ");
        print_bits(chunks);
        printf("u, ");
        print_bits(oracle);
        printf("u),\n");
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
    printf(" and oracle, 1 to %d threads\n", (int)MAX_WORKERS);
#else
    printf(" and oracle, 1 to %d shares\n", (int)MAX_WORKERS);
#endif
    return failures != 0;
}
