// FlashAttention-3, forward (Shah et al. 2024, algorithms 1 and 2), for sm_90a.
//
// A block stays for the whole launch and computes one tile of ROWS rows after another, as the host dealt them out: the longest
// first, and tiles of the same keys at the same time, so that those come from the second-level cache. One warpgroup copies
// tiles of Q, K and V by tensor maps into rings of shared memory; MATH = ROWS / 64 warpgroups compute 64 rows each. A warpgroup
// issues the scores of the next keys before the weighted values of these, so that its softmax runs beside the latter; and the
// warpgroups take turns in issuing, so that one computes exponentials while the tensor cores work for another.
//
// Keys are cut into tiles from the last one on that a tile of queries sees: none is visited in vain, and what a first tile has
// too much lies before the keys, never behind them. Only tiles at the edges of the pattern are masked. Heads that share keys are
// packed into a tile where one head's queries do not fill it: row r is query r / 2^pack, head r % 2^pack.
//
// Tiles (ROWS x KEYS): d64, d128 and 192:128 128 x 128, d256 128 x 64; two slots of K and of V; candidates beside them are in
// src/cuda/flash3.rs. A block has a multiprocessor to itself: 384 threads, with 40 registers each where they copy and 232 where
// they compute, or 512 with 32 and 160.
// Floor on an H200, a score: 4 d FLOPs at 790 TFLOP/s are 0.65 ps at d128 and 0.32 ps at d64; an exponential at 16 a cycle and
// multiprocessor is 0.27 ps. With perfect overlap the products rule at d128 (exponentials take 42 % of their time) and at d64
// just so (83 %). Keys and values are read once for ROWS rows: 128 FLOPs a byte of the second-level cache at d128.
//
// Defines: ELEMENT (Bf16, F16), DIM_QK, DIM_V, ROWS, KEYS, SLOTS (of K, and of V), VARIANT (0, 1: see geometry.cuh).
#include "hopper.cuh"

using Element = ELEMENT;

constexpr int MATH = ROWS / 64, THREADS = 128 * (MATH + 1), STAGES = SLOTS;
// Registers of the warpgroup that copies and of those that compute; together no more than a multiprocessor has.
constexpr int COPY_REGISTERS = MATH == 2 ? 40 : 32, MATH_REGISTERS = MATH == 2 ? 232 : 160;
static_assert(ROWS == 64 * MATH && (MATH == 2 || MATH == 3), "registers are shared out among two or three warpgroups");
static_assert(KEYS % 16 == 0 && KEYS <= 256 && STAGES >= 2, "weights are whole operands, and the next keys come beside these");
// Weights may grow to 2^SLACK before rows are scaled (FlashAttention-4 has the same): far from the largest f16, and sums are f32.
constexpr int SLACK = 8;
// Named barriers: rows were cleared; whose turn it is to issue.
constexpr u32 CLEARED = 1, FIRST_TURN = 2;
using QTile = Tile<ROWS, DIM_QK>;
using KTile = Tile<KEYS, DIM_QK>;
using VTile = Tile<KEYS, DIM_V>;

// Shared memory: Q, the slots of K, those of V, their barriers. All threads make this alike.
struct Storage {
    QTile q{shared_memory()};
    u32 k_base = q.base + QTile::BYTES, v_base = k_base + STAGES * KTile::BYTES;
    Ring<1> q_ring{v_base + STAGES * VTile::BYTES};
    Ring<STAGES> k_ring{q_ring.base + Ring<1>::BYTES}, v_ring{k_ring.base + Ring<STAGES>::BYTES};
    DEVICE KTile k(u32 slot) const { return KTile{k_base + slot * KTile::BYTES}; }
    DEVICE VTile v(u32 slot) const { return VTile{v_base + slot * VTile::BYTES}; }
};

// What a tile of queries sees.
struct Visit {
    Sequence sequence;
    KeyRange range;
    i32 tiles;
    DEVICE Visit(const Geometry &geometry, Global<const Sequence> sequences, const Work &work, i32 pack) {
        sequence = sequence_at(geometry, sequences, work.sequence);
        range = keys_of_rows(geometry, sequence, work.query, min_i32(work.query + (ROWS >> pack), sequence.len_q) - 1);
        tiles = ceil_div(max_i32(range.end - range.first, 0), KEYS);
    }
    // The first key of a tile, which may lie before all keys.
    DEVICE i32 key(i32 tile) const { return range.end - (tile + 1) * KEYS; }
};

