//! What a GPU's management library adds to a case: clocks, power, energy, throttling, memory, activity.
//!
//! Clocks, temperature and throttling are of all batches. Energy and activity are of the hot loop alone, in which calls
//! follow each other without a pause: between the samples of a cold case, the GPU mostly empties caches.

use super::{Better, Estimate, Metric};
use crate::device::telemetry::throttle::POWER_CAP;
use crate::record::telemetry::{CaseTelemetry, HotLoop, Interval, Reading};
use crate::record::{CaseResult, Record};
use crate::stats::quantile::median;
use crate::stats::sorted;

/// Shortest loop that energy is derived from, in nanoseconds: the counter moves some ten times a second.
const MIN_LOOP_NS: u64 = 2_000_000_000;
/// Share of a loop that has to be calls: the rest draws power too.
const MIN_BUSY_SHARE: f64 = 0.9;

/// A metric of the telemetry: its words, and its value in one round.
pub struct Telemetry {
    name: &'static str,
    unit: &'static str,
    better: Better,
    /// Its value in a round.
    of_round: fn(&CaseTelemetry) -> Option<f64>,
}

impl Metric for Telemetry {
    fn name(&self) -> &'static str {
        self.name
    }

    fn unit(&self) -> &'static str {
        self.unit
    }

    fn better(&self) -> Better {
        self.better
    }

    /// The median of the rounds, from the smallest to the largest.
    fn value(&self, case: &CaseResult, _: &Record) -> Option<Estimate> {
        let rounds = case.rounds.iter().filter_map(|round| round.telemetry.as_ref());
        let values = sorted(&rounds.filter_map(self.of_round).collect::<Vec<_>>())?;
        Some(Estimate { value: median(&values)?, low: values[0], high: values[values.len() - 1], confidence: 1.0 })
    }
}

/// Median clock of the multiprocessors.
pub const SM_CLOCK: Telemetry = Telemetry {
    name: "sm_clock_mhz",
    unit: "MHz",
    better: Better::None,
    of_round: |round| median_of(round, |reading| reading.sm_clock_mhz.map(f64::from)),
};

/// Median clock of the memory.
pub const MEMORY_CLOCK: Telemetry = Telemetry {
    name: "memory_clock_mhz",
    unit: "MHz",
    better: Better::None,
    of_round: |round| median_of(round, |reading| reading.memory_clock_mhz.map(f64::from)),
};

/// Highest temperature of the GPU.
pub const TEMPERATURE: Telemetry = Telemetry {
    name: "temperature_max_c",
    unit: "°C",
    better: Better::None,
    of_round: |round| round.readings().filter_map(|reading| reading.temperature_c).max().map(f64::from),
};

/// Share of the readings under the software power cap: the normal state of a fast kernel, and why its clocks are low.
pub const POWER_CAPPED: Telemetry = Telemetry {
    name: "power_capped_percent",
    unit: "%",
    better: Better::None,
    of_round: |round| {
        let masks: Vec<u64> = round.readings().filter_map(|reading| reading.throttle_reasons).collect();
        share(masks.iter().filter(|&&mask| mask & POWER_CAP != 0).count(), masks.len())
    },
};

/// Share of the batches that did not count, because heat, hardware or the power brake held clocks down.
pub const THROTTLED: Telemetry = Telemetry {
    name: "throttled_percent",
    unit: "%",
    better: Better::None,
    of_round: |round| {
        let thrown = round.intervals.iter().filter(|interval| !interval.throttled_by.is_empty()).count();
        share(thrown, round.intervals.len())
    },
};

/// Device memory of the worker's process, as the driver counts it: its context and code included.
pub const PROCESS_MEMORY: Telemetry = Telemetry {
    name: "process_memory_peak_bytes",
    unit: "bytes",
    better: Better::None,
    of_round: |round| {
        round.readings().filter_map(|reading| reading.process_memory_bytes).max().map(|bytes| bytes as f64)
    },
};

/// Energy of a call.
pub const ENERGY: Telemetry = Telemetry {
    name: "energy_per_call_j",
    unit: "J",
    better: Better::Lower,
    of_round: |round| {
        let hot = busy_loop(round)?;
        let [first, last] = ends(&hot.interval, |reading| reading.energy_millijoules)?;
        (last > first).then(|| (last - first) as f64 / 1000.0 / hot.calls as f64)
    },
};

/// Power while calls follow each other, from the energy counter.
pub const POWER: Telemetry = Telemetry {
    name: "power_w",
    unit: "W",
    better: Better::None,
    of_round: |round| {
        let hot = busy_loop(round)?;
        let [first, last] = ends(&hot.interval, |reading| reading.energy_millijoules)?;
        (last > first).then(|| (last - first) as f64 * 1e6 / hot.interval.wall_ns as f64)
    },
};

/// Bytes that the GPU's memory moved, by its own counters, beside `bandwidth_gb_per_s`, which is the algorithm's.
pub const MEMORY_BANDWIDTH: Telemetry = Telemetry {
    name: "measured_bandwidth_gb_per_s",
    unit: "GB/s",
    better: Better::None,
    of_round: |round| {
        let percent = busy_loop(round)?.interval.readings.last()?.memory_activity_percent?;
        Some(percent / 100.0 * round.memory_peak_bytes_per_s? / 1e9)
    },
};

/// Share of the time in which tensor cores worked.
pub const TENSOR_ACTIVITY: Telemetry = Telemetry {
    name: "tensor_activity_percent",
    unit: "%",
    better: Better::None,
    of_round: |round| busy_loop(round)?.interval.readings.last()?.tensor_activity_percent,
};

