//! Multi-head latent attention (DeepSeek-V2): absorbed decode in `kernels/cuda/mla.cu` and, for compute capability 9.0,
//! `kernels/cuda/mla3.cu`; expanded prefill in `flash` and `flash3`.

use super::decode::{push_combine, push_partials};
use super::flash3::{self, Flash3};
use super::geometry::Geometry;
use super::plan::{Argument, CudaPlan, DeviceFacts, Launch, Module, TensorMap, grid_of};
use super::shares::{ShareOut, share_out};
use super::source::source;
use super::tensor_core::{self, DTYPES, compiled_dims};
use super::tiles::{TileClass, Tiles};
use super::{CudaKernel, Source, flash};
use crate::input::tensor_shape;
use crate::kernel::KernelError;
use crate::problem::{AttentionProblem, Dtype, KvLayout, Mechanism, Pattern, Phase};
use crate::tensor::TensorName;

const SOURCE: Source = source!("mla.cu");

/// The widest latent row and value that the kernel is compiled for.
const DIM_QK: usize = 576;
const DIM_V: usize = 512;
/// Rows of a block: heads times queries.
const ROWS: usize = 64;
const THREADS: u32 = 256;

/// The source for compute capability 9.0, and its threads.
const SOURCE_90: Source = source!("mla3.cu");
const CAPABILITY_90: u32 = 90;
const THREADS_90: u32 = 384;

/// Keys a tile; rows of a copy at most, where the copy engine brings them; keys that a share may always have.
const SIZES: &[&str] = &["keys", "box", "share"];

/// What decode takes, and what `attnbench tune` measures beside it. A block has a multiprocessor to itself, and as many slots of
/// latent rows as its shared memory has room for.
#[rustfmt::skip]
const CLASSES: &[TileClass] = &[
    TileClass::new("decode", SIZES, &[64, 64, 64], &[&[32, 32, 64], &[64, 32, 64], &[64, 16, 64], &[64, 64, 256], &[64, 64, 1024]]),
];

/// How a block is cut, and in which source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    is_90: bool,
    keys: usize,
    box_rows: usize,
    least_share_keys: usize,
    slots: usize,
}

impl Shape {
    /// As many slots as such a device has room for, at least one.
    fn new(is_90: bool, tiles: Tiles, device: &DeviceFacts) -> Shape {
        let [keys, box_rows, least_share_keys] = tiles.sizes();
        let with = |slots| Shape { is_90, keys, box_rows, least_share_keys, slots };
        let fits = |shape: &Shape| shape.shared_bytes() <= device.shared_bytes_per_block;
        (1..=MOST_SLOTS).rev().map(with).find(fits).unwrap_or(with(1))
    }

    /// Q, the slots of latent rows, the weights, two numbers a row; for compute capability 9.0 also the barriers of two rings of
    /// slots and of one of one, and weights in a whole panel.
    fn shared_bytes(&self) -> u32 {
        let weights = if self.is_90 { ROWS * 64 } else { ROWS * self.keys };
        let barriers = if self.is_90 { (2 * self.slots + 1) * 16 } else { 0 };
        (2 * (ROWS * DIM_QK + self.slots * self.keys * DIM_QK + weights) + 8 * ROWS + barriers) as u32
    }

    fn module(&self, dtype: Dtype) -> Module {
        let source = if self.is_90 { SOURCE_90 } else { SOURCE };
        tensor_core::module(source, dtype, &[("KEYS", self.keys), ("SLOTS", self.slots)], None)
    }
}

/// Slots of latent rows at most.
const MOST_SLOTS: usize = 4;

/// The kernel.
pub struct Mla;

/// All latent rows of the cache as one matrix, whatever its layout; a copy brings 64 columns of as many rows as surely lie in
/// one page, up to `most`. None where rows are more than a coordinate can number.
fn latent_map(problem: &AttentionProblem, most: usize) -> Option<(TensorMap, usize, usize)> {
    let dim = problem.head_dim_qk;
    let rows = tensor_shape(problem, TensorName::K).1.iter().product::<usize>() / dim;
    let box_rows = match problem.kv_layout {
        KvLayout::Contiguous => most,
        KvLayout::Paged { page_size } => 1 << page_size.trailing_zeros().min(most.ilog2()),
    };
    let map = TensorMap {
        tensor: TensorName::K,
        element_bytes: problem.dtype_kv.bytes() as u32,
        sizes: vec![dim as u32, rows as u32],
        strides_bytes: vec![(dim * problem.dtype_kv.bytes()) as u64],
        tile: vec![64, box_rows as u32],
        swizzle_bytes: 128,
    };
    i32::try_from(rows).is_ok().then_some((map, rows, box_rows))
}

