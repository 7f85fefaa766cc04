// Accesses to shared and global memory, each checked: bounds, alignment, definedness, and, in shared memory, races by vector
// clocks, whatever order the fibers happened to run in.
#pragma once

#include "fibers.h"

namespace shim {

// ---- Who has synchronised with whom ---------------------------------------------------------------------------------

// Whether what thread `other` did in its warp's epoch `epoch` is over for the running thread.
inline bool is_ordered(const Thread &self, u32 other, u32 epoch) {
    u32 warp = other / LANES;
    if (other == self.number) return true;
    if (warp == self.warp->number) return epoch < self.warp->epoch;
    return epoch <= self.warp->clock[warp];
}

// Adds what a warp knows, itself included, to a clock.
inline void publish(Warp &warp, u32 *clock) {
    for (u32 w = 0; w < machine->warps; w++)
        if (warp.clock[w] > clock[w]) clock[w] = warp.clock[w];
    if (warp.epoch > clock[warp.number]) clock[warp.number] = warp.epoch;
}
inline void learn(Warp &warp, const u32 *clock) {
    for (u32 w = 0; w < machine->warps; w++)
        if (clock[w] > warp.clock[w]) warp.clock[w] = clock[w];
}

// ---- Shared memory --------------------------------------------------------------------------------------------------

inline u32 check_shared(u32 address, u32 bytes, int line, const char *what) {
    Machine &m = *machine;
    if (address % bytes)
        fail(line, "%s of %u bytes at shared address %u, which is not aligned", what, bytes, address - SHARED_BASE);
    if (address < SHARED_BASE || u64(address) + bytes > u64(SHARED_BASE) + m.shared_bytes)
        fail(line, "%s of %u bytes at shared address %lld of %u bytes", what, bytes,
             (long long)address - (long long)SHARED_BASE, m.shared_bytes);
    return address - SHARED_BASE;
}

inline const u8 *read_shared(u32 address, u32 bytes, int line) {
    Machine &m = *machine;
    Thread &self = *m.current;
    u32 offset = check_shared(address, bytes, line, "read");
    u32 mark = self.warp->epoch << 6;
    for (u32 g = offset / GRANULE; g < (offset + bytes + GRANULE - 1) / GRANULE; g++) {
        Granule &granule = m.granules[g];
        if (granule.state == PENDING)
            fail(line, "read of shared address %u, where a copy by thread %u is in flight", g * GRANULE, granule.writer);
        if (granule.state == UNDEFINED) fail(line, "read of shared address %u, which nobody wrote", g * GRANULE);
        if (granule.writer != self.number && !is_ordered(self, granule.writer, granule.write_epoch))
            fail(line, "read of shared address %u races with the write by thread %u", g * GRANULE, granule.writer);
        u32 &reader = m.readers[g * m.warps + self.warp->number];
        if (reader != (mark | self.lane)) reader = (reader >> 6) == self.warp->epoch ? mark | 63 : mark | self.lane;
    }
    return m.shared.data() + offset;
}

inline u32 claim_shared(u32 address, u32 bytes, State state, int line, const char *what, bool is_by_engine = false) {
    Machine &m = *machine;
    Thread &self = *m.current;
    const u32 store = is_by_engine ? 0 : ++self.stores;
    u32 offset = check_shared(address, bytes, line, what);
    for (u32 g = offset / GRANULE; g < (offset + bytes) / GRANULE; g++) {
        Granule &granule = m.granules[g];
        if (granule.state == PENDING)
            fail(line, "%s to shared address %u, where a copy by thread %u is in flight", what, g * GRANULE, granule.writer);
        if (granule.state == DEFINED && !is_ordered(self, granule.writer, granule.write_epoch))
            fail(line, "%s to shared address %u races with the write by thread %u", what, g * GRANULE, granule.writer);
        for (u32 w = 0; w < m.warps; w++) {
            u32 reader = m.readers[g * m.warps + w];
            if (!reader) continue;
            u32 epoch = reader >> 6, lane = reader & 63;
            bool is_over = w == self.warp->number ? lane == self.lane || epoch < self.warp->epoch
                                                  : epoch <= self.warp->clock[w];
            if (!is_over)
                fail(line, "%s to shared address %u races with a read by warp %u", what, g * GRANULE, w);
        }
        granule.writer = u16(self.number);
        granule.write_epoch = self.warp->epoch;
        granule.state = state;
        granule.store = store;
    }
    return offset;
}

inline void write_shared(u32 address, const void *from, u32 bytes, int line) {
    memcpy(machine->shared.data() + claim_shared(address, bytes, DEFINED, line, "write"), from, bytes);
}

// ---- Global memory --------------------------------------------------------------------------------------------------

inline void check_global(const void *pointer, u32 bytes, u32 alignment, bool is_write, int line) {
    Machine &m = *machine;
    const char *what = is_write ? "write" : "read";
    u64 at = reinterpret_cast<u64>(pointer);
    for (u32 turn = 0; turn < m.allocation_count; turn++) {
        u32 index = (m.last_hit + turn) % m.allocation_count;
        const Allocation &a = m.allocations[index];
        u64 base = reinterpret_cast<u64>(a.base);
        if (at < base || at + bytes > base + a.bytes) continue;
        m.last_hit = index;
        if (at % alignment) fail(line, "%s of %u bytes at %s + %llu, which is not aligned", what, bytes, a.name, at - base);
        if (is_write && !a.is_writable) fail(line, "write to %s, which is read-only", a.name);
        if (a.is_defined) {
            u8 *is_defined = a.is_defined + (at - base);
            if (is_write) memset(is_defined, 1, bytes);
            else if (memchr(is_defined, 0, bytes)) fail(line, "read of %s + %llu, which nobody wrote", a.name, at - base);
        }
        return;
    }
    // The nearest memory names the tensor that was meant.
    const Allocation *nearest = nullptr;
    u64 distance = ~0ull;
    for (u32 index = 0; index < m.allocation_count; index++) {
        const Allocation &a = m.allocations[index];
        u64 base = reinterpret_cast<u64>(a.base), end = base + a.bytes, gap = at < base ? base - at : at < end ? 0 : at - end;
        if (gap < distance) distance = gap, nearest = &a;
    }
    if (!pointer || !nearest || distance > (1ull << 40)) fail(line, "%s of %u bytes at address %p", what, bytes, pointer);
    fail(line, "%s of %u bytes outside of %s: byte %lld of %llu", what, bytes, nearest->name,
         (long long)(at - reinterpret_cast<u64>(nearest->base)), (unsigned long long)nearest->bytes);
}

} // namespace shim
