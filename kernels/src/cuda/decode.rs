//! What `split_kv` and `paged` share: `kernels/cuda/decode.cuh`.

use super::Source;
use super::geometry::Geometry;
use super::plan::{Argument, CudaPlan, DeviceFacts, Launch, Module, grid_of};
use super::shares::{Shares, share_out};
use super::tensor_core::{self, DTYPES, Variant, element};
use crate::kernel::KernelError;
use crate::problem::{AttentionProblem, Dtype, KvLayout, Mechanism, Pattern, Phase};
use crate::tensor::TensorName;

/// Keys of a step.
const STEP: usize = 16;
/// Warps of a block.
const WARPS: usize = 4;
/// Rows of a block (query heads of a group times queries) that it is compiled for.
const ROWS: [usize; 3] = [16, 32, 64];

/// How blocks are cut for some head dimensions and bytes of a stored key element.
struct Cut {
    dims: (usize, usize),
    kv_bytes: usize,
    /// Tiles of K and V in the ring of each warp that works alone; warps that share rows share their rings too.
    stages: usize,
    /// Most rows of a warp: its outputs stay in registers.
    warp_rows: usize,
    /// Blocks a multiprocessor, with 16 rows and with more: what registers and 227 KiB of shared memory allow.
    blocks: (usize, usize),
}

const fn cut(dims: (usize, usize), kv_bytes: usize, stages: usize, warp_rows: usize, blocks: (usize, usize)) -> Cut {
    Cut { dims, kv_bytes, stages, warp_rows, blocks }
}

/// The table of all cuts. Narrower heads take the next one: columns that a head lacks are not read, and products are not what
/// limits decode. A multiprocessor streams at 4.3 TB/s / 132 with a latency of some 700 ns, so 23 KiB have to be in
/// flight there; `4 * (stages - 1) * 16 keys` a block are: the last column, in KiB a multiprocessor at 16 rows.
#[rustfmt::skip]
const CUTS: [Cut; 8] = [
    cut((64, 64), 2, 4, 32, (3, 2)),   // 144
    cut((128, 128), 2, 3, 32, (2, 2)), // 128
    cut((192, 128), 2, 2, 32, (2, 2)), // 80
    cut((256, 256), 2, 2, 16, (1, 1)), // 64
    cut((64, 64), 1, 4, 32, (3, 2)),   // 72
    cut((128, 128), 1, 4, 16, (2, 2)), // 96
    cut((192, 128), 1, 4, 16, (2, 2)), // 120
    cut((256, 256), 1, 3, 16, (2, 1)), // 128
];

/// A kernel of this family: its name is that of its entry.
pub(super) struct Decode {
    pub(super) name: &'static str,
    pub(super) source: Source,
}

/// One way in which blocks are cut.
struct Shape {
    cut: &'static Cut,
    rows: usize,
}

impl Shape {
    /// The smallest cut that holds these head dimensions, for `rows` packed rows or as many of them as a block takes.
    fn of(dims: (usize, usize), kv_bytes: usize, rows: usize) -> Option<Shape> {
        let holds = |cut: &&Cut| cut.kv_bytes == kv_bytes && dims.0 <= cut.dims.0 && dims.1 <= cut.dims.1;
        let rows = ROWS.into_iter().find(|&most| rows <= most).unwrap_or(ROWS[ROWS.len() - 1]);
        CUTS.iter().find(holds).map(|cut| Shape { cut, rows })
    }

    fn row_warps(&self) -> usize {
        self.rows.div_ceil(self.cut.warp_rows)
    }

    /// Tiles of K and V in a ring: warps that share one have all their stages in it.
    fn stages(&self) -> usize {
        self.cut.stages * self.row_warps()
    }

    /// Q and the rings; at the end, the results of each set of warps in f32, with two numbers a row.
    fn shared_bytes(&self) -> u32 {
        let (dim_qk, dim_v) = self.cut.dims;
        let rings = WARPS * self.cut.stages * STEP * (dim_qk + dim_v) * self.cut.kv_bytes;
        let results = WARPS / self.row_warps() * self.rows * (4 * (dim_v + 8) + 8);
        (2 * self.rows * dim_qk + rings).max(results) as u32
    }

    fn blocks(&self) -> usize {
        if self.rows == ROWS[0] { self.cut.blocks.0 } else { self.cut.blocks.1 }
    }

    /// Blocks that run at a time.
    fn places(&self, device: &DeviceFacts) -> usize {
        device.multiprocessors as usize * blocks_in_shared(device, self.shared_bytes()).min(self.blocks())
    }
}

