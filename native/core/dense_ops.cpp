// The operations whose weights are resident (or streamed whole): embedding, norms, projections,
// rotary positions and attention over the cache.
#include <cmath>
#include <cstring>

#include "decoder.h"
#include "error.h"

namespace penstock {
namespace {

// One row of any format to float, for embeddings.
void row_to_f32(Dtype type, const uint8_t * row, float * out, size_t n) {
    std::memset(out, 0, n * sizeof(float));
    kernels().axpy(type, row, 1.0f, out, 0, n);
}

void rms_norm(const float * x, const float * w, float * y, size_t n, float eps) {
    double sum = 0.0;
    for (size_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
    const float scale = 1.0f / std::sqrt(static_cast<float>(sum / static_cast<double>(n)) + eps);
    for (size_t i = 0; i < n; ++i) y[i] = x[i] * scale * w[i];
}

void layer_norm(const float * x, const float * w, const float * b, float * y, size_t n, float eps) {
    double sum = 0.0;
    for (size_t i = 0; i < n; ++i) sum += x[i];
    const double mean = sum / static_cast<double>(n);
    double square = 0.0;
    for (size_t i = 0; i < n; ++i) square += (x[i] - mean) * (x[i] - mean);
    const float scale = 1.0f / std::sqrt(static_cast<float>(square / static_cast<double>(n)) + eps);
    for (size_t i = 0; i < n; ++i) {
        y[i] = (x[i] - static_cast<float>(mean)) * scale * w[i] + (b != nullptr ? b[i] : 0.0f);
    }
}

}  // namespace

Activation Decoder::quantize(const float * x, size_t n, size_t slot) {
    Activation a;
    a.x = x;
    auto * q = reinterpret_cast<int8_t *>(quant_q_.data()) + slot * widest_;
    auto * scale = reinterpret_cast<float *>(quant_scale_.data()) + slot * (widest_ / kBlock);
    auto * sum = reinterpret_cast<int32_t *>(quant_sum_.data()) + slot * (widest_ / kBlock);
    kernels().quantize(x, q, scale, sum, n);
    a.q = q;
    a.scale = scale;
    a.sum = sum;
    return a;
}

// out[t][first + r] = rows[r] . x[t] + bias; activations were quantized into slot t beforehand.
void Decoder::linear_rows(const uint8_t * rows, const Tensor & w, size_t first, size_t count, size_t tokens, const float * x,
                          size_t x_width, const float * bias, float * out, size_t out_width) {
    const Kernels & k = kernels();
    const size_t grain = std::max<size_t>(1, 32768 / (w.row_bytes * tokens));
    pool_.run(count, grain, [&](size_t begin, size_t end) {
        Activation a;
        for (size_t r = begin; r < end; ++r) {
            const uint8_t * weight = rows + r * w.row_bytes;
            const float b = bias != nullptr ? bias[first + r] : 0.0f;
            for (size_t t = 0; t < tokens; ++t) {
                a.x = x + t * x_width;
                a.q = reinterpret_cast<const int8_t *>(quant_q_.data()) + t * widest_;
                a.scale = reinterpret_cast<const float *>(quant_scale_.data()) + t * (widest_ / kBlock);
                a.sum = reinterpret_cast<const int32_t *>(quant_sum_.data()) + t * (widest_ / kBlock);
                out[t * out_width + first + r] = k.dot(w.type, weight, a, w.cols) + b;
            }
        }
    });
}

void Decoder::linear(const Pass & pass, const Op & op) {
    const Tensor & w = tensors_[static_cast<size_t>(op.weight)];
    const auto n = static_cast<size_t>(pass.n);
    if (op.kind == Kind::Embed) {
        for (int32_t t = 0; t < pass.n; ++t) {
            const int32_t id = pass.tokens[t];
            if (id < 0 || static_cast<size_t>(id) >= w.rows) {
                throw ArgumentError("token " + std::to_string(id) + " is outside of the vocabulary of " + std::to_string(w.rows));
            }
            row_to_f32(w.type, w.data.data() + static_cast<size_t>(id) * w.row_bytes, row(op.dst, t), w.cols);
        }
        return;
    }
    if (op.kind == Kind::Position) {
        for (int32_t t = 0; t < pass.n; ++t) {
            const auto at = static_cast<size_t>(op.first_row + pass.position + t);
            kernels().axpy(w.type, w.data.data() + at * w.row_bytes, 1.0f, row(op.dst, t), 0, w.cols);
        }
        return;
    }
    if (op.kind == Kind::RmsNorm || op.kind == Kind::LayerNorm) {
        for (int32_t t = 0; t < pass.n; ++t) {
            if (op.kind == Kind::RmsNorm) rms_norm(row(op.src, t), w.f32(), row(op.dst, t), w.cols, op.eps);
            else layer_norm(row(op.src, t), w.f32(), bias_of(op.bias), row(op.dst, t), w.cols, op.eps);
        }
        return;
    }
    const bool logits = op.kind == Kind::Logits;
    const bool skip = logits && pass.logits == nullptr;
    const size_t tokens = logits && !pass.all_logits ? 1 : n;
    const float * x = row(op.src, static_cast<int32_t>(n - tokens));
    float * out = logits ? pass.logits : row(op.dst, 0);
    if (!skip && dtype_quantized(w.type)) {
        for (size_t t = 0; t < tokens; ++t) quantize(x + t * w.cols, w.cols, t);
    }
    if (w.resident) {
        if (!skip) linear_rows(w.data.data(), w, 0, w.rows, tokens, x, w.cols, bias_of(op.bias), out, w.rows);
        return;
    }
    for (;;) {  // streamed: its chunks come in the schedule's order, wanted or not
        const Stager::Chunk chunk = stager_.next(&wait_ns_);
        if (!skip) linear_rows(chunk.data, w, chunk.first, chunk.count, tokens, x, w.cols, bias_of(op.bias), out, w.rows);
        if (chunk.last) break;
    }
}

// Rotary positions (RoFormer). interleaved: pairs (0, 1), (2, 3)...; else (i, i + rotated / 2).
void Decoder::rope(const Pass & pass, const Op & op) {
    const auto half = static_cast<size_t>(op.rotated) / 2;
    for (int32_t t = 0; t < pass.n; ++t) {
        for (size_t i = 0; i < half; ++i) {
            // The angle in double: at long contexts float loses the fast frequencies.
            const double angle = static_cast<double>(pass.position + t) * static_cast<double>(op.inv_freq[i]);
            cos_[static_cast<size_t>(t) * half + i] = static_cast<float>(std::cos(angle)) * op.eps;
            sin_[static_cast<size_t>(t) * half + i] = static_cast<float>(std::sin(angle)) * op.eps;
        }
    }
    const size_t first = op.interleaved ? 2 : 1, second = op.interleaved ? 1 : half;
    for (int32_t t = 0; t < pass.n; ++t) {
        const float * c = cos_.data() + static_cast<size_t>(t) * half;
        const float * s = sin_.data() + static_cast<size_t>(t) * half;
        for (int32_t h = 0; h < op.heads; ++h) {
            float * x = row(op.dst, t) + static_cast<size_t>(h) * static_cast<size_t>(op.head_dim);
            for (size_t i = 0; i < half; ++i) {
                float & a = x[i * first];
                float & b = x[i * first + second];
                const float turned = a * c[i] - b * s[i];
                b = a * s[i] + b * c[i];
                a = turned;
            }
        }
    }
}

void Decoder::attention(const Pass & pass, const Op & op) {
    Cache & cache = caches_[static_cast<size_t>(op.layer)];
    auto * keys = reinterpret_cast<uint16_t *>(cache.k.data());
    auto * values = reinterpret_cast<uint16_t *>(cache.v.data());
    for (int32_t t = 0; t < pass.n; ++t) {
        const size_t at = static_cast<size_t>(pass.position + t) * cache.width;
        const float * k = row(op.src2, t);
        const float * v = row(op.src3, t);
        for (size_t i = 0; i < cache.width; ++i) {
            keys[at + i] = f32_to_f16(k[i]);
            values[at + i] = f32_to_f16(v[i]);
        }
    }
    const Kernels & kernel = kernels();
    const auto dim = static_cast<size_t>(op.head_dim);
    const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
    const auto group = static_cast<size_t>(op.heads / op.kv_heads);
    const size_t work = static_cast<size_t>(pass.position + pass.n) * static_cast<size_t>(pass.n) * dim * 4;
    const size_t grain = work > 16384 ? 1 : static_cast<size_t>(op.heads);
    pool_.run(static_cast<size_t>(op.heads), grain, [&](size_t begin, size_t end) {
        for (size_t h = begin; h < end; ++h) {
            float * scores = scores_.data() + h * static_cast<size_t>(config_.context);
            const size_t column = h / group * dim;
            for (int32_t t = 0; t < pass.n; ++t) {
                const auto length = static_cast<size_t>(pass.position + t) + 1;
                const float * q = row(op.src, t) + h * dim;
                float largest = -INFINITY;
                for (size_t p = 0; p < length; ++p) {
                    scores[p] = scale * kernel.dot_f16(keys + p * cache.width + column, q, dim);
                    largest = scores[p] > largest ? scores[p] : largest;
                }
                float total = 0.0f;
                for (size_t p = 0; p < length; ++p) {
                    scores[p] = std::exp(scores[p] - largest);
                    total += scores[p];
                }
                float * out = row(op.dst, t) + h * dim;
                std::memset(out, 0, dim * sizeof(float));
                const float inverse = 1.0f / total;
                for (size_t p = 0; p < length; ++p) {
                    kernel.axpy_f16(values + p * cache.width + column, scores[p] * inverse, out, dim);
                }
            }
        }
    });
}

}  // namespace penstock
