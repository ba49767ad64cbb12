// What training a model's splats needs besides the rasteriser: from the model's rows to what is drawn,
// back from that to the rows, and Adam's steps.
//
// Models have a row a splat and the rasteriser a row a component; `rows` picks, ascending and each
// once, the splats that are drawn. Nothing here checks lengths or indices: the bindings do. Each row
// is worked on by itself, so results do not depend on the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "thread_pool.h"

namespace penstock {

struct SplatRows {
    const int64_t * index;
    size_t count;
};

class SplatTraining {
public:
    explicit SplatTraining(int threads) : pool_(threads) {}

    int threads() const { return pool_.threads(); }

    // values [n, width] of these rows as [width, count].
    void columns(const float * values, size_t width, SplatRows rows, float * out);

    // R diag(scales^2) R^T as xx xy xz yy yz zz [6, count], of scales [n, 3] and unit quaternions [n, 4].
    void covariances(const float * scales, const float * rotations, SplatRows rows, float * out);

    // The gradient by ln scale [count, 3] and by the unit quaternion, along the sphere only [count, 4], of that by
    // the covariance's six free numbers [6, count]: with Sigma = M M^T, M = R diag(s) and G the full symmetric
    // gradient, dL/dM = 2 G M.
    void shape_gradients(const float * scales, const float * rotations, SplatRows rows, const float * by_covariance,
                         float * by_scale, float * by_rotation);

    // max(0, 0.5 + sum over k of basis times sh [n, k, 3]) seen from eye, as [3, count]; k 1, 4, 9 or 16.
    void colours(const float * sh, size_t k, const float * means, const double eye[3], SplatRows rows, float * out);

    // By sh [count, k, 3], given those colours and the gradient by them [3, count]; none flows through a 0.
    void harmonics_gradients(size_t k, const float * means, const double eye[3], SplatRows rows, const float * colour,
                             const float * by_colour, float * out);

    // total [n, width] += part [count, width] in these rows.
    void add_rows(float * total, size_t width, SplatRows rows, const float * part);

    // A step of Adam in these rows of values [n, width], and of what it keeps: both averages [n, width] and how many
    // steps each row had [n]. The gradient is [n, width], too; what is not finite in it counts as 0.
    void adam(float * values, float * first, float * second, int32_t * steps, size_t width, SplatRows rows,
              const float * gradient, float rate);

private:
    void grow_corrections(int32_t steps);

    ThreadPool pool_;
    std::vector<float> corrections_;  // sqrt(1 - b2^t) / (1 - b1^t) by t
};

}  // namespace penstock
