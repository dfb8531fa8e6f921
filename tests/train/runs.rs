//! Complete runs of `incant train`, on a small model, over the shipped data sets.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use incant::train::metrics::{Evaluation, Record};

use crate::support::{model, wait_until};

/// Runs in a folder of their own.
struct Runs(tempfile::TempDir);

impl Runs {
    fn new() -> Runs {
        Runs(tempfile::tempdir().expect("a folder"))
    }

    fn out(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A run with `--out name`.
    fn command(&self, name: &str, method: &str, args: &[&str]) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("incant"));
        command
            .args(["train", method, "--no-prefix-cache", "--model"])
            .arg(model("smollm2-135m-instruct"))
            .args(["--out", name])
            .args(args)
            .current_dir(self.0.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs to the end; returns the first and last evaluations on held-out examples.
    #[track_caller]
    fn run(&self, name: &str, method: &str, args: &[&str]) -> (Evaluation, Evaluation) {
        let output = self.command(name, method, args).output();
        let output = output.expect("incant starts");
        assert!(output.status.success(), "{output:?}");
        let log = fs::read_to_string(self.out(name).join("metrics.jsonl")).expect("a log");
        let mut found =
            log.lines()
                .filter_map(|line| match serde_json::from_str(line).expect("a record") {
                    Record::Evaluation(found) => Some(found),
                    Record::Step(_) => None,
                });
        let first = found.next().expect("an evaluation");
        (first, found.next_back().expect("another"))
    }
}

/// The path of a shipped file.
fn shipped(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("prompts/training");
    folder.join(name).to_str().expect("UTF-8").to_owned()
}

/// Writes the first lines of a shipped file.
fn lines(runs: &Runs, name: &str, count: usize) -> String {
    let text = fs::read_to_string(shipped(name)).expect("it is there");
    let some: String = text
        .lines()
        .take(count)
        .map(|line| format!("{line}\n"))
        .collect();
    let path = runs.out(name);
    fs::write(&path, some).expect("it is new");
    path.to_str().expect("UTF-8").to_owned()
}

#[test]
fn preferences_are_learnt_from_where_answers_were_learnt() {
    let (runs, pairs) = (Runs::new(), shipped("pairs.jsonl"));
    let data = ["--data", &pairs, "--eval-share", "0.25", "--seed", "4"];
    let few = [&data[..], &["--batch-size", "4", "--steps", "6"]].concat();
    let (before, after) = runs.run("sft", "sft", &few);
    assert!(after.loss < 0.8 * before.loss, "{before:?} {after:?}");

    // The reference is the initial adapter: nothing is gained before the first step.
    for method in ["dpo", "simpo"] {
        let more = ["--from", "sft", "--learning-rate", "1e-4"];
        let (before, after) = runs.run(method, method, &[&few[..], &more].concat());
        let preference = |found: &Evaluation| found.preference.expect("there are pairs");
        if method == "dpo" {
            assert!(
                (before.loss - std::f64::consts::LN_2).abs() < 1e-6,
                "{before:?}"
            );
            assert_eq!(preference(&before).mean_margin, 0.0);
            assert_eq!(preference(&before).ties, preference(&before).pairs);
            assert!(preference(&after).accuracy >= 0.75, "{after:?}");
        }
        assert!(after.loss < before.loss, "{method}: {before:?} {after:?}");
        let (first, last) = (preference(&before), preference(&after));
        assert!(last.mean_margin > first.mean_margin, "{method}");
        assert!(last.accuracy >= first.accuracy, "{method}: {last:?}");
    }
}

#[test]
fn a_profile_moves_into_an_adapter() {
    let runs = Runs::new();
    let (questions, held_out) = (
        lines(&runs, "questions.jsonl", 6),
        lines(&runs, "held-out.jsonl", 2),
    );
    let (before, after) = runs.run(
        "mine",
        "distill",
        &[
            "--data",
            &questions,
            "--eval-data",
            &held_out,
            "--profile",
            "urial",
            "--answer-tokens",
            "12",
            "--steps",
            "6",
            "--batch-size",
            "3",
            "--learning-rate",
            "1e-3",
        ],
    );
    assert!(
        before.loss > 0.0 && after.loss < 0.8 * before.loss,
        "{before:?} {after:?}"
    );
}

#[test]
fn a_guided_profile_moves_into_an_adapter_that_needs_no_guide() {
    let runs = Runs::new();
    let (questions, held_out) = (
        lines(&runs, "questions.jsonl", 4),
        lines(&runs, "held-out.jsonl", 1),
    );
    let args = [
        "--data",
        &questions,
        "--eval-data",
        &held_out,
        "--profile",
        "urial",
        "--answer-tokens",
        "8",
        "--steps",
        "4",
        "--batch-size",
        "4",
        "--learning-rate",
        "1e-3",
    ];
    let guided = [&args[..], &["--guidance", "0.5"]].concat();
    let (before, after) = runs.run("mine", "distill", &guided);
    assert!(
        before.loss > 0.0 && after.loss < 0.9 * before.loss,
        "{before:?} {after:?}"
    );
    let page = fs::read_to_string(runs.out("mine/report.html")).expect("a page");
    assert!(page.contains("guidance"), "it says how the teacher was led");

    // Each token of an answer has the distribution that it was sampled from.
    let answers = fs::read_to_string(runs.out("mine/answers.jsonl")).expect("answers");
    assert_eq!(answers.lines().count(), 5);
    for line in answers.lines() {
        let kept: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let list = |name: &str| kept[name].as_array().expect("a list").clone();
        let (answer, targets) = (list("answer"), list("targets"));
        assert_eq!(answer.len(), targets.len());
        for (token, target) in answer.iter().zip(&targets) {
            let target = target.as_array().expect("a list");
            assert!(target.iter().any(|pair| pair[0] == *token), "{line}");
            let sum: f64 = target.iter().filter_map(|pair| pair[1].as_f64()).sum();
            assert!((sum - 1.0).abs() < 1e-5, "{line}");
        }
    }

    // The answers are not reused for a teacher without guidance, or with another one.
    for other in ["0", "0.25"] {
        let other = [&args[..], &["--guidance", other, "--resume"]].concat();
        let refused = runs.command("mine", "distill", &other).output();
        let told = String::from_utf8(refused.expect("incant starts").stderr).expect("UTF-8");
        assert!(told.contains("has an answer with guidance 0.5"), "{told}");
    }
}

#[cfg(unix)]
fn send_sigterm(run: &Child) {
    let told = Command::new("kill")
        .args(["-TERM", &run.id().to_string()])
        .status();
    assert!(told.expect("kill is there").success());
}

#[cfg(unix)]
#[test]
fn a_run_that_was_ended_and_killed_goes_on_to_the_same_weights() {
    let (runs, pairs) = (Runs::new(), shipped("pairs.jsonl"));
    let args = [
        "--data",
        &pairs,
        "--eval-share",
        "0",
        "--steps",
        "8",
        "--batch-size",
        "2",
        "--save-every",
        "1",
    ];
    let start = |more: &[&str]| {
        let mut command = runs.command("broken", "sft", &[&args[..], more].concat());
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        command.spawn().expect("incant starts")
    };
    let is_saved = |step: usize| {
        runs.out("broken")
            .join(format!("checkpoint-{step}"))
            .exists()
    };

    // After SIGTERM it saves a checkpoint and prints how to resume.
    let run = start(&[]);
    wait_until("a first checkpoint", || is_saved(1));
    send_sigterm(&run);
    let ended = run.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert!(
        ended.status.success() && said.contains("--resume"),
        "{ended:?}"
    );
    assert!(!runs.out("broken/adapter_model.safetensors").exists());

    // After SIGKILL it has the last saved checkpoint.
    let mut run = start(&["--resume"]);
    wait_until("a later checkpoint", || is_saved(5));
    run.kill().expect("it runs");
    run.wait().expect("it is gone");
    assert!(!runs.out("broken/adapter_model.safetensors").exists());
    let ended = start(&["--resume"]).wait_with_output().expect("it ends");
    assert!(ended.status.success(), "{ended:?}");

    let whole = runs.command("whole", "sft", &args).output();
    assert!(whole.expect("incant starts").status.success());
    let weights = |name: &str| {
        let path = runs.out(name).join("adapter_model.safetensors");
        fs::read(path).expect("an adapter")
    };
    assert!(weights("broken") == weights("whole"), "to the last bit");
}

/// Arguments of a small run over a few pairs.
const SMALL: [&str; 14] = [
    "--eval-share",
    "0",
    "--steps",
    "3",
    "--batch-size",
    "2",
    "--save-every",
    "1",
    "--rank",
    "1",
    "--targets",
    "q_proj",
    "--seed",
    "5",
];

#[cfg(unix)]
#[test]
fn a_second_run_in_a_folder_is_refused_and_a_dead_one_is_in_nobodys_way() {
    let (runs, pairs) = (Runs::new(), shipped("pairs.jsonl"));
    let args = [&["--data", &pairs][..], &SMALL].concat();
    let more = [&args[..], &["--resume"]].concat();
    let mut long = args.clone();
    long[5] = "1000000";
    let mut first = runs.command("mine", "sft", &long);
    let mut first = first
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("incant starts");
    wait_until("a checkpoint", || runs.out("mine/checkpoint-1").exists());
    for args in [&args, &more] {
        let second = runs.command("mine", "sft", args).output();
        let second = second.expect("incant starts");
        let told = String::from_utf8_lossy(&second.stderr).into_owned();
        assert_eq!(second.status.code(), Some(1), "{told}");
        assert!(
            told.starts_with("error: another training run is writing to mine;"),
            "{told}"
        );
        assert_eq!(told.lines().count(), 1, "{told}");
    }
    first.kill().expect("it runs");
    first.wait().expect("it is gone");
    let third = runs.command("mine", "sft", &more).output();
    let told = String::from_utf8_lossy(&third.expect("incant starts").stderr).into_owned();
    // It has the lock of the folder now, and detects that the run differs.
    assert!(told.contains("'steps' was 1000000 and is 3"), "{told}");
    assert!(!runs.out("mine/.lock").exists());
}

/// Limits the size of written files to `bytes`, as on a disk with little space.
#[cfg(unix)]
fn limited(command: &Command, bytes: usize) -> Command {
    // POSIX counts in units of 512 bytes, bash in units of 1024.
    let script = format!(
        "trap '' XFSZ; ulimit -f {} && exec \"$@\"",
        bytes.div_ceil(1024)
    );
    let mut limited = Command::new("bash");
    limited.args(["-c", &script, "bash"]);
    limited.arg(command.get_program()).args(command.get_args());
    limited.current_dir(command.get_current_dir().expect("a folder"));
    limited.stdin(Stdio::null());
    limited
}

#[cfg(unix)]
#[test]
fn a_run_that_cannot_be_saved_goes_on_and_leaves_nothing_half_done() {
    let (runs, pairs) = (Runs::new(), shipped("pairs.jsonl"));
    let args = [&["--data", &pairs][..], &SMALL].concat();
    // There is space for the adapter (138 kB), not for a checkpoint's state (415 kB).
    let command = runs.command("tight", "sft", &args);
    let ended = limited(&command, 300_000).output().expect("bash starts");
    let told = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(1), "{told}");
    assert!(
        told.contains("trainer.safetensors") && told.contains("training continues"),
        "{told}"
    );
    assert!(
        told.contains("the adapter itself was written, and there is no checkpoint"),
        "{told}"
    );
    let left = fs::read_dir(runs.out("tight")).expect("a folder");
    let left = left.map(|entry| entry.expect("an entry").file_name());
    let mut left: Vec<String> = left
        .map(|name| name.into_string().expect("UTF-8"))
        .collect();
    left.sort();
    let expected = [
        "adapter_config.json",
        "adapter_model.safetensors",
        "metrics.jsonl",
        "report.html",
        "report.json",
    ];
    assert_eq!(left, expected);

