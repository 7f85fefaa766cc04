//! Kernels on NVIDIA GPUs, as data.
//!
//! The kernels themselves are CUDA C++ in `kernels/cuda/*.cu`. A file here, of the same stem, says what its kernel
//! computes and turns a problem into a [`CudaPlan`]: what to compile, what memory to take, what to launch with which
//! arguments. No plan calls CUDA, so that one plan is executed by a GPU back end and by the host shim alike, and can
//! be tested on a machine without a GPU.

pub mod block_sparse;
mod decode;
pub mod flash;
pub mod flash1;
pub mod flash3;
mod flash3_bwd;
pub mod flash3_e4m3;
mod flash_bwd;
mod geometry;
pub mod harness;
pub mod linear;
pub mod linformer;
pub mod mla;
pub mod naive;
pub mod nvrtc;
pub mod occupancy;
pub mod paged;
mod plan;
pub mod resources;
pub mod sass;
pub mod schedule;
mod shares;
mod source;
pub mod split_kv;
mod tensor_core;
pub mod tiles;

use crate::kernel::KernelError;
use crate::problem::{AttentionProblem, Dtype};

pub use plan::{Argument, CudaPlan, DeviceFacts, Launch, Module, TensorMap};
pub use source::{HEADERS, Header, Source};
use tiles::{TileClass, Tiles};

/// One implementation of attention on NVIDIA GPUs.
pub trait CudaKernel: Sync {
    /// Its name in case ids.
    fn name(&self) -> &'static str;
    /// One line: the algorithm and where it comes from.
    fn summary(&self) -> &'static str;
    /// Whether it computes this valid problem; the error says which property it does not support.
    fn supports(&self, problem: &AttentionProblem) -> Result<(), KernelError>;
    /// What to do to compute it on such a device. Errors where [`CudaKernel::supports`] does, and where the device lacks
    /// something that the plan needs.
    fn plan(&self, problem: &AttentionProblem, device: &DeviceFacts) -> Result<CudaPlan, KernelError>;
    /// Whether it is written for devices of this compute capability, major * 10 + minor.
    fn is_for(&self, compute_capability: u32) -> bool {
        compute_capability >= 80
    }
    /// Every module that a plan may hold: what is compiled ahead to know registers, spills and shared memory.
    fn modules(&self) -> Vec<Module>;
    /// Those that a plan for such a device may hold.
    fn modules_for(&self, compute_capability: u32) -> Vec<Module> {
        if self.is_for(compute_capability) { self.modules() } else { Vec::new() }
    }
    /// The dtype in which it multiplies a problem's numbers, whose tolerance its outputs are judged by: the problem's own, unless a
    /// kernel rounds to a narrower one.
    fn multiplies_in(&self, problem: &AttentionProblem) -> Dtype {
        problem.dtype
    }
    /// How its blocks may be cut: a row for each class of its problems; empty where there is no choice.
    fn tile_classes(&self) -> Vec<&'static TileClass> {
        Vec::new()
    }
    /// The class of a supported problem, of [`CudaKernel::tile_classes`]; `None` where there is no choice.
    fn tile_class(&self, _problem: &AttentionProblem) -> Option<&'static TileClass> {
        None
    }
    /// [`CudaKernel::plan`] with one of the candidates of the problem's class. Errors where it is none of them, and where a
    /// block of it does not fit the device, too.
    fn plan_with(
        &self,
        problem: &AttentionProblem,
        device: &DeviceFacts,
        tiles: Tiles,
    ) -> Result<CudaPlan, KernelError> {
        self.supports(problem)?;
        tiles::check(self.name(), self.tile_class(problem), tiles)?;
        self.plan_tiles(problem, device, tiles)
    }
    /// What [`CudaKernel::plan_with`] is made of: a plan of a supported problem with tiles of its class. A kernel without classes
    /// is never asked.
    fn plan_tiles(
        &self,
        _problem: &AttentionProblem,
        _device: &DeviceFacts,
        tiles: Tiles,
    ) -> Result<CudaPlan, KernelError> {
        Err(KernelError::Unsupported(format!("tiles {tiles}: {} has no choice of tiles", self.name())))
    }
}

/// Every CUDA kernel, from the plainest on. A new kernel is one `.cu`, one file and one line here.
#[rustfmt::skip]
pub const CUDA_KERNELS: &[&dyn CudaKernel] = &[
    &naive::Naive,
    &flash1::Flash1,
    &flash::Flash,
    &flash3::Flash3,
    &flash3_e4m3::Flash3E4m3,
    &split_kv::SplitKv,
    &paged::Paged,
    &block_sparse::BlockSparse,
    &linear::Linear,
    &linformer::Linformer,
    &mla::Mla,
];

/// The dtype by whose tolerance outputs of the kernel of that name are judged: [`CudaKernel::multiplies_in`], and the problem's own for
/// a name that is not in this table.
pub fn multiplies_in(name: &str, problem: &AttentionProblem) -> Dtype {
    find(name).map_or(problem.dtype, |kernel| kernel.multiplies_in(problem))
}

/// The kernel of that name, which may be a candidate of [`tiles`].
pub fn find(name: &str) -> Option<&'static dyn CudaKernel> {
    CUDA_KERNELS.iter().copied().find(|kernel| kernel.name() == name).or_else(|| tiles::find(name))
}
