// Multi-head latent attention, absorbed decode (DeepSeek-V2, section 2.1), for sm_90a; mla.cu is that of other devices, and
// prefill is flash3.cu's.
//
// As in mla.cu, the heads of all queries are the rows of one product, and the keys of a sequence are shared out among blocks.
// A block has 64 rows and three warpgroups. One copies: its first warp brings tiles of KEYS latent rows by a tensor map over all
// rows of the cache, in boxes as large as pages allow. The second computes scores, softmax and the left half of O's columns;
// the third computes the right half from weights that the second leaves in shared memory. The scores of the next tile are
// issued before the weighted values of this one, so that the softmax runs beside two warpgroups' products.
//
// Tiles: 64 rows x 64 keys, d 576:512 (smaller ones in the same tile), as many slots of latent rows as fit, two of 64, each in a left part (columns to
// 256) and a right one (the rest), which are given back apart. 225 KiB of shared memory: one block a multiprocessor.
// Floor on an H200, a tile: 64 x 64 x (576 + 512) x 2 = 8.9 MFLOP, 2176 cycles at the full rate of wgmma and 2700 at 790
// TFLOP/s of the device; 74 KB of latent rows, 3960 cycles at 4.3 TB/s; 4096 exponentials, 256 cycles. So up to 64 heads
// times queries the copy rules; from 128 on, where two blocks read the same rows at about the same time and the second-level
// cache serves one of them, the products do.
//
// Defines: ELEMENT (Bf16, F16), KEYS, SLOTS.
#include "hopper.cuh"
#include "partials.cuh"

using Element = ELEMENT;
constexpr int DIM_QK = 576, DIM_V = 512, ROWS = 64, STAGES = SLOTS, THREADS = 384;
constexpr int HALF = DIM_V / 2, LEFT_PANELS = HALF / 64, RIGHT_PANELS = (DIM_QK - HALF) / 64;
constexpr int COPY_REGISTERS = 40, MATH_REGISTERS = 232;
// Weights may grow to 2^SLACK before rows are scaled, as in flash3.cu.
constexpr int SLACK = 8;
// Named barriers: of both warpgroups that compute, and of each of them.
constexpr u32 BOTH = 1, LEFT_GROUP = 2, RIGHT_GROUP = 3;
using QTile = Tile<ROWS, DIM_QK>;
using KTile = Tile<KEYS, DIM_QK>;
using VTile = Tile<KEYS, HALF>;
// Whole panels, whatever the keys: what is behind them nobody reads.
using PTile = Tile<ROWS, 64>;
static_assert(KEYS == 64 || KEYS == 32, "weights of a tile are a panel, or half of one");

// Shared memory: Q, the slots of latent rows, the weights, two numbers a row, barriers. All threads make this alike.
struct Storage {
    QTile q{shared_memory()};
    u32 k_base = q.base + QTile::BYTES;
    PTile p{k_base + STAGES * KTile::BYTES};
    u32 rescale = p.base + PTile::BYTES, inverse = rescale + ROWS * 4;
    Ring<STAGES> left{inverse + ROWS * 4}, right{left.base + Ring<STAGES>::BYTES};
    Ring<1> weights{right.base + Ring<STAGES>::BYTES};
    DEVICE KTile k(u32 slot) const { return KTile{k_base + slot * KTile::BYTES}; }
    // A half of the values: whole panels of the latent rows.
    DEVICE VTile v(u32 slot, u32 half) const { return VTile{k(slot).base + half * LEFT_PANELS * KTile::PANEL_BYTES}; }
};

// The warp that copies: lane l brings every 32nd box of `box_rows` rows, which lie in one page. A box behind the last key becomes
// zeros, as all that is outside of the cache does.
DEVICE void copy_latent_rows(const Storage &storage, const TensorMap &map, const Geometry &geometry, const Sequence &sequence,
                             Global<const i32> page_table, i32 number, KeyRange share, i32 cache_rows, i32 box_rows) {
    const u32 lane = thread_index();
    const i32 first_row = i32(sequence.k / geometry.k.token);
    auto row_of = [&](i32 key) {
        if (key >= share.end) return cache_rows;
        if (geometry.page_size == 0) return first_row + key;
        const i32 page = key / geometry.page_size;
        return load(page_table, i64(number) * geometry.pages_a_sequence + page) * geometry.page_size +
               (key - page * geometry.page_size);
    };
    auto bring = [&](const Ring<STAGES> &ring, RingPlace<STAGES> place, i32 key, int first_panel, int panels) {
        if (lane == 0) ring.acquire(place, panels * KTile::PANEL_BYTES);
        sync_warp();
#pragma unroll 1
        for (int item = lane; item < KEYS / box_rows * panels; item += 32) {
            const int box = item / panels, panel = first_panel + item % panels;
            copy_tile(storage.k(place.slot).base + panel * KTile::PANEL_BYTES + box * box_rows * 128, map, panel * 64,
                      row_of(key + box * box_rows), ring.full(place.slot));
        }
    };
    RingPlace<STAGES> place;
    for (i32 key = share.first; key < share.end; key += KEYS) {
        bring(storage.left, place, key, 0, LEFT_PANELS);
        bring(storage.right, place, key, LEFT_PANELS, RIGHT_PANELS);
        place.advance();
    }
}

