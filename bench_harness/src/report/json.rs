//! JSON that people can review: short numbers, and a layout in which a diff shows what changed.

use std::io;

use serde::Serialize;
use serde_json::ser::Formatter;

/// Containers below this depth are never broken over lines: in a record that makes a line of each round of a case.
const MAX_BROKEN_DEPTH: usize = 4;

/// Containers that fit into a line of this many bytes stay in it.
const LINE_BYTES: usize = 120;

/// Significant digits of floating-point numbers: a nanosecond in a second, far below what any clock resolves.
const SIGNIFICANT_DIGITS: usize = 9;

/// A value as JSON with short numbers, laid out over lines and ended with a line break.
///
/// # Errors
/// Those of the value's own `Serialize`, such as maps whose keys are no strings.
pub fn reviewable<T: Serialize>(value: &T) -> Result<String, serde_json::Error> {
    let compact = short(value)?;
    let mut text = String::with_capacity(compact.len() + compact.len() / 8);
    lay_out(&compact, 0, &mut text);
    text.push('\n');
    Ok(text)
}

/// A value as JSON with short numbers, in one line.
///
/// # Errors
/// As above.
pub fn short<T: Serialize>(value: &T) -> Result<String, serde_json::Error> {
    let mut bytes = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, ShortNumbers))?;
    Ok(String::from_utf8(bytes).expect("serde_json writes UTF-8"))
}

/// The compact form with numbers rounded to [`SIGNIFICANT_DIGITS`].
struct ShortNumbers;

impl Formatter for ShortNumbers {
    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(short_number(value).as_bytes())
    }

    fn write_f32<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f32) -> io::Result<()> {
        self.write_f64(writer, f64::from(value))
    }
}

/// The shortest text of the number rounded to [`SIGNIFICANT_DIGITS`]; whole numbers have no decimal point.
fn short_number(value: f64) -> String {
    let rounded: f64 = format!("{value:.*e}", SIGNIFICANT_DIGITS - 1).parse().expect("Rust parses what it prints");
    let plain = format!("{rounded}");
    let scientific = format!("{rounded:e}");
    if plain.len() <= scientific.len() { plain } else { scientific }
}

/// Breaks compact JSON over lines. `depth` counts the containers around it, and so does the indent.
fn lay_out(json: &str, depth: usize, out: &mut String) {
    let container = json.starts_with(['{', '[']);
    let indent = 2 * depth;
    if !container || json.len() == 2 || depth >= MAX_BROKEN_DEPTH || indent + json.len() <= LINE_BYTES {
        out.push_str(json);
        return;
    }
    let (open, inside, close) = (&json[..1], &json[1..json.len() - 1], &json[json.len() - 1..]);
    out.push_str(open);
    let mut first = true;
    for item in split_items(inside) {
        if !std::mem::take(&mut first) {
            out.push(',');
        }
        out.push('\n');
        out.push_str(&" ".repeat(indent + 2));
        let value = if open == "{" {
            let (key, value) = item.split_at(string_end(item));
            out.push_str(key);
            out.push_str(": ");
            &value[1..]
        } else {
            item
        };
        lay_out(value, depth + 1, out);
    }
    out.push('\n');
    out.push_str(&" ".repeat(indent));
    out.push_str(close);
}

/// The items between the commas of a container's inside, which is compact and valid.
fn split_items(inside: &str) -> Vec<&str> {
    let bytes = inside.as_bytes();
    let (mut items, mut start, mut nested, mut at) = (Vec::new(), 0, 0usize, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                at += string_end(&inside[at..]);
                continue;
            }
            b'{' | b'[' => nested += 1,
            b'}' | b']' => nested -= 1,
            b',' if nested == 0 => {
                items.push(&inside[start..at]);
                start = at + 1;
            }
            _ => {}
        }
        at += 1;
    }
    items.push(&inside[start..]);
    items
}

/// Bytes of the string literal that a text starts with, quotes included.
fn string_end(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = 1;
    while bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    #[test]
    fn numbers_are_short_and_keep_nine_digits() {
        let cases: [(f64, &str); 9] = [
            (0.0, "0"),
            (100.0, "100"),
            (1234.5678901234, "1234.56789"),
            (1_500_000_123.4, "1500000120"),
            (1.0 / 3.0, "0.333333333"),
            (1.234_567_890_123e-7, "1.23456789e-7"),
            (-2.5, "-2.5"),
            (1e300, "1e300"),
            (f64::MIN_POSITIVE, "2.22507386e-308"),
        ];
        for (value, expected) in cases {
            assert_eq!(short_number(value), expected);
        }
    }

    #[test]
    fn short_containers_stay_in_a_line_and_long_ones_break() {
        let samples: Vec<f64> = (0..60).map(|i| i as f64 + 0.25).collect();
        let value = json!({"a": [1, 2], "cases": [{"id": "x\"],{", "rounds": [{"n": samples}, {"n": []}]}]});
        let text = reviewable(&value).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], r#"  "a": [1,2],"#);
        assert_eq!(lines[4], r#"      "id": "x\"],{","#);
        assert!(lines[6].starts_with(r#"        {"n":[0.25,1.25,"#), "{}", lines[6]);
        assert_eq!(lines[7], r#"        {"n":[]}"#);
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            "[\\\\\"{}\\[\\],: ]{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(6, 64, 8, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
                proptest::collection::btree_map(any::<String>(), inner, 0..8)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn layout_changes_nothing_but_spaces(value in any_json()) {
            let text = reviewable(&value).unwrap();
            prop_assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
        }

        #[test]
        fn rounding_is_idempotent_and_close(value in any::<f64>().prop_filter("finite", |v| v.is_finite())) {
            let once: f64 = short_number(value).parse().unwrap();
            prop_assert!((once - value).abs() <= 5.1e-9 * value.abs() + f64::MIN_POSITIVE);
            prop_assert_eq!(short_number(once).parse::<f64>().unwrap(), once);
        }
    }
}
