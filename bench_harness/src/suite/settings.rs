//! `[measure]` of a suite and `[matrix.measure]` of a matrix: what they say overrides what is around them.

use toml::de::DeValue;

use super::MeasureSettings;
use super::error::{Fault, choices, suggest};
use super::value::{Node, boolean, entries, integer, mismatch, number, string};
use crate::case::Mode;

/// The keys of a measure table.
const KEYS: [&str; 9] =
    ["mode", "rounds", "min_samples", "max_samples", "budget_ms", "target_ci", "timeout_s", "oracle_flops", "energy"];

/// The settings that a measure table leaves in force.
pub(super) fn read(node: &Node<'_>, around: &MeasureSettings) -> Result<MeasureSettings, Fault> {
    let DeValue::Table(table) = node.get_ref() else {
        return Err(mismatch("measure", "a table, `[measure]` or `[matrix.measure]`", node));
    };
    let mut settings = around.clone();
    for (key, span, node) in entries(table) {
        match key {
            "mode" => settings.mode = mode(node)?,
            "rounds" => settings.rounds = integer(key, 1..=1000, node)? as u32,
            "min_samples" => settings.min_samples = integer(key, 1..=1_000_000, node)? as u32,
            "max_samples" => settings.max_samples = integer(key, 1..=1_000_000, node)? as u32,
            "budget_ms" => settings.budget_ms = integer(key, 1..=3_600_000, node)?,
            "timeout_s" => settings.timeout_s = integer(key, 1..=86_400, node)?,
            "oracle_flops" => settings.oracle_flops = integer(key, 1_000_000..=1_000_000_000_000, node)?,
            "energy" => settings.energy = boolean(key, node)?,
            "target_ci" => {
                settings.target_ci = number(key, node)?;
                if !(0.0001..=0.5).contains(&settings.target_ci) {
                    return Err(mismatch(key, "a fraction from 0.0001 to 0.5, 0.005 being half a per cent", node));
                }
            }
            unknown => {
                return Err(Fault::at(span, format!("unknown measure key `{unknown}`{}", suggest(unknown, KEYS))));
            }
        }
    }
    if settings.min_samples > settings.max_samples {
        let message = format!(
            "min_samples = {} is more than max_samples = {}; lower the one or raise the other",
            settings.min_samples, settings.max_samples
        );
        return Err(Fault::at(node.span(), message));
    }
    Ok(settings)
}

/// `cold` or `hot`.
pub(super) fn mode(node: &Node<'_>) -> Result<Mode, Fault> {
    let names = [Mode::Cold, Mode::Hot].map(Mode::name);
    let text = string("mode", &choices(names), node)?;
    [Mode::Cold, Mode::Hot]
        .into_iter()
        .find(|mode| mode.name() == text)
        .ok_or_else(|| mismatch("mode", &choices(names), node))
}
