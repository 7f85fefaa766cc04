//! What git knows: HEAD, branch, dirt, merge base with the default branch.
//!
//! Nothing here runs the `git` program, so a record can be made where it is not installed.

mod check_out;
pub mod range;
mod sources;

use std::path::{Path, PathBuf};

use git2::{ErrorCode, Oid, Repository, StatusOptions};

pub use sources::{Snapshot, Sources};

use crate::record::GitState;

/// In the order in which they are believed. `origin/HEAD` is what the server calls its default.
const DEFAULT_BRANCHES: [&str; 5] = [
    "refs/remotes/origin/HEAD",
    "refs/remotes/origin/main",
    "refs/remotes/origin/master",
    "refs/heads/main",
    "refs/heads/master",
];

/// Where a path stands with respect to git.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RepositoryState {
    /// In no repository.
    Outside,
    /// In a repository without a commit.
    Unborn {
        /// The branch that the first commit will start, where HEAD names one.
        branch: Option<String>,
    },
    /// In a repository with commits.
    At(GitState),
}

impl RepositoryState {
    /// What a record keeps: the state, where there is a commit.
    pub fn into_git_state(self) -> Option<GitState> {
        match self {
            RepositoryState::At(state) => Some(state),
            RepositoryState::Outside | RepositoryState::Unborn { .. } => None,
        }
    }
}

/// Why a repository could not be read.
#[derive(Debug, thiserror::Error)]
pub enum VcsError {
    /// git refuses repositories of other users.
    #[error(
        "reading the git repository of `{}`: it belongs to another user; \
         `git config --global --add safe.directory PATH` trusts it", .path.display()
    )]
    NotOurs {
        /// The path that was asked about.
        path: PathBuf,
    },
    /// No repository where one is needed.
    #[error("looking for a git repository at `{}`: there is none there or above", .path.display())]
    NoRepository {
        /// The path that was asked about.
        path: PathBuf,
    },
    /// A name that means no commit.
    #[error("finding commit `{name}` in `{}`: {reason}{}", .path.display(), commit_remedy(*.is_shallow))]
    NoCommit {
        /// The repository.
        path: PathBuf,
        /// The name.
        name: String,
        /// What libgit2 says.
        reason: String,
        /// Whether history was cut off when the repository was cloned.
        is_shallow: bool,
    },
    /// HEAD and the target branch share no commit that is here.
    #[error(
        "finding the merge base of HEAD and {target} in `{}`: no commit of both is here; name the commit to compare with \
         (--against REF) or the branch (--target BRANCH){}", .path.display(), shallow_remedy(*.is_shallow)
    )]
    NoMergeBase {
        /// The repository.
        path: PathBuf,
        /// The target branch.
        target: String,
        /// Whether history was cut off when the repository was cloned.
        is_shallow: bool,
    },
    /// Anything else.
    #[error("reading the git repository of `{}`: {}", .path.display(), .source.message())]
    Git {
        /// The path that was asked about.
        path: PathBuf,
        /// libgit2's error.
        source: git2::Error,
    },
}

impl VcsError {
    fn of(path: &Path, source: git2::Error) -> VcsError {
        match source.code() {
            ErrorCode::Owner => VcsError::NotOurs { path: path.to_owned() },
            _ => VcsError::Git { path: path.to_owned(), source },
        }
    }
}

/// What helps where a name means no commit.
fn commit_remedy(is_shallow: bool) -> &'static str {
    if is_shallow {
        shallow_remedy(true)
    } else {
        "; name a commit, branch or tag of it, or `git fetch` the one that is meant"
    }
}

/// What helps where history was cut off.
fn shallow_remedy(is_shallow: bool) -> &'static str {
    if is_shallow {
        "; this clone is shallow: `git fetch --unshallow` brings the rest of its history (on GitHub, `fetch-depth: 0` of \
         actions/checkout)"
    } else {
        ""
    }
}

