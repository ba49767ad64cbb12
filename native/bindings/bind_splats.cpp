// The splat rasteriser for Python. Arrays are borrowed, never copied, and checked before they are used.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "aligned.h"
#include "error.h"
#include "splat_renderer.h"
#include "threads.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using namespace penstock;

using Column = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Harmonics = nb::ndarray<const float, nb::shape<-1, 3, -1>, nb::c_contig, nb::device::cpu>;
using Ranges = nb::ndarray<const int64_t, nb::shape<-1, 2>, nb::c_contig, nb::device::cpu>;
using Image = nb::ndarray<float, nb::shape<-1, -1, 3>, nb::c_contig, nb::device::cpu>;
using ImageGradient = nb::ndarray<const float, nb::shape<-1, -1, 3>, nb::c_contig, nb::device::cpu>;
using RowsInPlace = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

const float * column(const Column & array, size_t count, const char * name) {
    if (array.size() != count) {
        throw ArgumentError(std::string(name) + " has " + std::to_string(array.size()) + " values, expected one for each of " +
                            std::to_string(count) + " splats");
    }
    return aligned(array, name);
}

// (N, count): each row is one component of every splat.
template <size_t N>
void rows(const Rows & array, size_t count, const char * name, const float * (&out)[N]) {
    if (array.shape(0) != N || array.shape(1) != count) {
        throw ArgumentError(std::string(name) + " is (" + std::to_string(array.shape(0)) + ", " + std::to_string(array.shape(1)) +
                            "), expected (" + std::to_string(N) + ", " + std::to_string(count) + ")");
    }
    const float * data = aligned(array, name);
    for (size_t k = 0; k < N; ++k) out[k] = data + k * count;
}

// A scene, the arrays that its pointers lead to, and its colours where they follow the camera.
class Scene {
public:
    Scene(Rows mean, Rows covariance, Column log_opacity, std::optional<Rows> colour, std::optional<Harmonics> sh,
          std::optional<Rows> velocity, std::optional<Column> t_center, std::optional<Column> t_sigma)
        : mean_(mean), covariance_(covariance), log_opacity_(log_opacity), colour_(colour), sh_(sh), velocity_(velocity),
          t_center_(t_center), t_sigma_(t_sigma) {
        const size_t count = scene.count = log_opacity.size();
        if (count >= size_t{1} << 31) throw ArgumentError("a scene has less than 2^31 splats");
        scene.log_opacity = aligned(log_opacity, "log_opacity");
        rows(mean, count, "mean", scene.mean);
        rows(covariance, count, "covariance", scene.covariance);
        if (colour.has_value() == sh.has_value()) throw ArgumentError("a scene has either colour or sh");
        if (colour) {
            rows(*colour, count, "colour", scene.colour);
        } else {
            if (sh->shape(2) != count) {
                throw ArgumentError("sh is for " + std::to_string(sh->shape(2)) + " splats, expected " + std::to_string(count));
            }
            const int coefficients = static_cast<int>(std::min(sh->shape(0), size_t{1000}));
            colours = std::make_unique<SplatColours>(scene.mean, count, aligned(*sh, "sh"), coefficients);
            for (int c = 0; c < 3; ++c) scene.colour[c] = colours->channel(c);
        }
        const int given = velocity.has_value() + t_center.has_value() + t_sigma.has_value();
        if (given != 0 && given != 3) throw ArgumentError("velocity, t_center and t_sigma go together");
        if (given == 3) {
            rows(*velocity, count, "velocity", scene.velocity);
            scene.t_center = column(*t_center, count, "t_center");
            scene.t_sigma = column(*t_sigma, count, "t_sigma");
        }
    }

    size_t bytes() const { return colours != nullptr ? colours->bytes() : 0; }

    SplatScene scene;
    std::unique_ptr<SplatColours> colours;
    std::mutex mutex;  // of the colours, which a picture may change

private:
    Rows mean_, covariance_;
    Column log_opacity_;
    std::optional<Rows> colour_;
    std::optional<Harmonics> sh_;
    std::optional<Rows> velocity_;
    std::optional<Column> t_center_, t_sigma_;
};

// Threads that draw with one renderer, or the same scene, wait for each other.
class Renderer {
public:
    explicit Renderer(int threads) : renderer(threads) {}

    std::vector<std::unique_lock<std::mutex>> lock(std::vector<Scene *> scenes) {
        std::sort(scenes.begin(), scenes.end());  // always in one order, and each once
        scenes.erase(std::unique(scenes.begin(), scenes.end()), scenes.end());
        std::vector<std::unique_lock<std::mutex>> locks;
        locks.emplace_back(mutex);
        for (Scene * scene : scenes) {
            if (scene->colours != nullptr) locks.emplace_back(scene->mutex);
        }
        return locks;
    }

    SplatRenderer renderer;
    std::mutex mutex;
};

