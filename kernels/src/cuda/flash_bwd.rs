//! FlashAttention-2, backward (Dao 2023): `kernels/cuda/flash_bwd.cu`.

use super::Source;
use super::geometry::Geometry;
use super::plan::{Argument, CudaPlan, DeviceFacts, Launch, Module, grid_of};
use super::source::source;
use super::tensor_core::{self, DIMS, DTYPES, Variant, compiled_dims, dims_name};
use super::tiles::{self, TileClass, Tiles};
use crate::kernel::KernelError;
use crate::problem::{AttentionProblem, Bias, Dtype};
use crate::tensor::TensorName;

const SOURCE: Source = source!("flash_bwd.cu");

/// `ROW_BLOCK` of `flash_bwd.cuh`: what rows are padded to in workspaces.
const ROW_BLOCK: usize = 64;

/// Tiles of the launch over keys: queries a tile, keys a block, warps along the keys, warps that share keys and have a part each of
/// queries and columns (`SIDE_WARPS`), warps along dQ's rows, blocks a multiprocessor that the compiler leaves registers for.
const KEYS_SIZES: &[&str] = &["rows", "keys", "warps", "sides", "dq", "blocks"];

/// Tiles of the launch over queries, of which a warp has 16, where the problem is deterministic: warps, and keys a tile.
const QUERIES_SIZES: &[&str] = &["warps", "keys"];

const fn keys(name: &'static str, taken: &'static [usize; 6], others: &'static [&'static [usize]]) -> TileClass {
    TileClass::new(name, KEYS_SIZES, taken, others)
}

const fn queries(name: &'static str, taken: &'static [usize; 2], others: &'static [&'static [usize]]) -> TileClass {
    TileClass::new(name, QUERIES_SIZES, taken, others)
}

/// What each class takes, and what `attnbench tune` measures beside it. Softcaps have the tiles of plain scores; in the general
/// variant, which is made to be correct, the tiles of d64 and d128 would spill registers. Where a problem is deterministic, the
/// launch over queries is cut; that over keys takes what it would else.
#[rustfmt::skip]
pub(super) const CLASSES: &[TileClass] = &[
    keys("backward d64", &[32, 128, 4, 1, 2, 2], &[
        &[64, 128, 4, 2, 2, 1], &[64, 64, 4, 1, 4, 2], &[32, 64, 4, 1, 2, 3], &[32, 128, 4, 2, 2, 2], &[64, 128, 8, 1, 4, 1]]),
    keys("backward d64 general", &[64, 128, 4, 2, 2, 1], &[]),
    queries("backward d64 deterministic", &[8, 64], &[&[4, 64], &[8, 32], &[8, 128]]),
    keys("backward d96", &[64, 128, 4, 2, 4, 1], &[&[64, 64, 4, 2, 4, 1], &[32, 64, 4, 1, 2, 2]]),
    keys("backward d96 general", &[64, 128, 4, 2, 4, 1], &[]),
    queries("backward d96 deterministic", &[8, 64], &[&[4, 64]]),
    keys("backward d128", &[64, 128, 4, 2, 2, 1], &[
        &[64, 128, 4, 2, 4, 1], &[32, 128, 4, 2, 2, 1], &[64, 64, 4, 2, 2, 1], &[64, 64, 2, 2, 4, 1], &[32, 64, 4, 1, 2, 2]]),
    keys("backward d128 general", &[32, 128, 4, 2, 2, 1], &[]),
    queries("backward d128 deterministic", &[8, 64], &[&[4, 64], &[8, 32], &[4, 32]]),
    keys("backward d192:128", &[32, 64, 4, 2, 2, 1], &[&[64, 64, 4, 2, 2, 1], &[64, 64, 4, 2, 4, 1]]),
    keys("backward d192:128 general", &[32, 64, 4, 2, 2, 1], &[]),
    queries("backward d192:128 deterministic", &[4, 32], &[&[8, 32]]),
    keys("backward d192", &[32, 64, 4, 2, 2, 1], &[&[64, 64, 4, 2, 2, 1]]),
    keys("backward d192 general", &[32, 64, 4, 2, 2, 1], &[]),
    queries("backward d192 deterministic", &[4, 32], &[&[8, 32]]),
    keys("backward d256", &[32, 64, 4, 2, 2, 1], &[&[64, 64, 4, 2, 2, 1]]),
    keys("backward d256 general", &[32, 64, 4, 2, 2, 1], &[]),
    queries("backward d256 deterministic", &[4, 32], &[]),
];

