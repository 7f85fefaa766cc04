// Linear attention's recurrent decode (Katharopoulos et al. 2020, section 3.4): S += k v^T, o = q S for one token after the other.
//
// A block has 32 columns of the state of one KV head of one sequence, all in registers: it reads them once, whatever the number of
// tokens, and writes them once. Eight threads have 16 bytes each of a row, so that loads and stores are whole lines, and a thread's
// loads, one every 16 rows, are all under way before it needs the first. Query heads of a group take turns.
//
// Tiles: DIM_QK x 32 numbers, 4 warps.
// Floor: 2 * d_qk * d_v * 4 bytes of state a KV head and sequence over 4.3 TB/s, 30 ns at 128 x 128; arithmetic is nothing to it.
// A multiprocessor holds three blocks of d128, or 48 KiB under way, where its share of the rate times a latency of 800 ns is 26.
//
// Defines: ELEMENT (Bf16, F16, F32), DIM_QK.
#include "linear.cuh"

using Element = ELEMENT;
using Storage = Element::Storage;
constexpr int COLUMNS = 32, THREADS = 128, WARPS = THREADS / 32, STRIDE = THREADS / 8, ROWS = DIM_QK / STRIDE;

// Grid: column tiles * KV heads * batch. d_v is a multiple of 4. Shared memory: sums of each warp, then its divisor.
KERNEL(THREADS, 1)
linear_decode_wide(Global<const Storage> q, Global<const Storage> k, Global<const Storage> v, Global<Storage> o,
                   Global<const Sequence> sequences, Geometry geometry, Mechanism mechanism, Global<const f32> state_in,
                   Global<const f32> normaliser_in, Global<f32> state_out, Global<f32> normaliser_out) {
    const u32 thread = thread_index(), lane = thread % 32, warp = thread / 32;
    const int tiles = ceil_div(geometry.dim_v, COLUMNS), tile = block_index() % tiles;
    const int column = tile * COLUMNS + thread % 8 * 4, first = thread / 8;
    const int head_kv = block_index() / tiles % geometry.heads_kv, number = block_index() / tiles / geometry.heads_kv;
    const int group = geometry.heads_q / geometry.heads_kv, dim = geometry.dim_qk;
    const bool has_column = column < geometry.dim_v;
    const Sequence sequence = sequence_at(geometry, sequences, number);
    const i64 index = (i64(number) * geometry.heads_kv + head_kv) * dim;
    q = q + (sequence.q + head_kv * group * geometry.q.head);
    k = k + (sequence.k + head_kv * geometry.k.head);
    v = v + (sequence.v + head_kv * geometry.v.head);
    o = o + (sequence.o + head_kv * group * geometry.o.head);
    auto sum_at = [](int w, int c) { return shared_memory() + (w * (COLUMNS + 1) + c) * 4; };

    f32 state[ROWS][4], normaliser[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        const int d = first + i * STRIDE;
        Vec4 row = {};
        if (d < dim && has_column) row = load_vec4(state_in, (index + d) * geometry.dim_v + column);
#pragma unroll
        for (int c = 0; c < 4; c++) state[i][c] = bits_to_f32(row.word[c]);
        normaliser[i] = d < dim && mechanism.is_normalised ? load(normaliser_in, index + d) : 0.0f;
    }
    for (int token = 0; token < sequence.len_q; token++) {
        f32 value[4];
#pragma unroll
        for (int c = 0; c < 4; c++)
            value[c] = has_column ? Element::widen(load(v, token * geometry.v.token + column + c)) : 0.0f;
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            const int d = first + i * STRIDE;
            const f32 key = d < dim ? mechanism.phi(Element::widen(load(k, token * geometry.k.token + d))) : 0.0f;
            normaliser[i] += key;
#pragma unroll
            for (int c = 0; c < 4; c++) state[i][c] = fused_multiply_add(key, value[c], state[i][c]);
        }
        for (int head = 0; head < group; head++) {
            f32 sum[4] = {}, divisor = 0.0f;
#pragma unroll
            for (int i = 0; i < ROWS; i++) {
                const int d = first + i * STRIDE;
                if (d >= dim) continue;
                const f32 query = mechanism.phi(Element::widen(load(q, head * geometry.q.head + token * geometry.q.token + d)));
                divisor = fused_multiply_add(query, normaliser[i], divisor);
#pragma unroll
                for (int c = 0; c < 4; c++) sum[c] = fused_multiply_add(query, state[i][c], sum[c]);
            }
            // The rows of a warp are in lanes 8 apart.
#pragma unroll
            for (int distance = 8; distance < 32; distance *= 2) {
                divisor += shuffle_xor(divisor, distance);
#pragma unroll
                for (int c = 0; c < 4; c++) sum[c] += shuffle_xor(sum[c], distance);
            }
            if (lane < 8)
#pragma unroll
                for (int c = 0; c < 4; c++) store_shared(sum_at(warp, lane * 4 + c), sum[c]);
            if (lane == 0) store_shared(sum_at(warp, COLUMNS), divisor);
            sync_threads();
            if (warp == 0) {
                f32 all = 0.0f, divisors = 0.0f;
                for (int w = 0; w < WARPS; w++) {
                    all += load_shared_f32(sum_at(w, lane));
                    divisors += load_shared_f32(sum_at(w, COLUMNS));
                }
                const int own = tile * COLUMNS + lane;
                if (own < geometry.dim_v)
                    store(o, head * geometry.o.head + token * geometry.o.token + own,
                          narrow<Element>(all * mechanism.factor(divisors, geometry.scale)));
            }
            sync_threads();
        }
    }
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        const int d = first + i * STRIDE;
        if (d >= dim) continue;
        if (has_column)
            store_vec4(state_out, (index + d) * geometry.dim_v + column,
                       Vec4{{f32_to_bits(state[i][0]), f32_to_bits(state[i][1]), f32_to_bits(state[i][2]), f32_to_bits(state[i][3])}});
        if (mechanism.is_normalised && tile == 0 && thread % 8 == 0) store(normaliser_out, index + d, normaliser[i]);
    }
}
ENTRY(linear_decode_wide)
