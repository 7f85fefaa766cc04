//! Published claims, and what this machine says to them.
//!
//! A claim is a file: what is claimed and by whom, the matrices that test it, and relations that their measurements should
//! have. [`mod@raw`] reads it into a checked [`Claim`], [`mod@relation`] computes a relation's figure from a record, and
//! [`mod@answer`] compares the figure with what was claimed. A figure's interval decides: inside what was claimed it
//! confirms, outside it contradicts, and one that straddles a bound is inconclusive.

pub mod answer;
pub mod library;
pub mod quantity;
pub mod raw;
pub mod relation;

use std::collections::BTreeMap;

use crate::record::{ControlKind, Record};
use crate::stats::quantile::{median, quantile};
use crate::suite::Suite;
use relation::Relation;

/// A published claim, checked.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Its name: the file's stem.
    pub name: String,
    /// What is claimed, in a sentence.
    pub statement: String,
    /// Who published it, where.
    pub source: String,
    /// What to know about its wording or the way it is tested.
    pub note: Option<String>,
    /// What it needs to be measured on, where not every machine will do.
    pub needs: Option<Device>,
    /// What should hold: all of it.
    pub expectations: Vec<Expectation>,
    /// The cases that test it; none where it is arithmetic.
    pub suite: Option<Suite>,
}

/// A device that a claim is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// Any GPU.
    Gpu,
    /// One whose model holds this text.
    Model(String),
}

impl Device {
    /// Why a record's device will not do; None where it does.
    pub fn refusal(&self, gpu_model: Option<&str>, cpu_model: Option<&str>) -> Option<String> {
        let here = gpu_model.or(cpu_model).unwrap_or("an unknown device");
        match (self, gpu_model) {
            (Device::Gpu, Some(_)) => None,
            (Device::Gpu, None) => Some(format!("needs a GPU; this is `{here}`")),
            (Device::Model(model), Some(gpu)) if gpu.to_lowercase().contains(&model.to_lowercase()) => None,
            (Device::Model(model), _) => Some(format!("needs an NVIDIA {model}; this is `{here}`")),
        }
    }
}

/// Something that should hold.
#[derive(Clone, Debug)]
pub struct Expectation {
    /// In words, without the number.
    pub says: String,
    /// What is computed.
    pub relation: Relation,
    /// The least that is claimed.
    pub at_least: f64,
    /// The most that is claimed.
    pub at_most: f64,
}

/// What is known when claims are judged.
#[derive(Clone, Debug)]
pub struct Evidence<'a> {
    /// Measurements; None where nothing had to be measured.
    pub record: Option<&'a Record>,
    /// Instructions of one call by case id, or why they were not counted.
    pub instructions: BTreeMap<String, Result<u64, String>>,
    /// By what factor times may be off: see [`disturbance`].
    pub disturbance: f64,
}

/// By what factor the machine itself differed from round to round: the 90th over the 10th percentile of the fastest samples of
/// each control and round, each over its control's median; 1 without controls. What others do on a machine slows long calls
/// down more than short ones and in every round alike, which no interval over rounds shows; so each interval is widened by
/// this.
pub fn disturbance(record: &Record) -> f64 {
    let mut samples = Vec::new();
    for control in &record.controls {
        let fastest = |samples: &Vec<f64>| samples.iter().copied().filter(|&ns| ns > 0.0).min_by(f64::total_cmp);
        let own: Vec<f64> = control.rounds.iter().filter_map(fastest).collect();
        if let (ControlKind::Read | ControlKind::Fma, Some(middle)) = (control.kind, median(&own)) {
            samples.extend(own.iter().map(|ns| ns / middle));
        }
    }
    let ends = quantile(&samples, 0.9).zip(quantile(&samples, 0.1));
    ends.map_or(1.0, |(high, low)| (high / low).max(1.0))
}

impl<'a> Evidence<'a> {
    /// What a record and counts tell.
    pub fn new(record: Option<&'a Record>, instructions: BTreeMap<String, Result<u64, String>>) -> Evidence<'a> {
        Evidence { record, instructions, disturbance: record.map_or(1.0, disturbance) }
    }

    /// The record's GPU.
    pub fn gpu_model(&self) -> Option<&str> {
        self.record?.fingerprint.get("gpu_model").map(String::as_str)
    }
}
