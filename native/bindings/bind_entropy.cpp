// Entropy coding of .psplat files for Python. Arrays are copied in and out; computing releases the interpreter's lock.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "aligned.h"
#include "entropy_decoder.h"
#include "entropy_encoder.h"
#include "entry_columns.h"
#include "error.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace penstock;

namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Numbers = nb::ndarray<const uint16_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Cells = nb::ndarray<const uint32_t, nb::shape<-1, 3>, nb::c_contig, nb::device::cpu>;
using Neighbours = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Entries = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Columns = nb::ndarray<float, nb::ndim<2>, nb::device::cpu>;
// (channels, 9): size, mode, raw, predictor, reference, buckets, reference buckets, slowest, sparse.
constexpr size_t kSpecFields = 9;
using Specs = nb::ndarray<const uint32_t, nb::shape<-1, kSpecFields>, nb::c_contig, nb::device::cpu>;

// What is returned; whole types, so that the stub has them.
template <class T>
using Made = nb::ndarray<nb::numpy, T, nb::ndim<1>>;
template <class T>
using MadeRows = nb::ndarray<nb::numpy, T, nb::shape<-1, 3>>;
using MadeNumbers = std::vector<Made<uint16_t>>;

template <class T>
Made<T> array_of(std::vector<T> && values) {
    values.reserve(1);  // so that even no numbers have an address
    auto * kept = new std::vector<T>(std::move(values));
    nb::capsule owner(kept, [](void * p) noexcept { delete static_cast<std::vector<T> *>(p); });
    return Made<T>(kept->data(), {kept->size()}, owner);
}

template <class T>
MadeRows<T> rows_of(std::vector<T> && values) {
    values.reserve(1);  // so that even no numbers have an address
    auto * kept = new std::vector<T>(std::move(values));
    nb::capsule owner(kept, [](void * p) noexcept { delete static_cast<std::vector<T> *>(p); });
    return MadeRows<T>(kept->data(), {kept->size() / 3, 3}, owner);
}

uint8_t byte_of(uint32_t number) {
    if (number > 255) throw ArgumentError("a field of a channel's coding is over 255");
    return static_cast<uint8_t>(number);
}

ChannelSpec spec_of(const uint32_t * row) {
    ChannelSpec spec;
    spec.size = row[0];
    spec.mode = static_cast<Mode>(byte_of(row[1]));
    spec.raw = byte_of(row[2]);
    spec.predictor = static_cast<Predictor>(byte_of(row[3]));
    spec.reference = byte_of(row[4]);
    spec.buckets = byte_of(row[5]);
    spec.reference_buckets = byte_of(row[6]);
    spec.slowest = byte_of(row[7]);
    if (row[8] > 1) throw ArgumentError("a channel's coding has " + std::to_string(row[8]) + " for sparse, expected 0 or 1");
    spec.sparse = row[8] == 1;
    return spec;
}

// How the groups of one file are coded, and what its first group has taught.
class SplatCoder {
public:
    SplatCoder(int bits, int modelled_digits, int slowest, std::optional<std::vector<uint32_t>> digits, const Specs & channels) {
        spec_.position.bits = bits;
        spec_.position.modelled_digits = modelled_digits;
        spec_.position.slowest = slowest;
        spec_.all_digits = !digits.has_value();
        if (digits.has_value()) {
            if (digits->size() != kSpecFields) throw ArgumentError("a channel's coding has nine fields");
            spec_.digits = spec_of(digits->data());
        }
        const uint32_t * rows = aligned(channels, "channels");
        for (size_t c = 0; c < channels.shape(0); ++c) spec_.channels.push_back(spec_of(rows + kSpecFields * c));
        check_spec(spec_);
    }

    std::tuple<MadeRows<uint32_t>, Made<uint8_t>, MadeNumbers> decode(const Bytes & payload, size_t count, bool primed, bool learn) {
        GroupNumbers group;
        std::vector<uint32_t> cells;
        std::vector<uint8_t> kept;
        {
            nb::gil_scoped_release released;
            GroupModels models = start(primed);
            group = decode_group(spec_, models, payload.data(), payload.size(), count);
            if (learn) keep(std::move(models));
            cells = cells_of(group.codes);
            kept.reserve(group.kept.size());
            for (const uint16_t k : group.kept) kept.push_back(static_cast<uint8_t>(k + 1));
        }
        MadeNumbers channels;
        for (auto & channel : group.channels) channels.push_back(array_of(std::move(channel)));
        return {rows_of(std::move(cells)), array_of(std::move(kept)), std::move(channels)};
    }

    nb::bytes encode(const Cells & cells, const Bytes & digits, const std::vector<Numbers> & channels, bool primed, bool learn) {
        GroupNumbers group = numbers(cells, digits, channels);
        std::vector<uint8_t> payload;
        {
            nb::gil_scoped_release released;
            GroupModels models = start(primed);
            payload = encode_group(spec_, models, group);
            if (learn) keep(std::move(models));
        }
        return nb::bytes(payload.data(), payload.size());
    }

