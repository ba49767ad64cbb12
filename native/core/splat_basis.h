// The real spherical harmonics of one direction, in the order and with the signs of 3D Gaussian splatting.
// splat_colour.cpp has the same functions for whole blocks of splats.
#pragma once

#include <cstddef>

namespace penstock {

constexpr size_t kMostHarmonics = 16;

constexpr float kC0 = 0.28209479177387814f;
constexpr float kC1 = 0.4886025119029199f;
constexpr float kC2[3] = {1.0925484305920792f, 0.31539156525252005f, 0.5462742152960396f};
constexpr float kC3[5] = {0.5900435899266435f, 2.890611442640554f, 0.4570457994644658f, 0.3731763325901154f,
                          1.445305721320277f};

// k of them, 1, 4, 9 or 16, of a unit vector.
inline void splat_basis(const float unit[3], size_t k, float * out) {
    const float x = unit[0], y = unit[1], z = unit[2];
    out[0] = kC0;
    if (k < 4) return;
    out[1] = -kC1 * y;
    out[2] = kC1 * z;
    out[3] = -kC1 * x;
    if (k < 9) return;
    out[4] = kC2[0] * x * y;
    out[5] = -kC2[0] * y * z;
    out[6] = kC2[1] * (2 * z * z - x * x - y * y);
    out[7] = -kC2[0] * x * z;
    out[8] = kC2[2] * (x * x - y * y);
    if (k < 16) return;
    out[9] = -kC3[0] * y * (3 * x * x - y * y);
    out[10] = kC3[1] * x * y * z;
    out[11] = -kC3[2] * y * (4 * z * z - x * x - y * y);
    out[12] = kC3[3] * z * (2 * z * z - 3 * x * x - 3 * y * y);
    out[13] = -kC3[2] * x * (4 * z * z - x * x - y * y);
    out[14] = kC3[4] * z * (x * x - y * y);
    out[15] = -kC3[0] * x * (x * x - 3 * y * y);
}

}  // namespace penstock
