// Gradients of a loss by a scene's arrays: from pixels to footprints, from footprints to splats.
//
// A tile's sums of each splat are kept apart, and a splat's are added in the order of its tiles, in
// double: the result does not depend on the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "splat_kernels.h"
#include "splat_room.h"
#include "splat_scene.h"
#include "splat_tiles.h"
#include "thread_pool.h"

namespace penstock {

// Where the gradient goes, an element for each splat, 0 for those that are not drawn. All are wanted;
// the last three of a scene that moves.
struct SplatGradients {
    float * colour[3];
    float * opacity;        // by opacity itself, not its logarithm
    float * mean[3];
    float * covariance[6];  // by xx xy xz yy yz zz, each off-diagonal number standing in two places
    float * mean_2d[2];     // by the footprint's middle, pixels
    float * weight;         // no gradient: the sum over the image of alpha times transmittance
    float * velocity[3] = {};
    float * t_center = nullptr;
    float * t_sigma = nullptr;
};

class SplatBackward {
public:
    explicit SplatBackward(ThreadPool & pool) : pool_(pool) {}

    // `tiles` was prepared for this scene alone, camera and options. Leaves out how a colour that
    // comes from spherical harmonics depends on the mean.
    void run(SplatTiles & tiles, const SplatScene & scene, const SplatCamera & camera, const SplatOptions & options,
             const float * image_gradient, const SplatGradients & out);
    size_t bytes() const { return gradients_.bytes() + pair_.bytes() + offset_.bytes() + sums_.bytes(); }

    struct Sums {  // of one footprint, over all tiles
        double x, y, a, b, c, fade, red, green, blue, weight;
    };

private:
    void tile_gradients(SplatTiles & tiles, TileBand band, const SplatCamera & camera, const SplatOptions & options,
                        const float * image_gradient);
    void add_up(const SplatTiles & tiles, TileBand band);

    ThreadPool & pool_;
    SplatRoom<FootprintGradient> gradients_;  // of a band's pairs, tile by tile
    SplatRoom<uint32_t> pair_;                // of a band's pairs, splat by splat: which of gradients_
    SplatRoom<uint32_t> offset_;              // of each place, the first of its pairs in pair_
    SplatRoom<Sums> sums_;                    // of each place
};

}  // namespace penstock
