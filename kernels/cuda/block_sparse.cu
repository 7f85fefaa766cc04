// Softmax attention over lists of keys (Child et al. 2019; Beltagy et al. 2020; Zaheer et al. 2020), for sm_80 and later.
//
// The plan takes every pattern apart into pieces of work: a tile of queries that are `step` apart, and the runs of keys that at
// least one of them sees. A run is keys at a fixed distance, or a gathered list; only keys that somebody sees are in one, those
// that all queries of the tile see come first and need no mask, and for KEYS of the others there is a mask of bits, equal ones
// stored once. So a dilated window is `dilation` windows over every dilation-th token, a column set is gathered instead of
// masked, global tokens join the window's keys, and global rows are pieces of their own.
//
// - A block computes one piece; pieces with most keys come first, because they would be the tail of the launch. Those
//   that are longer than a multiprocessor's share are cut into several: each leaves its sums in memory, and a second launch,
//   whose pieces begin from such sums, merges them (flash-decoding). The strided pattern is such a pair of launches too: rows
//   a stride apart share their columns, neighbouring rows their band.
// - Heads of a group that see alike are packed into the rows of a tile: 128 rows are 128 queries of one head, 64 of two or
//   32 of four. Fewer queries see fewer keys in common that only some of them need; the plan counts and takes the cheapest.
// - K and V have two stages each and arrive one tile ahead; a barrier a tile.
//
// Tiles (ROWS x KEYS, warps): 128 or 64 rows; d64, d96 x 64, 4 or 2; d128 x 32, 4 or 2; wider x 32, 8 or 4.
// Floor, d128: 4 * 128 FLOPs a pair of a visited tile over the rate of mma.sync, expected to be 60 % of wgmma's 790 TFLOP/s:
// 1.1 ps a pair, which rules. The exponentials, 16 a cycle and multiprocessor or 3.7e12/s, take 0.27 ps (at d64 half of
// the products' time). A tile of R rows reads 4 * 128 / R bytes of K and V a pair from the level-2 cache, whose 5.5 TB/s are
// 0.7 ps at 128 rows and 1.5 ps at 64: rows of 64 are bound by it, which is why the plan counts them a quarter dearer.
//
// Defines: ELEMENT (Bf16, F16), DIM_QK, DIM_V, ROWS, KEYS, WARPS.
#include "attend.cuh"

using Element = ELEMENT;
constexpr int THREADS = WARPS * 32, M = ROWS / (16 * WARPS);
using QTile = Tile<ROWS, DIM_QK>;
using KTile = Tile<KEYS, DIM_QK>;
using VTile = Tile<KEYS, DIM_V>;
using OTile = Tile<ROWS, DIM_V>;
// The rows of a tile of keys that a thread copies are COPY_STRIDE apart.
constexpr int PANEL = KTile::PANEL, COPY_STRIDE = THREADS / PANEL, COPIES = KEYS / COPY_STRIDE;
static_assert(PANEL == VTile::PANEL && KEYS % COPY_STRIDE == 0, "K and V are copied alike");

// `count` keys: key, key + step, ... or, where the step is 0, those of the list at `key`. Each tile of a run has the mask, -1
// where every query sees every key of it; a run with a mask is one tile.
struct alignas(16) Run {
    i32 key, step, count, mask;
};

// Queries first, first + step, ... (`count` of them) of `head` and, with several heads in a tile, the ones after it, and runs
// begin .. end - 1. `pieces` says where their sums come from and go to: 0 from nothing to the output; -1 to memory; else
// the sums of this many pieces are merged before the first run. The sums of row r of packed head h of piece p are at
// slot + r * slot_step + h * slot_head + p * slot_piece.
struct Work {
    i32 number, head, first, step, count, begin, end, pieces, slot, slot_step, slot_head, slot_piece;
};

// Partial sums: of slot s, the row of O before it is divided, its columns in the order of `exchange_sums`; its
// largest score; its sum of weights.
struct Sums {
    Global<f32> o, largest, sum;
    // What an earlier launch wrote.
    DEVICE Global<const f32> earlier_o() const { return Global<const f32>{o.pointer}; }
};

