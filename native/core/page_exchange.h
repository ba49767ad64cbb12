// Pages of experts that leave the window become those of experts that come. They are moved in the page
// table: nothing is freed, zeroed or faulted in again, which costs several times as much.
//
// The first pages come from huge ones, of which a piece is moved to wherever an expert lies. What is
// contiguous stays so when it moves on, and a device reads into a few segments what would be hundreds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

namespace penstock {

class PageExchange {
public:
    // ranges: how many ranges pages may be moved between. Each can become a mapping of its own, of which a
    // process may have only so many; where that is too few, pages are freed and faulted in instead.
    // bytes: pages that will be in use at most.
    PageExchange(size_t ranges, size_t bytes);
    ~PageExchange();
    PageExchange(const PageExchange &) = delete;
    PageExchange & operator=(const PageExchange &) = delete;

    // The pages of a private range, page multiples, are for others to take. Its bytes are lost.
    void give(uint8_t * at, size_t bytes) noexcept;
    // Pages for a private range that has none: those of the last range that was given, or new ones.
    // Throws StorageError.
    void take(uint8_t * at, size_t bytes);
    bool moves() const { return moves_; }
    uint64_t moved_bytes() const { return moved_bytes_; }

private:
    void move(uint8_t * from, uint8_t * to, size_t bytes);
    uint8_t * fresh(size_t bytes) noexcept;

    bool moves_;
    uint8_t * reserve_ = nullptr;  // addresses of huge pages, whose front has been moved away
    size_t reserve_bytes_ = 0, reserved_ = 0, touched_ = 0;
    uint64_t moved_bytes_ = 0;
    std::map<size_t, std::vector<uint8_t *>> given_;  // bytes -> ranges; entries stay, so that nothing is allocated later
};

}  // namespace penstock
