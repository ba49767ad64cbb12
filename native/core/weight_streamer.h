// Weights of a GGUF file under a stock llama.cpp: its evaluation callback tells which node of the graph
// comes next, and the node's weights are in memory before it runs.
//
// llama.cpp asks before each node whether to stop after it (`ask`), and calls again when it has run
// there. A node that uses streamed weights waits in `ask` and stops after itself, so that its memory
// is free again; a router's node stops too, since its result says which experts come next.
//
// Nothing of ggml is linked: the accessors come as addresses from the library that the process loaded,
// and where a tensor keeps its sources was found by looking (loaders/ggml_layout.py).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "direct_file.h"
#include "expert_window.h"
#include "read_queue.h"
#include "tensor_ring.h"

namespace penstock {

struct GgmlAccess {
    const char * (*get_name)(const void *) = nullptr;
    void * (*get_data)(const void *) = nullptr;
    size_t (*nbytes)(const void *) = nullptr;
    int64_t (*nelements)(const void *) = nullptr;
    int64_t (*nrows)(const void *) = nullptr;
    int32_t (*get_i32_nd)(const void *, int, int, int, int) = nullptr;
    size_t sources_offset = 0;  // of the array of sources in a tensor
    int sources = 0;            // entries of that array
};

struct StreamerStats {
    uint64_t bytes = 0, reads = 0;   // since the start, without the pinned weights
    uint64_t busy_ns = 0;            // with a read in flight
    uint64_t wait_ns = 0;            // the graph waited for storage
    uint64_t pinned_bytes = 0;
    uint64_t stops = 0;              // nodes after which the graph stopped
};

class WeightStreamer {
public:
    // backend, depth: as make_read_queue. Throws StorageError.
    WeightStreamer(const std::vector<std::string> & paths, bool direct, const std::string & backend, int depth);
    ~WeightStreamer();

    // Where file bytes [offset, offset + bytes) are mapped. Whole pages; call once per file.
    void mapped(int file, uint64_t offset, uint8_t * at, size_t bytes);
    // What becomes of ranges of a file, whole pages inside what is mapped; each page at most once.
    void pin(int file, uint64_t offset, size_t bytes);
    void stream(int file, uint64_t offset, size_t bytes);
    // One tensor of a layer's experts, anywhere inside a range that is not pinned otherwise.
    void experts(int layer, int file, uint64_t offset, size_t stride, int count);
    // The tensor's data must be found there, or llama.cpp placed it elsewhere.
    void expect(const std::string & name, int file, uint64_t offset);

    // Replace the mapping, read what is pinned. Afterwards the graph may run.
    void start(size_t ring_bytes, size_t window_bytes, const std::string & policy, const std::vector<int> & expert_layers,
               RingMemory ring_memory = RingMemory::aliases);

    void access(const GgmlAccess & access);
    static bool on_node(void * tensor, bool ask, void * self) noexcept;
    // For abort_callback: the pass has failed or was cancelled, and nothing more of it need be computed.
    static bool aborting(void * self) noexcept;
    // End the pass that runs, from any thread; passes end at once until it is taken back.
    void cancel(bool on) { cancelled_.store(on, std::memory_order_relaxed); }

    // Why the last pass failed; empty when it did not. Clears the failure.
    std::string take_failure();
    bool unchanged(int file) const;  // size and time of the file are as at the start
    StreamerStats stats() const;
    const ExpertWindow * window() const { return window_.get(); }
    ExpertWindow * window() { return window_.get(); }
    const TensorRing * ring() const { return ring_.get(); }

private:
    struct Part {
        std::unique_ptr<DirectFile> file;
        std::unique_ptr<ReadQueue> queue;
        uint64_t offset = 0;
        uint8_t * at = nullptr;
        size_t bytes = 0;
        int64_t size_then = 0, time_then = 0;
    };
    struct Range {
        int file;
        uint64_t offset;
        size_t bytes;
    };
    // Addresses whose weights are streamed: unit >= 0 or tensor >= 0.
    struct Span {
        uintptr_t begin, end;
        int unit, tensor;
    };

    uint8_t * address(int file, uint64_t offset, size_t bytes, bool pages) const;
    void load(const std::vector<Range> & ranges);
    bool ask(void * tensor);
    void ran(void * tensor);
    bool use(const void * source);
    void check_place(const void * source);

    std::vector<Part> parts_;
    std::vector<Range> pinned_, streamed_;
    std::vector<ExpertWindow::Tensor> expert_tensors_;
    std::vector<int> expert_counts_;
    std::vector<int> expert_layer_of_block_;  // block -> layer of the window, -1: no experts
    std::vector<Span> spans_;
    uintptr_t low_ = 0, high_ = 0;  // of all spans
    std::unordered_map<std::string, uintptr_t> expected_;
    std::unique_ptr<TensorRing> ring_;
    std::unique_ptr<ExpertWindow> window_;
    GgmlAccess ggml_;
    std::vector<int32_t> chosen_;
    std::string failure_;
    std::atomic<bool> cancelled_{false};
    bool failed_ = false, started_ = false;
    StreamerStats stats_;
    ReadTotals loaded_;
};

}  // namespace penstock
