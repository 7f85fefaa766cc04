//! Latency against stored baselines.
//!
//! Rounds of one session share the day's machine: its temperature, its neighbours, the placement of its memory. Two
//! sessions of one build therefore differ by more than their rounds suggest, and only other sessions can say by how
//! much. So:
//!
//! - With `min_sessions` on both sides, sessions are tested against sessions (rank-sum permutation, Benjamini-Hochberg
//!   over all cases).
//! - With fewer, only gross effects are called: the estimate must exceed `gross_threshold`, and must stand
//!   `gross_standard_errors` clear of `margin`, both after the machine's own drift is taken off. Standard errors are at
//!   least those of the typical case, since a noisy machine is noisy for all, and allow for rounds that resemble their
//!   neighbours.
//! - A case is `unchanged` when its one-sided 95 % bound, drift added, stays inside `margin`.
//!
//! Drift is the largest change of a control. Beyond `max_drift` nothing is called at all.

use rand::SeedableRng;
use rand_pcg::Pcg64;

use super::verdict::{Finding, Verdict, change, percent};
use crate::case::CaseKey;
use crate::gate::policy::Policy;
use crate::metric::Estimate;
use crate::stats::autocorrelation::{effective_n, pooled_lag1};
use crate::stats::noise::standard_deviation;
use crate::stats::quantile::{median, quantile};
use crate::stats::{Alternative, fdr, hodges_lehmann, normal, rank_sum};

/// What is stored of a case on both sides.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredCase {
    /// Which.
    pub key: CaseKey,
    /// Median nanoseconds of each round of each session of base.
    pub base: Vec<Vec<f64>>,
    /// Median nanoseconds of each round of each session of head.
    pub head: Vec<Vec<f64>>,
    /// Logarithm of the largest change of a control of its provider, either way; 0 where there is no control.
    pub drift: f64,
}

/// Judges all cases of a comparison together, since they share their noise and the share of false alarms.
pub fn judge(cases: &[StoredCase], policy: &Policy) -> Vec<Finding> {
    let sides: Vec<(Side, Side)> =
        cases.iter().map(|case| (Side::new(&case.base, policy), Side::new(&case.head, policy))).collect();
    let typical = Typical::of(&sides);
    let effects: Vec<Option<Effect>> = cases
        .iter()
        .zip(&sides)
        .map(|(case, (base, head))| Effect::of(base, head, &typical, case.drift.abs(), policy))
        .collect();

    let mut rng = Pcg64::seed_from_u64(policy.seed);
    let tested: Vec<usize> =
        (0..cases.len()).filter(|&i| effects[i].is_some_and(|effect| effect.tests_sessions)).collect();
    let draws = (100.0 * tested.len() as f64 / policy.false_discovery_rate).ceil() as usize;
    let mut family = |alternative: Alternative| -> (Vec<f64>, Vec<bool>) {
        let p: Vec<f64> = tested
            .iter()
            .map(|&i| {
                let (base, head) = &sides[i];
                typical.allow(rank_sum::p_value(&base.medians, &head.medians, alternative, draws, &mut rng))
            })
            .collect();
        let found = fdr::discoveries(&p, policy.false_discovery_rate);
        (p, found)
    };
    let (slower_p, slower) = family(Alternative::Greater);
    let (_, faster) = family(Alternative::Less);

    (0..cases.len())
        .map(|i| {
            let Some(effect) = effects[i] else {
                return too_few_rounds(&cases[i], policy);
            };
            let test = tested.iter().position(|&tested| tested == i).map(|place| SessionTest {
                p_value: slower_p[place],
                slower: slower[place],
                faster: faster[place],
                smallest_p: typical.allow(rank_sum::smallest_p(sides[i].0.medians.len(), sides[i].1.medians.len())),
                family: tested.len(),
            });
            effect.finding(test, policy)
        })
        .collect()
}

fn too_few_rounds(case: &StoredCase, policy: &Policy) -> Finding {
    let most = |sessions: &[Vec<f64>]| sessions.iter().map(Vec::len).max().unwrap_or(0);
    let reason = format!(
        "too few rounds: {} of base, {} of head (needs {} in one session)",
        most(&case.base),
        most(&case.head),
        policy.min_rounds
    );
    Finding::bare(Verdict::Inconclusive, reason)
}

/// One side of a case.
#[derive(Clone, Debug)]
struct Side {
    /// Logarithms of the rounds of each session that has enough of them.
    sessions: Vec<Vec<f64>>,
    /// The median of each session.
    medians: Vec<f64>,
}

