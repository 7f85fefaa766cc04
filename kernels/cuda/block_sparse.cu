// Softmax attention over lists of key tiles (Child et al. 2019; Zaheer et al. 2020), for sm_80 and later.
//
// The plan lists, for each tile of 64 queries of a head, the tiles of 64 keys that hold a visible pair, and for those that
// some query sees in part a mask of 64 x 64 bits; equal masks are stored once. So one kernel computes every pattern, and its
// time falls with the tiles. The loop is flash.cu's: V of a tile arrives during Q K^T, K of the next one during P V.
//
// Tiles: 64 x 64, 4 warps. Limit aimed at: the rate of mma.m16n8k16, times the part of the listed tiles that is visible.
//
// Defines: ELEMENT (Bf16, F16), DIM_QK, DIM_V.
#include "attend.cuh"

using Element = ELEMENT;
constexpr int ROWS = 64, KEYS = 64, WARPS = 4, THREADS = WARPS * 32;
using QTile = Tile<ROWS, DIM_QK>;
using KTile = Tile<KEYS, DIM_QK>;
using VTile = Tile<KEYS, DIM_V>;
using OTile = Tile<ROWS, DIM_V>;

// A tile of keys and its mask, -1 where every pair is visible.
struct KeyTile {
    i32 index, mask;
};

// Grid: query tiles * query heads * batch. `rows` of (sequence, head) is where its lists begin in `starts`: list t of it are the
// tiles starts[t] .. starts[t + 1] - 1. A mask is 64 rows of two words, the lower keys first. Shared memory: Q or O, K, V.
KERNEL(THREADS, 1)
block_sparse(Global<const u16> q, Global<const u16> k, Global<const u16> v, Global<u16> o, Global<f32> lse,
             Global<const Sequence> sequences, Geometry geometry, Global<const i32> rows, Global<const i32> starts,
             Global<const KeyTile> tiles, Global<const u32> masks) {
    constexpr int Q_BYTES = QTile::BYTES > OTile::BYTES ? QTile::BYTES : OTile::BYTES;
    const QTile q_tile{shared_memory()};
    const KTile k_tile{shared_memory() + Q_BYTES};
    const VTile v_tile{k_tile.base + KTile::BYTES};
    const u32 thread = thread_index(), lane = thread % 32, warp_row = thread / 32 * 16;
    const int query_tiles = ceil_div(geometry.len_q, ROWS);
    const int query_tile = block_index() % query_tiles, head = block_index() / query_tiles % geometry.heads_q;
    const int number = block_index() / query_tiles / geometry.heads_q, first = query_tile * ROWS;
    const int head_kv = head / (geometry.heads_q / geometry.heads_kv);
    const Sequence sequence = sequence_at(geometry, sequences, number);
    if (first >= sequence.len_q) return;
    q = q + (sequence.q + head * geometry.q.head);
    k = k + (sequence.k + head_kv * geometry.k.head);
    v = v + (sequence.v + head_kv * geometry.v.head);

    const int list = load(rows, number * geometry.heads_q + head) + query_tile;
    const int start = load(starts, list), end = load(starts, list + 1);
    KeyTile next = start < end ? load_struct(tiles, start) : KeyTile{0, -1};
    if (start < end) {
        q_tile.copy<THREADS>(q, thread, first, sequence.len_q, geometry.dim_qk, geometry.q.token);
        k_tile.copy<THREADS>(k, thread, next.index * KEYS, sequence.len_kv, geometry.dim_qk, geometry.k.token);
        copy_async_commit();
    }

    f32 out[1][DIM_V / 8][4];
    clear(out);
    Softmax<1> softmax;
    softmax.start();
    const f32 factor = exponent_scale(geometry, geometry.softcap != 0.0f);
    for (int at = start; at < end; at++) {
        const KeyTile tile = next;
        if (at + 1 < end) next = load_struct(tiles, at + 1);
        copy_async_wait<0>();
        sync_threads();
        v_tile.copy<THREADS>(v, thread, tile.index * KEYS, sequence.len_kv, geometry.dim_v, geometry.v.token);
        copy_async_commit();

        f32 s[1][KEYS / 8][4];
        scores<Element, 1, KEYS, QTile, KTile, DIM_QK>(s, query_place(q_tile, warp_row, lane), key_place(k_tile, 0, lane));

        copy_async_wait<0>();
        sync_threads();
        if (at + 1 < end) {
            k_tile.copy<THREADS>(k, thread, next.index * KEYS, sequence.len_kv, geometry.dim_qk, geometry.k.token);
            copy_async_commit();
        }
        if (geometry.softcap != 0.0f) soft_cap_all(s, geometry);
        if (tile.mask >= 0)
            for (int half = 0; half < 2; half++)
                for (int word = 0; word < 2; word++) {
                    const u32 bits = load(masks, i64(tile.mask) * (2 * ROWS) + (warp_row + half * 8 + lane / 4) * 2 + word);
#pragma unroll
                    for (int n = 0; n < 4; n++)
#pragma unroll
                        for (int i = 0; i < 2; i++)
                            if (!(bits >> (n * 8 + lane % 4 * 2 + i) & 1)) s[0][word * 4 + n][2 * half + i] = minus_infinity();
                }
        softmax.update(s, out, factor);
        accumulate<Element, 1, KEYS, DIM_V, VTile>(out, s, value_place(v_tile, 0, lane));
    }

    softmax.finish();
    const int row = first + warp_row, count = sequence.len_q - row;
    if (lse.exists())
        softmax.write_log_sum_exps(lse + ((i64(number) * geometry.heads_q + head) * geometry.len_q + row), count, lane, factor);
    if (DIM_QK != DIM_V) sync_threads();
    write_rows<Element, 1, DIM_V>(
        o + (sequence.o + head * geometry.o.head + row * geometry.o.token), out, OTile{shared_memory()}, warp_row, count,
        geometry.dim_v, lane, [&](int m, int half) { return softmax.inverse(m, half); },
        [&](int r) { return r * geometry.o.token; });
}
ENTRY(block_sparse)
