//! The gate: pass, fail or undecided.

pub mod acceptance;
pub mod budget;
pub mod calibration;
pub mod controls;
pub mod deterministic;
pub mod drive;
pub mod exit;
pub mod families;
mod mde;
pub mod outcome;
pub mod plan;
pub mod policy;
mod stages;
