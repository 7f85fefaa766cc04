//! Devices beside each other: who they are, means relative to the first, every common case, and what is missing.

use super::baselines::grid;
use super::case_names::group_names;
use super::{Style, printable, units, wrap};
use crate::case::CaseKey;
use crate::compare::devices::{DeviceComparison, DeviceValue, MissingCase, Relative, Shape};

/// A column of each device: its heading and what is shown of a case.
type Column = (&'static str, fn(&DeviceValue) -> Option<String>);

/// What is said of a case on each device.
const COLUMNS: [Column; 4] = [
    ("time", |value| Some(units::nanoseconds(value.latency_ns_median.value))),
    ("share of its own limit", |value| Some(units::percent(value.percent_of_limit?.value / 100.0))),
    ("work for each joule", |value| Some(units::flop_per_s(value.flop_per_j?.value).replace("FLOP/s", "FLOP/J"))),
    ("US dollars for a million calls", |value| Some(units::three_digits(value.usd_per_million_calls?.value))),
];

/// A table of means: its heading and the mean that it is of.
type Mean = (&'static str, fn(&Relative) -> Option<f64>);

/// What is said of a family on each device.
const MEANS: [Mean; 4] = [
    ("speed", |relative| relative.speed),
    ("share of its own limit", |relative| relative.of_limit),
    ("work for each joule", |relative| relative.per_watt),
    ("work for each dollar", |relative| relative.per_dollar),
];

/// The whole comparison.
pub fn text(compared: &DeviceComparison, style: Style) -> String {
    let slugs: Vec<&str> = compared.devices.iter().map(|device| device.slug.as_str()).collect();
    let mut lines: Vec<String> = Vec::new();
    for device in &compared.devices {
        let price = device.price_usd_per_hour.map(|usd| format!(", {usd} US dollars an hour")).unwrap_or_default();
        let text = format!("{}: {}, run {}{price}", device.slug, device.model, device.run);
        lines.extend(wrap(&printable(&text), style.width, &[' ']));
    }
    for (title, mean) in MEANS {
        if compared.families.iter().all(|family| family.relative.iter().all(|relative| mean(relative).is_none())) {
            continue;
        }
        lines.push(String::new());
        let heading = format!("{title}, geometric means beside {} (above 1 is better)", slugs[0]);
        lines.extend(wrap(&heading, style.width, &[' ']).iter().map(|line| style.bold(line)));
        let rows: Vec<Vec<String>> = compared
            .families
            .iter()
            .map(|family| {
                let means = family.relative.iter().map(|relative| {
                    mean(relative).map_or(units::NOTHING.to_owned(), |ratio| units::three_digits(ratio) + "x")
                });
                [printable(&family.family), family.cases.to_string()].into_iter().chain(means).collect()
            })
            .collect();
        lines.extend(device_grid(&["family", "cases"], &slugs, &rows));
    }
    let keys: Vec<CaseKey> = compared.cases.iter().map(|case| key(&case.shape)).collect();
    let names = group_names(&keys.iter().collect::<Vec<_>>());
    for (title, shown) in COLUMNS {
        if compared.cases.iter().all(|case| case.values.iter().all(|value| shown(value).is_none())) {
            continue;
        }
        lines.push(String::new());
        lines.extend(
            wrap(&printable(&format!("{title}: {}", names.heading)), style.width, &['/', ' '])
                .iter()
                .map(|line| style.bold(line)),
        );
        let room = style.width.saturating_sub(2 + 12 * slugs.len()).max(16);
        let rows: Vec<Vec<String>> = compared
            .cases
            .iter()
            .zip(&names.names)
            .map(|(case, name)| {
                let name = wrap(&printable(name), room, &['/', ',']).join("\n");
                let values = case.values.iter().map(|value| shown(value).unwrap_or(units::NOTHING.to_owned()));
                std::iter::once(name).chain(values).collect()
            })
            .collect();
        lines.extend(device_grid(&["case"], &slugs, &rows));
    }
    lines.extend(missing_text(&compared.missing, &slugs, style));
    lines.join("\n") + "\n"
}

/// A table whose last columns are devices, their names broken at hyphens.
fn device_grid(first: &[&str], slugs: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let names: Vec<String> = slugs.iter().map(|slug| wrap(slug, 10, &['-']).join("\n")).collect();
    let header: Vec<&str> = first.iter().copied().chain(names.iter().map(String::as_str)).collect();
    let right: Vec<usize> = (1..header.len()).collect();
    grid(&header, &right, rows)
}

fn missing_text(missing: &[MissingCase], slugs: &[&str], style: Style) -> Vec<String> {
    if missing.is_empty() {
        return Vec::new();
    }
    let count = if missing.len() == 1 { "1 case".to_owned() } else { format!("{} cases", missing.len()) };
    let mut lines = vec![String::new(), style.bold(&format!("{count} that not every device measured"))];
    for case in missing {
        let became: Vec<String> =
            slugs.iter().zip(&case.became).map(|(slug, became)| format!("{slug} {became}")).collect();
        let text = format!("{}: {}", key(&case.shape), became.join("; "));
        let wrapped = wrap(&printable(&text), style.width.saturating_sub(4), &[' ', '/']);
        lines.extend(
            wrapped.iter().enumerate().map(|(at, line)| format!("{}{line}", if at == 0 { "  " } else { "    " })),
        );
    }
    lines
}

fn key(shape: &Shape) -> CaseKey {
    CaseKey { case_id: shape.case_id.clone(), mode: shape.mode, threads: shape.threads.unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::compare::devices::compare_devices;
    use crate::record::{Disposition, Record, sample};

    #[test]
    fn at_80_and_120_columns() {
        let record = |model: &str, factor: f64, with_large: bool| {
            let cases = [("flash", 256, 1e6), ("flash", 1024, 2e7), ("naive", 1024, 4e7)];
            let mut cases: Vec<_> = cases.map(|(kernel, keys, ns)| sample::measured(kernel, keys, ns * factor)).into();
            cases.push(match with_large {
                true => sample::measured("naive", 65_536, 1e10),
                false => sample::failed("naive", 65_536, Disposition::OutOfMemory, "needs 137 GB of workspace"),
            });
            let mut record = Record { cases, ..sample::record() };
            record.run.id = format!("run-{factor}");
            record.fingerprint.insert("cpu_model".into(), model.into());
            record
        };
        let records = [
            record("Example CPU 9000", 1.0, true),
            record("Other(R) Machine 7", 0.5, false),
            record("A \x1b[2J GPU", 0.125, true),
        ];
        let prices = BTreeMap::from([("example-9000".to_owned(), 1.5), ("other-machine-7".to_owned(), 3.0)]);
        let compared = compare_devices(&records, &prices).unwrap();
        for width in [80, 120] {
            let text = text(&compared, Style { width, colour: false });
            assert!(text.lines().all(|line| line.chars().count() <= width), "{text}");
            assert!(!text.contains('\x1b'));
            insta::assert_snapshot!(format!("devices_at_{width}"), text);
        }
    }
}
