//! FlashAttention, forward (Dao, Fu, Ermon, Rudra and Ré 2022, algorithm 1): key blocks outside, query tiles inside. For
//! every pair of blocks, Q, O, l and m of the tile are read from memory, O is rescaled so that it stays normalised
//! (line 12), and O, l and m are written back: that traffic is what FlashAttention-2 removes. Parallel over
//! (sequence, head) only, as the original.
//!
//! Blocks are of [`BLOCK_KEYS`] keys, packed when the outer loop reaches them, and [`TILE_ROWS`] queries. Tiles that see
//! nothing of a block are skipped.
//!
//! Limit: the FMA rate where a head's O (Sq x d_v in f32) stays in the caches; idle threads where there are fewer heads than
//! threads.

use std::ops::Range;

use super::call::Call;
use super::online::{TileShape, TileState, absorb, finish, local, scale_in_place};
use super::packed_kv::BlockPacker;
use super::rows::{Row, key_ranges};
use super::schedule::for_each_task;
use super::score::alibi_slopes;
use super::simd::Isa;
use super::simd::pack::widen_row;
use crate::kernel::{Kernel, KernelError, Plan, PlanContext};
use crate::pattern::Visibility;
use crate::problem::{AttentionProblem, Bias, KvLayout, Mechanism, Pattern, Phase};
use crate::tensor::{Rows, Tensor, TensorSet};

/// Queries a tile (Br of the paper).
const TILE_ROWS: usize = 96;
/// Keys a block (Bc of the paper).
const BLOCK_KEYS: usize = 128;

/// The kernel; `isa` is the widest of the machine unless given.
pub struct Flash1 {
    /// Instruction set to use.
    pub isa: Option<Isa>,
}

impl Kernel for Flash1 {
    fn name(&self) -> &'static str {
        "flash1"
    }

    fn summary(&self) -> &'static str {
        "FlashAttention (Dao et al. 2022): key blocks outside, O rescaled in memory"
    }

    fn supports(&self, problem: &AttentionProblem) -> Result<(), KernelError> {
        let refuse = |text: String| Err(KernelError::Unsupported(text));
        if problem.mechanism != Mechanism::Softmax {
            return refuse(format!("flash1 computes softmax attention, not {}", problem.mechanism.name()));
        }
        if problem.phase == Phase::Backward {
            return refuse("flash1 computes prefill, decode and append, not backward".into());
        }
        if !matches!(problem.pattern, Pattern::Full | Pattern::Window { .. }) {
            return refuse(format!("flash1 computes the patterns full and window, not {}", problem.pattern.name()));
        }
        if problem.kv_layout != KvLayout::Contiguous {
            return refuse("flash1 reads contiguous keys and values, not pages (paged does)".into());
        }
        if !matches!(problem.bias, Bias::None | Bias::Alibi) {
            return refuse("flash1 takes no mask and no bias but alibi (naive and flash take every one)".into());
        }
        Ok(())
    }

    fn plan(&self, context: &PlanContext<'_>) -> Result<Box<dyn Plan>, KernelError> {
        self.supports(context.problem)?;
        Ok(Box::new(Flash1Plan::new(self.isa.unwrap_or_else(Isa::best), context)?))
    }
}

struct Sequence {
    len_kv: usize,
    offset: i64,
    key_ranges: Vec<Range<usize>>,
}

struct Layout {
    problem: AttentionProblem,
    shape: TileShape,
    packer: BlockPacker,
    sequences: Vec<Sequence>,
    slopes: Vec<f32>,
    rows_q: Rows,
    rows_k: Rows,
    rows_v: Rows,
    rows_o: Rows,
}

/// What one thread works in: the state of a whole head, one packed block, one tile.
struct Scratch {
    rows: Vec<Row>,
    offsets: Vec<usize>,
    packed: Tensor,
    queries: Tensor,
    scores: Tensor,
    max: Tensor,
    sum: Tensor,
    out: Tensor,
}

struct Flash1Plan {
    layout: Layout,
    scratches: Vec<Scratch>,
}

impl Flash1Plan {
    fn new(isa: Isa, context: &PlanContext<'_>) -> Result<Flash1Plan, KernelError> {
        let problem = context.problem;
        let (dim_qk, dim_v) = (problem.head_dim_qk, problem.head_dim_v);
        let packer = BlockPacker { isa, block: BLOCK_KEYS, dim_qk, dim_v };
        let shape = TileShape { isa, dim_qk, dim_v: isa.pad(dim_v) };
        let (lengths_q, lengths_kv) = (problem.lengths_q(), problem.lengths_kv());
        let longest = lengths_q.iter().copied().max().unwrap_or(0);
        let threads = context.threads.max(1);
        let scratch_elements =
            packer.block_elements() + TILE_ROWS * (dim_qk + BLOCK_KEYS) + longest * (2 + shape.dim_v);
        context.check_workspace(4 * (threads * scratch_elements) as u64)?;
        let scratch = || Scratch {
            rows: Vec::with_capacity(TILE_ROWS),
            offsets: vec![0; BLOCK_KEYS],
            packed: Tensor::f32s(packer.block_elements()),
            queries: Tensor::f32s(TILE_ROWS * dim_qk),
            scores: Tensor::f32s(TILE_ROWS * BLOCK_KEYS),
            max: Tensor::f32s(longest),
            sum: Tensor::f32s(longest),
            out: Tensor::f32s(longest * shape.dim_v),
        };
        let sequence = |(&len_q, &len_kv): (&usize, &usize)| {
            let visibility = Visibility::new(problem, len_q, len_kv);
            Sequence { len_kv, offset: visibility.query_offset, key_ranges: key_ranges(&visibility) }
        };
        let layout = Layout {
            problem: problem.clone(),
            shape,
            packer,
            sequences: lengths_q.iter().zip(&lengths_kv).map(sequence).collect(),
            slopes: alibi_slopes(problem),
            rows_q: Rows::of_queries(problem, dim_qk),
            rows_k: Rows::of_keys(problem, dim_qk, None),
            rows_v: Rows::of_keys(problem, dim_v, None),
            rows_o: Rows::of_queries(problem, dim_v),
        };
        Ok(Flash1Plan { layout, scratches: (0..threads).map(|_| scratch()).collect() })
    }
}

