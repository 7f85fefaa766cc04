//! Tables in which a person finds what became of every case, at 80 columns and at 200.

use attn_kernels::problem::Dtype;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};

use super::case_names::group_names;
use super::{Style, Tone, printable, units, wrap};
use crate::metric::{CONFIDENCE, Estimate, Metric, accuracy, latency, limits, memory, rate};
use crate::record::{CaseResult, ControlKind, Disposition, Record};

/// Rates from here on are shown in TFLOP/s, in a table that has one.
const TERA_FROM_FLOPS_PER_S: f64 = 10e12;

/// The case column is made no narrower than this: first, less important columns go.
const NARROWEST_CASE: usize = 16;

/// Spaces between columns.
const GAP: usize = 2;

/// A column beside the case's.
struct Column {
    title: &'static str,
    alignment: CellAlignment,
    /// What is hidden first where there is no room; `None` always stays.
    dispensable: Option<u8>,
}

/// What a record says: a line about the run, a table a matrix, and every reason why a case was not measured.
pub fn record_table(record: &Record, cases: &[&CaseResult], style: Style) -> String {
    let mut out = Vec::new();
    out.extend(headline(record, cases, style));
    for group in cases.chunk_by(|a, b| a.matrix == b.matrix) {
        out.push(String::new());
        out.extend(matrix_table(record, group, style));
    }
    out.extend(reasons(cases, style));
    out.extend(notes(record, cases, style));
    out.join("\n") + "\n"
}

/// What ran, where, when, at which commit, and how much of it was measured.
fn headline(record: &Record, cases: &[&CaseResult], style: Style) -> Vec<String> {
    let run = &record.run;
    let device = record.device_model().map(|model| format!(" on {model}")).unwrap_or_default();
    let measured = cases.iter().filter(|case| case.disposition == Disposition::Measured).count();
    let mut text = format!("{measured} of {} cases measured", cases.len());
    text += &format!(" in {} round{}", run.rounds_done, if run.rounds_done == 1 { "" } else { "s" });
    if run.rounds_done != run.rounds_planned {
        text += &format!(" of {} planned", run.rounds_planned);
    }
    text += &format!(", {}", run.started_at.get(..10).unwrap_or(&run.started_at));
    if let Some(git) = &record.git {
        let dirty = if git.dirty { " with changes" } else { "" };
        let branch = git.branch.as_deref().unwrap_or("detached");
        text += &format!(", {branch} at {}{dirty}", super::short_commit(&git.commit));
    }
    let mut lines = vec![style.bold(&printable(&format!("{}{device}", run.suite)))];
    lines.extend(wrap(&printable(&text), style.width, &[' ']));
    if !run.complete {
        let interrupted = "The run was interrupted: not every planned round was reached.";
        lines.extend(wrap(interrupted, style.width, &[' ']).iter().map(|line| style.paint(Tone::Doubtful, line)));
    }
    if run.device_shared {
        let shared = "Another attnbench measured on this device at the same time: times are disturbed.";
        lines.extend(wrap(shared, style.width, &[' ']).iter().map(|line| style.paint(Tone::Doubtful, line)));
    }
    lines
}

