//! Linformer (Wang et al. 2020, section 4): softmax(Q (E^T K)^T) (F^T V) with E and F of shape (seqlen_kv, rank).
//!
//! Projection: K'^T = K^T E and V' = F^T V are products over the length, cut into segments of whole 64-token tiles over
//! the threads where the heads are too few, whose partial sums are then added. E and F are read in place. Attention: for
//! each tile of queries the scores against all rank keys stay in cache, so the softmax is exact in two sweeps and needs
//! no rescaling; query heads of a group share K' and V'.
//!
//! Tiles: 64 tokens by (d, rank) in the projection; (up to 64 queries, rank) scores of at most 128 KiB in attention. It
//! aims at the FMA rate: 2 rank (d_qk + d_v) (n_q + n_kv) FLOPs a head.

use super::access::{Sink, Source};
use super::schedule::for_each_task;
use super::tile::{self, exp_rows, matmul};
use crate::input::SharedMut;
use crate::kernel::{Kernel, KernelError, Plan, PlanContext};
use crate::problem::{AttentionProblem, Bias, KvLayout, Mechanism, Pattern, Phase};
use crate::tensor::{Rows, TensorName, TensorSet};

/// Tokens a projection step.
const TOKEN_TILE: usize = 64;
/// Elements of a tile of scores.
const SCORES: usize = 32 * 1024;
/// Queries a tile, at most.
const MAX_QUERIES: usize = 64;

/// Linformer: project K and V to `rank` rows, then attend.
pub struct Linformer;

impl Kernel for Linformer {
    fn name(&self) -> &'static str {
        "linformer"
    }

    fn summary(&self) -> &'static str {
        "low-rank attention: K and V projected to a fixed number of rows (Wang et al. 2020)"
    }

    fn supports(&self, problem: &AttentionProblem) -> Result<(), KernelError> {
        let unsupported = |text: String| Err(KernelError::Unsupported(text));
        if !matches!(problem.mechanism, Mechanism::Linformer { .. }) {
            return unsupported(format!("mechanism {}: linformer computes linformer only", problem.mechanism.name()));
        }
        if problem.phase != Phase::Prefill {
            return unsupported(format!("phase {}: linformer has prefill only", problem.phase.name()));
        }
        if problem.pattern != Pattern::Full || problem.causal {
            return unsupported(
                "a causal or sparse pattern: linformer mixes all keys, so only full has a meaning".into(),
            );
        }
        if problem.kv_layout != KvLayout::Contiguous {
            return unsupported("a paged KV layout: linformer reads contiguous keys and values".into());
        }
        if problem.bias != Bias::None || problem.sinks {
            return unsupported("a bias or sinks: linformer's scores are against projected keys, not tokens".into());
        }
        Ok(())
    }

    fn plan(&self, context: &PlanContext<'_>) -> Result<Box<dyn Plan>, KernelError> {
        self.supports(context.problem)?;
        Ok(Box::new(LinformerPlan::new(context)?))
    }
}

/// Tokens of one KV head that one item projects.
struct Segment {
    sequence: usize,
    head: usize,
    first: usize,
    last: usize,
}

/// Queries of one head that one item attends.
struct QueryTile {
    sequence: usize,
    head: usize,
    first: usize,
    count: usize,
}

struct LinformerPlan {
    rank: usize,
    scale: f32,
    softcap: Option<f32>,
    group: usize,
    heads_kv: usize,
    queries: Rows,
    keys: Rows,
    values: Rows,
    outputs: Rows,
    segments: Vec<Segment>,
    /// Range of `segments` a (sequence, KV head).
    heads: Vec<std::ops::Range<usize>>,
    query_tiles: Vec<QueryTile>,
    /// Per segment K'^T (d_qk, rank) and V' (rank, d_v); after the reduction a head's first segment holds the sum.
    projected: Vec<f32>,
    scratches: Vec<Scratch>,
}

struct Scratch {
    /// (64, max(d_qk, d_v)): keys, values or queries.
    rows: Vec<f32>,
    /// (queries a tile, rank).
    scores: Vec<f32>,
    /// (64, d_v).
    output: Vec<f32>,
}

