//! Which rows of a problem's outputs to check: all where that is cheap, else a few that would show a mistake.
//!
//! Rows are taken from a few (sequence, KV head) groups, so that making the keys of a group serves many rows, and in turn
//! from these kinds, until the budget is spent:
//!
//! - *edges*: the first and the last query of the first and the last head;
//! - *peaks*: queries that single out a key at an edge of the pattern ([`Generator::peak`]), every kind of peak first
//!   once: an off-by-one mask changes these rows wholly;
//! - *flat* rows, late ones first: they weigh all keys alike, so a block that was dropped anywhere shows;
//! - *boundaries*: queries beside multiples of the usual tile and page sizes, from both ends;
//! - seeded random rows.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Row;
use super::expected::SampledRows;
use super::visible::Definition;
use crate::input::{Generator, InputSpec, SparseGrad, hash64, key_lengths, output_names};
use crate::problem::{AttentionProblem, KvLayout, Mechanism, Phase};
use crate::tensor::TensorName;

/// What checking one case may cost by default.
pub const DEFAULT_BUDGET_FLOPS: f64 = 2e9;

/// Elements of outputs that are compared whole: their rows go through a pipe.
const MAX_WHOLE_ELEMENTS: usize = 1 << 22;
/// Rows that are sampled of one tensor.
const MAX_ROWS: usize = 4096;
/// Rows with a gradient in a sampled backward problem.
const MAX_GRAD_ROWS: usize = 64;
/// Keys of each group whose dK and dV are checked in a sampled backward problem.
const KEYS_A_GROUP: usize = 64;
/// (sequence, KV head) groups that are sampled.
const MAX_GROUPS: usize = 256;
/// What it costs to make one element of K or V, in multiply-adds' FLOPs.
const GENERATION_FLOPS: f64 = 16.0;

/// What to check of one problem and one input set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SamplePlan {
    /// Whether every row of every output is checked.
    pub is_whole: bool,
    /// What the oracle's answer costs, at most.
    pub cost_flops: f64,
    /// The rows to bring back, a tensor each.
    pub rows: Vec<SampledRows>,
    /// Backward problems that are not whole: the rows of dO that must be the only ones that are not zero
    /// ([`InputSpec::sparse_grads`]), in the input set that is checked and in the oracle's source alike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sparse_grad_rows: Option<Vec<Row>>,
}

impl SamplePlan {
    /// The plan of a valid problem: whole where that costs at most `budget_flops`, else sampled for at most that, but
    /// never less than one row. The same arguments give the same plan.
    pub fn for_problem(problem: &AttentionProblem, spec: &InputSpec, set: u64, budget_flops: f64) -> SamplePlan {
        let sampler = Sampler::new(problem, spec, set);
        sampler.whole(budget_flops).unwrap_or_else(|| sampler.sampled(budget_flops))
    }

    /// What [`InputSpec::sparse_grads`] must hold for the set that this plan was made for, if anything.
    pub fn sparse_grad(&self, set: u64) -> Option<SparseGrad> {
        self.sparse_grad_rows.clone().map(|rows| SparseGrad { set, rows })
    }

    /// Asks for the log-sum-exps of the rows of O too. Only where the kernel writes them.
    pub fn with_lse(mut self) -> SamplePlan {
        let rows = self.rows.iter().find(|sampled| sampled.tensor == TensorName::O).map(|sampled| sampled.rows.clone());
        if let Some(rows) = rows {
            self.rows.push(SampledRows { tensor: TensorName::Lse, rows });
        }
        self
    }
}

struct Sampler<'a> {
    problem: &'a AttentionProblem,
    generator: Generator<'a>,
    seed: u64,
    offsets: &'a [i64],
    lengths_q: Vec<usize>,
    lengths_k: Vec<usize>,
}

impl<'a> Sampler<'a> {
    fn new(problem: &'a AttentionProblem, spec: &'a InputSpec, set: u64) -> Self {
        Sampler {
            problem,
            generator: Generator::new(problem, spec, set),
            // A stream of its own: what is checked must not follow the inputs' hashes.
            seed: hash64(hash64(spec.seed, 0x5A4D_504C_4552), set),
            offsets: &spec.peak_offsets,
            lengths_q: problem.lengths_q(),
            lengths_k: key_lengths(problem),
        }
    }

