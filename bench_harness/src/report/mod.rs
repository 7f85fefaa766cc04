//! How results are shown, one file a format.

pub mod comparison;
pub mod json;
pub mod units;
