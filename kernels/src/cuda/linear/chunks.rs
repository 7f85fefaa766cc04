//! Prefill on tensor cores: `kernels/cuda/linear_chunks.cu`.

use super::super::Source;
use super::super::geometry::Geometry;
use super::super::plan::{Argument, CudaPlan, DeviceFacts, Launch, Module, grid_of};
use super::super::source::source;
use super::super::tensor_core::{self, DTYPES};
use super::super::tiles::{self, TileClass, Tiles};
use crate::kernel::KernelError;
use crate::problem::{AttentionProblem, Dtype};
use crate::tensor::TensorName;

const SOURCE: Source = source!("linear_chunks.cu");

/// Positions a chunk.
const CHUNK: usize = 64;
/// What a second pass over the keys costs of a chunk.
const SECOND_PASS: f64 = 0.5;
/// What a scan costs a segment, and segments that it walks along at most.
const SCAN_COST: f64 = 0.01;
const MOST_SEGMENTS: usize = 256;

/// Columns of V that a warp owns; warps, of which four at a time share the rows of Q K^T; blocks that fit a multiprocessor of
/// sm_90; and what states in memory cost of a walk, in chunks: 64 KiB written, read, written and read again, of 64 KiB a chunk.
const SIZES: &[&str] = &["columns", "warps", "blocks", "states"];

const fn class(name: &'static str, taken: &'static [usize; 4], others: &'static [&'static [usize]]) -> TileClass {
    TileClass::new(name, SIZES, taken, others)
}

/// What each class takes, and what `attnbench tune` measures beside it, by d_qk: the more states cost, the fewer segments a walk is
/// cut into.
#[rustfmt::skip]
pub(super) const CLASSES: &[TileClass] = &[
    class("d64", &[16, 4, 3, 4], &[&[16, 4, 3, 2], &[16, 4, 3, 8]]),
    class("d128", &[32, 4, 2, 4], &[&[16, 4, 2, 4], &[16, 8, 1, 4], &[32, 4, 2, 2], &[32, 4, 2, 8]]),
    class("d256", &[16, 8, 1, 4], &[&[16, 4, 1, 4], &[16, 8, 1, 2]]),
];

/// The compiled d_qk.
const DIMS: [usize; 3] = [64, 128, 256];

/// How a block is cut for some d_qk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    dim_qk: usize,
    warp_columns: usize,
    warps: usize,
    blocks_a_multiprocessor: usize,
    states_chunks: usize,
}

/// The compiled d_qk of a prefill in 16 bits whose rows are whole chunks of 16 bytes.
fn compiled_dim(problem: &AttentionProblem) -> Option<usize> {
    let (dim_qk, dim_v) = (problem.head_dim_qk, problem.head_dim_v);
    let is_whole = dim_qk.is_multiple_of(8) && dim_v.is_multiple_of(8);
    let has_tensor_cores = is_whole && problem.dtype != Dtype::F32 && !problem.is_recurrent();
    DIMS.into_iter().find(|&dim| has_tensor_cores && dim_qk <= dim)
}

fn class_of_dim(dim_qk: usize) -> &'static TileClass {
    tiles::class(CLASSES, &format!("d{dim_qk}"))
}

/// The class of a problem, where its prefill is on tensor cores.
pub(super) fn class_of(problem: &AttentionProblem) -> Option<&'static TileClass> {
    compiled_dim(problem).map(class_of_dim)
}

impl Shape {
    fn of_dim(dim_qk: usize, tiles: Tiles) -> Shape {
        let [warp_columns, warps, blocks_a_multiprocessor, states_chunks] = tiles.sizes();
        Shape { dim_qk, warp_columns, warps, blocks_a_multiprocessor, states_chunks }
    }

    /// The shape for a problem that has a class.
    pub(super) fn new(problem: &AttentionProblem, tiles: Tiles) -> Option<Shape> {
        compiled_dim(problem).map(|dim| Shape::of_dim(dim, tiles))
    }

    fn columns(&self) -> usize {
        self.warp_columns * self.warps
    }

    /// Two stages of Q, K and V, the triangle, two normalisers of each warp, divisors of each part of the keys, scales of rows.
    pub(super) fn shared_bytes(&self) -> u32 {
        let stage = 2 * CHUNK * (2 * self.dim_qk + self.columns());
        let numbers = 2 * self.warps * self.dim_qk + (self.warps / 4 + 2) * CHUNK;
        (2 * stage + 2 * CHUNK * CHUNK + 4 * numbers) as u32
    }

    fn module(&self, dtype: Dtype) -> Module {
        let numbers = [("DIM_QK", self.dim_qk), ("WARP_V", self.warp_columns), ("WARPS", self.warps)];
        tensor_core::module(SOURCE, dtype, &numbers, None)
    }

    /// Blocks that run at a time.
    fn places(&self, device: &DeviceFacts) -> usize {
        self.blocks_a_multiprocessor * device.multiprocessors as usize
    }
}

/// Every variant.
pub(super) fn modules() -> Vec<Module> {
    let of = |dim| DTYPES.map(|dtype| Shape::of_dim(dim, class_of_dim(dim).taken()).module(dtype));
    DIMS.into_iter().flat_map(of).collect()
}

