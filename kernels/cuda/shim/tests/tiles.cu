// Tiles by tensor maps: what is sound, and kernels with one fault each.
#include "ptx.cuh"

constexpr int THREADS = 64;
constexpr u32 BARRIER = 0, TILE = 1024;

// Copies `bytes` of shared memory from the tile's place on to memory, as words.
DEVICE void show(Global<u32> to, u32 bytes) {
    for (u32 word = thread_index(); word < bytes / 4; word += THREADS)
        store(to, word, load_shared_u32(shared_memory() + TILE + word * 4));
}
DEVICE void begin(u32 arrivals) {
    if (thread_index() == 0) {
        mbarrier_init(shared_memory() + BARRIER, arrivals);
        fence_mbarrier_init();
    }
    sync_threads();
}

// One tile of two dimensions, `shift` bytes into the pattern.
KERNEL(THREADS, 1) tile(const GRID_CONSTANT TensorMap map, Global<u32> to, i32 x, i32 y, u32 bytes) {
    begin(1);
    const u32 barrier = shared_memory() + BARRIER;
    if (thread_index() == 0) {
        mbarrier_arrive_expect(barrier, bytes);
        copy_tile(shared_memory() + TILE, map, x, y, barrier);
    }
    mbarrier_wait(barrier, 0);
    show(to, bytes);
}
ENTRY(tile)

KERNEL(THREADS, 1) tile_4d(const GRID_CONSTANT TensorMap map, Global<u32> to, i32 x, i32 y, i32 z, i32 w, u32 bytes) {
    begin(1);
    const u32 barrier = shared_memory() + BARRIER;
    if (thread_index() == 0) {
        mbarrier_arrive_expect(barrier, bytes);
        copy_tile(shared_memory() + TILE, map, x, y, z, w, barrier);
    }
    mbarrier_wait(barrier, 0);
    show(to, bytes);
}
ENTRY(tile_4d)

// A ring of two stages over `count` tiles: a producer in the second warp, consumers in the first, phases that alternate. Adds up
// what it read.
KERNEL(THREADS, 1) ring(const GRID_CONSTANT TensorMap map, Global<u32> to, i32 count, u32 bytes) {
    const u32 full = shared_memory(), empty = shared_memory() + 16, thread = thread_index();
    if (thread == 0) {
        for (u32 stage = 0; stage < 2; stage++) mbarrier_init(full + stage * 8, 1), mbarrier_init(empty + stage * 8, 32);
        fence_mbarrier_init();
    }
    sync_threads();
    if (thread == 32) {
        for (i32 tile = 0; tile < count; tile++) {
            const u32 stage = tile % 2;
            if (tile >= 2) mbarrier_wait(empty + stage * 8, (tile / 2 - 1) % 2);
            mbarrier_arrive_expect(full + stage * 8, bytes);
            copy_tile(shared_memory() + TILE + stage * bytes, map, 0, tile * 8, full + stage * 8);
        }
    }
    if (thread < 32) {
        u32 sum = 0;
        for (i32 tile = 0; tile < count; tile++) {
            const u32 stage = tile % 2;
            mbarrier_wait(full + stage * 8, tile / 2 % 2);
            for (u32 word = thread; word < bytes / 4; word += 32) sum += load_shared_u32(shared_memory() + TILE + stage * bytes + word * 4);
            mbarrier_arrive(empty + stage * 8);
        }
        store(to, thread, sum);
    }
}
ENTRY(ring)

// The next tile, on another barrier, over one that others still read.
KERNEL(THREADS, 1) ring_without_empty(const GRID_CONSTANT TensorMap map, Global<u32> to, i32 x, i32 y, u32 bytes) {
    if (thread_index() == 0) {
        mbarrier_init(shared_memory() + BARRIER, 1), mbarrier_init(shared_memory() + BARRIER + 8, 1);
        fence_mbarrier_init();
    }
    sync_threads();
    const u32 barrier = shared_memory() + BARRIER;
    if (thread_index() == 32) {
        mbarrier_arrive_expect(barrier, bytes);
        copy_tile(shared_memory() + TILE, map, x, y, barrier);
    }
    mbarrier_wait(barrier, 0);
    sync_threads();
    if (thread_index() < 32) show(to, bytes);
    if (thread_index() == 32) copy_tile(shared_memory() + TILE, map, x, y, barrier + 8);
}
ENTRY(ring_without_empty)

KERNEL(THREADS, 1) without_wait(const GRID_CONSTANT TensorMap map, Global<u32> to, i32 x, i32 y, u32 bytes) {
    begin(1);
    const u32 barrier = shared_memory() + BARRIER;
    if (thread_index() == 0) {
        mbarrier_arrive_expect(barrier, bytes);
        copy_tile(shared_memory() + TILE, map, x, y, barrier);
    }
    sync_threads();
    show(to, bytes);
}
ENTRY(without_wait)

// Waits for the phase before the copy's, which is over.
KERNEL(THREADS, 1) wrong_parity(const GRID_CONSTANT TensorMap map, Global<u32> to, i32 x, i32 y, u32 bytes) {
    begin(1);
    const u32 barrier = shared_memory() + BARRIER;
    if (thread_index() == 0) {
        mbarrier_arrive_expect(barrier, bytes);
        copy_tile(shared_memory() + TILE, map, x, y, barrier);
    }
    mbarrier_wait(barrier, 1);
    show(to, bytes);
}
ENTRY(wrong_parity)

KERNEL(THREADS, 1) expects(const GRID_CONSTANT TensorMap map, Global<u32> to, i32 x, i32 y, u32 bytes) {
    begin(1);
    const u32 barrier = shared_memory() + BARRIER;
    if (thread_index() == 0) {
        mbarrier_arrive_expect(barrier, bytes);
        copy_tile(shared_memory() + TILE, map, x, y, barrier);
    }
    mbarrier_wait(barrier, 0);
    store(to, thread_index(), 0u);
}
ENTRY(expects)

KERNEL(THREADS, 1) without_fence(const GRID_CONSTANT TensorMap map, Global<u32> to, i32 x, i32 y, u32 bytes) {
    const u32 barrier = shared_memory() + BARRIER;
    if (thread_index() == 0) {
        mbarrier_init(barrier, 1);
        mbarrier_arrive_expect(barrier, bytes);
        copy_tile(shared_memory() + TILE, map, x, y, barrier);
    }
    sync_threads();
    mbarrier_wait(barrier, 0);
    show(to, bytes);
}
ENTRY(without_fence)

KERNEL(THREADS, 1) misaligned(const GRID_CONSTANT TensorMap map, Global<u32> to, i32 x, i32 y, u32 bytes) {
    begin(1);
    const u32 barrier = shared_memory() + BARRIER;
    if (thread_index() == 0) {
        mbarrier_arrive_expect(barrier, bytes);
        copy_tile(shared_memory() + TILE + 64, map, x, y, barrier);
    }
    mbarrier_wait(barrier, 0);
    show(to, bytes);
}
ENTRY(misaligned)
