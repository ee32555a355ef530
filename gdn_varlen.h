/*
 * gdn_varlen.h - the Gated DeltaNet recurrence for CPUs, in one C11 header
 * SPDX-License-Identifier: MIT
 *
 * Do this in ONE .c or .cpp file:
 *
 *     #define GDN_IMPLEMENTATION
 *     #include "gdn_varlen.h"
 *
 * and include the header without the macro everywhere else. A whole program,
 * two sequences of 3 and 2 tokens packed behind cu_seqlens:
 *
 *     #define GDN_IMPLEMENTATION
 *     #include "gdn_varlen.h"
 *     #include <stdio.h>
 *
 *     int main(void) {
 *         enum { TOKENS = 5, HEADS = 2, K = 8, V = 8 };
 *         static float q[TOKENS][HEADS][K], k[TOKENS][HEADS][K], v[TOKENS][HEADS][V], o[TOKENS][HEADS][V];
 *         static float a[TOKENS][HEADS], b[TOKENS][HEADS], A_log[HEADS], dt_bias[HEADS];
 *         const int cu_seqlens[] = {0, 3, 5};
 *         for (int t = 0; t < TOKENS; t++)
 *             for (int i = 0; i < K; i++) q[t][0][i] = k[t][0][i] = v[t][0][i] = 0.1f * (float)(t + i);
 *
 *         gdn_params p = {0};
 *         p.batch_size = 1;
 *         p.seq_len = TOKENS;
 *         p.num_seqs = 2;
 *         p.num_key_heads = HEADS;
 *         p.num_value_heads = HEADS;
 *         p.head_k_dim = K;
 *         p.head_v_dim = V;
 *         p.cu_seqlens = gdn_i32(cu_seqlens);
 *         p.A_log = gdn_f32(A_log);
 *         p.dt_bias = gdn_f32(dt_bias);
 *         p.a = gdn_f32(a[0]);
 *         p.b = gdn_f32(b[0]);
 *         p.q = gdn_f32(q[0][0]);
 *         p.k = gdn_f32(k[0][0]);
 *         p.v = gdn_f32(v[0][0]);
 *         p.o = gdn_out_f32(o[0][0]);
 *
 *         gdn_error error;
 *         if (gdn_fused_sigmoid_gating_delta_rule_update(&p, &error) != GDN_OK) {
 *             printf("%s: %s\n", error.argument, gdn_status_text(error.status));
 *             return 1;
 *         }
 *         printf("o[4][0][0] = %.9g\n", (double)o[4][0][0]);
 *         return 0;
 *     }
 *
 *     cc -O2 program.c -lm
 *
 * THE OPERATOR
 *
 * The recurrence of SGLang's Triton kernel fused_sigmoid_gating_delta_rule_update
 * (Gated DeltaNet: Yang, Kautz, Hatamizadeh, arXiv 2412.06464), for each sequence n
 * and each value head hv, one state S[K,V] kept from token to token:
 *
 *     x = a + dt_bias;  g = -exp(A_log) * softplus(x);  beta = sigmoid(b)
 *     q, k = q / sqrt(sum(q*q) + eps), k / sqrt(sum(k*k) + eps)     if use_qk_l2norm_in_kernel
 *     q = q * scale
 *     S = exp(g) * S                  one factor per head, or one per K row if is_kda
 *     S = S + k (beta * (v - k^T S))^T
 *     o = q^T S
 *
 * CONTENTS               search for the word in brackets
 *
 *     conventions of other systems, and what to set for each      [CONVENTIONS]
 *     what it does not do                                         [DOES NOT]
 *     numerics: the order of every operation                      [NUMERICS]
 *     memory, threads, scratch                                    [WORK ITEMS]
 *     one sequence in parts, computed at the same time            [SEGMENTS]
 *     macros                                                      [CONFIGURATION]
 *     types, parameters, functions                                [INTERFACE]
 *     implementation: [COMPILER] [ELEMENTS] [RESOLVING] [VALIDATION] [ITEMS] [REFERENCE] [PADDING] [SCRATCH] [RUNS]
 *                     [TARGETS] [SELECTION] [PUBLIC] [PREPARED] [JOINING] [PRESETS] [NAMES] [KERNEL]
 *
 * CONVENTIONS
 *
 * The same recurrence, many habits. With K = V a wrong state_layout runs and is silently
 * wrong, so the header has no default for it. "-" means the default (zero) of the field. gdn_preset() sets a row.
 *
 *   system                      state_layout   head_map  gate_input   beta_input     l2norm_form, eps  padding
 *   --------------------------  -------------  --------  -----------  -------------  ----------------  --------------
 *   SGLang Triton, to 2026-03   GDN_STATE_KV   -         -            -              -                 -
 *   SGLang Triton, later        GDN_STATE_VK   -         -            -              -                 -
 *   SGLang, vLLM packed decode  GDN_STATE_VK   -         -            -              -                 ZERO (4)
 *   SGLang, vLLM CPU decode     GDN_STATE_KV   -         -            -              -, 1e-5           none (crashes)
 *   SGLang, vLLM CPU chunks     GDN_STATE_KV   -         LOG          GIVEN          -, 1e-6 / 1e-5    none (crashes)
 *   vLLM Triton                 GDN_STATE_VK   -         - / LOG (3)  - / GIVEN (3)  -                 LEAVE (4)
 *   FLA                         KV or VK (1)   -         LOG / -      GIVEN (2)      -                 no pool
 *   FlashInfer decode           VK or KV (5)   -         -            -              -                 ZERO
 *   FlashInfer MTP              GDN_STATE_VK   -         -            -              -                 LEAVE
 *   FlashInfer prefill, mlx-lm  GDN_STATE_VK   -         DECAY        GIVEN          - (6)             no pool
 *   llama.cpp, qwen35           GDN_STATE_VK   TILED     LOG          GIVEN          - (6)             no pool
 *   llama.cpp, qwen3next        GDN_STATE_VK   -         LOG          GIVEN          - (6)             no pool
 *   transformers                GDN_STATE_KV   -         LOG          GIVEN          -                 no pool
 *
 *   The scale is K^-0.5 in all of them (FlashInfer: 0 means the same, as here). The output has q's dtype, in FLA
 *   v's; here it is o.dtype.
 *   (1) state_v_first selects VK.  (2) FLA's beta may be per V column: beta_per_column; with
 *   use_beta_sigmoid_in_kernel it is raw, and allow_neg_eigval doubles it.  (3) fused_recurrent.
 *   (4) vLLM reserves slot 0: has_null_slot with null_slot 0.  (5) "pretranspose" is VK, "nontranspose" is KV; with
 *   bfloat16 states -1 is slot 0 there, and overwritten: here it never is.  (6) sqrt(sum + eps) since mlx-lm 0.32 and
 *   llama.cpp of 2026-08-31; before: MEAN_PLUS_EPS and MAX_NORM_EPS. llama.cpp's eps is the model file's.
 *   SGLang, vLLM, FLA and transformers normalise q and k when asked to (use_qk_l2norm_in_kernel), FlashInfer by
 *   default. llama.cpp and mlx-lm normalise before the operator: set use_qk_l2norm_in_kernel to feed this one their
 *   raw q and k, leave it off to feed it what they feed theirs.
 *   Rounded inside, and here where `rounding` says so: q and k after the norm, in FlashInfer's prefill and the chunked
 *   kernels of FLA, SGLang and vLLM (in the CPU chunks q after its scale instead); beta, to b's dtype, in SGLang's
 *   packed decode and in transformers' models. The CPU decodes round exp(-b), 1 + that and the quotient: not here.
 *   GDN-2: beta absent, erase = b, v = w * v. Comba: k_read = p, read_before_decay. mlx-lm's mask: token_mask.
 *
 * DOES NOT
 *
 *   start threads, keep global state (but a word on what the CPU has), or allocate when scratch is passed; write
 *   its inputs; compute the causal convolution, the output norm or the output gate around the operator; compute
 *   gradients; decay by head and by channel at once (pass the product as channels); know 8-bit floats, more query
 *   than value heads (repeat k and v), or strides inside a head (copy).
 *
 * NUMERICS
 *
 *   GDN_COMPUTE_F64 is the oracle: the formulas above, literally, every intermediate in double.
 *   GDN_COMPUTE_F32 gives the same bits on every machine, compiler, instruction set and number of
 *   threads, wherever a sequence stands in a batch and wherever it is split into calls (with a float32
 *   state). It assumes round-to-nearest without flush-to-zero; the payload of a NaN is not part of the
 *   promise. Its order of operations, all in float32; fma(x, y, z) is one rounding of x*y + z:
 *
 *   sum16   a sum over K with sixteen partial sums: the l-th over i = l, l+16, ... in order, each step
 *           acc = fma(x_i, y_i, acc) from 0; then folded: l + (l+8), l + (l+4), l + (l+2), l + (l+1).
 *   norm    n = sum16(x, x), folded in double; f = 1 / sqrt(n + eps), or the other forms, in double, times scale
 *           for q (without the norm f = scale); f = hi + lo, two floats; x = fma(x, hi, x * lo). Where q is rounded
 *           before the scale, that is a second such product.
 *   qk      sum16(q, k), folded in double and rounded to float
 *   gates   decay and beta in double, by this header's own exp, softplus and sigmoid; rounded to float once, to
 *           within 0.61 units in the last place of each function.
 *   token   A = k^T S and B = q^T S over the state before the token;
 *           with KDA, and where decay is 0 (which so forgets whatever finite state was there), the sums are
 *           over the rounded decay_i * k_i and decay_i * q_i.
 *           GDN_STATE_KV, or no layout set: each column sums over k in order in one accumulator.
 *           GDN_STATE_VK: sum16. Then, with p = decay (KDA: 1):
 *               d = beta * fma(-p, A, v);  o = fma(qk, d, p * B);  s = fma(k_i, d, decay_i * s)
 *           k_read, erase: erase_i * k_read_i, rounded, is in A what k_i is. read_before_decay: A without decays, and
 *           p = 1 in d. gv: every s is first rounded once more, to exp(gv) * s.
 *
 *   The two layouts therefore agree within the error bound, not in bits. bfloat16 and float16 are
 *   converted exactly on load and rounded to nearest, ties to even, on store.
 *
 *   GDN_COMPUTE_F32_CHUNKS takes up to 16 tokens at a time, from the first token of a sequence in its call on, as
 *   products of matrices: the faster way for prompts, and as fast in either layout. Both layouts give the same bits, on
 *   every machine as above; split between calls a sequence keeps them where each split is at a multiple of 16 tokens
 *   and no piece has one token alone. Under either name GDN_COMPUTE_F32 computes sequences of one token; steps that are
 *   stored (intermediate_states_buffer, ssm_state_indices), unless step_interval is a multiple of 16; and token_mask,
 *   gv, read_before_decay and GDN_ROUND_STATE. Use it wherever verification and decode must give the same bits, or a
 *   prompt the same in any pieces. What differs from above (k_i in scores and sums over S is again erase * k_read), for
 *   tokens i = a .. of a chunk; P(j,i) is the product of the decays after j up to i, G_i = P(a-1,i), factor by factor;
 *   every sum in order, each step an fma:
 *
 *   score   kk(i,j) = P(j,i) * sum over K of k_i k_j, qk(i,j) = P(j,i) * sum of q_i k_j. KDA: u = P(j,i) k_j is
 *           rounded, and the sums are over k_i u and q_i u.
 *   token   A = k_i^T S and B = q_i^T S over the state before the chunk (KDA: over G_i k_i and G_i q_i; G = 1). Then
 *               d_i = beta * (fma(-G_i, A, v) - sum over j < i of kk(i,j) d_j)
 *               o_i = G_i * B + sum over j <= i of qk(i,j) d_j
 *   state   with z the last token of the chunk: s = fma(k_j, P(j,z) * d_j, s) for each j, from s = G_z * s
 *           (KDA: fma(P(j,z) k_j, d_j, s))
 *   A token that decays the whole state by 0 begins a chunk of its own, from 0 * s, within the sixteen.
 *
 * WORK ITEMS
 *
 *   gdn_fused_sigmoid_gating_delta_rule_update() does everything on the calling thread. To use your own
 *   threads, validate once and let any worker run any ranges of work items, in any order, each exactly once:
 *
 *       if (gdn_validate(&p, &error) != GDN_OK) ...
 *       ptrdiff_t items = gdn_num_work_items(&p);                       // sequences x heads x slices of V
 *       size_t bytes = gdn_scratch_size(&p);                            // for each worker
 *       gdn_run_work_items(&p, items * ith / nth, items * (ith + 1) / nth, scratch_of_worker, bytes);
 *
 *   Neighbouring items share the work on q and k, so long ranges are cheaper than many single items.
 *   Every function is reentrant and may be called from any thread; two calls that run at the same time
 *   must not write the same output or state slots.
 *
 * SEGMENTS
 *
 *   One sequence in parts that are computed at the same time. The state after some tokens is an affine function of the
 *   state before them, for each value head
 *
 *       S_end = M S_start + B       transition M [K,K], B [K,V]
 *
 *   and both come from the operator itself: B is the final state from a state of zeros. M is the final state from the
 *   identity of a call with head_v_dim = K and `homogeneous` set, which leaves v and o out; it costs what K columns
 *   of V cost. gdn_segment_apply() does the rest: one call carries a state over a segment, two join neighbours,
 *   M = M2 M1, B = M2 B1 + B2. Joining is associative (a parallel scan), and in float32 every order of it gives other
 *   last bits; compute and join in float64 where that matters.
 *
 * CONFIGURATION          define before including the header
 *
 *   GDN_IMPLEMENTATION     emit the implementation into this translation unit
 *   GDN_API                linkage of the functions; default extern. "static inline" makes them private to
 *                          one file.
 *   GDN_HEADER_NAME        the name under which the header includes itself; default "gdn_varlen.h"
 *   GDN_NO_SIMD            leave out every vector instruction set: only plain C remains
 *   GDN_NO_AVX2, GDN_NO_AVX512, GDN_NO_NEON
 *                          leave out one instance of the kernel: 55 to 75 KiB of code each
 *   GDN_NO_MALLOC          never call malloc: scratch must be passed
 */
#ifndef GDN_VARLEN_H
#define GDN_VARLEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GDN_VERSION_MAJOR 0
#define GDN_VERSION_MINOR 2
#define GDN_VERSION_PATCH 0
#define GDN_VERSION (GDN_VERSION_MAJOR * 10000 + GDN_VERSION_MINOR * 100 + GDN_VERSION_PATCH)

#ifndef GDN_API
#define GDN_API extern
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ==== INTERFACE ==================================================================================== */

/* What a call returns: code, text. */
#define GDN_STATUSES(X)                                                                                                \
    X(GDN_OK, "success")                                                                                               \
    X(GDN_ERROR_NULL, "a required pointer is NULL")                                                                    \
    X(GDN_ERROR_SIZE, "a size is out of its range or does not fit the others")                                         \
    X(GDN_ERROR_ENUM, "not set, or outside its enumeration, or not allowed here")                                      \
    X(GDN_ERROR_VALUE, "a number is not finite or outside its range")                                                  \
    X(GDN_ERROR_COMBINATION, "this option excludes, or needs, another one")                                            \
    X(GDN_ERROR_STRIDE, "a stride is too small for its axis, or the axis does not exist")                              \
    X(GDN_ERROR_CU_SEQLENS, "cu_seqlens must start at 0, never decrease, and end within seq_len")                      \
    X(GDN_ERROR_INDEX, "an index is outside the array it points into")                                                 \
    X(GDN_ERROR_CONFLICT, "two sequences use a slot that one of them writes")                                          \
    X(GDN_ERROR_OVERFLOW, "the size of an array does not fit ptrdiff_t")                                               \
    X(GDN_ERROR_OVERLAP, "memory that is written overlaps other memory of the call")                                   \
    X(GDN_ERROR_ISA, "this CPU or this build lacks the instruction set")                                               \
    X(GDN_ERROR_SCRATCH, "scratch is missing or too small")                                                            \
    X(GDN_ERROR_RANGE, "a range of work items is outside 0 .. gdn_num_work_items()")

typedef enum gdn_status {
#define GDN_STATUS_CODE(code, text) code,
    GDN_STATUSES(GDN_STATUS_CODE)
#undef GDN_STATUS_CODE
        GDN_NUM_STATUSES
} gdn_status;

/* Where an error is. `argument` is the name of the field of gdn_params at fault, or "" (never NULL); `index`
 * is the place in that array (flat for two-dimensional ones: row * columns + column), and `other` a second
 * place that it conflicts with; -1 where there is none. */
typedef struct gdn_error {
    gdn_status status;
    const char *argument;
    int64_t index;
    int64_t other;
} gdn_error;

/* Elements of a tensor. 0 is "not set", an error wherever a pointer is given. */
typedef enum gdn_dtype {
    GDN_DTYPE_NOT_SET = 0,
    GDN_F32,  /* float */
    GDN_BF16, /* upper half of a float, in a uint16_t */
    GDN_F16,  /* IEEE binary16, in a uint16_t */
    GDN_F64   /* double; only under GDN_COMPUTE_F64 */
} gdn_dtype;

typedef enum gdn_index_dtype { GDN_INDEX_NOT_SET = 0, GDN_I32, GDN_I64 } gdn_index_dtype;

/* An input: [batch, token, head, inner], the innermost axis contiguous. Strides count elements and 0 means
 * contiguous: head_stride = inner size, token_stride = heads * head_stride, batch_stride = seq_len *
 * token_stride. A view into a packed buffer sets the strides that differ; axes may be in any order, but must
 * not overlap. Two-dimensional [tokens, heads] tensors of the varlen form are the same with batch 1. */
typedef struct gdn_tensor {
    const void *data;
    gdn_dtype dtype;
    ptrdiff_t batch_stride, token_stride, head_stride;
} gdn_tensor;

/* A stride of inputs, and only of those: everything along that axis is one and the same element. For the strides left
 * at 0 around it the axis counts once. */
#define GDN_BROADCAST PTRDIFF_MIN

/* The same for what is written. */
typedef struct gdn_output {
    void *data;
    gdn_dtype dtype;
    ptrdiff_t batch_stride, token_stride, head_stride;
} gdn_output;

/* The state pool [num_states, value heads, K, V] or [.., V, K]; the matrices are contiguous. Strides as above:
 * a slot_stride larger than HV*K*V is a pool with padded slots. */
typedef struct gdn_state_pool {
    void *data;
    gdn_dtype dtype;
    ptrdiff_t num_states;
    ptrdiff_t slot_stride, head_stride;
} gdn_state_pool;

/* The cache of the state after every step: [num_rows, num_steps, value heads, K, V] or [.., V, K]. */
typedef struct gdn_state_cache {
    void *data;
    gdn_dtype dtype;
    ptrdiff_t num_rows, num_steps;
    ptrdiff_t row_stride, step_stride, head_stride;
} gdn_state_cache;

/* One byte for each token, [batch, token]. Strides as those of a gdn_tensor without heads. */
typedef struct gdn_mask {
    const uint8_t *data;
    ptrdiff_t batch_stride, token_stride;
} gdn_mask;

/* One integer, or one row of num_columns integers, for each sequence; data NULL means absent. row_stride is the
 * distance between the rows of two sequences, 0 means contiguous. num_columns matters only to the two-dimensional
 * arrays. */
typedef struct gdn_indices {
    const void *data;
    gdn_index_dtype dtype;
    ptrdiff_t num_columns;
    ptrdiff_t row_stride;
} gdn_indices;

typedef enum gdn_state_layout {
    GDN_STATE_LAYOUT_NOT_SET = 0, /* an error once a pool or a cache is given */
    GDN_STATE_KV,                 /* [slot, HV, K, V]: SGLang to March 2026, transformers, FLA's default */
    GDN_STATE_VK                  /* [slot, HV, V, K]: SGLang since, vLLM, FlashInfer, ggml, mlx-lm */
} gdn_state_layout;

typedef enum gdn_head_map {
    GDN_HEADS_GROUPED = 0, /* key head = hv / (HV / H) */
    GDN_HEADS_TILED        /* key head = hv % H: ggml, and GGUF files of qwen35 */
} gdn_head_map;

typedef enum gdn_gate_input {
    GDN_GATE_RAW = 0, /* a is the projection: g is computed from A_log, a, dt_bias */
    GDN_GATE_LOG,     /* a is the log decay g; A_log and dt_bias are not read */
    GDN_GATE_DECAY    /* a is the decay exp(g); A_log and dt_bias are not read */
} gdn_gate_input;

typedef enum gdn_beta_input {
    GDN_BETA_RAW = 0, /* beta = sigmoid(b) */
    GDN_BETA_GIVEN    /* b is beta */
} gdn_beta_input;

typedef enum gdn_l2norm_form {
    GDN_L2NORM_SUM_PLUS_EPS = 0, /* x / sqrt(sum(x*x) + eps): every system of today */
    GDN_L2NORM_MEAN_PLUS_EPS,    /* x / sqrt(sum(x*x) + K*eps): mlx-lm before 0.32 */
    GDN_L2NORM_MAX_NORM_EPS,     /* x / max(sqrt(sum(x*x)), eps): ggml_l2_norm */
    GDN_L2NORM_NORM_PLUS_EPS     /* x / (sqrt(sum(x*x)) + eps) */
} gdn_l2norm_form;

/* What a negative index (or the null slot) does to the output rows of its sequence. The pool is never written. */
typedef enum gdn_padding {
    GDN_PADDING_COMPUTE = 0, /* compute them from a zero state, as SGLang's Triton kernel does */
    GDN_PADDING_ZERO,        /* fill them with zeros */
    GDN_PADDING_LEAVE        /* do not touch them */
} gdn_padding;

/* What some systems round on the way, a sum of these. Each is a rounding to nearest, ties to even. */
typedef enum gdn_rounding {
    GDN_ROUND_QK = 1,       /* q, k and k_read to their own dtypes, after the norm */
    GDN_ROUND_SCALED_Q = 2, /* q to its dtype, not before the scale but after it */
    GDN_ROUND_BETA = 4,     /* beta to the dtype of b */
    GDN_ROUND_STATE = 8     /* the state, after every token, to the dtype of the pool: the second if there are two */
} gdn_rounding;

typedef enum gdn_compute {
    GDN_COMPUTE_F32 = 0,   /* float32, token by token */
    GDN_COMPUTE_F64,       /* the oracle */
    GDN_COMPUTE_F32_CHUNKS /* float32, prompts in chunks of 16 tokens: faster, other last bits; see NUMERICS */
} gdn_compute;

/* The instruction set of both float32 computations: code, name. All give the same bits; forcing one is for testing. */
#define GDN_ISAS(X)                                                                                                    \
    X(GDN_ISA_AUTO, "auto")     /* the fastest that this build has and this CPU supports */                            \
    X(GDN_ISA_PLAIN, "plain")   /* what the compiler may assume of every CPU of its target */                          \
    X(GDN_ISA_AVX2, "avx2")     /* with FMA and F16C */                                                                \
    X(GDN_ISA_AVX512, "avx512") /* F, BW, DQ and VL, with AVX2 */                                                      \
    X(GDN_ISA_NEON, "neon")

typedef enum gdn_isa {
#define GDN_ISA_CODE(code, name) code,
    GDN_ISAS(GDN_ISA_CODE)
#undef GDN_ISA_CODE
        GDN_NUM_ISAS
} gdn_isa;

/* All of a call. Start from zero (gdn_params p = {0}; C++: {}) and set what the call needs. What is written (o, pool,
 * cache, scratch) must not overlap anything else of the call; with batch 1 an output may lie between the inputs in
 * common rows of one pitch. Every index is checked against its array, used or not.
 * Shapes: N sequences, B = batch_size, T = seq_len, H key heads, HV value heads, K and V per head. */
typedef struct gdn_params {
    /* Sizes, all at least 1; seq_len may be 0. HV is a multiple of H.
     * Fixed length: N = B, and num_seqs is 0 or B. Varlen (cu_seqlens given): B = 1, seq_len is the total length
     * of the tensors and num_seqs is N. */
    ptrdiff_t batch_size, seq_len, num_seqs;
    ptrdiff_t num_key_heads, num_value_heads, head_k_dim, head_v_dim;

    /* cu_seqlens [N+1]: sequence n is tokens [cu_seqlens[n], cu_seqlens[n+1]). It starts at 0, never decreases and
     * ends at or before seq_len; rows past its end are not written. A sequence of length 0 writes nothing. */
    gdn_indices cu_seqlens;

    /* Inputs, in any mix of dtypes. Required: q, k, v; with a raw `a` also A_log, but under a lower bound.
     * Rows of Qwen3-Next's fused ba projection, b and a of each key head in turn, have no one head_stride: copy them.
     */
    gdn_tensor A_log;   /* [HV]; only head_stride may be set; absent, under a lower bound: 0 */
    gdn_tensor a;       /* [B,T,HV]; is_kda: [B,T,HV,K]; absent, and A_log and dt_bias with it: no decay */
    gdn_tensor dt_bias; /* [HV]; is_kda: [HV,K]; only head_stride may be set; absent: 0 */
    gdn_tensor q, k;    /* [B,T,H,K] */
    gdn_tensor v;       /* [B,T,HV,V] */
    gdn_tensor b;       /* [B,T,HV]; beta_per_column: [B,T,HV,V]; absent: beta = 1 */

    /* Inputs of few systems, all optional. */
    gdn_tensor k_read;   /* [B,T,H,K] the key that reads, d = beta (v - k_read^T S), normalised like k; absent: k */
    gdn_tensor erase;    /* [B,T,HV,K] a factor on what reads, after the norm: erase * k_read (GDN-2) */
    gdn_tensor gv;       /* [B,T,HV,V] log decay of each column of V, besides that of `a` */
    gdn_mask token_mask; /* [B,T] 0: the token changes no state and its row of o is not written. (Raw a = b = -inf, or
                          * g = 0 and beta = 0, keep a finite state too, but make its -0 +0, and write o.) */

    /* Output [B,T,HV,V], with its own dtype. */
    gdn_output o;

    /* State pool; absent: every sequence starts from zeros and its final state is dropped. It is read and written
     * in place, rounded once at the end of the sequence. A slot that one sequence writes is used by no other. */
    gdn_state_pool initial_state_source;
    gdn_state_layout state_layout;     /* of the pools and of the cache; required with any of them */
    gdn_indices initial_state_indices; /* [N] slot read; absent: slot n. Negative: padding, see below */
    gdn_indices output_state_indices;  /* [N] slot written; absent: the slot read, but see ssm_state_indices. Negative:
                                        * none. A new request reads a slot of zeros and writes its own */

    /* A pool of its own for what is written, of any dtype and strides, or an array of final states [N,HV,..]; the pool
     * above is then only read, or absent. Sequence n is written to slot output_state_indices[n], absent: n. */
    gdn_state_pool output_state_pool;
    gdn_padding padding; /* what a negative initial index does to the output */
    bool has_null_slot;  /* null_slot means the same as a negative index, read or written; without
                          * initial_state_indices it may not be one of the slots 0 .. N - 1 */
    int64_t null_slot;
    bool disable_state_update; /* the pool is only read */

    /* The states after steps, for verifying drafts and for prefix caches, beside the final one. A step is step_interval
     * tokens (0: 1), counted from the sequence's first in this call; the tokens after the last whole step belong to
     * none. [N, steps] has at least as many columns as the longest sequence has steps, see gdn_indices_of().
     *
     * In a cache: row intermediate_state_indices[n] (absent: n; negative: not cached), one column for each step. With
     * retrieve_parent_token [N, steps] and steps of one token, step s > 0 of a cached sequence starts from the cached
     * state of step parent[s], 0 <= parent[s] < s, as stored (parent[0] is not read). */
    ptrdiff_t step_interval;
    gdn_state_cache intermediate_states_buffer;
    gdn_indices intermediate_state_indices;
    gdn_indices retrieve_parent_token;

    /* Or, or besides, in slots of the pool that is written, [N, steps] (negative: not stored). The final state is then
     * written only where output_state_indices says. Without initial_state_indices and a second pool, one of which
     * longer steps need, the sequence starts from slot ssm_state_indices[n, num_accepted_tokens[n] - 1], or [n, 0]; a
     * negative one there is padding. */
    gdn_indices ssm_state_indices;
    gdn_indices num_accepted_tokens; /* [N], each in [1, steps] */

    /* Options. A number left at 0 has its default; for a true zero pass a tiny one such as 1e-300. */
    double scale;                 /* factor on q after the norm; 0: K^-0.5; finite, positive */
    bool use_qk_l2norm_in_kernel; /* L2-normalise q and k over K; in float32 a row longer than 1.8e19 becomes 0 */
    gdn_l2norm_form l2norm_form;
    double l2norm_eps;         /* 0: 1e-6; finite, not negative */
    double softplus_beta;      /* 0: 1; finite, positive */
    double softplus_threshold; /* 0: 20; softplus(x) = x where beta*x > threshold; not NaN */
    bool is_kda;               /* one gate for each K row: a [..,HV,K], dt_bias [HV,K] */
    bool has_lower_bound;      /* g = lower_bound * sigmoid(exp(A_log) * x), no clamp of the other; only raw gates */
    double lower_bound;        /* finite, at most 0 */
    gdn_gate_input gate_input;
    gdn_beta_input beta_input;
    bool beta_per_column;  /* b is [..,HV,V] */
    bool allow_neg_eigval; /* beta is doubled (OLMo-Hybrid) */
    gdn_head_map head_map;
    bool read_before_decay; /* d = beta (v - k_read^T S) reads S before the token's decay (Comba); not with gv */
    unsigned rounding;      /* gdn_rounding, a sum */

    /* The state alone, with v = 0: S_end = M S_start, see [SEGMENTS]. v, o and gv must be absent, and beta_per_column
     * unset (M would differ from column to column). */
    bool homogeneous;

    /* How to compute. */
    gdn_compute compute;
    gdn_isa isa;
    void *scratch;       /* for the one-thread call, any alignment; NULL: it calls malloc */
    size_t scratch_size; /* at least gdn_scratch_size() bytes where scratch is given */
} gdn_params;

/* What other systems take for granted (new ones at the end, so that the numbers stay): code, name, then without their
 * prefixes state_layout, head_map, gate_input, beta_input, l2norm_form, l2norm_eps, padding, and null_slot (-1: none).
 * See [CONVENTIONS].
 *
 *   SGLANG                  0.5.23, the Triton kernel of this operator since March 2026; SGLANG_KV: before
 *   SGLANG_PACKED_DECODE    of the same
 *   SGLANG_CPU, VLLM_CPU    decode of sgl-kernel (vLLM 0.33.0), a negative index crashes there; _CHUNK: prefill
 *   VLLM                    0.33.0 fused_sigmoid_gating; VLLM_RECURRENT: fused_recurrent; VLLM_PACKED_DECODE
 *   FLA                     0.6.0 fused_recurrent; VK with state_v_first; RAW with gate or sigmoid in the kernel
 *   FLASHINFER_DECODE       0.7.4 "pretranspose" with float32 states; _KV: "nontranspose"; _MTP; _PREFILL: chunked
 *   GGML                    llama.cpp of 2026-10 (0c1e5709), qwen35; LLAMA_QWEN3NEXT: qwen3next
 *   MLX_LM, TRANSFORMERS    0.32.2, 5.24.0
 */
/* clang-format off: a table */
#define GDN_SYSTEMS(X)                                                                                                 \
    X(SGLANG, "sglang", VK, GROUPED, RAW, RAW, SUM_PLUS_EPS, 1e-6, COMPUTE, -1)                                        \
    X(SGLANG_KV, "sglang_kv", KV, GROUPED, RAW, RAW, SUM_PLUS_EPS, 1e-6, COMPUTE, -1)                                  \
    X(SGLANG_PACKED_DECODE, "sglang_packed_decode", VK, GROUPED, RAW, RAW, SUM_PLUS_EPS, 1e-6, ZERO, -1)               \
    X(SGLANG_CPU, "sglang_cpu", KV, GROUPED, RAW, RAW, SUM_PLUS_EPS, 1e-5, COMPUTE, -1)                                \
    X(VLLM, "vllm", VK, GROUPED, RAW, RAW, SUM_PLUS_EPS, 1e-6, LEAVE, 0)                                               \
    X(VLLM_RECURRENT, "vllm_recurrent", VK, GROUPED, LOG, GIVEN, SUM_PLUS_EPS, 1e-6, LEAVE, 0)                         \
    X(VLLM_CPU, "vllm_cpu", KV, GROUPED, RAW, RAW, SUM_PLUS_EPS, 1e-5, COMPUTE, -1)                                    \
    X(FLA, "fla", KV, GROUPED, LOG, GIVEN, SUM_PLUS_EPS, 1e-6, COMPUTE, -1)                                            \
    X(FLASHINFER_DECODE, "flashinfer_decode", VK, GROUPED, RAW, RAW, SUM_PLUS_EPS, 1e-6, ZERO, -1)                     \
    X(FLASHINFER_DECODE_KV, "flashinfer_decode_kv", KV, GROUPED, RAW, RAW, SUM_PLUS_EPS, 1e-6, ZERO, -1)               \
    X(FLASHINFER_PREFILL, "flashinfer_prefill", VK, GROUPED, DECAY, GIVEN, SUM_PLUS_EPS, 1e-6, COMPUTE, -1)            \
    X(GGML, "ggml", VK, TILED, LOG, GIVEN, SUM_PLUS_EPS, 1e-6, COMPUTE, -1)                                            \
    X(MLX_LM, "mlx_lm", VK, GROUPED, DECAY, GIVEN, SUM_PLUS_EPS, 1e-6, COMPUTE, -1)                                    \
    X(TRANSFORMERS, "transformers", KV, GROUPED, LOG, GIVEN, SUM_PLUS_EPS, 1e-6, COMPUTE, -1)                          \
    X(VLLM_PACKED_DECODE, "vllm_packed_decode", VK, GROUPED, RAW, RAW, SUM_PLUS_EPS, 1e-6, ZERO, 0)                    \
    X(FLASHINFER_MTP, "flashinfer_mtp", VK, GROUPED, RAW, RAW, SUM_PLUS_EPS, 1e-6, LEAVE, -1)                          \
    X(SGLANG_CPU_CHUNK, "sglang_cpu_chunk", KV, GROUPED, LOG, GIVEN, SUM_PLUS_EPS, 1e-6, COMPUTE, -1)                  \
    X(VLLM_CPU_CHUNK, "vllm_cpu_chunk", KV, GROUPED, LOG, GIVEN, SUM_PLUS_EPS, 1e-5, COMPUTE, -1)                      \
    X(LLAMA_QWEN3NEXT, "llama_qwen3next", VK, GROUPED, LOG, GIVEN, SUM_PLUS_EPS, 1e-6, COMPUTE, -1)
