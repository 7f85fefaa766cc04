//! Markdown for a pull request's comment and for a job's summary: the verdict first, then what got worse, how sure that is
//! and how to repeat it; everything else is folded. At most [`MAX_LINES`] lines, whatever there is to say.
//!
//! It is read by people who have never seen the tool, so words are explained where they are used. What comes from files or
//! workers is escaped: it can neither format anything, nor link, nor mention anybody.

mod escape;
mod gate;
mod run;

use super::Subject;

/// Longest text, in lines.
pub const MAX_LINES: usize = 60;

/// Most rows of a table that is not folded.
const OPEN_ROWS: usize = 10;
/// Most rows of each folded table.
const FOLDED_ROWS: usize = 5;

/// The text of a subject.
pub fn text(subject: Subject<'_>) -> String {
    let lines = match subject {
        Subject::Gate(report) => gate::lines(report),
        Subject::Run(record) => run::lines(record),
    };
    debug_assert!(lines.len() <= MAX_LINES, "{} lines", lines.len());
    lines.join("\n") + "\n"
}

/// A folded part: a line to click on, and lines below it.
fn folded(summary: &str, inside: Vec<String>) -> Vec<String> {
    let mut lines = vec![format!("<details><summary>{summary}</summary>"), String::new()];
    lines.extend(inside);
    lines.push("</details>".to_owned());
    lines
}

/// A table: names of columns, with a colon behind those of numbers, and rows, of which the first `most` are shown.
fn table(columns: &[&str], rows: &[Vec<String>], most: usize) -> Vec<String> {
    let names: Vec<&str> = columns.iter().map(|name| name.trim_end_matches(':')).collect();
    let rules: Vec<&str> = columns.iter().map(|name| if name.ends_with(':') { "--:" } else { ":--" }).collect();
    let mut lines = vec![format!("| {} |", names.join(" | ")), format!("| {} |", rules.join(" | "))];
    lines.extend(rows.iter().take(most).map(|row| format!("| {} |", row.join(" | "))));
    if let Some(more @ 1..) = rows.len().checked_sub(most) {
        lines.push(format!("| and {more} more |"));
    }
    lines
}

/// `1 case`, `2 cases`.
fn cases_text(count: usize) -> String {
    format!("{count} case{}", if count == 1 { "" } else { "s" })
}
