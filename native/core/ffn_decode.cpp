// The feed-forward layer for one new token: LLM in a flash, section 3.
//
//   predictor -> active set -> window: hits, victims, misses -> parallel direct reads of the misses
//   straight into their slots, while the hits are computed -> the misses, as they arrive
#include <algorithm>
#include <cstring>

#include "decoder.h"

namespace penstock {
namespace {

constexpr size_t kMissGroup = 64;   // misses computed together once they have arrived
constexpr size_t kMaxIov = 64;      // pieces of one merged read
constexpr size_t kHitGroup = 512;   // hits computed before completed reads are collected
constexpr size_t kRowsAhead = 8;    // down rows that are prefetched before their turn

// Rows of scattered neurons: the hardware prefetcher starts anew at each, so the next one is asked for.
inline void prefetch_row(const uint8_t * row, size_t bytes) {
    for (size_t at = 0; at < std::min<size_t>(bytes, 1024); at += 64) __builtin_prefetch(row + at);
}

}  // namespace

// Predicted active neurons of the layer, ascending, into active_. Low rank: fc2 (fc1 x) + b > 0.
size_t Decoder::predict(FfnLayer & layer, const float * x) {
    const uint64_t begin = now_ns();
    const FfnConfig & c = layer.config;
    const Tensor & fc1 = tensors_[static_cast<size_t>(c.fc1)];
    const Tensor & fc2 = tensors_[static_cast<size_t>(c.fc2)];
    if (dtype_quantized(fc1.type)) quantize(x, fc1.cols, 0);
    linear_rows(fc1.data.data(), fc1, 0, fc1.rows, 1, x, fc1.cols, nullptr, low_rank_.data(), fc1.rows);
    if (dtype_quantized(fc2.type)) quantize(low_rank_.data(), fc2.cols, 0);
    linear_rows(fc2.data.data(), fc2, 0, fc2.rows, 1, low_rank_.data(), fc2.cols, bias_of(c.fc2_bias), predicted_.data(), fc2.rows);
    active_.clear();
    for (int32_t i = 0; i < c.neurons; ++i) {
        if (predicted_[static_cast<size_t>(i)] > 0.0f) active_.push_back(i);
    }
    stats_.predict_ns += now_ns() - begin;
    return active_.size();
}

void Decoder::move_slots(FfnLayer & layer) {
    for (const auto & move : layer.window->moves()) {
        std::memcpy(layer.slot(move.to), layer.slot(move.from), layer.slot_bytes);
        layer.stats.bytes_copied += layer.slot_bytes;
    }
}

// Read `count` bundles, neurons ids[i] ascending, each to its address in targets_[i]. Neighbours become one
// read when the gap between them is cheaper than a second read; the gap's bytes go to a scrap
// buffer. ends_[i] is the ticket after which bundle i is in memory.
void Decoder::read_bundles(FfnLayer & layer, const int32_t * ids, size_t count) {
    reads_.clear();
    if (config_.bundled) merge_reads(layer, ids, count);
    else scatter_reads(layer, ids, count);
    const uint64_t first = queue_->submit(reads_.data(), reads_.size());
    for (size_t i = 0; i < count; ++i) ends_[i] += first;
    layer.stats.reads += reads_.size();
}

void Decoder::merge_reads(FfnLayer & layer, const int32_t * ids, size_t count) {
    size_t used = 0;
    for (size_t i = 0; i < count;) {
        const size_t first_iov = used;
        const uint64_t begin = layer.bundle_at(ids[i]) + layer.slot_skip;
        uint64_t end = begin;
        size_t j = i;
        for (; j < count; ++j) {
            const uint64_t from = layer.bundle_at(ids[j]) + layer.slot_skip;
            const uint64_t gap = from - end;
            if (j != i && (gap > config_.merge_gap || from + layer.slot_bytes - begin > config_.read_max || used - first_iov + 2 > kMaxIov)) break;
            if (gap != 0) iovs_[used++] = {gap_.data(), gap};
            uint8_t * to = targets_[j];
            const bool follows = gap == 0 && used != first_iov && static_cast<uint8_t *>(iovs_[used - 1].iov_base) + iovs_[used - 1].iov_len == to;
            if (follows) iovs_[used - 1].iov_len += layer.slot_bytes;  // the next slot, too
            else iovs_[used++] = {to, layer.slot_bytes};
            end = from + layer.slot_bytes;
        }
        reads_.push_back({begin, &iovs_[first_iov], static_cast<uint32_t>(used - first_iov), static_cast<uint32_t>(end - begin)});
        for (; i < j; ++i) ends_[i] = reads_.size();
    }
}

// Ablation: as if up and down lay in different places, two (three) smaller reads a neuron. The parts are
// taken from bundles far apart, so that the reads really scatter.
void Decoder::scatter_reads(FfnLayer & layer, const int32_t * ids, size_t count) {
    const FfnConfig & c = layer.config;
    const size_t part = round_up(layer.row_bytes, std::max<size_t>(file_.alignment(), 1));
    size_t used = 0;
    for (size_t i = 0; i < count; ++i) {
        size_t done = 0;
        for (int p = 0; p < layer.parts && done < layer.slot_bytes; ++p) {
            const size_t length = p + 1 == layer.parts ? layer.slot_bytes - done : std::min(part, layer.slot_bytes - done);
            const int32_t far = (ids[i] + p * (c.neurons / 2)) % c.neurons;
            iovs_[used] = {targets_[i] + done, length};
            reads_.push_back({layer.bundle_at(far) + layer.slot_skip + done, &iovs_[used], 1, static_cast<uint32_t>(length)});
            ++used;
            done += length;
        }
        ends_[i] = reads_.size();
    }
}

void Decoder::read_misses(FfnLayer & layer) {
    const auto & misses = layer.window->misses();
    for (size_t i = 0; i < misses.size(); ++i) {
        miss_ids_[i] = misses[i].neuron;
        targets_[i] = layer.slot(misses[i].slot);
    }
    read_bundles(layer, miss_ids_.data(), misses.size());
}

// Neurons that found no slot: read, used once, dropped. count <= overflow_slots_.
void Decoder::read_overflow(FfnLayer & layer, const int32_t * ids, size_t count) {
    for (size_t i = 0; i < count; ++i) targets_[i] = overflow_.data() + i * layer.slot_bytes;
    const uint64_t before = now_ns();
    read_bundles(layer, ids, count);
    queue_->wait(ends_[count - 1]);
    wait_ns_ += now_ns() - before;
}

// hidden[i] = act(...) of the bundle at rows[i], neuron ids[i].
void Decoder::hidden_rows(const FfnLayer & layer, const uint8_t * const * rows, const int32_t * ids, size_t count,
                          const Activation & x, float * hidden) {
    const Kernels & k = kernels();
    const float * up_bias = bias_of(layer.config.up_bias);
    const size_t grain = std::max<size_t>(1, 16384 / layer.row_bytes);
    pool_.run(count, grain, [&](size_t begin, size_t end) {
        for (size_t i = begin; i < end; ++i) {
            if (i + 1 < end) prefetch_row(rows[i + 1], layer.row_bytes);
            hidden[i] = neuron_hidden(layer, k, rows[i], x, up_bias, ids[i]);
        }
    });
}

// y += sum of hidden[i] * down row i, in the order of i; threads share the columns, so the order of
// the sum, and with it every bit, is the same for any number of threads.
void Decoder::add_down(const FfnLayer & layer, const uint8_t * const * rows, const float * hidden, size_t count, float * y) {
    if (count == 0) return;
    const Kernels & k = kernels();
    const FfnConfig & c = layer.config;
    const size_t grain = std::max<size_t>(64, round_up(c.width * 16384 / (count * layer.row_bytes + 1), 64));
    pool_.run(c.width, grain, [&](size_t begin, size_t end) {
        const size_t from = dtype_row_bytes(c.type, begin), bytes = dtype_row_bytes(c.type, end) - from;
        size_t i = 0;
        for (; i + 4 <= count; i += 4) {
            for (size_t ahead = i + kRowsAhead; ahead < std::min(i + kRowsAhead + 4, count); ++ahead) {
                prefetch_row(rows[ahead] + from, bytes);
            }
            k.axpy4(c.type, rows + i, hidden + i, y, begin, end);
        }
        for (; i < count; ++i) k.axpy(c.type, rows[i], hidden[i], y, begin, end);
    });
}

// rows_ and ids_ hold `count` whole bundles: add their share to y. Returns how many were active.
size_t Decoder::compute_bundles(FfnLayer & layer, size_t count, const Activation & x, float * y) {
    hidden_rows(layer, rows_.data(), ids_.data(), count, x, hidden_.data());
    size_t kept = 0;
    for (size_t i = 0; i < count; ++i) {
        if (hidden_[i] == 0.0f) continue;
        down_rows_[kept] = rows_[i] + layer.down_offset();
        down_hidden_[kept++] = hidden_[i];
    }
    add_down(layer, down_rows_.data(), down_hidden_.data(), kept, y);
    layer.stats.predicted += count;
    layer.stats.active += kept;
    return kept;
}

void Decoder::ffn_window_token(FfnLayer & layer, int32_t layer_index, const float * x, float * y) {
    const FfnConfig & c = layer.config;
    const int32_t * active = nullptr;
    size_t count = 0;
    if (c.use_predictor) {
        count = predict(layer, x);
        active = active_.data();
        if (!script_offsets_.empty()) {
            const size_t layers = ffns_.size(), tokens = (script_offsets_.size() - 1) / layers;
            const size_t at = script_token_ % tokens * layers + static_cast<size_t>(layer_index);
            active = script_ids_.data() + script_offsets_[at];
            count = static_cast<size_t>(script_offsets_[at + 1] - script_offsets_[at]);
            if (static_cast<size_t>(layer_index) + 1 == layers) ++script_token_;
        }
    }
    Activation a;
    a.x = x;
    if (dtype_quantized(c.type)) a = quantize(x, c.width, 0);

    if (c.residency == Residency::Resident) {
        if (!c.use_predictor) count = static_cast<size_t>(c.neurons);
        for (size_t i = 0; i < count; ++i) {
            ids_[i] = active != nullptr ? active[i] : static_cast<int32_t>(i);
            rows_[i] = layer.slot(ids_[i]);
        }
        layer.stats.hits += count;
        compute_bundles(layer, count, a, y);
        return;
    }

    uint64_t begin = now_ns();
    NeuronWindow & window = *layer.window;
    if (!config_.reuse) window.clear();
    window.update(active, count);
    move_slots(layer);
    const auto & misses = window.misses();
    const auto & overflow = window.overflow();
    layer.stats.hits += window.hits().size();
    layer.stats.misses += misses.size();
    layer.stats.overflow += overflow.size();
    read_misses(layer);
    stats_.upkeep_ns += now_ns() - begin;
    const auto wait_for = [&](uint64_t end) {
        begin = now_ns();
        queue_->wait(end);
        wait_ns_ += now_ns() - begin;
    };
    if (!config_.overlap && !misses.empty()) wait_for(ends_[misses.size() - 1]);

    const auto & hits = window.hits();
    for (size_t i = 0; i < hits.size(); i += kHitGroup) {
        const size_t group = std::min(kHitGroup, hits.size() - i);
        for (size_t j = 0; j < group; ++j) {
            ids_[j] = hits[i + j].neuron;
            rows_[j] = layer.slot(hits[i + j].slot);
        }
        compute_bundles(layer, group, a, y);
        queue_->poll();  // starts reads that did not fit the queue's depth
    }

    for (size_t i = 0; i < misses.size(); i += kMissGroup) {
        const size_t group = std::min(kMissGroup, misses.size() - i);
        wait_for(ends_[i + group - 1]);
        for (size_t j = 0; j < group; ++j) {
            ids_[j] = misses[i + j].neuron;
            rows_[j] = layer.slot(misses[i + j].slot);
        }
        compute_bundles(layer, group, a, y);
        queue_->poll();
    }
    for (size_t i = 0; i < overflow.size(); i += overflow_slots_) {
        const size_t group = std::min(overflow_slots_, overflow.size() - i);
        read_overflow(layer, overflow.data() + i, group);
        for (size_t j = 0; j < group; ++j) {
            ids_[j] = overflow[i + j];
            rows_[j] = overflow_.data() + j * layer.slot_bytes;
        }
        compute_bundles(layer, group, a, y);
    }
}

// The up (and gate) rows are in memory, so the active set is known, not predicted. The down rows
// are added in ascending order of the neurons, wherever they lie, as dense evaluation does: the
// result is the same bit for bit.
void Decoder::ffn_exact_token(FfnLayer & layer, const float * x, float * y) {
    const FfnConfig & c = layer.config;
    Activation a;
    a.x = x;
    if (dtype_quantized(c.type)) a = quantize(x, c.width, 0);
    const auto neurons = static_cast<size_t>(c.neurons);
    for (size_t i = 0; i < neurons; ++i) {
        ids_[i] = static_cast<int32_t>(i);
        rows_[i] = layer.up_rows.data() + i * layer.down_offset();
    }
    hidden_rows(layer, rows_.data(), ids_.data(), neurons, a, hidden_.data());
    active_.clear();
    for (size_t i = 0; i < neurons; ++i) {
        if (hidden_[i] != 0.0f) active_.push_back(static_cast<int32_t>(i));
    }

    uint64_t begin = now_ns();
    NeuronWindow & window = *layer.window;
    if (!config_.reuse) window.clear();
    window.update(active_.data(), active_.size());
    move_slots(layer);
    const auto & misses = window.misses();
    layer.stats.hits += window.hits().size();
    layer.stats.misses += misses.size();
    layer.stats.overflow += window.overflow().size();
    layer.stats.predicted += neurons;
    layer.stats.active += active_.size();
    read_misses(layer);
    stats_.upkeep_ns += now_ns() - begin;
    const auto wait_for = [&](uint64_t end) {
        begin = now_ns();
        queue_->wait(end);
        wait_ns_ += now_ns() - begin;
    };
    if (!config_.overlap && !misses.empty()) wait_for(ends_[misses.size() - 1]);

    const size_t down = layer.down_offset() - layer.slot_skip;
    size_t held = 0, next_miss = 0, spilled = 0;
    const auto flush = [&] {
        if (next_miss != 0) wait_for(ends_[next_miss - 1]);
        add_down(layer, down_rows_.data(), down_hidden_.data(), held, y);
        queue_->poll();
        held = spilled = 0;
    };
    // Every read of the misses must be under way before overflow reuses the request table.
    for (size_t i = 0; i < active_.size(); ++i) {
        const int32_t neuron = active_[i];
        const int32_t slot = window.slot_of(neuron);
        const uint8_t * at;
        if (slot >= 0) {
            at = layer.slot(slot);
            if (next_miss < misses.size() && misses[next_miss].neuron == neuron) ++next_miss;
        } else {
            if (spilled == overflow_slots_) flush();
            if (spilled == 0) {  // read the next few overflow neurons together
                if (!misses.empty()) wait_for(ends_[misses.size() - 1]);
                const auto & overflow = window.overflow();
                const auto from = std::lower_bound(overflow.begin(), overflow.end(), neuron);
                const auto left = static_cast<size_t>(overflow.end() - from);
                read_overflow(layer, &*from, std::min(left, overflow_slots_));
            }
            at = overflow_.data() + spilled++ * layer.slot_bytes;
        }
        down_rows_[held] = at + down;
        down_hidden_[held++] = hidden_[static_cast<size_t>(neuron)];
        if (spilled == 0 && next_miss != 0 && next_miss % kMissGroup == 0 && slot >= 0 && misses[next_miss - 1].neuron == neuron) flush();
    }
    flush();
}

// The first `capacity` bundles are in memory, the rest streams by for every token.
void Decoder::ffn_stream_token(FfnLayer & layer, const float * x, float * y) {
    const FfnConfig & c = layer.config;
    Activation a;
    a.x = x;
    if (dtype_quantized(c.type)) a = quantize(x, c.width, 0);
    const auto pinned = static_cast<size_t>(c.capacity);
    for (size_t i = 0; i < pinned; ++i) {
        ids_[i] = static_cast<int32_t>(i);
        rows_[i] = layer.slot(ids_[i]);
    }
    compute_bundles(layer, pinned, a, y);
    layer.stats.hits += pinned;
    if (pinned == static_cast<size_t>(c.neurons)) return;
    for (;;) {
        const Stager::Chunk chunk = stager_.next(&wait_ns_);
        for (size_t i = 0; i < chunk.count; ++i) {
            ids_[i] = static_cast<int32_t>(pinned + chunk.first + i);
            rows_[i] = chunk.data + i * c.stride;
        }
        compute_bundles(layer, chunk.count, a, y);
        layer.stats.misses += chunk.count;
        if (chunk.last) break;
    }
}

}  // namespace penstock