impl CudaKernel for Mla {
    fn name(&self) -> &'static str {
        "mla"
    }

    fn summary(&self) -> &'static str {
        "multi-head latent attention: expanded prefill, absorbed decode on the latent cache (DeepSeek-V2)"
    }

    fn supports(&self, problem: &AttentionProblem) -> Result<(), KernelError> {
        let unsupported = |text: String| Err(KernelError::Unsupported(text));
        if !matches!(problem.mechanism, Mechanism::Mla { .. }) {
            return unsupported(format!("mechanism {}: mla computes mla only", problem.mechanism.name()));
        }
        if !matches!(problem.phase, Phase::Prefill | Phase::Decode) || problem.pattern != Pattern::Full {
            return unsupported(
                "anything but prefill and decode with pattern full: mla has these, causal or not".into(),
            );
        }
        if problem.softcap.is_some() {
            return unsupported("a softcap: mla has causal masks only".into());
        }
        tensor_core::supports("mla", problem)?;
        tensor_core::is_plain("mla", problem)?;
        let (dim_qk, dim_v) = (problem.head_dim_qk, problem.head_dim_v);
        if problem.is_absorbed_mla() {
            if dim_qk > DIM_QK || dim_v > DIM_V {
                return unsupported(format!("a latent row of {dim_qk}:{dim_v}: mla has up to {DIM_QK}:{DIM_V}"));
            }
            return Ok(());
        }
        if problem.kv_layout != KvLayout::Contiguous {
            return unsupported("a paged KV layout in prefill: mla pages its latent cache in decode".into());
        }
        if compiled_dims(dim_qk, dim_v).is_none() {
            return unsupported(format!("head dimensions {dim_qk}:{dim_v} in prefill: mla has up to 256:256"));
        }
        Ok(())
    }

    fn plan(&self, problem: &AttentionProblem, device: &DeviceFacts) -> Result<CudaPlan, KernelError> {
        self.supports(problem)?;
        match self.tile_class(problem) {
            Some(class) => self.plan_tiles(problem, device, class.taken()),
            None if device.compute_capability == CAPABILITY_90 => flash3::plan("mla", problem, device),
            None => flash::plan("mla", problem, device),
        }
    }

    fn tile_classes(&self) -> Vec<&'static TileClass> {
        CLASSES.iter().collect()
    }

    /// Prefill has the tiles of `flash` and `flash3`.
    fn tile_class(&self, problem: &AttentionProblem) -> Option<&'static TileClass> {
        problem.is_absorbed_mla().then_some(&CLASSES[0])
    }

    fn plan_tiles(
        &self,
        problem: &AttentionProblem,
        device: &DeviceFacts,
        tiles: Tiles,
    ) -> Result<CudaPlan, KernelError> {
        device.require_capability("mla", 80)?;
        let [_, most_box_rows, _] = tiles.sizes();
        let map = latent_map(problem, most_box_rows).filter(|_| device.compute_capability == CAPABILITY_90);
        let shape = Shape::new(map.is_some(), tiles, device);
        if map.is_none() && shape.box_rows < shape.keys {
            return Err(KernelError::Unsupported(format!(
                "tiles {tiles}: mla has boxes of rows with the copy engine of compute capability 9.0 alone"
            )));
        }
        let (entry, threads) = if shape.is_90 { ("mla3", THREADS_90) } else { ("mla", THREADS) };
        let shared_bytes = shape.shared_bytes();
        device.require_shared("mla", shared_bytes)?;
        let geometry = Geometry::new(problem);
        let mut plan = CudaPlan::default();
        let module = plan.module(shape.module(problem.dtype));
        let sequences = geometry.sequences(&mut plan);
        // One block a multiprocessor.
        let places = device.multiprocessors as usize;
        let out = ShareOut { rows: ROWS, places, least_keys: shape.least_share_keys };
        let shares = share_out(&mut plan, &geometry, out);
        let partials = push_partials(&mut plan, &geometry, &shares, ROWS);
        let page_table = match problem.kv_layout {
            KvLayout::Contiguous => Argument::Null,
            KvLayout::Paged { .. } => Argument::Tensor(TensorName::PageTable),
        };
        let rest = [
            Argument::Tensor(TensorName::O),
            Argument::OptionalTensor(TensorName::Lse),
            sequences.clone(),
            shares.table.clone(),
            geometry.argument(),
            partials[0].clone(),
            partials[1].clone(),
            Argument::I32(shares.splits as i32),
            page_table,
        ];
        let q = Argument::Tensor(TensorName::Q);
        let arguments = match map {
            Some((map, rows, box_rows)) => {
                let mut arguments = vec![Argument::TensorMap(map), q];
                arguments.extend(rest);
                arguments.extend([rows, box_rows].map(|count| Argument::I32(count as i32)));
                arguments
            }
            None => [q, Argument::Tensor(TensorName::K)].into_iter().chain(rest).collect(),
        };
        let grid = grid_of("mla", &[shares.items])?;
        plan.launches.push(Launch { module, entry, grid, block: [threads, 1, 1], shared_bytes, arguments });
        let merged = (&shares, ROWS);
        push_combine(&mut plan, "mla", &geometry, module, merged, partials, [Argument::Null, sequences])?;
        Ok(plan)
    }

    fn modules(&self) -> Vec<Module> {
        let taken = |(is_90, device)| Shape::new(is_90, CLASSES[0].taken(), &device);
        // An A100 has room for one slot; whatever has more takes the same source where no tensor map can number the rows.
        let shapes = [(false, DeviceFacts::A100), (false, DeviceFacts::H200), (true, DeviceFacts::H200)].map(taken);
        let mut modules: Vec<Module> =
            shapes.into_iter().flat_map(|shape| DTYPES.map(|dtype| shape.module(dtype))).collect();
        modules.extend(flash::modules());
        modules.extend(Flash3.modules());
        modules
    }

    fn modules_for(&self, compute_capability: u32) -> Vec<Module> {
        let needs_90 = |module: &Module| module.source == SOURCE_90 || Flash3.modules().contains(module);
        self.modules().into_iter().filter(|module| compute_capability == CAPABILITY_90 || !needs_90(module)).collect()
    }
}
