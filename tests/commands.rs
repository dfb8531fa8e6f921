//! The command line: flags, output, and refusals.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use portable_pty::{CommandBuilder, native_pty_system};
use serde_json::{Value, json};

use crate::catalog::{file_bytes, manifest_text};
use crate::server::program::Program;
use crate::server::support::{CHAT, MODEL, in_company, shared};
use crate::support::hub::FakeHub;
use crate::support::model;

fn incant(args: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("incant"));
    command
        .args(args)
        .env_remove("INCANT_API_KEY")
        .stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    incant(args).output().expect("incant starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn a_server_that_others_can_reach_without_a_key_says_how_to_get_one() {
    let _company = in_company();
    let remedy = |line: &Value| {
        let message = line["message"].as_str().unwrap_or_default();
        line["level"] == "WARN" && message.contains("asks for no key")
    };
    let open = Program::listening(&["--host", "0.0.0.0"], &[]);
    let warning = open.early.iter().find(|line| remedy(line));
    let message = warning.expect("a warning")["message"].to_string();
    assert!(message.contains("INCANT_API_KEY") && message.contains("--api-key-file"));
    for (args, key) in [
        (
            &["--host", "0.0.0.0"][..],
            &[("INCANT_API_KEY", "secret")][..],
        ),
        (&["--host", "127.0.0.2"], &[]),
    ] {
        let closed = Program::listening(args, key);
        assert!(!closed.early.iter().any(remedy), "{args:?}");
    }
}

#[test]
fn the_banner_says_where_the_page_is_and_how_to_chat() {
    let _company = in_company();
    let mut child = incant(&[
        "serve", "--port", "0", "--host", "0.0.0.0", "--device", "cpu",
    ])
    .args(["--no-prefix-cache", "--model"])
    .arg(model("smollm2-135m-instruct"))
    .stderr(Stdio::piped())
    .spawn()
    .expect("incant starts");
    let lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
    let mut banner = Vec::new();
    for line in lines.map_while(Result::ok) {
        let is_last = line.starts_with("warning: ");
        banner.push(line);
        if is_last {
            break;
        }
    }
    _ = child.kill();
    _ = child.wait();
    let told = banner.join("\n");
    let base = banner
        .iter()
        .find_map(|line| line.strip_prefix("listening on "))
        .unwrap_or_else(|| panic!("{told}"));
    assert!(base.starts_with("http://127.0.0.1:"), "{base}");
    assert!(told.contains(&format!("in a browser: {base}/\n")), "{told}");
    assert!(
        told.contains(&format!("incant chat --url {base}\n")),
        "{told}"
    );
    assert!(told.contains("try:\n  curl "), "{told}");
    assert!(told.contains("asks for no key"), "{told}");
}

