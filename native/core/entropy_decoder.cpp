#include "entropy_decoder.h"

#include <algorithm>
#include <cstring>
#include <string>

namespace penstock {
namespace {

uint32_t load_state(const uint8_t * p) {
    return p[0] | static_cast<uint32_t>(p[1]) << 8 | static_cast<uint32_t>(p[2]) << 16 | static_cast<uint32_t>(p[3]) << 24;
}

}  // namespace

CodeReader::CodeReader(const uint8_t * data, size_t bytes) : data_(data), bytes_(bytes) {
    if (bytes < kStateBytes || bytes % 2 != 0) throw FormatError("a payload of " + std::to_string(bytes) + " bytes; expected 16 or more, and an even number");
    for (size_t k = 0; k < kStates; ++k) {
        states_[k] = load_state(data + 4 * k);
        if (states_[k] < kLeastState) fail(data + 4 * k, "a state is below 65536");
    }
}

CodeReader::Words CodeReader::more(const uint8_t * next) {
    if (at_end_) fail(next, "the code ends early");
    const size_t at = offset(next);
    if (bytes_ - at > kMostRead) return {next, data_ + bytes_ - kMostRead};
    copied_ = bytes_ - at;
    std::memcpy(end_, next, copied_);
    at_end_ = true;
    return {end_, end_ + copied_};
}

void CodeReader::finish(const uint8_t * next) const {
    for (size_t i = offset(next); i < bytes_; ++i) {
        if (data_[i] != 0) fail(next, "there is something after the code's end");
    }
}

size_t CodeReader::offset(const uint8_t * next) const {
    return at_end_ ? bytes_ - copied_ + static_cast<size_t>(next - end_) : static_cast<size_t>(next - data_);
}

void CodeReader::fail(const uint8_t * next, const char * what) const {
    throw FormatError("at byte " + std::to_string(std::min(offset(next), bytes_)) + " of the payload: " + what);
}

GroupNumbers decode_group(const GroupSpec & spec, GroupModels & models, const uint8_t * payload, size_t bytes, size_t count) {
    if (count > bytes || count > kMostGroupSplats) {
        throw ArgumentError(std::to_string(count) + " splats in " + std::to_string(bytes) + " bytes: a payload has at least a byte for each");
    }
    CodeReader reader(payload, bytes);
    SymbolDecoder decoder(reader);
    GroupNumbers group(spec, count);
    code_group(decoder, spec, models, group, [](size_t) {});
    decoder.finish();
    return group;
}

void decode_sheets(std::vector<Sheet> & sheets, const uint8_t * payload, size_t bytes) {
    size_t total = 0;
    for (size_t k = 0; k < sheets.size(); ++k) {
        check_sheet(sheets[k], k);
        total += sheets[k].rows * sheets[k].columns;
    }
    if (total / 8 > bytes || total > kMostSheetValues) {
        throw ArgumentError(std::to_string(total) + " numbers in " + std::to_string(bytes) + " bytes: a section has at most 8 a byte");
    }
    CodeReader reader(payload, bytes);
    SymbolDecoder decoder(reader);
    for (Sheet & sheet : sheets) {
        sheet.values.clear();
        code_sheet(decoder, sheet);
    }
    decoder.finish();
}

}  // namespace penstock
