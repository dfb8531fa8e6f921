//! Shared helpers of tests: real models, reference data, a Python to run clients in.

pub(crate) mod browser;
pub(crate) mod chat_server;
pub(crate) mod fixtures;
pub(crate) mod http;
pub(crate) mod hub;
pub(crate) mod subjects;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use incant::catalog::{self, Cache, Manifest, Progress};

/// Returns the file of a real model, shipped or of `tests/models`. One that is not in the cache
/// (`INCANT_MODELS`, as for the program) is downloaded with pip; a second test or process that
/// needs the same one waits for it.
pub(crate) fn model(name: &str) -> PathBuf {
    let manifest = match catalog::find(name) {
        Some(manifest) => manifest.clone(),
        None => {
            let path =
                Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/models/{name}.toml"));
            let text = fs::read_to_string(&path).unwrap_or_else(|error| {
                panic!("no manifest for {name}: {}: {error}", path.display())
            });
            Manifest::parse(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        }
    };
    let cache = Cache {
        // The package index is reachable from every machine that builds this.
        hub: None,
        ..Cache::from_env().expect("there is a cache directory")
    };
    cache
        .fetch(&manifest, &Lines)
        .unwrap_or_else(|error| panic!("{error}"))
}

/// Reports a download on the standard error, because it can take minutes.
struct Lines;

impl Progress for Lines {
    fn note(&self, line: &str) {
        eprintln!("{line}");
    }

    fn begin(&self, name: &str, total: u64) {
        eprintln!("downloading {name}, {total} bytes");
    }

    fn position(&self, _bytes: u64) {}

    fn end(&self) {}
}

/// Prints that a part of the tests is not run because `what` is missing.
///
/// # Panics
/// `INCANT_REQUIRE`, a list with commas, names `what`: it is promised to be there.
pub(crate) fn not_run(what: &str, reason: &str) {
    let required = std::env::var("INCANT_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|name| name == what),
        "INCANT_REQUIRE promises {what}, but {reason}"
    );
    // Written past the test harness's output capture, so that it is always visible.
    _ = writeln!(std::io::stderr(), "NOT RUN for want of {what}: {reason}");
}

/// The folder of reference data, if `INCANT_SHARED` names one.
pub(crate) fn shared() -> Option<PathBuf> {
    std::env::var_os("INCANT_SHARED")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
}

/// Returns the golden data that an independent engine computed for a model. Without reference
/// data, returns `None` and prints a line.
pub(crate) fn golden(model: &str) -> Option<serde_json::Value> {
    let file = match model {
        "gemma-3-270m" => "gemma-3-270m-q4_k_m.json",
        "smollm2-135m-instruct" => "smollm2.json",
        "qwen2.5-coder-0.5b-instruct" => "q05.json",
        _ => panic!("no reference was made for {model}"),
    };
    let Some(shared) = shared() else {
        not_run("reference", "INCANT_SHARED names no data to compare with");
        return None;
    };
    let path = shared.join("golden").join(file);
    let text =
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Some(serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}

/// Returns the interpreter of a Python environment with these packages (`NAME==VERSION`). It is
/// created once per set of packages and kept in the target folder.
pub(crate) fn python_env(packages: &[&str]) -> PathBuf {
    let folder = format!("python-{}", packages.join("-").replace("==", "-"));
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(folder);
    let python = dir.join("bin/python");
    let complete = dir.join("complete");

    let lock = File::create(dir.with_extension("lock")).expect("the build folder is writable");
    lock.lock().expect("the build folder has locks");
    if complete.exists() {
        return python;
    }
    // Removes an incomplete environment, if there is one.
    let _ = fs::remove_dir_all(&dir);
    // Without its own pip: Debian ships that part separately, and the outer pip can install
    // into it.
    run(Command::new("python3")
        .args(["-m", "venv", "--without-pip"])
        .arg(&dir));
    run(Command::new("python3")
        .args(["-m", "pip", "--python"])
        .arg(&python)
        .args([
            "install",
            "--quiet",
            "--no-input",
            "--disable-pip-version-check",
        ])
        .args(packages));
    File::create(&complete).expect("the build folder is writable");
    python
}

fn run(command: &mut Command) {
    let status = command
        .status()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}

/// Waits until a condition holds, for up to a minute.
pub(crate) fn wait_until(what: &str, done: impl Fn() -> bool) {
    let patience = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < patience, "{what}: not within a minute");
        std::thread::sleep(Duration::from_millis(20));
    }
}
