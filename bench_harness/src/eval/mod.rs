//! One kernel on a caller's own tensors: the way to check a kernel against any other framework's numbers.
//!
//! The semantics are those of the ONNX `Attention` operator (opsets 23 to 25), which is the one public, framework-neutral
//! definition with a reference implementation:
//!
//! - score = softcap(scale * q.k) + mask, then softmax over the visible keys; a row that sees no key gives zeros.
//! - Query i stands at p = i + offset and sees, when causal, the keys j <= p; a window keeps p - left <= j <= p + right.
//!   The offset is 0 without a past ([`CausalAlignment::TopLeft`]), the past's length with one, and `kv_length - len_q`
//!   where key lengths and no past are given. [`CausalAlignment::BottomRight`] always takes `valid keys - len_q`. All
//!   agree where the queries are the last tokens of their sequence.
//! - A mask that is shorter than the keys hides the rest.
//!
//! Everything here is a function of its arguments: files are read and written by the command.

mod mask;
mod shapes;

use std::time::Instant;

use attn_kernels::kernel::{Kernel, KernelError, PlanContext};
use attn_kernels::problem::{AttentionProblem, CausalAlignment, Dtype, Lengths, Pattern, Phase};
use attn_kernels::tensor::{ElementType, Tensor, TensorName, TensorSet};

use crate::device::cpu;
use crate::tensor_file::{Array, FileDtype};
use mask::Fold;
use shapes::{Shapes, gather};

/// The caller's tensors. Q, K and V are all (batch, heads, length, dim) or all (batch, length, heads * dim).
#[derive(Clone, Debug)]
pub struct Inputs {
    /// Queries.
    pub q: Array,
    /// New keys.
    pub k: Array,
    /// New values; their dim may differ from the keys'.
    pub v: Array,
    /// Earlier keys and values, in front of the new ones: (batch, heads_kv, length, dim), or 3-D as K.
    pub past: Option<(Array, Array)>,
    /// Boolean (true = visible) or floating-point (added to the scores), 2 to 4 dimensions, broadcast from the right over
    /// (batch, heads_q, len_q, keys).
    pub mask: Option<Array>,
    /// (batch) integers: the keys of each sequence that count, past included.
    pub kv_lengths: Option<Array>,
}

/// What to compute with them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// Query heads; required for 3-D tensors.
    pub heads_q: Option<usize>,
    /// KV heads; for 3-D tensors they follow from K's last dimension where this is None.
    pub heads_kv: Option<usize>,
    /// Whether j <= p is required.
    pub causal: bool,
    /// How p is counted.
    pub causal_alignment: CausalAlignment,
    /// Keys before p that are visible; None for all.
    pub window_left: Option<usize>,
    /// Keys after p that are visible; None for all.
    pub window_right: Option<usize>,
    /// Factor of the scores; None for 1/sqrt(dim).
    pub scale: Option<f64>,
    /// softcap(s) = cap * tanh(s / cap); None for s itself.
    pub softcap: Option<f64>,
    /// Whether uint16 elements are bfloat16.
    pub uint16_is_bf16: bool,
    /// Whether LSE is wanted too.
    pub lse: bool,
    /// Whether the concatenated keys and values are wanted too.
    pub present: bool,
    /// CPU threads.
    pub threads: usize,
    /// Bytes that tensors and workspaces may take.
    pub available_bytes: u64,
}

/// What came out.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// The problem that the kernel computed; None where there was nothing to compute, because no query or no key exists.
    pub problem: Option<AttentionProblem>,
    /// Factor of the scores.
    pub scale: f64,
    /// Wall-clock time of the one call, in nanoseconds.
    pub run_ns: u64,
    /// Output: Q's rank, layout and dtype, V's dim.
    pub o: Array,
    /// (batch, heads_q, len_q) f32 natural-log-sum-exp of the scores, -inf for rows that see no key.
    pub lse: Option<Array>,
    /// Past and new keys and past and new values, one after the other: (batch, heads_kv, length, dim) as the operator
    /// returns them, or 3-D where the past is.
    pub present: Option<(Array, Array)>,
}

/// Why nothing was computed.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// The tensors or options make no sense together.
    #[error("{0}")]
    Invalid(String),
    /// The kernel refused or failed.
    #[error("kernel `{kernel}`: {cause}")]
    Kernel {
        /// Its name.
        kernel: &'static str,
        /// Why.
        cause: KernelError,
    },
}

impl From<String> for EvalError {
    fn from(reason: String) -> Self {
        EvalError::Invalid(reason)
    }
}

