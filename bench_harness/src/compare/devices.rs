//! The same cases on several devices: in time, against each device's own limits, per joule and per dollar.
//!
//! Nothing is judged here: devices are different, and that is no finding. Only cases that every device measured take part in
//! means; the others are listed with what became of them.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::case::{CaseKey, Mode};
use crate::device::cpu::info::slug;
use crate::metric::latency::LatencyMedian;
use crate::metric::limits::{IMPLAUSIBLE, PercentOfLimit};
use crate::metric::telemetry::ENERGY;
use crate::metric::{Estimate, Metric};
use crate::record::{CaseResult, Disposition, Record};
use crate::stats::geometric_mean::geometric_mean;

/// Seconds of an hour, by which devices are rented.
const HOUR_S: f64 = 3600.0;

/// Calls that prices are said for.
const PRICED_CALLS: f64 = 1e6;

/// Several devices and what they did with the same cases.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeviceComparison {
    /// The devices, in the order in which they were named; the first is what the others are compared with.
    pub devices: Vec<Device>,
    /// Cases that every device measured.
    pub cases: Vec<DeviceCase>,
    /// Means over the cases of a kernel and phase, and over all.
    pub families: Vec<DeviceFamily>,
    /// Cases that some device did not measure.
    pub missing: Vec<MissingCase>,
}

/// One device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Device {
    /// A short name that no other device has: what `--price` calls it.
    pub slug: String,
    /// Its model.
    pub model: String,
    /// The run.
    pub run: String,
    /// US dollars an hour, where they were told.
    pub price_usd_per_hour: Option<f64>,
}

/// One case on every device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeviceCase {
    /// The case; `all` threads are as many as each device has.
    #[serde(flatten)]
    pub shape: Shape,
    /// One a device, in their order.
    pub values: Vec<DeviceValue>,
}

/// What is the same on every device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Shape {
    /// The case id.
    pub case_id: String,
    /// Cold or hot.
    pub mode: Mode,
    /// CPU threads; `None` where a device used all that it has.
    pub threads: Option<usize>,
}

/// What a device did with a case.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeviceValue {
    /// Nanoseconds of a call.
    pub latency_ns_median: Estimate,
    /// Share of what the device's own ceilings allow, in percent.
    pub percent_of_limit: Option<Estimate>,
    /// Joules of a call, where the device's management library told.
    pub energy_per_call_j: Option<Estimate>,
    /// FLOPs for each joule, which is FLOP/s for each watt.
    pub flop_per_j: Option<Estimate>,
    /// US dollars for a million calls, where the price of an hour is known.
    pub usd_per_million_calls: Option<Estimate>,
}

/// Cases that are averaged.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeviceFamily {
    /// `provider/kernel phase`, or `all`.
    pub family: String,
    /// How many.
    pub cases: usize,
    /// One a device, in their order: geometric means relative to the first device, 2 being twice as good.
    pub relative: Vec<Relative>,
}

/// How good a device is beside the first, above 1 being better. `None` where a case has no value on either.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Relative {
    /// By time.
    pub speed: Option<f64>,
    /// By the share of its own limit.
    pub of_limit: Option<f64>,
    /// By work for each joule.
    pub per_watt: Option<f64>,
    /// By work for each dollar.
    pub per_dollar: Option<f64>,
}

/// A case that takes no part.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MissingCase {
    /// The case.
    #[serde(flatten)]
    pub shape: Shape,
    /// One a device, in their order: what became of it, with why, or `not in its suite`.
    pub became: Vec<String>,
}

/// Why devices cannot be compared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("comparing devices: {0}")]
pub struct DeviceError(String);

/// Compares one record of each of several devices. `prices` are US dollars an hour by slug.
///
/// # Errors
/// Fewer than two records, two of one device, or a price of a device that no record is of.
pub fn compare_devices(records: &[Record], prices: &BTreeMap<String, f64>) -> Result<DeviceComparison, DeviceError> {
    if records.len() < 2 {
        return Err(DeviceError(format!("{} record; name one a device, two at least", records.len())));
    }
    let devices = devices(records, prices)?;
    let by_shape: Vec<BTreeMap<Shape, &CaseResult>> = records.iter().map(cases_by_shape).collect();
    let mut seen = BTreeSet::new();
    let shapes = records.iter().flat_map(|record| record.cases.iter().map(|case| shape(record, &case.key)));
    let (mut cases, mut missing) = (Vec::new(), Vec::new());
    for shape in shapes.filter(|shape| seen.insert(shape.clone())) {
        let sides: Vec<Option<&CaseResult>> = by_shape.iter().map(|cases| cases.get(&shape).copied()).collect();
        let values: Option<Vec<DeviceValue>> = sides
            .iter()
            .zip(records)
            .zip(&devices)
            .map(|((case, record), device)| value((*case)?, record, device.price_usd_per_hour))
            .collect();
        match values {
            Some(values) => cases.push(DeviceCase { shape, values }),
            None => missing.push(MissingCase { shape, became: sides.iter().map(|case| became(*case)).collect() }),
        }
    }
    let families = families(&cases, devices.len());
    Ok(DeviceComparison { devices, cases, families, missing })
}

