//! Softmax attention over lists of key blocks: windows and dilated windows, Longformer (Beltagy et al. 2020), BigBird
//! (Zaheer et al. 2020), Sparse Transformer strided and fixed (Child et al. 2019), and dense attention as one long list.
//!
//! The plan turns a pattern into compressed rows of key runs ([`super::tiled`]) from the shapes alone; a call visits the
//! listed tiles and nothing else, and masks elements only in tiles that some query sees in part. So time falls with the
//! pairs:
//!
//! * a **dilated** window of step s is s independent windows over every s-th token;
//! * **strided** is a band of neighbours and a column of every l-th token, in two sweeps: the second goes on from the
//!   online softmax's state of the first, and no pair is visited twice;
//! * **fixed** sees its own block, and of the earlier ones a gathered list of their summaries;
//! * **Longformer**'s global rows are tiles of their own, and its global keys one run in front of the window; with a
//!   dilated window, that is a second sweep;
//! * **BigBird**'s lists differ a head where blocks are drawn.
//!
//! Tiles: 64 queries by 128 keys; see [`super::tiled`]. Rows with the most keys, such as global ones, are started first:
//! started last they would be what all threads wait for. It aims at the FMA rate: 2 pairs (d_qk + d_v) FLOPs a head.

use super::key_list::{KeyList, Part, Reach, Tokens};
use super::simd::Isa;
use super::tiled::{QUERY_TILE, Schedule, Sweeps, TiledPlan};
use crate::kernel::{Kernel, KernelError, Plan, PlanContext};
use crate::pattern::Visibility;
use crate::pattern::bigbird::{Bigbird, Draw};
use crate::problem::{AttentionProblem, Bias, Mechanism, Pattern, Phase};

/// Softmax attention over block lists; `isa` is the widest of the machine unless given.
pub struct BlockSparse {
    /// Instruction set to use.
    pub isa: Option<Isa>,
}

impl Kernel for BlockSparse {
    fn name(&self) -> &'static str {
        "block_sparse"
    }

    fn summary(&self) -> &'static str {
        "online softmax over the visible key blocks of any pattern (Child et al. 2019; Zaheer et al. 2020)"
    }

    fn supports(&self, problem: &AttentionProblem) -> Result<(), KernelError> {
        let unsupported = |text: String| Err(KernelError::Unsupported(text));
        if problem.mechanism != Mechanism::Softmax {
            return unsupported(format!("mechanism {}: block_sparse computes softmax only", problem.mechanism.name()));
        }
        if problem.phase == Phase::Backward {
            return unsupported("phase backward: block_sparse computes forward phases only".into());
        }
        if problem.bias != Bias::None {
            return unsupported("a bias: block_sparse masks by the pattern and causal only".into());
        }
        if problem.sinks {
            return unsupported("sinks: block_sparse's softmax runs over keys only".into());
        }
        Ok(())
    }

    fn plan(&self, context: &PlanContext<'_>) -> Result<Box<dyn Plan>, KernelError> {
        self.supports(context.problem)?;
        Ok(Box::new(TiledPlan::new(self.isa.unwrap_or_else(Isa::best), context, sweeps(context.problem))?))
    }
}

/// The schedules of all sequences and heads; those that are equal are made once.
pub(crate) fn sweeps(problem: &AttentionProblem) -> Sweeps {
    let (lengths_q, lengths_kv) = (problem.lengths_q(), problem.lengths_kv());
    let mut known: Vec<((usize, usize, usize), Vec<usize>)> = Vec::new();
    let mut schedules = Vec::new();
    let mut sweeps: Vec<Vec<usize>> = Vec::new();
    for (&len_q, &len_kv) in lengths_q.iter().zip(&lengths_kv) {
        let visibility = Visibility::new(problem, len_q, len_kv);
        for head in 0..problem.heads_q {
            let key = (len_q, len_kv, if visibility.heads_differ() { head } else { 0 });
            let numbers = match known.iter().find(|(other, _)| *other == key) {
                Some((_, numbers)) => numbers.clone(),
                None => {
                    let numbers = schedule(&visibility, head)
                        .into_iter()
                        .map(|schedule| {
                            schedules.push(schedule);
                            schedules.len() - 1
                        })
                        .collect::<Vec<_>>();
                    known.push((key, numbers.clone()));
                    numbers
                }
            };
            sweeps.resize_with(numbers.len(), Vec::new);
            sweeps.iter_mut().zip(numbers).for_each(|(sweep, number)| sweep.push(number));
        }
    }
    // A sweep in which no query has a key is only a detour for the states.
    if let [_, second] = sweeps.as_slice()
        && second.iter().all(|&number| schedules[number].is_idle())
    {
        sweeps.truncate(1);
    }
    Sweeps { schedules, sweeps }
}

/// A distance, small enough that a product of two does not overflow.
fn signed(distance: usize) -> i64 {
    distance.min(1 << 30) as i64
}

