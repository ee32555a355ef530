#include "peer_ggml.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "ggml.h"
#include "ggml-cpu.h"

struct peer {
    struct ggml_context *context;
    struct ggml_cgraph *graph;
    struct ggml_tensor *result;
    struct ggml_threadpool *threads;
    struct ggml_cplan plan;
    size_t output_size, states_size; /* elements: before the states; of all states after one token */
};

/* A tensor over memory of the caller; the operator does not write to its sources. */
static struct ggml_tensor *view(struct ggml_context *context, const gdn_tensor *x, ptrdiff_t inner, ptrdiff_t heads,
                                ptrdiff_t tokens, ptrdiff_t seqs) {
    struct ggml_tensor *tensor = ggml_new_tensor_4d(context, GGML_TYPE_F32, inner, heads, tokens, seqs);
    memcpy(&tensor->data, &x->data, sizeof x->data);
    return tensor;
}

static struct ggml_tensor *own(struct ggml_tensor *tensor) {
    tensor->data = aligned_alloc(4096, (ggml_nbytes(tensor) + 4095) / 4096 * 4096);
    if (tensor->data == NULL) abort();
    return tensor;
}

peer *peer_new(const gdn_params *p, int threads) {
    const ptrdiff_t H = p->num_key_heads, HV = p->num_value_heads, S = p->head_k_dim, N = p->num_seqs;
    const ptrdiff_t T = p->seq_len / N;
    const struct ggml_init_params memory = {
        .mem_size = 64 * ggml_tensor_overhead() + ggml_graph_overhead(), .mem_buffer = NULL, .no_alloc = true};
    peer *x = calloc(1, sizeof *x);
    if (x == NULL || (x->context = ggml_init(memory)) == NULL) {
        free(x);
        return NULL;
    }
    struct ggml_tensor *q = view(x->context, &p->q, S, H, T, N), *k = view(x->context, &p->k, S, H, T, N);
    struct ggml_tensor *v = view(x->context, &p->v, S, HV, T, N), *g = view(x->context, &p->a, 1, HV, T, N);
    struct ggml_tensor *beta = view(x->context, &p->b, 1, HV, T, N);
    struct ggml_tensor *states = own(ggml_new_tensor_4d(x->context, GGML_TYPE_F32, S, S, HV, N));
    const int32_t *slots = p->initial_state_indices.data;
    const float *pool = p->initial_state_source.data;
    const size_t slot_size = (size_t)(HV * S * S);
    for (ptrdiff_t n = 0; n < N; n++)
        memcpy((float *)states->data + (size_t)n * slot_size, pool + (size_t)slots[n] * slot_size,
               slot_size * sizeof *pool);

    const int64_t states_kept = p->intermediate_states_buffer.data != NULL ? T : 1;
    x->result = own(ggml_gated_delta_net(x->context, q, k, v, g, beta, states, states_kept));
    x->output_size = (size_t)(N * T * HV * S);
    x->states_size = (size_t)N * slot_size;
    x->graph = ggml_new_graph(x->context);
    ggml_build_forward_expand(x->graph, x->result);

    struct ggml_threadpool_params how = ggml_threadpool_params_default(threads);
    how.paused = true;
    x->threads = ggml_threadpool_new(&how);
    x->plan = ggml_graph_plan(x->graph, threads, x->threads);
    x->plan.work_data = malloc(x->plan.work_size + 1);
    if (x->threads == NULL || x->plan.work_data == NULL) abort();
    return x;
}

void peer_run(peer *x) {
    if (ggml_graph_compute(x->graph, &x->plan) != GGML_STATUS_SUCCESS) abort();
}

void peer_wake(peer *x) { ggml_threadpool_resume(x->threads); }

void peer_rest(peer *x) { ggml_threadpool_pause(x->threads); }

const float *peer_output(const peer *x) { return x->result->data; }

const float *peer_states(const peer *x, ptrdiff_t tokens_before) {
    return (const float *)x->result->data + x->output_size + (size_t)tokens_before * x->states_size;
}

void peer_free(peer *x) {
    ggml_threadpool_free(x->threads);
    free(x->plan.work_data);
    free(x->result->src[5]->data);
    free(x->result->data);
    ggml_free(x->context);
    free(x);
}
