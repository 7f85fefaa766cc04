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
pub mod telemetry;

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
    &plan::PLAN,
    &plan::COMPILE,
    &plan::ENQUEUE,
    &telemetry::ENERGY,
    &telemetry::POWER,
    &telemetry::MEMORY_BANDWIDTH,
    &telemetry::TENSOR_ACTIVITY,
    &telemetry::SM_CLOCK,
    &telemetry::MEMORY_CLOCK,
    &telemetry::TEMPERATURE,
    &telemetry::POWER_CAPPED,
    &telemetry::THROTTLED,
    &telemetry::PROCESS_MEMORY,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Mode;
    use crate::metric::limits::{ceilings, implausible, limit_ns};
    use crate::record::{ControlKind, ControlResult, Disposition, sample};

    fn value(name: &str, case: &CaseResult, record: &Record) -> Option<Estimate> {
        find(name).unwrap_or_else(|| panic!("`{name}` is a metric")).value(case, record)
    }

    /// A case whose rounds have these samples, in nanoseconds.
    fn with_rounds(rounds: &[&[f64]]) -> CaseResult {
        let mut case = sample::measured("flash", 256, 1000.0);
        let round = case.rounds[0].clone();
        case.rounds = rounds
            .iter()
            .map(|samples| {
                let mut round = round.clone();
                round.device_ns = samples.to_vec();
                round
            })
            .collect();
        case
    }

    fn control(kind: ControlKind, mode: Mode, working_set_bytes: u64, work: u64, rounds: &[f64]) -> ControlResult {
        ControlResult {
            name: "control".into(),
            kind,
            provider: "cpu".into(),
            dtype: None,
            mode,
            threads: 2,
            working_set_bytes,
            work,
            rounds: rounds.iter().map(|&ns| vec![ns; 3]).collect(),
        }
    }

    #[test]
    fn names_are_unique_and_found() {
        for metric in METRICS {
            assert_eq!(find(metric.name()).map(|found| found.name()), Some(metric.name()));
            assert_eq!(METRICS.iter().filter(|other| other.name() == metric.name()).count(), 1);
        }
        assert!(find("latency").is_none());
    }

    #[test]
    fn latency_is_the_median_of_medians() {
        let record = sample::record();
        let case = with_rounds(&[&[1.0, 2.0, 90.0], &[4.0, 5.0, 6.0], &[3.0, 3.0, 3.0]]);
        let latency = value("latency_ns_median", &case, &record).unwrap();
        assert_eq!((latency.value, latency.low, latency.high), (3.0, 2.0, 5.0));
        assert!((latency.confidence - 0.75).abs() < 1e-12);
        // One round has the interval of its samples.
        let ten: Vec<f64> = (1..=10).map(f64::from).collect();
        let latency = value("latency_ns_median", &with_rounds(&[&ten]), &record).unwrap();
        assert_eq!((latency.value, latency.low, latency.high), (5.5, 2.0, 9.0));
        assert_eq!(value("latency_ns_median", &with_rounds(&[]), &record), None);
    }

    #[test]
    fn percentiles_need_samples_and_wrong_answers_have_no_latency() {
        let record = sample::record();
        let fifty = [7.0; 50];
        assert_eq!(value("latency_ns_p99", &with_rounds(&[&fifty, &fifty[1..]]), &record), None);
        assert_eq!(value("latency_ns_p99", &with_rounds(&[&fifty, &fifty]), &record).unwrap().value, 7.0);
        let mut case = with_rounds(&[&fifty, &fifty]);
        case.disposition = Disposition::Incorrect;
        for name in ["latency_ns_median", "latency_ns_p99", "flops_per_s", "bandwidth_gb_per_s", "percent_of_limit"] {
            assert_eq!(value(name, &case, &record), None, "{name}");
        }
    }

    /// G is 1e9, never 2^30.
    #[test]
    fn units() {
        let record = sample::record();
        let case = with_rounds(&[&[1e6], &[2e6], &[4e6]]);
        let (flops, bytes) = (case.work.flops as f64, case.work.bytes() as f64);
        let rate = value("flops_per_s", &case, &record).unwrap();
        assert!((rate.value / (flops / 0.002) - 1.0).abs() < 1e-12);
        assert!((rate.low / (flops / 0.004) - 1.0).abs() < 1e-12 && (rate.high / (flops / 0.001) - 1.0).abs() < 1e-12);
        let rate = value("bandwidth_gb_per_s", &case, &record).unwrap();
        assert!((rate.value / (bytes / 0.002 / 1e9) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn the_roofline_uses_the_ceilings_of_the_mode() {
        let mut record = sample::record();
        let mut case = with_rounds(&[&[1000.0]]);
        let bytes = case.work.bytes();
        record.controls = vec![
            control(ControlKind::Read, Mode::Cold, 1 << 40, 1000, &[100.0, 50.0]),
            control(ControlKind::Write, Mode::Cold, 1 << 40, 1_000_000, &[1.0]),
            control(ControlKind::Copy, Mode::Hot, bytes / 2, 8000, &[100.0]),
            control(ControlKind::Copy, Mode::Hot, 2 * bytes, 4000, &[100.0]),
            control(ControlKind::Copy, Mode::Hot, 8 * bytes, 2000, &[100.0]),
        ];
        assert_eq!(limit_ns(&case, &record), None, "no FMA ceiling, no limit");
        record.controls.push(control(ControlKind::Fma, Mode::Hot, 0, 10_000, &[1.0]));
        // The best round of the cold read: 20 bytes a nanosecond.
        assert_eq!(ceilings(&case, &record).bytes_per_s, Some(20e9));
        // Hot: the smallest working set does not hold the case.
        case.key.mode = Mode::Hot;
        assert_eq!(ceilings(&case, &record).bytes_per_s, Some(40e9));
        // A case beyond every working set is judged by the largest.
        case.work.read_bytes *= 100;
        assert_eq!(ceilings(&case, &record).bytes_per_s, Some(20e9));
        // Other threads, other ceilings.
        case.key.threads = 1;
        assert_eq!(ceilings(&case, &record), limits::Ceilings::default());
    }

    #[test]
    fn beyond_a_ceiling_is_implausible() {
        let mut record = sample::record();
        let case = with_rounds(&[&[1000.0]]);
        let (flops, bytes) = (case.work.flops, case.work.bytes());
        let mut judged = |flops_share: f64, bytes_share: f64| {
            // Ceilings at which the case, at 1000 ns, runs at these shares.
            record.controls = vec![
                control(ControlKind::Fma, Mode::Hot, 0, flops, &[1000.0 * flops_share]),
                control(ControlKind::Read, Mode::Cold, 1 << 40, bytes, &[1000.0 * bytes_share]),
            ];
            (value("percent_of_limit", &case, &record).unwrap().value.round(), implausible(&case, &record))
        };
        assert_eq!(judged(0.5, 0.9), (90.0, None));
        assert_eq!(judged(1.01, 0.1), (101.0, None));
        let (percent, flag) = judged(2.5, 0.1);
        assert_eq!((percent, flag.unwrap().starts_with("implausible: 250 % of the FMA rate")), (250.0, true));
        let flag = judged(0.1, 1.03).1.unwrap();
        assert!(flag.starts_with("implausible: 103 % of the cold bandwidth"), "{flag}");
    }

    #[test]
    fn the_worst_error_counts() {
        let record = sample::record();
        let mut case = sample::measured("flash", 256, 1000.0);
        case.rounds[1].verification[0].error.relative_l2 = Some(0.5);
        assert_eq!(value("relative_l2", &case, &record), Some(Estimate::exact(0.5)));
        case.rounds[1].verification[0].error.max_abs = None;
        assert_eq!(value("max_abs", &case, &record).unwrap().value, f64::INFINITY);
        assert_eq!(value("extra_peak_bytes", &case, &record), Some(Estimate::exact((3 << 20) as f64)));
        assert_eq!(value("plan_ns", &case, &record).unwrap().value, 12_345.0);
        // Nothing was compiled, and a CPU enqueues nothing.
        assert_eq!(value("compile_ns", &case, &record), None);
        assert_eq!(value("host_ns", &case, &record), None);
        (case.rounds[0].compile_ns, case.rounds[1].host_ns) = (Some(7), vec![5.0, 1.0, 3.0]);
        assert_eq!(value("compile_ns", &case, &record).unwrap().value, 7.0);
        assert_eq!(value("host_ns", &case, &record).unwrap().value, 3.0);
    }
}
