//! Linformer (Wang et al. 2020): the projections of `kernels/cuda/linformer.cu`, then attention over what is left, resident in shared
//! memory (`linformer_attend.cu`) or, where it does not fit, by `flash`.

use super::geometry::{Geometry, TensorRows};
use super::plan::{Argument, CudaPlan, DeviceFacts, Launch, Module, grid_of};
use super::source::source;
use super::tensor_core::{self, DTYPES, compiled_dims};
use super::tiles::{self, TileClass, Tiles};
use super::{CudaKernel, Source, flash};
use crate::kernel::KernelError;
use crate::problem::{AttentionProblem, Dtype, KvLayout, Mechanism, Pattern, Phase};
use crate::tensor::TensorName;

const PROJECT: Source = source!("linformer.cu");
const ATTEND: Source = source!("linformer_attend.cu");

/// Threads of every block.
const THREADS: usize = 256;
/// Terms that E is a sum of; F is one.
const TERMS: usize = 2;
/// Tokens a step of the projection.
const TOKENS: usize = 64;
/// Rows of K' and V' that stay in shared memory.
const MOST_RANK: usize = 256;
/// Queries of a warp, and of a block at a time.
const WARP_ROWS: usize = 32;
const BLOCK_ROWS: usize = WARP_ROWS * THREADS / 32;
/// The projection's tiles: rows of K', its columns, and tokens of a part at least; the attention's keys a step.
const RESIDENT_SIZES: &[&str] = &["ranks", "columns", "part", "keys"];

/// The same where `flash` attends, with tiles of its own.
const STREAMED_SIZES: &[&str] = &["ranks", "columns", "part"];

const fn resident(name: &'static str, taken: &'static [usize; 4], others: &'static [&'static [usize]]) -> TileClass {
    TileClass::new(name, RESIDENT_SIZES, taken, others)
}

const fn streamed(name: &'static str, taken: &'static [usize; 3], others: &'static [&'static [usize]]) -> TileClass {
    TileClass::new(name, STREAMED_SIZES, taken, others)
}

/// What each class takes, and what `attnbench tune` measures beside it: by head dimension, and by rank, up to 128 or above.
#[rustfmt::skip]
const CLASSES: &[TileClass] = &[
    resident("d64 rank128", &[128, 64, 512, 64], &[&[64, 64, 512, 64]]),
    resident("d64 rank256", &[256, 64, 512, 64], &[
        &[128, 64, 512, 64], &[256, 64, 256, 64], &[256, 64, 1024, 64], &[256, 64, 512, 32]]),
    resident("d128 rank128", &[128, 128, 512, 32], &[&[64, 128, 512, 32], &[128, 64, 512, 32]]),
    resident("d128 rank256", &[256, 128, 512, 32], &[
        &[128, 128, 512, 32], &[256, 64, 512, 32], &[256, 128, 256, 32], &[256, 128, 1024, 32], &[256, 128, 512, 16]]),
    streamed("d256 rank128", &[128, 128, 512], &[]),
    streamed("d256 rank256", &[256, 128, 512], &[&[128, 128, 512]]),
];

/// The attention's head dimensions.
const ATTEND_DIMS: [usize; 2] = [64, 128];

/// The kernel.
pub struct Linformer;

fn project_module(ranks: usize, columns: usize, dtype: Dtype) -> Module {
    tensor_core::module(PROJECT, dtype, &[("RANKS", ranks), ("COLUMNS", columns)], None)
}

fn attend_module(dim: usize, keys: usize, dtype: Dtype) -> Module {
    tensor_core::module(ATTEND, dtype, &[("HEAD_DIM", dim), ("KEYS", keys)], None)
}

/// How the projection is cut, and the attention where K' and V' are resident.
#[derive(Clone, Copy, Debug)]
struct Shape {
    ranks: usize,
    columns: usize,
    least_part_tokens: usize,
    attend_keys: Option<usize>,
}

impl Shape {
    fn new(tiles: Tiles) -> Shape {
        let (sizes, attend_keys) = match tiles.count() {
            3 => (tiles.sizes(), None),
            _ => {
                let [ranks, columns, part, keys] = tiles.sizes();
                ([ranks, columns, part], Some(keys))
            }
        };
        let [ranks, columns, least_part_tokens] = sizes;
        Shape { ranks, columns, least_part_tokens, attend_keys }
    }
}

