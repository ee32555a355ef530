/*
 * A ggml backend for llama.cpp: one device that computes GGML_OP_GATED_DELTA_NET on host buffers, and nothing else.
 *
 *   GGML_BACKEND_PATH=libggml-gdn.so llama-cli ...
 *
 * It is for the one version of ggml whose sources it was built with (README.md says which there are), looks for it when
 * it is loaded and stays out of any other. What ggml's own operator does faster is left to that.
 */
#define GDN_API static inline
#define GDN_IMPLEMENTATION
#include "gdn_varlen.h"

#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ggml-backend-impl.h"

/* ---- The operator ----------------------------------------------------------------------------------- */

enum { Q, KEY, VALUE, GATE, BETA, STATE, NUM_SOURCES };

/* One stream of ggml's. */
typedef struct gdn_stream {
    int threads;
    char *memory; /* scratch of all threads, then slots */
    size_t size;
} gdn_stream;

/* At least `size` bytes, or NULL; what was in them is lost. */
static char *memory_for(gdn_stream *stream, size_t size) {
    if (size > stream->size) {
        free(stream->memory);
        stream->memory = malloc(size);
        stream->size = stream->memory == NULL ? 0 : size;
    }
    return stream->memory;
}

/* An axis of one element may have any stride in ggml. */
static ptrdiff_t stride_of(const struct ggml_tensor *x, int axis) {
    return x->ne[axis] == 1 ? 0 : (ptrdiff_t)(x->nb[axis] / sizeof(float));
}

static gdn_tensor tensor_of(const struct ggml_tensor *x) {
    const gdn_tensor y = {x->data, GDN_F32, stride_of(x, 3), stride_of(x, 2), stride_of(x, 1)};
    return y;
}

/* All but the address of the states in dst. */
static gdn_params params_of(const struct ggml_tensor *dst) {
    struct ggml_tensor *const *src = dst->src;
    const ptrdiff_t T = src[VALUE]->ne[2], N = src[VALUE]->ne[3], most = dst->op_params[0];
    gdn_params p = {.batch_size = N, .seq_len = T};
    gdn_preset(&p, GDN_SYSTEM_GGML);
    p.num_key_heads = src[KEY]->ne[1];
    p.num_value_heads = src[VALUE]->ne[1];
    p.head_k_dim = p.head_v_dim = src[VALUE]->ne[0];
    p.q = tensor_of(src[Q]);
    p.k = tensor_of(src[KEY]);
    p.v = tensor_of(src[VALUE]);
    p.a = tensor_of(src[GATE]);
    p.b = tensor_of(src[BETA]);
    p.o = gdn_out_f32(dst->data);
    p.is_kda = src[GATE]->ne[0] > 1;
    if (T >= 16) p.compute = GDN_COMPUTE_F32_CHUNKS; /* fewer do not fill a chunk; snapshots go token by token */
    p.initial_state_source = gdn_pool_of(src[STATE]->data, GDN_F32, N);
    p.output_state_pool = gdn_pool_of(NULL, GDN_F32, N * (T < most ? T : most));
    return p;
}

/* dst is outputs, then [snapshots, seqs] states: those after the last tokens of each sequence, the newest first. */
static enum ggml_status gated_delta_net(gdn_stream *stream, const struct ggml_tensor *dst) {
    gdn_params p = params_of(dst);
    gdn_error error;
    const ptrdiff_t T = p.seq_len, N = p.batch_size, num_states = p.output_state_pool.num_states;
    const ptrdiff_t num_slots = num_states > N ? N * T : 0; /* one snapshot is the final state */
    const size_t scratch_size = (gdn_scratch_size(&p) + 63) / 64 * 64;
    const size_t all_scratch = scratch_size * (size_t)stream->threads;
    char *memory = memory_for(stream, all_scratch + (size_t)num_slots * sizeof(int32_t));
    if (memory == NULL) return GGML_STATUS_ALLOC_FAILED;
    int32_t *slots = (void *)(memory + all_scratch);
    for (ptrdiff_t i = 0; i < num_slots; i++) {
        const ptrdiff_t slot = (T - 1 - i % T) * N + i / T;
        slots[i] = slot < num_states ? (int32_t)slot : -1;
    }
    if (num_slots > 0) p.ssm_state_indices = gdn_indices_of(slots, GDN_I32, T);
    p.output_state_pool.data = (float *)dst->data + ggml_nelements(dst->src[VALUE]);
    if (gdn_validate(&p, &error) != GDN_OK) {
        fprintf(stderr, "ggml-gdn: %s: %s: %s\n", dst->name, error.argument, gdn_status_text(error.status));
        return GGML_STATUS_FAILED;
    }
    const ptrdiff_t items = gdn_num_work_items(&p);
#pragma omp parallel num_threads(stream->threads)
    {
        const ptrdiff_t i = omp_get_thread_num(), count = omp_get_num_threads();
        gdn_run_work_items(&p, items * i / count, items * (i + 1) / count, memory + (size_t)i * scratch_size,
                           scratch_size);
    }
    return GGML_STATUS_SUCCESS;
}

