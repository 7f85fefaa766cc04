//! By what a change is judged: suite, policy, acceptances and calibration, all as base has them, so that a change cannot
//! move its own goalposts.

use std::collections::BTreeSet;

use crate::case::CaseKey;
use crate::files::Problem;
use crate::gate::acceptance::{ACCEPTANCES_FILE, Acceptance, AcceptanceError, Acceptances, MAX_ACCEPTANCES_BYTES};
use crate::gate::calibration::{Calibration, MAX_CALIBRATION_BYTES, calibration_file};
use crate::gate::policy::{Policy, PolicyError};
use crate::suite::{Environment, PlannedCase, Suite, SuiteError};
use crate::vcs::{Snapshot, Sources, VcsError};

/// Where the policy is, from the root of the repository.
pub const POLICY_FILE: &str = "ci/gate.toml";

/// Largest policy and largest suite, in bytes.
pub(crate) const MAX_RULE_BYTES: usize = 1 << 20;

/// By what a change is judged.
pub struct Rules {
    /// The cases that both sides are measured on, as base has them.
    pub suite: Suite,
    /// Cases that only head's suite has.
    pub new: Vec<PlannedCase>,
    /// Cases that head's suite no longer has.
    pub removed: Vec<CaseKey>,
    /// The constants of the decision.
    pub policy: Policy,
    /// Acceptances that count on that day for these commits.
    pub acceptances: Vec<Acceptance>,
    /// The noise of this device's cases, where it was measured.
    pub calibration: Option<Calibration>,
    /// What a reader should know of all this.
    pub notes: Vec<String>,
}

/// By what finished runs are judged.
pub struct RunRules {
    /// The constants of the decision.
    pub policy: Policy,
    /// Acceptances that count on that day for these commits.
    pub acceptances: Vec<Acceptance>,
    /// What a reader should know of all this.
    pub notes: Vec<String>,
}

/// Why there are no rules.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// The repository cannot be read.
    #[error(transparent)]
    Vcs(#[from] VcsError),
    /// The suite is wrong.
    #[error(transparent)]
    Suite(#[from] SuiteError),
    /// The policy is wrong.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The acceptances are wrong.
    #[error(transparent)]
    Acceptance(#[from] AcceptanceError),
    /// The calibration is wrong.
    #[error("reading calibration `{file}`: {problem}")]
    Calibration {
        /// The file.
        file: String,
        /// What is wrong.
        problem: Problem,
    },
    /// Base has no such suite.
    #[error(
        "reading suite `{file}` of {commit}: it has no such file; the suite that judges a change is that of the commit it \
         is compared with: name one that is there (--suite), or a later commit (--against)"
    )]
    NoSuite {
        /// The path from the repository's root.
        file: String,
        /// The commit.
        commit: String,
    },
    /// A name that is no suite's.
    #[error(
        "reading suite `{0}`: a suite is a name of `suites/`, or a path of a .toml file from the repository's root"
    )]
    NoSuiteName(String),
}

/// Whose files say what.
pub struct RuleSource<'a> {
    /// The repository.
    pub sources: &'a Sources,
    /// What is compared with.
    pub base: &'a Snapshot,
    /// What is judged.
    pub head: &'a Snapshot,
    /// Slug of the device.
    pub device: &'a str,
    /// Today, as `2026-12-31`.
    pub today: &'a str,
}

