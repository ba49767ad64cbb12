#include "position_coding.h"

#include <cstdlib>

namespace penstock {

std::vector<uint32_t> cells_of(const std::vector<uint64_t> & codes) {
    std::vector<uint32_t> cells(3 * codes.size());
    for (size_t i = 0; i < codes.size(); ++i) {
        for (size_t axis = 0; axis < 3; ++axis) cells[3 * i + axis] = gather_bits(codes[i] >> axis);
    }
    return cells;
}

void find_neighbours(const uint64_t * codes, const uint16_t * kept, int bits, size_t count, int32_t * nearest) {
    constexpr int kWindow = 32;
    // Before the first splats lie some that are farther from everything than anything else is.
    constexpr int32_t kFar = 1 << 24;
    std::vector<int32_t> room(3 * (count + kWindow), kFar);
    int32_t * x = room.data();
    int32_t * y = x + count + kWindow;
    int32_t * z = y + count + kWindow;
    for (size_t i = 0; i < count; ++i) {
        const int dropped = kept == nullptr ? 0 : bits - (kept[i] + 1);
        const auto half = static_cast<int32_t>((uint32_t{1} << dropped) >> 1);
        const int32_t cx = static_cast<int32_t>(gather_bits(codes[i])) + half;
        const int32_t cy = static_cast<int32_t>(gather_bits(codes[i] >> 1)) + half;
        const int32_t cz = static_cast<int32_t>(gather_bits(codes[i] >> 2)) + half;
        // The least of distance * 32 + age: at most 3 * 2^24 * 32, and the most recent of equals.
        int32_t best = INT32_MAX;
        for (int k = 0; k < kWindow; ++k) {
            const int32_t distance = std::abs(x[i + k] - cx) + std::abs(y[i + k] - cy) + std::abs(z[i + k] - cz);
            best = std::min(best, distance * kWindow + (kWindow - 1 - k));
        }
        const auto age = static_cast<size_t>(best % kWindow);
        nearest[i] = age < i ? static_cast<int32_t>(i - 1 - age) : -1;
        x[i + kWindow] = cx;
        y[i + kWindow] = cy;
        z[i + kWindow] = cz;
    }
}

}  // namespace penstock
