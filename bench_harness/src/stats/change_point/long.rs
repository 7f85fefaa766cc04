//! Long series, searched in two steps: the medians of blocks for where the level changes, then the values around each
//! change for the place.

use super::{ChangePoint, PROVISIONAL, Settings, change_points};
use crate::stats::quantile::median;

/// Blocks of a long series at most.
const BLOCKS: usize = 4_000;
/// Blocks to either side of a change in which its place is sought.
const AROUND: usize = 3;
/// Mean absolute deviations that a place may cost more than the best and still be of the interval.
const NEARLY: f64 = 4.0;

/// The changes of a series of more values than are searched one by one. Levels of fewer than five blocks are not seen.
pub(super) fn change_points_of_long(values: &[f64], settings: &Settings) -> Vec<ChangePoint> {
    let block = values.len().div_ceil(BLOCKS);
    let of_block = |values: &[f64]| {
        let finite: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
        median(&finite).unwrap_or(f64::NAN)
    };
    let medians: Vec<f64> = values.chunks(block).map(of_block).collect();
    let mut found = change_points(&medians, settings);
    for change in &mut found {
        let place = change.index * block;
        let window = place.saturating_sub(AROUND * block)..(place + AROUND * block).min(values.len());
        let refined = placed(&values[window.clone()], change.before, change.after);
        let (index, low, high) = refined.unwrap_or((place - window.start, 0, window.len() - 1));
        change.index = window.start + index;
        change.index_low = window.start + low;
        change.index_high = window.start + high;
        change.provisional |= values.len() - change.index <= PROVISIONAL * block;
    }
    found.dedup_by_key(|change| change.index);
    found
}

/// The first value of the level `after`, by the least sum of absolute deviations, with the smallest and the largest place
/// that are nearly as good. `None` without finite values.
fn placed(values: &[f64], before: f64, after: f64) -> Option<(usize, usize, usize)> {
    // What each place costs more than the first: a value that passes from one level to the other.
    let mut costs = Vec::with_capacity(values.len());
    let mut cost = 0.0;
    for value in values {
        costs.push(cost);
        if value.is_finite() {
            cost += (value - before).abs() - (value - after).abs();
        }
    }
    let is_place = |at: &usize| values[*at].is_finite();
    let best = (0..values.len()).filter(is_place).min_by(|&a, &b| costs[a].total_cmp(&costs[b]))?;
    let level = |at: usize| if at < best { before } else { after };
    let deviations: Vec<f64> = (0..values.len()).filter(is_place).map(|at| (values[at] - level(at)).abs()).collect();
    let near = costs[best] + NEARLY * median(&deviations)?;
    let low = (0..=best).rev().take_while(|&at| costs[at] <= near).last()?;
    let high = (best..values.len()).take_while(|&at| costs[at] <= near).last()?;
    Some((best, low, high))
}
