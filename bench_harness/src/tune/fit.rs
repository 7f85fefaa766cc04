//! What a candidate takes of a multiprocessor, as the assembler says: which ones are impossible is known without a GPU.

use attn_kernels::cuda::nvrtc::Nvrtc;
use attn_kernels::cuda::occupancy::Multiprocessor;
use attn_kernels::cuda::resources::{self, Resources, ResourcesError};
use attn_kernels::cuda::tiles::Tiles;
use attn_kernels::cuda::{self, CudaPlan, Launch};
use rayon::prelude::*;
use serde::Serialize;

use super::Contest;

/// A candidate on an architecture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fit {
    /// The kernel.
    pub kernel: String,
    /// The class of problems.
    pub class: String,
    /// The candidate.
    pub tiles: String,
    /// Whether it is what the kernel takes.
    pub is_taken: bool,
    /// Its kernel, where it was compiled.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub takes: Option<Takes>,
    /// Why it cannot or should not be taken: it does not fit, or spills.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub impossible: Option<String>,
}

/// What a launch takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Takes {
    /// The launch's kernel: of a plan's launches, the one that takes most of a multiprocessor.
    pub entry: &'static str,
    /// Threads a block.
    pub threads: u32,
    /// Registers a thread.
    pub registers: u32,
    /// Bytes a thread that did not fit the registers.
    pub spill_bytes: u32,
    /// Bytes of a thread's stack.
    pub stack_bytes: u32,
    /// Bytes of shared memory a block.
    pub shared_bytes: u32,
    /// Blocks that a multiprocessor holds.
    pub blocks_per_multiprocessor: u32,
}

