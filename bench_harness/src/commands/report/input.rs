//! What a report is made from: files, of which each says itself what it is.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, anyhow, bail};

use super::Args;
use crate::commands::compare::{load_policy, load_record, side};
use crate::gate::outcome::{GateReport, judge};
use crate::record::Record;
use crate::report::{Format, Subject};

/// Largest report of a gate, in bytes.
const MAX_GATE_BYTES: u64 = 64 << 20;

/// What was read.
pub(super) enum Input {
    Gate(GateReport),
    Run(Record),
}

impl Input {
    /// Reads what the arguments name, and judges it where they say by what.
    pub(super) fn read(args: &Args, format: &Format) -> anyhow::Result<Input> {
        if let Some(base) = &args.base {
            let policy = load_policy(args.policy.as_deref())?.unwrap_or_default();
            let heads = args.inputs.iter().map(|path| load_record(path)).collect::<anyhow::Result<Vec<_>>>()?;
            return Ok(Input::Gate(judge(&heads, &side(base, &args.baselines)?, &policy, &[], false)?));
        }
        let [path] = args.inputs.as_slice() else {
            bail!(
                "writing a report of {} files: `{}` takes one; --base judges several sessions of head",
                args.inputs.len(),
                format.name
            );
        };
        if is_gate(path) { Ok(Input::Gate(load_gate(path)?.0)) } else { Ok(Input::Run(load_record(path)?)) }
    }

    pub(super) fn subject(&self) -> Subject<'_> {
        match self {
            Input::Gate(report) => Subject::Gate(report),
            Input::Run(record) => Subject::Run(record),
        }
    }
}

/// Whether a file looks like a gate's report, whose headline comes first: what does not is read, and rejected, as a record.
pub(super) fn is_gate(path: &Path) -> bool {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(64).read_to_end(&mut start));
    read.is_ok() && String::from_utf8_lossy(&start).contains("\"headline\"")
}

/// A gate's report, and its text.
pub(crate) fn load_gate(path: &Path) -> anyhow::Result<(GateReport, String)> {
    let reading = || format!("reading gate report `{}`", path.display());
    let mut text = String::new();
    File::open(path).and_then(|file| file.take(MAX_GATE_BYTES + 1).read_to_string(&mut text)).with_context(reading)?;
    if text.len() as u64 > MAX_GATE_BYTES {
        bail!("{}: the file is larger than the limit of {MAX_GATE_BYTES} bytes", reading());
    }
    let report = serde_json::from_str(&text)
        .map_err(|error| anyhow!("{}: this is not what `attnbench gate --json` prints: {error}", reading()))?;
    Ok((report, text))
}
