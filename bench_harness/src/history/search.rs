//! The changes of every series of a store, acceptances included.

use rayon::prelude::*;
use serde::{Serialize, Serializer};

use super::changes::{Change, Observation, Query, SeriesChanges, find};
use super::point::SeriesKey;
use crate::stats::change_point::Settings;
use crate::store::history::{Acceptance, HistoryError, HistoryStore, SeriesSummary, StoredPoint};
use crate::suite::CaseGlob;

/// A series over time, and what was found in it. As JSON it has its key, the number of its points, and its changes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FoundSeries {
    /// Which one.
    #[serde(flatten, serialize_with = "key")]
    pub summary: SeriesSummary,
    /// Its values, in the order of time.
    #[serde(serialize_with = "length")]
    pub points: Vec<StoredPoint>,
    /// Its changes.
    #[serde(flatten)]
    pub found: SeriesChanges,
}

fn key<S: Serializer>(summary: &SeriesSummary, serializer: S) -> Result<S::Ok, S::Error> {
    summary.key.serialize(serializer)
}

fn length<S: Serializer>(points: &[StoredPoint], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(points.len() as u64)
}

/// Searches these series of a store, on all cores. `provisional`: changes that may yet go away are wanted too.
///
/// # Errors
/// The store cannot be read, or holds an acceptance whose glob is none.
pub fn search(
    store: &mut dyn HistoryStore,
    series: Vec<SeriesSummary>,
    provisional: bool,
) -> Result<Vec<FoundSeries>, HistoryError> {
    let acceptances = acceptances(store)?;
    let mut stored: Vec<(SeriesSummary, Vec<StoredPoint>)> = Vec::new();
    for summary in series {
        let points = store.points(&summary.key)?;
        stored.push((summary, points));
    }
    let of_series = |(summary, points): (SeriesSummary, Vec<StoredPoint>)| {
        let observation = |point: &StoredPoint| Observation {
            value: Some(point.value),
            time: Some(point.time.clone()),
            commit: point.commit.clone(),
        };
        let observations: Vec<Observation> = points.iter().map(observation).collect();
        let query = Query {
            better: summary.better,
            provisional,
            settings: Settings::default(),
            is_accepted: &|change| is_accepted(&acceptances, &summary.key, change, &observations),
        };
        let found = find(&observations, &query);
        FoundSeries { summary, points, found }
    };
    Ok(stored.into_par_iter().map(of_series).collect())
}

fn acceptances(store: &mut dyn HistoryStore) -> Result<Vec<(CaseGlob, Acceptance)>, HistoryError> {
    let globbed = store.acceptances()?.into_iter().map(|acceptance| match CaseGlob::parse(&acceptance.case) {
        Ok(glob) => Ok((glob, acceptance)),
        Err(cause) => Err(HistoryError { doing: "reading acceptances of", store: String::new(), cause }),
    });
    globbed.collect()
}

/// Whether somebody accepted a change of this series: its metric and case, a commit of its range, and no more than that.
fn is_accepted(
    acceptances: &[(CaseGlob, Acceptance)],
    key: &SeriesKey,
    change: &Change,
    observations: &[Observation],
) -> bool {
    let id = key.case.split(' ').next().unwrap_or_default();
    let in_range = |start: &str| {
        observations[change.index_low..=change.index_high]
            .iter()
            .filter_map(|observation| observation.commit.as_deref())
            .any(|commit| commit.starts_with(start))
    };
    acceptances.iter().any(|(glob, acceptance)| {
        acceptance.metric == key.metric
            && (glob.matches(&key.case) || glob.matches(id))
            && change.size.abs() <= acceptance.at_most
            && in_range(&acceptance.commit)
    })
}
