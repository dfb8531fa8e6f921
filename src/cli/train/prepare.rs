//! Turns files into training examples, with the arms that will be served.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use incant::engine::EngineOptions;
use incant::gguf::Gguf;
use incant::lora::Lora;
use incant::profile::Message;
use incant::runtime::{Arm, Guidance, GuidanceOptions, Model, PromptInput, Runtime};
use incant::train::RunFolder;
use incant::train::batches::split;
use incant::train::data::{self, Entry};
use incant::train::report::{DataFile, Part, RunFacts};
use incant::train::samples::{Examples, Render, RenderError, RenderedAnswer};
use serde_json::json;

use super::answers::Questions;
use super::flags::Flags;
use super::student::{Form, StudentOptions, on_cpu};
use super::{Origin, Task, distill_data};
use crate::cli::output::{eprint_safe, grouped};

/// The profile of bare turns.
const TURN: &str = "turn";

/// The data of a run after its preparation, when the engine that answered is gone.
pub(super) struct Prepared {
    pub(super) examples: Examples,
    pub(super) held_out: Examples,
    pub(super) student: StudentOptions,
    pub(super) origin: Origin,
    /// The description of the run in its report.
    pub(super) about: RunFacts,
    /// The prompts of sample answers before and after the run.
    pub(super) questions: Questions,
    /// A description of the teacher, if there is one.
    teacher: Option<String>,
}

/// Returns the options of the engine that answers: there are no other clients, so all requests may
/// queue.
pub(super) fn options() -> EngineOptions {
    EngineOptions {
        queue: usize::MAX / 2,
        ..EngineOptions::default()
    }
}

impl Prepared {
    /// Prints a summary of the training data.
    pub(super) fn print_summary(&self, task: &Task) {
        if let Some(teacher) = &self.teacher {
            eprint_safe(&format!("the teacher: {teacher}"));
        }
        for (what, examples) in [("learn from", &self.examples), ("hold out", &self.held_out)] {
            let count = examples.examples.len();
            let tokens = examples.examples.iter();
            let tokens = tokens.map(|example| task.objective().tokens(example));
            let tokens = tokens.sum::<usize>();
            eprintln!(
                "{} examples to {what}, {} tokens{}{}{}",
                grouped(count as u64),
                grouped(tokens as u64),
                counted(examples.truncated, "cut at --max-length"),
                counted(
                    examples.dropped,
                    "left out: nothing to learn before --max-length"
                ),
                counted(
                    examples.same,
                    "left out: 'chosen' and 'rejected' are the same tokens"
                ),
            );
        }
    }
}

fn counted(count: usize, what: &str) -> String {
    match count {
        0 => String::new(),
        count => format!(", {} {what}", grouped(count as u64)),
    }
}

