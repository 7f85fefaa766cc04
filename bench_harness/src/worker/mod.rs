//! Workers: processes that prepare, launch and time, and nothing else.
//!
//! [`server`] speaks the protocol for whatever [`provider::Provider`] it is given; [`cpu`] is the built-in one.
//! [`adapters`] has those for other frameworks. [`client`] is the coordinator's end: it spawns, watches and kills.

pub mod adapters;
pub mod client;
pub mod cpu;
pub mod environment;
pub mod protocol;
pub mod provider;
pub mod server;
