//! FlashAttention, forward (Dao et al. 2022): `kernels/cuda/flash1.cu`.

use super::geometry::Geometry;
use super::plan::{Argument, CudaPlan, DeviceFacts, Launch, Module, grid_of};
use super::source::source;
use super::tensor_core::{self, DIMS, DTYPES, compiled_dims, element};
use super::{CudaKernel, Source};
use crate::kernel::KernelError;
use crate::problem::{AttentionProblem, Dtype, KvLayout, Mechanism, Pattern, Phase};
use crate::tensor::TensorName;

const SOURCE: Source = source!("flash1.cu");

/// Queries a tile.
const ROWS: usize = 64;
/// Threads a block.
const THREADS: usize = 128;

/// The kernel.
pub struct Flash1;

fn module(dims: (usize, usize), dtype: Dtype) -> Module {
    Module {
        source: SOURCE,
        defines: vec![
            ("ELEMENT", element(dtype).to_string()),
            ("DIM_QK", dims.0.to_string()),
            ("DIM_V", dims.1.to_string()),
        ],
    }
}

impl CudaKernel for Flash1 {
    fn name(&self) -> &'static str {
        "flash1"
    }

    fn summary(&self) -> &'static str {
        "key tiles outside, output rescaled in memory (FlashAttention, Dao et al. 2022)"
    }

    fn supports(&self, problem: &AttentionProblem) -> Result<(), KernelError> {
        let unsupported = |text: String| Err(KernelError::Unsupported(text));
        if problem.mechanism != Mechanism::Softmax {
            return unsupported(format!("mechanism {}: flash1 computes softmax only", problem.mechanism.name()));
        }
        if problem.phase == Phase::Backward {
            return unsupported("phase backward: flash1 computes forward phases only".into());
        }
        if !matches!(problem.pattern, Pattern::Full | Pattern::Window { .. }) {
            return unsupported(format!(
                "pattern {}: flash1 has full and window, causal or not",
                problem.pattern.name()
            ));
        }
        if problem.kv_layout != KvLayout::Contiguous {
            return unsupported("a paged KV layout: flash1 reads contiguous keys and values (paged does not)".into());
        }
        tensor_core::supports("flash1", problem)?;
        tensor_core::is_plain("flash1", problem)?;
        if compiled_dims(problem.head_dim_qk, problem.head_dim_v).is_none() {
            let (dim_qk, dim_v) = (problem.head_dim_qk, problem.head_dim_v);
            return unsupported(format!("head dimensions {dim_qk}:{dim_v}: flash1 has up to 256:256"));
        }
        Ok(())
    }

    fn plan(&self, problem: &AttentionProblem, device: &DeviceFacts) -> Result<CudaPlan, KernelError> {
        self.supports(problem)?;
        device.require_capability("flash1", 80)?;
        let geometry = Geometry::new(problem);
        let dims = compiled_dims(geometry.dim_qk, geometry.dim_v).expect("supports() has checked");
        let keys = if dims.1 > 192 { 32 } else { 64 };
        let shared_bytes = (2 * (ROWS * dims.0 + keys * (dims.0 + dims.1))) as u32;
        device.require_shared("flash1", shared_bytes)?;
        let mut plan = CudaPlan::default();
        let module = plan.module(module(dims, problem.dtype));
        let sequences = geometry.sequences(&mut plan);
        let tiles = geometry.batch() * geometry.heads_q * geometry.longest_q().div_ceil(ROWS);
        // Each thread of a tile keeps its part of O, two largest scores and two sums, in vectors of 16 bytes.
        let states = plan.workspace((tiles * THREADS * (dims.1 / 8 + 1) * 16) as u64);
        plan.launches.push(Launch {
            module,
            entry: "flash1",
            grid: grid_of("flash1", &[geometry.heads_q, geometry.batch()])?,
            block: [THREADS as u32, 1, 1],
            shared_bytes,
            arguments: vec![
                Argument::Tensor(TensorName::Q),
                Argument::Tensor(TensorName::K),
                Argument::Tensor(TensorName::V),
                Argument::Tensor(TensorName::O),
                Argument::OptionalTensor(TensorName::Lse),
                sequences,
                geometry.argument(),
                states,
            ],
        });
        Ok(plan)
    }

    fn modules(&self) -> Vec<Module> {
        let mut modules = Vec::new();
        for dims in DIMS {
            for dtype in DTYPES {
                modules.push(module(dims, dtype));
            }
        }
        modules
    }
}
