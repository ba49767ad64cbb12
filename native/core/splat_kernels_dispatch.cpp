// Which splat kernels run: those of the set that kernels_select chose.
#include <cstring>

#include "kernels.h"
#include "splat_kernels.h"

namespace penstock {

#if !defined(PENSTOCK_AVX2)
const SplatKernels * splat_kernels_avx2() { return nullptr; }
#endif
#if !defined(__aarch64__)
const SplatKernels * splat_kernels_neon() { return nullptr; }
#endif

const SplatKernels & splat_kernels() {
    const char * name = kernels().name;
    const bool wide = std::strcmp(name, "avx2") == 0 || std::strcmp(name, "avx512") == 0;
    if (wide && splat_kernels_avx2() != nullptr) return *splat_kernels_avx2();
    if (std::strcmp(name, "neon") == 0 && splat_kernels_neon() != nullptr) return *splat_kernels_neon();
    return splat_kernels_scalar();
}

}  // namespace penstock
