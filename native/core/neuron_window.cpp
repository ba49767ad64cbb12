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
    heat_.assign(n, 0.0f);
    heats_.reserve(c);
    hits_.reserve(c);
    misses_.reserve(c);
    moves_.reserve(c);
    overflow_.reserve(n);
}

size_t NeuronWindow::table_bytes(int32_t neurons, int32_t capacity) {
    const auto n = static_cast<size_t>(neurons), c = static_cast<size_t>(capacity);
    return n * 12 + c * (4 + 8 + 4 + 4 + 8 + 8 + 8);
}

// A token's worth of ageing. Heat is compared, never read, so instead of all heat fading, what is
// added grows; before float runs out everything is scaled back.
void NeuronWindow::cool() {
    constexpr float kMost = 1e15f;
    heat_now_ /= kKeep;
    if (heat_now_ < kMost) return;
    for (float & heat : heat_) heat /= heat_now_;
    heat_now_ = 1.0f;
}

// Slots to empty: those that left the token window, then, if `needed` slots are still not free,
// the coldest. Neurons active now are never victims.
void NeuronWindow::choose_victims(size_t needed) {
    victims_.clear();
    const int64_t limit = window_tokens_ > 0 ? now_ - window_tokens_ : -1;  // last_ <= limit leaves
    const auto live = static_cast<size_t>(live_);
    heats_.clear();  // of those that may leave but need not
    size_t leaving = 0;
    for (size_t s = 0; s < live; ++s) {
        if (last_[s] <= limit) ++leaving;
        else if (last_[s] < now_) heats_.push_back(heat_[static_cast<size_t>(neuron_of_[s])]);
    }
    const size_t free_after = static_cast<size_t>(capacity_) - live + leaving;
    const size_t more = needed > free_after ? std::min(needed - free_after, heats_.size()) : 0;
    if (leaving + more == 0) return;
    float cut = -1.0f;
    size_t ties = 0;  // how many of those exactly at the cut leave
    if (more != 0) {
        std::nth_element(heats_.begin(), heats_.begin() + static_cast<std::ptrdiff_t>(more - 1), heats_.end());
        cut = heats_[more - 1];
        size_t colder = 0;
        for (size_t i = 0; i < more; ++i) colder += heats_[i] < cut;
        ties = more - colder;
    }
    for (size_t s = 0; s < live; ++s) {
        if (last_[s] >= now_) continue;
        bool leaves = last_[s] <= limit;
        if (!leaves) {
            const float heat = heat_[static_cast<size_t>(neuron_of_[s])];
            leaves = heat < cut;
            if (heat == cut && ties != 0) {
                leaves = true;
                --ties;
            }
        }
        if (leaves) victims_.push_back(static_cast<int32_t>(s));
    }
}

void NeuronWindow::update(const int32_t * active, size_t count) {
    ++now_;
    cool();
    hits_.clear();
    misses_.clear();
    moves_.clear();
    overflow_.clear();
    for (size_t i = 0; i < count; ++i) {
        const int32_t neuron = active[i];
        if (neuron < 0 || neuron >= neurons_ || (i != 0 && neuron <= active[i - 1])) {
            throw ArgumentError("NeuronWindow: active neurons must be ascending and below " + std::to_string(neurons_));
        }
        heat_[static_cast<size_t>(neuron)] += heat_now_;
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

int32_t NeuronWindow::admit(int32_t neuron, bool * already_there, float uses) {
    if (neuron < 0 || neuron >= neurons_) throw ArgumentError("NeuronWindow: no such neuron");
    heat_[static_cast<size_t>(neuron)] += uses * heat_now_;
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
