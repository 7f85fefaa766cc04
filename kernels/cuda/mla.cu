// Multi-head latent attention, absorbed decode (DeepSeek-V2, section 2.1), for sm_80 and later; mla3.cu is that of sm_90a, and
// prefill is flash.cu's.
//
// One latent row of latent + rope elements a token is the key of every head, and its first `latent` elements the value. The
// heads of all queries are the rows of one product, so a tile of latent rows is read from memory once for 64 of them and used
// twice from shared memory. Eight warps: four groups of 16 rows, each group two warps that compute half of the keys' scores,
// exchange largest scores and weights through shared memory, and accumulate half of the columns of O. The keys of a sequence
// are split over blocks as in decode.cuh, and `combine` merges them. The cache is contiguous or paged.
//
// Tiles: 64 rows x 64 keys, d 576:512 (smaller ones in the same tile), 8 warps; O is 64 x 512 f32 in registers.
// Floor on an A100, a tile: 8.9 MFLOP, 4352 cycles at the full rate of mma.m16n8k16; 74 KB of latent rows, 6300 cycles at 1.8
// TB/s; 4096 exponentials, 256 cycles. So the copy rules up to 64 heads times queries, and the products from 128 on.
//
// Defines: ELEMENT (Bf16, F16), KEYS, SLOTS (of latent rows).
#include "attend.cuh"
#include "partials.cuh"

using Element = ELEMENT;
constexpr int DIM_QK = 576, DIM_V = 512, ROWS = 64, WARPS = 8, THREADS = WARPS * 32;
constexpr int HALF_KEYS = KEYS / 2, HALF_COLUMNS = DIM_V / 2;
using QTile = Tile<ROWS, DIM_QK>;
using KTile = Tile<KEYS, DIM_QK>;
using PTile = Tile<ROWS, KEYS>;

// Grid: splits * row tiles * batch, splits fastest. Shared memory: Q, the slots of latent rows, P, and two numbers a row and half.
KERNEL(THREADS, 1)
mla(Global<const u16> q, Global<const u16> k, Global<u16> o, Global<f32> lse, Global<const Sequence> sequences,
    Global<const WorkItem> items, Geometry geometry, Global<f32> partial_o, Global<f32> partial_lse, i32 splits,
    Global<const i32> page_table) {
    const u32 thread = thread_index(), lane = thread % 32, warp = thread / 32, warp_row = warp % 4 * 16, half_number = warp / 4;
    const int group = geometry.heads_q;
    const WorkItem item = work_item(geometry, items, block_index(), splits, ROWS);
    const int first_row = item.first_row, number = item.sequence;
    const Sequence sequence = sequence_at(geometry, sequences, number);
    const int row_count = min_i32(sequence.len_q * group - first_row, ROWS);
    if (row_count <= 0) return;
    q = q + sequence.q;
    k = k + sequence.k;
    o = o + sequence.o;

    const QTile q_tile{shared_memory()};
    const u32 ring = q_tile.base + QTile::BYTES;
    const PTile p_tile{ring + SLOTS * KTile::BYTES};
    const u32 exchange = p_tile.base + PTile::BYTES;

    const int last_query = (first_row + row_count - 1) / group;
    const KeyRange seen = keys_of_rows(geometry, sequence, first_row / group, last_query);
    const KeyRange share = share_of(seen, item.split, item.splits, KEYS);
    const int first = share.first, end = share.end;

    q_tile.copy_rows<THREADS>(q, thread, first_row, first_row + row_count, geometry.dim_qk, [&](int row) {
        PackedRow packed(row, group, 0);
        return packed.query * geometry.q.token + packed.head * geometry.q.head;
    });
    copy_async_commit();

    f32 out[1][HALF_COLUMNS / 8][4];
    clear(out);
    f32 largest[2] = {minus_infinity(), minus_infinity()}, sum[2] = {0.0f, 0.0f};
    const f32 factor = exponent_scale(geometry, false);
    const auto fetch = [&](int key, u32 slot) {
        if (key < end)
            KTile{ring + slot * KTile::BYTES}.copy_rows<THREADS>(k, thread, key, end, geometry.dim_qk, [&](int row) {
                const int token = min_i32(row, end - 1);
                if (geometry.page_size == 0) return token * geometry.k.token;
                const int page = token / geometry.page_size;
                const i64 found = load(page_table, i64(number) * geometry.pages_a_sequence + page);
                return (found * geometry.page_size + token - page * geometry.page_size) * geometry.k.token;
            });
        copy_async_commit();
    };
    for (u32 slot = 0; slot + 1 < SLOTS; slot++) fetch(first + slot * KEYS, slot);
    u32 slot = 0;
    for (int key = first; key < end; key += KEYS) {
        // Everybody is done with the latent rows and the weights before.
        sync_threads();
        fetch(key + (SLOTS - 1) * KEYS, slot == 0 ? SLOTS - 1 : slot - 1);
        copy_async_wait<SLOTS - 1>();
        sync_threads();
        const KTile k_tile{ring + slot * KTile::BYTES};
        slot = slot == SLOTS - 1 ? 0 : slot + 1;

        f32 s[1][HALF_KEYS / 8][4];
        scores<Element, 1, HALF_KEYS, QTile, KTile, DIM_QK>(s, query_place(q_tile, warp_row, lane),
                                                             key_place(k_tile, half_number * HALF_KEYS, lane));
        mask(s, key + half_number * HALF_KEYS, lane, [&](int row) {
            const KeyRange range = keys_of_row(geometry, sequence, (first_row + int(warp_row) + row) / group);
            return KeyRange{range.first, min_i32(range.end, end)};
        });

        // The largest score of a row's 64 keys, from both of its warps.
        f32 top[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            top[half] = minus_infinity();
#pragma unroll
            for (int n = 0; n < HALF_KEYS / 8; n++)
                top[half] = max_f32(top[half], max_f32(s[0][n][2 * half], s[0][n][2 * half + 1]));
            top[half] = max_f32(top[half], shuffle_xor(top[half], 1));
            top[half] = max_f32(top[half], shuffle_xor(top[half], 2));
            const u32 row = warp_row + half * 8 + lane / 4;
            if (lane % 4 == 0) store_shared(exchange + (half_number * ROWS + row) * 4, top[half]);
        }
        sync_threads();
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const u32 row = warp_row + half * 8 + lane / 4;
            const f32 others = load_shared_f32(exchange + ((1 - half_number) * ROWS + row) * 4);
            const f32 now = max_f32(largest[half], max_f32(top[half], others));
            const f32 base = now == minus_infinity() ? 0.0f : now * factor;
            const f32 rescale = exp2_fast(largest[half] * factor - base);
            largest[half] = now;
            sum[half] *= rescale;
#pragma unroll
            for (int n = 0; n < HALF_KEYS / 8; n++) {
                const f32 a = exp2_fast(fused_multiply_add(s[0][n][2 * half], factor, -base));
                const f32 b = exp2_fast(fused_multiply_add(s[0][n][2 * half + 1], factor, -base));
                sum[half] += a + b;
                store_shared(p_tile.chunk(row, half_number * (HALF_KEYS / 8) + n) + lane % 4 * 4, Element::pack(a, b));
            }
#pragma unroll
            for (int d = 0; d < HALF_COLUMNS / 8; d++) out[0][d][2 * half] *= rescale, out[0][d][2 * half + 1] *= rescale;
        }
        sync_threads();

        // O += P V for this warp's columns: whole panels of the latent rows.
        const u32 p_at = query_place(p_tile, warp_row, lane);
        const u32 v_at = opaque(value_place(k_tile, 0, lane) + half_number * (HALF_COLUMNS / 8 / KTile::PANEL * KTile::PANEL_BYTES));
#pragma unroll
        for (int step = 0; step < KEYS / 16; step++) {
            u32 a[4];
            load_matrices(a, PTile::further(p_at, 0, 2 * step));
#pragma unroll
            for (int n = 0; n < HALF_COLUMNS / 16; n++) {
                u32 b[4];
                load_matrices_transposed(b, KTile::further(v_at, step * 16, 2 * n));
                Element::multiply(out[0][2 * n], a, b[0], b[1]);
                Element::multiply(out[0][2 * n + 1], a, b[2], b[3]);
            }
        }
    }

    // The sums of both warps of a row.
