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
 *     implementation: [COMPILER] [ELEMENTS] [RESOLVING] [VALIDATION] [ITEMS] [REFERENCE] [PADDING] [SCRATCH]
 *                     [TARGETS] [SELECTION] [PUBLIC] [SEGMENTS] [PRESETS] [NAMES] [KERNEL]
 *
 * CONVENTIONS
 *
 * The same recurrence, many habits. With K = V a wrong state_layout runs and is silently
 * wrong, so the header has no default for it. "-" means the default (zero) of the field. gdn_preset() sets a row.
 *
 *   system                     state_layout   head_map  gate_input  beta_input  l2norm_form, eps    padding
 *   -------------------------  -------------  --------  ----------  ----------  ------------------  --------------
 *   SGLang Triton, to 2026-03  GDN_STATE_KV   -         -           -           -                   -
 *   SGLang Triton, later       GDN_STATE_VK   -         -           -           -                   -
 *   SGLang packed decode       GDN_STATE_VK   -         - / LOG     - / GIVEN   -                   ZERO
 *   SGLang CPU, vLLM CPU       GDN_STATE_KV   -         -           -           -, 1e-5             none (crashes)
 *   vLLM Triton                GDN_STATE_VK   -         - / LOG     - / GIVEN   -                   LEAVE (5)
 *   FLA                        KV or VK (1)   -         LOG / -     GIVEN (2)   -                   no pool
 *   FlashInfer decode          VK or KV (3)   -         - (4)       -           -                   ZERO
 *   ggml, llama.cpp            GDN_STATE_VK   TILED     LOG         GIVEN       MAX_NORM_EPS        no pool
 *   mlx-lm                     GDN_STATE_VK   -         DECAY       GIVEN       MEAN_PLUS_EPS       no pool
 *   transformers               GDN_STATE_KV   -         LOG         GIVEN       -                   no pool
 *
 *   The scale is K^-0.5 in all of them (FlashInfer: 0 means the same, as here). The output has
 *   q's dtype in SGLang, v's in FLA, float32 in newer vLLM where the state is float32; here it is o.dtype.
 *   (1) state_v_first selects VK.  (2) FLA's beta may be per V column: beta_per_column; with
 *   use_beta_sigmoid_in_kernel it is raw, and allow_neg_eigval doubles it.  (3) "pretranspose" and MTP are
 *   VK, "nontranspose" is KV.  (4) FlashInfer's prefill takes DECAY and GIVEN.  (5) fused_recurrent: ZERO;
 *   newer versions reserve slot 0: has_null_slot with null_slot 0.
 *   SGLang, vLLM and FLA normalise q and k only when asked to (use_qk_l2norm_in_kernel); FlashInfer by
 *   default. transformers, ggml and mlx-lm normalise before the operator: set use_qk_l2norm_in_kernel to
 *   feed this one their raw q and k, leave it off to feed it what they feed theirs.
 *
 * DOES NOT
 *
 *   start threads, keep global state, or allocate when scratch is passed; write its inputs; compute the
 *   causal convolution, the output norm or the output gate around the operator; compute gradients;
 *   use the chunked form of the recurrence (its sums depend on where chunks begin).
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
 *           for q (without the norm f = scale); f = hi + lo, two floats; x = fma(x, hi, x * lo).
 *   qk      sum16(q, k), folded in double and rounded to float
 *   gates   decay and beta in double, by this header's own exp, softplus and sigmoid; rounded to float once, to
 *           within 0.61 units in the last place of each function.
 *   token   A = k^T S and B = q^T S over the state before the token;
 *           with KDA, and where decay is 0 (which so forgets whatever finite state was there), the sums are
 *           over the rounded decay_i * k_i and decay_i * q_i.
 *           GDN_STATE_KV, or no layout set: each column sums over k in order in one accumulator.
 *           GDN_STATE_VK: sum16. Then, with p = decay (KDA: 1):
 *               d = beta * fma(-p, A, v);  o = fma(qk, d, p * B);  s = fma(k_i, d, decay_i * s)
 *
 *   The two layouts therefore agree within the error bound, not in bits. bfloat16 and float16 are
 *   converted exactly on load and rounded to nearest, ties to even, on store.
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
 *   GDN_NO_MALLOC          never call malloc: scratch must be passed
 */
#ifndef GDN_VARLEN_H
#define GDN_VARLEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GDN_VERSION_MAJOR 0
#define GDN_VERSION_MINOR 1
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

/* The same for the output. */
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
    GDN_HEADS_TILED        /* key head = hv % H: ggml and GGUF files */
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
    GDN_L2NORM_SUM_PLUS_EPS = 0, /* x / sqrt(sum(x*x) + eps): SGLang, vLLM, FLA, FlashInfer, transformers */
    GDN_L2NORM_MEAN_PLUS_EPS,    /* x / sqrt(sum(x*x) + K*eps): mlx-lm */
    GDN_L2NORM_MAX_NORM_EPS,     /* x / max(sqrt(sum(x*x)), eps): ggml */
    GDN_L2NORM_NORM_PLUS_EPS     /* x / (sqrt(sum(x*x)) + eps) */
} gdn_l2norm_form;

/* What a negative index (or the null slot) does to the output rows of its sequence. The pool is never written. */
typedef enum gdn_padding {
    GDN_PADDING_COMPUTE = 0, /* compute them from a zero state, as SGLang's Triton kernel does */
    GDN_PADDING_ZERO,        /* fill them with zeros */
    GDN_PADDING_LEAVE        /* do not touch them */
} gdn_padding;

typedef enum gdn_compute { GDN_COMPUTE_F32 = 0, GDN_COMPUTE_F64 } gdn_compute;

/* The instruction set of GDN_COMPUTE_F32. All give the same bits; forcing one is for testing. */
typedef enum gdn_isa {
    GDN_ISA_AUTO = 0, /* the fastest that this build has and this CPU supports */
    GDN_ISA_PLAIN,    /* what the compiler may assume of every CPU of its target */
    GDN_ISA_AVX2,     /* with FMA and F16C */
    GDN_ISA_AVX512,
    GDN_ISA_NEON,
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

    /* Inputs, in any mix of dtypes. Required: q, k, v, a; with GDN_GATE_RAW also A_log and dt_bias. */
    gdn_tensor A_log;   /* [HV]; only head_stride may be set */
    gdn_tensor a;       /* [B,T,HV]; is_kda: [B,T,HV,K] */
    gdn_tensor dt_bias; /* [HV]; is_kda: [HV,K]; only head_stride may be set */
    gdn_tensor q, k;    /* [B,T,H,K] */
    gdn_tensor v;       /* [B,T,HV,V] */
    gdn_tensor b;       /* [B,T,HV]; beta_per_column: [B,T,HV,V]; absent: beta = 1 */

    /* Output [B,T,HV,V], with its own dtype. */
    gdn_output o;

    /* State pool; absent: every sequence starts from zeros and its final state is dropped. It is read and written
     * in place, rounded once at the end of the sequence. A slot that one sequence writes is used by no other. */
    gdn_state_pool initial_state_source;
    gdn_state_layout state_layout;     /* of the pool and of the cache; required with either */
    gdn_indices initial_state_indices; /* [N] slot read; absent: slot n. Negative: padding, see below */
    gdn_indices output_state_indices;  /* [N] slot written; absent: the slot read. Negative: none */
    gdn_padding padding;               /* what a negative initial index does to the output */
    bool has_null_slot;                /* null_slot means the same as a negative index, read or written */
    int64_t null_slot;
    bool disable_state_update; /* the pool is only read */

    /* State after every step, for verifying drafts. Row of sequence n: intermediate_state_indices[n] (absent: n;
     * negative: not cached). With retrieve_parent_token [N, steps], step s > 0 of a cached sequence starts from
     * the cached state of step parent[s], 0 <= parent[s] < s, as stored (parent[0] is not read). */
    gdn_state_cache intermediate_states_buffer;
    gdn_indices intermediate_state_indices;
    gdn_indices retrieve_parent_token;

    /* Or one pool slot for each step [N, steps] (negative: not stored), instead of the two index arrays above. The
     * sequence starts from slot ssm_state_indices[n, num_accepted_tokens[n] - 1], absent: [n, 0]. */
    gdn_indices ssm_state_indices;
    gdn_indices num_accepted_tokens; /* [N], each in [1, steps] */

    /* Options. A number left at 0 has its default; for a true zero pass a tiny one such as 1e-300. */
    double scale;                 /* factor on q after the norm; 0: K^-0.5; finite, positive */
    bool use_qk_l2norm_in_kernel; /* L2-normalise q and k over K */
    gdn_l2norm_form l2norm_form;
    double l2norm_eps;         /* 0: 1e-6; finite, not negative */
    double softplus_beta;      /* 0: 1; finite, positive */
    double softplus_threshold; /* 0: 20; softplus(x) = x where beta*x > threshold; not NaN */
    bool is_kda;               /* one gate for each K row: a [..,HV,K], dt_bias [HV,K] */
    bool has_lower_bound;      /* g = lower_bound * sigmoid(exp(A_log) * x) in place of softplus; only raw gates */
    double lower_bound;        /* finite, at most 0 */
    gdn_gate_input gate_input;
    gdn_beta_input beta_input;
    bool beta_per_column;  /* b is [..,HV,V] */
    bool allow_neg_eigval; /* beta is doubled (OLMo-Hybrid) */
    gdn_head_map head_map;

    /* The state alone, with v = 0: S_end = M S_start, see [SEGMENTS]. v and o must be absent, and beta_per_column unset
     * (M would differ from column to column). */
    bool homogeneous;

    /* How to compute. */
    gdn_compute compute;
    gdn_isa isa;
    void *scratch;       /* for the one-thread call, any alignment; NULL: it calls malloc */
    size_t scratch_size; /* at least gdn_scratch_size() bytes where scratch is given */
} gdn_params;

/* What other systems take for granted: code, name, then without their prefixes state_layout, head_map, gate_input,
 * beta_input, l2norm_form, l2norm_eps, padding, and null_slot (-1: none). See [CONVENTIONS].
 *
 *   SGLANG                  the Triton kernel of this operator since March 2026; SGLANG_KV: before
 *   SGLANG_PACKED_DECODE    also rounds beta to the dtype of b: to have that, pass the rounded sigmoid as GIVEN
 *   SGLANG_CPU, VLLM_CPU    sgl-kernel; a negative index crashes there
 *   VLLM                    fused_sigmoid_gating; before slot 0 was reserved: clear has_null_slot
 *   VLLM_RECURRENT          fused_recurrent
 *   FLA                     fused_recurrent; VK with state_v_first; RAW with the gate, or the sigmoid, in the kernel
 *   FLASHINFER_DECODE       "pretranspose" and MTP; FLASHINFER_DECODE_KV: "nontranspose"; FLASHINFER_PREFILL: chunked
 *   GGML, MLX_LM, TRANSFORMERS
 */
/* clang-format off: a table */
#define GDN_SYSTEMS(X)                                                                                                 \
    X(SGLANG, "sglang", VK, GROUPED, RAW, RAW, SUM_PLUS_EPS, 1e-6, COMPUTE, -1)                                        \
    X(SGLANG_KV, "sglang_kv", KV, GROUPED, RAW, RAW, SUM_PLUS_EPS, 1e-6, COMPUTE, -1)                                  \
    X(SGLANG_PACKED_DECODE, "sglang_packed_decode", VK, GROUPED, RAW, RAW, SUM_PLUS_EPS, 1e-6, ZERO, -1)               \
    X(SGLANG_CPU, "sglang_cpu", KV, GROUPED, RAW, RAW, SUM_PLUS_EPS, 1e-5, COMPUTE, -1)                                \
    X(VLLM, "vllm", VK, GROUPED, RAW, RAW, SUM_PLUS_EPS, 1e-6, LEAVE, 0)                                               \
    X(VLLM_RECURRENT, "vllm_recurrent", VK, GROUPED, LOG, GIVEN, SUM_PLUS_EPS, 1e-6, ZERO, -1)                         \
    X(VLLM_CPU, "vllm_cpu", KV, GROUPED, RAW, RAW, SUM_PLUS_EPS, 1e-5, COMPUTE, -1)                                    \
    X(FLA, "fla", KV, GROUPED, LOG, GIVEN, SUM_PLUS_EPS, 1e-6, COMPUTE, -1)                                            \
    X(FLASHINFER_DECODE, "flashinfer_decode", VK, GROUPED, RAW, RAW, SUM_PLUS_EPS, 1e-6, ZERO, -1)                     \
    X(FLASHINFER_DECODE_KV, "flashinfer_decode_kv", KV, GROUPED, RAW, RAW, SUM_PLUS_EPS, 1e-6, ZERO, -1)               \
    X(FLASHINFER_PREFILL, "flashinfer_prefill", VK, GROUPED, DECAY, GIVEN, SUM_PLUS_EPS, 1e-6, COMPUTE, -1)            \
    X(GGML, "ggml", VK, TILED, LOG, GIVEN, MAX_NORM_EPS, 1e-6, COMPUTE, -1)                                            \
    X(MLX_LM, "mlx_lm", VK, GROUPED, DECAY, GIVEN, MEAN_PLUS_EPS, 1e-6, COMPUTE, -1)                                   \
    X(TRANSFORMERS, "transformers", KV, GROUPED, LOG, GIVEN, SUM_PLUS_EPS, 1e-6, COMPUTE, -1)
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
 * NULL. Work grows with N and the number of steps, not with the tensors. */
GDN_API gdn_status gdn_validate(const gdn_params *params, gdn_error *error);

/* Number of work items of parameters that gdn_validate() accepts. Each is one sequence, one value head and 32 columns
 * of V (the last of a head may have fewer). They are ordered by sequence, key head, value head, columns. */
GDN_API ptrdiff_t gdn_num_work_items(const gdn_params *params);

/* Bytes of scratch for one worker. Depends on K, V, the head counts and the options, not on N or T. */
GDN_API size_t gdn_scratch_size(const gdn_params *params);

/* Runs the items first <= i < last of parameters that gdn_validate() accepts, and that stay unchanged until every
 * item has run. Any partition and order gives the same bits. Ranges that run at the same time need their own scratch
 * (any alignment). Returns GDN_OK, GDN_ERROR_RANGE, GDN_ERROR_SCRATCH or (not validated) GDN_ERROR_ISA. */
GDN_API gdn_status gdn_run_work_items(const gdn_params *params, ptrdiff_t first, ptrdiff_t last, void *scratch,
                                      size_t scratch_size);

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
/* Vector units: GNU C only. SSE2 is part of every x86-64; AVX2 and AVX-512 are chosen at run time. */
#if defined(__GNUC__) && !defined(GDN_NO_SIMD) && defined(__SSE2__)
#define GDNI_SSE2 1
#include <cpuid.h>
#include <immintrin.h>
#else
#define GDNI_SSE2 0
#endif
#if GDNI_SSE2 && (defined(__x86_64__) || defined(__i386__))
#define GDNI_X86 1
#else
#define GDNI_X86 0
#endif
#if defined(__GNUC__) && !defined(GDN_NO_SIMD) && defined(__aarch64__) && defined(__ARM_NEON) && !defined(__AARCH64EB__)
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

#ifndef GDN_HEADER_NAME
#define GDN_HEADER_NAME "gdn_varlen.h"
#endif

/* What the kernel calls on floats is inlined, so that it is compiled for the kernel's target: an SSE instruction that
 * comes after AVX-512 ones costs some Intel CPUs hundreds of cycles. */
#if defined(__GNUC__)
#define GDNI_INLINE static inline __attribute__((always_inline))
#else
#define GDNI_INLINE static inline
#endif

/* a*b + c is two roundings unless it is written as gdni_fma. gcc takes that from the pragma below, clang only from
 * one inside each function. The optimisation level keeps the kernel fast in debug builds. gcc's vectoriser is kept off:
 * what is fast is vectors already, and from a loop over those gcc 11 to 14 make masks of scalar conditions that are
 * wrong in every other lane (with AVX512VL). */
#if defined(__clang__)
#define GDNI_EXACT _Pragma("clang fp contract(off) reassociate(off)")
#else
#define GDNI_EXACT
#endif
/* x is a product that is rounded before anything is added to it; under -ffp-contract=fast clang ignores the pragma. */
#if defined(__clang__) && (defined(__x86_64__) || defined(__i386__))
#define GDNI_ROUNDED(x) __asm__("" : "+x"(x));
#elif defined(__clang__) && defined(__aarch64__)
#define GDNI_ROUNDED(x) __asm__("" : "+w"(x));
#elif defined(__clang__)
#define GDNI_ROUNDED(x)                                                                                                \
    {                                                                                                                  \
        const volatile double rounded = x;                                                                             \
        x = rounded;                                                                                                   \
    }
#else
#define GDNI_ROUNDED(x)
#endif
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC optimize("O2", "fp-contract=off", "no-tree-vectorize")
#elif defined(_MSC_VER)
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
    GDNI_RUN = 8,        /* work items that share the preparation of q and k */
    GDNI_BLOCK = 32,     /* most tokens prepared at once */
    GDNI_BLOCK_KIB = 64, /* and most memory for them */
    GDNI_TILE_KIB = 32,  /* most memory of a tile */
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

static ptrdiff_t gdni_dtype_size(gdn_dtype dtype) { return dtype == GDN_F64 ? 8 : dtype == GDN_F32 ? 4 : 2; }

GDNI_INLINE float gdni_get_f32(const void *data, gdn_dtype dtype, ptrdiff_t i) {
    uint16_t half;
    if (dtype == GDN_F32) {
        float x;
        memcpy(&x, (const char *)data + i * 4, 4);
        return x;
    }
    memcpy(&half, (const char *)data + i * 2, 2);
    return dtype == GDN_BF16 ? gdni_float_of((uint32_t)half << 16) : gdni_from_f16(half);
}

static double gdni_get_f64(const void *data, gdn_dtype dtype, ptrdiff_t i) {
    double x;
    if (dtype != GDN_F64) return (double)gdni_get_f32(data, dtype, i);
    memcpy(&x, (const char *)data + i * 8, 8);
    return x;
}

static void gdni_put_f64(void *data, gdn_dtype dtype, ptrdiff_t i, double x) {
    const float single = dtype == GDN_F32 ? (float)x : gdni_round_to_odd(x);
    const uint16_t half = dtype == GDN_BF16 ? gdni_to_bf16(single) : gdni_to_f16(single);
    char *at = (char *)data + i * gdni_dtype_size(dtype);
    if (dtype == GDN_F64)
        memcpy(at, &x, 8);
    else if (dtype == GDN_F32)
        memcpy(at, &single, 4);
    else
        memcpy(at, &half, 2);
}

