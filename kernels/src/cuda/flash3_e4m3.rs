//! FlashAttention-3's forward with both products in e4m3: `kernels/cuda/flash3_e4m3.cu`.
//!
//! Inputs are a problem's of 16 bits. They are quantised within the call, so that whatever is computed from their values is timed.

use super::flash3::{CAPABILITY, Shape, supports_forward};
use super::geometry::{Bytes, Geometry};
use super::plan::{Argument, CudaPlan, DeviceFacts, Launch, Module, grid_of};
use super::schedule::{self, Cut};
use super::source::source;
use super::tensor_core::{self, DTYPES, Variant};
use super::{CudaKernel, Source};
use crate::kernel::KernelError;
use crate::problem::{AttentionProblem, Dtype, Phase};
use crate::tensor::TensorName;

const NAME: &str = "flash3_e4m3";
const SOURCE: Source = source!("flash3_e4m3.cu");

/// How blocks are cut. Others are computed in the first that holds them.
const SHAPES: [Shape; 4] = [
    Shape { dims: (64, 64), rows: 128, keys: 128, slots: 3 },
    Shape { dims: (128, 128), rows: 128, keys: 128, slots: 3 },
    Shape { dims: (192, 128), rows: 128, keys: 128, slots: 3 },
    Shape { dims: (256, 256), rows: 128, keys: 64, slots: 3 },
];
/// Threads of a block that quantises.
const QUANTISE_THREADS: u32 = 256;
/// Keys after which the output leaves its accumulators for memory: `PROMOTED` tiles of the source.
const PROMOTED_KEYS: usize = 8192;
/// Bytes of `KeyScales` of the source.
const SCALES_BYTES: usize = 16;

/// The kernel.
pub struct Flash3E4m3;

/// `Storage` of the source.
fn shared_bytes(shape: &Shape) -> u32 {
    let Shape { dims: (dim_qk, dim_v), slots, .. } = *shape;
    let barriers = 16 + 2 * slots * 16;
    (shape.rows * dim_qk + slots * (shape.keys * (dim_qk + dim_v) + SCALES_BYTES) + barriers) as u32
}

/// Shared memory of a block that quantises: an image of values, and a word a warp.
fn quantise_shared_bytes(shape: &Shape) -> u32 {
    (shape.keys * shape.dims.1) as u32 + QUANTISE_THREADS / 32 * 4
}

/// Tiles of keys of the sequences before each: where a sequence's images begin, an image a head and tile.
fn first_tiles(geometry: &Geometry, keys: usize) -> Vec<usize> {
    let mut first = vec![0];
    for &length in &geometry.lengths_kv {
        first.push(first.last().expect("it has one") + length.div_ceil(keys));
    }
    first
}