// Which rows of a piece a warp has: all of one head.
struct WarpRows {
    int packed, local;
    DEVICE WarpRows(u32 warp_row, int rows_a_head) : packed(warp_row / rows_a_head), local(warp_row % rows_a_head) {}
};

// The run one tile further on; false after the last.
DEVICE bool advance(Run &run, i32 &at, i32 end, Global<const Run> runs) {
    if (run.count > KEYS) {
        run.key += KEYS * max_i32(run.step, 1);
        run.count -= KEYS;
        return true;
    }
    if (++at >= end) return false;
    run = load_struct(runs, at);
    return true;
}

// The keys of this thread's rows of a tile, -1 where there is none.
DEVICE void find_keys(i32 (&keys)[COPIES], const Run &run, Global<const i32> gathered, u32 thread) {
#pragma unroll
    for (int i = 0; i < COPIES; i++) {
        const int column = thread / PANEL + i * COPY_STRIDE;
        keys[i] = -1;
        if (column < run.count) keys[i] = run.step ? run.key + column * run.step : load(gathered, run.key + column);
    }
}

template <class KvTile>
DEVICE void copy_keys(const KvTile &tile, Global<const u16> from, const i32 (&keys)[COPIES], u32 thread, int dim, i64 token) {
    thread = opaque(thread);
    const u32 row = thread / PANEL, column = thread % PANEL;
#pragma unroll
    for (int i = 0; i < COPIES; i++) {
        const i64 at = keys[i] * token + column * 8;
        const u32 to = COPY_STRIDE % 8 == 0 ? tile.chunk(row, column) + i * COPY_STRIDE * KvTile::ROW_BYTES
                                            : tile.chunk(row + i * COPY_STRIDE, column);
#pragma unroll
        for (int panel = 0; panel < KvTile::BYTES / KvTile::PANEL_BYTES; panel++) {
            const bool is_valid = keys[i] >= 0 && int(panel * PANEL + column) * 8 < dim;
            copy_async_16(to + panel * KvTile::PANEL_BYTES, from, at + panel * PANEL * 8, is_valid);
        }
    }
}

// The queries of a piece; rows past its last one become zeros.
DEVICE void copy_queries(const QTile &tile, Global<const u16> q, const Work &work, const Geometry &geometry, int rows_a_head,
                         u32 thread) {
    const u32 column = thread % PANEL;
#pragma unroll 4
    for (int row = thread / PANEL; row < ROWS; row += COPY_STRIDE) {
        const int packed = row / rows_a_head, local = row % rows_a_head;
        const i64 at = packed * geometry.q.head + i64(work.first + local * work.step) * geometry.q.token + column * 8;
        for (int panel = 0; panel < DIM_QK / 8 / PANEL; panel++) {
            const bool is_valid = local < work.count && int(panel * PANEL + column) * 8 < geometry.dim_qk;
            copy_async_16(tile.chunk(row, panel * PANEL + column), q, at + panel * PANEL * 8, is_valid);
        }
    }
}

// Hides what a mask of ROWS x KEYS bits (rows_a_head, repeated) hides; `bits` are those of this thread's rows.
DEVICE void load_mask(u32 (&bits)[M][2][KEYS / 32], Global<const u32> masks, i32 mask, int local, int rows_a_head, u32 lane) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int word = 0; word < KEYS / 32; word++)
                bits[m][half][word] = load(masks, (i64(mask) * rows_a_head + local + m * 16 + half * 8 + lane / 4) * (KEYS / 32) + word);
}
DEVICE void hide(f32 (&s)[M][KEYS / 8][4], const u32 (&bits)[M][2][KEYS / 32], u32 lane) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int word = 0; word < KEYS / 32; word++) {
                const u32 own = bits[m][half][word] >> (lane % 4 * 2);
#pragma unroll
                for (int n = 0; n < 4; n++)
#pragma unroll
                    for (int i = 0; i < 2; i++)
                        if (!(own >> (n * 8 + i) & 1)) s[m][word * 4 + n][2 * half + i] = minus_infinity();
            }
}

