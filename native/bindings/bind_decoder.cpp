// The decoder: recorded by the architecture files in runtime/models/, run by the flash engine.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>

#include "decoder.h"
#include "error.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace penstock;

namespace {

using Ids = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Offsets = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Cube = nb::ndarray<float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

Dtype dtype_of(int value) {
    if (!dtype_valid(value)) throw ArgumentError("number format " + std::to_string(value) + " is not F32 (0), F16 (1), Q4_0 (2) or Q8_0 (8)");
    return static_cast<Dtype>(value);
}

void forward(Decoder & d, Ids tokens, int32_t position, Matrix logits, bool decode, bool seed) {
    const size_t n = tokens.size();
    if (n == 0 || n > (1u << 24)) throw ArgumentError("forward: need 1 or more tokens");
    if (logits.shape(1) != d.vocab() || (logits.shape(0) != 1 && logits.shape(0) != n)) {
        throw ArgumentError("forward: logits must be (1 or tokens, vocabulary)");
    }
    const bool all = logits.shape(0) == n && n != 1;
    const int32_t * ids = tokens.data();
    float * out = logits.data();
    nb::gil_scoped_release release;
    d.forward(ids, static_cast<int32_t>(n), position, out, all, decode, seed);
}

void capture(Decoder & d, std::optional<Cube> inputs, std::optional<Cube> hidden) {
    const size_t layers = d.ffns().size(), batch = static_cast<size_t>(d.config().batch);
    for (const auto & layer : d.ffns()) {
        if (inputs && (inputs->shape(0) != layers || inputs->shape(1) != batch || inputs->shape(2) != layer->config.width)) {
            throw ArgumentError("capture: inputs must be (layers, batch, width)");
        }
        if (hidden && (hidden->shape(0) != layers || hidden->shape(1) != batch || hidden->shape(2) != static_cast<size_t>(layer->config.neurons))) {
            throw ArgumentError("capture: hidden must be (layers, batch, neurons), the same in every layer");
        }
    }
    d.capture(inputs ? inputs->data() : nullptr, hidden ? hidden->data() : nullptr);
}

}  // namespace

