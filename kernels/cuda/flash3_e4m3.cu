// FlashAttention-3's forward with both products in e4m3 (Shah et al. 2024, section 3.3, has the idea), for sm_90a: queries, keys
// and values of 16 bits are quantised within the call.
//
// `quantise` writes e4m3 images of tiles: queries with a power of two a row, keys and values with one a tile of keys of one head.
// One pass: a scale a tensor would need a second to find the largest number first. Values are transposed on the way, since the
// tensor cores take 8-bit operands in no other order, and keys lie within them in the order in which weights come out of
// Q K^T. `flash3_e4m3` is flash3's loop (hopper.cuh) on those tiles. Tiles of keys begin at multiples of KEYS here, as their scales
// do; the keys behind the last are zeros, which the mask hides.
//
// The scale of the softmax and those of Q and K are one factor a row and tile, which the exponent's multiply-add has anyway; that
// of V is in its addend (`ScaledSoftmax` of e4m3.cuh).
//
// Tiles (ROWS x KEYS): d64, d128 and 192:128 128 x 128, d256 128 x 64; three slots of K and of V. A block has a multiprocessor to
// itself: 384 threads, with 40 registers each where they copy and 232 where they compute.
// Floor on an H200, a score: 4 d FLOPs at twice the rate of bf16, 1580 TFLOP/s, are 0.32 ps at d128, 0.16 ps at d64 and 0.65 ps at
// d256; an exponential is 0.27 ps. So exponentials take 83 % of the products' time at d128, and rule at d64, where e4m3 gains
// at most a sixth over bf16. Quantising reads 2 bytes and writes 1 of each element of Q, K and V, and Q's is read again.
//
// Accumulators: in sums of 8-bit products Hopper's tensor cores keep some 14 bits of mantissa. S is a sum of DIM_QK / 32
// steps, to which that does nothing beside the rounding to 4 bits. O is one of len_kv / 32, each of which may cut off 2^-14 of it.
// So every PROMOTED tiles, O moves from them to memory, where it is summed in f32: no sum has more than 256 steps in accumulators, which
// cut off 1 % of it or so. That is 8 d_v bytes a row of traffic in the second-level cache for 8192 keys, and no register.
//
// Defines: ELEMENT (Bf16, F16), DIM_QK, DIM_V, ROWS, KEYS, SLOTS (of K, and of V), VARIANT (0, 1: see geometry.cuh).
#include "e4m3.cuh"

using Element = ELEMENT;

constexpr int MATH = ROWS / 64, THREADS = 128 * (MATH + 1), STAGES = SLOTS, QUANTISE_THREADS = 256;
// Registers of the warpgroup that copies and of those that compute; together no more than a multiprocessor has.
constexpr int COPY_REGISTERS = 40, MATH_REGISTERS = 232;
// Tiles after which O leaves its accumulators: `PROMOTED_KEYS` of flash3_e4m3.rs.
constexpr i32 PROMOTED = 8192 / KEYS;
// Named barriers: whose turn it is to issue.
constexpr u32 FIRST_TURN = 1;
using QTile = ByteTile<ROWS, DIM_QK>;
using KTile = ByteTile<KEYS, DIM_QK>;
using VTile = ByteTile<DIM_V, KEYS>;

// Of a tile of keys: what scores are to be multiplied by, and the exponent of the power of two of the values.
struct KeyScales {
    f32 key, exponent_of_values;
    u32 unused[2];
};

// Where the tiles of keys of a sequence and head begin, in the order of images; `first_tiles` counts those of earlier sequences.
DEVICE i64 first_image(const Geometry &geometry, Global<const i32> first_tiles, i32 sequence, i32 head, i32 len_kv) {
    return i64(load(first_tiles, sequence)) * geometry.heads_kv + i64(head) * ceil_div(len_kv, KEYS);
}

