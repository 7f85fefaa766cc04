// FlashAttention, forward (Dao et al. 2022, algorithm 1), for sm_80 and later.
//
// One block a head and sequence, as in the paper: the outer loop runs over tiles of keys and values, which stay in shared
// memory, the inner one over tiles of queries. The output, the largest score and the sum of weights of every row lie in
// memory, in f32, and are read, rescaled and written back for every tile of keys: the traffic that FlashAttention-2 saved by
// exchanging the loops. Each of these numbers belongs to one thread throughout, so no barrier guards them.
//
// Tiles: 64 queries x 64 keys (32 for d256), 4 warps. Limit aimed at: none; it is the algorithm to compare with.
//
// Defines: ELEMENT (Bf16, F16), DIM_QK, DIM_V.
#include "attend.cuh"

using Element = ELEMENT;
constexpr int ROWS = 64, KEYS = DIM_V > 192 ? 32 : 64, WARPS = 4, THREADS = WARPS * 32;
using QTile = Tile<ROWS, DIM_QK>;
using KTile = Tile<KEYS, DIM_QK>;
using VTile = Tile<KEYS, DIM_V>;

// A thread's numbers of one tile of queries, in memory: `out` in DIM_V / 8 vectors of 4, then 2 largest and 2 sums.
constexpr int STATE_VECTORS = DIM_V / 8 + 1;

struct State {
    Global<f32> memory;
    i64 first;
    // Vectors of neighbouring threads are neighbours.
    DEVICE i64 at(int tile, int vector) const { return ((first + i64(tile) * STATE_VECTORS + vector) * THREADS + thread_index()) * 4; }

    DEVICE Vec4 read(int tile, int vector) const {
        Vec4 v;
        for (int i = 0; i < 4; i++) v.word[i] = f32_to_bits(load(memory, at(tile, vector) + i));
        return v;
    }
    DEVICE void write(int tile, int vector, f32 a, f32 b, f32 c, f32 d) const {
        store_vec4(memory, at(tile, vector), Vec4{{f32_to_bits(a), f32_to_bits(b), f32_to_bits(c), f32_to_bits(d)}});
    }
};