    std::vector<double> bits(const Cells & cells, const Bytes & digits, const std::vector<Numbers> & channels, bool primed) {
        GroupNumbers group = numbers(cells, digits, channels);
        nb::gil_scoped_release released;
        GroupModels models = start(primed);
        return group_bits(spec_, models, group);
    }

private:
    GroupNumbers numbers(const Cells & cells, const Bytes & digits, const std::vector<Numbers> & channels) const {
        GroupNumbers group;
        group.count = cells.shape(0);
        const uint32_t * cell = aligned(cells, "cells");
        for (size_t i = 0; i < group.count; ++i, cell += 3) {
            for (int axis = 0; axis < 3; ++axis) {
                if (cell[axis] >> kMostLatticeBits != 0) throw ArgumentError("a cell does not fit 21 bits");
            }
            group.codes.push_back(morton_code(cell[0], cell[1], cell[2]));
        }
        if (spec_.all_digits != (digits.size() == 0) && group.count != 0) throw ArgumentError("digits kept are given where all are, or are missing");
        for (size_t i = 0; i < digits.size(); ++i) {
            if (digits.data()[i] == 0) throw ArgumentError("no digit of a splat is kept; expected 1 or more");
            group.kept.push_back(static_cast<uint16_t>(digits.data()[i] - 1));
        }
        for (const Numbers & channel : channels) {
            const uint16_t * values = aligned(channel, "a channel");
            group.channels.emplace_back(values, values + channel.size());
        }
        return group;
    }

    GroupModels start(bool primed) {
        if (!primed) return GroupModels(spec_);
        const std::lock_guard<std::mutex> held(mutex_);
        if (!learned_.has_value()) throw ArgumentError("a primed group before the first one");
        return *learned_;
    }

    void keep(GroupModels && models) {
        const std::lock_guard<std::mutex> held(mutex_);
        learned_ = std::move(models);
    }

    GroupSpec spec_;
    std::mutex mutex_;
    std::optional<GroupModels> learned_;
};

MadeNumbers decode_sheet_list(const Bytes & payload, const std::vector<std::pair<size_t, size_t>> & shapes, const Specs & specs) {
    if (shapes.size() != specs.shape(0)) throw ArgumentError("there must be a coding for each sheet");
    std::vector<Sheet> sheets(shapes.size());
    const uint32_t * rows = aligned(specs, "specs");
    for (size_t k = 0; k < sheets.size(); ++k) {
        sheets[k].rows = shapes[k].first;
        sheets[k].columns = shapes[k].second;
        sheets[k].spec = spec_of(rows + kSpecFields * k);
    }
    {
        nb::gil_scoped_release released;
        decode_sheets(sheets, payload.data(), payload.size());
    }
    MadeNumbers out;
    for (Sheet & sheet : sheets) out.push_back(array_of(std::move(sheet.values)));
    return out;
}

nb::bytes encode_sheet_list(const std::vector<Numbers> & values, const std::vector<size_t> & columns, const Specs & specs) {
    if (values.size() != specs.shape(0) || columns.size() != values.size()) throw ArgumentError("there must be a coding and columns for each sheet");
    std::vector<Sheet> sheets(values.size());
    const uint32_t * rows = aligned(specs, "specs");
    for (size_t k = 0; k < sheets.size(); ++k) {
        if (columns[k] == 0 || values[k].size() % columns[k] != 0) throw ArgumentError("a sheet's numbers are not whole rows");
        sheets[k].rows = values[k].size() / columns[k];
        sheets[k].columns = columns[k];
        sheets[k].spec = spec_of(rows + kSpecFields * k);
        const uint16_t * numbers = aligned(values[k], "a sheet");
        sheets[k].values.assign(numbers, numbers + values[k].size());
    }
    std::vector<uint8_t> payload;
    {
        nb::gil_scoped_release released;
        payload = encode_sheets(sheets);
    }
    return nb::bytes(payload.data(), payload.size());
}

double bits_of_channel(const Numbers & values, const Neighbours & neighbours, const Specs & spec, const std::optional<Numbers> & reference,
                       uint32_t reference_size) {
    if (spec.shape(0) != 1) throw ArgumentError("one channel has one coding");
    if (neighbours.size() != values.size() || (reference.has_value() && reference->size() != values.size())) {
        throw ArgumentError("neighbours and reference must be as many as the numbers");
    }
    const uint16_t * given = aligned(values, "values");
    std::vector<uint16_t> numbers(given, given + values.size());
    Sequence sequence;
    sequence.count = numbers.size();
    sequence.neighbour = aligned(neighbours, "neighbours");
    sequence.values = numbers.data();
    sequence.reference = reference.has_value() ? aligned(*reference, "reference") : nullptr;
    sequence.reference_width = width_of(reference_size);
    const ChannelSpec channel = spec_of(aligned(spec, "spec"));
    nb::gil_scoped_release released;
    return channel_bits(channel, sequence, reference_size);
}

