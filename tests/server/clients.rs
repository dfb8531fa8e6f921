//! Unmodified third-party clients against our server. Their scripts are in `tests/clients`;
//! each can also be run separately against any server.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::server::support::{MODEL, alone, shared};
use crate::support::{not_run, python_env};

#[test]
fn the_official_client_is_content() {
    let told = python("openai_client.py");
    assert!(told.contains("checks with openai"), "{told}");
}

#[test]
fn litellm_is_content() {
    let told = python("litellm_client.py");
    assert!(told.contains("litellm: "), "{told}");
}

#[test]
fn langchain_is_content() {
    let told = python("langchain_client.py");
    assert!(told.contains("langchain-openai: "), "{told}");
}

#[test]
fn instructor_gets_a_typed_answer() {
    let told = python("instructor_client.py");
    assert!(told.contains("instructor: "), "{told}");
}

#[test]
fn the_command_llm_is_content() {
    let told = python("llm_client.py");
    assert!(told.contains("llm: "), "{told}");
}

#[test]
fn the_official_client_for_node_is_content() {
    if Command::new("npm").arg("--version").output().is_err() {
        not_run("node", "there is no npm to install its client");
        return;
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("openai_node");
    fs::create_dir_all(&folder).expect("the build folder is writable");
    for file in ["package.json", "client.js"] {
        let from = clients().join("openai_node").join(file);
        fs::copy(from, folder.join(file)).expect("the script is there");
    }
    let mut install = Command::new("npm");
    install.args(["install", "--silent", "--no-package-lock"]);
    succeed(install.current_dir(&folder));
    let mut client = Command::new("node");
    let told = ask(client.arg("client.js").current_dir(&folder));
    assert!(told.contains("openai for Node: "), "{told}");
}

fn clients() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
}

/// Runs one of the scripts with the packages that it names.
fn python(script: &str) -> String {
    let script = clients().join(script);
    let text = fs::read_to_string(&script).expect("the script is there");
    let packages = packages(&text);
    let packages: Vec<&str> = packages.iter().map(String::as_str).collect();
    let interpreter = python_env(&packages);
    ask(Command::new(interpreter).arg(script))
}

/// Returns the dependencies in a script's header (PEP 723).
fn packages(script: &str) -> Vec<String> {
    let header = script
        .lines()
        .skip_while(|line| *line != "# /// script")
        .skip(1)
        .take_while(|line| *line != "# ///")
        .map(|line| line.trim_start_matches("# "));
    let header: String = header.flat_map(|line| [line, "\n"]).collect();
    let header: toml::Table = header.parse().expect("a header is TOML");
    let named = header["dependencies"].as_array().expect("a list");
    let name = |value: &toml::Value| value.as_str().expect("a package").to_owned();
    named.iter().map(name).collect()
}

/// Runs a client against the shared server, and returns its output.
fn ask(client: &mut Command) -> String {
    client.arg(shared().url());
    client.args([format!("{MODEL}@base"), format!("{MODEL}@urial")]);
    let _alone = alone();
    succeed(client)
}

fn succeed(command: &mut Command) -> String {
    let output = command.output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let told = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {told}\n{complained}");
    told.into_owned()
}
