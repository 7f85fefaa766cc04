//! Rows of O for softmax attention (all patterns, biases, MLA) and for linear attention in its quadratic form.

use rayon::prelude::*;

use super::visible::Definition;
use super::{NORMALISER_EPSILON, Oracle, RowReference, dense, feature, parts, round_to, round_weight, sum_of_squares};
use crate::problem::{Bias, Mechanism};
use crate::tensor::TensorName;

/// Keys that are in memory together.
pub(super) const BLOCK: usize = 128;

/// Pairs whose scores are in memory together: 12 bytes each.
const MAX_PAIRS: usize = 4 << 20;

/// A query row of a group and the keys that it sees, in order.
pub(super) struct QueryRow {
    pub(super) head: usize,
    pub(super) query: usize,
    pub(super) keys: Vec<u32>,
}

/// A row of O and what a backward pass needs of its softmax.
pub(super) struct Attended {
    pub(super) reference: RowReference,
    /// The largest visible score.
    pub(super) max: f64,
    /// The denominator: the sum of exp(score - max), the sink included.
    pub(super) sum: f64,
}

/// The keys of one block that at least one row sees.
pub(super) struct KeyBlock<'r> {
    pub(super) first: usize,
    /// (row, its visible keys of this block); rows that see none are left out.
    pub(super) cells: Vec<(usize, &'r [u32])>,
    /// Every key that some cell holds, in order.
    pub(super) needed: Vec<usize>,
}

/// Calls `visit` for every block of keys in `blocks` that some row sees.
pub(super) fn for_each_block<'r>(
    rows: &'r [QueryRow],
    blocks: std::ops::Range<usize>,
    mut visit: impl FnMut(KeyBlock<'r>),
) {
    let split = |keys: &[u32], end: usize| keys.partition_point(|&key| (key as usize) < end);
    let mut cursors: Vec<usize> = rows.iter().map(|row| split(&row.keys, blocks.start * BLOCK)).collect();
    for block in blocks {
        let first = block * BLOCK;
        let mut is_needed = [false; BLOCK];
        let mut cells = Vec::with_capacity(rows.len());
        for (index, (row, cursor)) in rows.iter().zip(&mut cursors).enumerate() {
            let ahead = &row.keys[*cursor..];
            // At most BLOCK keys ahead can be in the block.
            let count = split(&ahead[..ahead.len().min(BLOCK)], first + BLOCK);
            if count > 0 {
                ahead[..count].iter().for_each(|&key| is_needed[key as usize - first] = true);
                cells.push((index, &ahead[..count]));
                *cursor += count;
            }
        }
        if !cells.is_empty() {
            let needed = (0..BLOCK).filter(|&key| is_needed[key]).map(|key| first + key).collect();
            visit(KeyBlock { first, cells, needed });
        }
    }
}

/// Buffers of one task.
#[derive(Default)]
pub(super) struct Scratch {
    narrow: Vec<f32>,
    picks: Vec<u32>,
}

impl KeyBlock<'_> {
    /// Rows of K or V of this block; those that no cell needs are left as they were.
    pub(super) fn load(
        &self,
        oracle: &Oracle<'_>,
        name: TensorName,
        (sequence, head_kv): (usize, usize),
        dim: usize,
        scratch: &mut Scratch,
        out: &mut Vec<f64>,
    ) {
        out.resize(BLOCK * dim, 0.0);
        for &key in &self.needed {
            let slot = &mut out[(key - self.first) * dim..][..dim];
            oracle.load_row(name, (sequence, head_kv, key), &mut scratch.narrow, slot);
        }
    }

    /// Where a cell's keys are in the loaded block.
    pub(super) fn picks<'s>(&self, keys: &[u32], scratch: &'s mut Scratch) -> &'s [u32] {
        scratch.picks.clear();
        scratch.picks.extend(keys.iter().map(|&key| key - self.first as u32));
        &scratch.picks
    }
}

/// Scores of one part of the keys, in the order in which [`for_each_block`] visits the pairs.
#[derive(Clone)]
pub(super) struct PartScores {
    pub(super) scores: Vec<f64>,
    max: Vec<f64>,
}

/// How a score becomes a weight.
#[derive(Clone, Copy, PartialEq)]
enum Weighting {
    Softmax,
    Linear { normalised: bool },
}

/// Sums over keys, a row each.
#[derive(Clone)]
struct Sums {
    weights: f64,
    squared_weights: f64,
    squared_terms: f64,
    o: Vec<f64>,
    o_lp: Vec<f64>,
}

impl Sums {
    fn new(dim: usize) -> Self {
        let o = vec![0.0; dim];
        Sums { weights: 0.0, squared_weights: 0.0, squared_terms: 0.0, o_lp: o.clone(), o }
    }

    fn add(&mut self, other: &Sums) {
        self.weights += other.weights;
        self.squared_weights += other.squared_weights;
        self.squared_terms += other.squared_terms;
        self.o.iter_mut().zip(&other.o).for_each(|(sum, x)| *sum += x);
        self.o_lp.iter_mut().zip(&other.o_lp).for_each(|(sum, x)| *sum += x);
    }
}

