//! What devices say of themselves while they work: clocks, power, temperature.

pub mod nvml;
