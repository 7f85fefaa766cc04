//! Flash-decoding over a contiguous cache (Dao, Haziza, Massa and Sizov 2023): the keys of a sequence are split over
//! threads and every KV head is read once for its whole query group. The algorithm, its block sizes and its limits are in
//! `decode.rs`, which `paged` shares.

use super::decode::{self, DecodePlan};
use super::simd::Isa;
use crate::kernel::{Kernel, KernelError, Plan, PlanContext};
use crate::problem::{AttentionProblem, KvLayout};

/// The kernel; `isa` is the widest of the machine unless given.
pub struct SplitKv {
    /// Instruction set to use.
    pub isa: Option<Isa>,
}

impl Kernel for SplitKv {
    fn name(&self) -> &'static str {
        "split_kv"
    }

    fn summary(&self) -> &'static str {
        "Flash-decoding (Dao et al. 2023): keys split over threads, a query group reads its KV head once"
    }

    fn supports(&self, problem: &AttentionProblem) -> Result<(), KernelError> {
        decode::supports(self.name(), problem)?;
        if let KvLayout::Paged { .. } = problem.kv_layout {
            return Err(KernelError::Unsupported(
                "split_kv reads contiguous keys and values, not pages (paged does)".into(),
            ));
        }
        Ok(())
    }

    fn plan(&self, context: &PlanContext<'_>) -> Result<Box<dyn Plan>, KernelError> {
        self.supports(context.problem)?;
        Ok(Box::new(DecodePlan::new(self.isa.unwrap_or_else(Isa::best), context)?))
    }
}
