//! Sizes as expressions of a problem's sizes: `ceil_div(seqlen_q, 64) * heads_q`.
//!
//! Integers of 64 bits with `+ - * / %`, comparisons that are 1 or 0, parentheses and four functions. Whatever overflows,
//! divides by zero or is not known is an error that names it.

use std::collections::BTreeMap;

/// Longest expression, in bytes.
const MAX_BYTES: usize = 256;
/// Deepest nesting.
const MAX_DEPTH: usize = 32;
/// Comparisons, those of two characters first.
const COMPARISONS: [&str; 6] = ["<=", ">=", "==", "!=", "<", ">"];
/// The functions, all of two arguments.
const FUNCTIONS: [&str; 4] = ["min", "max", "ceil_div", "round_up"];

/// Names and what they are worth.
pub type Variables = BTreeMap<&'static str, i64>;

/// The value of an expression. Errors are sentences that name it.
pub fn evaluate(text: &str, variables: &Variables) -> Result<i64, String> {
    let failed = |reason: String| format!("expression `{}`: {reason}", text.escape_debug());
    if text.len() > MAX_BYTES {
        return Err(format!("an expression has {} bytes, more than {MAX_BYTES}", text.len()));
    }
    let mut reader = Reader { rest: text, variables, depth: 0 };
    let value = reader.comparison().map_err(failed)?;
    reader.skip_blanks();
    match reader.rest.chars().next() {
        None => Ok(value),
        Some(c) => Err(failed(format!("`{}` is not expected here", c.escape_debug()))),
    }
}

struct Reader<'a> {
    rest: &'a str,
    variables: &'a Variables,
    depth: usize,
}

impl<'a> Reader<'a> {
    fn skip_blanks(&mut self) {
        self.rest = self.rest.trim_start_matches(' ');
    }

    fn take(&mut self, token: &str) -> bool {
        self.skip_blanks();
        let found = self.rest.strip_prefix(token);
        self.rest = found.unwrap_or(self.rest);
        found.is_some()
    }

    fn comparison(&mut self) -> Result<i64, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("it is nested deeper than {MAX_DEPTH}"));
        }
        let left = self.sum()?;
        let comparison = COMPARISONS.into_iter().find(|token| self.take(token));
        let value = match comparison {
            None => left,
            Some(token) => {
                let right = self.sum()?;
                i64::from(match token {
                    "<=" => left <= right,
                    ">=" => left >= right,
                    "==" => left == right,
                    "!=" => left != right,
                    "<" => left < right,
                    _ => left > right,
                })
            }
        };
        self.depth -= 1;
        Ok(value)
    }

    fn sum(&mut self) -> Result<i64, String> {
        let mut value = self.product()?;
        loop {
            let (operator, result) = if self.take("+") {
                ("+", value.checked_add(self.product()?))
            } else if self.take("-") {
                ("-", value.checked_sub(self.product()?))
            } else {
                return Ok(value);
            };
            value = result.ok_or_else(|| format!("`{operator}` overflows"))?;
        }
    }

    fn product(&mut self) -> Result<i64, String> {
        let mut value = self.term()?;
        loop {
            let (operator, result) = if self.take("*") {
                ("*", value.checked_mul(self.term()?))
            } else if self.take("/") {
                ("/", value.checked_div(self.term()?))
            } else if self.take("%") {
                ("%", value.checked_rem(self.term()?))
            } else {
                return Ok(value);
            };
            value = result.ok_or_else(|| format!("`{operator}` overflows or divides by zero"))?;
        }
    }

    fn term(&mut self) -> Result<i64, String> {
        if self.take("(") {
            let value = self.comparison()?;
            return if self.take(")") { Ok(value) } else { Err("a parenthesis stays open".to_owned()) };
        }
        self.skip_blanks();
        let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        if word.is_empty() {
            return Err(match rest.chars().next() {
                Some(c) => format!("`{}` stands where a number or a name should", c.escape_debug()),
                None => "it ends where a number or a name should follow".to_owned(),
            });
        }
        self.rest = rest;
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            return word.parse().map_err(|_| format!("`{word}` is no number"));
        }
        if FUNCTIONS.contains(&word) && self.take("(") {
            return self.function(word);
        }
        self.variables.get(word).copied().ok_or_else(|| {
            let known: Vec<&str> = self.variables.keys().copied().chain(FUNCTIONS).collect();
            format!("`{word}` is not known; known are {}", known.join(", "))
        })
    }

    fn function(&mut self, name: &str) -> Result<i64, String> {
        let a = self.comparison()?;
        if !self.take(",") {
            return Err(format!("`{name}` takes two arguments"));
        }
        let b = self.comparison()?;
        if !self.take(")") {
            return Err(format!("`{name}` takes two arguments, then a parenthesis"));
        }
        let ceil_div = || (b > 0).then(|| a.checked_add(b - 1)?.checked_div_euclid(b)).flatten();
        let value = match name {
            "min" => Some(a.min(b)),
            "max" => Some(a.max(b)),
            "ceil_div" => ceil_div(),
            _ => ceil_div().and_then(|pieces| pieces.checked_mul(b)),
        };
        value.ok_or_else(|| format!("`{name}` overflows, or divides by what is not positive"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn variables() -> Variables {
        Variables::from([("seqlen_q", 130), ("heads_q", 8)])
    }

    #[test]
    fn sizes_are_computed() {
        for (text, value) in [
            ("ceil_div(seqlen_q, 64) * heads_q", 24),
            (" 2 + 3*4 - 10 / 3 % 2 ", 13),
            ("(2 + 3) * 4", 20),
            ("round_up(seqlen_q, 64)", 192),
            ("min(seqlen_q, max(3, 7))", 7),
            ("(seqlen_q % 2 == 0) * (heads_q <= 8)", 1),
            ("seqlen_q < heads_q", 0),
        ] {
            assert_eq!(evaluate(text, &variables()), Ok(value), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            ("", "ends where"),
            ("1 +", "ends where"),
            ("seqlen", "`seqlen` is not known; known are heads_q, seqlen_q, min"),
            ("1 / 0", "divides by zero"),
            ("9223372036854775807 + 1", "overflows"),
            ("99999999999999999999", "is no number"),
            ("(1", "stays open"),
            ("1 2", "`2` is not expected"),
            ("min(1)", "two arguments"),
            ("ceil_div(1, 0)", "not positive"),
            ("2 ** 3", "stands where"),
        ] {
            let error = evaluate(text, &variables()).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!(evaluate(&"(".repeat(200), &variables()).expect_err("deep").contains("nested deeper"));
        assert!(evaluate(&"1+".repeat(200), &variables()).expect_err("long").contains("400 bytes"));
    }

    proptest! {
        #[test]
        fn no_text_crashes_it(text in "[ a-z0-9_()+*/%<>=!,-]{0,80}|.{0,40}") {
            let _ = evaluate(&text, &variables());
        }
    }
}
