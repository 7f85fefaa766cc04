// dK, dV and the sums of dQ by blocks of keys: the second kernel of flash_bwd.cu, which says how and at what cost, and defines Element
// and the sizes.
#pragma once

#include "flash_bwd.cuh"

constexpr int WARPS = KEY_WARPS * SIDE_WARPS, THREADS = WARPS * 32;
constexpr int WARP_KEYS = KEYS / KEY_WARPS, WARP_QUERIES = ROWS / SIDE_WARPS;
constexpr int DQ_COLUMN_WARPS = WARPS / DQ_ROW_WARPS, DQ_ROWS = ROWS / DQ_ROW_WARPS, DQ_COLUMNS = DIM_QK / DQ_COLUMN_WARPS;
static_assert(ROWS <= ROW_BLOCK && ROW_BLOCK % ROWS == 0, "workspaces are padded to whole tiles");
static_assert(WARP_KEYS % 16 == 0 && WARP_QUERIES % 16 == 0 && DQ_ROWS % 16 == 0 && DQ_COLUMNS % 16 == 0,
              "warps own whole fragments");

using KTile = Tile<KEYS, DIM_QK>;
using VTile = Tile<KEYS, DIM_V>;
using QTile = Tile<ROWS, DIM_QK>;
using GTile = Tile<ROWS, DIM_V>; // dO
using PTile = Tile<KEYS, ROWS>;  // P^T, dS^T

// What a block computes, from its number.
struct KeyWork {
    int first, head, number;
    DEVICE explicit KeyWork(const Geometry &geometry) {
        const int block = block_index(), tiles = ceil_div(geometry.len_kv, KEYS);
        first = block % tiles * KEYS;
        head = block / tiles % geometry.heads_kv;
        number = block / tiles / geometry.heads_kv;
    }
};

// A tile of queries of a head: where the head's Q and dO begin, its first query, and that one's row in workspaces.
struct TilePlace {
    Global<const u16> q, d_o;
    int query, row;
    // The next tile of the head, or the first of the next head.
    DEVICE TilePlace next(const Geometry &geometry, int end_query, int first_query) const {
        if (query + ROWS < end_query) return {q, d_o, query + ROWS, row + ROWS};
        return {q + geometry.q.head, d_o + geometry.o.head, first_query, row - query + first_query + padded_rows(geometry)};
    }
};

// Shared memory: K, V, two stages of Q and dO, P where warps share keys, dS, two stages of the rows' sums.
constexpr u32 STAGE_BYTES = QTile::BYTES + GTile::BYTES, STAGES_AT = KTile::BYTES + VTile::BYTES;
constexpr u32 P_AT = STAGES_AT + 2 * STAGE_BYTES, DS_AT = P_AT + (SIDE_WARPS > 1 ? PTile::BYTES : 0);
constexpr u32 ROW_SUMS_AT = DS_AT + PTile::BYTES, ROW_SUMS_BYTES = ROWS * sizeof(RowSums);

