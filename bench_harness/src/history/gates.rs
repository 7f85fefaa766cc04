//! How gates fared: how many failed, how many of those were overridden, and how many passed when run again.

use serde::Serialize;

use crate::gate::exit::Exit;
use crate::store::history::GateEntry;

/// Rates over all gates of a history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GateSummary {
    /// Gates.
    pub gates: usize,
    /// Those that said that something regressed.
    pub regressions: usize,
    /// Of these, those that somebody overrode.
    pub overridden: usize,
    /// Of these, those where a later gate of the same head and base passed: observed false alarms.
    pub passed_on_rerun: usize,
    /// Gates of a head and base that had been gated before.
    pub reruns: usize,
}

/// The rates of gates in the order of time.
pub fn summary(gates: &[GateEntry]) -> GateSummary {
    let is_regression = |gate: &GateEntry| gate.exit_code == Exit::Regression as u8;
    let is_same = |a: &GateEntry, b: &GateEntry| a.head.is_some() && a.head == b.head && a.base == b.base;
    let passes_later = |at: usize| {
        gates[at + 1..].iter().any(|later| is_same(later, &gates[at]) && later.exit_code == Exit::Pass as u8)
    };
    let failed: Vec<usize> = (0..gates.len()).filter(|&at| is_regression(&gates[at])).collect();
    GateSummary {
        gates: gates.len(),
        regressions: failed.len(),
        overridden: failed.iter().filter(|&&at| gates[at].overridden.is_some()).count(),
        passed_on_rerun: failed.iter().filter(|&&at| passes_later(at)).count(),
        reruns: (0..gates.len()).filter(|&at| gates[..at].iter().any(|earlier| is_same(earlier, &gates[at]))).count(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reruns_and_overrides_are_counted() {
        let gate = |id: &str, head: Option<&str>, exit_code: u8, overridden: Option<&str>| GateEntry {
            id: id.into(),
            time: id.into(),
            head: head.map(str::to_owned),
            base: Some("base".into()),
            exit_code,
            headline: String::new(),
            overridden: overridden.map(str::to_owned),
        };
        let gates = [
            gate("1", Some("a"), 1, None),
            gate("2", Some("a"), 0, None),
            gate("3", Some("b"), 1, Some("known")),
            gate("4", Some("b"), 1, None),
            gate("5", None, 0, None),
            gate("6", None, 1, None),
        ];
        let expected = GateSummary { gates: 6, regressions: 4, overridden: 1, passed_on_rerun: 1, reruns: 2 };
        assert_eq!(summary(&gates), expected);
        assert_eq!(summary(&[]).gates, 0);
    }
}
