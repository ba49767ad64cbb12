// A file opened for direct reads: past the page cache, so that the budget holds and measurements
// are of storage. Where the file system refuses O_DIRECT (tmpfs, some network and overlay mounts),
// reads are buffered and their pages are dropped from the cache after use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace penstock {

class DirectFile {
public:
    // want_direct false asks for the buffered fall-back. Throws StorageError.
    DirectFile(const std::string & path, bool want_direct);
    ~DirectFile();
    DirectFile(const DirectFile &) = delete;
    DirectFile & operator=(const DirectFile &) = delete;

    const std::string & path() const { return path_; }
    int fd() const { return fd_; }
    uint64_t size() const { return size_; }
    bool direct() const { return direct_; }
    // Offsets, lengths and addresses of reads must be multiples of this; 1 when buffered.
    size_t alignment() const { return alignment_; }

    // Read exactly `bytes` at `offset`, wherever they fall: a bounce buffer takes care of the
    // edges. For loading, not for the hot path. Throws StorageError, naming file and offset.
    void read(uint64_t offset, uint8_t * out, size_t bytes) const;
    // Tell the kernel to forget cached pages of a range (buffered mode only).
    void drop_cache(uint64_t offset, uint64_t bytes) const;

private:
    std::string path_;
    int fd_ = -1;
    uint64_t size_ = 0;
    bool direct_ = false;
    size_t alignment_ = 1;
};

}  // namespace penstock
