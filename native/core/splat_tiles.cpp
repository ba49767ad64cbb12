#include "splat_tiles.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <string>

#include "error.h"

namespace penstock {
namespace {

constexpr size_t kChunk = 4096;                   // splats that are projected together
constexpr size_t kMostCounts = size_t{1} << 22;   // of ranges times tiles
constexpr size_t kLeastRange = 4096;              // splats that are worth a thread
constexpr size_t kLine = 64 / sizeof(uint32_t);   // of the cache: what threads write apart is no nearer
constexpr size_t kSortCountBytes = sizeof(uint32_t) << kMostDigit;  // of a thread

double now_ms() {
    using namespace std::chrono;
    return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}

// Most rectangles are of up to two by two tiles, of sizes that a processor cannot foresee: those go
// without a branch. visit(tile, whether it is one of the rectangle's), four times at least.
template <typename Visit>
void visit_tiles(const TileRect & r, size_t wide, Visit && visit) {
    const size_t x = r.x0, y = r.y0, columns = size_t{r.x1} - x, rows = size_t{r.y1} - y;
    if (columns <= 2 && rows <= 2) {
        const size_t first = y * wide + x, right = columns - 1, down = rows - 1;
        visit(first, size_t{1});
        visit(first + right, right);
        visit(first + down * wide, down);
        visit(first + down * wide + right, right & down);
        return;
    }
    for (size_t row = y; row < r.y1; ++row) {
        for (size_t tile = row * wide + x; tile < row * wide + r.x1; ++tile) visit(tile, size_t{1});
    }
}

size_t tiles_of(int pixels) { return (static_cast<size_t>(pixels) + kTile - 1) / kTile; }

size_t ranges_for(size_t visible, size_t tiles, size_t threads) {
    return std::max(size_t{1}, std::min({threads, 1 + visible / kLeastRange, kMostCounts / tiles}));
}

void check(const SplatCamera & camera, const SplatOptions & options) {
    if (camera.width < 1 || camera.height < 1 || camera.width > kMostSide || camera.height > kMostSide) {
        throw ArgumentError("the image is " + std::to_string(camera.width) + " x " + std::to_string(camera.height) +
                            " pixels, expected 1 to " + std::to_string(kMostSide) + " each");
    }
    bool good = camera.fx > 0 && camera.fy > 0 && std::isfinite(camera.fx) && std::isfinite(camera.fy) &&
                std::isfinite(camera.cx) && std::isfinite(camera.cy);
    for (float value : camera.rotation) good = good && std::isfinite(value);
    for (float value : camera.translation) good = good && std::isfinite(value);
    if (!good) throw ArgumentError("a value of the camera is not finite, or a focal length not more than 0");
    if (!(camera.near_plane > 1e-6f)) throw ArgumentError("the camera's near plane must be more than 1e-6 in front of it");
    if (!(options.low_pass >= 0 && options.low_pass <= 1e6f)) throw ArgumentError("low_pass must be 0 to 1e6 square pixels");
    if (!(options.least_weight >= 0 && options.least_weight < 1)) throw ArgumentError("least_weight must be 0 or more, and less than 1");
    if (options.most_pairs < 1 || options.most_pairs > size_t{1} << 31) throw ArgumentError("most_pairs must be 1 to 2^31");
}

}  // namespace

void check_ranges(const SplatPart & part) {
    size_t done = 0;
    for (const SplatRange & range : part.ranges) {
        if (range.begin < done || range.end < range.begin || range.end > part.scene->count) {
            throw ArgumentError("splats [" + std::to_string(range.begin) + ", " + std::to_string(range.end) +
                                ") are no range after " + std::to_string(done) + " of a scene of " +
                                std::to_string(part.scene->count));
        }
        done = range.end;
    }
}

void SplatTiles::prepare(const std::vector<SplatPart> & parts, const SplatCamera & camera,
                         const SplatOptions & options, SplatTimes & times) {
    check(camera, options);
    camera_ = camera;
    tiles_x_ = static_cast<int>(tiles_of(camera.width));
    tiles_y_ = static_cast<int>(tiles_of(camera.height));
    const double begin = now_ms();
    project(parts, options);
    const double projected = now_ms();
    visible_ = sort_by_depth(depth_.data(), runs_, order_, sort_room_, pool_);
    const double sorted = now_ms();
    count(options.most_pairs);
    times.project_ms += projected - begin;
    times.sort_ms += sorted - projected;
    times.bin_ms += now_ms() - sorted;
    times.active += places_;
    times.visible += visible_;
    times.pairs += pairs_;
}

// Each chunk has as many places as splats, and fills its first ones. Which thread takes which chunk
// changes nothing.
void SplatTiles::project(const std::vector<SplatPart> & parts, const SplatOptions & options) {
    chunks_.clear();
    size_t places = 0, first_index = 0;
    for (const SplatPart & part : parts) {
        check_ranges(part);
        for (const SplatRange & range : part.ranges) {
            for (size_t at = range.begin; at < range.end; at += kChunk) {
                const size_t end = std::min(range.end, at + kChunk);
                chunks_.push_back({part.scene, at, end, places, static_cast<uint32_t>(first_index), 0});
                places += end - at;
            }
        }
        first_index += part.scene->count;
        if (first_index >= size_t{1} << 31) throw ArgumentError("over 2^31 splats in one picture");
    }
    places_ = places;
    footprints_.need(places);
    depth_.need(places);
    rects_.need(places);
    std::atomic<size_t> next{0};
    pool_.run(static_cast<size_t>(pool_.threads()), 1, [&](size_t, size_t) {
        for (size_t c = next.fetch_add(1); c < chunks_.size(); c = next.fetch_add(1)) {
            SplatChunk & chunk = chunks_[c];
            const SplatVisible out{footprints_.data() + chunk.place, depth_.data() + chunk.place, rects_.data() + chunk.place};
            chunk.visible = static_cast<uint32_t>(
                project_splats(*chunk.scene, camera_, options, chunk.begin, chunk.end, chunk.first_index, out));
        }
    });
    runs_.clear();
    for (const SplatChunk & chunk : chunks_) runs_.push_back({static_cast<uint32_t>(chunk.place), chunk.visible});
}

// The first half of a counting sort by tile: each range of the order counts its pairs by tile. Tiles
// are then put together to bands.
void SplatTiles::count(size_t most_pairs) {
    const size_t tiles = static_cast<size_t>(tiles_x_) * static_cast<size_t>(tiles_y_);
    ranges_ = ranges_for(visible_, tiles, static_cast<size_t>(pool_.threads()));
    counts_.need(ranges_ * tiles);
    start_.need(tiles + 1);
    sorted_rects_.need(visible_);
    pool_.run(ranges_, 1, [&](size_t first, size_t last) {
        for (size_t range = first; range < last; ++range) {
            uint32_t * const count = counts_.data() + range * tiles;
            std::memset(count, 0, tiles * sizeof(uint32_t));
            const size_t end = share(visible_, range + 1, ranges_);
            for (size_t i = share(visible_, range, ranges_); i < end; ++i) {
                constexpr size_t kAhead = 16;
                if (i + kAhead < end) __builtin_prefetch(&rects_[order_[i + kAhead]]);
                const TileRect r = rects_[order_[i]];
                sorted_rects_[i] = r;
                visit_tiles(r, static_cast<size_t>(tiles_x_), [=](size_t tile, size_t is) { count[tile] += static_cast<uint32_t>(is); });
            }
        }
    });
    bands_.clear();
    pairs_ = 0;
    size_t first = 0, sum = 0;
    for (size_t tile = 0; tile < tiles; ++tile) {
        size_t here = 0;
        for (size_t range = 0; range < ranges_; ++range) here += counts_[range * tiles + tile];
        if (sum + here > most_pairs && tile > first) {
            bands_.push_back({first, tile});
            first = tile;
            sum = 0;
        }
        sum += here;
        pairs_ += here;
    }
    bands_.push_back({first, tiles});
}

// The second half: each range of the order writes where the ranges before it end.
void SplatTiles::fill(TileBand band) {
    const size_t wide = static_cast<size_t>(tiles_x_), tiles = wide * static_cast<size_t>(tiles_y_);
    size_t sum = 0;  // fits in 32 bits: most_pairs do, and so do the splats of one tile
    for (size_t tile = band.first; tile < band.last; ++tile) {
        start_[tile] = static_cast<uint32_t>(sum);
        for (size_t range = 0; range < ranges_; ++range) {
            uint32_t & count = counts_[range * tiles + tile];
            const uint32_t here = count;
            count = static_cast<uint32_t>(sum);
            sum += here;
        }
    }
    start_[band.last] = static_cast<uint32_t>(sum);
    list_.need(sum + (ranges_ + 1) * kLine);
    pool_.run(ranges_, 1, [&](size_t first, size_t last) {
        for (size_t range = first; range < last; ++range) {
            uint32_t * const next = counts_.data() + range * tiles;
            const size_t end = share(visible_, range + 1, ranges_);
            if (bands_.size() == 1) {
                const size_t nowhere = sum + (range + 1) * kLine;  // where what is no tile's goes
                for (size_t i = share(visible_, range, ranges_); i < end; ++i) {
                    const uint32_t place = order_[i];
                    visit_tiles(sorted_rects_[i], wide, [=, this](size_t tile, size_t is) {
                        const uint32_t at = next[tile];
                        next[tile] = at + static_cast<uint32_t>(is);
                        __builtin_prefetch(&list_[at + kLine], 1);  // another core read that line, a picture ago
                        list_[is != 0 ? at : nowhere] = place;
                    });
                }
                continue;
            }
            for (size_t i = share(visible_, range, ranges_); i < end; ++i) {
                const TileRect r = sorted_rects_[i];
                const uint32_t place = order_[i];
                const size_t bottom = std::min(size_t{r.y1}, (band.last + wide - 1) / wide);
                for (size_t y = std::max(size_t{r.y0}, band.first / wide); y < bottom; ++y) {
                    const size_t to = std::min(y * wide + r.x1, band.last);
                    for (size_t tile = std::max(y * wide + r.x0, band.first); tile < to; ++tile) list_[next[tile]++] = place;
                }
            }
        }
    });
}

TileSplats SplatTiles::tile(size_t tile) const {
    const int x = static_cast<int>(tile % static_cast<size_t>(tiles_x_)) * kTile;
    const int y = static_cast<int>(tile / static_cast<size_t>(tiles_x_)) * kTile;
    return {footprints_.data(), list_.data() + start_[tile], size_t{start_[tile + 1]} - start_[tile],
            x, std::min(camera_.width, x + kTile), y, std::min(camera_.height, y + kTile)};
}

size_t SplatTiles::bytes() const {
    return footprints_.bytes() + depth_.bytes() + rects_.bytes() + sorted_rects_.bytes() + order_.bytes() +
           sort_room_.bytes() + counts_.bytes() + start_.bytes() + list_.bytes() +
           chunks_.capacity() * sizeof(SplatChunk) + runs_.capacity() * sizeof(DepthRun);
}

size_t SplatTiles::bytes_for(size_t active, int width, int height, int threads, size_t most_pairs) {
    const size_t tiles = tiles_of(width) * tiles_of(height), count = static_cast<size_t>(threads);
    const size_t ranges = ranges_for(active, tiles, count);
    const size_t splat = sizeof(Footprint2d) + sizeof(float) + 2 * sizeof(TileRect) + sizeof(uint32_t) + 2 * sizeof(uint64_t);
    const size_t chunks = 2 * (active / 256 + 64) * (sizeof(SplatChunk) + sizeof(DepthRun));  // ranges end where they will
    const size_t list = std::max(active, std::min(most_pairs, active * tiles)) + (ranges + 1) * kLine;
    const size_t bytes = active * splat + count * kSortCountBytes + (ranges + 1) * (tiles + 1) * sizeof(uint32_t) +
                         chunks + list * sizeof(uint32_t);
    return bytes + bytes / 8 + 4096;  // as SplatRoom grows
}

}  // namespace penstock
