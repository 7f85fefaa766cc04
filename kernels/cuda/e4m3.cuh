// What attention with products in e4m3 adds to that in 16 bits: tiles of bytes, blocks of a tensor in e4m3 with a power of two
// each, and a softmax whose weights know the powers of two of the values.
//
// *Images.* A tile lies in memory byte for byte as in shared memory, swizzles included, so that one copy of contiguous bytes
// brings it, whatever the problem's layout, its ragged lengths and its padding were: those are the quantiser's business alone.
//
// *Powers of two.* e4m3 is floating point: a scale moves numbers within its range and makes none more exact. Powers of two do that
// without an error of their own, and 2^-6 .. 448 are 15 binades of full precision, so that a row or a tile keeps all its
// numbers unless its largest is some 2^18 times another that matters.
#pragma once

#include "hopper.cuh"

// A tile of TILE_ROWS x DIM bytes, in panels of 128-byte rows (64 where 128 does not divide DIM), swizzled as TMA does.
template <int TILE_ROWS, int DIM> struct ByteTile {
    static constexpr int ROW_BYTES = DIM % 128 == 0 ? 128 : 64, PANEL_BYTES = TILE_ROWS * ROW_BYTES, BYTES = TILE_ROWS * DIM;
    static_assert(DIM % 64 == 0 && PANEL_BYTES % 1024 == 0, "whole panels of whole patterns");
    // A multiple of 1024.
    u32 base;

    // Where column `column` of a row lies from the tile's start on.
    static DEVICE u32 place(u32 row, u32 column) {
        const u32 exchange = ROW_BYTES == 128 ? row & 7 : row >> 1 & 3;
        return column / ROW_BYTES * PANEL_BYTES + row * ROW_BYTES + (column % ROW_BYTES ^ exchange << 4);
    }
    // 32 columns of rows `row` .. (a multiple of 8), as an operand.
    DEVICE u64 descriptor(u32 row, u32 column) const {
        return rows_descriptor<ROW_BYTES>(base + column / ROW_BYTES * PANEL_BYTES + row * ROW_BYTES + column % ROW_BYTES);
    }
};

// ---- Quantising -----------------------------------------------------------------------------------------------------

// The exponent of the power of two by which numbers up to `largest` are divided: the smallest that leaves none above 448. No
// block is so small, a block of zeros included, that the power or its inverse could not be written.
DEVICE i32 scale_exponent(f32 largest) {
    const u32 bits = f32_to_bits(largest);
    return max_i32(i32(bits >> 23) - 135 + ((bits & 0x7fffff) > 0x600000 ? 1 : 0), -126);
}
DEVICE f32 power_of_two(i32 exponent) { return bits_to_f32(u32(exponent + 127) << 23); }

// The largest magnitude of some 16-bit elements, without its sign: their order is that of their bits.
DEVICE u32 largest_bits(const Vec4 &v) {
    u32 largest = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const u32 low = v.word[i] & 0x7fff, high = v.word[i] >> 16 & 0x7fff;
        largest = low > largest ? low : largest, largest = high > largest ? high : largest;
    }
    return largest;
}
template <int lanes> DEVICE f32 largest_of_lanes(f32 x) {
#pragma unroll
    for (int mask = lanes / 2; mask > 0; mask /= 2) x = max_f32(x, shuffle_xor(x, mask));
    return x;
}
// The largest of a block's threads, through a word of shared memory a warp.
template <int threads> DEVICE f32 largest_of_block(f32 x, u32 shared) {
    x = largest_of_lanes<32>(x);
    if (thread_index() % 32 == 0) store_shared(shared + thread_index() / 32 * 4, x);
    sync_threads();
#pragma unroll
    for (int warp = 0; warp < threads / 32; warp++) x = max_f32(x, load_shared_f32(shared + warp * 4));
    return x;
}

// Element `index` of a chunk.
template <class Element> DEVICE f32 element_of(const Vec4 &v, int index) {
    return Element::widen(u16(v.word[index / 2] >> index % 2 * 16));
}

// Eight elements of a row from a column on, which are zeros outside of the row; `row` is negative where there is none.
DEVICE Vec4 load_chunk(Global<const u16> from, i64 row, int column, int dim) {
    return row >= 0 && column < dim ? load_vec4(from, row + column) : Vec4{};
}

