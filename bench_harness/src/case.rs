//! A case: a problem, the kernel that computes it and the provider that the kernel comes from.

use std::fmt;
use std::str::FromStr;

use attn_kernels::problem::{AttentionProblem, Dtype};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is measured. Its [`Case::id`] is its canonical name.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// Where the kernel comes from: `cpu`, `cuda`, `torch`, a user's own.
    pub provider: String,
    /// The kernel's name within its provider.
    pub kernel: String,
    /// What it computes.
    pub problem: AttentionProblem,
}

/// Why a text is no case id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("reading case id `{id}`: {reason}")]
pub struct CaseIdError {
    /// The text.
    pub id: String,
    /// What is wrong with it, and what would be right.
    pub reason: String,
}

impl Case {
    /// `provider/kernel/` and the problem's id: the grammar is in ARCHITECTURE.md.
    pub fn id(&self) -> String {
        format!("{}/{}/{}", self.provider, self.kernel, self.problem.id())
    }

    /// The dtype by whose tolerance its outputs are judged: what a kernel of this binary's own tables multiplies in, and the
    /// problem's for every other. No worker is asked.
    pub fn multiplied_in(&self) -> Dtype {
        match self.provider.as_str() {
            "cuda" => attn_kernels::cuda::multiplies_in(&self.kernel, &self.problem),
            _ => self.problem.dtype,
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id())
    }
}

impl FromStr for Case {
    type Err = CaseIdError;

    fn from_str(text: &str) -> Result<Self, CaseIdError> {
        let error = |reason: String| CaseIdError { id: text.to_owned(), reason };
        let mut parts = text.splitn(3, '/');
        let (Some(provider), Some(kernel), Some(problem)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(error("expected `provider/kernel/mechanism/phase/...`".into()));
        };
        check_name(provider).map_err(|reason| error(format!("provider {reason}")))?;
        check_name(kernel).map_err(|reason| error(format!("kernel {reason}")))?;
        let problem = AttentionProblem::parse_id(problem).map_err(|cause| error(cause.to_string()))?;
        Ok(Case { provider: provider.to_owned(), kernel: kernel.to_owned(), problem })
    }
}

/// Whether a text may name a provider or a kernel: 1 to 64 of `a-z`, `0-9`, `_`, `.`, `-`, `+`.
pub fn check_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_.-+".contains(c);
    if name.is_empty() || name.len() > 64 || !name.chars().all(allowed) {
        return Err(format!("name `{name}` is not 1 to 64 of a-z, 0-9, `_`, `.`, `-` and `+`"));
    }
    Ok(())
}

/// Whether caches are emptied before each sample.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
    clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Caches are emptied before every sample: what a kernel costs inside a model. The default for gating.
    #[default]
    Cold,
    /// Calls follow one another back to back: throughput.
    Hot,
}

impl Mode {
    /// The name in suites and records.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Cold => "cold",
            Mode::Hot => "hot",
        }
    }
}

/// What identifies a series of measurements: two records compare by it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct CaseKey {
    /// The case id.
    pub case_id: String,
    /// Cold or hot.
    pub mode: Mode,
    /// CPU threads of the kernel; 0 for devices that are not CPUs.
    pub threads: usize,
}

impl fmt::Display for CaseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}", self.case_id, self.mode.name())?;
        if self.threads > 0 {
            write!(f, ", {} thread{}", self.threads, if self.threads == 1 { "" } else { "s" })?;
        }
        f.write_str("]")
    }
}
