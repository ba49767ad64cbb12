// The splat rasteriser: the order of depth, footprints by hand, every kernel set against the scalar
// one, and the same bytes for any number of threads, bands and scenes.
// A plain executable: prints what failed, and its exit status is 1 if anything did. Images and arrays
// have exactly their size, for ASan. tests/runtime/splats compares with a reference in doubles.
#include "splat_cloud.h"

namespace {

// ---------------------------------------------------------------- order

void test_order(size_t n, int kind, int threads) {
    std::vector<float> depth;
    std::vector<DepthRun> runs;
    while (depth.size() < n) {
        const size_t count = std::min(n - depth.size(), below(2 * n / 5 + 2));
        runs.push_back({static_cast<uint32_t>(depth.size()), static_cast<uint32_t>(count)});
        for (size_t i = 0; i < count; ++i) {
            depth.push_back(kind == 0 ? 1.5f : kind == 1 ? 1.0f + static_cast<float>(below(50)) * 1e-6f
                            : kind == 2 ? uniform(2.5f, 4.5f) : std::pow(10.0f, uniform(-5, 30)));
        }
        for (size_t gap = below(4); gap > 0; --gap) depth.push_back(-1.0f);  // no run has it
    }
    std::vector<uint32_t> expected;
    for (const DepthRun & run : runs) {
        for (uint32_t i = 0; i < run.count; ++i) expected.push_back(run.begin + i);
    }
    std::stable_sort(expected.begin(), expected.end(), [&](uint32_t a, uint32_t b) { return depth[a] < depth[b]; });
    ThreadPool pool(threads);
    SplatRoom<uint32_t> order;
    SortRoom room;
    const size_t found = sort_by_depth(depth.data(), runs, order, room, pool);
    CHECK(found == expected.size(), "n=%zu kind=%d: %zu of %zu", n, kind, found, expected.size());
    CHECK(std::equal(expected.begin(), expected.end(), order.data()), "n=%zu kind=%d threads=%d", n, kind, threads);
}

// ---------------------------------------------------------------- footprints

// Whether a footprint's exponent is a / 2 dx^2 - b dx dy + c / 2 dy^2 in natural units.
bool is_conic(const Footprint2d & f, double a, double b, double c) {
    const auto near = [](double x, double y) { return std::fabs(x - y) <= 1e-4 * (1 + std::fabs(y)); };
    const double natural = std::log(2.0), half_a = natural * f.a, half_c = natural * (f.a * f.slope * f.slope + f.k);
    return near(half_a, a / 2) && near(2 * natural * f.a * f.slope, b) && near(half_c, c / 2) && near(f.inverse_a * f.a, 1);
}

// Of the set of kernels that is selected.
void test_footprint() {
    Cloud cloud(1, true);
    const auto put = [&](float x, float y, float z) { cloud.mean[0][0] = x, cloud.mean[1][0] = y, cloud.mean[2][0] = z; };
    for (auto & array : cloud.covariance) array[0] = 0.0f;
    cloud.covariance[0][0] = 0.04f, cloud.covariance[3][0] = 0.01f, cloud.covariance[5][0] = 1.0f;
    cloud.log_opacity[0] = std::log(0.5f);
    cloud.t_center[0] = 1.0f, cloud.t_sigma[0] = 0.5f;
    for (auto & array : cloud.velocity) array[0] = 0.0f;
    cloud.velocity[0][0] = 0.8f;
    put(0, 0, 2);
    SplatCamera camera{{1, 0, 0, 0, 1, 0, 0, 0, 1}, {0, 0, 0}, 100, 200, 50, 40, 100, 80, 0.2f};
    SplatOptions options;
    options.time = 1.0f;
    Footprint2d f;
    float depth;
    TileRect rect;
    const SplatVisible out{&f, &depth, &rect};
    const auto seen = [&] { return project_splats(cloud.scene, camera, options, 0, 1, 7, out); };
    const auto near = [](float a, double b) { return std::fabs(a - b) <= 1e-4 * (1 + std::fabs(b)); };
    CHECK(seen() == 1 && f.index == 7 && depth == 2.0f, "in front of the camera");
    CHECK(near(f.x, 50) && near(f.y, 40), "middle %g %g", f.x, f.y);
    // Variances (100/2)^2 0.04 + 0.3 = 100.3 and (200/2)^2 0.01 + 0.3 = 100.3; in the middle the depth's adds nothing.
    CHECK(is_conic(f, 1 / 100.3, 0, 1 / 100.3), "conic %g %g %g", f.a, f.slope, f.k);
    CHECK(near(f.fade, 1), "fade %g", f.fade);
    // Half sides of the box: sqrt(2 ln 127.5 * 100.3) = 31.18 pixels, so 18.8 to 81.2 and 8.8 to 71.2.
    CHECK(rect.x0 == 1 && rect.x1 == 6 && rect.y0 == 0 && rect.y1 == 5, "tiles %d %d %d %d", rect.x0, rect.x1, rect.y0, rect.y1);
    options.time = 1.5f;  // one sigma later: 0.4 further, weight exp(-1/2)
    CHECK(seen() == 1 && near(f.x, 50 + 100 * 0.4 / 2) && near(f.fade, 1 + 0.5 / std::log(2.0)), "moved to %g", f.x);
    options.time = 1.0f + 0.5f * 2.447f;  // weight 0.0501, then 0.0498
    CHECK(seen() == 1, "weight over 0.05");
    options.time = 1.0f + 0.5f * 2.449f;
    CHECK(seen() == 0, "weight under 0.05");
    options.time = 1.0f;
    for (const float z : {0.2f, 0.0f, -1.0f, std::numeric_limits<float>::infinity(), std::nanf("")}) {
        put(0, 0, z);
        CHECK(seen() == 0, "z = %g", z);
    }
    for (const float x : {30.0f, -30.0f, 1e20f, -1e38f, std::numeric_limits<float>::infinity(), std::nanf("")}) {
        put(x, 0, 2);
        CHECK(seen() == 0, "x = %g", x);
    }
    put(0, 0, 2);
    std::vector<float> & any = cloud.covariance[1];
    for (float * field : {any.data(), cloud.log_opacity.data(), cloud.t_center.data(), cloud.t_sigma.data(), cloud.velocity[1].data()}) {
        const float before = *field;
        *field = std::nanf("");
        CHECK(seen() == 0, "NaN");
        *field = before;
    }
    cloud.log_opacity[0] = -std::numeric_limits<float>::infinity();
    CHECK(seen() == 0, "opacity 0");
    cloud.log_opacity[0] = std::log(0.5f);
    for (auto & array : cloud.covariance) array[0] = 1e38f;
    CHECK(seen() == 0, "a covariance that overflows");
    for (auto & array : cloud.covariance) array[0] = 0.0f;
    CHECK(seen() == 1 && is_conic(f, 1 / 0.3, 0, 1 / 0.3), "a point is as wide as the low pass");
    // tan(1/2) in place of the field of view: 100 / (2 * 0.5463) and 80 / (2 * 0.5463) pixels, sheared by 0.7102 z.
    cloud.covariance[0][0] = cloud.covariance[3][0] = cloud.covariance[5][0] = 0.01f;
    options.lens = FootprintLens::omg4_sentinel;
    const double tangent = std::tan(0.5), shear = 1.3 * tangent, jx = 100 / (4 * tangent), jy = 80 / (4 * tangent);
    const double a = jx * jx * 0.01 * (1 + shear * shear) + 0.3, c = jy * jy * 0.01 * (1 + shear * shear) + 0.3, b = jx * jy * 0.01 * shear * shear;
    const double det = a * c - b * b;
    CHECK(seen() == 1 && is_conic(f, c / det, b / det, a / det), "the sentinel's conic %g %g %g", f.a, f.slope, f.k);
}

// Against the scalar set: the same splats, but for those at a threshold, and the same footprints. Parts
// that begin and end anywhere give what the whole gives.
void test_projection(const char * set, const Cloud & cloud, const SplatOptions & options) {
    const size_t n = cloud.scene.count;
    for (const float distance : {3.0f, 0.3f}) {
        const SplatCamera camera = camera_of(161, 121, distance);
        struct Seen {
            std::vector<Footprint2d> footprints;
            std::vector<float> depth;
            std::vector<TileRect> rects;
            size_t count = 0;
        };
        const auto project = [&](const std::vector<size_t> & cuts) {
            Seen seen;
            for (size_t k = 0; k + 1 < cuts.size(); ++k) {
                const size_t many = cuts[k + 1] - cuts[k];
                std::vector<Footprint2d> footprints(many);
                std::vector<float> depth(many);
                std::vector<TileRect> rects(many);
                const size_t found = project_splats(cloud.scene, camera, options, cuts[k], cuts[k + 1], 5,
                                                    {footprints.data(), depth.data(), rects.data()});
                seen.footprints.insert(seen.footprints.end(), footprints.begin(), footprints.begin() + static_cast<std::ptrdiff_t>(found));
                seen.depth.insert(seen.depth.end(), depth.begin(), depth.begin() + static_cast<std::ptrdiff_t>(found));
                seen.rects.insert(seen.rects.end(), rects.begin(), rects.begin() + static_cast<std::ptrdiff_t>(found));
                seen.count += found;
            }
            return seen;
        };
        kernels_select("scalar");
        const Seen expected = project({0, n});
        kernels_select(set);
        const Seen found = project({0, n}), parts = project({0, 1, 4, 9, 16, n / 2, n / 2, n});
        CHECK(parts.count == found.count && parts.depth == found.depth &&
                  std::memcmp(parts.footprints.data(), found.footprints.data(), found.count * sizeof(Footprint2d)) == 0 &&
                  std::memcmp(parts.rects.data(), found.rects.data(), found.count * sizeof(TileRect)) == 0,
              "%s: parts are projected otherwise than the whole", set);
        size_t alike = 0;
        for (size_t i = 0, k = 0; i < expected.count && k < found.count;) {
            const Footprint2d & e = expected.footprints[i], & f = found.footprints[k];
            if (e.index != f.index) {
                ++(e.index < f.index ? i : k);
                continue;
            }
            const auto near = [](float a, float b) { return std::fabs(a - b) <= 1e-3f * (1 + std::fabs(b)); };
            // A needle's slope and narrow side are differences of large numbers in either set.
            alike += near(f.x, e.x) && near(f.y, e.y) && near(f.k, e.k) && near(f.slope, e.slope) && near(f.fade, e.fade) &&
                     near(f.a, e.a) && near(found.depth[k], expected.depth[i]) && f.red == e.red && f.blue == e.blue &&
                     std::memcmp(&found.rects[k], &expected.rects[i], sizeof(TileRect)) == 0;
            ++i, ++k;
        }
        CHECK(static_cast<double>(alike) >= 0.995 * static_cast<double>(expected.count) && found.count <= expected.count + n / 200,
              "%s: %zu of %zu footprints as the scalar set's %zu", set, alike, found.count, expected.count);
    }
}

// ---------------------------------------------------------------- pictures

double worst_and_share(const std::vector<float> & a, const std::vector<float> & b, double over, double & share) {
    double worst = 0;
    size_t count = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        const double d = std::fabs(static_cast<double>(a[i]) - b[i]);
        if (!(d <= worst)) worst = std::isnan(d) ? INFINITY : d;
        count += !(d <= over);
    }
    share = a.empty() ? 0 : static_cast<double>(count) / static_cast<double>(a.size());
    return worst;
}

