// Splat kernels with AVX2 and FMA: eight pixels in a register. Compiled for them and called only
// where they run; no function with external linkage may be called here (see kernels_avx2.cpp).
#if defined(PENSTOCK_AVX2)
#include <immintrin.h>

#include "splat_kernels.h"

namespace penstock {
namespace {

struct Lanes {
    __m256 v;
};
struct Mask {
    __m256 v;  // all bits of a lane, or none
};

inline Lanes all(float x) { return {_mm256_set1_ps(x)}; }
inline Lanes load(const float * p) { return {_mm256_load_ps(p)}; }
inline Lanes load_anywhere(const float * p) { return {_mm256_loadu_ps(p)}; }
inline void store(float * p, Lanes a) { _mm256_store_ps(p, a.v); }
inline void store_whole(int32_t * p, Lanes a) {  // towards zero
    _mm256_store_si256(reinterpret_cast<__m256i *>(p), _mm256_cvttps_epi32(a.v));
}
// Of eight rows of blocks of two rows of pixels, the middles of the upper ones.
inline Lanes block_row_middles() { return {_mm256_setr_ps(0.5f, 2.5f, 4.5f, 6.5f, 8.5f, 10.5f, 12.5f, 14.5f)}; }

inline Lanes operator+(Lanes a, Lanes b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Lanes operator/(Lanes a, Lanes b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }  // a b + c
inline Lanes min(Lanes a, Lanes b) { return {_mm256_min_ps(a.v, b.v)}; }
inline Lanes max(Lanes a, Lanes b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Lanes sqrt(Lanes a) { return {_mm256_sqrt_ps(a.v)}; }
inline Lanes round_up(Lanes a) { return {_mm256_ceil_ps(a.v)}; }
inline Lanes round_down(Lanes a) { return {_mm256_floor_ps(a.v)}; }
inline Lanes absolute(Lanes a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }

inline Mask at_most(Lanes a, Lanes b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ)}; }
inline Mask below(Lanes a, Lanes b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
inline Mask both(Mask a, Mask b) { return {_mm256_and_ps(a.v, b.v)}; }
inline Mask first_only(Mask a, Mask b) { return {_mm256_andnot_ps(b.v, a.v)}; }  // a and not b
inline int bits(Mask m) { return _mm256_movemask_ps(m.v); }
inline Lanes keep(Mask m, Lanes a) { return {_mm256_and_ps(m.v, a.v)}; }  // 0 elsewhere, whatever was there
inline Lanes pick(Mask m, Lanes a, Lanes b) { return {_mm256_blendv_ps(b.v, a.v, m.v)}; }  // m ? a : b

// 2^-x for 0 <= x <= 100; anything, without a fault, elsewhere. x to the nearest whole number by adding
// 1.5 * 2^23, which goes to the exponent's bits; what is left, on [-1/2, 1/2], by a polynomial: 2.6e-6.
inline Lanes exp2_minus(Lanes x) {
    const __m256 large = _mm256_set1_ps(12582912.0f);
    const __m256 n = _mm256_sub_ps(large, x.v);
    const __m256 f = _mm256_add_ps(_mm256_sub_ps(n, large), x.v);
    __m256 p = _mm256_set1_ps(9.570101857e-3f);
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(-5.591786031e-2f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0.2402474483f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(-0.6931218147f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0.9999992614f));
    const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(n), 23);
    return {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent))};
}

inline float sum(Lanes a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

}  // namespace
}  // namespace penstock

#include "splat_kernels_lanes.h"
#include "splat_project_lanes.h"

namespace penstock {

const SplatKernels * splat_kernels_avx2() {
    static const SplatKernels set = {"avx2", project, blend, gradient};
    return &set;
}

}  // namespace penstock
#endif
