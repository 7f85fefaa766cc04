// Flash-decoding over a paged cache (Kwon et al. 2023, PagedAttention), any page size: see decode.cuh.
//
// A lane looks up the page of one key of a step and the other lanes get its row by shuffles, so a step of 16 keys reads 16
// entries of the table; pages that hold no token of the sequence and entries past its end are never touched.
// Tiles: 16 rows (query heads of a group times queries) by 16 keys a warp's step, 4 warps, 2 to 4 stages.
// Limit aimed at: the rate at which K and V are read.
#include "decode.cuh"

struct Paged {
    Global<const i32> table;
    DEVICE i64 row(const Geometry &geometry, int number, int key) const {
        const int page = key / geometry.page_size;
        return i64(load(table, i64(number) * geometry.pages_a_sequence + page)) * geometry.page_size +
               (key - page * geometry.page_size);
    }
};

KERNEL(THREADS, 1)
paged(Global<const u16> q, Global<const u16> k, Global<const u16> v, Global<u16> o, Global<f32> lse,
      Global<const f32> sinks, Global<const u8> bool_bias, Global<const u16> additive_bias,
      Global<const Sequence> sequences, Geometry geometry, Global<f32> partial_o, Global<f32> partial_lse, i32 splits,
      Global<const i32> page_table) {
    decode_block(q, k, v, o, lse, sinks, Biases{bool_bias, additive_bias}, sequences, geometry,
                 Partials{partial_o, partial_lse, splits}, Paged{page_table});
}
ENTRY(paged)

KERNEL(COMBINE_WARPS * 32, 1)
combine(Global<const f32> partial_o, Global<const f32> partial_lse, Global<u16> o, Global<f32> lse,
        Global<const f32> sinks, Global<const Sequence> sequences, Geometry geometry, i32 splits) {
    combine_rows<Element>(partial_o, partial_lse, o, lse, sinks, sequences, geometry, splits);
}
ENTRY(combine)
