//! Attention with its scores in memory: `kernels/cuda/naive.cu`.

use super::geometry::{Bytes, Geometry};
use super::plan::{Argument, CudaPlan, DeviceFacts, Launch, Module, grid_of};
use super::source::source;
use super::tensor_core::element;
use super::{CudaKernel, Source};
use crate::kernel::KernelError;
use crate::problem::{AttentionProblem, Bias, Dtype, KvLayout, Mechanism, Pattern, Phase};
use crate::tensor::TensorName;

const SOURCE: Source = source!("naive.cu");

/// Queries and keys, or queries and values, a block.
const TILE: usize = 64;
/// Threads of a block of a product, and its shared memory: two steps of 16 x 64 f32 with four f32 of padding a row.
const PRODUCT_THREADS: u32 = 256;
const PRODUCT_SHARED_BYTES: u32 = 2 * 16 * (64 + 4) * 4;
/// Threads of a block of a softmax, and its shared memory: a number a warp.
const SOFTMAX_THREADS: u32 = 128;
const SOFTMAX_SHARED_BYTES: u32 = SOFTMAX_THREADS / 32 * 4;

/// The kernel.
pub struct Naive;

fn module(dtype: Dtype) -> Module {
    Module { source: SOURCE, defines: vec![("ELEMENT", element(dtype).to_string())] }
}

/// `Pattern` of `naive.cu`: kind, window, step, global. A band is in the geometry.
fn pattern(pattern: Pattern) -> Argument {
    // Distances beyond any sequence are all alike, and have to be added to.
    let int = |distance: usize| distance.min(1 << 28) as i32;
    let fields = match pattern {
        Pattern::Full | Pattern::Window { .. } | Pattern::Bigbird { .. } => [0; 4],
        Pattern::Dilated { window, step } => [1, int(window), int(step), 0],
        Pattern::Longformer { window, global, dilation } => [2, int(window), int(dilation), int(global)],
        Pattern::Strided { stride } => [3, 0, int(stride), 0],
        Pattern::Fixed { block, summary } => [4, int(summary), int(block), 0],
    };
    let mut bytes = Bytes::default();
    fields.iter().for_each(|&field| {
        bytes.i32(field);
    });
    Argument::Bytes(bytes.take())
}

impl CudaKernel for Naive {
    fn name(&self) -> &'static str {
        "naive"
    }

    fn summary(&self) -> &'static str {
        "scores of all pairs in memory in f32, softmax, product with V (Vaswani et al. 2017)"
    }

    fn supports(&self, problem: &AttentionProblem) -> Result<(), KernelError> {
        let unsupported = |text: String| Err(KernelError::Unsupported(text));
        if problem.mechanism != Mechanism::Softmax {
            return unsupported(format!("mechanism {}: naive computes softmax only", problem.mechanism.name()));
        }
        if problem.phase == Phase::Backward {
            return unsupported("phase backward: naive computes forward phases only".into());
        }
        if matches!(problem.pattern, Pattern::Bigbird { .. }) {
            return unsupported("pattern bigbird: naive has no table of drawn blocks (block_sparse has)".into());
        }
        if problem.kv_layout != KvLayout::Contiguous {
            return unsupported("a paged KV layout: naive reads contiguous keys and values (paged does not)".into());
        }
        if problem.dtype_kv != problem.dtype {
            return unsupported("keys in another dtype than queries: naive reads equal ones".into());
        }
        Ok(())
    }

    fn plan(&self, problem: &AttentionProblem, device: &DeviceFacts) -> Result<CudaPlan, KernelError> {
        self.supports(problem)?;
        device.require_capability("naive", 80)?;
        let geometry = Geometry::new(problem);
        let mut plan = CudaPlan::default();
        let module = plan.module(module(problem.dtype));
        let sequences = geometry.sequences(&mut plan);
        let (longest_q, longest_kv) = (geometry.longest_q(), geometry.longest_kv());
        let heads = geometry.heads_q * geometry.batch();
        let scores = plan.workspace(4 * (heads * longest_q) as u64 * longest_kv as u64);
        let tiles_q = longest_q.div_ceil(TILE);
        let bias = |wanted| if problem.bias == wanted { Argument::Tensor(TensorName::Bias) } else { Argument::Null };
        let bias_number = Bias::ALL.iter().position(|&bias| bias == problem.bias).expect("every bias is listed");
        let product = |entry, factors: &[usize], arguments| {
            Ok(Launch {
                module,
                entry,
                grid: grid_of("naive", factors)?,
                block: [PRODUCT_THREADS, 1, 1],
                shared_bytes: PRODUCT_SHARED_BYTES,
                arguments,
            })
        };
        plan.launches = vec![
            product(
                "naive_scores",
                &[longest_kv.div_ceil(TILE), tiles_q, heads],
                vec![
                    Argument::Tensor(TensorName::Q),
                    Argument::Tensor(TensorName::K),
                    sequences.clone(),
                    geometry.argument(),
                    pattern(problem.pattern),
                    Argument::I32(bias_number as i32),
                    bias(Bias::Bool),
                    bias(Bias::Additive),
                    scores.clone(),
                ],
            )?,
            Launch {
                module,
                entry: "naive_softmax",
                grid: grid_of("naive", &[longest_q, heads])?,
                block: [SOFTMAX_THREADS, 1, 1],
                shared_bytes: SOFTMAX_SHARED_BYTES,
                arguments: vec![
                    sequences.clone(),
                    geometry.argument(),
                    if problem.sinks { Argument::Tensor(TensorName::Sinks) } else { Argument::Null },
                    scores.clone(),
                    Argument::OptionalTensor(TensorName::Lse),
                ],
            },
            product(
                "naive_output",
                &[geometry.dim_v.div_ceil(TILE), tiles_q, heads],
                vec![
                    scores,
                    Argument::Tensor(TensorName::V),
                    sequences,
                    geometry.argument(),
                    Argument::Tensor(TensorName::O),
                ],
            )?,
        ];
        Ok(plan)
    }

    fn modules(&self) -> Vec<Module> {
        Dtype::ALL.into_iter().map(module).collect()
    }
}
