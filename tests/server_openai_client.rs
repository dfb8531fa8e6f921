//! The official openai Python client, unmodified, against our server.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::server_support::{MODEL, shared};

/// Runs a command to its end; its output is shown if it fails.
fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (told, complained) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{command:?}\n{told}\n{complained}");
    told.into_owned()
}

/// A Python with the pinned client, made once and kept between runs.
fn python(clients: &Path) -> PathBuf {
    let requirements = clients.join("requirements.txt");
    let pinned = std::fs::read_to_string(&requirements).expect("the pinned version");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("openai-client");
    let python = folder.join("bin").join("python");
    let done = folder.join("installed.txt");
    if std::fs::read_to_string(&done).is_ok_and(|installed| installed == pinned) {
        return python;
    }
    run(Command::new("python3")
        .args(["-m", "venv", "--clear"])
        .arg(&folder));
    let install = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--requirement",
    ];
    run(Command::new(&python).args(install).arg(&requirements));
    std::fs::write(&done, pinned).expect("a note of what is installed");
    python
}

#[test]
fn the_official_client_is_content() {
    let clients = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
    let mut command = Command::new(python(&clients));
    command
        .arg(clients.join("openai_client.py"))
        .arg(shared().url());
    let told = run(command.arg(MODEL).arg(format!("{MODEL}@urial")));
    assert!(told.contains("checks with openai"), "{told}");
}
