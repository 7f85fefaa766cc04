//! The parts of a problem id that suite files spell the same way: mechanisms, patterns, lengths and heads.

use std::fmt;

use super::IdError;
use crate::problem::{CausalAlignment, FeatureMap, LengthDistribution, Lengths, Mechanism, Pattern};

/// How each mechanism is written; options may be left out.
pub const MECHANISM_FORMS: [&str; 4] = [
    "softmax",
    "linear:feature_map=elu1|relu|identity,normalised=true|false",
    "linformer:rank=RANK",
    "mla:latent=LATENT,nope=NOPE,rope=ROPE",
];

/// How each pattern is written. BigBird's options may be left out: block=64, global=2, random=3, seed=0, window=3.
pub const PATTERN_FORMS: [&str; 7] = [
    "full",
    "window:LEFT,RIGHT (or window:WIDTH, itself included; `inf` is unbounded)",
    "dilated:WINDOW,STEP",
    "longformer:WINDOW,GLOBAL[,dilation=STEP]",
    "bigbird:block=TOKENS,global=BLOCKS,random=BLOCKS,window=BLOCKS[,seed=SEED]",
    "strided:STRIDE",
    "fixed:BLOCK,SUMMARY",
];

/// Parses a mechanism, such as `softmax` or `linear:feature_map=relu,normalised=false`.
pub fn parse_mechanism(text: &str) -> Result<Mechanism, IdError> {
    let mut arguments = Arguments::parse("mechanism", text, &MECHANISM_FORMS)?;
    let mechanism = match arguments.name {
        "softmax" => Mechanism::Softmax,
        "linear" => Mechanism::Linear {
            feature_map: match arguments.take("feature_map") {
                None => FeatureMap::Elu1,
                Some(value) => choose("feature_map", value, FeatureMap::ALL, FeatureMap::name)?,
            },
            normalised: match arguments.take("normalised") {
                None => true,
                Some(value) => choose("normalised", value, [true, false], flag_name)?,
            },
        },
        "linformer" => Mechanism::Linformer { rank: arguments.take_number("rank", 256)? },
        "mla" => Mechanism::Mla {
            latent: arguments.take_number("latent", 512)?,
            rope: arguments.take_number("rope", 64)?,
            nope: arguments.take_number("nope", 128)?,
        },
        name => unreachable!("`{name}` has a form"),
    };
    arguments.finish(mechanism)
}

/// Parses a pattern without `+causal`, such as `full`, `window:1024` or `longformer:256,16,dilation=2`.
pub fn parse_pattern(text: &str) -> Result<Pattern, IdError> {
    let mut arguments = Arguments::parse("pattern", text, &PATTERN_FORMS)?;
    let pattern = match arguments.name {
        "full" => Pattern::Full,
        "window" => match arguments.positional.len() {
            1 => {
                let [width] = arguments.distances()?;
                let left = match width {
                    0 => return Err(arguments.malformed("a window of 0 keys does not even hold the row's own")),
                    usize::MAX => usize::MAX,
                    width => width - 1,
                };
                Pattern::Window { left, right: 0 }
            }
            _ => {
                let [left, right] = arguments.distances()?;
                Pattern::Window { left, right }
            }
        },
        "dilated" => {
            let [window, step] = arguments.numbers()?;
            Pattern::Dilated { window, step }
        }
        "longformer" => {
            let [window, global] = arguments.numbers()?;
            Pattern::Longformer { window, global, dilation: arguments.take_number("dilation", 1)? }
        }
        "bigbird" => Pattern::Bigbird {
            block: arguments.take_number("block", 64)?,
            window: arguments.take_number("window", 3)?,
            global: arguments.take_number("global", 2)?,
            random: arguments.take_number("random", 3)?,
            seed: arguments.take_number("seed", 0)?,
        },
        "strided" => {
            let [stride] = arguments.numbers()?;
            Pattern::Strided { stride }
        }
        "fixed" => {
            let [block, summary] = arguments.numbers()?;
            Pattern::Fixed { block, summary }
        }
        name => unreachable!("`{name}` has a form"),
    };
    arguments.finish(pattern)
}

/// Parses a pattern with what follows it, such as `full+causal` or `window:1024+causal-tl`.
pub fn parse_mask(text: &str) -> Result<(Pattern, bool, CausalAlignment), IdError> {
    let (pattern, causal, alignment) = match text.split_once('+') {
        None => (text, false, CausalAlignment::BottomRight),
        Some((pattern, "causal")) => (pattern, true, CausalAlignment::BottomRight),
        Some((pattern, "causal-tl")) => (pattern, true, CausalAlignment::TopLeft),
        Some((_, other)) => {
            return Err(IdError(format!("after the pattern stands `+{other}`; valid are +causal, +causal-tl")));
        }
    };
    Ok((parse_pattern(pattern)?, causal, alignment))
}

