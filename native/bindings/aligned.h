// Arrays of Python's that may start at any byte.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>

#include "error.h"

// The array's first number. Throws ArgumentError where it does not lie as the processor wants it: a numpy view may.
template <class Array>
auto aligned(const Array & array, const char * name) {
    constexpr auto least = alignof(std::remove_pointer_t<decltype(array.data())>);
    if (reinterpret_cast<uintptr_t>(array.data()) % least != 0) {
        throw penstock::ArgumentError(std::string(name) + " is not aligned to " + std::to_string(least) + " bytes");
    }
    return array.data();
}
