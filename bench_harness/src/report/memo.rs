//! A decision memo as Markdown or as a self-contained HTML page.

use attn_kernels::work::Work;

use super::{printable, units};
use crate::advise::Memo;
use crate::advise::assess::Assessment;
use crate::advise::memo::{RULE, Reason, effort};
use crate::advise::probe::ProbeFinding;
use crate::case::Case;

/// A part of a document.
enum Block {
    Heading(u8, String),
    Text(String),
    List(Vec<String>),
    Table(Vec<String>, Vec<Vec<String>>),
}

/// The memo as Markdown.
pub fn markdown(memo: &Memo) -> String {
    let mut out = String::new();
    for block in blocks(memo) {
        match block {
            Block::Heading(level, text) => out += &format!("{} {text}\n\n", "#".repeat(level.into())),
            Block::Text(text) => out += &format!("{text}\n\n"),
            Block::List(items) => {
                items.iter().for_each(|item| out += &format!("- {item}\n"));
                out += "\n";
            }
            Block::Table(heads, rows) => {
                out += &format!("| {} |\n|{}\n", heads.join(" | "), "---|".repeat(heads.len()));
                for row in rows {
                    let cells: Vec<String> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
                    out += &format!("| {} |\n", cells.join(" | "));
                }
                out += "\n";
            }
        }
    }
    out.trim_end().to_owned() + "\n"
}

