//! The exact work of a problem: what the mathematics needs, not what a kernel happens to do.
//!
//! - **Pairs** are the visible (query, key) pairs, by closed forms.
//! - **Softmax and MLA**: 2 * pairs * heads_q * (d_qk + d_v) FLOPs forward; 2 * pairs * heads_q * (3 d_qk + 2 d_v) backward,
//!   which by convention holds one recompute of the scores.
//! - **Linear**: 2 * d_qk * d_v * (heads_kv * n_kv + heads_q * n_q) FLOPs a sequence. **Linformer**: the same with
//!   rank * (d_qk + d_v) for d_qk * d_v.
//! - **Bytes**: each distinct element of Q, K and V that some pair needs is read once, KV a KV head and not a query head;
//!   every output is written once, zeros included. Page-table entries that find a needed key count, and so do biases and
//!   sinks; padding, block lists and keys that no query sees do not.
//! - **Linear decode** reads and writes its f32 state; **absorbed MLA** reads each latent row once, as key and as value.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::input::key_lengths;
use crate::pattern::Visibility;
use crate::problem::{AttentionProblem, Bias, KvLayout, Mechanism, Pattern, Phase};

#[cfg(test)]
mod tests;

/// Bytes of an f32, the type of states, projections, sinks and LSE, and of an i32, the type of page ids.
const F32_BYTES: u64 = 4;

/// What one call has to do, at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Work {
    /// Visible pairs summed over the batch, of one query head (the first, where BigBird's draw makes them differ); 0 for
    /// linear attention and Linformer, which form none.
    pub pairs: u64,
    /// Visible pairs summed over batch and query heads.
    pub pairs_all_heads: u64,
    /// Floating-point operations, a multiplication and an addition being two.
    pub flops: u64,
    /// Bytes read from memory.
    pub read_bytes: u64,
    /// Bytes written to memory.
    pub write_bytes: u64,
}

impl Work {
    /// The work of a valid problem.
    pub fn of(problem: &AttentionProblem) -> Work {
        let mut work = Work { pairs: 0, pairs_all_heads: 0, flops: 0, read_bytes: 0, write_bytes: 0 };
        // Sequences of the same lengths do the same work.
        let mut groups: BTreeMap<(usize, usize), u64> = BTreeMap::new();
        for lengths in problem.lengths_q().into_iter().zip(key_lengths(problem)) {
            *groups.entry(lengths).or_default() += 1;
        }
        for ((len_q, len_kv), sequences) in groups {
            let one = of_sequence(problem, len_q, len_kv);
            work.pairs += sequences * one.pairs;
            work.pairs_all_heads += sequences * one.pairs_all_heads;
            work.flops += sequences * one.flops;
            work.read_bytes += sequences * one.read_bytes;
            work.write_bytes += sequences * one.write_bytes;
        }
        work.read_bytes += shared_bytes(problem);
        work
    }

    /// Bytes read and written.
    pub fn bytes(&self) -> u64 {
        self.read_bytes + self.write_bytes
    }

    /// FLOPs a byte: what the roofline is entered with.
    pub fn intensity_flop_per_byte(&self) -> f64 {
        self.flops as f64 / self.bytes() as f64
    }

    /// The rate of a call that took this long, in 1e9 FLOPs a second.
    pub fn gflop_per_s(&self, latency_ns: f64) -> f64 {
        self.flops as f64 / latency_ns
    }

    /// The rate of a call that took this long, in 1e12 FLOPs a second.
    pub fn tflop_per_s(&self, latency_ns: f64) -> f64 {
        self.gflop_per_s(latency_ns) / 1e3
    }

    /// The traffic of a call that took this long, in 1e9 bytes a second.
    pub fn gb_per_s(&self, latency_ns: f64) -> f64 {
        self.bytes() as f64 / latency_ns
    }
}