#pragma unroll
    for (int half = 0; half < 2; half++) {
        sum[half] += shuffle_xor(sum[half], 1);
        sum[half] += shuffle_xor(sum[half], 2);
    }
    // Nobody reads the largest scores any more: the weights of the last tile came after a barrier.
#pragma unroll
    for (int half = 0; half < 2; half++)
        if (lane % 4 == 0) store_shared(exchange + (half_number * ROWS + warp_row + half * 8 + lane / 4) * 4, sum[half]);
    sync_threads();
    const Global<u32> pairs{reinterpret_cast<u32 *>(o.pointer)};
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = warp_row + half * 8 + lane / 4;
        const f32 total = sum[half] + load_shared_f32(exchange + ((1 - half_number) * ROWS + row) * 4);
        if (row >= row_count) continue;
        const f32 inverse = total > 0.0f ? 1.0f / total : 0.0f;
        const f32 log_sum = total > 0.0f ? largest[half] * factor + log2_fast(total) : minus_infinity();
        const PackedRow packed(first_row + row, group, 0);
        const i64 place = partial_row(geometry, item.slot + item.split, 0, row, ROWS);
        if (half_number == 0 && lane % 4 == 0) {
            if (item.splits > 1) store(partial_lse, place, log_sum);
            else if (lse.exists())
                store(lse, (i64(number) * geometry.heads_q + packed.head) * geometry.len_q + packed.query, log_sum * LN_2);
        }
#pragma unroll
        for (int d = 0; d < HALF_COLUMNS / 8; d++) {
            const int column = half_number * HALF_COLUMNS + d * 8 + lane % 4 * 2;
            if (column >= geometry.dim_v) continue;
            const f32 a = out[0][d][2 * half] * inverse, b = out[0][d][2 * half + 1] * inverse;
            if (item.splits > 1) {
                store(partial_o, place * geometry.dim_v + column, a);
                store(partial_o, place * geometry.dim_v + column + 1, b);
            } else {
                store(pairs, (packed.head * geometry.o.head + packed.query * geometry.o.token + column) / 2, Element::pack(a, b));
            }
        }
    }
}
ENTRY(mla)

#include "combine.cuh"
