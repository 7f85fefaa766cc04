//! Work a second: exact work over the median latency, whatever the kernel did to get there.

use super::latency::LatencyMedian;
use super::{Better, Estimate, Metric};
use crate::record::{CaseResult, Record};

/// Floating-point operations a second.
pub struct Flops;

impl Metric for Flops {
    fn name(&self) -> &'static str {
        "flops_per_s"
    }

    fn unit(&self) -> &'static str {
        "FLOP/s"
    }

    fn better(&self) -> Better {
        Better::Higher
    }

    fn value(&self, case: &CaseResult, record: &Record) -> Option<Estimate> {
        Some(LatencyMedian.value(case, record)?.under(case.work.flops as f64 * 1e9))
    }
}

/// Gigabytes (1e9 bytes) a second.
pub struct Bandwidth;

impl Metric for Bandwidth {
    fn name(&self) -> &'static str {
        "bandwidth_gb_per_s"
    }

    fn unit(&self) -> &'static str {
        "GB/s"
    }

    fn better(&self) -> Better {
        Better::Higher
    }

    fn value(&self, case: &CaseResult, record: &Record) -> Option<Estimate> {
        // Bytes a nanosecond are gigabytes a second.
        Some(LatencyMedian.value(case, record)?.under(case.work.bytes() as f64))
    }
}
