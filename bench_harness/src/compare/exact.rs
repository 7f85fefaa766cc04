//! Memory and accuracy: numbers that repeat, compared with thresholds instead of tests.

use super::baseline::{SessionCase, SessionError};
use super::verdict::{Finding, Verdict, percent};
use crate::gate::policy::Policy;
use crate::metric::Estimate;
use crate::stats::quantile::median;
use attn_kernels::tensor::TensorName;

/// Extra peak memory: regressed where every round of head needs more than any round of base did, by more than the
/// threshold; improved the other way round. `None` where a side has no figure.
pub fn memory(base: &[&SessionCase], head: &[&SessionCase], policy: &Policy) -> Option<(f64, f64, Finding)> {
    let range = |cases: &[&SessionCase]| {
        let seen = || cases.iter().filter_map(|case| case.extra_peak_bytes);
        Some((seen().map(|(low, _)| low).min()?, seen().map(|(_, high)| high).max()?))
    };
    let (base_low, base_high) = range(base)?;
    let (head_low, head_high) = range(head)?;
    let allowed = |bytes: u64| bytes.saturating_add(policy.memory_slack_bytes.max((bytes as f64 * policy.memory_share) as u64));
    let (verdict, reason) = if head_low > allowed(base_high) {
        (Verdict::Regressed, format!("{} bytes more in every round", head_low - base_high))
    } else if base_low > allowed(head_high) {
        (Verdict::Improved, format!("{} bytes less in every round", base_low - head_high))
    } else if head_high <= allowed(base_high) {
        (Verdict::Unchanged, "within the threshold in every round".to_owned())
    } else {
        (Verdict::Inconclusive, format!("between {head_low} and {head_high} bytes, which rounds disagree on"))
    };
    let ratio = (base_high > 0).then(|| Estimate::exact(head_high as f64 / base_high as f64));
    Some((base_high as f64, head_high as f64, Finding { ratio, ..Finding::bare(verdict, reason) }))
}

/// Relative L2 error: regressed where the median of a tensor grew by more than `accuracy_ratio` and by more than
/// `accuracy_rise` of its tolerance; the worst tensor speaks. `None` where the sides share no verified tensor.
pub fn accuracy(base: &[&SessionCase], head: &[&SessionCase], policy: &Policy) -> Option<(f64, f64, Finding)> {
    let tensors: std::collections::BTreeSet<TensorName> = base.iter().flat_map(|case| case.errors.keys().copied()).collect();
    let judged = tensors.into_iter().filter_map(|tensor| {
        let (base, head) = (typical(base, tensor)?, typical(head, tensor)?);
        Some(tensor_accuracy(tensor, base, head, policy))
    });
    judged.min_by(|a, b| {
        let rise = |(base, head, _): &(f64, f64, Finding)| head / base.max(f64::MIN_POSITIVE);
        a.2.verdict.cmp(&b.2.verdict).then(rise(b).total_cmp(&rise(a)))
    })
}

fn typical(cases: &[&SessionCase], tensor: TensorName) -> Option<SessionError> {
    let seen: Vec<SessionError> = cases.iter().filter_map(|case| case.errors.get(&tensor).copied()).collect();
    let relative_l2 = median(&seen.iter().map(|error| error.relative_l2).collect::<Vec<_>>())?;
    Some(SessionError { relative_l2, calls: seen.iter().map(|error| error.calls).sum(), ..*seen.last()? })
}

fn tensor_accuracy(tensor: TensorName, base: SessionError, head: SessionError, policy: &Policy) -> (f64, f64, Finding) {
    let (before, after) = (base.relative_l2, head.relative_l2);
    let step = policy.accuracy_rise * head.allowed_relative_l2;
    let worse = |from: f64, to: f64| to > policy.accuracy_ratio * from && to - from > step;
    let numbers = format!("{tensor:?}: {before:.1e} to {after:.1e} over {} calls", head.calls);
    let (verdict, reason) = if worse(before, after) {
        (Verdict::Regressed, format!("{numbers}, a rise of {} of the tolerance", percent((after - before) / head.allowed_relative_l2)))
    } else if worse(after, before) {
        (Verdict::Improved, numbers)
    } else {
        (Verdict::Unchanged, numbers)
    };
    let ratio = (before > 0.0).then(|| Estimate::exact(after / before));
    (before, after, Finding { ratio, ..Finding::bare(verdict, reason) })
}
