//! Every format whole, of judgements and runs of each kind, and of names and reasons that mean harm.

use serde_json::Value;

use super::super::markdown::MAX_LINES;
use super::*;
use crate::compare::{Baseline, Finding, Verdict, compare};
use crate::gate::families::FamilyFinding;
use crate::gate::outcome::{GateReport, report};
use crate::gate::policy::Policy;
use crate::metric::Estimate;
use crate::record::{CaseResult, Disposition, Record, sample};

/// Eight rounds around a time, in nanoseconds, that differ by up to a share of it.
fn case(kernel: &str, keys: usize, ns: f64, spread: f64) -> CaseResult {
    let mut case = sample::measured(kernel, keys, ns);
    let rounds = case.rounds.clone();
    case.rounds = (0..8u32)
        .map(|round| {
            let mut copy = rounds[(round % 2) as usize].clone();
            let factor = 1.0 + spread * (f64::from(round * 5 % 8) / 4.0 - 1.0);
            copy.round = round;
            copy.device_ns.iter_mut().for_each(|ns| *ns = (*ns * factor).round());
            copy
        })
        .collect();
    case
}

fn judged(base: Vec<CaseResult>, head: Vec<CaseResult>, change: impl Fn(&mut Record)) -> GateReport {
    let run = |id: &str, cases| {
        let mut record = Record { cases, ..sample::record() };
        record.run.id = id.into();
        record
    };
    let mut head = run("20260102T040000-head", head);
    change(&mut head);
    let base = Baseline::from_records("", &[run("20260102T030000-base", base)]).unwrap();
    let head = Baseline::from_records("", &[head]).unwrap();
    // One session of each side finds what is gross and nothing else, which is enough here.
    let policy = Policy { max_mde: 0.2, ..Policy::default() };
    let mut made = report(compare(&base, &head, &policy), true, &policy, false);
    let command = "target/release/attnbench gate --against origin/main --suite quickstart --out gate.json";
    made.command = command.split(' ').map(str::to_owned).collect();
    made
}

fn both(spread: f64) -> Vec<CaseResult> {
    [("flash", 256, 1e6), ("flash", 1024, 2e7), ("naive", 1024, 4.5e7), ("flash1", 1024, 3e7)]
        .map(|(kernel, keys, ns)| case(kernel, keys, ns, spread))
        .to_vec()
}

/// Slower in one case, faster in another, hungrier in a third, wrong in a fourth; one is new.
fn regression() -> GateReport {
    let mut head = both(0.001);
    head[0] = case("flash", 256, 1.3e6, 0.001);
    for round in &mut head[1].rounds {
        round.memory.as_mut().unwrap().extra_peak_bytes = Some(30 << 20);
    }
    head[2] = case("naive", 1024, 3e7, 0.001);
    head[3] = sample::failed("flash1", 1024, Disposition::Incorrect, "o: a key block is missing");
    head.push(case("flash", 2048, 8e7, 0.001));
    let mut report = judged(both(0.001), head, |head| {
        head.provenance.insert("build_rustc".into(), "rustc 1.96.0".into());
    });
    let finding = Finding {
        ratio: Some(Estimate { value: 1.012, low: 1.008, high: 1.016, confidence: 0.95 }),
        ..Finding::bare(Verdict::Regressed, "1.2 % slower on average")
    };
    report.families.push(FamilyFinding { family: "cpu/flash".into(), cases: 3, finding });
    report
}

fn clean() -> GateReport {
    judged(both(0.001), both(0.001), |_| {})
}

fn inconclusive() -> GateReport {
    judged(both(0.2), both(0.2), |_| {})
}

fn not_comparable() -> GateReport {
    judged(both(0.001), both(0.001), |head| {
        head.fingerprint.insert("cpu_model".into(), "Another CPU".into());
    })
}

/// What each format must carry through unchanged, and what must not come out of it as it went in.
const HOSTILE: &str =
    "</script><script>alert(1)</script>\"a\",'b'|c`d``e\n::error::x%0A\r\u{0}\u{1b}[31m]]>&amp; @all =1+1 *x* #1";

fn hostile() -> (GateReport, Record) {
    let mut report = regression();
    for case in &mut report.comparison.cases {
        case.key.case_id = format!("cpu/{HOSTILE}/{}", case.key.case_id);
        case.reason = HOSTILE.into();
        case.metrics.iter_mut().for_each(|metric| metric.finding.reason = HOSTILE.into());
    }
    report.comparison.base.suite = HOSTILE.into();
    report.comparison.head.suite = HOSTILE.into();
    report.causes.push(HOSTILE.into());
    report.comparison.notes.push(HOSTILE.into());
    let mut record = sample::record();
    record.run.suite = HOSTILE.into();
    record.fingerprint.insert("cpu_model".into(), HOSTILE.into());
    for case in &mut record.cases {
        case.key.case_id = format!("=cpu/{HOSTILE}/{}", case.key.case_id);
        case.matrix = HOSTILE.into();
        case.reason = Some(HOSTILE.into());
    }
    (report, record)
}