void test_set(const char * set, const Cloud & cloud, const SplatCamera & camera, const SplatOptions & options) {
    kernels_select("scalar");
    const Picture expected = draw({cloud.part()}, camera, options, 1);
    kernels_select(set);
    const Picture found = draw({cloud.part()}, camera, options, 1);
    // A splat at the edge of its ellipse may be in one and not in the other: 1/255 at most, and what
    // it covered shows.
    double share = 0;
    const double worst = worst_and_share(expected.image, found.image, 1e-4, share);
    CHECK(worst <= 0.01 && share <= 0.004, "%s %dx%d: worst %g, %g over 1e-4", set, camera.width, camera.height, worst, share);
    const double rest = worst_and_share(expected.rest, found.rest, 1e-4, share);
    CHECK(rest <= 0.01 && share <= 0.004, "%s %dx%d: rest %g, %g over 1e-4", set, camera.width, camera.height, rest, share);
    for (const float value : found.rest) CHECK(value >= 0.0f && value <= 1.0f, "%s: transmittance %g", set, value);
}

void test_same(const Cloud & cloud, const SplatCamera & camera, SplatOptions options) {
    const Picture one = draw({cloud.part()}, camera, options, 1);
    for (const int threads : {2, 3, 7}) {
        CHECK(one == draw({cloud.part()}, camera, options, threads), "%d threads, %dx%d", threads, camera.width, camera.height);
    }
    // Two ranges of one scene, and two scenes, are drawn as the whole is.
    const size_t cut = cloud.scene.count / 3;
    const SplatRange low{0, cut}, high{cut, cloud.scene.count};
    CHECK(one == draw({{&cloud.scene, {low, high}}}, camera, options, 2), "two ranges");
    CHECK(one == draw({{&cloud.scene, {low}}, {&cloud.scene, {high}}}, camera, options, 2), "two scenes");
    for (const size_t pairs : {size_t{1}, size_t{100}, size_t{5000}}) {
        options.most_pairs = pairs;
        CHECK(one == draw({cloud.part()}, camera, options, 2), "bands of %zu pairs", pairs);
    }
}