/// The state of the repository that contains a file or directory.
///
/// # Errors
/// [`VcsError`] for a repository that exists and cannot be read. Being outside of one is no error.
pub fn repository_state(path: &Path) -> Result<RepositoryState, VcsError> {
    let fail = |source: git2::Error| VcsError::of(path, source);
    let repository = match Repository::discover(path) {
        Ok(repository) => repository,
        Err(error) if error.code() == ErrorCode::NotFound => return Ok(RepositoryState::Outside),
        Err(error) => return Err(fail(error)),
    };
    let head = match repository.head() {
        Ok(head) => head,
        Err(error) if matches!(error.code(), ErrorCode::UnbornBranch | ErrorCode::NotFound) => {
            let target = repository.find_reference("HEAD").ok();
            let target = target.as_ref().and_then(|head| head.symbolic_target().ok().flatten());
            let branch = target.and_then(|name| name.strip_prefix("refs/heads/")).map(str::to_owned);
            return Ok(RepositoryState::Unborn { branch });
        }
        Err(error) => return Err(fail(error)),
    };
    let commit = head.peel_to_commit().map_err(fail)?;
    let branch = if head.is_branch() { head.shorthand().ok().map(str::to_owned) } else { None };
    Ok(RepositoryState::At(GitState {
        commit: commit.id().to_string(),
        branch,
        dirty: is_dirty(&repository).map_err(fail)?,
        merge_base: merge_base(&repository, commit.id()).map(|id| id.to_string()),
        committed_at: rfc3339(commit.time().seconds()),
    }))
}

/// Whether tracked files differ from HEAD, in the index or in the working tree. A bare repository has none.
fn is_dirty(repository: &Repository) -> Result<bool, git2::Error> {
    if repository.is_bare() {
        return Ok(false);
    }
    let mut options = StatusOptions::new();
    options.include_untracked(false).include_ignored(false).exclude_submodules(true);
    Ok(!repository.statuses(Some(&mut options))?.is_empty())
}

/// The merge base of a commit and the default branch. `None` where there is no default branch or no common commit, as in
/// a shallow clone whose history ends too early.
fn merge_base(repository: &Repository, commit: Oid) -> Option<Oid> {
    let default = DEFAULT_BRANCHES.iter().find_map(|name| repository.refname_to_id(name).ok())?;
    repository.merge_base(commit, default).ok()
}

