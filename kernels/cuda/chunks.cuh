// What linear attention does with a chunk of 64 positions on tensor cores: phi, the state, the triangle, outputs. The source
// that includes it defines ELEMENT, DIM_QK, WARP_V and WARPS.
#pragma once

#include "attend.cuh"
#include "linear.cuh"
#include "partials.cuh"

using Element = ELEMENT;
constexpr int CHUNK = 64, THREADS = WARPS * 32, COLUMNS = WARPS * WARP_V, MV = WARP_V / 16, NK = DIM_QK / 8;
using QTile = Tile<CHUNK, DIM_QK>;
using VTile = Tile<CHUNK, COLUMNS>;
using PTile = Tile<CHUNK, CHUNK>;
constexpr int PANEL = 8, STRIDE = THREADS / PANEL;
static_assert(QTile::PANEL == PANEL && VTile::PANEL == PANEL, "whole panels of 64 columns");
// Warps that share rows of Q K^T, each with its own keys.
constexpr int PARTS = WARPS / 4, PART_KEYS = CHUNK / PARTS;

// Fragments of 16 rows of O at a time: all that the registers hold beside S.
constexpr int MO = WARP_V == 32 ? 2 : 4;

// Whether sums may leave the range of the type.
template <class T> constexpr bool IS_NARROW = false;
template <> constexpr bool IS_NARROW<F16> = true;

// Shared memory: two stages of K, V and Q, then the triangle, the normaliser (of each parity of chunks, a part of each warp), the
// divisors (of each part of the keys) and the scales of the rows of Q (of each stage).
constexpr u32 STAGE = 2 * QTile::BYTES + VTile::BYTES;
DEVICE QTile key_tile(u32 stage) { return QTile{shared_memory() + stage}; }
DEVICE VTile value_tile(u32 stage) { return VTile{shared_memory() + stage + QTile::BYTES}; }
DEVICE QTile query_tile(u32 stage) { return QTile{shared_memory() + stage + QTile::BYTES + VTile::BYTES}; }
DEVICE PTile triangle_tile() { return PTile{shared_memory() + 2 * STAGE}; }
DEVICE u32 normaliser_at(int parity, int warp, int d) {
    return triangle_tile().base + PTile::BYTES + ((parity * WARPS + warp) * DIM_QK + d) * 4;
}
DEVICE u32 divisor_at(int part, int row) { return normaliser_at(2, 0, 0) + (part * CHUNK + row) * 4; }
DEVICE u32 scale_at(u32 stage, int row) { return divisor_at(PARTS + (stage != 0), row); }

// Copies rows first .. first + 63 of those 0 .. end - 1 that exist; the others become zeros.
template <class AnyTile> DEVICE void copy_rows(const AnyTile &tile, Global<const u16> from, int first, int end, int dim, i64 token) {
    const u32 thread = opaque(thread_index()), column = thread % PANEL;
#pragma unroll
    for (int i = 0; i * STRIDE < CHUNK; i++) {
        const int row = thread / PANEL + i * STRIDE, number = first + row;
#pragma unroll
        for (int panel = 0; panel < AnyTile::BYTES / AnyTile::PANEL_BYTES; panel++) {
            const bool is_valid = number >= 0 && number < end && int(panel * PANEL + column) * 8 < dim;
            copy_async_16(tile.chunk(row, panel * PANEL + column), from, number * token + (panel * PANEL + column) * 8, is_valid);
        }
    }
}

// Calls map(row, chunk of a row, eight elements) for what this thread has copied of such rows and writes the elements back.
template <class Map> DEVICE void map_rows(const QTile &tile, int first, int end, int dim, Map &map) {
    const u32 thread = opaque(thread_index()), column = thread % PANEL;
#pragma unroll 1
    for (int row = thread / PANEL; row < CHUNK; row += STRIDE) {
        // All threads of a row agree, but a warp has rows of both kinds.
        const bool exists = first + row >= 0 && first + row < end;
        f32 x[DIM_QK / 64][8];
#pragma unroll
        for (int panel = 0; panel < DIM_QK / 64; panel++) {
            const Vec4 v = load_shared_vec4(tile.chunk(row, panel * PANEL + column));
            const bool is_valid = exists && int(panel * PANEL + column) * 8 < dim;
#pragma unroll
            for (int e = 0; e < 8; e++) {
                const f32 value = Element::widen(u16(v.word[e / 2] >> e % 2 * 16));
                x[panel][e] = map.phi(value, is_valid);
            }
        }
        map.row(row, x);
#pragma unroll
        for (int panel = 0; panel < DIM_QK / 64; panel++) {
            const Vec4 v = pack8<Element>(x[panel]);
            map.rounded(panel, v);
            store_shared_vec4(tile.chunk(row, panel * PANEL + column), v);
        }
    }
}