template <bool ADDS_DQ>
DEVICE void gradients_of_keys(Global<const u16> q, Global<const u16> k, Global<const u16> v, Global<const u16> d_o,
                              Global<const f32> row_sums, Global<u16> dk, Global<u16> dv, Global<f32> dq_sums,
                              Global<const Sequence> sequences, const Geometry &geometry) {
    const u32 shared = shared_memory();
    f32 dk_sum[WARP_KEYS / 16][DIM_QK / SIDE_WARPS / 8][4], dv_sum[WARP_KEYS / 16][DIM_V / SIDE_WARPS / 8][4];
    clear(dk_sum);
    clear(dv_sum);
    {
        const KeyWork work(geometry);
        const Sequence sequence = sequence_at(geometry, sequences, work.number);
        const int first = work.first, last = min_i32(first + KEYS, sequence.len_kv) - 1;
        if (first > last) return;
        const int group = geometry.heads_q / geometry.heads_kv;
        k = k + (sequence.k + work.head * geometry.k.head);
        v = v + (sequence.v + work.head * geometry.v.head);

        // Queries that the first key is too old for, and the last too young for, bound those that see some key.
        const int first_query = queries_of_key(geometry, sequence, first).first / ROWS * ROWS;
        const int end_query = queries_of_key(geometry, sequence, last).end;
        // Those from here to there see every key.
        const int first_full = first + KEYS <= sequence.len_kv ? queries_of_key(geometry, sequence, last).first : end_query;
        const int end_full = queries_of_key(geometry, sequence, first).end;
        const int tiles = max_i32(ceil_div(end_query - first_query, ROWS), 0);
        TilePlace place = {q + (sequence.q + work.head * group * geometry.q.head),
                           d_o + (sequence.o + work.head * group * geometry.o.head), first_query,
                           i32(first_row(geometry, work.number, work.head * group)) + first_query};

        const auto fetch = [&](const TilePlace &tile, u32 stage) {
            const u32 thread = thread_index(), at = shared + STAGES_AT + stage * STAGE_BYTES;
            QTile{at}.copy<THREADS>(tile.q, thread, tile.query, sequence.len_q, geometry.dim_qk, geometry.q.token);
            GTile{at + QTile::BYTES}.copy<THREADS>(tile.d_o, thread, tile.query, sequence.len_q, geometry.dim_v, geometry.o.token);
            if (thread < ROWS / 2)
                copy_async_16(shared + ROW_SUMS_AT + stage * ROW_SUMS_BYTES + thread * 16, row_sums, i64(tile.row) * 2 + thread * 4,
                              true);
            copy_async_commit();
        };
        if (tiles > 0) {
            const u32 thread = thread_index();
            KTile{shared}.copy<THREADS>(k, thread, first, sequence.len_kv, geometry.dim_qk, geometry.k.token);
            VTile{shared + KTile::BYTES}.copy<THREADS>(v, thread, first, sequence.len_kv, geometry.dim_v, geometry.v.token);
            fetch(place, 0);
        }

        u32 stage = 0;
        for (int turns = tiles * group; turns > 0; turns--) {
            const u32 at = shared + STAGES_AT + stage * STAGE_BYTES;
            const QTile q_tile{at};
            const GTile g_tile{at + QTile::BYTES};
            const PTile p_tile{shared + P_AT}, ds_tile{shared + DS_AT};
            // This stage is here, and everybody is done with the other and with dS.
            copy_async_wait<0>();
            sync_threads();
            if (turns > 1) {
                const TilePlace next = place.next(geometry, end_query, first_query);
                fetch(next, stage ^ 1);
            }

            const u32 thread = thread_index(), lane = thread % 32, warp = thread / 32;
            const u32 warp_key = warp / SIDE_WARPS * WARP_KEYS, side = warp % SIDE_WARPS;
            {
                f32 s[WARP_KEYS / 16][WARP_QUERIES / 8][4], dp[WARP_KEYS / 16][WARP_QUERIES / 8][4];
                const u32 warp_query = side * WARP_QUERIES;
                scores<Element, WARP_KEYS / 16, WARP_QUERIES, KTile, QTile, DIM_QK>(
                    s, query_place(KTile{shared}, warp_key, lane), key_place(q_tile, warp_query, lane));
                scores<Element, WARP_KEYS / 16, WARP_QUERIES, VTile, GTile, DIM_V>(
                    dp, query_place(VTile{shared + KTile::BYTES}, warp_key, lane), key_place(g_tile, warp_query, lane));
                weigh_columns(s, dp, shared + ROW_SUMS_AT + stage * ROW_SUMS_BYTES + warp_query * sizeof(RowSums), lane,
                              geometry.scale * LOG2_E, geometry);
                if (place.query < first_full || place.query + ROWS > end_full) {
                    // What is needed here and nowhere else in the loop is computed again.
                    const KeyWork work(geometry);
                    const Sequence sequence = sequence_at(geometry, sequences, work.number);
                    const auto seen = [&](int row) { return queries_of_key(geometry, sequence, work.first + warp_key + row); };
                    mask(s, place.query + warp_query, lane, seen, 0.0f);
                    mask(dp, place.query + warp_query, lane, seen, 0.0f);
                }
                if (SIDE_WARPS > 1)
                    store_fragments<Element, PTile, 1>(fragment_place(p_tile, warp_key, warp_query / 8, lane), s);
                if (SIDE_WARPS > 1 || ADDS_DQ)
                    store_fragments<Element, PTile, 1>(fragment_place(ds_tile, warp_key, warp_query / 8, lane), dp);
                if (SIDE_WARPS > 1 || ADDS_DQ) {
                    // P and dS are here.
                    sync_threads();
                }
#if SIDE_WARPS == 1
                accumulate<Element, WARP_KEYS / 16, ROWS, DIM_V, GTile>(dv_sum, s, value_place(g_tile, 0, lane));
                accumulate<Element, WARP_KEYS / 16, ROWS, DIM_QK, QTile>(dk_sum, dp, value_place(q_tile, 0, lane));
#endif
            }
#if SIDE_WARPS > 1
            multiply_tiles<Element, WARP_KEYS / 16, ROWS, DIM_V / SIDE_WARPS, SIDE_WARPS, false, PTile, GTile>(
                dv_sum, query_place(p_tile, warp_key, lane), GTile::further(value_place(g_tile, 0, lane), 0, 2 * side));
            multiply_tiles<Element, WARP_KEYS / 16, ROWS, DIM_QK / SIDE_WARPS, SIDE_WARPS, false, PTile, QTile>(
                dk_sum, query_place(ds_tile, warp_key, lane), QTile::further(value_place(q_tile, 0, lane), 0, 2 * side));
#endif
            if constexpr (ADDS_DQ) {
                const u32 dq_row = warp % DQ_ROW_WARPS * DQ_ROWS, dq_column = warp / DQ_ROW_WARPS;
                f32 dq[DQ_ROWS / 16][DQ_COLUMNS / 8][4];
                clear(dq);
                multiply_tiles<Element, DQ_ROWS / 16, KEYS, DQ_COLUMNS, DQ_COLUMN_WARPS, true, PTile, KTile>(
                    dq, PTile::further(key_place(ds_tile, 0, lane), 0, dq_row / 8),
                    KTile::further(value_place(KTile{shared}, 0, lane), 0, 2 * dq_column));
                const i64 at = i64(u32(place.row + dq_row) / 16) * (DIM_QK / 8) + 2 * dq_column;
#pragma unroll
                for (int m = 0; m < DQ_ROWS / 16; m++)
#pragma unroll
                    for (int n = 0; n < DQ_COLUMNS / 8; n++)
                        add_fragment(dq_sums, at + m * (DIM_QK / 8) + n / 2 * 2 * DQ_COLUMN_WARPS + n % 2, lane, dq[m][n]);
            }
            place = place.next(geometry, end_query, first_query), stage ^= 1;
        }
    }

    // What is needed from here on is computed again, so that it takes no registers from the products.
    const KeyWork work(geometry);
    const Sequence sequence = sequence_at(geometry, sequences, work.number);
    const u32 thread = thread_index(), lane = thread % 32, warp = thread / 32;
    const u32 warp_key = warp / SIDE_WARPS * WARP_KEYS, side = warp % SIDE_WARPS;
    const KTile dk_tile{shared};
    const VTile dv_tile{shared + KTile::BYTES};
    // Nobody reads K and V any more, which the gradients take the place of.
    sync_threads();
    store_fragments<Element, KTile, SIDE_WARPS>(fragment_place(dk_tile, warp_key, 2 * side, lane), dk_sum, geometry.scale);
    store_fragments<Element, VTile, SIDE_WARPS>(fragment_place(dv_tile, warp_key, 2 * side, lane), dv_sum);
    sync_threads();
    const int count = sequence.len_kv - work.first;
    write_tile<THREADS>(dk + (sequence.k + work.head * geometry.k.head + work.first * geometry.k.token), dk_tile, thread, count,
                        geometry.dim_qk, geometry.k.token);
    write_tile<THREADS>(dv + (sequence.v + work.head * geometry.v.head + work.first * geometry.v.token), dv_tile, thread, count,
                        geometry.dim_v, geometry.v.token);
}

// Grid: key tiles * KV heads * batch, tiles fastest.
KERNEL(THREADS, BLOCKS)
flash_bwd_keys(Global<const u16> q, Global<const u16> k, Global<const u16> v, Global<const u16> d_o, Global<const f32> row_sums,
               Global<u16> dk, Global<u16> dv, Global<f32> dq_sums, Global<const Sequence> sequences, Geometry geometry) {
    gradients_of_keys<true>(q, k, v, d_o, row_sums, dk, dv, dq_sums, sequences, geometry);
}
ENTRY(flash_bwd_keys)

// The same grid, and no dQ.
KERNEL(THREADS, BLOCKS)
flash_bwd_keys_only(Global<const u16> q, Global<const u16> k, Global<const u16> v, Global<const u16> d_o,
                    Global<const f32> row_sums, Global<u16> dk, Global<u16> dv, Global<const Sequence> sequences,
                    Geometry geometry) {
    gradients_of_keys<false>(q, k, v, d_o, row_sums, dk, dv, Global<f32>{}, sequences, geometry);
}
ENTRY(flash_bwd_keys_only)
