// NEON, as every 64-bit Arm processor has it; with the sdot instruction where this file is compiled
// for it (-march=armv8.2-a+dotprod).
//
// Weights are loaded as bytes and reinterpreted: a row of a mapped file need not be aligned.
#if defined(__aarch64__)
#include <arm_neon.h>

#include "kernels.h"

// The loops over rows and over parts of a block must be unrolled, or their sums live in memory
// instead of registers: -O3 does it by itself, -O2 does not.
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

namespace penstock {
namespace {

inline float half_at(const uint8_t * p) {
    __fp16 v;
    std::memcpy(&v, p, 2);
    return static_cast<float>(v);
}

inline float float_at(const uint8_t * p) {
    float v;
    std::memcpy(&v, p, 4);
    return v;
}

// 4 weights in F32 or F16 -> float.
template <Dtype Type>
inline float32x4_t load4(const uint8_t * p) {
    if constexpr (Type == Dtype::F16) return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p)));
    else return vreinterpretq_f32_u8(vld1q_u8(p));
}

inline int8x16_t load_q(const uint8_t * p) { return vreinterpretq_s8_u8(vld1q_u8(p)); }

// One block of 32 weights in int8, before the scale: elements 0..15 and 16..31.
struct Pair {
    int8x16_t low, high;
};

template <Dtype Type>
inline Pair block(const uint8_t * p) {
    if constexpr (Type == Dtype::Q8_0) {
        return {load_q(p + 2), load_q(p + 18)};
    } else {
        const uint8x16_t packed = vld1q_u8(p + 2);
        const int8x16_t eight = vdupq_n_s8(8);
        return {vsubq_s8(vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(15))), eight),
                vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(packed, 4)), eight)};
    }
}

// ---------------------------------------------------------------- dot

// n weights in F32 or F16 with n floats.
template <Dtype Type>
float dot_float(const uint8_t * w, const float * x, size_t n) {
    constexpr size_t kSize = Type == Dtype::F16 ? 2 : 4;
    float32x4_t s0 = vdupq_n_f32(0.0f), s1 = s0, s2 = s0, s3 = s0;
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const uint8_t * p = w + i * kSize;
        s0 = vfmaq_f32(s0, load4<Type>(p), vld1q_f32(x + i));
        s1 = vfmaq_f32(s1, load4<Type>(p + 4 * kSize), vld1q_f32(x + i + 4));
        s2 = vfmaq_f32(s2, load4<Type>(p + 8 * kSize), vld1q_f32(x + i + 8));
        s3 = vfmaq_f32(s3, load4<Type>(p + 12 * kSize), vld1q_f32(x + i + 12));
    }
    for (; i + 4 <= n; i += 4) s0 = vfmaq_f32(s0, load4<Type>(w + i * kSize), vld1q_f32(x + i));
    float sum = vaddvq_f32(vaddq_f32(vaddq_f32(s0, s1), vaddq_f32(s2, s3)));
    for (; i < n; ++i) sum += (Type == Dtype::F16 ? half_at(w + 2 * i) : float_at(w + 4 * i)) * x[i];
    return sum;
}

// 32 int8 products -> 4 partial sums.
inline int32x4_t block_dot(Pair w, int8x16_t x0, int8x16_t x1) {
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(vdotq_s32(vdupq_n_s32(0), w.low, x0), w.high, x1);
#else
    // Two products fit in int16, 2 * 128 * 127 = 32512, because |x| <= 127.
    const int16x8_t p0 = vmlal_s8(vmull_s8(vget_low_s8(w.low), vget_low_s8(x0)), vget_low_s8(w.high), vget_low_s8(x1));
    const int16x8_t p1 = vmlal_high_s8(vmull_high_s8(w.low, x0), w.high, x1);
    return vpadalq_s16(vpaddlq_s16(p0), p1);
#endif
}

