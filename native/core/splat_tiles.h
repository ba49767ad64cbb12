// Which splats each tile shows, in order of depth: project, sort, bin; every step on all threads.
//
// Nothing here depends on the number of threads: what is visible is listed in the order of the scene,
// the sort is stable, and tiles list their splats in the sorted order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "splat_kernels.h"
#include "splat_project.h"
#include "splat_room.h"
#include "splat_scene.h"
#include "splat_sort.h"
#include "thread_pool.h"

namespace penstock {

// One scene of those that are drawn together. What is not in its ranges is not looked at.
struct SplatPart {
    const SplatScene * scene;
    std::vector<SplatRange> ranges;  // ascending, not overlapping, within the scene
};

// Throws ArgumentError for ranges that are not as they should be.
void check_ranges(const SplatPart & part);

// Tiles [first, last), counted row by row, whose lists are in memory together.
struct TileBand {
    size_t first, last;
};

// Some consecutive splats of a scene, and where their footprints are.
struct SplatChunk {
    const SplatScene * scene;
    size_t begin, end;     // splats
    size_t place;          // of the first footprint
    uint32_t first_index;  // of the scene's first splat, through all scenes
    uint32_t visible;      // footprints
};

class SplatTiles {
public:
    explicit SplatTiles(ThreadPool & pool) : pool_(pool) {}

    // Projects and sorts, and counts what each tile shows. Adds to `times`. Throws ArgumentError.
    void prepare(const std::vector<SplatPart> & parts, const SplatCamera & camera, const SplatOptions & options,
                 SplatTimes & times);
    // All tiles, in as many bands as keep each under options.most_pairs (or at one tile).
    const std::vector<TileBand> & bands() const { return bands_; }
    // Lists the splats of a band's tiles; each band once, in their order.
    void fill(TileBand band);
    // Of the band that was filled last.
    TileSplats tile(size_t tile) const;
    // Where the tile's list begins, counted from the band's first.
    size_t start(size_t tile) const { return start_[tile]; }

    const std::vector<SplatChunk> & chunks() const { return chunks_; }
    const Footprint2d & footprint(size_t place) const { return footprints_[place]; }
    const TileRect & rect(size_t place) const { return rects_[place]; }
    size_t places() const { return places_; }  // footprints lie below this, with gaps
    int tiles_x() const { return tiles_x_; }
    int tiles_y() const { return tiles_y_; }
    size_t bytes() const;

    // Most that bytes() grows to for so many active splats and an image of this size.
    static size_t bytes_for(size_t active, int width, int height, int threads, size_t most_pairs);

private:
    void project(const std::vector<SplatPart> & parts, const SplatOptions & options);
    void count(size_t most_pairs);

    ThreadPool & pool_;
    SplatCamera camera_{};
    int tiles_x_ = 0, tiles_y_ = 0;
    size_t places_ = 0, visible_ = 0, pairs_ = 0;
    std::vector<SplatChunk> chunks_;
    std::vector<DepthRun> runs_;
    SplatRoom<Footprint2d> footprints_;
    SplatRoom<float> depth_;
    SplatRoom<TileRect> rects_, sorted_rects_;
    SplatRoom<uint32_t> order_;  // places by depth
    SortRoom sort_room_;
    size_t ranges_ = 1;              // of the order that threads count and list apart
    SplatRoom<uint32_t> counts_;     // (ranges, tiles); then where each range's next splat goes
    std::vector<TileBand> bands_;
    SplatRoom<uint32_t> start_;      // (tiles + 1)
    SplatRoom<uint32_t> list_;       // places, tile by tile
};

}  // namespace penstock
