//! Multi-head latent attention (DeepSeek-V2): absorbed decode in `kernels/cuda/mla.cu` and, for compute capability 9.0,
//! `kernels/cuda/mla3.cu`; expanded prefill in `flash` and `flash3`.

use super::decode::{push_combine, push_partials};
use super::flash3::{self, Flash3};
use super::geometry::Geometry;
use super::plan::{Argument, CudaPlan, DeviceFacts, Launch, Module, TensorMap, grid_of};
use super::shares::share_out;
use super::source::source;
use super::tensor_core::{self, DTYPES, compiled_dims, element};
use super::{CudaKernel, Source, flash};
use crate::input::tensor_shape;
use crate::kernel::KernelError;
use crate::problem::{AttentionProblem, Dtype, KvLayout, Mechanism, Pattern, Phase};
use crate::tensor::TensorName;

const SOURCE: Source = source!("mla.cu");

/// The widest latent row and value that the kernel is compiled for.
const DIM_QK: usize = 576;
const DIM_V: usize = 512;
/// Rows of a block: heads times queries; keys a tile.
const ROWS: usize = 64;
const KEYS: usize = 64;
const THREADS: u32 = 256;
/// Q, the latent rows, the weights, two numbers a row.
const SHARED_BYTES: u32 = (2 * (ROWS * DIM_QK + KEYS * DIM_QK + ROWS * KEYS) + 8 * ROWS) as u32;

/// The source for compute capability 9.0, its threads, and its shared memory: Q, two slots of latent rows, the weights, two
/// numbers a row, the barriers of two rings of two slots and of one of one.
const SOURCE_90: Source = source!("mla3.cu");
const CAPABILITY_90: u32 = 90;
const THREADS_90: u32 = 384;
const SHARED_BYTES_90: u32 = (2 * (ROWS * DIM_QK + 2 * KEYS * DIM_QK + ROWS * KEYS) + 8 * ROWS + 5 * 16) as u32;

/// The kernel.
pub struct Mla;

fn module(source: Source, dtype: Dtype) -> Module {
    Module { source, defines: vec![("ELEMENT", element(dtype).to_string())] }
}

/// All latent rows of the cache as one matrix, whatever its layout; a copy brings 64 columns of as many rows as surely lie in
/// one page. None where rows are more than a coordinate can number.
fn latent_map(problem: &AttentionProblem) -> Option<(TensorMap, usize, usize)> {
    let dim = problem.head_dim_qk;
    let rows = tensor_shape(problem, TensorName::K).1.iter().product::<usize>() / dim;
    let box_rows = match problem.kv_layout {
        KvLayout::Contiguous => KEYS,
        KvLayout::Paged { page_size } => 1 << page_size.trailing_zeros().min(KEYS.ilog2()),
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
        let is_90 = device.compute_capability == CAPABILITY_90;
        if !problem.is_absorbed_mla() {
            return if is_90 { flash3::plan("mla", problem, device) } else { flash::plan("mla", problem, device) };
        }
        device.require_capability("mla", 80)?;
        let map = latent_map(problem).filter(|_| is_90);
        let (entry, source, threads, shared_bytes) = match map {
            Some(_) => ("mla3", SOURCE_90, THREADS_90, SHARED_BYTES_90),
            None => ("mla", SOURCE, THREADS, SHARED_BYTES),
        };
        device.require_shared("mla", shared_bytes)?;
        let geometry = Geometry::new(problem);
        let mut plan = CudaPlan::default();
        let module = plan.module(module(source, problem.dtype));
        let sequences = geometry.sequences(&mut plan);
        // One block a multiprocessor.
        let shares = share_out(&mut plan, &geometry, ROWS, device.multiprocessors as usize);
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
        let sources = [SOURCE, SOURCE_90].into_iter();
        let mut modules: Vec<Module> = sources.flat_map(|source| DTYPES.map(|dtype| module(source, dtype))).collect();
        modules.extend(flash::modules());
        modules.extend(Flash3.modules());
        modules
    }

    fn modules_for(&self, compute_capability: u32) -> Vec<Module> {
        let needs_90 = |module: &Module| module.source == SOURCE_90 || Flash3.modules().contains(module);
        self.modules().into_iter().filter(|module| compute_capability == CAPABILITY_90 || !needs_90(module)).collect()
    }
}
