// Training's loops over splats for Python. Arrays are borrowed and checked; what is returned is written into the
// caller's.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>

#include <array>
#include <cstdint>
#include <mutex>
#include <string>

#include "aligned.h"
#include "error.h"
#include "splat_basis.h"
#include "splat_training.h"
#include "threads.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using namespace penstock;

using Index = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using TableInPlace = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Harmonics = nb::ndarray<const float, nb::shape<-1, -1, 3>, nb::c_contig, nb::device::cpu>;
using HarmonicsInPlace = nb::ndarray<float, nb::shape<-1, -1, 3>, nb::c_contig, nb::device::cpu>;
using Counts = nb::ndarray<int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Rows of [n, ...]. Ascending: so no two threads write to one row.
SplatRows rows_of(const Index & rows, size_t n) {
    const int64_t * index = aligned(rows, "rows");
    int64_t last = -1;
    for (size_t i = 0; i < rows.size(); ++i) {
        if (index[i] <= last || index[i] >= static_cast<int64_t>(n)) {
            throw ArgumentError("rows[" + std::to_string(i) + "] is " + std::to_string(index[i]) + " after " + std::to_string(last) +
                                "; expected ascending numbers under " + std::to_string(n));
        }
        last = index[i];
    }
    return {index, rows.size()};
}

template <class Array>
auto shaped(const Array & array, size_t first, size_t second, const char * name) {
    if (array.shape(0) != first || array.shape(1) != second) {
        throw ArgumentError(std::string(name) + " is (" + std::to_string(array.shape(0)) + ", " + std::to_string(array.shape(1)) +
                            ", ...), expected (" + std::to_string(first) + ", " + std::to_string(second) + ", ...)");
    }
    return aligned(array, name);
}

size_t harmonics(size_t k) {
    if (k != 1 && k != 4 && k != 9 && k != kMostHarmonics) {
        throw ArgumentError("sh has " + std::to_string(k) + " coefficients, expected 1, 4, 9 or 16");
    }
    return k;
}

// Python threads that share one wait for each other.
struct Training {
    explicit Training(int threads) : native(threads) {}

    template <class Work>
    void run(Work && work) {
        nb::gil_scoped_release others_run;
        const std::lock_guard<std::mutex> lock(mutex);
        work(native);
    }

    SplatTraining native;
    std::mutex mutex;
};

void columns(Training & self, const Table & values, const Index & rows, const TableInPlace & out) {
    const SplatRows chosen = rows_of(rows, values.shape(0));
    const size_t width = values.shape(1);
    const float * from = aligned(values, "values");
    float * to = shaped(out, width, chosen.count, "out");
    self.run([&](SplatTraining & t) { t.columns(from, width, chosen, to); });
}

void covariances(Training & self, const Table & scales, const Table & rotations, const Index & rows, const TableInPlace & out) {
    const size_t n = scales.shape(0);
    const SplatRows chosen = rows_of(rows, n);
    const float * s = shaped(scales, n, 3, "scales");
    const float * q = shaped(rotations, n, 4, "rotations");
    float * to = shaped(out, 6, chosen.count, "out");
    self.run([&](SplatTraining & t) { t.covariances(s, q, chosen, to); });
}

void shape_gradients(Training & self, const Table & scales, const Table & rotations, const Index & rows, const Table & by_covariance,
                     const TableInPlace & by_scale, const TableInPlace & by_rotation) {
    const size_t n = scales.shape(0);
    const SplatRows chosen = rows_of(rows, n);
    const float * s = shaped(scales, n, 3, "scales");
    const float * q = shaped(rotations, n, 4, "rotations");
    const float * g = shaped(by_covariance, 6, chosen.count, "by_covariance");
    float * to_scale = shaped(by_scale, chosen.count, 3, "by_scale");
    float * to_rotation = shaped(by_rotation, chosen.count, 4, "by_rotation");
    self.run([&](SplatTraining & t) { t.shape_gradients(s, q, chosen, g, to_scale, to_rotation); });
}

void colours(Training & self, const Harmonics & sh, const Table & means, const std::array<double, 3> & eye, const Index & rows,
             const TableInPlace & out) {
    const size_t n = sh.shape(0), k = harmonics(sh.shape(1));
    const SplatRows chosen = rows_of(rows, n);
    const float * coefficients = aligned(sh, "sh");
    const float * places = shaped(means, n, 3, "means");
    float * to = shaped(out, 3, chosen.count, "out");
    self.run([&](SplatTraining & t) { t.colours(coefficients, k, places, eye.data(), chosen, to); });
}

