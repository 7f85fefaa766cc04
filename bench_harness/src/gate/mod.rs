//! The gate: pass, fail or undecided.

pub mod budget;
pub mod controls;
pub mod exit;
pub mod families;
mod mde;
pub mod outcome;
pub mod plan;
pub mod policy;
mod stages;