impl LinformerPlan {
    fn new(context: &PlanContext<'_>) -> Result<Self, KernelError> {
        let problem = context.problem;
        let Mechanism::Linformer { rank } = problem.mechanism else {
            unreachable!("supports() refuses other mechanisms")
        };
        let (dk, dv) = (problem.head_dim_qk, problem.head_dim_v);
        let queries = Rows::of_queries(problem, dk);
        let keys = Rows::of_keys(problem, dk, None);
        let head_count = problem.batch * problem.heads_kv;
        let cuts = if head_count.is_multiple_of(context.threads) || head_count >= 4 * context.threads {
            1
        } else {
            (2 * context.threads).div_ceil(head_count)
        };
        let mut segments = Vec::new();
        let mut heads = Vec::with_capacity(head_count);
        for (sequence, &length) in keys.lengths.iter().enumerate() {
            let tiles = length.div_ceil(TOKEN_TILE).max(1);
            let cuts = cuts.min(tiles);
            for head in 0..problem.heads_kv {
                let start = segments.len();
                segments.extend((0..cuts).map(|cut| Segment {
                    sequence,
                    head,
                    first: (tiles * cut / cuts * TOKEN_TILE).min(length),
                    last: (tiles * (cut + 1) / cuts * TOKEN_TILE).min(length),
                }));
                heads.push(start..segments.len());
            }
        }
        let tile = (SCORES / rank.max(1)).clamp(8, MAX_QUERIES);
        let mut query_tiles = Vec::new();
        for (sequence, &length) in queries.lengths.iter().enumerate() {
            for head in 0..problem.heads_q {
                query_tiles.extend((0..length).step_by(tile).map(|first| QueryTile {
                    sequence,
                    head,
                    first,
                    count: tile.min(length - first),
                }));
            }
        }
        let size = rank * (dk + dv);
        let scratch = TOKEN_TILE * (dk.max(dv) + dv) + tile * rank;
        context.check_workspace(4 * (segments.len() as u64 * size as u64 + (context.threads * scratch) as u64))?;
        Ok(LinformerPlan {
            rank,
            scale: problem.effective_scale() as f32,
            softcap: problem.softcap.map(|cap| cap as f32),
            group: problem.group_size(),
            heads_kv: problem.heads_kv,
            keys,
            values: Rows::of_keys(problem, dv, None),
            outputs: Rows::of_queries(problem, dv),
            projected: vec![0.0; segments.len() * size],
            segments,
            heads,
            query_tiles,
            queries,
            scratches: (0..context.threads)
                .map(|_| Scratch {
                    rows: vec![0.0; TOKEN_TILE * dk.max(dv)],
                    scores: vec![0.0; tile * rank],
                    output: vec![0.0; TOKEN_TILE * dv],
                })
                .collect(),
        })
    }
}

impl Plan for LinformerPlan {
    fn run(&mut self, inputs: &TensorSet, outputs: &mut TensorSet) {
        let LinformerPlan { rank, scale, softcap, group, heads_kv, .. } = *self;
        let (queries, keys, values, rows_o) = (&self.queries, &self.keys, &self.values, &self.outputs);
        let (segments, heads, query_tiles) = (&self.segments, &self.heads, &self.query_tiles);
        let (dk, dv) = (keys.dim, values.dim);
        let size = rank * (dk + dv);
        let [q, k, v] = [TensorName::Q, TensorName::K, TensorName::V].map(|name| Source::new(inputs.get(name)));
        let e = inputs.get(TensorName::ProjectionK).as_slice::<f32>();
        let f = inputs.get(TensorName::ProjectionV).as_slice::<f32>();
        let o = Sink::new(outputs, TensorName::O);
        let lse = Sink::find(outputs, TensorName::Lse);
        let longest_q = queries.lengths.iter().copied().max().unwrap_or(0);
        let heads_q = queries.heads;

        let projected = SharedMut::new(&mut self.projected);
        for_each_task(segments.len(), &mut self.scratches, |scratch, index| {
            let segment = &segments[index];
            // SAFETY: a segment's part belongs to one item.
            let sums = unsafe { projected.slice(index * size, size) };
            sums.fill(0.0);
            let (keys_sum, values_sum) = sums.split_at_mut(dk * rank);
            let row = (segment.sequence, segment.head);
            for first in (segment.first..segment.last).step_by(TOKEN_TILE) {
                let count = TOKEN_TILE.min(segment.last - first);
                k.read_tile(keys, row, count, |index| first + index, &mut scratch.rows);
                let shape = (dk, rank, count);
                matmul(shape, &scratch.rows, (1, dk), &e[first * rank..], rank, keys_sum, rank, true);
                v.read_tile(values, row, count, |index| first + index, &mut scratch.rows);
                let shape = (rank, dv, count);
                matmul(shape, &f[first * rank..], (1, rank), &scratch.rows, dv, values_sum, dv, true);
            }
        });
        for_each_task(heads.len(), &mut self.scratches, |_, head| {
            let range = heads[head].clone();
            for segment in range.start + 1..range.end {
                // SAFETY: a head's segments belong to one item, and these two are different ones.
                let (sum, part) =
                    unsafe { (projected.slice(range.start * size, size), projected.slice(segment * size, size)) };
                sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += *part);
            }
        });

        let projected = &self.projected;
        for_each_task(query_tiles.len(), &mut self.scratches, |scratch, index| {
            let QueryTile { sequence, head, first, count } = query_tiles[index];
            let Scratch { rows, scores, output } = scratch;
            let segment = heads[sequence * heads_kv + head / group].start;
            let (keys_projected, values_projected) = projected[segment * size..][..size].split_at(dk * rank);
            q.read_tile(queries, (sequence, head), count, |index| first + index, rows);
            rows[..count * dk].iter_mut().for_each(|x| *x *= scale);
            matmul((count, rank, dk), rows, (dk, 1), keys_projected, rank, scores, rank, false);
            for (row, scores) in scores.chunks_exact_mut(rank).take(count).enumerate() {
                if let Some(cap) = softcap {
                    tile::softcap(scores, cap);
                }
                let max = tile::max(scores);
                let sum = exp_rows(scores, max);
                let factor = 1.0 / sum;
                scores.iter_mut().for_each(|x| *x *= factor);
                if let Some(lse) = &lse {
                    let offset = (sequence * heads_q + head) * longest_q + first + row;
                    // SAFETY: this row belongs to this tile alone.
                    unsafe { lse.write(offset, &[max + sum.ln()]) };
                }
            }
            matmul((count, dv, rank), scores, (rank, 1), values_projected, dv, output, dv, false);
            for (row, output) in output.chunks_exact(dv).take(count).enumerate() {
                // SAFETY: as above.
                unsafe { o.write(rows_o.offset(sequence, head, first + row), output) };
            }
        });
    }
}
