//! FlashAttention-3 (Shah et al. 2024), forward: `kernels/cuda/flash3.cu`. Backward is planned by [`super::flash3_bwd`].

use super::geometry::{Geometry, TensorRows};
use super::plan::{Argument, CudaPlan, DeviceFacts, Launch, Module, TensorMap};
use super::schedule::{self, Cut};
use super::source::source;
use super::tensor_core::{self, DTYPES, Variant, dims_name};
use super::tiles::{self, TileClass, Tiles};
use super::{CudaKernel, Source};
use super::{flash_bwd, flash3_bwd};
use crate::kernel::KernelError;
use crate::problem::{AttentionProblem, Dtype, Layout, Phase};
use crate::tensor::TensorName;

const SOURCE: Source = source!("flash3.cu");

/// The compute capability that has wgmma.
pub(super) const CAPABILITY: u32 = 90;

/// Queries a tile, 64 for each warpgroup that computes; keys a tile; slots: tiles of K, and of V, that are in shared memory at a time.
const SIZES: &[&str] = &["rows", "keys", "slots"];

const fn class(name: &'static str, taken: &'static [usize; 3], others: &'static [&'static [usize]]) -> TileClass {
    TileClass::new(name, SIZES, taken, others)
}

/// What each class takes, and what `attnbench tune` measures beside it: what registers or shared memory do not hold is in
/// `kernels/cuda/TUNING.md`.
#[rustfmt::skip]
const CLASSES: &[TileClass] = &[
    class("d64 plain", &[128, 128, 2], &[
        &[128, 96, 3], &[128, 128, 3], &[128, 160, 2], &[128, 176, 2], &[192, 64, 3], &[192, 96, 2], &[192, 112, 2]]),
    class("d64 capped", &[128, 128, 2], &[&[128, 176, 2], &[192, 96, 2]]),
    class("d128 plain", &[128, 128, 2], &[&[128, 64, 3], &[128, 96, 2], &[128, 112, 2], &[128, 128, 3], &[192, 64, 2]]),
    class("d128 capped", &[128, 128, 2], &[&[128, 96, 2], &[192, 64, 2]]),
    class("d192:128 plain", &[128, 128, 2], &[&[128, 64, 3], &[128, 96, 2], &[128, 112, 2]]),
    class("d192:128 capped", &[128, 128, 2], &[]),
    class("d256 plain", &[128, 64, 2], &[]),
    class("d256 capped", &[128, 64, 2], &[]),
];

/// The compiled head dimensions: others are computed in the first that holds them.
const DIMS: [(usize, usize); 4] = [(64, 64), (128, 128), (192, 128), (256, 256)];

/// The kernel.
pub struct Flash3;

fn compiled_dims(dim_qk: usize, dim_v: usize) -> Option<(usize, usize)> {
    DIMS.into_iter().find(|&(qk, v)| dim_qk <= qk && dim_v <= v)
}

fn class_of(dims: (usize, usize), variant: Variant) -> &'static TileClass {
    tiles::class(CLASSES, &format!("{} {}", dims_name(dims), variant.name()))
}

/// How a block is cut for some head dimensions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) dims: (usize, usize),
    pub(super) rows: usize,
    pub(super) keys: usize,
    pub(super) slots: usize,
}

impl Shape {
    fn new(dims: (usize, usize), tiles: Tiles) -> Shape {
        let [rows, keys, slots] = tiles.sizes();
        Shape { dims, rows, keys, slots }
    }

    /// `Storage` of the source.
    fn shared_bytes(&self) -> u32 {
        let (dim_qk, dim_v) = self.dims;
        let barriers = 16 + 2 * self.slots * 16;
        (2 * (self.rows * dim_qk + self.slots * self.keys * (dim_qk + dim_v)) + barriers) as u32
    }

    /// O, the scores and, packed, the weights of a thread's rows, of which four lanes share one.
    fn numbers_a_thread(&self) -> usize {
        (2 * self.dims.1 + 3 * self.keys) / 4
    }

    /// `MATH_REGISTERS` of the source: what the warpgroup that copies leaves to those that compute.
    fn registers(&self) -> usize {
        if self.rows == 128 { 232 } else { 160 }
    }

    /// A warpgroup that copies, and one for every 64 rows.
    pub(super) fn threads(&self) -> u32 {
        128 * (1 + self.rows as u32 / 64)
    }

