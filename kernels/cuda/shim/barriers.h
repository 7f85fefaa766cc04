// Barriers of a block, and mbarriers.
#pragma once

#include "memory.h"

namespace shim {

inline void release(const u32 *waiting) {
    for (u32 w = 0; w < machine->warps; w++) machine->warp[w].runnable |= waiting[w];
}

// Arrives at a barrier, and waits for the others or not.
inline void barrier_wait(u32 number, u32 threads, int line, bool waits = true) {
    Machine &m = *machine;
    Thread &self = *m.current;
    if (number >= 16) fail(line, "barrier %u: a block has 16", number);
    if (threads % LANES || threads > m.threads) fail(line, "barrier %u of %u threads in a block of %u", number, threads, m.threads);
    Barrier &barrier = m.barrier[number];
    // The barrier of all threads is one place in the program; named ones are arrived at here and waited for there.
    if (barrier.arrived && (barrier.expected != threads || (number == 0 && barrier.line != line)))
        fail(line, "barrier %u of %u threads, where others wait at line %d for %u", number, threads, barrier.line,
             barrier.expected);
    barrier.expected = threads;
    barrier.line = line;
    barrier.arrived++;
    // What a warp did before it arrives is what those who wait learn; what it does afterwards is not.
    publish(*self.warp, barrier.clock);
    if (!waits) self.warp->epoch++;
    if (waits) {
        self.warp->runnable &= ~(1u << self.lane);
        barrier.waiting[self.warp->number] |= 1u << self.lane;
    }
    if (barrier.arrived < threads) return waits ? give_way(self) : void();
    const Barrier done = barrier;
    for (u32 w = 0; w < m.warps; w++)
        if (done.waiting[w]) {
            learn(m.warp[w], done.clock);
            m.warp[w].epoch++;
        }
    barrier = Barrier{};
    release(done.waiting);
}

inline MemoryBarrier &memory_barrier(u32 address, int line) {
    for (MemoryBarrier &barrier : machine->memory_barriers)
        if (barrier.address == address) return barrier;
    fail(line, "shared address %u is no initialised mbarrier", address - SHARED_BASE);
}

// Begins the next phase where this one is complete, and lets go who waits.
inline void finish_phase(MemoryBarrier &barrier) {
    if (barrier.missing || barrier.bytes || !barrier.tiles.empty()) return;
    barrier.missing = barrier.arrivals;
    barrier.phase ^= 1;
    release(barrier.waiting);
    memset(barrier.waiting, 0, sizeof barrier.waiting);
}

// Arrives once, after announcing bytes that copies will bring.
inline void arrive(u32 address, u32 bytes, int line) {
    read_shared(address, 8, line);
    MemoryBarrier &barrier = memory_barrier(address, line);
    Warp &warp = *machine->current->warp;
    publish(warp, barrier.clock);
    // What this warp does from here on is not covered by the arrival. Its other lanes have to arrive for themselves.
    warp.epoch++;
    if (!barrier.missing) fail(line, "the mbarrier at %u is arrived at more often than a phase has arrivals", address - SHARED_BASE);
    barrier.bytes += bytes;
    barrier.missing--;
    if (barrier.missing) return;
    // Only copies may be missing now, and a thread that waits brings those about.
    release(barrier.waiting);
    memset(barrier.waiting, 0, sizeof barrier.waiting);
    finish_phase(barrier);
}

} // namespace shim
