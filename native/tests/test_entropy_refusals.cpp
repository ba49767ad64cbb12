// Entropy coding: what cannot be coded and what no encoder writes is refused (build under the sanitizers).
// A plain executable: prints what failed, and its exit status is 1 if anything did.
#include <cstdio>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "../core/entropy_decoder.h"
#include "../core/entropy_encoder.h"
#include "../core/error.h"
#include "checks.h"

using namespace penstock;

namespace {

template <class Call>
bool refuses(Call && call) {
    try {
        call();
    } catch (const ArgumentError &) {
        return true;
    } catch (const FormatError &) {
        return true;
    }
    return false;
}

void test_refusals() {
    GroupSpec spec;
    spec.position.bits = 4;
    GroupNumbers group(spec, 2);
    group.codes = {5, 4};
    CHECK(refuses([&] { GroupModels m(spec); encode_group(spec, m, group); }), "codes that descend");
    group.codes = {4, 1u << 12};
    CHECK(refuses([&] { GroupModels m(spec); encode_group(spec, m, group); }), "a code outside of the lattice");
    group.codes = {4, 5};
    // Of no splats: the four states as a code begins and ends.
    const uint8_t none[18] = {0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0};
    {
        GroupModels m(spec);
        decode_group(spec, m, none, 16, 0);
    }
    const auto said = [&](size_t bytes, size_t count, const char * what) {
        try {
            GroupModels m(spec);
            decode_group(spec, m, none, bytes, count);
        } catch (const std::exception & error) {
            return std::string(error.what()).find(what) != std::string::npos;
        }
        return false;
    };
    CHECK(said(16, 17, "a payload has at least a byte for each"), "more splats than bytes");
    CHECK(said(17, 0, "an even number"), "an odd number of bytes");
    CHECK(said(14, 0, "expected 16 or more"), "three states and a half");
    ChannelSpec channel;
    channel.size = 65536;
    spec.channels = {channel};
    CHECK(refuses([&] { check_spec(spec); }), "16 modelled bits");
    spec.channels[0].raw = 4;
    check_spec(spec);
    spec.channels[0].reference = 0;
    CHECK(refuses([&] { check_spec(spec); }), "a channel that refers to itself");
    spec.channels[0].reference = kDigitsReference;
    CHECK(refuses([&] { check_spec(spec); }), "digits that are not coded");
    spec.channels[0].reference = kNoReference;
    spec.channels[0].predictor = Predictor::slope;
    CHECK(refuses([&] { check_spec(spec); }), "a slope of nothing");
}

// Payloads that no encoder of ours writes, though each of their symbols is there.
void test_lies() {
    const int slowest = 7;
    const auto sheet_refused = [&](ChannelSpec channel, auto && write) {
        std::vector<Sheet> sheets(1);
        sheets[0].rows = 1;
        sheets[0].spec = channel;
        ChannelModels models(channel);
        SymbolEncoder encoder;
        write(encoder, models);
        const auto payload = encoder.finish(8);
        return refuses([&] { decode_sheets(sheets, payload.data(), payload.size()); });
    };
    ChannelSpec direct;
    direct.size = 32;  // four bits, then one
    for (const unsigned last : {1u, 2u, 5u}) {
        const bool refused = sheet_refused(direct, [&](SymbolEncoder & encoder, ChannelModels & m) {
            code_in_context(encoder, m.top, 0, 0, slowest);
            encoder.symbol(m.middle[0], last, slowest);
        });
        CHECK(refused == (last > 1), "symbol %u of one bit", last);
    }
    ChannelSpec narrow;
    narrow.size = 20;
    narrow.mode = Mode::narrow;
    narrow.raw = 10;
    for (const unsigned symbol : {9u, 10u, 14u}) {  // 19, 20, 24
        const bool refused = sheet_refused(narrow, [&](SymbolEncoder & encoder, ChannelModels & m) { code_in_context(encoder, m.top, 0, symbol, slowest); });
        CHECK(refused == (symbol > 9), "symbol %u from 10 on", symbol);
    }
    for (const uint32_t number : {0u, 19u, 20u, 31u}) {
        const bool refused = sheet_refused(narrow, [&](SymbolEncoder & encoder, ChannelModels & m) {
            code_in_context(encoder, m.top, 0, 15, slowest);
            encoder.bits(5, number);
        });
        CHECK(refused == (number > 19), "the raw number %u of 20", number);
    }
    ChannelSpec residual;
    residual.size = 16;
    residual.mode = Mode::residual;
    for (const unsigned last : {0u, 1u, 2u, 5u}) {
        const bool refused = sheet_refused(residual, [&](SymbolEncoder & encoder, ChannelModels & m) {
            code_in_context(encoder, m.top, 0, 2, slowest);
            encoder.symbol(m.middle[2], last, slowest);
        });
        CHECK(refused == (last > 1), "symbol %u of a magnitude's one bit", last);
    }
    for (const uint32_t magnitude : {14u, 15u, 16u, 17u}) {  // 7, -8, 8, -9, of -8 to 7
        const bool refused = sheet_refused(residual, [&](SymbolEncoder & encoder, ChannelModels & m) {
            unsigned kind = 0;
            code_magnitude(encoder, m.top, 0, m.middle, magnitude, slowest, kind);
        });
        CHECK(refused == (magnitude > 15), "magnitude %u", magnitude);
    }
    CHECK(sheet_refused(residual, [&](SymbolEncoder & encoder, ChannelModels & m) {
        code_in_context(encoder, m.top, 0, 15, slowest);
        encoder.bits(16, 3);
    }), "3 in the class of 15 bits");

    GroupSpec spec;
    spec.position.bits = 4;
    for (const unsigned last : {4u, 5u, 6u}) {  // after 5
        PositionModels m;
        SymbolEncoder encoder;
        const auto code = [&](size_t context, unsigned digit_before, unsigned digit) {  // three digits shared
            code_in_context(encoder, m.shared, context, 1, spec.position.slowest);
            encoder.symbol(m.shared_low[1], 1, spec.position.slowest);
            encoder.symbol(m.differing[digit_before], digit, spec.position.slowest);
        };
        code(0, 0, 5);
        code(4 * 3, 5, last);
        const auto payload = encoder.finish(8);
        const bool refused = refuses([&] { GroupModels g(spec); decode_group(spec, g, payload.data(), payload.size(), 2); });
        CHECK(refused == (last < 6), "digit %u after 5", last);
    }
}

}  // namespace

int main() {
    test_refusals();
    test_lies();
    return report_checks();
}