// Calls then(m, half, slot) for each row of this thread that exists.
template <class Then> DEVICE void each_slot(const Work &work, const WarpRows &rows, u32 lane, Then then) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = rows.local + m * 16 + half * 8 + lane / 4;
            if (row < work.count) then(m, half, work.slot + i64(row) * work.slot_step + rows.packed * work.slot_head);
        }
}
// Where in a row of sums a thread keeps four columns: those of fragments 2 d and 2 d + 1, so that the four threads of a row
// write 64 bytes on end.
DEVICE i64 sums_at(i64 slot, int d, u32 lane) { return slot * DIM_V + d * 16 + lane % 4 * 4; }

DEVICE void store_sums(const Sums &sums, const Work &work, const WarpRows &rows, u32 lane, const f32 (&out)[M][DIM_V / 8][4],
                       const Softmax<M> &softmax) {
    each_slot(work, rows, lane, [&](int m, int half, i64 slot) {
#pragma unroll
        for (int d = 0; d < DIM_V / 16; d++) {
            const f32 *low = &out[m][2 * d][2 * half], *high = &out[m][2 * d + 1][2 * half];
            store_vec4(sums.o, sums_at(slot, d, lane), Vec4{{f32_to_bits(low[0]), f32_to_bits(low[1]), f32_to_bits(high[0]), f32_to_bits(high[1])}});
        }
        if (lane % 4 == 0) {
            store(sums.largest, slot, softmax.largest[m][half]);
            store(sums.sum, slot, softmax.sum[m][half]);
        }
    });
}

// Adds the sums of a piece, relative to the larger of both largest scores. The sum of weights is one thread's of the four.
DEVICE void merge_sums(const Sums &sums, const Work &work, const WarpRows &rows, int piece, u32 lane, f32 (&out)[M][DIM_V / 8][4],
                       Softmax<M> &softmax, f32 factor) {
    each_slot(work, rows, lane, [&](int m, int half, i64 slot) {
        slot += i64(piece) * work.slot_piece;
        const f32 theirs = load(sums.largest, slot);
        if (theirs == minus_infinity()) return;
        const f32 ours = softmax.largest[m][half], top = max_f32(ours, theirs);
        const f32 keep = exp2_fast((ours - top) * factor), take = exp2_fast((theirs - top) * factor);
        softmax.largest[m][half] = top;
        softmax.sum[m][half] = softmax.sum[m][half] * keep + (lane % 4 == 0 ? load(sums.sum, slot) * take : 0.0f);
#pragma unroll
        for (int d = 0; d < DIM_V / 16; d++) {
            const Vec4 part = load_vec4(sums.earlier_o(), sums_at(slot, d, lane));
#pragma unroll
            for (int i = 0; i < 4; i++) {
                f32 &x = out[m][2 * d + i / 2][2 * half + i % 2];
                x = fused_multiply_add(bits_to_f32(part.word[i]), take, x * keep);
            }
        }
    });
}

