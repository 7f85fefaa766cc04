//! Multi-head latent attention (DeepSeek-V2): absorbed decode in `kernels/cuda/mla.cu`, expanded prefill in `flash`.

use super::decode::{push_combine, push_partials};
use super::geometry::Geometry;
use super::plan::{Argument, CudaPlan, DeviceFacts, Launch, Module, grid_of};
use super::shares::share_out;
use super::source::source;
use super::tensor_core::{self, DTYPES, compiled_dims, element};
use super::{CudaKernel, Source, flash};
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

/// The kernel.
pub struct Mla;

fn module(dtype: Dtype) -> Module {
    Module { source: SOURCE, defines: vec![("ELEMENT", element(dtype).to_string())] }
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
        if !problem.is_absorbed_mla() {
            return flash::plan("mla", problem, device);
        }
        device.require_capability("mla", 80)?;
        device.require_shared("mla", SHARED_BYTES)?;
        let geometry = Geometry::new(problem);
        let mut plan = CudaPlan::default();
        let module = plan.module(module(problem.dtype));
        let sequences = geometry.sequences(&mut plan);
        // One block a multiprocessor.
        let shares = share_out(&mut plan, &geometry, ROWS, device.multiprocessors as usize);
        let partials = push_partials(&mut plan, &geometry, &shares, ROWS);
        let page_table = match problem.kv_layout {
            KvLayout::Contiguous => Argument::Null,
            KvLayout::Paged { .. } => Argument::Tensor(TensorName::PageTable),
        };
        plan.launches.push(Launch {
            module,
            entry: "mla",
            grid: grid_of("mla", &[shares.items])?,
            block: [THREADS, 1, 1],
            shared_bytes: SHARED_BYTES,
            arguments: vec![
                Argument::Tensor(TensorName::Q),
                Argument::Tensor(TensorName::K),
                Argument::Tensor(TensorName::O),
                Argument::OptionalTensor(TensorName::Lse),
                sequences.clone(),
                shares.table.clone(),
                geometry.argument(),
                partials[0].clone(),
                partials[1].clone(),
                Argument::I32(shares.splits as i32),
                page_table,
            ],
        });
        let merged = (&shares, ROWS);
        push_combine(&mut plan, "mla", &geometry, module, merged, partials, [Argument::Null, sequences])?;
        Ok(plan)
    }

    fn modules(&self) -> Vec<Module> {
        let mut modules: Vec<Module> = DTYPES.into_iter().map(module).collect();
        modules.extend(flash::modules());
        modules
    }
}