/// Parses lengths: `8192`, `@list:5,7,9` or `@uniform:1-1024:s7` (the `@` may be left out, and the seed is 0 by default).
pub fn parse_lengths(text: &str) -> Result<Lengths, IdError> {
    let malformed = || {
        IdError(format!(
            "lengths are `{text}`; valid are N, @list:N,N,..., @uniform:MIN-MAX:sSEED, @loguniform:MIN-MAX:sSEED"
        ))
    };
    let ragged = text.strip_prefix('@').unwrap_or(text);
    let Some((name, rest)) = ragged.split_once(':') else {
        return if ragged.len() == text.len() { Ok(Lengths::Same(number("length", text)?)) } else { Err(malformed()) };
    };
    if name == "list" {
        let lengths = rest.split(',').filter(|_| !rest.is_empty()).map(|length| number("length", length));
        return Ok(Lengths::List(lengths.collect::<Result<_, _>>()?));
    }
    let distribution = choose("distribution of lengths", name, LengthDistribution::ALL, LengthDistribution::name)?;
    let (bounds, seed) = match rest.split_once(':') {
        None => (rest, "0"),
        Some((bounds, seed)) => (bounds, seed.strip_prefix('s').ok_or_else(malformed)?),
    };
    let (min, max) = bounds.split_once('-').ok_or_else(malformed)?;
    Ok(Lengths::Varlen {
        distribution,
        min: number("smallest length", min)?,
        max: number("largest length", max)?,
        seed: number("seed of the lengths", seed)?,
    })
}

/// Parses heads, query heads first: `32:8`, or `8` for as many KV heads.
pub fn parse_heads(text: &str) -> Result<(usize, usize), IdError> {
    let (heads_q, heads_kv) = text.split_once(':').unwrap_or((text, text));
    Ok((number("query heads", heads_q)?, number("KV heads", heads_kv)?))
}

/// A non-negative whole number in plain digits.
pub(super) fn number<T: TryFrom<u64>>(what: &str, text: &str) -> Result<T, IdError> {
    // `parse` alone would take a leading plus sign.
    let digits = Some(text).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    digits
        .and_then(|digits| digits.parse::<u64>().ok())
        .and_then(|value| T::try_from(value).ok())
        .ok_or_else(|| IdError(format!("{what} is `{text}`; valid is a whole number from 0 to {}", u64::MAX)))
}

/// A real number as Rust reads it.
pub(super) fn real(what: &str, text: &str) -> Result<f64, IdError> {
    text.parse().map_err(|_| IdError(format!("{what} is `{text}`; valid is a number such as 0.125 or 1e-3")))
}

/// One of a few values by its name.
pub(super) fn choose<T: Copy, const N: usize>(
    what: &str,
    text: &str,
    all: [T; N],
    name: impl Fn(T) -> &'static str,
) -> Result<T, IdError> {
    all.into_iter()
        .find(|&value| name(value) == text)
        .ok_or_else(|| IdError(format!("{what} is `{text}`; valid are {}", all.map(&name).join(", "))))
}

/// A flag's spelling.
pub(super) fn flag_name(flag: bool) -> &'static str {
    if flag { "true" } else { "false" }
}

/// `name:positional,...,key=value,...`
struct Arguments<'a> {
    what: &'static str,
    text: &'a str,
    /// How this name is written.
    form: &'static str,
    name: &'a str,
    positional: Vec<&'a str>,
    named: Vec<(&'a str, &'a str)>,
}

