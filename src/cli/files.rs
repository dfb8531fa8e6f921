//! Writes reports and models: checks the path first, then replaces the file atomically.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use incant::gguf::atomic::{self, Access};

/// A file that is written at the end, or the standard output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// `-`.
    Output,
    File(PathBuf),
}

impl Target {
    /// Returns the target that `path` names, checked before the long work begins.
    pub(super) fn new(path: &Path) -> anyhow::Result<Target> {
        if path == Path::new("-") {
            return Ok(Target::Output);
        }
        resolved(path).map(Target::File)
    }

    /// Writes all of `text` or nothing.
    pub(super) fn write(&self, text: &str) -> anyhow::Result<()> {
        match self {
            Target::Output => Ok(crate::cli::output::print(text)?),
            Target::File(path) => {
                replace(path, text).with_context(|| format!("cannot write {}", path.display()))
            }
        }
    }
}

/// Returns the file that `path` names, checked before the long work begins: it must not exist or,
/// with `force`, must be replaceable, and it must not be one of the `needed` input files.
pub(super) fn writable(path: &Path, needed: &[&Path], force: bool) -> anyhow::Result<PathBuf> {
    let path = resolved(path)?;
    if path.exists() && !path.is_file() {
        bail!("{} is no file", path.display());
    }
    let same = |needed: &&Path| is_same(needed, &path);
    if needed.iter().any(same) {
        bail!("{} would be written over itself", path.display());
    }
    if path.exists() && !force {
        bail!("{} is there already: --force replaces it", path.display());
    }
    Ok(path)
}

/// Returns whether both paths lead to one file.
fn is_same(one: &Path, other: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let id = |path| fs::metadata(path).map(|file| (file.dev(), file.ino()));
        id(one)
            .ok()
            .is_some_and(|one| id(other).is_ok_and(|other| one == other))
    }
    #[cfg(not(unix))]
    {
        let id = |path| fs::canonicalize(path);
        id(one)
            .ok()
            .is_some_and(|one| id(other).is_ok_and(|other| one == other))
    }
}

/// Returns the path with links resolved, in an existing folder.
fn resolved(path: &Path) -> anyhow::Result<PathBuf> {
    // A link stays one: its target is written.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if path.is_dir() {
        bail!("{} is a folder", path.display());
    }
    let folder = folder(&path);
    if !folder.is_dir() {
        bail!(
            "{}: there is no folder {}",
            path.display(),
            folder.display()
        );
    }
    Ok(path)
}

fn folder(path: &Path) -> &Path {
    let folder = path.parent();
    let folder = folder.filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    // A device or a pipe cannot be replaced by a file.
    if path.exists() && !path.is_file() {
        return fs::write(path, text);
    }
    atomic::replace(path, text.as_bytes(), Access::Umask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        for text in ["one", "two"] {
            Target::new(&path).unwrap().write(text).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_written_is_known_before() {
        let folder = tempfile::tempdir().unwrap();
        let message = |path: &Path| Target::new(path).unwrap_err().to_string();
        assert!(message(folder.path()).ends_with(" is a folder"));
        let missing = message(&folder.path().join("no/report.json"));
        assert!(missing.contains("there is no folder "), "{missing}");
    }

    #[test]
    fn what_the_work_needs_is_not_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let other = folder.path().join("other.gguf");
        fs::write(&path, "weights").unwrap();
        let message = |path: &Path, needed: &Path, force| {
            writable(path, &[needed], force).unwrap_err().to_string()
        };
        for force in [false, true] {
            let message = message(&folder.path().join("./model.gguf"), &path, force);
            assert!(message.ends_with("over itself"), "{message}");
        }
        writable(&other, &[&path], false).unwrap();
        let message = message(&path, &other, false);
        assert!(message.ends_with("--force replaces it"), "{message}");
        writable(&path, &[&other], true).unwrap();
        #[cfg(unix)]
        {
            let link = folder.path().join("link.gguf");
            fs::hard_link(&path, &link).unwrap();
            assert!(writable(&link, &[&path], true).is_err());
            let message = writable(Path::new("/dev/null"), &[], true).unwrap_err();
            assert_eq!(message.to_string(), "/dev/null is no file");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_link_and_a_device_stay_what_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        Target::new(&link).unwrap().write("new").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        Target::new(Path::new("/dev/null"))
            .unwrap()
            .write("x")
            .unwrap();
        assert!(!Path::new("/dev/null").is_file());
    }
}
