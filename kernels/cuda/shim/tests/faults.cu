// Kernels with one fault each, which the shim has to find, and their sound counterparts, which it has to let pass.
#include "ptx.cuh"

constexpr int THREADS = 64;

// ---- Asynchronous copies --------------------------------------------------------------------------------------------

KERNEL(THREADS, 1) copy_sound(Global<const f32> from, Global<f32> to) {
    const u32 thread = thread_index(), at = shared_memory() + thread * 16;
    copy_async_16(at, from, thread * 4, true);
    copy_async_commit();
    copy_async_wait<0>();
    sync_threads();
    // Another thread's copy, and so another warp's.
    store(to, thread, load_shared_f32(shared_memory() + (THREADS - 1 - thread) * 16));
}
ENTRY(copy_sound)

KERNEL(THREADS, 1) copy_without_wait(Global<const f32> from, Global<f32> to) {
    const u32 thread = thread_index(), at = shared_memory() + thread * 16;
    copy_async_16(at, from, thread * 4, true);
    copy_async_commit();
    sync_threads();
    store(to, thread, load_shared_f32(at));
}
ENTRY(copy_without_wait)

// Two groups in flight, and a wait that leaves the second.
KERNEL(THREADS, 1) copy_waits_for_too_few(Global<const f32> from, Global<f32> to) {
    const u32 thread = thread_index(), at = shared_memory() + thread * 32;
    for (int group = 0; group < 2; group++) {
        copy_async_16(at + group * 16, from, thread * 4, true);
        copy_async_commit();
    }
    copy_async_wait<1>();
    sync_warp();
    store(to, thread, load_shared_f32(at));
    store(to, thread, load_shared_f32(at + 16));
}
ENTRY(copy_waits_for_too_few)

// Copies that were never committed are no part of what a wait waits for.
KERNEL(THREADS, 1) copy_without_commit(Global<const f32> from, Global<f32> to) {
    const u32 thread = thread_index(), at = shared_memory() + thread * 16;
    copy_async_16(at, from, thread * 4, true);
    copy_async_wait<0>();
    store(to, thread, load_shared_f32(at));
}
ENTRY(copy_without_commit)

// The thread's own wait does not make the copies of others visible.
KERNEL(THREADS, 1) copy_without_barrier(Global<const f32> from, Global<f32> to) {
    const u32 thread = thread_index(), at = shared_memory() + thread * 16;
    copy_async_16(at, from, thread * 4, true);
    copy_async_commit();
    copy_async_wait<0>();
    if (thread >= 32) store(to, thread, load_shared_f32(at - 32 * 16));
}
ENTRY(copy_without_barrier)

// The next copy into a tile that another thread still reads: it would go unnoticed where copies complete late.
KERNEL(THREADS, 1) copy_over_a_tile_in_use(Global<const f32> from, Global<f32> to) {
    const u32 thread = thread_index(), at = shared_memory() + thread * 16;
    copy_async_16(at, from, thread * 4, true);
    copy_async_commit();
    copy_async_wait<0>();
    sync_threads();
    if (thread < 32)
        store(to, thread, load_shared_f32(at + 32 * 16));
    else
        copy_async_16(at, from, 0, true);
}
ENTRY(copy_over_a_tile_in_use)

// ---- Addresses ------------------------------------------------------------------------------------------------------

KERNEL(THREADS, 1) read_outside(Global<const f32> from, Global<f32> to) {
    const u32 thread = thread_index();
    store(to, thread, load(from, 4 * THREADS - THREADS + 1 + thread));
}
ENTRY(read_outside)

KERNEL(THREADS, 1) write_outside(Global<const f32>, Global<f32> to) { store(to, i64(thread_index()) - 1, 1.0f); }
ENTRY(write_outside)

KERNEL(THREADS, 1) write_to_an_input(Global<const f32> from, Global<f32>) {
    store(Global<f32>{const_cast<f32 *>(from.pointer)}, 0, 1.0f);
}
ENTRY(write_to_an_input)

// Every thread adds to the same sums.
KERNEL(THREADS, 1) sums_sound(Global<const f32> from, Global<f32> to) {
    const u32 thread = thread_index();
    if (thread < 8) store(to, thread, 0.0f);
    sync_threads();
    const f32 x = load(from, thread), four[4] = {x, 1.0f, 2.0f, 3.0f};
    reduce_add(to, 0, x);
    reduce_add_4(to, 4, four);
}
ENTRY(sums_sound)

KERNEL(THREADS, 1) misaligned_sums(Global<const f32>, Global<f32> to) {
    const f32 four[4] = {};
    reduce_add_4(to, 2, four);
}
ENTRY(misaligned_sums)

KERNEL(THREADS, 1) sum_outside(Global<const f32>, Global<f32> to) { reduce_add(to, 128, 1.0f); }
ENTRY(sum_outside)

