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
    Rings<STAGES> rings{v_base + STAGES * VTile::BYTES};
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
        copy_panels(storage.q, q_map, work.head, q_token + work.query, index, storage.rings.q.acquire(q_place, QTile::BYTES));
        q_place.advance();
        for (i32 tile = 0; tile < visit.tiles; tile++) {
            const i32 token = k_token + visit.key(tile);
            copy_panels(storage.k(place.slot), k_map, head, token, index, storage.rings.k.acquire(place, KTile::BYTES));
            copy_panels(storage.v(place.slot), v_map, head, token, index, storage.rings.v.acquire(place, VTile::BYTES));
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

// What a warpgroup that computes has of its 64 rows from `row` on: see `attend_in_turns`.
struct Rows {
    const Storage &storage;
    const Geometry &geometry;
    const Visit &visit;
    const Work &work;
    i32 head_pack;
    u32 row;
    f32 factor;
    bool is_flat;
    f32 out[1][DIM_V / 8][4], s[1][KEYS / 8][4], rescale[1][2];
    u32 weights[KEYS / 16][4];
    Softmax<1> softmax;

    DEVICE Rows(const Storage &storage, const Geometry &geometry, const Visit &visit, const Work &work, i32 head_pack, u32 row,
                f32 factor, bool is_flat)
        : storage(storage), geometry(geometry), visit(visit), work(work), head_pack(head_pack), row(row), factor(factor),
          is_flat(is_flat) {
        clear(out);
        softmax.start();
    }

    DEVICE void start_scores(u32 slot) { ::start_scores<Element>(s[0], storage.q, row, storage.k(slot)); }
    template <int in_flight> DEVICE void finish_scores(u32) { finish_products<in_flight>(s[0]); }

    DEVICE void weigh(i32 tile) {
        const u32 thread = thread_index();
        const i32 key = visit.key(tile);
        if (VARIANT == CAPPED_VARIANT) soft_cap_all(s, geometry);
        const i32 first = work.query + i32(row >> head_pack), last = work.query + i32((row + 63) >> head_pack);
        if (!all_see(geometry, visit.sequence, first, last, key, key + KEYS))
            mask(s, key, thread % 32, [&](int mine) {
                return keys_of_row(geometry, visit.sequence,
                                   work.query + i32((row + thread / 32 % 4 * 16 + mine) >> head_pack));
            });
        softmax.weigh<SLACK>(s, rescale, factor);
    }

    DEVICE void pack(i32 tile) {
        if (tile > 0 && any_lane(rescale[0][0] != 1.0f || rescale[0][1] != 1.0f)) softmax.scale(out, rescale);
        pack_weights<Element, KEYS>(weights, s[0]);
    }
    DEVICE void start_values(u32 slot) { ::start_values<Element, KEYS, DIM_V>(out[0], weights, storage.v(slot)); }
    DEVICE void finish_values() { finish_products<0>(out[0]); }

    // Where tokens are numbered through all sequences, what lies before the keys are another's values: even with a weight of 0
    // they would matter if they were not finite.
    DEVICE void begin_last(u32 slot) {
        if (!is_flat || visit.key(visit.tiles - 1) >= 0) return;
        clear_rows(storage.v(slot), -visit.key(visit.tiles - 1));
        fence_async_shared();
        sync_named(CLEARED, MATH * 128);
    }
};

// Grid: any number of blocks, for as many shares. Shared memory: `Storage`.
KERNEL(THREADS, 1)
flash3(const GRID_CONSTANT TensorMap q_map, const GRID_CONSTANT TensorMap k_map, const GRID_CONSTANT TensorMap v_map,
       Global<u16> o, Global<f32> lse, Global<const f32> sinks, Global<const Sequence> sequences, Geometry geometry,
       Global<const Work> works, Global<const i32> starts, i32 pack, i32 is_flat) {
    const Storage storage;
    // The shuffle tells the compiler that all lanes have the same, so that addresses of tiles are computed once a warp.
    const u32 thread = thread_index(), warpgroup = u32(shuffle(i32(thread / 128), 0));
    if (thread == 0) storage.rings.init(4 * MATH);
    sync_threads();
    const Share share(starts);
    if (warpgroup == 0) {
        give_back_registers<COPY_REGISTERS>();
        if (thread == 0)
            copy_works(storage, q_map, k_map, v_map, sequences, geometry, works, share, pack, is_flat);
        return;
    }
    take_registers<MATH_REGISTERS>();

    const u32 number = warpgroup - 1, row = number * 64;
    const f32 factor = exponent_scale(geometry, VARIANT != PLAIN_VARIANT);
    const Turns turns(FIRST_TURN, number, MATH);
    RingPlaces<STAGES> places;
    for (i32 index = share.first; index < share.end; index++) {
        const Work work = load_struct(works, index);
        const Visit visit(geometry, sequences, work, pack);
        Rows rows(storage, geometry, visit, work, pack, row, factor, is_flat != 0);
        if (visit.tiles > 0) attend_in_turns(storage.rings, places, turns, visit.tiles, rows);
        rows.softmax.finish();
        // The sequence is read again, which leaves registers to the loop.
        write_output<Element, DIM_V>(
            o, lse, rows.out[0], geometry, sequence_at(geometry, sequences, i32(opaque(u32(work.sequence)))), work, pack, row,
            [&](int half, i32 head) { return rows.softmax.inverse(0, half, factor, sinks, head); },
            [&](int half) { return rows.softmax.log_sum_exp(0, half, factor); });
    }
}
ENTRY(flash3)
