//! What is derived from a record, one file a metric.
//!
//! Records keep samples and exact work; everything that a table, a comparison or a chart shows of a case is one of the
//! [`METRICS`], computed here and nowhere else. A new metric is one file and one line in that table.

pub mod accuracy;
pub mod latency;
pub mod limits;
pub mod memory;
pub mod plan;
pub mod rate;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::record::{CaseResult, Record};
use crate::stats::Interval;

/// Confidence of the intervals of metrics, where the samples allow it.
pub const CONFIDENCE: f64 = 0.95;

/// Every metric, in the order of tables.
pub const METRICS: &[&dyn Metric] = &[
    &latency::LatencyMedian,
    &latency::LatencyP99,
    &rate::Flops,
    &rate::Bandwidth,
    &limits::PercentOfLimit,
    &memory::ExtraPeak,
    &memory::RssPeak,
    &accuracy::RelativeL2,
    &accuracy::MaxAbs,
    &plan::PlanTime,
];

/// The metric of that name.
pub fn find(name: &str) -> Option<&'static dyn Metric> {
    METRICS.iter().copied().find(|metric| metric.name() == name)
}

/// Something that can be said of a case, as a number.
pub trait Metric: Sync {
    /// Its name in records, tables and policies, with the unit last.
    fn name(&self) -> &'static str;

    /// The unit, as a table's head shows it.
    fn unit(&self) -> &'static str;

    /// Which direction is good.
    fn better(&self) -> Better;

    /// The value of a case of that record; `None` where the record does not support one.
    fn value(&self, case: &CaseResult, record: &Record) -> Option<Estimate>;
}

/// Which direction of a metric is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// Less is better.
    Lower,
    /// More is better.
    Higher,
    /// Evidence only.
    None,
}

/// A value and where the true one lies.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Estimate {
    /// The value.
    pub value: f64,
    /// Lower end of its interval.
    pub low: f64,
    /// Upper end of its interval.
    pub high: f64,
    /// Confidence of the interval: [`CONFIDENCE`], less where the sample is small, 1 for what was counted exactly.
    pub confidence: f64,
}

impl Estimate {
    /// A number that has no error.
    pub fn exact(value: f64) -> Estimate {
        Estimate { value, low: value, high: value, confidence: 1.0 }
    }

    /// A value with an interval.
    pub fn new(value: f64, interval: Interval) -> Estimate {
        Estimate { value, low: interval.low, high: interval.high, confidence: interval.confidence }
    }

    /// The estimate of `numerator` over this: a rate from a time.
    pub fn under(self, numerator: f64) -> Estimate {
        Estimate { value: numerator / self.value, low: numerator / self.high, high: numerator / self.low, ..self }
    }
}
