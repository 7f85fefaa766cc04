// FlashAttention-3, backward (Shah et al. 2024, appendix B; the gradients are FlashAttention-2's), for sm_90a: dK, dV and the sums
// of dQ. What is computed, and the kernels before and after this one, are in `flash_bwd.cu`.
//
// A block holds KEYS keys and values of one KV head, and 64 of them in each of two warpgroups, with dK and dV in registers. A
// third warpgroup copies: Q and dO of ROWS queries by tensor maps, and the rows' sums, into rings of SLOTS slots, over all query
// heads of the group. Scores are transposed, S^T = K Q^T: P^T and dS^T are the left sides of dV and dK as they lie in registers,
// and only dS^T goes through shared memory, where both warpgroups meet once a tile: each computes one half of dQ from all of it.
// It has two slots, so that the next may be written while products still read one.
//
// Within a warpgroup dP^T runs beside the exponentials and dV beside dS^T; while one adds to dQ or waits for scores, products of the
// other run. To begin the next scores before dQ is complete would take more registers than there are (see TUNING.md). Rows behind the end of a sequence, where a tile has what comes after it in memory, are cleared once they are here.
//
// Tiles (ROWS x KEYS): d64 128 x 128, d128 64 x 128. A block has a multiprocessor to itself: 384 threads, of which those that
// compute take over registers from those that copy.
// Floor on an H200, a pair at d128: 5 products of 256 FLOPs at 790 TFLOP/s are 1.62 ps, an exponential at 16 a cycle and
// multiprocessor 0.27 ps, the sums of dQ 4 bytes: at the floor, 2.5 TB/s through the second-level cache, which may rule. From
// shared memory a pair of tiles reads, at d128, 48 KB of left sides and 192 KB of right sides: 1920 of the 2560 cycles that its
// products take. At d64 products take 0.81 ps, a third of it exponentials.
//
// Defines: ELEMENT (Bf16, F16), DIM_QK, DIM_V, ROWS, KEYS, SLOTS. There is no variant with a softcap, which would spill registers.
#include "flash_bwd.cuh"
#include "hopper.cuh"

using Element = ELEMENT;

constexpr int MATH = KEYS / 64, THREADS = 128 * (MATH + 1), STAGES = SLOTS;
// Registers of the warpgroup that copies and of those that compute; together no more than 168 each, which the launch has.
constexpr int COPY_REGISTERS = ROWS == 128 ? 24 : 40, MATH_REGISTERS = ROWS == 128 ? 240 : 232;
// Named barriers of the warpgroups that compute: dS^T is there; rows were cleared.
constexpr u32 EXCHANGED = 1, CLEARED = 2;
static_assert(MATH == 2, "two warpgroups share dQ");
static_assert(ROWS * DIM_QK == 2 * 64 * 64, "each of them has 64 rows and 64 columns of it");

using KTile = Tile<KEYS, DIM_QK>;
using VTile = Tile<KEYS, DIM_V>;
using QTile = Tile<ROWS, DIM_QK>;
using GTile = Tile<ROWS, DIM_V>; // dO
using STile = Tile<KEYS, ROWS>;  // dS^T
constexpr u32 SUMS_BYTES = ROWS * sizeof(RowSums);

// Shared memory: K, V, the slots of Q, dO, dS^T and the rows' sums, barriers. All threads make this alike.
struct Storage {
    KTile k{shared_memory()};
    VTile v{k.base + KTile::BYTES};
    u32 q_base = v.base + VTile::BYTES, g_base = q_base + STAGES * QTile::BYTES, s_base = g_base + STAGES * GTile::BYTES;
    u32 sums_base = s_base + 2 * STile::BYTES;
    Ring<1> key_ring{sums_base + STAGES * SUMS_BYTES};
    Ring<STAGES> q_ring{key_ring.base + Ring<1>::BYTES}, g_ring{q_ring.base + Ring<STAGES>::BYTES};
    Ring<STAGES> sums_ring{g_ring.base + Ring<STAGES>::BYTES};
    DEVICE QTile q(u32 slot) const { return QTile{q_base + slot * QTile::BYTES}; }
    DEVICE GTile g(u32 slot) const { return GTile{g_base + slot * GTile::BYTES}; }
    DEVICE STile s(u32 slot) const { return STile{s_base + slot * STile::BYTES}; }
    DEVICE u32 sums(u32 slot) const { return sums_base + slot * SUMS_BYTES; }
};

