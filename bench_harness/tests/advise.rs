//! Advice: what probes show at their limits, laws of the models, what scenarios may say, and whole memos on fixed records.

use std::path::Path;

use assert_cmd::Command;
use attn_kernels::e4m3::e4m3;
use attnbench::advise::assess::assess_all;
use attnbench::advise::choose::choose;
use attnbench::advise::curve::{Basis, Curve, Point};
use attnbench::advise::latency::{rates, step};
use attnbench::advise::probe::concentration::concentration;
use attnbench::advise::probe::distance::distance;
use attnbench::advise::probe::diversity::retained;
use attnbench::advise::probe::precision::change;
use attnbench::advise::probe::recall::{TRIALS, recall};
use attnbench::advise::probe::{latent, relay::relayed};
use attnbench::advise::{Design, Memo, Scenario, cases, library};
use attnbench::kv::Element;
use attnbench::kv::variants::{latent as latent_layers, linear, windowed};
use attnbench::record::{ControlKind, Record};
use attnbench::report::memo::{html, markdown};
use attnbench::suite::presets::LayerGroup;
use proptest::prelude::*;

const SCENARIO: &str = "description = \"A test.\"\n[model]\nlayers = 12\nheads_q = 16\nhead_dim = 64\nparameters = 1e9\nweights = \"bf16\"\ntrained_as = \"gqa:8\"\n[device]\nname = \"l4\"\n[[workload]]\nname = \"w\"\ncontext = [64, 2048]\nconcurrency = 4\ntime_per_token_ms = 100\ntime_to_first_token_s = 9\n[needs]\nlocal_detail = 64\nretrieval = [1500]\n";

fn scenario(text: &str) -> Result<Scenario, String> {
    Scenario::parse("mine", "mine.toml", text.as_bytes()).map_err(|error| error.to_string())
}

