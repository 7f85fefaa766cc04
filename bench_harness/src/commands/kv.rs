//! `attnbench kv`: the arithmetic of KV caches.

use anyhow::{Context, bail};
use attn_kernels::problem::id::{parse_lengths, parse_mechanism, parse_pattern};
use attn_kernels::problem::{Mechanism, Pattern};

use super::{Exit, terminal};
use crate::kv::size::{parse_bytes, parse_share_or_bytes};
use crate::kv::{Budget, CacheShape, Element};
use crate::report::kv::{Question, answer, text};
use crate::suite::presets::{LayerGroup, MODELS, Model, find};

/// Count what a model's KV cache takes, and what fits in a memory
///
/// For a preset or an explicit shape: exact bytes a token, a sequence and a batch, the same with other attention designs,
/// the materialised scores, the longest context and the most sequences that fit, and what pages waste.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A model preset, such as `llama-3-70b`; `--model list` names all of them
    #[arg(long, value_name = "NAME", conflicts_with_all = ["layers", "heads_q", "heads_kv", "head_dim", "mechanism", "pattern"])]
    model: Option<String>,

    /// Layers
    #[arg(long, value_name = "N", required_unless_present = "model", value_parser = clap::value_parser!(u32).range(1..))]
    layers: Option<u32>,

    /// Query heads
    #[arg(long, value_name = "N", required_unless_present = "model")]
    heads_q: Option<usize>,

    /// KV heads: a divisor of the query heads [default: as many]
    #[arg(long, value_name = "N")]
    heads_kv: Option<usize>,

    /// Elements of a head's row [default: 128]
    #[arg(long, value_name = "N")]
    head_dim: Option<usize>,

    /// `softmax`, `mla:latent=512,nope=128,rope=64` or `linear`
    #[arg(long, value_name = "MECHANISM")]
    mechanism: Option<String>,

    /// `full`, `window:4096`, ...: the patterns of suites
    #[arg(long, value_name = "PATTERN")]
    pattern: Option<String>,

    /// Tokens a sequence
    #[arg(long, value_name = "N", default_value_t = 8192)]
    context: u64,

    /// Sequences
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    batch: u64,

    /// How the cache is stored: f32, f16, bf16, fp8, int8, int6 or int4
    #[arg(long, value_name = "DTYPE", default_value = "f16")]
    dtype: Element,

    /// Memory that weights, reserve and caches share, such as `80GB` or `24GiB`
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    memory: Option<u64>,

    /// Bytes of the weights; of a preset they follow from its parameters
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, requires = "memory")]
    weights: Option<u64>,

    /// How a preset's weights are stored
    #[arg(long, value_name = "DTYPE", default_value = "bf16")]
    weights_dtype: Element,

    /// Memory that stays free for activations and fragmentation: a share or an amount
    #[arg(long, value_name = "SHARE|BYTES", default_value = "10%")]
    reserve: String,

    /// Lengths of a server's sequences, to see what pages waste: `uniform:1-8192`, `loguniform:1-8192:s7`, `list:5,7,9`
    #[arg(long, value_name = "LENGTHS")]
    lengths: Option<String>,

    /// How many lengths are drawn
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    sequences: u32,

    /// Print JSON, with exact byte counts
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  attnbench kv --model llama-3-70b --context 32768 --memory 160GB
  attnbench kv --layers 80 --heads-q 64 --heads-kv 8 --head-dim 128 --context 8192 --dtype f16 --json
  attnbench kv --model deepseek-v2 --dtype int6
  attnbench kv --model llama-3-8b --lengths loguniform:16-8192 --sequences 256";

