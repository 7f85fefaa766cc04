//! What the built-in kernels compute, found by asking them about a small problem of every legal kind.

use attn_kernels::problem::legal::{Causality, LEGAL};
use attn_kernels::problem::{AttentionProblem, Dtype, KvLayout, Mechanism, Pattern, Phase};
use serde::Serialize;

/// One mechanism, phase and pattern that a kernel computes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Support {
    /// Name of the mechanism.
    pub mechanism: &'static str,
    /// The phase.
    pub phase: Phase,
    /// Name of the pattern.
    pub pattern: &'static str,
    /// Whether it reads keys and values that lie together.
    pub contiguous: bool,
    /// Whether it reads them through a page table.
    pub paged: bool,
    /// The dtypes that it does this in.
    pub dtypes: Vec<&'static str>,
}

/// Everything that a kernel computes, in the order of the table of legal combinations; `supports` is its answer.
pub fn support(supports: &dyn Fn(&AttentionProblem) -> bool) -> Vec<Support> {
    let mut found = Vec::new();
    for row in LEGAL {
        for &phase in row.phases {
            for &pattern in row.patterns {
                let mut problem = probe(row.mechanism, phase, pattern);
                problem.causal = row.causality == Causality::Always;
                let (mut contiguous, mut paged, mut dtypes) = (false, false, Vec::new());
                for dtype in Dtype::ALL {
                    (problem.dtype, problem.dtype_kv) = (dtype, dtype);
                    problem.kv_layout = KvLayout::Contiguous;
                    let in_rows = supports(&problem);
                    problem.kv_layout = KvLayout::Paged { page_size: 16 };
                    let in_pages = problem.validate().is_ok() && supports(&problem);
                    (contiguous, paged) = (contiguous || in_rows, paged || in_pages);
                    dtypes.extend((in_rows || in_pages).then_some(dtype.name()));
                }
                if contiguous || paged {
                    found.push(Support { mechanism: row.mechanism, phase, pattern, contiguous, paged, dtypes });
                }
            }
        }
    }
    found
}

/// A small problem of a kind.
fn probe(mechanism: &str, phase: Phase, pattern: &str) -> AttentionProblem {
    let len_q = if phase == Phase::Decode { 1 } else { 64 };
    let mut problem = AttentionProblem::softmax(phase, Dtype::F32, 1, (2, 2), (len_q, 64), 64);
    problem.mechanism = match mechanism {
        "linear" => Mechanism::LINEAR,
        "linformer" => Mechanism::LINFORMER,
        "mla" => Mechanism::MLA,
        _ => Mechanism::Softmax,
    };
    if mechanism == "mla" {
        (problem.heads_kv, problem.head_dim_qk, problem.head_dim_v) =
            if phase == Phase::Decode { (1, 576, 512) } else { (2, 192, 128) };
    }
    problem.pattern = match pattern {
        "window" => Pattern::Window { left: 15, right: 0 },
        "dilated" => Pattern::Dilated { window: 4, step: 2 },
        "longformer" => Pattern::Longformer { window: 4, global: 1, dilation: 1 },
        "bigbird" => Pattern::Bigbird { block: 16, window: 1, global: 0, random: 1, seed: 0 },
        "strided" => Pattern::Strided { stride: 8 },
        "fixed" => Pattern::Fixed { block: 8, summary: 1 },
        _ => Pattern::Full,
    };
    problem
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_valid() {
        for row in LEGAL {
            for &phase in row.phases {
                for &pattern in row.patterns {
                    let mut problem = probe(row.mechanism, phase, pattern);
                    problem.causal = row.causality == Causality::Always;
                    assert_eq!(problem.validate(), Ok(()), "{}", problem.id());
                    assert_eq!((problem.mechanism.name(), problem.pattern.name()), (row.mechanism, pattern));
                }
            }
        }
    }
}
