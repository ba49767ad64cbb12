// Three coders with one interface, so that each coding is written once and all three follow it: one that decodes, one that
// encodes, one that only counts bits. `symbol(model, value, slowest)` and `bits(count, value)` return what is coded; the
// decoder ignores `value`.
//
// The code is rANS (Duda, arXiv 1311.2540): two states of 32 bits in turn, so that the processor may work on both, and words of
// 16 bits. An encoder runs backwards; ours keeps what each symbol's share was and runs back over that.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "error.h"
#include "symbol_model.h"

namespace penstock {

constexpr uint32_t kLeastState = 1u << 16;

class SymbolDecoder {
public:
    static constexpr bool kDecodes = true;

    // Throws FormatError, as all of this class does where the bytes are not such a code.
    SymbolDecoder(const uint8_t * data, size_t bytes) : data_(data), bytes_(bytes) {
        if (bytes < 8 || bytes % 2 != 0) throw FormatError("a payload of " + std::to_string(bytes) + " bytes; expected 8 or more, and an even number");
        state_ = load_state();
        other_ = load_state();
    }

    unsigned symbol(SymbolModel & model, unsigned, int slowest) {
        const uint32_t slot = state_ & (SymbolModel::kShares - 1);
        SymbolModel::Share share;
        const unsigned found = model.find_and_update(slot, slowest, share);
        turn(share.size * (state_ >> SymbolModel::kBits) + slot - share.start);
        return found;
    }

    // count from 1 to 16.
    uint32_t bits(int count, uint32_t) {
        const uint32_t value = state_ & ((1u << count) - 1);
        turn(state_ >> count);
        return value;
    }

    // After the last symbol: was that the end of the code?
    void finish() const {
        if (state_ != kLeastState || other_ != kLeastState) fail("the code does not end where its numbers end");
        for (size_t i = at_; i < bytes_; ++i) {
            if (data_[i] != 0) fail("there is something after the code's end");
        }
    }

    [[noreturn]] void fail(const char * what) const {
        throw FormatError("at byte " + std::to_string(at_) + " of the payload: " + what);
    }

private:
    // The other state's turn. Whether a word is taken cannot be foreseen, so that this has no branch for it.
    void turn(uint32_t next) {
        const size_t last = bytes_ - 2, from = at_ < last ? at_ : last;
        const uint32_t with_word = next << 16 | data_[from] | static_cast<uint32_t>(data_[from + 1]) << 8;
        const bool takes = next < kLeastState;
        at_ += takes ? 2 : 0;
        if (at_ > bytes_) fail("the code ends early");
        state_ = other_;
        other_ = takes ? with_word : next;
    }

    uint32_t load_state() {
        const uint8_t * p = data_ + at_;
        const uint32_t state = p[0] | static_cast<uint32_t>(p[1]) << 8 | static_cast<uint32_t>(p[2]) << 16 | static_cast<uint32_t>(p[3]) << 24;
        if (state < kLeastState) fail("a state is below 65536");
        at_ += 4;
        return state;
    }

    const uint8_t * data_;
    size_t bytes_, at_ = 0;
    uint32_t state_ = 0, other_ = 0;  // whose turn it is, and the other one
};

class SymbolEncoder {
public:
    static constexpr bool kDecodes = false;

    unsigned symbol(SymbolModel & model, unsigned value, int slowest) {
        steps_.push_back({static_cast<uint16_t>(model.start(value)), static_cast<uint16_t>(model.share(value)), SymbolModel::kBits});
        model.update(value, slowest);
        return value;
    }

    uint32_t bits(int count, uint32_t value) {
        steps_.push_back({static_cast<uint16_t>(value), 1, static_cast<uint16_t>(count)});
        return value;
    }

    // Throws ArgumentError: what was to be coded cannot be.
    [[noreturn]] void fail(const char * what) const { throw ArgumentError(what); }

    // The payload; at least `least` bytes, filled up with zeros.
    std::vector<uint8_t> finish(size_t least) const {
        uint32_t states[2] = {kLeastState, kLeastState};
        std::vector<uint16_t> words;  // the last first
        for (size_t i = steps_.size(); i-- > 0;) {
            const Step & step = steps_[i];
            uint32_t & x = states[i % 2];
            if (x >= static_cast<uint64_t>(step.share) << (32 - step.shift)) {
                words.push_back(static_cast<uint16_t>(x));
                x >>= 16;
            }
            x = ((x / step.share) << step.shift) + x % step.share + step.start;
        }
        std::vector<uint8_t> out;
        out.reserve(8 + 2 * words.size());
        for (const uint32_t x : states) {
            for (int k = 0; k < 32; k += 8) out.push_back(static_cast<uint8_t>(x >> k));
        }
        for (size_t i = words.size(); i-- > 0;) {
            out.push_back(static_cast<uint8_t>(words[i]));
            out.push_back(static_cast<uint8_t>(words[i] >> 8));
        }
        if (out.size() < least) out.resize(least + least % 2);
        return out;
    }

private:
    struct Step {
        uint16_t start, share, shift;  // of 2^shift
    };
    std::vector<Step> steps_;
};

class BitCounter {
public:
    static constexpr bool kDecodes = false;

    unsigned symbol(SymbolModel & model, unsigned value, int slowest) {
        total_ += static_cast<double>(SymbolModel::kBits) - std::log2(static_cast<double>(model.share(value)));
        model.update(value, slowest);
        return value;
    }

    uint32_t bits(int count, uint32_t value) {
        total_ += count;
        return value;
    }

    [[noreturn]] void fail(const char * what) const { throw ArgumentError(what); }

    double total() const { return total_; }

private:
    double total_ = 0.0;
};

}  // namespace penstock
