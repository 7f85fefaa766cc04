//! FlashAttention-2 (Dao 2023), forward: `kernels/cuda/flash.cu`. Backward is planned by [`super::flash_bwd`].

use super::flash_bwd;
use super::geometry::Geometry;
use super::plan::{Argument, CudaPlan, DeviceFacts, Launch, Module, grid_of};
use super::source::source;
use super::tensor_core::{self, DIMS, DTYPES, Variant, compiled_dims, element};
use super::tiles::{TileClass, Tiles};
use super::{CudaKernel, Source};
use crate::kernel::KernelError;
use crate::problem::{AttentionProblem, Dtype, Phase};
use crate::tensor::TensorName;

const SOURCE: Source = source!("flash.cu");

/// The kernel.
pub struct Flash;

/// How a block may be cut; warps share its rows in whole fragments of 16. `attnbench tune` measures them.
const CANDIDATES: &[Tiles] = &[
    Tiles(&[("rows", 64), ("keys", 32), ("warps", 4)]),
    Tiles(&[("rows", 64), ("keys", 64), ("warps", 4)]),
    Tiles(&[("rows", 64), ("keys", 128), ("warps", 4)]),
    Tiles(&[("rows", 128), ("keys", 32), ("warps", 4)]),
    Tiles(&[("rows", 128), ("keys", 64), ("warps", 4)]),
    Tiles(&[("rows", 128), ("keys", 32), ("warps", 8)]),
    Tiles(&[("rows", 128), ("keys", 64), ("warps", 8)]),
    Tiles(&[("rows", 128), ("keys", 128), ("warps", 8)]),
];

/// The candidate that is taken for some head dimensions: see the table in `flash.cu`.
fn taken(dims: (usize, usize), variant: Variant) -> Tiles {
    let (keys, warps) = match (dims.0, variant) {
        (_, Variant::General) => (32, 8),
        (64, _) | (96, Variant::Plain) => (64, 4),
        (96, Variant::Capped) | (128, Variant::Plain) => (32, 4),
        _ => (64, 8),
    };
    let is_it = |tiles: &&Tiles| (tiles.size("rows"), tiles.size("keys"), tiles.size("warps")) == (128, keys, warps);
    *CANDIDATES.iter().find(is_it).expect("what is taken is a candidate")
}

/// A block for some head dimensions.
#[derive(Clone, Copy, Debug)]
struct Shape {
    dims: (usize, usize),
    rows: usize,
    keys: usize,
    warps: usize,
}

impl Shape {
    fn new(dims: (usize, usize), tiles: Tiles) -> Shape {
        Shape { dims, rows: tiles.size("rows"), keys: tiles.size("keys"), warps: tiles.size("warps") }
    }

    fn of(dims: (usize, usize), variant: Variant) -> Shape {
        Shape::new(dims, taken(dims, variant))
    }

    fn shared_bytes(&self) -> u32 {
        let (dim_qk, dim_v) = self.dims;
        (2 * (self.rows * dim_qk.max(dim_v) + self.keys * (dim_qk + dim_v))) as u32
    }

    fn module(&self, dtype: Dtype, variant: Variant) -> Module {
        Module {
            source: SOURCE,
            defines: vec![
                ("ELEMENT", element(dtype).to_string()),
                ("DIM_QK", self.dims.0.to_string()),
                ("DIM_V", self.dims.1.to_string()),
                ("ROWS", self.rows.to_string()),
                ("KEYS", self.keys.to_string()),
                ("WARPS", self.warps.to_string()),
                variant.define(),
            ],
        }
    }
}

/// A plan of any softmax over a band of contiguous keys; `kernel` names who asks.
pub(super) fn plan(kernel: &str, problem: &AttentionProblem, device: &DeviceFacts) -> Result<CudaPlan, KernelError> {
    let geometry = Geometry::new(problem);
    let mut plan = CudaPlan::default();
    let tensors = [Argument::Tensor(TensorName::K), Argument::Tensor(TensorName::V)];
    push(&mut plan, kernel, &geometry, problem, tensors, device)?;
    Ok(plan)
}

/// Adds the launch of `flash` over these keys and values, with the problem's dtype, biases and sinks.
pub(super) fn push(
    plan: &mut CudaPlan,
    kernel: &str,
    geometry: &Geometry,
    problem: &AttentionProblem,
    tensors: [Argument; 2],
    device: &DeviceFacts,
) -> Result<(), KernelError> {
    let dims = compiled_dims(geometry.dim_qk, geometry.dim_v).ok_or_else(|| too_wide(kernel, geometry))?;
    push_shape(plan, kernel, geometry, problem, tensors, device, Shape::of(dims, Variant::of(problem)))
}

