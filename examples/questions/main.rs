//! Asks a running incant server the questions of `prompts/questions` on several
//! arms and prints what share of the answers passes each mechanical score.
//!
//! ```text
//! incant serve &
//! cargo run --release --example questions -- \
//!     --arm gemma-3-270m@urial --arm gemma-3-270m@turn --arm gemma-3-270m@base
//! ```
//!
//! Every answer is sampled with temperature 0 unless `--set` says otherwise, so a
//! table can be had again. `--save FILE` keeps the answers as JSON lines.

mod score;

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Parser;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use score::{Expectation, Scores};

#[derive(Parser)]
#[command(about = "Ask every arm the committed questions and score the answers")]
struct Args {
    /// Where the server listens.
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// Sent to the server as a bearer token.
    #[arg(
        long,
        value_name = "KEY",
        env = "INCANT_API_KEY",
        hide_env_values = true
    )]
    api_key: Option<String>,
    /// A model id, `MODEL[@PROFILE][+ADAPTER]`; give it again for each arm.
    #[arg(long = "arm", required = true)]
    arms: Vec<String>,
    /// A file of questions; give it again for more.
    #[arg(long, default_values = ["prompts/questions/en.toml", "prompts/questions/ja.toml"])]
    questions: Vec<PathBuf>,
    /// Only questions whose id or kind contains this.
    #[arg(long)]
    only: Option<String>,
    /// A field of every request, such as `repetition_penalty=1.1`.
    #[arg(long = "set", value_parser = field)]
    fields: Vec<(String, Value)>,
    /// How many questions are asked at once.
    #[arg(long, default_value_t = 8)]
    parallel: usize,
    /// Print each answer.
    #[arg(long)]
    show: bool,
    /// Write each answer with its scores to this file, as JSON lines.
    #[arg(long)]
    save: Option<PathBuf>,
}

fn field(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    let value = serde_json::from_str(value).map_err(|error| format!("{value}: {error}"))?;
    Ok((name.to_owned(), value))
}

/// A file of questions.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct QuestionSet {
    language: String,
    max_tokens: usize,
    question: Vec<Question>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    id: String,
    kind: String,
    system: Option<String>,
    turns: Vec<Turn>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Turn {
    ask: String,
    max_tokens: Option<usize>,
    #[serde(default)]
    expect: Expectation,
}

/// An answer, and how it came out.
struct Answered<'a> {
    question: &'a Question,
    turn: usize,
    answer: String,
    finish: String,
    tokens: u64,
    scores: Scores,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let sets: Vec<QuestionSet> = args
        .questions
        .iter()
        .map(|path| {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            toml::from_str(&text).with_context(|| path.display().to_string())
        })
        .collect::<anyhow::Result<_>>()?;
    let mut save = args.save.as_ref().map(File::create).transpose()?;
    let client = Client::new(&args);

    let mut rows = Vec::new();
    for arm in &args.arms {
        let started = Instant::now();
        let answers = client.ask_all(arm, &sets)?;
        let count = answers.len();
        eprintln!("{arm}: {count} answers in {:.0?}", started.elapsed());
        for answered in &answers {
            if args.show {
                show(arm, answered);
            }
            if let Some(file) = &mut save {
                writeln!(file, "{}", answered.to_json(arm))?;
            }
        }
        rows.extend(summarise(arm, &answers));
    }
    println!("{}", table(&rows));
    Ok(())
}

impl Args {
    fn wants(&self, question: &Question) -> bool {
        self.only
            .as_deref()
            .is_none_or(|only| question.id.contains(only) || question.kind.contains(only))
    }
}

/// Talks to the server the way any client does.
struct Client<'a> {
    agent: ureq::Agent,
    args: &'a Args,
}

