// AVX-512 with VNNI: this file alone is compiled for it, and called only where it runs.
//
// No inline function with external linkage (dtype.h's, the standard library's) may be called here:
// the linker keeps one copy of such a function for the whole program, and if it kept this file's,
// a processor without AVX-512 would meet its instructions in the scalar path.
#if defined(PENSTOCK_AVX512)
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12's header leaves don't-care operands uninitialised, and warns of them itself (bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
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

inline __m128i load_xmm(const void * p) { return _mm_loadu_si128(static_cast<const __m128i *>(p)); }
inline __m256i load_ymm(const void * p) { return _mm256_loadu_si256(static_cast<const __m256i *>(p)); }

// 16 weights in F32 or F16 -> float; `m` of them in the second form, which reads no others.
template <Dtype Type>
inline __m512 load16(const uint8_t * p) {
    if constexpr (Type == Dtype::F16) return _mm512_cvtph_ps(load_ymm(p));
    else return _mm512_loadu_ps(p);
}

template <Dtype Type>
inline __m512 load16(const uint8_t * p, __mmask16 m) {
    if constexpr (Type == Dtype::F16) return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, p));
    else return _mm512_maskz_loadu_ps(m, p);
}

inline __mmask16 first(size_t count) {  // count in 1..16
    return static_cast<__mmask16>(0xffffu >> (16 - count));
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
    __m512 s0 = _mm512_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
    size_t i = 0;
    for (; i + 64 <= n; i += 64) {
        const uint8_t * p = w + i * kSize;
        prefetch_ahead(p, 64 * kSize);
        s0 = _mm512_fmadd_ps(load16<Type>(p), _mm512_loadu_ps(x + i), s0);
        s1 = _mm512_fmadd_ps(load16<Type>(p + 16 * kSize), _mm512_loadu_ps(x + i + 16), s1);
        s2 = _mm512_fmadd_ps(load16<Type>(p + 32 * kSize), _mm512_loadu_ps(x + i + 32), s2);
        s3 = _mm512_fmadd_ps(load16<Type>(p + 48 * kSize), _mm512_loadu_ps(x + i + 48), s3);
    }
    for (; i + 16 <= n; i += 16) {
        s0 = _mm512_fmadd_ps(load16<Type>(w + i * kSize), _mm512_loadu_ps(x + i), s0);
    }
    if (i < n) {
        const __mmask16 m = first(n - i);
        s1 = _mm512_fmadd_ps(load16<Type>(w + i * kSize, m), _mm512_maskz_loadu_ps(m, x + i), s1);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(s0, s1), _mm512_add_ps(s2, s3)));
}

// 16 bytes of nibbles -> 32 bytes in 0..15, in the order of the elements: low nibbles first.
inline __m256i nibbles(const uint8_t * p) {
    const __m128i packed = load_xmm(p);
    const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(packed), _mm_srli_epi16(packed, 4), 1);
    return _mm256_and_si256(both, _mm256_set1_epi8(15));
}

// The same for two blocks: each is broadcast to two lanes of 128 bits, and the second is shifted.
inline __m512i nibbles2(const uint8_t * p0, const uint8_t * p1) {
    const __m512i packed = _mm512_mask_broadcast_i32x4(_mm512_broadcast_i32x4(load_xmm(p0)), 0xff00, load_xmm(p1));
    const __m512i shifts = _mm512_set_epi64(4, 4, 0, 0, 4, 4, 0, 0);
    return _mm512_and_si512(_mm512_srlv_epi64(packed, shifts), _mm512_set1_epi8(15));
}

// dpbusd multiplies unsigned with signed bytes: |w| times x with w's sign moved onto x.
inline __m256i block_dot_q8(const uint8_t * p, const int8_t * q) {
    const __m256i w = load_ymm(p + 2), x = load_ymm(q);
    const __m256i signed_x = _mm256_mask_sub_epi8(x, _mm256_movepi8_mask(w), _mm256_setzero_si256(), x);
    return _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_abs_epi8(w), signed_x);
}

// Two blocks that follow each other: the partial sums of one are in the low half, of the other
// in the high half.
inline __m512i block_dot2_q8(const uint8_t * p, const int8_t * q) {
    const __m512i w = _mm512_inserti64x4(_mm512_castsi256_si512(load_ymm(p + 2)), load_ymm(p + 2 + kBlockBytesQ8), 1);
    const __m512i x = _mm512_loadu_si512(q);
    const __m512i signed_x = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w), _mm512_setzero_si512(), x);
    return _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_abs_epi8(w), signed_x);
}

