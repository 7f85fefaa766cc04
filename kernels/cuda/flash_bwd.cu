// FlashAttention-2, backward (Dao 2023, algorithm 2), for sm_80 and later: (Q, K, V, O, LSE, dO) -> (dQ, dK, dV).
//
// With D = rowsum(dO O): S = Q K^T and P = exp(scale S - LSE) are computed again, dP = dO V^T, dS = P (dP - D), and
// dV = P^T dO, dK = scale dS^T Q, dQ = scale dS K. A row with LSE = -inf sees nothing and has no gradient.
//
//   flash_bwd_rows     D and LSE of each row; zeros for the sums of dQ.
//   flash_bwd_keys     A block holds KEYS keys and values of one KV head, with dK and dV in registers; Q, dO and the rows' sums
//                      stream through two stages, ROWS queries at a time, over all query heads of the group: dK and dV are
//                      sums in one block, in one order. dQ is added to f32 sums in memory, whose order is not fixed.
//   flash_bwd_sums     dQ from its sums.
// Where a problem is `deterministic`, nothing is added in memory:
//   flash_bwd_keys_only   the same without dQ, and
//   flash_bwd_queries     a block holds Q and dO of its queries with dQ in registers, and keys and values stream: scores and dP
//                         a second time, 7 products instead of 5, rather than blocks that wait for each other's turn, which
//                         would hang wherever a later block starts first.
//
// Scores are computed transposed, S^T = K Q^T: a warp owns WARP_KEYS keys, its P^T and dS^T are the left side of dV and dK as
// they lie in registers, and only dS goes through shared memory, for dQ. With SIDE_WARPS = 2, two warps share keys, halve the
// queries of S^T and the columns of dK and dV, and P^T goes through shared memory too: where d128 would leave a warp 16 keys,
// each fragment of Q and dO serves two products instead of one. Two barriers a tile.
//
// Tiles that no pair of is seen are skipped, and only those at an edge masked. Blocks of the first keys, which most queries
// see under a causal mask, start first.
//
// Floor, for pairs (query head, query, key): 2 (3 d_qk + 2 d_v) FLOPs each, over the rate of mma.sync: 312 TFLOP/s on an A100,
// and as an expectation 60 % of wgmma's 790 on an H200. One exponential a pair, at 16/clk/SM: 5 % of the products' time at d128,
// 10 % at d64. dQ's sums: 4 d_qk bytes for KEYS pairs, 1.2 TB/s through the second-level cache at d128 and 390 TFLOP/s. Bytes
// of tensors rule below a few hundred rows only. What is nearest to the products is shared memory, 128 bytes a clock: for
// d128 and 64 x 128 pairs, 5120 clocks of products on an A100 (4100 expected on an H200) beside 4350 of fragments, 260 of
// P and dS, 260 of copies; for d64, 2560 (2050) beside 2300, 130 and 130.
//
// Defines: ELEMENT (Bf16, F16), DIM_QK, DIM_V, ROWS, KEYS, KEY_WARPS, SIDE_WARPS, DQ_ROW_WARPS (warps that share the rows of dQ;
// the others share its columns), BLOCKS (a multiprocessor), QUERY_WARPS and QUERY_KEYS (flash_bwd_queries: 16 rows a warp, keys a
// tile), VARIANT (0, 1, 2: see geometry.cuh).
#include "flash_bwd.cuh"

using Element = ELEMENT;

// Grid: blocks of 64 rows * query heads * batch, rows fastest. Eight lanes a row.
KERNEL(256, 1)
flash_bwd_rows(Global<const u16> o, Global<const u16> d_o, Global<const f32> lse, Global<f32> row_sums, Global<f32> dq_sums,
               Global<const Sequence> sequences, Geometry geometry) {
    const int blocks = ceil_div(geometry.len_q, ROW_BLOCK), block = block_index();
    const int first = block % blocks * ROW_BLOCK, head = block / blocks % geometry.heads_q;
    const int number = block / blocks / geometry.heads_q;
    const Sequence sequence = sequence_at(geometry, sequences, number);
    const u32 thread = thread_index();
    const i64 base = first_row(geometry, number, head) + first;
    if (dq_sums.exists())
        for (int item = thread; item < ROW_BLOCK * DIM_QK / 4; item += 256) store_vec4(dq_sums, base * DIM_QK + item * 4, Vec4{});
#pragma unroll
    for (int r = 0; r < ROW_BLOCK; r += 32) {
        const int row = r + thread / 8;
        const bool exists = first + row < sequence.len_q;
        f32 delta = 0.0f, log_sum_exp = minus_infinity();
        if (exists) {
            const i64 at = sequence.o + head * geometry.o.head + i64(first + row) * geometry.o.token;
            for (int column = thread % 8 * 8; column < geometry.dim_v; column += 64) {
                if (VARIANT == GENERAL_VARIANT && geometry.dim_v % 8 != 0) {
                    for (int c = column; c < min_i32(column + 8, geometry.dim_v); c++)
                        delta += Element::widen(load(o, at + c)) * Element::widen(load(d_o, at + c));
                    continue;
                }
                const Vec4 a = load_vec4(o, at + column), b = load_vec4(d_o, at + column);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    delta += Element::widen(u16(a.word[i])) * Element::widen(u16(b.word[i]));
                    delta += Element::widen(u16(a.word[i] >> 16)) * Element::widen(u16(b.word[i] >> 16));
                }
            }
            log_sum_exp = load(lse, (i64(number) * geometry.heads_q + head) * geometry.len_q + first + row);
        }
        delta += shuffle_xor(delta, 1);
        delta += shuffle_xor(delta, 2);
        delta += shuffle_xor(delta, 4);
        if (thread % 8 == 0) {
            const bool is_empty = log_sum_exp == minus_infinity();
            store(row_sums, (base + row) * 2, is_empty ? -minus_infinity() : log_sum_exp * LOG2_E);
            store(row_sums, (base + row) * 2 + 1, is_empty ? 0.0f : delta);
        }
    }
}
ENTRY(flash_bwd_rows)

#include "flash_bwd_keys.cuh"
#include "flash_bwd_queries.cuh"
