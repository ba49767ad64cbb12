// Runs a transformer's forward pass as a short list of operations that Python recorded once from
// the architecture's file. No allocation, no lock and no Python in a pass.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "aligned_buffer.h"
#include "direct_file.h"
#include "ffn_layer.h"
#include "read_queue.h"
#include "stager.h"
#include "thread_pool.h"

namespace penstock {

struct DecoderConfig {
    std::string path;
    bool direct = true;
    std::string backend = "auto";  // of the read queue
    int depth = 64;                // reads in flight
    size_t max_reads = 1 << 16;    // reads queued at once: a layer's neurons times the parts, and the staging's
    int threads = 1;
    int32_t context = 0;           // tokens the KV cache holds
    int32_t batch = 1;             // tokens a prefill pass takes
    size_t staging_bytes = 0;      // each of two
    size_t merge_gap = 0;          // neighbouring misses become one read over gaps up to this
    size_t read_max = 1 << 20;     // longest merged read
    int32_t seed_tokens = 5;       // a prompt's last tokens whose neurons enter the window
    // Switches for ablations; all true in use.
    bool overlap = true, bundled = true, reuse = true;
};

struct DecoderStats {
    uint64_t tokens = 0, passes = 0;
    uint64_t total_ns = 0;    // in forward()
    uint64_t wait_ns = 0;     // of it: blocked on storage
    uint64_t upkeep_ns = 0;   // of it: window bookkeeping and copies
    uint64_t predict_ns = 0;  // of it: predictors
    ReadTotals io;
};

struct Tensor {
    Dtype type = Dtype::F32;
    size_t rows = 0, cols = 0, row_bytes = 0;
    uint64_t offset = 0;
    bool resident = true;
    AlignedBuffer data;
    const float * f32() const { return reinterpret_cast<const float *>(data.data()); }
};

class Decoder {
public:
    explicit Decoder(const DecoderConfig & config);
    ~Decoder();

    // ---- recording; each throws ArgumentError when ids or shapes do not fit
    // Load (or, resident false, only note) a matrix; checks its CRC-32C when `check` is set.
    int tensor(uint64_t offset, Dtype type, size_t rows, size_t cols, bool resident, bool check, uint32_t crc);
    int reg(size_t width);  // a register of (batch, width) floats
    void op_embed(int table, int dst);
    void op_position(int table, int dst, int32_t first_row);
    void op_rms_norm(int src, int dst, int weight, float eps);
    void op_layer_norm(int src, int dst, int weight, int bias, float eps);
    void op_linear(int src, int dst, int weight, int bias);
    void op_rope(int target, int heads, int head_dim, const float * inv_freq, int rotated, bool interleaved, float scale);
    void op_attention(int q, int k, int v, int dst, int heads, int kv_heads, int head_dim);
    void op_add(int dst, int src);
    void op_ffn(int src, int dst, const FfnConfig & config);
    void op_logits(int src, int weight);

    // ---- running
    // tokens at positions position .. position + n - 1, n <= batch. logits: (n or 1, vocab).
    // decode true: token by token through the windows, even when n > 1.
    // seed: this is the prompt's last chunk, so its last tokens' neurons enter the windows.
    void forward(const int32_t * tokens, int32_t n, int32_t position, float * logits, bool all_logits, bool decode, bool seed);
    void reset_windows();
    // The next forwards copy every FFN's input, and its hidden activations, for calibration.
    void capture(float * inputs, float * hidden) { capture_inputs_ = inputs; capture_hidden_ = hidden; }
    // Ablations: take these active sets, in turn, instead of the predictor's. ids of (token, layer)
    // are ids[offsets[token * layers + layer]] up to the next offset.
    void script(std::vector<int32_t> ids, std::vector<int64_t> offsets);

    DecoderStats stats() const;
    void reset_stats();
    const std::vector<std::unique_ptr<FfnLayer>> & ffns() const { return ffns_; }
    size_t vocab() const { return vocab_; }
    const DecoderConfig & config() const { return config_; }
    const DirectFile & file() const { return file_; }
    const char * backend() const { return queue_->name(); }
    size_t memory_bytes() const;  // what this object has allocated for weights, windows, caches, buffers

private:
    enum class Kind { Embed, Position, RmsNorm, LayerNorm, Linear, Rope, Attention, Add, Ffn, Logits };
    struct Op {
        Kind kind;
        int src = -1, src2 = -1, src3 = -1, dst = -1;
        int weight = -1, bias = -1;
        int32_t heads = 0, kv_heads = 0, head_dim = 0, rotated = 0, first_row = 0, layer = -1;
        float eps = 0.0f;
        bool interleaved = false;
        std::vector<float> inv_freq{};
    };
    struct Cache {
        AlignedBuffer k, v;  // (context, kv_heads * head_dim) f16
        size_t width = 0;
    };
    struct Pass {
        const int32_t * tokens;
        int32_t n, position;
        float * logits;
        bool all_logits, decode, seed;
    };

