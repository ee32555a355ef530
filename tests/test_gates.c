/*
 * Stated error of the header's own exp, softplus and sigmoid, in units in the last place of float32: over every
 * STRIDE-th float, and the same bits from every instruction set.
 * SPDX-License-Identifier: MIT
 *
 *     test_gates [STRIDE]        1: all 2^32, which takes minutes of a core
 */
#define GDN_API static inline /* private to this file, which calls the internals */
#define GDN_IMPLEMENTATION
#include "gdn_varlen.h"

#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK = 4096, MAX_THREADS = 256, USUAL_STRIDE = 499 };

/* ==== the functions ================================================================================ */

static void plain_exp(ptrdiff_t count, float *x) {
    for (ptrdiff_t i = 0; i < count; i += gdni_dlanes_plain)
        gdni_store_double_plain(x + i, gdni_exp_plain(gdni_load_double_plain(x + i)));
}
static void plain_softplus(ptrdiff_t count, float *x) {
    for (ptrdiff_t i = 0; i < count; i += gdni_dlanes_plain)
        gdni_store_double_plain(
            x + i, gdni_softplus_plain(gdni_load_double_plain(x + i),
                                       gdni_exp_plain(gdni_minus_abs_plain(gdni_load_double_plain(x + i)))));
}
static void plain_sigmoid(ptrdiff_t count, float *x) {
    for (ptrdiff_t i = 0; i < count; i += gdni_dlanes_plain)
        gdni_store_double_plain(
            x + i, gdni_sigmoid_plain(gdni_exp_plain(gdni_dset1_plain(0.0) - gdni_load_double_plain(x + i))));
}

/* The C library's in double: wrong by some 1e-9 units in the last place of float32. */
static double exact_softplus(double x) { return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x)); }
static double exact_sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }

static const struct {
    const char *name;
    void (*run)(ptrdiff_t count, float *x);
    double (*exact)(double x);
    double bound;
} functions[] = {
    {"exp", plain_exp, exp, 0.53},
    {"softplus", plain_softplus, exact_softplus, 0.61},
    {"sigmoid", plain_sigmoid, exact_sigmoid, 0.53},
};
enum { NUM_FUNCTIONS = sizeof functions / sizeof functions[0] };

/* ==== how far off ================================================================================== */

/* Infinity counts as 2^128, the number after the largest. */
static double error_in_ulps(float actual, double exact) {
    int exponent;
    if (exact != exact || actual != actual) return exact != exact && actual != actual ? 0 : HUGE_VAL;
    if (exact >= 0x1p128) return actual > FLT_MAX ? 0 : HUGE_VAL;
    frexp(exact, &exponent);
    const double ulp = ldexp(1, (exponent < -125 ? -125 : exponent) - 24);
    return fabs((actual > FLT_MAX ? 0x1p128 : (double)actual) - exact) / ulp;
}

typedef struct worst {
    double ulps;
    uint32_t argument;
} worst;

static uint64_t stride;
static atomic_uint_fast64_t next_block;

static void *measure(void *result) {
    worst *most = (worst *)result;
    static const uint64_t span = (uint64_t)1 << 32;
    for (uint64_t first; (first = atomic_fetch_add(&next_block, BLOCK) * stride) < span;) {
        for (int f = 0; f < NUM_FUNCTIONS; f++) {
            float x[BLOCK], y[BLOCK];
            for (int i = 0; i < BLOCK; i++) x[i] = y[i] = gdni_float_of((uint32_t)(first + (uint64_t)i * stride));
            functions[f].run(BLOCK, y);
            for (int i = 0; i < BLOCK; i++) {
                const double ulps = error_in_ulps(y[i], functions[f].exact((double)x[i]));
                if (ulps > most[f].ulps) most[f] = (worst){ulps, gdni_bits_of(x[i])};
            }
        }
    }
    return NULL;
}

