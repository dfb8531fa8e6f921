//! The official openai Python client, unmodified, against our server.

use std::path::Path;
use std::process::Command;

use crate::server_support::{MODEL, alone, shared};
use crate::support::python_env;

/// The client's version, as on the package index.
const CLIENT: &str = "openai==3.54.0";

#[test]
fn the_official_client_is_content() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/openai_client.py");
    let mut command = Command::new(python_env(&[CLIENT]));
    let arms = [format!("{MODEL}@base"), format!("{MODEL}@urial")];
    command.arg(script).arg(shared().url()).args(arms);
    let _alone = alone();
    let output = command.output().expect("the interpreter starts");
    let told = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}\n{complained}");
    assert!(told.contains("checks with openai"), "{told}");
}
