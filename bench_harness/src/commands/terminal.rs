//! What commands print with: the terminal's width, and output that ends quietly when its reader does.

use std::io::{self, IsTerminal, Write};

use anyhow::Context;

use crate::report::{Style, printable};

/// Columns when nobody says how many there are.
const DEFAULT_WIDTH: u16 = 100;
/// Narrowest and widest tables: below, nothing fits; above, eyes lose the line.
const WIDTHS: std::ops::RangeInclusive<u16> = 60..=160;

/// Columns for tables on stdout: those of the terminal, else of `COLUMNS`, else 100.
pub fn width() -> u16 {
    let columns = || std::env::var("COLUMNS").ok()?.parse().ok();
    let width = terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| width.0).or_else(columns);
    width.unwrap_or(DEFAULT_WIDTH).clamp(*WIDTHS.start(), *WIDTHS.end())
}

/// Prints a text and a line break. A reader that has seen enough (`| head`) is no error.
pub fn print(text: &str) -> anyhow::Result<()> {
    print_bytes(format!("{text}\n").as_bytes())
}

/// The same of bytes, as they are.
pub fn print_bytes(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("printing the result"),
    }
}

/// An error with its causes, each said once, and without what could move a terminal's cursor: file names are the user's,
/// and what files hold is anybody's.
pub fn error_text(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // Typed errors have the words of their cause in their own; the contexts of `anyhow` do not.
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text.lines().map(printable).collect::<Vec<_>>().join("\n")
}

/// Prints a value as JSON.
pub fn print_json<T: serde::Serialize>(value: &T) -> anyhow::Result<()> {
    print(&serde_json::to_string_pretty(value).context("writing the result as JSON")?)
}

/// Whether progress may be drawn on stderr.
pub fn stderr_is_terminal() -> bool {
    io::IsTerminal::is_terminal(&io::stderr())
}

/// How text for stdout is laid out: colours only on a terminal, and never where `NO_COLOR` is set (no-color.org).
pub fn style() -> Style {
    let is_wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    Style { width: width().into(), colour: is_wanted && !is_dumb && io::stdout().is_terminal() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once_and_moves_no_cursor() {
        let missing = crate::record::file::load(std::path::Path::new("/no\x1b[2J/record.json")).unwrap_err();
        let text = error_text(&anyhow::Error::from(missing).context("comparing"));
        let expected = "comparing: reading record `/no [2J/record.json`: there is no such file; \
                        `attnbench run SUITE --out FILE` makes a record";
        assert_eq!(text, expected);
        assert_eq!(error_text(&anyhow::anyhow!("root").context("middle").context("top")), "top: middle: root");
    }
}
