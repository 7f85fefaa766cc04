//! The gate: pass, fail or undecided.

pub mod acceptance;
pub mod budget;
pub mod calibration;
pub mod controls;
pub mod drive;
pub mod exit;
pub mod families;
pub mod outcome;
pub mod plan;
pub mod policy;
