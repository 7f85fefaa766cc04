//! What is measured on: timing, cache flush, memory, telemetry.

pub mod cpu;
pub mod cpu_info;
pub mod cuda;
pub mod telemetry;
