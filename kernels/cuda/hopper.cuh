// What kernels of compute capability 9.0 have in common: rings of tiles between a warpgroup that copies and warpgroups that
// compute, products of tiles on wgmma, and work that the host cut and dealt out.
#pragma once

#include "attend.cuh"
#include "wgmma.cuh"

// Which slot of a ring is next, and the parity of its phase.
template <int STAGES> struct RingPlace {
    u32 slot = 0, parity = 0;
    DEVICE void advance() {
        slot++;
        if (slot == STAGES) slot = 0, parity ^= 1;
    }
};

// Two mbarriers a slot, which say that a tile is there and that nobody needs it any longer.
template <int STAGES> struct Ring {
    u32 base;
    static constexpr int BYTES = STAGES * 16;
    DEVICE u32 full(u32 slot) const { return base + slot * 16; }
    DEVICE u32 empty(u32 slot) const { return base + slot * 16 + 8; }
    // One thread announces what copies bring; `readers` say when they have read it.
    DEVICE void init(u32 readers) const {
        for (u32 slot = 0; slot < STAGES; slot++) mbarrier_init(full(slot), 1), mbarrier_init(empty(slot), readers);
    }
    // Waits until a slot is free, and announces bytes for it. At the first turn it is.
    DEVICE u32 acquire(RingPlace<STAGES> place, u32 bytes) const {
        mbarrier_wait(empty(place.slot), place.parity ^ 1);
        mbarrier_arrive_expect(full(place.slot), bytes);
        return full(place.slot);
    }
};

// Copies of a tile's panels of 64 columns from a map over (column, head, token, sequence), by one thread.
template <int TILE_ROWS, int DIM>
DEVICE void copy_panels(Tile<TILE_ROWS, DIM> tile, const TensorMap &map, i32 head, i32 token, i32 sequence, u32 barrier) {
#pragma unroll
    for (int panel = 0; panel < DIM / 64; panel++)
        copy_tile(tile.base + panel * tile.PANEL_BYTES, map, panel * 64, head, token, sequence, barrier);
}

// Starts s = Q K^T for 64 rows of Q from `row` on, as a group of products.
template <class Element, int TILE_ROWS, int TILE_KEYS, int DIM>
DEVICE void start_scores(f32 (&s)[TILE_KEYS / 8][4], Tile<TILE_ROWS, DIM> q, u32 row, Tile<TILE_KEYS, DIM> k) {
    pin(s);
    fence_products();
#pragma unroll
    for (int step = 0; step < DIM / 16; step++) {
        const u32 panel = step / 4, column = step % 4 * 32;
        multiply_widths<Element, TILE_KEYS>(
            s, matrix_descriptor(q.base + panel * q.PANEL_BYTES + row * 128 + column, 0),
            matrix_descriptor(k.base + panel * k.PANEL_BYTES + column, 0), step > 0);
    }
    commit_products();
}

// Starts o += P V for the weights of 64 rows, in registers as `pack_weights` leaves them, as a group of products.
template <class Element, int TILE_KEYS, int DIM>
DEVICE void start_values(f32 (&o)[DIM / 8][4], const u32 (&weights)[TILE_KEYS / 16][4], Tile<TILE_KEYS, DIM> v) {
    pin(o);
    fence_products();
#pragma unroll
    for (int step = 0; step < TILE_KEYS / 16; step++)
        Element::template multiply_registers<DIM, true>(o, weights[step],
                                                        matrix_descriptor(v.base + step * 16 * 128, v.PANEL_BYTES), true);
    commit_products();
}

// Waits until at most the `in_flight` youngest groups are not complete: `d` are accumulators of one that is.
template <int in_flight, int N> DEVICE void finish_products(f32 (&d)[N][4]) {
    wait_products<in_flight>();
    pin(d);
}

// Weights as the left operand of a product: what a thread holds of 8 columns next to each other.
template <class Element, int TILE_KEYS> DEVICE void pack_weights(u32 (&weights)[TILE_KEYS / 16][4], const f32 (&s)[TILE_KEYS / 8][4]) {
#pragma unroll
    for (int step = 0; step < TILE_KEYS / 16; step++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            weights[step][i] = Element::pack(s[2 * step + i / 2][i % 2 * 2], s[2 * step + i / 2][i % 2 * 2 + 1]);
}

// Writes a warp's 16 rows of O, times `factor[half]`, from its registers: the four lanes of a row exchange what they hold, so that
// each stores 16 bytes. `row[half]` is where the thread's row begins, negative where it does not exist.
template <class Element, int DIM>
DEVICE void write_fragments(Global<u16> to, const f32 (&o)[DIM / 8][4], const f32 (&factor)[2], const i64 (&row)[2], int dim) {
    const u32 lane = thread_index() % 32;
    const bool is_odd = lane & 1, is_high = lane & 2;
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int block = 0; block < DIM / 8; block += 4) {
            f32 pair[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                pair[i] = bits_to_f32(Element::pack(o[block + i][2 * half] * factor[half], o[block + i][2 * half + 1] * factor[half]));
            // A transposition of four lanes by four pairs, in two exchanges.
#pragma unroll
            for (int i = 0; i < 4; i += 2) {
                const f32 got = shuffle_xor(is_odd ? pair[i] : pair[i + 1], 1);
                (is_odd ? pair[i] : pair[i + 1]) = got;
            }
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const f32 got = shuffle_xor(is_high ? pair[i] : pair[i + 2], 2);
                (is_high ? pair[i] : pair[i + 2]) = got;
            }
            const int column = (block + int(lane % 4)) * 8;
            if (row[half] >= 0 && column < dim)
                store_vec4(to, row[half] + column,
                           Vec4{{f32_to_bits(pair[0]), f32_to_bits(pair[1]), f32_to_bits(pair[2]), f32_to_bits(pair[3])}});
        }
}

