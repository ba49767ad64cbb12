// Every kernel set that runs here against the scalar set, and the scalar set against doubles.
// A plain executable: prints what failed, and its exit status is 1 if anything did.
//
// Every operand lies with its first byte just after, or its last byte just before, a page that must
// not be touched, or in an allocation of exactly its size (for ASan): a read past either end stops
// the test. Rows also start at odd addresses, as they may in a mapped file.
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "../core/kernels.h"
#include "checks.h"

using namespace penstock;

namespace {

#if defined(__ARM_FP16_FORMAT_IEEE)
using CompilerHalf = __fp16;
#define HAVE_COMPILER_HALF 1
#elif defined(__FLT16_MAX__)
using CompilerHalf = _Float16;
#define HAVE_COMPILER_HALF 1
#endif

// |dot - exact| <= tolerance * sum |w x|. The vector sets add in at least 16 short chains; the
// scalar set adds n terms in one, and its error grows with n (at most 4,096 here).
constexpr double kTolerance = 2e-6;
constexpr double kToleranceScalar = 1e-5;
constexpr double kToleranceAbsolute = 1e-36;  // products of tiny numbers may underflow

std::mt19937_64 rng(20240607);
uint32_t random_bits() { return static_cast<uint32_t>(rng() >> 32); }
float uniform(float low, float high) { return std::uniform_real_distribution<float>(low, high)(rng); }

// ---------------------------------------------------------------- memory with edges

enum class Place { HeapExact, BeforeGuard, AfterGuard };
constexpr Place kPlaces[] = {Place::HeapExact, Place::BeforeGuard, Place::AfterGuard};

class Bytes {
   public:
    Bytes(size_t size, Place place) : place_(place) {
        if (place == Place::HeapExact) {
            data_ = static_cast<uint8_t *>(std::malloc(size > 0 ? size : 1));
            if (data_ == nullptr) std::abort();
            return;
        }
        const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
        const size_t inner = (size + page - 1) / page * page + (size == 0 ? page : 0);
        mapped_ = inner + 2 * page;
        base_ = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (base_ == MAP_FAILED) std::abort();
        auto * start = static_cast<uint8_t *>(base_) + page;
        if (mprotect(start, inner, PROT_READ | PROT_WRITE) != 0) std::abort();
        data_ = place == Place::AfterGuard ? start : start + inner - size;
    }
    ~Bytes() {
        if (place_ == Place::HeapExact) std::free(data_);
        else munmap(base_, mapped_);
    }
    Bytes(const Bytes &) = delete;
    Bytes & operator=(const Bytes &) = delete;
    uint8_t * data() const { return data_; }

   private:
    Place place_;
    void * base_ = nullptr;
    size_t mapped_ = 0;
    uint8_t * data_ = nullptr;
};

template <typename T>
class Array {
   public:
    Array(size_t n, Place place) : bytes_(n * sizeof(T), place), size_(n) {
        std::memset(bytes_.data(), 0, n * sizeof(T));
    }
    T * data() const { return reinterpret_cast<T *>(bytes_.data()); }
    T & operator[](size_t i) const { return data()[i]; }
    size_t size() const { return size_; }

