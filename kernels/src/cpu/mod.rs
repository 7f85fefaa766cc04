//! Kernels on the CPU, one file each.

mod call;
pub mod flash;
mod online;
mod packed_kv;
mod rows;
mod schedule;
mod score;
pub mod simd;

use crate::kernel::Kernel;

/// Every CPU kernel, from the plainest on. A new kernel is one file and one line here.
pub const KERNELS: &[&dyn Kernel] = &[
    &flash::Flash { isa: None },
];

/// The kernel of that name.
pub fn find(name: &str) -> Option<&'static dyn Kernel> {
    KERNELS.iter().copied().find(|kernel| kernel.name() == name)
}
