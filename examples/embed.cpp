/*
 * Embedding in C++: std::vector buffers, and the caller's own threads. The library starts none; each worker takes
 * ranges of work items from a shared counter, with its own scratch, and the bits are those of the one-thread call.
 */
#define GDN_IMPLEMENTATION
#include "gdn_varlen.h"
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

namespace {

const int H = 2, HV = 8, K = 64, V = 64, TOKENS = 96, SEQUENCES = 3;
const std::size_t STATE_FLOATS = std::size_t(SEQUENCES) * HV * K * V;

std::vector<float> draws(std::size_t count) {
    static std::mt19937 generator(1);
    std::vector<float> x(count);
    for (float &value : x) value = float(generator() % 2048) / 1024.0f - 1.0f;
    return x;
}

/* Validates once, then lets `count` threads run all work items. Only gdn_validate() can fail: the ranges and the
 * scratch below are always right. */
gdn_status run_on_threads(const gdn_params &p, unsigned count, gdn_error *error) {
    const gdn_status status = gdn_validate(&p, error);
    if (status != GDN_OK) return status;

    const std::ptrdiff_t items = gdn_num_work_items(&p);
    const std::ptrdiff_t share = std::max<std::ptrdiff_t>(1, items / (4 * std::ptrdiff_t(count)));
    std::atomic<std::ptrdiff_t> next(0);
    const auto work = [&] {
        std::vector<unsigned char> scratch(gdn_scratch_size(&p));
        for (std::ptrdiff_t first; (first = next.fetch_add(share)) < items;)
            gdn_run_work_items(&p, first, std::min(first + share, items), scratch.data(), scratch.size());
    };
    std::vector<std::thread> threads;
    for (unsigned i = 1; i < count; i++) threads.emplace_back(work);
    work();
    for (std::thread &thread : threads) thread.join();
    return GDN_OK;
}

template <class T> bool same_bits(const std::vector<T> &x, const std::vector<T> &y) {
    return x.size() == y.size() && std::memcmp(x.data(), y.data(), x.size() * sizeof(T)) == 0;
}

} // namespace

int main() {
    const std::vector<float> A_log = draws(HV), dt_bias = draws(HV), a = draws(TOKENS * HV), b = draws(TOKENS * HV);
    const std::vector<float> q = draws(TOKENS * H * K), k = draws(TOKENS * H * K), v = draws(TOKENS * HV * V);
    const std::vector<std::int64_t> cu_seqlens = {0, 17, 80, TOKENS};
    const std::vector<float> pool = draws(STATE_FLOATS);

    gdn_params p = {};
    p.batch_size = 1;
    p.seq_len = TOKENS;
    p.num_seqs = SEQUENCES;
    p.num_key_heads = H;
    p.num_value_heads = HV;
    p.head_k_dim = K;
    p.head_v_dim = V;
    p.cu_seqlens = gdn_i64(cu_seqlens.data());
    p.A_log = gdn_f32(A_log.data());
    p.dt_bias = gdn_f32(dt_bias.data());
    p.a = gdn_f32(a.data());
    p.b = gdn_f32(b.data());
    p.q = gdn_f32(q.data());
    p.k = gdn_f32(k.data());
    p.v = gdn_f32(v.data());
    p.state_layout = GDN_STATE_VK;
    p.use_qk_l2norm_in_kernel = true;

    std::vector<float> o_alone(v.size()), pool_alone = pool;
    p.o = gdn_out_f32(o_alone.data());
    p.initial_state_source = gdn_pool_of(pool_alone.data(), GDN_F32, SEQUENCES);
    gdn_error error;
    gdn_status status = gdn_fused_sigmoid_gating_delta_rule_update(&p, &error);

    for (unsigned count = 1; status == GDN_OK && count <= 5; count++) {
        std::vector<float> o(v.size()), states = pool;
        p.o = gdn_out_f32(o.data());
        p.initial_state_source = gdn_pool_of(states.data(), GDN_F32, SEQUENCES);
        status = run_on_threads(p, count, &error);
        if (status != GDN_OK) break;
        if (!same_bits(o, o_alone) || !same_bits(states, pool_alone)) {
            std::printf("FAILED: %u threads give other bits than one call\n", count);
            return 1;
        }
        std::printf("%u threads, %d work items: the bits of the one-thread call\n", count, int(gdn_num_work_items(&p)));
    }
    if (status != GDN_OK) {
        std::printf("FAILED: %s: %s\n", error.argument, gdn_status_text(status));
        return 1;
    }
    std::printf("OK\n");
    return 0;
}
