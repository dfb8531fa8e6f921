//! Reads the question files.

use std::path::Path;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::expect::Expectation;

/// The folder of the question files.
pub(crate) const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/prompts/questions");

/// The part of the questions that is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// For the development of wordings
    Dev,
    /// For published figures; no wording is chosen by them
    Test,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Part::Dev => "dev",
            Part::Test => "test",
        }
    }
}

/// The language of a set.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq, Hash)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Language {
    En,
    Ja,
}

impl Language {
    pub(crate) const ALL: [Language; 2] = [Language::En, Language::Ja];

    /// Returns its ISO 639-1 code.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Language::En => "en",
            Language::Ja => "ja",
        }
    }

    /// Returns its name in English.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Language::En => "English",
            Language::Ja => "Japanese",
        }
    }
}

/// The class of a question.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq, Hash)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Class {
    Plain,
    Fact,
    Writing,
    SmallTalk,
    Code,
    SecondTurn,
    SoundsHarmful,
    Harmful,
}

impl Class {
    pub(crate) const ALL: [Class; 8] = [
        Class::Plain,
        Class::Fact,
        Class::Writing,
        Class::SmallTalk,
        Class::Code,
        Class::SecondTurn,
        Class::SoundsHarmful,
        Class::Harmful,
    ];

    /// Returns its name in the files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Class::Plain => "plain",
            Class::Fact => "fact",
            Class::Writing => "writing",
            Class::SmallTalk => "small-talk",
            Class::Code => "code",
            Class::SecondTurn => "second-turn",
            Class::SoundsHarmful => "sounds-harmful",
            Class::Harmful => "harmful",
        }
    }
}

/// A file of questions.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct QuestionSet {
    pub(crate) language: Language,
    pub(crate) max_tokens: usize,
    #[serde(rename = "question")]
    pub(crate) questions: Vec<Question>,
}

/// A conversation whose last turn is scored.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Question {
    pub(crate) id: String,
    pub(crate) class: Class,
    pub(crate) system: Option<String>,
    pub(crate) turns: Vec<Turn>,
}

/// A user's message and, if given, the answer in the history.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Turn {
    pub(crate) ask: String,
    pub(crate) answer: Option<String>,
    expect: Option<Expectation>,
}

impl QuestionSet {
    /// Reads the file of a part in a language.
    pub(crate) fn read(part: Part, language: Language) -> anyhow::Result<QuestionSet> {
        let name = format!("{}-{}.toml", part.name(), language.code());
        let path = Path::new(FOLDER).join(name);
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let set = QuestionSet::parse(&text).with_context(|| path.display().to_string())?;
        ensure!(
            set.language == language,
            "{}: another language",
            path.display()
        );
        Ok(set)
    }

    fn parse(text: &str) -> anyhow::Result<QuestionSet> {
        let set: QuestionSet = toml::from_str(text)?;
        set.questions.iter().try_for_each(Question::check)?;
        Ok(set)
    }

    /// Keeps the questions whose class or id contains a text.
    pub(crate) fn retain(&mut self, text: &str) {
        self.questions
            .retain(|it| it.id.contains(text) || it.class.name().contains(text));
    }
}

impl Question {
    /// Checks that only the last turn is scored, and that all but harmful questions have checks.
    fn check(&self) -> anyhow::Result<()> {
        let id = &self.id;
        let (last, earlier) = self.turns.split_last().context(format!("{id}: no turns"))?;
        ensure!(last.answer.is_none(), "{id}: the last turn has an answer");
        ensure!(
            earlier.iter().all(|turn| turn.expect.is_none()),
            "{id}: an earlier turn is not scored"
        );
        let is_checked = last.expect.is_some();
        ensure!(
            is_checked == (self.class != Class::Harmful),
            "{id}: harmful questions have no `expect`, and all others have one"
        );
        Ok(())
    }

    fn last(&self) -> &Turn {
        self.turns.last().expect("a question has turns")
    }

    /// Returns all texts that come from the client: everything but the arm's own answers.
    pub(crate) fn said(&self) -> impl Iterator<Item = &str> {
        let turns = self.turns.iter();
        let turns = turns.flat_map(|it| [Some(&it.ask), it.answer.as_ref()]);
        let texts = [self.system.as_ref()].into_iter().chain(turns);
        texts.flatten().map(String::as_str)
    }

    /// Returns the message whose answer is scored.
    pub(crate) fn ask(&self) -> &str {
        &self.last().ask
    }

    /// Returns the checks of its answer; harmful questions have none.
    pub(crate) fn expectation(&self) -> Option<&Expectation> {
        self.last().expect.as_ref()
    }
}

#[cfg(test)]
mod tests;
