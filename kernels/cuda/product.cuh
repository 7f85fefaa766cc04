// C = A B in f32 on the ordinary multipliers, for kernels that need f32 or are meant to be plain: a block of 256 threads
// computes 64 x 64 numbers, a thread 4 x 4, from steps of 16 through shared memory.
#pragma once

#include "geometry.cuh"

constexpr int PRODUCT_TILE = 64, PRODUCT_STEP = 16, PRODUCT_THREADS = 256;
// A step of A and of B, transposed; rows are padded to spread them over the banks.
constexpr int PRODUCT_PITCH = (PRODUCT_TILE + 4) * 4, PRODUCT_BYTES = 2 * PRODUCT_STEP * PRODUCT_PITCH;

// The first row and column of C that this thread computes.
DEVICE int product_row() { return thread_index() / 16 * 4; }
DEVICE int product_column() { return thread_index() % 16 * 4; }

// c += A B over `depth`; `a(row, k)` and `b(k, column)` give elements, which are 0 outside of the matrices. Neighbouring threads
// ask for neighbouring k of A, and of B for neighbouring columns or, where `B_BY_COLUMN` is false, neighbouring k.
template <bool B_BY_COLUMN, class A, class B> DEVICE void multiply_add(f32 (&c)[4][4], int depth, A a, B b) {
    const u32 thread = thread_index(), shared_a = shared_memory(), shared_b = shared_a + PRODUCT_STEP * PRODUCT_PITCH;
    for (int start = 0; start < depth; start += PRODUCT_STEP) {
        sync_threads();
        for (u32 item = thread; item < PRODUCT_TILE * PRODUCT_STEP; item += PRODUCT_THREADS) {
            u32 k = item % PRODUCT_STEP, row = item / PRODUCT_STEP;
            store_shared(shared_a + k * PRODUCT_PITCH + row * 4, int(start + k) < depth ? a(row, start + k) : 0.0f);
            u32 column = row;
            if (B_BY_COLUMN) column = item % PRODUCT_TILE, k = item / PRODUCT_TILE;
            store_shared(shared_b + k * PRODUCT_PITCH + column * 4, int(start + k) < depth ? b(start + k, column) : 0.0f);
        }
        sync_threads();
#pragma unroll
        for (int k = 0; k < PRODUCT_STEP; k++) {
            const Vec4 x = load_shared_vec4(shared_a + k * PRODUCT_PITCH + product_row() * 4);
            const Vec4 y = load_shared_vec4(shared_b + k * PRODUCT_PITCH + product_column() * 4);
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    c[i][j] = fused_multiply_add(bits_to_f32(x.word[i]), bits_to_f32(y.word[j]), c[i][j]);
        }
    }
}