    /// FLOPs of the oracle a visible pair.
    fn pair_flops(&self, whole: bool) -> f64 {
        let (dk, dv) = (self.problem.head_dim_qk as f64, self.problem.head_dim_v as f64);
        match (self.problem.phase, self.problem.mechanism) {
            // The forward pass, dQ, and where every key is asked for, dK and dV.
            (Phase::Backward, _) => 2.0 * (3.0 * dk + 2.0 * dv + if whole { 2.0 * dk + 2.0 * dv } else { 0.0 }),
            (_, Mechanism::Linformer { rank }) => 2.0 * (dk + 3.0 * rank as f64 + dv),
            _ => 2.0 * (dk + dv),
        }
    }

    /// FLOPs to make the inputs of one key.
    fn key_flops(&self) -> f64 {
        let rank = if let Mechanism::Linformer { rank } = self.problem.mechanism { rank } else { 0 };
        GENERATION_FLOPS * (self.problem.head_dim_qk + self.problem.head_dim_v + 2 * rank) as f64
    }

    fn definition(&self, sequence: usize) -> Definition {
        Definition::new(self.problem, self.lengths_q[sequence], self.lengths_k[sequence])
    }

    /// The state of the recurrent form takes part in a row like this many keys.
    fn state_keys(&self) -> usize {
        if self.problem.is_recurrent() { self.problem.head_dim_qk } else { 0 }
    }

    fn whole(&self, budget_flops: f64) -> Option<SamplePlan> {
        let problem = self.problem;
        let names = output_names(problem);
        let tokens_q: usize = self.lengths_q.iter().sum();
        let tokens_k: usize = self.lengths_k.iter().sum();
        let states = problem.batch.saturating_mul(problem.heads_kv);
        let elements = names.iter().fold(0usize, |sum, name| {
            let count = match name {
                TensorName::O => [tokens_q, problem.heads_q, problem.head_dim_v],
                TensorName::DQ => [tokens_q, problem.heads_q, problem.head_dim_qk],
                TensorName::DK => [tokens_k, problem.heads_kv, problem.head_dim_qk],
                TensorName::DV => [tokens_k, problem.heads_kv, problem.head_dim_v],
                TensorName::StateOut => [states, problem.head_dim_qk, problem.head_dim_v],
                _ => [states, problem.head_dim_qk, 1],
            };
            sum.saturating_add(count.iter().fold(1, |product: usize, &n| product.saturating_mul(n)))
        });
        if elements > MAX_WHOLE_ELEMENTS {
            return None;
        }
        let mut cost_flops = 0.0;
        for (sequence, &len_q) in self.lengths_q.iter().enumerate() {
            let pairs = self.definition(sequence).pairs_bound() + (len_q * self.state_keys()) as u64;
            cost_flops += pairs as f64 * problem.heads_q as f64 * self.pair_flops(true)
                + (self.lengths_k[sequence] * problem.heads_kv) as f64 * self.key_flops();
        }
        if cost_flops > budget_flops {
            return None;
        }
        let all = |heads: usize, tokens: &[usize]| -> Vec<Row> {
            let sequence = |(b, &tokens): (usize, &usize)| {
                (0..heads).flat_map(move |head| (0..tokens).map(move |token| (b, head, token)))
            };
            tokens.iter().enumerate().flat_map(sequence).collect()
        };
        let rows = names
            .into_iter()
            .map(|tensor| {
                let rows = match tensor {
                    TensorName::O | TensorName::DQ => all(problem.heads_q, &self.lengths_q),
                    TensorName::DK | TensorName::DV => all(problem.heads_kv, &self.lengths_k),
                    TensorName::StateOut => all(problem.heads_kv, &vec![problem.head_dim_qk; problem.batch]),
                    _ => all(problem.heads_kv, &vec![1; problem.batch]),
                };
                SampledRows { tensor, rows }
            })
            .collect();
        Some(SamplePlan { is_whole: true, cost_flops, rows, sparse_grad_rows: None })
    }

