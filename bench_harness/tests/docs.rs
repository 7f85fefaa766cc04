//! The pages of `docs/` say what is so: examples run, options exist.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in a workspace").to_owned()
}

fn pages() -> Vec<(String, String)> {
    let mut pages: Vec<(String, String)> = std::fs::read_dir(root().join("bench_harness/docs"))
        .expect("docs")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .map(|path| {
            (
                path.file_name().expect("a name").to_string_lossy().into_owned(),
                std::fs::read_to_string(&path).expect("text"),
            )
        })
        .collect();
    pages.sort();
    pages
}

/// The code blocks of a page whose info string is `info`, in order.
fn blocks(page: &str, info: &str) -> Vec<String> {
    let fence = format!("\n```{info}\n");
    page.split(&fence).skip(1).map(|rest| rest.split("\n```").next().unwrap_or_default().to_owned()).collect()
}

/// Runs the blocks `sh run` of a page in one shell, in a repository with the shipped suites.
fn run(name: &str) {
    let page = pages().into_iter().find(|(page, _)| page == name).unwrap_or_else(|| panic!("docs/{name}")).1;
    let script = blocks(&page, "sh run").join("\n");
    assert!(!script.is_empty(), "{name} has examples");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let suites = folder.path().join("suites");
    std::fs::create_dir(&suites).expect("writable");
    for entry in std::fs::read_dir(root().join("suites")).expect("suites").flatten() {
        if entry.path().is_file() {
            std::fs::copy(entry.path(), suites.join(entry.file_name())).expect("copied");
        }
    }
    let binary = Path::new(env!("CARGO_BIN_EXE_attnbench")).parent().expect("a folder").display().to_string();
    let path = format!("{binary}:{}", std::env::var("PATH").unwrap_or_default());
    let set_up = "git init -q; git add .; git -c user.name=T -c user.email=t@example.org commit -q -m suites\n";
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", &format!("{set_up}set -x\n{script}")])
        .current_dir(folder.path())
        .env("PATH", path)
        .output()
        .expect("bash is there");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "an example of docs/{name} fails:\n{stderr}");
}

#[test]
fn measuring() {
    run("measuring.md");
}

#[test]
fn comparing() {
    run("comparing.md");
}

#[test]
fn gating() {
    run("gating.md");
}

#[test]
fn history() {
    run("history.md");
}

#[test]
fn suites() {
    run("suites.md");
}

#[test]
fn faq() {
    run("faq.md");
}

/// What takes too long to run, or needs a cluster, at least names commands and options that exist.
#[test]
fn every_command_line_is_understood() {
    let mut texts = pages();
    let mut pending = vec![root().join("ci")];
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(std::fs::read_dir(&path).expect("readable").map(|entry| entry.expect("readable").path()));
        } else {
            texts.push((path.display().to_string(), std::fs::read_to_string(&path).expect("text")));
        }
    }
    texts.push(("README.md".to_owned(), std::fs::read_to_string(root().join("README.md")).expect("README.md")));
    let mut checked = 0;
    let mut helps: std::collections::BTreeMap<String, String> = std::collections::BTreeMap::new();
    for (name, text) in texts {
        for line in text.lines() {
            let line = line.split(" #").next().unwrap_or_default();
            let Some((_, call)) = line.split_once("attnbench ") else { continue };
            // A call in the middle of a sentence ends with its backtick; what follows `--` belongs to another command.
            let call =
                call.split(['`', '|', ';', ')']).next().unwrap_or_default().split(" -- ").next().unwrap_or_default();
            let words: Vec<&str> = call.split_whitespace().map(|word| word.trim_matches(['"', '\''])).collect();
            let Some(command) =
                words.first().filter(|word| !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase()))
            else {
                continue;
            };
            let sub = words.get(1).filter(|word| matches!(*command, "history" | "baseline") && !word.starts_with('-'));
            let key = [Some(command), sub].into_iter().flatten().copied().collect::<Vec<_>>().join(" ");
            let options: Vec<&str> = words.iter().filter(|word| word.starts_with("--")).copied().collect();
            if options.is_empty() {
                continue;
            }
            let help = helps.entry(key.clone()).or_insert_with(|| {
                let output = support::attnbench().args(key.split(' ')).arg("--help").output().expect("it starts");
                String::from_utf8_lossy(&output.stdout).into_owned()
            });
            for option in options.iter().map(|option| option.split('=').next().unwrap_or_default()) {
                assert!(help.contains(option), "{name}: `attnbench {key}` has no {option}: {line}");
            }
            checked += 1;
        }
    }
    assert!(checked > 30, "only {checked} command lines were found");
}

/// Templates follow the rules of trust: read their texts.
#[test]
fn templates_give_pull_requests_no_privilege() {
    let folder = root().join("ci/github");
    for entry in std::fs::read_dir(&folder).expect("templates").flatten() {
        let text = std::fs::read_to_string(entry.path()).expect("text");
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.ends_with(".yml") {
            continue;
        }
        assert!(!text.contains("pull_request_target"), "{name}: a privileged trigger");
        if name != "action.yml" {
            assert!(text.contains("\npermissions:"), "{name}: permissions are stated for the whole workflow");
        }
        if text.contains("actions/checkout") {
            assert!(text.contains("fetch-depth: 0") && text.contains("persist-credentials: false"), "{name}");
            assert!(!text.contains("pull-requests: write"), "{name}: what checks out code may not comment");
        }
        // What a pull request chooses (titles, branches, file names) reaches scripts through variables only.
        let mut in_script = None;
        for line in text.lines() {
            let indent = line.len() - line.trim_start().len();
            if in_script.is_some_and(|start| indent <= start && !line.trim().is_empty()) {
                in_script = None;
            }
            if line.trim_start().starts_with("run:") {
                in_script = Some(indent);
            }
            assert!(in_script.is_none() || !line.contains("${{"), "{name}: an expression in a script: {line}");
        }
    }
    let gitlab = std::fs::read_to_string(root().join("ci/gitlab/attnbench.gitlab-ci.yml")).expect("text");
    assert!(gitlab.contains("GIT_DEPTH: \"0\""));
}
