//! Atomic file writes: files are complete or absent, even if the process is killed or the disk
//! is full. Each is written under a temporary name, synced to the disk (fsync) and then
//! renamed. Unfinished files are removed, because others need the disk space.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::TrainError;
use incant_gguf::atomic;

/// The prefix of unfinished files' names.
pub(super) const UNFINISHED: &str = ".writing-";

/// The temporary path at which `path` is written.
fn unfinished(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{UNFINISHED}{name}"))
}

/// Writes or replaces a file.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    let unfinished = unfinished(path);
    let replaced = write(&unfinished, bytes).and_then(|()| rename(&unfinished, path));
    if replaced.is_err() {
        clear(&unfinished);
    }
    replaced
}

/// Creates the folder `path` with the files that `fill` writes into an empty folder.
pub(super) fn make_folder(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), TrainError>,
) -> Result<(), TrainError> {
    in_temporary_folder(path, |folder| {
        fill(folder)?;
        sync_all(folder)?;
        rename(folder, path)
    })
}

/// Moves the files that `fill` writes into an empty folder to `path`, one by one in the order
/// of their names. `path` may hold other files.
pub(super) fn move_into(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), TrainError>,
) -> Result<(), TrainError> {
    in_temporary_folder(&path.join("files"), |folder| {
        fill(folder)?;
        for file in sync_all(folder)? {
            let name = file.file_name().expect("it was listed by its name");
            rename(&file, &path.join(name))?;
        }
        write_point()
            .and_then(|()| fs::remove_dir(folder))
            .map_err(TrainError::io(folder))
    })
}

/// Calls `work` with an empty folder, the temporary path of `path`. If it fails, the folder is
/// removed.
fn in_temporary_folder(
    path: &Path,
    work: impl FnOnce(&Path) -> Result<(), TrainError>,
) -> Result<(), TrainError> {
    let folder = unfinished(path);
    let fresh = || {
        if folder.exists() {
            removal_point()?;
            fs::remove_dir_all(&folder)?;
        }
        write_point()?;
        fs::create_dir(&folder)
    };
    let done = fresh().map_err(TrainError::io(&folder));
    let done = done.and_then(|()| work(&folder));
    if done.is_err() {
        clear(&folder);
    }
    done
}

/// Removes a file or a folder, if it exists. If that fails, the next write to the same path
/// removes it.
fn clear(path: &Path) {
    if removal_point().is_ok() {
        _ = if path.is_dir() {
            fs::remove_dir_all(path)
        } else {
            fs::remove_file(path)
        };
    }
}

/// Removes unfinished files that killed processes left in a folder. Nothing else may be writing
/// to the folder.
pub(super) fn clear_unfinished(folder: &Path) -> Result<(), TrainError> {
    for entry in fs::read_dir(folder).map_err(TrainError::io(folder))? {
        let entry = entry.map_err(TrainError::io(folder))?;
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
            clear(&entry.path());
        }
    }
    Ok(())
}

/// Syncs the files in a folder and their directory entries to the disk, and lists them in
/// order.
fn sync_all(folder: &Path) -> Result<Vec<PathBuf>, TrainError> {
    let list = || {
        let mut files = Vec::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            fs::File::open(&path)?.sync_all()?;
            files.push(path);
        }
        files.sort();
        atomic::sync_folder(folder)?;
        Ok(files)
    };
    list().map_err(TrainError::io(folder))
}

/// Writes a file in an unfinished folder.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    let write = || {
        let mut file = fs::File::create(path)?;
        write_halves(&mut file, bytes)?;
        file.sync_all()
    };
    write().map_err(TrainError::io(path))
}

/// Appends text to a file, all of it or nothing, unless the process is killed.
pub(super) fn append(path: &Path, text: &str) -> Result<(), TrainError> {
    let append = || {
        let mut file = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)?;
        let before = file.metadata()?.len();
        let written = write_halves(&mut file, text.as_bytes());
        if written.is_err() && removal_point().is_ok() {
            file.set_len(before)?;
        }
        written
    };
    append().map_err(TrainError::io(path))
}

/// Syncs an appended file to the disk.
pub(super) fn sync(path: &Path) -> Result<(), TrainError> {
    let sync = || {
        write_point()?;
        fs::File::open(path)?.sync_all()
    };
    sync().map_err(TrainError::io(path))
}

fn write_halves(file: &mut fs::File, bytes: &[u8]) -> io::Result<()> {
    let (first, second) = bytes.split_at(bytes.len() / 2);
    write_point()?;
    file.write_all(first)?;
    write_point()?;
    file.write_all(second)
}

fn rename(from: &Path, to: &Path) -> Result<(), TrainError> {
    let rename = || {
        write_point()?;
        atomic::rename(from, to)
    };
    rename().map_err(TrainError::io(to))
}

/// A point before every write, at which tests can inject a fault.
#[cfg(not(test))]
fn write_point() -> io::Result<()> {
    Ok(())
}

/// A point before every removal, at which tests can inject a fault.
#[cfg(not(test))]
fn removal_point() -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
use faults::{removal_point, write_point};

/// Fault injection for the files of the test's thread: the process is killed at some moment, as
/// far as the files can tell, or the disk is full for a while.
#[cfg(test)]
pub(super) mod faults {
    use std::cell::{Cell, RefCell};
    use std::io;
    use std::ops::Range;

    /// The fault to inject.
    #[derive(Clone)]
    pub(crate) enum Fault {
        None,
        /// From this moment on nothing is written or removed.
        KilledAt(usize),
        /// In these moments nothing can be written, only removed.
        Full(Range<usize>),
    }

    thread_local! {
        static PASSED: Cell<usize> = const { Cell::new(0) };
        static FAULT: RefCell<Fault> = const { RefCell::new(Fault::None) };
    }

    /// Restarts the count of moments, and returns how many have passed on this thread since the
    /// last restart.
    pub(crate) fn begin(fault: Fault) -> usize {
        FAULT.set(fault);
        PASSED.replace(0)
    }

    pub(super) fn write_point() -> io::Result<()> {
        let number = PASSED.get();
        PASSED.set(number + 1);
        FAULT.with_borrow(|fault| match fault {
            Fault::KilledAt(moment) if number >= *moment => Err(io::Error::other("killed")),
            Fault::Full(moments) if moments.contains(&number) => {
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        })
    }

    pub(super) fn removal_point() -> io::Result<()> {
        let number = PASSED.get();
        PASSED.set(number + 1);
        FAULT.with_borrow(|fault| match fault {
            Fault::KilledAt(moment) if number >= *moment => Err(io::Error::other("killed")),
            _ => Ok(()),
        })
    }
}
