//! How much two builds of one commit differ on a device: what the gate's floors rest on, and how often it cries wolf.
//!
//! Pairs of two separate builds of one commit keep their labels and their order. Windows of consecutive pairs that share
//! none are judged like a gate's: whatever they find is a false alarm. With a slowdown put in, what they miss is missed.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::plan::{self, Evidence, PairedCase, Step};
use super::policy::Policy;
use super::stages::p_value;
use crate::case::CaseKey;
use crate::compare::Verdict;
use crate::files::{DocumentKind, Problem, parse_document};
use crate::stats::autocorrelation::{effective_n, pooled_lag1};
use crate::stats::quantile::quantile;
use crate::stats::{Alternative, hodges_lehmann};

/// The kind of file.
pub const CALIBRATION: DocumentKind = DocumentKind {
    name: "calibration",
    version_field: "calibration_version",
    version: 1,
    max_bytes: MAX_CALIBRATION_BYTES as u64,
    made_by: "`attnbench calibrate`",
};

/// Largest file, in bytes.
pub const MAX_CALIBRATION_BYTES: usize = 16 << 20;

/// The level of the test whose rate of false alarms is stated.
pub const ALPHA: f64 = 0.05;
/// What the upper bound of that rate must not exceed for a calibration to pass.
pub const MAX_RATE: f64 = 0.08;
/// Slowdowns that are put in.
pub const SLOWDOWNS: [f64; 4] = [0.01, 0.02, 0.05, 0.10];
/// Resamples of the bootstrap, and gates that are drawn for the extrapolated rate.
const RESAMPLES: usize = 1000;
const DRAWN_GATES: usize = 400;

/// Where the calibration of a suite on a device is, from the root of the repository.
pub fn calibration_file(device: &str, suite: &str) -> String {
    format!("ci/calibration/{device}/{suite}.json")
}

/// What was learnt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Calibration {
    /// Version of the format.
    pub calibration_version: u32,
    /// The suite.
    pub suite: String,
    /// Slug of the device.
    pub device: String,
    /// RFC 3339, UTC.
    pub date: String,
    /// The commit that was built twice.
    pub commit: String,
    /// What must be equal for this noise to be a machine's.
    pub fingerprint: BTreeMap<String, String>,
    /// Pairs of each case.
    pub pairs: usize,
    /// Seconds of measuring.
    pub measured_s: f64,
    /// Share of windows of a single case that a one-sided test at [`ALPHA`] calls slower.
    pub case_rate: Rate,
    /// Windows of one case each that this is over.
    pub windows: usize,
    /// Share of whole gates that fail, extrapolated: gates over rounds drawn from the stream with sides swapped at random.
    pub gate_rate_extrapolated: Rate,
    /// What is found of slowdowns that are put into the numbers of every case.
    pub numeric: Vec<Found>,
    /// What is found of slowdowns that workers made.
    pub physical: Vec<Injected>,
    /// Whether the upper bound of `case_rate` is at most [`MAX_RATE`].
    pub passes: bool,
    /// The noise of each case.
    pub cases: Vec<CaseNoise>,
}

/// A share and its upper bound.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Rate {
    /// The share that was seen.
    pub value: f64,
    /// The true one is below this with 95 % confidence.
    pub upper: f64,
}

/// How many of the cases with a slowdown were called regressed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Found {
    /// 0.05 is 5 %.
    pub slowdown: f64,
    /// Called regressed,
    pub found: usize,
    /// of these.
    pub of: usize,
}

/// One case with one slowdown that a worker made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Injected {
    /// The case.
    #[serde(flatten)]
    pub key: CaseKey,
    /// What the worker added to each call.
    pub slowdown: f64,
    /// What was measured of it.
    pub measured: f64,
    /// What the same case's undisturbed pairs give with it put into their numbers.
    pub numeric: f64,
    /// Verdict on what was measured.
    pub verdict: Verdict,
    /// Verdict on what was put into the numbers.
    pub numeric_verdict: Verdict,
}

/// The noise of one case between two builds of one commit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CaseNoise {
    /// The case.
    #[serde(flatten)]
    pub key: CaseKey,
    /// Root mean square of a pair's log ratio.
    pub deviation: f64,
    /// Mean log ratio: what the builds themselves differ by, and luck.
    pub offset: f64,
    /// Standard error of the mean of a confirmation's pairs: [`Policy::floor_standard_errors`] of these are a floor.
    pub error: f64,
}

