//! The files of a report, as far as no browser is needed: that they are all there, ask for nothing else, and that no text of
//! a record can become anything but text. `tests/report` opens them.

use std::collections::BTreeMap;

use serde_json::Value;

use super::*;
use crate::compare::devices::compare_devices;
use crate::gate::outcome::judge;
use crate::gate::policy::Policy;
use crate::history::changes::SeriesChanges;
use crate::history::point::SeriesKey;
use crate::metric::Better;
use crate::record::sample;
use crate::store::history::{SeriesSummary, StoredPoint};

const HOSTILE: &str = "</script><script>alert(1)</script>\"a\",'b'`${1}`\\\u{2028}\n<!--";

/// A report with every page, whose texts all mean harm.
fn hostile_files() -> Vec<SiteFile> {
    let record = |id: &str, model: &str| {
        let mut record = sample::record();
        record.run.id = id.into();
        record.run.suite = HOSTILE.into();
        record.run.command = vec!["attnbench".into(), "run".into(), HOSTILE.into()];
        record.fingerprint.insert("cpu_model".into(), format!("{model}{HOSTILE}"));
        record.provenance.insert(HOSTILE.into(), HOSTILE.into());
        for case in &mut record.cases {
            case.key.case_id = case.key.case_id.replacen("cpu/", &format!("cpu{HOSTILE}/"), 1);
            (case.matrix, case.reason, case.flags) = (HOSTILE.into(), Some(HOSTILE.into()), vec![HOSTILE.into()]);
            case.rounds.iter_mut().for_each(|round| round.reason = Some(HOSTILE.into()));
        }
        record
    };
    let runs = [record("base", "a"), record("head", "b")];
    let base = crate::compare::Baseline::from_records("", &runs[..1]).unwrap();
    let gate = judge(&runs[1..], &base, &Policy::default(), &[], false).unwrap();
    let devices = compare_devices(&runs, &BTreeMap::new()).unwrap();
    let key =
        SeriesKey { suite: HOSTILE.into(), case: HOSTILE.into(), metric: HOSTILE.into(), machine: HOSTILE.into() };
    let point = StoredPoint {
        run: HOSTILE.into(),
        time: HOSTILE.into(),
        commit: Some(HOSTILE.into()),
        value: 1.0,
        low: None,
        high: None,
    };
    let history = [FoundSeries {
        summary: SeriesSummary { key, better: Better::Lower, points: 1 },
        points: vec![point],
        found: SeriesChanges { changes: Vec::new(), normal: None, latest: None, open_regression: None },
    }];
    files(&Site { runs: &runs, gate: Some(&gate), devices: Some(&devices), history: &history })
}

fn text(file: &SiteFile) -> &str {
    std::str::from_utf8(&file.contents).expect("every file is text")
}

/// What a data file hands over.
fn handed_over(file: &SiteFile) -> (String, Value) {
    let inside =
        text(file).strip_prefix("attnbench.load(").and_then(|text| text.strip_suffix(");\n")).expect("one call");
    let arguments: Vec<String> = serde_json::from_str(&format!("[{inside}]")).expect("two texts");
    (arguments[0].clone(), serde_json::from_str(&arguments[1]).expect("JSON"))
}

#[test]
fn data_keeps_every_text_and_holds_no_tag() {
    let files = hostile_files();
    let is_data = |file: &&SiteFile| !file.path.starts_with("assets/") && file.path.ends_with(".js");
    let data: Vec<&SiteFile> = files.iter().filter(is_data).collect();
    assert_eq!(data.len(), 3, "data, history, rounds");
    for file in &data {
        assert!(!text(file).contains(['<', '\u{2028}']), "{}", file.path);
        assert_eq!(text(file).lines().count(), 1, "a line break would end a text: {}", file.path);
        let (name, value) = handed_over(file);
        assert!(file.path == format!("{name}.js") || name == "history", "{name} in {}", file.path);
        assert!(value.to_string().contains("alert(1)"), "{}", file.path);
    }
    let (_, site) = handed_over(data[0]);
    assert_eq!(site["cases"].as_array().unwrap().len(), 12);
    assert_eq!(site["cases"][0]["matrix"], HOSTILE);
    assert_eq!((site["runs"][0]["role"].as_str(), site["runs"][1]["role"].as_str()), (Some("base"), Some("head")));
    let (_, rounds) = handed_over(files.iter().find(|file| file.path == "rounds/0.js").unwrap());
    assert_eq!(rounds[0][0]["device_ns"].as_array().unwrap().len(), 20, "samples are kept");
}

#[test]
fn pages_hold_no_data_and_ask_for_nothing_that_is_not_there() {
    let files = hostile_files();
    let paths: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
    let pages: Vec<&SiteFile> = files.iter().filter(|file| file.path.ends_with(".html")).collect();
    assert_eq!(pages.len(), PAGES.len());
    for page in pages {
        let html = text(page);
        assert!(!html.contains("alert(1)") && !html.contains("{{"), "{}", page.path);
        assert!(html.contains("default-src 'none'"), "{}", page.path);
        let wanted =
            html.split(['"', '\'']).filter(|part| [".js", ".css", ".html"].iter().any(|end| part.ends_with(end)));
        for path in wanted {
            // The history's data is loaded beside the page.
            assert!(paths.contains(&path), "{} asks for {path}", page.path);
        }
    }
    for (name, text) in ASSETS.iter().filter(|(name, _)| *name != "plotly.js") {
        let elsewhere = text.replace("http://www.w3.org/2000/svg", "");
        assert!(!elsewhere.contains("://"), "{name} names another place");
        for way in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("] {
            assert!(!text.contains(way), "{name}: `{way}` would make HTML or programs of texts");
        }
    }
    let used = |name: &str| COMMON.contains(&name) || PAGES.iter().any(|page| page.scripts.contains(&name));
    for (name, _) in ASSETS.iter().filter(|(name, _)| !matches!(*name, "style.css" | "plotly.js")) {
        assert!(used(name.trim_end_matches(".js")), "{name} is in no page");
    }
}

#[test]
fn pages_without_anything_to_show_are_left_out() {
    let runs = [sample::record()];
    let files = files(&Site { runs: &runs, gate: None, devices: None, history: &[] });
    let pages: Vec<&str> = files.iter().map(|file| file.path.as_str()).filter(|path| path.ends_with(".html")).collect();
    assert_eq!(pages.len(), PAGES.len() - 3, "no comparison, devices, history: {pages:?}");
    let index = text(files.iter().find(|file| file.path == "index.html").unwrap());
    assert!(!index.contains("history.html") && index.contains("roofline.html"), "{index}");
}