fn devices(records: &[Record], prices: &BTreeMap<String, f64>) -> Result<Vec<Device>, DeviceError> {
    let mut devices: Vec<Device> = Vec::new();
    for (at, record) in records.iter().enumerate() {
        if let Some(same) = records[..at].iter().find(|other| other.fingerprint == record.fingerprint) {
            return Err(DeviceError(format!(
                "runs {} and {} are of one device; `attnbench compare` without --by judges those",
                same.run.id, record.run.id
            )));
        }
        let model = record.device_model().unwrap_or("unknown").to_owned();
        let name = slug(&model);
        // Two machines of one model may differ in their power cap, say.
        let known = devices.iter().filter(|device| slug(&device.model) == name).count();
        let slug = if known == 0 { name } else { format!("{name}-{}", known + 1) };
        let price_usd_per_hour = prices.get(&slug).copied();
        devices.push(Device { slug, model, run: record.run.id.clone(), price_usd_per_hour });
    }
    if let Some(unknown) = prices.keys().find(|name| devices.iter().all(|device| device.slug != **name)) {
        let known: Vec<&str> = devices.iter().map(|device| device.slug.as_str()).collect();
        return Err(DeviceError(format!("the price is of `{unknown}`; the devices are {}", known.join(", "))));
    }
    Ok(devices)
}

/// Threads that are all of a machine are the same everywhere, however many they are.
fn shape(record: &Record, key: &CaseKey) -> Shape {
    let usable = record.fingerprint.get("cpu_usable_cores").and_then(|cores| cores.parse().ok());
    let threads = (Some(key.threads) != usable).then_some(key.threads);
    Shape { case_id: key.case_id.clone(), mode: key.mode, threads }
}

fn cases_by_shape(record: &Record) -> BTreeMap<Shape, &CaseResult> {
    record.cases.iter().map(|case| (shape(record, &case.key), case)).collect()
}

/// The values of a case that was measured and is believed.
fn value(case: &CaseResult, record: &Record, price_usd_per_hour: Option<f64>) -> Option<DeviceValue> {
    if is_doubtful(case) {
        return None;
    }
    let latency = LatencyMedian.value(case, record)?;
    let scale = |estimate: Estimate, factor: f64| Estimate {
        value: estimate.value * factor,
        low: estimate.low * factor,
        high: estimate.high * factor,
        ..estimate
    };
    let energy = ENERGY.value(case, record);
    Some(DeviceValue {
        latency_ns_median: latency,
        percent_of_limit: PercentOfLimit.value(case, record),
        energy_per_call_j: energy,
        flop_per_j: energy.map(|energy| energy.under(case.work.flops as f64)),
        usd_per_million_calls: price_usd_per_hour.map(|price| scale(latency, 1e-9 * price / HOUR_S * PRICED_CALLS)),
    })
}

fn is_doubtful(case: &CaseResult) -> bool {
    case.flags.iter().any(|flag| flag.starts_with(IMPLAUSIBLE))
}

fn became(case: Option<&CaseResult>) -> String {
    match case {
        None => "not in its suite".to_owned(),
        Some(case) if case.disposition == Disposition::Measured => {
            case.flags.iter().find(|flag| flag.starts_with(IMPLAUSIBLE)).cloned().unwrap_or("measured".to_owned())
        }
        Some(case) => {
            let reason = case.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
            format!("{}{reason}", case.disposition.name())
        }
    }
}

fn families(cases: &[DeviceCase], devices: usize) -> Vec<DeviceFamily> {
    let mut members: Vec<(String, Vec<&DeviceCase>)> = vec![("all".to_owned(), cases.iter().collect())];
    for case in cases {
        let parts: Vec<&str> = case.shape.case_id.splitn(5, '/').collect();
        let name = match parts[..] {
            [provider, kernel, _, phase, _] => format!("{provider}/{kernel} {phase}"),
            _ => case.shape.case_id.clone(),
        };
        match members.iter_mut().find(|(known, _)| *known == name) {
            Some((_, cases)) => cases.push(case),
            None => members.push((name, vec![case])),
        }
    }
    members.retain(|(_, cases)| !cases.is_empty());
    let family = |(family, cases): (String, Vec<&DeviceCase>)| DeviceFamily {
        family,
        cases: cases.len(),
        relative: (0..devices).map(|device| relative(&cases, device)).collect(),
    };
    members.into_iter().map(family).collect()
}

