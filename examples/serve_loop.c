/*
 * A serving loop: requests of random lengths arrive, wait for slots of the state pool, and go. Each step is two calls:
 *
 *   one over all that are prefilled (their whole prompt) or decoded (one token), packed behind cu_seqlens. A request
 *   starts from a slot that it only reads, that of zeros or that of a prefix which many share, and writes to its own;
 *
 *   one that verifies drafts. A request with drafts has a slot of the pool for each of them; what the model rejects is
 *   rolled back by saying, in the next call, how many were accepted. Nothing is copied or cleared.
 *
 * Whatever company a request had, its outputs have the bits of the same request alone, all its tokens in one call.
 *
 *   serve_loop [REQUESTS [SEED]]
 */
#define GDN_IMPLEMENTATION
#include "gdn_varlen.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { H = 2, HV = 4, K = 32, V = 32 };
enum { PREFIX = 24, MOST_PROMPT = 48, MOST_DECODED = 40, MOST_TOKENS = PREFIX + MOST_PROMPT + MOST_DECODED };
enum { DRAFTS = 4, SLOTS = 16, ZERO_SLOT = 0, PREFIX_SLOT = 1, FIRST_FREE_SLOT = 2 };
enum { MOST_SEQUENCES = SLOTS, MOST_PACKED = MOST_SEQUENCES * (MOST_PROMPT + PREFIX) };

/* What the model's projections yield for a token. The operator reads it in place: its strides are this struct's. */
typedef struct token {
    float q[H][K], k[H][K], v[HV][V], a[HV], b[HV];
} token;
typedef float token_out[HV][V];

typedef struct request {
    int arrives, prompt, length; /* step of arrival; tokens of the prompt, and in all */
    bool shares_prefix, drafts;
    int done;                /* tokens whose outputs are there */
    int num_slots, accepted; /* accepted: drafts of the last verification */
    int32_t slots[DRAFTS];   /* the first one alone without drafts */
    token in[MOST_TOKENS];
    token_out out[MOST_TOKENS];
} request;

/* The sequences of one call. */
typedef struct batch {
    int sequences;
    request *of[MOST_SEQUENCES];
    int kept[MOST_SEQUENCES]; /* tokens of which the outputs are kept */
    int32_t cu_seqlens[MOST_SEQUENCES + 1];
    int32_t reads[MOST_SEQUENCES], writes[MOST_SEQUENCES];                /* the first call */
    int32_t step_slots[MOST_SEQUENCES][DRAFTS], accepted[MOST_SEQUENCES]; /* the second */
    token in[MOST_PACKED];
    token_out out[MOST_PACKED];
} batch;

static const float A_log[HV] = {-1.0f, -0.5f, 0.0f, 0.5f}, dt_bias[HV] = {0.3f, 0.1f, -0.1f, -0.3f};
static float pool[SLOTS][HV][V][K];
static uint32_t seed = 1;

static uint32_t draw(void) {
    seed = seed * 1664525u + 1013904223u;
    return seed >> 8;
}

static int draw_between(int low, int high) { return low + (int)(draw() % (uint32_t)(high - low + 1)); }

static void draw_tokens(token *x, int count) {
    float *values = x->q[0];
    for (size_t i = 0; i < (size_t)count * sizeof *x / sizeof *values; i++)
        values[i] = (float)draw() / 8388608.0f - 1.0f;
}

static gdn_params params_of(const token *in, token_out *out, int sequences, const int32_t *cu_seqlens) {
    const gdn_tensor strided = {NULL, GDN_F32, 0, sizeof(token) / sizeof(float), 0};
    gdn_params p = {.batch_size = 1, .seq_len = cu_seqlens[sequences], .num_seqs = sequences};
    p.cu_seqlens = gdn_i32(cu_seqlens);
    p.num_key_heads = H;
    p.num_value_heads = HV;
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
    p.o = gdn_out_f32(out[0][0]);
    p.use_qk_l2norm_in_kernel = true;
    p.state_layout = GDN_STATE_VK;
    return p;
}

