#include "splat_renderer.h"

#include <algorithm>
#include <atomic>
#include <chrono>

namespace penstock {
namespace {

constexpr size_t kMostGradientPairs = size_t{1} << 22;  // 48 bytes each

double now_ms() {
    using namespace std::chrono;
    return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}

// Where the camera is: -R^T t.
void eye_of(const SplatCamera & camera, float eye[3]) {
    for (int k = 0; k < 3; ++k) {
        eye[k] = -(camera.rotation[k] * camera.translation[0] + camera.rotation[3 + k] * camera.translation[1] +
                   camera.rotation[6 + k] * camera.translation[2]);
    }
}

}  // namespace

SplatRenderer::SplatRenderer(int threads) : pool_(threads), tiles_(pool_), backward_(pool_) {}

SplatTimes SplatRenderer::render(const std::vector<SplatDrawing> & scenes, const SplatCamera & camera,
                                 const SplatOptions & options, float * image, float * rest) {
    SplatTimes times;
    prepare(scenes, camera, options, times);

    const SplatKernels & kernels = splat_kernels();
    for (const TileBand band : tiles_.bands()) {
        const double counted = now_ms();
        tiles_.fill(band);
        const double filled = now_ms();
        std::atomic<size_t> next{band.first};
        pool_.run(static_cast<size_t>(pool_.threads()), 1, [&](size_t, size_t) {
            for (size_t tile = next.fetch_add(1); tile < band.last; tile = next.fetch_add(1)) {
                kernels.blend(TileJob{tiles_.tile(tile),
                                      {options.background[0], options.background[1], options.background[2]},
                                      image,
                                      rest,
                                      static_cast<size_t>(camera.width)});
            }
        });
        times.bin_ms += filled - counted;
        times.blend_ms += now_ms() - filled;
    }
    return times;
}

// Colours for this camera, then what each tile shows.
void SplatRenderer::prepare(const std::vector<SplatDrawing> & scenes, const SplatCamera & camera,
                            const SplatOptions & options, SplatTimes & times) {
    float eye[3];
    eye_of(camera, eye);
    const double begin = now_ms();
    std::vector<SplatPart> parts;
    for (const SplatDrawing & scene : scenes) {
        check_ranges(scene.part);
        if (scene.colours != nullptr) {
            times.coloured += scene.colours->refresh(eye, options.colour_tolerance, scene.part.ranges, pool_);
        }
        parts.push_back(scene.part);
    }
    times.colour_ms = now_ms() - begin;
    tiles_.prepare(parts, camera, options, times);
}

SplatTimes SplatRenderer::backward(const SplatDrawing & drawing, const SplatCamera & camera,
                                   const SplatOptions & options, const float * image_gradient,
                                   const SplatGradients & out) {
    SplatTimes times;
    SplatOptions bounded = options;
    bounded.most_pairs = std::min(options.most_pairs, kMostGradientPairs);
    prepare({drawing}, camera, bounded, times);
    const double begin = now_ms();
    backward_.run(tiles_, *drawing.part.scene, camera, bounded, image_gradient, out);
    times.blend_ms = now_ms() - begin;
    return times;
}

}  // namespace penstock
