#include "page_exchange.h"

#include <algorithm>

#include "address_space.h"

namespace penstock {
namespace {

constexpr size_t kOthers = 8192;  // mappings left for the rest of the process

}  // namespace

// A range and the pages behind it, which two experts share.
PageExchange::PageExchange(size_t ranges) : moves_(2 * ranges + kOthers < address_space::most_mappings()) {}

void PageExchange::give(uint8_t * at, size_t bytes) noexcept {
    if (bytes == 0) return;
    if (moves_) {
        try {
            given_[bytes].push_back(at);
            return;
        } catch (const std::exception &) {  // no memory for the list
        }
    }
    address_space::discard(at, bytes);
}

void PageExchange::take(uint8_t * at, size_t bytes) {
    if (bytes == 0 || !moves_) return;
    auto found = given_.find(bytes);
    if (found == given_.end() || found->second.empty()) {  // of another size: the largest
        found = std::find_if(given_.rbegin(), given_.rend(), [](const auto & g) { return !g.second.empty(); }).base();
        if (found == given_.begin()) return;
        --found;
    }
    uint8_t * from = found->second.back();
    found->second.pop_back();
    const size_t moved = std::min(bytes, found->first);
    if (found->first > moved) address_space::discard(from + moved, found->first - moved);
    if (address_space::move_pages(from, at, moved)) {
        moved_bytes_ += moved;
        return;
    }
    moves_ = false;  // too many mappings after all
    address_space::discard(from, moved);
    address_space::map_anonymous(at, moved, false);  // it may have been unmapped
    flush();
}

void PageExchange::flush() noexcept {
    for (auto & [bytes, ranges] : given_) {
        for (uint8_t * at : ranges) address_space::discard(at, bytes);
        ranges.clear();
    }
}

}  // namespace penstock
