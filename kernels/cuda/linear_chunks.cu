// Linear attention's prefill on tensor cores (Katharopoulos et al. 2020, section 3; chunks as in Yang et al. 2024, Gated Linear
// Attention, section 4), for sm_80 and later.
//
// A block walks along one query head of one sequence in chunks of 64 positions, for COLUMNS columns of V and O. With S the sum of
// k v^T over the keys before a chunk: O = Q S + tril(Q K^T) V, then S += K^T V. A warp owns WARP_V of the columns: S of them
// stays in its registers, transposed, because the accumulators of V^T K are, once rounded, the fragments of S that Q S needs. So S
// never leaves the registers; tril(Q K^T), of which each warp computes some rows, goes through shared memory.
//
// Where heads and columns are too few to fill the device, positions are cut into segments: `linear_sums` sums each one's keys,
// `linear_scan` turns that into the sums before each segment, and blocks of `linear_chunks` begin from them (a scan of two levels).
// Without causality the same kernels compute S of all keys, split over segments, and then O = Q S.
//
// phi is applied where a chunk has arrived, by the thread that copied it. The normaliser z, the sum of phi(k), is f32; row sums of
// tril(Q K^T) plus Q z are the divisors. f16 has a small range: rows of Q are scaled by a power of two to a sum below one,
// S by one below 2^15, and both are taken back in f32.
//
// Tiles: 64 positions; d64 64 columns, 4 warps; d128 128, 4; d256 128, 8. Two stages of Q, K and V.
// Floor, d128: 1 KiB a position and head over 4.3 TB/s: 15.2 ns a chunk, or 3530 cycles of a multiprocessor's share. Its
// products, 5.5 MFLOP of which 1.3 for the diagonal, take 2240 cycles at the rate expected of mma.sync (60 % of wgmma's 790
// TFLOP/s); loads from shared memory 2000; 16384 exponentials of elu 1024. So memory rules; segments add the half, since they read
// K and V twice.
//
// Defines: ELEMENT (Bf16, F16), DIM_QK, WARP_V, WARPS.
#include "chunks.cuh"

// Which positions a block walks along, from its number: column tiles fastest, then segments, heads, sequences.
struct Walk {
    int tile, tiles, segment, head, number;
    DEVICE Walk(const Geometry &geometry, int segments, int heads) {
        tiles = ceil_div(geometry.dim_v, COLUMNS);
        const int block = block_index();
        tile = block % tiles;
        segment = block / tiles % segments;
        head = block / tiles / segments % heads;
        number = block / tiles / segments / heads;
    }
};

// The position at which the first chunk begins: queries before the first key are in chunks of their own.
DEVICE int origin_of(const Sequence &sequence, bool is_causal) {
    const int before = is_causal ? max_i32(-sequence.query_offset, 0) : 0;
    return -ceil_div(before, CHUNK) * CHUNK;
}

// Applies phi to a chunk of keys and adds them to this warp's part of the normaliser, of the other parity.
DEVICE void map_keys(u32 stage, int first, int end, int dim, const Mechanism &mechanism, int parity, u32 lane, int warp) {
    if (mechanism.is_identity()) return;
    MapKeys map{mechanism, {}};
    map_rows(key_tile(stage), first, end, dim, map);
    if (!mechanism.is_normalised) return;
#pragma unroll
    for (int panel = 0; panel < DIM_QK / 64; panel++)
#pragma unroll
        for (int e = 0; e < 8; e++) {
            f32 sum = map.sum[panel][e];
            sum += shuffle_xor(sum, 8);
            sum += shuffle_xor(sum, 16);
            const int d = panel * 64 + lane % 8 * 8 + e;
            if (lane < 8)
                store_shared(normaliser_at(parity ^ 1, warp, d), load_shared_f32(normaliser_at(parity, warp, d)) + sum);
        }
}

// The normaliser before the first chunk: from memory, in the first warp's part.
DEVICE void start_normaliser(Global<const f32> normaliser, bool exists) {
    for (int d = thread_index(); d < WARPS * DIM_QK; d += THREADS)
        store_shared(normaliser_at(0, 0, d), exists && d < DIM_QK ? load(normaliser, d) : 0.0f);
}

// Sums of the keys of a segment. Grid: column tiles * segments * KV heads * batch.
KERNEL(THREADS, 1)
linear_sums(Global<const u16> k, Global<const u16> v, Global<const Sequence> sequences, Geometry geometry, Mechanism mechanism,
            i32 is_causal, i32 segments, i32 chunks, Global<f32> states) {
    const Walk walk(geometry, segments, geometry.heads_kv);
    const Sequence sequence = sequence_at(geometry, sequences, walk.number);
    const u32 lane = thread_index() % 32;
    const int warp = thread_index() / 32, column = walk.tile * COLUMNS;
    k = k + (sequence.k + walk.head * geometry.k.head);
    v = v + (sequence.v + walk.head * geometry.v.head + column);
    const int begin = origin_of(sequence, is_causal) + walk.segment * chunks * CHUNK;
    const int end = min_i32(begin + chunks * CHUNK, sequence.len_kv);
    auto copy = [&](u32 stage, int first) {
        copy_rows(key_tile(stage), k, first, sequence.len_kv, geometry.dim_qk, geometry.k.token);
        copy_rows(value_tile(stage), v, first, sequence.len_kv, geometry.dim_v - column, geometry.v.token);
        copy_async_commit();
    };
    State state = {};
    start_normaliser(Global<const f32>{nullptr}, false);
    u32 stage = 0;
    int parity = 0;
    if (begin < end) copy(stage, begin);
    sync_threads();
    for (int first = begin; first < end; first += CHUNK) {
        copy_async_wait<0>();
        map_keys(stage, first, sequence.len_kv, geometry.dim_qk, mechanism, parity, lane, warp);
        // This chunk is here, and everybody is done with the one before.
        sync_threads();
        if (first + CHUNK < end) copy(STAGE - stage, first + CHUNK);
        state.add_keys(stage, lane, warp);
        stage = STAGE - stage, parity ^= 1;
    }
    const i64 index = (i64(walk.number) * geometry.heads_kv + walk.head) * segments + walk.segment;
    states = states + index * state_size(walk.tiles);
    state.store_to(states, walk.tile * WARPS + warp);
    // The barrier of the last chunk made every warp's part of the normaliser visible.
    if (!mechanism.is_normalised || walk.tile > 0) return;
    for (int d = thread_index(); d < DIM_QK; d += THREADS) {
        f32 sum = 0.0f;
        for (int w = 0; w < WARPS; w++) sum += load_shared_f32(normaliser_at(parity, w, d));
        store(states, normaliser_in_state(walk.tiles) + d, sum);
    }
}
ENTRY(linear_sums)

