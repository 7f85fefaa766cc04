//! Where baselines are kept, and who measures on a device right now.

pub mod baseline;
pub mod device_lock;
