#include "entry_columns.h"

#include <algorithm>

#include "error.h"

namespace penstock {
namespace {

// Some rows of n parts of one column each, which follow each other: a row's numbers are written together.
template <size_t n>
void write_columns(const EntryColumns * parts, float * to, size_t stride, size_t begin, size_t end) {
    const float * from[n];
    const uint16_t * index[n];
    for (size_t k = 0; k < n; ++k) {
        from[k] = parts[k].entries;
        index[k] = parts[k].index;
    }
    for (size_t i = begin; i < end; ++i) {
        float values[n];
        for (size_t k = 0; k < n; ++k) values[k] = from[k][index[k][i]];
        for (size_t k = 0; k < n; ++k) to[i * stride + k] = values[k];
    }
}

void write_part(const EntryColumns & part, float * to, size_t stride, size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
        const float * from = part.entries + part.index[i] * part.columns;
        for (size_t c = 0; c < part.columns; ++c) to[i * stride + c] = part.adds ? to[i * stride + c] + from[c] : from[c];
    }
}

// How many parts from the k-th on write_columns takes at once; 0: it is not for that one.
size_t together(const std::vector<EntryColumns> & parts, size_t k) {
    size_t found = 0;
    for (; found < 4 && k + found < parts.size(); ++found) {
        const EntryColumns & part = parts[k + found];
        if (part.columns != 1 || part.adds || part.first != parts[k].first + found) break;
    }
    return found;
}

}  // namespace

void gather_entries(const std::vector<EntryColumns> & parts, size_t count, float * out, size_t stride) {
    constexpr size_t kRows = 64;  // at a time, so that they stay in the cache from part to part
    for (const EntryColumns & part : parts) {
        uint16_t most = 0;  // without a branch for each
        for (size_t i = 0; i < count; ++i) most = std::max(most, part.index[i]);
        if (count != 0 && most >= part.rows) throw ArgumentError("an index is not below its codebook's size");
    }
    for (size_t begin = 0; begin < count; begin += kRows) {
        const size_t end = std::min(begin + kRows, count);
        for (size_t k = 0; k < parts.size();) {
            const EntryColumns * own = &parts[k];
            float * const to = out + own->first;
            const size_t found = together(parts, k);
            switch (found) {
                case 0: write_part(*own, to, stride, begin, end); break;
                case 1: write_columns<1>(own, to, stride, begin, end); break;
                case 2: write_columns<2>(own, to, stride, begin, end); break;
                case 3: write_columns<3>(own, to, stride, begin, end); break;
                default: write_columns<4>(own, to, stride, begin, end); break;
            }
            k += std::max<size_t>(found, 1);
        }
    }
}

}  // namespace penstock
