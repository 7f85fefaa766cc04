//! How the figures of cases are combined into the one that a claim is about.
//!
//! A relation is computed once a round, from figures of that round alone: what disturbs a machine for a while disturbs both
//! sides of a ratio. The claim's figure is the median over rounds, with the interval of that median.

use std::collections::BTreeSet;

use super::Evidence;
use super::quantity::{Axis, Quantity, Seen};
use crate::kv::{CacheShape, Element};
use crate::metric::{CONFIDENCE, Estimate};
use crate::stats::power_law;
use crate::stats::quantile::{median, median_interval};
use crate::suite::{PlannedCase, Suite};

/// What is computed.
#[derive(Clone, Debug)]
pub enum Relation {
    /// A quantity of each case of some matrices over that of the case in the same place of others, or of their only one.
    Ratio {
        /// The quantity.
        quantity: Quantity,
        /// Matrices of the numerators.
        of: Vec<String>,
        /// Matrices of the denominators.
        over: Vec<String>,
    },
    /// The exponent of a quantity over an axis.
    Exponent {
        /// The quantity.
        quantity: Quantity,
        /// The axis.
        axis: Axis,
        /// Matrices that hold the points.
        of: Vec<String>,
    },
    /// A quantity of each case.
    Value {
        /// The quantity.
        quantity: Quantity,
        /// Matrices of the cases.
        of: Vec<String>,
    },
    /// Bytes of one cache over those of another, or the share by which it is smaller.
    Cache {
        /// What is claimed about.
        of: Cache,
        /// What it is compared with.
        over: Cache,
        /// 1 - ratio instead of the ratio.
        is_reduction: bool,
    },
}

/// A cache to count.
#[derive(Clone, Debug)]
pub struct Cache {
    /// In words.
    pub name: String,
    /// Layers.
    pub shape: CacheShape,
    /// How it is stored.
    pub element: Element,
    /// Tokens.
    pub context: u64,
}

/// A figure and what it is of.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// Case ids or caches.
    pub of: Vec<String>,
    /// The figure.
    pub estimate: Estimate,
}

impl Relation {
    /// The figures, each of which is claimed about; the error says why there are none here. Intervals of what is timed are
    /// widened by what disturbed the machine.
    pub fn figures(&self, suite: Option<&Suite>, evidence: &Evidence<'_>) -> Result<Vec<Figure>, String> {
        let mut figures = self.undisturbed(suite, evidence)?;
        let factor = if self.quantity().is_some_and(Quantity::is_timed) { evidence.disturbance } else { 1.0 };
        for Figure { estimate, .. } in &mut figures {
            match self {
                Relation::Exponent { axis, of, .. } => {
                    let places = || cases(suite, of).filter_map(|case| axis.of(&case.case));
                    let span = places().fold(0.0, f64::max) / places().fold(f64::INFINITY, f64::min);
                    let wider = factor.ln() / span.ln();
                    (estimate.low, estimate.high) = (estimate.low - wider, estimate.high + wider);
                }
                _ => (estimate.low, estimate.high) = (estimate.low / factor, estimate.high * factor),
            }
        }
        Ok(figures)
    }

