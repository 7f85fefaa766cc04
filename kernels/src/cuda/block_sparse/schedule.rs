//! Which block computes what, in which order.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::ops::Range;

use super::lists::{List, Pool, Run, tiles};
use super::rows::{Passes, RowSet, ways};
use super::shape::Shape;
use crate::pattern::Visibility;
use crate::problem::AttentionProblem;

/// What a row costs that leaves its sums in memory for a second launch, in pairs: 8 bytes a column written and read at 4.3 TB/s,
/// where a pair is 4 FLOPs a column at 450 TFLOP/s.
const SUMS_COST_PAIRS: f64 = 210.0;
/// Row sets that an estimate looks at, and tiles of each: every so manieth; an odd number, because tiles may alternate.
const SAMPLED_SETS: usize = 12;
const SAMPLED_TILES: usize = 24;

/// `Work` of `block_sparse.cu`, and how many tiles of keys it visits.
#[derive(Clone, Debug, Default)]
pub(super) struct Piece {
    pub(super) sequence: usize,
    pub(super) head: usize,
    pub(super) first: usize,
    pub(super) step: usize,
    pub(super) count: usize,
    pub(super) runs: Range<usize>,
    pub(super) pieces: i32,
    pub(super) slot: usize,
    pub(super) slot_step: usize,
    pub(super) slot_head: usize,
    pub(super) slot_piece: usize,
    pub(super) tiles: usize,
}

/// Everything that the tables of a plan are made from.
#[derive(Debug)]
pub(super) struct Schedule {
    pub(super) shape: Shape,
    /// Runs of all lists.
    pub(super) runs: Vec<Run>,
    pub(super) pool: Pool,
    /// Launches in order.
    pub(super) launches: Vec<Vec<Piece>>,
    /// Rows of sums between them.
    pub(super) slots: usize,
    /// Visible pairs, and pairs in the tiles that are visited.
    pub(super) visible: u64,
    pub(super) visited: u64,
}

/// What is known of a problem's sequences and heads.
pub(super) struct Heads<'a> {
    pub(super) problem: &'a AttentionProblem,
    pub(super) visibilities: Vec<Visibility>,
}