impl<'a> Client<'a> {
    fn new(args: &'a Args) -> Client<'a> {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .build()
            .new_agent();
        Client { agent, args }
    }

    /// Asks every question, several at once; the answers come in the order of
    /// the questions.
    fn ask_all<'q>(&self, arm: &str, sets: &'q [QuestionSet]) -> anyhow::Result<Vec<Answered<'q>>> {
        let wanted: Vec<(&QuestionSet, &Question)> = sets
            .iter()
            .flat_map(|set| set.question.iter().map(move |question| (set, question)))
            .filter(|(_, question)| self.args.wants(question))
            .collect();
        let next = AtomicUsize::new(0);
        let work = || -> anyhow::Result<Vec<(usize, Vec<Answered<'q>>)>> {
            let mut done = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some((set, question)) = wanted.get(index) else {
                    return Ok(done);
                };
                done.push((index, self.ask(arm, set, question)?));
            }
        };
        let mut answers = Vec::new();
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..self.args.parallel.max(1))
                .map(|_| scope.spawn(work))
                .collect();
            for worker in workers {
                answers.extend(worker.join().expect("asking does not panic")?);
            }
            anyhow::Ok(())
        })?;
        answers.sort_by_key(|(index, _)| *index);
        Ok(answers.into_iter().flat_map(|(_, turns)| turns).collect())
    }

    /// Holds one conversation, the arm's own answers in it.
    fn ask<'q>(
        &self,
        arm: &str,
        set: &QuestionSet,
        question: &'q Question,
    ) -> anyhow::Result<Vec<Answered<'q>>> {
        let mut messages: Vec<Value> = Vec::new();
        if let Some(system) = &question.system {
            messages.push(json!({"role": "system", "content": system}));
        }
        let mut answered = Vec::new();
        for (turn, asked) in question.turns.iter().enumerate() {
            messages.push(json!({"role": "user", "content": asked.ask}));
            let max_tokens = asked.max_tokens.unwrap_or(set.max_tokens);
            let (answer, finish, tokens) = self
                .complete(arm, &messages, max_tokens)
                .with_context(|| format!("{arm}, question {}", question.id))?;
            messages.push(json!({"role": "assistant", "content": answer}));
            let scores = score::score(&answer, &finish, &asked.expect, &set.language);
            answered.push(Answered {
                question,
                turn,
                answer,
                finish,
                tokens,
                scores,
            });
        }
        Ok(answered)
    }

    /// One chat completion: the text, why it ended, and its length in tokens.
    fn complete(
        &self,
        arm: &str,
        messages: &[Value],
        max_tokens: usize,
    ) -> anyhow::Result<(String, String, u64)> {
        let mut body = Map::new();
        body.insert("model".into(), arm.into());
        body.insert("messages".into(), messages.into());
        body.insert("max_tokens".into(), max_tokens.into());
        body.insert("temperature".into(), 0.into());
        body.extend(self.args.fields.iter().cloned());
        let mut request = self
            .agent
            .post(format!("{}/v1/chat/completions", self.args.url))
            .header("content-type", "application/json");
        if let Some(key) = &self.args.api_key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut response = request.send(Value::Object(body).to_string())?;
        let text = response.body_mut().read_to_string()?;
        if !response.status().is_success() {
            bail!("{}: {text}", response.status());
        }
        let reply: Value = serde_json::from_str(&text)?;
        let choice = &reply["choices"][0];
        let field = |value: &Value| value.as_str().map(str::to_owned);
        let answer = field(&choice["message"]["content"]).context("no content in the reply")?;
        let finish = field(&choice["finish_reason"]).context("no finish_reason in the reply")?;
        let tokens = reply["usage"]["completion_tokens"].as_u64().unwrap_or(0);
        Ok((answer, finish, tokens))
    }
}

impl Answered<'_> {
    fn failed(&self) -> Vec<&'static str> {
        Scores::NAMES
            .into_iter()
            .zip(self.scores.values())
            .filter_map(|(name, passed)| (!passed).then_some(name))
            .collect()
    }

    fn to_json(&self, arm: &str) -> Value {
        json!({
            "arm": arm,
            "question": self.question.id,
            "turn": self.turn + 1,
            "ask": self.question.turns[self.turn].ask,
            "answer": self.answer,
            "finish_reason": self.finish,
            "tokens": self.tokens,
            "failed": self.failed(),
        })
    }
}

fn show(arm: &str, answered: &Answered) {
    let Answered {
        question,
        turn,
        answer,
        finish,
        ..
    } = answered;
    println!("──── {arm} · {} · turn {}", question.id, turn + 1);
    println!("{}\n", question.turns[*turn].ask);
    println!(
        "{answer}\n[{finish}; failed: {}]\n",
        answered.failed().join(", ")
    );
}

