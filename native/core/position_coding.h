// How the cells of splats are coded: Morton codes in ascending order, each by what it does not share with the one before.
// docs/psplat-format.md, "Positions" and "Group payload".
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "channel_coding.h"
#include "symbol_coder.h"

namespace penstock {

constexpr int kMostLatticeBits = 21;

// ---------------------------------------------------------------- Morton codes

// Bit i of a number below 2^21 goes to bit 3i.
inline uint64_t spread_bits(uint32_t number) {
    uint64_t v = number & 0x1fffffu;
    v = (v | v << 32) & 0x001f00000000ffffu;
    v = (v | v << 16) & 0x001f0000ff0000ffu;
    v = (v | v << 8) & 0x100f00f00f00f00fu;
    v = (v | v << 4) & 0x10c30c30c30c30c3u;
    return (v | v << 2) & 0x1249249249249249u;
}

inline uint32_t gather_bits(uint64_t v) {
    v &= 0x1249249249249249u;
    v = (v | v >> 2) & 0x10c30c30c30c30c3u;
    v = (v | v >> 4) & 0x100f00f00f00f00fu;
    v = (v | v >> 8) & 0x001f0000ff0000ffu;
    v = (v | v >> 16) & 0x001f00000000ffffu;
    return static_cast<uint32_t>((v | v >> 32) & 0x1fffffu);
}

inline uint64_t morton_code(uint32_t x, uint32_t y, uint32_t z) { return spread_bits(x) | spread_bits(y) << 1 | spread_bits(z) << 2; }

// x, y, z of each code.
std::vector<uint32_t> cells_of(const std::vector<uint64_t> & codes);

// The octal digit of a level, 0 the most significant of `bits`.
inline unsigned octal_digit(uint64_t code, int bits, int level) { return static_cast<unsigned>(code >> 3 * (bits - 1 - level)) & 7u; }

// How many leading digits two codes share.
inline int shared_digits(uint64_t a, uint64_t b, int bits) {
    return a == b ? bits : bits - 1 - (63 - __builtin_clzll(a ^ b)) / 3;
}

// ---------------------------------------------------------------- the coding

struct PositionSpec {
    int bits = 16;             // of a coordinate, 1 to 21: digits of a code
    int modelled_digits = 2;   // after the first one that differs
    int slowest = 6;
};

struct PositionModels {
    using Models = std::vector<SymbolModel>;
    Family shared = Family(22 * 4, 11);               // upper bits of how many digits are shared
    Models shared_low = Models(16, SymbolModel(2));   // the lowest bit, by the upper ones
    Models differing = Models(8, SymbolModel(8));     // by the digit before
    Models following = Models(3 * 8, SymbolModel(8)); // by place and the digit before
};

// `kept`: digits kept minus 1 of each, or null where all are. `codes`: ascending, digits that are not kept are zeros.
template <class Coder>
void code_positions(Coder & outer, const PositionSpec & given, PositionModels & m, size_t count, const uint16_t * kept, uint64_t * codes) {
    const PositionSpec spec = given;
    const int bits = spec.bits;
    uint64_t before = 0;
    int last = 0, second_last = 0;
    Coder coder = std::move(outer);
    for (size_t i = 0; i < count; ++i) {
        coder.ready();
        const int digits = kept == nullptr ? bits : kept[i] + 1;
        const uint64_t code = Coder::kDecodes ? 0 : codes[i];
        int shared = 0;
        if constexpr (!Coder::kDecodes) {
            if (code < before) coder.fail("codes do not ascend");
            if ((code & ((uint64_t{1} << 3 * (bits - digits)) - 1)) != 0) coder.fail("digits that are not kept are not zeros");
            shared = std::min(shared_digits(before, code, bits), digits);
        }
        const int context = 4 * std::max(last, second_last) + std::min(3, (bits - digits) / 2);
        const unsigned upper = code_in_context(coder, m.shared, static_cast<size_t>(context), static_cast<unsigned>(shared) >> 1, spec.slowest);
        const unsigned lowest = coder.symbol(m.shared_low[upper], static_cast<unsigned>(shared) & 1u, spec.slowest);
        shared = static_cast<int>(2 * upper + lowest);
        if (lowest > 1 || shared > digits) coder.fail("a code shares more digits than it has");
        second_last = last;
        last = shared;

        uint64_t now = shared == 0 ? 0 : before >> 3 * (bits - shared);
        int level = shared;
        const auto add_digit = [&](SymbolModel & model) {
            const unsigned digit = coder.symbol(model, octal_digit(code, bits, level), spec.slowest);
            if (digit > 7) coder.fail("an octal digit over 7");
            now = now << 3 | digit;
            ++level;
        };
        if (level < digits) {
            const unsigned least = octal_digit(before, bits, level);
            add_digit(m.differing[least]);
            if ((now & 7u) <= least) coder.fail("codes do not ascend");
        }
        for (int place = 0; place < spec.modelled_digits && level < digits; ++place) {
            add_digit(m.following[static_cast<size_t>(std::min(place, 2)) * 8 + octal_digit(before, bits, level)]);
        }
        while (level < digits) {
            const int take = std::min(digits - level, 5);
            const uint64_t value = code >> 3 * (bits - level - take) & ((1u << 3 * take) - 1);
            now = now << 3 * take | coder.bits(3 * take, static_cast<uint32_t>(value));
            level += take;
        }
        before = now << 3 * (bits - digits);
        if constexpr (Coder::kDecodes) codes[i] = before;
    }
    outer = std::move(coder);
}

// Of each splat the nearest of the 32 before it, or -1: into `nearest`, room for `count`. Distances are |dx| + |dy| + |dz|
// between the centres of the cells that are left; the latest of equals.
void find_neighbours(const uint64_t * codes, const uint16_t * kept, int bits, size_t count, int32_t * nearest);

}  // namespace penstock
