// The baseline of the rendering benchmark: what a first CPU renderer of splats looks like.
//
// One thread, one splat after the other: project all, std::sort by depth, then for each splat every
// pixel of the square of three standard deviations around its middle, in scalar float arithmetic.
// Same formulas and cuts as INRIA's: + 0.3 pixels squared, alpha to 0.99, cut at 1/255, a pixel ends
// where less than 1e-4 is left. No tiles, no SIMD by hand; the compiler may do what it can.
//
// With CUT defined, and for a second figure only: what a person would do to it in an afternoon. A
// pixel in which alpha will be under 1/255 is left before its exponential is taken.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

namespace {

#ifdef CUT
constexpr bool CUTS = true;
#else
constexpr bool CUTS = false;
#endif

struct Projected {
    float x, y, depth, a, b, c, alpha, least, red, green, blue;  // least: power where alpha is 1/255
    int radius;
};

}  // namespace

// means (n, 3), covariances (n, 6: xx xy xz yy yz zz), opacities (n), colours (n, 3); rotation (3, 3)
// and translation (3) take the world to the camera; lens: fx, fy, cx, cy; image (height, width, 3).
extern "C" void draw(size_t n, const float * means, const float * covariances, const float * opacities,
                     const float * colours, const float * rotation, const float * translation,
                     const float * lens, float near_plane, int width, int height, float * image) {
    const float * r = rotation;
    const float fx = lens[0], fy = lens[1], cx = lens[2], cy = lens[3];
    const float mid_x = (width / 2.0f - cx) / fx, most_x = 1.3f * width / (2 * fx);
    const float mid_y = (height / 2.0f - cy) / fy, most_y = 1.3f * height / (2 * fy);
    std::vector<Projected> found;
    found.reserve(n);
    for (size_t i = 0; i < n; ++i) {
        const float * m = means + 3 * i;
        const float z = r[6] * m[0] + r[7] * m[1] + r[8] * m[2] + translation[2];
        if (!(z > near_plane)) continue;
        const float x = r[0] * m[0] + r[1] * m[1] + r[2] * m[2] + translation[0];
        const float y = r[3] * m[0] + r[4] * m[1] + r[5] * m[2] + translation[1];
        const float tx = std::clamp(x / z, mid_x - most_x, mid_x + most_x);
        const float ty = std::clamp(y / z, mid_y - most_y, mid_y + most_y);
        float t0[3], t1[3];
        for (int k = 0; k < 3; ++k) {
            t0[k] = fx / z * (r[k] - tx * r[6 + k]);
            t1[k] = fy / z * (r[3 + k] - ty * r[6 + k]);
        }
        const float * s = covariances + 6 * i;
        const float u0 = s[0] * t0[0] + s[1] * t0[1] + s[2] * t0[2];
        const float u1 = s[1] * t0[0] + s[3] * t0[1] + s[4] * t0[2];
        const float u2 = s[2] * t0[0] + s[4] * t0[1] + s[5] * t0[2];
        const float v0 = s[0] * t1[0] + s[1] * t1[1] + s[2] * t1[2];
        const float v1 = s[1] * t1[0] + s[3] * t1[1] + s[4] * t1[2];
        const float v2 = s[2] * t1[0] + s[4] * t1[1] + s[5] * t1[2];
        const float xx = t0[0] * u0 + t0[1] * u1 + t0[2] * u2 + 0.3f;
        const float xy = t1[0] * u0 + t1[1] * u1 + t1[2] * u2;
        const float yy = t1[0] * v0 + t1[1] * v1 + t1[2] * v2 + 0.3f;
        const float det = xx * yy - xy * xy;
        if (!(det > 0)) continue;
        const float middle = 0.5f * (xx + yy);
        const float largest = middle + std::sqrt(std::max(0.1f, middle * middle - det));
        Projected p;
        p.x = fx * x / z + cx;
        p.y = fy * y / z + cy;
        p.depth = z;
        p.a = yy / det;
        p.b = -xy / det;
        p.c = xx / det;
        p.alpha = opacities[i];
        p.least = CUTS ? -std::log(255 * p.alpha) : 0.0f;
        p.red = colours[3 * i];
        p.green = colours[3 * i + 1];
        p.blue = colours[3 * i + 2];
        p.radius = static_cast<int>(std::min(1e6f, std::ceil(3 * std::sqrt(largest))));
        found.push_back(p);
    }
    std::vector<uint32_t> order(found.size());
    std::iota(order.begin(), order.end(), 0u);
    std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return found[a].depth < found[b].depth; });

    const size_t pixels = static_cast<size_t>(width) * static_cast<size_t>(height);
    std::vector<float> left(pixels, 1.0f);
    std::vector<uint8_t> done(pixels, 0);
    std::fill(image, image + 3 * pixels, 0.0f);
    for (uint32_t at : order) {
        const Projected & p = found[at];
        const int x0 = static_cast<int>(std::clamp(p.x - p.radius, 0.0f, static_cast<float>(width)));
        const int x1 = static_cast<int>(std::clamp(p.x + p.radius + 1, 0.0f, static_cast<float>(width)));
        const int y0 = static_cast<int>(std::clamp(p.y - p.radius, 0.0f, static_cast<float>(height)));
        const int y1 = static_cast<int>(std::clamp(p.y + p.radius + 1, 0.0f, static_cast<float>(height)));
        for (int y = y0; y < y1; ++y) {
            for (int x = x0; x < x1; ++x) {
                const size_t to = static_cast<size_t>(y) * static_cast<size_t>(width) + static_cast<size_t>(x);
                if (done[to]) continue;
                const float dx = static_cast<float>(x) + 0.5f - p.x, dy = static_cast<float>(y) + 0.5f - p.y;
                const float power = -0.5f * (p.a * dx * dx + p.c * dy * dy) - p.b * dx * dy;
                if (power > 0 || (CUTS && power < p.least)) continue;
                const float alpha = std::min(0.99f, p.alpha * std::exp(power));
                if (alpha < 1.0f / 255.0f) continue;
                const float next = left[to] * (1 - alpha);
                if (next < 1e-4f) {
                    done[to] = 1;
                    continue;
                }
                const float weight = alpha * left[to];
                image[3 * to] += weight * p.red;
                image[3 * to + 1] += weight * p.green;
                image[3 * to + 2] += weight * p.blue;
                left[to] = next;
            }
        }
    }
}
