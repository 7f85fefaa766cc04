//! What `split_kv` and `paged` share: `kernels/cuda/decode.cuh`.

use super::Source;
use super::geometry::Geometry;
use super::plan::{Argument, CudaPlan, DeviceFacts, Launch, Module, grid_of};
use super::shares::{ShareOut, Shares, share_out};
use super::tensor_core::{self, DTYPES, Variant, dims_name, element};
use super::tiles::{self, MOST_REGISTERS, TileClass, Tiles};
use crate::kernel::KernelError;
use crate::problem::{AttentionProblem, Dtype, KvLayout, Mechanism, Pattern, Phase};
use crate::tensor::TensorName;

/// Keys of a step.
const STEP: usize = 16;
/// Warps of a block.
const WARPS: usize = 4;
/// Registers of a multiprocessor.
const REGISTERS: usize = 65536;
/// Rows of a block (query heads of a group times queries) that there are classes for.
const ROWS: [usize; 3] = [16, 32, 64];

/// What a block has: rows, warps that share them, tiles of K and V in the ring of each warp that works alone (those that share rows
/// share their rings too), blocks a multiprocessor, which registers and shared memory bound, and keys that a share may always
/// have.
const SIZES: &[&str] = &["rows", "warps", "stages", "blocks", "share"];

const fn class(name: &'static str, taken: &'static [usize; 5], others: &'static [&'static [usize]]) -> TileClass {
    TileClass::new(name, SIZES, taken, others)
}

/// What each class takes, and what `attnbench tune` measures beside it: by the compiled head dimensions, the dtype of stored keys
/// where that is e4m3, and the rows of a block. Narrower heads take the next one: columns that a head lacks are not read, and
/// products are not what limits decode. A multiprocessor streams at 4.3 TB/s / 132 with a latency of some 700 ns, so 23 KiB
/// have to be in flight there; `4 * (stages - 1) * 16 keys` a block are: 64 to 144 KiB a multiprocessor with what is taken.
#[rustfmt::skip]
pub(super) const CLASSES: &[TileClass] = &[
    class("d64 rows16", &[16, 1, 4, 3, 64], &[&[16, 1, 3, 4, 64], &[16, 1, 6, 2, 64], &[16, 1, 4, 3, 256], &[16, 1, 4, 3, 1024]]),
    class("d64 rows32", &[32, 1, 4, 2, 64], &[&[32, 1, 4, 3, 64], &[16, 1, 4, 3, 64]]),
    class("d64 rows64", &[64, 2, 4, 2, 64], &[&[64, 4, 4, 3, 64], &[32, 1, 4, 3, 64]]),
    class("d128 rows16", &[16, 1, 3, 2, 64], &[
        &[16, 1, 2, 3, 64], &[16, 1, 6, 1, 64], &[16, 1, 3, 2, 256], &[16, 1, 3, 2, 1024]]),
    class("d128 rows32", &[32, 1, 3, 2, 64], &[&[32, 2, 2, 3, 64], &[16, 1, 3, 2, 64]]),
    class("d128 rows64", &[64, 2, 3, 2, 64], &[&[64, 4, 3, 2, 64], &[32, 1, 3, 2, 64]]),
    class("d192:128 rows16", &[16, 1, 2, 2, 64], &[&[16, 1, 4, 1, 64], &[16, 1, 2, 2, 256]]),
    class("d192:128 rows32", &[32, 1, 2, 2, 64], &[]),
    class("d192:128 rows64", &[64, 2, 2, 2, 64], &[]),
    class("d256 rows16", &[16, 1, 2, 1, 64], &[&[16, 1, 3, 1, 64]]),
    class("d256 rows32", &[32, 2, 2, 1, 64], &[]),
    class("d256 rows64", &[64, 4, 2, 1, 64], &[]),
    class("d64 e4m3 rows16", &[16, 1, 4, 3, 64], &[&[16, 1, 8, 3, 64], &[16, 1, 4, 3, 256]]),
    class("d64 e4m3 rows32", &[32, 1, 4, 2, 64], &[]),
    class("d64 e4m3 rows64", &[64, 2, 4, 2, 64], &[]),
    class("d128 e4m3 rows16", &[16, 1, 4, 2, 64], &[
        &[16, 1, 4, 3, 64], &[16, 1, 6, 2, 64], &[16, 1, 4, 2, 256], &[16, 1, 4, 2, 1024]]),
    class("d128 e4m3 rows32", &[32, 2, 4, 2, 64], &[&[32, 2, 4, 3, 64]]),
    class("d128 e4m3 rows64", &[64, 4, 4, 2, 64], &[&[64, 4, 3, 3, 64]]),
    class("d192:128 e4m3 rows16", &[16, 1, 4, 2, 64], &[]),
    class("d192:128 e4m3 rows32", &[32, 2, 4, 2, 64], &[]),
    class("d192:128 e4m3 rows64", &[64, 4, 4, 2, 64], &[]),
    class("d256 e4m3 rows16", &[16, 1, 3, 2, 64], &[]),
    class("d256 e4m3 rows32", &[32, 2, 3, 1, 64], &[]),
    class("d256 e4m3 rows64", &[64, 4, 3, 1, 64], &[]),
];