   private:
    Bytes bytes_;
    size_t size_;
};

// ---------------------------------------------------------------- data

enum class Kind { Plain, Zero, Tiny, Huge, Mixed };
constexpr Kind kKinds[] = {Kind::Plain, Kind::Zero, Kind::Tiny, Kind::Huge, Kind::Mixed};
const char * name(Kind kind) {
    static const char * names[] = {"plain", "zero", "tiny", "huge", "mixed"};
    return names[static_cast<int>(kind)];
}

Kind pick(Kind kind) { return kind == Kind::Mixed ? kKinds[random_bits() % 4] : kind; }

float random_float(Kind kind, float huge) {
    switch (pick(kind)) {
        case Kind::Zero: return random_bits() % 2 ? 0.0f : -0.0f;
        case Kind::Tiny: return uniform(-1e-38f, 1e-38f);  // subnormal in float
        case Kind::Huge: return uniform(-huge, huge);
        default: return uniform(-2.0f, 2.0f);
    }
}

uint16_t random_half(Kind kind) {
    const uint16_t sign = random_bits() & 0x8000u;
    switch (pick(kind)) {
        case Kind::Zero: return sign;
        case Kind::Tiny: return sign | (random_bits() & 0x3ffu);                // subnormal in half
        case Kind::Huge: return sign | 0x7800u | (random_bits() & 0x3ffu);      // 32,768..65,504
        default: return f32_to_f16(uniform(-0.05f, 0.05f));
    }
}

void fill_row(Dtype type, uint8_t * row, size_t n, Kind kind) {
    if (type == Dtype::F32) {
        for (size_t i = 0; i < n; ++i) {
            const float v = random_float(kind, 1e10f);
            std::memcpy(row + 4 * i, &v, 4);
        }
        return;
    }
    const size_t block = type == Dtype::F16 ? 2 : type == Dtype::Q8_0 ? kBlockBytesQ8 : kBlockBytesQ4;
    const size_t bytes = dtype_row_bytes(type, n);
    for (size_t i = 0; i < bytes; ++i) row[i] = static_cast<uint8_t>(random_bits());  // -128 included
    for (size_t i = 0; i < bytes; i += block) {
        const uint16_t h = random_half(kind);
        std::memcpy(row + i, &h, 2);
    }
}

double weight(Dtype type, const uint8_t * row, size_t i) {
    switch (type) {
        case Dtype::F32: {
            float v;
            std::memcpy(&v, row + 4 * i, 4);
            return v;
        }
        case Dtype::F16: return f16_to_f32(load_u16(row + 2 * i));
        case Dtype::Q8_0: {
            const uint8_t * p = row + i / 32 * kBlockBytesQ8;
            return static_cast<double>(f16_to_f32(load_u16(p))) * static_cast<int8_t>(p[2 + i % 32]);
        }
        case Dtype::Q4_0: {
            const uint8_t * p = row + i / 32 * kBlockBytesQ4;
            const int nibble = i % 32 < 16 ? p[2 + i % 16] & 15 : p[2 + i % 16] >> 4;
            return static_cast<double>(f16_to_f32(load_u16(p))) * (nibble - 8);
        }
    }
    return 0.0;
}

bool same(const void * a, const void * b, size_t bytes) { return std::memcmp(a, b, bytes) == 0; }

// ---------------------------------------------------------------- half precision

bool is_nan(float v) { return v != v; }

void test_half() {
    for (uint32_t h = 0; h < 65536; ++h) {
        const auto half = static_cast<uint16_t>(h);
        const float f = f16_to_f32(half);
        if ((h & 0x7fffu) > 0x7c00u) {
            CHECK(is_nan(f) && (f32_to_f16(f) & 0x7fffu) > 0x7c00u, "half %04x is a NaN", h);
            continue;
        }
        CHECK(f32_to_f16(f) == half, "half %04x does not come back", h);
        CHECK(std::signbit(f) == ((h >> 15) != 0), "sign of half %04x", h);
        const int e = static_cast<int>((h >> 10) & 31), m = static_cast<int>(h & 1023);
        const double exact = e == 0 ? std::ldexp(m, -24) : e == 31 ? INFINITY : std::ldexp(1024 + m, e - 25);
        CHECK(std::fabs(static_cast<double>(f)) == exact, "value of half %04x", h);
    }
#ifdef HAVE_COMPILER_HALF
    const auto check = [](float f) {
        const CompilerHalf theirs = static_cast<CompilerHalf>(f);
        uint16_t bits;
        std::memcpy(&bits, &theirs, 2);
        const uint16_t ours = f32_to_f16(f);
        const bool both_nan = (bits & 0x7fffu) > 0x7c00u && (ours & 0x7fffu) > 0x7c00u;
        CHECK(bits == ours || (is_nan(f) && both_nan), "%.9g rounds to %04x, not %04x", f, bits, ours);
    };
    // Each half, the middle between it and the next (a tie), and the floats around both.
    for (uint32_t h = 0; h < 0x7c00u; ++h) {
        const float low = f16_to_f32(static_cast<uint16_t>(h));
        const float high = h == 0x7bffu ? 65536.0f : f16_to_f32(static_cast<uint16_t>(h + 1));
        for (const float f : {low, (low + high) / 2}) {
            for (const float g : {f, std::nextafter(f, -INFINITY), std::nextafter(f, INFINITY)}) {
                check(g);
                check(-g);
            }
        }
    }
    for (int i = 0; i < 1000000; ++i) {
        const uint32_t bits = random_bits();
        float f;
        std::memcpy(&f, &bits, 4);
        check(f);
    }
#else
    std::printf("no half type in this compiler: rounding is checked on exact values only\n");
#endif
}

// ---------------------------------------------------------------- kernels

void test_quantize(const Kernels & set, size_t n, Kind kind, Place place) {
    const float specials[] = {NAN, INFINITY, -INFINITY, 0.5f, 1.5f, 2.5f, 127.0f, -127.0f, 1e-29f, 1.27e-28f};
    for (int special = 0; special < 2; ++special) {
        Array<float> x(n, place);
        for (size_t i = 0; i < n; ++i) x[i] = random_float(kind, 1e38f);
        // NaN, infinity, ties, and blocks about the least step that is divided by.
        for (size_t i = 0; special && i < n; i += 1 + random_bits() % 40) x[i] = specials[random_bits() % 10];
        for (size_t i = 0; special && i < 32 && kind == Kind::Zero; ++i) x[i] = static_cast<float>(i) + 0.5f - 16.0f;
        if (special && kind == Kind::Zero) x[31] = 127.0f;  // step 1: every other element is a tie
        Array<int8_t> q(n, place), q0(n, place);
        Array<float> scale(n / 32, place), scale0(n / 32, place);
        Array<int32_t> sum(n / 32, place), sum0(n / 32, place);
        kernels_scalar().quantize(x.data(), q0.data(), scale0.data(), sum0.data(), n);
        set.quantize(x.data(), q.data(), scale.data(), sum.data(), n);
        CHECK(same(q.data(), q0.data(), n) && same(scale.data(), scale0.data(), n / 8) &&
                  same(sum.data(), sum0.data(), n / 8),
              "%s quantize n=%zu %s special=%d", set.name, n, name(kind), special);
        for (size_t b = 0; b < n / 32; ++b) {
            int32_t total = 0;
            for (size_t i = b * 32; i < b * 32 + 32; ++i) {
                total += q0[i];
                const double error = std::fabs(static_cast<double>(scale0[b]) * q0[i] - static_cast<double>(x[i]));
                const bool zeroed = scale0[b] == 0.0f;
                CHECK(!std::isfinite(x[i]) || zeroed || error <= static_cast<double>(scale0[b]) * 0.50001,
                      "scalar quantize n=%zu %s: %.9g off by %.9g", n, name(kind), x[i], error);
                CHECK(q0[i] != -128, "scalar quantize n=%zu %s: -128", n, name(kind));
            }
            CHECK(total == sum0[b], "scalar quantize n=%zu %s: sum", n, name(kind));
        }
    }
}

void check_dot(const Kernels & set, const char * what, int type, size_t n, Kind kind, float got, double exact,
               double total) {
    const bool scalar = &set == &kernels_scalar();
    const double allowed = (scalar ? kToleranceScalar : kTolerance) * total + kToleranceAbsolute;
    CHECK(std::fabs(static_cast<double>(got) - exact) <= allowed, "%s %s type=%d n=%zu %s: %.9g, exactly %.9g (+-%.3g)",
          set.name, what, type, n, name(kind), got, exact, allowed);
}

void test_rows(const Kernels & set, Dtype type, size_t n, Kind kind, Place place) {
    const int t = static_cast<int>(type);
    const bool blocks = dtype_quantized(type);
    const size_t bytes = dtype_row_bytes(type, n);
    // Rows of a mapped file can start anywhere: in the heap they are moved to an odd address.
    const size_t skew = place == Place::HeapExact ? 1 : 0;
    std::vector<std::unique_ptr<Bytes>> memory;
    const uint8_t * rows[4];
    for (int r = 0; r < 4; ++r) {
        memory.push_back(std::make_unique<Bytes>(bytes + skew, place));
        fill_row(type, memory.back()->data() + skew, n, kind);
        rows[r] = memory.back()->data() + skew;
    }
    Array<float> x(n, place);
    for (size_t i = 0; i < n; ++i) x[i] = random_float(kind, 1e20f);

    Array<int8_t> q(blocks ? n : 0, place);
    Array<float> scale(blocks ? n / 32 : 0, place);
    Array<int32_t> sum(blocks ? n / 32 : 0, place);
    Activation a;
    if (blocks) {
        kernels_scalar().quantize(x.data(), q.data(), scale.data(), sum.data(), n);
        a.q = q.data(), a.scale = scale.data(), a.sum = sum.data();
    } else {
        a.x = x.data();
    }
    double exact = 0.0, total = 0.0;
    for (size_t i = 0; i < n; ++i) {
        const double xi = blocks ? static_cast<double>(scale[i / 32]) * q[i] : static_cast<double>(x[i]);
        exact += weight(type, rows[0], i) * xi;
        total += std::fabs(weight(type, rows[0], i) * xi);
    }
    check_dot(set, "dot", t, n, kind, set.dot(type, rows[0], a, n), exact, total);

    float h[4];
    for (float & v : h) v = random_float(kind, 1e10f);
    const size_t unit = blocks ? 32 : 1;
    const size_t ranges[][2] = {{0, n}, {unit, n}, {0, n - unit}, {n / 3 / unit * unit, n / 2 / unit * unit}, {0, 0}};
    for (const auto & range : ranges) {
        const size_t begin = range[0], end = range[1];
        if (begin > end) continue;
        Array<float> first(n, place), one(n, place), four(n, place), singly(n, place);
        for (size_t i = 0; i < n; ++i) first[i] = one[i] = four[i] = singly[i] = random_float(kind, 1e10f);
        // Every set multiplies and adds with one rounding, as the scalar one does: the same bits.
        kernels_scalar().axpy(type, rows[0], h[0], first.data(), begin, end);
        set.axpy(type, rows[0], h[0], one.data(), begin, end);
        CHECK(same(first.data(), one.data(), 4 * n), "%s axpy type=%d n=%zu [%zu, %zu) %s", set.name, t, n, begin, end,
              name(kind));
        set.axpy4(type, rows, h, four.data(), begin, end);
        for (int r = 0; r < 4; ++r) set.axpy(type, rows[r], h[r], singly.data(), begin, end);
        CHECK(same(four.data(), singly.data(), 4 * n), "%s axpy4 type=%d n=%zu [%zu, %zu) %s", set.name, t, n, begin,
              end, name(kind));
    }

    if (type == Dtype::F16 && skew == 0) {  // the attention pieces: their halves are aligned
        const auto * halves = reinterpret_cast<const uint16_t *>(rows[0]);
        check_dot(set, "dot_f16", t, n, kind, set.dot_f16(halves, x.data(), n), exact, total);
        Array<float> y(n, place), y0(n, place);
        for (size_t i = 0; i < n; ++i) y[i] = y0[i] = random_float(kind, 1e10f);
        kernels_scalar().axpy_f16(halves, h[0], y0.data(), n);
        set.axpy_f16(halves, h[0], y.data(), n);
        CHECK(same(y.data(), y0.data(), 4 * n), "%s axpy_f16 n=%zu %s", set.name, n, name(kind));
    }
}

}  // namespace

