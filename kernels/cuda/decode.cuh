// Flash-decoding (Dao et al. 2023): few queries over a long cache, with the keys of a head split over blocks.
//
// The query heads that share a KV head, times the queries of the call, are the rows of one product, so that each key is read
// once for all of them; row r is query r / group of head r % group of the group. A block computes ROWS rows over a share of
// the keys that they see: an item of the schedule of `src/cuda/shares.rs`. ROW_WARPS warps share the rows; the others work on
// other keys: each set of ROW_WARPS takes every KEY_WARPS-th step of 16 keys through its own ring of STAGES tiles. Where a
// set is one warp, no barrier of the block stands before the end, when the sets' partial results are merged. Blocks that
// share rows leave theirs in memory, in f32 with their log-sum-exps, for `combine`.
//
// Keys are found by a `Rows` of the source that includes this: contiguous or through a page table.
//
// Keys and values of one byte (e4m3) are widened in registers: a register of a matrix load then holds four elements of one row.
// The dimensions of Q are put into the order in which these lie, which changes no sum of products; the columns of O come out
// in another order and are put back at the end. Weights are multiplied as f16, which holds every e4m3.
//
// Floor: bytes of K and V over 4.3 TB/s, 18.6 bytes a clock and multiprocessor. What a multiprocessor does with each byte of a
// cache of 16-bit elements, for ROWS rows of which a warp has 16 M, and what it can do in that time:
//   products       ROWS FLOPs of 110 (mma.m16n8k16, expected at 60 % of the 790 TFLOP/s of wgmma): 58 % for 64 rows
//   exponentials   ROWS / (2 (d_qk + d_v)) of 0.86: 15 % for 64 rows at d128
//   shared memory  1 byte written and (1 + M / 2) ROWS / (16 M) read, of 6.9: 72 % for 64 rows with M = 2
// so that memory rules up to 64 rows. With keys of one byte, products and exponentials a byte double and Q is read twice as
// often: 16 rows still leave half of everything, 64 rows are ruled by products and shared memory.
// In flight have to be 4.3 TB/s * 700 ns / 132 = 23 KiB a multiprocessor; the table of `src/cuda/decode.rs` has 64 to 144.
// Below about 4 MB of cache neither rules but what two launches and one round of reads take.
//
// Defines: ELEMENT (Bf16, F16), ELEMENT_KV (ELEMENT or E4m3), DIM_QK, DIM_V, ROWS, ROW_WARPS, STAGES, BLOCKS,
// VARIANT (0, 1, 2: see geometry.cuh).
#pragma once

#include "attend.cuh"
#include "partials.cuh"

using Element = ELEMENT;
using Stored = ELEMENT_KV::Storage;
constexpr int STEP = 16, WARPS = 4, THREADS = WARPS * 32;
constexpr int KEY_WARPS = WARPS / ROW_WARPS, WARP_ROWS = ROWS / ROW_WARPS, M = WARP_ROWS / 16, ROUND = STEP * KEY_WARPS;
// Weights may grow to 2^SLACK before rows are scaled: far from the largest f16, and sums are f32.
constexpr int SLACK = 8;
constexpr bool IS_NARROW = sizeof(Stored) == 1;
using QTile = Tile<ROWS, DIM_QK>;
using KTile = Tile<STEP, DIM_QK * sizeof(Stored) / 2>;
using VTile = Tile<STEP, DIM_V * sizeof(Stored) / 2>;
constexpr int STAGE_BYTES = KTile::BYTES + VTile::BYTES;

// s = Q K^T for keys of one byte: as `scores`, with a register of four elements in the place of one of two. With t = lane % 4,
// elements 4t .. 4t + 3 of 16 take part as 2t, 2t + 1, 2t + 8 and 2t + 9: `copy_queries` has put Q in this order.
template <class Narrow>
DEVICE void scores_narrow(f32 (&s)[M][STEP / 8][4], u32 q, u32 k) {
    clear(s);
    q = opaque(q), k = opaque(k);
#pragma unroll
    for (int step = 0; step < DIM_QK / 32; step++) {
        u32 keys[4];
        load_matrices(keys, KTile::further(k, 0, 2 * step));
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 b[2][2];
#pragma unroll
            for (int n = 0; n < 2; n++) {
                Narrow::widen(keys[2 * n + half], b[n]);
                b[n][0] = Element::of_halves(b[n][0]), b[n][1] = Element::of_halves(b[n][1]);
            }
#pragma unroll
            for (int m = 0; m < M; m++) {
                u32 a[4];
                load_matrices(a, QTile::further(q, m * 16, 2 * (2 * step + half)));
                Element::multiply(s[m][0], a, b[0][0], b[0][1]);
                Element::multiply(s[m][1], a, b[1][0], b[1][1]);
            }
        }
    }
}