impl<'a> Arguments<'a> {
    fn parse(what: &'static str, text: &'a str, forms: &'static [&'static str]) -> Result<Self, IdError> {
        let (name, rest) = text.split_once(':').map_or((text, None), |(name, rest)| (name, Some(rest)));
        let is_its = |form: &&&str| form.split([':', '[']).next() == Some(name);
        let form = forms
            .iter()
            .find(is_its)
            .ok_or_else(|| IdError(format!("{what} is `{text}`; valid are {}", forms.join(", "))))?;
        let mut arguments = Arguments { what, text, form, name, positional: Vec::new(), named: Vec::new() };
        for argument in rest.into_iter().flat_map(|rest| rest.split(',')) {
            match argument.split_once('=') {
                None => arguments.positional.push(argument),
                Some((key, _)) if arguments.named.iter().any(|&(known, _)| known == key) => {
                    return Err(arguments.malformed(&format!("`{key}` is given twice")));
                }
                Some(pair) => arguments.named.push(pair),
            }
        }
        Ok(arguments)
    }

    fn malformed(&self, why: &str) -> IdError {
        IdError(format!("{} is `{}`, but {why}; it is written {}", self.what, self.text, self.form))
    }

    fn take(&mut self, key: &str) -> Option<&'a str> {
        let position = self.named.iter().position(|&(known, _)| known == key)?;
        Some(self.named.swap_remove(position).1)
    }

    fn take_number<T: TryFrom<u64>>(&mut self, key: &str, default: T) -> Result<T, IdError> {
        self.take(key).map_or(Ok(default), |value| number(&format!("{key} of `{}`", self.text), value))
    }

    /// The positional arguments, which must be `N`.
    fn positionals<const N: usize>(&mut self) -> Result<[&'a str; N], IdError> {
        let found = self.positional.len();
        let arguments = std::mem::take(&mut self.positional);
        arguments.try_into().map_err(|_| self.malformed(&format!("it has {found} plain numbers instead of {N}")))
    }

    fn numbers<const N: usize>(&mut self) -> Result<[usize; N], IdError> {
        let texts = self.positionals::<N>()?;
        let mut numbers = [0; N];
        for (number_out, text) in numbers.iter_mut().zip(texts) {
            *number_out = number(&format!("an argument of `{}`", self.text), text)?;
        }
        Ok(numbers)
    }

    /// Numbers that may be `inf`, or -1 as other tools write it.
    fn distances<const N: usize>(&mut self) -> Result<[usize; N], IdError> {
        let texts = self.positionals::<N>()?;
        let mut distances = [usize::MAX; N];
        for (distance, text) in distances.iter_mut().zip(texts) {
            if !matches!(text, "inf" | "-1") {
                *distance = number(&format!("an argument of `{}`", self.text), text)?;
            }
        }
        Ok(distances)
    }

    /// The result, unless arguments are left over.
    fn finish<T>(self, value: T) -> Result<T, IdError> {
        match (self.positional.first(), self.named.first()) {
            (None, None) => Ok(value),
            (Some(extra), _) => Err(self.malformed(&format!("`{extra}` has no meaning there"))),
            (_, Some((key, _))) => Err(self.malformed(&format!("`{key}` is none of its options"))),
        }
    }
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut options: Vec<String> = Vec::new();
        match *self {
            Mechanism::Softmax => {}
            Mechanism::Linear { feature_map, normalised } => {
                if feature_map != FeatureMap::Elu1 {
                    options.push(format!("feature_map={}", feature_map.name()));
                }
                if !normalised {
                    options.push("normalised=false".into());
                }
            }
            Mechanism::Linformer { rank } => options.extend((rank != 256).then(|| format!("rank={rank}"))),
            Mechanism::Mla { latent, rope, nope } => {
                options.extend((latent != 512).then(|| format!("latent={latent}")));
                options.extend((nope != 128).then(|| format!("nope={nope}")));
                options.extend((rope != 64).then(|| format!("rope={rope}")));
            }
        }
        let separator = if options.is_empty() { "" } else { ":" };
        write!(f, "{}{separator}{}", self.name(), options.join(","))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        match *self {
            Pattern::Full => f.write_str(name),
            Pattern::Window { left, right } => write!(f, "{name}:{},{}", Distance(left), Distance(right)),
            Pattern::Dilated { window, step } => write!(f, "{name}:{window},{step}"),
            Pattern::Longformer { window, global, dilation } => {
                write!(f, "{name}:{window},{global}")?;
                if dilation == 1 { Ok(()) } else { write!(f, ",dilation={dilation}") }
            }
            Pattern::Bigbird { block, window, global, random, seed } => {
                write!(f, "{name}:block={block},global={global},random={random}")?;
                if seed != 0 {
                    write!(f, ",seed={seed}")?;
                }
                write!(f, ",window={window}")
            }
            Pattern::Strided { stride } => write!(f, "{name}:{stride}"),
            Pattern::Fixed { block, summary } => write!(f, "{name}:{block},{summary}"),
        }
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lengths::Same(length) => write!(f, "{length}"),
            Lengths::List(list) => {
                f.write_str("@list:")?;
                for (index, length) in list.iter().enumerate() {
                    write!(f, "{}{length}", if index == 0 { "" } else { "," })?;
                }
                Ok(())
            }
            Lengths::Varlen { distribution, min, max, seed } => {
                write!(f, "@{}:{min}-{max}:s{seed}", distribution.name())
            }
        }
    }
}

/// A window's side: `inf` where it is unbounded.
struct Distance(usize);

impl fmt::Display for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == usize::MAX { f.write_str("inf") } else { write!(f, "{}", self.0) }
    }
}

/// The shortest text that reads back as the same number.
pub(super) struct Real(pub(super) f64);

impl fmt::Display for Real {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_nan() {
            f.write_str("nan")
        } else if self.0 == 0.0 || (1e-5..1e16).contains(&self.0.abs()) || self.0.is_infinite() {
            write!(f, "{}", self.0)
        } else {
            write!(f, "{:e}", self.0)
        }
    }
}