/// The memo as one HTML file that needs nothing else.
pub fn html(memo: &Memo) -> String {
    let mut body = String::new();
    for block in blocks(memo) {
        match block {
            Block::Heading(level, text) => body += &format!("<h{level}>{}</h{level}>\n", inline(&text)),
            Block::Text(text) => body += &format!("<p>{}</p>\n", inline(&text)),
            Block::List(items) => {
                let items: String = items.iter().map(|item| format!("<li>{}</li>\n", inline(item))).collect();
                body += &format!("<ul>\n{items}</ul>\n");
            }
            Block::Table(heads, rows) => {
                let heads: String = heads.iter().map(|head| format!("<th>{}</th>", inline(head))).collect();
                let row = |cells: &Vec<String>| {
                    let cells: String = cells.iter().map(|cell| format!("<td>{}</td>", inline(cell))).collect();
                    format!("<tr>{cells}</tr>\n")
                };
                let rows: String = rows.iter().map(row).collect();
                body += &format!("<div class=\"wide\"><table>\n<tr>{heads}</tr>\n{rows}</table></div>\n");
            }
        }
    }
    let title = inline(&format!("Decision: {}", memo.scenario));
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n<main>\n{body}</main>\n</html>\n"
    )
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;margin:0;color:#222;background:#fff}main{max-width:60rem;margin:2rem \
                     auto;padding:0 1rem}h1,h2{line-height:1.2}.wide{overflow-x:auto}table{border-collapse:collapse;font-size:14px}\
                     th,td{border-bottom:1px solid #ccc;padding:.25rem .6rem;text-align:left;vertical-align:top}code{background:#f3f3f3}\
                     small{color:#666}@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}code{background:#2a2a2a}\
                     th,td{border-color:#444}small{color:#999}}";

/// Escaped text, in which back quotes make code and underscores around a whole bracket make small print.
fn inline(text: &str) -> String {
    let escaped =
        printable(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
    let mut out = String::new();
    for (index, part) in escaped.split('`').enumerate() {
        match index % 2 {
            0 => out += part,
            _ => out += &format!("<code>{part}</code>"),
        }
    }
    match out.split_once(" _[") {
        Some((text, from)) => format!("{text} <small>[{}</small>", from.trim_end_matches('_')),
        None => out,
    }
}

/// A sentence with where it is from.
fn traced(reason: &Reason) -> String {
    format!("{} _[{}]_", printable(&reason.text), printable(&reason.from))
}

fn blocks(memo: &Memo) -> Vec<Block> {
    let heading = |text: &str| Block::Heading(2, text.to_owned());
    let list = |reasons: &[Reason]| Block::List(reasons.iter().map(traced).collect());
    let mut blocks = vec![
        Block::Heading(1, format!("Decision: {}", printable(&memo.scenario))),
        Block::Text(printable(&memo.description)),
        heading("Design"),
        Block::Text(traced(&memo.primary)),
        heading("Modification"),
        Block::Text(memo.modification.as_ref().map_or("None is needed.".to_owned(), traced)),
        heading("Reasons"),
        list(&memo.reasons),
        heading("Failure mode avoided"),
        Block::Text(memo.failure_mode_avoided.as_ref().map_or("No candidate fails a need.".to_owned(), traced)),
        heading("Trade-off kept"),
        Block::Text(traced(&memo.trade_off)),
        heading("Monitor in production"),
        list(&memo.monitor),
        heading("Runner-up"),
        Block::Text(memo.runner_up.as_ref().map_or("There is no other candidate.".to_owned(), traced)),
        heading("Candidates"),
        candidate_table(memo),
    ];
    let failing: Vec<String> = memo
        .candidates
        .iter()
        .filter(|own| !own.is_fit())
        .map(|own| {
            let failures: Vec<&str> = own.failures.iter().map(|failure| failure.text.as_str()).collect();
            format!("`{}`: {}", own.name(), printable(&failures.join("; ")))
        })
        .collect();
    if !failing.is_empty() {
        blocks.extend([Block::Text("Needs that are not met:".to_owned()), Block::List(failing)]);
    }
    blocks.extend([heading("Probes"), probe_table(memo)]);
    let summaries = memo.probes.iter().map(|(name, summary)| format!("{name}: {summary}"));
    blocks.push(Block::List(summaries.collect()));
    blocks.push(Block::Text(probe_sizes(memo)));
    blocks.push(heading("Measured on this machine"));
    if memo.measured.is_empty() {
        blocks.push(Block::Text("Nothing.".to_owned()));
    } else {
        blocks.push(Block::Text("One layer, one sequence, cold caches, median of rounds.".to_owned()));
        blocks.push(measured_table(memo));
    }
    blocks.extend([
        heading("What this rests on"),
        Block::Text(format!(
            "Device: {}, {} of memory. Rates: {}.",
            printable(&memo.device),
            units::bytes(memo.budget.memory_bytes),
            printable(&memo.rates.source)
        )),
        Block::List(memo.assumptions.clone()),
        Block::Text(format!("Rule of choice: {RULE}")),
    ]);
    blocks
}

fn candidate_table(memo: &Memo) -> Block {
    let heads = [
        "design",
        "training",
        "a token",
        "planned cache",
        "headroom",
        "tightest limit",
        "step",
        "weights",
        "attention",
        "full layers",
        "fit",
    ]
    .map(str::to_owned)
    .to_vec();
    let row = |own: &Assessment| {
        let weights: f64 = own.step.parts.iter().take(1).map(|part| part.ns).sum();
        vec![
            format!("`{}`", own.name()),
            effort(own).to_owned(),
            units::bytes(own.token_bytes),
            own.planned_bytes.map_or("too much".to_owned(), units::bytes),
            units::three_digits(own.headroom),
            printable(&own.tightest),
            units::nanoseconds(own.step.ns()),
            units::nanoseconds(weights),
            units::nanoseconds(own.step.ns() - weights),
            units::percent(own.full_share),
            if own.is_fit() { "yes" } else { "no" }.to_owned(),
        ]
    };
    Block::Table(heads, memo.candidates.iter().map(row).collect())
}

/// A row a design, a column a figure; figures of few designs share the last column.
fn probe_table(memo: &Memo) -> Block {
    // An eight-bit form has its design's findings and its own.
    let is_form =
        |own: &Assessment, wider: &Assessment| wider.design == own.design && wider.dtype.bits() > own.dtype.bits();
    let designs: Vec<&Assessment> =
        memo.candidates.iter().filter(|own| !memo.candidates.iter().any(|other| is_form(own, other))).collect();
    let mut columns: Vec<&str> = Vec::new();
    for finding in designs.iter().flat_map(|own| &own.probes) {
        let count = designs.iter().filter(|own| own.probes.iter().any(|other| other.of == finding.of)).count();
        if 2 * count > designs.len() && !columns.contains(&finding.of.as_str()) {
            columns.push(&finding.of);
        }
    }
    let shown = |finding: &ProbeFinding| {
        let mark = if finding.is_met() { "" } else { " (not met)" };
        format!("{}{mark}", units::three_digits(finding.value))
    };
    let rows = designs.iter().map(|own| {
        let mut row = vec![format!("`{}`", own.design)];
        for column in &columns {
            let finding = own.probes.iter().find(|finding| finding.of == *column);
            row.push(finding.map_or(units::NOTHING.to_owned(), shown));
        }
        let forms = memo.candidates.iter().filter(|other| is_form(other, own));
        let narrow = forms.flat_map(|other| &other.probes).filter(|finding| finding.probe == "precision");
        let others = own.probes.iter().chain(narrow).filter(|finding| !columns.contains(&finding.of.as_str()));
        row.push(others.map(|finding| format!("{}: {}", finding.of, shown(finding))).collect::<Vec<_>>().join("; "));
        row
    });
    let heads = ["design"].into_iter().chain(columns.iter().copied()).chain(["others"]);
    Block::Table(heads.map(str::to_owned).collect(), rows.collect())
}

/// How the figures were come by: sizes and seeds, each probe once.
fn probe_sizes(memo: &Memo) -> String {
    let mut sizes: Vec<(&str, &str)> = Vec::new();
    for finding in memo.candidates.iter().flat_map(|own| &own.probes) {
        if sizes.iter().all(|(probe, _)| *probe != finding.probe) {
            let size = finding.how.split_once("; ").map_or(finding.how.as_str(), |(_, size)| size);
            sizes.push((finding.probe, size));
        }
    }
    let sizes: Vec<String> = sizes.into_iter().map(|(probe, size)| format!("{probe}: {size}")).collect();
    format!("Sizes: {}.", sizes.join("; "))
}

fn measured_table(memo: &Memo) -> Block {
    let rows = memo.measured.iter().flat_map(|measured| {
        measured.points.iter().map(|point| {
            // Bytes are what decode takes its time for, FLOPs what a prompt does.
            let rate = point.case_id.parse::<Case>().map_or(units::NOTHING.to_owned(), |case| {
                let work = Work::of(&case.problem);
                match measured.part {
                    "decode" => units::bytes_per_s(work.gb_per_s(point.ns) * 1e9),
                    _ => units::flop_per_s(work.gflop_per_s(point.ns) * 1e9),
                }
            });
            vec![
                printable(&measured.layer),
                measured.part.to_owned(),
                point.length.to_string(),
                units::nanoseconds(point.ns),
                rate,
                format!("`{}`", printable(&point.case_id)),
            ]
        })
    });
    let heads = ["layer", "part", "tokens", "time", "rate", "case"].map(str::to_owned).to_vec();
    Block::Table(heads, rows.collect())
}
