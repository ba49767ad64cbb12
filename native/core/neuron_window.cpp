#include "neuron_window.h"

#include <algorithm>
#include <string>

#include "error.h"

namespace penstock {

NeuronWindow::NeuronWindow(int32_t neurons, int32_t capacity, int32_t window_tokens)
    : neurons_(neurons), capacity_(capacity), window_tokens_(window_tokens) {
    if (neurons < 1 || capacity < 0 || capacity > neurons || window_tokens < 0) {
        throw ArgumentError("NeuronWindow: need neurons >= 1, 0 <= capacity <= neurons, window_tokens >= 0");
    }
    const auto n = static_cast<size_t>(neurons), c = static_cast<size_t>(capacity);
    slot_of_.assign(n, -1);
    neuron_of_.assign(c, -1);
    last_.assign(c, 0);
    victims_.reserve(c);
    ages_.reserve(c);
    hits_.reserve(c);
    misses_.reserve(c);
    moves_.reserve(c);
    overflow_.reserve(n);
}

size_t NeuronWindow::table_bytes(int32_t neurons, int32_t capacity) {
    const auto n = static_cast<size_t>(neurons), c = static_cast<size_t>(capacity);
    return n * 8 + c * (4 + 8 + 4 + 8 + 8 + 8 + 8);
}

// Slots to empty: those that left the token window, then, if `needed` slots are still not free,
// the least recently active. Neurons active now are never victims.
void NeuronWindow::choose_victims(size_t needed) {
    victims_.clear();
    int64_t limit = -1;  // last_ <= limit leaves; seeds of before the first token have last_ 0
    if (window_tokens_ > 0) limit = now_ - window_tokens_;
    size_t leaving = 0, evictable = 0;
    const auto live = static_cast<size_t>(live_);
    for (size_t s = 0; s < live; ++s) {
        leaving += last_[s] <= limit;
        evictable += last_[s] < now_;
    }
    const size_t free_after = static_cast<size_t>(capacity_) - live + leaving;
    size_t ties = 0;  // how many of those exactly at the cut-off may leave
    if (needed > free_after && evictable > leaving) {
        const size_t want = std::min(leaving + (needed - free_after), evictable);
        ages_.clear();
        for (size_t s = 0; s < live; ++s) {
            if (last_[s] < now_) ages_.push_back(last_[s]);
        }
        std::nth_element(ages_.begin(), ages_.begin() + static_cast<std::ptrdiff_t>(want - 1), ages_.end());
        const int64_t cut = ages_[want - 1];
        size_t older = 0;
        for (size_t s = 0; s < live; ++s) older += last_[s] < cut;
        limit = cut - 1;
        ties = want - older;
        for (size_t s = 0; s < live; ++s) {
            if (last_[s] <= limit) {
                victims_.push_back(static_cast<int32_t>(s));
            } else if (last_[s] == cut && ties != 0) {
                victims_.push_back(static_cast<int32_t>(s));
                --ties;
            }
        }
        return;
    }
    if (leaving == 0) return;
    for (size_t s = 0; s < live; ++s) {
        if (last_[s] <= limit) victims_.push_back(static_cast<int32_t>(s));
    }
}

void NeuronWindow::update(const int32_t * active, size_t count) {
    ++now_;
    hits_.clear();
    misses_.clear();
    moves_.clear();
    overflow_.clear();
    for (size_t i = 0; i < count; ++i) {
        const int32_t neuron = active[i];
        if (neuron < 0 || neuron >= neurons_ || (i != 0 && neuron <= active[i - 1])) {
            throw ArgumentError("NeuronWindow: active neurons must be ascending and below " + std::to_string(neurons_));
        }
        const int32_t slot = slot_of_[static_cast<size_t>(neuron)];
        if (slot >= 0) {
            last_[static_cast<size_t>(slot)] = now_;
            hits_.push_back({neuron, slot});
        } else {
            overflow_.push_back(neuron);  // for now: every miss
        }
    }
    choose_victims(overflow_.size());

    // Incoming neurons take the freed slots in place, which saves the copy of a swap-delete.
    const size_t room = victims_.size() + static_cast<size_t>(capacity_ - live_);
    const size_t placed = std::min(room, overflow_.size());
    size_t used_victims = 0;
    for (int32_t slot : victims_) slot_of_[static_cast<size_t>(neuron_of_[static_cast<size_t>(slot)])] = -1;
    for (size_t i = 0; i < placed; ++i) {
        const int32_t slot = used_victims < victims_.size() ? victims_[used_victims++] : live_++;
        neuron_of_[static_cast<size_t>(slot)] = overflow_[i];
        slot_of_[static_cast<size_t>(overflow_[i])] = slot;
        last_[static_cast<size_t>(slot)] = now_;
        misses_.push_back({overflow_[i], slot});
    }
    overflow_.erase(overflow_.begin(), overflow_.begin() + static_cast<std::ptrdiff_t>(placed));

    // The other victims: the last live slot moves into the hole. From the highest hole down, so
    // that the slot that moves is never itself a victim.
    bool moved = false;
    for (size_t v = victims_.size(); v > used_victims; --v) {
        const int32_t hole = victims_[v - 1];
        const int32_t last = --live_;
        if (hole == last) continue;
        const int32_t neuron = neuron_of_[static_cast<size_t>(last)];
        moves_.push_back({last, hole});
        neuron_of_[static_cast<size_t>(hole)] = neuron;
        last_[static_cast<size_t>(hole)] = last_[static_cast<size_t>(last)];
        slot_of_[static_cast<size_t>(neuron)] = hole;
        moved = true;
    }
    if (moved) {
        for (Placed & hit : hits_) hit.slot = slot_of_[static_cast<size_t>(hit.neuron)];
        for (Placed & miss : misses_) miss.slot = slot_of_[static_cast<size_t>(miss.neuron)];
    }
}

int32_t NeuronWindow::admit(int32_t neuron, bool * already_there) {
    if (neuron < 0 || neuron >= neurons_) throw ArgumentError("NeuronWindow: no such neuron");
    int32_t slot = slot_of_[static_cast<size_t>(neuron)];
    *already_there = slot >= 0;
    if (slot < 0) {
        if (live_ == capacity_) return -1;
        slot = live_++;
        neuron_of_[static_cast<size_t>(slot)] = neuron;
        slot_of_[static_cast<size_t>(neuron)] = slot;
    }
    last_[static_cast<size_t>(slot)] = now_;
    return slot;
}

void NeuronWindow::clear() {
    for (int32_t s = 0; s < live_; ++s) slot_of_[static_cast<size_t>(neuron_of_[static_cast<size_t>(s)])] = -1;
    live_ = 0;
}

}  // namespace penstock
