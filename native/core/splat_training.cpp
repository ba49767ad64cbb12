// Training's loops over splats. Adam is that of Kingma and Ba, arXiv 1412.6980, row by row.
#include "splat_training.h"

#include <algorithm>
#include <cmath>

#include "splat_basis.h"

namespace penstock {
namespace {

constexpr size_t kGrain = 256;  // rows that a thread takes at least
constexpr float kFirst = 0.9f, kSecond = 0.999f, kLeast = 1e-15f;
constexpr size_t kBlock = 64;  // numbers that are stepped at a time

struct Matrix {
    double at[3][3];
};

Matrix matrix_of(const float * q) {
    const double w = q[0], x = q[1], y = q[2], z = q[3];
    return {{{1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)},
             {2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)},
             {2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)}}};
}

void direction(const float * mean, const double eye[3], float out[3]) {
    double away[3], square = 0;
    for (int c = 0; c < 3; ++c) {
        away[c] = mean[c] - eye[c];
        square += away[c] * away[c];
    }
    const double scale = square > 0 ? 1 / std::sqrt(square) : 1;
    for (int c = 0; c < 3; ++c) out[c] = static_cast<float>(away[c] * scale);
}

}  // namespace

void SplatTraining::columns(const float * values, size_t width, SplatRows rows, float * out) {
    pool_.run(rows.count, kGrain, [&](size_t begin, size_t end) {
        for (size_t c = 0; c < width; ++c) {
            for (size_t i = begin; i < end; ++i) out[c * rows.count + i] = values[static_cast<size_t>(rows.index[i]) * width + c];
        }
    });
}

void SplatTraining::covariances(const float * scales, const float * rotations, SplatRows rows, float * out) {
    pool_.run(rows.count, kGrain, [&](size_t begin, size_t end) {
        for (size_t i = begin; i < end; ++i) {
            const size_t at = static_cast<size_t>(rows.index[i]);
            Matrix m = matrix_of(rotations + 4 * at);
            for (auto & row : m.at) {
                for (int a = 0; a < 3; ++a) row[a] *= scales[3 * at + a];
            }
            int k = 0;
            for (int u = 0; u < 3; ++u) {
                for (int v = u; v < 3; ++v) {
                    double sum = 0;
                    for (int a = 0; a < 3; ++a) sum += m.at[u][a] * m.at[v][a];
                    out[static_cast<size_t>(k++) * rows.count + i] = static_cast<float>(sum);
                }
            }
        }
    });
}

void SplatTraining::shape_gradients(const float * scales, const float * rotations, SplatRows rows, const float * by_covariance,
                                    float * by_scale, float * by_rotation) {
    pool_.run(rows.count, kGrain, [&](size_t begin, size_t end) {
        for (size_t i = begin; i < end; ++i) {
            const size_t at = static_cast<size_t>(rows.index[i]);
            const float * q = rotations + 4 * at;
            const float * s = scales + 3 * at;
            double g[6];
            for (size_t k = 0; k < 6; ++k) g[k] = by_covariance[k * rows.count + i];
            const double full[3][3] = {{2 * g[0], g[1], g[2]}, {g[1], 2 * g[3], g[4]}, {g[2], g[4], 2 * g[5]}};  // 2 G
            const Matrix r = matrix_of(q);
            double d[3][3], by_ln[3] = {0, 0, 0};  // d: by R
            for (int u = 0; u < 3; ++u) {
                for (int a = 0; a < 3; ++a) {
                    double by_factor = 0;
                    for (int v = 0; v < 3; ++v) by_factor += full[u][v] * r.at[v][a] * s[a];
                    by_ln[a] += by_factor * r.at[u][a] * s[a];
                    d[u][a] = by_factor * s[a];
                }
            }
            const double w = q[0], x = q[1], y = q[2], z = q[3];
            double by_q[4] = {
                2 * (z * (d[1][0] - d[0][1]) + y * (d[0][2] - d[2][0]) + x * (d[2][1] - d[1][2])),
                2 * (y * (d[0][1] + d[1][0]) + z * (d[0][2] + d[2][0]) + w * (d[2][1] - d[1][2]) - 2 * x * (d[1][1] + d[2][2])),
                2 * (x * (d[0][1] + d[1][0]) + z * (d[1][2] + d[2][1]) + w * (d[0][2] - d[2][0]) - 2 * y * (d[0][0] + d[2][2])),
                2 * (x * (d[0][2] + d[2][0]) + y * (d[1][2] + d[2][1]) + w * (d[1][0] - d[0][1]) - 2 * z * (d[0][0] + d[1][1]))};
            // A quaternion is normalised before use: what is along it changes nothing.
            const double along = by_q[0] * w + by_q[1] * x + by_q[2] * y + by_q[3] * z;
            for (int a = 0; a < 3; ++a) by_scale[3 * i + a] = static_cast<float>(by_ln[a]);
            for (int a = 0; a < 4; ++a) by_rotation[4 * i + a] = static_cast<float>(by_q[a] - along * q[a]);
        }
    });
}

