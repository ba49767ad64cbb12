// The shares of up to 16 symbols, learned while they are coded; encoder and decoder learn alike.
//
// Shares are kept cumulated, in 1/32768. A symbol moves them by 2^-rate towards certainty of it. The rate grows with what
// was seen, as the weight of a new number in an average shrinks, up to a limit: then the model is settled. It forgets, and need
// not learn from every symbol.
// A share never falls to nothing: for cumulated a < b and their targets m < n, all whole numbers, and h = 2^(r - 1),
// b + floor((n - b + h) / 2^r) > a + floor((m - a + h) / 2^r), as (n + (2^r - 1) b) - (m + (2^r - 1) a) >= 2^r.
// Nor does the limit of 16 bits change that: where it makes two moves alike, a and b stay as far apart as they were.
//
// Both loops over the 16 numbers are two vectors in the base instruction sets, SSE2 and NEON. docs/psplat-format.md, "Models".
#pragma once

#include <algorithm>
#include <cstdint>

#if defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace penstock {

class alignas(16) SymbolModel {
public:
    static constexpr int kBits = 15;
    static constexpr uint32_t kShares = 1u << kBits;
    static constexpr int kSymbols = 16;

    // Equal shares for the first `symbols`, 1 to 16; the least that can be for the others.
    explicit SymbolModel(int symbols = kSymbols) {
        const int each = (kCertain + symbols) / symbols;
        for (int i = 0; i < kSymbols; ++i) cumulated_[i] = static_cast<int16_t>(i < symbols ? i * each : kCertain + i);
    }

    // The symbol whose share a slot, below 32768, falls in.
    struct Share {
        uint32_t start, size;
    };
    unsigned find(uint32_t slot, Share & its) const;
    // Then learns it. What its share was goes to `before`.
    unsigned find_and_update(uint32_t slot, int slowest, Share & before);
    uint32_t start(unsigned symbol) const { return static_cast<uint16_t>(cumulated_[symbol]); }
    uint32_t share(unsigned symbol) const { return static_cast<uint16_t>(cumulated_[symbol + 1]) - start(symbol); }

    void update(unsigned symbol, int slowest);

    unsigned seen() const { return seen_; }
    void take_shares(const SymbolModel & other) { std::copy(other.cumulated_, other.cumulated_ + kSymbols, cumulated_); }

private:
    // 2^-rate is how far the shares move next.
    int next_rate(int slowest) {
        const unsigned seen = seen_;
        seen_ = static_cast<uint16_t>(seen + (seen < kMostSeen));
        return kRates.of[slowest][seen];
    }

    static constexpr int kCertain = 32752;  // what the cumulated shares above a certain symbol begin at
    static constexpr unsigned kMostSeen = 504;

    struct Rates {  // by the slowest one: the logarithm of seen + 8, or that
        uint8_t of[10][kMostSeen + 1];
        constexpr Rates() : of{} {
            for (int slowest = 0; slowest < 10; ++slowest) {
                for (unsigned seen = 0; seen <= kMostSeen; ++seen) {
                    const int rate = 31 - __builtin_clz(seen + 8u);
                    of[slowest][seen] = static_cast<uint8_t>(rate < slowest ? rate : slowest);
                }
            }
        }
    };
    static const Rates kRates;

    struct alignas(16) Steps {  // by rate: half of a step, and the rate as a shift of vectors takes it
        struct {
            int16_t half[8];
            int64_t rate[2];
        } of[10];
        constexpr Steps() : of{} {
            for (int rate = 1; rate < 10; ++rate) {
                for (int16_t & half : of[rate].half) half = static_cast<int16_t>(1 << (rate - 1));
                of[rate].rate[0] = rate;
            }
        }
    };
    static const Steps kSteps;

    int16_t cumulated_[kSymbols + 1] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, INT16_MIN};  // the last: 32768
    uint16_t seen_ = 0;
};

