// The element types of matrix products, and the products: of a warp (mma.sync) and of a warpgroup (wgmma).
//
// Part of ptx.cuh, which includes it; under a host compiler the shim has the same.
#pragma once

// ---- Products of warpgroups (compute capability 9.0) ------------------------------------------------------------------

// A product of 64 x N x 16 by the four warps of a warpgroup, which starts at a warp whose number is a multiple of four: B, and A
// too or not, come from shared memory as a descriptor says. It is asynchronous: its accumulators are not to be touched before
// `wait_products`, nor is shared memory to be written that it reads (PTX ISA, "Asynchronous Warpgroup Level Matrix
// Multiply-Accumulate Instructions").
//
// Warp w of the group holds rows 16 w .. of the accumulator; d[n] is laid out as the d of mma.m16n8k16, and A in registers as
// its a.

// Where 16 columns of the inner dimension lie in a tile of panels of 128-byte rows, swizzled by 128 bytes. Of an operand whose
// inner dimension is contiguous, `panel_bytes` does not matter: it is not wider than a panel. Of a transposed one, whose outer
// dimension is contiguous, it is the distance of panels of 64.
DEVICE u64 matrix_descriptor(u32 address, u32 panel_bytes) {
    return u64(1) << 62 | u64(1024 >> 4) << 32 | u64(panel_bytes >> 4) << 16 | (address & 0x3ffff) >> 4;
}
// The same of an operand whose inner dimension is contiguous, in rows of 128 or 64 bytes that are swizzled by as many.
template <int row_bytes> DEVICE u64 rows_descriptor(u32 address) {
    static_assert(row_bytes == 128 || row_bytes == 64, "a row is as wide as the swizzle");
    return u64(row_bytes == 128 ? 1 : 2) << 62 | u64(8 * row_bytes >> 4) << 32 | (address & 0x3ffff) >> 4;
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
// Orders what was done to registers, and to shared memory by `fence_async_shared`, before the products that follow.
DEVICE void fence_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Closes a group of this warp's products.
DEVICE void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most the `in_flight` youngest groups are not complete.
template <int in_flight> DEVICE void wait_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(in_flight) : "memory");
}
// Keeps the compiler from moving what is done to accumulators beyond this place: it knows nothing of products that still run.
template <int N> DEVICE void pin(f32 (&d)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) asm volatile("" : "+f"(d[n][i])::"memory");
}
// Shows what this thread stored to shared memory to products and to copies of tiles.
DEVICE void fence_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// The registers a thread of this warpgroup has from here on, a multiple of 8 of 24 to 256; what one gives back, another takes.
template <int registers> DEVICE void give_back_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}
template <int registers> DEVICE void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers)); }
#endif

#define PRODUCT_16(d, i) \
    "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3]), "+f"(d[i + 1][0]), "+f"(d[i + 1][1]), "+f"(d[i + 1][2]), \
        "+f"(d[i + 1][3]), "+f"(d[i + 2][0]), "+f"(d[i + 2][1]), "+f"(d[i + 2][2]), "+f"(d[i + 2][3]), "+f"(d[i + 3][0]), \
        "+f"(d[i + 3][1]), "+f"(d[i + 3][2]), "+f"(d[i + 3][3])
#define PRODUCT_32(d, i) PRODUCT_16(d, i), PRODUCT_16(d, i + 4)
#define PRODUCT_64(d, i) PRODUCT_32(d, i), PRODUCT_32(d, i + 8)
#define PRODUCT_128(d, i) PRODUCT_64(d, i), PRODUCT_64(d, i + 16)
#define PRODUCT_NAMES_32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
    "%24, %25, %26, %27, %28, %29, %30, %31"
#define PRODUCT_NAMES_64 \
    PRODUCT_NAMES_32 ", " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, " \
    "%54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define PRODUCT_NAMES_128 \
    PRODUCT_NAMES_64 ", " \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, " \
    "%86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, " \
    "%107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, " \
    "%125, %126, %127"
// One width: N columns, as many accumulators, and the numbers of the operands after them.
#define PRODUCT_OF_TILES(TYPE, N, COUNT, A, B, ADDS, TA, TB) \
    asm volatile("{ .reg .pred adds; setp.ne.b32 adds, %" #ADDS ", 0;\n" \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" PRODUCT_NAMES_##COUNT "}, %" #A ", %" #B \
                 ", adds, 1, 1, %" #TA ", %" #TB "; }" \
                 : PRODUCT_##COUNT(d, 0) \
                 : "l"(a), "l"(b), "r"(u32(adds)), "n"(int(a_is_transposed)), "n"(int(b_is_transposed)) \
                 : "memory")