fn rank_of(problem: &AttentionProblem) -> Option<usize> {
    match problem.mechanism {
        Mechanism::Linformer { rank } => Some(rank),
        _ => None,
    }
}

/// The class of head dimensions and a rank.
fn class_of(widest: usize, rank: usize) -> &'static TileClass {
    let dim = ATTEND_DIMS.into_iter().find(|&dim| widest <= dim).unwrap_or(256);
    let rank = if rank <= 128 { 128 } else { 256 };
    tiles::class(CLASSES, &format!("d{dim} rank{rank}"))
}

/// Rows of (sequence, KV head, rank, dim).
fn projected_rows(geometry: &Geometry, rank: usize, dim: usize) -> TensorRows {
    let sequence = geometry.heads_kv * rank * dim;
    let starts = (0..geometry.batch()).map(|number| number * sequence).collect();
    TensorRows { strides: [sequence, rank * dim, dim], starts }
}

/// Adds the launches that project K and V; returns where K' and V' are.
fn project(
    plan: &mut CudaPlan,
    geometry: &Geometry,
    rank: usize,
    dtype: Dtype,
    device: &DeviceFacts,
    shape: Shape,
) -> Result<[Argument; 2], KernelError> {
    let (tokens, heads) = (geometry.longest_kv(), geometry.heads_kv * geometry.batch());
    let dims = [geometry.dim_qk, geometry.dim_v];
    let widest = dims[0].max(dims[1]);
    let Shape { ranks, columns, least_part_tokens, .. } = shape;
    let module = plan.module(project_module(ranks, columns, dtype));
    let launch = |entry, grid, shared_bytes, arguments| Launch {
        module,
        entry,
        grid,
        block: [THREADS as u32, 1, 1],
        shared_bytes,
        arguments,
    };
    let number = |number: usize| Argument::I32(number as i32);
    let pitch = rank.next_multiple_of(8);
    let rounded = plan.workspace(((TERMS + 1) * tokens * pitch * dtype.bytes()) as u64);
    let [blocks, ..] = grid_of("linformer", &[(tokens * pitch).div_ceil(8 * THREADS)])?;
    plan.launches.push(launch(
        "linformer_round",
        [blocks, 2, 1],
        0,
        vec![
            Argument::Tensor(TensorName::ProjectionK),
            Argument::Tensor(TensorName::ProjectionV),
            number(tokens),
            number(rank),
            number(pitch),
            rounded.clone(),
        ],
    ));

    // Two stages of E and K fit a multiprocessor once or twice; one block each fills the device.
    let shared_bytes = (2 * 2 * TOKENS * (TERMS * ranks + columns)) as u32;
    device.require_shared("linformer", shared_bytes)?;
    let tiles = widest.div_ceil(columns) * rank.div_ceil(ranks);
    let wanted = (device.multiprocessors as usize).div_ceil(2 * tiles * heads);
    let parts = wanted.clamp(1, (tokens / least_part_tokens).max(1));
    let tokens_a_part = tokens.div_ceil(parts).next_multiple_of(TOKENS);
    let parts = tokens.div_ceil(tokens_a_part).max(1);
    let projected = dims.map(|dim| plan.workspace((heads * rank * dim * dtype.bytes()) as u64));
    let sums = if parts == 1 {
        [Argument::Null, Argument::Null]
    } else {
        dims.map(|dim| plan.workspace((parts * heads * rank * dim * 4) as u64))
    };
    let [blocks, ..] = grid_of("linformer", &[tiles, parts])?;
    let [heads_y, ..] = grid_of("linformer", &[heads])?;
    if heads_y > 65535 {
        return Err(KernelError::Unsupported(format!(
            "{heads} KV heads of all sequences: linformer has a grid of 65535; use a smaller batch"
        )));
    }
    let mut arguments = vec![
        Argument::Tensor(TensorName::K),
        Argument::Tensor(TensorName::V),
        rounded,
        geometry.argument(),
        number(rank),
        number(pitch),
        number(parts),
        number(tokens_a_part),
    ];
    arguments.extend(sums.iter().chain(&projected).cloned());
    plan.launches.push(launch("linformer_project", [blocks, heads_y, 2], shared_bytes, arguments));
    if parts > 1 {
        let [blocks, ..] = grid_of("linformer", &[(heads * rank * widest).div_ceil(THREADS)])?;
        let mut arguments: Vec<Argument> = sums.iter().chain(&projected).cloned().collect();
        arguments.extend([geometry.argument(), number(rank), number(parts)]);
        plan.launches.push(launch("linformer_reduce", [blocks, 2, 1], 0, arguments));
    }
    Ok(projected)
}

