//! Facts about a run that its report shows beyond its settings.

use std::path::PathBuf;

use serde::Serialize;

/// Facts about a run that its report shows beyond its settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RunFacts {
    /// The command line.
    pub command: String,
    /// The files of examples.
    pub files: Vec<DataFile>,
    /// The model's answers to some held-out prompts.
    pub answers: Vec<SampleAnswer>,
}

/// A file of examples.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DataFile {
    /// The path it was read from.
    pub path: PathBuf,
    /// Its purpose.
    pub part: Part,
    /// The number of records in it.
    pub records: usize,
    /// The SHA-256 of its bytes, in hexadecimal digits.
    pub sha256: String,
}

/// The purpose of a file of examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Training data, a share of which may be held out.
    Data,
    /// Evaluation only.
    EvalData,
}

/// The model's greedy answer to a prompt.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SampleAnswer {
    /// The prompt.
    pub prompt: String,
    /// The answer before the first step.
    pub before: String,
    /// The answer after the last step; `None` before that.
    pub after: Option<String>,
}
