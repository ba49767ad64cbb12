// Layer streaming for dense models: parts of weight tensors pass, in the order in which the graph
// uses them, through a ring of memory that never grows.
//
// A unit is the streamed part of one tensor. Its addresses inside llama.cpp's mapping are aliases of
// a fixed place in the ring, made once: many units share the same pages, one after the other. So
// reading ahead needs no mapping, no zeroing and no page fault in the steady state.
//
// The order is learned from the first pass over the graph, in which units are read on demand.
//
// Two other kinds of memory are there to be measured beside it (benchmarks/gguf_streaming.py): pages that are
// fresh for every read, of the usual size or huge where the addresses allow that.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "read_queue.h"

namespace penstock {

enum class RingMemory : uint8_t { aliases, fresh, huge };

class TensorRing {
public:
    struct Unit {
        uint8_t * at;     // in llama.cpp's mapping, page aligned
        uint64_t offset;  // in the file, page aligned
        size_t bytes;     // page multiple
        int file;
    };

    // The queues outlive the ring. Throws StorageError, ArgumentError.
    TensorRing(std::vector<Unit> units, size_t ring_bytes, std::vector<ReadQueue *> queues, RingMemory memory = RingMemory::aliases);
    ~TensorRing();
    TensorRing(const TensorRing &) = delete;
    TensorRing & operator=(const TensorRing &) = delete;

    // The graph is about to use a unit: block until it is in memory. Throws StorageError.
    void need(int unit);
    // All units needed since the last call have been used: their places are free, read ahead.
    void consumed();
    // After a failed read or an aborted pass: nothing is in memory, nothing is under way.
    void reset() noexcept;

    size_t bytes() const { return ring_bytes_; }
    uint64_t on_demand() const { return on_demand_; }  // units that had not been read ahead

private:
    enum class State : uint8_t { absent, reading, needed };
    struct Slot {
        size_t place = 0;  // in the ring
        bool placed = false;
        State state = State::absent;
        uint64_t end = 0;  // ticket
        std::vector<iovec> iov;
    };

    void place(int unit);
    void leave(int unit) noexcept;
    void read(int unit);
    void read_ahead();
    void drop_read_ahead();
    bool overlaps(int a, int b) const;
    bool blocked(int unit) const;

    std::vector<Unit> units_;
    std::vector<Slot> slots_;
    std::vector<ReadQueue *> queues_;
    std::vector<Read> reads_;
    size_t ring_bytes_;
    RingMemory memory_;
    int shared_ = -1;
    uint8_t * ring_ = nullptr;
    size_t cursor_ = 0;             // next place, while the order is learned
    std::vector<int> order_;        // units in the order of use
    std::vector<int> turn_of_;      // (units) position in order_, -1: not used yet
    bool learned_ = false;
    size_t next_ = 0;               // position in order_ that is read ahead next
    size_t due_ = 0;                // position in order_ that the graph should need next
    std::vector<int> ahead_;        // read ahead, not needed yet, in order
    std::vector<int> in_use_;       // needed since the last consumed()
    uint64_t on_demand_ = 0;
};

}  // namespace penstock