/// Bytes of shared memory of the attention: K', V', and the queries of every warp.
fn attend_bytes(dim: usize) -> u32 {
    (2 * dim * (2 * MOST_RANK + BLOCK_ROWS)) as u32
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
        let class = self.tile_class(problem).expect("what it supports has a class");
        self.plan_tiles(problem, device, class.taken())
    }

    fn tile_classes(&self) -> Vec<&'static TileClass> {
        CLASSES.iter().collect()
    }

    fn tile_class(&self, problem: &AttentionProblem) -> Option<&'static TileClass> {
        rank_of(problem).map(|rank| class_of(problem.head_dim_qk.max(problem.head_dim_v), rank))
    }

    fn plan_tiles(
        &self,
        problem: &AttentionProblem,
        device: &DeviceFacts,
        tiles: Tiles,
    ) -> Result<CudaPlan, KernelError> {
        device.require_capability("linformer", 80)?;
        let rank = rank_of(problem).expect("supports() refuses other mechanisms");
        let shape = Shape::new(tiles);
        let mut geometry = Geometry::new(problem);
        let mut plan = CudaPlan::default();
        let [k, v] = project(&mut plan, &geometry, rank, problem.dtype, device, shape)?;
        let widest = geometry.dim_qk.max(geometry.dim_v);
        let resident = ATTEND_DIMS
            .into_iter()
            .find(|&dim| widest <= dim)
            .filter(|&dim| rank <= MOST_RANK && attend_bytes(dim) <= device.shared_bytes_per_block)
            .zip(shape.attend_keys);
        let Some((dim, keys)) = resident else {
            geometry.k = projected_rows(&geometry, rank, geometry.dim_qk);
            geometry.v = projected_rows(&geometry, rank, geometry.dim_v);
            geometry.lengths_kv.fill(rank);
            geometry.query_offsets.fill(0);
            flash::push(&mut plan, "linformer", &geometry, problem, [k, v], device)?;
            return Ok(plan);
        };
        let module = plan.module(attend_module(dim, keys, problem.dtype));
        let heads = geometry.heads_q * geometry.batch();
        // A block a multiprocessor, as many as there are rows for.
        let most = geometry.longest_q().div_ceil(BLOCK_ROWS).max(1);
        let blocks_a_head = (device.multiprocessors as usize).div_ceil(heads).clamp(1, most);
        plan.launches.push(Launch {
            module,
            entry: "linformer_attend",
            grid: grid_of("linformer", &[blocks_a_head, heads])?,
            block: [THREADS as u32, 1, 1],
            shared_bytes: attend_bytes(dim),
            arguments: vec![
                Argument::Tensor(TensorName::Q),
                k,
                v,
                Argument::Tensor(TensorName::O),
                Argument::OptionalTensor(TensorName::Lse),
                geometry.argument(),
                Argument::I32(rank as i32),
                Argument::I32(blocks_a_head as i32),
            ],
        });
        Ok(plan)
    }

    fn modules(&self) -> Vec<Module> {
        let mut modules = Vec::new();
        for dtype in DTYPES {
            for (dim, rank) in [64, 128, 256].into_iter().flat_map(|dim| [(dim, 128), (dim, MOST_RANK)]) {
                let shape = Shape::new(class_of(dim, rank).taken());
                modules.push(project_module(shape.ranks, shape.columns, dtype));
                modules.extend(shape.attend_keys.map(|keys| attend_module(dim, keys, dtype)));
            }
        }
        modules.extend(flash::modules());
        modules
    }
}
