//! Multi-head latent attention (DeepSeek-V2, section 2.1).
//!
//! **Prefill** works on expanded heads, d_qk = nope + rope and d_v apart (192 and 128): tiles of queries over causal runs
//! of keys ([`super::tiled`]).
//!
//! **Decode** is absorbed: one latent row of latent + rope elements is the key of every head, and its first `latent`
//! elements the value. The heads of all queries of a sequence are the rows of one product, so a tile of latent rows is
//! read and widened once for all of them. Latent rows are cut into segments over the threads (flash-decoding, Dao et al.
//! 2023), whose partial outputs are combined by their log-sum-exps.
//!
//! Tiles: 64 latent rows (144 KiB of f32 at 576, and as much transposed) by up to 256 query rows. 2 heads (d_qk + d_v)
//! FLOPs a latent row against its (latent + rope) elements: with 128 heads it aims at the FMA rate, with few at the
//! bandwidth.

use super::access::{Sink, Source};
use super::online_tile::{KEY_TILE, OnlineTile};
use super::schedule::for_each_task;
use super::tile::transpose;
use super::tiled::{KeyList, Part, Reach, Schedule, Sweeps, TiledPlan};
use crate::cpu::access::Tokens;
use crate::input::SharedMut;
use crate::kernel::{Kernel, KernelError, Plan, PlanContext};
use crate::problem::{AttentionProblem, Bias, KvLayout, Mechanism, Pattern, Phase};
use crate::tensor::{Rows, TensorName, TensorSet};

/// Query rows (queries times heads) of an item.
const MAX_ROWS: usize = 256;
/// Latent rows of a segment, at least.
const MIN_SEGMENT: usize = 4 * KEY_TILE;

/// MLA: expanded prefill and absorbed decode.
pub struct Mla;

impl Kernel for Mla {
    fn name(&self) -> &'static str {
        "mla"
    }

    fn summary(&self) -> &'static str {
        "multi-head latent attention: expanded prefill, absorbed decode on the latent cache (DeepSeek-V2)"
    }

    fn supports(&self, problem: &AttentionProblem) -> Result<(), KernelError> {
        let unsupported = |text: String| Err(KernelError::Unsupported(text));
        if !matches!(problem.mechanism, Mechanism::Mla { .. }) {
            return unsupported(format!("mechanism {}: mla computes mla only", problem.mechanism.name()));
        }
        if !matches!(problem.phase, Phase::Prefill | Phase::Decode) {
            return unsupported(format!("phase {}: mla has prefill and decode", problem.phase.name()));
        }
        if problem.pattern != Pattern::Full {
            return unsupported(format!("pattern {}: mla has full, causal or not", problem.pattern.name()));
        }
        if problem.phase == Phase::Prefill && problem.kv_layout != KvLayout::Contiguous {
            return unsupported("a paged KV layout in prefill: mla pages its latent cache in decode".into());
        }
        if problem.bias != Bias::None || problem.sinks {
            return unsupported("a bias or sinks: mla has softcap and causal masks only".into());
        }
        Ok(())
    }

    fn plan(&self, context: &PlanContext<'_>) -> Result<Box<dyn Plan>, KernelError> {
        self.supports(context.problem)?;
        if context.problem.is_absorbed_mla() {
            Ok(Box::new(Absorbed::new(context)?))
        } else {
            Ok(Box::new(TiledPlan::new(context, dense_sweeps(context.problem))?))
        }
    }
}

/// Every query over all its keys, causal or not.
fn dense_sweeps(problem: &AttentionProblem) -> Sweeps {
    let (lengths_q, lengths_kv) = (problem.lengths_q(), problem.lengths_kv());
    let schedules = lengths_q
        .iter()
        .zip(&lengths_kv)
        .map(|(&len_q, &len_kv)| {
            let mut schedule = Schedule::new(problem.query_offset(len_q, len_kv));
            let list = KeyList::Every(Tokens::from(0));
            let part = Part { list, reach: Reach::All, causal: problem.causal, tokens: (0, len_kv) };
            schedule.add(Tokens::from(0), len_q, &[part]);
            schedule
        })
        .collect();
    let sweep = (0..problem.batch * problem.heads_q).map(|row| row / problem.heads_q).collect();
    Sweeps { schedules, sweeps: vec![sweep] }
}

