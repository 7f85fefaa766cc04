//! FlashAttention-3, backward (Shah et al. 2024): `kernels/cuda/flash3_bwd.cu` between the kernels of `flash_bwd.cu`.

use super::Source;
use super::flash_bwd::{self, plan_with, variant_of};
use super::flash3::{CAPABILITY, is_flat, map};
use super::geometry::Geometry;
use super::plan::{Argument, CudaPlan, DeviceFacts, Launch, Module, grid_of};
use super::source::source;
use super::tensor_core::{self, DTYPES, Variant};
use super::tiles::{self, TileClass, Tiles};
use crate::kernel::KernelError;
use crate::problem::{AttentionProblem, Dtype};
use crate::tensor::TensorName;

const SOURCE: Source = source!("flash3_bwd.cu");

/// Queries a tile, keys a block, and slots: tiles of Q, and of dO, that are in shared memory at a time.
const SIZES: &[&str] = &["rows", "keys", "slots"];

/// Tiles of dS in shared memory.
const DS_SLOTS: usize = 2;

/// What each class takes, and what `attnbench tune` measures beside it. Two warpgroups of 64 keys each share dQ as 64 x 64, which
/// leaves no other rows and keys to a head dimension.
#[rustfmt::skip]
pub(super) const CLASSES: &[TileClass] = &[
    TileClass::new("backward d64", SIZES, &[128, 128, 2], &[&[128, 128, 3]]),
    TileClass::new("backward d128", SIZES, &[64, 128, 2], &[&[64, 128, 3]]),
];

/// The compiled head dimensions: others are computed in the first that holds them.
const DIMS: [usize; 2] = [64, 128];

/// How a block is cut.
#[derive(Clone, Copy, Debug)]
struct Shape {
    dim: usize,
    rows: usize,
    keys: usize,
    slots: usize,
}

fn compiled_dim(problem: &AttentionProblem) -> Option<usize> {
    DIMS.into_iter().find(|&dim| problem.head_dim_qk.max(problem.head_dim_v) <= dim)
}

/// The class of a problem that `flash3` computes the gradients of.
pub(super) fn class_of(problem: &AttentionProblem) -> Option<&'static TileClass> {
    compiled_dim(problem).map(class)
}

fn class(dim: usize) -> &'static TileClass {
    tiles::class(CLASSES, &format!("backward d{dim}"))
}

impl Shape {
    fn new(dim: usize, tiles: Tiles) -> Shape {
        let [rows, keys, slots] = tiles.sizes();
        Shape { dim, rows, keys, slots }
    }

    /// A warpgroup that copies, and one for every 64 keys.
    fn threads(&self) -> u32 {
        128 * (1 + self.keys as u32 / 64)
    }

    /// `Storage` of the source.
    fn shared_bytes(&self) -> u32 {
        let tiles = 2 * 2 * self.dim * (self.keys + self.slots * self.rows);
        let (gradients, sums, barriers) =
            (DS_SLOTS * 2 * self.keys * self.rows, self.slots * 8 * self.rows, 16 + 3 * self.slots * 16);
        (tiles + gradients + sums + barriers) as u32
    }

    fn module(&self, dtype: Dtype) -> Module {
        let Shape { dim, rows, keys, slots } = *self;
        let numbers = [("DIM_QK", dim), ("DIM_V", dim), ("ROWS", rows), ("KEYS", keys), ("SLOTS", slots)];
        tensor_core::module(SOURCE, dtype, &numbers, None)
    }
}

/// Whether `flash3` computes the gradients of a problem that it computes the forward of.
pub(super) fn supports(problem: &AttentionProblem) -> Result<(), KernelError> {
    let unsupported = |text: String| Err(KernelError::Unsupported(text));
    super::flash_bwd::supports(problem)?;
    if compiled_dim(problem).is_none() {
        let (dim_qk, dim_v) = (problem.head_dim_qk, problem.head_dim_v);
        return unsupported(format!(
            "head dimensions {dim_qk}:{dim_v}: flash3's backward has up to 128:128 (flash's has up to 256:256)"
        ));
    }
    if variant_of(problem) != Variant::Plain {
        return unsupported(
            "a softcap, or head dimensions that are no multiples of 8: flash's backward has those, flash3's does not"
                .into(),
        );
    }
    Ok(())
}

/// A plan of a backward problem with tiles of its class.
pub(super) fn plan(problem: &AttentionProblem, device: &DeviceFacts, tiles: Tiles) -> Result<CudaPlan, KernelError> {
    const NAME: &str = "flash3's backward";
    device.require_exactly(NAME, CAPABILITY)?;
    let shape = Shape::new(compiled_dim(problem).expect("supports() has checked"), tiles);
    device.require_shared(NAME, shape.shared_bytes())?;
    let around = flash_bwd::Shape::of((shape.dim, shape.dim), variant_of(problem));
    plan_with(NAME, problem, around, device, |plan, _, sequences, sums| {
        let geometry = Geometry::new(problem);
        let module = plan.module(shape.module(problem.dtype));
        let is_flat = is_flat(problem, &sequences);
        let queries = |tensor, rows, dim| {
            map(tensor, rows, &geometry.lengths_q, [geometry.heads_q, dim], is_flat, [1, shape.rows])
        };
        let keys = |tensor, rows, dim| {
            map(tensor, rows, &geometry.lengths_kv, [geometry.heads_kv, dim], is_flat, [1, shape.keys])
        };
        let mut arguments = vec![
            queries(TensorName::Q, &geometry.q, geometry.dim_qk),
            keys(TensorName::K, &geometry.k, geometry.dim_qk),
            keys(TensorName::V, &geometry.v, geometry.dim_v),
            queries(TensorName::DO, &geometry.o, geometry.dim_v),
            sums.rows,
            Argument::Tensor(TensorName::DK),
            Argument::Tensor(TensorName::DV),
        ];
        let entry = if sums.dq == Argument::Null { "flash3_bwd_keys_only" } else { "flash3_bwd_keys" };
        if sums.dq != Argument::Null {
            arguments.push(sums.dq);
        }
        arguments.extend([sequences, geometry.argument(), Argument::I32(i32::from(is_flat))]);
        let tiles = geometry.longest_kv().div_ceil(shape.keys);
        plan.launches.push(Launch {
            module,
            entry,
            grid: grid_of(NAME, &[tiles, geometry.heads_kv, geometry.batch()])?,
            block: [shape.threads(), 1, 1],
            shared_bytes: shape.shared_bytes(),
            arguments,
        });
        Ok(())
    })
}

/// Every module of its own.
pub(super) fn modules() -> Vec<Module> {
    let of = |dim| DTYPES.map(|dtype| Shape::new(dim, class(dim).taken()).module(dtype));
    DIMS.into_iter().flat_map(of).collect()
}
