//! Flash-decoding over a contiguous cache: `kernels/cuda/split_kv.cu`.

use super::CudaKernel;
use super::decode::{CLASSES, Decode};
use super::plan::{CudaPlan, DeviceFacts, Module};
use super::source::source;
use super::tiles::{TileClass, Tiles};
use crate::kernel::KernelError;
use crate::problem::{AttentionProblem, KvLayout};

const DECODE: Decode = Decode { name: "split_kv", source: source!("split_kv.cu") };

/// The kernel.
pub struct SplitKv;

impl CudaKernel for SplitKv {
    fn name(&self) -> &'static str {
        DECODE.name
    }

    fn summary(&self) -> &'static str {
        "keys of a head split over blocks, query heads of a group packed into rows (Flash-Decoding, Dao et al. 2023)"
    }

    fn supports(&self, problem: &AttentionProblem) -> Result<(), KernelError> {
        DECODE.supports(problem)?;
        if problem.kv_layout != KvLayout::Contiguous {
            return Err(KernelError::Unsupported(
                "a paged KV layout: split_kv reads contiguous keys and values (paged does not)".into(),
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