/// Latent rows `first_key..last_key` for query rows `first_row..first_row + rows` of a sequence; query row r is head
/// r mod heads of query r / heads.
struct Item {
    sequence: usize,
    first_row: usize,
    rows: usize,
    first_key: usize,
    last_key: usize,
    /// Its place among the partial results, where the sequence is cut.
    partial: Option<usize>,
}

/// Query rows whose partial results `partials` are to be combined.
struct Combination {
    sequence: usize,
    first_row: usize,
    rows: usize,
    partials: std::ops::Range<usize>,
}

struct Absorbed {
    scale: f32,
    softcap: Option<f32>,
    causal: bool,
    heads: usize,
    latent: usize,
    queries: Rows,
    keys: Rows,
    outputs: Rows,
    query_offsets: Vec<i64>,
    items: Vec<Item>,
    combinations: Vec<Combination>,
    /// Per partial: (MAX_ROWS, latent + 1), a normalised output and its log-sum-exp a row.
    partials: Vec<f32>,
    rows_a_partial: usize,
    scratches: Vec<Scratch>,
}

struct Scratch {
    /// (rows, latent + rope), scaled.
    queries: Vec<f32>,
    /// (KEY_TILE, latent + rope).
    keys: Vec<f32>,
    /// (latent + rope, KEY_TILE).
    keys_transposed: Vec<f32>,
    online: OnlineTile,
    /// (latent).
    output: Vec<f32>,
}

impl Absorbed {
    fn new(context: &PlanContext<'_>) -> Result<Self, KernelError> {
        let problem = context.problem;
        let (dk, latent, heads) = (problem.head_dim_qk, problem.head_dim_v, problem.heads_q);
        let queries = Rows::of_queries(problem, dk);
        let keys = Rows::of_keys(problem, dk, context.static_tensors.find(TensorName::PageTable));
        let longest = queries.lengths.iter().copied().max().unwrap_or(0);
        let max_rows = (longest * heads).clamp(1, MAX_ROWS);

        let work: usize =
            keys.lengths.iter().zip(&queries.lengths).map(|(k, q)| k * (q * heads).div_ceil(max_rows)).sum();
        let segment = match context.threads {
            1 => usize::MAX / 2,
            threads => work.div_ceil(2 * threads).next_multiple_of(KEY_TILE).max(MIN_SEGMENT),
        };
        let (mut items, mut combinations, mut partials) = (Vec::new(), Vec::new(), 0);
        for sequence in 0..problem.batch {
            let (len_q, len_kv) = (queries.lengths[sequence], keys.lengths[sequence]);
            for first_row in (0..len_q * heads).step_by(max_rows) {
                let rows = max_rows.min(len_q * heads - first_row);
                let cuts = len_kv.div_ceil(segment).max(1);
                let is_cut = cuts > 1;
                for cut in 0..cuts {
                    let partial = is_cut.then_some(partials + cut);
                    let (first_key, last_key) = (cut * segment, len_kv.min((cut + 1) * segment));
                    items.push(Item { sequence, first_row, rows, first_key, last_key, partial });
                }
                if is_cut {
                    combinations.push(Combination { sequence, first_row, rows, partials: partials..partials + cuts });
                    partials += cuts;
                }
            }
        }
        let partial_elements = partials as u64 * max_rows as u64 * (latent as u64 + 1);
        let scratch = 4 * (max_rows * dk + 2 * KEY_TILE * dk + latent) as u64 + OnlineTile::bytes(max_rows, latent);
        context.check_workspace(4 * partial_elements + context.threads as u64 * scratch)?;
        Ok(Absorbed {
            scale: problem.effective_scale() as f32,
            softcap: problem.softcap.map(|cap| cap as f32),
            causal: problem.causal,
            heads,
            latent,
            query_offsets: (0..problem.batch)
                .map(|sequence| problem.query_offset(queries.lengths[sequence], keys.lengths[sequence]))
                .collect(),
            queries,
            keys,
            outputs: Rows::of_queries(problem, latent),
            items,
            combinations,
            partials: vec![0.0; partial_elements as usize],
            rows_a_partial: max_rows,
            scratches: (0..context.threads)
                .map(|_| Scratch {
                    queries: vec![0.0; max_rows * dk],
                    keys: vec![0.0; KEY_TILE * dk],
                    keys_transposed: vec![0.0; dk * KEY_TILE],
                    online: OnlineTile::new(max_rows, latent),
                    output: vec![0.0; latent],
                })
                .collect(),
        })
    }
}

