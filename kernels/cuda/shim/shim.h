// The functions of ptx.cuh on a CPU, with the semantics of the hardware and none of its leniency.
//
// Each CUDA thread is a fiber with its own stack. A fiber runs until it waits for others: at a barrier, or in an instruction
// of a whole warp (shuffle, ldmatrix, mma). Blocks run one after another. Reported as errors, with kernel, block, thread
// and source line, are:
//   * accesses outside a tensor, a workspace or the launch's shared memory, and writes to inputs and tables;
//   * misaligned accesses;
//   * reads of shared memory or workspace that nobody wrote;
//   * reads of, and writes over, the destination of an asynchronous copy that is still in flight. Copies complete as late
//     as the program allows: in the wait that forces them;
//   * data races in shared memory: two accesses by different threads, one of them a write, with no barrier (or, inside a
//     warp, no sync_warp) between them, found by vector clocks, whatever order the fibers happened to run in;
//   * barriers and warp instructions that not every thread reaches.
//
// An asynchronous agent (TMA, wgmma) joins as one more kind of pending copy that a wait completes: see `Copy`.
#pragma once

#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <sys/mman.h>
#include <time.h>
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
#define ENTRY(name) static const shim::Register<&name> register_##name{#name};
// The source line of the caller, so that an error names the kernel's line.
#define LINE int line = __builtin_LINE()

struct alignas(16) Vec4 {
    u32 word[4];
};

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

constexpr u32 LANES = 32, MAX_WARPS = 32, SHARED_BASE = 1024, MAX_SHARED = 232448, GRANULE = 4;
constexpr u32 STACK_BYTES = 256 << 10;

enum State : u8 { UNDEFINED, DEFINED, PENDING };

// What is known of four bytes of shared memory.
struct Granule {
    u32 write_epoch;
    u16 writer;
    State state;
};

// An asynchronous copy of 16 bytes; `from` is null for zeros.
struct Copy {
    u32 to;
    const u8 *from;
    u32 group;
};

enum Operation : u8 { NONE, SHUFFLE, SYNC_WARP, LOAD_MATRICES, MULTIPLY };

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
};

struct Warp {
    u32 number;
    u32 runnable, alive, arrived;
    Operation operation;
    int line;
    u32 epoch;
    // The epoch of each warp up to which this one has synchronised with it.
    u32 clock[MAX_WARPS];
};

struct Barrier {
    u32 expected, arrived;
    u32 waiting[MAX_WARPS];
    int line;
};

struct MemoryBarrier {
    u32 address, arrivals, missing, phase;
    u32 clock[MAX_WARPS];
    u32 waiting[MAX_WARPS];
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
    std::vector<MemoryBarrier> memory_barriers;
    std::vector<u8> shared;
    std::vector<Granule> granules;
    // (granule, warp): epoch << 6 | lane of the last read, lane 63 for several.
    std::vector<u32> readers;
    u8 *stacks;
    u32 stack_count;
    bool has_failed;
    char error[1024];
#if defined(__x86_64__)
    void *scheduler;
#else
    ucontext_t scheduler;
#endif
};

static thread_local Machine *machine __attribute__((tls_model("initial-exec"))) = nullptr;

// ---- Fibers ---------------------------------------------------------------------------------------------------------

#if defined(__x86_64__)
extern "C" void shim_switch(void **save, void *load);
// Saves what the System V ABI lets a callee keep, changes stacks, and returns on the other one.
asm(R"(
.text
.p2align 4
.local shim_switch
.type shim_switch, @function
shim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size shim_switch, .-shim_switch
)");
#endif

inline void resume(Thread &from, Thread &to) {
    machine->current = &to;
#if defined(__x86_64__)
    shim_switch(&from.stack_pointer, to.stack_pointer);
#else
    swapcontext(&from.context, &to.context);
#endif
}
inline void leave(Thread &from) {
#if defined(__x86_64__)
    shim_switch(&from.stack_pointer, machine->scheduler);
#else
    swapcontext(&from.context, &machine->scheduler);
#endif
}
inline void enter(Thread &to) {
    machine->current = &to;
#if defined(__x86_64__)
    shim_switch(&machine->scheduler, to.stack_pointer);
#else
    swapcontext(&machine->scheduler, &to.context);
#endif
}