/* clang-format on */

typedef enum gdn_system {
    GDN_SYSTEM_NOT_SET = 0,
#define GDN_SYSTEM_CODE(code, name, state, heads, gate, beta, form, eps, pad, null) GDN_SYSTEM_##code,
    GDN_SYSTEMS(GDN_SYSTEM_CODE)
#undef GDN_SYSTEM_CODE
        GDN_NUM_SYSTEMS
} gdn_system;

/* The operator, on the calling thread: validates, then runs every work item. Returns GDN_OK, or an error before
 * anything has been written; `error` may be NULL. Thread safety: reentrant. Source: SGLang
 * fused_sigmoid_gating_recurrent.py, fused_sigmoid_gating_delta_rule_update. */
GDN_API gdn_status gdn_fused_sigmoid_gating_delta_rule_update(const gdn_params *params, gdn_error *error);

/* Every check of the call and nothing else: reads the index arrays, no tensor; writes only *error, which may be
 * NULL. Work grows with N and the number of steps, not with the tensors: each index is looked at once for each 65,536
 * slots of the pool among which some are written. */
GDN_API gdn_status gdn_validate(const gdn_params *params, gdn_error *error);

/* The same without any address, for planners of graphs: sizes, dtypes, strides and options. An array counts as given
 * where its dtype is set, whatever its data; no pointer is followed. Not checked: what index arrays hold, whether the
 * pools have a slot for each sequence, whether memory overlaps, the size of scratch. gdn_num_work_items() and
 * gdn_scratch_size() need cu_seqlens.data where there is one. */
GDN_API gdn_status gdn_validate_plan(const gdn_params *params, gdn_error *error);

/* Number of work items; 0 where gdn_validate() refuses the sizes. Each is one sequence, one value head and 32 columns
 * of V (the last of a head may have fewer). They are ordered by sequence, key head, value head, columns. */
GDN_API ptrdiff_t gdn_num_work_items(const gdn_params *params);

/* Bytes of scratch for one worker; 0 where gdn_validate() refuses the sizes. Depends on K, V, the head counts and the
 * options, not on N or T. */
GDN_API size_t gdn_scratch_size(const gdn_params *params);

/* Runs the items first <= i < last of parameters that gdn_validate() accepts, and that stay unchanged until every
 * item has run. Any partition and order gives the same bits. Ranges that run at the same time need their own scratch
 * (any alignment). Returns GDN_OK, GDN_ERROR_RANGE, GDN_ERROR_SCRATCH or, not validated, GDN_ERROR_NULL, GDN_ERROR_SIZE
 * or GDN_ERROR_ISA. */
GDN_API gdn_status gdn_run_work_items(const gdn_params *params, ptrdiff_t first, ptrdiff_t last, void *scratch,
                                      size_t scratch_size);

/* What the operator computes of its inputs before the recurrence, in the bits that it uses: those whose data is given,
 * each from its own input, which then must be there. Of v, erase, gv, token_mask, o, states and indices only the sizes
 * are looked at.
 * All tokens of the tensors, on the calling thread; scratch as in the operator. What is written may overlap nothing
 * else. Returns what gdn_validate() does, with the names of the results as "results.g". Thread safety: reentrant. */
typedef struct gdn_prepared {
    gdn_output g, decay;     /* [B,T,HV]; is_kda: [B,T,HV,K]: the log decay (not under GDN_GATE_DECAY); exp(g) */
    gdn_output beta;         /* [B,T,HV]; beta_per_column: [B,T,HV,V] */
    gdn_output q, k, k_read; /* [B,T,H,K] normalised, q scaled */
} gdn_prepared;
GDN_API gdn_status gdn_prepare(const gdn_params *params, const gdn_prepared *results, gdn_error *error);

/* result += transition * state, for each of `count` heads: the state after a segment that starts from `state`, where
 * `result` holds its B; with `result` zeroed and the M of an earlier segment as `state`, the M of both. `transition`
 * [count, K, K], `state` and `result` [count, K, V], or each transposed as in the pool (`layout`); contiguous, of
 * GDN_F32 or GDN_F64. Sums over k in order, in double, rounded once to `dtype`: the same bits on every machine.
 * count may be 0. Returns GDN_OK, or before anything has been written GDN_ERROR_NULL, GDN_ERROR_SIZE, GDN_ERROR_ENUM,
 * GDN_ERROR_OVERFLOW, or GDN_ERROR_OVERLAP where `result` shares memory with another array; error->argument is the
 * name of the argument here. `error` may be NULL. Thread safety: reentrant; heads may be shared among threads. */
GDN_API gdn_status gdn_segment_apply(ptrdiff_t count, ptrdiff_t head_k_dim, ptrdiff_t head_v_dim,
                                     gdn_state_layout layout, gdn_dtype dtype, const void *transition,
                                     const void *state, void *result, gdn_error *error);

/* Sets what `system` takes for granted (GDN_SYSTEMS): state_layout, head_map, gate_input, beta_input, l2norm_form,
 * l2norm_eps, padding, has_null_slot and null_slot. Every other field stays: among them use_qk_l2norm_in_kernel, which
 * says whether the q and k at hand are raw. Returns GDN_OK, or having changed nothing GDN_ERROR_NULL or
 * GDN_ERROR_ENUM. */
GDN_API gdn_status gdn_preset(gdn_params *params, gdn_system system);

/* Its name ("sglang"); "?" outside the enumeration. */
GDN_API const char *gdn_system_name(gdn_system system);

/* Whether this build and this CPU can run `isa` (GDN_ISA_AUTO: always), and which one AUTO picks. */
GDN_API bool gdn_isa_supported(gdn_isa isa);
GDN_API gdn_isa gdn_isa_selected(void);
GDN_API const char *gdn_isa_name(gdn_isa isa);

/* Name ("GDN_ERROR_SIZE") and text of a status; "?" outside the enumeration. */
GDN_API const char *gdn_status_name(gdn_status status);
GDN_API const char *gdn_status_text(gdn_status status);

/* GDN_VERSION of the implementation that is linked. */
GDN_API int gdn_version(void);

/* Shorthands for contiguous arguments. The pointer's type says the dtype, so that the compiler checks it. */
static inline gdn_tensor gdn_tensor_of(const void *data, gdn_dtype dtype) {
    gdn_tensor x = {data, dtype, 0, 0, 0};
    return x;
}
static inline gdn_tensor gdn_f32(const float *data) { return gdn_tensor_of(data, GDN_F32); }
static inline gdn_tensor gdn_f64(const double *data) { return gdn_tensor_of(data, GDN_F64); }
static inline gdn_tensor gdn_bf16(const uint16_t *data) { return gdn_tensor_of(data, GDN_BF16); }
static inline gdn_tensor gdn_f16(const uint16_t *data) { return gdn_tensor_of(data, GDN_F16); }
static inline gdn_output gdn_output_of(void *data, gdn_dtype dtype) {
    gdn_output x = {data, dtype, 0, 0, 0};
    return x;
}
static inline gdn_output gdn_out_f32(float *data) { return gdn_output_of(data, GDN_F32); }
static inline gdn_output gdn_out_f64(double *data) { return gdn_output_of(data, GDN_F64); }
static inline gdn_output gdn_out_bf16(uint16_t *data) { return gdn_output_of(data, GDN_BF16); }
static inline gdn_output gdn_out_f16(uint16_t *data) { return gdn_output_of(data, GDN_F16); }
static inline gdn_indices gdn_indices_of(const void *data, gdn_index_dtype dtype, ptrdiff_t num_columns) {
    gdn_indices x = {data, dtype, num_columns, 0};
    return x;
}
static inline gdn_indices gdn_i32(const int32_t *data) { return gdn_indices_of(data, GDN_I32, 1); }
static inline gdn_indices gdn_i64(const int64_t *data) { return gdn_indices_of(data, GDN_I64, 1); }
static inline gdn_state_pool gdn_pool_of(void *data, gdn_dtype dtype, ptrdiff_t num_states) {
    gdn_state_pool x = {data, dtype, num_states, 0, 0};
    return x;
}
static inline gdn_state_cache gdn_cache_of(void *data, gdn_dtype dtype, ptrdiff_t num_rows, ptrdiff_t num_steps) {
    gdn_state_cache x = {data, dtype, num_rows, num_steps, 0, 0, 0};
    return x;
}

#ifdef __cplusplus
}
#endif
#endif /* GDN_VARLEN_H: end of the interface */

/* ==== IMPLEMENTATION =============================================================================== */

#if defined(GDN_IMPLEMENTATION) && !defined(GDNI_IMPLEMENTED)
#define GDNI_IMPLEMENTED 1

/* ---- [COMPILER] ----------------------------------------------------------------------------------- */

#include <float.h>
#include <math.h>
#include <string.h>
/* clang speaks GNU C for MSVC too, where it does not say so. */
#if defined(__GNUC__) || defined(__clang__)
#define GDNI_GNU_C 1
#else
#define GDNI_GNU_C 0
#endif
/* Vector units: GNU C only. SSE2 is part of every x86-64; AVX2 and AVX-512 are chosen at run time. */
#if GDNI_GNU_C && !defined(GDN_NO_SIMD) && defined(__SSE2__)
#define GDNI_SSE2 1
#include <immintrin.h>
#ifdef _MSC_VER /* there clang, up to 18, leaves out of it what the command line does not ask for */
#include <smmintrin.h>
#include <avxintrin.h>
#include <avx2intrin.h>
#include <f16cintrin.h>
#include <fmaintrin.h>
#include <avx512fintrin.h>
#include <avx512bwintrin.h>
#include <avx512dqintrin.h>
#include <avx512vlintrin.h>
#endif
#else
#define GDNI_SSE2 0
#endif
#if GDNI_SSE2 && (defined(__x86_64__) || defined(__i386__)) && !defined(GDN_NO_AVX2)
#define GDNI_AVX2 1
#else
#define GDNI_AVX2 0
#endif
#if GDNI_SSE2 && (defined(__x86_64__) || defined(__i386__)) && !defined(GDN_NO_AVX512)
#define GDNI_AVX512 1
#else
#define GDNI_AVX512 0
#endif
#if GDNI_GNU_C && !defined(GDN_NO_SIMD) && !defined(GDN_NO_NEON) && defined(__aarch64__) && defined(__ARM_NEON) &&     \
    !defined(__AARCH64EB__)
#define GDNI_NEON 1
#include <arm_neon.h>
#else
#define GDNI_NEON 0
#endif
#ifndef GDN_NO_MALLOC
#include <stdlib.h>
#endif

#if defined(__FAST_MATH__) || defined(_M_FP_FAST) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__)
#error "gdn_varlen.h: -ffast-math reorders sums; compile the implementation without it"
#endif
#if defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__
#error "gdn_varlen.h: -ffinite-math-only drops the checks for NaN; compile the implementation without it"
#endif
#if FLT_RADIX != 2 || FLT_MANT_DIG != 24 || DBL_MANT_DIG != 53
#error "gdn_varlen.h: float and double must be IEEE 754 binary32 and binary64"
#endif
/* 16 and 32 speak of the types below float: gcc for CPUs with AVX512-FP16. */
#if FLT_EVAL_METHOD != 0 && FLT_EVAL_METHOD != 1 && FLT_EVAL_METHOD != 16 && FLT_EVAL_METHOD != 32
#error "gdn_varlen.h: x87 arithmetic rounds differently; on 32-bit x86 compile with -msse2 -mfpmath=sse"
#endif

/* Refused where it does not compile: -fsingle-precision-constant. */
typedef char gdni_double_constants[(int)16777217.0 == 16777217 ? 1 : -1];

#ifndef GDN_HEADER_NAME
#define GDN_HEADER_NAME "gdn_varlen.h"
#endif

/* What the kernel calls on floats is inlined, so that it is compiled for the kernel's target: an SSE instruction that
 * comes after AVX-512 ones costs some Intel CPUs hundreds of cycles. */
#if GDNI_GNU_C
#define GDNI_INLINE static inline __attribute__((always_inline))
#else
#define GDNI_INLINE static inline
#endif

/* a*b + c is two roundings unless it is written as gdni_fma. gcc takes that from the pragma below, clang only from
 * one inside each function. The optimisation level keeps the kernel fast in debug builds. gcc's vectoriser is kept off:
 * what is fast is vectors already, and from a loop over those gcc 12 to 16 make masks of scalar conditions that are
 * wrong in every other lane (with AVX512VL, as the tuning has it). */
#if defined(__clang__)
#define GDNI_EXACT _Pragma("clang fp contract(off) reassociate(off)")
#else
#define GDNI_EXACT
#endif
/* x is a product that is rounded before anything is added to it; under -ffp-contract=fast clang ignores the pragma. */
#if defined(__clang__) && (defined(__x86_64__) || defined(__i386__))
#define GDNI_ROUNDED(x) __asm__("" : "+x"(x))
#elif defined(__clang__) && defined(__aarch64__)
#define GDNI_ROUNDED(x) __asm__("" : "+w"(x))
#elif defined(__clang__)
#define GDNI_ROUNDED(x)                                                                                                \
    do {                                                                                                               \
        const volatile double rounded = x;                                                                             \
        x = rounded;                                                                                                   \
    } while (0)
#else
#define GDNI_ROUNDED(x) ((void)0)
#endif
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC optimize("O2", "fp-contract=off", "no-tree-vectorize", "unswitch-loops")
#elif !GDNI_GNU_C && defined(_MSC_VER)
#pragma fp_contract(off)
#endif

/* Fused multiply-add that the compiler turns into one instruction. */
#if defined(__FP_FAST_FMAF) || defined(__FMA__) || defined(__aarch64__) || defined(__riscv_flen)
#define GDNI_HAS_FMAF 1
#else
#define GDNI_HAS_FMAF 0
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum {
    GDNI_LANES16 = 16,   /* partial sums of every sum over K outside GDN_STATE_KV */
    GDNI_SLICE = 32,     /* columns of V in one work item */
    GDNI_RUN = 8,        /* most work items that share the preparation of q and k */
    GDNI_BLOCK = 32,     /* most tokens prepared at once */
    GDNI_CHUNK = 16,     /* or, of GDN_COMPUTE_F32_CHUNKS, always */
    GDNI_AHEAD = 4,      /* rows of the next chunk that are asked for at once */
    GDNI_BLOCK_KIB = 64, /* and most memory for them */
    GDNI_TILE_KIB = 32,  /* most memory of a tile */
    GDNI_GATES = 64,     /* gates computed at once */
    GDNI_ALIGNMENT = 64  /* bytes in a cache line, and of the scratch */
};

static ptrdiff_t gdni_min(ptrdiff_t x, ptrdiff_t y) { return x < y ? x : y; }

/* Sums and products of sizes saturate, so that unchecked sizes never overflow; a negative one, refused later, stays so.
 */
static ptrdiff_t gdni_size_mul(ptrdiff_t x, ptrdiff_t y) {
    if (x < 0 || y < 0) return -1;
    return y > 0 && x > PTRDIFF_MAX / y ? PTRDIFF_MAX : x * y;
}
static ptrdiff_t gdni_size_add(ptrdiff_t x, ptrdiff_t y) { return x > PTRDIFF_MAX - y ? PTRDIFF_MAX : x + y; }
static ptrdiff_t gdni_round_up(ptrdiff_t x, ptrdiff_t unit) { return gdni_size_add(x, unit - 1) / unit * unit; }

/* ---- [ELEMENTS] Conversions of one element --------------------------------------------------------- */

GDNI_INLINE uint32_t gdni_bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

GDNI_INLINE float gdni_float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

GDNI_INLINE float gdni_from_f16(uint16_t h) {
    const uint32_t magnitude = (uint32_t)(h & 0x7fffu) << 13, exponent = magnitude & 0x0f800000u;
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    if (exponent == 0) /* subnormal: a multiple of 2^-24 */
        return gdni_float_of(sign | gdni_bits_of(gdni_float_of(magnitude + 0x38800000u) - gdni_float_of(0x38800000u)));
    return gdni_float_of(sign | (magnitude + (exponent == 0x0f800000u ? 0x70000000u : 0x38000000u)));
}

GDNI_INLINE uint16_t gdni_to_f16(float x) {
    const uint32_t bits = gdni_bits_of(x), sign = bits >> 16 & 0x8000u, a = bits & 0x7fffffffu;
    if (a > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (a >> 13 & 0x1ffu)); /* NaN */
    if (a >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);                     /* 65520 and more: infinity */
    if (a < 0x38800000u) /* subnormal: the addition rounds at 2^-24 */
        return (uint16_t)(sign | (gdni_bits_of(gdni_float_of(a) + 0.5f) - 0x3f000000u));
    return (uint16_t)(sign | ((a + 0xfffu + (a >> 13 & 1u) - 0x38000000u) >> 13));
}

GDNI_INLINE uint16_t gdni_to_bf16(float x) {
    const uint32_t bits = gdni_bits_of(x);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16 | (x != x ? 0x7fc0u : 0u)); /* NaN stays NaN */
}

/* Rounds to odd: rounding the result once more, to a half type, is then as good as rounding x at once. */
static float gdni_round_to_odd(double x) {
    const float nearest = (float)x;
    uint32_t bits = gdni_bits_of(nearest);
    if (x != x || (double)nearest == x) return nearest;
    if (fabs((double)nearest) > fabs(x)) bits--;
    return gdni_float_of(bits | 1u);
}

/* Bytes; 0 outside the enumeration. */
static ptrdiff_t gdni_dtype_size(gdn_dtype dtype) {
    switch (dtype) {
    case GDN_F64: return 8;
    case GDN_F32: return 4;
    case GDN_BF16:
    case GDN_F16: return 2;
    case GDN_DTYPE_NOT_SET: break;
    }
    return 0;
}

/* DO(type) for a dtype of the float32 computation, with its name as a constant. */
#define GDNI_BY_DTYPE(dtype, DO)                                                                                       \
    switch (dtype) {                                                                                                   \
    case GDN_F32: DO(GDN_F32) break;                                                                                   \
    case GDN_BF16: DO(GDN_BF16) break;                                                                                 \
    case GDN_F16: DO(GDN_F16) break;                                                                                   \
    case GDN_F64:                                                                                                      \
    case GDN_DTYPE_NOT_SET: break;                                                                                     \
    }

GDNI_INLINE float gdni_get_f32(const void *data, gdn_dtype dtype, ptrdiff_t i) {
    const char *at = (const char *)data + i * gdni_dtype_size(dtype);
    uint16_t half = 0;
    float x = 0;
    switch (dtype) {
    case GDN_F32: memcpy(&x, at, sizeof x); break;
    case GDN_BF16:
        memcpy(&half, at, sizeof half);
        x = gdni_float_of((uint32_t)half << 16);
        break;
    case GDN_F16:
        memcpy(&half, at, sizeof half);
        x = gdni_from_f16(half);
        break;
    case GDN_F64:
    case GDN_DTYPE_NOT_SET: break;
    }
    return x;
}

GDNI_INLINE void gdni_put_f32(void *data, gdn_dtype dtype, ptrdiff_t i, float x) {
    char *at = (char *)data + i * gdni_dtype_size(dtype);
    uint16_t half;
    switch (dtype) {
    case GDN_F32: memcpy(at, &x, sizeof x); break;
    case GDN_BF16:
        half = gdni_to_bf16(x);
        memcpy(at, &half, sizeof half);
        break;
    case GDN_F16:
        half = gdni_to_f16(x);
        memcpy(at, &half, sizeof half);
        break;
    case GDN_F64:
    case GDN_DTYPE_NOT_SET: break;
    }
}

GDNI_INLINE double gdni_get_f64(const void *data, gdn_dtype dtype, ptrdiff_t i) {
    double x;
    if (dtype != GDN_F64) return (double)gdni_get_f32(data, dtype, i);
    memcpy(&x, (const char *)data + i * 8, sizeof x);
    return x;
}

GDNI_INLINE void gdni_put_f64(void *data, gdn_dtype dtype, ptrdiff_t i, double x) {
    if (dtype == GDN_F64)
        memcpy((char *)data + i * 8, &x, sizeof x);
    else
        gdni_put_f32(data, dtype, i, dtype == GDN_F32 ? (float)x : gdni_round_to_odd(x));
}

/* x as a tensor of that dtype would hold it. */
static double gdni_round_f64(double x, gdn_dtype dtype) {
    double y;
    gdni_put_f64(&y, dtype, 0, x);
    return gdni_get_f64(&y, dtype, 0);
}

static int64_t gdni_get_index(const gdn_indices *x, ptrdiff_t row, ptrdiff_t column) {
    const char *data = (const char *)x->data;
    const ptrdiff_t i = row * x->row_stride + column;
    int32_t narrow = 0;
    int64_t wide = 0;
    switch (x->dtype) {
    case GDN_I32: memcpy(&narrow, data + i * 4, 4); return narrow;
    case GDN_I64: memcpy(&wide, data + i * 8, 8); break;
    case GDN_INDEX_NOT_SET: break;
    }
    return wide;
}

/* ---- [RESOLVING] Parameters with every default filled in -------------------------------------------- */

static bool gdni_varlen(const gdn_params *p) { return p->cu_seqlens.data != NULL; }
static ptrdiff_t gdni_heads_per_key_head(const gdn_params *p) { return p->num_value_heads / p->num_key_heads; }
static bool gdni_raw_gates(const gdn_params *p) {
    if (p->a.data == NULL) return false;
    switch (p->gate_input) {
    case GDN_GATE_RAW: return true;
    case GDN_GATE_LOG:
    case GDN_GATE_DECAY: break;
    }
    return false;
}
static bool gdni_vk_states(const gdn_params *p) {
    switch (p->state_layout) {
    case GDN_STATE_VK: return true;
    case GDN_STATE_KV:
    case GDN_STATE_LAYOUT_NOT_SET: break;
    }
    return false;
}
static ptrdiff_t gdni_slices(const gdn_params *p) { return (p->head_v_dim - 1) / GDNI_SLICE + 1; }
static ptrdiff_t gdni_state_size(const gdn_params *p) { return gdni_size_mul(p->head_k_dim, p->head_v_dim); }

static void gdni_resolve_strides(const gdn_params *p, ptrdiff_t heads, ptrdiff_t width, ptrdiff_t *batch,
                                 ptrdiff_t *token, ptrdiff_t *head) {
    ptrdiff_t inner = width;
    if (*head == 0) *head = width;
    if (*head != GDN_BROADCAST) inner = gdni_size_mul(heads, *head);
    if (*token == 0) *token = inner;
    if (*token != GDN_BROADCAST) inner = gdni_size_mul(p->seq_len, *token);
    if (*batch == 0) *batch = inner;
}

/* In resolved parameters a stride of 0 is no distance. */
static void gdni_resolve_broadcast(ptrdiff_t *stride) {
    if (*stride == GDN_BROADCAST) *stride = 0;
}

static void gdni_resolve_tensor(const gdn_params *p, gdn_tensor *x, ptrdiff_t heads, ptrdiff_t width) {
    gdni_resolve_strides(p, heads, width, &x->batch_stride, &x->token_stride, &x->head_stride);
    gdni_resolve_broadcast(&x->batch_stride);
    gdni_resolve_broadcast(&x->token_stride);
    gdni_resolve_broadcast(&x->head_stride);
}

/* One number or row for each value head. */
static void gdni_resolve_heads(gdn_tensor *x, ptrdiff_t width) {
    if (x->head_stride == 0) x->head_stride = width;
    gdni_resolve_broadcast(&x->head_stride);
}

static void gdni_resolve_mask(const gdn_params *p, gdn_mask *x) {
    ptrdiff_t one = GDN_BROADCAST;
    gdni_resolve_strides(p, 1, 1, &x->batch_stride, &x->token_stride, &one);
    gdni_resolve_broadcast(&x->batch_stride);
    gdni_resolve_broadcast(&x->token_stride);
}

static void gdni_resolve_indices(gdn_indices *x, bool two_dimensional) {
    if (!two_dimensional) x->num_columns = 1;
    if (x->row_stride == 0) x->row_stride = x->num_columns;
}

static void gdni_resolve_pool(const gdn_params *p, gdn_state_pool *x) {
    if (x->head_stride == 0) x->head_stride = gdni_state_size(p);
    if (x->slot_stride == 0) x->slot_stride = gdni_size_mul(p->num_value_heads, x->head_stride);
}

/* Sizes must have been checked. */
static gdn_params gdni_resolve(const gdn_params *params) {
    gdn_params r = *params;
    const ptrdiff_t h = r.num_key_heads, hv = r.num_value_heads, k = r.head_k_dim, v = r.head_v_dim;
    gdn_state_cache *cache = &r.intermediate_states_buffer;
    if (!gdni_varlen(&r)) r.num_seqs = r.batch_size;
    gdni_resolve_tensor(&r, &r.q, h, k);
    gdni_resolve_tensor(&r, &r.k, h, k);
    gdni_resolve_tensor(&r, &r.v, hv, v);
    gdni_resolve_tensor(&r, &r.a, hv, r.is_kda ? k : 1);
    gdni_resolve_tensor(&r, &r.b, hv, r.beta_per_column ? v : 1);
    gdni_resolve_tensor(&r, &r.k_read, h, k);
    gdni_resolve_tensor(&r, &r.erase, hv, k);
    gdni_resolve_tensor(&r, &r.gv, hv, v);
    gdni_resolve_mask(&r, &r.token_mask);
    gdni_resolve_strides(&r, hv, v, &r.o.batch_stride, &r.o.token_stride, &r.o.head_stride);
    gdni_resolve_heads(&r.A_log, 1);
    gdni_resolve_heads(&r.dt_bias, r.is_kda ? k : 1);
    if (r.step_interval == 0) r.step_interval = 1;
    gdni_resolve_pool(&r, &r.initial_state_source);
    gdni_resolve_pool(&r, &r.output_state_pool);
    if (cache->head_stride == 0) cache->head_stride = gdni_state_size(&r);
    if (cache->step_stride == 0) cache->step_stride = gdni_size_mul(hv, cache->head_stride);
    if (cache->row_stride == 0) cache->row_stride = gdni_size_mul(cache->num_steps, cache->step_stride);
    gdni_resolve_indices(&r.cu_seqlens, false);
    gdni_resolve_indices(&r.initial_state_indices, false);
    gdni_resolve_indices(&r.output_state_indices, false);
    gdni_resolve_indices(&r.intermediate_state_indices, false);
    gdni_resolve_indices(&r.num_accepted_tokens, false);
    gdni_resolve_indices(&r.retrieve_parent_token, true);
    gdni_resolve_indices(&r.ssm_state_indices, true);
    if (r.scale == 0) r.scale = 1.0 / sqrt((double)k);
    if (r.l2norm_eps == 0) r.l2norm_eps = 1e-6;
    if (r.softplus_beta == 0) r.softplus_beta = 1.0;
    if (r.softplus_threshold == 0) r.softplus_threshold = 20.0;
    return r;
}

static gdn_tensor gdni_output_tensor(const gdn_output *o) {
    const gdn_tensor x = {o->data, o->dtype, o->batch_stride, o->token_stride, o->head_stride};
    return x;
}

/* One sequence: where its tokens are, which slots it uses. */
typedef struct gdni_sequence {
    ptrdiff_t batch, begin, length;
    int64_t read, write, row; /* slot to start from, slot of the final state, cache row; -1: none */
    bool padding;             /* its index is negative or the null slot */
} gdni_sequence;

static int64_t gdni_slot(const gdn_params *r, int64_t slot) {
    return slot < 0 || (r->has_null_slot && slot == r->null_slot) ? -1 : slot;
}

static bool gdni_two_pools(const gdn_params *r) { return r->output_state_pool.data != NULL; }

/* Whether the slots of the steps also say where a sequence starts. */
static bool gdni_starts_at_step(const gdn_params *r) {
    return r->ssm_state_indices.data != NULL && r->initial_state_indices.data == NULL && !gdni_two_pools(r);
}

/* The pool that is written, if any is. */
static const gdn_state_pool *gdni_output_pool(const gdn_params *r) {
    return gdni_two_pools(r) ? &r->output_state_pool : &r->initial_state_source;
}

static bool gdni_writes_pool(const gdn_params *r) {
    return gdni_output_pool(r)->data != NULL && !r->disable_state_update;
}

static gdni_sequence gdni_get_sequence(const gdn_params *r, ptrdiff_t n) {
    gdni_sequence s = {n, 0, r->seq_len, -1, -1, -1, false};
    if (gdni_varlen(r)) {
        s.batch = 0;
        s.begin = (ptrdiff_t)gdni_get_index(&r->cu_seqlens, n, 0);
        s.length = (ptrdiff_t)gdni_get_index(&r->cu_seqlens, n + 1, 0) - s.begin;
    }
    if (r->initial_state_source.data != NULL) {
        const bool accepted = r->num_accepted_tokens.data != NULL && s.length > 0;
        if (r->initial_state_indices.data != NULL)
            s.read = gdni_slot(r, gdni_get_index(&r->initial_state_indices, n, 0));
        else if (!gdni_starts_at_step(r))
            s.read = n;
        else
            s.read = gdni_slot(
                r, gdni_get_index(&r->ssm_state_indices, n,
                                  accepted ? (ptrdiff_t)gdni_get_index(&r->num_accepted_tokens, n, 0) - 1 : 0));
        s.padding = s.read < 0;
    }
    if (gdni_writes_pool(r) && !s.padding) {
        if (r->output_state_indices.data != NULL)
            s.write = gdni_slot(r, gdni_get_index(&r->output_state_indices, n, 0));
        else if (r->ssm_state_indices.data == NULL)
            s.write = gdni_two_pools(r) ? n : s.read;
    }
    if (r->intermediate_states_buffer.data != NULL) {
        s.row = r->intermediate_state_indices.data == NULL ? n : gdni_get_index(&r->intermediate_state_indices, n, 0);
        if (s.row < 0 || (s.padding && r->padding != GDN_PADDING_COMPUTE)) s.row = -1;
    }
    return s;
}

/* The step that token t ends; -1: none. */
static ptrdiff_t gdni_step(const gdn_params *r, ptrdiff_t t) {
    return (t + 1) % r->step_interval == 0 ? (t + 1) / r->step_interval - 1 : -1;
}

/* The steps of a sequence whose states go into slots. */
static ptrdiff_t gdni_num_step_slots(const gdn_params *r, const gdni_sequence *s) {
    return r->ssm_state_indices.data == NULL || s->padding || !gdni_writes_pool(r) ? 0 : s->length / r->step_interval;
}

/* The slot of a step; behind the last one, that of the final state; -1: none. */
static int64_t gdni_written_slot(const gdn_params *r, const gdni_sequence *s, ptrdiff_t n, ptrdiff_t step) {
    if (step >= gdni_num_step_slots(r, s)) return s->write;
    return gdni_slot(r, gdni_get_index(&r->ssm_state_indices, n, step));
}

static bool gdni_masked(const gdn_params *r, const gdni_sequence *s, ptrdiff_t t) {
    const gdn_mask *x = &r->token_mask;
    return x->data != NULL && x->data[s->batch * x->batch_stride + (s->begin + t) * x->token_stride] == 0;
}

/* The step whose cached state step t starts from; -1: the step before it. */
static int64_t gdni_parent(const gdn_params *r, const gdni_sequence *s, ptrdiff_t n, ptrdiff_t t) {
    if (r->retrieve_parent_token.data == NULL || s->row < 0 || t == 0) return -1;
    return gdni_get_index(&r->retrieve_parent_token, n, t);
}

