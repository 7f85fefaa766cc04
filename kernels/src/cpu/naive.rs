//! Attention as its definition has it (Vaswani et al. 2017, equation 1): S = Q K^T, P = softmax(S), O = P V, each a whole
//! pass, with all B x H x Sq x Sk scores in f32 in memory. The baseline of the field: it needs quadratic memory, which the
//! plan asks for (so that `out of memory` is a result), it computes hidden pairs too, and it takes every pattern, bias and
//! mask, which makes it the dense comparison of the sparse kernels.
//!
//! The products are blocked: [`super::simd::gemm`] on packed blocks of [`BLOCK_KEYS`] keys and tiles of [`TILE_ROWS`]
//! queries. A pattern whose visible keys are no range is materialised by the plan as a boolean mask (Sq x Sk, a head where
//! heads differ), as frameworks do.
//!
//! Limit: for long sequences the bandwidth of the scores, which are written twice and read three times.

use std::ops::Range;

use rayon::prelude::*;

use super::call::Call;
use super::online::{TileState, absorb_scores, finish};
use super::packed_kv::BlockPacker;
use super::rows::{Row, key_ranges};
use super::schedule::for_each_task;
use super::score::alibi_slopes;
use super::simd::Isa;
use super::simd::gemm::{Strided, gemm};
use super::simd::pack::widen_row;
use crate::kernel::{Kernel, KernelError, Plan, PlanContext};
use crate::pattern::Visibility;
use crate::problem::{AttentionProblem, KvLayout, Mechanism, Pattern, Phase};
use crate::shared_mut::SharedMut;
use crate::tensor::{ElementType, Rows, Tensor, TensorSet};

/// Queries a tile.
const TILE_ROWS: usize = 48;
/// Keys a block.
const BLOCK_KEYS: usize = 128;

/// The kernel; `isa` is the widest of the machine unless given.
pub struct Naive {
    /// Instruction set to use.
    pub isa: Option<Isa>,
}

impl Kernel for Naive {
    fn name(&self) -> &'static str {
        "naive"
    }

    fn summary(&self) -> &'static str {
        "The definition (Vaswani et al. 2017): materialises all scores; every pattern, bias and mask"
    }

    fn supports(&self, problem: &AttentionProblem) -> Result<(), KernelError> {
        let refuse = |text: &str| Err(KernelError::Unsupported(text.into()));
        match problem.mechanism {
            Mechanism::Softmax => {}
            Mechanism::Mla { .. } if problem.phase == Phase::Prefill => {}
            Mechanism::Mla { .. } => return refuse("naive computes MLA's prefill, not its absorbed decode (mla does)"),
            _ => return refuse("naive computes softmax attention and MLA's prefill only"),
        }
        if problem.phase == Phase::Backward {
            return refuse("naive computes prefill, decode and append, not backward");
        }
        if problem.kv_layout != KvLayout::Contiguous {
            return refuse("naive reads contiguous keys and values, not pages (paged does)");
        }
        Ok(())
    }

    fn plan(&self, context: &PlanContext<'_>) -> Result<Box<dyn Plan>, KernelError> {
        self.supports(context.problem)?;
        Ok(Box::new(NaivePlan::new(self.isa.unwrap_or_else(Isa::best), context)?))
    }
}

struct Sequence {
    len_q: usize,
    len_kv: usize,
    /// Keys rounded up to whole vectors: the row stride of the scores.
    width: usize,
    offset: i64,
    /// Where its scores (heads_q, len_q, width) begin.
    scores: usize,
    /// Where its packed blocks (heads_kv, blocks) begin.
    packed: usize,
    key_ranges: Vec<Range<usize>>,
    /// (heads that differ, len_q, len_kv): 1 = visible; none where `key_ranges` say it all.
    mask: Option<Tensor>,
}

/// Query rows of one head.
struct Tile {
    sequence: usize,
    head: usize,
    queries: Range<usize>,
}

struct Layout {
    problem: AttentionProblem,
    packer: BlockPacker,
    sequences: Vec<Sequence>,
    /// (sequence, KV head, block).
    packs: Vec<(usize, usize, usize)>,
    tiles: Vec<Tile>,
    slopes: Vec<f32>,
    rows_q: Rows,
    rows_k: Rows,
    rows_v: Rows,
    rows_o: Rows,
}