/// Blocks of a multiprocessor that its shared memory has room for: each takes 1 KiB besides, and there is 1 KiB more than a
/// block may have.
fn blocks_in_shared(device: &DeviceFacts, shared_bytes: u32) -> usize {
    ((device.shared_bytes_per_block + 1024) / (shared_bytes + 1024)).max(1) as usize
}

impl Decode {
    /// Whether the kernel computes this problem, but for where the keys are.
    pub(super) fn supports(&self, problem: &AttentionProblem) -> Result<(), KernelError> {
        let name = self.name;
        let unsupported = |text: String| Err(KernelError::Unsupported(text));
        if problem.mechanism != Mechanism::Softmax {
            return unsupported(format!("mechanism {}: {name} computes softmax only", problem.mechanism.name()));
        }
        if problem.phase == Phase::Backward {
            return unsupported(format!("phase backward: {name} computes forward phases only"));
        }
        if !matches!(problem.pattern, Pattern::Full | Pattern::Window { .. }) {
            return unsupported(format!(
                "pattern {}: {name} has full and window, causal or not",
                problem.pattern.name()
            ));
        }
        // Keys of one byte are widened; else both are multiplied as they are.
        let widened = AttentionProblem { dtype_kv: problem.dtype, ..problem.clone() };
        tensor_core::supports(name, if problem.dtype_kv == Dtype::E4m3 { &widened } else { problem })?;
        let (dim_qk, dim_v) = (problem.head_dim_qk, problem.head_dim_v);
        if Shape::of((dim_qk, dim_v), problem.dtype_kv.bytes(), 1).is_none() {
            return unsupported(format!("head dimensions {dim_qk}:{dim_v}: {name} has up to 256:256"));
        }
        Ok(())
    }

    fn module(&self, shape: &Shape, dtype: Dtype, dtype_kv: Dtype, variant: Variant) -> Module {
        Module {
            source: self.source,
            defines: vec![
                ("ELEMENT", element(dtype).to_string()),
                ("ELEMENT_KV", element(dtype_kv).to_string()),
                ("DIM_QK", shape.cut.dims.0.to_string()),
                ("DIM_V", shape.cut.dims.1.to_string()),
                ("ROWS", shape.rows.to_string()),
                ("ROW_WARPS", shape.row_warps().to_string()),
                ("STAGES", shape.stages().to_string()),
                ("BLOCKS", shape.blocks().to_string()),
                variant.define(),
            ],
        }
    }

    /// Every variant.
    pub(super) fn modules(&self) -> Vec<Module> {
        let mut modules = Vec::new();
        for cut in &CUTS {
            for dtype in DTYPES {
                let dtype_kv = if cut.kv_bytes == 1 { Dtype::E4m3 } else { dtype };
                for variant in Variant::ALL.into_iter().filter(|&variant| has_variant(dtype_kv, variant)) {
                    for rows in rows_of(variant) {
                        modules.push(self.module(&Shape { cut, rows: *rows }, dtype, dtype_kv, variant));
                    }
                }
            }
        }
        modules
    }

    /// The blocks over shares of the keys, and their merge where a tile has more than one share.
    pub(super) fn plan(&self, problem: &AttentionProblem, device: &DeviceFacts) -> Result<CudaPlan, KernelError> {
        let name = self.name;
        device.require_capability(name, 80)?;
        let geometry = Geometry::new(problem);
        let variant = variant_of(problem);
        let packed_rows = geometry.longest_q() * problem.group_size();
        let most_rows = rows_of(variant).last().copied().unwrap_or_default();
        let dims = (geometry.dim_qk, geometry.dim_v);
        let shape = Shape::of(dims, problem.dtype_kv.bytes(), packed_rows.min(most_rows));
        let shape = shape.expect("supports() has checked");
        device.require_shared(name, shape.shared_bytes())?;
        let mut plan = CudaPlan::default();
        let module = plan.module(self.module(&shape, problem.dtype, problem.dtype_kv, variant));
        let sequences = geometry.sequences(&mut plan);
        let shares = share_out(&mut plan, &geometry, shape.rows, shape.places(device));
        let partials = push_partials(&mut plan, &geometry, &shares, shape.rows);
        let [bool_bias, additive_bias] = tensor_core::biases(problem);
        let mut arguments = vec![
            Argument::Tensor(TensorName::Q),
            Argument::Tensor(TensorName::K),
            Argument::Tensor(TensorName::V),
            Argument::Tensor(TensorName::O),
            Argument::OptionalTensor(TensorName::Lse),
            tensor_core::sinks(problem),
            bool_bias,
            additive_bias,
            sequences.clone(),
            shares.table.clone(),
            geometry.argument(),
            partials[0].clone(),
            partials[1].clone(),
            Argument::I32(shares.splits as i32),
        ];
        if problem.kv_layout != KvLayout::Contiguous {
            arguments.push(Argument::Tensor(TensorName::PageTable));
        }
        plan.launches.push(Launch {
            module,
            entry: name,
            grid: grid_of(name, &[shares.items, geometry.heads_kv])?,
            block: [32 * WARPS as u32, 1, 1],
            shared_bytes: shape.shared_bytes(),
            arguments,
        });
        let sinks = tensor_core::sinks(problem);
        push_combine(&mut plan, name, &geometry, module, (&shares, shape.rows), partials, [sinks, sequences])?;
        Ok(plan)
    }
}

