//! Linformer (Wang et al. 2020, section 4): softmax(Q (E^T K)^T) (F^T V) with E and F of shape (seqlen_kv, rank).
//!
//! Projection: K' = E^T K and V' = F^T V are products over the length, cut into segments of whole blocks of tokens over
//! the threads where the heads are too few, whose partial sums are then added and packed. E and F are read in place.
//! Attention: `flash`'s tiles over the rank keys that are left, which the query heads of a group share.
//!
//! Tiles: blocks of 128 tokens in the projection, 96 queries by 128 projected keys in attention. It aims at the FMA rate:
//! 2 rank (d_qk + d_v) (n_q + n_kv) FLOPs a head.

use std::ops::Range;

use super::call::Call;
use super::online::{TileShape, TileState, absorb, finish};
use super::packed_kv::BlockPacker;
use super::rows::Row;
use super::schedule::for_each_task;
use super::simd::Isa;
use super::simd::gemm::{Strided, gemm};
use super::simd::pack::{PackedShape, pack_rows, widen_row};
use crate::kernel::{Kernel, KernelError, Plan, PlanContext};
use crate::problem::{AttentionProblem, Bias, KvLayout, Mechanism, Pattern, Phase};
use crate::shared_mut::SharedMut;
use crate::tensor::{Rows, Tensor, TensorName, TensorSet};

/// Tokens a projection step, and projected keys a block.
const BLOCK: usize = 128;
/// Queries a tile.
const TILE_ROWS: usize = 96;

/// Linformer: project K and V to `rank` rows, then attend; `isa` is the widest of the machine unless given.
pub struct Linformer {
    /// Instruction set to use.
    pub isa: Option<Isa>,
}

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
        if problem.bias != Bias::None || problem.softcap.is_some() || problem.sinks {
            return unsupported("a bias, softcap or sinks: linformer's softmax is over projected keys alone".into());
        }
        Ok(())
    }

    fn plan(&self, context: &PlanContext<'_>) -> Result<Box<dyn Plan>, KernelError> {
        self.supports(context.problem)?;
        Ok(Box::new(LinformerPlan::new(self.isa.unwrap_or_else(Isa::best), context)?))
    }
}

/// Tokens of one KV head that one item projects.
struct Segment {
    sequence: usize,
    head: usize,
    tokens: Range<usize>,
}

/// Queries of one head that one item attends.
struct Tile {
    sequence: usize,
    head: usize,
    queries: Range<usize>,
}

struct LinformerPlan {
    layout: Layout,
    /// Per segment K' (rank, d_qk) and V' (rank, d_v), rows padded to whole vectors; after the reduction a head's first
    /// segment holds the sum.
    projected: Tensor,
    /// The sums of each (sequence, KV head), packed.
    packed: Tensor,
    scratches: Vec<Scratch>,
}

/// What stays the same from call to call.
struct Layout {
    problem: AttentionProblem,
    shape: TileShape,
    /// Of projected keys and values.
    packer: BlockPacker,
    rank: usize,
    rows_q: Rows,
    rows_k: Rows,
    rows_v: Rows,
    rows_o: Rows,
    segments: Vec<Segment>,
    /// Range of `segments` a (sequence, KV head).
    heads: Vec<Range<usize>>,
    tiles: Vec<Tile>,
}

struct Scratch {
    rows: Vec<Row>,
    offsets: Vec<usize>,
    /// Packed keys or values of a block of tokens.
    tokens: Tensor,
    max: Tensor,
    sum: Tensor,
    queries: Tensor,
    out: Tensor,
    scores: Tensor,
}