impl RuleSource<'_> {
    /// Everything that base says, with a policy that overrides its own, where one is given.
    ///
    /// # Errors
    /// [`RulesError`].
    pub fn read(&self, suite: &str, policy: Option<Policy>) -> Result<Rules, RulesError> {
        let mut notes = Vec::new();
        let file = suite_file(suite)?;
        let base_suite = self
            .suite(&file, self.base)?
            .ok_or_else(|| RulesError::NoSuite { file: file.clone(), commit: self.base.name() })?;
        let head_suite = self.suite(&file, self.head)?;
        let keys = |suite: &Suite| suite.cases.iter().map(PlannedCase::key).collect::<BTreeSet<_>>();
        let (of_base, of_head) = (keys(&base_suite), head_suite.as_ref().map(keys).unwrap_or_default());
        let removed: Vec<CaseKey> = of_base.iter().filter(|key| !of_head.contains(key)).cloned().collect();
        let new = head_suite.into_iter().flat_map(|suite| suite.cases).filter(|case| !of_base.contains(&case.key()));
        let new = new.collect();
        let mut suite = base_suite;
        suite.cases.retain(|case| of_head.contains(&case.key()));

        let policy = self.policy(policy, &mut notes)?;
        let acceptances = self.acceptances(&mut notes)?;
        let file = calibration_file(self.device, &suite.name);
        let calibration = match self.sources.file(self.base, &file, MAX_CALIBRATION_BYTES)? {
            None => None,
            Some(bytes) => Some(
                Calibration::parse(&bytes)
                    .map_err(|problem| RulesError::Calibration { file: self.named(&file), problem })?,
            ),
        };
        if calibration.is_none() {
            notes.push(format!("base has no {file}: each case's floor rests on its own pairs"));
        }
        Ok(Rules { suite, new, removed, policy, acceptances, calibration, notes })
    }

    /// What base says of runs that were measured before, with a policy that overrides its own, where one is given.
    ///
    /// # Errors
    /// [`RulesError`].
    pub fn read_for_runs(&self, policy: Option<Policy>) -> Result<RunRules, RulesError> {
        let mut notes = Vec::new();
        let policy = self.policy(policy, &mut notes)?;
        let acceptances = self.acceptances(&mut notes)?;
        Ok(RunRules { policy, acceptances, notes })
    }

    fn policy(&self, given: Option<Policy>, notes: &mut Vec<String>) -> Result<Policy, RulesError> {
        if let Some(policy) = given {
            return Ok(policy);
        }
        if let Some(text) = self.text(POLICY_FILE)? {
            return Ok(Policy::from_toml(&text, &self.named(POLICY_FILE))?);
        }
        notes.push(format!("base has no {POLICY_FILE}: the default policy decides"));
        Ok(Policy::default())
    }

    fn suite(&self, file: &str, snapshot: &Snapshot) -> Result<Option<Suite>, RulesError> {
        let Some(bytes) = self.sources.file(snapshot, file, MAX_RULE_BYTES)? else { return Ok(None) };
        let name = file.rsplit('/').next().unwrap_or(file).trim_end_matches(".toml");
        let shown = format!("{}:{file}", short(snapshot));
        Ok(Some(Suite::parse(name, &shown, &bytes, &Environment::default())?))
    }

    /// A file of base as text; what is not UTF-8 becomes so, and is then refused by whoever parses it.
    fn text(&self, file: &str) -> Result<Option<String>, RulesError> {
        let bytes = self.sources.file(self.base, file, MAX_RULE_BYTES.min(MAX_ACCEPTANCES_BYTES))?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// How messages call a file of base.
    pub(crate) fn named(&self, file: &str) -> String {
        format!("{}:{file}", short(self.base))
    }

    fn acceptances(&self, notes: &mut Vec<String>) -> Result<Vec<Acceptance>, RulesError> {
        let Some(text) = self.text(ACCEPTANCES_FILE)? else { return Ok(Vec::new()) };
        let all = Acceptances::from_toml(&text, &self.named(ACCEPTANCES_FILE))?.accept;
        let count = all.len();
        let valid: Vec<Acceptance> = all.into_iter().filter(|acceptance| acceptance.is_valid_on(self.today)).collect();
        if valid.len() < count {
            notes.push(format!("{} of {count} acceptances have expired", count - valid.len()));
        }
        let mut counting = Vec::new();
        for acceptance in valid {
            // One for a change counts while that change is between the two sides.
            let counts = match &acceptance.commit {
                None => true,
                Some(commit) => {
                    self.sources.has(&self.head.commit, commit)? && !self.sources.has(&self.base.commit, commit)?
                }
            };
            if counts {
                counting.push(acceptance);
            }
        }
        Ok(counting)
    }
}

/// The path of a suite from the repository's root.
///
/// # Errors
/// It is neither a name nor such a path.
pub fn suite_file(suite: &str) -> Result<String, RulesError> {
    if suite.ends_with(".toml") && !suite.starts_with('/') {
        return Ok(suite.trim_start_matches("./").to_owned());
    }
    crate::case::check_name(suite).map_err(|_| RulesError::NoSuiteName(suite.to_owned()))?;
    Ok(format!("{}/{suite}.toml", crate::suite::SUITES_DIR))
}

fn short(snapshot: &Snapshot) -> String {
    let dirty = if snapshot.dirty { "-dirty" } else { "" };
    format!("{}{dirty}", &snapshot.commit[..10.min(snapshot.commit.len())])
}
