//! What commands print of strangers: of a model, a file, the name of a file. On a terminal
//! none of it may be a command.

use std::io::Read as _;
use std::path::Path;
use std::process::Command;

use incant::printable::{is_command, printable};
use portable_pty::{CommandBuilder, PtySize, native_pty_system};

use crate::build::{Builder, Item};
use crate::reference::tiny::Tiny;

/// What would set a title, fill the clipboard, clear the screen, and turn a name around.
const HOSTILE: &str = "\u{1b}]0;owned\u{7}\u{1b}]52;c;cm0=\u{7}\u{9b}2J\u{202e}fdp";

/// What a command writes to a terminal, both outputs together.
fn on_terminal(args: &[&str]) -> String {
    let pair = native_pty_system()
        .openpty(PtySize::default())
        .expect("the system has terminals");
    let mut command = CommandBuilder::new(assert_cmd::cargo::cargo_bin!("incant"));
    command.args(args);
    command.env("TERM", "xterm-256color");
    let mut child = pair.slave.spawn_command(command).expect("incant starts");
    drop(pair.slave);
    let mut output = pair.master.try_clone_reader().expect("it is open");
    let mut shown = Vec::new();
    // At its end the terminal is closed, which reads as an error.
    _ = output.read_to_end(&mut shown);
    child.wait().expect("it ends");
    // The terminal itself ends lines so.
    String::from_utf8(shown)
        .expect("UTF-8")
        .replace("\r\n", "\n")
}

/// What a command writes to a pipe.
fn piped(args: &[&str]) -> (String, String) {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("incant"));
    let output = command.args(args).output().expect("incant starts");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (text(output.stdout), text(output.stderr))
}

#[track_caller]
fn harmless(shown: &str) {
    assert!(!shown.contains(is_command), "{shown:?}");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn an_answer_reaches_a_terminal_without_commands_and_a_pipe_as_it_is() {
    // Its weights are drawn at random, and so are the bytes that it says.
    let tiny = Tiny::llama();
    let file = tiny.written(&tiny.tensors());
    let args = [
        "ask",
        "--model",
        text(file.path()),
        "--no-prefix-cache",
        "--device",
        "cpu",
        "--temperature",
        "2",
        "--seed",
        "5",
        "--max-tokens",
        "400",
        "hello",
    ];
    let (raw, _) = piped(&args);
    assert!(raw.contains(is_command), "it says none: {raw:?}");
    let shown = on_terminal(&args);
    harmless(&shown);
    assert_eq!(shown, printable(&raw));
}

#[test]
fn names_of_files_are_told_without_commands() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(format!("{HOSTILE}.gguf"));
    std::fs::write(&path, "no model").expect("the disk is not full");
    let path = text(&path);
    for args in [
        &["inspect", path][..],
        &["tokenize", "--model", path, "x"],
        &["ask", "--model", path, "x"],
        // What clap says.
        &["inspect", path, path],
        &[path],
    ] {
        let (out, error) = piped(args);
        // Of what clap says, it has left out the escape itself.
        assert!(error.contains("\\u{202e}"), "{error:?}");
        harmless(&error);
        assert_eq!(out, "");
        harmless(&on_terminal(args));
    }
}

#[test]
fn what_stands_in_a_file_is_shown_without_commands() {
    let tiny = Tiny::llama();
    let file = tiny.continued(
        Builder::new()
            .with("general.name", Item::Str(HOSTILE))
            .with(HOSTILE, Item::Str(HOSTILE))
            .with("tokenizer.chat_template", Item::Str(HOSTILE)),
        &tiny.tensors(),
    );
    let file = crate::reference::tiny::written(&file);
    for json in [false, true] {
        let mut args = vec!["inspect", text(file.path())];
        args.extend(json.then_some("--json"));
        let (shown, _) = piped(&args);
        assert!(shown.contains("]0;owned"), "{shown}");
        harmless(&shown);
        harmless(&on_terminal(&args));
        if json {
            let report: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
            assert_eq!(report["chat_template"], HOSTILE);
        }
    }
    let typed = format!("a{HOSTILE}");
    for json in [false, true] {
        let mut args = vec!["tokenize", "--model", text(file.path()), &typed];
        args.extend(json.then_some("--json"));
        harmless(&on_terminal(&args));
    }
}
