//! Opens files that someone else names: a person on the command line, a client, or the author of a
//! folder that is followed.
//!
//! The checks are made on the opened file, never on the path before (no TOCTOU race). Opening
//! neither waits for the other end of a pipe nor takes a device for a file, and no file larger than
//! the limit of its [`Kind`] is read.
//!
//! A [`Location`] that a client names lies within a folder (sandboxed against path traversal):
//! `..`, absolute paths and links may lead anywhere in it, and nowhere else. So a folder may be a
//! cache of Hugging Face, whose files are links into another part of it. The links of a path that
//! the operator names are the operator's own responsibility.

use std::fmt;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cap_std::ambient_authority;
use cap_std::fs::Dir;

use crate::printable::excerpt;

/// The purpose of a file, and the maximum number of bytes of such files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// In the plural, for an error.
    what: &'static str,
    /// In bytes.
    limit: u64,
}

impl Kind {
    /// GGUF files of models. They are mapped, and only the needed parts are read.
    pub const MODEL: Kind = Kind::new("models", u64::MAX);
    /// Saved prefixes, which are mapped.
    pub const PREFIX: Kind = Kind::new("saved prefixes", u64::MAX);
    /// The weights of adapters, in safetensors or GGUF files, which are mapped.
    pub const ADAPTER: Kind = Kind::new("adapters", 64 << 30);
    /// `adapter_config.json`: a page or two.
    pub const ADAPTER_CONFIG: Kind = Kind::new("configurations of adapters", 1 << 20);
    /// Manifests of models.
    pub const MANIFEST: Kind = Kind::new("manifests", 1 << 20);
    /// Cached data of earlier runs.
    pub const NOTE: Kind = Kind::new("notes", 1 << 20);
    /// Files of API keys.
    pub const KEYS: Kind = Kind::new("files of keys", 1 << 20);
    /// Lists of prompts.
    pub const PROMPTS: Kind = Kind::new("lists of prompts", 256 << 20);

    /// Creates the kind of files for `what`, in the plural, of at most `limit` bytes.
    pub const fn new(what: &'static str, limit: u64) -> Kind {
        Kind { what, limit }
    }

    fn check(self, size: u64) -> io::Result<()> {
        let Kind { what, limit } = self;
        if size > limit {
            Err(io::Error::new(
                ErrorKind::FileTooLarge,
                Refused::TooLarge { what, limit },
            ))
        } else {
            Ok(())
        }
    }
}

/// The reason why an existing file is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Refused {
    #[error("the path leads out of the folder that it must be in")]
    Outside,
    #[error("it is {0}, not a file")]
    NotRegular(&'static str),
    #[error("it has more than the {limit} bytes that {what} may have")]
    TooLarge { what: &'static str, limit: u64 },
}

/// The location of a file or a folder.
#[derive(Clone, Debug)]
pub struct Location {
    /// The folder that `path` is relative to and must not leave.
    folder: Option<Arc<Dir>>,
    path: PathBuf,
}

/// Displays the path as it was named; of a client's path only an excerpt, fit for one line.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.to_string_lossy();
        match self.folder {
            Some(_) => write!(f, "{}", excerpt(&path).escape_debug()),
            None => f.write_str(&path),
        }
    }
}

/// An opened [`Location`].
#[derive(Debug)]
pub enum Opened {
    /// A regular file.
    File(File),
    /// A folder.
    Folder,
}

impl Location {
    /// Returns the location of a path that the operator names, or the program itself.
    pub fn of(path: &Path) -> Location {
        Location {
            folder: None,
            path: path.to_owned(),
        }
    }

    /// Returns the location of a path relative to `folder` that a client names.
    ///
    /// # Errors
    /// The folder cannot be opened.
    pub fn within(folder: &Path, path: &Path) -> io::Result<Location> {
        let folder = Dir::open_ambient_dir(folder, ambient_authority())?;
        Ok(Location {
            folder: Some(Arc::new(folder)),
            path: path.to_owned(),
        })
    }

    /// Returns the location of `name` in the folder at this location.
    pub fn join(&self, name: &str) -> Location {
        Location {
            folder: self.folder.clone(),
            path: self.path.join(name),
        }
    }

