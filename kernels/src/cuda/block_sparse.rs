//! Softmax attention over lists of key tiles: `kernels/cuda/block_sparse.cu`.

mod lists;
mod rows;
mod schedule;
mod shape;
#[cfg(test)]
mod tests;

use self::schedule::{Heads, Piece, Schedule};
use self::shape::Shape;
use super::geometry::{Bytes, Geometry};
use super::plan::{Argument, CudaPlan, DeviceFacts, Launch, Module, grid_of};
use super::source::source;
use super::tensor_core::{self, DIMS, DTYPES, compiled_dims};
use super::tiles::{TileClass, Tiles};
use super::{CudaKernel, Source};
use crate::kernel::KernelError;
use crate::pattern::Visibility;
use crate::problem::{AttentionProblem, Dtype, KvLayout, Mechanism, Phase};
use crate::tensor::TensorName;

const SOURCE: Source = source!("block_sparse.cu");

/// The kernel.
pub struct BlockSparse;

fn module(shape: &Shape, dtype: Dtype) -> Module {
    let Shape { dims: (dim_qk, dim_v), rows, keys, warps, .. } = *shape;
    let numbers = [("DIM_QK", dim_qk), ("DIM_V", dim_v), ("ROWS", rows), ("KEYS", keys), ("WARPS", warps)];
    tensor_core::module(SOURCE, dtype, &numbers, None)
}

/// The class of a supported problem.
fn class_of(problem: &AttentionProblem) -> &'static TileClass {
    let dims = compiled_dims(problem.head_dim_qk, problem.head_dim_v).expect("supports() has checked");
    shape::class_of(dims, problem.pattern)
}

/// The cheapest schedule of a problem on a device, among those that these tiles allow.
fn schedule(
    problem: &AttentionProblem,
    geometry: &Geometry,
    device: &DeviceFacts,
    tiles: Tiles,
) -> Result<Schedule, KernelError> {
    let dims = compiled_dims(geometry.dim_qk, geometry.dim_v).expect("supports() has checked");
    let mut shapes = Shape::of(dims, tiles);
    let smallest = shapes.iter().map(Shape::shared_bytes).min().unwrap_or(0);
    device.require_shared("block_sparse", smallest)?;
    shapes.retain(|shape| shape.shared_bytes() <= device.shared_bytes_per_block);
    let lengths = geometry.lengths_q.iter().zip(&geometry.lengths_kv);
    let visibilities = lengths.map(|(&len_q, &len_kv)| Visibility::new(problem, len_q, len_kv)).collect();
    let heads = Heads { problem, visibilities };
    let multiprocessors = device.multiprocessors as usize;
    let (way, shape) = heads.choose(&shapes, multiprocessors);
    Ok(heads.schedule(way, shape, multiprocessors))
}

/// A table of `Work`.
fn work(pieces: &[Piece]) -> Result<Vec<u8>, KernelError> {
    let mut bytes = Bytes::default();
    for piece in pieces {
        let last = piece.slot + piece.pieces.unsigned_abs() as usize * piece.slot_piece;
        if i32::try_from(last).is_err() {
            return Err(KernelError::Unsupported(
                "a problem of this size: block_sparse would keep the sums of 2^31 rows".into(),
            ));
        }
        let first =
            [piece.sequence, piece.head, piece.first, piece.step, piece.count, piece.runs.start, piece.runs.end];
        first.into_iter().for_each(|number| {
            bytes.i32(number as i32);
        });
        bytes.i32(piece.pieces);
        [piece.slot, piece.slot_step, piece.slot_head, piece.slot_piece].into_iter().for_each(|number| {
            bytes.i32(number as i32);
        });
    }
    Ok(bytes.take())
}

