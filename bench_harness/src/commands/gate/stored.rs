//! `attnbench gate RECORD --baseline NAME`: finished runs against a stored baseline.
//!
//! Policy, acceptances and, where it is named, the baseline itself are those of base's tree, as in a gate in pairs: a change
//! cannot move its own goalposts. Outside of a repository there is no base, and what is on disk counts.

use std::path::{Component, Path, PathBuf};

use anyhow::Context;

use super::{Args, against};
use crate::commands::Exit;
use crate::commands::compare::load_record;
use crate::compare::Baseline;
use crate::device::cpu::info::CpuInfo;
use crate::gate::outcome::judge;
use crate::record::Record;
use crate::rules::{RuleSource, RunRules};
use crate::store::baseline::{BASELINE, BaselineName, BaselineStore, parse};
use crate::vcs::{RepositoryState, Snapshot, Sources, repository_state};

/// Judges, prints and keeps.
pub(super) fn run(args: &Args, baseline: &str) -> anyhow::Result<Exit> {
    let heads = args.records.iter().map(|path| load_record(path)).collect::<anyhow::Result<Vec<_>>>()?;
    let given = args.common.policy()?;
    let device = CpuInfo::read().slug();
    let (mut rules, baseline) = match repository_state(&args.pairs.repository)? {
        RepositoryState::At(_) => {
            let sources = Sources::open(&args.pairs.repository)?;
            let (base, head) = (against::base(args, &sources)?, head_of(&heads, &sources)?);
            let today = jiff::Zoned::now().date().to_string();
            let source = RuleSource { sources: &sources, base: &base, head: &head, device: &device, today: &today };
            let mut rules = source.read_for_runs(given)?;
            let baseline = match is_file(baseline) {
                true => args.common.baseline(baseline)?,
                false => of_base(args, baseline, &source, &mut rules.notes)?,
            };
            (rules, baseline)
        }
        RepositoryState::Outside | RepositoryState::Unborn { .. } => {
            let notes = match given {
                Some(_) => Vec::new(),
                None => vec!["no commit is here to read a policy from: the default policy decides".to_owned()],
            };
            let rules = RunRules { policy: given.unwrap_or_default(), acceptances: Vec::new(), notes };
            (rules, args.common.baseline(baseline)?)
        }
    };
    args.override_in(&mut rules.policy)?;
    let mut report = judge(&heads, &baseline, &rules.policy, &rules.acceptances, args.strict)?;
    report.command = super::command_line();
    report.comparison.notes.extend(rules.notes);
    super::print(args, &report)?;
    let commit = |commits: &[String]| commits.last().cloned();
    let (base, head) = (commit(&report.comparison.base.commits), commit(&report.comparison.head.commits));
    super::keep(args, &report, base, head)?;
    Ok(report.exit())
}

/// The commit that the latest run measured, where it is known here, else HEAD.
fn head_of(heads: &[Record], sources: &Sources) -> anyhow::Result<Snapshot> {
    let measured = heads.iter().rev().find_map(|record| Some(record.git.as_ref()?.commit.as_str()));
    if let Some(head) = measured.and_then(|commit| sources.commit(commit).ok()) {
        return Ok(head);
    }
    Ok(sources.commit("HEAD")?)
}

/// Whether this is a file and no name.
fn is_file(baseline: &str) -> bool {
    Path::new(baseline).is_file()
}

/// A baseline by its name: base's copy where it has one, else the one on disk.
fn of_base(args: &Args, baseline: &str, source: &RuleSource<'_>, notes: &mut Vec<String>) -> anyhow::Result<Baseline> {
    let name = BaselineName::parse(baseline, source.device)?;
    let path = BaselineStore::new(&args.common.baselines).path(&name);
    let file = from_root(&path, source.sources.root())?;
    let Some(file) = file else { return args.common.baseline(baseline) };
    match source.sources.file(source.base, &file, BASELINE.max_bytes as usize)? {
        Some(bytes) => {
            if std::fs::read(&path).ok().as_ref() != Some(&bytes) {
                notes.push(format!("`{file}` is not as base has it: base's copy decides, until the other is merged"));
            }
            Ok(parse(&bytes, Path::new(&source.named(&file)))?)
        }
        None => {
            let found = args.common.baseline(baseline)?;
            notes.push(format!("base has no `{file}`: the one on disk decides"));
            Ok(found)
        }
    }
}

/// A path from the root of the working tree, whether or not it is there; `None` where it leads elsewhere.
fn from_root(path: &Path, root: &Path) -> anyhow::Result<Option<String>> {
    let here = std::env::current_dir().and_then(|here| here.canonicalize()).context("finding the current folder")?;
    let mut plain = PathBuf::new();
    for component in here.join(path).components() {
        match component {
            Component::ParentDir => _ = plain.pop(),
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    let root = root.canonicalize().with_context(|| format!("finding the repository `{}`", root.display()))?;
    Ok(plain.strip_prefix(root).ok().and_then(Path::to_str).map(str::to_owned))
}