// From sums of segments, of the first `size` numbers of `pitch`, to sums before each segment or, with `is_total`, to that of all of
// them in the first one's place. Grid: heads * batch, and blocks of 256 numbers in y.
KERNEL(256, 1)
linear_scan(Global<f32> sums, i32 segments, i32 pitch, i32 size, i32 is_total) {
    const int at = block_index_y() * 256 + thread_index();
    if (at >= size) return;
    const i64 first = i64(block_index()) * segments * pitch + at;
    f32 sum = 0.0f;
    for (int segment = 0; segment < segments; segment++) {
        const f32 own = load(sums, first + i64(segment) * pitch);
        if (!is_total) store(sums, first + i64(segment) * pitch, sum);
        sum += own;
    }
    if (is_total) store(sums, first, sum);
}
ENTRY(linear_scan)

// Outputs. Grid: column tiles * segments * query heads * batch. `states`, where it exists, has the sums before each segment, or, not
// causal, those of all keys, in the first of `states_a_head` of a KV head.
KERNEL(THREADS, 1)
linear_chunks(Global<const u16> q, Global<const u16> k, Global<const u16> v, Global<u16> o, Global<const Sequence> sequences,
              Geometry geometry, Mechanism mechanism, i32 is_causal, i32 segments, i32 chunks, Global<const f32> states,
              i32 states_a_head) {
    const Walk walk(geometry, segments, geometry.heads_q);
    const Sequence sequence = sequence_at(geometry, sequences, walk.number);
    const u32 lane = thread_index() % 32;
    const int warp = thread_index() / 32, column = walk.tile * COLUMNS;
    const int head_kv = walk.head / (geometry.heads_q / geometry.heads_kv), offset = is_causal ? sequence.query_offset : 0;
    q = q + (sequence.q + walk.head * geometry.q.head);
    k = k + (sequence.k + head_kv * geometry.k.head);
    v = v + (sequence.v + head_kv * geometry.v.head + column);
    o = o + (sequence.o + walk.head * geometry.o.head);
    const int begin = origin_of(sequence, is_causal) + walk.segment * chunks * CHUNK;
    const int end = min_i32(begin + chunks * CHUNK, offset + sequence.len_q);
    if (begin >= end) return;
    auto copy = [&](u32 stage, int first) {
        copy_rows(query_tile(stage), q, first - offset, sequence.len_q, geometry.dim_qk, geometry.q.token);
        if (is_causal) {
            copy_rows(key_tile(stage), k, first, sequence.len_kv, geometry.dim_qk, geometry.k.token);
            copy_rows(value_tile(stage), v, first, sequence.len_kv, geometry.dim_v - column, geometry.v.token);
        }
        copy_async_commit();
    };
    u32 stage = 0;
    int parity = 0;
    copy(stage, begin);
    State state = {};
    const i64 index = (i64(walk.number) * geometry.heads_kv + head_kv) * states_a_head + (is_causal ? walk.segment : 0);
    const Global<const f32> before = states + index * state_size(walk.tiles);
    if (states.exists()) state.load_from(before, walk.tile * WARPS + warp);
    start_normaliser(before + normaliser_in_state(walk.tiles), states.exists() && mechanism.is_normalised);
    sync_threads();
    for (int first = begin; first < end; first += CHUNK) {
        copy_async_wait<0>();
        if (!mechanism.is_identity() || IS_NARROW<Element>) {
            MapQueries map{mechanism, stage};
            map_rows(query_tile(stage), first - offset, sequence.len_q, geometry.dim_qk, map);
        }
        if (is_causal) map_keys(stage, first, sequence.len_kv, geometry.dim_qk, mechanism, parity, lane, warp);
        // This chunk is here, and everybody is done with the one before.
        sync_threads();
        if (first + CHUNK < end) copy(STAGE - stage, first + CHUNK);
        // Chunks before the first query only have keys.
        if (first + CHUNK > offset) {
            write_triangle(stage, parity, is_causal, mechanism.is_normalised, lane, warp);
            // The triangle and the divisors are here.
            sync_threads();
            const f32 down = IS_NARROW<Element> ? state.scale() : 1.0f;
#pragma unroll
            for (int row = 0; row < CHUNK; row += MO * 16) {
                f32 out[MO][2 * MV][4];
                state.multiply(out, row, stage, down, lane);
                if (is_causal) add_triangle(out, row, stage, lane, warp);
                write_outputs(o, out, row, first - offset, sequence.len_q, column + warp * WARP_V, stage, geometry, mechanism, lane);
            }
        }
        if (is_causal) {
            state.add_keys(stage, lane, warp);
            parity ^= 1;
        }
        stage = STAGE - stage;
    }
}
ENTRY(linear_chunks)