/// A heading with what the cases share, and a row a case.
fn matrix_table(record: &Record, cases: &[&CaseResult], style: Style) -> Vec<String> {
    let flops: Vec<Option<Estimate>> = cases.iter().map(|case| rate::Flops.value(case, record)).collect();
    let tera = flops.iter().flatten().any(|rate| rate.value >= TERA_FROM_FLOPS_PER_S);
    let right = CellAlignment::Right;
    let column = |title, alignment, dispensable| Column { title, alignment, dispensable };
    let columns = [
        column("latency", right, None),
        column("95 %", right, Some(2)),
        column(if tera { "TFLOP/s" } else { "GFLOP/s" }, right, None),
        column("GB/s", right, Some(1)),
        column("limit", right, None),
        column("memory", right, Some(3)),
        column("error", right, Some(4)),
        column("result", CellAlignment::Left, None),
    ];
    let number = |value: Option<f64>, show: fn(f64) -> String| value.map_or(units::NOTHING.to_owned(), show);
    let cells: Vec<Vec<String>> = cases
        .iter()
        .zip(flops)
        .map(|(case, flops)| {
            let value = |metric: &dyn Metric| metric.value(case, record).map(|estimate| estimate.value);
            let latency = latency::LatencyMedian.value(case, record);
            vec![
                number(latency.map(|latency| latency.value), units::nanoseconds),
                number(latency.map(half_width), plus_minus),
                number(flops.map(|rate| rate.value / if tera { 1e12 } else { 1e9 }), units::three_digits),
                number(value(&rate::Bandwidth), units::three_digits),
                number(value(&limits::PercentOfLimit).map(|percent| percent / 100.0), units::percent),
                number(value(&memory::ExtraPeak), |bytes| units::bytes(bytes as u64)),
                number(value(&accuracy::RelativeL2), units::scientific),
                result_word(case),
            ]
        })
        .collect();

    let keys: Vec<_> = cases.iter().map(|case| &case.key).collect();
    let full: Vec<String> = keys.iter().map(|key| key.to_string()).collect();
    let short = group_names(&keys);
    let widest = |names: &[String]| names.iter().map(|name| name.chars().count()).max().unwrap_or(0);

    // Whole ids where the terminal is wide enough for them, else what differs; then fewer columns, then wrapped names.
    let all = room_for_names(&columns, &cells, &[], style.width);
    let matrix = printable(&cases[0].matrix);
    let (heading, names) = match widest(&full) <= all {
        true => (matrix, full),
        false => (format!("{matrix}: {}", printable(&short.heading)), short.names),
    };
    let mut hidden: Vec<usize> = Vec::new();
    let mut by_need: Vec<usize> = (0..columns.len()).filter(|&at| columns[at].dispensable.is_some()).collect();
    by_need.sort_by_key(|&at| columns[at].dispensable);
    let wanted = widest(&names).min(NARROWEST_CASE);
    for at in by_need {
        if room_for_names(&columns, &cells, &hidden, style.width) >= wanted {
            break;
        }
        hidden.push(at);
    }
    let room = room_for_names(&columns, &cells, &hidden, style.width).max(wanted);

    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    let shown = || (0..columns.len()).filter(|at| !hidden.contains(at));
    let cell = |text: &str, at: usize| Cell::new(text).set_alignment(columns[at].alignment);
    table.set_header(
        std::iter::once(Cell::new("case")).chain(shown().map(|at| cell(columns[at].title, at))).collect::<Vec<_>>(),
    );
    for (name, row) in names.iter().zip(&cells) {
        let name = wrap(&printable(name), room, &['/', ',']).join("\n");
        table.add_row(std::iter::once(Cell::new(name)).chain(shown().map(|at| cell(&row[at], at))).collect::<Vec<_>>());
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, GAP as u16));
    }

    let mut lines: Vec<String> = wrap(&heading, style.width, &['/', ' ']).iter().map(|line| style.bold(line)).collect();
    for line in table.lines() {
        lines.push(paint_result(line.trim_end(), style));
    }
    if !hidden.is_empty() {
        let titles: Vec<&str> = hidden.iter().map(|&at| columns[at].title).collect();
        let hint = format!("(a wider terminal also shows {})", titles.join(", "));
        lines.extend(wrap(&hint, style.width, &[' ']));
    }
    lines
}

/// Columns of the terminal that are left for names beside the columns that are not hidden.
fn room_for_names(columns: &[Column], cells: &[Vec<String>], hidden: &[usize], width: usize) -> usize {
    let taken: usize = (0..columns.len())
        .filter(|at| !hidden.contains(at))
        .map(|at| {
            let widths = cells.iter().map(|row| row[at].chars().count()).chain([columns[at].title.len()]);
            GAP + widths.max().unwrap_or(0)
        })
        .sum();
    width.saturating_sub(taken)
}

/// Half of the interval, on its longer side, as a share of the value.
fn half_width(estimate: Estimate) -> f64 {
    (estimate.high - estimate.value).max(estimate.value - estimate.low) / estimate.value
}

/// `±0.31 %`, `±12 %`.
fn plus_minus(share: f64) -> String {
    match 100.0 * share {
        percent if percent < 0.995 => format!("±{percent:.2} %"),
        percent if percent < 9.95 => format!("±{percent:.1} %"),
        percent => format!("±{percent:.0} %"),
    }
}