// The keys of a block, from its number, and the queries that see any of them: all, in whole tiles.
struct KeyVisit {
    Sequence sequence;
    i32 number, head, first, group, first_query, tiles;
    DEVICE KeyVisit(const Geometry &geometry, Global<const Sequence> sequences) {
        const i32 block = block_index(), blocks = ceil_div(geometry.len_kv, KEYS);
        first = block % blocks * KEYS, head = block / blocks % geometry.heads_kv, number = block / blocks / geometry.heads_kv;
        sequence = sequence_at(geometry, sequences, number);
        group = geometry.heads_q / geometry.heads_kv;
        const i32 last = min_i32(first + KEYS, sequence.len_kv) - 1;
        first_query = queries_of_key(geometry, sequence, first).first / ROWS * ROWS;
        tiles = max_i32(ceil_div(queries_of_key(geometry, sequence, last).end - first_query, ROWS), 0);
    }
};

// One thread copies keys, values, and tiles of Q and dO.
DEVICE void copy_tiles(const Storage &storage, const TensorMap &q_map, const TensorMap &k_map, const TensorMap &v_map,
                       const TensorMap &g_map, const KeyVisit &visit, const Geometry &geometry, i32 is_flat) {
    const i32 index = is_flat ? 0 : visit.number;
    // In chunks of 8 elements, which rows consist of, 32 bits are enough: a division of 64 takes more registers than there are here.
    const i32 q_token = is_flat ? u32(visit.sequence.q / 8) / u32(geometry.q.token / 8) : 0;
    const i32 k_token = is_flat ? u32(visit.sequence.k / 8) / u32(geometry.k.token / 8) : 0;
    RingPlace<1> once;
    const u32 barrier = storage.key_ring.acquire(once, KTile::BYTES + VTile::BYTES);
    copy_panels(storage.k, k_map, visit.head, k_token + visit.first, index, barrier);
    copy_panels(storage.v, v_map, visit.head, k_token + visit.first, index, barrier);
    RingPlace<STAGES> place;
    for (i32 head = visit.head * visit.group; head < (visit.head + 1) * visit.group; head++)
#pragma unroll 1
        for (i32 tile = 0; tile < visit.tiles; tile++) {
            const i32 token = q_token + visit.first_query + tile * ROWS;
            copy_panels(storage.q(place.slot), q_map, head, token, index, storage.q_ring.acquire(place, QTile::BYTES));
            copy_panels(storage.g(place.slot), g_map, head, token, index, storage.g_ring.acquire(place, GTile::BYTES));
            place.advance();
        }
}

// One warp copies the rows' sums; rows that do not exist have no weight.
DEVICE void copy_sums(const Storage &storage, Global<const f32> row_sums, const KeyVisit &visit, const Geometry &geometry) {
    const i32 end = visit.first_query + visit.tiles * ROWS;
    i32 row = first_row(geometry, visit.number, visit.head * visit.group);
    RingPlace<STAGES> place;
    for (i32 head = 0; head < visit.group; head++, row += padded_rows(geometry))
#pragma unroll 1
        for (i32 query = visit.first_query; query < end; query += ROWS) {
            mbarrier_wait(storage.sums_ring.empty(place.slot), place.parity ^ 1);
#pragma unroll 1
            for (u32 pair = thread_index() % 32; pair < ROWS / 2; pair += 32) {
                const i32 mine = query + i32(pair * 2);
                const u32 none = f32_to_bits(-minus_infinity());
                Vec4 two = {{none, 0, none, 0}};
                if (mine < visit.sequence.len_q) two = load_vec4(row_sums, i64(row + mine) * 2);
                store_shared_vec4(storage.sums(place.slot) + pair * 16, two);
            }
            sync_warp();
            if (thread_index() % 32 == 0) mbarrier_arrive(storage.sums_ring.full(place.slot));
            place.advance();
        }
}

