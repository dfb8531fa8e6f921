//! Asks an arm the questions and scores its answers.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context;
use serde_json::{Value, json};

use crate::arms::Served;
use crate::client::{Client, Message, Reply};
use crate::measures::Results;
use crate::refusals::Refusals;
use crate::repeats::Runs;
use crate::score::{Scores, score};
use crate::set::{Question, QuestionSet};

/// The context for asking questions.
pub(crate) struct Asking<'a> {
    pub(crate) client: &'a Client,
    pub(crate) served: &'a Served,
    pub(crate) refusals: &'a Refusals,
    /// A profile whose text counts as every arm's prompt.
    pub(crate) copies_of: Option<&'a String>,
    /// The number of questions asked at once.
    pub(crate) parallel: usize,
}

/// An answer with its scores.
pub(crate) struct Answered<'q> {
    arm: String,
    question: &'q Question,
    reply: Reply,
    scores: Scores,
}

impl Asking<'_> {
    /// Asks an arm every question of a set, several at once. The answers are in the order of the
    /// questions.
    pub(crate) fn ask_all<'q>(
        &self,
        arm: &str,
        set: &'q QuestionSet,
    ) -> anyhow::Result<Vec<Answered<'q>>> {
        let arm = self.served.variant(arm, set.language);
        let prompt = self.served.prompt(&arm, self.copies_of, set.language)?;
        let next = AtomicUsize::new(0);
        let work = || -> anyhow::Result<Vec<(usize, Answered<'q>)>> {
            let mut done = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(question) = set.questions.get(index) else {
                    return Ok(done);
                };
                let answered = self
                    .ask(&arm, set, question, &prompt)
                    .with_context(|| format!("{arm}, question {}", question.id))?;
                done.push((index, answered));
            }
        };
        let mut answers = Vec::new();
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..self.parallel).map(|_| scope.spawn(work)).collect();
            for worker in workers {
                answers.extend(worker.join().expect("asking does not panic")?);
            }
            anyhow::Ok(())
        })?;
        answers.sort_by_key(|(index, _)| *index);
        Ok(answers.into_iter().map(|(_, answered)| answered).collect())
    }

    /// Asks one question. If an earlier turn has no given answer, the arm's own is in the history.
    fn ask<'q>(
        &self,
        arm: &str,
        set: &QuestionSet,
        question: &'q Question,
        prompt: &Runs,
    ) -> anyhow::Result<Answered<'q>> {
        let message = |role, content: &str| Message {
            role,
            content: content.to_owned(),
        };
        let mut messages = Vec::new();
        messages.extend(question.system.as_deref().map(|it| message("system", it)));
        let (last, earlier) = question.turns.split_last().context("no turns")?;
        for turn in earlier {
            messages.push(message("user", &turn.ask));
            let answer = match &turn.answer {
                Some(answer) => answer.clone(),
                None => self.client.chat(arm, &messages, set.max_tokens)?.answer,
            };
            messages.push(message("assistant", &answer));
        }
        messages.push(message("user", &last.ask));
        let reply = self.client.chat(arm, &messages, set.max_tokens)?;
        let scores = score(&reply, question, set.language, self.refusals, prompt);
        Ok(Answered {
            arm: arm.to_owned(),
            question,
            reply,
            scores,
        })
    }
}

/// Returns the measures of an arm's answers.
pub(crate) fn results(arm: String, answers: &[Answered]) -> Results {
    let tokens: u64 = answers.iter().map(|it| it.reply.tokens).sum();
    Results {
        arm,
        scores: answers
            .iter()
            .map(|it| (it.question.class, it.scores))
            .collect(),
        tokens: tokens as f64 / answers.len().max(1) as f64,
    }
}

impl Answered<'_> {
    /// Returns the answer with its question and scores.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "arm": self.arm,
            "question": self.question.id,
            "class": self.question.class,
            "ask": self.question.ask(),
            "answer": self.reply.answer,
            "finish_reason": self.reply.finish,
            "tokens": self.reply.tokens,
            "scores": self.scores,
            "all": self.scores.all(),
        })
    }
}

/// A form for people.
impl fmt::Display for Answered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Answered {
            arm,
            question,
            reply,
            scores,
        } = self;
        writeln!(f, "──── {arm} · {}", question.id)?;
        writeln!(f, "{}\n\n{}", question.ask(), reply.answer)?;
        writeln!(f, "[{}; {scores:?}]", reply.finish)
    }
}
