// Recording of operations, and the loop that runs them. The operations themselves are in
// dense_ops.cpp, ffn_prefill.cpp and ffn_decode.cpp.
#include "decoder.h"

#include <algorithm>
#include <cstring>

#include "crc32c.h"
#include "error.h"

namespace penstock {
namespace {

constexpr size_t kOverflowSlots = 64;
constexpr size_t kMaxWidth = size_t{1} << 22;  // of a register or matrix: far above any model

void require(bool ok, const char * what) {
    if (!ok) throw ArgumentError(what);
}

}  // namespace

Decoder::Decoder(const DecoderConfig & config)
    : config_(config),
      file_(config.path, config.direct),
      queue_(make_read_queue(file_, config.backend, config.depth, config.max_reads)),
      pool_(config.threads),
      stager_(file_, *queue_, round_up(std::max<size_t>(config.staging_bytes, 1), kPage) + 2 * kPage, config.overlap) {
    require(config.context >= 1 && config.context <= (1 << 24), "context must be 1 to 16777216 tokens");
    require(config.batch >= 1 && config.batch <= 4096, "batch must be 1 to 4096 tokens");
    require(config.threads >= 1 && config.threads <= 256, "threads must be 1 to 256");
}

Decoder::~Decoder() {
    stager_.abort();
    queue_->drain();
}

int Decoder::tensor(uint64_t offset, Dtype type, size_t rows, size_t cols, bool resident, bool check, uint32_t crc) {
    require(rows >= 1 && cols >= 1 && rows <= (size_t{1} << 32) && cols <= kMaxWidth, "tensor: shape out of range");
    require(!dtype_quantized(type) || cols % kBlock == 0, "tensor: a block format needs columns in multiples of 32");
    Tensor t;
    t.type = type;
    t.rows = rows;
    t.cols = cols;
    t.row_bytes = dtype_row_bytes(type, cols);
    t.offset = offset;
    t.resident = resident;
    const size_t bytes = rows * t.row_bytes;
    if (offset > file_.size() || bytes > file_.size() - offset) {
        throw FormatError(file_.path() + ": a tensor of " + std::to_string(bytes) + " bytes at offset " +
                          std::to_string(offset) + " runs past the end of the file (" + std::to_string(file_.size()) + " bytes)");
    }
    if (resident) {
        t.data = AlignedBuffer(bytes);
        file_.read(offset, t.data.data(), bytes);
        if (check && crc32c(0, t.data.data(), bytes) != crc) {
            throw FormatError(file_.path() + ": the tensor at offset " + std::to_string(offset) +
                              " does not match its checksum; the file is damaged, fetch or export it again");
        }
    }
    tensors_.push_back(std::move(t));
    return static_cast<int>(tensors_.size()) - 1;
}

int Decoder::reg(size_t width) {
    require(width >= 1 && width <= kMaxWidth, "register: width out of range");
    regs_.emplace_back(width * static_cast<size_t>(config_.batch) * sizeof(float));
    widths_.push_back(width);
    return static_cast<int>(regs_.size()) - 1;
}

void Decoder::check_reg(int id, size_t width, const char * what) const {
    if (id < 0 || static_cast<size_t>(id) >= regs_.size()) throw ArgumentError(std::string(what) + ": no such register");
    if (width != 0 && widths_[static_cast<size_t>(id)] != width) {
        throw ArgumentError(std::string(what) + ": register has width " + std::to_string(widths_[static_cast<size_t>(id)]) +
                            ", expected " + std::to_string(width));
    }
}

const Tensor & Decoder::check_tensor(int id, size_t rows, size_t cols, const char * what) const {
    if (id < 0 || static_cast<size_t>(id) >= tensors_.size()) throw ArgumentError(std::string(what) + ": no such tensor");
    const Tensor & t = tensors_[static_cast<size_t>(id)];
    if ((rows != 0 && t.rows != rows) || (cols != 0 && t.cols != cols)) {
        throw ArgumentError(std::string(what) + ": tensor is " + std::to_string(t.rows) + " x " + std::to_string(t.cols) +
                            ", expected " + std::to_string(rows) + " x " + std::to_string(cols));
    }
    return t;
}

void Decoder::grow_scratch(size_t width, size_t neurons) {
    const auto batch = static_cast<size_t>(config_.batch);
    if (width > widest_) {
        widest_ = round_up(width, kBlock);
        quant_q_ = AlignedBuffer(batch * widest_);
        quant_scale_ = AlignedBuffer(batch * widest_ / kBlock * sizeof(float));
        quant_sum_ = AlignedBuffer(batch * widest_ / kBlock * sizeof(int32_t));
    }
    if (neurons > ids_.size()) {
        predicted_.resize(neurons);
        active_.reserve(neurons);
        ids_.resize(neurons);
        miss_ids_.resize(neurons);
        targets_.resize(std::max(neurons, kOverflowSlots));
        hidden_.resize(neurons);
        down_hidden_.resize(neurons);
        rows_.resize(neurons);
        down_rows_.resize(neurons);
        ends_.resize(std::max(neurons, kOverflowSlots));
        iovs_.resize(8 * neurons + 16);
        reads_.reserve(3 * neurons + 16);
        recent_.resize(neurons);
    }
}

void Decoder::op_embed(int table, int dst) {
    check_reg(dst, 0, "embed");
    check_tensor(table, 0, widths_[static_cast<size_t>(dst)], "embed");
    require(tensors_[static_cast<size_t>(table)].resident, "embed: the table must be resident");
    ops_.push_back({.kind = Kind::Embed, .dst = dst, .weight = table});
}

void Decoder::op_position(int table, int dst, int32_t first_row) {
    check_reg(dst, 0, "position");
    const Tensor & t = check_tensor(table, 0, widths_[static_cast<size_t>(dst)], "position");
    require(t.resident && first_row >= 0 && t.rows >= static_cast<size_t>(first_row) + static_cast<size_t>(config_.context),
            "position: the table must be resident and have a row for every position of the context");
    ops_.push_back({.kind = Kind::Position, .dst = dst, .weight = table, .first_row = first_row});
}

void Decoder::op_rms_norm(int src, int dst, int weight, float eps) {
    check_reg(src, 0, "rms_norm");
    const size_t width = widths_[static_cast<size_t>(src)];
    check_reg(dst, width, "rms_norm");
    require(check_tensor(weight, 1, width, "rms_norm").type == Dtype::F32, "rms_norm: weight must be F32");
    ops_.push_back({.kind = Kind::RmsNorm, .src = src, .dst = dst, .weight = weight, .eps = eps});
}

void Decoder::op_layer_norm(int src, int dst, int weight, int bias, float eps) {
    check_reg(src, 0, "layer_norm");
    const size_t width = widths_[static_cast<size_t>(src)];
    check_reg(dst, width, "layer_norm");
    require(check_tensor(weight, 1, width, "layer_norm").type == Dtype::F32, "layer_norm: weight must be F32");
    if (bias >= 0) require(check_tensor(bias, 1, width, "layer_norm").type == Dtype::F32, "layer_norm: bias must be F32");
    ops_.push_back({.kind = Kind::LayerNorm, .src = src, .dst = dst, .weight = weight, .bias = bias, .eps = eps});
}

void Decoder::op_linear(int src, int dst, int weight, int bias) {
    check_reg(src, 0, "linear");
    check_reg(dst, 0, "linear");
    const Tensor & w = check_tensor(weight, widths_[static_cast<size_t>(dst)], widths_[static_cast<size_t>(src)], "linear");
    if (bias >= 0) require(check_tensor(bias, 1, w.rows, "linear").type == Dtype::F32, "linear: bias must be F32");
    grow_scratch(w.cols, 0);
    if (!w.resident) {
        prefill_schedule_.push_back({w.offset, w.row_bytes, w.rows});
        decode_schedule_.push_back({w.offset, w.row_bytes, w.rows});
    }
    ops_.push_back({.kind = Kind::Linear, .src = src, .dst = dst, .weight = weight, .bias = bias});
}

void Decoder::op_logits(int src, int weight) {
    check_reg(src, 0, "logits");
    const Tensor & w = check_tensor(weight, 0, widths_[static_cast<size_t>(src)], "logits");
    require(vocab_ == 0, "logits: recorded twice");
    grow_scratch(w.cols, 0);
    vocab_ = w.rows;
    if (!w.resident) {
        prefill_schedule_.push_back({w.offset, w.row_bytes, w.rows});
        decode_schedule_.push_back({w.offset, w.row_bytes, w.rows});
    }
    ops_.push_back({.kind = Kind::Logits, .src = src, .weight = weight});
}

void Decoder::op_rope(int target, int heads, int head_dim, const float * inv_freq, int rotated, bool interleaved, float scale) {
    require(heads >= 1 && head_dim >= 2 && rotated >= 2 && rotated % 2 == 0 && rotated <= head_dim &&
                static_cast<size_t>(heads) <= kMaxWidth && static_cast<size_t>(head_dim) <= kMaxWidth,
            "rope: heads, head_dim or rotated dimensions out of range");
    check_reg(target, static_cast<size_t>(heads) * static_cast<size_t>(head_dim), "rope");
    const size_t half = static_cast<size_t>(rotated) / 2 * static_cast<size_t>(config_.batch);
    if (cos_.size() < half) {
        cos_.resize(half);
        sin_.resize(half);
    }
    Op op{.kind = Kind::Rope, .dst = target, .heads = heads, .head_dim = head_dim, .rotated = rotated, .eps = scale, .interleaved = interleaved};
    op.inv_freq.assign(inv_freq, inv_freq + rotated / 2);
    ops_.push_back(std::move(op));
}

void Decoder::op_attention(int q, int k, int v, int dst, int heads, int kv_heads, int head_dim) {
    require(heads >= 1 && kv_heads >= 1 && heads % kv_heads == 0 && head_dim >= 1 &&
                static_cast<size_t>(heads) <= kMaxWidth && static_cast<size_t>(head_dim) <= kMaxWidth,
            "attention: heads must be a multiple of kv_heads");
    const size_t q_width = static_cast<size_t>(heads) * static_cast<size_t>(head_dim);
    const size_t kv_width = static_cast<size_t>(kv_heads) * static_cast<size_t>(head_dim);
    check_reg(q, q_width, "attention");
    check_reg(k, kv_width, "attention");
    check_reg(v, kv_width, "attention");
    check_reg(dst, q_width, "attention");
    const auto layer = static_cast<int32_t>(caches_.size());
    const size_t bytes = static_cast<size_t>(config_.context) * kv_width * 2;
    caches_.push_back({AlignedBuffer(bytes), AlignedBuffer(bytes), kv_width});
    scores_.resize(std::max(scores_.size(), static_cast<size_t>(heads) * static_cast<size_t>(config_.context)));
    ops_.push_back({.kind = Kind::Attention, .src = q, .src2 = k, .src3 = v, .dst = dst, .heads = heads,
                    .kv_heads = kv_heads, .head_dim = head_dim, .layer = layer});
}

void Decoder::op_add(int dst, int src) {
    check_reg(src, 0, "add");
    check_reg(dst, widths_[static_cast<size_t>(src)], "add");
    ops_.push_back({.kind = Kind::Add, .src = src, .dst = dst});
}

void Decoder::op_ffn(int src, int dst, const FfnConfig & config) {
    check_reg(src, config.width, "ffn");
    check_reg(dst, config.width, "ffn");
    auto layer = std::make_unique<FfnLayer>();
    FfnLayer & l = *layer;
    l.config = config;
    FfnConfig & c = l.config;
    l.parts = c.gated ? 3 : 2;
    require(c.width >= 1 && c.width <= kMaxWidth && c.neurons >= 1 && c.neurons <= (1 << 20), "ffn: shape out of range");
    require(!dtype_quantized(c.type) || c.width % kBlock == 0, "ffn: a block format needs a width in multiples of 32");
    l.row_bytes = dtype_row_bytes(c.type, c.width);
    require(c.stride >= static_cast<size_t>(l.parts) * l.row_bytes && c.stride <= (size_t{1} << 26), "ffn: bundle stride too small");
    const auto neurons = static_cast<size_t>(c.neurons);
    const uint64_t bytes = static_cast<uint64_t>(neurons) * c.stride;
    if (c.offset > file_.size() || bytes > file_.size() - c.offset) {
        throw FormatError(file_.path() + ": the bundles of a layer run past the end of the file");
    }
    const size_t align = file_.alignment();
    require(!file_.direct() || (c.stride % align == 0 && c.offset % align == 0),
            "ffn: bundle stride and offset must be multiples of the storage's block size for direct reads");
    require(c.capacity >= 0 && c.capacity <= c.neurons, "ffn: capacity out of range");
    if (c.up_bias >= 0) require(check_tensor(c.up_bias, 1, neurons, "ffn").type == Dtype::F32, "ffn: up bias must be F32");
    if (c.down_bias >= 0) require(check_tensor(c.down_bias, 1, c.width, "ffn").type == Dtype::F32, "ffn: down bias must be F32");
    if (c.fc1 >= 0) {
        const Tensor & fc1 = check_tensor(c.fc1, 0, c.width, "predictor fc1");
        const Tensor & fc2 = check_tensor(c.fc2, neurons, fc1.rows, "predictor fc2");
        require(fc1.resident && fc2.resident, "predictor: must be resident");
        if (c.fc2_bias >= 0) require(check_tensor(c.fc2_bias, 1, neurons, "predictor").type == Dtype::F32, "predictor: bias must be F32");
        low_rank_.resize(std::max(low_rank_.size(), fc1.rows));
        grow_scratch(fc1.rows, 0);
    }
    require(!c.use_predictor || c.fc1 >= 0, "ffn: this layer has no predictor");
    require(c.residency != Residency::Window || c.use_predictor, "ffn: a window needs a predictor");

    l.slot_bytes = c.stride;
    if (c.residency == Residency::Exact) {
        l.slot_skip = round_down(l.down_offset(), std::max<size_t>(align, 1));
        l.slot_bytes = c.stride - l.slot_skip;
        // The up (and gate) rows of every neuron, gathered from the bundles as they stream by.
        const size_t up_bytes = l.down_offset();
        l.up_rows = AlignedBuffer(neurons * up_bytes);
        std::vector<Stager::Range> whole{{c.offset, c.stride, neurons}};
        stager_.begin(whole);
        for (uint64_t waited = 0;;) {
            const auto chunk = stager_.next(&waited);
            for (size_t i = 0; i < chunk.count; ++i) {
                std::memcpy(l.up_rows.data() + (chunk.first + i) * up_bytes, chunk.data + i * c.stride, up_bytes);
            }
            if (chunk.last) break;
        }
        stager_.abort();
    }
    if (c.residency == Residency::Resident) c.capacity = c.neurons;
    l.slots = AlignedBuffer(static_cast<size_t>(c.capacity) * l.slot_bytes);
    if (c.residency == Residency::Resident || c.residency == Residency::Stream) {
        file_.read(c.offset, l.slots.data(), static_cast<size_t>(c.capacity) * c.stride);
    } else {
        l.window = std::make_unique<NeuronWindow>(c.neurons, c.capacity, c.window_tokens);
    }
    grow_scratch(c.width, neurons);
    if (c.residency != Residency::Resident) {
        const auto pinned = c.residency == Residency::Stream ? static_cast<size_t>(c.capacity) : size_t{0};
        const Stager::Range rest{c.offset + pinned * c.stride, c.stride, neurons - pinned};
        prefill_schedule_.push_back(rest);
        if (c.residency == Residency::Stream) decode_schedule_.push_back(rest);
    }
    if (l.window) {
        overflow_slots_ = kOverflowSlots;
        if (overflow_.bytes() < overflow_slots_ * l.slot_bytes) overflow_ = AlignedBuffer(overflow_slots_ * l.slot_bytes);
        if (gap_.bytes() < config_.merge_gap) gap_ = AlignedBuffer(config_.merge_gap);
    }
    const auto index = static_cast<int32_t>(ffns_.size());
    ffns_.push_back(std::move(layer));
    ops_.push_back({.kind = Kind::Ffn, .src = src, .dst = dst, .layer = index});
}

void Decoder::forward(const int32_t * tokens, int32_t n, int32_t position, float * logits, bool all_logits, bool decode, bool seed) {
    require(vocab_ != 0, "the program has no logits");
    require(n >= 1 && position >= 0 && position <= config_.context && n <= config_.context - position,
            "forward: the positions run past the context");
    require(decode || n <= config_.batch, "forward: more tokens than a batch holds");
    const uint64_t begin = now_ns();
    try {
        if (!decode) {
            run({tokens, n, position, logits, all_logits, false, seed});
        } else {
            for (int32_t t = 0; t < n; ++t) {
                const bool wanted = all_logits || t == n - 1;
                run({tokens + t, 1, position + t, wanted ? logits + (all_logits ? static_cast<size_t>(t) * vocab_ : 0) : nullptr, false, true, false});
            }
        }
    } catch (...) {
        // A failed read leaves slots unwritten: forget them, so that the next pass starts clean.
        stager_.abort();
        queue_->drain();
        reset_windows();
        throw;
    }
    stats_.tokens += static_cast<uint64_t>(n);
    stats_.passes += 1;
    stats_.total_ns += now_ns() - begin;
}

void Decoder::run(const Pass & pass) {
    const auto & schedule = pass.decode ? decode_schedule_ : prefill_schedule_;
    if (!schedule.empty()) stager_.begin(schedule);
    const auto n = static_cast<size_t>(pass.n);
    for (const Op & op : ops_) {
        switch (op.kind) {
            case Kind::Embed:
            case Kind::Position:
            case Kind::RmsNorm:
            case Kind::LayerNorm:
            case Kind::Linear:
            case Kind::Logits: linear(pass, op); break;
            case Kind::Rope: rope(pass, op); break;
            case Kind::Attention: attention(pass, op); break;
            case Kind::Add: {
                float * dst = row(op.dst, 0);
                const float * src = row(op.src, 0);
                const size_t count = n * widths_[static_cast<size_t>(op.dst)];
                for (size_t i = 0; i < count; ++i) dst[i] += src[i];
                break;
            }
            case Kind::Ffn: ffn(pass, op); break;
        }
    }
    stager_.abort();
}

void Decoder::reset_windows() {
    for (auto & layer : ffns_) {
        if (layer->window) layer->window->clear();
    }
}

void Decoder::script(std::vector<int32_t> ids, std::vector<int64_t> offsets) {
    const size_t layers = ffns_.size();
    require(layers != 0 && offsets.size() > 1 && (offsets.size() - 1) % layers == 0 && offsets.front() == 0 &&
                offsets.back() == static_cast<int64_t>(ids.size()) && std::is_sorted(offsets.begin(), offsets.end()),
            "script: offsets must rise from 0 to the number of ids, one for each token and layer, and one more");
    script_ids_ = std::move(ids);
    script_offsets_ = std::move(offsets);
    script_token_ = 0;
}

DecoderStats Decoder::stats() const {
    DecoderStats s = stats_;
    s.wait_ns = wait_ns_;
    const ReadTotals io = queue_->totals();
    s.io = {io.bytes - io_base_.bytes, io.reads - io_base_.reads, io.busy_ns - io_base_.busy_ns};
    return s;
}

void Decoder::reset_stats() {
    stats_ = {};
    wait_ns_ = 0;
    io_base_ = queue_->totals();
    for (auto & layer : ffns_) layer->stats = {};
}

size_t Decoder::memory_bytes() const {
    size_t bytes = stager_.bytes() + gap_.bytes() + overflow_.bytes() + quant_q_.bytes() + quant_scale_.bytes() + quant_sum_.bytes();
    for (const auto & t : tensors_) bytes += t.data.bytes();
    for (const auto & r : regs_) bytes += r.bytes();
    for (const auto & c : caches_) bytes += c.k.bytes() + c.v.bytes();
    for (const auto & l : ffns_) {
        bytes += l->slots.bytes() + l->up_rows.bytes();
        if (l->window) bytes += NeuronWindow::table_bytes(l->config.neurons, l->config.capacity);
    }
    const auto vec = [&](const auto & v) { bytes += v.capacity() * sizeof(v[0]); };
    vec(scores_), vec(cos_), vec(sin_), vec(low_rank_), vec(predicted_), vec(active_), vec(ids_), vec(miss_ids_), vec(targets_), vec(hidden_);
    vec(down_hidden_), vec(rows_), vec(down_rows_), vec(ends_), vec(iovs_), vec(reads_), vec(recent_);
    return bytes + config_.max_reads * (sizeof(Read) + 8);
}

}  // namespace penstock
