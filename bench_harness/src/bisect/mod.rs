//! Which commit made a case slower.
//!
//! [`search`] is the pure part: a graph of commits, what was found of some of them, and so what to test next. Each test
//! measures a commit against the good one, in pairs, until a sequential test answers. [`journal`] keeps every answer, so
//! that a search goes on where it was stopped.

pub mod journal;
pub mod search;

use crate::compare::{Finding, Verdict};
use crate::stats::noise::{robust_deviation, standard_deviation};
use crate::stats::sequential::SequentialTest;
use journal::Effect;
use search::Graph;

/// Chance that a search names a wrong commit, shared by its tests.
pub const ERROR: f64 = 0.01;
/// Pairs after which a commit that is neither fast nor slow is passed over.
pub const MAX_PAIRS: usize = 64;

impl Effect {
    /// What a gate of bad against good found, with all of its pairs; nothing where bad is not slower.
    pub fn of(finding: &Finding, log_ratios: Vec<f64>) -> Option<Effect> {
        let ratio = finding.ratio.as_ref().filter(|_| finding.verdict == Verdict::Regressed)?;
        let deviation = |of: fn(&[f64]) -> Option<f64>| of(&log_ratios).unwrap_or(0.0);
        // A spike or two must not make the tests long, nor a tight middle of wild pairs make them rash.
        let deviation = deviation(robust_deviation).max(0.5 * deviation(standard_deviation));
        Some(Effect { log_ratio: ratio.value.ln(), deviation, log_ratios })
    }

    /// The test of each commit of a search. `None` where the effect or its noise is no usable number.
    pub fn test(&self, graph: &Graph) -> Option<SequentialTest> {
        SequentialTest::new(self.log_ratio, self.deviation, ERROR / f64::from(graph.steps().max(1)))
    }
}
