// From the scene to footprints on the screen: time's weight, view transform, EWA projection.
#pragma once

#include <cstddef>
#include <cstdint>

#include "splat_kernels.h"
#include "splat_scene.h"

namespace penstock {

SplatLens splat_lens(const SplatCamera & camera, FootprintLens lens);

// Projects splats begin..end, in their order; returns how many can be seen. A footprint's index is
// first_index more than the splat's in the scene. Splats with NaN or infinity cannot be seen.
size_t project_splats(const SplatScene & scene, const SplatCamera & camera, const SplatOptions & options,
                      size_t begin, size_t end, uint32_t first_index, const SplatVisible & out);

// The scalar kernels' part of that.
size_t project_scalar(const ProjectJob & job);

}  // namespace penstock
