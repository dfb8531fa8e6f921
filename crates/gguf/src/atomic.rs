//! Atomic file writes: a file is written beside its final name, synced to the disk, and renamed.
//!
//! # Durability
//! A process that is killed, a full disk or a power failure leaves under the final name either the
//! complete new file or what was there before: the bytes are synced (fsync) before the file gets
//! its name. When a function of this module has returned, the new name itself is durable too: the
//! folder, in which a file system records names, is synced after the rename.
//!
//! A folder that cannot be opened for reading, or whose file system cannot sync folders, is not
//! synced. The file is complete all the same, but a power failure may undo the rename.
//!
//! # Unfinished files
//! A file that never got its name is removed when its [`UnfinishedFile`] is dropped. A killed
//! process leaves it behind; the next process that creates a file with the same prefix in the
//! folder, or that calls [`sweep`], removes it. An unfinished file is locked for as long as it is
//! being written, and the operating system releases the lock when the process ends, so a file
//! without a lock has no writer any more. File systems without locks keep such files.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::open::{Kind, Location};

/// The beginning of the names of unfinished files, unless their writer chooses another.
pub const UNFINISHED: &str = ".writing-";

/// The number of random letters and digits after the prefix of an unfinished file's name.
const RANDOM_CHARACTERS: usize = 6;

/// Unfinished files, which may be models.
const UNFINISHED_FILES: Kind = Kind::new("unfinished files", u64::MAX);

/// The users that may read a new file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The owner only: mode 0600.
    Owner,
    /// As with any new file: mode 0666, restricted by the umask of the process.
    Umask,
}

/// A file that is being written. It gets its final name with [`commit`](Self::commit); dropped
/// before, it is removed.
#[derive(Debug)]
pub struct UnfinishedFile {
    file: NamedTempFile,
    path: PathBuf,
}

impl UnfinishedFile {
    /// Creates a file in the folder of `path`, with a random name that begins with `prefix`, and
    /// removes the files of this prefix that killed processes left there.
    ///
    /// # Errors
    /// The file cannot be created or locked.
    pub fn create(path: &Path, prefix: &str, access: Access) -> io::Result<UnfinishedFile> {
        let folder = folder(path);
        sweep(folder, prefix);
        let mut builder = tempfile::Builder::new();
        builder.prefix(prefix).rand_bytes(RANDOM_CHARACTERS);
        if let Some(permissions) = permissions(access) {
            builder.permissions(permissions);
        }
        let file = loop {
            let file = builder.tempfile_in(folder)?;
            match file.as_file().lock() {
                // Another process may have removed the file before it was locked.
                Ok(()) if !file.path().exists() => {}
                Ok(()) => break file,
                // Where there are no locks, no other process can take one to remove the file.
                Err(error) if error.kind() == ErrorKind::Unsupported => break file,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        };
        Ok(UnfinishedFile {
            file,
            path: path.to_owned(),
        })
    }

    /// The file, to be written to.
    pub fn file(&self) -> &File {
        self.file.as_file()
    }

    /// The current path of the file.
    pub fn current_path(&self) -> &Path {
        self.file.path()
    }

    /// Syncs the file, gives it its final name, which may replace another file, and syncs the
    /// folder.
    ///
    /// # Errors
    /// The file cannot be synced (some file systems report a full disk only now) or renamed, or
    /// the folder cannot be synced.
    pub fn commit(self) -> io::Result<()> {
        self.file.as_file().sync_all()?;
        self.file.persist(&self.path).map_err(|error| error.error)?;
        sync_folder(folder(&self.path))
    }
}

/// Removes the unfinished files that killed processes left in a folder: those that
/// [`UnfinishedFile::create`] named with this prefix and that no process has locked. A file that
/// cannot be removed is reported in the log.
pub fn sweep(folder: &Path, prefix: &str) {
    let Ok(entries) = fs::read_dir(folder) else {
        // The folder does not exist yet, or its names cannot be read.
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if is_unfinished(&entry.file_name(), prefix)
            && entry.file_type().is_ok_and(|kind| kind.is_file())
            && let Ok(file) = Location::of(&path).file(UNFINISHED_FILES)
            && file.try_lock().is_ok()
            && let Err(error) = fs::remove_file(&path)
            // Its writer may have renamed it between its opening and its locking.
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!("cannot remove {}: {error}", path.display());
        }
    }
}

/// Returns whether [`UnfinishedFile::create`] could have given a file this name.
fn is_unfinished(name: &OsStr, prefix: &str) -> bool {
    let random = name.to_str().and_then(|name| name.strip_prefix(prefix));
    random.is_some_and(|random| {
        random.len() == RANDOM_CHARACTERS && random.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}

/// Writes or replaces a file.
///
/// # Errors
/// The file cannot be written.
pub fn replace(path: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
    let unfinished = UnfinishedFile::create(path, UNFINISHED, access)?;
    unfinished.file().write_all(bytes)?;
    unfinished.commit()
}

/// Renames a file or a folder whose contents are synced already, and syncs the folder of its new
/// name.
///
/// # Errors
/// It cannot be renamed, or the folder cannot be synced.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_folder(folder(to))
}

/// Syncs the names in a folder to the disk; see [the module](self) for folders that cannot be
/// synced.
///
/// # Errors
/// The folder does not exist, or the disk failed.
#[cfg(unix)]
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    use ErrorKind::{InvalidInput, PermissionDenied, Unsupported};

    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.or_else(|error| match error.kind() {
        PermissionDenied | InvalidInput | Unsupported => Ok(()),
        _ => Err(error),
    })
}

