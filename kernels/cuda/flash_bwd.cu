// FlashAttention-2, backward (Dao 2023, algorithm 2), for sm_80 and later: (Q, K, V, O, LSE, dO) -> (dQ, dK, dV).
//
// With D = rowsum(dO O): S = Q K^T and P = exp(scale S - LSE) are computed again, dP = dO V^T, dS = P (dP - D), and
// dV = P^T dO, dK = scale dS^T Q, dQ = scale dS K. A row with LSE = -inf sees nothing and has no gradient.
//
//   flash_bwd_rows     D and LSE of each row; zeros for the sums of dQ.
//   flash_bwd_keys     A block holds KEYS keys and values of one KV head, with dK and dV in registers; Q, dO and the rows' sums
//                      stream through two stages, ROWS queries at a time, over all query heads of the group: dK and dV are
//                      sums in one block, in one order. dQ is added to f32 sums in memory, whose order is not fixed.
//   flash_bwd_sums     dQ from its sums.
// Where a problem is `deterministic`, nothing is added in memory:
//   flash_bwd_keys_only   the same without dQ, and
//   flash_bwd_queries     a block holds Q and dO of its queries with dQ in registers, and keys and values stream: scores and dP
//                         a second time, 7 products instead of 5, rather than blocks that wait for each other's turn, which
//                         would hang wherever a later block starts first.
//
// Scores are computed transposed, S^T = K Q^T: a warp owns WARP_KEYS keys, its P^T and dS^T are the left side of dV and dK as
// they lie in registers, and only dS goes through shared memory, for dQ. With SIDE_WARPS = 2, two warps share keys, halve the
// queries of S^T and the columns of dK and dV, and P^T goes through shared memory too: where d128 would leave a warp 16 keys,
// each fragment of Q and dO serves two products instead of one. Two barriers a tile.
//
// Tiles that no pair of is seen are skipped, and only those at an edge masked. Blocks of the first keys, which most queries
// see under a causal mask, start first.
//
// Floor, for pairs (query head, query, key): 2 (3 d_qk + 2 d_v) FLOPs each, over the rate of mma.sync: 312 TFLOP/s on an A100,
// and as an expectation 60 % of wgmma's 790 on an H200. One exponential a pair, at 16/clk/SM: 5 % of the products' time at d128,
// 10 % at d64. dQ's sums: 4 d_qk bytes for KEYS pairs, 1.2 TB/s through the second-level cache at d128 and 390 TFLOP/s. Bytes
// of tensors rule below a few hundred rows only. What is nearest to the products is shared memory, 128 bytes a clock: for
// d128 and 64 x 128 pairs, 5120 clocks of products on an A100 (4100 expected on an H200) beside 4350 of fragments, 260 of
// P and dS, 260 of copies; for d64, 2560 (2050) beside 2300, 130 and 130.
//
// Defines: ELEMENT (Bf16, F16), DIM_QK, DIM_V, ROWS, KEYS, KEY_WARPS, SIDE_WARPS, DQ_ROW_WARPS (warps that share the rows of dQ;
// the others share its columns), BLOCKS (a multiprocessor), QUERY_WARPS and QUERY_KEYS (flash_bwd_queries: 16 rows a warp, keys a
// tile), VARIANT (0, 1, 2: see geometry.cuh).
#include "flash_bwd.cuh"

using Element = ELEMENT;

constexpr int WARPS = KEY_WARPS * SIDE_WARPS, THREADS = WARPS * 32;
constexpr int WARP_KEYS = KEYS / KEY_WARPS, WARP_QUERIES = ROWS / SIDE_WARPS;
constexpr int DQ_COLUMN_WARPS = WARPS / DQ_ROW_WARPS, DQ_ROWS = ROWS / DQ_ROW_WARPS, DQ_COLUMNS = DIM_QK / DQ_COLUMN_WARPS;
static_assert(ROWS <= ROW_BLOCK && ROW_BLOCK % ROWS == 0, "workspaces are padded to whole tiles");

using KTile = Tile<KEYS, DIM_QK>;
using VTile = Tile<KEYS, DIM_V>;
using QTile = Tile<ROWS, DIM_QK>;
using GTile = Tile<ROWS, DIM_V>; // dO
using PTile = Tile<KEYS, ROWS>;  // P^T, dS^T

// ---- Rows -----------------------------------------------------------------------------------------------------------

// Grid: blocks of 64 rows * query heads * batch, rows fastest. Eight lanes a row.
KERNEL(256, 1)
flash_bwd_rows(Global<const u16> o, Global<const u16> d_o, Global<const f32> lse, Global<f32> row_sums, Global<f32> dq_sums,
               Global<const Sequence> sequences, Geometry geometry) {
    const int blocks = ceil_div(geometry.len_q, ROW_BLOCK), block = block_index();
    const int first = block % blocks * ROW_BLOCK, head = block / blocks % geometry.heads_q;
    const int number = block / blocks / geometry.heads_q;
    const Sequence sequence = sequence_at(geometry, sequences, number);
    const u32 thread = thread_index();
    const i64 base = first_row(geometry, number, head) + first;
    if (dq_sums.exists())
        for (int item = thread; item < ROW_BLOCK * DIM_QK / 4; item += 256) store_vec4(dq_sums, base * DIM_QK + item * 4, Vec4{});
#pragma unroll
    for (int r = 0; r < ROW_BLOCK; r += 32) {
        const int row = r + thread / 8;
        const bool exists = first + row < sequence.len_q;
        f32 delta = 0.0f, log_sum_exp = minus_infinity();
        if (exists) {
            const i64 at = sequence.o + head * geometry.o.head + i64(first + row) * geometry.o.token;
            for (int column = thread % 8 * 8; column < geometry.dim_v; column += 64) {
                if (VARIANT == GENERAL_VARIANT && geometry.dim_v % 8 != 0) {
                    for (int c = column; c < min_i32(column + 8, geometry.dim_v); c++)
                        delta += Element::widen(load(o, at + c)) * Element::widen(load(d_o, at + c));
                    continue;
                }
                const Vec4 a = load_vec4(o, at + column), b = load_vec4(d_o, at + column);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    delta += Element::widen(u16(a.word[i])) * Element::widen(u16(b.word[i]));
                    delta += Element::widen(u16(a.word[i] >> 16)) * Element::widen(u16(b.word[i] >> 16));
                }
            }
            log_sum_exp = load(lse, (i64(number) * geometry.heads_q + head) * geometry.len_q + first + row);
        }
        delta += shuffle_xor(delta, 1);
        delta += shuffle_xor(delta, 2);
        delta += shuffle_xor(delta, 4);
        if (thread % 8 == 0) {
            const bool is_empty = log_sum_exp == minus_infinity();
            store(row_sums, (base + row) * 2, is_empty ? -minus_infinity() : log_sum_exp * LOG2_E);
            store(row_sums, (base + row) * 2 + 1, is_empty ? 0.0f : delta);
        }
    }
}
ENTRY(flash_bwd_rows)

// ---- Keys -----------------------------------------------------------------------------------------------------------

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

// ---- Queries --------------------------------------------------------------------------------------------------------

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
