//! FlashAttention-3 (Shah et al. 2024), forward: `kernels/cuda/flash3.cu`. Backward is planned by [`super::flash3_bwd`].

use super::geometry::{Geometry, TensorRows};
use super::plan::{Argument, CudaPlan, DeviceFacts, Launch, Module, TensorMap};
use super::schedule::{self, Cut};
use super::source::source;
use super::tensor_core::{self, DTYPES, Variant, element};
use super::{CudaKernel, Source};
use super::{flash_bwd, flash3_bwd};
use crate::kernel::KernelError;
use crate::problem::{AttentionProblem, Dtype, Layout, Phase};
use crate::tensor::TensorName;

const SOURCE: Source = source!("flash3.cu");

/// The compute capability that has wgmma.
pub(super) const CAPABILITY: u32 = 90;

/// Tiles of K, and of V, that are in shared memory at a time.
const STAGES: usize = 2;

/// How a block is cut: (d_qk, d_v), rows, keys. Others are computed in the first that holds them.
pub(super) const SHAPES: [Shape; 4] = [
    Shape { dims: (64, 64), rows: 128, keys: 128 },
    Shape { dims: (128, 128), rows: 128, keys: 128 },
    Shape { dims: (192, 128), rows: 128, keys: 128 },
    Shape { dims: (256, 256), rows: 128, keys: 64 },
];

/// The kernel.
pub struct Flash3;

#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) dims: (usize, usize),
    pub(super) rows: usize,
    pub(super) keys: usize,
}

impl Shape {
    pub(super) fn of(dim_qk: usize, dim_v: usize) -> Option<Shape> {
        SHAPES.into_iter().find(|shape| dim_qk <= shape.dims.0 && dim_v <= shape.dims.1)
    }

    /// `Storage` of the source.
    fn shared_bytes(&self) -> u32 {
        let (dim_qk, dim_v) = self.dims;
        let barriers = 16 + 2 * STAGES * 16;
        (2 * (self.rows * dim_qk + STAGES * self.keys * (dim_qk + dim_v)) + barriers) as u32
    }

    /// A warpgroup that copies, and one for every 64 rows.
    pub(super) fn threads(&self) -> u32 {
        128 * (1 + self.rows as u32 / 64)
    }

    pub(super) fn module(&self, source: Source, dtype: Dtype, variant: Variant) -> Module {
        Module {
            source,
            defines: vec![
                ("ELEMENT", element(dtype).to_string()),
                ("DIM_QK", self.dims.0.to_string()),
                ("DIM_V", self.dims.1.to_string()),
                ("ROWS", self.rows.to_string()),
                ("KEYS", self.keys.to_string()),
                variant.define(),
            ],
        }
    }
}

/// Refuses what the forward of kernels with these shapes does not do.
pub(super) fn supports_forward(kernel: &str, problem: &AttentionProblem) -> Result<(), KernelError> {
    let unsupported = |text: String| Err(KernelError::Unsupported(text));
    let (dim_qk, dim_v) = (problem.head_dim_qk, problem.head_dim_v);
    if Shape::of(dim_qk, dim_v).is_none() {
        return unsupported(format!("head dimensions {dim_qk}:{dim_v}: {kernel} has up to 256:256"));
    }
    if Variant::of(problem) == Variant::General {
        return unsupported(
            "a bias, a scale that is not positive, or head dimensions that are no multiples of 8: flash has those"
                .into(),
        );
    }
    Ok(())
}

/// Whether sequences are told apart by their first token alone, so that a map sees all tokens in one row.
pub(super) fn is_flat(problem: &AttentionProblem, sequences: &Argument) -> bool {
    problem.layout == Layout::Thd && *sequences != Argument::Null
}

/// A map over (column, head, token, sequence) of a tensor of queries or keys.
pub(super) fn map(
    tensor: TensorName,
    rows: &TensorRows,
    lengths: &[usize],
    [heads, dim]: [usize; 2],
    is_flat: bool,
    tile: [usize; 2],
) -> Argument {
    let [sequence, head, token] = rows.strides;
    let (tokens, sequences) = match is_flat {
        true => (lengths.iter().sum::<usize>(), 1),
        false => (lengths.iter().copied().max().unwrap_or(0), lengths.len()),
    };
    // The driver takes no stride of 0, which a single sequence has; any will do.
    let bytes = |stride: usize| (2 * stride as u64).max(16);
    Argument::TensorMap(TensorMap {
        tensor,
        element_bytes: 2,
        sizes: [dim, heads, tokens, sequences].map(|size| size.max(1) as u32).to_vec(),
        strides_bytes: vec![bytes(head), bytes(token), bytes(if is_flat { 0 } else { sequence })],
        tile: vec![64, tile[0] as u32, tile[1] as u32, 1],
        swizzle_bytes: 128,
    })
}

