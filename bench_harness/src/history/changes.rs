//! The changes of a series as people speak of them: worse or better, between which commits, and whether it still holds.

use serde::Serialize;

use crate::metric::Better;
use crate::stats::change_point::{ChangePoint, Settings, change_points};

/// A value of a series, in the order of time.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// The value; `None` where there is none.
    pub value: Option<f64>,
    /// When, as it was written.
    pub time: Option<String>,
    /// Of which commit.
    pub commit: Option<String>,
}

/// Which way a change goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// For the worse.
    Regressed,
    /// For the better.
    Improved,
    /// Of a quantity that is neither.
    Changed,
}

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// A regression that still holds and that nobody accepted: what is normal stays what was before it.
    Open,
    /// A regression that was accepted: the new level is normal.
    Accepted,
    /// A regression that a later change took back.
    Recovered,
    /// No regression: the new level is normal.
    Normal,
}

/// A change of a series.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// Number of the first value of the new level, from 0.
    pub index: usize,
    /// Smallest number of the interval that holds the true one.
    pub index_low: usize,
    /// Largest number of that interval.
    pub index_high: usize,
    /// Which way it goes.
    pub direction: Direction,
    /// What became of it.
    pub state: State,
    /// Relative size: 0.03 is 3 % more.
    pub size: f64,
    /// Lower end of its interval.
    pub size_low: f64,
    /// Upper end of its interval.
    pub size_high: f64,
    /// Level before.
    pub before: f64,
    /// Level after.
    pub after: f64,
    /// One minus the chance of a change as convincing in a series of stable noise.
    pub confidence: f64,
    /// Whether it is so recent that it may go away.
    pub provisional: bool,
    /// When the first value of the new level was measured.
    pub time: Option<String>,
    /// The commit of that value.
    pub commit: Option<String>,
    /// The last commit that the interval rules out: the change came after it.
    pub after_commit: Option<String>,
    /// The last commit of the interval: the change came with it at the latest.
    pub until_commit: Option<String>,
}

/// What was found in a series.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SeriesChanges {
    /// In the order of time.
    pub changes: Vec<Change>,
    /// The level that counts as normal: the latest that is no open regression.
    pub normal: Option<f64>,
    /// The latest level.
    pub latest: Option<f64>,
    /// The latest level over the normal one, relatively, while a regression is open.
    pub open_regression: Option<f64>,
}

/// What to look for.
pub struct Query<'a> {
    /// Which direction is good.
    pub better: Better,
    /// Whether changes that may go away are wanted.
    pub provisional: bool,
    /// Constants of the detector.
    pub settings: Settings,
    /// Whether a regression was accepted.
    pub is_accepted: &'a dyn Fn(&Change) -> bool,
}

/// The changes of a series.
pub fn find(observations: &[Observation], query: &Query<'_>) -> SeriesChanges {
    let values: Vec<f64> = observations.iter().map(|observation| observation.value.unwrap_or(f64::NAN)).collect();
    let mut points = change_points(&values, &query.settings);
    points.retain(|point| query.provisional || !point.provisional);
    let mut changes: Vec<Change> = points.iter().map(|point| change(point, observations, query)).collect();
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return SeriesChanges { changes, normal: None, latest: None, open_regression: None };
    };
    let (mut normal, latest) = (first.before, last.after);
    for now in 0..changes.len() {
        let is_regression = changes[now].direction == Direction::Regressed;
        let is_accepted = is_regression && (query.is_accepted)(&changes[now]);
        changes[now].state = match (is_regression, is_accepted) {
            (true, false) => State::Open,
            (true, true) => State::Accepted,
            (false, _) => State::Normal,
        };
        let is_open = changes[..now].iter().any(|change| change.state == State::Open);
        let level = changes[now].after;
        let becomes_normal = match changes[now].state {
            State::Open | State::Recovered => false,
            State::Accepted => true,
            // Better than an open regression is not enough: it must be as good as what was normal.
            State::Normal => !is_open || is_as_good(level, normal, &changes[now], query.better),
        };
        if becomes_normal {
            normal = level;
            let resolved = if is_accepted { State::Accepted } else { State::Recovered };
            for earlier in changes[..now].iter_mut().filter(|change| change.state == State::Open) {
                earlier.state = resolved;
            }
        }
    }
    let is_open = changes.iter().any(|change| change.state == State::Open);
    SeriesChanges {
        normal: Some(normal),
        latest: Some(latest),
        open_regression: is_open.then(|| (latest - normal) / normal.abs()),
        changes,
    }
}

/// Whether a level is as good as the normal one, within the uncertainty of the change that led to it.
fn is_as_good(level: f64, normal: f64, change: &Change, better: Better) -> bool {
    let slack = 0.5 * (change.size_high - change.size_low).abs() * normal.abs();
    match better {
        Better::Lower => level <= normal + slack,
        Better::Higher => level >= normal - slack,
        Better::None => true,
    }
}

fn change(point: &ChangePoint, observations: &[Observation], query: &Query<'_>) -> Change {
    let direction = match (query.better, point.after > point.before) {
        (Better::None, _) => Direction::Changed,
        (Better::Lower, true) | (Better::Higher, false) => Direction::Regressed,
        (Better::Lower, false) | (Better::Higher, true) => Direction::Improved,
    };
    let commit = |index: usize| observations.get(index).and_then(|observation| observation.commit.clone());
    // The nearest values around that have a commit bound the range.
    let earlier = (0..point.index_low).rev().find_map(commit);
    let later = (point.index_high..observations.len()).find_map(commit);
    Change {
        index: point.index,
        index_low: point.index_low,
        index_high: point.index_high,
        direction,
        state: State::Normal,
        size: point.size,
        size_low: point.size_interval.low,
        size_high: point.size_interval.high,
        before: point.before,
        after: point.after,
        confidence: point.confidence,
        provisional: point.provisional,
        time: observations[point.index].time.clone(),
        commit: commit(point.index),
        after_commit: earlier,
        until_commit: later,
    }
}
