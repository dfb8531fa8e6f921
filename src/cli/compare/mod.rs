//! `incant compare`: the effect of alignment, on one question or a file of prompts.
//!
//! [`Controls`] are the sampling flags, [`PromptReader`] turns texts into prompts, [`Job`] lets all arms
//! answer and score, [`table::show`] prints the report.

mod controls;
mod job;
mod prompts;
mod table;

use std::io::{self, Read};
use std::path::PathBuf;

use anyhow::{Context, bail};
use incant::analyze::{Report, page};
use incant::engine::EngineOptions;
use incant::runtime::clock::unix_time;
use incant::runtime::{Arm, Model, Runtime, default_reference};

use self::controls::Controls;
use self::job::Job;
use self::prompts::{InputPrompt, PromptReader};
use super::files::Target;
use super::output;
use crate::cli::model_args::ModelArgs;

/// Let several arms answer the same question, side by side, and score each other's answers: which
/// tokens would another arm have chosen differently?
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The question; - reads it from the standard input
    #[arg(required_unless_present = "prompts")]
    question: Option<String>,
    /// A file of prompts instead: one on each line, or, if its name ends in .jsonl,
    /// {"prompt": …} or {"messages": […]} on each
    #[arg(long, value_name = "FILE", conflicts_with = "question")]
    prompts: Option<PathBuf>,
    /// An arm that answers, MODEL[@PROFILE][+ADAPTER]; repeatable [default: of each
    /// model @base, its default profile or chat template, and its adapters]
    #[arg(long = "arm", short, value_name = "ARM")]
    arms: Vec<String>,
    /// The arm that shift is measured against [default: one with @turn, else the first]
    #[arg(long, value_name = "ARM")]
    reference: Option<String>,
    #[command(flatten)]
    models: ModelArgs,
    /// The system message, for conversations without one
    #[arg(long, short, value_name = "TEXT")]
    system: Option<String>,
    /// Take prompts verbatim, as a completion does: no turns around them
    #[arg(long, conflicts_with = "system")]
    verbatim: bool,
    #[command(flatten)]
    controls: Controls,
    /// Write the whole report as JSON; - to the standard output, instead of tables
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page that shows the whole report in a browser: one self-contained file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

impl Args {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        // Everything that needs no model is checked first.
        let mut settings = self.controls.settings()?;
        let inputs = self.input_prompts()?;
        let json = self.json.as_deref().map(Target::new).transpose()?;
        let html = self.html.as_deref().map(Target::new).transpose()?;
        if json.is_some() && json == html {
            bail!("--json and --html must be two files");
        }
        settings.command = self.command(settings.seed);

        let models = self.models.clone();
        let models = models.or_of_arms(self.arms.iter().chain(&self.reference));
        // There are no other clients: the whole job may queue.
        let options = EngineOptions {
            queue: usize::MAX / 2,
            ..EngineOptions::default()
        };
        let slots = options.slots;
        let runtime = Runtime::new();
        runtime.loaded(models.resolve(options)?.load_with_warnings()?);
        let arms = self.arms(&runtime)?;
        settings.reference = self.reference(&arms)?;

        let created = unix_time();
        let job = Job::new(&runtime, arms, inputs, &settings)?;
        let infos = job.arms();
        let prompts = job.run(slots)?;
        let report = Report::new(created, settings, infos, prompts);
        let text = serde_json::to_string(&report)?;
        if let Some(html) = &html {
            html.write(&page::report(&text))?;
        }
        if let Some(json) = &json {
            json.write(&(output::escape_json(&text) + "\n"))?;
        }
        if ![&json, &html].contains(&&Some(Target::Output)) {
            output::print(&table::show(&report))?;
        }
        Ok(())
    }

    fn input_prompts(&self) -> anyhow::Result<Vec<InputPrompt>> {
        let reader = PromptReader {
            verbatim: self.verbatim,
            system: self.system.clone(),
        };
        match (&self.prompts, self.question.as_deref()) {
            (Some(file), _) => reader.file(file),
            (None, Some("-")) => {
                let mut question = String::new();
                io::stdin()
                    .read_to_string(&mut question)
                    .context("cannot read the question")?;
                // A file may begin with a byte order mark.
                let question = question.strip_prefix('\u{feff}').unwrap_or(&question);
                Ok(vec![reader.text(question)])
            }
            (None, question) => Ok(vec![reader.text(question.unwrap_or_default())]),
        }
    }

    /// Returns the command line that repeats this one; `None` if the question is read from the
    /// standard input.
    fn command(&self, seed: u64) -> Option<String> {
        if self.question.as_deref() == Some("-") {
            return None;
        }
        let words = std::env::args_os().skip(1);
        let words: Result<Vec<String>, _> = words.map(|word| word.into_string()).collect();
        self.controls.command(&words.ok()?, seed)
    }

    fn arms(&self, runtime: &Runtime) -> anyhow::Result<Vec<Arm>> {
        let ids = match self.arms.as_slice() {
            [] => runtime
                .models()
                .iter()
                .flat_map(|model| defaults(model))
                .collect(),
            arms => arms.to_vec(),
        };
        let arms = ids.iter().map(|id| runtime.arm(id));
        Ok(arms.collect::<Result<_, _>>()?)
    }

    fn reference(&self, arms: &[Arm]) -> anyhow::Result<usize> {
        let Some(id) = &self.reference else {
            return Ok(default_reference(arms));
        };
        let typed = self.arms.iter().position(|arm| arm == id);
        match typed.or_else(|| arms.iter().position(|arm| arm.full_id() == *id)) {
            Some(place) => Ok(place),
            None => {
                let arms: Vec<String> = arms.iter().map(Arm::full_id).collect();
                bail!(
                    "--reference {id} is not among the arms ({})",
                    arms.join(", ")
                )
            }
        }
    }
}

/// Returns the default arms of a model: `@base`, its default for chat, and that with each of its
/// adapters.
fn defaults(model: &Model) -> Vec<String> {
    let id = model.id();
    let chat = match model.chat_profile() {
        Some(profile) => format!("{id}@{profile}"),
        None => id.to_owned(),
    };
    let adapters = model.adapters();
    let adapters = adapters.keys().map(|name| format!("{id}+{name}"));
    [format!("{id}@base"), chat]
        .into_iter()
        .chain(adapters)
        .collect()
}