/// Does nothing: this system syncs names by itself.
///
/// # Errors
/// None.
#[cfg(not(unix))]
pub fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}

/// Returns the folder that a path names a file in.
fn folder(path: &Path) -> &Path {
    let folder = path.parent();
    let folder = folder.filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

/// The mode that a file is created with; `None` for that of temporary files, 0600.
#[cfg(unix)]
fn permissions(access: Access) -> Option<Permissions> {
    use std::os::unix::fs::PermissionsExt;

    match access {
        Access::Owner => None,
        // The system applies the umask when it creates the file. Changing the mode afterwards
        // would ignore it.
        Access::Umask => Some(Permissions::from_mode(0o666)),
    }
}

#[cfg(not(unix))]
fn permissions(_: Access) -> Option<Permissions> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("it is a folder");
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        names
            .map(|name| name.to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        for text in ["one", "two"] {
            replace(&path, text.as_bytes(), Access::Umask).expect("it can be written");
            assert_eq!(fs::read_to_string(&path).expect("it is there"), text);
        }
        assert_eq!(names(folder.path()), ["file"]);
    }

    #[test]
    fn an_uncommitted_file_is_removed_and_the_old_one_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        fs::write(&path, "old").expect("it can be written");
        let unfinished = UnfinishedFile::create(&path, ".new-", Access::Owner).expect("a file");
        unfinished.file().write_all(b"new").expect("there is space");
        assert_eq!(names(folder.path()).len(), 2);
        let current = unfinished.current_path().file_name().expect("a name");
        assert!(current.to_string_lossy().starts_with(".new-"));
        drop(unfinished);
        assert_eq!(names(folder.path()), ["file"]);
        assert_eq!(fs::read_to_string(&path).expect("it is there"), "old");
    }

    /// Leaves an unfinished file as a killed process does.
    fn kill(unfinished: UnfinishedFile) -> PathBuf {
        let (file, path) = unfinished.file.into_parts();
        let path = path.keep().expect("it stays");
        // The system closes the files of a killed process, which releases their locks.
        drop(file);
        path
    }

    #[test]
    fn what_a_killed_process_left_is_removed_and_what_is_being_written_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        let create = || UnfinishedFile::create(&path, UNFINISHED, Access::Owner).expect("a file");
        let [left, written] = [(); 2].map(|()| create());
        let written_at = written.current_path().to_owned();
        let others = [
            path.clone(),
            folder.path().join(".writing-adapter.bin"),
            folder.path().join(".saving-abcdef"),
        ];
        for other in &others {
            fs::write(other, "other").expect("it can be written");
        }
        let left = kill(left);
        sweep(folder.path(), UNFINISHED);
        assert!(!left.exists() && written_at.exists());
        assert!(others.iter().all(|other| other.exists()));
        written.commit().expect("it is all there");
        assert!(!written_at.exists());
        // The next write removes it too.
        let left = kill(create());
        replace(&folder.path().join("another"), b"", Access::Owner).expect("it can be written");
        assert!(!left.exists());
    }

    #[test]
    fn those_who_write_into_one_folder_do_not_remove_each_others_files() {
        let folder = tempfile::tempdir().expect("a folder");
        std::thread::scope(|threads| {
            for thread in 0..8 {
                let folder = folder.path();
                threads.spawn(move || {
                    for round in 0..20 {
                        let path = folder.join(format!("{thread}-{round}"));
                        let unfinished = UnfinishedFile::create(&path, UNFINISHED, Access::Owner);
                        let unfinished = unfinished.expect("it can be created");
                        sweep(folder, UNFINISHED);
                        unfinished.file().write_all(b"x").expect("there is space");
                        unfinished.commit().expect("it is still there");
                    }
                });
            }
        });
        assert_eq!(names(folder.path()).len(), 8 * 20);
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_file_is_not_swept_and_not_waited_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(format!("{UNFINISHED}{name}"));
        let made = std::process::Command::new("mkfifo")
            .arg(path("pipe00"))
            .status();
        assert!(made.expect("there is such a program").success());
        fs::create_dir(path("folder")).expect("a folder");
        std::os::unix::fs::symlink("/dev/null", path("link00")).expect("a link");
        sweep(folder.path(), UNFINISHED);
        assert_eq!(names(folder.path()).len(), 3);
        sweep(&folder.path().join("none"), UNFINISHED);
    }

    #[test]
    fn a_renamed_folder_keeps_its_files() {
        let folder = tempfile::tempdir().expect("a folder");
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::create_dir(&from).expect("a folder");
        fs::write(from.join("file"), "text").expect("it can be written");
        rename(&from, &to).expect("there is nothing there");
        assert_eq!(names(&to), ["file"]);
        let missing = sync_folder(&from).expect_err("it is gone");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[cfg(unix)]
    #[test]
    fn a_file_gets_the_mode_of_any_new_file_or_is_for_its_owner() {
        use std::os::unix::fs::PermissionsExt;

        let folder = tempfile::tempdir().expect("a folder");
        let mode = |name: &str| {
            let metadata = fs::metadata(folder.path().join(name)).expect("it is there");
            metadata.permissions().mode() & 0o777
        };
        // The umask belongs to the process, so this compares with a plain new file.
        File::create(folder.path().join("plain")).expect("it can be created");
        for (name, access) in [("umask", Access::Umask), ("owner", Access::Owner)] {
            replace(&folder.path().join(name), b"", access).expect("it can be written");
        }
        assert_eq!(mode("umask"), mode("plain"));
        assert_eq!(mode("owner"), 0o600);
    }
}
