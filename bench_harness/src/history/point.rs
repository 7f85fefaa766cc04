//! What a history holds: points, each a value of a series from a run.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::metric::{Better, METRICS};
use crate::record::Record;

/// What must be equal for values to be of one series.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct SeriesKey {
    /// The suite, or the name of what was imported.
    pub suite: String,
    /// The case with its mode and threads, or another tool's benchmark.
    pub case: String,
    /// The metric, its unit last.
    pub metric: String,
    /// Hash of the fingerprint, or what an import was told: other machines have other series.
    pub machine: String,
}

/// A run: what its points share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Run {
    /// Unique: a run that is pushed again is there already.
    pub id: String,
    /// RFC 3339, UTC; or what an import found.
    pub time: String,
    /// Full hash, where it is known.
    pub commit: Option<String>,
    /// When that was committed, RFC 3339, UTC: series are in this order where it is known.
    pub committed_at: Option<String>,
    /// The branch, where it is known.
    pub branch: Option<String>,
    /// Fields of the machine's fingerprint.
    pub fingerprint: BTreeMap<String, String>,
    /// Its values.
    pub points: Vec<Point>,
}

/// A value of a series.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Point {
    /// Of which series.
    pub series: SeriesKey,
    /// Which direction is good.
    pub better: Better,
    /// The value.
    pub value: f64,
    /// Lower end of its interval, where there is one.
    pub low: Option<f64>,
    /// Upper end of its interval, where there is one.
    pub high: Option<f64>,
}

/// The points of a record: every metric of every case that has a direction and a value.
pub fn of_record(record: &Record) -> Run {
    let machine = machine_name(&record.fingerprint);
    let points = record
        .cases
        .iter()
        .flat_map(|case| METRICS.iter().map(move |metric| (case, metric)))
        .filter(|(_, metric)| metric.better() != Better::None)
        .filter_map(|(case, metric)| {
            let estimate = metric.value(case, record).filter(|estimate| estimate.value.is_finite())?;
            Some(Point {
                series: SeriesKey {
                    suite: record.run.suite.clone(),
                    case: case.key.to_string(),
                    metric: metric.name().to_owned(),
                    machine: machine.clone(),
                },
                better: metric.better(),
                value: estimate.value,
                low: Some(estimate.low).filter(|end| end.is_finite()),
                high: Some(estimate.high).filter(|end| end.is_finite()),
            })
        })
        .collect();
    Run {
        id: record.run.id.clone(),
        time: record.run.started_at.clone(),
        commit: record.git.as_ref().map(|git| git.commit.clone()),
        committed_at: record.git.as_ref().map(|git| git.committed_at.clone()),
        branch: record.git.as_ref().and_then(|git| git.branch.clone()),
        fingerprint: record.fingerprint.clone(),
        points,
    }
}

/// A short name of a machine: the same for equal fingerprints.
pub fn machine_name(fingerprint: &BTreeMap<String, String>) -> String {
    let mut hasher = blake3::Hasher::new();
    for (field, value) in fingerprint {
        for text in [field, value] {
            // Lengths keep `ab`, `c` and `a`, `bc` apart.
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
    }
    hasher.finalize().to_hex()[..12].to_owned()
}