impl Side {
    fn new(sessions: &[Vec<f64>], policy: &Policy) -> Side {
        let usable = |rounds: &&Vec<f64>| {
            rounds.len() >= policy.min_rounds.max(2) && rounds.iter().all(|ns| *ns > 0.0 && ns.is_finite())
        };
        let logs = |rounds: &Vec<f64>| rounds.iter().map(|ns| ns.ln()).collect::<Vec<f64>>();
        let sessions: Vec<Vec<f64>> = sessions.iter().filter(usable).map(logs).collect();
        let medians = sessions.iter().filter_map(|rounds| median(rounds)).collect();
        Side { sessions, medians }
    }

    /// Standard deviation of a round within its session: the largest session's, or nothing.
    fn round_deviation(&self) -> Option<f64> {
        self.sessions.iter().filter_map(|rounds| standard_deviation(rounds)).max_by(f64::total_cmp)
    }

    /// Squared standard error of this side's centre, as far as its rounds tell.
    fn rounds_variance(&self, deviation: f64, correlation: f64) -> f64 {
        let effective: f64 = self.sessions.iter().map(|rounds| effective_n(rounds.len(), correlation)).sum();
        deviation.powi(2) / effective
    }
}

/// The noise of the typical case, which no single case is trusted to undercut.
#[derive(Clone, Copy, Debug)]
struct Typical {
    round_deviation: f64,
    round_correlation: f64,
    session_deviation: f64,
    session_correlation: f64,
}

impl Typical {
    fn of(sides: &[(Side, Side)]) -> Typical {
        let each = || sides.iter().flat_map(|(base, head)| [base, head]);
        let rounds: Vec<f64> = each().filter_map(Side::round_deviation).collect();
        let sessions: Vec<f64> = each().filter_map(|side| standard_deviation(&side.medians)).collect();
        let round_series: Vec<Vec<f64>> = each().flat_map(|side| side.sessions.clone()).collect();
        let session_series: Vec<Vec<f64>> = each().map(|side| side.medians.clone()).collect();
        Typical {
            round_deviation: upper_quartile(&rounds),
            round_correlation: pooled_lag1(&round_series).unwrap_or(0.0),
            session_deviation: upper_quartile(&sessions),
            session_correlation: pooled_lag1(&session_series).unwrap_or(0.0),
        }
    }

    /// A p-value that allows for sessions that resemble their neighbours: its normal score shrinks as the number of
    /// independent sessions does.
    fn allow(&self, p: f64) -> f64 {
        let correlation = self.session_correlation.max(0.0);
        match normal::quantile(p) {
            Some(score) if correlation > 0.0 => {
                normal::cdf(score * ((1.0 - correlation) / (1.0 + correlation)).sqrt()).max(p)
            }
            _ => p,
        }
    }
}

/// The upper quartile, or the largest of fewer than four. Noise that has two modes shows in some sides of some cases only,
/// which a median would overlook; a single wild case stays without influence.
fn upper_quartile(deviations: &[f64]) -> f64 {
    quantile(deviations, 0.75).unwrap_or_else(|| deviations.iter().copied().fold(0.0, f64::max))
}

/// Head against base, in log ratios.
#[derive(Clone, Copy, Debug)]
struct Effect {
    estimate: f64,
    error: f64,
    drift: f64,
    base_sessions: usize,
    head_sessions: usize,
    tests_sessions: bool,
}

/// What the test of sessions said of a case.
#[derive(Clone, Copy, Debug)]
struct SessionTest {
    p_value: f64,
    slower: bool,
    faster: bool,
    smallest_p: f64,
    family: usize,
}

impl Effect {
    /// `None` where a side has too few rounds.
    fn of(base: &Side, head: &Side, typical: &Typical, drift: f64, policy: &Policy) -> Option<Effect> {
        let (base_sessions, head_sessions) = (base.medians.len(), head.medians.len());
        let estimate = match (&base.sessions[..], &head.sessions[..]) {
            ([base], [head]) => hodges_lehmann::two_sample_estimate(base, head)?,
            _ => hodges_lehmann::two_sample_estimate(&base.medians, &head.medians)?,
        };
        let rounds = |side: &Side| {
            let deviation = side.round_deviation().unwrap_or(0.0).max(typical.round_deviation);
            side.rounds_variance(deviation, typical.round_correlation)
        };
        let own = [base, head].into_iter().filter_map(|side| standard_deviation(&side.medians));
        let session_deviation = own.fold(typical.session_deviation, f64::max);
        let effective = |sessions: usize| effective_n(sessions, typical.session_correlation);
        let between = session_deviation.powi(2) * (1.0 / effective(base_sessions) + 1.0 / effective(head_sessions));
        let error = between.max(rounds(base) + rounds(head)).sqrt();
        let tests_sessions = base_sessions.min(head_sessions) >= policy.min_sessions;
        Some(Effect { estimate, error, drift, base_sessions, head_sessions, tests_sessions })
    }

