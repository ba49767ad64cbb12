// Draws scenes: colour, project, sort by depth, bin by tile, blend; every step on all threads.
//
// The picture does not depend on the number of threads: tiles list their splats in one order
// (splat_tiles.h), and a pixel is one thread's.
#pragma once

#include <cstddef>
#include <vector>

#include "splat_backward.h"
#include "splat_colour.h"
#include "splat_scene.h"
#include "splat_tiles.h"
#include "thread_pool.h"

namespace penstock {

// A scene to draw, and what renews its colours: null where they are fixed. Where they are not, the
// scene's colour pointers lead into `colours`.
struct SplatDrawing {
    SplatPart part;
    SplatColours * colours = nullptr;
};

// For one thread at a time.
class SplatRenderer {
public:
    explicit SplatRenderer(int threads);
    SplatRenderer(const SplatRenderer &) = delete;
    SplatRenderer & operator=(const SplatRenderer &) = delete;

    // Draws into image, float RGB, camera.height x camera.width; and into rest, likewise, the
    // transmittance that is left (null: not wanted). Throws ArgumentError.
    SplatTimes render(const std::vector<SplatDrawing> & scenes, const SplatCamera & camera,
                      const SplatOptions & options, float * image, float * rest);

    // The gradient of a loss by one scene's arrays, given that by the image that render() draws of the
    // scene alone: float RGB, camera.height x camera.width. The same for any number of threads. `out`
    // has an element for each splat of the scene; those outside the ranges are not drawn. Throws
    // ArgumentError.
    SplatTimes backward(const SplatDrawing & drawing, const SplatCamera & camera, const SplatOptions & options,
                        const float * image_gradient, const SplatGradients & out);

    int threads() const { return pool_.threads(); }
    size_t bytes() const { return tiles_.bytes() + backward_.bytes(); }  // kept from picture to picture

private:
    void prepare(const std::vector<SplatDrawing> & scenes, const SplatCamera & camera, const SplatOptions & options,
                 SplatTimes & times);

    ThreadPool pool_;
    SplatTiles tiles_;
    SplatBackward backward_;
};

}  // namespace penstock
