//! The commits between two, as a bisection searches them.

use std::collections::HashMap;
use std::path::Path;

use git2::{Commit, Oid, Repository, Sort};

use super::VcsError;

/// A commit of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeCommit {
    /// Full hash.
    pub id: String,
    /// Indices of its parents in the range.
    pub parents: Vec<usize>,
    /// The first line of its message.
    pub subject: String,
    /// Who wrote it.
    pub author: String,
    /// When it was committed, RFC 3339.
    pub committed_at: String,
    /// Full hash of its first parent.
    pub first_parent: Option<String>,
}

/// What `bad` has and `good` does not, parents first, `bad` last. With `first_parent` only what the first parents lead
/// through: the merges, not what was merged. Empty where they are one commit or `bad` is an ancestor of `good`.
///
/// # Errors
/// [`VcsError`] for commits that are not there, as in a shallow clone.
pub fn between(path: &Path, good: &str, bad: &str, first_parent: bool) -> Result<Vec<RangeCommit>, VcsError> {
    commits(path, good, bad, first_parent).map_err(|error| VcsError::of(path, error))
}

/// Whether the one is an ancestor of the other, or the same.
///
/// # Errors
/// As [`between`].
pub fn is_ancestor(path: &Path, ancestor: &str, of: &str) -> Result<bool, VcsError> {
    let found = || {
        let repository = Repository::discover(path)?;
        let (ancestor, of) = (Oid::from_str(ancestor)?, Oid::from_str(of)?);
        Ok(ancestor == of || repository.graph_descendant_of(of, ancestor)?)
    };
    found().map_err(|error| VcsError::of(path, error))
}

fn commits(path: &Path, good: &str, bad: &str, first_parent: bool) -> Result<Vec<RangeCommit>, git2::Error> {
    let repository = Repository::discover(path)?;
    let mut walk = repository.revwalk()?;
    walk.set_sorting(Sort::TOPOLOGICAL | Sort::REVERSE)?;
    walk.push(Oid::from_str(bad)?)?;
    walk.hide(Oid::from_str(good)?)?;
    if first_parent {
        walk.simplify_first_parent()?;
    }
    let mut places: HashMap<Oid, usize> = HashMap::new();
    let mut range = Vec::new();
    for id in walk {
        let commit = repository.find_commit(id?)?;
        let all = commit.parent_ids().take(if first_parent { 1 } else { usize::MAX });
        let parents = all.filter_map(|parent| places.get(&parent).copied()).collect();
        places.insert(commit.id(), range.len());
        range.push(described(&commit, parents));
    }
    Ok(range)
}

fn described(commit: &Commit<'_>, parents: Vec<usize>) -> RangeCommit {
    RangeCommit {
        id: commit.id().to_string(),
        parents,
        subject: String::from_utf8_lossy(commit.summary_bytes().unwrap_or_default()).into_owned(),
        author: String::from_utf8_lossy(commit.author().name_bytes()).into_owned(),
        committed_at: super::rfc3339(commit.time().seconds()),
        first_parent: commit.parent_id(0).ok().map(|id| id.to_string()),
    }
}