// Clears the rows of a tile from `count` on, with the threads that compute.
template <int TILE_ROWS, int DIM> DEVICE void clear_rows(Tile<TILE_ROWS, DIM> tile, i32 count) {
    constexpr int CHUNKS = DIM / 8;
    for (i32 item = i32(thread_index()) - 128; item < (TILE_ROWS - count) * CHUNKS; item += MATH * 128)
        store_shared_vec4(tile.chunk(count + item / CHUNKS, item % CHUNKS), Vec4{});
}

// Ends the clearing: products of both warpgroups may read.
DEVICE void finish_clearing() {
    fence_async_shared();
    sync_named(CLEARED, MATH * 128);
}

// P^T from S^T, for columns whose sums begin at this shared address. What products accumulate is only read: were it written here,
// the assembler would let no product run meanwhile.
DEVICE void weigh_scores(f32 (&p)[1][ROWS / 8][4], const f32 (&s)[ROWS / 8][4], u32 sums, f32 factor) {
#pragma unroll
    for (int n = 0; n < ROWS / 8; n++) {
        const Vec4 two = load_shared_vec4(sums + n * 8 * sizeof(RowSums));
#pragma unroll
        for (int i = 0; i < 4; i++)
            p[0][n][i] = exp2_fast(fused_multiply_add(s[n][i], factor, -bits_to_f32(two.word[i % 2 * 2])));
    }
}

// dS^T in the place of P^T.
DEVICE void weigh_gradients(f32 (&p)[1][ROWS / 8][4], const f32 (&dp)[ROWS / 8][4], u32 sums) {
#pragma unroll
    for (int n = 0; n < ROWS / 8; n++) {
        const Vec4 two = load_shared_vec4(sums + n * 8 * sizeof(RowSums));
#pragma unroll
        for (int i = 0; i < 4; i++) p[0][n][i] *= dp[n][i] - bits_to_f32(two.word[i % 2 * 2 + 1]);
    }
}

// Starts dQ = dS K, or the 64 x 64 of it that a warpgroup has: half of the rows where they are two panels, else of the columns.
DEVICE void start_queries(f32 (&dq)[8][4], STile ds, KTile k, u32 number) {
    const u32 left = ds.base + (ROWS == 128 ? number * STile::PANEL_BYTES : 0);
    const u32 right = k.base + (ROWS == 128 ? 0 : number * KTile::PANEL_BYTES);
    // The products before, which nothing has touched registers since, are behind a fence.
    pin(dq);
#pragma unroll
    for (int step = 0; step < KEYS / 16; step++)
        Element::template multiply_tiles<64, true, true>(dq, matrix_descriptor(left + step * 16 * 128, STile::PANEL_BYTES),
                                                         matrix_descriptor(right + step * 16 * 128, KTile::PANEL_BYTES), step > 0);
    commit_products();
}

