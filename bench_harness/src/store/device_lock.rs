//! Who measures on a device right now: two runs at once disturb each other, and their records must say so.
//!
//! The lock is advisory and never waits: a second run goes on, and both know. Each process holds an exclusive `flock` on a
//! file of its own; a file whose lock can be had belonged to a process that is gone, however it ended, and is removed.
//! The files lie in `/tmp`, whatever `TMPDIR` says, because all users of a machine must meet there. Processes that see
//! another `/tmp` (most containers) are not found.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::device::cpu::info::slug;

/// What the names of all lock files begin with.
const PREFIX: &str = "attnbench-device-";

/// The announcement that this process measures on a device. Dropping it takes the announcement back.
#[derive(Debug)]
pub struct DeviceLock {
    directory: PathBuf,
    /// What the names of this device's files begin with.
    prefix: String,
    path: PathBuf,
    /// Holds the lock for as long as it is open, so that a killed process lets go.
    _file: File,
}

/// Whether others measure on the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Nobody else does.
    Alone,
    /// These processes do.
    Shared {
        /// Their process ids, ascending, as they gave them.
        pids: Vec<u32>,
    },
}

impl DeviceLock {
    /// Announces that this process measures on a device; [`DeviceLock::sharing`] then tells who else does.
    ///
    /// # Errors
    /// The directory for temporary files cannot be written to. A run may go on without the lock.
    pub fn acquire(device: &str) -> io::Result<DeviceLock> {
        let common = Path::new("/tmp");
        let directory = if cfg!(unix) && common.is_dir() { common.to_owned() } else { std::env::temp_dir() };
        DeviceLock::acquire_in(&directory, device)
    }

    /// [`DeviceLock::acquire`] with the directory that the processes share.
    pub fn acquire_in(directory: &Path, device: &str) -> io::Result<DeviceLock> {
        // A dot ends the slug, which has none, so that no device's prefix begins another's.
        let prefix = format!("{PREFIX}{}.", slug(device));
        // The file gets its name only when it is locked: nobody can take it for one that was left behind.
        let mut builder = tempfile::Builder::new();
        builder.prefix(".attnbench-device-");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        let mut unnamed = builder.tempfile_in(directory)?;
        unnamed.as_file().lock()?;
        writeln!(unnamed, "{}", std::process::id())?;
        #[cfg(unix)]
        {
            // Other users have to open it in order to see whether it is locked, whatever the umask is.
            use std::os::unix::fs::PermissionsExt;
            unnamed.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
        }
        let random = unnamed.path().file_name().unwrap_or_default().to_string_lossy().replace('.', "");
        let path = directory.join(format!("{prefix}{}.{random}", std::process::id()));
        let file = unnamed.persist_noclobber(&path).map_err(|error| error.error)?;
        Ok(DeviceLock { directory: directory.to_owned(), prefix, path, _file: file })
    }

    /// Who measures on the device now. Ask again between rounds: others come and go.
    pub fn sharing(&self) -> Sharing {
        // Who cannot list the directory sees nobody.
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let mut pids: Vec<u32> = entries
            .filter(|entry| entry.path() != self.path)
            .filter_map(|entry| self.pid_of(entry.file_name().to_str()?, &entry.path()))
            .collect();
        pids.sort_unstable();
        if pids.is_empty() { Sharing::Alone } else { Sharing::Shared { pids } }
    }

    /// The process behind a file, if it is a lock file of this device whose process lives.
    fn pid_of(&self, name: &str, path: &Path) -> Option<u32> {
        let pid = name.strip_prefix(&self.prefix)?.split('.').next()?.parse().ok()?;
        let mut options = File::options();
        options.read(true);
        #[cfg(unix)]
        {
            // Anybody may put a link or a pipe of this name here: neither is followed or waited for.
            use std::os::unix::fs::OpenOptionsExt;
            options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        }
        let file = options.open(path).ok()?;
        if !file.metadata().ok()?.is_file() {
            return None;
        }
        // A shared lock, so that two who look at the same dead file do not take each other for its owner.
        match file.try_lock_shared() {
            Err(fs::TryLockError::WouldBlock) => Some(pid),
            Err(fs::TryLockError::Error(_)) => None,
            Ok(()) => {
                // Of another user's file only that user can tidy up.
                let _ = fs::remove_file(path);
                None
            }
        }
    }
}

