//! The files of a repository at a commit, or as the working tree has them now.
//!
//! The working tree becomes a git tree too (objects only: neither the index nor any reference changes), so that whatever
//! is built, committed or not, has one kind of name and is checked out in one way.

use std::path::{Path, PathBuf};

use git2::{Commit, ErrorCode, IndexAddOption, ObjectType, Oid, Repository};

use super::{DEFAULT_BRANCHES, VcsError};

/// The files of a repository at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Full hash of the commit, or of the one that the working tree started from.
    pub commit: String,
    /// Hash of the git tree.
    pub tree: String,
    /// Whether the files differ from the commit's.
    pub dirty: bool,
}

impl Snapshot {
    /// The commit, with `-dirty` behind it where the files differ: how people are shown it.
    pub fn name(&self) -> String {
        format!("{}{}", self.commit, if self.dirty { "-dirty" } else { "" })
    }
}

/// A repository whose files are read at commits.
pub struct Sources {
    repository: Repository,
    path: PathBuf,
}

impl Sources {
    /// The repository that contains a file or directory.
    ///
    /// # Errors
    /// The path is in no repository, or in one that cannot be read.
    pub fn open(path: &Path) -> Result<Sources, VcsError> {
        let repository = Repository::discover(path).map_err(|error| match error.code() {
            ErrorCode::NotFound => VcsError::NoRepository { path: path.to_owned() },
            _ => VcsError::of(path, error),
        })?;
        // Sources that are named by a commit need no working tree; its root, where there is one, names the repository.
        let path = repository.workdir().unwrap_or(repository.path()).to_owned();
        Ok(Sources { repository, path })
    }

    /// The root of the working tree, or the repository itself where it is bare.
    pub fn root(&self) -> &Path {
        &self.path
    }

    /// The commit that a name means: a hash or its beginning, a branch, a tag, `HEAD~3`, ...
    ///
    /// # Errors
    /// There is no such commit here.
    pub fn commit(&self, name: &str) -> Result<Snapshot, VcsError> {
        let found = self.repository.revparse_single(name).and_then(|object| object.peel_to_commit());
        let commit = found.map_err(|error| self.no_commit(name, &error))?;
        Ok(snapshot(&commit))
    }

    /// What the working tree holds: tracked files as they are now, and new ones that git does not ignore. Where that is
    /// what HEAD holds, it is HEAD.
    ///
    /// # Errors
    /// There is no commit yet, or a file cannot be read.
    pub fn working_tree(&self) -> Result<Snapshot, VcsError> {
        let head = self.head()?;
        if self.repository.is_bare() {
            return Ok(snapshot(&head));
        }
        let tree = self.write_tree().map_err(|error| VcsError::of(&self.path, error))?;
        let dirty = tree != head.tree_id();
        Ok(Snapshot { commit: head.id().to_string(), tree: tree.to_string(), dirty })
    }

    fn write_tree(&self) -> Result<Oid, git2::Error> {
        let mut index = self.repository.index()?;
        index.read(true)?;
        index.add_all(["*"], IndexAddOption::DEFAULT, None)?;
        // What is gone is not added, but has to leave.
        index.update_all(["*"], None)?;
        index.write_tree()
    }

