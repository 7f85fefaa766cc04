//! The pure state machine of a gate: from what was measured so far to what to measure next, or to the verdicts.
//!
//! It knows no worker, clock or file, so the gate, its calibration, bisection and the simulations of the tests all run
//! this one and nothing else.
//!
//! A/B pairs pass through three stages, told apart by their number alone:
//!
//! 1. *Screen.* Every case gets `screen_pairs`, or twice as many where it is noisy; a one-sided p of at most `screen_p` (`screen_p_faster` the other way) goes on.
//! 2. *Confirm.* `confirm_pairs` new ones for those only, judged on the new pairs alone by Benjamini-Hochberg, so that
//!    having been selected earns nothing; given up after `look_pairs` where these show nothing. Confirmed and beyond the
//!    floor is `regressed` or `improved`.
//! 3. *Extra.* What is still open gets `extra_pairs` at a time up to `max_pairs`, while measuring is possible. These may
//!    show that a case is `unchanged`, never that it regressed.
//!
//! Families of cases go through the first two stages as their means do ([`super::families`]).
//!
//! Stored sessions are the simplest use: nothing can be measured again, so the answer is always a decision.

pub use super::mde::mde;

use super::families;
use super::mde::Simulation;
use super::policy::Policy;
use super::stages::{Screen, look_pairs, screen_pairs};
use crate::case::CaseKey;
use crate::compare::latency::{self, StoredCase};
use crate::compare::verdict::{Finding, Verdict, change, percent};
use crate::metric::Estimate;
use crate::stats::noise::standard_deviation;
use crate::stats::{fdr, hodges_lehmann, signed_rank};

/// What is known so far.
#[derive(Clone, Copy, Debug)]
pub enum Evidence<'a> {
    /// Pairs of base and head, interleaved on one device now.
    Pairs {
        /// Every case.
        cases: &'a [PairedCase],
        /// Whether time is left to measure more.
        may_measure: bool,
    },
    /// Rounds of stored sessions.
    Stored(&'a [StoredCase]),
}

/// The pairs of a case.
#[derive(Clone, Debug, PartialEq)]
pub struct PairedCase {
    /// Which.
    pub key: CaseKey,
    /// Natural logarithm of head's median over base's, a pair each, in the order of measuring.
    pub log_ratios: Vec<f64>,
    /// Standard error of the mean of so many pairs of two builds of one commit, where that was calibrated.
    pub calibrated_error: Option<f64>,
    /// Whether it cannot be measured any more, because it fails or stays throttled.
    pub is_closed: bool,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Measure these cases, by their index.
    Measure {
        /// Which.
        cases: Vec<usize>,
        /// Pairs of each.
        pairs: usize,
    },
    /// One finding a case, in order.
    Decided(Vec<Finding>),
}

/// The next step.
pub fn next(policy: &Policy, evidence: &Evidence<'_>) -> Step {
    match *evidence {
        Evidence::Stored(cases) => Step::Decided(latency::judge(cases, policy)),
        Evidence::Pairs { cases, may_measure } => next_pairs(policy, cases, may_measure),
    }
}

fn next_pairs(policy: &Policy, cases: &[PairedCase], may_measure: bool) -> Step {
    let screened: Vec<Screen> = cases.iter().map(|case| Screen::of(&case.log_ratios, policy)).collect();
    let by_family = families::wanted(policy, cases);
    let wanted = |i: usize| screened[i].wanted(&cases[i].log_ratios, policy).max(by_family[i]);
    if may_measure {
        let incomplete = |i: &usize| screened[*i] == Screen::Incomplete;
        let open = |i: &usize| !cases[*i].is_closed && cases[*i].log_ratios.len() < wanted(*i);
        let open: Vec<usize> = (0..cases.len()).filter(open).collect();
        // Confirmation waits for the whole screen, so that its pairs come from other processes.
        let screening: Vec<usize> = open.iter().copied().filter(incomplete).collect();
        let cases_now = if screening.is_empty() { open } else { screening };
        // The fewest that any of them lacks: a pair too many would belong to another stage.
        if let Some(pairs) = cases_now.iter().map(|&i| wanted(i) - cases[i].log_ratios.len()).min() {
            return Step::Measure { cases: cases_now, pairs };
        }
    }
    let findings = Decision::of(policy, cases, &screened).findings();
    if may_measure {
        let more = |i: &usize| {
            let case = &cases[*i];
            findings[*i].verdict == Verdict::Inconclusive
                && !case.is_closed
                && case.log_ratios.len() + policy.extra_pairs <= policy.max_pairs
        };
        let undecided: Vec<usize> = (0..cases.len()).filter(more).collect();
        if !undecided.is_empty() {
            return Step::Measure { cases: undecided, pairs: policy.extra_pairs };
        }
    }
    let survivors = screened.iter().filter(|screen| **screen == Screen::Slower).count();
    let simulation = Simulation::new(policy, survivors);
    let with_mde = |(case, finding): (&PairedCase, Finding)| Finding {
        mde: simulation.as_ref().and_then(|simulation| simulation.mde(case)),
        ..finding
    };
    Step::Decided(cases.iter().zip(findings).map(with_mde).collect())
}

