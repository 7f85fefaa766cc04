//! Kernels on the CPU, one file each.

mod access;
pub mod block_sparse;
pub mod flash_bwd;
pub mod linear;
pub mod linformer;
pub mod mla;
mod online;
mod queue;
pub mod simd;
mod tile;
mod tiled;

#[cfg(test)]
mod tests;

use crate::kernel::Kernel;

/// Every CPU kernel, from the plainest on. A new kernel is one file and one line here.
#[rustfmt::skip]
pub const KERNELS: &[&dyn Kernel] = &[
    &flash_bwd::FlashBackward,
    &block_sparse::BlockSparse,
    &linear::Linear,
    &linformer::Linformer,
    &mla::Mla,
];

/// The kernel of that name.
pub fn find(name: &str) -> Option<&'static dyn Kernel> {
    KERNELS.iter().copied().find(|kernel| kernel.name() == name)
}