static int64_t gdni_get_index(const gdn_indices *x, ptrdiff_t row, ptrdiff_t column) {
    const char *data = (const char *)x->data;
    const ptrdiff_t i = row * x->row_stride + column;
    if (x->dtype == GDN_I32) {
        int32_t value;
        memcpy(&value, data + i * 4, 4);
        return value;
    } else {
        int64_t value;
        memcpy(&value, data + i * 8, 8);
        return value;
    }
}

/* ---- [RESOLVING] Parameters with every default filled in -------------------------------------------- */

static bool gdni_varlen(const gdn_params *p) { return p->cu_seqlens.data != NULL; }
static ptrdiff_t gdni_group_size(const gdn_params *p) { return p->num_value_heads / p->num_key_heads; }
static ptrdiff_t gdni_slices(const gdn_params *p) { return (p->head_v_dim - 1) / GDNI_SLICE + 1; }
static ptrdiff_t gdni_state_size(const gdn_params *p) { return gdni_size_mul(p->head_k_dim, p->head_v_dim); }

static void gdni_resolve_strides(const gdn_params *p, ptrdiff_t heads, ptrdiff_t width, ptrdiff_t *batch,
                                 ptrdiff_t *token, ptrdiff_t *head) {
    if (*head == 0) *head = width;
    if (*token == 0) *token = gdni_size_mul(heads, *head);
    if (*batch == 0) *batch = gdni_size_mul(p->seq_len, *token);
}

static void gdni_resolve_tensor(const gdn_params *p, gdn_tensor *x, ptrdiff_t heads, ptrdiff_t width) {
    gdni_resolve_strides(p, heads, width, &x->batch_stride, &x->token_stride, &x->head_stride);
}

static void gdni_resolve_indices(gdn_indices *x, bool two_dimensional) {
    if (!two_dimensional) x->num_columns = 1;
    if (x->row_stride == 0) x->row_stride = x->num_columns;
}

