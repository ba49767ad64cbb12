// Memory that direct reads can land in: aligned to 4096 bytes, counted, freed once.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

namespace penstock {

constexpr size_t kPage = 4096;
constexpr size_t kHugePage = size_t{2} << 20;

inline size_t round_up(size_t value, size_t to) { return (value + to - 1) / to * to; }
inline size_t round_down(size_t value, size_t to) { return value / to * to; }

class AlignedBuffer {
public:
    AlignedBuffer() = default;
    // Anonymous pages, so that unused ones cost nothing and freed ones go back to the system at once.
    explicit AlignedBuffer(size_t bytes) : bytes_(round_up(bytes, kPage)) {
        if (bytes_ == 0) return;
        void * p = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) throw std::bad_alloc();
        data_ = static_cast<uint8_t *>(p);
#if defined(MADV_HUGEPAGE)
        // Fewer TLB misses in the kernels and fewer pages to pin in a direct read. Only where the
        // buffer is a whole number of huge pages in effect, so that the budget is not overrun.
        if (bytes_ >= (size_t{8} << 20)) madvise(p, round_down(bytes_, kHugePage), MADV_HUGEPAGE);
#endif
    }
    ~AlignedBuffer() { reset(); }
    AlignedBuffer(AlignedBuffer && other) noexcept { swap(other); }
    AlignedBuffer & operator=(AlignedBuffer && other) noexcept {
        swap(other);
        return *this;
    }
    AlignedBuffer(const AlignedBuffer &) = delete;
    AlignedBuffer & operator=(const AlignedBuffer &) = delete;

    uint8_t * data() { return data_; }
    const uint8_t * data() const { return data_; }
    size_t bytes() const { return bytes_; }
    void reset() {
        if (data_ != nullptr) munmap(data_, bytes_);
        data_ = nullptr;
        bytes_ = 0;
    }

private:
    void swap(AlignedBuffer & other) {
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
    }
    uint8_t * data_ = nullptr;
    size_t bytes_ = 0;
};

}  // namespace penstock