// The three rings of an attention kernel: queries, keys, values.
template <int STAGES> struct Rings {
    Ring<1> q;
    Ring<STAGES> k, v;
    static constexpr int BYTES = Ring<1>::BYTES + 2 * Ring<STAGES>::BYTES;
    DEVICE explicit Rings(u32 base)
        : q{base}, k{base + Ring<1>::BYTES}, v{base + Ring<1>::BYTES + Ring<STAGES>::BYTES} {}
    // By one thread, before a barrier; each warp that computes says when it has read a slot.
    DEVICE void init(u32 warps) const {
        q.init(warps), k.init(warps), v.init(warps);
        fence_mbarrier_init();
    }
};

// Which slots of them are next.
template <int STAGES> struct RingPlaces {
    RingPlace<1> q;
    RingPlace<STAGES> k, v;
};

// Named barriers that say whose turn it is to issue products, of two warpgroups or more that compute: number `first` and the
// following.
struct Turns {
    u32 own, next;
    DEVICE Turns(u32 first, u32 number, u32 count) : own(first + number), next(first + (number + 1) % count) {
        // The first warpgroup begins: its turn comes from the last.
        if (number == count - 1) pass();
    }
    DEVICE void wait() const { sync_named(own, 256); }
    DEVICE void pass() const { arrive_named(next, 256); }
};

// FlashAttention-3's loop for one warpgroup: `tiles` (at least one) tiles of keys and values for its rows of one tile of queries.
// The scores of the next keys are issued before the weighted values of these, so that the softmax runs beside the latter.
// `rows` has the registers: start_scores, finish_scores, weigh (scores into weights), start_values, finish_values, pack (the
// tile's weights into the left operand, and what was accumulated of those before it scaled), and begin_last, before the last
// tile's values.
template <int STAGES, class Rows>
DEVICE void attend_in_turns(const Rings<STAGES> &rings, RingPlaces<STAGES> &places, const Turns &turns, i32 tiles, Rows &rows) {
    auto release = [](u32 barrier) {
        if (thread_index() % 32 == 0) mbarrier_arrive(barrier);
    };
    mbarrier_wait(rings.q.full(0), places.q.parity);
    mbarrier_wait(rings.k.full(places.k.slot), places.k.parity);
    turns.wait();
    rows.start_scores(places.k.slot);
    turns.pass();
    rows.template finish_scores<0>(places.k.slot);
    release(rings.k.empty(places.k.slot));
    places.k.advance();
    rows.weigh(0);
    rows.pack(0);

    for (i32 tile = 1; tile < tiles; tile++) {
        mbarrier_wait(rings.k.full(places.k.slot), places.k.parity);
        turns.wait();
        rows.start_scores(places.k.slot);
        mbarrier_wait(rings.v.full(places.v.slot), places.v.parity);
        rows.start_values(places.v.slot);
        turns.pass();
        rows.template finish_scores<1>(places.k.slot);
        release(rings.k.empty(places.k.slot));
        places.k.advance();
        rows.weigh(tile);
        rows.finish_values();
        release(rings.v.empty(places.v.slot));
        places.v.advance();
        rows.pack(tile);
    }
    release(rings.q.empty(0));
    places.q.advance();
    mbarrier_wait(rings.v.full(places.v.slot), places.v.parity);
    rows.begin_last(places.v.slot);
    rows.start_values(places.v.slot);
    rows.finish_values();
    release(rings.v.empty(places.v.slot));
    places.v.advance();
}

// A tile of queries of a sequence, of one head or of several that lie next to each other and share keys.
struct Work {
    i32 sequence, head, query, unused;
};

// The works of this block: numbers first .. end - 1 of the list.
struct Share {
    i32 first, end;
    DEVICE explicit Share(Global<const i32> starts)
        : first(load(starts, block_index())), end(load(starts, block_index() + 1)) {}
};

// The 16 rows of a warp that computes, of which this thread holds two: where each is in the problem.
struct OutputRow {
    i32 query, head;
    bool exists;
    DEVICE OutputRow(const Sequence &sequence, const Work &work, i32 pack, u32 row) {
        query = work.query + i32(row >> pack), head = work.head + i32(row & ((1u << pack) - 1));
        exists = query < sequence.len_q;
    }
};

// Writes what a warpgroup computed of its rows from `row` on: O, times `inverse(half, head)`, and where somebody asked for it
// the LSE, `log_sum_exp(half)`.
template <class Element, int DIM, class Inverse, class LogSumExp>
DEVICE void write_output(Global<u16> o, Global<f32> lse, const f32 (&out)[DIM / 8][4], const Geometry &geometry,
                         const Sequence &sequence, const Work &work, i32 pack, u32 row, Inverse inverse, LogSumExp log_sum_exp) {
    const u32 lane = thread_index() % 32;
    f32 factor[2];
    i64 place[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const OutputRow mine(sequence, work, pack, row + thread_index() / 32 % 4 * 16 + half * 8 + lane / 4);
        factor[half] = inverse(half, mine.head);
        place[half] = mine.exists ? sequence.o + mine.head * geometry.o.head + mine.query * geometry.o.token : -1;
        if (lse.exists() && mine.exists && lane % 4 == 0)
            store(lse, (i64(work.sequence) * geometry.heads_q + mine.head) * geometry.len_q + mine.query, log_sum_exp(half));
    }
    write_fragments<Element, DIM>(o, out, factor, place, geometry.dim_v);
}
