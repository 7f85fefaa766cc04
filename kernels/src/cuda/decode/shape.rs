//! How blocks of the decode kernels are cut: their candidates, and what one of them takes.

use super::super::plan::DeviceFacts;
use super::super::tensor_core::dims_name;
use super::super::tiles::{self, MOST_REGISTERS, TileClass, Tiles};

/// Keys of a step.
pub(super) const STEP: usize = 16;
/// Warps of a block.
pub(super) const WARPS: usize = 4;
/// Registers of a multiprocessor.
const REGISTERS: usize = 65536;
/// Rows of a block (query heads of a group times queries) that there are classes for.
pub(super) const ROWS: [usize; 3] = [16, 32, 64];

/// What a block has: rows, warps that share them, tiles of K and V in the ring of each warp that works alone (those that share rows
/// share their rings too), blocks a multiprocessor, which registers and shared memory bound, and keys that a share may always
/// have.
const SIZES: &[&str] = &["rows", "warps", "stages", "blocks", "share"];

const fn class(name: &'static str, taken: &'static [usize; 5], others: &'static [&'static [usize]]) -> TileClass {
    TileClass::new(name, SIZES, taken, others)
}

/// What each class takes, and what `attnbench tune` measures beside it: by the compiled head dimensions, the dtype of stored keys
/// where that is e4m3, and the rows of a block. Narrower heads take the next one: columns that a head lacks are not read, and
/// products are not what limits decode. A multiprocessor streams at 4.3 TB/s / 132 with a latency of some 700 ns, so 23 KiB
/// have to be in flight there; `4 * (stages - 1) * 16 keys` a block are: 64 to 144 KiB a multiprocessor with what is taken.
#[rustfmt::skip]
pub(in super::super) const CLASSES: &[TileClass] = &[
    class("d64 rows16", &[16, 1, 4, 3, 64], &[&[16, 1, 3, 4, 64], &[16, 1, 6, 2, 64], &[16, 1, 4, 3, 256], &[16, 1, 4, 3, 1024]]),
    class("d64 rows32", &[32, 1, 4, 2, 64], &[&[32, 1, 4, 3, 64], &[16, 1, 4, 3, 64]]),
    class("d64 rows64", &[64, 2, 4, 2, 64], &[&[64, 4, 4, 3, 64], &[32, 1, 4, 3, 64]]),
    class("d128 rows16", &[16, 1, 3, 2, 64], &[
        &[16, 1, 2, 3, 64], &[16, 1, 6, 1, 64], &[16, 1, 3, 2, 256], &[16, 1, 3, 2, 1024]]),
    class("d128 rows32", &[32, 1, 3, 2, 64], &[&[32, 2, 2, 3, 64], &[16, 1, 3, 2, 64]]),
    class("d128 rows64", &[64, 2, 3, 2, 64], &[&[64, 4, 3, 2, 64], &[32, 1, 3, 2, 64]]),
    class("d192:128 rows16", &[16, 1, 2, 2, 64], &[&[16, 1, 4, 1, 64], &[16, 1, 2, 2, 256]]),
    class("d192:128 rows32", &[32, 1, 2, 2, 64], &[]),
    class("d192:128 rows64", &[64, 2, 2, 2, 64], &[]),
    class("d256 rows16", &[16, 1, 2, 1, 64], &[&[16, 1, 3, 1, 64]]),
    class("d256 rows32", &[32, 2, 2, 1, 64], &[]),
    class("d256 rows64", &[64, 4, 2, 1, 64], &[]),
    class("d64 e4m3 rows16", &[16, 1, 4, 3, 64], &[&[16, 1, 8, 3, 64], &[16, 1, 4, 3, 256]]),
    class("d64 e4m3 rows32", &[32, 1, 4, 2, 64], &[]),
    class("d64 e4m3 rows64", &[64, 2, 4, 2, 64], &[]),
    class("d128 e4m3 rows16", &[16, 1, 4, 2, 64], &[
        &[16, 1, 4, 3, 64], &[16, 1, 6, 2, 64], &[16, 1, 4, 2, 256], &[16, 1, 4, 2, 1024]]),
    class("d128 e4m3 rows32", &[32, 2, 4, 2, 64], &[&[32, 2, 4, 3, 64]]),
    class("d128 e4m3 rows64", &[64, 4, 4, 2, 64], &[&[64, 4, 3, 3, 64]]),
    class("d192:128 e4m3 rows16", &[16, 1, 4, 2, 64], &[]),
    class("d192:128 e4m3 rows32", &[32, 2, 4, 2, 64], &[]),
    class("d192:128 e4m3 rows64", &[64, 4, 4, 2, 64], &[]),
    class("d256 e4m3 rows16", &[16, 1, 3, 2, 64], &[]),
    class("d256 e4m3 rows32", &[32, 2, 3, 1, 64], &[]),
    class("d256 e4m3 rows64", &[64, 4, 3, 1, 64], &[]),
];

