#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>

#include "address_space.h"
#include "aligned_buffer.h"
#include "error.h"

namespace penstock::address_space {
namespace {

[[noreturn]] void refuse(const char * what, size_t bytes) {
    throw StorageError(std::string(what) + " of " + std::to_string(bytes) + " bytes failed: " + std::strerror(errno) +
                       (errno == ENOMEM ? "; raise vm.max_map_count or give the process more memory" : ""));
}

// Addresses that nothing is at, a multiple of huge pages; nullptr where there are none.
uint8_t * aligned_addresses(size_t bytes) noexcept {
    const size_t whole = round_up(bytes, kPage);
    if (whole == 0) return nullptr;
    void * wide = mmap(nullptr, whole + kHugePage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (wide == MAP_FAILED) return nullptr;
    const auto begin = reinterpret_cast<uintptr_t>(wide);
    const uintptr_t at = round_up(begin, kHugePage);
    if (at != begin) munmap(wide, at - begin);
    if (at + whole != begin + whole + kHugePage) munmap(reinterpret_cast<void *>(at + whole), begin + kHugePage - at);
    return reinterpret_cast<uint8_t *>(at);
}

}  // namespace

// Of other pages the plans know nothing.
bool supported() { return sysconf(_SC_PAGESIZE) == static_cast<long>(kPage); }

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

// Reads into huge pages are a segment for the device where 4 KiB pages are hundreds, and their pages are
// pinned in one step. Shared memory has huge pages by default nowhere, but they can be had one by one.
uint8_t * map_shared_huge(size_t bytes, int shared) {
    constexpr int kCollapse = 25;  // MADV_COLLAPSE, Linux 6.1; headers of older C libraries lack it
    uint8_t * aligned = aligned_addresses(bytes);
    if (aligned == nullptr) refuse("reserving addresses", bytes);
    uint8_t * ring = map_shared(aligned, bytes, shared, 0);
    madvise(ring, bytes, MADV_HUGEPAGE);
    for (size_t i = 0; i < bytes; i += kPage) ring[i] = 0;
    // Piece by piece: memory for two copies of one huge page at most, and what is refused stays as it is.
    for (size_t i = 0; i + kHugePage <= bytes; i += kHugePage) madvise(ring + i, kHugePage, kCollapse);
    return ring;
}

uint8_t * reserve_huge(size_t bytes) noexcept {
    uint8_t * at = aligned_addresses(bytes);
    if (at == nullptr) return nullptr;
    mprotect(at, bytes, PROT_READ | PROT_WRITE);
    madvise(at, bytes, MADV_HUGEPAGE);
    return at;
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