/// The rows that blocks of a variant may have: the others than the plain one have the smallest tile alone, and read keys again
/// for each 16 rows.
fn rows_of(variant: Variant) -> &'static [usize] {
    if variant == Variant::Plain { &ROWS } else { &ROWS[..1] }
}

/// Whether there is this variant for keys of a dtype: of one byte, a softcap is the general one's.
fn has_variant(dtype_kv: Dtype, variant: Variant) -> bool {
    dtype_kv != Dtype::E4m3 || variant != Variant::Capped
}

/// The variant that a problem needs: rows of K and V that are no whole 16 bytes are copied by the general one alone.
fn variant_of(problem: &AttentionProblem) -> Variant {
    let is_whole = |dim: usize| (dim * problem.dtype_kv.bytes()).is_multiple_of(16);
    let variant = Variant::of(problem);
    let is_copied = is_whole(problem.head_dim_qk) && is_whole(problem.head_dim_v);
    if is_copied && has_variant(problem.dtype_kv, variant) { variant } else { Variant::General }
}

/// Workspaces of the partial outputs and their log-sum-exps; null where nothing is merged.
pub(super) fn push_partials(
    plan: &mut CudaPlan,
    geometry: &Geometry,
    shares: &Shares,
    rows_a_tile: usize,
) -> [Argument; 2] {
    if shares.merged_tiles == 0 {
        return [Argument::Null, Argument::Null];
    }
    let rows = (shares.slots * geometry.heads_kv * rows_a_tile) as u64;
    let pitch = geometry.dim_v.next_multiple_of(8) as u64;
    [plan.workspace(4 * rows * pitch), plan.workspace(4 * rows)]
}

/// The launch that merges shares, where there are any.
pub(super) fn push_combine(
    plan: &mut CudaPlan,
    kernel: &str,
    geometry: &Geometry,
    module: usize,
    (shares, rows_a_tile): (&Shares, usize),
    [partial_o, partial_lse]: [Argument; 2],
    [sinks, sequences]: [Argument; 2],
) -> Result<(), KernelError> {
    if shares.merged_tiles == 0 {
        return Ok(());
    }
    plan.launches.push(Launch {
        module,
        entry: "combine",
        grid: grid_of(kernel, &[shares.merged_tiles, geometry.heads_kv, rows_a_tile / WARPS])?,
        block: [32 * WARPS as u32, 1, 1],
        shared_bytes: 0,
        arguments: vec![
            partial_o,
            partial_lse,
            Argument::Tensor(TensorName::O),
            Argument::OptionalTensor(TensorName::Lse),
            sinks,
            sequences,
            shares.merged_table.clone(),
            geometry.argument(),
            Argument::I32(shares.splits as i32),
        ],
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_fit_and_keep_enough_bytes_in_flight() {
        for cut in &CUTS {
            for rows in ROWS {
                let shape = Shape { cut, rows };
                let (blocks, (dim_qk, dim_v)) = (shape.blocks(), cut.dims);
                assert!(blocks_in_shared(&DeviceFacts::H200, shape.shared_bytes()) >= blocks, "{:?} {rows}", cut.dims);
                assert!(shape.shared_bytes() <= DeviceFacts::A100.shared_bytes_per_block);
                let stage = STEP * (dim_qk + dim_v) * cut.kv_bytes;
                let in_flight = blocks * WARPS / shape.row_warps() * (shape.stages() - 1) * stage;
                assert!(in_flight >= 2 * (23 << 10), "{:?} of {} bytes, {rows} rows", cut.dims, cut.kv_bytes);
            }
        }
    }

    #[test]
    fn blocks_take_all_rows_that_share_keys_up_to_64() {
        for (rows, expected) in [(1, 16), (16, 16), (17, 32), (33, 64), (64, 64), (200, 64)] {
            assert_eq!(Shape::of((128, 128), 2, rows).map(|shape| shape.rows), Some(expected));
        }
        assert!(Shape::of((257, 64), 2, 1).is_none());
        assert_eq!(Shape::of((96, 96), 1, 1).map(|shape| shape.cut.dims), Some((128, 128)));
    }
}
