// Keys of a head split over blocks: which block has which share, rows of packed query heads, partial results in memory, and
// their merge.
#pragma once

#include "geometry.cuh"

// Rows that a block of `combine` merges, a warp each.
constexpr int COMBINE_WARPS = 4;

// Row `row` of a (sequence, KV head): which query, which query head.
struct PackedRow {
    int query, head;
    DEVICE PackedRow(int row, int group, int head_kv) : query(row / group), head(head_kv * group + row % group) {}
};

// A tile of rows of a sequence and share `split` of `splits` of the keys that they see, for every KV head. Where there are
// several shares, their partial results lie from slot `slot` on.
struct WorkItem {
    i32 sequence, first_row, split, splits, slot;
};

// Item `index` of a table that the host made, or of a batch of equal sequences, whose row tiles come first and then the shares.
DEVICE WorkItem work_item(const Geometry &geometry, Global<const WorkItem> table, i32 index, i32 splits, i32 rows) {
    if (table.exists()) return load_struct(table, index);
    const i32 row_tiles = ceil_div(geometry.len_q * (geometry.heads_q / geometry.heads_kv), rows);
    const i32 row_tile = index % row_tiles, rest = index / row_tiles, split = rest % splits, sequence = rest / splits;
    return {sequence, row_tile * rows, split, splits, (sequence * row_tiles + row_tile) * splits};
}

// The keys of a share, in whole rounds of `round` keys but at the end; shares differ by a round at most.
DEVICE KeyRange share_of(KeyRange seen, i32 split, i32 splits, i32 round) {
    const i32 rounds = ceil_div(max_i32(seen.end - seen.first, 0), round);
    return {seen.first + rounds * split / splits * round,
            min_i32(seen.first + rounds * (split + 1) / splits * round, seen.end)};
}

// Partial results: outputs divided by their sums, and log-sum-exps to the base 2, by (slot, KV head, row of the tile).
struct Partials {
    Global<f32> o, lse;
};
DEVICE i64 partial_row(const Geometry &geometry, i32 slot, i32 head_kv, i32 row, i32 rows) {
    return (i64(slot) * geometry.heads_kv + head_kv) * rows + row;
}

// Numbers from one partial row to the next: whole chunks.
DEVICE int partial_pitch(const Geometry &geometry) { return ceil_div(geometry.dim_v, 8) * 8; }

// 8 columns of a row of O.
template <class Element> DEVICE Vec4 pack8(const f32 (&x)[8]) {
    return Vec4{{Element::pack(x[0], x[1]), Element::pack(x[2], x[3]), Element::pack(x[4], x[5]), Element::pack(x[6], x[7])}};
}
DEVICE void store8(Global<f32> to, i64 index, const f32 (&x)[8]) {
    for (int half = 0; half < 2; half++) {
        Vec4 v;
        for (int i = 0; i < 4; i++) v.word[i] = f32_to_bits(x[4 * half + i]);
        store_vec4(to, index + 4 * half, v);
    }
}

// Writes a warp's 16 rows of partial results, times `factor[half]`, from fragments of a product: two lanes exchange halves, so that
// each stores 16 bytes. `row[half]` is where the thread's row begins, negative where it does not exist.
template <int COLUMNS>
DEVICE void write_partial_rows(Global<f32> to, const f32 (&o)[COLUMNS / 8][4], const f32 (&factor)[2], const i64 (&row)[2],
                               int dim) {
    const u32 lane = thread_index() % 32;
    const bool is_odd = lane & 1;
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int block = 0; block < COLUMNS / 8; block += 2) {
            f32 kept[2], got[2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const f32 low = o[block][2 * half + i] * factor[half], high = o[block + 1][2 * half + i] * factor[half];
                kept[i] = is_odd ? high : low;
                got[i] = shuffle_xor(is_odd ? low : high, 1);
            }
            const Vec4 v = is_odd ? Vec4{{f32_to_bits(got[0]), f32_to_bits(got[1]), f32_to_bits(kept[0]), f32_to_bits(kept[1])}}
                                  : Vec4{{f32_to_bits(kept[0]), f32_to_bits(kept[1]), f32_to_bits(got[0]), f32_to_bits(got[1])}};
            const int column = (block + int(is_odd)) * 8 + int(lane % 4 / 2) * 4;
            if (row[half] >= 0 && column < dim) store_vec4(to, row[half] + column, v);
        }
}