// Zeros in the rows of values from `first` on, by a warpgroup, for its products: a weight of 0 would not undo a NaN there.
// Scores read the rows too, and a warp that has its own knows nothing of the others'.
DEVICE void clear_values(VTile v, i32 first, u32 barrier) {
    sync_named(barrier, 128);
    for (int item = thread_index() % 128; item < (KEYS - first) * (HALF / 8); item += 128)
        store_shared_vec4(v.chunk(first + item / (HALF / 8), item % (HALF / 8)), Vec4{});
    fence_async_shared();
    sync_named(barrier, 128);
}

// Grid: items. Shared memory: `Storage`.
KERNEL(THREADS, 1)
mla3(const GRID_CONSTANT TensorMap k_map, Global<const u16> q, Global<u16> o, Global<f32> lse,
     Global<const Sequence> sequences, Global<const WorkItem> items, Geometry geometry, Global<f32> partial_o,
     Global<f32> partial_lse, i32 splits, Global<const i32> page_table, i32 cache_rows, i32 box_rows) {
    const Storage storage;
    const u32 thread = thread_index(), lane = thread % 32, warpgroup = thread / 128;
    const int group = geometry.heads_q;
    const WorkItem item = work_item(geometry, items, block_index(), splits, ROWS);
    const Sequence sequence = sequence_at(geometry, sequences, item.sequence);
    const int row_count = min_i32(sequence.len_q * group - item.first_row, ROWS);
    if (row_count <= 0) return;
    const int first_query = item.first_row / group, last_query = (item.first_row + row_count - 1) / group;
    const KeyRange share = share_of(keys_of_rows(geometry, sequence, first_query, last_query), item.split, item.splits, KEYS);
    if (thread == 0) {
        storage.left.init(4), storage.right.init(4);
        mbarrier_init(storage.weights.full(0), 4), mbarrier_init(storage.weights.empty(0), 4);
        fence_mbarrier_init();
    }
    sync_threads();
    if (warpgroup == 0) {
        give_back_registers<COPY_REGISTERS>();
        if (thread < 32)
            copy_latent_rows(storage, k_map, geometry, sequence, page_table, item.sequence, share, cache_rows, box_rows);
        return;
    }
    take_registers<MATH_REGISTERS>();

    storage.q.copy_rows<256>(q + sequence.q, thread - 128, item.first_row, item.first_row + row_count, geometry.dim_qk,
                             [&](int row) {
                                 PackedRow packed(row, group, 0);
                                 return packed.query * geometry.q.token + packed.head * geometry.q.head;
                             });
    copy_async_commit();
    copy_async_wait<0>();
    fence_async_shared();
    sync_named(BOTH, 256);

    const u32 half_number = warpgroup - 1, warp_row = thread / 32 % 4 * 16;
    const f32 factor = exponent_scale(geometry, false);
    auto release = [&](u32 barrier) {
        if (lane == 0) mbarrier_arrive(barrier);
    };
    // Tiles of keys, and keys of the last one.
    const u32 tiles = ceil_div(max_i32(share.end - share.first, 0), KEYS);
    const i32 last_keys = share.end - share.first - (i32(tiles) - 1) * KEYS;
    f32 out[1][HALF / 8][4], rescale[1][2];
    clear(out);
    f32 inverse[2], log_sum[2];
    // O += P V for this warpgroup's half of the columns, as a group of products.
    auto start_values = [&](u32 tile) {
        const VTile v = storage.v(tile % STAGES, half_number);
        pin(out[0]);
        fence_products();
#pragma unroll
        for (int step = 0; step < KEYS / 16; step++)
            Element::multiply_tiles<HALF, false, true>(out[0], matrix_descriptor(storage.p.base + step * 32, 0),
                                                       matrix_descriptor(v.base + step * 16 * 128, VTile::PANEL_BYTES), true);
        commit_products();
    };
    if (half_number == 0) {
        f32 s[1][KEYS / 8][4];
        Softmax<1> softmax;
        softmax.start();
        const i32 all_see_until = min_i32(keys_of_row(geometry, sequence, first_query).end, share.end);
        auto start_tile = [&](u32 tile) {
            mbarrier_wait(storage.left.full(tile % STAGES), tile / STAGES % 2);
            mbarrier_wait(storage.right.full(tile % STAGES), tile / STAGES % 2);
            // Opaque, or 36 descriptors of Q would be kept in registers through the loop.
            start_scores<Element>(s[0], QTile{opaque(storage.q.base)}, 0, storage.k(tile % STAGES));
        };
        auto finish_values = [&](u32 tile) {
            finish_products<0>(out[0]);
            release(storage.left.empty(tile % STAGES));
        };
        auto weigh = [&](u32 tile) {
            const i32 key = share.first + i32(tile) * KEYS;
            // The pattern hides keys behind a row's position only.
            if (key + KEYS > all_see_until)
                mask(s, key, lane, [&](int row) {
                    const KeyRange range = keys_of_row(geometry, sequence, (item.first_row + int(warp_row) + row) / group);
                    return KeyRange{0, min_i32(range.end, share.end)};
                });
            softmax.weigh<SLACK>(s, rescale, factor);
        };
        // Weights for both warpgroups, when the other one has used those before. A warp's products read its own rows of them.
        auto hand_over = [&](u32 tile) {
            mbarrier_wait(storage.weights.empty(0), tile % 2 ^ 1);
            const u32 mine = opaque(lane), at = opaque(storage.p.place(warp_row + mine / 4, 0) + mine % 4 * 4);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                if (mine % 4 == 0) store_shared(storage.rescale + (warp_row + half * 8 + mine / 4) * 4, rescale[0][half]);
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
                    store_shared(PTile::further(at, half * 8, n), Element::pack(s[0][n][2 * half], s[0][n][2 * half + 1]));
            }
            fence_async_shared();
            sync_warp();
            release(storage.weights.full(0));
        };
        if (tiles > 0) {
            start_tile(0);
            finish_products<0>(s[0]);
            weigh(0);
            hand_over(0);
            u32 tile = 0;
            for (; tile + 1 < tiles; tile++) {
                start_tile(tile + 1);
                start_values(tile);
                finish_products<1>(s[0]);
                weigh(tile + 1);
                finish_values(tile);
                if (any_lane(rescale[0][0] != 1.0f || rescale[0][1] != 1.0f)) softmax.scale(out, rescale);
                hand_over(tile + 1);
            }
            if (last_keys < KEYS) clear_values(storage.v(tile % STAGES, 0), last_keys, LEFT_GROUP);
            start_values(tile);
            finish_values(tile);
        }
        softmax.finish();
#pragma unroll
        for (int half = 0; half < 2; half++) {
            inverse[half] = softmax.inverse(0, half);
            log_sum[half] = softmax.log_sum_exp(0, half, factor);
            if (lane % 4 == 0) store_shared(storage.inverse + (warp_row + half * 8 + lane / 4) * 4, inverse[half]);
        }
        sync_named(BOTH, 256);
    } else {
        for (u32 tile = 0; tile < tiles; tile++) {
            // Who hands weights over has seen both parts of the tile's rows arrive.
            mbarrier_wait(storage.weights.full(0), tile % 2);
#pragma unroll
            for (int half = 0; half < 2; half++)
                rescale[0][half] = load_shared_f32(storage.rescale + (warp_row + half * 8 + lane / 4) * 4);
            if (any_lane(rescale[0][0] != 1.0f || rescale[0][1] != 1.0f)) Softmax<1>::scale(out, rescale);
            if (tile + 1 == tiles && last_keys < KEYS) clear_values(storage.v(tile % STAGES, 1), last_keys, RIGHT_GROUP);
            start_values(tile);
            finish_products<0>(out[0]);
            release(storage.weights.empty(0));
            release(storage.right.empty(tile % STAGES));
        }
        sync_named(BOTH, 256);
#pragma unroll
        for (int half = 0; half < 2; half++)
            inverse[half] = load_shared_f32(storage.inverse + (warp_row + half * 8 + lane / 4) * 4);
    }

    // Read again: what a block keeps through its tiles, it keeps in registers that they need.
    const WorkItem done = work_item(geometry, items, block_index(), splits, ROWS);
    const Sequence rows = sequence_at(geometry, sequences, done.sequence);
    const i32 first_column = half_number * HALF;
    i64 place[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = warp_row + half * 8 + lane / 4;
        const PackedRow packed(done.first_row + row, group, 0);
        const i64 at = partial_row(geometry, done.slot + done.split, 0, row, ROWS);
        const bool exists = done.first_row + row < rows.len_q * group;
        place[half] = !exists           ? -1
                      : done.splits > 1 ? at * partial_pitch(geometry) + first_column
                                        : rows.o + packed.head * geometry.o.head + packed.query * geometry.o.token + first_column;
        if (half_number == 0 && exists && lane % 4 == 0) {
            if (done.splits > 1)
                store(partial_lse, at, log_sum[half] * LOG2_E);
            else if (lse.exists())
                store(lse, (i64(done.sequence) * geometry.heads_q + packed.head) * geometry.len_q + packed.query, log_sum[half]);
        }
    }
    if (done.splits == 1)
        write_fragments<Element, HALF>(o, out[0], inverse, place, geometry.dim_v - first_column);
    else
        write_partial_rows<HALF>(partial_o, out[0], inverse, place, geometry.dim_v - first_column);
}
ENTRY(mla3)

#include "combine.cuh"
