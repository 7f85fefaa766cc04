// Attention over Linformer's K' and V' (Wang et al. 2020), of at most 256 rows, which stay in shared memory.
//
// A block loads K' and V' of a head once. After that its warps need no barrier: each takes 32 queries after 32 others, in the loop of
// flash.cu over keys that are always there.
//
// Tiles: 32 rows a warp, 8 warps; 32 keys a step, 64 at d64. Floor: linformer.cu's; against flash.cu it saves two barriers every 32
// keys and, at 16 bytes a cycle, half of the level-2 cache's rate.
//
// Defines: ELEMENT (Bf16, F16), HEAD_DIM (64, 128), KEYS.
#include "attend.cuh"

using Element = ELEMENT;
constexpr int WARPS = 8, THREADS = WARPS * 32;
// K' and V' resident, the queries of each warp and, after them, its rows of O.
constexpr int MOST_RANK = 256, M = 2, ROWS = 16 * M;
using KvTile = Tile<MOST_RANK, HEAD_DIM>;
using QTile = Tile<ROWS, HEAD_DIM>;

// Grid: blocks of a head * query heads * batch; a block's warps take every so manieth 32 queries of a head.
KERNEL(THREADS, 1)
linformer_attend(Global<const u16> q, Global<const u16> projected_k, Global<const u16> projected_v, Global<u16> o, Global<f32> lse,
                 Geometry geometry, i32 rank, i32 blocks_a_head) {
    const u32 thread = thread_index(), lane = thread % 32, warp = thread / 32;
    const int head = block_index() / blocks_a_head % geometry.heads_q, number = block_index() / blocks_a_head / geometry.heads_q;
    const KvTile k_tile{shared_memory()}, v_tile{shared_memory() + KvTile::BYTES};
    const QTile q_tile{shared_memory() + 2 * KvTile::BYTES + warp * QTile::BYTES};
    {
        const i64 pair = number * geometry.heads_kv + head / (geometry.heads_q / geometry.heads_kv);
        k_tile.copy<THREADS>(projected_k + pair * rank * geometry.dim_qk, thread, 0, rank, geometry.dim_qk, geometry.dim_qk);
        v_tile.copy<THREADS>(projected_v + pair * rank * geometry.dim_v, thread, 0, rank, geometry.dim_v, geometry.dim_v);
        copy_async_commit();
        copy_async_wait<0>();
        sync_threads();
    }
    q = q + (number * geometry.q.sequence + head * geometry.q.head);
    o = o + (number * geometry.o.sequence + head * geometry.o.head);
    const i64 lse_at = (i64(number) * geometry.heads_q + head) * geometry.len_q;
    const f32 factor = exponent_scale(geometry, false);
    const u32 q_at = query_place(q_tile, 0, lane), k_at = key_place(k_tile, 0, lane), v_at = value_place(v_tile, 0, lane);
    for (int first = (block_index() % blocks_a_head * WARPS + warp) * ROWS; first < geometry.len_q; first += blocks_a_head * WARPS * ROWS) {
        // The rows of O that were there have been read.
        sync_warp();
        q_tile.copy<32>(q, lane, first, geometry.len_q, geometry.dim_qk, geometry.q.token);
        copy_async_commit();
        copy_async_wait<0>();
        sync_warp();
        f32 out[M][HEAD_DIM / 8][4];
        clear(out);
        Softmax<M> softmax;
        softmax.start();
        for (int key = 0; key < rank; key += KEYS) {
            f32 s[M][KEYS / 8][4];
            scores<Element, M, KEYS, QTile, KvTile, HEAD_DIM>(s, q_at, k_at + key * KvTile::ROW_BYTES);
            if (key + KEYS > rank) mask(s, key, lane, [&](int) { return KeyRange{0, rank}; });
            softmax.update(s, out, factor);
            accumulate<Element, M, KEYS, HEAD_DIM, KvTile>(out, s, v_at + key * KvTile::ROW_BYTES);
        }
        softmax.finish();
        const int count = geometry.len_q - first;
        if (lse.exists()) softmax.write_log_sum_exps(lse + (lse_at + first), count, lane, factor);
        write_rows<Element, M, HEAD_DIM>(
            o + first * geometry.o.token, out, q_tile, 0, count, geometry.dim_v, lane,
            [&](int m, int half) { return softmax.inverse(m, half); }, [&](int r) { return r * geometry.o.token; });
    }
}
ENTRY(linformer_attend)