impl Flags {
    /// Reads and renders all data and, for distillation, generates the answers. The engine has
    /// ended when this returns.
    pub(super) fn prepare(&self, task: &Task, folder: &RunFolder) -> anyhow::Result<Prepared> {
        // Everything that needs no model is checked first.
        let (mut entries, mut files) = read(&self.data, Part::Data)?;
        let (mut held_out, more) = read(&self.eval_data, Part::EvalData)?;
        files.extend(more);
        if self.eval_data.is_empty() {
            let (held, rest) = split(entries.len(), self.eval_share, self.seed);
            held_out = held.iter().map(|&place| entries[place].clone()).collect();
            entries = rest.iter().map(|&place| entries[place].clone()).collect();
        }

        let options = options();
        let slots = options.slots;
        let loading = self.student.models(task.kv_memory()).resolve(options)?;
        let located = &loading.located()[0];
        let (name, path) = (located.name.clone(), located.path.clone());
        let backend = loading.backend().clone();
        on_cpu(&backend)?;
        let models = loading.load_with_warnings()?;
        let model = &models[0];
        let weights = match model.fingerprint() {
            Some(known) => known,
            None => Gguf::open(&path)?.fingerprint(),
        };
        let weights = short(weights);
        let from = self
            .from
            .as_deref()
            .map(|path| Lora::read(path, model.spec()).context("--from"));
        let from = from.transpose()?;
        let profile = self.profile(task, model, from.as_ref())?;

        let runtime = Runtime::new();
        runtime.loaded(models.clone());
        let arm = |profile: Option<&str>| {
            let profile = profile.map_or_else(String::new, |profile| format!("@{profile}"));
            runtime.arm(&format!("{name}{profile}"))
        };
        let held_out_entries = held_out.clone();
        let mut teacher = None;
        let mut guided = None;
        let (examples, held_out) = match task {
            Task::Answers(_) => {
                let render = ArmRender(arm(profile.as_deref())?);
                let of =
                    |entries: &[Entry]| Examples::from_answers(entries, &render, self.max_length);
                (of(&entries)?, of(&held_out)?)
            }
            Task::Pairs(_) => {
                let render = ArmRender(arm(profile.as_deref())?);
                let of =
                    |entries: &[Entry]| Examples::from_pairs(entries, &render, self.max_length);
                (of(&entries)?, of(&held_out)?)
            }
            Task::Distill {
                answer_tokens,
                guidance,
                ..
            } => {
                let teacher_arm = arm(profile.as_deref())?;
                let options = GuidanceOptions {
                    guidance: guidance.map(Guidance::new),
                    mix: Vec::new(),
                };
                let distillation = distill_data::Distillation {
                    student: ArmRender(arm(Some(TURN))?),
                    guidance: teacher_arm.guidance_for_chat(&runtime, &options)?,
                    teacher: ArmRender(teacher_arm),
                    answer_tokens: *answer_tokens,
                    slots,
                    weights: weights.clone(),
                };
                guided = distillation.teacher_guidance();
                let id = distillation.teacher.0.id();
                teacher = Some(format!("{id}, {}", distill_data::describe(guided)));
                let all = [&entries[..], &held_out].concat();
                let mut distilled = if folder.is_resumed() && distill_data::has_stored(folder) {
                    distillation.read_stored(&all, folder)?
                } else {
                    distillation.generate(&all, folder)?
                };
                let held = distilled.split_off(entries.len());
                let of = |examples: Vec<_>| Examples::from_distillation(examples, self.max_length);
                (of(distilled), of(held))
            }
        };
        if examples.examples.is_empty() {
            bail!(
                "there is nothing to learn from within --max-length {}",
                self.max_length
            );
        }
        let recorded = match task {
            Task::Distill { .. } => Some(TURN.to_owned()),
            Task::Answers(_) | Task::Pairs(_) => profile.clone(),
        };
        let asks = self.samples > 0;
        let questions = Questions::new(&held_out_entries, self.samples, &name, recorded.as_deref());
        let answers = if asks {
            questions.before(&runtime, self.from.as_deref())
        } else {
            Ok(Vec::new())
        };
        let answers = answers.unwrap_or_else(|error| {
            eprint_safe(&format!("warning: no sample answers: {error:#}"));
            Vec::new()
        });
        let about = RunFacts {
            command: command(),
            files,
            answers,
        };
        let form = match from {
            Some(lora) => Form::Of(lora),
            None => Form::New {
                rank: self.rank,
                scale: self.scale(),
                targets: self.targets.0.clone(),
            },
        };
        let mut origin: Origin = form.origin();
        origin.insert("model".to_owned(), json!(name));
        // Another file may have the same name.
        origin.insert("weights".to_owned(), json!(weights));
        origin.insert("profile".to_owned(), json!(profile));
        if let Some(guided) = guided {
            // Stored as strings, since no double equals 0.3.
            let named = [("guidance", guided.weight), ("plausible", guided.plausible)];
            let named = named.map(|(name, value)| (name.to_owned(), json!(value.to_string())));
            origin.extend(named);
        }
        Ok(Prepared {
            examples,
            held_out,
            student: StudentOptions {
                name,
                path,
                backend,
                form,
                profile: recorded,
                seed: self.seed,
                recompute: self.recompute,
            },
            origin,
            about,
            questions,
            teacher,
        })
    }

    /// Returns the factor of the adapter's product.
    fn scale(&self) -> f64 {
        if self.rslora {
            self.alpha / (self.rank as f64).sqrt()
        } else {
            self.alpha / self.rank as f64
        }
    }

    /// Returns the profile that is trained with, or distilled; `None` is the file's chat template.
    fn profile(
        &self,
        task: &Task,
        model: &Model,
        from: Option<&Lora>,
    ) -> anyhow::Result<Option<String>> {
        if let Some(profile) = &self.profile {
            return Ok(Some(profile.clone()));
        }
        if let Task::Distill { .. } = task {
            let default = model.default_profile();
            let default = default.context("--profile must name the profile to distill")?;
            return Ok(Some(default.to_owned()));
        }
        let recorded = from.and_then(Lora::profile).map(str::to_owned);
        let turn = || model.template().is_none().then(|| TURN.to_owned());
        Ok(recorded.or_else(turn))
    }
}

