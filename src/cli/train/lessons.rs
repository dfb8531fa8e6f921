//! What a profile teaches: its answers to prompts, made by the engine.

use std::cell::RefCell;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use futures_util::{StreamExt, TryStreamExt, stream};
use incant::engine::{Event, GenerateRequest};
use incant::profile::Message;
use incant::runtime::{Partners, Say, Wanted};
use incant::text::decode::StreamDecoder;
use incant::text::stop::StopMatcher;
use incant::train::data::{Entry, Place};
use incant::train::samples::{Lesson, Render, prompt_of};
use incant::train::{RunFolder, Target};
use serde::{Deserialize, Serialize};

use super::answering::Answering;
use super::prepare::ArmRender;
use crate::cli::output::{grouped, tell};

/// The file in a run's folder that keeps a teacher's answers.
const FILE: &str = "answers.jsonl";

/// The most tokens of a target. Where there are more plausible ones, none of them is likely.
const MOST_TOKENS: usize = 64;

/// Who answers, and how.
pub(super) struct School {
    /// Who will learn: the bare turns.
    pub(super) student: ArmRender,
    /// Who answers: the profile.
    pub(super) teacher: ArmRender,
    /// Who has a say in its answers beside it: at most its guide.
    pub(super) say: Say,
    /// The most tokens of an answer.
    pub(super) answer_tokens: usize,
    /// How many answers are made at once.
    pub(super) slots: usize,
    /// What tells the weights apart that answer.
    pub(super) weights: String,
}

/// An answer as it is kept.
#[derive(Serialize, Deserialize)]
struct Kept {
    file: PathBuf,
    line: usize,
    student: Vec<u32>,
    teacher: Vec<u32>,
    answer: Vec<u32>,
    /// What tells the weights apart that answered; answers of older versions do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weights: Option<String>,
    /// There are targets where the teacher was guided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    guided: Option<Guided>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    targets: Option<Vec<Target>>,
}

/// How a teacher is led away from what its prompt says whatever is asked.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Guided {
    /// How far.
    pub(super) weight: f32,
    /// How likely a token must be, as a share of the most likely one's probability.
    pub(super) plausible: f32,
}

impl fmt::Display for Guided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Guided { weight, plausible } = self;
        write!(f, "guidance {weight} (plausible {plausible})")
    }
}

/// Who answered, and how, as it is kept.
#[derive(Clone, Debug, Default, PartialEq)]
struct Made {
    weights: Option<String>,
    guided: Option<Guided>,
}

/// In words, for people.
pub(super) fn named(guided: Option<Guided>) -> String {
    guided.map_or_else(|| "no guidance".to_owned(), |guided| guided.to_string())
}

/// What a teacher said.
#[derive(Default)]
struct Answer {
    tokens: Vec<u32>,
    /// One for each token if it was guided, or else none.
    targets: Vec<Target>,
    /// How many of the targets lack plausible tokens.
    cut: usize,
}

impl Answer {
    /// Takes in the log-probabilities of the tokens, best first, of which one was chosen.
    fn add_target(&mut self, logprobs: &[(u32, f32)]) {
        let kept = &logprobs[..logprobs.len().min(MOST_TOKENS)];
        self.cut += usize::from(kept.len() < logprobs.len());
        let weights = kept
            .iter()
            .map(|&(id, logprob)| (id, f64::from(logprob).exp()));
        let sum: f64 = weights.clone().map(|(_, weight)| weight).sum();
        let target = weights.map(|(id, weight)| (id, (weight / sum) as f32));
        // A token that is all but impossible has a probability of 0 by now.
        let target = target.filter(|&(_, probability)| probability > 0.0);
        self.targets.push(target.collect());
    }
}

impl School {
    /// How the teacher is guided.
    pub(super) fn guided(&self) -> Option<Guided> {
        let guidance = self.say.guidance()?;
        Some(Guided {
            weight: guidance.weight,
            plausible: guidance.plausible,
        })
    }

    fn made(&self) -> Made {
        Made {
            weights: Some(self.weights.clone()),
            guided: self.guided(),
        }
    }