// Grid: pieces of work. Shared memory: Q or O, two stages of K and V.
KERNEL(THREADS, 1)
block_sparse(Global<const u16> q, Global<const u16> k, Global<const u16> v, Global<u16> o, Global<f32> lse,
             Global<const Sequence> sequences, Geometry geometry, Global<const Work> pieces, Global<const Run> runs,
             Global<const i32> gathered, Global<const u32> masks, i32 rows_a_head, Global<f32> sums_o,
             Global<f32> sums_largest, Global<f32> sums_sum) {
    constexpr int Q_BYTES = QTile::BYTES > OTile::BYTES ? QTile::BYTES : OTile::BYTES, STAGE = KTile::BYTES + VTile::BYTES;
    f32 out[M][DIM_V / 8][4];
    clear(out);
    Softmax<M> softmax;
    softmax.start();
    const f32 factor = exponent_scale(geometry, geometry.softcap != 0.0f);
    const Sums sums{sums_o, sums_largest, sums_sum};
    {
        const Work work = load_struct(pieces, block_index());
        const u32 thread = thread_index(), lane = thread % 32, warp_row = thread / 32 * (16 * M);
        const WarpRows rows(warp_row, rows_a_head);
        const QTile q_tile{shared_memory()};
        const u32 first_stage = shared_memory() + Q_BYTES;
        const u32 q_at = query_place(q_tile, warp_row, lane);
        const u32 k_at = key_place(KTile{first_stage}, 0, lane), v_at = value_place(VTile{first_stage + KTile::BYTES}, 0, lane);
        {
            const Sequence sequence = sequence_at(geometry, sequences, work.number);
            const int head_kv = work.head / (geometry.heads_q / geometry.heads_kv);
            q = q + (sequence.q + work.head * geometry.q.head);
            k = k + (sequence.k + head_kv * geometry.k.head);
            v = v + (sequence.v + head_kv * geometry.v.head);
        }
        i32 at = work.begin, keys[COPIES], mask = -1;
        bool has_tile = at < work.end, has_next = has_tile;
        // The tile of keys to be copied next.
        Run next = {};
        if (has_tile) {
            next = load_struct(runs, at);
            copy_queries(q_tile, q, work, geometry, rows_a_head, thread);
            find_keys(keys, next, gathered, thread);
            copy_keys(KTile{first_stage}, k, keys, thread, geometry.dim_qk, geometry.k.token);
            copy_keys(VTile{first_stage + KTile::BYTES}, v, keys, thread, geometry.dim_v, geometry.v.token);
            copy_async_commit();
            mask = next.mask;
            has_next = advance(next, at, work.end, runs);
        }
        for (int piece = 0; piece < work.pieces; piece++) merge_sums(sums, work, rows, piece, lane, out, softmax, factor);

        // From the first stage to the one in use.
        u32 stage = 0;
        while (has_tile) {
            // This tile is here, and everybody is done with the one before.
            copy_async_wait<0>();
            sync_threads();
            // What is read from lists arrives during the products.
            if (has_next) find_keys(keys, next, gathered, thread);
            u32 bits[M][2][KEYS / 32];
            if (mask >= 0) load_mask(bits, masks, mask, rows.local, rows_a_head, lane);

            f32 s[M][KEYS / 8][4];
            scores<Element, M, KEYS, QTile, KTile, DIM_QK>(s, q_at, k_at + stage);

            has_tile = has_next;
            const i32 mask_of_next = next.mask;
            if (has_next) {
                const u32 other = first_stage + (STAGE - stage);
                copy_keys(KTile{other}, k, keys, thread, geometry.dim_qk, geometry.k.token);
                copy_keys(VTile{other + KTile::BYTES}, v, keys, thread, geometry.dim_v, geometry.v.token);
                copy_async_commit();
                has_next = advance(next, at, work.end, runs);
            }
            if (geometry.softcap != 0.0f) soft_cap_all(s, geometry);
            if (mask >= 0) hide(s, bits, lane);
            softmax.update(s, out, factor);
            accumulate<Element, M, KEYS, DIM_V, VTile>(out, s, v_at + stage);
            mask = mask_of_next;
            stage = STAGE - stage;
        }
    }

    // What is needed from here on is read again, so that it takes no registers from the products.
    const Work work = load_struct(pieces, block_index());
    const u32 lane = thread_index() % 32, warp_row = thread_index() / 32 * (16 * M);
    const WarpRows rows(warp_row, rows_a_head);
    softmax.finish();
    if (work.pieces < 0) return store_sums(sums, work, rows, lane, out, softmax);
    const int head = work.head + rows.packed, first = work.first + rows.local * work.step, count = work.count - rows.local;
    if (lse.exists())
        softmax.write_log_sum_exps(lse + ((i64(work.number) * geometry.heads_q + head) * geometry.len_q + first), count, lane, factor, work.step);
    // A warp's rows of Q are its own where O has as many columns; else another warp may still read what O is written over.
    if (DIM_QK != DIM_V) sync_threads();
    const Sequence sequence = sequence_at(geometry, sequences, work.number);
    write_rows<Element, M, DIM_V>(
        o + (sequence.o + head * geometry.o.head + first * geometry.o.token), out, OTile{shared_memory()}, warp_row, count,
        geometry.dim_v, lane, [&](int m, int half) { return softmax.inverse(m, half); },
        [&](int r) { return r * work.step * geometry.o.token; });
}
ENTRY(block_sparse)
