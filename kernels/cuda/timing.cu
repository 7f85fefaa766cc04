// What times kernels: a kernel that holds the queue back, stamps of the device's clocks, and a kernel of a known length.
//
// A launch takes the host microseconds, and a short kernel would wait for the next launch of its plan. So `hold` keeps the
// stream busy until everything of a sample is enqueued. It gives up after `limit_ns`, since a full queue blocks the host.
#include "ptx.cuh"

// Waits until the host sets the word; says so where it gave up.
KERNEL(1, 1) hold(Global<const u32> is_released, Global<u32> has_given_up, u64 limit_ns) {
    u64 start = timer_ns();
    while (!load_volatile(is_released, 0))
        if (timer_ns() - start > limit_ns) return store(has_given_up, 0, 1u);
}
ENTRY(hold)

// Three words a block: the number of its multiprocessor, nanoseconds, and cycles of that multiprocessor, read together.
KERNEL(1, 1) stamp(Global<u64> stamps) {
    i64 at = 3 * static_cast<i64>(block_index());
    u64 cycles = clock_cycles(), now_ns = timer_ns();
    store<u64>(stamps, at, multiprocessor_index());
    store(stamps, at + 1, now_ns);
    store(stamps, at + 2, cycles);
}
ENTRY(stamp)

// Does nothing for this long: what is measured of it is what is wrong with the measuring.
KERNEL(1, 1) spin(u64 duration_ns) {
    u64 start = timer_ns();
    while (timer_ns() - start < duration_ns) {
    }
}
ENTRY(spin)