template <bool ADDS_DQ>
DEVICE void gradients_of_keys(const TensorMap &q_map, const TensorMap &k_map, const TensorMap &v_map, const TensorMap &g_map,
                              Global<const f32> row_sums, Global<u16> dk, Global<u16> dv, Global<f32> dq_sums,
                              Global<const Sequence> sequences, const Geometry &geometry, i32 is_flat) {
    const Storage storage;
    // The shuffle tells the compiler that all lanes have the same, so that addresses of tiles are computed once a warp.
    const u32 thread = thread_index(), warpgroup = u32(shuffle(i32(thread / 128), 0));
    if (thread == 0) {
        storage.key_ring.init(4 * MATH), storage.q_ring.init(4 * MATH), storage.g_ring.init(4 * MATH);
        storage.sums_ring.init(4 * MATH);
        fence_mbarrier_init();
    }
    sync_threads();
    const KeyVisit visit(geometry, sequences);
    if (visit.first >= visit.sequence.len_kv) return;
    const i32 turns = visit.tiles * visit.group;
    if (warpgroup == 0) {
        give_back_registers<COPY_REGISTERS>();
        if (turns > 0 && thread == 0) copy_tiles(storage, q_map, k_map, v_map, g_map, visit, geometry, is_flat);
        if (turns > 0 && thread / 32 == 1) copy_sums(storage, row_sums, visit, geometry);
        return;
    }
    take_registers<MATH_REGISTERS>();

    const u32 number = warpgroup - 1, key_row = number * 64, lane = thread % 32, warp_row = thread / 32 % 4 * 16;
    f32 dk_sum[DIM_QK / 8][4], dv_sum[DIM_V / 8][4];
#pragma unroll
    for (int n = 0; n < DIM_QK / 8; n++) dk_sum[n][0] = dk_sum[n][1] = dk_sum[n][2] = dk_sum[n][3] = 0.0f;
#pragma unroll
    for (int n = 0; n < DIM_V / 8; n++) dv_sum[n][0] = dv_sum[n][1] = dv_sum[n][2] = dv_sum[n][3] = 0.0f;

    if (turns > 0) {
        auto release = [&](u32 barrier) {
            if (lane == 0) mbarrier_arrive(barrier);
        };
        const i32 len_q = visit.sequence.len_q, count = visit.sequence.len_kv - visit.first;
        f32 s[1][ROWS / 8][4], dp[1][ROWS / 8][4];
        RingPlace<STAGES> place;
        i32 query = visit.first_query;
        i32 row = i32(first_row(geometry, visit.number, visit.head * visit.group));

        mbarrier_wait(storage.key_ring.full(0), 0);
        if (count < KEYS) {
            clear_rows(storage.k, count);
            finish_clearing();
        }
        // S^T of a tile, once Q is there.
        const auto begin = [&](RingPlace<STAGES> place, i32 query) {
            mbarrier_wait(storage.q_ring.full(place.slot), place.parity);
            if (query + ROWS > len_q) {
                clear_rows(storage.q(place.slot), len_q - query);
                finish_clearing();
            }
            start_scores<Element>(s[0], storage.k, key_row, storage.q(place.slot));
        };

        for (i32 turn = 0; turn < turns; turn++) {
            const u32 slot = place.slot;
            begin(place, query);
            mbarrier_wait(storage.g_ring.full(slot), place.parity);
            if (query + ROWS > len_q) {
                clear_rows(storage.g(slot), len_q - query);
                finish_clearing();
            }
            start_scores<Element>(dp[0], storage.v, key_row, storage.g(slot));
            mbarrier_wait(storage.sums_ring.full(slot), place.parity);
            const u32 sums = storage.sums(slot) + lane % 4 * 2 * sizeof(RowSums);
            const bool is_edge =
                !all_see(geometry, visit.sequence, query, min_i32(query + ROWS, len_q) - 1, visit.first, visit.first + KEYS);
            const auto seen = [&](int mine) {
                return queries_of_key(geometry, visit.sequence, visit.first + key_row + warp_row + mine);
            };
            f32 p[1][ROWS / 8][4];
            finish_products<1>(s[0]);
            weigh_scores(p, s[0], sums, geometry.scale * LOG2_E);
            if (is_edge) mask(p, query, lane, seen, 0.0f);
            u32 left[ROWS / 16][4];
            pack_weights<Element, ROWS>(left, p[0]);
            start_values<Element, ROWS, DIM_V>(dv_sum, left, storage.g(slot));
            finish_products<1>(dp[0]);
            weigh_gradients(p, dp[0], sums);
            if (is_edge) mask(p, query, lane, seen, 0.0f);
            sync_warp();
            release(storage.sums_ring.empty(slot));

            const STile ds = storage.s(turn % 2);
            u32 right[ROWS / 16][4];
            pack_weights<Element, ROWS>(right, p[0]);
            f32 dq[8][4];
            if constexpr (ADDS_DQ) {
#pragma unroll
                for (int half = 0; half < 2; half++)
#pragma unroll
                    for (int n = 0; n < ROWS / 8; n++)
                        store_shared(ds.chunk(key_row + warp_row + half * 8 + lane / 4, n) + lane % 4 * 4,
                                     right[n / 2][n % 2 * 2 + half]);
                fence_async_shared();
                sync_named(EXCHANGED, MATH * 128);
            }
            start_values<Element, ROWS, DIM_QK>(dk_sum, right, storage.q(slot));
            if constexpr (ADDS_DQ) start_queries(dq, ds, storage.k, number);

            RingPlace<STAGES> next = place;
            next.advance();
            i32 next_query = query + ROWS, next_row = row;
            if (next_query >= visit.first_query + visit.tiles * ROWS)
                next_query = visit.first_query, next_row += padded_rows(geometry);
            wait_products<0>();
            release(storage.g_ring.empty(slot));
            release(storage.q_ring.empty(slot));
            if constexpr (ADDS_DQ) {
                pin(dq);
                const i32 mine = query + (ROWS == 128 ? number * 64 : 0) + warp_row;
                const i64 at = i64(u32(row + mine) / 16) * (DIM_QK / 8) + (ROWS == 128 ? 0 : number * 8);
                if (mine < len_q)
#pragma unroll
                    for (int n = 0; n < 8; n++) add_fragment(dq_sums, at + n, lane, dq[n]);
            }
            place = next, query = next_query, row = next_row;
        }
        pin(dk_sum);
        pin(dv_sum);
    }

    i64 dk_row[2], dv_row[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const i32 key = visit.first + key_row + warp_row + half * 8 + lane / 4;
        const bool exists = key < visit.sequence.len_kv;
        dk_row[half] = exists ? visit.sequence.k + visit.head * geometry.k.head + key * geometry.k.token : -1;
        dv_row[half] = exists ? visit.sequence.v + visit.head * geometry.v.head + key * geometry.v.token : -1;
    }
    const f32 scale[2] = {geometry.scale, geometry.scale}, one[2] = {1.0f, 1.0f};
    write_fragments<Element, DIM_QK>(dk, dk_sum, scale, dk_row, geometry.dim_qk);
    write_fragments<Element, DIM_V>(dv, dv_sum, one, dv_row, geometry.dim_v);
}

