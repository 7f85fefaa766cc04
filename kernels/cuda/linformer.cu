// Linformer (Wang et al. 2020, section 4): K' = E^T K and V' = F^T V, of `rank` rows, and softmax attention over them.
//
// E and F are f32 and shared by all heads: `linformer_round` rounds them to the element type once a call, as K' and V' are
// rounded too. Of E, whose errors grow in the exponent, what the rounding lost is a second term. `linformer_project` multiplies on tensor cores, sums in f32 and splits the tokens over blocks where heads alone
// do not fill the device; `linformer_reduce` adds the parts in their order, so that the result is the same every time.
// `linformer_attend.cu` attends or, where K' and V' do not fit its shared memory, flash.cu.
//
// Tiles: 256 or 128 rows of K' by 128 or 64 columns, 8 warps, steps of 64 tokens in two stages.
// Floor, d128, rank 256: 4 * 256 * 128 FLOPs a token and KV head to project (half as many again for E's second term) and as many
// a query to attend, 0.28 ns each at the rate expected of mma.sync (60 % of wgmma's 790 TFLOP/s), which rules; K, V, Q and O are
// 1 KiB a token, 0.24 ns at 4.3 TB/s. A block reads 80 KiB of E and K for 8.4 MFLOP, or 48 KiB of F and V for 4.2, 24 to 28
// bytes a cycle, which is what the level-2 cache gives. E and F
// themselves are 2 KiB a token for all heads together. Exponentials: 256 a query, 0.07 ns.
//
// Defines: ELEMENT (Bf16, F16), RANKS, COLUMNS.
#include "attend.cuh"

using Element = ELEMENT;
constexpr int WARPS = 8, THREADS = WARPS * 32;

// Terms that E is a sum of; F is one.
constexpr int TERMS = 2;
constexpr int TOKENS = 64, MR = RANKS / 64, NC = COLUMNS / 16;
using ETile = Tile<TOKENS, RANKS>;
using FromTile = Tile<TOKENS, COLUMNS>;

// The terms of E, then F, of `tokens` rows: rounded, in rows of `pitch` (a multiple of 8) filled up with zeros. Grid: numbers / 2048,
// 2.
KERNEL(THREADS, 1)
linformer_round(Global<const f32> e, Global<const f32> f, i32 tokens, i32 rank, i32 pitch, Global<u16> rounded) {
    const int side = block_index_y();
    const i64 at = (i64(block_index()) * THREADS + thread_index()) * 8;
    if (at >= i64(tokens) * pitch) return;
    const i64 token = at / pitch;
    const int first = at % pitch;
    f32 x[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const i64 from = token * rank + first + i;
        x[i] = first + i >= rank ? 0.0f : side ? load(f, from) : load(e, from);
    }
#pragma unroll
    for (int term = 0; term < TERMS; term++) {
        if (side && term) break;
        const Vec4 v = {{Element::pack(x[0], x[1]), Element::pack(x[2], x[3]), Element::pack(x[4], x[5]), Element::pack(x[6], x[7])}};
        store_vec4(rounded, i64(side * TERMS + term) * tokens * pitch + at, v);
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] -= Element::widen(u16(v.word[i / 2] >> i % 2 * 16));
    }
}
ENTRY(linformer_round)