// o += P V for values of one byte, whose even columns of 16 come before the odd ones: see `column_of`.
template <class Narrow>
DEVICE void accumulate_narrow(f32 (&o)[M][DIM_V / 8][4], const f32 (&p)[M][STEP / 8][4], u32 v) {
    v = opaque(v);
    u32 a[M][4];
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int i = 0; i < 4; i++) a[m][i] = F16::pack(p[m][i / 2][i % 2 * 2], p[m][i / 2][i % 2 * 2 + 1]);
#pragma unroll
    for (int n = 0; n < DIM_V / 32; n++) {
        u32 values[4];
        load_matrices_transposed(values, VTile::further(v, 0, 2 * n));
#pragma unroll
        for (int half = 0; half < 2; half++) {
            // A register has two columns of two keys; the pairs to multiply are two keys of one column.
            u32 first[2], last[2];
            Narrow::widen(permute_bytes(values[2 * half], 0x3120), first);
            Narrow::widen(permute_bytes(values[2 * half + 1], 0x3120), last);
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int odd = 0; odd < 2; odd++) F16::multiply(o[m][4 * n + 2 * half + odd], a[m], first[odd], last[odd]);
        }
    }
}

// The column of O that a lane holds in o[..][d][i] and o[..][d][2 + i].
DEVICE int column_of(int d, int i, int lane) {
    return IS_NARROW ? d / 2 * 16 + 2 * (lane % 4 * 2 + i) + d % 2 : d * 8 + lane % 4 * 2 + i;
}

// Brings the block's rows of Q to shared memory: by copies of the thread's next group or, for keys of one byte, at once and
// in the order of `scores_narrow`.
template <class Start>
DEVICE void copy_queries(const QTile &tile, Global<const u16> q, int first_row, int count, int dim, Start start) {
    const u32 thread = opaque(thread_index());
    if (!IS_NARROW) return tile.copy_rows<THREADS>(q, thread, first_row, first_row + count, dim, start);
#pragma unroll 1
    for (int item = thread; item < ROWS * (DIM_QK / 16); item += THREADS) {
        const int row = item / (DIM_QK / 16), column = item % (DIM_QK / 16) * 16;
        u32 word[8] = {};
        const i64 at = start(first_row + min_i32(row, count - 1)) + column;
        if (VARIANT == GENERAL_VARIANT && dim % 8 != 0) {
#pragma unroll
            for (int e = 0; e < 16; e++)
                if (row < count && column + e < dim) word[e / 2] |= u32(load(q, at + e)) << e % 2 * 16;
        } else {
#pragma unroll
            for (int half = 0; half < 2; half++)
                if (row < count && column + half * 8 < dim) {
                    const Vec4 v = load_vec4(q, at + half * 8);
#pragma unroll
                    for (int i = 0; i < 4; i++) word[half * 4 + i] = v.word[i];
                }
        }
#pragma unroll
        for (int odd = 0; odd < 2; odd++)
            store_shared_vec4(tile.chunk(row, column / 8 + odd), Vec4{{word[odd], word[2 + odd], word[4 + odd], word[6 + odd]}});
    }
}

// Between the warps of a set: one warp needs no more than itself.
DEVICE void sync_set() {
    if (ROW_WARPS == 1) {
        sync_warp();
    } else {
        sync_threads();
    }
}