/// The compiled head dimensions.
const DIMS: [(usize, usize); 4] = [(64, 64), (128, 128), (192, 128), (256, 256)];

/// A kernel of this family: its name is that of its entry.
pub(super) struct Decode {
    pub(super) name: &'static str,
    pub(super) source: Source,
}

/// One way in which blocks are cut, for some head dimensions and bytes of a stored key element.
#[derive(Clone, Copy, Debug)]
struct Shape {
    dims: (usize, usize),
    kv_bytes: usize,
    rows: usize,
    row_warps: usize,
    /// Of each warp that works alone.
    warp_stages: usize,
    blocks: usize,
    least_share_keys: usize,
}

/// The class of these compiled dimensions for so many packed rows, or as many of them as a block takes.
fn class_of(dims: (usize, usize), kv_bytes: usize, rows: usize) -> &'static TileClass {
    let rows = ROWS.into_iter().find(|&most| rows <= most).unwrap_or(ROWS[ROWS.len() - 1]);
    let stored = if kv_bytes == 1 { " e4m3" } else { "" };
    tiles::class(CLASSES, &format!("{}{stored} rows{rows}", dims_name(dims)))
}

/// The smallest compiled dimensions that hold these.
fn compiled_dims(dim_qk: usize, dim_v: usize) -> Option<(usize, usize)> {
    DIMS.into_iter().find(|&(qk, v)| dim_qk <= qk && dim_v <= v)
}

/// Rows of a problem's tiles: query heads of a group times queries.
fn packed_rows(problem: &AttentionProblem) -> usize {
    problem.lengths_q().into_iter().max().unwrap_or(0) * problem.group_size()
}

impl Shape {
    fn new(dims: (usize, usize), kv_bytes: usize, tiles: Tiles) -> Shape {
        let [rows, row_warps, warp_stages, blocks, least_share_keys] = tiles.sizes();
        Shape { dims, kv_bytes, rows, row_warps, warp_stages, blocks, least_share_keys }
    }

    /// Tiles of K and V in a ring: warps that share one have all their stages in it.
    fn stages(&self) -> usize {
        self.warp_stages * self.row_warps
    }

    /// Q and the rings; at the end, the results of each set of warps in f32, with two numbers a row.
    fn shared_bytes(&self) -> u32 {
        let (dim_qk, dim_v) = self.dims;
        let rings = WARPS * self.warp_stages * STEP * (dim_qk + dim_v) * self.kv_bytes;
        let results = WARPS / self.row_warps * self.rows * (4 * (dim_v + 8) + 8);
        (2 * self.rows * dim_qk + rings).max(results) as u32
    }

    /// O and the scores of a thread's rows, of which four lanes share one.
    fn numbers_a_thread(&self) -> usize {
        self.rows / self.row_warps * (self.dims.1 + STEP) / 32
    }

    /// Registers that a thread has where so many blocks share a multiprocessor's.
    fn registers(&self) -> usize {
        (REGISTERS / (32 * WARPS * self.blocks)).min(MOST_REGISTERS)
    }

