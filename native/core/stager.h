// Double-buffered sequential streaming of ranges of the file, in an order that is known ahead:
// while one buffer is computed on, the next chunk is read into the other, across ranges too, so
// the next layer's first rows arrive while this layer's attention runs.
#pragma once

#include <cstdint>
#include <vector>

#include "aligned_buffer.h"
#include "read_queue.h"

namespace penstock {

class Stager {
public:
    struct Range {
        uint64_t offset;   // of the first unit in the file
        size_t unit;       // bytes of a unit: a neuron's bundle, or a row of a matrix
        size_t count;      // units
    };
    struct Chunk {
        const uint8_t * data;
        size_t first;  // index of its first unit within the range
        size_t count;
        bool last;     // the range ends with it
    };

    // buffer_bytes: of each of the two buffers. overlap false reads only when asked (for ablations).
    Stager(const DirectFile & file, ReadQueue & queue, size_t buffer_bytes, bool overlap);
    // Start over a schedule; the vector must outlive the pass.
    void begin(const std::vector<Range> & schedule);
    // The next chunk in order; valid until the next call. Adds the time it blocked to *wait_ns.
    Chunk next(uint64_t * wait_ns);
    // Wait for what is in flight and forget the pass. Needed after an error and at the end.
    void abort() noexcept;
    size_t bytes() const { return buffers_[0].bytes() + buffers_[1].bytes(); }
    static constexpr size_t kPiece = size_t{512} << 10;  // one read of a chunk

private:
    struct Pending {
        Chunk chunk;
        uint64_t ticket_end;
    };
    bool more() const { return schedule_ != nullptr && range_ < schedule_->size(); }
    Pending start(int buffer);

    const DirectFile & file_;
    ReadQueue & queue_;
    AlignedBuffer buffers_[2];
    std::vector<iovec> iovs_[2];
    std::vector<Read> reads_;
    const bool overlap_;
    const std::vector<Range> * schedule_ = nullptr;
    size_t range_ = 0, unit_ = 0;  // what start() reads next
    int turn_ = 0;
    bool pending_valid_ = false;
    Pending pending_{};
};

}  // namespace penstock