    fn sampled(&self, budget_flops: f64) -> SamplePlan {
        let problem = self.problem;
        let is_backward = problem.phase == Phase::Backward;
        let dim = problem.head_dim_qk.max(problem.head_dim_v).max(1);
        let max_rows = if is_backward { MAX_GRAD_ROWS } else { MAX_ROWS.min(MAX_WHOLE_ELEMENTS / dim).max(1) };
        let (groups, rows_a_group) = self.groups(budget_flops, max_rows);
        let mut cost_flops = 0.0;
        let mut chosen: Vec<Row> = Vec::new();
        let mut used_groups = Vec::new();
        for &(sequence, head_kv) in &groups {
            let definition = self.definition(sequence);
            let (mut taken, mut keys_made) = (0, 0usize);
            for (head, query) in self.candidates(sequence, head_kv) {
                if taken == rows_a_group || chosen.len() == max_rows {
                    break;
                }
                let keys = definition.keys_bound(query) + self.state_keys();
                let new_keys = keys.min(self.lengths_k[sequence].saturating_sub(keys_made));
                let cost = keys as f64 * self.pair_flops(false) + new_keys as f64 * self.key_flops();
                // A cheaper row may still fit: short ones beside long ones.
                if cost_flops + cost > budget_flops && !chosen.is_empty() {
                    continue;
                }
                cost_flops += cost;
                keys_made += new_keys;
                taken += 1;
                chosen.push((sequence, head, query));
            }
            if taken > 0 {
                used_groups.push((sequence, head_kv));
            }
            if cost_flops >= budget_flops || chosen.len() == max_rows {
                break;
            }
        }
        let mut rows = Vec::new();
        let mut sparse_grad_rows = None;
        for tensor in output_names(problem) {
            let rows_of_tensor = match tensor {
                TensorName::O => chosen.clone(),
                TensorName::DQ => self.with_zero_rows(&chosen, &used_groups),
                TensorName::DK | TensorName::DV => {
                    used_groups.iter().flat_map(|&group| self.checked_keys(group, &chosen)).collect()
                }
                TensorName::StateOut => used_groups.iter().flat_map(|&group| self.state_rows(group)).collect(),
                _ => used_groups.iter().map(|&(sequence, head)| (sequence, head, 0)).collect(),
            };
            rows.push(SampledRows { tensor, rows: rows_of_tensor });
        }
        if is_backward {
            sparse_grad_rows = Some(chosen);
        }
        SamplePlan { is_whole: false, cost_flops, rows, sparse_grad_rows }
    }

    /// A seeded number below `limit`, which is not 0.
    fn draw(&self, stream: u64, index: u64, limit: usize) -> usize {
        (hash64(hash64(self.seed, stream), index) % limit as u64) as usize
    }

    /// The groups to sample, corners and the longest and shortest sequence first, and how many rows to take of each.
    fn groups(&self, budget_flops: f64, max_rows: usize) -> (Vec<(usize, usize)>, usize) {
        let live: Vec<usize> = (0..self.lengths_q.len()).filter(|&b| self.lengths_q[b] > 0).collect();
        let (Some(&first), Some(&last)) = (live.first(), live.last()) else { return (Vec::new(), 0) };
        let length = |b: &&usize| self.lengths_q[**b] * self.lengths_k[**b].max(1);
        let longest = *live.iter().max_by_key(length).expect("not empty");
        let shortest = *live.iter().min_by_key(length).expect("not empty");
        let heads = self.problem.heads_kv;

        let keys = self.definition(longest).keys_bound(self.lengths_q[longest] - 1).max(1) + self.state_keys();
        let row_flops = keys as f64 * self.pair_flops(false);
        let affordable = ((budget_flops / row_flops) as usize).min(max_rows);
        // Making the keys costs as much as some eight rows, so a group should serve more than that.
        let rows_a_group = (affordable / 8).clamp(16, 64).min(affordable.div_ceil(2)).max(1);
        let wanted = (2 * affordable.div_ceil(rows_a_group)).clamp(2, MAX_GROUPS);

        let mut groups = vec![(first, 0), (last, heads - 1), (longest, heads / 2), (shortest, heads - 1)];
        groups.extend(
            (0..4 * wanted as u64).map(|index| (live[self.draw(1, index, live.len())], self.draw(2, index, heads))),
        );
        let mut seen = BTreeSet::new();
        groups.retain(|group| seen.insert(*group));
        groups.truncate(wanted.max(4));
        (groups, rows_a_group)
    }

    /// Rows (head, query) of a group, without repetition, in the order in which to take them.
    fn candidates(&self, sequence: usize, head_kv: usize) -> Vec<(usize, usize)> {
        let group_size = self.problem.group_size();
        let (first, last) = (head_kv * group_size, (head_kv + 1) * group_size - 1);
        let len_q = self.lengths_q[sequence];
        let random = |stream: u64, index: u64| {
            let stream = hash64(stream, (sequence * self.problem.heads_kv + head_kv) as u64);
            (first + self.draw(stream, 2 * index, group_size), self.draw(stream, 2 * index + 1, len_q))
        };
        let edges = vec![(last, len_q - 1), (first, 0), (first, len_q - 1), (last, 0)];

        let tries = (4 * len_q * group_size).min(4096) as u64;
        let mut peaks: Vec<Vec<(usize, usize)>> = vec![Vec::new(); self.offsets.len() + 3];
        let mut flat = Vec::new();
        for (head, query) in (0..tries).map(|index| random(3, index)) {
            match self.generator.peak(sequence, head, query) {
                Some(key) => peaks[self.peak_kind(sequence, query, key)].push((head, query)),
                None => flat.push((head, query)),
            }
        }
        flat.sort_by_key(|&(_, query)| std::cmp::Reverse(8 * query / len_q));

        let boundaries = self.boundaries().into_iter().enumerate().flat_map(|(n, at)| {
            let head = first + n % group_size;
            [Some(at), len_q.checked_sub(at + 1)].into_iter().flatten().map(move |query| (head, query))
        });
        let kinds = [
            edges,
            in_turn(peaks),
            flat,
            boundaries.filter(|&(_, query)| query < len_q).collect(),
            (0..tries).map(|index| random(4, index)).collect(),
        ];
        let mut seen = BTreeSet::new();
        in_turn(kinds.to_vec()).into_iter().filter(|row| seen.insert(*row)).collect()
    }

