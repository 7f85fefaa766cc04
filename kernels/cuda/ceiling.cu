// What a device can do at most: reading, writing and copying memory, and products on tensor cores or FMA units.
//
// Memory: 16 bytes a thread and step, neighbouring threads at neighbouring addresses, four steps in flight. Limit: the
// memory level that holds the working set. Arithmetic: independent chains on registers, fed with random numbers, since
// zeros take less power and so run at higher clocks. Limit: the units' issue rate. ELEMENT is Bf16, F16 or F32.
// On Hopper mma.sync reaches about two thirds of what wgmma does.
#include "ptx.cuh"

constexpr u32 THREADS = 256, STEPS = 4, CHAINS = 8;

DEVICE i64 first() { return static_cast<i64>(block_index()) * THREADS + thread_index(); }
DEVICE i64 stride() { return static_cast<i64>(grid_size()) * THREADS; }

// `count` pieces of 16 bytes, read; what is stored in the end keeps the compiler from leaving the loads out.
KERNEL(THREADS, 4) read_memory(Global<const u32> from, i64 count, Global<u32> sink) {
    u32 folded = 0;
    i64 i = first();
    for (; i + (STEPS - 1) * stride() < count; i += STEPS * stride()) {
        Vec4 v[STEPS];
#pragma unroll
        for (u32 s = 0; s < STEPS; s++) v[s] = load_vec4(from, 4 * (i + s * stride()));
#pragma unroll
        for (u32 s = 0; s < STEPS; s++) folded ^= v[s].word[0] ^ v[s].word[1] ^ v[s].word[2] ^ v[s].word[3];
    }
    for (; i < count; i += stride()) {
        Vec4 v = load_vec4(from, 4 * i);
        folded ^= v.word[0] ^ v.word[1] ^ v.word[2] ^ v.word[3];
    }
    if (folded == 0x9e3779b9u) store(sink, 0, folded);
}
ENTRY(read_memory)

KERNEL(THREADS, 4) write_memory(Global<u32> to, i64 count, u32 value) {
    for (i64 i = first(); i < count; i += stride()) store_vec4(to, 4 * i, Vec4{{value, value, value, value}});
}
ENTRY(write_memory)

KERNEL(THREADS, 4) copy_memory(Global<const u32> from, Global<u32> to, i64 count) {
    i64 i = first();
    for (; i + (STEPS - 1) * stride() < count; i += STEPS * stride()) {
        Vec4 v[STEPS];
#pragma unroll
        for (u32 s = 0; s < STEPS; s++) v[s] = load_vec4(from, 4 * (i + s * stride()));
#pragma unroll
        for (u32 s = 0; s < STEPS; s++) store_vec4(to, 4 * (i + s * stride()), v[s]);
    }
    for (; i < count; i += stride()) store_vec4(to, 4 * i, load_vec4(from, 4 * i));
}
ENTRY(copy_memory)

// A number in [-1, 1) that depends on the thread.
DEVICE f32 random_number(u32 salt) {
    u32 x = (thread_index() + 1) * 0x9e3779b9u + salt * 0x85ebca6bu;
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return static_cast<f32>(x >> 8) * 0x1p-23f - 1.0f;
}

// CHAINS products of 16 x 16 x 8 a warp and turn.
template <class Element> struct Chains {
    static DEVICE f32 run(u32 turns) {
        u32 a[4], b[2];
        for (u32 i = 0; i < 4; i++) a[i] = Element::pack(random_number(2 * i), random_number(2 * i + 1));
        for (u32 i = 0; i < 2; i++) b[i] = Element::pack(random_number(2 * i + 20), random_number(2 * i + 21));
        f32 d[CHAINS][4] = {};
        for (u32 turn = 0; turn < turns; turn++)
#pragma unroll
            for (u32 chain = 0; chain < CHAINS; chain++) Element::multiply(d[chain], a, b[0], b[1]);
        f32 sum = 0.0f;
        for (u32 chain = 0; chain < CHAINS; chain++) sum += d[chain][0] + d[chain][1] + d[chain][2] + d[chain][3];
        return sum;
    }
};
// CHAINS fused multiply-adds a thread and turn.
template <> struct Chains<F32> {
    static DEVICE f32 run(u32 turns) {
        f32 factor = 0.999f * random_number(1), term = random_number(2), d[CHAINS];
        for (u32 chain = 0; chain < CHAINS; chain++) d[chain] = random_number(chain + 3);
        for (u32 turn = 0; turn < turns; turn++)
#pragma unroll
            for (u32 chain = 0; chain < CHAINS; chain++) d[chain] = fused_multiply_add(d[chain], factor, term);
        f32 sum = 0.0f;
        for (u32 chain = 0; chain < CHAINS; chain++) sum += d[chain];
        return sum;
    }
};

KERNEL(THREADS, 4) arithmetic(u32 turns, Global<f32> sink) {
    f32 sum = Chains<ELEMENT>::run(turns);
    if (sum == 12345.678f) store(sink, 0, sum);
}
ENTRY(arithmetic)