// phi of keys, and the sum of what they were rounded to.
struct MapKeys {
    Mechanism mechanism;
    f32 sum[DIM_QK / 64][8];
    DEVICE f32 phi(f32 x, bool is_valid) const { return is_valid ? mechanism.phi(x) : 0.0f; }
    DEVICE void row(int, f32 (&)[DIM_QK / 64][8]) {}
    DEVICE void rounded(int panel, const Vec4 &v) {
#pragma unroll
        for (int e = 0; e < 8; e++) sum[panel][e] += Element::widen(u16(v.word[e / 2] >> e % 2 * 16));
    }
};
// phi of queries, scaled where the type is narrow.
struct MapQueries {
    Mechanism mechanism;
    u32 stage;
    DEVICE f32 phi(f32 x, bool is_valid) const { return is_valid ? mechanism.phi(x) : 0.0f; }
    DEVICE void row(int row, f32 (&x)[DIM_QK / 64][8]) {
        if (!IS_NARROW<Element>) return;
        f32 sum = 0.0f;
#pragma unroll
        for (int panel = 0; panel < DIM_QK / 64; panel++)
#pragma unroll
            for (int e = 0; e < 8; e++) sum += max_f32(x[panel][e], -x[panel][e]);
#pragma unroll
        for (int distance = 1; distance < PANEL; distance *= 2) sum += shuffle_xor(sum, distance);
        // 2^-(exponent + 1), with the exponent in a range whose inverse is a number too.
        const i32 exponent = min_i32(max_i32(f32_to_bits(sum) >> 23, 107), 180);
        const f32 scale = bits_to_f32(u32(253 - exponent) << 23);
#pragma unroll
        for (int panel = 0; panel < DIM_QK / 64; panel++)
#pragma unroll
            for (int e = 0; e < 8; e++) x[panel][e] *= scale;
        if (thread_index() % PANEL == 0) store_shared(scale_at(stage, row), scale);
    }
    DEVICE void rounded(int, const Vec4 &) {}
};

// In memory a state is S of all columns, in fragments, and the normaliser.
DEVICE i64 normaliser_in_state(int tiles) { return i64(tiles) * COLUMNS * DIM_QK; }
DEVICE i64 state_size(int tiles) { return normaliser_in_state(tiles) + DIM_QK; }

// S of a warp's columns, transposed.
struct State {
    f32 s[MV][NK][4];

    // Where it lies in a state: (warp's columns, fragment, lane).
    static DEVICE i64 at(int slab, int fragment) { return ((i64(slab) * MV * NK + fragment) * 32 + thread_index() % 32) * 4; }
    DEVICE void load_from(Global<const f32> state, int slab) {
#pragma unroll
        for (int m = 0; m < MV; m++)
#pragma unroll
            for (int n = 0; n < NK; n++) {
                const Vec4 v = load_vec4(state, at(slab, m * NK + n));
#pragma unroll
                for (int i = 0; i < 4; i++) s[m][n][i] = bits_to_f32(v.word[i]);
            }
    }
    DEVICE void store_to(Global<f32> state, int slab) const {
#pragma unroll
        for (int m = 0; m < MV; m++)
#pragma unroll
            for (int n = 0; n < NK; n++) {
                Vec4 v;
#pragma unroll
                for (int i = 0; i < 4; i++) v.word[i] = f32_to_bits(s[m][n][i]);
                store_vec4(state, at(slab, m * NK + n), v);
            }
    }

    // S += K^T V of a stage.
    DEVICE void add_keys(u32 stage, u32 lane, int warp) {
        const u32 k = opaque(value_place(key_tile(stage), 0, lane));
        const u32 v = opaque(VTile::further(key_place(value_tile(stage), 0, lane), 0, warp * (WARP_V / 8)));
#pragma unroll
        for (int step = 0; step < CHUNK / 16; step++) {
            u32 a[MV][4];
#pragma unroll
            for (int m = 0; m < MV; m++) load_matrices_transposed(a[m], VTile::further(v, step * 16, 2 * m));
#pragma unroll
            for (int n = 0; n < NK / 2; n++) {
                u32 b[4];
                load_matrices_transposed(b, QTile::further(k, step * 16, 2 * n));
#pragma unroll
                for (int m = 0; m < MV; m++) {
                    Element::multiply(s[m][2 * n], a[m], b[0], b[1]);
                    Element::multiply(s[m][2 * n + 1], a[m], b[2], b[3]);
                }
            }
        }
    }

