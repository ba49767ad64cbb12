// Number formats of weights on storage: ggml's F32, F16, Q8_0 and Q4_0 block formats.
//
//   Q8_0: blocks of 32: f16 scale d, 32 int8 q             -> 34 bytes, value = d * q
//   Q4_0: blocks of 32: f16 scale d, 16 bytes of two nibbles -> 18 bytes, value = d * (nibble - 8);
//         byte j holds element j in its low nibble and element j + 16 in its high nibble
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace penstock {

enum class Dtype : int { F32 = 0, F16 = 1, Q4_0 = 2, Q8_0 = 8 };  // ggml's type numbers

constexpr int kBlock = 32;          // elements in a Q8_0 or Q4_0 block
constexpr int kBlockBytesQ8 = 34;
constexpr int kBlockBytesQ4 = 18;

inline bool dtype_valid(int value) {
    return value == 0 || value == 1 || value == 2 || value == 8;
}

inline bool dtype_quantized(Dtype type) { return type == Dtype::Q8_0 || type == Dtype::Q4_0; }

// Bytes of one row of n elements; n must be a multiple of 32 for the block formats.
inline size_t dtype_row_bytes(Dtype type, size_t n) {
    switch (type) {
        case Dtype::F32: return n * 4;
        case Dtype::F16: return n * 2;
        case Dtype::Q8_0: return n / kBlock * kBlockBytesQ8;
        case Dtype::Q4_0: return n / kBlock * kBlockBytesQ4;
    }
    return 0;
}

inline float f16_to_f32(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
    const uint32_t exponent = (h >> 10) & 0x1f;
    uint32_t mantissa = h & 0x3ffu;
    uint32_t bits;
    if (exponent == 0x1f) {
        bits = sign | 0x7f800000u | (mantissa << 13);
    } else if (exponent != 0) {
        bits = sign | ((exponent + 112) << 23) | (mantissa << 13);
    } else if (mantissa != 0) {  // subnormal: normalise
        int shift = 0;
        while ((mantissa & 0x400u) == 0) {
            mantissa <<= 1;
            ++shift;
        }
        bits = sign | (static_cast<uint32_t>(113 - shift) << 23) | ((mantissa & 0x3ffu) << 13);
    } else {
        bits = sign;
    }
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}

// Round to nearest even, as hardware does.
inline uint16_t f32_to_f16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude >= 0x7f800000u) {
        return sign | (magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u);
    }
    if (magnitude >= 0x477ff000u) {
        return sign | 0x7c00u;  // rounds past the largest half
    }
    if (magnitude < 0x33000001u) {
        return sign;  // rounds to zero
    }
    if (magnitude < 0x38800000u) {  // subnormal half
        const int shift = 126 - static_cast<int>(magnitude >> 23);
        const uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
        uint32_t half = mantissa >> shift;
        const uint32_t rest = mantissa & ((1u << shift) - 1);
        const uint32_t middle = 1u << (shift - 1);
        half += (rest > middle || (rest == middle && (half & 1))) ? 1 : 0;
        return sign | static_cast<uint16_t>(half);
    }
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1);
    return sign | static_cast<uint16_t>((rounded - 0x38000000u) >> 13);
}

inline uint16_t load_u16(const uint8_t * p) {
    uint16_t v;
    std::memcpy(&v, p, 2);
    return v;
}

}  // namespace penstock
