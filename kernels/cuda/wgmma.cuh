// Widths of products of warpgroups that ptx.cuh does not have: what tiles of other than 64, 128 and 256 keys need for their scores.
// Beside it the only header that knows the instruction set; under a host compiler it is the shim, which has every width.
#pragma once

#include "ptx.cuh"

#ifdef ATTN_HOST_SHIM
template <class Element, int N> DEVICE void multiply_widths(f32 (&d)[N / 8][4], u64 a, u64 b, bool adds) {
    Element::template multiply_tiles<N, false, false>(d, a, b, adds);
}
#else
#define PRODUCT_8(d, i) \
    "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3]), "+f"(d[i + 1][0]), "+f"(d[i + 1][1]), "+f"(d[i + 1][2]), \
        "+f"(d[i + 1][3])
#define PRODUCT_48(d, i) PRODUCT_32(d, i), PRODUCT_16(d, i + 8)
#define PRODUCT_56(d, i) PRODUCT_48(d, i), PRODUCT_8(d, i + 12)
#define PRODUCT_80(d, i) PRODUCT_64(d, i), PRODUCT_16(d, i + 16)
#define PRODUCT_88(d, i) PRODUCT_80(d, i), PRODUCT_8(d, i + 20)
#define PRODUCT_NAMES_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define PRODUCT_NAMES_48 \
    PRODUCT_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define PRODUCT_NAMES_56 PRODUCT_NAMES_48 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define PRODUCT_NAMES_80 \
    PRODUCT_NAMES_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define PRODUCT_NAMES_88 PRODUCT_NAMES_80 ", %80, %81, %82, %83, %84, %85, %86, %87"

// An element's name in the instruction.
template <class Element> constexpr bool IS_BF16 = false;
template <> constexpr bool IS_BF16<Bf16> = true;

#define PRODUCT_OF_WIDTH(N, COUNT, A, B, ADDS, TA, TB) \
    if constexpr (IS_BF16<Element>) { \
        PRODUCT_OF_TILES("bf16", N, COUNT, A, B, ADDS, TA, TB); \
    } else { \
        PRODUCT_OF_TILES("f16", N, COUNT, A, B, ADDS, TA, TB); \
    }

// d = A B, or d += A B where it `adds`, of N columns, with both operands as they lie in tiles: `Element::multiply_tiles`.
template <class Element, int N> DEVICE void multiply_widths(f32 (&d)[N / 8][4], u64 a, u64 b, bool adds) {
    constexpr bool a_is_transposed = false, b_is_transposed = false;
    if constexpr (N == 32) {
        PRODUCT_OF_WIDTH(32, 16, 16, 17, 18, 19, 20)
    } else if constexpr (N == 96) {
        PRODUCT_OF_WIDTH(96, 48, 48, 49, 50, 51, 52)
    } else if constexpr (N == 112) {
        PRODUCT_OF_WIDTH(112, 56, 56, 57, 58, 59, 60)
    } else if constexpr (N == 160) {
        PRODUCT_OF_WIDTH(160, 80, 80, 81, 82, 83, 84)
    } else if constexpr (N == 176) {
        PRODUCT_OF_WIDTH(176, 88, 88, 89, 90, 91, 92)
    } else {
        Element::template multiply_tiles<N, false, false>(d, a, b, adds);
    }
}
#endif
