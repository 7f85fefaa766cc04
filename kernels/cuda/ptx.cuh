// Every instruction that C++ has no word for, each in a function: memory accesses, asynchronous copies, warp shuffles,
// matrix loads, barriers, fast exponentials; products of matrices are in elements.cuh, which is part of this header.
//
// Under NVRTC these are PTX (PTX ISA 8.0, section 9.7). Under a host compiler, `shim/shim.h` defines the same functions
// with the hardware's semantics, so a kernel that touches memory and other threads only through this header runs and is
// checked on a CPU. A kernel therefore dereferences no pointer and knows no `__shared__` variable: global memory is a
// `Global<T>`, shared memory a 32-bit address from `shared_memory()`.
#pragma once

#ifdef ATTN_HOST_SHIM
#include "shim/shim.h"
#else

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;
typedef float f32;

#define DEVICE __device__ __forceinline__
// A kernel of a block of at most `threads`, of which `blocks` should fit a multiprocessor.
#define KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
// A parameter whose address a kernel takes, as copies of tiles take a tensor map's.
#define GRID_CONSTANT __grid_constant__
// Names a kernel to the host shim.
#define ENTRY(name)

// A pointer to global memory.
template <class T> struct Global {
    T *pointer;
    DEVICE bool exists() const { return pointer != nullptr; }
    DEVICE Global operator+(i64 elements) const { return Global{pointer + elements}; }
};

struct alignas(16) Vec4 {
    u32 word[4];
};

// The thread's number in its block, and the block's in the grid. Read again at each call, which takes an instruction where
// keeping them takes a register.
DEVICE u32 thread_index() {
    u32 index;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
    return index;
}
DEVICE u32 block_index() {
    u32 index;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(index));
    return index;
}
DEVICE u32 block_index_y() { return blockIdx.y; }
DEVICE u32 block_index_z() { return blockIdx.z; }
DEVICE u32 grid_size() { return gridDim.x; }

// The same value, of which the compiler knows nothing: what is computed from it inside a loop is computed there, where it
// would else be kept in registers that the loop has better use for.
DEVICE u32 opaque(u32 value) {
    asm volatile("" : "+r"(value));
    return value;
}

// ---- Clocks ---------------------------------------------------------------------------------------------------------

// Nanoseconds of a clock that all multiprocessors share. It ticks in steps of 32 ns to 1 us, as the device and driver will.
DEVICE u64 timer_ns() {
    u64 now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)::"memory");
    return now;
}
// Cycles of the running multiprocessor, and its number.
DEVICE u64 clock_cycles() {
    u64 now;
    asm volatile("mov.u64 %0, %%clock64;" : "=l"(now)::"memory");
    return now;
}
DEVICE u32 multiprocessor_index() {
    u32 index;
    asm volatile("mov.u32 %0, %%smid;" : "=r"(index));
    return index;
}

// ---- Global memory --------------------------------------------------------------------------------------------------

// A word that the host may change while the kernel runs.
DEVICE u32 load_volatile(Global<const u32> p, i64 index) {
    return *static_cast<const volatile u32 *>(p.pointer + index);
}
DEVICE u8 load(Global<const u8> p, i64 index) { return __ldg(p.pointer + index); }
DEVICE u16 load(Global<const u16> p, i64 index) { return __ldg(p.pointer + index); }
DEVICE u32 load(Global<const u32> p, i64 index) { return __ldg(p.pointer + index); }
DEVICE i32 load(Global<const i32> p, i64 index) { return __ldg(p.pointer + index); }
DEVICE f32 load(Global<const f32> p, i64 index) { return __ldg(p.pointer + index); }
// What this kernel may itself have written.
DEVICE f32 load(Global<f32> p, i64 index) { return p.pointer[index]; }
// A structure of whole words.
template <class T> DEVICE T load_struct(Global<const T> p, i64 index) { return p.pointer[index]; }
// 16 bytes from element `index`, which is aligned to 16 bytes.
template <class T> DEVICE Vec4 load_vec4(Global<const T> p, i64 index) {
    uint4 v = __ldg(reinterpret_cast<const uint4 *>(p.pointer + index));
    return Vec4{{v.x, v.y, v.z, v.w}};
}
template <class T> DEVICE void store(Global<T> p, i64 index, T value) { p.pointer[index] = value; }
// Stores 16 bytes at element `index`, which is aligned to 16 bytes.
template <class T> DEVICE void store_vec4(Global<T> p, i64 index, Vec4 v) {
    *reinterpret_cast<uint4 *>(p.pointer + index) = make_uint4(v.word[0], v.word[1], v.word[2], v.word[3]);
}