// The warpgroup that copies: one thread of it.
DEVICE void copy_works(const Storage &storage, const TensorMap &q_map, const TensorMap &k_map, const TensorMap &v_map,
                       Global<const Sequence> sequences, const Geometry &geometry, Global<const Work> works, Share share,
                       i32 pack, i32 is_flat) {
    RingPlace<1> q_place;
    RingPlace<STAGES> place;
    const i32 group = geometry.heads_q / geometry.heads_kv;
    for (i32 number = share.first; number < share.end; number++) {
        const Work work = load_struct(works, number);
        const Visit visit(geometry, sequences, work, pack);
        if (visit.tiles == 0) continue;
        // Tokens are numbered within their sequence, or through all of them.
        const i32 index = is_flat ? 0 : work.sequence, head = work.head / group;
        const i32 q_token = is_flat ? i32(visit.sequence.q / geometry.q.token) : 0;
        const i32 k_token = is_flat ? i32(visit.sequence.k / geometry.k.token) : 0;
        copy_panels(storage.q, q_map, work.head, q_token + work.query, index, storage.q_ring.acquire(q_place, QTile::BYTES));
        q_place.advance();
        for (i32 tile = 0; tile < visit.tiles; tile++) {
            const i32 token = k_token + visit.key(tile);
            copy_panels(storage.k(place.slot), k_map, head, token, index, storage.k_ring.acquire(place, KTile::BYTES));
            copy_panels(storage.v(place.slot), v_map, head, token, index, storage.v_ring.acquire(place, VTile::BYTES));
            place.advance();
        }
    }
}

// Clears the first rows of a tile of values, with all threads that compute.
DEVICE void clear_rows(VTile tile, i32 count) {
#pragma unroll 1
    for (i32 item = i32(thread_index()) - 128; item < count * (DIM_V / 8); item += MATH * 128)
        store_shared_vec4(tile.chunk(item / (DIM_V / 8), item % (DIM_V / 8)), Vec4{});
}

// Scores into weights: softcap, mask, softmax of 64 rows of a tile from `row` on, of keys from `key` on.
DEVICE void weigh(f32 (&s)[1][KEYS / 8][4], Softmax<1> &softmax, f32 (&rescale)[1][2], const Geometry &geometry,
                  const Visit &visit, const Work &work, i32 pack, u32 row, i32 key, f32 factor) {
    const u32 thread = thread_index();
    if (VARIANT == CAPPED_VARIANT) soft_cap_all(s, geometry);
    const i32 first = work.query + i32(row >> pack), last = work.query + i32((row + 63) >> pack);
    if (!all_see(geometry, visit.sequence, first, last, key, key + KEYS))
        mask(s, key, thread % 32, [&](int mine) {
            return keys_of_row(geometry, visit.sequence, work.query + i32((row + thread / 32 % 4 * 16 + mine) >> pack));
        });
    softmax.weigh<SLACK>(s, rescale, factor);
}

