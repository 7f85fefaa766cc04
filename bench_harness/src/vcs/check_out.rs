//! Makes a folder hold the files of a git tree, and touches only what differs.
//!
//! libgit2's own checkout believes sizes and times that it remembers for the working tree, which mean nothing for files of
//! another folder: here contents decide. Filters are not applied: what is in the tree is what is built.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use git2::{ObjectType, Repository, Tree};

/// Modes of entries, as git has them.
const LINK: i32 = 0o120_000;
const EXECUTABLE: i32 = 0o100_755;

/// Makes `folder` hold exactly the tree's files; those that are right already keep their modification times.
pub(super) fn check_out(repository: &Repository, tree: &Tree<'_>, folder: &Path) -> io::Result<()> {
    let mut wanted = BTreeSet::new();
    for entry in tree.iter() {
        let name = OsStr::from_bytes(entry.name_bytes()).to_owned();
        if name.as_bytes().contains(&b'/') || matches!(name.as_bytes(), b"." | b".." | b".git" | b"") {
            return Err(io::Error::other(format!("the tree has an entry named `{}`", name.display())));
        }
        let path = folder.join(&name);
        match entry.kind() {
            Some(ObjectType::Tree) => {
                if !is(&path, fs::FileType::is_dir) {
                    remove(&path)?;
                    fs::create_dir(&path)?;
                }
                let tree = repository.find_tree(entry.id()).map_err(io::Error::other)?;
                check_out(repository, &tree, &path)?;
            }
            Some(ObjectType::Blob) => {
                let blob = repository.find_blob(entry.id()).map_err(io::Error::other)?;
                write(&path, blob.content(), entry.filemode())?;
            }
            _ => {
                let what =
                    format!("`{}` is a submodule, a repository of its own, which builds do not fetch", path.display());
                return Err(io::Error::new(io::ErrorKind::Unsupported, what));
            }
        }
        wanted.insert(name);
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if !wanted.contains(&entry.file_name()) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn write(path: &Path, content: &[u8], mode: i32) -> io::Result<()> {
    if mode == LINK {
        let target = Path::new(OsStr::from_bytes(content));
        if fs::read_link(path).ok().as_deref() != Some(target) {
            remove(path)?;
            symlink(target, path)?;
        }
        return Ok(());
    }
    let is_executable = mode == EXECUTABLE;
    if is(path, fs::FileType::is_file) {
        let metadata = fs::metadata(path)?;
        let is_same_mode = (metadata.permissions().mode() & 0o100 != 0) == is_executable;
        if is_same_mode && metadata.len() == content.len() as u64 && fs::read(path)? == content {
            return Ok(());
        }
    }
    remove(path)?;
    fs::write(path, content)?;
    if is_executable { fs::set_permissions(path, fs::Permissions::from_mode(0o755)) } else { Ok(()) }
}

/// What is at the path itself: a link is a link, wherever it leads.
fn is(path: &Path, kind: fn(&fs::FileType) -> bool) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| kind(&metadata.file_type()))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
