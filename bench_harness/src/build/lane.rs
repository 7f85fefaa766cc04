//! Where builds happen: a source and a target folder that one process has at a time and the next one finds warm.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::{BuildError, POLL_INTERVAL, Purpose, io};

/// Lanes of one purpose at most: a target folder may take a gigabyte.
const MAX_LANES: usize = 4;

/// A lane that this process has until it drops it.
pub(super) struct Lane {
    pub(super) source: PathBuf,
    pub(super) target: PathBuf,
    _lock: File,
}

impl Lane {
    /// The first free lane of a repository for a purpose; waits where all are taken.
    pub(super) fn take(
        cache: &Path,
        repository: &Path,
        purpose: Purpose,
        stop: &AtomicBool,
    ) -> Result<Lane, BuildError> {
        let name = &blake3::hash(repository.as_os_str().as_encoded_bytes()).to_hex()[..16];
        let purpose = match purpose {
            Purpose::Base => "base",
            Purpose::Head => "head",
            Purpose::Step => "step",
        };
        let lanes = cache.join("lanes").join(name);
        fs::create_dir_all(&lanes).map_err(io("making the folder of builds", &lanes))?;
        loop {
            for number in 0..MAX_LANES {
                let folder = lanes.join(format!("{purpose}-{number}"));
                let path = folder.with_extension("lock");
                let lock = File::create(&path).map_err(io("making lock", &path))?;
                match lock.try_lock() {
                    Ok(()) => {
                        let (source, target) = (folder.join("source"), folder.join("target"));
                        for folder in [&source, &target] {
                            fs::create_dir_all(folder).map_err(io("making the folder of a build", folder))?;
                        }
                        return Ok(Lane { source, target, _lock: lock });
                    }
                    Err(TryLockError::WouldBlock) => {}
                    Err(TryLockError::Error(error)) => return Err(io("locking", &path)(error)),
                }
            }
            if stop.load(Ordering::Relaxed) {
                return Err(BuildError::Interrupted);
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}
