//! Latency against length, drawn in the terminal: both axes logarithmic, so that a power law is a straight line and its
//! exponent a slope. A chart a family of problems, a line a kernel; letters mark what was measured, so that lines can be
//! told apart without colours too.

use std::collections::BTreeMap;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Color;
use ratatui::symbols::Marker;
use ratatui::widgets::Widget;
use ratatui::widgets::canvas::{Canvas, Line};

use super::scaling::family;
use super::{Style, printable, units, wrap};
use crate::metric::Metric;
use crate::metric::latency::LatencyMedian;
use crate::record::{CaseResult, Record};

/// Columns that the labels of times take.
const GUTTER: usize = 9;
/// Columns that a label of a length needs.
const LABEL: usize = 9;
/// Lines of a chart: a third of its columns look square enough, within what a screen shows.
const HEIGHTS: std::ops::RangeInclusive<usize> = 8..=24;
/// Lines of one chart that letters and colours can tell apart.
const MOST_LINES: usize = 26;
/// What marks points of several lines in one place.
const SEVERAL: char = '*';
const COLOURS: [(Color, &str); 6] = [
    (Color::Cyan, "36"),
    (Color::Yellow, "33"),
    (Color::Magenta, "35"),
    (Color::Green, "32"),
    (Color::Red, "31"),
    (Color::Blue, "34"),
];

/// A family of problems that differ in length only.
struct Chart {
    title: String,
    lines: Vec<Series>,
}

/// One kernel's times.
struct Series {
    name: String,
    /// Keys and nanoseconds, by keys.
    points: Vec<(f64, f64)>,
}

/// The charts of these cases, for every family that was measured at two lengths or more; empty where there is none.
pub fn plots(record: &Record, cases: &[&CaseResult], style: Style) -> String {
    let charts: Vec<String> = charts(record, cases).iter().map(|chart| draw(chart, style)).collect();
    charts.join("\n")
}

