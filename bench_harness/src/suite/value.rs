//! Reading single TOML values: a wrong type or an absurd number is an error that says what would be right.

use std::ops::{Range, RangeInclusive};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{Fault, quote};

/// A value with its place.
pub(super) type Node<'i> = Spanned<DeValue<'i>>;

/// Most values that one range or list may have: the cases of a matrix are limited anyway.
pub(super) const MAX_VALUES: usize = 10_000;

/// A value in words.
fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the string {}", quote(text)),
        DeValue::Integer(number) => quote(&number.to_string()),
        DeValue::Float(number) => quote(number.as_str()),
        DeValue::Boolean(value) => format!("`{value}`"),
        DeValue::Datetime(_) => "a date or time".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// `key` expects one thing and got another.
pub(super) fn mismatch(key: &str, expects: &str, node: &Node<'_>) -> Fault {
    Fault::at(node.span(), format!("`{key}` expects {expects}, not {}", describe(node.get_ref())))
}

/// The keys of a table in the order of the file, so that the first error of the file is the one that is reported.
pub(super) fn entries<'t, 'i>(table: &'t DeTable<'i>) -> Vec<(&'t str, Range<usize>, &'t Node<'i>)> {
    let mut entries: Vec<_> = table.iter().map(|(key, node)| (key.get_ref().as_ref(), key.span(), node)).collect();
    entries.sort_by_key(|(_, span, _)| span.start);
    entries
}

/// The values of a list, or the one value.
pub(super) fn one_or_many<'n, 'i>(key: &str, expects: &str, node: &'n Node<'i>) -> Result<Vec<&'n Node<'i>>, Fault> {
    match node.get_ref() {
        DeValue::Array(list) if list.is_empty() => {
            Err(Fault::at(node.span(), format!("`{key}` is an empty list; it expects {expects}, or a list of these")))
        }
        DeValue::Array(list) if list.len() > MAX_VALUES => {
            Err(Fault::at(node.span(), format!("`{key}` has {} values, more than {MAX_VALUES}", list.len())))
        }
        DeValue::Array(list) => Ok(list.iter().collect()),
        _ => Ok(vec![node]),
    }
}

/// A string.
pub(super) fn string<'n>(key: &str, expects: &str, node: &'n Node<'_>) -> Result<&'n str, Fault> {
    match node.get_ref() {
        DeValue::String(text) => Ok(text.as_ref()),
        _ => Err(mismatch(key, expects, node)),
    }
}

/// A string that says something.
pub(super) fn sentence(key: &str, node: &Node<'_>) -> Result<String, Fault> {
    let text = string(key, "a text", node)?.trim();
    if text.is_empty() {
        return Err(Fault::at(node.span(), format!("`{key}` is empty; say in a sentence why this is measured")));
    }
    Ok(text.to_owned())
}

/// `true` or `false`.
pub(super) fn boolean(key: &str, node: &Node<'_>) -> Result<bool, Fault> {
    match node.get_ref() {
        DeValue::Boolean(value) => Ok(*value),
        _ => Err(mismatch(key, "`true` or `false`", node)),
    }
}

/// A whole number within limits.
pub(super) fn integer(key: &str, limits: RangeInclusive<u64>, node: &Node<'_>) -> Result<u64, Fault> {
    let DeValue::Integer(number) = node.get_ref() else {
        return Err(mismatch(key, &format!("a whole number {}", between(&limits)), node));
    };
    match i64::from_str_radix(number.as_str(), number.radix()).ok().and_then(|number| u64::try_from(number).ok()) {
        Some(number) if limits.contains(&number) => Ok(number),
        _ => Err(mismatch(key, &format!("a whole number {}", between(&limits)), node)),
    }
}

fn between(limits: &RangeInclusive<u64>) -> String {
    format!("from {} to {}", limits.start(), limits.end())
}

/// A finite number.
pub(super) fn number(key: &str, node: &Node<'_>) -> Result<f64, Fault> {
    let number = match node.get_ref() {
        DeValue::Float(number) => number.as_str().parse().ok(),
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).ok().map(|number| number as f64)
        }
        _ => None,
    };
    number.filter(|number: &f64| number.is_finite()).ok_or_else(|| mismatch(key, "a finite number", node))
}

/// One whole number, a list of them, or a range; see [`range`].
pub(super) fn integers(
    key: &str,
    expects: &str,
    limits: RangeInclusive<u64>,
    node: &Node<'_>,
) -> Result<Vec<u64>, Fault> {
    let mut values = Vec::new();
    for node in one_or_many(key, expects, node)? {
        match node.get_ref() {
            DeValue::Table(table) => values.extend(range(key, &limits, node, table)?),
            DeValue::Integer(_) => values.push(integer(key, limits.clone(), node)?),
            _ => return Err(mismatch(key, expects, node)),
        }
        if values.len() > MAX_VALUES {
            return Err(Fault::at(node.span(), format!("`{key}` has more than {MAX_VALUES} values")));
        }
    }
    Ok(values)
}

/// The values of a range table: `{ pow2 = [128, 1024] }` doubles from the first to the last, `{ from = 100, to = 500,
/// step = 100 }` adds; both include their last value where they reach it.
pub(super) fn range(
    key: &str,
    limits: &RangeInclusive<u64>,
    node: &Node<'_>,
    table: &DeTable<'_>,
) -> Result<Vec<u64>, Fault> {
    const EXPECTS: &str = "a range such as `{ pow2 = [1024, 16384] }` or `{ from = 1000, to = 4000, step = 1000 }`";
    let mut names: Vec<&str> = table.iter().map(|(name, _)| name.get_ref().as_ref()).collect();
    names.sort_unstable();
    match names[..] {
        ["pow2"] => {
            let pair = &table["pow2"];
            let bounds = match pair.get_ref() {
                DeValue::Array(bounds) if bounds.len() == 2 => bounds,
                _ => return Err(mismatch("pow2", "two powers of two, `[first, last]`", pair)),
            };
            let first = integer("pow2", limits.clone(), &bounds[0])?;
            let last = integer("pow2", limits.clone(), &bounds[1])?;
            if !first.is_power_of_two() || !last.is_power_of_two() || first > last {
                let message = format!("`pow2 = [{first}, {last}]` expects two powers of two, the smaller first");
                return Err(Fault::at(pair.span(), message));
            }
            Ok((first.ilog2()..=last.ilog2()).map(|exponent| 1 << exponent).collect())
        }
        ["from", "step", "to"] => {
            let from = integer("from", limits.clone(), &table["from"])?;
            let to = integer("to", limits.clone(), &table["to"])?;
            let step = integer("step", 1..=*limits.end(), &table["step"])?;
            if from > to {
                return Err(Fault::at(node.span(), format!("`{key}` ranges from {from} to {to}, which is empty")));
            }
            let count = (to - from) / step + 1;
            if count > MAX_VALUES as u64 {
                let message = format!("`{key}` ranges over {count} values, more than {MAX_VALUES}; take a larger step");
                return Err(Fault::at(node.span(), message));
            }
            Ok((0..count).map(|index| from + index * step).collect())
        }
        _ => Err(Fault::at(node.span(), format!("`{key}` expects {EXPECTS}"))),
    }
}
