// Linear attention (Katharopoulos et al. 2020, section 3), plain: for f32 and for head dimensions that `linear_chunks.cu` and
// `linear_decode.cu` do not have.
//
// Prefill is chunked: with S the sum of k v^T over the keys before a chunk, O = Q S + tril(Q K^T) V and then S += K^T V. A block
// walks along one KV head of one sequence for 32 columns of V and S, which stays in shared memory; without causality a first
// walk sums all keys. Decode is recurrent: S += k v^T, o = q S for one token after the other.
//
// Tiles: 32 positions x 32 columns, 4 warps; a warp owns every fourth row, a lane a column.
// Floor: prefill 4 d_qk d_v FLOPs a position over the rate of f32 multipliers, 67 TFLOP/s; it is loads from shared memory, two of
// them a multiplication, that it is bound by. Decode: the state, read and written, over 4.3 TB/s.
//
// Defines: ELEMENT (Bf16, F16, F32).
#include "linear.cuh"

using Element = ELEMENT;
using Storage = Element::Storage;
constexpr int CHUNK = 32, COLUMNS = 32, WARPS = 4, THREADS = WARPS * 32, WARP_ROWS = CHUNK / WARPS;

DEVICE f32 sum_of_warp(f32 x) {
    for (int distance = 16; distance > 0; distance /= 2) x += shuffle_xor(x, distance);
    return x;
}

// The parts of shared memory, in f32: rows of phi(K) and phi(Q) with a column more to spread over the banks, V, S, and the sum
// of the rows of phi(K).
struct Shared {
    int dim;
    DEVICE u32 key(int row, int d) const { return shared_memory() + (row * (dim + 1) + d) * 4; }
    DEVICE u32 query(int row, int d) const { return key(CHUNK + row, d); }
    DEVICE u32 value(int row, int column) const { return key(2 * CHUNK, 0) + (row * COLUMNS + column) * 4; }
    DEVICE u32 state(int d, int column) const { return value(CHUNK + d, column); }
    DEVICE u32 normaliser(int d) const { return state(dim, 0) + d * 4; }
};

