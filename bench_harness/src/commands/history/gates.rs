//! `attnbench history gates`: what gates said, and whether they were believed.

use std::path::Path;

use anyhow::bail;

use crate::commands::report::load_gate;
use crate::commands::{Exit, terminal};
use crate::history::gates::summary;
use crate::report::history;
use crate::store::history::{GateEntry, HistoryStore, open};

/// Keeps a report.
pub(super) fn add(store: &str, path: &Path, head: Option<String>, base: Option<String>) -> anyhow::Result<Exit> {
    let (report, text) = load_gate(path)?;
    let time = format!("{:.3}", jiff::Timestamp::now());
    // The same report is the same gate: adding it twice changes nothing.
    let id = blake3::hash(text.as_bytes()).to_hex()[..12].to_owned();
    open(store)?.push_gate(&GateEntry {
        id: id.clone(),
        time,
        head,
        base,
        exit_code: report.exit_code,
        headline: report.headline,
        overridden: None,
    })?;
    terminal::print(&format!("gate {id} in `{}`", crate::store::history::shown(store)))?;
    Ok(Exit::Pass)
}

/// Says that a gate was overridden.
pub(super) fn overridden(store: &mut dyn HistoryStore, id: &str, reason: String) -> anyhow::Result<Exit> {
    let mut gates = store.gates()?;
    gates.retain(|gate| gate.id.starts_with(id));
    let [gate] = gates.as_slice() else {
        bail!("overriding gate `{id}`: {} gates have such an id; `attnbench history gates` lists them", gates.len());
    };
    store.push_gate(&GateEntry { overridden: Some(reason), ..gate.clone() })?;
    terminal::print(&format!("gate {} was overridden", gate.id))?;
    Ok(Exit::Pass)
}

/// All gates, and the rates.
pub(super) fn list(store: &mut dyn HistoryStore, json: bool) -> anyhow::Result<Exit> {
    let gates = store.gates()?;
    let summary = summary(&gates);
    if json {
        terminal::print_json(&serde_json::json!({ "summary": summary, "gates": gates }))?;
    } else {
        terminal::print(history::gates_text(&gates, &summary, terminal::style()).trim_end())?;
    }
    Ok(Exit::Pass)
}
