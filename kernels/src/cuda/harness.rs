//! What measures kernels on a GPU and is itself CUDA: clocks, checksums and ceilings. None of it is a kernel of attention,
//! so none is in [`super::CUDA_KERNELS`]; they compile, and are held against the budget of registers, like those.

use super::Module;
use super::source::source;
use super::tensor_core::element;
use crate::problem::Dtype;

/// Threads of a block of `checksum.cu` and `ceiling.cu`.
pub const THREADS: u32 = 256;
/// Independent chains of `arithmetic` in `ceiling.cu`: each is a product of 16 x 16 x 8 a warp, or for f32 an FMA a thread.
pub const CHAINS: u64 = 8;

/// `timing.cu`: `hold`, `stamp`, `spin`.
pub fn timing() -> Module {
    Module { source: source!("timing.cu"), defines: Vec::new() }
}

/// `checksum.cu`: `checksum`.
pub fn checksum() -> Module {
    Module { source: source!("checksum.cu"), defines: Vec::new() }
}

/// `ceiling.cu`: `read_memory`, `write_memory`, `copy_memory`, and `arithmetic` on this type.
pub fn ceiling(dtype: Dtype) -> Module {
    Module { source: source!("ceiling.cu"), defines: vec![("ELEMENT", element(dtype).to_string())] }
}

/// FLOPs of a warp of `arithmetic` in one turn.
pub fn flops_a_warp_and_turn(dtype: Dtype) -> u64 {
    match dtype {
        Dtype::F32 => CHAINS * 32 * 2,
        Dtype::F16 | Dtype::Bf16 => CHAINS * 2 * 16 * 16 * 8,
        Dtype::E4m3 => unreachable!("e4m3 is stored, and nothing is computed in it"),
    }
}

/// Every module of the harness.
pub fn modules() -> Vec<Module> {
    [timing(), checksum()].into_iter().chain(Dtype::ALL.into_iter().map(ceiling)).collect()
}