struct Scratch {
    offsets: Vec<usize>,
    queries: Tensor,
    out: Tensor,
}

struct NaivePlan {
    layout: Layout,
    scores: Tensor,
    sums: Tensor,
    packed: Tensor,
    scratches: Vec<Scratch>,
}

impl NaivePlan {
    fn new(isa: Isa, context: &PlanContext<'_>) -> Result<NaivePlan, KernelError> {
        let problem = context.problem;
        let (dim_qk, dim_v) = (problem.head_dim_qk, problem.head_dim_v);
        let packer = BlockPacker { isa, block: BLOCK_KEYS, dim_qk, dim_v };
        let lengths: Vec<_> = problem.lengths_q().into_iter().zip(problem.lengths_kv()).collect();
        let is_range = matches!(problem.pattern, Pattern::Full | Pattern::Window { .. });
        let mask_heads = |visibility: &Visibility| match (is_range, visibility.heads_differ()) {
            (true, _) => 0,
            (false, true) => problem.heads_q,
            (false, false) => 1,
        };
        // Sizes first, in u64: the answer may be that nothing of this fits.
        let threads = context.threads.max(1);
        let (mut score_elements, mut packed_elements, mut mask_bytes) = (0u64, 0u64, 0u64);
        for &(len_q, len_kv) in &lengths {
            let heads = mask_heads(&Visibility::new(problem, len_q, len_kv)) as u64;
            score_elements += (problem.heads_q * len_q) as u64 * (isa.pad(len_kv) + 2) as u64;
            packed_elements += (problem.heads_kv * len_kv.div_ceil(BLOCK_KEYS)) as u64 * packer.block_elements() as u64;
            mask_bytes += heads * len_q as u64 * len_kv as u64;
        }
        let scratch_elements = TILE_ROWS * (dim_qk + isa.pad(dim_v));
        context.check_workspace(
            4 * (score_elements + packed_elements + (threads * scratch_elements) as u64) + mask_bytes,
        )?;
        let mut layout = Layout {
            problem: problem.clone(),
            packer,
            sequences: Vec::new(),
            packs: Vec::new(),
            tiles: Vec::new(),
            slopes: alibi_slopes(problem),
            rows_q: Rows::of_queries(problem, dim_qk),
            rows_k: Rows::of_keys(problem, dim_qk, None),
            rows_v: Rows::of_keys(problem, dim_v, None),
            rows_o: Rows::of_queries(problem, dim_v),
        };
        let (mut scores, mut packed) = (0, 0);
        for (sequence, &(len_q, len_kv)) in lengths.iter().enumerate() {
            let visibility = Visibility::new(problem, len_q, len_kv);
            let width = isa.pad(len_kv);
            let heads = mask_heads(&visibility);
            layout.sequences.push(Sequence {
                len_q,
                len_kv,
                width,
                offset: visibility.query_offset,
                scores,
                packed,
                key_ranges: if is_range { key_ranges(&visibility) } else { vec![0..len_kv; len_q] },
                mask: (heads > 0).then(|| materialise(&visibility, heads)),
            });
            let blocks = len_kv.div_ceil(BLOCK_KEYS);
            scores += problem.heads_q * len_q * width;
            packed += problem.heads_kv * blocks * packer.block_elements();
            for head in 0..problem.heads_kv {
                layout.packs.extend((0..blocks).map(|block| (sequence, head, block)));
            }
            for head in 0..problem.heads_q {
                let firsts = (0..len_q).step_by(TILE_ROWS);
                layout.tiles.extend(firsts.map(|first| Tile {
                    sequence,
                    head,
                    queries: first..(first + TILE_ROWS).min(len_q),
                }));
            }
        }
        let scratch = || Scratch {
            offsets: vec![0; BLOCK_KEYS],
            queries: Tensor::f32s(TILE_ROWS * dim_qk),
            out: Tensor::f32s(TILE_ROWS * isa.pad(dim_v)),
        };
        Ok(NaivePlan {
            scores: Tensor::f32s(scores),
            sums: Tensor::f32s(2 * layout.tiles.len() * TILE_ROWS),
            packed: Tensor::f32s(packed),
            scratches: (0..threads).map(|_| scratch()).collect(),
            layout,
        })
    }
}