impl CudaKernel for Flash3 {
    fn name(&self) -> &'static str {
        "flash3"
    }

    fn summary(&self) -> &'static str {
        "copies, products and softmax overlap: TMA, wgmma, warpgroups in turns (FlashAttention-3, Shah et al. 2024)"
    }

    fn supports(&self, problem: &AttentionProblem) -> Result<(), KernelError> {
        tensor_core::has_contiguous_band("flash3", problem)?;
        tensor_core::supports("flash3", problem)?;
        if problem.phase == Phase::Backward {
            return flash3_bwd::supports(problem);
        }
        supports_forward("flash3", problem)
    }

    fn plan(&self, problem: &AttentionProblem, device: &DeviceFacts) -> Result<CudaPlan, KernelError> {
        self.supports(problem)?;
        if problem.phase == Phase::Backward {
            return flash3_bwd::plan(problem, device);
        }
        plan("flash3", problem, device)
    }

    fn is_for(&self, compute_capability: u32) -> bool {
        compute_capability == CAPABILITY
    }

    fn modules(&self) -> Vec<Module> {
        let mut modules = Vec::new();
        for shape in SHAPES {
            for dtype in DTYPES {
                modules.extend([Variant::Plain, Variant::Capped].map(|variant| shape.module(SOURCE, dtype, variant)));
            }
        }
        modules.extend(flash3_bwd::modules());
        modules.extend(flash_bwd::modules());
        modules
    }
}

/// A plan of any softmax over a band of contiguous keys; `kernel` names who asks.
pub(super) fn plan(kernel: &str, problem: &AttentionProblem, device: &DeviceFacts) -> Result<CudaPlan, KernelError> {
    device.require_exactly(kernel, CAPABILITY)?;
    let geometry = Geometry::new(problem);
    let shape = Shape::of(geometry.dim_qk, geometry.dim_v).expect("supports() has checked");
    device.require_shared(kernel, shape.shared_bytes())?;
    let packed = schedule::packed_heads(&geometry, shape.rows);
    let works = schedule::works(kernel, &geometry, Cut { rows: shape.rows, packed, keys: shape.keys })?;
    let blocks = works.len().min(device.multiprocessors as usize);
    let mut plan = CudaPlan::default();
    let module = plan.module(shape.module(SOURCE, problem.dtype, Variant::of(problem)));
    let sequences = geometry.sequences(&mut plan);
    let [works, starts] = schedule::push(&mut plan, &schedule::deal(&works, blocks));
    let is_flat = is_flat(problem, &sequences);
    let [heads_q, heads_kv] = [geometry.heads_q, geometry.heads_kv];
    let keys = |tensor, rows, dim| map(tensor, rows, &geometry.lengths_kv, [heads_kv, dim], is_flat, [1, shape.keys]);
    let tile = [packed, shape.rows / packed];
    plan.launches.push(Launch {
        module,
        entry: "flash3",
        grid: [blocks as u32, 1, 1],
        block: [shape.threads(), 1, 1],
        shared_bytes: shape.shared_bytes(),
        arguments: vec![
            map(TensorName::Q, &geometry.q, &geometry.lengths_q, [heads_q, geometry.dim_qk], is_flat, tile),
            keys(TensorName::K, &geometry.k, geometry.dim_qk),
            keys(TensorName::V, &geometry.v, geometry.dim_v),
            Argument::Tensor(TensorName::O),
            Argument::OptionalTensor(TensorName::Lse),
            tensor_core::sinks(problem),
            sequences,
            geometry.argument(),
            works,
            starts,
            Argument::I32(packed.ilog2() as i32),
            Argument::I32(i32::from(is_flat)),
        ],
    });
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_fits_a_block() {
        for shape in SHAPES {
            assert!(shape.shared_bytes() <= DeviceFacts::H200.shared_bytes_per_block, "{shape:?}");
        }
    }

    #[test]
    fn other_devices_are_refused() {
        let problem = AttentionProblem::softmax(Phase::Prefill, Dtype::Bf16, 1, (1, 1), (128, 128), 64);
        let error = Flash3.plan(&problem, &DeviceFacts::A100).expect_err("an A100 has no wgmma").to_string();
        assert!(error.contains("8.0") && error.contains("9.0 alone"), "{error}");
    }
}
