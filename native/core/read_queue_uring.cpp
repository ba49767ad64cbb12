// Reads through io_uring, by the kernel's own interface (io_uring_setup(2), io_uring_enter(2)):
// two rings shared with the kernel, no thread and no library.
#include "read_queue.h"

#if defined(__linux__) && __has_include(<linux/io_uring.h>)
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>

#include "error.h"

namespace penstock {
namespace {

template <typename T>
T * at(void * base, uint32_t offset) {
    return reinterpret_cast<T *>(static_cast<uint8_t *>(base) + offset);
}

// Completions do not interrupt the thread while it computes; it is told to come for them. By number:
// headers of older kernels lack the names.
constexpr uint32_t kQuiet = (1u << 8) | (1u << 9);  // IORING_SETUP_COOP_TASKRUN, IORING_SETUP_TASKRUN_FLAG
constexpr uint32_t kTaskWork = 1u << 2;             // IORING_SQ_TASKRUN

uint32_t acquire(const uint32_t * p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
void release(uint32_t * p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }

class ReadQueueUring final : public ReadQueue {
public:
    ReadQueueUring(const DirectFile & file, int depth, size_t outstanding, int ring_fd, const io_uring_params & p)
        : file_(file), depth_(static_cast<uint32_t>(depth)), fd_(ring_fd), entries_(outstanding) {
        sq_bytes_ = std::max<size_t>(p.sq_off.array + p.sq_entries * sizeof(uint32_t),
                                     p.cq_off.cqes + p.cq_entries * sizeof(io_uring_cqe));
        sqe_bytes_ = p.sq_entries * sizeof(io_uring_sqe);
        rings_ = mmap(nullptr, sq_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd_, IORING_OFF_SQ_RING);
        void * sqes = mmap(nullptr, sqe_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd_, IORING_OFF_SQES);
        if (rings_ == MAP_FAILED || sqes == MAP_FAILED) {
            close(fd_);
            throw StorageError("io_uring: cannot map its rings");
        }
        sqes_ = static_cast<io_uring_sqe *>(sqes);
        sq_tail_ = at<uint32_t>(rings_, p.sq_off.tail);
        sq_flags_ = at<uint32_t>(rings_, p.sq_off.flags);
        sq_mask_ = *at<uint32_t>(rings_, p.sq_off.ring_mask);
        sq_array_ = at<uint32_t>(rings_, p.sq_off.array);
        cq_head_ = at<uint32_t>(rings_, p.cq_off.head);
        cq_tail_ = at<uint32_t>(rings_, p.cq_off.tail);
        cq_mask_ = *at<uint32_t>(rings_, p.cq_off.ring_mask);
        cqes_ = at<io_uring_cqe>(rings_, p.cq_off.cqes);
    }

    ~ReadQueueUring() override {
        drain();
        munmap(sqes_, sqe_bytes_);
        munmap(rings_, sq_bytes_);
        close(fd_);
    }

    uint64_t submit(const Read * reads, size_t count) override {
        if (!broken_.empty()) throw StorageError(broken_);
        const uint64_t first = tail_;
        for (size_t i = 0; i < count; ++i) {
            while (tail_ - done_ == entries_.size()) {
                if (!broken_.empty()) throw StorageError(broken_);
                start();
                step(1);
            }
            if (tail_ == done_) busy_since_ = now_ns();
            entries_[tail_++ % entries_.size()] = {reads[i], false};
        }
        start();
        return first;
    }

    void wait(uint64_t end) override {
        while (done_ < end) {
            if (!broken_.empty()) throw StorageError(broken_);
            // One wake-up for several reads while many are still to come.
            const uint64_t left = std::min<uint64_t>(end - done_, flying_);
            step(static_cast<uint32_t>(std::clamp<uint64_t>(left / 4, 1, kWakeAt)));
        }
        if (!failure_.empty()) {
            const std::string why = failure_;
            drain();
            throw StorageError(why);
        }
    }

    void poll() override {
        if (done_ != tail_) step(0);
    }

    void drain() noexcept override {
        while (done_ < tail_ && broken_.empty()) step(1);
        failure_.clear();
    }

    ReadTotals totals() const override {
        ReadTotals t = totals_;
        if (done_ != tail_) t.busy_ns += now_ns() - busy_since_;
        return t;
    }

    const char * name() const override { return "io_uring"; }

private:
    static constexpr uint64_t kWakeAt = 16;

    struct Entry {
        Read read;
        bool done;
    };

    // Put queued reads into the submission ring while fewer than depth are in flight.
    uint32_t fill() {
        uint32_t added = 0;
        uint32_t tail = *sq_tail_;
        while (next_ < tail_ && flying_ < depth_) {
            const Read & read = entries_[next_ % entries_.size()].read;
            io_uring_sqe & sqe = sqes_[tail & sq_mask_];
            std::memset(&sqe, 0, sizeof sqe);
            sqe.opcode = IORING_OP_READV;
            sqe.fd = file_.fd();
            sqe.off = read.offset;
            sqe.addr = reinterpret_cast<uint64_t>(read.iov);
            sqe.len = read.iov_count;
            sqe.user_data = next_;
            sq_array_[tail & sq_mask_] = tail & sq_mask_;
            ++tail;
            ++next_;
            ++flying_;
            ++added;
        }
        release(sq_tail_, tail);
        return added;
    }

    void start() {
        unsubmitted_ += fill();
        if (unsubmitted_ != 0) enter(0);
    }

    // Completed reads of which the kernel has not told yet: it does not interrupt computing for them.
    bool work_waits() const { return (acquire(sq_flags_) & kTaskWork) != 0; }

    void enter(uint32_t wait_for) {
        const bool collect = wait_for != 0 || work_waits();
        const long n = syscall(__NR_io_uring_enter, fd_, unsubmitted_, wait_for,
                               collect ? IORING_ENTER_GETEVENTS : 0u, nullptr, size_t{0});
        if (n >= 0) unsubmitted_ -= static_cast<uint32_t>(n);
        // EINTR, EAGAIN and EBUSY pass: the loop in wait() and drain() comes again. Anything else
        // will not: give up on what is queued instead of asking for ever.
        if (n < 0 && errno != EINTR && errno != EAGAIN && errno != EBUSY) {
            broken_ = file_.path() + ": io_uring failed: " + std::strerror(errno) + "; load the model again";
        }
    }

    void step(uint32_t wait_for) {
        uint32_t head = *cq_head_;
        uint32_t tail = acquire(cq_tail_);
        if (head == tail && (wait_for != 0 || unsubmitted_ != 0 || work_waits())) {
            enter(wait_for);
            tail = acquire(cq_tail_);
        }
        for (; head != tail; ++head) {
            const io_uring_cqe & cqe = cqes_[head & cq_mask_];
            complete(cqe.user_data, cqe.res);
        }
        release(cq_head_, head);
        while (done_ < next_ && entries_[done_ % entries_.size()].done) ++done_;
        if (done_ == tail_ && busy_since_ != 0) {
            totals_.busy_ns += now_ns() - busy_since_;
            busy_since_ = 0;
        } else {
            start();
        }
    }

    void complete(uint64_t ticket, int result) {
        Entry & entry = entries_[ticket % entries_.size()];
        entry.done = true;
        --flying_;
        totals_.bytes += entry.read.bytes;
        totals_.reads += 1;
        if (result == static_cast<int>(entry.read.bytes)) {
            file_.drop_cache(entry.read.offset, entry.read.bytes);
            return;
        }
        try {
            finish_partial_read(file_, entry.read, result < 0 ? 0 : static_cast<size_t>(result), result < 0 ? -result : 0);
        } catch (const std::exception & e) {
            if (failure_.empty()) failure_ = e.what();
        }
    }

    const DirectFile & file_;
    const uint32_t depth_;
    const int fd_;
    std::vector<Entry> entries_;
    void * rings_ = nullptr;
    size_t sq_bytes_ = 0, sqe_bytes_ = 0;
    io_uring_sqe * sqes_ = nullptr;
    uint32_t *sq_tail_ = nullptr, *sq_flags_ = nullptr, *sq_array_ = nullptr, *cq_head_ = nullptr, *cq_tail_ = nullptr;
    uint32_t sq_mask_ = 0, cq_mask_ = 0;
    io_uring_cqe * cqes_ = nullptr;
    uint64_t next_ = 0, tail_ = 0, done_ = 0;  // in the kernel below next_, all done below done_
    uint32_t flying_ = 0, unsubmitted_ = 0;
    std::string failure_;
    std::string broken_;  // the ring itself failed: reads may still be under way, nothing more is accepted
    ReadTotals totals_;
    uint64_t busy_since_ = 0;
};

}  // namespace

std::unique_ptr<ReadQueue> make_read_queue_uring(const DirectFile & file, int depth, size_t outstanding) {
    io_uring_params params{};
    params.flags = IORING_SETUP_CLAMP | kQuiet;
    long fd = syscall(__NR_io_uring_setup, depth, &params);
    if (fd < 0 && errno == EINVAL) {  // before Linux 5.19
        params = {};
        params.flags = IORING_SETUP_CLAMP;
        fd = syscall(__NR_io_uring_setup, depth, &params);
    }
    if (fd < 0) return nullptr;  // an old kernel, or forbidden (containers, io_uring_disabled)
    if ((params.features & IORING_FEAT_SINGLE_MMAP) == 0) {
        close(static_cast<int>(fd));
        return nullptr;
    }
    return std::make_unique<ReadQueueUring>(file, std::min<int>(depth, static_cast<int>(params.sq_entries)),
                                            outstanding, static_cast<int>(fd), params);
}

}  // namespace penstock
#else
namespace penstock {
std::unique_ptr<ReadQueue> make_read_queue_uring(const DirectFile &, int, size_t) { return nullptr; }
}  // namespace penstock
#endif