/// The pairs of a sequence that a pattern shows, one byte each.
fn materialise(visibility: &Visibility, heads: usize) -> Tensor {
    let (len_q, len_kv) = (visibility.len_q, visibility.len_kv);
    let mut mask = Tensor::zeros(ElementType::Bool, &[heads, len_q, len_kv]);
    mask.as_mut_slice::<u8>().par_chunks_mut(len_kv.max(1)).enumerate().for_each(|(row, out)| {
        for (key, seen) in out.iter_mut().enumerate() {
            *seen = u8::from(visibility.sees(row / len_q, row % len_q, key));
        }
    });
    mask
}

impl Layout {
    fn place(&self, sequence: usize, head: usize, block: usize) -> Range<usize> {
        let sequence = &self.sequences[sequence];
        let (elements, blocks) = (self.packer.block_elements(), sequence.len_kv.div_ceil(BLOCK_KEYS));
        let start = sequence.packed + (head * blocks + block) * elements;
        start..start + elements
    }

    fn extent(&self, sequence: usize, block: usize) -> (usize, usize) {
        let first = block * BLOCK_KEYS;
        (first, BLOCK_KEYS.min(self.sequences[sequence].len_kv - first))
    }

    fn pack(&self, task: usize, call: &Call<'_>, offsets: &mut [usize], packed: &SharedMut<f32>) {
        let (sequence, head, block) = self.packs[task];
        // SAFETY: each (sequence, KV head, block) has its own place.
        let out = unsafe { packed.slice(self.place(sequence, head, block).start, self.packer.block_elements()) };
        let (k, v) = ((call.k, &self.rows_k), (call.v, &self.rows_v));
        let (first, len) = self.extent(sequence, block);
        self.packer.pack(k, v, (sequence, head), len, |index| first + index, offsets, out);
    }

    /// Where the scores of a tile are.
    fn scores(&self, tile: &Tile) -> Range<usize> {
        let sequence = &self.sequences[tile.sequence];
        let row = |query| sequence.scores + (tile.head * sequence.len_q + query) * sequence.width;
        row(tile.queries.start)..row(tile.queries.end)
    }

    /// S = Q K^T of one tile.
    fn multiply_keys(&self, tile: &Tile, call: &Call<'_>, packed: &[f32], scores: &mut [f32], queries: &mut [f32]) {
        let (isa, dim) = (self.packer.isa, self.packer.dim_qk);
        let sequence = &self.sequences[tile.sequence];
        for (query, out) in tile.queries.clone().zip(queries.chunks_mut(dim)) {
            widen_row(isa, call.q, self.rows_q.offset(tile.sequence, tile.head, query), dim, call.scale, out);
        }
        for block in 0..sequence.len_kv.div_ceil(BLOCK_KEYS) {
            let (first, len) = self.extent(tile.sequence, block);
            let place = self.place(tile.sequence, tile.head / self.problem.group_size(), block);
            let keys = self.packer.view(&packed[place], first, len).keys;
            let product = (tile.queries.len(), isa.pad(len), dim);
            let queries = Strided::rows(queries, dim);
            gemm(isa, product, queries, keys, &mut scores[first..], sequence.width, false);
        }
    }

    /// P = exp(S - m), unnormalised, with m and the sum of each row.
    fn weigh(&self, tile: &Tile, call: &Call<'_>, scores: &mut [f32], max: &mut [f32], sum: &mut [f32]) {
        let sequence = &self.sequences[tile.sequence];
        for (index, query) in tile.queries.clone().enumerate() {
            let row = Row {
                head: tile.head,
                query,
                position: query as i64 + sequence.offset,
                keys: sequence.key_ranges[query].clone(),
            };
            let scores = &mut scores[index * sequence.width..(index + 1) * sequence.width];
            (max[index], sum[index]) = (f32::NEG_INFINITY, 0.0);
            if let Some(mask) = &sequence.mask {
                let head = if mask.dims()[0] == 1 { 0 } else { tile.head };
                let seen = &mask.as_slice::<u8>()[(head * sequence.len_q + query) * sequence.len_kv..];
                for (score, &seen) in scores[..sequence.len_kv].iter_mut().zip(seen) {
                    *score = if seen == 0 { f32::NEG_INFINITY } else { *score };
                }
            }
            let (max, sum) = (&mut max[index..=index], &mut sum[index..=index]);
            let mut state = TileState { max, sum, out: &mut [], scores };
            let row = std::slice::from_ref(&row);
            absorb_scores(self.packer.isa, &call.rules, tile.sequence, row, 0, sequence.width, 0, &mut state);
        }
    }

