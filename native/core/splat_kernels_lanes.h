// A tile in blocks of 4 by 2 pixels: one algorithm for every set of vector instructions.
//
// Included once by each splat_kernels_<set>.cpp, after its eight floats: Lanes, Mask and the functions
// on them. Everything here is in an unnamed namespace and calls nothing with external linkage, since
// the file is compiled for instructions that another processor may lack (see kernels_avx2.cpp).
//
// Splats are the outer loop, so that each is loaded once; a tile's colours and transmittances stay in
// the first-level cache. A tile is 32 blocks: the blocks that an ellipse touches are the bits of one
// number, found for 128 splats at a time, since that has no branches and blending has one that the
// processor cannot foresee. A block whose pixels are done is dead, and a tile of dead blocks ends.

namespace penstock {
namespace {

constexpr int kBlock = 8;  // pixels: four columns, two rows
constexpr int kBlockRows = kTile / 2, kBlocks = kTilePixels / kBlock;  // blocks are counted column by column
static_assert(kBlockRows == 8 && kBlocks == 32);

// Where a tile's pixel (x, y) is in arrays of blocks.
constexpr int place_of(int x, int y) {
    return ((x / 4) * kBlockRows + y / 2) * kBlock + y % 2 * 4 + x % 4;
}

// The middles of the pixels in a tile, by their places.
struct Middles {
    alignas(32) float x[kTilePixels], y[kTilePixels];
};
constexpr Middles make_middles() {
    Middles found{};
    for (int y = 0; y < kTile; ++y) {
        for (int x = 0; x < kTile; ++x) {
            found.x[place_of(x, y)] = static_cast<float>(x) + 0.5f;
            found.y[place_of(x, y)] = static_cast<float>(y) + 0.5f;
        }
    }
    return found;
}
constexpr Middles kMiddles = make_middles();

// The transmittance of each pixel, and which blocks have pixels that still take colour.
struct TileState {
    alignas(32) float left[kTilePixels];  // negative of a pixel that is done, or outside the image
    uint32_t live;

    explicit TileState(const TileSplats & tile) : live(0) {
        const float wide = static_cast<float>(tile.x1 - tile.x0), rows = static_cast<float>(tile.y1 - tile.y0);
        for (int block = 0; block < kBlocks; ++block) {
            const int at = block * kBlock;
            const Mask inside = both(below(load(kMiddles.x + at), all(wide)), below(load(kMiddles.y + at), all(rows)));
            store(left + at, pick(inside, all(1.0f), all(-1.0f)));
            if (bits(inside) != 0) live |= uint32_t{1} << block;
        }
    }

