//! The gate: pass, fail or undecided.

pub mod exit;
pub mod outcome;
pub mod plan;
pub mod policy;
