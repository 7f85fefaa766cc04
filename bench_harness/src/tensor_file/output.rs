//! Output files: their place is claimed before anything is computed, and they appear whole or not at all.

use std::fs::{File, Permissions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::NamedTempFile;

use super::{Array, Format, Location, TensorFileError, npy, safetensors};

/// A file that will be written: a temporary file beside it already exists, so the directory is there and writable.
/// Dropped without [`PendingFile::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct PendingFile {
    location: Location,
    default_name: &'static str,
    format: Format,
    temporary: NamedTempFile,
}

impl PendingFile {
    /// Claims a place; in a `.safetensors` file the tensor is called `default_name` unless the location names it.
    pub fn create(location: Location, default_name: &'static str) -> Result<Self, TensorFileError> {
        let fail = |reason| TensorFileError { operation: "writing", object: location.to_string(), reason };
        let format = Format::of(&location.path).map_err(fail)?;
        if location.path.is_dir() {
            return Err(fail("this is a directory: name a file in it".into()));
        }
        let temporary = tempfile::Builder::new()
            .prefix(".attnbench-")
            .suffix(".tmp")
            // The process's umask takes from these what it does for any other new file.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(parent(&location.path))
            .map_err(|cause| fail(format!("its directory takes no new file: {cause}")))?;
        Ok(PendingFile { location, default_name, format, temporary })
    }

    /// Where the file will be.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// Writes the array, syncs it and gives the file its name.
    pub fn finish(self, array: &Array) -> Result<(), TensorFileError> {
        let PendingFile { location, default_name, format, temporary } = self;
        let fail = |cause: std::io::Error| TensorFileError {
            operation: "writing",
            object: location.to_string(),
            reason: cause.to_string(),
        };
        let mut writer = BufWriter::new(temporary.as_file());
        match format {
            Format::Npy => npy::write(&mut writer, array),
            Format::Safetensors => {
                let name = location.tensor.as_deref().unwrap_or(default_name);
                safetensors::write(&mut writer, name, array)
            }
        }
        .and_then(|()| writer.flush())
        .map_err(fail)?;
        drop(writer);
        temporary.as_file().sync_all().map_err(fail)?;
        temporary.persist(&location.path).map_err(|cause| fail(cause.error))?;
        // The name is part of the directory, which is synced on its own.
        File::open(parent(&location.path)).and_then(|directory| directory.sync_all()).map_err(fail)
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor_file::{FileDtype, read};

    fn location(path: &Path) -> Location {
        Location { path: path.to_owned(), tensor: None }
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let array = Array { dtype: FileDtype::F16, dims: vec![1, 2], bytes: vec![1, 2, 3, 4] };
        for name in ["o.npy", "o.safetensors"] {
            let path = directory.path().join(name);
            let pending = PendingFile::create(location(&path), "o").unwrap();
            assert!(!path.exists());
            pending.finish(&array).unwrap();
            assert_eq!(read(&location(&path)).unwrap(), array);
        }
        drop(PendingFile::create(location(&directory.path().join("never.npy")), "o").unwrap());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_place_that_cannot_be_written_is_refused_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let error = |path: &Path| PendingFile::create(location(path), "o").unwrap_err().to_string();
        assert!(error(&directory.path().join("missing/o.npy")).contains("its directory takes no new file"));
        assert!(error(&directory.path().join("o.txt")).contains("must end in `.npy` or `.safetensors`"));
        std::fs::create_dir(directory.path().join("o.npy")).unwrap();
        assert!(error(&directory.path().join("o.npy")).contains("this is a directory"));
    }
}
