//! What has to be done before the first call.

use super::{Better, CONFIDENCE, Estimate, Metric};
use crate::record::{CaseResult, Record};
use crate::stats::quantile::{median, median_interval};

/// Planning: workspaces, block lists, packing of static weights. The median over rounds.
pub struct PlanTime;

impl Metric for PlanTime {
    fn name(&self) -> &'static str {
        "plan_ns"
    }

    fn unit(&self) -> &'static str {
        "ns"
    }

    fn better(&self) -> Better {
        Better::Lower
    }

    fn value(&self, case: &CaseResult, _: &Record) -> Option<Estimate> {
        let rounds: Vec<f64> = case.rounds.iter().filter_map(|round| round.plan_ns).map(|ns| ns as f64).collect();
        Some(Estimate::new(median(&rounds)?, median_interval(&rounds, CONFIDENCE)?))
    }
}
