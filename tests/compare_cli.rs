//! The command `incant compare`.

use std::fs;
use std::process::{Command, Output, Stdio};

use incant::analyze::{Report, ShiftClass, page};

use crate::support::{model, subjects};

/// Runs `incant compare` on a small model in a folder of its own.
fn compare(args: &[&str]) -> (tempfile::TempDir, Output) {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(
        folder.path().join("prompts.txt"),
        "Name a colour.\n\nName a fruit.\n",
    )
    .expect("it is new");
    fs::write(
        folder.path().join("wrong.jsonl"),
        "{\"prompt\": \"x\"}\n{\"text\": \"x\"}\n",
    )
    .expect("it is new");
    let instructions = subjects::exact().tier().expect("it is native");
    let output = Command::new(assert_cmd::cargo::cargo_bin!("incant"))
        .env("INCANT_ISA", instructions.name())
        .args(["compare", "--no-prefix-cache", "--model"])
        .arg(model("smollm2-135m-instruct"))
        .args(args)
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .output()
        .expect("incant starts");
    (folder, output)
}

/// Returns the standard output of a successful run.
#[track_caller]
fn good(output: &Output) -> &str {
    assert!(output.status.success(), "{output:?}");
    str::from_utf8(&output.stdout).expect("UTF-8")
}

/// Returns the single line of a failed run.
#[track_caller]
fn error(args: &[&str]) -> String {
    let (_folder, output) = compare(args);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = str::from_utf8(&output.stderr).expect("UTF-8");
    let line = text.strip_suffix('\n').expect("a line");
    assert!(
        !line.contains('\n') && output.stdout.is_empty(),
        "{output:?}"
    );
    line.to_owned()
}

const MODEL: &str = "smollm2-135m-instruct";

#[test]
fn an_arm_would_always_have_said_what_it_said() {
    let (_folder, output) = compare(&[
        "Name a colour.",
        "--arm",
        MODEL,
        "--arm",
        MODEL,
        "--max-tokens",
        "8",
        "--json",
        "-",
    ]);
    let report: Report = serde_json::from_str(good(&output)).expect("a report");
    let summary = report.summary.expect("there is analysis");
    assert_eq!(summary.pairs.len(), 2);
    for pair in &summary.pairs {
        assert!(pair.tokens > 0);
        assert_eq!(pair.shares.unshifted, 1.0);
        assert_eq!((pair.kl, pair.kl_reverse), (0.0, 0.0));
        assert_eq!(pair.logprob, pair.own_logprob);
    }
    let [first, second] = report.prompts[0].answers.as_slice() else {
        panic!("not two answers")
    };
    assert_eq!(first.text, second.text);
}

#[test]
fn the_table_says_what_the_files_hold() {
    let (folder, output) = compare(&[
        "--prompts",
        "prompts.txt",
        "--max-tokens",
        "8",
        "--temperature",
        "0,1",
        "-n",
        "2",
        "--seed",
        "7",
        "--json",
        "report.json",
        "--html",
        "report.html",
    ]);
    let table = good(&output);
    let text = fs::read_to_string(folder.path().join("report.json")).expect("it is written");
    let report: Report = serde_json::from_str(&text).expect("a report");
    let html = fs::read_to_string(folder.path().join("report.html")).expect("it is written");
    assert!(
        html == page::report(text.trim_end()),
        "the page holds another report"
    );
    let ids: Vec<&str> = report.arms.iter().map(|arm| arm.id.as_str()).collect();
    assert_eq!(ids, [format!("{MODEL}@base"), MODEL.to_owned()]);
    assert_eq!(report.prompts.len(), 2);
    for prompt in &report.prompts {
        let order: Vec<_> = prompt
            .answers
            .iter()
            .map(|answer| (answer.arm, answer.temperature, answer.index))
            .collect();
        let of_arm = |arm| [(arm, 0.0, 0), (arm, 0.0, 1), (arm, 1.0, 0), (arm, 1.0, 1)];
        assert_eq!(order, [of_arm(0), of_arm(1)].concat());
        for answer in &prompt.answers {
            let tokens = answer.tokens.as_ref().expect("there is analysis");
            assert_eq!(tokens.len(), answer.usage.completion_tokens);
            let bytes: Vec<u8> = tokens
                .iter()
                .flat_map(|token| token.bytes.clone())
                .collect();
            assert_eq!(String::from_utf8_lossy(&bytes), answer.text);
        }
    }
    let summary = report.summary.expect("there is analysis");
    let pair = summary
        .pairs
        .iter()
        .find(|pair| pair.arm == 1)
        .expect("it was scored");
    let greedy = report.prompts.iter().flat_map(|prompt| &prompt.answers);
    let greedy = greedy.filter(|answer| answer.arm == 1 && answer.temperature == 0.0);
    let tokens: Vec<_> = greedy
        .flat_map(|answer| answer.tokens.iter().flatten())
        .collect();
    let shifted = tokens
        .iter()
        .filter(|token| token.scores[0].class == ShiftClass::Shifted);
    let share = shifted.count() as f64 / tokens.len() as f64;
    assert_eq!((pair.tokens, pair.shares.shifted), (tokens.len(), share));
    let row = table
        .lines()
        .find(|line| line.starts_with(&format!("  {MODEL}  @base  ")))
        .unwrap_or_else(|| panic!("{table}"));
    assert!(row.contains(&format!(" {:.1}% ", 100.0 * share)), "{row}");
    assert!(row.contains(&format!(" {:.3} ", pair.kl)), "{row}");
    assert!(table.contains("95% intervals over 2 prompts"), "{table}");
    assert_eq!(report.sampling.len(), 4);
    for row in &report.sampling {
        let diversity = format!(" {:.2} ", row.diversity);
        assert!(table.contains(&diversity), "{diversity} in {table}");
    }
}

