//! `attnbench history changes` and `accept`.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, bail};

use super::{Select, view};
use crate::commands::{Exit, terminal};
use crate::history::changes::{Observation, Query, find};
use crate::history::csv::{self, Columns};
use crate::history::point::SeriesKey;
use crate::history::search::{FoundSeries, search};
use crate::metric::Better;
use crate::report::history;
use crate::stats::change_point::Settings;
use crate::store::history::{Acceptance, HistoryStore};
use crate::suite::CaseGlob;

/// What is shown, and how.
#[derive(Clone, Copy)]
pub(super) struct Show {
    pub(super) provisional: bool,
    pub(super) fail_on_open: bool,
    pub(super) json: bool,
}

impl Show {
    fn exit(self, is_open: bool) -> Exit {
        if self.fail_on_open && is_open { Exit::Regression } else { Exit::Pass }
    }
}

/// The changes of a column of a CSV file.
pub(super) fn of_csv(path: &Path, columns: &Columns, better: Better, show: Show) -> anyhow::Result<Exit> {
    let reading = || format!("reading series `{}`", path.display());
    if path.is_dir() {
        bail!("{}: this is a directory; name a file in it", reading());
    }
    let file = File::open(path).with_context(reading)?;
    let rows = csv::read(file, columns).with_context(reading)?;
    let observations: Vec<Observation> =
        rows.into_iter().map(|row| Observation { value: row.value, time: row.time, commit: row.commit }).collect();
    let query = Query { better, provisional: show.provisional, settings: Settings::default(), is_accepted: &|_| false };
    let found = find(&observations, &query);
    if show.json {
        terminal::print_json(&found)?;
    } else {
        let title = format!("{} of {}", columns.value, path.display());
        let text = history::changes_text(&title, observations.len(), &found, terminal::style());
        terminal::print(text.trim_end())?;
    }
    Ok(show.exit(found.open_regression.is_some()))
}

/// The changes of the series of a store.
pub(super) fn of_store(store: &mut dyn HistoryStore, select: &Select, show: Show) -> anyhow::Result<Exit> {
    let selected = view::selected(store, select)?;
    let all = search(store, selected, show.provisional)?;
    let changed: Vec<&FoundSeries> = all.iter().filter(|series| !series.found.changes.is_empty()).collect();
    let open = all.iter().filter(|series| series.found.open_regression.is_some()).count();
    if show.json {
        terminal::print_json(&serde_json::json!({ "series_searched": all.len(), "series": changed }))?;
        return Ok(show.exit(open > 0));
    }
    let style = terminal::style();
    terminal::print(&format!("{} series, {} with changes, {open} with an open regression", all.len(), changed.len()))?;
    for series in changed {
        let SeriesKey { suite, case, metric, machine } = &series.summary.key;
        let title = format!("{suite}: {metric} of {case} on {machine}");
        terminal::print(&format!(
            "\n{}",
            history::changes_text(&title, series.points.len(), &series.found, style).trim_end()
        ))?;
    }
    Ok(show.exit(open > 0))
}

pub(super) fn accept(
    store: &mut dyn HistoryStore,
    commit: &str,
    case: &CaseGlob,
    metric: &str,
    at_most_percent: f64,
    reason: &str,
) -> anyhow::Result<Exit> {
    if commit.len() < 4 {
        bail!("accepting commit `{commit}`: fewer than 4 digits name too many commits");
    }
    if !(at_most_percent > 0.0 && at_most_percent.is_finite()) {
        bail!("accepting commit `{commit}`: --at-most {at_most_percent} is no positive number of percent");
    }
    if reason.trim().is_empty() {
        bail!("accepting commit `{commit}`: --reason is empty; say why, for whoever reads it later");
    }
    let known = store.series()?.iter().any(|summary| summary.key.metric == metric);
    if !known {
        bail!("accepting commit `{commit}`: no series has metric `{metric}`; `attnbench history series` lists them");
    }
    store.accept(&Acceptance {
        case: case.as_str().to_owned(),
        metric: metric.to_owned(),
        commit: commit.to_owned(),
        at_most: at_most_percent / 100.0,
        reason: reason.to_owned(),
        time: format!("{:.0}", jiff::Timestamp::now()),
    })?;
    terminal::print(&format!("accepted changes of {metric} by up to {at_most_percent} % at {commit}"))?;
    Ok(Exit::Pass)
}