    fn finding(&self, test: Option<SessionTest>, policy: &Policy) -> Finding {
        let (verdict, reason) = self.verdict(test, policy);
        let reach = self.bound_score(0.975) * self.error + self.drift;
        let ratio = Estimate {
            value: self.estimate.exp(),
            low: (self.estimate - reach).exp(),
            high: (self.estimate + reach).exp(),
            confidence: 0.95,
        };
        let mde = self.mde(test, policy).exp_m1();
        Finding { verdict, reason, ratio: Some(ratio), p_value: test.map(|test| test.p_value), mde: Some(mde) }
    }

    fn verdict(&self, test: Option<SessionTest>, policy: &Policy) -> (Verdict, String) {
        let Effect { estimate, drift, .. } = *self;
        if drift > policy.max_drift.ln_1p() {
            let reason = format!("the machine's own ceilings differ by {}", percent(drift.exp_m1()));
            return (Verdict::NotComparable, reason);
        }
        let called = |side: f64| if side > 0.0 { Verdict::Regressed } else { Verdict::Improved };
        let beyond = estimate.abs() - drift;
        let clear = beyond - policy.gross_standard_errors * self.error;
        let drifted =
            if drift >= 0.001 { format!(", controls moved by {}", percent(drift.exp_m1())) } else { String::new() };
        if beyond > policy.gross_threshold.ln_1p() && clear > policy.margin.ln_1p() {
            let threshold = percent(policy.gross_threshold);
            return (
                called(estimate),
                format!("{}, beyond the gross threshold of {threshold}{drifted}", change(estimate)),
            );
        }
        let floor = policy.floor.ln_1p().max(policy.floor_standard_errors * self.error);
        if let Some(test) = test
            && beyond > floor
            && ((test.slower && estimate > 0.0) || (test.faster && estimate < 0.0))
        {
            let sessions = format!("{} against {} sessions", self.head_sessions, self.base_sessions);
            let floor = percent(floor.exp_m1());
            return (
                called(estimate),
                format!("{}, {sessions}, beyond the floor of {floor}{drifted}", change(estimate)),
            );
        }
        let margin = policy.margin.ln_1p();
        let bound = estimate + self.bound_score(0.95) * self.error + drift;
        if bound < margin && estimate > -margin {
            let reason = format!("at most {} slower with 95 % confidence{drifted}", percent(bound.exp_m1().max(0.0)));
            return (Verdict::Unchanged, reason);
        }
        (Verdict::Inconclusive, self.undecided(test, policy, &drifted))
    }

    fn undecided(&self, test: Option<SessionTest>, policy: &Policy, drifted: &str) -> String {
        let seen = format!("{} +- {}", change(self.estimate), percent((1.96 * self.error).exp_m1()));
        let Some(test) = test else {
            let fewest = self.base_sessions.min(self.head_sessions);
            let which = if fewest == self.base_sessions { "base" } else { "head" };
            let count = if fewest == 1 { "one session".to_owned() } else { format!("{fewest} sessions") };
            return format!("{count} of {which} ({fewest} of {}): {seen}{drifted}", policy.min_sessions);
        };
        let alone = policy.false_discovery_rate / test.family as f64;
        if test.smallest_p > alone {
            let needed = rank_sum::heads_needed(self.base_sessions, alone);
            let needed = needed.map_or("more of base".to_owned(), |sessions| format!("{sessions} of head"));
            return format!("too few sessions among {} cases (needs {needed}): {seen}{drifted}", test.family);
        }
        format!("{seen}, p = {:.2}{drifted}", test.p_value)
    }

    /// Standard errors to a one-sided bound.
    fn bound_score(&self, confidence: f64) -> f64 {
        normal::quantile(confidence).unwrap_or(f64::INFINITY)
    }

    /// The smallest log ratio that would have been called with the policy's power, its estimate being normal around the
    /// truth with this standard error: what the gross rule finds, or what the test of sessions does where there is one.
    fn mde(&self, test: Option<SessionTest>, policy: &Policy) -> f64 {
        let luck = self.bound_score(policy.power) * self.error;
        let gross = policy.gross_threshold.ln_1p();
        let clear = policy.margin.ln_1p() + policy.gross_standard_errors * self.error;
        // Drift is taken off, and is about as uncertain as the estimate: two independent errors.
        let by_gross = gross.max(clear) + self.drift + luck * std::f64::consts::SQRT_2;
        let Some(test) = test else { return by_gross };
        let alone = policy.false_discovery_rate / test.family as f64;
        if test.smallest_p > alone {
            return by_gross;
        }
        let floor = policy.floor.ln_1p().max(policy.floor_standard_errors * self.error) + self.drift;
        // A rank test needs about 5 % more than a normal one: its efficiency is 3/pi.
        let significant = self.bound_score(1.0 - alone) * self.error * (std::f64::consts::PI / 3.0).sqrt();
        by_gross.min(floor.max(significant) + luck)
    }
}