/// Everything that a decision needs.
struct Decision<'a> {
    policy: &'a Policy,
    cases: &'a [PairedCase],
    screened: &'a [Screen],
    /// One-sided p of each case's confirmation in the direction of its screen; 1 without one.
    p_values: Vec<f64>,
    confirmed: Vec<bool>,
}

impl<'a> Decision<'a> {
    fn of(policy: &'a Policy, cases: &'a [PairedCase], screened: &'a [Screen]) -> Decision<'a> {
        let mut p_values = vec![1.0; cases.len()];
        let mut confirmed = vec![false; cases.len()];
        for screen in [Screen::Slower, Screen::Faster] {
            let family: Vec<usize> = (0..cases.len()).filter(|&i| screened[i] == screen).collect();
            let p: Vec<f64> = family.iter().map(|&i| screen.confirmed_p(&cases[i].log_ratios, policy)).collect();
            for ((&i, &p), found) in family.iter().zip(&p).zip(fdr::discoveries(&p, policy.false_discovery_rate)) {
                p_values[i] = p;
                confirmed[i] = found;
            }
        }
        Decision { policy, cases, screened, p_values, confirmed }
    }

    fn findings(&self) -> Vec<Finding> {
        (0..self.cases.len()).map(|i| self.finding(i)).collect()
    }

    fn finding(&self, i: usize) -> Finding {
        let case = &self.cases[i];
        if self.screened[i] == Screen::Incomplete {
            let needed = screen_pairs(&case.log_ratios, self.policy);
            let reason = format!("too few rounds: {} (needs {needed})", case.log_ratios.len());
            return Finding::bare(Verdict::Inconclusive, reason);
        }
        if !case.log_ratios.iter().all(|ratio| ratio.is_finite()) {
            return Finding::bare(Verdict::Inconclusive, "a pair has no finite ratio: a time was zero or missing");
        }
        // A screened effect is estimated from the pairs that it was not selected by.
        let confirmation = self.screened[i].confirmation(&case.log_ratios, self.policy);
        let told = if confirmation.is_empty() { &case.log_ratios[..] } else { confirmation };
        let shift = hodges_lehmann::one_sample(told, 0.95).expect("there are pairs, and they are finite");
        let ratio = Estimate {
            value: shift.estimate.exp(),
            low: shift.interval.low.exp(),
            high: shift.interval.high.exp(),
            confidence: shift.interval.confidence,
        };
        let (verdict, reason) = self.verdict(i, shift.estimate, told);
        let p_value = matches!(self.screened[i], Screen::Slower).then_some(self.p_values[i]);
        Finding { verdict, reason, ratio: Some(ratio), p_value, mde: None }
    }

    fn verdict(&self, i: usize, estimate: f64, told: &[f64]) -> (Verdict, String) {
        let (case, policy) = (&self.cases[i], self.policy);
        let floor = floor(policy.floor, policy, told, case.calibrated_error);
        let pairs = told.len();
        if self.confirmed[i] && estimate.abs() > floor {
            let verdict = if self.screened[i] == Screen::Slower { Verdict::Regressed } else { Verdict::Improved };
            let p = self.p_values[i];
            return (verdict, format!("{} over {pairs} new pairs, p = {p:.1e}", change(estimate)));
        }
        let all = hodges_lehmann::one_sample(&case.log_ratios, 0.90).expect("there are pairs");
        let bound = all.interval.high;
        let margin = policy.margin.ln_1p();
        if all.interval.confidence >= 0.90 && bound < margin && all.estimate > -margin {
            let total = case.log_ratios.len();
            let reason =
                format!("at most {} slower with 95 % confidence over {total} pairs", percent(bound.exp_m1().max(0.0)));
            return (Verdict::Unchanged, reason);
        }
        (Verdict::Inconclusive, self.undecided(i, estimate, floor))
    }

    fn undecided(&self, i: usize, estimate: f64, floor: f64) -> String {
        let (case, policy) = (&self.cases[i], self.policy);
        let seen = change(estimate);
        if matches!(self.screened[i], Screen::Passed) {
            return format!("{seen} over {} pairs, not significant and not inside the margin", case.log_ratios.len());
        }
        let same = |screen: &&Screen| **screen == self.screened[i];
        let alone = policy.false_discovery_rate / self.screened.iter().filter(same).count() as f64;
        if self.screened[i].is_futile(&case.log_ratios, policy) {
            return format!("{seen}, screened and not seen again in {} new pairs", look_pairs(policy));
        }
        let have = self.screened[i].confirmation(&case.log_ratios, policy).len();
        if signed_rank::smallest_p(have) > alone {
            let needed = signed_rank::pairs_needed(alone).unwrap_or(usize::MAX);
            return format!("{seen}, too few rounds to confirm: {have} (needs {needed})");
        }
        if self.confirmed[i] {
            return format!("{seen}, confirmed but below the floor of {}", percent(floor.exp_m1()));
        }
        format!("{seen}, screened but not confirmed: p = {:.2}", self.p_values[i])
    }
}

/// The smallest log ratio that may be called a change: `least`, or what two builds of one commit may differ by.
pub(super) fn floor(least: f64, policy: &Policy, pairs: &[f64], calibrated_error: Option<f64>) -> f64 {
    let own = || standard_deviation(pairs).map_or(0.0, |deviation| deviation / (pairs.len() as f64).sqrt());
    least.ln_1p().max(policy.floor_standard_errors * calibrated_error.unwrap_or_else(own))
}
