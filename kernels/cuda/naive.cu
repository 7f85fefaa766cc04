// Attention as its definition reads: scores of all pairs in memory in f32, a softmax of each row, a product with V.
//
// Three kernels with memory of batch * heads * queries * keys between them: the baseline of the field, whose memory is what
// the others avoid. All dtypes, patterns, biases and sinks; of BigBird, whose blocks are drawn, a table says who sees whom.
//
// Tiles: 64 x 64 numbers a block of 256 threads (product.cuh). Limit aimed at: none; multiplied and added in f32.
//
// Defines: ELEMENT (Bf16, F16, F32).
#include "product.cuh"

using Element = ELEMENT;
using Storage = Element::Storage;

// A pattern besides the band of the geometry: which, and its numbers. `src/cuda/naive.rs` fills it in.
struct Pattern {
    enum Kind { BAND, DILATED, LONGFORMER, STRIDED, FIXED, BIGBIRD };
    i32 kind, window, step, global;

    DEVICE static bool is_near(i32 distance, i32 window, i32 step) {
        const i32 size = distance < 0 ? -distance : distance;
        return size % step == 0 && size / step <= window;
    }
    // Whether the row at position p sees key j, which is in the band.
    DEVICE bool sees(i32 p, i32 j) const {
        switch (kind) {
        case DILATED: return is_near(p - j, window, step);
        case LONGFORMER: return j < global || p < global || is_near(p - j, window, step);
        case STRIDED: return p - j <= step || (p - j) % step == 0;
        case FIXED: return p / step == j / step || j % step >= step - window;
        default: return true;
        }
    }
};

// Where the table of blocks has those of a sequence: at `start`, for each head and each of `rows` block rows, the first of
// which is `first`, `words` of 32 bits with a bit a key block.
struct DrawnBlocks {
    u32 start;
    i32 first, rows, words;
};

// Whether the row at position p sees the block of key j, `size` being the keys of a block.
DEVICE bool sees_block(Global<const u32> table, const DrawnBlocks &drawn, int head, i32 size, i32 p, i32 j) {
    const i32 row = (p - drawn.first * size) / size, block = j / size;
    return load(table, drawn.start + (i64(head) * drawn.rows + row) * drawn.words + block / 32) >> block % 32 & 1;
}

DEVICE i64 score_row(const Geometry &geometry, int number, int head, int query) {
    return ((i64(number) * geometry.heads_q + head) * geometry.len_q + query) * geometry.len_kv;
}

// Grid: key tiles * query tiles * heads * batch.
KERNEL(PRODUCT_THREADS, 1)
naive_scores(Global<const Storage> q, Global<const Storage> k, Global<const Sequence> sequences, Geometry geometry,
             Pattern pattern, Global<const DrawnBlocks> drawn_blocks, Global<const u32> blocks, Global<const u8> bool_bias,
             Global<const Storage> additive_bias, Global<f32> scores) {
    const int key_tiles = ceil_div(geometry.len_kv, PRODUCT_TILE), query_tiles = ceil_div(geometry.len_q, PRODUCT_TILE);
    const int key = block_index() % key_tiles * PRODUCT_TILE, rest = block_index() / key_tiles;
    const int query = rest % query_tiles * PRODUCT_TILE, head = rest / query_tiles % geometry.heads_q;
    const int number = rest / query_tiles / geometry.heads_q, head_kv = head / (geometry.heads_q / geometry.heads_kv);
    const Sequence sequence = sequence_at(geometry, sequences, number);
    if (query >= sequence.len_q || key >= sequence.len_kv) return;
    q = q + (sequence.q + head * geometry.q.head);
    k = k + (sequence.k + head_kv * geometry.k.head);
    f32 c[4][4] = {};
    multiply_add<false>(
        c, geometry.dim_qk,
        [&](int row, int d) {
            return query + row < sequence.len_q ? Element::widen(load(q, (query + row) * geometry.q.token + d)) : 0.0f;
        },
        [&](int d, int column) {
            return key + column < sequence.len_kv ? Element::widen(load(k, (key + column) * geometry.k.token + d)) : 0.0f;
        });
    const f32 slope = alibi_slope(geometry, head);
    const i32 bias = geometry.bias;
    const DrawnBlocks drawn = drawn_blocks.exists() ? load_struct(drawn_blocks, number) : DrawnBlocks{};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int row = query + product_row() + i;
        const KeyRange seen = keys_of_row(geometry, sequence, row);
        const i32 p = row + sequence.query_offset;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int column = key + product_column() + j;
            if (row >= sequence.len_q || column >= sequence.len_kv) continue;
            f32 score = geometry.softcap != 0.0f ? soft_cap(geometry, c[i][j]) : c[i][j] * geometry.scale;
            const i64 at = i64(row) * geometry.len_kv + column;
            if (bias == ADDITIVE_BIAS) score += Element::widen(load(additive_bias, at));
            if (bias == ALIBI_BIAS) score -= slope * (p < column ? column - p : p - column);
            const bool is_seen = column >= seen.first && column < seen.end && pattern.sees(p, column) &&
                                 (!blocks.exists() || sees_block(blocks, drawn, head, pattern.step, p, column)) &&
                                 (bias != BOOL_BIAS || load(bool_bias, at) != 0);
            store(scores, score_row(geometry, number, head, row) + column, is_seen ? score : minus_infinity());
        }
    }
}
ENTRY(naive_scores)