/// What the sequences of a batch share: read once a call.
fn shared_bytes(problem: &AttentionProblem) -> u64 {
    let projections = match problem.mechanism {
        Mechanism::Linformer { rank } => {
            2 * F32_BYTES * (rank * problem.lengths_kv().into_iter().max().unwrap_or(0)) as u64
        }
        _ => 0,
    };
    let sinks = if problem.sinks { F32_BYTES * problem.heads_q as u64 } else { 0 };
    let bias_element_bytes = match problem.bias {
        Bias::None | Bias::Alibi => return projections + sinks,
        Bias::Bool => 1,
        Bias::Additive => problem.dtype.bytes() as u64,
    };
    // One bias of (longest_q, longest_kv) serves all sequences and heads. Of a ragged batch, the needs of the sequence that
    // needs most are counted, and of differing heads the first's: a lower bound there, exact elsewhere.
    let lengths = problem.lengths_q().into_iter().zip(problem.lengths_kv());
    let needed = lengths.map(|(len_q, len_kv)| Visibility::new(problem, len_q, len_kv).pairs(0)).max().unwrap_or(0);
    projections + sinks + bias_element_bytes * needed
}

/// Bytes and rows of one sequence, from which each mechanism picks what it moves.
struct Rows {
    /// Queries that see a key, summed over query heads.
    live_q: u64,
    /// Keys that are seen, summed over KV heads.
    live_kv: u64,
    /// Queries, times query heads.
    all_q: u64,
    /// Keys, times KV heads.
    all_kv: u64,
}

impl Rows {
    fn new(problem: &AttentionProblem, visibility: &Visibility) -> Rows {
        let (heads_q, heads_kv, group) = (problem.heads_q, problem.heads_kv, problem.group_size());
        let (live_q, live_kv) = if visibility.heads_differ() {
            (
                (0..heads_q).map(|head| visibility.visible_queries(head)).sum(),
                (0..heads_kv).map(|head| visibility.visible_keys(head * group..(head + 1) * group)).sum(),
            )
        } else {
            (heads_q as u64 * visibility.visible_queries(0), heads_kv as u64 * visibility.visible_keys(0..1))
        };
        Rows {
            live_q,
            live_kv,
            all_q: (heads_q * visibility.len_q) as u64,
            all_kv: (heads_kv * visibility.len_kv) as u64,
        }
    }
}

fn of_sequence(problem: &AttentionProblem, len_q: usize, len_kv: usize) -> Work {
    let visibility = Visibility::new(problem, len_q, len_kv);
    let (dim_qk, dim_v) = (problem.head_dim_qk as u64, problem.head_dim_v as u64);
    let (element, element_kv) = (problem.dtype.bytes() as u64, problem.dtype_kv.bytes() as u64);
    let rows = match problem.mechanism {
        // Every key is mixed into every projected key, and a state's tokens all come after it.
        _ if problem.is_recurrent() => Rows {
            live_q: (problem.heads_q * len_q) as u64,
            live_kv: (problem.heads_kv * len_kv) as u64,
            all_q: (problem.heads_q * len_q) as u64,
            all_kv: (problem.heads_kv * len_kv) as u64,
        },
        _ => Rows::new(problem, &visibility),
    };
    let mut work = Work {
        pairs: 0,
        pairs_all_heads: 0,
        flops: 0,
        read_bytes: rows.live_q * dim_qk * element + rows.live_kv * (dim_qk + dim_v) * element_kv,
        write_bytes: rows.all_q * dim_v * element,
    };
    match problem.mechanism {
        Mechanism::Linear { normalised, .. } => {
            work.flops = 2 * dim_qk * dim_v * (rows.live_kv + rows.live_q);
            if problem.is_recurrent() {
                let normaliser = if normalised { dim_qk } else { 0 };
                let state_bytes = F32_BYTES * problem.heads_kv as u64 * (dim_qk * dim_v + normaliser);
                work.read_bytes += state_bytes;
                work.write_bytes += state_bytes;
            }
        }
        Mechanism::Linformer { rank } => {
            work.flops = 2 * rank as u64 * (dim_qk + dim_v) * (rows.live_kv + rows.live_q);
        }
        Mechanism::Softmax | Mechanism::Mla { .. } => {
            work.pairs = visibility.pairs(0);
            work.pairs_all_heads = if visibility.heads_differ() {
                (0..problem.heads_q).map(|head| visibility.pairs(head)).sum()
            } else {
                problem.heads_q as u64 * work.pairs
            };
            work.flops = 2 * work.pairs_all_heads * (dim_qk + dim_v);
            if problem.is_absorbed_mla() {
                // V is the head of each latent row.
                work.read_bytes -= rows.live_kv * dim_v * element_kv;
            }
            work.read_bytes += page_table_bytes(problem, &visibility);
        }
    }
    if problem.phase == Phase::Backward {
        work.flops = 2 * work.pairs_all_heads * (3 * dim_qk + 2 * dim_v);
        // O, dO and LSE are read besides Q, K and V; dQ, dK and dV are written instead of O.
        work.read_bytes += rows.live_q * (2 * dim_v * element + F32_BYTES);
        work.write_bytes = rows.all_q * dim_qk * element + rows.all_kv * (dim_qk + dim_v) * element;
    }
    work
}

