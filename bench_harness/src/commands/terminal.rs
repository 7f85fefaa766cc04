//! What the terminal is like. Reports are told, so that they stay pure.

use std::io::IsTerminal;

/// Columns where nothing tells the width: what a log viewer shows.
const DEFAULT_WIDTH: usize = 100;

/// Columns of the terminal that stdout is, of `COLUMNS`, or the default.
pub fn width() -> usize {
    let from_environment = || std::env::var("COLUMNS").ok()?.parse::<usize>().ok();
    let from_terminal = || std::io::stdout().is_terminal().then(|| indicatif_width()).flatten();
    from_terminal().or_else(from_environment).unwrap_or(DEFAULT_WIDTH).clamp(60, 400)
}

fn indicatif_width() -> Option<usize> {
    console::Term::stdout().size_checked().map(|(_rows, columns)| usize::from(columns))
}

/// Whether progress may be drawn.
pub fn stderr_is_terminal() -> bool {
    std::io::stderr().is_terminal()
}