inline constexpr SymbolModel::Rates SymbolModel::kRates{};
inline constexpr SymbolModel::Steps SymbolModel::kSteps{};

#if defined(__SSE2__)

// Moves half of the shares: `over` has all bits of those above the symbol.
inline __m128i moved_shares(__m128i now, __m128i over, __m128i place, __m128i certain, __m128i half, __m128i rate) {
    const __m128i target = _mm_add_epi16(place, _mm_and_si128(over, certain));
    const __m128i way = _mm_adds_epi16(_mm_sub_epi16(target, now), half);
    return _mm_add_epi16(now, _mm_sra_epi16(way, rate));
}

// Bit i: number i, of 16, is not 0.
inline unsigned mask_of(__m128i low, __m128i high) { return static_cast<unsigned>(_mm_movemask_epi8(_mm_packs_epi16(low, high))); }

[[gnu::always_inline]] inline unsigned SymbolModel::find(uint32_t slot, Share & its) const {
    const auto * c = reinterpret_cast<const __m128i *>(cumulated_);
    const __m128i at = _mm_set1_epi16(static_cast<int16_t>(slot));
    const unsigned mask = mask_of(_mm_cmpgt_epi16(_mm_load_si128(c), at), _mm_cmpgt_epi16(_mm_load_si128(c + 1), at));
    const unsigned symbol = static_cast<unsigned>(__builtin_ctz(mask | 0x10000u)) - 1;  // bit 0 never
    its = {start(symbol), share(symbol)};
    return symbol;
}

[[gnu::always_inline]] inline unsigned SymbolModel::find_and_update(uint32_t slot, int slowest, Share & before) {
    auto * c = reinterpret_cast<__m128i *>(cumulated_);
    const __m128i low = _mm_load_si128(c), high = _mm_load_si128(c + 1), at = _mm_set1_epi16(static_cast<int16_t>(slot));
    // Those above the symbol are those over the slot: moving them need not wait for its number.
    const __m128i low_over = _mm_cmpgt_epi16(low, at), high_over = _mm_cmpgt_epi16(high, at);
    const unsigned symbol = static_cast<unsigned>(__builtin_ctz(mask_of(low_over, high_over) | 0x10000u)) - 1;  // bit 0 never
    before = {start(symbol), share(symbol)};
    const auto & step = kSteps.of[next_rate(slowest)];
    const __m128i half = _mm_load_si128(reinterpret_cast<const __m128i *>(step.half)), rate = _mm_load_si128(reinterpret_cast<const __m128i *>(step.rate));
    const __m128i certain = _mm_set1_epi16(kCertain);
    _mm_store_si128(c, moved_shares(low, low_over, _mm_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7), certain, half, rate));
    _mm_store_si128(c + 1, moved_shares(high, high_over, _mm_setr_epi16(8, 9, 10, 11, 12, 13, 14, 15), certain, half, rate));
    return symbol;
}

inline void SymbolModel::update(unsigned symbol, int slowest) {
    auto * c = reinterpret_cast<__m128i *>(cumulated_);
    const __m128i self = _mm_set1_epi16(static_cast<int16_t>(symbol)), certain = _mm_set1_epi16(kCertain);
    const auto & step = kSteps.of[next_rate(slowest)];
    const __m128i half = _mm_load_si128(reinterpret_cast<const __m128i *>(step.half)), rate = _mm_load_si128(reinterpret_cast<const __m128i *>(step.rate));
    __m128i place = _mm_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7);
    for (int k = 0; k < 2; ++k) {
        _mm_store_si128(c + k, moved_shares(_mm_load_si128(c + k), _mm_cmpgt_epi16(place, self), place, certain, half, rate));
        place = _mm_add_epi16(place, _mm_set1_epi16(8));
    }
}

#elif defined(__aarch64__)

