//! The command that measures a case again: what a reader who doubts a figure runs.

use crate::gate::outcome::GateReport;
use crate::record::Record;

/// Options of `run` and `gate` that say where results go, go on with something, or choose cases: a repetition has its own.
const NOT_REPEATED: [&str; 11] = [
    "--out",
    "-o",
    "--resume",
    "--store",
    "--report",
    "--include",
    "--exclude",
    "--against",
    "--target",
    "--json",
    "--dry-run",
];

/// Those of them that no value follows.
const WITHOUT_VALUE: [&str; 2] = ["--json", "--dry-run"];

/// Runs the case of a record again, as it was run: the suite, the seed and whatever else its command line said.
pub fn repeat_run(record: &Record, case_id: &str) -> String {
    let command = &record.run.command;
    let mut words = match command.get(1).map(String::as_str) {
        Some("run") => [&["run".to_owned()], &kept(&command[2..])[..]].concat(),
        _ => vec!["run".to_owned(), record.run.suite.clone()],
    };
    if !words.iter().any(|word| word == "--seed" || word.starts_with("--seed=")) {
        words.extend(["--seed".to_owned(), record.run.seed.to_string()]);
    }
    words.extend(["--include".to_owned(), case_id.to_owned()]);
    shell(&words)
}

/// Judges the case of a gate again: in pairs against the same base where it was measured so, else by two runs.
pub fn repeat_gate(report: &GateReport, case_id: &str) -> Vec<String> {
    let (command, comparison) = (&report.command, &report.comparison);
    let is_in_pairs =
        command.get(1).is_some_and(|word| word == "gate") && !command.iter().any(|word| word.starts_with("--baseline"));
    let include = ["--include".to_owned(), case_id.to_owned()];
    if let (true, Some(base)) = (is_in_pairs, comparison.base.commits.last()) {
        let commit = base.trim_end_matches("-dirty");
        let base = ["--against".to_owned(), commit.to_owned()];
        let words = [&["gate".to_owned()], &kept(&command[2..])[..], &base[..], &include[..]].concat();
        return vec![shell(&words)];
    }
    let run = |out: &str| {
        let words = ["run", &comparison.head.suite, "--out", out].map(str::to_owned);
        shell(&[&words[..], &include[..]].concat())
    };
    let at = |side: &crate::compare::Side, name: &str| match side.commits.last() {
        Some(commit) => format!("   # at {}", super::short_commit(commit)),
        None => format!("   # on {name}"),
    };
    vec![
        run("base.json") + &at(&comparison.base, "base"),
        run("head.json") + &at(&comparison.head, "head"),
        "attnbench compare base.json head.json".to_owned(),
    ]
}

/// The words of a command line but those of [`NOT_REPEATED`].
fn kept(words: &[String]) -> Vec<String> {
    let mut kept = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let name = word.split_once('=').map_or(word.as_str(), |(name, _)| name);
        if !NOT_REPEATED.contains(&name) {
            kept.push(word.clone());
        } else if name == word && !WITHOUT_VALUE.contains(&name) {
            words.next();
        }
    }
    kept
}

/// `attnbench` and words as a shell reads them. A word that no shell can be given (one with a NUL) is left out.
fn shell(words: &[String]) -> String {
    let words = words.iter().filter_map(|word| shlex::try_quote(word).ok().map(|word| word.into_owned()));
    std::iter::once("attnbench".to_owned())
        .chain(words)
        .map(|word| super::printable(&word))
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::sample;

    fn record(command: &[&str]) -> Record {
        let mut record = sample::record();
        record.run.command = command.iter().map(|&word| word.to_owned()).collect();
        record.run.seed = 7;
        record
    }

    #[test]
    fn a_run_keeps_what_it_was_told_and_chooses_one_case() {
        let command =
            ["/bin/attnbench", "run", "ci", "--rounds", "2", "--out=x", "-o", "y", "--json", "--include", "*"];
        assert_eq!(
            repeat_run(&record(&[&command[..], &["--provider", "mine='a b'"]].concat()), "cpu/a/*"),
            r#"attnbench run ci --rounds 2 --provider "mine='a b'" --seed 7 --include 'cpu/a/*'"#
        );
        assert_eq!(repeat_run(&record(&["x", "gate"]), "c"), "attnbench run quickstart --seed 7 --include c");
        assert_eq!(
            repeat_run(&record(&[]), "a; rm -rf ~"),
            "attnbench run quickstart --seed 7 --include 'a; rm -rf ~'"
        );
    }
}
