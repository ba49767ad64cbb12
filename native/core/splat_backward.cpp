#include "splat_backward.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "splat_project.h"

namespace penstock {
namespace {

using Sums = SplatBackward::Sums;

double dot(const double a[3], const double b[3]) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

// From one footprint's numbers to its splat's: project_splats() backwards, in double.
void chain(const SplatScene & s, const SplatCamera & camera, const SplatOptions & options, const SplatLens & lens,
           const Footprint2d & f, const Sums & g, const SplatGradients & out) {
    const size_t i = f.index;
    const bool moves = s.t_center != nullptr;
    const double dt = moves ? static_cast<double>(options.time) - s.t_center[i] : 0.0;
    double row[3][3], mean[3], velocity[3] = {0, 0, 0}, at[3];  // of the rotation; world; camera
    for (int k = 0; k < 3; ++k) {
        for (int j = 0; j < 3; ++j) row[k][j] = camera.rotation[3 * k + j];
        if (moves) velocity[k] = s.velocity[k][i];
        mean[k] = s.mean[k][i] + velocity[k] * dt;
    }
    for (int k = 0; k < 3; ++k) at[k] = dot(row[k], mean) + camera.translation[k];
    const double inverse = 1.0 / at[2];
    const double slope_x = at[0] * inverse, slope_y = at[1] * inverse;
    const double tx = std::clamp<double>(slope_x, lens.x_low, lens.x_high), ty = std::clamp<double>(slope_y, lens.y_low, lens.y_high);
    const double jx = lens.fx * inverse, jy = lens.fy * inverse;

    // T's rows p = jx (row 0 - tx row 2) and q = jy (row 1 - ty row 2), and S p and S q.
    double p_unit[3], q_unit[3], p[3], q[3], sp[3], sq[3];
    for (int k = 0; k < 3; ++k) {
        p_unit[k] = row[0][k] - tx * row[2][k];
        q_unit[k] = row[1][k] - ty * row[2][k];
        p[k] = jx * p_unit[k];
        q[k] = jy * q_unit[k];
    }
    const double xx = s.covariance[0][i], xy = s.covariance[1][i], xz = s.covariance[2][i];
    const double yy = s.covariance[3][i], yz = s.covariance[4][i], zz = s.covariance[5][i];
    const double rows[3][3] = {{xx, xy, xz}, {xy, yy, yz}, {xz, yz, zz}};
    for (int k = 0; k < 3; ++k) {
        sp[k] = dot(rows[k], p);
        sq[k] = dot(rows[k], q);
    }
    const double low_pass = options.low_pass;
    const double sharp_a = dot(p, sp), b = dot(q, sp), sharp_c = dot(q, sq);
    const double a = sharp_a + low_pass, c = sharp_c + low_pass;
    const double det = std::max(sharp_a * sharp_c - b * b, 0.0) + low_pass * (sharp_a + sharp_c + low_pass);

    // The footprint's numbers are c / 2, -b and a / 2 over the determinant a c - b b.
    const double scale = 1.0 / (det * det);
    const double d_a = scale * (-0.5 * c * c * g.a + b * c * g.b - 0.5 * b * b * g.c);
    const double d_b = scale * (b * c * g.a - (a * c + b * b) * g.b + a * b * g.c);
    const double d_c = scale * (-0.5 * b * b * g.a + a * b * g.b - 0.5 * a * a * g.c);

    // a = p S p, b = q S p, c = q S q, by S and by T's rows.
    const int first[6] = {0, 0, 0, 1, 1, 2}, second[6] = {0, 1, 2, 1, 2, 2};
    for (int k = 0; k < 6; ++k) {
        const int u = first[k], v = second[k];
        const double both = u == v ? 1.0 : 2.0;
        const double cross = u == v ? p[u] * q[u] : p[u] * q[v] + p[v] * q[u];
        out.covariance[k][i] = static_cast<float>(both * d_a * p[u] * p[v] + d_b * cross + both * d_c * q[u] * q[v]);
    }
    double d_p[3], d_q[3];
    for (int k = 0; k < 3; ++k) {
        d_p[k] = 2.0 * d_a * sp[k] + d_b * sq[k];
        d_q[k] = 2.0 * d_c * sq[k] + d_b * sp[k];
    }

    // By the point in the camera's frame: through the middle of the footprint, and through T.
    double d_inverse = g.x * camera.fx * at[0] + g.y * camera.fy * at[1] + dot(d_p, p_unit) * lens.fx + dot(d_q, q_unit) * lens.fy;
    double d_at[3] = {g.x * camera.fx * inverse, g.y * camera.fy * inverse, 0.0};
    if (slope_x > lens.x_low && slope_x < lens.x_high) {
        const double d_tx = -jx * dot(d_p, row[2]);
        d_at[0] += d_tx * inverse;
        d_inverse += d_tx * at[0];
    }
    if (slope_y > lens.y_low && slope_y < lens.y_high) {
        const double d_ty = -jy * dot(d_q, row[2]);
        d_at[1] += d_ty * inverse;
        d_inverse += d_ty * at[1];
    }
    d_at[2] = -inverse * inverse * d_inverse;
    double d_mean[3];
    for (int k = 0; k < 3; ++k) {
        d_mean[k] = row[0][k] * d_at[0] + row[1][k] * d_at[1] + row[2][k] * d_at[2];
        out.mean[k][i] = static_cast<float>(d_mean[k]);
    }

    out.colour[0][i] = static_cast<float>(g.red);
    out.colour[1][i] = static_cast<float>(g.green);
    out.colour[2][i] = static_cast<float>(g.blue);
    out.opacity[i] = static_cast<float>(-g.fade / std::exp(static_cast<double>(s.log_opacity[i])));
    out.mean_2d[0][i] = static_cast<float>(g.x);
    out.mean_2d[1][i] = static_cast<float>(g.y);
    out.weight[i] = static_cast<float>(g.weight);
    if (moves) {  // fade has u^2 / 2 in it, u = (time - t_center) / t_sigma
        const double sigma = s.t_sigma[i], u = dt / sigma;
        for (int k = 0; k < 3; ++k) out.velocity[k][i] = static_cast<float>(d_mean[k] * dt);
        out.t_center[i] = static_cast<float>(-g.fade * u / sigma - dot(d_mean, velocity));
        out.t_sigma[i] = static_cast<float>(-g.fade * u * u / sigma);
    }
}

// How many of a rectangle's tiles, row by row, come before this one.
size_t rank(const TileRect & r, size_t tile, size_t tiles_x) {
    const size_t x = tile % tiles_x, y = tile / tiles_x;
    const size_t wide = size_t{r.x1} - r.x0;
    if (y < r.y0) return 0;
    if (y >= r.y1) return wide * (size_t{r.y1} - r.y0);
    return (y - r.y0) * wide + (std::clamp<size_t>(x, r.x0, r.x1) - r.x0);
}

void clear(float * array, size_t count) {
    if (count != 0) std::memset(array, 0, count * sizeof(float));
}

}  // namespace

void SplatBackward::run(SplatTiles & tiles, const SplatScene & scene, const SplatCamera & camera,
                        const SplatOptions & options, const float * image_gradient, const SplatGradients & out) {
    for (int k = 0; k < 3; ++k) {
        clear(out.colour[k], scene.count);
        clear(out.mean[k], scene.count);
        if (scene.t_center != nullptr) clear(out.velocity[k], scene.count);
    }
    for (float * array : out.covariance) clear(array, scene.count);
    for (float * array : {out.opacity, out.weight, out.mean_2d[0], out.mean_2d[1]}) clear(array, scene.count);
    if (scene.t_center != nullptr) {
        clear(out.t_center, scene.count);
        clear(out.t_sigma, scene.count);
    }
    sums_.need(tiles.places());
    offset_.need(tiles.places());
    for (size_t place = 0; place < tiles.places(); ++place) sums_[place] = Sums{};
    for (const TileBand band : tiles.bands()) {
        tiles.fill(band);
        tile_gradients(tiles, band, camera, options, image_gradient);
        add_up(tiles, band);
    }
    const SplatLens lens = splat_lens(camera, options.lens);
    const std::vector<SplatChunk> & chunks = tiles.chunks();
    pool_.run(chunks.size(), 1, [&](size_t first, size_t last) {
        for (size_t c = first; c < last; ++c) {
            for (size_t place = chunks[c].place; place < chunks[c].place + chunks[c].visible; ++place) {
                chain(scene, camera, options, lens, tiles.footprint(place), sums_[place], out);
            }
        }
    });
}

void SplatBackward::tile_gradients(SplatTiles & tiles, TileBand band, const SplatCamera & camera,
                                   const SplatOptions & options, const float * image_gradient) {
    const size_t wide = static_cast<size_t>(tiles.tiles_x());
    size_t pairs = 0;  // fits in 32 bits, as the band's list does
    for (const SplatChunk & chunk : tiles.chunks()) {
        for (size_t place = chunk.place; place < chunk.place + chunk.visible; ++place) {
            const TileRect & r = tiles.rect(place);
            offset_[place] = static_cast<uint32_t>(pairs);
            pairs += rank(r, band.last, wide) - rank(r, band.first, wide);
        }
    }
    gradients_.need(pairs);
    pair_.need(pairs);
    const SplatKernels & kernels = splat_kernels();
    std::atomic<size_t> next{band.first};
    pool_.run(static_cast<size_t>(pool_.threads()), 1, [&](size_t, size_t) {
        for (size_t at = next.fetch_add(1); at < band.last; at = next.fetch_add(1)) {
            const TileSplats tile = tiles.tile(at);
            const size_t start = tiles.start(at);
            kernels.gradient(TileGradientJob{tile,
                                             {options.background[0], options.background[1], options.background[2]},
                                             image_gradient,
                                             static_cast<size_t>(camera.width),
                                             gradients_.data() + start});
            for (size_t k = 0; k < tile.count; ++k) {
                const TileRect & r = tiles.rect(tile.order[k]);
                const size_t slot = offset_[tile.order[k]] + rank(r, at, wide) - rank(r, band.first, wide);
                pair_[slot] = static_cast<uint32_t>(start + k);
            }
        }
    });
}

void SplatBackward::add_up(const SplatTiles & tiles, TileBand band) {
    const size_t wide = static_cast<size_t>(tiles.tiles_x());
    const std::vector<SplatChunk> & chunks = tiles.chunks();
    pool_.run(chunks.size(), 1, [&](size_t first, size_t last) {
        for (size_t c = first; c < last; ++c) {
            for (size_t place = chunks[c].place; place < chunks[c].place + chunks[c].visible; ++place) {
                const TileRect & r = tiles.rect(place);
                const size_t pairs = rank(r, band.last, wide) - rank(r, band.first, wide);
                Sums & sum = sums_[place];
                for (size_t k = 0; k < pairs; ++k) {
                    const FootprintGradient & g = gradients_[pair_[offset_[place] + k]];
                    sum.x += g.x;
                    sum.y += g.y;
                    sum.a += g.a;
                    sum.b += g.b;
                    sum.c += g.c;
                    sum.fade += g.fade;
                    sum.red += g.red;
                    sum.green += g.green;
                    sum.blue += g.blue;
                    sum.weight += g.weight;
                }
            }
        }
    });
}

}  // namespace penstock
