// The parts of attention's backward on tensor cores (see `flash_bwd.cu`): products of tiles in shared memory, P and dS from
// scores and dP, and sums of dQ in global memory.
#pragma once

#include "attend.cuh"

// Rows of a head are padded to a multiple of this where a workspace holds something of each.
constexpr int ROW_BLOCK = 64;

DEVICE i32 padded_rows(const Geometry &geometry) { return ceil_div(geometry.len_q, ROW_BLOCK) * ROW_BLOCK; }

// The first of a head's rows in such a workspace.
DEVICE i64 first_row(const Geometry &geometry, int number, int head) {
    return (i64(number) * geometry.heads_q + head) * padded_rows(geometry);
}

// What P and dS need of a row: LSE log2(e), or infinity for rows that see nothing or do not exist, whose weights then are 0;
// and D = dO . O.
struct RowSums {
    f32 log_sum_exp, delta;
};

// o += A B for a warp's M * 16 rows and N columns, of A with DEPTH columns and B with as many rows. `a` is a place in a tile of
// A (a query place), or of A^T (a key place); `b` is a value place. The warp's columns are groups of 16, every STRIDE-th of B's.
template <class Element, int M, int DEPTH, int N, int STRIDE, bool IS_TRANSPOSED, class ATile, class BTile>
DEVICE void multiply_tiles(f32 (&o)[M][N / 8][4], u32 a, u32 b) {
    a = opaque(a), b = opaque(b);
#pragma unroll
    for (int step = 0; step < DEPTH / 16; step++) {
        u32 left[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) {
            if (IS_TRANSPOSED) load_matrices_transposed(left[m], ATile::further(a, step * 16, 2 * m));
            else load_matrices(left[m], ATile::further(a, m * 16, 2 * step));
        }
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
            u32 right[4];
            load_matrices_transposed(right, BTile::further(b, step * 16, 2 * STRIDE * n));
#pragma unroll
            for (int m = 0; m < M; m++) {
                Element::multiply(o[m][2 * n], left[m], right[0], right[1]);
                Element::multiply(o[m][2 * n + 1], left[m], right[2], right[3]);
            }
        }
    }
}

// A warp's place to write fragments to: rows from `row` on, from this column of chunks on.
template <class To> DEVICE u32 fragment_place(const To &tile, u32 row, u32 chunk, u32 lane) {
    return tile.place(row + lane / 4, chunk) + lane % 4 * 4;
}

// Writes a warp's rows, times `factor`, from a fragment place on; its columns are groups of 16, every STRIDE-th of the tile's.
template <class Element, class To, int STRIDE, int M, int N>
DEVICE void store_fragments(u32 place, const f32 (&x)[M][N][4], f32 factor = 1.0f) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int n = 0; n < N; n++)
                store_shared(To::further(place, m * 16 + half * 8, n / 2 * 2 * STRIDE + n % 2),
                             Element::pack(x[m][n][2 * half] * factor, x[m][n][2 * half + 1] * factor));
}

// Writes the first `count` rows of a tile with all threads of the block.
template <int THREADS, int ROWS_HELD, int DIM>
DEVICE void write_tile(Global<u16> to, const Tile<ROWS_HELD, DIM> &tile, u32 thread, int count, int dim, i64 token) {
    constexpr int CHUNKS = DIM / 8;
    for (int item = thread; item < ROWS_HELD * CHUNKS; item += THREADS) {
        const int row = item / CHUNKS, index = item % CHUNKS;
        if (row < count && index * 8 < dim) store_chunk(to, row * token, index * 8, dim, load_shared_vec4(tile.chunk(row, index)));
    }
}

// A score under a softcap, and the slope there. The slope goes to 0 as the score goes to the cap, where 1 - tanh^2 would be a
// difference of rounding errors: with e = exp(-2 |x|), it is 4 e / (1 + e)^2.
struct Capped {
    f32 score, slope;
};
DEVICE Capped soft_cap_with_slope(const Geometry &geometry, f32 score) {
    const f32 cap = geometry.softcap, x = score * (geometry.scale * reciprocal_fast(cap));
    const f32 e = exp2_fast(max_f32(x, -x) * (-2.0f * LOG2_E)), inverse = reciprocal_fast(1.0f + e);
    const f32 size = cap * (1.0f - e) * inverse;
    return {x < 0.0f ? -size : size, 4.0f * e * inverse * inverse};
}

// One pair: its score (Q K^T) becomes its weight P, and its dP becomes dS = P (dP - D), times the slope of a softcap.
DEVICE void weigh(f32 &score, f32 &gradient, f32 log_sum_exp, f32 delta, f32 factor, const Geometry &geometry) {
    if (VARIANT == CAPPED_VARIANT || (VARIANT == GENERAL_VARIANT && geometry.softcap != 0.0f)) {
        const Capped capped = soft_cap_with_slope(geometry, score);
        score = exp2_fast(fused_multiply_add(capped.score, LOG2_E, -log_sum_exp));
        gradient = score * (gradient - delta) * capped.slope;
    } else {
        score = exp2_fast(fused_multiply_add(score, factor, -log_sum_exp));
        gradient = score * (gradient - delta);
    }
}

// The same of a warp's transposed scores: rows are keys, columns queries whose `RowSums` begin at this shared address.
template <int M, int N>
DEVICE void weigh_columns(f32 (&s)[M][N][4], f32 (&dp)[M][N][4], u32 sums, u32 lane, f32 factor, const Geometry &geometry) {
    sums += lane % 4 * 2 * sizeof(RowSums);
#pragma unroll
    for (int n = 0; n < N; n++) {
        const Vec4 two = load_shared_vec4(sums + n * 8 * sizeof(RowSums));
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                weigh(s[m][n][i], dp[m][n][i], bits_to_f32(two.word[i % 2 * 2]), bits_to_f32(two.word[i % 2 * 2 + 1]), factor,
                      geometry);
    }
}

// ---- Sums of dQ -----------------------------------------------------------------------------------------------------
//
// A workspace of f32 that blocks of keys add to. Its order is that of fragments, so that a warp adds to 512 bytes in a row:
// for each 16 rows and 8 columns the four numbers of each lane, side by side where one instruction adds four, else 32 at a time.

DEVICE int sum_place(u32 lane, int i) { return ADDS_IN_FOURS ? lane * 4 + i : i * 32 + lane; }

// Adds a fragment to those of number `index`.
DEVICE void add_fragment(Global<f32> sums, i64 index, u32 lane, const f32 (&x)[4]) {
    if (ADDS_IN_FOURS) return reduce_add_4(sums, index * 128 + lane * 4, x);
#pragma unroll
    for (int i = 0; i < 4; i++) reduce_add(sums, index * 128 + sum_place(lane, i), x[i]);
}