/// Why candidates were not compiled.
#[derive(Debug, thiserror::Error)]
pub enum FitError {
    /// What its multiprocessors have is not known.
    #[error("tuning for {0}: what its multiprocessors have is not known; sm_80 and sm_90a are")]
    UnknownArchitecture(String),
    /// The compiler or the disassembler failed.
    #[error(transparent)]
    Compile(#[from] ResourcesError),
}

/// Every candidate of every contest on an architecture, in the contests' order, what is taken first.
///
/// # Errors
/// [`FitError`].
pub fn fits(nvrtc: &Nvrtc, contests: &[Contest], architecture: &str) -> Result<Vec<Fit>, FitError> {
    let multiprocessor =
        Multiprocessor::of(architecture).ok_or_else(|| FitError::UnknownArchitecture(architecture.to_owned()))?;
    let all: Vec<(&Contest, Tiles)> =
        contests.iter().flat_map(|contest| contest.candidates().map(move |tiles| (contest, tiles))).collect();
    let of = |&(contest, tiles): &(&Contest, Tiles)| {
        let kernel = cuda::find(&contest.kernel).expect("a contest is of a kernel");
        let problem = &contest.cases[0].case.problem;
        match kernel.plan_with(problem, &multiprocessor.device, tiles) {
            Err(error) => Ok(judged(contest, tiles, &[], Some(error.to_string()))),
            Ok(plan) => match launches(nvrtc, &plan, architecture, &multiprocessor) {
                Ok(all) => Ok(judged(contest, tiles, &all, None)),
                Err(ResourcesError::Serialised { message, .. }) => Ok(judged(contest, tiles, &[], Some(message))),
                Err(error) => Err(error.into()),
            },
        }
    };
    all.par_iter().map(of).collect()
}

/// What every launch of a plan takes.
fn launches(
    nvrtc: &Nvrtc,
    plan: &CudaPlan,
    architecture: &str,
    multiprocessor: &Multiprocessor,
) -> Result<Vec<Takes>, ResourcesError> {
    let compile = |module| resources::of_module(nvrtc, module, architecture, None);
    let compiled: Vec<Vec<Resources>> = plan.modules.iter().map(compile).collect::<Result<_, _>>()?;
    let of = |launch: &Launch| {
        let own = compiled[launch.module].iter().find(|kernel| kernel.entry == launch.entry);
        takes(multiprocessor, launch, own.expect("the module has what is launched"))
    };
    Ok(plan.launches.iter().map(of).collect())
}

fn takes(multiprocessor: &Multiprocessor, launch: &Launch, compiled: &Resources) -> Takes {
    let threads = launch.block.iter().product();
    let shared_bytes = launch.shared_bytes + compiled.static_shared_bytes;
    Takes {
        entry: launch.entry,
        threads,
        registers: compiled.registers,
        spill_bytes: compiled.spill_bytes,
        stack_bytes: compiled.stack_bytes,
        shared_bytes,
        blocks_per_multiprocessor: multiprocessor.resident_blocks(threads, compiled.registers, shared_bytes),
    }
}

/// A candidate, from what its launches take, or why there is no plan of it. A spill anywhere rules it out; shown is the launch that
/// fills a multiprocessor with the fewest threads, the last of equal ones, which is what tiles are about.
fn judged(contest: &Contest, tiles: Tiles, launches: &[Takes], refusal: Option<String>) -> Fit {
    let flaw = |takes: &Takes| match takes {
        Takes { entry, blocks_per_multiprocessor: 0, .. } => {
            Some(format!("not one block of {entry} fits a multiprocessor"))
        }
        Takes { entry, spill_bytes, .. } if *spill_bytes > 0 => {
            Some(format!("{entry} spills {spill_bytes} bytes a thread"))
        }
        Takes { entry, stack_bytes, .. } if *stack_bytes > 0 => {
            Some(format!("{entry} has a stack of {stack_bytes} bytes a thread"))
        }
        _ => None,
    };
    let impossible = refusal.or_else(|| launches.iter().find_map(flaw));
    let resident = |takes: &&Takes| takes.threads * takes.blocks_per_multiprocessor;
    let takes = launches.iter().rev().min_by_key(resident).cloned();
    let is_taken = tiles == contest.taken;
    let (kernel, class) = (contest.kernel.clone(), contest.class.clone());
    Fit { kernel, class, tiles: tiles.to_string(), is_taken, takes, impossible }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::contests;
    use crate::tune::tests::{IDS, suite};

    #[test]
    fn what_spills_or_does_not_fit_is_impossible() {
        let contest = &contests(&suite(&IDS), &[], &[]).unwrap()[0];
        let hopper = Multiprocessor::of("sm_90a").unwrap();
        let kernel = cuda::find("flash").unwrap();
        let plan = kernel.plan_with(&contest.cases[0].case.problem, &hopper.device, contest.taken).unwrap();
        let compiled = |registers: u32, spill_bytes: u32| Resources {
            module: "flash".into(),
            entry: "flash".into(),
            registers,
            spill_bytes,
            stack_bytes: 0,
            static_shared_bytes: 0,
            instructions: None,
        };
        let fit = |registers: u32, spill_bytes: u32| {
            let takes = takes(&hopper, &plan.launches[0], &compiled(registers, spill_bytes));
            judged(contest, contest.taken, &[takes], None)
        };
        let good = fit(255, 0);
        assert_eq!((good.impossible, good.takes.unwrap().blocks_per_multiprocessor), (None, 2));
        assert!(fit(255, 8).impossible.unwrap().contains("flash spills 8 bytes"));
        let refused = judged(contest, contest.others[0], &[], Some("too much".into()));
        assert_eq!((refused.impossible.as_deref(), refused.is_taken), (Some("too much"), false));
    }

    #[test]
    fn the_launch_that_takes_most_is_shown_and_a_spill_in_any_rules_out() {
        let contest = &contests(&suite(&IDS), &[], &[]).unwrap()[0];
        let launch = |entry, threads, blocks_per_multiprocessor, spill_bytes| Takes {
            entry,
            threads,
            registers: 255,
            spill_bytes,
            stack_bytes: 0,
            shared_bytes: 1024,
            blocks_per_multiprocessor,
        };
        let all = [launch("rows", 256, 8, 0), launch("keys", 256, 1, 0), launch("sums", 128, 9, 4)];
        let fit = judged(contest, contest.taken, &all, None);
        assert_eq!(fit.takes.map(|takes| takes.entry), Some("keys"));
        assert_eq!(fit.impossible.as_deref(), Some("sums spills 4 bytes a thread"));
    }
}
