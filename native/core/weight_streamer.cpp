#include "weight_streamer.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "address_space.h"
#include "aligned_buffer.h"
#include "error.h"

namespace penstock {
namespace {

constexpr size_t kOutstanding = size_t{1} << 11;  // more wait until some are done
constexpr char kRouter[] = "ffn_moe_topk-";

int64_t changed_at(const struct stat & s) {  // ns
#if defined(__APPLE__)
    const timespec & t = s.st_mtimespec;
#else
    const timespec & t = s.st_mtim;
#endif
    return static_cast<int64_t>(t.tv_sec) * 1000000000 + t.tv_nsec;
}

}  // namespace

WeightStreamer::WeightStreamer(const std::vector<std::string> & paths, bool direct, const std::string & backend, int depth) {
    for (const std::string & path : paths) {
        Part part;
        part.file = std::make_unique<DirectFile>(path, direct);
        part.queue = make_read_queue(*part.file, backend, depth, kOutstanding);
        struct stat s {};
        if (fstat(part.file->fd(), &s) != 0) throw StorageError(path + ": cannot be examined");
        part.size_then = s.st_size;
        part.time_then = changed_at(s);
        parts_.push_back(std::move(part));
    }
}

WeightStreamer::~WeightStreamer() {
    for (Part & part : parts_) part.queue->drain();
}

void WeightStreamer::mapped(int file, uint64_t offset, uint8_t * at, size_t bytes) {
    if (started_ || file < 0 || static_cast<size_t>(file) >= parts_.size()) throw ArgumentError("mapped: no such file");
    Part & part = parts_[static_cast<size_t>(file)];
    if (at == nullptr || reinterpret_cast<uintptr_t>(at) % kPage != 0 || offset % kPage != 0 || offset > part.file->size() ||
        bytes > round_up(part.file->size(), kPage) - offset) {
        throw ArgumentError("mapped: a mapping is whole pages inside its file");
    }
    part.offset = offset;
    part.at = at;
    part.bytes = bytes;
}

// The address of file bytes, checked to lie inside what is mapped.
uint8_t * WeightStreamer::address(int file, uint64_t offset, size_t bytes, bool pages) const {
    if (file < 0 || static_cast<size_t>(file) >= parts_.size()) throw ArgumentError("no such file");
    const Part & part = parts_[static_cast<size_t>(file)];
    if (offset < part.offset || offset - part.offset > part.bytes || bytes > part.bytes - (offset - part.offset) ||
        (pages && (offset % kPage != 0 || bytes % kPage != 0 || bytes == 0))) {
        throw ArgumentError("a range at offset " + std::to_string(offset) + " of " + std::to_string(bytes) + " bytes is not inside the mapping");
    }
    return part.at + (offset - part.offset);
}

void WeightStreamer::pin(int file, uint64_t offset, size_t bytes) {
    address(file, offset, bytes, true);
    pinned_.push_back({file, offset, bytes});
}

void WeightStreamer::stream(int file, uint64_t offset, size_t bytes) {
    address(file, offset, bytes, true);
    streamed_.push_back({file, offset, bytes});
}

void WeightStreamer::experts(int layer, int file, uint64_t offset, size_t stride, int count) {
    if (stride == 0 || count < 1 || stride > (size_t{1} << 40) / static_cast<size_t>(count)) throw ArgumentError("experts: stride or count out of range");
    uint8_t * at = address(file, offset, stride * static_cast<size_t>(count), false);
    expert_tensors_.push_back({layer, at, offset, stride, file});
    expert_counts_.push_back(count);
}

void WeightStreamer::expect(const std::string & name, int file, uint64_t offset) {
    expected_[name] = reinterpret_cast<uintptr_t>(address(file, offset, 0, false));
}

void WeightStreamer::start(size_t ring_bytes, size_t window_bytes, const std::string & policy, const std::vector<int> & expert_layers,
                           RingMemory ring_memory) {
    if (started_) throw ArgumentError("the streamer has started already");
    std::vector<Range> all = pinned_;
    all.insert(all.end(), streamed_.begin(), streamed_.end());
    std::sort(all.begin(), all.end(), [](const Range & a, const Range & b) { return a.file != b.file ? a.file < b.file : a.offset < b.offset; });
    for (size_t i = 1; i < all.size(); ++i) {
        if (all[i].file == all[i - 1].file && all[i].offset < all[i - 1].offset + all[i - 1].bytes) throw ArgumentError("two ranges overlap");
    }
    started_ = true;
    std::vector<ReadQueue *> queues;
    for (Part & part : parts_) queues.push_back(part.queue.get());

    // What stays mapped is read by rows, here and there.
    for (const Part & part : parts_) address_space::expect_random(part.at, part.bytes);

    // Experts first: their tensors are one private range, of which pinned() pages are filled below.
    int count = 0, layers = 0;
    for (size_t i = 0; i < expert_tensors_.size(); ++i) {
        const ExpertWindow::Tensor & t = expert_tensors_[i];
        if (count != 0 && count != expert_counts_[i]) throw ArgumentError("layers have different numbers of experts");
        count = expert_counts_[i];
        layers = std::max(layers, t.layer + 1);
        const uint64_t from = round_up(t.offset, kPage), to = round_down(t.offset + t.stride * static_cast<size_t>(count), kPage);
        if (to > from) address_space::map_anonymous(t.at + (from - t.offset), static_cast<size_t>(to - from), false);
    }
    for (const Range & r : pinned_) {
        uint8_t * at = address(r.file, r.offset, r.bytes, true);
        const auto inside = [&](const ExpertWindow::Tensor & t) { return at >= t.at && at + r.bytes <= t.at + t.stride * static_cast<size_t>(count); };
        if (std::none_of(expert_tensors_.begin(), expert_tensors_.end(), inside)) address_space::map_anonymous(at, r.bytes, true);
        stats_.pinned_bytes += r.bytes;
    }
    load(pinned_);

    std::vector<TensorRing::Unit> units;
    for (const Range & r : streamed_) {
        uint8_t * at = address(r.file, r.offset, r.bytes, true);
        const auto begin = reinterpret_cast<uintptr_t>(at);
        spans_.push_back({begin, begin + r.bytes, static_cast<int>(units.size()), -1});
        units.push_back({at, r.offset, r.bytes, r.file});
    }
    if (!units.empty()) ring_ = std::make_unique<TensorRing>(std::move(units), ring_bytes, queues, ring_memory);
    if (!expert_tensors_.empty()) {
        expert_layer_of_block_ = expert_layers;
        for (size_t i = 0; i < expert_tensors_.size(); ++i) {
            const auto begin = reinterpret_cast<uintptr_t>(expert_tensors_[i].at);
            spans_.push_back({begin, begin + expert_tensors_[i].stride * static_cast<size_t>(count), -1, static_cast<int>(i)});
        }
        window_ = std::make_unique<ExpertWindow>(layers, count, expert_tensors_, window_bytes, policy, queues);
    }
    std::sort(spans_.begin(), spans_.end(), [](const Span & a, const Span & b) { return a.begin < b.begin; });
    if (!spans_.empty()) {
        low_ = spans_.front().begin;
        for (const Span & s : spans_) high_ = std::max(high_, s.end);
    }
    for (Part & part : parts_) {
        const ReadTotals t = part.queue->totals();
        loaded_.bytes += t.bytes;
        loaded_.reads += t.reads;
        loaded_.busy_ns += t.busy_ns;
    }
}

// Straight into place, many at a time; the last block of a file may be a part of a page.
void WeightStreamer::load(const std::vector<Range> & ranges) {
    std::vector<iovec> iov;
    std::vector<std::pair<int, Read>> reads;
    for (const Range & r : ranges) {
        const Part & part = parts_[static_cast<size_t>(r.file)];
        uint8_t * at = address(r.file, r.offset, r.bytes, true);
        const uint64_t whole = round_down(std::min<uint64_t>(part.file->size(), r.offset + r.bytes), kPage);
        for (uint64_t from = r.offset; from < whole; from += kReadBytes) {
            const size_t bytes = static_cast<size_t>(std::min<uint64_t>(kReadBytes, whole - from));
            iov.push_back({at + (from - r.offset), bytes});
            reads.push_back({r.file, {from, nullptr, 1, static_cast<uint32_t>(bytes)}});
        }
        if (part.file->size() < r.offset + r.bytes && part.file->size() > std::max<uint64_t>(whole, r.offset)) {
            const uint64_t from = std::max<uint64_t>(whole, r.offset);
            part.file->read(from, at + (from - r.offset), static_cast<size_t>(part.file->size() - from));
        }
    }
    for (size_t i = 0; i < reads.size(); ++i) reads[i].second.iov = &iov[i];
    struct Drain {  // a read that fails leaves others under way, which point into iov
        std::vector<Part> & parts;
        ~Drain() {
            for (Part & part : parts) part.queue->drain();
        }
    } drain{parts_};
    for (size_t i = 0; i < reads.size();) {
        const size_t begin = i;
        std::vector<uint64_t> end(parts_.size(), 0);
        for (; i < reads.size() && i - begin < kOutstanding / 4; ++i) {
            const auto file = static_cast<size_t>(reads[i].first);
            end[file] = parts_[file].queue->submit(&reads[i].second, 1) + 1;
        }
        for (size_t file = 0; file < parts_.size(); ++file) {
            if (end[file] != 0) parts_[file].queue->wait(end[file]);
        }
    }
}

void WeightStreamer::access(const GgmlAccess & access) {
    if (!access.get_name || !access.get_data || !access.nbytes || !access.nelements || !access.nrows || !access.get_i32_nd || access.sources < 1) {
        throw ArgumentError("access: every accessor is needed");
    }
    ggml_ = access;
}

bool WeightStreamer::on_node(void * tensor, bool ask, void * self) noexcept {
    auto & s = *static_cast<WeightStreamer *>(self);
    if (s.failed_) return false;  // let the graph run out; its result is thrown away
    try {
        if (ask) return s.ask(tensor);
        s.ran(tensor);
        return true;
    } catch (const std::exception & e) {
        s.failed_ = true;
        s.failure_ = e.what();
        return false;
    }
}

bool WeightStreamer::aborting(void * self) noexcept {
    const auto & s = *static_cast<const WeightStreamer *>(self);
    return s.failed_ || s.cancelled_.load(std::memory_order_relaxed);
}

bool WeightStreamer::ask(void * tensor) {
    bool stop = false;
    const auto * sources = reinterpret_cast<void * const *>(static_cast<const uint8_t *>(tensor) + ggml_.sources_offset);
    for (int i = 0; i < ggml_.sources; ++i) {
        if (sources[i] != nullptr && use(sources[i])) stop = true;
    }
    if (window_ && std::strncmp(ggml_.get_name(tensor), kRouter, sizeof kRouter - 1) == 0) stop = true;
    stats_.stops += stop;
    return stop;
}

bool WeightStreamer::use(const void * source) {
    const auto begin = reinterpret_cast<uintptr_t>(ggml_.get_data(source));
    if (!expected_.empty()) check_place(source);
    if (begin >= high_) return false;
    const uintptr_t end = begin + ggml_.nbytes(source);  // of a tensor, only the end may be streamed
    if (end <= low_) return false;
    auto at = std::upper_bound(spans_.begin(), spans_.end(), begin, [](uintptr_t x, const Span & s) { return x < s.end; });
    bool stop = false;
    for (; at != spans_.end() && at->begin < end; ++at) {
        const uint64_t before = now_ns();
        if (at->unit >= 0) ring_->need(at->unit);
        else window_->need(at->tensor);
        stats_.wait_ns += now_ns() - before;
        stop = true;
    }
    return stop;
}

// Once per tensor: the weights must be where the plan believes them.
void WeightStreamer::check_place(const void * source) {
    const auto found = expected_.find(ggml_.get_name(source));
    if (found == expected_.end()) return;
    if (found->second != reinterpret_cast<uintptr_t>(ggml_.get_data(source))) {
        throw StorageError("llama.cpp keeps tensor '" + found->first + "' in memory of its own; this model cannot be streamed by this version");
    }
    expected_.erase(found);
}

void WeightStreamer::ran(void * tensor) {
    if (ring_) ring_->consumed();
    if (!window_) return;
    const char * name = ggml_.get_name(tensor);
    if (std::strncmp(name, kRouter, sizeof kRouter - 1) != 0) return;
    const long block = std::strtol(name + sizeof kRouter - 1, nullptr, 10);
    if (block < 0 || static_cast<size_t>(block) >= expert_layer_of_block_.size() || expert_layer_of_block_[static_cast<size_t>(block)] < 0) {
        throw StorageError(std::string("the router '") + name + "' belongs to no layer of the file");
    }
    const int64_t elements = ggml_.nelements(tensor), rows = ggml_.nrows(tensor);
    // No rows: a batch of which no output is wanted; its last layer runs on nothing.
    if (rows < 0 || elements < 0 || (rows != 0 && elements % rows != 0)) throw StorageError(std::string("the router '") + name + "' has an unknown shape");
    chosen_.clear();
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t i = 0; i < elements / rows; ++i) {
            chosen_.push_back(ggml_.get_i32_nd(tensor, static_cast<int>(i), static_cast<int>(row), 0, 0));
        }
    }
    window_->route(expert_layer_of_block_[static_cast<size_t>(block)], chosen_.data(), chosen_.size(), rows > 1);
}

std::string WeightStreamer::take_failure() {
    if (!failed_) return {};
    failed_ = false;
    if (ring_) ring_->reset();
    if (window_) window_->reset();
    return std::move(failure_);
}

bool WeightStreamer::unchanged(int file) const {
    const Part & part = parts_.at(static_cast<size_t>(file));
    struct stat s {};
    if (fstat(part.file->fd(), &s) != 0) return false;
    return s.st_size == part.size_then && changed_at(s) == part.time_then;
}

StreamerStats WeightStreamer::stats() const {
    StreamerStats out = stats_;
    for (const Part & part : parts_) {
        const ReadTotals t = part.queue->totals();
        out.bytes += t.bytes;
        out.reads += t.reads;
        out.busy_ns += t.busy_ns;
    }
    out.bytes -= loaded_.bytes;
    out.reads -= loaded_.reads;
    out.busy_ns -= std::min(out.busy_ns, loaded_.busy_ns);
    return out;
}

}  // namespace penstock
