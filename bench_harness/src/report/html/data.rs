//! What the pages show, as JSON: metrics computed, ids taken apart, and the samples left to their own files.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{CASES_A_FILE, Site};
use crate::case::Case;
use crate::compare::devices::DeviceComparison;
use crate::gate::outcome::GateReport;
use crate::history::changes::SeriesChanges;
use crate::history::point::SeriesKey;
use crate::history::search::FoundSeries;
use crate::metric::limits::{ceilings, limit_ns, rate_per_s};
use crate::metric::{Better, METRICS, latency};
use crate::record::{CaseResult, ControlKind, Disposition, GitState, Record, RunInfo};
use crate::report::axes::{AXES, axes};
use crate::report::repeat::{repeat_gate, repeat_run};
use crate::suite::MeasureSettings;
use attn_kernels::work::Work;

/// Everything but rounds and histories.
#[derive(Serialize)]
pub(super) struct SiteData<'a> {
    version: &'static str,
    axes: Vec<&'static str>,
    metrics: Vec<MetricData>,
    runs: Vec<RunData<'a>>,
    cases: Vec<CaseData<'a>>,
    gate: Option<&'a GateReport>,
    /// How each case of the judgement is repeated, in its order.
    gate_repeat: Vec<Vec<String>>,
    devices: Option<&'a DeviceComparison>,
    has_history: bool,
}

#[derive(Serialize)]
struct MetricData {
    name: &'static str,
    unit: &'static str,
    better: Better,
}

#[derive(Serialize)]
struct RunData<'a> {
    /// `base`, `head`, or nothing.
    role: Option<&'static str>,
    device: Option<&'a str>,
    run: &'a RunInfo,
    overhead_ns: u64,
    git: &'a Option<GitState>,
    fingerprint: &'a BTreeMap<String, String>,
    provenance: &'a BTreeMap<String, String>,
    controls: Vec<ControlData<'a>>,
}

#[derive(Serialize)]
struct ControlData<'a> {
    name: &'a str,
    kind: ControlKind,
    provider: &'a str,
    mode: crate::case::Mode,
    threads: usize,
    working_set_bytes: u64,
    /// What it sustained in its best round, in bytes or FLOPs a second.
    rate_per_s: Option<f64>,
    /// The median of each round, in nanoseconds.
    rounds_ns: Vec<Option<f64>>,
}

#[derive(Serialize)]
struct CaseData<'a> {
    /// Number of its run.
    run: usize,
    id: &'a str,
    /// Id, mode and threads in words.
    key: String,
    mode: &'static str,
    threads: usize,
    axes: [&'a str; AXES.len()],
    /// Keys of the longest sequence.
    seqlen: Option<u64>,
    matrix: &'a str,
    disposition: Disposition,
    reason: &'a Option<String>,
    flags: &'a [String],
    lengths_q: &'a Option<Vec<usize>>,
    lengths_kv: &'a Option<Vec<usize>>,
    work: &'a Work,
    settings: &'a MeasureSettings,
    /// Rounds whose times count.
    timed_rounds: usize,
    /// Value, low, high and confidence of each metric, in their order.
    values: Vec<Option<[f64; 4]>>,
    /// Bytes and FLOPs a second that its device was measured to have.
    ceilings: [Option<f64>; 2],
    limit_ns: Option<f64>,
    repeat: String,
    /// Number of the file that has its rounds, and its place there.
    rounds: [usize; 2],
}

/// The data of every page.
pub(super) fn site<'a>(site: &Site<'a>) -> SiteData<'a> {
    let numbered =
        site.runs.iter().enumerate().flat_map(|(run, record)| record.cases.iter().map(move |c| (run, record, c)));
    SiteData {
        version: env!("CARGO_PKG_VERSION"),
        axes: AXES.iter().map(|(name, _)| *name).collect(),
        metrics: METRICS
            .iter()
            .map(|metric| MetricData { name: metric.name(), unit: metric.unit(), better: metric.better() })
            .collect(),
        runs: site.runs.iter().map(|record| run_data(record, site.gate)).collect(),
        cases: numbered.enumerate().map(|(at, (run, record, case))| case_data(at, run, record, case)).collect(),
        gate: site.gate,
        gate_repeat: site.gate.map_or(Vec::new(), |gate| {
            gate.comparison.cases.iter().map(|case| repeat_gate(gate, &case.key.case_id)).collect()
        }),
        devices: site.devices,
        has_history: !site.history.is_empty(),
    }
}