#define PRODUCT_OF_REGISTERS(TYPE, N, COUNT, A0, A1, A2, A3, B, ADDS, TB) \
    asm volatile("{ .reg .pred adds; setp.ne.b32 adds, %" #ADDS ", 0;\n" \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" PRODUCT_NAMES_##COUNT "}, {%" #A0 ", %" #A1 \
                 ", %" #A2 ", %" #A3 "}, %" #B ", adds, 1, 1, %" #TB "; }" \
                 : PRODUCT_##COUNT(d, 0) \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(u32(adds)), "n"(int(b_is_transposed)) \
                 : "memory")
// The members `multiply_tiles` and `multiply_registers` of an element: d = A B, or d += A B where it `adds`.
#define PRODUCTS_OF_WARPGROUPS(TYPE) \
    template <int N, bool a_is_transposed, bool b_is_transposed> \
    static DEVICE void multiply_tiles(f32 (&d)[N / 8][4], u64 a, u64 b, bool adds) { \
        static_assert(N == 64 || N == 128 || N == 256, "the widths that are written down"); \
        if constexpr (N == 64) PRODUCT_OF_TILES(TYPE, 64, 32, 32, 33, 34, 35, 36); \
        if constexpr (N == 128) PRODUCT_OF_TILES(TYPE, 128, 64, 64, 65, 66, 67, 68); \
        if constexpr (N == 256) PRODUCT_OF_TILES(TYPE, 256, 128, 128, 129, 130, 131, 132); \
    } \
    template <int N, bool b_is_transposed> \
    static DEVICE void multiply_registers(f32 (&d)[N / 8][4], const u32 (&a)[4], u64 b, bool adds) { \
        static_assert(N == 64 || N == 128 || N == 256, "the widths that are written down"); \
        if constexpr (N == 64) PRODUCT_OF_REGISTERS(TYPE, 64, 32, 32, 33, 34, 35, 36, 37, 38); \
        if constexpr (N == 128) PRODUCT_OF_REGISTERS(TYPE, 128, 64, 64, 65, 66, 67, 68, 69, 70); \
        if constexpr (N == 256) PRODUCT_OF_REGISTERS(TYPE, 256, 128, 128, 129, 130, 131, 132, 133, 134); \
    }

// The same of e4m3, 64 x N x 32: both operands have their inner dimension contiguous, which is the one way that 8-bit elements may
// lie. A in registers is laid out as the a of mma.m16n8k32: with g = lane / 4 and t = lane mod 4, a lane holds
//   a[0] (g, 4t .. 4t+3)   a[1] (g+8, 4t .. 4t+3)   a[2] (g, 4t+16 .. 4t+19)   a[3] (g+8, 4t+16 .. 4t+19)
// Accumulators are f32 registers, of which Hopper's tensor cores keep about 14 bits of mantissa in sums of 8-bit products
// (DeepSeek-AI 2024, DeepSeek-V3 technical report, section 3.3.2).
#define PRODUCT_OF_BYTE_TILES(N, COUNT, A, B, ADDS) \
    asm volatile("{ .reg .pred adds; setp.ne.b32 adds, %" #ADDS ", 0;\n" \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k32.f32.e4m3.e4m3 {" PRODUCT_NAMES_##COUNT "}, %" #A ", %" #B \
                 ", adds, 1, 1; }" \
                 : PRODUCT_##COUNT(d, 0) \
                 : "l"(a), "l"(b), "r"(u32(adds)) \
                 : "memory")
#define PRODUCT_OF_BYTE_REGISTERS(N, COUNT, A0, A1, A2, A3, B, ADDS) \
    asm volatile("{ .reg .pred adds; setp.ne.b32 adds, %" #ADDS ", 0;\n" \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k32.f32.e4m3.e4m3 {" PRODUCT_NAMES_##COUNT "}, {%" #A0 ", %" #A1 \
                 ", %" #A2 ", %" #A3 "}, %" #B ", adds, 1, 1; }" \
                 : PRODUCT_##COUNT(d, 0) \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(u32(adds)) \
                 : "memory")

