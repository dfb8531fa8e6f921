//! The output folder of a training run, which the run holds exclusively as long as it lasts.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::{TrainError, checkpoint, files};

/// A file that only a finished run has in its folder.
const ADAPTER: &str = "adapter_model.safetensors";

/// A folder locked against other runs as long as this value lives. The operating system
/// releases the lock when the process ends, even if it crashes.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    is_resumed: bool,
    /// Folders that were created for the run, the outermost first.
    made: Vec<PathBuf>,
    /// The handle that holds the lock.
    _lock: File,
}

impl RunFolder {
    /// Takes the folder at `path` for a run, and creates it if it does not exist. With
    /// `resume`, the run resumes from the folder's last checkpoint, or starts anew if there is
    /// none.
    ///
    /// # Errors
    /// Another run has the folder; it holds a run and is not to be resumed; it holds an adapter
    /// without a checkpoint, which a run would overwrite; or it cannot be created or read.
    pub fn open(path: &Path, resume: bool) -> Result<RunFolder, TrainError> {
        let folder = RunFolder::lock(path, resume)?;
        match (checkpoint::any(path)?, resume) {
            (true, false) => return Err(TrainError::Exists(path.to_owned())),
            (false, _) if path.join(ADAPTER).exists() => {
                return Err(TrainError::Finished(path.to_owned()));
            }
            _ => {}
        }
        files::clear_unfinished(path)?;
        Ok(folder)
    }

    fn lock(path: &Path, is_resumed: bool) -> Result<RunFolder, TrainError> {
        loop {
            let made = missing(path);
            fs::create_dir_all(path).map_err(TrainError::io(path))?;
            let lock = match lockable(path) {
                Ok(lock) => lock,
                // The run that created the folder has just removed it.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(TrainError::io(path)(error)),
            };
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(TrainError::Busy(path.to_owned())),
                Err(TryLockError::Error(error)) => tracing::warn!(
                    "{}: this file system cannot lock a folder ({error}): see that no other \
                     training writes to it",
                    path.display()
                ),
            }
            if is_at(&lock, path) {
                return Ok(RunFolder {
                    path: path.to_owned(),
                    is_resumed,
                    made,
                    _lock: lock,
                });
            }
        }
    }

    /// The folder's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the run resumes from the last checkpoint in the folder.
    pub fn is_resumed(&self) -> bool {
        self.is_resumed
    }

    /// Writes or replaces a file in the folder, atomically.
    ///
    /// # Errors
    /// The file cannot be written. An existing file is then unchanged.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), TrainError> {
        files::replace(&self.path.join(name), bytes)
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        #[cfg(not(unix))]
        {
            _ = fs::remove_file(self.path.join(LOCK));
        }
        // Created folders are removed again if nothing was written to them.
        for folder in self.made.iter().rev() {
            if fs::remove_dir(folder).is_err() {
                break;
            }
        }
    }
}

/// The ancestors of `path`, itself included, that do not exist, the outermost first.
fn missing(path: &Path) -> Vec<PathBuf> {
    let on_the_way = path.ancestors().take_while(|folder| {
        let is_named = !folder.as_os_str().is_empty();
        is_named && !folder.exists()
    });
    let mut missing: Vec<PathBuf> = on_the_way.map(Path::to_owned).collect();
    missing.reverse();
    missing
}

/// The folder itself is locked, so no lock file is left in it.
#[cfg(unix)]
fn lockable(path: &Path) -> io::Result<File> {
    File::open(path)
}

/// The lock file, where a folder cannot be locked itself.
#[cfg(not(unix))]
const LOCK: &str = ".lock";

#[cfg(not(unix))]
fn lockable(path: &Path) -> io::Result<File> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(false);
    options.open(path.join(LOCK))
}

/// Whether the locked folder is the one at `path` now, rather than one that has been removed.
#[cfg(unix)]
fn is_at(lock: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;

    let identity = |found: io::Result<fs::Metadata>| found.map(|found| (found.dev(), found.ino()));
    let [locked, there] = [lock.metadata(), fs::metadata(path)].map(identity);
    matches!((locked, there), (Ok(locked), Ok(there)) if locked == there)
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.join(LOCK).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_one_runs_at_a_time_whatever_it_is_called() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("run");
        let first = RunFolder::open(&path, false).unwrap();
        first.write("log", b"a line").unwrap();
        for (other, resume) in [(path.clone(), false), (place.path().join("./run"), true)] {
            let told = RunFolder::open(&other, resume).unwrap_err().to_string();
            assert!(told.contains("another training"), "{told}");
            assert!(told.contains(&*other.to_string_lossy()), "{told}");
        }
        drop(first);
        RunFolder::open(&path, true).unwrap();
        let left: Vec<_> = fs::read_dir(&path).unwrap().collect();
        assert_eq!(left.len(), 1, "only the log: {left:?}");
    }

    #[test]
    fn folders_that_stay_empty_are_not_left_behind() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("runs/one");
        drop(RunFolder::open(&path, false).unwrap());
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
        let folder = RunFolder::open(&path, false).unwrap();
        folder.write("log", b"a line").unwrap();
        drop(folder);
        assert_eq!(fs::read(path.join("log")).unwrap(), b"a line");
        // A folder that existed before stays, empty or not.
        let there = tempfile::tempdir().unwrap();
        drop(RunFolder::open(there.path(), false).unwrap());
        assert!(there.path().exists());
    }

    #[test]
    fn an_adapter_is_not_written_over() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join(ADAPTER), "mine").unwrap();
        for resume in [false, true] {
            let told = RunFolder::open(place.path(), resume).unwrap_err();
            assert!(matches!(told, TrainError::Finished(_)), "{told}");
        }
    }
}
