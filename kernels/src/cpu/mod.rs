//! Kernels on the CPU, one file each.

pub mod block_sparse;
mod call;
mod columns;
mod decode;
pub mod flash;
pub mod flash1;
mod flash_bwd;
mod key_list;
pub mod linear;
pub mod linformer;
pub mod mla;
pub mod naive;
mod online;
mod packed_kv;
pub mod paged;
mod rows;
mod schedule;
mod score;
pub mod simd;
pub mod split_kv;
mod tiled;

#[cfg(test)]
mod tests;

use crate::kernel::Kernel;

/// Every CPU kernel, from the plainest on. A new kernel is one file and one line here.
#[rustfmt::skip]
pub const KERNELS: &[&dyn Kernel] = &[
    &naive::Naive { isa: None },
    &flash1::Flash1 { isa: None },
    &flash::Flash { isa: None },
    &split_kv::SplitKv { isa: None },
    &paged::Paged { isa: None },
    &block_sparse::BlockSparse { isa: None },
    &linear::Linear { isa: None },
    &linformer::Linformer { isa: None },
    &mla::Mla { isa: None },
];

/// The kernel of that name.
pub fn find(name: &str) -> Option<&'static dyn Kernel> {
    KERNELS.iter().copied().find(|kernel| kernel.name() == name)
}
