//! The screen of a watched run: what it is, how far it is, its cases, its GPU, its log. Made for 80x24 over ssh.

use std::collections::VecDeque;

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Borders, Cell, Gauge, Paragraph, Row, Sparkline, Table};

use super::{State, View, WatchedCase};
use crate::case::CaseKey;
use crate::record::Disposition;
use crate::report::case_names::group_names;
use crate::report::{printable, units};
use crate::stats::quantile::median;

/// Lines of the log, its border included, where there is room.
const LOG_LINES: u16 = 6;
/// Screens lower than this show cases and nothing else.
const LOWEST_WITH_LOG: u16 = 12;

/// Draws a view. `scroll` of the view is brought within what there is.
pub fn draw(frame: &mut Frame<'_>, view: &mut View) {
    let area = frame.area();
    let is_high = area.height >= LOWEST_WITH_LOG;
    let telemetry = if view.telemetry.is_empty() || !is_high { 0 } else { 3 };
    let log = if is_high { LOG_LINES } else { 0 };
    let [title, progress, cases, gpu, events, help] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(1),
        Constraint::Length(telemetry),
        Constraint::Length(log),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(title_line(view)).style(Style::new().add_modifier(Modifier::BOLD)), title);
    draw_progress(frame, view, progress);
    draw_cases(frame, view, cases);
    if telemetry > 0 {
        draw_telemetry(frame, view, gpu);
    }
    if log > 0 {
        draw_log(frame, &view.log, events);
    }
    let keys = Paragraph::new("up, down, page up, page down: scroll   q: quit; the run goes on");
    frame.render_widget(keys.style(Style::new().add_modifier(Modifier::DIM)), help);
}

fn title_line(view: &View) -> String {
    let Some(header) = &view.header else { return "waiting for a run".to_owned() };
    let state = match view.state {
        State::Running => "running",
        State::Finished => "finished: its record is written",
        State::Stopped => "stopped: --resume goes on from its journal",
    };
    format!("{} {}: {state}", printable(&header.suite), printable(&header.run_id))
}

fn draw_progress(frame: &mut Frame<'_>, view: &View, area: Rect) {
    let round = format!("round {}, {} turns", view.round + 1, view.turns);
    match view.share_done() {
        Some(share) => {
            let turns = view.header.as_ref().and_then(|header| header.turns_planned).unwrap_or(0);
            let label = format!("{} of {turns} turns, round {}", view.turns, view.round + 1);
            let gauge = Gauge::default().ratio(share).label(label).gauge_style(Style::new().fg(Color::Cyan));
            frame.render_widget(gauge, area);
        }
        None => frame.render_widget(Paragraph::new(round), area),
    }
}

fn draw_cases(frame: &mut Frame<'_>, view: &mut View, area: Rect) {
    let rows_shown = area.height.saturating_sub(3) as usize;
    view.scroll = view.scroll.min(view.cases.len().saturating_sub(rows_shown.max(1)));
    let keys: Vec<&CaseKey> = view.cases.keys().collect();
    let names = group_names(&keys);
    let has_pairs = view.cases.values().any(|case| !case.ratios.is_empty());
    let last = if has_pairs { "head/base" } else { "spread" };
    let widths = [
        Constraint::Min(16),
        Constraint::Length(6),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Length(13),
    ];
    let right = |text: String| Cell::from(Line::from(text).alignment(Alignment::Right));
    let header = Row::new([
        Cell::from("case"),
        right("rounds".to_owned()),
        right("latency".to_owned()),
        right(last.to_owned()),
        Cell::from("result"),
    ]);
    let rows = view.cases.values().zip(&names.names).skip(view.scroll).take(rows_shown).map(|(case, name)| {
        let fourth = if has_pairs { ratio(case) } else { spread(case) };
        let word = case.disposition.map_or("", |disposition| disposition.name());
        let tone = match case.disposition {
            Some(Disposition::Measured) => Style::new().fg(Color::Green),
            Some(disposition) if disposition.is_failure() => Style::new().fg(Color::Red),
            _ => Style::new().fg(Color::Yellow),
        };
        let latency = median(&case.round_ns).map_or(units::NOTHING.to_owned(), units::nanoseconds);
        Row::new([
            Cell::from(printable(name)),
            right(case.round_ns.len().to_string()),
            right(latency),
            right(fourth),
            Cell::from(word).style(tone),
        ])
    });
    let shown = if view.cases.len() > rows_shown {
        format!(
            " {} to {} of {} cases ",
            view.scroll + 1,
            (view.scroll + rows_shown).min(view.cases.len()),
            view.cases.len()
        )
    } else {
        format!(" {} cases ", view.cases.len())
    };
    let block = Block::new()
        .borders(Borders::TOP | Borders::BOTTOM)
        .title_top(printable(&names.heading))
        .title_bottom(Line::from(shown).alignment(Alignment::Right));
    let table = Table::new(rows, widths).header(header.style(Style::new().add_modifier(Modifier::BOLD))).block(block);
    frame.render_widget(table, area);
}