/// The compiled head dimensions.
pub(super) const DIMS: [(usize, usize); 4] = [(64, 64), (128, 128), (192, 128), (256, 256)];

/// One way in which blocks are cut, for some head dimensions and bytes of a stored key element.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) dims: (usize, usize),
    kv_bytes: usize,
    pub(super) rows: usize,
    pub(super) row_warps: usize,
    /// Of each warp that works alone.
    warp_stages: usize,
    pub(super) blocks: usize,
    pub(super) least_share_keys: usize,
}

/// The class of these compiled dimensions for so many packed rows, or as many of them as a block takes.
pub(super) fn class_of(dims: (usize, usize), kv_bytes: usize, rows: usize) -> &'static TileClass {
    let rows = ROWS.into_iter().find(|&most| rows <= most).unwrap_or(ROWS[ROWS.len() - 1]);
    let stored = if kv_bytes == 1 { " e4m3" } else { "" };
    tiles::class(CLASSES, &format!("{}{stored} rows{rows}", dims_name(dims)))
}

/// The smallest compiled dimensions that hold these.
pub(super) fn compiled_dims(dim_qk: usize, dim_v: usize) -> Option<(usize, usize)> {
    DIMS.into_iter().find(|&(qk, v)| dim_qk <= qk && dim_v <= v)
}

impl Shape {
    pub(super) fn new(dims: (usize, usize), kv_bytes: usize, tiles: Tiles) -> Shape {
        let [rows, row_warps, warp_stages, blocks, least_share_keys] = tiles.sizes();
        Shape { dims, kv_bytes, rows, row_warps, warp_stages, blocks, least_share_keys }
    }

    /// Tiles of K and V in a ring: warps that share one have all their stages in it.
    pub(super) fn stages(&self) -> usize {
        self.warp_stages * self.row_warps
    }

    /// Q and the rings; at the end, the results of each set of warps in f32, with two numbers a row.
    pub(super) fn shared_bytes(&self) -> u32 {
        let (dim_qk, dim_v) = self.dims;
        let rings = WARPS * self.warp_stages * STEP * (dim_qk + dim_v) * self.kv_bytes;
        let results = WARPS / self.row_warps * self.rows * (4 * (dim_v + 8) + 8);
        (2 * self.rows * dim_qk + rings).max(results) as u32
    }

    /// O and the scores of a thread's rows, of which four lanes share one.
    pub(super) fn numbers_a_thread(&self) -> usize {
        self.rows / self.row_warps * (self.dims.1 + STEP) / 32
    }

    /// Registers that a thread has where so many blocks share a multiprocessor's.
    pub(super) fn registers(&self) -> usize {
        (REGISTERS / (32 * WARPS * self.blocks)).min(MOST_REGISTERS)
    }

    /// Blocks that run at a time.
    pub(super) fn places(&self, device: &DeviceFacts) -> usize {
        device.multiprocessors as usize * blocks_in_shared(device, self.shared_bytes()).min(self.blocks)
    }
}

/// Blocks of a multiprocessor that its shared memory has room for: each takes 1 KiB besides, and there is 1 KiB more than a
/// block may have.
fn blocks_in_shared(device: &DeviceFacts, shared_bytes: u32) -> usize {
    ((device.shared_bytes_per_block + 1024) / (shared_bytes + 1024)).max(1) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_fit_and_what_is_taken_keeps_enough_bytes_in_flight() {
        for (dims, kv_bytes) in DIMS.into_iter().flat_map(|dims| [(dims, 2), (dims, 1)]) {
            for rows in ROWS {
                let class = class_of(dims, kv_bytes, rows);
                for tiles in class.candidates() {
                    let shape = Shape::new(dims, kv_bytes, tiles);
                    let bytes = shape.shared_bytes();
                    assert!(blocks_in_shared(&DeviceFacts::H200, bytes) >= shape.blocks, "{} {tiles}", class.name);
                    assert!(shape.numbers_a_thread() < shape.registers(), "{} {tiles}", class.name);
                    assert_eq!(WARPS % shape.row_warps, 0, "{} {tiles}", class.name);
                }
                let shape = Shape::new(dims, kv_bytes, class.taken());
                assert_eq!(shape.rows, rows, "{}", class.name);
                assert!(shape.shared_bytes() <= DeviceFacts::A100.shared_bytes_per_block);
                let stage = STEP * (dims.0 + dims.1) * kv_bytes;
                let in_flight = shape.blocks * WARPS / shape.row_warps * (shape.stages() - 1) * stage;
                assert!(in_flight >= 2 * (23 << 10), "{}", class.name);
            }
        }
    }

    #[test]
    fn blocks_take_all_rows_that_share_keys_up_to_64() {
        for (rows, expected) in [(1, 16), (16, 16), (17, 32), (33, 64), (64, 64), (200, 64)] {
            assert_eq!(class_of((128, 128), 2, rows).name, format!("d128 rows{expected}"));
        }
        assert!(compiled_dims(257, 64).is_none());
        assert_eq!(compiled_dims(96, 96), Some((128, 128)));
    }
}
