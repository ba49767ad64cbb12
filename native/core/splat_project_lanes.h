// Eight splats at a time from the scene to the screen: project_scalar() in splat_project.cpp, where the
// formulas are explained, with any set of vector instructions. Included like splat_kernels_lanes.h, whose
// rules hold here, too.

namespace penstock {
namespace {

constexpr size_t kTogether = 8;

// Eight floats of an array of which `there` are left, from 1 up; zeros behind its end.
inline Lanes load_some(const float * from, size_t there) {
    if (there >= kTogether) return load_anywhere(from);
    alignas(32) float room[kTogether] = {};
    for (size_t k = 0; k < there; ++k) room[k] = from[k];
    return load(room);
}

// Whether pixels of 0..size have their middles in [low, high], and the first and the last of them.
inline Mask pixels_in(Lanes low, Lanes high, int size, Lanes & first, Lanes & last) {
    const Lanes zero = all(0.0f), half = all(0.5f), most = all(static_cast<float>(size - 1));
    high = high - half;
    low = low - half;
    first = max(round_up(low), zero);
    last = min(round_down(high), most);
    return both(both(at_most(zero, high), at_most(low, most)), at_most(first, last));  // NaN is in none
}

inline Lanes dot(const Lanes a[3], Lanes x, Lanes y, Lanes z) { return fma(a[2], z, fma(a[1], y, a[0] * x)); }

size_t project(const ProjectJob & job) {
    const SplatScene & s = job.scene;
    const SplatCamera & camera = job.camera;
    const SplatLens & lens = job.lens;
    const Lanes zero = all(0.0f), one = all(1.0f), low_pass = all(job.low_pass), log2_e_half = all(0.5f * kLog2E);
    Lanes row[3][3];
    for (int k = 0; k < 9; ++k) row[k / 3][k % 3] = all(camera.rotation[k]);
    const bool moves = s.t_center != nullptr;
    // What is written of each splat: the numbers of Footprint2d, depth, and its pixels' bounds.
    constexpr int kNumbers = 11;
    alignas(32) float numbers[kNumbers][kTogether];
    alignas(32) int32_t bounds[4][kTogether];
    size_t n = 0;
    for (size_t i = job.begin; i < job.end; i += kTogether) {
        const size_t there = job.end - i;
        const auto of = [&](const float * array) { return load_some(array + i, there); };
        int seen = there >= kTogether ? (1 << kTogether) - 1 : (1 << there) - 1;
        Lanes fade = all(-kLog2E) * of(s.log_opacity);
        Lanes world[3] = {of(s.mean[0]), of(s.mean[1]), of(s.mean[2])};
        if (moves) {
            const Lanes dt = all(job.time) - of(s.t_center);
            const Lanes u = dt / of(s.t_sigma), u2 = u * u;
            seen &= bits(below(u2, all(job.most_u2)));
            if (seen == 0) continue;
            fade = fma(log2_e_half, u2, fade);
            for (int k = 0; k < 3; ++k) world[k] = fma(of(s.velocity[k]), dt, world[k]);
        }
        seen &= bits(at_most(fade, all(kMostFade)));
        fade = max(fade, zero);
        const Lanes z = dot(row[2], world[0], world[1], world[2]) + all(camera.translation[2]);
        seen &= bits(both(below(all(camera.near_plane), z), below(z, all(kFar))));
        if (seen == 0) continue;
        const Lanes x = dot(row[0], world[0], world[1], world[2]) + all(camera.translation[0]);
        const Lanes y = dot(row[1], world[0], world[1], world[2]) + all(camera.translation[1]);
        const Lanes inverse = one / z;
        const Lanes px = fma(all(camera.fx) * x, inverse, all(camera.cx)), py = fma(all(camera.fy) * y, inverse, all(camera.cy));

        const Lanes tx = min(all(lens.x_high), max(all(lens.x_low), x * inverse));
        const Lanes ty = min(all(lens.y_high), max(all(lens.y_low), y * inverse));
        const Lanes jx = all(lens.fx) * inverse, jy = all(lens.fy) * inverse;
        Lanes p[3], q[3];
        for (int k = 0; k < 3; ++k) {
            p[k] = jx * (row[0][k] - tx * row[2][k]);
            q[k] = jy * (row[1][k] - ty * row[2][k]);
        }
        const Lanes xx = of(s.covariance[0]), xy = of(s.covariance[1]), xz = of(s.covariance[2]);
        const Lanes yy = of(s.covariance[3]), yz = of(s.covariance[4]), zz = of(s.covariance[5]);
        const Lanes sharp_a = dot(p, dot(p, xx, xy, xz), dot(p, xy, yy, yz), dot(p, xz, yz, zz));
        const Lanes v0 = dot(q, xx, xy, xz), v1 = dot(q, xy, yy, yz), v2 = dot(q, xz, yz, zz);
        const Lanes b = dot(p, v0, v1, v2), sharp_c = dot(q, v0, v1, v2);
        const Lanes a = sharp_a + low_pass, c = sharp_c + low_pass;
        // As exact as in double: b b and its rounding error are taken away apart (Kahan).
        const Lanes square = b * b;
        const Lanes thin = fma(sharp_a, sharp_c, zero - square) + fma(zero - b, b, square);
        const Lanes det = fma(low_pass, sharp_a + sharp_c + low_pass, max(thin, zero));
        seen &= bits(both(both(below(all(kLeastDeterminant), det), below(det, all(kMostDeterminant))), both(below(zero, a), below(zero, c))));

        const Lanes room = all(2.0f / kLog2E) * (all(kMostFade) - fade);
        const Lanes reach_x = sqrt(room * a), reach_y = sqrt(room * c);
        Lanes left, right, top, bottom;
        const Mask across = pixels_in(px - reach_x, px + reach_x, camera.width, left, right);
        const Mask down = pixels_in(py - reach_y, py + reach_y, camera.height, top, bottom);
        seen &= bits(both(across, down));
        if (seen == 0) continue;

        const Lanes flat = log2_e_half * c, one_by_c = one / c;
        const Lanes found[kNumbers] = {px, py, b * one_by_c, flat / det, log2_e_half * one_by_c, det / flat, fade,
                                       of(s.colour[0]), of(s.colour[1]), of(s.colour[2]), z};
        for (int k = 0; k < kNumbers; ++k) store(numbers[k], found[k]);
        const Lanes tile = all(1.0f / kTile), edges[4] = {left, right, top, bottom};
        for (int k = 0; k < 4; ++k) store_whole(bounds[k], edges[k] * tile);
        for (; seen != 0; seen &= seen - 1, ++n) {
            const int k = __builtin_ctz(static_cast<unsigned>(seen));
            job.out.footprints[n] = {numbers[0][k], numbers[1][k], numbers[2][k], numbers[3][k], numbers[4][k], numbers[5][k],
                                     numbers[6][k], numbers[7][k], numbers[8][k], numbers[9][k],
                                     job.first_index + static_cast<uint32_t>(i) + static_cast<uint32_t>(k)};
            job.out.depth[n] = numbers[10][k];
            job.out.rects[n] = {static_cast<uint16_t>(bounds[0][k]), static_cast<uint16_t>(bounds[1][k] + 1),
                                static_cast<uint16_t>(bounds[2][k]), static_cast<uint16_t>(bounds[3][k] + 1)};
        }
    }
    return n;
}

}  // namespace
}  // namespace penstock
