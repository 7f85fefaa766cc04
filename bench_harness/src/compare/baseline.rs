//! What is kept of a run to compare with: a record's summary, small enough to review in a diff.
//!
//! A session is one run on one day: rounds of one session share whatever the machine was like that day, so it is the
//! session, not the round, that repeats. A record alone is a baseline of one session, which is why a comparison sees
//! baselines only.

use std::collections::BTreeMap;

use attn_kernels::tensor::TensorName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::clocks::SessionClocks;
use crate::case::{CaseKey, Mode};
use crate::metric::limits::{IMPLAUSIBLE, implausible};
use crate::record::{CaseResult, ControlKind, Disposition, Record};
use crate::stats::quantile::median;
use crate::suite::shard::Shard;

/// The major version of the baseline format. Readers refuse a larger one and ignore fields that they do not know.
pub const BASELINE_VERSION: u32 = 1;

/// Significant digits that a baseline keeps of a time or an error: a change of one part in 10,000 is below every floor.
pub const SIGNIFICANT_DIGITS: i32 = 5;

/// The summaries of several runs of one suite on one kind of device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Baseline {
    /// [`BASELINE_VERSION`] of the writer.
    pub baseline_version: u32,
    /// Slug of the device.
    pub device: String,
    /// Name of the suite.
    pub suite: String,
    /// What must be equal for a record to be comparable, by field.
    pub fingerprint: BTreeMap<String, String>,
    /// The runs, oldest first.
    pub sessions: Vec<Session>,
}

/// What is kept of one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Session {
    /// The run's id.
    pub run_id: String,
    /// When it started: RFC 3339, UTC.
    pub date: String,
    /// Commit of the measured build, where there is one.
    pub commit: Option<String>,
    /// Whether tracked files differed from the commit.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dirty: bool,
    /// Hash of the suite file.
    pub suite_hash: String,
    /// Whether every planned round of every case was reached.
    pub complete: bool,
    /// Whether another attnbench measured on the device at the same time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub device_shared: bool,
    /// Compiler, flags, versions and the like: shown where they differ, never blocking.
    pub provenance: BTreeMap<String, String>,
    /// The device's own ceilings during the run.
    pub controls: Vec<SessionControl>,
    /// Every planned case, in the suite's order.
    pub cases: Vec<SessionCase>,
}

/// A control during one session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SessionControl {
    /// `read`, `copy/4194304`, `fma/f32`, ...
    pub name: String,
    /// What it measures.
    pub kind: ControlKind,
    /// The provider whose device it ran on.
    pub provider: String,
    /// Cold or hot.
    pub mode: Mode,
    /// CPU threads.
    pub threads: usize,
    /// Bytes or FLOPs of one sample.
    pub work: u64,
    /// Median nanoseconds of each round.
    pub round_ns: Vec<f64>,
}

/// A case during one session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SessionCase {
    /// Case id, mode and threads.
    #[serde(flatten)]
    pub key: CaseKey,
    /// What became of it.
    pub disposition: Disposition,
    /// Why, unless it was simply measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Median nanoseconds of each measured round, in the order of rounds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub round_ns: Vec<f64>,
    /// Smallest and largest high-water mark of the allocator above the tensors over the rounds, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra_peak_bytes: Option<(u64, u64)>,
    /// Accuracy, by tensor.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub errors: BTreeMap<TensorName, SessionError>,
    /// Warnings that take it out of verdicts: `implausible: ...`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
    /// Of a GPU: what tells its clocks from the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clocks: Option<SessionClocks>,
}

/// The accuracy of one tensor during one session.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SessionError {
    /// Median relative L2 error over the verified calls.
    pub relative_l2: f64,
    /// What the tolerance allows.
    pub allowed_relative_l2: f64,
    /// Verified calls.
    pub calls: usize,
}

/// Why runs do not make a baseline.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BaselineError {
    /// Nothing to keep.
    #[error("making a baseline: no record was given")]
    NoRecord,
    /// Runs of different suites.
    #[error("adding run `{run}` to the baseline of suite `{suite}`: it ran suite `{other}`")]
    OtherSuite {
        /// The run.
        run: String,
        /// The baseline's suite.
        suite: String,
        /// The run's suite.
        other: String,
    },
    /// Runs on different machines or under different policies.
    #[error(
        "adding run `{run}` to the baseline: its fingerprint differs in {fields}; save it as a baseline of its own"
    )]
    OtherFingerprint {
        /// The run.
        run: String,
        /// The fields, with both values.
        fields: String,
    },
    /// A part of a run: what the other shards measured would look as if it had been removed.
    #[error("adding run `{run}` to the baseline: it is shard {shard} of a run; join the shards with `attnbench merge`")]
    Shard {
        /// The run.
        run: String,
        /// Which part.
        shard: Shard,
    },
    /// The same run twice would count one session as two.
    #[error("adding run `{run}` to the baseline: it is already there")]
    Duplicate {
        /// The run.
        run: String,
    },
}

