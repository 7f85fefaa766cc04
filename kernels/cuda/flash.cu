// FlashAttention-2, forward (Dao 2023, algorithm 1), for sm_80 and later.
//
// A block computes ROWS queries of one head: Q stays in shared memory, tiles of KEYS keys and values stream through it, and
// the output, the largest score and the sum of weights of each row stay in registers. Queries that see no key of a tile
// skip it: the tiles visited are those that the band of the pattern (all keys, causal, a window) meets, last first, and only
// tiles at its edges are masked element by element. Blocks with the most tiles, the last rows under a causal mask, start
// first.
//
// Copies: V of a tile arrives during Q K^T, K of the next one during the softmax and P V; two barriers a tile.
// Tiles (ROWS x KEYS, warps): d64 and d96 128 x 64, 4; d128 128 x 32, 4; d192, d256 and 192:128 128 x 64, 8. With 64 keys,
// d128 would spill registers; so would a softcap, with which d96 is 128 x 32, 4 and d128 128 x 64, 8. The general variant
// is 128 x 32, 8 throughout.
// Limit aimed at: the rate of mma.m16n8k16. Every fragment of K and V serves ROWS / (16 warps) products; with two, loads
// from shared memory take half as long as the products.
//
// Defines: ELEMENT (Bf16, F16), DIM_QK, DIM_V, ROWS, KEYS, WARPS, VARIANT (0, 1, 2: see geometry.cuh).
#include "attend.cuh"

using Element = ELEMENT;

constexpr int THREADS = WARPS * 32;
constexpr int M = ROWS / (16 * WARPS);
using QTile = Tile<ROWS, DIM_QK>;
using KTile = Tile<KEYS, DIM_QK>;
using VTile = Tile<KEYS, DIM_V>;
using OTile = Tile<ROWS, DIM_V>;

// What a block computes, from its number.
struct Work {
    int first, head, number;
    DEVICE explicit Work(const Geometry &geometry) {
        const int block = block_index(), tiles = ceil_div(geometry.len_q, ROWS);
        first = (tiles - 1 - block % tiles) * ROWS;
        head = block / tiles % geometry.heads_q;
        number = block / tiles / geometry.heads_q;
    }
};

// Grid: query tiles * query heads * batch, tiles fastest. Shared memory: Q (or O where larger), K, V.
KERNEL(THREADS, 1)
flash(Global<const u16> q, Global<const u16> k, Global<const u16> v, Global<u16> o, Global<f32> lse,
      Global<const f32> sinks, Global<const u8> bool_bias, Global<const u16> additive_bias, Global<const Sequence> sequences,
      Geometry geometry) {
    constexpr int Q_BYTES = QTile::BYTES > OTile::BYTES ? QTile::BYTES : OTile::BYTES;
    const QTile q_tile{shared_memory()};
    const KTile k_tile{shared_memory() + Q_BYTES};
    const VTile v_tile{shared_memory() + Q_BYTES + KTile::BYTES};

    f32 out[M][DIM_V / 8][4];
    clear(out);
    Softmax<M> softmax;
    softmax.start();
    const f32 factor = exponent_scale(geometry, VARIANT != PLAIN_VARIANT);
    {
        const Work work(geometry);
        const Sequence sequence = sequence_at(geometry, sequences, work.number);
        const int first = work.first, last = min_i32(first + ROWS, sequence.len_q) - 1;
        if (first > last) return;
        const int head_kv = work.head / (geometry.heads_q / geometry.heads_kv);
        q = q + (sequence.q + work.head * geometry.q.head);
        k = k + (sequence.k + head_kv * geometry.k.head);
        v = v + (sequence.v + head_kv * geometry.v.head);

        const u32 thread = thread_index(), lane = thread % 32, warp_row = thread / 32 * 16 * M;
        const u32 q_at = query_place(q_tile, warp_row, lane);
        const u32 k_at = key_place(k_tile, 0, lane), v_at = value_place(v_tile, 0, lane);

        const KeyRange range = keys_of_rows(geometry, sequence, first, last);
        const int first_tile = range.first / KEYS;
        const int end_tile = range.end > range.first ? ceil_div(range.end, KEYS) : first_tile;
        if (first_tile < end_tile) {
            q_tile.copy<THREADS>(q, thread, first, sequence.len_q, geometry.dim_qk, geometry.q.token);
            k_tile.copy<THREADS>(k, thread, (end_tile - 1) * KEYS, sequence.len_kv, geometry.dim_qk, geometry.k.token);
            copy_async_commit();
        }

        for (int tile = end_tile - 1; tile >= first_tile; tile--) {
            // K of this tile is here, and everybody is done with V of the one before.
            copy_async_wait<0>();
            sync_threads();
            v_tile.copy<THREADS>(v, thread, tile * KEYS, sequence.len_kv, geometry.dim_v, geometry.v.token);
            copy_async_commit();

            f32 s[M][KEYS / 8][4];
            scores<Element, M, KEYS, QTile, KTile, DIM_QK>(s, q_at, k_at);

            // V of this tile is here, and everybody is done with K.
            copy_async_wait<0>();
            sync_threads();
            if (tile > first_tile) {
                k_tile.copy<THREADS>(k, thread, (tile - 1) * KEYS, sequence.len_kv, geometry.dim_qk, geometry.k.token);
                copy_async_commit();
            }

            if (VARIANT == CAPPED_VARIANT) soft_cap_all(s, geometry);
            if (VARIANT == GENERAL_VARIANT)
                general_scores<Element>(s, geometry, tile * KEYS, sequence.len_kv, lane, Biases{bool_bias, additive_bias}, [&](int row) {
                    const i32 query = first + warp_row + row;
                    return BiasedRow{query, sequence.len_q, query + sequence.query_offset, alibi_slope(geometry, work.head)};
                });
            if (!all_see(geometry, sequence, first, last, tile * KEYS, (tile + 1) * KEYS))
                mask(s, tile * KEYS, lane,
                     [&](int row) { return keys_of_row(geometry, sequence, first + warp_row + row); });
            softmax.update(s, out, factor);
            accumulate<Element, M, KEYS, DIM_V, VTile>(out, s, v_at);
        }
    }

    // What is needed from here on is computed again, so that it takes no registers from the products.
    const Work work(geometry);
    const Sequence sequence = sequence_at(geometry, sequences, work.number);
    const u32 lane = thread_index() % 32, warp_row = thread_index() / 32 * 16 * M;
    const int row = work.first + warp_row, count = sequence.len_q - row;
    softmax.finish();
    if (lse.exists()) {
        const i64 base = (i64(work.number) * geometry.heads_q + work.head) * geometry.len_q + row;
        softmax.write_log_sum_exps(lse + base, count, lane, factor);
    }
    // A warp's rows of Q are its own where O has as many columns; else another warp may still read what O is written over.
    if (DIM_QK != DIM_V) sync_threads();
    write_rows<Element, M, DIM_V>(
        o + (sequence.o + work.head * geometry.o.head + row * geometry.o.token), out, OTile{shared_memory()}, warp_row,
        count, geometry.dim_v, lane,
        [&](int m, int half) { return softmax.inverse(m, half, factor, sinks, work.head); },
        [&](int r) { return r * geometry.o.token; });
}
ENTRY(flash)