// Grid: query heads * batch. Shared memory: Q, K, V.
KERNEL(THREADS, 1)
flash1(Global<const u16> q, Global<const u16> k, Global<const u16> v, Global<u16> o, Global<f32> lse,
       Global<const Sequence> sequences, Geometry geometry, Global<f32> states) {
    const u32 thread = thread_index(), lane = thread % 32, warp_row = thread / 32 * 16;
    const int head = block_index() % geometry.heads_q, number = block_index() / geometry.heads_q;
    const int head_kv = head / (geometry.heads_q / geometry.heads_kv);
    const Sequence sequence = sequence_at(geometry, sequences, number);
    q = q + (sequence.q + head * geometry.q.head);
    k = k + (sequence.k + head_kv * geometry.k.head);
    v = v + (sequence.v + head_kv * geometry.v.head);
    o = o + (sequence.o + head * geometry.o.head);
    const State state{states, i64(block_index()) * ceil_div(geometry.len_q, ROWS) * STATE_VECTORS};

    const QTile q_tile{shared_memory()};
    const KTile k_tile{q_tile.base + QTile::BYTES};
    const VTile v_tile{k_tile.base + KTile::BYTES};
    const int query_tiles = ceil_div(sequence.len_q, ROWS);
    const f32 factor = exponent_scale(geometry, geometry.softcap != 0.0f);

    for (int tile = 0; tile < query_tiles; tile++) {
        for (int d = 0; d < DIM_V / 8; d++) state.write(tile, d, 0.0f, 0.0f, 0.0f, 0.0f);
        state.write(tile, DIM_V / 8, minus_infinity(), minus_infinity(), 0.0f, 0.0f);
    }

    for (int key = 0; key < sequence.len_kv; key += KEYS) {
        // Everybody is done with the keys before.
        sync_threads();
        k_tile.copy<THREADS>(k, thread, key, sequence.len_kv, geometry.dim_qk, geometry.k.token);
        v_tile.copy<THREADS>(v, thread, key, sequence.len_kv, geometry.dim_v, geometry.v.token);
        copy_async_commit();
        for (int tile = 0; tile < query_tiles; tile++) {
            const int first = tile * ROWS, last = min_i32(first + ROWS, sequence.len_q) - 1;
            const KeyRange seen = keys_of_rows(geometry, sequence, first, last);
            if (seen.first >= key + KEYS || seen.end <= key) continue;
            sync_threads();
            q_tile.copy<THREADS>(q, thread, first, sequence.len_q, geometry.dim_qk, geometry.q.token);
            copy_async_commit();
            copy_async_wait<0>();
            sync_threads();

            f32 out[1][DIM_V / 8][4], s[1][KEYS / 8][4];
            scores<Element, 1, KEYS, QTile, KTile, DIM_QK>(s, query_place(q_tile, warp_row, lane), key_place(k_tile, 0, lane));
            if (geometry.softcap != 0.0f) soft_cap_all(s, geometry);
            if (!all_see(geometry, sequence, first, last, key, key + KEYS))
                mask(s, key, lane, [&](int row) { return keys_of_row(geometry, sequence, first + warp_row + row); });

            for (int d = 0; d < DIM_V / 8; d++) {
                const Vec4 part = state.read(tile, d);
                for (int i = 0; i < 4; i++) out[0][d][i] = bits_to_f32(part.word[i]);
            }
            const Vec4 part = state.read(tile, DIM_V / 8);
            Softmax<1> softmax;
            for (int half = 0; half < 2; half++) {
                softmax.largest[0][half] = bits_to_f32(part.word[half]);
                softmax.sum[0][half] = bits_to_f32(part.word[2 + half]);
            }
            softmax.update(s, out, factor);
            accumulate<Element, 1, KEYS, DIM_V, VTile>(out, s, value_place(v_tile, 0, lane));
            for (int d = 0; d < DIM_V / 8; d++) state.write(tile, d, out[0][d][0], out[0][d][1], out[0][d][2], out[0][d][3]);
            state.write(tile, DIM_V / 8, softmax.largest[0][0], softmax.largest[0][1], softmax.sum[0][0], softmax.sum[0][1]);
        }
        copy_async_wait<0>();
    }

    // Divide by the sums.
    Global<u32> pairs{reinterpret_cast<u32 *>(o.pointer)};
    for (int tile = 0; tile < query_tiles; tile++) {
        const Vec4 part = state.read(tile, DIM_V / 8);
        Softmax<1> softmax;
        for (int half = 0; half < 2; half++) {
            softmax.largest[0][half] = bits_to_f32(part.word[half]);
            softmax.sum[0][half] = bits_to_f32(part.word[2 + half]);
        }
        softmax.finish();
        const int first = tile * ROWS + warp_row, count = sequence.len_q - first;
        if (lse.exists())
            softmax.write_log_sum_exps(lse + ((i64(number) * geometry.heads_q + head) * geometry.len_q + first), count, lane,
                                       factor);
        for (int d = 0; d < DIM_V / 8; d++) {
            const Vec4 sums = state.read(tile, d);
            for (int half = 0; half < 2; half++) {
                const int row = half * 8 + lane / 4;
                const f32 inverse = softmax.inverse(0, half);
                const u32 pair = Element::pack(bits_to_f32(sums.word[2 * half]) * inverse,
                                               bits_to_f32(sums.word[2 * half + 1]) * inverse);
                if (row < count && d * 8 < geometry.dim_v)
                    store(pairs, ((first + row) * geometry.o.token + d * 8) / 2 + lane % 4, pair);
            }
        }
    }
}
ENTRY(flash1)
