// Instructions that the 32 lanes of a warp execute together: shuffles, matrix loads and products.
#pragma once

#include "memory.h"

namespace shim {

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
inline f32 e4m3_to_f32(u8 bits) {
    u32 exponent = bits >> 3 & 15, mantissa = bits & 7;
    f32 size = exponent ? ldexpf(1.0f + mantissa / 8.0f, int(exponent) - 7) : ldexpf(f32(mantissa), -9);
    if ((bits & 127) == 127) size = NAN;
    return bits & 128 ? -size : size;
}
// Nearest, ties to even; what is too large becomes 448.
inline u8 f32_to_e4m3(f32 x) {
    const u8 sign = std::signbit(x) ? 128 : 0;
    const f32 size = fabsf(x);
    if (x != x) return sign | 127;
    if (size >= 448.0f) return sign | 126;
    // Multiples of 2^-9 below 2^-6, and of an eighth of the power of two above.
    int exponent = size < 0x1p-6f ? -6 : ilogbf(size);
    u32 eighths = u32(nearbyintf(ldexpf(size, 3 - exponent)));
    if (eighths < 8) return u8(sign | eighths);
    if (eighths == 16) eighths = 8, exponent++;
    return u8(sign | (exponent + 7) << 3 | (eighths - 8));
}
inline f32 e4m3_of_low_byte(u16 bits) { return e4m3_to_f32(u8(bits)); }
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

// Whether any lane's value is true.
inline bool any_lane(bool value, int line) {
    Thread &self = *machine->current;
    u32 mine = value, answer;
    self.in[0] = &mine;
    self.out = &answer;
    together(VOTE, line, [](Thread *lanes) {
        u32 any = 0;
        for (u32 lane = 0; lane < LANES; lane++) any |= *lanes[lane].in[0];
        for (u32 lane = 0; lane < LANES; lane++) *lanes[lane].out = any;
    });
    asm volatile("" ::: "memory");
    return answer;
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

} // namespace shim
