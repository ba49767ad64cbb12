#include "expert_window.h"

#include <algorithm>

#include "aligned_buffer.h"
#include "error.h"

namespace penstock {
namespace {

size_t pieces(size_t bytes) { return bytes / kReadBytes + 2; }

}  // namespace

ExpertWindow::ExpertWindow(int layers, int experts, std::vector<Tensor> tensors, size_t bytes, const std::string & policy,
                           std::vector<ReadQueue *> queues)
    : layers_(layers), experts_(experts), tensors_(std::move(tensors)), queues_(std::move(queues)),
      exchange_(tensors_.size() * static_cast<size_t>(std::max(experts, 0)), bytes), bytes_(bytes) {
    if (layers < 1 || experts < 1 || layers > (1 << 16) || experts > (1 << 14)) throw ArgumentError("ExpertWindow: layers or experts out of range");
    tensors_of_.resize(static_cast<size_t>(layers));
    bytes_of_.resize(static_cast<size_t>(layers), 0);
    size_t places = 0;
    for (size_t i = 0; i < tensors_.size(); ++i) {
        const Tensor & t = tensors_[i];
        if (t.layer < 0 || t.layer >= layers || t.stride == 0 || t.file < 0 || static_cast<size_t>(t.file) >= queues_.size() ||
            reinterpret_cast<uintptr_t>(t.at) % kPage != t.offset % kPage) {
            throw ArgumentError("ExpertWindow: a tensor's layer, file or address does not fit");
        }
        tensors_of_[static_cast<size_t>(t.layer)].push_back(static_cast<int>(i));
        bytes_of_[static_cast<size_t>(t.layer)] += t.stride;  // at most; shared pages are not counted twice elsewhere
        iov_of_.push_back(places);
        places += static_cast<size_t>(experts) * pieces(t.stride);
    }
    const size_t n = static_cast<size_t>(layers) * static_cast<size_t>(experts);
    policy_ = make_expert_policy(policy, static_cast<int32_t>(n));
    held_.assign(n, 0);
    live_.reserve(n);
    ranked_.reserve(n);
    end_.assign(tensors_.size(), 0);
    needed_.assign(static_cast<size_t>(experts), 0);
    iov_.resize(places);
}

ExpertWindow::Pages ExpertWindow::pages(int tensor, int expert) const {
    const Tensor & t = tensors_[static_cast<size_t>(tensor)];
    const uint64_t begin = t.offset + static_cast<uint64_t>(expert) * t.stride;
    const uint64_t from = round_up(begin, kPage), to = round_down(begin + t.stride, kPage);
    if (to <= from) return {t.at, from, 0};
    return {t.at + (from - t.offset), from, static_cast<size_t>(to - from)};
}

size_t ExpertWindow::layer_bytes(int layer) const { return expert_bytes(layer) * static_cast<size_t>(experts_); }

void ExpertWindow::drop(int32_t expert) noexcept {
    const int layer = expert / experts_;
    for (int tensor : tensors_of_[static_cast<size_t>(layer)]) {
        const Pages p = pages(tensor, expert % experts_);
        exchange_.give(p.at, p.bytes);
    }
    held_[static_cast<size_t>(expert)] = 0;
    held_bytes_ -= expert_bytes(layer);
    ++stats_.evicted;
}

// Room for `needed` bytes more: what is worth least leaves. Experts chosen now (of `layer`) stay, and so does
// every expert of `keep_layer`, of which reads may be under way. In a batch every layer is used in turn, so
// what is used again last leaves first: the layers just behind. False when there is not enough to drop.
bool ExpertWindow::make_room(size_t needed, int layer, int keep_layer, bool batch) {
    if (held_bytes_ + needed <= bytes_) return true;
    ranked_.clear();
    size_t evictable = 0;
    for (int32_t e : live_) {
        const int at = e / experts_;
        if (at == keep_layer || at == ahead_ || (at == layer && needed_[static_cast<size_t>(e % experts_)])) continue;
        ranked_.push_back({batch ? (at - layer + layers_ - 1) % layers_ : 0, policy_->worth(e), e});
        evictable += expert_bytes(at);
    }
    if (held_bytes_ + needed > bytes_ + evictable) return false;
    std::sort(ranked_.begin(), ranked_.end(), [](const Ranked & a, const Ranked & b) {
        if (a.turns != b.turns) return a.turns > b.turns;
        return a.worth != b.worth ? a.worth < b.worth : a.expert < b.expert;
    });
    for (const Ranked & r : ranked_) {
        if (held_bytes_ + needed <= bytes_) break;
        drop(r.expert);
    }
    live_.erase(std::remove_if(live_.begin(), live_.end(), [&](int32_t e) { return !held_[static_cast<size_t>(e)]; }), live_.end());
    return true;
}

// Tensor by tensor, so that the first product can start while the others are still being read.
void ExpertWindow::read(int layer, const std::vector<int32_t> & experts) {
    for (int tensor : tensors_of_[static_cast<size_t>(layer)]) {
        const Tensor & t = tensors_[static_cast<size_t>(tensor)];
        reads_.clear();
        for (int32_t e : experts) {
            const Pages p = pages(tensor, e);
            exchange_.take(p.at, p.bytes);
            size_t place = iov_of_[static_cast<size_t>(tensor)] + static_cast<size_t>(e) * pieces(t.stride);
            for (size_t at = 0; at < p.bytes; at += kReadBytes) {
                iovec & part = iov_[place++];
                part = {p.at + at, std::min(kReadBytes, p.bytes - at)};
                reads_.push_back({p.offset + at, &part, 1, static_cast<uint32_t>(part.iov_len)});
            }
        }
        if (reads_.empty()) continue;
        end_[static_cast<size_t>(tensor)] = queues_[static_cast<size_t>(t.file)]->submit(reads_.data(), reads_.size()) + reads_.size();
    }
    for (int32_t e : experts) {
        held_[static_cast<size_t>(id(layer, e))] = 1;
        live_.push_back(id(layer, e));
        held_bytes_ += expert_bytes(layer);
    }
}

void ExpertWindow::route(int layer, const int32_t * chosen, size_t count, bool batch) {
    if (layer < 0 || layer >= layers_) throw StorageError("the router of an unknown layer ran");
    if (layer <= current_ || current_ < 0) {
        policy_->token(batch);
        if (recording_) trace_.insert(trace_.end(), {-1, -1});
    }
    if (current_ >= 0) settle(current_);  // a graph may skip a product: pages under a read must not move
    current_ = layer;
    set_.clear();
    missing_.clear();
    for (size_t i = 0; i < count; ++i) {
        if (chosen[i] < 0 || chosen[i] >= experts_) throw StorageError("the router chose an expert that the file does not have");
        uint8_t & seen = needed_[static_cast<size_t>(chosen[i])];
        if (seen) continue;
        seen = 1;
        set_.push_back(chosen[i]);
    }
    std::sort(set_.begin(), set_.end());
    for (int32_t e : set_) {
        policy_->used(id(layer, e));
        if (!held_[static_cast<size_t>(id(layer, e))]) missing_.push_back(e);
        if (recording_) trace_.insert(trace_.end(), {layer, e});
    }
    policy_->routed(id(layer, 0), experts_);
    stats_.used += set_.size();
    stats_.misses += missing_.size();
    if (ahead_ >= 0 && ahead_ != layer) {  // the graph went elsewhere: nothing may leave while it is being read
        settle(ahead_);
        ahead_ = -1;
    }
    // Of a layer that was read ahead some reads may be under way, and only chosen experts are waited for.
    const size_t needed = missing_.size() * expert_bytes(layer);
    bool room = make_room(needed, layer, -1, batch);
    if (!room && layer == ahead_) {
        settle(layer);
        ahead_ = -1;
        room = make_room(needed, layer, -1, batch);
    }
    if (layer == ahead_) ahead_ = -1;
    if (room) read(layer, missing_);
    // Nearly every expert of this layer: the next layer will want nearly every one of its own.
    if (room && batch && set_.size() * 10 >= static_cast<size_t>(experts_) * 9) read_layer_ahead((layer + 1) % layers_, layer);
    for (int32_t e : set_) needed_[static_cast<size_t>(e)] = 0;
    if (!room) throw StorageError("the expert window is too small for the experts that one batch uses in a layer");
}

void ExpertWindow::read_layer_ahead(int layer, int current) {
    if (ahead_ >= 0) settle(ahead_);
    ahead_ = layer;  // what is there of it stays
    const size_t spare = bytes_ - std::min(bytes_, layer_bytes(current));
    missing_.clear();
    size_t wanted = 0;
    for (int32_t e = 0; e < experts_; ++e) {
        if (held_[static_cast<size_t>(id(layer, e))]) {
            wanted += expert_bytes(layer);
        } else if (wanted + expert_bytes(layer) <= spare) {
            wanted += expert_bytes(layer);
            missing_.push_back(e);
        }
    }
    // Of the current layer nothing leaves, chosen or not: what was read ahead of it may still be under way.
    if (missing_.empty() || !make_room(missing_.size() * expert_bytes(layer), current, current, true)) {
        ahead_ = -1;
        return;
    }
    stats_.read_ahead += missing_.size();
    read(layer, missing_);
}

void ExpertWindow::settle(int layer) {
    for (int tensor : tensors_of_[static_cast<size_t>(layer)]) {
        queues_[static_cast<size_t>(tensors_[static_cast<size_t>(tensor)].file)]->wait(end_[static_cast<size_t>(tensor)]);
    }
}

void ExpertWindow::need(int tensor) {
    const Tensor & t = tensors_[static_cast<size_t>(tensor)];
    if (t.layer != current_) throw StorageError("the graph used the experts of a layer whose router has not run");
    queues_[static_cast<size_t>(t.file)]->wait(end_[static_cast<size_t>(tensor)]);
}

void ExpertWindow::reset() noexcept {
    for (ReadQueue * queue : queues_) queue->drain();
    for (int32_t e : live_) drop(e);
    live_.clear();
    std::fill(needed_.begin(), needed_.end(), uint8_t{0});  // of a route that was broken off
    current_ = ahead_ = -1;
}

}  // namespace penstock