/// The disposition, with a mark where there are warnings.
fn result_word(case: &CaseResult) -> String {
    let mark = if case.flags.is_empty() { "" } else { " !" };
    format!("{}{mark}", case.disposition.name())
}

/// Colours the word at the end of a row.
fn paint_result(line: &str, style: Style) -> String {
    const ALL: [Disposition; 8] = [
        Disposition::Measured,
        Disposition::Incorrect,
        Disposition::Unsupported,
        Disposition::OutOfMemory,
        Disposition::TimedOut,
        Disposition::Crashed,
        Disposition::Throttled,
        Disposition::Skipped,
    ];
    for disposition in ALL {
        for (word, flagged) in [(disposition.name().to_owned(), false), (format!("{} !", disposition.name()), true)] {
            if let Some(rest) = line.strip_suffix(&word) {
                return format!("{rest}{}", style.paint(tone_of(disposition, flagged), &word));
            }
        }
    }
    line.to_owned()
}

fn tone_of(disposition: Disposition, flagged: bool) -> Tone {
    match disposition {
        Disposition::Measured if flagged => Tone::Doubtful,
        Disposition::Measured => Tone::Good,
        disposition if disposition.is_failure() => Tone::Bad,
        _ => Tone::Doubtful,
    }
}

/// Why cases were not measured, and what warnings follow those that were. Cases with the same reason share it.
fn reasons(cases: &[&CaseResult], style: Style) -> Vec<String> {
    let mut grouped: Vec<(String, Disposition, bool, Vec<String>)> = Vec::new();
    let mut add = |text: String, disposition, flagged, id: String| match grouped
        .iter_mut()
        .find(|(other, d, ..)| *other == text && *d == disposition)
    {
        Some((.., ids)) => ids.push(id),
        None => grouped.push((text, disposition, flagged, vec![id])),
    };
    for case in cases {
        let id = case.key.to_string();
        if case.disposition != Disposition::Measured {
            let reason = case.reason.as_deref().unwrap_or("no reason was recorded");
            add(format!("{}: {reason}", case.disposition.name()), case.disposition, false, id.clone());
        }
        for flag in &case.flags {
            add(format!("warning: {flag}"), case.disposition, true, id.clone());
        }
    }
    let mut lines = Vec::new();
    for (text, disposition, flagged, ids) in grouped {
        lines.push(String::new());
        for line in wrap(&printable(&text), style.width, &[' ']) {
            lines.push(style.paint(tone_of(disposition, flagged), &line));
        }
        for id in ids {
            lines.extend(
                wrap(&printable(&id), style.width.saturating_sub(2), &['/', ' ']).iter().map(|l| format!("  {l}")),
            );
        }
    }
    lines
}