fn push_shape(
    plan: &mut CudaPlan,
    kernel: &str,
    geometry: &Geometry,
    problem: &AttentionProblem,
    [k, v]: [Argument; 2],
    device: &DeviceFacts,
    shape: Shape,
) -> Result<(), KernelError> {
    device.require_capability(kernel, 80)?;
    device.require_shared(kernel, shape.shared_bytes())?;
    let module = plan.module(shape.module(problem.dtype, Variant::of(problem)));
    let sequences = geometry.sequences(plan);
    let [bool_bias, additive_bias] = tensor_core::biases(problem);
    let tiles = geometry.longest_q().div_ceil(shape.rows);
    plan.launches.push(Launch {
        module,
        entry: "flash",
        grid: grid_of(kernel, &[tiles, geometry.heads_q, geometry.batch()])?,
        block: [32 * shape.warps as u32, 1, 1],
        shared_bytes: shape.shared_bytes(),
        arguments: vec![
            Argument::Tensor(TensorName::Q),
            k,
            v,
            Argument::Tensor(TensorName::O),
            Argument::OptionalTensor(TensorName::Lse),
            tensor_core::sinks(problem),
            bool_bias,
            additive_bias,
            sequences,
            geometry.argument(),
        ],
    });
    Ok(())
}

fn too_wide(kernel: &str, geometry: &Geometry) -> KernelError {
    let (dim_qk, dim_v) = (geometry.dim_qk, geometry.dim_v);
    KernelError::Unsupported(format!("head dimensions {dim_qk}:{dim_v}: {kernel} has up to 256:256"))
}

impl CudaKernel for Flash {
    fn name(&self) -> &'static str {
        "flash"
    }

    fn summary(&self) -> &'static str {
        "online softmax over key tiles on tensor cores, parallel over queries, and its gradients (FlashAttention-2, Dao 2023)"
    }

    fn supports(&self, problem: &AttentionProblem) -> Result<(), KernelError> {
        tensor_core::has_contiguous_band("flash", problem)?;
        tensor_core::supports("flash", problem)?;
        compiled_dims(problem.head_dim_qk, problem.head_dim_v)
            .ok_or_else(|| too_wide("flash", &Geometry::new(problem)))?;
        if problem.phase == Phase::Backward { flash_bwd::supports(problem) } else { Ok(()) }
    }

    fn plan(&self, problem: &AttentionProblem, device: &DeviceFacts) -> Result<CudaPlan, KernelError> {
        self.supports(problem)?;
        if problem.phase == Phase::Backward {
            return flash_bwd::plan(problem, device);
        }
        plan("flash", problem, device)
    }

    fn modules(&self) -> Vec<Module> {
        modules().into_iter().chain(flash_bwd::modules()).collect()
    }

    fn candidates(&self) -> &'static [Tiles] {
        CANDIDATES
    }

    fn tile_class(&self, problem: &AttentionProblem) -> Option<TileClass> {
        let dims = compiled_dims(problem.head_dim_qk, problem.head_dim_v)?;
        let variant = Variant::of(problem);
        let dim = if dims.0 == dims.1 { format!("d{}", dims.0) } else { format!("d{}:{}", dims.0, dims.1) };
        Some(TileClass { name: format!("{dim} {}", variant.name()), taken: taken(dims, variant) })
    }

    fn plan_with(
        &self,
        problem: &AttentionProblem,
        device: &DeviceFacts,
        tiles: Tiles,
    ) -> Result<CudaPlan, KernelError> {
        self.supports(problem)?;
        let geometry = Geometry::new(problem);
        let dims = compiled_dims(geometry.dim_qk, geometry.dim_v).ok_or_else(|| too_wide("flash", &geometry))?;
        let mut plan = CudaPlan::default();
        let tensors = [Argument::Tensor(TensorName::K), Argument::Tensor(TensorName::V)];
        push_shape(&mut plan, "flash", &geometry, problem, tensors, device, Shape::new(dims, tiles))?;
        Ok(plan)
    }
}

/// Every variant.
pub(super) fn modules() -> Vec<Module> {
    let mut modules = Vec::new();
    for dims in DIMS {
        for dtype in DTYPES {
            for variant in Variant::ALL {
                modules.push(Shape::of(dims, variant).module(dtype, variant));
            }
        }
    }
    modules
}