    fn head(&self) -> Result<Commit<'_>, VcsError> {
        let head = self.repository.head().and_then(|head| head.peel_to_commit());
        head.map_err(|error| match error.code() {
            ErrorCode::UnbornBranch | ErrorCode::NotFound => self.no_commit("HEAD", &error),
            _ => VcsError::of(&self.path, error),
        })
    }

    /// The merge base of HEAD and the target branch: the one that is named, else the server's default.
    ///
    /// # Errors
    /// There is no such branch or no common commit, as in a shallow clone.
    pub fn merge_base(&self, target: Option<&str>) -> Result<Snapshot, VcsError> {
        let head = self.head()?;
        let named = target.map(|name| {
            let candidates = [format!("refs/remotes/origin/{name}"), format!("refs/heads/{name}"), name.to_owned()];
            candidates.iter().find_map(|name| self.repository.revparse_single(name).ok()?.peel_to_commit().ok())
        });
        let default = || DEFAULT_BRANCHES.iter().find_map(|name| self.repository.refname_to_id(name).ok());
        let branch = match named {
            Some(commit) => commit.map(|commit| commit.id()),
            None => default(),
        };
        let missing = || VcsError::NoMergeBase {
            path: self.path.clone(),
            target: target.unwrap_or("the default branch").to_owned(),
            is_shallow: self.repository.is_shallow(),
        };
        let base = branch.and_then(|branch| self.repository.merge_base(head.id(), branch).ok()).ok_or_else(missing)?;
        // The last commit of a shallow clone can be named without being there.
        let commit = self.repository.find_commit(base).map_err(|_| missing())?;
        Ok(snapshot(&commit))
    }

    /// Git's `user.name`, where it is set.
    pub fn user_name(&self) -> Option<String> {
        let config = self.repository.config().and_then(|mut config| config.snapshot()).ok()?;
        config.get_string("user.name").ok().filter(|name| !name.trim().is_empty())
    }

    /// When a commit was made, RFC 3339, UTC; nothing where it is not here.
    pub fn committed_at(&self, commit: &str) -> Option<String> {
        let commit = self.repository.find_commit(oid(commit).ok()?).ok()?;
        Some(super::rfc3339(commit.time().seconds()))
    }

    /// Whether a commit is, or came after, another one. One that is not known here came before nothing.
    ///
    /// # Errors
    /// The repository cannot be read.
    pub fn has(&self, commit: &str, earlier: &str) -> Result<bool, VcsError> {
        let fail = |error| VcsError::of(&self.path, error);
        let commit = oid(commit).map_err(fail)?;
        let Ok(earlier) = self.repository.revparse_single(earlier).and_then(|object| object.peel_to_commit()) else {
            return Ok(false);
        };
        Ok(commit == earlier.id() || self.repository.graph_descendant_of(commit, earlier.id()).map_err(fail)?)
    }

    /// A file's bytes, by its path from the repository's root; `None` where the snapshot has no such file.
    ///
    /// # Errors
    /// The repository cannot be read, or the file is larger than `most_bytes`.
    pub fn file(&self, snapshot: &Snapshot, path: &str, most_bytes: usize) -> Result<Option<Vec<u8>>, VcsError> {
        let fail = |error| VcsError::of(&self.path, error);
        let tree = self.repository.find_tree(oid(&snapshot.tree).map_err(fail)?).map_err(fail)?;
        let entry = match tree.get_path(Path::new(path)) {
            Ok(entry) => entry,
            Err(error) if error.code() == ErrorCode::NotFound => return Ok(None),
            Err(error) => return Err(fail(error)),
        };
        if entry.kind() != Some(ObjectType::Blob) {
            return Ok(None);
        }
        let (bytes, _) = self.repository.odb().and_then(|odb| odb.read_header(entry.id())).map_err(fail)?;
        if bytes > most_bytes {
            return Err(fail(git2::Error::from_str(&format!(
                "`{path}` of {} is larger than the limit of {most_bytes} bytes",
                snapshot.name()
            ))));
        }
        let blob = self.repository.find_blob(entry.id()).map_err(fail)?;
        Ok(Some(blob.content().to_owned()))
    }

    /// Makes a folder hold exactly the snapshot's files. Those that are right already keep their modification times, so
    /// that build tools rebuild only what changed.
    ///
    /// # Errors
    /// The folder cannot be written, or the snapshot has submodules, which are repositories of their own.
    pub fn check_out(&self, snapshot: &Snapshot, folder: &Path) -> Result<(), VcsError> {
        let fail = |error| VcsError::of(&self.path, error);
        let tree = self.repository.find_tree(oid(&snapshot.tree).map_err(fail)?).map_err(fail)?;
        super::check_out::check_out(&self.repository, &tree, folder).map_err(|error| {
            fail(git2::Error::from_str(&format!(
                "checking {} out into `{}`: {error}",
                snapshot.name(),
                folder.display()
            )))
        })
    }

    fn no_commit(&self, name: &str, error: &git2::Error) -> VcsError {
        VcsError::NoCommit {
            path: self.path.clone(),
            name: name.to_owned(),
            reason: error.message().to_owned(),
            is_shallow: self.repository.is_shallow(),
        }
    }
}

fn snapshot(commit: &Commit<'_>) -> Snapshot {
    Snapshot { commit: commit.id().to_string(), tree: commit.tree_id().to_string(), dirty: false }
}

fn oid(text: &str) -> Result<Oid, git2::Error> {
    Oid::from_str(text)
}
