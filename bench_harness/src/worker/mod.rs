//! Workers: processes that prepare, launch and time, and nothing else.

pub mod protocol;