/// How blocks are cut for some head dimensions: the defines of `flash_bwd.cu`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    dims: (usize, usize),
    variant: Variant,
    rows: usize,
    keys: usize,
    key_warps: usize,
    side_warps: usize,
    dq_row_warps: usize,
    blocks: usize,
    query_warps: usize,
    query_keys: usize,
}

fn keys_class(dims: (usize, usize), variant: Variant) -> &'static TileClass {
    let suffix = if variant == Variant::General { " general" } else { "" };
    tiles::class(CLASSES, &format!("backward {}{suffix}", dims_name(dims)))
}

fn queries_class(dims: (usize, usize)) -> &'static TileClass {
    tiles::class(CLASSES, &format!("backward {} deterministic", dims_name(dims)))
}

/// The class of a backward problem of these compiled dimensions.
pub(super) fn class_of(problem: &AttentionProblem, dims: (usize, usize)) -> &'static TileClass {
    if problem.deterministic { queries_class(dims) } else { keys_class(dims, variant_of(problem)) }
}

impl Shape {
    fn new(dims: (usize, usize), variant: Variant, keys: Tiles, queries: Tiles) -> Shape {
        let [rows, keys, key_warps, side_warps, dq_row_warps, blocks] = keys.sizes();
        let [query_warps, query_keys] = queries.sizes();
        Shape { dims, variant, rows, keys, key_warps, side_warps, dq_row_warps, blocks, query_warps, query_keys }
    }

    /// What is taken.
    pub(super) fn of(dims: (usize, usize), variant: Variant) -> Shape {
        Shape::new(dims, variant, keys_class(dims, variant).taken(), queries_class(dims).taken())
    }

    /// The tiles of a problem's class beside what is taken of the other launch.
    fn with(problem: &AttentionProblem, dims: (usize, usize), tiles: Tiles) -> Shape {
        let variant = variant_of(problem);
        let (keys, queries) = match problem.deterministic {
            true => (keys_class(dims, variant).taken(), tiles),
            false => (tiles, queries_class(dims).taken()),
        };
        Shape::new(dims, variant, keys, queries)
    }

    fn threads(&self) -> usize {
        32 * self.key_warps * self.side_warps
    }

    /// K and V, two stages of Q, dO and the sums of rows, dS, and P where warps share keys.
    fn keys_shared_bytes(&self) -> usize {
        let dims = self.dims.0 + self.dims.1;
        let exchanged = if self.side_warps > 1 { 2 } else { 1 };
        2 * dims * (self.keys + 2 * self.rows) + exchanged * 2 * self.keys * self.rows + 2 * 8 * self.rows
    }

    /// Q and dO, two stages of K and V.
    fn queries_shared_bytes(&self) -> usize {
        2 * (self.dims.0 + self.dims.1) * (self.query_rows() + 2 * self.query_keys)
    }

    fn query_rows(&self) -> usize {
        16 * self.query_warps
    }

    fn module(&self, dtype: Dtype) -> Module {
        let numbers = [
            ("DIM_QK", self.dims.0),
            ("DIM_V", self.dims.1),
            ("ROWS", self.rows),
            ("KEYS", self.keys),
            ("KEY_WARPS", self.key_warps),
            ("SIDE_WARPS", self.side_warps),
            ("DQ_ROW_WARPS", self.dq_row_warps),
            ("BLOCKS", self.blocks),
            ("QUERY_WARPS", self.query_warps),
            ("QUERY_KEYS", self.query_keys),
        ];
        tensor_core::module(SOURCE, dtype, &numbers, Some(self.variant))
    }
}

/// The variant that a problem needs. Scales of either sign are plain here: nothing looks for the largest score.
pub(super) fn variant_of(problem: &AttentionProblem) -> Variant {
    Variant::of(&AttentionProblem { scale: None, ..problem.clone() })
}

/// Whether `flash` computes the gradients of a problem that it computes the forward of.
pub(super) fn supports(problem: &AttentionProblem) -> Result<(), KernelError> {
    if problem.bias != Bias::None || problem.sinks {
        let text = "a bias or sinks: flash's backward has scale, softcap and masks only";
        return Err(KernelError::Unsupported(text.into()));
    }
    Ok(())
}

