//! What pairs have shown so far: the same whether they were just measured or come from a journal.

use std::collections::HashMap;

use super::Sides;
use crate::case::CaseKey;
use crate::gate::plan::PairedCase;
use crate::gate::policy::Policy;
use crate::measure::builder::RecordBuilder;
use crate::measure::journal::{Entry, PairControls, PairEntry};
use crate::record::{CaseRound, ControlResult, Disposition, TimeSpent};
use crate::stats::quantile::median;
use crate::suite::{PlannedCase, Suite};

/// A case that failed so often is not tried again: once may be the machine's doing.
const MAX_FAILURES: u32 = 2;
/// As above, for a device that was throttled.
const MAX_THROTTLED: u32 = 5;

/// Everything that was measured.
pub struct PairState {
    cases: Vec<PlannedCase>,
    pairs: Vec<PairedCase>,
    samples: Vec<Option<u32>>,
    failures: Vec<u32>,
    base_has: Vec<bool>,
    was_flaky: Vec<bool>,
    index: HashMap<(CaseKey, u64), usize>,
    builders: Sides<RecordBuilder>,
    control_ratios: Vec<f64>,
    timing_ratios: Vec<f64>,
    rounds: u32,
}

impl PairState {
    /// Nothing measured yet of these cases of base, and of those that only head has. `suite` tells how records look;
    /// `calibrated_error` the noise of a case, where it is known.
    pub fn new(
        suite: &Suite,
        only_on_head: &[PlannedCase],
        slowed: &[PlannedCase],
        calibrated_error: impl Fn(&CaseKey) -> Option<f64>,
    ) -> PairState {
        let cases: Vec<PlannedCase> = suite.cases.iter().chain(slowed).chain(only_on_head).cloned().collect();
        let shared = suite.cases.len() + slowed.len();
        let of_base = Suite { cases: suite.cases.clone(), ..suite.clone() };
        let of_head = Suite { cases: [&suite.cases[..], only_on_head].concat(), ..suite.clone() };
        PairState {
            pairs: cases[..shared]
                .iter()
                .map(|case| PairedCase {
                    key: case.key(),
                    log_ratios: Vec::new(),
                    calibrated_error: calibrated_error(&case.key()),
                    is_closed: false,
                })
                .collect(),
            samples: vec![None; cases.len()],
            failures: vec![0; cases.len()],
            base_has: (0..cases.len()).map(|case| case < shared).collect(),
            was_flaky: vec![false; cases.len()],
            index: cases
                .iter()
                .enumerate()
                .map(|(index, case)| (identity(&case.key(), case.slowdown), index))
                .collect(),
            builders: Sides { base: RecordBuilder::new(&of_base), head: RecordBuilder::new(&of_head) },
            control_ratios: Vec::new(),
            timing_ratios: Vec::new(),
            rounds: 0,
            cases,
        }
    }

    /// Adds what an entry of a journal tells.
    pub fn add(&mut self, entry: &Entry) {
        match entry {
            Entry::Pair(pair) => self.add_pair(pair),
            Entry::PairControls(controls) => self.add_controls(controls),
            Entry::Header(_) | Entry::Case { .. } | Entry::Controls { .. } => {}
        }
    }

    fn add_pair(&mut self, entry: &PairEntry) {
        let Some(&case) = self.index.get(&identity(&entry.key, entry.slowdown)) else { return };
        self.rounds = self.rounds.max(entry.round + 1);
        let Some(base) = &entry.base else {
            self.keep_rounds(case, None, &entry.head, entry.time);
            return;
        };
        let first = if entry.head_first { &entry.head } else { base };
        self.fix_samples(case, first);
        let both = [base, &entry.head];
        let failed = both.into_iter().filter(|seen| seen.disposition != Disposition::Measured).collect::<Vec<_>>();
        if failed.is_empty()
            && let (Some(base_ns), Some(head_ns)) = (median(&base.device_ns), median(&entry.head.device_ns))
        {
            self.pairs[case].log_ratios.push((head_ns / base_ns).ln());
            self.was_flaky[case] |= self.failures[case] > 0;
            self.keep_rounds(case, Some(base), &entry.head, entry.time);
            return;
        }
        self.failures[case] += 1;
        let is_final = |seen: &&CaseRound| match seen.disposition {
            Disposition::Unsupported | Disposition::OutOfMemory => true,
            Disposition::Throttled => self.failures[case] >= MAX_THROTTLED,
            _ => self.failures[case] >= MAX_FAILURES,
        };
        // Sides that were measured without a time are as good as failed, and must come to an end too.
        if failed.iter().any(is_final) || (failed.is_empty() && self.failures[case] >= MAX_FAILURES) {
            self.pairs[case].is_closed = true;
            self.keep_rounds(case, Some(base), &entry.head, entry.time);
        }
    }