/// A field whose value differs between two sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Difference {
    /// The field.
    pub field: String,
    /// Base's value, unless it has none.
    pub base: Option<String>,
    /// Head's value, unless it has none.
    pub head: Option<String>,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = |value: &Option<String>| value.as_ref().map_or("nothing".to_owned(), |v| format!("`{v}`"));
        write!(f, "`{}` ({} against {})", self.field, shown(&self.base), shown(&self.head))
    }
}

/// The fields that differ between two maps, in order.
pub fn differences(base: &BTreeMap<String, String>, head: &BTreeMap<String, String>) -> Vec<Difference> {
    let fields: std::collections::BTreeSet<&String> = base.keys().chain(head.keys()).collect();
    fields
        .into_iter()
        .filter(|&field| base.get(field) != head.get(field))
        .map(|field| Difference {
            field: field.clone(),
            base: base.get(field).cloned(),
            head: head.get(field).cloned(),
        })
        .collect()
}

impl Baseline {
    /// The baseline of one or more runs of one suite on one kind of device, whose slug is `device`.
    ///
    /// # Errors
    /// No record, or records of different suites, of different fingerprints or of the same run.
    pub fn from_records(device: &str, records: &[Record]) -> Result<Baseline, BaselineError> {
        let first = records.first().ok_or(BaselineError::NoRecord)?;
        let empty = Baseline {
            baseline_version: BASELINE_VERSION,
            device: device.to_owned(),
            suite: first.run.suite.clone(),
            fingerprint: first.fingerprint.clone(),
            sessions: Vec::new(),
        };
        records.iter().try_fold(empty, Baseline::with_session)
    }

    /// The same baseline with one more run.
    ///
    /// # Errors
    /// The run is of another suite or another fingerprint, a shard, or already there.
    pub fn with_session(mut self, record: &Record) -> Result<Baseline, BaselineError> {
        let run = record.run.id.clone();
        if let Some(shard) = record.run.shard {
            return Err(BaselineError::Shard { run, shard });
        }
        if record.run.suite != self.suite {
            return Err(BaselineError::OtherSuite { run, suite: self.suite, other: record.run.suite.clone() });
        }
        let differing = differences(&self.fingerprint, &record.fingerprint);
        if !differing.is_empty() {
            let fields = differing.iter().map(Difference::to_string).collect::<Vec<_>>().join(", ");
            return Err(BaselineError::OtherFingerprint { run, fields });
        }
        if self.sessions.iter().any(|session| session.run_id == run) {
            return Err(BaselineError::Duplicate { run });
        }
        self.sessions.push(Session::from_record(record));
        self.sessions.sort_by(|a, b| (&a.date, &a.run_id).cmp(&(&b.date, &b.run_id)));
        Ok(self)
    }
}

impl Session {
    /// The summary of a run.
    pub fn from_record(record: &Record) -> Session {
        let controls = record.controls.iter().map(|control| SessionControl {
            name: control.name.clone(),
            kind: control.kind,
            provider: control.provider.clone(),
            mode: control.mode,
            threads: control.threads,
            work: control.work,
            round_ns: control.rounds.iter().filter_map(|samples| median(samples)).map(rounded).collect(),
        });
        Session {
            run_id: record.run.id.clone(),
            date: record.run.started_at.clone(),
            commit: record.git.as_ref().map(|git| git.commit.clone()),
            dirty: record.git.as_ref().is_some_and(|git| git.dirty),
            suite_hash: record.run.suite_hash.clone(),
            complete: record.run.complete,
            device_shared: record.run.device_shared,
            provenance: record.provenance.clone(),
            controls: controls.collect(),
            cases: record.cases.iter().map(|case| SessionCase::from_result(case, record)).collect(),
        }
    }

    /// The case of that key, if it was planned.
    pub fn case(&self, key: &CaseKey) -> Option<&SessionCase> {
        self.cases.iter().find(|case| &case.key == key)
    }
}

