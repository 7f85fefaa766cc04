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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{CaseKey, Mode};
    use crate::compare::Verdict;
    use crate::gate::calibration::{CaseNoise, Found, Injected, Rate};
    use crate::record::sample::case_id;

    fn calibration() -> Calibration {
        let key = |keys: usize| CaseKey { case_id: case_id("flash", keys), mode: Mode::Cold, threads: 2 };
        let noise =
            |keys: usize, error: f64| CaseNoise { key: key(keys), deviation: 4.0 * error, offset: -error, error };
        Calibration {
            calibration_version: 1,
            suite: "ci".into(),
            device: "example-9000".into(),
            date: "2026-01-02T03:04:05Z".into(),
            commit: "0123456789abcdef".into(),
            fingerprint: Default::default(),
            pairs: 40,
            measured_s: 432.1,
            case_rate: Rate { value: 0.0391, upper: 0.0652 },
            windows: 15,
            gate_rate_extrapolated: Rate { value: 0.0075, upper: 0.0183 },
            numeric: [(0.01, 0), (0.02, 2), (0.05, 3), (0.1, 3)]
                .map(|(slowdown, found)| Found { slowdown, found, of: 3 })
                .to_vec(),
            physical: [(0.01, Verdict::Inconclusive), (0.1, Verdict::Regressed)]
                .map(|(slowdown, verdict)| Injected {
                    key: key(256),
                    slowdown,
                    measured: slowdown + 0.001,
                    numeric: slowdown - 0.002,
                    verdict,
                    numeric_verdict: verdict,
                })
                .to_vec(),
            passes: true,
            cases: vec![noise(256, 0.002), noise(512, 0.02), noise(1024, 0.005)],
        }
    }

    #[test]
    fn at_80_and_120_columns() {
        for width in [80, 120] {
            let text = calibration_text(&calibration(), &Policy::default(), Style { width, colour: false });
            assert!(text.lines().all(|line| line.chars().count() <= width), "{text}");
            insta::assert_snapshot!(format!("calibration_at_{width}"), text);
        }
    }
}