    /// Blocks that run at a time.
    fn places(&self, device: &DeviceFacts) -> usize {
        device.multiprocessors as usize * blocks_in_shared(device, self.shared_bytes()).min(self.blocks)
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
        if compiled_dims(dim_qk, dim_v).is_none() {
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
                ("DIM_QK", shape.dims.0.to_string()),
                ("DIM_V", shape.dims.1.to_string()),
                ("ROWS", shape.rows.to_string()),
                ("ROW_WARPS", shape.row_warps.to_string()),
                ("STAGES", shape.stages().to_string()),
                ("BLOCKS", shape.blocks.to_string()),
                variant.define(),
            ],
        }
    }

    /// Every variant.
    pub(super) fn modules(&self) -> Vec<Module> {
        let mut modules = Vec::new();
        for dims in DIMS {
            for (dtype, dtype_kv) in DTYPES.into_iter().flat_map(|dtype| [(dtype, dtype), (dtype, Dtype::E4m3)]) {
                for variant in Variant::ALL.into_iter().filter(|&variant| has_variant(dtype_kv, variant)) {
                    for &rows in rows_of(variant) {
                        let taken = class_of(dims, dtype_kv.bytes(), rows).taken();
                        let shape = Shape::new(dims, dtype_kv.bytes(), taken);
                        modules.push(self.module(&shape, dtype, dtype_kv, variant));
                    }
                }
            }
        }
        modules
    }

    /// The class of a supported problem: the other variants than the plain one have no choice.
    pub(super) fn tile_class(&self, problem: &AttentionProblem) -> Option<&'static TileClass> {
        (variant_of(problem) == Variant::Plain).then(|| taken_class(problem))
    }

    /// The plan with what is taken.
    pub(super) fn plan(&self, problem: &AttentionProblem, device: &DeviceFacts) -> Result<CudaPlan, KernelError> {
        self.plan_tiles(problem, device, taken_class(problem).taken())
    }

    /// The blocks over shares of the keys, and their merge where a tile has more than one share.
    pub(super) fn plan_tiles(
        &self,
        problem: &AttentionProblem,
        device: &DeviceFacts,
        tiles: Tiles,
    ) -> Result<CudaPlan, KernelError> {
        let name = self.name;
        device.require_capability(name, 80)?;
        let geometry = Geometry::new(problem);
        let variant = variant_of(problem);
        let shape = Shape::new(dims_of(problem), problem.dtype_kv.bytes(), tiles);
        device.require_shared(name, shape.shared_bytes())?;
        tiles::require_registers(name, shape.numbers_a_thread(), shape.registers())?;
        let mut plan = CudaPlan::default();
        let module = plan.module(self.module(&shape, problem.dtype, problem.dtype_kv, variant));
        let sequences = geometry.sequences(&mut plan);
        let out =
            ShareOut { rows: shape.rows, places: shape.places(device), least_keys: shape.least_share_keys };
        let shares = share_out(&mut plan, &geometry, out);
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

fn dims_of(problem: &AttentionProblem) -> (usize, usize) {
    compiled_dims(problem.head_dim_qk, problem.head_dim_v).expect("supports() has checked")
}

/// The row of the table that says what a problem takes, whatever its variant.
fn taken_class(problem: &AttentionProblem) -> &'static TileClass {
    let most_rows = rows_of(variant_of(problem)).last().copied().unwrap_or_default();
    class_of(dims_of(problem), problem.dtype_kv.bytes(), packed_rows(problem).min(most_rows))
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
    fn tiles_fit_and_what_is_taken_keeps_enough_bytes_in_flight() {
        for (dims, kv_bytes) in DIMS.into_iter().flat_map(|dims| [(dims, 2), (dims, 1)]) {
            for rows in ROWS {
                let class = class_of(dims, kv_bytes, rows);
                for tiles in class.candidates() {
                    let shape = Shape::new(dims, kv_bytes, tiles);
                    let bytes = shape.shared_bytes();
                    assert!(blocks_in_shared(&DeviceFacts::H200, bytes) >= shape.blocks, "{} {tiles}", class.name);
                    assert!(shape.numbers_a_thread() < shape.registers(), "{} {tiles}", class.name);
                    assert_eq!(WARPS % shape.row_warps, 0, "{} {tiles}", class.name);
                }
                let shape = Shape::new(dims, kv_bytes, class.taken());
                assert_eq!(shape.rows, rows, "{}", class.name);
                assert!(shape.shared_bytes() <= DeviceFacts::A100.shared_bytes_per_block);
                let stage = STEP * (dims.0 + dims.1) * kv_bytes;
                let in_flight = shape.blocks * WARPS / shape.row_warps * (shape.stages() - 1) * stage;
                assert!(in_flight >= 2 * (23 << 10), "{}", class.name);
            }
        }
    }

    #[test]
    fn blocks_take_all_rows_that_share_keys_up_to_64() {
        for (rows, expected) in [(1, 16), (16, 16), (17, 32), (33, 64), (64, 64), (200, 64)] {
            assert_eq!(class_of((128, 128), 2, rows).name, format!("d128 rows{expected}"));
        }
        assert!(compiled_dims(257, 64).is_none());
        assert_eq!(compiled_dims(96, 96), Some((128, 128)));
    }
}
