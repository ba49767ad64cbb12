// AVX2 with FMA and F16C: this file alone is compiled for them, and called only where they run.
//
// No inline function with external linkage (dtype.h's, the standard library's) may be called here:
// the linker keeps one copy of such a function for the whole program, and if it kept this file's,
// a processor without AVX2 would meet its instructions in the scalar path.
#if defined(PENSTOCK_AVX2)
#include <immintrin.h>

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

inline uint16_t half_bits(const uint8_t * p) {
    uint16_t v;
    std::memcpy(&v, p, 2);
    return v;
}

inline float half_at(const uint8_t * p) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half_bits(p)))); }

inline float float_at(const uint8_t * p) {
    float v;
    std::memcpy(&v, p, 4);
    return v;
}

inline __m128i load_xmm(const void * p) { return _mm_loadu_si128(static_cast<const __m128i *>(p)); }
inline __m256i load_ymm(const void * p) { return _mm256_loadu_si256(static_cast<const __m256i *>(p)); }
inline __m256 load8_half(const uint8_t * p) { return _mm256_cvtph_ps(load_xmm(p)); }
inline __m256 load8_float(const uint8_t * p) { return _mm256_castsi256_ps(load_ymm(p)); }

inline float reduce(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

// The scales of 8 blocks in a row, converted together: one conversion costs as much as eight.
template <int BlockBytes>
inline __m256 scales8(const uint8_t * p) {
    __m128i v = _mm_cvtsi32_si128(half_bits(p));
    v = _mm_insert_epi16(v, half_bits(p + 1 * BlockBytes), 1);
    v = _mm_insert_epi16(v, half_bits(p + 2 * BlockBytes), 2);
    v = _mm_insert_epi16(v, half_bits(p + 3 * BlockBytes), 3);
    v = _mm_insert_epi16(v, half_bits(p + 4 * BlockBytes), 4);
    v = _mm_insert_epi16(v, half_bits(p + 5 * BlockBytes), 5);
    v = _mm_insert_epi16(v, half_bits(p + 6 * BlockBytes), 6);
    v = _mm_insert_epi16(v, half_bits(p + 7 * BlockBytes), 7);
    return _mm256_cvtph_ps(v);
}

// ---------------------------------------------------------------- dot

// Asks for what lies 1,024 bytes ahead, which may be in the next row: rows are short, and the
// processor's own prefetch has not found its pace when a row ends. Measured on rows of 2-4 KB from
// memory: a quarter faster where rows follow each other, and no slower where they do not. A prefetch
// of an address that is not mapped does nothing; the address is an integer because no pointer may
// lead past the end of an allocation.
inline void prefetch_ahead(const uint8_t * p, int bytes) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(p) + 1024;
    for (int i = 0; i < bytes; i += 64) _mm_prefetch(reinterpret_cast<const char *>(address + i), _MM_HINT_T0);
}

// n weights in F32 or F16 with n floats.
template <Dtype Type>
float dot_float(const uint8_t * w, const float * x, size_t n) {
    constexpr size_t kSize = Type == Dtype::F16 ? 2 : 4;
    const auto load = [w](size_t i) {
        if constexpr (Type == Dtype::F16) return load8_half(w + i * kSize);
        else return load8_float(w + i * kSize);
    };
    __m256 s0 = _mm256_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        prefetch_ahead(w + i * kSize, 32 * kSize);
        s0 = _mm256_fmadd_ps(load(i), _mm256_loadu_ps(x + i), s0);
        s1 = _mm256_fmadd_ps(load(i + 8), _mm256_loadu_ps(x + i + 8), s1);
        s2 = _mm256_fmadd_ps(load(i + 16), _mm256_loadu_ps(x + i + 16), s2);
        s3 = _mm256_fmadd_ps(load(i + 24), _mm256_loadu_ps(x + i + 24), s3);
    }
    for (; i + 8 <= n; i += 8) s0 = _mm256_fmadd_ps(load(i), _mm256_loadu_ps(x + i), s0);
    float sum = reduce(_mm256_add_ps(_mm256_add_ps(s0, s1), _mm256_add_ps(s2, s3)));
    for (; i < n; ++i) sum += (Type == Dtype::F16 ? half_at(w + 2 * i) : float_at(w + 4 * i)) * x[i];
    return sum;
}

// maddubs multiplies unsigned with signed bytes into saturating int16 pairs. |w| <= 128 and
// |x| <= 127 give at most 2 * 128 * 127 = 32512, so nothing saturates.
inline __m256i widen_pairs(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }

