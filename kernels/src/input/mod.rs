//! Seeded inputs: the same bits on every device and in every provider.
//!
//! An element is a function of (seed, tensor, set, index) in integer arithmetic alone, so that a CPU, a GPU and numpy
//! agree bit for bit whatever their mathematics libraries do:
//!
//! 1. `key = hash64(hash64(seed, code(tensor)), set)`, `h = hash64(key, index)` with [`hash64`] (splitmix64's finaliser
//!    over a counter, Steele et al. 2014). `index` is logical: `((b * longest + token) * heads + head) * dim + d`,
//!    whatever the memory layout, so a packed, a padded and a paged tensor hold the same numbers.
//! 2. The sum of the four 16-bit fields of `h`, minus 131070, is an integer of 18 bits with a bell-shaped distribution
//!    (Irwin-Hall, n = 4) of standard deviation 37837.
//! 3. Times 2^-15 (standard deviation 1.155), then rounded to nearest even to the dtype.
//!
//! **Peaked rows**: with independent keys every softmax row is nearly flat, and an error in one key of 100,000 would
//! hide. So about one query row in four is set to exactly twice the key row that it should single out; see
//! [`InputSpec::peak_offsets`].

mod checksum;
mod generator;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use checksum::checksum;
pub use generator::{Generator, golden_hash};

pub use crate::hash::hash64;
use crate::problem::{AttentionProblem, Bias, KvLayout, Mechanism, Pattern, Phase};
use crate::tensor::{ElementType, Rows, Tensor, TensorName, TensorSet};

/// The version of everything on this page: two records compare only where it is equal.
pub const GENERATOR_VERSION: u32 = 1;

/// What a worker needs to make every input of a problem, besides the problem itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InputSpec {
    /// Seed of all tensors.
    pub seed: u64,
    /// Distances j - p at which a pattern begins or ends. A peaked query row (b, token, head), with row number r =
    /// (b * longest_q + token) * heads_q + head and u = hash64(hash64(key(Q), 2^32), r), u mod 4 = 0, singles out a key by
    /// choice c = (u >> 8) mod (offsets + 3): offset c from its position p; then key 0; the last key; key (u >> 32) mod
    /// seqlen_kv. A choice outside the sequence leaves the row as it is.
    pub peak_offsets: Vec<i64>,
    /// Backward only: input sets whose dO is sparse, which makes a large gradient cheap to check. Other sets are dense.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sparse_grads: Vec<SparseGrad>,
}

/// An input set whose dO is zero but in these rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SparseGrad {
    /// The input set.
    pub set: u64,
    /// (sequence, head, token) of the rows that are not zero.
    pub rows: Vec<(usize, usize, usize)>,
}

impl InputSpec {
    /// The inputs of a problem under a seed.
    pub fn new(problem: &AttentionProblem, seed: u64) -> Self {
        InputSpec { seed, peak_offsets: peak_offsets(problem), sparse_grads: Vec::new() }
    }
}

/// The distances from p at which visibility changes: where an off-by-one error would be.
pub fn peak_offsets(problem: &AttentionProblem) -> Vec<i64> {
    let mut offsets = match problem.pattern {
        Pattern::Full => vec![],
        Pattern::Window { left, right } => vec![-(left as i64), -(left as i64) - 1, right as i64, right as i64 + 1],
        Pattern::Dilated { window, step } | Pattern::Longformer { window, dilation: step, .. } => {
            let (reach, step) = ((window * step) as i64, step as i64);
            vec![0, -reach, reach, -reach - step, reach + step, -1, 1]
        }
        Pattern::Bigbird { block, .. } => vec![0, -(block as i64), block as i64],
        Pattern::Strided { stride } => {
            let stride = stride as i64;
            vec![0, 1, -stride, -stride - 1, -2 * stride, -2 * stride - 1]
        }
        Pattern::Fixed { block, .. } => vec![0, 1, -1, -(block as i64)],
    };
    if problem.causal {
        offsets.extend([0, 1]);
    }
    offsets.sort_unstable();
    offsets.dedup();
    offsets
}

/// The stable number of a tensor in the hash.
const fn code(name: TensorName) -> u64 {
    match name {
        TensorName::Q => 1,
        TensorName::K => 2,
        TensorName::V => 3,
        TensorName::ProjectionK => 4,
        TensorName::ProjectionV => 5,
        TensorName::StateIn => 6,
        TensorName::NormaliserIn => 7,
        TensorName::PageTable => 8,
        TensorName::Bias => 9,
        TensorName::Sinks => 10,
        TensorName::DO => 11,
        TensorName::O => 12,
        TensorName::Lse => 13,
        TensorName::DQ => 14,
        TensorName::DK => 15,
        TensorName::DV => 16,
        TensorName::StateOut => 17,
        TensorName::NormaliserOut => 18,
    }
}

