#include "entropy_decoder.h"

#include <string>

namespace penstock {

GroupNumbers decode_group(const GroupSpec & spec, GroupModels & models, const uint8_t * payload, size_t bytes, size_t count) {
    if (count > bytes || count > kMostGroupSplats) {
        throw ArgumentError(std::to_string(count) + " splats in " + std::to_string(bytes) + " bytes: a payload has at least a byte for each");
    }
    SymbolDecoder decoder(payload, bytes);
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
    SymbolDecoder decoder(payload, bytes);
    for (Sheet & sheet : sheets) {
        sheet.values.clear();
        code_sheet(decoder, sheet);
    }
    decoder.finish();
}

}  // namespace penstock
