// Ranges of a file read past the page cache, for what is decoded in Python's order: the groups of a .psplat file.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/filesystem.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "direct_file.h"
#include "error.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace penstock;

namespace {

// Not "read": that is unistd.h's as well, and &read could then be either.
nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>> read_range(const DirectFile & file, uint64_t offset, uint64_t bytes) {
    if (offset > file.size() || bytes > file.size() - offset) {  // before memory is taken for it
        throw StorageError(file.path() + ": " + std::to_string(bytes) + " bytes at offset " + std::to_string(offset) +
                           " run past the end of the file (" + std::to_string(file.size()) + " bytes)");
    }
    auto room = std::make_unique<uint8_t[]>(bytes == 0 ? 1 : bytes);
    {
        nb::gil_scoped_release released;
        file.read(offset, room.get(), bytes);
        file.drop_cache(offset, bytes);
    }
    uint8_t * data = room.release();
    nb::capsule owner(data, [](void * p) noexcept { delete[] static_cast<uint8_t *>(p); });
    return nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>(data, {static_cast<size_t>(bytes)}, owner);
}

}  // namespace

void bind_direct_file(nb::module_ & m) {
    nb::class_<DirectFile>(m, "DirectFile", "A file opened for reads past the page cache; where those are refused, what was read is dropped from it.")
        .def("__init__", [](DirectFile * self, const std::filesystem::path & path, bool direct) { new (self) DirectFile(path.native(), direct); },
             "path"_a, "direct"_a = true, nb::sig("def __init__(self, path: str | bytes, direct: bool = True) -> None"),
             "path: a name with any bytes, as os.fsencode takes it. Raises StorageError.")
        .def("read", &read_range, "offset"_a, "bytes"_a, "A range of the file as a uint8 array. Raises StorageError.")
        .def_prop_ro("size", &DirectFile::size, "Bytes of the file.");
}
