//! Series of results over time: what they are, how they are read from other tools, and where they change.
//!
//! This is the slow path beside A/B: it shows trends, and what no single comparison could see. Nothing here decides a
//! pull request.

pub mod changes;
pub mod csv;
pub mod export;
pub mod gates;
pub mod import;
mod parquet;
pub mod point;
pub mod search;
