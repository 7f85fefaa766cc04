// Barriers of a block, and mbarriers.
#pragma once

#include "memory.h"

namespace shim {

inline void release(const u32 *waiting) {
    for (u32 w = 0; w < machine->warps; w++) machine->warp[w].runnable |= waiting[w];
}

inline void barrier_wait(u32 number, u32 threads, int line) {
    Machine &m = *machine;
    Thread &self = *m.current;
    if (number >= 16) fail(line, "barrier %u: a block has 16", number);
    if (threads % LANES || threads > m.threads) fail(line, "barrier %u of %u threads in a block of %u", number, threads, m.threads);
    Barrier &barrier = m.barrier[number];
    if (barrier.arrived && (barrier.expected != threads || barrier.line != line))
        fail(line, "barrier %u of %u threads, where others wait at line %d for %u", number, threads, barrier.line,
             barrier.expected);
    barrier.expected = threads;
    barrier.line = line;
    barrier.arrived++;
    self.warp->runnable &= ~(1u << self.lane);
    barrier.waiting[self.warp->number] |= 1u << self.lane;
    if (barrier.arrived < threads) return give_way(self);
    u32 clock[MAX_WARPS] = {}, waiting[MAX_WARPS];
    memcpy(waiting, barrier.waiting, sizeof waiting);
    for (u32 w = 0; w < m.warps; w++)
        if (waiting[w]) publish(m.warp[w], clock);
    for (u32 w = 0; w < m.warps; w++)
        if (waiting[w]) {
            learn(m.warp[w], clock);
            m.warp[w].epoch++;
        }
    barrier = Barrier{};
    release(waiting);
}

inline MemoryBarrier &memory_barrier(u32 address, int line) {
    for (MemoryBarrier &barrier : machine->memory_barriers)
        if (barrier.address == address) return barrier;
    fail(line, "shared address %u is no initialised mbarrier", address - SHARED_BASE);
}

} // namespace shim
