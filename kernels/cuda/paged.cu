// Flash-decoding over a paged cache (Kwon et al. 2023, PagedAttention), any page size: see decode.cuh, also for its floor.
//
// A lane looks up the page of one key of a step, one step ahead, and the other lanes get its row by shuffles, so a step of 16
// keys reads 16 entries of the table, whatever the page size, and every row in pieces of 16 bytes; pages that hold no token of
// the sequence and entries past its end are never touched.
// Tiles: 16, 32 or 64 rows (query heads of a group times queries) by 16 keys a step, 4 warps, 2 to 4 stages.
#include "decode.cuh"

struct Paged {
    static constexpr bool IS_CONTIGUOUS = false;
    Global<const i32> table;
    DEVICE i64 row(const Geometry &geometry, int number, int key) const {
        const int page = key / geometry.page_size;
        return i64(load(table, i64(number) * geometry.pages_a_sequence + page)) * geometry.page_size +
               (key - page * geometry.page_size);
    }
};

KERNEL(THREADS, BLOCKS)
paged(Global<const u16> q, Global<const Stored> k, Global<const Stored> v, Global<u16> o, Global<f32> lse,
      Global<const f32> sinks, Global<const u8> bool_bias, Global<const u16> additive_bias,
      Global<const Sequence> sequences, Global<const WorkItem> items, Geometry geometry, Global<f32> partial_o,
      Global<f32> partial_lse, i32 splits, Global<const i32> page_table) {
    decode_block(q, k, v, o, lse, sinks, Biases{bool_bias, additive_bias}, sequences, items, geometry,
                 Partials{partial_o, partial_lse}, splits, Paged{page_table});
}
ENTRY(paged)

#include "combine.cuh"
