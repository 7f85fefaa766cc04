//! What commands print with: the terminal's width, and output that ends quietly when its reader does.

use std::io::{self, Write};

use anyhow::Context;

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
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("printing the result"),
    }
}

/// Prints a value as JSON.
pub fn print_json<T: serde::Serialize>(value: &T) -> anyhow::Result<()> {
    print(&serde_json::to_string_pretty(value).context("writing the result as JSON")?)
}

/// Whether progress may be drawn on stderr.
pub fn stderr_is_terminal() -> bool {
    io::IsTerminal::is_terminal(&io::stderr())
}
