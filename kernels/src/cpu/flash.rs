//! FlashAttention-2, forward (Dao 2023, algorithm 1): queries outside, keys inside, online softmax, scores never leave the
//! caches; parallel over (sequence, head, query tile).
//!
//! On a CPU: each KV head is widened and packed once, in parallel, into panels that the register blocks of
//! [`super::simd::gemm`] read with unit stride, and every query tile of its group reads them. Tiles are of
//! [`TILE_ROWS`] queries and [`BLOCK_KEYS`] keys: the scores (96 x 256 x 4 = 96 KiB), the tile's Q and O and one packed
//! block stay in the second-level cache. Only blocks that some row of a tile sees are visited, and in blocks on an edge
//! only the panels and rows that meet it. Tiles start longest first. Units of (sequence, KV head) are taken in waves whose
//! packed form stays below [`WAVE_BYTES`], so memory does not grow with the batch.
//!
//! The backward is in `flash_bwd`.
//!
//! Limit: the FMA rate of the cores. Packing costs about 1 / (queries of the group) of the products.

use std::ops::Range;

use super::call::Call;
use super::flash_bwd;
use super::online::{TileShape, TileState, absorb, finish};
use super::packed_kv::BlockPacker;
use super::rows::{Row, key_ranges};
use super::schedule::for_each_task;
use super::score::alibi_slopes;
use super::simd::Isa;
use super::simd::pack::widen_row;
use crate::kernel::{Kernel, KernelError, Plan, PlanContext};
use crate::pattern::Visibility;
use crate::problem::{AttentionProblem, KvLayout, Mechanism, Pattern, Phase};
use crate::shared_mut::SharedMut;
use crate::tensor::{Rows, Tensor, TensorName, TensorSet};

/// Queries a tile.
const TILE_ROWS: usize = 96;
/// Keys a block.
const BLOCK_KEYS: usize = 256;
/// Packed keys and values at a time; one KV head may take more.
const WAVE_BYTES: usize = 64 << 20;

/// The kernel; `isa` is the widest of the machine unless given.
pub struct Flash {
    /// Instruction set to use.
    pub isa: Option<Isa>,
}

impl Kernel for Flash {
    fn name(&self) -> &'static str {
        "flash"
    }

    fn summary(&self) -> &'static str {
        "FlashAttention-2 (Dao 2023): query tiles outside, online softmax over packed key blocks"
    }

    fn supports(&self, problem: &AttentionProblem) -> Result<(), KernelError> {
        let refuse = |text: String| Err(KernelError::Unsupported(text));
        match problem.mechanism {
            Mechanism::Softmax => {}
            Mechanism::Mla { .. } if problem.phase == Phase::Prefill => {}
            other => return refuse(format!("flash computes softmax attention, not {}", other.name())),
        }
        if problem.phase == Phase::Backward {
            return flash_bwd::supports(problem);
        }
        if !matches!(problem.pattern, Pattern::Full | Pattern::Window { .. }) {
            return refuse(format!("flash computes the patterns full and window, not {}", problem.pattern.name()));
        }
        if problem.kv_layout != KvLayout::Contiguous {
            return refuse("flash reads contiguous keys and values, not pages".into());
        }
        Ok(())
    }

    fn plan(&self, context: &PlanContext<'_>) -> Result<Box<dyn Plan>, KernelError> {
        self.supports(context.problem)?;
        let isa = self.isa.unwrap_or_else(Isa::best);
        if context.problem.phase == Phase::Backward {
            return flash_bwd::plan(isa, context);
        }
        Ok(Box::new(FlashPlan::new(isa, context)?))
    }
}

/// Query rows of one head that a thread works on.
struct Tile {
    unit: usize,
    head: usize,
    queries: Range<usize>,
}

/// One KV head of one sequence, and where its packed blocks are.
struct Unit {
    sequence: usize,
    head: usize,
    /// Blocks that some query sees.
    blocks: Range<usize>,
    packed: usize,
}

/// Units whose packed form is in memory at the same time.
#[derive(Default)]
struct Wave {
    units: Vec<Unit>,
    /// (unit, block).
    packs: Vec<(usize, usize)>,
    tiles: Vec<Tile>,
}

struct Scratch {
    rows: Vec<Row>,
    offsets: Vec<usize>,
    max: Tensor,
    sum: Tensor,
    queries: Tensor,
    out: Tensor,
    scores: Tensor,
}

/// A plan of a forward problem.
pub(crate) struct FlashPlan {
    layout: FlashLayout,
    packed: Tensor,
    scratches: Vec<Scratch>,
}