template <Dtype Type>
float dot_blocks(const uint8_t * row, const Activation & a, size_t n) {
    constexpr int kBytes = Type == Dtype::Q8_0 ? kBlockBytesQ8 : kBlockBytesQ4;
    // From 8 values, one to each block, those of blocks k and k + 1 spread over half a register each.
    const __m512i pair = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
    __m512 s0 = _mm512_setzero_ps(), s1 = s0;
    const size_t blocks = n / kBlock;
    size_t b = 0;
    for (; b + 8 <= blocks; b += 8) {
        const uint8_t * p = row + b * kBytes;
        const int8_t * q = a.q + b * kBlock;
        prefetch_ahead(p, 8 * kBytes);
        const __m512 scale = _mm512_zextps256_ps512(_mm256_mul_ps(scales8<kBytes>(p), _mm256_loadu_ps(a.scale + b)));
        __m512i offset = _mm512_setzero_si512();
        if constexpr (Type == Dtype::Q4_0) {
            // -sum over 8 lanes is -8 * sum: exactly what the offset of 8 in Q4_0 takes off.
            offset = _mm512_zextsi256_si512(_mm256_sub_epi32(_mm256_setzero_si256(), load_ymm(a.sum + b)));
        }
        UNROLL
        for (int k = 0; k < 8; k += 2) {
            const __m512i index = _mm512_add_epi32(pair, _mm512_set1_epi32(k));
            __m512i d;
            if constexpr (Type == Dtype::Q8_0) {
                d = block_dot2_q8(p + k * kBytes, q + k * kBlock);
            } else {
                d = _mm512_dpbusd_epi32(_mm512_permutexvar_epi32(index, offset),
                                        nibbles2(p + k * kBytes + 2, p + (k + 1) * kBytes + 2),
                                        _mm512_loadu_si512(q + k * kBlock));
            }
            __m512 & s = k & 2 ? s1 : s0;
            s = _mm512_fmadd_ps(_mm512_cvtepi32_ps(d), _mm512_permutexvar_ps(index, scale), s);
        }
    }
    __m256 tail = _mm256_setzero_ps();
    for (; b < blocks; ++b) {
        const uint8_t * p = row + b * kBytes;
        const int8_t * q = a.q + b * kBlock;
        __m256i d;
        if constexpr (Type == Dtype::Q8_0) d = block_dot_q8(p, q);
        else d = _mm256_dpbusd_epi32(_mm256_set1_epi32(-a.sum[b]), nibbles(p + 2), load_ymm(q));
        tail = _mm256_fmadd_ps(_mm256_cvtepi32_ps(d), _mm256_set1_ps(half_at(p) * a.scale[b]), tail);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(s0, s1), _mm512_zextps256_ps512(tail)));
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
    __m512 factor[Rows];
    UNROLL
    for (int r = 0; r < Rows; ++r) factor[r] = _mm512_set1_ps(h[r]);
    size_t i = begin;
    for (; i + 32 <= end; i += 32) {
        __m512 y0 = _mm512_loadu_ps(y + i), y1 = _mm512_loadu_ps(y + i + 16);
        UNROLL
        for (int r = 0; r < Rows; ++r) {
            const uint8_t * w = rows[r] + i * kSize;
            y0 = _mm512_fmadd_ps(factor[r], load16<Type>(w), y0);
            y1 = _mm512_fmadd_ps(factor[r], load16<Type>(w + 16 * kSize), y1);
        }
        _mm512_storeu_ps(y + i, y0);
        _mm512_storeu_ps(y + i + 16, y1);
    }
    for (; i < end; i += 16) {
        const __mmask16 m = end - i >= 16 ? 0xffff : first(end - i);
        __m512 sum = _mm512_maskz_loadu_ps(m, y + i);
        UNROLL
        for (int r = 0; r < Rows; ++r) sum = _mm512_fmadd_ps(factor[r], load16<Type>(rows[r] + i * kSize, m), sum);
        _mm512_mask_storeu_ps(y + i, m, sum);
    }
}

inline __m512 bytes16(__m128i v) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(v)); }

// One block of 32 weights in float, before the scale: elements 0..15 and 16..31.
struct Pair {
    __m512 low, high;
};

