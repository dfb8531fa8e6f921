//! The command `incant train`.

use std::fs;
use std::process::{Command, Stdio};

use crate::support::model;

/// Returns the single line of a failed run over a file `data.jsonl` with these lines.
#[track_caller]
fn error(args: &[&str], lines: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("data.jsonl"), lines).expect("it is new");
    let output = Command::new(assert_cmd::cargo::cargo_bin!("incant"))
        .arg("train")
        .args(args)
        .args([
            "--no-prefix-cache",
            "--data",
            "data.jsonl",
            "--out",
            "out",
            "--model",
        ])
        .arg(model("smollm2-135m-instruct"))
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .output()
        .expect("incant starts");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        !folder.path().join("out").exists(),
        "nothing is left behind"
    );
    let text = str::from_utf8(&output.stderr).expect("UTF-8");
    let line = text.strip_suffix('\n').expect("a line");
    assert!(!line.contains('\n'), "{text}");
    line.to_owned()
}

#[test]
fn a_line_that_cannot_be_used_is_named() {
    let told = error(&["sft"], "{\"text\": \"a\"}\n\n{\"text\": 1}\n");
    assert!(told.starts_with("error: data.jsonl:3: column "), "{told}");
    let told = error(&["dpo"], "{\"prompt\": \"a\", \"completion\": \"b\"}\n");
    assert!(
        told.starts_with("error: data.jsonl:1: there are no 'chosen'"),
        "{told}"
    );
    let told = error(&["sft"], "{\"prompt\": \"a\"}\n");
    assert!(
        told.starts_with("error: data.jsonl:1: there is no answer"),
        "{told}"
    );
    let told = error(&["distill"], "{\"text\": \"a\"}\n");
    assert!(
        told.starts_with("error: data.jsonl:1: a text has no prompt"),
        "{told}"
    );
}

#[test]
fn settings_that_cannot_be_are_told() {
    let line = "{\"prompt\": \"a\", \"completion\": \"b\"}\n";
    let told = error(&["sft", "--batch-size", "0"], line);
    assert_eq!(told, "error: --batch-size must be at least 1");
    let told = error(&["sft", "--max-length", "3"], line);
    assert!(
        told.ends_with("nothing to learn from within --max-length 3"),
        "{told}"
    );
    let told = error(&["sft", "--profile", "none"], line);
    assert!(told.contains("has no profile 'none'"), "{told}");
    let told = error(&["sft", "--from", "nowhere"], line);
    assert!(told.contains("nowhere"), "{told}");
}