// ---------------------------------------------------------------- gradients

// Every row of the gradient, as bind_splats.cpp lays them out.
std::vector<std::vector<float>> gradient_of(const Cloud & cloud, const SplatCamera & camera, const SplatOptions & options,
                                            const std::vector<float> & towards, int threads) {
    const size_t n = cloud.scene.count;
    std::vector<std::vector<float>> rows(21, std::vector<float>(n, std::nanf("")));
    SplatGradients g{};
    size_t next = 0;
    const auto row = [&] { return rows[next++].data(); };
    for (float *& r : g.colour) r = row();
    g.opacity = row();
    for (float *& r : g.mean) r = row();
    for (float *& r : g.covariance) r = row();
    for (float *& r : g.mean_2d) r = row();
    g.weight = row();
    for (float *& r : g.velocity) r = row();
    g.t_center = row();
    g.t_sigma = row();
    SplatRenderer renderer(threads);
    renderer.backward({cloud.part(), nullptr}, camera, options, towards.data(), g);
    return rows;
}

void test_gradient(const char * set, Cloud & cloud, const SplatCamera & camera, SplatOptions options) {
    const size_t pixels = static_cast<size_t>(camera.width) * static_cast<size_t>(camera.height);
    std::vector<float> towards(3 * pixels);
    for (float & value : towards) value = uniform(-1, 1);
    kernels_select("scalar");
    const auto expected = gradient_of(cloud, camera, options, towards, 1);
    kernels_select(set);
    const auto found = gradient_of(cloud, camera, options, towards, 1);
    for (size_t r = 0; r < expected.size(); ++r) {
        double off = 0, whole = 0;
        for (size_t i = 0; i < cloud.scene.count; ++i) {
            off += std::pow(static_cast<double>(expected[r][i]) - found[r][i], 2);
            whole += std::pow(static_cast<double>(expected[r][i]), 2);
        }
        CHECK(std::isfinite(whole) && std::sqrt(off) <= 0.01 * std::sqrt(whole), "%s: row %zu is off by %g of %g", set, r,
              std::sqrt(off), std::sqrt(whole));
    }
    for (const int threads : {2, 5}) CHECK(found == gradient_of(cloud, camera, options, towards, threads), "%s: %d threads", set, threads);
    for (const size_t pairs : {size_t{1}, size_t{700}}) {
        options.most_pairs = pairs;
        CHECK(found == gradient_of(cloud, camera, options, towards, 2), "%s: bands of %zu pairs", set, pairs);
    }
    // The picture is linear in colours: a step of one splat's changes the loss by step times gradient.
    options.most_pairs = size_t{1} << 24;
    const auto loss = [&] {
        const Picture picture = draw({cloud.part()}, camera, options, 1);
        double sum = 0;
        for (size_t i = 0; i < towards.size(); ++i) sum += static_cast<double>(towards[i]) * picture.image[i];
        return sum;
    };
    const double before = loss();
    for (int k = 0; k < 5; ++k) {
        const size_t i = below(cloud.scene.count), channel = below(3);
        cloud.colour[channel][i] += 2.0f;
        const double change = loss() - before;
        cloud.colour[channel][i] -= 2.0f;
        CHECK(std::fabs(change - 2.0 * found[channel][i]) <= 2e-3 * (1 + std::fabs(change)), "%s: colour of %zu changes the loss by %g, not %g",
              set, i, change, 2.0 * found[channel][i]);
    }
}

