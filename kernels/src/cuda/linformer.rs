//! Linformer (Wang et al. 2020): the projections of `kernels/cuda/linformer.cu`, then `flash` over what is left.

use super::geometry::{Bytes, Geometry, TensorRows};
use super::plan::{Argument, CudaPlan, DeviceFacts, Launch, Module, grid_of};
use super::source::source;
use super::tensor_core::{self, DTYPES, compiled_dims, element};
use super::{CudaKernel, Source, flash};
use crate::kernel::KernelError;
use crate::problem::{AttentionProblem, Dtype, KvLayout, Mechanism, Pattern, Phase};
use crate::tensor::TensorName;

const SOURCE: Source = source!("linformer.cu");

/// Rows and columns of a projection that a block computes.
const TILE: usize = 64;
/// Threads of a block, and its shared memory: two steps of 16 x 64 f32 with four f32 of padding a row.
const THREADS: u32 = 256;
const SHARED_BYTES: u32 = 2 * 16 * (64 + 4) * 4;

/// The kernel.
pub struct Linformer;

fn module(dtype: Dtype) -> Module {
    Module { source: SOURCE, defines: vec![("ELEMENT", element(dtype).to_string())] }
}

/// Rows of (sequence, KV head, rank, dim).
fn projected_rows(geometry: &Geometry, rank: usize, dim: usize) -> TensorRows {
    let sequence = geometry.heads_kv * rank * dim;
    let starts = (0..geometry.batch()).map(|number| number * sequence).collect();
    TensorRows { strides: [sequence, rank * dim, dim], starts }
}

impl CudaKernel for Linformer {
    fn name(&self) -> &'static str {
        "linformer"
    }

    fn summary(&self) -> &'static str {
        "low-rank attention: K and V projected to a fixed number of rows (Wang et al. 2020)"
    }

    fn supports(&self, problem: &AttentionProblem) -> Result<(), KernelError> {
        let unsupported = |text: String| Err(KernelError::Unsupported(text));
        if !matches!(problem.mechanism, Mechanism::Linformer { .. }) {
            return unsupported(format!("mechanism {}: linformer computes linformer only", problem.mechanism.name()));
        }
        if problem.phase != Phase::Prefill || problem.pattern != Pattern::Full || problem.causal {
            return unsupported("anything but full prefill: linformer mixes all keys".into());
        }
        if problem.kv_layout != KvLayout::Contiguous || problem.softcap.is_some() {
            return unsupported("a paged KV layout or a softcap: linformer has neither".into());
        }
        tensor_core::supports("linformer", problem)?;
        tensor_core::is_plain("linformer", problem)?;
        if compiled_dims(problem.head_dim_qk, problem.head_dim_v).is_none() {
            let (dim_qk, dim_v) = (problem.head_dim_qk, problem.head_dim_v);
            return unsupported(format!("head dimensions {dim_qk}:{dim_v}: linformer has up to 256:256"));
        }
        Ok(())
    }

    fn plan(&self, problem: &AttentionProblem, device: &DeviceFacts) -> Result<CudaPlan, KernelError> {
        self.supports(problem)?;
        device.require_capability("linformer", 80)?;
        let Mechanism::Linformer { rank } = problem.mechanism else {
            unreachable!("supports() refuses other mechanisms")
        };
        let mut geometry = Geometry::new(problem);
        let mut plan = CudaPlan::default();
        let module = plan.module(module(problem.dtype));
        let heads = geometry.heads_kv * geometry.batch();
        let sides = [
            (TensorName::K, TensorName::ProjectionK, geometry.k.clone(), geometry.dim_qk),
            (TensorName::V, TensorName::ProjectionV, geometry.v.clone(), geometry.dim_v),
        ];
        let mut projected = Vec::new();
        for (from, projection, rows, dim) in sides {
            let to = plan.workspace((heads * rank * dim * problem.dtype.bytes()) as u64);
            let mut strides = Bytes::default();
            rows.strides.iter().for_each(|&stride| {
                strides.i64(stride);
            });
            plan.launches.push(Launch {
                module,
                entry: "linformer_project",
                grid: grid_of("linformer", &[dim.div_ceil(TILE), rank.div_ceil(TILE), heads])?,
                block: [THREADS, 1, 1],
                shared_bytes: SHARED_BYTES,
                arguments: vec![
                    Argument::Tensor(from),
                    Argument::Tensor(projection),
                    Argument::Bytes(strides.take()),
                    geometry.argument(),
                    Argument::I32(dim as i32),
                    Argument::I32(rank as i32),
                    to.clone(),
                ],
            });
            projected.push(to);
        }
        geometry.k = projected_rows(&geometry, rank, geometry.dim_qk);
        geometry.v = projected_rows(&geometry, rank, geometry.dim_v);
        geometry.lengths_kv.fill(rank);
        geometry.query_offsets.fill(0);
        let [k, v] = <[Argument; 2]>::try_from(projected).expect("two sides");
        flash::push(&mut plan, "linformer", &geometry, problem, [k, v], device)?;
        Ok(plan)
    }

    fn modules(&self) -> Vec<Module> {
        let mut modules: Vec<Module> = DTYPES.into_iter().map(module).collect();
        modules.extend(flash::modules());
        modules
    }
}
