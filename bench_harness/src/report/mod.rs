//! How results are shown, one file a format.
//!
//! Everything here is pure: what is printed depends on the data and the [`Style`] alone.

pub mod annotations;
pub mod axes;
pub mod baselines;
pub mod bencher;
pub mod calibration;
pub mod case_names;
pub mod claims;
pub mod comparison;
pub mod csv;
pub mod device_comparison;
pub mod devices;
pub mod formats;
pub mod history;
pub mod html;
pub mod json;
pub mod junit;
pub mod kv;
pub mod listing;
pub mod markdown;
pub mod memo;
pub mod nightly;
pub mod openmetrics;
pub mod plot;
pub mod ratios;
pub mod repeat;
pub mod samples;
pub mod sarif;
pub mod scaling;
pub mod self_test;
pub mod shown;
pub mod subject;
pub mod table;
pub mod tune;
pub mod units;

pub use formats::{FORMATS, Format, format};
pub use subject::Subject;

/// How text is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Columns of the terminal.
    pub width: usize,
    /// Whether ANSI colours are understood and wanted.
    pub colour: bool,
}

/// What a word is about, for its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    Good,
    Bad,
    Doubtful,
    Plain,
}

impl Style {
    /// The text in the tone's colour, where colours are wanted.
    pub(crate) fn paint(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            _ if !self.colour => return text.to_owned(),
            Tone::Good => "32",
            Tone::Bad => "31",
            Tone::Doubtful => "33",
            Tone::Plain => return text.to_owned(),
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// The text in bold, where colours are wanted.
    pub(crate) fn bold(self, text: &str) -> String {
        if self.colour { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A text from a file or a worker without what could move a terminal's cursor or change its colours.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The first ten digits of a commit; what follows the digits (`-dirty`) stays away, as the full id does.
pub(crate) fn short_commit(commit: &str) -> &str {
    commit.get(..10).unwrap_or(commit)
}

/// Breaks text over lines of at most `width` characters, after the last of `breaks` that fits. Only a part that is longer
/// than a line itself is broken elsewhere; nothing is lost.
pub(crate) fn wrap(text: &str, width: usize, breaks: &[char]) -> Vec<String> {
    let width = width.max(1);
    let mut lines = Vec::new();
    let mut line = String::new();
    for part in text.split_inclusive(breaks) {
        if line.chars().count() + part.trim_end().chars().count() > width && !line.is_empty() {
            lines.push(std::mem::take(&mut line));
        }
        line.push_str(part);
        while line.trim_end().chars().count() > width {
            let rest = line.chars().skip(width).collect();
            lines.push(line.chars().take(width).collect());
            line = rest;
        }
    }
    lines.push(line);
    lines.iter().map(|line| line.trim_end().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn wrapping() {
        assert_eq!(wrap("cpu/flash/q1/k1", 10, &['/']), ["cpu/flash/", "q1/k1"]);
        assert_eq!(wrap("a b c", 80, &[' ']), ["a b c"]);
        assert_eq!(wrap("abcdef", 4, &['/']), ["abcd", "ef"]);
        assert_eq!(wrap("", 4, &['/']), [""]);
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable("a\x1b[31mb\r\nc"), "a [31mb  c");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn wrapping_loses_nothing_and_keeps_the_width(text in "[a-z/é]{0,60}", width in 0usize..20) {
            let lines = wrap(&text, width, &['/']);
            prop_assert!(lines.iter().all(|line| line.chars().count() <= width.max(1)));
            prop_assert_eq!(lines.concat(), text);
        }
    }
}
