//! Evaluates arms on the questions of `prompts/questions`: prints the share of answers that passes
//! each mechanical measure, with its 95% confidence interval.
//!
//! ```text
//! cargo run --release --example questions
//! cargo run --release --example questions -- --temperature 0.7
//! cargo run --release --example questions -- --set dev --arm gemma-3-270m@turn
//! ```
//!
//! Without flags it serves the default model in this process and prints the tables of
//! docs/compare-and-evaluate.md: every arm, the test questions, temperature 0. The tables are
//! written to the standard output, all else to the standard error.

mod arms;
mod client;
mod expect;
mod form;
mod language;
mod measures;
mod refusals;
mod repeats;
mod run;
mod score;
mod server;
mod set;
mod shares;
mod table;
mod text;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use serde_json::{Value, json};

use arms::Served;
use client::Client;
use measures::Results;
use refusals::Refusals;
use run::Asking;
use server::ServerArgs;
use set::{FOLDER, Language, Part, QuestionSet};

/// Ask arms the committed questions and score the answers
#[derive(Parser)]
struct Args {
    /// The address of a running server to ask, instead of one in this process
    #[arg(long)]
    url: Option<String>,
    /// The key of the server at --url
    #[arg(
        long,
        value_name = "KEY",
        env = "INCANT_API_KEY",
        hide_env_values = true
    )]
    api_key: Option<String>,
    #[command(flatten)]
    server: ServerArgs,
    /// The arm to ask: MODEL[@PROFILE][+ADAPTER]; repeatable [default: @base, @turn, the urial
    /// profiles and @assistant of the first model, and its adapters]
    #[arg(long = "arm", value_name = "ARM")]
    arms: Vec<String>,
    /// The arm that the others are compared with, which is asked as well [default: MODEL@urial]
    #[arg(long, value_name = "ARM")]
    baseline: Option<String>,
    /// A profile whose text no arm may copy, whether it has that profile or not
    #[arg(long, value_name = "PROFILE")]
    copies_of: Option<String>,
    /// The part of the questions to ask
    #[arg(long, value_enum, default_value_t = Part::Test)]
    set: Part,
    /// Ask only questions whose class or id contains this text
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// The temperature of every answer; the seed is always the same
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// A field of every request, such as repetition_penalty=1.1; repeatable
    #[arg(long = "field", value_name = "NAME=VALUE", value_parser = field)]
    fields: Vec<(String, Value)>,
    /// The number of questions asked at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    parallel: u16,
    /// Show each answer on the standard error
    #[arg(long)]
    show: bool,
    /// Write each answer with its scores to this file, as JSON lines
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Write all figures to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn field(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    let value = serde_json::from_str(value).map_err(|error| format!("{value}: {error}"))?;
    Ok((name.to_owned(), value))
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let sets = args.sets()?;
    let refusals = Path::new(FOLDER).join("refusals.toml");
    let refusals = std::fs::read_to_string(&refusals)
        .map_err(anyhow::Error::from)
        .and_then(|text| Refusals::parse(&text))
        .with_context(|| refusals.display().to_string())?;
    let create = |path: &PathBuf| File::create(path).with_context(|| path.display().to_string());
    let mut save = args.save.as_ref().map(create).transpose()?;
    let json = args.json.as_ref().map(create).transpose()?;

    let parallel = usize::from(args.parallel);
    let server = match args.url {
        Some(_) => None,
        None => Some(args.server.start(parallel)?),
    };
    let (url, key) = match &server {
        Some(server) => (server.url.clone(), Some(server.key.clone())),
        None => (args.url.clone().unwrap_or_default(), args.api_key.clone()),
    };
    let client = Client::new(url, key, args.temperature, &args.fields);
    let served = Served::by(&client)?;
    let mut arms = served.choose(&args.arms)?;
    let baseline = served.baseline(args.baseline.as_ref())?;
    if let Some(id) = baseline.as_ref().filter(|id| !arms.contains(id)) {
        arms.insert(0, id.clone());
    }

    let asking = Asking {
        client: &client,
        served: &served,
        refusals: &refusals,
        copies_of: args.copies_of.as_ref(),
        parallel,
    };
    let mut results: Vec<Vec<Results>> = sets.iter().map(|_| Vec::new()).collect();
    for arm in &arms {
        let started = Instant::now();
        for (set, results) in sets.iter().zip(&mut results) {
            let answers = asking.ask_all(arm, set)?;
            for answer in &answers {
                if args.show {
                    eprintln!("{answer}");
                }
                if let Some(file) = &mut save {
                    writeln!(file, "{}", answer.to_json())?;
                }
            }
            results.push(run::results(served.variant(arm, set.language), &answers));
        }
        eprintln!("{arm}: answered in {:.0?}", started.elapsed());
    }

    let mut figures = Vec::new();
    for (set, results) in sets.iter().zip(&results) {
        let baseline = baseline.as_ref().map(|id| served.variant(id, set.language));
        let baseline = results.iter().find(|it| Some(&it.arm) == baseline.as_ref());
        print_tables(set, results, baseline);
        let arms: Vec<Value> = results.iter().map(|it| it.to_json(baseline)).collect();
        figures.push(json!({
            "language": set.language,
            "questions": set.questions.len(),
            "baseline": baseline.map(|it| &it.arm),
            "arms": arms,
        }));
    }
    if let Some(file) = json {
        let part = match args.set {
            Part::Dev => "dev",
            Part::Test => "test",
        };
        let all = json!({"set": part, "fields": client.fields(), "languages": figures});
        serde_json::to_writer_pretty(file, &all)?;
    }
    Ok(())
}

