//! Pairs of two commits, for one case.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::build::{BuildCommand, BuildError, Builds, Purpose};
use crate::commands::gate::pairs::Options;
use crate::compare::Finding;
use crate::device::telemetry::nvml::NvmlSource;
use crate::gate::drive::drive;
use crate::measure::pairs::{PairContext, PairError, PairObserver, PairRun, PairState, Sides};
use crate::record::{CaseRound, Disposition};
use crate::rules::Rules;
use crate::suite::PlannedCase;
use crate::vcs::Snapshot;

/// Time for one pair of commits where no budget is named.
const BUDGET: Duration = Duration::from_secs(6 * 3600);

/// What came of measuring.
pub(super) enum Measured {
    Done,
    /// A side does not build, or its case does not run.
    Failed {
        is_head: bool,
        reason: String,
    },
}

pub(super) struct Measurer<'a> {
    options: &'a Options,
    builds: &'a Builds,
    command: BuildCommand,
    rules: &'a Rules,
    stop: Arc<AtomicBool>,
    scratch: tempfile::TempDir,
}

impl<'a> Measurer<'a> {
    pub(super) fn new(
        options: &'a Options,
        builds: &'a Builds,
        command: BuildCommand,
        rules: &'a Rules,
        stop: Arc<AtomicBool>,
    ) -> anyhow::Result<Measurer<'a>> {
        let scratch =
            tempfile::Builder::new().prefix("attnbench-").tempdir().context("making a private scratch folder")?;
        Ok(Measurer { options, builds, command, rules, stop, scratch })
    }

    /// Measures pairs while `more` wants more, given all of them.
    pub(super) fn pairs(
        &self,
        base: &Snapshot,
        head: &Snapshot,
        more: &mut dyn FnMut(&[f64]) -> bool,
    ) -> anyhow::Result<Measured> {
        self.with_run(base, head, |run| {
            while !run.state.pairs()[0].is_closed {
                let pairs = &run.state.pairs()[0].log_ratios;
                if !more(pairs) {
                    break;
                }
                run.round(&[0])?;
            }
            Ok(())
        })
        .map(|(measured, ())| measured)
        .or_else(|failed| failed.settle())
    }

    /// Judges head against base as a gate would; the finding, and all pairs. The inner error says why there is none.
    pub(super) fn judge(
        &self,
        base: &Snapshot,
        head: &Snapshot,
    ) -> anyhow::Result<Result<(Finding, Vec<f64>), String>> {
        let judged = self.with_run(base, head, |run| {
            let findings = drive(&self.rules.policy, run)?;
            Ok((findings.into_iter().next().expect("one case"), run.state.pairs()[0].log_ratios.clone()))
        });
        match judged {
            Ok((Measured::Done, judged)) => Ok(Ok(judged)),
            Ok((Measured::Failed { is_head, reason }, _)) | Err(Broken::Untestable { is_head, reason }) => {
                Ok(Err(format!("{}: {reason}", if is_head { head.name() } else { base.name() })))
            }
            Err(Broken::Fatal(error)) => Err(error),
        }
    }

    fn with_run<T>(
        &self,
        base: &Snapshot,
        head: &Snapshot,
        work: impl FnOnce(&mut PairRun<'_>) -> Result<T, PairError>,
    ) -> Result<(Measured, T), Broken> {
        let build = |snapshot: &Snapshot, is_head: bool| {
            let purpose = if is_head { Purpose::Step } else { Purpose::Base };
            self.builds.build_snapshot(snapshot, &self.command, purpose, 0).map_err(|error| match error {
                BuildError::Failed { .. } | BuildError::NoBinary { .. } => {
                    Broken::Untestable { is_head, reason: error.to_string() }
                }
                other => Broken::Fatal(other.into()),
            })
        };
        let built = Sides { base: build(base, false)?, head: build(head, true)? };
        let sets = self.options.workers(&built, self.scratch.path()).map_err(Broken::Fatal)?;
        let mut observer = Failures::default();
        let budget = self.options.budget_s.map_or(BUDGET, Duration::from_secs);
        let context = PairContext {
            workers: Sides { base: &sets.base, head: &sets.head },
            // A comparison of so few cases is over before the machine changes for one side only.
            control_worker: None,
            checks_timing: false,
            scratch: self.scratch.path(),
            stop: Arc::clone(&self.stop),
            seed: self.options.seed.unwrap_or(self.rules.suite.seed),
            policy: &self.rules.policy,
            telemetry: &NvmlSource,
            deadline: Instant::now() + budget,
        };
        let state = PairState::new(&self.rules.suite, &[], &[], |_| None);
        let mut run = PairRun::new(&context, state, None, &mut observer);
        let worked = work(&mut run);
        let is_closed = run.state.pairs()[0].is_closed;
        drop(run);
        let worked = worked.map_err(|error| Broken::Fatal(error.into()))?;
        let measured = match observer.last {
            Some((is_head, reason)) if is_closed => Measured::Failed { is_head, reason },
            _ => Measured::Done,
        };
        Ok((measured, worked))
    }
}

/// Why no pair was measured at all.
enum Broken {
    Untestable { is_head: bool, reason: String },
    Fatal(anyhow::Error),
}

impl Broken {
    fn settle(self) -> anyhow::Result<Measured> {
        match self {
            Broken::Untestable { is_head, reason } => Ok(Measured::Failed { is_head, reason }),
            Broken::Fatal(error) => bail!(error),
        }
    }
}

/// The last failure of a side.
#[derive(Default)]
struct Failures {
    last: Option<(bool, String)>,
}

impl PairObserver for Failures {
    fn pair_finished(&mut self, _case: &PlannedCase, base: Option<&CaseRound>, head: &CaseRound) {
        for (is_head, seen) in [(true, Some(head)), (false, base)] {
            if let Some(seen) = seen.filter(|seen| seen.disposition != Disposition::Measured) {
                let because = seen.reason.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
                self.last = Some((is_head, format!("{}{because}", seen.disposition.name())));
            }
        }
    }
}
