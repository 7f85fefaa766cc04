//! What the kernels on tensor cores have in common: which problems, which head dimensions, which element.

use super::Source;
use super::plan::{Argument, Module};
use crate::kernel::KernelError;
use crate::problem::{AttentionProblem, Bias, Dtype, KvLayout, Mechanism, Pattern};
use crate::tensor::TensorName;

/// The head dimensions (d_qk, d_v) that tensor-core kernels are compiled for. Others are computed in the smallest one that
/// holds them, with columns of zeros.
pub(super) const DIMS: [(usize, usize); 6] = [(64, 64), (96, 96), (128, 128), (192, 128), (192, 192), (256, 256)];

/// The dtypes that tensor-core kernels are compiled for.
pub(super) const DTYPES: [Dtype; 2] = [Dtype::Bf16, Dtype::F16];

/// The smallest compiled dimensions that hold these.
pub(super) fn compiled_dims(dim_qk: usize, dim_v: usize) -> Option<(usize, usize)> {
    DIMS.into_iter().find(|&(qk, v)| dim_qk <= qk && dim_v <= v)
}

/// What classes of problems call head dimensions: `d128`, `d192:128`.
pub(super) fn dims_name((dim_qk, dim_v): (usize, usize)) -> String {
    if dim_qk == dim_v { format!("d{dim_qk}") } else { format!("d{dim_qk}:{dim_v}") }
}

/// A source compiled for an element, with these numbers, in one of its variants where it has several.
pub(super) fn module(
    source: Source,
    dtype: Dtype,
    numbers: &[(&'static str, usize)],
    variant: Option<Variant>,
) -> Module {
    let mut defines = vec![("ELEMENT", element(dtype).to_string())];
    defines.extend(numbers.iter().map(|&(name, number)| (name, number.to_string())));
    defines.extend(variant.map(Variant::define));
    Module { source, defines }
}

/// The name of an element type in `ptx.cuh`.
pub(super) fn element(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::Bf16 => "Bf16",
        Dtype::F16 => "F16",
        Dtype::F32 => "F32",
        Dtype::E4m3 => "E4m3",
    }
}

/// Refuses what no kernel on tensor cores does: f32 and mixed dtypes.
pub(super) fn supports(kernel: &str, problem: &AttentionProblem) -> Result<(), KernelError> {
    let unsupported = |text: String| Err(KernelError::Unsupported(text));
    if problem.dtype == Dtype::F32 {
        return unsupported(format!("dtype f32: {kernel} computes in bf16 and f16 (naive has f32)"));
    }
    if problem.dtype_kv != problem.dtype {
        return unsupported(format!("keys in another dtype than queries: {kernel} multiplies equal ones"));
    }
    Ok(())
}

/// Refuses what the kernels of dense attention do not do: anything but softmax over a band of contiguous keys.
pub(super) fn has_contiguous_band(kernel: &str, problem: &AttentionProblem) -> Result<(), KernelError> {
    let unsupported = |text: String| Err(KernelError::Unsupported(text));
    if problem.mechanism != Mechanism::Softmax {
        return unsupported(format!("mechanism {}: {kernel} computes softmax only", problem.mechanism.name()));
    }
    if !matches!(problem.pattern, Pattern::Full | Pattern::Window { .. }) {
        return unsupported(format!(
            "pattern {}: {kernel} has full and window, causal or not (block_sparse has all)",
            problem.pattern.name()
        ));
    }
    if problem.kv_layout != KvLayout::Contiguous {
        return unsupported(format!("a paged KV layout: {kernel} reads contiguous keys and values (paged does not)"));
    }
    Ok(())
}

/// Refuses what only kernels with the variant [`Variant::General`] do, and sinks: rows that are not whole 16-byte chunks,
/// biases, and scales that turn the order of scores around.
pub(super) fn is_plain(kernel: &str, problem: &AttentionProblem) -> Result<(), KernelError> {
    let unsupported = |text: String| Err(KernelError::Unsupported(text));
    for (what, dim) in [("d_qk", problem.head_dim_qk), ("d_v", problem.head_dim_v)] {
        if dim % 8 != 0 {
            return unsupported(format!(
                "{what} = {dim}: {kernel} copies rows in pieces of 8 elements (naive and flash have any)"
            ));
        }
    }
    if problem.bias != Bias::None || problem.sinks {
        return unsupported(format!("a bias or sinks: {kernel} has masks by pattern and softcap only"));
    }
    if problem.effective_scale() <= 0.0 {
        return unsupported(format!("a scale that is not positive: {kernel} finds the largest score before it scales"));
    }
    Ok(())
}

/// How scores come about: `SCORES` of `attend.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Variant {
    /// A positive scale.
    Plain,
    /// A positive scale and a softcap.
    Capped,
    /// Any scale, a softcap where there is one, any bias, any head dimensions.
    General,
}

impl Variant {
    pub(super) const ALL: [Variant; 3] = [Variant::Plain, Variant::Capped, Variant::General];

    /// The variant that a problem needs. Sinks take part only at the end, in every variant.
    pub(super) fn of(problem: &AttentionProblem) -> Variant {
        let is_whole = problem.head_dim_qk.is_multiple_of(8) && problem.head_dim_v.is_multiple_of(8);
        if problem.bias != Bias::None || problem.effective_scale() <= 0.0 || !is_whole {
            Variant::General
        } else if problem.softcap.is_some() {
            Variant::Capped
        } else {
            Variant::Plain
        }
    }

    /// Its name in classes of problems.
    pub(super) fn name(self) -> &'static str {
        match self {
            Variant::Plain => "plain",
            Variant::Capped => "capped",
            Variant::General => "general",
        }
    }

    /// The define of a module.
    pub(super) fn define(self) -> (&'static str, String) {
        ("VARIANT", (self as u32).to_string())
    }
}

/// The sinks of a problem, or null.
pub(super) fn sinks(problem: &AttentionProblem) -> Argument {
    if problem.sinks { Argument::Tensor(TensorName::Sinks) } else { Argument::Null }
}

/// The tensors of a bool and of an additive bias; null where the problem has another.
pub(super) fn biases(problem: &AttentionProblem) -> [Argument; 2] {
    [Bias::Bool, Bias::Additive]
        .map(|wanted| if problem.bias == wanted { Argument::Tensor(TensorName::Bias) } else { Argument::Null })
}
