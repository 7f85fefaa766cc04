//! What a GPU case launches: a trace that tells whether two builds do the same thing.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One launch of a call, and what it takes of a multiprocessor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LaunchReport {
    /// The kernel's name.
    pub entry: String,
    /// The source and defines that it was compiled from.
    pub module: String,
    /// Hash of the machine code.
    pub code_hash: String,
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads a block in x, y and z.
    pub block: [u32; 3],
    /// Registers a thread.
    pub registers: u32,
    /// Bytes a thread that did not fit the registers, written and read, where the compiler's log tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spill_bytes: Option<u32>,
    /// Bytes a thread in local memory: spills and arrays.
    pub local_bytes: u32,
    /// Bytes of shared memory a block that are part of the kernel.
    pub static_shared_bytes: u32,
    /// Bytes of shared memory a block that the launch asks for.
    pub dynamic_shared_bytes: u32,
    /// Blocks that a multiprocessor holds at a time.
    pub blocks_per_multiprocessor: u32,
}
