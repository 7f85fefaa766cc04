//! Flash-decoding over a paged cache (Kwon et al. 2023, PagedAttention): a page table finds the rows of K and V, of any page
//! size; pages that no token uses and table entries past a sequence's end are never read. Everything else is `decode.rs`,
//! which `split_kv` shares: a block of tokens need not end with a page.

use super::decode::{self, DecodePlan};
use super::simd::Isa;
use crate::kernel::{Kernel, KernelError, Plan, PlanContext};
use crate::problem::{AttentionProblem, KvLayout};

/// The kernel; `isa` is the widest of the machine unless given.
pub struct Paged {
    /// Instruction set to use.
    pub isa: Option<Isa>,
}

impl Kernel for Paged {
    fn name(&self) -> &'static str {
        "paged"
    }

    fn summary(&self) -> &'static str {
        "Flash-decoding over a page table (Kwon et al. 2023), any page size"
    }

    fn supports(&self, problem: &AttentionProblem) -> Result<(), KernelError> {
        decode::supports(self.name(), problem)?;
        if problem.kv_layout == KvLayout::Contiguous {
            return Err(KernelError::Unsupported(
                "paged reads keys and values through a page table, not contiguous ones (split_kv does)".into(),
            ));
        }
        Ok(())
    }

    fn plan(&self, context: &PlanContext<'_>) -> Result<Box<dyn Plan>, KernelError> {
        self.supports(context.problem)?;
        Ok(Box::new(DecodePlan::new(self.isa.unwrap_or_else(Isa::best), context)?))
    }
}
