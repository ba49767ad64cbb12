// The rasteriser's arithmetic, compiled once for each instruction set: projecting splats, blending a
// tile, and its gradient. The scalar set is the oracle that the others are tested against.
#pragma once

#include <cstddef>
#include <cstdint>

#include "splat_scene.h"

namespace penstock {

// Where and how a camera's Jacobian is taken: (x/z, y/z) clamped to a box, and focal lengths.
struct SplatLens {
    float fx, fy;
    float x_low, x_high, y_low, y_high;
};

// Where splats that can be seen are written, from the front; room for as many as are looked at.
struct SplatVisible {
    Footprint2d * footprints;
    float * depth;  // along z, more than 0
    TileRect * rects;
};

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kFar = 1e30f;  // deeper than any scene: its reciprocal is still a normal number
// Of a covariance's determinant, pixels to the fourth: outside, floats cannot hold its inverse.
constexpr float kLeastDeterminant = 1e-30f, kMostDeterminant = 1e36f;

// Splats begin..end of a scene, to be projected in their order.
struct ProjectJob {
    const SplatScene & scene;
    const SplatCamera & camera;
    SplatLens lens;
    float time, low_pass;
    float most_u2;  // of ((time - t_center) / t_sigma)^2: from there on a splat is not drawn
    size_t begin, end;
    uint32_t first_index;
    SplatVisible out;
};

// A tile and the splats that touch it, nearest first: splats[order[0]], splats[order[1]], ...
struct TileSplats {
    const Footprint2d * splats;
    const uint32_t * order;
    size_t count;
    int x0, x1, y0, y1;  // its pixels in the image, [x0, x1) x [y0, y1), at most kTile each way
};

struct TileJob {
    TileSplats tile;
    float background[3];
    float * image;   // the whole image's RGB, row by row; only the tile's pixels are written
    float * rest;    // the whole image's transmittance that was left; null: not wanted
    size_t width;    // pixels of an image's row
};

// Derivatives of the loss by a footprint's middle, by a, b, c and fade of its alpha
// exp(-(a dx^2 + b dx dy + c dy^2 + fade)) and by its colour, summed over one tile's pixels; and the
// weight, the sum of alpha times transmittance, with which it was blended there.
struct FootprintGradient {
    float x, y, a, b, c, fade, red, green, blue, weight;
};

struct TileGradientJob {
    TileSplats tile;
    float background[3];
    const float * gradient;   // of the loss by the whole image's RGB, row by row
    size_t width;             // pixels of an image's row
    FootprintGradient * out;  // (tile.count), in the order of tile.order
};

struct SplatKernels {
    const char * name;
    // Returns how many splats can be seen.
    size_t (*project)(const ProjectJob & job);
    // Front to back over the background. A pixel is done when the next splat would leave less than
    // 1e-4 of it: that splat is not blended, nor any behind it.
    void (*blend)(const TileJob & job);
    // The gradient of what blend does, exact but for rounding: nothing flows through an alpha that
    // was clipped to 0.99, or into splats that a pixel did not take.
    void (*gradient)(const TileGradientJob & job);
};

const SplatKernels & splat_kernels_scalar();
const SplatKernels * splat_kernels_avx2();  // nullptr when not compiled in
const SplatKernels * splat_kernels_neon();

// Those of the set in use (kernels.h). AVX-512 machines run the AVX2 set: most splats are smaller
// than two of its groups of eight pixels.
const SplatKernels & splat_kernels();

}  // namespace penstock
