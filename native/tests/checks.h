// How the C++ tests count what holds and tell what does not.
#pragma once

#include <cstdio>

namespace {

int failures = 0;
long checks = 0;

#define CHECK(condition, ...)                              \
    do {                                                   \
        ++checks;                                          \
        if (!(condition) && ++failures <= 20) {            \
            std::printf("FAILED %s: ", #condition);        \
            std::printf(__VA_ARGS__);                      \
            std::printf("\n");                             \
        }                                                  \
    } while (0)

// What failed, for people; the exit status of a test's main.
int report_checks() {
    std::printf("%ld checks, %d failed\n", checks, failures);
    return failures == 0 ? 0 : 1;
}

}  // namespace