    /// Returns the path as it was named.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path as clients may see it: as a client named it, or the last component of a
    /// path that the operator named.
    pub fn public_path(&self) -> &Path {
        match (&self.folder, self.path.file_name()) {
            (None, Some(name)) => Path::new(name),
            _ => &self.path,
        }
    }

    /// Opens the file or folder for reading.
    ///
    /// # Errors
    /// It cannot be opened, is neither a file nor a folder, or lies outside of the folder that it
    /// must be in.
    pub fn open(&self) -> io::Result<Opened> {
        let file = match &self.folder {
            Some(folder) => {
                let file = folder.open_with(&self.path, &confined_options());
                file.map_err(within_bounds)?.into_std()
            }
            None => options().open(&self.path)?,
        };
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Ok(Opened::Folder);
        }
        if !metadata.is_file() {
            return Err(not_regular(name_of(&metadata)));
        }
        Ok(Opened::File(file))
    }

    /// Opens the regular file at this location.
    ///
    /// # Errors
    /// As [`open`](Self::open); also for a folder, and for a file that is too large for its kind.
    pub fn file(&self, kind: Kind) -> io::Result<File> {
        match self.open()? {
            Opened::File(file) => {
                kind.check(file.metadata()?.len())?;
                Ok(file)
            }
            Opened::Folder => Err(ErrorKind::IsADirectory.into()),
        }
    }

    /// Reads the regular file at this location.
    ///
    /// # Errors
    /// As [`file`](Self::file); also if it cannot be read.
    pub fn read(&self, kind: Kind) -> io::Result<Vec<u8>> {
        read_all(self.file(kind)?, kind)
    }

    /// Reads the regular file at this location as text.
    ///
    /// # Errors
    /// As [`read`](Self::read); also if it is not UTF-8.
    pub fn read_text(&self, kind: Kind) -> io::Result<String> {
        text_of(self.read(kind)?)
    }
}

/// Reads a text file that the operator names and that may be a pipe, as from `<(command)` in a
/// shell: its writer is waited for.
///
/// # Errors
/// It cannot be read, is not UTF-8, or has more bytes than the limit of its kind.
pub fn read_text(path: &Path, kind: Kind) -> io::Result<String> {
    text_of(read_all(File::open(path)?, kind)?)
}

fn text_of(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let problem = format!("it is not UTF-8 text (byte {at})");
        io::Error::new(ErrorKind::InvalidData, problem)
    })
}

/// Reads a file to its end, even if it grows meanwhile or has no known length.
fn read_all(file: File, kind: Kind) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let most = kind.limit.saturating_add(1);
    file.take(most).read_to_end(&mut bytes)?;
    kind.check(bytes.len() as u64)?;
    Ok(bytes)
}

/// Opens a pipe without a writer at once instead of waiting for one, and does not make a terminal
/// the controlling terminal of the process.
#[cfg(unix)]
const FLAGS: i32 = libc::O_NONBLOCK | libc::O_NOCTTY;

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, FLAGS);
    options
}

fn confined_options() -> cap_std::fs::OpenOptions {
    let mut options = cap_std::fs::OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    cap_std::fs::OpenOptionsExt::custom_flags(&mut options, FLAGS);
    options
}

/// Replaces the error of a path that left its folder by our own: the system has none.
fn within_bounds(error: io::Error) -> io::Error {
    match (error.kind(), error.raw_os_error()) {
        (ErrorKind::PermissionDenied, None) => {
            io::Error::new(ErrorKind::PermissionDenied, Refused::Outside)
        }
        _ => error,
    }
}

fn not_regular(what: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, Refused::NotRegular(what))
}

/// Names an object that is neither a file nor a folder.
fn name_of(metadata: &Metadata) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kind = metadata.file_type();
        if kind.is_fifo() {
            return "a pipe";
        }
        if kind.is_char_device() || kind.is_block_device() {
            return "a device";
        }
    }
    _ = metadata;
    "something else"
}