    /// The teacher's answers to the prompts of all entries, in their order, which are then
    /// kept in the run's folder. Blocks.
    pub(super) fn lessons(
        &self,
        entries: &[Entry],
        folder: &RunFolder,
    ) -> anyhow::Result<Vec<(Place, Lesson)>> {
        // All prompts first: one that does not fit is known before hours of work.
        let asked = entries.iter().map(|entry| {
            let (place, lesson, messages) = self.ask(entry)?;
            let partners = self.partners(messages);
            let partners = partners.with_context(|| place.to_string())?;
            Ok((place, lesson, messages, partners))
        });
        let asked = asked.collect::<anyhow::Result<Vec<_>>>()?;
        let guided = self.guided();
        let answering = RefCell::new(Answering::new(asked.len(), self.answer_tokens));
        // A guide takes a slot, too.
        let at_once = match guided {
            Some(_) => self.slots.div_ceil(2),
            None => self.slots,
        };
        let answers = stream::iter(asked)
            .map(|(place, lesson, messages, partners)| {
                let answering = &answering;
                async move {
                    let answer = self.answer(messages, &partners, answering).await;
                    let answer = answer.with_context(|| place.to_string())?;
                    answering.borrow_mut().answered(answer.tokens.len());
                    let lesson = Lesson {
                        answer: answer.tokens,
                        targets: guided.map(|_| answer.targets),
                        ..lesson
                    };
                    Ok::<_, anyhow::Error>((answer.cut, (place, lesson)))
                }
            })
            .buffered(at_once)
            .try_collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        let answers: anyhow::Result<Vec<_>> = runtime.block_on(answers);
        answering.borrow().end();
        let (cut, answers): (Vec<usize>, Vec<_>) = answers?.into_iter().unzip();
        match cut.iter().sum() {
            0 => {}
            cut => eprintln!(
                "targets of the {MOST_TOKENS} most likely tokens only, where more were plausible: {}",
                grouped(cut as u64)
            ),
        }
        // The same teacher says the same again: a run need not end for want of room.
        if let Err(error) = write(folder, &answers, &self.made()) {
            tell(&format!(
                "warning: {error:#}; a resumed run will have to make them again"
            ));
        }
        Ok(answers)
    }

    /// Who has a say in the teacher's answer.
    fn partners(&self, messages: &[Message]) -> anyhow::Result<Partners> {
        let mut partners = self
            .say
            .of_chat(&self.teacher.0, messages, &Wanted::default())?;
        match (self.guided(), &partners.partners[..]) {
            (None, []) | (Some(_), [_]) => {}
            (Some(_), []) => bail!("there is no question that a guide could have left empty"),
            _ => bail!("a mix of arms cannot be learnt, only guidance"),
        }
        // Targets are what is chosen from.
        partners.report_mixture = true;
        Ok(partners)
    }

    /// The answers that were kept in the run's folder, to the same prompts.
    pub(super) fn recall(
        &self,
        entries: &[Entry],
        folder: &RunFolder,
    ) -> anyhow::Result<Vec<(Place, Lesson)>> {
        let path = folder.path().join(FILE);
        let known = read(&path)?;
        let name = path.display();
        if known.len() != entries.len() {
            let (known, entries) = (known.len(), entries.len());
            bail!("{name} has answers to {known} prompts, the data has {entries}");
        }
        let now = self.made();
        for (entry, (_, lesson, then)) in entries.iter().zip(&known) {
            let (place, asked, _) = self.ask(entry)?;
            if (&asked.student, &asked.teacher) != (&lesson.student, &lesson.teacher) {
                bail!("{name} has an answer to another prompt than that of {place}");
            }
            if then.weights.is_some() && then.weights != now.weights {
                bail!("{name} has an answer of other weights for {place}");
            }
            if then.guided != now.guided || then.guided.is_some() != lesson.targets.is_some() {
                let (then, now) = (named(then.guided), named(now.guided));
                bail!("{name} has an answer with {then} for {place}, not with {now}");
            }
        }
        let known = known.into_iter();
        Ok(known.map(|(place, lesson, _)| (place, lesson)).collect())
    }

    /// A lesson that waits for its answer.
    fn ask<'a>(&self, entry: &'a Entry) -> anyhow::Result<(Place, Lesson, &'a [Message])> {
        let messages = prompt_of(entry)?;
        let place = &entry.place;
        let open = |render: &ArmRender| {
            let prompt = render.open(messages);
            prompt.map_err(|what| anyhow::anyhow!("{place}: {what}"))
        };
        let (student, teacher) = (open(&self.student)?, open(&self.teacher)?);
        let context = self.teacher.0.context();
        if teacher.len() >= context {
            bail!(
                "{place}: the prompt has {} tokens, the context {context}",
                teacher.len()
            );
        }
        let lesson = Lesson {
            student,
            teacher,
            answer: Vec::new(),
            targets: None,
        };
        Ok((place.clone(), lesson, messages))
    }

    /// The most likely answer, with what ends it.
    async fn answer(
        &self,
        messages: &[Message],
        partners: &Partners,
        answering: &RefCell<Answering>,
    ) -> anyhow::Result<Answer> {
        let arm = &self.teacher.0;
        let prompt = arm.chat(messages)?;
        let room = arm.context().saturating_sub(prompt.token_count());
        let room = room.min(partners.room());
        let end_tokens = arm.end_tokens();
        let mut sampling = arm.sampling();
        sampling.temperature = 0.0;
        let mut matcher = StopMatcher::new(&[], &partners.markers(&prompt));
        let request = GenerateRequest {
            adapter: None,
            prefix: prompt.prefix,
            prompt: prompt.ids,
            max_tokens: self.answer_tokens.min(room),
            end_tokens: Arc::clone(&end_tokens),
            sampling,
            index: 0,
            // One more shows whether there are more.
            logprobs: self.guided().map(|_| MOST_TOKENS + 1),
            prompt_logprobs: None,
            feeds: Vec::new(),
            together: None,
            isolated: false,
        };
        let mut generation = partners.submit(arm, request)?;
        let mut decoder = StreamDecoder::new();
        let mut answer = Answer::default();
        while let Some(event) = generation.next().await {
            match event {
                Event::Token { id, logprobs } => {
                    answer.tokens.push(id);
                    answering.borrow_mut().said();
                    if let Some(logprobs) = logprobs {
                        answer.add_target(&logprobs.top);
                    }
                    let text = decoder.push(arm.tokenizer().token_bytes(id));
                    // The marker of the next turn is part of what is learnt.
                    if end_tokens.contains(&id) || matcher.push(&text).stopped {
                        return Ok(answer);
                    }
                }
                Event::Finished(_) => return Ok(answer),
                Event::Failed(why) => bail!(why),
                Event::Started { .. } | Event::Prompt(_) | Event::Scored(_) => {}
            }
        }
        bail!("the engine has died")
    }
}

