// One feed-forward layer whose weights live on storage as neuron bundles.
//
//   y = W_down * act(W_up x + b_up) + b_down                 two rows a bundle: up, down
//   y = W_down * (act(W_gate x) * W_up x)                    three rows: gate, up, down
//
// Row i of W_up (and W_gate) and column i of W_down belong to neuron i and lie together on storage
// (row-column bundling, LLM in a flash section 3.2), padded to the bundle stride.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "aligned_buffer.h"
#include "dtype.h"
#include "kernels.h"
#include "neuron_window.h"
#include "stager.h"
#include "thread_pool.h"

namespace penstock {

enum class HiddenAct : int { Relu = 0, Relu2 = 1, FatRelu = 2, DRelu = 3 };

// Where a layer's weights are while decoding.
enum class Residency : int {
    Resident = 0,  // every bundle in memory
    Window = 1,    // the predictor chooses, the neuron window holds
    Exact = 2,     // up (and gate) rows in memory; down columns of truly active neurons in the window
    Stream = 3,    // the first `capacity` bundles in memory, the others streamed for every token
};

struct FfnConfig {
    uint64_t offset = 0;     // of neuron 0's bundle in the file
    size_t stride = 0;       // bytes from one bundle to the next
    int32_t neurons = 0;
    size_t width = 0;        // model dimension
    Dtype type = Dtype::F16;
    bool gated = false;
    HiddenAct act = HiddenAct::Relu;
    float threshold = 0.0f;  // FATReLU's
    Residency residency = Residency::Resident;
    int32_t capacity = 0;    // slots (Window, Exact) or resident bundles (Stream)
    int32_t window_tokens = 0;
    int up_bias = -1, down_bias = -1;          // tensor ids, f32
    int fc1 = -1, fc2 = -1, fc2_bias = -1;     // the predictor's tensors; -1: none
    bool use_predictor = false;
};

struct FfnStats {
    uint64_t hits = 0, misses = 0, overflow = 0;  // neurons
    uint64_t predicted = 0, active = 0;           // neurons computed, and with a non-zero output
    uint64_t reads = 0;                           // window reads after merging
    uint64_t bytes_copied = 0;                    // by swap-delete and seeding
    uint64_t tokens = 0;
};

struct FfnLayer {
    FfnConfig config;
    size_t row_bytes = 0;
    int parts = 2;
    size_t slot_skip = 0;   // leading bytes of a bundle that a slot does not hold (Exact)
    size_t slot_bytes = 0;
    AlignedBuffer slots;    // (capacity or neurons, slot_bytes)
    AlignedBuffer up_rows;  // Exact: (neurons, parts - 1, row_bytes)
    std::unique_ptr<NeuronWindow> window;
    FfnStats stats;

    size_t down_offset() const { return static_cast<size_t>(parts - 1) * row_bytes; }
    uint8_t * slot(int32_t s) { return slots.data() + static_cast<size_t>(s) * slot_bytes; }
    uint64_t bundle_at(int32_t neuron) const { return config.offset + static_cast<uint64_t>(neuron) * config.stride; }
};

// act(up x) of one neuron; `first` points at its gate row if gated, else at its up row.
inline float neuron_hidden(const FfnLayer & layer, const Kernels & k, const uint8_t * first, const Activation & x,
                           const float * up_bias, int32_t neuron) {
    const FfnConfig & c = layer.config;
    float z = k.dot(c.type, first, x, c.width);
    if (up_bias != nullptr) z += up_bias[neuron];
    float h = 0.0f;
    switch (c.act) {
        case HiddenAct::Relu:
        case HiddenAct::DRelu: h = z > 0.0f ? z : 0.0f; break;
        case HiddenAct::Relu2: h = z > 0.0f ? z * z : 0.0f; break;
        case HiddenAct::FatRelu: h = z > c.threshold ? z : 0.0f; break;
    }
    if (z != z) h = z;  // NaN must not pass for an inactive neuron
    if (!c.gated || h == 0.0f) return h;
    const float u = k.dot(c.type, first + layer.row_bytes, x, c.width);
    if (c.act == HiddenAct::DRelu) return u > 0.0f ? h * u : 0.0f;
    return h * u;
}

}  // namespace penstock
