// Flash-decoding over a contiguous cache: see decode.cuh.
//
// Tiles: 16 rows (query heads of a group times queries) by 16 keys a warp's step, 4 warps, 2 to 4 stages.
// Limit aimed at: the rate at which K and V are read.
#include "decode.cuh"

struct Contiguous {
    DEVICE i64 row(const Geometry &, int, int key) const { return key; }
};

KERNEL(THREADS, 1)
split_kv(Global<const u16> q, Global<const u16> k, Global<const u16> v, Global<u16> o, Global<f32> lse,
         Global<const f32> sinks, Global<const u8> bool_bias, Global<const u16> additive_bias,
         Global<const Sequence> sequences, Geometry geometry, Global<f32> partial_o, Global<f32> partial_lse, i32 splits) {
    decode_block(q, k, v, o, lse, sinks, Biases{bool_bias, additive_bias}, sequences, geometry,
                 Partials{partial_o, partial_lse, splits}, Contiguous{});
}
ENTRY(split_kv)

KERNEL(COMBINE_WARPS * 32, 1)
combine(Global<const f32> partial_o, Global<const f32> partial_lse, Global<u16> o, Global<f32> lse,
        Global<const f32> sinks, Global<const Sequence> sequences, Geometry geometry, i32 splits) {
    combine_rows<Element>(partial_o, partial_lse, o, lse, sinks, sequences, geometry, splits);
}
ENTRY(combine)