impl Oracle<'_> {
    /// Rows (head, query) of the output, all of one sequence and one KV head.
    pub(super) fn attend_group(&self, sequence: usize, head_kv: usize, rows: &[(usize, usize)]) -> Vec<Attended> {
        let mut answers = Vec::with_capacity(rows.len());
        let mut rest = self.query_rows(sequence, rows);
        while !rest.is_empty() {
            let mut pairs = 0;
            let count = rest.iter().take_while(|row| {
                pairs += row.keys.len();
                pairs <= MAX_PAIRS
            });
            let later = rest.split_off(count.count().max(1).min(rest.len()));
            let scores = self.scores(sequence, head_kv, &rest);
            answers.extend(self.combine(sequence, head_kv, &rest, &scores));
            rest = later;
        }
        answers
    }

    /// Finds the keys that each row sees; a mask hides pairs too.
    pub(super) fn query_rows(&self, sequence: usize, rows: &[(usize, usize)]) -> Vec<QueryRow> {
        let definition = self.definition(sequence);
        let is_masked = matches!(self.problem.bias, Bias::Bool | Bias::Additive);
        rows.par_iter()
            .map(|&(head, query)| {
                let mut keys = definition.keys(head, query);
                if is_masked {
                    keys.retain(|&key| self.source.bias(sequence, head, query, key as usize) != f64::NEG_INFINITY);
                }
                QueryRow { head, query, keys }
            })
            .collect()
    }

    /// The factor of q.k and, for a soft cap, the score and its derivative by scale * q.k.
    pub(super) fn cap(&self, scaled: f64) -> (f64, f64) {
        match self.problem.softcap {
            None => (scaled, 1.0),
            Some(cap) => {
                let t = (scaled / cap).tanh();
                (cap * t, 1.0 - t * t)
            }
        }
    }

    /// What is added to the score of a visible pair.
    pub(super) fn bias(&self, definition: &Definition, sequence: usize, head: usize, query: usize, key: usize) -> f64 {
        match self.problem.bias {
            Bias::None => 0.0,
            Bias::Bool | Bias::Additive => self.source.bias(sequence, head, query, key),
            Bias::Alibi => {
                // Press et al. 2022, section 3: a geometric sequence of slopes that begins at its own ratio.
                let slope = (-8.0 * (head + 1) as f64 / self.problem.heads_q as f64).exp2();
                -slope * (definition.position(query) - key as i64).abs() as f64
            }
        }
    }

    /// Queries of the rows, one after another; linear attention's are mapped by phi.
    pub(super) fn queries(&self, sequence: usize, rows: &[QueryRow]) -> Vec<f64> {
        let dim = self.problem.head_dim_qk;
        let mut queries: Vec<f64> =
            rows.iter().flat_map(|row| self.read_row(TensorName::Q, (sequence, row.head, row.query), dim)).collect();
        self.map_features(&mut queries);
        queries
    }

    pub(super) fn map_features(&self, values: &mut [f64]) {
        if let Mechanism::Linear { feature_map, .. } = self.problem.mechanism {
            values.iter_mut().for_each(|x| *x = feature(feature_map, *x));
        }
    }

    /// First pass: the scores of all visible pairs.
    pub(super) fn scores(&self, sequence: usize, head_kv: usize, rows: &[QueryRow]) -> Vec<PartScores> {
        let dim = self.problem.head_dim_qk;
        let queries = self.queries(sequence, rows);
        let definition = self.definition(sequence);
        let scale = self.problem.effective_scale();
        let is_linear = matches!(self.problem.mechanism, Mechanism::Linear { .. });
        let is_plain = self.problem.softcap.is_none() && self.problem.bias == Bias::None;
        parts(self.key_blocks(sequence))
            .into_par_iter()
            .map(|blocks| {
                let (mut scratch, mut keys_block) = (Scratch::default(), Vec::new());
                let mut part = PartScores { scores: Vec::new(), max: vec![f64::NEG_INFINITY; rows.len()] };
                for_each_block(rows, blocks, |block| {
                    block.load(self, TensorName::K, (sequence, head_kv), dim, &mut scratch, &mut keys_block);
                    self.map_features(&mut keys_block);
                    for &(index, keys) in &block.cells {
                        let start = part.scores.len();
                        part.scores.resize(start + keys.len(), 0.0);
                        let scores = &mut part.scores[start..];
                        let picks = block.picks(keys, &mut scratch);
                        dense::dots(&queries[index * dim..][..dim], &keys_block, picks, scores);
                        if is_linear {
                            continue;
                        }
                        let row = &rows[index];
                        for (score, &key) in scores.iter_mut().zip(keys) {
                            *score *= scale;
                            if !is_plain {
                                let bias = self.bias(&definition, sequence, row.head, row.query, key as usize);
                                *score = self.cap(*score).0 + bias;
                            }
                        }
                        part.max[index] = scores.iter().copied().fold(part.max[index], f64::max);
                    }
                });
                part
            })
            .collect()
    }

    pub(super) fn key_blocks(&self, sequence: usize) -> usize {
        self.lengths_kv[sequence].div_ceil(BLOCK)
    }

    /// Second pass: weights, and their sums with V.
    pub(super) fn combine(
        &self,
        sequence: usize,
        head_kv: usize,
        rows: &[QueryRow],
        part_scores: &[PartScores],
    ) -> Vec<Attended> {
        let dim = self.problem.head_dim_v;
        let weighting = match self.problem.mechanism {
            Mechanism::Linear { normalised, .. } => Weighting::Linear { normalised },
            _ => Weighting::Softmax,
        };
        let max: Vec<f64> = (0..rows.len())
            .map(|index| part_scores.iter().map(|part| part.max[index]).fold(f64::NEG_INFINITY, f64::max))
            .collect();
        let partial: Vec<Vec<Sums>> = parts(self.key_blocks(sequence))
            .into_par_iter()
            .zip(part_scores)
            .map(|(blocks, part)| {
                let (mut scratch, mut values_block) = (Scratch::default(), Vec::new());
                let mut sums = vec![Sums::new(dim); rows.len()];
                let mut remaining = part.scores.as_slice();
                let (mut weights, mut weights_lp, mut squares) = (Vec::new(), Vec::new(), vec![0.0; BLOCK]);
                for_each_block(rows, blocks, |block| {
                    block.load(self, TensorName::V, (sequence, head_kv), dim, &mut scratch, &mut values_block);
                    for &key in &block.needed {
                        let slot = key - block.first;
                        squares[slot] = sum_of_squares(&values_block[slot * dim..][..dim]);
                    }
                    for &(index, keys) in &block.cells {
                        let (scores, after) = remaining.split_at(keys.len());
                        remaining = after;
                        weights.clear();
                        weights.extend(scores.iter().map(|&score| match weighting {
                            Weighting::Softmax => (score - max[index]).exp(),
                            Weighting::Linear { .. } => score,
                        }));
                        weights_lp.clear();
                        weights_lp.extend(weights.iter().map(|&weight| match weighting {
                            Weighting::Softmax => round_weight(self.multiplied_in, weight),
                            Weighting::Linear { .. } => round_to(self.multiplied_in, weight),
                        }));
                        let sums = &mut sums[index];
                        let picks = block.picks(keys, &mut scratch);
                        for (&weight, &pick) in weights.iter().zip(picks) {
                            sums.weights += weight;
                            sums.squared_weights += weight * weight;
                            sums.squared_terms += weight * weight * squares[pick as usize];
                        }
                        dense::accumulate([&weights, &weights_lp], &values_block, picks, [&mut sums.o, &mut sums.o_lp]);
                    }
                });
                sums
            })
            .collect();
        rows.iter()
            .enumerate()
            .map(|(index, row)| {
                let mut sums = Sums::new(dim);
                partial.iter().for_each(|part| sums.add(&part[index]));
                match weighting {
                    Weighting::Softmax => self.finish_softmax(row, max[index], sums),
                    Weighting::Linear { normalised } => self.finish_linear(normalised, sums),
                }
            })
            .collect()
    }

    fn finish_softmax(&self, row: &QueryRow, max: f64, sums: Sums) -> Attended {
        let dim = sums.o.len();
        if row.keys.is_empty() {
            let zeros = vec![0.0; dim];
            let reference = RowReference { o_lp: zeros.clone(), o: zeros, scale: 0.0, lse: f64::NEG_INFINITY };
            return Attended { reference, max: 0.0, sum: 0.0 };
        }
        let lse = max + sums.weights.ln();
        let sink =
            if self.problem.sinks { (self.sinks.get(self.problem, self.source, row.head) - max).exp() } else { 0.0 };
        let sum = sums.weights + sink;
        let reference = RowReference {
            o: sums.o.iter().map(|x| x / sum).collect(),
            o_lp: sums.o_lp.iter().map(|x| round_to(self.problem.dtype, x / sum)).collect(),
            scale: sums.squared_terms.sqrt() / sum,
            lse,
        };
        Attended { reference, max, sum }
    }

    fn finish_linear(&self, normalised: bool, sums: Sums) -> Attended {
        let divisor = if normalised { sums.weights + NORMALISER_EPSILON } else { 1.0 / self.problem.effective_scale() };
        let o: Vec<f64> = sums.o.iter().map(|x| x / divisor).collect();
        // Errors of the denominator move the whole row.
        let denominator_error = if normalised { sum_of_squares(&o).sqrt() * sums.squared_weights.sqrt() } else { 0.0 };
        let reference = RowReference {
            o_lp: sums.o_lp.iter().map(|x| round_to(self.problem.dtype, x / divisor)).collect(),
            scale: (sums.squared_terms.sqrt() + denominator_error) / divisor.abs(),
            o,
            lse: f64::NAN,
        };
        Attended { reference, max: 0.0, sum: sums.weights }
    }
}
