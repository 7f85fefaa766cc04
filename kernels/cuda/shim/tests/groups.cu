// Products of warpgroups: what is sound, and kernels with one fault each.
#include "hopper.cuh"

constexpr int THREADS = 256, COLUMNS = 128, INNER = 64;
using ATile = Tile<64, INNER>;
using BTile = Tile<COLUMNS, INNER>;
using TransposedA = Tile<INNER, 64>;
using TransposedB = Tile<INNER, COLUMNS>;

// Element `index` of a matrix in memory, as f16.
template <class Any> DEVICE void fill(Any tile, Global<const u16> from, int rows, int columns) {
    for (int item = thread_index(); item < rows * columns / 8; item += THREADS)
        store_shared_vec4(tile.chunk(item / (columns / 8), item % (columns / 8)), load_vec4(from, item * 8));
}
DEVICE void show(Global<f32> to, const f32 (&d)[COLUMNS / 8][4]) {
    const u32 thread = thread_index(), row = thread / 32 * 16 + thread % 32 / 4;
    for (int n = 0; n < COLUMNS / 8; n++)
        for (int i = 0; i < 4; i++) store(to, (row + i / 2 * 8) * COLUMNS + n * 8 + thread % 4 * 2 + i % 2, d[n][i]);
}

// d = A B of 64 x 64 and 64 x 128, twice: the second adds to the first.
template <bool a_is_transposed, bool b_is_transposed> DEVICE void product(Global<const u16> a, Global<const u16> b, Global<f32> to) {
    const ATile a_tile{shared_memory()};
    const TransposedA a_transposed{shared_memory()};
    const BTile b_tile{shared_memory() + ATile::BYTES};
    const TransposedB b_transposed{b_tile.base};
    if (a_is_transposed) fill(a_transposed, a, INNER, 64);
    else fill(a_tile, a, 64, INNER);
    if (b_is_transposed) fill(b_transposed, b, INNER, COLUMNS);
    else fill(b_tile, b, COLUMNS, INNER);
    fence_async_shared();
    sync_threads();
    if (thread_index() >= 128) return;
    f32 d[COLUMNS / 8][4];
    pin(d);
    fence_products();
    for (int turn = 0; turn < 2; turn++) {
        for (u32 step = 0; step < INNER / 16; step++)
            F16::multiply_tiles<COLUMNS, a_is_transposed, b_is_transposed>(
                d, matrix_descriptor(a_tile.base + (a_is_transposed ? step * 2048 : step * 32), 0),
                matrix_descriptor(b_tile.base + (b_is_transposed ? step * 2048 : step * 32), b_transposed.PANEL_BYTES),
                turn > 0 || step > 0);
        commit_products();
    }
    finish_products<0>(d);
    show(to, d);
}
KERNEL(THREADS, 1) rows_by_rows(Global<const u16> a, Global<const u16> b, Global<f32> to) { product<false, false>(a, b, to); }
ENTRY(rows_by_rows)
KERNEL(THREADS, 1) rows_by_columns(Global<const u16> a, Global<const u16> b, Global<f32> to) { product<false, true>(a, b, to); }
ENTRY(rows_by_columns)
KERNEL(THREADS, 1) columns_by_rows(Global<const u16> a, Global<const u16> b, Global<f32> to) { product<true, false>(a, b, to); }
ENTRY(columns_by_rows)
KERNEL(THREADS, 1) columns_by_columns(Global<const u16> a, Global<const u16> b, Global<f32> to) { product<true, true>(a, b, to); }
ENTRY(columns_by_columns)

// The same with A in registers, and a fault of each kind.
enum Fault { SOUND, NO_FENCE, NO_PROXY_FENCE, NO_WAIT, EARLY_RELEASE, OTHERS_OPERAND };
template <Fault fault> DEVICE void registers(Global<const u16> a, Global<const u16> b, Global<f32> to) {
    const BTile b_tile{shared_memory()};
    fill(b_tile, b, COLUMNS, INNER);
    if (fault != NO_PROXY_FENCE) fence_async_shared();
    sync_threads();
    const u32 thread = thread_index(), row = thread % 128 / 32 * 16 + thread % 32 / 4;
    if (thread >= 128) {
        // Overwrites B when the others say that they have read it.
        sync_named(1, THREADS);
        store_shared(b_tile.chunk(thread % 128, 0), 0u);
        return;
    }
    f32 d[COLUMNS / 8][4];
    u32 fragments[INNER / 16][4];
    for (u32 step = 0; step < INNER / 16; step++)
        for (u32 i = 0; i < 4; i++) {
            const i64 at = (row + i % 2 * 8) * INNER + step * 16 + i / 2 * 8 + thread % 4 * 2;
            fragments[step][i] = load(a, at) | u32(load(a, at + 1)) << 16;
        }
    pin(d);
    if (fault != NO_FENCE) fence_products();
    for (u32 step = 0; step < INNER / 16; step++) {
        const u32 lanes_own = fault == OTHERS_OPERAND ? thread % 2 * 64 : 0;
        F16::multiply_registers<COLUMNS, false>(d, fragments[step], matrix_descriptor(b_tile.base + step * 32 + lanes_own, 0), step > 0);
    }
    commit_products();
    if (fault == EARLY_RELEASE) arrive_named(1, THREADS);
    if (fault == NO_WAIT) show(to, d);
    finish_products<0>(d);
    if (fault != EARLY_RELEASE) arrive_named(1, THREADS);
    if (fault != NO_WAIT) show(to, d);
}
#define REGISTERS_KERNEL(name, fault)                                                                                    \
    KERNEL(THREADS, 1) name(Global<const u16> a, Global<const u16> b, Global<f32> to) { registers<fault>(a, b, to); }     \
    ENTRY(name)
REGISTERS_KERNEL(from_registers, SOUND)
REGISTERS_KERNEL(without_fence, NO_FENCE)
REGISTERS_KERNEL(without_proxy_fence, NO_PROXY_FENCE)
REGISTERS_KERNEL(without_wait, NO_WAIT)
REGISTERS_KERNEL(early_release, EARLY_RELEASE)
REGISTERS_KERNEL(others_operand, OTHERS_OPERAND)

// Nobody waits for a product.
KERNEL(THREADS, 1) abandoned(Global<const u16>, Global<const u16> b, Global<f32>) {
    const BTile b_tile{shared_memory()};
    fill(b_tile, b, COLUMNS, INNER);
    fence_async_shared();
    sync_threads();
    f32 d[COLUMNS / 8][4];
    fence_products();
    F16::multiply_tiles<COLUMNS, false, false>(d, matrix_descriptor(b_tile.base, 0), matrix_descriptor(b_tile.base, 0), false);
    commit_products();
}
ENTRY(abandoned)

// 384 threads have 168 registers each: one warpgroup gives back what the others take, or does not.
KERNEL(384, 1) hand_over(Global<const u16>, Global<const u16>, Global<f32> to) {
    if (thread_index() < 128) give_back_registers<40>();
    else take_registers<232>();
    store(to, thread_index(), 1.0f);
}
ENTRY(hand_over)
KERNEL(384, 1) take_too_many(Global<const u16>, Global<const u16>, Global<f32>) {
    if (thread_index() >= 128) take_registers<232>();
}
ENTRY(take_too_many)
KERNEL(384, 1) give_back_upwards(Global<const u16>, Global<const u16>, Global<f32>) { give_back_registers<232>(); }
ENTRY(give_back_upwards)
