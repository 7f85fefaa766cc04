//! The values that belong to levels, and how likely levels make them.

use std::cell::OnceCell;

use super::SHORTEST_LEVEL;
use super::noise::{Filter, Fit, best_fit, correlations, legendre, long_memory};
use super::partition;
use super::short_memory::RunningSums;

/// Values that belong to levels, and where they come from.
pub(super) struct Series {
    pub(super) values: Vec<f64>,
    pub(super) places: Vec<usize>,
    /// Values that belong to no level that stayed, by their places.
    pub(super) aside: Vec<(usize, f64)>,
    /// What was subtracted from the values.
    pub(super) centre: f64,
    /// Smallest sum of squared innovations that is taken for possible, by the values' resolution.
    pub(super) least_squares: f64,
    pub(super) sums: RunningSums,
    /// How likely the values are without any change, once that was asked for.
    pub(super) drift: OnceCell<Drift>,
}

/// Twice the log likelihood of values without a change.
#[derive(Clone, Copy)]
pub(super) struct Drift {
    /// In noise that may wander.
    pub(super) no_change: f64,
    /// Around a line.
    pub(super) trend: f64,
    /// In the likeliest of wandering noise and curves.
    pub(super) any: f64,
}

impl Drift {
    pub(super) fn of(series: &Series) -> Drift {
        let no_change = series.in_any_noise(&[]);
        let trend = series.with_curve(&[], 1);
        let bending = series.with_curve(&[], BENDING) - COST_OF_BENDING;
        let curved = [series.with_curve(&[], 3), series.with_curve(&[], 5), bending];
        Drift { no_change, trend, any: curved.into_iter().fold(no_change, f64::max) }
    }
}

impl Series {
    pub(super) fn new(values: Vec<f64>, places: Vec<usize>, quantum: f64) -> Series {
        let mut sorted = values.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let centre = sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
        let values: Vec<f64> = values.iter().map(|value| value - centre).collect();
        // Rounding to a quantum adds noise of a twelfth of its square; nothing is more regular than that, nor than a
        // billionth of what there is.
        let largest = values.iter().fold(f64::MIN_POSITIVE, |most, value| most.max(value.abs()));
        let resolution = quantum.max(1e-9 * largest);
        let least_squares = (values.len() as f64 * resolution * resolution / 12.0).max(f64::MIN_POSITIVE);
        let sums = RunningSums::new(&values);
        Series { values, places, aside: Vec::new(), centre, least_squares, sums, drift: OnceCell::new() }
    }

    /// Where changes may be: the best piecewise constant fit at a price that clean series of the same noise often pay.
    pub(super) fn candidates(&self) -> Vec<usize> {
        let Some(variance) = long_run_variance(&self.values) else { return Vec::new() };
        let floor = self.least_squares / self.values.len() as f64;
        partition::partition(&self.values, CANDIDATE_PRICE * variance.max(floor), SHORTEST_LEVEL)
    }

    /// Twice the log likelihood, but for a constant.
    pub(super) fn likelihood(&self, fit: Option<&Fit>) -> f64 {
        let n = self.values.len() as f64;
        fit.map_or(f64::NEG_INFINITY, |fit| -n * ((fit.squares + self.least_squares) / n).ln())
    }

    /// Levels that change there, in the likeliest noise of a stable machine.
    pub(super) fn levels(&self, changes: &[usize]) -> Option<Fit> {
        let n = self.values.len();
        correlations()
            .filter_map(|correlation| self.sums.fit(0, n, changes, correlation))
            .min_by(|a, b| a.squares.total_cmp(&b.squares))
    }

    pub(super) fn in_stable_noise(&self, changes: &[usize]) -> f64 {
        self.likelihood(self.levels(changes).as_ref())
    }

    /// Twice the log likelihood of levels that change there in noise that may wander, less the cost of its second weight.
    pub(super) fn in_any_noise(&self, changes: &[usize]) -> f64 {
        let wandering = best_fit(&self.values, changes, &[], &long_memory());
        self.in_stable_noise(changes).max(self.likelihood(wandering.as_ref()) - 2.0)
    }

    /// Twice the log likelihood of levels and a polynomial through all of them, less the cost of its weights.
    pub(super) fn with_curve(&self, changes: &[usize], degree: usize) -> f64 {
        let filters: Vec<Filter> = correlations().step_by(3).map(|memory| Filter { memory, gain: 1.0 }).collect();
        let curves = legendre(degree, self.values.len());
        self.likelihood(best_fit(&self.values, changes, &curves, &filters).as_ref()) - 2.0 * degree as f64
    }
}

/// The variance of means, times their length, of a series that may have steps: from differences of neighbours and of next
/// neighbours, which steps hardly touch (Chakar et al., 2017, section 2, for first-order noise). Extreme differences are
/// those of steps and are cut off.
fn long_run_variance(values: &[f64]) -> Option<f64> {
    let one = difference_variance(values, 1)?;
    let two = difference_variance(values, 2)?;
    if one <= 0.0 {
        return Some(two.max(0.0));
    }
    let correlation = (two / one - 1.0 - 0.1).clamp(0.0, 0.8);
    Some(0.5 * one / (1.0 - correlation) * (1.0 + correlation) / (1.0 - correlation))
}

fn difference_variance(values: &[f64], lag: usize) -> Option<f64> {
    let mut differences: Vec<f64> = values.iter().skip(lag).zip(values).map(|(a, b)| (a - b).abs()).collect();
    if differences.len() < 2 {
        return None;
    }
    differences.sort_unstable_by(f64::total_cmp);
    let limit = 4.0 * 1.4826 * differences[differences.len() / 2];
    let n = differences.len() as f64;
    Some(differences.iter().map(|d| if limit > 0.0 { d.min(limit) } else { *d }).map(|d| d * d).sum::<f64>() / n)
}

/// Degree of a curve that follows up to four waves, as machines have them by day and week.
pub(super) const BENDING: usize = 9;
/// What such a curve costs beyond its weights: it can look like any step.
const COST_OF_BENDING: f64 = 4.0;
/// Price of a candidate, in long-run variances.
const CANDIDATE_PRICE: f64 = 9.0;
