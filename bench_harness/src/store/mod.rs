//! Where baselines and histories are kept, and who measures on a device right now.

pub mod baseline;
pub mod device_lock;
pub mod history;
mod migrations;
pub mod postgres;
mod sql;
pub mod sqlite;
