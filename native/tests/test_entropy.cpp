// Entropy coding: what is encoded comes back, for every mode and predictor; shares are what they should be; damaged payloads
// are refused and nothing outside of them is read (build under the sanitizers).
// A plain executable: prints what failed, and its exit status is 1 if anything did.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <utility>
#include <vector>

#include "../core/entropy_decoder.h"
#include "../core/entropy_encoder.h"
#include "../core/error.h"
#include "checks.h"

using namespace penstock;

namespace {

std::mt19937_64 rng(20261126);
uint32_t below(uint32_t n) { return static_cast<uint32_t>(rng() % n); }

// ---------------------------------------------------------------- models

// The format's own words, with plain numbers.
struct PlainModel {
    int c[17];
    int seen = 0;
    explicit PlainModel(int n) {
        for (int i = 0; i < 16; ++i) c[i] = i < n ? i * ((32752 + n) / n) : 32752 + i;
        c[16] = 32768;
    }
    int find(int slot) const {
        int s = 0;
        while (c[s + 1] <= slot) ++s;
        return s;
    }
    void update(int s, int slowest) {
        const int rate = std::min(static_cast<int>(std::floor(std::log2(seen + 8))), slowest);
        for (int i = 0; i < 16; ++i) {
            const int target = i <= s ? i : 32752 + i;
            c[i] += static_cast<int>(std::floor(std::min(32767, target - c[i] + (1 << (rate - 1))) / std::ldexp(1.0, rate)));
        }
        if (seen < 504) ++seen;
    }
};

void test_models() {
    for (int n = 1; n <= 16; ++n) {
        for (int slowest = 4; slowest <= 9; ++slowest) {
            for (int kind = 0; kind < 3; ++kind) {
                SymbolModel model(n);
                PlainModel plain(n);
                for (int step = 0; step < 700; ++step) {
                    bool same = true, positive = true;
                    for (unsigned s = 0; s < 16; ++s) {
                        same = same && static_cast<int>(model.start(s)) == plain.c[s] && static_cast<int>(model.share(s)) == plain.c[s + 1] - plain.c[s];
                        positive = positive && plain.c[s + 1] > plain.c[s];
                    }
                    CHECK(same, "shares of %d symbols after %d", n, step);
                    CHECK(positive, "a share of %d symbols fell to nothing after %d", n, step);
                    const uint32_t slot = kind == 0 ? below(32768) : kind == 1 ? 32767u : 0u;
                    const auto symbol = static_cast<unsigned>(plain.find(static_cast<int>(slot)));
                    if (step % 2 == 0) {  // as a decoder does, and as an encoder does
                        SymbolModel::Share share{}, alone{};
                        CHECK(model.find(slot, alone) == symbol, "slot %u of %d symbols after %d, without learning", slot, n, step);
                        const unsigned found = model.find_and_update(slot, slowest, share);
                        CHECK(alone.start == share.start && alone.size == share.size, "the share of a slot of %d symbols after %d", n, step);
                        CHECK(found == symbol, "slot %u of %d symbols after %d", slot, n, step);
                        CHECK(static_cast<int>(share.start) == plain.c[symbol] && static_cast<int>(share.start + share.size) == plain.c[symbol + 1],
                              "the share of a slot of %d symbols after %d", n, step);
                    } else {
                        model.update(symbol, slowest);
                    }
                    plain.update(static_cast<int>(symbol), slowest);
                }
            }
        }
    }
}

// ---------------------------------------------------------------- coders

void test_coder() {
    for (int round = 0; round < 200; ++round) {
        const size_t count = round < 4 ? static_cast<size_t>(round) : 1 + below(3000);
        std::vector<unsigned> symbols(count);
        std::vector<int> kinds(count);
        std::vector<bool> turns(count), teaches(count);
        const int skew = static_cast<int>(below(4));
        for (size_t i = 0; i < count; ++i) {
            kinds[i] = static_cast<int>(below(2) == 0 ? 0 : 1 + below(16));  // 0: a symbol, else so many raw bits
            turns[i] = below(3) == 0;                     // of their own
            teaches[i] = below(2) == 0;
            symbols[i] = kinds[i] == 0 ? below(16) >> below(static_cast<uint32_t>(skew) + 1) : below(1u << kinds[i]);
        }
        SymbolEncoder encoder;
        BitCounter counter;
        SymbolModel a, b, c;
        for (size_t i = 0; i < count; ++i) {
            if (turns[i]) encoder.turn(), counter.turn();
            if (kinds[i] == 0) encoder.symbol(a, symbols[i], 6, teaches[i]), counter.symbol(b, symbols[i], 6, teaches[i]);
            else encoder.bits(kinds[i], symbols[i]), counter.bits(kinds[i], symbols[i]);
        }
        const size_t least = round % 3 == 0 ? 5001 : 0;
        const std::vector<uint8_t> payload = encoder.finish(least);
        CHECK(payload.size() % 2 == 0 && payload.size() >= std::max(least, kStateBytes), "%zu bytes", payload.size());
        CHECK(least != 0 || static_cast<double>(payload.size()) * 8 <= counter.total() * 1.005 + 160, "%zu bytes for %.0f bits", payload.size(), counter.total());
        CodeReader reader(payload.data(), payload.size());
        SymbolDecoder decoder(reader);
        bool same = true;
        for (size_t i = 0; i < count; ++i) {
            decoder.ready();
            if (turns[i]) decoder.turn();
            const unsigned got = kinds[i] == 0 ? decoder.symbol(c, 0, 6, teaches[i]) : decoder.bits(kinds[i], 0);
            same = same && got == symbols[i];
        }
        CHECK(same, "round %d", round);
        decoder.finish();
    }
}

// ---------------------------------------------------------------- groups

GroupNumbers random_group(GroupSpec & spec, size_t count) {
    spec.position.bits = 1 + static_cast<int>(below(21));
    spec.position.modelled_digits = static_cast<int>(below(22));
    spec.position.slowest = 4 + static_cast<int>(below(6));
    spec.all_digits = below(2) == 0;
    const int bits = spec.position.bits;
    spec.digits = ChannelSpec{};
    spec.digits.size = static_cast<uint32_t>(bits);
    spec.digits.predictor = Predictor::nearest;
    spec.digits.buckets = static_cast<uint8_t>(below(5));
    std::vector<std::pair<uint64_t, uint16_t>> splats;
    for (size_t i = 0; i < count; ++i) {
        const uint32_t spread = below(3) == 0 ? 1u << bits : std::min(1u << bits, 1u + below(9));
        uint64_t code = morton_code(below(spread), below(spread), below(spread));
        const int digits = spec.all_digits ? bits : 1 + static_cast<int>(below(static_cast<uint32_t>(bits)));
        code = code >> 3 * (bits - digits) << 3 * (bits - digits);
        splats.emplace_back(code, static_cast<uint16_t>(digits - 1));
    }
    std::sort(splats.begin(), splats.end());
    GroupNumbers group;
    group.count = count;
    for (const auto & [code, digits] : splats) {
        group.codes.push_back(code);
        if (!spec.all_digits) group.kept.push_back(digits);
    }
    spec.channels.clear();
    const uint32_t channels = below(9);
    for (uint32_t c = 0; c < channels; ++c) {
        ChannelSpec channel;
        const uint32_t sizes[] = {1, 2, 3, 16, 17, 100, 256, 257, 1024, 4096, 5000, 65535, 65536};
        channel.size = sizes[below(13)];
        channel.mode = static_cast<Mode>(below(4));
        channel.predictor = static_cast<Predictor>(below(6));
        channel.slowest = static_cast<uint8_t>(4 + below(6));
        channel.reference_buckets = static_cast<uint8_t>(below(5));
        if (c > 0) channel.reference = static_cast<uint8_t>(below(c));
        else if (!spec.all_digits) channel.reference = kDigitsReference;
        const int width = width_of(channel.size);
        channel.sparse = (channel.mode == Mode::direct || channel.mode == Mode::narrow) && below(2) == 0;
        if (channel.mode == Mode::direct) {
            channel.buckets = static_cast<uint8_t>(below(5));
            const int least = std::max(0, width - 12);
            channel.raw = static_cast<uint8_t>(least + static_cast<int>(below(static_cast<uint32_t>(width - least + 1))));
        } else if (channel.mode == Mode::narrow) {
            channel.buckets = static_cast<uint8_t>(below(5));
            channel.raw = static_cast<uint8_t>(below(std::min(channel.size, 256u)));
        }
        if (channel.reference == kNoReference || channel.mode == Mode::fresh) {
            channel.reference_buckets = 0;
            if (channel.predictor >= Predictor::slope || channel.mode == Mode::fresh) channel.predictor = Predictor::none;
        }
        if (channel.mode == Mode::fresh) channel.reference = kNoReference;
        std::vector<uint16_t> values(count);
        uint32_t known = 0, walk = below(channel.size);
        const uint32_t kind = below(3);
        for (auto & value : values) {
            uint32_t v = kind == 0 ? below(channel.size) : kind == 1 ? (walk = (walk + below(5)) % channel.size) : channel.size - 1;
            if (channel.mode == Mode::fresh) {
                v = known < channel.size && (known == 0 || below(3) == 0) ? known : below(known);
                known = std::max(known, v + 1);
            }
            value = static_cast<uint16_t>(v);
        }
        spec.channels.push_back(channel);
        group.channels.push_back(std::move(values));
    }
    return group;
}

bool same(const GroupNumbers & a, const GroupNumbers & b) {
    return a.count == b.count && a.codes == b.codes && a.kept == b.kept && a.channels == b.channels;
}

void test_groups() {
    for (int round = 0; round < 400; ++round) {
        GroupSpec spec;
        GroupNumbers group = random_group(spec, round < 5 ? static_cast<size_t>(round) : 1 + below(700));
        check_spec(spec);
        GroupModels write(spec), read(spec), count(spec);
        const GroupNumbers before = group;
        const std::vector<uint8_t> payload = encode_group(spec, write, group);
        CHECK(same(group, before), "encoding changed the numbers, round %d", round);
        const std::vector<double> bits = group_bits(spec, count, group);
        double total = 0;
        for (const double b : bits) total += b;
        CHECK(bits.size() == spec.channels.size() + 1, "bits of round %d", round);
        const size_t least = std::max<size_t>(kStateBytes, group.count + group.count % 2);
        const double slack = total * 0.005 + 192 + static_cast<double>(group.count);
        CHECK(payload.size() == least || std::fabs(static_cast<double>(payload.size()) * 8 - total) < slack,
              "%zu bytes, counted %.0f bits", payload.size(), total);
        CHECK(same(decode_group(spec, read, payload.data(), payload.size(), group.count), group), "round %d", round);
        // A second group goes on with what the first has taught.
        if (std::none_of(spec.channels.begin(), spec.channels.end(), [](const ChannelSpec & c) { return c.mode == Mode::fresh; })) {
            const std::vector<uint8_t> again = encode_group(spec, write, group);
            CHECK(same(decode_group(spec, read, again.data(), again.size(), group.count), group), "primed, round %d", round);
        }
        // Damage: each is refused or gives other numbers; under the sanitizers nothing else happens.
        for (int k = 0; k < 12; ++k) {
            std::vector<uint8_t> damaged = payload;
            if (k < 6) damaged[below(static_cast<uint32_t>(damaged.size()))] ^= static_cast<uint8_t>(1u << below(8));
            else if (k < 9) damaged.resize(below(static_cast<uint32_t>(damaged.size())));
            else for (auto & byte : damaged) byte = static_cast<uint8_t>(below(256));
            damaged.shrink_to_fit();
            GroupModels fresh(spec);
            bool refused = false;
            try {
                decode_group(spec, fresh, damaged.data(), damaged.size(), group.count);
            } catch (const FormatError &) {
                refused = true;
            } catch (const ArgumentError &) {
                refused = true;  // fewer bytes than splats
            }
            CHECK(refused || k < 6 || damaged.size() == payload.size(), "a payload cut short was taken, round %d", round);
        }
    }
}

void test_neighbours() {
    for (int round = 0; round < 60; ++round) {
        GroupSpec spec;
        const GroupNumbers group = random_group(spec, 1 + below(200));
        const uint16_t * kept = spec.all_digits ? nullptr : group.kept.data();
        std::vector<int32_t> nearest(group.count);
        find_neighbours(group.codes.data(), kept, spec.position.bits, group.count, nearest.data());
        const auto centre = [&](size_t i, int axis) {
            const int dropped = kept == nullptr ? 0 : spec.position.bits - kept[i] - 1;
            return static_cast<int64_t>(gather_bits(group.codes[i] >> axis)) + (int64_t{1} << dropped) / 2;
        };
        bool right = true;
        for (size_t i = 0; i < group.count; ++i) {
            int64_t least = INT64_MAX, found = -1;
            for (size_t j = i > 32 ? i - 32 : 0; j < i; ++j) {
                int64_t d = 0;
                for (int axis = 0; axis < 3; ++axis) d += std::llabs(centre(i, axis) - centre(j, axis));
                if (d <= least) least = d, found = static_cast<int64_t>(j);
            }
            right = right && nearest[i] == found;
        }
        CHECK(right, "neighbours of round %d", round);
    }
}

void test_sheets() {
    for (int round = 0; round < 200; ++round) {
        std::vector<Sheet> sheets(1 + below(4));
        for (Sheet & sheet : sheets) {
            sheet.rows = 1 + below(200);
            sheet.columns = 1 + below(12);
            sheet.spec.size = below(2) == 0 ? 65536 : 1 + below(300);
            const Mode modes[] = {Mode::direct, Mode::residual, Mode::narrow};
            sheet.spec.mode = modes[below(3)];
            sheet.spec.predictor = static_cast<Predictor>(below(6));
            sheet.spec.reference = 0;
            sheet.spec.sparse = sheet.spec.mode != Mode::residual && below(2) == 0;
            if (sheet.spec.mode == Mode::direct) {
                sheet.spec.raw = static_cast<uint8_t>(std::max(0, width_of(sheet.spec.size) - 12));
                sheet.spec.buckets = static_cast<uint8_t>(below(5));
            } else if (sheet.spec.mode == Mode::narrow) {
                sheet.spec.raw = static_cast<uint8_t>(below(std::min(sheet.spec.size, 256u)));
            }
            sheet.spec.reference_buckets = static_cast<uint8_t>(below(5));
            for (size_t i = 0; i < sheet.rows * sheet.columns; ++i) sheet.values.push_back(static_cast<uint16_t>(below(sheet.spec.size)));
        }
        const std::vector<Sheet> before = sheets;
        const std::vector<uint8_t> payload = encode_sheets(sheets);
        std::vector<Sheet> read = before;
        decode_sheets(read, payload.data(), payload.size());
        bool right = true;
        for (size_t k = 0; k < sheets.size(); ++k) right = right && read[k].values == before[k].values;
        CHECK(right, "sheets of round %d", round);
    }
}

}  // namespace

int main() {
    test_models();
    test_coder();
    test_groups();
    test_neighbours();
    test_sheets();
    return report_checks();
}
