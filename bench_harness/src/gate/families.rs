//! Families of cases: many small losses are one large one.
//!
//! A kernel's cases, and a kernel's cases of one phase, are tested on their mean, pair by pair, which has far less noise
//! than any of them. As for single cases, a screen chooses which families get new pairs, and only these decide, by
//! Benjamini-Hochberg over the families that were chosen. The coin of each case and pair makes the sign of a mean as
//! likely to be either, so the same test holds.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::plan::{PairedCase, floor};
use super::policy::Policy;
use super::stages::{look_pairs, p_value};
use crate::compare::verdict::{Finding, Verdict, change, percent};
use crate::metric::Estimate;
use crate::stats::{Alternative, fdr, hodges_lehmann};

/// A family's verdict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FamilyFinding {
    /// `provider/kernel`, or that and a phase.
    pub family: String,
    /// Cases whose pairs were averaged.
    pub cases: usize,
    /// What was found of them together.
    #[serde(flatten)]
    pub finding: Finding,
}

/// The families of at least two cases that have all pairs of the screen, by name, with their members.
pub fn families(policy: &Policy, cases: &[PairedCase]) -> Vec<(String, Vec<usize>)> {
    let mut families: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (index, case) in cases.iter().enumerate().filter(|(_, case)| case.log_ratios.len() >= policy.screen_pairs) {
        let mut parts = case.key.case_id.split('/');
        let (Some(provider), Some(kernel), Some(_), Some(phase)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        for name in [format!("{provider}/{kernel}"), format!("{provider}/{kernel} {phase}")] {
            families.entry(name).or_default().push(index);
        }
    }
    families.retain(|_, members| members.len() >= 2);
    // A kernel with one phase is one family, under its shorter name, which comes first.
    let mut found: Vec<(String, Vec<usize>)> = Vec::new();
    for (name, members) in families {
        if found.iter().all(|(_, known)| *known != members) {
            found.push((name, members));
        }
    }
    found
}

/// How many pairs of each case the confirmation of families needs: those of the members of families that look slower, until
/// a look at the first of them says otherwise. Nothing while a case still lacks pairs of the screen.
pub(super) fn wanted(policy: &Policy, cases: &[PairedCase]) -> Vec<usize> {
    let mut wanted = vec![0; cases.len()];
    let is_waiting = |case: &PairedCase| !case.is_closed && case.log_ratios.len() < policy.screen_pairs;
    if cases.iter().any(is_waiting) {
        return wanted;
    }
    let look = policy.screen_pairs + look_pairs(policy);
    for (_, members) in families(policy, cases).into_iter().filter(|(_, members)| is_slower(policy, cases, members)) {
        let has_look = members.iter().all(|&member| cases[member].log_ratios.len() >= look);
        let whole = has_look && !is_futile(policy, cases, &members);
        let pairs = if whole { policy.screen_pairs + policy.confirm_pairs } else { look };
        for member in members {
            wanted[member] = wanted[member].max(pairs);
        }
    }
    wanted
}

/// A confirmation takes pairs of all members, so it needs an effect that would matter beside a small p.
fn is_slower(policy: &Policy, cases: &[PairedCase], members: &[usize]) -> bool {
    let screen = means(cases, members, 0, policy.screen_pairs);
    let matters = hodges_lehmann::one_sample_estimate(&screen)
        .is_some_and(|estimate| estimate > 0.5 * policy.family_floor.ln_1p());
    matters && p_value(&screen, Alternative::Greater) <= policy.family_screen_p
}

/// Whether the first pairs of the confirmation, which all members have, show too little for the rest.
fn is_futile(policy: &Policy, cases: &[PairedCase], members: &[usize]) -> bool {
    let look = look_pairs(policy);
    let pairs = means(cases, members, policy.screen_pairs, policy.screen_pairs + look);
    look < policy.confirm_pairs && p_value(&pairs, Alternative::Greater) > policy.look_p
}

/// The mean over members of each pair from `start` to `end`.
fn means(cases: &[PairedCase], members: &[usize], start: usize, end: usize) -> Vec<f64> {
    let mean =
        |pair: usize| members.iter().map(|&member| cases[member].log_ratios[pair]).sum::<f64>() / members.len() as f64;
    (start..end).map(mean).collect()
}

/// Judges every family on what was measured.
pub fn judge(policy: &Policy, cases: &[PairedCase]) -> Vec<FamilyFinding> {
    let families = families(policy, cases);
    let end = policy.screen_pairs + policy.confirm_pairs;
    // Those that were chosen, with their confirmation: of the members that have it, for one may have failed meanwhile.
    let chosen: Vec<Option<Vec<f64>>> = families
        .iter()
        .map(|(_, members)| {
            let confirmed: Vec<usize> =
                members.iter().copied().filter(|&member| cases[member].log_ratios.len() >= end).collect();
            let is_chosen = is_slower(policy, cases, members);
            is_chosen.then(|| match confirmed.len() {
                0 | 1 => Vec::new(),
                _ => means(cases, &confirmed, policy.screen_pairs, end),
            })
        })
        .collect();
    let tested: Vec<&Vec<f64>> = chosen.iter().flatten().collect();
    let p_values: Vec<f64> = tested.iter().map(|pairs| p_value(pairs, Alternative::Greater)).collect();
    let discovered = fdr::discoveries(&p_values, policy.family_false_discovery_rate);
    let mut tests = p_values.iter().zip(discovered);
    families
        .iter()
        .zip(&chosen)
        .map(|((family, members), chosen)| {
            let test = chosen.as_ref().and_then(|_| tests.next()).map(|(p, found)| (*p, found));
            let screen = means(cases, members, 0, policy.screen_pairs);
            let told = chosen.as_ref().filter(|pairs| !pairs.is_empty()).unwrap_or(&screen);
            FamilyFinding { family: family.clone(), cases: members.len(), finding: finding(policy, told, test) }
        })
        .collect()
}

fn finding(policy: &Policy, told: &[f64], test: Option<(f64, bool)>) -> Finding {
    let shift = hodges_lehmann::one_sample(told, 0.90).expect("there are pairs, and all are finite");
    let floor = floor(policy.family_floor, policy, told, None);
    let seen = format!("{} on average", change(shift.estimate));
    let (verdict, reason) = match test {
        Some((p, true)) if shift.estimate > floor => {
            (Verdict::Regressed, format!("{seen} over {} new pairs, p = {p:.1e}", told.len()))
        }
        Some((_, true)) => {
            (Verdict::Inconclusive, format!("{seen}, confirmed but below the floor of {}", percent(floor.exp_m1())))
        }
        Some((p, false)) => (Verdict::Inconclusive, format!("{seen}, screened but not confirmed: p = {p:.2}")),
        None if shift.interval.high < policy.margin.ln_1p() => {
            (Verdict::Unchanged, format!("{seen}, inside the margin"))
        }
        None => (Verdict::Inconclusive, format!("{seen}, not significant and not inside the margin")),
    };
    let ratio = Estimate {
        value: shift.estimate.exp(),
        low: shift.interval.low.exp(),
        high: shift.interval.high.exp(),
        confidence: shift.interval.confidence,
    };
    Finding { ratio: Some(ratio), p_value: test.map(|(p, _)| p), ..Finding::bare(verdict, reason) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{CaseKey, Mode};
    use crate::gate::plan::{Evidence, Step, next};
    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg64;

    fn case(kernel: &str, phase: &str, number: usize) -> PairedCase {
        let case_id = format!("cpu/{kernel}/softmax/{phase}/full/f32/b1/h8:8/q{number}/k{number}/d64");
        let key = CaseKey { case_id, mode: Mode::Cold, threads: 2 };
        PairedCase { key, log_ratios: vec![], calibrated_error: None, is_closed: false }
    }

    fn matrix() -> Vec<PairedCase> {
        let flash = (1..=20).map(|number| case("flash", if number > 12 { "backward" } else { "prefill" }, number));
        let paged = (1..=20).map(|number| case("paged", "decode", number));
        flash.chain(paged).chain([case("naive", "prefill", 1)]).collect()
    }

    /// Drives the machine on noise of 1 % with cases of a kernel slower by `slowdown`.
    fn drive(slowdown: f64, seed: u64) -> (Vec<PairedCase>, Vec<FamilyFinding>) {
        let policy = Policy { simulations: 0, ..Policy::default() };
        let mut rng = Pcg64::seed_from_u64(seed);
        let mut cases = matrix();
        while let Step::Measure { cases: which, pairs } =
            next(&policy, &Evidence::Pairs { cases: &cases, may_measure: true })
        {
            for index in which {
                let effect = if cases[index].key.case_id.contains("/flash/") { slowdown } else { 0.0 };
                for _ in 0..pairs {
                    let noise = (0..4).map(|_| rng.random::<f64>() - 0.5).sum::<f64>() * 3f64.sqrt() * 0.014;
                    cases[index].log_ratios.push(effect + noise);
                }
            }
        }
        let found = judge(&policy, &cases);
        (cases, found)
    }

    #[test]
    fn families_have_at_least_two_cases_and_one_name() {
        let cases: Vec<_> = matrix().into_iter().map(|case| PairedCase { log_ratios: vec![0.0; 8], ..case }).collect();
        let found = families(&Policy::default(), &cases);
        let sizes: Vec<(&str, usize)> = found.iter().map(|(name, members)| (name.as_str(), members.len())).collect();
        let expected = [("cpu/flash", 20), ("cpu/flash backward", 8), ("cpu/flash prefill", 12), ("cpu/paged", 20)];
        assert_eq!(sizes, expected);
    }

    #[test]
    fn many_small_losses_are_one_large_one() {
        let found = (0..20).filter(|&seed| drive(0.008, seed).1[0].finding.verdict == Verdict::Regressed).count();
        assert!(found >= 18, "{found} of 20");
        let below = (0..20).filter(|&seed| drive(0.002, seed).1[0].finding.verdict == Verdict::Regressed).count();
        assert_eq!(below, 0, "0.2 % is below the floor");
    }

    #[test]
    fn nothing_fails_without_a_change_and_costs_little() {
        let (mut failed, mut pairs) = (0, 0);
        for seed in 0..300 {
            let (cases, found) = drive(0.0, seed);
            failed += usize::from(found.iter().any(|family| family.finding.verdict == Verdict::Regressed));
            pairs += cases.iter().map(|case| case.log_ratios.len()).sum::<usize>();
        }
        assert!(failed <= 4, "{failed} of 300 gates fail");
        let mean = pairs as f64 / 300.0 / matrix().len() as f64;
        assert!(mean < 14.0, "{mean} pairs a case");
    }

    #[test]
    fn a_case_that_fails_meanwhile_leaves_its_family() {
        let (mut cases, _) = drive(0.02, 1);
        cases[0].log_ratios.truncate(10);
        cases[0].is_closed = true;
        let found = judge(&Policy::default(), &cases);
        assert_eq!((found[0].family.as_str(), found[0].finding.verdict), ("cpu/flash", Verdict::Regressed));
    }
}