    pub(super) fn module(&self, source: Source, dtype: Dtype, variant: Variant) -> Module {
        let Shape { dims: (dim_qk, dim_v), rows, keys, slots } = *self;
        let numbers = [("DIM_QK", dim_qk), ("DIM_V", dim_v), ("ROWS", rows), ("KEYS", keys), ("SLOTS", slots)];
        tensor_core::module(source, dtype, &numbers, Some(variant))
    }
}

/// Refuses what the forward of kernels with these shapes does not do.
pub(super) fn supports_forward(kernel: &str, problem: &AttentionProblem) -> Result<(), KernelError> {
    let unsupported = |text: String| Err(KernelError::Unsupported(text));
    let (dim_qk, dim_v) = (problem.head_dim_qk, problem.head_dim_v);
    if compiled_dims(dim_qk, dim_v).is_none() {
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
        let class = self.tile_class(problem).expect("what it supports has a class");
        self.plan_tiles(problem, device, class.taken())
    }

    fn is_for(&self, compute_capability: u32) -> bool {
        compute_capability == CAPABILITY
    }

    fn modules(&self) -> Vec<Module> {
        let mut modules = Vec::new();
        for dims in DIMS {
            for dtype in DTYPES {
                let taken = |variant| Shape::new(dims, class_of(dims, variant).taken()).module(SOURCE, dtype, variant);
                modules.extend([Variant::Plain, Variant::Capped].map(taken));
            }
        }
        modules.extend(flash3_bwd::modules());
        modules.extend(flash_bwd::modules());
        modules
    }

    fn tile_classes(&self) -> Vec<&'static TileClass> {
        CLASSES.iter().chain(flash3_bwd::CLASSES).collect()
    }

    fn tile_class(&self, problem: &AttentionProblem) -> Option<&'static TileClass> {
        if problem.phase == Phase::Backward {
            return flash3_bwd::class_of(problem);
        }
        compiled_dims(problem.head_dim_qk, problem.head_dim_v).map(|dims| class_of(dims, Variant::of(problem)))
    }

    fn plan_tiles(
        &self,
        problem: &AttentionProblem,
        device: &DeviceFacts,
        tiles: Tiles,
    ) -> Result<CudaPlan, KernelError> {
        if problem.phase == Phase::Backward {
            return flash3_bwd::plan(problem, device, tiles);
        }
        plan_tiles("flash3", problem, device, tiles)
    }
}

/// A plan of any softmax over a band of contiguous keys; `kernel` names who asks.
pub(super) fn plan(kernel: &str, problem: &AttentionProblem, device: &DeviceFacts) -> Result<CudaPlan, KernelError> {
    plan_tiles(kernel, problem, device, class_of(dims_of(problem), Variant::of(problem)).taken())
}

fn dims_of(problem: &AttentionProblem) -> (usize, usize) {
    compiled_dims(problem.head_dim_qk, problem.head_dim_v).expect("supports() has checked")
}

fn plan_tiles(
    kernel: &str,
    problem: &AttentionProblem,
    device: &DeviceFacts,
    tiles: Tiles,
) -> Result<CudaPlan, KernelError> {
    device.require_exactly(kernel, CAPABILITY)?;
    let geometry = Geometry::new(problem);
    let shape = Shape::new(dims_of(problem), tiles);
    device.require_shared(kernel, shape.shared_bytes())?;
    tiles::require_registers(kernel, shape.numbers_a_thread(), shape.registers())?;
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
        for dims in DIMS {
            for tiles in [Variant::Plain, Variant::Capped].into_iter().flat_map(|v| class_of(dims, v).candidates()) {
                let shape = Shape::new(dims, tiles);
                assert!(shape.shared_bytes() <= DeviceFacts::H200.shared_bytes_per_block, "{shape:?}");
                assert!(shape.numbers_a_thread() < shape.registers(), "{shape:?}");
            }
        }
    }

    #[test]
    fn other_devices_are_refused() {
        let problem = AttentionProblem::softmax(Phase::Prefill, Dtype::Bf16, 1, (1, 1), (128, 128), 64);
        let error = Flash3.plan(&problem, &DeviceFacts::A100).expect_err("an A100 has no wgmma").to_string();
        assert!(error.contains("8.0") && error.contains("9.0 alone"), "{error}");
    }
}
