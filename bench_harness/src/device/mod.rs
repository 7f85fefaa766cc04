//! What is measured on: timing, cache flush, memory, telemetry.