    // A power of two by which the largest number is below 2^15.
    DEVICE f32 scale() const {
        f32 largest = 0.0f;
#pragma unroll
        for (int m = 0; m < MV; m++)
#pragma unroll
            for (int n = 0; n < NK; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) largest = max_f32(largest, max_f32(s[m][n][i], -s[m][n][i]));
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) largest = max_f32(largest, shuffle_xor(largest, distance));
        const i32 exponent = max_i32(i32(f32_to_bits(largest) >> 23) - (127 + 14), 0);
        return bits_to_f32(u32(127 - min_i32(exponent, 126)) << 23);
    }

    // o = Q S of rows first .., with S scaled by `down` on its way.
    DEVICE void multiply(f32 (&o)[MO][2 * MV][4], int first, u32 stage, f32 down, u32 lane) const {
        clear(o);
        const u32 q = opaque(query_place(query_tile(stage), first, lane));
#pragma unroll
        for (int step = 0; step < DIM_QK / 16; step++) {
            u32 b[2 * MV][2];
#pragma unroll
            for (int n = 0; n < 2 * MV; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const f32 *pair = &s[n / 2][2 * step + i][n % 2 * 2];
                    b[n][i] = IS_NARROW<Element> ? Element::pack(pair[0] * down, pair[1] * down) : Element::pack(pair[0], pair[1]);
                }
#pragma unroll
            for (int m = 0; m < MO; m++) {
                u32 a[4];
                load_matrices(a, QTile::further(q, m * 16, 2 * step));
#pragma unroll
                for (int n = 0; n < 2 * MV; n++) Element::multiply(o[m][n], a, b[n][0], b[n][1]);
            }
        }
        if (IS_NARROW<Element> && down != 1.0f) {
            const f32 up = 1.0f / down;
#pragma unroll
            for (int m = 0; m < MO; m++)
#pragma unroll
                for (int n = 0; n < 2 * MV; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) o[m][n][i] *= up;
        }
    }
};

// Adds to each row's divisor what two neighbouring elements of phi(q) have of it.
DEVICE f32 times_normaliser(u32 pair, f32 low, f32 high, f32 sum) {
    return fused_multiply_add(Element::widen(u16(pair)), low, fused_multiply_add(Element::widen(u16(pair >> 16)), high, sum));
}

// tril(Q K^T) of this warp's rows and keys, and the divisors of the rows: Q z and, where causal, the sums of the triangle.
DEVICE void write_triangle(u32 stage, int parity, bool is_causal, bool is_normalised, u32 lane, int warp) {
    const int block = warp % 4, part = warp / 4, first_key = part * PART_KEYS;
    const bool has_normaliser = is_normalised && part == 0;
    f32 s[PART_KEYS / 8][4] = {}, divisor[2] = {};
    const u32 q = opaque(query_place(query_tile(stage), block * 16, lane)), k = opaque(key_place(key_tile(stage), first_key, lane));
#pragma unroll
    for (int step = 0; step < DIM_QK / 16; step++) {
        u32 a[4];
        load_matrices(a, QTile::further(q, 0, 2 * step));
        if (has_normaliser)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                f32 z[2] = {};
#pragma unroll
                for (int w = 0; w < WARPS; w++)
#pragma unroll
                    for (int j = 0; j < 2; j++) z[j] += load_shared_f32(normaliser_at(parity, w, step * 16 + i * 8 + lane % 4 * 2 + j));
#pragma unroll
                for (int half = 0; half < 2; half++) divisor[half] = times_normaliser(a[2 * i + half], z[0], z[1], divisor[half]);
            }
        if (is_causal)
#pragma unroll
            for (int n = 0; n < PART_KEYS / 16; n++) {
                if (first_key + n * 16 > block * 16) continue;
                u32 b[4];
                load_matrices(b, QTile::further(k, n * 16, 2 * step));
                Element::multiply(s[2 * n], a, b[0], b[1]);
                Element::multiply(s[2 * n + 1], a, b[2], b[3]);
            }
    }
    if (is_causal) {
        const PTile tile = triangle_tile();
#pragma unroll
        for (int n = 0; n < PART_KEYS / 8; n++) {
            if (first_key + n * 8 >= block * 16 + 16) continue;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int row = block * 16 + half * 8 + lane / 4, key = first_key + n * 8 + lane % 4 * 2;
                const f32 low = key <= row ? s[n][2 * half] : 0.0f, high = key + 1 <= row ? s[n][2 * half + 1] : 0.0f;
                divisor[half] += low + high;
                store_shared(tile.chunk(row, key / 8) + lane % 4 * 4, Element::pack(low, high));
            }
        }
    }
    if (!is_normalised) return;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        divisor[half] += shuffle_xor(divisor[half], 1);
        divisor[half] += shuffle_xor(divisor[half], 2);
        if (lane % 4 == 0) store_shared(divisor_at(part, block * 16 + half * 8 + lane / 4), divisor[half]);
    }
}

