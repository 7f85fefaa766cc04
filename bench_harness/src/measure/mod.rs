//! How a run measures: rounds of fresh workers, shuffled cases, verified batches under a stopping rule.
//!
//! [`run`] is the only loop; [`case`] measures one case in one round; [`verify`] compares outputs with the oracle;
//! [`controls`] says which ceilings a run needs; [`journal`] keeps what was measured while the run goes on;
//! [`builder`] turns all of it into a record; [`shard`] is for a run on several machines.

pub mod builder;
pub mod case;
pub mod controls;
pub mod instructions;
pub mod journal;
pub mod pairs;
pub mod run;
pub mod shard;
pub mod verify;
