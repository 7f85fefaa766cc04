//! What a series did and took back: levels that go away again are no changes.
//!
//! A machine with a noisy neighbour and a regression that is repaired look alike while they last, and afterwards both have
//! left the level as it was. So a plateau between two equal levels is an excursion as long as it is short, in however many
//! steps it came and went. At either end of a series the other side of a plateau is missing: what is as short as what this
//! series took back before, at the same level, may be taken back too.

use std::cell::OnceCell;

use super::series::Series;
use super::short_memory::RunningSums;
use super::{PROVISIONAL, SHORTEST_LEVEL, outliers};

/// Longest plateau that is an excursion, in values,
const LONGEST_PLATEAU: usize = 50;
/// and as a share of the series: one over this.
const PLATEAU_SHARE: usize = 6;

/// Lengths of what is taken for an excursion, for a series.
#[derive(Clone, Copy)]
pub(super) struct Lengths {
    /// Of a plateau between equal levels.
    plateau: usize,
    /// Of a first level, before which nothing is known.
    first: usize,
    /// Of a last level whose last value is back.
    last: usize,
}

impl Lengths {
    /// For a series of so many values.
    pub(super) fn of(values: usize) -> Lengths {
        Lengths {
            plateau: (values / PLATEAU_SHARE).clamp(8, LONGEST_PLATEAU),
            first: (values / 15).clamp(4, 25),
            last: (values / 20).clamp(4, 20),
        }
    }
}

/// Values that are set aside: from `start` to before `end`.
#[derive(Clone, Copy)]
pub(super) struct Gone {
    start: usize,
    end: usize,
    /// Whether the levels around them may differ.
    is_change: bool,
}

impl Series {
    /// Values that went away again, or that nothing can be said about: plateaus between levels that differ by less than half
    /// of what they differ from them, and any that is as short as an excursion; a short first level; a short last one
    /// whose last value is back.
    pub(super) fn gone(&self, changes: &[usize], lengths: Lengths) -> Option<Gone> {
        let n = self.values.len();
        let fit = self.levels(changes)?;
        let first = *changes.first()?;
        if let Some(plateau) = self.plateau(changes, &fit.sizes, lengths) {
            return Some(plateau);
        }
        let length = self.places[first] - self.places[0];
        if length < lengths.first || length <= REPEATS * self.stay_near(fit.sizes[0], fit.sizes[1]) {
            return Some(Gone { start: 0, end: first, is_change: false });
        }
        let last = changes[changes.len() - 1];
        let before: f64 = fit.sizes[..changes.len()].iter().sum();
        let step = fit.sizes[changes.len()];
        let end = self.values[n - 1];
        let is_back = (end - before).abs() < (end - before - step).abs();
        // Values that are back at last may have been too few for a level, and set aside.
        let is_near =
            |&(place, value): &(usize, f64)| place > self.places[n - 1] && (value - before).abs() < 0.5 * step.abs();
        let back = self.aside.iter().rev().take_while(|value| is_near(value)).count();
        let is_gone = n - last <= lengths.last + SHORTEST_LEVEL && is_back || n - last <= lengths.plateau && back >= 2;
        is_gone.then_some(Gone { start: last, end: n, is_change: false })
    }

    /// The run of levels that are an excursion together; of several, the one from the level that most values are of, and
    /// the shortest of those. `sizes` are those of the first level and of each change.
    fn plateau(&self, changes: &[usize], sizes: &[f64], lengths: Lengths) -> Option<Gone> {
        let n = self.values.len();
        let levels: Vec<f64> = sizes
            .iter()
            .scan(0.0, |level, size| {
                *level += size;
                Some(*level)
            })
            .collect();
        let of_level = |level: usize| {
            let start = if level == 0 { 0 } else { changes[level - 1] };
            start..changes.get(level).copied().unwrap_or(n)
        };
        let mut found: Option<(usize, usize, Gone)> = None;
        for before in 0..changes.len() {
            for after in before + 2..=changes.len() {
                let (start, end) = (changes[before], changes[after - 1]);
                let length = self.places[end - 1] - self.places[start] + 1;
                let away: Vec<f64> = levels[before + 1..after].iter().map(|level| level - levels[before]).collect();
                if away.iter().any(|distance| distance * away[0] <= 0.0) || away[away.len() - 1] * sizes[after] >= 0.0 {
                    continue;
                }
                let nearest = away.iter().fold(sizes[after].abs(), |nearest, distance| nearest.min(distance.abs()));
                let is_near = |level: usize| (levels[level] - levels[before]).abs() < 0.5 * nearest;
                let is_one = away.len() == 1;
                let may_be_back = is_one && n - end <= PROVISIONAL && length <= 2 * lengths.last;
                let is_back = may_be_back || is_near(after) && length <= lengths.plateau;
                let is_spike = is_one && length <= outliers::LONGEST_EXCURSION;
                if !is_back && !is_spike {
                    continue;
                }
                let support: usize =
                    (0..=before).filter(|&level| is_near(level)).map(|level| of_level(level).len()).sum();
                if found.as_ref().is_none_or(|(most, shortest, _)| (support, *shortest) > (*most, length)) {
                    found = Some((support, length, Gone { start, end, is_change: !is_back }));
                }
            }
        }
        Some(found?.2)
    }

    /// Whether the last of the changes, of such a size, may yet go away: this series left that level before, after about as
    /// long.
    pub(super) fn may_go_away(&self, change: usize, level: f64, size: f64) -> bool {
        let length = self.places[self.places.len() - 1] - self.places[change] + 1;
        length <= REPEATS * self.stay_near(level, size)
    }

    /// The longest run of values that were set aside near a level, nearer than half a step.
    fn stay_near(&self, level: f64, step: f64) -> usize {
        let (mut longest, mut start, mut last) = (0, 0, None);
        for &(place, value) in &self.aside {
            if (value - level).abs() > 0.5 * step.abs() {
                continue;
            }
            // A value in between that noise brought near the other level does not end a stay.
            if last.is_none_or(|last| place > last + 2) {
                start = place;
            }
            last = Some(place);
            longest = longest.max(place - start + 1);
        }
        longest
    }

    /// Leaves out values that are gone, and the changes at both of their ends.
    pub(super) fn without(&mut self, gone: Gone, changes: &[usize]) -> Vec<usize> {
        let Gone { start, end, is_change } = gone;
        let values = self.values.drain(start..end);
        self.aside.extend(self.places.drain(start..end).zip(values));
        self.aside.sort_unstable_by_key(|&(place, _)| place);
        self.sums = RunningSums::new(&self.values);
        self.drift = OnceCell::new();
        let kept = changes.iter().filter(|&&change| change < start || change > end || (change == start && is_change));
        kept.map(|&change| if change > end { change - (end - start) } else { change }).collect()
    }
}

/// How many times as long as before a level may last and still go away.
const REPEATS: usize = 2;
