//! The commands `incant inspect` and `incant tokenize`.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::build::{Builder, Item};

/// An isolated folder with a small model.
struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    fn new() -> Machine {
        let machine = Machine {
            dir: tempfile::tempdir().expect("a temporary directory"),
        };
        machine.write("tiny.gguf", &tiny().bytes());
        machine
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).expect("written");
        path
    }

    fn incant(&self, args: &[&str]) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("incant"));
        command
            .args(args)
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .env("INCANT_MODELS", self.dir.path());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.incant(args).output().expect("incant starts")
    }

    /// Runs a command that must succeed, and returns its standard output.
    fn stdout(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.stdout(args)).expect("JSON")
    }
}

/// A byte-level vocabulary of a few letters, and weights for one layer.
fn tiny() -> Builder {
    let tokens = ["a", "b", "Ġ", "ab", "Ã", "©", "<|im_end|>"];
    Builder::new()
        .with("general.architecture", Item::Str("novel\u{1b}[2J"))
        .with("tokenizer.ggml.model", Item::Str("gpt2"))
        .with("tokenizer.ggml.pre", Item::Str("gpt-2"))
        .with("tokenizer.ggml.tokens", Item::Strs(&tokens))
        .with(
            "tokenizer.ggml.token_type",
            Item::I32s(&[1, 1, 1, 1, 1, 1, 3]),
        )
        .with("tokenizer.ggml.merges", Item::Strs(&["a b"]))
        .with("tokenizer.ggml.eos_token_id", Item::U32(6))
        .with("tokenizer.chat_template", Item::Str("{{ one }}\n{{ two }}"))
        .tensor("token_embd.weight", &[32, 7], 8, vec![1; 7 * 34])
        .tensor("blk.0.attn_q.weight", &[32, 4], 0, vec![0; 512])
        .tensor("blk.0.attn_norm.weight", &[32], 0, vec![0; 128])
}

#[test]
fn inspect_shows_what_a_file_holds() {
    let machine = Machine::new();
    for name in ["tiny", "./tiny.gguf"] {
        let text = machine.stdout(&["inspect", name]);
        for part in [
            "3 tensors, 384 parameters",
            "tokenizer.ggml.merges",
            "\"a\", \"b\", \"Ġ\", \"ab\"",
            "gpt2 (byte-level BPE), words cut as gpt-2",
            "7: 1 control, 6 normal",
            "end of answer  <|im_end|> 6",
            "  {{ one }}\n  {{ two }}\n",
            "is the embeddings",
            "KV unknown: architecture",
            "8  Q8_0",
        ] {
            assert!(text.contains(part), "{part:?} is missing from\n{text}");
        }
        assert!(!text.contains('\u{1b}'), "the terminal is safe");
    }
}

#[test]
fn inspect_prints_json() {
    let report = Machine::new().json(&["inspect", "tiny", "--json"]);
    assert_eq!(report["parameters"], 384);
    assert_eq!(
        report["metadata"]["tokenizer.ggml.eos_token_id"]["value"],
        6
    );
    assert_eq!(report["metadata"]["tokenizer.ggml.tokens"]["length"], 7);
    assert_eq!(report["tokenizer"]["kinds"]["control"], 1);
    assert_eq!(report["tokenizer"]["end_tokens"][0]["piece"], "<|im_end|>");
    assert_eq!(report["chat_template"], "{{ one }}\n{{ two }}");
    assert!(report["kv"]["problem"].is_string());
    assert_eq!(report["tensors"][1]["part"], "attention");
    assert_eq!(report["tensors"][1]["shape"], serde_json::json!([4, 32]));
    // 352 weights in matrices, and 32 in a vector, which stays at 32 bits.
    let bytes: Vec<u64> = report["widths"]
        .as_array()
        .unwrap()
        .iter()
        .map(|width| width["bytes"].as_u64().unwrap())
        .collect();
    assert_eq!(
        bytes,
        [352 * 4 + 128, 352 * 2 + 128, 11 * 34 + 128, 11 * 18 + 128]
    );
}

#[test]
fn a_broken_file_is_one_line_and_exit_code_1() {
    let machine = Machine::new();
    let whole = tiny().bytes();
    machine.write("cut.gguf", &whole[..whole.len() / 2]);
    machine.write("text.gguf", b"hello");
    for (name, cause) in [
        ("cut.gguf", "cut.gguf: "),
        ("text.gguf", "text.gguf: not a GGUF file"),
        ("absent.gguf", "absent.gguf"),
    ] {
        for command in [vec!["inspect", name], vec!["tokenize", "a", "-m", name]] {
            let output = machine.run(&command);
            assert_eq!(output.status.code(), Some(1), "{command:?}");
            let line = String::from_utf8(output.stderr.clone()).unwrap();
            assert_eq!(line.trim_end().lines().count(), 1, "{line}");
            assert!(line.contains(cause), "{line}");
            assert!(output.stdout.is_empty(), "{output:?}");
        }
    }
}

#[test]
fn tokenize_shows_models_side_by_side() {
    let machine = Machine::new();
    machine.write("other.gguf", &tiny().bytes());
    let args = ["tokenize", "ab", "é<|im_end|>", "-m", "tiny", "-m", "other"];
    let text = machine.stdout(&args);
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    for line in [
        vec!["tokens", "5", "5"],
        vec!["#", "id", "tiny", "id", "other"],
        vec!["1", "3", "\"ab\"", "3", "\"ab\""],
        vec!["3", "4", "bytes", "c3", "4", "bytes", "c3"],
        vec!["5", "6", "<|im_end|>", "6", "<|im_end|>"],
    ] {
        assert!(lines.contains(&line), "{line:?} is missing from\n{text}");
    }
}

#[test]
fn tokenize_prints_json() {
    let machine = Machine::new();
    let report = machine.json(&["tokenize", "ab<|im_end|>", "-m", "tiny", "--json"]);
    let model = &report["models"][0];
    assert_eq!(
        (&report["characters"], &model["count"]),
        (&12.into(), &2.into())
    );
    assert_eq!(model["characters_per_token"], 6.0);
    assert_eq!(model["tokens"][1]["kind"], "control");
    assert_eq!(model["tokens"][1]["bytes"], serde_json::json!([]));

    let args = [
        "tokenize",
        "ab<|im_end|>",
        "-m",
        "tiny",
        "--json",
        "--no-special",
    ];
    let report = machine.json(&args);
    let tokens = report["models"][0]["tokens"].as_array().unwrap();
    assert!(tokens.iter().all(|token| token["id"] != 6));
}

#[test]
fn tokenize_reads_standard_input() {
    let machine = Machine::new();
    for more in [&["-"][..], &[]] {
        let mut args = vec!["tokenize", "--json", "-m", "tiny"];
        args.extend(more);
        let mut child = machine
            .incant(&args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("incant starts");
        let mut stdin = child.stdin.take().expect("it is piped");
        stdin.write_all(b"ab ").expect("it reads");
        drop(stdin);
        let output = child.wait_with_output().expect("it ends");
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(report["text"], "ab ");
        assert_eq!(report["models"][0]["count"], 2);
    }
}