    fn undisturbed(&self, suite: Option<&Suite>, evidence: &Evidence<'_>) -> Result<Vec<Figure>, String> {
        match self {
            Relation::Cache { of, over, is_reduction } => {
                let bytes = |cache: &Cache| cache.shape.sequence_bytes(cache.element, cache.context);
                let ratio = bytes(of).and_then(|own| Ok(own as f64 / bytes(over)? as f64));
                let ratio = ratio.map_err(|error| error.to_string())?;
                let value = if *is_reduction { 1.0 - ratio } else { ratio };
                Ok(vec![Figure { of: vec![of.name.clone(), over.name.clone()], estimate: Estimate::exact(value) }])
            }
            Relation::Value { quantity, of } => cases(suite, of)
                .map(|case| {
                    let seen = quantity.of(case, evidence)?;
                    figure(vec![case.case.id()], &[&seen], |values| Some(values[0]))
                })
                .collect(),
            Relation::Ratio { quantity, of, over } => cases(suite, of)
                .enumerate()
                .map(|(index, above)| {
                    let below = cases(suite, over).nth(index).or_else(|| cases(suite, over).last());
                    let below = below.ok_or("a ratio has nothing to divide by")?;
                    let (a, b) = (quantity.of(above, evidence)?, quantity.of(below, evidence)?);
                    figure(vec![above.case.id(), below.case.id()], &[&a, &b], |values| Some(values[0] / values[1]))
                })
                .collect(),
            Relation::Exponent { quantity, axis, of } => {
                let cases: Vec<&PlannedCase> = cases(suite, of).collect();
                let seen: Vec<Seen> = cases.iter().map(|case| quantity.of(case, evidence)).collect::<Result<_, _>>()?;
                let places: Vec<f64> = cases.iter().filter_map(|case| axis.of(&case.case)).collect();
                let law = |values: &[f64]| {
                    let points: Vec<(f64, f64)> = places.iter().copied().zip(values.iter().copied()).collect();
                    Some(power_law::fit(&points, CONFIDENCE)?.exponent)
                };
                let ids = cases.iter().map(|case| case.case.id()).collect();
                Ok(vec![figure(ids, &seen.iter().collect::<Vec<_>>(), law)?])
            }
        }
    }

    /// Matrices that it reads.
    pub fn matrices(&self) -> Vec<&str> {
        match self {
            Relation::Cache { .. } => Vec::new(),
            Relation::Value { of, .. } | Relation::Exponent { of, .. } => of.iter().map(String::as_str).collect(),
            Relation::Ratio { of, over, .. } => of.iter().chain(over).map(String::as_str).collect(),
        }
    }

    /// The quantity that is measured; None of arithmetic.
    pub fn quantity(&self) -> Option<Quantity> {
        match self {
            Relation::Cache { .. } => None,
            Relation::Value { quantity, .. }
            | Relation::Exponent { quantity, .. }
            | Relation::Ratio { quantity, .. } => Some(*quantity),
        }
    }
}

/// The cases of matrices, in the order of the matrices and of the suite.
pub(super) fn cases<'s>(suite: Option<&'s Suite>, matrices: &'s [String]) -> impl Iterator<Item = &'s PlannedCase> {
    let of = move |matrix: &'s String| {
        suite.into_iter().flat_map(|suite| &suite.cases).filter(move |case| case.matrix == *matrix)
    };
    matrices.iter().flat_map(of)
}

/// Combines what was seen round by round, and the rounds to a median with its interval.
fn figure(of: Vec<String>, seen: &[&Seen], combine: impl Fn(&[f64]) -> Option<f64>) -> Result<Figure, String> {
    let failed = || format!("no figure follows from what was measured of `{}`", of[0]);
    let rounds: BTreeSet<u32> = seen
        .iter()
        .flat_map(|seen| match seen {
            Seen::Exact(_) => Vec::new(),
            Seen::ByRound(values) => values.keys().copied().collect(),
        })
        .collect();
    let of_round = |round: u32| {
        let values: Option<Vec<f64>> = seen.iter().map(|seen| seen.of_round(round)).collect();
        combine(&values?)
    };
    if rounds.is_empty() {
        let value = of_round(0).filter(|value| value.is_finite()).ok_or_else(failed)?;
        return Ok(Figure { of, estimate: Estimate::exact(value) });
    }
    let values: Vec<f64> = rounds.into_iter().filter_map(of_round).collect();
    let estimate = median(&values).zip(median_interval(&values, CONFIDENCE));
    let (value, interval) = estimate.ok_or_else(failed)?;
    Ok(Figure { of, estimate: Estimate::new(value, interval) })
}
