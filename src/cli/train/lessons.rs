//! What a profile teaches: its answers to prompts, made by the engine.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use futures_util::{StreamExt, TryStreamExt, stream};
use incant::engine::{Event, GenerateRequest};
use incant::profile::Message;
use incant::text::decode::StreamDecoder;
use incant::text::stop::StopMatcher;
use incant::train::data::{Entry, Place};
use incant::train::samples::{Lesson, Render, prompt_of};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use super::prepare::ArmRender;

/// Who answers, and how.
pub(super) struct School {
    /// Who will learn: the bare turns.
    pub(super) student: ArmRender,
    /// Who answers: the profile.
    pub(super) teacher: ArmRender,
    /// The most tokens of an answer.
    pub(super) answer_tokens: usize,
    /// How many answers are made at once.
    pub(super) slots: usize,
}

/// An answer as it is kept.
#[derive(Serialize, Deserialize)]
struct Kept {
    file: PathBuf,
    line: usize,
    student: Vec<u32>,
    teacher: Vec<u32>,
    answer: Vec<u32>,
}

impl School {
    /// The teacher's answers to the prompts of all entries, in their order, which are then
    /// kept in the file `path`. Blocks.
    pub(super) fn lessons(
        &self,
        entries: &[Entry],
        path: &Path,
    ) -> anyhow::Result<Vec<(Place, Lesson)>> {
        // All prompts first: one that does not fit is known before hours of work.
        let asked = entries.iter().map(|entry| self.ask(entry));
        let asked = asked.collect::<anyhow::Result<Vec<_>>>()?;
        let bar = bar(asked.len());
        let answers = stream::iter(asked)
            .map(|(place, lesson, messages)| {
                let bar = &bar;
                async move {
                    let answer = self.answer(messages).await;
                    let answer = answer.with_context(|| place.to_string())?;
                    bar.inc(1);
                    Ok::<_, anyhow::Error>((place, Lesson { answer, ..lesson }))
                }
            })
            .buffered(self.slots)
            .try_collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        let answers: anyhow::Result<Vec<_>> = runtime.block_on(answers);
        bar.finish_and_clear();
        let answers = answers?;
        write(path, &answers)?;
        Ok(answers)
    }

    /// The answers that were kept in the file `path`, to the same prompts.
    pub(super) fn recall(
        &self,
        entries: &[Entry],
        path: &Path,
    ) -> anyhow::Result<Vec<(Place, Lesson)>> {
        let known = read(path)?;
        let name = path.display();
        if known.len() != entries.len() {
            let (known, entries) = (known.len(), entries.len());
            bail!("{name} has answers to {known} prompts, the data has {entries}");
        }
        for (entry, (_, lesson)) in entries.iter().zip(&known) {
            let (place, asked, _) = self.ask(entry)?;
            if (&asked.student, &asked.teacher) != (&lesson.student, &lesson.teacher) {
                bail!("{name} has an answer to another prompt than that of {place}");
            }
        }
        Ok(known)
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
        };
        Ok((place.clone(), lesson, messages))
    }

    /// The most likely answer, with what ends it.
    async fn answer(&self, messages: &[Message]) -> anyhow::Result<Vec<u32>> {
        let arm = &self.teacher.0;
        let prompt = arm.chat(messages)?;
        let room = arm.context().saturating_sub(prompt.token_count());
        let end_tokens = arm.end_tokens();
        let mut sampling = arm.sampling();
        sampling.temperature = 0.0;
        let mut matcher = StopMatcher::new(&[], &prompt.markers);
        let request = GenerateRequest {
            adapter: None,
            prefix: prompt.prefix,
            prompt: prompt.ids,
            max_tokens: self.answer_tokens.min(room),
            end_tokens: Arc::clone(&end_tokens),
            sampling,
            index: 0,
            logprobs: None,
            prompt_logprobs: None,
            feeds: Vec::new(),
            together: None,
        };
        let mut generation = arm.submit(vec![request])?.remove(0);
        let mut decoder = StreamDecoder::new();
        let mut answer = Vec::new();
        while let Some(event) = generation.next().await {
            match event {
                Event::Token { id, .. } => {
                    answer.push(id);
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

/// Keeps lessons in a file, which is there as a whole or not at all.
fn write(path: &Path, lessons: &[(Place, Lesson)]) -> anyhow::Result<()> {
    let lines = lessons.iter().map(|(place, lesson)| {
        let kept = Kept {
            file: place.file.to_path_buf(),
            line: place.line,
            student: lesson.student.clone(),
            teacher: lesson.teacher.clone(),
            answer: lesson.answer.clone(),
        };
        Ok(serde_json::to_string(&kept)? + "\n")
    });
    let text = lines.collect::<anyhow::Result<String>>()?;
    let unfinished = path.with_extension("jsonl.writing");
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(&unfinished, text))
        .and_then(|()| fs::rename(&unfinished, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn read(path: &Path) -> anyhow::Result<Vec<(Place, Lesson)>> {
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
        };
        Ok((place, lesson))
    });
    lessons.collect()
}

fn bar(answers: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("[{bar:30}]  {pos} of {len} answers  {eta} left")
        .expect("the template is a constant that a test draws")
        .progress_chars("=> ");
    ProgressBar::new(answers as u64).with_style(style)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lessons_are_kept_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers.jsonl");
        let place = Place {
            file: Arc::new(PathBuf::from("prompts.jsonl")),
            line: 7,
        };
        let lesson = Lesson {
            student: vec![1, 2],
            teacher: vec![3, 1, 2],
            answer: vec![4, 5],
        };
        let lessons = vec![(place, lesson)];
        write(&path, &lessons).unwrap();
        assert_eq!(read(&path).unwrap(), lessons);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_bar_counts_answers() {
        let bar = bar(3);
        bar.inc(1);
        assert_eq!((bar.position(), bar.length()), (1, Some(3)));
    }
}