fn relative(cases: &[&DeviceCase], device: usize) -> Relative {
    type Value = fn(&DeviceValue) -> Option<f64>;
    let mean = |value: Value, better_is_more: bool| {
        let ratio = |case: &&DeviceCase| {
            let (first, this) = (value(&case.values[0])?, value(&case.values[device])?);
            Some(if better_is_more { this / first } else { first / this })
        };
        geometric_mean(&cases.iter().map(ratio).collect::<Option<Vec<f64>>>()?)
    };
    Relative {
        speed: mean(|value| Some(value.latency_ns_median.value), false),
        of_limit: mean(|value| Some(value.percent_of_limit?.value), true),
        per_watt: mean(|value| Some(value.energy_per_call_j?.value), false),
        per_dollar: mean(|value| Some(value.usd_per_million_calls?.value), false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::sample;

    fn record(model: &str, cores: usize, cases: Vec<CaseResult>) -> Record {
        let mut record = Record { cases, ..sample::record() };
        record.run.id = model.into();
        record.fingerprint.insert("cpu_model".into(), model.into());
        record.fingerprint.insert("cpu_usable_cores".into(), cores.to_string());
        record
    }

    fn with_threads(mut case: CaseResult, threads: usize) -> CaseResult {
        case.key.threads = threads;
        case
    }

    #[test]
    fn common_cases_are_compared_and_the_others_are_listed() {
        let a = record("Fast CPU", 2, vec![sample::measured("flash", 256, 1e6), sample::measured("flash", 1024, 1e7)]);
        let failed = sample::failed("flash", 1024, Disposition::OutOfMemory, "needs more");
        // All of the one's threads are all of the other's.
        let b =
            record("Slow CPU", 8, vec![with_threads(sample::measured("flash", 256, 4e6), 8), with_threads(failed, 8)]);
        let prices = BTreeMap::from([("fast".to_owned(), 2.0), ("slow".to_owned(), 0.25)]);
        let compared = compare_devices(&[a, b], &prices).unwrap();
        assert_eq!(compared.cases.len(), 1);
        assert_eq!(compared.cases[0].shape.threads, None);
        assert_eq!(compared.missing.len(), 1);
        assert_eq!(compared.missing[0].became, ["measured", "out_of_memory: needs more"]);
        let all = &compared.families[0];
        assert_eq!((all.family.as_str(), all.cases), ("all", 1));
        let [first, second] = all.relative[..] else { panic!("two devices") };
        assert!((first.speed.unwrap() - 1.0).abs() < 1e-12 && (second.speed.unwrap() - 0.25).abs() < 1e-3);
        // A quarter of the speed for an eighth of the price.
        assert!((second.per_dollar.unwrap() - 2.0).abs() < 1e-2, "{second:?}");
        assert_eq!(second.per_watt, None, "no energy is no 0");
        // 1 ms of 2 dollars an hour is 0.556 dollars for a million calls.
        let usd = compared.cases[0].values[0].usd_per_million_calls.unwrap().value;
        let ms = compared.cases[0].values[0].latency_ns_median.value * 1e-6;
        assert!((usd - ms * 2.0 / 3.6).abs() < 1e-9);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let of = |model: &str| record(model, 2, vec![sample::measured("flash", 256, 1e6)]);
        let error = |records: &[Record], prices: &[(&str, f64)]| {
            let prices = prices.iter().map(|(name, price)| ((*name).to_owned(), *price)).collect();
            compare_devices(records, &prices).unwrap_err().to_string()
        };
        assert!(error(&[of("A")], &[]).contains("1 record; name one a device"));
        assert!(error(&[of("A"), of("A")], &[]).contains("are of one device; `attnbench compare` without --by"));
        assert!(error(&[of("A"), of("B")], &[("c", 1.0)]).contains("the price is of `c`; the devices are a, b"));
        let mut capped = of("A");
        capped.fingerprint.insert("cpu_quota_cores".into(), "1".into());
        let slugs: Vec<String> = compare_devices(&[of("A"), capped], &BTreeMap::new())
            .unwrap()
            .devices
            .into_iter()
            .map(|device| device.slug)
            .collect();
        assert_eq!(slugs, ["a", "a-2"]);
    }

    #[test]
    fn means_need_a_value_of_every_case() {
        let mut b = record("B", 2, vec![sample::measured("flash", 256, 2e6), sample::measured("naive", 256, 8e6)]);
        b.controls.clear();
        let a = record("A", 2, vec![sample::measured("flash", 256, 1e6), sample::measured("naive", 256, 1e6)]);
        let compared = compare_devices(&[a, b], &BTreeMap::new()).unwrap();
        let names: Vec<&str> = compared.families.iter().map(|family| family.family.as_str()).collect();
        assert_eq!(names, ["all", "cpu/flash prefill", "cpu/naive prefill"]);
        assert!((compared.families[0].relative[1].speed.unwrap() - 0.25).abs() < 1e-3, "half and an eighth");
        assert_eq!(compared.families[0].relative[1].of_limit, None, "B has no ceilings");
    }
}
