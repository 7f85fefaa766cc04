//! Choices of tiles, for the terminal.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};

use super::{Style, Tone, printable, units};
use crate::metric::Estimate;
use crate::tune::choose::Choice;
use crate::tune::fit::Fit;

/// A table a class of problems, and what follows from each.
pub fn choices(choices: &[Choice], style: Style) -> String {
    let mut out = Vec::new();
    for choice in choices {
        let problems = choice.problems.len();
        let plural = if problems == 1 { "" } else { "s" };
        out.push(style.bold(&format!("{} {}: {problems} problem{plural}", choice.kernel, choice.class)));
        let mut table = table(style, &["tiles", "time", "95 % interval", ""]);
        table.add_row([Cell::new(&choice.taken), figure("1"), Cell::new(""), Cell::new("taken")]);
        for screened in &choice.screened {
            let (time, interval) = shown(screened.time_ratio);
            let note = printable(screened.reason.as_deref().unwrap_or_default());
            table.add_row([Cell::new(&screened.tiles), figure(&time), figure(&interval), Cell::new(note)]);
        }
        out.extend(table.lines().map(|line| line.trim_end().to_owned()));
        let is_new = choice.best != choice.taken;
        let mut verdict = printable(&choice.reason);
        if let Some(ratio) = choice.time_ratio {
            let (time, interval) = shown(Some(ratio));
            let p = choice.p_value.map_or(String::new(), |p| format!(", p = {p:.1e}"));
            verdict += &format!(": {time} [{interval}] over {} new rounds{p}", choice.rounds);
        }
        let tone = if is_new { Tone::Good } else { Tone::Plain };
        out.push(style.paint(tone, &format!("  {} {verdict}", if is_new { "take another:" } else { "keep:" })));
        out.push(String::new());
    }
    out.join("\n").trim_end().to_owned() + "\n"
}

/// What candidates take on an architecture, a line each.
pub fn fits(architecture: &str, fits: &[Fit], style: Style) -> String {
    let heads = ["kernel", "tiles", "threads", "registers", "spilled", "shared", "blocks", ""];
    let mut table = table(style, &heads);
    for fit in fits {
        let number = |of: &dyn Fn(&crate::tune::fit::Takes) -> u32| {
            fit.takes.as_ref().map_or(String::new(), |t| of(t).to_string())
        };
        let note = match (&fit.impossible, fit.is_taken) {
            (None, true) => "taken".to_owned(),
            (None, false) => String::new(),
            (Some(why), false) => format!("impossible: {why}"),
            (Some(why), true) => format!("taken, and impossible: {why}"),
        };
        table.add_row([
            Cell::new(format!("{} {}", fit.kernel, fit.class)),
            Cell::new(&fit.tiles),
            figure(&number(&|takes| takes.threads)),
            figure(&number(&|takes| takes.registers)),
            figure(&number(&|takes| takes.spill_bytes)),
            figure(&number(&|takes| takes.shared_bytes)),
            figure(&number(&|takes| takes.blocks_per_multiprocessor)),
            Cell::new(printable(&note)),
        ]);
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    format!("{architecture}\n{}\n", lines.join("\n"))
}

fn table(style: Style, heads: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(u16::try_from(style.width).unwrap_or(u16::MAX));
    table.set_header(heads.iter().map(Cell::new));
    table
}

fn figure(text: &str) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

fn shown(ratio: Option<Estimate>) -> (String, String) {
    ratio.map_or_else(Default::default, |ratio| {
        let [value, low, high] = [ratio.value, ratio.low, ratio.high].map(units::three_digits);
        (format!("{value}x"), format!("{low}, {high}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::choose::Screened;

    const STYLE: Style = Style { width: 100, colour: false };

    #[test]
    fn a_choice_says_what_to_take_and_why() {
        let ratio = Estimate { value: 0.912, low: 0.9, high: 0.925, confidence: 0.95 };
        let choice = Choice {
            kernel: "flash".into(),
            class: "d128 plain".into(),
            taken: "rows128-keys32-warps4".into(),
            best: "rows64-keys64-warps4".into(),
            reason: "rows64-keys64-warps4 is faster".into(),
            p_value: Some(1.5e-5),
            rounds: 16,
            problems: vec!["a".into(), "b".into()],
            time_ratio: Some(ratio),
            screened: vec![
                Screened { tiles: "rows64-keys64-warps4".into(), reason: None, time_ratio: Some(ratio) },
                Screened {
                    tiles: "rows128-keys128-warps8".into(),
                    reason: Some("unsupported: no room".into()),
                    time_ratio: None,
                },
            ],
        };
        insta::assert_snapshot!(choices(&[choice], STYLE));
    }

    #[test]
    fn fits_say_what_is_impossible() {
        let takes = crate::tune::fit::Takes {
            threads: 128,
            registers: 255,
            spill_bytes: 0,
            stack_bytes: 0,
            shared_bytes: 49152,
            blocks_per_multiprocessor: 2,
        };
        let fit = |tiles: &str, takes, impossible: Option<&str>| Fit {
            kernel: "flash".into(),
            class: "d128 plain".into(),
            tiles: tiles.into(),
            is_taken: impossible.is_none(),
            takes,
            impossible: impossible.map(str::to_owned),
        };
        let all =
            [fit("rows128-keys32-warps4", Some(takes), None), fit("rows128-keys128-warps8", None, Some("no room"))];
        insta::assert_snapshot!(fits("sm_90a", &all, STYLE));
    }
}