fn charts(record: &Record, cases: &[&CaseResult]) -> Vec<Chart> {
    // By the family's name without provider and kernel, in the order of the record; then by provider and kernel.
    let mut order: Vec<String> = Vec::new();
    let mut families: BTreeMap<String, Vec<Series>> = BTreeMap::new();
    for case in cases {
        let Some(latency) = LatencyMedian.value(case, record).filter(|latency| latency.value > 0.0) else { continue };
        let Some((name, keys)) = family(&case.key).filter(|(_, keys)| *keys > 0) else { continue };
        let mut parts = name.splitn(3, '/');
        let (Some(provider), Some(kernel), Some(problem)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let (title, line) = (format!("{}: {problem}", case.matrix), format!("{provider}/{kernel}"));
        if !order.contains(&title) {
            order.push(title.clone());
        }
        let lines = families.entry(title).or_default();
        let point = (keys as f64, latency.value);
        match lines.iter_mut().find(|series| series.name == line) {
            Some(series) => series.points.push(point),
            None => lines.push(Series { name: line, points: vec![point] }),
        }
    }
    let mut charts = Vec::new();
    for title in order {
        let Some(mut lines) = families.remove(&title) else { continue };
        for series in &mut lines {
            series.points.sort_by(|a, b| a.0.total_cmp(&b.0));
        }
        let has_line =
            lines.iter().any(|series| series.points.first().map(|p| p.0) != series.points.last().map(|p| p.0));
        lines.truncate(MOST_LINES);
        if has_line {
            charts.push(Chart { title, lines });
        }
    }
    charts
}

/// An axis: its ends and what is written along it, in the logarithms that it is drawn in.
struct Axis {
    low: f64,
    high: f64,
    ticks: Vec<f64>,
}

impl Axis {
    /// Whole powers of the base around the values, at most `most` of them written.
    fn around(values: impl Iterator<Item = f64> + Clone, most: usize) -> Axis {
        let low = values.clone().fold(f64::INFINITY, f64::min).floor();
        let high = values.fold(f64::NEG_INFINITY, f64::max).ceil().max(low + 1.0);
        let step = ((high - low) / (most.max(2) - 1) as f64).ceil().max(1.0);
        let count = ((high - low) / step).ceil() as usize;
        let ticks = (0..=count).map(|tick| low + step * tick as f64).filter(|tick| *tick <= high).collect();
        Axis { low, high, ticks }
    }

    /// Where a value is among `cells` cells, from 0.
    fn cell(&self, value: f64, cells: usize) -> usize {
        let share = ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        (share * (cells - 1) as f64).round() as usize
    }
}

fn draw(chart: &Chart, style: Style) -> String {
    let width = style.width.saturating_sub(GUTTER + 2).max(20);
    let height = (width / 5).clamp(*HEIGHTS.start(), *HEIGHTS.end());
    let points = || chart.lines.iter().flat_map(|series| &series.points);
    let x = Axis::around(points().map(|point| point.0.log2()), width / LABEL);
    let y = Axis::around(points().map(|point| point.1.log10()), height / 2);

    let area = Rect::new(0, 0, width as u16, height as u16);
    let mut buffer = Buffer::empty(area);
    let canvas = Canvas::default().marker(Marker::Braille).x_bounds([x.low, x.high]).y_bounds([y.low, y.high]);
    let logs = |point: &(f64, f64)| (point.0.log2(), point.1.log10());
    let lines = canvas.paint(|context| {
        for (number, series) in chart.lines.iter().enumerate() {
            for pair in series.points.windows(2) {
                let ((x1, y1), (x2, y2)) = (logs(&pair[0]), logs(&pair[1]));
                context.draw(&Line { x1, y1, x2, y2, color: colour(number).0 });
            }
        }
    });
    lines.render(area, &mut buffer);
    let mut do_meet = false;
    for (number, series) in chart.lines.iter().enumerate() {
        for point in &series.points {
            let (log_x, log_y) = logs(point);
            let at = (x.cell(log_x, width) as u16, (height - 1 - y.cell(log_y, height)) as u16);
            let is_taken = buffer[at].symbol().starts_with(|c: char| c.is_ascii_lowercase() || c == SEVERAL);
            let mark = if is_taken { SEVERAL } else { letter(number) };
            do_meet |= is_taken;
            buffer[at].set_char(mark).set_fg(colour(number).0);
        }
    }

    let mut text: Vec<String> =
        wrap(&printable(&chart.title), style.width, &['/', ' ']).iter().map(|line| style.bold(line)).collect();
    let label_of_row: BTreeMap<usize, String> =
        y.ticks.iter().map(|&tick| (height - 1 - y.cell(tick, height), units::nanoseconds(10f64.powf(tick)))).collect();
    for row in 0..height {
        let label = label_of_row.get(&row).map(String::as_str).unwrap_or_default();
        let edge = if label.is_empty() { '│' } else { '┤' };
        text.push(format!("{label:>GUTTER$} {edge}{}", cells(&buffer, row, style)).trim_end().to_owned());
    }
    text.push(format!("{:>GUTTER$} └{}", "", edge_below(&x, width)));
    text.push(format!("{:>GUTTER$}  {}", "", labels_below(&x, width)).trim_end().to_owned());
    let legend: Vec<String> = chart
        .lines
        .iter()
        .enumerate()
        .map(|(number, series)| format!("{} {}", letter(number), printable(&series.name)))
        .collect();
    let meeting = if do_meet { format!(", {SEVERAL} several") } else { String::new() };
    text.extend(wrap(&format!("keys; {}{meeting}", legend.join(", ")), style.width, &[' ']));
    text.join("\n") + "\n"
}

fn letter(number: usize) -> char {
    (b'a' + (number % MOST_LINES) as u8) as char
}

fn colour(number: usize) -> (Color, &'static str) {
    COLOURS[number % COLOURS.len()]
}

/// A row of the drawing, coloured where colours are wanted.
fn cells(buffer: &Buffer, row: usize, style: Style) -> String {
    let mut text = String::new();
    for column in 0..buffer.area.width {
        let cell = &buffer[(column, row as u16)];
        // Braille's empty cell looks empty and is none to whoever searches or copies the text.
        let symbol = if cell.symbol() == "\u{2800}" { " " } else { cell.symbol() };
        let code = COLOURS.iter().find(|(colour, _)| *colour == cell.fg).map(|(_, code)| code);
        match code.filter(|_| style.colour && symbol != " ") {
            Some(code) => text += &format!("\x1b[{code}m{symbol}\x1b[0m"),
            None => text += symbol,
        }
    }
    text
}

fn edge_below(x: &Axis, width: usize) -> String {
    let ticks: Vec<usize> = x.ticks.iter().map(|&tick| x.cell(tick, width)).collect();
    (0..width).map(|column| if ticks.contains(&column) { '┬' } else { '─' }).collect()
}

/// Lengths below their ticks; the last one ends where the axis does.
fn labels_below(x: &Axis, width: usize) -> String {
    let mut line = String::new();
    for &tick in &x.ticks {
        let label = format!("{:.0}", 2f64.powf(tick));
        let start = x.cell(tick, width).min(width.saturating_sub(label.len()));
        let gap = start.saturating_sub(line.chars().count());
        line += &" ".repeat(gap);
        line += &label;
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::sample;

    /// Two kernels over five lengths: one quadratic, one linear, and a case of one length.
    fn record() -> Record {
        let mut record = sample::record();
        record.cases.clear();
        for keys in [256, 512, 1024, 2048, 4096] {
            let length = keys as f64 / 256.0;
            record.cases.push(sample::measured("flash", keys, 40e3 * length * length));
            record.cases.push(sample::measured("naive", keys, 3e6 * length));
        }
        record
    }

    fn drawn(record: &Record, style: Style) -> String {
        plots(record, &record.cases.iter().collect::<Vec<_>>(), style)
    }

    #[test]
    fn charts_fit_80_and_120_columns() {
        for width in [80, 120] {
            let text = drawn(&record(), Style { width, colour: false });
            assert!(text.lines().all(|line| line.chars().count() <= width), "{text}");
            insta::assert_snapshot!(format!("plot_{width}"), text);
        }
    }

    #[test]
    fn a_power_law_is_a_straight_line() {
        let text = drawn(&record(), Style { width: 100, colour: false });
        let at = |letter: char| -> Vec<(usize, usize)> {
            let rows = text.lines().skip(1).take_while(|line| !line.contains('└'));
            let places = rows.enumerate().flat_map(|(row, line)| {
                let is_it = move |&(column, c): &(usize, char)| c == letter && column > GUTTER;
                line.chars()
                    .enumerate()
                    .collect::<Vec<_>>()
                    .into_iter()
                    .filter(is_it)
                    .map(move |(column, _)| (column, row))
            });
            let mut places: Vec<_> = places.collect();
            places.sort_unstable();
            places
        };
        let (quadratic, linear) = (at('a'), at('b'));
        assert_eq!((quadratic.len(), linear.len()), (5, 5), "{text}");
        let rise = |places: &[(usize, usize)]| places[0].1 as f64 - places[4].1 as f64;
        assert!((rise(&quadratic) / rise(&linear) - 2.0).abs() < 0.35, "{text}");
        // Halfway along is halfway up, to the nearest line.
        assert!((quadratic[2].1 as f64 - (quadratic[0].1 + quadratic[4].1) as f64 / 2.0).abs() <= 1.0, "{text}");
    }

    #[test]
    fn points_in_one_place_are_not_hidden() {
        let mut record = record();
        record.cases.push(sample::measured("flash1", 1024, 640e3));
        let text = drawn(&record, Style { width: 80, colour: false });
        assert!(text.contains('*') && text.ends_with(", * several\n"), "{text}");
    }

    #[test]
    fn colours_are_for_terminals() {
        assert!(drawn(&record(), Style { width: 80, colour: true }).contains("\x1b[36ma\x1b[0m"));
        assert!(!drawn(&record(), Style { width: 80, colour: false }).contains('\x1b'));
    }

    #[test]
    fn one_length_makes_no_chart_and_awkward_times_no_panic() {
        let mut record = record();
        record.cases.truncate(2);
        assert_eq!(drawn(&record, Style { width: 80, colour: false }), "");
        record.cases.push(sample::measured("flash", 4096, 1e13));
        record.cases.push(sample::measured("naive", 1, 0.5));
        let text = drawn(&record, Style { width: 60, colour: false });
        assert!(text.lines().all(|line| line.chars().count() <= 60) && text.contains("keys; a cpu/flash"), "{text}");
    }
}