#[test]
fn the_command_line_in_a_report_repeats_it() {
    let sampled = [
        "Name a colour.",
        "--arm",
        MODEL,
        "--temperature",
        "1",
        "--max-tokens",
        "8",
        "--no-analysis",
        "--json",
        "-",
    ];
    let (_folder, output) = compare(&sampled);
    let first: Report = serde_json::from_str(good(&output)).expect("a report");
    assert_eq!((first.summary, first.sampling), (None, Vec::new()));
    let command = first.settings.command.expect("it was typed");
    let seed = format!(" --seed {}", first.settings.seed);
    assert!(
        command.starts_with("incant compare ") && command.ends_with(&seed),
        "{command}"
    );
    let mut again = sampled.to_vec();
    let seed = first.settings.seed.to_string();
    again.extend(["--seed", &seed]);
    let (_folder, output) = compare(&again);
    let second: Report = serde_json::from_str(good(&output)).expect("a report");
    assert_eq!(
        second.prompts[0].answers[0].text,
        first.prompts[0].answers[0].text
    );
}

#[test]
fn several_prompts_to_one_arm_show_its_answers() {
    let args = ["--prompts", "prompts.txt", "--arm", MODEL];
    let (_folder, output) = compare(&[&args[..], &["--max-tokens", "8"]].concat());
    let shown = good(&output);
    let headings = ["Prompt 1: Name a colour.\n", "\nPrompt 2: Name a fruit.\n"];
    for heading in headings {
        let (_, rest) = shown.split_once(heading).expect("a heading");
        let answer = rest.strip_prefix(&format!("\n{MODEL}\n  "));
        assert!(answer.is_some(), "{shown}");
    }
}

#[test]
fn what_cannot_be_compared_is_told_in_one_line() {
    let told = [
        (vec!["x", "-t", "3"], "error: --temperature must be 0 to 2"),
        (
            vec!["x", "--reference", "nobody"],
            "error: --reference nobody is not among the arms \
             (smollm2-135m-instruct@base, smollm2-135m-instruct)",
        ),
        (
            vec!["--prompts", "wrong.jsonl"],
            "error: wrong.jsonl, line 2: there is neither 'prompt' nor 'messages'",
        ),
        (
            vec!["--prompts", "none.txt"],
            "error: none.txt: No such file or directory (os error 2)",
        ),
        (
            vec!["x", "--json", "no/report.json"],
            "error: no/report.json: there is no folder no",
        ),
        (
            vec!["x", "--json", "-", "--html", "-"],
            "error: --json and --html must be two files",
        ),
        (
            vec!["--prompts", "prompts.txt", "--context", "20"],
            "error: prompt 1: the prompt has 34 tokens for smollm2-135m-instruct, the context 20",
        ),
    ];
    for (args, line) in told {
        assert_eq!(error(&args), line);
    }
    let unknown = error(&["x", "--arm", "smollm2-135m-instruct@nobody"]);
    assert!(unknown.contains("has no profile 'nobody'"), "{unknown}");
}
