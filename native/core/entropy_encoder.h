// Numbers to payloads of a .psplat file, and what they would cost.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "splat_group.h"

namespace penstock {

// The payload of a group; `models` learns on. Throws ArgumentError: numbers that are not below their channel's size, arrays of
// other lengths, codes that do not ascend.
std::vector<uint8_t> encode_group(const GroupSpec & spec, GroupModels & models, GroupNumbers & group);

// Bits of the positions with the digits kept, then of each channel.
std::vector<double> group_bits(const GroupSpec & spec, GroupModels & models, GroupNumbers & group);

std::vector<uint8_t> encode_sheets(std::vector<Sheet> & sheets);

// Bits of one channel alone. Throws ArgumentError: neighbours that are not earlier, numbers out of range.
double channel_bits(const ChannelSpec & spec, const Sequence & sequence, uint32_t reference_size);

}  // namespace penstock
