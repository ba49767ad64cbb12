// Scratch memory that is kept from frame to frame.
//
// A vector would double as it grows, keep its old contents beside the new, and clear what is about
// to be written. The player counts this memory in its budget.
#pragma once

#include <cstddef>
#include <memory>
#include <type_traits>

namespace penstock {

template <typename T>
class SplatRoom {
    static_assert(std::is_trivially_copyable_v<T>);

public:
    // At least n elements from now on, an eighth more at most; what was there is lost when it grows.
    void need(size_t n) {
        if (n <= size_) return;
        const size_t more = n + n / 8;
        data_.reset();
        size_ = 0;
        data_.reset(new T[more]);
        size_ = more;
    }
    T * data() { return data_.get(); }
    const T * data() const { return data_.get(); }
    T & operator[](size_t i) { return data_[i]; }
    const T & operator[](size_t i) const { return data_[i]; }
    size_t size() const { return size_; }
    size_t bytes() const { return size_ * sizeof(T); }

private:
    std::unique_ptr<T[]> data_;
    size_t size_ = 0;
};

}  // namespace penstock
