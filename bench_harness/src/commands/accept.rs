//! `attnbench accept`: live with a regression.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};

use super::{Exit, terminal};
use crate::compare::Verdict;
use crate::files::write_atomically;
use crate::gate::acceptance::{ACCEPTANCES_FILE, Acceptance, Acceptances, DISPOSITION, MAX_ACCEPTANCES_BYTES};
use crate::gate::outcome::GateReport;
use crate::suite::CaseGlob;
use crate::vcs::Sources;

/// Days that an acceptance counts when nobody says how many.
const DEFAULT_DAYS: i64 = 90;

/// Accept a regression: add an entry to a file that is reviewed and merged like code
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  attnbench accept --case 'cpu/flash/*' --metric latency_ns_median --at-most 5 --reason 'NaN rows'
  attnbench accept --case '*/d256' --metric disposition --reason 'dropped' --expires 2027-06-30
  attnbench accept --report results/gate.json --commit 3f2a91c --reason 'deterministic backward'

Metrics: latency_ns_median, extra_peak_bytes, relative_l2, instructions, and disposition for cases that are
removed or no longer run. A gate reads the file from the commit that it compares with: an acceptance
counts once it is merged there, never within the change that needs it.")]
pub struct Args {
    /// Cases that it covers (`*` crosses slashes)
    #[arg(long, value_name = "GLOB", requires = "metric", required_unless_present = "report")]
    case: Option<CaseGlob>,
    /// Metric that it covers
    #[arg(long, value_name = "NAME", requires = "case")]
    metric: Option<String>,
    /// Largest growth that is accepted, in percent
    #[arg(long, value_name = "PERCENT")]
    at_most: Option<f64>,
    /// Accept everything that this report of a gate calls regressed, up to what it measured
    #[arg(long, value_name = "FILE", conflicts_with_all = ["case", "metric", "at_most"])]
    report: Option<PathBuf>,
    /// Why
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Who decided [default: git's user.name]
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Last day on which it counts, as 2026-12-31 [default: in 90 days]
    #[arg(long, value_name = "DATE")]
    expires: Option<String>,
    /// Count only for changes that bring this commit
    #[arg(long, value_name = "HASH")]
    commit: Option<String>,
    /// The file [default: ci/acceptances.toml of this repository]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// Runs it.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    let sources = Sources::open(Path::new("."));
    let file = match (&args.file, &sources) {
        (Some(file), _) => file.clone(),
        (None, Ok(sources)) => sources.root().join(ACCEPTANCES_FILE),
        (None, Err(_)) => return Err(sources.err().map_or(anyhow!("no repository"), anyhow::Error::from)),
    };
    let mut all = read(&file)?;
    let added = entries(&args, sources.ok().as_ref())?;
    for acceptance in &added {
        acceptance.check().map_err(|reason| anyhow!("accepting a regression: {reason}"))?;
    }
    let count = added.len();
    for acceptance in added {
        if all.accept.contains(&acceptance) {
            bail!("accepting a regression: `{}` has this entry already", file.display());
        }
        all.accept.push(acceptance);
    }
    write_atomically(&file, all.to_toml().as_bytes())
        .with_context(|| format!("writing acceptances `{}`", file.display()))?;
    let entries = if count == 1 { "1 entry".to_owned() } else { format!("{count} entries") };
    terminal::print(&format!("{entries} added to {}; it counts once it is merged into the base", file.display()))?;
    Ok(Exit::Pass)
}

fn read(file: &Path) -> anyhow::Result<Acceptances> {
    let name = file.display().to_string();
    match std::fs::metadata(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Acceptances::default()),
        Ok(metadata) if metadata.len() > MAX_ACCEPTANCES_BYTES as u64 => {
            bail!("reading acceptances `{name}`: the file is larger than {MAX_ACCEPTANCES_BYTES} bytes")
        }
        _ => {}
    }
    let text = std::fs::read_to_string(file).with_context(|| format!("reading acceptances `{name}`"))?;
    Ok(Acceptances::from_toml(&text, &name)?)
}

fn entries(args: &Args, sources: Option<&Sources>) -> anyhow::Result<Vec<Acceptance>> {
    let by = args.by.clone().or_else(|| sources?.user_name());
    let by = by.context("accepting a regression: git has no user.name; say who decided with --by")?;
    let expires = match &args.expires {
        Some(date) => date.clone(),
        None => {
            let today = jiff::Zoned::now().date();
            today.checked_add(jiff::Span::new().days(DEFAULT_DAYS)).context("adding days to today")?.to_string()
        }
    };
    // A name that git knows now would mean another commit later.
    let commit = args.commit.as_ref().map(|name| match sources.and_then(|sources| sources.commit(name).ok()) {
        Some(found) => found.commit,
        None => name.clone(),
    });
    let one = |case: String, metric: String, at_most: Option<f64>| Acceptance {
        case,
        metric,
        at_most,
        reason: args.reason.clone(),
        by: by.clone(),
        expires: expires.clone(),
        commit: commit.clone(),
    };
    if let (Some(case), Some(metric)) = (&args.case, &args.metric) {
        return Ok(vec![one(case.as_str().to_owned(), metric.clone(), args.at_most.map(|percent| percent / 100.0))]);
    }
    let path = args.report.as_ref().expect("clap demands one of the two");
    let reading = || format!("reading gate report `{}`", path.display());
    let text = std::fs::read_to_string(path).with_context(reading)?;
    let report: GateReport = serde_json::from_str(&text)
        .map_err(|error| anyhow!("{}: this is no report of `attnbench gate`: {error}", reading()))?;
    let mut found = Vec::new();
    for case in report.comparison.cases.iter().filter(|case| case.verdict == Verdict::Regressed) {
        let id = || glob::Pattern::escape(&case.key.case_id);
        if case.metrics.is_empty() {
            found.push(one(id(), DISPOSITION.to_owned(), None));
        }
        for metric in case.metrics.iter().filter(|metric| metric.finding.verdict == Verdict::Regressed) {
            // Rounded up to a tenth of a percent, so that what was measured is covered.
            let growth = metric.finding.ratio.map(|ratio| (1000.0 * (ratio.value - 1.0)).ceil() / 1000.0);
            found.push(one(id(), metric.metric.clone(), growth));
        }
    }
    if found.is_empty() {
        bail!("{}: no case regressed in it", reading());
    }
    Ok(found)
}
