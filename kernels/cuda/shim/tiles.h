// Copies of whole tiles by the asynchronous engine (TMA), as tensor maps describe them (PTX ISA, "Tensors" and
// `cp.async.bulk.tensor`; CUDA driver API, `cuTensorMapEncodeTiled`).
//
// A copy is pending until a thread waits for the phase of the mbarrier that it belongs to and nothing else keeps that phase
// open: as late as the program allows. It then brings as many bytes to the barrier as the box has, those outside of the
// tensor, which are zeros, included.
#pragma once

#include "barriers.h"
#include "tensor_map.h"

namespace shim {

// Where the byte at this address of a tile lies: address bits 4.. are exchanged by the bits above the pattern's row.
inline u32 swizzled(u32 address, u32 swizzle) {
    switch (swizzle) {
    case SWIZZLE_32: return address ^ (address >> 7 & 1) << 4;
    case SWIZZLE_64: return address ^ (address >> 7 & 3) << 4;
    case SWIZZLE_128: return address ^ (address >> 7 & 7) << 4;
    default: return address;
    }
}

// The mbarrier that a copy to this shared address will bring its bytes to.
inline MemoryBarrier &barrier_of_copy(u32 to, u32 bytes, u32 barrier_address, int line) {
    read_shared(barrier_address, 8, line);
    MemoryBarrier &barrier = memory_barrier(barrier_address, line);
    if (!barrier.is_fenced)
        fail(line, "a tile for the mbarrier at %u, whose initialisation no fence shows to the copy engine",
             barrier_address - SHARED_BASE);
    if (u64(to) + bytes > u64(SHARED_BASE) + machine->shared_bytes)
        fail(line, "a tile of %u bytes at shared address %u of %u bytes", bytes, to - SHARED_BASE, machine->shared_bytes);
    return barrier;
}

// Starts a copy of bytes that lie one after another, by the running thread.
inline void copy_bytes(u32 to, const u8 *from, u32 bytes, u32 barrier_address, int line) {
    Thread &self = *machine->current;
    if (to % 16 || reinterpret_cast<u64>(from) % 16 || bytes % 16 || !bytes)
        fail(line, "a copy of %u bytes from %p to shared address %u: each is a multiple of 16", bytes, (const void *)from,
             to - SHARED_BASE);
    MemoryBarrier &barrier = barrier_of_copy(to, bytes, barrier_address, line);
    for (u32 chunk = 0; chunk < bytes; chunk += 16) claim_shared(to + chunk, 16, PENDING, line, "copy of a tile", true);
    barrier.tiles.push_back({to, bytes, self.warp->number, self.warp->epoch, nullptr, {}, from});
    self.warp->epoch++;
}

// Starts a copy of the box at these coordinates, innermost first, by the running thread.
inline void copy_tile(u32 to, const TensorMap &map, const i32 (&at)[MAX_RANK], u32 rank, u32 barrier_address, int line) {
    Thread &self = *machine->current;
    if (!map.is_valid) fail(line, "a tile of a tensor map that nobody encoded");
    if (map.rank != rank) fail(line, "a tile of %u dimensions of a tensor map of %u", rank, map.rank);
    if (to % 128) fail(line, "a tile at shared address %u, which is not aligned to 128 bytes", to - SHARED_BASE);
    u32 bytes = map.element_bytes;
    for (u32 d = 0; d < rank; d++) bytes *= map.box[d];
    MemoryBarrier &barrier = barrier_of_copy(to, bytes, barrier_address, line);
    // Every granule of the destination is in flight from here on. Swizzling moves chunks within 1024 bytes at most, which may
    // reach beyond a tile that is no whole pattern.
    for (u32 chunk = 0; chunk < bytes; chunk += 16)
        claim_shared(swizzled(to + chunk, map.swizzle), 16, PENDING, line, "copy of a tile", true);
    TileCopy copy = {to, bytes, self.warp->number, self.warp->epoch, &map, {}, nullptr};
    memcpy(copy.at, at, sizeof copy.at);
    barrier.tiles.push_back(copy);
    // What this warp does from here on is not covered by the copy.
    self.warp->epoch++;
}

// Brings bytes that lie one after another.
inline void bring_bytes(const TileCopy &copy, int line) {
    check_global(copy.from, copy.bytes, 16, false, line);
    memcpy(machine->shared.data() + (copy.to - SHARED_BASE), copy.from, copy.bytes);
}

// Brings the box of a tensor map.
inline void bring_box(const TileCopy &copy, int line) {
    Machine &m = *machine;
    const TensorMap &map = *copy.map;
    const u32 row_bytes = map.box[0] * map.element_bytes, rows = copy.bytes / row_bytes;
    for (u32 row = 0; row < rows; row++) {
        const u8 *from = map.base;
        bool exists = true;
        u32 rest = row;
        for (u32 d = 1; d < map.rank; d++) {
            i64 index = copy.at[d] + i64(rest % map.box[d]);
            rest /= map.box[d];
            exists = exists && index >= 0 && index < i64(map.size[d]);
            from += index * i64(map.stride[d]);
        }
        for (u32 element = 0; element < map.box[0]; element++) {
            i64 index = copy.at[0] + i64(element);
            u32 to = swizzled(copy.to + row * row_bytes + element * map.element_bytes, map.swizzle) - SHARED_BASE;
            if (exists && index >= 0 && index < i64(map.size[0])) {
                const u8 *source = from + index * map.element_bytes;
                check_global(source, map.element_bytes, map.element_bytes, false, line);
                memcpy(m.shared.data() + to, source, map.element_bytes);
            } else {
                memset(m.shared.data() + to, 0, map.element_bytes);
            }
        }
    }
}

// Brings a tile, and its bytes to the barrier.
inline void complete_tile(MemoryBarrier &barrier, const TileCopy &copy, int line) {
    Machine &m = *machine;
    const u32 swizzle = copy.map ? copy.map->swizzle : u32(NO_SWIZZLE);
    copy.map ? bring_box(copy, line) : bring_bytes(copy, line);
    for (u32 chunk = 0; chunk < copy.bytes; chunk += 16)
        for (u32 g = 0; g < 4; g++) {
            Granule &granule = m.granules[(swizzled(copy.to + chunk, swizzle) - SHARED_BASE) / GRANULE + g];
            granule.state = DEFINED;
            granule.write_epoch = copy.epoch;
        }
    // Whoever waits for the barrier sees what was copied.
    if (barrier.clock[copy.warp] < copy.epoch) barrier.clock[copy.warp] = copy.epoch;
    barrier.bytes -= copy.bytes;
}

// Completes the copies of a barrier that only they keep open.
inline void complete_tiles(MemoryBarrier &barrier, int line) {
    if (barrier.missing || barrier.tiles.empty()) return;
    std::vector<TileCopy> tiles;
    tiles.swap(barrier.tiles);
    for (const TileCopy &copy : tiles) complete_tile(barrier, copy, line);
    if (barrier.bytes < 0)
        fail(line, "copies bring %lld bytes more to the mbarrier at %u than were announced", (long long)-barrier.bytes,
             barrier.address - SHARED_BASE);
    finish_phase(barrier);
}

} // namespace shim

// Encodes a tensor map as the driver does; returns why it would refuse to, or null.
extern "C" const char *shim_tensor_map(TensorMap *map, void *base, u32 rank, u32 element_bytes, const u32 *size,
                                       const u64 *stride, const u32 *box, u32 swizzle) {
    return shim::encode(map, base, rank, element_bytes, size, stride, box, swizzle);
}