static void run(const gdn_params *p) {
    gdn_error error;
    if (gdn_fused_sigmoid_gating_delta_rule_update(p, &error) != GDN_OK) {
        printf("FAILED: %s: %s\n", error.argument, gdn_status_text(error.status));
        exit(1);
    }
}

/* Adds the next `count` tokens of a request, of which `kept` are its own; the others are drafts that will be wrong. */
static int add(batch *b, request *r, int count, int kept) {
    const int n = b->sequences++, first = b->cu_seqlens[n];
    memcpy(&b->in[first], &r->in[r->done], (size_t)kept * sizeof(token));
    draw_tokens(&b->in[first + kept], count - kept);
    b->of[n] = r;
    b->kept[n] = kept;
    b->cu_seqlens[n + 1] = first + count;
    return n;
}

/* Runs a call and hands the outputs to their requests. */
static void run_batch(batch *b, const gdn_params *p) {
    if (b->sequences == 0) return;
    run(p);
    for (int n = 0; n < b->sequences; n++) {
        memcpy(&b->of[n]->out[b->of[n]->done], &b->out[b->cu_seqlens[n]], (size_t)b->kept[n] * sizeof(token_out));
        b->of[n]->done += b->kept[n];
    }
}

static void prefill_and_decode(batch *b) {
    gdn_params p = params_of(b->in, b->out, b->sequences, b->cu_seqlens);
    p.initial_state_source = gdn_pool_of(pool, GDN_F32, SLOTS);
    p.initial_state_indices = gdn_i32(b->reads);
    p.output_state_indices = gdn_i32(b->writes);
    run_batch(b, &p);
}

static void verify(batch *b) {
    gdn_params p = params_of(b->in, b->out, b->sequences, b->cu_seqlens);
    p.initial_state_source = gdn_pool_of(pool, GDN_F32, SLOTS);
    p.ssm_state_indices = gdn_indices_of(b->step_slots, GDN_I32, DRAFTS);
    p.num_accepted_tokens = gdn_i32(b->accepted);
    run_batch(b, &p);
}

/* The request alone, from its first token on; a shared prefix was somebody else's, and its outputs are not kept. */
static bool same_alone(const request *r) {
    static token_out out[MOST_TOKENS];
    const int32_t cu_seqlens[] = {0, r->length};
    const int first = r->shares_prefix ? PREFIX : 0;
    const gdn_params p = params_of(r->in, out, 1, cu_seqlens);
    run(&p);
    return memcmp(&out[first], &r->out[first], (size_t)(r->length - first) * sizeof(token_out)) == 0;
}

