// Which kernel set runs: asked of the processor once, overridable by name for tests.
#include <atomic>
#include <cstring>

#include "kernels.h"

namespace penstock {
namespace {

bool runs_avx2() {
#if defined(__x86_64__) || defined(__i386__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
#else
    return false;
#endif
}

bool runs_avx512() {
#if defined(__x86_64__) || defined(__i386__)
    return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
#else
    return false;
#endif
}

const Kernels * best() {
    if (runs_avx512() && kernels_avx512()) return kernels_avx512();
    if (runs_avx2() && kernels_avx2()) return kernels_avx2();
    if (kernels_neon()) return kernels_neon();
    return &kernels_scalar();
}

std::atomic<const Kernels *> chosen{nullptr};

}  // namespace

#if !defined(PENSTOCK_AVX2)
const Kernels * kernels_avx2() { return nullptr; }
#endif
#if !defined(PENSTOCK_AVX512)
const Kernels * kernels_avx512() { return nullptr; }
#endif
#if !defined(__aarch64__)
const Kernels * kernels_neon() { return nullptr; }
#endif

const Kernels & kernels() {
    const Kernels * table = chosen.load(std::memory_order_relaxed);
    if (table == nullptr) {
        table = best();
        chosen.store(table, std::memory_order_relaxed);
    }
    return *table;
}

bool kernels_select(const char * name) {
    const Kernels * table = nullptr;
    if (std::strcmp(name, "auto") == 0) table = best();
    else if (std::strcmp(name, "scalar") == 0) table = &kernels_scalar();
    else if (std::strcmp(name, "avx2") == 0 && runs_avx2()) table = kernels_avx2();
    else if (std::strcmp(name, "avx512") == 0 && runs_avx512()) table = kernels_avx512();
    else if (std::strcmp(name, "neon") == 0) table = kernels_neon();
    if (table == nullptr) return false;
    chosen.store(table, std::memory_order_relaxed);
    return true;
}

}  // namespace penstock
