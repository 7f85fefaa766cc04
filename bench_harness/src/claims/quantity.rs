//! What a claim is about: a quantity of a case, seen once a round or counted exactly.

use std::collections::BTreeMap;

use attn_kernels::problem::{AttentionProblem, Lengths, Mechanism, Pattern};
use attn_kernels::work::KvCache;

use super::Evidence;
use crate::case::Case;
use crate::metric::latency::timed_rounds;
use crate::metric::{Metric, accuracy, memory, telemetry};
use crate::record::{CaseResult, Record};
use crate::suite::PlannedCase;

/// A quantity of a case.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Quantity {
    /// Nanoseconds of a call: the fastest of each round, since a claim is about what an algorithm costs, and others on the
    /// machine only add to that.
    Latency,
    /// Bytes of tensors and of everything else that a call allocates.
    PeakBytes,
    /// Bytes that a call allocates beside its tensors.
    ExtraBytes,
    /// Bytes of the state or cache that one layer keeps of a sequence.
    CacheBytes,
    /// Error relative to the f64 oracle.
    RelativeL2,
    /// Instructions of one call under valgrind.
    Instructions,
    /// Bytes that a call moved between a GPU and its memory: measured bandwidth times time.
    TrafficBytes,
    /// FLOPs a second as a share of this many.
    ShareOfPeak {
        /// The datasheet's dense rate, in FLOPs a second.
        peak_flop_per_s: f64,
    },
}

/// Values of a quantity.
#[derive(Clone, Debug, PartialEq)]
pub enum Seen {
    /// The same in every round.
    Exact(f64),
    /// By round.
    ByRound(BTreeMap<u32, f64>),
}

impl Seen {
    /// The value of a round.
    pub fn of_round(&self, round: u32) -> Option<f64> {
        match self {
            Seen::Exact(value) => Some(*value),
            Seen::ByRound(values) => values.get(&round).copied(),
        }
    }
}

impl Quantity {
    /// Names in claim files.
    pub const NAMES: [&str; 8] = [
        "latency",
        "peak_bytes",
        "extra_bytes",
        "cache_bytes",
        "relative_l2",
        "instructions",
        "traffic_bytes",
        "share_of_peak",
    ];

    /// The quantity of that name; a share needs its peak.
    pub fn find(name: &str, peak_flop_per_s: Option<f64>) -> Option<Quantity> {
        Some(match name {
            "latency" => Quantity::Latency,
            "peak_bytes" => Quantity::PeakBytes,
            "extra_bytes" => Quantity::ExtraBytes,
            "cache_bytes" => Quantity::CacheBytes,
            "relative_l2" => Quantity::RelativeL2,
            "instructions" => Quantity::Instructions,
            "traffic_bytes" => Quantity::TrafficBytes,
            "share_of_peak" => Quantity::ShareOfPeak { peak_flop_per_s: peak_flop_per_s? },
            _ => return None,
        })
    }

    /// Whether it is or follows from a time.
    pub const fn is_timed(self) -> bool {
        matches!(self, Quantity::Latency | Quantity::TrafficBytes | Quantity::ShareOfPeak { .. })
    }

    /// The values of a planned case; the error says why there are none here.
    pub fn of(self, planned: &PlannedCase, evidence: &Evidence<'_>) -> Result<Seen, String> {
        let id = planned.case.id();
        match self {
            Quantity::CacheBytes => {
                let problem = &planned.case.problem;
                return Ok(Seen::Exact(KvCache::of(problem).bytes_at(keys(problem)) as f64));
            }
            Quantity::Instructions => {
                return match evidence.instructions.get(&id) {
                    Some(Ok(count)) => Ok(Seen::Exact(*count as f64)),
                    Some(Err(reason)) => Err(reason.clone()),
                    None => {
                        Err("no instructions were counted; `attnbench claims` counts them where valgrind is".into())
                    }
                };
            }
            _ => {}
        }
        let record = evidence.record.ok_or("nothing was measured")?;
        // On a GPU the same case comes from provider `cuda`.
        let is_it = |case: &&CaseResult| same_case(&case.key.case_id, &id) && case.key.mode == planned.settings.mode;
        let case = record.cases.iter().find(is_it).ok_or_else(|| format!("the record has no case `{id}`"))?;
        self.seen(case, record).ok_or_else(|| {
            let reason = case.reason.clone().unwrap_or_else(|| "the record does not hold this figure".to_owned());
            format!("`{}` is {}: {reason}", case.key.case_id, case.disposition.name())
        })
    }

