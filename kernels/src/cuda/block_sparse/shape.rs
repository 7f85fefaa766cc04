//! How a block is cut for some head dimensions.

use super::super::tensor_core::dims_name;
use super::super::tiles::{self, TileClass, Tiles};
use super::lists::Cut;
use crate::problem::Pattern;

/// Rows and keys of a tile, warps of a block, and heads whose rows share a tile.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Shape {
    pub(super) dims: (usize, usize),
    pub(super) rows: usize,
    pub(super) keys: usize,
    pub(super) warps: usize,
    pub(super) packed: usize,
    /// Blocks that fit a multiprocessor of sm_90, by registers and shared memory.
    pub(super) blocks_a_multiprocessor: usize,
    /// What a pair costs, relative to one of the largest tile: tiles of 64 rows are bound by the level-2 cache.
    pub(super) cost_of_pair: f64,
}

/// What the shapes of a problem are chosen from: rows of the largest tile, and keys; rows of a warp; and by how many percent a pair
/// counts more in a tile of 64 rows than in one of 128.
const SIZES: &[&str] = &["rows", "keys", "warp_rows", "dearer"];

const fn class(name: &'static str, taken: &'static [usize; 4], others: &'static [&'static [usize]]) -> TileClass {
    TileClass::new(name, SIZES, taken, others)
}

/// What each class takes, and what `attnbench tune` measures beside it: by the compiled head dimensions and, where it has a row of
/// its own, the pattern. A plan counts which shape of those that a row allows is the cheapest. Tiles of 64 rows fill better and
/// read more of the level-2 cache: whether they are a quarter dearer is for hardware to say.
#[rustfmt::skip]
pub(super) const CLASSES: &[TileClass] = &[
    class("d64", &[128, 64, 32, 25], &[&[64, 64, 32, 0], &[128, 64, 32, 0], &[128, 64, 32, 50], &[128, 64, 16, 25]]),
    class("d64 window", &[128, 64, 32, 25], &[&[64, 64, 32, 0], &[128, 64, 32, 0], &[128, 64, 32, 50], &[128, 64, 16, 25]]),
    class("d64 longformer", &[128, 64, 32, 25], &[&[64, 64, 32, 0], &[128, 64, 32, 0], &[128, 64, 32, 50], &[128, 64, 16, 25]]),
    class("d96", &[128, 32, 32, 25], &[&[64, 32, 32, 0], &[128, 32, 32, 0], &[128, 64, 16, 25]]),
    class("d128", &[128, 32, 32, 25], &[
        &[64, 32, 32, 0], &[128, 32, 32, 0], &[128, 32, 32, 50], &[128, 32, 16, 25], &[128, 64, 16, 25]]),
    class("d128 window", &[128, 32, 32, 25], &[
        &[64, 32, 32, 0], &[128, 32, 32, 0], &[128, 32, 32, 50], &[128, 32, 16, 25], &[128, 64, 16, 25]]),
    class("d128 longformer", &[128, 32, 32, 25], &[
        &[64, 32, 32, 0], &[128, 32, 32, 0], &[128, 32, 32, 50], &[128, 32, 16, 25], &[128, 64, 16, 25]]),
    class("d192:128", &[128, 32, 16, 25], &[&[64, 32, 16, 0], &[128, 32, 16, 0]]),
    class("d192", &[128, 32, 16, 25], &[&[64, 32, 16, 0], &[128, 32, 16, 0]]),
    class("d256", &[128, 32, 16, 25], &[&[64, 32, 16, 0], &[128, 32, 16, 0]]),
];

/// The classes of these dimensions, whatever the pattern.
pub(super) fn classes_of(dims: (usize, usize)) -> impl Iterator<Item = &'static TileClass> {
    CLASSES.iter().filter(move |class| class.name.split(' ').next() == Some(&dims_name(dims)))
}

/// The class of a problem.
pub(super) fn class_of(dims: (usize, usize), pattern: Pattern) -> &'static TileClass {
    let dims = dims_name(dims);
    let own = tiles::find_class(CLASSES, &format!("{dims} {}", pattern.name()));
    own.unwrap_or_else(|| tiles::class(CLASSES, &dims))
}

/// What a pair costs with half as many keys as fit the registers: twice as many barriers and corrections.
const HALF_KEYS_COST: f64 = 1.08;

/// Keys that a part of a divided list has at least.
const LEAST_PART_KEYS: usize = 1024;

impl Shape {
    /// The shapes that these tiles allow, larger ones first. Half of 64 keys is possible too: lists are filled up to whole tiles.
    pub(super) fn of(dims: (usize, usize), tiles: Tiles) -> Vec<Shape> {
        let [most_rows, most_keys, warp_rows, dearer_percent] = tiles.sizes();
        let mut shapes = Vec::new();
        for keys in [64, 32].into_iter().filter(|&keys| keys <= most_keys) {
            for rows in [128, 64].into_iter().filter(|&rows| rows <= most_rows) {
                let warps = rows / warp_rows;
                // Threads copy whole columns of chunks, of which a row of a panel has 8, or 4: the source's assertion.
                let chunks = if dims.0.is_multiple_of(64) { 8 } else { 4 };
                if !keys.is_multiple_of(32 * warps / chunks) {
                    continue;
                }
                let blocks_a_multiprocessor = 128 / rows * if warp_rows == 32 { 2 } else { 1 };
                let dearer = if rows == 64 { dearer_percent } else { 0 };
                let fewer_keys = if keys < most_keys { HALF_KEYS_COST } else { 1.0 };
                let cost_of_pair = (1.0 + dearer as f64 / 100.0) * fewer_keys;
                // A warp's rows are one head's.
                for packed in [1, 2, 4].into_iter().filter(|packed| rows / packed >= 32) {
                    shapes.push(Shape { dims, rows, keys, warps, packed, blocks_a_multiprocessor, cost_of_pair });
                }
            }
        }
        shapes
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
}
