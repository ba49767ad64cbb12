// Checksums, direct reads and the measurements behind `penstock probe`.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <random>
#include <tuple>

#include "aligned_buffer.h"
#include "crc32c.h"
#include "direct_file.h"
#include "error.h"
#include "read_queue.h"
#include "thread_pool.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace penstock;

namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

uint32_t crc32c_of_file(const std::string & path, uint64_t offset, uint64_t bytes) {
    const DirectFile file(path, true);
    const size_t chunk = size_t{4} << 20;
    AlignedBuffer buffer(std::min<uint64_t>(bytes, chunk));
    uint32_t crc = 0;
    while (bytes != 0) {
        const size_t n = std::min<uint64_t>(bytes, chunk);
        file.read(offset, buffer.data(), n);
        crc = crc32c(crc, buffer.data(), n);
        offset += n;
        bytes -= n;
    }
    return crc;
}

// Bytes a second and reads a second of `block`-sized reads, `depth` in flight, for `seconds`.
std::tuple<double, double> measure_reads(const std::string & path, size_t block, int depth, const std::string & backend,
                                         double seconds, bool sequential, bool direct) {
    const DirectFile file(path, direct);
    if (block == 0 || block % 512 != 0 || block > (size_t{64} << 20)) throw ArgumentError("block must be a multiple of 512 bytes, up to 64 MiB");
    const uint64_t blocks = file.size() / block;
    if (blocks == 0) throw ArgumentError("the file is smaller than one block");
    auto queue = make_read_queue(file, backend, depth, 2 * static_cast<size_t>(depth));
    // So large that it is made of huge pages, whatever the depth: the storage is measured, not the memory.
    AlignedBuffer buffer(std::max(block * static_cast<size_t>(depth), size_t{16} << 20));
    std::vector<iovec> iovs(static_cast<size_t>(depth));
    std::mt19937_64 random(1);
    uint64_t done = 0, next_block = 0;
    const uint64_t begin = now_ns();
    std::vector<uint64_t> tickets(static_cast<size_t>(depth), 0);
    uint64_t submitted = 0;
    const auto limit = static_cast<uint64_t>(seconds * 1e9);
    while (now_ns() - begin < limit) {
        const size_t lane = submitted % static_cast<size_t>(depth);
        if (submitted >= static_cast<uint64_t>(depth)) {
            queue->wait(tickets[lane] + 1);
            ++done;
        }
        iovs[lane] = {buffer.data() + lane * block, block};
        const uint64_t at = sequential ? next_block++ % blocks : random() % blocks;
        const Read read{at * block, &iovs[lane], 1, static_cast<uint32_t>(block)};
        tickets[lane] = queue->submit(&read, 1);
        ++submitted;
    }
    queue->wait(submitted == 0 ? 0 : tickets[(submitted - 1) % static_cast<size_t>(depth)] + 1);
    done = submitted;
    const double elapsed = static_cast<double>(now_ns() - begin) * 1e-9;
    return {static_cast<double>(done * block) / elapsed, static_cast<double>(done) / elapsed};
}

// Bytes a second that `threads` can read from a buffer far larger than the caches.
double measure_memory(int threads, size_t bytes, int rounds) {
    AlignedBuffer buffer(bytes);
    for (size_t i = 0; i < buffer.bytes(); i += 512) buffer.data()[i] = static_cast<uint8_t>(i);
    ThreadPool pool(threads);
    std::atomic<uint64_t> sink{0};
    double best = 0.0;
    for (int r = 0; r < rounds; ++r) {
        const uint64_t begin = now_ns();
        pool.run(buffer.bytes() / 8, 4096, [&](size_t from, size_t to) {
            const auto * p = reinterpret_cast<const uint64_t *>(buffer.data());
            uint64_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
            for (size_t i = from; i + 4 <= to; i += 4) s0 += p[i], s1 += p[i + 1], s2 += p[i + 2], s3 += p[i + 3];
            sink += s0 ^ s1 ^ s2 ^ s3;
        });
        const double rate = static_cast<double>(buffer.bytes()) / (static_cast<double>(now_ns() - begin) * 1e-9);
        best = std::max(best, rate);
    }
    return best;
}

}  // namespace

void bind_storage(nb::module_ & m) {
    m.def("crc32c", [](Bytes data, uint32_t seed) { return crc32c(seed, data.data(), data.size()); }, "data"_a, "seed"_a = 0,
          "CRC-32C of a uint8 array; `seed` continues an earlier one.");
    m.def("crc32c_of_file", &crc32c_of_file, "path"_a, "offset"_a, "bytes"_a, nb::call_guard<nb::gil_scoped_release>(),
          "CRC-32C of a range of a file, read past the page cache.");
    m.def("measure_reads", &measure_reads, "path"_a, "block"_a, "depth"_a, "backend"_a, "seconds"_a, "sequential"_a, "direct"_a = true,
          nb::call_guard<nb::gil_scoped_release>(), "(bytes a second, reads a second) of reads of `block` bytes, `depth` in flight.");
    m.def("measure_memory", &measure_memory, "threads"_a, "bytes"_a, "rounds"_a = 3, nb::call_guard<nb::gil_scoped_release>(),
          "Bytes a second that `threads` threads read from memory.");
    m.def("direct_alignment", [](const std::string & path) {
            const DirectFile file(path, true);
            return file.direct() ? file.alignment() : size_t{0};
          }, "path"_a, "Alignment that direct reads of this file need, or 0 where they are refused.");
}