impl SessionCase {
    /// The summary of a result of that record.
    pub fn from_result(case: &CaseResult, record: &Record) -> SessionCase {
        let measured = || case.rounds.iter().filter(|round| round.disposition == Disposition::Measured);
        let extra = measured().filter_map(|round| round.memory.as_ref()?.extra_peak_bytes);
        let mut errors: BTreeMap<TensorName, (Vec<f64>, f64)> = BTreeMap::new();
        for verification in case.rounds.iter().flat_map(|round| &round.verification) {
            let (seen, allowed) = errors.entry(verification.tensor).or_default();
            // An output that is not finite has an infinite error, which the median then shows or outvotes.
            seen.push(verification.error.relative_l2.unwrap_or(f64::MAX));
            *allowed = verification.error.allowed_relative_l2;
        }
        let error = |(seen, allowed): (Vec<f64>, f64)| {
            let relative_l2 = rounded(median(&seen)?);
            Some(SessionError { relative_l2, allowed_relative_l2: allowed, calls: seen.len() })
        };
        let mut flags: Vec<String> = case.flags.iter().filter(|flag| flag.starts_with(IMPLAUSIBLE)).cloned().collect();
        if flags.is_empty() {
            flags.extend(implausible(case, record));
        }
        SessionCase {
            key: case.key.clone(),
            disposition: case.disposition,
            reason: case.reason.clone(),
            round_ns: measured().filter_map(|round| median(&round.device_ns)).map(rounded).collect(),
            extra_peak_bytes: extra.clone().min().zip(extra.max()),
            errors: errors.into_iter().filter_map(|(name, seen)| Some((name, error(seen)?))).collect(),
            flags,
            clocks: SessionClocks::of(case),
        }
    }
}

/// A number with [`SIGNIFICANT_DIGITS`]. Through decimal text, so that it also prints with that many.
fn rounded(value: f64) -> f64 {
    format!("{value:.*e}", SIGNIFICANT_DIGITS as usize - 1).parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::sample;

    fn record(id: &str, started_at: &str) -> Record {
        let mut record = sample::record();
        record.run.id = id.to_owned();
        record.run.started_at = started_at.to_owned();
        record
    }

    #[test]
    fn five_digits_are_kept() {
        for (value, kept) in
            [(1_234_567.8, 1_234_600.0), (0.000_012_345_67, 0.000_012_346), (0.0, 0.0), (-99_999.9, -1e5)]
        {
            assert_eq!(rounded(value), kept);
        }
    }

    #[test]
    fn sessions_are_in_order_and_survive_json() {
        let runs = [record("b", "2026-02-01T00:00:00Z"), record("a", "2026-01-01T00:00:00Z")];
        let baseline = Baseline::from_records("example", &runs).unwrap();
        assert_eq!(baseline.sessions.iter().map(|session| &session.run_id[..]).collect::<Vec<_>>(), ["a", "b"]);
        let text = serde_json::to_string(&baseline).unwrap();
        assert_eq!(serde_json::from_str::<Baseline>(&text).unwrap(), baseline);
        let session = &baseline.sessions[0];
        assert_eq!(session.cases.len(), runs[0].cases.len(), "every planned case has a row");
        let measured = &session.cases[0];
        assert_eq!((measured.round_ns.len(), measured.extra_peak_bytes), (2, Some((3 << 20, 3 << 20))));
        let error = measured.errors[&TensorName::O];
        assert_eq!((error.relative_l2, error.allowed_relative_l2, error.calls), (1.25e-7, 1e-5, 2));
        let failed = session.cases.iter().find(|case| case.disposition == Disposition::Incorrect).unwrap();
        assert!(failed.round_ns.is_empty() && failed.reason.is_some());
    }

    #[test]
    fn what_does_not_fit_is_named() {
        assert_eq!(Baseline::from_records("example", &[]), Err(BaselineError::NoRecord));
        let baseline = Baseline::from_records("example", &[record("a", "2026-01-01T00:00:00Z")]).unwrap();
        let message = |record: &Record| baseline.clone().with_session(record).unwrap_err().to_string();
        assert_eq!(
            message(&record("a", "2026-01-02T00:00:00Z")),
            "adding run `a` to the baseline: it is already there"
        );
        let mut other = record("b", "2026-01-02T00:00:00Z");
        other.fingerprint.insert("cpu_model".into(), "Other".into());
        assert!(message(&other).contains("`cpu_model` (`Example CPU 9000` against `Other`)"), "{}", message(&other));
        other.run.suite = "prefill".into();
        assert!(message(&other).contains("it ran suite `prefill`"), "{}", message(&other));
    }
}