std::vector<SplatRange> ranges_of(const Ranges & array) {
    std::vector<SplatRange> ranges;
    const int64_t * data = aligned(array, "ranges");
    for (size_t i = 0; i < array.shape(0); ++i) {
        const int64_t begin = data[2 * i], end = data[2 * i + 1];
        if (begin < 0 || end < begin) {
            throw ArgumentError("no range [" + std::to_string(begin) + ", " + std::to_string(end) + ") of splats");
        }
        ranges.push_back({static_cast<size_t>(begin), static_cast<size_t>(end)});
    }
    return ranges;
}

template <class Array>
void check_image(const Array & image, const SplatCamera & camera, const char * name) {
    if (image.shape(0) != static_cast<size_t>(camera.height) || image.shape(1) != static_cast<size_t>(camera.width)) {
        throw ArgumentError(std::string(name) + " is (" + std::to_string(image.shape(0)) + ", " + std::to_string(image.shape(1)) +
                            ", ...), expected the camera's height " + std::to_string(camera.height) + " and width " +
                            std::to_string(camera.width));
    }
}

SplatTimes render(Renderer & self, const std::vector<Scene *> & scenes, const std::vector<Ranges> & ranges,
                  const SplatCamera & camera, const SplatOptions & options, const Image & image,
                  const std::optional<RowsInPlace> & rest) {
    if (scenes.size() != ranges.size()) throw ArgumentError("each scene has an array of ranges");
    check_image(image, camera, "image");
    if (rest) check_image(*rest, camera, "rest");
    float * const pixels = aligned(image, "image");
    float * const left = rest ? aligned(*rest, "rest") : nullptr;
    std::vector<SplatDrawing> drawings;
    for (size_t i = 0; i < scenes.size(); ++i) {
        if (scenes[i] == nullptr) throw ArgumentError("a scene is None");
        drawings.push_back({{&scenes[i]->scene, ranges_of(ranges[i])}, scenes[i]->colours.get()});
    }
    nb::gil_scoped_release others_run;
    const auto locks = self.lock(scenes);
    return self.renderer.render(drawings, camera, options, pixels, left);
}

// Rows of the array that backward() fills.
constexpr size_t kRowsStill = 16, kRowsMoving = 21;

SplatTimes backward(Renderer & self, Scene & scene, const SplatCamera & camera, const SplatOptions & options,
                    const ImageGradient & image_gradient, const RowsInPlace & gradients) {
    check_image(image_gradient, camera, "image_gradient");
    const size_t count = scene.scene.count;
    const bool moves = scene.scene.t_center != nullptr;
    if (gradients.shape(0) != (moves ? kRowsMoving : kRowsStill) || gradients.shape(1) != count) {
        throw ArgumentError("gradients is (" + std::to_string(gradients.shape(0)) + ", " + std::to_string(gradients.shape(1)) +
                            "), expected (" + std::to_string(moves ? kRowsMoving : kRowsStill) + ", " + std::to_string(count) + ")");
    }
    const float * const towards = aligned(image_gradient, "image_gradient");
    float * row = aligned(gradients, "gradients");
    const auto next = [&row, count] {
        float * const here = row;
        row += count;
        return here;
    };
    SplatGradients out{};
    for (float *& r : out.colour) r = next();
    out.opacity = next();
    for (float *& r : out.mean) r = next();
    for (float *& r : out.covariance) r = next();
    for (float *& r : out.mean_2d) r = next();
    out.weight = next();
    if (moves) {
        for (float *& r : out.velocity) r = next();
        out.t_center = next();
        out.t_sigma = next();
    }
    const SplatDrawing drawing{{&scene.scene, {SplatRange{0, count}}}, scene.colours.get()};
    nb::gil_scoped_release others_run;
    const auto locks = self.lock({&scene});
    return self.renderer.backward(drawing, camera, options, towards, out);
}

}  // namespace

