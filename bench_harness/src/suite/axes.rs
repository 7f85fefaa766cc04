//! The axes of a matrix: one row of [`AXES`] each, from which reading, checking and expanding follow.
//!
//! The order of the table is the order of the product, first axis slowest, whatever the order of keys in the file: moving
//! a line changes no plan.

use std::ops::RangeInclusive;

use attn_kernels::problem::id::{parse_heads, parse_lengths, parse_mechanism, parse_pattern};
use attn_kernels::problem::{
    Bias, CausalAlignment, Dtype, KvLayout, Layout, Lengths, Mechanism, Pattern, Phase, legal,
};
use toml::de::DeValue;

use super::error::{Fault, quote, suggest};
use super::presets::{LayerGroup, MODELS, Model};
use super::value::{MAX_VALUES, Node, boolean, integer, integers, mismatch, number, one_or_many, range, string};
use crate::case::Mode;

/// A key of a matrix that may have several values.
pub(super) struct Axis {
    /// The key.
    pub(super) name: &'static str,
    /// What one value may be, for errors.
    pub(super) expects: &'static str,
    /// Keys that say the same thing, of which only one may be given.
    pub(super) excludes: &'static [&'static str],
    read: fn(&Axis, &Node<'_>) -> Result<Vec<AxisValue>, Fault>,
}

/// One value of an axis.
#[derive(Clone, Debug)]
pub(super) enum AxisValue {
    /// A layer group of a model.
    Model(&'static Model, &'static LayerGroup),
    Mechanism(Mechanism),
    Pattern(Pattern),
    Phase(Phase),
    Causal(bool),
    Align(CausalAlignment),
    Dtype(Dtype),
    DtypeKv(Dtype),
    Batch(usize),
    Heads(Heads),
    Seqlen(Lengths),
    SeqlenQ(Lengths),
    SeqlenKv(Lengths),
    HeadDim(usize),
    HeadDimQk(usize),
    HeadDimV(usize),
    Scale(Option<f64>),
    Softcap(Option<f64>),
    Bias(Bias),
    Sinks(bool),
    Layout(Layout),
    KvLayout(KvLayout),
    Deterministic(bool),
    Mode(Mode),
    Threads(Threads),
}

/// Query and key-value heads.
#[derive(Clone, Copy, Debug)]
pub(super) enum Heads {
    /// As many KV heads as the mechanism has for this many query heads: the same number, or one for absorbed MLA.
    Same(usize),
    /// Query heads : KV heads.
    Grouped(usize, usize),
}

/// Threads of a CPU kernel.
#[derive(Clone, Copy, Debug)]
pub(super) enum Threads {
    /// Every core that this process may use.
    All,
    /// So many.
    Count(usize),
}

/// The keys that a model decides.
const MODEL_DECIDES: &[&str] =
    &["mechanism", "pattern", "causal", "heads", "head_dim", "head_dim_qk", "head_dim_v", "scale", "softcap", "sinks"];

const LENGTHS: &str = "a length, a range such as `{ pow2 = [1024, 16384] }` or `{ from = 1000, to = 4000, step = 1000 }`, \
                       one length a sequence such as `[[100, 7]]`, or a distribution such as `\"@uniform:1-512:s7\"`";

/// Most threads.
const MAX_THREADS: u64 = 4096;