template <Dtype Type>
inline Pair block(const uint8_t * p) {
    if constexpr (Type == Dtype::Q8_0) {
        return {bytes16(load_xmm(p + 2)), bytes16(load_xmm(p + 18))};
    } else {
        // The permutation looks at the low four bits of its index only: it is a table of nibble - 8.
        const __m512 table = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
        const __m512i packed = _mm512_cvtepu8_epi32(load_xmm(p + 2));
        return {_mm512_permutexvar_ps(packed, table), _mm512_permutexvar_ps(_mm512_srli_epi32(packed, 4), table)};
    }
}

// y[0..32) += scale[r] * row r, for the block at p[r] of each row, in the order of the rows.
template <Dtype Type, int Rows>
inline void axpy_block(const uint8_t * const * p, const float * const * scale, float * y) {
    __m512 y0 = _mm512_loadu_ps(y), y1 = _mm512_loadu_ps(y + 16);
    UNROLL
    for (int r = 0; r < Rows; ++r) {
        const Pair w = block<Type>(p[r]);
        const __m512 factor = _mm512_set1_ps(*scale[r]);
        y0 = _mm512_fmadd_ps(factor, w.low, y0);
        y1 = _mm512_fmadd_ps(factor, w.high, y1);
    }
    _mm512_storeu_ps(y, y0);
    _mm512_storeu_ps(y + 16, y1);
}

template <Dtype Type, int Rows>
void axpy_blocks(const uint8_t * const * rows, const float * h, float * y, size_t begin, size_t end) {
    constexpr int kBytes = Type == Dtype::Q8_0 ? kBlockBytesQ8 : kBlockBytesQ4;
    const size_t last = end / kBlock;
    size_t b = begin / kBlock;
    // The scales go through memory, because a broadcast from memory takes no shuffle.
    alignas(32) float scale[Rows][8];
    const uint8_t * p[Rows];
    const float * s[Rows];
    for (; b + 8 <= last; b += 8) {
        UNROLL
        for (int r = 0; r < Rows; ++r) {
            const __m256 v = scales8<kBytes>(rows[r] + b * kBytes);
            _mm256_store_ps(scale[r], _mm256_mul_ps(_mm256_set1_ps(h[r]), v));
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
    const __m512 infinity = _mm512_castsi512_ps(_mm512_set1_epi32(0x7f800000));
    for (size_t b = 0; b < n / kBlock; ++b) {
        const __m512 v0 = _mm512_loadu_ps(x + b * kBlock), v1 = _mm512_loadu_ps(x + b * kBlock + 16);
        // max(a, b) is b where either is NaN, so a NaN element drops out as it does in fmax.
        __m512 top = _mm512_max_ps(_mm512_abs_ps(v0), _mm512_setzero_ps());
        top = _mm512_max_ps(_mm512_abs_ps(v1), top);
        const float step = _mm512_reduce_max_ps(top) / 127.0f;
        const float inverse = step > 1e-30f ? 1.0f / step : 0.0f;
        const __m512 f0 = _mm512_mul_ps(v0, _mm512_set1_ps(inverse)), f1 = _mm512_mul_ps(v1, _mm512_set1_ps(inverse));
        // Zero where not finite: an infinity in the block makes inverse 0, and inf * 0 a NaN.
        const __mmask16 m0 = _mm512_cmp_ps_mask(_mm512_abs_ps(f0), infinity, _CMP_LT_OQ);
        const __mmask16 m1 = _mm512_cmp_ps_mask(_mm512_abs_ps(f1), infinity, _CMP_LT_OQ);
        const __m512i i0 = _mm512_maskz_cvtps_epi32(m0, f0), i1 = _mm512_maskz_cvtps_epi32(m1, f1);
        _mm_storeu_si128(reinterpret_cast<__m128i *>(q + b * kBlock), _mm512_cvtepi32_epi8(i0));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(q + b * kBlock + 16), _mm512_cvtepi32_epi8(i1));
        scale[b] = inverse == 0.0f ? 0.0f : step;
        sum[b] = _mm512_reduce_add_epi32(_mm512_add_epi32(i0, i1));
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

const Kernels * kernels_avx512() {
    static const Kernels table = {"avx512", dot, axpy, axpy4, quantize, dot_f16, axpy_f16};
    return &table;
}

}  // namespace penstock
#endif
