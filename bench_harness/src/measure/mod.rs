//! How a run measures: rounds, batches, verification, stopping.
