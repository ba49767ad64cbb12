#include "direct_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "aligned_buffer.h"
#include "error.h"

namespace penstock {
namespace {

std::string reason(int error) { return std::strerror(error); }

// The smallest alignment at which a direct read works here, found by trying: 512 on most disks,
// 4096 on 4Kn drives and some file systems. 0 when none does.
size_t direct_alignment(int fd, uint64_t size) {
    AlignedBuffer buffer(2 * kPage);
    for (size_t alignment : {size_t{512}, size_t{4096}}) {
        const off_t offset = size > 2 * alignment ? static_cast<off_t>(alignment) : 0;
        if (pread(fd, buffer.data() + (alignment == 512 ? 512 : 0), alignment, offset) >= 0) return alignment;
    }
    return 0;
}

}  // namespace

DirectFile::DirectFile(const std::string & path, bool want_direct) : path_(path) {
#if defined(O_DIRECT)
    if (want_direct) {
        fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
        direct_ = fd_ >= 0;
    }
#endif
    if (fd_ < 0) fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd_ < 0) throw StorageError(path + ": cannot open: " + reason(errno));
    struct stat info{};
    if (fstat(fd_, &info) != 0 || !S_ISREG(info.st_mode)) {
        close(fd_);
        throw StorageError(path + ": not a regular file");
    }
    size_ = static_cast<uint64_t>(info.st_size);
    if (direct_) {
        alignment_ = direct_alignment(fd_, size_);
        if (alignment_ == 0) {  // opened, but reads are refused: fall back
            close(fd_);
            direct_ = false;
            alignment_ = 1;
            fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
            if (fd_ < 0) throw StorageError(path + ": cannot open: " + reason(errno));
        }
    }
#if defined(F_NOCACHE)
    if (want_direct) fcntl(fd_, F_NOCACHE, 1);  // macOS's way of not keeping pages
#endif
}

DirectFile::~DirectFile() {
    if (fd_ >= 0) close(fd_);
}

void DirectFile::drop_cache(uint64_t offset, uint64_t bytes) const {
#if defined(POSIX_FADV_DONTNEED)
    if (!direct_) posix_fadvise(fd_, static_cast<off_t>(offset), static_cast<off_t>(bytes), POSIX_FADV_DONTNEED);
#else
    (void)offset;
    (void)bytes;
#endif
}

void DirectFile::read(uint64_t offset, uint8_t * out, size_t bytes) const {
    if (offset > size_ || bytes > size_ - offset) {
        throw StorageError(path_ + ": read of " + std::to_string(bytes) + " bytes at offset " +
                           std::to_string(offset) + " runs past the end of the file (" + std::to_string(size_) + " bytes)");
    }
    const size_t chunk = size_t{1} << 20;
    AlignedBuffer bounce(std::min(round_up(bytes, kPage) + 2 * kPage, chunk + 2 * kPage));
    while (bytes != 0) {
        const uint64_t from = direct_ ? offset / kPage * kPage : offset;
        const size_t skip = static_cast<size_t>(offset - from);
        const size_t want = std::min(bytes, chunk);
        const size_t span = direct_ ? round_up(skip + want, kPage) : want;
        const ssize_t got = pread(fd_, bounce.data(), span, static_cast<off_t>(from));
        if (got < 0) {
            if (errno == EINTR) continue;
            throw StorageError(path_ + ": read failed at offset " + std::to_string(offset) + ": " + reason(errno));
        }
        // The last block of the file may be short; anything shorter than asked for is not.
        if (static_cast<size_t>(got) <= skip) {
            throw StorageError(path_ + ": short read at offset " + std::to_string(offset) +
                               ": the file shrank while it was read");
        }
        const size_t usable = std::min(want, static_cast<size_t>(got) - skip);
        std::memcpy(out, bounce.data() + skip, usable);
        offset += usable;
        out += usable;
        bytes -= usable;
    }
}

}  // namespace penstock
