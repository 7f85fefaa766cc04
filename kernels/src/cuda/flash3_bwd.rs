//! FlashAttention-3, backward (Shah et al. 2024): `kernels/cuda/flash3_bwd.cu` between the kernels of `flash_bwd.cu`.

use super::Source;
use super::flash_bwd::{plan_with, variant_of};
use super::flash3::{CAPABILITY, is_flat, map};
use super::geometry::Geometry;
use super::plan::{Argument, CudaPlan, DeviceFacts, Launch, Module, grid_of};
use super::source::source;
use super::tensor_core::{DTYPES, Variant, element};
use crate::kernel::KernelError;
use crate::problem::{AttentionProblem, Dtype};
use crate::tensor::TensorName;

const SOURCE: Source = source!("flash3_bwd.cu");

/// Tiles of Q, and of dO, that are in shared memory at a time; and of dS.
const STAGES: usize = 2;

/// How a block is cut: head dimension, queries a tile, keys a block.
#[derive(Clone, Copy, Debug)]
struct Shape {
    dim: usize,
    rows: usize,
    keys: usize,
}

const SHAPES: [Shape; 2] = [Shape { dim: 64, rows: 128, keys: 128 }, Shape { dim: 128, rows: 64, keys: 128 }];

impl Shape {
    fn of(problem: &AttentionProblem) -> Option<Shape> {
        SHAPES.into_iter().find(|shape| problem.head_dim_qk.max(problem.head_dim_v) <= shape.dim)
    }

    /// A warpgroup that copies, and one for every 64 keys.
    fn threads(&self) -> u32 {
        128 * (1 + self.keys as u32 / 64)
    }

    /// `Storage` of the source.
    fn shared_bytes(&self) -> u32 {
        let tiles = 2 * 2 * self.dim * (self.keys + STAGES * self.rows);
        let (gradients, sums, barriers) =
            (STAGES * 2 * self.keys * self.rows, STAGES * 8 * self.rows, 16 + 3 * STAGES * 16);
        (tiles + gradients + sums + barriers) as u32
    }

    fn module(&self, dtype: Dtype) -> Module {
        let numbers = [("DIM_QK", self.dim), ("DIM_V", self.dim), ("ROWS", self.rows), ("KEYS", self.keys)];
        let mut defines = vec![("ELEMENT", element(dtype).to_string())];
        defines.extend(numbers.map(|(name, value)| (name, value.to_string())));
        Module { source: SOURCE, defines }
    }
}

/// Whether `flash3` computes the gradients of a problem that it computes the forward of.
pub(super) fn supports(problem: &AttentionProblem) -> Result<(), KernelError> {
    let unsupported = |text: String| Err(KernelError::Unsupported(text));
    super::flash_bwd::supports(problem)?;
    if Shape::of(problem).is_none() {
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

/// A plan of a backward problem.
pub(super) fn plan(problem: &AttentionProblem, device: &DeviceFacts) -> Result<CudaPlan, KernelError> {
    const NAME: &str = "flash3's backward";
    device.require_exactly(NAME, CAPABILITY)?;
    let shape = Shape::of(problem).expect("supports() has checked");
    device.require_shared(NAME, shape.shared_bytes())?;
    plan_with(NAME, problem, (shape.dim, shape.dim), device, |plan, _, sequences, sums| {
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
    SHAPES.iter().flat_map(|shape| DTYPES.map(|dtype| shape.module(dtype))).collect()
}
