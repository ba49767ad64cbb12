// Stand-ins for ggml's tensors, a model file that is mapped as llama.cpp maps one, and graphs over it.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "../core/aligned_buffer.h"
#include "../core/error.h"
#include "../core/weight_streamer.h"
#include "checks.h"

using namespace penstock;

namespace {

std::mt19937_64 rng(20240607);
int below(int n) { return static_cast<int>(rng() % static_cast<uint64_t>(n)); }

// ---------------------------------------------------------------- ggml, as the streamer sees it

struct Node {
    uint64_t before[5] = {};
    const Node * sources[4] = {};
    std::string name;
    uint8_t * data = nullptr;
    size_t bytes = 0;
    std::vector<int32_t> ids;  // of a router: rows of `columns`
    int64_t columns = 1;
};

const Node & node(const void * t) { return *static_cast<const Node *>(t); }

GgmlAccess access_to_nodes() {
    GgmlAccess a;
    a.get_name = [](const void * t) { return node(t).name.c_str(); };
    a.get_data = [](const void * t) -> void * { return node(t).data; };
    a.nbytes = [](const void * t) { return node(t).bytes; };
    a.nelements = [](const void * t) { return static_cast<int64_t>(node(t).ids.size()); };
    a.nrows = [](const void * t) { return static_cast<int64_t>(node(t).ids.size()) / node(t).columns; };
    a.get_i32_nd = [](const void * t, int i, int row, int, int) { return node(t).ids[static_cast<size_t>(row * node(t).columns + i)]; };
    a.sources_offset = offsetof(Node, sources);
    a.sources = 4;
    return a;
}

// ---------------------------------------------------------------- a model file

struct Tensor {
    std::string name;
    int file;
    uint64_t offset;
    size_t bytes;
    int layer = -1;  // of experts
    int experts = 0;
    uint64_t streamed_from = 0;
    size_t streamed = 0;  // bytes
};

struct Options {
    int layers = 4, experts = 8, used = 3, files = 1;
    size_t expert_bytes = 3 * kPage + 544;  // as in a file: no multiple of a page
    double share = 0.7;                     // of matrices that is streamed
    double window = 0.4;                    // of all experts
    double ring = 3.0;                      // of the largest unit
    std::string policy = "lfu", backend = "threads";
    bool direct = true;
};

class Model {
public:
    explicit Model(const Options & o) : o_(o), contents_(static_cast<size_t>(o.files)) {
        lay_out();
        for (int f = 0; f < o.files; ++f) make_file(f);
        for (const Tensor & t : tensors_) {
            auto n = std::make_unique<Node>();
            n->name = t.name;
            n->data = maps_[static_cast<size_t>(t.file)] + t.offset;
            n->bytes = t.bytes;
            weights_.push_back(std::move(n));
        }
    }

    ~Model() {
        streamer_.reset();
        for (size_t f = 0; f < maps_.size(); ++f) {
            munmap(maps_[f], round_up(contents_[f].size(), kPage));
            unlink(paths_[f].c_str());
        }
    }

    void start(const std::function<void()> & before_reading = {}) {
        streamer_ = std::make_unique<WeightStreamer>(paths_, o_.direct, o_.backend, 4);
        std::vector<std::vector<std::pair<uint64_t, uint64_t>>> taken(maps_.size());
        for (size_t f = 0; f < maps_.size(); ++f) streamer_->mapped(static_cast<int>(f), 0, maps_[f], round_up(contents_[f].size(), kPage));
        size_t largest = 0, all_experts = 0;
        for (Tensor & t : tensors_) {
            streamer_->expect(t.name, t.file, t.offset);
            auto & own = taken[static_cast<size_t>(t.file)];
            if (t.experts != 0) {
                const size_t stride = t.bytes / static_cast<size_t>(t.experts);
                streamer_->experts(t.layer, t.file, t.offset, stride, t.experts);
                all_experts += t.bytes;
                for (int e = 0; e < t.experts; ++e) {
                    const uint64_t begin = t.offset + static_cast<uint64_t>(e) * stride;
                    const uint64_t from = round_up(begin, kPage), to = round_down(begin + stride, kPage);
                    if (to > from) own.emplace_back(from, to);
                }
                continue;
            }
            const uint64_t end = t.offset + t.bytes, to = round_down(end, kPage);
            const uint64_t from = round_up(end - static_cast<uint64_t>(static_cast<double>(t.bytes) * o_.share), kPage);
            if (to <= from) continue;
            t.streamed_from = from;
            t.streamed = static_cast<size_t>(to - from);
            streamer_->stream(t.file, from, t.streamed);
            own.emplace_back(from, to);
            largest = std::max(largest, t.streamed);
        }
        for (size_t f = 0; f < maps_.size(); ++f) {
            std::sort(taken[f].begin(), taken[f].end());
            uint64_t at = 0;
            taken[f].emplace_back(round_up(contents_[f].size(), kPage), 0);
            for (const auto & [from, to] : taken[f]) {
                if (from > at) streamer_->pin(static_cast<int>(f), at, static_cast<size_t>(from - at));
                at = to;
            }
        }
        const size_t layer_bytes = 3 * o_.expert_bytes * static_cast<size_t>(o_.experts);
        window_bytes_ = std::max(layer_bytes, static_cast<size_t>(static_cast<double>(all_experts) * o_.window));
        streamer_->access(access_to_nodes());
        std::vector<int> layer_of;
        for (int b = 0; b < o_.layers; ++b) layer_of.push_back(b - 1);  // block 0 has no experts
        if (before_reading) before_reading();
        streamer_->start(static_cast<size_t>(o_.ring * static_cast<double>(largest)), window_bytes_, o_.policy, layer_of);
    }

