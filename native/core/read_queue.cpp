#include "read_queue.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "error.h"

namespace penstock {

uint64_t now_ns() {
    return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                     std::chrono::steady_clock::now().time_since_epoch())
                                     .count());
}

void finish_partial_read(const DirectFile & file, const Read & read, size_t done, int error) {
    const auto fail = [&](const std::string & why) {
        throw StorageError(file.path() + ": read of " + std::to_string(read.bytes) + " bytes at offset " +
                           std::to_string(read.offset) + " failed: " + why);
    };
    // ECANCELED: the thread that submitted the read has ended, and the kernel's worker with it.
    if (error != 0 && error != EINTR && error != EAGAIN && error != ECANCELED) fail(std::strerror(error));
    size_t skip = done;
    uint64_t offset = read.offset + done;
    for (uint32_t i = 0; i < read.iov_count; ++i) {
        size_t length = read.iov[i].iov_len;
        auto * base = static_cast<uint8_t *>(read.iov[i].iov_base);
        const size_t step = std::min(skip, length);
        skip -= step;
        base += step;
        length -= step;
        while (length != 0) {
            const ssize_t got = pread(file.fd(), base, length, static_cast<off_t>(offset));
            if (got < 0 && errno == EINTR) continue;
            if (got < 0) fail(std::strerror(errno));
            if (got == 0) {
                fail("short read, the file ends at offset " + std::to_string(offset) +
                     "; it was cut while it was in use");
            }
            base += got;
            length -= static_cast<size_t>(got);
            offset += static_cast<uint64_t>(got);
        }
    }
}

std::unique_ptr<ReadQueue> make_read_queue(const DirectFile & file, const std::string & backend, int depth, size_t outstanding) {
    outstanding = std::max<size_t>(outstanding, 16);
    if (depth < 1 || depth > 1024) throw ArgumentError("read depth must be 1 to 1024, not " + std::to_string(depth));
    if (backend == "threads") return make_read_queue_threads(file, depth, outstanding);
    if (backend != "io_uring" && backend != "auto") {
        throw ArgumentError("read back end must be auto, io_uring or threads, not " + backend);
    }
    auto queue = make_read_queue_uring(file, depth, outstanding);
    if (queue) return queue;
    if (backend == "io_uring") throw StorageError("io_uring is not available here; use the threads back end");
    return make_read_queue_threads(file, std::min(depth, 32), outstanding);
}

}  // namespace penstock