    fn keep_rounds(&mut self, case: usize, base: Option<&CaseRound>, head: &CaseRound, time: TimeSpent) {
        if self.cases[case].slowdown != 0.0 {
            return;
        }
        let key = self.cases[case].key();
        let entry = |round: &CaseRound, time| Entry::Case { key: key.clone(), round: round.clone(), time };
        if let Some(base) = base {
            self.builders.base.add(&entry(base, TimeSpent::default()));
        }
        self.builders.head.add(&entry(head, time));
    }

    fn add_controls(&mut self, seen: &PairControls) {
        let logs = |side: &[(u64, Vec<f64>)]| -> Option<Vec<f64>> {
            side.iter().map(|(_, samples)| median(samples).filter(|&ns| ns > 0.0).map(f64::ln)).collect()
        };
        let (Some(base), Some(head)) = (logs(&seen.base), logs(&seen.head)) else { return };
        let ratio = head.iter().zip(&base).map(|(head, base)| head - base).sum::<f64>() / base.len().max(1) as f64;
        if seen.by_own_workers {
            self.timing_ratios.push(ratio);
            return;
        }
        self.control_ratios.push(ratio);
        for (builder, samples) in [(&mut self.builders.base, &seen.base), (&mut self.builders.head, &seen.head)] {
            let samples = samples.clone();
            builder.add(&Entry::Controls { round: seen.round, samples, time: TimeSpent::default() });
        }
    }

    /// The number of the next round.
    pub fn next_round(&self) -> u32 {
        self.rounds
    }

    /// The pairs of each case that both sides have, in order; those of calibrations that were slowed down come last.
    pub fn pairs(&self) -> &[PairedCase] {
        &self.pairs
    }

    /// A case as it was planned.
    pub fn planned(&self, case: usize) -> &PlannedCase {
        &self.cases[case]
    }

    /// Whether base has it.
    pub(super) fn base_has(&self, case: usize) -> bool {
        self.base_has[case]
    }

    /// The cases that only head has.
    pub(super) fn only_on_head(&self) -> Vec<usize> {
        (0..self.cases.len()).filter(|&case| !self.base_has[case]).collect()
    }

    /// The controls.
    pub fn controls(&self) -> &[ControlResult] {
        self.builders.base.controls()
    }

    /// Mean log ratio of the controls after head's turn to those after base's, one a place where they were measured.
    pub fn control_ratios(&self) -> &[f64] {
        &self.control_ratios
    }

    /// As above, each measured by the side's own worker.
    pub fn timing_ratios(&self) -> &[f64] {
        &self.timing_ratios
    }

    /// Cases that failed once and were measured in the end.
    pub fn flaky(&self) -> impl Iterator<Item = &PlannedCase> {
        self.cases.iter().zip(&self.was_flaky).filter(|(_, was)| **was).map(|(case, _)| case)
    }

    /// What both sides' records are made from.
    pub fn builders(&self) -> &Sides<RecordBuilder> {
        &self.builders
    }

    /// The first turn that succeeds fixes the samples of all later ones.
    pub(super) fn fix_samples(&mut self, case: usize, seen: &CaseRound) {
        if seen.disposition == Disposition::Measured {
            self.samples[case].get_or_insert(seen.device_ns.len() as u32);
        }
    }

    /// How the next turn is measured: within the case's budget until its samples are fixed, then exactly so many.
    pub(super) fn planned_turn(&self, case: usize, policy: &Policy) -> PlannedCase {
        let mut planned = self.cases[case].clone();
        let settings = &mut planned.settings;
        settings.target_ci = 0.0;
        settings.max_samples = settings.max_samples.min(policy.pair_samples);
        settings.min_samples = settings.min_samples.min(settings.max_samples);
        if let Some(samples) = self.samples[case] {
            (settings.min_samples, settings.max_samples) = (samples, samples);
            settings.budget_ms = settings.timeout_s * 1000;
        }
        planned
    }
}

/// What tells cases apart, those that were slowed down included.
fn identity(key: &CaseKey, slowdown: f64) -> (CaseKey, u64) {
    (key.clone(), slowdown.to_bits())
}
