//! The name of a problem: what a case id says after its provider and kernel.
//!
//! ```text
//! mechanism[:opts]/phase/pattern[+causal[-tl]]/dtype[+kv-dtype]/bN/hQ:KV/qN/kN/dQK[:DV][/option=value...]
//! softmax/prefill/full+causal/bf16/b1/h32:8/q8192/k8192/d128
//! softmax/decode/window:4095,0+causal/bf16+f16/b3/h8:8/q1/k@uniform:1-1024:s7/d128/page=16
//! ```
//!
//! Printing is canonical: defaults are left out, options are sorted, and two problems have one name only if they are
//! equal. Parsing takes options in any order and spelled-out defaults. It gives back exactly the problem that was printed,
//! valid or not: [`AttentionProblem::validate`] is another step. Characters are `[a-z0-9:=,.+_/@-]`.

mod parts;
#[cfg(test)]
pub(crate) mod tests;

use std::fmt;
use std::str::FromStr;

pub use parts::{
    MECHANISM_FORMS, PATTERN_FORMS, parse_heads, parse_lengths, parse_mask, parse_mechanism, parse_pattern,
};
use parts::{choose, number, real};

use super::{AttentionProblem, Bias, CausalAlignment, Dtype, KvLayout, Layout, Lengths, Phase};

/// Why a text is no problem id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct IdError(pub String);

/// The options after the dimensions, in the order in which they are printed.
const OPTIONS: [&str; 8] = ["align", "bias", "deterministic", "layout", "page", "scale", "sinks", "softcap"];

impl AttentionProblem {
    /// The canonical name of this problem.
    pub fn id(&self) -> String {
        self.to_string()
    }

    /// Parses [`AttentionProblem::id`]. The error names the part, what was found and the valid choices.
    pub fn parse_id(text: &str) -> Result<AttentionProblem, IdError> {
        parse(text).map_err(|IdError(why)| IdError(format!("problem id `{text}`: {why}")))
    }
}

impl FromStr for AttentionProblem {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        AttentionProblem::parse_id(text)
    }
}

impl fmt::Display for AttentionProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_top_left = self.causal_alignment == CausalAlignment::TopLeft;
        write!(f, "{}/{}/{}", self.mechanism, self.phase.name(), self.pattern)?;
        if self.causal {
            f.write_str(if is_top_left { "+causal-tl" } else { "+causal" })?;
        }
        write!(f, "/{}", self.dtype.name())?;
        if self.dtype_kv != self.dtype {
            write!(f, "+{}", self.dtype_kv.name())?;
        }
        write!(f, "/b{}/h{}:{}", self.batch, self.heads_q, self.heads_kv)?;
        write!(f, "/q{}/k{}/d{}", self.seqlen_q, self.seqlen_kv, self.head_dim_qk)?;
        if self.head_dim_v != self.head_dim_qk {
            write!(f, ":{}", self.head_dim_v)?;
        }
        if is_top_left && !self.causal {
            f.write_str("/align=tl")?;
        }
        if self.bias != Bias::None {
            write!(f, "/bias={}", self.bias.name())?;
        }
        if self.deterministic {
            f.write_str("/deterministic=true")?;
        }
        if self.layout != Layout::Bshd {
            write!(f, "/layout={}", self.layout.name())?;
        }
        if let KvLayout::Paged { page_size } = self.kv_layout {
            write!(f, "/page={page_size}")?;
        }
        if let Some(scale) = self.scale {
            write!(f, "/scale={}", parts::Real(scale))?;
        }
        if self.sinks {
            f.write_str("/sinks=true")?;
        }
        if let Some(softcap) = self.softcap {
            write!(f, "/softcap={}", parts::Real(softcap))?;
        }
        Ok(())
    }
}

