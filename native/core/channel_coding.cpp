#include "channel_coding.h"

#include <string>

namespace penstock {
namespace {

std::vector<SymbolModel> models_below(size_t count, int bits) {
    return std::vector<SymbolModel>(bits > 0 ? count : 0, SymbolModel(1 << bits));
}

// For the bits under the leading one of a magnitude: up to three are modelled, by class.
std::vector<SymbolModel> magnitude_models() {
    std::vector<SymbolModel> models;
    for (int kind = 0; kind < 16; ++kind) models.emplace_back(1 << std::clamp(kind - 1, 0, 3));
    return models;
}

}  // namespace

void check_spec(const ChannelSpec & spec, size_t number, bool digits) {
    const auto refuse = [number](const std::string & what) {
        throw ArgumentError("the coding of channel " + std::to_string(number) + ": " + what);
    };
    if (spec.size < 1 || spec.size > 65536) refuse("size " + std::to_string(spec.size) + ", expected 1 to 65536");
    if (spec.mode > Mode::narrow) refuse("an unknown mode");
    if (spec.predictor > Predictor::reference) refuse("an unknown predictor");
    if (spec.buckets > 4 || spec.reference_buckets > 4) refuse("more than 4 bits of buckets");
    if (spec.slowest < 4 || spec.slowest > 9) refuse("a slowest rate that is not 4 to 9");
    if (spec.sparse && spec.mode != Mode::direct && spec.mode != Mode::narrow) refuse("sparse learning in a mode that has none");
    const bool refers = spec.reference != kNoReference;
    if (refers && spec.reference >= number && !(digits && spec.reference == kDigitsReference)) refuse("a reference to no earlier channel");
    if (spec.uses_reference() && !refers) refuse("it uses a reference, and has none");
    const int modelled = width_of(spec.size) - spec.raw;
    if (spec.mode == Mode::direct) {
        if (modelled < 0 || modelled > 12) refuse("from 0 to 12 bits can be modelled, not " + std::to_string(modelled));
    } else if (spec.mode == Mode::narrow) {
        if (spec.raw >= spec.size) refuse("its first number with a symbol is not below its size");
    } else if (spec.raw != 0 || spec.buckets != 0) {
        refuse("raw bits and buckets in a mode that has none");
    }
    if (spec.mode == Mode::fresh && (spec.uses_reference() || spec.predictor != Predictor::none)) refuse("fresh numbers are not predicted");
}

ChannelModels::ChannelModels(const ChannelSpec & spec) {
    if (spec.size == 1) return;
    switch (spec.mode) {
        case Mode::direct: {
            const int modelled = width_of(spec.size) - spec.raw;
            if (modelled > 0) top = Family(size_t{1} << (spec.buckets + spec.reference_buckets), 1 << std::min(modelled, 4));
            middle = models_below(16, std::clamp(modelled - 4, 0, 4));
            low = models_below(256, std::clamp(modelled - 8, 0, 4));
            break;
        }
        case Mode::narrow:
            top = Family(size_t{1} << (spec.buckets + spec.reference_buckets), 16);
            break;
        case Mode::residual:
            top = Family(size_t{16} << spec.reference_buckets, 16);
            middle = magnitude_models();
            break;
        case Mode::fresh:
            top = Family(4, 3);
            middle = magnitude_models();
            classes = Family(1, 16);
            break;
    }
}

}  // namespace penstock
