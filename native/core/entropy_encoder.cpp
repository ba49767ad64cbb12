#include "entropy_encoder.h"

#include <string>

namespace penstock {
namespace {

void check_numbers(const std::vector<uint16_t> & values, size_t count, uint32_t size, const std::string & what) {
    if (values.size() != count) throw ArgumentError(what + " has " + std::to_string(values.size()) + " numbers, expected " + std::to_string(count));
    for (const uint16_t value : values) {
        if (value >= size) throw ArgumentError(what + " has the number " + std::to_string(value) + ", expected less than " + std::to_string(size));
    }
}

void check_group(const GroupSpec & spec, const GroupNumbers & group) {
    if (group.count > kMostGroupSplats) throw ArgumentError("too many splats in a group");
    if (group.codes.size() != group.count) throw ArgumentError("there must be one code for each splat");
    for (const uint64_t code : group.codes) {
        if (code >> 3 * spec.position.bits != 0) throw ArgumentError("a Morton code does not fit the lattice");
    }
    if (!spec.all_digits) check_numbers(group.kept, group.count, spec.digits.size, "the digits kept");
    if (group.channels.size() != spec.channels.size()) throw ArgumentError("there must be numbers for each channel");
    for (size_t c = 0; c < spec.channels.size(); ++c) {
        check_numbers(group.channels[c], group.count, spec.channels[c].size, "channel " + std::to_string(c));
    }
}

}  // namespace

std::vector<uint8_t> encode_group(const GroupSpec & spec, GroupModels & models, GroupNumbers & group) {
    check_group(spec, group);
    SymbolEncoder encoder;
    code_group(encoder, spec, models, group, [](size_t) {});
    return encoder.finish(group.count);
}

std::vector<double> group_bits(const GroupSpec & spec, GroupModels & models, GroupNumbers & group) {
    check_group(spec, group);
    BitCounter counter;
    std::vector<double> bits;
    code_group(counter, spec, models, group, [&](size_t) { bits.push_back(counter.take()); });
    return bits;
}

std::vector<uint8_t> encode_sheets(std::vector<Sheet> & sheets) {
    SymbolEncoder encoder;
    size_t total = 0;
    for (size_t k = 0; k < sheets.size(); ++k) {
        Sheet & sheet = sheets[k];
        check_sheet(sheet, k);
        check_numbers(sheet.values, sheet.rows * sheet.columns, sheet.spec.size, "sheet " + std::to_string(k));
        total += sheet.values.size();
        if (total > kMostSheetValues) throw ArgumentError("codebooks of more than 16777216 numbers");
        code_sheet(encoder, sheet);
    }
    return encoder.finish(total / 8);
}

double channel_bits(const ChannelSpec & spec, const Sequence & sequence, uint32_t reference_size) {
    check_spec(spec, spec.reference == kNoReference ? 0 : size_t{spec.reference} + 1, true);
    if (spec.uses_reference() && sequence.reference == nullptr) throw ArgumentError("the coding uses a reference, and none is given");
    for (size_t i = 0; i < sequence.count; ++i) {
        const int32_t neighbour = sequence.neighbour[i];
        if (neighbour < -1 || neighbour >= static_cast<int64_t>(i)) throw ArgumentError("a neighbour is not an earlier splat");
        if (sequence.values[i] >= spec.size) throw ArgumentError("a number is not below the channel's size");
        if (sequence.reference != nullptr && sequence.reference[i] >= reference_size) throw ArgumentError("a number of the reference is not below its size");
    }
    ChannelModels models(spec);
    std::vector<uint8_t> kinds(sequence.count);
    BitCounter counter;
    code_channel(counter, spec, models, sequence, kinds.data());
    return counter.total();
}

}  // namespace penstock
