//! `attnbench history push`, `import` and `export`: what goes into a store and out of it.

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use serde::Serialize;

use super::{Select, view};
use crate::commands::{Exit, terminal};
use crate::history::export::{Format as ExportFormat, file as exported};
use crate::history::import::{self, guess};
use crate::history::point::{Run, of_record};
use crate::record::file;
use crate::store::history::{HistoryStore, open};

/// Largest file of another tool, in bytes.
const MAX_IMPORT_BYTES: u64 = 512 << 20;

/// What was added.
#[derive(Serialize)]
struct Added {
    runs: usize,
    new: usize,
    store: String,
}

pub(super) fn push(store: &str, records: &[PathBuf], json: bool) -> anyhow::Result<Exit> {
    let runs: Vec<Run> =
        records.iter().map(|path| file::load(path).map(|record| of_record(&record))).collect::<Result<_, _>>()?;
    add(store, &runs, json)
}

pub(super) fn import(
    store: &str,
    files: &[PathBuf],
    format: Option<import::Format>,
    is_suite_by_name: bool,
    mut context: import::Context,
    json: bool,
) -> anyhow::Result<Exit> {
    let mut runs = Vec::new();
    for path in files {
        let importing = || format!("importing `{}`", path.display());
        let bytes = contents(path).with_context(importing)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let format = format.or_else(|| guess(&name, &bytes)).ok_or_else(|| {
            anyhow!("{}: neither its name nor its contents say what wrote it; add --format", importing())
        })?;
        if is_suite_by_name {
            context.suite = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        }
        runs.extend(import::read(format, &bytes, &context).with_context(importing)?);
    }
    add(store, &runs, json)
}

fn contents(path: &Path) -> anyhow::Result<Vec<u8>> {
    if path.is_dir() {
        bail!("this is a directory; name a file in it");
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_IMPORT_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_IMPORT_BYTES {
        bail!("the file is larger than the limit of {MAX_IMPORT_BYTES} bytes; split it");
    }
    Ok(bytes)
}

fn add(store: &str, runs: &[Run], json: bool) -> anyhow::Result<Exit> {
    let new = open(store)?.push(runs)?;
    let added = Added { runs: runs.len(), new, store: crate::store::history::shown(store) };
    if json {
        terminal::print_json(&added)?;
    } else {
        let known = runs.len() - new;
        let known = if known == 0 { String::new() } else { format!(", {known} there already") };
        terminal::print(&format!("{new} new run{} in `{}`{known}", if new == 1 { "" } else { "s" }, added.store))?;
    }
    Ok(Exit::Pass)
}

pub(super) fn export(
    store: &mut dyn HistoryStore,
    select: &Select,
    format: ExportFormat,
    out: Option<&Path>,
) -> anyhow::Result<Exit> {
    let mut series = Vec::new();
    for summary in view::selected(store, select)? {
        let points = store.points(&summary.key)?;
        series.push((summary, points));
    }
    let bytes = exported(format, &series);
    match out {
        None if format == ExportFormat::Parquet && std::io::stdout().is_terminal() => {
            bail!("exporting Parquet to a terminal: it is not text; name a file with --out")
        }
        None => terminal::print_bytes(&bytes)?,
        Some(path) => std::fs::write(path, bytes).with_context(|| format!("writing `{}`", path.display()))?,
    }
    Ok(Exit::Pass)
}
