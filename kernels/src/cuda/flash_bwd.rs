//! FlashAttention-2, backward (Dao 2023): `kernels/cuda/flash_bwd.cu`.

use super::Source;
use super::geometry::Geometry;
use super::plan::{Argument, CudaPlan, DeviceFacts, Launch, Module, grid_of};
use super::source::source;
use super::tensor_core::{DIMS, DTYPES, Variant, compiled_dims, element};
use crate::kernel::KernelError;
use crate::problem::{AttentionProblem, Bias, Dtype};
use crate::tensor::TensorName;

const SOURCE: Source = source!("flash_bwd.cu");

/// `ROW_BLOCK` of `flash_bwd.cuh`: what rows are padded to in workspaces.
const ROW_BLOCK: usize = 64;

/// How blocks are cut for some head dimensions: the defines of `flash_bwd.cu`.
#[derive(Clone, Copy, Debug)]
struct Shape {
    dims: (usize, usize),
    variant: Variant,
    /// Queries a tile.
    rows: usize,
    /// Keys a block.
    keys: usize,
    key_warps: usize,
    side_warps: usize,
    dq_row_warps: usize,
    /// Blocks a multiprocessor that the compiler leaves registers for.
    blocks: usize,
    query_warps: usize,
    query_keys: usize,
}

/// The tiles of each compiled head dimension, in the order of [`DIMS`]:
/// (rows, keys, key warps, side warps, warps along dQ's rows, blocks; warps and keys where queries are resident).
const TILES: [[usize; 8]; DIMS.len()] = [
    [32, 128, 4, 1, 2, 2, 8, 64],
    [64, 128, 4, 2, 4, 1, 8, 64],
    [64, 128, 4, 2, 2, 1, 8, 64],
    [32, 64, 4, 2, 2, 1, 4, 32],
    [32, 64, 4, 2, 2, 1, 4, 32],
    [32, 64, 4, 2, 2, 1, 4, 32],
];

impl Shape {
    fn of(dims: (usize, usize), variant: Variant) -> Shape {
        let number = DIMS.iter().position(|known| *known == dims).expect("dims are one of the compiled ones");
        let tiles = match (dims, variant) {
            // The tiles of the others would spill registers.
            ((64, 64), Variant::General) => [64, 128, 4, 2, 2, 1, 8, 64],
            ((128, 128), Variant::General) => [32, 128, 4, 2, 2, 1, 8, 64],
            _ => TILES[number],
        };
        let [rows, keys, key_warps, side_warps, dq_row_warps, blocks, query_warps, query_keys] = tiles;
        Shape { dims, variant, rows, keys, key_warps, side_warps, dq_row_warps, blocks, query_warps, query_keys }
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
        let mut defines = vec![("ELEMENT", element(dtype).to_string())];
        defines.extend(numbers.map(|(name, value)| (name, value.to_string())));
        defines.push(self.variant.define());
        Module { source: SOURCE, defines }
    }
}

/// The variant that a problem needs. Scales of either sign are plain here: nothing looks for the largest score.
fn variant_of(problem: &AttentionProblem) -> Variant {
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

/// A plan of a backward problem.
pub(super) fn plan(problem: &AttentionProblem, device: &DeviceFacts) -> Result<CudaPlan, KernelError> {
    const NAME: &str = "flash's backward";
    device.require_capability(NAME, 80)?;
    let geometry = Geometry::new(problem);
    let dims = compiled_dims(geometry.dim_qk, geometry.dim_v).expect("what flash supports");
    let shape = Shape::of(dims, variant_of(problem));
    let [keys_bytes, queries_bytes] =
        [shape.keys_shared_bytes(), shape.queries_shared_bytes()].map(|bytes| bytes as u32);
    device.require_shared(NAME, if problem.deterministic { keys_bytes.max(queries_bytes) } else { keys_bytes })?;

    let mut plan = CudaPlan::default();
    let module = plan.module(shape.module(problem.dtype));
    let sequences = geometry.sequences(&mut plan);
    let (heads_q, heads_kv, batch) = (geometry.heads_q, geometry.heads_kv, geometry.batch());
    let row_blocks = geometry.longest_q().div_ceil(ROW_BLOCK);
    let rows = (batch * heads_q * row_blocks * ROW_BLOCK) as u64;
    let row_sums = plan.workspace(8 * rows);
    let dq_sums = match problem.deterministic {
        true => Argument::Null,
        false => plan.workspace(4 * rows * dims.0 as u64),
    };
    let tensor = Argument::Tensor;
    let row_grid = grid_of(NAME, &[row_blocks, heads_q, batch])?;
    let mut push = |entry, grid: [u32; 3], threads: usize, shared_bytes, mut arguments: Vec<Argument>| {
        arguments.extend([sequences.clone(), geometry.argument()]);
        plan.launches.push(Launch { module, entry, grid, block: [threads as u32, 1, 1], shared_bytes, arguments });
    };
    let read = [TensorName::Q, TensorName::K, TensorName::V, TensorName::DO].map(tensor);
    let rows_arguments = [TensorName::O, TensorName::DO, TensorName::Lse].map(tensor);
    let rows_arguments = [&rows_arguments[..], &[row_sums.clone(), dq_sums.clone()]].concat();
    push("flash_bwd_rows", row_grid, 256, 0, rows_arguments);

    let keys_grid = grid_of(NAME, &[geometry.longest_kv().div_ceil(shape.keys), heads_kv, batch])?;
    let mut keys_arguments = [&read[..], &[row_sums.clone(), tensor(TensorName::DK), tensor(TensorName::DV)]].concat();
    if problem.deterministic {
        push("flash_bwd_keys_only", keys_grid, shape.threads(), keys_bytes, keys_arguments);
        let grid = grid_of(NAME, &[geometry.longest_q().div_ceil(shape.query_rows()), heads_q, batch])?;
        let arguments = [&read[..], &[row_sums, tensor(TensorName::DQ)]].concat();
        push("flash_bwd_queries", grid, 32 * shape.query_warps, queries_bytes, arguments);
    } else {
        keys_arguments.push(dq_sums.clone());
        push("flash_bwd_keys", keys_grid, shape.threads(), keys_bytes, keys_arguments);
        let arguments = vec![dq_sums, tensor(TensorName::DQ)];
        push("flash_bwd_sums", row_grid, 128, (2 * ROW_BLOCK * dims.0) as u32, arguments);
    }
    Ok(plan)
}

/// Every variant.
pub(super) fn modules() -> Vec<Module> {
    let each = |dims, dtype| Variant::ALL.map(|variant| Shape::of(dims, variant).module(dtype));
    DIMS.into_iter().flat_map(|dims| DTYPES.into_iter().flat_map(move |dtype| each(dims, dtype))).collect()
}
