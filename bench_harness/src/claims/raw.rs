//! A claim's file: TOML as it is written, then checked.

use std::path::Path;

use attn_kernels::problem::Mechanism;
use attn_kernels::problem::id::{parse_heads, parse_mechanism, parse_pattern};
use serde::Deserialize;

use super::quantity::{Axis, Quantity};
use super::relation::{Cache, Relation, cases};
use super::{Claim, Device, Expectation};
use crate::kv::{CacheShape, Element};
use crate::suite::presets::LayerGroup;
use crate::suite::{Environment, Suite, presets, read_named};

/// Largest file, in bytes.
const MAX_BYTES: u64 = 1 << 18;

/// Why a claim cannot be tested.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("reading claim `{file}`: {message}")]
pub struct ClaimError {
    /// The file.
    pub file: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// The whole file; what is not here is the suite's.
#[derive(Deserialize)]
struct RawFile {
    description: String,
    claim: RawClaim,
    matrix: Option<Vec<toml::Table>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawClaim {
    source: String,
    note: Option<String>,
    needs: Option<String>,
    expect: Vec<RawExpectation>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawExpectation {
    says: String,
    relation: String,
    quantity: Option<String>,
    peak_flop_per_s: Option<f64>,
    axis: Option<String>,
    of: Option<OneOrMany>,
    over: Option<OneOrMany>,
    cache: Option<RawCache>,
    over_cache: Option<RawCache>,
    about: Option<f64>,
    tolerance: Option<f64>,
    at_least: Option<f64>,
    at_most: Option<f64>,
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCache {
    model: Option<String>,
    layers: Option<u32>,
    heads: Option<String>,
    head_dim: Option<usize>,
    mechanism: Option<String>,
    pattern: Option<String>,
    dtype: String,
    context: Option<u64>,
}

impl Claim {
    /// Reads and checks a claim's file.
    ///
    /// # Errors
    /// It cannot be read, is too large, is no TOML, or makes no sense.
    pub fn load(path: &Path, environment: &Environment<'_>) -> Result<Claim, ClaimError> {
        let file = path.display().to_string();
        let fail = |message: String| ClaimError { file: file.clone(), message };
        let (name, bytes) = read_named(path, MAX_BYTES).map_err(fail)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(fail(format!("the file is larger than {MAX_BYTES} bytes")));
        }
        Claim::parse(&name, &file, &bytes, environment)
    }

    /// Checks the bytes of a claim's file.
    ///
    /// # Errors
    /// As for [`Claim::load`].
    pub fn parse(name: &str, file: &str, bytes: &[u8], environment: &Environment<'_>) -> Result<Claim, ClaimError> {
        let fail = |message: String| ClaimError { file: file.to_owned(), message };
        let text = std::str::from_utf8(bytes).map_err(|error| fail(error.to_string()))?;
        let raw: RawFile = toml::from_str(text).map_err(|error| fail(error.to_string().trim_end().to_owned()))?;
        let suite = match raw.matrix {
            None => None,
            Some(_) => {
                Some(Suite::parse_within(name, file, bytes, environment, &["claim"]).map_err(|e| fail(e.to_string()))?)
            }
        };
        if raw.claim.expect.is_empty() {
            return Err(fail("it expects nothing; add a `[[claim.expect]]`".to_owned()));
        }
        let expectations = raw.claim.expect.into_iter().map(|expected| {
            let says = expected.says.clone();
            let place = |message: String| fail(format!("expectation `{says}`: {message}"));
            expected.check(suite.as_ref()).map_err(place)
        });
        Ok(Claim {
            name: name.to_owned(),
            statement: raw.description,
            source: raw.claim.source,
            note: raw.claim.note,
            needs: raw.claim.needs.map(|needs| match needs.as_str() {
                "gpu" => Device::Gpu,
                _ => Device::Model(needs),
            }),
            expectations: expectations.collect::<Result<_, _>>()?,
            suite,
        })
    }
}

impl RawExpectation {
    fn check(self, suite: Option<&Suite>) -> Result<Expectation, String> {
        let (at_least, at_most) = self.bounds()?;
        let relation = self.relation()?;
        if let Relation::Ratio { of, over, .. } = &relation
            && ![1, cases(suite, of).count()].contains(&cases(suite, over).count())
        {
            let message = "a ratio needs as many cases in `over` as in `of`, taken in order, or one for all of them";
            return Err(message.to_owned());
        }
        if let Relation::Exponent { axis, of, .. } = &relation {
            let places: Option<Vec<f64>> = cases(suite, of).map(|case| axis.of(&case.case)).collect();
            let mut places = places.ok_or("some case of `of` has no place on the axis")?;
            places.sort_by(f64::total_cmp);
            places.dedup();
            if places.len() < 3 {
                return Err("an exponent needs cases in three places of the axis at least".to_owned());
            }
        }
        for matrix in relation.matrices() {
            let is_there = suite.is_some_and(|suite| suite.cases.iter().any(|case| case.matrix == matrix));
            if !is_there {
                return Err(format!("there is no `[[matrix]]` of the name `{matrix}` that has cases"));
            }
        }
        Ok(Expectation { says: self.says, relation, at_least, at_most })
    }

    fn bounds(&self) -> Result<(f64, f64), String> {
        let bounds = match (self.about, self.tolerance, self.at_least, self.at_most) {
            (Some(about), Some(tolerance), None, None) if (0.0..1.0).contains(&tolerance) && about != 0.0 => {
                let ends = [about * (1.0 - tolerance), about * (1.0 + tolerance)];
                (ends[0].min(ends[1]), ends[0].max(ends[1]))
            }
            (None, None, least, most) if least.is_some() || most.is_some() => {
                (least.unwrap_or(f64::NEG_INFINITY), most.unwrap_or(f64::INFINITY))
            }
            _ => {
                return Err(
                    "say `about` with a relative `tolerance` from 0 to 1, or `at_least` and `at_most`".to_owned()
                );
            }
        };
        if bounds.0.is_nan() || bounds.1.is_nan() || bounds.0 > bounds.1 {
            return Err("no number lies between its bounds".to_owned());
        }
        Ok(bounds)
    }

    fn relation(&self) -> Result<Relation, String> {
        let matrices = |key: &str, given: &Option<OneOrMany>| match given.clone() {
            Some(OneOrMany::One(name)) => Ok(vec![name]),
            Some(OneOrMany::Many(names)) if !names.is_empty() => Ok(names),
            _ => Err(format!("relation `{}` needs `{key}`: the name of a matrix, or several", self.relation)),
        };
        let quantity = || {
            let name = self.quantity.as_deref().unwrap_or_default();
            Quantity::find(name, self.peak_flop_per_s).ok_or_else(|| {
                let names = Quantity::NAMES.join(", ");
                format!("`quantity` is one of {names}, and share_of_peak needs `peak_flop_per_s`; this is `{name}`")
            })
        };
        match self.relation.as_str() {
            "ratio" => Ok(Relation::Ratio {
                quantity: quantity()?,
                of: matrices("of", &self.of)?,
                over: matrices("over", &self.over)?,
            }),
            "value" => Ok(Relation::Value { quantity: quantity()?, of: matrices("of", &self.of)? }),
            "exponent" => {
                let name = self.axis.as_deref().unwrap_or("length");
                let axis = Axis::ALL.into_iter().find(|(known, _)| *known == name);
                let axis = axis.ok_or_else(|| format!("`axis` is length, width or heads_kv; this is `{name}`"))?.1;
                Ok(Relation::Exponent { quantity: quantity()?, axis, of: matrices("of", &self.of)? })
            }
            "cache_ratio" | "cache_reduction" => {
                let cache = |key: &str, raw: &Option<RawCache>| {
                    let raw = raw.as_ref().ok_or_else(|| format!("relation `{}` needs `{key}`", self.relation))?;
                    raw.check().map_err(|error| format!("`{key}`: {error}"))
                };
                Ok(Relation::Cache {
                    of: cache("cache", &self.cache)?,
                    over: cache("over_cache", &self.over_cache)?,
                    is_reduction: self.relation == "cache_reduction",
                })
            }
            other => Err(format!(
                "there is no relation `{other}`; valid: ratio, value, exponent, cache_ratio, cache_reduction"
            )),
        }
    }
}

impl RawCache {
    fn check(&self) -> Result<Cache, String> {
        let element: Element = self.dtype.parse()?;
        let context = self.context.unwrap_or(1);
        let (name, shape) = match (&self.model, self.layers, &self.heads) {
            (Some(model), None, None) => {
                let model = presets::find(model).ok_or_else(|| format!("there is no model preset `{model}`"))?;
                (model.name.to_owned(), CacheShape::of_model(model))
            }
            (None, Some(layers), Some(heads)) => {
                let (heads_q, heads_kv) = parse_heads(heads).map_err(|error| error.to_string())?;
                let mut group = LayerGroup::dense(layers, heads_q, heads_kv, self.head_dim.unwrap_or(128));
                if let Some(pattern) = &self.pattern {
                    group.pattern = parse_pattern(pattern).map_err(|error| error.to_string())?;
                }
                if let Some(mechanism) = &self.mechanism {
                    group.mechanism = parse_mechanism(mechanism).map_err(|error| error.to_string())?;
                    if let Mechanism::Mla { rope, nope, .. } = group.mechanism {
                        (group.head_dim_qk, group.head_dim_v) = (nope.saturating_add(rope), nope);
                    }
                }
                let pattern = self.pattern.as_deref().map(|pattern| format!(", {pattern}")).unwrap_or_default();
                let mechanism = self.mechanism.as_deref().map(|name| format!(", {name}")).unwrap_or_default();
                (format!("{layers} layers {heads}{mechanism}{pattern}"), CacheShape::new(vec![group]))
            }
            _ => return Err("a cache is a `model`, or `layers` and `heads`".to_owned()),
        };
        let shape = shape.map_err(|error| error.to_string())?;
        let tokens = if context == 1 { "a token".to_owned() } else { format!("{context} tokens") };
        Ok(Cache { name: format!("{name} in {element}, {tokens}"), shape, element, context })
    }
}