/// A line of the table: a name, how many answers, and a cell for each column.
type Row = (String, usize, Vec<String>);

/// One row for all of an arm's answers, and one for its second turns alone.
fn summarise(arm: &str, answers: &[Answered]) -> Vec<Row> {
    let row = |name: String, answers: &[&Answered]| {
        let count = answers.len();
        let percent = |passed: usize| format!("{}%", (passed * 100 + count / 2) / count);
        let mut cells: Vec<String> = (0..Scores::NAMES.len())
            .map(|column| {
                percent(
                    answers
                        .iter()
                        .filter(|it| it.scores.values()[column])
                        .count(),
                )
            })
            .collect();
        let all = answers
            .iter()
            .filter(|it| it.scores.values().iter().all(|&passed| passed));
        cells.push(percent(all.count()));
        let tokens: u64 = answers.iter().map(|it| it.tokens).sum();
        cells.push((tokens / count as u64).to_string());
        (name, count, cells)
    };
    let all: Vec<&Answered> = answers.iter().collect();
    let second: Vec<&Answered> = answers.iter().filter(|it| it.turn > 0).collect();
    [(arm.to_owned(), all), (format!("{arm}, turn 2"), second)]
        .into_iter()
        .filter(|(_, answers)| !answers.is_empty())
        .map(|(name, answers)| row(name, &answers))
        .collect()
}

fn table(rows: &[Row]) -> String {
    let mut table = String::from("| arm | answers |");
    for name in Scores::NAMES.into_iter().chain(["all", "tokens"]) {
        table.push_str(&format!(" {name} |"));
    }
    table.push('\n');
    table.push_str(&"| --- ".repeat(Scores::NAMES.len() + 4));
    table.push_str("|\n");
    for (name, count, cells) in rows {
        table.push_str(&format!("| {name} | {count} | {} |\n", cells.join(" | ")));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn committed() -> Vec<QuestionSet> {
        [
            include_str!("../../prompts/questions/en.toml"),
            include_str!("../../prompts/questions/ja.toml"),
        ]
        .map(|text| toml::from_str(text).unwrap())
        .into()
    }

    #[test]
    fn the_committed_questions_can_be_read_and_have_names_of_their_own() {
        let sets = committed();
        let ids: Vec<&str> = sets
            .iter()
            .flat_map(|set| &set.question)
            .map(|question| question.id.as_str())
            .collect();
        let distinct: std::collections::HashSet<&str> = ids.iter().copied().collect();
        assert_eq!(distinct.len(), ids.len());
        let kinds: std::collections::HashSet<&str> = sets
            .iter()
            .flat_map(|set| &set.question)
            .map(|question| question.kind.as_str())
            .collect();
        for kind in [
            "fact",
            "list",
            "how-to",
            "code",
            "writing",
            "math",
            "follow-up",
            "system",
            "refuse",
            "marker",
            "language",
        ] {
            assert!(kinds.contains(kind), "{kind}");
        }
        for question in sets.iter().flat_map(|set| &set.question) {
            assert!(!question.turns.is_empty(), "{}", question.id);
        }
    }

    #[test]
    fn a_misspelt_expectation_is_an_error() {
        let set = "language = \"en\"\nmax_tokens = 9\n[[question]]\nid = \"a\"\nkind = \"fact\"\n\
            turns = [{ ask = \"b\", expect = { anny = [\"c\"] } }]\n";
        assert!(toml::from_str::<QuestionSet>(set).is_err());
    }

    #[test]
    fn a_table_counts_shares_and_second_turns() {
        let sets = committed();
        let question = &sets[0].question[0];
        let answered = |turn, ends| Answered {
            question,
            turn,
            answer: String::new(),
            finish: String::new(),
            tokens: 10,
            scores: Scores {
                ends,
                clean: true,
                moves: true,
                language: true,
                refusal: true,
                speaks: true,
                task: true,
            },
        };
        let rows = summarise(
            "m@p",
            &[answered(0, true), answered(0, true), answered(1, false)],
        );
        let table = table(&rows);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(
            lines[2],
            "| m@p | 3 | 67% | 100% | 100% | 100% | 100% | 100% | 100% | 67% | 10 |"
        );
        assert!(lines[3].starts_with("| m@p, turn 2 | 1 | 0% |"), "{table}");
    }
}
