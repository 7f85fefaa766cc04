//! What a bisection found so far, in a file that is replaced whole after every round, so that a search can be stopped at
//! any time.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::search::Seen;
use crate::files::write_atomically;

/// Version of the file; another is refused.
const VERSION: u32 = 1;
/// Largest file, in bytes.
const MAX_BYTES: u64 = 64 << 20;

/// What is searched: a search goes on only with the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// The case, with its mode and threads.
    pub case: String,
    /// Full hash of the good commit.
    pub good: String,
    /// Full hash of the bad commit.
    pub bad: String,
    /// Whether only first parents are searched.
    pub first_parent: bool,
    /// The build command.
    pub build: String,
}

/// How much slower bad is than good.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Effect {
    /// Natural logarithm of bad's time over good's, by the pairs that confirmed it.
    pub log_ratio: f64,
    /// Standard deviation of a pair.
    pub deviation: f64,
    /// All pairs.
    pub log_ratios: Vec<f64>,
}

/// A commit that was tested against the good one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Test {
    /// Full hash.
    pub commit: String,
    /// What was found; nothing while it is being measured.
    pub seen: Option<Seen>,
    /// Its pairs.
    pub log_ratios: Vec<f64>,
    /// Why it cannot be tested, where that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Everything that was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Journal {
    version: u32,
    /// What is searched.
    pub question: Question,
    /// What bad against good came to, once that is known.
    pub effect: Option<Effect>,
    /// In the order of testing.
    pub tests: Vec<Test>,
}

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// It cannot be read.
    #[error("reading bisection `{file}`: {reason}")]
    Read {
        /// The file.
        file: String,
        /// Why.
        reason: String,
    },
    /// It is of another search.
    #[error("resuming bisection `{file}`: it searches another {field}: `{there}`, not `{here}`")]
    Other {
        /// The file.
        file: String,
        /// What differs.
        field: &'static str,
        /// What the file has.
        there: String,
        /// What was asked for.
        here: String,
    },
    /// It cannot be written.
    #[error("writing bisection `{file}`: {source}")]
    Write {
        /// The file.
        file: String,
        /// Why.
        source: std::io::Error,
    },
}

impl Journal {
    /// A search that has found nothing yet.
    pub fn new(question: Question) -> Journal {
        Journal { version: VERSION, question, effect: None, tests: Vec::new() }
    }

    /// The search of a file, which must be this one.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn resume(path: &Path, question: &Question) -> Result<Journal, JournalError> {
        let file = path.display().to_string();
        let fail = |reason: String| JournalError::Read { file: file.clone(), reason };
        let bytes = std::fs::metadata(path).map_err(|error| fail(error.to_string()))?.len();
        if bytes > MAX_BYTES {
            return Err(fail(format!("{bytes} bytes are more than the {MAX_BYTES} of any bisection")));
        }
        let text = std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
        let journal: Journal = serde_json::from_str(&text).map_err(|error| fail(error.to_string()))?;
        if journal.version != VERSION {
            return Err(fail(format!("its version is {}, this attnbench reads {VERSION}", journal.version)));
        }
        let usable = |values: &[f64]| values.iter().all(|value| value.is_finite());
        let effect =
            journal.effect.as_ref().is_none_or(|effect| effect.log_ratio.is_finite() && effect.deviation >= 0.0);
        if !effect || !journal.tests.iter().all(|test| usable(&test.log_ratios)) {
            return Err(fail("a ratio is no finite number".to_owned()));
        }
        let (there, here) = (&journal.question, question);
        for (field, there, here) in [
            ("case", &there.case, &here.case),
            ("good commit", &there.good, &here.good),
            ("bad commit", &there.bad, &here.bad),
            ("build command", &there.build, &here.build),
            ("kind of history", &there.first_parent.to_string(), &here.first_parent.to_string()),
        ] {
            if there != here {
                return Err(JournalError::Other { file, field, there: there.clone(), here: here.clone() });
            }
        }
        Ok(journal)
    }

    /// Writes the file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), JournalError> {
        let text = serde_json::to_string_pretty(self).expect("a journal serialises") + "\n";
        write_atomically(path, text.as_bytes())
            .map_err(|source| JournalError::Write { file: path.display().to_string(), source })
    }

    /// The test of a commit, which is begun where there is none.
    pub fn test(&mut self, commit: &str) -> &mut Test {
        let place = self.tests.iter().position(|test| test.commit == commit).unwrap_or_else(|| {
            self.tests.push(Test { commit: commit.to_owned(), seen: None, log_ratios: vec![], reason: None });
            self.tests.len() - 1
        });
        &mut self.tests[place]
    }
}