/// Returns whether an error means that a path left the folder that it must be in.
pub fn is_outside(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    inner == Some(&Refused::Outside)
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    const SMALL: Kind = Kind::new("small files", 4);

    /// A folder with a file in it, and a file beside it.
    fn folders() -> (tempfile::TempDir, PathBuf) {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("inner");
        fs::create_dir_all(inner.join("blobs")).unwrap();
        fs::create_dir_all(inner.join("snapshots/one")).unwrap();
        fs::write(inner.join("blobs/0123"), "in").unwrap();
        fs::write(outer.path().join("secret"), "out").unwrap();
        (outer, inner)
    }

    /// Creates a pipe with `mkfifo`: the standard library has no function for it.
    fn pipe(path: &Path) {
        let made = std::process::Command::new("mkfifo").arg(path).status();
        assert!(made.unwrap().success());
    }

    fn read(inner: &Path, path: &str) -> io::Result<Vec<u8>> {
        Location::within(inner, Path::new(path))?.read(SMALL)
    }

    #[test]
    fn links_lead_anywhere_in_the_folder_and_nowhere_else() {
        let (outer, inner) = folders();
        symlink("../../blobs/0123", inner.join("snapshots/one/file")).unwrap();
        symlink(outer.path().join("secret"), inner.join("absolute")).unwrap();
        symlink("../secret", inner.join("relative")).unwrap();
        symlink("..", inner.join("blobs/up")).unwrap();
        symlink("up/../../secret", inner.join("blobs/twice")).unwrap();
        symlink("/proc/self/root", inner.join("magic")).unwrap();
        for path in ["blobs/0123", "snapshots/one/file", "blobs/up/blobs/0123"] {
            assert_eq!(read(&inner, path).unwrap(), b"in", "{path}");
        }
        let secret = outer.path().join("secret");
        for path in [
            "absolute",
            "relative",
            "../secret",
            "blobs/up/../secret",
            "blobs/twice",
            "magic/etc/passwd",
            secret.to_str().unwrap(),
        ] {
            let error = read(&inner, path).unwrap_err();
            assert!(is_outside(&error), "{path}: {error}");
        }
        // The operator's own links are followed.
        let linked = Location::of(&inner.join("absolute"));
        assert_eq!(linked.read(SMALL).unwrap(), b"out");
    }

    #[test]
    fn what_is_no_file_is_refused_at_once() {
        let (_outer, inner) = folders();
        pipe(&inner.join("pipe"));
        symlink("/dev/zero", inner.join("zero")).unwrap();
        let refused = |location: Location| location.read(SMALL).unwrap_err().to_string();
        let pipe = inner.join("pipe");
        assert_eq!(refused(Location::of(&pipe)), "it is a pipe, not a file");
        let within = Location::within(&inner, Path::new("pipe")).unwrap();
        assert_eq!(refused(within), "it is a pipe, not a file");
        let zero = Location::of(&inner.join("zero"));
        assert_eq!(refused(zero), "it is a device, not a file");
        assert!(matches!(Location::of(&inner).open(), Ok(Opened::Folder)));
        let error = Location::of(&inner).read(SMALL).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::IsADirectory);
    }

    #[test]
    fn a_file_that_is_too_large_is_refused_by_its_kind_and_limit() {
        let (_outer, inner) = folders();
        fs::write(inner.join("four"), "1234").unwrap();
        fs::write(inner.join("five"), "12345").unwrap();
        assert_eq!(read(&inner, "four").unwrap(), b"1234");
        let expected = "it has more than the 4 bytes that small files may have";
        assert_eq!(read(&inner, "five").unwrap_err().to_string(), expected);
        // A file of unknown length is read only up to the limit.
        for endless in ["/dev/zero", "/dev/urandom"] {
            let error = read_text(Path::new(endless), SMALL).unwrap_err();
            assert_eq!(error.to_string(), expected, "{endless}");
        }
    }

    #[test]
    fn clients_see_no_more_of_a_path_than_they_named() {
        let (_outer, inner) = folders();
        let own = Location::of(&inner.join("blobs/0123"));
        assert_eq!(own.public_path(), Path::new("0123"));
        let named = Location::within(&inner, Path::new("blobs/0123")).unwrap();
        assert_eq!(named.public_path(), Path::new("blobs/0123"));
    }
}
