//! What a report says of a run that its settings do not.

use std::path::PathBuf;

use serde::Serialize;

/// What a report says of a run beyond its settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct About {
    /// The command that was typed.
    pub command: String,
    /// The files that examples come from.
    pub files: Vec<DataFile>,
    /// What the model says to some held-out prompts.
    pub answers: Vec<SampleAnswer>,
}

/// A file of examples.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DataFile {
    /// Where it was read.
    pub path: PathBuf,
    /// What it is for.
    pub part: Part,
    /// How many records it has.
    pub records: usize,
    /// The SHA-256 of its bytes, in hexadecimal digits.
    pub sha256: String,
}

/// What a file of examples is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// To learn from, but for a share that may be held out.
    Data,
    /// To be looked at only.
    EvalData,
}

/// What the model says to a prompt, always taking the most likely token.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SampleAnswer {
    /// What was asked.
    pub prompt: String,
    /// The answer before the first step.
    pub before: String,
    /// The answer after the last one; `None` before that.
    pub after: Option<String>,
}