/* ---- What it takes ---------------------------------------------------------------------------------- */

static bool is_float_rows(const struct ggml_tensor *x) {
    return x->type == GGML_TYPE_F32 && x->nb[0] == sizeof(float) && ggml_nelements(x) > 0;
}

/* ggml allows more than llama.cpp uses: q and k of different heads, or of fewer sequences than v. */
static bool can_compute(const struct ggml_tensor *dst) {
    for (int i = 0; i < NUM_SOURCES; i++)
        if (dst->src[i] == NULL || !is_float_rows(dst->src[i])) return false;
    const struct ggml_tensor *q = dst->src[Q], *k = dst->src[KEY], *v = dst->src[VALUE];
    const gdn_params p = params_of(dst);
    return ggml_are_same_shape(q, k) && q->ne[0] == v->ne[0] && q->ne[2] == v->ne[2] && q->ne[3] == v->ne[3] &&
           ggml_is_contiguous(dst->src[STATE]) && ggml_is_contiguous(dst) && gdn_validate_plan(&p, NULL) == GDN_OK;
}

/* Where this is faster than ggml's own operator (bench_operator.c; README.md has the figures), and by more than what
 * another piece of the graph costs. */
static bool is_worth_it(const struct ggml_tensor *dst) {
#ifdef GDN_TAKE_ALL
    (void)dst;
    return true;
#else
    const struct ggml_tensor *v = dst->src[VALUE];
    const int64_t tokens = v->ne[2], states = ggml_nelements(dst->src[STATE]);
    /* Fewer tokens of more states wait for memory; there ggml's copy of a state, made first, is faster. */
    const bool waits = tokens < 4 && states > 256 * 128 * 128;
    return v->ne[0] % 16 == 0 && tokens * states >= 8 * 128 * 128 && !waits;
#endif
}

#ifdef GDN_TAKE_ALL
static float *row_of(const struct ggml_tensor *x, int64_t row) {
    const size_t i1 = (size_t)(row % x->ne[1]), i2 = (size_t)(row / x->ne[1] % x->ne[2]);
    const size_t i3 = (size_t)(row / x->ne[1] / x->ne[2]);
    return (float *)x->data + (i1 * x->nb[1] + i2 * x->nb[2] + i3 * x->nb[3]) / sizeof(float);
}

/* ggml's test normalises q and k in the graph, and wants all of a graph on one device. */
static void l2_norm(const struct ggml_tensor *dst) {
    float eps;
    memcpy(&eps, dst->op_params, sizeof eps);
    for (int64_t row = 0; row < ggml_nrows(dst); row++) {
        const float *x = row_of(dst->src[0], row);
        float *y = row_of(dst, row);
        double sum = 0;
        for (int64_t i = 0; i < dst->ne[0]; i++) sum += (double)x[i] * (double)x[i];
        for (int64_t i = 0; i < dst->ne[0]; i++) y[i] = (float)((double)x[i] / fmax(sqrt(sum), (double)eps));
    }
}
#endif

static bool supports_op(ggml_backend_dev_t device, const struct ggml_tensor *op) {
    (void)device;
#ifdef GDN_TAKE_ALL
    if (op->op == GGML_OP_NONE || op->op == GGML_OP_PERMUTE || (op->op == GGML_OP_L2_NORM && is_float_rows(op->src[0])))
        return true;
#endif
    return op->op == GGML_OP_GATED_DELTA_NET && can_compute(op) && is_worth_it(op);
}

/* ---- What ggml calls -------------------------------------------------------------------------------- */

static const char *name_of_backend(ggml_backend_t backend) {
    (void)backend;
    return "GDN";
}

static void free_backend(ggml_backend_t backend) {
    gdn_stream *stream = backend->context;
    free(stream->memory);
    free(stream);
    free(backend);
}

static enum ggml_status compute(ggml_backend_t backend, struct ggml_cgraph *graph) {
    enum ggml_status status = GGML_STATUS_SUCCESS;
    for (int i = 0; i < ggml_graph_n_nodes(graph) && status == GGML_STATUS_SUCCESS; i++) {
        struct ggml_tensor *node = ggml_graph_node(graph, i);
        if ((node->flags & GGML_TENSOR_FLAG_COMPUTE) == 0) continue;
        if (node->op == GGML_OP_GATED_DELTA_NET) status = gated_delta_net(backend->context, node);
#ifdef GDN_TAKE_ALL
        if (node->op == GGML_OP_L2_NORM) l2_norm(node);
#endif
    }
    return status;
}

/* llama.cpp says before each graph how many threads it may use. */
static void set_n_threads(ggml_backend_t backend, int threads) {
    gdn_stream *stream = backend->context;
    stream->threads = threads < 1 ? 1 : threads;
}

