//! `attnbench history list` and `series`.

use anyhow::bail;
use serde::Serialize;

use super::Select;
use crate::commands::{Exit, terminal};
use crate::report::history;
use crate::store::history::{HistoryStore, SeriesSummary, StoredPoint};

pub(super) fn list(store: &mut dyn HistoryStore, most: usize, json: bool) -> anyhow::Result<Exit> {
    let runs = store.runs(most)?;
    if json {
        terminal::print_json(&runs)?;
    } else {
        terminal::print(history::runs_text(&runs).trim_end())?;
    }
    Ok(Exit::Pass)
}

/// A series as JSON.
#[derive(Serialize)]
struct WithPoints<'a> {
    #[serde(flatten)]
    summary: &'a SeriesSummary,
    #[serde(skip_serializing_if = "Option::is_none")]
    values: Option<Vec<StoredPoint>>,
}

pub(super) fn series(
    store: &mut dyn HistoryStore,
    select: &Select,
    with_points: bool,
    json: bool,
) -> anyhow::Result<Exit> {
    let summaries = selected(store, select)?;
    let mut series = Vec::new();
    for summary in &summaries {
        let values = if with_points { Some(store.points(&summary.key)?) } else { None };
        series.push(WithPoints { summary, values });
    }
    if json {
        terminal::print_json(&series)?;
        return Ok(Exit::Pass);
    }
    let style = terminal::style();
    if !with_points {
        terminal::print(history::series_text(&summaries, style).trim_end())?;
    }
    for series in series {
        if let Some(points) = series.values {
            terminal::print(&history::points_text(series.summary, &points, style))?;
        }
    }
    Ok(Exit::Pass)
}

/// The series that are asked for.
pub(super) fn selected(store: &mut dyn HistoryStore, select: &Select) -> anyhow::Result<Vec<SeriesSummary>> {
    let all = store.series()?;
    let count = all.len();
    let is = |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|wanted| wanted == found);
    let selected: Vec<SeriesSummary> = all
        .into_iter()
        .filter(|summary| {
            let key = &summary.key;
            // A case of a record is its id, mode and threads; a glob on the id alone is enough.
            let id = key.case.split(' ').next().unwrap_or_default();
            select.case.as_ref().is_none_or(|glob| glob.matches(&key.case) || glob.matches(id))
                && is(&select.metric, &key.metric)
                && is(&select.suite, &key.suite)
                && is(&select.machine, &key.machine)
        })
        .collect();
    if selected.is_empty() && count > 0 {
        bail!("selecting series: none of {count} matches; `attnbench history series` lists them");
    }
    Ok(selected)
}
