//! The changes of every series of a store, acceptances included.

use rayon::prelude::*;
use serde::Serialize;

use super::changes::{Change, Observation, Query, SeriesChanges, find};
use super::point::SeriesKey;
use crate::stats::change_point::Settings;
use crate::store::history::{Acceptance, HistoryError, HistoryStore, SeriesSummary};
use crate::suite::CaseGlob;

/// A series with what was found in it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FoundSeries {
    /// Which series.
    #[serde(flatten)]
    pub key: SeriesKey,
    /// Values that it has.
    pub points: usize,
    /// Its changes.
    #[serde(flatten)]
    pub found: SeriesChanges,
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
    let mut observed: Vec<(SeriesSummary, Vec<Observation>)> = Vec::new();
    for summary in series {
        let points = store.points(&summary.key)?.into_iter().map(|point| Observation {
            value: Some(point.value),
            time: Some(point.time),
            commit: point.commit,
        });
        observed.push((summary, points.collect()));
    }
    let of_series = |(summary, observations): &(SeriesSummary, Vec<Observation>)| {
        let query = Query {
            better: summary.better,
            provisional,
            settings: Settings::default(),
            is_accepted: &|change| is_accepted(&acceptances, &summary.key, change, observations),
        };
        FoundSeries { key: summary.key.clone(), points: observations.len(), found: find(observations, &query) }
    };
    Ok(observed.par_iter().map(of_series).collect())
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
