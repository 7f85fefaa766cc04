//! A report as a folder of pages that any browser opens from the disk: no server, no request to anywhere.
//!
//! Pages hold no data. All of it is in `data.js`, which every page loads, so that a thousand cases are one file; what each
//! round saw of a case is in files of some dozens of cases, of which a page loads the one that it shows. Scripts put texts
//! into pages as text and never as HTML, and a policy in each page forbids whatever is not in the folder.

mod data;

use std::borrow::Cow;

use super::json;
use crate::compare::devices::DeviceComparison;
use crate::gate::outcome::GateReport;
use crate::history::search::FoundSeries;
use crate::record::Record;

/// Cases whose rounds share a file.
const CASES_A_FILE: usize = 32;

/// The folder of those files.
pub const ROUNDS_FOLDER: &str = "rounds";

/// The file that says that a folder is a report.
pub const DATA_FILE: &str = "data.js";

/// What a report is of. Without a judgement, devices or a history it lacks their pages.
pub struct Site<'a> {
    /// The runs; the last is the one that pages show first.
    pub runs: &'a [Record],
    /// Head against base.
    pub gate: Option<&'a GateReport>,
    /// Several devices.
    pub devices: Option<&'a DeviceComparison>,
    /// Series over time.
    pub history: &'a [FoundSeries],
}

/// A file of the report.
pub struct SiteFile {
    /// Its path in the report's folder.
    pub path: String,
    /// What it holds.
    pub contents: Cow<'static, [u8]>,
}

/// A page: its file, its title, the scripts that it has of its own, and whether there is anything to show on it.
struct Page {
    file: &'static str,
    title: &'static str,
    scripts: &'static [&'static str],
    is_there: fn(&Site<'_>) -> bool,
}

const fn page(file: &'static str, title: &'static str, scripts: &'static [&'static str]) -> Page {
    Page { file, title, scripts, is_there: |site| !site.runs.is_empty() }
}

/// Every page, in the order of the menu. That of one case is reached through the others.
const PAGES: [Page; 13] = [
    Page { is_there: |_| true, ..page("index", "Summary", &["summary"]) },
    Page { is_there: |site| site.gate.is_some(), ..page("comparison", "Comparison", &["comparison"]) },
    page("cases", "Cases", &["cases"]),
    page("latency", "Latency", &["curves"]),
    page("roofline", "Roofline", &["roofline"]),
    page("ratios", "Ratios", &["ratios"]),
    page("memory", "Memory", &["curves"]),
    page("energy", "Energy", &["curves"]),
    page("samples", "Samples", &["rounds", "samples"]),
    Page { is_there: |site| site.devices.is_some(), ..page("devices", "Devices", &["devices"]) },
    Page { is_there: |site| !site.history.is_empty(), ..page("history", "History", &["history"]) },
    page("environment", "Environment", &["environment"]),
    page(CASE_PAGE, "Case", &["rounds", "case"]),
];

const CASE_PAGE: &str = "case";

/// Scripts that every page has, in the order in which they need each other.
const COMMON: [&str; 4] = ["base", "filter", "table", "plot"];

/// The style, the scripts and the library, as they are.
const ASSETS: [(&str, &str); 18] = [
    ("style.css", include_str!("assets/style.css")),
    ("plotly.js", include_str!("plotly/plotly-cartesian.min.js")),
    ("base.js", include_str!("assets/base.js")),
    ("filter.js", include_str!("assets/filter.js")),
    ("table.js", include_str!("assets/table.js")),
    ("plot.js", include_str!("assets/plot.js")),
    ("rounds.js", include_str!("assets/rounds.js")),
    ("summary.js", include_str!("assets/summary.js")),
    ("cases.js", include_str!("assets/cases.js")),
    ("curves.js", include_str!("assets/curves.js")),
    ("roofline.js", include_str!("assets/roofline.js")),
    ("ratios.js", include_str!("assets/ratios.js")),
    ("samples.js", include_str!("assets/samples.js")),
    ("case.js", include_str!("assets/case.js")),
    ("comparison.js", include_str!("assets/comparison.js")),
    ("devices.js", include_str!("assets/devices.js")),
    ("history.js", include_str!("assets/history.js")),
    ("environment.js", include_str!("assets/environment.js")),
];

/// Every file of the report.
pub fn files(site: &Site<'_>) -> Vec<SiteFile> {
    let mut files: Vec<SiteFile> = ASSETS
        .iter()
        .map(|(name, text)| SiteFile { path: format!("assets/{name}"), contents: Cow::Borrowed(text.as_bytes()) })
        .collect();
    let shown: Vec<&Page> = PAGES.iter().filter(|page| (page.is_there)(site)).collect();
    let text = |path: String, text: String| SiteFile { path, contents: Cow::Owned(text.into_bytes()) };
    files.extend(shown.iter().map(|page| text(format!("{}.html", page.file), page_text(page, &shown))));
    files.push(text(DATA_FILE.to_owned(), script("data", &data::site(site))));
    if !site.history.is_empty() {
        files.push(text("history-data.js".to_owned(), script("history", &data::history(site.history))));
    }
    let cases: Vec<_> = site.runs.iter().flat_map(|record| &record.cases).collect();
    files.extend(cases.chunks(CASES_A_FILE).enumerate().map(|(at, cases)| {
        let rounds: Vec<_> = cases.iter().map(|case| &case.rounds).collect();
        text(format!("{ROUNDS_FOLDER}/{at}.js"), script(&format!("rounds/{at}"), &rounds))
    }));
    files
}

/// A value as a script that hands it over. Browsers read JSON in a string faster than the same as a program, and a string
/// that has no `<` and none of JavaScript's own line ends is nothing else in any place.
fn script<T: serde::Serialize>(name: &str, value: &T) -> String {
    let value = json::short(value).expect("the keys of all maps are texts");
    let text = serde_json::to_string(&value).expect("a text serialises");
    let text = text.replace('<', "\\u003c").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029");
    format!("attnbench.load(\"{name}\", {text});\n")
}

/// A page's frame: nothing in it comes from a record.
fn page_text(page: &Page, shown: &[&Page]) -> String {
    let menu: String = shown
        .iter()
        .filter(|other| other.file != CASE_PAGE)
        .map(|other| {
            let current = if other.file == page.file { " aria-current=\"page\"" } else { "" };
            format!("\n      <a href=\"{}.html\"{current}>{}</a>", other.file, other.title)
        })
        .collect();
    let history = if page.file == "history" { &["../history-data"][..] } else { &[] };
    let scripts: String = COMMON
        .iter()
        .chain(&["../data"])
        .chain(history)
        .chain(page.scripts)
        .map(|name| match name.strip_prefix("../") {
            Some(data) => format!("\n  <script defer src=\"{data}.js\"></script>"),
            None => format!("\n  <script defer src=\"assets/{name}.js\"></script>"),
        })
        .collect();
    include_str!("assets/page.html")
        .replace("{{title}}", page.title)
        .replace("{{page}}", page.file)
        .replace("{{menu}}", &menu)
        .replace("{{scripts}}", &scripts)
}

#[cfg(test)]
mod tests;
