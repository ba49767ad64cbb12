// A fixed set of compute threads that share one job at a time.
//
// Decoding runs hundreds of very short parallel regions a token, so idle workers spin for a few
// microseconds before they sleep; the caller always works too. No allocation in run().
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <thread>
#include <vector>

namespace penstock {

class ThreadPool {
public:
    explicit ThreadPool(int threads);  // threads >= 1, the caller included
    ~ThreadPool();
    ThreadPool(const ThreadPool &) = delete;
    ThreadPool & operator=(const ThreadPool &) = delete;

    int threads() const { return threads_; }

    // job(begin, end) over [0, n) in one contiguous range a thread; ranges start at multiples of grain.
    template <typename Job>
    void run(size_t n, size_t grain, Job && job) {
        if (threads_ == 1 || n <= grain) {
            if (n != 0) job(size_t{0}, n);
            return;
        }
        struct Call {
            Job * job;
            size_t n, grain;
            int threads;
        } call{&job, n, grain, threads_};
        start(
            [](void * context, int worker) {
                auto * c = static_cast<Call *>(context);
                const size_t units = (c->n + c->grain - 1) / c->grain;
                const size_t begin = units * worker / c->threads * c->grain;
                size_t end = units * (worker + 1) / c->threads * c->grain;
                if (end > c->n) end = c->n;
                if (begin < end) (*c->job)(begin, end);
            },
            &call);
    }

private:
    using Function = void (*)(void * context, int worker);
    void start(Function function, void * context);
    void work(int worker);
    void join();

    const int threads_;
    std::vector<std::thread> workers_;
    std::atomic<unsigned> generation_{0};
    std::atomic<int> running_{0};
    std::atomic<bool> stop_{false};
    Function function_ = nullptr;
    void * context_ = nullptr;
    std::atomic<int> sleepers_{0};
    std::mutex mutex_;
    std::condition_variable wake_;
};

}  // namespace penstock
