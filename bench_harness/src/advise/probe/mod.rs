//! Quality probes: what an attention design can and cannot do, shown on constructed tensors without any trained model.
//!
//! Each probe is a numerical experiment on the project's f64 oracle, which gives the same bits on every machine, so that the
//! same scenario always gets the same figures. A probe says what is possible with ideal keys and queries: a trained model may
//! do worse, never better. A new probe is one file and one line in [`PROBES`].

pub mod concentration;
pub mod distance;
pub mod diversity;
pub mod lab;
pub mod latent;
pub mod precision;
pub mod recall;
pub mod relay;

use std::collections::BTreeMap;

use serde::Serialize;

use super::design::Design;
use super::scenario::Scenario;

/// Every probe, in the order of the memo.
pub const PROBES: &[&dyn Probe] = &[
    &recall::Recall,
    &relay::Relay,
    &distance::Distance,
    &diversity::Diversity,
    &concentration::Concentration,
    &latent::Latent,
    &precision::Precision,
];

/// An experiment.
pub trait Probe: Sync {
    /// Its name in memos.
    fn name(&self) -> &'static str;

    /// What is done, in a sentence that names the source of the idea where there is one.
    fn summary(&self) -> &'static str;

    /// The findings about a design that matter in a scenario.
    fn findings(&self, design: &Design, scenario: &Scenario, notes: &mut Notebook) -> Vec<ProbeFinding>;
}

/// Results of experiments that were done already: designs share kinds of layers.
#[derive(Debug, Default)]
pub struct Notebook(BTreeMap<String, f64>);

impl Notebook {
    /// The result of an experiment of that name, done unless it is noted.
    pub fn result(&mut self, name: String, experiment: impl FnOnce() -> f64) -> f64 {
        *self.0.entry(name).or_insert_with(experiment)
    }
}

/// A figure of a probe.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProbeFinding {
    /// The probe.
    pub probe: &'static str,
    /// What the figure is of: `recall at 40000 tokens`.
    pub of: String,
    /// The figure.
    pub value: f64,
    /// How it was come by: sizes and seed.
    pub how: String,
    /// What a need asks of it, where one does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Limit>,
}

/// What a need asks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// No less.
    AtLeast(f64),
    /// No more.
    AtMost(f64),
}

impl ProbeFinding {
    /// Whether the need is met; true where there is none.
    pub fn is_met(&self) -> bool {
        match self.limit {
            None => true,
            Some(Limit::AtLeast(limit)) => self.value >= limit,
            Some(Limit::AtMost(limit)) => self.value <= limit,
        }
    }
}

/// All findings about a design.
pub fn findings(design: &Design, scenario: &Scenario, notes: &mut Notebook) -> Vec<ProbeFinding> {
    PROBES.iter().flat_map(|probe| probe.findings(design, scenario, notes)).collect()
}
