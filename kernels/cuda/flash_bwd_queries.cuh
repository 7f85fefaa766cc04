// dQ by blocks of queries: from the sums that flash_bwd_keys.cuh left or, where a problem is deterministic, from keys and values
// that stream past. The last kernels of flash_bwd.cu, which defines Element and the sizes.
#pragma once

#include "flash_bwd.cuh"

// dQ from its sums. Grid: blocks of 64 rows * query heads * batch, rows fastest; 16 rows a warp. Shared memory: 64 rows of dQ.
KERNEL(128, 1)
flash_bwd_sums(Global<const f32> dq_sums, Global<u16> dq, Global<const Sequence> sequences, Geometry geometry) {
    const int blocks = ceil_div(geometry.len_q, ROW_BLOCK), block = block_index();
    const int head = block / blocks % geometry.heads_q, number = block / blocks / geometry.heads_q;
    const Sequence sequence = sequence_at(geometry, sequences, number);
    const u32 lane = thread_index() % 32, warp_row = thread_index() / 32 * 16;
    const int row = block % blocks * ROW_BLOCK + warp_row;
    const i64 at = (first_row(geometry, number, head) + row) / 16 * (DIM_QK / 8);
    f32 sums[1][DIM_QK / 8][4];
#pragma unroll
    for (int n = 0; n < DIM_QK / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) sums[0][n][i] = load(dq_sums, (at + n) * 128 + sum_place(lane, i));
    write_rows<Element, 1, DIM_QK>(
        dq + (sequence.q + head * geometry.q.head + row * geometry.q.token), sums, Tile<ROW_BLOCK, DIM_QK>{shared_memory()},
        warp_row, sequence.len_q - row, geometry.dim_qk, lane, [&](int, int) { return geometry.scale; },
        [&](int r) { return r * geometry.q.token; });
}
ENTRY(flash_bwd_sums)

constexpr int QUERY_THREADS = QUERY_WARPS * 32, QUERY_ROWS = QUERY_WARPS * 16;

// Grid: query tiles * query heads * batch, tiles fastest. Shared memory: Q, dO, two stages of K and V.
KERNEL(QUERY_THREADS, 1)
flash_bwd_queries(Global<const u16> q, Global<const u16> k, Global<const u16> v, Global<const u16> d_o,
                  Global<const f32> row_sums, Global<u16> dq, Global<const Sequence> sequences, Geometry geometry) {
    using ATile = Tile<QUERY_ROWS, DIM_QK>;
    using BTile = Tile<QUERY_ROWS, DIM_V>;
    using KeyTile = Tile<QUERY_KEYS, DIM_QK>;
    using ValueTile = Tile<QUERY_KEYS, DIM_V>;
    const int block = block_index(), blocks = ceil_div(geometry.len_q, QUERY_ROWS);
    const int first = (blocks - 1 - block % blocks) * QUERY_ROWS, head = block / blocks % geometry.heads_q;
    const int number = block / blocks / geometry.heads_q;
    const Sequence sequence = sequence_at(geometry, sequences, number);
    const int last = min_i32(first + QUERY_ROWS, sequence.len_q) - 1;
    if (first > last) return;
    const int head_kv = head / (geometry.heads_q / geometry.heads_kv);
    const u32 thread = thread_index(), lane = thread % 32, warp_row = thread / 32 * 16;
    const u32 stages = shared_memory() + ATile::BYTES + BTile::BYTES;
    const ATile q_tile{shared_memory()};
    const BTile g_tile{shared_memory() + ATile::BYTES};
    k = k + (sequence.k + head_kv * geometry.k.head);
    v = v + (sequence.v + head_kv * geometry.v.head);

    const auto fetch = [&](int tile, u32 stage) {
        const u32 at = stages + stage * (KeyTile::BYTES + ValueTile::BYTES);
        KeyTile{at}.copy<QUERY_THREADS>(k, thread, tile * QUERY_KEYS, sequence.len_kv, geometry.dim_qk, geometry.k.token);
        ValueTile{at + KeyTile::BYTES}.copy<QUERY_THREADS>(v, thread, tile * QUERY_KEYS, sequence.len_kv, geometry.dim_v,
                                                           geometry.v.token);
        copy_async_commit();
    };
    const KeyRange range = keys_of_rows(geometry, sequence, first, last);
    const int first_tile = range.first / QUERY_KEYS;
    const int end_tile = range.end > range.first ? ceil_div(range.end, QUERY_KEYS) : first_tile;
    f32 sum[1][DIM_QK / 8][4];
    clear(sum);
    RowSums row_sum[2];
    if (first_tile < end_tile) {
        q_tile.copy<QUERY_THREADS>(q + (sequence.q + head * geometry.q.head), thread, first, sequence.len_q, geometry.dim_qk,
                                   geometry.q.token);
        g_tile.copy<QUERY_THREADS>(d_o + (sequence.o + head * geometry.o.head), thread, first, sequence.len_q, geometry.dim_v,
                                   geometry.o.token);
        fetch(first_tile, 0);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            // Rows of this block may lie beyond those that the workspace is padded to.
            const int row = min_i32(first + warp_row + half * 8 + lane / 4, padded_rows(geometry) - 1);
            const i64 at = (first_row(geometry, number, head) + row) * 2;
            row_sum[half] = {load(row_sums, at), load(row_sums, at + 1)};
        }
    }
    for (int tile = first_tile; tile < end_tile; tile++) {
        const u32 stage = (tile - first_tile) % 2, at = stages + stage * (KeyTile::BYTES + ValueTile::BYTES);
        const KeyTile k_tile{at};
        // This stage is here, and everybody is done with the other.
        copy_async_wait<0>();
        sync_threads();
        if (tile + 1 < end_tile) fetch(tile + 1, stage ^ 1);
        f32 s[1][QUERY_KEYS / 8][4], dp[1][QUERY_KEYS / 8][4];
        scores<Element, 1, QUERY_KEYS, ATile, KeyTile, DIM_QK>(s, query_place(q_tile, warp_row, lane), key_place(k_tile, 0, lane));
        scores<Element, 1, QUERY_KEYS, BTile, ValueTile, DIM_V>(dp, query_place(g_tile, warp_row, lane),
                                                                key_place(ValueTile{at + KeyTile::BYTES}, 0, lane));
#pragma unroll
        for (int n = 0; n < QUERY_KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                weigh(s[0][n][i], dp[0][n][i], row_sum[i / 2].log_sum_exp, row_sum[i / 2].delta, geometry.scale * LOG2_E,
                      geometry);
        if (!all_see(geometry, sequence, first, last, tile * QUERY_KEYS, (tile + 1) * QUERY_KEYS))
            mask(dp, tile * QUERY_KEYS, lane,
                 [&](int row) { return keys_of_row(geometry, sequence, first + warp_row + row); }, 0.0f);
        accumulate<Element, 1, QUERY_KEYS, DIM_QK, KeyTile>(sum, dp, value_place(k_tile, 0, lane));
    }
    const int row = first + warp_row;
    write_rows<Element, 1, DIM_QK>(
        dq + (sequence.q + head * geometry.q.head + row * geometry.q.token), sum, q_tile, warp_row, sequence.len_q - row,
        geometry.dim_qk, lane, [&](int, int) { return geometry.scale; }, [&](int r) { return r * geometry.q.token; });
}
ENTRY(flash_bwd_queries)
