#include "rates.h"

#include <stdlib.h>

#if defined(__GNUC__) && defined(__SSE2__)
#include <immintrin.h>
#define RATES_X86 1
#else
#define RATES_X86 0
#endif
#if defined(__GNUC__) && defined(__aarch64__)
#include <arm_neon.h>
#define RATES_NEON 1
#else
#define RATES_NEON 0
#endif

/* The compiler must not know these, nor that they are the same at each look. */
static volatile float one = 1.0f, quarter = 0.25f;

enum { STEPS = 1 << 16, CHAINS = 12 };

/* Both loops for vectors of `lanes` floats. `pair` advances two chains, with `operations` operations in each lane.
 * Twelve chains hide the latency of the units; they are variables because gcc keeps an array of vectors in memory. No
 * value becomes subnormal or infinite. */
#define RATES_LOOPS(name, attribute, vector, lanes, load, store, set1, mul, pair, operations)                          \
    attribute static double fma_##name(void) {                                                                         \
        const vector x = set1(one), y = set1(quarter);                                                                 \
        vector a = set1(one), b = set1(one), c = set1(one), d = set1(one), e = set1(one), f = set1(one);               \
        vector g = set1(one), h = set1(one), i = set1(one), j = set1(one), k = set1(one), l = set1(one);               \
        for (int step = 0; step < STEPS; step++) {                                                                     \
            pair(a, b);                                                                                                \
            pair(c, d);                                                                                                \
            pair(e, f);                                                                                                \
            pair(g, h);                                                                                                \
            pair(i, j);                                                                                                \
            pair(k, l);                                                                                                \
        }                                                                                                              \
        float last[CHAINS][lanes];                                                                                     \
        volatile float seen;                                                                                           \
        store(last[0], a), store(last[1], b), store(last[2], c), store(last[3], d), store(last[4], e);                 \
        store(last[5], f), store(last[6], g), store(last[7], h), store(last[8], i), store(last[9], j);                 \
        store(last[10], k), store(last[11], l);                                                                        \
        for (int chain = 0; chain < CHAINS; chain++) seen = last[chain][0];                                            \
        (void)seen;                                                                                                    \
        return (double)STEPS * (CHAINS / 2) * (lanes) * (operations);                                                  \
    }                                                                                                                  \
    attribute static void scale_##name(float *p, size_t count) {                                                       \
        const vector x = set1(one);                                                                                    \
        for (const float *end = p + count; p < end; p += 4 * (lanes)) {                                                \
            store(p, mul(x, load(p)));                                                                                 \
            store(p + (lanes), mul(x, load(p + (lanes))));                                                             \
            store(p + 2 * (lanes), mul(x, load(p + 2 * (lanes))));                                                     \
            store(p + 3 * (lanes), mul(x, load(p + 3 * (lanes))));                                                     \
        }                                                                                                              \
    }

#if RATES_X86
#define AVX2_PAIR(p, q) (p = _mm256_fmadd_ps(x, y, p), q = _mm256_fmadd_ps(x, y, q))
RATES_LOOPS(avx2, __attribute__((target("avx2,fma"))), __m256, 8, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps,
            _mm256_mul_ps, AVX2_PAIR, 4)

#define AVX512_PAIR(p, q) (p = _mm512_fmadd_ps(x, y, p), q = _mm512_fmadd_ps(x, y, q))
RATES_LOOPS(avx512, __attribute__((target("avx512f"))), __m512, 16, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps,
            _mm512_mul_ps, AVX512_PAIR, 4)

#define PLAIN_PAIR(p, q) (p = _mm_mul_ps(p, x), q = _mm_add_ps(q, y))
RATES_LOOPS(plain, , __m128, 4, _mm_loadu_ps, _mm_storeu_ps, _mm_set1_ps, _mm_mul_ps, PLAIN_PAIR, 2)
#elif RATES_NEON
/* Two vectors as one, as some of these CPUs have four units. */
static inline float32x4x2_t neon_set1(float x) { return (float32x4x2_t){{vdupq_n_f32(x), vdupq_n_f32(x)}}; }
static inline float32x4x2_t neon_mul(float32x4x2_t x, float32x4x2_t y) {
    return (float32x4x2_t){{vmulq_f32(x.val[0], y.val[0]), vmulq_f32(x.val[1], y.val[1])}};
}
static inline float32x4x2_t neon_fma(float32x4x2_t x, float32x4x2_t y, float32x4x2_t z) {
    return (float32x4x2_t){{vfmaq_f32(z.val[0], x.val[0], y.val[0]), vfmaq_f32(z.val[1], x.val[0], y.val[0])}};
}
#define NEON_PAIR(p, q) (p = neon_fma(x, y, p), q = neon_fma(x, y, q))
RATES_LOOPS(plain, , float32x4x2_t, 8, vld1q_f32_x2, vst1q_f32_x2, neon_set1, neon_mul, NEON_PAIR, 4)
#else
#define PLAIN_PAIR(p, q) (p = p * x, q = q + y)
#define PLAIN_LOAD(p) (*(p))
#define PLAIN_STORE(p, value) (*(p) = (value))
#define PLAIN_SET1(value) (value)
#define PLAIN_MUL(p, q) ((p) * (q))
RATES_LOOPS(plain, , float, 1, PLAIN_LOAD, PLAIN_STORE, PLAIN_SET1, PLAIN_MUL, PLAIN_PAIR, 2)
#endif

typedef struct loops {
    double (*fma)(void); /* returns the number of operations */
    void (*scale)(float *p, size_t count);
} loops;

static loops loops_of(gdn_isa isa) {
    const loops plain = {fma_plain, scale_plain};
#if RATES_X86
    const loops avx2 = {fma_avx2, scale_avx2}, avx512 = {fma_avx512, scale_avx512};
    if (isa == GDN_ISA_AVX2) return avx2;
    if (isa == GDN_ISA_AVX512) return avx512;
#endif
    if (isa == GDN_ISA_PLAIN || (isa == GDN_ISA_NEON && RATES_NEON)) return plain;
    abort();
}

typedef struct share {
    const threads *threads;
    loops loops;
    float *data;
    size_t units;
    double operations; /* of thread 0; all do the same */
} share;

static void fma_share(void *data, int thread) {
    share *s = data;
    const double operations = s->loops.fma();
    if (thread == 0) s->operations = operations;
}

static void scale_share(void *data, int thread) {
    const share *s = data;
    const size_t count = (size_t)threads_count(s->threads), i = (size_t)thread, unit = RATES_UNIT / sizeof(float);
    const size_t first = s->units * i / count, last = s->units * (i + 1) / count;
    s->loops.scale(s->data + first * unit, (last - first) * unit);
}

double rates_fma(threads *t, gdn_isa isa) {
    share s = {.threads = t, .loops = loops_of(isa)};
    threads_run(t, fma_share, &s);
    return s.operations * threads_count(t);
}

void rates_scale(threads *t, gdn_isa isa, void *data, size_t bytes) {
    share s = {.threads = t, .loops = loops_of(isa), .data = data, .units = bytes / RATES_UNIT};
    threads_run(t, scale_share, &s);
}
