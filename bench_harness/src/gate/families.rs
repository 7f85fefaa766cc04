//! Families of cases, of which many small losses are one large one.
//!
//! The cases of a kernel, and those of a kernel in one phase, go through the same stages as a case does, as the mean of
//! their pairs: noise that cases do not share cancels, so a loss far below any case's floor shows. Families are tested
//! among themselves, apart from cases, and fail a gate only for the worse.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::plan::PairedCase;
use super::policy::Policy;
use super::stages::{Screen, p_value};
use crate::compare::verdict::{Finding, Verdict, change, percent};
use crate::metric::Estimate;
use crate::stats::noise::standard_deviation;
use crate::stats::{Alternative, fdr, hodges_lehmann};

/// A family and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FamilyFinding {
    /// `provider/kernel`, or `provider/kernel, phase`.
    pub family: String,
    /// How many cases it has.
    pub cases: usize,
    /// The verdict, of the mean over its cases.
    #[serde(flatten)]
    pub finding: Finding,
}

/// Judges the families of cases that were measured: for a gate, after [`super::plan::next`] has decided.
pub fn judge(policy: &Policy, cases: &[PairedCase]) -> Vec<FamilyFinding> {
    let families = Families::of(policy, cases);
    let survivors: Vec<usize> = (0..families.0.len()).filter(|&i| families.0[i].screen == Screen::Slower).collect();
    let p: Vec<f64> =
        survivors.iter().map(|&i| families.0[i].screen.confirmed_p(&families.0[i].means, policy)).collect();
    let found = fdr::discoveries(&p, policy.family_false_discovery_rate);
    let tested = |i: usize| survivors.iter().position(|&survivor| survivor == i).map(|place| (p[place], found[place]));
    families.0.iter().enumerate().map(|(i, family)| family.finding(policy, tested(i))).collect()
}

/// The families of a gate.
pub(super) struct Families(Vec<Family>);

struct Family {
    name: String,
    /// Indices of its cases.
    members: Vec<usize>,
    /// The mean over its cases, a pair each, as far as all of them have one.
    means: Vec<f64>,
    screen: Screen,
}

impl Families {
    /// Every kernel and every phase of a kernel with more than one case. Cases that cannot be measured and were not
    /// screened are no part of a mean.
    pub(super) fn of(policy: &Policy, cases: &[PairedCase]) -> Families {
        let mut members: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (i, case) in cases.iter().enumerate() {
            let is_usable = case.log_ratios.iter().all(|ratio| ratio.is_finite());
            if !is_usable || (case.is_closed && case.log_ratios.len() < policy.screen_pairs) {
                continue;
            }
            let mut parts = case.key.case_id.split('/');
            let (Some(provider), Some(kernel), Some(_), Some(phase)) =
                (parts.next(), parts.next(), parts.next(), parts.next())
            else {
                continue;
            };
            members.entry(format!("{provider}/{kernel}")).or_default().push(i);
            members.entry(format!("{provider}/{kernel}, {phase}")).or_default().push(i);
        }
        // A kernel with one phase is one family, not two.
        let of_kernel = |name: &str| name.split(", ").next().and_then(|kernel| members.get(kernel)).map_or(0, Vec::len);
        let distinct =
            members.iter().filter(|(name, of)| of.len() > 1 && (!name.contains(", ") || of.len() < of_kernel(name)));
        Families(distinct.map(|(name, members)| Family::of(name, members, policy, cases)).collect())
    }

    /// How many pairs the confirmation of families wants of each case.
    pub(super) fn wanted(&self, policy: &Policy, cases: &[PairedCase]) -> Vec<usize> {
        let mut wanted = vec![0; cases.len()];
        for family in self.0.iter().filter(|family| family.screen == Screen::Slower) {
            for &i in &family.members {
                wanted[i] = wanted[i].max(family.screen.wanted(&family.means, policy));
            }
        }
        wanted
    }
}

impl Family {
    fn of(name: &str, members: &[usize], policy: &Policy, cases: &[PairedCase]) -> Family {
        // A case that stopped early does not hold the others up, and does not change sides of the mean between stages.
        let has = |pairs: usize| move |&&i: &&usize| !cases[i].is_closed || cases[i].log_ratios.len() >= pairs;
        let whole = policy.screen_pairs + policy.confirm_pairs;
        let lasting: Vec<usize> = members.iter().filter(has(whole)).copied().collect();
        let members = if lasting.len() > 1 { lasting } else { members.to_vec() };
        let pairs = members.iter().map(|&i| cases[i].log_ratios.len()).min().unwrap_or(0);
        let mean = |pair: usize| {
            members.iter().map(|&i| cases[i].log_ratios[pair]).sum::<f64>() / members.len() as f64
        };
        let means: Vec<f64> = (0..pairs).map(mean).collect();
        let screen = screen(&means, policy);
        Family { name: name.to_owned(), members, means, screen }
    }

    fn finding(&self, policy: &Policy, tested: Option<(f64, bool)>) -> FamilyFinding {
        let named = |finding| FamilyFinding { family: self.name.clone(), cases: self.members.len(), finding };
        if self.screen == Screen::Incomplete {
            let reason = format!("too few rounds: {} (needs {})", self.means.len(), policy.screen_pairs);
            return named(Finding::bare(Verdict::Inconclusive, reason));
        }
        let confirmation = self.screen.confirmation(&self.means, policy);
        let told = if confirmation.is_empty() { &self.means[..] } else { confirmation };
        let shift = hodges_lehmann::one_sample(told, 0.95).expect("there are means, and they are finite");
        let floor = floor(policy, told);
        let seen = change(shift.estimate);
        let (verdict, reason) = match tested {
            Some((p, true)) if shift.estimate > floor => {
                (Verdict::Regressed, format!("{seen} in the mean over {} new pairs, p = {p:.1e}", told.len()))
            }
            Some((_, true)) => {
                (Verdict::Unchanged, format!("{seen} in the mean, below the floor of {}", percent(floor.exp_m1())))
            }
            Some((p, false)) => (Verdict::Unchanged, format!("{seen} in the mean, not confirmed: p = {p:.2}")),
            None => (Verdict::Unchanged, format!("{seen} in the mean over {} pairs", told.len())),
        };
        let interval = shift.interval;
        let ratio = Estimate {
            value: shift.estimate.exp(),
            low: interval.low.exp(),
            high: interval.high.exp(),
            confidence: interval.confidence,
        };
        named(Finding { ratio: Some(ratio), p_value: tested.map(|(p, _)| p), ..Finding::bare(verdict, reason) })
    }
}

/// A confirmation takes pairs of all cases, so it needs an effect that would matter beside a small p.
fn screen(means: &[f64], policy: &Policy) -> Screen {
    let Some(pairs) = means.get(..policy.screen_pairs) else { return Screen::Incomplete };
    let matters =
        hodges_lehmann::one_sample_estimate(pairs).is_some_and(|estimate| estimate > 0.5 * policy.family_floor.ln_1p());
    if matters && p_value(pairs, Alternative::Greater, policy) <= policy.family_screen_p {
        Screen::Slower
    } else {
        Screen::Passed
    }
}

fn floor(policy: &Policy, means: &[f64]) -> f64 {
    let error = standard_deviation(means).map_or(0.0, |deviation| deviation / (means.len() as f64).sqrt());
    policy.family_floor.ln_1p().max(policy.floor_standard_errors * error)
}
