// The kernels one row at a time, for the tests: they compare every set with the format's outside
// oracle (gguf) and choose the set that a whole run uses. Not part of the public interface.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <string>
#include <vector>

#include "kernels.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using namespace penstock;

using Row = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using FloatsInPlace = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

Dtype checked_type(int type) {
    if (!dtype_valid(type)) {
        throw nb::value_error(("type " + std::to_string(type) + " is none of F32 (0), F16 (1), Q4_0 (2), Q8_0 (8)").c_str());
    }
    return static_cast<Dtype>(type);
}

// A numpy view may start at any byte; the kernels take weights so, but floats must be aligned.
void check_floats(const void * data, const char * what) {
    if (reinterpret_cast<uintptr_t>(data) % alignof(float) != 0) {
        throw nb::value_error((std::string(what) + " is not aligned to 4 bytes").c_str());
    }
}

void check_row(Dtype type, size_t bytes, size_t n) {
    if (dtype_quantized(type) && n % kBlock != 0) {
        throw nb::value_error(("block formats need a multiple of 32 elements, not " + std::to_string(n)).c_str());
    }
    const size_t wanted = dtype_row_bytes(type, n);
    if (bytes != wanted) {
        throw nb::value_error(("a row of " + std::to_string(n) + " elements has " + std::to_string(wanted) +
                               " bytes, not " + std::to_string(bytes)).c_str());
    }
}

float dot(int type_number, const Row & row, const Floats & x) {
    const Dtype type = checked_type(type_number);
    const size_t n = x.size();
    check_floats(x.data(), "x");
    check_row(type, row.size(), n);
    Activation a;
    a.x = x.data();
    if (!dtype_quantized(type)) return kernels().dot(type, row.data(), a, n);
    std::vector<int8_t> q(n);
    std::vector<float> scale(n / kBlock);
    std::vector<int32_t> sum(n / kBlock);
    kernels().quantize(x.data(), q.data(), scale.data(), sum.data(), n);
    a.q = q.data();
    a.scale = scale.data();
    a.sum = sum.data();
    return kernels().dot(type, row.data(), a, n);
}

void axpy(int type_number, const Row & row, float h, const FloatsInPlace & y, size_t begin, size_t end) {
    const Dtype type = checked_type(type_number);
    const size_t n = y.size();
    check_floats(y.data(), "y");
    check_row(type, row.size(), n);
    if (begin > end || end > n) {
        throw nb::value_error(("no range [" + std::to_string(begin) + ", " + std::to_string(end) + ") in " +
                               std::to_string(n) + " elements").c_str());
    }
    if (dtype_quantized(type) && (begin % kBlock != 0 || end % kBlock != 0)) {
        throw nb::value_error("block formats need begin and end to be multiples of 32");
    }
    kernels().axpy(type, row.data(), h, y.data(), begin, end);
}

// Found by selecting each, so it is done once, at import, when no other thread computes.
std::vector<std::string> find_available() {
    std::vector<std::string> names;
    for (const char * name : {"scalar", "avx2", "avx512", "neon"}) {
        if (kernels_select(name)) names.emplace_back(name);
    }
    kernels_select("auto");
    return names;
}

}  // namespace

void bind_kernels(nb::module_ & m) {
    m.def("kernels_available", [names = find_available()] { return names; },
          "Names of the kernel sets that this processor runs; \"scalar\" is always one of them.");
    m.def("kernels_name", [] { return std::string(kernels().name); }, "Name of the kernel set in use.");
    m.def(
        "kernels_select",
        [](const std::string & name) {
            if (!kernels_select(name.c_str())) throw nb::value_error(("kernel set '" + name + "' cannot run here").c_str());
        },
        "name"_a,
        "Use the named kernel set from now on, in the whole process; \"auto\" is the best one. Raises\n"
        "ValueError for a set that cannot run here. For tests: call it while nothing is computing.");
    // The signature is written out because a row may also be bytes, which the type of Row hides.
    m.def("dot", &dot, "type"_a, "row"_a.noconvert(), "x"_a.noconvert(),
          nb::sig("def dot(type: int, row: bytes | numpy.typing.NDArray[numpy.uint8], "
                  "x: numpy.typing.NDArray[numpy.float32]) -> float"),
          "Dot product of one weight row, as stored, with x. In the block formats x is quantized to int8\n"
          "blocks first, as in inference. type is ggml's number: 0 F32, 1 F16, 2 Q4_0, 8 Q8_0.");
    m.def("axpy", &axpy, "type"_a, "row"_a.noconvert(), "h"_a, "y"_a.noconvert(), "begin"_a, "end"_a,
          nb::sig("def axpy(type: int, row: bytes | numpy.typing.NDArray[numpy.uint8], h: float, "
                  "y: numpy.typing.NDArray[numpy.float32], begin: int, end: int) -> None"),
          "y[begin:end] += h * row[begin:end], in place; the row has as many elements as y.");
}
