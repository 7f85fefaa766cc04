//! Choices of tiles, for the terminal.

use comfy_table::{Cell, CellAlignment, ColumnConstraint, ContentArrangement, Table, presets};

use super::{Style, Tone, printable, units, wrap};
use crate::metric::Estimate;
use crate::tune::choose::Choice;
use crate::tune::fit::{Fit, Takes};

/// A table a class of problems, and what follows from each. Names of tiles are never broken.
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
        if let Some(names) = table.column_mut(0) {
            names.set_constraint(ColumnConstraint::ContentWidth);
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

/// What candidates take on an architecture: a table a class of problems, whose first line is what is taken. Names of tiles are never
/// broken; what stands against a candidate is behind its figures or, where there is no room, below them.
pub fn fits(architecture: &str, fits: &[Fit], style: Style) -> String {
    let mut out = vec![architecture.to_owned()];
    for of_class in fits.chunk_by(|a, b| (&a.kernel, &a.class) == (&b.kernel, &b.class)) {
        let name_width = of_class.iter().map(|fit| fit.tiles.len()).max().unwrap_or(0);
        let widths = FIGURES.iter().map(|(head, _)| head.len());
        let gap = if name_width + widths.map(|width| width + 2).sum::<usize>() <= style.width { "  " } else { " " };
        let heads: String = FIGURES.iter().map(|(head, _)| format!("{gap}{head}")).collect();
        out.push(String::new());
        out.push(style.bold(&format!("{} {}", of_class[0].kernel, of_class[0].class)));
        out.push(format!("{:name_width$}{heads}", "tiles"));
        for fit in of_class {
            let figure = |&(head, of): &(&str, fn(&Takes) -> u32)| {
                let figure = fit.takes.as_ref().map_or(String::new(), |takes| of(takes).to_string());
                format!("{gap}{figure:>width$}", width = head.len())
            };
            let line = format!("{:name_width$}{}", fit.tiles, FIGURES.iter().map(figure).collect::<String>());
            let note = match (&fit.impossible, fit.is_taken) {
                (None, true) => "taken".to_owned(),
                (None, false) => String::new(),
                (Some(why), false) => format!("impossible: {}", printable(why)),
                (Some(why), true) => format!("taken, and impossible: {}", printable(why)),
            };
            if line.chars().count() + 2 + note.chars().count() <= style.width {
                out.push(format!("{line}  {note}").trim_end().to_owned());
            } else {
                out.push(line.trim_end().to_owned());
                let lines = wrap(&note, style.width.saturating_sub(INDENT.len()), &[' ']);
                out.extend(lines.into_iter().map(|line| format!("{INDENT}{}", line.trim())));
            }
        }
    }
    out.join("\n") + "\n"
}

/// What stands before a note below its figures.
const INDENT: &str = "    ";

/// A column: its name, and the figure.
type Figure = (&'static str, fn(&Takes) -> u32);

/// The figures of a candidate.
const FIGURES: [Figure; 5] = [
    ("threads", |takes| takes.threads),
    ("registers", |takes| takes.registers),
    ("spilled", |takes| takes.spill_bytes),
    ("shared", |takes| takes.shared_bytes),
    ("blocks", |takes| takes.blocks_per_multiprocessor),
];

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
        let takes = |threads, blocks_per_multiprocessor, spill_bytes| Takes {
            entry: "flash",
            threads,
            registers: 255,
            spill_bytes,
            stack_bytes: 0,
            shared_bytes: 49152,
            blocks_per_multiprocessor,
        };
        let fit = |class: &str, tiles: &str, takes, impossible: Option<&str>| Fit {
            kernel: "flash".into(),
            class: class.into(),
            tiles: tiles.into(),
            is_taken: impossible.is_none(),
            takes,
            impossible: impossible.map(str::to_owned),
        };
        let backward = "backward d128";
        let all = [
            fit("d128 plain", "rows128-keys32-warps4", Some(takes(128, 2, 0)), None),
            fit(
                "d128 plain",
                "rows128-keys128-warps8",
                None,
                Some(
                    "unsupported: a device with 166912 bytes of shared memory a block: flash needs 262144 for these head dimensions",
                ),
            ),
            fit(backward, "rows64-keys128-warps4-sides2-dq2-blocks1", Some(takes(256, 1, 0)), None),
            fit(
                backward,
                "rows32-keys64-warps4-sides1-dq2-blocks2",
                Some(takes(128, 2, 1024)),
                Some("flash_bwd_keys spills 1024 bytes a thread"),
            ),
        ];
        for width in [80, 100, 120] {
            let text = fits("sm_90a", &all, Style { width, colour: false });
            assert!(text.lines().all(|line| line.chars().count() <= width), "{width}: {text}");
            insta::assert_snapshot!(format!("fits_say_what_is_impossible_at_{width}"), text);
        }
    }
}
