//! Whether the controls beside base and head differ: then it is not the kernels that do.

use super::policy::Policy;
use super::stages::p_value;
use crate::compare::verdict::change;
use crate::stats::{Alternative, hodges_lehmann};

/// What the log ratios of the controls say against a comparison; nothing where they agree. Common drift is in both sides
/// of a ratio and does not show.
pub fn difference(ratios: &[f64], policy: &Policy) -> Option<String> {
    let shift = hodges_lehmann::one_sample(ratios, 0.95)?;
    let p = p_value(ratios, Alternative::TwoSided);
    let differs = p <= policy.control_alpha && shift.estimate.abs() > policy.control_floor.ln_1p();
    differs.then(|| format!("{} beside head than beside base, p = {p:.1e}", change(shift.estimate)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_difference_counts_that_is_large_and_sure() {
        let policy = Policy::default();
        let around = |centre: f64, n: usize| (0..n).map(|i| centre + 0.001 * (i % 5) as f64).collect::<Vec<_>>();
        assert_eq!(difference(&[], &policy), None);
        assert_eq!(difference(&around(-0.002, 16), &policy), None);
        assert_eq!(difference(&around(0.02, 4), &policy), None, "four cannot be sure");
        assert_eq!(difference(&around(0.002, 40), &policy), None, "sure and small");
        assert!(difference(&around(0.02, 16), &policy).unwrap().contains("2.2 % slower beside head"));
        assert!(difference(&around(-0.02, 16), &policy).unwrap().contains("faster beside head"));
    }
}