/// Every axis, slowest first.
pub(super) const AXES: &[Axis] = &[
    axis("model", "the name of a model preset", MODEL_DECIDES, read_model),
    axis("mechanism", MECHANISMS, &[], |axis, node| {
        parsed(axis, node, |text| parse_mechanism(text).map(AxisValue::Mechanism).map_err(|e| e.to_string()))
    }),
    axis("pattern", PATTERNS, &[], |axis, node| {
        parsed(axis, node, |text| parse_pattern(text).map(AxisValue::Pattern).map_err(|e| e.to_string()))
    }),
    axis("phase", "`prefill`, `decode`, `append` or `backward`", &[], |axis, node| {
        named(axis, node, Phase::ALL.map(|phase| (phase.name(), AxisValue::Phase(phase))))
    }),
    axis("causal", "`true` or `false`", &[], |axis, node| booleans(axis, node, AxisValue::Causal)),
    axis("align", "`bottom_right` or `top_left`", &[], |axis, node| {
        let values = [("bottom_right", CausalAlignment::BottomRight), ("top_left", CausalAlignment::TopLeft)];
        named(axis, node, values.map(|(name, value)| (name, AxisValue::Align(value))))
    }),
    axis("dtype", "`f32`, `f16` or `bf16`", &[], |axis, node| {
        named(axis, node, Dtype::ALL.map(|dtype| (dtype.name(), AxisValue::Dtype(dtype))))
    }),
    axis("dtype_kv", "`f32`, `f16`, `bf16` or `e4m3`", &[], |axis, node| {
        named(axis, node, Dtype::STORED.map(|dtype| (dtype.name(), AxisValue::DtypeKv(dtype))))
    }),
    axis("batch", "a number of sequences", &[], |axis, node| {
        counts(axis, node, 1..=legal::MAX_BATCH as u64, AxisValue::Batch)
    }),
    axis("heads", "query and KV heads such as `\"32:8\"`, or one number for both", &[], read_heads),
    axis("seqlen", LENGTHS, &["seqlen_q", "seqlen_kv"], |axis, node| lengths(axis, node, AxisValue::Seqlen)),
    axis("seqlen_q", LENGTHS, &[], |axis, node| lengths(axis, node, AxisValue::SeqlenQ)),
    axis("seqlen_kv", LENGTHS, &[], |axis, node| lengths(axis, node, AxisValue::SeqlenKv)),
    axis("head_dim", "elements of a head's row", &["head_dim_qk", "head_dim_v"], |axis, node| {
        counts(axis, node, 1..=legal::MAX_HEAD_DIM as u64, AxisValue::HeadDim)
    }),
    axis("head_dim_qk", "elements of a query or key row", &[], |axis, node| {
        counts(axis, node, 1..=legal::MAX_HEAD_DIM as u64, AxisValue::HeadDimQk)
    }),
    axis("head_dim_v", "elements of a value row", &[], |axis, node| {
        counts(axis, node, 1..=legal::MAX_HEAD_DIM as u64, AxisValue::HeadDimV)
    }),
    axis("scale", "a factor of the scores, or `none` for 1/sqrt(head_dim_qk)", &[], |axis, node| {
        optional(
            axis,
            node,
            |node| number(axis.name, node).map(|value| AxisValue::Scale(Some(value))),
            AxisValue::Scale(None),
        )
    }),
    axis("softcap", "a cap of the scores, or `none`", &[], |axis, node| {
        optional(
            axis,
            node,
            |node| number(axis.name, node).map(|value| AxisValue::Softcap(Some(value))),
            AxisValue::Softcap(None),
        )
    }),
    axis("bias", "`none`, `bool`, `additive` or `alibi`", &[], |axis, node| {
        named(axis, node, Bias::ALL.map(|bias| (bias.name(), AxisValue::Bias(bias))))
    }),
    axis("sinks", "`true` or `false`", &[], |axis, node| booleans(axis, node, AxisValue::Sinks)),
    axis("layout", "`bshd`, `bhsd` or `thd`", &[], |axis, node| {
        named(axis, node, Layout::ALL.map(|layout| (layout.name(), AxisValue::Layout(layout))))
    }),
    axis("page_size", "tokens a page of the KV cache, or `none` for a contiguous one", &[], |axis, node| {
        let page = |node: &Node<'_>| {
            let page_size = integer(axis.name, 1..=legal::MAX_PAGE_SIZE as u64, node)? as usize;
            Ok(AxisValue::KvLayout(KvLayout::Paged { page_size }))
        };
        optional(axis, node, page, AxisValue::KvLayout(KvLayout::Contiguous))
    }),
    axis("deterministic", "`true` or `false`", &[], |axis, node| booleans(axis, node, AxisValue::Deterministic)),
    axis("mode", "`cold` or `hot`", &[], |axis, node| {
        named(axis, node, [Mode::Cold, Mode::Hot].map(|mode| (mode.name(), AxisValue::Mode(mode))))
    }),
    axis("threads", "a number of threads, or `all` for every available core", &[], |axis, node| {
        let read = |node: &Node<'_>| match node.get_ref() {
            DeValue::String(text) if text == "all" => Ok(AxisValue::Threads(Threads::All)),
            DeValue::Integer(_) => {
                integer(axis.name, 1..=MAX_THREADS, node).map(|n| AxisValue::Threads(Threads::Count(n as usize)))
            }
            _ => Err(mismatch(axis.name, axis.expects, node)),
        };
        one_or_many(axis.name, axis.expects, node)?.into_iter().map(read).collect()
    }),
];