// Rows of queries or keys into an image by a block of `threads`: `start(row)` is the element at which a row begins, or negative.
// One power of two a row, or for all of them; `keep(row, exponent)` is told of each, at row 0 where there is one only.
template <class Element, int TILE_ROWS, int DIM, int threads, bool is_each_row, class Start, class Keep>
DEVICE void quantise_rows(Global<const u16> from, int dim, Global<u8> image, u32 shared, Start start, Keep keep) {
    // Lanes that share a row, with 16 elements each, and rows that a block has at a time.
    constexpr int LANES = DIM <= 64 ? 4 : DIM <= 128 ? 8 : 16, STEP = threads / LANES, STEPS = TILE_ROWS / STEP;
    const u32 lane = thread_index() % LANES, first = thread_index() / LANES;
    const int column = int(lane) * 16;
    Vec4 chunks[STEPS][2];
    f32 largest[STEPS], all = 0.0f;
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        const i64 row = start(first + step * STEP);
        chunks[step][0] = load_chunk(from, row, column, dim), chunks[step][1] = load_chunk(from, row, column + 8, dim);
        const u32 a = largest_bits(chunks[step][0]), b = largest_bits(chunks[step][1]);
        largest[step] = Element::widen(u16(a > b ? a : b));
        all = max_f32(all, largest[step]);
    }
    if (!is_each_row) all = largest_of_block<threads>(all, shared);
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        const u32 row = first + step * STEP;
        const i32 exponent = scale_exponent(is_each_row ? largest_of_lanes<LANES>(largest[step]) : all);
        const f32 inverse = power_of_two(-exponent);
        if (lane == 0 && (is_each_row || row == 0)) keep(row, exponent);
        Vec4 bytes;
#pragma unroll
        for (int word = 0; word < 4; word++) {
            const Vec4 &chunk = chunks[step][word / 2];
            auto scaled = [&](int i) { return element_of<Element>(chunk, word % 2 * 4 + i) * inverse; };
            bytes.word[word] = E4m3::pack(scaled(0), scaled(1), scaled(2), scaled(3));
        }
        if (column < DIM) store_vec4(image, ByteTile<TILE_ROWS, DIM>::place(row, column), bytes);
    }
}

// The same of values, transposed: rows of the image are columns of V, and of each 32 keys, byte 16 h + 4 t + i is key
// 16 h + 8 (i / 2) + 2 t + i % 2. So weights as a thread holds them after Q K^T are the left operand as they lie: t is its number
// among the four of a row. `shared` has room for the tile, from a multiple of 1024 on, and a word a warp.
template <class Element, int TILE_KEYS, int DIM, int threads, class Start, class Keep>
DEVICE void quantise_values(Global<const u16> from, int dim, Global<u8> image, u32 shared, Start start, Keep keep) {
    using Image = ByteTile<DIM, TILE_KEYS>;
    constexpr int WORDS = TILE_KEYS / 4, STEPS = WORDS * (DIM / 8) / threads;
    static_assert(threads % WORDS == 0 && STEPS > 0, "each thread has the same keys in every step");
    const u32 word = thread_index() % WORDS, first = thread_index() / WORDS;
    const u32 key = word / 4 * 16 + word % 4 * 2;
    Vec4 chunks[STEPS][4];
    u32 largest = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const i64 row = start(key + i / 2 * 8 + i % 2);
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            chunks[step][i] = load_chunk(from, row, int(first + step * (threads / WORDS)) * 8, dim);
            const u32 bits = largest_bits(chunks[step][i]);
            largest = bits > largest ? bits : largest;
        }
    }
    const i32 exponent = scale_exponent(largest_of_block<threads>(Element::widen(u16(largest)), shared + Image::BYTES));
    const f32 inverse = power_of_two(-exponent);
    if (thread_index() == 0) keep(exponent);
#pragma unroll
    for (int step = 0; step < STEPS; step++)
#pragma unroll
        for (int e = 0; e < 8; e++) {
            auto scaled = [&](int i) { return element_of<Element>(chunks[step][i], e) * inverse; };
            store_shared(shared + Image::place((first + step * (threads / WORDS)) * 8 + e, word * 4),
                         E4m3::pack(scaled(0), scaled(1), scaled(2), scaled(3)));
        }
    sync_threads();
    for (u32 at = thread_index() * 16; at < Image::BYTES; at += threads * 16) store_vec4(image, at, load_shared_vec4(shared + at));
}

// ---- Products -------------------------------------------------------------------------------------------------------

// Starts s = Q K^T for 64 rows of Q from `row` on, as a group of products.
template <int TILE_ROWS, int TILE_KEYS, int DIM>
DEVICE void start_byte_scores(f32 (&s)[TILE_KEYS / 8][4], ByteTile<TILE_ROWS, DIM> q, u32 row, ByteTile<TILE_KEYS, DIM> k) {
    pin(s);
    fence_products();
#pragma unroll
    for (int column = 0; column < DIM; column += 32)
        E4m3::multiply_tiles<TILE_KEYS>(s, q.descriptor(row, column), k.descriptor(0, column), column > 0);
    commit_products();
}

// Starts o += P V for the weights of 64 rows in registers, as a group of products.
template <int TILE_KEYS, int DIM>
DEVICE void start_byte_values(f32 (&o)[DIM / 8][4], const u32 (&weights)[TILE_KEYS / 32][4], ByteTile<DIM, TILE_KEYS> v) {
    pin(o);
    fence_products();
#pragma unroll
    for (int step = 0; step < TILE_KEYS / 32; step++) E4m3::multiply_registers<DIM>(o, weights[step], v.descriptor(0, step * 32), true);
    commit_products();
}

