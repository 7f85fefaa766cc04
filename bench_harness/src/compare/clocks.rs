//! What a GPU's clocks have to do with a difference: heat and hardware that held them down, and the power cap.
//!
//! Batches of a GPU that heat, its hardware or the power brake slowed down take no part in a latency. That one side met this
//! more often is a finding of its own: it ran hotter, or beside something that did. The power cap is a fast kernel's normal
//! state and counts; where it made a case slower, time rises and cycles do not.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::baseline::SessionCase;
use super::verdict::{Finding, Verdict, change, percent};
use crate::gate::policy::Policy;
use crate::record::{CaseResult, Disposition};
use crate::stats::quantile::median;

/// Where cycles explain less than this share of the change of the time, clocks explain it.
const CYCLES_SHARE: f64 = 0.25;

/// Clocks of a case during one session.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SessionClocks {
    /// Batches of calls during which the GPU was watched.
    pub batches: u32,
    /// Those that did not count, because heat, the hardware or the power brake held clocks down.
    pub throttled_batches: u32,
    /// Median device cycles of each measured round, in the order of rounds, where the device tells.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub round_cycles: Vec<f64>,
}

impl SessionClocks {
    /// Of a result; none of a case that no GPU computed.
    pub fn of(case: &CaseResult) -> Option<SessionClocks> {
        let intervals = || case.rounds.iter().filter_map(|round| round.telemetry.as_ref()).flat_map(|t| &t.intervals);
        let measured = case.rounds.iter().filter(|round| round.disposition == Disposition::Measured);
        let clocks = SessionClocks {
            batches: intervals().count() as u32,
            throttled_batches: intervals().filter(|interval| !interval.throttled_by.is_empty()).count() as u32,
            round_cycles: measured.filter_map(|round| median(&round.cycles)).map(f64::round).collect(),
        };
        (clocks != SessionClocks::default()).then_some(clocks)
    }
}

/// Percent of the batches that were throttled on base and on head; inconclusive where they differ by more than the policy's
/// share. `None` where neither side was throttled, or one was not watched.
pub fn throttling(base: &[&SessionCase], head: &[&SessionCase], policy: &Policy) -> Option<(f64, f64, Finding)> {
    let share = |cases: &[&SessionCase]| {
        let clocks = || cases.iter().filter_map(|case| case.clocks.as_ref());
        let batches: u32 = clocks().map(|clocks| clocks.batches).sum();
        let throttled: u32 = clocks().map(|clocks| clocks.throttled_batches).sum();
        (batches > 0).then(|| f64::from(throttled) / f64::from(batches))
    };
    let (base, head) = (share(base)?, share(head)?);
    if base == 0.0 && head == 0.0 {
        return None;
    }
    let figures = format!("{} of the batches on base and {} on head", percent(base), percent(head));
    let finding = if (head - base).abs() > policy.throttle_difference {
        Finding::bare(Verdict::Inconclusive, format!("the GPU was throttled in {figures}, which did not count"))
    } else {
        Finding::bare(Verdict::Unchanged, format!("throttled in {figures}"))
    };
    Some((100.0 * base, 100.0 * head, finding))
}

/// Adds to the reason of a regression that clocks made it and not the kernel: the device took as many cycles as before.
pub fn blame_power(base: &[&SessionCase], head: &[&SessionCase], latency: &mut Finding) {
    let cycles = |cases: &[&SessionCase]| {
        let rounds = cases.iter().filter_map(|case| case.clocks.as_ref()).flat_map(|clocks| &clocks.round_cycles);
        median(&rounds.copied().collect::<Vec<_>>()).filter(|&cycles| cycles > 0.0)
    };
    let (Some(base), Some(head), Some(ratio)) = (cycles(base), cycles(head), &latency.ratio) else { return };
    let (time_rise, cycles_rise) = (ratio.value.ln(), (head / base).ln());
    if latency.verdict == Verdict::Regressed && cycles_rise < CYCLES_SHARE * time_rise {
        let what = format!("; power: in cycles it is {}, so lower clocks made it slower", change(cycles_rise));
        latency.reason.push_str(&what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::Estimate;
    use crate::record::{Record, sample, telemetry};

    fn session(throttled: usize, batches: usize, cycles: f64) -> SessionCase {
        let mut case = sample::measured("flash", 256, 1000.0);
        let interval = |index| telemetry::Interval {
            throttled_by: if index < throttled { vec!["heat".to_owned()] } else { vec![] },
            ..Default::default()
        };
        case.rounds[0].telemetry = (batches > 0).then(|| telemetry::CaseTelemetry {
            intervals: (0..batches).map(interval).collect(),
            ..Default::default()
        });
        case.rounds.iter_mut().filter(|_| cycles > 0.0).for_each(|round| round.cycles = vec![cycles; 3]);
        let record: Record = sample::record();
        SessionCase::from_result(&case, &record)
    }

    #[test]
    fn a_side_that_was_throttled_more_often_decides_nothing() {
        let policy = Policy::default();
        let judged = |base: (usize, usize), head: (usize, usize)| {
            let [base, head] = [base, head].map(|(throttled, batches)| session(throttled, batches, 0.0));
            throttling(&[&base], &[&head], &policy).map(|(.., finding)| (finding.verdict, finding.reason))
        };
        assert_eq!(judged((0, 20), (0, 20)), None);
        assert_eq!(judged((0, 0), (9, 20)), None, "base was not watched");
        assert_eq!(judged((1, 20), (2, 20)).expect("both were").0, Verdict::Unchanged);
        for (base, head) in [((0, 20), (5, 20)), ((5, 20), (0, 20))] {
            let (verdict, reason) = judged(base, head).expect("one was");
            assert_eq!(verdict, Verdict::Inconclusive);
            assert!(reason.contains("25 %") && reason.contains("0 %"), "{reason}");
        }
    }

    #[test]
    fn cycles_tell_power_from_work() {
        let reason = |verdict, ratio: f64, cycles: [f64; 2]| {
            let [base, head] = cycles.map(|cycles| session(0, 1, cycles));
            let mut finding = Finding { ratio: Some(Estimate::exact(ratio)), ..Finding::bare(verdict, "slower") };
            blame_power(&[&base], &[&head], &mut finding);
            finding.reason
        };
        let blamed = reason(Verdict::Regressed, 1.08, [10_000.0, 10_050.0]);
        assert_eq!(blamed, "slower; power: in cycles it is 0.5 % slower, so lower clocks made it slower");
        assert_eq!(reason(Verdict::Regressed, 1.08, [10_000.0, 10_700.0]), "slower", "more cycles are more work");
        assert_eq!(reason(Verdict::Regressed, 1.08, [0.0, 10_000.0]), "slower", "base told no cycles");
        assert_eq!(reason(Verdict::Unchanged, 1.001, [10_000.0, 10_000.0]), "slower");
    }

    #[test]
    fn a_cpu_has_no_clocks_to_tell_of() {
        assert_eq!(session(0, 0, 0.0).clocks, None);
        let clocks = session(1, 3, 500.0).clocks.expect("a GPU's");
        assert_eq!((clocks.batches, clocks.throttled_batches, clocks.round_cycles.len()), (3, 1, 2));
    }
}