int main(int argc, char **argv) {
    const int count = argc > 1 ? (int)strtol(argv[1], NULL, 0) : 40;
    seed = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 0) : 1;
    if (argc > 3 || count < 1) return printf("usage: serve_loop [REQUESTS [SEED]]\n"), 2;
    request *requests = calloc((size_t)count, sizeof *requests);
    batch *mixed = malloc(sizeof *mixed), *drafted = malloc(sizeof *drafted);
    if (requests == NULL || mixed == NULL || drafted == NULL) {
        printf("FAILED: no memory\n");
        exit(1);
    }

    /* The prefix goes to its slot once. */
    static token prefix[PREFIX];
    draw_tokens(prefix, PREFIX);
    gdn_params p = params_of(prefix, mixed->out, 1, (const int32_t[]){0, PREFIX});
    p.initial_state_source = gdn_pool_of(pool, GDN_F32, SLOTS);
    p.initial_state_indices = gdn_i32((const int32_t[]){ZERO_SLOT});
    p.output_state_indices = gdn_i32((const int32_t[]){PREFIX_SLOT});
    run(&p);

    for (int i = 0, step = 0; i < count; i++) { /* in order of arrival */
        request *r = &requests[i];
        r->arrives = step += draw_between(0, 6);
        r->shares_prefix = draw_between(0, 2) == 0;
        r->drafts = draw_between(0, 2) == 0;
        r->num_slots = r->drafts ? DRAFTS : 1;
        r->prompt = draw_between(1, MOST_PROMPT) + (r->shares_prefix ? PREFIX : 0);
        r->length = r->prompt + draw_between(1, MOST_DECODED);
        draw_tokens(r->in, r->length);
        if (r->shares_prefix) memcpy(r->in, prefix, sizeof prefix);
        if (r->shares_prefix) r->done = PREFIX;
    }

    int32_t free_slots[SLOTS];
    int num_free = 0, arrived = 0, admitted = 0, finished = 0, step = 0;
    int prefilled = 0, decoded = 0, proposed = 0, accepted = 0, sharing = 0, slots_given = 0;
    for (int s = SLOTS - 1; s >= FIRST_FREE_SLOT; s--) free_slots[num_free++] = s;
    for (; finished < count; step++) {
        while (arrived < count && requests[arrived].arrives <= step) arrived++;
        for (; admitted < arrived && requests[admitted].num_slots <= num_free; admitted++) {
            request *r = &requests[admitted];
            for (int i = 0; i < r->num_slots; i++) r->slots[i] = free_slots[--num_free];
            r->accepted = 1; /* the prompt's state is in the first slot */
            slots_given += r->num_slots;
            sharing += r->shares_prefix;
        }

        mixed->sequences = drafted->sequences = mixed->cu_seqlens[0] = drafted->cu_seqlens[0] = 0;
        for (request *r = requests; r < requests + admitted; r++) {
            const int left = r->length - r->done;
            if (left == 0) continue;
            if (r->done < r->prompt) {
                prefilled += r->prompt - r->done;
                const int n = add(mixed, r, r->prompt - r->done, r->prompt - r->done);
                mixed->reads[n] = r->shares_prefix ? PREFIX_SLOT : ZERO_SLOT;
                mixed->writes[n] = r->slots[0];
            } else if (!r->drafts) {
                const int n = add(mixed, r, 1, 1);
                mixed->reads[n] = mixed->writes[n] = r->slots[0];
                decoded++;
            } else {
                const int right = draw_between(1, DRAFTS), kept = right < left ? right : left;
                const int n = add(drafted, r, DRAFTS, kept);
                memcpy(drafted->step_slots[n], r->slots, sizeof r->slots);
                drafted->accepted[n] = r->accepted;
                r->accepted = kept;
                proposed += DRAFTS;
                accepted += kept;
            }
        }
        prefill_and_decode(mixed);
        verify(drafted);

        for (request *r = requests; r < requests + admitted; r++) {
            if (r->done < r->length || r->num_slots == 0) continue;
            while (r->num_slots > 0) free_slots[num_free++] = r->slots[--r->num_slots];
            finished++;
        }
        if (step % 20 == 0 || finished == count)
            printf("step %3d: %2d sequences in the batch, %2d requests waiting, %2d finished; %2d of %d slots free\n",
                   step, mixed->sequences + drafted->sequences, arrived - admitted, finished, num_free,
                   SLOTS - FIRST_FREE_SLOT);
    }

    for (int i = 0; i < count; i++)
        if (!same_alone(&requests[i])) return printf("FAILED: request %d differs from the same request alone\n", i), 1;
    printf(
        "%d requests, %d of them from the shared prefix: %d tokens prefilled, %d decoded, %d of %d drafts accepted;\n"
        "%d slots given out of %d; every request has the bits of the same request alone\n",
        count, sharing, prefilled, decoded, accepted, proposed, slots_given, SLOTS - FIRST_FREE_SLOT);
    free(requests);
    free(mixed);
    free(drafted);
    return 0;
}