    float rest(int at) const { return left[at] < 0.0f ? -left[at] : left[at]; }
};

// The blocks that a splat's ellipse touches, and perhaps some that it nearly does. Of a row of pixels at
// dy it takes those within sqrt((kMostFade - fade - k dy^2) / a) of slope dy; a lane is a row of blocks.
inline uint32_t blocks_of(const Footprint2d & f, float x0, float y0) {
    constexpr float kSlack = 0.004f;  // of the exponent, for rounding
    const Lanes dy = block_row_middles() + all(y0 - f.y), below_dy = dy + all(1.0f);
    const Lanes room = all(kMostFade + kSlack - f.fade), minus_k = all(-f.k), slope = all(f.slope), inverse_a = all(f.inverse_a);
    const Lanes zero = all(0.0f);
    const Lanes square = fma(minus_k * dy, dy, room) * inverse_a, below_square = fma(minus_k * below_dy, below_dy, room) * inverse_a;
    const Lanes half = sqrt(max(square, zero)), below_half = sqrt(max(below_square, zero));
    const Lanes middle = fma(slope, dy, all(f.x - x0 - 0.5f)), below_middle = fma(slope, below_dy, all(f.x - x0 - 0.5f));
    const Mask some = at_most(zero, max(square, below_square));
    const Lanes first = pick(some, min(middle - half, below_middle - below_half), all(static_cast<float>(kTile)));
    const Lanes last = max(middle + half, below_middle + below_half);
    uint32_t blocks = 0;
    for (int column = 0; column < kTile / 4; ++column) {
        const float left = static_cast<float>(column * 4);
        const Mask touched = both(at_most(first, all(left + 3.0f)), at_most(all(left), last));
        blocks |= static_cast<uint32_t>(bits(touched)) << column * kBlockRows;
    }
    return blocks;
}

// What a block takes of one splat.
struct Taken {
    int at;                // of the block's first pixel in the tile's arrays
    Lanes dx, dy;          // from the splat's middle
    Lanes raw;             // alpha before it is clipped
    Lanes alpha, before;   // before: transmittance in front of the splat
    Lanes weight;          // 0 in pixels that take nothing
    Mask takes;
};

// Visits what each block takes of each splat, front to back; then leaves a splat that was visited.
template <typename Visit, typename Leave>
inline void walk(const TileSplats & tile, TileState & s, Visit && visit, Leave && leave) {
    constexpr size_t kBatch = 128, kAhead = 24;
    const Lanes limit = all(kMostFade), most = all(kMostAlpha), least = all(kLeastTransmittance), zero = all(0.0f);
    const float x0 = static_cast<float>(tile.x0), y0 = static_cast<float>(tile.y0);
    uint32_t blocks[kBatch];
    for (size_t begin = 0; begin < tile.count && s.live != 0; begin += kBatch) {
        const size_t end = begin + kBatch < tile.count ? begin + kBatch : tile.count;
        for (size_t k = begin; k < end; ++k) {
            if (k + kAhead < tile.count) {  // 44 bytes may lie in two cache lines
                const char * next = reinterpret_cast<const char *>(tile.splats + tile.order[k + kAhead]);
                __builtin_prefetch(next);
                __builtin_prefetch(next + sizeof(Footprint2d) - 1);
            }
            blocks[k - begin] = blocks_of(tile.splats[tile.order[k]], x0, y0);
        }
        for (size_t k = begin; k < end; ++k) {
            uint32_t touched = blocks[k - begin] & s.live;
            if (touched == 0) continue;
            const Footprint2d & f = tile.splats[tile.order[k]];
            const Lanes slope = all(-f.slope), a = all(f.a), down = all(f.k), fade = all(f.fade);
            const Lanes from_x = all(x0 - f.x), from_y = all(y0 - f.y);
            do {
                const int block = __builtin_ctz(touched), at = block * kBlock;
                touched &= touched - 1;
                const Lanes dx = load(kMiddles.x + at) + from_x, dy = load(kMiddles.y + at) + from_y;
                const Lanes u = fma(slope, dy, dx);
                const Lanes q = fma(a * u, u, fma(down * dy, dy, fade));
                const Mask near = at_most(q, limit);  // not where it is NaN
                const Lanes raw = exp2_minus(q);
                const Lanes alpha = min(raw, most);
                const Lanes before = load(s.left + at);
                Lanes weight = max(keep(near, alpha) * before, zero);  // a pixel that is done takes nothing
                Lanes after = before - weight;
                const Mask full = below(absolute(after), least);
                Mask takes = both(near, below(zero, before));
                if (bits(full) != 0) {
                    takes = first_only(takes, full);
                    weight = keep(takes, weight);
                    after = pick(full, zero - before, after);
                    if (bits(below(zero, after)) == 0) s.live &= ~(uint32_t{1} << block);
                }
                store(s.left + at, after);
                visit(f, Taken{at, dx, dy, raw, alpha, before, weight, takes});
            } while (touched != 0);
            leave(f, k);
        }
    }
}

void blend(const TileJob & job) {
    const TileSplats & tile = job.tile;
    TileState state(tile);
    alignas(32) float red[kTilePixels] = {}, green[kTilePixels] = {}, blue[kTilePixels] = {};
    walk(
        tile, state,
        [&](const Footprint2d & f, const Taken & t) {
            store(red + t.at, fma(t.weight, all(f.red), load(red + t.at)));
            store(green + t.at, fma(t.weight, all(f.green), load(green + t.at)));
            store(blue + t.at, fma(t.weight, all(f.blue), load(blue + t.at)));
        },
        [](const Footprint2d &, size_t) {});
    const Lanes background[3] = {all(job.background[0]), all(job.background[1]), all(job.background[2])};
    for (int at = 0; at < kTilePixels; at += kBlock) {
        const Lanes rest = absolute(load(state.left + at));
        store(state.left + at, rest);
        store(red + at, fma(rest, background[0], load(red + at)));
        store(green + at, fma(rest, background[1], load(green + at)));
        store(blue + at, fma(rest, background[2], load(blue + at)));
    }
    const int wide = tile.x1 - tile.x0;
    for (int y = 0; y < tile.y1 - tile.y0; ++y) {
        const size_t row = static_cast<size_t>(tile.y0 + y) * job.width + static_cast<size_t>(tile.x0);
        for (int x = 0; x < wide; x += 4) {
            const int at = place_of(x, y), pixels = wide - x < 4 ? wide - x : 4;
            float * to = job.image + 3 * (row + static_cast<size_t>(x));
            for (int i = 0; i < pixels; ++i, to += 3) {
                to[0] = red[at + i];
                to[1] = green[at + i];
                to[2] = blue[at + i];
            }
            if (job.rest == nullptr) continue;
            for (int i = 0; i < pixels; ++i) job.rest[row + static_cast<size_t>(x + i)] = state.left[at + i];
        }
    }
}

// As in splat_kernels_scalar.cpp, where the formula is. The sums of a splat stay in registers or the
// first-level cache until the next; their lanes are added in one fixed order.
void gradient(const TileGradientJob & job) {
    const TileSplats & tile = job.tile;
    alignas(32) float towards_red[kTilePixels] = {}, towards_green[kTilePixels] = {}, towards_blue[kTilePixels] = {};
    alignas(32) float behind[kTilePixels] = {};  // of (colour . gradient), what lies behind the splats so far
    for (int y = tile.y0; y < tile.y1; ++y) {
        for (int x = tile.x0; x < tile.x1; ++x) {
            const float * g = job.gradient + (static_cast<size_t>(y) * job.width + static_cast<size_t>(x)) * 3;
            const int at = place_of(x - tile.x0, y - tile.y0);
            towards_red[at] = g[0];
            towards_green[at] = g[1];
            towards_blue[at] = g[2];
        }
    }
    const auto along = [&](const Footprint2d & f, int at) {
        const Lanes red_green = fma(load(towards_red + at), all(f.red), load(towards_green + at) * all(f.green));
        return fma(load(towards_blue + at), all(f.blue), red_green);
    };

    TileState state(tile);
    walk(
        tile, state,
        [&](const Footprint2d & f, const Taken & t) {
            store(behind + t.at, fma(t.weight, along(f, t.at), load(behind + t.at)));
        },
        [](const Footprint2d &, size_t) {});
    const float * background = job.background;
    for (int at = 0; at < kTilePixels; ++at) {
        behind[at] += state.rest(at) * (towards_red[at] * background[0] + towards_green[at] * background[1] +
                                        towards_blue[at] * background[2]);
    }

    const Lanes zero = all(0.0f), one = all(1.0f), most = all(kMostAlpha);
    struct Sums {
        Lanes q, q_x, q_y, q_xx, q_xy, q_yy, red, green, blue, weight;
    };
    const Sums nothing = {zero, zero, zero, zero, zero, zero, zero, zero, zero, zero};
    Sums sums = nothing;
    for (size_t k = 0; k < tile.count; ++k) job.out[k] = FootprintGradient{0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    TileState again(tile);
    walk(
        tile, again,
        [&](const Footprint2d & f, const Taken & t) {
            sums.red = fma(t.weight, load(towards_red + t.at), sums.red);
            sums.green = fma(t.weight, load(towards_green + t.at), sums.green);
            sums.blue = fma(t.weight, load(towards_blue + t.at), sums.blue);
            sums.weight = sums.weight + t.weight;
            const Lanes towards = along(f, t.at);
            const Lanes rest = load(behind + t.at) - t.weight * towards;
            store(behind + t.at, rest);
            const Lanes d_alpha = t.before * towards - rest / (one - t.alpha);
            const Mask flows = both(t.takes, below(t.raw, most));
            const Lanes d_q = keep(flows, zero - t.alpha * d_alpha);
            const Lanes q_x = d_q * t.dx, q_y = d_q * t.dy;
            sums.q = sums.q + d_q;
            sums.q_x = sums.q_x + q_x;
            sums.q_y = sums.q_y + q_y;
            sums.q_xx = fma(q_x, t.dx, sums.q_xx);
            sums.q_xy = fma(q_x, t.dy, sums.q_xy);
            sums.q_yy = fma(q_y, t.dy, sums.q_yy);
        },
        [&](const Footprint2d & f, size_t k) {
            const float q_x = sum(sums.q_x), q_y = sum(sums.q_y);
            FootprintGradient & out = job.out[k];
            const float by_u = 2.0f / kLog2E * f.a * (q_x - f.slope * q_y);
            out.x = -by_u;
            out.y = f.slope * by_u - 2.0f / kLog2E * f.k * q_y;
            out.a = sum(sums.q_xx);
            out.b = sum(sums.q_xy);
            out.c = sum(sums.q_yy);
            out.fade = sum(sums.q);
            out.red = sum(sums.red);
            out.green = sum(sums.green);
            out.blue = sum(sums.blue);
            out.weight = sum(sums.weight);
            sums = nothing;
        });
}

}  // namespace
}  // namespace penstock