/// Half the distance from the fastest to the slowest round, as a share of the median.
fn spread(case: &WatchedCase) -> String {
    let (Some(middle), true) = (median(&case.round_ns), case.round_ns.len() > 1) else {
        return units::NOTHING.to_owned();
    };
    let low = case.round_ns.iter().copied().fold(f64::INFINITY, f64::min);
    let high = case.round_ns.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("±{}", units::percent((high - low) / 2.0 / middle))
}

fn ratio(case: &WatchedCase) -> String {
    median(&case.ratios).map_or(units::NOTHING.to_owned(), |ratio| units::signed_percent(ratio - 1.0))
}

fn draw_telemetry(frame: &mut Frame<'_>, view: &View, area: Rect) {
    let rows = Layout::vertical([Constraint::Length(1); 3]).split(area);
    let telemetry = &view.telemetry;
    let watts = |milliwatts: u64| format!("{:.1} W", milliwatts as f64 / 1000.0);
    line(frame, rows[0], "SM clock", &telemetry.sm_clock_mhz, |mhz| format!("{mhz} MHz"));
    line(frame, rows[1], "power", &telemetry.power_milliwatts, watts);
    line(frame, rows[2], "temperature", &telemetry.temperature_c, |degrees| format!("{degrees} °C"));
}

/// A name, the latest value, and a line of the latest values between their own least and most.
fn line(frame: &mut Frame<'_>, area: Rect, name: &str, values: &VecDeque<u64>, show: impl Fn(u64) -> String) {
    let [label, drawing] = Layout::horizontal([Constraint::Length(24), Constraint::Min(0)]).areas(area);
    let latest = values.back().map_or(units::NOTHING.to_owned(), |&value| show(value));
    frame.render_widget(Paragraph::new(format!("{name:<12}{latest:>11}")), label);
    let shown: Vec<u64> = values.iter().rev().take(drawing.width as usize).rev().copied().collect();
    // From the least of them, so that a drop of a clock is seen; the least itself keeps a mark.
    let least = shown.iter().copied().min().unwrap_or(0);
    let marks: Vec<u64> = shown.iter().map(|value| value - least + 1).collect();
    frame.render_widget(Sparkline::default().data(&marks).style(Style::new().fg(Color::Cyan)), drawing);
}

fn draw_log(frame: &mut Frame<'_>, log: &VecDeque<String>, area: Rect) {
    let block = Block::new().borders(Borders::BOTTOM);
    let room = block.inner(area).height as usize;
    let lines: Vec<Line<'_>> =
        log.iter().skip(log.len().saturating_sub(room)).map(|line| Line::from(line.as_str())).collect();
    frame.render_widget(Paragraph::new(lines).block(block), area);
}