// Gives way to a lane of the same warp that can run, else to the scheduler.
inline void give_way(Thread &self) {
    u32 runnable = self.warp->runnable;
    if (!runnable) return leave(self);
    u32 above = runnable & ~((2u << self.lane) - 1);
    u32 lane = __builtin_ctz(above ? above : runnable);
    resume(self, machine->thread[self.warp->number * LANES + lane]);
}

// Reports an error and never comes back.
[[noreturn]] __attribute__((format(printf, 2, 3))) static void fail(int line, const char *format, ...) {
    Machine &m = *machine;
    if (!m.has_failed) {
        m.has_failed = true;
        const Thread *t = m.current;
        int length = snprintf(m.error, sizeof m.error, "kernel %s, block (%u, %u, %u), thread (%u, %u, %u), line %d: ",
                              m.kernel, m.block.x, m.block.y, m.block.z, t->index.x, t->index.y, t->index.z, line);
        va_list list;
        va_start(list, format);
        vsnprintf(m.error + length, sizeof m.error - length, format, list);
        va_end(list);
    }
    for (;;) leave(*m.current);
}

static void fiber_main() {
    Machine &m = *machine;
    m.body(m.arguments);
    Thread &self = *m.current;
    self.warp->alive &= ~(1u << self.lane);
    self.warp->runnable &= ~(1u << self.lane);
    m.finished++;
    for (;;) give_way(self);
}

inline void prepare(Thread &thread, u8 *stack) {
#if defined(__x86_64__)
    // As if shim_switch had been called at the entry of fiber_main: the stack is 8 off 16 after the return address.
    void **top = reinterpret_cast<void **>(stack + STACK_BYTES - 64);
    *--top = nullptr;
    *--top = reinterpret_cast<void *>(&fiber_main);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    thread.stack_pointer = top;
#else
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = stack;
    thread.context.uc_stack.ss_size = STACK_BYTES;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, fiber_main, 0);
