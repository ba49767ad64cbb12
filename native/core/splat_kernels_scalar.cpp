// A tile one pixel at a time, each pixel through all of the tile's splats: the oracle of the other
// sets, and what runs where none of them does.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "splat_kernels.h"
#include "splat_project.h"

namespace penstock {
namespace {

// What a pixel takes of one splat.
struct Taken {
    size_t k;              // in the tile's order
    const Footprint2d & f;
    float dx, dy;          // from the splat's middle
    float raw;             // alpha before it is clipped
    float alpha, before;   // before: transmittance in front of the splat
};

// Visits what a pixel takes, front to back; returns the transmittance that is left.
template <typename Visit>
float walk(const TileSplats & tile, int x, int y, Visit && visit) {
    const float px = static_cast<float>(x) + 0.5f, py = static_cast<float>(y) + 0.5f;
    float left = 1.0f;
    for (size_t k = 0; k < tile.count; ++k) {
        const Footprint2d & f = tile.splats[tile.order[k]];
        const float dx = px - f.x, dy = py - f.y;
        const float u = dx - f.slope * dy;
        const float q = f.a * u * u + f.k * dy * dy + f.fade;
        if (!(q <= kMostFade)) continue;  // NaN goes here, too
        const float raw = std::exp2(-q);
        const float alpha = std::min(kMostAlpha, raw);
        const float after = left - alpha * left;
        if (after < kLeastTransmittance) break;
        visit(Taken{k, f, dx, dy, raw, alpha, left});
        left = after;
    }
    return left;
}

void blend(const TileJob & job) {
    const TileSplats & tile = job.tile;
    for (int y = tile.y0; y < tile.y1; ++y) {
        for (int x = tile.x0; x < tile.x1; ++x) {
            float red = 0.0f, green = 0.0f, blue = 0.0f;
            const float left = walk(tile, x, y, [&](const Taken & t) {
                const float weight = t.alpha * t.before;
                red += weight * t.f.red;
                green += weight * t.f.green;
                blue += weight * t.f.blue;
            });
            const size_t at = static_cast<size_t>(y) * job.width + static_cast<size_t>(x);
            float * pixel = job.image + at * 3;
            pixel[0] = red + left * job.background[0];
            pixel[1] = green + left * job.background[1];
            pixel[2] = blue + left * job.background[2];
            if (job.rest != nullptr) job.rest[at] = left;
        }
    }
}

// A pixel's colour is the sum of w_k c_k and the rest of the background. With g the loss's gradient by
// the pixel and `behind` the part of (colour . g) that lies behind splat k,
//     d loss / d alpha_k = T_k (c_k . g) - behind / (1 - alpha_k),
// so two walks front to back do: the first sums (colour . g), the second takes away as it goes.
void gradient(const TileGradientJob & job) {
    const TileSplats & tile = job.tile;
    if (tile.count != 0) std::memset(job.out, 0, tile.count * sizeof(FootprintGradient));
    for (int y = tile.y0; y < tile.y1; ++y) {
        for (int x = tile.x0; x < tile.x1; ++x) {
            const float * g = job.gradient + (static_cast<size_t>(y) * job.width + static_cast<size_t>(x)) * 3;
            const auto along = [g](const Footprint2d & f) { return g[0] * f.red + g[1] * f.green + g[2] * f.blue; };
            float behind = 0.0f;
            const float left = walk(tile, x, y, [&](const Taken & t) { behind += t.alpha * t.before * along(t.f); });
            behind += left * (g[0] * job.background[0] + g[1] * job.background[1] + g[2] * job.background[2]);
            walk(tile, x, y, [&](const Taken & t) {
                FootprintGradient & out = job.out[t.k];
                const float weight = t.alpha * t.before, towards = along(t.f);
                out.red += weight * g[0];
                out.green += weight * g[1];
                out.blue += weight * g[2];
                out.weight += weight;
                behind -= weight * towards;
                if (!(t.raw < kMostAlpha)) return;
                const float d_alpha = t.before * towards - behind / (1.0f - t.alpha);
                const float d_q = -t.alpha * d_alpha;
                out.fade += d_q;
                out.a += d_q * t.dx * t.dx;
                out.b += d_q * t.dx * t.dy;
                out.c += d_q * t.dy * t.dy;
                const float by_u = 2.0f / kLog2E * t.f.a * (t.dx - t.f.slope * t.dy);
                out.x -= d_q * by_u;
                out.y -= d_q * (2.0f / kLog2E * t.f.k * t.dy - t.f.slope * by_u);
            });
        }
    }
}

}  // namespace

const SplatKernels & splat_kernels_scalar() {
    static const SplatKernels set = {"scalar", project_scalar, blend, gradient};
    return set;
}

}  // namespace penstock
