//! The harness: one way for data to flow, each arrow a plain value type.
//!
//! `suite file -> matrix -> cases -> worker -> samples -> metrics -> record -> store -> comparison -> report`
//!
//! `stats`, `compare` and `report` are pure: no clock, device, network or global state; randomness is seeded and passed
//! in. ARCHITECTURE.md at the top of the repository draws the map.

pub mod advise;
pub mod bisect;
pub mod build;
pub mod case;
pub mod claims;
pub mod clock;
pub mod commands;
pub mod compare;
pub mod device;
pub mod eval;
pub mod files;
pub mod gate;
pub mod history;
pub mod kv;
pub mod measure;
pub mod metric;
pub mod record;
pub mod report;
pub mod rules;
pub mod stats;
pub mod store;
pub mod suite;
pub mod tensor_file;
pub mod tune;
pub mod user_kernel;
pub mod vcs;
pub mod watch;
pub mod worker;
