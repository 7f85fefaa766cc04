//! Whether the machine was another one for head than for base: the controls of an A/B gate, jointly.
//!
//! Controls run from one binary, so nothing that a commit does can move them; a difference between the times that stand
//! beside base and those beside head says that the sides did not have the same machine, and that no case is comparable.
//! What moves both alike is drift, which pairs cancel.

use super::policy::Policy;
use super::stages::p_value;
use crate::compare::verdict::change;
use crate::stats::quantile::median;
use crate::stats::{Alternative, hodges_lehmann};

/// The pairs of a control.
#[derive(Clone, Debug, PartialEq)]
pub struct PairedControl {
    /// Which.
    pub name: String,
    /// Natural logarithm of its time beside head over that beside base, a round each.
    pub log_ratios: Vec<f64>,
}

/// What the controls of a gate say together.
#[derive(Clone, Debug, PartialEq)]
pub struct ControlsFinding {
    /// Whether base and head had the same machine, as far as can be told.
    pub is_comparable: bool,
    /// Chance of so much evidence against it where it holds.
    pub p_value: f64,
    /// Why, in a sentence.
    pub reason: String,
}

/// Tests all controls together, at `control_p`: each by itself, and their pooled pairs, each control's scaled by its own
/// scatter so that a noisy one drowns no other; Bonferroni over the tests. A difference below `control_floor` is none.
pub fn judge(policy: &Policy, controls: &[PairedControl]) -> ControlsFinding {
    let usable = |control: &&PairedControl| {
        !control.log_ratios.is_empty() && control.log_ratios.iter().all(|ratio| ratio.is_finite())
    };
    let controls: Vec<&PairedControl> = controls.iter().filter(usable).collect();
    let test = |pairs: &[f64]| p_value(pairs, Alternative::TwoSided, policy);
    let estimate = |pairs: &[f64]| hodges_lehmann::one_sample_estimate(pairs).unwrap_or(0.0);
    // The median magnitude does not change with signs, so scaling keeps the test exact.
    let scatter = |pairs: &[f64]| median(&pairs.iter().map(|pair| pair.abs()).collect::<Vec<_>>()).unwrap_or(0.0);
    let mut tests: Vec<(f64, String, f64)> = controls
        .iter()
        .map(|control| (test(&control.log_ratios), format!("control `{}`", control.name), estimate(&control.log_ratios)))
        .collect();
    if controls.len() > 1 {
        let scaled = controls.iter().flat_map(|control| {
            let scale = scatter(&control.log_ratios);
            control.log_ratios.iter().map(move |pair| if scale > 0.0 { pair / scale } else { *pair })
        });
        let pooled: Vec<f64> = scaled.collect();
        let centres: Vec<f64> = tests.iter().map(|(_, _, estimate)| *estimate).collect();
        tests.push((test(&pooled), "the controls together".to_owned(), median(&centres).unwrap_or(0.0)));
    }
    let count = tests.len() as f64;
    let strongest = tests
        .into_iter()
        .filter(|(_, _, estimate)| estimate.abs() > policy.control_floor.ln_1p())
        .min_by(|a, b| a.0.total_cmp(&b.0));
    let Some((p, name, estimate)) = strongest else {
        let reason = if count == 0.0 { "no control ran" } else { "no control moved by more than the floor" };
        return ControlsFinding { is_comparable: true, p_value: 1.0, reason: reason.to_owned() };
    };
    let p_value = (p * count).min(1.0);
    let reason = format!("{name}: {} beside head than beside base, joint p = {p_value:.1e}", change(estimate));
    ControlsFinding { is_comparable: p_value > policy.control_p, p_value, reason }
}
