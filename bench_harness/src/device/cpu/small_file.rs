//! The small files in which Linux tells about itself.

use std::fs;
use std::path::Path;

/// CPUs of a list such as `0-3,8,10-11`.
pub(super) fn count_of_list(list: &str) -> Option<usize> {
    let mut count = 0usize;
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(count)
}

/// The first line of a small file, trimmed, where it has one.
pub(super) fn read_line(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(one_line(text.lines().next()?)).filter(|line| !line.is_empty())
}

/// A text with runs of spaces made one, trimmed and without control characters.
pub(super) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace(|c: char| c.is_control(), "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists() {
        for (list, count) in [("0", Some(1)), ("0-3,8,10-11", Some(7)), ("", None), ("1-0", None), ("a", None)] {
            assert_eq!(count_of_list(list), count, "{list}");
        }
        assert_eq!(count_of_list(&format!("0-{}", usize::MAX)), None);
    }
}
