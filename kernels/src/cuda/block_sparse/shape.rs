//! How a block is cut for some head dimensions.

use super::lists::Cut;

/// Rows and keys of a tile, warps of a block, and heads whose rows share a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) dims: (usize, usize),
    pub(super) rows: usize,
    pub(super) keys: usize,
    pub(super) warps: usize,
    pub(super) packed: usize,
    /// Blocks that fit a multiprocessor of sm_90, by registers and shared memory.
    pub(super) blocks_a_multiprocessor: usize,
}

/// Tiles by the compiled d_qk: (d_qk, rows, keys, warps, blocks a multiprocessor).
const TABLE: [(usize, usize, usize, usize, usize); 12] = [
    (64, 128, 64, 4, 2),
    (64, 64, 64, 2, 4),
    (64, 128, 32, 4, 2),
    (64, 64, 32, 2, 4),
    (96, 128, 32, 4, 2),
    (96, 64, 32, 2, 4),
    (128, 128, 32, 4, 2),
    (128, 64, 32, 2, 4),
    (192, 128, 32, 8, 1),
    (192, 64, 32, 4, 2),
    (256, 128, 32, 8, 1),
    (256, 64, 32, 4, 2),
];

/// Keys that a part of a divided list has at least.
const LEAST_PART_KEYS: usize = 1024;

impl Shape {
    /// The shapes for these head dimensions, larger tiles first.
    pub(super) fn of(dims: (usize, usize)) -> Vec<Shape> {
        TABLE
            .iter()
            .filter(|entry| entry.0 == dims.0)
            .flat_map(|&(_, rows, keys, warps, blocks_a_multiprocessor)| {
                // A warp's rows, of which there are 16 or 32, are one head's.
                [1, 2, 4].into_iter().filter(move |packed| rows / packed >= 32).map(move |packed| Shape {
                    dims,
                    rows,
                    keys,
                    warps,
                    packed,
                    blocks_a_multiprocessor,
                })
            })
            .collect()
    }

    /// Bytes of shared memory: Q or O, and two stages of K and V.
    pub(super) fn shared_bytes(&self) -> u32 {
        let (dim_qk, dim_v) = self.dims;
        (2 * (self.rows * dim_qk.max(dim_v) + 2 * self.keys * (dim_qk + dim_v))) as u32
    }

    /// What a list is made for.
    pub(super) fn cut(&self) -> Cut {
        Cut { rows: self.rows / self.packed, keys: self.keys }
    }

    /// How many tiles of keys a block visits at most, of so many in all. With nothing longer than half of a block's share, the
    /// last blocks end soon after the others.
    pub(super) fn longest_part(&self, total: usize, multiprocessors: usize) -> usize {
        let share = total / (self.blocks_a_multiprocessor * multiprocessors.max(1));
        (share / 2).max(LEAST_PART_KEYS / self.keys)
    }

    /// What a pair costs, relative to one of the largest tile: tiles of 64 rows are bound by the level-2 cache, and half as many
    /// keys as fit the registers mean twice as many barriers and corrections.
    pub(super) fn cost_of_pair(&self) -> f64 {
        let rows = if self.rows == 64 { 1.25 } else { 1.0 };
        let keys = if self.dims.0 == 64 && self.keys == 32 { 1.08 } else { 1.0 };
        rows * keys
    }
}
