// Least significant digit first; each part of the places counts and scatters its own range.
//
// The bits of positive floats sort as the floats do. A scene's depths differ in their low bits only:
// the least key is taken away, and there are as few passes as the rest needs, two for most scenes.
// Parts are scattered in their order, so that the sort is stable whatever the number of threads.
#include "splat_sort.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace penstock {
namespace {

uint32_t key_of(float depth) { return std::bit_cast<uint32_t>(depth); }

// One pass. each(part, visit) calls visit(key, place) for the part's elements in their order;
// put(at, key, place) writes the element that comes at-th.
template <typename Each, typename Put>
void scatter(size_t parts, int shift, int digit, SplatRoom<uint32_t> & counts, ThreadPool & pool, Each && each, Put && put) {
    const size_t buckets = size_t{1} << digit;
    const uint32_t mask = static_cast<uint32_t>(buckets - 1);
    counts.need(parts * buckets);
    pool.run(parts, 1, [&](size_t first, size_t last) {
        for (size_t part = first; part < last; ++part) {
            uint32_t * count = counts.data() + part * buckets;
            std::memset(count, 0, buckets * sizeof(uint32_t));
            each(part, [=](uint32_t key, uint32_t) { ++count[key >> shift & mask]; });
        }
    });
    uint32_t sum = 0;
    for (size_t bucket = 0; bucket < buckets; ++bucket) {
        for (size_t part = 0; part < parts; ++part) {
            uint32_t & count = counts[part * buckets + bucket];
            const uint32_t here = count;
            count = sum;
            sum += here;
        }
    }
    pool.run(parts, 1, [&](size_t first, size_t last) {
        for (size_t part = first; part < last; ++part) {
            uint32_t * next = counts.data() + part * buckets;
            each(part, [&, next](uint32_t key, uint32_t place) { put(next[key >> shift & mask]++, key, place); });
        }
    });
}

}  // namespace

size_t sort_by_depth(const float * depth, const std::vector<DepthRun> & runs, SplatRoom<uint32_t> & order,
                     SortRoom & room, ThreadPool & pool) {
    size_t n = 0;
    uint32_t least = UINT32_MAX, most = 0;
    for (const DepthRun & run : runs) {
        n += run.count;
        for (size_t i = run.begin; i < size_t{run.begin} + run.count; ++i) {
            least = std::min(least, key_of(depth[i]));
            most = std::max(most, key_of(depth[i]));
        }
    }
    order.need(n);
    if (n == 0) return 0;

    const size_t parts = static_cast<size_t>(pool.threads());
    uint32_t * const sorted = order.data();
    const auto from_runs = [&](size_t part, auto && visit) {
        for (size_t r = share(runs.size(), part, parts); r < share(runs.size(), part + 1, parts); ++r) {
            const uint32_t end = runs[r].begin + runs[r].count;
            for (uint32_t place = runs[r].begin; place < end; ++place) visit(key_of(depth[place]) - least, place);
        }
    };
    const auto from_pairs = [&](const uint64_t * pairs) {
        return [pairs, n, parts](size_t part, auto && visit) {
            const size_t end = share(n, part + 1, parts);
            for (size_t i = share(n, part, parts); i < end; ++i) {
                visit(static_cast<uint32_t>(pairs[i] >> 32), static_cast<uint32_t>(pairs[i]));
            }
        };
    };
    const auto to_pairs = [](uint64_t * pairs) {
        return [pairs](uint32_t at, uint32_t key, uint32_t place) { pairs[at] = uint64_t{key} << 32 | place; };
    };
    const auto to_order = [sorted](uint32_t at, uint32_t, uint32_t place) { sorted[at] = place; };

    const int wanted = std::max(1, static_cast<int>(std::bit_width(most - least)));
    const int passes = (wanted + kMostDigit - 1) / kMostDigit;  // 1 to 3
    const int digit = (wanted + passes - 1) / passes;
    if (passes == 1) {
        scatter(parts, 0, digit, room.counts, pool, from_runs, to_order);
        return n;
    }
    room.pairs.need(n);
    uint64_t * pairs = room.pairs.data();
    scatter(parts, 0, digit, room.counts, pool, from_runs, to_pairs(pairs));
    if (passes == 3) {
        room.other_pairs.need(n);
        scatter(parts, digit, digit, room.counts, pool, from_pairs(pairs), to_pairs(room.other_pairs.data()));
        pairs = room.other_pairs.data();
    }
    scatter(parts, (passes - 1) * digit, digit, room.counts, pool, from_pairs(pairs), to_order);
    return n;
}

}  // namespace penstock
