//! The unmodified lm-evaluation-harness with our server's tokenizer: its results through HTTP
//! equal those of the model itself.

use std::fs;
use std::path::Path;
use std::process::Command;

use incant::exec::Executor;
use incant::gguf::Gguf;
use incant::text::{Special, Tokenizer};
use serde_json::Value;

use crate::golden::{argmax, log_softmax, score};
use crate::server::support::{MODEL, alone, shared};
use crate::support::{self, python_env, subjects};

/// The version of the harness on the package index.
const HARNESS: &str = "lm_eval[api]==0.4.13";

/// The maximum difference between a sum of log-probabilities and the model's own. With AMX
/// tiles, rounding depends on how prompts are divided, hence the second bound.
const TOLERANCE: f64 = 1e-3;

#[test]
fn lm_evaluation_harness_finds_what_the_model_says() {
    let python = python_env(&[HARNESS]);
    let tasks = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/lm_eval");
    let out = tempfile::tempdir().expect("a folder");
    let arguments = format!(
        "model={MODEL}@base,base_url={}/v1/completions,tokenizer_backend=remote,max_retries=1",
        shared().url()
    );
    let mut command = Command::new(python);
    command
        // The tasks name their data relative to this folder.
        .current_dir(&tasks)
        .args(["-m", "lm_eval", "--model", "local-completions"])
        .args(["--model_args", &arguments])
        .args(["--tasks", "capitals_choice,capitals_answer"])
        .args(["--include_path", ".", "--log_samples", "--output_path"])
        .arg(out.path())
        .env("HF_HOME", out.path().join("cache"))
        .envs([("HF_HUB_OFFLINE", "1"), ("HF_DATASETS_OFFLINE", "1")]);
    let output = {
        let _alone = alone();
        command.output().expect("the interpreter starts")
    };
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complained}");

    let mut model = Direct::load();
    let documents = fs::read_to_string(tasks.join("capitals.jsonl")).expect("the data");
    let documents = documents.lines().count();

    let mut best = 0;
    let choices = samples(out.path(), "capitals_choice");
    assert_eq!(choices.len(), documents);
    for sample in &choices {
        let ours: Vec<f64> = arguments_of(sample)
            .map(|(text, choice)| model.likelihood(text, choice.as_str().expect("a text")))
            .collect();
        assert_eq!(ours.len(), 4, "{sample}");
        for (index, ours) in ours.iter().enumerate() {
            let theirs = sample["resps"][index][0][0].as_str().expect("a number");
            let theirs: f64 = theirs.parse().expect("a number");
            let bound = TOLERANCE.max(f64::from(subjects::native().between_batches));
            assert!(
                (ours - theirs).abs() <= bound,
                "{ours}, not {theirs}: {sample}"
            );
        }
        let likeliest = ours.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        let likeliest = likeliest.expect("four of them").0;
        let right = likeliest as u64 == sample["doc"]["answer"].as_u64().expect("a number");
        assert_eq!(sample["acc"].as_f64(), Some(f64::from(right)), "{sample}");
        best += usize::from(right);
    }
    // Otherwise the scores would be those of texts that are meaningless to the model.
    assert!(best > documents / 2, "{best} of {documents} right");

    let answers = samples(out.path(), "capitals_answer");
    assert_eq!(answers.len(), documents);
    for sample in &answers {
        let (text, _) = arguments_of(sample).next().expect("one request");
        let ours = model.answer(text, "\n", 8);
        assert_eq!(sample["resps"][0][0], ours.as_str(), "{sample}");
    }
}

/// Returns the harness's records of a task's documents.
fn samples(folder: &Path, task: &str) -> Vec<Value> {
    let named = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(&format!("samples_{task}_"))
    };
    let folders = fs::read_dir(folder).expect("it wrote a folder").flatten();
    let files = folders
        .filter_map(|folder| fs::read_dir(folder.path()).ok())
        .flat_map(|files| files.flatten().map(|file| file.path()));
    let file = files.into_iter().find(|path| named(path)).expect("samples");
    let lines = fs::read_to_string(file).expect("text");
    let sample = |line: &str| serde_json::from_str(line).expect("JSON");
    lines.lines().map(sample).collect()
}

/// Returns the context of each request for a document, and the requested continuation.
fn arguments_of(sample: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let requests = sample["arguments"].as_object().expect("requests");
    requests.values().map(|request| {
        let text = request["arg_0"].as_str().expect("a text");
        (text, &request["arg_1"])
    })
}

/// The model without engine and server.
struct Direct {
    executor: Box<dyn Executor>,
    tokenizer: Tokenizer,
}

impl Direct {
    fn load() -> Direct {
        let gguf = Gguf::open(&support::model(MODEL)).expect("the model opens");
        Direct {
            executor: subjects::native().load(&gguf),
            tokenizer: Tokenizer::from_gguf(&gguf).expect("the tokenizer loads"),
        }
    }

    /// Computes the log-likelihood of `choice` after `text`.
    fn likelihood(&mut self, text: &str, choice: &str) -> f64 {
        let context = self.tokenizer.encode(text, Special::Parse);
        let whole = self
            .tokenizer
            .encode(&format!("{text}{choice}"), Special::Parse);
        let chosen = whole
            .strip_prefix(&context[..])
            .expect("nothing merges across a word's end");
        let rows = score(self.executor.as_mut(), &context, chosen);
        let scored = rows.iter().zip(chosen);
        scored.map(|(row, &id)| log_softmax(row, id)).sum()
    }

    /// Returns the greedy continuation of `text`, up to `stop` or `most` tokens.
    fn answer(&mut self, text: &str, stop: &str, most: usize) -> String {
        let mut ids = self.tokenizer.encode(text, Special::Parse);
        let begin = ids.len();
        while ids.len() < begin + most {
            // The scored token does not affect the row that predicts it.
            let rows = score(self.executor.as_mut(), &ids, &[0]);
            let next = argmax(&rows[0]);
            if self.tokenizer.end_tokens().contains(&next) {
                break;
            }
            ids.push(next);
        }
        let answer = self.tokenizer.decode(&ids[begin..], false);
        let end = answer.find(stop).unwrap_or(answer.len());
        answer[..end].to_owned()
    }
}
