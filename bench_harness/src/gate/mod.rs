//! The gate: pass, fail or undecided.

pub mod budget;
pub mod exit;
pub mod outcome;
pub mod plan;
pub mod policy;
