//! The scenarios that come with the binary.

use super::{Scenario, ScenarioError};

/// Name and text of a scenario's file.
macro_rules! scenarios {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../suites/scenarios/", $name, ".toml")))),*]
    };
}

/// Every scenario, servers first.
pub const SCENARIOS: &[(&str, &str)] = scenarios![
    "internal_assistant_64k",
    "multi_tenant",
    "support_copilot",
    "regulated_document_review",
    "on_device_meeting_60k",
    "phone_translation",
];

/// The scenario of that name, or the one in that file.
///
/// # Errors
/// There is none, or it makes no sense.
pub fn load(name: &str) -> Result<Scenario, ScenarioError> {
    if let Some((name, text)) = SCENARIOS.iter().find(|(known, _)| *known == name) {
        return Scenario::parse(name, &format!("suites/scenarios/{name}.toml"), text.as_bytes());
    }
    let path = std::path::Path::new(name);
    if path.extension().is_some_and(|extension| extension == "toml") {
        return Scenario::load(path);
    }
    let known: Vec<&str> = SCENARIOS.iter().map(|(known, _)| *known).collect();
    let message = format!("there is no such scenario; name a .toml file, or one of {}", known.join(", "));
    Err(ScenarioError { file: name.to_owned(), message })
}
