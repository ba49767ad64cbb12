#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>

#include "address_space.h"
#include "error.h"

namespace penstock::address_space {
namespace {

[[noreturn]] void refuse(const char * what, size_t bytes) {
    throw StorageError(std::string(what) + " of " + std::to_string(bytes) + " bytes failed: " + std::strerror(errno) +
                       (errno == ENOMEM ? "; raise vm.max_map_count or give the process more memory" : ""));
}

}  // namespace

bool supported() { return true; }

void map_anonymous(uint8_t * at, size_t bytes, bool huge) {
    if (bytes == 0) return;
    if (mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED) {
        refuse("mapping anonymous memory", bytes);
    }
    // A window gives single pages back, and a huge page would bring in neighbours nobody asked for.
    madvise(at, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
}

int make_shared(size_t bytes) {
    const int fd = memfd_create("penstock", MFD_CLOEXEC);
    if (fd < 0) refuse("memfd_create", bytes);
    if (ftruncate(fd, static_cast<off_t>(bytes)) != 0) {
        close(fd);
        refuse("sizing shared memory", bytes);
    }
    return fd;
}

uint8_t * map_shared(uint8_t * at, size_t bytes, int shared, uint64_t offset) {
    const int flags = MAP_SHARED | (at != nullptr ? MAP_FIXED : 0);
    void * p = mmap(at, bytes, PROT_READ | PROT_WRITE, flags, shared, static_cast<off_t>(offset));
    if (p == MAP_FAILED) refuse("mapping shared memory", bytes);
    return static_cast<uint8_t *>(p);
}

void unmap(uint8_t * at, size_t bytes) noexcept { munmap(at, bytes); }

void close_shared(int shared) noexcept { close(shared); }

void discard(uint8_t * at, size_t bytes) noexcept { madvise(at, bytes, MADV_DONTNEED); }

bool move_pages(uint8_t * from, uint8_t * to, size_t bytes) noexcept {
    constexpr int kKeepRange = 4;  // MREMAP_DONTUNMAP, Linux 5.7; headers of older C libraries lack it
    return mremap(from, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED | kKeepRange, to) == to;
}

size_t most_mappings() noexcept {
    size_t most = 65530;  // the kernel's default
    if (std::FILE * file = std::fopen("/proc/sys/vm/max_map_count", "re")) {
        unsigned long told = 0;
        if (std::fscanf(file, "%lu", &told) == 1) most = told;
        std::fclose(file);
    }
    return most;
}

void expect_random(uint8_t * at, size_t bytes) noexcept { madvise(at, bytes, MADV_RANDOM); }

}  // namespace penstock::address_space
#endif
