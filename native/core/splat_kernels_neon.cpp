// Splat kernels with NEON, as every 64-bit Arm processor has it: eight pixels in two registers.
#if defined(__aarch64__)
#include <arm_neon.h>

#include "splat_kernels.h"

namespace penstock {
namespace {

struct Lanes {
    float32x4_t low, high;
};
struct Mask {
    uint32x4_t low, high;  // all bits of a lane, or none
};

inline Lanes all(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
inline Lanes load(const float * p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
inline Lanes load_anywhere(const float * p) { return load(p); }
inline void store(float * p, Lanes a) {
    vst1q_f32(p, a.low);
    vst1q_f32(p + 4, a.high);
}
inline void store_whole(int32_t * p, Lanes a) {  // towards zero
    vst1q_s32(p, vcvtq_s32_f32(a.low));
    vst1q_s32(p + 4, vcvtq_s32_f32(a.high));
}
// Of eight rows of blocks of two rows of pixels, the middles of the upper ones.
inline Lanes block_row_middles() {
    alignas(16) const float middles[8] = {0.5f, 2.5f, 4.5f, 6.5f, 8.5f, 10.5f, 12.5f, 14.5f};
    return load(middles);
}

inline Lanes operator+(Lanes a, Lanes b) { return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)}; }
inline Lanes operator/(Lanes a, Lanes b) { return {vdivq_f32(a.low, b.low), vdivq_f32(a.high, b.high)}; }
inline Lanes fma(Lanes a, Lanes b, Lanes c) {  // a b + c
    return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)};
}
inline Lanes min(Lanes a, Lanes b) { return {vminq_f32(a.low, b.low), vminq_f32(a.high, b.high)}; }
inline Lanes max(Lanes a, Lanes b) { return {vmaxq_f32(a.low, b.low), vmaxq_f32(a.high, b.high)}; }
inline Lanes sqrt(Lanes a) { return {vsqrtq_f32(a.low), vsqrtq_f32(a.high)}; }
inline Lanes round_up(Lanes a) { return {vrndpq_f32(a.low), vrndpq_f32(a.high)}; }
inline Lanes round_down(Lanes a) { return {vrndmq_f32(a.low), vrndmq_f32(a.high)}; }
inline Lanes absolute(Lanes a) { return {vabsq_f32(a.low), vabsq_f32(a.high)}; }

inline Mask at_most(Lanes a, Lanes b) { return {vcleq_f32(a.low, b.low), vcleq_f32(a.high, b.high)}; }
inline Mask below(Lanes a, Lanes b) { return {vcltq_f32(a.low, b.low), vcltq_f32(a.high, b.high)}; }
inline Mask both(Mask a, Mask b) { return {vandq_u32(a.low, b.low), vandq_u32(a.high, b.high)}; }
inline Mask first_only(Mask a, Mask b) { return {vbicq_u32(a.low, b.low), vbicq_u32(a.high, b.high)}; }  // a and not b

inline int bits(Mask m) {
    alignas(16) const uint32_t places[4] = {1, 2, 4, 8};
    const uint32x4_t place = vld1q_u32(places);
    return static_cast<int>(vaddvq_u32(vandq_u32(m.low, place)) | vaddvq_u32(vandq_u32(m.high, place)) << 4);
}
inline float32x4_t keep4(uint32x4_t m, float32x4_t a) { return vreinterpretq_f32_u32(vandq_u32(m, vreinterpretq_u32_f32(a))); }
inline Lanes keep(Mask m, Lanes a) { return {keep4(m.low, a.low), keep4(m.high, a.high)}; }  // 0 elsewhere, whatever was there
inline Lanes pick(Mask m, Lanes a, Lanes b) { return {vbslq_f32(m.low, a.low, b.low), vbslq_f32(m.high, a.high, b.high)}; }  // m ? a : b

// 2^-x for 0 <= x <= 100; anything, without a fault, elsewhere. x to the nearest whole number by adding
// 1.5 * 2^23, which goes to the exponent's bits; what is left, on [-1/2, 1/2], by a polynomial: 2.6e-6.
inline float32x4_t exp2_minus4(float32x4_t x) {
    const float32x4_t large = vdupq_n_f32(12582912.0f);
    const float32x4_t n = vsubq_f32(large, x);
    const float32x4_t f = vaddq_f32(vsubq_f32(n, large), x);
    float32x4_t p = vdupq_n_f32(9.570101857e-3f);
    p = vfmaq_f32(vdupq_n_f32(-5.591786031e-2f), p, f);
    p = vfmaq_f32(vdupq_n_f32(0.2402474483f), p, f);
    p = vfmaq_f32(vdupq_n_f32(-0.6931218147f), p, f);
    p = vfmaq_f32(vdupq_n_f32(0.9999992614f), p, f);
    const int32x4_t exponent = vshlq_n_s32(vreinterpretq_s32_f32(n), 23);
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p), exponent));
}
inline Lanes exp2_minus(Lanes x) { return {exp2_minus4(x.low), exp2_minus4(x.high)}; }

inline float sum(Lanes a) { return vaddvq_f32(vaddq_f32(a.low, a.high)); }

}  // namespace
}  // namespace penstock

#include "splat_kernels_lanes.h"
#include "splat_project_lanes.h"

namespace penstock {

const SplatKernels * splat_kernels_neon() {
    static const SplatKernels set = {"neon", project, blend, gradient};
    return &set;
}

}  // namespace penstock
#endif
