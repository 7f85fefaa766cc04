// What ptx.cuh promises, on this machine.
#pragma once

#include <time.h>

#include "barriers.h"
#include "copies.h"
#include "launch.h"
#include "tiles.h"
#include "warps.h"

inline u32 thread_index() { return shim::machine->current->index.x; }
inline u32 block_index() { return shim::machine->block.x; }
inline u32 block_index_y() { return shim::machine->block.y; }
inline u32 block_index_z() { return shim::machine->block.z; }
inline u32 grid_size() { return shim::machine->grid.x; }

inline u32 opaque(u32 value) { return value; }

// The host's clock, whose cycles are its nanoseconds; every block is on the multiprocessor of its number.
inline u64 timer_ns() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return u64(now.tv_sec) * 1000000000 + u64(now.tv_nsec);
}
inline u64 clock_cycles() { return timer_ns(); }
inline u32 multiprocessor_index() { return shim::machine->block.x; }

template <class T> inline T load(Global<T> p, i64 index, LINE) {
    shim::check_global(p.pointer + index, sizeof(T), sizeof(T), false, line);
    return p.pointer[index];
}
inline u32 load_volatile(Global<const u32> p, i64 index, LINE) {
    shim::check_global(p.pointer + index, 4, 4, false, line);
    return __atomic_load_n(p.pointer + index, __ATOMIC_ACQUIRE);
}
template <class T> inline T load_struct(Global<const T> p, i64 index, LINE) {
    static_assert(sizeof(T) % 4 == 0, "a structure of whole words");
    shim::check_global(p.pointer + index, sizeof(T), alignof(T), false, line);
    return p.pointer[index];
}
template <class T> inline Vec4 load_vec4(Global<const T> p, i64 index, LINE) {
    shim::check_global(p.pointer + index, 16, 16, false, line);
    Vec4 v;
    memcpy(&v, p.pointer + index, 16);
    return v;
}
template <class T> inline void store(Global<T> p, i64 index, T value, LINE) {
    shim::check_global(p.pointer + index, sizeof(T), sizeof(T), true, line);
    p.pointer[index] = value;
}
template <class T> inline void store_vec4(Global<T> p, i64 index, Vec4 v, LINE) {
    shim::check_global(p.pointer + index, 16, 16, true, line);
    memcpy(p.pointer + index, &v, 16);
}

// Blocks run one after another, so a sum is a read and a write; what it adds to has to be there.
constexpr bool ADDS_IN_FOURS = true;
inline void reduce_add(Global<f32> p, i64 index, f32 value, LINE) {
    shim::check_global(p.pointer + index, 4, 4, false, line);
    shim::check_global(p.pointer + index, 4, 4, true, line);
    p.pointer[index] += value;
}
inline void reduce_add_4(Global<f32> p, i64 index, const f32 (&x)[4], LINE) {
    shim::check_global(p.pointer + index, 16, 16, false, line);
    shim::check_global(p.pointer + index, 16, 16, true, line);
    for (int i = 0; i < 4; i++) p.pointer[index + i] += x[i];
}

inline u32 shared_memory() { return shim::SHARED_BASE; }
inline f32 load_shared_f32(u32 address, LINE) {
    f32 value;
    memcpy(&value, shim::read_shared(address, 4, line), 4);
    return value;
}
inline u32 load_shared_u32(u32 address, LINE) {
    u32 value;
    memcpy(&value, shim::read_shared(address, 4, line), 4);
    return value;
}
inline Vec4 load_shared_vec4(u32 address, LINE) {
    Vec4 v;
    memcpy(&v, shim::read_shared(address, 16, line), 16);
    return v;
}
inline void store_shared(u32 address, f32 value, LINE) { shim::write_shared(address, &value, 4, line); }
inline void store_shared(u32 address, u32 value, LINE) { shim::write_shared(address, &value, 4, line); }
inline void store_shared_vec4(u32 address, Vec4 v, LINE) { shim::write_shared(address, &v, 16, line); }

template <class T> inline void copy_async_16(u32 address, Global<const T> p, i64 index, bool is_valid, LINE) {
    shim::Thread &self = *shim::machine->current;
    const u8 *from = is_valid ? reinterpret_cast<const u8 *>(p.pointer + index) : nullptr;
    if (is_valid) shim::check_global(from, 16, 16, false, line);
    shim::claim_shared(address, 16, shim::PENDING, line, "asynchronous copy");
    self.copies.push_back({address, from, self.groups_committed});
}
inline void copy_async_commit() { shim::machine->current->groups_committed++; }
template <int in_flight> inline void copy_async_wait(PLACE) {
    if (shim::is_left_out(file, line)) return;
    u32 committed = shim::machine->current->groups_committed;
    if (committed > u32(in_flight)) shim::complete_copies(committed - in_flight, line);
}

