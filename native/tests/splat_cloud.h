// Splats, cameras and pictures for the rasteriser's tests, and how they tell what failed.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "../core/error.h"
#include "../core/kernels.h"
#include "../core/splat_renderer.h"
#include "checks.h"

using namespace penstock;

namespace {

std::mt19937_64 rng(20251126);
float uniform(float low, float high) { return std::uniform_real_distribution<float>(low, high)(rng); }
size_t below(size_t n) { return static_cast<size_t>(rng() % n); }

template <typename Function>
bool refuses(Function && function) {
    try {
        function();
    } catch (const ArgumentError &) {
        return true;
    }
    return false;
}

// Splats in a ball around the origin, of all sizes and shapes.
struct Cloud {
    Cloud(size_t n, bool moves) {
        for (auto * arrays : {mean, colour, velocity}) {
            for (int k = 0; k < 3; ++k) arrays[k].resize(n);
        }
        for (auto & array : covariance) array.resize(n);
        for (auto * array : {&log_opacity, &t_center, &t_sigma}) array->resize(n);
        for (size_t i = 0; i < n; ++i) {
            const float size = 0.004f * std::pow(60.0f, uniform(0, 1));
            float b[3][3];
            for (auto & row : b) {
                const float stretch = size * uniform(0.05f, 1.0f);
                for (float & value : row) value = stretch * uniform(-1, 1);
            }
            const int first[6] = {0, 0, 0, 1, 1, 2}, second[6] = {0, 1, 2, 1, 2, 2};
            for (int k = 0; k < 6; ++k) {
                const float * u = b[first[k]], * v = b[second[k]];
                covariance[k][i] = u[0] * v[0] + u[1] * v[1] + u[2] * v[2];
            }
            for (int k = 0; k < 3; ++k) {
                mean[k][i] = uniform(-1, 1);
                colour[k][i] = uniform(0, 1);
                velocity[k][i] = uniform(-0.3f, 0.3f);
            }
            log_opacity[i] = std::log(std::max(1e-3f, uniform(0, 1)));
            t_center[i] = uniform(0, 2);
            t_sigma[i] = uniform(0.05f, 1.0f);
        }
        scene.count = n;
        for (int k = 0; k < 3; ++k) {
            scene.mean[k] = mean[k].data();
            scene.colour[k] = colour[k].data();
            if (moves) scene.velocity[k] = velocity[k].data();
        }
        for (int k = 0; k < 6; ++k) scene.covariance[k] = covariance[k].data();
        scene.log_opacity = log_opacity.data();
        if (moves) scene.t_center = t_center.data();
        if (moves) scene.t_sigma = t_sigma.data();
    }
    SplatPart part() const { return {&scene, {SplatRange{0, scene.count}}}; }

    std::vector<float> mean[3], covariance[6], log_opacity, colour[3], velocity[3], t_center, t_sigma;
    SplatScene scene;
};

SplatCamera camera_of(int width, int height, float distance = 3.0f) {
    const float focal = 0.8f * static_cast<float>(std::max(width, height));
    const float s = std::sin(0.4f), c = std::cos(0.4f);
    return {{c, 0, s, 0, 1, 0, -s, 0, c}, {0.05f, -0.02f, distance}, focal, focal * 1.1f,
            0.5f * static_cast<float>(width) + 0.7f, 0.5f * static_cast<float>(height) - 0.3f, width, height, 0.2f};
}

SplatOptions options_at(float time) {
    SplatOptions options;
    options.time = time;
    options.background[0] = 0.2f;
    options.background[1] = 0.5f;
    options.background[2] = 0.9f;
    return options;
}

struct Picture {
    std::vector<float> image, rest;
    SplatTimes times;
    bool operator==(const Picture & other) const { return image == other.image && rest == other.rest; }
};

Picture draw(const std::vector<SplatPart> & parts, const SplatCamera & camera, const SplatOptions & options, int threads) {
    SplatRenderer renderer(threads);
    Picture picture;
    const size_t pixels = static_cast<size_t>(camera.width) * static_cast<size_t>(camera.height);
    picture.image.assign(3 * pixels, std::numeric_limits<float>::quiet_NaN());
    picture.rest.assign(pixels, std::numeric_limits<float>::quiet_NaN());
    std::vector<SplatDrawing> drawings;
    for (const SplatPart & part : parts) drawings.push_back({part, nullptr});
    for (int again = 0; again < 2; ++again) {  // the second time with room that is there
        picture.times = renderer.render(drawings, camera, options, picture.image.data(), picture.rest.data());
    }
    return picture;
}

}  // namespace