/// The sweeps of one head of one sequence: as many for every sequence of a problem.
pub(crate) fn schedule(visibility: &Visibility, head: usize) -> Vec<Schedule> {
    let &Visibility { pattern, causal, query_offset, len_q, len_kv } = visibility;
    let every = |step: usize, first: usize| KeyList::Every(Tokens { first, step });
    let all_tokens = (0, len_kv);
    let part = |list, reach| Part { list, reach, causal, tokens: all_tokens };
    // The query at position p, within 0..=len_q.
    let query_at = |p: i64| (p - query_offset).clamp(0, len_q as i64) as usize;

    let mut natural = Schedule::new(query_offset);
    match pattern {
        Pattern::Full => {
            natural.add(Tokens::from(0), len_q, &[part(every(1, 0), Reach::All)]);
            vec![natural]
        }
        Pattern::Window { left, right } => {
            let reach = Reach::Between { left: signed(left), right: signed(right) };
            natural.add(Tokens::from(0), len_q, &[part(every(1, 0), reach)]);
            vec![natural]
        }
        Pattern::Dilated { window, step } => {
            let reach = signed(window) * signed(step);
            let part = part(every(1, 0), Reach::Between { left: reach, right: reach });
            add_residues(&mut natural, 0, len_q, step, part);
            vec![natural]
        }
        Pattern::Longformer { window, global, dilation } => {
            let reach = signed(window) * signed(dilation);
            let first_local = query_at(signed(global));
            natural.add(Tokens::from(0), first_local, &[part(every(1, 0), Reach::All)]);
            let columns = Part { tokens: (0, global.min(len_kv)), ..part(every(1, 0), Reach::All) };
            let window = Reach::Between { left: reach, right: reach };
            let window = Part { tokens: (global.min(len_kv), len_kv), ..part(every(1, 0), window) };
            if dilation <= 1 {
                natural.add(Tokens::from(first_local), len_q - first_local, &[columns, window]);
                return vec![natural];
            }
            natural.add(Tokens::from(first_local), len_q - first_local, &[columns]);
            let mut dilated = Schedule::new(query_offset);
            dilated.add(Tokens::from(0), first_local, &[]);
            add_residues(&mut dilated, first_local, len_q, dilation, window);
            vec![natural, dilated]
        }
        Pattern::Bigbird { block, window, global, random, seed } => {
            let bigbird = Bigbird::new(block, window, global, random, Draw { seed, head }, len_kv, causal);
            let mut first = 0;
            while first < len_q {
                let row = (first as i64 + query_offset).div_euclid(block as i64);
                let last = query_at((row + 1) * block as i64);
                let parts: Vec<Part> = bigbird
                    .visible_blocks(row)
                    .into_iter()
                    .map(|blocks| {
                        let token = |block_index: i64| (block_index as usize * block).min(len_kv);
                        Part { tokens: (token(blocks.start), token(blocks.end)), ..part(every(1, 0), Reach::All) }
                    })
                    .collect();
                natural.add(Tokens::from(first), last - first, &parts);
                first = last;
            }
            vec![natural]
        }
        Pattern::Strided { stride } => {
            let near = Part { causal: true, ..part(every(1, 0), Reach::Between { left: signed(stride), right: 0 }) };
            natural.add(Tokens::from(0), len_q, &[near]);
            // Distances 0 and `stride` are near already.
            let far = Reach::AtLeastBehind { distance: 2 * signed(stride) };
            let mut columns = Schedule::new(query_offset);
            add_residues(&mut columns, 0, len_q, stride, Part { causal: true, ..part(every(1, 0), far) });
            vec![natural, columns]
        }
        Pattern::Fixed { block, summary } => {
            let own = Part { causal: true, ..part(every(1, 0), Reach::SameBlock { block: signed(block) }) };
            let mut parts = vec![own];
            let summary = summary.min(block);
            if summary > 0 {
                let earlier = Reach::EarlierBlocks { block: signed(block) };
                parts.insert(0, part(KeyList::Summaries { block, summary }, earlier));
            }
            // A tile in two blocks would visit both; where blocks are smaller than tiles, that costs less than short tiles.
            let mut first = 0;
            while first < len_q {
                let last = match block < QUERY_TILE {
                    true => len_q,
                    false => query_at(((first as i64 + query_offset).div_euclid(signed(block)) + 1) * signed(block)),
                };
                natural.add(Tokens::from(first), last - first, &parts);
                first = last;
            }
            vec![natural]
        }
    }
}

/// Adds the queries `first..last` as one group a residue of their position modulo `step`, each over the keys of the same
/// residue.
fn add_residues(schedule: &mut Schedule, first: usize, last: usize, step: usize, part: Part) {
    for query in first..last.min(first.saturating_add(step)) {
        let position = query as i64 + schedule.query_offset();
        let residue = position.rem_euclid(step as i64) as usize;
        let part = Part { list: KeyList::Every(Tokens { first: residue, step }), ..part };
        schedule.add(Tokens { first: query, step }, (last - query).div_ceil(step), &[part]);
    }
}
