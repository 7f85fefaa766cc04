// Where a problem's rows lie in memory and which keys a row sees: what every kernel is told about its problem.
// `kernels/src/cuda/geometry.rs` fills these structures in, field by field.
#pragma once

#include "ptx.cuh"

// Elements between neighbouring sequences, heads and tokens of a tensor.
struct Strides {
    i64 sequence, head, token;
};

// Row i of a query sits at position p = i + query_offset among the keys and sees keys p - left .. p + right that exist.
struct Geometry {
    Strides q, k, v, o;
    // Lengths of every sequence, or the longest ones where a table of `Sequence` says each one's own.
    i32 len_q, len_kv;
    i32 query_offset;
    i32 left, right;
    i32 batch, heads_q, heads_kv;
    i32 dim_qk, dim_v;
    // Scores are multiplied by `scale`; with a softcap, they become cap * tanh(score / cap).
    f32 scale, softcap;
    // Tokens a page and entries a sequence of the page table; 0 where not paged.
    i32 page_size, pages_a_sequence;
    // A `Bias`.
    i32 bias, unused;
};

// One sequence of a ragged batch: its lengths and where its first token lies, in elements.
struct Sequence {
    i64 q, k, v, o;
    i32 len_q, len_kv;
    i32 query_offset;
    i32 unused;
};

// What is added to scores: nothing, minus infinity by a mask, a tensor, a slope times the distance.
enum Bias { NO_BIAS, BOOL_BIAS, ADDITIVE_BIAS, ALIBI_BIAS };

// What a kernel is compiled for, as its define VARIANT says: a positive scale, applied on the way to a power of two; that and a
// softcap; or everything: any scale, a softcap where there is one, a bias, head dimensions that are no multiples of 8.
enum { PLAIN_VARIANT, CAPPED_VARIANT, GENERAL_VARIANT };
#ifndef VARIANT
#define VARIANT PLAIN_VARIANT
#endif

// Sequence number `index`; the table is null where all have the same lengths.
DEVICE Sequence sequence_at(const Geometry &geometry, Global<const Sequence> table, i32 index) {
    if (table.exists()) return load_struct(table, index);
    return Sequence{index * geometry.q.sequence,
                    index * geometry.k.sequence,
                    index * geometry.v.sequence,
                    index * geometry.o.sequence,
                    geometry.len_q,
                    geometry.len_kv,
                    geometry.query_offset,
                    0};
}

DEVICE i32 min_i32(i32 a, i32 b) { return a < b ? a : b; }
DEVICE i32 max_i32(i32 a, i32 b) { return a > b ? a : b; }
DEVICE i32 ceil_div(i32 a, i32 b) { return (a + b - 1) / b; }

// Keys first .. end - 1.
struct KeyRange {
    i32 first, end;
};

// The keys that a row at position p sees.
DEVICE KeyRange keys_of_row(const Geometry &geometry, const Sequence &sequence, i32 row) {
    i32 p = row + sequence.query_offset;
    return {max_i32(p - geometry.left, 0), min_i32(p + geometry.right + 1, sequence.len_kv)};
}

// The queries, numbered as rows, that see a key: first .. end - 1.
DEVICE KeyRange queries_of_key(const Geometry &geometry, const Sequence &sequence, i32 key) {
    if (key >= sequence.len_kv) return {0, 0};
    i32 row = key - sequence.query_offset;
    return {max_i32(row - geometry.right, 0), min_i32(row + geometry.left + 1, sequence.len_q)};
}

// The keys that any of rows first .. last sees, and whether all of them see keys `from` .. `end` - 1.
DEVICE KeyRange keys_of_rows(const Geometry &geometry, const Sequence &sequence, i32 first, i32 last) {
    return {keys_of_row(geometry, sequence, first).first, keys_of_row(geometry, sequence, last).end};
}
DEVICE bool all_see(const Geometry &geometry, const Sequence &sequence, i32 first, i32 last, i32 from, i32 end) {
    KeyRange a = keys_of_row(geometry, sequence, first), b = keys_of_row(geometry, sequence, last);
    return max_i32(a.first, b.first) <= from && end <= min_i32(a.end, b.end);
}

constexpr f32 LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;
DEVICE f32 minus_infinity() { return bits_to_f32(0xff800000u); }

// What scores are multiplied by on their way to a power of two.
DEVICE f32 exponent_scale(const Geometry &geometry, bool has_softcap) {
    return (has_softcap ? 1.0f : geometry.scale) * LOG2_E;
}

// cap * tanh(scale * score / cap), to an absolute error of a few 1e-7 caps. 2^x overflows to infinity, where tanh is 1.
DEVICE f32 soft_cap(const Geometry &geometry, f32 score) {
    const f32 cap = geometry.softcap;
    const f32 power = exp2_fast(score * (geometry.scale * (2.0f * LOG2_E) * reciprocal_fast(cap)));
    return cap - 2.0f * cap * reciprocal_fast(power + 1.0f);
}

// The slope of a query head (Press et al. 2022, ALiBi): what a score loses for each position between query and key.
DEVICE f32 alibi_slope(const Geometry &geometry, int head) { return exp2_fast(-8.0f * (head + 1) / geometry.heads_q); }

// 1 / (sum + 2^(sink - base)) for a row whose weights add up to `sum` relative to 2^base; a sink is one more score, of no
// value, and may be larger than all others. A row that sees nothing stays 0.
DEVICE f32 inverse_with_sink(f32 sum, f32 base, Global<const f32> sinks, int head) {
    if (!(sum > 0.0f)) return 0.0f;
    if (!sinks.exists()) return 1.0f / sum;
    const f32 distance = load(sinks, head) * LOG2_E - base;
    const f32 weight = exp2_fast(distance <= 0.0f ? distance : -distance);
    return distance <= 0.0f ? 1.0f / (sum + weight) : weight / (1.0f + sum * weight);
}

// Stores 8 columns of a row from `column` on, of which `dim` exist; only the general variant has rows that are no whole chunks.
DEVICE void store_chunk(Global<u16> to, i64 row, int column, int dim, Vec4 v) {
    if (VARIANT != GENERAL_VARIANT || dim % 8 == 0) return store_vec4(to, row + column, v);
#pragma unroll
    for (int e = 0; e < 8; e++)
        if (column + e < dim) store(to, row + column + e, u16(v.word[e / 2] >> e % 2 * 16));
}
