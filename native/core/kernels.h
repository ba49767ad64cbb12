// The arithmetic that decoding spends its time in, compiled once for each instruction set and
// chosen at run time. The scalar set is the oracle that every other set is tested against.
//
// A weight row is `n` elements in one of the formats of dtype.h. Block formats are multiplied with
// an activation that was quantized to int8 by blocks of 32 (as ggml does), the others in float.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dtype.h"

namespace penstock {

// One activation vector, in float and, when any block-format weight will meet it, in int8 blocks.
struct Activation {
    const float * x = nullptr;       // (n)
    const int8_t * q = nullptr;      // (n)
    const float * scale = nullptr;   // (n / 32)
    const int32_t * sum = nullptr;   // (n / 32): sum of q over the block, for Q4_0's offset of 8
};

struct Kernels {
    const char * name;
    // Dot product of one weight row with one activation.
    float (*dot)(Dtype type, const uint8_t * row, const Activation & x, size_t n);
    // y[begin..end) += h * row[begins..end); in the block formats begin and end are multiples of 32.
    void (*axpy)(Dtype type, const uint8_t * row, float h, float * y, size_t begin, size_t end);
    // The same for four rows in turn: the sums are added in the order of the rows, so the result
    // is bit-identical to four calls of axpy. It saves loads and stores of y.
    void (*axpy4)(Dtype type, const uint8_t * const rows[4], const float h[4], float * y,
                  size_t begin, size_t end);
    // x -> int8 blocks of 32; n is a multiple of 32.
    void (*quantize)(const float * x, int8_t * q, float * scale, int32_t * sum, size_t n);
    // Attention pieces over a cache in f16: dot of q with one key, and y += p * value.
    float (*dot_f16)(const uint16_t * a, const float * b, size_t n);
    void (*axpy_f16)(const uint16_t * a, float h, float * y, size_t n);
};

const Kernels & kernels_scalar();
const Kernels * kernels_avx2();     // nullptr when not compiled in
const Kernels * kernels_avx512();
const Kernels * kernels_neon();

// The best set that this processor runs, or the one that kernels_select named.
const Kernels & kernels();
// Choose a set by name ("scalar", "avx2", "avx512", "neon", "auto"); false when it cannot run here.
bool kernels_select(const char * name);

}  // namespace penstock