    void run(const Pass & pass);
    void linear(const Pass & pass, const Op & op);
    void linear_rows(const uint8_t * rows, const Tensor & w, size_t first, size_t count, size_t tokens, const float * x, size_t x_width, const float * bias, float * out, size_t out_width);
    void rope(const Pass & pass, const Op & op);
    void attention(const Pass & pass, const Op & op);

    void ffn(const Pass & pass, const Op & op);
    void ffn_prefill(const Pass & pass, FfnLayer & layer, const float * x, float * y);
    void ffn_batch_rows(FfnLayer & layer, const uint8_t * base, size_t stride, size_t first, size_t count, size_t n, const float * x, float * y);
    void ffn_stream_token(FfnLayer & layer, const float * x, float * y);
    void ffn_window_token(FfnLayer & layer, int32_t layer_index, const float * x, float * y);
    void ffn_exact_token(FfnLayer & layer, const float * x, float * y);
    void seed_window(FfnLayer & layer, const Stager::Chunk & chunk);
    size_t predict(FfnLayer & layer, const float * x);  // -> active_ ascending
    void move_slots(FfnLayer & layer);
    void read_bundles(FfnLayer & layer, const int32_t * ids, size_t count);
    void merge_reads(FfnLayer & layer, const int32_t * ids, size_t count);
    void scatter_reads(FfnLayer & layer, const int32_t * ids, size_t count);
    void read_misses(FfnLayer & layer);
    void read_overflow(FfnLayer & layer, const int32_t * ids, size_t count);
    void hidden_rows(const FfnLayer & layer, const uint8_t * const * rows, const int32_t * ids, size_t count, const Activation & x, float * hidden);
    void add_down(const FfnLayer & layer, const uint8_t * const * rows, const float * hidden, size_t count, float * y);
    size_t compute_bundles(FfnLayer & layer, size_t count, const Activation & x, float * y);

    Activation quantize(const float * x, size_t n, size_t slot);
    const float * bias_of(int id) const { return id < 0 ? nullptr : tensors_[static_cast<size_t>(id)].f32(); }
    float * row(int reg, int32_t t) { return reinterpret_cast<float *>(regs_[static_cast<size_t>(reg)].data()) + static_cast<size_t>(t) * widths_[static_cast<size_t>(reg)]; }
    void check_reg(int id, size_t width, const char * what) const;
    const Tensor & check_tensor(int id, size_t rows, size_t cols, const char * what) const;
    void grow_scratch(size_t width, size_t neurons);

    DecoderConfig config_;
    DirectFile file_;
    std::unique_ptr<ReadQueue> queue_;
    ThreadPool pool_;
    Stager stager_;
    std::vector<Tensor> tensors_;
    std::vector<AlignedBuffer> regs_;
    std::vector<size_t> widths_;
    std::vector<Op> ops_;
    std::vector<std::unique_ptr<FfnLayer>> ffns_;
    std::vector<Cache> caches_;
    size_t vocab_ = 0;
    std::vector<Stager::Range> prefill_schedule_, decode_schedule_;
    uint64_t wait_ns_ = 0;
    DecoderStats stats_;
    ReadTotals io_base_;

    // scratch, sized while recording
    AlignedBuffer quant_q_, quant_scale_, quant_sum_;  // (batch, widest) int8 and its blocks
    size_t widest_ = 0;
    std::vector<float> scores_;                // (heads, context) attention
    std::vector<float> cos_, sin_;             // (batch, rotated / 2)
    std::vector<float> low_rank_, predicted_;  // predictor: (rank), (neurons)
    std::vector<int32_t> active_, ids_, miss_ids_;
    std::vector<uint8_t *> targets_;           // where each bundle that is read goes
    std::vector<float> hidden_, down_hidden_;
    std::vector<const uint8_t *> rows_, down_rows_;
    std::vector<uint64_t> ends_;
    std::vector<iovec> iovs_;
    std::vector<Read> reads_;
    std::vector<uint8_t> recent_;
    AlignedBuffer gap_, overflow_;
    size_t overflow_slots_ = 0;

    float * capture_inputs_ = nullptr;  // (layers, batch, width)
    float * capture_hidden_ = nullptr;  // (layers, batch, neurons)
    std::vector<int32_t> script_ids_;
    std::vector<int64_t> script_offsets_;
    size_t script_token_ = 0;
};

}  // namespace penstock
