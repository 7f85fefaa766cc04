//! FlashAttention-2 (Dao 2023), forward: `kernels/cuda/flash.cu`. Backward is planned by [`super::flash_bwd`].

use super::flash_bwd;
use super::geometry::Geometry;
use super::plan::{Argument, CudaPlan, DeviceFacts, Launch, Module, grid_of};
use super::source::source;
use super::tensor_core::{self, DIMS, DTYPES, Variant, compiled_dims, dims_name};
use super::tiles::{self, MOST_REGISTERS, TileClass, Tiles};
use super::{CudaKernel, Source};
use crate::kernel::KernelError;
use crate::problem::{AttentionProblem, Dtype, Phase};
use crate::tensor::TensorName;

const SOURCE: Source = source!("flash.cu");

/// The kernel.
pub struct Flash;

/// What a tile has: queries, keys, and warps, which share its rows in whole fragments of 16.
const SIZES: &[&str] = &["rows", "keys", "warps"];

const fn class(name: &'static str, taken: &'static [usize; 3], others: &'static [&'static [usize]]) -> TileClass {
    TileClass::new(name, SIZES, taken, others)
}

/// What each class takes, and what `attnbench tune` measures beside it: what neither sm_80 nor sm_90a can hold is in
/// `kernels/cuda/TUNING.md`. The general variant is made to be correct, not fast.
#[rustfmt::skip]
const CLASSES: &[TileClass] = &[
    class("d64 plain", &[128, 64, 4], &[&[64, 64, 4], &[64, 128, 4], &[128, 32, 4], &[128, 64, 8], &[128, 128, 8]]),
    class("d64 capped", &[128, 64, 4], &[&[128, 64, 8]]),
    class("d64 general", &[128, 32, 8], &[]),
    class("d96 plain", &[128, 64, 4], &[&[64, 64, 4], &[128, 32, 4], &[128, 64, 8]]),
    class("d96 capped", &[128, 32, 4], &[&[128, 64, 8]]),
    class("d96 general", &[128, 32, 8], &[]),
    class("d128 plain", &[128, 32, 4], &[&[64, 32, 4], &[64, 64, 4], &[64, 128, 4], &[128, 64, 8], &[128, 128, 8]]),
    class("d128 capped", &[128, 64, 8], &[&[64, 64, 4], &[128, 128, 8]]),
    class("d128 general", &[128, 32, 8], &[]),
    class("d192:128 plain", &[128, 64, 8], &[&[64, 64, 4], &[128, 32, 8]]),
    class("d192:128 capped", &[128, 64, 8], &[]),
    class("d192:128 general", &[128, 32, 8], &[]),
    class("d192 plain", &[128, 64, 8], &[&[64, 64, 4], &[128, 32, 8]]),
    class("d192 capped", &[128, 64, 8], &[]),
    class("d192 general", &[128, 32, 8], &[]),
    class("d256 plain", &[128, 64, 8], &[&[64, 32, 4], &[64, 64, 4], &[128, 32, 8]]),
    class("d256 capped", &[128, 64, 8], &[&[64, 64, 4]]),
    class("d256 general", &[128, 32, 8], &[]),
];

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
        let [rows, keys, warps] = tiles.sizes();
        Shape { dims, rows, keys, warps }
    }

    /// What is taken.
    fn of(dims: (usize, usize), variant: Variant) -> Shape {
        Shape::new(dims, class_of(dims, variant).taken())
    }

    fn shared_bytes(&self) -> u32 {
        let (dim_qk, dim_v) = self.dims;
        (2 * (self.rows * dim_qk.max(dim_v) + self.keys * (dim_qk + dim_v))) as u32
    }

    /// O and the scores of a thread's rows, of which four lanes share one.
    fn numbers_a_thread(&self) -> usize {
        self.rows / self.warps * (self.dims.1 + self.keys) / 32
    }

    fn module(&self, dtype: Dtype, variant: Variant) -> Module {
        let Shape { dims: (dim_qk, dim_v), rows, keys, warps } = *self;
        let numbers = [("DIM_QK", dim_qk), ("DIM_V", dim_v), ("ROWS", rows), ("KEYS", keys), ("WARPS", warps)];
        tensor_core::module(SOURCE, dtype, &numbers, Some(variant))
    }
}

fn class_of(dims: (usize, usize), variant: Variant) -> &'static TileClass {
    tiles::class(CLASSES, &format!("{} {}", dims_name(dims), variant.name()))
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
    tiles::require_registers(kernel, shape.numbers_a_thread(), MOST_REGISTERS)?;
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
        let class = self.tile_class(problem).expect("what it supports has a class");
        self.plan_tiles(problem, device, class.taken())
    }

    fn modules(&self) -> Vec<Module> {
        modules().into_iter().chain(flash_bwd::modules()).collect()
    }

    fn tile_classes(&self) -> Vec<&'static TileClass> {
        CLASSES.iter().chain(flash_bwd::CLASSES).collect()
    }

    fn tile_class(&self, problem: &AttentionProblem) -> Option<&'static TileClass> {
        let dims = compiled_dims(problem.head_dim_qk, problem.head_dim_v)?;
        match problem.phase {
            Phase::Backward => Some(flash_bwd::class_of(problem, dims)),
            _ => Some(class_of(dims, Variant::of(problem))),
        }
    }

    fn plan_tiles(
        &self,
        problem: &AttentionProblem,
        device: &DeviceFacts,
        tiles: Tiles,
    ) -> Result<CudaPlan, KernelError> {
        if problem.phase == Phase::Backward {
            return flash_bwd::plan(problem, device, tiles);
        }
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