inline void sync_threads(PLACE) {
    if (!shim::is_left_out(file, line)) shim::barrier_wait(0, shim::machine->threads, line);
}
inline void sync_named(u32 barrier, u32 threads, PLACE) {
    if (!shim::is_left_out(file, line)) shim::barrier_wait(barrier, threads, line);
}
inline void arrive_named(u32 barrier, u32 threads, LINE) { shim::barrier_wait(barrier, threads, line, false); }
inline void sync_warp(PLACE) {
    if (shim::is_left_out(file, line)) return;
    shim::together(shim::SYNC_WARP, line, [](shim::Thread *lanes) { lanes->warp->epoch++; });
}

inline void mbarrier_init(u32 address, u32 arrivals, LINE) {
    u64 zero = 0;
    if (!arrivals) shim::fail(line, "an mbarrier of no arrivals");
    shim::write_shared(address, &zero, 8, line);
    auto &barriers = shim::machine->memory_barriers;
    for (size_t i = 0; i < barriers.size(); i++)
        if (barriers[i].address == address) barriers.erase(barriers.begin() + i--);
    shim::MemoryBarrier barrier = {};
    barrier.address = address;
    barrier.arrivals = barrier.missing = arrivals;
    barrier.initialised_by = shim::machine->current->number;
    barriers.push_back(barrier);
}
// The shared memory of an mbarrier is read by every use, so that a use before its initialisation is visible is a race.
inline void mbarrier_arrive(u32 address, LINE) {
    shim::arrive(address, 0, line);
}
inline void mbarrier_arrive_expect(u32 address, u32 bytes, LINE) { shim::arrive(address, bytes, line); }
inline void fence_mbarrier_init(PLACE) {
    if (shim::is_left_out(file, line)) return;
    for (shim::MemoryBarrier &barrier : shim::machine->memory_barriers)
        if (barrier.initialised_by == shim::machine->current->number) barrier.is_fenced = true;
}
inline void mbarrier_wait(u32 address, u32 parity, PLACE) {
    if (shim::is_left_out(file, line)) return;
    shim::read_shared(address, 8, line);
    shim::Thread &self = *shim::machine->current;
    for (;;) {
        shim::MemoryBarrier &barrier = shim::memory_barrier(address, line);
        if ((barrier.phase & 1) == (parity & 1)) shim::complete_tiles(barrier, line);
        if ((barrier.phase & 1) != (parity & 1)) {
            shim::learn(*self.warp, barrier.clock);
            return;
        }
        self.warp->runnable &= ~(1u << self.lane);
        barrier.waiting[self.warp->number] |= 1u << self.lane;
        shim::give_way(self);
    }
}

inline void copy_tile(u32 address, const TensorMap &map, i32 x, i32 y, u32 barrier, LINE) {
    shim::copy_tile(address, map, {x, y}, 2, barrier, line);
}
inline void copy_tile(u32 address, const TensorMap &map, i32 x, i32 y, i32 z, u32 barrier, LINE) {
    shim::copy_tile(address, map, {x, y, z}, 3, barrier, line);
}
inline void copy_tile(u32 address, const TensorMap &map, i32 x, i32 y, i32 z, i32 w, u32 barrier, LINE) {
    shim::copy_tile(address, map, {x, y, z, w}, 4, barrier, line);
}

template <class T> inline void copy_bytes(u32 address, Global<const T> p, i64 index, u32 bytes, u32 barrier, LINE) {
    shim::copy_bytes(address, reinterpret_cast<const u8 *>(p.pointer + index), bytes, barrier, line);
}

inline u64 matrix_descriptor(u32 address, u32 panel_bytes) {
    return u64(1) << 62 | u64(1024 >> 4) << 32 | u64(panel_bytes >> 4) << 16 | (address & 0x3ffff) >> 4;
}
template <int row_bytes> inline u64 rows_descriptor(u32 address) {
    static_assert(row_bytes == 128 || row_bytes == 64, "a row is as wide as the swizzle");
    return u64(row_bytes == 128 ? 1 : 2) << 62 | u64(8 * row_bytes >> 4) << 32 | (address & 0x3ffff) >> 4;
}
inline void fence_products(PLACE) {
    if (!shim::is_left_out(file, line)) shim::fence_products(line);
}
inline void commit_products(LINE) { shim::commit_products(line); }
template <int in_flight> inline void wait_products(PLACE) {
    if (!shim::is_left_out(file, line)) shim::wait_products(in_flight, line);
}
template <int N> inline void pin(f32 (&)[N][4]) {}
inline void fence_async_shared(PLACE) {
    shim::Thread &self = *shim::machine->current;
    if (!shim::is_left_out(file, line)) self.stores_shown = self.stores;
}
template <int registers> inline void give_back_registers(LINE) { shim::give_back_registers(registers, line); }
template <int registers> inline void take_registers(LINE) { shim::take_registers(registers, line); }

