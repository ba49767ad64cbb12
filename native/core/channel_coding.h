// How one number of every splat (a channel) is coded: docs/psplat-format.md, "Channel coding". Each coding is written once, for
// a coder that decodes, encodes or counts (symbol_coder.h).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "symbol_coder.h"

namespace penstock {

enum class Mode : uint8_t { direct = 0, residual = 1, fresh = 2, narrow = 3 };
enum class Predictor : uint8_t { none = 0, nearest = 1, mean_of_two = 2, mean_of_four = 3, slope = 4, reference = 5 };

constexpr uint8_t kNoReference = 255, kDigitsReference = 254;

struct ChannelSpec {
    uint32_t size = 1;  // numbers are below it; 1 to 65,536
    Mode mode = Mode::direct;
    uint8_t raw = 0;                    // lowest bits that are not modelled (direct); the first number with a symbol (narrow)
    Predictor predictor = Predictor::none;
    uint8_t reference = kNoReference;   // an earlier channel
    uint8_t buckets = 0;                // bits of the prediction in the context (direct, narrow)
    uint8_t reference_buckets = 0;      // bits of the reference in the context
    uint8_t slowest = 7;                // the models' slowest rate
    bool sparse = false;                // models that have reached it learn from every fourth number only

    bool uses_reference() const {
        return predictor == Predictor::slope || predictor == Predictor::reference || reference_buckets > 0;
    }
};

// Bits of the numbers below size, 0 to 16.
inline int width_of(uint32_t size) { return size <= 1 ? 0 : 32 - __builtin_clz(size - 1); }

// Throws ArgumentError. `number`: of the channel, for the message; earlier ones may be referred to.
void check_spec(const ChannelSpec & spec, size_t number, bool digits);

// What a family of models (a model for each context) of a coding has learned.
struct Family {
    Family() = default;
    Family(size_t contexts, int symbols) : base(symbols), members(contexts, SymbolModel(symbols)) {}
    SymbolModel base;
    std::vector<SymbolModel> members;
};

// A symbol by a member of a family whose base is given. `settled`: symbols after which it learns from those only that teach.
template <class Coder>
[[gnu::always_inline]] inline unsigned code_by_member(Coder & coder, SymbolModel & model, SymbolModel & base, unsigned value, int slowest,
                                                      bool teaches = true, unsigned settled = 0) {
    constexpr unsigned kLearning = 24;  // symbols of a member that the base learns from
    const unsigned seen = model.seen();
    if (!teaches && seen >= settled) return coder.symbol(model, value, slowest, false);
    if (seen == 0) model.take_shares(base);
    const unsigned symbol = coder.symbol(model, value, slowest);
    if (seen < kLearning) base.update(symbol, slowest);
    return symbol;
}

template <class Coder>
[[gnu::always_inline]] inline unsigned code_in_context(Coder & coder, Family & family, size_t context, unsigned value, int slowest) {
    return code_by_member(coder, family.members[context], family.base, value, slowest);
}

struct ChannelModels {
    explicit ChannelModels(const ChannelSpec & spec);

