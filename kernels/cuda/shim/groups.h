// Products of warpgroups (wgmma), which run until somebody waits for them, and registers that warpgroups hand to each other.
//
// Each warp computes its own 16 rows; the warps of a group need not be at the same product at the same time, as on the device.
// A product takes place as late as the program allows, in the wait that forces it: shared memory is read then, so whoever
// overwrites it too early is found. Until then the accumulators are NaN.
//
// Sums of e4m3 products keep 14 bits of mantissa, which is what is known of Hopper's (DeepSeek-AI 2024, DeepSeek-V3 technical
// report, section 3.3.2); that the rest is cut off after each instruction is this model's choice, and the worst that a step can do.
#pragma once

#include "tiles.h"
#include "warps.h"

namespace shim {

constexpr u32 GROUP_WARPS = 4, REGISTERS = 65536;

// What the compiler gives a thread of a block of as many, when one block is to fit.
inline u32 registers_at_launch(u32 threads) {
    const u32 share = REGISTERS / ((threads + LANES - 1) / LANES * LANES) / 8 * 8;
    return share < 255 ? share : 255;
}

inline u32 registers_in_use() {
    u32 sum = 0;
    for (u32 w = 0; w < machine->warps; w++) sum += machine->warp[w].registers * LANES;
    return sum;
}

inline void give_back_registers(u32 registers, int line) {
    Machine &m = *machine;
    Warp &warp = *m.current->warp;
    if (registers < 24 || registers > 256 || registers % 8) fail(line, "%u registers: a multiple of 8 of 24 to 256", registers);
    if (registers > warp.registers) fail(line, "giving back registers down to %u, of which there are %u", registers, warp.registers);
    together(REGISTERS_CHANGE, line, [](Thread *) {});
    warp.registers = registers;
    for (u32 w = 0; w < m.warps; w++) m.warp[w].runnable |= m.wants_registers[w], m.wants_registers[w] = 0;
}

inline void take_registers(u32 registers, int line) {
    Machine &m = *machine;
    Thread &self = *m.current;
    Warp &warp = *self.warp;
    if (registers < 24 || registers > 256 || registers % 8) fail(line, "%u registers: a multiple of 8 of 24 to 256", registers);
    if (registers < warp.registers) fail(line, "taking registers up to %u, of which there are %u", registers, warp.registers);
    together(REGISTERS_CHANGE, line, [](Thread *) {});
    // The first lane that finds enough takes them for the warp.
    while (warp.registers != registers) {
        // The block has what it was launched with, however many the multiprocessor has.
        if (registers_in_use() + (registers - warp.registers) * LANES <= registers_at_launch(m.threads) * m.warps * LANES) {
            warp.registers = registers;
            break;
        }
        warp.runnable &= ~(1u << self.lane);
        m.wants_registers[warp.number] |= 1u << self.lane;
        give_way(self);
    }
}

// An element of an operand, as products read shared memory: everything written by threads has to be shown to them first.
inline u16 read_operand(u32 address, u32 element_bytes, int line) {
    const u8 *bytes = read_shared(address, element_bytes, line);
    const Granule &granule = machine->granules[(address - SHARED_BASE) / GRANULE];
    if (granule.store > machine->thread[granule.writer].stores_shown)
        fail(line, "a product reads shared address %u, whose store by thread %u no fence shows to it", address - SHARED_BASE, granule.writer);
    return element_bytes == 1 ? bytes[0] : u16(bytes[0] | bytes[1] << 8);
}

// Element (outer, inner) of the operand that a descriptor says: rows of A and columns of B are outer, what is summed over inner.
inline f32 operand(const GroupProduct &product, u64 descriptor, bool is_transposed, u32 outer, u32 inner) {
    const u32 start = u32(descriptor & 0x3fff) << 4, panel = u32(descriptor >> 16 & 0x3fff) << 4, eight = u32(descriptor >> 32 & 0x3fff) << 4;
    const u32 layout = u32(descriptor >> 62), element_bytes = 32 / product.inner, row = layout == 1 ? 128 : 64;
    if (layout != 1 && (layout != 2 || is_transposed)) fail(product.line, "a product of an operand whose layout the shim does not know");
    const u32 address = is_transposed ? start + outer / 64 * panel + outer % 64 * 2 + inner / 8 * eight + inner % 8 * 128
                                      : start + outer / 8 * eight + outer % 8 * row + inner * element_bytes;
    return product.widen(read_operand(swizzled(address, layout == 1 ? SWIZZLE_128 : SWIZZLE_64), element_bytes, product.line));
}

// Element (row, k) of A in registers: a word of each lane holds 4 bytes of k.
inline f32 operand_of_registers(const GroupProduct &product, u32 row, u32 k) {
    const u32 a_word = product.inner / 8, lane = row % 8 * 4 + k % (4 * a_word) / a_word;
    const u32 word = product.registers[lane][row / 8 + k / (4 * a_word) * 2];
    return product.widen(u16(word >> k % a_word * (32 / a_word)));
}

// What tensor cores keep of a sum of 8-bit products.
inline f32 kept(f32 sum) { return bits_to_float(float_to_bits(sum) & ~0x3ffu); }

// Adds a product to accumulators in the order of lanes, columns of eight and four numbers each.
inline void multiply_group(const GroupProduct &product, u32 warp, std::vector<f32> &values) {
    const u32 blocks = product.columns / 8;
    const u32 inner = product.inner;
    f32 a[16][32], b[256][32];
    for (u32 row = 0; row < 16; row++)
        for (u32 k = 0; k < inner; k++)
            a[row][k] = product.a_is_in_registers
                            ? operand_of_registers(product, row, k)
                            : operand(product, product.a, product.a_is_transposed, warp % GROUP_WARPS * 16 + row, k);
    for (u32 column = 0; column < product.columns; column++)
        for (u32 k = 0; k < inner; k++) b[column][k] = operand(product, product.b, product.b_is_transposed, column, k);
    for (u32 lane = 0; lane < LANES; lane++)
        for (u32 block = 0; block < blocks; block++)
            for (u32 i = 0; i < 4; i++) {
                const u32 row = lane / 4 + 8 * (i / 2), column = block * 8 + lane % 4 * 2 + i % 2;
                f32 &value = values[(lane * blocks + block) * 4 + i];
                f32 sum = product.adds ? value : 0.0f;
                for (u32 k = 0; k < inner; k++) sum += a[row][k] * b[column][k];
                value = inner == 32 ? kept(sum) : sum;
            }
}

// Executes the warp's products of groups before `end`; the running lane does it for all.
inline void complete_products(u32 warp, u32 end) {
    std::vector<GroupProduct> &products = machine->products[warp];
    size_t done = 0;
    for (; done < products.size() && products[done].group < end; done++) {
        GroupProduct &product = products[done];
        multiply_group(product, warp, product.values);
        // Who continues on these accumulators takes them over; else they come back.
        GroupProduct *next = nullptr;
        for (size_t later = done + 1; later < products.size() && !next; later++)
            if (products[later].accumulators[0] == product.accumulators[0]) next = &products[later];
        if (next) {
            next->values.swap(product.values);
            continue;
        }
        const u32 count = product.columns / 2;
        for (u32 lane = 0; lane < LANES; lane++)
            memcpy(product.accumulators[lane], &product.values[lane * count], count * 4);
    }
    products.erase(products.begin(), products.begin() + done);
}

// Starts a product. `d` are the running thread's accumulators, `a` its registers of A or null.
template <f32 (*widen)(u16), u32 inner = 16>
inline void start_product(f32 *d, u32 columns, const u32 *a, u64 a_descriptor, bool a_is_transposed, u64 b, bool b_is_transposed,
                          bool adds, int line) {
    Machine &m = *machine;
    Thread &self = *m.current;
    if (!self.warp->is_fenced) fail(line, "a product after registers were touched, without a fence between");
    if (self.warp->number / GROUP_WARPS * GROUP_WARPS + GROUP_WARPS > m.warps || m.threads % LANES)
        fail(line, "a product of a warpgroup of which warp %u has no four", self.warp->number);
    GroupProduct mine = {};
    mine.columns = columns;
    mine.inner = inner;
    mine.widen = widen;
    mine.adds = adds;
    mine.a_is_transposed = a_is_transposed;
    mine.b_is_transposed = b_is_transposed;
    mine.a_is_in_registers = a != nullptr;
    mine.a = a_descriptor;
    mine.b = b;
    mine.line = line;
    u32 registers[4] = {};
    if (a) memcpy(registers, a, sizeof registers);
    self.in[0] = registers;
    self.in[1] = reinterpret_cast<u32 *>(&mine);
    self.out = reinterpret_cast<u32 *>(d);
    together(GROUP_MULTIPLY, line, [](Thread *lanes) {
        Machine &all = *machine;
        const u32 warp = lanes->warp->number;
        GroupProduct product = *reinterpret_cast<GroupProduct *>(lanes->in[1]);
        product.group = lanes->warp->groups_committed;
        bool is_first = true;
        for (const GroupProduct &other : all.products[warp]) is_first = is_first && other.accumulators[0] != reinterpret_cast<f32 *>(lanes->out);
        const u32 count = product.columns / 2;
        if (is_first) product.values.resize(LANES * count);
        for (u32 lane = 0; lane < LANES; lane++) {
            const GroupProduct &other = *reinterpret_cast<GroupProduct *>(lanes[lane].in[1]);
            if (other.a != product.a || other.b != product.b || other.adds != product.adds)
                fail(product.line, "lanes of a warp bring different operands to a product");
            memcpy(product.registers[lane], lanes[lane].in[0], sizeof product.registers[lane]);
            product.accumulators[lane] = reinterpret_cast<f32 *>(lanes[lane].out);
            if (!is_first) continue;
            memcpy(&product.values[lane * count], lanes[lane].out, count * 4);
            memset(lanes[lane].out, 0xff, count * 4);
        }
        all.products[warp].push_back(product);
    });
    asm volatile("" ::: "memory");
}

inline void fence_products(int line) {
    together(GROUP_FENCE, line, [](Thread *lanes) { lanes->warp->is_fenced = true; });
}
inline void commit_products(int line) {
    together(GROUP_COMMIT, line, [](Thread *lanes) { lanes->warp->groups_committed++; });
}
inline void wait_products(u32 in_flight, int line) {
    machine->current->operand = in_flight;
    together(GROUP_WAIT, line, [](Thread *lanes) {
        const u32 committed = lanes->warp->groups_committed;
        if (committed > lanes->operand) complete_products(lanes->warp->number, committed - lanes->operand);
        lanes->warp->is_fenced = false;
    });
    asm volatile("" ::: "memory");
}

} // namespace shim