impl Calibration {
    /// Reads a file's bytes.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(bytes: &[u8]) -> Result<Calibration, Problem> {
        parse_document(&CALIBRATION, bytes)
    }

    /// The standard error of a case's mean of a confirmation's pairs.
    pub fn error_of(&self, key: &CaseKey) -> Option<f64> {
        self.cases.iter().find(|case| case.key == *key).map(|case| case.error)
    }
}

/// The noise of each case.
pub fn noise(cases: &[PairedCase], policy: &Policy) -> Vec<CaseNoise> {
    let series: Vec<Vec<f64>> = cases.iter().map(|case| case.log_ratios.clone()).collect();
    let correlation = pooled_lag1(&series).unwrap_or(0.0).max(0.0);
    let measured = cases.iter().filter(|case| case.log_ratios.len() >= 2);
    measured
        .map(|case| {
            let n = case.log_ratios.len() as f64;
            let offset = case.log_ratios.iter().sum::<f64>() / n;
            let around = case.log_ratios.iter().map(|ratio| (ratio - offset).powi(2)).sum::<f64>() / (n - 1.0);
            let mean_square = case.log_ratios.iter().map(|ratio| ratio.powi(2)).sum::<f64>() / n;
            // What of the offset the noise does not explain is the builds', and no number of pairs lowers it.
            let between = (offset.powi(2) - around / effective_n(case.log_ratios.len(), correlation)).max(0.0);
            let error = (around / effective_n(policy.confirm_pairs, correlation) + between).sqrt();
            CaseNoise { key: case.key.clone(), deviation: mean_square.sqrt(), offset, error }
        })
        .collect()
}

/// The share of windows of the screen's length in which a single case looks slower at [`ALPHA`], and how many windows of
/// single cases there are. Rounds are shared by all cases, so windows are resampled whole, and cases are too (Owen, The
/// pigeonhole bootstrap, 2007); the bound is at least the exact one of independent windows (Clopper and Pearson, 1934).
pub fn case_rate(cases: &[PairedCase], policy: &Policy) -> (Rate, usize) {
    let length = policy.screen_pairs;
    let alarms: Vec<Vec<bool>> = cases
        .iter()
        .filter(|case| case.log_ratios.len() >= length)
        .map(|case| {
            let windows = case.log_ratios.chunks_exact(length);
            windows.map(|window| p_value(window, Alternative::Greater) <= ALPHA).collect()
        })
        .collect();
    let count = alarms.iter().map(Vec::len).sum::<usize>();
    let seen = alarms.iter().flatten().filter(|alarm| **alarm).count();
    if count == 0 {
        return (Rate { value: 0.0, upper: 1.0 }, 0);
    }
    let windows = alarms.iter().map(Vec::len).max().unwrap_or(0);
    let mut rng = Pcg64::seed_from_u64(policy.seed ^ 0x6361_7365);
    let rates: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let chosen: Vec<usize> = (0..windows).map(|_| rng.random_range(0..windows)).collect();
            let (mut alarmed, mut all) = (0usize, 0usize);
            for _ in 0..alarms.len() {
                let case = &alarms[rng.random_range(0..alarms.len())];
                for alarm in chosen.iter().filter_map(|&window| case.get(window)) {
                    alarmed += usize::from(*alarm);
                    all += 1;
                }
            }
            alarmed as f64 / all.max(1) as f64
        })
        .collect();
    let bootstrap = quantile(&rates, 0.95).unwrap_or(1.0);
    (Rate { value: seen as f64 / count as f64, upper: bootstrap.max(binomial_upper(seen, count)) }, count)
}

/// The share of gates that fail although nothing changed. Each takes rounds at random from the stream, whole, and swaps
/// the sides of each by a coin, as another run of the same two builds might have.
pub fn gate_rate(cases: &[PairedCase], policy: &Policy) -> Rate {
    let rounds = cases.iter().map(|case| case.log_ratios.len()).min().unwrap_or(0);
    if rounds == 0 {
        return Rate { value: 0.0, upper: 1.0 };
    }
    let policy = Policy { simulations: 0, ..policy.clone() };
    let mut rng = Pcg64::seed_from_u64(policy.seed ^ 0x6761_7465);
    let failed = (0..DRAWN_GATES)
        .filter(|_| {
            let drawn: Vec<(usize, f64)> = (0..policy.max_pairs)
                .map(|_| (rng.random_range(0..rounds), if rng.random::<bool>() { 1.0 } else { -1.0 }))
                .collect();
            let source = |case: &PairedCase| drawn.iter().map(|&(round, sign)| sign * case.log_ratios[round]).collect();
            let all: Vec<Vec<f64>> = cases.iter().map(source).collect();
            let (verdicts, judged) = replay(cases, &all, &policy);
            verdicts.contains(&Verdict::Regressed)
                || super::families::judge(&policy, &judged).iter().any(|f| f.finding.verdict == Verdict::Regressed)
        })
        .count();
    Rate { value: failed as f64 / DRAWN_GATES as f64, upper: binomial_upper(failed, DRAWN_GATES) }
}

