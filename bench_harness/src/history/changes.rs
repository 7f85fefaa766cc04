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

#[cfg(test)]
mod tests {
    use super::*;

    /// A series with these levels, 40 values each, with a little noise that has no pattern.
    fn series(levels: &[f64]) -> Vec<Observation> {
        let value = |t: usize| levels[t / 40] * (1.0 + ((t * 7919 % 101) as f64 - 50.0) / 10_000.0);
        (0..40 * levels.len())
            .map(|t| Observation {
                value: Some(value(t)),
                time: None,
                commit: t.is_multiple_of(2).then(|| format!("c{t}")),
            })
            .collect()
    }

    fn found(levels: &[f64], better: Better, accepted: Option<usize>) -> SeriesChanges {
        let is_accepted = |change: &Change| accepted == Some(change.index);
        let query = Query { better, provisional: false, settings: Settings::default(), is_accepted: &is_accepted };
        find(&series(levels), &query)
    }

    fn states(found: &SeriesChanges) -> Vec<State> {
        found.changes.iter().map(|change| change.state).collect()
    }

    #[test]
    fn a_regression_does_not_become_normal_by_lasting() {
        let found = found(&[100.0, 110.0, 110.0, 110.0], Better::Lower, None);
        assert_eq!(states(&found), [State::Open]);
        assert!((found.normal.unwrap() - 100.0).abs() < 0.1);
        assert!((found.open_regression.unwrap() - 0.1).abs() < 0.002);
    }

    #[test]
    fn it_does_when_it_is_accepted() {
        let found = found(&[100.0, 110.0, 110.0], Better::Lower, Some(40));
        assert_eq!((states(&found), found.open_regression), (vec![State::Accepted], None));
        assert!((found.normal.unwrap() - 110.0).abs() < 0.1);
    }

    #[test]
    fn it_recovers_when_it_is_taken_back_and_not_when_half_of_it_is() {
        let whole = found(&[100.0, 110.0, 100.0], Better::Lower, None);
        assert_eq!((states(&whole), whole.open_regression), (vec![State::Recovered, State::Normal], None));
        let half = found(&[100.0, 110.0, 105.0], Better::Lower, None);
        assert_eq!(states(&half), [State::Open, State::Normal]);
        assert!((half.open_regression.unwrap() - 0.05).abs() < 0.002);
        assert!((half.normal.unwrap() - 100.0).abs() < 0.1);
    }

    #[test]
    fn an_improvement_is_the_new_normal() {
        let found = found(&[100.0, 90.0, 95.0], Better::Lower, None);
        assert_eq!(states(&found), [State::Normal, State::Open]);
        assert!((found.normal.unwrap() - 90.0).abs() < 0.1);
    }

    #[test]
    fn directions_follow_the_metric() {
        let direction = |better| found(&[100.0, 110.0], better, None).changes[0].direction;
        assert_eq!(direction(Better::Lower), Direction::Regressed);
        assert_eq!(direction(Better::Higher), Direction::Improved);
        assert_eq!(direction(Better::None), Direction::Changed);
        let nothing = found(&[100.0], Better::Lower, None);
        assert_eq!((nothing.changes.len(), nothing.normal), (0, None));
    }

    #[test]
    fn commits_around_the_interval_are_named() {
        let found = found(&[100.0, 110.0], Better::Lower, None);
        let change = &found.changes[0];
        assert_eq!((change.index, change.index_low, change.index_high), (40, 40, 40));
        assert_eq!(change.commit.as_deref(), Some("c40"));
        assert_eq!(change.after_commit.as_deref(), Some("c38"));
        assert_eq!(change.until_commit.as_deref(), Some("c40"));
    }
}