template <Dtype Type>
float dot_blocks(const uint8_t * row, const Activation & a, size_t n) {
    constexpr int kBytes = Type == Dtype::Q8_0 ? kBlockBytesQ8 : kBlockBytesQ4;
    const auto one = [&](size_t b, float32x4_t s) {
        const uint8_t * p = row + b * kBytes;
        const int8_t * q = a.q + b * kBlock;
        const int32x4_t d = block_dot(block<Type>(p), vld1q_s8(q), vld1q_s8(q + 16));
        return vfmaq_n_f32(s, vcvtq_f32_s32(d), half_at(p) * a.scale[b]);
    };
    // Four sums, so that the additions of blocks that follow each other do not wait on one another.
    float32x4_t s0 = vdupq_n_f32(0.0f), s1 = s0, s2 = s0, s3 = s0;
    const size_t blocks = n / kBlock;
    size_t b = 0;
    for (; b + 4 <= blocks; b += 4) {
        s0 = one(b, s0);
        s1 = one(b + 1, s1);
        s2 = one(b + 2, s2);
        s3 = one(b + 3, s3);
    }
    for (; b < blocks; ++b) s0 = one(b, s0);
    return vaddvq_f32(vaddq_f32(vaddq_f32(s0, s1), vaddq_f32(s2, s3)));
}

float dot(Dtype type, const uint8_t * row, const Activation & a, size_t n) {
    switch (type) {
        case Dtype::F32: return dot_float<Dtype::F32>(row, a.x, n);
        case Dtype::F16: return dot_float<Dtype::F16>(row, a.x, n);
        case Dtype::Q8_0: return dot_blocks<Dtype::Q8_0>(row, a, n);
        case Dtype::Q4_0: return dot_blocks<Dtype::Q4_0>(row, a, n);
    }
    return 0.0f;
}

// ---------------------------------------------------------------- axpy

template <Dtype Type, int Rows>
void axpy_float(const uint8_t * const * rows, const float * h, float * y, size_t begin, size_t end) {
    constexpr size_t kSize = Type == Dtype::F16 ? 2 : 4;
    size_t i = begin;
    for (; i + 8 <= end; i += 8) {
        float32x4_t y0 = vld1q_f32(y + i), y1 = vld1q_f32(y + i + 4);
        UNROLL
        for (int r = 0; r < Rows; ++r) {
            const uint8_t * w = rows[r] + i * kSize;
            y0 = vfmaq_n_f32(y0, load4<Type>(w), h[r]);
            y1 = vfmaq_n_f32(y1, load4<Type>(w + 4 * kSize), h[r]);
        }
        vst1q_f32(y + i, y0);
        vst1q_f32(y + i + 4, y1);
    }
    for (; i < end; ++i) {
        float sum = y[i];
        UNROLL
        for (int r = 0; r < Rows; ++r) {
            const uint8_t * w = rows[r] + i * kSize;
            sum = __builtin_fmaf(h[r], Type == Dtype::F16 ? half_at(w) : float_at(w), sum);
        }
        y[i] = sum;
    }
}

// y[0..16) += scale * w.
inline void add16(float32x4_t * y, int8x16_t w, float scale) {
    const int16x8_t low = vmovl_s8(vget_low_s8(w)), high = vmovl_high_s8(w);
    y[0] = vfmaq_n_f32(y[0], vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), scale);
    y[1] = vfmaq_n_f32(y[1], vcvtq_f32_s32(vmovl_high_s16(low)), scale);
    y[2] = vfmaq_n_f32(y[2], vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), scale);
    y[3] = vfmaq_n_f32(y[3], vcvtq_f32_s32(vmovl_high_s16(high)), scale);
}

template <Dtype Type, int Rows>
void axpy_blocks(const uint8_t * const * rows, const float * h, float * y, size_t begin, size_t end) {
    constexpr int kBytes = Type == Dtype::Q8_0 ? kBlockBytesQ8 : kBlockBytesQ4;
    for (size_t b = begin / kBlock; b < end / kBlock; ++b) {
        float * out = y + b * kBlock;
        float32x4_t sum[8];
        UNROLL
        for (int k = 0; k < 8; ++k) sum[k] = vld1q_f32(out + 4 * k);
        UNROLL
        for (int r = 0; r < Rows; ++r) {
            const uint8_t * p = rows[r] + b * kBytes;
            const float scale = h[r] * half_at(p);
            const Pair w = block<Type>(p);
            add16(sum, w.low, scale);
            add16(sum + 4, w.high, scale);
        }
        UNROLL
        for (int k = 0; k < 8; ++k) vst1q_f32(out + 4 * k, sum[k]);
    }
}