// ---- Sums in global memory ------------------------------------------------------------------------------------------

// Adds to an element in memory, whoever else does at the same time: in an order that differs from run to run.
DEVICE void reduce_add(Global<f32> p, i64 index, f32 value) {
    asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(p.pointer + index), "f"(value) : "memory");
}
// The same of the four elements from `index`, which is aligned to 16 bytes: one instruction where `ADDS_IN_FOURS`.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr bool ADDS_IN_FOURS = true;
DEVICE void reduce_add_4(Global<f32> p, i64 index, const f32 (&x)[4]) {
    asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(p.pointer + index), "f"(x[0]), "f"(x[1]),
                 "f"(x[2]), "f"(x[3])
                 : "memory");
}
#else
constexpr bool ADDS_IN_FOURS = false;
DEVICE void reduce_add_4(Global<f32> p, i64 index, const f32 (&x)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) reduce_add(p, index + i, x[i]);
}
#endif

// ---- Shared memory --------------------------------------------------------------------------------------------------

// The address of the launch's dynamic shared memory, aligned to 1024 bytes.
DEVICE u32 shared_memory() {
    extern __shared__ __align__(1024) u8 dynamic_shared_memory[];
    return static_cast<u32>(__cvta_generic_to_shared(dynamic_shared_memory));
}
DEVICE f32 load_shared_f32(u32 address) {
    f32 value;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
    return value;
}
DEVICE u32 load_shared_u32(u32 address) {
    u32 value;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
    return value;
}
DEVICE Vec4 load_shared_vec4(u32 address) {
    Vec4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
                 : "r"(address)
                 : "memory");
    return v;
}
DEVICE void store_shared(u32 address, f32 value) {
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
}
DEVICE void store_shared(u32 address, u32 value) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}
DEVICE void store_shared_vec4(u32 address, Vec4 v) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.word[0]), "r"(v.word[1]),
                 "r"(v.word[2]), "r"(v.word[3])
                 : "memory");
}

// ---- Asynchronous copies --------------------------------------------------------------------------------------------

// Copies 16 bytes from element `index` (aligned to 16 bytes) to shared memory; zeros where not `is_valid`, and then
// nothing is read. Part of the thread's next `copy_async_commit`.
template <class T> DEVICE void copy_async_16(u32 address, Global<const T> p, i64 index, bool is_valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(p.pointer + (is_valid ? index : 0)),
                 "r"(is_valid ? 16 : 0)
                 : "memory");
}
// Closes a group of this thread's copies.
DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most the `in_flight` youngest of this thread's groups are not complete. Other threads see the copies
// after a barrier.
template <int in_flight> DEVICE void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(in_flight) : "memory");
}

// ---- Barriers -------------------------------------------------------------------------------------------------------

DEVICE void sync_threads() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }
// A barrier of `threads` (whole warps) of a block; 0 is `sync_threads`'s.
DEVICE void sync_named(u32 barrier, u32 threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
// Arrives at it without waiting.
DEVICE void arrive_named(u32 barrier, u32 threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// An mbarrier is 8 bytes of shared memory: a phase completes when `arrivals` threads have arrived and no bytes that they
// announced are missing.
DEVICE void mbarrier_init(u32 address, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address), "r"(arrivals) : "memory");
}
DEVICE void mbarrier_arrive(u32 address) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0]; }" ::"r"(address) : "memory");
}
// Waits for the end of the phase of this parity (0, 1, 0, ...).
DEVICE void mbarrier_wait(u32 address, u32 parity) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    // Sleeps meanwhile, which leaves the issue slots to those who compute.
    asm volatile("{ .reg .pred done;\n"
                 "WAIT: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra WAIT; }" ::"r"(address), "r"(parity) : "memory");
