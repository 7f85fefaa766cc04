//! What `split_kv` and `paged` share: `kernels/cuda/decode.cuh`.

mod shape;

pub(super) use self::shape::CLASSES;
use self::shape::{DIMS, ROWS, Shape, WARPS, class_of, compiled_dims};
use super::Source;
use super::geometry::Geometry;
use super::plan::{Argument, CudaPlan, DeviceFacts, Launch, Module, grid_of};
use super::shares::{ShareOut, Shares, share_out};
use super::tensor_core::{self, DTYPES, Variant, element};
use super::tiles::{self, TileClass, Tiles};
use crate::kernel::KernelError;
use crate::problem::{AttentionProblem, Dtype, KvLayout, Mechanism, Pattern, Phase};
use crate::tensor::TensorName;

/// A kernel of this family: its name is that of its entry.
pub(super) struct Decode {
    pub(super) name: &'static str,
    pub(super) source: Source,
}

/// Rows of a problem's tiles: query heads of a group times queries.
fn packed_rows(problem: &AttentionProblem) -> usize {
    problem.lengths_q().into_iter().max().unwrap_or(0) * problem.group_size()
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
        let out = ShareOut { rows: shape.rows, places: shape.places(device), least_keys: shape.least_share_keys };
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
