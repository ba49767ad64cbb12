// From indices to numbers: columns of a table filled with the entries of codebooks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace penstock {

// For every row an entry of a codebook, whose columns go to those from `first` on or are added to what is there.
struct EntryColumns {
    const float * entries;  // rows by columns
    size_t rows, columns;
    const uint16_t * index;  // of each row of the table
    size_t first;
    bool adds;
};

// Fills a table of `count` rows, each `stride` numbers after the one before. Throws ArgumentError: an index is not below its
// codebook's rows.
void gather_entries(const std::vector<EntryColumns> & parts, size_t count, float * out, size_t stride);

}  // namespace penstock
