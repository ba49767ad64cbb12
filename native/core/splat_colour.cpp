// Real spherical harmonics to degree 3, in the order and with the signs of 3D Gaussian splatting.
#include "splat_colour.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "error.h"
#include "splat_basis.h"

namespace penstock {

// Coefficient by coefficient over a whole block: every loop is over consecutive floats, which the
// compiler turns into vector instructions.
void SplatColours::evaluate(size_t block, const float eye[3]) {
    const size_t begin = block * kColourBlock, n = std::min(kColourBlock, count_ - begin);
    float x[kColourBlock], y[kColourBlock], z[kColourBlock], value[kColourBlock];
    for (size_t i = 0; i < n; ++i) {
        x[i] = mean_[0][begin + i] - eye[0];
        y[i] = mean_[1][begin + i] - eye[1];
        z[i] = mean_[2][begin + i] - eye[2];
        const float square = x[i] * x[i] + y[i] * y[i] + z[i] * z[i];
        value[i] = 1.0f / std::sqrt(std::max(square, 1e-30f));  // a camera in a splat's middle sees no direction
    }
    for (size_t i = 0; i < n; ++i) {
        x[i] *= value[i];
        y[i] *= value[i];
        z[i] *= value[i];
    }
    float * const out[3] = {colour_.data() + begin, colour_.data() + count_ + begin, colour_.data() + 2 * count_ + begin};
    for (float * channel : out) std::fill_n(channel, n, 0.5f);

    const auto term = [&](int k, auto && basis) {
        for (size_t i = 0; i < n; ++i) value[i] = basis(x[i], y[i], z[i]);
        for (int c = 0; c < 3; ++c) {
            const float * from = sh_ + static_cast<size_t>(3 * k + c) * count_ + begin;
            float * const to = out[c];
            for (size_t i = 0; i < n; ++i) to[i] += value[i] * from[i];
        }
    };
    term(0, [](float, float, float) { return kC0; });
    if (coefficients_ >= 4) {
        term(1, [](float, float b, float) { return -kC1 * b; });
        term(2, [](float, float, float c) { return kC1 * c; });
        term(3, [](float a, float, float) { return -kC1 * a; });
    }
    if (coefficients_ >= 9) {
        term(4, [](float a, float b, float) { return kC2[0] * a * b; });
        term(5, [](float, float b, float c) { return -kC2[0] * b * c; });
        term(6, [](float a, float b, float c) { return kC2[1] * (2 * c * c - a * a - b * b); });
        term(7, [](float a, float, float c) { return -kC2[0] * a * c; });
        term(8, [](float a, float b, float) { return kC2[2] * (a * a - b * b); });
    }
    if (coefficients_ >= 16) {
        term(9, [](float a, float b, float) { return -kC3[0] * b * (3 * a * a - b * b); });
        term(10, [](float a, float b, float c) { return kC3[1] * a * b * c; });
        term(11, [](float a, float b, float c) { return -kC3[2] * b * (4 * c * c - a * a - b * b); });
        term(12, [](float a, float b, float c) { return kC3[3] * c * (2 * c * c - 3 * a * a - 3 * b * b); });
        term(13, [](float a, float b, float c) { return -kC3[2] * a * (4 * c * c - a * a - b * b); });
        term(14, [](float a, float b, float c) { return kC3[4] * c * (a * a - b * b); });
        term(15, [](float a, float b, float) { return -kC3[0] * a * (a * a - 3 * b * b); });
    }
    for (float * channel : out) {
        for (size_t i = 0; i < n; ++i) channel[i] = channel[i] > 0.0f ? std::min(channel[i], kMostColour) : 0.0f;  // NaN becomes 0
    }
    Block & b = blocks_[block];
    std::copy_n(eye, 3, b.eye);
    b.evaluated = true;
}

// A point at distance d is seen from an eye that moved by m in a direction that differs by asin(m / d)
// at most.
bool SplatColours::is_stale(const Block & block, const float eye[3], float most_sine) const {
    if (!block.evaluated) return true;
    float moved = 0, away = 0;
    for (int k = 0; k < 3; ++k) {
        const float m = eye[k] - block.eye[k], d = eye[k] - block.middle[k];
        moved += m * m;
        away += d * d;
    }
    if (moved == 0.0f) return false;
    return !(std::sqrt(moved) <= most_sine * (std::sqrt(away) - block.radius));  // also where that is NaN
}

SplatColours::SplatColours(const float * const mean[3], size_t count, const float * sh, int coefficients)
    : mean_{mean[0], mean[1], mean[2]}, count_(count), sh_(sh), coefficients_(coefficients) {
    if (coefficients != 1 && coefficients != 4 && coefficients != 9 && coefficients != 16) {
        throw ArgumentError("spherical harmonics have 1, 4, 9 or 16 coefficients, not " + std::to_string(coefficients));
    }
    colour_.need(3 * count);
    blocks_.resize((count + kColourBlock - 1) / kColourBlock);
    wanted_.resize(blocks_.size());
    stale_.reserve(blocks_.size());
    for (size_t b = 0; b < blocks_.size(); ++b) {
        const size_t begin = b * kColourBlock, end = std::min(count, begin + kColourBlock);
        float square = 0;
        float low[3], high[3];
        for (int k = 0; k < 3; ++k) {
            low[k] = high[k] = mean_[k][begin];
            for (size_t i = begin; i < end; ++i) {
                low[k] = std::min(low[k], mean_[k][i]);
                high[k] = std::max(high[k], mean_[k][i]);
            }
            blocks_[b].middle[k] = 0.5f * (low[k] + high[k]);
            const float half = high[k] - blocks_[b].middle[k];
            square += half * half;
        }
        blocks_[b].radius = std::sqrt(square) * 1.001f;
    }
}

size_t SplatColours::refresh(const float eye[3], float tolerance, const std::vector<SplatRange> & ranges,
                             ThreadPool & pool) {
    const float most_sine = std::sin(std::clamp(tolerance, 0.0f, 1.5f));
    std::fill(wanted_.begin(), wanted_.end(), static_cast<unsigned char>(0));
    stale_.clear();
    size_t wanted = 0;
    for (const SplatRange & range : ranges) {
        if (range.begin >= range.end) continue;
        for (size_t b = range.begin / kColourBlock; b <= (range.end - 1) / kColourBlock; ++b) {
            if (wanted_[b] != 0 || !is_stale(blocks_[b], eye, most_sine)) continue;
            wanted_[b] = 1;
            stale_.push_back(b);
            wanted += std::min(kColourBlock, count_ - b * kColourBlock);
        }
    }
    pool.run(stale_.size(), 1, [&](size_t first, size_t last) {
        for (size_t i = first; i < last; ++i) evaluate(stale_[i], eye);
    });
    return wanted;
}

}  // namespace penstock