/// What the columns mean, and the ceilings that `limit` refers to.
fn notes(record: &Record, cases: &[&CaseResult], style: Style) -> Vec<String> {
    let intervals: Vec<Estimate> = cases.iter().filter_map(|case| latency::LatencyMedian.value(case, record)).collect();
    if intervals.is_empty() {
        return Vec::new();
    }
    let mut notes = vec![
        "latency: median over rounds of each round's median. limit: share of the speed that the rates below allow for the \
         case's exact FLOPs and bytes. memory: peak beside inputs and outputs. error: worst relative L2 distance from the \
         f64 oracle."
            .to_owned(),
    ];
    let mut narrower: Vec<&str> = cases.iter().filter_map(|case| case.multiplied_in).map(Dtype::name).collect();
    narrower.sort_unstable();
    narrower.dedup();
    for dtype in narrower {
        let count = cases.iter().filter(|case| case.multiplied_in.map(Dtype::name) == Some(dtype)).count();
        let cases = if count == 1 { "1 case multiplies".to_owned() } else { format!("{count} cases multiply") };
        notes.push(format!(
            "{cases} in {dtype}, by whose tolerance they are judged, and for whose FLOPs no rate was measured: see the kernels by \
             `attnbench kernels`."
        ));
    }
    let least = intervals.iter().map(|interval| interval.confidence).fold(1.0, f64::min);
    if least < CONFIDENCE {
        notes.push(format!(
            "So few rounds do not support 95 % intervals: those shown hold the true median with at least {}.",
            units::percent(least)
        ));
    }
    let mut ceilings: Vec<String> = Vec::new();
    for control in &record.controls {
        let Some(rate) = limits::rate_per_s(control) else { continue };
        let rate = match control.kind {
            ControlKind::Fma => units::flop_per_s(rate),
            ControlKind::Read | ControlKind::Write | ControlKind::Copy => units::bytes_per_s(rate),
        };
        ceilings.push(format!("{} {} {rate}", control.name, control.mode.name()));
    }
    if !ceilings.is_empty() {
        notes.push(format!("measured rates: {}", ceilings.join(", ")));
    }
    let time = record.run.time;
    if time.total_ns > 0 {
        notes.push(format!(
            "time: {}, of which {} overhead of the harness",
            units::duration_s(time.total_ns as f64 * 1e-9),
            units::percent(time.overhead_ns() as f64 / time.total_ns as f64)
        ));
    }
    let mut lines = vec![String::new()];
    for note in notes {
        lines.extend(wrap(&printable(&note), style.width, &[' ']));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Mode;
    use crate::record::sample;

    fn table(record: &Record, width: usize) -> String {
        let cases: Vec<&CaseResult> = record.cases.iter().collect();
        record_table(record, &cases, Style { width, colour: false })
    }

    /// The sample record, with cases that are harder to show.
    fn record() -> Record {
        let mut record = sample::record();
        record.cases[2].flags = vec!["implausible: 130 % of the cold bandwidth".into()];
        let mut hot = sample::measured("flash", 1024, 9_876_543.2);
        (hot.key.mode, hot.matrix) = (Mode::Hot, "throughput".into());
        record.cases.push(hot);
        record
    }

    #[test]
    fn at_80_columns() {
        insta::assert_snapshot!(table(&record(), 80));
    }

    #[test]
    fn at_100_columns() {
        insta::assert_snapshot!(table(&record(), 100));
    }

    #[test]
    fn at_140_columns() {
        insta::assert_snapshot!(table(&record(), 140));
    }

    #[test]
    fn an_interrupted_run_on_a_shared_device() {
        let mut record = sample::record();
        (record.run.complete, record.run.device_shared, record.run.rounds_done) = (false, true, 1);
        (record.git, record.controls) = (None, vec![]);
        record.cases.truncate(1);
        insta::assert_snapshot!(table(&record, 100));
    }

    #[test]
    fn lines_keep_the_width_and_nothing_is_lost_when_it_is_narrow() {
        let mut record = record();
        (record.run.complete, record.run.device_shared) = (false, true);
        for width in [60, 72, 80, 100, 120, 140, 200] {
            let text = table(&record, width);
            let longest = text.lines().map(|line| line.chars().count()).max().unwrap();
            assert!(longest <= width, "{longest} columns of {width}:\n{text}");
        }
        assert!(table(&record, 1).contains("incorrect"), "an absurd width is survived");
    }

    #[test]
    fn every_case_has_a_row_whatever_became_of_it() {
        let mut record = record();
        for case in &mut record.cases {
            case.rounds.clear();
        }
        let text = table(&record, 200);
        for case in &record.cases {
            assert!(text.contains(&case.key.to_string()), "{}", case.key);
        }
    }

    #[test]
    fn colours_only_where_they_are_wanted() {
        let record = record();
        let cases: Vec<&CaseResult> = record.cases.iter().collect();
        let coloured = record_table(&record, &cases, Style { width: 100, colour: true });
        assert!(coloured.contains("\x1b[31mincorrect\x1b[0m") && coloured.contains("\x1b[32mmeasured\x1b[0m"));
        assert!(!table(&record, 100).contains('\x1b'));
    }

    #[test]
    fn a_hostile_record_moves_no_cursor() {
        let mut record = sample::record();
        record.run.suite = "\x1b[2J".into();
        record.cases[3].reason = Some("\x1b[2Jgone\r".into());
        record.cases[0].matrix = "\x1b]0;x\x07".into();
        record.cases[0].key.case_id = "\x1b[2J/é".into();
        assert!(!table(&record, 100).contains(['\x1b', '\r', '\x07']));
    }
}
