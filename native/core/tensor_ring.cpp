#include "tensor_ring.h"

#include <algorithm>
#include <string>

#include "address_space.h"
#include "aligned_buffer.h"
#include "error.h"

namespace penstock {

TensorRing::TensorRing(std::vector<Unit> units, size_t ring_bytes, std::vector<ReadQueue *> queues, RingMemory memory)
    : units_(std::move(units)), slots_(units_.size()), queues_(std::move(queues)),
      ring_bytes_(round_up(ring_bytes, kPage)), memory_(memory), turn_of_(units_.size(), -1) {
    for (const Unit & unit : units_) {
        if (unit.bytes == 0 || unit.bytes % kPage != 0 || unit.offset % kPage != 0 ||
            reinterpret_cast<uintptr_t>(unit.at) % kPage != 0 || unit.file < 0 ||
            static_cast<size_t>(unit.file) >= queues_.size()) {
            throw ArgumentError("TensorRing: a unit must be whole pages of a known file");
        }
        if (unit.bytes > ring_bytes_) {
            throw ArgumentError("TensorRing: a unit of " + std::to_string(unit.bytes) + " bytes does not fit the ring of " +
                                std::to_string(ring_bytes_));
        }
    }
    if (units_.empty()) return;
    if (memory_ == RingMemory::aliases) {
        shared_ = address_space::make_shared(ring_bytes_);
        ring_ = address_space::map_shared_huge(ring_bytes_, shared_);
    }
    // Until a unit has its place: after a failed read the graph runs out over all of them, and pages of a file
    // that was cut short must not be touched.
    for (const Unit & unit : units_) address_space::map_anonymous(unit.at, unit.bytes, memory_ == RingMemory::huge);
}

TensorRing::~TensorRing() {
    reset();
    if (ring_ != nullptr) address_space::unmap(ring_, ring_bytes_);
    if (shared_ >= 0) address_space::close_shared(shared_);
}

bool TensorRing::overlaps(int a, int b) const {
    const size_t from_a = slots_[static_cast<size_t>(a)].place, to_a = from_a + units_[static_cast<size_t>(a)].bytes;
    const size_t from_b = slots_[static_cast<size_t>(b)].place, to_b = from_b + units_[static_cast<size_t>(b)].bytes;
    return from_a < to_b && from_b < to_a;
}

// Whether a unit's place still holds something that is used or was read for later.
bool TensorRing::blocked(int unit) const {
    const auto hit = [&](int other) { return other != unit && overlaps(unit, other); };
    return std::any_of(in_use_.begin(), in_use_.end(), hit) || std::any_of(ahead_.begin(), ahead_.end(), hit);
}

// Its place for good: after the unit that was used before it, or at the ring's start.
void TensorRing::place(int unit) {
    Slot & slot = slots_[static_cast<size_t>(unit)];
    const Unit & u = units_[static_cast<size_t>(unit)];
    if (cursor_ + u.bytes > ring_bytes_) cursor_ = 0;
    slot.place = cursor_;
    slot.placed = true;
    cursor_ += u.bytes;
    uint8_t * to = memory_ == RingMemory::aliases ? ring_ + slot.place : u.at;
    for (size_t at = 0; at < u.bytes; at += kReadBytes) slot.iov.push_back({to + at, std::min(kReadBytes, u.bytes - at)});
    if (memory_ == RingMemory::aliases) address_space::map_shared(u.at, u.bytes, shared_, slot.place);
}

// Its place is free for others.
void TensorRing::leave(int unit) noexcept {
    const Unit & u = units_[static_cast<size_t>(unit)];
    slots_[static_cast<size_t>(unit)].state = State::absent;
    if (memory_ != RingMemory::aliases) address_space::discard(u.at, u.bytes);
}

void TensorRing::read(int unit) {
    Slot & slot = slots_[static_cast<size_t>(unit)];
    const Unit & u = units_[static_cast<size_t>(unit)];
    reads_.clear();
    uint64_t at = u.offset;
    for (const iovec & part : slot.iov) {
        reads_.push_back({at, &part, 1, static_cast<uint32_t>(part.iov_len)});
        at += part.iov_len;
    }
    slot.state = State::reading;
    slot.end = queues_[static_cast<size_t>(u.file)]->submit(reads_.data(), reads_.size()) + reads_.size();
}

void TensorRing::need(int unit) {
    Slot & slot = slots_[static_cast<size_t>(unit)];
    if (slot.state == State::needed) return;
    const bool known = learned_;  // the unit that ends the first pass could not be read ahead
    if (!learned_ && turn_of_[static_cast<size_t>(unit)] >= 0) {
        // The first unit again: the pass is over and the order is known. Others may come twice.
        if (unit == order_.front()) learned_ = true;
    }
    if (!learned_ && turn_of_[static_cast<size_t>(unit)] < 0) {
        turn_of_[static_cast<size_t>(unit)] = static_cast<int>(order_.size());
        order_.push_back(unit);
    }
    if (!slot.placed) place(unit);
    if (slot.state == State::absent) {
        if (blocked(unit)) drop_read_ahead();
        if (blocked(unit)) throw StorageError("the ring is too small for the tensors of one graph node");
        read(unit);
        if (known) ++on_demand_;
    } else {
        ahead_.erase(std::find(ahead_.begin(), ahead_.end(), unit));
    }
    queues_[static_cast<size_t>(units_[static_cast<size_t>(unit)].file)]->wait(slot.end);
    slot.state = State::needed;
    in_use_.push_back(unit);
    if (!learned_ || turn_of_[static_cast<size_t>(unit)] < 0) return;
    due_ = (static_cast<size_t>(turn_of_[static_cast<size_t>(unit)]) + 1) % order_.size();
    if (ahead_.empty()) next_ = due_;
    read_ahead();
}

void TensorRing::consumed() {
    if (in_use_.empty()) return;
    for (int unit : in_use_) leave(unit);
    in_use_.clear();
    if (learned_) read_ahead();
}

// In the order of use, as far as places are free.
void TensorRing::read_ahead() {
    for (size_t tried = 0; tried < order_.size(); ++tried) {
        const int unit = order_[next_];
        if (slots_[static_cast<size_t>(unit)].state != State::absent || blocked(unit)) break;
        read(unit);
        ahead_.push_back(unit);
        next_ = (next_ + 1) % order_.size();
    }
}

// The graph left the learned order: what was read for later makes room.
// Waited for, not drained: the queue has reads of experts too, whose failures must not be forgotten.
void TensorRing::drop_read_ahead() {
    if (ahead_.empty()) return;
    for (int unit : ahead_) queues_[static_cast<size_t>(units_[static_cast<size_t>(unit)].file)]->wait(slots_[static_cast<size_t>(unit)].end);
    for (int unit : ahead_) leave(unit);
    ahead_.clear();
}

void TensorRing::reset() noexcept {
    for (ReadQueue * queue : queues_) queue->drain();
    for (size_t unit = 0; unit < slots_.size(); ++unit) {
        if (slots_[unit].state != State::absent) leave(static_cast<int>(unit));
    }
    ahead_.clear();
    in_use_.clear();
    next_ = due_;
    if (learned_) return;
    order_.clear();  // a pass that broke off does not tell the order
    std::fill(turn_of_.begin(), turn_of_.end(), -1);
}

}  // namespace penstock
