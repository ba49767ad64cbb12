#include "page_exchange.h"

#include <algorithm>

#include "address_space.h"
#include "aligned_buffer.h"

namespace penstock {
namespace {

constexpr size_t kOthers = 8192;  // mappings left for the rest of the process

}  // namespace

// A range, and the pages behind it that two experts share.
PageExchange::PageExchange(size_t ranges, size_t bytes)
    : moves_(2 * ranges + kOthers < address_space::most_mappings()) {
    if (!moves_) return;
    reserve_ = address_space::reserve_huge(bytes);
    if (reserve_ != nullptr) reserve_bytes_ = bytes;
}

PageExchange::~PageExchange() {
    if (reserve_ != nullptr) address_space::unmap(reserve_, reserve_bytes_);
}

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
    if (found != given_.end()) {  // it may have kept its own
        const auto own = std::find(found->second.begin(), found->second.end(), at);
        if (own != found->second.end()) {
            found->second.erase(own);
            return;
        }
    }
    if (found == given_.end() || found->second.empty()) {  // of another size: the largest
        found = std::find_if(given_.rbegin(), given_.rend(), [](const auto & g) { return !g.second.empty(); }).base();
        if (found == given_.begin()) {
            if (uint8_t * from = fresh(bytes)) move(from, at, bytes);
            return;
        }
        --found;
    }
    uint8_t * from = found->second.back();
    found->second.pop_back();
    const size_t moved = std::min(bytes, found->first);
    if (found->first > moved) address_space::discard(from + moved, found->first - moved);
    move(from, at, moved);
}

// Where there are too many mappings after all, pages come and go one by one from now on.
void PageExchange::move(uint8_t * from, uint8_t * to, size_t bytes) {
    if (address_space::move_pages(from, to, bytes)) {
        moved_bytes_ += bytes;
        return;
    }
    moves_ = false;
    address_space::discard(from, bytes);
    for (auto & [size, ranges] : given_) {
        for (uint8_t * at : ranges) address_space::discard(at, size);
        ranges.clear();
    }
    address_space::map_anonymous(to, bytes, false);  // it may have been unmapped
}

// The next piece of the reserve, its huge pages there; nullptr where it is used up.
uint8_t * PageExchange::fresh(size_t bytes) noexcept {
    if (reserve_bytes_ - reserved_ < bytes) return nullptr;
    uint8_t * at = reserve_ + reserved_;
    reserved_ += bytes;
    for (; touched_ < reserved_; touched_ += kHugePage) reserve_[touched_] = 0;
    return at;
}

}  // namespace penstock
