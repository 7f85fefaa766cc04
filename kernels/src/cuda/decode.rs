//! What `split_kv` and `paged` share: `kernels/cuda/decode.cuh`.

use super::Source;
use super::geometry::Geometry;
use super::plan::{Argument, CudaPlan, DeviceFacts, Launch, Module, grid_of};
use super::tensor_core::{self, DIMS, DTYPES, Variant, compiled_dims, element};
use crate::kernel::KernelError;
use crate::problem::{AttentionProblem, Dtype, KvLayout, Mechanism, Pattern, Phase};
use crate::tensor::TensorName;

/// Rows of a block: query heads of a group times queries.
const ROWS: usize = 16;
/// Keys of a warp's step.
const STEP: usize = 16;
/// Warps of a block.
const WARPS: usize = 4;
/// Keys below which a share is not worth a block of its own.
const MIN_KEYS_A_SPLIT: usize = 64;
/// Most shares of a head's keys.
const MAX_SPLITS: usize = 128;

/// A kernel of this family: its name is that of its entry.
pub(super) struct Decode {
    pub(super) name: &'static str,
    pub(super) source: Source,
}

/// How a block is cut for some head dimensions.
struct Shape {
    dims: (usize, usize),
    stages: usize,
}

impl Shape {
    fn of(dims: (usize, usize)) -> Shape {
        let stages = match dims {
            (64 | 96, _) => 4,
            (128, _) => 3,
            _ => 2,
        };
        Shape { dims, stages }
    }

    fn shared_bytes(&self) -> u32 {
        let (dim_qk, dim_v) = self.dims;
        (2 * (ROWS * dim_qk + WARPS * self.stages * STEP * (dim_qk + dim_v))) as u32
    }
}

/// Into how many shares to cut keys: 1 where the tiles keep the device busy or there are few keys, else the smallest number
/// whose last wave of blocks is nearly as full as the best one's (Dao et al. 2023, Flash-Decoding).
pub(super) fn splits(tiles: usize, keys: usize, resident_blocks: usize) -> usize {
    let pieces = keys.div_ceil(MIN_KEYS_A_SPLIT);
    if tiles == 0 || 5 * tiles >= 4 * resident_blocks || pieces <= 4 {
        return 1;
    }
    let most = pieces.min(MAX_SPLITS).min(resident_blocks.div_ceil(tiles).max(1) * 4);
    let efficiency = |splits: usize| {
        let waves = (tiles * splits) as f64 / resident_blocks as f64;
        waves / waves.ceil()
    };
    let best = (1..=most).map(efficiency).fold(0.0, f64::max);
    // Of numbers that give the longest share the same length, the smallest does the least merging.
    let shortens = |splits: usize| splits == 1 || pieces.div_ceil(splits) < pieces.div_ceil(splits - 1);
    (1..=most).find(|&splits| shortens(splits) && efficiency(splits) >= 0.85 * best).unwrap_or(1)
}

/// Blocks that run at a time, by shared memory alone.
pub(super) fn resident_blocks(device: &DeviceFacts, shared_bytes: u32) -> usize {
    // Each block takes 1 KiB besides, and a multiprocessor has 1 KiB more than a block may have.
    let a_multiprocessor = (device.shared_bytes_per_block + 1024) / (shared_bytes + 1024);
    device.multiprocessors as usize * a_multiprocessor.clamp(1, 8) as usize
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
        tensor_core::supports(name, problem)?;
        if compiled_dims(problem.head_dim_qk, problem.head_dim_v).is_none() {
            let (dim_qk, dim_v) = (problem.head_dim_qk, problem.head_dim_v);
            return unsupported(format!("head dimensions {dim_qk}:{dim_v}: {name} has up to 256:256"));
        }
        Ok(())
    }

    fn module(&self, shape: &Shape, dtype: Dtype, variant: Variant) -> Module {
        Module {
            source: self.source,
            defines: vec![
                ("ELEMENT", element(dtype).to_string()),
                ("DIM_QK", shape.dims.0.to_string()),
                ("DIM_V", shape.dims.1.to_string()),
                ("STAGES", shape.stages.to_string()),
                variant.define(),
            ],
        }
    }

    /// Every variant.
    pub(super) fn modules(&self) -> Vec<Module> {
        let mut modules = Vec::new();
        for dims in DIMS {
            for dtype in DTYPES {
                for variant in Variant::ALL {
                    modules.push(self.module(&Shape::of(dims), dtype, variant));
                }
            }
        }
        modules
    }

    /// The blocks over shares of the keys, and their merge where there is more than one share.
    pub(super) fn plan(&self, problem: &AttentionProblem, device: &DeviceFacts) -> Result<CudaPlan, KernelError> {
        let name = self.name;
        device.require_capability(name, 80)?;
        let geometry = Geometry::new(problem);
        let dims = compiled_dims(geometry.dim_qk, geometry.dim_v).expect("supports() has checked");
        let shape = Shape::of(dims);
        device.require_shared(name, shape.shared_bytes())?;
        let mut plan = CudaPlan::default();
        let module = plan.module(self.module(&shape, problem.dtype, Variant::of(problem)));
        let sequences = geometry.sequences(&mut plan);
        let group = geometry.heads_q / geometry.heads_kv;
        let tiles = (geometry.longest_q() * group).div_ceil(ROWS) * geometry.heads_kv * geometry.batch();
        let reach = geometry.left as usize + geometry.right as usize + geometry.longest_q();
        let keys = geometry.longest_kv().min(reach);
        let splits = splits(tiles, keys, resident_blocks(device, shape.shared_bytes()));
        let partials = push_partials(&mut plan, &geometry, splits);
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
            geometry.argument(),
            partials[0].clone(),
            partials[1].clone(),
            Argument::I32(splits as i32),
        ];
        if problem.kv_layout != KvLayout::Contiguous {
            arguments.push(Argument::Tensor(TensorName::PageTable));
        }
        plan.launches.push(Launch {
            module,
            entry: name,
            grid: grid_of(name, &[splits, tiles])?,
            block: [32 * WARPS as u32, 1, 1],
            shared_bytes: shape.shared_bytes(),
            arguments,
        });
        push_combine(&mut plan, name, &geometry, module, splits, partials, [tensor_core::sinks(problem), sequences])?;
        Ok(plan)
    }
}

