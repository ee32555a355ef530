/*
 * A layer over several processes. Heads are independent, and so are sequences: the ranks form a grid of `groups` rows,
 * each of which takes a share of the sequences, and in a row each rank takes a share of the heads: key heads, with the
 * value heads that belong to them. Nothing moves while tokens are computed; the outputs are gathered afterwards and
 * compared, bit for bit, with those of one process, and so are the states.
 *
 *   mpicc -O2 -I. examples/mpi/tensor_parallel.c -o tensor_parallel -lm
 *   mpirun -n 4 tensor_parallel [GROUPS]        default: 2 for four ranks, eight, ...
 *
 * Every rank draws all inputs from one seed, as if the layer before had left them there, and passes its share as views:
 * the strides are those of the whole.
 */
#define GDN_IMPLEMENTATION
#include "gdn_varlen.h"

#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N = 4, TOKENS = 157, H = 8, HV = 16, K = 64, V = 64, GROUP = HV / H };

static const int32_t cu_seqlens[N + 1] = {0, 50, 51, 120, TOKENS}; /* the second is decoded, the others prefilled */

static struct {
    float q[TOKENS][H][K], k[TOKENS][H][K], v[TOKENS][HV][V], a[TOKENS][HV], b[TOKENS][HV], A_log[HV], dt_bias[HV];
} in;

/* Of all heads and sequences. A rank writes its share, in place. */
typedef struct outputs {
    float o[TOKENS][HV][V], pool[N][HV][V][K];
} outputs;

static outputs alone, shared;

static void fail(const char *what) {
    printf("FAILED: %s\n", what);
    MPI_Abort(MPI_COMM_WORLD, 1);
    exit(1);
}

/* Seeded draws from [-1, 1). */
static void fill(void *to, size_t bytes) {
    static uint32_t seed = 1;
    float *x = to;
    for (size_t i = 0; i < bytes / sizeof *x; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = (float)(seed >> 8) / 8388608.0f - 1.0f;
    }
}

static gdn_tensor view(const float *data, ptrdiff_t heads, ptrdiff_t width) {
    const gdn_tensor x = {data, GDN_F32, 0, heads * width, width};
    return x;
}

/* Sequences [n0, n1) and key heads [h0, h1). */
typedef struct share {
    int n0, n1, h0, h1;
} share;

static share share_of(int rank, int ranks, int groups) {
    const int columns = ranks / groups, row = rank / columns, column = rank % columns;
    const share x = {N * row / groups, N * (row + 1) / groups, H * column / columns, H * (column + 1) / columns};
    return x;
}

/* Computes a share, to its places in `out`. */
static void run(share x, outputs *out) {
    const int first = cu_seqlens[x.n0], num_seqs = x.n1 - x.n0, hv0 = x.h0 * GROUP;
    int32_t offsets[N + 1];
    for (int n = 0; n <= num_seqs; n++) offsets[n] = cu_seqlens[x.n0 + n] - first;
    gdn_params p = {.batch_size = 1, .seq_len = offsets[num_seqs], .num_seqs = num_seqs};
    p.cu_seqlens = gdn_i32(offsets);
    p.num_key_heads = x.h1 - x.h0;
    p.num_value_heads = (x.h1 - x.h0) * GROUP;
    p.head_k_dim = K;
    p.head_v_dim = V;
    p.A_log = gdn_f32(in.A_log + hv0);
    p.dt_bias = gdn_f32(in.dt_bias + hv0);
    p.q = view(in.q[first][x.h0], H, K);
    p.k = view(in.k[first][x.h0], H, K);
    p.v = view(in.v[first][hv0], HV, V);
    p.a = view(&in.a[first][hv0], HV, 1);
    p.b = view(&in.b[first][hv0], HV, 1);
    p.o = gdn_out_f32(out->o[first][hv0]);
    p.o.token_stride = HV * V;
    p.initial_state_source = gdn_pool_of(out->pool[x.n0][hv0], GDN_F32, num_seqs);
    p.initial_state_source.slot_stride = HV * V * K;
    p.state_layout = GDN_STATE_VK;
    p.use_qk_l2norm_in_kernel = true;
    gdn_error error;
    if (gdn_fused_sigmoid_gating_delta_rule_update(&p, &error) != GDN_OK) fail(gdn_status_text(error.status));
}

/* A share's places in an array of `rows` rows of all heads, of `width` floats each. */
static MPI_Datatype places(share x, int rows, int width) {
    MPI_Datatype type;
    MPI_Type_vector(rows, (x.h1 - x.h0) * GROUP * width, HV * width, MPI_FLOAT, &type);
    MPI_Type_commit(&type);
    return type;
}

/* Sends or receives the outputs and states of a share, from or to their places. */
static void move(share x, outputs *y, int sender, bool send) {
    MPI_Datatype o = places(x, cu_seqlens[x.n1] - cu_seqlens[x.n0], V), states = places(x, x.n1 - x.n0, V * K);
    float *o_data = y->o[cu_seqlens[x.n0]][x.h0 * GROUP], *state_data = y->pool[x.n0][x.h0 * GROUP][0];
    if (send) {
        MPI_Send(o_data, 1, o, 0, 0, MPI_COMM_WORLD);
        MPI_Send(state_data, 1, states, 0, 1, MPI_COMM_WORLD);
    } else {
        MPI_Recv(o_data, 1, o, sender, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        MPI_Recv(state_data, 1, states, sender, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    }
    MPI_Type_free(&o);
    MPI_Type_free(&states);
}

int main(int argc, char **argv) {
    int rank, ranks;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    const int groups = argc > 1 ? atoi(argv[1]) : ranks % 4 == 0 ? 2 : 1;
    if (groups < 1 || groups > N || ranks % groups != 0 || ranks / groups > H)
        fail("the ranks must be a multiple of the groups, with a sequence for each group and a key head for each rank");

    fill(&in, sizeof in);
    run(share_of(rank, ranks, groups), &shared);
    if (rank > 0) move(share_of(rank, ranks, groups), &shared, rank, true);
    if (rank == 0) {
        const share all = {0, N, 0, H};
        for (int other = 1; other < ranks; other++) move(share_of(other, ranks, groups), &shared, other, false);
        run(all, &alone);
        if (memcmp(&shared, &alone, sizeof alone) != 0) fail("other bits than one process");
        printf("%d ranks, %d x %d shares of sequences and heads: the bits of one process\n", ranks, groups,
               ranks / groups);
    }
    MPI_Finalize();
    return 0;
}