// Grid: key tiles * KV heads * batch, tiles fastest. Shared memory: `Storage`.
KERNEL(THREADS, 1)
flash3_bwd_keys(const GRID_CONSTANT TensorMap q_map, const GRID_CONSTANT TensorMap k_map, const GRID_CONSTANT TensorMap v_map,
                const GRID_CONSTANT TensorMap g_map, Global<const f32> row_sums, Global<u16> dk, Global<u16> dv,
                Global<f32> dq_sums, Global<const Sequence> sequences, Geometry geometry, i32 is_flat) {
    gradients_of_keys<true>(q_map, k_map, v_map, g_map, row_sums, dk, dv, dq_sums, sequences, geometry, is_flat);
}
ENTRY(flash3_bwd_keys)

// The same grid, and no dQ.
KERNEL(THREADS, 1)
flash3_bwd_keys_only(const GRID_CONSTANT TensorMap q_map, const GRID_CONSTANT TensorMap k_map,
                     const GRID_CONSTANT TensorMap v_map, const GRID_CONSTANT TensorMap g_map, Global<const f32> row_sums,
                     Global<u16> dk, Global<u16> dv, Global<const Sequence> sequences, Geometry geometry, i32 is_flat) {
    gradients_of_keys<false>(q_map, k_map, v_map, g_map, row_sums, dk, dv, Global<f32>{}, sequences, geometry, is_flat);
}
ENTRY(flash3_bwd_keys_only)