/// Whether a run's folder keeps a teacher's answers.
pub(super) fn are_kept(folder: &RunFolder) -> bool {
    folder.path().join(FILE).exists()
}

/// Keeps lessons in a run's folder.
fn write(folder: &RunFolder, lessons: &[(Place, Lesson)], made: &Made) -> anyhow::Result<()> {
    let lines = lessons.iter().map(|(place, lesson)| {
        let kept = Kept {
            file: place.file.to_path_buf(),
            line: place.line,
            student: lesson.student.clone(),
            teacher: lesson.teacher.clone(),
            answer: lesson.answer.clone(),
            weights: made.weights.clone(),
            guided: made.guided,
            targets: lesson.targets.clone(),
        };
        Ok(serde_json::to_string(&kept)? + "\n")
    });
    let text = lines.collect::<anyhow::Result<String>>()?;
    let written = folder.write(FILE, text.as_bytes());
    written.context("the teacher's answers cannot be kept")
}

/// Lessons that were kept, and how they were made.
fn read(path: &Path) -> anyhow::Result<Vec<(Place, Lesson, Made)>> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let lessons = (1..).zip(text.lines()).map(|(number, line)| {
        let kept: Kept =
            serde_json::from_str(line).with_context(|| format!("{}:{number}", path.display()))?;
        let place = Place {
            file: Arc::new(kept.file),
            line: kept.line,
        };
        let lesson = Lesson {
            student: kept.student,
            teacher: kept.teacher,
            answer: kept.answer,
            targets: kept.targets,
        };
        let made = Made {
            weights: kept.weights,
            guided: kept.guided,
        };
        Ok((place, lesson, made))
    });
    lessons.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lessons_are_kept_as_they_are() {
        let place_of_runs = tempfile::tempdir().unwrap();
        let folder = RunFolder::open(&place_of_runs.path().join("run"), false).unwrap();
        let path = folder.path().join(FILE);
        let plain = Lesson {
            student: vec![1, 2],
            teacher: vec![3, 1, 2],
            answer: vec![4, 5],
            targets: None,
        };
        let with_targets = Lesson {
            targets: Some(vec![vec![(4, 0.7), (9, 0.3)], vec![(5, 1.0)]]),
            ..plain.clone()
        };
        let guided = Guided {
            weight: 0.3,
            plausible: 0.1,
        };
        for (lesson, guided) in [(&plain, None), (&with_targets, Some(guided))] {
            let made = Made {
                weights: Some("0123".to_owned()),
                guided,
            };
            write(&folder, &[(place(), lesson.clone())], &made).unwrap();
            let expected = [(place(), lesson.clone(), made)];
            assert_eq!(read(&path).unwrap(), expected);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        }

        // As they were kept before there was guidance.
        let line =
            r#"{"file":"prompts.jsonl","line":7,"student":[1,2],"teacher":[3,1,2],"answer":[4,5]}"#;
        fs::write(&path, line).unwrap();
        assert_eq!(read(&path).unwrap(), [(place(), plain, Made::default())]);
    }

    #[test]
    fn a_target_is_what_was_chosen_from_and_what_is_left_of_it_adds_up_to_1() {
        let mut answer = Answer::default();
        let half = 0.5f32.ln();
        answer.add_target(&[(7, half), (3, half), (9, f32::NEG_INFINITY)]);
        assert_eq!(answer.targets, [vec![(7, 0.5), (3, 0.5)]]);
        assert_eq!(answer.cut, 0);
        let many: Vec<(u32, f32)> = (0..65).map(|id| (id, -(65f32.ln()))).collect();
        answer.add_target(&many);
        assert_eq!(answer.cut, 1);
        let even: Vec<(u32, f32)> = (0..64).map(|id| (id, 1.0 / 64.0)).collect();
        assert_eq!(answer.targets[1], even);
    }

    fn place() -> Place {
        Place {
            file: Arc::new(PathBuf::from("prompts.jsonl")),
            line: 7,
        }
    }
}
