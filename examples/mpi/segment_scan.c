/*
 * One sequence, too long for one machine, in segments over the ranks. The state after a segment is an affine function
 * of the state before it, S_end = M S_start + B; the functions of neighbours are joined by MPI_Exscan with an operation
 * of our own, which leaves each rank with the state that its segment starts from. So a rank runs the operator
 *
 *   1. from zeros, for B;  2. without v and from the identity, for M;  3. from the true state, for the outputs.
 *
 * The first rank knows its state, and the last one's B and M are nobody's start: they run it once. With n ranks the
 * others take 3/n of the time of one process, and the scan; it pays from four ranks on.
 *
 *   mpicc -O2 -I. examples/mpi/segment_scan.c -o segment_scan -lm
 *   mpirun -n 4 segment_scan [TOKENS]
 *
 * Prints the error against one process in float64, beside that of one process in float32, and where the time goes.
 */
#define GDN_IMPLEMENTATION
#include "gdn_varlen.h"

#include <math.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { H = 2, HV = 4, K = 128, V = 128 };

/* What the model's projections yield for a token. The operator reads it in place: its strides are this struct's. */
typedef struct token {
    float q[H][K], k[H][K], v[HV][V], a[HV], b[HV];
} token;
typedef float token_out[HV][V];
typedef float state[HV * K * V];

/* S_end = M S_start + B, of one segment or of several that were joined. */
typedef struct segment {
    float M[HV * K * K];
    state B;
} segment;

static const float A_log[HV] = {-6.0f, -5.0f, -4.0f, -3.0f}, dt_bias[HV] = {0.3f, 0.1f, -0.1f, -0.3f};

static void fail(const char *where, const char *what) {
    printf("FAILED: %s: %s\n", where, what);
    MPI_Abort(MPI_COMM_WORLD, 1);
    exit(1);
}

static void call(const gdn_params *p) {
    gdn_error error;
    if (gdn_fused_sigmoid_gating_delta_rule_update(p, &error) != GDN_OK)
        fail(error.argument, gdn_status_text(error.status));
}

/* result += M * x, which has `columns` columns */
static void apply(const float *M, const float *x, ptrdiff_t columns, float *result) {
    gdn_error error;
    if (gdn_segment_apply(HV, K, columns, GDN_STATE_KV, GDN_F32, M, x, result, &error) != GDN_OK)
        fail(error.argument, gdn_status_text(error.status));
}

static void *allocate(size_t count, size_t size) {
    void *memory = calloc(count, size);
    if (memory == NULL) fail("calloc", "no memory");
    return memory;
}

/* `tokens` tokens, whose final state overwrites the initial one in `pool`. */
static gdn_params params_of(const token *in, ptrdiff_t tokens, void *pool, gdn_dtype dtype) {
    const gdn_tensor strided = {NULL, GDN_F32, 0, sizeof(token) / sizeof(float), 0};
    gdn_params p = {.batch_size = 1, .seq_len = tokens, .num_key_heads = H, .num_value_heads = HV};
    p.head_k_dim = K;
    p.head_v_dim = V;
    p.A_log = gdn_f32(A_log);
    p.dt_bias = gdn_f32(dt_bias);
    p.q = p.k = p.v = p.a = p.b = strided;
    p.q.data = in->q;
    p.k.data = in->k;
    p.v.data = in->v;
    p.a.data = in->a;
    p.b.data = in->b;
    p.use_qk_l2norm_in_kernel = true;
    p.initial_state_source = gdn_pool_of(pool, dtype, 1);
    p.state_layout = GDN_STATE_KV;
    p.compute = dtype == GDN_F64 ? GDN_COMPUTE_F64 : GDN_COMPUTE_F32;
    return p;
}

static void run(const token *in, ptrdiff_t tokens, void *pool, gdn_dtype dtype, void *out) {
    gdn_params p = params_of(in, tokens, pool, dtype);
    p.o = gdn_output_of(out, dtype);
    call(&p);
}

static void run_homogeneous(const token *in, ptrdiff_t tokens, float *M) {
    gdn_params p = params_of(in, tokens, M, GDN_F32);
    p.homogeneous = true;
    p.v.data = NULL;
    p.head_v_dim = K;
    memset(M, 0, HV * K * K * sizeof *M);
    for (int row = 0; row < HV * K; row++) M[row * K + row % K] = 1; /* the identity of each head */
    call(&p);
}

/* MPI's operation: `count` times, later = earlier joined with later. */
static void join(void *earlier, void *later, int *count, MPI_Datatype *type) {
    static float M[HV * K * K];
    (void)type;
    for (int i = 0; i < *count; i++) {
        const segment *x = (const segment *)earlier + i;
        segment *y = (segment *)later + i;
        apply(y->M, x->B, V, y->B);
        memset(M, 0, sizeof M);
        apply(y->M, x->M, K, M);
        memcpy(y->M, M, sizeof M);
    }
}

/* Seeded draws from [-1, 1). */
static void fill(void *to, size_t count) {
    static uint32_t seed = 1;
    float *x = to;
    for (size_t i = 0; i < count; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = (float)(seed >> 8) / 8388608.0f - 1.0f;
    }
}

