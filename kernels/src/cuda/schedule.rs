//! Work for blocks that stay for a whole launch: which tiles each of them computes, and in which order.
//!
//! The host knows every length, so it deals tiles out instead of letting blocks take them from a counter: the same plan
//! always computes the same tiles in the same order, and a call needs no counter to be reset.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::geometry::{Bytes, Geometry};
use super::plan::{Argument, CudaPlan};
use crate::kernel::KernelError;

/// Bytes of keys and values that tiles computed at the same time may have together: what a second-level cache of 50 MB keeps
/// beside all else.
const SECTION_BYTES: usize = 32 << 20;

/// Most tiles of a list.
const MAX_WORKS: usize = 1 << 26;

/// A tile of queries: `Work` of `kernels/cuda/hopper.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Work {
    pub(super) sequence: usize,
    /// The first of the heads that the tile packs.
    pub(super) head: usize,
    pub(super) query: usize,
    /// What it takes, in any unit.
    pub(super) cost: u64,
}

/// How queries and keys are cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// Rows of a tile.
    pub(super) rows: usize,
    /// Heads that a tile packs, a divisor of the heads that share keys and of `rows`.
    pub(super) packed: usize,
    /// Keys of a tile.
    pub(super) keys: usize,
}

/// Tiles of keys that queries `first` .. `first + count` of a sequence see: as `Visit` of `kernels/cuda/flash3.cu` counts them. Where tiles
/// begin at multiples of their size, as in `kernels/cuda/flash3_e4m3.cu`, there may be one more.
pub(super) fn key_tiles(geometry: &Geometry, sequence: usize, first: usize, count: usize, keys: usize) -> u64 {
    let offset = geometry.query_offsets[sequence];
    let last = (first + count).min(geometry.lengths_q[sequence]) - 1;
    let from = (first as i64 + offset - i64::from(geometry.left)).max(0);
    let end = (last as i64 + offset + i64::from(geometry.right) + 1).min(geometry.lengths_kv[sequence] as i64);
    ((end - from).max(0) as u64).div_ceil(keys as u64)
}

/// Every tile of queries, in the order in which blocks are to begin them: sections of (sequence, KV head) whose keys and values fit
/// the second-level cache together, one after another; within one, the tiles that take longest first, and those of the
/// same keys beside each other.
pub(super) fn works(kernel: &str, geometry: &Geometry, cut: Cut) -> Result<Vec<Work>, KernelError> {
    let queries = cut.rows / cut.packed;
    let tiles: usize = geometry.lengths_q.iter().map(|&length| length.div_ceil(queries)).sum();
    let count = tiles.checked_mul(geometry.heads_q / cut.packed).filter(|&count| count <= MAX_WORKS);
    let Some(count) = count else {
        return Err(KernelError::Unsupported(format!(
            "a problem of this size: {kernel} would deal out more than {MAX_WORKS} tiles"
        )));
    };
    let group = geometry.heads_q / geometry.heads_kv;
    let mut works = Vec::with_capacity(count);
    let (mut section, mut section_bytes) = (0, 0);
    for (sequence, (&len_q, &len_kv)) in geometry.lengths_q.iter().zip(&geometry.lengths_kv).enumerate() {
        let bytes = 2 * len_kv * (geometry.dim_qk + geometry.dim_v);
        for head_kv in 0..geometry.heads_kv {
            if section_bytes > 0 && section_bytes + bytes > SECTION_BYTES {
                sort(&mut works[section..]);
                (section, section_bytes) = (works.len(), 0);
            }
            section_bytes += bytes;
            for query in (0..len_q).step_by(queries) {
                // A tile costs its keys' tiles, and beginning and ending it about one more.
                let cost = 1 + key_tiles(geometry, sequence, query, queries, cut.keys);
                for head in (head_kv * group..(head_kv + 1) * group).step_by(cut.packed) {
                    works.push(Work { sequence, head, query, cost });
                }
            }
        }
    }
    sort(&mut works[section..]);
    Ok(works)
}

/// Heads of a group that are packed into a tile of `rows`: only as many as it takes to fill the tile.
pub(super) fn packed_heads(geometry: &Geometry, rows: usize) -> usize {
    let group = geometry.heads_q / geometry.heads_kv;
    let mut packed = 1;
    let divides = |count: usize| group.is_multiple_of(count) && rows.is_multiple_of(count);
    while divides(2 * packed) && geometry.longest_q() * packed < rows {
        packed *= 2;
    }
    packed
}

fn sort(section: &mut [Work]) {
    section.sort_by_key(|work| Reverse(work.cost));
}

/// Deals works out in their order, each to the block that is free first, as a counter would; the works of each block.
pub(super) fn deal(works: &[Work], blocks: usize) -> Vec<Vec<Work>> {
    let mut shares = vec![Vec::new(); blocks];
    let mut free: BinaryHeap<Reverse<(u64, usize)>> = (0..blocks).map(|block| Reverse((0, block))).collect();
    for &work in works {
        let Reverse((time, block)) = free.pop().expect("there is a block");
        shares[block].push(work);
        free.push(Reverse((time + work.cost, block)));
    }
    shares
}

