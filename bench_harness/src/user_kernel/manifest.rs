//! The manifest of a user's kernel, as TOML.
//!
//! It is untrusted: unknown keys, too many of anything and values out of range are errors that name the key.

use std::collections::BTreeMap;

use attn_kernels::problem::{Dtype, Layout, Phase};
use serde::Deserialize;

use crate::case::check_name;

/// Most launches, workspaces, defines and conditions.
const MAX_ITEMS: usize = 64;
/// Most parameters of a kernel.
const MAX_ARGUMENTS: usize = 256;

/// The whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    /// Name in case ids.
    pub(super) name: String,
    /// One line: the algorithm.
    pub(super) summary: String,
    /// What it computes.
    pub(super) supports: Supports,
    /// Macros of the source, as expressions.
    #[serde(default)]
    pub(super) define: BTreeMap<String, String>,
    /// Device memory that calls use.
    #[serde(default)]
    pub(super) workspace: Vec<Workspace>,
    /// What a call launches, in order.
    pub(super) launch: Vec<LaunchEntry>,
    /// Problems that are measured where no suite is named: the part of case ids after the kernel.
    #[serde(default)]
    pub(super) problems: Vec<String>,
}

/// Which problems it computes. What is not named is as problems have it by default.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Supports {
    pub(super) dtype: Vec<Dtype>,
    #[serde(default = "prefill")]
    pub(super) phase: Vec<Phase>,
    #[serde(default = "full")]
    pub(super) pattern: Vec<String>,
    #[serde(default = "not_causal")]
    pub(super) causal: Vec<bool>,
    #[serde(default = "bshd")]
    pub(super) layout: Vec<Layout>,
    /// What else it handles: see [`OPTIONS`].
    #[serde(default)]
    pub(super) options: Vec<String>,
    /// Expressions that must not be 0.
    #[serde(default, rename = "where")]
    pub(super) conditions: Vec<String>,
}

/// Properties of problems that a kernel has to say that it handles.
pub(super) const OPTIONS: [&str; 8] =
    ["additive_bias", "alibi", "bool_bias", "paged", "ragged", "sinks", "softcap", "top_left"];

fn prefill() -> Vec<Phase> {
    vec![Phase::Prefill]
}
fn full() -> Vec<String> {
    vec!["full".to_owned()]
}
fn not_causal() -> Vec<bool> {
    vec![false]
}
fn bshd() -> Vec<Layout> {
    vec![Layout::Bshd]
}

/// A piece of device memory.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Workspace {
    /// An expression.
    pub(super) bytes: String,
}

/// One launch.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LaunchEntry {
    pub(super) entry: String,
    /// One to three expressions.
    pub(super) grid: Vec<String>,
    /// One to three expressions.
    pub(super) block: Vec<String>,
    /// An expression.
    #[serde(default = "zero")]
    pub(super) shared_bytes: String,
    /// One a parameter, in order.
    pub(super) arguments: Vec<String>,
}

fn zero() -> String {
    "0".to_owned()
}

impl Manifest {
    /// Reads and checks it. Errors are sentences.
    pub(super) fn parse(text: &str) -> Result<Manifest, String> {
        let manifest: Manifest = toml::from_str(text).map_err(|error| error.to_string())?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), String> {
        check_name(&self.name).map_err(|reason| format!("`name`: {reason}"))?;
        if attn_kernels::cuda::find(&self.name).is_some() {
            return Err(format!("`name`: there is a built-in kernel `{}`; choose another name", self.name));
        }
        let is_line = |text: &str| !text.trim().is_empty() && text.len() <= 200 && !text.contains(char::is_control);
        if !is_line(&self.summary) {
            return Err("`summary` is to be one line of at most 200 bytes that says what the kernel does".to_owned());
        }
        for (what, count, least, most) in [
            ("launch", self.launch.len(), 1, MAX_ITEMS),
            ("workspace", self.workspace.len(), 0, MAX_ITEMS),
            ("define", self.define.len(), 0, MAX_ITEMS),
            ("supports.where", self.supports.conditions.len(), 0, MAX_ITEMS),
            ("problems", self.problems.len(), 0, 1000),
        ] {
            if count < least || count > most {
                return Err(format!("`{what}` has {count} entries; {least} to {most} are possible"));
            }
        }
        for option in &self.supports.options {
            if !OPTIONS.contains(&option.as_str()) {
                return Err(format!("`supports.options`: `{option}` is not one of {}", OPTIONS.join(", ")));
            }
        }
        for name in self.define.keys().chain(self.launch.iter().map(|launch| &launch.entry)) {
            let is_identifier = !name.is_empty()
                && name.len() <= 256
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
                && !name.starts_with(|c: char| c.is_ascii_digit());
            if !is_identifier {
                return Err(format!("`{}` is no name of a C function or macro", name.escape_debug()));
            }
        }
        for launch in &self.launch {
            for (what, count, most) in [
                ("grid", launch.grid.len(), 3),
                ("block", launch.block.len(), 3),
                ("arguments", launch.arguments.len(), MAX_ARGUMENTS),
            ] {
                if count == 0 || count > most {
                    let entry = &launch.entry;
                    return Err(format!("launch of `{entry}`: `{what}` has {count} entries; 1 to {most} are possible"));
                }
            }
        }
        Ok(())
    }
}
