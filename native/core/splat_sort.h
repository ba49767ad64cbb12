// The order of depth: a stable radix sort of positive floats.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "splat_room.h"
#include "thread_pool.h"

namespace penstock {

constexpr int kMostDigit = 12;  // bits of a pass: a part's counts stay in the first-level cache

// The first of n things that is a part's own, of parts that follow each other.
inline size_t share(size_t n, size_t part, size_t parts) { return n * part / parts; }

// Consecutive places of an array that are in use; between two runs nothing is.
struct DepthRun {
    uint32_t begin, count;
};

// Room that is kept from frame to frame.
struct SortRoom {
    SplatRoom<uint64_t> pairs, other_pairs;  // key << 32 | place
    SplatRoom<uint32_t> counts;
    size_t bytes() const { return pairs.bytes() + other_pairs.bytes() + counts.bytes(); }
};

// Fills `order` with the places of the runs by ascending depth; equal depths stay in the order of their
// places, for any number of threads. Depths are more than 0. Returns how many there are.
size_t sort_by_depth(const float * depth, const std::vector<DepthRun> & runs, SplatRoom<uint32_t> & order,
                     SortRoom & room, ThreadPool & pool);

}  // namespace penstock
