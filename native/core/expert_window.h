// The expert window of a mixture-of-experts file: a fixed amount of memory holds the experts that are
// worth most; what the router chooses besides is read when it is known, and the rest stays.
//
// Every expert has its own addresses inside llama.cpp's mapping, for good. An expert in the window has
// pages there, one that left has none. Pages that two experts share stay in memory always.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "expert_policy.h"
#include "page_exchange.h"
#include "read_queue.h"

namespace penstock {

class ExpertWindow {
public:
    // A tensor that holds one matrix of each of a layer's experts, one after the other.
    struct Tensor {
        int layer;        // counted through the layers that have experts
        uint8_t * at;     // in llama.cpp's mapping; its offset in a page is the file's
        uint64_t offset;  // in the file
        size_t stride;    // bytes of one expert
        int file;
    };
    struct Stats {
        uint64_t used = 0, misses = 0, evicted = 0, read_ahead = 0;
    };

    // bytes: memory for experts. Throws ArgumentError.
    ExpertWindow(int layers, int experts, std::vector<Tensor> tensors, size_t bytes, const std::string & policy,
                 std::vector<ReadQueue *> queues);

    // The router of a layer has chosen, for one token or a batch: start reading what is missing.
    void route(int layer, const int32_t * chosen, size_t count, bool batch);
    // The graph is about to use a tensor of the layer routed last: block until it is in memory.
    void need(int tensor);
    void reset() noexcept;

    // Pages of a tensor that belong to one expert alone; bytes 0 when it has no whole page.
    struct Pages {
        uint8_t * at;
        uint64_t offset;
        size_t bytes;
    };
    Pages pages(int tensor, int expert) const;

    size_t bytes() const { return bytes_; }
    size_t held_bytes() const { return held_bytes_; }
    size_t layer_bytes(int layer) const;  // of all experts of a layer
    const Stats & stats() const { return stats_; }
    const PageExchange & exchange() const { return exchange_; }
    // Record what routers choose: pairs (layer, expert), -1 -1 where a token begins.
    void record(bool on) { recording_ = on; }
    const std::vector<int32_t> & trace() const { return trace_; }
    void clear_trace() { trace_.clear(); }

private:
    int32_t id(int layer, int expert) const { return layer * experts_ + expert; }
    size_t expert_bytes(int layer) const { return bytes_of_[static_cast<size_t>(layer)]; }
    bool make_room(size_t needed, int layer, int keep_layer, bool batch);
    void drop(int32_t expert) noexcept;
    void read(int layer, const std::vector<int32_t> & experts);
    void read_layer_ahead(int layer, int current);
    void settle(int layer);

    int layers_, experts_;
    std::vector<Tensor> tensors_;
    std::vector<std::vector<int>> tensors_of_;  // (layers) in the order of use
    std::vector<size_t> bytes_of_;              // (layers) of one expert
    std::vector<ReadQueue *> queues_;
    std::unique_ptr<ExpertPolicy> policy_;
    PageExchange exchange_;
    size_t bytes_, held_bytes_ = 0;
    std::vector<uint8_t> held_;      // (layers * experts)
    std::vector<int32_t> live_;      // ids that are held
    std::vector<uint64_t> end_;      // (tensors) ticket after which all that was asked of it is there
    std::vector<uint8_t> needed_;    // (experts) scratch
    std::vector<int32_t> set_, missing_;
    struct Ranked {
        int turns;  // until its layer is used again, in a batch
        double worth;
        int32_t expert;
    };
    std::vector<Ranked> ranked_;
    std::vector<iovec> iov_;         // (tensors * experts * pieces) fixed places for reads under way
    std::vector<size_t> iov_of_;     // (tensors) first of its iovs
    std::vector<Read> reads_;
    int current_ = -1;  // layer routed last
    int ahead_ = -1;    // layer that was read ahead and not routed since
    Stats stats_;
    bool recording_ = false;
    std::vector<int32_t> trace_;
};

}  // namespace penstock