    Family top;                       // direct: the highest bits; residual: classes; fresh: kinds; narrow: numbers
    std::vector<SymbolModel> middle;  // direct: the next bits; else the bits of a magnitude, by class
    std::vector<SymbolModel> low;     // direct: the bits after those
    Family classes;                   // fresh: of the distance
    uint32_t known = 0;               // fresh: how many numbers have appeared
};

// A channel's numbers and what they are predicted from.
struct Sequence {
    size_t count = 0;
    const int32_t * neighbour = nullptr;   // of each, an earlier one, or -1
    uint16_t * values = nullptr;           // an encoder reads them, a decoder writes them
    const uint16_t * reference = nullptr;  // or null
    int reference_width = 0;
};

// ---------------------------------------------------------------- prediction

template <Predictor kind>
inline int32_t predict(const ChannelSpec & spec, int width, const Sequence & s, size_t i) {
    const auto size = static_cast<int32_t>(spec.size);
    if constexpr (kind == Predictor::reference) {
        const int shift = s.reference_width - width;
        const int32_t r = s.reference[i];
        return std::min(shift >= 0 ? r >> shift : r << -shift, size - 1);
    }
    if constexpr (kind == Predictor::none) return size / 2;
    const int32_t p = s.neighbour[i];
    if (p < 0) return size / 2;
    const auto before = [&s](int32_t k) { return s.neighbour[k] < 0 ? k : s.neighbour[k]; };
    if constexpr (kind == Predictor::nearest) return s.values[p];
    if constexpr (kind == Predictor::mean_of_two) return (s.values[p] + s.values[before(p)] + 1) / 2;
    if constexpr (kind == Predictor::mean_of_four) {
        const int32_t second = before(p), third = before(second);
        return (s.values[p] + s.values[second] + s.values[third] + s.values[before(third)] + 2) / 4;
    }
    return std::clamp(s.values[p] + s.reference[i] - s.reference[p], 0, size - 1);  // slope
}

inline size_t reference_bucket(const ChannelSpec & spec, const Sequence & s, size_t i) {
    if (spec.reference_buckets == 0) return 0;
    return static_cast<size_t>(s.reference[i] >> std::max(0, s.reference_width - spec.reference_buckets));
}

// What a direct or narrow number's first symbol depends on.
template <Predictor kind>
inline size_t context_of(const ChannelSpec & spec, int width, const Sequence & s, size_t i) {
    size_t context = 0;
    if constexpr (kind != Predictor::none) context = static_cast<size_t>(predict<kind>(spec, width, s, i) >> std::max(0, width - spec.buckets));
    else if (spec.buckets != 0) context = spec.size / 2 >> std::max(0, width - spec.buckets);
    return context << spec.reference_buckets | reference_bucket(spec, s, i);
}

// ---------------------------------------------------------------- magnitudes

inline unsigned class_of(uint32_t magnitude) {
    return magnitude == 0 ? 0 : std::min(32 - __builtin_clz(magnitude), 15);
}

// A number below 65,536 of which small ones are common. `kind` becomes its class.
template <class Coder>
[[gnu::always_inline]] inline uint32_t code_magnitude(Coder & coder, Family & classes, size_t context, std::vector<SymbolModel> & below, uint32_t value,
                        int slowest, unsigned & kind) {
    kind = code_in_context(coder, classes, context, class_of(value), slowest);
    if (kind == 15) {
        const uint32_t whole = coder.bits(16, value);
        if (class_of(whole) != 15) coder.fail("a magnitude is too small for its class");
        return whole;
    }
    if (kind < 2) return kind;
    const int bits = static_cast<int>(kind) - 1, modelled = std::min(bits, 3), raw = bits - modelled;
    const uint32_t leading = coder.symbol(below[kind], (value >> raw) & ((1u << modelled) - 1), slowest);
    if (leading >> modelled != 0) coder.fail("a symbol is too large for its model");
    uint32_t magnitude = 1u << modelled | leading;
    if (raw > 0) magnitude = magnitude << raw | coder.bits(raw, value & ((1u << raw) - 1));
    return magnitude;
}

// ---------------------------------------------------------------- the modes

// Codes one number after the other: number(i, teaches). Four at a time, so that a decoder's states each stay in a register where
// all numbers are as many symbols.
template <class Coder, class Number>
[[gnu::always_inline]] inline void code_numbers(Coder & coder, size_t count, const Number & number) {
    constexpr size_t kMostWords = 4;  // of a number: three symbols and raw bits
    static_assert(4 * kMostWords * sizeof(uint16_t) <= CodeReader::kMostRead);
    size_t i = 0;
    if constexpr (Coder::kDecodes) {
        for (; i + 4 <= count; i += 4) {
            coder.ready();
            number(i, true);
            number(i + 1, false);
            number(i + 2, false);
            number(i + 3, false);
        }
    }
    coder.ready();
    for (; i < count; ++i) number(i, i % 4 == 0);
}

// Symbols after which a model of a direct or narrow channel learns from every fourth number only.
inline unsigned settled_after(const ChannelSpec & spec) { return spec.sparse ? (1u << spec.slowest) - 8 : ~0u; }

// `parts`: how many symbols a number has. What is constant is copied, so that it stays in registers.
template <Predictor kind, int parts, class Coder>
void code_direct(Coder & outer, const ChannelSpec & given, ChannelModels & models, const Sequence & sequence) {
    const ChannelSpec spec = given;
    const Sequence s = sequence;
    const int width = width_of(spec.size), modelled = width - spec.raw, slowest = spec.slowest, raw = spec.raw;
    const unsigned settled = settled_after(spec);
    const int top = parts > 1 ? 4 : modelled, middle = parts > 2 ? 4 : modelled - 4, low = modelled - 8;
    SymbolModel * const contexts = models.top.members.data();
    SymbolModel * const by_top = models.middle.data();
    SymbolModel * const by_middle = models.low.data();
    Coder coder = std::move(outer);
    code_numbers(coder, s.count, [&](size_t i, bool teaches) __attribute__((always_inline)) {
        const uint32_t value = Coder::kDecodes ? 0 : s.values[i];
        uint32_t coded = 0;
        [[maybe_unused]] const auto next = [&](SymbolModel & model, int shift, int bits) __attribute__((always_inline)) {
            const uint32_t symbol = coder.symbol(model, (value >> shift) & ((1u << bits) - 1), slowest, teaches || model.seen() < settled);
            if (symbol >> bits != 0) coder.fail("a number is too large for its channel");
            coded = coded << bits | symbol;
        };
        if constexpr (parts == 0) coder.turn();
        if constexpr (parts > 0) {
            SymbolModel & model = contexts[context_of<kind>(spec, width, s, i)];
            coded = code_by_member(coder, model, models.top.base, (value >> (width - top)) & ((1u << top) - 1), slowest, teaches, settled);
            if (coded >> top != 0) coder.fail("a number is too large for its channel");
        }
        if constexpr (parts > 1) next(by_top[coded], width - 4 - middle, middle);
        if constexpr (parts > 2) next(by_middle[coded], raw, low);
        if (raw > 0) coded = coded << raw | coder.bits(raw, value & ((1u << raw) - 1));
        if constexpr (Coder::kDecodes) {
            if (coded >= spec.size) coder.fail("a number is too large for its channel");
            s.values[i] = static_cast<uint16_t>(coded);
        }
    });
    outer = std::move(coder);
}

// One symbol, where direct numbers of 17 or more take two.
template <Predictor kind, class Coder>
void code_narrow(Coder & outer, const ChannelSpec & given, ChannelModels & models, const Sequence & sequence) {
    constexpr uint32_t kOther = 15;
    const ChannelSpec spec = given;
    const Sequence s = sequence;
    const int width = width_of(spec.size), slowest = spec.slowest;
    const unsigned settled = settled_after(spec);
    const uint32_t first = spec.raw;
    const uint32_t common = std::min(kOther, spec.size - first);  // symbols below need no second look
    SymbolModel * const contexts = models.top.members.data();
    Coder coder = std::move(outer);
    code_numbers(coder, s.count, [&](size_t i, bool teaches) __attribute__((always_inline)) {
        const uint32_t value = Coder::kDecodes ? 0 : s.values[i];
        SymbolModel & model = contexts[context_of<kind>(spec, width, s, i)];
        const uint32_t symbol = code_by_member(coder, model, models.top.base, std::min(value - first, kOther), slowest, teaches, settled);
        uint32_t coded = first + symbol;
        if (symbol >= common) [[unlikely]] {
            if (symbol == kOther) coded = coder.bits(width, value);
            if (coded >= spec.size) coder.fail("a number is too large for its channel");
        }
        if constexpr (Coder::kDecodes) s.values[i] = static_cast<uint16_t>(coded);
    });
    outer = std::move(coder);
}

template <Predictor kind, class Coder>
void code_residual(Coder & outer, const ChannelSpec & given, ChannelModels & models, const Sequence & sequence, uint8_t * kinds) {
    const ChannelSpec spec = given;
    const Sequence s = sequence;
    const int width = width_of(spec.size);
    const auto size = static_cast<int32_t>(spec.size), half = size / 2;
    Coder coder = std::move(outer);
    for (size_t i = 0; i < s.count; ++i) {
        coder.ready();
        const int32_t p = s.neighbour[i], prediction = predict<kind>(spec, width, s, i);
        size_t context = p < 0 ? 0 : kinds[p];
        context = context << spec.reference_buckets | reference_bucket(spec, s, i);
        uint32_t magnitude = 0;
        if constexpr (!Coder::kDecodes) {
            int32_t e = s.values[i] - prediction;
            if (e > size - 1 - half) e -= size;
            else if (e < -half) e += size;
            magnitude = static_cast<uint32_t>(e < 0 ? -2 * e - 1 : 2 * e);
        }
        unsigned level = 0;
        magnitude = code_magnitude(coder, models.top, context, models.middle, magnitude, spec.slowest, level);
        kinds[i] = static_cast<uint8_t>(level);
        if constexpr (Coder::kDecodes) {
            const auto back = static_cast<int32_t>(magnitude >> 1);
            const int32_t e = magnitude % 2 != 0 ? -back - 1 : back;
            if (e < -half || e > size - 1 - half) coder.fail("a difference is too large for its channel");
            int32_t value = prediction + e;
            if (value < 0) value += size;
            else if (value >= size) value -= size;
            s.values[i] = static_cast<uint16_t>(value);
        }
    }
    outer = std::move(coder);
}

template <class Coder>
void code_fresh(Coder & coder, const ChannelSpec & spec, ChannelModels & models, const Sequence & s, uint8_t * kinds) {
    constexpr unsigned kNew = 0, kSame = 1, kOld = 2;
    uint32_t & known = models.known;
    for (size_t i = 0; i < s.count; ++i) {
        coder.ready();
        const int32_t p = s.neighbour[i];
        uint32_t value = Coder::kDecodes ? 0 : s.values[i];
        unsigned kind = kOld;
        if constexpr (!Coder::kDecodes) {
            if (value > known) coder.fail("numbers are not in the order of their first appearance");
            kind = value == known ? kNew : p >= 0 && s.values[p] == value ? kSame : kOld;
        }
        kind = code_in_context(coder, models.top, p < 0 ? 0 : 1 + kinds[p], kind, spec.slowest);
        if (kind == kNew) {
            value = known;
        } else if (kind == kSame && p >= 0) {
            value = s.values[p];
        } else if (kind == kOld && known > 0) {
            unsigned distance_class = 0;
            const uint32_t distance =
                code_magnitude(coder, models.classes, 0, models.middle, known - 1 - value, spec.slowest, distance_class);
            if (distance >= known) coder.fail("a number refers to one that has not appeared");
            value = known - 1 - distance;
        } else {
            coder.fail("a number refers to one that has not appeared");
        }
        if (value == known) ++known;
        if (value >= spec.size) coder.fail("a number is too large for its channel");
        kinds[i] = static_cast<uint8_t>(kind);
        if constexpr (Coder::kDecodes) s.values[i] = static_cast<uint16_t>(value);
    }
}

// Code all numbers of a channel. `kinds`: room for s.count bytes, of any content.
template <class Coder>
void code_channel(Coder & coder, const ChannelSpec & spec, ChannelModels & models, const Sequence & s, uint8_t * kinds) {
    if (spec.size == 1) {  // nothing to tell; a decoder's numbers are zeros from the start
        return;
    }
    if (spec.mode == Mode::fresh) return code_fresh(coder, spec, models, s, kinds);
    const auto predicted = [&]<Predictor kind>() {
        if (spec.mode == Mode::residual) return code_residual<kind>(coder, spec, models, s, kinds);
        if (spec.mode == Mode::narrow) return code_narrow<kind>(coder, spec, models, s);
        switch ((width_of(spec.size) - spec.raw + 3) / 4) {
            case 0: return code_direct<kind, 0>(coder, spec, models, s);
            case 1: return code_direct<kind, 1>(coder, spec, models, s);
            case 2: return code_direct<kind, 2>(coder, spec, models, s);
            default: return code_direct<kind, 3>(coder, spec, models, s);
        }
    };
    const bool unused = spec.mode != Mode::residual && spec.buckets == 0;
    switch (unused ? Predictor::none : spec.predictor) {
        case Predictor::none: return predicted.template operator()<Predictor::none>();
        case Predictor::nearest: return predicted.template operator()<Predictor::nearest>();
        case Predictor::mean_of_two: return predicted.template operator()<Predictor::mean_of_two>();
        case Predictor::mean_of_four: return predicted.template operator()<Predictor::mean_of_four>();
        case Predictor::slope: return predicted.template operator()<Predictor::slope>();
        case Predictor::reference: return predicted.template operator()<Predictor::reference>();
    }
}

}  // namespace penstock