impl Plan for Absorbed {
    fn run(&mut self, inputs: &TensorSet, outputs: &mut TensorSet) {
        let Absorbed { scale, softcap, causal, heads, latent, rows_a_partial, .. } = *self;
        let (queries, keys, rows_o, query_offsets) = (&self.queries, &self.keys, &self.outputs, &self.query_offsets);
        let (items, combinations) = (&self.items, &self.combinations);
        let dk = keys.dim;
        let [q, k] = [TensorName::Q, TensorName::K].map(|name| Source::new(inputs.get(name)));
        let o = Sink::new(outputs, TensorName::O);
        let lse = Sink::find(outputs, TensorName::Lse);
        let longest = queries.lengths.iter().copied().max().unwrap_or(0);
        let write = |sequence: usize, row: usize, output: &[f32], log_sum: f32| {
            let (token, head) = (row / heads, row % heads);
            // SAFETY: a query row is written by one item, or by one combination.
            unsafe {
                o.write(rows_o.offset(sequence, head, token), output);
                if let Some(lse) = &lse {
                    lse.write((sequence * heads + head) * longest + token, &[log_sum]);
                }
            }
        };
        let partials = SharedMut::new(&mut self.partials);
        let stride = latent + 1;
        let partial_row = |partial: usize, row: usize| {
            // SAFETY: while items run, a partial belongs to one of them; later a row belongs to one combination.
            unsafe { partials.slice((partial * rows_a_partial + row) * stride, stride) }
        };

        for_each_task(items.len(), &mut self.scratches, |scratch, index| {
            let &Item { sequence, first_row, rows, first_key, last_key, partial } = &items[index];
            let Scratch { queries: q_tile, keys: k_tile, keys_transposed, online, .. } = scratch;
            for (row, q_row) in q_tile.chunks_exact_mut(dk).take(rows).enumerate() {
                let row = first_row + row;
                q.read(queries.offset(sequence, row % heads, row / heads), q_row);
                q_row.iter_mut().for_each(|x| *x *= scale);
            }
            online.reset(rows);
            // Keys before this one are seen by a query row.
            let seen = |row: usize| match causal {
                true => (((first_row + row) / heads) as i64 + query_offsets[sequence] + 1).max(0) as usize,
                false => usize::MAX,
            };
            for first in (first_key..last_key.min(seen(rows - 1))).step_by(KEY_TILE) {
                let count = KEY_TILE.min(last_key - first);
                k.read_tile(keys, (sequence, 0), count, |index| first + index, k_tile);
                transpose((count, dk), k_tile, keys_transposed, KEY_TILE);
                online.score((rows, count, dk), q_tile, keys_transposed, softcap);
                if seen(0) < first + count {
                    for row in 0..rows {
                        online.mask(row, count, 0, seen(row).saturating_sub(first));
                    }
                }
                online.absorb(rows, count, k_tile, dk);
            }
            for row in 0..rows {
                let (output, log_sum) = online.finish(row);
                match partial {
                    None => write(sequence, first_row + row, output, log_sum),
                    Some(partial) => {
                        let to = partial_row(partial, row);
                        to[..latent].copy_from_slice(output);
                        to[latent] = log_sum;
                    }
                }
            }
        });

        for_each_task(combinations.len(), &mut self.scratches, |scratch, index| {
            let Combination { sequence, first_row, rows, ref partials } = combinations[index];
            for row in 0..rows {
                let log_sum_of = |partial| partial_row(partial, row)[latent];
                let max = partials.clone().map(log_sum_of).fold(f32::NEG_INFINITY, f32::max);
                scratch.output.fill(0.0);
                if max == f32::NEG_INFINITY {
                    write(sequence, first_row + row, &scratch.output, max);
                    continue;
                }
                let sum: f32 = partials.clone().map(|partial| (log_sum_of(partial) - max).exp()).sum();
                for partial in partials.clone() {
                    let weight = (log_sum_of(partial) - max).exp() / sum;
                    let from = &partial_row(partial, row)[..latent];
                    scratch.output.iter_mut().zip(from).for_each(|(to, from)| *to += weight * from);
                }
                write(sequence, first_row + row, &scratch.output, max + sum.ln());
            }
        });
    }
}
