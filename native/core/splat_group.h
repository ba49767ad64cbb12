// A group of splats as whole numbers, and the one order in which they are coded: the digits kept of the codes, the codes, then
// channel after channel. docs/psplat-format.md, "Group payload".
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "channel_coding.h"
#include "position_coding.h"

namespace penstock {

constexpr size_t kMostGroupSplats = size_t{1} << 28;

struct GroupSpec {
    PositionSpec position;
    bool all_digits = true;  // are kept by every splat; else `digits` codes how many, minus 1
    ChannelSpec digits;
    std::vector<ChannelSpec> channels;
};

// Throws ArgumentError.
void check_spec(const GroupSpec & spec);

struct GroupModels {
    explicit GroupModels(const GroupSpec & spec) : digits(spec.digits) {
        for (const ChannelSpec & channel : spec.channels) channels.emplace_back(channel);
    }
    PositionModels position;
    ChannelModels digits;
    std::vector<ChannelModels> channels;
};

struct GroupNumbers {
    size_t count = 0;
    std::vector<uint64_t> codes;                  // Morton codes, ascending
    std::vector<uint16_t> kept;                   // digits kept minus 1; empty where all are
    std::vector<std::vector<uint16_t>> channels;

    // Zeros, for a decoder to fill.
    GroupNumbers(const GroupSpec & spec, size_t splats);
    GroupNumbers() = default;
};

// Of each splat the one before; what stands in for neighbours before positions are known.
std::vector<int32_t> splats_before(size_t count);

// `after(k)` is called once the positions are coded (k = 0), and after each channel (k = 1, 2, ...).
template <class Coder, class After>
void code_group(Coder & coder, const GroupSpec & spec, GroupModels & models, GroupNumbers & group, After && after) {
    std::vector<uint8_t> kinds(group.count);
    std::vector<int32_t> neighbour = splats_before(group.count);
    uint16_t * kept = spec.all_digits ? nullptr : group.kept.data();
    Sequence sequence;
    sequence.count = group.count;
    sequence.neighbour = neighbour.data();
    if (kept != nullptr) {
        sequence.values = kept;
        code_channel(coder, spec.digits, models.digits, sequence, kinds.data());
    }
    code_positions(coder, spec.position, models.position, group.count, kept, group.codes.data());
    after(size_t{0});
    find_neighbours(group.codes.data(), kept, spec.position.bits, group.count, neighbour.data());
    for (size_t c = 0; c < spec.channels.size(); ++c) {
        const uint8_t reference = spec.channels[c].reference;
        sequence.values = group.channels[c].data();
        sequence.reference = nullptr;
        sequence.reference_width = 0;
        if (reference == kDigitsReference) {
            sequence.reference = kept;
            sequence.reference_width = width_of(spec.digits.size);
        } else if (reference != kNoReference) {
            sequence.reference = group.channels[reference].data();
            sequence.reference_width = width_of(spec.channels[reference].size);
        }
        code_channel(coder, spec.channels[c], models.channels[c], sequence, kinds.data());
        after(c + 1);
    }
}

// ---------------------------------------------------------------- sheets: the numbers of codebooks

struct Sheet {
    size_t rows = 0, columns = 1;
    ChannelSpec spec;  // any mode but fresh; reference 0 is the value to the left
    std::vector<uint16_t> values;  // row by row
};

constexpr size_t kMostSheetValues = size_t{1} << 24;

// Throws ArgumentError.
void check_sheet(const Sheet & sheet, size_t number);

// A sheet's values behind the one that stands to the left of the first, and the value above each.
struct SheetRoom {
    explicit SheetRoom(const Sheet & sheet);
    std::vector<uint16_t> values;  // one more than the sheet's
    std::vector<int32_t> above;
    std::vector<uint8_t> kinds;
};

template <class Coder>
void code_sheet(Coder & coder, Sheet & sheet) {
    SheetRoom room(sheet);
    ChannelModels models(sheet.spec);
    Sequence sequence;
    sequence.count = sheet.rows * sheet.columns;
    sequence.neighbour = room.above.data();
    sequence.values = room.values.data() + 1;
    sequence.reference = room.values.data();
    sequence.reference_width = width_of(sheet.spec.size);
    code_channel(coder, sheet.spec, models, sequence, room.kinds.data());
    if constexpr (Coder::kDecodes) sheet.values.assign(room.values.begin() + 1, room.values.end());
}

}  // namespace penstock