KERNEL(THREADS, 1) misaligned_vector(Global<const f32> from, Global<f32> to) {
    store(to, 0, bits_to_f32(load_vec4(from, 2).word[0]));
}
ENTRY(misaligned_vector)

KERNEL(THREADS, 1) misaligned_copy(Global<const f32> from, Global<f32>) { copy_async_16(shared_memory() + 8, from, 0, true); }
ENTRY(misaligned_copy)

KERNEL(THREADS, 1) shared_outside(Global<const f32>, Global<f32>) { store_shared(shared_memory() + 4096 - 4 + thread_index() * 4, 1.0f); }
ENTRY(shared_outside)

KERNEL(THREADS, 1) shared_uninitialised(Global<const f32>, Global<f32> to) { store(to, 0, load_shared_f32(shared_memory())); }
ENTRY(shared_uninitialised)

KERNEL(THREADS, 1) matrices_uninitialised(Global<const f32>, Global<f32>) {
    u32 r[4];
    if (thread_index() % 32 < 31) store_shared_vec4(shared_memory() + thread_index() * 16, Vec4{{1, 2, 3, 4}});
    sync_warp();
    load_matrices(r, shared_memory() + thread_index() * 16);
}
ENTRY(matrices_uninitialised)

// ---- Races ----------------------------------------------------------------------------------------------------------

KERNEL(THREADS, 1) exchange_sound(Global<const f32>, Global<f32> to) {
    const u32 thread = thread_index();
    for (int turn = 0; turn < 3; turn++) {
        store_shared(shared_memory() + thread * 4, f32(thread));
        sync_threads();
        store(to, thread, load_shared_f32(shared_memory() + (THREADS - 1 - thread) * 4));
        sync_threads();
    }
    store_shared(shared_memory() + thread * 4, 7.0f);
    sync_warp();
    store(to, thread, load_shared_f32(shared_memory() + (thread ^ 1) * 4));
}
ENTRY(exchange_sound)

KERNEL(THREADS, 1) read_after_write_in_a_warp(Global<const f32>, Global<f32> to) {
    const u32 thread = thread_index();
    store_shared(shared_memory() + thread * 4, 1.0f);
    // A shuffle brings the lanes together and orders no memory.
    shuffle_xor(1.0f, 1);
    store(to, thread, load_shared_f32(shared_memory() + (thread ^ 1) * 4));
}
ENTRY(read_after_write_in_a_warp)

KERNEL(THREADS, 1) read_after_write_across_warps(Global<const f32>, Global<f32> to) {
    const u32 thread = thread_index();
    store_shared(shared_memory() + thread * 4, 1.0f);
    sync_warp();
    if (thread >= 32) store(to, thread, load_shared_f32(shared_memory() + (thread - 32) * 4));
}
ENTRY(read_after_write_across_warps)

KERNEL(THREADS, 1) write_after_read(Global<const f32>, Global<f32> to) {
    const u32 thread = thread_index(), at = shared_memory() + thread * 4;
    store_shared(at, 1.0f);
    sync_threads();
    if (thread < 32)
        store(to, thread, load_shared_f32(at + 32 * 4));
    else
        store_shared(at, 2.0f);
}
ENTRY(write_after_read)

KERNEL(THREADS, 1) write_after_write(Global<const f32>, Global<f32>) { store_shared(shared_memory(), f32(thread_index())); }
ENTRY(write_after_write)

// ---- Barriers and warps ---------------------------------------------------------------------------------------------

KERNEL(THREADS, 1) barrier_missed(Global<const f32>, Global<f32>) {
    if (thread_index() != 5) sync_threads();
}
ENTRY(barrier_missed)

KERNEL(THREADS, 1) barriers_of_two_branches(Global<const f32>, Global<f32>) {
    if (thread_index() < 32)
        sync_threads();
    else
        sync_threads();
}
ENTRY(barriers_of_two_branches)

KERNEL(THREADS, 1) shuffle_of_half_a_warp(Global<const f32>, Global<f32> to) {
    if (thread_index() % 32 < 16) store(to, 0, shuffle_xor(1.0f, 1));
}
ENTRY(shuffle_of_half_a_warp)

KERNEL(THREADS, 1) lanes_in_two_instructions(Global<const f32>, Global<f32> to) {
    if (thread_index() % 2 == 0)
        store(to, 0, shuffle_xor(1.0f, 2));
    else
        sync_warp();
}
ENTRY(lanes_in_two_instructions)

