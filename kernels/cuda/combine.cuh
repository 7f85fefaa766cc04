// The launch that merges shares of keys: a kernel of every source that splits them, which includes this last, once it has said
// Element, ROWS and DIM_V.
#pragma once

#include "partials.cuh"

KERNEL(COMBINE_WARPS * 32, 1)
combine(Global<const f32> partial_o, Global<const f32> partial_lse, Global<u16> o, Global<f32> lse,
        Global<const f32> sinks, Global<const Sequence> sequences, Global<const WorkItem> tiles, Geometry geometry,
        i32 splits) {
    combine_rows<Element, ROWS, DIM_V>(partial_o, partial_lse, o, lse, sinks, sequences, tiles, geometry, splits);
}
ENTRY(combine)