// Grid: a block for each work, then for each tile of keys of `longest_tiles` a (sequence, head), then for those of values.
// Shared memory: an image of values and a word a warp.
KERNEL(QUANTISE_THREADS, 1)
quantise(Global<const u16> q, Global<const u16> k, Global<const u16> v, Global<u8> q_images, Global<f32> q_scales,
         Global<u8> k_images, Global<u8> v_images, Global<f32> key_scales, Global<const Sequence> sequences, Geometry geometry,
         Global<const Work> works, i32 work_count, Global<const i32> first_tiles, i32 longest_tiles, i32 pack) {
    const u32 words = shared_memory() + VTile::BYTES;
    i32 item = i32(block_index());
    if (item < work_count) {
        const Work work = load_struct(works, item);
        const Sequence sequence = sequence_at(geometry, sequences, work.sequence);
        auto start = [&](u32 row) {
            const OutputRow place(sequence, work, pack, row);
            return place.exists ? sequence.q + place.head * geometry.q.head + place.query * geometry.q.token : -1;
        };
        auto keep = [&](u32 row, i32 exponent) { store(q_scales, i64(item) * ROWS + row, power_of_two(exponent)); };
        quantise_rows<Element, ROWS, DIM_QK, QUANTISE_THREADS, true>(q, geometry.dim_qk, q_images + i64(item) * QTile::BYTES,
                                                                     words, start, keep);
        return;
    }
    item -= work_count;
    const i32 count = geometry.batch * geometry.heads_kv * longest_tiles;
    const bool is_value = item >= count;
    if (is_value) item -= count;
    const i32 tile = item % longest_tiles, head = item / longest_tiles % geometry.heads_kv;
    const i32 number = item / longest_tiles / geometry.heads_kv;
    const Sequence sequence = sequence_at(geometry, sequences, number);
    if (tile >= ceil_div(sequence.len_kv, KEYS)) return;
    const i64 image = first_image(geometry, first_tiles, number, head, sequence.len_kv) + tile;
    const Strides &strides = is_value ? geometry.v : geometry.k;
    const i64 first = (is_value ? sequence.v : sequence.k) + head * strides.head;
    auto start = [&](u32 row) {
        const i32 key = tile * KEYS + i32(row);
        return key < sequence.len_kv ? first + key * strides.token : -1;
    };
    // Each of the two blocks of a tile fills its half of `KeyScales`.
    if (is_value) {
        auto keep = [&](i32 exponent) {
            store(key_scales, image * 4 + 1, f32(exponent));
            store(key_scales, image * 4 + 3, 0.0f);
        };
        quantise_values<Element, KEYS, DIM_V, QUANTISE_THREADS>(v, geometry.dim_v, v_images + image * VTile::BYTES,
                                                                shared_memory(), start, keep);
    } else {
        auto keep = [&](u32, i32 exponent) {
            store(key_scales, image * 4, power_of_two(exponent));
            store(key_scales, image * 4 + 2, 0.0f);
        };
        quantise_rows<Element, KEYS, DIM_QK, QUANTISE_THREADS, false>(k, geometry.dim_qk, k_images + image * KTile::BYTES, words,
                                                                      start, keep);
    }
}
ENTRY(quantise)

// Shared memory: Q, the slots of K, those of V, those of scales, the barriers. All threads make this alike.
struct Storage {
    QTile q{shared_memory()};
    u32 k_base = q.base + QTile::BYTES, v_base = k_base + STAGES * KTile::BYTES, scales = v_base + STAGES * VTile::BYTES;
    Rings<STAGES> rings{scales + STAGES * u32(sizeof(KeyScales))};
    DEVICE KTile k(u32 slot) const { return KTile{k_base + slot * KTile::BYTES}; }
    DEVICE VTile v(u32 slot) const { return VTile{v_base + slot * VTile::BYTES}; }
    DEVICE u32 key_scales(u32 slot) const { return scales + slot * u32(sizeof(KeyScales)); }
};

// What a tile of queries sees: tiles of keys, from the last one back.
struct Visit {
    Sequence sequence;
    i32 last, tiles;
    DEVICE Visit(const Geometry &geometry, Global<const Sequence> sequences, const Work &work, i32 pack) {
        sequence = sequence_at(geometry, sequences, work.sequence);
        const KeyRange range =
            keys_of_rows(geometry, sequence, work.query, min_i32(work.query + (ROWS >> pack), sequence.len_q) - 1);
        last = (range.end - 1) / KEYS;
        tiles = range.end > range.first ? last - range.first / KEYS + 1 : 0;
    }
};