/// What stays the same from call to call.
struct FlashLayout {
    problem: AttentionProblem,
    shape: TileShape,
    packer: BlockPacker,
    lengths_kv: Vec<usize>,
    key_ranges: Vec<Vec<Range<usize>>>,
    slopes: Vec<f32>,
    rows_q: Rows,
    rows_k: Rows,
    rows_v: Rows,
    rows_o: Rows,
    waves: Vec<Wave>,
}

impl FlashPlan {
    /// Packs nothing yet: fixes tiles and waves, and allocates their memory.
    pub(crate) fn new(isa: Isa, context: &PlanContext<'_>) -> Result<FlashPlan, KernelError> {
        let problem = context.problem;
        let (dim_qk, dim_v) = (problem.head_dim_qk, problem.head_dim_v);
        let packer = BlockPacker { isa, block: BLOCK_KEYS, dim_qk, dim_v };
        let (lengths_q, lengths_kv) = (problem.lengths_q(), problem.lengths_kv());
        let key_ranges: Vec<_> = lengths_q
            .iter()
            .zip(&lengths_kv)
            .map(|(&len_q, &len_kv)| key_ranges(&Visibility::new(problem, len_q, len_kv)))
            .collect();
        let waves = waves(problem, &packer, &key_ranges);
        let packed_elements = waves
            .iter()
            .map(|wave| wave.units.last().map_or(0, |unit| unit.packed + unit.blocks.len() * packer.block_elements()))
            .max()
            .unwrap_or(0);
        let scratch_elements = TILE_ROWS * (2 + dim_qk + isa.pad(dim_v) + BLOCK_KEYS);
        context.check_workspace(4 * (packed_elements + context.threads * scratch_elements) as u64)?;
        let scratch = || Scratch {
            rows: Vec::with_capacity(TILE_ROWS),
            offsets: vec![0; BLOCK_KEYS],
            max: Tensor::f32s(TILE_ROWS),
            sum: Tensor::f32s(TILE_ROWS),
            queries: Tensor::f32s(TILE_ROWS * dim_qk),
            out: Tensor::f32s(TILE_ROWS * isa.pad(dim_v)),
            scores: Tensor::f32s(TILE_ROWS * BLOCK_KEYS),
        };
        let layout = FlashLayout {
            problem: problem.clone(),
            shape: TileShape { isa, dim_qk, dim_v: isa.pad(dim_v) },
            packer,
            lengths_kv,
            key_ranges,
            slopes: alibi_slopes(problem),
            rows_q: Rows::of_queries(problem, dim_qk),
            rows_k: Rows::of_keys(problem, dim_qk, None),
            rows_v: Rows::of_keys(problem, dim_v, None),
            rows_o: Rows::of_queries(problem, dim_v),
            waves,
        };
        let scratches = (0..context.threads.max(1)).map(|_| scratch()).collect();
        Ok(FlashPlan { layout, packed: Tensor::f32s(packed_elements), scratches })
    }
}

/// Splits the work into waves of packing and tiles.
fn waves(problem: &AttentionProblem, packer: &BlockPacker, key_ranges: &[Vec<Range<usize>>]) -> Vec<Wave> {
    let mut waves = vec![Wave::default()];
    let mut packed = 0;
    for (sequence, ranges) in key_ranges.iter().enumerate() {
        let seen = ranges.iter().filter(|range| !range.is_empty());
        let start = seen.clone().map(|range| range.start).min().unwrap_or(0);
        let end = seen.map(|range| range.end).max().unwrap_or(0);
        let blocks = start / packer.block..end.div_ceil(packer.block);
        for head in 0..problem.heads_kv {
            let elements = blocks.len() * packer.block_elements();
            if packed > 0 && 4 * (packed + elements) > WAVE_BYTES {
                waves.push(Wave::default());
                packed = 0;
            }
            let wave = waves.last_mut().expect("there is a first wave");
            let unit = wave.units.len();
            wave.packs.extend(blocks.clone().map(|block| (unit, block)));
            for head in head * problem.group_size()..(head + 1) * problem.group_size() {
                let queries = (0..ranges.len()).step_by(TILE_ROWS);
                wave.tiles.extend(queries.map(|first| Tile {
                    unit,
                    head,
                    queries: first..(first + TILE_ROWS).min(ranges.len()),
                }));
            }
            wave.units.push(Unit { sequence, head, blocks: blocks.clone(), packed });
            packed += elements;
        }
    }
    for wave in &mut waves {
        // Longest first; a stable sort keeps tiles of one unit together.
        wave.tiles.sort_by_cached_key(|tile| {
            let ranges = &key_ranges[wave.units[tile.unit].sequence][tile.queries.clone()];
            std::cmp::Reverse(ranges.iter().map(|range| range.len()).sum::<usize>())
        });
    }
    waves
}