impl CudaKernel for Flash3E4m3 {
    fn name(&self) -> &'static str {
        NAME
    }

    fn summary(&self) -> &'static str {
        "flash3 with products in e4m3: 16-bit inputs quantised by rows and tiles within the call (FlashAttention-3, section 3.3)"
    }

    fn supports(&self, problem: &AttentionProblem) -> Result<(), KernelError> {
        tensor_core::has_contiguous_band(NAME, problem)?;
        tensor_core::supports(NAME, problem)?;
        if problem.phase == Phase::Backward {
            return Err(KernelError::Unsupported(format!(
                "gradients: {NAME} is a forward (flash3 and flash have both)"
            )));
        }
        supports_forward(NAME, problem)
    }

    fn plan(&self, problem: &AttentionProblem, device: &DeviceFacts) -> Result<CudaPlan, KernelError> {
        self.supports(problem)?;
        device.require_exactly(NAME, CAPABILITY)?;
        let geometry = Geometry::new(problem);
        let holds = |shape: &Shape| geometry.dim_qk <= shape.dims.0 && geometry.dim_v <= shape.dims.1;
        let shape = SHAPES.into_iter().find(holds).expect("supports() has checked");
        device.require_shared(NAME, shared_bytes(&shape))?;
        let packed = schedule::packed_heads(&geometry, shape.rows);
        let works = schedule::works(NAME, &geometry, Cut { rows: shape.rows, packed, keys: shape.keys })?;
        let blocks = works.len().min(device.multiprocessors as usize);
        let longest_tiles = geometry.longest_kv().div_ceil(shape.keys);
        let key_blocks = 2 * geometry.batch() * geometry.heads_kv;
        // One product, so that its limit is that of both.
        let [quantising, ..] = grid_of(NAME, &[1, works.len() + key_blocks * longest_tiles])?;

        let mut plan = CudaPlan::default();
        let module = plan.module(shape.module(SOURCE, problem.dtype, Variant::of(problem)));
        let sequences = geometry.sequences(&mut plan);
        let [work_table, starts] = schedule::push(&mut plan, &schedule::deal(&works, blocks));
        let first = first_tiles(&geometry, shape.keys);
        let key_tiles = first.last().expect("one more than sequences") * geometry.heads_kv;
        let mut bytes = Bytes::default();
        first.iter().for_each(|&tiles| {
            bytes.i32(tiles as i32);
        });
        let first_tiles = plan.table(bytes.take());
        let (dim_qk, dim_v) = shape.dims;
        let [q_images, q_scales, k_images, v_images, key_scales] = [
            works.len() * shape.rows * dim_qk,
            works.len() * shape.rows * 4,
            key_tiles * shape.keys * dim_qk,
            key_tiles * shape.keys * dim_v,
            key_tiles * SCALES_BYTES,
        ]
        .map(|bytes| plan.workspace(bytes as u64));
        let pack = Argument::I32(packed.ilog2() as i32);
        // O of every block in f32 and a unit a row and thread, where any row may see so many keys.
        let kept = match longest_tiles > PROMOTED_KEYS / shape.keys {
            true => plan.workspace((blocks * shape.rows * 2 * (dim_v / 2 + 2) * 4) as u64),
            false => Argument::Null,
        };
        plan.launches.push(Launch {
            module,
            entry: "quantise",
            grid: [quantising, 1, 1],
            block: [QUANTISE_THREADS, 1, 1],
            shared_bytes: quantise_shared_bytes(&shape),
            arguments: vec![
                Argument::Tensor(TensorName::Q),
                Argument::Tensor(TensorName::K),
                Argument::Tensor(TensorName::V),
                q_images.clone(),
                q_scales.clone(),
                k_images.clone(),
                v_images.clone(),
                key_scales.clone(),
                sequences.clone(),
                geometry.argument(),
                work_table.clone(),
                Argument::I32(works.len() as i32),
                first_tiles.clone(),
                Argument::I32(longest_tiles as i32),
                pack.clone(),
            ],
        });
        plan.launches.push(Launch {
            module,
            entry: "flash3_e4m3",
            grid: [blocks as u32, 1, 1],
            block: [shape.threads(), 1, 1],
            shared_bytes: shared_bytes(&shape),
            arguments: vec![
                q_images,
                q_scales,
                k_images,
                v_images,
                key_scales,
                Argument::Tensor(TensorName::O),
                Argument::OptionalTensor(TensorName::Lse),
                tensor_core::sinks(problem),
                sequences,
                geometry.argument(),
                work_table,
                starts,
                first_tiles,
                pack,
                kept,
            ],
        });
        Ok(plan)
    }

    fn is_for(&self, compute_capability: u32) -> bool {
        compute_capability == CAPABILITY
    }

    fn multiplies_in(&self, _problem: &AttentionProblem) -> Dtype {
        Dtype::E4m3
    }

    fn modules(&self) -> Vec<Module> {
        let mut modules = Vec::new();
        for shape in SHAPES {
            for dtype in DTYPES {
                let variants = [Variant::Plain, Variant::Capped];
                modules.extend(variants.map(|variant| shape.module(SOURCE, dtype, variant)));
            }
        }
        modules
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Lengths;

    #[test]
    fn every_shape_fits_a_block() {
        for shape in SHAPES {
            assert!(shared_bytes(&shape) <= DeviceFacts::H200.shared_bytes_per_block, "{shape:?}");
            // No attribute is needed to launch it.
            assert!(quantise_shared_bytes(&shape) <= 48 << 10, "{shape:?}");
        }
    }

    #[test]
    fn workspaces_hold_a_byte_an_element_of_whole_tiles() {
        let mut problem = AttentionProblem::softmax(Phase::Prefill, Dtype::Bf16, 2, (4, 2), (0, 0), 128);
        (problem.seqlen_q, problem.seqlen_kv) = (Lengths::List(vec![200, 1]), Lengths::List(vec![300, 0]));
        let plan = Flash3E4m3.plan(&problem, &DeviceFacts::H200).expect("a plan");
        // Two tiles of queries of four heads and one of four; three tiles of keys of two heads.
        let (rows, tiles) = (12 * 128, 6);
        assert_eq!(plan.workspaces, [rows * 128, rows * 4, tiles * 128 * 128, tiles * 128 * 128, tiles * 16]);
        assert_eq!(plan.launches[0].grid, [(12 + 2 * 2 * 2 * 3) as u32, 1, 1]);
    }

    #[test]
    fn what_it_does_not_compute_is_named() {
        let problem = AttentionProblem::softmax(Phase::Backward, Dtype::Bf16, 1, (1, 1), (128, 128), 64);
        let error = Flash3E4m3.supports(&problem).expect_err("a forward").to_string();
        assert!(error.contains("gradients") && error.contains("flash3"), "{error}");
        let problem = AttentionProblem::softmax(Phase::Prefill, Dtype::F32, 1, (1, 1), (128, 128), 64);
        assert!(Flash3E4m3.supports(&problem).is_err());
    }
}
