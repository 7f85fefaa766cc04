//! An entry of the cache: a binary and what its contents must hash to.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{BuildError, io};

/// The folder of one build.
pub(super) struct Entry {
    folder: PathBuf,
    key: String,
}

/// What lies beside the binary.
#[derive(Serialize, Deserialize)]
struct Manifest {
    key: String,
    blake3: String,
}

const MANIFEST: &str = "build.json";

impl Entry {
    pub(super) fn at(cache: &Path, key: &str) -> Entry {
        Entry { folder: cache.join("workers").join(key), key: key.to_owned() }
    }

    pub(super) fn binary(&self) -> PathBuf {
        self.folder.join("worker")
    }

    /// The binary's hash, where the entry is whole, for this key, and as it was written.
    pub(super) fn valid_hash(&self) -> Option<String> {
        let manifest: Manifest = serde_json::from_slice(&fs::read(self.folder.join(MANIFEST)).ok()?).ok()?;
        (manifest.key == self.key && hash(&self.binary()).ok()? == manifest.blake3).then_some(manifest.blake3)
    }

    /// Puts a binary there, with its hash.
    pub(super) fn publish(&self, made: &Path) -> Result<String, BuildError> {
        let parent = self.folder.parent().expect("entries are in a folder");
        fs::create_dir_all(parent).map_err(io("making the folder of workers", parent))?;
        let folder = tempfile::Builder::new()
            .prefix(".new-")
            .tempdir_in(parent)
            .map_err(io("making a temporary folder in", parent))?;
        let binary = folder.path().join("worker");
        // The mode is copied too, so that scripts stay executable.
        fs::copy(made, &binary).map_err(io("copying the built worker", made))?;
        let hash = hash(&binary).map_err(io("reading the built worker", &binary))?;
        let manifest = Manifest { key: self.key.clone(), blake3: hash.clone() };
        let path = folder.path().join(MANIFEST);
        fs::write(&path, serde_json::to_vec(&manifest).expect("a manifest serialises"))
            .map_err(io("writing", &path))?;
        for path in [&binary, &path] {
            fs::File::open(path).and_then(|file| file.sync_all()).map_err(io("syncing", path))?;
        }
        // What is there is damaged or another process's, which has just written the same.
        if self.valid_hash().is_some_and(|there| there == hash) {
            return Ok(hash);
        }
        let _ = fs::remove_dir_all(&self.folder);
        match fs::rename(folder.path(), &self.folder) {
            Ok(()) => {
                let _ = folder.keep();
                Ok(hash)
            }
            Err(_) if self.valid_hash().is_some() => Ok(self.valid_hash().unwrap_or(hash)),
            Err(error) => Err(io("renaming a build to", &self.folder)(error)),
        }
    }
}

fn hash(path: &Path) -> std::io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    std::io::copy(&mut fs::File::open(path)?, &mut hasher)?;
    Ok(hasher.finalize().to_hex().to_string())
}
