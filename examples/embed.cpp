/*
 * Embedding in C++: the caller's own pool of std::thread. The library starts none; each worker takes ranges of work
 * items from a shared counter, with its own scratch, and the bits are those of the one-thread call.
 */
#define GDN_IMPLEMENTATION
#include "gdn_varlen.h"
#include "decode_batch.h"

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

decode_result alone, result;

} // namespace

int main() {
    gdn_error error;
    if (decode_alone(&alone, &error) != GDN_OK) return 1;
    for (unsigned count = 1; count <= MOST_THREADS; count++) {
        thread_pool pool(count);
        std::memset(&result, 0, sizeof result);
        for (int step = 0; step < STEPS; step++) {
            const gdn_params p = decode_step(step, &result);
            if (run_on(pool, p, &error) == GDN_OK) continue;
            std::printf("FAILED: %s: %s\n", error.argument, gdn_status_text(error.status));
            return 1;
        }
        if (std::memcmp(&result, &alone, sizeof result) != 0) {
            std::printf("FAILED: %u threads give other bits than one call\n", count);
            return 1;
        }
    }
    std::printf("std::thread: 1 to %d threads, the bits of the one-thread call\nOK\n", int(MOST_THREADS));
    return 0;
}
