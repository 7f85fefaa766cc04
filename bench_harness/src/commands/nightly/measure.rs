//! One night: what it is called, and its record, measured now or before.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Parser;
use jiff::civil::Date;

use super::Args;
use crate::commands::run;
use crate::device::cpu::info::CpuInfo;
use crate::history::point::machine_name;
use crate::record::environment::fingerprint;
use crate::record::{Record, file};
use crate::store::history::HistoryStore;
use crate::suite::{self, SUITES_DIR, Suite};
use crate::vcs::{RepositoryState, repository_state};

/// Options of `attnbench run` that a night decides itself.
const OWN_OPTIONS: [&str; 8] =
    ["--out", "-o", "--resume", "--store", "--dry-run", "--json", "--shard", "--shard-times"];
/// Runs of a store that are looked through for this night.
const MOST_RUNS: usize = i32::MAX as usize;

/// A commit, a day, a suite and how it is measured.
pub(super) struct Night {
    /// The same for the same night: the run's id, and the name of its folder.
    pub(super) id: String,
    pub(super) suite: String,
    pub(super) day: Date,
    pub(super) commit: String,
    pub(super) folder: PathBuf,
}

/// A record of the night.
pub(super) struct Measured {
    pub(super) record: Record,
}

/// The arguments of `attnbench run`, read from a list.
#[derive(Parser)]
#[command(name = "attnbench run", no_binary_name = true)]
struct RunLine {
    #[command(flatten)]
    args: run::Args,
}

impl Night {
    pub(super) fn of(args: &Args) -> anyhow::Result<Night> {
        let path = suite::find(&args.suite, &[PathBuf::from(SUITES_DIR)])?;
        let suite = Suite::load(&path)?;
        let RepositoryState::At(git) = repository_state(Path::new("."))? else {
            bail!(
                "starting a night of suite `{}`: results of nights belong to commits, and here is none; run it in a git \
                 repository",
                suite.name
            );
        };
        if git.dirty && !args.allow_dirty {
            bail!(
                "starting a night of suite `{}`: tracked files differ from commit {}; commit or stash them, or measure \
                 with --allow-dirty",
                suite.name,
                &git.commit[..12]
            );
        }
        let is_own = |option: &&String| {
            OWN_OPTIONS
                .iter()
                .any(|own| *option == own || option.strip_prefix(own).is_some_and(|rest| rest.starts_with('=')))
        };
        if let Some(option) = args.options.iter().find(is_own) {
            bail!(
                "starting a night of suite `{}`: `{option}` is not for nights, which decide it themselves",
                suite.name
            );
        }
        let day = args.day.unwrap_or_else(|| jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date());
        let mut hasher = blake3::Hasher::new();
        let machine = machine_name(&fingerprint(&CpuInfo::read()));
        for text in [&suite.hash, &machine, &git.dirty.to_string()].into_iter().chain(&args.options) {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        let hash = &hasher.finalize().to_hex()[..8];
        let id = format!("{}-{}-{hash}", day.strftime("%Y%m%d"), &git.commit[..12]);
        let folder = args.dir.join(format!("{}-{id}", suite.name));
        Ok(Night { id, suite: suite.name, day, commit: git.commit, folder })
    }

    /// Where its record is.
    pub(super) fn record(&self) -> PathBuf {
        self.folder.join("record.json")
    }

    /// The record: found, completed or measured. None where the history has the night and its record is elsewhere.
    pub(super) fn measured(&self, store: &mut dyn HistoryStore, args: &Args) -> anyhow::Result<Option<Measured>> {
        let path = self.record();
        let journal = run::journal_path(&path);
        if path.exists() && !journal.exists() {
            let record = file::load(&path)?;
            if record.run.complete {
                eprintln!("night {} is measured: `{}`", self.id, path.display());
                return Ok(Some(Measured { record }));
            }
        } else if !journal.exists() && store.runs(MOST_RUNS)?.iter().any(|run| run.id == self.id) {
            eprintln!("night {} is in the history already", self.id);
            return Ok(None);
        }
        let mut line = vec![args.suite.clone(), "--out".to_owned(), path.to_string_lossy().into_owned()];
        if journal.exists() && !discard_if_empty(&journal)? {
            line.extend(["--resume".to_owned(), journal.to_string_lossy().into_owned()]);
        }
        line.extend(args.options.iter().cloned());
        let mut run_line = RunLine::try_parse_from(&line)?;
        run_line.args.id = Some(self.id.clone());
        let (record, _) = run::measured(&run_line.args)?;
        Ok(Some(Measured { record }))
    }
}

/// A run that was killed before its journal had a line has measured nothing, and its journal is only in the way.
fn discard_if_empty(journal: &Path) -> anyhow::Result<bool> {
    let opening = || format!("opening journal `{}`", journal.display());
    let mut file = File::open(journal).with_context(opening)?;
    let mut start = Vec::new();
    // Whoever has only just made it holds its lock.
    let is_idle = file.try_lock().is_ok();
    (&mut file).take(1 << 16).read_to_end(&mut start).with_context(opening)?;
    let is_empty = is_idle && !start.contains(&b'\n');
    if is_empty {
        std::fs::remove_file(journal).with_context(|| format!("removing journal `{}`", journal.display()))?;
    }
    Ok(is_empty)
}
