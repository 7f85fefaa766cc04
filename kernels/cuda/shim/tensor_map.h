// Tensor maps, as the driver encodes them (CUDA driver API, `cuTensorMapEncodeTiled`).
#pragma once

#include <cstdint>

typedef uint8_t u8;
typedef uint32_t u32;
typedef unsigned long long u64;

// How the 16-byte chunks of a tile are exchanged: by bits of their own address, so that a tile is plain where it does not begin
// at a multiple of the pattern (256, 512, 1024 bytes).
enum Swizzle { NO_SWIZZLE, SWIZZLE_32, SWIZZLE_64, SWIZZLE_128 };

// A tensor in global memory and the box that one copy brings. On a device, 128 opaque bytes that the driver makes.
struct TensorMap {
    const u8 *base;
    u32 rank, element_bytes, swizzle, is_valid;
    // Elements of each dimension, the innermost first; bytes from one to the next, of all but the innermost.
    u32 size[5];
    u32 box[5];
    u64 stride[5];
    u64 unused[3];
};
static_assert(sizeof(TensorMap) == 128, "as large as CUtensorMap");

namespace shim {

constexpr u32 MAX_RANK = 5, MAX_BOX = 256;

// Why the driver would refuse to encode such a map, or null.
inline const char *refusal_of(const TensorMap &map) {
    const u32 widths[] = {0, 32, 64, 128};
    if (map.rank < 1 || map.rank > MAX_RANK) return "a tensor map has 1 to 5 dimensions";
    if (map.element_bytes != 1 && map.element_bytes != 2 && map.element_bytes != 4 && map.element_bytes != 8)
        return "elements have 1, 2, 4 or 8 bytes";
    if (reinterpret_cast<u64>(map.base) % 16) return "the tensor is not aligned to 16 bytes";
    if (map.swizzle > SWIZZLE_128) return "there is no such swizzle";
    for (u32 d = 0; d < map.rank; d++) {
        if (!map.size[d]) return "a dimension has no elements";
        if (!map.box[d] || map.box[d] > MAX_BOX) return "a box has 1 to 256 elements in each dimension";
        if (d && (map.stride[d] % 16 || map.stride[d] >= 1ull << 40)) return "a stride is a multiple of 16 bytes below 2^40";
    }
    if (map.box[0] * map.element_bytes % 16) return "the box's inner dimension is a multiple of 16 bytes";
    if (map.swizzle && map.box[0] * map.element_bytes > widths[map.swizzle])
        return "the box's inner dimension is wider than the swizzle";
    return nullptr;
}

// Encodes a tensor map; returns why the driver would refuse to, or null.
template <class Size>
inline const char *encode(TensorMap *map, void *base, u32 rank, u32 element_bytes, const Size *size,
                          const u64 *stride, const u32 *box, u32 swizzle) {
    *map = {};
    map->base = static_cast<const u8 *>(base);
    map->rank = rank;
    map->element_bytes = element_bytes;
    map->swizzle = swizzle;
    for (u32 d = 0; d < rank && d < MAX_RANK; d++) {
        map->size[d] = u32(size[d]);
        map->box[d] = box[d];
        map->stride[d] = d ? stride[d - 1] : 0;
    }
    const char *refusal = refusal_of(*map);
    map->is_valid = !refusal;
    return refusal;
}

} // namespace shim
