// The state of a block in flight: its threads, warps, barriers, shared memory, and what is known of each byte of it.
#pragma once

#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <utility>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef unsigned long long u64;
typedef int32_t i32;
typedef long long i64;
typedef float f32;

#define DEVICE inline
#define KERNEL(threads, blocks) static void
#define GRID_CONSTANT
#define ENTRY(name) static const shim::Register<&name> register_##name{#name};
// The source line of the caller, so that an error names the kernel's line.
#define LINE int line = __builtin_LINE()
#define PLACE LINE, const char *file = __builtin_FILE()

struct alignas(16) Vec4 {
    u32 word[4];
};

struct TensorMap;

namespace shim {

struct Index {
    u32 x, y, z;
};

// Memory that a kernel may touch.
struct Allocation {
    u8 *base;
    u64 bytes;
    const char *name;
    // For memory that starts undefined: one byte a byte, 1 where something was written. Else null.
    u8 *is_defined;
    u32 is_writable;
};

// The barrier or wait that does nothing, so that a test can see whether anybody misses it: a file's name and a line.
struct LeftOut {
    const char *file;
    int line;
};

// That of this thread; null until it is wanted.
inline LeftOut *left_out(bool is_wanted) {
    static thread_local LeftOut own{};
    static thread_local bool is_there = false;
    is_there |= is_wanted;
    return is_there ? &own : nullptr;
}

inline bool is_left_out(const char *file, int line) {
    const LeftOut *out = left_out(false);
    if (!out || line != out->line) return false;
    const char *slash = strrchr(file, '/');
    return strcmp(slash ? slash + 1 : file, out->file) == 0;
}

constexpr u32 LANES = 32, MAX_WARPS = 32, SHARED_BASE = 1024, MAX_SHARED = 232448, GRANULE = 4;
constexpr u32 STACK_BYTES = 256 << 10;

enum State : u8 { UNDEFINED, DEFINED, PENDING };

// What is known of four bytes of shared memory.
struct Granule {
    u32 write_epoch;
    u16 writer;
    State state;
    // The number of the writing thread's store, or 0 for what the copy engine brought: see `Thread::stores_shown`.
    u32 store;
};

// An asynchronous copy of 16 bytes; `from` is null for zeros.
struct Copy {
    u32 to;
    const u8 *from;
    u32 group;
};

enum Operation : u8 { NONE, SHUFFLE, VOTE, SYNC_WARP, LOAD_MATRICES, MULTIPLY, GROUP_FENCE, GROUP_MULTIPLY, GROUP_COMMIT, GROUP_WAIT, REGISTERS_CHANGE };

struct Warp;

struct Thread {
#if defined(__x86_64__)
    void *stack_pointer;
#else
    ucontext_t context;
#endif
    Index index;
    u32 number, lane;
    Warp *warp;
    // What the thread brought to its warp's instruction, and where the answer goes.
    u32 *in[3];
    u32 *out;
    u32 operand;
    std::vector<Copy> copies;
    u32 groups_committed;
    // Stores to shared memory so far, and how many of them products and copies of tiles can see.
    u32 stores, stores_shown;
};

struct Warp {
    u32 number;
    u32 runnable, alive, arrived;
    Operation operation;
    int line;
    u32 epoch;
    // Registers a thread; whether products may follow; groups of products that were closed.
    u32 registers;
    bool is_fenced;
    u32 groups_committed;
    // The epoch of each warp up to which this one has synchronised with it.
    u32 clock[MAX_WARPS];
};

struct Barrier {
    u32 expected, arrived;
    u32 waiting[MAX_WARPS];
    u32 clock[MAX_WARPS];
    int line;
};

// A tile on its way: where it goes, who asked for it, and which box; without a map, bytes as they lie.
struct TileCopy {
    u32 to, bytes, warp, epoch;
    const TensorMap *map;
    i32 at[5];
    const u8 *from;
};

// A phase ends when no arrival is missing and `bytes`, announced less copied, is 0.
struct MemoryBarrier {
    u32 address, arrivals, missing, phase;
    i64 bytes;
    // Whether the copy engine sees that it was initialised, and by whom it was.
    bool is_fenced;
    u32 initialised_by;
    std::vector<TileCopy> tiles;
    u32 clock[MAX_WARPS];
    u32 waiting[MAX_WARPS];
};

// A warp's share of a warpgroup's product, 16 rows of it, which runs until somebody waits for its group.
struct GroupProduct {
    // `inner` of the dimension that is summed over: 32 bytes of it.
    u32 columns, group, inner;
    f32 (*widen)(u16);
    bool adds, a_is_transposed, b_is_transposed, a_is_in_registers;
    u64 a, b;
    // A of each lane, its accumulators, and what they held when the first product in flight on them began; none for later ones.
    u32 registers[LANES][4];
    f32 *accumulators[LANES];
    std::vector<f32> values;
    int line;
};

// One block in flight on this host thread.
struct Machine {
    const char *kernel;
    Index grid, block_size, block;
    u32 threads, warps, shared_bytes, finished;
    void (*body)(void **);
    void **arguments;
    const Allocation *allocations;
    u32 allocation_count, last_hit;
    Thread *current;
    std::vector<Thread> thread;
    Warp warp[MAX_WARPS];
    Barrier barrier[16];
    std::vector<GroupProduct> products[MAX_WARPS];
    // Lanes of each warp that wait for registers.
    u32 wants_registers[MAX_WARPS];
    std::vector<MemoryBarrier> memory_barriers;
    std::vector<u8> shared;
    std::vector<Granule> granules;
    // (granule, warp): epoch << 6 | lane of the last read, lane 63 for several.
    std::vector<u32> readers;
    u8 *stacks;
    u32 stack_count;
    bool has_failed;
    // Whether the last block runs first.
    bool is_reversed;
    char error[1024];
#if defined(__x86_64__)
    void *scheduler;
#else
    ucontext_t scheduler;
#endif
};

static thread_local Machine *machine = nullptr;

} // namespace shim
