//! From a scenario to a decision: which attention design to serve, and why.
//!
//! `scenario -> designs -> cache, latency, probes -> assessments -> choice -> memo`
//!
//! [`mod@scenario`] is what a team knows: model, device, workloads, needs. [`mod@design`] are the candidates.
//! [`mod@latency`] models a step of the whole model from measured curves ([`mod@curve`]) on this machine, or from the
//! roofline of a device that is not here ([`mod@datasheet`]). [`mod@probe`] are numerical experiments with constructed
//! tensors that say what a design can and cannot recall. [`mod@assess`] holds each design against every need,
//! [`mod@choose`] picks one, and [`mod@memo`] writes down why. Every number has a formula, an experiment or a case id.

pub mod assess;
pub mod cases;
pub mod choose;
pub mod curve;
pub mod datasheet;
pub mod design;
pub mod latency;
pub mod library;
pub mod memo;
pub mod probe;
pub mod scenario;

pub use design::Design;
pub use memo::Memo;
pub use scenario::Scenario;

/// Why there is no advice.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("reading scenario `{file}`: {message}")]
pub struct ScenarioError {
    /// The file.
    pub file: String,
    /// What is wrong, and what would be right.
    pub message: String,
}