    /// Which of the peak kinds a row is: an offset, the first key, the last key, any other.
    fn peak_kind(&self, sequence: usize, query: usize, key: usize) -> usize {
        let offset = key as i64 - self.definition(sequence).position(query);
        let others = self.offsets.len();
        self.offsets.iter().position(|&known| known == offset).unwrap_or(match key {
            0 => others,
            _ if key + 1 == self.lengths_k[sequence] => others + 1,
            _ => others + 2,
        })
    }

    /// Tokens beside the edges of tiles and pages.
    fn boundaries(&self) -> Vec<usize> {
        let mut sizes = vec![64, 128, 16, 32, 256, 512, 1024];
        if let KvLayout::Paged { page_size } = self.problem.kv_layout {
            sizes.insert(0, page_size);
        }
        sizes.into_iter().flat_map(|size| [size - 1, size]).collect()
    }

    /// The rows with a gradient, and a few of the same groups that must have none.
    fn with_zero_rows(&self, chosen: &[Row], groups: &[(usize, usize)]) -> Vec<Row> {
        let mut rows = chosen.to_vec();
        for &(sequence, head_kv) in groups {
            let zero = self.candidates(sequence, head_kv).into_iter().map(|(head, query)| (sequence, head, query));
            rows.extend(zero.filter(|row| !chosen.contains(row)).take(2));
        }
        rows
    }

    /// Keys (sequence, KV head, key) of a group whose gradients are checked.
    fn checked_keys(&self, (sequence, head_kv): (usize, usize), chosen: &[Row]) -> Vec<Row> {
        let (len_k, group_size) = (self.lengths_k[sequence], self.problem.group_size());
        if len_k == 0 {
            return Vec::new();
        }
        let definition = self.definition(sequence);
        let rows = chosen.iter().filter(|row| row.0 == sequence && row.1 / group_size == head_kv);
        let at_rows = rows
            .flat_map(|&(_, head, query)| {
                let peak = self.generator.peak(sequence, head, query).map_or(0, |key| key as i64);
                let p = definition.position(query);
                [peak, p, p + 1, peak - 1, peak + 1]
            })
            .filter_map(|key| usize::try_from(key).ok())
            .collect();
        let boundaries = self.boundaries().into_iter().flat_map(|at| [at, len_k.saturating_sub(at + 1)]).collect();
        let stream = hash64(5, (sequence * self.problem.heads_kv + head_kv) as u64);
        let random = (0..2 * KEYS_A_GROUP as u64).map(|index| self.draw(stream, index, len_k)).collect();
        let mut seen = BTreeSet::new();
        in_turn(vec![vec![0, len_k - 1], at_rows, boundaries, random])
            .into_iter()
            .filter(|&key| key < len_k && seen.insert(key))
            .take(KEYS_A_GROUP)
            .map(|key| (sequence, head_kv, key))
            .collect()
    }

    /// Rows of the state: first, last and a few between.
    fn state_rows(&self, (sequence, head_kv): (usize, usize)) -> Vec<Row> {
        let dim = self.problem.head_dim_qk;
        let mut rows = BTreeSet::from([0, dim - 1]);
        rows.extend((0..6).map(|index| self.draw(6, index, dim)));
        rows.into_iter().map(|d| (sequence, head_kv, d)).collect()
    }
}

/// The first of each list, then the second of each, and so on.
fn in_turn<T: Clone>(lists: Vec<Vec<T>>) -> Vec<T> {
    let longest = lists.iter().map(Vec::len).max().unwrap_or(0);
    (0..longest).flat_map(|index| lists.iter().filter_map(move |list| list.get(index).cloned())).collect()
}