impl Drop for DeviceLock {
    fn drop(&mut self) {
        // A file that stays is recognised as left behind.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(directory: &Path) -> usize {
        fs::read_dir(directory).unwrap().count()
    }

    #[test]
    fn two_know_of_each_other_for_as_long_as_both_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let pid = std::process::id();
        let first = DeviceLock::acquire_in(dir.path(), "CPU A").unwrap();
        assert_eq!(first.sharing(), Sharing::Alone);
        let second = DeviceLock::acquire_in(dir.path(), "CPU A").unwrap();
        assert_eq!(first.sharing(), Sharing::Shared { pids: vec![pid] });
        assert_eq!(second.sharing(), Sharing::Shared { pids: vec![pid] });
        let third = DeviceLock::acquire_in(dir.path(), "CPU A").unwrap();
        assert_eq!(first.sharing(), Sharing::Shared { pids: vec![pid, pid] });
        drop((second, third));
        assert_eq!(first.sharing(), Sharing::Alone);
        assert_eq!(files(dir.path()), 1);
        drop(first);
        assert_eq!(files(dir.path()), 0);
    }

    #[test]
    fn other_devices_do_not_matter() {
        let dir = tempfile::tempdir().unwrap();
        let first = DeviceLock::acquire_in(dir.path(), "gpu").unwrap();
        let _second = DeviceLock::acquire_in(dir.path(), "gpu-1").unwrap();
        assert_eq!(first.sharing(), Sharing::Alone);
    }

    #[test]
    fn what_the_dead_left_is_removed_and_what_is_strange_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DeviceLock::acquire_in(dir.path(), "a").unwrap();
        fs::write(dir.path().join("attnbench-device-a.4242.x"), "4242\n").unwrap();
        fs::write(dir.path().join("attnbench-device-a.rubbish"), "").unwrap();
        fs::create_dir(dir.path().join("attnbench-device-a.7.dir")).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink("/dev/null", dir.path().join("attnbench-device-a.8.link")).unwrap();
        assert_eq!(lock.sharing(), Sharing::Alone);
        assert!(!dir.path().join("attnbench-device-a.4242.x").exists());
        assert!(dir.path().join("attnbench-device-a.7.dir").exists());
    }

    #[cfg(unix)]
    #[test]
    fn a_killed_process_lets_go() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DeviceLock::acquire_in(dir.path(), "a").unwrap();
        let path = dir.path().join("attnbench-device-a.99.other");
        let ready = dir.path().join("ready");
        // util-linux's flock holds the lock in another process, as an attnbench there would.
        let script = format!("exec 9>'{}'; flock 9; : >'{}'; exec sleep 60", path.display(), ready.display());
        let Ok(mut other) = std::process::Command::new("sh").arg("-c").arg(script).spawn() else { return };
        while !ready.exists() && other.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        let while_there = lock.sharing();
        other.kill().unwrap();
        other.wait().unwrap();
        assert_eq!(while_there, Sharing::Shared { pids: vec![99] });
        assert_eq!(lock.sharing(), Sharing::Alone);
    }

    #[test]
    fn a_race_is_seen_by_all() {
        let dir = tempfile::tempdir().unwrap();
        let all_in = std::sync::Barrier::new(8);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    all_in.wait();
                    let lock = DeviceLock::acquire_in(dir.path(), "a").unwrap();
                    all_in.wait();
                    let Sharing::Shared { pids } = lock.sharing() else { panic!("alone among eight") };
                    assert_eq!(pids.len(), 7);
                    all_in.wait();
                });
            }
        });
    }
}
