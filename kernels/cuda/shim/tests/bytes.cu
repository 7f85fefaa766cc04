// Copies of contiguous bytes and products of warpgroups in e4m3: what is sound, and kernels with one fault each.
#include "e4m3.cuh"

constexpr int THREADS = 160, COLUMNS = 128;
constexpr u32 BARRIER = 0, TILES = 1024;

enum Fault { SOUND, NO_COPY_WAIT, TOO_FEW, ODD_BYTES, NO_FENCE, NO_WAIT, EARLY_RELEASE, OTHERS_OPERAND, UNKNOWN_LAYOUT };

DEVICE void show(Global<f32> to, const f32 (&d)[COLUMNS / 8][4]) {
    const u32 thread = thread_index(), row = thread / 32 * 16 + thread % 32 / 4;
    for (int n = 0; n < COLUMNS / 8; n++)
        for (int i = 0; i < 4; i++) store(to, (row + i / 2 * 8) * COLUMNS + n * 8 + thread % 4 * 2 + i % 2, d[n][i]);
}

// d = A B of 64 x INNER and INNER x 128, twice, of images as they are in memory: the second adds to the first. With A in registers,
// `a` is row by row.
template <int INNER, bool is_in_registers, Fault fault> DEVICE void product(Global<const u8> a, Global<const u8> b, Global<f32> to) {
    using ATile = ByteTile<64, INNER>;
    using BTile = ByteTile<COLUMNS, INNER>;
    const ATile a_tile{shared_memory() + TILES};
    const BTile b_tile{a_tile.base + ATile::BYTES};
    const u32 barrier = shared_memory() + BARRIER, thread = thread_index();
    if (thread == 0) {
        mbarrier_init(barrier, 1);
        fence_mbarrier_init();
    }
    sync_threads();
    if (thread == 128) {
        const u32 bytes = ATile::BYTES + BTile::BYTES;
        mbarrier_arrive_expect(barrier, fault == TOO_FEW ? bytes - 16 : bytes);
        copy_bytes(a_tile.base, a, 0, fault == ODD_BYTES ? 24 : u32(ATile::BYTES), barrier);
        copy_bytes(b_tile.base, b, 0, BTile::BYTES, barrier);
    }
    if (thread >= 128) {
        // Overwrites B when the others say that they have read it.
        if (fault == EARLY_RELEASE) {
            mbarrier_wait(barrier, 0);
            sync_named(1, THREADS);
            store_shared(b_tile.base + thread * 16, 0u);
        }
        return;
    }
    if (fault != NO_COPY_WAIT) mbarrier_wait(barrier, 0);
    f32 d[COLUMNS / 8][4];
    u32 fragments[INNER / 32][4];
    const u32 row = thread / 32 * 16 + thread % 32 / 4;
    for (u32 step = 0; step < INNER / 32 && is_in_registers; step++)
        for (u32 i = 0; i < 4; i++) {
            fragments[step][i] = 0;
            for (u32 e = 0; e < 4; e++)
                fragments[step][i] |= u32(load(a, (row + i % 2 * 8) * INNER + step * 32 + i / 2 * 16 + thread % 4 * 4 + e)) << 8 * e;
        }
    pin(d);
    if (fault != NO_FENCE) fence_products();
    for (int turn = 0; turn < 2; turn++) {
        for (u32 step = 0; step < INNER / 32; step++) {
            const u64 of_b = b_tile.descriptor(fault == OTHERS_OPERAND ? thread % 2 * 8 : 0, step * 32);
            const u64 known = fault == UNKNOWN_LAYOUT ? of_b & ~(u64(3) << 62) : of_b;
            const bool adds = turn > 0 || step > 0;
            if constexpr (is_in_registers) E4m3::multiply_registers<COLUMNS>(d, fragments[step], known, adds);
            else E4m3::multiply_tiles<COLUMNS>(d, a_tile.descriptor(0, step * 32), known, adds);
        }
        commit_products();
    }
    if (fault == EARLY_RELEASE) arrive_named(1, THREADS);
    if (fault == NO_WAIT) show(to, d);
    finish_products<0>(d);
    if (fault != NO_WAIT) show(to, d);
}

#define PRODUCT_KERNEL(name, inner, is_in_registers, fault)                                                              \
    KERNEL(THREADS, 1) name(Global<const u8> a, Global<const u8> b, Global<f32> to) {                                    \
        product<inner, is_in_registers, fault>(a, b, to);                                                                \
    }                                                                                                                    \
    ENTRY(name)
PRODUCT_KERNEL(rows_of_64, 64, false, SOUND)
PRODUCT_KERNEL(rows_of_128, 128, false, SOUND)
PRODUCT_KERNEL(panels_of_64, 192, false, SOUND)
PRODUCT_KERNEL(panels_of_128, 256, false, SOUND)
PRODUCT_KERNEL(registers_by_64, 64, true, SOUND)
PRODUCT_KERNEL(registers_by_128, 128, true, SOUND)
PRODUCT_KERNEL(without_copy_wait, 64, false, NO_COPY_WAIT)
PRODUCT_KERNEL(announces_too_few, 64, false, TOO_FEW)
PRODUCT_KERNEL(odd_bytes, 64, false, ODD_BYTES)
PRODUCT_KERNEL(without_fence, 64, true, NO_FENCE)
PRODUCT_KERNEL(without_wait, 64, true, NO_WAIT)
PRODUCT_KERNEL(early_release, 64, true, EARLY_RELEASE)
PRODUCT_KERNEL(others_operand, 64, true, OTHERS_OPERAND)
PRODUCT_KERNEL(unknown_layout, 64, false, UNKNOWN_LAYOUT)

// Four numbers to a word and back: what `E4m3::pack` makes of them.
KERNEL(32, 1) packed(Global<const f32> from, Global<u32> to, i32 count) {
    for (i32 item = i32(thread_index()); item < count / 4; item += 32)
        store(to, item, E4m3::pack(load(from, item * 4), load(from, item * 4 + 1), load(from, item * 4 + 2), load(from, item * 4 + 3)));
}
ENTRY(packed)
