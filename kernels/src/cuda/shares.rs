//! Which block of a decode kernel attends to which keys: `WorkItem` of `kernels/cuda/partials.cuh`.
//!
//! A tile is some rows of a sequence with all the keys that they see; a share is what one block takes of it. Tiles are cut into
//! shares of about one length, so that no block is left alone with the longest sequence, and shares are launched longest
//! first, so that those which come last are short: with more shares than places, a place that falls free takes the next one,
//! which is Graham's rule (Graham 1969, "Bounds on multiprocessing timing anomalies", section 2: at most 4/3 of the
//! shortest possible time). How long shares should be is found by trying a few lengths and following the rule for each.
//!
//! In a batch of equal sequences all tiles are cut alike, and a block finds its share by arithmetic; else it reads a table.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::geometry::{Bytes, Geometry};
use super::plan::{Argument, CudaPlan};

/// Keys of which shares are made: every warp of a block takes 16 of them.
pub(super) const ROUND_KEYS: usize = 64;
/// What starting a block costs, in keys: its first keys come as late as these many take to stream where all blocks do.
const START_KEYS: usize = 64;
/// What a second launch that merges shares costs, in keys of a block.
const MERGE_KEYS: usize = 256;
/// Most shares of a tile: beyond it, merging them takes longer than attending.
pub(super) const MAX_SPLITS: usize = 128;
/// Blocks up to which lengths are tried; with more of them than this, every place has hundreds, and nothing is cut.
const MAX_TRIED_BLOCKS: usize = 1 << 18;

/// Who does what in a launch of a decode kernel, and what has to be merged after it.
pub(super) struct Shares {
    /// Items; each is a block for every KV head.
    pub(super) items: usize,
    /// The table of items, or null where the batch is uniform.
    pub(super) table: Argument,
    /// Shares of every tile, where the batch is uniform.
    pub(super) splits: usize,
    /// Tiles of several shares.
    pub(super) merged_tiles: usize,
    /// The table of these tiles, or null where the batch is uniform.
    pub(super) merged_table: Argument,
    /// Shares of those tiles: each has a slot of partial rows for every KV head.
    pub(super) slots: usize,
}

/// A tile: its place and the keys that its rows see.
struct RowTile {
    sequence: usize,
    first_row: usize,
    keys: usize,
}

/// The tiles of a problem, of `rows` packed rows.
fn row_tiles(geometry: &Geometry, rows: usize) -> Vec<RowTile> {
    let group = geometry.heads_q / geometry.heads_kv.max(1);
    let mut tiles = Vec::new();
    for sequence in 0..geometry.batch() {
        let (count, keys) = (geometry.lengths_q[sequence] * group, geometry.lengths_kv[sequence] as i64);
        let position = |row: usize| (row / group) as i64 + geometry.query_offsets[sequence];
        for first_row in (0..count).step_by(rows) {
            let last_row = (first_row + rows).min(count) - 1;
            let first = (position(first_row) - i64::from(geometry.left)).max(0);
            let end = (position(last_row) + i64::from(geometry.right) + 1).min(keys);
            tiles.push(RowTile { sequence, first_row, keys: (end - first).max(0) as usize });
        }
    }
    tiles
}

/// Shares of a tile when none may be longer than `most` keys.
fn shares(keys: usize, most: usize) -> usize {
    keys.div_ceil(ROUND_KEYS).div_ceil(most.div_ceil(ROUND_KEYS)).clamp(1, MAX_SPLITS)
}

/// The longest share that is best for tiles of these many keys, each there for `heads` heads, on `places` blocks at a time, among
/// those of `least` keys and more.
fn best_share(keys: &[usize], heads: usize, places: usize, least: usize) -> usize {
    let longest = keys.iter().copied().max().unwrap_or(0).max(1);
    let blocks = |most: usize| keys.iter().map(|&keys| shares(keys, most)).sum::<usize>() * heads;
    if blocks(longest) > MAX_TRIED_BLOCKS.max(places) {
        return longest;
    }
    // Shares that fill the places once, twice, ...: of more, the last round is shorter and the merging longer.
    let filling = |count: usize| {
        let mut high = longest.div_ceil(ROUND_KEYS);
        let mut low = least.div_ceil(ROUND_KEYS).clamp(1, high);
        while low < high {
            let middle = (low + high) / 2;
            if blocks(middle * ROUND_KEYS) <= count { high = middle } else { low = middle + 1 }
        }
        low * ROUND_KEYS
    };
    let tried = [longest].into_iter().chain([1, 2, 3, 4].map(|times| filling(times * places)));
    tried.min_by_key(|&most| cost(keys, heads, places, most)).unwrap_or(longest)
}

/// When the last block ends, in keys, where a free place always takes the longest share that is left.
fn cost(keys: &[usize], heads: usize, places: usize, most: usize) -> usize {
    let mut lengths: Vec<usize> = Vec::new();
    for &keys in keys {
        let count = shares(keys, most);
        let length = keys.div_ceil(ROUND_KEYS).div_ceil(count) * ROUND_KEYS + START_KEYS;
        lengths.extend(std::iter::repeat_n(length, count * heads));
    }
    let merging = if keys.iter().any(|&keys| shares(keys, most) > 1) { MERGE_KEYS } else { 0 };
    lengths.sort_unstable_by_key(|&length| Reverse(length));
    let mut ends: BinaryHeap<Reverse<usize>> = std::iter::repeat_n(Reverse(0), places.max(1)).collect();
    let mut last = 0;
    for length in lengths {
        let mut soonest = ends.peek_mut().expect("there is a place");
        soonest.0 += length;
        last = last.max(soonest.0);
    }
    last + merging
}

