// What the rasteriser draws: Gaussians whose covariance does not change, moving on straight lines.
//
// A rotor 4D Gaussian, sliced at a time, is exactly that: a fixed 3D covariance, a mean that moves
// with a constant velocity, and an opacity that follows a Gaussian of time (Real-Time 4DGS, section
// 4.1). Arrays are separate per component: what one step needs is read in sequence.
#pragma once

#include <cstddef>
#include <cstdint>

namespace penstock {

struct SplatScene {
    size_t count = 0;
    const float * mean[3] = {};           // world position; of a moving splat, at its t_center
    const float * covariance[6] = {};     // xx xy xz yy yz zz, world units squared
    const float * log_opacity = nullptr;  // natural logarithm of 0 to 1: then time's weight is a sum
    const float * colour[3] = {};         // red, green, blue, 0 or more
    // All of these or none: nothing moves without them.
    const float * velocity[3] = {};    // world units a second
    const float * t_center = nullptr;  // seconds
    const float * t_sigma = nullptr;   // seconds, more than 0
};

// Splats begin..end of a scene.
struct SplatRange {
    size_t begin, end;
};

struct SplatCamera {
    float rotation[9];     // row by row, world to camera: x right, y down, z forward
    float translation[3];  // camera = rotation * world + translation
    float fx, fy, cx, cy;  // pixels; the middle of the first pixel is at (0.5, 0.5)
    int width, height;
    float near_plane = 0.2f;
};

// How the footprint's Jacobian is taken. `exact` uses the camera's focal lengths and clamps x/z
// to 1.3 times the field of view. `omg4_sentinel` repeats what OMG4's checkpoints were trained
// with: FoV set to -1 and its half's tangent taken, which makes both constants of the image's size.
enum class FootprintLens : int { exact = 0, omg4_sentinel = 1 };

struct SplatOptions {
    float background[3] = {0, 0, 0};
    float time = 0;               // seconds; ignored by a scene that does not move
    float low_pass = 0.3f;        // added to the 2D covariance's diagonal, pixels squared
    float least_weight = 0.05f;   // of time: a splat that has no more than this is not drawn
    FootprintLens lens = FootprintLens::exact;
    float colour_tolerance = 0;   // radians that a splat is seen from elsewhere before its colour is renewed
    size_t most_pairs = size_t{1} << 24;  // of a splat and a tile in memory at a time; more: in bands
};

// What a picture took.
struct SplatTimes {
    double colour_ms = 0, project_ms = 0, sort_ms = 0, bin_ms = 0, blend_ms = 0;
    size_t coloured = 0;  // splats whose spherical harmonics were evaluated
    size_t active = 0;    // splats that were looked at
    size_t visible = 0;   // splats that reach a pixel
    size_t pairs = 0;     // of a splat and a tile
};

constexpr int kTile = 16;                         // pixels, both ways
constexpr int kTilePixels = kTile * kTile;
constexpr int kMostSide = 16384;                  // pixels of an image's side: tiles fit in uint16
constexpr float kMostFade = 7.994353436858858f;   // log2 255: where alpha falls under 1/255
constexpr float kMostAlpha = 0.99f;
constexpr float kLeastTransmittance = 1e-4f;

// One splat on the screen, as the blending reads it. At (dx, dy) from its middle it covers 2^-q of a
// pixel, nothing where q is over kMostFade:
//     q = a (dx - slope dy)^2 + k dy^2 + fade.
// The conic's square is completed, so that q is never under fade, and neither it nor a row's reach is
// the small difference of large numbers that they are in long, thin ellipses.
struct Footprint2d {
    float x, y;      // pixels
    float slope;     // of the line through the ellipse's rows' middles
    float a, k;      // more than 0
    float inverse_a;
    float fade;      // -log2 of alpha in the middle, 0 to log2 255
    float red, green, blue;
    uint32_t index;  // in the scene; through all scenes, where there are several
};
static_assert(sizeof(Footprint2d) == 44);

// Tiles that a splat touches: [x0, x1) by [y0, y1), never empty.
struct TileRect {
    uint16_t x0, x1, y0, y1;
};

}  // namespace penstock
