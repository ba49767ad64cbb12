// Training's loops: Adam against its definition, every loop for one thread and for three (build under the sanitizers).
// A plain executable: prints what failed, and its exit status is 1 if anything did.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "../core/splat_training.h"
#include "checks.h"

using namespace penstock;

namespace {

using Floats = std::vector<float>;

Floats noise(size_t count, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    Floats out(count);
    for (float & x : out) x = normal(random);
    return out;
}

std::vector<int64_t> every_third(size_t n) {
    std::vector<int64_t> rows;
    for (size_t i = 1; i < n; i += 3) rows.push_back(static_cast<int64_t>(i));
    return rows;
}

void test_adam() {
    constexpr size_t n = 700, width = 5;
    const auto index = every_third(n);
    const SplatRows rows{index.data(), index.size()};
    Floats values = noise(n * width, 1), first(n * width), second(n * width);
    std::vector<int32_t> steps(n);
    std::vector<double> x(values.begin(), values.end()), m(n * width), v(n * width);
    SplatTraining training(3);
    for (int t = 1; t <= 4; ++t) {
        Floats gradient = noise(n * width, 10 + t);
        gradient[index[2] * width] = std::numeric_limits<float>::quiet_NaN();
        gradient[index[3] * width + 1] = std::numeric_limits<float>::infinity();
        training.adam(values.data(), first.data(), second.data(), steps.data(), width, rows, gradient.data(), 0.1f);
        for (const int64_t row : index) {
            for (size_t c = 0; c < width; ++c) {
                const size_t i = static_cast<size_t>(row) * width + c;
                const double g = std::isfinite(gradient[i]) ? gradient[i] : 0.0;
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.999 * v[i] + 0.001 * g * g;
                const double size = std::sqrt(1 - std::pow(0.999, t)) / (1 - std::pow(0.9, t));
                if (v[i] > 0) x[i] -= 0.1 * size * m[i] / std::sqrt(v[i]);
            }
        }
    }
    double worst = 0;
    for (size_t i = 0; i < n * width; ++i) worst = std::max(worst, std::fabs(values[i] - x[i]));
    CHECK(worst < 1e-4, "%g off", worst);
    CHECK(steps[0] == 0 && steps[1] == 4, "rows count their own steps");
}

struct Results {
    Floats columns, covariances, by_scale, by_rotation, colours, by_harmonics, total;
};

Results everything(int threads, size_t n, size_t k) {
    const auto index = every_third(n);
    const SplatRows rows{index.data(), index.size()};
    const size_t count = rows.count;
    Floats scales = noise(3 * n, 2), rotations = noise(4 * n, 3);
    for (float & s : scales) s = std::exp(s);
    for (size_t i = 0; i < n; ++i) {
        float square = 0;
        for (size_t c = 0; c < 4; ++c) square += rotations[4 * i + c] * rotations[4 * i + c];
        for (size_t c = 0; c < 4; ++c) rotations[4 * i + c] /= std::sqrt(square);
    }
    const Floats means = noise(3 * n, 4), sh = noise(3 * k * n, 5), by_covariance = noise(6 * count, 6), by_colour = noise(3 * count, 7);
    const double eye[3] = {0.5, -2.0, 1.0};
    Results r{Floats(3 * count), Floats(6 * count), Floats(3 * count), Floats(4 * count), Floats(3 * count), Floats(3 * k * count), means};
    SplatTraining training(threads);
    training.columns(means.data(), 3, rows, r.columns.data());
    training.covariances(scales.data(), rotations.data(), rows, r.covariances.data());
    training.shape_gradients(scales.data(), rotations.data(), rows, by_covariance.data(), r.by_scale.data(), r.by_rotation.data());
    training.colours(sh.data(), k, means.data(), eye, rows, r.colours.data());
    training.harmonics_gradients(k, means.data(), eye, rows, r.colours.data(), by_colour.data(), r.by_harmonics.data());
    training.add_rows(r.total.data(), 3, rows, r.by_scale.data());
    for (size_t i = 0; i < count; ++i) {  // a turn does not change the sum of the variances
        const size_t at = static_cast<size_t>(index[i]);
        double wanted = 0, along = 0;
        for (size_t a = 0; a < 3; ++a) wanted += double{scales[3 * at + a]} * scales[3 * at + a];
        const double found = r.covariances[i] + r.covariances[3 * count + i] + r.covariances[5 * count + i];
        CHECK(std::fabs(found - wanted) < 1e-4 * wanted, "splat %zu: %g, expected %g", at, found, wanted);
        for (size_t c = 0; c < 4; ++c) along += double{r.by_rotation[4 * i + c]} * rotations[4 * at + c];
        CHECK(std::fabs(along) < 1e-3 * (1 + wanted), "splat %zu: %g along the quaternion", at, along);
        CHECK(r.columns[i] == means[3 * at], "splat %zu", at);
    }
    return r;
}

void test_threads() {
    for (const size_t k : {1, 4, 9, 16}) {
        for (const size_t n : {size_t{0}, size_t{1}, size_t{2}, size_t{1000}, size_t{4001}}) {
            const Results one = everything(1, n, k), three = everything(3, n, k);
            CHECK(one.columns == three.columns && one.covariances == three.covariances, "%zu splats", n);
            CHECK(one.by_scale == three.by_scale && one.by_rotation == three.by_rotation, "%zu splats", n);
            CHECK(one.colours == three.colours && one.by_harmonics == three.by_harmonics, "%zu splats", n);
            CHECK(one.total == three.total, "%zu splats", n);
        }
    }
}

}  // namespace

int main() {
    test_adam();
    test_threads();
    return report_checks();
}
