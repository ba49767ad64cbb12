// macOS and Windows: not written yet. The gguf engine falls back to llama.cpp's own mapping there.
#if !defined(__linux__)
#include "address_space.h"
#include "error.h"

namespace penstock::address_space {
namespace {

[[noreturn]] void refuse() { throw StorageError("streaming into llama.cpp's address space is written for Linux only"); }

}  // namespace

bool supported() { return false; }
void map_anonymous(uint8_t *, size_t, bool) { refuse(); }
int make_shared(size_t) { refuse(); }
uint8_t * map_shared(uint8_t *, size_t, int, uint64_t) { refuse(); }
uint8_t * map_shared_huge(size_t, int) { refuse(); }
void unmap(uint8_t *, size_t) noexcept {}
void close_shared(int) noexcept {}
void discard(uint8_t *, size_t) noexcept {}
uint8_t * reserve_huge(size_t) noexcept { return nullptr; }
bool move_pages(uint8_t *, uint8_t *, size_t) noexcept { return false; }
size_t most_mappings() noexcept { return 0; }
void expect_random(uint8_t *, size_t) noexcept {}

}  // namespace penstock::address_space
#endif
