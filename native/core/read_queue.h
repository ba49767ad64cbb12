// Parallel direct reads: many requests in flight, completed in any order, awaited by ticket.
//
// One thread submits and waits. Two back ends: io_uring (no threads, least processor time a read)
// and a pool of threads with preadv (any POSIX system; one thread suits a phone's UFS). The probe
// measures both and the faster is used.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "direct_file.h"

namespace penstock {

// Of one request for weights: large enough for the full rate, small enough to spread.
constexpr size_t kReadBytes = size_t{2} << 20;

struct Read {
    uint64_t offset;      // in the file
    const iovec * iov;    // where the bytes go, in order; must stay valid until the read is done
    uint32_t iov_count;
    uint32_t bytes;       // sum of the iov lengths
};

struct ReadTotals {
    uint64_t bytes = 0;
    uint64_t reads = 0;
    uint64_t busy_ns = 0;  // wall time with at least one read in flight
};

class ReadQueue {
public:
    virtual ~ReadQueue() = default;
    // Start the reads, or queue them when `depth` are in flight; waits for room when more are open than the
    // queue was made for. Returns the ticket of the first; the others follow in order.
    virtual uint64_t submit(const Read * reads, size_t count) = 0;
    // Block until every ticket below `end` is done. Throws StorageError if one of them failed.
    virtual void wait(uint64_t end) = 0;
    // Let all reads in flight finish, whatever their outcome, and forget failures.
    virtual void drain() noexcept = 0;
    // Collect what has completed and start what was queued, without blocking.
    virtual void poll() {}
    virtual ReadTotals totals() const = 0;
    virtual const char * name() const = 0;
};

// backend: "io_uring", "threads" or "auto" (io_uring where the kernel allows it).
// depth: reads in flight (1 to 1024). Throws StorageError when the back end cannot be had.
// outstanding: tickets that may be open at once, queued ones included.
std::unique_ptr<ReadQueue> make_read_queue(const DirectFile & file, const std::string & backend, int depth, size_t outstanding);
std::unique_ptr<ReadQueue> make_read_queue_threads(const DirectFile & file, int depth, size_t outstanding);
// nullptr where the kernel has no io_uring or forbids it.
std::unique_ptr<ReadQueue> make_read_queue_uring(const DirectFile & file, int depth, size_t outstanding);

// Carry a read that stopped after `done` bytes to its end, or say why it cannot be: a back end's
// slow path for partial reads. Throws StorageError.
void finish_partial_read(const DirectFile & file, const Read & read, size_t done, int error);

uint64_t now_ns();

}  // namespace penstock