// ---------------------------------------------------------------- colours

void test_colours(int threads) {
    const size_t n = 2 * kColourBlock + 77;
    Cloud cloud(n, false);
    std::vector<float> sh(16 * 3 * n);
    for (float & value : sh) value = uniform(-0.5f, 0.5f);
    for (const int coefficients : {1, 4, 9, 16}) {
        ThreadPool pool(threads);
        SplatColours colours(cloud.scene.mean, n, sh.data(), coefficients);
        const float eye[3] = {4.0f, -3.0f, 5.0f}, beside[3] = {4.01f, -3.0f, 5.0f}, far[3] = {-9, 0, 0};
        const std::vector<SplatRange> whole{{0, n}}, last{{n - 1, n}}, none{};
        CHECK(colours.refresh(eye, 0, none, pool) == 0, "no range");
        CHECK(colours.refresh(eye, 0, last, pool) == 77, "one block");
        CHECK(colours.refresh(eye, 0, whole, pool) == 2 * kColourBlock, "the others");
        CHECK(colours.refresh(eye, 0, whole, pool) == 0, "nothing moved");
        CHECK(colours.refresh(beside, 0.01f, whole, pool) == 0, "moved by less than the tolerance");
        CHECK(colours.refresh(far, 0.01f, whole, pool) == n, "moved far");
        CHECK(colours.refresh(beside, 0, whole, pool) == n, "no tolerance");
        for (size_t i = 0; i < n; i += 97) {
            double d[3], length = 0;
            for (int k = 0; k < 3; ++k) d[k] = static_cast<double>(cloud.mean[k][i]) - beside[k], length += d[k] * d[k];
            for (double & value : d) value /= std::sqrt(length);
            const double basis[4] = {0.28209479177387814, -0.4886025119029199 * d[1], 0.4886025119029199 * d[2], -0.4886025119029199 * d[0]};
            for (int c = 0; c < 3 && coefficients <= 4; ++c) {
                double sum = 0.5;
                for (int k = 0; k < coefficients; ++k) sum += basis[k] * sh[static_cast<size_t>(3 * k + c) * n + i];
                CHECK(std::fabs(colours.channel(c)[i] - std::max(sum, 0.0)) < 1e-5, "colour %zu: %g, not %g", i, colours.channel(c)[i], sum);
            }
        }
    }
    CHECK(refuses([&] { SplatColours(cloud.scene.mean, n, sh.data(), 5); }), "5 coefficients");

    std::fill(sh.begin(), sh.end(), 3e38f);  // together more than there is
    ThreadPool pool(threads);
    SplatColours bright(cloud.scene.mean, n, sh.data(), 16);
    const float eye[3] = {4.0f, -3.0f, 5.0f};
    bright.refresh(eye, 0, {{0, n}}, pool);
    for (size_t i = 0; i < 3 * n; ++i) {
        const float value = bright.channel(0)[i];
        CHECK(value >= 0.0f && value <= kMostColour, "colour %g", value);
    }
}

