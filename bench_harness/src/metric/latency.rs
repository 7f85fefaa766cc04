//! How long a call takes.

use super::{Better, CONFIDENCE, Estimate, Metric};
use crate::record::{CaseResult, CaseRound, Disposition, Record};
use crate::stats::quantile::{attainable_interval, median, median_interval, quantile};

/// The median over rounds of each round's median.
///
/// Its interval is over rounds, since processes differ more than the samples of one process do. A single round has
/// nothing but its samples, so then the interval is of their median and knows nothing of other processes.
pub struct LatencyMedian;

impl Metric for LatencyMedian {
    fn name(&self) -> &'static str {
        "latency_ns_median"
    }

    fn unit(&self) -> &'static str {
        "ns"
    }

    fn better(&self) -> Better {
        Better::Lower
    }

    fn value(&self, case: &CaseResult, _: &Record) -> Option<Estimate> {
        let rounds: Vec<&CaseRound> = timed_rounds(case).collect();
        if let [round] = rounds[..] {
            return Some(Estimate::new(median(&round.device_ns)?, median_interval(&round.device_ns, CONFIDENCE)?));
        }
        let medians: Vec<f64> = rounds.iter().filter_map(|round| median(&round.device_ns)).collect();
        Some(Estimate::new(median(&medians)?, median_interval(&medians, CONFIDENCE)?))
    }
}

/// The 99th percentile over the samples of all rounds, of which there must be at least 100.
pub struct LatencyP99;

impl Metric for LatencyP99 {
    fn name(&self) -> &'static str {
        "latency_ns_p99"
    }

    fn unit(&self) -> &'static str {
        "ns"
    }

    fn better(&self) -> Better {
        Better::Lower
    }

    fn value(&self, case: &CaseResult, _: &Record) -> Option<Estimate> {
        let samples: Vec<f64> = timed_rounds(case).flat_map(|round| &round.device_ns).copied().collect();
        Some(Estimate::new(quantile(&samples, 0.99)?, attainable_interval(&samples, 0.99, CONFIDENCE)?))
    }
}

/// The rounds whose times count. A wrong answer has no latency, so a case that failed in any round has none.
pub fn timed_rounds(case: &CaseResult) -> impl Iterator<Item = &CaseRound> {
    let is_measured = case.disposition == Disposition::Measured;
    case.rounds.iter().filter(move |round| {
        is_measured && round.disposition == Disposition::Measured && median(&round.device_ns).is_some_and(|ns| ns > 0.0)
    })
}