impl Heads<'_> {
    fn differ(&self) -> bool {
        self.visibilities.first().is_some_and(Visibility::heads_differ)
    }

    /// Heads of a group that a tile may hold.
    fn group(&self) -> usize {
        if self.differ() { 1 } else { self.problem.heads_q / self.problem.heads_kv }
    }

    /// Sequences that see alike: each kind's first one and how many there are.
    fn kinds(&self) -> Vec<(usize, usize)> {
        let mut kinds: HashMap<(usize, usize), (usize, usize)> = HashMap::new();
        for (number, visibility) in self.visibilities.iter().enumerate() {
            kinds.entry((visibility.len_q, visibility.len_kv)).or_insert((number, 0)).1 += 1;
        }
        let mut kinds: Vec<_> = kinds.into_values().collect();
        kinds.sort_unstable();
        kinds
    }

    /// About how many pairs' time a way and a shape take on this many multiprocessors.
    fn cost(&self, way: usize, shape: &Shape, multiprocessors: usize) -> f64 {
        let (mut pairs, mut blocks) = (0.0, 0.0f64);
        for (number, sequences) in self.kinds() {
            let visibility = &self.visibilities[number];
            let passes = &ways(visibility)[way];
            let heads = (sequences * self.problem.heads_q / shape.packed) as f64;
            for sets in passes {
                // Sets that are many are alike; those that are few may be dense rows, each of which counts.
                let every = sets.len().div_ceil(SAMPLED_SETS) | 1;
                let sampled = sets.iter().step_by(every);
                let scale = heads * sets.len() as f64 / sampled.len() as f64;
                for set in sampled {
                    let (tiles, visited) = estimate(visibility, set, shape);
                    pairs += scale * visited * (shape.rows * shape.keys) as f64 * shape.cost_of_pair;
                    blocks += scale * tiles as f64;
                }
            }
            if passes.len() > 1 {
                pairs += (sequences * self.problem.heads_q * visibility.len_q) as f64 * SUMS_COST_PAIRS;
            }
        }
        pairs * (multiprocessors as f64 / blocks.max(1.0)).max(1.0)
    }

    /// The cheapest way and shape; the first of equal ones.
    pub(super) fn choose(&self, shapes: &[Shape], multiprocessors: usize) -> (usize, Shape) {
        let count = self.visibilities.first().map_or(1, |visibility| ways(visibility).len());
        let mut best: Option<(f64, usize, Shape)> = None;
        for way in 0..count {
            for shape in shapes.iter().filter(|shape| self.group().is_multiple_of(shape.packed)) {
                let cost = self.cost(way, shape, multiprocessors);
                if best.is_none_or(|(least, ..)| cost < least) {
                    best = Some((cost, way, *shape));
                }
            }
        }
        let (_, way, shape) = best.expect("a tile of one head is always possible");
        (way, shape)
    }

    /// The schedule of a way and a shape.
    pub(super) fn schedule(&self, way: usize, shape: Shape, multiprocessors: usize) -> Schedule {
        let heads = self.problem.heads_q;
        let mut schedule = Schedule::new(shape);
        // The lists of every kind of sequence and head, and which kind a sequence and head are.
        let mut lists: Vec<Vec<List>> = Vec::new();
        let mut known: HashMap<(usize, usize, usize), usize> = HashMap::new();
        let mut places: Vec<(usize, usize, usize)> = Vec::new();
        let tiles: Vec<Vec<Tile>> =
            self.visibilities.iter().map(|v| tiles_of(&ways(v)[way], shape.cut().rows)).collect();
        for (sequence, visibility) in self.visibilities.iter().enumerate() {
            for head in (0..heads).step_by(shape.packed) {
                let key = (visibility.len_q, visibility.len_kv, if self.differ() { head } else { 0 });
                let kind = *known.entry(key).or_insert_with(|| {
                    let list =
                        |tile: &Tile| schedule.pool.list(visibility, head, &tile.set, tile.rows.clone(), shape.cut());
                    lists.push(tiles[sequence].iter().map(list).collect());
                    lists.len() - 1
                });
                places.push((sequence, head, kind));
            }
        }
        let two_passes = tiles.iter().flatten().any(|tile| tile.pass > 0);
        let total: usize = places.iter().flat_map(|place| &lists[place.2]).map(|list| list.tiles).sum();
        let limit = if two_passes { usize::MAX } else { shape.longest_part(total, multiprocessors) };
        let parts: Vec<Vec<Vec<Part>>> = lists
            .iter()
            .map(|lists| lists.iter().map(|list| schedule.add(list.parts(shape.keys, limit))).collect())
            .collect();

        let longest_q = self.visibilities.iter().map(|visibility| visibility.len_q).max().unwrap_or(0);
        if two_passes {
            schedule.slots = self.visibilities.len() * heads * longest_q;
        }
        let mut launches = [Vec::new(), Vec::new()];
        for &(sequence, head, kind) in &places {
            for ((tile, list), parts) in tiles[sequence].iter().zip(&lists[kind]).zip(&parts[kind]) {
                schedule.visible += list.visible * shape.packed as u64;
                schedule.visited += (list.tiles * shape.rows * shape.keys) as u64;
                let first = tile.set.query(tile.rows.start);
                let piece = |part: &Part| Piece {
                    sequence,
                    head,
                    first,
                    step: tile.set.step,
                    count: tile.rows.len(),
                    runs: part.runs.clone(),
                    tiles: part.tiles,
                    ..Piece::default()
                };
                if two_passes {
                    // Every query has its own slot, whatever rows its tile has in either pass.
                    launches[tile.pass].push(Piece {
                        slot: (sequence * heads + head) * longest_q + first,
                        slot_step: tile.set.step,
                        slot_head: longest_q,
                        pieces: if tile.pass == 0 { -1 } else { 1 },
                        ..piece(&parts[0])
                    });
                } else if let [whole] = &parts[..] {
                    launches[0].push(piece(whole));
                } else {
                    let (slot, rows) = (schedule.slots, shape.cut().rows);
                    let with_slot = |number: usize, pieces: i32, piece: Piece| Piece {
                        slot: slot + number * shape.rows,
                        slot_step: 1,
                        slot_head: rows,
                        slot_piece: shape.rows,
                        pieces,
                        ..piece
                    };
                    launches[0]
                        .extend(parts.iter().enumerate().map(|(number, part)| with_slot(number, -1, piece(part))));
                    launches[1].push(with_slot(0, parts.len() as i32, piece(&Part { runs: 0..0, tiles: 0 })));
                    schedule.slots += parts.len() * shape.rows;
                }
            }
        }
        for mut launch in launches.into_iter().filter(|launch| !launch.is_empty()) {
            launch.sort_by_key(|piece| Reverse(piece.tiles));
            schedule.launches.push(launch);
        }
        schedule
    }
}

/// Tiles of rows of a set, and about how many tiles of keys they visit.
fn estimate(visibility: &Visibility, set: &RowSet, shape: &Shape) -> (usize, f64) {
    let rows = shape.cut().rows;
    let all = set.count.div_ceil(rows);
    let sampled = (0..all).step_by(all.div_ceil(SAMPLED_TILES) | 1);
    let scale = all as f64 / sampled.len() as f64;
    let visit = |tile: usize| tiles(visibility, 0, set, tile * rows..set.count.min((tile + 1) * rows), shape.keys);
    (all, scale * sampled.map(visit).sum::<usize>() as f64)
}

/// A part of a list as runs of a schedule, and how many tiles of keys it has.
struct Part {
    runs: Range<usize>,
    tiles: usize,
}

/// Rows of a set that a block computes, and in which pass.
struct Tile {
    pass: usize,
    set: RowSet,
    rows: Range<usize>,
}

fn tiles_of(passes: &Passes, rows: usize) -> Vec<Tile> {
    let mut tiles = Vec::new();
    for (pass, set) in passes.iter().enumerate().flat_map(|(pass, sets)| sets.iter().map(move |set| (pass, set))) {
        let starts = (0..set.count).step_by(rows);
        tiles.extend(starts.map(|first| Tile { pass, set: set.clone(), rows: first..set.count.min(first + rows) }));
    }
    tiles
}

impl Schedule {
    fn new(shape: Shape) -> Schedule {
        let (runs, launches, pool) = (Vec::new(), Vec::new(), Pool::default());
        Schedule { shape, runs, pool, launches, slots: 0, visible: 0, visited: 0 }
    }

    fn add(&mut self, parts: Vec<(Vec<Run>, usize)>) -> Vec<Part> {
        let mut added = Vec::new();
        for (runs, tiles) in parts {
            let begin = self.runs.len();
            self.runs.extend(runs);
            added.push(Part { runs: begin..self.runs.len(), tiles });
        }
        added
    }
}
