// Attention by the book: a warp a query row, online softmax (Milakov and Gimelshein 2018), one key at a time.
//
// A lane holds every 32nd element of the row's query and output; a score is a sum over the warp. K and V are read once a
// row and from cache at best. Limit that it aims at: none, it is an example of a kernel that is not part of attnbench.
//
// `ptx.cuh` and the other headers of kernels/cuda are there to be included, and ELEMENT is Bf16, F16 or F32. Kernels that
// touch memory through them run in the host shim too; on a GPU any CUDA C++ will do.
#include "ptx.cuh"

using Storage = ELEMENT::Storage;
constexpr u32 WARPS = 4, MAX_PIECES = 4;
constexpr f32 LOG2_E = 1.4426950408889634f;

KERNEL(32 * WARPS, 1) row_attention(Global<const Storage> q, Global<const Storage> k, Global<const Storage> v,
                                    Global<Storage> o, Global<const i32> lengths_q, Global<const i32> lengths_kv,
                                    Global<const i32> starts_q, Global<const i32> starts_kv, i32 batch,
                                    i32 longest_q, i32 heads_q, i32 heads_kv, i32 dim, i32 causal, f32 scale) {
    i32 lane = static_cast<i32>(thread_index() % 32);
    i64 warp = static_cast<i64>(block_index()) * WARPS + thread_index() / 32;
    if (warp >= static_cast<i64>(batch) * longest_q * heads_q) return;
    i32 head = static_cast<i32>(warp % heads_q), token = static_cast<i32>(warp / heads_q % longest_q);
    i64 sequence = warp / heads_q / longest_q;
    i32 len_q = load(lengths_q, sequence), len_kv = load(lengths_kv, sequence);
    if (token >= len_q) return;
    // Layouts bshd and thd: rows of a token's heads follow one another.
    i64 row = (static_cast<i64>(load(starts_q, sequence)) + token) * heads_q + head;
    i64 first_key = load(starts_kv, sequence);
    i32 head_kv = head / (heads_q / heads_kv);
    f32 query[MAX_PIECES], sum[MAX_PIECES];
    for (u32 piece = 0; piece < MAX_PIECES; piece++) {
        i32 at = lane + 32 * static_cast<i32>(piece);
        query[piece] = at < dim ? scale * LOG2_E * ELEMENT::widen(load(q, row * dim + at)) : 0.0f;
        sum[piece] = 0.0f;
    }
    // Queries end where keys end: the bottom-right alignment.
    i32 visible = causal ? token + len_kv - len_q + 1 : len_kv;
    f32 largest = -1e30f, weight_sum = 0.0f;
    for (i32 key = 0; key < visible; key++) {
        i64 base = ((first_key + key) * heads_kv + head_kv) * dim;
        f32 score = 0.0f;
        for (u32 piece = 0; piece < MAX_PIECES; piece++) {
            i32 at = lane + 32 * static_cast<i32>(piece);
            if (at < dim) score += query[piece] * ELEMENT::widen(load(k, base + at));
        }
        for (u32 mask = 16; mask; mask /= 2) score += shuffle_xor(score, mask);
        f32 raised = max_f32(largest, score);
        f32 kept = exp2_fast(largest - raised), weight = exp2_fast(score - raised);
        largest = raised;
        weight_sum = weight_sum * kept + weight;
        for (u32 piece = 0; piece < MAX_PIECES; piece++) {
            i32 at = lane + 32 * static_cast<i32>(piece);
            f32 value = at < dim ? ELEMENT::widen(load(v, base + at)) : 0.0f;
            sum[piece] = sum[piece] * kept + weight * value;
        }
    }
    // A row that sees nothing is zero.
    f32 norm = weight_sum > 0.0f ? 1.0f / weight_sum : 0.0f;
    for (u32 piece = 0; piece < MAX_PIECES; piece++) {
        i32 at = lane + 32 * static_cast<i32>(piece);
        if (at < dim) store(o, row * dim + at, narrow<ELEMENT>(sum[piece] * norm));
    }
}
ENTRY(row_attention)
