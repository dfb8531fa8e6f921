//! The folder of a run, which is that run's alone for as long as it lasts.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::{TrainError, checkpoint, files};

/// A file that only a finished run has in its folder.
const ADAPTER: &str = "adapter_model.safetensors";

/// A folder that no other run writes to as long as this lives. The system lets go of it when
/// the process ends, however it does.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    is_resumed: bool,
    /// Those that were made for it, the outermost first.
    made: Vec<PathBuf>,
    /// What is locked.
    _lock: File,
}

impl RunFolder {
    /// Takes the folder at `path` for a run, and makes it if it is not there. With `resume`
    /// the run goes on from the last checkpoint in it; if there is none, it begins anew.
    ///
    /// # Errors
    /// Another run has it; it holds a run and is not to be resumed, or an adapter without a
    /// checkpoint, which a run would write over; or it cannot be made or read.
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
                // The run that made the folder has just removed it.
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

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the run goes on from the last checkpoint in it.
    pub fn is_resumed(&self) -> bool {
        self.is_resumed
    }

    /// Writes a file in it, in place of one of this name: all of it or nothing.
    ///
    /// # Errors
    /// It cannot be written. Then what was there is as it was.
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
        // Those that were made and in which nothing was written go again.
        for folder in self.made.iter().rev() {
            if fs::remove_dir(folder).is_err() {
                break;
            }
        }
    }
}

/// The folders on the way to `path` that are not there yet, the outermost first.
fn missing(path: &Path) -> Vec<PathBuf> {
    let on_the_way = path.ancestors().take_while(|folder| {
        let is_named = !folder.as_os_str().is_empty();
        is_named && !folder.exists()
    });
    let mut missing: Vec<PathBuf> = on_the_way.map(Path::to_owned).collect();
    missing.reverse();
    missing
}

/// What is locked: the folder itself, so that nothing is left in it.
#[cfg(unix)]
fn lockable(path: &Path) -> io::Result<File> {
    File::open(path)
}

/// What is locked where a folder cannot be.
#[cfg(not(unix))]
const LOCK: &str = ".lock";

#[cfg(not(unix))]
fn lockable(path: &Path) -> io::Result<File> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(false);
    options.open(path.join(LOCK))
}

/// Whether what is locked is what is at `path` now, and not one that was taken away.
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
        // One that was there stays, empty or not.
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
