//! Claims: what their files may say, how records decide them, and the command as a user calls it.

use std::collections::BTreeMap;
use std::path::Path;

use assert_cmd::Command;
use attnbench::claims::answer::{Verdict, answer};
use attnbench::claims::{Claim, Evidence};
use attnbench::record::Record;
use attnbench::suite::Environment;
use proptest::prelude::*;
use serde_json::Value;

const HEAD: &str = "description = \"A claim.\"\n[claim]\nsource = \"Somebody, somewhere\"\n";
const EXPONENT: &str = "[[claim.expect]]\nsays = \"e\"\nrelation = \"exponent\"\nquantity = \"latency\"\nof = \"m\"\nabout = 2.0\ntolerance = 0.1\n";
const MATRIX: &str = "[measure]\nrounds = 3\nmode = \"hot\"\n[[matrix]]\nname = \"m\"\nreason = \"Why.\"\nkernels = \"naive\"\nthreads = 1\nheads = \"2:2\"\nseqlen = [64, 128, 256]\nhead_dim = 16\n";

fn parse(text: &str) -> Result<Claim, String> {
    Claim::parse("mine", "mine.toml", text.as_bytes(), &Environment::default()).map_err(|error| error.to_string())
}

fn attnbench(args: &[&str], directory: &Path) -> (i32, String, String) {
    let mut command = Command::cargo_bin("attnbench").unwrap();
    let output = command.current_dir(directory).env("COLUMNS", "80").args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn bad_files_are_one_clear_error() {
    let claim = |expect: &str| format!("{HEAD}[[claim.expect]]\nsays = \"e\"\n{expect}\n{MATRIX}");
    let ratio = "relation = \"ratio\"\nquantity = \"latency\"\nof = \"m\"\n";
    for (text, expected) in [
        (String::new(), "missing field `description`"),
        (format!("{HEAD}[claim.expect]\n"), "invalid type"),
        (format!("{HEAD}expect = []\n"), "it expects nothing"),
        (claim("relation = \"ratoi\"\nat_least = 1"), "there is no relation `ratoi`; valid: ratio"),
        (claim(&format!("{ratio}over = \"m\"")), "say `about` with a relative `tolerance`"),
        (claim(&format!("{ratio}over = \"m\"\nat_least = 2\nat_most = 1")), "no number lies between"),
        (claim(&format!("{ratio}over = \"m\"\nat_least = nan")), "no number lies between"),
        (claim(&format!("{ratio}over = \"n\"\nat_least = 1")), "a ratio needs as many cases"),
        (
            claim("relation = \"value\"\nquantity = \"latency\"\nof = \"n\"\nat_least = 1"),
            "no `[[matrix]]` of the name `n`",
        ),
        (
            claim("relation = \"value\"\nquantity = \"share_of_peak\"\nof = \"m\"\nat_least = 1"),
            "needs `peak_flop_per_s`",
        ),
        (
            claim("relation = \"exponent\"\nquantity = \"latency\"\naxis = \"width\"\nof = \"m\"\nat_least = 1"),
            "no place on the axis",
        ),
        (claim("relation = \"cache_ratio\"\nat_least = 1"), "needs `cache`"),
        (
            claim("relation = \"cache_ratio\"\nat_least = 1\ncache = { model = \"gpt-7\", dtype = \"f16\" }"),
            "no model preset `gpt-7`",
        ),
        (
            claim("relation = \"cache_ratio\"\nat_least = 1\ncache = { layers = 2, heads = \"8:3\", dtype = \"f16\" }"),
            "`cache`:",
        ),
        (format!("{HEAD}{EXPONENT}{MATRIX}colour = 3\n"), "unknown matrix key `colour`"),
        (format!("{HEAD}{EXPONENT}colour = 3\n{MATRIX}"), "unknown field `colour`"),
    ] {
        let error = parse(&text).expect_err(expected);
        assert!(
            error.starts_with("reading claim `mine.toml`: ") && error.contains(expected),
            "{error}\nlacks {expected}"
        );
    }
    let dir = tempfile::tempdir().unwrap();
    let (code, _, stderr) = attnbench(&["claims", "no_such_claim"], dir.path());
    assert_eq!(code, 2);
    assert!(stderr.contains("no such claim; name a .toml file, or one of materialised_time"), "{stderr}");
}

/// A record of the claim's cases in which time is a power of length, one list of factors a round.
fn record(claim: &Claim, exponent: f64, factors: &[f64]) -> Record {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/record.json");
    let mut record = attnbench::record::file::load(Path::new(example)).unwrap();
    let template = record.cases[0].clone();
    record.controls.clear();
    record.cases = claim
        .suite
        .iter()
        .flat_map(|suite| &suite.cases)
        .map(|planned| {
            let length = planned.case.problem.lengths_kv()[0] as f64;
            let mut case = template.clone();
            case.key = planned.key();
            case.matrix.clone_from(&planned.matrix);
            let round = case.rounds[0].clone();
            case.rounds = (0..)
                .zip(factors)
                .map(|(number, factor)| {
                    let mut round = round.clone();
                    round.round = number;
                    // Only the longest call is disturbed, so that factors change the exponent.
                    let factor = if length == 256.0 { *factor } else { 1.0 };
                    round.device_ns = vec![1000.0 * length.powf(exponent) * factor; 5];
                    round
                })
                .collect();
            case
        })
        .collect();
    record
}

fn verdict(exponent: f64, factors: &[f64]) -> Verdict {
    let claim = parse(&format!("{HEAD}{EXPONENT}{MATRIX}")).unwrap();
    let record = record(&claim, exponent, factors);
    answer(&claim, &Evidence::new(Some(&record), BTreeMap::new()), None).verdict
}

#[test]
fn intervals_decide() {
    assert_eq!(verdict(2.0, &[1.0, 1.01, 0.99]), Verdict::Confirmed);
    assert_eq!(verdict(1.0, &[1.0, 1.01, 0.99]), Verdict::Contradicted);
    // A round in which the longest call took a third more.
    assert_eq!(verdict(2.1, &[1.0, 1.4, 1.0]), Verdict::Inconclusive);
}

#[test]
fn a_disturbed_machine_decides_nothing_near_a_bound() {
    let claim = parse(&format!("{HEAD}{EXPONENT}{MATRIX}")).unwrap();
    let mut record = record(&claim, 2.0, &[1.0, 1.0, 1.0]);
    let example =
        attnbench::record::file::load(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/record.json")));
    record.controls = example.unwrap().controls;
    record.controls.retain(|control| control.kind == attnbench::record::ControlKind::Fma);
    assert!(!record.controls.is_empty());
    for (slow, expected) in [(1.0, Verdict::Confirmed), (3.0, Verdict::Inconclusive)] {
        record.controls[0].rounds =
            (0..20).map(|round| vec![if round % 2 == 0 { 100.0 } else { 100.0 * slow }; 5]).collect();
        let found = answer(&claim, &Evidence::new(Some(&record), BTreeMap::new()), None);
        assert_eq!(found.verdict, expected, "{found:?}");
    }
}

#[test]
fn what_was_not_measured_says_why() {
    let claim = parse(&format!("{HEAD}{EXPONENT}{MATRIX}")).unwrap();
    let mut record = record(&claim, 2.0, &[1.0]);
    record.cases[1].disposition = attnbench::record::Disposition::OutOfMemory;
    record.cases[1].reason = Some("needs 9 bytes".to_owned());
    let found = answer(&claim, &Evidence::new(Some(&record), BTreeMap::new()), None);
    assert_eq!(found.verdict, Verdict::NotMeasurableHere);
    assert!(found.reason.unwrap().contains("is out_of_memory: needs 9 bytes"));
    let on_gpu = parse(&format!("{HEAD}needs = \"H100\"\n{EXPONENT}{MATRIX}")).unwrap();
    let found = answer(&on_gpu, &Evidence::new(None, BTreeMap::new()), Some("Some CPU"));
    assert_eq!(found.reason.unwrap(), "needs an NVIDIA H100; this is `Some CPU`");
}

#[test]
fn arithmetic_needs_no_measurement() {
    let dir = tempfile::tempdir().unwrap();
    let claims = ["gqa_cache", "mqa_cache", "mla_93_percent", "mla_82_percent", "mla_98_percent", "flash3_h100_peak"];
    let (code, stdout, stderr) = attnbench(&[&["claims", "--json"], &claims[..]].concat(), dir.path());
    assert_eq!(code, 0, "{stderr}");
    let answers: Vec<Value> = serde_json::from_str(&stdout).unwrap();
    let verdicts: Vec<&str> = answers.iter().map(|answer| answer["verdict"].as_str().unwrap()).collect();
    assert_eq!(verdicts[..5], ["confirmed"; 5]);
    assert_eq!(verdicts[5], "not_measurable_here");
    assert!((answers[2]["findings"][0]["figures"][0]["value"].as_f64().unwrap() - 0.9334).abs() < 1e-4);
    assert!(!dir.path().join("results").exists(), "nothing was run");
}

#[test]
fn a_claim_of_ones_own_is_measured_and_judged() {
    let dir = tempfile::tempdir().unwrap();
    let expect = "[[claim.expect]]\nsays = \"error\"\nrelation = \"value\"\nquantity = \"relative_l2\"\nof = \"m\"\nat_most = 1e-5\n";
    std::fs::write(dir.path().join("own.toml"), format!("{HEAD}{expect}{MATRIX}")).unwrap();
    let args = ["claims", "own.toml", "--rounds", "1", "--record-out", "r.json", "-o", "a.json"];
    let (code, stdout, stderr) = attnbench(&args, dir.path());
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.starts_with("confirmed            own") && stdout.contains("3 cases from"), "{stdout}");
    let again = attnbench(&["claims", "own.toml", "--record", "r.json"], dir.path());
    assert_eq!((again.0, &again.1), (0, &stdout), "the same measurements, the same answer");
    assert!(std::fs::read_to_string(dir.path().join("a.json")).unwrap().contains("\"confirmed\""));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn exact_laws_are_found(exponent in 0.2f64..4.0) {
        let expected = if (1.8..=2.2).contains(&exponent) { Verdict::Confirmed } else { Verdict::Contradicted };
        prop_assume!((exponent - 1.8).abs() > 1e-6 && (exponent - 2.2).abs() > 1e-6);
        prop_assert_eq!(verdict(exponent, &[1.0, 1.0, 1.0]), expected);
    }
}
