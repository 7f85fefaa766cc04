//! The tables of `docs/suites.md`, made from what the code accepts, so that they cannot be out of date.

use std::fmt::Write;

use super::MeasureSettings;
use super::axes::AXES;
use super::expand::{MAX_MATRIX_CASES, MAX_SUITE_CASES};
use super::presets::MODELS;
use attn_kernels::problem::legal::LEGAL;

/// Set this variable and run the tests to write the tables anew.
const UPDATE_VARIABLE: &str = "ATTNBENCH_UPDATE_SCHEMAS";

const START: &str = "<!-- generated: ";
const END: &str = "<!-- end -->";

/// The name of each generated part, with its text.
fn parts() -> [(&'static str, String); 5] {
    [("measure", measure()), ("axes", axes()), ("legal", legal()), ("models", models()), ("limits", limits())]
}

/// Keys of `[measure]`: from the schema of the settings and their defaults.
fn measure() -> String {
    let schema = serde_json::to_value(schemars::schema_for!(MeasureSettings)).expect("a schema is JSON");
    let mut defaults = serde_json::to_value(MeasureSettings::default()).expect("settings are JSON");
    // Left out of records where it is false.
    defaults["energy"] = MeasureSettings::default().energy.into();
    let keys = [
        "mode",
        "rounds",
        "min_samples",
        "max_samples",
        "budget_ms",
        "target_ci",
        "timeout_s",
        "oracle_flops",
        "energy",
    ];
    let properties = schema["properties"].as_object().expect("properties");
    assert_eq!(properties.len(), keys.len(), "every setting is in the reference");
    let mut text = String::from("| key | default | what it is |\n|---|---|---|\n");
    for key in keys {
        let about = properties[key]["description"].as_str().expect("settings are described");
        writeln!(text, "| `{key}` | `{}` | {} |", defaults[key], about.replace('\n', " ")).expect("a string takes it");
    }
    text
}

/// Axes: from the table that reads them.
fn axes() -> String {
    let mut text = String::from("| axis | a value is | not together with |\n|---|---|---|\n");
    for axis in AXES {
        let excludes = axis.excludes.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
        let expects = axis.expects.replace('|', "\\|");
        writeln!(text, "| `{}` | {expects} | {excludes} |", axis.name).expect("a string takes it");
    }
    text
}

/// What exists: from the table that problems are checked by.
fn legal() -> String {
    let mut text = String::from("| mechanism | phases | patterns |\n|---|---|---|\n");
    for row in LEGAL {
        let phases = row.phases.iter().map(|phase| phase.name()).collect::<Vec<_>>().join(", ");
        writeln!(text, "| {} | {phases} | {} |", row.mechanism, row.patterns.join(", ")).expect("a string takes it");
    }
    text
}

/// Model presets, with where their figures come from.
fn models() -> String {
    let mut text = String::from("| model | layers | source |\n|---|---|---|\n");
    for model in MODELS {
        let layers: u32 = model.layers.iter().map(|group| group.count).sum();
        writeln!(text, "| `{}` | {layers} | {} |", model.name, model.source.replace('|', "\\|"))
            .expect("a string takes it");
    }
    text
}

fn limits() -> String {
    format!("A matrix has at most {MAX_MATRIX_CASES} cases before it is filtered, a suite at most {MAX_SUITE_CASES}.\n")
}

#[test]
fn the_reference_says_what_the_code_accepts() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/suites.md");
    let mut page = std::fs::read_to_string(&path).expect("docs/suites.md");
    let mut fresh = page.clone();
    for (name, part) in parts() {
        let marker = format!("{START}{name} -->\n");
        let start = fresh.find(&marker).unwrap_or_else(|| panic!("docs/suites.md has no part `{name}`")) + marker.len();
        let end = start + fresh[start..].find(END).expect("each part has an end");
        fresh.replace_range(start..end, &part);
    }
    if std::env::var_os(UPDATE_VARIABLE).is_some() {
        crate::files::write_atomically(&path, fresh.as_bytes()).expect("written");
        page.clone_from(&fresh);
    }
    assert!(page == fresh, "docs/suites.md is not what the code says: run the tests with {UPDATE_VARIABLE}=1");
}
