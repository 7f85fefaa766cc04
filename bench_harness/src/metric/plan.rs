//! What a call costs beside itself: planning and compiling before the first one, and the host's work for each.

use super::{Better, CONFIDENCE, Estimate, Metric};
use crate::record::{CaseResult, CaseRound, Record};
use crate::stats::quantile::{median, median_interval};

/// Planning: workspaces, block lists, packing of static weights. The median over rounds.
pub const PLAN: HostTime = HostTime { name: "plan_ns", of: |round| round.plan_ns.map(|ns| ns as f64) };

/// Compiling, in the rounds in which something was compiled: a later round finds it on disk. The median over them.
pub const COMPILE: HostTime = HostTime { name: "compile_ns", of: |round| round.compile_ns.map(|ns| ns as f64) };

/// Enqueueing a call on a device that computes by itself, which limits how short calls can follow one another. The median
/// over the medians of rounds; hot calls share the launch of one graph.
pub const ENQUEUE: HostTime = HostTime { name: "host_ns", of: |round| median(&round.host_ns) };

/// A time on the host's clock that every round has one of.
pub struct HostTime {
    name: &'static str,
    of: fn(&CaseRound) -> Option<f64>,
}

impl Metric for HostTime {
    fn name(&self) -> &'static str {
        self.name
    }

    fn unit(&self) -> &'static str {
        "ns"
    }

    fn better(&self) -> Better {
        Better::Lower
    }

    fn value(&self, case: &CaseResult, _: &Record) -> Option<Estimate> {
        let rounds: Vec<f64> = case.rounds.iter().filter_map(self.of).collect();
        Some(Estimate::new(median(&rounds)?, median_interval(&rounds, CONFIDENCE)?))
    }
}
