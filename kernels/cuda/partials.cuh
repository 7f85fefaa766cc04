// Keys of a head split over blocks: rows of packed query heads, partial results in memory, and their merge.
#pragma once

#include "geometry.cuh"

// Rows that a block of `combine` merges, a warp each.
constexpr int COMBINE_WARPS = 4;

// Row `row` of a (sequence, KV head): which query, which query head.
struct PackedRow {
    int query, head;
    DEVICE PackedRow(int row, int group, int head_kv) : query(row / group), head(head_kv * group + row % group) {}
};

// Where partial results lie: (split, sequence, head, query), the queries of the longest sequence.
struct Partials {
    Global<f32> o, lse;
    i32 splits;
};
DEVICE i64 partial_row(const Geometry &geometry, int split, int number, int head, int query) {
    return ((i64(split) * geometry.batch + number) * geometry.heads_q + head) * geometry.len_q + query;
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

// Merges the splits: a warp a row. Grid: rows / 4 of batch * heads * longest query length.
template <class Element>
DEVICE void combine_rows(Global<const f32> partial_o, Global<const f32> partial_lse, Global<u16> o, Global<f32> lse,
                         Global<const f32> sinks, Global<const Sequence> sequences, const Geometry &geometry, i32 splits) {
    const u32 lane = thread_index() % 32;
    const i64 row = i64(block_index()) * COMBINE_WARPS + thread_index() / 32, rows = i64(geometry.batch) * geometry.heads_q * geometry.len_q;
    if (row >= rows) return;
    const int query = row % geometry.len_q, head = row / geometry.len_q % geometry.heads_q;
    const int number = row / geometry.len_q / geometry.heads_q;
    const Sequence sequence = sequence_at(geometry, sequences, number);
    if (query >= sequence.len_q) return;
    f32 largest = minus_infinity();
    for (int split = lane; split < splits; split += 32) largest = max_f32(largest, load(partial_lse, split * rows + row));
    for (int distance = 16; distance > 0; distance /= 2) largest = max_f32(largest, shuffle_xor(largest, distance));
    const f32 base = largest == minus_infinity() ? 0.0f : largest;
    f32 sum = 0.0f;
    for (int split = lane; split < splits; split += 32) sum += exp2_fast(load(partial_lse, split * rows + row) - base);
    for (int distance = 16; distance > 0; distance /= 2) sum += shuffle_xor(sum, distance);
    const f32 inverse = inverse_with_sink(sum, base, sinks, head);
    if (lse.exists() && lane == 0) store(lse, row, sum > 0.0f ? (base + log2_fast(sum)) * LN_2 : minus_infinity());
    for (int column = lane * 8; column < geometry.dim_v; column += 256) {
        f32 x[8] = {};
        for (int split = 0; split < splits; split++) {
            const f32 weight = exp2_fast(load(partial_lse, split * rows + row) - base) * inverse;
            for (int half = 0; half < 2; half++) {
                const Vec4 part = load_vec4(partial_o, (split * rows + row) * partial_pitch(geometry) + column + 4 * half);
                for (int i = 0; i < 4; i++) x[4 * half + i] += weight * bits_to_f32(part.word[i]);
            }
        }
        store_chunk(o + sequence.o, head * geometry.o.head + query * geometry.o.token, column, geometry.dim_v, pack8<Element>(x));
    }
}