/// Runs a kernel once on these tensors.
///
/// Errors: tensors whose ranks, shapes or dtypes do not fit together; options without meaning; a combination that the
/// kernel does not support; too little memory.
pub fn evaluate(kernel: &dyn Kernel, inputs: &Inputs, options: &Options) -> Result<Evaluation, EvalError> {
    check_options(options)?;
    let shapes = Shapes::of(inputs, options)?;
    let (dtype, dtype_kv) = dtypes(inputs, options)?;
    let valid = shapes.valid_keys(inputs.kv_lengths.as_ref())?;
    // Keys behind the longest valid length take no part, and the kernels' padded layout ends there.
    let longest = valid.iter().copied().max().unwrap_or(0);

    let mut problem = AttentionProblem::softmax(
        Phase::Prefill,
        dtype,
        shapes.batch,
        (shapes.heads_q, shapes.heads_kv),
        (shapes.len_q, longest),
        shapes.dim_qk,
    );
    problem.dtype_kv = dtype_kv;
    problem.head_dim_v = shapes.dim_v;
    problem.scale = options.scale;
    problem.softcap = options.softcap;
    problem.layout = shapes.layout;
    if valid.iter().any(|&length| length != longest) {
        problem.seqlen_kv = Lengths::List(valid.clone());
    }
    let fold = set_visibility(&mut problem, &shapes, &valid, inputs.kv_lengths.is_some(), options);

    let scale = problem.effective_scale();
    let o_dims = shapes.output_dims();
    let lse_dims = [shapes.batch, shapes.heads_q, shapes.len_q];
    let o_bytes = Tensor::size_bytes(dtype.into(), &o_dims).filter(|&bytes| bytes as u64 <= options.available_bytes);
    if o_bytes.is_none() {
        return Err(format!(
            "the output of shape {o_dims:?} does not fit in the {} bytes of memory that are available",
            options.available_bytes
        )
        .into());
    }
    let present = options.present.then(|| shapes.present(inputs));
    let bias = mask::bias(inputs.mask.as_ref(), fold.as_ref(), &shapes, longest, dtype, options)?;

    if shapes.batch == 0 || shapes.len_q == 0 || longest == 0 {
        let o = to_array(&Tensor::zeros(dtype.into(), &o_dims), &o_dims, inputs.q.dtype);
        let lse = options.lse.then(|| {
            let empty = vec![f32::NEG_INFINITY; lse_dims.iter().product()];
            to_array(&Tensor::from_slice(&lse_dims, &empty), &lse_dims, FileDtype::F32)
        });
        return Ok(Evaluation { problem: None, scale, run_ns: 0, o, lse, present });
    }

    let mut tensors = TensorSet::new();
    if let Some((kind, tensor)) = bias {
        problem.bias = kind;
        tensors.insert(TensorName::Bias, tensor);
    }
    choose_phase(kernel, &mut problem)?;
    tensors.insert(TensorName::Q, gather(&[&shapes.q], shapes.len_q, shapes.layout, dtype.into()));
    tensors.insert(TensorName::K, gather(&shapes.keys(), longest, shapes.layout, dtype_kv.into()));
    tensors.insert(TensorName::V, gather(&shapes.values(), longest, shapes.layout, dtype_kv.into()));
    let mut outputs = attn_kernels::input::outputs(&problem);
    if options.lse {
        let mut lse = Tensor::zeros(ElementType::F32, &lse_dims);
        lse.poison();
        outputs.insert(TensorName::Lse, lse);
    }
    let run_ns = run(kernel, &problem, &tensors, &mut outputs, options)?;
    let o = to_array(outputs.get(TensorName::O), &o_dims, inputs.q.dtype);
    let lse = options.lse.then(|| to_array(outputs.get(TensorName::Lse), &lse_dims, FileDtype::F32));
    Ok(Evaluation { problem: Some(problem), scale, run_ns, o, lse, present })
}

fn check_options(options: &Options) -> Result<(), String> {
    if let Some(scale) = options.scale.filter(|scale| !scale.is_finite()) {
        return Err(format!("a scale of {scale} is no finite number"));
    }
    if let Some(cap) = options.softcap.filter(|cap| !(cap.is_finite() && *cap > 0.0)) {
        return Err(format!("a softcap of {cap} is no finite number above 0"));
    }
    Ok(())
}

/// The dtype of Q and that of K and V.
fn dtypes(inputs: &Inputs, options: &Options) -> Result<(Dtype, Dtype), String> {
    let dtype = |name: &str, array: &Array| match array.dtype {
        FileDtype::F32 => Ok(Dtype::F32),
        FileDtype::F16 => Ok(Dtype::F16),
        FileDtype::Bf16 => Ok(Dtype::Bf16),
        FileDtype::U16 if options.uint16_is_bf16 => Ok(Dtype::Bf16),
        FileDtype::U16 => Err(format!("{name} is uint16: if that is how bfloat16 was stored, say `--dtype bf16`")),
        FileDtype::F64 => Err(format!(
            "{name} is float64; kernels compute float32, float16 and bfloat16: convert it, in numpy with \
             `.astype(np.float32)`"
        )),
        other => Err(format!("{name} is {other}; supported are float32, float16 and bfloat16")),
    };
    let q = dtype("q", &inputs.q)?;
    let k = dtype("k", &inputs.k)?;
    let mut others = vec![("v", &inputs.v)];
    if let Some((key, value)) = &inputs.past {
        others.extend([("past-key", key), ("past-value", value)]);
    }
    for (name, array) in others {
        let own = dtype(name, array)?;
        if own != k {
            return Err(format!("{name} is {} and k is {}: convert one of them", own.name(), k.name()));
        }
    }
    if options.uint16_is_bf16 && q != Dtype::Bf16 {
        return Err(format!(
            "`--dtype bf16` says how uint16 elements are read, and q is {}; it converts nothing: leave it out",
            inputs.q.dtype
        ));
    }
    Ok((q, k))
}

