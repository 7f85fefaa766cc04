//! The gate: pass, fail or undecided.
