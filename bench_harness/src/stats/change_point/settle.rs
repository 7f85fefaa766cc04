//! Which candidates stay: those that chance, the scatter of their own sides and drift each explain worse.

use std::ops::Range;

use super::series::{BENDING, Drift, Series};
use super::{SHORTEST_LEVEL, Settings};

impl Series {
    /// Drops candidates until each that is left is convincing, and moves those that are to their best places.
    pub(super) fn settle(&self, mut changes: Vec<usize>, settings: &Settings) -> Vec<usize> {
        loop {
            changes = self.moved(&changes, 0.0);
            if let Some(fit) = self.levels(&changes) {
                changes = self.moved(&changes, fit.filter.memory);
            }
            let weakest = self
                .weakest_by_chance(&changes, settings)
                .or_else(|| self.weakest_by_scatter(&changes, settings))
                .or_else(|| self.weakest_by_drift(&changes, settings));
            let Some(weakest) = weakest else { return changes };
            changes.remove(weakest);
        }
    }

    /// The change that stable noise makes most easily, unless that is too rare for all of them.
    fn weakest_by_chance(&self, changes: &[usize], settings: &Settings) -> Option<usize> {
        let with = self.in_stable_noise(changes);
        let gains = (0..changes.len()).map(|which| with - self.in_stable_noise(&without(changes, which)));
        let (weakest, gain) = gains.enumerate().min_by(|a, b| a.1.total_cmp(&b.1))?;
        let length = self.neighbourhood(changes, weakest).len();
        (tail_of_largest_split(gain, length) > settings.false_alarm).then_some(weakest)
    }

    /// The change that the scatter of the values on its own two sides makes most easily, unless that is too rare for all of
    /// them. Likelihoods take the noise for the same throughout, and see steps wherever a machine became noisier.
    fn weakest_by_scatter(&self, changes: &[usize], settings: &Settings) -> Option<usize> {
        let memory = self.levels(changes)?.filter.memory;
        let inflation = (1.0 + memory) / (1.0 - memory);
        let gains = (0..changes.len()).map(|which| {
            let range = self.neighbourhood(changes, which);
            let (before, error_before) = self.mean_and_error(range.start..changes[which]);
            let (after, error_after) = self.mean_and_error(changes[which]..range.end);
            (after - before).powi(2) / (inflation * (error_before + error_after))
        });
        let (weakest, gain) = gains.enumerate().min_by(|a, b| a.1.total_cmp(&b.1))?;
        let length = self.neighbourhood(changes, weakest).len();
        (tail_of_largest_split(gain, length) > settings.false_alarm).then_some(weakest)
    }

    /// The mean of some values, and the square of its standard error in white noise.
    fn mean_and_error(&self, range: Range<usize>) -> (f64, f64) {
        let values = &self.values[range];
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let least = n * self.least_squares / self.values.len() as f64;
        (mean, (squares + least) / (n - 1.0).max(1.0) / n)
    }

    /// The change that drift replaces most easily, unless drift is worse than each of them and than all together.
    fn weakest_by_drift(&self, changes: &[usize], settings: &Settings) -> Option<usize> {
        if changes.is_empty() {
            return None;
        }
        let count = changes.len() as f64;
        // Steps and a curve together, where that is far likelier than either alone.
        let with = self.in_any_noise(changes).max(self.with_curve(changes, BENDING) - COST_OF_BOTH);
        let Drift { no_change, trend, any } = *self.drift.get_or_init(|| Drift::of(self));
        let gains = (0..changes.len()).map(|which| {
            let others = without(changes, which);
            let drift = if others.is_empty() {
                no_change
            } else {
                let curved = [1, 3, 7].map(|degree| self.with_curve(&others, degree));
                curved.into_iter().fold(self.in_any_noise(&others), f64::max)
            };
            with - drift - COST_OF_A_STEP
        });
        let (weakest, gain) = gains.enumerate().min_by(|a, b| a.1.total_cmp(&b.1))?;
        let all = with - COST_OF_A_STEP * count;
        let is_convincing = gain >= settings.drift_margin
            && all - trend >= settings.trend_margin * count
            && all - any >= settings.drift_margin + settings.trend_margin * (count - 1.0);
        (!is_convincing).then_some(weakest)
    }

    /// From the change before to the one after.
    pub(super) fn neighbourhood(&self, changes: &[usize], which: usize) -> Range<usize> {
        let start = if which == 0 { 0 } else { changes[which - 1] };
        start..changes.get(which + 1).copied().unwrap_or(self.values.len())
    }

    /// Each change where the sum of squares is least between its neighbours, in noise of that correlation.
    fn moved(&self, changes: &[usize], correlation: f64) -> Vec<usize> {
        let mut changes = changes.to_vec();
        for _ in 0..2 {
            for which in 0..changes.len() {
                let profile = self.profile(&changes, which, correlation);
                if let Some((place, _)) = profile.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)) {
                    changes[which] = place;
                }
            }
        }
        changes
    }

    /// The sum of squares for each place of one change, around where it is. Its neighbours' levels are fitted with it, and
    /// nothing beyond them depends on its place.
    pub(super) fn profile(&self, changes: &[usize], which: usize, correlation: f64) -> Vec<(usize, f64)> {
        let now = changes[which];
        let range = self.neighbourhood(changes, which);
        let low = (range.start + SHORTEST_LEVEL).max(now.saturating_sub(REACH));
        let high = range.end.saturating_sub(SHORTEST_LEVEL).min(now + REACH);
        (low..=high)
            .filter_map(|place| Some((place, self.sums.fit(range.start, range.end, &[place], correlation)?.squares)))
            .collect()
    }
}

/// All changes but one.
pub(super) fn without(changes: &[usize], which: usize) -> Vec<usize> {
    let mut others = changes.to_vec();
    others.remove(which);
    others
}

/// What a step may gain for nothing, as two parameters do (Akaike, 1974).
const COST_OF_A_STEP: f64 = 4.0;
/// By how much steps and a curve together must be likelier than either alone.
const COST_OF_BOTH: f64 = 8.0;
/// How far a change is moved from its candidate's place.
const REACH: usize = 40;

/// Chance that the best split of n values of noise gains at least `gain` in twice the log likelihood (Csörgő and Horváth,
/// 1997, eq. 1.3.26, for one parameter, with [`SHORTEST_LEVEL`] values left at either end).
pub(super) fn tail_of_largest_split(gain: f64, n: usize) -> f64 {
    if gain <= 1.0 {
        return 1.0;
    }
    let trimmed = (SHORTEST_LEVEL as f64 / n as f64).min(0.4);
    let span = ((1.0 - trimmed).powi(2) / trimmed.powi(2)).ln();
    let x = gain.sqrt();
    let density = x * (-0.5 * gain).exp() / (2.0 * std::f64::consts::PI).sqrt();
    (density * (span * (1.0 - 1.0 / gain) + 4.0 / gain)).clamp(0.0, 1.0)
}