    /// O = P V of one tile.
    fn multiply_values(
        &self,
        tile: &Tile,
        call: &Call<'_>,
        packed: &[f32],
        weights: &[f32],
        (max, sum): (&[f32], &[f32]),
        out: &mut [f32],
    ) {
        let (isa, dim) = (self.packer.isa, self.packer.isa.pad(self.packer.dim_v));
        let sequence = &self.sequences[tile.sequence];
        let out = &mut out[..tile.queries.len() * dim];
        out.fill(0.0);
        for block in 0..sequence.len_kv.div_ceil(BLOCK_KEYS) {
            let (first, len) = self.extent(tile.sequence, block);
            let place = self.place(tile.sequence, tile.head / self.problem.group_size(), block);
            let values = self.packer.view(&packed[place], first, len).values;
            let product = (tile.queries.len(), dim, len);
            let weights = Strided::rows(&weights[first..], sequence.width);
            gemm(isa, product, weights, values, out, dim, true);
        }
        for (index, query) in tile.queries.clone().enumerate() {
            let sink = call.sinks.map(|sinks| sinks[tile.head]);
            let (factor, lse) = finish(max[index], sum[index], sink);
            // SAFETY: each (sequence, head, query) belongs to one tile.
            unsafe {
                let row = &out[index * dim..][..self.problem.head_dim_v];
                call.o.write(self.rows_o.offset(tile.sequence, tile.head, query), row, factor);
                if let Some(out) = &call.lse {
                    out.write(tile.sequence, tile.head, query, lse);
                }
            }
        }
    }
}

impl Plan for NaivePlan {
    fn run(&mut self, inputs: &TensorSet, outputs: &mut TensorSet) {
        let NaivePlan { layout, scores, sums, packed, scratches } = self;
        let call = Call::new(&layout.problem, &layout.slopes, inputs, outputs);
        let blocks = SharedMut::new(packed.as_mut_slice::<f32>());
        for_each_task(layout.packs.len(), scratches, |scratch, task| {
            layout.pack(task, &call, &mut scratch.offsets, &blocks);
        });
        let packed = packed.as_slice::<f32>();
        let scores = SharedMut::new(scores.as_mut_slice::<f32>());
        let sums = SharedMut::new(sums.as_mut_slice::<f32>());
        // SAFETY: each tile has its own scores and sums, and a pass takes each tile once.
        let tile_scores = |tile: &Tile| unsafe {
            let place = layout.scores(tile);
            scores.slice(place.start, place.len())
        };
        // SAFETY: as above.
        let tile_sums =
            |task: usize| unsafe { sums.slice(2 * task * TILE_ROWS, 2 * TILE_ROWS) }.split_at_mut(TILE_ROWS);
        for_each_task(layout.tiles.len(), scratches, |scratch, task| {
            let tile = &layout.tiles[task];
            layout.multiply_keys(tile, &call, packed, tile_scores(tile), scratch.queries.as_mut_slice());
        });
        for_each_task(layout.tiles.len(), scratches, |_, task| {
            let tile = &layout.tiles[task];
            let (max, sum) = tile_sums(task);
            layout.weigh(tile, &call, tile_scores(tile), max, sum);
        });
        for_each_task(layout.tiles.len(), scratches, |scratch, task| {
            let tile = &layout.tiles[task];
            let (max, sum) = tile_sums(task);
            let out = scratch.out.as_mut_slice();
            layout.multiply_values(tile, &call, packed, tile_scores(tile), (max, sum), out);
        });
    }
}
