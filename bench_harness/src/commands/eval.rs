//! `attnbench eval`: runs one kernel on the user's own tensors.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use attn_kernels::cpu::KERNELS;
use attn_kernels::kernel::{Kernel, KernelError};
use attn_kernels::problem::CausalAlignment;
use serde::Serialize;

use super::{Exit, terminal};
use crate::device::cpu;
use crate::eval::{self, EvalError, Evaluation};
use crate::tensor_file::{self, Array, Location, PendingFile};

/// Run one kernel on your own tensors
///
/// This is the way to check a kernel against any other framework's numbers. The semantics are those of the ONNX
/// `Attention` operator: score = softcap(scale * q.k) + mask, softmax over the visible keys, zeros for a query that sees
/// none; query head h uses KV head h / (heads_q / heads_kv).
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Kernel, as `attnbench kernels` lists them: cpu/naive and cpu/flash take every mask, the others refuse what they do
    /// not compute
    #[arg(long, value_name = "PROVIDER/KERNEL")]
    kernel: String,
    /// Queries: .npy or .safetensors (`file.safetensors#name` chooses one of several tensors), float32, float16 or
    /// bfloat16, of shape (batch, heads, length, dim), or (batch, length, heads * dim) with --heads-q
    #[arg(long, value_name = "FILE")]
    q: Location,
    /// Keys, in the layout of the queries
    #[arg(long, value_name = "FILE")]
    k: Location,
    /// Values, in the layout of the queries; their dim may differ
    #[arg(long, value_name = "FILE")]
    v: Location,
    /// Where the output goes (.npy or .safetensors), in the queries' layout and dtype
    #[arg(long, value_name = "FILE")]
    out: Location,
    /// Mask of 2 to 4 dimensions, broadcast to (batch, heads, queries, keys): boolean (true = visible), or floating-point
    /// (added to the scores). One with fewer keys than there are hides the rest
    #[arg(long, value_name = "FILE")]
    mask: Option<Location>,
    /// Earlier keys, in front of the new ones: (batch, heads_kv, length, dim)
    #[arg(long, value_name = "FILE", requires = "past_value")]
    past_key: Option<Location>,
    /// Earlier values
    #[arg(long, value_name = "FILE", requires = "past_key")]
    past_value: Option<Location>,
    /// How many keys of each sequence count, the past included: (batch) integers
    #[arg(long, value_name = "FILE")]
    kv_lengths: Option<Location>,
    /// A query at position p sees keys 0 to p
    #[arg(long)]
    causal: bool,
    /// Where the queries stand, for --causal and the windows: with top_left, as in the operator, query 0 stands at key
    /// 0, behind the past where there is one, and at kv_length - queries where --kv-lengths is given without a past; with
    /// bottom_right the last query stands at the last key that counts
    #[arg(long, value_enum, value_name = "WHERE", default_value = "top_left")]
    causal_alignment: Alignment,
    /// Keys before its position that a query sees; -1 for all
    #[arg(long, value_name = "N", allow_negative_numbers = true, default_value = "-1", value_parser = parse_window)]
    window_left: Window,
    /// Keys after its position that a query sees; -1 for all
    #[arg(long, value_name = "N", allow_negative_numbers = true, default_value = "-1", value_parser = parse_window)]
    window_right: Window,
    /// Factor of q.k [default: 1/sqrt(dim)]
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    scale: Option<f64>,
    /// Caps scores at C * tanh(score / C), before the mask; 0 for no cap
    #[arg(long, value_name = "C", allow_negative_numbers = true)]
    softcap: Option<f64>,
    /// Query heads: needed for 3-D tensors, checked for 4-D ones
    #[arg(long, value_name = "N")]
    heads_q: Option<usize>,
    /// KV heads: for 3-D tensors they follow from the keys' last dimension
    #[arg(long, value_name = "M")]
    heads_kv: Option<usize>,
    /// CPU threads [default: all usable cores]
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Where past and new keys go, one after the other
    #[arg(long, value_name = "FILE")]
    present_key_out: Option<Location>,
    /// Where past and new values go, one after the other
    #[arg(long, value_name = "FILE")]
    present_value_out: Option<Location>,
    /// Where the natural log-sum-exp of each query's scores goes: (batch, heads_q, queries) float32
    #[arg(long, value_name = "FILE")]
    lse_out: Option<Location>,
    /// How 16-bit unsigned elements are read: numpy has no bfloat16, so programs store its bits as uint16 (two raw bytes,
    /// descr `V2`, are bfloat16 anyway)
    #[arg(long, value_enum, value_name = "DTYPE")]
    dtype: Option<SixteenBits>,
    /// Print what was computed as JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  Compare a kernel with your framework's output:
    attnbench eval --kernel cpu/flash --q q.npy --k k.npy --v v.npy --out o.npy --causal

  Tensors of one file, grouped heads, soft-capped scores, and LSE as well:
    attnbench eval --kernel cpu/flash --q t.safetensors#q --k t.safetensors#k --v t.safetensors#v \\
        --softcap 30 --out o.safetensors --lse-out lse.npy

  A decoding step onto a cache, with the new cache written out:
    attnbench eval --kernel cpu/naive --q q.npy --k k.npy --v v.npy --causal --out o.npy \\
        --past-key pk.npy --past-value pv.npy --present-key-out pk2.npy --present-value-out pv2.npy

  (batch, length, heads * dim) tensors with a mask:
    attnbench eval --kernel cpu/flash --q q.npy --k k.npy --v v.npy --heads-q 8 --heads-kv 2 \\
        --mask mask.npy --out o.npy";