/* Sizes must have been checked. */
static gdn_params gdni_resolve(const gdn_params *params) {
    gdn_params r = *params;
    const ptrdiff_t h = r.num_key_heads, hv = r.num_value_heads, k = r.head_k_dim, v = r.head_v_dim;
    gdn_state_pool *pool = &r.initial_state_source;
    gdn_state_cache *cache = &r.intermediate_states_buffer;
    if (!gdni_varlen(&r)) r.num_seqs = r.batch_size;
    gdni_resolve_tensor(&r, &r.q, h, k);
    gdni_resolve_tensor(&r, &r.k, h, k);
    gdni_resolve_tensor(&r, &r.v, hv, v);
    gdni_resolve_tensor(&r, &r.a, hv, r.is_kda ? k : 1);
    gdni_resolve_tensor(&r, &r.b, hv, r.beta_per_column ? v : 1);
    gdni_resolve_strides(&r, hv, v, &r.o.batch_stride, &r.o.token_stride, &r.o.head_stride);
    if (r.A_log.head_stride == 0) r.A_log.head_stride = 1;
    if (r.dt_bias.head_stride == 0) r.dt_bias.head_stride = r.is_kda ? k : 1;
    if (pool->head_stride == 0) pool->head_stride = gdni_state_size(&r);
    if (pool->slot_stride == 0) pool->slot_stride = gdni_size_mul(hv, pool->head_stride);
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

static gdn_tensor gdni_output_tensor(const gdn_params *r) {
    const gdn_tensor o = {r->o.data, r->o.dtype, r->o.batch_stride, r->o.token_stride, r->o.head_stride};
    return o;
}

/* One sequence: where its tokens are, which slots it uses. */
typedef struct gdni_sequence {
    ptrdiff_t batch, begin, length;
    int64_t read, write, row; /* pool slots and cache row; -1: none. Per-step slots have no `write` */
    bool padding;             /* its index is negative or the null slot */
} gdni_sequence;

static int64_t gdni_slot(const gdn_params *r, int64_t slot) {
    return slot < 0 || (r->has_null_slot && slot == r->null_slot) ? -1 : slot;
}

static bool gdni_writes_pool(const gdn_params *r) {
    return r->initial_state_source.data != NULL && !r->disable_state_update;
}

static gdni_sequence gdni_get_sequence(const gdn_params *r, ptrdiff_t n) {
    gdni_sequence s = {n, 0, r->seq_len, -1, -1, -1, false};
    if (gdni_varlen(r)) {
        s.batch = 0;
        s.begin = (ptrdiff_t)gdni_get_index(&r->cu_seqlens, n, 0);
        s.length = (ptrdiff_t)gdni_get_index(&r->cu_seqlens, n + 1, 0) - s.begin;
    }
    if (r->initial_state_source.data != NULL) {
        ptrdiff_t step = 0;
        if (r->num_accepted_tokens.data != NULL && s.length > 0)
            step = (ptrdiff_t)gdni_get_index(&r->num_accepted_tokens, n, 0) - 1;
        if (r->ssm_state_indices.data != NULL)
            s.read = gdni_get_index(&r->ssm_state_indices, n, step);
        else if (r->initial_state_indices.data != NULL)
            s.read = gdni_get_index(&r->initial_state_indices, n, 0);
        else
            s.read = n;
        s.read = gdni_slot(r, s.read);
        s.padding = s.read < 0;
        if (gdni_writes_pool(r) && !s.padding && r->ssm_state_indices.data == NULL)
            s.write = r->output_state_indices.data == NULL
                          ? s.read
                          : gdni_slot(r, gdni_get_index(&r->output_state_indices, n, 0));
    }
    if (r->intermediate_states_buffer.data != NULL) {
        s.row = r->intermediate_state_indices.data == NULL ? n : gdni_get_index(&r->intermediate_state_indices, n, 0);
        if (s.row < 0 || (s.padding && r->padding != GDN_PADDING_COMPUTE)) s.row = -1;
    }
    return s;
}

/* The pool slot that receives the state after step t of a non-empty sequence; -1: none. */
static int64_t gdni_step_slot(const gdn_params *r, const gdni_sequence *s, ptrdiff_t n, ptrdiff_t t) {
    if (r->ssm_state_indices.data == NULL) return t == s->length - 1 ? s->write : -1;
    if (s->padding || !gdni_writes_pool(r)) return -1;
    return gdni_slot(r, gdni_get_index(&r->ssm_state_indices, n, t));
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

enum { GDNI_NUM_ARRAYS = 18 };

static ptrdiff_t gdni_scratch_bytes(const gdn_params *r);

static ptrdiff_t gdni_element(const gdn_params *r, gdn_dtype dtype) {
    const bool valid = dtype == GDN_F32 || dtype == GDN_BF16 || dtype == GDN_F16 ||
                       (dtype == GDN_F64 && r->compute == GDN_COMPUTE_F64);
    return valid ? gdni_dtype_size(dtype) : 0;
}

static gdni_array gdni_tensor_array(const gdn_params *r, const char *name, const gdn_tensor *x, ptrdiff_t batch,
                                    ptrdiff_t tokens, ptrdiff_t heads, ptrdiff_t width, bool required) {
    gdni_array y = {name, x->data, gdni_element(r, x->dtype), {0, 0, 0}, {0, 0, 0}, width, required, false, 0};
    y.size[0] = batch, y.size[1] = tokens, y.size[2] = heads;
    y.stride[0] = x->batch_stride, y.stride[1] = x->token_stride, y.stride[2] = x->head_stride;
    return y;
}

static gdni_array gdni_index_array(const char *name, const gdn_indices *x, ptrdiff_t rows) {
    gdni_array y = {name, x->data, 0, {1, 1, 0}, {0, 0, 0}, x->num_columns, false, false, 0};
    y.element = x->dtype == GDN_I32 ? 4 : x->dtype == GDN_I64 ? 8 : 0;
    y.size[2] = rows, y.stride[2] = x->row_stride;
    return y;
}

/* Every array of the call: first the tensors, then the indices, then the scratch. */
static void gdni_list_arrays(const gdn_params *r, gdni_array *x) {
    const ptrdiff_t b = r->batch_size, t = r->seq_len, h = r->num_key_heads, hv = r->num_value_heads;
    const ptrdiff_t k = r->head_k_dim, v = r->head_v_dim, n = r->num_seqs;
    const ptrdiff_t gates = r->is_kda ? k : 1, betas = r->beta_per_column ? v : 1;
    const bool raw = r->gate_input == GDN_GATE_RAW, any = t > 0;
    const gdn_state_pool *pool = &r->initial_state_source;
    const gdn_state_cache *cache = &r->intermediate_states_buffer;
    /* Scratch that is too small is refused later, as such. */
    const ptrdiff_t needed = gdni_scratch_bytes(r), bytes = (size_t)needed > r->scratch_size ? 0 : needed;
    const gdni_array scratch = {"scratch", r->scratch, 1, {1, 1, 1}, {0, 0, 0}, bytes, false, true, 0};
    const gdn_tensor o = gdni_output_tensor(r);
    const gdn_tensor states = {pool->data, pool->dtype, 0, pool->slot_stride, pool->head_stride};
    const gdn_tensor steps = {cache->data, cache->dtype, cache->row_stride, cache->step_stride, cache->head_stride};
    x[0] = gdni_tensor_array(r, "A_log", &r->A_log, 1, 1, hv, 1, raw && any);
    x[1] = gdni_tensor_array(r, "a", &r->a, b, t, hv, gates, any);
    x[2] = gdni_tensor_array(r, "dt_bias", &r->dt_bias, 1, 1, hv, gates, raw && any);
    x[3] = gdni_tensor_array(r, "q", &r->q, b, t, h, k, any);
    x[4] = gdni_tensor_array(r, "k", &r->k, b, t, h, k, any);
    x[5] = gdni_tensor_array(r, "v", &r->v, b, t, hv, v, any && !r->homogeneous);
    x[6] = gdni_tensor_array(r, "b", &r->b, b, t, hv, betas, false);
    x[7] = gdni_tensor_array(r, "o", &o, b, t, hv, v, any && !r->homogeneous);
    x[8] = gdni_tensor_array(r, "initial_state_source", &states, 1, pool->num_states, hv, gdni_state_size(r), false);
    x[9] = gdni_tensor_array(r, "intermediate_states_buffer", &steps, cache->num_rows, cache->num_steps, hv,
                             gdni_state_size(r), false);
    x[7].written = true;
    x[8].written = gdni_writes_pool(r);
    x[9].written = true;
    x[10] = gdni_index_array("cu_seqlens", &r->cu_seqlens, gdni_size_add(n, 1));
    x[11] = gdni_index_array("initial_state_indices", &r->initial_state_indices, n);
    x[12] = gdni_index_array("output_state_indices", &r->output_state_indices, n);
    x[13] = gdni_index_array("intermediate_state_indices", &r->intermediate_state_indices, n);
    x[14] = gdni_index_array("retrieve_parent_token", &r->retrieve_parent_token, n);
    x[15] = gdni_index_array("ssm_state_indices", &r->ssm_state_indices, n);
    x[16] = gdni_index_array("num_accepted_tokens", &r->num_accepted_tokens, n);
    x[17] = scratch;
}

static gdn_status gdni_check_sizes(const gdn_params *p, gdn_error *error) {
    if (p->batch_size < 1 || (gdni_varlen(p) && p->batch_size != 1))
        return gdni_fail(error, GDN_ERROR_SIZE, "batch_size");
    if (p->seq_len < 0) return gdni_fail(error, GDN_ERROR_SIZE, "seq_len");
    if (gdni_varlen(p) ? p->num_seqs < 1 : p->num_seqs != 0 && p->num_seqs != p->batch_size)
        return gdni_fail(error, GDN_ERROR_SIZE, "num_seqs");
    if (p->num_key_heads < 1) return gdni_fail(error, GDN_ERROR_SIZE, "num_key_heads");
    if (p->num_value_heads < 1 || p->num_value_heads % p->num_key_heads != 0)
        return gdni_fail(error, GDN_ERROR_SIZE, "num_value_heads");
    if (p->head_k_dim < 1) return gdni_fail(error, GDN_ERROR_SIZE, "head_k_dim");
    if (p->head_v_dim < 1) return gdni_fail(error, GDN_ERROR_SIZE, "head_v_dim");
    if (p->initial_state_source.data != NULL && p->initial_state_source.num_states < 1)
        return gdni_fail(error, GDN_ERROR_SIZE, "initial_state_source");
    if (p->intermediate_states_buffer.data != NULL &&
        (p->intermediate_states_buffer.num_rows < 1 || p->intermediate_states_buffer.num_steps < 1))
        return gdni_fail(error, GDN_ERROR_SIZE, "intermediate_states_buffer");
    if (p->retrieve_parent_token.data != NULL && p->retrieve_parent_token.num_columns < 1)
        return gdni_fail(error, GDN_ERROR_SIZE, "retrieve_parent_token");
    if (p->ssm_state_indices.data != NULL && p->ssm_state_indices.num_columns < 1)
        return gdni_fail(error, GDN_ERROR_SIZE, "ssm_state_indices");
    return GDN_OK;
}

static gdn_status gdni_check_options(const gdn_params *r, gdn_error *error) {
    const bool states = r->initial_state_source.data != NULL || r->intermediate_states_buffer.data != NULL;
    const struct {
        const char *name;
        int value, first, last;
    } enums[] = {{"state_layout", (int)r->state_layout, states ? (int)GDN_STATE_KV : (int)GDN_STATE_LAYOUT_NOT_SET,
                  GDN_STATE_VK},
                 {"padding", (int)r->padding, 0, GDN_PADDING_LEAVE},
                 {"l2norm_form", (int)r->l2norm_form, 0, GDN_L2NORM_NORM_PLUS_EPS},
                 {"gate_input", (int)r->gate_input, 0, GDN_GATE_DECAY},
                 {"beta_input", (int)r->beta_input, 0, GDN_BETA_GIVEN},
                 {"head_map", (int)r->head_map, 0, GDN_HEADS_TILED},
                 {"compute", (int)r->compute, 0, GDN_COMPUTE_F64},
                 {"isa", (int)r->isa, 0, GDN_NUM_ISAS - 1}};
    for (size_t i = 0; i < sizeof enums / sizeof enums[0]; i++)
        if (enums[i].value < enums[i].first || enums[i].value > enums[i].last)
            return gdni_fail(error, GDN_ERROR_ENUM, enums[i].name);

    /* Written so that a NaN fails. */
    if (!(r->scale > 0 && r->scale <= DBL_MAX)) return gdni_fail(error, GDN_ERROR_VALUE, "scale");
    if (!(r->l2norm_eps > 0 && r->l2norm_eps <= DBL_MAX)) return gdni_fail(error, GDN_ERROR_VALUE, "l2norm_eps");
    if (!(r->softplus_beta > 0 && r->softplus_beta <= DBL_MAX))
        return gdni_fail(error, GDN_ERROR_VALUE, "softplus_beta");
    if (r->softplus_threshold != r->softplus_threshold) return gdni_fail(error, GDN_ERROR_VALUE, "softplus_threshold");
    if (r->has_lower_bound && !(r->lower_bound <= 0 && r->lower_bound >= -DBL_MAX))
        return gdni_fail(error, GDN_ERROR_VALUE, "lower_bound");

    if (r->has_lower_bound && r->gate_input != GDN_GATE_RAW)
        return gdni_fail(error, GDN_ERROR_COMBINATION, "has_lower_bound");
    if (r->beta_per_column && r->b.data == NULL) return gdni_fail(error, GDN_ERROR_COMBINATION, "beta_per_column");
    if (r->homogeneous && (r->v.data != NULL || r->o.data != NULL || r->beta_per_column))
        return gdni_fail(error, GDN_ERROR_COMBINATION, "homogeneous");
    if (r->num_accepted_tokens.data != NULL && r->ssm_state_indices.data == NULL)
        return gdni_fail(error, GDN_ERROR_COMBINATION, "num_accepted_tokens");
    if (r->ssm_state_indices.data != NULL &&
        (r->initial_state_indices.data != NULL || r->output_state_indices.data != NULL))
        return gdni_fail(error, GDN_ERROR_COMBINATION, "ssm_state_indices");
    if (r->initial_state_source.data == NULL &&
        (r->initial_state_indices.data != NULL || r->output_state_indices.data != NULL ||
         r->ssm_state_indices.data != NULL))
        return gdni_fail(error, GDN_ERROR_NULL, "initial_state_source");
    if (r->intermediate_states_buffer.data == NULL &&
        (r->intermediate_state_indices.data != NULL || r->retrieve_parent_token.data != NULL))
        return gdni_fail(error, GDN_ERROR_NULL, "intermediate_states_buffer");
    if (r->compute == GDN_COMPUTE_F32 && !gdn_isa_supported(r->isa)) return gdni_fail(error, GDN_ERROR_ISA, "isa");
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

static gdn_status gdni_check_arrays(const gdn_params *r, gdn_error *error) {
    static const int written[] = {7, 9, 8, 17}; /* o, cache, pool, scratch: of two, the first is named */
    gdni_array x[GDNI_NUM_ARRAYS];
    gdn_status status = GDN_OK;
    gdni_list_arrays(r, x);
    for (int i = 0; i < GDNI_NUM_ARRAYS && status == GDN_OK; i++) status = gdni_check_array(&x[i], error);
    if (status != GDN_OK) return status;
    if (r->A_log.data != NULL && (r->A_log.batch_stride != 0 || r->A_log.token_stride != 0))
        return gdni_fail(error, GDN_ERROR_STRIDE, "A_log");
    if (r->dt_bias.data != NULL && (r->dt_bias.batch_stride != 0 || r->dt_bias.token_stride != 0))
        return gdni_fail(error, GDN_ERROR_STRIDE, "dt_bias");
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < GDNI_NUM_ARRAYS; j++) {
            const gdni_array *y = &x[written[i]];
            if (y != &x[j] && y->data != NULL && x[j].data != NULL && y->written && !gdni_disjoint(y, &x[j]))
                return gdni_fail(error, GDN_ERROR_OVERLAP, y->name);
        }
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
    const gdn_indices *slots = &r->ssm_state_indices, *parents = &r->retrieve_parent_token;
    for (ptrdiff_t n = 0; n < r->num_seqs; n++) {
        gdni_sequence s;
        if (r->num_accepted_tokens.data != NULL) { /* before gdni_get_sequence follows it */
            const int64_t accepted = gdni_get_index(&r->num_accepted_tokens, n, 0);
            const bool empty =
                gdni_varlen(r) && gdni_get_index(&r->cu_seqlens, n, 0) == gdni_get_index(&r->cu_seqlens, n + 1, 0);
            if (!empty && (accepted < 1 || accepted > slots->num_columns))
                return gdni_fail_at(error, GDN_ERROR_INDEX, "num_accepted_tokens", n, -1);
        }
        s = gdni_get_sequence(r, n);
        if (slots->data != NULL && s.length > slots->num_columns)
            return gdni_fail_at(error, GDN_ERROR_SIZE, "ssm_state_indices", n, -1);
        if (s.row < 0) continue;
        if (s.length > r->intermediate_states_buffer.num_steps)
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

/* What sequence n writes after step t: a slot of the pool, or (cache) a row, once. -1: nothing. */
static int64_t gdni_written(const gdn_params *r, bool cache, const gdni_sequence *s, ptrdiff_t n, ptrdiff_t t) {
    return cache ? (t == s->length - 1 ? s->row : -1) : gdni_step_slot(r, s, n, t);
}

/* The first step after which a sequence may write: the last one, except with per-step slots. */
static ptrdiff_t gdni_first_write(const gdn_params *r, bool cache, const gdni_sequence *s) {
    return s->length == 0 || (!cache && r->ssm_state_indices.data != NULL) ? 0 : s->length - 1;
}

/* First t at which sequence n writes `slot`, or -1. */
static ptrdiff_t gdni_find_write(const gdn_params *r, bool cache, ptrdiff_t n, int64_t slot) {
    const gdni_sequence s = gdni_get_sequence(r, n);
    for (ptrdiff_t t = gdni_first_write(r, cache, &s); t < s.length; t++)
        if (gdni_written(r, cache, &s, n, t) == slot) return t;
    return -1;
}

/* Sequences n and m meet in a slot that m writes at step t. The later one is named, by its own index array. */
static gdn_status gdni_conflict(const gdn_params *r, bool cache, bool n_reads, ptrdiff_t n, ptrdiff_t n_step,
                                ptrdiff_t m, ptrdiff_t m_step, gdn_error *error) {
    const bool steps = !cache && r->ssm_state_indices.data != NULL;
    const ptrdiff_t columns = r->ssm_state_indices.num_columns;
    const ptrdiff_t n_place = steps ? n * columns + n_step : n, m_place = steps ? m * columns + m_step : m;
    const bool later_reads = n_reads && n > m;
    const char *name = cache                                                  ? "intermediate_state_indices"
                       : steps                                                ? "ssm_state_indices"
                       : !later_reads && r->output_state_indices.data != NULL ? "output_state_indices"
                       : r->initial_state_indices.data != NULL                ? "initial_state_indices"
                                                                              : "initial_state_source";
    return gdni_fail_at(error, GDN_ERROR_CONFLICT, name, n > m ? n_place : m_place, n > m ? m_place : n_place);
}

/* No two sequences write one slot, and none reads what another writes. Written slots are marked in a table of bits:
 * a small pool has a bit for each slot, a large one hashes its slots, a few at a time, and looks again where two meet.
 */
static gdn_status gdni_check_conflicts(const gdn_params *r, bool cache, gdn_error *error) {
    enum { BITS = 65536, AT_A_TIME = 512 };
    const bool steps = !cache && r->ssm_state_indices.data != NULL;
    const bool dense = (cache ? r->intermediate_states_buffer.num_rows : r->initial_state_source.num_states) <= BITS;
    const ptrdiff_t writes = gdni_size_mul(r->num_seqs, steps ? r->ssm_state_indices.num_columns : 1);
    const uint64_t passes = dense ? 1 : (uint64_t)(writes / AT_A_TIME + 1), factor = dense ? 1 : 0x9e3779b97f4a7c15u;
    uint32_t bits[BITS / 32];
    for (uint64_t pass = 0; pass < passes; pass++) {
        memset(bits, 0, sizeof bits);
        for (ptrdiff_t n = 0; n < r->num_seqs; n++) {
            const gdni_sequence s = gdni_get_sequence(r, n);
            for (ptrdiff_t t = gdni_first_write(r, cache, &s); t < s.length; t++) {
                const int64_t slot = gdni_written(r, cache, &s, n, t);
                const uint64_t hash = (uint64_t)slot * factor, bit = dense ? hash : hash >> 48;
                if (slot < 0 || hash % passes != pass) continue;
                if (bits[bit / 32] >> bit % 32 & 1u)
                    for (ptrdiff_t m = 0; m < n; m++) {
                        const ptrdiff_t step = gdni_find_write(r, cache, m, slot);
                        if (step >= 0) return gdni_conflict(r, cache, false, n, t, m, step, error);
                    }
                bits[bit / 32] |= (uint32_t)1 << bit % 32;
            }
        }
        for (ptrdiff_t n = 0; n < r->num_seqs && !cache; n++) {
            const gdni_sequence s = gdni_get_sequence(r, n);
            const uint64_t hash = (uint64_t)s.read * factor, bit = dense ? hash : hash >> 48;
            if (s.length == 0 || s.read < 0 || hash % passes != pass || !(bits[bit / 32] >> bit % 32 & 1u)) continue;
            if (gdni_find_write(r, false, n, s.read) >= 0) continue;
            for (ptrdiff_t m = 0; m < r->num_seqs; m++) {
                const ptrdiff_t step = gdni_find_write(r, false, m, s.read);
                const ptrdiff_t start = r->num_accepted_tokens.data == NULL
                                            ? 0
                                            : (ptrdiff_t)gdni_get_index(&r->num_accepted_tokens, n, 0) - 1;
                if (step >= 0) return gdni_conflict(r, false, true, n, start, m, step, error);
            }
        }
    }
    return GDN_OK;
}

static gdn_status gdni_check_sequences(const gdn_params *r, gdn_error *error) {
    const ptrdiff_t n = r->num_seqs, slots = r->initial_state_source.num_states;
    const ptrdiff_t rows = r->intermediate_states_buffer.num_rows;
    gdn_status status = gdni_check_cu_seqlens(r, error);
    if (status == GDN_OK)
        status = gdni_check_range(r, &r->initial_state_indices, "initial_state_indices", slots, error);
    if (status == GDN_OK) status = gdni_check_range(r, &r->output_state_indices, "output_state_indices", slots, error);
    if (status == GDN_OK) status = gdni_check_range(r, &r->ssm_state_indices, "ssm_state_indices", slots, error);
    if (status == GDN_OK)
        status = gdni_check_range(r, &r->intermediate_state_indices, "intermediate_state_indices", rows, error);
    if (status != GDN_OK) return status;
    if (r->initial_state_source.data != NULL && r->initial_state_indices.data == NULL &&
        r->ssm_state_indices.data == NULL && slots < n)
        return gdni_fail_at(error, GDN_ERROR_INDEX, "initial_state_source", slots, -1);
    if (r->intermediate_states_buffer.data != NULL && r->intermediate_state_indices.data == NULL && rows < n)
        return gdni_fail_at(error, GDN_ERROR_INDEX, "intermediate_states_buffer", rows, -1);
    status = gdni_check_steps(r, error);
    if (status == GDN_OK && gdni_writes_pool(r)) status = gdni_check_conflicts(r, false, error);
    if (status == GDN_OK && r->intermediate_state_indices.data != NULL) status = gdni_check_conflicts(r, true, error);
    return status;
}

/* ---- [ITEMS] Where a work item lies, and the memory it touches ---------------------------------------- */

/* Items are ordered by sequence, key head, value head of that key head, columns of V. */
typedef struct gdni_item {
    ptrdiff_t n, key_head, value_head, c0, c1;
} gdni_item;

static gdni_item gdni_get_item(const gdn_params *r, ptrdiff_t i) {
    const ptrdiff_t slices = gdni_slices(r), group = gdni_group_size(r);
    const ptrdiff_t position = i / slices % r->num_value_heads, member = position % group;
    const ptrdiff_t c0 = i % slices * GDNI_SLICE, c1 = gdni_min(c0 + GDNI_SLICE, r->head_v_dim);
    gdni_item x = {i / slices / r->num_value_heads, position / group, position, c0, c1};
    if (r->head_map == GDN_HEADS_TILED) x.value_head = member * r->num_key_heads + x.key_head;
    return x;
}

static ptrdiff_t gdni_offset(const gdn_tensor *x, const gdni_sequence *s, ptrdiff_t t, ptrdiff_t head) {
    return s->batch * x->batch_stride + (s->begin + t) * x->token_stride + head * x->head_stride;
}

static ptrdiff_t gdni_output_offset(const gdn_params *r, const gdni_sequence *s, ptrdiff_t t, ptrdiff_t head) {
    const gdn_tensor o = gdni_output_tensor(r);
    return gdni_offset(&o, s, t, head);
}

static char *gdni_output_row(const gdn_params *r, const gdni_sequence *s, ptrdiff_t t, ptrdiff_t head) {
    return (char *)r->o.data + gdni_output_offset(r, s, t, head) * gdni_dtype_size(r->o.dtype);
}

static const void *gdni_row(const gdn_tensor *x, const gdni_sequence *s, ptrdiff_t t, ptrdiff_t head) {
    return (const char *)x->data + gdni_offset(x, s, t, head) * gdni_dtype_size(x->dtype);
}

/* Asks for `bytes` from p on. */
static void gdni_prefetch(const char *p, ptrdiff_t bytes) {
#if defined(__GNUC__)
    for (ptrdiff_t i = 0; i < bytes; i += GDNI_ALIGNMENT) __builtin_prefetch(p + i, 0, 2); /* second level */
#else
    (void)p, (void)bytes;
#endif
}

/* One state matrix, in a pool or in the step cache; data NULL: zeros to read, nowhere to write. */
typedef struct gdni_matrix {
    char *data;
    gdn_dtype dtype;
} gdni_matrix;

static gdni_matrix gdni_pool_matrix(const gdn_params *r, int64_t slot, ptrdiff_t head) {
    const gdn_state_pool *x = &r->initial_state_source;
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

/* ---- [REFERENCE] The oracle: the formulas in double, one column slice of one head at a time ------------- */

static double gdni_reference_sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }
static double gdni_reference_softplus(double x) { return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x)); }

static double gdni_reference_decay(const gdn_params *r, const gdni_sequence *s, ptrdiff_t t, ptrdiff_t hv,
                                   ptrdiff_t i) {
    const double a = gdni_get_f64(gdni_row(&r->a, s, t, hv), r->a.dtype, i);
    double x, A, g;
    if (r->gate_input == GDN_GATE_DECAY) return a;
    if (r->gate_input == GDN_GATE_LOG) return exp(a);
    x = a + gdni_get_f64(r->dt_bias.data, r->dt_bias.dtype, hv * r->dt_bias.head_stride + i);
    A = exp(gdni_get_f64(r->A_log.data, r->A_log.dtype, hv * r->A_log.head_stride));
    if (r->has_lower_bound)
        g = r->lower_bound * gdni_reference_sigmoid(A * x);
    else if (r->softplus_beta * x <= r->softplus_threshold)
        g = -A * gdni_reference_softplus(r->softplus_beta * x) / r->softplus_beta;
    else
        g = -A * x;
    return exp(g);
}

static double gdni_reference_beta(const gdn_params *r, const gdni_sequence *s, ptrdiff_t t, ptrdiff_t hv, ptrdiff_t c) {
    double beta = 1.0;
    if (r->b.data != NULL) {
        beta = gdni_get_f64(gdni_row(&r->b, s, t, hv), r->b.dtype, r->beta_per_column ? c : 0);
        if (r->beta_input == GDN_BETA_RAW) beta = gdni_reference_sigmoid(beta);
    }
    return r->allow_neg_eigval ? 2.0 * beta : beta;
}

static void gdni_reference_row(const gdn_params *r, const gdn_tensor *x, const gdni_sequence *s, ptrdiff_t t,
                               ptrdiff_t h, double scale, double *y) {
    double sum = 0, norm = 1;
    for (ptrdiff_t i = 0; i < r->head_k_dim; i++) {
        y[i] = gdni_get_f64(gdni_row(x, s, t, h), x->dtype, i);
        sum += y[i] * y[i];
    }
    if (r->use_qk_l2norm_in_kernel) switch (r->l2norm_form) {
        case GDN_L2NORM_SUM_PLUS_EPS:
            norm = sqrt(sum + r->l2norm_eps);
            break;
        case GDN_L2NORM_MEAN_PLUS_EPS:
            norm = sqrt(sum + (double)r->head_k_dim * r->l2norm_eps);
            break;
        case GDN_L2NORM_MAX_NORM_EPS:
            norm = sqrt(sum) > r->l2norm_eps ? sqrt(sum) : r->l2norm_eps;
            break;
        case GDN_L2NORM_NORM_PLUS_EPS:
            norm = sqrt(sum) + r->l2norm_eps;
            break;
        }
    for (ptrdiff_t i = 0; i < r->head_k_dim; i++) y[i] = y[i] / norm * scale;
}

/* S [K][GDNI_SLICE] holds columns c0 to c1; `store` writes them to m, else reads. */
static void gdni_reference_state(const gdn_params *r, gdni_matrix m, ptrdiff_t c0, ptrdiff_t c1, bool store,
                                 double *S) {
    const ptrdiff_t K = r->head_k_dim, V = r->head_v_dim;
    for (ptrdiff_t i = 0; i < K; i++)
        for (ptrdiff_t c = c0; c < c1; c++) {
            const ptrdiff_t at = r->state_layout == GDN_STATE_KV ? i * V + c : c * K + i;
            double *x = &S[i * GDNI_SLICE + c - c0];
            if (!store)
                *x = m.data == NULL ? 0.0 : gdni_get_f64(m.data, m.dtype, at);
            else if (m.data != NULL)
                gdni_put_f64(m.data, m.dtype, at, *x);
        }
}

static void gdni_reference_item(const gdn_params *r, const gdni_item *x, const gdni_sequence *s, double *scratch) {
    const ptrdiff_t K = r->head_k_dim, h = x->key_head, hv = x->value_head;
    const ptrdiff_t c0 = x->c0, c1 = x->c1;
    double *q = scratch, *k = q + K, *decay = k + K, *S = decay + K;

    gdni_reference_state(r, gdni_pool_matrix(r, s->read, hv), c0, c1, false, S);
    for (ptrdiff_t t = 0; t < s->length; t++) {
        const int64_t parent = gdni_parent(r, s, x->n, t);
        if (parent >= 0) gdni_reference_state(r, gdni_cache_matrix(r, s->row, parent, hv), c0, c1, false, S);
        gdni_reference_row(r, &r->q, s, t, h, r->scale, q);
        gdni_reference_row(r, &r->k, s, t, h, 1.0, k);
        for (ptrdiff_t i = 0; i < K; i++)
            decay[i] = i == 0 || r->is_kda ? gdni_reference_decay(r, s, t, hv, i) : decay[0];

        for (ptrdiff_t c = c0; c < c1; c++) {
            const double v = gdni_get_f64(gdni_row(&r->v, s, t, hv), r->v.dtype, c);
            double *column = S + (c - c0), kS = 0, d, o = 0;
            for (ptrdiff_t i = 0; i < K; i++) column[i * GDNI_SLICE] *= decay[i];
            for (ptrdiff_t i = 0; i < K; i++) kS += k[i] * column[i * GDNI_SLICE];
            d = gdni_reference_beta(r, s, t, hv, c) * (v - kS);
            for (ptrdiff_t i = 0; i < K; i++) column[i * GDNI_SLICE] += k[i] * d;
            for (ptrdiff_t i = 0; i < K; i++) o += q[i] * column[i * GDNI_SLICE];
            gdni_put_f64(r->o.data, r->o.dtype, gdni_output_offset(r, s, t, hv) + c, o);
        }
        gdni_reference_state(r, gdni_cache_matrix(r, s->row, t, hv), c0, c1, true, S);
        gdni_reference_state(r, gdni_pool_matrix(r, gdni_step_slot(r, s, x->n, t), hv), c0, c1, true, S);
    }
}

/* ---- [PADDING] Sequences that are not computed ------------------------------------------------------- */

/* True if items first to last of sequence s are done without computing: empty, or padding that is not computed. */
static bool gdni_skip(const gdn_params *r, const gdni_sequence *s, ptrdiff_t first, ptrdiff_t last) {
    const ptrdiff_t element = gdni_dtype_size(r->o.dtype);
    if (s->length == 0) return true;
    if (!s->padding || r->padding == GDN_PADDING_COMPUTE) return false;
    for (ptrdiff_t i = first; i < last && r->padding == GDN_PADDING_ZERO; i++) {
        const gdni_item x = gdni_get_item(r, i);
        for (ptrdiff_t t = 0; t < s->length; t++)
            memset((char *)r->o.data + (gdni_output_offset(r, s, t, x.value_head) + x.c0) * element, 0,
                   (size_t)((x.c1 - x.c0) * element));
    }
    return true;
}

/* ---- [SCRATCH] The float32 computation's memory -------------------------------------------------------- */

/* Rows of K floats are padded to kp = a multiple of sixteen with zeros. A tile holds the state columns of one
 * segment: consecutive items of one value head. */
typedef struct gdni_workspace {
    ptrdiff_t kp, block, columns; /* floats in a K row, tokens in a block, columns in a run */
    float *q, *k;                 /* [block + 1][kp], normalised; q scaled */
    float *decay, *kd, *qd;       /* decay, decay*k, decay*q. KDA: [block + 1][kp]; else one row */
    float *qk, *gate, *beta;      /* [block + 16] */
    float *bias;                  /* KDA: [kp]; else [16], all the same */
    float *rows;                  /* [4][kp] of a GDN_STATE_VK matrix */
    float *A, *B, *d;             /* [columns] */
    float *v, *o;                 /* [block][columns] */
    float *tiles;                 /* [columns * kp] */
} gdni_workspace;

/* Columns c0 to c1 of one value head: their state, their sums, and their v and o as rows of `pitch` floats for each
 * token. */
typedef struct gdni_segment {
    ptrdiff_t value_head, c0, c1, pitch;
    float *tile, *v, *o, *A, *B;
} gdni_segment;

/* Consecutive items of one sequence and key head, at most GDNI_RUN: they share the prepared q and k. */
typedef struct gdni_group {
    gdni_sequence s;
    ptrdiff_t n, key_head, end; /* end: the item after its last */
    int num_heads;
    gdni_segment heads[GDNI_RUN];
} gdni_group;

/* The group that starts with item `first`, of those before `last`. */
GDNI_INLINE gdni_group gdni_get_group(const gdn_params *r, ptrdiff_t first, ptrdiff_t last, const gdni_workspace *w) {
    const ptrdiff_t per_key_head = gdni_group_size(r) * gdni_slices(r);
    const gdni_item start = gdni_get_item(r, first);
    gdni_group g;
    memset(&g, 0, sizeof g);
    g.s = gdni_get_sequence(r, start.n);
    g.n = start.n, g.key_head = start.key_head;
    g.end = gdni_min(gdni_min(first + GDNI_RUN, (first / per_key_head + 1) * per_key_head), last);
    for (ptrdiff_t i = first, stop; i < g.end; i = stop) {
        const gdni_item x = gdni_get_item(r, i);
        const ptrdiff_t at = (i - first) * GDNI_SLICE;
        gdni_segment *head = &g.heads[g.num_heads++];
        stop = gdni_min(i + (r->head_v_dim - x.c0 - 1) / GDNI_SLICE + 1, g.end);
        head->value_head = x.value_head;
        head->c0 = x.c0, head->c1 = gdni_min(x.c0 + (stop - i) * GDNI_SLICE, r->head_v_dim);
        head->tile = w->tiles + at * w->kp;
        head->v = w->v + at, head->o = w->o + at;
        head->A = w->A + at, head->B = w->B + at;
        head->pitch = w->columns;
    }
    return g;
}

/* Columns c0 to c1 of a segment. */
static gdni_segment gdni_columns(const gdni_segment *x, ptrdiff_t c0, ptrdiff_t c1, const gdni_workspace *w) {
    const ptrdiff_t at = c0 - x->c0;
    const gdni_segment y = {x->value_head, c0,        c1,        x->pitch, x->tile + at * w->kp,
                            x->v + at,     x->o + at, x->A + at, x->B + at};
    return y;
}

/* The rows of one head lie a whole token apart, often a page of memory or more, which no processor foresees. Asks for
 * those of token t: every `parts`-th of the rows of q, k and, for each head, v and (KDA) a. */
static void gdni_fetch(const gdn_params *r, const gdni_group *g, ptrdiff_t t, ptrdiff_t part, ptrdiff_t parts) {
    const ptrdiff_t per_head = r->is_kda ? 2 : 1, rows = 2 + g->num_heads * per_head;
    if (t >= g->s.length) return;
    for (ptrdiff_t i = part; i < rows; i += parts) {
        const gdni_segment *head = &g->heads[i < 2 ? 0 : (i - 2) / per_head];
        const gdn_tensor *x = i == 0 ? &r->q : i == 1 ? &r->k : (i - 2) % per_head == 0 ? &r->v : &r->a;
        const ptrdiff_t first = x == &r->v ? head->c0 : 0, count = x == &r->v ? head->c1 - head->c0 : r->head_k_dim;
        const ptrdiff_t size = gdni_dtype_size(x->dtype);
        gdni_prefetch((const char *)gdni_row(x, &g->s, t, i < 2 ? g->key_head : head->value_head) + first * size,
                      count * size);
    }
}

/* 1 / norm, from the sum of squares. */
GDNI_INLINE double gdni_norm_factor(const gdn_params *r, double sum) {
    GDNI_EXACT
    const double eps = r->l2norm_eps;
    double k_eps = (double)r->head_k_dim * eps;
    GDNI_ROUNDED(k_eps)
    switch (r->l2norm_form) {
    case GDN_L2NORM_MEAN_PLUS_EPS:
        return 1.0 / sqrt(sum + k_eps);
    case GDN_L2NORM_MAX_NORM_EPS:
        return 1.0 / (sqrt(sum) < eps ? eps : sqrt(sum));
    case GDN_L2NORM_NORM_PLUS_EPS:
        return 1.0 / (sqrt(sum) + eps);
    case GDN_L2NORM_SUM_PLUS_EPS:
        break;
    }
    return 1.0 / sqrt(sum + eps);
}

static void gdni_take(float *base, ptrdiff_t *used, ptrdiff_t count, float **at) {
    if (base != NULL) *at = base + *used;
    *used = gdni_size_add(*used, gdni_round_up(count, 16));
}

/* Lays the workspace out from `base` (NULL: only counts) and returns the floats it takes. */
static ptrdiff_t gdni_layout(const gdn_params *r, float *base, gdni_workspace *w) {
    const ptrdiff_t kp = gdni_round_up(r->head_k_dim, 16);
    const ptrdiff_t slices = gdni_size_mul(gdni_group_size(r), gdni_slices(r));
    const ptrdiff_t columns = GDNI_SLICE * gdni_min(GDNI_RUN, slices);
    const ptrdiff_t fit = GDNI_BLOCK_KIB * 1024 / 4 / (r->is_kda ? 5 : 2) / kp;
    const ptrdiff_t block = fit < 1 ? 1 : gdni_min(fit, GDNI_BLOCK), rows = gdni_size_mul(block + 1, kp);
    ptrdiff_t used = 0;
    memset(w, 0, sizeof *w);
    w->kp = kp, w->block = block, w->columns = columns;
    gdni_take(base, &used, rows, &w->q);
    gdni_take(base, &used, rows, &w->k);
    gdni_take(base, &used, r->is_kda ? rows : kp, &w->decay);
    gdni_take(base, &used, r->is_kda ? rows : kp, &w->kd);
    gdni_take(base, &used, r->is_kda ? rows : kp, &w->qd);
    gdni_take(base, &used, block + 16, &w->qk);
    gdni_take(base, &used, block + 16, &w->gate);
    gdni_take(base, &used, block + 16, &w->beta);
    gdni_take(base, &used, r->is_kda ? kp : 16, &w->bias);
    gdni_take(base, &used, gdni_size_mul(4, kp), &w->rows);
    gdni_take(base, &used, columns, &w->A);
    gdni_take(base, &used, columns, &w->B);
    gdni_take(base, &used, columns, &w->d);
    gdni_take(base, &used, block * columns, &w->v);
    gdni_take(base, &used, block * columns, &w->o);
    gdni_take(base, &used, gdni_size_mul(columns, kp), &w->tiles);
    return used;
}

static void *gdni_align(void *p) {
    const uintptr_t over = (uintptr_t)p % GDNI_ALIGNMENT;
    return (char *)p + (over == 0 ? 0 : GDNI_ALIGNMENT - over);
}

/* Bytes; PTRDIFF_MAX if they do not fit. */
static ptrdiff_t gdni_scratch_bytes(const gdn_params *r) {
    gdni_workspace w;
    ptrdiff_t count;
    if (r->compute == GDN_COMPUTE_F64)
        count = gdni_size_mul(2 * (3 + GDNI_SLICE), r->head_k_dim);
    else
        count = gdni_layout(r, NULL, &w);
    if (r->homogeneous) count = gdni_size_add(count, gdni_size_mul(2, gdni_round_up(r->head_v_dim, 16)));
    return gdni_size_add(gdni_size_mul(count, 4), GDNI_ALIGNMENT);
}

/* Where v and o are left out, all tokens and heads share one row of zeros and one that nobody reads. Returns what
 * remains of the scratch. */
static float *gdni_leave_out(gdn_params *r, float *scratch) {
    const ptrdiff_t row = gdni_round_up(r->head_v_dim, 16);
    if (!r->homogeneous) return scratch;
    memset(scratch, 0, (size_t)row * sizeof(float));
    r->v = gdn_f32(scratch); /* strides of 0, and no longer resolved */
    r->o = gdn_out_f32(scratch + row);
    return scratch + 2 * row;
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
GDNI_INLINE __m128 gdni_fold_fours(__m128 a, __m128 b, __m128 c, __m128 d) {
    GDNI_EXACT
    const __m128 x = _mm_movelh_ps(a, b) + _mm_movehl_ps(b, a);
    const __m128 y = _mm_movelh_ps(c, d) + _mm_movehl_ps(d, c);
    return _mm_shuffle_ps(x, y, 0x88) + _mm_shuffle_ps(x, y, 0xdd);
}
GDNI_INLINE void gdni_store_four(float *p, __m128 x) { _mm_storeu_ps(p, x); }
#elif GDNI_NEON
GDNI_INLINE float32x4_t gdni_fold_fours(float32x4_t a, float32x4_t b, float32x4_t c, float32x4_t d) {
    GDNI_EXACT
    const float32x4_t x =
        vcombine_f32(vget_low_f32(a), vget_low_f32(b)) + vcombine_f32(vget_high_f32(a), vget_high_f32(b));
    const float32x4_t y =
        vcombine_f32(vget_low_f32(c), vget_low_f32(d)) + vcombine_f32(vget_high_f32(c), vget_high_f32(d));
    return vuzp1q_f32(x, y) + vuzp2q_f32(x, y);
}
GDNI_INLINE void gdni_store_four(float *p, float32x4_t x) { vst1q_f32(p, x); }
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
#define GDNI_TARGET plain
#if GDNI_SSE2
#define GDNI_LANES 4
#define GDNI_SET1(x) _mm_set1_ps(x)
#define GDNI_DSET1(x) _mm_set1_pd(x)
#define GDNI_DMIN(x, y) _mm_min_pd(x, y)
#define GDNI_DMAX(x, y) _mm_max_pd(x, y)
#ifdef __FMA__
#define GDNI_FMA(x, y, z) _mm_fmadd_ps(x, y, z)
#else
#define GDNI_FMA(x, y, z) gdni_fma_sse2(x, y, z)
#endif
#define GDNI_FOLD_TO_4(p) (((p)[0] + (p)[2]) + ((p)[1] + (p)[3]))
#else
#define GDNI_LANES 1
#define GDNI_SET1(x) (x)
#define GDNI_DSET1(x) (x)
#define GDNI_DMIN(x, y) ((x) < (y) ? (x) : (y))
#define GDNI_DMAX(x, y) ((x) > (y) ? (x) : (y))
#define GDNI_FMA(x, y, z) gdni_fmaf(x, y, z)
#endif
#define GDNI_VK_ROWS 1
#define GDNI_STREAM 4
#include GDN_HEADER_NAME

#if GDNI_X86
#define GDNI_TARGET avx2
#define GDNI_LANES 8
#define GDNI_SET1(x) _mm256_set1_ps(x)
#define GDNI_DSET1(x) _mm256_set1_pd(x)
#define GDNI_DMIN(x, y) _mm256_min_pd(x, y)
#define GDNI_DMAX(x, y) _mm256_max_pd(x, y)
#define GDNI_FMA(x, y, z) _mm256_fmadd_ps(x, y, z)
#define GDNI_FOLD_TO_4(p) gdni_halves_avx2((p)[0] + (p)[1])
#define GDNI_TO_WORDS(h) (gdni_word) _mm256_cvtepu16_epi32((__m128i)(h))
#define GDNI_TO_HALVES(w) (gdni_half) gdni_pack_avx2((__m256i)(w))
#define GDNI_F16_TO_F32(h) _mm256_cvtph_ps((__m128i)(h))
#define GDNI_F32_TO_F16(x) _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT)
#define GDNI_VK_ROWS 2
#define GDNI_STREAM 4
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

#define GDNI_TARGET avx512
#define GDNI_LANES 16
#define GDNI_SET1(x) _mm512_set1_ps(x)
#define GDNI_DSET1(x) _mm512_set1_pd(x)
#define GDNI_DMIN(x, y) _mm512_maskz_min_pd(255, x, y)
#define GDNI_DMAX(x, y) _mm512_maskz_max_pd(255, x, y)
#define GDNI_FMA(x, y, z) _mm512_fmadd_ps(x, y, z)
#define GDNI_FOLD_8(p) gdni_fold8_avx512((p)[0], (p)[1], (p)[2], (p)[3], (p)[4], (p)[5], (p)[6], (p)[7])
#define GDNI_TO_WORDS(h) (gdni_word) _mm512_maskz_cvtepu16_epi32(65535, (__m256i)(h))
#define GDNI_TO_HALVES(w) (gdni_half) _mm512_maskz_cvtepi32_epi16(65535, (__m512i)(w))
#define GDNI_F16_TO_F32(h) _mm512_maskz_cvtph_ps(65535, (__m256i)(h))
#define GDNI_TO_DOUBLES(x) _mm512_maskz_cvtps_pd(255, x)
#define GDNI_ROUND_BF16(x) gdni_round_bf16_with_masks(x)
#define GDNI_F32_TO_F16(x) _mm512_maskz_cvtps_ph(65535, x, _MM_FROUND_TO_NEAREST_INT)
#define GDNI_VK_ROWS 4
#define GDNI_STREAM 8
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))),              \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif
/* gdni_round_bf16() in five instructions. */
GDNI_INLINE __m512i gdni_round_bf16_with_masks(__m512 x) {
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
GDNI_INLINE __m512 gdni_fold8_avx512(__m512 a, __m512 b, __m512 c, __m512 d, __m512 e, __m512 f, __m512 g, __m512 h) {
    GDNI_EXACT
    const __m512 x = gdni_fold_to_4_avx512(gdni_fold_to_8_avx512(a, b), gdni_fold_to_8_avx512(c, d));
    const __m512 y = gdni_fold_to_4_avx512(gdni_fold_to_8_avx512(e, f), gdni_fold_to_8_avx512(g, h));
    const __m512 z = GDNI_SHUFFLE_IN_QUARTERS(x, y, 0x44) + GDNI_SHUFFLE_IN_QUARTERS(x, y, 0xee);
    const __m512 sums = GDNI_SHUFFLE_IN_QUARTERS(z, z, 0x88) + GDNI_SHUFFLE_IN_QUARTERS(z, z, 0xdd);
    const __m512i order = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 13, 9, 5, 1, 12, 8, 4, 0);
    return _mm512_maskz_permutexvar_ps(65535, order, sums);
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
#define GDNI_SET1(x) vdupq_n_f32(x)
#define GDNI_DSET1(x) vdupq_n_f64(x)
#define GDNI_DMIN(x, y) vminq_f64(x, y)
#define GDNI_DMAX(x, y) vmaxq_f64(x, y)
#define GDNI_FMA(x, y, z) vfmaq_f32(z, x, y)
#define GDNI_FOLD_TO_4(p) (((p)[0] + (p)[2]) + ((p)[1] + (p)[3]))
#define GDNI_VK_ROWS 2
#define GDNI_STREAM 8
#include GDN_HEADER_NAME
#endif
#undef GDNI_KERNEL

/* ---- [SELECTION] Which instance runs ----------------------------------------------------------------------- */

typedef void gdni_run_function(const gdn_params *r, ptrdiff_t first, ptrdiff_t last, float *scratch);

#if GDNI_X86
/* Without CPUID where the compiler knows how: that instruction takes microseconds on a virtual machine. */
static bool gdni_has_f16c(void) {
#if defined(__clang__) ? __clang_major__ >= 19 : __GNUC__ >= 11
    return __builtin_cpu_supports("f16c") != 0;
#else
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & (unsigned)bit_F16C) != 0;
#endif
}
#endif