// Merges the shares of rows that have several: a warp a row. Grid: TILE_ROWS / 4 times the KV heads, for each item of a table of
// those tiles, or for each tile of a batch of equal sequences. The lanes that one share's columns leave free take other shares.
template <class Element, int TILE_ROWS, int COLUMNS>
DEVICE void combine_rows(Global<const f32> partial_o, Global<const f32> partial_lse, Global<u16> o, Global<f32> lse,
                         Global<const f32> sinks, Global<const Sequence> sequences, Global<const WorkItem> tiles,
                         const Geometry &geometry, i32 splits) {
    constexpr int LANES = COLUMNS <= 64 ? 8 : COLUMNS <= 128 ? 16 : 32, SHARES = 32 / LANES, A_TILE = TILE_ROWS / COMBINE_WARPS;
    const u32 lane = thread_index() % 32;
    const int row_in_tile = block_index() % A_TILE * COMBINE_WARPS + thread_index() / 32, rest = block_index() / A_TILE;
    const int head_kv = rest % geometry.heads_kv, group = geometry.heads_q / geometry.heads_kv;
    int number = rest / geometry.heads_kv;
    // A tile's first share stands for all of them.
    if (!tiles.exists()) {
        const int row_tiles = ceil_div(geometry.len_q * group, TILE_ROWS);
        number = number / row_tiles * splits * row_tiles + number % row_tiles;
    }
    const WorkItem item = work_item(geometry, tiles, number, splits, TILE_ROWS);
    const Sequence sequence = sequence_at(geometry, sequences, item.sequence);
    if (item.first_row + row_in_tile >= sequence.len_q * group) return;
    const PackedRow packed(item.first_row + row_in_tile, group, head_kv);
    const i64 first = partial_row(geometry, item.slot, head_kv, row_in_tile, TILE_ROWS), next = i64(geometry.heads_kv) * TILE_ROWS;

    f32 largest = minus_infinity();
    for (int split = lane; split < item.splits; split += 32) largest = max_f32(largest, load(partial_lse, first + split * next));
    for (int distance = 16; distance > 0; distance /= 2) largest = max_f32(largest, shuffle_xor(largest, distance));
    const f32 base = largest == minus_infinity() ? 0.0f : largest;
    f32 sum = 0.0f;
    for (int split = lane; split < item.splits; split += 32) sum += exp2_fast(load(partial_lse, first + split * next) - base);
    for (int distance = 16; distance > 0; distance /= 2) sum += shuffle_xor(sum, distance);
    const f32 inverse = inverse_with_sink(sum, base, sinks, packed.head);
    if (lse.exists() && lane == 0)
        store(lse, (i64(item.sequence) * geometry.heads_q + packed.head) * geometry.len_q + packed.query,
              sum > 0.0f ? (base + log2_fast(sum)) * LN_2 : minus_infinity());

    for (int begin = 0; begin < geometry.dim_v; begin += LANES * 8) {
        const int column = begin + lane % LANES * 8;
        f32 x[8] = {};
        if (column < geometry.dim_v) {
#pragma unroll 4
            for (int split = lane / LANES; split < item.splits; split += SHARES) {
                const i64 row = first + split * next;
                const f32 weight = exp2_fast(load(partial_lse, row) - base) * inverse;
                for (int half = 0; half < 2; half++) {
                    const Vec4 part = load_vec4(partial_o, row * partial_pitch(geometry) + column + 4 * half);
                    for (int i = 0; i < 4; i++) x[4 * half + i] += weight * bits_to_f32(part.word[i]);
                }
            }
        }
        for (int distance = LANES; distance < 32; distance *= 2)
            for (int i = 0; i < 8; i++) x[i] += shuffle_xor(x[i], distance);
        if (lane < LANES && column < geometry.dim_v)
            store_chunk(o + sequence.o, packed.head * geometry.o.head + packed.query * geometry.o.token, column, geometry.dim_v,
                        pack8<Element>(x));
    }
}