#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum Alignment {
    #[value(name = "top_left", alias = "top-left")]
    TopLeft,
    #[value(name = "bottom_right", alias = "bottom-right")]
    BottomRight,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq)]
enum SixteenBits {
    Bf16,
}

/// None for no bound; a type of its own, so that clap does not take it for an optional argument.
#[derive(Clone, Copy, Debug)]
struct Window(Option<usize>);

fn parse_window(text: &str) -> Result<Window, String> {
    match text.parse::<i64>() {
        Ok(-1) => Ok(Window(None)),
        Ok(keys) => usize::try_from(keys)
            .map(|keys| Window(Some(keys)))
            .map_err(|_| "a number of keys is 0 or more, or -1 for all".into()),
        Err(_) => Err("not a number of keys; -1 stands for all".into()),
    }
}

/// What was computed, for `--json`.
#[derive(Serialize, Debug)]
struct Report {
    kernel: String,
    /// None where there was no query or no key.
    problem: Option<String>,
    dtype: &'static str,
    q: Vec<usize>,
    k: Vec<usize>,
    v: Vec<usize>,
    scale: f64,
    softcap: Option<f64>,
    threads: usize,
    run_ms: f64,
    outputs: Vec<Output>,
}

#[derive(Serialize, Debug)]
struct Output {
    name: &'static str,
    file: String,
    dtype: &'static str,
    dims: Vec<usize>,
}

/// Reads, computes, writes. Files that will be written are claimed first, so that no computation is lost to a typing
/// error in a path.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    let kernel = find_kernel(&args.kernel)?;
    let mut pending = claim_outputs(&args)?;
    let inputs = read_inputs(&args)?;
    let threads = args.threads.map_or_else(cpu::usable_cores, usize::from);
    let options = eval::Options {
        heads_q: args.heads_q,
        heads_kv: args.heads_kv,
        causal: args.causal,
        causal_alignment: match args.causal_alignment {
            Alignment::TopLeft => CausalAlignment::TopLeft,
            Alignment::BottomRight => CausalAlignment::BottomRight,
        },
        window_left: args.window_left.0,
        window_right: args.window_right.0,
        scale: args.scale,
        softcap: args.softcap.filter(|&cap| cap != 0.0),
        uint16_is_bf16: args.dtype == Some(SixteenBits::Bf16),
        lse: args.lse_out.is_some(),
        present: args.present_key_out.is_some() || args.present_value_out.is_some(),
        threads,
        available_bytes: cpu::memory::available_bytes(),
    };
    let evaluation = match eval::evaluate(kernel, &inputs, &options) {
        Ok(evaluation) => evaluation,
        Err(error @ EvalError::Kernel { cause: KernelError::OutOfMemory { .. } | KernelError::Failed(_), .. }) => {
            eprintln!("error: {error}");
            return Ok(Exit::Failed);
        }
        Err(error) => bail!(error),
    };
    let mut outputs = Vec::new();
    for (name, array) in named_outputs(&evaluation) {
        let Some(position) = pending.iter().position(|(pending, _)| *pending == name) else { continue };
        let (_, file) = pending.swap_remove(position);
        let location = file.location().to_string();
        file.finish(array)?;
        outputs.push(Output { name, file: location, dtype: array.dtype.name(), dims: array.dims.clone() });
    }
    let report = Report {
        kernel: args.kernel,
        problem: evaluation.problem.as_ref().map(|problem| problem.id()),
        dtype: inputs.q.dtype.name(),
        q: inputs.q.dims,
        k: inputs.k.dims,
        v: inputs.v.dims,
        scale: evaluation.scale,
        softcap: options.softcap,
        threads,
        run_ms: evaluation.run_ns as f64 / 1e6,
        outputs,
    };
    if args.json {
        terminal::print_json(&report)?;
    } else {
        terminal::print(&text_of(&report))?;
    }
    Ok(Exit::Pass)
}