static ggml_backend_t new_backend(ggml_backend_dev_t device, const char *params) {
    static ggml_guid guid = {'g', 'd', 'n', '_', 'v', 'a', 'r', 'l', 'e', 'n', '.', 'h', 'g', 'g', 'm', 'l'};
    const struct ggml_backend_i functions = {
        .get_name = name_of_backend, .free = free_backend, .graph_compute = compute};
    gdn_stream *stream = calloc(1, sizeof *stream);
    ggml_backend_t backend = calloc(1, sizeof *backend);
    (void)params;
    if (stream == NULL || backend == NULL) {
        free(stream);
        free(backend);
        return NULL;
    }
    stream->threads = GGML_DEFAULT_N_THREADS;
    backend->guid = &guid;
    backend->iface = functions;
    backend->device = device;
    backend->context = stream;
    return backend;
}

static const char *name_of_device(ggml_backend_dev_t device) {
    (void)device;
    return "GDN";
}

static const char *description_of(ggml_backend_dev_t device) {
    (void)device;
    return "gdn_varlen.h";
}

static void memory_of(ggml_backend_dev_t device, size_t *unused, size_t *total) {
    (void)device;
    *unused = *total = 0; /* it has none of its own */
}

static enum ggml_backend_dev_type type_of(ggml_backend_dev_t device) {
    (void)device;
    return GGML_BACKEND_DEVICE_TYPE_ACCEL;
}

static void props_of(ggml_backend_dev_t device, struct ggml_backend_dev_props *props) {
    memset(props, 0, sizeof *props);
    props->name = name_of_device(device);
    props->description = description_of(device);
    props->type = type_of(device);
    props->caps.mmap_support = true; /* its buffers are the CPU's */
}

static ggml_backend_buffer_type_t buffer_type_of(ggml_backend_dev_t device) {
    (void)device;
    return ggml_backend_cpu_buffer_type();
}

static bool supports_buft(ggml_backend_dev_t device, ggml_backend_buffer_type_t type) {
    (void)device;
    return ggml_backend_buft_is_host(type);
}

static const char *name_of_registry(ggml_backend_reg_t registry) {
    (void)registry;
    return "GDN";
}

static size_t num_devices(ggml_backend_reg_t registry) {
    (void)registry;
    return 1;
}

static ggml_backend_dev_t device_at(ggml_backend_reg_t registry, size_t index);

static void *function_named(ggml_backend_reg_t registry, const char *name) {
    const ggml_backend_set_n_threads_t function = set_n_threads;
    void *address = NULL;
    (void)registry;
    if (strcmp(name, "ggml_backend_set_n_threads") == 0) memcpy(&address, &function, sizeof address);
    return address;
}

static struct ggml_backend_reg registry_of_gdn = {
    .api_version = GGML_BACKEND_API_VERSION,
    .iface = {name_of_registry, num_devices, device_at, function_named},
};

/* What follows is zero: a ggml whose table of functions is longer looks there for the registry. */
static struct {
    struct ggml_backend_device device;
    void *beyond[32];
} device_of_gdn = {.device = {.iface = {.get_name = name_of_device,
                                        .get_description = description_of,
                                        .get_memory = memory_of,
                                        .get_type = type_of,
                                        .get_props = props_of,
                                        .init_backend = new_backend,
                                        .get_buffer_type = buffer_type_of,
                                        .supports_op = supports_op,
                                        .supports_buft = supports_buft},
                              .reg = &registry_of_gdn}};

static ggml_backend_dev_t device_at(ggml_backend_reg_t registry, size_t index) {
    (void)registry;
    return index == 0 ? &device_of_gdn.device : NULL;
}

/* ---- Which ggml this is ----------------------------------------------------------------------------- */

/* What of ggml does not fit, or NULL. Between two releases its sources have the version of the one before, so that what
 * has moved from time to time is looked at too: the operator's number, the size of a tensor, the tables of functions.
 */
static const char *mismatch(void) {
    const size_t object_size = 2 * sizeof(size_t) + sizeof(void *) + 8; /* private to ggml */
    static struct {
        struct ggml_backend backend;
        void *beyond[32];
    } probe;
    if (strcmp(ggml_version(), GDN_GGML_VERSION) != 0) return "another version";
    if (strcmp(ggml_op_name(GGML_OP_GATED_DELTA_NET), "GATED_DELTA_NET") != 0) return "other numbers of operators";
    if (ggml_tensor_overhead() != object_size + sizeof(struct ggml_tensor)) return "another ggml_tensor";
    if (ggml_backend_dev_backend_reg(&device_of_gdn.device) != &registry_of_gdn) return "another ggml_backend_device";
    probe.backend.device = &device_of_gdn.device;
    if (ggml_backend_get_device(&probe.backend) != &device_of_gdn.device) return "another ggml_backend";
    return NULL;
}

GGML_BACKEND_API int ggml_backend_score(void);
GGML_BACKEND_API ggml_backend_reg_t ggml_backend_init(void);

/* ggml asks before anything else; 0: not here. */
int ggml_backend_score(void) {
    const char *reason = mismatch();
    if (reason == NULL) return 1;
    fprintf(stderr, "ggml-gdn: built for ggml %s, not used in ggml %s (commit %s): %s\n", GDN_GGML_VERSION,
            ggml_version(), ggml_commit(), reason);
    return 0;
}

ggml_backend_reg_t ggml_backend_init(void) { return &registry_of_gdn; }
