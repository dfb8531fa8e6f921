//! How a run goes: what it tells while it goes, and what it writes down.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{TrainError, files};

const FILE: &str = "metrics.jsonl";

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// A step was made.
    Step(Step),
    /// The held-out examples were looked at.
    Evaluation(Evaluation),
}

/// A step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Its number, from 1.
    pub step: usize,
    /// The loss of its examples before it was made.
    pub loss: f64,
    /// How far it went.
    pub learning_rate: f64,
    /// How long its gradient was before it was clipped.
    pub grad_norm: f64,
    /// Tokens of its examples, prompts included; what sequences have in common counts for
    /// each.
    pub tokens: usize,
    /// The same by the seconds that it took.
    pub tokens_per_second: f64,
    /// Seconds of all steps up to it.
    pub seconds: f64,
}

/// A look at the held-out examples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The steps made before.
    pub step: usize,
    /// Their loss.
    pub loss: f64,
    /// Which answers are preferred.
    #[serde(flatten)]
    pub preference: Option<Preference>,
}

/// Which answers of pairs are preferred.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preference {
    /// How many pairs there are.
    pub pairs: usize,
    /// How many of them are even: neither answer is ahead. Logs of older versions do not
    /// say it.
    #[serde(default)]
    pub ties: usize,
    /// The share of them whose chosen answer is ahead; an even one counts half.
    pub accuracy: f64,
    /// Its 95% interval (Wilson's).
    pub interval: [f64; 2],
    /// How far ahead it is in the mean.
    pub mean_margin: f64,
}

impl Record {
    /// The steps made when it was written.
    pub fn step(&self) -> usize {
        match self {
            Record::Step(step) => step.step,
            Record::Evaluation(evaluation) => evaluation.step,
        }
    }
}

/// What happens in a run.
#[derive(Debug)]
pub enum Event<'a> {
    /// It begins, or goes on after some steps.
    Begins {
        /// Steps that were made before.
        done: usize,
        /// All steps.
        steps: usize,
    },
    /// References of so many examples are known.
    Referencing {
        /// How many.
        done: usize,
        /// Of how many.
        total: usize,
    },
    /// So many held-out examples were looked at.
    Evaluating {
        /// How many.
        done: usize,
        /// Of how many.
        total: usize,
    },
    /// Something was written down.
    Wrote(&'a Record),
    /// A checkpoint was saved.
    Saved(&'a Path),
    /// Something could not be read or written, and the run goes on: what is to be written is
    /// tried again.
    Failed(&'a TrainError),
}

/// Who is told what happens.
pub trait Observer {
    /// Takes an event in.
    fn on(&mut self, event: &Event<'_>);
}

/// The file in which a run is written down, and what is in it.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    records: Vec<Record>,
    /// How many of them are in the file: fewer where it could not be written.
    written: usize,
}

impl Log {
    /// Begins a file.
    pub(super) fn begin(folder: &Path) -> Result<Log, TrainError> {
        Log::of(folder, Vec::new())
    }

    /// Goes on with a file after so many steps; what it says of later ones is forgotten,
    /// as is a line that was cut off.
    pub(super) fn resume(folder: &Path, steps: usize) -> Result<Log, TrainError> {
        let path = folder.join(FILE);
        let text = fs::read_to_string(&path).map_err(TrainError::io(&path))?;
        let records = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        let records = records.filter(|record: &Record| record.step() <= steps);
        Log::of(folder, records.collect())
    }

    fn of(folder: &Path, records: Vec<Record>) -> Result<Log, TrainError> {
        let path = folder.join(FILE);
        files::replace(&path, lines(&records).as_bytes())?;
        Ok(Log {
            path,
            written: records.len(),
            records,
        })
    }

    /// Takes a record in, which [`write`](Self::write) writes down.
    pub(super) fn add(&mut self, record: Record) -> &Record {
        self.records.push(record);
        self.records.last().expect("one was just added")
    }

    /// Adds the lines that are not in the file yet. If that fails, the file is as it was,
    /// and they are written the next time.
    pub(super) fn write(&mut self) -> Result<(), TrainError> {
        files::append(&self.path, &lines(&self.records[self.written..]))?;
        self.written = self.records.len();
        Ok(())
    }

    /// The same, and has the file reach the disk.
    pub(super) fn sync(&mut self) -> Result<(), TrainError> {
        self.write()?;
        files::sync(&self.path)
    }

    /// All that is written down.
    pub(super) fn records(&self) -> &[Record] {
        &self.records
    }

    /// The seconds that all steps in it took.
    pub(super) fn seconds(&self) -> f64 {
        let steps = self.records.iter().rev().find_map(|record| match record {
            Record::Step(step) => Some(step.seconds),
            Record::Evaluation(_) => None,
        });
        steps.unwrap_or(0.0)
    }

    /// What was found when the held-out examples were looked at after so many steps.
    pub(super) fn evaluation(&self, steps: usize) -> Option<&Evaluation> {
        self.records.iter().rev().find_map(|record| match record {
            Record::Evaluation(evaluation) if evaluation.step == steps => Some(evaluation),
            _ => None,
        })
    }
}

fn lines(records: &[Record]) -> String {
    let lines = records.iter().map(line);
    lines.map(|line| line + "\n").collect()
}

fn line(record: &Record) -> String {
    serde_json::to_string(record).expect("numbers and names can be written")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluation(step: usize) -> Record {
        Record::Evaluation(Evaluation {
            step,
            loss: 0.1 + step as f64,
            preference: None,
        })
    }

    #[test]
    fn a_run_that_goes_on_forgets_what_came_after_its_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log::begin(folder.path()).unwrap();
        for step in 0..4 {
            log.add(evaluation(step));
            log.write().unwrap();
        }
        let path = folder.path().join(FILE);
        // Cut off in the middle of a line.
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, &text[..text.len() - 5]).unwrap();
        let mut log = Log::resume(folder.path(), 1).unwrap();
        assert_eq!(log.records(), [evaluation(0), evaluation(1)]);
        log.add(evaluation(2));
        log.write().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 3, "{text}");
        assert_eq!(log.evaluation(2).map(|found| found.loss), Some(2.1));
        assert_eq!(log.evaluation(3), None);
    }

    #[test]
    fn lines_name_what_they_hold() {
        let record = Record::Evaluation(Evaluation {
            step: 7,
            loss: 0.5,
            preference: Some(Preference {
                pairs: 4,
                ties: 0,
                accuracy: 0.75,
                interval: [0.3, 0.95],
                mean_margin: 0.25,
            }),
        });
        let text = line(&record);
        assert_eq!(
            text,
            r#"{"kind":"evaluation","step":7,"loss":0.5,"pairs":4,"ties":0,"accuracy":0.75,"interval":[0.3,0.95],"mean_margin":0.25}"#
        );
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
        let plain = line(&evaluation(1));
        assert_eq!(plain, r#"{"kind":"evaluation","step":1,"loss":1.1}"#);
        assert_eq!(
            serde_json::from_str::<Record>(&plain).unwrap(),
            evaluation(1)
        );
    }
}