#[test]
fn a_question_can_be_asked_of_a_running_server() {
    let _company = in_company();
    let url = shared().url();
    let ask = |more: &[&str]| {
        let args = [
            "ask",
            "Hi",
            "--url",
            &url,
            "--max-tokens",
            "6",
            "--temperature",
            "0",
        ];
        stdout(&run(&[&args[..], more].concat()))
    };
    let whole: Value = serde_json::from_str(&ask(&["--json"])).expect("JSON");
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(whole["model"], MODEL);
    let tokens = whole["usage"]["completion_tokens"].as_u64();
    assert!(
        tokens.is_some_and(|tokens| (1..=6).contains(&tokens)),
        "{whole}"
    );
    let content = whole["choices"][0]["message"]["content"].as_str();
    assert_eq!(ask(&[]), format!("{}\n", content.expect("a text")));
    assert_eq!(ask(&["--arm", MODEL]), ask(&[]));

    let slash = format!("{url}/v1/");
    let output = run(&["ask", "Hi", "--url", &slash, "--arm", "nobody"]);
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains("404") && told.contains("'nobody' does not exist"),
        "{told}"
    );
    let output = run(&["ask", "Hi", "--url", &url, "--threads", "2"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn a_model_that_is_loaded_for_it_answers_with_the_same_json() {
    let _company = in_company();
    let path = model("smollm2-135m-instruct").display().to_string();
    let args = [
        "ask",
        "Hi",
        "--json",
        "--max-tokens",
        "3",
        "--device",
        "cpu",
    ];
    let more = [
        "--no-prefix-cache",
        "--system",
        "Be brief.",
        "--model",
        &path,
    ];
    let whole: Value = serde_json::from_str(&stdout(&run(&[&args[..], &more].concat()))).unwrap();
    assert_eq!(whole["object"], "chat.completion");
    assert!(
        whole["choices"][0]["message"]["content"].is_string(),
        "{whole}"
    );
    assert_eq!(whole["usage"]["completion_tokens"], 3);
}

#[test]
fn who_names_no_arm_that_exists_is_told_the_nearest_ones() {
    let body =
        json!({"model": "gemma-3-270m-urial", "messages": [{"role": "user", "content": "Hi"}]});
    let error = shared().post(CHAT, &body).error(404);
    let message = error["message"].as_str().expect("a text");
    let (_, arms) = message.split_once("; there are ").expect(message);
    assert!(arms.starts_with("gemma-3-270m"), "{message}");
    assert!(arms.contains("gemma-3-270m@urial"), "{message}");
    assert!(arms.split(", ").count() <= 12, "{message}");
    assert!(arms.contains(" more"), "{message}");
    let body =
        json!({"model": "gemma-3-270m@urail", "messages": [{"role": "user", "content": "Hi"}]});
    let error = shared().post(CHAT, &body).error(404);
    let message = error["message"].as_str().expect("a text");
    assert!(message.contains("(profiles: urial"), "{message}");
    // The error is short even if the name is long.
    let body =
        json!({"model": "x".repeat(1 << 20), "messages": [{"role": "user", "content": "Hi"}]});
    let error = shared().post(CHAT, &body).error(404);
    assert!(error["message"].as_str().expect("a text").len() < 2000);
}

/// Returns the flags that the help of a command lists.
fn flags(command: &[&str]) -> Vec<String> {
    let help = stdout(&run(&[command, &["--help"]].concat()));
    let words = help.split_whitespace();
    let flags = words.filter_map(|word| word.strip_prefix("--"));
    flags
        .map(|flag| {
            flag.trim_end_matches(|c: char| !c.is_alphanumeric())
                .to_owned()
        })
        .collect()
}

#[test]
fn commands_list_no_flags_that_they_have_no_use_for() {
    for method in ["sft", "dpo", "simpo", "distill"] {
        let listed = flags(&["train", method]);
        for flag in ["adapter", "default-profile", "context", "parallel"] {
            assert!(!listed.iter().any(|it| it == flag), "{method} --{flag}");
        }
        for flag in ["model", "device", "threads", "profile-dir", "yes"] {
            assert!(listed.iter().any(|it| it == flag), "{method} --{flag}");
        }
        let answers = method == "distill";
        assert_eq!(
            listed.iter().any(|it| it == "kv-memory"),
            answers,
            "{method}"
        );
    }
    let output = run(&[
        "train",
        "sft",
        "--data",
        "a",
        "--out",
        "b",
        "--adapter",
        "c=d",
    ]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn a_size_that_is_none_is_told_with_an_example() {
    let output = run(&["serve", "--kv-memory", "lots"]);
    assert_eq!(output.status.code(), Some(2));
    let told = text(&output.stderr);
    assert!(
        told.starts_with(
            "error: invalid value 'lots' for '--kv-memory <SIZE>': expected a size in bytes, \
             such as 512MiB or 4GiB\n"
        ),
        "{told}"
    );
}

#[test]
fn a_folder_of_profiles_that_is_not_there_is_told_once() {
    let output = run(&["serve", "--port", "0", "--profile-dir", "/nowhere/at/all"]);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    let line = told.lines().find(|line| line.starts_with("error: "));
    let line = line.unwrap_or_else(|| panic!("{told}"));
    assert!(
        line.contains("--profile-dir: cannot read /nowhere/at/all: "),
        "{line}"
    );
    assert_eq!(line.matches("os error").count(), 1, "{line}");
}

#[test]
fn a_profile_is_begun_and_checked() {
    let folder = tempfile::tempdir().expect("a folder");
    let in_folder = |args: &[&str]| {
        let mut command = incant(args);
        command.current_dir(folder.path());
        command.output().expect("incant starts")
    };
    let told = stdout(&in_folder(&["profile", "new", "own"]));
    assert!(told.contains("own.jinja is written"), "{told}");
    let told = stdout(&in_folder(&["profile", "check", "own.jinja"]));
    assert!(told.contains("own.jinja: good; @own"), "{told}");
    assert!(told.contains("  | How do I keep bread fresh?\n"), "{told}");

    let path = folder.path().join("own.jinja");
    let source = fs::read_to_string(&path).expect("it is there");
    fs::write(&path, format!("{source}{{# mine #}}")).expect("it is writable");
    let again = in_folder(&["profile", "new", "own"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("own.jinja is there already"));
    assert!(
        fs::read_to_string(&path)
            .expect("it is there")
            .ends_with("{# mine #}")
    );
    for name in ["base", "A b", "../x"] {
        let refused = in_folder(&["profile", "new", name]);
        assert_eq!(refused.status.code(), Some(1), "{name}");
    }

    let broken = source
        .replace("title = \"own\"\n", "")
        .replace("shots = 1\n", "")
        .replace("language = \"en\"", "language = \"english\"")
        .replace("temperature = 0.0", "temperature = 9");
    fs::write(folder.path().join("broken.jinja"), broken).expect("it is writable");
    let output = in_folder(&["profile", "check", "own.jinja", "broken.jinja"]);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    for problem in [
        "broken.jinja:1: the front matter is missing `title`",
        "broken.jinja:1: the front matter is missing `shots`",
        "broken.jinja:7: language \"english\"",
        "sampling.temperature is 9",
        "error: 1 of 2 profiles cannot be served",
    ] {
        assert!(told.contains(problem), "{told}");
    }
    assert!(text(&output.stdout).contains("own.jinja: good"));
    let output = in_folder(&["profile", "check", "nowhere.jinja"]);
    assert!(text(&output.stderr).contains("cannot read nowhere.jinja"));
}

/// Runs the program in a terminal where the user types `answer`; returns the screen contents,
/// and whether it succeeded.
fn in_terminal(home: &Path, hub: &str, args: &[&str], answer: &str) -> (String, bool) {
    let pair = native_pty_system()
        .openpty(portable_pty::PtySize::default())
        .expect("the system has terminals");
    let mut command = CommandBuilder::new(assert_cmd::cargo::cargo_bin!("incant"));
    command.args(args);
    command.cwd(home);
    command.env("INCANT_MODELS", home.join("models"));
    command.env("HF_ENDPOINT", hub);
    command.env_remove("HF_HUB_OFFLINE");
    let mut child = pair.slave.spawn_command(command).expect("incant starts");
    drop(pair.slave);
    let mut keys = pair.master.take_writer().expect("nobody has it");
    let mut screen = pair.master.try_clone_reader().expect("it is open");
    keys.write_all(answer.as_bytes()).expect("it is open");
    let mut shown = Vec::new();
    // At the end the terminal is closed, which reads as an error.
    _ = screen.read_to_end(&mut shown);
    let ended = child.wait().expect("it ends");
    (text(&shown), ended.success())
}

#[test]
fn every_command_asks_by_one_rule_before_it_downloads() {
    let bytes = file_bytes();
    let folder = tempfile::tempdir().expect("a folder");
    let models = folder.path().join("models");
    fs::create_dir(&models).expect("it is new");
    fs::write(models.join("tiny.toml"), manifest_text(&bytes)).expect("it is writable");
    let commands: [&[&str]; 4] = [
        &["pull", "tiny"],
        &["serve", "--port", "0", "--model", "tiny"],
        &["chat", "--model", "tiny"],
        &["ask", "Hi", "--model", "tiny"],
    ];
    // A user who declines the terms gets no model.
    let server = FakeHub::new(&bytes, &[]);
    for command in commands {
        let (shown, ended_well) = in_terminal(folder.path(), &server.endpoint, command, "n\n");
        assert!(shown.contains("Licence: MIT"), "{shown}");
        assert!(
            shown.contains("Download tiny, 300.00 kB, under these terms? [Y/n]"),
            "{shown}"
        );
        assert!(
            shown.contains("was not downloaded") && !ended_well,
            "{shown}"
        );
    }
    assert!(server.requests().is_empty());
    // With --yes, and without a terminal, a line reports that the download begins.
    let begins = "Downloading tiny, 300.00 kB, under these terms";
    let yes = ["pull", "tiny", "--yes"];
    let (shown, ended_well) = in_terminal(folder.path(), &server.endpoint, &yes, "");
    assert!(shown.contains(begins) && ended_well, "{shown}");
    for command in commands {
        _ = fs::remove_file(models.join("tiny.gguf"));
        // The file is not a model, so all commands except the first end with an error.
        let output = incant(command)
            .current_dir(folder.path())
            .env("INCANT_MODELS", &models)
            .env("HF_ENDPOINT", &server.endpoint)
            .env_remove("HF_HUB_OFFLINE")
            .output()
            .expect("incant starts");
        let told = text(&output.stderr);
        assert!(told.contains(begins), "{told}");
        assert!(!told.contains("[Y/n]"), "{told}");
        assert!(models.join("tiny.gguf").exists(), "{told}");
    }
}
