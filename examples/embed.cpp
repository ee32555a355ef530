/*
 * Embedding in C++: the caller's own pool of std::thread. The library starts none; each worker takes ranges of work
 * items from a shared counter, with its own scratch, and the bits are those of the one-thread call.
 */
#define GDN_IMPLEMENTATION
#include "gdn_varlen.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace {

/* A batch of some sequences that decode a few tokens, as a model's projections would yield them. */
constexpr std::ptrdiff_t sequences = 16, steps = 3, H = 4, HV = 8, K = 64, V = 64;

struct batch {
    using numbers = std::vector<float>;
    numbers q, k, v, a, b, A_log, dt_bias;

    batch() {
        unsigned seed = 1;
        const auto draw = [&](std::ptrdiff_t count) {
            numbers x;
            for (std::ptrdiff_t i = 0; i < count; i++) {
                seed = seed * 1664525u + 1013904223u;
                x.push_back(float(seed >> 8) / 8388608.0f - 1.0f);
            }
            return x;
        };
        q = draw(steps * sequences * H * K);
        k = draw(steps * sequences * H * K);
        v = draw(steps * sequences * HV * V);
        a = draw(steps * sequences * HV);
        b = draw(steps * sequences * HV);
        A_log = draw(HV);
        dt_bias = draw(HV);
    }
};

/* What decoding writes. */
struct outputs {
    std::vector<float> o = std::vector<float>(steps * sequences * HV * V);
    std::vector<float> pool = std::vector<float>(sequences * HV * V * K);

    bool operator==(const outputs &other) const { return same(o, other.o) && same(pool, other.pool); }

  private:
    static bool same(const std::vector<float> &x, const std::vector<float> &y) { /* bit for bit */
        return std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0;
    }
};

/* The call that decodes one token of each sequence. */
gdn_params decode_step(const batch &in, std::ptrdiff_t step, outputs &out) {
    gdn_params p = {};
    p.batch_size = sequences;
    p.seq_len = 1;
    p.num_key_heads = H;
    p.num_value_heads = HV;
    p.head_k_dim = K;
    p.head_v_dim = V;
    p.A_log = gdn_f32(in.A_log.data());
    p.dt_bias = gdn_f32(in.dt_bias.data());
    p.q = gdn_f32(&in.q[std::size_t(step * sequences * H * K)]);
    p.k = gdn_f32(&in.k[std::size_t(step * sequences * H * K)]);
    p.v = gdn_f32(&in.v[std::size_t(step * sequences * HV * V)]);
    p.a = gdn_f32(&in.a[std::size_t(step * sequences * HV)]);
    p.b = gdn_f32(&in.b[std::size_t(step * sequences * HV)]);
    p.o = gdn_out_f32(&out.o[std::size_t(step * sequences * HV * V)]);
    p.initial_state_source = gdn_pool_of(out.pool.data(), GDN_F32, sequences);
    p.state_layout = GDN_STATE_VK;
    p.use_qk_l2norm_in_kernel = true;
    return p;
}

/* Threads that wait for a job, which each of them runs once. */
class thread_pool {
  public:
    explicit thread_pool(unsigned count) {
        for (unsigned i = 0; i < count; i++) threads.emplace_back([this] { wait_for_jobs(); });
    }

    ~thread_pool() {
        hand_out(nullptr);
        for (std::thread &thread : threads) thread.join();
    }

    void run(const std::function<void()> &work) {
        hand_out(&work);
        std::unique_lock<std::mutex> lock(mutex);
        finished.wait(lock, [this] { return busy == 0; });
    }

    unsigned size() const { return unsigned(threads.size()); }

  private:
    void hand_out(const std::function<void()> *work) {
        std::lock_guard<std::mutex> lock(mutex);
        job = work;
        busy = threads.size();
        round++;
        started.notify_all();
    }

    void wait_for_jobs() {
        std::unique_lock<std::mutex> lock(mutex);
        for (unsigned seen = 0;; seen++) {
            started.wait(lock, [&] { return round != seen; });
            if (job == nullptr) return;
            const std::function<void()> &work = *job;
            lock.unlock();
            work();
            lock.lock();
            if (--busy == 0) finished.notify_one();
        }
    }

    std::mutex mutex;
    std::condition_variable started, finished;
    const std::function<void()> *job = nullptr; /* null: the end */
    std::size_t busy = 0;
    unsigned round = 0;
    std::vector<std::thread> threads; /* last, so that they start when all else is there */
};

/* Validates once, then lets the pool run all work items. Only gdn_validate() can fail: the ranges and the scratch
 * below are always right. */
gdn_status run_on(thread_pool &pool, const gdn_params &p, gdn_error *error) {
    const gdn_status status = gdn_validate(&p, error);
    if (status != GDN_OK) return status;

    const std::ptrdiff_t items = gdn_num_work_items(&p);
    const std::ptrdiff_t share = std::max<std::ptrdiff_t>(1, items / (4 * std::ptrdiff_t(pool.size())));
    std::atomic<std::ptrdiff_t> next(0);
    pool.run([&] {
        std::vector<unsigned char> scratch(gdn_scratch_size(&p));
        for (std::ptrdiff_t first; (first = next.fetch_add(share)) < items;)
            gdn_run_work_items(&p, first, std::min(first + share, items), scratch.data(), scratch.size());
    });
    return GDN_OK;
}

} // namespace

int main() {
    const batch in;
    outputs alone;
    gdn_error error;
    for (std::ptrdiff_t step = 0; step < steps; step++) {
        const gdn_params p = decode_step(in, step, alone);
        if (gdn_fused_sigmoid_gating_delta_rule_update(&p, &error) == GDN_OK) continue;
        std::printf("FAILED: %s: %s\n", error.argument, gdn_status_text(error.status));
        return 1;
    }
    for (unsigned count = 1; count <= 5; count++) {
        thread_pool pool(count);
        outputs shared;
        for (std::ptrdiff_t step = 0; step < steps; step++) {
            const gdn_params p = decode_step(in, step, shared);
            if (run_on(pool, p, &error) == GDN_OK) continue;
            std::printf("FAILED: %s: %s\n", error.argument, gdn_status_text(error.status));
            return 1;
        }
        if (!(shared == alone)) {
            std::printf("FAILED: %u threads give other bits than one call\n", count);
            return 1;
        }
    }
    std::printf("std::thread: 1 to 5 threads, the bits of the one-thread call\nOK\n");
    return 0;
}
