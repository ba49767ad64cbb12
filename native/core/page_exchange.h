// Pages of experts that leave the window become those of experts that come. They are moved in the page
// table: nothing is freed, zeroed or faulted in again, which costs several times as much.
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
    explicit PageExchange(size_t ranges);

    // The pages of a private range, page multiples, are for others to take. Its bytes are lost.
    void give(uint8_t * at, size_t bytes) noexcept;
    // Pages for a private range that has none; what was not given comes with the first write.
    // Throws StorageError.
    void take(uint8_t * at, size_t bytes);
    // What was given and not taken goes back to the system.
    void flush() noexcept;

    bool moves() const { return moves_; }
    uint64_t moved_bytes() const { return moved_bytes_; }

private:
    bool moves_;
    uint64_t moved_bytes_ = 0;
    std::map<size_t, std::vector<uint8_t *>> given_;  // bytes -> ranges; entries stay, so that nothing is allocated later
};

}  // namespace penstock
