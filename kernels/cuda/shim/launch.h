// Kernels by name, and the launch of one: its blocks run one after another.
#pragma once

#include "groups.h"

namespace shim {

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
    memset(m.wants_registers, 0, sizeof m.wants_registers);
    memset(m.warp, 0, sizeof m.warp);
    // Bytes that read as NaN in every float type, for whoever gets past the checks.
    memset(m.shared.data(), 0xff, m.shared.size());
    memset(m.granules.data(), 0, m.granules.size() * sizeof(Granule));
    memset(m.readers.data(), 0, m.readers.size() * sizeof(u32));
    for (u32 w = 0; w < m.warps; w++) {
        u32 lanes = m.threads - w * LANES;
        m.warp[w].number = w;
        m.warp[w].epoch = 1;
        m.warp[w].registers = registers_at_launch(m.threads);
        m.products[w].clear();
        m.warp[w].runnable = m.warp[w].alive = lanes >= LANES ? ~0u : (1u << lanes) - 1;
    }
    for (u32 t = 0; t < m.threads; t++) {
        Thread &thread = m.thread[t];
        thread.index = {t % m.block_size.x, t / m.block_size.x % m.block_size.y, t / m.block_size.x / m.block_size.y};
        thread.number = t;
        thread.lane = t % LANES;
        thread.warp = &m.warp[t / LANES];
        thread.copies.clear();
        thread.groups_committed = thread.stores = thread.stores_shown = 0;
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
        for (u32 w = 0; w < m.warps && length < int(sizeof text) - 128; w++)
            if (m.wants_registers[w]) length += snprintf(text + length, sizeof text - length, "; warp %u wants registers that nobody gave back", w);
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

// The parameters of an entry as letters, or null where there is none of that name.
extern "C" const char *shim_signature(const char *name) {
    const shim::Entry *entry = shim::find(name);
    return entry ? entry->signature : nullptr;
}

// From now on, launches of this host thread leave out the barrier or wait at this place; no line is none.
extern "C" void shim_leave_out(const char *file, int line) {
    *shim::left_out(true) = {file, line};
}

// From now on, launches of this host thread run their blocks last first: what blocks add to the same memory is then added in
// another order.
extern "C" void shim_reverse_blocks(bool is_reversed) {
    if (!shim::machine) shim::machine = new shim::Machine();
    shim::machine->is_reversed = is_reversed;
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
                if (m.is_reversed) m.block = {grid[0] - 1 - x, grid[1] - 1 - y, grid[2] - 1 - z};
                run_block(m);
            }
    if (m.has_failed) snprintf(error, error_bytes, "%s", m.error);
    // Walls cut memory into so many pieces that those of many modules and host threads together would exceed what a process may
    // have: none are kept.
    munmap(m.stacks, size_t(m.stack_count) * STACK_BYTES);
    m.stacks = nullptr;
    m.stack_count = 0;
    return !m.has_failed;
}
