// The weight streamer: a GGUF file's weights under a stock llama.cpp.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "address_space.h"
#include "error.h"
#include "weight_streamer.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace penstock;

namespace {

using Ids = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Offsets = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

uint8_t * pointer(uintptr_t address) { return reinterpret_cast<uint8_t *>(address); }

template <class Function>
Function function(uintptr_t address) {
    return reinterpret_cast<Function>(address);
}

RingMemory ring_memory_named(const std::string & name) {
    if (name == "aliases") return RingMemory::aliases;
    if (name == "fresh") return RingMemory::fresh;
    if (name == "huge") return RingMemory::huge;
    throw ArgumentError("no ring memory '" + name + "'; there are aliases, fresh and huge");
}

}  // namespace

void bind_streamer(nb::module_ & m) {
    nb::class_<StreamerStats>(m, "StreamerStats", "Counts since the streamer started, without the pinned weights.")
        .def_ro("bytes", &StreamerStats::bytes, "Read from storage.")
        .def_ro("reads", &StreamerStats::reads, "Requests.")
        .def_ro("busy_ns", &StreamerStats::busy_ns, "Time with a read in flight.")
        .def_ro("wait_ns", &StreamerStats::wait_ns, "Time that the graph waited for storage.")
        .def_ro("pinned_bytes", &StreamerStats::pinned_bytes, "Weights that stay in memory.")
        .def_ro("stops", &StreamerStats::stops, "Nodes after which the graph stopped.");

    nb::class_<ExpertWindow::Stats>(m, "ExpertStats", "Counts of the expert window since the start.")
        .def_ro("used", &ExpertWindow::Stats::used, "Experts that routers chose, each once a layer and batch.")
        .def_ro("misses", &ExpertWindow::Stats::misses, "Of these, those not in memory.")
        .def_ro("evicted", &ExpertWindow::Stats::evicted, "Experts that left.")
        .def_ro("read_ahead", &ExpertWindow::Stats::read_ahead, "Experts read before their router ran.");

    nb::class_<WeightStreamer>(m, "WeightStreamer", "Keeps the weights in memory that the next node of llama.cpp's graph uses.")
        .def(nb::init<const std::vector<std::string> &, bool, const std::string &, int>(), "paths"_a, "direct"_a, "backend"_a, "depth"_a)
        .def("mapped", [](WeightStreamer & s, int file, uint64_t offset, uintptr_t at, size_t bytes) { s.mapped(file, offset, pointer(at), bytes); },
             "file"_a, "offset"_a, "address"_a, "bytes"_a, "Where bytes of a file are mapped.")
        .def("pin", &WeightStreamer::pin, "file"_a, "offset"_a, "bytes"_a, "Pages that stay in memory.")
        .def("stream", &WeightStreamer::stream, "file"_a, "offset"_a, "bytes"_a, "Pages of one tensor that pass through the ring.")
        .def("experts", &WeightStreamer::experts, "layer"_a, "file"_a, "offset"_a, "stride"_a, "count"_a, "A tensor with one matrix of each expert of a layer.")
        .def("expect", &WeightStreamer::expect, "name"_a, "file"_a, "offset"_a, "Fail when llama.cpp keeps this tensor anywhere else.")
        .def("start", [](WeightStreamer & s, size_t ring_bytes, size_t window_bytes, const std::string & policy, const std::vector<int> & expert_layers,
                         const std::string & ring_memory) { s.start(ring_bytes, window_bytes, policy, expert_layers, ring_memory_named(ring_memory)); },
             "ring_bytes"_a, "window_bytes"_a, "policy"_a, "expert_layers"_a, "ring_memory"_a = "aliases",
             nb::call_guard<nb::gil_scoped_release>(), "Replace the mapping and read what is pinned.")
        .def("access", [](WeightStreamer & s, uintptr_t get_name, uintptr_t get_data, uintptr_t nbytes, uintptr_t nelements, uintptr_t nrows,
                          uintptr_t get_i32_nd, size_t sources_offset, int sources) {
                s.access({function<const char * (*)(const void *)>(get_name), function<void * (*)(const void *)>(get_data),
                          function<size_t (*)(const void *)>(nbytes), function<int64_t (*)(const void *)>(nelements),
                          function<int64_t (*)(const void *)>(nrows), function<int32_t (*)(const void *, int, int, int, int)>(get_i32_nd),
                          sources_offset, sources});
             }, "get_name"_a, "get_data"_a, "nbytes"_a, "nelements"_a, "nrows"_a, "get_i32_nd"_a, "sources_offset"_a, "sources"_a,
             "Addresses of ggml's accessors, and where a tensor keeps its sources.")
        .def_prop_ro("callback", [](const WeightStreamer &) { return reinterpret_cast<uintptr_t>(&WeightStreamer::on_node); }, "For cb_eval.")
        .def_prop_ro("abort_callback", [](const WeightStreamer &) { return reinterpret_cast<uintptr_t>(&WeightStreamer::aborting); }, "For abort_callback.")
        .def("cancel", &WeightStreamer::cancel, "on"_a, "End the pass that runs, from any thread; until it is taken back.")
        .def_prop_ro("user_data", [](const WeightStreamer & s) { return reinterpret_cast<uintptr_t>(&s); }, "For cb_eval_user_data.")
        .def("take_failure", &WeightStreamer::take_failure, "Why the last pass failed, or ''. The next pass starts afresh.")
        .def("unchanged", &WeightStreamer::unchanged, "file"_a, "Whether the file has the size and time it had at the start.")
        .def("stats", &WeightStreamer::stats)
        .def("expert_stats", [](const WeightStreamer & s) { return s.window() != nullptr ? s.window()->stats() : ExpertWindow::Stats{}; })
        .def_prop_ro("window_bytes", [](const WeightStreamer & s) { return s.window() != nullptr ? s.window()->bytes() : size_t{0}; })
        .def_prop_ro("held_bytes", [](const WeightStreamer & s) { return s.window() != nullptr ? s.window()->held_bytes() : size_t{0}; })
        .def_prop_ro("on_demand", [](const WeightStreamer & s) { return s.ring() != nullptr ? s.ring()->on_demand() : uint64_t{0}; },
                     "Streamed tensors that had not been read ahead.")
        .def("record", [](WeightStreamer & s, bool on) {
                if (s.window() != nullptr) s.window()->record(on);
             }, "on"_a, "Keep what routers choose.")
        .def("take_trace", [](WeightStreamer & s) {
                if (s.window() == nullptr) return std::vector<int32_t>{};
                std::vector<int32_t> trace = s.window()->trace();
                s.window()->clear_trace();
                return trace;
             }, "Pairs (layer, expert), -1 -1 where a token begins; what was taken is forgotten.");

    m.def("address_space_supported", &address_space::supported, "Whether pages under a foreign mapping can be replaced on this system.");
    m.def("replay_experts", [](const std::string & policy, int32_t experts, int32_t capacity, int32_t layers, Ids ids, Offsets offsets) {
            if (offsets.size() == 0) throw ArgumentError("replay: offsets must hold at least one entry");
            nb::gil_scoped_release others_run;  // a long trace takes minutes
            const ReplayCount n = replay_experts(policy, experts, capacity, layers, ids.data(), ids.size(), offsets.data(), offsets.size() - 1);
            return std::pair(n.misses, n.used);
          }, "policy"_a, "experts"_a, "capacity"_a, "layers"_a, "ids"_a, "offsets"_a,
          "(misses, uses) of a recorded run; a step is ids[offsets[s]:offsets[s + 1]]. Policies lru, lfu, last-k, belady.");
}