void SplatTraining::colours(const float * sh, size_t k, const float * means, const double eye[3], SplatRows rows, float * out) {
    pool_.run(rows.count, kGrain, [&](size_t begin, size_t end) {
        float towards[3], basis[kMostHarmonics];
        for (size_t i = begin; i < end; ++i) {
            const size_t at = static_cast<size_t>(rows.index[i]);
            direction(means + 3 * at, eye, towards);
            splat_basis(towards, k, basis);
            const float * from = sh + at * k * 3;
            float sum[3] = {0.5f, 0.5f, 0.5f};
            for (size_t h = 0; h < k; ++h) {
                for (int c = 0; c < 3; ++c) sum[c] += basis[h] * from[3 * h + c];
            }
            for (size_t c = 0; c < 3; ++c) out[c * rows.count + i] = sum[c] > 0 ? sum[c] : 0.0f;  // NaN becomes 0
        }
    });
}

void SplatTraining::harmonics_gradients(size_t k, const float * means, const double eye[3], SplatRows rows, const float * colour,
                                        const float * by_colour, float * out) {
    pool_.run(rows.count, kGrain, [&](size_t begin, size_t end) {
        float towards[3], basis[kMostHarmonics];
        for (size_t i = begin; i < end; ++i) {
            direction(means + 3 * static_cast<size_t>(rows.index[i]), eye, towards);
            splat_basis(towards, k, basis);
            float flows[3];
            for (size_t c = 0; c < 3; ++c) flows[c] = colour[c * rows.count + i] > 0 ? by_colour[c * rows.count + i] : 0.0f;
            float * const to = out + i * k * 3;
            for (size_t h = 0; h < k; ++h) {
                for (int c = 0; c < 3; ++c) to[3 * h + c] = basis[h] * flows[c];
            }
        }
    });
}

void SplatTraining::add_rows(float * total, size_t width, SplatRows rows, const float * part) {
    pool_.run(rows.count, kGrain, [&](size_t begin, size_t end) {
        for (size_t i = begin; i < end; ++i) {
            float * const to = total + static_cast<size_t>(rows.index[i]) * width;
            for (size_t c = 0; c < width; ++c) to[c] += part[i * width + c];
        }
    });
}

void SplatTraining::grow_corrections(int32_t steps) {
    for (size_t t = corrections_.size(); t <= static_cast<size_t>(steps); ++t) {
        const double n = static_cast<double>(t);
        corrections_.push_back(t == 0 ? 0.0f
                                      : static_cast<float>(std::sqrt(1 - std::pow(double{kSecond}, n)) / (1 - std::pow(double{kFirst}, n))));
    }
}

// Rows are gathered into blocks, whose loops are over consecutive floats: the compiler makes vector instructions of
// them, square roots and divisions with the rest.
void SplatTraining::adam(float * values, float * first, float * second, int32_t * steps, size_t width, SplatRows rows,
                         const float * gradient, float rate) {
    int32_t most = 0;
    for (size_t i = 0; i < rows.count; ++i) most = std::max(most, ++steps[rows.index[i]]);
    grow_corrections(most);
    const size_t total = rows.count * width;
    pool_.run(total, kGrain * width, [&](size_t begin, size_t end) {
        size_t place[kBlock];
        float g[kBlock], m[kBlock], v[kBlock], size[kBlock];
        size_t row = begin / width, column = begin % width;
        for (size_t from = begin; from < end; from += kBlock) {
            const size_t n = std::min(kBlock, end - from);
            for (size_t j = 0; j < n; ++j) {
                const size_t at = static_cast<size_t>(rows.index[row]);
                place[j] = at * width + column;
                g[j] = std::isfinite(gradient[place[j]]) ? gradient[place[j]] : 0.0f;
                m[j] = first[place[j]];
                v[j] = second[place[j]];
                size[j] = rate * corrections_[static_cast<size_t>(steps[at])];
                if (++column == width) {
                    column = 0;
                    ++row;
                }
            }
            for (size_t j = 0; j < n; ++j) {
                m[j] = kFirst * m[j] + (1 - kFirst) * g[j];
                v[j] = kSecond * v[j] + (1 - kSecond) * g[j] * g[j];
                size[j] *= m[j] / (std::sqrt(v[j]) + kLeast);
            }
            for (size_t j = 0; j < n; ++j) {
                first[place[j]] = m[j];
                second[place[j]] = v[j];
                values[place[j]] -= size[j];
            }
        }
    });
}

}  // namespace penstock
