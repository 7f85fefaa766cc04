//! Softmax attention over lists of key tiles: `kernels/cuda/block_sparse.cu`.

use std::collections::HashMap;

use super::geometry::{Bytes, Geometry};
use super::plan::{Argument, CudaPlan, DeviceFacts, Launch, Module, grid_of};
use super::source::source;
use super::tensor_core::{self, DIMS, DTYPES, compiled_dims, element};
use super::{CudaKernel, Source};
use crate::kernel::KernelError;
use crate::pattern::Visibility;
use crate::problem::{AttentionProblem, Dtype, KvLayout, Mechanism, Phase};
use crate::tensor::TensorName;

const SOURCE: Source = source!("block_sparse.cu");

/// Queries and keys a tile.
const TILE: usize = 64;
/// Threads a block.
const THREADS: u32 = 128;

/// Bit j of row i is set where query i of the tile sees key j of it.
type Mask = [u64; TILE];

/// The kernel.
pub struct BlockSparse;

fn module(dims: (usize, usize), dtype: Dtype) -> Module {
    Module {
        source: SOURCE,
        defines: vec![
            ("ELEMENT", element(dtype).to_string()),
            ("DIM_QK", dims.0.to_string()),
            ("DIM_V", dims.1.to_string()),
        ],
    }
}

/// Lists of key tiles: what the tables of a launch are made from.
#[derive(Default)]
struct Lists {
    /// Per list where it begins in `tiles`; the end of a head's last list is one entry more.
    starts: Vec<i32>,
    /// (tile, mask or -1).
    tiles: Vec<(i32, i32)>,
    masks: Vec<Mask>,
    numbers: HashMap<Mask, i32>,
}

impl Lists {
    /// Adds the lists of one head of one sequence, padded with empty ones to `lists`; returns where they begin.
    fn add(&mut self, visibility: &Visibility, head: usize, lists: usize) -> i32 {
        let begin = self.starts.len() as i32;
        let map = visibility.block_map(head, TILE, TILE);
        for row in 0..lists {
            self.starts.push(self.tiles.len() as i32);
            if row >= map.rows() {
                continue;
            }
            let blocks = map.row(row);
            let mut masks: HashMap<usize, Mask> = blocks
                .iter()
                // A tile past the last key has columns that do not exist.
                .filter(|block| !block.is_full || (block.index + 1) * TILE > visibility.len_kv)
                .map(|block| (block.index, [0; TILE]))
                .collect();
            if !masks.is_empty() {
                fill(&mut masks, visibility, head, row);
            }
            for block in blocks {
                let number = match masks.remove(&block.index) {
                    None => -1,
                    Some(mask) => *self.numbers.entry(mask).or_insert_with(|| {
                        self.masks.push(mask);
                        self.masks.len() as i32 - 1
                    }),
                };
                self.tiles.push((block.index as i32, number));
            }
        }
        self.starts.push(self.tiles.len() as i32);
        begin
    }
}

/// Sets the bits of one tile row's partial tiles.
fn fill(masks: &mut HashMap<usize, Mask>, visibility: &Visibility, head: usize, row: usize) {
    for (bit_row, query) in (row * TILE..((row + 1) * TILE).min(visibility.len_q)).enumerate() {
        for keys in visibility.row_key_ranges(head, query) {
            for tile in keys.start / TILE..keys.end.div_ceil(TILE) {
                let Some(mask) = masks.get_mut(&tile) else { continue };
                let (first, end) =
                    (keys.start.max(tile * TILE) - tile * TILE, keys.end.min((tile + 1) * TILE) - tile * TILE);
                mask[bit_row] |= (u64::MAX >> (TILE - (end - first))) << first;
            }
        }
    }
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
        device.require_capability("block_sparse", 80)?;
        let geometry = Geometry::new(problem);
        let dims = compiled_dims(geometry.dim_qk, geometry.dim_v).expect("supports() has checked");
        let shared_bytes = (2 * TILE * (dims.0.max(dims.1) + dims.0 + dims.1)) as u32;
        device.require_shared("block_sparse", shared_bytes)?;
        let mut plan = CudaPlan::default();
        let module = plan.module(module(dims, problem.dtype));
        let sequences = geometry.sequences(&mut plan);
        let tiles_q = geometry.longest_q().div_ceil(TILE);

        // Heads and sequences that see alike share their lists.
        let mut lists = Lists::default();
        let mut known: HashMap<(usize, usize, usize), i32> = HashMap::new();
        let mut rows = Bytes::default();
        for (&len_q, &len_kv) in geometry.lengths_q.iter().zip(&geometry.lengths_kv) {
            let visibility = Visibility::new(problem, len_q, len_kv);
            for head in 0..geometry.heads_q {
                let key = (len_q, len_kv, if visibility.heads_differ() { head } else { 0 });
                let begin = *known.entry(key).or_insert_with(|| lists.add(&visibility, head, tiles_q));
                rows.i32(begin);
            }
        }
        let (mut starts, mut tiles, mut masks) = (Bytes::default(), Bytes::default(), Bytes::default());
        lists.starts.iter().for_each(|&start| {
            starts.i32(start);
        });
        lists.tiles.iter().for_each(|&(tile, mask)| {
            tiles.i32(tile).i32(mask);
        });
        lists.masks.iter().flatten().for_each(|&bits| {
            masks.u64(bits);
        });
        let tables = [rows, starts, tiles, masks].map(|mut bytes| plan.table(bytes.take()));

        let mut arguments = vec![
            Argument::Tensor(TensorName::Q),
            Argument::Tensor(TensorName::K),
            Argument::Tensor(TensorName::V),
            Argument::Tensor(TensorName::O),
            Argument::OptionalTensor(TensorName::Lse),
            sequences,
            geometry.argument(),
        ];
        arguments.extend(tables);
        plan.launches.push(Launch {
            module,
            entry: "block_sparse",
            grid: grid_of("block_sparse", &[tiles_q, geometry.heads_q, geometry.batch()])?,
            block: [THREADS, 1, 1],
            shared_bytes,
            arguments,
        });
        Ok(plan)
    }

    fn modules(&self) -> Vec<Module> {
        let mut modules = Vec::new();
        for dims in DIMS {
            for dtype in DTYPES {
                modules.push(module(dims, dtype));
            }
        }
        modules
    }
}
