//! From journal entries to a record: the same path for a run that just ended and for one that was resumed.

use std::collections::{BTreeMap, HashMap};

use attn_kernels::work::Work;

use super::controls::{controls_for, gpu_controls_for};
use super::journal::Entry;
use crate::case::CaseKey;
use crate::device::cuda::CudaDevice;
use crate::record::{
    CaseResult, CaseRound, ControlResult, Disposition, GitState, RECORD_VERSION, Record, RunInfo, TimeSpent,
};
use crate::suite::{PlannedCase, Suite};

/// A record that grows entry by entry.
pub struct RecordBuilder {
    controls: Vec<ControlResult>,
    cases: Vec<CaseResult>,
    index: HashMap<CaseKey, usize>,
    time: TimeSpent,
}

impl RecordBuilder {
    /// Every planned case, not reached yet.
    pub fn new(suite: &Suite) -> Self {
        let cases: Vec<CaseResult> = suite.cases.iter().map(unreached).collect();
        let index = cases.iter().enumerate().map(|(index, case)| (case.key.clone(), index)).collect();
        RecordBuilder { controls: controls_for(&suite.cases), cases, index, time: TimeSpent::default() }
    }

    /// The same with the controls of a GPU.
    pub fn on_gpu(mut self, suite: &Suite, device: &CudaDevice) -> Self {
        self.controls.extend(gpu_controls_for(&suite.cases, device));
        self
    }

    /// Adds what an entry tells. Entries of cases that are not planned are ignored: the plan's hash excludes them.
    pub fn add(&mut self, entry: &Entry) {
        let time = match entry {
            // Pairs belong to two records, and are split where both are known.
            Entry::Header(_) | Entry::Pair(_) | Entry::PairControls(_) => return,
            Entry::Case { key, round, time } => {
                if let Some(&index) = self.index.get(key) {
                    self.cases[index].rounds.push(round.clone());
                }
                time
            }
            Entry::Controls { samples, time, .. } => {
                for (control, (work, samples)) in self.controls.iter_mut().zip(samples) {
                    control.work = *work;
                    control.rounds.push(samples.clone());
                }
                time
            }
        };
        self.add_time(time);
    }

    /// Adds time that belongs to no entry.
    pub fn add_time(&mut self, time: &TimeSpent) {
        self.time.total_ns += time.total_ns;
        self.time.calls_ns += time.calls_ns;
        self.time.flush_ns += time.flush_ns;
        self.time.inputs_ns += time.inputs_ns;
        self.time.oracle_ns += time.oracle_ns;
        self.time.start_ns += time.start_ns;
        self.time.controls_ns += time.controls_ns;
    }

    /// Wall-clock nanoseconds that entries account for so far, those of a resumed journal included.
    pub fn entry_time_ns(&self) -> u64 {
        self.time.total_ns
    }

    /// The controls of the run.
    pub fn controls(&self) -> &[ControlResult] {
        &self.controls
    }

    /// The rounds of a planned case so far.
    pub fn rounds(&self, case: usize) -> &[CaseRound] {
        &self.cases[case].rounds
    }

    /// Whether a case is not to be tried again: what it came to will not change in another round.
    pub fn is_settled(&self, case: usize) -> bool {
        self.cases[case].rounds.iter().any(|round| round.disposition != Disposition::Measured)
    }

    /// The record of what was seen so far.
    pub fn finish(
        &self,
        mut run: RunInfo,
        fingerprint: BTreeMap<String, String>,
        provenance: BTreeMap<String, String>,
        git: Option<GitState>,
    ) -> Record {
        let mut cases = self.cases.clone();
        let mut complete = true;
        for case in &mut cases {
            complete &= settle(case);
        }
        run.complete = complete;
        run.rounds_done = cases.iter().map(|case| case.rounds.len() as u32).max().unwrap_or(0);
        run.time = self.time;
        let mut record = Record {
            record_version: RECORD_VERSION,
            run,
            fingerprint,
            provenance,
            git,
            controls: self.controls.clone(),
            cases,
        };
        flag_implausible(&mut record);
        record
    }
}

/// The row of a case that nobody has measured yet.
pub(super) fn unreached(planned: &PlannedCase) -> CaseResult {
    let problem = &planned.case.problem;
    CaseResult {
        key: planned.key(),
        matrix: planned.matrix.clone(),
        settings: planned.settings.clone(),
        disposition: Disposition::Skipped,
        reason: Some("not reached".to_owned()),
        shard: None,
        lengths_q: problem.seqlen_q.is_ragged().then(|| problem.lengths_q()),
        lengths_kv: problem.seqlen_kv.is_ragged().then(|| problem.lengths_kv()),
        multiplied_in: Some(planned.case.multiplied_in()).filter(|&dtype| dtype != problem.dtype),
        work: Work::of(problem),
        flags: Vec::new(),
        rounds: Vec::new(),
    }
}

/// Sums a case's rounds up: the worst of them decides. False where rounds are missing that would have been measured.
fn settle(case: &mut CaseResult) -> bool {
    let worst = case
        .rounds
        .iter()
        .filter(|round| round.disposition != Disposition::Measured)
        .min_by_key(|round| round.disposition);
    match (worst, case.rounds.len()) {
        (Some(round), _) => {
            case.disposition = round.disposition;
            case.reason.clone_from(&round.reason);
            true
        }
        (None, 0) => false,
        (None, rounds) => {
            case.disposition = Disposition::Measured;
            case.reason = None;
            let few = case.rounds.iter().any(|round| (round.device_ns.len() as u32) < case.settings.min_samples);
            if few {
                case.flags.push(format!("few samples: fewer than {} in some round", case.settings.min_samples));
            }
            rounds as u32 >= case.settings.rounds
        }
    }
}

/// A rate above its ceiling is kept with its samples, flagged, and takes no part in verdicts.
fn flag_implausible(record: &mut Record) {
    let findings: Vec<Option<String>> =
        record.cases.iter().map(|case| crate::metric::limits::implausible(case, record)).collect();
    for (case, finding) in record.cases.iter_mut().zip(findings) {
        case.flags.extend(finding);
    }
}
