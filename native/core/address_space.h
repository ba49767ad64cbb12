// Pages of our own at addresses of our choice: what a mapping that llama.cpp made holds is replaced
// under it, range by range. One .cpp a platform; where supported() is false the gguf engine says so
// and leaves llama.cpp's mapping alone.
#pragma once

#include <cstddef>
#include <cstdint>

namespace penstock::address_space {

bool supported();

// Private zero pages at [at, at + bytes), page multiples, in place of what was mapped there.
// huge: ask for huge pages, for memory that stays. Throws StorageError.
void map_anonymous(uint8_t * at, size_t bytes, bool huge);

// Nameless memory that can be mapped at several addresses at once. Throws StorageError.
int make_shared(size_t bytes);
// The same pages of it at [at, at + bytes); at nullptr: anywhere. Returns the address.
uint8_t * map_shared(uint8_t * at, size_t bytes, int shared, uint64_t offset);
// All of it, anywhere, all pages there from the start and huge where the system gives such.
uint8_t * map_shared_huge(size_t bytes, int shared);
void unmap(uint8_t * at, size_t bytes) noexcept;
void close_shared(int shared) noexcept;

// Give the pages of a private range back; they read as zero until written again.
void discard(uint8_t * at, size_t bytes) noexcept;

// Private memory of huge pages, where the system gives such, aligned to them; nullptr where there are no addresses.
uint8_t * reserve_huge(size_t bytes) noexcept;
// Move the pages of a private range to another one of the same kind, in place of what it had; the range they
// came from stays, empty. False where that cannot be done: the pages are where they were, `to` may be unmapped.
bool move_pages(uint8_t * from, uint8_t * to, size_t bytes) noexcept;
// How many mappings a process may have.
size_t most_mappings() noexcept;

// Faults on a range of llama.cpp's own mapping bring single pages in, not their neighbours too.
void expect_random(uint8_t * at, size_t bytes) noexcept;

}  // namespace penstock::address_space
