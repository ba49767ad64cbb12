// Three coders with one interface, so that each coding is written once and all three follow it: one that decodes, one that
// encodes, one that only counts bits. `symbol(model, value, slowest, teaches)` and `bits(count, value)` return what is coded; the
// decoder ignores `value`. The model learns the symbol only if that teaches.
//
// The code is rANS (Duda, arXiv 1311.2540): words of 16 bits and four states of 32 bits, each for a symbol in turn, so that the
// processor may work on several. Raw bits belong to the symbol before them, and where there is none, to a `turn` of their own.
// An encoder runs backwards; ours keeps what each symbol's share was and runs back over that.
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
constexpr size_t kStates = 4;
constexpr size_t kStateBytes = 4 * kStates;  // that a payload begins with

// The words of a payload. A decoder reads them without a look at the end, as many as four numbers of a channel take: the last
// ones are copied, and zeros put behind them.
class CodeReader {
public:
    static constexpr size_t kMostRead = 64;  // bytes; a position takes up to 23 words

    // Throws FormatError, as all of this class does where the bytes are not such a code.
    CodeReader(const uint8_t * data, size_t bytes);
    CodeReader(const CodeReader &) = delete;
    CodeReader & operator=(const CodeReader &) = delete;

    struct Words {
        const uint8_t * next;
        const uint8_t * last;  // once next is behind it, go on with what `more` gives
    };
    Words words() { return {data_ + kStateBytes, data_ + kStateBytes - 1}; }
    Words more(const uint8_t * next);
    uint32_t state(size_t k) const { return states_[k]; }

    // There must be nothing but zeros from `next` on.
    void finish(const uint8_t * next) const;
    [[noreturn]] void fail(const uint8_t * next, const char * what) const;

private:
    size_t offset(const uint8_t * next) const;

    const uint8_t * data_;
    size_t bytes_;
    uint32_t states_[kStates];
    size_t copied_ = 0;    // of the last bytes
    bool at_end_ = false;  // the decoder reads end_
    uint8_t end_[2 * kMostRead] = {};
};

class SymbolDecoder {
public:
    static constexpr bool kDecodes = true;

    explicit SymbolDecoder(CodeReader & reader)
        : reader_(&reader), words_(reader.words()), next_(reader.state(0)), second_(reader.state(1)), third_(reader.state(2)), state_(reader.state(3)) {}

    // At most CodeReader::kMostRead bytes may be read before the next call.
    [[gnu::always_inline]] void ready() {
        if (words_.next > words_.last) [[unlikely]] words_ = reader_->more(words_.next);
    }

    [[gnu::always_inline]] unsigned symbol(SymbolModel & model, unsigned, int slowest, bool teaches = true) {
        turn();
        const uint32_t slot = state_ & (SymbolModel::kShares - 1);
        SymbolModel::Share share;
        const unsigned found = teaches ? model.find_and_update(slot, slowest, share) : model.find(slot, share);
        go_on(share.size * (state_ >> SymbolModel::kBits) + slot - share.start);
        return found;
    }

    // count from 1 to 16.
    [[gnu::always_inline]] uint32_t bits(int count, uint32_t) {
        const uint32_t value = state_ & ((1u << count) - 1);
        go_on(state_ >> count);
        return value;
    }

    [[gnu::always_inline]] void turn() {
        const uint32_t used = state_;
        state_ = next_;
        next_ = second_;
        second_ = third_;
        third_ = used;
    }

    // After the last number: was that the end of the code?
    void finish() {
        ready();
        for (const uint32_t state : {next_, second_, third_, state_}) {
            if (state != kLeastState) fail("the code does not end where its numbers end");
        }
        reader_->finish(words_.next);
    }

    // Inline, as all of these: a call with the coder's address would keep its states out of registers.
    [[noreturn, gnu::always_inline]] void fail(const char * what) const { reader_->fail(words_.next, what); }

private:
    // Whether a word is taken cannot be foreseen: a branch for it, which compilers make of a comparison, would cost more than all
    // the rest.
    [[gnu::always_inline]] void go_on(uint32_t next) {
        const uint32_t word = words_.next[0] | static_cast<uint32_t>(words_.next[1]) << 8;
#if defined(__x86_64__)
        uint32_t takes;
        asm("cmpl $0x10000, %0\n\tcmovbl %2, %0\n\tsbbl %1, %1" : "+r"(next), "=r"(takes) : "r"(next << 16 | word) : "cc");
        words_.next += takes & 2;
        state_ = next;
#else
        // All bits, where next is below 2^16.
        const auto takes = static_cast<uint32_t>((uint64_t{next} - kLeastState) >> 32);
        words_.next += takes & 2;
        state_ = next << (takes & 16) | (word & takes);
#endif
    }

    CodeReader * reader_;
    CodeReader::Words words_;
    uint32_t next_, second_, third_, state_;  // whose turns come; whose it is
};

class SymbolEncoder {
public:
    static constexpr bool kDecodes = false;

    void ready() const {}

    unsigned symbol(SymbolModel & model, unsigned value, int slowest, bool teaches = true) {
        turn();
        steps_.push_back({static_cast<uint16_t>(model.start(value)), static_cast<uint16_t>(model.share(value)), SymbolModel::kBits, turn_});
        if (teaches) model.update(value, slowest);
        return value;
    }

    uint32_t bits(int count, uint32_t value) {
        steps_.push_back({static_cast<uint16_t>(value), 1, static_cast<uint8_t>(count), turn_});
        return value;
    }

    void turn() { turn_ = static_cast<uint8_t>((turn_ + 1) % kStates); }

    // Throws ArgumentError: what was to be coded cannot be.
    [[noreturn]] void fail(const char * what) const { throw ArgumentError(what); }

    // The payload; at least `least` bytes, filled up with zeros.
    std::vector<uint8_t> finish(size_t least) const {
        uint32_t states[kStates] = {kLeastState, kLeastState, kLeastState, kLeastState};
        std::vector<uint16_t> words;  // the last first
        for (size_t i = steps_.size(); i-- > 0;) {
            const Step & step = steps_[i];
            uint32_t & x = states[step.turn];
            if (x >= static_cast<uint64_t>(step.share) << (32 - step.shift)) {
                words.push_back(static_cast<uint16_t>(x));
                x >>= 16;
            }
            x = ((x / step.share) << step.shift) + x % step.share + step.start;
        }
        std::vector<uint8_t> out;
        out.reserve(kStateBytes + 2 * words.size());
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
        uint16_t start, share;
        uint8_t shift, turn;  // of 2^shift; the state that it is for
    };
    std::vector<Step> steps_;
    uint8_t turn_ = kStates - 1;
};

class BitCounter {
public:
    static constexpr bool kDecodes = false;

    void ready() const {}

    unsigned symbol(SymbolModel & model, unsigned value, int slowest, bool teaches = true) {
        total_ += static_cast<double>(SymbolModel::kBits) - std::log2(static_cast<double>(model.share(value)));
        if (teaches) model.update(value, slowest);
        return value;
    }

    uint32_t bits(int count, uint32_t value) {
        total_ += count;
        return value;
    }

    void turn() const {}

    [[noreturn]] void fail(const char * what) const { throw ArgumentError(what); }

    double total() const { return total_; }

    // The total, from which on it counts anew.
    double take() { return std::exchange(total_, 0.0); }

private:
    double total_ = 0.0;
};

}  // namespace penstock