    WeightStreamer & streamer() { return *streamer_; }
    const std::vector<std::string> & paths() const { return paths_; }
    size_t window_bytes() const { return window_bytes_; }
    std::vector<Tensor> & tensors() { return tensors_; }
    Node & weight(size_t i) { return *weights_[i]; }
    uint8_t * map(int file) { return maps_[static_cast<size_t>(file)]; }

    // Bytes of experts' own pages that are in memory.
    size_t resident() {
        size_t pages = 0;
        std::vector<unsigned char> in;
        for (const Tensor & t : tensors_) {
            if (t.experts == 0) continue;
            const size_t stride = t.bytes / static_cast<size_t>(t.experts);
            for (int e = 0; e < t.experts; ++e) {
                const uint64_t begin = t.offset + static_cast<uint64_t>(e) * stride;
                const uint64_t from = round_up(begin, kPage), to = round_down(begin + stride, kPage);
                if (to <= from) continue;
                in.assign(static_cast<size_t>(to - from) / kPage, 0);
                mincore(map(t.file) + from, static_cast<size_t>(to - from), in.data());
                for (unsigned char page : in) pages += page & 1;
            }
        }
        return pages * kPage;
    }

    void cut(int file, uint64_t size) {
        if (truncate(paths_[static_cast<size_t>(file)].c_str(), static_cast<off_t>(size)) != 0) std::abort();
    }
    void restore(int file) { write_file(file); }

    // What the file holds at a tensor's place, compared with what a node would read there.
    bool same(const Tensor & t, size_t from, size_t bytes) {
        return std::memcmp(map(t.file) + t.offset + from, contents_[static_cast<size_t>(t.file)].data() + t.offset + from, bytes) == 0;
    }

private:
    void lay_out() {
        std::vector<uint64_t> at(contents_.size(), 1024 + 32);
        const auto add = [&](std::string name, size_t bytes, int layer, int experts) {
            const int file = tensors_.empty() ? 0 : below(o_.files);
            uint64_t & offset = at[static_cast<size_t>(file)];
            offset = round_up(offset, 32);
            tensors_.push_back({std::move(name), file, offset, bytes, layer, experts});
            offset += bytes;
        };
        for (int b = 0; b < o_.layers; ++b) {
            const std::string blk = "blk." + std::to_string(b);
            add(blk + ".attn_q.weight", 5 * kPage + 32 * static_cast<size_t>(below(400)), -1, 0);
            add(blk + ".attn_norm.weight", 256, -1, 0);
            add(blk + ".ffn.weight", 2 * kPage + 32 * static_cast<size_t>(below(900)), -1, 0);
            if (b == 0) continue;
            for (const char * m : {"up", "gate", "down"}) {
                add(blk + ".ffn_" + m + "_exps.weight", o_.expert_bytes * static_cast<size_t>(o_.experts), b - 1, o_.experts);
            }
        }
        add("output.weight", 9 * kPage + 96, -1, 0);
        for (size_t f = 0; f < contents_.size(); ++f) {
            contents_[f].resize(static_cast<size_t>(at[f]) + 100);
            for (uint8_t & byte : contents_[f]) byte = static_cast<uint8_t>(rng());
        }
    }

    void make_file(int f) {
        const char * tmp = std::getenv("TMPDIR");
        std::string path = std::string(tmp != nullptr ? tmp : "/tmp") + "/penstock-streamer-XXXXXX";
        const int made = mkstemp(path.data());
        if (made < 0) std::abort();
        close(made);
        paths_.push_back(path);
        write_file(f);
        const int fd = open(path.c_str(), O_RDONLY);
        void * at = mmap(nullptr, round_up(contents_[static_cast<size_t>(f)].size(), kPage), PROT_READ, MAP_SHARED, fd, 0);
        if (at == MAP_FAILED) std::abort();
        close(fd);
        maps_.push_back(static_cast<uint8_t *>(at));
    }

    void write_file(int f) {
        const auto & bytes = contents_[static_cast<size_t>(f)];
        const int fd = open(paths_[static_cast<size_t>(f)].c_str(), O_WRONLY);
        if (fd < 0 || pwrite(fd, bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) std::abort();
        fsync(fd);
        close(fd);
    }

    Options o_;
    std::vector<Tensor> tensors_;
    std::vector<std::unique_ptr<Node>> weights_;
    std::vector<std::vector<uint8_t>> contents_;
    std::vector<std::string> paths_;
    std::vector<uint8_t *> maps_;
    std::unique_ptr<WeightStreamer> streamer_;
    size_t window_bytes_ = 0;
};

// ---------------------------------------------------------------- llama.cpp, as the streamer sees it

struct Step {
    std::unique_ptr<Node> node;
    std::vector<size_t> uses;            // tensors
    const std::vector<int32_t> * chosen;  // of their experts; null: the whole tensor
};

struct Graph {
    std::vector<Step> steps;
    std::vector<std::unique_ptr<std::vector<int32_t>>> routes;

