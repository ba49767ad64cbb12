// The feed-forward layer for a prompt: nearly every neuron is active for some token, so whole
// layers stream in large sequential reads through two buffers, and the dense result is computed.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "decoder.h"

namespace penstock {
namespace {

constexpr size_t kRowBlock = 64;  // neurons whose hidden values are kept before the down rows are added

}  // namespace

void Decoder::ffn(const Pass & pass, const Op & op) {
    FfnLayer & layer = *ffns_[static_cast<size_t>(op.layer)];
    const FfnConfig & c = layer.config;
    const auto n = static_cast<size_t>(pass.n);
    float * x = row(op.src, 0);
    float * y = row(op.dst, 0);
    const float * bias = bias_of(c.down_bias);
    for (size_t t = 0; t < n; ++t) {
        if (bias != nullptr) std::memcpy(y + t * c.width, bias, c.width * sizeof(float));
        else std::memset(y + t * c.width, 0, c.width * sizeof(float));
    }
    layer.stats.tokens += n;
    const size_t slot = static_cast<size_t>(op.layer) * static_cast<size_t>(config_.batch);
    if (capture_inputs_ != nullptr) std::memcpy(capture_inputs_ + slot * c.width, x, n * c.width * sizeof(float));
    if (!pass.decode) {
        ffn_prefill(pass, layer, x, y);
        return;
    }
    switch (c.residency) {
        case Residency::Resident:
        case Residency::Window: ffn_window_token(layer, op.layer, x, y); break;
        case Residency::Exact: ffn_exact_token(layer, x, y); break;
        case Residency::Stream: ffn_stream_token(layer, x, y); break;
    }
}

void Decoder::ffn_prefill(const Pass & pass, FfnLayer & layer, const float * x, float * y) {
    const FfnConfig & c = layer.config;
    const auto n = static_cast<size_t>(pass.n);
    if (dtype_quantized(c.type)) {
        for (size_t t = 0; t < n; ++t) quantize(x + t * c.width, c.width, t);
    }
    const bool seed = pass.seed && layer.window && c.capacity > 0;
    if (seed) layer.window->clear();
    const bool pinned = c.residency == Residency::Resident || c.residency == Residency::Stream;
    const auto resident = pinned ? static_cast<size_t>(c.capacity) : size_t{0};
    if (resident != 0) ffn_batch_rows(layer, layer.slots.data(), c.stride, 0, resident, n, x, y);
    if (resident == static_cast<size_t>(c.neurons)) return;
    for (;;) {
        Stager::Chunk chunk = stager_.next(&wait_ns_);
        chunk.first += resident;
        if (seed) std::fill_n(recent_.begin(), chunk.count, uint8_t{0});
        ffn_batch_rows(layer, chunk.data, c.stride, chunk.first, chunk.count, n, x, y);
        if (seed) seed_window(layer, chunk);
        if (chunk.last) break;
    }
}

// Bundles [first, first + count) at `base`, for n tokens. Each thread takes some of the tokens and
// goes through the neurons in order, so the sums are those of decoding, bit for bit.
void Decoder::ffn_batch_rows(FfnLayer & layer, const uint8_t * base, size_t stride, size_t first, size_t count, size_t n,
                             const float * x, float * y) {
    const Kernels & k = kernels();
    const FfnConfig & c = layer.config;
    const float * up_bias = bias_of(c.up_bias);
    size_t index = 0;
    while (ffns_[index].get() != &layer) ++index;
    float * captured = capture_hidden_ == nullptr
                           ? nullptr
                           : capture_hidden_ + index * static_cast<size_t>(config_.batch) * static_cast<size_t>(c.neurons);
    const size_t recent_from = n > static_cast<size_t>(config_.seed_tokens) ? n - static_cast<size_t>(config_.seed_tokens) : 0;
    std::atomic<uint64_t> active{0};
    // With fewer tokens than threads, threads share a token's output columns instead.
    pool_.run(n, 1, [&](size_t t_begin, size_t t_end) {
        uint64_t nonzero = 0;
        for (size_t block = 0; block < count; block += kRowBlock) {
            const size_t rows = std::min(kRowBlock, count - block);
            for (size_t t = t_begin; t < t_end; ++t) {
                Activation a;
                a.x = x + t * c.width;
                a.q = reinterpret_cast<const int8_t *>(quant_q_.data()) + t * widest_;
                a.scale = reinterpret_cast<const float *>(quant_scale_.data()) + t * (widest_ / kBlock);
                a.sum = reinterpret_cast<const int32_t *>(quant_sum_.data()) + t * (widest_ / kBlock);
                const uint8_t * four_rows[4];
                float four[4];
                int held = 0;
                float * out = y + t * c.width;
                for (size_t r = 0; r < rows; ++r) {
                    const size_t neuron = first + block + r;
                    const uint8_t * bundle = base + (block + r) * stride;
                    const float h = neuron_hidden(layer, k, bundle, a, up_bias, static_cast<int32_t>(neuron));
                    if (captured != nullptr) captured[t * static_cast<size_t>(c.neurons) + neuron] = h;
                    if (h == 0.0f) continue;
                    ++nonzero;
                    if (t >= recent_from) {
                        std::atomic_ref<uint8_t>(recent_[block + r]).fetch_add(1, std::memory_order_relaxed);
                    }
                    four_rows[held] = bundle + layer.down_offset();
                    four[held] = h;
                    if (++held == 4) {
                        k.axpy4(c.type, four_rows, four, out, 0, c.width);
                        held = 0;
                    }
                }
                for (int i = 0; i < held; ++i) k.axpy(c.type, four_rows[i], four[i], out, 0, c.width);
            }
        }
        active.fetch_add(nonzero, std::memory_order_relaxed);
    });
    layer.stats.active += active.load();
    layer.stats.predicted += count * n;
}

// The window is warm for the first generated token: neurons that the prompt's last tokens used go
// in from the buffer that they just streamed through, which costs a copy and no read.
void Decoder::seed_window(FfnLayer & layer, const Stager::Chunk & chunk) {
    const uint64_t begin = now_ns();
    for (size_t r = 0; r < chunk.count; ++r) {
        if (recent_[r] == 0) continue;
        bool there = false;
        const int32_t slot = layer.window->admit(static_cast<int32_t>(chunk.first + r), &there, recent_[r]);
        if (slot < 0) break;
        if (there) continue;
        std::memcpy(layer.slot(slot), chunk.data + r * layer.config.stride + layer.slot_skip, layer.slot_bytes);
        layer.stats.bytes_copied += layer.slot_bytes;
    }
    stats_.upkeep_ns += now_ns() - begin;
}

}  // namespace penstock