#[test]
fn comments_of_every_outcome() {
    for (name, report) in [
        ("regression", regression()),
        ("clean", clean()),
        ("inconclusive", inconclusive()),
        ("not_comparable", not_comparable()),
    ] {
        let text = markdown::text(Subject::Gate(&report));
        assert!(text.lines().count() <= MAX_LINES, "{text}");
        insta::assert_snapshot!(format!("markdown_{name}"), text);
    }
    insta::assert_snapshot!("markdown_run", markdown::text(Subject::Run(&sample::record())));
}

#[test]
fn every_other_format() {
    let (report, record) = (regression(), sample::record());
    for format in FORMATS.iter().filter(|format| format.name != "markdown") {
        insta::assert_snapshot!(format!("{}_gate", format.name), (format.write)(Subject::Gate(&report)));
        insta::assert_snapshot!(format!("{}_run", format.name), (format.write)(Subject::Run(&record)));
    }
}

/// However much there is to say, a comment stays short, and the worst comes first.
#[test]
fn a_comment_of_a_thousand_cases_has_sixty_lines() {
    let cases = |factor: f64| (1..=300).map(|keys| case("flash", keys, 1e6 * factor, 0.001)).collect::<Vec<_>>();
    let mut head = cases(1.3);
    head[150] = case("flash", 151, 5e6, 0.001);
    let mut report = judged(cases(1.0), head, |head| {
        (0..50).for_each(|i| drop(head.provenance.insert(format!("field_{i}"), "x".into())));
    });
    report.comparison.notes = vec!["a note".into(); 100];
    report.causes = vec!["a cause".into(); 100];
    let text = markdown::text(Subject::Gate(&report));
    assert!(text.lines().count() <= MAX_LINES, "{text}");
    let first = text.lines().find(|line| line.starts_with("| `")).unwrap();
    assert!(first.contains("q151") && first.contains("+400 %"), "{text}");
    assert!(text.contains("| and 290 more |"), "{text}");
}

#[test]
fn xml_is_well_formed_and_says_what_was_meant() {
    let (report, record) = hostile();
    for (subject, failures) in [(Subject::Gate(&report), 4), (Subject::Run(&record), 1)] {
        let text = junit::text(subject);
        let document = roxmltree::Document::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let tests: Vec<_> = document.descendants().filter(|node| node.has_tag_name("testcase")).collect();
        let failed = document.descendants().filter(|node| node.has_tag_name("failure")).count();
        assert_eq!(failed, failures, "{text}");
        let suite = document.descendants().find(|node| node.has_tag_name("testsuite")).unwrap();
        assert_eq!(suite.attribute("tests"), Some(tests.len().to_string().as_str()));
        assert_eq!(suite.attribute("failures"), Some(failed.to_string().as_str()));
        let name = tests.last().unwrap().attribute("name").unwrap();
        assert!(name.contains("</script><script>alert(1)</script>\"a\",'b'|c`d``e"), "{name}");
        assert!(document.descendants().all(|node| !node.has_tag_name("script")));
    }
}

#[test]
fn csv_is_read_back_and_runs_nowhere() {
    let (report, record) = hostile();
    for subject in [Subject::Gate(&report), Subject::Run(&record)] {
        let text = csv::text(subject);
        let mut reader = ::csv::Reader::from_reader(text.as_bytes());
        let header = reader.headers().unwrap().clone();
        let rows: Vec<::csv::StringRecord> = reader.records().collect::<Result<_, _>>().unwrap();
        assert!(!rows.is_empty());
        for row in &rows {
            assert_eq!(row.len(), header.len());
            assert!(row[0].contains(HOSTILE), "{:?}", &row[0]);
            assert!(row.iter().all(|field| !field.starts_with(['=', '@'])), "{row:?}");
        }
    }
}

#[test]
fn json_and_its_like_are_read_back() {
    let (report, record) = hostile();
    for subject in [Subject::Gate(&report), Subject::Run(&record)] {
        for format in ["json", "sarif", "bencher"] {
            let text = (super::format(format).unwrap().write)(subject);
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{format}: {error}"));
            assert!(value.is_object(), "{format}");
        }
    }
    let again: GateReport = serde_json::from_str(&shown::text(Subject::Gate(&report))).unwrap();
    assert!(again == report, "JSON keeps everything");
}