    void use(Model & m, std::vector<size_t> tensors, const std::vector<int32_t> * chosen = nullptr) {
        auto n = std::make_unique<Node>();
        n->name = "node-" + std::to_string(steps.size());
        for (size_t i = 0; i < tensors.size(); ++i) n->sources[i + (tensors.size() == 1 ? 1 : 0)] = &m.weight(tensors[i]);
        steps.push_back({std::move(n), std::move(tensors), chosen});
    }
    const std::vector<int32_t> * route(int block, std::vector<int32_t> ids, int64_t columns) {
        routes.push_back(std::make_unique<std::vector<int32_t>>(ids));
        auto n = std::make_unique<Node>();
        n->name = "ffn_moe_topk-" + std::to_string(block);
        n->ids = std::move(ids);
        n->columns = columns;
        steps.push_back({std::move(n), {}, nullptr});
        return routes.back().get();
    }
};

std::vector<int32_t> choose(const Options & o, int rows) {
    std::vector<int32_t> all(static_cast<size_t>(o.experts)), out;
    for (int e = 0; e < o.experts; ++e) all[static_cast<size_t>(e)] = e;
    for (int row = 0; row < rows; ++row) {
        std::shuffle(all.begin(), all.end(), rng);
        out.insert(out.end(), all.begin(), all.begin() + o.used);
    }
    return out;
}

// One pass over a model, of one token or a batch; `shuffled`: dense tensors in an order of their own, some left out.
Graph make_graph(Model & m, const Options & o, int rows, bool shuffled) {
    Graph g;
    std::vector<size_t> dense;
    std::vector<std::vector<size_t>> experts(static_cast<size_t>(o.layers));
    for (size_t i = 0; i < m.tensors().size(); ++i) {
        const Tensor & t = m.tensors()[i];
        if (t.experts == 0) dense.push_back(i);
        else experts[static_cast<size_t>(t.layer + 1)].push_back(i);
    }
    if (shuffled) std::shuffle(dense.begin(), dense.end(), rng);
    size_t at = 0;
    for (int b = 0; b < o.layers; ++b) {
        for (; at < dense.size() * static_cast<size_t>(b + 1) / static_cast<size_t>(o.layers); ++at) {
            if (!shuffled || below(4) != 0) g.use(m, {dense[at]});
            if (shuffled && below(4) == 0) g.use(m, {dense[static_cast<size_t>(below(static_cast<int>(dense.size())))]});
        }
        if (b == 0 || (shuffled && below(5) == 0)) continue;
        const auto * chosen = g.route(b, choose(o, rows), o.used);
        for (size_t tensor : experts[static_cast<size_t>(b)]) g.use(m, {tensor}, chosen);
    }
    return g;
}

// As llama.cpp does: ask node after node, run those asked so far when one wants to stop, tell it, go on.
bool run(Model & m, const Options & o, Graph & g) {
    WeightStreamer & s = m.streamer();
    std::vector<size_t> pending;
    for (size_t i = 0; i < g.steps.size(); ++i) {
        const bool stop = WeightStreamer::on_node(g.steps[i].node.get(), true, &s);
        pending.push_back(i);
        if (!stop && i + 1 < g.steps.size()) continue;
        for (size_t k : pending) {
            const Step & step = g.steps[k];
            for (size_t use : step.uses) {
                const Tensor & t = m.tensors()[use];
                const size_t stride = t.experts != 0 ? t.bytes / static_cast<size_t>(t.experts) : 0;
                bool good = true;
                if (step.chosen == nullptr) good = m.same(t, 0, t.bytes);
                else for (int32_t e : *step.chosen) good = good && m.same(t, static_cast<size_t>(e) * stride, stride);
                if (!good) {
                    // After a failure the pass runs out on whatever is there, and its result is thrown away.
                    const std::string reason = s.take_failure();
                    CHECK(!reason.empty(), "%s ran on other bytes than the file's (%s, %s)", t.name.c_str(), o.policy.c_str(), o.backend.c_str());
                    return false;
                }
            }
        }
        pending.clear();
        if (stop && !WeightStreamer::on_node(g.steps[i].node.get(), false, &s)) break;
        if (s.window() != nullptr) {
            CHECK(s.window()->held_bytes() <= m.window_bytes(), "the window holds %zu of %zu", s.window()->held_bytes(), m.window_bytes());
        }
    }
    const std::string reason = s.take_failure();
    if (s.window() != nullptr) CHECK(m.resident() <= m.window_bytes(), "%zu bytes of experts in memory, window %zu", m.resident(), m.window_bytes());
    return reason.empty();
}

}  // namespace
