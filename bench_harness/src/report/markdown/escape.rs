//! Texts from anywhere as parts of Markdown that GitHub, GitLab and others render.

use crate::report::printable;

/// What stands between characters that must not be read together.
const ZERO_WIDTH_SPACE: char = '\u{200b}';

/// A text that formats nothing, links to nothing and mentions nobody, in a paragraph or in a table's cell.
pub(super) fn prose(text: &str) -> String {
    let text = printable(text);
    let mut out = String::with_capacity(text.len() + text.len() / 8);
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            // Mentions and references to issues survive escapes: only what comes after keeps them apart.
            '@' | '#' => out.extend([c, ZERO_WIDTH_SPACE]),
            '\\' | '`' | '*' | '_' | '~' | '|' | '[' | ']' | '!' | '$' => out.extend(['\\', c]),
            _ => out.push(c),
        }
    }
    for link in ["://", "www."] {
        let (start, end) = link.split_at(1);
        out = out.replace(link, &format!("{start}{ZERO_WIDTH_SPACE}{end}"));
    }
    out
}

/// A text as code, in a paragraph or in a table's cell: nothing in it means anything.
pub(super) fn code(text: &str) -> String {
    let text = printable(text);
    let runs = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(runs + 1);
    // A blank at both ends is taken away again, and keeps backticks at the ends from joining the fence.
    let padding = if text.starts_with(['`', ' ']) || text.ends_with(['`', ' ']) || text.is_empty() { " " } else { "" };
    // Tables are split before code is read.
    format!("{fence}{padding}{}{padding}{fence}", text.replace('|', "\\|"))
}

/// Lines as a block of code.
pub(super) fn block(lines: &[String]) -> Vec<String> {
    let longest = lines.iter().flat_map(|line| line.split(|c| c != '`')).map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    let mut block = vec![format!("{fence}sh")];
    block.extend(lines.iter().map(|line| printable(line)));
    block.push(fence);
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_formats_nothing() {
        assert_eq!(prose("a <script>*b*_c_|d"), "a &lt;script&gt;\\*b\\*\\_c\\_\\|d");
        assert_eq!(prose("@all see https://x.y #12"), "@\u{200b}all see https:\u{200b}//x.y #\u{200b}12");
        assert_eq!(prose("![x](y)\n# z"), "\\!\\[x\\](y) #\u{200b} z");
    }

    #[test]
    fn code_is_never_left() {
        assert_eq!(code("cpu/flash"), "`cpu/flash`");
        assert_eq!(code("a`b``c"), "```a`b``c```");
        assert_eq!(code("`a"), "`` `a ``");
        assert_eq!(code("a|b\nc"), "`a\\|b c`");
        assert_eq!(code(""), "`  `");
        assert_eq!(block(&["a ``` b".to_owned()]), ["````sh", "a ``` b", "````"]);
    }
}