template <int Rows>
void axpy_rows(Dtype type, const uint8_t * const * rows, const float * h, float * y, size_t begin, size_t end) {
    switch (type) {
        case Dtype::F32: return axpy_float<Dtype::F32, Rows>(rows, h, y, begin, end);
        case Dtype::F16: return axpy_float<Dtype::F16, Rows>(rows, h, y, begin, end);
        case Dtype::Q8_0: return axpy_blocks<Dtype::Q8_0, Rows>(rows, h, y, begin, end);
        case Dtype::Q4_0: return axpy_blocks<Dtype::Q4_0, Rows>(rows, h, y, begin, end);
    }
}

void axpy(Dtype type, const uint8_t * row, float h, float * y, size_t begin, size_t end) {
    axpy_rows<1>(type, &row, &h, y, begin, end);
}

void axpy4(Dtype type, const uint8_t * const rows[4], const float h[4], float * y, size_t begin, size_t end) {
    axpy_rows<4>(type, rows, h, y, begin, end);
}

// ---------------------------------------------------------------- quantize and attention

// The scalar set's arithmetic step by step, so that the blocks come out identical.
void quantize(const float * x, int8_t * q, float * scale, int32_t * sum, size_t n) {
    const float32x4_t infinity = vreinterpretq_f32_u32(vdupq_n_u32(0x7f800000u));
    for (size_t b = 0; b < n / kBlock; ++b) {
        float32x4_t v[8];
        // maxnm passes over a NaN element, as fmax does.
        float32x4_t top = vdupq_n_f32(0.0f);
        UNROLL
        for (int k = 0; k < 8; ++k) {
            v[k] = vld1q_f32(x + b * kBlock + 4 * k);
            top = vmaxnmq_f32(top, vabsq_f32(v[k]));
        }
        const float step = vmaxnmvq_f32(top) / 127.0f;
        const float inverse = step > 1e-30f ? 1.0f / step : 0.0f;
        int32x4_t total = vdupq_n_s32(0);
        int16x4_t narrow[8];
        UNROLL
        for (int k = 0; k < 8; ++k) {
            const float32x4_t scaled = vmulq_n_f32(v[k], inverse);
            // Zero where not finite: an infinity in the block makes inverse 0, and inf * 0 a NaN.
            const uint32x4_t finite = vcltq_f32(vabsq_f32(scaled), infinity);
            const int32x4_t value = vandq_s32(vcvtnq_s32_f32(scaled), vreinterpretq_s32_u32(finite));
            total = vaddq_s32(total, value);
            narrow[k] = vmovn_s32(value);
        }
        UNROLL
        for (int k = 0; k < 8; k += 4) {
            const int16x8_t low = vcombine_s16(narrow[k], narrow[k + 1]), high = vcombine_s16(narrow[k + 2], narrow[k + 3]);
            vst1q_s8(q + b * kBlock + 4 * k, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
        }
        scale[b] = inverse == 0.0f ? 0.0f : step;
        sum[b] = vaddvq_s32(total);
    }
}

float dot_f16(const uint16_t * a, const float * b, size_t n) {
    return dot_float<Dtype::F16>(reinterpret_cast<const uint8_t *>(a), b, n);
}

void axpy_f16(const uint16_t * a, float h, float * y, size_t n) {
    const auto * row = reinterpret_cast<const uint8_t *>(a);
    axpy_rows<1>(Dtype::F16, &row, &h, y, 0, n);
}

}  // namespace

const Kernels * kernels_neon() {
    static const Kernels table = {"neon", dot, axpy, axpy4, quantize, dot_f16, axpy_f16};
    return &table;
}

}  // namespace penstock
#endif