impl Layout {
    /// One head of one sequence.
    fn attend(&self, sequence_index: usize, head: usize, call: &Call<'_>, scratch: &mut Scratch) {
        let sequence = &self.sequences[sequence_index];
        let (len_q, shape) = (sequence.key_ranges.len(), self.shape);
        scratch.max.as_mut_slice::<f32>().fill(f32::NEG_INFINITY);
        scratch.sum.as_mut_slice::<f32>().fill(0.0);
        scratch.out.as_mut_slice::<f32>().fill(0.0);
        let seen = |queries: &Range<usize>| {
            let ranges = &sequence.key_ranges[queries.clone()];
            ranges[0].start..ranges[ranges.len() - 1].end
        };
        for first in (0..sequence.len_kv).step_by(BLOCK_KEYS) {
            let len = BLOCK_KEYS.min(sequence.len_kv - first);
            let mut is_packed = false;
            for start in (0..len_q).step_by(TILE_ROWS) {
                let queries = start..(start + TILE_ROWS).min(len_q);
                if local(&seen(&queries), first, len).is_empty() {
                    continue;
                }
                if !is_packed {
                    let (k, v) = ((call.k, &self.rows_k), (call.v, &self.rows_v));
                    let place = (sequence_index, head / self.problem.group_size());
                    let packed = scratch.packed.as_mut_slice();
                    self.packer.pack(k, v, place, len, |index| first + index, &mut scratch.offsets, packed);
                    is_packed = true;
                }
                self.visit(sequence_index, head, queries, (first, len), call, scratch);
            }
        }
        let (max, sum) = (scratch.max.as_slice::<f32>(), scratch.sum.as_slice::<f32>());
        let out = scratch.out.as_slice::<f32>();
        for query in 0..len_q {
            // O is normalised already: only a sink still changes it.
            let (factor, lse) = finish(max[query], sum[query], call.sinks.map(|sinks| sinks[head]));
            // SAFETY: each (sequence, head, query) belongs to one task.
            unsafe {
                let row = &out[query * shape.dim_v..][..self.problem.head_dim_v];
                call.o.write(self.rows_o.offset(sequence_index, head, query), row, factor * sum[query]);
                if let Some(out) = &call.lse {
                    out.write(sequence_index, head, query, lse);
                }
            }
        }
    }

    /// Lines 8 to 13: one tile of queries meets the packed block of keys.
    fn visit(
        &self,
        sequence_index: usize,
        head: usize,
        queries: Range<usize>,
        (first, len): (usize, usize),
        call: &Call<'_>,
        scratch: &mut Scratch,
    ) {
        let (sequence, shape) = (&self.sequences[sequence_index], self.shape);
        scratch.rows.clear();
        scratch.rows.extend(queries.clone().map(|query| Row {
            head,
            query,
            position: query as i64 + sequence.offset,
            keys: sequence.key_ranges[query].clone(),
        }));
        let q = scratch.queries.as_mut_slice::<f32>();
        for (query, out) in queries.clone().zip(q.chunks_mut(shape.dim_qk)) {
            let offset = self.rows_q.offset(sequence_index, head, query);
            widen_row(shape.isa, call.q, offset, shape.dim_qk, call.scale, out);
        }
        let sum = &mut scratch.sum.as_mut_slice::<f32>()[queries.clone()];
        let out = &mut scratch.out.as_mut_slice::<f32>()[queries.start * shape.dim_v..queries.end * shape.dim_v];
        for (row, &sum) in out.chunks_mut(shape.dim_v).zip(sum.iter()) {
            scale_in_place(shape.isa, row, sum);
        }
        let block = self.packer.view(scratch.packed.as_slice(), first, len);
        let max = &mut scratch.max.as_mut_slice::<f32>()[queries];
        let mut state = TileState { max, sum, out, scores: scratch.scores.as_mut_slice() };
        absorb(shape, &call.rules, sequence_index, &scratch.rows, q, block, &mut state);
        for (row, &sum) in state.out.chunks_mut(shape.dim_v).zip(state.sum.iter()) {
            scale_in_place(shape.isa, row, if sum == 0.0 { 0.0 } else { 1.0 / sum });
        }
    }
}

impl Plan for Flash1Plan {
    fn run(&mut self, inputs: &TensorSet, outputs: &mut TensorSet) {
        let Flash1Plan { layout, scratches } = self;
        let call = Call::new(&layout.problem, &layout.slopes, inputs, outputs);
        let heads = layout.problem.heads_q;
        for_each_task(layout.sequences.len() * heads, scratches, |scratch, task| {
            layout.attend(task / heads, task % heads, &call, scratch);
        });
    }
}
