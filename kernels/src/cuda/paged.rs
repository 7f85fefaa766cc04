//! Flash-decoding over a paged cache (Kwon et al. 2023): `kernels/cuda/paged.cu`.

use super::CudaKernel;
use super::decode::{CLASSES, Decode};
use super::plan::{CudaPlan, DeviceFacts, Module};
use super::source::source;
use super::tiles::{TileClass, Tiles};
use crate::kernel::KernelError;
use crate::problem::{AttentionProblem, KvLayout};

const DECODE: Decode = Decode { name: "paged", source: source!("paged.cu") };

/// The kernel.
pub struct Paged;

impl CudaKernel for Paged {
    fn name(&self) -> &'static str {
        DECODE.name
    }

    fn summary(&self) -> &'static str {
        "Flash-decoding over a page table (Kwon et al. 2023), any page size"
    }

    fn supports(&self, problem: &AttentionProblem) -> Result<(), KernelError> {
        DECODE.supports(problem)?;
        if problem.kv_layout == KvLayout::Contiguous {
            return Err(KernelError::Unsupported(
                "paged reads keys and values through a page table, not contiguous ones (split_kv does)".into(),
            ));
        }
        Ok(())
    }

    fn plan(&self, problem: &AttentionProblem, device: &DeviceFacts) -> Result<CudaPlan, KernelError> {
        self.supports(problem)?;
        DECODE.plan(problem, device)
    }

    fn modules(&self) -> Vec<Module> {
        DECODE.modules()
    }

    fn tile_classes(&self) -> Vec<&'static TileClass> {
        CLASSES.iter().collect()
    }

    fn tile_class(&self, problem: &AttentionProblem) -> Option<&'static TileClass> {
        DECODE.tile_class(problem)
    }

    fn plan_tiles(
        &self,
        problem: &AttentionProblem,
        device: &DeviceFacts,
        tiles: Tiles,
    ) -> Result<CudaPlan, KernelError> {
        DECODE.plan_tiles(problem, device, tiles)
    }
}