/// A line for the call, and one for each output.
fn text_of(report: &Report) -> String {
    let mut text = format!(
        "{}: q {:?}, k {:?}, v {:?}, {}, scale {:.6}, {} thread{}, {:.3} ms",
        report.kernel,
        report.q,
        report.k,
        report.v,
        report.dtype,
        report.scale,
        report.threads,
        if report.threads == 1 { "" } else { "s" },
        report.run_ms
    );
    for output in &report.outputs {
        text += &format!("\n  {} {:?} {} -> {}", output.name, output.dims, output.dtype, output.file);
    }
    text
}

fn find_kernel(id: &str) -> anyhow::Result<&'static dyn Kernel> {
    id.strip_prefix("cpu/").and_then(attn_kernels::cpu::find).with_context(|| {
        let known: Vec<String> = KERNELS.iter().map(|kernel| format!("cpu/{}", kernel.name())).collect();
        format!("choosing kernel `{id}`: there is no such kernel; eval runs {}", known.join(", "))
    })
}

const O: &str = "o";
const LSE: &str = "lse";
const PRESENT_KEY: &str = "present_key";
const PRESENT_VALUE: &str = "present_value";

fn named_outputs(evaluation: &Evaluation) -> Vec<(&'static str, &Array)> {
    let mut named = vec![(O, &evaluation.o)];
    named.extend(evaluation.lse.as_ref().map(|lse| (LSE, lse)));
    if let Some((key, value)) = &evaluation.present {
        named.extend([(PRESENT_KEY, key), (PRESENT_VALUE, value)]);
    }
    named
}

/// Every output file; two outputs in one file, or an output in the place of an input, are errors.
fn claim_outputs(args: &Args) -> anyhow::Result<Vec<(&'static str, PendingFile)>> {
    let inputs = [Some(&args.q), Some(&args.k), Some(&args.v), args.mask.as_ref(), args.past_key.as_ref()];
    let inputs = inputs.into_iter().chain([args.past_value.as_ref(), args.kv_lengths.as_ref()]).flatten();
    let mut taken: Vec<(PathBuf, &str)> = inputs.map(|input| (resolve(&input.path), "an input")).collect();
    let outputs = [
        (O, Some(&args.out)),
        (LSE, args.lse_out.as_ref()),
        (PRESENT_KEY, args.present_key_out.as_ref()),
        (PRESENT_VALUE, args.present_value_out.as_ref()),
    ];
    let mut pending = Vec::new();
    for (name, location) in outputs {
        let Some(location) = location else { continue };
        let path = resolve(&location.path);
        if let Some((_, other)) = taken.iter().find(|(other, _)| *other == path) {
            bail!("writing `{location}`: this file is also {other}; each output needs a file of its own");
        }
        taken.push((path, "another output"));
        pending.push((name, PendingFile::create(location.clone(), name)?));
    }
    Ok(pending)
}

/// The path without links, as far as it exists, so that two spellings of one file are seen to be one.
fn resolve(path: &Path) -> PathBuf {
    let canonical = path.canonicalize().ok();
    canonical
        .or_else(|| {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            Some(parent.canonicalize().ok()?.join(path.file_name()?))
        })
        .unwrap_or_else(|| path.to_owned())
}

fn read_inputs(args: &Args) -> anyhow::Result<eval::Inputs> {
    let optional = |location: &Option<Location>| location.as_ref().map(tensor_file::read).transpose();
    let past = optional(&args.past_key)?.zip(optional(&args.past_value)?);
    Ok(eval::Inputs {
        q: tensor_file::read(&args.q)?,
        k: tensor_file::read(&args.k)?,
        v: tensor_file::read(&args.v)?,
        past,
        mask: optional(&args.mask)?,
        kv_lengths: optional(&args.kv_lengths)?,
    })
}