fn parse(text: &str) -> Result<AttentionProblem, IdError> {
    let mut segments = text.split('/');
    let mut next = |part: &str| segments.next().ok_or_else(|| IdError(format!("it ends where {part} should stand")));

    let mechanism = parse_mechanism(next("the mechanism")?)?;
    let phase = choose("phase", next("the phase")?, Phase::ALL, Phase::name)?;
    let (pattern, causal, mut causal_alignment) = parse_mask(next("the pattern")?)?;
    let dtypes = next("the dtype")?;
    let (dtype, dtype_kv) = dtypes.split_once('+').unwrap_or((dtypes, dtypes));
    let dtype = choose("dtype", dtype, Dtype::STORED, Dtype::name)?;
    let dtype_kv = choose("KV dtype", dtype_kv, Dtype::STORED, Dtype::name)?;
    let batch = number("batch", after("batch", 'b', next("the batch")?)?)?;
    let (heads_q, heads_kv) = parse_heads(after("heads", 'h', next("the heads")?)?)?;
    let seqlen_q = named_lengths("query length", 'q', next("the query length")?)?;
    let seqlen_kv = named_lengths("key length", 'k', next("the key length")?)?;
    let dims = after("head dimensions", 'd', next("the head dimensions")?)?;
    let (head_dim_qk, head_dim_v) = dims.split_once(':').unwrap_or((dims, dims));

    let mut options: Vec<(&str, &str)> = Vec::new();
    for segment in segments {
        let Some((key, value)) = segment.split_once('=').filter(|(key, _)| OPTIONS.contains(key)) else {
            return Err(IdError(format!("`{segment}` is no option; valid are {}", valid_options())));
        };
        if options.iter().any(|&(known, _)| known == key) {
            return Err(IdError(format!("option `{key}` is given twice")));
        }
        options.push((key, value));
    }
    let option = |wanted: &str| options.iter().find(|&&(key, _)| key == wanted).map(|&(_, value)| value);
    let flag = |key| option(key).map_or(Ok(false), |value| choose(key, value, [false, true], parts::flag_name));

    if let Some(value) = option("align") {
        causal_alignment = match (value, causal, causal_alignment) {
            ("tl", _, _) => CausalAlignment::TopLeft,
            ("br", _, CausalAlignment::BottomRight) => CausalAlignment::BottomRight,
            ("br", _, _) => return Err(IdError("`align=br` contradicts `+causal-tl`".into())),
            _ => return Err(IdError(format!("align is `{value}`; valid are tl, br"))),
        };
    }
    Ok(AttentionProblem {
        mechanism,
        pattern,
        causal,
        causal_alignment,
        phase,
        dtype,
        dtype_kv,
        batch,
        heads_q,
        heads_kv,
        seqlen_q,
        seqlen_kv,
        head_dim_qk: number("head dimension", head_dim_qk)?,
        head_dim_v: number("value head dimension", head_dim_v)?,
        scale: option("scale").map(|value| real("scale", value)).transpose()?,
        softcap: option("softcap").map(|value| real("softcap", value)).transpose()?,
        bias: option("bias").map_or(Ok(Bias::None), |value| choose("bias", value, Bias::ALL, Bias::name))?,
        sinks: flag("sinks")?,
        layout: option("layout")
            .map_or(Ok(Layout::Bshd), |value| choose("layout", value, Layout::ALL, Layout::name))?,
        kv_layout: match option("page") {
            None => KvLayout::Contiguous,
            Some(value) => KvLayout::Paged { page_size: number("page", value)? },
        },
        deterministic: flag("deterministic")?,
    })
}

fn valid_options() -> String {
    OPTIONS.map(|option| format!("{option}=")).join(", ")
}

/// The text after a segment's letter.
fn after<'a>(part: &str, letter: char, segment: &'a str) -> Result<&'a str, IdError> {
    segment.strip_prefix(letter).ok_or_else(|| {
        IdError(format!("where the {part} should be stands `{segment}`, which does not begin with `{letter}`"))
    })
}

fn named_lengths(part: &str, letter: char, segment: &str) -> Result<Lengths, IdError> {
    parse_lengths(after(part, letter, segment)?)
}
