//! Pure statistics, one file a concept: no clock, no device, no global state; randomness is a generator passed in.
//!
//! Nothing here assumes normal noise. Estimates are medians and Hodges-Lehmann shifts, intervals come from order
//! statistics and rank distributions, and tests count permutations. A function that the sample cannot support answers
//! `None` rather than a number that looks like one.

pub mod autocorrelation;
pub mod bootstrap;
pub mod change_point;
pub mod fdr;
pub mod geometric_mean;
pub mod hodges_lehmann;
pub mod noise;
pub mod normal;
pub mod power_law;
pub mod quantile;
pub mod rank_sum;
pub mod ranks;
pub mod sequential;
pub mod signed_rank;
pub mod stopping;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An interval that holds the true value with at least a stated probability.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// The probability that was attained, which small samples keep below the one that was asked for.
    pub confidence: f64,
}

/// Which way a one-sided test looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alternative {
    /// Values are greater than zero, or head is greater than base.
    Greater,
    /// Values are less than zero, or head is less than base.
    Less,
    /// Either; twice the smaller one-sided p.
    TwoSided,
}

impl Alternative {
    /// The p-value of this alternative, from the probabilities of a statistic at least and at most as large.
    fn p(self, at_least: f64, at_most: f64) -> f64 {
        match self {
            Alternative::Greater => at_least,
            Alternative::Less => at_most,
            Alternative::TwoSided => 2.0 * at_least.min(at_most),
        }
        .min(1.0)
    }
}

/// The values in order, unless there are none or one of them is not finite.
pub fn sorted(values: &[f64]) -> Option<Vec<f64>> {
    if values.is_empty() || !values.iter().all(|value| value.is_finite()) {
        return None;
    }
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    Some(values)
}