/// How a problem is cut into shares.
#[derive(Clone, Copy, Debug)]
pub(super) struct ShareOut {
    /// Packed rows of a block.
    pub(super) rows: usize,
    /// Blocks that run at a time.
    pub(super) places: usize,
    /// Keys that a share may always have: what starting and merging one costs does not depend on its length.
    pub(super) least_keys: usize,
}

/// The schedule of a problem. Its tables become the plan's.
pub(super) fn share_out(plan: &mut CudaPlan, geometry: &Geometry, out: ShareOut) -> Shares {
    let ShareOut { rows, places, least_keys } = out;
    let tiles = row_tiles(geometry, rows);
    let keys: Vec<usize> = tiles.iter().map(|tile| tile.keys).collect();
    let most = best_share(&keys, geometry.heads_kv, places, least_keys);
    let count = |tile: &RowTile| shares(tile.keys, most);
    if geometry.is_uniform() {
        let splits = tiles.iter().map(count).max().unwrap_or(1);
        let merged_tiles = if splits > 1 { tiles.len() } else { 0 };
        return Shares {
            items: tiles.len() * splits,
            table: Argument::Null,
            splits,
            merged_tiles,
            merged_table: Argument::Null,
            slots: merged_tiles * splits,
        };
    }
    let (mut items, mut merged, mut slots) = (Vec::new(), Vec::new(), 0);
    for tile in &tiles {
        let splits = count(tile);
        items.extend((0..splits).map(|split| (tile.keys / splits, item(tile, split, splits, slots))));
        if splits > 1 {
            merged.push(item(tile, 0, splits, slots));
            slots += splits;
        }
    }
    // Stable: tiles of one sequence, which read the same keys, stay together.
    items.sort_by_key(|&(keys, _)| Reverse(keys));
    let mut table = |items: Vec<[usize; 5]>| {
        let mut bytes = Bytes::default();
        items.iter().flatten().for_each(|&field| {
            bytes.i32(field as i32);
        });
        plan.table(bytes.take())
    };
    Shares {
        items: items.len(),
        merged_tiles: merged.len(),
        table: table(items.into_iter().map(|(_, item)| item).collect()),
        splits: 1,
        merged_table: if merged.is_empty() { Argument::Null } else { table(merged) },
        slots,
    }
}

/// The fields of a `WorkItem`.
fn item(tile: &RowTile, split: usize, splits: usize, slot: usize) -> [usize; 5] {
    [tile.sequence, tile.first_row, split, splits, slot]
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACES: usize = 264;

    fn splits(tiles: usize, keys: usize) -> usize {
        shares(keys, best_share(&vec![keys; tiles], 1, PLACES, ROUND_KEYS))
    }

    #[test]
    fn keys_are_split_only_where_that_fills_the_device() {
        // Enough tiles, or too few keys.
        assert_eq!(splits(PLACES, 65536), 1);
        assert_eq!(splits(1, 256), 1);
        assert_eq!(splits(4 * PLACES, 4096), 1);
        assert_eq!(best_share(&[], 8, PLACES, ROUND_KEYS), 1);
        assert_eq!(shares(0, 1), 1);
        // One tile of a long cache: as many shares as may be, but no more than there are rounds of keys.
        assert_eq!(splits(1, 1 << 20), MAX_SPLITS);
        assert_eq!(splits(1, 640), 10);
        // Eight tiles: 33 shares fill all 264 places.
        assert!((32..=33).contains(&splits(8, 65536)));
        assert!((4..=4).contains(&splits(64, 65536)));
    }

    #[test]
    fn no_place_idles_for_long_whatever_the_lengths() {
        for tiles in (1..3 * PLACES).step_by(7) {
            for seed in 0..3 {
                // Lengths from 8k to 128k, which differ by a factor of 16.
                let keys: Vec<usize> =
                    (0..tiles).map(|tile| 8192 << (crate::hash::hash64(seed, tile as u64) % 5)).collect();
                let total: usize = keys.iter().sum();
                let end = cost(&keys, 1, PLACES, best_share(&keys, 1, PLACES, ROUND_KEYS));
                // What MAX_SPLITS shares of the longest tile take is the least.
                let least = (total / PLACES).max(keys.iter().max().expect("there are tiles") / MAX_SPLITS);
                assert!(4 * end <= 5 * least + 4 * (MERGE_KEYS + 2 * START_KEYS), "{tiles} tiles: {end} of {least}");
            }
        }
    }

    #[test]
    fn one_long_sequence_among_short_ones_is_cut_and_they_are_not() {
        let mut keys = vec![100; 63];
        keys.push(131_072);
        let most = best_share(&keys, 8, PLACES, ROUND_KEYS);
        assert!(shares(131_072, most) >= 24, "the long one is cut into shares of at most {most}");
        assert_eq!(shares(100, most), 1);
    }

    #[test]
    fn shares_are_no_shorter_than_asked_for() {
        for keys in [100, 1000, 1 << 20] {
            let most = best_share(&[keys], 1, PLACES, 1024);
            assert!(most >= keys.min(1024), "{keys} keys: shares of up to {most}");
        }
        assert_eq!(shares(4096, best_share(&[4096], 1, PLACES, 1024)), 4);
        assert_eq!(best_share(&[], 8, PLACES, 1024), 1);
    }
}
