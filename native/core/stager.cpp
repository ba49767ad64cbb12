#include "stager.h"

#include <algorithm>

#include "error.h"

namespace penstock {

Stager::Stager(const DirectFile & file, ReadQueue & queue, size_t buffer_bytes, bool overlap)
    : file_(file), queue_(queue), overlap_(overlap) {
    for (int i = 0; i < 2; ++i) {
        buffers_[i] = AlignedBuffer(buffer_bytes);
        iovs_[i].resize(buffer_bytes / kPiece + 2);
    }
    reads_.reserve(buffer_bytes / kPiece + 2);
}

void Stager::begin(const std::vector<Range> & schedule) {
    abort();
    schedule_ = &schedule;
    range_ = unit_ = 0;
    while (more() && (*schedule_)[range_].count == 0) ++range_;
    if (overlap_ && more()) {
        pending_ = start(turn_);
        pending_valid_ = true;
    }
}

Stager::Pending Stager::start(int buffer) {
    const Range & range = (*schedule_)[range_];
    const size_t edge = file_.direct() ? kPage : 1;
    const size_t room = buffers_[buffer].bytes() - 2 * kPage;
    if (range.unit == 0 || range.unit > room) throw ArgumentError("a streamed row does not fit the staging buffer");
    const size_t count = std::min(range.count - unit_, room / range.unit);
    const uint64_t from = range.offset + unit_ * range.unit;
    const uint64_t begin = from / edge * edge;
    const uint64_t end = std::min<uint64_t>(round_up(from + count * range.unit, edge), round_up(file_.size(), edge));
    // The file's last block may be partial: ask only for what is there, in whole sectors.
    const uint64_t readable = std::min<uint64_t>(end, file_.direct() ? round_up(file_.size(), file_.alignment()) : file_.size());
    reads_.clear();
    size_t used = 0;
    for (uint64_t at = begin; at < readable; at += kPiece) {
        const size_t length = std::min<uint64_t>(kPiece, readable - at);
        iovs_[buffer][used] = {buffers_[buffer].data() + (at - begin), length};
        reads_.push_back({at, &iovs_[buffer][used], 1, static_cast<uint32_t>(length)});
        ++used;
    }
    // A final read that reaches past the end of the file comes back short by design.
    if (!reads_.empty() && reads_.back().offset + reads_.back().bytes > file_.size()) {
        reads_.back().bytes = static_cast<uint32_t>(file_.size() - reads_.back().offset);
    }
    const uint64_t first = queue_.submit(reads_.data(), reads_.size());
    Pending pending{{buffers_[buffer].data() + (from - begin), unit_, count, unit_ + count == range.count},
                    first + reads_.size()};
    unit_ += count;
    if (unit_ == range.count) {
        unit_ = 0;
        do ++range_;
        while (more() && (*schedule_)[range_].count == 0);
    }
    return pending;
}

Stager::Chunk Stager::next(uint64_t * wait_ns) {
    if (!pending_valid_) {
        if (!more()) throw ArgumentError("the streaming schedule is at its end");
        pending_ = start(turn_);
    }
    const uint64_t before = now_ns();
    pending_valid_ = false;
    queue_.wait(pending_.ticket_end);
    *wait_ns += now_ns() - before;
    const Chunk chunk = pending_.chunk;
    turn_ ^= 1;
    if (overlap_ && more()) {
        pending_ = start(turn_);
        pending_valid_ = true;
    }
    return chunk;
}

void Stager::abort() noexcept {
    if (pending_valid_) queue_.drain();
    pending_valid_ = false;
    schedule_ = nullptr;
}

}  // namespace penstock