/* The instance of an instruction set, or NULL where this build or this CPU lacks it. */
static gdni_run_function *gdni_instance(gdn_isa isa) {
#if GDNI_X86
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (isa == GDN_ISA_AVX512 && avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return gdni_run_items_avx512; /* AVX-512 has F16C */
    if (isa == GDN_ISA_AVX2 && avx2 && gdni_has_f16c()) return gdni_run_items_avx2;
#endif
#if GDNI_NEON
    if (isa == GDN_ISA_NEON) return gdni_run_items_neon;
#endif
    return isa == GDN_ISA_PLAIN ? gdni_run_items_plain : NULL;
}

gdn_isa gdn_isa_selected(void) {
    static const gdn_isa fastest_first[] = {GDN_ISA_AVX512, GDN_ISA_AVX2, GDN_ISA_NEON};
    for (size_t i = 0; i < sizeof fastest_first / sizeof fastest_first[0]; i++)
        if (gdni_instance(fastest_first[i]) != NULL) return fastest_first[i];
    return GDN_ISA_PLAIN;
}

bool gdn_isa_supported(gdn_isa isa) { return isa == GDN_ISA_AUTO || gdni_instance(isa) != NULL; }

const char *gdn_isa_name(gdn_isa isa) {
    static const char *const names[] = {"auto", "plain", "avx2", "avx512", "neon"};
    return (int)isa >= 0 && (int)isa < GDN_NUM_ISAS ? names[isa] : "?";
}

/* ---- [PUBLIC] ------------------------------------------------------------------------------------------------ */

gdn_status gdn_validate(const gdn_params *params, gdn_error *error) {
    gdn_params r;
    gdn_status status;
    if (error != NULL) {
        error->status = GDN_OK;
        error->argument = "";
        error->index = error->other = -1;
    }
    if (params == NULL) return gdni_fail(error, GDN_ERROR_NULL, "params");
    status = gdni_check_sizes(params, error);
    if (status != GDN_OK) return status;
    r = gdni_resolve(params);
    status = gdni_check_options(&r, error);
    if (status == GDN_OK) status = gdni_check_arrays(&r, error);
    if (status != GDN_OK) return status;
    if (gdni_size_mul(gdni_size_mul(r.num_seqs, r.num_value_heads), gdni_slices(&r)) == PTRDIFF_MAX)
        return gdni_fail(error, GDN_ERROR_OVERFLOW, "num_seqs");
    if (gdni_scratch_bytes(&r) == PTRDIFF_MAX) return gdni_fail(error, GDN_ERROR_OVERFLOW, "head_k_dim");
    status = gdni_check_sequences(&r, error);
    if (status != GDN_OK) return status;
    if (r.scratch != NULL && r.scratch_size < (size_t)gdni_scratch_bytes(&r))
        return gdni_fail(error, GDN_ERROR_SCRATCH, "scratch");
    return GDN_OK;
}

ptrdiff_t gdn_num_work_items(const gdn_params *params) {
    const ptrdiff_t sequences = gdni_varlen(params) ? params->num_seqs : params->batch_size;
    return sequences * params->num_value_heads * gdni_slices(params);
}

size_t gdn_scratch_size(const gdn_params *params) { return (size_t)gdni_scratch_bytes(params); }

gdn_status gdn_run_work_items(const gdn_params *params, ptrdiff_t first, ptrdiff_t last, void *scratch,
                              size_t scratch_size) {
    gdn_params r = gdni_resolve(params);
    float *memory;
    if (first < 0 || first > last || last > gdn_num_work_items(params)) return GDN_ERROR_RANGE;
    if (scratch == NULL || scratch_size < (size_t)gdni_scratch_bytes(&r)) return GDN_ERROR_SCRATCH;
    memory = gdni_leave_out(&r, (float *)gdni_align(scratch));
    if (r.compute == GDN_COMPUTE_F32) {
        gdni_run_function *run = gdni_instance(r.isa == GDN_ISA_AUTO ? gdn_isa_selected() : r.isa);
        if (run == NULL) return GDN_ERROR_ISA;
        run(&r, first, last, memory);
        return GDN_OK;
    }
    for (; first < last; first++) {
        const gdni_item item = gdni_get_item(&r, first);
        const gdni_sequence s = gdni_get_sequence(&r, item.n);
        if (!gdni_skip(&r, &s, first, first + 1)) gdni_reference_item(&r, &item, &s, (double *)memory);
    }
    return GDN_OK;
}

gdn_status gdn_fused_sigmoid_gating_delta_rule_update(const gdn_params *params, gdn_error *error) {
    gdn_status status = gdn_validate(params, error);
    void *scratch;
    size_t size;
    if (status != GDN_OK) return status;
    scratch = params->scratch;
    size = gdn_scratch_size(params);
#ifndef GDN_NO_MALLOC
    if (scratch == NULL) scratch = malloc(size);
#endif
    if (scratch == NULL) return gdni_fail(error, GDN_ERROR_SCRATCH, "scratch");
    status = gdn_run_work_items(params, 0, gdn_num_work_items(params), scratch, size);
#ifndef GDN_NO_MALLOC
    if (params->scratch == NULL) free(scratch);
#endif
    return status;
}

/* ---- [SEGMENTS] ---------------------------------------------------------------------------------------------- */

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
    const ptrdiff_t K = head_k_dim, V = head_v_dim, element = gdni_dtype_size(dtype);
    const ptrdiff_t square = gdni_size_mul(K, K), matrix = gdni_size_mul(K, V);
    gdni_array x[3] = {{"transition", transition, element, {1, 1, 0}, {0, 0, 0}, square, count > 0, false, 0},
                       {"state", state, element, {1, 1, 0}, {0, 0, 0}, matrix, count > 0, false, 0},
                       {"result", result, element, {1, 1, 0}, {0, 0, 0}, matrix, count > 0, true, 0}};
    gdni_fail(error, GDN_OK, "");
    if (count < 0) return gdni_fail(error, GDN_ERROR_SIZE, "count");
    if (K < 1) return gdni_fail(error, GDN_ERROR_SIZE, "head_k_dim");
    if (V < 1) return gdni_fail(error, GDN_ERROR_SIZE, "head_v_dim");
    if (layout != GDN_STATE_KV && layout != GDN_STATE_VK) return gdni_fail(error, GDN_ERROR_ENUM, "layout");
    if (dtype != GDN_F32 && dtype != GDN_F64) return gdni_fail(error, GDN_ERROR_ENUM, "dtype");
    for (int i = 0; i < 3; i++) {
        gdn_status status;
        x[i].size[2] = count, x[i].stride[2] = x[i].width;
        status = gdni_check_array(&x[i], error);
        if (status != GDN_OK) return status;
    }
    if (!gdni_disjoint(&x[2], &x[0]) || !gdni_disjoint(&x[2], &x[1]))
        return gdni_fail(error, GDN_ERROR_OVERLAP, "result");
    for (ptrdiff_t n = 0; n < count; n++) {
        const char *m = (const char *)transition + n * square * element,
                   *s = (const char *)state + n * matrix * element;
        char *y = (char *)result + n * matrix * element;
        const bool vk = layout == GDN_STATE_VK; /* (M S)^T = S^T M^T */
        const ptrdiff_t rows = vk ? V : K, columns = vk ? K : V;
        if (dtype == GDN_F32)
            gdni_multiply_add(rows, K, columns, GDN_F32, vk ? s : m, vk ? m : s, y);
        else
            gdni_multiply_add(rows, K, columns, GDN_F64, vk ? s : m, vk ? m : s, y);
    }
    return GDN_OK;
}