fn attnbench(args: &[&str], directory: &Path) -> (i32, String, String) {
    let mut command = Command::cargo_bin("attnbench").unwrap();
    let output = command.current_dir(directory).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// A record of everything that a scenario measures, in which each case takes a microsecond and its work at fixed rates.
fn record(scenario: &Scenario) -> Record {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/record.json");
    let mut record = attnbench::record::file::load(Path::new(example)).unwrap();
    let template = record.cases[0].clone();
    record.fingerprint.insert("cpu_model".to_owned(), "A test processor".to_owned());
    let mut control = record.controls[0].clone();
    control.rounds = vec![vec![1e9; 3]];
    let controls = [(ControlKind::Read, 20_000_000_000), (ControlKind::Fma, 100_000_000_000)];
    record.controls =
        controls.map(|(kind, work)| attnbench::record::ControlResult { kind, work, ..control.clone() }).to_vec();
    let planned = cases::suite(scenario, 2).cases;
    record.cases = planned
        .iter()
        .map(|planned| {
            let work = attn_kernels::work::Work::of(&planned.case.problem);
            let ns = 1000.0 + (work.bytes() as f64 / 10.0).max(work.flops as f64 / 50.0);
            let mut case = template.clone();
            (case.key, case.matrix, case.work) = (planned.key(), planned.matrix.clone(), work);
            case.rounds.truncate(1);
            case.rounds[0].device_ns = vec![ns; 5];
            case
        })
        .collect();
    record
}

#[test]
fn recall_is_exact_inside_a_window_and_chance_beyond() {
    for window in [17, 64, 300] {
        let group = windowed(LayerGroup::dense(1, 8, 8, 64), window);
        assert_eq!(recall(&group, window - 1, 1024, 32), 1.0, "the farthest key of {window}");
        // The needles lie at distances from `distance` down: all of them just outside.
        let beyond = recall(&group, window - 1 + TRIALS, 1024, 32);
        assert!(beyond <= 2.0 / TRIALS as f64, "chance is 1 in 256, and {beyond} were found beyond {window}");
    }
    let full = LayerGroup::dense(1, 8, 1, 64);
    for distance in [0, 1, 500, 4000] {
        assert_eq!(recall(&full, distance, 4001, 64), 1.0, "{distance}");
    }
    assert_eq!(recall(&latent_layers(full), 900, 1000, 64), 1.0);
    assert_eq!(recall(&full, 0, 1, 64), 1.0, "a single token is all there is");
}

#[test]
fn linear_attention_forgets_under_load() {
    let group = linear(LayerGroup::dense(1, 8, 8, 64));
    let loads = [4, 64, 1024, 8192].map(|keys| recall(&group, keys - 1, keys, 64));
    assert_eq!(loads[0], 1.0, "{loads:?}");
    assert!(loads[3] <= 0.5 && loads.is_sorted_by(|a, b| a >= b), "{loads:?}");
}

#[test]
fn stacked_windows_relay_as_far_as_their_sum_and_no_further() {
    for (layers, window) in [(1, 5), (3, 16), (4, 9)] {
        let reach = layers * (window - 1);
        assert!(relayed(layers, window, reach) > 0.999, "{layers} x {window}");
        assert!(relayed(layers, window, reach + 1).abs() < 0.5, "{layers} x {window}");
        assert!(relayed(layers, window, reach / 2) > 0.999, "{layers} x {window}");
    }
}

#[test]
fn sharing_heads_never_adds_diversity() {
    let kept = [16, 8, 4, 2, 1].map(|heads_kv| retained(16, heads_kv));
    assert!((kept[0] - 1.0).abs() < 1e-9, "{kept:?}");
    assert!(kept.is_sorted_by(|a, b| a > b) && (kept[2] - 0.25).abs() < 0.1, "{kept:?}");
    assert!((retained(1, 1) - 1.0).abs() < 1e-9);
}

#[test]
fn concentration_falls_and_entropy_stays_a_share() {
    let group = LayerGroup::dense(1, 1, 1, 64);
    let found = [16, 256, 4096, 65_536].map(|length| concentration(&group, length));
    assert!(found.is_sorted_by(|a, b| a.0 > b.0), "{found:?}");
    assert!(found[0].0 > 0.99 && found.iter().all(|(_, entropy)| (0.0..=1.0).contains(entropy)), "{found:?}");
    // A window does not see how long the sequence is.
    let window = windowed(group, 256);
    assert!((concentration(&window, 256).0 - found[1].0).abs() < 1e-9);
    assert!((concentration(&window, 65_536).0 - found[1].0).abs() < 0.2);
    assert_eq!(concentration(&group, 1), (1.0, 0.0));
}

#[test]
fn a_latent_holds_what_its_rank_allows() {
    assert_eq!(latent::error(48, 64), 0.0);
    assert_eq!(latent::error(64, 64), 0.0);
    let errors = [96, 128, 256].map(|rank| latent::error(rank, 64));
    assert!(errors[0] > 0.1 && errors.is_sorted(), "{errors:?}");
}

#[test]
fn eight_bits() {
    for (x, rounded) in [(0.0, 0.0), (1.0, 1.0), (1.06, 1.0), (1.07, 1.125), (-17.0, -16.0), (1e6, 448.0), (1e-4, 0.0)]
    {
        assert_eq!(e4m3::from_f32(x).to_f32(), rounded, "{x}");
    }
    let change = change();
    assert!(change > 0.005 && change < 0.06, "{change}");
}

#[test]
fn distance_is_zero_for_what_sees_everything() {
    let full = LayerGroup::dense(1, 8, 2, 64);
    assert_eq!(distance(&full), 0.0);
    assert_eq!(distance(&latent_layers(full)), 0.0);
    let [narrow, wide, whole] = [128, 4096, 8192].map(|keys| distance(&windowed(full, keys)));
    assert!(narrow > wide && wide > 0.05 && whole < 1e-12, "{narrow} {wide} {whole}");
    assert!(distance(&linear(full)) > 0.1);
}

#[test]
fn curves_say_how_they_know() {
    let point = |length: u64, ns: f64| Point { length, ns, case_id: format!("case {length}") };
    let curve = Curve::new(vec![point(4096, 400.0), point(1024, 100.0), point(64, f64::NAN)]);
    let at = |length| curve.at(length, |tokens| tokens as f64).unwrap();
    assert_eq!(at(1024), (100.0, Basis::Measured, vec!["case 1024"]));
    let (ns, basis, from) = at(2048);
    assert!((ns - 200.0).abs() < 1e-9 && basis == Basis::Interpolated && from.len() == 2);
    assert_eq!(at(8192), (800.0, Basis::Extrapolated, vec!["case 4096"]));
    assert_eq!(at(512), (50.0, Basis::Extrapolated, vec!["case 1024"]));
    assert!(Curve::default().at(1, |_| 1.0).is_none());
}

#[test]
fn bad_scenarios_are_one_clear_error() {
    assert!(scenario(SCENARIO).is_ok());
    for (from, to, expected) in [
        ("layers = 12", "layers = 0", "a model has 1 to"),
        ("heads_q = 16", "heads_q = 0", "[model]:"),
        ("parameters = 1e9", "parameters = -1", "`parameters` is -1"),
        ("parameters = 1e9", "", "`parameters` is missing"),
        ("parameters = 1e9", "parameters = 1e9\nactive_parameters = 2e9", "are more than `parameters`"),
        ("weights = \"bf16\"", "weights = \"f8\"", "no storage type `f8`"),
        ("gqa:8", "gqa:7", "`trained_as`: design `gqa:7`"),
        ("gqa:8", "rwkv", "there is no design `rwkv`; valid: mha, gqa:HEADS"),
        ("\"l4\"", "\"l5\"", "there is no device `l5`; valid: this, h200-sxm"),
        ("\"l4\"", "\"this\"", "`memory` is missing"),
        ("\"l4\"", "\"l4\"\nmemory = \"1GB\"", "leave nothing for a cache"),
        ("[64, 2048]", "[2048, 64]", "workload `w`: `context` is [shortest, longest]"),
        ("concurrency = 4", "concurrency = 0", "`concurrency` is 1 to"),
        ("time_per_token_ms = 100", "time_per_token_ms = nan", "numbers above 0"),
        ("concurrency = 4", "concurrency = 4\nnew_tokens = 4096", "`new_tokens` lie between"),
        ("[1500]", "[3000]", "a distance of 3000 tokens lies outside every context"),
        ("[1500]", "[1500]\nmax_distance = 2", "`max_distance` is 2"),
        ("[needs]", "[needs]\ncolour = 1", "unknown field `colour`"),
        (
            "description = \"A test.\"",
            "description = \"A test.\"\ncandidates = \"all\"",
            "candidates are \"auto\" or a list",
        ),
        (
            "description = \"A test.\"",
            "description = \"A test.\"\ncandidates = [\"window:0\"]",
            "there is no design `window:0`",
        ),
    ] {
        assert!(SCENARIO.contains(from), "{from}");
        let error = scenario(&SCENARIO.replacen(from, to, 1)).expect_err(expected);
        assert!(
            error.starts_with("reading scenario `mine.toml`: ") && error.contains(expected),
            "{error}\nlacks {expected}"
        );
    }
}

#[test]
fn candidates_of_ones_own() {
    let own = "candidates = [\"gqa:4\", \"mqa\"]\n";
    let custom =
        "[[candidate]]\nname = \"strided\"\npattern = \"strided:128\"\nheads_kv = 2\nfull_every = 4\ndtype = \"fp8\"\n";
    let scenario = scenario(&format!("{own}{SCENARIO}{custom}")).unwrap();
    let names: Vec<&str> = scenario.designs.iter().map(|design| design.name.as_str()).collect();
    assert_eq!(names, ["gqa:8", "gqa:4", "mqa", "strided"], "what was trained is always a candidate");
    let custom = &scenario.designs[3];
    assert_eq!((custom.groups[0].count, custom.groups[1].count, custom.element), (3, 9, Element::FP8));
    assert!((custom.full_share() - 0.25).abs() < 1e-12);
}

#[test]
fn every_shipped_scenario_makes_sense() {
    for (name, _) in library::SCENARIOS {
        let scenario = library::load(name).unwrap_or_else(|error| panic!("{error}"));
        assert!(scenario.designs.len() >= 6, "{name}");
        let suite = cases::suite(&scenario, 2);
        assert!(
            suite.cases.len() >= 6 && suite.cases.iter().all(|case| case.case.problem.validate().is_ok()),
            "{name}"
        );
    }
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../suites/scenarios");
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), library::SCENARIOS.len(), "every file is in the table");
}