/* ---- [VALIDATION] Everything that is refused --------------------------------------------------------- */

static gdn_status gdni_fail_at(gdn_error *error, gdn_status status, const char *argument, int64_t index,
                               int64_t other) {
    if (error != NULL) {
        error->status = status;
        error->argument = argument;
        error->index = index;
        error->other = other;
    }
    return status;
}

static gdn_status gdni_fail(gdn_error *error, gdn_status status, const char *argument) {
    return gdni_fail_at(error, status, argument, -1, -1);
}

/* A member as the checks below see it: memory with up to four axes, all but the innermost strided. */
typedef struct gdni_array {
    const char *name;
    const void *data;
    ptrdiff_t element; /* bytes; 0: dtype not valid */
    ptrdiff_t size[3], stride[3], width;
    bool required, written;
    ptrdiff_t bytes; /* from the first element to the last */
} gdni_array;

enum { GDNI_NUM_ARRAYS = 23 };

static ptrdiff_t gdni_scratch_bytes(const gdn_params *r);

static ptrdiff_t gdni_element(const gdn_params *r, gdn_dtype dtype) {
    return dtype == GDN_F64 && r->compute != GDN_COMPUTE_F64 ? 0 : gdni_dtype_size(dtype);
}

static gdni_array gdni_tensor_array(const gdn_params *r, const char *name, const gdn_tensor *x, ptrdiff_t batch,
                                    ptrdiff_t tokens, ptrdiff_t heads, ptrdiff_t width, bool required) {
    gdni_array y = {name, x->data, gdni_element(r, x->dtype), {0, 0, 0}, {0, 0, 0}, width, required, false, 0};
    y.size[0] = batch, y.size[1] = tokens, y.size[2] = heads;
    y.stride[0] = x->batch_stride, y.stride[1] = x->token_stride, y.stride[2] = x->head_stride;
    for (int i = 0; i < 3; i++)
        if (y.stride[i] == 0 && y.size[i] > 1) y.size[i] = 1; /* GDN_BROADCAST */
    return y;
}

static gdni_array gdni_index_array(const char *name, const gdn_indices *x, ptrdiff_t rows) {
    gdni_array y = {name, x->data, 0, {1, 1, 0}, {0, 0, 0}, x->num_columns, false, false, 0};
    switch (x->dtype) {
    case GDN_I32: y.element = 4; break;
    case GDN_I64: y.element = 8; break;
    case GDN_INDEX_NOT_SET: break;
    }
    y.size[2] = rows, y.stride[2] = x->row_stride;
    return y;
}

/* Every array of the call. */
static void gdni_list_arrays(const gdn_params *r, gdni_array *x) {
    const ptrdiff_t b = r->batch_size, t = r->seq_len, h = r->num_key_heads, hv = r->num_value_heads;
    const ptrdiff_t k = r->head_k_dim, v = r->head_v_dim, n = r->num_seqs, matrix = gdni_state_size(r);
    const ptrdiff_t gates = r->is_kda ? k : 1, betas = r->beta_per_column ? v : 1;
    const bool any = t > 0, raw = any && gdni_raw_gates(r), values = any && !r->homogeneous;
    const gdn_state_pool *pool = &r->initial_state_source, *output = &r->output_state_pool;
    const gdn_state_cache *cache = &r->intermediate_states_buffer;
    /* Scratch that is too small is refused later, as such. */
    const ptrdiff_t needed = gdni_scratch_bytes(r), bytes = (size_t)needed > r->scratch_size ? 0 : needed;
    const gdni_array scratch = {"scratch", r->scratch, 1, {1, 1, 1}, {0, 0, 0}, bytes, false, true, 0};
    const gdn_tensor o = gdni_output_tensor(&r->o);
    const gdn_tensor states = {pool->data, pool->dtype, 0, pool->slot_stride, pool->head_stride};
    const gdn_tensor outputs = {output->data, output->dtype, 0, output->slot_stride, output->head_stride};
    const gdn_tensor steps = {cache->data, cache->dtype, cache->row_stride, cache->step_stride, cache->head_stride};
    const gdn_tensor mask = {r->token_mask.data, GDN_DTYPE_NOT_SET, r->token_mask.batch_stride,
                             r->token_mask.token_stride, 0};
    *x++ = gdni_tensor_array(r, "A_log", &r->A_log, 1, 1, hv, 1, raw && !r->has_lower_bound);
    *x++ = gdni_tensor_array(r, "a", &r->a, b, t, hv, gates, false);
    *x++ = gdni_tensor_array(r, "dt_bias", &r->dt_bias, 1, 1, hv, gates, false);
    *x++ = gdni_tensor_array(r, "q", &r->q, b, t, h, k, any);
    *x++ = gdni_tensor_array(r, "k", &r->k, b, t, h, k, any);
    *x++ = gdni_tensor_array(r, "v", &r->v, b, t, hv, v, values);
    *x++ = gdni_tensor_array(r, "b", &r->b, b, t, hv, betas, false);
    *x++ = gdni_tensor_array(r, "k_read", &r->k_read, b, t, h, k, false);
    *x++ = gdni_tensor_array(r, "erase", &r->erase, b, t, hv, k, false);
    *x++ = gdni_tensor_array(r, "gv", &r->gv, b, t, hv, v, false);
    *x = gdni_tensor_array(r, "token_mask", &mask, b, t, 1, 1, false);
    x++->element = 1;
    *x = gdni_tensor_array(r, "o", &o, b, t, hv, v, values);
    x++->written = true;
    *x = gdni_tensor_array(r, "intermediate_states_buffer", &steps, cache->num_rows, cache->num_steps, hv, matrix,
                           false);
    x++->written = true;
    *x = gdni_tensor_array(r, "initial_state_source", &states, 1, pool->num_states, hv, matrix, false);
    x++->written = gdni_writes_pool(r) && !gdni_two_pools(r);
    *x = gdni_tensor_array(r, "output_state_pool", &outputs, 1, output->num_states, hv, matrix, false);
    x++->written = true;
    *x++ = gdni_index_array("cu_seqlens", &r->cu_seqlens, gdni_size_add(n, 1));
    *x++ = gdni_index_array("initial_state_indices", &r->initial_state_indices, n);
    *x++ = gdni_index_array("output_state_indices", &r->output_state_indices, n);
    *x++ = gdni_index_array("intermediate_state_indices", &r->intermediate_state_indices, n);
    *x++ = gdni_index_array("retrieve_parent_token", &r->retrieve_parent_token, n);
    *x++ = gdni_index_array("ssm_state_indices", &r->ssm_state_indices, n);
    *x++ = gdni_index_array("num_accepted_tokens", &r->num_accepted_tokens, n);
    *x = scratch;
}

/* Both return from the function where they stand. */
#define GDNI_REFUSE(code, argument, condition)                                                                         \
    if (condition) return gdni_fail(error, GDN_ERROR_##code, argument)
#define GDNI_TRY(check)                                                                                                \
    do {                                                                                                               \
        const gdn_status status_of_check = check;                                                                      \
        if (status_of_check != GDN_OK) return status_of_check;                                                         \
    } while (0)

static gdn_status gdni_check_sizes(const gdn_params *p, gdn_error *error) {
    GDNI_REFUSE(SIZE, "batch_size", p->batch_size < 1 || (gdni_varlen(p) && p->batch_size != 1));
    GDNI_REFUSE(SIZE, "seq_len", p->seq_len < 0);
    GDNI_REFUSE(SIZE, "num_seqs", gdni_varlen(p) ? p->num_seqs < 1 : p->num_seqs != 0 && p->num_seqs != p->batch_size);
    GDNI_REFUSE(SIZE, "num_key_heads", p->num_key_heads < 1);
    GDNI_REFUSE(SIZE, "num_value_heads", p->num_value_heads < 1 || p->num_value_heads % p->num_key_heads != 0);
    GDNI_REFUSE(SIZE, "head_k_dim", p->head_k_dim < 1);
    GDNI_REFUSE(SIZE, "head_v_dim", p->head_v_dim < 1);
    GDNI_REFUSE(SIZE, "initial_state_source",
                p->initial_state_source.data != NULL && p->initial_state_source.num_states < 1);
    GDNI_REFUSE(SIZE, "output_state_pool", p->output_state_pool.data != NULL && p->output_state_pool.num_states < 1);
    GDNI_REFUSE(SIZE, "intermediate_states_buffer",
                p->intermediate_states_buffer.data != NULL &&
                    (p->intermediate_states_buffer.num_rows < 1 || p->intermediate_states_buffer.num_steps < 1));
    GDNI_REFUSE(SIZE, "step_interval", p->step_interval < 0);
    GDNI_REFUSE(SIZE, "retrieve_parent_token",
                p->retrieve_parent_token.data != NULL && p->retrieve_parent_token.num_columns < 1);
    GDNI_REFUSE(SIZE, "ssm_state_indices", p->ssm_state_indices.data != NULL && p->ssm_state_indices.num_columns < 1);
    return GDN_OK;
}

static gdn_status gdni_check_options(const gdn_params *r, gdn_error *error) {
    const bool states = gdni_output_pool(r)->data != NULL || r->intermediate_states_buffer.data != NULL;
    bool valid;
    /* clang-format off: a table */
#define GDNI_CASE(code) case code:
#define GDNI_ONE_OF(field, cases)                                                                                      \
    valid = false;                                                                                                     \
    switch (r->field) { cases valid = true; }                                                                          \
    if (!valid) return gdni_fail(error, GDN_ERROR_ENUM, #field);
    GDNI_ONE_OF(state_layout, GDNI_CASE(GDN_STATE_LAYOUT_NOT_SET) GDNI_CASE(GDN_STATE_KV) GDNI_CASE(GDN_STATE_VK))
    GDNI_ONE_OF(padding, GDNI_CASE(GDN_PADDING_COMPUTE) GDNI_CASE(GDN_PADDING_ZERO) GDNI_CASE(GDN_PADDING_LEAVE))
    GDNI_ONE_OF(l2norm_form, GDNI_CASE(GDN_L2NORM_SUM_PLUS_EPS) GDNI_CASE(GDN_L2NORM_MEAN_PLUS_EPS)
                                 GDNI_CASE(GDN_L2NORM_MAX_NORM_EPS) GDNI_CASE(GDN_L2NORM_NORM_PLUS_EPS))
    GDNI_ONE_OF(gate_input, GDNI_CASE(GDN_GATE_RAW) GDNI_CASE(GDN_GATE_LOG) GDNI_CASE(GDN_GATE_DECAY))
    GDNI_ONE_OF(beta_input, GDNI_CASE(GDN_BETA_RAW) GDNI_CASE(GDN_BETA_GIVEN))
    GDNI_ONE_OF(head_map, GDNI_CASE(GDN_HEADS_GROUPED) GDNI_CASE(GDN_HEADS_TILED))
    GDNI_ONE_OF(compute, GDNI_CASE(GDN_COMPUTE_F32) GDNI_CASE(GDN_COMPUTE_F64) GDNI_CASE(GDN_COMPUTE_F32_CHUNKS))
#undef GDNI_ONE_OF
#undef GDNI_CASE
    /* clang-format on */
    GDNI_REFUSE(ENUM, "rounding", r->rounding > 2 * GDN_ROUND_STATE - 1);
    GDNI_REFUSE(ENUM, "isa", (int)r->isa < 0 || (int)r->isa >= GDN_NUM_ISAS);
    GDNI_REFUSE(ENUM, "state_layout", states && r->state_layout == GDN_STATE_LAYOUT_NOT_SET);

    /* Written so that a NaN fails. */
    GDNI_REFUSE(VALUE, "scale", !(r->scale > 0 && r->scale <= DBL_MAX));
    GDNI_REFUSE(VALUE, "l2norm_eps", !(r->l2norm_eps > 0 && r->l2norm_eps <= DBL_MAX));
    GDNI_REFUSE(VALUE, "softplus_beta", !(r->softplus_beta > 0 && r->softplus_beta <= DBL_MAX));
    GDNI_REFUSE(VALUE, "softplus_threshold", r->softplus_threshold != r->softplus_threshold);
    GDNI_REFUSE(VALUE, "lower_bound", r->has_lower_bound && !(r->lower_bound <= 0 && r->lower_bound >= -DBL_MAX));

    GDNI_REFUSE(COMBINATION, "has_lower_bound", r->has_lower_bound && r->a.data != NULL && !gdni_raw_gates(r));
    GDNI_REFUSE(NULL, "a",
                r->a.data == NULL && r->seq_len > 0 && r->gate_input == GDN_GATE_RAW &&
                    (r->A_log.data != NULL || r->dt_bias.data != NULL));
    GDNI_REFUSE(COMBINATION, "beta_per_column", r->beta_per_column && r->b.data == NULL);
    GDNI_REFUSE(COMBINATION, "homogeneous",
                r->homogeneous && (r->v.data != NULL || r->o.data != NULL || r->gv.data != NULL || r->beta_per_column));
    GDNI_REFUSE(COMBINATION, "read_before_decay", r->read_before_decay && r->gv.data != NULL);
    GDNI_REFUSE(COMBINATION, "num_accepted_tokens", r->num_accepted_tokens.data != NULL && !gdni_starts_at_step(r));
    GDNI_REFUSE(COMBINATION, "step_interval",
                r->step_interval > 1 && (r->retrieve_parent_token.data != NULL || gdni_starts_at_step(r)));
    GDNI_REFUSE(COMBINATION, "null_slot",
                r->has_null_slot && r->initial_state_source.data != NULL && r->initial_state_indices.data == NULL &&
                    !gdni_starts_at_step(r) && r->null_slot >= 0 && r->null_slot < r->num_seqs);
    GDNI_REFUSE(COMBINATION, "rounding", (r->rounding & GDN_ROUND_STATE) != 0 && gdni_output_pool(r)->data == NULL);
    GDNI_REFUSE(COMBINATION, "disable_state_update", r->disable_state_update && gdni_two_pools(r));
    GDNI_REFUSE(NULL, "initial_state_source",
                r->initial_state_source.data == NULL && r->initial_state_indices.data != NULL);
    GDNI_REFUSE(NULL, "initial_state_source",
                gdni_output_pool(r)->data == NULL &&
                    (r->output_state_indices.data != NULL || r->ssm_state_indices.data != NULL));
    GDNI_REFUSE(NULL, "intermediate_states_buffer",
                r->intermediate_states_buffer.data == NULL &&
                    (r->intermediate_state_indices.data != NULL || r->retrieve_parent_token.data != NULL));
    GDNI_REFUSE(ISA, "isa", r->compute != GDN_COMPUTE_F64 && !gdn_isa_supported(r->isa));
    return GDN_OK;
}

/* The axes, from the smallest stride to the largest, must each step over all that is below them. */
static gdn_status gdni_check_array(gdni_array *x, gdn_error *error) {
    ptrdiff_t extent = x->size[0] == 0 || x->size[1] == 0 || x->size[2] == 0 ? 0 : x->width;
    bool done[3] = {false, false, false};
    if (x->data == NULL) return x->required ? gdni_fail(error, GDN_ERROR_NULL, x->name) : GDN_OK;
    if (x->element == 0) return gdni_fail(error, GDN_ERROR_ENUM, x->name);
    for (int round = 0; round < 3; round++) {
        int axis = -1;
        for (int i = 0; i < 3; i++)
            if (!done[i] && (axis < 0 || x->stride[i] <= x->stride[axis])) axis = i;
        done[axis] = true;
        if (x->stride[axis] < 0) return gdni_fail(error, GDN_ERROR_STRIDE, x->name);
        if (x->size[axis] < 2 || extent == 0) continue;
        if (x->stride[axis] < extent && extent < PTRDIFF_MAX) return gdni_fail(error, GDN_ERROR_STRIDE, x->name);
        extent = gdni_size_add(gdni_size_mul(x->stride[axis], x->size[axis] - 1), extent);
    }
    x->bytes = gdni_size_mul(extent, x->element);
    if (x->bytes == PTRDIFF_MAX) return gdni_fail(error, GDN_ERROR_OVERFLOW, x->name);
    return GDN_OK;
}

/* Two arrays share no byte: either they lie apart, or they are columns of the same rows. */
static bool gdni_disjoint(const gdni_array *x, const gdni_array *y) {
    const uintptr_t xb = (uintptr_t)x->data, yb = (uintptr_t)y->data;
    const ptrdiff_t pitch = gdni_size_mul(x->stride[1], x->element); /* too large only where there is but one row */
    ptrdiff_t xw, yw, offset;
    if (x->bytes == 0 || y->bytes == 0) return true;
    if (xb + (uintptr_t)x->bytes <= yb || yb + (uintptr_t)y->bytes <= xb) return true;
    if (x->size[0] != 1 || y->size[0] != 1 || pitch <= 0 || pitch != gdni_size_mul(y->stride[1], y->element))
        return false;
    xw = (x->stride[2] * (x->size[2] - 1) + x->width) * x->element;
    yw = (y->stride[2] * (y->size[2] - 1) + y->width) * y->element;
    offset = xb <= yb ? (ptrdiff_t)((yb - xb) % (uintptr_t)pitch) : -(ptrdiff_t)((xb - yb) % (uintptr_t)pitch);
    if (offset < 0) offset += pitch;
    return xw <= offset && yw <= pitch - offset;
}

/* `memory`: where the arrays lie is looked at, too. */
static gdn_status gdni_check_arrays(const gdn_params *r, gdni_array *x, int count, bool memory, gdn_error *error) {
    for (int i = 0; i < count; i++) GDNI_TRY(gdni_check_array(&x[i], error));
    GDNI_REFUSE(STRIDE, "A_log", r->A_log.data != NULL && (r->A_log.batch_stride != 0 || r->A_log.token_stride != 0));
    GDNI_REFUSE(STRIDE, "dt_bias",
                r->dt_bias.data != NULL && (r->dt_bias.batch_stride != 0 || r->dt_bias.token_stride != 0));
    for (int i = 0; i < count; i++) /* of two that are written, the first is named */
        for (int j = 0; j < count && memory && x[i].written; j++)
            if (i != j && x[i].data != NULL && x[j].data != NULL && !gdni_disjoint(&x[i], &x[j]))
                return gdni_fail(error, GDN_ERROR_OVERLAP, x[i].name);
    return GDN_OK;
}

static gdn_status gdni_check_cu_seqlens(const gdn_params *r, gdn_error *error) {
    int64_t previous = 0;
    if (!gdni_varlen(r)) return GDN_OK;
    for (ptrdiff_t i = 0; i <= r->num_seqs; i++) {
        const int64_t value = gdni_get_index(&r->cu_seqlens, i, 0);
        if (value < previous || value > r->seq_len || (i == 0 && value != 0))
            return gdni_fail_at(error, GDN_ERROR_CU_SEQLENS, "cu_seqlens", i, -1);
        previous = value;
    }
    return GDN_OK;
}

/* Every index of x is below `end`, or means no slot at all. */
static gdn_status gdni_check_range(const gdn_params *r, const gdn_indices *x, const char *name, ptrdiff_t end,
                                   gdn_error *error) {
    const bool rows_of_cache = x == &r->intermediate_state_indices;
    for (ptrdiff_t i = 0; i < r->num_seqs && x->data != NULL; i++)
        for (ptrdiff_t j = 0; j < x->num_columns; j++) {
            const int64_t index = gdni_get_index(x, i, j);
            if ((rows_of_cache ? index : gdni_slot(r, index)) >= end)
                return gdni_fail_at(error, GDN_ERROR_INDEX, name, i * x->num_columns + j, -1);
        }
    return GDN_OK;
}

/* Steps of each sequence: they fit the arrays, accepted counts and parents point at steps that exist. */
static gdn_status gdni_check_steps(const gdn_params *r, gdn_error *error) {
    const gdn_indices *slot_list = &r->ssm_state_indices, *parents = &r->retrieve_parent_token;
    for (ptrdiff_t n = 0; n < r->num_seqs; n++) {
        gdni_sequence s;
        if (r->num_accepted_tokens.data != NULL) { /* before gdni_get_sequence follows it */
            const int64_t accepted = gdni_get_index(&r->num_accepted_tokens, n, 0);
            const bool empty =
                gdni_varlen(r) && gdni_get_index(&r->cu_seqlens, n, 0) == gdni_get_index(&r->cu_seqlens, n + 1, 0);
            if (!empty && (accepted < 1 || accepted > slot_list->num_columns))
                return gdni_fail_at(error, GDN_ERROR_INDEX, "num_accepted_tokens", n, -1);
        }
        s = gdni_get_sequence(r, n);
        if (slot_list->data != NULL && s.length / r->step_interval > slot_list->num_columns)
            return gdni_fail_at(error, GDN_ERROR_SIZE, "ssm_state_indices", n, -1);
        if (s.row < 0) continue;
        if (s.length / r->step_interval > r->intermediate_states_buffer.num_steps)
            return gdni_fail_at(error, GDN_ERROR_SIZE, "intermediate_states_buffer", n, -1);
        if (parents->data == NULL) continue;
        if (s.length > parents->num_columns) return gdni_fail_at(error, GDN_ERROR_SIZE, "retrieve_parent_token", n, -1);
        for (ptrdiff_t t = 1; t < s.length; t++) {
            const int64_t parent = gdni_get_index(parents, n, t);
            if (parent < 0 || parent >= t)
                return gdni_fail_at(error, GDN_ERROR_INDEX, "retrieve_parent_token", n * parents->num_columns + t, -1);
        }
    }
    return GDN_OK;
}

/* The step after which sequence n writes `slot` first, see gdni_written_slot(), or -1. */
static ptrdiff_t gdni_find_write(const gdn_params *r, ptrdiff_t n, int64_t slot) {
    const gdni_sequence s = gdni_get_sequence(r, n);
    for (ptrdiff_t step = 0; s.length > 0 && step <= gdni_num_step_slots(r, &s); step++)
        if (gdni_written_slot(r, &s, n, step) == slot) return step;
    return -1;
}

/* Where the caller says which slot sequence n uses: after a step, or (-1) to start from. */
static ptrdiff_t gdni_place_of_slot(const gdn_params *r, ptrdiff_t n, ptrdiff_t step, const char **name) {
    const gdni_sequence s = gdni_get_sequence(r, n);
    ptrdiff_t column = step;
    if (step >= gdni_num_step_slots(r, &s) && r->output_state_indices.data != NULL) {
        *name = "output_state_indices";
        return n;
    }
    if (step < 0 && r->num_accepted_tokens.data != NULL)
        column = (ptrdiff_t)gdni_get_index(&r->num_accepted_tokens, n, 0) - 1;
    if (step < 0 ? gdni_starts_at_step(r) : step < gdni_num_step_slots(r, &s)) {
        *name = "ssm_state_indices";
        return n * r->ssm_state_indices.num_columns + (column < 0 ? 0 : column);
    }
    *name = r->initial_state_indices.data != NULL ? "initial_state_indices" : "initial_state_source";
    return n;
}

/* Sequence n uses `slot` at a step, as above, and another one writes it. The later of the two is named. */
static gdn_status gdni_conflict(const gdn_params *r, ptrdiff_t n, ptrdiff_t step, int64_t slot, gdn_error *error) {
    ptrdiff_t m = 0, m_step, place, other;
    const char *name, *other_name;
    while (m == n || (m_step = gdni_find_write(r, m, slot)) < 0) m++;
    place = gdni_place_of_slot(r, n, step, &name);
    other = gdni_place_of_slot(r, m, m_step, &other_name);
    if (n > m) return gdni_fail_at(error, GDN_ERROR_CONFLICT, name, place, other);
    return gdni_fail_at(error, GDN_ERROR_CONFLICT, other_name, other, place);
}

/* Which of the slots from `first` on are written, a window of them at a time. */
enum { GDNI_WINDOW = 65536 };
typedef struct gdni_window {
    int64_t first, next; /* next: the first slot behind the window that is written, or INT64_MAX */
    uint32_t bits[GDNI_WINDOW / 32];
} gdni_window;

static bool gdni_marked(const gdni_window *x, int64_t slot) {
    const int64_t i = slot - x->first;
    return i >= 0 && i < GDNI_WINDOW && (x->bits[i / 32] >> i % 32 & 1u) != 0;
}

static void gdni_mark(gdni_window *x, int64_t slot) {
    const int64_t i = slot - x->first;
    if (i >= GDNI_WINDOW && slot < x->next) x->next = slot;
    if (i >= 0 && i < GDNI_WINDOW) x->bits[i / 32] |= (uint32_t)1 << i % 32;
}

static void gdni_open_window(gdni_window *x, int64_t first) {
    memset(x, 0, sizeof *x);
    x->first = first, x->next = INT64_MAX;
}

/* No two sequences write one slot, and none reads what another writes. A slot may come several times in one sequence.
 */
static gdn_status gdni_check_slots(const gdn_params *r, gdn_error *error) {
    gdni_window window;
    for (int64_t first = 0; first < INT64_MAX; first = window.next) {
        gdni_open_window(&window, first);
        for (ptrdiff_t n = 0; n < r->num_seqs; n++) {
            const gdni_sequence s = gdni_get_sequence(r, n);
            const ptrdiff_t writes = s.length == 0 ? 0 : gdni_num_step_slots(r, &s) + 1;
            for (ptrdiff_t step = 0; step < writes; step++)
                if (gdni_marked(&window, gdni_written_slot(r, &s, n, step)))
                    return gdni_conflict(r, n, step, gdni_written_slot(r, &s, n, step), error);
            for (ptrdiff_t step = 0; step < writes; step++) gdni_mark(&window, gdni_written_slot(r, &s, n, step));
        }
        for (ptrdiff_t n = 0; n < r->num_seqs && !gdni_two_pools(r); n++) {
            const gdni_sequence s = gdni_get_sequence(r, n);
            if (s.length > 0 && gdni_marked(&window, s.read) && gdni_find_write(r, n, s.read) < 0)
                return gdni_conflict(r, n, -1, s.read, error);
        }
    }
    return GDN_OK;
}

/* No two sequences write one row of the cache. */
static gdn_status gdni_check_rows(const gdn_params *r, gdn_error *error) {
    gdni_window window;
    for (int64_t first = 0; first < INT64_MAX; first = window.next) {
        gdni_open_window(&window, first);
        for (ptrdiff_t n = 0; n < r->num_seqs; n++) {
            const gdni_sequence s = gdni_get_sequence(r, n);
            if (s.length == 0) continue;
            for (ptrdiff_t m = 0; gdni_marked(&window, s.row); m++) {
                const gdni_sequence other = gdni_get_sequence(r, m);
                if (other.length > 0 && other.row == s.row)
                    return gdni_fail_at(error, GDN_ERROR_CONFLICT, "intermediate_state_indices", n, m);
            }
            gdni_mark(&window, s.row);
        }
    }
    return GDN_OK;
}

static gdn_status gdni_check_sequences(const gdn_params *r, gdn_error *error) {
    const bool two = gdni_two_pools(r);
    const ptrdiff_t num_slots = r->initial_state_source.num_states, outputs = gdni_output_pool(r)->num_states;
    const ptrdiff_t rows = r->intermediate_states_buffer.num_rows;
    const struct {
        const char *name;
        bool numbered; /* slot or row n is sequence n's */
        ptrdiff_t end;
    } places[] = {
        {"initial_state_source",
         r->initial_state_source.data != NULL && r->initial_state_indices.data == NULL && !gdni_starts_at_step(r),
         num_slots},
        {"output_state_pool", two && r->output_state_indices.data == NULL && r->ssm_state_indices.data == NULL,
         outputs},
        {"intermediate_states_buffer",
         r->intermediate_states_buffer.data != NULL && r->intermediate_state_indices.data == NULL, rows},
    };
    GDNI_TRY(gdni_check_cu_seqlens(r, error));
    GDNI_TRY(gdni_check_range(r, &r->initial_state_indices, "initial_state_indices", num_slots, error));
    GDNI_TRY(gdni_check_range(r, &r->output_state_indices, "output_state_indices", outputs, error));
    GDNI_TRY(gdni_check_range(r, &r->ssm_state_indices, "ssm_state_indices", outputs, error));
    GDNI_TRY(gdni_check_range(r, &r->intermediate_state_indices, "intermediate_state_indices", rows, error));
    for (int i = 0; i < 3; i++)
        if (places[i].numbered && places[i].end < r->num_seqs)
            return gdni_fail_at(error, GDN_ERROR_INDEX, places[i].name, places[i].end, -1);
    if (r->seq_len == 0) return GDN_OK; /* any number of sequences */
    GDNI_TRY(gdni_check_steps(r, error));
    if (gdni_writes_pool(r)) GDNI_TRY(gdni_check_slots(r, error));
    if (r->intermediate_state_indices.data != NULL) GDNI_TRY(gdni_check_rows(r, error));
    return GDN_OK;
}

/* ---- [ITEMS] Where a work item lies, and the memory it touches ---------------------------------------- */

/* Items are ordered by sequence, key head, value head of that key head, columns of V. */
typedef struct gdni_item {
    ptrdiff_t n, key_head, value_head, c0, c1;
} gdni_item;

static gdni_item gdni_get_item(const gdn_params *r, ptrdiff_t i) {
    const ptrdiff_t slices = gdni_slices(r), per_key_head = gdni_heads_per_key_head(r);
    const ptrdiff_t position = i / slices % r->num_value_heads, c0 = i % slices * GDNI_SLICE;
    gdni_item x = {i / slices / r->num_value_heads, position / per_key_head, position, c0,
                   gdni_min(c0 + GDNI_SLICE, r->head_v_dim)};
    switch (r->head_map) {
    case GDN_HEADS_GROUPED: break;
    case GDN_HEADS_TILED: x.value_head = position % per_key_head * r->num_key_heads + x.key_head; break;
    }
    return x;
}

static ptrdiff_t gdni_offset(const gdn_tensor *x, const gdni_sequence *s, ptrdiff_t t, ptrdiff_t head) {
    return s->batch * x->batch_stride + (s->begin + t) * x->token_stride + head * x->head_stride;
}

static const void *gdni_row(const gdn_tensor *x, const gdni_sequence *s, ptrdiff_t t, ptrdiff_t head) {
    return (const char *)x->data + gdni_offset(x, s, t, head) * gdni_dtype_size(x->dtype);
}

/* A row that is written, from element c on. */
static char *gdni_written_row(const gdn_output *x, const gdni_sequence *s, ptrdiff_t t, ptrdiff_t head, ptrdiff_t c) {
    const gdn_tensor y = gdni_output_tensor(x);
    return (char *)x->data + (gdni_offset(&y, s, t, head) + c) * gdni_dtype_size(y.dtype);
}

static char *gdni_output_row(const gdn_params *r, const gdni_sequence *s, ptrdiff_t t, ptrdiff_t head, ptrdiff_t c) {
    return gdni_written_row(&r->o, s, t, head, c);
}

/* Whether states are never swept where they lie: something is done to them between two tokens. */
static bool gdni_in_tiles(const gdn_params *r) {
    return r->gv.data != NULL || r->token_mask.data != NULL || (r->rounding & GDN_ROUND_STATE) != 0;
}

/* One state matrix, in a pool or in the step cache; data NULL: zeros to read, nowhere to write. */
typedef struct gdni_matrix {
    char *data;
    gdn_dtype dtype;
} gdni_matrix;

static gdni_matrix gdni_pool_matrix(const gdn_state_pool *x, int64_t slot, ptrdiff_t head) {
    gdni_matrix m = {NULL, x->dtype};
    if (slot >= 0)
        m.data =
            (char *)x->data + ((ptrdiff_t)slot * x->slot_stride + head * x->head_stride) * gdni_dtype_size(x->dtype);
    return m;
}

static gdni_matrix gdni_cache_matrix(const gdn_params *r, int64_t row, int64_t step, ptrdiff_t head) {
    const gdn_state_cache *x = &r->intermediate_states_buffer;
    gdni_matrix m = {NULL, x->dtype};
    if (row >= 0 && step >= 0)
        m.data = (char *)x->data +
                 ((ptrdiff_t)row * x->row_stride + (ptrdiff_t)step * x->step_stride + head * x->head_stride) *
                     gdni_dtype_size(x->dtype);
    return m;
}

/* The state that a head of a sequence starts from. */
static gdni_matrix gdni_start_matrix(const gdn_params *r, const gdni_sequence *s, ptrdiff_t head) {
    return gdni_pool_matrix(&r->initial_state_source, s->read, head);
}

/* Where the state of a head goes after token t of sequence n: the cache, the slot of a step, the slot of the final
 * state. Returns how many of them there are. */
enum { GDNI_GOALS = 3 };
static int gdni_goals(const gdn_params *r, const gdni_sequence *s, ptrdiff_t n, ptrdiff_t t, ptrdiff_t head,
                      gdni_matrix *m) {
    const ptrdiff_t step = gdni_step(r, t), num_slots = gdni_num_step_slots(r, s);
    int count = 0;
    m[count] = gdni_cache_matrix(r, s->row, step, head);
    if (m[count].data != NULL) count++;
    m[count] = gdni_pool_matrix(gdni_output_pool(r),
                                step >= 0 && step < num_slots ? gdni_written_slot(r, s, n, step) : -1, head);
    if (m[count].data != NULL) count++;
    m[count] = gdni_pool_matrix(gdni_output_pool(r), t == s->length - 1 ? s->write : -1, head);
    if (m[count].data != NULL) count++;
    return count;
}

/* ---- [REFERENCE] The oracle: the formulas in double, one column slice of one head at a time ------------- */

static double gdni_reference_sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }
static double gdni_reference_softplus(double x) { return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x)); }

