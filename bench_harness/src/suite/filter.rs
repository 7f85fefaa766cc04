//! Globs on case ids: `*` is any run of characters (slashes too), `?` is one, `[ab]` is one of these.

use glob::Pattern;

/// A glob on case ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaseGlob(Pattern);

impl CaseGlob {
    /// Reads a glob; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("an empty glob matches no case id; `*` matches all".to_owned());
        }
        Pattern::new(text).map(CaseGlob).map_err(|error| format!("glob `{text}`: {error}"))
    }

    /// Whether the whole id matches.
    pub fn matches(&self, case_id: &str) -> bool {
        self.0.matches(case_id)
    }

    /// The text that it was read from.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl std::str::FromStr for CaseGlob {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        CaseGlob::parse(text)
    }
}
