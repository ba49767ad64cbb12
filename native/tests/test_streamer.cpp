// The weight streamer over a file that is mapped, as llama.cpp maps one, with stand-ins for ggml's tensors:
// whenever a node runs, its weights are those of the file, in whatever order nodes come, whatever failed before.
// A plain executable: prints what failed, and its exit status is 1 if anything did. An argument is another seed.
#include "fake_llama.h"

namespace {

void test_contents(const Options & o) {
    Model m(o);
    m.start();
    for (int pass = 0; pass < 6; ++pass) {  // the order of use is learned from the first
        Graph g = make_graph(m, o, pass == 0 ? 5 : 1, false);
        CHECK(run(m, o, g), "pass %d failed", pass);
    }
    const StreamerStats before = m.streamer().stats();
    // The first unit of the second pass tells that the order is known.
    CHECK(m.streamer().ring()->on_demand() <= 1, "%llu units of a regular graph on demand, ring %.1f", static_cast<unsigned long long>(m.streamer().ring()->on_demand()), o.ring);
    for (int pass = 0; pass < 25; ++pass) {
        Graph g = make_graph(m, o, below(3) == 0 ? 1 + below(9) : 1, below(2) == 0);
        CHECK(run(m, o, g), "random pass %d failed", pass);
    }
    CHECK(m.streamer().stats().bytes > before.bytes, "nothing was read");
    CHECK(m.streamer().unchanged(0), "the file was not changed");
    if (o.window < 1.0) {
        CHECK(m.streamer().window()->stats().evicted > 0, "nothing left the window");
        CHECK(m.streamer().window()->exchange().moved_bytes() > 0, "pages of what left were not used again");
    }
}

// A first pass that leaves tensors out teaches a part of the order; the rest is still right.
void test_partial_first_pass(const Options & o) {
    Model m(o);
    m.start();
    for (int pass = 0; pass < 12; ++pass) {
        Graph g = make_graph(m, o, 1, pass % 2 == 0);
        CHECK(run(m, o, g), "pass %d failed", pass);
    }
}

void test_truncated(const Options & o) {
    Model m(o);
    m.start();
    for (int round = 0; round < 8; ++round) {
        if (round > 0) {
            Graph whole = make_graph(m, o, below(2) == 0 ? 1 : 6, false);
            CHECK(run(m, o, whole), "a whole file fails in round %d", round);
        }
        const int file = below(o.files);
        struct stat s {};
        stat(m.paths()[static_cast<size_t>(file)].c_str(), &s);
        m.cut(file, static_cast<uint64_t>(s.st_size) * static_cast<uint64_t>(1 + below(6)) / 8);
        CHECK(!m.streamer().unchanged(file), "a cut file looks unchanged");
        bool failed = false;
        for (int pass = 0; pass < 12 && !failed; ++pass) {
            Graph g = make_graph(m, o, 8, round > 0 && below(2) == 0);  // the first teaches the order
            failed = !run(m, o, g);
        }
        CHECK(failed || o.window >= 1.0 || o.files > 1, "reads of a cut file succeed");
        m.restore(file);
    }
    Graph g = make_graph(m, o, 1, false);
    CHECK(run(m, o, g), "the restored file fails");
    if (m.streamer().ring() != nullptr) {  // what was learned in between is all that a pass uses
        const uint64_t before = m.streamer().ring()->on_demand();
        for (int pass = 0; pass < 4; ++pass) {
            Graph again = make_graph(m, o, 1, false);
            CHECK(run(m, o, again), "pass %d after it", pass);
        }
        CHECK(m.streamer().ring()->on_demand() <= before + 1, "%llu units on demand after a failure",
              static_cast<unsigned long long>(m.streamer().ring()->on_demand() - before));
    }
}

// The first pass fails in its middle: the next one learns the whole order.
void test_first_pass_fails() {
    Options o;
    o.share = 1.0;
    Model m(o);
    m.start();
    m.cut(0, m.tensors()[m.tensors().size() / 2].offset);
    Graph broken = make_graph(m, o, 1, false);
    CHECK(!run(m, o, broken), "reads past the end succeed");
    m.restore(0);
    for (int pass = 0; pass < 5; ++pass) {
        Graph g = make_graph(m, o, 1, false);
        CHECK(run(m, o, g), "pass %d", pass);
    }
    CHECK(m.streamer().ring()->on_demand() <= 1, "%llu units on demand", static_cast<unsigned long long>(m.streamer().ring()->on_demand()));
}

void test_graphs_that_lie() {
    Options o;
    Model m(o);
    m.start();
    const auto expect_failure = [&](Graph g, const char * wanted) {
        for (Step & step : g.steps) {
            if (WeightStreamer::on_node(step.node.get(), true, &m.streamer())) WeightStreamer::on_node(step.node.get(), false, &m.streamer());
        }
        const std::string why = m.streamer().take_failure();
        CHECK(why.find(wanted) != std::string::npos, "'%s' lacks '%s'", why.c_str(), wanted);
        Graph good = make_graph(m, o, 3, false);
        CHECK(run(m, o, good), "after '%s'", wanted);
    };
    Graph unknown, id, negative, unrouted;
    unknown.route(77, {0, 1, 2}, 3);
    expect_failure(std::move(unknown), "belongs to no layer");
    Graph none;
    none.route(0, {0, 1, 2}, 3);
    expect_failure(std::move(none), "belongs to no layer");
    id.route(1, {0, o.experts, 2}, 3);
    expect_failure(std::move(id), "does not have");
    negative.route(1, {0, -1, 2}, 3);
    expect_failure(std::move(negative), "does not have");
    size_t expert = 0;
    while (m.tensors()[expert].layer != 1) ++expert;
    unrouted.route(1, {0, 1, 2}, 3);
    unrouted.use(m, {expert});
    expect_failure(std::move(unrouted), "router has not run");
    Graph empty;  // the last layer of a batch of which no output is wanted
    empty.route(1, {}, 3);
    for (Step & step : empty.steps) {
        CHECK(WeightStreamer::on_node(step.node.get(), true, &m.streamer()) && WeightStreamer::on_node(step.node.get(), false, &m.streamer()),
              "a router without rows");
    }
    CHECK(m.streamer().take_failure().empty(), "a router without rows");

    // A tensor that llama.cpp keeps elsewhere.
    Model moved(o);
    moved.start();
    std::vector<uint8_t> elsewhere(moved.weight(0).bytes);
    moved.weight(0).data = elsewhere.data();
    Graph g;
    g.use(moved, {0});
    WeightStreamer::on_node(g.steps[0].node.get(), true, &moved.streamer());
    CHECK(moved.streamer().take_failure().find("memory of its own") != std::string::npos, "a moved tensor is not noticed");
}

void test_window_too_small() {
    Options o;
    o.window = 0.0;
    o.used = 8;
    o.experts = 8;
    Model m(o);
    m.start();  // one layer's experts just fit
    for (int pass = 0; pass < 6; ++pass) {
        Graph g = make_graph(m, o, 1 + pass, pass % 2 == 1);
        CHECK(run(m, o, g), "pass %d of a window of one layer", pass);
    }
}

// Prompts that want nearly every expert, but not every one: what is read ahead and not chosen may still be
// under way when room is made for the next layer.
void test_nearly_every_expert(const std::string & backend) {
    Options o;
    o.backend = backend;
    o.layers = 5;
    o.experts = 40;
    o.used = 4;
    o.window = 0.62;
    o.expert_bytes = 6 * kPage + 512;
    Model m(o);
    m.start();
    for (int pass = 0; pass < 20; ++pass) {
        Graph g = make_graph(m, o, pass % 4 == 3 ? 1 : 26, false);
        CHECK(run(m, o, g), "pass %d", pass);
    }
    CHECK(m.streamer().window()->stats().read_ahead > 0, "nothing was read ahead");
}

// More reads than a queue was made for wait for room.
void test_full_queue(const std::string & backend) {
    Model m(Options{});
    DirectFile file(m.paths()[0], true);
    const auto queue = make_read_queue(file, backend, 4, 16);
    std::vector<uint8_t> memory(101 * kPage);
    auto * at = reinterpret_cast<uint8_t *>(round_up(reinterpret_cast<uintptr_t>(memory.data()), kPage));
    std::vector<iovec> iov(100);
    std::vector<Read> reads;
    for (size_t i = 0; i < iov.size(); ++i) {
        iov[i] = {at + i * kPage, kPage};
        reads.push_back({(i % 30) * kPage, &iov[i], 1, static_cast<uint32_t>(kPage)});
    }
    const uint64_t first = queue->submit(reads.data(), reads.size());
    queue->wait(first + reads.size());
    CHECK(queue->totals().reads == reads.size(), "%llu reads", static_cast<unsigned long long>(queue->totals().reads));
    for (size_t i = 30; i < iov.size(); ++i) CHECK(std::memcmp(at + i * kPage, at + i % 30 * kPage, kPage) == 0, "read %zu", i);
}

// A file that ends early while another one's pinned weights are being read.
void test_load_fails(const std::string & backend) {
    for (int round = 0; round < 5; ++round) {
        Options o;
        o.backend = backend;
        o.files = 2;
        o.share = 0.0;
        Model m(o);
        bool failed = false;
        try {
            m.start([&] { m.cut(0, 4 * kPage); });
        } catch (const StorageError &) {
            failed = true;
        }
        CHECK(failed, "a file that ends early is loaded");
    }
}

template <class Error, class Function>
void expect_throw(const char * what, Function f) {
    bool thrown = false;
    try {
        f();
    } catch (const Error &) {
        thrown = true;
    }
    CHECK(thrown, "%s is accepted", what);
}

void test_arguments() {
    Options o;
    Model m(o);
    const size_t size = 64 * kPage;
    uint8_t * at = m.map(0);
    expect_throw<StorageError>("a file that is not there", [&] { WeightStreamer({"/no/such/file"}, true, "threads", 4); });
    const auto fresh = [&] { return std::make_unique<WeightStreamer>(m.paths(), true, "threads", 4); };
    auto s = fresh();
    expect_throw<ArgumentError>("an odd address", [&] { s->mapped(0, 0, at + 1, size); });
    expect_throw<ArgumentError>("an unknown file", [&] { s->mapped(1, 0, at, size); });
    expect_throw<ArgumentError>("a negative file", [&] { s->mapped(-1, 0, at, size); });
    expect_throw<ArgumentError>("more than the file", [&] { s->mapped(0, 0, at, size_t{1} << 40); });
    expect_throw<ArgumentError>("an offset past the end", [&] { s->mapped(0, uint64_t{1} << 62, at, 0); });
    s->mapped(0, kPage, at + kPage, size);
    expect_throw<ArgumentError>("a pin before the mapping", [&] { s->pin(0, 0, kPage); });
    expect_throw<ArgumentError>("a pin behind it", [&] { s->pin(0, 60 * kPage, 6 * kPage); });
    expect_throw<ArgumentError>("a pin of no page", [&] { s->pin(0, 2 * kPage, 0); });
    expect_throw<ArgumentError>("a part of a page", [&] { s->stream(0, 2 * kPage, 100); });
    expect_throw<ArgumentError>("a huge size", [&] { s->stream(0, 2 * kPage, ~size_t{0} & ~(kPage - 1)); });
    expect_throw<ArgumentError>("experts past the end", [&] { s->experts(0, 0, kPage, kPage, 65); });
    expect_throw<ArgumentError>("a stride of nothing", [&] { s->experts(0, 0, kPage, 0, 4); });
    expect_throw<ArgumentError>("a negative count", [&] { s->experts(0, 0, kPage, kPage, -4); });
    expect_throw<ArgumentError>("a count that overflows", [&] { s->experts(0, 0, kPage, size_t{1} << 39, 1 << 30); });
    expect_throw<ArgumentError>("a name past the end", [&] { s->expect("x", 0, 900 * kPage); });
    expect_throw<ArgumentError>("no accessors", [&] { s->access(GgmlAccess{}); });
    s->pin(0, 2 * kPage, 3 * kPage);
    s->stream(0, 4 * kPage, kPage);
    expect_throw<ArgumentError>("an overlap", [&] { s->start(kPage, 0, "lfu", {}); });
    s = fresh();
    s->mapped(0, 0, at, size);
    s->stream(0, 4 * kPage, 3 * kPage);
    expect_throw<ArgumentError>("a ring under its unit", [&] { s->start(2 * kPage, 0, "lfu", {}); });
    s = fresh();
    s->mapped(0, 0, at, size);
    s->experts(0, 0, 8 * kPage, kPage, 4);
    expect_throw<ArgumentError>("an unknown policy", [&] { s->start(0, 4 * kPage, "mru", {0}); });
    s = fresh();
    s->mapped(0, 0, at, size);
    s->experts(0, 0, 8 * kPage, kPage, 4);
    s->experts(1, 0, 16 * kPage, kPage, 5);
    expect_throw<ArgumentError>("layers that differ", [&] { s->start(0, 4 * kPage, "lfu", {0, 1}); });
    s = fresh();
    s->mapped(0, 0, at, size);
    s->start(0, 0, "lfu", {});
    expect_throw<ArgumentError>("a second start", [&] { s->start(0, 0, "lfu", {}); });
}

// The ring by itself: resets in the middle, units that are needed while others are in use.
void test_ring(RingMemory memory) {
    Options o;
    o.share = 1.0;
    o.window = 1.0;
    Model m(o);
    DirectFile file(m.paths()[0], true);
    const auto queue = make_read_queue(file, "threads", 4, 1 << 12);
    std::vector<TensorRing::Unit> units;
    std::vector<size_t> bytes;
    for (uint64_t at = kPage, i = 0; i < 7; ++i) {
        const size_t size = kPage * static_cast<size_t>(1 + (i * 5) % 4);
        units.push_back({m.map(0) + at, at, size, 0});
        at += size + kPage;
    }
    const auto whole = units;
    TensorRing ring(units, 9 * kPage + 100, {queue.get()}, memory);
    const auto good = [&](int i) {
        const auto & u = whole[static_cast<size_t>(i)];
        Tensor t{"", 0, u.offset, u.bytes};
        return m.same(t, 0, u.bytes);
    };
    for (int turn = 0; turn < 60; ++turn) {
        for (int i = 0; i < 7; ++i) {
            const int unit = turn % 5 == 4 ? below(7) : i;
            ring.need(unit);
            CHECK(good(unit), "unit %d in turn %d", unit, turn);
            ring.need(unit);
            CHECK(good(unit), "unit %d again in turn %d", unit, turn);
            if (below(9) == 0) ring.reset();
            else ring.consumed();
        }
    }
    CHECK(ring.bytes() == 10 * kPage, "whole pages");
    // Two at once that cannot both have a place.
    std::vector<TensorRing::Unit> two{{m.map(0) + 40 * kPage, 40 * kPage, 3 * kPage, 0}, {m.map(0) + 44 * kPage, 44 * kPage, 3 * kPage, 0}};
    TensorRing small(two, 4 * kPage, {queue.get()}, memory);
    small.need(0);
    expect_throw<StorageError>("a node of more than the ring", [&] { small.need(1); });
    small.reset();
    small.need(1);
    small.consumed();
    small.need(0);
    Tensor t{"", 0, two[0].offset, two[0].bytes};
    CHECK(m.same(t, 0, t.bytes), "after a refused node");
}

}  // namespace

