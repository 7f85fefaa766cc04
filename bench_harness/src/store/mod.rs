//! Where records and baselines are kept.