// The warpgroup that copies: one thread of it.
DEVICE void copy_works(const Storage &storage, Global<const u8> q_images, Global<const u8> k_images, Global<const u8> v_images,
                       Global<const KeyScales> key_scales, Global<const Sequence> sequences, const Geometry &geometry,
                       Global<const Work> works, Share share, Global<const i32> first_tiles, i32 pack) {
    RingPlaces<STAGES> places;
    for (i32 number = share.first; number < share.end; number++) {
        const Work work = load_struct(works, number);
        const Visit visit(geometry, sequences, work, pack);
        if (visit.tiles == 0) continue;
        const i32 head = work.head / (geometry.heads_q / geometry.heads_kv);
        i64 image = first_image(geometry, first_tiles, work.sequence, head, visit.sequence.len_kv) + visit.last;
        copy_bytes(storage.q.base, q_images, i64(number) * QTile::BYTES, QTile::BYTES,
                   storage.rings.q.acquire(places.q, QTile::BYTES));
        places.q.advance();
        for (i32 tile = 0; tile < visit.tiles; tile++, image--) {
            const u32 slot = places.k.slot, full = storage.rings.k.acquire(places.k, KTile::BYTES + sizeof(KeyScales));
            copy_bytes(storage.key_scales(slot), key_scales, image, sizeof(KeyScales), full);
            copy_bytes(storage.k(slot).base, k_images, image * KTile::BYTES, KTile::BYTES, full);
            copy_bytes(storage.v(slot).base, v_images, image * VTile::BYTES, VTile::BYTES,
                       storage.rings.v.acquire(places.k, VTile::BYTES));
            places.k.advance();
        }
    }
}

// What a warpgroup that computes has of its 64 rows from `row` on: see `attend_in_turns`.
struct Rows {
    const Storage &storage;
    const Geometry &geometry;
    const Visit &visit;
    const Work &work;
    i32 head_pack;
    u32 row;
    // Where the block keeps O in f32; null where no row sees more than PROMOTED tiles.
    Global<f32> kept;
    // Of each of the thread's rows: what products are to be multiplied by, but for the tile's own factor.
    f32 factor[2];
    KeyScales scales;
    f32 out[1][DIM_V / 8][4], s[1][KEYS / 8][4];
    u32 weights[KEYS / 32][4];
    ScaledSoftmax softmax;

    // `q_scales` are the powers of two of the tile's rows.
    DEVICE Rows(const Storage &storage, const Geometry &geometry, const Visit &visit, const Work &work, i32 head_pack, u32 row,
                Global<const f32> q_scales, Global<f32> kept)
        : storage(storage), geometry(geometry), visit(visit), work(work), head_pack(head_pack), row(row), kept(kept) {
        const u32 thread = thread_index();
        const f32 common = VARIANT == PLAIN_VARIANT ? exponent_scale(geometry, false) : 1.0f;
#pragma unroll
        for (int half = 0; half < 2; half++)
            factor[half] = common * load(q_scales, row + thread / 32 % 4 * 16 + half * 8 + thread % 32 / 4);
        clear(out);
        softmax.start();
    }

    DEVICE void start_scores(u32 slot) { start_byte_scores(s[0], storage.q, row, storage.k(slot)); }
    // Scales are read before the wait that ends the products' reads, so that whoever gives the slot back then gives back both.
    template <int in_flight> DEVICE void finish_scores(u32 slot) {
        scales.key = load_shared_f32(storage.key_scales(slot));
        scales.exponent_of_values = load_shared_f32(storage.key_scales(slot) + 4);
        finish_products<in_flight>(s[0]);
    }