const MECHANISMS: &str = "`softmax`, `linear`, `linformer` or `mla`, with options such as `linformer:rank=128`";
const PATTERNS: &str = "`full`, `window:w`, `window:left,right`, `dilated:w,step`, `longformer:w,global`, `bigbird`, \
                        `strided:l` or `fixed:l,c`";

const fn axis(
    name: &'static str,
    expects: &'static str,
    excludes: &'static [&'static str],
    read: fn(&Axis, &Node<'_>) -> Result<Vec<AxisValue>, Fault>,
) -> Axis {
    Axis { name, expects, excludes, read }
}

impl Axis {
    /// Every value that the file gives the axis: at least one.
    pub(super) fn values(&self, node: &Node<'_>) -> Result<Vec<AxisValue>, Fault> {
        (self.read)(self, node)
    }
}

/// The axis of that name, and its place in the order.
pub(super) fn find(name: &str) -> Option<(usize, &'static Axis)> {
    AXES.iter().enumerate().find(|(_, axis)| axis.name == name)
}

fn read_model(axis: &Axis, node: &Node<'_>) -> Result<Vec<AxisValue>, Fault> {
    let mut values = Vec::new();
    for node in one_or_many(axis.name, axis.expects, node)? {
        let name = string(axis.name, axis.expects, node)?;
        let model = MODELS.iter().find(|model| model.name == name).ok_or_else(|| {
            let names = MODELS.iter().map(|model| model.name);
            Fault::at(node.span(), format!("there is no model preset {}{}", quote(name), suggest(name, names)))
        })?;
        values.extend(model.layers.iter().map(|group| AxisValue::Model(model, group)));
    }
    Ok(values)
}

fn read_heads(axis: &Axis, node: &Node<'_>) -> Result<Vec<AxisValue>, Fault> {
    let mut values = Vec::new();
    for node in one_or_many(axis.name, axis.expects, node)? {
        let heads = match node.get_ref() {
            DeValue::String(text) => {
                let (q, kv) =
                    parse_heads(text.as_ref()).map_err(|error| Fault::at(node.span(), format!("`heads`: {error}")))?;
                Heads::Grouped(q, kv)
            }
            DeValue::Integer(_) => Heads::Same(integer(axis.name, 1..=legal::MAX_HEADS as u64, node)? as usize),
            _ => return Err(mismatch(axis.name, axis.expects, node)),
        };
        values.push(AxisValue::Heads(heads));
    }
    Ok(values)
}

