//! Linear attention: prefill on tensor cores (`kernels/cuda/linear_chunks.cu`), decode with the state in registers
//! (`kernels/cuda/linear_decode.cu`), and everything else (`kernels/cuda/linear.cu`).

mod chunks;
#[cfg(test)]
mod tests;

use super::geometry::{Bytes, Geometry};
use super::plan::{Argument, CudaPlan, DeviceFacts, Launch, Module, grid_of};
use super::source::source;
use super::tensor_core::element;
use super::tiles::{TileClass, Tiles};
use super::{CudaKernel, Source};
use crate::kernel::KernelError;
use crate::problem::{AttentionProblem, Bias, Dtype, FeatureMap, KvLayout, Mechanism, Pattern, Phase};
use crate::tensor::TensorName;

const SOURCE: Source = source!("linear.cu");

/// Positions a chunk.
const CHUNK: usize = 32;
/// Columns of V and of the state that a block has.
const COLUMNS: usize = 32;
/// Threads a block.
const THREADS: usize = 128;

/// Head dimensions d_qk that decode is compiled for, with the state in registers.
const DECODE_DIMS: [usize; 3] = [64, 128, 256];

/// The kernel.
pub struct Linear;

fn decode_module(dim: usize, dtype: Dtype) -> Module {
    let defines = vec![("ELEMENT", element(dtype).to_string()), ("DIM_QK", dim.to_string())];
    Module { source: source!("linear_decode.cu"), defines }
}

fn module(dtype: Dtype) -> Module {
    Module { source: SOURCE, defines: vec![("ELEMENT", element(dtype).to_string())] }
}

/// `Mechanism` of `linear.cu`.
fn mechanism(feature_map: FeatureMap, normalised: bool) -> Argument {
    let number = FeatureMap::ALL.iter().position(|&map| map == feature_map).expect("every map is listed");
    let mut bytes = Bytes::default();
    bytes.i32(number as i32).i32(i32::from(normalised));
    Argument::Bytes(bytes.take())
}

impl CudaKernel for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn summary(&self) -> &'static str {
        "linear attention: chunked prefill, recurrent decode with a constant state (Katharopoulos et al. 2020)"
    }

    fn supports(&self, problem: &AttentionProblem) -> Result<(), KernelError> {
        let unsupported = |text: String| Err(KernelError::Unsupported(text));
        if !matches!(problem.mechanism, Mechanism::Linear { .. }) {
            return unsupported(format!(
                "mechanism {}: linear computes linear attention only",
                problem.mechanism.name()
            ));
        }
        if !matches!(problem.phase, Phase::Prefill | Phase::Decode) {
            return unsupported(format!("phase {}: linear has prefill and decode", problem.phase.name()));
        }
        if problem.pattern != Pattern::Full {
            return unsupported(format!("pattern {}: linear has full, causal or not", problem.pattern.name()));
        }
        if problem.kv_layout != KvLayout::Contiguous || problem.dtype_kv != problem.dtype {
            return unsupported(
                "paged keys, or keys in another dtype than queries: linear reads contiguous, equal ones".into(),
            );
        }
        if problem.bias != Bias::None || problem.softcap.is_some() || problem.sinks {
            return unsupported(
                "a bias, softcap or sinks: linear attention has no scores that they could change".into(),
            );
        }
        Ok(())
    }

    fn plan(&self, problem: &AttentionProblem, device: &DeviceFacts) -> Result<CudaPlan, KernelError> {
        self.supports(problem)?;
        device.require_capability("linear", 80)?;
        let Mechanism::Linear { feature_map, normalised } = problem.mechanism else {
            unreachable!("supports() refuses other mechanisms")
        };
        let geometry = Geometry::new(problem);
        let dim = geometry.dim_qk;
        let is_recurrent = problem.is_recurrent();
        if let Some(class) = chunks::class_of(problem) {
            let shape = chunks::Shape::new(problem, class.taken());
            if shape.is_some_and(|shape| shape.shared_bytes() <= device.shared_bytes_per_block) {
                return self.plan_tiles(problem, device, class.taken());
            }
        }
        // Whole 16 bytes of a row of the state, and as many of its rows as the registers hold.
        let wide =
            DECODE_DIMS.into_iter().find(|&wide| is_recurrent && dim <= wide && geometry.dim_v.is_multiple_of(4));
        let shared_bytes = if wide.is_some() {
            // A sum a column and a divisor of each warp.
            4 * (THREADS / 32) * (COLUMNS + 1)
        } else if is_recurrent {
            // The state, the normaliser, a key, a sum a thread, a denominator a warp.
            4 * (dim * COLUMNS + 2 * dim + THREADS + THREADS / 32)
        } else {
            // Keys, queries, values, the state, the normaliser.
            4 * (2 * CHUNK * (dim + 1) + CHUNK * COLUMNS + dim * COLUMNS + dim)
        } as u32;
        device.require_shared("linear", shared_bytes)?;
        let mut plan = CudaPlan::default();
        let module = plan.module(wide.map_or_else(|| module(problem.dtype), |wide| decode_module(wide, problem.dtype)));
        let sequences = geometry.sequences(&mut plan);
        let mut arguments = vec![
            Argument::Tensor(TensorName::Q),
            Argument::Tensor(TensorName::K),
            Argument::Tensor(TensorName::V),
            Argument::Tensor(TensorName::O),
            sequences,
            geometry.argument(),
            mechanism(feature_map, normalised),
        ];
        if is_recurrent {
            let normaliser = |name| if normalised { Argument::Tensor(name) } else { Argument::Null };
            arguments.extend([
                Argument::Tensor(TensorName::StateIn),
                normaliser(TensorName::NormaliserIn),
                Argument::Tensor(TensorName::StateOut),
                normaliser(TensorName::NormaliserOut),
            ]);
        } else {
            arguments.push(Argument::I32(i32::from(problem.causal)));
        }
        plan.launches.push(Launch {
            module,
            entry: match (wide, is_recurrent) {
                (Some(_), _) => "linear_decode_wide",
                (None, true) => "linear_decode",
                (None, false) => "linear_prefill",
            },
            grid: grid_of("linear", &[geometry.dim_v.div_ceil(COLUMNS), geometry.heads_kv, geometry.batch()])?,
            block: [THREADS as u32, 1, 1],
            shared_bytes,
            arguments,
        });
        Ok(plan)
    }

    fn tile_classes(&self) -> Vec<&'static TileClass> {
        chunks::CLASSES.iter().collect()
    }

    fn tile_class(&self, problem: &AttentionProblem) -> Option<&'static TileClass> {
        chunks::class_of(problem)
    }

    fn plan_tiles(
        &self,
        problem: &AttentionProblem,
        device: &DeviceFacts,
        tiles: Tiles,
    ) -> Result<CudaPlan, KernelError> {
        device.require_capability("linear", 80)?;
        let Mechanism::Linear { feature_map, normalised } = problem.mechanism else {
            unreachable!("supports() refuses other mechanisms")
        };
        let shape = chunks::Shape::new(problem, tiles).expect("a problem that has a class");
        let mechanism = mechanism(feature_map, normalised);
        chunks::plan(&shape, problem, &Geometry::new(problem), mechanism, normalised, device)
    }

    fn modules(&self) -> Vec<Module> {
        let decode = Dtype::ALL.into_iter().flat_map(|dtype| DECODE_DIMS.map(|dim| decode_module(dim, dtype)));
        Dtype::ALL.into_iter().map(module).chain(decode).chain(chunks::modules()).collect()
    }
}
