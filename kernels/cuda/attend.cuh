// The parts of an attention kernel on tensor cores: tiles in shared memory, S = Q K^T, the online softmax, O += P V.
//
// A tile of TILE_ROWS x DIM 16-bit elements lies in panels of 64 columns (32 where 64 does not divide DIM), so that a row of a
// panel is 128 (64) bytes. The 16-byte chunks of a row are exchanged by an exclusive or with the row number: eight rows of
// one column, which ldmatrix reads at a time, then lie in eight different groups of four banks. Panels of 128 bytes are
// what TMA calls a 128-byte swizzle.
//
// A warp owns 16 * M rows of queries and all columns; its fragments follow mma.m16n8k16 (see ptx.cuh). Thread (g, t) of a
// warp, g = lane / 4 and t = lane % 4, holds rows g and g + 8 of each 16, hence "row half" 0 and 1.
#pragma once

#include "geometry.cuh"

template <int TILE_ROWS, int DIM> struct Tile {
    static_assert(DIM % 32 == 0 && TILE_ROWS % 16 == 0, "tiles are whole panels of whole fragments");
    // Chunks a row of a panel, and bytes of a row and of a panel.
    static constexpr int PANEL = DIM % 64 == 0 ? 8 : 4, ROW_BYTES = PANEL * 16, PANEL_BYTES = TILE_ROWS * ROW_BYTES;
    static constexpr int BYTES = TILE_ROWS * DIM * 2;
    // A multiple of 1024.
    u32 base;

    // What a chunk's number within its panel is exchanged by.
    static DEVICE u32 exchange(u32 row) { return PANEL == 8 ? row & 7 : (row >> 1) & 3; }

    // The address of a chunk (8 elements) of a row.
    DEVICE u32 chunk(u32 row, u32 index) const {
        return base + index / PANEL * PANEL_BYTES + row * ROW_BYTES + ((index % PANEL ^ exchange(row)) << 4);
    }

    // The same in two steps, the first of which is done once: a place in the first two columns of chunks, then an even number
    // of chunks further in the same row, and a multiple of 16 rows further down.
    DEVICE u32 place(u32 row, u32 odd) const { return base + row * ROW_BYTES + ((odd ^ exchange(row)) << 4); }
    static DEVICE u32 further(u32 place, int rows, int chunks) {
        return (place ^ (chunks % PANEL << 4)) + chunks / PANEL * PANEL_BYTES + rows * ROW_BYTES;
    }

    // Starts copies of rows `first` .., `token` elements apart, by `THREADS` threads, of which this is number `thread`. Rows
    // from `end` on and columns from `dim` (a multiple of 8) on become zeros.
    template <int THREADS>
    DEVICE void copy(Global<const u16> from, u32 thread, int first, int end, int dim, i64 token) const {
        const Global<const u16> tile = from + first * token;
        // Distances within a tile fit 32 bits, which leaves registers for the products.
        const i32 near = i32(token);
        copy_rows<THREADS>(tile, thread, 0, end - first, dim, [=](int row) { return i64(row * near); });
    }

    // The same where `start(row)` is the element at which a row begins. All threads call it equally often.
    // Elements of one byte lie two in the place of one: the tile is half as wide, and a chunk is 16 of them.
    template <int THREADS, class T, class Start>
    DEVICE void copy_rows(Global<const T> from, u32 thread, int first, int end, int dim, Start start) const {
        constexpr int CHUNK = 16 / sizeof(T);
        thread = opaque(thread);
        if (VARIANT == GENERAL_VARIANT && dim % CHUNK != 0) return copy_elements<THREADS>(from, thread, first, end, dim, start);
        constexpr int STRIDE = THREADS / PANEL;
        static_assert(TILE_ROWS % STRIDE == 0 || TILE_ROWS < STRIDE, "each thread copies whole columns of chunks");
        const u32 row = thread / PANEL, column = thread % PANEL;
#pragma unroll
        for (int i = 0; i * STRIDE < TILE_ROWS; i++) {
            const bool exists = first + int(row) + i * STRIDE < end;
            const i64 at = start(first + row + i * STRIDE) + column * CHUNK;
            if (TILE_ROWS < STRIDE && row >= TILE_ROWS) break;
            // Rows that are a multiple of 8 apart are exchanged alike.
            const u32 to = STRIDE % 8 == 0 ? chunk(row, column) + i * STRIDE * ROW_BYTES : chunk(row + i * STRIDE, column);
#pragma unroll
            for (int panel = 0; panel < DIM / 8 / PANEL; panel++) {
                const bool is_valid = exists && int(panel * PANEL + column) * CHUNK < dim;
                copy_async_16(to + panel * PANEL_BYTES, from, at + panel * PANEL * CHUNK, is_valid);
            }
        }
    }

    // The same of rows that are no whole chunks, whose elements only are aligned: these copies are over when it returns.
    template <int THREADS, class T, class Start>
    DEVICE void copy_elements(Global<const T> from, u32 thread, int first, int end, int dim, Start start) const {
        constexpr int STRIDE = THREADS / PANEL, CHUNK = 16 / sizeof(T), A_WORD = 4 / sizeof(T);
        const u32 row = thread / PANEL, column = thread % PANEL;
#pragma unroll 1
        for (int i = 0; i * STRIDE < TILE_ROWS; i++) {
            const bool exists = first + int(row) + i * STRIDE < end;
            const i64 at = start(first + row + i * STRIDE);
            if (TILE_ROWS < STRIDE && row >= TILE_ROWS) break;
#pragma unroll 1
            for (u32 index = column; index < DIM / 8; index += PANEL) {
                Vec4 v = {};
#pragma unroll
                for (u32 e = 0; e < CHUNK; e++)
                    if (exists && int(index * CHUNK + e) < dim)
                        v.word[e / A_WORD] |= u32(load(from, at + index * CHUNK + e)) << e % A_WORD * (32 / A_WORD);
                store_shared_vec4(chunk(row + i * STRIDE, index), v);
            }
        }
    }
};