fn lengths(axis: &Axis, node: &Node<'_>, wrap: fn(Lengths) -> AxisValue) -> Result<Vec<AxisValue>, Fault> {
    const LIMITS: RangeInclusive<u64> = 0..=legal::MAX_LENGTH as u64;
    let mut values = Vec::new();
    for node in one_or_many(axis.name, axis.expects, node)? {
        match node.get_ref() {
            DeValue::Integer(_) => values.push(Lengths::Same(integer(axis.name, LIMITS, node)? as usize)),
            DeValue::Table(table) => {
                let range = range(axis.name, &LIMITS, node, table)?;
                values.extend(range.into_iter().map(|length| Lengths::Same(length as usize)));
            }
            DeValue::String(text) => {
                let lengths = parse_lengths(text.as_ref())
                    .map_err(|error| Fault::at(node.span(), format!("`{}`: {error}", axis.name)))?;
                values.push(lengths);
            }
            DeValue::Array(_) => {
                let list = one_or_many(axis.name, "one length a sequence", node)?
                    .into_iter()
                    .map(|node| integer(axis.name, LIMITS, node).map(|length| length as usize));
                values.push(Lengths::List(list.collect::<Result<_, _>>()?));
            }
            _ => return Err(mismatch(axis.name, axis.expects, node)),
        }
        if values.len() > MAX_VALUES {
            return Err(Fault::at(node.span(), format!("`{}` has more than {MAX_VALUES} values", axis.name)));
        }
    }
    Ok(values.into_iter().map(wrap).collect())
}

fn counts(
    axis: &Axis,
    node: &Node<'_>,
    limits: RangeInclusive<u64>,
    wrap: fn(usize) -> AxisValue,
) -> Result<Vec<AxisValue>, Fault> {
    let values = integers(axis.name, axis.expects, limits, node)?;
    Ok(values.into_iter().map(|value| wrap(value as usize)).collect())
}

fn booleans(axis: &Axis, node: &Node<'_>, wrap: fn(bool) -> AxisValue) -> Result<Vec<AxisValue>, Fault> {
    one_or_many(axis.name, axis.expects, node)?.into_iter().map(|node| boolean(axis.name, node).map(wrap)).collect()
}

/// Values that are one of a few names.
fn named<const N: usize>(axis: &Axis, node: &Node<'_>, names: [(&str, AxisValue); N]) -> Result<Vec<AxisValue>, Fault> {
    let read = |node: &Node<'_>| {
        let text = string(axis.name, axis.expects, node)?;
        names.iter().find(|(name, _)| *name == text).map(|(_, value)| value.clone()).ok_or_else(|| {
            let hint = suggest(text, names.iter().map(|(name, _)| *name));
            Fault::at(node.span(), format!("`{}` knows no {}{hint}", axis.name, quote(text)))
        })
    };
    one_or_many(axis.name, axis.expects, node)?.into_iter().map(read).collect()
}

/// Values that a parser of case ids reads.
fn parsed(
    axis: &Axis,
    node: &Node<'_>,
    parse: impl Fn(&str) -> Result<AxisValue, String>,
) -> Result<Vec<AxisValue>, Fault> {
    let read = |node: &Node<'_>| {
        let text = string(axis.name, axis.expects, node)?;
        parse(text).map_err(|error| Fault::at(node.span(), format!("`{}`: {error}", axis.name)))
    };
    one_or_many(axis.name, axis.expects, node)?.into_iter().map(read).collect()
}

/// Values that may be switched off by the word `none`.
fn optional(
    axis: &Axis,
    node: &Node<'_>,
    read: impl Fn(&Node<'_>) -> Result<AxisValue, Fault>,
    none: AxisValue,
) -> Result<Vec<AxisValue>, Fault> {
    let read = |node: &Node<'_>| match node.get_ref() {
        DeValue::String(text) if text == "none" => Ok(none.clone()),
        DeValue::Integer(_) | DeValue::Float(_) => read(node),
        _ => Err(mismatch(axis.name, axis.expects, node)),
    };
    one_or_many(axis.name, axis.expects, node)?.into_iter().map(read).collect()
}

/// The names of all axes, for errors.
pub(super) fn names() -> impl Iterator<Item = &'static str> + Clone {
    AXES.iter().map(|axis| axis.name)
}