impl Args {
    /// Returns the sets with the selected questions; sets without any are left out.
    fn sets(&self) -> anyhow::Result<Vec<QuestionSet>> {
        let mut sets = Vec::new();
        for language in Language::ALL {
            let mut set = QuestionSet::read(self.set, language)?;
            if let Some(text) = &self.only {
                set.retain(text);
            }
            if !set.questions.is_empty() {
                sets.push(set);
            }
        }
        anyhow::ensure!(!sets.is_empty(), "no question's class or id contains that");
        Ok(sets)
    }
}

fn print_tables(set: &QuestionSet, results: &[Results], baseline: Option<&Results>) {
    let language = set.language.name();
    println!("{language}, in percent with 95% intervals:\n");
    println!("{}", table::measures(results, baseline));
    if let Some(baseline) = baseline {
        println!("Gains are in points over `{}`.\n", baseline.arm);
    }
    println!("{language}, the task by class:\n");
    println!("{}", table::classes(results));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_flags_it_makes_the_published_table() {
        let args = Args::parse_from(["questions"]);
        assert_eq!(args.set, Part::Test);
        assert_eq!(args.temperature, 0.0);
        assert_eq!(args.parallel, 8);
        assert!(args.url.is_none() && args.arms.is_empty() && args.fields.is_empty());
        let languages: Vec<Language> = args.sets().unwrap().iter().map(|it| it.language).collect();
        assert_eq!(languages, Language::ALL);
    }

    #[test]
    fn only_keeps_classes_and_ids() {
        let args = Args::parse_from(["questions", "--only", "ja-fact"]);
        let sets = args.sets().unwrap();
        assert_eq!(sets.len(), 1);
        assert!(sets[0].questions.iter().all(|it| it.id.contains("ja-fact")));
        let args = Args::parse_from(["questions", "--only", "sounds-harmful"]);
        assert_eq!(args.sets().unwrap().len(), 2);
        assert!(
            Args::parse_from(["questions", "--only", "none"])
                .sets()
                .is_err()
        );
    }

    #[test]
    fn fields_are_json() {
        assert_eq!(field("top_p=0.5"), Ok(("top_p".into(), json!(0.5))));
        assert!(field("top_p").is_err() && field("top_p=x").is_err());
    }
}