/// One entry for each page that holds a key which some head needs.
fn page_table_bytes(problem: &AttentionProblem, visibility: &Visibility) -> u64 {
    let KvLayout::Paged { page_size } = problem.kv_layout else { return 0 };
    let (mut pages, mut next) = (0, 0);
    for keys in visibility.visible_key_ranges(0..problem.heads_q) {
        let first = next.max(keys.start / page_size);
        next = keys.end.div_ceil(page_size);
        pages += next.saturating_sub(first) as u64;
    }
    F32_BYTES * pages
}

/// What a layer keeps of a sequence between calls of decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KvCache {
    /// Bytes a token that is kept.
    pub token_bytes: u64,
    /// Tokens that are kept at most, where the pattern never looks further back; None where all are.
    pub max_tokens: Option<u64>,
    /// Bytes that do not grow with the context.
    pub state_bytes: u64,
}

impl KvCache {
    /// The cache of one layer and one sequence of this problem.
    pub fn of(problem: &AttentionProblem) -> KvCache {
        let (dim_qk, dim_v, heads_kv) =
            (problem.head_dim_qk as u64, problem.head_dim_v as u64, problem.heads_kv as u64);
        let element = problem.dtype_kv.bytes() as u64;
        let head_bytes = heads_kv * (dim_qk + dim_v) * element;
        let state = |state_bytes| KvCache { token_bytes: 0, max_tokens: None, state_bytes };
        match problem.mechanism {
            Mechanism::Linear { normalised, .. } => {
                let normaliser = if normalised { dim_qk } else { 0 };
                state(F32_BYTES * heads_kv * (dim_qk * dim_v + normaliser))
            }
            Mechanism::Linformer { rank } => state(rank as u64 * head_bytes),
            Mechanism::Mla { latent, rope, .. } => {
                KvCache { token_bytes: (latent + rope) as u64 * element, max_tokens: None, state_bytes: 0 }
            }
            Mechanism::Softmax => {
                KvCache { token_bytes: head_bytes, max_tokens: tokens_in_reach(problem.pattern), state_bytes: 0 }
            }
        }
    }

    /// Bytes after `context` tokens.
    pub fn bytes_at(&self, context: u64) -> u64 {
        self.state_bytes + self.token_bytes * self.max_tokens.map_or(context, |most| most.min(context))
    }
}

/// The most tokens that a pattern needs to keep for rows to come, itself included; None where that grows without bound.
fn tokens_in_reach(pattern: Pattern) -> Option<u64> {
    match pattern {
        Pattern::Window { left, .. } => (left != usize::MAX).then_some(left as u64 + 1),
        Pattern::Dilated { window, step } => Some((window * step) as u64 + 1),
        Pattern::Longformer { window, global, dilation } => Some((global + window * dilation) as u64 + 1),
        Pattern::Full | Pattern::Bigbird { .. } | Pattern::Strided { .. } | Pattern::Fixed { .. } => None,
    }
}