    DEVICE void weigh(i32 tile) {
        const u32 thread = thread_index();
        const i32 key = (visit.last - tile) * KEYS;
        // Of rows of zeros and the smallest keys the product of scales may be no number any more; their scores are 0 with any other.
        f32 scale[2];
#pragma unroll
        for (int half = 0; half < 2; half++) scale[half] = max_f32(factor[half] * scales.key, 1e-37f);
        if (VARIANT == CAPPED_VARIANT) {
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) s[0][n][i] = soft_cap(geometry, s[0][n][i] * scale[i / 2]);
            scale[0] = scale[1] = LOG2_E;
        }
        const i32 first = work.query + i32(row >> head_pack), last = work.query + i32((row + 63) >> head_pack);
        if (!all_see(geometry, visit.sequence, first, last, key, key + KEYS))
            mask(s, key, thread % 32, [&](int mine) {
                return keys_of_row(geometry, visit.sequence,
                                   work.query + i32((row + thread / 32 % 4 * 16 + mine) >> head_pack));
            });
        softmax.weigh(s[0], scale, scales.exponent_of_values);
    }

    DEVICE void pack(i32 tile) {
        if (tile > 0) softmax.scale(out[0]);
        pack_byte_weights<KEYS>(weights, s[0]);
        if (tile > 0 && tile % PROMOTED == 0) keep(tile > PROMOTED);
    }

    // The thread's number `index` in what the block keeps: neighbours are neighbours in memory. Behind O are its units.
    DEVICE i64 place(int index) const {
        return (i64(block_index()) * (DIM_V / 2 + 2) + index) * (MATH * 128) + thread_index() - 128;
    }
    // Adds O in the accumulators to what is kept, in its unit, and clears them.
    DEVICE void keep(bool has_kept) {
        if (has_kept) take_back();
#pragma unroll
        for (int n = 0; n < DIM_V / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) store(kept, place(n * 4 + i), out[0][n][i]);
#pragma unroll
        for (int half = 0; half < 2; half++) store(kept, place(DIM_V / 2 + half), softmax.unit[half]);
        clear(out);
    }
    // Adds what is kept to O in the accumulators.
    DEVICE void take_back() {
        f32 scale[2];
#pragma unroll
        for (int half = 0; half < 2; half++) scale[half] = exp2_fast(load(kept, place(DIM_V / 2 + half)) - softmax.unit[half]);
#pragma unroll
        for (int n = 0; n < DIM_V / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                out[0][n][i] = fused_multiply_add(load(kept, place(n * 4 + i)), scale[i / 2], out[0][n][i]);
    }
    DEVICE void start_values(u32 slot) { start_byte_values(out[0], weights, storage.v(slot)); }
    DEVICE void finish_values() { finish_products<0>(out[0]); }
    DEVICE void begin_last(u32) {}
};

// Grid: any number of blocks, for as many shares. Shared memory: `Storage`.
KERNEL(THREADS, 1)
flash3_e4m3(Global<const u8> q_images, Global<const f32> q_scales, Global<const u8> k_images, Global<const u8> v_images,
            Global<const KeyScales> key_scales, Global<u16> o, Global<f32> lse, Global<const f32> sinks,
            Global<const Sequence> sequences, Geometry geometry, Global<const Work> works, Global<const i32> starts,
            Global<const i32> first_tiles, i32 pack, Global<f32> kept) {
    const Storage storage;
    // The shuffle tells the compiler that all lanes have the same, so that addresses of tiles are computed once a warp.
    const u32 thread = thread_index(), warpgroup = u32(shuffle(i32(thread / 128), 0));
    if (thread == 0) storage.rings.init(4 * MATH);
    sync_threads();
    const Share share(starts);
    if (warpgroup == 0) {
        give_back_registers<COPY_REGISTERS>();
        if (thread == 0)
            copy_works(storage, q_images, k_images, v_images, key_scales, sequences, geometry, works, share, first_tiles, pack);
        return;
    }
    take_registers<MATH_REGISTERS>();

    const u32 number = warpgroup - 1, row = number * 64;
    const Turns turns(FIRST_TURN, number, MATH);
    RingPlaces<STAGES> places;
    for (i32 index = share.first; index < share.end; index++) {
        const Work work = load_struct(works, index);
        const Visit visit(geometry, sequences, work, pack);
        Rows rows(storage, geometry, visit, work, pack, row, q_scales + i64(index) * ROWS, kept);
        if (visit.tiles > 0) attend_in_turns(storage.rings, places, turns, visit.tiles, rows);
        if (visit.tiles > PROMOTED) rows.take_back();
        rows.softmax.finish();
        write_output<Element, DIM_V>(
            o, lse, rows.out[0], geometry, sequence_at(geometry, sequences, i32(opaque(u32(work.sequence)))), work, pack, row,
            [&](int half, i32 head) { return rows.softmax.inverse(half, sinks, head); },
            [&](int half) { return rows.softmax.log_sum_exp(half); });
    }
}
ENTRY(flash3_e4m3)