void harmonics_gradients(Training & self, const Table & means, const std::array<double, 3> & eye, const Index & rows,
                         const Table & colour, const Table & by_colour, const HarmonicsInPlace & out) {
    const size_t n = means.shape(0), k = harmonics(out.shape(1));
    const SplatRows chosen = rows_of(rows, n);
    const float * places = shaped(means, n, 3, "means");
    const float * shown = shaped(colour, 3, chosen.count, "colour");
    const float * towards = shaped(by_colour, 3, chosen.count, "by_colour");
    float * to = shaped(out, chosen.count, k, "out");
    self.run([&](SplatTraining & t) { t.harmonics_gradients(k, places, eye.data(), chosen, shown, towards, to); });
}

void add_rows(Training & self, const TableInPlace & total, const Index & rows, const Table & part) {
    const SplatRows chosen = rows_of(rows, total.shape(0));
    const size_t width = total.shape(1);
    float * to = aligned(total, "total");
    const float * from = shaped(part, chosen.count, width, "part");
    self.run([&](SplatTraining & t) { t.add_rows(to, width, chosen, from); });
}

void adam(Training & self, const TableInPlace & values, const TableInPlace & first, const TableInPlace & second, const Counts & steps,
          const Index & rows, const Table & gradient, float rate) {
    const size_t n = values.shape(0), width = values.shape(1);
    const SplatRows chosen = rows_of(rows, n);
    float * x = aligned(values, "values");
    float * m = shaped(first, n, width, "first");
    float * v = shaped(second, n, width, "second");
    const float * g = shaped(gradient, n, width, "gradient");
    int32_t * counted = aligned(steps, "steps");
    if (steps.size() != n) throw ArgumentError("steps has " + std::to_string(steps.size()) + " rows, expected " + std::to_string(n));
    for (size_t i = 0; i < chosen.count; ++i) {
        if (counted[chosen.index[i]] < 0 || counted[chosen.index[i]] >= 1 << 24) throw ArgumentError("steps are 0 to 2^24");
    }
    if (width == 0) return;
    self.run([&](SplatTraining & t) { t.adam(x, m, v, counted, width, chosen, g, rate); });
}

}  // namespace

void bind_splat_training(nb::module_ & m) {
    nb::class_<Training>(m, "SplatTraining",
                         "Loops over a model's splats that training needs besides the rasteriser. `rows` are int64, ascending: the\n"
                         "splats that are drawn. Models are (n, ...), a row a splat; what the rasteriser takes and gives is\n"
                         "(components, m).")
        .def("__init__",
             [](Training * self, int threads) { new (self) Training(thread_count(threads)); },
             "threads"_a)
        .def("columns", &columns, "values"_a.noconvert(), "rows"_a.noconvert(), "out"_a.noconvert(),
             "Rows of values (n, c) into out (c, m).")
        .def("covariances", &covariances, "scales"_a.noconvert(), "rotations"_a.noconvert(), "rows"_a.noconvert(),
             "out"_a.noconvert(), "Of scales (n, 3) and unit quaternions (n, 4): xx xy xz yy yz zz into out (6, m).")
        .def("shape_gradients", &shape_gradients, "scales"_a.noconvert(), "rotations"_a.noconvert(), "rows"_a.noconvert(),
             "by_covariance"_a.noconvert(), "by_scale"_a.noconvert(), "by_rotation"_a.noconvert(),
             "From that by the covariances (6, m), as six free numbers, to by_scale (m, 3), of ln scale, and by_rotation\n"
             "(m, 4), of the unit quaternion and along the sphere only.")
        .def("colours", &colours, "sh"_a.noconvert(), "means"_a.noconvert(), "eye"_a, "rows"_a.noconvert(), "out"_a.noconvert(),
             "0.5 and the harmonics sh (n, k, 3) of the direction from eye to means (n, 3), 0 or more, into out (3, m).")
        .def("harmonics_gradients", &harmonics_gradients, "means"_a.noconvert(), "eye"_a, "rows"_a.noconvert(),
             "colour"_a.noconvert(), "by_colour"_a.noconvert(), "out"_a.noconvert(),
             "From that by colours (3, m) to out (m, k, 3); colour (3, m) as `colours` gave it: none flows through a 0.")
        .def("add_rows", &add_rows, "total"_a.noconvert(), "rows"_a.noconvert(), "part"_a.noconvert(),
             "Add part (m, c) to these rows of total (n, c).")
        .def("adam", &adam, "values"_a.noconvert(), "first"_a.noconvert(), "second"_a.noconvert(), "steps"_a.noconvert(),
             "rows"_a.noconvert(), "gradient"_a.noconvert(), "rate"_a,
             "A step of Adam in these rows of values, whose averages are first and second and whose gradient is gradient,\n"
             "all (n, c); steps (n), int32, counts each row's. What is not finite in a gradient counts as 0.")
        .def_prop_ro("threads", [](const Training & self) { return self.native.threads(); }, "Threads, the caller's with them.");
}
