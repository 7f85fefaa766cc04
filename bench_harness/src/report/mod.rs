//! How results are shown, one file a format.

pub mod json;
pub mod listing;
pub mod scaling;
pub mod units;