// Grid: column tiles * KV heads * batch.
KERNEL(THREADS, 1)
linear_prefill(Global<const Storage> q, Global<const Storage> k, Global<const Storage> v, Global<Storage> o,
               Global<const Sequence> sequences, Geometry geometry, Mechanism mechanism, i32 is_causal) {
    const int thread = thread_index(), lane = thread % 32, warp = thread / 32;
    const int tiles = ceil_div(geometry.dim_v, COLUMNS), column = block_index() % tiles * COLUMNS + lane;
    const int head_kv = block_index() / tiles % geometry.heads_kv, number = block_index() / tiles / geometry.heads_kv;
    const int group = geometry.heads_q / geometry.heads_kv, dim = geometry.dim_qk;
    const Sequence sequence = sequence_at(geometry, sequences, number);
    q = q + sequence.q;
    k = k + (sequence.k + head_kv * geometry.k.head);
    v = v + (sequence.v + head_kv * geometry.v.head);
    o = o + sequence.o;
    const Shared shared{dim};
    const bool has_column = column < geometry.dim_v;

    auto load_rows = [&](Global<const Storage> from, i64 token, int first, int count, bool is_query) {
        for (int item = thread; item < CHUNK * dim; item += THREADS) {
            const int row = item / dim, d = item % dim;
            const f32 x = row < count ? mechanism.phi(Element::widen(load(from, (first + row) * token + d))) : 0.0f;
            store_shared(is_query ? shared.query(row, d) : shared.key(row, d), x);
        }
    };
    auto load_keys = [&](int first) {
        const int count = min_i32(max_i32(sequence.len_kv - first, 0), CHUNK);
        load_rows(k, geometry.k.token, first, count, false);
        for (int row = warp; row < CHUNK; row += WARPS)
            store_shared(shared.value(row, lane),
                         row < count && has_column ? Element::widen(load(v, (first + row) * geometry.v.token + column)) : 0.0f);
    };
    auto add_keys = [&]() {
        for (int d = warp; d < dim; d += WARPS) {
            f32 sum = load_shared_f32(shared.state(d, lane));
            for (int row = 0; row < CHUNK; row++)
                sum = fused_multiply_add(load_shared_f32(shared.key(row, d)), load_shared_f32(shared.value(row, lane)), sum);
            store_shared(shared.state(d, lane), sum);
        }
        for (int d = thread; d < dim; d += THREADS) {
            f32 sum = load_shared_f32(shared.normaliser(d));
            for (int row = 0; row < CHUNK; row++) sum += load_shared_f32(shared.key(row, d));
            store_shared(shared.normaliser(d), sum);
        }
    };
    // O of queries first .. first + count - 1 of all heads of the group. With `lead`, the first of them is `lead` positions
    // after the first key of the chunk and they see its keys up to themselves; else only what is in S.
    auto write_outputs = [&](int first, int count, bool has_lead, int lead) {
        for (int head = head_kv * group; head < (head_kv + 1) * group; head++) {
            sync_threads();
            load_rows(q + head * geometry.q.head, geometry.q.token, first, count, true);
            sync_threads();
            for (int i = 0; i < WARP_ROWS; i++) {
                const int row = warp + i * WARPS;
                if (row >= count) break;
                f32 sum = 0.0f, denominator = 0.0f, weight = 0.0f;
                for (int d = 0; d < dim; d++)
                    sum = fused_multiply_add(load_shared_f32(shared.query(row, d)), load_shared_f32(shared.state(d, lane)), sum);
                for (int d = lane; d < dim; d += 32)
                    denominator += load_shared_f32(shared.query(row, d)) * load_shared_f32(shared.normaliser(d));
                if (has_lead) {
                    // Lane j has the weight of key j; keys that do not exist are zeros.
                    for (int d = 0; d < dim; d++)
                        weight = fused_multiply_add(load_shared_f32(shared.query(row, d)), load_shared_f32(shared.key(lane, d)), weight);
                    if (lane > lead + row) weight = 0.0f;
                    denominator += weight;
                    for (int j = 0; j < CHUNK; j++)
                        sum = fused_multiply_add(shuffle(weight, j), load_shared_f32(shared.value(j, lane)), sum);
                }
                const f32 factor = mechanism.factor(sum_of_warp(denominator), geometry.scale);
                if (has_column)
                    store(o, head * geometry.o.head + (first + row) * geometry.o.token + column, narrow<Element>(sum * factor));
            }
        }
    };

    for (int d = warp; d < dim; d += WARPS) store_shared(shared.state(d, lane), 0.0f);
    for (int d = thread; d < dim; d += THREADS) store_shared(shared.normaliser(d), 0.0f);
    if (!is_causal) {
        for (int key = 0; key < sequence.len_kv; key += CHUNK) {
            load_keys(key);
            sync_threads();
            add_keys();
            sync_threads();
        }
        for (int query = 0; query < sequence.len_q; query += CHUNK)
            write_outputs(query, min_i32(sequence.len_q - query, CHUNK), false, 0);
        return;
    }
    // Queries before the first key see nothing.
    const int offset = sequence.query_offset, empty = min_i32(max_i32(-offset, 0), sequence.len_q);
    for (int head = head_kv * group; head < (head_kv + 1) * group; head++)
        for (int query = warp; query < empty; query += WARPS)
            if (has_column) store(o, head * geometry.o.head + query * geometry.o.token + column, narrow<Element>(0.0f));
    for (int position = 0; position < offset + sequence.len_q; position += CHUNK) {
        load_keys(position);
        const int first = max_i32(position - offset, 0), last = min_i32(position + CHUNK - offset, sequence.len_q);
        // The barriers in `write_outputs` make the keys visible; without queries they have to come from here.
        if (first < last) write_outputs(first, last - first, true, first + offset - position);
        sync_threads();
        add_keys();
        sync_threads();
    }
}
ENTRY(linear_prefill)