void test_refusals() {
    const Cloud cloud(10, false);
    const auto refused = [&](SplatCamera camera, SplatOptions options, std::vector<SplatRange> ranges) {
        SplatRenderer renderer(1);
        std::vector<float> image(3 * 16 * 16);
        return refuses([&] { renderer.render({{{&cloud.scene, ranges}, nullptr}}, camera, options, image.data(), nullptr); });
    };
    const SplatCamera good = camera_of(16, 16);
    SplatCamera c = good;
    CHECK(!refused(good, {}, {{0, 10}}), "a good camera");
    c.width = 0;
    CHECK(refused(c, {}, {}), "width 0");
    c.width = 16385;
    CHECK(refused(c, {}, {}), "width 16385");
    c = good;
    c.fx = std::nanf("");
    CHECK(refused(c, {}, {}), "focal length NaN");
    c = good;
    c.near_plane = 0;
    CHECK(refused(c, {}, {}), "near plane 0");
    CHECK(refused(good, {}, {{0, 11}}), "a range past the end");
    CHECK(refused(good, {}, {{5, 4}}), "a range backwards");
    CHECK(refused(good, {}, {{0, 6}, {5, 7}}), "ranges that overlap");
    SplatOptions o;
    o.least_weight = 1;
    CHECK(refused(good, o, {}), "least weight 1");
    o = {};
    o.most_pairs = 0;
    CHECK(refused(good, o, {}), "most pairs 0");
}

}  // namespace