// 32 int8 weights with 32 int8 activations -> 8 partial sums; the sign of w goes onto x.
inline __m256 block_dot_q8(const uint8_t * p, const int8_t * q) {
    const __m256i w = load_ymm(p + 2);
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(load_ymm(q), w));
    return _mm256_cvtepi32_ps(widen_pairs(pairs));
}

// 16 bytes of nibbles -> 32 bytes in 0..15, in the order of the elements: low nibbles first.
inline __m256i nibbles(const uint8_t * p) {
    const __m128i packed = load_xmm(p);
    const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(packed), _mm_srli_epi16(packed, 4), 1);
    return _mm256_and_si256(both, _mm256_set1_epi8(15));
}

// sum spread over 8 lanes is 8 * sum: exactly what the offset of 8 in Q4_0 takes off.
inline __m256 block_dot_q4(const uint8_t * p, const int8_t * q, int32_t sum) {
    const __m256i dot = widen_pairs(_mm256_maddubs_epi16(nibbles(p + 2), load_ymm(q)));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(dot, _mm256_set1_epi32(sum)));
}

template <Dtype Type>
float dot_blocks(const uint8_t * row, const Activation & a, size_t n) {
    constexpr int kBytes = Type == Dtype::Q8_0 ? kBlockBytesQ8 : kBlockBytesQ4;
    const auto block = [&a](const uint8_t * p, size_t b) {
        if constexpr (Type == Dtype::Q8_0) return block_dot_q8(p, a.q + b * kBlock);
        else return block_dot_q4(p, a.q + b * kBlock, a.sum[b]);
    };
    __m256 s0 = _mm256_setzero_ps(), s1 = s0;
    const size_t blocks = n / kBlock;
    size_t b = 0;
    alignas(32) float scale[8];
    for (; b + 8 <= blocks; b += 8) {
        const uint8_t * p = row + b * kBytes;
        prefetch_ahead(p, 8 * kBytes);
        // Through memory, because a broadcast from memory takes no shuffle.
        _mm256_store_ps(scale, _mm256_mul_ps(scales8<kBytes>(p), _mm256_loadu_ps(a.scale + b)));
        UNROLL
        for (int k = 0; k < 8; k += 2) {
            s0 = _mm256_fmadd_ps(block(p + k * kBytes, b + k), _mm256_broadcast_ss(scale + k), s0);
            s1 = _mm256_fmadd_ps(block(p + (k + 1) * kBytes, b + k + 1), _mm256_broadcast_ss(scale + k + 1), s1);
        }
    }
    for (; b < blocks; ++b) {
        const uint8_t * p = row + b * kBytes;
        s0 = _mm256_fmadd_ps(block(p, b), _mm256_set1_ps(half_at(p) * a.scale[b]), s0);
    }
    return reduce(_mm256_add_ps(s0, s1));
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
    for (; i + 16 <= end; i += 16) {
        __m256 y0 = _mm256_loadu_ps(y + i), y1 = _mm256_loadu_ps(y + i + 8);
        UNROLL
        for (int r = 0; r < Rows; ++r) {
            const uint8_t * w = rows[r] + i * kSize;
            const __m256 factor = _mm256_broadcast_ss(h + r);
            if constexpr (Type == Dtype::F16) {
                y0 = _mm256_fmadd_ps(factor, load8_half(w), y0);
                y1 = _mm256_fmadd_ps(factor, load8_half(w + 16), y1);
            } else {
                y0 = _mm256_fmadd_ps(factor, load8_float(w), y0);
                y1 = _mm256_fmadd_ps(factor, load8_float(w + 32), y1);
            }
        }
        _mm256_storeu_ps(y + i, y0);
        _mm256_storeu_ps(y + i + 8, y1);
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

inline __m128i load8_bytes(const uint8_t * p) { return _mm_loadl_epi64(reinterpret_cast<const __m128i *>(p)); }

// y[0..32) += scale[r] * row r, for the block at p[r] of each row, in the order of the rows.
// Bytes are widened straight from memory: to unpack them in registers would take more shuffles,
// and there is one port for those.
template <Dtype Type, int Rows>
inline void axpy_block(const uint8_t * const * p, const float * const * scale, float * y) {
    __m256 sum[4];
    UNROLL
    for (int k = 0; k < 4; ++k) sum[k] = _mm256_loadu_ps(y + 8 * k);
    UNROLL
    for (int r = 0; r < Rows; ++r) {
        __m256i w[4];
        if constexpr (Type == Dtype::Q8_0) {
            UNROLL
            for (int k = 0; k < 4; ++k) w[k] = _mm256_cvtepi8_epi32(load8_bytes(p[r] + 2 + 8 * k));
        } else {
            const __m256i mask = _mm256_set1_epi32(15), eight = _mm256_set1_epi32(8);
            UNROLL
            for (int k = 0; k < 2; ++k) {
                const __m256i packed = _mm256_cvtepu8_epi32(load8_bytes(p[r] + 2 + 8 * k));
                w[k] = _mm256_sub_epi32(_mm256_and_si256(packed, mask), eight);
                w[k + 2] = _mm256_sub_epi32(_mm256_srli_epi32(packed, 4), eight);
            }
        }
        const __m256 factor = _mm256_broadcast_ss(scale[r]);
        UNROLL
        for (int k = 0; k < 4; ++k) sum[k] = _mm256_fmadd_ps(factor, _mm256_cvtepi32_ps(w[k]), sum[k]);
    }
    UNROLL
    for (int k = 0; k < 4; ++k) _mm256_storeu_ps(y + 8 * k, sum[k]);
}

template <Dtype Type, int Rows>
void axpy_blocks(const uint8_t * const * rows, const float * h, float * y, size_t begin, size_t end) {
    constexpr int kBytes = Type == Dtype::Q8_0 ? kBlockBytesQ8 : kBlockBytesQ4;
    const size_t last = end / kBlock;
    size_t b = begin / kBlock;
    alignas(32) float scale[Rows][8];
    const uint8_t * p[Rows];
    const float * s[Rows];
    for (; b + 8 <= last; b += 8) {
        UNROLL
        for (int r = 0; r < Rows; ++r) {
            const __m256 v = scales8<kBytes>(rows[r] + b * kBytes);
            _mm256_store_ps(scale[r], _mm256_mul_ps(_mm256_broadcast_ss(h + r), v));
        }
        for (int k = 0; k < 8; ++k) {
            UNROLL
            for (int r = 0; r < Rows; ++r) {
                p[r] = rows[r] + (b + k) * kBytes;
                s[r] = &scale[r][k];
            }
            axpy_block<Type, Rows>(p, s, y + (b + k) * kBlock);
        }
    }
    for (; b < last; ++b) {
        UNROLL
        for (int r = 0; r < Rows; ++r) {
            p[r] = rows[r] + b * kBytes;
            scale[r][0] = h[r] * half_at(p[r]);
            s[r] = scale[r];
        }
        axpy_block<Type, Rows>(p, s, y + b * kBlock);
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
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    const __m256 infinity = _mm256_castsi256_ps(_mm256_set1_epi32(0x7f800000));
    for (size_t b = 0; b < n / kBlock; ++b) {
        __m256 v[4];
        // max(a, b) is b where either is NaN, so a NaN element drops out as it does in fmax.
        __m256 top = _mm256_setzero_ps();
        UNROLL
        for (int k = 0; k < 4; ++k) {
            v[k] = _mm256_loadu_ps(x + b * kBlock + 8 * k);
            top = _mm256_max_ps(_mm256_and_ps(v[k], magnitude), top);
        }
        __m128 m = _mm_max_ps(_mm256_castps256_ps128(top), _mm256_extractf128_ps(top, 1));
        m = _mm_max_ps(m, _mm_movehl_ps(m, m));
        m = _mm_max_ss(m, _mm_movehdup_ps(m));
        const float step = _mm_cvtss_f32(m) / 127.0f;
        const float inverse = step > 1e-30f ? 1.0f / step : 0.0f;
        __m256i i32[4];
        UNROLL
        for (int k = 0; k < 4; ++k) {
            const __m256 scaled = _mm256_mul_ps(v[k], _mm256_set1_ps(inverse));
            const __m256 finite = _mm256_cmp_ps(_mm256_and_ps(scaled, magnitude), infinity, _CMP_LT_OQ);
            i32[k] = _mm256_and_si256(_mm256_cvtps_epi32(scaled), _mm256_castps_si256(finite));
        }
        const __m256i total = _mm256_add_epi32(_mm256_add_epi32(i32[0], i32[1]), _mm256_add_epi32(i32[2], i32[3]));
        __m128i t = _mm_add_epi32(_mm256_castsi256_si128(total), _mm256_extracti128_si256(total, 1));
        t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
        t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1));
        // The packs work within each 128-bit half; the permutation puts the dwords back in order.
        const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(i32[0], i32[1]), _mm256_packs_epi32(i32[2], i32[3]));
        const __m256i ordered = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(q + b * kBlock), ordered);
        scale[b] = inverse == 0.0f ? 0.0f : step;
        sum[b] = _mm_cvtsi128_si32(t);
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

const Kernels * kernels_avx2() {
    static const Kernels table = {"avx2", dot, axpy, axpy4, quantize, dot_f16, axpy_f16};
    return &table;
}

}  // namespace penstock
#endif