// Grid: column tiles * KV heads * batch. Shared memory: S of this block's columns, the normaliser, phi(k), and partial sums.
KERNEL(THREADS, 1)
linear_decode(Global<const Storage> q, Global<const Storage> k, Global<const Storage> v, Global<Storage> o,
              Global<const Sequence> sequences, Geometry geometry, Mechanism mechanism, Global<const f32> state_in,
              Global<const f32> normaliser_in, Global<f32> state_out, Global<f32> normaliser_out) {
    const int thread = thread_index(), lane = thread % 32, warp = thread / 32;
    const int tiles = ceil_div(geometry.dim_v, COLUMNS), tile = block_index() % tiles, column = tile * COLUMNS + lane;
    const int head_kv = block_index() / tiles % geometry.heads_kv, number = block_index() / tiles / geometry.heads_kv;
    const int group = geometry.heads_q / geometry.heads_kv, dim = geometry.dim_qk;
    const Sequence sequence = sequence_at(geometry, sequences, number);
    q = q + sequence.q;
    k = k + (sequence.k + head_kv * geometry.k.head);
    v = v + (sequence.v + head_kv * geometry.v.head);
    o = o + sequence.o;
    const i64 index = i64(number) * geometry.heads_kv + head_kv;
    const bool has_column = column < geometry.dim_v;
    const u32 state = shared_memory(), normaliser = state + dim * COLUMNS * 4, key = normaliser + dim * 4;
    const u32 sums = key + dim * 4, denominators = sums + THREADS * 4;

    for (int d = warp; d < dim; d += WARPS)
        store_shared(state + (d * COLUMNS + lane) * 4, has_column ? load(state_in, (index * dim + d) * geometry.dim_v + column) : 0.0f);
    for (int d = thread; d < dim; d += THREADS)
        store_shared(normaliser + d * 4, mechanism.is_normalised ? load(normaliser_in, index * dim + d) : 0.0f);
    for (int token = 0; token < sequence.len_q; token++) {
        for (int d = thread; d < dim; d += THREADS) {
            const f32 x = mechanism.phi(Element::widen(load(k, token * geometry.k.token + d)));
            store_shared(key + d * 4, x);
            store_shared(normaliser + d * 4, load_shared_f32(normaliser + d * 4) + x);
        }
        const f32 value = has_column ? Element::widen(load(v, token * geometry.v.token + column)) : 0.0f;
        sync_threads();
        for (int d = warp; d < dim; d += WARPS) {
            const u32 at = state + (d * COLUMNS + lane) * 4;
            store_shared(at, fused_multiply_add(load_shared_f32(key + d * 4), value, load_shared_f32(at)));
        }
        for (int head = head_kv * group; head < (head_kv + 1) * group; head++) {
            f32 sum = 0.0f, denominator = 0.0f;
            for (int d = warp; d < dim; d += WARPS) {
                const f32 x = mechanism.phi(Element::widen(load(q, head * geometry.q.head + token * geometry.q.token + d)));
                sum = fused_multiply_add(x, load_shared_f32(state + (d * COLUMNS + lane) * 4), sum);
                denominator = fused_multiply_add(x, load_shared_f32(normaliser + d * 4), denominator);
            }
            store_shared(sums + thread * 4, sum);
            if (lane == 0) store_shared(denominators + warp * 4, denominator);
            sync_threads();
            if (warp == 0) {
                sum = 0.0f, denominator = 0.0f;
                for (int w = 0; w < WARPS; w++) {
                    sum += load_shared_f32(sums + (w * 32 + lane) * 4);
                    denominator += load_shared_f32(denominators + w * 4);
                }
                if (has_column)
                    store(o, head * geometry.o.head + token * geometry.o.token + column,
                          narrow<Element>(sum * mechanism.factor(denominator, geometry.scale)));
            }
            sync_threads();
        }
    }
    for (int d = warp; d < dim; d += WARPS)
        if (has_column) store(state_out, (index * dim + d) * geometry.dim_v + column, load_shared_f32(state + (d * COLUMNS + lane) * 4));
    if (mechanism.is_normalised && tile == 0)
        for (int d = thread; d < dim; d += THREADS) store(normaliser_out, index * dim + d, load_shared_f32(normaliser + d * 4));
}
ENTRY(linear_decode)