/// How many segments to cut `chunks` into, of which `blocks` walks are made at a time, where `dearer` says what cutting adds
/// to a chunk's time and `fixed`, in chunks, to a walk's.
fn segments(chunks: usize, blocks: usize, places: usize, dearer: f64, fixed: f64) -> usize {
    let time = |segments: usize| {
        let walk = chunks.div_ceil(segments) as f64;
        let rounds = (blocks * segments).div_ceil(places) as f64;
        let (dearer, fixed) = if segments > 1 { (dearer, fixed) } else { (0.0, 0.0) };
        rounds.max(1.0) * (walk * (1.0 + dearer) + fixed) + SCAN_COST * segments as f64
    };
    (1..=chunks.clamp(1, MOST_SEGMENTS)).min_by(|&a, &b| time(a).total_cmp(&time(b))).unwrap_or(1)
}

/// The plan of a prefill.
pub(super) fn plan(
    shape: &Shape,
    problem: &AttentionProblem,
    geometry: &Geometry,
    mechanism: Argument,
    is_normalised: bool,
    device: &DeviceFacts,
) -> Result<CudaPlan, KernelError> {
    device.require_shared("linear", shape.shared_bytes())?;
    let mut plan = CudaPlan::default();
    let module = plan.module(shape.module(problem.dtype));
    let sequences = geometry.sequences(&mut plan);
    let tiles = geometry.dim_v.div_ceil(shape.columns());
    let (heads_q, heads_kv) = (geometry.heads_q * geometry.batch(), geometry.heads_kv * geometry.batch());
    let is_causal = Argument::I32(i32::from(problem.causal));
    let launch = |entry, grid, arguments| Launch {
        module,
        entry,
        grid,
        block: [32 * shape.warps as u32, 1, 1],
        shared_bytes: shape.shared_bytes(),
        arguments,
    };

    // Causal walks are along positions, from the first query or key to the last query.
    let lengths = geometry.lengths_q.iter().zip(&geometry.query_offsets);
    let positions = |(&len_q, &offset): (&usize, &i64)| {
        let origin = ((-offset).max(0) as usize).div_ceil(CHUNK) * CHUNK;
        (origin as i64 + offset + len_q as i64) as usize
    };
    let positions = if problem.causal { lengths.map(positions).max().unwrap_or(0) } else { geometry.longest_q() };
    let (chunks, places) = (positions.div_ceil(CHUNK), shape.places(device));
    let states_cost = shape.states_chunks as f64;
    let (key_segments, key_chunks, query_segments, query_chunks) = if problem.causal {
        let segments = segments(chunks, tiles * heads_q, places, SECOND_PASS, states_cost);
        let length = chunks.div_ceil(segments);
        (segments, length, segments, length)
    } else {
        let key_chunks = geometry.longest_kv().div_ceil(CHUNK);
        let key_segments = segments(key_chunks, tiles * heads_kv, places, 0.0, states_cost);
        let query_segments = segments(chunks, tiles * heads_q, places, 0.0, states_cost / 4.0);
        (key_segments, key_chunks.div_ceil(key_segments), query_segments, chunks.div_ceil(query_segments))
    };

    let has_states = !problem.causal || key_segments > 1;
    let size = tiles * shape.columns() * shape.dim_qk;
    let pitch = size + shape.dim_qk;
    let states = if has_states { plan.workspace((heads_kv * key_segments * pitch * 4) as u64) } else { Argument::Null };
    if has_states {
        let arguments = vec![
            Argument::Tensor(TensorName::K),
            Argument::Tensor(TensorName::V),
            sequences.clone(),
            geometry.argument(),
            mechanism.clone(),
            is_causal.clone(),
            Argument::I32(key_segments as i32),
            Argument::I32(key_chunks as i32),
            states.clone(),
        ];
        plan.launches.push(launch("linear_sums", grid_of("linear", &[tiles, key_segments, heads_kv])?, arguments));
    }
    if key_segments > 1 {
        let size = if is_normalised { pitch } else { size };
        let arguments = vec![
            states.clone(),
            Argument::I32(key_segments as i32),
            Argument::I32(pitch as i32),
            Argument::I32(size as i32),
            Argument::I32(i32::from(!problem.causal)),
        ];
        let [blocks, ..] = grid_of("linear", &[heads_kv])?;
        let scan = launch("linear_scan", [blocks, size.div_ceil(256) as u32, 1], arguments);
        plan.launches.push(Launch { block: [256, 1, 1], shared_bytes: 0, ..scan });
    }
    let arguments = vec![
        Argument::Tensor(TensorName::Q),
        Argument::Tensor(TensorName::K),
        Argument::Tensor(TensorName::V),
        Argument::Tensor(TensorName::O),
        sequences,
        geometry.argument(),
        mechanism,
        is_causal,
        Argument::I32(query_segments as i32),
        Argument::I32(query_chunks as i32),
        states,
        Argument::I32(key_segments as i32),
    ];
    plan.launches.push(launch("linear_chunks", grid_of("linear", &[tiles, query_segments, heads_q])?, arguments));
    Ok(plan)
}
