// EWA projection (Zwicker et al. 2001), with bounds that follow each splat's opacity.
//
// A splat is drawn where alpha exp(-d/2) is 1/255 or more, so d goes up to 2 ln(255 alpha) and the
// ellipse's box has half sides sqrt(d * variance): a third to a half fewer tiles than three sigmas.
// Opacity comes as its logarithm: no exponential is raised before a pixel asks for it.
#include "splat_project.h"

#include <algorithm>
#include <cmath>

namespace penstock {
namespace {

// Pixels of 0..size whose middles are in [low, high]; false where there are none, or one is NaN.
bool pixels(float low, float high, int size, int & first, int & last) {
    const float most = static_cast<float>(size - 1);
    low -= 0.5f;
    high -= 0.5f;
    if (!(high >= 0.0f && low <= most)) return false;
    first = low > 0.0f ? static_cast<int>(low) : 0;
    if (static_cast<float>(first) < low) ++first;
    last = high < most ? static_cast<int>(high) : size - 1;
    return first <= last;
}

}  // namespace

SplatLens splat_lens(const SplatCamera & camera, FootprintLens lens) {
    const float w = static_cast<float>(camera.width), h = static_cast<float>(camera.height);
    if (lens == FootprintLens::omg4_sentinel) {
        // tan(-1/2) is negative: the clamp's lower bound lies over its upper one, and min(max()) ends
        // at 1.3 tan(-1/2) for every splat; focal = size / (2 tan(-1/2)), whose sign cancels in J S J^T.
        const float tangent = std::tan(0.5f);
        const float at = -1.3f * tangent;
        return {w / (2 * tangent), h / (2 * tangent), at, at, at, at};
    }
    const float tan_x = w / (2 * camera.fx), tan_y = h / (2 * camera.fy);
    // Around the principal point, so that a crop of an image clamps no differently than the image.
    const float mid_x = (w / 2 - camera.cx) / camera.fx, mid_y = (h / 2 - camera.cy) / camera.fy;
    return {camera.fx, camera.fy,
            mid_x - 1.3f * tan_x, mid_x + 1.3f * tan_x, mid_y - 1.3f * tan_y, mid_y + 1.3f * tan_y};
}

size_t project_splats(const SplatScene & scene, const SplatCamera & camera, const SplatOptions & options,
                      size_t begin, size_t end, uint32_t first_index, const SplatVisible & out) {
    const float most_u2 = -2.0f * std::log(options.least_weight);  // weight = exp(-u^2 / 2)
    return splat_kernels().project(ProjectJob{scene, camera, splat_lens(camera, options.lens), options.time,
                                              options.low_pass, most_u2, begin, end, first_index, out});
}

size_t project_scalar(const ProjectJob & job) {
    const SplatScene & s = job.scene;
    const SplatCamera & camera = job.camera;
    const SplatLens & lens = job.lens;
    const float * r = camera.rotation;
    const bool moves = s.t_center != nullptr;
    size_t n = 0;
    for (size_t i = job.begin; i < job.end; ++i) {
        float fade = -kLog2E * s.log_opacity[i];
        float wx = s.mean[0][i], wy = s.mean[1][i], wz = s.mean[2][i];
        if (moves) {
            const float dt = job.time - s.t_center[i];
            const float u = dt / s.t_sigma[i];
            if (!(u * u < job.most_u2)) continue;
            fade += 0.5f * kLog2E * u * u;
            wx += s.velocity[0][i] * dt;
            wy += s.velocity[1][i] * dt;
            wz += s.velocity[2][i] * dt;
        }
        if (!(fade <= kMostFade)) continue;  // NaN goes here, too
        fade = std::max(fade, 0.0f);
        const float z = r[6] * wx + r[7] * wy + r[8] * wz + camera.translation[2];
        if (!(z > camera.near_plane && z < kFar)) continue;
        const float x = r[0] * wx + r[1] * wy + r[2] * wz + camera.translation[0];
        const float y = r[3] * wx + r[4] * wy + r[5] * wz + camera.translation[1];
        const float inverse = 1.0f / z;
        const float px = camera.fx * x * inverse + camera.cx;
        const float py = camera.fy * y * inverse + camera.cy;

        // T = J R, two rows p and q; the footprint's covariance (a b, b c) is T S T^T.
        const float tx = std::min(lens.x_high, std::max(lens.x_low, x * inverse));
        const float ty = std::min(lens.y_high, std::max(lens.y_low, y * inverse));
        const float jx = lens.fx * inverse, jy = lens.fy * inverse;
        const float p0 = jx * (r[0] - tx * r[6]), p1 = jx * (r[1] - tx * r[7]), p2 = jx * (r[2] - tx * r[8]);
        const float q0 = jy * (r[3] - ty * r[6]), q1 = jy * (r[4] - ty * r[7]), q2 = jy * (r[5] - ty * r[8]);
        const float xx = s.covariance[0][i], xy = s.covariance[1][i], xz = s.covariance[2][i];
        const float yy = s.covariance[3][i], yz = s.covariance[4][i], zz = s.covariance[5][i];
        const float u0 = xx * p0 + xy * p1 + xz * p2, u1 = xy * p0 + yy * p1 + yz * p2, u2 = xz * p0 + yz * p1 + zz * p2;
        const float v0 = xx * q0 + xy * q1 + xz * q2, v1 = xy * q0 + yy * q1 + yz * q2, v2 = xz * q0 + yz * q1 + zz * q2;
        const float sharp_a = p0 * u0 + p1 * u1 + p2 * u2;
        const float b = q0 * u0 + q1 * u1 + q2 * u2;
        const float sharp_c = q0 * v0 + q1 * v1 + q2 * v2;
        const float a = sharp_a + job.low_pass, c = sharp_c + job.low_pass;
        // The determinant of a long, thin ellipse is a small difference of large products: in double.
        // Before the low pass it is 0 at least, and the low pass then adds what rounding cannot take.
        const double thin = static_cast<double>(sharp_a) * sharp_c - static_cast<double>(b) * b;
        const float det = static_cast<float>(std::max(thin, 0.0) + static_cast<double>(job.low_pass) * (sharp_a + sharp_c + job.low_pass));
        if (!(det > kLeastDeterminant && det < kMostDeterminant && a > 0.0f && c > 0.0f)) continue;

        const float room = 2.0f / kLog2E * (kMostFade - fade);
        const float reach_x = std::sqrt(room * a), reach_y = std::sqrt(room * c);
        int left, right, top, bottom;
        if (!pixels(px - reach_x, px + reach_x, camera.width, left, right)) continue;
        if (!pixels(py - reach_y, py + reach_y, camera.height, top, bottom)) continue;

        const float flat = 0.5f * kLog2E * c, one_by_c = 1.0f / c;
        job.out.footprints[n] = {px, py, b * one_by_c, flat / det, 0.5f * kLog2E * one_by_c, det / flat, fade,
                          s.colour[0][i], s.colour[1][i], s.colour[2][i], job.first_index + static_cast<uint32_t>(i)};
        job.out.depth[n] = z;
        job.out.rects[n] = {static_cast<uint16_t>(left / kTile), static_cast<uint16_t>(right / kTile + 1),
                            static_cast<uint16_t>(top / kTile), static_cast<uint16_t>(bottom / kTile + 1)};
        ++n;
    }
    return n;
}

}  // namespace penstock