/* g of K row i; under GDN_GATE_DECAY exp(g). */
static double gdni_reference_gate(const gdn_params *r, const gdni_sequence *s, ptrdiff_t t, ptrdiff_t hv, ptrdiff_t i) {
    double x = gdni_get_f64(gdni_row(&r->a, s, t, hv), r->a.dtype, i), rate;
    switch (r->gate_input) {
    case GDN_GATE_DECAY:
    case GDN_GATE_LOG: return x;
    case GDN_GATE_RAW: break;
    }
    if (r->dt_bias.data != NULL) x += gdni_get_f64(r->dt_bias.data, r->dt_bias.dtype, hv * r->dt_bias.head_stride + i);
    rate = r->A_log.data == NULL ? 1 : exp(gdni_get_f64(r->A_log.data, r->A_log.dtype, hv * r->A_log.head_stride));
    if (r->has_lower_bound) return r->lower_bound * gdni_reference_sigmoid(rate * x);
    if (r->softplus_beta * x <= r->softplus_threshold)
        return -rate * gdni_reference_softplus(r->softplus_beta * x) / r->softplus_beta;
    return -rate * x;
}

static double gdni_reference_decay(const gdn_params *r, const gdni_sequence *s, ptrdiff_t t, ptrdiff_t hv,
                                   ptrdiff_t i) {
    const double g = gdni_reference_gate(r, s, t, hv, i);
    return r->gate_input == GDN_GATE_DECAY ? g : exp(g);
}

/* The decay of column c of V. */
static double gdni_reference_column_decay(const gdn_params *r, const gdni_sequence *s, ptrdiff_t t, ptrdiff_t hv,
                                          ptrdiff_t c) {
    return r->gv.data == NULL ? 1 : exp(gdni_get_f64(gdni_row(&r->gv, s, t, hv), r->gv.dtype, c));
}

static double gdni_reference_beta(const gdn_params *r, const gdni_sequence *s, ptrdiff_t t, ptrdiff_t hv, ptrdiff_t c) {
    double beta = 1.0;
    if (r->b.data != NULL) {
        beta = gdni_get_f64(gdni_row(&r->b, s, t, hv), r->b.dtype, r->beta_per_column ? c : 0);
        switch (r->beta_input) {
        case GDN_BETA_RAW: beta = gdni_reference_sigmoid(beta); break;
        case GDN_BETA_GIVEN: break;
        }
        if ((r->rounding & GDN_ROUND_BETA) != 0) beta = gdni_round_f64(beta, r->b.dtype);
    }
    return r->allow_neg_eigval ? 2.0 * beta : beta;
}

/* A row of q, k or k_read. */
static void gdni_reference_row(const gdn_params *r, const gdn_tensor *x, const gdni_sequence *s, ptrdiff_t t,
                               ptrdiff_t h, double *y) {
    const bool is_q = x == &r->q, round_q = (r->rounding & GDN_ROUND_SCALED_Q) != 0;
    const bool round_x = (r->rounding & GDN_ROUND_QK) != 0 && !(is_q && round_q);
    double sum = 0, norm = 1;
    for (ptrdiff_t i = 0; i < r->head_k_dim; i++) {
        y[i] = gdni_get_f64(gdni_row(x, s, t, h), x->dtype, i);
        sum += y[i] * y[i];
    }
    if (r->use_qk_l2norm_in_kernel) switch (r->l2norm_form) {
        case GDN_L2NORM_SUM_PLUS_EPS: norm = sqrt(sum + r->l2norm_eps); break;
        case GDN_L2NORM_MEAN_PLUS_EPS: norm = sqrt(sum + (double)r->head_k_dim * r->l2norm_eps); break;
        case GDN_L2NORM_MAX_NORM_EPS: norm = sqrt(sum) > r->l2norm_eps ? sqrt(sum) : r->l2norm_eps; break;
        case GDN_L2NORM_NORM_PLUS_EPS: norm = sqrt(sum) + r->l2norm_eps; break;
        }
    for (ptrdiff_t i = 0; i < r->head_k_dim; i++) {
        y[i] /= norm;
        if (round_x) y[i] = gdni_round_f64(y[i], x->dtype);
        if (is_q) y[i] *= r->scale;
        if (is_q && round_q) y[i] = gdni_round_f64(y[i], x->dtype);
    }
}

/* S [K][GDNI_SLICE] holds columns c0 to c1; `store` writes them to m, else reads. */
static void gdni_reference_state(const gdn_params *r, gdni_matrix m, ptrdiff_t c0, ptrdiff_t c1, bool store,
                                 double *state) {
    const ptrdiff_t k_dim = r->head_k_dim, v_dim = r->head_v_dim;
    for (ptrdiff_t i = 0; i < k_dim; i++)
        for (ptrdiff_t c = c0; c < c1; c++) {
            const ptrdiff_t at = gdni_vk_states(r) ? c * k_dim + i : i * v_dim + c;
            double *x = &state[i * GDNI_SLICE + c - c0];
            if (!store)
                *x = m.data == NULL ? 0.0 : gdni_get_f64(m.data, m.dtype, at);
            else if (m.data != NULL)
                gdni_put_f64(m.data, m.dtype, at, *x);
        }
}

static void gdni_reference_item(const gdn_params *r, const gdni_item *x, const gdni_sequence *s, double *scratch) {
    const ptrdiff_t k_dim = r->head_k_dim, h = x->key_head, hv = x->value_head;
    const ptrdiff_t c0 = x->c0, c1 = x->c1;
    const bool round_state = (r->rounding & GDN_ROUND_STATE) != 0;
    double *q = scratch, *k = q + k_dim, *k_read = k + k_dim, *decay = k_read + k_dim, *state = decay + k_dim;

    gdni_reference_state(r, gdni_start_matrix(r, s, hv), c0, c1, false, state);
    for (ptrdiff_t t = 0; t < s->length; t++) {
        const int64_t parent = gdni_parent(r, s, x->n, t);
        gdni_matrix goals[GDNI_GOALS];
        const int num_goals = gdni_goals(r, s, x->n, t, hv, goals);
        if (parent >= 0) gdni_reference_state(r, gdni_cache_matrix(r, s->row, parent, hv), c0, c1, false, state);
        gdni_reference_row(r, &r->q, s, t, h, q);
        gdni_reference_row(r, &r->k, s, t, h, k);
        if (r->k_read.data == NULL)
            memcpy(k_read, k, (size_t)k_dim * sizeof(double));
        else
            gdni_reference_row(r, &r->k_read, s, t, h, k_read);
        for (ptrdiff_t i = 0; i < k_dim && r->erase.data != NULL; i++)
            k_read[i] *= gdni_get_f64(gdni_row(&r->erase, s, t, hv), r->erase.dtype, i);
        for (ptrdiff_t i = 0; i < k_dim; i++)
            decay[i] = i == 0 || r->is_kda ? gdni_reference_decay(r, s, t, hv, i) : decay[0];

        for (ptrdiff_t c = c0; c < c1 && !gdni_masked(r, s, t); c++) {
            const double v = gdni_get_f64(gdni_row(&r->v, s, t, hv), r->v.dtype, c);
            const double column_decay = gdni_reference_column_decay(r, s, t, hv, c);
            double *column = state + (c - c0), kS = 0, d, o = 0;
            for (ptrdiff_t i = 0; i < k_dim && r->read_before_decay; i++) kS += k_read[i] * column[i * GDNI_SLICE];
            for (ptrdiff_t i = 0; i < k_dim; i++) column[i * GDNI_SLICE] *= decay[i] * column_decay;
            for (ptrdiff_t i = 0; i < k_dim && !r->read_before_decay; i++) kS += k_read[i] * column[i * GDNI_SLICE];
            d = gdni_reference_beta(r, s, t, hv, c) * (v - kS);
            for (ptrdiff_t i = 0; i < k_dim; i++) column[i * GDNI_SLICE] += k[i] * d;
            for (ptrdiff_t i = 0; i < k_dim; i++) o += q[i] * column[i * GDNI_SLICE];
            for (ptrdiff_t i = 0; i < k_dim && round_state; i++)
                column[i * GDNI_SLICE] = gdni_round_f64(column[i * GDNI_SLICE], gdni_output_pool(r)->dtype);
            gdni_put_f64(gdni_output_row(r, s, t, hv, c), r->o.dtype, 0, o);
        }
        for (int i = 0; i < num_goals; i++) gdni_reference_state(r, goals[i], c0, c1, true, state);
    }
}

/* ---- [PADDING] Sequences that are not computed ------------------------------------------------------- */

/* True if items first to last of sequence s are done without computing: empty, or padding that is not computed. */
static bool gdni_skip(const gdn_params *r, const gdni_sequence *s, ptrdiff_t first, ptrdiff_t last) {
    if (s->length == 0) return true;
    if (!s->padding) return false;
    switch (r->padding) {
    case GDN_PADDING_COMPUTE: return false;
    case GDN_PADDING_ZERO:
        for (ptrdiff_t i = first; i < last; i++) {
            const gdni_item x = gdni_get_item(r, i);
            for (ptrdiff_t t = 0; t < s->length; t++) {
                if (gdni_masked(r, s, t)) continue;
                memset(gdni_output_row(r, s, t, x.value_head, x.c0), 0,
                       (size_t)((x.c1 - x.c0) * gdni_dtype_size(r->o.dtype)));
            }
        }
        return true;
    case GDN_PADDING_LEAVE: return true;
    }
    return false;
}

/* ---- [SCRATCH] The float32 computation's memory -------------------------------------------------------- */

/* Name, floats, whether it starts as zeros: vectors read past the columns and tokens in use. Rows of K floats are
 * padded to kp, a multiple of sixteen, with zeros; columns are those of a run, `gates` rows of the gates. `chunk` is 0
 * where there are no chunks: all that follows the tiles. */
#define GDNI_WORKSPACE(X)                                                                                              \
    X(q, rows, chunk > 0) /* [block + 1][kp], normalised and scaled */                                                 \
    X(k, rows, chunk > 0)                                                                                              \
    X(k_read, r->k_read.data == NULL ? 0 : rows, chunk > 0)                                                            \
    X(reads, r->erase.data == NULL ? 0 : rows, chunk > 0) /* erase * k_read, for a value head */                       \
    X(decay, gates, false) /* decay, decay*k, decay*q. KDA: [block + 1][kp]; else one row */                           \
    X(kd, gates, chunk > 0)                                                                                            \
    X(qd, gates, chunk > 0)                                                                                            \
    X(bias, kp, false) /* KDA: dt_bias of a head; else sixteen times the same */                                       \
    X(qk, block + 16, true)                                                                                            \
    X(gate, block + 16, true)                                                                                          \
    X(beta, block + 16, true)                                                                                          \
    X(transposed, gdni_size_mul(4, kp), false) /* rows of a GDN_STATE_VK matrix */                                     \
    X(sum_k, columns, true)                                                                                            \
    X(sum_q, columns, true)                                                                                            \
    X(d, columns, true)                                                                                                \
    X(gv, r->gv.data == NULL ? 0 : columns, true) /* decays of a token's columns */                                    \
    X(v, (block * columns), false)                /* [block][columns] */                                               \
    X(o, (block * columns), false)                                                                                     \
    X(tiles, gdni_size_mul(columns, kp), false)             /* of each strip its tiles, one after the other */         \
    X(kt, gdni_size_mul(chunk, kp), true)                   /* k, transposed: [kp][16], lanes along the tokens */      \
    X(ktd, r->is_kda ? gdni_size_mul(chunk, kp) : 0, false) /* KDA: with the decays up to the chunk's end */           \
    X(raw, (2 * chunk * GDNI_CHUNK), true)                  /* scores without decays: [k, then q][16] */               \
    X(kk, (chunk * (GDNI_CHUNK + 1)), true)                 /* with decays: [16][16] */                                \
    X(kq, (chunk * (GDNI_CHUNK + 1)), true)                                                                            \
    X(decay_to, chunk == 0 ? 0 : kp, true)  /* decays from the chunk's start: [16]. KDA: to its end, [kp] */           \
    X(decay_after, chunk, false)            /* decays up to its end */                                                 \
    X(sums, (4 * chunk * GDNI_SLICE), true) /* of a tile: k.S, then q.S */                                             \
    X(betas, (2 * chunk * GDNI_SLICE), true)                                                                           \
    X(ds, (2 * chunk * GDNI_SLICE), true)

typedef struct gdni_workspace {
    ptrdiff_t kp, block, columns; /* floats in a K row, tokens in a block, columns of a run */
#define GDNI_MEMBER(name, count, zeros) float *name;
    GDNI_WORKSPACE(GDNI_MEMBER)
#undef GDNI_MEMBER
} gdni_workspace;

/* The next `count` floats behind base (NULL: only counts them). */
static float *gdni_take(float *base, ptrdiff_t *used, ptrdiff_t count, bool zeros) {
    float *at = base == NULL ? NULL : base + *used;
    *used = gdni_size_add(*used, gdni_round_up(count, 16));
    if (at != NULL && zeros) memset(at, 0, (size_t)count * sizeof(float));
    return at;
}

/* Lays the workspace out from `base` (NULL: only counts) and returns the floats it takes. */
static ptrdiff_t gdni_layout(const gdn_params *r, float *base, gdni_workspace *w) {
    const ptrdiff_t kp = gdni_round_up(r->head_k_dim, 16);
    const ptrdiff_t slices = gdni_size_mul(gdni_heads_per_key_head(r), gdni_slices(r));
    const ptrdiff_t columns = GDNI_SLICE * gdni_min(GDNI_RUN, slices);
    const ptrdiff_t fit = GDNI_BLOCK_KIB * 1024 / 4 / (r->is_kda ? 5 : 2) / kp;
    const ptrdiff_t chunk = r->compute == GDN_COMPUTE_F32_CHUNKS ? GDNI_CHUNK : 0;
    const ptrdiff_t block = chunk > 0 ? chunk : fit < 1 ? 1 : gdni_min(fit, GDNI_BLOCK);
    const ptrdiff_t rows = gdni_size_mul(block + (chunk > 0 ? 8 : 1), kp);
    const ptrdiff_t gates = r->is_kda ? rows : kp;
    ptrdiff_t used = 0;
    w->kp = kp, w->block = block, w->columns = columns;
#define GDNI_PLACE(name, count, zeros) w->name = gdni_take(base, &used, count, zeros);
    GDNI_WORKSPACE(GDNI_PLACE)
#undef GDNI_PLACE
    if (r->k_read.data == NULL) w->k_read = w->k;
    if (r->erase.data == NULL) w->reads = w->k_read;
    return used;
}

static void *gdni_align(void *p) {
    const uintptr_t over = (uintptr_t)p % GDNI_ALIGNMENT;
    return (char *)p + (over == 0 ? 0 : GDNI_ALIGNMENT - over);
}

/* Bytes; PTRDIFF_MAX if they do not fit. */
static ptrdiff_t gdni_scratch_bytes(const gdn_params *r) {
    gdni_workspace w;
    gdn_params one_gate = *r; /* what gdni_fill_in() makes of it where `a` is absent */
    ptrdiff_t count = 0, other;
    one_gate.is_kda = false;
    switch (r->compute) {
    case GDN_COMPUTE_F32:
    case GDN_COMPUTE_F32_CHUNKS:
        count = gdni_layout(r, NULL, &w), other = gdni_layout(&one_gate, NULL, &w);
        count = count < other ? other : count;
        break;
    case GDN_COMPUTE_F64: count = gdni_size_mul(2 * (4 + GDNI_SLICE), r->head_k_dim); break;
    }
    if (r->homogeneous) count = gdni_size_add(count, gdni_size_mul(2, gdni_round_up(r->head_v_dim, 16)));
    return gdni_size_add(gdni_size_mul(count, 4), GDNI_ALIGNMENT);
}

/* What is left out is shared by all tokens and heads: a decay of 1, a row of zeros as v, and as o one that nobody
 * reads. Returns what remains of the scratch. */
static float *gdni_fill_in(gdn_params *r, float *scratch) {
    static const float one = 1;
    const ptrdiff_t row = gdni_round_up(r->head_v_dim, 16);
    if (r->a.data == NULL) {
        r->a = gdn_f32(&one);
        r->gate_input = GDN_GATE_DECAY, r->is_kda = false;
    }
    if (!r->homogeneous) return scratch;
    memset(scratch, 0, (size_t)row * sizeof(float));
    r->v = gdn_f32(scratch);
    r->o = gdn_out_f32(scratch + row);
    return scratch + 2 * row;
}

/* ---- [RUNS] Items that are computed together ------------------------------------------------------------- */

/* Columns c0 to c1 of one value head, consecutive items: their state, a tile of [K][columns]; their sums; their v and
 * o, rows of w->columns floats for each token of a block. */
typedef struct gdni_strip {
    ptrdiff_t value_head, c0, c1;
    float *tile, *v, *o, *sum_k, *sum_q;
} gdni_strip;

/* Consecutive items of one sequence and key head, at most GDNI_RUN: they share the prepared q and k. */
typedef struct gdni_run {
    const gdn_params *r;
    const gdni_workspace *w;
    gdni_sequence s;
    ptrdiff_t n, key_head, first, end; /* its items */
    int num_strips;
    gdni_strip strips[GDNI_RUN];
    const struct gdni_run *next; /* the run after it, or NULL */
} gdni_run;

/* The run that starts with item `first`, of those before `last`. */
GDNI_INLINE void gdni_get_run(gdni_run *u, const gdn_params *r, ptrdiff_t first, ptrdiff_t last,
                              const gdni_workspace *w) {
    const ptrdiff_t per_key_head = gdni_heads_per_key_head(r) * gdni_slices(r);
    const gdni_item start = gdni_get_item(r, first);
    u->r = r, u->w = w;
    u->s = gdni_get_sequence(r, start.n);
    u->n = start.n, u->key_head = start.key_head, u->first = first;
    u->end = gdni_min(gdni_min(first + GDNI_RUN, (first / per_key_head + 1) * per_key_head), last);
    u->num_strips = 0;
    for (ptrdiff_t i = first, stop; i < u->end; i = stop) {
        const gdni_item item = gdni_get_item(r, i);
        const ptrdiff_t at = (i - first) * GDNI_SLICE;
        gdni_strip *x = &u->strips[u->num_strips++];
        stop = gdni_min(i + (r->head_v_dim - item.c0 - 1) / GDNI_SLICE + 1, u->end);
        x->value_head = item.value_head;
        x->c0 = item.c0, x->c1 = gdni_min(item.c0 + (stop - i) * GDNI_SLICE, r->head_v_dim);
        x->tile = w->tiles + at * w->kp;
        x->v = w->v + at, x->o = w->o + at;
        x->sum_k = w->sum_k + at, x->sum_q = w->sum_q + at;
    }
}

/* Columns c0 to c1 of a strip. */
static gdni_strip gdni_columns(const gdni_strip *x, ptrdiff_t c0, ptrdiff_t c1, const gdni_workspace *w) {
    const ptrdiff_t at = c0 - x->c0;
    const gdni_strip y = {x->value_head, c0,           c1, x->tile + at * w->kp, x->v + at, x->o + at,
                          x->sum_k + at, x->sum_q + at};
    return y;
}

/* Asks for `bytes` from p on. Always inlined: gcc takes a function that only asks for one without effect. */
GDNI_INLINE void gdni_prefetch(const char *p, ptrdiff_t bytes) {
#if GDNI_GNU_C
    for (ptrdiff_t i = 0; i < bytes; i += GDNI_ALIGNMENT) __builtin_prefetch(p + i, 0, 2); /* second level */
#else
    (void)p, (void)bytes;
#endif
}

GDNI_INLINE void gdni_prefetch_row(const gdn_tensor *x, const gdni_sequence *s, ptrdiff_t t, ptrdiff_t head,
                                   ptrdiff_t c, ptrdiff_t count) {
    const ptrdiff_t size = gdni_dtype_size(x->dtype);
    gdni_prefetch((const char *)gdni_row(x, s, t, head) + c * size, count * size);
}

/* The rows of one head lie a whole token apart, often a page of memory or more, which no processor foresees. Asks for
 * what a strip will read of token t, or of a token of the next run where the sequence has ended. */
GDNI_INLINE void gdni_fetch(const gdni_run *u, int strip, ptrdiff_t t) {
    const gdn_params *r = u->r;
    const gdni_strip *x;
    if (t >= u->s.length) t -= u->s.length, u = u->next;
    if (u == NULL || t >= u->s.length || strip >= u->num_strips) return;
    x = &u->strips[strip];
    if (strip == 0) {
        gdni_prefetch_row(&r->q, &u->s, t, u->key_head, 0, r->head_k_dim);
        gdni_prefetch_row(&r->k, &u->s, t, u->key_head, 0, r->head_k_dim);
    }
    gdni_prefetch_row(&r->v, &u->s, t, x->value_head, x->c0, x->c1 - x->c0);
    if (r->is_kda) gdni_prefetch_row(&r->a, &u->s, t, x->value_head, 0, r->head_k_dim);
}

/* 1 / norm, from the sum of squares. */
GDNI_INLINE double gdni_norm_factor(const gdn_params *r, double sum) {
    GDNI_EXACT
    const double eps = r->l2norm_eps;
    double k_eps = (double)r->head_k_dim * eps;
    GDNI_ROUNDED(k_eps);
    switch (r->l2norm_form) {
    case GDN_L2NORM_MEAN_PLUS_EPS: return 1.0 / sqrt(sum + k_eps);
    case GDN_L2NORM_MAX_NORM_EPS: return 1.0 / (sqrt(sum) < eps ? eps : sqrt(sum));
    case GDN_L2NORM_NORM_PLUS_EPS: return 1.0 / (sqrt(sum) + eps);
    case GDN_L2NORM_SUM_PLUS_EPS: break;
    }
    return 1.0 / sqrt(sum + eps);
}

/* ---- [TARGETS] Instances of the kernel ------------------------------------------------------------------ */

/* Loops over a constant number of vectors, which gcc leaves rolled at -O2 and clang does not. */
#if defined(__GNUC__) && !defined(__clang__)
#define GDNI_UNROLL _Pragma("GCC unroll 16")
#else
#define GDNI_UNROLL
#endif

/* Without the instruction, a fused multiply-add comes from double: the product is exact there, and a sum that is
 * rounded to odd rounds to float as the exact sum would. */
#if !GDNI_SSE2
static float gdni_fmaf(float x, float y, float z) {
#if GDNI_HAS_FMAF
    return fmaf(x, y, z);
#else
    GDNI_EXACT
    const double p = (double)x * (double)y, a = (double)z, s = p + a, t = s - p;
    const double error = (p - (s - t)) + (a - t);
    uint64_t bits;
    double odd;
    memcpy(&bits, &s, sizeof bits);
    if ((error < 0 || error > 0) && (bits & 1u) == 0) bits = (error > 0) == (s > 0) ? bits + 1 : bits - 1;
    memcpy(&odd, &bits, sizeof odd);
    return (float)odd;
#endif
}
#elif !defined(__FMA__)
static __m128d gdni_sum_to_odd(__m128d p, __m128d a) {
    GDNI_EXACT
    const __m128d s = p + a, t = s - p, error = (p - (s - t)) + (a - t), zero = _mm_setzero_pd();
    const __m128d less = _mm_cmplt_pd(error, zero), more = _mm_cmpgt_pd(error, zero);
    const __m128i bits = _mm_castpd_si128(s), even = _mm_andnot_si128(bits, _mm_set_epi32(0, 1, 0, 1));
    const __m128i step = _mm_and_si128(even, _mm_castpd_si128(_mm_or_pd(less, more)));
    const __m128i away = _mm_castpd_si128(_mm_xor_pd(less, _mm_cmpgt_pd(s, zero)));
    const __m128i up = _mm_and_si128(away, step), down = _mm_andnot_si128(away, step);
    return _mm_castsi128_pd(_mm_sub_epi64(_mm_add_epi64(bits, up), down));
}

static __attribute__((noinline)) __m128 gdni_fma_to_odd(__m128d p0, __m128d a0, __m128d p1, __m128d a1) {
    return _mm_movelh_ps(_mm_cvtpd_ps(gdni_sum_to_odd(p0, a0)), _mm_cvtpd_ps(gdni_sum_to_odd(p1, a1)));
}

/* Rounding twice differs from rounding once only where the double lies half-way between two floats or the float is
 * subnormal; only then is the sum taken again. */
GDNI_INLINE __m128 gdni_fma_sse2(__m128 x, __m128 y, __m128 z) {
    GDNI_EXACT
    const __m128d p0 = _mm_cvtps_pd(x) * _mm_cvtps_pd(y), a0 = _mm_cvtps_pd(z);
    const __m128d p1 = _mm_cvtps_pd(_mm_movehl_ps(x, x)) * _mm_cvtps_pd(_mm_movehl_ps(y, y));
    const __m128d a1 = _mm_cvtps_pd(_mm_movehl_ps(z, z)), s0 = p0 + a0, s1 = p1 + a1;
    const __m128 f = _mm_movelh_ps(_mm_cvtpd_ps(s0), _mm_cvtpd_ps(s1));
    const __m128i low = _mm_castps_si128(_mm_shuffle_ps(_mm_castpd_ps(s0), _mm_castpd_ps(s1), 0x88));
    const __m128i middle = _mm_cmpeq_epi32(_mm_slli_epi32(low, 3), _mm_set1_epi32(INT32_MIN));
    const __m128i magnitude = _mm_and_si128(_mm_castps_si128(f), _mm_set1_epi32(INT32_MAX));
    const __m128i tiny = _mm_and_si128(_mm_cmpgt_epi32(magnitude, _mm_setzero_si128()),
                                       _mm_cmpgt_epi32(_mm_set1_epi32(0x00800001), magnitude));
    if (__builtin_expect(_mm_movemask_epi8(_mm_or_si128(middle, tiny)) != 0, 0)) return gdni_fma_to_odd(p0, a0, p1, a1);
    return f;
}
#endif

#if GDNI_SSE2
/* Four times four partial sums to four sums: (0+2) + (1+3). */
GDNI_INLINE void gdni_fold_fours(__m128 a, __m128 b, __m128 c, __m128 d, float *sums) {
    GDNI_EXACT
    const __m128 x = _mm_movelh_ps(a, b) + _mm_movehl_ps(b, a);
    const __m128 y = _mm_movelh_ps(c, d) + _mm_movehl_ps(d, c);
    _mm_storeu_ps(sums, _mm_shuffle_ps(x, y, 0x88) + _mm_shuffle_ps(x, y, 0xdd));
}
#elif GDNI_NEON
GDNI_INLINE void gdni_fold_fours(float32x4_t a, float32x4_t b, float32x4_t c, float32x4_t d, float *sums) {
    GDNI_EXACT
    const float32x4_t x =
        vcombine_f32(vget_low_f32(a), vget_low_f32(b)) + vcombine_f32(vget_high_f32(a), vget_high_f32(b));
    const float32x4_t y =
        vcombine_f32(vget_low_f32(c), vget_low_f32(d)) + vcombine_f32(vget_high_f32(c), vget_high_f32(d));
    vst1q_f32(sums, vuzp1q_f32(x, y) + vuzp2q_f32(x, y));
}
#endif

/* to[j][i] = from[i][j], four by four. */
GDNI_INLINE void gdni_transpose4(const float *from, ptrdiff_t from_pitch, float *to, ptrdiff_t to_pitch) {
#if GDNI_SSE2
    __m128 a = _mm_loadu_ps(from), b = _mm_loadu_ps(from + from_pitch);
    __m128 c = _mm_loadu_ps(from + 2 * from_pitch), d = _mm_loadu_ps(from + 3 * from_pitch);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(to, a);
    _mm_storeu_ps(to + to_pitch, b);
    _mm_storeu_ps(to + 2 * to_pitch, c);
    _mm_storeu_ps(to + 3 * to_pitch, d);
#else
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) to[j * to_pitch + i] = from[i * from_pitch + j];
#endif
}

GDNI_INLINE void gdni_transpose(const float *from, ptrdiff_t from_pitch, ptrdiff_t rows, ptrdiff_t columns, float *to,
                                ptrdiff_t to_pitch) {
    const ptrdiff_t whole_rows = rows / 4 * 4, whole_columns = columns / 4 * 4;
    for (ptrdiff_t i = 0; i < whole_rows; i += 4)
        for (ptrdiff_t j = 0; j < whole_columns; j += 4)
            gdni_transpose4(from + i * from_pitch + j, from_pitch, to + j * to_pitch + i, to_pitch);
    for (ptrdiff_t i = 0; i < rows; i++)
        for (ptrdiff_t j = i < whole_rows ? whole_columns : 0; j < columns; j++)
            to[j * to_pitch + i] = from[i * from_pitch + j];
}

#define GDNI_KERNEL

/* Each block below compiles [KERNEL] once. It defines, in this order:
 *     GDNI_TARGET         the suffix of its names
 *     GDNI_LANES          floats in a vector: 1 (then a vector is a float), or 4, 8, 16 with GNU vectors
 *     GDNI_STREAM         vectors of a row that GDN_STATE_KV streams at once, besides 2: 8 with thirty-two registers,
 *                         else 4; 2 makes the least code
 *     GDNI_VK_ROWS        rows that GDN_STATE_VK works on at once
 *     GDNI_SET1(x)        a vector of x
 *     GDNI_FMA(x, y, z)   x*y + z with one rounding
 *     GDNI_DSET1(x)       a vector of the double x, half as many (or 1)
 *     GDNI_DMIN(x, y), GDNI_DMAX(x, y)   of such vectors; y where y is NaN
 * and, where it has something better than the generic form in [KERNEL]:
 *     GDNI_FOLD(x, sums)  sixteen partial sums of each of four sums (of eight, with sixteen lanes) to those sums
 *     GDNI_TO_DOUBLES(x)  of half a vector of floats
 *     GDNI_TO_WORDS(h), GDNI_TO_HALVES(w)     uint16_t to uint32_t and back
 *     GDNI_F16_TO_F32(h), GDNI_F32_TO_F16(x)
 *     GDNI_ROUND_BF16(x)  the upper half of each word, the bfloat16 */

#define GDNI_TARGET plain
#if GDNI_SSE2
#define GDNI_LANES 4
#define GDNI_STREAM 2
#define GDNI_VK_ROWS 1
#define GDNI_SET1(x) _mm_set1_ps(x)
#ifdef __FMA__
#define GDNI_FMA(x, y, z) _mm_fmadd_ps(x, y, z)
#else
#define GDNI_FMA(x, y, z) gdni_fma_sse2(x, y, z)
#endif
#define GDNI_DSET1(x) _mm_set1_pd(x)
#define GDNI_DMIN(x, y) _mm_min_pd(x, y)
#define GDNI_DMAX(x, y) _mm_max_pd(x, y)
#define GDNI_FOLD(x, sums)                                                                                             \
    gdni_fold_fours(GDNI_FOURS((x)[0]), GDNI_FOURS((x)[1]), GDNI_FOURS((x)[2]), GDNI_FOURS((x)[3]), sums)
#define GDNI_FOURS(p) (((p)[0] + (p)[2]) + ((p)[1] + (p)[3]))
#else
#define GDNI_LANES 1
#define GDNI_STREAM 4
#define GDNI_VK_ROWS 1
#define GDNI_SET1(x) (x)
#define GDNI_FMA(x, y, z) gdni_fmaf(x, y, z)
#define GDNI_DSET1(x) (x)
#define GDNI_DMIN(x, y) ((x) < (y) ? (x) : (y))
#define GDNI_DMAX(x, y) ((x) > (y) ? (x) : (y))
#endif
#include GDN_HEADER_NAME

#if GDNI_AVX2
#define GDNI_TARGET avx2
#define GDNI_LANES 8
#define GDNI_STREAM 4
#define GDNI_VK_ROWS 2
#define GDNI_SET1(x) _mm256_set1_ps(x)
#define GDNI_FMA(x, y, z) _mm256_fmadd_ps(x, y, z)
#define GDNI_DSET1(x) _mm256_set1_pd(x)
#define GDNI_DMIN(x, y) _mm256_min_pd(x, y)
#define GDNI_DMAX(x, y) _mm256_max_pd(x, y)
#define GDNI_FOLD(x, sums)                                                                                             \
    gdni_fold_fours(GDNI_FOURS((x)[0]), GDNI_FOURS((x)[1]), GDNI_FOURS((x)[2]), GDNI_FOURS((x)[3]), sums)