/// Counts and prints.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    if args.model.as_deref() == Some("list") {
        return list(args.json);
    }
    let model = args.model.as_deref().map(find_model).transpose()?;
    let shape = match model {
        Some(model) => CacheShape::of_model(model),
        None => CacheShape::new(vec![layers(&args)?]),
    };
    let question = Question {
        name: model.map_or("the given shape".to_owned(), |model| model.name.to_owned()),
        source: model.map(|model| model.source.to_owned()),
        shape: shape.context("counting a cache")?,
        element: args.dtype,
        context: args.context,
        batch: args.batch,
        budget: args.memory.map(|memory| budget(&args, model, memory)).transpose()?,
        lengths: args.lengths.as_deref().map(|text| lengths(text, args.sequences)).transpose()?,
    };
    let answer = answer(&question)?;
    if args.json {
        terminal::print_json(&answer)?;
    } else {
        terminal::print(&text(&answer, terminal::style()))?;
    }
    Ok(Exit::Pass)
}

fn find_model(name: &str) -> anyhow::Result<&'static Model> {
    find(name).with_context(|| {
        let names: Vec<&str> = MODELS.iter().map(|model| model.name).collect();
        let close = names.iter().max_by(|a, b| strsim::jaro_winkler(name, a).total_cmp(&strsim::jaro_winkler(name, b)));
        let hint = close.map(|close| format!("; did you mean `{close}`?")).unwrap_or_default();
        format!("counting a cache: there is no model preset `{name}`{hint} `attnbench kv --model list` names them")
    })
}

/// The layers that the options describe.
fn layers(args: &Args) -> anyhow::Result<LayerGroup> {
    let heads_q = args.heads_q.context("counting a cache: --heads-q is missing")?;
    let layers = args.layers.context("counting a cache: --layers is missing")?;
    let mechanism = args.mechanism.as_deref().map_or(Ok(Mechanism::Softmax), parse_mechanism);
    let pattern = args.pattern.as_deref().map_or(Ok(Pattern::Full), parse_pattern);
    let mut group = LayerGroup::dense(layers, heads_q, args.heads_kv.unwrap_or(heads_q), args.head_dim.unwrap_or(128));
    group.mechanism = mechanism.context("reading --mechanism")?;
    group.pattern = pattern.context("reading --pattern")?;
    if let Mechanism::Mla { rope, nope, .. } = group.mechanism {
        if args.heads_kv.is_some() || args.head_dim.is_some() {
            bail!("counting a cache: MLA's latent decides its rows; leave --heads-kv and --head-dim out");
        }
        (group.head_dim_qk, group.head_dim_v) = (nope.saturating_add(rope), nope);
    }
    Ok(group)
}

fn budget(args: &Args, model: Option<&Model>, memory_bytes: u64) -> anyhow::Result<Budget> {
    let of_preset = || model.map(|model| args.weights_dtype.bytes(model.parameters) as u64);
    let weight_bytes = args.weights.or_else(of_preset).unwrap_or(0);
    let reserve = parse_share_or_bytes(&args.reserve, memory_bytes);
    let reserve_bytes = reserve.map_err(|error| anyhow::anyhow!("reading --reserve: {error}"))?;
    Ok(Budget { memory_bytes, weight_bytes, reserve_bytes })
}

fn lengths(text: &str, sequences: u32) -> anyhow::Result<Vec<u64>> {
    use attn_kernels::problem::Lengths;
    let lengths = parse_lengths(&format!("@{}", text.trim_start_matches('@'))).context("reading --lengths")?;
    if let Lengths::Varlen { min, max, .. } = lengths
        && min > max
    {
        bail!("reading --lengths `{text}`: the smallest length is larger than the largest; swap them");
    }
    Ok(lengths.expand(sequences as usize).into_iter().map(|length| length as u64).collect())
}

fn list(json: bool) -> anyhow::Result<Exit> {
    let decoders = MODELS.iter().filter(|model| model.causal);
    if json {
        terminal::print_json(&decoders.map(|model| model.name).collect::<Vec<_>>())?;
    } else {
        let lines: Vec<String> = decoders.map(|model| format!("{:20} {}", model.name, model.source)).collect();
        terminal::print(&lines.join("\n"))?;
    }
    Ok(Exit::Pass)
}