/// Adds the tables of works and of where each block's begin; for as many blocks as there are shares.
pub(super) fn push(plan: &mut CudaPlan, shares: &[Vec<Work>]) -> [Argument; 2] {
    let (mut works, mut starts) = (Bytes::default(), Bytes::default());
    let mut count = 0;
    starts.i32(0);
    for share in shares {
        for work in share {
            works.i32(work.sequence as i32).i32(work.head as i32).i32(work.query as i32).i32(0);
        }
        count += share.len() as i32;
        starts.i32(count);
    }
    [plan.table(works.take()), plan.table(starts.take())]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::{AttentionProblem, Dtype, Lengths, Pattern, Phase};

    fn geometry(change: impl FnOnce(&mut AttentionProblem)) -> Geometry {
        let mut problem = AttentionProblem::softmax(Phase::Prefill, Dtype::Bf16, 2, (8, 2), (1000, 1000), 64);
        problem.causal = true;
        change(&mut problem);
        Geometry::new(&problem)
    }

    const CUT: Cut = Cut { rows: 128, packed: 1, keys: 128 };

    #[test]
    fn every_tile_is_dealt_out_once() {
        for packed in [1, 2, 4] {
            let geometry = geometry(|problem| problem.seqlen_q = Lengths::List(vec![1000, 77]));
            let works = works("flash3", &geometry, Cut { packed, ..CUT }).expect("a list");
            let mut seen: Vec<_> = deal(&works, 5).concat().iter().map(|w| (w.sequence, w.head, w.query)).collect();
            seen.sort_unstable();
            let mut expected = Vec::new();
            for (sequence, len_q) in [1000usize, 77].into_iter().enumerate() {
                for head in (0..8).step_by(packed) {
                    expected.extend((0..len_q).step_by(128 / packed).map(|query| (sequence, head, query)));
                }
            }
            assert_eq!(seen, expected, "{packed} heads a tile");
        }
    }

    #[test]
    fn heads_are_packed_where_one_does_not_fill_a_tile() {
        let packed = |len_q, heads| {
            let problem = AttentionProblem::softmax(Phase::Append, Dtype::Bf16, 1, heads, (len_q, 4096), 128);
            packed_heads(&Geometry::new(&problem), 128)
        };
        assert_eq!([packed(4096, (32, 8)), packed(64, (32, 8)), packed(1, (32, 8))], [1, 2, 4]);
        assert_eq!([packed(1, (24, 8)), packed(1, (12, 2)), packed(1, (256, 1))], [1, 2, 128]);
    }

    #[test]
    fn tiles_of_keys_are_those_that_the_mask_leaves() {
        // 1000 keys: rows 0..128 see 128, the last tile of 104 rows all of them.
        let causal = geometry(|_| {});
        assert_eq!([0, 128, 896].map(|first| key_tiles(&causal, 0, first, 128, 128)), [1, 2, 8]);
        let window = geometry(|problem| problem.pattern = Pattern::Window { left: 127, right: 0 });
        assert_eq!([0, 128, 896].map(|first| key_tiles(&window, 0, first, 128, 128)), [1, 2, 2]);
        // Queries that are before every key see none.
        let early = geometry(|problem| problem.seqlen_kv = Lengths::List(vec![10, 1000]));
        assert_eq!(key_tiles(&early, 0, 0, 128, 128), 0);
    }

    #[test]
    fn no_block_waits_long_for_another() {
        let geometry = geometry(|problem| (problem.batch, problem.seqlen_q) = (16, Lengths::Same(1000)));
        let works = works("flash3", &geometry, CUT).expect("a list");
        let sums: Vec<u64> = deal(&works, 132).iter().map(|share| share.iter().map(|work| work.cost).sum()).collect();
        let (least, most) = (sums.iter().min().expect("blocks"), sums.iter().max().expect("blocks"));
        // The last works that are dealt out are the shortest, of two tiles.
        assert!(most - least <= 2, "{least} to {most}");
    }

    #[test]
    fn keys_that_do_not_fit_the_cache_together_are_not_read_at_the_same_time() {
        // 16 MiB of keys and values a head: two heads a section.
        let geometry = geometry(|problem| {
            (problem.batch, problem.heads_q, problem.heads_kv) = (1, 4, 4);
            (problem.seqlen_q, problem.seqlen_kv) = (Lengths::Same(65_536), Lengths::Same(65_536));
        });
        let works = works("flash3", &geometry, CUT).expect("a list");
        let (first, second) = works.split_at(works.len() / 2);
        assert!(first.iter().all(|work| work.head < 2) && second.iter().all(|work| work.head >= 2));
        assert!(first.is_sorted_by_key(|work| Reverse(work.cost)));
    }
}