impl FlashLayout {
    /// Where a block of a unit is in packed memory.
    fn place(&self, unit: &Unit, block: usize) -> Range<usize> {
        let elements = self.packer.block_elements();
        let start = unit.packed + (block - unit.blocks.start) * elements;
        start..start + elements
    }

    /// First key and number of keys of a block.
    fn extent(&self, unit: &Unit, block: usize) -> (usize, usize) {
        let first = block * self.packer.block;
        (first, self.packer.block.min(self.lengths_kv[unit.sequence] - first))
    }

    fn pack(&self, wave: &Wave, task: usize, inputs: &TensorSet, offsets: &mut [usize], packed: &SharedMut<f32>) {
        let (unit, block) = wave.packs[task];
        let unit = &wave.units[unit];
        // SAFETY: each (unit, block) has its own place.
        let out = unsafe { packed.slice(self.place(unit, block).start, self.packer.block_elements()) };
        let (first, len) = self.extent(unit, block);
        self.packer.pack(
            (inputs.get(TensorName::K), &self.rows_k),
            (inputs.get(TensorName::V), &self.rows_v),
            (unit.sequence, unit.head),
            len,
            |index| first + index,
            offsets,
            out,
        );
    }

    /// Attends from one tile of queries and writes its output rows.
    fn attend(&self, wave: &Wave, task: usize, call: &Call<'_>, packed: &[f32], scratch: &mut Scratch) {
        let tile = &wave.tiles[task];
        let unit = &wave.units[tile.unit];
        let (sequence, shape) = (unit.sequence, self.shape);
        let ranges = &self.key_ranges[sequence];
        let offset = self.problem.query_offset(ranges.len(), self.lengths_kv[sequence]);
        scratch.rows.clear();
        scratch.rows.extend(tile.queries.clone().map(|query| Row {
            head: tile.head,
            query,
            position: query as i64 + offset,
            keys: ranges[query].clone(),
        }));
        let rows = &scratch.rows;
        let queries = scratch.queries.as_mut_slice::<f32>();
        for (row, out) in rows.iter().zip(queries.chunks_mut(shape.dim_qk)) {
            let offset = self.rows_q.offset(sequence, tile.head, row.query);
            widen_row(shape.isa, call.q, offset, shape.dim_qk, call.scale, out);
        }
        let mut state = TileState {
            max: &mut scratch.max.as_mut_slice()[..rows.len()],
            sum: &mut scratch.sum.as_mut_slice()[..rows.len()],
            out: &mut scratch.out.as_mut_slice()[..rows.len() * shape.dim_v],
            scores: scratch.scores.as_mut_slice(),
        };
        state.reset();
        let seen = rows[0].keys.start / self.packer.block..rows[rows.len() - 1].keys.end.div_ceil(self.packer.block);
        for block in seen.start.max(unit.blocks.start)..seen.end.min(unit.blocks.end) {
            let (first, len) = self.extent(unit, block);
            let keys = self.packer.view(&packed[self.place(unit, block)], first, len);
            absorb(shape, &call.rules, sequence, rows, queries, keys, &mut state);
        }
        for (index, row) in rows.iter().enumerate() {
            let sink = call.sinks.map(|sinks| sinks[row.head]);
            let (factor, lse) = finish(state.max[index], state.sum[index], sink);
            let out = &state.out[index * shape.dim_v..][..self.problem.head_dim_v];
            // SAFETY: each (sequence, head, query) belongs to one tile.
            unsafe {
                call.o.write(self.rows_o.offset(sequence, row.head, row.query), out, factor);
                if let Some(out) = &call.lse {
                    out.write(sequence, row.head, row.query, lse);
                }
            }
        }
    }
}

impl Plan for FlashPlan {
    fn run(&mut self, inputs: &TensorSet, outputs: &mut TensorSet) {
        let FlashPlan { layout, packed, scratches } = self;
        let call = Call::new(&layout.problem, &layout.slopes, inputs, outputs);
        for wave in &layout.waves {
            let blocks = SharedMut::new(packed.as_mut_slice::<f32>());
            for_each_task(wave.packs.len(), scratches, |scratch, task| {
                layout.pack(wave, task, inputs, &mut scratch.offsets, &blocks);
            });
            let packed = packed.as_slice::<f32>();
            for_each_task(wave.tiles.len(), scratches, |scratch, task| {
                layout.attend(wave, task, &call, packed, scratch);
            });
        }
    }
}