int main(int argc, char ** argv) {
    if (argc > 1) rng.seed(std::strtoull(argv[1], nullptr, 10));
    std::vector<std::pair<std::string, bool>> ways{{"threads", true}, {"threads", false}};
    {
        Model m(Options{});
        try {
            WeightStreamer(m.paths(), true, "io_uring", 4);
            ways.emplace_back("io_uring", true);
        } catch (const StorageError &) {
            std::printf("io_uring not available here\n");
        }
    }
    for (const auto & [backend, direct] : ways) {
        for (const char * policy : {"adaptive", "lfu", "lru", "last-k"}) {
            for (const double window : {0.0, 0.5, 1.0}) {
                Options o;
                o.backend = backend;
                o.direct = direct;
                o.policy = policy;
                o.window = window;
                o.share = window == 0.5 ? 0.4 : 1.0;
                o.ring = window == 1.0 ? 1.0 : 2.5;
                o.files = window == 0.0 ? 3 : 1;
                o.expert_bytes = window == 0.5 ? 2 * kPage : 3 * kPage + 544;
                test_contents(o);
                test_partial_first_pass(o);
                if (std::strcmp(policy, "adaptive") == 0) test_truncated(o);
            }
        }
        Options tiny;  // experts of less than a page: all of them stay
        tiny.expert_bytes = 1504;
        tiny.backend = backend;
        tiny.window = 1.0;
        test_contents(tiny);
        test_nearly_every_expert(backend);
        test_full_queue(backend);
        test_load_fails(backend);
        std::printf("%s%s tested\n", backend.c_str(), direct ? "" : ", buffered");
    }
    test_first_pass_fails();
    test_graphs_that_lie();
    test_window_too_small();
    test_arguments();
    for (RingMemory memory : {RingMemory::aliases, RingMemory::fresh, RingMemory::huge}) test_ring(memory);
    return report_checks();
}