/// What a gate says of pairs that are there already, taking them as it asks for them; and the pairs that it asked for.
fn replay(cases: &[PairedCase], all: &[Vec<f64>], policy: &Policy) -> (Vec<Verdict>, Vec<PairedCase>) {
    let empty = |case: &PairedCase| PairedCase { log_ratios: Vec::new(), is_closed: false, ..case.clone() };
    let mut seen: Vec<PairedCase> = cases.iter().map(empty).collect();
    loop {
        let may_measure = seen.iter().zip(all).any(|(case, all)| case.log_ratios.len() < all.len());
        match plan::next(policy, &Evidence::Pairs { cases: &seen, may_measure }) {
            Step::Decided(findings) => return (findings.iter().map(|finding| finding.verdict).collect(), seen),
            Step::Measure { cases: which, pairs } => {
                for index in which {
                    let have = seen[index].log_ratios.len();
                    let end = all[index].len().min(have + pairs);
                    seen[index].log_ratios.extend(&all[index][have..end]);
                    seen[index].is_closed |= end == all[index].len();
                }
            }
        }
    }
}

/// Windows of the length that a decision takes, which share no pair; one of all pairs where there are fewer.
fn gate_windows(log_ratios: &[f64], policy: &Policy) -> Vec<Vec<f64>> {
    let length = (policy.screen_pairs + policy.confirm_pairs).min(log_ratios.len()).max(1);
    log_ratios.chunks_exact(length).map(<[f64]>::to_vec).collect()
}

/// What a gate of one case finds of slowdowns that are put into the numbers.
pub fn numeric(cases: &[PairedCase], policy: &Policy) -> Vec<Found> {
    let policy = Policy { simulations: 0, ..policy.clone() };
    let one = |slowdown: f64| {
        let (mut found, mut of) = (0, 0);
        for case in cases {
            for window in gate_windows(&case.log_ratios, &policy) {
                of += 1;
                found += usize::from(verdict_with(case, &window, slowdown, &policy) == Verdict::Regressed);
            }
        }
        Found { slowdown, found, of }
    };
    SLOWDOWNS.into_iter().map(one).collect()
}

fn verdict_with(case: &PairedCase, pairs: &[f64], slowdown: f64, policy: &Policy) -> Verdict {
    let slowed: Vec<f64> = pairs.iter().map(|ratio| ratio + slowdown.ln_1p()).collect();
    replay(std::slice::from_ref(case), &[slowed], policy).0[0]
}

/// A slowdown that workers made of a case, beside the same put into the numbers of the case's own pairs; `None` without
/// pairs.
pub fn injected(plain: &PairedCase, slowed: &PairedCase, slowdown: f64, policy: &Policy) -> Option<Injected> {
    let policy = Policy { simulations: 0, ..policy.clone() };
    let length = slowed.log_ratios.len().min(plain.log_ratios.len());
    let shift = |pairs: &[f64]| Some(hodges_lehmann::one_sample(pairs, 0.95)?.estimate);
    Some(Injected {
        key: plain.key.clone(),
        slowdown,
        measured: shift(&slowed.log_ratios)?.exp_m1(),
        numeric: (shift(&plain.log_ratios[..length])? + slowdown.ln_1p()).exp_m1(),
        verdict: verdict_with(slowed, &slowed.log_ratios, 0.0, &policy),
        numeric_verdict: verdict_with(plain, &plain.log_ratios[..length], slowdown, &policy),
    })
}

/// The largest share under which so few or fewer of `count` are seen with a probability of 5 % (Clopper and Pearson, The
/// use of confidence or fiducial limits, 1934).
fn binomial_upper(seen: usize, count: usize) -> f64 {
    if seen >= count {
        return 1.0;
    }
    let at_most = |share: f64| {
        let mut term = (1.0 - share).ln() * count as f64;
        let mut sum = 0.0;
        for k in 0..=seen {
            sum += term.exp();
            term += ((count - k) as f64 / (k + 1) as f64).ln() + (share / (1.0 - share)).ln();
        }
        sum
    };
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if at_most(middle) > 0.05 { low = middle } else { high = middle }
    }
    high
}