// Weights as the left operand: what a thread holds of 16 columns next to each other is a word a row, in the order of V's image.
template <int TILE_KEYS> DEVICE void pack_byte_weights(u32 (&weights)[TILE_KEYS / 32][4], const f32 (&s)[TILE_KEYS / 8][4]) {
#pragma unroll
    for (int step = 0; step < TILE_KEYS / 32; step++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int n = 4 * step + i / 2 * 2, half = i % 2 * 2;
            weights[step][i] = E4m3::pack(s[n][half], s[n][half + 1], s[n + 1][half], s[n + 1][half + 1]);
        }
}

// ---- Softmax --------------------------------------------------------------------------------------------------------

// The online softmax of a thread's two rows, with weights that fill e4m3's range and values that have a power of two a tile.
//
// A weight is 2^(score - unit + exponent + ROOM), where `exponent` is that of the tile's values: it is what the values have to be
// multiplied by to be added to the row of O, which is in units of 2^(unit - ROOM). So the power of two of a tile of values costs
// no instruction a weight. `unit` is at least score + exponent - SLACK for every key so far: no weight exceeds 2^(ROOM + SLACK),
// which is below 448, and rows are scaled only when that would happen. Weights down to 2^-6 are rounded to 4 bits, smaller
// ones to fewer. The sum of the softmax has a base of its own, since keys whose values are small count in it as others do.
struct ScaledSoftmax {
    // Of weights of a score equal to the base, and how far they may grow.
    static constexpr f32 ROOM = 4.0f, SLACK = 4.0f;
    // What a score has to be for its keys to have been seen. A tile whose values are smaller by 2^60 than what is in O adds
    // nothing to it, and its weights stay numbers.
    static constexpr f32 NOTHING = -1e30f, LEAST_SHIFT = -60.0f;
    f32 base[2], unit[2], sum[2], share[2], offset[2], rescale[2], exponent;
    // Whether the rows of O are to be scaled by `rescale`.
    bool has_moved;

    DEVICE void start() {
#pragma unroll
        for (int half = 0; half < 2; half++) base[half] = unit[half] = NOTHING, sum[half] = 0.0f;
        exponent = NOTHING;
    }

    // Turns scores, to be multiplied by `factor` > 0 on their way to powers of two, into weights.
    template <int N> DEVICE void weigh(f32 (&s)[N][4], const f32 (&factor)[2], f32 of_values) {
        f32 top[2];
        bool moves = of_values != exponent;
        exponent = of_values;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            f32 largest = minus_infinity();
#pragma unroll
            for (int n = 0; n < N; n++) largest = max_f32(largest, max_f32(s[n][2 * half], s[n][2 * half + 1]));
            largest = max_f32(largest, shuffle_xor(largest, 1));
            top[half] = max_f32(largest, shuffle_xor(largest, 2)) * factor[half];
            moves = moves || top[half] - base[half] > SLACK || top[half] + exponent - unit[half] > SLACK;
        }
        has_moved = any_lane(moves);
        if (has_moved) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const f32 old_base = base[half], old_unit = unit[half];
                if (top[half] - old_base > SLACK) base[half] = top[half];
                if (top[half] + exponent - old_unit > SLACK) unit[half] = top[half] + exponent;
                rescale[half] = exp2_fast(old_unit - unit[half]);
                sum[half] *= exp2_fast(old_base - base[half]);
                const f32 shift = max_f32(exponent - unit[half] + base[half], LEAST_SHIFT);
                share[half] = exp2_fast(-shift - ROOM);
                offset[half] = shift + ROOM - base[half];
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            f32 total = 0.0f;
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const f32 weight = exp2_fast(fused_multiply_add(s[n][2 * half + i], factor[half], offset[half]));
                    s[n][2 * half + i] = weight;
                    total += weight;
                }
            sum[half] = fused_multiply_add(total, share[half], sum[half]);
        }
    }

    // Scales rows of O where they have to be.
    template <int D> DEVICE void scale(f32 (&o)[D][4]) const {
        if (!has_moved) return;
#pragma unroll
        for (int d = 0; d < D; d++)
#pragma unroll
            for (int i = 0; i < 4; i++) o[d][i] *= rescale[i / 2];
    }

    // Adds the sums of the four lanes of a row.
    DEVICE void finish() {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            sum[half] += shuffle_xor(sum[half], 1);
            sum[half] += shuffle_xor(sum[half], 2);
        }
    }

    // What a row of O is to be multiplied by, with the sink of a head in the sum; 0 for rows that see nothing.
    DEVICE f32 inverse(int half, Global<const f32> sinks, int head) const {
        return inverse_with_sink(sum[half], base[half], sinks, head) * exp2_fast(unit[half] - base[half] - ROOM);
    }
    // The natural logarithm of the sum of exponentials.
    DEVICE f32 log_sum_exp(int half) const {
        return sum[half] > 0.0f ? (base[half] + log2_fast(sum[half])) * LN_2 : minus_infinity();
    }
};