// Grid: any number of blocks, for as many shares. Shared memory: `Storage`.
KERNEL(THREADS, 1)
flash3(const GRID_CONSTANT TensorMap q_map, const GRID_CONSTANT TensorMap k_map, const GRID_CONSTANT TensorMap v_map,
       Global<u16> o, Global<f32> lse, Global<const f32> sinks, Global<const Sequence> sequences, Geometry geometry,
       Global<const Work> works, Global<const i32> starts, i32 pack, i32 is_flat) {
    const Storage storage;
    // The shuffle tells the compiler that all lanes have the same, so that addresses of tiles are computed once a warp.
    const u32 thread = thread_index(), warpgroup = u32(shuffle(i32(thread / 128), 0));
    if (thread == 0) {
        storage.q_ring.init(4 * MATH), storage.k_ring.init(4 * MATH), storage.v_ring.init(4 * MATH);
        fence_mbarrier_init();
    }
    sync_threads();
    const Share share(starts);
    if (warpgroup == 0) {
        give_back_registers<COPY_REGISTERS>();
        if (thread == 0)
            copy_works(storage, q_map, k_map, v_map, sequences, geometry, works, share, pack, is_flat);
        return;
    }
    take_registers<MATH_REGISTERS>();

    const u32 number = warpgroup - 1, row = number * 64, lane = thread % 32;
    const u32 turn = FIRST_TURN + number, next_turn = FIRST_TURN + (number + 1) % MATH;
    const f32 factor = exponent_scale(geometry, VARIANT != PLAIN_VARIANT);
    auto release = [&](u32 barrier) {
        if (lane == 0) mbarrier_arrive(barrier);
    };
    // The first warpgroup begins: its turn comes from the last.
    if (number == MATH - 1) arrive_named(next_turn, 256);
    RingPlace<1> q_place;
    RingPlace<STAGES> k_place, v_place;

    for (i32 index = share.first; index < share.end; index++) {
        const Work work = load_struct(works, index);
        const Visit visit(geometry, sequences, work, pack);
        f32 out[1][DIM_V / 8][4];
        clear(out);
        Softmax<1> softmax;
        softmax.start();
        if (visit.tiles > 0) {
            f32 s[1][KEYS / 8][4], rescale[1][2];
            u32 weights[KEYS / 16][4];
            mbarrier_wait(storage.q_ring.full(0), q_place.parity);
            mbarrier_wait(storage.k_ring.full(k_place.slot), k_place.parity);
            sync_named(turn, 256);
            start_scores<Element>(s[0], storage.q, row, storage.k(k_place.slot));
            arrive_named(next_turn, 256);
            finish_products<0>(s[0]);
            release(storage.k_ring.empty(k_place.slot));
            k_place.advance();
            weigh(s, softmax, rescale, geometry, visit, work, pack, row, visit.key(0), factor);
            pack_weights<Element, KEYS>(weights, s[0]);

            for (i32 tile = 1; tile < visit.tiles; tile++) {
                mbarrier_wait(storage.k_ring.full(k_place.slot), k_place.parity);
                sync_named(turn, 256);
                start_scores<Element>(s[0], storage.q, row, storage.k(k_place.slot));
                mbarrier_wait(storage.v_ring.full(v_place.slot), v_place.parity);
                start_values<Element, KEYS, DIM_V>(out[0], weights, storage.v(v_place.slot));
                arrive_named(next_turn, 256);
                finish_products<1>(s[0]);
                release(storage.k_ring.empty(k_place.slot));
                k_place.advance();
                weigh(s, softmax, rescale, geometry, visit, work, pack, row, visit.key(tile), factor);
                finish_products<0>(out[0]);
                release(storage.v_ring.empty(v_place.slot));
                v_place.advance();
                if (any_lane(rescale[0][0] != 1.0f || rescale[0][1] != 1.0f)) softmax.scale(out, rescale);
                pack_weights<Element, KEYS>(weights, s[0]);
            }
            release(storage.q_ring.empty(0));
            q_place.advance();
            mbarrier_wait(storage.v_ring.full(v_place.slot), v_place.parity);
            // Where tokens are numbered through all sequences, what lies before the keys are another's values: even with a
            // weight of 0 they would matter if they were not finite.
            if (is_flat && visit.key(visit.tiles - 1) < 0) {
                clear_rows(storage.v(v_place.slot), -visit.key(visit.tiles - 1));
                fence_async_shared();
                sync_named(CLEARED, MATH * 128);
            }
            start_values<Element, KEYS, DIM_V>(out[0], weights, storage.v(v_place.slot));
            finish_products<0>(out[0]);
            release(storage.v_ring.empty(v_place.slot));
            v_place.advance();
        }

        softmax.finish();
        f32 inverse[2];
        i64 place[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const u32 mine = row + thread / 32 % 4 * 16 + half * 8 + lane / 4;
            const i32 query = work.query + i32(mine >> pack), head = work.head + i32(mine & ((1u << pack) - 1));
            const bool exists = query < visit.sequence.len_q;
            inverse[half] = softmax.inverse(0, half, factor, sinks, head);
            place[half] = exists ? visit.sequence.o + head * geometry.o.head + query * geometry.o.token : -1;
            if (lse.exists() && exists && lane % 4 == 0)
                store(lse, (i64(work.sequence) * geometry.heads_q + head) * geometry.len_q + query,
                      softmax.log_sum_exp(0, half, factor));
        }
        write_fragments<Element, DIM_V>(o, out[0], inverse, place, geometry.dim_v);
    }
}
ENTRY(flash3)