    fn seen(self, case: &CaseResult, record: &Record) -> Option<Seen> {
        let exact = |metric: &dyn Metric| Some(metric.value(case, record)?.value);
        let tensors = || case.rounds.iter().filter_map(|round| round.memory).map(|memory| memory.tensor_bytes).max();
        match self {
            Quantity::Latency => by_round(case, |ns| ns),
            Quantity::ShareOfPeak { peak_flop_per_s } => {
                let flops = case.work.flops as f64;
                by_round(case, |ns| flops / (ns * 1e-9) / peak_flop_per_s)
            }
            Quantity::TrafficBytes => {
                // 1e9 bytes a second are a byte a nanosecond.
                let gb_per_s = exact(&telemetry::MEMORY_BANDWIDTH)?;
                by_round(case, |ns| ns * gb_per_s)
            }
            Quantity::ExtraBytes => exact(&memory::ExtraPeak).map(Seen::Exact),
            Quantity::PeakBytes => Some(Seen::Exact(exact(&memory::ExtraPeak)? + tensors()? as f64)),
            Quantity::RelativeL2 => exact(&accuracy::RelativeL2).map(Seen::Exact),
            Quantity::CacheBytes | Quantity::Instructions => None,
        }
    }
}

fn by_round(case: &CaseResult, value: impl Fn(f64) -> f64) -> Option<Seen> {
    let fastest = |samples: &[f64]| samples.iter().copied().min_by(f64::total_cmp);
    let values: BTreeMap<u32, f64> =
        timed_rounds(case).filter_map(|round| Some((round.round, value(fastest(&round.device_ns)?)))).collect();
    (!values.is_empty()).then_some(Seen::ByRound(values))
}

/// Whether two ids name the same kernel and problem, be it from provider `cpu` or `cuda`.
fn same_case(measured: &str, planned: &str) -> bool {
    measured == planned || measured.strip_prefix("cuda/").is_some_and(|rest| planned.strip_prefix("cpu/") == Some(rest))
}

/// What a quantity may grow with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Keys a sequence.
    Length,
    /// Keys of a window.
    Width,
    /// KV heads.
    HeadsKv,
}

impl Axis {
    /// Names in claim files.
    pub const ALL: [(&str, Axis); 3] = [("length", Axis::Length), ("width", Axis::Width), ("heads_kv", Axis::HeadsKv)];

    /// Where a case is on it.
    pub fn of(self, case: &Case) -> Option<f64> {
        let problem = &case.problem;
        match self {
            Axis::Length => Some(keys(problem) as f64),
            Axis::HeadsKv => Some(problem.heads_kv as f64),
            Axis::Width => match (problem.mechanism, problem.pattern) {
                (Mechanism::Softmax, Pattern::Window { left, right }) if left != usize::MAX => {
                    let right = if problem.causal { 0 } else { right };
                    Some((left + 1).saturating_add(right) as f64)
                }
                _ => None,
            },
        }
    }
}

/// Keys of the longest sequence.
fn keys(problem: &AttentionProblem) -> u64 {
    match &problem.seqlen_kv {
        Lengths::Same(length) => *length as u64,
        _ => problem.lengths_kv().into_iter().max().unwrap_or(0) as u64,
    }
}