/* ---- [PRESETS] ----------------------------------------------------------------------------------------------- */

gdn_status gdn_preset(gdn_params *params, gdn_system system) {
    static const struct {
        gdn_state_layout state_layout;
        gdn_head_map head_map;
        gdn_gate_input gate_input;
        gdn_beta_input beta_input;
        gdn_l2norm_form l2norm_form;
        gdn_padding padding;
        double l2norm_eps;
        int null_slot;
    } presets[] = {
#define GDNI_PRESET(code, name, state, heads, gate, beta, form, eps, pad, null)                                        \
    {GDN_STATE_##state,                                                                                                \
     GDN_HEADS_##heads,                                                                                                \
     GDN_GATE_##gate,                                                                                                  \
     GDN_BETA_##beta,                                                                                                  \
     GDN_L2NORM_##form,                                                                                                \
     GDN_PADDING_##pad,                                                                                                \
     eps,                                                                                                              \
     null},
        GDN_SYSTEMS(GDNI_PRESET)
#undef GDNI_PRESET
    };
    const int i = (int)system - 1;
    if (params == NULL) return GDN_ERROR_NULL;
    if (i < 0 || i >= GDN_NUM_SYSTEMS - 1) return GDN_ERROR_ENUM;
    params->state_layout = presets[i].state_layout;
    params->head_map = presets[i].head_map;
    params->gate_input = presets[i].gate_input;
    params->beta_input = presets[i].beta_input;
    params->l2norm_form = presets[i].l2norm_form;
    params->l2norm_eps = presets[i].l2norm_eps;
    params->padding = presets[i].padding;
    params->has_null_slot = presets[i].null_slot >= 0;
    params->null_slot = params->has_null_slot ? presets[i].null_slot : 0;
    return GDN_OK;
}

const char *gdn_system_name(gdn_system system) {
    static const char *const names[] = {
#define GDNI_SYSTEM_NAME(code, name, state, heads, gate, beta, form, eps, pad, null) name,
        GDN_SYSTEMS(GDNI_SYSTEM_NAME)
#undef GDNI_SYSTEM_NAME
    };
    const int i = (int)system - 1;
    return i >= 0 && i < GDN_NUM_SYSTEMS - 1 ? names[i] : "?";
}

/* ---- [NAMES] ------------------------------------------------------------------------------------------------- */

const char *gdn_status_name(gdn_status status) {
    static const char *const names[] = {
#define GDNI_STATUS_NAME(code, text) #code,
        GDN_STATUSES(GDNI_STATUS_NAME)
#undef GDNI_STATUS_NAME
    };
    return (int)status >= 0 && (int)status < GDN_NUM_STATUSES ? names[status] : "?";
}

const char *gdn_status_text(gdn_status status) {
    static const char *const texts[] = {
#define GDNI_STATUS_TEXT(code, text) text,
        GDN_STATUSES(GDNI_STATUS_TEXT)
#undef GDNI_STATUS_TEXT
    };
    return (int)status >= 0 && (int)status < GDN_NUM_STATUSES ? texts[status] : "?";
}

int gdn_version(void) { return GDN_VERSION; }

#ifdef __cplusplus
}
#endif
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC pop_options
#endif
#endif /* GDN_IMPLEMENTATION */

/* ---- [KERNEL] The float32 computation, once for every instruction set ----------------------------------- */

/* This section is compiled once per target by [TARGETS], which defines
 *     GDNI_TARGET        the suffix of its names
 *     GDNI_LANES         floats in a vector: 1 (then a vector is a float), or 4, 8, 16 with GNU vectors
 *     GDNI_VK_ROWS       rows that GDN_STATE_VK works on at once
 *     GDNI_STREAM        vectors of a row that GDN_STATE_KV streams at once: 8 with thirty-two registers, else 4
 *     GDNI_SET1(x)       a vector of x
 *     GDNI_FMA(x, y, z)  x*y + z with one rounding
 *     GDNI_DSET1(x)      a vector of the double x, half as many (or 1)
 *     GDNI_DMIN(x, y), GDNI_DMAX(x, y)  of such vectors; y where y is NaN
 * Everything else is written here, in terms of these. */
#ifdef GDNI_KERNEL

#define GDNI_PASTE2(x, y) x##y
#define GDNI_PASTE(x, y) GDNI_PASTE2(x, y)
#define GDNI_NAME(x) GDNI_PASTE(gdni_##x##_, GDNI_TARGET)
#define gdni_half_vec GDNI_NAME(half_vec)
#define gdni_dpart GDNI_NAME(dpart)
#define gdni_dpart_word GDNI_NAME(dpart_word)
#define gdni_vec GDNI_NAME(vec)
#define gdni_word GDNI_NAME(word)
#define gdni_half GDNI_NAME(half)
#define gdni_half_word GDNI_NAME(half_word)
#define gdni_dvec GDNI_NAME(dvec)
#define gdni_set1 GDNI_NAME(set1)
#define gdni_fma GDNI_NAME(fma)
#define gdni_load GDNI_NAME(load)
#define gdni_store GDNI_NAME(store)
#define gdni_mul GDNI_NAME(mul)
#define gdni_add GDNI_NAME(add)
#define gdni_sub GDNI_NAME(sub)
#define gdni_load_double GDNI_NAME(load_double)
#define gdni_store_double GDNI_NAME(store_double)
#define gdni_words GDNI_NAME(words)
#define gdni_floats GDNI_NAME(floats)
#define gdni_select GDNI_NAME(select)
#define gdni_dset1 GDNI_NAME(dset1)
#define gdni_dmul GDNI_NAME(dmul)
#define gdni_dadd GDNI_NAME(dadd)
#define gdni_dsub GDNI_NAME(dsub)
#define gdni_ddiv GDNI_NAME(ddiv)
#define gdni_dselect GDNI_NAME(dselect)
#define gdni_dpart_select GDNI_NAME(dpart_select)
#define gdni_dpower GDNI_NAME(dpower)
#define gdni_dpart_power GDNI_NAME(dpart_power)
#define gdni_dmin GDNI_NAME(dmin)
#define gdni_dmax GDNI_NAME(dmax)
#define gdni_pair GDNI_NAME(pair)
#define gdni_cubic GDNI_NAME(cubic)
#define gdni_exp GDNI_NAME(exp)
#define gdni_softplus GDNI_NAME(softplus)
#define gdni_sigmoid GDNI_NAME(sigmoid)
#define gdni_widen GDNI_NAME(widen)
#define gdni_narrow GDNI_NAME(narrow)
#define gdni_load_vec GDNI_NAME(load_vec)
#define gdni_store_vec GDNI_NAME(store_vec)
#define gdni_round_bf16 GDNI_NAME(round_bf16)
#define gdni_load_dealt GDNI_NAME(load_dealt)
#define gdni_store_dealt GDNI_NAME(store_dealt)
#define gdni_deal GDNI_NAME(deal)
#define gdni_undeal GDNI_NAME(undeal)
#define gdni_load_row GDNI_NAME(load_row)
#define gdni_store_row GDNI_NAME(store_row)
#define gdni_fold GDNI_NAME(fold)
#define gdni_fold16 GDNI_NAME(fold16)
#define gdni_dot4 GDNI_NAME(dot4)
#define gdni_scale_row GDNI_NAME(scale_row)
#define gdni_prepare_qk GDNI_NAME(prepare_qk)
#define gdni_decays GDNI_NAME(decays)
#define gdni_betas GDNI_NAME(betas)
#define gdni_prepare_gates GDNI_NAME(prepare_gates)
#define gdni_sweep GDNI_NAME(sweep)
#define gdni_move_tile GDNI_NAME(move_tile)
#define gdni_finish GDNI_NAME(finish)
#define gdni_column_betas GDNI_NAME(column_betas)
#define gdni_gather_v GDNI_NAME(gather_v)
#define gdni_scatter_o GDNI_NAME(scatter_o)
#define gdni_aim_sums GDNI_NAME(aim_sums)
#define gdni_aim_update GDNI_NAME(aim_update)
#define gdni_run_tokens GDNI_NAME(run_tokens)
#define gdni_run_tile GDNI_NAME(run_tile)
#define gdni_ask_ahead GDNI_NAME(ask_ahead)
#define gdni_sums_kv GDNI_NAME(sums_kv)
#define gdni_sums_vk GDNI_NAME(sums_vk)
#define gdni_update_kv GDNI_NAME(update_kv)
#define gdni_update_rows GDNI_NAME(update_rows)
#define gdni_update_vk GDNI_NAME(update_vk)
#define gdni_stream_columns GDNI_NAME(stream_columns)
#define gdni_stream_dtype GDNI_NAME(stream_dtype)
#define gdni_streams GDNI_NAME(streams)
#define gdni_stream GDNI_NAME(stream)
#define gdni_run_group GDNI_NAME(run_group)
#define gdni_run_items GDNI_NAME(run_items)

/* Vectors: floats, and the words that hold their bits. */
#if GDNI_LANES == 1
typedef float gdni_vec, gdni_half_vec;
typedef uint32_t gdni_word, gdni_half_word;
typedef double gdni_dpart;
typedef uint64_t gdni_dpart_word;
#define GDNI_WHERE(condition) ((condition) ? ~(gdni_word)0 : (gdni_word)0)
#define GDNI_DWHERE(condition) ((condition) ? ~(gdni_dpart_word)0 : (gdni_dpart_word)0)
#define GDNI_CONVERT(x, type) ((type)(x))
#else
typedef float gdni_vec __attribute__((vector_size(4 * GDNI_LANES)));
typedef uint32_t gdni_word __attribute__((vector_size(4 * GDNI_LANES)));
typedef uint32_t gdni_half_word __attribute__((vector_size(2 * GDNI_LANES)));
typedef uint16_t gdni_half __attribute__((vector_size(2 * GDNI_LANES)));
typedef float gdni_half_vec __attribute__((vector_size(2 * GDNI_LANES))); /* as many floats as a vector holds doubles */
typedef double gdni_dpart __attribute__((vector_size(4 * GDNI_LANES)));
typedef uint64_t gdni_dpart_word __attribute__((vector_size(4 * GDNI_LANES)));
#define GDNI_WHERE(condition) ((gdni_word)(condition))
#define GDNI_DWHERE(condition) ((gdni_dpart_word)(condition))
#define GDNI_CONVERT(x, type) __builtin_convertvector(x, type)
#ifndef GDNI_TO_WORDS
#define GDNI_TO_WORDS(h) __builtin_convertvector(h, gdni_word)
#define GDNI_TO_HALVES(w) __builtin_convertvector(w, gdni_half)
#endif
#endif
#ifndef GDNI_TO_DOUBLES
#define GDNI_TO_DOUBLES(x) GDNI_CONVERT(x, gdni_dpart)
#endif

/* Doubles come as two vectors side by side, which hide each other's latency. */
typedef struct gdni_dvec {
    gdni_dpart lo, hi;
} gdni_dvec;
enum { GDNI_NAME(part) = GDNI_LANES == 1 ? 1 : GDNI_LANES / 2, GDNI_NAME(dlanes) = 2 * GDNI_NAME(part) };

GDNI_INLINE gdni_vec gdni_load(const float *p) {
    gdni_vec x;
    memcpy(&x, p, sizeof x);
    return x;
}
GDNI_INLINE void gdni_store(float *p, gdni_vec x) { memcpy(p, &x, sizeof x); }
GDNI_INLINE gdni_vec gdni_set1(float x) { return GDNI_SET1(x); }
GDNI_INLINE gdni_vec gdni_fma(gdni_vec x, gdni_vec y, gdni_vec z) { return GDNI_FMA(x, y, z); }
GDNI_INLINE gdni_vec gdni_mul(gdni_vec x, gdni_vec y) {
    GDNI_EXACT
    return x * y;
}
GDNI_INLINE gdni_vec gdni_add(gdni_vec x, gdni_vec y) {
    GDNI_EXACT
    return x + y;
}
GDNI_INLINE gdni_vec gdni_sub(gdni_vec x, gdni_vec y) {
    GDNI_EXACT
    return x - y;
}