/// Writes the causal flag and the window into the problem where its two alignments can say what is meant; any other
/// offset is returned, to be folded into the mask.
fn set_visibility(
    problem: &mut AttentionProblem,
    shapes: &Shapes,
    valid: &[usize],
    lengths_given: bool,
    options: &Options,
) -> Option<Fold> {
    let windowed = options.window_left.is_some() || options.window_right.is_some();
    if !windowed && !options.causal {
        return None;
    }
    let bottom_right: Vec<i64> = valid.iter().map(|&keys| keys as i64 - shapes.len_q as i64).collect();
    let offsets = match options.causal_alignment {
        CausalAlignment::BottomRight => bottom_right.clone(),
        CausalAlignment::TopLeft if shapes.past.is_some() => vec![shapes.len_past() as i64; shapes.batch],
        CausalAlignment::TopLeft if lengths_given => bottom_right.clone(),
        CausalAlignment::TopLeft => vec![0; shapes.batch],
    };
    // No distance between a query and a key is greater than this, so a wider window is none on that side.
    let reach = shapes.len_q + 2 * shapes.len_total();
    let side = |keys: Option<usize>| keys.filter(|&keys| keys < reach).unwrap_or(usize::MAX);
    let left = side(options.window_left);
    let right = if options.causal { 0 } else { side(options.window_right) };
    let alignment = if offsets == bottom_right {
        CausalAlignment::BottomRight
    } else if offsets.iter().all(|&offset| offset == 0) {
        CausalAlignment::TopLeft
    } else {
        return Some(Fold { offsets, left: left.min(reach) as i64, right: right.min(reach) as i64 });
    };
    problem.causal = options.causal;
    problem.causal_alignment = alignment;
    if left != usize::MAX || (right != usize::MAX && !options.causal) {
        problem.pattern = Pattern::Window { left, right };
    }
    None
}

/// The phase does not change what is computed, but kernels are made for some of them: takes the first that the kernel
/// computes this problem in.
fn choose_phase(kernel: &dyn Kernel, problem: &mut AttentionProblem) -> Result<(), EvalError> {
    let mut refusals = Vec::new();
    for phase in [Phase::Prefill, Phase::Append, Phase::Decode] {
        problem.phase = phase;
        let answer = match problem.validate() {
            Ok(()) => kernel.supports(problem),
            Err(invalid) => Err(KernelError::Unsupported(invalid.to_string())),
        };
        match answer {
            Ok(()) => return Ok(()),
            Err(KernelError::Unsupported(reason)) => refusals.push(reason),
            Err(cause) => return Err(EvalError::Kernel { kernel: kernel.name(), cause }),
        }
    }
    // A kernel of another phase says so first, and only in its own phase what is really in the way.
    refusals.dedup();
    Err(EvalError::Kernel { kernel: kernel.name(), cause: KernelError::Unsupported(refusals.join("; ")) })
}

fn run(
    kernel: &dyn Kernel,
    problem: &AttentionProblem,
    inputs: &TensorSet,
    outputs: &mut TensorSet,
    options: &Options,
) -> Result<u64, EvalError> {
    let threads = options.threads.max(1);
    let pool = cpu::thread_pool(threads)?;
    let available_bytes = options.available_bytes.saturating_sub((inputs.total_bytes() + outputs.total_bytes()) as u64);
    let context = PlanContext { problem, static_tensors: &TensorSet::new(), threads, available_bytes };
    pool.install(|| {
        let mut plan = kernel.plan(&context).map_err(|cause| EvalError::Kernel { kernel: kernel.name(), cause })?;
        let start = Instant::now();
        plan.run(inputs, outputs);
        Ok(start.elapsed().as_nanos() as u64)
    })
}

/// A tensor as a file holds it. `dtype` has the size of its elements; it differs only for bfloat16 kept as uint16.
fn to_array(tensor: &Tensor, dims: &[usize], dtype: FileDtype) -> Array {
    debug_assert_eq!(tensor.element().bytes(), dtype.bytes());
    Array { dtype, dims: dims.to_vec(), bytes: tensor.bytes().to_vec() }
}