Made<int32_t> neighbours_of(const Cells & cells, const Bytes & digits, int bits) {
    if (bits < 1 || bits > kMostLatticeBits) throw ArgumentError("lattice bits must be 1 to 21");
    const size_t count = cells.shape(0);
    if (digits.size() != 0 && digits.size() != count) throw ArgumentError("digits kept must be none, or one for each splat");
    std::vector<uint64_t> codes;
    std::vector<uint16_t> kept;
    const uint32_t * cell = aligned(cells, "cells");
    for (size_t i = 0; i < count; ++i, cell += 3) codes.push_back(morton_code(cell[0], cell[1], cell[2]));
    for (size_t i = 0; i < digits.size(); ++i) {
        const int k = digits.data()[i];
        if (k < 1 || k > bits) throw ArgumentError("digits kept must be 1 to the lattice's bits");
        kept.push_back(static_cast<uint16_t>(k - 1));
    }
    std::vector<int32_t> nearest(count);
    find_neighbours(codes.data(), kept.empty() ? nullptr : kept.data(), bits, count, nearest.data());
    return array_of(std::move(nearest));
}

// Of each part, columns from `first` on of `out` take, or are added to, the entry (K, d) that a row's index names.
void gather_into(const std::vector<std::tuple<Entries, Numbers, size_t, bool>> & parts, const Columns & out) {
    const size_t count = out.shape(0), width = out.shape(1);
    float * const first_row = aligned(out, "out");
    const auto stride = static_cast<size_t>(out.stride(0));
    if (out.stride(0) < 0 || (width > 1 && out.stride(1) != 1)) throw ArgumentError("a row's columns must follow each other");
    std::vector<EntryColumns> given;
    given.reserve(parts.size());
    for (const auto & [entries, indices, first, adds] : parts) {
        const size_t columns = entries.shape(1);
        if (indices.size() != count) throw ArgumentError("there must be an index for each row");
        if (first > width || columns > width - first) throw ArgumentError("entries reach past the last column");
        given.push_back({aligned(entries, "entries"), entries.shape(0), columns, aligned(indices, "indices"), first, adds});
    }
    nb::gil_scoped_release released;
    gather_entries(given, count, first_row, stride);
}

}  // namespace

void bind_entropy(nb::module_ & m) {
    nb::class_<SplatCoder>(m, "SplatCoder", "How the groups of one .psplat file are coded, and what its first group has taught.")
        .def(nb::init<int, int, int, std::optional<std::vector<uint32_t>>, const Specs &>(), "bits"_a, "modelled_digits"_a, "slowest"_a,
             "digits"_a.none(), "channels"_a.noconvert(),
             "digits: the coding of how many octal digits are kept, or None where all are. channels: (n, 9) uint32; size,\n"
             "mode, raw, predictor, reference, buckets, reference buckets, slowest, sparse. Raises ValueError.")
        .def("decode", &SplatCoder::decode, "payload"_a.noconvert(), "count"_a, "primed"_a = false, "learn"_a = false,
             "(cells (count, 3) uint32, digits kept (count or 0) uint8, numbers of each channel (count) uint16).\n"
             "primed: begin with what a call with learn has taught. Raises FormatError, ValueError.")
        .def("encode", &SplatCoder::encode, "cells"_a.noconvert(), "digits"_a.noconvert(), "channels"_a.noconvert(), "primed"_a = false, "learn"_a = false,
             "The payload of a group whose cells ascend by Morton code; digits: empty where all are kept.")
        .def("bits", &SplatCoder::bits, "cells"_a.noconvert(), "digits"_a.noconvert(), "channels"_a.noconvert(), "primed"_a = false,
             "Bits that a group takes: of the positions, then of each channel.");
    m.def("decode_sheets", &decode_sheet_list, "payload"_a.noconvert(), "shapes"_a, "specs"_a.noconvert(),
          "Numbers of each sheet (rows, columns) of a codebook section, flat. Raises FormatError, ValueError.");
    m.def("encode_sheets", &encode_sheet_list, "values"_a.noconvert(), "columns"_a, "specs"_a.noconvert(), "The payload of sheets, flat numbers row by row.");
    m.def("gather_entries", &gather_into, "parts"_a, "out"_a.noconvert(),
          "Write columns of out (n, width): each part is entries (K, d), indices (n) below K, the first column,\n"
          "and whether to add to what is there. Raises ValueError.");
    m.def("channel_bits", &bits_of_channel, "values"_a.noconvert(), "neighbours"_a.noconvert(), "spec"_a.noconvert(), "reference"_a.none(),
          "reference_size"_a = 1, "Bits that a channel takes alone.");
    m.def("splat_neighbours", &neighbours_of, "cells"_a.noconvert(), "digits"_a.noconvert(), "bits"_a,
          "Of each splat the nearest of the 32 before it, or -1; cells ascend by Morton code.");
}