KERNEL(THREADS, 1) named_barriers_sound(Global<const f32>, Global<f32> to) {
    // Each warp by itself, then both.
    const u32 thread = thread_index();
    for (u32 turn = 0; turn <= thread / 32; turn++) sync_named(1 + thread / 32, 32);
    store_shared(shared_memory() + thread * 4, f32(thread));
    sync_named(3, THREADS);
    store(to, thread, load_shared_f32(shared_memory() + (thread ^ 32) * 4));
}
ENTRY(named_barriers_sound)

// ---- mbarriers ------------------------------------------------------------------------------------------------------

// Warp 0 produces, warp 1 consumes and hands the buffer back, four times.
KERNEL(THREADS, 1) producer_and_consumer(Global<const f32> from, Global<f32> to) {
    const u32 thread = thread_index(), full = shared_memory(), empty = full + 8, buffer = full + 16;
    if (thread == 0) {
        mbarrier_init(full, 32);
        mbarrier_init(empty, 32);
    }
    sync_threads();
    for (u32 turn = 0; turn < 4; turn++) {
        if (thread < 32) {
            if (turn > 0) mbarrier_wait(empty, (turn - 1) % 2);
            store_shared(buffer + thread * 4, load(from, thread) + f32(turn));
            mbarrier_arrive(full);
        } else {
            mbarrier_wait(full, turn % 2);
            store(to, thread, load_shared_f32(buffer + (63 - thread) * 4));
            mbarrier_arrive(empty);
        }
    }
}
ENTRY(producer_and_consumer)

// The consumer reads what the producer writes again without having heard from it.
KERNEL(THREADS, 1) producer_does_not_wait(Global<const f32> from, Global<f32> to) {
    const u32 thread = thread_index(), full = shared_memory(), buffer = full + 16;
    if (thread == 0) mbarrier_init(full, 32);
    sync_threads();
    if (thread < 32) {
        mbarrier_wait(full, 0);
        store(to, thread, load_shared_f32(buffer + thread * 4));
    } else {
        store_shared(buffer + (thread - 32) * 4, load(from, thread));
        mbarrier_arrive(full);
        // The consumer gets its turn here, and says nothing.
        sync_named(1, 32);
        if (thread == 63) store_shared(buffer, 1.0f);
    }
}
ENTRY(producer_does_not_wait)

KERNEL(THREADS, 1) mbarrier_before_its_initialisation_is_visible(Global<const f32>, Global<f32>) {
    if (thread_index() == 0) mbarrier_init(shared_memory(), THREADS);
    mbarrier_arrive(shared_memory());
}
ENTRY(mbarrier_before_its_initialisation_is_visible)

KERNEL(THREADS, 1) mbarrier_that_nobody_completes(Global<const f32>, Global<f32>) {
    if (thread_index() == 0) mbarrier_init(shared_memory(), THREADS + 1);
    sync_threads();
    mbarrier_arrive(shared_memory());
    mbarrier_wait(shared_memory(), 0);
}
ENTRY(mbarrier_that_nobody_completes)

// ---- Matrices -------------------------------------------------------------------------------------------------------

// C = A B of 16 x 16 and 16 x 8 by the fragments that ldmatrix gives: A by rows at 0, B by rows (transposed on loading) at 512.
template <class Element> DEVICE void product(Global<const f32> from, Global<f32> to) {
    const u32 lane = thread_index();
    if (lane >= 32) return;
    for (u32 item = lane; item < 128; item += 32)
        store_shared(shared_memory() + item * 4, Element::pack(load(from, 2 * item % 256), load(from, (2 * item + 1) % 256)));
    // B is the first 8 columns of the transposed A.
    for (u32 item = lane; item < 64; item += 32) {
        const u32 row = item / 4, column = item % 4 * 2;
        store_shared(shared_memory() + 512 + item * 4, Element::pack(load(from, column * 16 + row), load(from, (column + 1) * 16 + row)));
    }
    sync_warp();
    u32 a[4], b[4];
    load_matrices(a, shared_memory() + lane % 16 * 32 + lane / 16 * 16);
    // Matrices 0 and 1 are B's two halves; 2 and 3 repeat them.
    load_matrices_transposed(b, shared_memory() + 512 + lane % 16 * 16);
    f32 c[4] = {};
    Element::multiply(c, a, b[0], b[1]);
    for (u32 i = 0; i < 4; i++) store(to, (lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2, c[i]);
}
KERNEL(THREADS, 1) product_bf16(Global<const f32> from, Global<f32> to) { product<Bf16>(from, to); }
ENTRY(product_bf16)
KERNEL(THREADS, 1) product_f16(Global<const f32> from, Global<f32> to) { product<F16>(from, to); }
ENTRY(product_f16)

KERNEL(THREADS, 1) typed_parameters(Global<const f32>, Global<f32> to, u32 a, i32 b, f32 c, u64 d) {
    if (thread_index() == 0) store(to, 0, f32(a) + f32(b) + c + f32(d));
}
ENTRY(typed_parameters)
