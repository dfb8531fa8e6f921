//! `incant train`: adapters for a model, learnt from files of examples.
//!
//! [`Flags`] is what is typed, [`prepare`] makes examples of files with the arms that will
//! be served, [`open_student`] opens the model with the adapter that learns, and the
//! library's trainer does the rest.

mod answering;
mod answers;
mod flags;
mod interrupt;
mod lessons;
mod prepare;
mod progress;
mod standing;
mod student;
mod summary;

use std::collections::BTreeMap;

use anyhow::bail;
use bytesize::ByteSize;
use incant::train::RunFolder;
use incant::train::loss::{Distil, Dpo, Objective, Sft, Simpo};
use incant::train::settings::Settings;
use incant::train::trainer::{Training, train};
use serde_json::Value;

use self::flags::Flags;
use self::prepare::Prepared;
use self::progress::Progress;
use self::student::open_student;

/// Train a LoRA adapter on a model's own quantized weights.
///
/// Data are JSON lines, plain or .gz: {"messages": […]}; {"prompt", "completion"};
/// {"prompt", "chosen", "rejected"}; {"chosen", "rejected"} with whole conversations;
/// {"prompt"}; {"text"}. Prompts and answers are strings or lists of messages; an answer may
/// hold the prompt's turns before its own. Of messages with "weight": 0 nothing is learnt;
/// other keys are named and not read. All are rendered as serving does it, by the file's
/// chat template or a profile; only the assistant's words are learnt.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    method: Method,
}

#[derive(clap::Subcommand)]
enum Method {
    /// Learn answers: make what the assistant says likely; of pairs, the chosen answers
    Sft {
        #[command(flatten)]
        flags: Flags,
    },
    /// Learn preferences beside a reference: the adapter as it is at the beginning
    Dpo {
        #[command(flatten)]
        flags: Flags,
        /// How dear it is to move away from the reference
        #[arg(long, value_name = "BETA", default_value_t = 0.1, value_parser = flags::positive)]
        beta: f64,
    },
    /// Learn preferences without a reference, by the mean over an answer's tokens
    Simpo {
        #[command(flatten)]
        flags: Flags,
        /// What the difference of the answers is multiplied by
        #[arg(long, value_name = "BETA", default_value_t = 2.0, value_parser = flags::positive)]
        beta: f64,
        /// How far ahead the chosen answer should be, over beta
        #[arg(long, value_name = "RATIO", default_value_t = 0.5, value_parser = flags::not_negative)]
        gamma_ratio: f64,
    },
    /// Move a profile into an adapter: the model with the profile (--profile) answers the
    /// prompts of the data, and learns to go on like that with the bare turns (@turn)
    Distill {
        #[command(flatten)]
        flags: Flags,
        /// The most tokens of an answer
        #[arg(long, value_name = "N", default_value_t = 256)]
        answer_tokens: usize,
        /// Lead the answers away from what the prompt says whatever is asked, 0 (off) to
        /// 10, and learn the distributions that they are chosen from then: the adapter
        /// needs no guide [default: the profile's]
        #[arg(long, value_name = "WEIGHT")]
        guidance: Option<f32>,
        /// Memory that the KV of the answers may take, such as 512MiB or 4GiB [default:
        /// 1GiB, or what the longest context takes if that is more]
        #[arg(long, value_name = "SIZE")]
        kv_memory: Option<ByteSize>,
    },
}

/// What is done with the examples.
enum Task {
    /// Their answers are learnt.
    Answers(Sft),
    /// Their pairs are.
    Pairs(Box<dyn Objective>),
    /// A profile's answers to their prompts are.
    Lessons {
        objective: Distil,
        /// The most tokens of an answer.
        answer_tokens: usize,
        /// How far answers are led away from what the prompt says whatever is asked;
        /// `None` is as far as the profile wants.
        guidance: Option<f32>,
        /// What the KV of the answers may take.
        kv_memory: Option<ByteSize>,
    },
}

impl Task {
    fn objective(&self) -> &dyn Objective {
        match self {
            Task::Answers(objective) => objective,
            Task::Pairs(objective) => &**objective,
            Task::Lessons { objective, .. } => objective,
        }
    }

    /// What the KV of its answers may take; `None` is the default.
    fn kv_memory(&self) -> Option<ByteSize> {
        match self {
            Task::Lessons { kv_memory, .. } => *kv_memory,
            Task::Answers(_) | Task::Pairs(_) => None,
        }
    }

    /// The learning rate where none is given.
    fn learning_rate(&self) -> f64 {
        match self {
            Task::Answers(_) | Task::Lessons { .. } => 2e-4,
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
                let task = Task::Lessons {
                    objective: Distil,
                    answer_tokens,
                    guidance,
                    kv_memory,
                };
                (flags, task)
            }
        };
        flags.check()?;
        // What is there is known before anything is loaded or answered.
        let folder = RunFolder::open(&flags.out, flags.resume)?;
        let prepared = flags.prepare(&task, &folder)?;
        prepared.tell(&task);
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
            about: &prepared.about,
            stop: &stop,
        };
        train(&training, &mut progress)
    };
    progress.end();
    let mut outcome = outcome?;
    // The student is gone: its memory is for the model that is asked.
    if let Some(report) = &mut outcome.report
        && outcome.step == outcome.steps
    {
        let answers = &mut report.about.answers;
        let answered = prepared.questions.after(flags, answers);
        // The run itself is over, and its report is there without them.
        if let Err(error) = answered.and_then(|()| Ok(report.write(folder)?)) {
            super::output::tell(&format!("warning: no sample answers: {error:#}"));
        }
    }
    super::output::print(&summary::summary(&flags.out, &outcome))?;
    Ok(())
}

/// What makes a run what it is, by name.
type Origin = BTreeMap<String, Value>;