GDNI_INLINE gdni_word gdni_words(gdni_vec x) {
    gdni_word bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
GDNI_INLINE gdni_vec gdni_floats(gdni_word bits) {
    gdni_vec x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
GDNI_INLINE gdni_vec gdni_select(gdni_word where, gdni_vec x, gdni_vec y) {
    return gdni_floats((gdni_words(x) & where) | (gdni_words(y) & ~where));
}

/* ---- exp, softplus and sigmoid, in double: the results, rounded to float once, are within 0.61 units in the last
 * place over every float. No fused multiply-adds: not every machine has them in double. Polynomials: Remez fits. ----
 */

GDNI_INLINE gdni_dvec gdni_load_double(const float *p) {
    gdni_half_vec lo, hi;
    memcpy(&lo, p, sizeof lo);
    memcpy(&hi, p + GDNI_NAME(part), sizeof hi);
    const gdni_dvec y = {GDNI_TO_DOUBLES(lo), GDNI_TO_DOUBLES(hi)};
    return y;
}
GDNI_INLINE void gdni_store_double(float *p, gdni_dvec x) {
    const gdni_half_vec lo = GDNI_CONVERT(x.lo, gdni_half_vec), hi = GDNI_CONVERT(x.hi, gdni_half_vec);
    memcpy(p, &lo, sizeof lo);
    memcpy(p + GDNI_NAME(part), &hi, sizeof hi);
}
GDNI_INLINE gdni_dvec gdni_dset1(double x) {
    const gdni_dvec y = {GDNI_DSET1(x), GDNI_DSET1(x)};
    return y;
}
GDNI_INLINE gdni_dvec gdni_dmul(gdni_dvec x, gdni_dvec y) {
    GDNI_EXACT
    gdni_dvec z = {x.lo * y.lo, x.hi * y.hi};
    GDNI_ROUNDED(z.lo)
    GDNI_ROUNDED(z.hi)
    return z;
}
GDNI_INLINE gdni_dvec gdni_dadd(gdni_dvec x, gdni_dvec y) {
    GDNI_EXACT
    const gdni_dvec z = {x.lo + y.lo, x.hi + y.hi};
    return z;
}
GDNI_INLINE gdni_dvec gdni_dsub(gdni_dvec x, gdni_dvec y) {
    GDNI_EXACT
    const gdni_dvec z = {x.lo - y.lo, x.hi - y.hi};
    return z;
}
GDNI_INLINE gdni_dvec gdni_ddiv(gdni_dvec x, gdni_dvec y) {
    GDNI_EXACT
    const gdni_dvec z = {x.lo / y.lo, x.hi / y.hi};
    return z;
}
GDNI_INLINE gdni_dvec gdni_dmin(gdni_dvec x, gdni_dvec y) {
    const gdni_dvec z = {GDNI_DMIN(x.lo, y.lo), GDNI_DMIN(x.hi, y.hi)};
    return z;
}
GDNI_INLINE gdni_dvec gdni_dmax(gdni_dvec x, gdni_dvec y) {
    const gdni_dvec z = {GDNI_DMAX(x.lo, y.lo), GDNI_DMAX(x.hi, y.hi)};
    return z;
}

/* x where a <= b, else y. */
GDNI_INLINE gdni_dpart gdni_dpart_select(gdni_dpart a, gdni_dpart b, gdni_dpart x, gdni_dpart y) {
    const gdni_dpart_word where = GDNI_DWHERE(a <= b);
    gdni_dpart_word xs, ys;
    memcpy(&xs, &x, sizeof xs);
    memcpy(&ys, &y, sizeof ys);
    xs = (xs & where) | (ys & ~where);
    memcpy(&x, &xs, sizeof x);
    return x;
}
GDNI_INLINE gdni_dvec gdni_dselect(gdni_dvec a, gdni_dvec b, gdni_dvec x, gdni_dvec y) {
    const gdni_dvec z = {gdni_dpart_select(a.lo, b.lo, x.lo, y.lo), gdni_dpart_select(a.hi, b.hi, x.hi, y.hi)};
    return z;
}

/* 2^n, for the integer n in the low bits of n + 1.5 * 2^52. */
GDNI_INLINE gdni_dpart gdni_dpart_power(gdni_dpart x) {
    gdni_dpart_word bits;
    memcpy(&bits, &x, sizeof bits);
    bits = (bits + 1023u) << 52;
    memcpy(&x, &bits, sizeof x);
    return x;
}
GDNI_INLINE gdni_dvec gdni_dpower(gdni_dvec x) {
    const gdni_dvec y = {gdni_dpart_power(x.lo), gdni_dpart_power(x.hi)};
    return y;
}

/* c[0] + c[1] x + ..., in pairs: half the latency of one term after the other. */
GDNI_INLINE gdni_dvec gdni_pair(const double *c, gdni_dvec x) {
    return gdni_dadd(gdni_dset1(c[0]), gdni_dmul(gdni_dset1(c[1]), x));
}

GDNI_INLINE gdni_dvec gdni_cubic(const double *c, gdni_dvec x, gdni_dvec x2) {
    return gdni_dadd(gdni_pair(c, x), gdni_dmul(x2, gdni_pair(c + 2, x)));
}

/* 2^n 2^r, n = x log2(e) rounded to an integer. A float's exponential is 0 or infinite well before the clamp; NaN
 * passes through it. */
GDNI_INLINE gdni_dvec gdni_exp(gdni_dvec x) {
    static const double c[] = {1.0000000005541647,   0.6931472057371958,    0.24022646890645522,   0.05550328777105325,
                               0.009618488956331182, 0.0013399931177239738, 0.00015345812161311629};
    const gdni_dvec magic = gdni_dset1(6755399441055744.0); /* 1.5 * 2^52 */
    const gdni_dvec y = gdni_dmax(gdni_dset1(-150.0), gdni_dmin(gdni_dset1(150.0), x));
    const gdni_dvec z = gdni_dmul(y, gdni_dset1(1.4426950408889634)), t = gdni_dadd(z, magic);
    const gdni_dvec r = gdni_dsub(z, gdni_dsub(t, magic)), r2 = gdni_dmul(r, r);
    const gdni_dvec high = gdni_dadd(gdni_pair(c + 4, r), gdni_dmul(r2, gdni_dset1(c[6])));
    const gdni_dvec p = gdni_dadd(gdni_cubic(c, r, r2), gdni_dmul(gdni_dmul(r2, r2), high));
    return gdni_dmul(p, gdni_dpower(t));
}

/* log(1 + exp(x)) = max(x, 0) + log1p(u), u = exp(-|x|). */
GDNI_INLINE gdni_dvec gdni_softplus(gdni_dvec x) {
    static const double c[] = {0.9999999952873115,   -0.49999902420063846,  0.33329962347703024, -0.24954133016942198,
                               0.1967593625360775,   -0.15305584513080975,  0.10603642016551354, -0.05695941325358193,
                               0.019851400494396657, -0.0032440119125188237};
    const gdni_dvec zero = gdni_dset1(0.0), u = gdni_exp(gdni_dmin(gdni_dsub(zero, x), x));
    const gdni_dvec u2 = gdni_dmul(u, u), u4 = gdni_dmul(u2, u2);
    const gdni_dvec high = gdni_dadd(gdni_cubic(c + 4, u, u2), gdni_dmul(u4, gdni_pair(c + 8, u)));
    return gdni_dadd(gdni_dmax(zero, x), gdni_dmul(u, gdni_dadd(gdni_cubic(c, u, u2), gdni_dmul(u4, high))));
}

GDNI_INLINE gdni_dvec gdni_sigmoid(gdni_dvec x) {
    const gdni_dvec one = gdni_dset1(1.0);
    return gdni_ddiv(one, gdni_dadd(one, gdni_exp(gdni_dsub(gdni_dset1(0.0), x))));
}

/* ---- Half types: the same bit patterns as gdni_from_f16, gdni_to_f16, gdni_to_bf16 ---- */

GDNI_INLINE gdni_vec gdni_widen(gdni_word h, gdn_dtype dtype) {
    const gdni_word magnitude = (h & 0x7fffu) << 13, exponent = magnitude & 0x0f800000u, sign = (h & 0x8000u) << 16;
    gdni_vec normal, subnormal;
    if (dtype == GDN_BF16) return gdni_floats(h << 16);
    normal = gdni_floats(magnitude + 0x38000000u + (GDNI_WHERE(exponent == 0x0f800000u) & 0x38000000u));
    subnormal = gdni_sub(gdni_floats(magnitude + 0x38800000u), gdni_set1(6.103515625e-5f));
    return gdni_floats(gdni_words(gdni_select(GDNI_WHERE(exponent == 0u), subnormal, normal)) | sign);
}

/* The bfloat16 is the upper half of the word. */
GDNI_INLINE gdni_word gdni_round_bf16(gdni_vec x) {
#ifdef GDNI_ROUND_BF16
    return (gdni_word)GDNI_ROUND_BF16(x);
#else
    const gdni_word bits = gdni_words(x);
    return (bits + 0x7fffu + (bits >> 16 & 1u)) | (GDNI_WHERE(x != x) & 0x7fc00000u);
#endif
}

GDNI_INLINE gdni_word gdni_narrow(gdni_vec x, gdn_dtype dtype) {
    if (dtype == GDN_BF16) {
        return gdni_round_bf16(x) >> 16;
    } else {
        const gdni_word bits = gdni_words(x), sign = bits >> 16 & 0x8000u, a = bits & 0x7fffffffu;
        const gdni_word nan = GDNI_WHERE(x != x);
        gdni_word y;
        const gdni_word huge = GDNI_WHERE(a >= 0x477ff000u), tiny = GDNI_WHERE(a < 0x38800000u);
        const gdni_word small = gdni_words(gdni_add(gdni_floats(a), gdni_set1(0.5f))) - 0x3f000000u;
        y = (a + 0xfffu + (a >> 13 & 1u) - 0x38000000u) >> 13;
        y = (y & ~tiny) | (small & tiny);
        y = (y & ~huge) | (huge & 0x7c00u);
        return (y & ~nan) | ((0x7e00u | (a >> 13 & 0x1ffu)) & nan) | sign;
    }
}

GDNI_INLINE gdni_vec gdni_load_vec(const char *data, gdn_dtype dtype) {
    if (dtype == GDN_F32) {
        gdni_vec x;
        memcpy(&x, data, sizeof x);
        return x;
    } else {
#if GDNI_LANES == 1
        uint16_t h;
        memcpy(&h, data, sizeof h);
        return gdni_widen(h, dtype);
#else
        gdni_half h;
        memcpy(&h, data, sizeof h);
#ifdef GDNI_F16_TO_F32
        if (dtype == GDN_F16) return GDNI_F16_TO_F32(h);
#endif
        return gdni_widen(GDNI_TO_WORDS(h), dtype);
#endif
    }
}

GDNI_INLINE void gdni_store_vec(char *data, gdn_dtype dtype, gdni_vec x) {
    if (dtype == GDN_F32) {
        memcpy(data, &x, sizeof x);
    } else {
#if GDNI_LANES == 1
        const uint16_t h = (uint16_t)gdni_narrow(x, dtype);
#elif defined(GDNI_F32_TO_F16)
        const gdni_half h = dtype == GDN_F16 ? (gdni_half)GDNI_F32_TO_F16(x) : GDNI_TO_HALVES(gdni_narrow(x, dtype));
#else
        const gdni_half h = GDNI_TO_HALVES(gdni_narrow(x, dtype));
#endif
        memcpy(data, &h, sizeof h);
    }
}

/* bfloat16 without shuffles: of twice as many elements as a vector has floats, the even ones make one vector and the
 * odd ones another. Vector j of a row; `dealt`: vectors 2i and 2i + 1 are dealt like that. */
GDNI_INLINE gdni_vec gdni_load_dealt(const char *row, int j, gdn_dtype dtype, const bool dealt) {
    gdni_word pairs;
    if (!dealt) return gdni_load_vec(row + j * GDNI_LANES * gdni_dtype_size(dtype), dtype);
    memcpy(&pairs, row + j / 2 * (int)sizeof pairs, sizeof pairs);
    return gdni_floats(j % 2 == 0 ? pairs << 16 : pairs & 0xffff0000u);
}

/* Two neighbours, of which the first is vector j. */
GDNI_INLINE void gdni_store_dealt(char *row, int j, gdni_vec even, gdni_vec odd) {
    const gdni_word pairs = gdni_round_bf16(even) >> 16 | (gdni_round_bf16(odd) & 0xffff0000u);
    memcpy(row + j / 2 * (int)sizeof pairs, &pairs, sizeof pairs);
}

/* Two vectors from floats in order, and back. */
GDNI_INLINE void gdni_deal(const float *from, gdni_vec *even, gdni_vec *odd) {
    for (int i = 0; i < 2; i++) {
        gdni_dpart_word pairs;
        memcpy(&pairs, from + i * GDNI_LANES, sizeof pairs);
        const gdni_half_word e = GDNI_CONVERT(pairs, gdni_half_word), o = GDNI_CONVERT(pairs >> 32, gdni_half_word);
        memcpy((char *)even + i * (int)sizeof e, &e, sizeof e);
        memcpy((char *)odd + i * (int)sizeof o, &o, sizeof o);
    }
}

GDNI_INLINE void gdni_undeal(const gdni_vec *even, const gdni_vec *odd, float *to) {
    for (int i = 0; i < 2; i++) {
        gdni_half_word e, o;
        memcpy(&e, (const char *)even + i * (int)sizeof e, sizeof e);
        memcpy(&o, (const char *)odd + i * (int)sizeof o, sizeof o);
        const gdni_dpart_word pairs = GDNI_CONVERT(e, gdni_dpart_word) | GDNI_CONVERT(o, gdni_dpart_word) << 32;
        memcpy(to + i * GDNI_LANES, &pairs, sizeof pairs);
    }
}

/* A row of `count` elements to floats, with zeros up to `padded` (a multiple of the lanes), and back. */
static void gdni_load_row(const void *row, gdn_dtype dtype, ptrdiff_t count, ptrdiff_t padded, float *to) {
    const char *from = (const char *)row;
    const ptrdiff_t size = gdni_dtype_size(dtype);
    ptrdiff_t i = 0;
    if (dtype == GDN_F32)
        for (; i + GDNI_LANES <= count; i += GDNI_LANES) gdni_store(to + i, gdni_load_vec(from + i * 4, GDN_F32));
    else if (dtype == GDN_BF16)
        for (; i + GDNI_LANES <= count; i += GDNI_LANES) gdni_store(to + i, gdni_load_vec(from + i * 2, GDN_BF16));
    else
        for (; i + GDNI_LANES <= count; i += GDNI_LANES) gdni_store(to + i, gdni_load_vec(from + i * 2, GDN_F16));
    for (; i < padded; i++) to[i] = i < count ? gdni_get_f32(from + i * size, dtype, 0) : 0.0f;
}

static void gdni_store_row(void *row, gdn_dtype dtype, ptrdiff_t count, const float *from) {
    char *to = (char *)row;
    ptrdiff_t i = 0;
    if (dtype == GDN_F32)
        for (; i + GDNI_LANES <= count; i += GDNI_LANES) gdni_store_vec(to + i * 4, GDN_F32, gdni_load(from + i));
    else if (dtype == GDN_BF16)
        for (; i + GDNI_LANES <= count; i += GDNI_LANES) gdni_store_vec(to + i * 2, GDN_BF16, gdni_load(from + i));
    else
        for (; i + GDNI_LANES <= count; i += GDNI_LANES) gdni_store_vec(to + i * 2, GDN_F16, gdni_load(from + i));
    if (dtype == GDN_F32) memcpy(to + i * 4, from + i, (size_t)(count - i) * 4), i = count;
    for (; i < count; i++) {
        const uint16_t half = dtype == GDN_BF16 ? gdni_to_bf16(from[i]) : gdni_to_f16(from[i]);
        memcpy(to + i * 2, &half, 2);
    }
}

/* ---- Once per token and key head: q and k as floats, normalised ---- */

enum { GDNI_NAME(parts) = GDNI_LANES16 / GDNI_LANES };

/* Sixteen partial sums of each of 2 * GDNI_VK_ROWS sums, at least four, to those sums: l + (l+8), l + (l+4), l + (l+2),
 * l + (l+1). */
GDNI_INLINE void gdni_fold(gdni_vec (*x)[GDNI_NAME(parts)], float *sums) {
    GDNI_EXACT
#if defined(GDNI_FOLD_8)
    const gdni_vec eight[] = {x[0][0], x[1][0], x[2][0], x[3][0], x[4][0], x[5][0], x[6][0], x[7][0]};
    const gdni_vec folded = GDNI_FOLD_8(eight);
    memcpy(sums, &folded, 8 * sizeof(float));
#elif defined(GDNI_FOLD_TO_4)
    gdni_store_four(
        sums, gdni_fold_fours(GDNI_FOLD_TO_4(x[0]), GDNI_FOLD_TO_4(x[1]), GDNI_FOLD_TO_4(x[2]), GDNI_FOLD_TO_4(x[3])));
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

/* Sixteen partial sums to one, in double: l + (l+8), l + (l+4), l + (l+2), l + (l+1). */
GDNI_INLINE double gdni_fold16(const float *x) {
    GDNI_EXACT
    double y[8];
    for (int l = 0; l < 8; l += GDNI_NAME(part)) {
        gdni_half_vec low, high;
        memcpy(&low, x + l, sizeof low);
        memcpy(&high, x + l + 8, sizeof high);
        const gdni_dpart sum = GDNI_TO_DOUBLES(low) + GDNI_TO_DOUBLES(high);
        memcpy(y + l, &sum, sizeof sum);
    }
    return ((y[0] + y[4]) + (y[2] + y[6])) + ((y[1] + y[5]) + (y[3] + y[7]));
}

/* Four sums over K at once: x[i].y[i]. */
static void gdni_dot4(const float *const *x, const float *const *y, ptrdiff_t kp, double *sums) {
    gdni_vec part[4][GDNI_NAME(parts)];
    GDNI_UNROLL
    for (int j = 0; j < 4; j++) {
        GDNI_UNROLL
        for (int p = 0; p < GDNI_NAME(parts); p++) part[j][p] = gdni_set1(0.0f);
    }
    for (ptrdiff_t i = 0; i < kp; i += GDNI_LANES16) {
        GDNI_UNROLL
        for (int j = 0; j < 4; j++) {
            GDNI_UNROLL
            for (int p = 0; p < GDNI_NAME(parts); p++) {
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
static void gdni_scale_row(float *x, double factor, ptrdiff_t kp) {
    GDNI_EXACT
    GDNI_ROUNDED(factor)
    const float high = factor > (double)FLT_MAX ? FLT_MAX : (float)factor;
    const float low = factor > (double)FLT_MAX ? 0.0f : (float)(factor - (double)high);
    for (ptrdiff_t i = 0; i < kp; i += GDNI_LANES) {
        const gdni_vec y = gdni_load(x + i);
        gdni_store(x + i, gdni_fma(y, gdni_set1(high), gdni_mul(y, gdni_set1(low))));
    }
}

static void gdni_prepare_qk(const gdn_params *r, const gdni_sequence *s, ptrdiff_t h, ptrdiff_t t0, ptrdiff_t count,
                            const gdni_workspace *w) {
    const ptrdiff_t kp = w->kp, last = count - 1;
    for (ptrdiff_t t = 0; t < count; t++) {
        gdni_load_row(gdni_row(&r->q, s, t0 + t, h), r->q.dtype, r->head_k_dim, kp, w->q + t * kp);
        gdni_load_row(gdni_row(&r->k, s, t0 + t, h), r->k.dtype, r->head_k_dim, kp, w->k + t * kp);
    }
    for (ptrdiff_t t = 0; t < count; t += 2) {
        const ptrdiff_t next = gdni_min(t + 1, last) * kp;
        const float *const rows[] = {w->q + t * kp, w->k + t * kp, w->q + next, w->k + next};
        double squares[4];
        if (r->use_qk_l2norm_in_kernel) gdni_dot4(rows, rows, kp, squares);
        for (ptrdiff_t i = 0; i < 2 && t + i < count; i++) {
            double scale = r->scale;
            if (r->use_qk_l2norm_in_kernel) {
                scale *= gdni_norm_factor(r, squares[2 * i]);
                gdni_scale_row(w->k + (t + i) * kp, gdni_norm_factor(r, squares[2 * i + 1]), kp);
            }
            gdni_scale_row(w->q + (t + i) * kp, scale, kp);
        }
    }
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

/* In place, for `count` values of the gate's input x = a; bias is one vector for all of them (bias_step 0) or as long as
 * x (1). No choice inside a loop: one loop for each way. */
static void gdni_decays(const gdn_params *r, ptrdiff_t hv, const float *bias, ptrdiff_t bias_step, ptrdiff_t count,
                        float *x) {
    const gdni_dvec beta = gdni_dset1(r->softplus_beta), inverse = gdni_dset1(-1.0 / r->softplus_beta);
    const gdni_dvec threshold = gdni_dset1(r->softplus_threshold), lower_bound = gdni_dset1(r->lower_bound);
    gdni_dvec A;
    if (r->gate_input == GDN_GATE_DECAY) return;
    if (r->gate_input == GDN_GATE_LOG) {
        for (ptrdiff_t i = 0; i < count; i += GDNI_NAME(dlanes))
            gdni_store_double(x + i, gdni_exp(gdni_load_double(x + i)));
        return;
    }
    A = gdni_exp(gdni_dset1((double)gdni_get_f32(r->A_log.data, r->A_log.dtype, hv * r->A_log.head_stride)));
    if (r->has_lower_bound) {
        for (ptrdiff_t i = 0; i < count; i += GDNI_NAME(dlanes)) {
            const gdni_dvec y = gdni_dadd(gdni_load_double(x + i), gdni_load_double(bias + i * bias_step));
            gdni_store_double(x + i, gdni_exp(gdni_dmul(lower_bound, gdni_sigmoid(gdni_dmul(A, y)))));
        }
        return;
    }
    for (ptrdiff_t i = 0; i < count; i += GDNI_NAME(dlanes)) {
        const gdni_dvec y = gdni_dadd(gdni_load_double(x + i), gdni_load_double(bias + i * bias_step));
        const gdni_dvec by = gdni_dmul(beta, y), curved = gdni_dselect(by, threshold, gdni_softplus(by), by);
        gdni_store_double(x + i, gdni_exp(gdni_dmul(A, gdni_dmul(inverse, curved))));
    }
}

static void gdni_betas(const gdn_params *r, ptrdiff_t count, float *x) {
    const gdni_dvec factor = gdni_dset1(r->allow_neg_eigval ? 2.0 : 1.0);
    if (r->b.data != NULL && r->beta_input == GDN_BETA_RAW)
        for (ptrdiff_t i = 0; i < count; i += GDNI_NAME(dlanes))
            gdni_store_double(x + i, gdni_dmul(factor, gdni_sigmoid(gdni_load_double(x + i))));
    else
        for (ptrdiff_t i = 0; i < count; i += GDNI_NAME(dlanes))
            gdni_store_double(x + i, gdni_dmul(factor, gdni_load_double(x + i)));
}

static void gdni_prepare_gates(const gdn_params *r, const gdni_sequence *s, ptrdiff_t hv, ptrdiff_t t0, ptrdiff_t count,
                               const gdni_workspace *w) {
    const ptrdiff_t K = r->head_k_dim, kp = w->kp, bias_at = hv * r->dt_bias.head_stride;
    const ptrdiff_t bias_size = r->gate_input == GDN_GATE_RAW ? gdni_dtype_size(r->dt_bias.dtype) : 0;
    const char *bias = (const char *)r->dt_bias.data;
    if (!r->beta_per_column) {
        for (ptrdiff_t t = 0; t < count; t++)
            w->beta[t] = r->b.data == NULL ? 1.0f : gdni_get_f32(gdni_row(&r->b, s, t0 + t, hv), r->b.dtype, 0);
        gdni_betas(r, count, w->beta);
    }
    if (!r->is_kda) {
        for (ptrdiff_t i = 0; i < GDNI_NAME(dlanes) && bias_size != 0; i++)
            w->bias[i] = gdni_get_f32(bias, r->dt_bias.dtype, bias_at);
        for (ptrdiff_t t = 0; t < count; t++) w->gate[t] = gdni_get_f32(gdni_row(&r->a, s, t0 + t, hv), r->a.dtype, 0);
        gdni_decays(r, hv, w->bias, 0, count, w->gate);
        return;
    }
    if (bias_size != 0) gdni_load_row(bias + bias_at * bias_size, r->dt_bias.dtype, K, kp, w->bias);
    for (ptrdiff_t t = 0; t < count; t++) {
        float *decay = w->decay + t * kp;
        const float *q = w->q + t * kp, *k = w->k + t * kp;
        gdni_load_row(gdni_row(&r->a, s, t0 + t, hv), r->a.dtype, K, kp, decay);
        gdni_decays(r, hv, w->bias, 1, kp, decay);
        for (ptrdiff_t i = 0; i < kp; i += GDNI_LANES) {
            gdni_store(w->kd + t * kp + i, gdni_mul(gdni_load(decay + i), gdni_load(k + i)));
            gdni_store(w->qd + t * kp + i, gdni_mul(gdni_load(decay + i), gdni_load(q + i)));
        }
    }
}

/* ---- The sweep: one pass over a tile updates it for token t and takes the two sums of token t+1 ---- */

/* What a sweep reads and leaves. update: s = fma(k_i, d, decay_i * s). sums: A and B over kn_i * s and qn_i * s. */
typedef struct GDNI_NAME(sweep_args) {
    const float *k, *decay, *d, *kn, *qn;
    ptrdiff_t decay_stride; /* 0: one decay for all rows */
    float *A, *B;
} GDNI_NAME(sweep_args);
#define gdni_sweep_args GDNI_NAME(sweep_args)

/* A tile is nv vectors of columns wide, held as [rows][nv vectors]. `sixteen`: sixteen partial sums over the rows,
 * taken in the order in which they can be folded as they come (0+8, 4+12, their sum, ...). */
GDNI_INLINE void gdni_sweep(const gdni_sweep_args *x, float *tile, ptrdiff_t rows, const int nv, const bool update,
                            const bool sums, const bool sixteen) {
    static const unsigned char order[GDNI_LANES16] = {0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15};
    const int groups = sixteen && sums ? GDNI_LANES16 : 1;
    const float *k = x->k, *decay = x->decay, *kn = x->kn, *qn = x->qn;
    const ptrdiff_t decay_stride = x->decay_stride;
    gdni_vec A[4], B[4], d[4], open_A[4][4], open_B[4][4];
    GDNI_UNROLL
    for (int j = 0; j < nv && update; j++) d[j] = gdni_load(x->d + j * GDNI_LANES);
    for (int group = 0; group < groups; group++) {
        GDNI_UNROLL
        for (int j = 0; j < nv && sums; j++) A[j] = B[j] = gdni_set1(0.0f);
        for (ptrdiff_t i = order[group]; i < rows; i += groups) {
            float *row = tile + i * nv * GDNI_LANES;
            const gdni_vec k_i = gdni_set1(update ? k[i] : 0.0f),
                           decay_i = gdni_set1(update ? decay[i * decay_stride] : 0.0f);
            const gdni_vec kn_i = gdni_set1(sums ? kn[i] : 0.0f), qn_i = gdni_set1(sums ? qn[i] : 0.0f);
            GDNI_UNROLL
            for (int j = 0; j < nv; j++) {
                gdni_vec s = gdni_load(row + j * GDNI_LANES);
                if (update) {
                    s = gdni_fma(k_i, d[j], gdni_mul(decay_i, s));
                    gdni_store(row + j * GDNI_LANES, s);
                }
                if (sums) {
                    A[j] = gdni_fma(kn_i, s, A[j]);
                    B[j] = gdni_fma(qn_i, s, B[j]);
                }
            }
        }
        if (groups == 1) break;
        for (int level = 0, open = group; level < 4; level++, open >>= 1) {
            GDNI_UNROLL
            for (int j = 0; j < nv; j++) {
                if (open & 1) {
                    A[j] = gdni_add(open_A[level][j], A[j]);
                    B[j] = gdni_add(open_B[level][j], B[j]);
                } else {
                    open_A[level][j] = A[j];
                    open_B[level][j] = B[j];
                }
            }
            if (!(open & 1)) break;
        }
    }
    GDNI_UNROLL
    for (int j = 0; j < nv && sums; j++) {
        gdni_store(x->A + j * GDNI_LANES, A[j]);
        gdni_store(x->B + j * GDNI_LANES, B[j]);
    }
}

/* Copies the columns of a segment from a state matrix (NULL: zeros) into its tile, or (store) back. */
static void gdni_move_tile(const gdn_params *r, gdni_matrix m, const gdni_segment *x, bool store,
                           const gdni_workspace *w) {
    const ptrdiff_t K = r->head_k_dim, size = gdni_dtype_size(m.dtype);
    const ptrdiff_t count = x->c1 - x->c0, width = gdni_round_up(count, GDNI_LANES);
    if (m.data == NULL) {
        if (!store) memset(x->tile, 0, (size_t)(width * K) * sizeof(float));
        return;
    }
    if (r->state_layout == GDN_STATE_KV) {
        for (ptrdiff_t i = 0; i < K; i++) {
            char *row = m.data + (i * r->head_v_dim + x->c0) * size;
            if (store)
                gdni_store_row(row, m.dtype, count, x->tile + i * width);
            else
                gdni_load_row(row, m.dtype, count, width, x->tile + i * width);
        }
        return;
    }
    for (ptrdiff_t j = 0; j < width; j += 4) {
        const ptrdiff_t rows = gdni_min(4, width - j);
        if (store) gdni_transpose(x->tile + j, width, K, rows, w->rows, w->kp);
        for (ptrdiff_t i = 0; i < rows; i++) {
            float *row = w->rows + i * w->kp;
            if (j + i >= count && !store)
                memset(row, 0, (size_t)K * sizeof(float));
            else if (j + i < count && store)
                gdni_store_row(m.data + (x->c0 + j + i) * K * size, m.dtype, K, row);
            else if (j + i < count)
                gdni_load_row(m.data + (x->c0 + j + i) * K * size, m.dtype, K, K, row);
        }
        if (!store) gdni_transpose(w->rows, w->kp, rows, K, x->tile + j, width);
    }
}

/* From the sums of a token, A and B, to its d = beta * (v - factor A) and its output o = factor B + (q.k) d. */
GDNI_INLINE gdni_vec gdni_finish(gdni_vec factor, gdni_vec qk, gdni_vec beta, gdni_vec A, gdni_vec B, const float *v,
                                 float *o) {
    const gdni_vec d = gdni_mul(beta, gdni_fma(gdni_sub(gdni_set1(0.0f), factor), A, gdni_load(v)));
    gdni_store(o, gdni_fma(qk, d, gdni_mul(factor, B)));
    return d;
}

/* The betas of a segment's columns at token t, which is token `at` of its block, in w->d. */
static void gdni_column_betas(const gdn_params *r, const gdni_sequence *s, const gdni_segment *x, ptrdiff_t t,
                              ptrdiff_t at, const gdni_workspace *w) {
    const ptrdiff_t columns = x->c1 - x->c0, width = gdni_round_up(columns, GDNI_LANES);
    if (r->beta_per_column) {
        const char *b = (const char *)gdni_row(&r->b, s, t, x->value_head);
        gdni_load_row(b + x->c0 * gdni_dtype_size(r->b.dtype), r->b.dtype, columns, width, w->d);
        gdni_betas(r, width, w->d);
        return;
    }
    for (ptrdiff_t c = 0; c < width; c += GDNI_LANES) gdni_store(w->d + c, gdni_set1(w->beta[at]));
}

/* v is gathered and o scattered for all heads of a group at once, where nothing waits for them. */
static void gdni_gather_v(const gdn_params *r, const gdni_group *g, ptrdiff_t t0, ptrdiff_t count) {
    const ptrdiff_t size = gdni_dtype_size(r->v.dtype);
    for (ptrdiff_t t = 0; t < count; t++)
        for (const gdni_segment *x = g->heads; x < g->heads + g->num_heads; x++) {
            const ptrdiff_t columns = x->c1 - x->c0, padded = gdni_round_up(columns, GDNI_LANES);
            const char *v = (const char *)gdni_row(&r->v, &g->s, t0 + t, x->value_head) + x->c0 * size;
            gdni_load_row(v, r->v.dtype, columns, padded, x->v + t * x->pitch);
        }
}

static void gdni_scatter_o(const gdn_params *r, const gdni_group *g, ptrdiff_t t0, ptrdiff_t count) {
    const ptrdiff_t size = gdni_dtype_size(r->o.dtype);
    for (ptrdiff_t t = 0; t < count; t++)
        for (const gdni_segment *x = g->heads; x < g->heads + g->num_heads; x++)
            gdni_store_row(gdni_output_row(r, &g->s, t0 + t, x->value_head) + x->c0 * size, r->o.dtype, x->c1 - x->c0,
                           x->o + t * x->pitch);
}

/* A decay of 0 must forget a state whose sums overflow, and 0 times that is not 0: it goes into k and q first. */
static void gdni_aim_sums(const gdn_params *r, gdni_sweep_args *x, ptrdiff_t t, const gdni_workspace *w) {
    const ptrdiff_t at = t * w->kp;
    x->kn = (r->is_kda ? w->kd : w->k) + at;
    x->qn = (r->is_kda ? w->qd : w->q) + at;
    if (r->is_kda || w->gate[t] != 0) return;
    for (ptrdiff_t i = 0; i < w->kp; i += GDNI_LANES) {
        gdni_store(w->kd + i, gdni_mul(gdni_set1(w->gate[t]), gdni_load(w->k + at + i)));
        gdni_store(w->qd + i, gdni_mul(gdni_set1(w->gate[t]), gdni_load(w->q + at + i)));
    }
    x->kn = w->kd;
    x->qn = w->qd;
}

static void gdni_aim_update(const gdn_params *r, gdni_sweep_args *x, ptrdiff_t t, const gdni_workspace *w) {
    x->k = w->k + t * w->kp;
    x->decay = r->is_kda ? w->decay + t * w->kp : &w->gate[t];
    x->decay_stride = r->is_kda ? 1 : 0;
}

/* What to ask for while a tile is worked on: of each token of the block its own rows of o, and every `parts`-th row of
 * what is prepared next, tokens t0 and on of a group. */
typedef struct GDNI_NAME(ahead) {
    const gdni_group *group;
    ptrdiff_t t0, part, parts;
} GDNI_NAME(ahead);
#define gdni_ahead GDNI_NAME(ahead)

/* Tokens t0 to t0 + count of a tile, whose q, k, v and gates are prepared, and q, k and gates of the token after them.
 */
GDNI_INLINE void gdni_run_tokens(const gdn_params *r, const gdni_group *g, const gdni_segment *x, ptrdiff_t t0,
                                 ptrdiff_t count, const gdni_ahead *ahead, const gdni_workspace *w, const int nv,
                                 const bool sixteen) {
    const gdni_sequence *s = &g->s;
    const ptrdiff_t K = r->head_k_dim, size = gdni_dtype_size(r->o.dtype);
    const bool tree = r->retrieve_parent_token.data != NULL && s->row >= 0;
    const bool every_step = s->row >= 0 || r->ssm_state_indices.data != NULL;
    bool have_sums = t0 > 0 && !tree; /* A and B are those of token t, from the sweep for the one before */
    const float *v = x->v;
    float *o = x->o, *A = x->A, *B = x->B, *d = w->d;
    gdni_sweep_args args;
    memset(&args, 0, sizeof args);
    args.A = A, args.B = B, args.d = d;
    for (ptrdiff_t t = 0; t < count; t++, v += x->pitch, o += x->pitch) {
        const int64_t parent = tree ? gdni_parent(r, s, g->n, t0 + t) : -1;
        const gdni_vec factor = gdni_set1(r->is_kda ? 1.0f : w->gate[t]), qk = gdni_set1(w->qk[t]);
        if (parent >= 0) gdni_move_tile(r, gdni_cache_matrix(r, s->row, parent, x->value_head), x, false, w);
        if (!have_sums) {
            gdni_aim_sums(r, &args, t, w);
            gdni_sweep(&args, x->tile, K, nv, false, true, sixteen);
        }
        gdni_column_betas(r, s, x, t0 + t, t, w);
        GDNI_UNROLL
        for (int j = 0; j < nv; j++) {
            const int at = j * GDNI_LANES;
            gdni_store(d + at, gdni_finish(factor, qk, gdni_load(d + at), gdni_load(A + at), gdni_load(B + at), v + at,
                                           o + at));
        }
        gdni_prefetch(gdni_output_row(r, s, t0 + t, x->value_head) + x->c0 * size, (x->c1 - x->c0) * size);
        gdni_fetch(r, ahead->group, ahead->t0 + t, ahead->part, ahead->parts);
        have_sums = t0 + t + 1 < s->length && !tree;
        gdni_aim_update(r, &args, t, w);
        if (have_sums) {
            gdni_aim_sums(r, &args, t + 1, w);
            gdni_sweep(&args, x->tile, K, nv, true, true, sixteen);
        } else
            gdni_sweep(&args, x->tile, K, nv, true, false, sixteen);
        if (every_step) gdni_move_tile(r, gdni_cache_matrix(r, s->row, t0 + t, x->value_head), x, true, w);
        if (every_step || t0 + t + 1 == s->length)
            gdni_move_tile(r, gdni_pool_matrix(r, gdni_step_slot(r, s, g->n, t0 + t), x->value_head), x, true, w);
    }
}

static void gdni_run_tile(const gdn_params *r, const gdni_group *g, const gdni_segment *x, ptrdiff_t t0,
                          ptrdiff_t count, const gdni_ahead *ahead, const gdni_workspace *w) {
    const ptrdiff_t nv = (x->c1 - x->c0 - 1) / GDNI_LANES + 1;
    const bool vk = r->state_layout == GDN_STATE_VK;
    if (nv == 4 && vk)
        gdni_run_tokens(r, g, x, t0, count, ahead, w, 4, true);
    else if (nv == 4)
        gdni_run_tokens(r, g, x, t0, count, ahead, w, 4, false);
    else if (nv == 3 && vk)
        gdni_run_tokens(r, g, x, t0, count, ahead, w, 3, true);
    else if (nv == 3)
        gdni_run_tokens(r, g, x, t0, count, ahead, w, 3, false);
    else if (nv == 2 && vk)
        gdni_run_tokens(r, g, x, t0, count, ahead, w, 2, true);
    else if (nv == 2)
        gdni_run_tokens(r, g, x, t0, count, ahead, w, 2, false);
    else if (vk)
        gdni_run_tokens(r, g, x, t0, count, ahead, w, 1, true);
    else
        gdni_run_tokens(r, g, x, t0, count, ahead, w, 1, false);
}

/* ---- One token: the state is read once and written once, where it lies ---- */

/* While one state is worked on, the next one is asked for: half its rows during the sums, half during the update,
 * so that the memory never rests. `rows` of `size` bytes, `pitch` apart; done is how far the pass is. */
GDNI_INLINE void gdni_ask_ahead(const char *next, ptrdiff_t pitch, ptrdiff_t size, ptrdiff_t row, ptrdiff_t rows,
                                const bool second_half) {
    const ptrdiff_t at = second_half ? (rows + row) / 2 : row / 2;
    if (next != NULL && (second_half ? (rows + row) % 2 : row % 2) == 0) gdni_prefetch(next + at * pitch, size);
}

/* A and B over `rows` rows of nv vectors of a GDN_STATE_KV matrix, `pitch` bytes apart. */
GDNI_INLINE void gdni_sums_kv(const gdni_sweep_args *x, const char *state, gdn_dtype dtype, const char *next,
                              ptrdiff_t pitch, ptrdiff_t rows, const int nv) {
    const ptrdiff_t bytes = nv * GDNI_LANES * gdni_dtype_size(dtype);
    const bool dealt = GDNI_LANES > 1 && dtype == GDN_BF16 && nv % 2 == 0;
    const float *kn = x->kn, *qn = x->qn;
    gdni_vec A[GDNI_STREAM], B[GDNI_STREAM];
    GDNI_UNROLL
    for (int j = 0; j < nv; j++) A[j] = B[j] = gdni_set1(0.0f);
    for (ptrdiff_t i = 0; i < rows; i++) {
        const gdni_vec kn_i = gdni_set1(kn[i]), qn_i = gdni_set1(qn[i]);
        gdni_ask_ahead(next, pitch, bytes, i, rows, false);
        GDNI_UNROLL
        for (int j = 0; j < nv; j++) {
            const gdni_vec s = gdni_load_dealt(state + i * pitch, j, dtype, dealt);
            A[j] = gdni_fma(kn_i, s, A[j]);
            B[j] = gdni_fma(qn_i, s, B[j]);
        }
    }
    GDNI_UNROLL
    for (int j = 0; j < nv; j++) {
        if (!dealt) {
            gdni_store(x->A + j * GDNI_LANES, A[j]);
            gdni_store(x->B + j * GDNI_LANES, B[j]);
        } else if (j % 2 == 0) {
            gdni_undeal(&A[j], &A[j + 1], x->A + j * GDNI_LANES);
            gdni_undeal(&B[j], &B[j + 1], x->B + j * GDNI_LANES);
        }
    }
}

/* A and B over `columns` rows of K = kp elements of a GDN_STATE_VK matrix. */
GDNI_INLINE void gdni_sums_vk(const gdni_sweep_args *x, const char *state, gdn_dtype dtype, const char *next,
                              ptrdiff_t kp, ptrdiff_t columns) {
    const ptrdiff_t size = gdni_dtype_size(dtype);
    const float *kn = x->kn, *qn = x->qn;
    for (ptrdiff_t c = 0; c < columns; c += GDNI_VK_ROWS) {
        gdni_vec part[GDNI_VK_ROWS == 4 ? 8 : 4][GDNI_NAME(parts)]; /* A of each row, B of each row */
        float sums[8];
        const char *row[GDNI_VK_ROWS];
        GDNI_UNROLL
        for (int j = 0; j < GDNI_VK_ROWS; j++) {
            row[j] = state + gdni_min(c + j, columns - 1) * kp * size;
            gdni_ask_ahead(next, kp * size, kp * size, c + j, columns, false);
        }
        GDNI_UNROLL
        for (int j = 0; j < (GDNI_VK_ROWS == 4 ? 8 : 4); j++) {
            GDNI_UNROLL
            for (int p = 0; p < GDNI_NAME(parts); p++) part[j][p] = gdni_set1(0.0f);
        }
        for (ptrdiff_t i = 0; i < kp; i += GDNI_LANES16) {
            GDNI_UNROLL
            for (int p = 0; p < GDNI_NAME(parts); p++) {
                const ptrdiff_t at = i + p * GDNI_LANES;
                const gdni_vec k = gdni_load(kn + at), q = gdni_load(qn + at);
                GDNI_UNROLL
                for (int j = 0; j < GDNI_VK_ROWS; j++) {
                    const gdni_vec s = gdni_load_vec(row[j] + at * size, dtype);
                    part[j][p] = gdni_fma(k, s, part[j][p]);
                    part[GDNI_VK_ROWS + j][p] = gdni_fma(q, s, part[GDNI_VK_ROWS + j][p]);
                }
            }
        }
        gdni_fold(part, sums);
        memcpy(x->A + c, sums, GDNI_VK_ROWS * sizeof(float));
        memcpy(x->B + c, sums + GDNI_VK_ROWS, GDNI_VK_ROWS * sizeof(float));
    }
}

GDNI_INLINE void gdni_update_kv(const gdni_sweep_args *x, const char *from, gdn_dtype dtype, char *to, const char *next,
                                ptrdiff_t pitch, ptrdiff_t rows, const int nv) {
    const ptrdiff_t bytes = GDNI_LANES * gdni_dtype_size(dtype);
    const bool dealt = GDNI_LANES > 1 && dtype == GDN_BF16 && nv % 2 == 0;
    const float *k = x->k, *decay = x->decay;
    gdni_vec d[GDNI_STREAM], s[GDNI_STREAM];
    GDNI_UNROLL
    for (int j = 0; j < nv; j++) {
        if (!dealt)
            d[j] = gdni_load(x->d + j * GDNI_LANES);
        else if (j % 2 == 0)
            gdni_deal(x->d + j * GDNI_LANES, &d[j], &d[j + 1]);
    }
    for (ptrdiff_t i = 0; i < rows; i++) {
        const gdni_vec k_i = gdni_set1(k[i]), decay_i = gdni_set1(decay[i]);
        gdni_ask_ahead(next, pitch, nv * bytes, i, rows, true);
        GDNI_UNROLL
        for (int j = 0; j < nv; j++)
            s[j] = gdni_fma(k_i, d[j], gdni_mul(decay_i, gdni_load_dealt(from + i * pitch, j, dtype, dealt)));
        GDNI_UNROLL
        for (int j = 0; j < nv; j++) {
            if (!dealt)
                gdni_store_vec(to + i * pitch + j * bytes, dtype, s[j]);
            else if (j % 2 == 0)
                gdni_store_dealt(to + i * pitch, j, s[j], s[j + 1]);
        }
    }
}

/* `count` rows of K = kp elements of a GDN_STATE_VK matrix, from row c on. */
GDNI_INLINE void gdni_update_rows(const gdni_sweep_args *x, const char *from, gdn_dtype dtype, char *to, ptrdiff_t kp,
                                  ptrdiff_t c, const int count) {
    const ptrdiff_t size = gdni_dtype_size(dtype);
    const float *k = x->k, *decay = x->decay;
    gdni_vec d[GDNI_VK_ROWS], s[GDNI_VK_ROWS];
    GDNI_UNROLL
    for (int j = 0; j < count; j++) d[j] = gdni_set1(x->d[c + j]);
    for (ptrdiff_t i = 0; i < kp; i += GDNI_LANES) {
        const gdni_vec k_i = gdni_load(k + i), decay_i = gdni_load(decay + i);
        GDNI_UNROLL
        for (int j = 0; j < count; j++)
            s[j] = gdni_fma(k_i, d[j], gdni_mul(decay_i, gdni_load_vec(from + ((c + j) * kp + i) * size, dtype)));
        GDNI_UNROLL
        for (int j = 0; j < count; j++) gdni_store_vec(to + ((c + j) * kp + i) * size, dtype, s[j]);
    }
}

GDNI_INLINE void gdni_update_vk(const gdni_sweep_args *x, const char *from, gdn_dtype dtype, char *to, const char *next,
                                ptrdiff_t kp, ptrdiff_t columns) {
    const ptrdiff_t bytes = kp * gdni_dtype_size(dtype), whole = columns / GDNI_VK_ROWS * GDNI_VK_ROWS;
    for (ptrdiff_t c = 0; c < columns; c++) {
        gdni_ask_ahead(next, bytes, bytes, c, columns, true);
        if (c >= whole)
            gdni_update_rows(x, from, dtype, to, kp, c, 1);
        else if (c % GDNI_VK_ROWS == 0)
            gdni_update_rows(x, from, dtype, to, kp, c, GDNI_VK_ROWS);
    }
}

/* Columns of x->value_head; `from` and `to` are the matrices' first bytes of those columns. GDN_STATE_KV: nv vectors.
 */
GDNI_INLINE void gdni_stream_columns(const gdn_params *r, const gdni_sequence *s, const gdni_segment *x,
                                     const gdni_sweep_args *args, gdn_dtype dtype, const char *from, char *to,
                                     const char *next, const gdni_workspace *w, const bool vk, const int nv) {
    const ptrdiff_t columns = x->c1 - x->c0, K = r->head_k_dim, pitch = r->head_v_dim * gdni_dtype_size(dtype);
    const gdni_vec factor = gdni_set1(r->is_kda ? 1.0f : w->gate[0]), qk = gdni_set1(w->qk[0]);
    if (vk)
        gdni_sums_vk(args, from, dtype, next, K, columns);
    else
        gdni_sums_kv(args, from, dtype, next, pitch, K, nv);
    gdni_column_betas(r, s, x, 0, 0, w);
    for (ptrdiff_t c = 0; c < columns; c += GDNI_LANES)
        gdni_store(w->d + c, gdni_finish(factor, qk, gdni_load(w->d + c), gdni_load(w->A + c), gdni_load(w->B + c),
                                         x->v + c, x->o + c));
    if (to == NULL) return;
    if (vk)
        gdni_update_vk(args, from, dtype, to, next, K, columns);
    else
        gdni_update_kv(args, from, dtype, to, next, pitch, K, nv);
}

GDNI_INLINE void gdni_stream_dtype(const gdn_params *r, const gdni_sequence *s, const gdni_segment *x,
                                   const gdni_sweep_args *args, gdn_dtype dtype, const char *from, char *to,
                                   const char *next, const gdni_workspace *w) {
    const ptrdiff_t nv = (x->c1 - x->c0) / GDNI_LANES;
    if (r->state_layout == GDN_STATE_VK)
        gdni_stream_columns(r, s, x, args, dtype, from, to, next, w, true, 0);
    else if (nv == GDNI_STREAM)
        gdni_stream_columns(r, s, x, args, dtype, from, to, next, w, false, GDNI_STREAM);
    else if (nv == 4)
        gdni_stream_columns(r, s, x, args, dtype, from, to, next, w, false, 4);
    else if (nv == 2)
        gdni_stream_columns(r, s, x, args, dtype, from, to, next, w, false, 2);
    else
        gdni_stream_columns(r, s, x, args, dtype, from, to, next, w, false, 1);
}

/* Whether a sequence can be streamed: one token, nothing but the pool to write, rows of whole vectors. */
static bool gdni_streams(const gdn_params *r, const gdni_sequence *s) {
    const bool whole =
        r->state_layout == GDN_STATE_VK ? r->head_k_dim % GDNI_LANES16 == 0 : r->head_v_dim % GDNI_LANES == 0;
    return s->length == 1 && s->read >= 0 && s->row < 0 && whole;
}

/* `next` is the state that is streamed after this one, or NULL. */
static void gdni_stream(const gdn_params *r, const gdni_sequence *s, ptrdiff_t n, const gdni_segment *segment,
                        const char *next, const gdni_workspace *w) {
    const bool vk = r->state_layout == GDN_STATE_VK;
    const gdni_matrix from = gdni_pool_matrix(r, s->read, segment->value_head);
    const gdni_matrix to = gdni_pool_matrix(r, gdni_step_slot(r, s, n, 0), segment->value_head);
    const ptrdiff_t stride = (vk ? r->head_k_dim : 1) * gdni_dtype_size(from.dtype);
    ptrdiff_t width;
    gdni_segment x;
    gdni_sweep_args args;
    memset(&args, 0, sizeof args);
    args.A = w->A, args.B = w->B, args.d = w->d;
    gdni_aim_sums(r, &args, 0, w);
    gdni_aim_update(r, &args, 0, w);
    if (!r->is_kda) {
        for (ptrdiff_t i = 0; i < w->kp; i += GDNI_LANES) gdni_store(w->decay + i, gdni_set1(w->gate[0]));
        args.decay = w->decay;
    }
    for (ptrdiff_t c = segment->c0; c < segment->c1; c = x.c1) {
        const char *in = from.data + c * stride, *ahead;
        char *out = to.data == NULL ? NULL : to.data + c * stride;
        if (vk)
            width = gdni_min(GDNI_SLICE, segment->c1 - c);
        else
            for (width = GDNI_STREAM * GDNI_LANES; width > segment->c1 - c;) width /= 2;
        x = gdni_columns(segment, c, c + width, w);
        if (x.c1 < segment->c1)
            ahead = from.data + x.c1 * stride;
        else
            ahead = next == NULL ? NULL : next + segment->c0 * stride;
        if (from.dtype == GDN_F32)
            gdni_stream_dtype(r, s, &x, &args, GDN_F32, in, out, ahead, w);
        else if (from.dtype == GDN_BF16)
            gdni_stream_dtype(r, s, &x, &args, GDN_BF16, in, out, ahead, w);
        else
            gdni_stream_dtype(r, s, &x, &args, GDN_F16, in, out, ahead, w);
    }
}

/* `next`: the group that follows, or NULL. */
static void gdni_run_group(const gdn_params *r, const gdni_group *g, const gdni_group *next, const gdni_workspace *w) {
    const gdni_sequence *s = &g->s;
    const ptrdiff_t length = s->length;
    /* Narrower than two vectors a tile would wait for its own sums. */
    const ptrdiff_t fit = GDNI_TILE_KIB * 1024 / 4 / GDNI_LANES / w->kp;
    const ptrdiff_t width = (fit < 2 ? 2 : gdni_min(fit, 4)) * GDNI_LANES;
    const bool streams = gdni_streams(r, s);
    /* What vectors read past the columns and tokens in use. */
    memset(w->A, 0, (size_t)w->columns * sizeof(float));
    memset(w->B, 0, (size_t)w->columns * sizeof(float));
    memset(w->gate, 0, (size_t)(w->block + GDNI_LANES16) * sizeof(float));
    memset(w->beta, 0, (size_t)(w->block + GDNI_LANES16) * sizeof(float));
    for (ptrdiff_t t = 0; t < length; t += w->block) {
        const ptrdiff_t count = gdni_min(w->block, length - t), prepared = gdni_min(count + 1, length - t);
        gdni_ahead ahead = {t + count < length || next == NULL ? g : next, t + count < length ? t + count : 0, 0, 0};
        for (int i = 0; i < g->num_heads; i++)
            ahead.parts += gdni_round_up(g->heads[i].c1 - g->heads[i].c0, width) / width;
        if (next == NULL && t + count == length) ahead.t0 = length;
        gdni_prepare_qk(r, s, g->key_head, t, prepared, w);
        gdni_gather_v(r, g, t, count);
        for (int i = 0; i < g->num_heads; i++) {
            const gdni_segment *head = &g->heads[i];
            gdni_prepare_gates(r, s, head->value_head, t, prepared, w);
            if (streams) {
                const bool inside = i + 1 < g->num_heads;
                const gdni_sequence *after = inside ? s : next == NULL ? NULL : &next->s;
                const gdni_segment *follower = inside ? head + 1 : next == NULL ? NULL : next->heads;
                gdni_fetch(r, ahead.group, ahead.t0, i, g->num_heads);
                gdni_stream(r, s, g->n, head,
                            after == NULL ? NULL : gdni_pool_matrix(r, after->read, follower->value_head).data, w);
                continue;
            }
            for (ptrdiff_t c = head->c0; c < head->c1; c += width, ahead.part++) {
                const gdni_segment x = gdni_columns(head, c, gdni_min(c + width, head->c1), w);
                if (t == 0) gdni_move_tile(r, gdni_pool_matrix(r, s->read, x.value_head), &x, false, w);
                gdni_run_tile(r, g, &x, t, count, &ahead, w);
            }
        }
        gdni_scatter_o(r, g, t, count);
    }
}

static void gdni_run_items(const gdn_params *r, ptrdiff_t first, ptrdiff_t last, float *scratch) {
    gdni_workspace w;
    gdni_group groups[2]; /* the one that runs and the next */
    gdni_layout(r, scratch, &w);
    if (first < last) groups[0] = gdni_get_group(r, first, last, &w);
    for (int i = 0; first < last; i = 1 - i) {
        const gdni_group *g = &groups[i], *next = g->end < last ? &groups[1 - i] : NULL;
        if (next != NULL) groups[1 - i] = gdni_get_group(r, g->end, last, &w);
        if (!gdni_skip(r, &g->s, first, g->end)) gdni_run_group(r, g, next, &w);
        first = g->end;
    }
}

#undef gdni_half_vec
#undef gdni_dpart
#undef gdni_dpart_word
#undef gdni_vec
#undef gdni_word
#undef gdni_half
#undef gdni_half_word
#undef gdni_dvec
#undef gdni_set1
#undef gdni_fma
#undef gdni_load
#undef gdni_store
#undef gdni_mul
#undef gdni_add
#undef gdni_sub
#undef gdni_load_double
#undef gdni_store_double
#undef gdni_words
#undef gdni_floats
#undef gdni_select
#undef gdni_dset1
#undef gdni_dmul
#undef gdni_dadd
#undef gdni_dsub
#undef gdni_ddiv
#undef gdni_dselect
#undef gdni_dpart_select
#undef gdni_dpower
#undef gdni_dpart_power
#undef gdni_dmin
#undef gdni_dmax
#undef gdni_pair
#undef gdni_cubic
#undef gdni_exp
#undef gdni_softplus
#undef gdni_sigmoid
#undef gdni_widen
#undef gdni_narrow
#undef gdni_load_vec
#undef gdni_store_vec
#undef gdni_round_bf16
#undef gdni_load_dealt
#undef gdni_store_dealt
#undef gdni_deal
#undef gdni_undeal
#undef gdni_load_row
#undef gdni_store_row
#undef gdni_fold
#undef gdni_fold16
#undef gdni_dot4
#undef gdni_scale_row
#undef gdni_prepare_qk
#undef gdni_decays
#undef gdni_betas
#undef gdni_prepare_gates
#undef gdni_sweep
#undef gdni_move_tile
#undef gdni_finish
#undef gdni_column_betas
#undef gdni_gather_v
#undef gdni_scatter_o
#undef gdni_aim_sums
#undef gdni_aim_update
#undef gdni_run_tokens
#undef gdni_run_tile
#undef gdni_ask_ahead
#undef gdni_sums_kv
#undef gdni_sums_vk
#undef gdni_update_kv
#undef gdni_update_rows
#undef gdni_update_vk
#undef gdni_stream_columns
#undef gdni_stream_dtype
#undef gdni_streams
#undef gdni_stream
#undef gdni_run_group
#undef gdni_run_items
#undef gdni_sweep_args
#undef gdni_ahead
#undef GDNI_WHERE
#undef GDNI_DWHERE
#undef GDNI_CONVERT
#undef GDNI_PASTE2
#undef GDNI_PASTE
#undef GDNI_NAME
#undef GDNI_TARGET
#undef GDNI_LANES
#undef GDNI_VK_ROWS
#undef GDNI_STREAM
#undef GDNI_SET1
#undef GDNI_DSET1
#undef GDNI_DMIN
#undef GDNI_DMAX
#undef GDNI_FMA
#undef GDNI_FOLD_TO_4
#undef GDNI_FOLD_8
#undef GDNI_TO_WORDS
#undef GDNI_TO_DOUBLES
#undef GDNI_ROUND_BF16
#undef GDNI_TO_HALVES
#undef GDNI_F16_TO_F32
#undef GDNI_F32_TO_F16
#endif /* GDNI_KERNEL */
