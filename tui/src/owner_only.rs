//! Files that only their owner may read, because conversations are private.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::path::Path;

/// Creates a folder and its ancestors for their owner alone; removes other users' permissions
/// from an existing one.
///
/// # Errors
/// The folder cannot be created.
pub(crate) fn folder(path: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)?;
    restrict(path, &fs::metadata(path)?);
    Ok(())
}

/// Opens a file for appending, for its owner alone.
///
/// # Errors
/// The file cannot be opened or created.
pub(crate) fn append(path: &Path) -> io::Result<File> {
    let file = options().create(true).append(true).open(path)?;
    restrict(path, &file.metadata()?);
    Ok(file)
}

/// Creates a new file for its owner alone.
///
/// # Errors
/// The file exists, or cannot be created.
pub(crate) fn create_new(path: &Path) -> io::Result<File> {
    options().write(true).create_new(true).open(path)
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Removes other users' permissions from a file or folder. If it belongs to another user, it
/// stays unchanged.
#[cfg(unix)]
fn restrict(path: &Path, found: &fs::Metadata) {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = found.permissions().mode();
    if mode & 0o077 != 0 {
        _ = fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o700));
    }
}

#[cfg(not(unix))]
fn restrict(_: &Path, _: &fs::Metadata) {}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_is_made_is_its_owners_alone() {
        let temporary = tempfile::tempdir().unwrap();
        let made = temporary.path().join("not/there");
        folder(&made).unwrap();
        append(&made.join("a")).unwrap();
        create_new(&made.join("b")).unwrap();
        assert_eq!([mode(&made), mode(made.parent().unwrap())], [0o700; 2]);
        assert_eq!([mode(&made.join("a")), mode(&made.join("b"))], [0o600; 2]);
    }

    #[test]
    fn what_was_open_to_others_is_closed_when_it_is_written() {
        let temporary = tempfile::tempdir().unwrap();
        let (inner, file) = (temporary.path().join("f"), temporary.path().join("f/a"));
        fs::create_dir(&inner).unwrap();
        fs::write(&file, "old\n").unwrap();
        for (path, open) in [(&inner, 0o755), (&file, 0o644)] {
            fs::set_permissions(path, fs::Permissions::from_mode(open)).unwrap();
        }
        folder(&inner).unwrap();
        append(&file).unwrap();
        assert_eq!([mode(&inner), mode(&file)], [0o700, 0o600]);
        assert_eq!(fs::read_to_string(&file).unwrap(), "old\n");
    }
}