// o += P V with P rows first .. of the triangle.
DEVICE void add_triangle(f32 (&o)[MO][2 * MV][4], int first, u32 stage, u32 lane, int warp) {
    const u32 p = opaque(query_place(triangle_tile(), first, lane));
    const u32 v = opaque(VTile::further(value_place(value_tile(stage), 0, lane), 0, warp * (WARP_V / 8)));
#pragma unroll
    for (int step = 0; step < CHUNK / 16; step++) {
        if (step * 16 >= first + MO * 16) break;
        u32 b[MV][4];
#pragma unroll
        for (int n = 0; n < MV; n++) load_matrices_transposed(b[n], VTile::further(v, step * 16, 2 * n));
#pragma unroll
        for (int m = 0; m < MO; m++) {
            if (first + m * 16 < step * 16) continue;
            u32 a[4];
            load_matrices(a, PTile::further(p, m * 16, 2 * step));
#pragma unroll
            for (int n = 0; n < 2 * MV; n++) Element::multiply(o[m][n], a, b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
        }
    }
}

// Writes rows first_row .. of the chunk that begins with row `first` of O and ends before `end`. The four lanes of a row exchange their pairs of columns, so that each writes a whole
// chunk: chunk t % CHUNKS of row half t / CHUNKS.
DEVICE void write_outputs(Global<u16> to, const f32 (&o)[MO][2 * MV][4], int first_row, int first, int end, int column, u32 stage,
                          const Geometry &geometry, const Mechanism &mechanism, u32 lane) {
    const int t = lane % 4;
#pragma unroll
    for (int m = 0; m < MO; m++) {
        u32 pairs[2][2 * MV];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = first_row + m * 16 + half * 8 + lane / 4;
            const f32 scale = IS_NARROW<Element> ? load_shared_f32(scale_at(stage, row)) : 1.0f;
            f32 factor = geometry.scale / scale;
            if (mechanism.is_normalised) {
                f32 divisor = 1e-6f * scale;
#pragma unroll
                for (int part = 0; part < PARTS; part++) divisor += load_shared_f32(divisor_at(part, row));
                factor = 1.0f / divisor;
            }
#pragma unroll
            for (int n = 0; n < 2 * MV; n++) pairs[half][n] = Element::pack(o[m][n][2 * half] * factor, o[m][n][2 * half + 1] * factor);
        }
        constexpr int CHUNKS = 2 * MV, HALVES = 4 / CHUNKS;
#pragma unroll
        for (int group = 0; group < 2; group += HALVES) {
            // In turn i, a lane gives what lane t ^ i wants, and gets its word t ^ i.
            Vec4 chunk;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int wanted = t ^ i;
                u32 give = pairs[group][0];
#pragma unroll
                for (int j = 1; j < 4; j++)
                    if (wanted == j) give = pairs[group + j / CHUNKS][j % CHUNKS];
                const u32 got = f32_to_bits(shuffle_xor(bits_to_f32(give), i));
#pragma unroll
                for (int j = 0; j < 4; j++)
                    if (wanted == j) chunk.word[j] = got;
            }
            const int row = first_row + m * 16 + (group + t / CHUNKS) * 8 + lane / 4, at = column + t % CHUNKS * 8, number = first + row;
            if (number >= 0 && number < end && at < geometry.dim_v) store_vec4(to, number * geometry.o.token + at, chunk);
        }
    }
}