// The element types of a matrix product: two of them in a register, and the product.
//
// d += A B with A of 16 x 16 and B of 16 x 8. With g = lane / 4 and t = lane mod 4, a lane holds
//   a[0] (g, 2t) (g, 2t+1)   a[1] (g+8, 2t) (g+8, 2t+1)   a[2] (g, 2t+8) (g, 2t+9)   a[3] (g+8, 2t+8) (g+8, 2t+9)
//   b0 (2t, g) (2t+1, g)     b1 (2t+8, g) (2t+9, g)       d (g, 2t) (g, 2t+1) (g+8, 2t) (g+8, 2t+1)
// (PTX ISA, matrix fragments for mma.m16n8k16 with floating-point types).
struct Bf16 {
    using Storage = u16;
    static DEVICE f32 widen(u16 x) { return __uint_as_float(static_cast<u32>(x) << 16); }
    // Rounds to nearest even; `low` is the element with the lower index.
    static DEVICE u32 pack(f32 low, f32 high) {
        u32 pair;
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
        return pair;
    }
    // A pair of f16, rounded; exact for what came from e4m3.
    static DEVICE u32 of_halves(u32 pair) {
        f32 low, high;
        asm("{ .reg .b16 l, h;\n"
            "mov.b32 {l, h}, %2;\n"
            "cvt.f32.f16 %0, l;\n"
            "cvt.f32.f16 %1, h; }"
            : "=f"(low), "=f"(high)
            : "r"(pair));
        return pack(low, high);
    }
    static DEVICE void multiply(f32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    PRODUCTS_OF_WARPGROUPS("bf16")
#endif
};
struct F16 {
    using Storage = u16;
    static DEVICE f32 widen(u16 x) {
        f32 value;
        asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x));
        return value;
    }
    static DEVICE u32 pack(f32 low, f32 high) {
        u32 pair;
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
        return pair;
    }
    static DEVICE u32 of_halves(u32 pair) { return pair; }
    static DEVICE void multiply(f32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    PRODUCTS_OF_WARPGROUPS("f16")
#endif
};

// e4m3 (OCP 8-bit floating point, revision 1.0): widened exactly before a product, or multiplied by warpgroups as it is.
struct E4m3 {
    using Storage = u8;
    // Four of them as two pairs of f16, the lower ones first.
    static DEVICE void widen(u32 four, u32 (&pairs)[2]) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
        asm("{ .reg .b16 low, high;\n"
            "mov.b32 {low, high}, %2;\n"
            "cvt.rn.f16x2.e4m3x2 %0, low;\n"
            "cvt.rn.f16x2.e4m3x2 %1, high; }"
            : "=r"(pairs[0]), "=r"(pairs[1])
            : "r"(four));
#else
        // The same bits one place further down are an f16 that is 2^8 too small; of all ones, a NaN has to be made.
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const u32 bytes = __byte_perm(four, 0, i == 0 ? 0x1404 : 0x3424), size = bytes >> 1 & 0x3f803f80;
            u32 pair;
            asm volatile("mul.rn.f16x2 %0, %1, %2;" : "=r"(pair) : "r"((bytes & 0x80008000) | size), "r"(0x5c005c00));
            const u32 is_nan = (size + 0x00800080) & 0x40004000;
            pairs[i] = pair | ((is_nan << 1) - (is_nan >> 4));
        }
#endif
    }
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    // Four numbers, the first in the lowest byte; rounded to nearest even, and what is beyond 448 becomes 448.
    static DEVICE u32 pack(f32 a, f32 b, f32 c, f32 d) {
        u32 four;
        asm("{ .reg .b16 low, high;\n"
            "cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n"
            "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n"
            "mov.b32 %0, {low, high}; }"
            : "=r"(four)
            : "f"(a), "f"(b), "f"(c), "f"(d));
        return four;
    }
    template <int N> static DEVICE void multiply_tiles(f32 (&d)[N / 8][4], u64 a, u64 b, bool adds) {
        static_assert(N == 64 || N == 128 || N == 256, "the widths that are written down");
        if constexpr (N == 64) PRODUCT_OF_BYTE_TILES(64, 32, 32, 33, 34);
        if constexpr (N == 128) PRODUCT_OF_BYTE_TILES(128, 64, 64, 65, 66);
        if constexpr (N == 256) PRODUCT_OF_BYTE_TILES(256, 128, 128, 129, 130);
    }
    template <int N> static DEVICE void multiply_registers(f32 (&d)[N / 8][4], const u32 (&a)[4], u64 b, bool adds) {
        static_assert(N == 64 || N == 128 || N == 256, "the widths that are written down");
        if constexpr (N == 64) PRODUCT_OF_BYTE_REGISTERS(64, 32, 32, 33, 34, 35, 36, 37);
        if constexpr (N == 128) PRODUCT_OF_BYTE_REGISTERS(128, 64, 64, 65, 66, 67, 68, 69);
        if constexpr (N == 256) PRODUCT_OF_BYTE_REGISTERS(256, 128, 128, 129, 130, 131, 132, 133);
    }
#endif
};
// Elements that no tensor core multiplies at full precision.
struct F32 {
    using Storage = f32;
    static DEVICE f32 widen(f32 x) { return x; }
};
template <class Element> DEVICE typename Element::Storage narrow(f32 x) { return static_cast<u16>(Element::pack(x, 0.0f)); }
template <> DEVICE f32 narrow<F32>(f32 x) { return x; }
