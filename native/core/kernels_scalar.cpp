// The plain path: always compiled, and the oracle for the others.
#include <cmath>

#include "kernels.h"

namespace penstock {
namespace {

float dot_scalar(Dtype type, const uint8_t * row, const Activation & a, size_t n) {
    float sum = 0.0f;
    switch (type) {
        case Dtype::F32:
            for (size_t i = 0; i < n; ++i) {
                float w;
                std::memcpy(&w, row + 4 * i, 4);
                sum += w * a.x[i];
            }
            break;
        case Dtype::F16:
            for (size_t i = 0; i < n; ++i) sum += f16_to_f32(load_u16(row + 2 * i)) * a.x[i];
            break;
        case Dtype::Q8_0:
            for (size_t b = 0; b < n / kBlock; ++b) {
                const uint8_t * block = row + b * kBlockBytesQ8;
                const auto * q = reinterpret_cast<const int8_t *>(block + 2);
                int32_t dot = 0;
                for (int i = 0; i < kBlock; ++i) dot += q[i] * a.q[b * kBlock + i];
                sum += f16_to_f32(load_u16(block)) * a.scale[b] * static_cast<float>(dot);
            }
            break;
        case Dtype::Q4_0:
            for (size_t b = 0; b < n / kBlock; ++b) {
                const uint8_t * block = row + b * kBlockBytesQ4;
                int32_t dot = 0;
                for (int i = 0; i < 16; ++i) {
                    dot += (block[2 + i] & 15) * a.q[b * kBlock + i];
                    dot += (block[2 + i] >> 4) * a.q[b * kBlock + i + 16];
                }
                dot -= 8 * a.sum[b];
                sum += f16_to_f32(load_u16(block)) * a.scale[b] * static_cast<float>(dot);
            }
            break;
    }
    return sum;
}

void axpy_scalar(Dtype type, const uint8_t * row, float h, float * y, size_t begin, size_t end) {
    switch (type) {
        case Dtype::F32:
            for (size_t i = begin; i < end; ++i) {
                float w;
                std::memcpy(&w, row + 4 * i, 4);
                y[i] = std::fma(h, w, y[i]);
            }
            break;
        case Dtype::F16:
            for (size_t i = begin; i < end; ++i) {
                y[i] = std::fma(h, f16_to_f32(load_u16(row + 2 * i)), y[i]);
            }
            break;
        case Dtype::Q8_0:
            for (size_t b = begin / kBlock; b < end / kBlock; ++b) {
                const uint8_t * block = row + b * kBlockBytesQ8;
                const auto * q = reinterpret_cast<const int8_t *>(block + 2);
                const float scale = h * f16_to_f32(load_u16(block));
                for (int i = 0; i < kBlock; ++i) {
                    y[b * kBlock + i] = std::fma(scale, static_cast<float>(q[i]), y[b * kBlock + i]);
                }
            }
            break;
        case Dtype::Q4_0:
            for (size_t b = begin / kBlock; b < end / kBlock; ++b) {
                const uint8_t * block = row + b * kBlockBytesQ4;
                const float scale = h * f16_to_f32(load_u16(block));
                float * out = y + b * kBlock;
                for (int i = 0; i < 16; ++i) {
                    out[i] = std::fma(scale, static_cast<float>((block[2 + i] & 15) - 8), out[i]);
                    out[i + 16] = std::fma(scale, static_cast<float>((block[2 + i] >> 4) - 8), out[i + 16]);
                }
            }
            break;
    }
}

void axpy4_scalar(Dtype type, const uint8_t * const rows[4], const float h[4], float * y,
                  size_t begin, size_t end) {
    for (int r = 0; r < 4; ++r) axpy_scalar(type, rows[r], h[r], y, begin, end);
}

void quantize_scalar(const float * x, int8_t * q, float * scale, int32_t * sum, size_t n) {
    for (size_t b = 0; b < n / kBlock; ++b) {
        const float * in = x + b * kBlock;
        float largest = 0.0f;
        for (int i = 0; i < kBlock; ++i) largest = std::fmax(largest, std::fabs(in[i]));
        const float step = largest / 127.0f;
        // Too small to divide by: such a block is zero at any precision that matters here.
        const float inverse = step > 1e-30f ? 1.0f / step : 0.0f;
        int32_t total = 0;
        for (int i = 0; i < kBlock; ++i) {
            const float scaled = in[i] * inverse;
            // NaN and infinity must not reach the conversion to int, which they make undefined.
            const int value = std::isfinite(scaled) ? static_cast<int>(std::nearbyint(scaled)) : 0;
            q[b * kBlock + i] = static_cast<int8_t>(value);
            total += value;
        }
        scale[b] = inverse == 0.0f && step == step ? 0.0f : step;
        sum[b] = total;
    }
}

float dot_f16_scalar(const uint16_t * a, const float * b, size_t n) {
    float sum = 0.0f;
    for (size_t i = 0; i < n; ++i) sum += f16_to_f32(a[i]) * b[i];
    return sum;
}

void axpy_f16_scalar(const uint16_t * a, float h, float * y, size_t n) {
    for (size_t i = 0; i < n; ++i) y[i] = std::fma(h, f16_to_f32(a[i]), y[i]);
}

}  // namespace

const Kernels & kernels_scalar() {
    static const Kernels table = {"scalar",        dot_scalar,     axpy_scalar,    axpy4_scalar,
                                  quantize_scalar, dot_f16_scalar, axpy_f16_scalar};
    return table;
}

}  // namespace penstock
