//! Multi-head latent attention (DeepSeek-V2, section 2.1).
//!
//! **Prefill** works on expanded heads, d_qk = nope + rope and d_v apart (192 and 128): `flash`'s tiles.
//!
//! **Decode** is absorbed: one latent row of latent + rope elements is the key of every head, and its first `latent`
//! elements the value. So it is MQA with a wide head, and `decode.rs` computes it: the heads of all queries of a sequence
//! are the rows of one product, and a block of latent rows is read once for all of them.
//!
//! 2 heads (d_qk + d_v) FLOPs a latent row against its (latent + rope) elements: with 128 heads the limit is the FMA rate,
//! with few the bandwidth.

use super::decode::DecodePlan;
use super::flash::FlashPlan;
use super::simd::Isa;
use crate::kernel::{Kernel, KernelError, Plan, PlanContext};
use crate::problem::{AttentionProblem, Bias, KvLayout, Mechanism, Pattern, Phase};

/// MLA: expanded prefill and absorbed decode; `isa` is the widest of the machine unless given.
pub struct Mla {
    /// Instruction set to use.
    pub isa: Option<Isa>,
}

impl Kernel for Mla {
    fn name(&self) -> &'static str {
        "mla"
    }

    fn summary(&self) -> &'static str {
        "multi-head latent attention: expanded prefill, absorbed decode on the latent cache (DeepSeek-V2)"
    }

    fn supports(&self, problem: &AttentionProblem) -> Result<(), KernelError> {
        let unsupported = |text: String| Err(KernelError::Unsupported(text));
        if !matches!(problem.mechanism, Mechanism::Mla { .. }) {
            return unsupported(format!("mechanism {}: mla computes mla only", problem.mechanism.name()));
        }
        if !matches!(problem.phase, Phase::Prefill | Phase::Decode) {
            return unsupported(format!("phase {}: mla has prefill and decode", problem.phase.name()));
        }
        if problem.pattern != Pattern::Full {
            return unsupported(format!("pattern {}: mla has full, causal or not", problem.pattern.name()));
        }
        if problem.phase == Phase::Prefill && problem.kv_layout != KvLayout::Contiguous {
            return unsupported("a paged KV layout in prefill: mla pages its latent cache in decode".into());
        }
        if problem.bias != Bias::None || problem.sinks {
            return unsupported("a bias or sinks: mla has softcap and causal masks only".into());
        }
        Ok(())
    }

    fn plan(&self, context: &PlanContext<'_>) -> Result<Box<dyn Plan>, KernelError> {
        self.supports(context.problem)?;
        let isa = self.isa.unwrap_or_else(Isa::best);
        if context.problem.is_absorbed_mla() {
            Ok(Box::new(DecodePlan::new(isa, context)?))
        } else {
            Ok(Box::new(FlashPlan::new(isa, context)?))
        }
    }
}