/// A plan of a backward problem with tiles of its class.
pub(super) fn plan(problem: &AttentionProblem, device: &DeviceFacts, tiles: Tiles) -> Result<CudaPlan, KernelError> {
    const NAME: &str = "flash's backward";
    device.require_capability(NAME, 80)?;
    let dims = compiled_dims(problem.head_dim_qk, problem.head_dim_v).expect("what flash supports");
    let shape = Shape::with(problem, dims, tiles);
    let bytes = shape.keys_shared_bytes() as u32;
    device.require_shared(NAME, bytes)?;
    plan_with(NAME, problem, shape, device, |plan, module, sequences, sums| {
        let geometry = Geometry::new(problem);
        let tensors = [TensorName::Q, TensorName::K, TensorName::V, TensorName::DO].map(Argument::Tensor);
        let gradients = [TensorName::DK, TensorName::DV].map(Argument::Tensor);
        let mut arguments = [&tensors[..], &[sums.rows], &gradients].concat();
        let entry = if sums.dq == Argument::Null { "flash_bwd_keys_only" } else { "flash_bwd_keys" };
        if sums.dq != Argument::Null {
            arguments.push(sums.dq);
        }
        arguments.extend([sequences, geometry.argument()]);
        let tiles = geometry.longest_kv().div_ceil(shape.keys);
        let grid = grid_of(NAME, &[tiles, geometry.heads_kv, geometry.batch()])?;
        let block = [shape.threads() as u32, 1, 1];
        plan.launches.push(Launch { module, entry, grid, block, shared_bytes: bytes, arguments });
        Ok(())
    })
}

/// What a kernel over keys reads and adds to.
pub(super) struct Sums {
    /// LSE and D of each row.
    pub(super) rows: Argument,
    /// Of dQ; null where that is computed apart.
    pub(super) dq: Argument,
}

/// A plan of gradients with blocks of this shape, in which `push_keys(plan, the module of flash_bwd.cu, sequences, sums)` adds
/// the launch that computes dK and dV, and adds to dQ's sums where there are some.
pub(super) fn plan_with(
    kernel: &str,
    problem: &AttentionProblem,
    shape: Shape,
    device: &DeviceFacts,
    push_keys: impl FnOnce(&mut CudaPlan, usize, Argument, Sums) -> Result<(), KernelError>,
) -> Result<CudaPlan, KernelError> {
    let geometry = Geometry::new(problem);
    let (heads, batch) = (geometry.heads_q, geometry.batch());
    let row_blocks = geometry.longest_q().div_ceil(ROW_BLOCK);
    let rows = (batch * heads * row_blocks * ROW_BLOCK) as u64;
    if rows > i32::MAX as u64 {
        let text = format!("a problem of this size: {kernel} numbers the rows of all heads with 31 bits");
        return Err(KernelError::Unsupported(text));
    }
    let mut plan = CudaPlan::default();
    let module = plan.module(shape.module(problem.dtype));
    let sequences = geometry.sequences(&mut plan);
    let row_sums = plan.workspace(8 * rows);
    let dq_sums = match problem.deterministic {
        true => Argument::Null,
        false => plan.workspace(4 * rows * shape.dims.0 as u64),
    };
    let row_grid = grid_of(kernel, &[row_blocks, heads, batch])?;
    let push = |plan: &mut CudaPlan, entry, grid, threads, shared_bytes: usize, mut arguments: Vec<Argument>| {
        arguments.extend([sequences.clone(), geometry.argument()]);
        let (block, shared_bytes) = ([threads, 1, 1], shared_bytes as u32);
        plan.launches.push(Launch { module, entry, grid, block, shared_bytes, arguments });
    };
    let read = [TensorName::O, TensorName::DO, TensorName::Lse].map(Argument::Tensor);
    push(&mut plan, "flash_bwd_rows", row_grid, 256, 0, [&read[..], &[row_sums.clone(), dq_sums.clone()]].concat());
    push_keys(&mut plan, module, sequences.clone(), Sums { rows: row_sums.clone(), dq: dq_sums.clone() })?;
    let dq = Argument::Tensor(TensorName::DQ);
    if problem.deterministic {
        let bytes = shape.queries_shared_bytes();
        device.require_shared(kernel, bytes as u32)?;
        let grid = grid_of(kernel, &[geometry.longest_q().div_ceil(shape.query_rows()), heads, batch])?;
        let read = [TensorName::Q, TensorName::K, TensorName::V, TensorName::DO].map(Argument::Tensor);
        let arguments = [&read[..], &[row_sums, dq]].concat();
        push(&mut plan, "flash_bwd_queries", grid, 32 * shape.query_warps as u32, bytes, arguments);
    } else {
        push(&mut plan, "flash_bwd_sums", row_grid, 128, 2 * ROW_BLOCK * shape.dims.0, vec![dq_sums, dq]);
    }
    Ok(plan)
}

/// Every variant.
pub(super) fn modules() -> Vec<Module> {
    let each = |dims, dtype| Variant::ALL.map(|variant| Shape::of(dims, variant).module(dtype));
    DIMS.into_iter().flat_map(|dims| DTYPES.into_iter().flat_map(move |dtype| each(dims, dtype))).collect()
}