/// Returns the first digits of a hash, which are enough to identify a person's files.
pub(super) fn short(hash: [u8; 32]) -> String {
    hash[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the command line.
fn command() -> String {
    let words = std::env::args_os().skip(1);
    let words = words.map(|word| word.to_string_lossy().into_owned());
    let words: Vec<String> = words.collect();
    // A word with a zero byte cannot be typed.
    let typed = shlex::try_join(words.iter().map(String::as_str));
    format!("incant {}", typed.unwrap_or_else(|_| words.join(" ")))
}

/// Reads all lines of some files, and describes the files. Reports the first unusable line, with
/// the number of others.
fn read(files: &[PathBuf], part: Part) -> anyhow::Result<(Vec<Entry>, Vec<DataFile>)> {
    let mut entries = Vec::new();
    let mut read = Vec::new();
    let mut failed = Vec::new();
    let mut unread = Vec::new();
    for file in files {
        let records = data::read(file)?;
        if records.lines.is_empty() {
            bail!("{}: there are no lines in it", file.display());
        }
        read.push(DataFile {
            path: file.clone(),
            part,
            records: records.lines.len(),
            sha256: records.sha256,
        });
        if !records.ignored_keys.is_empty() {
            unread.push((file, records.ignored_keys));
        }
        for line in records.lines {
            match line {
                Ok(entry) => entries.push(entry),
                Err(error) => failed.push(error),
            }
        }
    }
    if failed.is_empty() {
        for (file, keys) in unread {
            eprint_safe(&named_unread(file, &keys));
        }
    }
    let more = failed.len().saturating_sub(1);
    match (failed.into_iter().next(), more) {
        (None, _) => Ok((entries, read)),
        (Some(first), 0) => Err(first.into()),
        (Some(first), more) => bail!("{first} (and {more} more such lines)"),
    }
}

/// Names the keys of a file that are ignored, so that nobody expects them to have an effect.
fn named_unread(file: &Path, keys: &BTreeSet<String>) -> String {
    /// The number of keys that are named.
    const MAX_NAMED: usize = 12;
    let named: Vec<String> = keys
        .iter()
        .take(MAX_NAMED)
        .map(|key| printable(key))
        .collect();
    let more = match keys.len().saturating_sub(MAX_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let file = file.display();
    format!("{file}: nothing is read from {}{more}", named.join(", "))
}

/// Escapes a key for the terminal.
fn printable(key: &str) -> String {
    key.escape_debug().to_string()
}

/// Renders examples with an arm.
pub(super) struct ArmRender(pub(super) Arm);

impl Render for ArmRender {
    fn render_answer(&self, conversation: &[Message]) -> Result<RenderedAnswer, RenderError> {
        let found = self.0.answered(conversation);
        let found = found.map_err(|error| RenderError(error.to_string()))?;
        Ok(RenderedAnswer {
            prompt: whole(found.prompt),
            answer: found.answer,
        })
    }

    fn render_prompt(&self, conversation: &[Message]) -> Result<Vec<u32>, RenderError> {
        let prompt = self.0.chat(conversation);
        prompt
            .map(whole)
            .map_err(|error| RenderError(error.to_string()))
    }

    fn tokenize(&self, text: &str) -> Vec<u32> {
        let prompt = self.0.completion(&PromptInput::Text(text.to_owned()));
        let eos = self.0.tokenizer().eos();
        whole(prompt).into_iter().chain(eos).collect()
    }
}

/// Returns all tokens of a prompt.
fn whole(prompt: incant::runtime::Prompt) -> Vec<u32> {
    let prefix = prompt.prefix.iter().flat_map(|prefix| &prefix.ids);
    prefix.copied().chain(prompt.ids).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_cannot_be_used_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.jsonl");
        std::fs::write(&path, "{\"prompt\": \"a\"}\n{}\n{}\n{\"no\": 1}\n").unwrap();
        let message = read(std::slice::from_ref(&path), Part::Data)
            .unwrap_err()
            .to_string();
        assert!(message.contains("mine.jsonl:2: its keys"), "{message}");
        assert!(message.ends_with("(and 2 more such lines)"), "{message}");
        std::fs::write(&path, "\n").unwrap();
        let message = read(&[path], Part::Data).unwrap_err().to_string();
        assert!(message.ends_with("there are no lines in it"), "{message}");
    }

    #[test]
    fn keys_that_nothing_is_read_from_are_told_in_one_line() {
        let keys = |count: usize| (0..count).map(|n| format!("k{n:02}")).collect();
        let message = |keys: &BTreeSet<String>| named_unread(Path::new("mine.jsonl"), keys);
        assert_eq!(
            message(&keys(2)),
            "mine.jsonl: nothing is read from k00, k01"
        );
        assert!(message(&keys(14)).ends_with("k11 and 2 more"));
        let odd = message(&["a\n\u{1b}[2J".to_owned()].into());
        assert!(!odd.contains(['\n', '\u{1b}']), "{odd}");
    }
}