#endif
}

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
    for (u32 g = offset / GRANULE; g < (offset + bytes) / GRANULE; g++) {
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

inline u32 claim_shared(u32 address, u32 bytes, State state, int line, const char *what) {
    Machine &m = *machine;
    Thread &self = *m.current;
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

// ---- Asynchronous copies --------------------------------------------------------------------------------------------

// Completes this thread's copies of groups before `end`.
inline void complete_copies(u32 end, int line) {
    Machine &m = *machine;
    Thread &self = *m.current;
    size_t done = 0;
    for (; done < self.copies.size() && self.copies[done].group < end; done++) {
        const Copy &copy = self.copies[done];
        u32 offset = copy.to - SHARED_BASE;
        if (copy.from) {
            check_global(copy.from, 16, 16, false, line);
            memcpy(m.shared.data() + offset, copy.from, 16);
        } else {
            memset(m.shared.data() + offset, 0, 16);
        }
        for (u32 g = offset / GRANULE; g < (offset + 16) / GRANULE; g++) {
            m.granules[g].state = DEFINED;
            m.granules[g].write_epoch = self.warp->epoch;
        }
    }
    self.copies.erase(self.copies.begin(), self.copies.begin() + done);
}

// ---- Barriers -------------------------------------------------------------------------------------------------------

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

// ---- Instructions of a warp -----------------------------------------------------------------------------------------

// Brings the running thread to its warp's instruction; the last lane executes it for all with `execute`.
template <class Execute> inline void together(Operation operation, int line, Execute execute) {
    Machine &m = *machine;
    Thread &self = *m.current;
    Warp &warp = *self.warp;
    if (warp.arrived && (warp.operation != operation || warp.line != line))
        fail(line, "an instruction of the whole warp, of which other lanes are in another at line %d", warp.line);
    warp.operation = operation;
    warp.line = line;
    warp.arrived |= 1u << self.lane;
    warp.runnable &= ~(1u << self.lane);
    if (warp.arrived != ~0u) return give_way(self);
    warp.arrived = 0;
    warp.operation = NONE;
    warp.runnable = ~0u;
    execute(&m.thread[warp.number * LANES]);
}

inline f32 half_to_f32(u16 bits) {
    _Float16 value;
    memcpy(&value, &bits, 2);
    return f32(value);
}
inline u16 f32_to_half(f32 x) {
    _Float16 value = _Float16(x);
    u16 bits;
    memcpy(&bits, &value, 2);
    return bits;
}
inline f32 bits_to_float(u32 bits) {
    f32 value;
    memcpy(&value, &bits, 4);
    return value;
}
inline u32 float_to_bits(f32 value) {
    u32 bits;
    memcpy(&bits, &value, 4);
    return bits;
}
inline f32 bf16_to_f32(u16 bits) { return bits_to_float(u32(bits) << 16); }
inline u16 f32_to_bf16(f32 x) {
    u32 bits = float_to_bits(x);
    if (x != x) return u16(bits >> 16 | 0x40);
    return u16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <f32 (*widen)(u16)> inline void multiply_warp(Thread *lanes) {
    f32 a[16][16], b[16][8], d[16][8];
    for (u32 lane = 0; lane < LANES; lane++) {
        const Thread &thread = lanes[lane];
        u32 g = lane / 4, t = lane % 4;
        for (u32 i = 0; i < 4; i++) {
            u32 pair = thread.in[0][i], row = g + 8 * (i & 1), column = 2 * t + 8 * (i >> 1);
            a[row][column] = widen(u16(pair));
            a[row][column + 1] = widen(u16(pair >> 16));
        }
        for (u32 i = 0; i < 2; i++) {
            u32 pair = thread.in[1][i], row = 2 * t + 8 * i;
            b[row][g] = widen(u16(pair));
            b[row + 1][g] = widen(u16(pair >> 16));
        }
        const f32 *c = reinterpret_cast<const f32 *>(thread.out);
        for (u32 i = 0; i < 4; i++) d[g + 8 * (i >> 1)][2 * t + (i & 1)] = c[i];
    }
    for (u32 row = 0; row < 16; row++)
        for (u32 k = 0; k < 16; k++)
            for (u32 column = 0; column < 8; column++) d[row][column] += a[row][k] * b[k][column];
    for (u32 lane = 0; lane < LANES; lane++) {
        u32 g = lane / 4, t = lane % 4;
        f32 *c = reinterpret_cast<f32 *>(lanes[lane].out);
        for (u32 i = 0; i < 4; i++) c[i] = d[g + 8 * (i >> 1)][2 * t + (i & 1)];
    }
}

template <f32 (*widen)(u16)> inline void multiply(f32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, int line) {
    Thread &self = *machine->current;
    u32 b[2] = {b0, b1}, aa[4] = {a[0], a[1], a[2], a[3]};
    f32 c[4] = {d[0], d[1], d[2], d[3]};
    self.in[0] = aa;
    self.in[1] = b;
    self.out = reinterpret_cast<u32 *>(c);
    together(MULTIPLY, line, multiply_warp<widen>);
    // Through memory, since another fiber wrote it.
    asm volatile("" ::: "memory");
    for (int i = 0; i < 4; i++) d[i] = c[i];
}

inline void load_matrices(u32 (&r)[4], u32 address, bool is_transposed, int line) {
    Thread &self = *machine->current;
    alignas(16) u16 row[8];
    memcpy(row, read_shared(address, 16, line), 16);
    u32 answer[4];
    self.in[0] = reinterpret_cast<u32 *>(row);
    self.out = answer;
    self.operand = is_transposed;
    together(LOAD_MATRICES, line, [](Thread *lanes) {
        for (u32 lane = 0; lane < LANES; lane++)
            for (u32 matrix = 0; matrix < 4; matrix++) {
                u32 major = lane / 4, minor = 2 * (lane % 4);
                auto element = [&](u32 r, u32 c) { return reinterpret_cast<const u16 *>(lanes[8 * matrix + r].in[0])[c]; };
                u32 low = lanes[lane].operand ? element(minor, major) : element(major, minor);
                u32 high = lanes[lane].operand ? element(minor + 1, major) : element(major, minor + 1);
                lanes[lane].out[matrix] = low | high << 16;
            }
    });
    asm volatile("" ::: "memory");
    for (int i = 0; i < 4; i++) r[i] = answer[i];
}

// Lane l gets the value of lane `source`.
inline u32 shuffle(u32 value, u32 source, int line) {
    Thread &self = *machine->current;
    if (source >= LANES) fail(line, "shuffle from lane %u", source);
    u32 answer;
    self.in[0] = &value;
    self.out = &answer;
    self.operand = source;
    together(SHUFFLE, line, [](Thread *lanes) {
        for (u32 lane = 0; lane < LANES; lane++) *lanes[lane].out = *lanes[lanes[lane].operand].in[0];
    });
    asm volatile("" ::: "memory");
    return answer;
}

// ---- Launches -------------------------------------------------------------------------------------------------------

struct Entry {
    const char *name, *signature;
    void (*body)(void **);
    const Entry *next;
};
static const Entry *entries = nullptr;

} // namespace shim

template <class T> struct Global {
    T *pointer;
    bool exists() const { return pointer != nullptr; }
    Global operator+(i64 elements) const { return Global{pointer + elements}; }
};

namespace shim {

// One letter a parameter: P pointer, U u32, I i32, F f32, L u64, and S with its bytes for a structure.
template <class T> struct Letter {
    static void write(char *&to, char *end) { to += snprintf(to, end - to, "S%zu;", sizeof(T)); }
};
#define SHIM_LETTER(type, text)                                                                                         \
    template <> struct Letter<type> {                                                                                   \
        static void write(char *&to, char *end) { to += snprintf(to, end - to, text ";"); }                             \
    };
SHIM_LETTER(u32, "U")
SHIM_LETTER(i32, "I")
SHIM_LETTER(f32, "F")
SHIM_LETTER(u64, "L")
template <class T> struct Letter<Global<T>> {
    static void write(char *&to, char *end) { to += snprintf(to, end - to, "P;"); }
};

template <auto kernel> struct Register;
template <class... A, void (*kernel)(A...)> struct Register<kernel> {
    Entry entry;
    char signature[512] = {};
    template <size_t... i> static void call(void **arguments, std::index_sequence<i...>) {
        kernel(*static_cast<A *>(arguments[i])...);
    }
    explicit Register(const char *name) {
        char *to = signature;
        (Letter<A>::write(to, signature + sizeof signature), ...);
        entry = {name, signature, [](void **arguments) { call(arguments, std::index_sequence_for<A...>{}); }, entries};
        entries = &entry;
    }
};

inline const Entry *find(const char *name) {
    for (const Entry *entry = entries; entry; entry = entry->next)
        if (!strcmp(entry->name, name)) return entry;
    return nullptr;
}

// Runs one block; the error is in the machine.
inline void run_block(Machine &m) {
    m.finished = 0;
    m.memory_barriers.clear();
    memset(m.barrier, 0, sizeof m.barrier);
    memset(m.warp, 0, sizeof m.warp);
    // Bytes that read as NaN in every float type, for whoever gets past the checks.
    memset(m.shared.data(), 0xff, m.shared.size());
    memset(m.granules.data(), 0, m.granules.size() * sizeof(Granule));
    memset(m.readers.data(), 0, m.readers.size() * sizeof(u32));
    for (u32 w = 0; w < m.warps; w++) {
        u32 lanes = m.threads - w * LANES;
        m.warp[w].number = w;
        m.warp[w].epoch = 1;
        m.warp[w].runnable = m.warp[w].alive = lanes >= LANES ? ~0u : (1u << lanes) - 1;
    }
    for (u32 t = 0; t < m.threads; t++) {
        Thread &thread = m.thread[t];
        thread.index = {t % m.block_size.x, t / m.block_size.x % m.block_size.y, t / m.block_size.x / m.block_size.y};
        thread.number = t;
        thread.lane = t % LANES;
        thread.warp = &m.warp[t / LANES];
        thread.copies.clear();
        thread.groups_committed = 0;
        prepare(thread, m.stacks + size_t(t) * STACK_BYTES);
    }
    while (m.finished < m.threads && !m.has_failed) {
        bool is_stuck = true;
        for (u32 w = 0; w < m.warps && !m.has_failed; w++) {
            if (!m.warp[w].runnable) continue;
            is_stuck = false;
            enter(m.thread[w * LANES + __builtin_ctz(m.warp[w].runnable)]);
        }
        if (!is_stuck || m.has_failed) continue;
        // Nobody can go on: say who waits where.
        char text[512];
        int length = snprintf(text, sizeof text, "%u of %u threads have ended", m.finished, m.threads);
        int line = 0;
        for (u32 b = 0; b < 16; b++)
            if (m.barrier[b].arrived) {
                line = m.barrier[b].line;
                length += snprintf(text + length, sizeof text - length, "; %u of %u are at barrier %u at line %d",
                                   m.barrier[b].arrived, m.barrier[b].expected, b, line);
            }
        for (u32 w = 0; w < m.warps && length < int(sizeof text) - 128; w++)
            if (m.warp[w].arrived) {
                line = m.warp[w].line;
                length += snprintf(text + length, sizeof text - length, "; lanes %08x of warp %u are in a warp's instruction at line %d",
                                   m.warp[w].arrived, w, line);
            }
        for (const MemoryBarrier &barrier : m.memory_barriers)
            for (u32 w = 0; w < m.warps && length < int(sizeof text) - 128; w++)
                if (barrier.waiting[w])
                    length += snprintf(text + length, sizeof text - length, "; lanes %08x of warp %u wait for the mbarrier at %u",
                                       barrier.waiting[w], w, barrier.address - SHARED_BASE);
        m.has_failed = true;
        snprintf(m.error, sizeof m.error, "kernel %s, block (%u, %u, %u), line %d: not every thread arrives: %s", m.kernel,
                 m.block.x, m.block.y, m.block.z, line, text);
    }
}

} // namespace shim

// ---- What ptx.cuh promises ------------------------------------------------------------------------------------------

inline u32 thread_index() { return shim::machine->current->index.x; }
inline u32 block_index() { return shim::machine->block.x; }
inline u32 block_index_y() { return shim::machine->block.y; }
inline u32 block_index_z() { return shim::machine->block.z; }
inline u32 grid_size() { return shim::machine->grid.x; }

inline u32 opaque(u32 value) { return value; }

// The host's clock, whose cycles are its nanoseconds; every block is on the multiprocessor of its number.
inline u64 timer_ns() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return u64(now.tv_sec) * 1000000000 + u64(now.tv_nsec);
}
inline u64 clock_cycles() { return timer_ns(); }
inline u32 multiprocessor_index() { return shim::machine->block.x; }

template <class T> inline T load(Global<T> p, i64 index, LINE) {
    shim::check_global(p.pointer + index, sizeof(T), sizeof(T), false, line);
    return p.pointer[index];
}
inline u32 load_volatile(Global<const u32> p, i64 index, LINE) {
    shim::check_global(p.pointer + index, 4, 4, false, line);
    return __atomic_load_n(p.pointer + index, __ATOMIC_ACQUIRE);
}
template <class T> inline T load_struct(Global<const T> p, i64 index, LINE) {
    static_assert(sizeof(T) % 4 == 0, "a structure of whole words");
    shim::check_global(p.pointer + index, sizeof(T), alignof(T), false, line);
    return p.pointer[index];
}
template <class T> inline Vec4 load_vec4(Global<const T> p, i64 index, LINE) {
    shim::check_global(p.pointer + index, 16, 16, false, line);
    Vec4 v;
    memcpy(&v, p.pointer + index, 16);
    return v;
}
template <class T> inline void store(Global<T> p, i64 index, T value, LINE) {
    shim::check_global(p.pointer + index, sizeof(T), sizeof(T), true, line);
    p.pointer[index] = value;
}
template <class T> inline void store_vec4(Global<T> p, i64 index, Vec4 v, LINE) {
    shim::check_global(p.pointer + index, 16, 16, true, line);
    memcpy(p.pointer + index, &v, 16);
}

inline u32 shared_memory() { return shim::SHARED_BASE; }
inline f32 load_shared_f32(u32 address, LINE) {
    f32 value;
    memcpy(&value, shim::read_shared(address, 4, line), 4);
    return value;
}
inline u32 load_shared_u32(u32 address, LINE) {
    u32 value;
    memcpy(&value, shim::read_shared(address, 4, line), 4);
    return value;
}
inline Vec4 load_shared_vec4(u32 address, LINE) {
    Vec4 v;
    memcpy(&v, shim::read_shared(address, 16, line), 16);
    return v;
}
inline void store_shared(u32 address, f32 value, LINE) { shim::write_shared(address, &value, 4, line); }
inline void store_shared(u32 address, u32 value, LINE) { shim::write_shared(address, &value, 4, line); }
inline void store_shared_vec4(u32 address, Vec4 v, LINE) { shim::write_shared(address, &v, 16, line); }

template <class T> inline void copy_async_16(u32 address, Global<const T> p, i64 index, bool is_valid, LINE) {
    shim::Thread &self = *shim::machine->current;
    const u8 *from = is_valid ? reinterpret_cast<const u8 *>(p.pointer + index) : nullptr;
    if (is_valid) shim::check_global(from, 16, 16, false, line);
    shim::claim_shared(address, 16, shim::PENDING, line, "asynchronous copy");
    self.copies.push_back({address, from, self.groups_committed});
}
inline void copy_async_commit() { shim::machine->current->groups_committed++; }
template <int in_flight> inline void copy_async_wait(LINE) {
    u32 committed = shim::machine->current->groups_committed;
    if (committed > u32(in_flight)) shim::complete_copies(committed - in_flight, line);
}

inline void sync_threads(LINE) { shim::barrier_wait(0, shim::machine->threads, line); }
inline void sync_named(u32 barrier, u32 threads, LINE) { shim::barrier_wait(barrier, threads, line); }
inline void sync_warp(LINE) {
    shim::together(shim::SYNC_WARP, line, [](shim::Thread *lanes) { lanes->warp->epoch++; });
}

inline void mbarrier_init(u32 address, u32 arrivals, LINE) {
    u64 zero = 0;
    if (!arrivals) shim::fail(line, "an mbarrier of no arrivals");
    shim::write_shared(address, &zero, 8, line);
    auto &barriers = shim::machine->memory_barriers;
    for (size_t i = 0; i < barriers.size(); i++)
        if (barriers[i].address == address) barriers.erase(barriers.begin() + i--);
    shim::MemoryBarrier barrier = {};
    barrier.address = address;
    barrier.arrivals = barrier.missing = arrivals;
    barriers.push_back(barrier);
}
// The shared memory of an mbarrier is read by every use, so that a use before its initialisation is visible is a race.
inline void mbarrier_arrive(u32 address, LINE) {
    shim::read_shared(address, 8, line);
    shim::MemoryBarrier &barrier = shim::memory_barrier(address, line);
    shim::Warp &warp = *shim::machine->current->warp;
    shim::publish(warp, barrier.clock);
    // What this warp does from here on is not covered by the arrival. Its other lanes have to arrive for themselves.
    warp.epoch++;
    if (--barrier.missing) return;
    barrier.missing = barrier.arrivals;
    barrier.phase ^= 1;
    shim::release(barrier.waiting);
    memset(barrier.waiting, 0, sizeof barrier.waiting);
}
inline void mbarrier_wait(u32 address, u32 parity, LINE) {
    shim::read_shared(address, 8, line);
    shim::Thread &self = *shim::machine->current;
    for (;;) {
        shim::MemoryBarrier &barrier = shim::memory_barrier(address, line);
        if ((barrier.phase & 1) != (parity & 1)) {
            shim::learn(*self.warp, barrier.clock);
            return;
        }
        self.warp->runnable &= ~(1u << self.lane);
        barrier.waiting[self.warp->number] |= 1u << self.lane;
        shim::give_way(self);
    }
}

inline f32 shuffle_xor(f32 value, u32 mask, LINE) {
    u32 lane = shim::machine->current->lane ^ mask;
    return shim::bits_to_float(shim::shuffle(shim::float_to_bits(value), lane, line));
}
inline f32 shuffle(f32 value, u32 lane, LINE) {
    return shim::bits_to_float(shim::shuffle(shim::float_to_bits(value), lane, line));
}
inline i32 shuffle(i32 value, u32 lane, LINE) { return i32(shim::shuffle(u32(value), lane, line)); }
inline i64 shuffle(i64 value, u32 lane, LINE) {
    u32 low = shim::shuffle(u32(value), lane, line), high = shim::shuffle(u32(u64(value) >> 32), lane, line);
    return i64(u64(high) << 32 | low);
}
inline void load_matrices(u32 (&r)[4], u32 address, LINE) { shim::load_matrices(r, address, false, line); }
inline void load_matrices_transposed(u32 (&r)[4], u32 address, LINE) { shim::load_matrices(r, address, true, line); }

struct Bf16 {
    using Storage = u16;
    static f32 widen(u16 x) { return shim::bf16_to_f32(x); }
    static u32 pack(f32 low, f32 high) { return shim::f32_to_bf16(low) | u32(shim::f32_to_bf16(high)) << 16; }
    static void multiply(f32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, LINE) {
        shim::multiply<shim::bf16_to_f32>(d, a, b0, b1, line);
    }
};
struct F16 {
    using Storage = u16;
    static f32 widen(u16 x) { return shim::half_to_f32(x); }
    static u32 pack(f32 low, f32 high) { return shim::f32_to_half(low) | u32(shim::f32_to_half(high)) << 16; }
    static void multiply(f32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, LINE) {
        shim::multiply<shim::half_to_f32>(d, a, b0, b1, line);
    }
};

struct F32 {
    using Storage = f32;
    static f32 widen(f32 x) { return x; }
};
template <class Element> inline typename Element::Storage narrow(f32 x) { return u16(Element::pack(x, 0.0f)); }
template <> inline f32 narrow<F32>(f32 x) { return x; }

inline f32 exp2_fast(f32 x) {
    f32 y = exp2f(x);
    return fabsf(y) < 0x1p-126f ? 0.0f : y;
}
inline f32 log2_fast(f32 x) { return log2f(x); }
inline f32 reciprocal_fast(f32 x) { return 1.0f / x; }
inline f32 fused_multiply_add(f32 a, f32 b, f32 c) { return fmaf(a, b, c); }
inline f32 max_f32(f32 a, f32 b) { return fmaxf(a, b); }
inline f32 bits_to_f32(u32 bits) { return shim::bits_to_float(bits); }
inline u32 f32_to_bits(f32 x) { return shim::float_to_bits(x); }

// ---- What the host calls --------------------------------------------------------------------------------------------

// The parameters of an entry as letters, or null where there is none of that name.
extern "C" const char *shim_signature(const char *name) {
    const shim::Entry *entry = shim::find(name);
    return entry ? entry->signature : nullptr;
}

// Runs a launch; `arguments` point to the values of the parameters. Returns whether it succeeded, else `error` says why.
extern "C" bool shim_launch(const char *name, const u32 *grid, const u32 *block, u32 shared_bytes, void **arguments,
                            const shim::Allocation *allocations, u32 allocation_count, char *error, u64 error_bytes) {
    using namespace shim;
    const Entry *entry = find(name);
    u64 threads = u64(block[0]) * block[1] * block[2];
    const char *refusal = !entry                                                       ? "there is no such kernel"
                          : threads == 0 || threads > 1024                            ? "a block has 1 to 1024 threads"
                          : shared_bytes > MAX_SHARED                                 ? "a block has at most 227 KiB of shared memory"
                          : !grid[0] || !grid[1] || !grid[2]                          ? "the grid is empty"
                          : grid[0] > 0x7fffffffu || grid[1] > 65535 || grid[2] > 65535 ? "the grid is too large"
                                                                                      : nullptr;
    if (refusal) {
        snprintf(error, error_bytes, "launch of %s: %s", name, refusal);
        return false;
    }
    // One a host thread, kept for the next launch: the thread-local block has room for a pointer only.
    if (!machine) machine = new Machine();
    Machine &m = *machine;
    m.kernel = entry->name;
    m.body = entry->body;
    m.arguments = arguments;
    m.allocations = allocations;
    m.allocation_count = allocation_count;
    m.last_hit = 0;
    m.has_failed = false;
    m.grid = {grid[0], grid[1], grid[2]};
    m.block_size = {block[0], block[1], block[2]};
    m.threads = u32(threads);
    m.warps = (m.threads + LANES - 1) / LANES;
    m.shared_bytes = shared_bytes;
    m.shared.resize(shared_bytes);
    m.granules.resize((shared_bytes + GRANULE - 1) / GRANULE);
    m.readers.resize(m.granules.size() * m.warps);
    m.thread.resize(m.threads);
    if (m.stack_count < m.threads) {
        if (m.stacks) munmap(m.stacks, size_t(m.stack_count) * STACK_BYTES);
        void *stacks = mmap(nullptr, size_t(m.threads) * STACK_BYTES, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stacks == MAP_FAILED) {
            m.stacks = nullptr;
            m.stack_count = 0;
            snprintf(error, error_bytes, "launch of %s: no memory for the stacks of %u threads", name, m.threads);
            return false;
        }
        m.stacks = static_cast<u8 *>(stacks);
        m.stack_count = m.threads;
        // The lowest page of each stack is a wall.
        for (u32 t = 0; t < m.threads; t++) mprotect(m.stacks + size_t(t) * STACK_BYTES, 4096, PROT_NONE);
    }
    for (u32 z = 0; z < grid[2] && !m.has_failed; z++)
        for (u32 y = 0; y < grid[1] && !m.has_failed; y++)
            for (u32 x = 0; x < grid[0] && !m.has_failed; x++) {
                m.block = {x, y, z};
                run_block(m);
            }
    if (m.has_failed) snprintf(error, error_bytes, "%s", m.error);
    return !m.has_failed;
}