impl CudaKernel for BlockSparse {
    fn name(&self) -> &'static str {
        "block_sparse"
    }

    fn summary(&self) -> &'static str {
        "online softmax over the visible key tiles of any pattern (Child et al. 2019; Zaheer et al. 2020)"
    }

    fn supports(&self, problem: &AttentionProblem) -> Result<(), KernelError> {
        let unsupported = |text: String| Err(KernelError::Unsupported(text));
        if problem.mechanism != Mechanism::Softmax {
            return unsupported(format!("mechanism {}: block_sparse computes softmax only", problem.mechanism.name()));
        }
        if problem.phase == Phase::Backward {
            return unsupported("phase backward: block_sparse computes forward phases only".into());
        }
        if problem.kv_layout != KvLayout::Contiguous {
            return unsupported("a paged KV layout: block_sparse reads contiguous keys and values".into());
        }
        tensor_core::supports("block_sparse", problem)?;
        tensor_core::is_plain("block_sparse", problem)?;
        if compiled_dims(problem.head_dim_qk, problem.head_dim_v).is_none() {
            let (dim_qk, dim_v) = (problem.head_dim_qk, problem.head_dim_v);
            return unsupported(format!("head dimensions {dim_qk}:{dim_v}: block_sparse has up to 256:256"));
        }
        Ok(())
    }

    fn plan(&self, problem: &AttentionProblem, device: &DeviceFacts) -> Result<CudaPlan, KernelError> {
        self.supports(problem)?;
        self.plan_tiles(problem, device, class_of(problem).taken())
    }

    fn tile_classes(&self) -> Vec<&'static TileClass> {
        shape::CLASSES.iter().collect()
    }

    fn tile_class(&self, problem: &AttentionProblem) -> Option<&'static TileClass> {
        Some(class_of(problem))
    }

    fn plan_tiles(
        &self,
        problem: &AttentionProblem,
        device: &DeviceFacts,
        tiles: Tiles,
    ) -> Result<CudaPlan, KernelError> {
        device.require_capability("block_sparse", 80)?;
        let geometry = Geometry::new(problem);
        let schedule = schedule(problem, &geometry, device, tiles)?;
        let shape = schedule.shape;
        let mut plan = CudaPlan::default();
        let module = plan.module(module(&shape, problem.dtype));
        let sequences = geometry.sequences(&mut plan);
        let (mut runs, mut gathered, mut masks) = (Bytes::default(), Bytes::default(), Bytes::default());
        for run in &schedule.runs {
            let mask = run.mask.map_or(-1, |mask| mask as i32);
            runs.i32(run.key as i32).i32(run.step as i32).i32(run.count as i32).i32(mask);
        }
        schedule.pool.gathered.iter().for_each(|&key| {
            gathered.i32(key);
        });
        schedule.pool.masks.iter().for_each(|&word| {
            masks.i32(word as i32);
        });
        let lists = [runs, gathered, masks].map(|mut bytes| plan.table(bytes.take()));
        let slots = schedule.slots as u64;
        let sums = [4 * slots * shape.dims.1 as u64, 4 * slots, 4 * slots]
            .map(|bytes| if slots == 0 { Argument::Null } else { plan.workspace(bytes) });
        for pieces in &schedule.launches {
            let mut arguments = vec![
                Argument::Tensor(TensorName::Q),
                Argument::Tensor(TensorName::K),
                Argument::Tensor(TensorName::V),
                Argument::Tensor(TensorName::O),
                Argument::OptionalTensor(TensorName::Lse),
                sequences.clone(),
                geometry.argument(),
                plan.table(work(pieces)?),
            ];
            arguments.extend(lists.clone());
            arguments.push(Argument::I32(shape.cut().rows as i32));
            arguments.extend(sums.clone());
            plan.launches.push(Launch {
                module,
                entry: "block_sparse",
                grid: grid_of("block_sparse", &[pieces.len()])?,
                block: [32 * shape.warps as u32, 1, 1],
                shared_bytes: shape.shared_bytes(),
                arguments,
            });
        }
        Ok(plan)
    }

    fn modules(&self) -> Vec<Module> {
        let mut modules = Vec::new();
        for dims in DIMS {
            let taken = shape::classes_of(dims).map(TileClass::taken);
            let shapes = taken.flat_map(|tiles| Shape::of(dims, tiles));
            for shape in &shapes.filter(|shape| shape.packed == 1).collect::<Vec<_>>() {
                modules.extend(DTYPES.map(|dtype| module(shape, dtype)));
            }
        }
        modules
    }
}
