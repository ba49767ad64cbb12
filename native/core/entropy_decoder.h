// Payloads of a .psplat file back to numbers. Nothing in a payload is believed: what is not such a code is a FormatError.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "splat_group.h"

namespace penstock {

// `models` learns on. Throws FormatError; ArgumentError where a payload has less than a byte a splat.
GroupNumbers decode_group(const GroupSpec & spec, GroupModels & models, const uint8_t * payload, size_t bytes, size_t count);

// Fills the sheets' values; at most 8 values a byte. Throws as above.
void decode_sheets(std::vector<Sheet> & sheets, const uint8_t * payload, size_t bytes);

}  // namespace penstock
