//! The tensors of one call of a softmax kernel.

use super::rows::{SharedLse, SharedRows};
use super::score::ScoreRules;
use crate::problem::AttentionProblem;
use crate::tensor::{Tensor, TensorName, TensorSet};

/// What every softmax kernel takes from a call's tensors.
pub(crate) struct Call<'a> {
    /// Queries.
    pub(crate) q: &'a Tensor,
    /// Keys.
    pub(crate) k: &'a Tensor,
    /// Values.
    pub(crate) v: &'a Tensor,
    /// One logit a query head, where the problem has sinks.
    pub(crate) sinks: Option<&'a [f32]>,
    /// What happens to scores.
    pub(crate) rules: ScoreRules<'a>,
    /// Factor of the scores.
    pub(crate) scale: f32,
    /// Output rows.
    pub(crate) o: SharedRows,
    /// Where the caller wants it.
    pub(crate) lse: Option<SharedLse>,
}

impl<'a> Call<'a> {
    /// The call's tensors; `slopes` are the problem's ALiBi slopes.
    pub(crate) fn new(
        problem: &AttentionProblem,
        slopes: &'a [f32],
        inputs: &'a TensorSet,
        outputs: &mut TensorSet,
    ) -> Self {
        Call {
            q: inputs.get(TensorName::Q),
            k: inputs.get(TensorName::K),
            // Absorbed MLA has one latent row a token: its head is the value.
            v: inputs.get(if problem.is_absorbed_mla() { TensorName::K } else { TensorName::V }),
            sinks: problem.sinks.then(|| inputs.get(TensorName::Sinks).as_slice()),
            rules: ScoreRules::new(problem, slopes, inputs),
            scale: problem.effective_scale() as f32,
            o: SharedRows::new(outputs.get_mut(TensorName::O)),
            lse: outputs.contains(TensorName::Lse).then(|| SharedLse::new(outputs.get_mut(TensorName::Lse))),
        }
    }
}
