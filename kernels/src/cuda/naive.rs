//! Attention with its scores in memory: `kernels/cuda/naive.cu`.

use std::collections::HashMap;

use super::geometry::{Bytes, Geometry};
use super::plan::{Argument, CudaPlan, DeviceFacts, Launch, Module, grid_of};
use super::source::source;
use super::tensor_core::{self, element};
use super::{CudaKernel, Source};
use crate::kernel::KernelError;
use crate::pattern::bigbird::{Bigbird, Draw};
use crate::problem::{AttentionProblem, Dtype, KvLayout, Mechanism, Pattern, Phase};
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
        Pattern::Full | Pattern::Window { .. } => [0; 4],
        Pattern::Dilated { window, step } => [1, int(window), int(step), 0],
        Pattern::Longformer { window, global, dilation } => [2, int(window), int(dilation), int(global)],
        Pattern::Strided { stride } => [3, 0, int(stride), 0],
        Pattern::Fixed { block, summary } => [4, int(summary), int(block), 0],
        Pattern::Bigbird { block, .. } => [5, 0, int(block), 0],
    };
    let mut bytes = Bytes::default();
    fields.iter().for_each(|&field| {
        bytes.i32(field);
    });
    Argument::Bytes(bytes.take())
}

/// Who sees whom under BigBird, before causality: a `DrawnBlocks` of each sequence, and the bits that they point at.
/// Sequences of the same lengths share theirs; null for the other patterns.
fn drawn_blocks(problem: &AttentionProblem, geometry: &Geometry, plan: &mut CudaPlan) -> [Argument; 2] {
    let Pattern::Bigbird { block, window, global, random, seed } = problem.pattern else {
        return [Argument::Null, Argument::Null];
    };
    let (mut sequences, mut bits) = (Bytes::default(), Vec::<u32>::new());
    let mut known: HashMap<(usize, usize), usize> = HashMap::new();
    for (sequence, (&len_q, &len_kv)) in geometry.lengths_q.iter().zip(&geometry.lengths_kv).enumerate() {
        let size = block as i64;
        let offset = geometry.query_offsets[sequence];
        let first = offset.div_euclid(size);
        let rows = (offset + len_q as i64 - 1).div_euclid(size) - first + 1;
        let words = len_kv.div_ceil(block).div_ceil(32);
        let start = *known.entry((len_q, len_kv)).or_insert_with(|| {
            let start = bits.len();
            for head in 0..geometry.heads_q {
                let rule = Bigbird::new(block, window, global, random, Draw { seed, head }, len_kv, false);
                for row in first..first + rows {
                    let mut seen = vec![0u32; words];
                    for block in rule.visible_blocks(row).into_iter().flatten() {
                        seen[block as usize / 32] |= 1 << (block % 32);
                    }
                    bits.extend(seen);
                }
            }
            start
        });
        [start as i64, first, rows, words as i64].iter().for_each(|&field| {
            sequences.i32(field as i32);
        });
    }
    let bits = bits.iter().flat_map(|word| word.to_le_bytes()).collect();
    [plan.table(sequences.take()), plan.table(bits)]
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
        let [bool_bias, additive_bias] = tensor_core::biases(problem);
        let [drawn, blocks] = drawn_blocks(problem, &geometry, &mut plan);
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
                    drawn,
                    blocks,
                    bool_bias,
                    additive_bias,
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
                    tensor_core::sinks(problem),
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
