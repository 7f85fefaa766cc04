//! `attnbench compare`: what changed between two runs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, bail};

use super::{Exit, terminal};
use crate::compare::devices::compare_devices;
use crate::compare::{Baseline, Verdict, compare};
use crate::device::cpu::info::CpuInfo;
use crate::gate::policy::Policy;
use crate::record::{Record, file};
use crate::report::{comparison, device_comparison};
use crate::store::baseline::{BaselineStore, DEFAULT_DIRECTORY, REFERENCE_PREFIX, load_file};

/// Largest policy file, in bytes.
const MAX_POLICY_BYTES: u64 = 1 << 16;

/// Compare two runs or baselines, case by case, or the runs of several devices
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  attnbench compare before.json after.json
  attnbench compare baseline:ci after.json
  attnbench compare baseline:some-device/ci after.json --json
  attnbench compare --by device h100.json h200.json --price nvidia-h100=2.99 --price nvidia-h200=3.79

Exit codes: 0 no regression, 1 a regression, 2 bad input, 4 not comparable, 5 cases failed on both sides.
Inconclusive cases are listed and do not fail; `attnbench gate` also judges how much was decided.")]
pub struct Args {
    /// What to compare with: a record, a baseline file, or `baseline:[DEVICE/]SUITE`
    base: String,
    /// What to compare: a record, a baseline file, or `baseline:[DEVICE/]SUITE`
    head: String,
    /// With --by, records of further devices
    #[arg(requires = "by")]
    more: Vec<String>,
    /// Compare devices instead: one record each, common cases alone, nothing is judged
    #[arg(long, value_enum, value_name = "WHAT", conflicts_with_all = ["policy", "accept_removed"])]
    by: Option<By>,
    /// US dollars an hour of a device, by its short name: --price nvidia-h200=3.79
    #[arg(long, value_name = "DEVICE=USD", requires = "by")]
    price: Vec<Price>,
    #[command(flatten)]
    common: Common,
}

/// What tells the sides apart.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum By {
    /// The device that each record was measured on
    Device,
}

/// A price of a device.
#[derive(Clone, Debug)]
pub(crate) struct Price {
    device: String,
    usd_per_hour: f64,
}

impl FromStr for Price {
    type Err = String;

    fn from_str(text: &str) -> Result<Price, String> {
        let (device, usd) = text.split_once('=').ok_or("expected DEVICE=USD, such as nvidia-h200=3.79")?;
        let usd_per_hour = usd.parse().ok().filter(|usd: &f64| usd.is_finite() && *usd > 0.0);
        let usd_per_hour =
            usd_per_hour.ok_or_else(|| format!("`{usd}` is no positive number of US dollars an hour"))?;
        Ok(Price { device: device.to_owned(), usd_per_hour })
    }
}

/// Prices by device; of two prices of one the last counts.
pub(crate) fn prices(prices: &[Price]) -> BTreeMap<String, f64> {
    prices.iter().map(|price| (price.device.clone(), price.usd_per_hour)).collect()
}

/// What `compare` and `gate` share.
#[derive(clap::Args, Debug)]
pub(crate) struct Common {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Directory of stored baselines
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DIRECTORY)]
    pub(crate) baselines: PathBuf,
    /// TOML file of decision constants that differ from the defaults
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: Option<PathBuf>,
    /// Accept that head lacks cases that base has
    #[arg(long)]
    pub(crate) accept_removed: bool,
}

impl Common {
    /// The checked policy of the file that was named.
    pub(crate) fn policy(&self) -> anyhow::Result<Option<Policy>> {
        load_policy(self.policy.as_deref())
    }

    /// A baseline by its file or its name.
    pub(crate) fn baseline(&self, text: &str) -> anyhow::Result<Baseline> {
        if !text.starts_with(REFERENCE_PREFIX) && Path::new(text).is_file() {
            return side(text, &self.baselines);
        }
        Ok(BaselineStore::new(&self.baselines).find(text, &CpuInfo::read().slug())?)
    }
}

/// Runs it.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    if args.by.is_some() {
        return by_device(&args);
    }
    let mut policy = args.common.policy()?.unwrap_or_default();
    policy.accept_removed |= args.common.accept_removed;
    let base = side(&args.base, &args.common.baselines)?;
    let head = side(&args.head, &args.common.baselines)?;
    let compared = compare(&base, &head, &policy);
    if args.common.json {
        terminal::print_json(&compared)?;
    } else {
        terminal::print(comparison::comparison_text(&compared, terminal::style()).trim_end())?;
    }
    let mut exit = Exit::Pass;
    for case in compared.cases.iter().filter(|case| !case.is_new()) {
        exit = exit.and(match case.verdict {
            Verdict::Regressed => Exit::Regression,
            Verdict::NotComparable => Exit::NotComparable,
            _ if case.failed_on_both() => Exit::Failed,
            _ => Exit::Pass,
        });
    }
    Ok(exit)
}

fn by_device(args: &Args) -> anyhow::Result<Exit> {
    let paths = [&args.base, &args.head].into_iter().chain(&args.more);
    let records = paths.map(|path| load_record(Path::new(path))).collect::<anyhow::Result<Vec<_>>>()?;
    let compared = compare_devices(&records, &prices(&args.price))?;
    if args.common.json {
        terminal::print_json(&compared)?;
    } else {
        terminal::print(device_comparison::text(&compared, terminal::style()).trim_end())?;
    }
    Ok(Exit::Pass)
}

/// The checked policy of a file, where one is named.
pub(crate) fn load_policy(path: Option<&Path>) -> anyhow::Result<Option<Policy>> {
    let Some(path) = path else { return Ok(None) };
    let name = path.display().to_string();
    let text = policy_text(path).with_context(|| format!("reading gate policy `{name}`"))?;
    Ok(Some(Policy::from_toml(&text, &name)?))
}

/// A record, a baseline file or a named baseline, as sessions.
pub(crate) fn side(text: &str, baselines: &Path) -> anyhow::Result<Baseline> {
    if text.starts_with(REFERENCE_PREFIX) {
        return Ok(BaselineStore::new(baselines).find(text, &CpuInfo::read().slug())?);
    }
    let path = Path::new(text);
    if is_baseline(path) {
        return Ok(load_file(path)?);
    }
    Ok(Baseline::from_records("", &[load_record(path)?])?)
}

/// A policy file's text, up to a limit: the path may be a device that never ends.
fn policy_text(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_POLICY_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_POLICY_BYTES {
        bail!("the file is larger than {MAX_POLICY_BYTES} bytes; a policy is a few lines of TOML");
    }
    Ok(text)
}

/// A record of a file.
pub(crate) fn load_record(path: &Path) -> anyhow::Result<Record> {
    Ok(file::load(path)?)
}

/// Whether a file looks like a baseline, whose version comes first: one that does not is read, and rejected, as a record.
fn is_baseline(path: &Path) -> bool {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(512).read_to_end(&mut start));
    read.is_ok() && String::from_utf8_lossy(&start).contains("\"baseline_version\"")
}