#else
    asm volatile("{ .reg .pred done;\n"
                 "WAIT: mbarrier.test_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra WAIT; }" ::"r"(address), "r"(parity) : "memory");
#endif
}

// ---- Tiles (compute capability 9.0) -----------------------------------------------------------------------------------

// What `cuTensorMapEncodeTiled` of the driver makes: a tensor, and the box that one copy brings. A parameter
// `const GRID_CONSTANT TensorMap`.
struct alignas(64) TensorMap {
    u64 opaque[16];
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
// Arrives, and announces bytes that copies will bring to this phase.
DEVICE void mbarrier_arrive_expect(u32 address, u32 bytes) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1; }" ::"r"(address), "r"(bytes)
                 : "memory");
}
// Makes this thread's initialisations of mbarriers visible to the engine that copies tiles.
DEVICE void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// Starts the copy of a tile to shared memory (aligned to 128 bytes; where it is swizzled, to its pattern of up to 1024): the box
// of the map at these coordinates, innermost first, zeros outside of the tensor. Its bytes come to the mbarrier. One thread does
// this.
DEVICE void copy_tile(u32 address, const TensorMap &map, i32 x, i32 y, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
                     "r"(address), "l"(&map), "r"(x), "r"(y), "r"(barrier)
                 : "memory");
}
DEVICE void copy_tile(u32 address, const TensorMap &map, i32 x, i32 y, i32 z, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], "
                 "[%5];" ::"r"(address), "l"(&map), "r"(x), "r"(y), "r"(z), "r"(barrier)
                 : "memory");
}
DEVICE void copy_tile(u32 address, const TensorMap &map, i32 x, i32 y, i32 z, i32 w, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], "
                 "[%6];" ::"r"(address), "l"(&map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(barrier)
                 : "memory");
}
// The same of `bytes` that lie one after another, a multiple of 16, from element `index` (aligned to 16 bytes) on.
template <class T> DEVICE void copy_bytes(u32 address, Global<const T> p, i64 index, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(address),
                 "l"(p.pointer + index), "r"(bytes), "r"(barrier)
                 : "memory");
}
#endif

// ---- Warps ----------------------------------------------------------------------------------------------------------

// All 32 lanes take part in each of these.
DEVICE f32 shuffle_xor(f32 value, u32 mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DEVICE f32 shuffle(f32 value, u32 lane) { return __shfl_sync(0xffffffffu, value, lane); }
DEVICE i32 shuffle(i32 value, u32 lane) { return __shfl_sync(0xffffffffu, value, lane); }
DEVICE i64 shuffle(i64 value, u32 lane) { return __shfl_sync(0xffffffffu, value, lane); }
// Whether any lane's value is true.
DEVICE bool any_lane(bool value) { return __any_sync(0xffffffffu, value); }

// Four 8 x 8 matrices of 16-bit elements from shared memory. Lanes 8 i .. 8 i + 7 give the addresses of the rows of matrix
// i (16 bytes each, aligned). Lane l gets elements 2 (l mod 4) and the next of row l / 4 of matrix i in register i.
DEVICE void load_matrices(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
// The same of the transposed matrices.
DEVICE void load_matrices_transposed(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// ---- Arithmetic -----------------------------------------------------------------------------------------------------

// 2^x; relative error 2^-22, results below 2^-126 are 0.
DEVICE f32 exp2_fast(f32 x) {
    f32 y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// log2 x; absolute error 2^-22 near 1, relative 2^-22 elsewhere.
DEVICE f32 log2_fast(f32 x) {
    f32 y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// 1 / x; relative error 2^-23.
DEVICE f32 reciprocal_fast(f32 x) {
    f32 y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE f32 fused_multiply_add(f32 a, f32 b, f32 c) { return __fmaf_rn(a, b, c); }
DEVICE f32 max_f32(f32 a, f32 b) { return fmaxf(a, b); }
DEVICE f32 bits_to_f32(u32 bits) { return __uint_as_float(bits); }
DEVICE u32 f32_to_bits(f32 x) { return __float_as_uint(x); }
// The bytes of a word in another order: byte i of the result is the one that hexadecimal digit i of `order` numbers.
DEVICE u32 permute_bytes(u32 word, u32 order) { return __byte_perm(word, 0, order); }

#include "elements.cuh"

#endif
