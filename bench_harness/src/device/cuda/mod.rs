//! CUDA devices: contexts, memory, compiled modules, launches and timing.
//!
//! The driver and NVRTC are loaded at run time: a machine without them is told so and goes on. [`list`] says which devices
//! there are and [`selection`] which were asked for; [`context`] opens one; [`compile`] makes machine code, and keeps it;
//! [`launch`] executes plans of `attn_kernels::cuda`; [`timer`] times what was launched, singly or as a [`graph`]; [`ceiling`] measures the device
//! and [`self_test`] the measuring. A context belongs to one thread of a worker process, which dies with the first error
//! that CUDA does not recover from.

pub mod ceiling;
pub mod checksum;
pub mod compile;
pub mod context;
pub mod driver;
pub mod graph;
pub mod launch;
pub mod list;
pub mod module;
pub mod selection;
pub mod self_test;
mod tensor_map;
pub mod timer;

pub use list::{CudaDevice, NoCuda, devices};
