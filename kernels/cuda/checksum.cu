// A checksum of device memory: tells whether a kernel changed its inputs, or its outputs after it had ended.
//
// Every word is mixed with its place (the finaliser of splitmix64, Steele et al. 2014) and the results are added, so that
// neither the order of threads nor a swap of two words goes unseen. Limit: the memory is read once.
#include "ptx.cuh"

// One sum a warp; the host adds them.
KERNEL(256, 1) checksum(Global<const u32> words, u64 count, Global<u64> sums) {
    constexpr u32 THREADS = 256, WARPS = THREADS / 32;
    u64 sum = 0;
    u64 step = static_cast<u64>(grid_size()) * THREADS;
    for (u64 i = static_cast<u64>(block_index()) * THREADS + thread_index(); i < count; i += step) {
        u64 x = (i + 1) * 0x9e3779b97f4a7c15ull ^ load(words, static_cast<i64>(i));
        x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
        x = (x ^ x >> 27) * 0x94d049bb133111ebull;
        sum += x ^ x >> 31;
    }
    u32 lane = thread_index() % 32;
    for (u32 mask = 16; mask; mask /= 2) sum += static_cast<u64>(shuffle(static_cast<i64>(sum), lane ^ mask));
    if (lane == 0) store(sums, static_cast<i64>(block_index()) * WARPS + thread_index() / 32, sum);
}
ENTRY(checksum)