#define GDNI_FOURS(p) gdni_halves_avx2((p)[0] + (p)[1])
#define GDNI_TO_WORDS(h) (gdni_word) _mm256_cvtepu16_epi32((__m128i)(h))
#define GDNI_TO_HALVES(w) (gdni_half) gdni_pack_avx2((__m256i)(w))
#define GDNI_F16_TO_F32(h) _mm256_cvtph_ps((__m128i)(h))
#define GDNI_F32_TO_F16(x) _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
/* The low halves of eight words below 65536. */
GDNI_INLINE __m128i gdni_pack_avx2(__m256i x) {
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(x, x), 8));
}
GDNI_INLINE __m128 gdni_halves_avx2(__m256 x) {
    GDNI_EXACT
    return _mm256_castps256_ps128(x) + _mm256_extractf128_ps(x, 1);
}
#include GDN_HEADER_NAME
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

#if GDNI_AVX512
#define GDNI_TARGET avx512
#define GDNI_LANES 16
#define GDNI_STREAM 8
#define GDNI_VK_ROWS 8
#define GDNI_SET1(x) _mm512_set1_ps(x)
#define GDNI_FMA(x, y, z) _mm512_fmadd_ps(x, y, z)
#define GDNI_DSET1(x) _mm512_set1_pd(x)
#define GDNI_DMIN(x, y) _mm512_maskz_min_pd(255, x, y)
#define GDNI_DMAX(x, y) _mm512_maskz_max_pd(255, x, y)
#define GDNI_FOLD(x, sums) gdni_fold_eight(x, sums)
#define GDNI_TO_DOUBLES(x) _mm512_maskz_cvtps_pd(255, x)
#define GDNI_TO_WORDS(h) (gdni_word) _mm512_maskz_cvtepu16_epi32(65535, (__m256i)(h))
#define GDNI_TO_HALVES(w) (gdni_half) _mm512_maskz_cvtepi32_epi16(65535, (__m512i)(w))
#define GDNI_F16_TO_F32(h) _mm512_maskz_cvtph_ps(65535, (__m256i)(h))
#define GDNI_F32_TO_F16(x) _mm512_maskz_cvtps_ph(65535, x, _MM_FROUND_TO_NEAREST_INT)
#define GDNI_ROUND_BF16(x) gdni_round_to_bf16(x)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))),              \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif
/* In five instructions. */
GDNI_INLINE __m512i gdni_round_to_bf16(__m512 x) {
    const __m512i bits = _mm512_castps_si512(x), up = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
    const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
    const __m512i even = _mm512_mask_sub_epi32(up, odd, up, _mm512_set1_epi32(-1));
    return _mm512_mask_or_epi32(even, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), even, _mm512_set1_epi32(0x7fc00000));
}
/* The zero-masking forms: g++ 12 warns inside the plain ones. */
#define GDNI_SHUFFLE_QUARTERS(x, y, how) _mm512_maskz_shuffle_f32x4(65535, x, y, how)
#define GDNI_SHUFFLE_IN_QUARTERS(x, y, how) _mm512_maskz_shuffle_ps(65535, x, y, how)
/* Twice sixteen lanes to twice eight, and those to twice four: l + (l+8), l + (l+4). */
GDNI_INLINE __m512 gdni_fold_to_8_avx512(__m512 a, __m512 b) {
    GDNI_EXACT
    return GDNI_SHUFFLE_QUARTERS(a, b, 0x44) + GDNI_SHUFFLE_QUARTERS(a, b, 0xee);
}
GDNI_INLINE __m512 gdni_fold_to_4_avx512(__m512 a, __m512 b) {
    GDNI_EXACT
    return GDNI_SHUFFLE_QUARTERS(a, b, 0x88) + GDNI_SHUFFLE_QUARTERS(a, b, 0xdd);
}
GDNI_INLINE void gdni_fold_eight(__m512 (*p)[1], float *sums) {
    GDNI_EXACT
    const __m512 ab = gdni_fold_to_8_avx512(p[0][0], p[1][0]), cd = gdni_fold_to_8_avx512(p[2][0], p[3][0]);
    const __m512 ef = gdni_fold_to_8_avx512(p[4][0], p[5][0]), gh = gdni_fold_to_8_avx512(p[6][0], p[7][0]);
    const __m512 x = gdni_fold_to_4_avx512(ab, cd), y = gdni_fold_to_4_avx512(ef, gh);
    const __m512 z = GDNI_SHUFFLE_IN_QUARTERS(x, y, 0x44) + GDNI_SHUFFLE_IN_QUARTERS(x, y, 0xee);
    const __m512 eight = GDNI_SHUFFLE_IN_QUARTERS(z, z, 0x88) + GDNI_SHUFFLE_IN_QUARTERS(z, z, 0xdd);
    const __m512i order = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 13, 9, 5, 1, 12, 8, 4, 0);
    const __m512 folded = _mm512_maskz_permutexvar_ps(65535, order, eight);
    memcpy(sums, &folded, 8 * sizeof(float));
}
#include GDN_HEADER_NAME
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

#if GDNI_NEON
#define GDNI_TARGET neon
#define GDNI_LANES 4
#define GDNI_STREAM 8
#define GDNI_VK_ROWS 2
#define GDNI_SET1(x) vdupq_n_f32(x)
#define GDNI_FMA(x, y, z) vfmaq_f32(z, x, y)
#define GDNI_DSET1(x) vdupq_n_f64(x)
#define GDNI_DMIN(x, y) vminq_f64(x, y)
#define GDNI_DMAX(x, y) vmaxq_f64(x, y)
#define GDNI_FOLD(x, sums)                                                                                             \
    gdni_fold_fours(GDNI_FOURS((x)[0]), GDNI_FOURS((x)[1]), GDNI_FOURS((x)[2]), GDNI_FOURS((x)[3]), sums)
#define GDNI_FOURS(p) (((p)[0] + (p)[2]) + ((p)[1] + (p)[3]))
#define GDNI_F16_TO_F32(h) vcvt_f32_f16(vreinterpret_f16_u16((uint16x4_t)(h)))
#define GDNI_F32_TO_F16(x) vreinterpret_u16_f16(vcvt_f16_f32(x))
#include GDN_HEADER_NAME
#endif
#undef GDNI_KERNEL

/* ---- [SELECTION] Which instance runs ----------------------------------------------------------------------- */

typedef void gdni_run_function(const gdn_params *r, ptrdiff_t first, ptrdiff_t last, float *scratch);

#if GDNI_AVX2 || GDNI_AVX512
/* The compilers' __builtin_cpu_supports() is a table in their run-time library: not every program links it, and not
 * every compiler fills it in. */
static void gdni_cpuid(uint32_t leaf, uint32_t r[4]) {
    __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "0"(leaf), "2"(0));
}

/* The bits 1 << isa that the CPU has and the system saves the registers of. Not inlined: CPUID writes ebx, which the
 * frame of a caller may need. */
static __attribute__((noinline)) uint32_t gdni_read_cpu(void) {
    const uint32_t avx = 1u << 12 | 1u << 27 | 1u << 28 | 1u << 29;    /* FMA, OSXSAVE, AVX, F16C */
    const uint32_t avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F, DQ, BW, VL */
#ifdef __APPLE__
    const uint32_t ymm = 0x6, zmm = 0x6; /* there the system saves zmm from their first use on */
#else
    const uint32_t ymm = 0x6, zmm = 0xe6;
#endif
    uint32_t r[4], saved, found = 1u << GDN_ISA_PLAIN;
    gdni_cpuid(0, r);
    if (r[0] < 7) return found;
    gdni_cpuid(1, r);
    if ((r[2] & avx) != avx) return found;
    __asm__ volatile("xgetbv" : "=a"(saved), "=d"(r[3]) : "c"(0));
    gdni_cpuid(7, r);
    if ((saved & ymm) != ymm || (r[1] & 1u << 5) == 0) return found;
    found |= 1u << GDN_ISA_AVX2;
    if ((saved & zmm) == zmm && (r[1] & avx512) == avx512) found |= 1u << GDN_ISA_AVX512;
    return found;
}

/* Kept, since CPUID takes microseconds on a virtual machine: the only data here that are written, from 0 to what any
 * other thread would write. */
static uint32_t gdni_cpu;

static bool gdni_cpu_has(gdn_isa isa) {
    uint32_t found = __atomic_load_n(&gdni_cpu, __ATOMIC_RELAXED);
    if (found == 0) {
        found = gdni_read_cpu();
        __atomic_store_n(&gdni_cpu, found, __ATOMIC_RELAXED);
    }
    return (found >> isa & 1u) != 0;
}
#endif

/* The instance of an instruction set, or NULL where this build or this CPU lacks it. */
static gdni_run_function *gdni_instance(gdn_isa isa) {
    switch (isa) {
    case GDN_ISA_PLAIN: return gdni_run_items_plain;
    case GDN_ISA_AVX2:
#if GDNI_AVX2
        if (gdni_cpu_has(isa)) return gdni_run_items_avx2;
#endif
        break;
    case GDN_ISA_AVX512:
#if GDNI_AVX512
        if (gdni_cpu_has(isa)) return gdni_run_items_avx512;
#endif
        break;
    case GDN_ISA_NEON:
#if GDNI_NEON
        return gdni_run_items_neon;
#else
        break;
#endif
    case GDN_ISA_AUTO:
    case GDN_NUM_ISAS: break;
    }
    return NULL;
}

gdn_isa gdn_isa_selected(void) {
    int isa = GDN_NUM_ISAS - 1; /* the later in the list, the wider */
    while (gdni_instance((gdn_isa)isa) == NULL) isa--;
    return (gdn_isa)isa;
}

bool gdn_isa_supported(gdn_isa isa) { return isa == GDN_ISA_AUTO || gdni_instance(isa) != NULL; }

/* ---- [PUBLIC] ------------------------------------------------------------------------------------------------ */

/* All that does not depend on what the index arrays hold; `plan`: nor on any address. */
static gdn_status gdni_check_call(const gdn_params *params, bool plan, gdn_params *r, gdn_error *error) {
    gdni_array x[GDNI_NUM_ARRAYS];
    GDNI_TRY(gdni_check_sizes(params, error));
    *r = gdni_resolve(params);
    GDNI_TRY(gdni_check_options(r, error));
    gdni_list_arrays(r, x);
    GDNI_TRY(gdni_check_arrays(r, x, GDNI_NUM_ARRAYS, !plan, error));
    GDNI_REFUSE(OVERFLOW, "num_seqs",
                gdni_size_mul(gdni_size_mul(r->num_seqs, r->num_value_heads), gdni_slices(r)) == PTRDIFF_MAX);
    GDNI_REFUSE(OVERFLOW, "head_k_dim", gdni_scratch_bytes(r) == PTRDIFF_MAX);
    return GDN_OK;
}

gdn_status gdn_validate(const gdn_params *params, gdn_error *error) {
    gdn_params r;
    gdni_fail(error, GDN_OK, "");
    if (params == NULL) return gdni_fail(error, GDN_ERROR_NULL, "params");
    GDNI_TRY(gdni_check_call(params, false, &r, error));
    GDNI_TRY(gdni_check_sequences(&r, error));
    GDNI_REFUSE(SCRATCH, "scratch", r.scratch != NULL && r.scratch_size < (size_t)gdni_scratch_bytes(&r));
    return GDN_OK;
}

gdn_status gdn_validate_plan(const gdn_params *params, gdn_error *error) {
    gdn_params p, r;
    gdni_fail(error, GDN_OK, "");
    if (params == NULL) return gdni_fail(error, GDN_ERROR_NULL, "params");
    p = *params;
#define GDNI_PLANNED(field, is_there)                                                                                  \
    if (is_there) p.field.data = &p
    GDNI_PLANNED(A_log, p.A_log.dtype != GDN_DTYPE_NOT_SET);
    GDNI_PLANNED(a, p.a.dtype != GDN_DTYPE_NOT_SET);
    GDNI_PLANNED(dt_bias, p.dt_bias.dtype != GDN_DTYPE_NOT_SET);
    GDNI_PLANNED(q, p.q.dtype != GDN_DTYPE_NOT_SET);
    GDNI_PLANNED(k, p.k.dtype != GDN_DTYPE_NOT_SET);
    GDNI_PLANNED(v, p.v.dtype != GDN_DTYPE_NOT_SET);
    GDNI_PLANNED(b, p.b.dtype != GDN_DTYPE_NOT_SET);
    GDNI_PLANNED(k_read, p.k_read.dtype != GDN_DTYPE_NOT_SET);
    GDNI_PLANNED(erase, p.erase.dtype != GDN_DTYPE_NOT_SET);
    GDNI_PLANNED(gv, p.gv.dtype != GDN_DTYPE_NOT_SET);
    GDNI_PLANNED(o, p.o.dtype != GDN_DTYPE_NOT_SET);
    GDNI_PLANNED(initial_state_source, p.initial_state_source.dtype != GDN_DTYPE_NOT_SET);
    GDNI_PLANNED(output_state_pool, p.output_state_pool.dtype != GDN_DTYPE_NOT_SET);
    GDNI_PLANNED(intermediate_states_buffer, p.intermediate_states_buffer.dtype != GDN_DTYPE_NOT_SET);
    GDNI_PLANNED(cu_seqlens, p.cu_seqlens.dtype != GDN_INDEX_NOT_SET);
    GDNI_PLANNED(initial_state_indices, p.initial_state_indices.dtype != GDN_INDEX_NOT_SET);
    GDNI_PLANNED(output_state_indices, p.output_state_indices.dtype != GDN_INDEX_NOT_SET);
    GDNI_PLANNED(intermediate_state_indices, p.intermediate_state_indices.dtype != GDN_INDEX_NOT_SET);
    GDNI_PLANNED(retrieve_parent_token, p.retrieve_parent_token.dtype != GDN_INDEX_NOT_SET);
    GDNI_PLANNED(ssm_state_indices, p.ssm_state_indices.dtype != GDN_INDEX_NOT_SET);
    GDNI_PLANNED(num_accepted_tokens, p.num_accepted_tokens.dtype != GDN_INDEX_NOT_SET);
#undef GDNI_PLANNED
    return gdni_check_call(&p, true, &r, error);
}

/* Whether sizes may be computed with. */
static gdn_status gdni_check_given(const gdn_params *params) {
    return params == NULL ? GDN_ERROR_NULL : gdni_check_sizes(params, NULL);
}

ptrdiff_t gdn_num_work_items(const gdn_params *params) {
    if (gdni_check_given(params) != GDN_OK) return 0;
    return gdni_size_mul(
        gdni_size_mul(gdni_varlen(params) ? params->num_seqs : params->batch_size, params->num_value_heads),
        gdni_slices(params));
}

size_t gdn_scratch_size(const gdn_params *params) {
    return gdni_check_given(params) == GDN_OK ? (size_t)gdni_scratch_bytes(params) : 0;
}

gdn_status gdn_run_work_items(const gdn_params *params, ptrdiff_t first, ptrdiff_t last, void *scratch,
                              size_t scratch_size) {
    gdn_params r;
    gdni_run_function *run;
    float *memory;
    GDNI_TRY(gdni_check_given(params));
    r = gdni_resolve(params);
    if (first < 0 || first > last || last > gdn_num_work_items(params)) return GDN_ERROR_RANGE;
    if (scratch == NULL || scratch_size < (size_t)gdni_scratch_bytes(&r)) return GDN_ERROR_SCRATCH;
    if (r.seq_len == 0) return GDN_OK; /* any number of sequences */
    memory = gdni_fill_in(&r, (float *)gdni_align(scratch));
    switch (r.compute) {
    case GDN_COMPUTE_F32:
    case GDN_COMPUTE_F32_CHUNKS:
        run = gdni_instance(r.isa == GDN_ISA_AUTO ? gdn_isa_selected() : r.isa);
        if (run == NULL) return GDN_ERROR_ISA;
        run(&r, first, last, memory);
        break;
    case GDN_COMPUTE_F64:
        for (; first < last; first++) {
            const gdni_item item = gdni_get_item(&r, first);
            const gdni_sequence s = gdni_get_sequence(&r, item.n);
            if (!gdni_skip(&r, &s, first, first + 1)) gdni_reference_item(&r, &item, &s, (double *)memory);
        }
        break;
    }
    return GDN_OK;
}

/* The caller's, or new memory where there is malloc; NULL: neither. */
static void *gdni_get_scratch(const gdn_params *params, size_t size) {
#ifndef GDN_NO_MALLOC
    if (params->scratch == NULL) return malloc(size);
#endif
    (void)size;
    return params->scratch;
}

static void gdni_free_scratch(const gdn_params *params, void *scratch) {
#ifndef GDN_NO_MALLOC
    if (params->scratch == NULL) free(scratch);
#endif
    (void)params, (void)scratch;
}

gdn_status gdn_fused_sigmoid_gating_delta_rule_update(const gdn_params *params, gdn_error *error) {
    gdn_status status = gdn_validate(params, error);
    void *scratch;
    size_t size;
    if (status != GDN_OK) return status;
    size = gdn_scratch_size(params);
    scratch = gdni_get_scratch(params, size);
    if (scratch == NULL) return gdni_fail(error, GDN_ERROR_SCRATCH, "scratch");
    status = gdn_run_work_items(params, 0, gdn_num_work_items(params), scratch, size);
    gdni_free_scratch(params, scratch);
    return status;
}

/* ---- [PREPARED] What is computed before the recurrence, as results ----------------------------------------------- */

/* Name, input, heads, elements of a head. */
#define GDNI_RESULTS(X)                                                                                                \
    X(g, a, num_value_heads, gates)                                                                                    \
    X(decay, a, num_value_heads, gates)                                                                                \
    X(beta, b, num_value_heads, betas)                                                                                 \
    X(q, q, num_key_heads, r->head_k_dim)                                                                              \
    X(k, k, num_key_heads, r->head_k_dim)                                                                              \
    X(k_read, k_read, num_key_heads, r->head_k_dim)

typedef struct gdni_result {
    const char *name, *input;
    gdn_output to; /* with its strides */
    const gdn_tensor *from;
    ptrdiff_t heads, width;
} gdni_result;

enum {
#define GDNI_RESULT(name, from, heads, width) gdni_result_##name,
    GDNI_RESULTS(GDNI_RESULT)
#undef GDNI_RESULT
        GDNI_NUM_RESULTS
};
enum { GDNI_PREPARE_ARRAYS = (int)GDNI_NUM_ARRAYS + (int)GDNI_NUM_RESULTS };

