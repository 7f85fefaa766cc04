//! What is measured on: timing, cache flush, memory, telemetry.

pub mod cpu;
pub mod cuda;
pub mod telemetry;