int main() {
    test_half();
    const size_t float_sizes[] = {1, 2, 3, 7, 15, 16, 17, 31, 33, 63, 65, 129, 1023, 4096};
    const size_t block_sizes[] = {32, 64, 96, 128, 160, 256, 288, 1024, 4096};
    for (const char * wanted : {"scalar", "avx2", "avx512", "neon"}) {
        if (!kernels_select(wanted)) {
            std::printf("%-7s not available here\n", wanted);
            continue;
        }
        const Kernels & set = kernels();
        CHECK(std::strcmp(set.name, wanted) == 0, "%s answers to %s", set.name, wanted);
        for (const Kind kind : kKinds) {
            for (const Place place : kPlaces) {
                for (const size_t n : float_sizes) {
                    test_rows(set, Dtype::F32, n, kind, place);
                    test_rows(set, Dtype::F16, n, kind, place);
                }
                for (const size_t n : block_sizes) {
                    test_quantize(set, n, kind, place);
                    test_rows(set, Dtype::Q8_0, n, kind, place);
                    test_rows(set, Dtype::Q4_0, n, kind, place);
                }
            }
        }
        std::printf("%-7s tested\n", wanted);
    }
    CHECK(!kernels_select("no such set"), "an unknown set was selected");
    CHECK(kernels_select("auto"), "no set can be selected");
    return report_checks();
}