fn median_of(round: &CaseTelemetry, field: fn(&Reading) -> Option<f64>) -> Option<f64> {
    median(&round.readings().filter_map(field).collect::<Vec<_>>())
}

fn share(part: usize, whole: usize) -> Option<f64> {
    (whole > 0).then(|| 100.0 * part as f64 / whole as f64)
}

/// The hot loop, where it was long and busy enough to say something of the calls, and never throttled.
fn busy_loop(round: &CaseTelemetry) -> Option<&HotLoop> {
    round.hot_loop.as_ref().filter(|hot| {
        let wall_ns = hot.interval.wall_ns;
        let is_busy = hot.device_ns >= MIN_BUSY_SHARE * wall_ns as f64;
        hot.calls > 0 && wall_ns >= MIN_LOOP_NS && is_busy && hot.interval.throttled_by.is_empty()
    })
}

/// A counter at both ends of an interval.
fn ends(interval: &Interval, field: fn(&Reading) -> Option<u64>) -> Option<[u64; 2]> {
    Some([field(interval.readings.first()?)?, field(interval.readings.last()?)?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::sample;

    fn value(metric: &Telemetry, telemetry: CaseTelemetry) -> Option<f64> {
        let mut case = sample::measured("flash", 256, 1000.0);
        case.rounds.truncate(1);
        case.rounds[0].telemetry = Some(telemetry);
        metric.value(&case, &sample::record()).map(|estimate| estimate.value)
    }

    /// 2.5 s of 1000 calls that take 2.4 s, draw 600 J and move half of what 4 TB/s can.
    fn looped() -> CaseTelemetry {
        let reading = |at_ns, energy, activity| Reading {
            at_ns,
            energy_millijoules: Some(energy),
            memory_activity_percent: activity,
            tensor_activity_percent: activity.map(|percent| percent / 2.0),
            ..Reading::default()
        };
        let readings = vec![reading(0, 5_000_000, None), reading(2_500_000_000, 5_600_000, Some(50.0))];
        let interval = Interval { wall_ns: 2_500_000_000, throttled_by: vec![], readings };
        CaseTelemetry {
            memory_peak_bytes_per_s: Some(4e12),
            hot_loop: Some(HotLoop { calls: 1000, device_ns: 2.4e9, interval }),
            ..CaseTelemetry::default()
        }
    }

    fn changed(change: impl Fn(&mut HotLoop)) -> CaseTelemetry {
        let mut telemetry = looped();
        change(telemetry.hot_loop.as_mut().unwrap());
        telemetry
    }

    #[test]
    fn energy_and_activity_come_from_a_busy_loop_of_two_seconds_and_from_nothing_else() {
        for (metric, expected) in
            [(&ENERGY, 0.6), (&POWER, 240.0), (&MEMORY_BANDWIDTH, 2000.0), (&TENSOR_ACTIVITY, 25.0)]
        {
            let close = |value: Option<f64>| value.is_some_and(|value| (value / expected - 1.0).abs() < 1e-12);
            assert!(close(value(metric, looped())), "{}: {:?}", metric.name, value(metric, looped()));
            for (why, telemetry) in [
                ("no loop", CaseTelemetry { hot_loop: None, ..looped() }),
                ("short", changed(|hot| (hot.interval.wall_ns, hot.device_ns) = (1_999_999_999, 1.9e9))),
                ("idle in between", changed(|hot| hot.device_ns = 2.2e9)),
                ("throttled", changed(|hot| hot.interval.throttled_by.push("heat".into()))),
                ("no readings", changed(|hot| hot.interval.readings.clear())),
                ("refused", changed(|hot| hot.interval.readings.iter_mut().for_each(|it| *it = Reading::default()))),
            ] {
                assert_eq!(value(metric, telemetry), None, "{}: {why}", metric.name);
            }
        }
        // A counter that stood still, or began anew, is none.
        let still = changed(|hot| hot.interval.readings[1].energy_millijoules = Some(5_000_000));
        assert_eq!(value(&ENERGY, still), None);
    }

    #[test]
    fn readings_of_all_batches_are_counted() {
        let reading = |clock, mask| Reading {
            sm_clock_mhz: Some(clock),
            memory_clock_mhz: Some(2619),
            temperature_c: Some(clock / 30),
            throttle_reasons: Some(mask),
            process_memory_bytes: Some(u64::from(clock) << 20),
            ..Reading::default()
        };
        let interval = |throttled: &[&str], readings| Interval {
            wall_ns: 1,
            throttled_by: throttled.iter().map(|name| (*name).to_owned()).collect(),
            readings,
        };
        let telemetry = CaseTelemetry {
            intervals: vec![
                interval(&[], vec![reading(1980, 0), reading(1755, POWER_CAP)]),
                interval(&["hardware_slowdown"], vec![reading(600, 8), Reading::default()]),
            ],
            ..CaseTelemetry::default()
        };
        assert_eq!(value(&SM_CLOCK, telemetry.clone()), Some(1755.0));
        assert_eq!(value(&MEMORY_CLOCK, telemetry.clone()), Some(2619.0));
        assert_eq!(value(&TEMPERATURE, telemetry.clone()), Some(66.0));
        assert!((value(&POWER_CAPPED, telemetry.clone()).unwrap() - 100.0 / 3.0).abs() < 1e-12);
        assert_eq!(value(&THROTTLED, telemetry.clone()), Some(50.0));
        assert_eq!(value(&PROCESS_MEMORY, telemetry), Some((1980u64 << 20) as f64));
        for metric in [&SM_CLOCK, &TEMPERATURE, &POWER_CAPPED, &THROTTLED, &PROCESS_MEMORY] {
            assert_eq!(value(metric, CaseTelemetry::default()), None, "{}: nothing said is no 0", metric.name);
        }
    }
}