/// One measured here and one predicted, whole.
#[test]
fn memos_are_golden() {
    for name in ["on_device_meeting_60k", "internal_assistant_64k"] {
        let scenario = library::load(name).unwrap();
        let record = record(&scenario);
        let memo = Memo::write(&scenario, Some(&record)).unwrap();
        assert_eq!(markdown(&memo), markdown(&Memo::write(&scenario, Some(&record)).unwrap()));
        insta::assert_snapshot!(name, markdown(&memo));
        let page = html(&memo);
        assert!(
            page.starts_with("<!doctype html>") && page.matches("<table>").count() == page.matches("</table>").count()
        );
        assert!(!page.contains("http"), "a page needs nothing else");
        let measured = memo.measured.iter().flat_map(|measured| &measured.points);
        assert!(measured.clone().count() > 0 && measured.clone().all(|point| markdown(&memo).contains(&point.case_id)));
    }
}

#[test]
fn a_scenario_of_this_machine_needs_measurements() {
    let scenario = library::load("on_device_meeting_60k").unwrap();
    assert!(Memo::write(&scenario, None).unwrap_err().contains("the record holds no ceilings"));
}

#[test]
fn hostile_text_reaches_no_page() {
    let text = SCENARIO.replace("A test.", "<script>alert(1)</script>\\u001b[2J");
    let memo = Memo::write(&scenario(&text).unwrap(), None).unwrap();
    assert!(!html(&memo).contains("<script>") && !markdown(&memo).contains('\x1b'));
}

