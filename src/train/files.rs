//! Files that are there as a whole or not at all, whenever the process is killed: each is
//! written under another name and then renamed.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::TrainError;

/// What the names of unfinished files begin with.
pub(super) const UNFINISHED: &str = ".writing-";

/// Where `path` is written before it has its name.
fn unfinished(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{UNFINISHED}{name}"))
}

/// Writes a file in place of what was there.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    let unfinished = unfinished(path);
    write(&unfinished, bytes)?;
    rename(&unfinished, path)
}

/// Makes the folder `path` of what `fill` writes into an empty one.
pub(super) fn make_folder(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), TrainError>,
) -> Result<(), TrainError> {
    let folder = fresh_folder(path)?;
    fill(&folder)?;
    sync_all(&folder)?;
    rename(&folder, path)
}

/// Puts the files that `fill` writes into an empty folder into `path`, where others may
/// be, one by one in the order of their names.
pub(super) fn put_into(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), TrainError>,
) -> Result<(), TrainError> {
    let folder = fresh_folder(&path.join("files"))?;
    fill(&folder)?;
    for file in sync_all(&folder)? {
        let name = file.file_name().expect("it was listed by its name");
        rename(&file, &path.join(name))?;
    }
    kill_point()
        .and_then(|()| fs::remove_dir(&folder))
        .map_err(TrainError::io(&folder))
}

/// An empty folder where what will be `path` is written.
fn fresh_folder(path: &Path) -> Result<PathBuf, TrainError> {
    let folder = unfinished(path);
    let fresh = || {
        if folder.exists() {
            kill_point()?;
            fs::remove_dir_all(&folder)?;
        }
        kill_point()?;
        fs::create_dir(&folder)
    };
    fresh().map_err(TrainError::io(&folder))?;
    Ok(folder)
}

/// Has the files in a folder reach the disk, and names them in order.
fn sync_all(folder: &Path) -> Result<Vec<PathBuf>, TrainError> {
    let list = || {
        let mut files = Vec::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            fs::File::open(&path)?.sync_all()?;
            files.push(path);
        }
        files.sort();
        Ok(files)
    };
    list().map_err(TrainError::io(folder))
}

/// Writes a file in a folder that is not finished.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    let write = || {
        let mut file = fs::File::create(path)?;
        let (first, second) = bytes.split_at(bytes.len() / 2);
        kill_point()?;
        file.write_all(first)?;
        kill_point()?;
        file.write_all(second)?;
        file.sync_all()
    };
    write().map_err(TrainError::io(path))
}

/// Adds a line to a file.
pub(super) fn append(path: &Path, line: &str) -> Result<(), TrainError> {
    let append = || {
        let mut file = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)?;
        let (first, second) = line.split_at(line.floor_char_boundary(line.len() / 2));
        kill_point()?;
        file.write_all(first.as_bytes())?;
        kill_point()?;
        file.write_all(second.as_bytes())?;
        file.write_all(b"\n")
    };
    append().map_err(TrainError::io(path))
}

fn rename(from: &Path, to: &Path) -> Result<(), TrainError> {
    let rename = || {
        kill_point()?;
        fs::rename(from, to)?;
        // The new name reaches the disk too.
        #[cfg(unix)]
        if let Some(folder) = to.parent() {
            fs::File::open(folder)?.sync_all()?;
        }
        Ok(())
    };
    rename().map_err(TrainError::io(to))
}

/// A moment at which the tests may kill the process.
#[cfg(not(test))]
fn kill_point() -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
pub(super) use kills::kill_point;

/// Kills as tests see them: from a moment on, every write fails and leaves things as they
/// are.
#[cfg(test)]
pub(super) mod kills {
    use std::cell::Cell;
    use std::io;

    thread_local! {
        static PASSED: Cell<usize> = const { Cell::new(0) };
        static KILLED_AT: Cell<usize> = const { Cell::new(usize::MAX) };
    }

    /// The moments that have passed on this thread since the last call, from which on the
    /// one with the number `next` kills.
    pub(in crate::train) fn passed(next: usize) -> usize {
        KILLED_AT.set(next);
        PASSED.replace(0)
    }

    pub(in crate::train) fn kill_point() -> io::Result<()> {
        let number = PASSED.get();
        PASSED.set(number + 1);
        match number < KILLED_AT.get() {
            true => Ok(()),
            false => Err(io::Error::other("killed")),
        }
    }
}