// Where a lane reads fragments: of queries from their row on, of keys, and of values.
template <class QTile> DEVICE u32 query_place(const QTile &tile, u32 row, u32 lane) {
    return tile.place(row + lane % 16, lane / 16);
}
template <class KTile> DEVICE u32 key_place(const KTile &tile, u32 key, u32 lane) {
    return tile.place(key + lane % 8 + lane / 16 * 8, lane / 8 % 2);
}
template <class VTile> DEVICE u32 value_place(const VTile &tile, u32 key, u32 lane) {
    return tile.place(key + lane % 16, lane / 16);
}

template <int M, int N> DEVICE void clear(f32 (&x)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) x[m][n][i] = 0.0f;
}

// s = Q K^T for the warp's M * 16 rows and STEP_KEYS keys, from a query place and a key place on.
template <class Element, int M, int STEP_KEYS, class QTile, class KTile, int DIM>
DEVICE void scores(f32 (&s)[M][STEP_KEYS / 8][4], u32 q, u32 k) {
    clear(s);
    q = opaque(q), k = opaque(k);
#pragma unroll
    for (int step = 0; step < DIM / 16; step++) {
        u32 a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) load_matrices(a[m], QTile::further(q, m * 16, 2 * step));
#pragma unroll
        for (int n = 0; n < STEP_KEYS / 16; n++) {
            u32 b[4];
            load_matrices(b, KTile::further(k, n * 16, 2 * step));
#pragma unroll
            for (int m = 0; m < M; m++) {
                Element::multiply(s[m][2 * n], a[m], b[0], b[1]);
                Element::multiply(s[m][2 * n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

// o += P V with P the warp's weights of STEP_KEYS keys and DIM columns of V, from a value place and an even column of chunks on.
template <class Element, int M, int STEP_KEYS, int DIM, class VTile>
DEVICE void accumulate(f32 (&o)[M][DIM / 8][4], const f32 (&p)[M][STEP_KEYS / 8][4], u32 v, int column = 0) {
    v = opaque(v);
#pragma unroll
    for (int step = 0; step < STEP_KEYS / 16; step++) {
        u32 a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) {
            a[m][0] = Element::pack(p[m][2 * step][0], p[m][2 * step][1]);
            a[m][1] = Element::pack(p[m][2 * step][2], p[m][2 * step][3]);
            a[m][2] = Element::pack(p[m][2 * step + 1][0], p[m][2 * step + 1][1]);
            a[m][3] = Element::pack(p[m][2 * step + 1][2], p[m][2 * step + 1][3]);
        }
#pragma unroll
        for (int n = 0; n < DIM / 16; n++) {
            u32 b[4];
            load_matrices_transposed(b, VTile::further(v, step * 16, column + 2 * n));
#pragma unroll
            for (int m = 0; m < M; m++) {
                Element::multiply(o[m][2 * n], a[m], b[0], b[1]);
                Element::multiply(o[m][2 * n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

// The largest score and the sum of weights of each of a thread's rows. The sum is of the thread's own columns until
// `finish` adds those of the other three lanes.
template <int M> struct Softmax {
    f32 largest[M][2], sum[M][2];

    DEVICE void start() {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) largest[m][half] = minus_infinity(), sum[m][half] = 0.0f;
    }

    // Turns scores into weights 2^(factor (s - largest)); what was accumulated so far is to be scaled by `rescale`. Where
    // `slack` is not 0, a row keeps its largest score as long as no weight becomes more than 2^slack: O and the sum are
    // relative to the same number either way, and rows are rarely to be scaled.
    template <int slack, int N> DEVICE void weigh(f32 (&s)[M][N][4], f32 (&rescale)[M][2], f32 factor) {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                f32 top = largest[m][half];
#pragma unroll
                for (int n = 0; n < N; n++) top = max_f32(top, max_f32(s[m][n][2 * half], s[m][n][2 * half + 1]));
                top = max_f32(top, shuffle_xor(top, 1));
                top = max_f32(top, shuffle_xor(top, 2));
                if (slack > 0 && (top - largest[m][half]) * factor <= f32(slack)) top = largest[m][half];
                // A row that has seen nothing keeps weights of 0 instead of 2^(-inf + inf).
                f32 base = top == minus_infinity() ? 0.0f : top * factor;
                rescale[m][half] = exp2_fast(largest[m][half] * factor - base);
                largest[m][half] = top;
                f32 total = sum[m][half] * rescale[m][half];
#pragma unroll
                for (int n = 0; n < N; n++)
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        f32 weight = exp2_fast(fused_multiply_add(s[m][n][2 * half + i], factor, -base));
                        s[m][n][2 * half + i] = weight;
                        total += weight;
                    }
                sum[m][half] = total;
            }
    }

    // Scales rows by a number each.
    template <int D> static DEVICE void scale(f32 (&o)[M][D][4], const f32 (&rescale)[M][2]) {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int d = 0; d < D; d++)
#pragma unroll
                for (int i = 0; i < 4; i++) o[m][d][i] *= rescale[m][i / 2];
    }

    // Turns scores into weights, and scales what was accumulated so far to the new largest.
    template <int N, int D> DEVICE void update(f32 (&s)[M][N][4], f32 (&o)[M][D][4], f32 factor) {
        f32 rescale[M][2];
        weigh<0>(s, rescale, factor);
        scale(o, rescale);
    }

    // Adds the sums of the four lanes of a row.
    DEVICE void finish() {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                sum[m][half] += shuffle_xor(sum[m][half], 1);
                sum[m][half] += shuffle_xor(sum[m][half], 2);
            }
    }

    // 1 / sum, and 0 for rows that see nothing.
    DEVICE f32 inverse(int m, int half) const { return sum[m][half] > 0.0f ? 1.0f / sum[m][half] : 0.0f; }
    // The same with the sink of a head in the sum.
    DEVICE f32 inverse(int m, int half, f32 factor, Global<const f32> sinks, int head) const {
        return inverse_with_sink(sum[m][half], largest[m][half] * factor, sinks, head);
    }

    // The natural logarithm of the sum of exponentials.
    DEVICE f32 log_sum_exp(int m, int half, f32 factor) const {
        return sum[m][half] > 0.0f ? (largest[m][half] * factor + log2_fast(sum[m][half])) * LN_2 : minus_infinity();
    }

    // Writes those of the warp's first `count` rows, `step` numbers apart.
    DEVICE void write_log_sum_exps(Global<f32> to, int count, u32 lane, f32 factor, int step = 1) const {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int row = m * 16 + half * 8 + lane / 4;
                if (lane % 4 == 0 && row < count) store(to, row * step, log_sum_exp(m, half, factor));
            }
    }
};

template <int M, int N> DEVICE void soft_cap_all(f32 (&s)[M][N][4], const Geometry &geometry) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) s[m][n][i] = soft_cap(geometry, s[m][n][i]);
}

// Tensors of biases, of (query, key) of the longest sequence; null where there are none.
struct Biases {
    Global<const u8> seen;
    Global<const u16> added;
};

// A row of scores that may have a bias: its query (of `count`), its position among the keys, the slope of its head.
struct BiasedRow {
    i32 query, count, position;
    f32 slope;
};

// Scores of the general variant from products, of keys from `key` on, of which there are `len_kv`; `biased_row(row)` is a row of the
// warp's.
template <class Element, int M, int N, class Row>
DEVICE void general_scores(f32 (&s)[M][N][4], const Geometry &geometry, int key, int len_kv, u32 lane, Biases biases,
                       Row biased_row) {
    lane = opaque(lane);
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const BiasedRow row = biased_row(m * 16 + half * 8 + lane / 4);
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const int j = key + n * 8 + (lane % 4) * 2 + i;
                    f32 &score = s[m][n][2 * half + i];
                    score = geometry.softcap != 0.0f ? soft_cap(geometry, score) : score * geometry.scale;
                    if (geometry.bias == ALIBI_BIAS)
                        score -= row.slope * (row.position < j ? j - row.position : row.position - j);
                    if (j >= len_kv || row.query >= row.count) continue;
                    const i64 at = i64(row.query) * geometry.len_kv + j;
                    if (geometry.bias == ADDITIVE_BIAS) score += Element::widen(load(biases.added, at));
                    if (geometry.bias == BOOL_BIAS && load(biases.seen, at) == 0) score = minus_infinity();
                }
        }
}