static void gdni_list_results(const gdn_params *r, const gdn_prepared *results, gdni_result *y) {
    const ptrdiff_t gates = r->is_kda ? r->head_k_dim : 1, betas = r->beta_per_column ? r->head_v_dim : 1;
#define GDNI_RESULT(name, from, heads, width)                                                                          \
    {                                                                                                                  \
        const gdni_result x = {"results." #name, #from, results->name, &r->from, r->heads, width};                     \
        y[gdni_result_##name] = x;                                                                                     \
    }
    GDNI_RESULTS(GDNI_RESULT)
#undef GDNI_RESULT
    for (int i = 0; i < GDNI_NUM_RESULTS; i++)
        gdni_resolve_strides(r, y[i].heads, y[i].width, &y[i].to.batch_stride, &y[i].to.token_stride,
                             &y[i].to.head_stride);
}

/* The call without its recurrence. */
static gdn_params gdni_inputs_only(const gdn_params *params) {
    gdn_params p = *params;
    p.cu_seqlens.data = p.initial_state_indices.data = p.output_state_indices.data = NULL;
    p.intermediate_state_indices.data = p.retrieve_parent_token.data = NULL;
    p.ssm_state_indices.data = p.num_accepted_tokens.data = p.token_mask.data = NULL;
    p.v.data = p.erase.data = p.gv.data = p.o.data = NULL;
    p.initial_state_source.data = p.output_state_pool.data = p.intermediate_states_buffer.data = NULL;
    p.homogeneous = false;
    p.rounding &= ~(unsigned)GDN_ROUND_STATE;
    return p;
}

static gdn_status gdni_check_prepare(const gdn_params *r, const gdni_result *y, gdn_error *error) {
    gdni_array x[GDNI_PREPARE_ARRAYS];
    const bool gates = y[gdni_result_g].to.data != NULL || y[gdni_result_decay].to.data != NULL;
    GDNI_TRY(gdni_check_options(r, error));
    GDNI_REFUSE(COMBINATION, "results.g", y[gdni_result_g].to.data != NULL && r->gate_input == GDN_GATE_DECAY);
    gdni_list_arrays(r, x);
    for (int i = 0; i < GDNI_NUM_ARRAYS; i++) x[i].required = false;
    for (int i = 0; i < GDNI_NUM_RESULTS; i++) {
        const gdn_tensor to = gdni_output_tensor(&y[i].to);
        gdni_array *result = &x[GDNI_NUM_ARRAYS + i];
        *result = gdni_tensor_array(r, y[i].name, &to, r->batch_size, r->seq_len, y[i].heads, y[i].width, false);
        result->written = true;
        GDNI_REFUSE(NULL, y[i].input, r->seq_len > 0 && to.data != NULL && y[i].from->data == NULL);
    }
    GDNI_REFUSE(NULL, "A_log",
                r->seq_len > 0 && gates && gdni_raw_gates(r) && !r->has_lower_bound && r->A_log.data == NULL);
    GDNI_TRY(gdni_check_arrays(r, x, GDNI_PREPARE_ARRAYS, true, error));
    GDNI_REFUSE(OVERFLOW, "head_k_dim", gdni_scratch_bytes(r) == PTRDIFF_MAX);
    GDNI_REFUSE(SCRATCH, "scratch", r->scratch != NULL && r->scratch_size < (size_t)gdni_scratch_bytes(r));
    return GDN_OK;
}

/* Head h of a result, tokens t0 to t0 + count of a row of the batch. The plain instance: all have the same bits. */
static void gdni_prepare_f32(gdni_run *u, const gdni_result *y, int i, ptrdiff_t h, ptrdiff_t t0, ptrdiff_t count) {
    const gdn_params *r = u->r;
    const gdni_workspace *w = u->w;
    const float *const gates = r->is_kda ? w->decay : w->gate;
    const float *const rows[GDNI_NUM_RESULTS] = {gates, gates, w->beta, w->q, w->k, w->k_read};
    const bool columns = i == gdni_result_beta && r->beta_per_column;
    const bool number = i == gdni_result_beta || (i < gdni_result_beta && !r->is_kda); /* one for each token */
    const ptrdiff_t part = columns ? (ptrdiff_t)GDNI_SLICE : y->width, pitch = number ? 1 : w->kp;
    u->key_head = h;
    if (i >= gdni_result_q)
        gdni_prepare_qk_plain(u, t0, count);
    else
        gdni_prepare_gates_plain(u, h, t0, count, i == gdni_result_g);
    for (ptrdiff_t t = 0; t < count; t++)
        for (ptrdiff_t c = 0; c < y->width; c += part) {
            const gdni_strip x = {h, c, gdni_min(c + part, y->width), NULL, NULL, NULL, NULL, NULL};
            if (columns) gdni_column_betas_plain(u, &x, t0 + t, GDNI_SLICE, w->d);
            gdni_store_row_plain(gdni_written_row(&y->to, &u->s, t0 + t, h, c), y->to.dtype, x.c1 - c,
                                 columns ? w->d : rows[i] + t * pitch);
        }
}

static void gdni_prepare_f64(const gdn_params *r, const gdni_sequence *s, const gdni_result *y, int i, ptrdiff_t h,
                             ptrdiff_t t, double *row) {
    if (i >= gdni_result_q) gdni_reference_row(r, y->from, s, t, h, row);
    for (ptrdiff_t c = 0; c < y->width; c++) {
        double x;
        if (i == gdni_result_g)
            x = gdni_reference_gate(r, s, t, h, c);
        else if (i == gdni_result_decay)
            x = gdni_reference_decay(r, s, t, h, c);
        else
            x = i == gdni_result_beta ? gdni_reference_beta(r, s, t, h, c) : row[c];
        gdni_put_f64(gdni_written_row(&y->to, s, t, h, c), y->to.dtype, 0, x);
    }
}

static void gdni_prepare_all(gdn_params *r, const gdni_result *y, float *memory) {
    const bool oracle = r->compute == GDN_COMPUTE_F64;
    gdni_workspace w;
    gdni_run u;
    memset(&u, 0, sizeof u);
    w.block = 1;
    if (!oracle) gdni_layout(r, memory, &w);
    u.r = r, u.w = &w, u.s.length = r->seq_len;
    for (; u.s.batch < r->batch_size; u.s.batch++)
        for (int i = 0; i < GDNI_NUM_RESULTS; i++)
            for (ptrdiff_t h = 0; h < y[i].heads && y[i].to.data != NULL; h++)
                for (ptrdiff_t t = 0; t < r->seq_len; t += w.block)
                    if (oracle)
                        gdni_prepare_f64(r, &u.s, &y[i], i, h, t, (double *)(void *)memory);
                    else
                        gdni_prepare_f32(&u, &y[i], i, h, t, gdni_min(w.block, r->seq_len - t));
}

gdn_status gdn_prepare(const gdn_params *params, const gdn_prepared *results, gdn_error *error) {
    gdn_params r;
    gdni_result y[GDNI_NUM_RESULTS];
    void *scratch;
    gdni_fail(error, GDN_OK, "");
    if (params == NULL || results == NULL)
        return gdni_fail(error, GDN_ERROR_NULL, params == NULL ? "params" : "results");
    GDNI_TRY(gdni_check_sizes(params, error)); /* all of them, so that gdn_scratch_size() is an answer */
    r = gdni_inputs_only(params);
    r = gdni_resolve(&r);
    gdni_list_results(&r, results, y);
    GDNI_TRY(gdni_check_prepare(&r, y, error));
    scratch = gdni_get_scratch(&r, (size_t)gdni_scratch_bytes(&r));
    if (scratch == NULL) return gdni_fail(error, GDN_ERROR_SCRATCH, "scratch");
    /* What is not asked for may be absent, and is prepared along with the rest. */
    if (r.q.data == NULL) r.q = r.k.data == NULL ? r.k_read : r.k;
    if (r.k.data == NULL) r.k = r.q;
    if (r.seq_len > 0) gdni_prepare_all(&r, y, gdni_fill_in(&r, (float *)gdni_align(scratch)));
    gdni_free_scratch(&r, scratch);
    return GDN_OK;
}

/* ---- [JOINING] Segments ------------------------------------------------------------------------------------------ */

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC optimize("tree-vectorize") /* plain loops */
#endif
/* y [rows, columns] += left [rows, inner] * right [inner, columns], `width` columns of it from c on. A product of two
 * floats is exact in double, so that no compiler can change the bits by fusing it with the sum. */
GDNI_INLINE void gdni_multiply_slice(ptrdiff_t rows, ptrdiff_t inner, ptrdiff_t columns, ptrdiff_t c,
                                     const ptrdiff_t width, const gdn_dtype dtype, const void *left, const void *right,
                                     void *y) {
    GDNI_EXACT
    for (ptrdiff_t i = 0; i < rows; i++) {
        double sum[GDNI_SLICE];
        for (ptrdiff_t j = 0; j < width; j++) sum[j] = gdni_get_f64(y, dtype, i * columns + c + j);
        for (ptrdiff_t l = 0; l < inner; l++) {
            const double x = gdni_get_f64(left, dtype, i * inner + l);
            for (ptrdiff_t j = 0; j < width; j++) sum[j] += x * gdni_get_f64(right, dtype, l * columns + c + j);
        }
        for (ptrdiff_t j = 0; j < width; j++) gdni_put_f64(y, dtype, i * columns + c + j, sum[j]);
    }
}

GDNI_INLINE void gdni_multiply_add(ptrdiff_t rows, ptrdiff_t inner, ptrdiff_t columns, const gdn_dtype dtype,
                                   const void *left, const void *right, void *y) {
    ptrdiff_t c = 0;
    for (; c + GDNI_SLICE <= columns; c += GDNI_SLICE)
        gdni_multiply_slice(rows, inner, columns, c, GDNI_SLICE, dtype, left, right, y);
    gdni_multiply_slice(rows, inner, columns, c, columns - c, dtype, left, right, y);
}

gdn_status gdn_segment_apply(ptrdiff_t count, ptrdiff_t head_k_dim, ptrdiff_t head_v_dim, gdn_state_layout layout,
                             gdn_dtype dtype, const void *transition, const void *state, void *result,
                             gdn_error *error) {
    const ptrdiff_t k_dim = head_k_dim, v_dim = head_v_dim, element = gdni_dtype_size(dtype);
    const ptrdiff_t square = gdni_size_mul(k_dim, k_dim), matrix = gdni_size_mul(k_dim, v_dim);
    gdni_array x[3] = {{"transition", transition, element, {1, 1, 0}, {0, 0, 0}, square, count > 0, false, 0},
                       {"state", state, element, {1, 1, 0}, {0, 0, 0}, matrix, count > 0, false, 0},
                       {"result", result, element, {1, 1, 0}, {0, 0, 0}, matrix, count > 0, true, 0}};
    gdni_fail(error, GDN_OK, "");
    GDNI_REFUSE(SIZE, "count", count < 0);
    GDNI_REFUSE(SIZE, "head_k_dim", k_dim < 1);
    GDNI_REFUSE(SIZE, "head_v_dim", v_dim < 1);
    GDNI_REFUSE(ENUM, "layout", layout != GDN_STATE_KV && layout != GDN_STATE_VK);
    GDNI_REFUSE(ENUM, "dtype", dtype != GDN_F32 && dtype != GDN_F64);
    for (int i = 0; i < 3; i++) {
        x[i].size[2] = count, x[i].stride[2] = x[i].width;
        GDNI_TRY(gdni_check_array(&x[i], error));
    }
    GDNI_REFUSE(OVERLAP, "result", !gdni_disjoint(&x[2], &x[0]) || !gdni_disjoint(&x[2], &x[1]));
    for (ptrdiff_t n = 0; n < count; n++) {
        const char *m = (const char *)transition + n * square * element,
                   *s = (const char *)state + n * matrix * element;
        char *y = (char *)result + n * matrix * element;
        const bool vk = layout == GDN_STATE_VK; /* (M S)^T = S^T M^T */
        const ptrdiff_t rows = vk ? v_dim : k_dim, columns = vk ? k_dim : v_dim;
        if (dtype == GDN_F32)
            gdni_multiply_add(rows, k_dim, columns, GDN_F32, vk ? s : m, vk ? m : s, y);
        else
            gdni_multiply_add(rows, k_dim, columns, GDN_F64, vk ? s : m, vk ? m : s, y);
    }
    return GDN_OK;
}
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC pop_options
#endif

/* ---- [PRESETS] ----------------------------------------------------------------------------------------------- */

gdn_status gdn_preset(gdn_params *params, gdn_system system) {
    int null_slot = -1;
    if (params == NULL) return GDN_ERROR_NULL;
    if ((int)system < 1 || system >= GDN_NUM_SYSTEMS) return GDN_ERROR_ENUM;
#define GDNI_PRESET(code, name, state, heads, gate, beta, form, eps, pad, null)                                        \
    if (system == GDN_SYSTEM_##code) {                                                                                 \
        params->state_layout = GDN_STATE_##state, params->head_map = GDN_HEADS_##heads;                                \
        params->gate_input = GDN_GATE_##gate, params->beta_input = GDN_BETA_##beta;                                    \
        params->l2norm_form = GDN_L2NORM_##form, params->l2norm_eps = eps;                                             \
        params->padding = GDN_PADDING_##pad, null_slot = null;                                                         \
    }
    GDN_SYSTEMS(GDNI_PRESET)
#undef GDNI_PRESET
    params->has_null_slot = null_slot >= 0;
    params->null_slot = params->has_null_slot ? null_slot : 0;
    return GDN_OK;
}

/* ---- [NAMES] ------------------------------------------------------------------------------------------------- */

/* A function from an enumeration to what its list says of each of `count` codes, the first of which is `first`. */
#define GDNI_TEXTS(function, type, first, count, LIST, TEXT)                                                           \
    const char *function(type code) {                                                                                  \
        static const char *const texts[] = {LIST(TEXT)};                                                               \
        return (int)code >= first && (int)code < (int)count ? texts[(int)code - first] : "?";                          \
    }
#define GDNI_FIRST_OF(code, ...) #code,
#define GDNI_SECOND_OF(code, ...) GDNI_SECOND_OF_(__VA_ARGS__, 0)
#define GDNI_SECOND_OF_(text, ...) text,
GDNI_TEXTS(gdn_status_name, gdn_status, 0, GDN_NUM_STATUSES, GDN_STATUSES, GDNI_FIRST_OF)
GDNI_TEXTS(gdn_status_text, gdn_status, 0, GDN_NUM_STATUSES, GDN_STATUSES, GDNI_SECOND_OF)
GDNI_TEXTS(gdn_system_name, gdn_system, 1, GDN_NUM_SYSTEMS, GDN_SYSTEMS, GDNI_SECOND_OF)
GDNI_TEXTS(gdn_isa_name, gdn_isa, 0, GDN_NUM_ISAS, GDN_ISAS, GDNI_SECOND_OF)
#undef GDNI_FIRST_OF
#undef GDNI_SECOND_OF
#undef GDNI_SECOND_OF_
#undef GDNI_TEXTS

int gdn_version(void) { return GDN_VERSION; }

#ifdef __cplusplus
}
#endif
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC pop_options
#endif
#endif /* GDN_IMPLEMENTATION */

/* ---- [KERNEL] The float32 computation, once for every instruction set ----------------------------------- */

/* Read [REFERENCE] first: this computes the same. Compiled once for each block of [TARGETS]. The names of this section
 * carry the target's suffix, by a define above each that is the same every time. */
#ifdef GDNI_KERNEL

#if !defined(GDNI_TARGET) || !defined(GDNI_LANES) || !defined(GDNI_STREAM) || !defined(GDNI_VK_ROWS) ||                \
    !defined(GDNI_SET1) || !defined(GDNI_FMA) || !defined(GDNI_DSET1) || !defined(GDNI_DMIN) || !defined(GDNI_DMAX)
#error "gdn_varlen.h: a block of [TARGETS] lacks something that [KERNEL] needs"
#endif

#define GDNI_PASTE2(x, y) x##y
#define GDNI_PASTE(x, y) GDNI_PASTE2(x, y)
#define GDNI_NAME(x) GDNI_PASTE(gdni_##x##_, GDNI_TARGET)

/* Vectors: floats, and the words that hold their bits; halves of them; half as many doubles. */
#define gdni_vec GDNI_NAME(vec)
#define gdni_word GDNI_NAME(word)
#define gdni_half GDNI_NAME(half)
#define gdni_half_vec GDNI_NAME(half_vec)
#define gdni_half_word GDNI_NAME(half_word)
#define gdni_dvec GDNI_NAME(dvec)
#define gdni_dword GDNI_NAME(dword)
#if GDNI_LANES == 1
typedef float gdni_vec, gdni_half_vec;
typedef uint32_t gdni_word, gdni_half_word;
typedef double gdni_dvec;
typedef uint64_t gdni_dword;
#define GDNI_WHERE(condition) ((condition) ? ~(gdni_word)0 : (gdni_word)0)
#define GDNI_DWHERE(condition) ((condition) ? ~(gdni_dword)0 : (gdni_dword)0)
#define GDNI_CONVERT(x, type) ((type)(x))
#define GDNI_WORDS(x) gdni_bits_of(x)
#define GDNI_FLOATS(bits) gdni_float_of(bits)
#else
typedef float gdni_vec __attribute__((vector_size(4 * GDNI_LANES)));
typedef uint32_t gdni_word __attribute__((vector_size(4 * GDNI_LANES)));
typedef uint16_t gdni_half __attribute__((vector_size(2 * GDNI_LANES)));
typedef float gdni_half_vec __attribute__((vector_size(2 * GDNI_LANES)));
typedef uint32_t gdni_half_word __attribute__((vector_size(2 * GDNI_LANES)));
typedef double gdni_dvec __attribute__((vector_size(4 * GDNI_LANES)));
typedef uint64_t gdni_dword __attribute__((vector_size(4 * GDNI_LANES)));
#define GDNI_WHERE(condition) ((gdni_word)(condition))
#define GDNI_DWHERE(condition) ((gdni_dword)(condition))
#define GDNI_CONVERT(x, type) __builtin_convertvector(x, type)
#define GDNI_WORDS(x) ((gdni_word)(x)) /* the same bits */
#define GDNI_FLOATS(bits) ((gdni_vec)(bits))
#endif
#ifndef GDNI_TO_WORDS
#define GDNI_TO_WORDS(h) GDNI_CONVERT(h, gdni_word)
#define GDNI_TO_HALVES(w) GDNI_CONVERT(w, gdni_half)
#endif
#ifndef GDNI_TO_DOUBLES
#define GDNI_TO_DOUBLES(x) GDNI_CONVERT(x, gdni_dvec)
#endif
#define gdni_dlanes GDNI_NAME(dlanes)
#define gdni_parts GDNI_NAME(parts) /* vectors of sixteen partial sums */
enum { gdni_dlanes = GDNI_LANES == 1 ? 1 : GDNI_LANES / 2, gdni_parts = GDNI_LANES16 / GDNI_LANES };

#define gdni_load GDNI_NAME(load)
GDNI_INLINE gdni_vec gdni_load(const float *p) {
    gdni_vec x;
    memcpy(&x, p, sizeof x);
    return x;
}
#define gdni_store GDNI_NAME(store)
GDNI_INLINE void gdni_store(float *p, gdni_vec x) { memcpy(p, &x, sizeof x); }
#define gdni_set1 GDNI_NAME(set1)
GDNI_INLINE gdni_vec gdni_set1(float x) { return GDNI_SET1(x); }
#define gdni_fma GDNI_NAME(fma)
GDNI_INLINE gdni_vec gdni_fma(gdni_vec x, gdni_vec y, gdni_vec z) { return GDNI_FMA(x, y, z); }
#define gdni_mul GDNI_NAME(mul)
GDNI_INLINE gdni_vec gdni_mul(gdni_vec x, gdni_vec y) {
    GDNI_EXACT
    return x * y;
}

/* ---- exp, softplus and sigmoid, in double: the results, rounded to float once, are within 0.61 units in the last
 * place over every float. No fused multiply-adds: not every machine has them in double. Polynomials: Remez fits. ----
 */

#define gdni_load_double GDNI_NAME(load_double)
GDNI_INLINE gdni_dvec gdni_load_double(const float *p) {
    gdni_half_vec x;
    memcpy(&x, p, sizeof x);
    return GDNI_TO_DOUBLES(x);
}
#define gdni_store_double GDNI_NAME(store_double)
GDNI_INLINE void gdni_store_double(float *p, gdni_dvec x) {
    const gdni_half_vec y = GDNI_CONVERT(x, gdni_half_vec);
    memcpy(p, &y, sizeof y);
}
#define gdni_dset1 GDNI_NAME(dset1)
GDNI_INLINE gdni_dvec gdni_dset1(double x) { return GDNI_DSET1(x); }
#define gdni_dmul GDNI_NAME(dmul)
GDNI_INLINE gdni_dvec gdni_dmul(gdni_dvec x, gdni_dvec y) {
    GDNI_EXACT
    gdni_dvec z = x * y;
    GDNI_ROUNDED(z);
    return z;
}

/* x where a <= b, else y. */
#define gdni_dselect GDNI_NAME(dselect)
GDNI_INLINE gdni_dvec gdni_dselect(gdni_dvec a, gdni_dvec b, gdni_dvec x, gdni_dvec y) {
    const gdni_dword where = GDNI_DWHERE(a <= b);
    gdni_dword xs, ys;
    memcpy(&xs, &x, sizeof xs);
    memcpy(&ys, &y, sizeof ys);
    xs = (xs & where) | (ys & ~where);
    memcpy(&x, &xs, sizeof x);
    return x;
}

/* c[0] + c[1] x + ..., in pairs: half the latency of one term after the other. */
#define gdni_pair GDNI_NAME(pair)
GDNI_INLINE gdni_dvec gdni_pair(const double *c, gdni_dvec x) {
    GDNI_EXACT
    return gdni_dset1(c[0]) + gdni_dmul(gdni_dset1(c[1]), x);
}
#define gdni_cubic GDNI_NAME(cubic)
GDNI_INLINE gdni_dvec gdni_cubic(const double *c, gdni_dvec x, gdni_dvec x2) {
    GDNI_EXACT
    return gdni_pair(c, x) + gdni_dmul(x2, gdni_pair(c + 2, x));
}

/* 2^n 2^f, n = x log2(e) rounded to an integer, which the low bits of n + 1.5 * 2^52 hold. A float's exponential is 0
 * or infinite well before the clamp; NaN passes through it. */
#define gdni_exp GDNI_NAME(exp)
GDNI_INLINE gdni_dvec gdni_exp(gdni_dvec x) {
    GDNI_EXACT
    static const double c[] = {1.0000000005541647,   0.6931472057371958,    0.24022646890645522,   0.05550328777105325,
                               0.009618488956331182, 0.0013399931177239738, 0.00015345812161311629};
    const gdni_dvec magic = gdni_dset1(6755399441055744.0), low = GDNI_DMIN(gdni_dset1(150.0), x);
    const gdni_dvec y = GDNI_DMAX(gdni_dset1(-150.0), low), z = gdni_dmul(y, gdni_dset1(1.4426950408889634));
    const gdni_dvec n = z + magic, f = z - (n - magic), f2 = gdni_dmul(f, f);
    const gdni_dvec high = gdni_pair(c + 4, f) + gdni_dmul(f2, gdni_dset1(c[6]));
    const gdni_dvec p = gdni_cubic(c, f, f2) + gdni_dmul(gdni_dmul(f2, f2), high);
    gdni_dword bits;
    gdni_dvec power;
    memcpy(&bits, &n, sizeof bits);
    bits = (bits + 1023u) << 52;
    memcpy(&power, &bits, sizeof power);
    return gdni_dmul(p, power);
}

#define gdni_exp_all GDNI_NAME(exp_all)
static void gdni_exp_all(gdni_dvec *x, ptrdiff_t count) {
    for (ptrdiff_t i = 0; i < count; i++) x[i] = gdni_exp(x[i]);
}

/* log(1 + exp(x)) = max(x, 0) + log1p(u), u = exp(-|x|). */
#define gdni_minus_abs GDNI_NAME(minus_abs)
GDNI_INLINE gdni_dvec gdni_minus_abs(gdni_dvec x) {
    GDNI_EXACT
    const gdni_dvec minus = gdni_dset1(0.0) - x;
    return GDNI_DMIN(minus, x);
}
#define gdni_softplus GDNI_NAME(softplus)
GDNI_INLINE gdni_dvec gdni_softplus(gdni_dvec x, gdni_dvec u) {
    GDNI_EXACT
    static const double c[] = {0.9999999952873115,   -0.49999902420063846,  0.33329962347703024, -0.24954133016942198,
                               0.1967593625360775,   -0.15305584513080975,  0.10603642016551354, -0.05695941325358193,
                               0.019851400494396657, -0.0032440119125188237};
    const gdni_dvec zero = gdni_dset1(0.0), u2 = gdni_dmul(u, u), u4 = gdni_dmul(u2, u2);
    const gdni_dvec high = gdni_cubic(c + 4, u, u2) + gdni_dmul(u4, gdni_pair(c + 8, u));
    return GDNI_DMAX(zero, x) + gdni_dmul(u, gdni_cubic(c, u, u2) + gdni_dmul(u4, high));
}

/* 1 / (1 + u), u = exp(-x). */
#define gdni_sigmoid GDNI_NAME(sigmoid)
GDNI_INLINE gdni_dvec gdni_sigmoid(gdni_dvec u) {
    GDNI_EXACT
    const gdni_dvec one = gdni_dset1(1.0);
    return one / (one + u);
}

/* ---- Elements: the same bit patterns as gdni_get_f32 and gdni_put_f32 ---- */

/* The bfloat16 is the upper half of the word. */
#define gdni_round_bf16 GDNI_NAME(round_bf16)
GDNI_INLINE gdni_word gdni_round_bf16(gdni_vec x) {
#ifdef GDNI_ROUND_BF16
    return (gdni_word)GDNI_ROUND_BF16(x);
#else
    const gdni_word bits = GDNI_WORDS(x);
    return (bits + 0x7fffu + (bits >> 16 & 1u)) | (GDNI_WHERE(x != x) & 0x7fc00000u);
#endif
}

#define gdni_load_vec GDNI_NAME(load_vec)
GDNI_INLINE gdni_vec gdni_load_vec(const char *data, const gdn_dtype dtype) {
    float x[GDNI_LANES];
#if GDNI_LANES > 1
    gdni_half h;
    if (dtype == GDN_BF16 || dtype == GDN_F16) memcpy(&h, data, sizeof h);
    if (dtype == GDN_F32) return gdni_load((const float *)(const void *)data);
    if (dtype == GDN_BF16) return GDNI_FLOATS(GDNI_TO_WORDS(h) << 16);
#ifdef GDNI_F16_TO_F32
    if (dtype == GDN_F16) return GDNI_F16_TO_F32(h);
#endif
#endif
    for (int i = 0; i < GDNI_LANES; i++) x[i] = gdni_get_f32(data, dtype, i);
    return gdni_load(x);
}

#define gdni_store_vec GDNI_NAME(store_vec)
GDNI_INLINE void gdni_store_vec(char *data, const gdn_dtype dtype, gdni_vec x) {
    if (dtype == GDN_F32) {
        memcpy(data, &x, sizeof x);
#if GDNI_LANES > 1
    } else if (dtype == GDN_BF16) {
        const gdni_half h = GDNI_TO_HALVES(gdni_round_bf16(x) >> 16);
        memcpy(data, &h, sizeof h);
#ifdef GDNI_F32_TO_F16
    } else if (dtype == GDN_F16) {
        const gdni_half h = (gdni_half)GDNI_F32_TO_F16(x);
        memcpy(data, &h, sizeof h);
#endif
#endif
    } else {
        float y[GDNI_LANES];
        gdni_store(y, x);
        for (int i = 0; i < GDNI_LANES; i++) gdni_put_f32(data, dtype, i, y[i]);
    }
}

/* Two neighbouring vectors of a row of a state. bfloat16 needs no shuffles where the even elements make one vector and
 * the odd ones the other: so the floats that meet them are dealt, too. */
#define GDNI_DEALT(dtype) (GDNI_LANES > 1 && (dtype) == GDN_BF16)
#define gdni_load_pair GDNI_NAME(load_pair)
GDNI_INLINE void gdni_load_pair(const char *row, const gdn_dtype dtype, gdni_vec *x) {
    if (GDNI_DEALT(dtype)) {
        gdni_word pairs;
        memcpy(&pairs, row, sizeof pairs);
        x[0] = GDNI_FLOATS(pairs << 16);
        x[1] = GDNI_FLOATS(pairs & 0xffff0000u);
        return;
    }
    x[0] = gdni_load_vec(row, dtype);
    x[1] = gdni_load_vec(row + GDNI_LANES * gdni_dtype_size(dtype), dtype);
}

#define gdni_store_pair GDNI_NAME(store_pair)
GDNI_INLINE void gdni_store_pair(char *row, const gdn_dtype dtype, const gdni_vec *x) {
    if (GDNI_DEALT(dtype)) {
        const gdni_word pairs = gdni_round_bf16(x[0]) >> 16 | (gdni_round_bf16(x[1]) & 0xffff0000u);
        memcpy(row, &pairs, sizeof pairs);
        return;
    }
    gdni_store_vec(row, dtype, x[0]);
    gdni_store_vec(row + GDNI_LANES * gdni_dtype_size(dtype), dtype, x[1]);
}

/* Floats in order to a pair as a row of `dtype` has it, and back. */
#define gdni_deal GDNI_NAME(deal)
GDNI_INLINE void gdni_deal(const float *from, const gdn_dtype dtype, gdni_vec *x) {
    for (int i = 0; i < 2 && GDNI_DEALT(dtype); i++) {
        gdni_dword pairs;
        memcpy(&pairs, from + i * GDNI_LANES, sizeof pairs);
        const gdni_half_word even = GDNI_CONVERT(pairs, gdni_half_word),
                             odd = GDNI_CONVERT(pairs >> 32, gdni_half_word);
        memcpy((char *)&x[0] + i * (int)sizeof even, &even, sizeof even);
        memcpy((char *)&x[1] + i * (int)sizeof odd, &odd, sizeof odd);
    }
    if (GDNI_DEALT(dtype)) return;
    x[0] = gdni_load(from), x[1] = gdni_load(from + GDNI_LANES);
}

#define gdni_undeal GDNI_NAME(undeal)
GDNI_INLINE void gdni_undeal(const gdni_vec *x, const gdn_dtype dtype, float *to) {
    for (int i = 0; i < 2 && GDNI_DEALT(dtype); i++) {
        gdni_half_word even, odd;
        memcpy(&even, (const char *)&x[0] + i * (int)sizeof even, sizeof even);
        memcpy(&odd, (const char *)&x[1] + i * (int)sizeof odd, sizeof odd);
        const gdni_dword pairs = GDNI_CONVERT(even, gdni_dword) | GDNI_CONVERT(odd, gdni_dword) << 32;
        memcpy(to + i * GDNI_LANES, &pairs, sizeof pairs);
    }
    if (GDNI_DEALT(dtype)) return;
    gdni_store(to, x[0]), gdni_store(to + GDNI_LANES, x[1]);
}

/* A row of `count` elements to floats, with zeros up to `padded` (a multiple of the lanes), and back. */
#define gdni_load_row GDNI_NAME(load_row)
static void gdni_load_row(const void *row, gdn_dtype dtype, ptrdiff_t count, ptrdiff_t padded, float *to) {
    const char *from = (const char *)row;
    ptrdiff_t i = 0;
#define GDNI_LOAD_ROW(type)                                                                                            \
    for (; i + GDNI_LANES <= count; i += GDNI_LANES)                                                                   \
        gdni_store(to + i, gdni_load_vec(from + i * gdni_dtype_size(type), type));
    GDNI_BY_DTYPE(dtype, GDNI_LOAD_ROW)
#undef GDNI_LOAD_ROW
    for (; i < padded; i++) to[i] = i < count ? gdni_get_f32(from, dtype, i) : 0.0f;
}

#define gdni_store_row GDNI_NAME(store_row)
static void gdni_store_row(void *row, gdn_dtype dtype, ptrdiff_t count, const float *from) {
    char *to = (char *)row;
    ptrdiff_t i = 0;
#define GDNI_STORE_ROW(type)                                                                                           \
    for (; i + GDNI_LANES <= count; i += GDNI_LANES)                                                                   \
        gdni_store_vec(to + i * gdni_dtype_size(type), type, gdni_load(from + i));
    GDNI_BY_DTYPE(dtype, GDNI_STORE_ROW)
#undef GDNI_STORE_ROW
    for (; i < count; i++) gdni_put_f32(to, dtype, i, from[i]);
}

/* ---- Once per token and key head: q and k as floats, normalised ---- */

/* Folded as l + (l+8), l + (l+4), l + (l+2), l + (l+1). */
#define gdni_fold GDNI_NAME(fold)
GDNI_INLINE void gdni_fold(gdni_vec (*x)[gdni_parts], float *sums) {
#ifdef GDNI_FOLD
    GDNI_EXACT
    GDNI_FOLD(x, sums);
#else
    for (int i = 0; i < 4; i++) {
        float y[GDNI_LANES16];
        memcpy(y, x[i], sizeof y);
        for (int width = 8; width > 0; width /= 2)
            for (int l = 0; l < width; l++) y[l] = y[l] + y[l + width];
        sums[i] = y[0];
    }
#endif
}

/* The same of one sum, in double. */
#define gdni_fold16 GDNI_NAME(fold16)
GDNI_INLINE double gdni_fold16(const float *x) {
    GDNI_EXACT
    double y[8];
    for (int l = 0; l < 8; l += gdni_dlanes) {
        const gdni_dvec sum = gdni_load_double(x + l) + gdni_load_double(x + l + 8);
        memcpy(y + l, &sum, sizeof sum);
    }
    return ((y[0] + y[4]) + (y[2] + y[6])) + ((y[1] + y[5]) + (y[3] + y[7]));
}

/* Four sums over K at once: x[i].y[i]. */
#define gdni_dot4 GDNI_NAME(dot4)
static void gdni_dot4(const float *const *x, const float *const *y, ptrdiff_t kp, double *sums) {
    gdni_vec part[4][gdni_parts];
    GDNI_UNROLL
    for (int j = 0; j < 4; j++) {
        GDNI_UNROLL
        for (int p = 0; p < gdni_parts; p++) part[j][p] = gdni_set1(0.0f);
    }
    for (ptrdiff_t i = 0; i < kp; i += GDNI_LANES16) {
        GDNI_UNROLL
        for (int j = 0; j < 4; j++) {
            GDNI_UNROLL
            for (int p = 0; p < gdni_parts; p++) {
                const ptrdiff_t at = i + p * GDNI_LANES;
                part[j][p] = gdni_fma(gdni_load(x[j] + at), gdni_load(y[j] + at), part[j][p]);
            }
        }
    }
    for (int j = 0; j < 4; j++) {
        float partial[GDNI_LANES16];
        memcpy(partial, part[j], sizeof partial);
        sums[j] = gdni_fold16(partial);
    }
}

/* x * factor, with the factor as the sum of two floats. */
#define gdni_scale_row GDNI_NAME(scale_row)
static void gdni_scale_row(float *x, double factor, ptrdiff_t kp) {
    GDNI_EXACT
    GDNI_ROUNDED(factor);
    const float high = factor > (double)FLT_MAX ? FLT_MAX : (float)factor;
    const float low = factor > (double)FLT_MAX ? 0.0f : (float)(factor - (double)high);
    for (ptrdiff_t i = 0; i < kp; i += GDNI_LANES) {
        const gdni_vec y = gdni_load(x + i);
        gdni_store(x + i, gdni_fma(y, gdni_set1(high), gdni_mul(y, gdni_set1(low))));
    }
}

/* A row as a tensor of that dtype would hold it; `padded` is a multiple of the lanes. */
#define gdni_round_row GDNI_NAME(round_row)
static void gdni_round_row(float *x, gdn_dtype dtype, ptrdiff_t padded) {
    char y[4 * GDNI_LANES];
#define GDNI_ROUND_ROW(type)                                                                                           \
    for (ptrdiff_t i = 0; i < padded; i += GDNI_LANES) {                                                               \
        gdni_store_vec(y, type, gdni_load(x + i));                                                                     \
        gdni_store(x + i, gdni_load_vec(y, type));                                                                     \
    }
    GDNI_BY_DTYPE(dtype, GDNI_ROUND_ROW)
#undef GDNI_ROUND_ROW
}

/* A row of q, k or k_read times its norm's factor, and q's times the scale: at once, unless it is rounded between. */
#define gdni_normalise_row GDNI_NAME(normalise_row)
static void gdni_normalise_row(const gdn_params *r, float *x, gdn_dtype dtype, bool is_q, double squares,
                               ptrdiff_t kp) {
    const bool norm = r->use_qk_l2norm_in_kernel, round_q = (r->rounding & GDN_ROUND_SCALED_Q) != 0;
    const bool round_x = (r->rounding & GDN_ROUND_QK) != 0 && !(is_q && round_q);
    double factor = is_q && !round_x ? r->scale : 1.0;
    if (norm) factor *= gdni_norm_factor(r, squares);
    if (norm || (is_q && !round_x)) gdni_scale_row(x, factor, kp);
    if (round_x) gdni_round_row(x, dtype, kp);
    if (is_q && round_x) gdni_scale_row(x, r->scale, kp);
    if (is_q && round_q) gdni_round_row(x, dtype, kp);
}

/* Tokens t0 to t0 + count: q, k and k_read, four rows at a time. */
#define gdni_prepare_qk GDNI_NAME(prepare_qk)
static void gdni_prepare_qk(const gdni_run *u, ptrdiff_t t0, ptrdiff_t count) {
    const gdn_params *r = u->r;
    const gdni_workspace *w = u->w;
    const gdn_tensor *const x[] = {&r->q, &r->k, &r->k_read};
    float *const to[] = {w->q, w->k, w->k_read};
    const ptrdiff_t kp = w->kp, num = r->k_read.data == NULL ? 2 : 3, total = num * count;
    for (ptrdiff_t i = 0; i < total; i++)
        gdni_load_row(gdni_row(x[i % num], &u->s, t0 + i / num, u->key_head), x[i % num]->dtype, r->head_k_dim, kp,
                      to[i % num] + i / num * kp);
    for (ptrdiff_t i = 0; i < total; i += 4) {
        const float *rows[4];
        double squares[4] = {0, 0, 0, 0};
        for (ptrdiff_t j = 0; j < 4; j++) {
            const ptrdiff_t at = gdni_min(i + j, total - 1);
            rows[j] = to[at % num] + at / num * kp;
        }
        if (r->use_qk_l2norm_in_kernel) gdni_dot4(rows, rows, kp, squares);
        for (ptrdiff_t j = i; j < gdni_min(i + 4, total); j++)
            gdni_normalise_row(r, to[j % num] + j / num * kp, x[j % num]->dtype, j % num == 0, squares[j - i], kp);
    }
}

/* Their q.k, which chunks have among their scores. */
#define gdni_prepare_dots GDNI_NAME(prepare_dots)
static void gdni_prepare_dots(const gdni_workspace *w, ptrdiff_t count) {
    const ptrdiff_t kp = w->kp, last = count - 1;
    for (ptrdiff_t t = 0; t < count; t += 4) {
        const float *q[4], *k[4];
        double qk[4];
        for (int j = 0; j < 4; j++) {
            q[j] = w->q + gdni_min(t + j, last) * kp;
            k[j] = w->k + gdni_min(t + j, last) * kp;
        }
        gdni_dot4(q, k, kp, qk);
        for (int j = 0; j < 4; j++) w->qk[t + j] = (float)qk[j];
    }
}

/* ---- Once per token and value head: decay and beta ---- */

/* exp(A_log) of a head. */
#define gdni_exp_A_log GDNI_NAME(exp_A_log)
static double gdni_exp_A_log(const gdn_params *r, ptrdiff_t hv) {
    const float A_log =
        r->A_log.data == NULL ? 0.0f : gdni_get_f32(r->A_log.data, r->A_log.dtype, hv * r->A_log.head_stride);
    const gdni_dvec rate = gdni_exp(gdni_dset1((double)A_log));
    double first;
    memcpy(&first, &rate, sizeof first);
    return first;
}

/* In place, for `count` gates: their decays or, `as_log`, the logarithms of those. Raw ones are x = a; bias is one
 * vector for all of them (bias_step 0) or as long as x (1). Some at a time, step by step: a processor overlaps short
 * loops, not long chains. */
#define gdni_decays GDNI_NAME(decays)
static void gdni_decays(const gdn_params *r, gdn_gate_input input, double exp_A_log, const float *bias,
                        ptrdiff_t bias_step, bool as_log, ptrdiff_t count, float *x) {
    GDNI_EXACT
    const gdni_dvec rate = gdni_dset1(exp_A_log), beta = gdni_dset1(r->softplus_beta), zero = gdni_dset1(0.0);
    const gdni_dvec inverse = gdni_dset1(-1.0 / r->softplus_beta), threshold = gdni_dset1(r->softplus_threshold);
    const gdni_dvec lower_bound = gdni_dset1(r->lower_bound);
    if (input == GDN_GATE_DECAY) return;
    for (ptrdiff_t first = 0; first < count; first += GDNI_GATES, x += GDNI_GATES, bias += GDNI_GATES * bias_step) {
        const ptrdiff_t n = (gdni_min(GDNI_GATES, count - first) - 1) / gdni_dlanes + 1, step = gdni_dlanes * bias_step;
        gdni_dvec y[(int)GDNI_GATES / (int)gdni_dlanes], g[(int)GDNI_GATES / (int)gdni_dlanes];
        for (ptrdiff_t i = 0; i < n; i++) g[i] = gdni_load_double(x + i * gdni_dlanes);
        if (input == GDN_GATE_RAW) {
            for (ptrdiff_t i = 0; i < n; i++) g[i] = g[i] + gdni_load_double(bias + i * step);
            if (r->has_lower_bound) {
                for (ptrdiff_t i = 0; i < n; i++) g[i] = zero - gdni_dmul(rate, g[i]);
                gdni_exp_all(g, n);
                for (ptrdiff_t i = 0; i < n; i++) g[i] = gdni_dmul(lower_bound, gdni_sigmoid(g[i]));
            } else {
                for (ptrdiff_t i = 0; i < n; i++) y[i] = gdni_dmul(beta, g[i]), g[i] = gdni_minus_abs(y[i]);
                gdni_exp_all(g, n);
                for (ptrdiff_t i = 0; i < n; i++) {
                    const gdni_dvec curved = gdni_dselect(y[i], threshold, gdni_softplus(y[i], g[i]), y[i]);
                    g[i] = gdni_dmul(rate, gdni_dmul(inverse, curved));
                }
            }
        }
        if (!as_log) gdni_exp_all(g, n);
        for (ptrdiff_t i = 0; i < n; i++) gdni_store_double(x + i * gdni_dlanes, g[i]);
    }
}

#define gdni_betas GDNI_NAME(betas)
static void gdni_betas(const gdn_params *r, ptrdiff_t count, float *x) {
    GDNI_EXACT
    const bool rounded = (r->rounding & GDN_ROUND_BETA) != 0 && r->b.data != NULL; /* before it is doubled */
    const gdni_dvec factor = gdni_dset1(r->allow_neg_eigval && !rounded ? 2.0 : 1.0), zero = gdni_dset1(0.0);
    const gdni_vec twice = gdni_set1(r->allow_neg_eigval ? 2.0f : 1.0f);
    switch (r->b.data == NULL ? GDN_BETA_GIVEN : r->beta_input) {
    case GDN_BETA_RAW:
        for (ptrdiff_t i = 0; i < count; i += gdni_dlanes)
            gdni_store_double(x + i, gdni_dmul(factor, gdni_sigmoid(gdni_exp(zero - gdni_load_double(x + i)))));
        break;
    case GDN_BETA_GIVEN:
        for (ptrdiff_t i = 0; i < count; i += gdni_dlanes)
            gdni_store_double(x + i, gdni_dmul(factor, gdni_load_double(x + i)));
        break;
    }
    if (rounded) gdni_round_row(x, r->b.dtype, gdni_round_up(count, GDNI_LANES));
    for (ptrdiff_t i = 0; i < count && rounded; i += GDNI_LANES) gdni_store(x + i, gdni_mul(twice, gdni_load(x + i)));
}

/* Betas of the columns of a strip, for a token of its sequence. */
#define gdni_column_betas GDNI_NAME(column_betas)
static void gdni_column_betas(const gdni_run *u, const gdni_strip *x, ptrdiff_t t, ptrdiff_t padded, float *to) {
    const gdn_tensor *b = &u->r->b;
    const char *row = (const char *)gdni_row(b, &u->s, t, x->value_head) + x->c0 * gdni_dtype_size(b->dtype);
    gdni_load_row(row, b->dtype, x->c1 - x->c0, padded, to);
    gdni_betas(u->r, padded, to);
}

#define gdni_prepare_gates GDNI_NAME(prepare_gates)
static void gdni_prepare_gates(const gdni_run *u, ptrdiff_t hv, ptrdiff_t t0, ptrdiff_t count, bool as_log) {
    const gdn_params *r = u->r;
    const gdni_workspace *w = u->w;
    const ptrdiff_t k_dim = r->head_k_dim, kp = w->kp,
                    bias_at = r->dt_bias.data == NULL ? 0 : hv * r->dt_bias.head_stride;
    const bool raw = gdni_raw_gates(r);
    const double rate = raw ? gdni_exp_A_log(r, hv) : 0.0;
    if (!r->beta_per_column) {
        for (ptrdiff_t t = 0; t < count; t++)
            w->beta[t] = r->b.data == NULL ? 1.0f : gdni_get_f32(gdni_row(&r->b, &u->s, t0 + t, hv), r->b.dtype, 0);
        gdni_betas(r, count, w->beta);
    }
    if (!r->is_kda) {
        for (ptrdiff_t i = 0; i < GDNI_LANES16 && raw; i++)
            w->bias[i] = r->dt_bias.data == NULL ? 0.0f : gdni_get_f32(r->dt_bias.data, r->dt_bias.dtype, bias_at);
        for (ptrdiff_t t = 0; t < count; t++)
            w->gate[t] = gdni_get_f32(gdni_row(&r->a, &u->s, t0 + t, hv), r->a.dtype, 0);
        gdni_decays(r, r->gate_input, rate, w->bias, 0, as_log, count, w->gate);
        return;
    }
    if (raw && r->dt_bias.data == NULL)
        memset(w->bias, 0, (size_t)kp * sizeof(float));
    else if (raw)
        gdni_load_row((const char *)r->dt_bias.data + bias_at * gdni_dtype_size(r->dt_bias.dtype), r->dt_bias.dtype,
                      k_dim, kp, w->bias);
    for (ptrdiff_t t = 0; t < count; t++) {
        float *decay = w->decay + t * kp;
        gdni_load_row(gdni_row(&r->a, &u->s, t0 + t, hv), r->a.dtype, k_dim, kp, decay);
        gdni_decays(r, r->gate_input, rate, w->bias, 1, as_log, kp, decay);
    }
}

/* What reads the state, in a value head. */
#define gdni_prepare_reads GDNI_NAME(prepare_reads)
static void gdni_prepare_reads(const gdni_run *u, ptrdiff_t hv, ptrdiff_t t0, ptrdiff_t count) {
    const gdn_tensor *erase = &u->r->erase;
    const ptrdiff_t kp = u->w->kp;
    for (ptrdiff_t t = 0; t < count && erase->data != NULL; t++) {
        float *row = u->w->reads + t * kp;
        gdni_load_row(gdni_row(erase, &u->s, t0 + t, hv), erase->dtype, u->r->head_k_dim, kp, row);
        for (ptrdiff_t i = 0; i < kp; i += GDNI_LANES)
            gdni_store(row + i, gdni_mul(gdni_load(row + i), gdni_load(u->w->k_read + t * kp + i)));
    }
}

/* KDA: the decays of a token go into its k and q, for the sums over the state before it. */
#define gdni_fold_decays GDNI_NAME(fold_decays)
static void gdni_fold_decays(const gdni_run *u, ptrdiff_t count) {
    const gdni_workspace *w = u->w;
    for (ptrdiff_t i = 0; i < count * w->kp && u->r->is_kda; i += GDNI_LANES) {
        const gdni_vec decay = gdni_load(w->decay + i);
        gdni_store(w->kd + i, gdni_mul(decay, gdni_load(w->reads + i)));
        gdni_store(w->qd + i, gdni_mul(decay, gdni_load(w->q + i)));
    }
}

/* Floats in whole tiles need not be copied. */
#define gdni_in_place GDNI_NAME(in_place)
static bool gdni_in_place(const gdni_strip *x, gdn_dtype dtype) {
    return dtype == GDN_F32 && (x->c1 - x->c0) % (2 * GDNI_SLICE) == 0;
}

/* v is gathered and o scattered for all strips of a run at once, where nothing waits for them. */
#define gdni_gather_v GDNI_NAME(gather_v)
static void gdni_gather_v(const gdni_run *u, ptrdiff_t t0, ptrdiff_t count, bool chunk) {
    const gdn_tensor *v = &u->r->v;
    for (ptrdiff_t t = 0; t < count; t++)
        for (const gdni_strip *x = u->strips; x < u->strips + u->num_strips; x++) {
            if (chunk && gdni_in_place(x, v->dtype)) continue;
            gdni_load_row((const char *)gdni_row(v, &u->s, t0 + t, x->value_head) + x->c0 * gdni_dtype_size(v->dtype),
                          v->dtype, x->c1 - x->c0, gdni_round_up(x->c1 - x->c0, GDNI_SLICE), x->v + t * u->w->columns);
        }
}

#define gdni_scatter_o GDNI_NAME(scatter_o)
static void gdni_scatter_o(const gdni_run *u, ptrdiff_t t0, ptrdiff_t count, bool chunk) {
    for (ptrdiff_t t = 0; t < count; t++)
        for (const gdni_strip *x = u->strips; x < u->strips + u->num_strips; x++) {
            if ((chunk && gdni_in_place(x, u->r->o.dtype)) || gdni_masked(u->r, &u->s, t0 + t)) continue;
            gdni_store_row(gdni_output_row(u->r, &u->s, t0 + t, x->value_head, x->c0), u->r->o.dtype, x->c1 - x->c0,
                           x->o + t * u->w->columns);
        }
}

/* ---- One token of a strip: the sums A and B of the state before it, then d and o, then the update ---- */

/* What a token of a strip reads and writes. Sums: A (sum_k) and B (sum_q) over kn_i * s and qn_i * s. Then d = beta *
 * (v - factor_k A), with beta in d before, and o = factor B + (q.k) d. Update: s = fma(k_i, d, decay_i * s). The state
 * is read from rows `from`, and goes `to` rows where it is updated, their pitch in bytes; `next` (or NULL) is worked on
 * after it. */
#define gdni_token GDNI_NAME(token)
typedef struct gdni_token {
    const float *kn, *qn, *k, *decay, *v;
    ptrdiff_t decay_stride; /* 0: one decay for all rows */
    float *sum_k, *sum_q, *d, *o, factor, factor_k, qk;
    const char *from, *next;
    char *to;
    ptrdiff_t from_pitch, to_pitch, next_pitch, next_bytes;
    bool next_whole;
} gdni_token;

/* For the sums of token t of a block. A decay of 0 must forget a state whose sums overflow, and 0 times that is not 0:
 * it goes into k and q first. */
#define gdni_aim_sums GDNI_NAME(aim_sums)
static void gdni_aim_sums(const gdni_run *u, gdni_token *x, ptrdiff_t t) {
    const gdni_workspace *w = u->w;
    const ptrdiff_t at = t * w->kp;
    const bool is_kda = u->r->is_kda, before = u->r->read_before_decay;
    x->kn = (is_kda && !before ? w->kd : w->reads) + at;
    x->qn = (is_kda ? w->qd : w->q) + at;
    if (is_kda || w->gate[t] != 0) return;
    for (ptrdiff_t i = 0; i < w->kp; i += GDNI_LANES) {
        gdni_store(w->kd + i, gdni_mul(gdni_set1(w->gate[t]), gdni_load(w->reads + at + i)));
        gdni_store(w->qd + i, gdni_mul(gdni_set1(w->gate[t]), gdni_load(w->q + at + i)));
    }
    if (!before) x->kn = w->kd;
    x->qn = w->qd;
}

/* For all the rest of token t of a block, t0 + t of its sequence. */
#define gdni_aim GDNI_NAME(aim)
static void gdni_aim(const gdni_run *u, const gdni_strip *x, gdni_token *step, ptrdiff_t t0, ptrdiff_t t) {
    const gdn_params *r = u->r;
    const gdni_workspace *w = u->w;
    const ptrdiff_t padded = gdni_round_up(x->c1 - x->c0, GDNI_SLICE);
    step->k = w->k + t * w->kp;
    step->decay = r->is_kda ? w->decay + t * w->kp : &w->gate[t];
    step->decay_stride = r->is_kda ? 1 : 0;
    step->sum_k = x->sum_k, step->sum_q = x->sum_q, step->d = w->d;
    step->v = x->v + t * w->columns, step->o = x->o + t * w->columns;
    step->factor = r->is_kda ? 1.0f : w->gate[t], step->qk = w->qk[t];
    step->factor_k = r->read_before_decay ? 1.0f : step->factor;
    if (r->beta_per_column)
        gdni_column_betas(u, x, t0 + t, padded, w->d);
    else
        for (ptrdiff_t c = 0; c < padded; c += GDNI_LANES) gdni_store(w->d + c, gdni_set1(w->beta[t]));
}

/* d and o of a vector of columns, from column c of the strip on. */
#define gdni_finish GDNI_NAME(finish)
GDNI_INLINE gdni_vec gdni_finish(const gdni_token *x, ptrdiff_t c) {
    const gdni_vec factor = gdni_set1(x->factor), minus = gdni_set1(0.0f - x->factor_k);
    const gdni_vec v = gdni_fma(minus, gdni_load(x->sum_k + c), gdni_load(x->v + c)),
                   d = gdni_mul(gdni_load(x->d + c), v);
    gdni_store(x->o + c, gdni_fma(gdni_set1(x->qk), d, gdni_mul(factor, gdni_load(x->sum_q + c))));
    gdni_store(x->d + c, d);
    return d;
}

/* ---- Many tokens: the state stays in tiles in first-level cache; one sweep over a tile finishes a token, updates the
 * tile for it and takes the sums of the next ---- */

/* While one state is worked on, the memory that is worked on next is asked for, so that it never rests: all its rows,
 * or half of them during the sums and half during the update. */
#define gdni_ask_ahead GDNI_NAME(ask_ahead)
GDNI_INLINE void gdni_ask_ahead(const gdni_token *x, ptrdiff_t row, ptrdiff_t rows, const bool update) {
    const ptrdiff_t place = x->next_whole ? 2 * row : update ? rows + row : row;
    if (x->next != NULL && place % 2 == 0) gdni_prefetch(x->next + place / 2 * x->next_pitch, x->next_bytes);
}

/* Rows of nv vectors of columns of GDN_STATE_KV, in floats. `tile`: from a tile to the same tile, and no more. */
#define gdni_sweep_kv GDNI_NAME(sweep_kv)
GDNI_INLINE void gdni_sweep_kv(const gdni_token *x, ptrdiff_t rows, const int nv, const bool update, const bool sums,
                               const bool tile) {
    const float *k = x->k, *decay = x->decay, *kn = x->kn, *qn = x->qn;
    const ptrdiff_t decay_stride = x->decay_stride, from_pitch = x->from_pitch, to_pitch = x->to_pitch;
    const char *from = x->from;
    char *to = x->to;
    gdni_vec sum_k[4], sum_q[4], d[4];
    GDNI_UNROLL
    for (int j = 0; j < nv && update; j++) d[j] = gdni_finish(x, j * GDNI_LANES);
    GDNI_UNROLL
    for (int j = 0; j < nv && sums; j++) sum_k[j] = sum_q[j] = gdni_set1(0.0f);
    for (ptrdiff_t i = 0; i < rows; i++) {
        const ptrdiff_t at = i * nv * (ptrdiff_t)sizeof(gdni_vec);
        float *new_row = (float *)(void *)(to + (tile ? at : i * to_pitch));
        const float *row = tile ? new_row : (const float *)(const void *)(from + i * from_pitch);
        const gdni_vec k_i = gdni_set1(update ? k[i] : 0.0f);
        const gdni_vec decay_i = gdni_set1(update ? decay[i * decay_stride] : 0.0f);
        const gdni_vec kn_i = gdni_set1(sums ? kn[i] : 0.0f), qn_i = gdni_set1(sums ? qn[i] : 0.0f);
        if (!tile) gdni_ask_ahead(x, i, rows, update);
        GDNI_UNROLL
        for (int j = 0; j < nv; j++) {
            gdni_vec s = gdni_load(row + j * GDNI_LANES);
            if (update) {
                s = gdni_fma(k_i, d[j], gdni_mul(decay_i, s));
                gdni_store(new_row + j * GDNI_LANES, s);
            }
            if (sums) {
                sum_k[j] = gdni_fma(kn_i, s, sum_k[j]);
                sum_q[j] = gdni_fma(qn_i, s, sum_q[j]);
            }
        }
    }
    GDNI_UNROLL
    for (int j = 0; j < nv && sums; j++) {
        gdni_store(x->sum_k + j * GDNI_LANES, sum_k[j]);
        gdni_store(x->sum_q + j * GDNI_LANES, sum_q[j]);
    }
}

/* Of the lanes `first` and on of sixteen, those below n. */
#define gdni_lanes_below GDNI_NAME(lanes_below)
GDNI_INLINE gdni_word gdni_lanes_below(ptrdiff_t n, ptrdiff_t first) {
    static const uint32_t lanes[2 * GDNI_LANES16] = {~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u,
                                                     ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u};
    gdni_word where;
    memcpy(&where, lanes + GDNI_LANES16 - n + first, sizeof where);
    return where;
}

/* Rows c to c + rows of GDN_STATE_VK, of kp elements each: read from x->from, written to x->to where `update` is set;
 * the sums of what they then are. `decays`: x->decay has one for each element, not one for all. */
#define gdni_sweep_rows GDNI_NAME(sweep_rows)
GDNI_INLINE void gdni_sweep_rows(const gdni_token *x, const gdn_dtype dtype, ptrdiff_t k_dim, ptrdiff_t kp, ptrdiff_t c,
                                 const int rows, const bool update, const bool sums, const bool decays) {
    enum { FOLDED = GDNI_LANES == 16 ? 8 : 4 };
    const int num_sums = 2 * rows < FOLDED ? FOLDED : 2 * rows;
    const ptrdiff_t size = gdni_dtype_size(dtype);
    const float *k = x->k, *kn = x->kn, *qn = x->qn, *decay = x->decay;
    const char *from = x->from + c * kp * size;
    char *to = update ? x->to + c * kp * size : NULL;
    gdni_vec d[GDNI_VK_ROWS], part[16][gdni_parts], k_i, kn_i, qn_i, decay_i; /* A of each row, B of each row */
    if (update && !decays) decay_i = gdni_set1(decay[0]);
    GDNI_UNROLL
    for (int j = 0; j < rows && update; j++) d[j] = gdni_set1(x->d[c + j]);
    GDNI_UNROLL
    for (int j = 0; j < num_sums && sums; j++) {
        GDNI_UNROLL
        for (int p = 0; p < gdni_parts; p++) part[j][p] = gdni_set1(0.0f);
    }
    for (ptrdiff_t i = 0; i < kp; i += GDNI_LANES16) {
        GDNI_UNROLL
        for (int p = 0; p < gdni_parts; p++) {
            const ptrdiff_t at = i + p * GDNI_LANES;
            gdni_vec s[GDNI_VK_ROWS];
            if (update) k_i = gdni_load(k + at);
            if (update && decays) decay_i = gdni_load(decay + at);
            if (sums) kn_i = gdni_load(kn + at), qn_i = gdni_load(qn + at);
            GDNI_UNROLL
            for (int j = 0; j < rows; j++) {
                s[j] = gdni_load_vec(from + (j * kp + at) * size, dtype);
                if (update) s[j] = gdni_fma(k_i, d[j], gdni_mul(decay_i, s[j]));
                if (update && i + GDNI_LANES16 > k_dim) /* 0 times an infinity would get into the sums */
                    s[j] = GDNI_FLOATS(GDNI_WORDS(s[j]) & gdni_lanes_below(k_dim - i, p * GDNI_LANES));
                if (sums) {
                    part[j][p] = gdni_fma(kn_i, s[j], part[j][p]);
                    part[rows + j][p] = gdni_fma(qn_i, s[j], part[rows + j][p]);
                }
            }
            GDNI_UNROLL
            for (int j = 0; j < rows && update; j++) gdni_store_vec(to + (j * kp + at) * size, dtype, s[j]);
        }
    }
    if (sums) {
        float total[16];
        GDNI_UNROLL
        for (int j = 0; j < num_sums; j += FOLDED) gdni_fold(part + j, total + j);
        memcpy(x->sum_k + c, total, (size_t)rows * sizeof(float));
        memcpy(x->sum_q + c, total + rows, (size_t)rows * sizeof(float));
    }
}

/* `rows` at a time. */
#define gdni_sweep_vk GDNI_NAME(sweep_vk)
GDNI_INLINE void gdni_sweep_vk(const gdni_token *x, const gdn_dtype dtype, ptrdiff_t k_dim, ptrdiff_t kp,
                               ptrdiff_t columns, const int rows, const bool update, const bool sums,
                               const bool decays) {
    ptrdiff_t c = 0;
    for (; c + rows <= columns; c += rows) {
        for (int j = 0; j < rows && x->next != NULL; j++) gdni_ask_ahead(x, c + j, columns, update);
        gdni_sweep_rows(x, dtype, k_dim, kp, c, rows, update, sums, decays);
    }
#if GDNI_VK_ROWS > 1 /* else the loop above has them all; unoptimised code for WebAssembly has a limit */
    for (; c < columns; c++) gdni_sweep_rows(x, dtype, k_dim, kp, c, 1, update, sums, decays);
#endif
}

/* Vectors in a row of a strip's tile of GDN_STATE_KV: 4, or 2. Narrower, a tile would wait for its own sums. */
#define gdni_tile_vectors GDNI_NAME(tile_vectors)
GDNI_INLINE int gdni_tile_vectors(const gdni_strip *x) { return x->c1 - x->c0 > 2 * GDNI_LANES ? 4 : 2; }

#define gdni_sweep GDNI_NAME(sweep)
static void gdni_sweep(const gdni_run *u, const gdni_strip *tile, const gdni_token *x, bool update, bool sums) {
    const ptrdiff_t columns = tile->c1 - tile->c0, k_dim = u->r->head_k_dim, kp = u->w->kp;
    const bool vk = gdni_vk_states(u->r);
    for (ptrdiff_t c = 0; c < columns && vk && update; c += GDNI_LANES) gdni_finish(x, c);
#define GDNI_SWEEP(update, sums)                                                                                       \
    if (vk && x->decay_stride == 0)                                                                                    \
        gdni_sweep_vk(x, GDN_F32, k_dim, kp, columns, GDNI_VK_ROWS, update, sums, false);                              \
    else if (vk)                                                                                                       \
        gdni_sweep_vk(x, GDN_F32, k_dim, kp, columns, GDNI_VK_ROWS, update, sums, true);                               \
    else if (gdni_tile_vectors(tile) == 4)                                                                             \
        gdni_sweep_kv(x, k_dim, 4, update, sums, false);                                                               \
    else                                                                                                               \
        gdni_sweep_kv(x, k_dim, 2, update, sums, false);
    if (!vk && update && sums && x->from == x->to && x->from == (const char *)tile->tile && x->next == NULL) {
        if (gdni_tile_vectors(tile) == 4)
            gdni_sweep_kv(x, k_dim, 4, true, true, true);
        else
            gdni_sweep_kv(x, k_dim, 2, true, true, true);
    } else if (!sums) {
        GDNI_SWEEP(true, false)
    } else if (update) {
        GDNI_SWEEP(true, true)
    } else {
        GDNI_SWEEP(false, true)
    }
#undef GDNI_SWEEP
}

/* Copies the columns of a tile from a state matrix (NULL: zeros), or (store) back. */
#define gdni_move_tile GDNI_NAME(move_tile)
static void gdni_move_tile(const gdni_run *u, gdni_matrix m, const gdni_strip *x, bool store) {
    const ptrdiff_t k_dim = u->r->head_k_dim, size = gdni_dtype_size(m.dtype), kp = u->w->kp;
    const ptrdiff_t count = x->c1 - x->c0, width = gdni_tile_vectors(x) * GDNI_LANES;
    if (m.data == NULL) {
        if (!store) memset(x->tile, 0, (size_t)(width * kp) * sizeof(float));
        return;
    }
    if (!store) memset(x->tile + width * k_dim, 0, (size_t)(width * (kp - k_dim)) * sizeof(float));
    if (!gdni_vk_states(u->r)) {
        for (ptrdiff_t i = 0; i < k_dim; i++) {
            char *row = m.data + (i * u->r->head_v_dim + x->c0) * size;
            if (store)
                gdni_store_row(row, m.dtype, count, x->tile + i * width);
            else
                gdni_load_row(row, m.dtype, count, width, x->tile + i * width);
        }
        return;
    }
    for (ptrdiff_t c = 0; c < width; c += 4) {
        const ptrdiff_t rows = gdni_min(4, width - c);
        if (store) gdni_transpose(x->tile + c, width, k_dim, rows, u->w->transposed, kp);
        for (ptrdiff_t i = 0; i < rows; i++) {
            float *row = u->w->transposed + i * kp;
            if (c + i >= count && !store)
                memset(row, 0, (size_t)k_dim * sizeof(float));
            else if (c + i < count && store)
                gdni_store_row(m.data + (x->c0 + c + i) * k_dim * size, m.dtype, k_dim, row);
            else if (c + i < count)
                gdni_load_row(m.data + (x->c0 + c + i) * k_dim * size, m.dtype, k_dim, k_dim, row);
        }
        if (!store) gdni_transpose(u->w->transposed, kp, rows, k_dim, x->tile + c, width);
    }
}

/* The same for a tile of GDN_STATE_VK: rows of kp elements, one for each column. */
#define gdni_move_rows GDNI_NAME(move_rows)
static void gdni_move_rows(const gdni_run *u, gdni_matrix m, const gdni_strip *x, bool store) {
    const ptrdiff_t k_dim = u->r->head_k_dim, size = gdni_dtype_size(m.dtype), kp = u->w->kp, count = x->c1 - x->c0;
    if (m.data == NULL && !store) memset(x->tile, 0, (size_t)(count * kp) * sizeof(float));
    for (ptrdiff_t c = 0; c < count && m.data != NULL; c++) {
        char *row = m.data + (x->c0 + c) * k_dim * size;
        if (store)
            gdni_store_row(row, m.dtype, k_dim, x->tile + c * kp);
        else
            gdni_load_row(row, m.dtype, k_dim, kp, x->tile + c * kp);
    }
}

#define gdni_move GDNI_NAME(move)
static void gdni_move(const gdni_run *u, gdni_matrix m, const gdni_strip *x, bool store) {
    if (gdni_vk_states(u->r))
        gdni_move_rows(u, m, x, store);
    else
        gdni_move_tile(u, m, x, store);
}

/* Rows of K, or of columns, of a tile, times `column` for each of its columns; or (NULL) rounded to `dtype`. */
#define gdni_change_tile GDNI_NAME(change_tile)
static void gdni_change_tile(const gdni_run *u, const gdni_strip *x, const float *column, gdn_dtype dtype) {
    const bool vk = gdni_vk_states(u->r);
    const ptrdiff_t width = vk ? u->w->kp : gdni_tile_vectors(x) * GDNI_LANES;
    const ptrdiff_t rows = vk ? x->c1 - x->c0 : u->r->head_k_dim;
    for (ptrdiff_t i = 0; i < rows; i++) {
        float *row = x->tile + i * width;
        if (column == NULL) gdni_round_row(row, dtype, width);
        for (ptrdiff_t j = 0; j < width && column != NULL; j += GDNI_LANES)
            gdni_store(row + j, gdni_mul(vk ? gdni_set1(column[i]) : gdni_load(column + j), gdni_load(row + j)));
    }
}

/* The decays of its columns, for a token of its sequence. */
#define gdni_decay_columns GDNI_NAME(decay_columns)
static void gdni_decay_columns(const gdni_run *u, const gdni_strip *x, ptrdiff_t t) {
    const gdn_tensor *gv = &u->r->gv;
    const char *row = (const char *)gdni_row(gv, &u->s, t, x->value_head) + x->c0 * gdni_dtype_size(gv->dtype);
    const ptrdiff_t padded = gdni_round_up(x->c1 - x->c0, GDNI_SLICE);
    gdni_load_row(row, gv->dtype, x->c1 - x->c0, padded, u->w->gv);
    gdni_decays(u->r, GDN_GATE_LOG, 0.0, u->w->gv, 0, false, padded, u->w->gv);
    gdni_change_tile(u, x, u->w->gv, GDN_F32);
}

/* The rows of a tile. */
#define gdni_place GDNI_NAME(place)
typedef struct gdni_place {
    char *data;
    ptrdiff_t pitch;
} gdni_place;

#define gdni_tile_place GDNI_NAME(tile_place)
static gdni_place gdni_tile_place(const gdni_run *u, const gdni_strip *x) {
    const ptrdiff_t width = gdni_vk_states(u->r) ? u->w->kp : gdni_tile_vectors(x) * GDNI_LANES;
    const gdni_place y = {(char *)x->tile, width * (ptrdiff_t)sizeof(float)};
    return y;
}

/* Where its columns lie in a state matrix, if they can be swept there: floats, in whole vectors. */
#define gdni_matrix_place GDNI_NAME(matrix_place)
static gdni_place gdni_matrix_place(const gdni_run *u, gdni_matrix m, const gdni_strip *x) {
    const ptrdiff_t k_dim = u->r->head_k_dim, v_dim = u->r->head_v_dim, width = gdni_tile_vectors(x) * GDNI_LANES;
    const bool vk = gdni_vk_states(u->r), whole = vk ? k_dim == u->w->kp : x->c1 - x->c0 == width;
    gdni_place y = {NULL, (vk ? k_dim : v_dim) * (ptrdiff_t)sizeof(float)};
    if (m.data != NULL && m.dtype == GDN_F32 && whole && !gdni_in_tiles(u->r))
        y.data = m.data + x->c0 * (vk ? y.pitch : 4);
    return y;
}

/* Where token t leaves the columns: a state that goes to one place is written there at once. */
#define gdni_goal GDNI_NAME(goal)
static gdni_place gdni_goal(const gdni_run *u, const gdni_strip *x, ptrdiff_t t) {
    gdni_matrix goals[GDNI_GOALS];
    gdni_place y = {NULL, 0};
    if (gdni_goals(u->r, &u->s, u->n, t, x->value_head, goals) == 1) y = gdni_matrix_place(u, goals[0], x);
    return y.data != NULL ? y : gdni_tile_place(u, x);
}

/* Stores a tile to where the state after token t goes. */
#define gdni_put_state GDNI_NAME(put_state)
static void gdni_put_state(const gdni_run *u, const gdni_strip *x, ptrdiff_t t) {
    gdni_matrix goals[GDNI_GOALS];
    const int count = gdni_goals(u->r, &u->s, u->n, t, x->value_head, goals);
    for (int i = 0; i < count; i++) gdni_move(u, goals[i], x, true);
}

/* Reads a tile's columns from a state matrix: from there on the spot, or through the tile. */
#define gdni_read_state GDNI_NAME(read_state)
static void gdni_read_state(const gdni_run *u, gdni_matrix m, const gdni_strip *x, gdni_token *step) {
    gdni_place from = gdni_matrix_place(u, m, x);
    if (from.data == NULL) {
        gdni_move(u, m, x, false);
        from = gdni_tile_place(u, x);
    }
    step->from = from.data, step->from_pitch = from.pitch;
}

/* Tokens t0 to t0 + count of a tile, whose q, k, v and gates are prepared, and q, k and gates of the token after them.
 * `strip`, where it is not negative: of this one the rows of the next block are asked for. `next_state` is read after
 * this one, or NULL. */
#define gdni_run_tile GDNI_NAME(run_tile)
static void gdni_run_tile(const gdni_run *u, const gdni_strip *x, ptrdiff_t t0, ptrdiff_t count, int strip,
                          const char *next_state) {
    const gdn_params *r = u->r;
    const gdni_sequence *s = &u->s;
    const bool tree = r->retrieve_parent_token.data != NULL && s->row >= 0;
    const bool alone = tree || gdni_in_tiles(r); /* a token's update and the sums of the next are two sweeps */
    const bool every_step = s->row >= 0 || r->ssm_state_indices.data != NULL;
    const ptrdiff_t size = gdni_dtype_size(r->initial_state_source.dtype), columns = x->c1 - x->c0;
    bool update = t0 > 0 && !alone; /* A and B are those of token t: it can be finished and the tile updated */
    gdni_token step;
    memset(&step, 0, sizeof step);
    step.next_pitch = (gdni_vk_states(r) ? r->head_k_dim : r->head_v_dim) * size;
    step.next_bytes = gdni_vk_states(r) ? step.next_pitch : columns * size;
    if (t0 == 0) {
        gdni_read_state(u, gdni_start_matrix(r, s, x->value_head), x, &step);
    } else {
        const gdni_place from = gdni_goal(u, x, t0 - 1);
        step.from = from.data, step.from_pitch = from.pitch;
    }
    for (ptrdiff_t t = 0; t < count;) {
        const int64_t parent = tree && !update ? gdni_parent(r, s, u->n, t0 + t) : -1;
        const ptrdiff_t next = update ? t + 1 : t; /* the token whose sums are taken */
        const bool sums = t0 + next < s->length && !(alone && update);
        const gdni_place to = gdni_goal(u, x, t0 + t);
        if (parent >= 0) gdni_read_state(u, gdni_cache_matrix(r, s->row, parent, x->value_head), x, &step);
        if (gdni_masked(r, s, t0 + t)) {
            gdni_put_state(u, x, t0 + t++);
            continue;
        }
        if (!update && r->gv.data != NULL) gdni_decay_columns(u, x, t0 + t);
        gdni_aim(u, x, &step, t0, t);
        if (sums) gdni_aim_sums(u, &step, next);
        if (update) {
            gdni_prefetch(gdni_output_row(r, s, t0 + t, x->value_head, x->c0), columns * gdni_dtype_size(r->o.dtype));
            if (strip >= 0) gdni_fetch(u, strip, t0 + count + t);
        }
        if (every_step) { /* where the state goes next */
            step.next = t0 + next < s->length ? gdni_goal(u, x, t0 + next).data : next_state;
            step.next_whole = true;
            step.next_pitch = to.pitch;
        } else
            step.next = t == 0 ? next_state : NULL;
        step.to = to.data, step.to_pitch = to.pitch;
        gdni_sweep(u, x, &step, update, sums);
        if (update) {
            step.from = to.data, step.from_pitch = to.pitch;
            if ((r->rounding & GDN_ROUND_STATE) != 0) gdni_change_tile(u, x, NULL, gdni_output_pool(r)->dtype);
            if (to.data == (char *)x->tile) gdni_put_state(u, x, t0 + t);
        }
        t = next;
        update = sums;
    }
}

/* Columns of the tiles of a strip. */
#define gdni_tile_width GDNI_NAME(tile_width)
static ptrdiff_t gdni_tile_width(const gdni_workspace *w) {
    return (GDNI_TILE_KIB * 1024 / 4 / GDNI_LANES / w->kp < 4 ? 2 : 4) * GDNI_LANES;
}

/* Where a strip reads its state, from column c on, or the next run where there is no such strip; or NULL. */
#define gdni_state_at GDNI_NAME(state_at)
static const char *gdni_state_at(const gdni_run *u, int strip, ptrdiff_t c) {
    gdni_matrix m;
    if (strip == u->num_strips) u = u->next, strip = 0;
    if (u == NULL) return NULL;
    m = gdni_start_matrix(u->r, &u->s, u->strips[strip].value_head);
    c = c > u->strips[strip].c0 ? c : u->strips[strip].c0;
    if (m.data != NULL) m.data += c * (gdni_vk_states(u->r) ? u->r->head_k_dim : 1) * gdni_dtype_size(m.dtype);
    return m.data;
}

#define gdni_run_block GDNI_NAME(run_block)
static void gdni_run_block(const gdni_run *u, ptrdiff_t t0) {
    const gdni_workspace *w = u->w;
    const ptrdiff_t count = gdni_min(w->block, u->s.length - t0), prepared = gdni_min(count + 1, u->s.length - t0);
    const ptrdiff_t width = gdni_tile_width(w);
    gdni_prepare_qk(u, t0, prepared);
    gdni_prepare_dots(w, prepared);
    gdni_gather_v(u, t0, count, false);
    for (int i = 0; i < u->num_strips; i++) {
        const gdni_strip *x = &u->strips[i];
        gdni_prepare_gates(u, x->value_head, t0, prepared, false);
        gdni_prepare_reads(u, x->value_head, t0, prepared);
        gdni_fold_decays(u, prepared);
        for (ptrdiff_t c = x->c0; c < x->c1; c += width) {
            const gdni_strip tile = gdni_columns(x, c, gdni_min(c + width, x->c1), w);
            const char *next = NULL;
            if (t0 == 0 && c + width < x->c1)
                next = gdni_state_at(u, i, c + width);
            else if (t0 == 0)
                next = gdni_state_at(u, i + 1, 0);
            gdni_run_tile(u, &tile, t0, count, c == x->c0 ? i : -1, next);
        }
    }
    gdni_scatter_o(u, t0, count, false);
}

/* ---- One token: the state is read once and written once, where it lies ---- */

/* A and B over `rows` rows of nv vectors of a GDN_STATE_KV matrix. */
#define gdni_sums_kv GDNI_NAME(sums_kv)
GDNI_INLINE void gdni_sums_kv(const gdni_token *x, const gdn_dtype dtype, ptrdiff_t rows, const int nv) {
    const ptrdiff_t bytes = GDNI_LANES * gdni_dtype_size(dtype), pitch = x->from_pitch;
    const char *from = x->from;
    const float *kn = x->kn, *qn = x->qn;
    gdni_vec sum_k[GDNI_STREAM], sum_q[GDNI_STREAM], s[2];
    GDNI_UNROLL
    for (int j = 0; j < nv; j++) sum_k[j] = sum_q[j] = gdni_set1(0.0f);
    for (ptrdiff_t i = 0; i < rows; i++) {
        const gdni_vec kn_i = gdni_set1(kn[i]), qn_i = gdni_set1(qn[i]);
        gdni_ask_ahead(x, i, rows, false);
        GDNI_UNROLL
        for (int j = 0; j < nv; j += 2) {
            gdni_load_pair(from + i * pitch + j * bytes, dtype, s);
            sum_k[j] = gdni_fma(kn_i, s[0], sum_k[j]);
            sum_q[j] = gdni_fma(qn_i, s[0], sum_q[j]);
            sum_k[j + 1] = gdni_fma(kn_i, s[1], sum_k[j + 1]);
            sum_q[j + 1] = gdni_fma(qn_i, s[1], sum_q[j + 1]);
        }
    }
    GDNI_UNROLL
    for (int j = 0; j < nv; j += 2) {
        gdni_undeal(&sum_k[j], dtype, x->sum_k + j * GDNI_LANES);
        gdni_undeal(&sum_q[j], dtype, x->sum_q + j * GDNI_LANES);
    }
}

#define gdni_update_kv GDNI_NAME(update_kv)
GDNI_INLINE void gdni_update_kv(const gdni_token *x, const gdn_dtype dtype, ptrdiff_t rows, const int nv) {
    const ptrdiff_t bytes = GDNI_LANES * gdni_dtype_size(dtype), pitch = x->from_pitch;
    const char *from = x->from;
    const float *k = x->k, *decay = x->decay;
    char *to = x->to;
    gdni_vec d[GDNI_STREAM], s[GDNI_STREAM];
    GDNI_UNROLL
    for (int j = 0; j < nv; j += 2) gdni_deal(x->d + j * GDNI_LANES, dtype, &d[j]);
    for (ptrdiff_t i = 0; i < rows; i++) {
        const gdni_vec k_i = gdni_set1(k[i]), decay_i = gdni_set1(decay[i]);
        gdni_ask_ahead(x, i, rows, true);
        GDNI_UNROLL
        for (int j = 0; j < nv; j += 2) {
            gdni_load_pair(from + i * pitch + j * bytes, dtype, &s[j]);
            s[j] = gdni_fma(k_i, d[j], gdni_mul(decay_i, s[j]));
            s[j + 1] = gdni_fma(k_i, d[j + 1], gdni_mul(decay_i, s[j + 1]));
        }
        GDNI_UNROLL
        for (int j = 0; j < nv; j += 2) gdni_store_pair(to + i * pitch + j * bytes, dtype, &s[j]);
    }
}

/* Some columns of a strip, for one dtype: nv vectors of them, or (0) rows of a GDN_STATE_VK matrix. */
#define gdni_stream_columns GDNI_NAME(stream_columns)
GDNI_INLINE void gdni_stream_columns(const gdni_run *u, const gdni_strip *x, const gdni_token *step,
                                     const gdn_dtype dtype, const int nv) {
    enum { rows = GDNI_VK_ROWS > 4 ? 4 : GDNI_VK_ROWS }; /* more, and the memory is asked for in bursts */
    const ptrdiff_t k_dim = u->r->head_k_dim;
    if (nv == 0)
        gdni_sweep_vk(step, dtype, k_dim, k_dim, x->c1 - x->c0, rows, false, true, true);
    else
        gdni_sums_kv(step, dtype, u->r->head_k_dim, nv);
    for (ptrdiff_t c = 0; c < x->c1 - x->c0; c += GDNI_LANES) gdni_finish(step, c);
    if (step->to == NULL) return;
    if (nv == 0)
        gdni_sweep_vk(step, dtype, k_dim, k_dim, x->c1 - x->c0, rows, true, false, true);
    else
        gdni_update_kv(step, dtype, u->r->head_k_dim, nv);
}

/* Strip i of a sequence of one token. */
#define gdni_stream GDNI_NAME(stream)
static void gdni_stream(const gdni_run *u, int i) {
    const gdni_strip *strip = &u->strips[i];
    const gdn_params *r = u->r;
    const gdni_workspace *w = u->w;
    const bool vk = gdni_vk_states(r);
    const gdni_matrix from = gdni_start_matrix(r, &u->s, strip->value_head);
    gdni_matrix to[GDNI_GOALS];
    const bool writes = gdni_goals(r, &u->s, u->n, 0, strip->value_head, to) > 0;
    const ptrdiff_t size = gdni_dtype_size(from.dtype), column = (vk ? r->head_k_dim : 1) * size;
    gdni_token step;
    memset(&step, 0, sizeof step);
    gdni_aim_sums(u, &step, 0);
    step.from_pitch = step.to_pitch = step.next_pitch = (vk ? r->head_k_dim : r->head_v_dim) * size;
    for (ptrdiff_t j = 0; j < w->kp && !r->is_kda; j += GDNI_LANES) gdni_store(w->decay + j, gdni_set1(w->gate[0]));
    for (ptrdiff_t c = strip->c0, end; c < strip->c1; c = end) {
        gdni_strip x;
        if (vk)
            end = gdni_min(c + GDNI_SLICE, strip->c1);
        else
            end = c + (strip->c1 - c < GDNI_STREAM * GDNI_LANES ? 2 : GDNI_STREAM) * GDNI_LANES;
        x = gdni_columns(strip, c, end, w);
        gdni_aim(u, &x, &step, 0, 0);
        step.decay = w->decay;
        step.from = from.data + c * column;
        step.to = writes ? to[0].data + c * column : NULL;
        step.next = end < strip->c1 ? gdni_state_at(u, i, end) : gdni_state_at(u, i + 1, 0);
        step.next_bytes = vk ? column : (end - c) * size;
#define GDNI_STREAM_COLUMNS(type)                                                                                      \
    if (vk)                                                                                                            \
        gdni_stream_columns(u, &x, &step, type, 0);                                                                    \
    else if (GDNI_STREAM > 2 && end - c == GDNI_STREAM * GDNI_LANES)                                                   \
        gdni_stream_columns(u, &x, &step, type, GDNI_STREAM);                                                          \
    else                                                                                                               \
        gdni_stream_columns(u, &x, &step, type, 2);
        GDNI_BY_DTYPE(from.dtype, GDNI_STREAM_COLUMNS)
#undef GDNI_STREAM_COLUMNS
    }
}

/* Whether a sequence is streamed: one token, nothing but one slot to write, pools of one dtype, rows of whole vectors.
 */
#define gdni_streams GDNI_NAME(streams)
static bool gdni_streams(const gdni_run *u) {
    const gdn_params *r = u->r;
    const bool whole = gdni_vk_states(r) ? r->head_k_dim % GDNI_LANES16 == 0 : r->head_v_dim % (2 * GDNI_LANES) == 0;
    gdni_matrix to[GDNI_GOALS];
    return u->s.length == 1 && u->s.read >= 0 && u->s.row < 0 && whole && !gdni_in_tiles(r) &&
           gdni_output_pool(r)->dtype == r->initial_state_source.dtype && gdni_goals(r, &u->s, u->n, 0, 0, to) < 2;
}

#define gdni_run_decode GDNI_NAME(run_decode)
static void gdni_run_decode(const gdni_run *u) {
    gdni_prepare_qk(u, 0, 1);
    gdni_prepare_dots(u->w, 1);
    gdni_gather_v(u, 0, 1, false);
    for (int i = 0; i < u->num_strips; i++) {
        gdni_prepare_gates(u, u->strips[i].value_head, 0, 1, false);
        gdni_prepare_reads(u, u->strips[i].value_head, 0, 1);
        gdni_fold_decays(u, 1);
        gdni_fetch(u, i, 1);
        gdni_stream(u, i);
    }
    gdni_scatter_o(u, 0, 1, false);
}

/* ---- Many tokens in chunks of up to sixteen, as products of matrices: the state stays in the same tiles ---- */

/* Of a chunk, tokens a to b, all of which remember the first one; G_i is the product of the decays of a to i, P(j,i) of
 * those after j up to i, factor by factor in this order, so that nothing is divided by a decay:
 *     d_i = beta_i (v_i - G_i k_i.S - sum over j < i of P(j,i) k_i.k_j d_j)
 *     o_i = G_i q_i.S + sum over j <= i of P(j,i) q_i.k_j d_j
 *     S = G_{b-1} S + sum over j of P(j,b-1) k_j d_j
 * With KDA the decays are vectors over K, inside the products. What a product holds at once: rows of its left factor
 * and vectors of its right one; k.k and q.k have sixteen columns. */
#define gdni_chunk_rows GDNI_NAME(chunk_rows)
#define gdni_chunk_vectors GDNI_NAME(chunk_vectors)
#define gdni_score_vectors GDNI_NAME(score_vectors)
#define gdni_score_rows GDNI_NAME(score_rows)
#define gdni_solve_rows GDNI_NAME(solve_rows)
enum {
    gdni_chunk_rows = 4,
    gdni_chunk_vectors = GDNI_STREAM == 8 ? 4 : 2,
    gdni_score_vectors = GDNI_LANES == 16 ? 1 : 2,
    gdni_score_rows = GDNI_LANES == 16 ? 8 : 4,
    gdni_solve_rows = gdni_chunk_vectors
};

/* A chunk of a run: its first token and how many there are, and the rows of memory that the next chunk will touch. */
#define gdni_chunk GDNI_NAME(chunk)
typedef struct gdni_chunk {
    ptrdiff_t t0, count;
    const char *ahead[GDNI_CHUNK * (2 + 3 * GDNI_RUN) + 1]; /* and, after them, one that may be asked for again */
    ptrdiff_t num_ahead, asked, step; /* `step` bytes of a row for each sixteen steps of a product */
    const float *v;                   /* of a strip, a row for each token: in the workspace, or the caller's */
    float *o;
    ptrdiff_t v_pitch, o_pitch, c0; /* its first column */
} gdni_chunk;

/* Whether a run is computed in chunks: not where a state within one is stored, read or rounded, nor a single token,
 * which is the same work either way. */
#define gdni_in_chunks GDNI_NAME(in_chunks)
static bool gdni_in_chunks(const gdni_run *u) {
    const gdn_params *r = u->r;
    const bool steps = r->intermediate_states_buffer.data != NULL || r->ssm_state_indices.data != NULL;
    return r->compute == GDN_COMPUTE_F32_CHUNKS && u->s.length > 1 && !r->read_before_decay && !gdni_in_tiles(r) &&
           (!steps || r->step_interval % GDNI_CHUNK == 0);
}

/* The rows of one head lie a whole token apart, often a page of memory or more, which no processor foresees: the chunk
 * after this one, or the first one of the next run, is asked for while this one is computed. */
#define gdni_look_ahead GDNI_NAME(look_ahead)
static void gdni_look_ahead(const gdni_run *u, gdni_chunk *y) {
    const gdn_params *r = u->r;
    ptrdiff_t t = y->t0 + y->count;
    y->num_ahead = y->asked = 0;
    y->ahead[0] = (const char *)u->w->k;
    y->step = GDNI_LANES16 * gdni_dtype_size(r->q.dtype);
    if (t >= u->s.length) t = 0, u = u->next;
    if (u == NULL) return;
    for (const ptrdiff_t end = gdni_min(t + GDNI_CHUNK, u->s.length); t < end; t++) {
        y->ahead[y->num_ahead++] = (const char *)gdni_row(&r->q, &u->s, t, u->key_head);
        y->ahead[y->num_ahead++] = (const char *)gdni_row(&r->k, &u->s, t, u->key_head);
        for (const gdni_strip *x = u->strips; x < u->strips + u->num_strips; x++) {
            y->ahead[y->num_ahead++] =
                (const char *)gdni_row(&r->v, &u->s, t, x->value_head) + x->c0 * gdni_dtype_size(r->v.dtype);
            y->ahead[y->num_ahead++] = gdni_output_row(r, &u->s, t, x->value_head, x->c0);
            if (r->is_kda) y->ahead[y->num_ahead++] = (const char *)gdni_row(&r->a, &u->s, t, x->value_head);
        }
    }
    y->ahead[y->num_ahead] = y->ahead[0];
}

/* The decay in some lanes, 1 in the others. */
#define gdni_decay_in GDNI_NAME(decay_in)
GDNI_INLINE gdni_vec gdni_decay_in(gdni_word where, float decay) {
    return GDNI_FLOATS((GDNI_WORDS(gdni_set1(decay)) & where) | (GDNI_WORDS(gdni_set1(1.0f)) & ~where));
}

#define gdni_minus GDNI_NAME(minus)
GDNI_INLINE gdni_vec gdni_minus(gdni_vec x) {
    GDNI_EXACT
    return gdni_set1(0.0f) - x;
}

/* Column c of `rows` rows of the left factor, kp apart, times nv vectors of row c of the right one. */
#define gdni_product_step GDNI_NAME(product_step)
GDNI_INLINE void gdni_product_step(const float *left, ptrdiff_t kp, const int rows, const float *right, ptrdiff_t pitch,
                                   const int nv, ptrdiff_t c, gdni_vec (*sum)[4]) {
    gdni_vec s[4];
    GDNI_UNROLL
    for (int h = 0; h < nv; h++) s[h] = gdni_load(right + c * pitch + h * GDNI_LANES);
    GDNI_UNROLL
    for (int i = 0; i < rows; i++) {
        const gdni_vec x = gdni_set1(left[i * kp + c]);
        GDNI_UNROLL
        for (int h = 0; h < nv; h++) sum[i][h] = gdni_fma(x, s[h], sum[i][h]);
    }
}

/* The product of such rows, k_dim long, and vectors; the rows of the right one and of the product are `pitch` apart. */
#define gdni_product GDNI_NAME(product)
GDNI_INLINE void gdni_product(gdni_chunk *y, const float *left, ptrdiff_t k_dim, ptrdiff_t kp, const int rows,
                              const float *right, ptrdiff_t pitch, const int nv, float *to) {
    const char *ahead[GDNI_AHEAD];
    gdni_vec sum[8][4];
    ptrdiff_t c = 0;
    for (int i = 0; i < GDNI_AHEAD; i++) ahead[i] = y->ahead[gdni_min(y->asked++, y->num_ahead)];
    GDNI_UNROLL
    for (int i = 0; i < rows; i++) {
        GDNI_UNROLL
        for (int h = 0; h < nv; h++) sum[i][h] = gdni_set1(0.0f);
    }
    for (ptrdiff_t at = 0; c + GDNI_LANES16 <= k_dim; at += y->step) {
        GDNI_UNROLL
        for (int i = 0; i < GDNI_AHEAD; i++) gdni_prefetch(ahead[i] + at, 1);
        for (const ptrdiff_t end = c + GDNI_LANES16; c < end; c += 4) {
            GDNI_UNROLL
            for (int j = 0; j < 4; j++) gdni_product_step(left, kp, rows, right, pitch, nv, c + j, sum);
        }
    }
    for (; c < k_dim; c++) gdni_product_step(left, kp, rows, right, pitch, nv, c, sum);
    GDNI_UNROLL
    for (int i = 0; i < rows; i++) {
        GDNI_UNROLL
        for (int h = 0; h < nv; h++) gdni_store(to + i * pitch + h * GDNI_LANES, sum[i][h]);
    }
}

/* k.k and q.k of any two tokens, without decays, lanes along the earlier one. */
#define gdni_raw_scores GDNI_NAME(raw_scores)
static void gdni_raw_scores(const gdni_run *u, gdni_chunk *y) {
    const gdni_workspace *w = u->w;
    for (ptrdiff_t i = 0; i < y->count; i += gdni_score_rows)
        for (ptrdiff_t j = 0; j < GDNI_CHUNK; j += gdni_score_vectors * GDNI_LANES)
            for (int q = 0; q < 2; q++)
                gdni_product(y, (q == 0 ? w->reads : w->q) + i * w->kp, u->r->head_k_dim, w->kp, gdni_score_rows,
                             w->kt + j, GDNI_CHUNK, gdni_score_vectors, w->raw + (q * GDNI_CHUNK + i) * GDNI_CHUNK + j);
}

/* Tokens a to b: G_i, the scores -P(j,i) k_i.k_j and P(j,i) q_i.k_j, and P(j,b-1). */
#define gdni_decay_scores GDNI_NAME(decay_scores)
static void gdni_decay_scores(const gdni_workspace *w, ptrdiff_t a, ptrdiff_t b) {
    float decay_to = 1.0f;
    for (ptrdiff_t i = a; i < b; i++) w->decay_to[i - a] = decay_to *= w->gate[i];
    for (ptrdiff_t c = 0; c < GDNI_CHUNK; c += GDNI_LANES) {
        gdni_vec decay_after = gdni_set1(1.0f);
        for (ptrdiff_t i = a; i < b; i++) {
            const float *kk = w->raw + i * GDNI_CHUNK + c, *qk = kk + GDNI_CHUNK * GDNI_CHUNK;
            decay_after = gdni_mul(decay_after, gdni_decay_in(gdni_lanes_below(i, c), w->gate[i]));
            gdni_store(w->kk + (i - a) * GDNI_CHUNK + c, gdni_mul(gdni_minus(decay_after), gdni_load(kk)));
            gdni_store(w->kq + (i - a) * GDNI_CHUNK + c, gdni_mul(decay_after, gdni_load(qk)));
        }
        gdni_store(w->decay_after + c, decay_after);
    }
}

/* Tokens a to b under KDA: G_i k_i and G_i q_i in w->kd and w->qd, and G_{b-1}. */
#define gdni_decay_rows GDNI_NAME(decay_rows)
static void gdni_decay_rows(const gdni_workspace *w, ptrdiff_t a, ptrdiff_t b) {
    for (ptrdiff_t c = 0; c < w->kp; c += GDNI_LANES) {
        gdni_vec decay_to = gdni_set1(1.0f);
        for (ptrdiff_t at = a * w->kp + c; at < b * w->kp; at += w->kp) {
            decay_to = gdni_mul(decay_to, gdni_load(w->decay + at));
            gdni_store(w->kd + at, gdni_mul(decay_to, gdni_load(w->reads + at)));
            gdni_store(w->qd + at, gdni_mul(decay_to, gdni_load(w->q + at)));
        }
        gdni_store(w->decay_to + c, decay_to);
    }
}

/* Tokens a to b under KDA: their scores, and P(j,b-1) k_j. A lane j is multiplied by the decays of the tokens after j,
 * so that lanes that no token has reached hold k_j. Four tokens in one pass. */
#define gdni_kda_scores GDNI_NAME(kda_scores)
static void gdni_kda_scores(const gdni_workspace *w, ptrdiff_t k_dim, ptrdiff_t a, ptrdiff_t b) {
    memcpy(w->ktd, w->kt, (size_t)(w->kp * GDNI_CHUNK) * sizeof(float));
    for (ptrdiff_t i = a; i < b; i += 4)
        for (ptrdiff_t lane = 0; lane < gdni_min(GDNI_CHUNK, i + 4); lane += GDNI_LANES) {
            const float *decay[4], *k[4], *q[4];
            float *ktd = w->ktd + lane;
            gdni_word below[4];
            gdni_vec kk[4], kq[4];
            GDNI_UNROLL
            for (int j = 0; j < 4; j++) {
                const ptrdiff_t at = gdni_min(i + j, b - 1) * w->kp;
                decay[j] = w->decay + at, k[j] = w->reads + at, q[j] = w->q + at;
                below[j] = gdni_lanes_below(i + j < b ? i + j : 0, lane);
                kk[j] = kq[j] = gdni_set1(0.0f);
            }
            for (ptrdiff_t c = 0; c < k_dim; c++) {
                gdni_vec x = gdni_load(ktd + c * GDNI_CHUNK);
                GDNI_UNROLL
                for (int j = 0; j < 4; j++) {
                    x = gdni_mul(x, gdni_decay_in(below[j], decay[j][c]));
                    kk[j] = gdni_fma(gdni_set1(k[j][c]), x, kk[j]);
                    kq[j] = gdni_fma(gdni_set1(q[j][c]), x, kq[j]);
                }
                gdni_store(ktd + c * GDNI_CHUNK, x);
            }
            GDNI_UNROLL
            for (int j = 0; j < 4; j++) {
                gdni_store(w->kk + (i + j - a) * GDNI_CHUNK + lane, gdni_minus(kk[j]));
                gdni_store(w->kq + (i + j - a) * GDNI_CHUNK + lane, kq[j]);
            }
        }
}

/* Two vectors of columns of a tile: d and o of `count` tokens from a on, from their k.S and q.S in w->sums. Each sum
 * runs over j in order: for some tokens over those before them, then among them. */
#define gdni_solve GDNI_NAME(solve)
static void gdni_solve(const gdni_run *u, ptrdiff_t a, ptrdiff_t count, ptrdiff_t c, ptrdiff_t width, const float *v,
                       ptrdiff_t v_pitch, float *o, ptrdiff_t o_pitch) {
    const gdni_workspace *w = u->w;
    const bool is_kda = u->r->is_kda;
    float *d = w->ds + c;
    for (ptrdiff_t i = 0; i < count; i += gdni_solve_rows) {
        const float *sum_k = w->sums + i * width + c, *sum_q = sum_k + GDNI_CHUNK * width;
        const float *kk = w->kk + i * GDNI_CHUNK + a, *kq = w->kq + i * GDNI_CHUNK + a; /* column j: token a + j */
        gdni_vec y[4][2], z[4][2];                                                      /* (v - ...) and o */
        GDNI_UNROLL
        for (int n = 0; n < gdni_solve_rows; n++) {
            const float decay_to = is_kda ? 1.0f : w->decay_to[i + n];
            const float *v_n = v + gdni_min(i + n, count - 1) * v_pitch;
            GDNI_UNROLL
            for (int h = 0; h < 2; h++) {
                const ptrdiff_t at = n * width + h * GDNI_LANES;
                y[n][h] = gdni_fma(gdni_set1(0.0f - decay_to), gdni_load(sum_k + at), gdni_load(v_n + h * GDNI_LANES));
                z[n][h] = gdni_mul(gdni_set1(decay_to), gdni_load(sum_q + at));
            }
        }
        for (ptrdiff_t j = 0; j < i; j++) {
            const gdni_vec d0 = gdni_load(d + j * width), d1 = gdni_load(d + j * width + GDNI_LANES);
            GDNI_UNROLL
            for (int n = 0; n < gdni_solve_rows; n++) {
                const gdni_vec s = gdni_set1(kk[n * GDNI_CHUNK + j]), t = gdni_set1(kq[n * GDNI_CHUNK + j]);
                y[n][0] = gdni_fma(s, d0, y[n][0]), y[n][1] = gdni_fma(s, d1, y[n][1]);
                z[n][0] = gdni_fma(t, d0, z[n][0]), z[n][1] = gdni_fma(t, d1, z[n][1]);
            }
        }
        GDNI_UNROLL
        for (int j = 0; j < gdni_solve_rows; j++) {
            const ptrdiff_t at = (i + j) * width;
            gdni_vec d0, d1;
            if (u->r->beta_per_column)
                d0 = gdni_load(w->betas + at + c), d1 = gdni_load(w->betas + at + c + GDNI_LANES);
            else
                d0 = d1 = gdni_set1(w->beta[a + i + j]);
            d0 = gdni_mul(d0, y[j][0]), d1 = gdni_mul(d1, y[j][1]);
            gdni_store(d + at, d0), gdni_store(d + at + GDNI_LANES, d1);
            GDNI_UNROLL
            for (int n = j; n < gdni_solve_rows; n++) {
                const gdni_vec s = gdni_set1(kk[n * GDNI_CHUNK + i + j]), t = gdni_set1(kq[n * GDNI_CHUNK + i + j]);
                y[n][0] = gdni_fma(s, d0, y[n][0]), y[n][1] = gdni_fma(s, d1, y[n][1]);
                z[n][0] = gdni_fma(t, d0, z[n][0]), z[n][1] = gdni_fma(t, d1, z[n][1]);
            }
            if (i + j < count) {
                gdni_store(o + (i + j) * o_pitch, z[j][0]);
                gdni_store(o + (i + j) * o_pitch + GDNI_LANES, z[j][1]);
            }
        }
    }
}

/* nv vectors of a tile's columns after `count` tokens, of whose k row c starts at k + c * k_step, token after token
 * k_next apart; d lies in rows of the tile's width. */
#define gdni_update GDNI_NAME(update)
GDNI_INLINE void gdni_update(float *tile, ptrdiff_t width, const int nv, ptrdiff_t k_dim, const float *k,
                             ptrdiff_t k_step, ptrdiff_t k_next, const float *decay, ptrdiff_t decay_step,
                             const float *d, ptrdiff_t count) {
    for (ptrdiff_t c = 0; c < k_dim; c += gdni_chunk_rows) {
        const float *k_c = k + c * k_step, *const k_end = k_c + count * k_next, *d_j = d;
        float *row = tile + c * width;
        gdni_vec s[gdni_chunk_rows][4];
        GDNI_UNROLL
        for (int n = 0; n < gdni_chunk_rows; n++) {
            const gdni_vec g = gdni_set1(decay[(c + n) * decay_step]);
            GDNI_UNROLL
            for (int h = 0; h < nv; h++) s[n][h] = gdni_mul(g, gdni_load(row + n * width + h * GDNI_LANES));
        }
        for (; k_c < k_end; k_c += k_next, d_j += width) {
            gdni_vec x[4];
            GDNI_UNROLL
            for (int h = 0; h < nv; h++) x[h] = gdni_load(d_j + h * GDNI_LANES);
            GDNI_UNROLL
            for (int n = 0; n < gdni_chunk_rows; n++) {
                const gdni_vec k_n = gdni_set1(k_c[n * k_step]);
                GDNI_UNROLL
                for (int h = 0; h < nv; h++) s[n][h] = gdni_fma(k_n, x[h], s[n][h]);
            }
        }
        GDNI_UNROLL
        for (int n = 0; n < gdni_chunk_rows; n++) {
            GDNI_UNROLL
            for (int h = 0; h < nv; h++) gdni_store(row + n * width + h * GDNI_LANES, s[n][h]);
        }
    }
}

/* nv vectors of the columns of a tile, from column c on: tokens a to b. */
#define gdni_chunk_columns GDNI_NAME(chunk_columns)
GDNI_INLINE void gdni_chunk_columns(const gdni_run *u, const gdni_strip *x, gdni_chunk *y, ptrdiff_t a, ptrdiff_t b,
                                    ptrdiff_t c, const int nv) {
    const gdn_params *r = u->r;
    const gdni_workspace *w = u->w;
    const bool is_kda = r->is_kda;
    const ptrdiff_t k_dim = r->head_k_dim, kp = w->kp, width = gdni_tile_vectors(x) * GDNI_LANES;
    const float *k = (is_kda ? w->kd : w->reads) + a * kp, *q = (is_kda ? w->qd : w->q) + a * kp;
    float *sum_k = w->sums + c, *sum_q = sum_k + GDNI_CHUNK * width;
    for (ptrdiff_t i = 0; i < b - a; i += gdni_chunk_rows) {
        gdni_product(y, k + i * kp, k_dim, kp, gdni_chunk_rows, x->tile + c, width, nv, sum_k + i * width);
        gdni_product(y, q + i * kp, k_dim, kp, gdni_chunk_rows, x->tile + c, width, nv, sum_q + i * width);
    }
    for (int h = 0; h < nv; h += 2) {
        const ptrdiff_t at = c + h * GDNI_LANES;
        const ptrdiff_t column = x->c0 - y->c0 + at;
        gdni_solve(u, a, b - a, at, width, y->v + a * y->v_pitch + column, y->v_pitch, y->o + a * y->o_pitch + column,
                   y->o_pitch);
    }
    for (ptrdiff_t j = 0; j < b - a && !is_kda; j++) {
        const gdni_vec decay_after = gdni_set1(w->decay_after[a + j]);
        float *d = w->ds + j * width + c;
        GDNI_UNROLL
        for (int h = 0; h < nv; h++)
            gdni_store(d + h * GDNI_LANES, gdni_mul(decay_after, gdni_load(d + h * GDNI_LANES)));
    }
    gdni_update(x->tile + c, width, nv, k_dim, is_kda ? w->ktd + a : w->k + a * kp, is_kda ? GDNI_CHUNK : 1,
                is_kda ? 1 : kp, is_kda ? w->decay_to : w->decay_to + (b - a - 1), is_kda ? 1 : 0, w->ds + c, b - a);
}

/* Tokens a to b of a chunk for one tile, whose scores are prepared. */
#define gdni_chunk_tile GDNI_NAME(chunk_tile)
static void gdni_chunk_tile(const gdni_run *u, const gdni_strip *x, gdni_chunk *y, ptrdiff_t a, ptrdiff_t b) {
    const gdn_params *r = u->r;
    const gdni_workspace *w = u->w;
    const ptrdiff_t width = gdni_tile_vectors(x) * GDNI_LANES;
    gdni_matrix goals[GDNI_GOALS];
    int num_goals = 0;
    if (y->t0 + a == 0) gdni_move_tile(u, gdni_start_matrix(r, &u->s, x->value_head), x, false);
    for (ptrdiff_t i = 0; i < w->kp * width && w->gate[a] == 0; i += GDNI_LANES)
        gdni_store(x->tile + i, gdni_mul(gdni_set1(0.0f), gdni_load(x->tile + i)));
    for (ptrdiff_t i = a; i < b && r->beta_per_column; i++)
        gdni_column_betas(u, x, y->t0 + i, width, w->betas + (i - a) * width);
    if (gdni_chunk_vectors == 4 && width == 4 * GDNI_LANES)
        gdni_chunk_columns(u, x, y, a, b, 0, gdni_chunk_vectors);
    else
        for (ptrdiff_t c = 0; c < width; c += 2 * GDNI_LANES) gdni_chunk_columns(u, x, y, a, b, c, 2);
    if (b == y->count) num_goals = gdni_goals(r, &u->s, u->n, y->t0 + b - 1, x->value_head, goals);
    for (int i = 0; i < num_goals; i++) gdni_move_tile(u, goals[i], x, true);
}

/* 0 where all decays of a row are 0, else 1. */
#define gdni_any GDNI_NAME(any)
static float gdni_any(const float *decay, ptrdiff_t k_dim) {
    uint32_t lanes[GDNI_LANES], bits = 0;
    gdni_word any = GDNI_WORDS(gdni_set1(0.0f));
    ptrdiff_t c = 0;
    for (; c + GDNI_LANES <= k_dim; c += GDNI_LANES) any = any | GDNI_WORDS(gdni_load(decay + c));
    memcpy(lanes, &any, sizeof lanes);
    for (int l = 0; l < GDNI_LANES; l++) bits |= lanes[l];
    for (; c < k_dim; c++) bits |= gdni_bits_of(decay[c]);
    return bits << 1 == 0 ? 0.0f : 1.0f;
}

/* A chunk of one strip. A token whose decay is 0 throughout forgets the state before it, whose sums may overflow: the
 * chunk goes on from there as one of its own. */
#define gdni_chunk_strip GDNI_NAME(chunk_strip)
static void gdni_chunk_strip(const gdni_run *u, const gdni_strip *x, gdni_chunk *y) {
    const gdn_params *r = u->r;
    const gdni_workspace *w = u->w;
    const ptrdiff_t width = gdni_tile_width(w);
    y->c0 = x->c0;
    y->v = x->v, y->v_pitch = w->columns;
    y->o = x->o, y->o_pitch = w->columns;
    if (gdni_in_place(x, r->v.dtype)) {
        y->v = (const float *)gdni_row(&r->v, &u->s, y->t0, x->value_head) + x->c0;
        y->v_pitch = r->v.token_stride;
    }
    if (gdni_in_place(x, r->o.dtype)) {
        y->o = (float *)(void *)gdni_output_row(r, &u->s, y->t0, x->value_head, x->c0);
        y->o_pitch = r->o.token_stride;
    }
    gdni_prepare_gates(u, x->value_head, y->t0, y->count, false);
    gdni_prepare_reads(u, x->value_head, y->t0, y->count);
    if (!r->is_kda && r->erase.data != NULL) gdni_raw_scores(u, y);
    for (ptrdiff_t i = 0; i < y->count && r->is_kda; i++) w->gate[i] = gdni_any(w->decay + i * w->kp, r->head_k_dim);
    for (ptrdiff_t a = 0, b; a < y->count; a = b) {
        for (b = a + 1; b < y->count && w->gate[b] != 0;) b++;
        if (r->is_kda) {
            gdni_decay_rows(w, a, b);
            gdni_kda_scores(w, r->head_k_dim, a, b);
        } else
            gdni_decay_scores(w, a, b);
        for (ptrdiff_t c = x->c0; c < x->c1; c += width) {
            const gdni_strip tile = gdni_columns(x, c, gdni_min(c + width, x->c1), w);
            gdni_chunk_tile(u, &tile, y, a, b);
        }
    }
}

#define gdni_run_chunk GDNI_NAME(run_chunk)
static void gdni_run_chunk(const gdni_run *u, ptrdiff_t t0) {
    const gdni_workspace *w = u->w;
    gdni_chunk y;
    y.t0 = t0, y.count = gdni_min(GDNI_CHUNK, u->s.length - t0);
    gdni_look_ahead(u, &y);
    gdni_prepare_qk(u, t0, y.count);
    gdni_transpose(w->k, w->kp, y.count, w->kp, w->kt, GDNI_CHUNK);
    if (!u->r->is_kda && u->r->erase.data == NULL) gdni_raw_scores(u, &y);
    gdni_gather_v(u, t0, y.count, true);
    for (int i = 0; i < u->num_strips; i++) gdni_chunk_strip(u, &u->strips[i], &y);
    gdni_scatter_o(u, t0, y.count, true);
}

#define gdni_run_items GDNI_NAME(run_items)
static void gdni_run_items(const gdn_params *r, ptrdiff_t first, ptrdiff_t last, float *scratch) {
    gdni_workspace w;
    gdni_run runs[2], *u = NULL;
    if (first == last) return;
    gdni_layout(r, scratch, &w);
    for (int i = 0; u != NULL || first < last; i = 1 - i) {
        gdni_run *next = first < last ? &runs[i] : NULL;
        if (next != NULL) {
            gdni_get_run(next, r, first, last, &w);
            first = next->end;
        }
        if (u != NULL) u->next = next;
        if (u != NULL && !gdni_skip(r, &u->s, u->first, u->end)) {
            if (gdni_streams(u))
                gdni_run_decode(u);
            else if (gdni_in_chunks(u))
                for (ptrdiff_t t = 0; t < u->s.length; t += GDNI_CHUNK) gdni_run_chunk(u, t);
            else
                for (ptrdiff_t t = 0; t < u->s.length; t += w.block) gdni_run_block(u, t);
        }
        u = next;
    }
}

#undef GDNI_TARGET
#undef GDNI_LANES
#undef GDNI_STREAM
#undef GDNI_VK_ROWS
#undef GDNI_SET1
#undef GDNI_FMA
#undef GDNI_DSET1
#undef GDNI_DMIN
#undef GDNI_DMAX
#undef GDNI_FOLD
#undef GDNI_FOURS
#undef GDNI_TO_DOUBLES
#undef GDNI_TO_WORDS
#undef GDNI_TO_HALVES
#undef GDNI_F16_TO_F32
#undef GDNI_F32_TO_F16
#undef GDNI_ROUND_BF16
#undef GDNI_WHERE
#undef GDNI_DWHERE
#undef GDNI_CONVERT
#undef GDNI_WORDS
#undef GDNI_FLOATS
#endif /* GDNI_KERNEL */