// Parts, or with one part only what becomes of it: (part, sequence, head, rank, dim). Grid: column tiles * rank tiles * parts, KV
// heads * batch, sides (K, V).
KERNEL(THREADS, 1)
linformer_project(Global<const u16> k, Global<const u16> v, Global<const u16> rounded, Geometry geometry, i32 rank, i32 pitch,
                  i32 parts, i32 tokens_a_part, Global<f32> parts_k, Global<f32> parts_v, Global<u16> projected_k, Global<u16> projected_v) {
    const bool is_value = block_index_z();
    const int dim = is_value ? geometry.dim_v : geometry.dim_qk, column_tiles = ceil_div(max_i32(geometry.dim_qk, geometry.dim_v), COLUMNS);
    const int column = block_index() % column_tiles * COLUMNS, rank_tiles = ceil_div(rank, RANKS);
    const int first_rank = block_index() / column_tiles % rank_tiles * RANKS, part = block_index() / column_tiles / rank_tiles;
    const int pair = block_index_y(), head = pair % geometry.heads_kv, number = pair / geometry.heads_kv;
    if (column >= dim) return;
    const Strides &strides = is_value ? geometry.v : geometry.k;
    const Global<const u16> from = (is_value ? v : k) + (number * strides.sequence + head * strides.head + column);
    const Global<const u16> e = rounded + (i64(is_value) * TERMS * geometry.len_kv * pitch + first_rank);
    const int begin = part * tokens_a_part, end = min_i32(begin + tokens_a_part, geometry.len_kv);

    constexpr u32 E_BYTES = TERMS * ETile::BYTES, STAGE = E_BYTES + FromTile::BYTES;
    const u32 thread = thread_index(), lane = thread % 32, warp = thread / 32;
    auto copy = [&](u32 stage, int first) {
#pragma unroll
        for (int term = 0; term < TERMS; term++)
            if (term == 0 || !is_value)
                ETile{shared_memory() + stage + term * ETile::BYTES}.copy<THREADS>(
                    e + i64(term) * geometry.len_kv * pitch, thread, first, end, pitch - first_rank, pitch);
        FromTile{shared_memory() + stage + E_BYTES}.copy<THREADS>(from, thread, first, end, dim - column, strides.token);
        copy_async_commit();
    };
    // A warp's quarter of the ranks and half of the columns.
    const int rank_at = warp / 2 * (RANKS / 4), column_at = warp % 2 * (COLUMNS / 2);
    const u32 e_at = ETile::further(key_place(ETile{shared_memory()}, 0, lane), 0, rank_at / 8);
    const u32 from_at = FromTile::further(value_place(FromTile{shared_memory() + E_BYTES}, 0, lane), 0, column_at / 8);
    f32 sum[MR][NC][4];
    clear(sum);
    u32 stage = 0;
    if (begin < end) copy(stage, begin);
    for (int first = begin; first < end; first += TOKENS) {
        // These tokens are here, and everybody is done with those before.
        copy_async_wait<0>();
        sync_threads();
        if (first + TOKENS < end) copy(STAGE - stage, first + TOKENS);
#pragma unroll
        for (int step = 0; step < TOKENS / 16; step++) {
            u32 a[TERMS][MR][4];
#pragma unroll
            for (int term = 0; term < TERMS; term++)
#pragma unroll
                for (int m = 0; m < MR; m++)
                    if (term == 0 || !is_value)
                        load_matrices_transposed(a[term][m], ETile::further(e_at + stage + term * ETile::BYTES, step * 16, 2 * m));
#pragma unroll
            for (int n = 0; n < NC / 2; n++) {
                u32 b[4];
                load_matrices_transposed(b, FromTile::further(from_at + stage, step * 16, 2 * n));
#pragma unroll
                for (int term = 0; term < TERMS; term++)
#pragma unroll
                    for (int m = 0; m < MR; m++)
                        if (term == 0 || !is_value) {
                            Element::multiply(sum[m][2 * n], a[term][m], b[0], b[1]);
                            Element::multiply(sum[m][2 * n + 1], a[term][m], b[2], b[3]);
                        }
            }
        }
        stage = STAGE - stage;
    }
    const Global<f32> to_parts = is_value ? parts_v : parts_k;
    const Global<u16> to = is_value ? projected_v : projected_k;
    const i64 base = (i64(part) * geometry.batch * geometry.heads_kv + pair) * rank;
#pragma unroll
    for (int m = 0; m < MR; m++)
#pragma unroll
        for (int n = 0; n < NC; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int r = first_rank + rank_at + m * 16 + i / 2 * 8 + lane / 4, c = column + column_at + n * 8 + lane % 4 * 2 + i % 2;
                if (r >= rank || c >= dim) continue;
                if (parts == 1)
                    store(to, (base + r) * dim + c, narrow<Element>(sum[m][n][i]));
                else
                    store(to_parts, (base + r) * dim + c, sum[m][n][i]);
            }
}
ENTRY(linformer_project)

// Adds the parts. Grid: numbers / 256 of the larger side, 2.
KERNEL(THREADS, 1)
linformer_reduce(Global<const f32> parts_k, Global<const f32> parts_v, Global<u16> projected_k, Global<u16> projected_v,
                 Geometry geometry, i32 rank, i32 parts) {
    const bool is_value = block_index_y();
    const i64 size = i64(geometry.batch) * geometry.heads_kv * rank * (is_value ? geometry.dim_v : geometry.dim_qk);
    const i64 at = i64(block_index()) * THREADS + thread_index();
    if (at >= size) return;
    const Global<const f32> from = is_value ? parts_v : parts_k;
    f32 sum = 0.0f;
    for (int part = 0; part < parts; part++) sum += load(from, part * size + at);
    store(is_value ? projected_v : projected_k, at, narrow<Element>(sum));
}
ENTRY(linformer_reduce)
