//! Suite file -> checked suite -> matrices -> planned cases.
//!
//! Only the checked form runs: [`Suite`] is what the rest of the harness sees, and everything in it is legal. The file is
//! read in three steps, each a module: [`mod@raw`] knows the keys and types, [`mod@axes`] what each axis may be,
//! [`mod@expand`] combines the axes and checks what comes out. Suite files are untrusted: every step has its limits, and
//! whatever is wrong becomes one [`SuiteError`] with file, line and the way out.

mod axes;
mod error;
mod estimate;
mod expand;
mod files;
mod filter;
pub mod presets;
mod raw;
#[cfg(test)]
mod reference;
mod settings;
pub mod shard;
mod support;
#[cfg(test)]
mod tests;
mod value;

use attn_kernels::kernel::Kernel;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::case::{Case, CaseKey, Mode};

pub use error::SuiteError;
pub use estimate::Estimate;
pub use expand::{MAX_MATRIX_CASES, MAX_SUITE_CASES};
pub(crate) use files::read_named;
pub use files::{SUITES_DIR, find, list};
pub use filter::CaseGlob;
pub use support::{Support, support};

/// How the cases of a matrix are measured: the defaults, unless a suite, a matrix or the command line overrides them.
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
    /// Whether calls also run back to back for two seconds, on a GPU whose energy counter is read meanwhile.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub energy: bool,
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
            energy: false,
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
    /// Share of its time that a calibration has a worker add to each call; 0 in all other uses.
    pub slowdown: f64,
}

impl PlannedCase {
    /// Its key in records.
    pub fn key(&self) -> CaseKey {
        CaseKey { case_id: self.case.id(), mode: self.settings.mode, threads: self.threads }
    }
}

/// A matrix in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MatrixInfo {
    /// Its name.
    pub name: String,
    /// Why it is measured.
    pub reason: String,
    /// Its cases, those of earlier matrices left out.
    pub cases: usize,
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
    /// Its matrices, in the file's order.
    pub matrices: Vec<MatrixInfo>,
    /// Every case, in the file's order, without duplicates.
    pub cases: Vec<PlannedCase>,
}

/// What a suite file does not say itself.
#[derive(Clone, Copy)]
pub struct Environment<'k> {
    /// The built-in kernels: those that `kernels = "all"` and the names of provider `cpu` choose from.
    pub kernels: &'k [&'k dyn Kernel],
    /// Cores that this process may use: the default number of threads.
    pub threads: usize,
}

impl Default for Environment<'static> {
    /// The shipped kernels on this machine.
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Environment { kernels: attn_kernels::cpu::KERNELS, threads }
    }
}

impl Suite {
    /// Reads and checks a suite file.
    pub fn load(path: &std::path::Path) -> Result<Suite, SuiteError> {
        Suite::load_in(path, &Environment::default())
    }

    /// Reads and checks a suite file with other kernels or threads than this machine's.
    pub fn load_in(path: &std::path::Path, environment: &Environment<'_>) -> Result<Suite, SuiteError> {
        let (name, bytes) = files::read(path)?;
        Suite::parse(&name, &path.display().to_string(), &bytes, environment)
    }

    /// Checks the bytes of a suite file: `name` becomes the suite's, `file` stands in errors.
    pub fn parse(name: &str, file: &str, bytes: &[u8], environment: &Environment<'_>) -> Result<Suite, SuiteError> {
        Suite::parse_within(name, file, bytes, environment, &[])
    }

    /// Checks the suite that a file of another kind holds beside `foreign` keys of its own.
    pub fn parse_within(
        name: &str,
        file: &str,
        bytes: &[u8],
        environment: &Environment<'_>,
        foreign: &[&str],
    ) -> Result<Suite, SuiteError> {
        let text = files::text(file, bytes)?;
        let mut table = toml::de::DeTable::parse(text).map_err(|error| files::syntax_error(file, text, &error))?;
        for &key in foreign {
            table.get_mut().remove(key);
        }
        let raw = raw::read(table.get_ref(), environment.kernels).map_err(|fault| fault.place(file, text))?;
        let (matrices, cases) = expand::expand(&raw, environment).map_err(|fault| fault.place(file, text))?;
        Ok(Suite {
            name: name.to_owned(),
            description: raw.description,
            hash: blake3::hash(bytes).to_hex().to_string(),
            seed: raw.seed,
            matrices,
            cases,
        })
    }
}