impl LinformerPlan {
    fn new(isa: Isa, context: &PlanContext<'_>) -> Result<Self, KernelError> {
        let problem = context.problem;
        let Mechanism::Linformer { rank } = problem.mechanism else {
            unreachable!("supports() refuses other mechanisms")
        };
        let (dim_qk, dim_v) = (problem.head_dim_qk, problem.head_dim_v);
        let rows_k = Rows::of_keys(problem, dim_qk, None);
        let head_count = problem.batch * problem.heads_kv;
        let cuts = if head_count.is_multiple_of(context.threads) || head_count >= 4 * context.threads {
            1
        } else {
            (2 * context.threads).div_ceil(head_count)
        };
        let (mut segments, mut heads) = (Vec::new(), Vec::with_capacity(head_count));
        for (sequence, &length) in rows_k.lengths.iter().enumerate() {
            let blocks = length.div_ceil(BLOCK).max(1);
            let cuts = cuts.min(blocks);
            for head in 0..problem.heads_kv {
                let start = segments.len();
                let token = |cut: usize| (blocks * cut / cuts * BLOCK).min(length);
                segments.extend((0..cuts).map(|cut| Segment { sequence, head, tokens: token(cut)..token(cut + 1) }));
                heads.push(start..segments.len());
            }
        }
        let rows_q = Rows::of_queries(problem, dim_qk);
        let mut tiles = Vec::new();
        for (sequence, &length) in rows_q.lengths.iter().enumerate() {
            for head in 0..problem.heads_q {
                tiles.extend((0..length).step_by(TILE_ROWS).map(|first| Tile {
                    sequence,
                    head,
                    queries: first..length.min(first + TILE_ROWS),
                }));
            }
        }
        let layout = Layout {
            problem: problem.clone(),
            shape: TileShape { isa, dim_qk, dim_v: isa.pad(dim_v) },
            packer: BlockPacker { isa, block: BLOCK, dim_qk, dim_v },
            rank,
            rows_q,
            rows_k,
            rows_v: Rows::of_keys(problem, dim_v, None),
            rows_o: Rows::of_queries(problem, dim_v),
            segments,
            heads,
            tiles,
        };
        let projected = layout.segments.len() * layout.segment_elements();
        let packed = head_count * layout.packed_elements();
        let tokens = BLOCK * isa.pad(dim_qk.max(dim_v));
        let scratch = TILE_ROWS * (2 + dim_qk + layout.shape.dim_v + BLOCK) + tokens;
        context.check_workspace(4 * (projected + packed + context.threads * scratch) as u64)?;
        let scratch = || Scratch {
            rows: Vec::with_capacity(TILE_ROWS),
            offsets: vec![0; BLOCK],
            tokens: Tensor::f32s(tokens),
            max: Tensor::f32s(TILE_ROWS),
            sum: Tensor::f32s(TILE_ROWS),
            queries: Tensor::f32s(TILE_ROWS * dim_qk),
            out: Tensor::f32s(TILE_ROWS * layout.shape.dim_v),
            scores: Tensor::f32s(TILE_ROWS * BLOCK),
        };
        Ok(LinformerPlan {
            projected: Tensor::f32s(projected),
            packed: Tensor::f32s(packed),
            scratches: (0..context.threads.max(1)).map(|_| scratch()).collect(),
            layout,
        })
    }
}

impl Layout {
    /// Elements of K' of a segment; V' follows.
    fn key_elements(&self) -> usize {
        self.rank * self.shape.isa.pad(self.shape.dim_qk)
    }

    fn segment_elements(&self) -> usize {
        self.key_elements() + self.rank * self.shape.dim_v
    }

    /// Elements of a head's packed blocks.
    fn packed_elements(&self) -> usize {
        self.rank.div_ceil(BLOCK) * self.packer.block_elements()
    }

    /// E^T K and F^T V of a segment's tokens.
    fn project(&self, segment: &Segment, call: &Call<'_>, inputs: &TensorSet, scratch: &mut Scratch, out: &mut [f32]) {
        out.fill(0.0);
        let (keys, values) = out.split_at_mut(self.key_elements());
        for (tensor, rows, projection, out) in [
            (call.k, &self.rows_k, inputs.get(TensorName::ProjectionK), keys),
            (call.v, &self.rows_v, inputs.get(TensorName::ProjectionV), values),
        ] {
            let (isa, width) = (self.shape.isa, self.shape.isa.pad(rows.dim));
            for first in segment.tokens.clone().step_by(BLOCK) {
                let count = BLOCK.min(segment.tokens.end - first);
                for (index, offset) in scratch.offsets[..count].iter_mut().enumerate() {
                    *offset = rows.offset(segment.sequence, segment.head, first + index);
                }
                let shape = PackedShape::new(isa, count, rows.dim);
                let packed = &mut scratch.tokens.as_mut_slice::<f32>()[..shape.len()];
                pack_rows(isa, tensor, &scratch.offsets[..count], rows.dim, count, packed);
                let projection = Strided::transposed(&projection.as_slice()[first * self.rank..], self.rank);
                gemm(isa, (self.rank, width, count), projection, shape.view(packed), out, width, true);
            }
        }
    }

