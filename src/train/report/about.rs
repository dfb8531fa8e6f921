//! What a report says of a run that its settings do not.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::train::TrainError;

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

impl DataFile {
    /// The file at `path`, which has so many records.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(path: &Path, part: Part, records: usize) -> Result<DataFile, TrainError> {
        let digest = || {
            let (mut file, mut hash) = (File::open(path)?, Sha256::new());
            let mut buffer = vec![0; 1 << 16];
            loop {
                match file.read(&mut buffer)? {
                    0 => return Ok::<_, io::Error>(hash.finalize()),
                    count => hash.update(&buffer[..count]),
                }
            }
        };
        let digest = digest().map_err(TrainError::io(path))?;
        Ok(DataFile {
            path: path.to_owned(),
            part,
            records,
            sha256: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.jsonl");
        std::fs::write(&path, "abc").unwrap();
        let file = DataFile::read(&path, Part::EvalData, 1).unwrap();
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(file.sha256, expected);
        std::fs::remove_file(&path).unwrap();
        assert!(DataFile::read(&path, Part::EvalData, 1).is_err());
    }
}
