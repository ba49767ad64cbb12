// CRC-32C (Castagnoli, RFC 3720), as used by iSCSI, ext4 and Btrfs.
#pragma once

#include <cstddef>
#include <cstdint>

namespace penstock {

// Continue a checksum: crc32c(crc32c(0, a), b) == crc32c(0, a + b).
uint32_t crc32c(uint32_t seed, const uint8_t * data, size_t bytes);

}  // namespace penstock
