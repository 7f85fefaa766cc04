//! Case ids are long and mostly alike: what the cases of a group share is said once, and rows show what differs.

use crate::case::CaseKey;

/// The names of a group of cases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupNames {
    /// What the cases share, with a `*` for each part that differs, and their mode and threads where those are shared.
    pub heading: String,
    /// What differs, a name a case: its parts of the id, then mode and threads where they differ.
    pub names: Vec<String>,
}

/// Names the cases of a group.
pub fn group_names(keys: &[&CaseKey]) -> GroupNames {
    let ids: Vec<Vec<&str>> = keys.iter().map(|key| key.case_id.split('/').collect()).collect();
    let Some(first) = ids.first() else { return GroupNames { heading: String::new(), names: Vec::new() } };
    // Options follow the positional parts and come and go: whatever lies beyond the shortest id differs.
    let positions = ids.iter().map(Vec::len).min().unwrap_or(0);
    let is_shared = |at: usize| at < positions && ids.iter().all(|id| id[at] == first[at]);

    let mut shared: Vec<&str> = (0..positions).map(|at| if is_shared(at) { first[at] } else { "*" }).collect();
    if ids.iter().any(|id| id.len() > positions) {
        shared.push("*");
    }
    let mut heading = shared.join("/");
    let mode_is_shared = keys.iter().all(|key| key.mode == keys[0].mode);
    let threads_are_shared = keys.iter().all(|key| key.threads == keys[0].threads);
    if mode_is_shared {
        heading = format!("{heading}, {}", keys[0].mode.name());
    }
    if threads_are_shared && keys[0].threads > 0 {
        heading = format!("{heading}, {}", threads_text(keys[0].threads));
    }

    let name = |(key, id): (&&CaseKey, &Vec<&str>)| {
        let mut parts: Vec<String> =
            id.iter().enumerate().filter(|&(at, _)| !is_shared(at)).map(|(_, part)| (*part).to_owned()).collect();
        if !mode_is_shared {
            parts.push(key.mode.name().to_owned());
        }
        if !threads_are_shared {
            parts.push(format!("t{}", key.threads));
        }
        // A group of one case, or of cases that are the same, still needs something to call them.
        if parts.is_empty() { id.get(1).copied().unwrap_or(&key.case_id).to_owned() } else { parts.join("/") }
    };
    GroupNames { heading, names: keys.iter().zip(&ids).map(name).collect() }
}

/// `1 thread`, `2 threads`.
pub fn threads_text(threads: usize) -> String {
    format!("{threads} thread{}", if threads == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Mode;

    fn key(case_id: &str, mode: Mode, threads: usize) -> CaseKey {
        CaseKey { case_id: case_id.into(), mode, threads }
    }

    #[test]
    fn shared_parts_are_said_once() {
        let keys = [key("cpu/a/softmax/q1/d2", Mode::Cold, 2), key("cpu/b/softmax/q3/d2", Mode::Cold, 2)];
        let names = group_names(&keys.iter().collect::<Vec<_>>());
        assert_eq!(names.heading, "cpu/*/softmax/*/d2, cold, 2 threads");
        assert_eq!(names.names, ["a/q1", "b/q3"]);
    }

    #[test]
    fn options_modes_and_threads_that_differ_stay_in_the_names() {
        let keys = [key("cpu/a/q1", Mode::Cold, 1), key("cpu/a/q1/bias=bool", Mode::Hot, 2)];
        let names = group_names(&keys.iter().collect::<Vec<_>>());
        assert_eq!(names.heading, "cpu/a/q1/*");
        assert_eq!(names.names, ["cold/t1", "bias=bool/hot/t2"]);
    }

    #[test]
    fn one_case_and_none() {
        let one = [key("cpu/flash/q1", Mode::Hot, 0)];
        let names = group_names(&one.iter().collect::<Vec<_>>());
        assert_eq!((names.heading.as_str(), &names.names[..]), ("cpu/flash/q1, hot", &["flash".to_owned()][..]));
        assert!(group_names(&[]).names.is_empty());
        let odd = [key("rubbish", Mode::Cold, 0)];
        assert_eq!(group_names(&[&odd[0]]).names, ["rubbish"]);
    }
}