void bind_decoder(nb::module_ & m) {
    nb::class_<FfnStats>(m, "FfnStats", "Counts of one layer since the last reset.")
        .def_ro("hits", &FfnStats::hits, "Neurons that were in memory.")
        .def_ro("misses", &FfnStats::misses, "Neurons read.")
        .def_ro("overflow", &FfnStats::overflow, "Neurons read and dropped, for want of a slot.")
        .def_ro("predicted", &FfnStats::predicted, "Neurons computed.")
        .def_ro("active", &FfnStats::active, "Of them, with a non-zero output.")
        .def_ro("reads", &FfnStats::reads, "Window reads, after merging.")
        .def_ro("bytes_copied", &FfnStats::bytes_copied, "Bytes moved in memory.")
        .def_ro("tokens", &FfnStats::tokens, "Tokens.");

    nb::class_<DecoderStats>(m, "DecoderStats", "Times and reads since the last reset.")
        .def_ro("tokens", &DecoderStats::tokens, "Tokens.")
        .def_ro("passes", &DecoderStats::passes, "Calls of forward().")
        .def_ro("total_ns", &DecoderStats::total_ns, "Nanoseconds in forward().")
        .def_ro("wait_ns", &DecoderStats::wait_ns, "Of them, blocked on storage.")
        .def_ro("upkeep_ns", &DecoderStats::upkeep_ns, "Of them, window upkeep.")
        .def_ro("predict_ns", &DecoderStats::predict_ns, "Of them, predictors.")
        .def_prop_ro("io_bytes", [](const DecoderStats & s) { return s.io.bytes; }, "Bytes read from storage.")
        .def_prop_ro("io_reads", [](const DecoderStats & s) { return s.io.reads; }, "Reads from storage.")
        .def_prop_ro("io_busy_ns", [](const DecoderStats & s) { return s.io.busy_ns; }, "Nanoseconds with a read in flight.");

    nb::class_<Decoder>(m, "Decoder", "A recorded forward pass over a file's weights.")
        .def("__init__", [](Decoder * self, const std::string & path, int32_t context, int32_t batch, int threads, bool direct,
                            const std::string & backend, int depth, size_t max_reads, size_t staging_bytes, size_t merge_gap, size_t read_max,
                            int32_t seed_tokens, bool overlap, bool bundled, bool reuse) {
                new (self) Decoder(DecoderConfig{path, direct, backend, depth, max_reads, threads, context, batch, staging_bytes, merge_gap,
                                                 read_max, seed_tokens, overlap, bundled, reuse});
             }, "path"_a, nb::kw_only(), "context"_a, "batch"_a, "threads"_a, "direct"_a, "backend"_a, "depth"_a, "max_reads"_a, "staging_bytes"_a,
             "merge_gap"_a, "read_max"_a, "seed_tokens"_a, "overlap"_a = true, "bundled"_a = true, "reuse"_a = true)
        .def("tensor", [](Decoder & d, uint64_t offset, int type, size_t rows, size_t cols, bool resident, std::optional<uint32_t> crc) {
                return d.tensor(offset, dtype_of(type), rows, cols, resident, crc.has_value(), crc.value_or(0));
             }, "offset"_a, "type"_a, "rows"_a, "cols"_a, "resident"_a, "crc"_a.none(), nb::call_guard<nb::gil_scoped_release>(),
             "Load a (rows, cols) matrix, checked against its CRC-32C; its id.")
        .def("register", &Decoder::reg, "width"_a, "A buffer of (batch, width) floats; its id.")
        .def("embed", &Decoder::op_embed, "table"_a, "dst"_a, "dst = table[token].")
        .def("position", &Decoder::op_position, "table"_a, "dst"_a, "first_row"_a, "dst += table[first_row + position].")
        .def("rms_norm", &Decoder::op_rms_norm, "src"_a, "dst"_a, "weight"_a, "eps"_a, "dst = weight * src / rms(src).")
        .def("layer_norm", &Decoder::op_layer_norm, "src"_a, "dst"_a, "weight"_a, "bias"_a, "eps"_a, "dst = layer norm of src; bias -1: none.")
        .def("linear", &Decoder::op_linear, "src"_a, "dst"_a, "weight"_a, "bias"_a = -1, "dst = weight @ src + bias.")
        .def("rope", [](Decoder & d, int target, int heads, int head_dim, Floats inv_freq, bool interleaved, float scale) {
                if (inv_freq.size() == 0 || inv_freq.size() > (1u << 20)) throw ArgumentError("rope: inv_freq out of range");
                d.op_rope(target, heads, head_dim, inv_freq.data(), static_cast<int>(inv_freq.size() * 2), interleaved, scale);
             }, "target"_a, "heads"_a, "head_dim"_a, "inv_freq"_a, "interleaved"_a, "scale"_a = 1.0f, "Rotary positions, in place.")
        .def("attention", &Decoder::op_attention, "q"_a, "k"_a, "v"_a, "dst"_a, "heads"_a, "kv_heads"_a, "head_dim"_a,
             "Causal attention over the cache, which takes in k and v.")
        .def("add", &Decoder::op_add, "dst"_a, "src"_a, "dst += src.")
        .def("ffn", [](Decoder & d, int src, int dst, uint64_t offset, size_t stride, int32_t neurons, size_t width, int type, bool gated,
                       int act, float threshold, int residency, int32_t capacity, int32_t window_tokens, int up_bias, int down_bias,
                       int fc1, int fc2, int fc2_bias, bool use_predictor) {
                if (act < 0 || act > 3 || residency < 0 || residency > 3) throw ArgumentError("ffn: unknown activation or residency");
                d.op_ffn(src, dst, FfnConfig{offset, stride, neurons, width, dtype_of(type), gated, static_cast<HiddenAct>(act), threshold,
                                             static_cast<Residency>(residency), capacity, window_tokens, up_bias, down_bias, fc1, fc2,
                                             fc2_bias, use_predictor});
             }, "src"_a, "dst"_a, nb::kw_only(), "offset"_a, "stride"_a, "neurons"_a, "width"_a, "type"_a, "gated"_a, "act"_a, "threshold"_a,
             "residency"_a, "capacity"_a, "window_tokens"_a, "up_bias"_a, "down_bias"_a, "fc1"_a, "fc2"_a, "fc2_bias"_a, "use_predictor"_a,
             nb::call_guard<nb::gil_scoped_release>(), "A feed-forward layer from bundles on storage.")
        .def("logits", &Decoder::op_logits, "src"_a, "weight"_a, "logits = weight @ src; the last operation.")
        .def("forward", &forward, "tokens"_a, "position"_a, "logits"_a, "decode"_a, "seed"_a,
             "Run tokens at `position`; logits (1 or tokens, vocabulary) are written in place.")
        .def("reset_windows", &Decoder::reset_windows, "Empty every window.")
        .def("capture", &capture, "inputs"_a.none(), "hidden"_a.none(),
             "Copy each FFN's input and hidden activations in coming prefills; None stops it. The caller keeps the arrays alive until then.")
        .def("script", [](Decoder & d, Ids ids, Offsets offsets) {
                d.script({ids.data(), ids.data() + ids.size()}, {offsets.data(), offsets.data() + offsets.size()});
             }, "ids"_a, "offsets"_a, "Ablations: take these active sets instead of the predictor's.")
        .def("stats", &Decoder::stats, "Times and reads.")
        .def("ffn_stats", [](const Decoder & d, size_t layer) {
                if (layer >= d.ffns().size()) throw nb::index_error("no such layer");
                return d.ffns()[layer]->stats;
             }, "layer"_a, "Counts of one layer.")
        .def("reset_stats", &Decoder::reset_stats, "Start counting anew.")
        .def_prop_ro("memory_bytes", &Decoder::memory_bytes, "Bytes that weights, windows, caches and buffers take.")
        .def_prop_ro("backend", &Decoder::backend, "The read queue in use.")
        .def_prop_ro("direct", [](const Decoder & d) { return d.file().direct(); }, "Whether reads bypass the page cache.");
}