    /// Packs a head's K' and V'.
    fn pack(&self, head: usize, projected: &Tensor, offsets: &mut [usize], packed: &mut [f32]) {
        let start = self.heads[head].start * self.segment_elements();
        let (key_width, value_width) = (self.shape.isa.pad(self.shape.dim_qk), self.shape.dim_v);
        for (block, out) in packed.chunks_exact_mut(self.packer.block_elements()).enumerate() {
            let first = block * BLOCK;
            let offsets = &mut offsets[..BLOCK.min(self.rank - first)];
            let find = |offsets: &mut [usize], start: usize, width: usize| {
                offsets.iter_mut().enumerate().for_each(|(row, offset)| *offset = start + (first + row) * width);
            };
            find(offsets, start, key_width);
            self.packer.pack_keys(projected, offsets, out);
            find(offsets, start + self.key_elements(), value_width);
            self.packer.pack_values(projected, offsets, out);
        }
    }

    /// Attends from one tile of queries to the projected keys and writes its output rows.
    fn attend(&self, tile: &Tile, call: &Call<'_>, packed: &[f32], scratch: &mut Scratch) {
        let &Tile { sequence, head, ref queries } = tile;
        let shape = self.shape;
        scratch.rows.clear();
        scratch.rows.extend(queries.clone().map(|query| Row { head, query, position: 0, keys: 0..self.rank }));
        let rows = &scratch.rows;
        let queries = scratch.queries.as_mut_slice::<f32>();
        for (row, out) in rows.iter().zip(queries.chunks_mut(shape.dim_qk)) {
            let offset = self.rows_q.offset(sequence, head, row.query);
            widen_row(shape.isa, call.q, offset, shape.dim_qk, call.scale, out);
        }
        let mut state = TileState {
            max: &mut scratch.max.as_mut_slice()[..rows.len()],
            sum: &mut scratch.sum.as_mut_slice()[..rows.len()],
            out: &mut scratch.out.as_mut_slice()[..rows.len() * shape.dim_v],
            scores: scratch.scores.as_mut_slice(),
        };
        state.reset();
        for (block, packed) in packed.chunks_exact(self.packer.block_elements()).enumerate() {
            let first = block * BLOCK;
            let block = self.packer.view(packed, first, BLOCK.min(self.rank - first));
            absorb(shape, &call.rules, sequence, rows, queries, block, &mut state);
        }
        for (index, row) in rows.iter().enumerate() {
            let (factor, lse) = finish(state.max[index], state.sum[index], None);
            let out = &state.out[index * shape.dim_v..][..self.problem.head_dim_v];
            // SAFETY: each (sequence, head, query) belongs to one tile.
            unsafe {
                call.o.write(self.rows_o.offset(sequence, head, row.query), out, factor);
                if let Some(out) = &call.lse {
                    out.write(sequence, head, row.query, lse);
                }
            }
        }
    }
}

impl Plan for LinformerPlan {
    fn run(&mut self, inputs: &TensorSet, outputs: &mut TensorSet) {
        let LinformerPlan { layout, projected, packed, scratches } = self;
        let call = Call::new(&layout.problem, &[], inputs, outputs);
        let size = layout.segment_elements();

        let sums = SharedMut::new(projected.as_mut_slice::<f32>());
        for_each_task(layout.segments.len(), scratches, |scratch, index| {
            // SAFETY: a segment's part belongs to one item.
            let out = unsafe { sums.slice(index * size, size) };
            layout.project(&layout.segments[index], &call, inputs, scratch, out);
        });
        for_each_task(layout.heads.len(), scratches, |_, head| {
            let Range { start, end } = layout.heads[head];
            for segment in start + 1..end {
                // SAFETY: a head's segments belong to one item, and these two are different ones.
                let (sum, part) = unsafe { (sums.slice(start * size, size), sums.slice(segment * size, size)) };
                sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += *part);
            }
        });

        let size = layout.packed_elements();
        let blocks = SharedMut::new(packed.as_mut_slice::<f32>());
        for_each_task(layout.heads.len(), scratches, |scratch, head| {
            // SAFETY: a head's blocks belong to one item.
            layout.pack(head, projected, &mut scratch.offsets, unsafe { blocks.slice(head * size, size) });
        });
        let packed = packed.as_slice::<f32>();
        for_each_task(layout.tiles.len(), scratches, |scratch, index| {
            let tile = &layout.tiles[index];
            let head = tile.sequence * layout.problem.heads_kv + tile.head / layout.problem.group_size();
            layout.attend(tile, &call, &packed[head * size..][..size], scratch);
        });
    }
}
