//! A calibration: false alarms, what is found of slowdowns, and the noise of the cases.

use super::baselines::grid;
use super::case_names::group_names;
use super::{Style, Tone, printable, units, wrap};
use crate::gate::calibration::{ALPHA, Calibration, MAX_RATE};
use crate::gate::policy::Policy;
use crate::stats::quantile::median;

/// How many of the noisiest cases are shown.
const SHOWN_CASES: usize = 8;

/// The whole report.
pub fn calibration_text(calibration: &Calibration, policy: &Policy, style: Style) -> String {
    let mut lines = Vec::new();
    let say = |lines: &mut Vec<String>, text: String, tone: Tone| {
        lines.extend(wrap(&printable(&text), style.width, &[' ']).iter().map(|line| style.paint(tone, line)));
    };
    let percent = units::percent;
    let rate = calibration.case_rate;
    let (tone, says) = if calibration.passes { (Tone::Good, "passes") } else { (Tone::Bad, "does not pass") };
    say(
        &mut lines,
        format!(
            "{says}: {} of {} windows of single cases alarm at {}, at most {} with 95 % confidence (limit {})",
            percent(rate.value),
            calibration.windows,
            percent(ALPHA),
            percent(rate.upper),
            percent(MAX_RATE)
        ),
        tone,
    );
    let gate = calibration.gate_rate_extrapolated;
    say(
        &mut lines,
        format!(
            "a gate of all {} cases fails without a change in {}, at most {} (extrapolated from {} pairs)",
            calibration.cases.len(),
            percent(gate.value),
            percent(gate.upper),
            calibration.pairs
        ),
        Tone::Plain,
    );
    let seconds = units::duration_s(calibration.measured_s);
    say(
        &mut lines,
        format!(
            "{} on {}, two builds of {}, measured in {seconds}",
            calibration.suite, calibration.device, calibration.commit
        ),
        Tone::Plain,
    );

    lines.push(String::new());
    lines.push(style.bold("slowdowns put into the numbers of all cases"));
    let rows: Vec<Vec<String>> = calibration
        .numeric
        .iter()
        .map(|found| {
            let share = if found.of == 0 { f64::NAN } else { found.found as f64 / found.of as f64 };
            vec![percent(found.slowdown), percent(share), format!("{} of {}", found.found, found.of)]
        })
        .collect();
    lines.extend(grid(&["slowdown", "found", "windows"], &[0, 1, 2], &rows));

    if !calibration.physical.is_empty() {
        lines.push(String::new());
        lines.push(style.bold("slowdowns made by the workers, beside the same put into the numbers"));
        let keys: Vec<_> = calibration.physical.iter().map(|injected| &injected.key).collect();
        let names = group_names(&keys);
        let rows: Vec<Vec<String>> = calibration
            .physical
            .iter()
            .zip(&names.names)
            .map(|(injected, name)| {
                vec![
                    wrap(&printable(name), style.width.saturating_sub(60).max(16), &['/', ',']).join("\n"),
                    percent(injected.slowdown),
                    units::signed_percent(injected.measured),
                    units::signed_percent(injected.numeric),
                    injected.verdict.name().to_owned(),
                    injected.numeric_verdict.name().to_owned(),
                ]
            })
            .collect();
        lines.extend(wrap(&printable(&names.heading), style.width, &['/', ' ']));
        lines.extend(grid(&["case", "slowdown", "measured", "numbers", "verdict", "numbers"], &[1, 2, 3], &rows));
    }

    lines.push(String::new());
    let mut cases: Vec<_> = calibration.cases.iter().collect();
    cases.sort_by(|a, b| b.error.total_cmp(&a.error));
    let deviations: Vec<f64> = cases.iter().map(|case| case.deviation).collect();
    let typical = median(&deviations).map_or(units::NOTHING.to_owned(), percent);
    let text = format!("noise of a pair: {typical} in the typical case; the noisiest:");
    lines.extend(wrap(&text, style.width, &[' ']).iter().map(|line| style.bold(line)));
    cases.truncate(SHOWN_CASES);
    let keys: Vec<_> = cases.iter().map(|case| &case.key).collect();
    let names = group_names(&keys);
    let rows: Vec<Vec<String>> = cases
        .iter()
        .zip(&names.names)
        .map(|(case, name)| {
            let floor = policy.floor.max((policy.floor_standard_errors * case.error).exp_m1());
            vec![
                wrap(&printable(name), style.width.saturating_sub(36).max(16), &['/', ',']).join("\n"),
                percent(case.deviation),
                units::signed_percent(case.offset.exp_m1()),
                percent(floor),
            ]
        })
        .collect();
    lines.extend(wrap(&printable(&names.heading), style.width, &['/', ' ']));
    lines.extend(grid(&["case", "pair", "offset", "floor"], &[1, 2, 3], &rows));
    lines.join("\n") + "\n"
}