/// The tensors that a call reads and a worker generates. Backward reads O and LSE too, which the worker computes.
pub fn input_names(problem: &AttentionProblem) -> Vec<TensorName> {
    let mut names = vec![TensorName::Q, TensorName::K];
    if !problem.is_absorbed_mla() {
        names.push(TensorName::V);
    }
    match problem.mechanism {
        Mechanism::Linformer { .. } => names.extend([TensorName::ProjectionK, TensorName::ProjectionV]),
        Mechanism::Linear { normalised, .. } if problem.is_recurrent() => {
            names.push(TensorName::StateIn);
            if normalised {
                names.push(TensorName::NormaliserIn);
            }
        }
        _ => {}
    }
    if matches!(problem.kv_layout, KvLayout::Paged { .. }) {
        names.push(TensorName::PageTable);
    }
    if matches!(problem.bias, Bias::Bool | Bias::Additive) {
        names.push(TensorName::Bias);
    }
    if problem.sinks {
        names.push(TensorName::Sinks);
    }
    if problem.phase == Phase::Backward {
        names.push(TensorName::DO);
    }
    names
}

/// The inputs that a plan may look at: what a model or a server knows before the call.
pub fn is_static(name: TensorName) -> bool {
    matches!(name, TensorName::ProjectionK | TensorName::ProjectionV | TensorName::PageTable | TensorName::Sinks)
}

/// The tensors that a call writes. LSE is written only where the caller put it among the outputs.
pub fn output_names(problem: &AttentionProblem) -> Vec<TensorName> {
    match (problem.phase, problem.mechanism) {
        (Phase::Backward, _) => vec![TensorName::DQ, TensorName::DK, TensorName::DV],
        (Phase::Decode, Mechanism::Linear { normalised: true, .. }) => {
            vec![TensorName::O, TensorName::StateOut, TensorName::NormaliserOut]
        }
        (Phase::Decode, Mechanism::Linear { .. }) => vec![TensorName::O, TensorName::StateOut],
        _ => vec![TensorName::O],
    }
}

/// Tokens of K and V in a call: the whole cache, or for the recurrent form the tokens that the call adds.
pub fn key_lengths(problem: &AttentionProblem) -> Vec<usize> {
    if problem.is_recurrent() { problem.lengths_q() } else { problem.lengths_kv() }
}

/// Element type and shape of a tensor of the problem.
pub fn tensor_shape(problem: &AttentionProblem, name: TensorName) -> (ElementType, Vec<usize>) {
    let longest = |lengths: Vec<usize>| lengths.into_iter().max().unwrap_or(0);
    let (batch, dk, dv) = (problem.batch, problem.head_dim_qk, problem.head_dim_v);
    let queries = |dim| Rows::of_queries(problem, dim).dims;
    let keys = |dim| match problem.kv_layout {
        KvLayout::Contiguous => Rows::contiguous(problem.layout, &key_lengths(problem), problem.heads_kv, dim).dims,
        KvLayout::Paged { page_size } => vec![problem.page_pool_size(), page_size, problem.heads_kv, dim],
    };
    match name {
        TensorName::Q | TensorName::DQ => (problem.dtype.into(), queries(dk)),
        TensorName::O | TensorName::DO => (problem.dtype.into(), queries(dv)),
        TensorName::K => (problem.dtype_kv.into(), keys(dk)),
        TensorName::V => (problem.dtype_kv.into(), keys(dv)),
        TensorName::DK => (problem.dtype.into(), keys(dk)),
        TensorName::DV => (problem.dtype.into(), keys(dv)),
        TensorName::ProjectionK | TensorName::ProjectionV => {
            let Mechanism::Linformer { rank } = problem.mechanism else { unreachable!("only Linformer projects") };
            (ElementType::F32, vec![longest(problem.lengths_kv()), rank])
        }
        TensorName::StateIn | TensorName::StateOut => (ElementType::F32, vec![batch, problem.heads_kv, dk, dv]),
        TensorName::NormaliserIn | TensorName::NormaliserOut => (ElementType::F32, vec![batch, problem.heads_kv, dk]),
        TensorName::PageTable => {
            let KvLayout::Paged { page_size } = problem.kv_layout else {
                unreachable!("only paged problems have a table")
            };
            (ElementType::I32, vec![batch, longest(problem.lengths_kv()).div_ceil(page_size)])
        }
        TensorName::Bias => {
            let element = if problem.bias == Bias::Bool { ElementType::Bool } else { problem.dtype.into() };
            (element, vec![1, 1, longest(problem.lengths_q()), longest(problem.lengths_kv())])
        }
        TensorName::Sinks => (ElementType::F32, vec![problem.heads_q]),
        TensorName::Lse => (ElementType::F32, vec![batch, problem.heads_q, longest(problem.lengths_q())]),
    }
}

/// Bytes of all inputs and outputs of a call (O and LSE of backward included).
pub fn tensor_bytes(problem: &AttentionProblem) -> u64 {
    let mut names = input_names(problem);
    names.extend(output_names(problem));
    if problem.phase == Phase::Backward {
        names.extend([TensorName::O, TensorName::Lse]);
    }
    names
        .into_iter()
        .map(|name| {
            let (element, dims) = tensor_shape(problem, name);
            dims.iter().fold(element.bytes() as u64, |bytes, &dim| bytes.saturating_mul(dim as u64))
        })
        .fold(0, u64::saturating_add)
}

/// Poisoned outputs of the problem in new memory.
pub fn outputs(problem: &AttentionProblem) -> TensorSet {
    let mut set = TensorSet::new();
    for name in output_names(problem) {
        let (element, dims) = tensor_shape(problem, name);
        let mut tensor = Tensor::zeros(element, &dims);
        tensor.poison();
        set.insert(name, tensor);
    }
    set
}