constexpr int SOFTMAX_THREADS = 128;

// The sum or the largest of a number of each thread.
template <class Merge> DEVICE f32 of_all(f32 mine, Merge merge) {
    const u32 warp = thread_index() / 32, shared = shared_memory();
    for (int distance = 16; distance > 0; distance /= 2) mine = merge(mine, shuffle_xor(mine, distance));
    sync_threads();
    if (thread_index() % 32 == 0) store_shared(shared + warp * 4, mine);
    sync_threads();
    f32 all = load_shared_f32(shared);
    for (int w = 1; w < SOFTMAX_THREADS / 32; w++) all = merge(all, load_shared_f32(shared + w * 4));
    return all;
}

// Scores become weights in place. Grid: queries * heads * batch.
KERNEL(SOFTMAX_THREADS, 1)
naive_softmax(Global<const Sequence> sequences, Geometry geometry, Global<const f32> sinks, Global<f32> scores, Global<f32> lse) {
    const int query = block_index() % geometry.len_q, head = block_index() / geometry.len_q % geometry.heads_q;
    const int number = block_index() / geometry.len_q / geometry.heads_q;
    const Sequence sequence = sequence_at(geometry, sequences, number);
    if (query >= sequence.len_q) return;
    const Global<f32> row = scores + score_row(geometry, number, head, query);
    f32 largest = minus_infinity();
    for (int j = thread_index(); j < sequence.len_kv; j += SOFTMAX_THREADS) largest = max_f32(largest, load(row, j));
    largest = of_all(largest, [](f32 a, f32 b) { return max_f32(a, b); });
    // A row that sees nothing keeps weights of 0.
    const f32 base = largest == minus_infinity() ? 0.0f : largest;
    f32 sum = 0.0f;
    for (int j = thread_index(); j < sequence.len_kv; j += SOFTMAX_THREADS) sum += exp2_fast((load(row, j) - base) * LOG2_E);
    sum = of_all(sum, [](f32 a, f32 b) { return a + b; });
    if (lse.exists() && thread_index() == 0)
        store(lse, (i64(number) * geometry.heads_q + head) * geometry.len_q + query,
              sum > 0.0f ? base + log2_fast(sum) * LN_2 : minus_infinity());
    const f32 scale = inverse_with_sink(sum, base * LOG2_E, sinks, head);
    for (int j = thread_index(); j < sequence.len_kv; j += SOFTMAX_THREADS)
        store(row, j, exp2_fast((load(row, j) - base) * LOG2_E) * scale);
}
ENTRY(naive_softmax)

// Grid: value tiles * query tiles * heads * batch.
KERNEL(PRODUCT_THREADS, 1)
naive_output(Global<const f32> scores, Global<const Storage> v, Global<const Sequence> sequences, Geometry geometry,
             Global<Storage> o) {
    const int value_tiles = ceil_div(geometry.dim_v, PRODUCT_TILE), query_tiles = ceil_div(geometry.len_q, PRODUCT_TILE);
    const int first = block_index() % value_tiles * PRODUCT_TILE, rest = block_index() / value_tiles;
    const int query = rest % query_tiles * PRODUCT_TILE, head = rest / query_tiles % geometry.heads_q;
    const int number = rest / query_tiles / geometry.heads_q, head_kv = head / (geometry.heads_q / geometry.heads_kv);
    const Sequence sequence = sequence_at(geometry, sequences, number);
    if (query >= sequence.len_q) return;
    v = v + (sequence.v + head_kv * geometry.v.head);
    o = o + (sequence.o + head * geometry.o.head);
    const Global<const f32> rows = scores + score_row(geometry, number, head, query);
    f32 c[4][4] = {};
    multiply_add<true>(
        c, sequence.len_kv,
        [&](int row, int j) { return query + row < sequence.len_q ? load(rows, i64(row) * geometry.len_kv + j) : 0.0f; },
        [&](int j, int column) {
            return first + column < geometry.dim_v ? Element::widen(load(v, j * geometry.v.token + first + column)) : 0.0f;
        });
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) {
            const int row = query + product_row() + i, column = first + product_column() + j;
            if (row < sequence.len_q && column < geometry.dim_v)
                store(o, row * geometry.o.token + column, narrow<Element>(c[i][j]));
        }
}
ENTRY(naive_output)