fn run_data<'a>(record: &'a Record, gate: Option<&GateReport>) -> RunData<'a> {
    let is_of = |side: &crate::compare::Side| side.runs.contains(&record.run.id);
    let role = gate.and_then(|gate| match (is_of(&gate.comparison.base), is_of(&gate.comparison.head)) {
        (true, false) => Some("base"),
        (false, true) => Some("head"),
        _ => None,
    });
    let control = |control: &'a crate::record::ControlResult| ControlData {
        name: &control.name,
        kind: control.kind,
        provider: &control.provider,
        mode: control.mode,
        threads: control.threads,
        working_set_bytes: control.working_set_bytes,
        rate_per_s: rate_per_s(control),
        rounds_ns: control.rounds.iter().map(|samples| crate::stats::quantile::median(samples)).collect(),
    };
    RunData {
        role,
        device: record.device_model(),
        run: &record.run,
        overhead_ns: record.run.time.overhead_ns(),
        git: &record.git,
        fingerprint: &record.fingerprint,
        provenance: &record.provenance,
        controls: record.controls.iter().map(control).collect(),
    }
}

fn case_data<'a>(at: usize, run: usize, record: &'a Record, case: &'a CaseResult) -> CaseData<'a> {
    let parts = axes(&case.key.case_id);
    let longest = |lengths: &Vec<usize>| lengths.iter().max().map(|&keys| keys as u64);
    let of_problem = || longest(&case.key.case_id.parse::<Case>().ok()?.problem.lengths_kv());
    let ceilings = ceilings(case, record);
    CaseData {
        run,
        id: &case.key.case_id,
        key: case.key.to_string(),
        mode: case.key.mode.name(),
        threads: case.key.threads,
        axes: parts,
        seqlen: case.lengths_kv.as_ref().and_then(longest).or_else(of_problem).filter(|&keys| keys > 0),
        matrix: &case.matrix,
        disposition: case.disposition,
        reason: &case.reason,
        flags: &case.flags,
        lengths_q: &case.lengths_q,
        lengths_kv: &case.lengths_kv,
        work: &case.work,
        settings: &case.settings,
        timed_rounds: latency::timed_rounds(case).count(),
        values: METRICS
            .iter()
            .map(|metric| metric.value(case, record).map(|e| [e.value, e.low, e.high, e.confidence]))
            .collect(),
        ceilings: [ceilings.bytes_per_s, ceilings.flops_per_s],
        limit_ns: limit_ns(case, record),
        repeat: repeat_run(record, &case.key.case_id),
        rounds: [at / CASES_A_FILE, at % CASES_A_FILE],
    }
}

#[derive(Serialize)]
pub(super) struct SeriesData<'a> {
    #[serde(flatten)]
    key: &'a SeriesKey,
    better: Better,
    times: Vec<&'a str>,
    commits: Vec<Option<&'a str>>,
    values: Vec<f64>,
    lows: Vec<Option<f64>>,
    highs: Vec<Option<f64>>,
    #[serde(flatten)]
    found: &'a SeriesChanges,
}

/// The series of the history's page.
pub(super) fn history(series: &[FoundSeries]) -> Vec<SeriesData<'_>> {
    series
        .iter()
        .map(|FoundSeries { summary, points, found }| SeriesData {
            key: &summary.key,
            better: summary.better,
            times: points.iter().map(|point| point.time.as_str()).collect(),
            commits: points.iter().map(|point| point.commit.as_deref()).collect(),
            values: points.iter().map(|point| point.value).collect(),
            lows: points.iter().map(|point| point.low).collect(),
            highs: points.iter().map(|point| point.high).collect(),
            found,
        })
        .collect()
}
