#include "splat_group.h"

#include <string>

namespace penstock {

void check_spec(const GroupSpec & spec) {
    const PositionSpec & p = spec.position;
    if (p.bits < 1 || p.bits > kMostLatticeBits) throw ArgumentError("lattice bits must be 1 to 21, not " + std::to_string(p.bits));
    if (p.modelled_digits < 0 || p.modelled_digits > kMostLatticeBits) throw ArgumentError("modelled digits must be 0 to 21");
    if (p.slowest < 4 || p.slowest > 9) throw ArgumentError("the slowest rate of positions must be 4 to 9");
    if (!spec.all_digits) {
        check_spec(spec.digits, 0, false);
        if (spec.digits.size != static_cast<uint32_t>(p.bits)) throw ArgumentError("the digits kept must have the size of the lattice's bits");
        if (spec.digits.mode == Mode::fresh) throw ArgumentError("the digits kept cannot be coded as fresh numbers");
    }
    if (spec.channels.size() > 64) throw ArgumentError("more than 64 channels");
    for (size_t c = 0; c < spec.channels.size(); ++c) check_spec(spec.channels[c], c, !spec.all_digits);
}

GroupNumbers::GroupNumbers(const GroupSpec & spec, size_t splats)
    : count(splats), codes(splats), kept(spec.all_digits ? 0 : splats), channels(spec.channels.size()) {
    for (auto & channel : channels) channel.resize(splats);
}

std::vector<int32_t> splats_before(size_t count) {
    std::vector<int32_t> before(count);
    for (size_t i = 0; i < count; ++i) before[i] = static_cast<int32_t>(i) - 1;
    return before;
}

void check_sheet(const Sheet & sheet, size_t number) {
    if (sheet.rows < 1 || sheet.rows > 65536 || sheet.columns < 1 || sheet.columns > 256) {
        throw ArgumentError("sheet " + std::to_string(number) + " is " + std::to_string(sheet.rows) + " by " + std::to_string(sheet.columns) +
                            ", expected up to 65536 by 256");
    }
    check_spec(sheet.spec, 1, false);
    if (sheet.spec.mode == Mode::fresh) throw ArgumentError("sheet " + std::to_string(number) + " cannot be coded as fresh numbers");
}

SheetRoom::SheetRoom(const Sheet & sheet) : values(1), above(sheet.rows * sheet.columns), kinds(above.size()) {
    values[0] = static_cast<uint16_t>(sheet.spec.size / 2);
    values.insert(values.end(), sheet.values.begin(), sheet.values.end());
    values.resize(above.size() + 1);
    const auto columns = static_cast<int32_t>(sheet.columns);
    for (size_t i = 0; i < above.size(); ++i) above[i] = static_cast<int32_t>(i) < columns ? -1 : static_cast<int32_t>(i) - columns;
}

}  // namespace penstock