// Moves half of the shares: `over` has all bits of those above the symbol.
inline int16x8_t moved_shares(int16x8_t now, uint16x8_t over, int16x8_t place, int16x8_t certain, int rate) {
    const int16x8_t count = vdupq_n_s16(static_cast<int16_t>(-rate));  // a shift to the left by -rate rounds down
    const int16x8_t target = vaddq_s16(place, vandq_s16(vreinterpretq_s16_u16(over), certain));
    const int16x8_t way = vqaddq_s16(vsubq_s16(target, now), vdupq_n_s16(static_cast<int16_t>(1 << (rate - 1))));
    return vaddq_s16(now, vshlq_s16(way, count));
}

inline constexpr int16_t kPlaces[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// Each that is over the slot counts for 65535, that is, -1; of 16, those that are not, but for the symbol's own, lie below.
inline unsigned symbol_below(uint16x8_t low_over, uint16x8_t high_over) {
    return 15u - static_cast<uint16_t>(-vaddvq_u16(vaddq_u16(low_over, high_over)));
}

[[gnu::always_inline]] inline unsigned SymbolModel::find(uint32_t slot, Share & its) const {
    const int16x8_t at = vdupq_n_s16(static_cast<int16_t>(slot));
    const unsigned symbol = symbol_below(vcgtq_s16(vld1q_s16(cumulated_), at), vcgtq_s16(vld1q_s16(cumulated_ + 8), at));
    its = {start(symbol), share(symbol)};
    return symbol;
}

[[gnu::always_inline]] inline unsigned SymbolModel::find_and_update(uint32_t slot, int slowest, Share & before) {
    const int16x8_t low = vld1q_s16(cumulated_), high = vld1q_s16(cumulated_ + 8), at = vdupq_n_s16(static_cast<int16_t>(slot));
    // Those above the symbol are those over the slot: moving them need not wait for its number.
    const uint16x8_t low_over = vcgtq_s16(low, at), high_over = vcgtq_s16(high, at);
    const unsigned symbol = symbol_below(low_over, high_over);
    before = {start(symbol), share(symbol)};
    const int rate = next_rate(slowest);
    const int16x8_t certain = vdupq_n_s16(kCertain);
    vst1q_s16(cumulated_, moved_shares(low, low_over, vld1q_s16(kPlaces), certain, rate));
    vst1q_s16(cumulated_ + 8, moved_shares(high, high_over, vld1q_s16(kPlaces + 8), certain, rate));
    return symbol;
}

inline void SymbolModel::update(unsigned symbol, int slowest) {
    const int16x8_t self = vdupq_n_s16(static_cast<int16_t>(symbol)), certain = vdupq_n_s16(kCertain);
    const int rate = next_rate(slowest);
    for (int half = 0; half < kSymbols; half += 8) {
        const int16x8_t place = vld1q_s16(kPlaces + half), now = vld1q_s16(cumulated_ + half);
        vst1q_s16(cumulated_ + half, moved_shares(now, vcgtq_s16(place, self), place, certain, rate));
    }
}

#else

inline unsigned SymbolModel::find(uint32_t slot, Share & its) const {
    unsigned symbol = 0;
    for (int i = 1; i < kSymbols; ++i) symbol += cumulated_[i] <= static_cast<int32_t>(slot);
    its = {start(symbol), share(symbol)};
    return symbol;
}

inline unsigned SymbolModel::find_and_update(uint32_t slot, int slowest, Share & before) {
    const unsigned symbol = find(slot, before);
    update(symbol, slowest);
    return symbol;
}

inline void SymbolModel::update(unsigned symbol, int slowest) {
    const int rate = next_rate(slowest);
    for (int i = 0; i < kSymbols; ++i) {
        const int target = i + (i > static_cast<int>(symbol) ? kCertain : 0);
        const int way = std::min(target - cumulated_[i] + (1 << (rate - 1)), 32767);
        cumulated_[i] = static_cast<int16_t>(cumulated_[i] + (way >> rate));
    }
}

#endif

}  // namespace penstock
