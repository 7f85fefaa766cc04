//! Suite file -> checked suite -> matrices -> planned cases.
//!
//! Only the checked form runs: [`Suite`] is what the rest of the harness sees, and everything in it is legal.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::case::{Case, CaseKey, Mode};

/// How the cases of a matrix are measured. Defaults are DESIGN's; a suite, a matrix or the command line overrides them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MeasureSettings {
    /// Cold or hot.
    pub mode: Mode,
    /// Fresh worker processes, each of which measures every case once.
    pub rounds: u32,
    /// Samples a round at least.
    pub min_samples: u32,
    /// Samples a round at most.
    pub max_samples: u32,
    /// Measuring time of a case a round, after which no new batch starts.
    pub budget_ms: u64,
    /// Half-width of the median's 95 % interval, relative to the median, at which sampling stops.
    pub target_ci: f64,
    /// A request that takes longer kills its worker, and the case is `timed_out`.
    pub timeout_s: u64,
    /// Work that the f64 oracle may spend on a case.
    pub oracle_flops: u64,
}

impl Default for MeasureSettings {
    fn default() -> Self {
        MeasureSettings {
            mode: Mode::Cold,
            rounds: 5,
            min_samples: 10,
            max_samples: 1000,
            budget_ms: 1000,
            target_ci: 0.005,
            timeout_s: 120,
            oracle_flops: 500_000_000,
        }
    }
}

/// A case that a run will measure.
#[derive(Clone, Debug)]
pub struct PlannedCase {
    /// What.
    pub case: Case,
    /// The matrix that it came from.
    pub matrix: String,
    /// CPU threads of the kernel; 0 for devices that are not CPUs.
    pub threads: usize,
    /// How.
    pub settings: MeasureSettings,
}

impl PlannedCase {
    /// Its key in records.
    pub fn key(&self) -> CaseKey {
        CaseKey { case_id: self.case.id(), mode: self.settings.mode, threads: self.threads }
    }
}

/// A checked suite.
#[derive(Clone, Debug)]
pub struct Suite {
    /// Its name: the file's stem.
    pub name: String,
    /// What question it answers.
    pub description: String,
    /// blake3 of the file's bytes, in hex.
    pub hash: String,
    /// Seed of inputs and of the order of cases.
    pub seed: u64,
    /// Every case, in the file's order, without duplicates.
    pub cases: Vec<PlannedCase>,
}
