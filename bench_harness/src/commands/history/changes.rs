//! `attnbench history changes`.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, bail};

use super::{BetterArg, terminal};
use crate::commands::Exit;
use crate::history::changes::{Observation, Query, find};
use crate::history::csv::{self, Columns};
use crate::metric::Better;
use crate::report::history;
use crate::stats::change_point::{LONGEST_SERIES, Settings};

/// What is shown, and how.
#[derive(Clone, Copy)]
pub(super) struct Show {
    pub(super) provisional: bool,
    pub(super) fail_on_open: bool,
    pub(super) json: bool,
}

/// The changes of a column of a CSV file.
pub(super) fn of_csv(path: &Path, columns: &Columns, better: BetterArg, show: Show) -> anyhow::Result<Exit> {
    let reading = || format!("reading series `{}`", path.display());
    if path.is_dir() {
        bail!("{}: this is a directory; name a file in it", reading());
    }
    let file = File::open(path).with_context(reading)?;
    let rows = csv::read(file, columns).with_context(reading)?;
    let observations: Vec<Observation> = rows
        .into_iter()
        .map(|row| Observation { value: row.value, time: row.time, commit: row.commit })
        .collect();
    if observations.len() > LONGEST_SERIES {
        eprintln!("warning: only the last {LONGEST_SERIES} of {} values are searched", observations.len());
    }
    let query = Query {
        better: better.into(),
        provisional: show.provisional,
        settings: Settings::default(),
        is_accepted: &|_| false,
    };
    let found = find(&observations, &query);
    if show.json {
        terminal::print_json(&found)?;
    } else {
        let title = format!("{} of {}", columns.value, path.display());
        let text = history::changes_text(&title, observations.len(), &found, terminal::style());
        terminal::print(text.trim_end())?;
    }
    Ok(if show.fail_on_open && found.open_regression.is_some() { Exit::Regression } else { Exit::Pass })
}

impl From<BetterArg> for Better {
    fn from(better: BetterArg) -> Better {
        match better {
            BetterArg::Lower => Better::Lower,
            BetterArg::Higher => Better::Higher,
            BetterArg::None => Better::None,
        }
    }
}