/// Workspaces of the partial outputs and their log-sum-exps; null where there is one share.
pub(super) fn push_partials(plan: &mut CudaPlan, geometry: &Geometry, splits: usize) -> [Argument; 2] {
    if splits == 1 {
        return [Argument::Null, Argument::Null];
    }
    let rows = (splits * geometry.batch() * geometry.heads_q * geometry.longest_q()) as u64;
    let pitch = geometry.dim_v.next_multiple_of(8) as u64;
    [plan.workspace(4 * rows * pitch), plan.workspace(4 * rows)]
}

/// The launch that merges the shares, where there are several.
pub(super) fn push_combine(
    plan: &mut CudaPlan,
    kernel: &str,
    geometry: &Geometry,
    module: usize,
    splits: usize,
    [partial_o, partial_lse]: [Argument; 2],
    [sinks, sequences]: [Argument; 2],
) -> Result<(), KernelError> {
    if splits == 1 {
        return Ok(());
    }
    let rows = geometry.batch() * geometry.heads_q * geometry.longest_q();
    plan.launches.push(Launch {
        module,
        entry: "combine",
        grid: grid_of(kernel, &[rows.div_ceil(WARPS)])?,
        block: [32 * WARPS as u32, 1, 1],
        shared_bytes: 0,
        arguments: vec![
            partial_o,
            partial_lse,
            Argument::Tensor(TensorName::O),
            Argument::OptionalTensor(TensorName::Lse),
            sinks,
            sequences,
            geometry.argument(),
            Argument::I32(splits as i32),
        ],
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_split_only_where_that_fills_the_device() {
        // Enough tiles, or too few keys.
        assert_eq!(splits(132, 65536, 132), 1);
        assert_eq!(splits(1, 256, 132), 1);
        assert_eq!(splits(0, 65536, 132), 1);
        // One tile of a long cache: a share for each place, but no more than there are keys.
        assert!((100..=128).contains(&splits(1, 65536, 132)));
        assert_eq!(splits(1, 640, 132), 10);
        // Eight tiles: 16 shares fill 128 of 132 places; 17 would leave a second wave of four.
        assert!((14..=16).contains(&splits(8, 65536, 132)));
    }

    #[test]
    fn the_last_wave_is_not_left_empty() {
        const PLACES: usize = 264;
        for tiles in 1..PLACES * 4 / 5 {
            for keys in [1000, 8192, 131_072] {
                let count = splits(tiles, keys, PLACES);
                assert!((1..=MAX_SPLITS).contains(&count) && (count == 1 || (count - 1) * MIN_KEYS_A_SPLIT < keys));
                // With keys enough, only the largest number of shares keeps a wave from being full.
                let blocks = tiles * count;
                let places = (blocks.div_ceil(PLACES) * PLACES).min(tiles * MAX_SPLITS);
                assert!(keys < 131_072 || 10 * blocks >= 7 * places, "{tiles} tiles, {count} shares");
            }
        }
    }
}
