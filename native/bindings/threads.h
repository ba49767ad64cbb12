// How many threads Python may ask for.
#pragma once

#include <string>

#include "error.h"

// The number itself. Throws ArgumentError where it is none.
inline int thread_count(int threads) {
    if (threads < 1 || threads > 256) throw penstock::ArgumentError("threads is " + std::to_string(threads) + ", expected 1 to 256");
    return threads;
}
