//! `attnbench report html`: reads everything that the pages show, and writes them into a folder.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::Args;
use super::input::{is_gate, load_gate};
use crate::commands::compare::{load_policy, load_record, prices, side};
use crate::commands::history::existing;
use crate::commands::terminal;
use crate::compare::devices::{DeviceComparison, compare_devices};
use crate::files::write_atomically;
use crate::gate::outcome::{GateReport, judge};
use crate::history::search::{FoundSeries, search};
use crate::record::Record;
use crate::report::html::{DATA_FILE, ROUNDS_FOLDER, Site, files};

/// Where the pages go unless somebody says so.
const DEFAULT_FOLDER: &str = "report";

/// Writes the pages.
pub(super) fn write(args: &Args) -> anyhow::Result<()> {
    let folder = args.out.clone().unwrap_or(DEFAULT_FOLDER.into());
    check(&folder)?;
    let (runs, gate) = read(args)?;
    let devices = devices(args, &runs)?;
    let history = history(args)?;
    let site = Site { runs: &runs, gate: gate.as_ref(), devices: devices.as_ref(), history: &history };
    let index = write_pages(&folder, &site)?;
    terminal::print(&format!("report: {}", index.display()))
}

/// Writes pages into a folder, and answers the one to open.
pub(crate) fn write_pages(folder: &Path, site: &Site<'_>) -> anyhow::Result<PathBuf> {
    // Rounds of an older report that had more cases would be left over.
    let rounds = folder.join(ROUNDS_FOLDER);
    if rounds.is_dir() {
        fs::remove_dir_all(&rounds).with_context(|| format!("clearing `{}`", rounds.display()))?;
    }
    for file in files(site) {
        let path = folder.join(&file.path);
        write_atomically(&path, &file.contents).with_context(|| format!("writing report `{}`", path.display()))?;
    }
    Ok(folder.join("index.html"))
}

/// A folder that is no report is not written over.
fn check(folder: &Path) -> anyhow::Result<()> {
    if !folder.exists() || folder.join(DATA_FILE).is_file() {
        return Ok(());
    }
    let mut entries = fs::read_dir(folder).with_context(|| format!("writing report `{}`", folder.display()))?;
    if entries.next().is_some() {
        bail!(
            "writing report `{}`: the folder has other files and no report; name an empty or a new one",
            folder.display()
        );
    }
    Ok(())
}

/// The runs, base first, and the judgement where there is one.
fn read(args: &Args) -> anyhow::Result<(Vec<Record>, Option<GateReport>)> {
    let mut gate = None;
    let mut runs = Vec::new();
    for path in &args.inputs {
        if !is_gate(path) {
            runs.push(load_record(path)?);
            continue;
        }
        if gate.is_some() || args.base.is_some() {
            bail!(
                "reading gate report `{}`: a report has one judgement; leave out --base or the other one",
                path.display()
            );
        }
        gate = Some(load_gate(path)?.0);
        // What was measured lies beside the report.
        for side in sides_of(path).iter().filter(|side| side.is_file()) {
            runs.push(load_record(side)?);
        }
    }
    if let Some(base) = &args.base {
        let policy = load_policy(args.policy.as_deref())?.unwrap_or_default();
        gate = Some(judge(&runs, &side(base, &args.baselines)?, &policy, &[], false)?);
        // A baseline has no samples: then there is but head to show.
        if let Ok(base) = load_record(Path::new(base)) {
            runs.insert(0, base);
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    runs.retain(|run| seen.insert(run.run.id.clone()));
    Ok((runs, gate))
}

/// The records that a gate wrote beside its report.
fn sides_of(gate: &Path) -> [PathBuf; 2] {
    ["base.json", "head.json"].map(|side| gate.with_extension(side))
}

/// Several devices, where the runs are of several.
fn devices(args: &Args, runs: &[Record]) -> anyhow::Result<Option<DeviceComparison>> {
    let is_each_of_its_own =
        (1..runs.len()).all(|at| runs[..at].iter().all(|other| other.fingerprint != runs[at].fingerprint));
    if runs.len() >= 2 && is_each_of_its_own {
        return Ok(Some(compare_devices(runs, &prices(&args.price))?));
    }
    if !args.price.is_empty() {
        bail!("comparing devices: --price needs one record each of several devices");
    }
    Ok(None)
}

/// The history's series, where one is named.
fn history(args: &Args) -> anyhow::Result<Vec<FoundSeries>> {
    let Some(place) = &args.store else { return Ok(Vec::new()) };
    let mut store = existing(place)?;
    let selected = store.series()?;
    Ok(search(store.as_mut(), selected, true)?)
}