#[test]
fn the_command_writes_every_form() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("own.toml"), SCENARIO.replace("[needs]", "[needs]\nmax_distance = 0.01")).unwrap();
    let record = record(&scenario(SCENARIO).unwrap());
    attnbench::record::file::save(&dir.path().join("r.json"), &record).unwrap();
    let args = ["advise", "own.toml", "--record", "r.json", "-o", "memo.md", "-o", "memo.html", "-o", "memo.json"];
    let (code, stdout, stderr) = attnbench(&args, dir.path());
    assert_eq!(code, 0, "{stderr}");
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    assert_eq!(stdout, read("memo.md"));
    let memo: serde_json::Value = serde_json::from_str(&read("memo.json")).unwrap();
    assert!(memo["primary"]["text"].as_str().unwrap().starts_with("`gqa:8`"));
    assert!(memo["meets_every_need"].as_bool().unwrap() && read("memo.html").contains("<h1>Decision: own</h1>"));
    for (args, expected) in [
        (["advise", "own.toml", "-o", "memo.pdf"], "writing memo `memo.pdf`: name it .md, .html or .json"),
        (
            ["advise", "nobody", "-o", "memo.md"],
            "no such scenario; name a .toml file, or one of internal_assistant_64k",
        ),
    ] {
        let (code, _, stderr) = attnbench(&args, dir.path());
        assert_eq!(code, 2);
        assert!(stderr.contains(expected), "{stderr}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn more_of_anything_never_takes_less_time(
        concurrency in 1u64..64, more in 1u64..64, context in 64u64..100_000, longer in 0u64..100_000, which in 0usize..8
    ) {
        let mut scenario = scenario(SCENARIO).unwrap();
        let rates = rates(&scenario, None).unwrap();
        let design = scenario.designs[which % scenario.designs.len()].clone();
        scenario.workloads[0].concurrency = concurrency;
        let ns = |scenario: &Scenario, context: u64| step(&design, scenario, None, &rates, |_| context).ns();
        let before = ns(&scenario, context);
        prop_assert!(ns(&scenario, context + longer) >= before * (1.0 - 1e-12));
        scenario.workloads[0].concurrency += more;
        prop_assert!(ns(&scenario, context) >= before * (1.0 - 1e-12));
        let narrow = Design { element: Element::FP8, ..design.clone() };
        prop_assert!(step(&narrow, &scenario, None, &rates, |_| context).ns() <= ns(&scenario, context) * (1.0 + 1e-12));
    }

    #[test]
    fn the_choice_depends_on_no_order(turn in 0usize..16, concurrency in 1u64..400) {
        let mut scenario = scenario(&format!("candidates = [\"mha\", \"gqa:4\", \"mqa\", \"window:256\"]\n{SCENARIO}")).unwrap();
        scenario.workloads[0].concurrency = concurrency;
        let rates = rates(&scenario, None).unwrap();
        let mut assessments = assess_all(&scenario, None, &rates);
        let chosen = assessments[choose(&assessments).primary].clone();
        prop_assert!(chosen.is_fit() || assessments.iter().all(|other| !other.is_fit()));
        let turn = turn % assessments.len();
        assessments.rotate_left(turn);
        prop_assert_eq!(&assessments[choose(&assessments).primary], &chosen);
    }
}
