// Colours from spherical harmonics, for the direction from the camera to each splat; kept from frame
// to frame while that direction stays.
#pragma once

#include <cstddef>
#include <vector>

#include "splat_room.h"
#include "splat_scene.h"
#include "thread_pool.h"

namespace penstock {

constexpr size_t kColourBlock = 1024;  // splats that are evaluated together
// Coefficients may add up to infinity, of which a weight of 0 would make NaN. White is 1.
constexpr float kMostColour = 1e6f;

class SplatColours {
public:
    // mean: three arrays of `count`; sh: `coefficients` (1, 4, 9 or 16) times red, green and blue, an
    // array of `count` each, the constant term first. Both are borrowed for good and must not change.
    // Throws ArgumentError.
    SplatColours(const float * const mean[3], size_t count, const float * sh, int coefficients);

    // Makes the colours of these ranges those that are seen from `eye`, world units: 0.5 + sum of
    // Y_k c_k, from 0 to kMostColour, for the direction to the splats' un-moved means, as every rotor 4DGS model was
    // trained. A block whose splats all lie within `tolerance` radians of the direction that they were
    // last evaluated for is left as it is. Returns how many splats were evaluated.
    size_t refresh(const float eye[3], float tolerance, const std::vector<SplatRange> & ranges, ThreadPool & pool);

    const float * channel(int c) const { return colour_.data() + static_cast<size_t>(c) * count_; }
    // Without the means and the coefficients, which are the caller's.
    size_t bytes() const {
        return colour_.bytes() + blocks_.capacity() * (sizeof(Block) + sizeof(size_t) + 1);
    }

private:
    struct Block {
        float middle[3], radius;  // a sphere around the means
        float eye[3];             // that its colours are for
        bool evaluated = false;
    };
    bool is_stale(const Block & block, const float eye[3], float most_sine) const;
    void evaluate(size_t block, const float eye[3]);

    const float * mean_[3];
    size_t count_;
    const float * sh_;
    int coefficients_;
    SplatRoom<float> colour_;  // (3, count)
    std::vector<Block> blocks_;
    std::vector<unsigned char> wanted_;  // (blocks) scratch
    std::vector<size_t> stale_;          // scratch
};

}  // namespace penstock