// Grid: KV heads * items, heads fastest: neighbouring blocks read what lies side by side. Shared memory: Q, then for each set
// STAGES tiles of K and V; at the end, the sets' results.
template <class Keys>
DEVICE void decode_block(Global<const u16> q, Global<const Stored> k, Global<const Stored> v, Global<u16> o, Global<f32> lse,
                         Global<const f32> sinks, Biases biases, Global<const Sequence> sequences, Global<const WorkItem> items,
                         const Geometry &geometry, Partials partials, i32 splits, Keys keys) {
    const u32 thread = thread_index(), lane = thread % 32, warp = thread / 32;
    const u32 set = warp / ROW_WARPS, set_thread = thread % (32 * ROW_WARPS), warp_row = warp % ROW_WARPS * WARP_ROWS;
    const int group = geometry.heads_q / geometry.heads_kv;
    const int head_kv = block_index() % geometry.heads_kv;
    const WorkItem item = work_item(geometry, items, block_index() / geometry.heads_kv, splits, ROWS);
    const int number = item.sequence, first_row = item.first_row;
    const Sequence sequence = sequence_at(geometry, sequences, number);
    const int row_count = min_i32(sequence.len_q * group - first_row, ROWS);
    if (row_count <= 0) return;

    q = q + sequence.q;
    k = k + (sequence.k + head_kv * geometry.k.head);
    v = v + (sequence.v + head_kv * geometry.v.head);

    // This block's share of the keys that any row sees, and the turns that the sets take.
    const KeyRange seen = keys_of_rows(geometry, sequence, first_row / group, (first_row + row_count - 1) / group);
    const KeyRange share = share_of(seen, item.split, item.splits, ROUND);
    const int first = share.first, end = share.end;
    const int steps = ceil_div(max_i32(end - first, 0), STEP), turns = ceil_div(steps, KEY_WARPS);

    const u32 shared = shared_memory();
    const QTile q_tile{shared};
    const u32 ring = shared + QTile::BYTES + set * (STAGES * STAGE_BYTES);
    auto start = [&](int row) {
        PackedRow packed(row, group, head_kv);
        return packed.query * geometry.q.token + packed.head * geometry.q.head;
    };
    if (!IS_NARROW) copy_queries(q_tile, q, first_row, row_count, geometry.dim_qk, start);
    copy_async_commit();

    // Lane l % 16 finds key l of the set's next step, a step ahead of the copies that need it, and the other lanes ask it.
    auto find = [&](int step) { return keys.row(geometry, number, min_i32(first + step * STEP + int(lane % STEP), end - 1)); };
    i64 found = set < u32(steps) ? find(set) : 0;
    auto fetch = [&](int step, int stage) {
        if (step < steps) {
            const int key = first + step * STEP;
            const u32 base = ring + stage * STAGE_BYTES;
            auto place = [&](i64 token) {
                return [=](int row) { return (Keys::IS_CONTIGUOUS ? i64(row) : shuffle(found, u32(row - key) % STEP)) * token; };
            };
            KTile{base}.template copy_rows<32 * ROW_WARPS>(k, set_thread, key, end, geometry.dim_qk, place(geometry.k.token));
            VTile{base + KTile::BYTES}.template copy_rows<32 * ROW_WARPS>(v, set_thread, key, end, geometry.dim_v,
                                                                         place(geometry.v.token));
            if (!Keys::IS_CONTIGUOUS && step + KEY_WARPS < steps) found = find(step + KEY_WARPS);
        }
        copy_async_commit();
    };
    for (int stage = 0; stage < STAGES - 1; stage++) fetch(set + stage * KEY_WARPS, stage);
    if (IS_NARROW) copy_queries(q_tile, q, first_row, row_count, geometry.dim_qk, start);

    f32 out[M][DIM_V / 8][4];
    clear(out);
    Softmax<M> softmax;
    softmax.start();
    const f32 factor = exponent_scale(geometry, VARIANT != PLAIN_VARIANT);
    const u32 q_at = query_place(q_tile, warp_row, lane);

    // Every warp reads what others copied of Q: of the thread's groups, Q's is the oldest.
    copy_async_wait<STAGES - 1>();
    sync_threads();
    int stage = 0;
    for (int turn = 0; turn < turns; turn++) {
        const int step = turn * KEY_WARPS + set;
        // This step's keys are here, and all lanes are done with the stage that the next copy goes to.
        copy_async_wait<STAGES - 2>();
        sync_set();
        fetch(step + (STAGES - 1) * KEY_WARPS, stage == 0 ? STAGES - 1 : stage - 1);
        if (step < steps) {
            const KTile k_tile{ring + stage * STAGE_BYTES};
            const VTile v_tile{k_tile.base + KTile::BYTES};
            f32 s[M][STEP / 8][4];
            if constexpr (IS_NARROW) scores_narrow<ELEMENT_KV>(s, q_at, key_place(k_tile, 0, lane));
            else scores<Element, M, STEP, QTile, KTile, DIM_QK>(s, q_at, key_place(k_tile, 0, lane));
            const int key = first + step * STEP, row_base = first_row + int(warp_row);
            if (VARIANT == CAPPED_VARIANT) soft_cap_all(s, geometry);
            if (VARIANT == GENERAL_VARIANT)
                general_scores<Element>(s, geometry, key, sequence.len_kv, lane, biases, [&](int row) {
                    const PackedRow packed(row_base + row, group, head_kv);
                    return BiasedRow{packed.query, sequence.len_q, packed.query + sequence.query_offset,
                                     alibi_slope(geometry, packed.head)};
                });
            if (key + STEP > end ||
                !all_see(geometry, sequence, first_row / group, (first_row + row_count - 1) / group, key, key + STEP))
                mask(s, key, lane, [&](int row) {
                    KeyRange range = keys_of_row(geometry, sequence, (row_base + row) / group);
                    return KeyRange{range.first, min_i32(range.end, end)};
                });
            f32 rescale[M][2];
            softmax.template weigh<SLACK>(s, rescale, factor);
            bool is_scaled = false;
#pragma unroll
            for (int m = 0; m < M; m++) is_scaled = is_scaled || rescale[m][0] != 1.0f || rescale[m][1] != 1.0f;
            if (any_lane(is_scaled)) softmax.scale(out, rescale);
            if constexpr (IS_NARROW) accumulate_narrow<ELEMENT_KV>(out, s, value_place(v_tile, 0, lane));
            else accumulate<Element, M, STEP, DIM_V, VTile>(out, s, value_place(v_tile, 0, lane));
        }
        stage = stage == STAGES - 1 ? 0 : stage + 1;
    }
    softmax.finish();

    // Merge the sets: their largest scores, sums and outputs through shared memory, where every copy has been waited for in
    // its turn. A row is padded to avoid bank conflicts.
    constexpr int PITCH = (DIM_V + 8) * 4, SET_BYTES = ROWS * PITCH;
    const u32 results = shared + KEY_WARPS * ROWS * 8;
    sync_threads();
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const u32 row = warp_row + m * 16 + half * 8 + lane / 4;
            if (lane % 4 == 0) {
                store_shared(shared + (set * ROWS + row) * 8, softmax.largest[m][half]);
                store_shared(shared + (set * ROWS + row) * 8 + 4, softmax.sum[m][half]);
            }
#pragma unroll
            for (int d = 0; d < DIM_V / 8; d++)
#pragma unroll
                for (int i = 0; i < 2; i++)
                    store_shared(results + set * SET_BYTES + row * PITCH + column_of(d, i, lane) * 4, out[m][d][2 * half + i]);
        }
    sync_threads();
    for (int piece = thread; piece < ROWS * (DIM_V / 8); piece += THREADS) {
        const int row = piece / (DIM_V / 8), column = piece % (DIM_V / 8) * 8;
        if (row >= row_count || column >= geometry.dim_v) continue;
        f32 largest = minus_infinity(), sum = 0.0f, x[8] = {};
        for (int w = 0; w < KEY_WARPS; w++) largest = max_f32(largest, load_shared_f32(shared + (w * ROWS + row) * 8));
        const f32 base = largest == minus_infinity() ? 0.0f : largest * factor;
        for (int w = 0; w < KEY_WARPS; w++) {
            const f32 weight = exp2_fast(load_shared_f32(shared + (w * ROWS + row) * 8) * factor - base);
            sum += weight * load_shared_f32(shared + (w * ROWS + row) * 8 + 4);
            for (int half = 0; half < 2; half++) {
                const Vec4 part = load_shared_vec4(results + w * SET_BYTES + row * PITCH + (column + 4 * half) * 4);
                for (int i = 0; i < 4; i++) x[4 * half + i] += weight * bits_to_f32(part.word[i]);
            }
        }
        const PackedRow packed(first_row + row, group, head_kv);
        // A sink belongs to all keys, not to a share of them: where there are several, `combine` adds it.
        const f32 inverse = inverse_with_sink(sum, base, item.splits == 1 ? sinks : Global<const f32>{}, packed.head);
        for (int i = 0; i < 8; i++) x[i] *= inverse;
        const f32 log_sum = sum > 0.0f ? base + log2_fast(sum) : minus_infinity();
        if (item.splits == 1) {
            store_chunk(o + sequence.o, packed.head * geometry.o.head + packed.query * geometry.o.token, column, geometry.dim_v,
                        pack8<Element>(x));
            if (lse.exists() && column == 0)
                store(lse, (i64(number) * geometry.heads_q + packed.head) * geometry.len_q + packed.query, log_sum * LN_2);
        } else {
            const i64 at = partial_row(geometry, item.slot + item.split, head_kv, row, ROWS);
            store8(partials.o, at * partial_pitch(geometry) + column, x);
            if (column == 0) store(partials.lse, at, log_sum);
        }
    }
}