// Hides keys: `range(row)` is what a row of the warp's sees, of keys numbered from `key` on in this tile; `hidden` is what others
// become.
template <int M, int N, class Range>
DEVICE void mask(f32 (&s)[M][N][4], int key, u32 lane, Range range, f32 hidden = minus_infinity()) {
    lane = opaque(lane);
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            KeyRange seen = range(m * 16 + half * 8 + lane / 4);
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    int j = key + n * 8 + (lane % 4) * 2 + i;
                    if (j < seen.first || j >= seen.end) s[m][n][2 * half + i] = hidden;
                }
        }
}

// Writes a warp's rows of O, times `factor(m, half)`, through its own rows of a tile, so that memory sees whole rows.
// `place(row)` is where row `row` of the warp's begins; rows from `count` on are not written.
template <class Element, int M, int DIM, class OTile, class Factor, class Place>
DEVICE void write_rows(Global<u16> to, const f32 (&o)[M][DIM / 8][4], const OTile &tile, int row, int count, int dim,
                       int lane, Factor factor, Place place) {
    sync_warp();
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            f32 f = factor(m, half);
#pragma unroll
            for (int d = 0; d < DIM / 8; d++)
                store_shared(tile.chunk(row + m * 16 + half * 8 + lane / 4, d) + (lane % 4) * 4,
                             Element::pack(o[m][d][2 * half] * f, o[m][d][2 * half + 1] * f));
        }
    sync_warp();
    constexpr int CHUNKS = DIM / 8;
    for (int item = lane; item < M * 16 * CHUNKS; item += 32) {
        int r = item / CHUNKS, index = item % CHUNKS;
        if (r < count && index * 8 < dim)
            store_chunk(to, place(r), index * 8, dim, load_shared_vec4(tile.chunk(row + r, index)));
    }
}
