// Reads by a pool of threads: one preadv each at a time.
#include <limits.h>

#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

#include "error.h"
#include "read_queue.h"

namespace penstock {
namespace {

class ReadQueueThreads final : public ReadQueue {
public:
    ReadQueueThreads(const DirectFile & file, int threads, size_t outstanding) : file_(file), ring_(outstanding) {
        try {
            for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
        } catch (...) {  // no destructor follows, and a thread that is not joined ends the process
            join();
            throw;
        }
    }

    ~ReadQueueThreads() override { join(); }

    uint64_t submit(const Read * reads, size_t count) override {
        std::unique_lock lock(mutex_);
        const uint64_t first = tail_;
        for (size_t i = 0; i < count; ++i) {
            if (tail_ - done_ == ring_.size()) {
                wake_.notify_all();
                finished_.wait(lock, [&] { return tail_ - done_ < ring_.size(); });
            }
            if (tail_ == done_) busy_since_ = now_ns();
            ring_[tail_++ % ring_.size()] = {reads[i], false};
        }
        if (count == 1) wake_.notify_one();
        else wake_.notify_all();
        return first;
    }

    void wait(uint64_t end) override {
        std::unique_lock lock(mutex_);
        finished_.wait(lock, [&] { return done_ >= end; });
        if (!failure_.empty()) {
            const std::string why = failure_;
            lock.unlock();
            drain();
            throw StorageError(why);
        }
    }

    void drain() noexcept override {
        std::unique_lock lock(mutex_);
        finished_.wait(lock, [&] { return done_ == tail_; });
        failure_.clear();
    }

    ReadTotals totals() const override {
        std::lock_guard lock(mutex_);
        ReadTotals t = totals_;
        if (done_ != tail_) t.busy_ns += now_ns() - busy_since_;
        return t;
    }

    const char * name() const override { return "threads"; }

private:
    struct Entry {
        Read read;
        bool done;
    };

    void join() {
        {
            std::lock_guard lock(mutex_);
            stop_ = true;
        }
        wake_.notify_all();
        for (auto & t : threads_) t.join();
    }

    void work() {
        std::unique_lock lock(mutex_);
        for (;;) {
            wake_.wait(lock, [&] { return stop_ || next_ < tail_; });
            if (stop_) return;
            const uint64_t ticket = next_++;
            const Read read = ring_[ticket % ring_.size()].read;
            lock.unlock();
            std::string failure;
            try {
                const ssize_t got = preadv(file_.fd(), read.iov, static_cast<int>(read.iov_count),
                                           static_cast<off_t>(read.offset));
                if (got < 0 || static_cast<size_t>(got) != read.bytes) {
                    finish_partial_read(file_, read, got < 0 ? 0 : static_cast<size_t>(got), got < 0 ? errno : 0);
                }
                file_.drop_cache(read.offset, read.bytes);
            } catch (const std::exception & e) {
                failure = e.what();
            }
            lock.lock();
            if (!failure.empty() && failure_.empty()) failure_ = failure;
            ring_[ticket % ring_.size()].done = true;
            totals_.bytes += read.bytes;
            totals_.reads += 1;
            const uint64_t before = done_;
            while (done_ < tail_ && ring_[done_ % ring_.size()].done) ++done_;
            if (done_ == tail_) totals_.busy_ns += now_ns() - busy_since_;
            if (done_ != before) finished_.notify_all();
        }
    }

    const DirectFile & file_;
    std::vector<Entry> ring_;
    std::vector<std::thread> threads_;
    mutable std::mutex mutex_;
    std::condition_variable wake_, finished_;
    uint64_t next_ = 0, tail_ = 0, done_ = 0;  // started below next_, all done below done_
    bool stop_ = false;
    std::string failure_;
    ReadTotals totals_;
    uint64_t busy_since_ = 0;
};

}  // namespace

std::unique_ptr<ReadQueue> make_read_queue_threads(const DirectFile & file, int depth, size_t outstanding) {
    return std::make_unique<ReadQueueThreads>(file, depth, outstanding);
}

}  // namespace penstock