inline f32 shuffle_xor(f32 value, u32 mask, LINE) {
    u32 lane = shim::machine->current->lane ^ mask;
    return shim::bits_to_float(shim::shuffle(shim::float_to_bits(value), lane, line));
}
inline f32 shuffle(f32 value, u32 lane, LINE) {
    return shim::bits_to_float(shim::shuffle(shim::float_to_bits(value), lane, line));
}
inline i32 shuffle(i32 value, u32 lane, LINE) { return i32(shim::shuffle(u32(value), lane, line)); }
inline i64 shuffle(i64 value, u32 lane, LINE) {
    u32 low = shim::shuffle(u32(value), lane, line), high = shim::shuffle(u32(u64(value) >> 32), lane, line);
    return i64(u64(high) << 32 | low);
}
inline bool any_lane(bool value, LINE) { return shim::any_lane(value, line); }
inline void load_matrices(u32 (&r)[4], u32 address, LINE) { shim::load_matrices(r, address, false, line); }
inline void load_matrices_transposed(u32 (&r)[4], u32 address, LINE) { shim::load_matrices(r, address, true, line); }

#define PRODUCTS_OF_WARPGROUPS(widen)                                                                                   \
    template <int N, bool a_is_transposed, bool b_is_transposed>                                                        \
    static void multiply_tiles(f32 (&d)[N / 8][4], u64 a, u64 b, bool adds, LINE) {                                     \
        shim::start_product<widen>(&d[0][0], N, nullptr, a, a_is_transposed, b, b_is_transposed, adds, line);           \
    }                                                                                                                   \
    template <int N, bool b_is_transposed>                                                                              \
    static void multiply_registers(f32 (&d)[N / 8][4], const u32 (&a)[4], u64 b, bool adds, LINE) {                     \
        shim::start_product<widen>(&d[0][0], N, a, 0, false, b, b_is_transposed, adds, line);                           \
    }

struct Bf16 {
    using Storage = u16;
    static f32 widen(u16 x) { return shim::bf16_to_f32(x); }
    static u32 pack(f32 low, f32 high) { return shim::f32_to_bf16(low) | u32(shim::f32_to_bf16(high)) << 16; }
    static u32 of_halves(u32 pair) { return pack(shim::half_to_f32(u16(pair)), shim::half_to_f32(u16(pair >> 16))); }
    static void multiply(f32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, LINE) {
        shim::multiply<shim::bf16_to_f32>(d, a, b0, b1, line);
    }
    PRODUCTS_OF_WARPGROUPS(shim::bf16_to_f32)
};
struct F16 {
    using Storage = u16;
    static f32 widen(u16 x) { return shim::half_to_f32(x); }
    static u32 pack(f32 low, f32 high) { return shim::f32_to_half(low) | u32(shim::f32_to_half(high)) << 16; }
    static u32 of_halves(u32 pair) { return pair; }
    static void multiply(f32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, LINE) {
        shim::multiply<shim::half_to_f32>(d, a, b0, b1, line);
    }
    PRODUCTS_OF_WARPGROUPS(shim::half_to_f32)
};

struct E4m3 {
    using Storage = u8;
    static void widen(u32 four, u32 (&pairs)[2]) {
        for (u32 i = 0; i < 4; i++) {
            u32 half = shim::f32_to_half(shim::e4m3_to_f32(u8(four >> 8 * i)));
            pairs[i / 2] = i % 2 ? pairs[i / 2] | half << 16 : half;
        }
    }
    static u32 pack(f32 a, f32 b, f32 c, f32 d) {
        return shim::f32_to_e4m3(a) | u32(shim::f32_to_e4m3(b)) << 8 | u32(shim::f32_to_e4m3(c)) << 16 | u32(shim::f32_to_e4m3(d)) << 24;
    }
    template <int N> static void multiply_tiles(f32 (&d)[N / 8][4], u64 a, u64 b, bool adds, LINE) {
        shim::start_product<shim::e4m3_of_low_byte, 32>(&d[0][0], N, nullptr, a, false, b, false, adds, line);
    }
    template <int N> static void multiply_registers(f32 (&d)[N / 8][4], const u32 (&a)[4], u64 b, bool adds, LINE) {
        shim::start_product<shim::e4m3_of_low_byte, 32>(&d[0][0], N, a, 0, false, b, false, adds, line);
    }
};
inline u32 permute_bytes(u32 word, u32 order) {
    u32 result = 0;
    for (u32 i = 0; i < 4; i++) {
        u32 digit = order >> 4 * i & 15;
        result |= (digit < 4 ? word >> 8 * digit & 255 : 0) << 8 * i;
    }
    return result;
}

struct F32 {
    using Storage = f32;
    static f32 widen(f32 x) { return x; }
};
template <class Element> inline typename Element::Storage narrow(f32 x) { return u16(Element::pack(x, 0.0f)); }
template <> inline f32 narrow<F32>(f32 x) { return x; }

inline f32 exp2_fast(f32 x) {
    f32 y = exp2f(x);
    return fabsf(y) < 0x1p-126f ? 0.0f : y;
}
inline f32 log2_fast(f32 x) { return log2f(x); }
inline f32 reciprocal_fast(f32 x) { return 1.0f / x; }
inline f32 fused_multiply_add(f32 a, f32 b, f32 c) { return fmaf(a, b, c); }
inline f32 max_f32(f32 a, f32 b) { return fmaxf(a, b); }
inline f32 bits_to_f32(u32 bits) { return shim::bits_to_float(bits); }
inline u32 f32_to_bits(f32 x) { return shim::float_to_bits(x); }
