//! The files that paths named by clients may refer to.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::{Served, copy};

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";

fn pipe(path: &Path) {
    let made = Command::new("mkfifo").arg(path).status();
    assert!(made.expect("there is such a program").success());
}

fn message(error: &Value) -> &str {
    error["message"].as_str().expect("a text")
}

/// Every link on the path counts, including the last one, and those within a folder.
#[test]
fn no_file_of_an_adapter_is_read_from_outside_of_the_folder() {
    let served = Served::new();
    let root = served.folder.path();
    let elsewhere = tempfile::tempdir().expect("a folder");
    let outside = elsewhere.path().join("plain");
    copy(&root.join("plain"), &outside);
    for (folder, linked) in [("config", CONFIG), ("tensors", TENSORS)] {
        copy(&root.join("plain"), &root.join(folder));
        let path = root.join(folder).join(linked);
        fs::remove_file(&path).expect("it is there");
        symlink(outside.join(linked), &path).expect("a link");
    }
    symlink(outside.join(TENSORS), root.join("file.gguf")).expect("a link");
    symlink(&outside, root.join("whole")).expect("a link");
    for path in ["config", "tensors", "file.gguf", "whole"] {
        let error = served.load("mine", path).error(400);
        assert!(message(&error).contains("lie within it"), "{path}: {error}");
        let shown = error.to_string();
        assert!(
            !shown.contains(elsewhere.path().to_str().expect("plain")),
            "{shown}"
        );
    }
}

/// As in a Hugging Face cache, where files are links to blobs beside the snapshots.
#[test]
fn links_within_the_folder_are_followed() {
    let served = Served::new();
    let root = served.folder.path();
    let snapshot = root.join("models--me--mine/snapshots/0123");
    let blobs = root.join("models--me--mine/blobs");
    fs::create_dir_all(&snapshot).expect("a folder");
    fs::create_dir_all(&blobs).expect("a folder");
    for file in [CONFIG, TENSORS] {
        fs::copy(root.join("plain").join(file), blobs.join(file)).expect("copied");
        symlink(format!("../../blobs/{file}"), snapshot.join(file)).expect("a link");
    }
    let path = "models--me--mine/snapshots/0123";
    let loaded = served.load("mine", path).expect(200);
    assert_eq!(loaded["path"], path);
    served.load("plain", "plain").expect(200);
    assert_eq!(served.answer("tiny+mine"), served.answer("tiny+plain"));
}

/// More requests than the server has threads, so that a blocked one would show.
#[test]
fn what_is_no_file_is_refused_and_nobody_waits_for_it() {
    let served = Served::new();
    let root = served.folder.path();
    for (folder, piped) in [("config", CONFIG), ("tensors", TENSORS)] {
        copy(&root.join("plain"), &root.join(folder));
        fs::remove_file(root.join(folder).join(piped)).expect("it is there");
        pipe(&root.join(folder).join(piped));
    }
    pipe(&root.join("pipe.gguf"));
    for _ in 0..200 {
        for (path, named) in [
            ("config", CONFIG),
            ("tensors", TENSORS),
            ("pipe.gguf", "pipe.gguf"),
        ] {
            let error = served.load("mine", path).error(400);
            let told = message(&error);
            assert!(
                told.contains(named) && told.contains("it is a pipe"),
                "{told}"
            );
        }
    }
    let config = fs::File::options()
        .write(true)
        .open(root.join("patterns").join(CONFIG))
        .expect("it is there");
    // The file is sparse, so it takes no disk space.
    config.set_len(1 << 40).expect("a file with a hole");
    let error = served.load("mine", "patterns").error(400);
    let told = message(&error);
    assert!(
        told.contains(CONFIG) && told.contains("1048576 bytes"),
        "{told}"
    );
    served.load("mine", "plain").expect(200);
}

#[test]
fn clients_see_no_paths_but_their_own() {
    let served = Served::new();
    let root = served.folder.path();
    let shown = root.to_str().expect("a plain path");
    let model = &served.runtime.models()[0];
    model
        .load_adapter("own", &root.join("plain"))
        .expect("a sound adapter");
    served.load("mine", "./patterns").expect(200);
    let listed = served.server.get("/v1/adapters").expect(200);
    assert!(!listed.to_string().contains(shown), "{listed}");
    assert_eq!(listed["data"][1]["path"], "plain");
    fs::write(root.join("patterns").join(TENSORS), "not tensors").expect("written");
    fs::write(root.join("wrong.gguf"), "GGUF").expect("written");
    let long = "a".repeat(5000);
    for path in ["patterns", "wrong.gguf", "missing", "a\nb\u{1b}[2J", &long] {
        let error = served.load("mine", path).error(400);
        let told = message(&error);
        assert!(!told.contains(shown) && told.len() < 1000, "{told}");
        assert!(!told.contains(|c: char| c.is_control()), "{told}");
    }
}