    let whole = runs.command("whole", "sft", &args).output();
    assert!(whole.expect("incant starts").status.success());
    let weights = |name: &str| {
        let path = runs.out(name).join("adapter_model.safetensors");
        fs::read(path).expect("an adapter")
    };
    assert!(weights("tight") == weights("whole"), "no step was lost");
}

#[test]
fn a_report_says_what_was_run_on_what_and_what_is_said_before_and_after() {
    let runs = Runs::new();
    let (questions, held_out) = (
        lines(&runs, "questions.jsonl", 3),
        lines(&runs, "held-out.jsonl", 2),
    );
    let args = [
        "--data",
        &questions,
        "--eval-data",
        &held_out,
        "--profile",
        "urial",
        "--answer-tokens",
        "4",
        "--steps",
        "2",
        "--learning-rate",
        "1e-3",
        "--samples",
        "2",
    ];
    let output = runs.command("mine", "distill", &args).output();
    let output = output.expect("incant starts");
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("5 prompts to answer"), "{said}");
    let report = fs::read(runs.out("mine/report.json")).expect("a report");
    let report: serde_json::Value = serde_json::from_slice(&report).expect("JSON");
    let command = report["command"].as_str().expect("a command");
    assert!(command.starts_with("incant train distill "), "{command}");
    assert!(command.contains("--answer-tokens 4"), "{command}");
    let files = report["files"].as_array().expect("files");
    assert_eq!(files.len(), 2);
    assert_eq!(
        (&files[0]["records"], &files[0]["part"]),
        (&3.into(), &"data".into())
    );
    assert_eq!(
        (&files[1]["records"], &files[1]["part"]),
        (&2.into(), &"eval-data".into())
    );
    assert_eq!(files[1]["sha256"].as_str().map(str::len), Some(64));
    let answers = report["answers"].as_array().expect("answers");
    assert_eq!(answers.len(), 2);
    for answer in answers {
        let said = |name: &str| answer[name].as_str().expect("a text").to_owned();
        assert!(said("prompt").ends_with(['?', '.']), "{answer}");
        assert!(!said("before").is_empty() && !said("after").is_empty());
    }
    let page = fs::read_to_string(runs.out("mine/report.html")).expect("a page");
    assert!(page.contains("held-out prompts") && page.contains("SHA-256"));
}