int main() {
    for (const int threads : {1, 2, 5}) {
        for (int kind = 0; kind < 4; ++kind) {
            for (const size_t n : {size_t{0}, size_t{1}, size_t{2}, size_t{17}, size_t{3000}, size_t{40000}}) test_order(n, kind, threads);
        }
        test_colours(threads);
    }
    test_refusals();
    const Cloud still(3000, false), none(0, false), many(12000, false);  // so many that threads list parts of the order
    Cloud moving(3000, true), few(300, true);
    const int sizes[][2] = {{1, 1}, {7, 3}, {8, 8}, {9, 33}, {16, 16}, {17, 15}, {64, 48}, {100, 7}, {161, 121}};
    for (const char * set : {"scalar", "avx2", "avx512", "neon"}) {
        if (!kernels_select(set)) {
            std::printf("%-7s not available here\n", set);
            continue;
        }
        test_footprint();
        test_projection(set, still, options_at(0));
        test_projection(set, moving, options_at(1.0f));
        for (const auto & size : sizes) {
            test_set(set, still, camera_of(size[0], size[1]), options_at(0));
            test_set(set, moving, camera_of(size[0], size[1]), options_at(1.0f));
            test_set(set, none, camera_of(size[0], size[1]), options_at(0));
            test_set(set, still, camera_of(size[0], size[1], 0.3f), options_at(0));  // inside the cloud
        }
        test_same(still, camera_of(161, 121), options_at(0));
        test_same(many, camera_of(161, 121), options_at(0));
        test_same(moving, camera_of(64, 48, 0.3f), options_at(1.0f));
        test_gradient(set, few, camera_of(61, 47), options_at(1.0f));
        test_gradient(set, few, camera_of(61, 47, 0.3f), options_at(0.7f));
        std::printf("%-7s tested\n", set);
    }
    return report_checks();
}
