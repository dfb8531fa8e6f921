//! `incant train`: trains LoRA adapters for a model from files of examples (SFT, DPO, SimPO,
//! distillation).
//!
//! [`Flags`] are the command's arguments, [`prepare`] turns files into examples with the arms that
//! will be served, [`open_student`] opens the model with the adapter to train, and the library's
//! trainer does the rest.

mod answers;
mod distill_data;
mod flags;
mod interrupt;
mod prepare;
mod progress;
mod progress_bar;
mod student;
mod summary;
mod teacher_progress;

use std::collections::BTreeMap;

use anyhow::bail;
use bytesize::ByteSize;
use incant::train::RunFolder;
use incant::train::loss::{Distill, Dpo, Objective, Sft, Simpo};
use incant::train::settings::Settings;
use incant::train::trainer::{Training, train};
use serde_json::Value;

use self::flags::Flags;
use self::prepare::Prepared;
use self::progress::Progress;
use self::student::open_student;

/// Train a LoRA adapter on a model's own quantized weights.
///
/// The data are JSON Lines, plain or .gz: {"messages": […]}; {"prompt", "completion"}; {"prompt",
/// "chosen", "rejected"}; {"chosen", "rejected"} with whole conversations; {"prompt"}; {"text"}.
/// Prompts and answers are strings or lists of messages; an answer may contain the prompt's turns
/// before its own. Messages with "weight": 0 are not trained on; other keys are reported and
/// ignored. Conversations are rendered as in serving, by the file's chat template or a profile;
/// only the assistant's messages are trained on.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    method: Method,
}

#[derive(clap::Subcommand)]
enum Method {
    /// Supervised fine-tuning: train on the assistant's answers; of pairs, on the chosen answers
    Sft {
        #[command(flatten)]
        flags: Flags,
    },
    /// Direct preference optimization, relative to a reference: the adapter as it is at the
    /// beginning
    Dpo {
        #[command(flatten)]
        flags: Flags,
        /// The strength of the penalty for moving away from the reference
        #[arg(long, value_name = "BETA", default_value_t = 0.1, value_parser = flags::positive)]
        beta: f64,
    },
    /// Preference optimization without a reference, by the mean log-probability of an answer's
    /// tokens
    Simpo {
        #[command(flatten)]
        flags: Flags,
        /// The factor of the difference between the answers' mean log-probabilities
        #[arg(long, value_name = "BETA", default_value_t = 2.0, value_parser = flags::positive)]
        beta: f64,
        /// The target margin of the chosen answer, divided by beta
        #[arg(long, value_name = "RATIO", default_value_t = 0.5, value_parser = flags::not_negative)]
        gamma_ratio: f64,
    },
    /// Distill a profile into an adapter: the model with the profile (--profile) answers the
    /// prompts of the data, and learns to answer like that with the bare turns (@turn)
    Distill {
        #[command(flatten)]
        flags: Flags,
        /// The maximum number of tokens of an answer
        #[arg(long, value_name = "N", default_value_t = 256)]
        answer_tokens: usize,
        /// Classifier-free guidance: lead the teacher's answers away from the part of the prompt
        /// that does not depend on the question, 0 (off) to 10, and learn the resulting
        /// distributions: the adapter needs no guide [default: the profile's]
        #[arg(long, value_name = "WEIGHT")]
        guidance: Option<f32>,
        /// The memory for the KV of the answers, such as 512MiB or 4GiB [default: 1GiB, or the KV
        /// of the longest context if that is larger]
        #[arg(long, value_name = "SIZE")]
        kv_memory: Option<ByteSize>,
    },
}

/// The training method with its options.
enum Task {
    /// Supervised fine-tuning on answers.
    Answers(Sft),
    /// Preference optimization on pairs.
    Pairs(Box<dyn Objective>),
    /// Distillation of a profile's answers.
    Distill {
        objective: Distill,
        /// The maximum number of tokens of an answer.
        answer_tokens: usize,
        /// The weight of the guidance of answers; `None` is the profile's default.
        guidance: Option<f32>,
        /// The memory for the KV of the answers.
        kv_memory: Option<ByteSize>,
    },
}

impl Task {
    fn objective(&self) -> &dyn Objective {
        match self {
            Task::Answers(objective) => objective,
            Task::Pairs(objective) => &**objective,
            Task::Distill { objective, .. } => objective,
        }
    }

    /// Returns the memory for the KV of its answers; `None` is the default.
    fn kv_memory(&self) -> Option<ByteSize> {
        match self {
            Task::Distill { kv_memory, .. } => *kv_memory,
            Task::Answers(_) | Task::Pairs(_) => None,
        }
    }

    /// Returns the default learning rate.
    fn learning_rate(&self) -> f64 {
        match self {
            Task::Answers(_) | Task::Distill { .. } => 2e-4,
            Task::Pairs(_) => 5e-6,
        }
    }
}

impl Args {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let (flags, task) = match self.method {
            Method::Sft { flags } => (flags, Task::Answers(Sft)),
            Method::Dpo { flags, beta } => (flags, Task::Pairs(Box::new(Dpo { beta }))),
            Method::Simpo {
                flags,
                beta,
                gamma_ratio,
            } => (flags, Task::Pairs(Box::new(Simpo { beta, gamma_ratio }))),
            Method::Distill {
                flags,
                answer_tokens: 0,
                ..
            } => bail!(
                "--answer-tokens must be at least 1 (--out {})",
                flags.out.display()
            ),
            Method::Distill {
                flags,
                answer_tokens,
                guidance,
                kv_memory,
            } => {
                let task = Task::Distill {
                    objective: Distill,
                    answer_tokens,
                    guidance,
                    kv_memory,
                };
                (flags, task)
            }
        };
        flags.check()?;
        // An existing run is found before anything is loaded or answered.
        let folder = RunFolder::open(&flags.out, flags.resume)?;
        let prepared = flags.prepare(&task, &folder)?;
        prepared.print_summary(&task);
        let settings = flags.settings(&task, prepared.origin.clone());
        run(&flags, &task, &prepared, &settings, &folder)
    }
}

fn run(
    flags: &Flags,
    task: &Task,
    prepared: &Prepared,
    settings: &Settings,
    folder: &RunFolder,
) -> anyhow::Result<()> {
    let stop = interrupt::flag()?;
    let mut progress = Progress::new();
    let outcome = {
        let student = open_student(&prepared.student)?;
        let training = Training {
            student: &*student,
            objective: task.objective(),
            examples: &prepared.examples.examples,
            held_out: &prepared.held_out.examples,
            settings,
            folder,
            facts: &prepared.about,
            stop: &stop,
        };
        train(&training, &mut progress)
    };
    progress.end();
    let mut outcome = outcome?;
    // The student was dropped: its memory is free for the model that answers.
    if let Some(report) = &mut outcome.report
        && outcome.step == outcome.steps
    {
        let answers = &mut report.facts.answers;
        let answered = prepared.questions.after(flags, answers);
        // The run itself has ended, and its report exists without them.
        if let Err(error) = answered.and_then(|()| Ok(report.write(folder)?)) {
            super::output::eprint_safe(&format!("warning: no sample answers: {error:#}"));
        }
    }
    super::output::print(&summary::summary(&flags.out, &outcome))?;
    Ok(())
}

/// The settings that a resumed run must have in common with its beginning, by name.
type Origin = BTreeMap<String, Value>;
