// Flash-decoding over a contiguous cache: see decode.cuh, also for its floor.
//
// Tiles: 16, 32 or 64 rows (query heads of a group times queries) by 16 keys a step, 4 warps, 2 to 4 stages.
#include "decode.cuh"

struct Contiguous {
    static constexpr bool IS_CONTIGUOUS = true;
    DEVICE i64 row(const Geometry &, int, int) const { return 0; }
};

KERNEL(THREADS, BLOCKS)
split_kv(Global<const u16> q, Global<const Stored> k, Global<const Stored> v, Global<u16> o, Global<f32> lse,
         Global<const f32> sinks, Global<const u8> bool_bias, Global<const u16> additive_bias,
         Global<const Sequence> sequences, Global<const WorkItem> items, Geometry geometry, Global<f32> partial_o,
         Global<f32> partial_lse, i32 splits) {
    decode_block(q, k, v, o, lse, sinks, Biases{bool_bias, additive_bias}, sequences, items, geometry,
                 Partials{partial_o, partial_lse}, splits, Contiguous{});
}
ENTRY(split_kv)

#include "combine.cuh"