static int measure_all(void) {
    static worst most[MAX_THREADS][NUM_FUNCTIONS];
    static pthread_t threads[MAX_THREADS];
    const long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    const int count = cpus < 1 ? 1 : cpus > MAX_THREADS ? MAX_THREADS : (int)cpus;
    int failures = 0;
    for (int i = 0; i < count; i++)
        if (pthread_create(&threads[i], NULL, measure, most[i]) != 0) return puts("no thread"), 1;
    for (int i = 0; i < count; i++) pthread_join(threads[i], NULL);
    for (int f = 0; f < NUM_FUNCTIONS; f++) {
        worst all = {0, 0};
        for (int i = 0; i < count; i++)
            if (most[i][f].ulps > all.ulps) all = most[i][f];
        const bool ok = all.ulps <= functions[f].bound;
        printf("%-8s  at most %.4f ulp, at %.9g (0x%08" PRIx32 ")%s\n", functions[f].name, all.ulps,
               (double)gdni_float_of(all.argument), all.argument, ok ? "" : ": FAILED, more than stated");
        failures += !ok;
    }
    return failures;
}

/* ==== the same bits from every instruction set ===================================================== */

typedef struct instance {
    gdn_isa isa;
    double (*exp_A_log)(const gdn_params *, ptrdiff_t);
    void (*decays)(const gdn_params *, gdn_gate_input, double, const float *, ptrdiff_t, bool, ptrdiff_t, float *);
    void (*betas)(const gdn_params *, ptrdiff_t, float *);
} instance;
static const instance instances[] = {
    {GDN_ISA_PLAIN, gdni_exp_A_log_plain, gdni_decays_plain, gdni_betas_plain},
#if GDNI_AVX2
    {GDN_ISA_AVX2, gdni_exp_A_log_avx2, gdni_decays_avx2, gdni_betas_avx2},
#endif
#if GDNI_AVX512
    {GDN_ISA_AVX512, gdni_exp_A_log_avx512, gdni_decays_avx512, gdni_betas_avx512},
#endif
#if GDNI_NEON
    {GDN_ISA_NEON, gdni_exp_A_log_neon, gdni_decays_neon, gdni_betas_neon},
#endif
};

/* exp by itself, softplus inside the decay, sigmoid as beta and inside the bounded decay. */
static void run_gates(const instance *x, int which, float *values) {
    const float A_log = 0.5f, b = 0;
    float bias[16]; /* one vector, as wide as any */
    for (int i = 0; i < 16; i++) bias[i] = 0.25f;
    gdn_params p = {.A_log = gdn_f32(&A_log), .b = gdn_f32(&b)};
    p.softplus_beta = 1, p.softplus_threshold = 20, p.lower_bound = -5;
    p.gate_input = which == 0 ? GDN_GATE_LOG : GDN_GATE_RAW;
    p.has_lower_bound = which == 2;
    if (which < 3)
        x->decays(&p, p.gate_input, x->exp_A_log(&p, 0), bias, 0, false, BLOCK, values);
    else
        x->betas(&p, BLOCK, values);
}

static bool same_bits(const float *x, const float *y) {
    for (int i = 0; i < BLOCK; i++)
        if (gdni_bits_of(x[i]) != gdni_bits_of(y[i]) && !(x[i] != x[i] && y[i] != y[i])) return false;
    return true;
}

static int compare_instances(void) {
    const uint64_t sparse = stride < USUAL_STRIDE ? USUAL_STRIDE : stride;
    int failures = 0;
    for (size_t j = 1; j < sizeof instances / sizeof instances[0]; j++) {
        bool same = true;
        if (!gdn_isa_supported(instances[j].isa)) {
            printf("%-8s  not on this CPU\n", gdn_isa_name(instances[j].isa));
            continue;
        }
        for (uint64_t first = 0; first < (uint64_t)1 << 32; first += BLOCK * sparse)
            for (int which = 0; which < 4; which++) {
                float x[BLOCK], y[BLOCK];
                for (int i = 0; i < BLOCK; i++) x[i] = y[i] = gdni_float_of((uint32_t)(first + (uint64_t)i * sparse));
                run_gates(&instances[0], which, x);
                run_gates(&instances[j], which, y);
                same = same && same_bits(x, y);
            }
        printf("%-8s  %s\n", gdn_isa_name(instances[j].isa), same ? "the bits of plain C" : "FAILED: other bits");
        failures += !same;
    }
    return failures;
}

int main(int argc, char **argv) {
    stride = argc > 1 ? strtoull(argv[1], NULL, 10) : USUAL_STRIDE;
    if (stride == 0) return fprintf(stderr, "usage: %s [STRIDE]\n", argv[0]), 2;
    printf("every float with stride %" PRIu64 "\n", stride);
    return measure_all() + compare_instances() == 0 ? 0 : 1;
}
