//! The pure state machine of a gate: from what was measured so far to what to measure next, or to the verdicts.
//!
//! It knows no worker, clock or file, so the gate, its calibration, bisection and the simulations of the tests all run
//! this one and nothing else.
//!
//! A/B pairs pass through three stages, told apart by their number alone:
//!
//! 1. *Screen.* Every case gets `screen_pairs`; a one-sided p of at most `screen_p`, either way, goes on.
//! 2. *Confirm.* `confirm_pairs` new ones for those, and for families that look slower ([`super::families`]), judged on the new pairs alone by Benjamini-Hochberg, so that
//!    having been selected earns nothing. Confirmed and beyond the floor is `regressed` or `improved`.
//! 3. *Extra.* What is still open gets `extra_pairs` at a time up to `max_pairs`, while measuring is possible. These may
//!    show that a case is `unchanged`, never that it regressed.
//!
//! Stored sessions are the simplest use: nothing can be measured again, so the answer is always a decision.

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use super::families;
use super::policy::Policy;
use crate::case::CaseKey;
use crate::compare::latency::{self, StoredCase};
use crate::compare::verdict::{Finding, Verdict, change, percent};
use crate::metric::Estimate;
use crate::stats::noise::standard_deviation;
use crate::stats::{Alternative, fdr, hodges_lehmann, signed_rank};

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
    let screened: Vec<Screen> = cases.iter().map(|case| Screen::of(case, policy)).collect();
    let in_families = families::to_confirm(policy, cases);
    let wanted = |i: usize| match screened[i] {
        Screen::Incomplete => policy.screen_pairs,
        Screen::Slower | Screen::Faster => policy.screen_pairs + policy.confirm_pairs,
        Screen::Passed if in_families.contains(&i) => policy.screen_pairs + policy.confirm_pairs,
        Screen::Passed => 0,
    };
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
    let with_mde = |(case, finding): (&PairedCase, Finding)| Finding { mde: mde(policy, case, survivors), ..finding };
    Step::Decided(cases.iter().zip(findings).map(with_mde).collect())
}

/// What the first pairs say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Screen {
    Incomplete,
    Slower,
    Faster,
    Passed,
}

impl Screen {
    fn of(case: &PairedCase, policy: &Policy) -> Screen {
        let Some(pairs) = case.log_ratios.get(..policy.screen_pairs) else { return Screen::Incomplete };
        if p_value(pairs, Alternative::Greater, policy) <= policy.screen_p {
            Screen::Slower
        } else if p_value(pairs, Alternative::Less, policy) <= policy.screen_p {
            Screen::Faster
        } else {
            Screen::Passed
        }
    }
}

/// The p-value of some pairs. A generator of its own for each keeps a verdict independent of the other cases.
pub(super) fn p_value(pairs: &[f64], alternative: Alternative, policy: &Policy) -> f64 {
    let draws = (100.0 / policy.false_discovery_rate).ceil() as usize * 100;
    signed_rank::p_value(pairs, alternative, draws, &mut Pcg64::seed_from_u64(policy.seed))
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
        for (screen, alternative) in [(Screen::Slower, Alternative::Greater), (Screen::Faster, Alternative::Less)] {
            let family: Vec<usize> = (0..cases.len()).filter(|&i| screened[i] == screen).collect();
            let p: Vec<f64> =
                family.iter().map(|&i| p_value(confirmation(&cases[i], policy), alternative, policy)).collect();
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
            let reason = format!("too few rounds: {} (needs {})", case.log_ratios.len(), self.policy.screen_pairs);
            return Finding::bare(Verdict::Inconclusive, reason);
        }
        // A screened effect is estimated from the pairs that it was not selected by.
        let confirmation = confirmation(case, self.policy);
        let told = if confirmation.is_empty() { &case.log_ratios[..] } else { confirmation };
        let shift = hodges_lehmann::one_sample(told, 0.95).expect("there are pairs, and a p-value needs them finite");
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
        let have = confirmation(case, policy).len();
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

/// The pairs of the second stage, as far as they were measured. Those of a case that never was to be confirmed are extra
/// ones, which the caller does not ask about.
fn confirmation<'a>(case: &'a PairedCase, policy: &Policy) -> &'a [f64] {
    if !matches!(Screen::of(case, policy), Screen::Slower | Screen::Faster) {
        return &[];
    }
    let end = case.log_ratios.len().min(policy.screen_pairs + policy.confirm_pairs);
    &case.log_ratios[policy.screen_pairs..end]
}

/// The smallest log ratio that may be called a change: `least`, or what two builds of one commit may differ by.
pub(super) fn floor(least: f64, policy: &Policy, pairs: &[f64], calibrated_error: Option<f64>) -> f64 {
    let own = || standard_deviation(pairs).map_or(0.0, |deviation| deviation / (pairs.len() as f64).sqrt());
    least.ln_1p().max(policy.floor_standard_errors * calibrated_error.unwrap_or_else(own))
}

/// The smallest true slowdown that screen, confirmation and floor would have found with the policy's power: the same
/// stages are simulated on the case's own noise, which is its pairs less their centre with random signs. `survivors` is
/// the size of the family that it would be confirmed in. `None` where there are too few pairs, where no effect below a
/// factor of e would be found, or where the policy asks for no simulations.
pub fn mde(policy: &Policy, case: &PairedCase, survivors: usize) -> Option<f64> {
    if policy.simulations == 0 || case.log_ratios.len() < policy.screen_pairs {
        return None;
    }
    let centre = hodges_lehmann::one_sample(&case.log_ratios, 0.95)?.estimate;
    let noise: Vec<f64> = case.log_ratios.iter().map(|ratio| ratio - centre).collect();
    let alone = policy.false_discovery_rate / survivors.max(1) as f64;
    let finds = |effect: f64| {
        // The same draws for every effect make the power rise with it.
        let mut rng = Pcg64::seed_from_u64(policy.seed ^ 0x006d_6465);
        let mut draw = |pairs: usize| -> Vec<f64> {
            let mut one = || if rng.random::<bool>() { 1.0 } else { -1.0 } * noise[rng.random_range(0..noise.len())];
            (0..pairs).map(|_| effect + one()).collect()
        };
        let found = (0..policy.simulations)
            .filter(|_| {
                let (screen, confirm) = (draw(policy.screen_pairs), draw(policy.confirm_pairs));
                p_value(&screen, Alternative::Greater, policy) <= policy.screen_p
                    && p_value(&confirm, Alternative::Greater, policy) <= alone
                    && hodges_lehmann::one_sample(&confirm, 0.95).map_or(0.0, |shift| shift.estimate)
                        > floor(policy.floor, policy, &confirm, case.calibrated_error)
            })
            .count();
        found as f64 >= policy.power * policy.simulations as f64
    };
    let (mut missed, mut found) = (0.0, 1.0);
    if !finds(found) {
        return None;
    }
    // To a hundredth of its value, or a hundredth of a percent.
    while found - missed > 1e-4f64.max(0.01 * found) {
        let middle = 0.5 * (missed + found);
        if finds(middle) { found = middle } else { missed = middle }
    }
    Some(found.exp_m1())
}
