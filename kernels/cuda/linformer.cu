// Linformer (Wang et al. 2020, section 4): K' = E^T K and V' = F^T V, of `rank` rows, over which flash.cu attends.
//
// E and F are f32, sums are f32, K' and V' are rounded to the element type, as any key is.
// Tiles: 64 rows of K' by 64 columns a block of 256 threads (product.cuh). Limit aimed at: the rate of f32 multipliers.
//
// Defines: ELEMENT (Bf16, F16).
#include "product.cuh"

using Element = ELEMENT;

// Keys or values: (sequence, head, token) to `projected` of (sequence, head, rank, dim).
// Grid: column tiles * rank tiles * KV heads * batch.
KERNEL(PRODUCT_THREADS, 1)
linformer_project(Global<const u16> from, Global<const f32> projection, Strides strides, Geometry geometry, i32 dim, i32 rank,
                  Global<u16> projected) {
    const int column_tiles = ceil_div(dim, PRODUCT_TILE), rank_tiles = ceil_div(rank, PRODUCT_TILE);
    const int first = block_index() % column_tiles * PRODUCT_TILE, rest = block_index() / column_tiles;
    const int row = rest % rank_tiles * PRODUCT_TILE, head = rest / rank_tiles % geometry.heads_kv;
    const int number = rest / rank_tiles / geometry.heads_kv;
    from = from + (number * strides.sequence + head * strides.head);
    f32 c[4][4] = {};
    multiply_add<true>(
        c, geometry.len_kv,
        [&](int r, int token) { return row + r < rank ? load(projection, i64(token) * rank + row + r) : 0.0f; },
        [&](int token, int column) {
            return first + column < dim ? Element::widen(load(from, token * strides.token + first + column)) : 0.0f;
        });
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) {
            const int r = row + product_row() + i, column = first + product_column() + j;
            if (r < rank && column < dim)
                store(projected, ((i64(number) * geometry.heads_kv + head) * rank + r) * dim + column, narrow<Element>(c[i][j]));
        }
}
ENTRY(linformer_project)
