//! The gate: pass, fail or undecided.

pub mod outcome;
pub mod plan;
pub mod policy;
