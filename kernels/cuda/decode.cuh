// Flash-decoding (Dao et al. 2023): few queries over a long cache, with the keys of a head split over blocks.
//
// The query heads that share a KV head, times the queries of the call, are the rows of one product, so that each key is read
// once for all of them; row r is query r / group of head r % group of the group. A block computes ROWS rows over its share of
// the keys. Its warps work alone: each takes every WARPS-th step of 16 keys through its own ring of STAGES tiles, with no
// barrier of the block before the end, when their partial results are merged. Blocks that share rows leave theirs in memory,
// in f32 with their log-sum-exps, for `combine`.
//
// Keys are found by a `Rows` of the source that includes this: contiguous or through a page table.
// Limit aimed at: the rate at which memory is read; WARPS * STAGES * 16 keys are in flight a block.
//
// Defines: ELEMENT (Bf16, F16), DIM_QK, DIM_V, STAGES, VARIANT (0, 1, 2: see geometry.cuh).
#pragma once

#include "attend.cuh"
#include "partials.cuh"

using Element = ELEMENT;
constexpr int ROWS = 16, STEP = 16, WARPS = 4, THREADS = WARPS * 32;

// Grid: splits * row tiles * KV heads * batch, splits fastest. Shared memory: Q, then for each warp STAGES tiles of K and V,
// which at the end hold the warps' results.
template <class Keys>
DEVICE void decode_block(Global<const u16> q, Global<const u16> k, Global<const u16> v, Global<u16> o, Global<f32> lse,
                         Global<const f32> sinks, Biases biases, Global<const Sequence> sequences, const Geometry &geometry,
                         Partials partials, Keys keys) {
    using QTile = Tile<ROWS, DIM_QK>;
    using KTile = Tile<STEP, DIM_QK>;
    using VTile = Tile<STEP, DIM_V>;
    constexpr int STAGE_BYTES = KTile::BYTES + VTile::BYTES;

    const u32 thread = thread_index(), lane = thread % 32, warp = thread / 32;
    const int group = geometry.heads_q / geometry.heads_kv;
    const int row_tiles = ceil_div(geometry.len_q * group, ROWS);
    const int split = block_index() % partials.splits, rest = block_index() / partials.splits;
    const int first_row = rest % row_tiles * ROWS;
    const int head_kv = rest / row_tiles % geometry.heads_kv, number = rest / row_tiles / geometry.heads_kv;
    const Sequence sequence = sequence_at(geometry, sequences, number);
    const int row_count = min_i32(sequence.len_q * group - first_row, ROWS);
    if (row_count <= 0) return;

    q = q + sequence.q;
    k = k + (sequence.k + head_kv * geometry.k.head);
    v = v + (sequence.v + head_kv * geometry.v.head);

    // The keys that any row sees, cut into shares of whole steps.
    const KeyRange seen =
        keys_of_rows(geometry, sequence, first_row / group, (first_row + row_count - 1) / group);
    const int all_steps = ceil_div(max_i32(seen.end - seen.first, 0), STEP);
    const int share = ceil_div(all_steps, partials.splits) * STEP;
    const int first = seen.first + split * share, end = min_i32(first + share, seen.end);
    const int steps = ceil_div(max_i32(end - first, 0), STEP);

    const u32 shared = shared_memory();
    const QTile q_tile{shared};
    const u32 ring = shared + QTile::BYTES + warp * (STAGES * STAGE_BYTES);
    q_tile.template copy_rows<THREADS>(q, thread, first_row, first_row + row_count, geometry.dim_qk, [&](int row) {
        PackedRow packed(row, group, head_kv);
        return packed.query * geometry.q.token + packed.head * geometry.q.head;
    });
    copy_async_commit();

    auto fetch = [&](int step, int stage) {
        if (step < steps) {
            const int key = first + step * STEP;
            const u32 base = ring + stage * STAGE_BYTES;
            // Lane l % 16 finds key l of the step, and the others ask it.
            const i64 mine = keys.row(geometry, number, min_i32(key + int(lane % STEP), end - 1));
            auto place = [&](i64 token) { return [=](int row) { return shuffle(mine, u32(row - key) % STEP) * token; }; };
            KTile{base}.template copy_rows<32>(k, lane, key, end, geometry.dim_qk, place(geometry.k.token));
            VTile{base + KTile::BYTES}.template copy_rows<32>(v, lane, key, end, geometry.dim_v, place(geometry.v.token));
        }
        copy_async_commit();
    };
    for (int stage = 0; stage < STAGES - 1; stage++) fetch(warp + stage * WARPS, stage);

    f32 out[1][DIM_V / 8][4];
    clear(out);
    Softmax<1> softmax;
    softmax.start();
    const f32 factor = exponent_scale(geometry, VARIANT != PLAIN_VARIANT);
    const u32 q_at = query_place(q_tile, 0, lane);

    // Every warp reads all of Q: of the thread's groups, Q's is the oldest.
    copy_async_wait<STAGES - 1>();
    sync_threads();
    int stage = 0;
    for (int step = warp; step < steps; step += WARPS) {
        // This step's keys are here, and all lanes are done with the stage that the next copy goes to.
        copy_async_wait<STAGES - 2>();
        sync_warp();
        fetch(step + (STAGES - 1) * WARPS, stage == 0 ? STAGES - 1 : stage - 1);

        const KTile k_tile{ring + stage * STAGE_BYTES};
        const VTile v_tile{k_tile.base + KTile::BYTES};
        f32 s[1][STEP / 8][4];
        scores<Element, 1, STEP, QTile, KTile, DIM_QK>(s, q_at, key_place(k_tile, 0, lane));
        const int key = first + step * STEP;
        if (VARIANT == CAPPED_VARIANT) soft_cap_all(s, geometry);
        if (VARIANT == GENERAL_VARIANT)
            general_scores<Element>(s, geometry, key, sequence.len_kv, lane, biases, [&](int row) {
                const PackedRow packed(first_row + row, group, head_kv);
                return BiasedRow{packed.query, sequence.len_q, packed.query + sequence.query_offset,
                                 alibi_slope(geometry, packed.head)};
            });
        if (key + STEP > end ||
            !all_see(geometry, sequence, first_row / group, (first_row + row_count - 1) / group, key, key + STEP))
            mask(s, key, lane, [&](int row) {
                KeyRange range = keys_of_row(geometry, sequence, (first_row + row) / group);
                return KeyRange{range.first, min_i32(range.end, end)};
            });
        softmax.update(s, out, factor);
        accumulate<Element, 1, STEP, DIM_V, VTile>(out, s, value_place(v_tile, 0, lane));
        stage = stage == STAGES - 1 ? 0 : stage + 1;
    }
    softmax.finish();

    // Merge the warps: their largest scores, sums and outputs through shared memory, where every copy has been waited for in
    // its step. A row is padded to avoid bank conflicts.
    constexpr int PITCH = (DIM_V + 8) * 4, WARP_BYTES = ROWS * PITCH;
    static_assert(WARPS * WARP_BYTES + WARPS * ROWS * 8 <= QTile::BYTES + WARPS * STAGES * STAGE_BYTES, "results fit");
    const u32 results = shared + WARPS * ROWS * 8;
    sync_threads();
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const u32 row = half * 8 + lane / 4;
        if (lane % 4 == 0) {
            store_shared(shared + (warp * ROWS + row) * 8, softmax.largest[0][half]);
            store_shared(shared + (warp * ROWS + row) * 8 + 4, softmax.sum[0][half]);
        }
#pragma unroll
        for (int d = 0; d < DIM_V / 8; d++)
#pragma unroll
            for (int i = 0; i < 2; i++)
                store_shared(results + warp * WARP_BYTES + row * PITCH + (d * 8 + lane % 4 * 2 + i) * 4, out[0][d][2 * half + i]);
    }
    sync_threads();
    for (int item = thread; item < ROWS * (DIM_V / 8); item += THREADS) {
        const int row = item / (DIM_V / 8), column = item % (DIM_V / 8) * 8;
        if (row >= row_count || column >= geometry.dim_v) continue;
        f32 largest = minus_infinity(), sum = 0.0f, x[8] = {};
        for (int w = 0; w < WARPS; w++) largest = max_f32(largest, load_shared_f32(shared + (w * ROWS + row) * 8));
        const f32 base = largest == minus_infinity() ? 0.0f : largest * factor;
        for (int w = 0; w < WARPS; w++) {
            const f32 weight = exp2_fast(load_shared_f32(shared + (w * ROWS + row) * 8) * factor - base);
            sum += weight * load_shared_f32(shared + (w * ROWS + row) * 8 + 4);
            for (int half = 0; half < 2; half++) {
                const Vec4 part = load_shared_vec4(results + w * WARP_BYTES + row * PITCH + (column + 4 * half) * 4);
                for (int i = 0; i < 4; i++) x[4 * half + i] += weight * bits_to_f32(part.word[i]);
            }
        }
        const PackedRow packed(first_row + row, group, head_kv);
        // A sink belongs to all keys, not to a share of them: where there are several, `combine` adds it.
        const f32 inverse = inverse_with_sink(sum, base, partials.splits == 1 ? sinks : Global<const f32>{}, packed.head);
        for (int i = 0; i < 8; i++) x[i] *= inverse;
        const f32 log_sum = sum > 0.0f ? base + log2_fast(sum) : minus_infinity();
        if (partials.splits == 1) {
            store_chunk(o + sequence.o, packed.head * geometry.o.head + packed.query * geometry.o.token, column, geometry.dim_v,
                        pack8<Element>(x));
            if (lse.exists() && column == 0)
                store(lse, partial_row(geometry, 0, number, packed.head, packed.query), log_sum * LN_2);
        } else {
            const i64 at = partial_row(geometry, split, number, packed.head, packed.query);
            store8(partials.o, at * partial_pitch(geometry) + column, x);
            if (column == 0) store(partials.lse, at, log_sum);
        }
    }
}