/// Seconds since 1970 as RFC 3339 in UTC. Times that no calendar holds come from corrupt commits: they become the epoch.
fn rfc3339(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    use git2::{RepositoryInitOptions, Signature, Time};

    fn init(path: &Path) -> Repository {
        Repository::init_opts(path, RepositoryInitOptions::new().initial_head("main")).unwrap()
    }

    /// Commits a file to HEAD at a time in seconds.
    fn commit(repository: &Repository, text: &str, seconds: i64) -> Oid {
        fs::write(repository.workdir().unwrap().join("file"), text).unwrap();
        let mut index = repository.index().unwrap();
        index.add_path(Path::new("file")).unwrap();
        index.write().unwrap();
        let tree = repository.find_tree(index.write_tree().unwrap()).unwrap();
        let author = Signature::new("a", "a@example.org", &Time::new(seconds, 60)).unwrap();
        let parent = repository.head().ok().map(|head| head.peel_to_commit().unwrap());
        let parents: Vec<_> = parent.iter().collect();
        repository.commit(Some("HEAD"), &author, &author, text, &tree, &parents).unwrap()
    }

    fn state(path: &Path) -> GitState {
        match repository_state(path).unwrap() {
            RepositoryState::At(state) => state,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn outside_and_unborn() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(repository_state(dir.path()).unwrap(), RepositoryState::Outside);
        init(dir.path());
        let unborn = RepositoryState::Unborn { branch: Some("main".into()) };
        assert_eq!(repository_state(dir.path()).unwrap(), unborn);
        assert_eq!(unborn.into_git_state(), None);
    }

    #[test]
    fn a_branch_its_dirt_and_its_merge_base() {
        let dir = tempfile::tempdir().unwrap();
        let repository = init(dir.path());
        let base = commit(&repository, "one", 1_700_000_000);
        let first = state(dir.path());
        assert_eq!(first.branch.as_deref(), Some("main"));
        assert_eq!(first.merge_base, Some(base.to_string()));
        assert_eq!(first.committed_at, "2023-11-14T22:13:20Z");
        assert!(!first.dirty);

        let base_commit = repository.find_commit(base).unwrap();
        repository.branch("feature/x", &base_commit, false).unwrap();
        repository.set_head("refs/heads/feature/x").unwrap();
        let tip = commit(&repository, "two", 1_700_000_100);
        fs::write(dir.path().join("untracked"), "").unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        let feature = state(&dir.path().join("sub"));
        assert_eq!(feature.branch.as_deref(), Some("feature/x"));
        assert_eq!((feature.commit, feature.merge_base), (tip.to_string(), Some(base.to_string())));
        assert!(!feature.dirty, "untracked files are no dirt");

        fs::write(dir.path().join("file"), "three").unwrap();
        assert!(state(dir.path()).dirty, "a changed file is");
        let mut index = repository.index().unwrap();
        index.add_path(Path::new("file")).unwrap();
        index.write().unwrap();
        assert!(state(dir.path()).dirty, "a staged one is, too");
        assert!(state(&dir.path().join("file")).dirty, "a file's repository is its directory's");
    }

    #[test]
    fn the_servers_default_branch_wins() {
        let dir = tempfile::tempdir().unwrap();
        let repository = init(dir.path());
        let first = commit(&repository, "one", 1);
        commit(&repository, "two", 2);
        repository.reference("refs/remotes/origin/trunk", first, true, "").unwrap();
        repository.reference_symbolic("refs/remotes/origin/HEAD", "refs/remotes/origin/trunk", true, "").unwrap();
        assert_eq!(state(dir.path()).merge_base, Some(first.to_string()));
    }

    #[test]
    fn detached_and_unrelated_heads() {
        let dir = tempfile::tempdir().unwrap();
        let repository = init(dir.path());
        let only = commit(&repository, "one", 1);
        repository.set_head_detached(only).unwrap();
        assert_eq!(state(dir.path()).branch, None);

        repository.set_head("refs/heads/orphan").unwrap();
        commit(&repository, "other", 2);
        let orphan = state(dir.path());
        assert_eq!((orphan.branch.as_deref(), orphan.merge_base), (Some("orphan"), None));
    }

    #[test]
    fn bare_and_shallow_repositories() {
        let dir = tempfile::tempdir().unwrap();
        let source = init(&dir.path().join("source"));
        let first = commit(&source, "one", 1);
        let second = commit(&source, "two", 2);

        let bare = dir.path().join("bare");
        git2::build::RepoBuilder::new().bare(true).clone(dir.path().join("source").to_str().unwrap(), &bare).unwrap();
        let bare = state(&bare);
        assert_eq!((bare.commit, bare.dirty), (second.to_string(), false));

        // What `git clone --depth 1` leaves: a grafted commit whose parent is not there.
        let shallow = init(&dir.path().join("shallow"));
        let (odb, from) = (shallow.odb().unwrap(), source.odb().unwrap());
        let commit = source.find_commit(second).unwrap();
        let tree = commit.tree().unwrap();
        for id in [second, tree.id(), tree.get(0).unwrap().id()] {
            let object = from.read(id).unwrap();
            odb.write(object.kind(), object.data()).unwrap();
        }
        shallow.reference("refs/heads/work", second, true, "").unwrap();
        shallow.set_head("refs/heads/work").unwrap();
        fs::write(dir.path().join("shallow/.git/shallow"), format!("{second}\n")).unwrap();
        shallow.checkout_head(Some(git2::build::CheckoutBuilder::new().force())).unwrap();
        let cut = state(&dir.path().join("shallow"));
        assert_eq!((cut.commit, cut.dirty, cut.merge_base), (second.to_string(), false, None));
        assert!(shallow.find_commit(first).is_err());
    }

    #[test]
    fn a_corrupt_repository_is_an_error_that_names_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let repository = init(dir.path());
        commit(&repository, "one", 1);
        fs::write(dir.path().join(".git/refs/heads/main"), "0123456789012345678901234567890123456789\n").unwrap();
        let error = repository_state(dir.path()).unwrap_err().to_string();
        assert!(error.starts_with("reading the git repository of `"), "{error}");
        assert!(error.contains(dir.path().to_str().unwrap()), "{error}");
    }
}
