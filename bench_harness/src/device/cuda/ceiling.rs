//! Controls: what this device can do at most, measured and not looked up.

use attn_kernels::cuda::harness;
use attn_kernels::problem::Dtype;

use super::compile::Compiler;
use super::context::{Context, Pattern};
use super::driver::Fault;
use super::graph::Graph;
use super::launch::{Code, LoadError, load_module};
use super::timer::{How, Timer};
use crate::case::Mode;
use crate::record::ControlKind;
use crate::worker::protocol::{Control, ControlSamples};

/// Blocks for each multiprocessor: as many as fit.
const BLOCKS_PER_MULTIPROCESSOR: u32 = 8;
/// A sample of arithmetic takes about this long: past the ramp of clocks, short of the run's patience.
const ARITHMETIC_NS: f64 = 5e6;
/// Turns of the first, unmeasured call, from which the length of the others follows.
const FIRST_TURNS: u32 = 16;
/// A hot sample moves at least this many bytes, so that its events do not count.
const HOT_BYTES: u64 = 1 << 30;
/// Most passes of a hot sample.
const MAX_PASSES: u64 = 64;

/// Measures a control.
pub fn measure(
    context: &Context,
    compiler: &Compiler,
    timer: &Timer,
    control: &Control,
) -> Result<ControlSamples, LoadError> {
    let dtype = control.dtype.unwrap_or(Dtype::F32);
    let (module, ..) = load_module(&Code::Source(compiler), &harness::ceiling(dtype), &mut None)?;
    let failed = |fault| LoadError::Driver { what: "a control".into(), fault };
    let multiprocessors = context.facts().multiprocessors;
    let grid = [BLOCKS_PER_MULTIPROCESSOR * multiprocessors, 1, 1];
    let block = [harness::THREADS, 1, 1];
    let samples = control.samples.clamp(1, 1000) as usize;
    if control.kind == ControlKind::Fma {
        let function = module.function("arithmetic").map_err(failed)?;
        let sink = context.allocate(4).map_err(failed)?;
        let run = |turns: u32, hold| {
            let mut work = || {
                let mut arguments = [vec![u64::from(turns)], vec![sink.address()]];
                function.launch(context, grid, block, 0, &mut arguments)
            };
            timer.time(context, How { flush: false, hold }, &mut work, &mut || Ok(())).map(|timing| timing.device_ns)
        };
        run(1, false).map_err(failed)?;
        let first_ns = run(FIRST_TURNS, true).map_err(failed)?;
        let turns = (ARITHMETIC_NS / first_ns * f64::from(FIRST_TURNS)).clamp(1.0, 1e9) as u32;
        let device_ns = (0..samples).map(|_| run(turns, true)).collect::<Result<_, Fault>>().map_err(failed)?;
        let warps = u64::from(grid[0] * harness::THREADS / 32);
        return Ok(ControlSamples {
            work: warps * u64::from(turns) * harness::flops_a_warp_and_turn(dtype),
            device_ns,
        });
    }
    // A copy's working set is its source and its target.
    let buffers = if control.kind == ControlKind::Copy { 2 } else { 1 };
    let pieces = (control.working_set_bytes / buffers / 16).max(1);
    let from = context.allocate(16 * pieces).map_err(failed)?;
    let to = context.allocate(if buffers == 2 { 16 * pieces } else { 16 }).map_err(failed)?;
    context.fill(&from, Pattern::Word(0x3f81_0203)).map_err(failed)?;
    let entry = match control.kind {
        ControlKind::Read => "read_memory",
        ControlKind::Write => "write_memory",
        ControlKind::Copy => "copy_memory",
        ControlKind::Fma => unreachable!("not a bandwidth"),
    };
    let function = module.function(entry).map_err(failed)?;
    let run = || {
        let mut arguments = match control.kind {
            ControlKind::Read => [vec![from.address()], vec![pieces], vec![to.address()]],
            ControlKind::Write => [vec![from.address()], vec![pieces], vec![7]],
            _ => [vec![from.address()], vec![to.address()], vec![pieces]],
        };
        function.launch(context, grid, block, 0, &mut arguments)
    };
    let bytes = 16 * pieces * buffers;
    let passes = match control.mode {
        Mode::Cold => 1,
        Mode::Hot => (HOT_BYTES / bytes).min(context.device().memory_bytes / bytes).clamp(1, MAX_PASSES),
    };
    // Code is loaded, and a hot working set is in its cache, before the first sample.
    run().and_then(|()| context.wait()).map_err(failed)?;
    let mut repeat = || (0..passes).try_for_each(|_| run());
    let graph = Graph::record(context, &mut repeat).map_err(failed)?;
    let how = How { flush: control.mode == Mode::Cold, hold: true };
    let mut device_ns = Vec::with_capacity(samples);
    for _ in 0..samples {
        let timing = timer.time(context, how, &mut || graph.launch(context), &mut || Ok(())).map_err(failed)?;
        device_ns.push(timing.device_ns);
    }
    Ok(ControlSamples { work: bytes * passes, device_ns })
}