void bind_splats(nb::module_ & m) {
    nb::class_<SplatCamera>(m, "SplatCamera", "A pinhole camera: x right, y down, z forward.")
        .def("__init__",
             [](SplatCamera * self, const std::array<float, 9> & rotation, const std::array<float, 3> & translation, float fx,
                float fy, float cx, float cy, int width, int height, float near_plane) {
                 new (self) SplatCamera();
                 std::copy(rotation.begin(), rotation.end(), self->rotation);
                 std::copy(translation.begin(), translation.end(), self->translation);
                 self->fx = fx;
                 self->fy = fy;
                 self->cx = cx;
                 self->cy = cy;
                 self->width = width;
                 self->height = height;
                 self->near_plane = near_plane;
             },
             nb::kw_only(), "rotation"_a, "translation"_a, "fx"_a, "fy"_a, "cx"_a, "cy"_a, "width"_a, "height"_a, "near_plane"_a)
        .def_ro("width", &SplatCamera::width, "Pixels.")
        .def_ro("height", &SplatCamera::height, "Pixels.");

    nb::class_<SplatOptions>(m, "SplatOptions", "What a picture is made with besides scenes and a camera.")
        .def("__init__",
             [](SplatOptions * self, float time, const std::array<float, 3> & background, float low_pass, float least_weight,
                bool omg4_sentinel, float colour_tolerance, size_t most_pairs) {
                 new (self) SplatOptions();
                 self->time = time;
                 std::copy(background.begin(), background.end(), self->background);
                 self->low_pass = low_pass;
                 self->least_weight = least_weight;
                 self->lens = omg4_sentinel ? FootprintLens::omg4_sentinel : FootprintLens::exact;
                 self->colour_tolerance = colour_tolerance;
                 self->most_pairs = most_pairs;
             },
             nb::kw_only(), "time"_a, "background"_a, "low_pass"_a, "least_weight"_a, "omg4_sentinel"_a, "colour_tolerance"_a,
             "most_pairs"_a);

    nb::class_<SplatTimes>(m, "SplatTimes", "What a picture took.")
        .def_ro("colour_ms", &SplatTimes::colour_ms, "Evaluating spherical harmonics.")
        .def_ro("project_ms", &SplatTimes::project_ms, "From splats to footprints.")
        .def_ro("sort_ms", &SplatTimes::sort_ms, "By depth.")
        .def_ro("bin_ms", &SplatTimes::bin_ms, "Listing each tile's splats.")
        .def_ro("blend_ms", &SplatTimes::blend_ms, "Pixels, or their gradient.")
        .def_ro("coloured", &SplatTimes::coloured, "Splats whose spherical harmonics were evaluated.")
        .def_ro("active", &SplatTimes::active, "Splats that were looked at.")
        .def_ro("visible", &SplatTimes::visible, "Splats that reach a pixel.")
        .def_ro("pairs", &SplatTimes::pairs, "Of a splat and a tile.");

    nb::class_<Scene>(m, "SplatScene", "Splats to draw. Arrays are borrowed: what is changed in them is drawn.")
        .def(nb::init<Rows, Rows, Column, std::optional<Rows>, std::optional<Harmonics>, std::optional<Rows>,
                      std::optional<Column>, std::optional<Column>>(),
             nb::kw_only(), "mean"_a.noconvert(), "covariance"_a.noconvert(), "log_opacity"_a.noconvert(),
             "colour"_a.noconvert().none(), "sh"_a.noconvert().none(), "velocity"_a.noconvert().none(),
             "t_center"_a.noconvert().none(), "t_sigma"_a.noconvert().none(),
             "mean (3, n), covariance (6, n): xx xy xz yy yz zz, log_opacity (n); colour (3, n) or sh (k, 3, n),\n"
             "which must not change, nor the means with them; velocity (3, n), t_center (n) and t_sigma (n), or none.")
        .def_prop_ro("count", [](const Scene & self) { return self.scene.count; }, "Splats.")
        .def_prop_ro("bytes", &Scene::bytes, "That it keeps besides the arrays: colours that follow the camera.");

    nb::class_<Renderer>(m, "SplatRenderer", "A rasteriser with threads and room of its own.")
        .def("__init__",
             [](Renderer * self, int threads) { new (self) Renderer(thread_count(threads)); },
             "threads"_a)
        .def("render", &render, "scenes"_a, "ranges"_a, "camera"_a, "options"_a, "image"_a.noconvert(), "rest"_a.noconvert().none(),
             "Draw into image (height, width, 3), and into rest (height, width) the transmittance that is left. Of\n"
             "each scene, the splats of its ranges (m, 2): begin and end, ascending, not overlapping.")
        .def("backward", &backward, "scene"_a, "camera"_a, "options"_a, "image_gradient"_a.noconvert(), "gradients"_a.noconvert(),
             "Given a loss's gradient by the image that render draws, fill gradients (16 or 21, n), whose rows are\n"
             "colour 3, opacity, mean 3, covariance 6, the middle in pixels 2, blend weight (no gradient), and of a\n"
             "scene that moves velocity 3, t_center, t_sigma.")
        .def_prop_ro("threads", [](const Renderer & self) { return self.renderer.threads(); }, "Threads, the caller's with them.")
        .def_prop_ro("bytes", [](const Renderer & self) { return self.renderer.bytes(); }, "Room that is kept from picture to picture.");

    m.def("splat_room_bytes", [](size_t active, int width, int height, int threads, size_t most_pairs) {
            if (width < 1 || height < 1 || width > kMostSide || height > kMostSide || threads < 1 || threads > 256) {
                throw ArgumentError("splat_room_bytes: an image has 1 to 16384 pixels each way, and threads are 1 to 256");
            }
            return SplatTiles::bytes_for(active, width, height, threads, most_pairs);
          }, "active"_a, "width"_a, "height"_a, "threads"_a, "most_pairs"_a,
          "Most that a renderer's room grows to for so many active splats and an image of this size.");
}
