//! How time grows with length: the fitted exponent of each family beside the exponent of its exact work.

use std::collections::BTreeMap;
use std::str::FromStr;

use attn_kernels::problem::Lengths;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use super::units;
use crate::case::{Case, CaseKey};
use crate::metric::Metric;
use crate::metric::latency::LatencyMedian;
use crate::record::Record;
use crate::stats::power_law;

/// Lengths that a fit needs at least.
const MIN_LENGTHS: usize = 3;
/// Confidence of the exponents' intervals.
const CONFIDENCE: f64 = 0.95;

/// Cases of a record that differ in length alone.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scaling {
    /// The matrix that they came from.
    pub matrix: String,
    /// Their common case id, with `q*` and `k*` for the lengths.
    pub family: String,
    /// Keys a sequence, ascending.
    pub lengths: Vec<usize>,
    /// Median nanoseconds at each length.
    pub latency_ns_median: Vec<f64>,
    /// Exponent of time over length.
    pub exponent: f64,
    /// Lower end of its interval.
    pub exponent_low: f64,
    /// Upper end of its interval.
    pub exponent_high: f64,
    /// Exponent of exact FLOPs over the same lengths.
    pub work_exponent: f64,
}

/// The scaling of every family of a record that was measured at three lengths or more.
pub fn scalings(record: &Record) -> Vec<Scaling> {
    let mut families: BTreeMap<(usize, String), (String, Vec<Point>)> = BTreeMap::new();
    let mut matrices: Vec<&str> = Vec::new();
    for case in &record.cases {
        let Some(latency) = LatencyMedian.value(case, record) else { continue };
        let Some((family, length)) = family(&case.key) else { continue };
        let rank = matrices.iter().position(|&name| name == case.matrix).unwrap_or_else(|| {
            matrices.push(&case.matrix);
            matrices.len() - 1
        });
        let point = Point { length, latency_ns: latency.value, flops: case.work.flops as f64 };
        families.entry((rank, family)).or_insert_with(|| (case.matrix.clone(), Vec::new())).1.push(point);
    }
    families.into_iter().filter_map(|((_, family), (matrix, points))| fit(matrix, family, points)).collect()
}

struct Point {
    length: usize,
    latency_ns: f64,
    flops: f64,
}

fn fit(matrix: String, family: String, mut points: Vec<Point>) -> Option<Scaling> {
    points.sort_by_key(|point| point.length);
    points.dedup_by_key(|point| point.length);
    if points.len() < MIN_LENGTHS {
        return None;
    }
    let law = |y: fn(&Point) -> f64| {
        let points: Vec<(f64, f64)> = points.iter().map(|point| (point.length as f64, y(point))).collect();
        power_law::fit(&points, CONFIDENCE)
    };
    let (time, work) = (law(|point| point.latency_ns)?, law(|point| point.flops)?);
    Some(Scaling {
        matrix,
        family,
        lengths: points.iter().map(|point| point.length).collect(),
        latency_ns_median: points.iter().map(|point| point.latency_ns).collect(),
        exponent: time.exponent,
        exponent_low: time.interval.low,
        exponent_high: time.interval.high,
        work_exponent: work.exponent,
    })
}

/// A case's id without its lengths, mode and threads included, and its number of keys. None where lengths are ragged.
pub(super) fn family(key: &CaseKey) -> Option<(String, usize)> {
    let case = Case::from_str(&key.case_id).ok()?;
    let Lengths::Same(length) = case.problem.seqlen_kv else { return None };
    let is_length = |part: &&str| {
        let digits = part.strip_prefix(['q', 'k']).unwrap_or_default();
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    // One query stays one query while the cache grows: then only the keys scale.
    let keeps_queries = case.problem.seqlen_q == Lengths::Same(1);
    let parts: Vec<&str> = key
        .case_id
        .split('/')
        .map(|part| match part {
            "q1" if keeps_queries => part,
            part if is_length(&part) => {
                if part.starts_with('q') {
                    "q*"
                } else {
                    "k*"
                }
            }
            part => part,
        })
        .collect();
    Some((CaseKey { case_id: parts.join("/"), ..key.clone() }.to_string(), length))
}

/// The table of `attnbench scaling`, at most `width` columns wide.
pub fn table(scalings: &[Scaling], width: u16) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    table.set_header(["matrix", "keys", "time", "exponent", "95 % interval", "of its FLOPs"]);
    for scaling in scalings {
        let ends = |values: [String; 2]| values.join(" .. ");
        let (first, last) = (0, scaling.lengths.len() - 1);
        table.add_row(
            [
                scaling.matrix.clone(),
                ends([first, last].map(|index| scaling.lengths[index].to_string())),
                ends([first, last].map(|index| units::nanoseconds(scaling.latency_ns_median[index]))),
                format!("{:.2}", scaling.exponent),
                format!("{:.2} to {:.2}", scaling.exponent_low, scaling.exponent_high),
                format!("{:.2}", scaling.work_exponent),
            ]
            .into_iter()
            .enumerate()
            .map(|(column, text)| {
                let alignment = if column == 0 { CellAlignment::Left } else { CellAlignment::Right };
                Cell::new(text).set_alignment(alignment)
            })
            .collect::<Vec<_>>(),
        );
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}
