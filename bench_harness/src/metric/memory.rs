//! What a call needs beside its inputs and outputs.

use super::{Better, Estimate, Metric};
use crate::record::{CaseResult, MemoryReport, Record};
use crate::stats::sorted;

/// The allocator's high-water mark above the tensors, the largest of all rounds: deterministic, so it gates.
pub struct ExtraPeak;

impl Metric for ExtraPeak {
    fn name(&self) -> &'static str {
        "extra_peak_bytes"
    }

    fn unit(&self) -> &'static str {
        "bytes"
    }

    fn better(&self) -> Better {
        Better::Lower
    }

    fn value(&self, case: &CaseResult, _: &Record) -> Option<Estimate> {
        let largest = reports(case).filter_map(|report| report.extra_peak_bytes).max()?;
        Some(Estimate::exact(largest as f64))
    }
}

/// The process's resident high-water mark over the rounds: the median, from the smallest to the largest. Evidence only.
pub struct RssPeak;

impl Metric for RssPeak {
    fn name(&self) -> &'static str {
        "rss_peak_bytes"
    }

    fn unit(&self) -> &'static str {
        "bytes"
    }

    fn better(&self) -> Better {
        Better::None
    }

    fn value(&self, case: &CaseResult, _: &Record) -> Option<Estimate> {
        let peaks: Vec<f64> =
            reports(case).filter_map(|report| report.rss_peak_bytes).map(|bytes| bytes as f64).collect();
        let peaks = sorted(&peaks)?;
        let (value, low, high) = (peaks[peaks.len() / 2], peaks[0], peaks[peaks.len() - 1]);
        Some(Estimate { value, low, high, confidence: 1.0 })
    }
}

fn reports(case: &CaseResult) -> impl Iterator<Item = &MemoryReport> {
    case.rounds.iter().filter_map(|round| round.memory.as_ref())
}