/* The largest difference, relative to the largest element. */
static double error_of(const float *actual, const double *expected, size_t count) {
    double worst = 0, largest = 0;
    for (size_t i = 0; i < count; i++) {
        const double difference = fabs((double)actual[i] - expected[i]);
        if (!(difference <= worst)) worst = difference; /* a NaN too */
        largest = fmax(largest, fabs(expected[i]));
    }
    return worst / largest;
}

int main(int argc, char **argv) {
    int rank, ranks;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    const ptrdiff_t tokens = argc > 1 ? atoi(argv[1]) : 1024;
    if (tokens < 1) fail("TOKENS", "must be positive");
    const ptrdiff_t first = tokens * rank / ranks, count = tokens * (rank + 1) / ranks - first;

    /* All draw the same inputs, and use their own segment. */
    static state initial;
    token *in = allocate((size_t)tokens, sizeof *in);
    token_out *out = allocate((size_t)tokens, sizeof *out);
    segment *own = allocate(1, sizeof *own), *before = allocate(1, sizeof *before);
    float *last = own->B; /* the final state, at the end */
    fill(in, (size_t)tokens * sizeof *in / sizeof(float));
    fill(initial, sizeof initial / sizeof(float));

    MPI_Datatype type;
    MPI_Op operation;
    MPI_Type_contiguous((int)(sizeof(segment) / sizeof(float)), MPI_FLOAT, &type);
    MPI_Type_commit(&type);
    MPI_Op_create(join, false, &operation); /* not commutative */

    double time[5];
    MPI_Barrier(MPI_COMM_WORLD);
    time[0] = MPI_Wtime();
    if (rank == 0) { /* from the true state, M = 0 */
        memcpy(own->B, initial, sizeof initial);
        run(in, count, own->B, GDN_F32, out);
    } else if (rank < ranks - 1) {
        run(in + first, count, own->B, GDN_F32, out + first); /* these outputs are of no use */
        run_homogeneous(in + first, count, own->M);
    }
    time[1] = MPI_Wtime();
    MPI_Exscan(own, before, 1, type, operation, MPI_COMM_WORLD);
    time[2] = MPI_Wtime();
    if (rank > 0) {
        memcpy(own->B, before->B, sizeof own->B);
        run(in + first, count, own->B, GDN_F32, out + first);
    }
    time[3] = MPI_Wtime();
    MPI_Barrier(MPI_COMM_WORLD);
    time[4] = MPI_Wtime();

    /* To the first rank: the outputs and the last state. */
    int *counts = allocate((size_t)ranks, sizeof *counts), *places = allocate((size_t)ranks, sizeof *places);
    for (int r = 0; r < ranks; r++) {
        places[r] = (int)(tokens * r / ranks) * HV * V;
        counts[r] = (int)(tokens * (r + 1) / ranks) * HV * V - places[r];
    }
    MPI_Gatherv(rank == 0 ? MPI_IN_PLACE : (void *)(out + first), counts[rank], MPI_FLOAT, out, counts, places,
                MPI_FLOAT, 0, MPI_COMM_WORLD);
    if (rank == ranks - 1 && rank > 0) MPI_Send(last, HV * K * V, MPI_FLOAT, 0, 0, MPI_COMM_WORLD);
    if (rank == 0 && ranks > 1) MPI_Recv(last, HV * K * V, MPI_FLOAT, ranks - 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    double phases[] = {time[1] - time[0], time[2] - time[1], time[3] - time[2]}, longest[3];
    MPI_Reduce(phases, longest, 3, MPI_DOUBLE, MPI_MAX, 0, MPI_COMM_WORLD);

    if (rank == 0) {
        static state alone;
        static double exact[HV * K * V];
        token_out *out_alone = allocate((size_t)tokens, sizeof *out);
        double *out_exact = allocate((size_t)tokens * HV * V, sizeof *out_exact);
        for (int i = 0; i < HV * K * V; i++) exact[i] = (double)initial[i];
        memcpy(alone, initial, sizeof initial);
        run(in, tokens, exact, GDN_F64, out_exact);
        const double start = MPI_Wtime();
        run(in, tokens, alone, GDN_F32, out_alone);
        const double seconds = MPI_Wtime() - start;
        const size_t outputs = (size_t)tokens * HV * V;
        const double o_error = error_of(out[0][0], out_exact, outputs);
        const double state_error = error_of(last, exact, HV * K * V);
        printf("%d ranks, %td tokens, %d value heads of %dx%d\n", ranks, tokens, HV, K, V);
        printf("error of outputs   %.1e, of one process %.1e\n", o_error,
               error_of(out_alone[0][0], out_exact, outputs));
        printf("error of the state %.1e, of one process %.1e\n", state_error, error_of(alone, exact, HV * K * V));
        printf(
            "time %.1f ms, of one process %.1f ms; the longest B and M %.1f, scan (with waiting) %.1f, outputs %.1f\n",
            1e3 * (time[4] - time[0]), 1e3 * seconds, 1e3 * longest[0], 1e3 * longest[1], 1e3 * longest[2]);
        printf("a rank sends %.1f MiB\n", (double)sizeof(segment) / 1048576);
        if (!(o_error <= 5e-6 && state_error <= 5e-6)) fail("error", "above 5e-6");
        free(out_alone);
        free(out_exact);
    }
    MPI_Op_free(&operation);
    MPI_Type_free(&type);
    free(in);
    free(out);
    free(own);
    free(before);
    free(counts);
    free(places);
    MPI_Finalize();
    return 0;
}