/// The rules of the SARIF standard that a viewer stumbles over.
#[test]
fn sarif_refers_to_its_own_rules_and_to_a_file() {
    let (report, record) = hostile();
    for (subject, findings) in [(Subject::Gate(&report), 3), (Subject::Run(&record), 1)] {
        let log: Value = serde_json::from_str(&sarif::text(subject)).unwrap();
        let run = &log["runs"][0];
        let results = run["results"].as_array().unwrap();
        assert_eq!(results.len(), findings, "{log}");
        let mut seen = std::collections::BTreeSet::new();
        for result in results {
            let index = result["ruleIndex"].as_u64().unwrap() as usize;
            assert_eq!(run["tool"]["driver"]["rules"][index]["id"], result["ruleId"]);
            let uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"].as_str().unwrap();
            assert!(uri.bytes().all(|byte| byte.is_ascii_graphic() && !b"<>\"`|".contains(&byte)), "{uri}");
            let text = result["message"]["text"].as_str().unwrap();
            assert!(!text.chars().any(char::is_control) && !text.is_empty());
            assert!(seen.insert(result["partialFingerprints"]["attnbenchCase/v1"].to_string()), "one a finding");
        }
    }
}

/// The lines of OpenMetrics, taken apart by its grammar: `name{label="value",...} number`.
#[test]
fn openmetrics_follows_its_grammar() {
    let (report, record) = hostile();
    for subject in [Subject::Gate(&report), Subject::Run(&record)] {
        let text = openmetrics::text(subject);
        assert!(text.ends_with("# EOF\n") && text.matches("# EOF").count() == 1);
        let mut family = String::new();
        let mut families = std::collections::BTreeSet::new();
        let mut samples = std::collections::BTreeSet::new();
        for line in text.lines().filter(|line| *line != "# EOF") {
            if let Some(kind) = line.strip_prefix("# TYPE ") {
                family = kind.strip_suffix(" gauge").unwrap_or_else(|| panic!("{line}")).to_owned();
                assert!(families.insert(family.clone()), "a family is in one place: {line}");
                continue;
            }
            if line.starts_with("# HELP ") {
                continue;
            }
            let rest = line.strip_prefix(&family).unwrap_or_else(|| panic!("no sample of {family}: {line}"));
            let (labels, value) = rest.rsplit_once("} ").unwrap_or_else(|| panic!("{line}"));
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(samples.insert(line.rsplit_once(' ').unwrap().0.to_owned()), "twice: {line}");
            // Quotes that are not escaped come in pairs, and nothing lies between pairs but names.
            let bare = labels.replace("\\\\", "").replace("\\\"", "").replace("\\n", "");
            let parts: Vec<&str> = bare.trim_start_matches('{').split('"').collect();
            assert_eq!(parts.len() % 2, 1, "{line}");
            for name in parts.iter().step_by(2).filter(|part| !part.is_empty()) {
                let name = name.trim_start_matches(',').strip_suffix('=').unwrap_or_else(|| panic!("{name}: {line}"));
                assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{line}");
            }
        }
    }
}

/// A line break in a name would begin a command of its own.
#[test]
fn annotations_are_one_command_a_line() {
    let (report, record) = hostile();
    for subject in [Subject::Gate(&report), Subject::Run(&record)] {
        let text = annotations::text(subject);
        for line in text.lines() {
            assert!(["::error title=", "::notice title="].iter().any(|start| line.starts_with(start)), "{line}");
            assert!(!line.contains('\r') && line.contains("%250A"), "{line}");
        }
    }
}

/// Nothing that was named or said is anything but text: no tag, no link, no mention, no other row.
#[test]
fn markdown_keeps_texts_texts() {
    let (report, record) = hostile();
    for subject in [Subject::Gate(&report), Subject::Run(&record)] {
        let text = markdown::text(subject);
        for line in text.lines().filter(|line| !line.starts_with("```") && !line.starts_with("attnbench ")) {
            let outside = without_code(line);
            let tags = outside.replace("<details>", "").replace("</details>", "").replace("<summary>", "");
            assert!(!tags.replace("</summary>", "").contains('<'), "{line}");
            assert!(!outside.contains("@all"), "{line}");
            if line.starts_with('|') {
                let columns = line.replace("\\|", "").matches('|').count();
                assert!(matches!(columns, 2 | 4..=7), "{columns} borders: {line}");
            }
        }
    }
}

/// A line of Markdown without its code.
fn without_code(line: &str) -> String {
    let mut outside = String::new();
    let mut rest = line;
    while let Some(start) = rest.find('`') {
        outside += &rest[..start].replace("\\`", "");
        if rest[..start].ends_with('\\') {
            rest = &rest[start + 1..];
            continue;
        }
        let fence = rest[start..].len() - rest[start..].trim_start_matches('`').len();
        let inside = &rest[start + fence..];
        let mut at = 0;
        let end = loop {
            let Some(found) = inside[at..].find('`') else { panic!("code is not closed: {line}") };
            let run = inside[at + found..].len() - inside[at + found..].trim_start_matches('`').len();
            at += found + run;
            if run == fence {
                break at;
            }
        };
        rest = &inside[end..];
    }
    outside + rest
}
