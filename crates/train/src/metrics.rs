//! Progress of a run: its events, and the log it writes.

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
    /// The held-out examples were evaluated.
    Evaluation(Evaluation),
}

/// A step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The step's number, from 1.
    pub step: usize,
    /// The loss of its examples before the update.
    pub loss: f64,
    /// The learning rate.
    pub learning_rate: f64,
    /// The norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens of its examples, including prompts. A common prefix counts for each sequence.
    pub tokens: usize,
    /// The tokens divided by the step's duration.
    pub tokens_per_second: f64,
    /// The total duration of all steps so far, in seconds.
    pub seconds: f64,
}

/// An evaluation of the held-out examples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Steps made before.
    pub step: usize,
    /// The loss.
    pub loss: f64,
    /// Preference metrics, if the examples are pairs.
    #[serde(flatten)]
    pub preference: Option<Preference>,
}

/// Preference metrics over pairs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preference {
    /// The number of pairs.
    pub pairs: usize,
    /// The number of ties, pairs whose margin is zero. Logs of older versions do not have it.
    #[serde(default)]
    pub ties: usize,
    /// The share of pairs whose chosen answer is ahead; a tie counts half.
    pub accuracy: f64,
    /// The 95% Wilson interval of the accuracy.
    pub interval: [f64; 2],
    /// The mean margin.
    pub mean_margin: f64,
}

impl Record {
    /// The number of steps made when the record was written.
    pub fn step(&self) -> usize {
        match self {
            Record::Step(step) => step.step,
            Record::Evaluation(evaluation) => evaluation.step,
        }
    }
}

/// An event of a run.
#[derive(Debug)]
pub enum Event<'a> {
    /// The run begins, or is resumed after some steps.
    Begins {
        /// Steps made before.
        done: usize,
        /// Total steps.
        steps: usize,
    },
    /// References of some examples were computed.
    Referencing {
        /// Examples done.
        done: usize,
        /// Total examples.
        total: usize,
    },
    /// Some held-out examples were evaluated.
    Evaluating {
        /// Examples done.
        done: usize,
        /// Total examples.
        total: usize,
    },
    /// A record was added to the log.
    Wrote(&'a Record),
    /// A checkpoint was saved.
    Saved(&'a Path),
    /// A file could not be read or written. The run continues, and writes are retried.
    Failed(&'a TrainError),
}

/// A receiver of events.
pub trait Observer {
    /// Handles an event.
    fn on(&mut self, event: &Event<'_>);
}

/// The log of a run: its file, and the records in it.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    records: Vec<Record>,
    /// The number of records in the file; fewer than there are if a write failed.
    written: usize,
}

impl Log {
    /// Starts a new file.
    pub(super) fn begin(folder: &Path) -> Result<Log, TrainError> {
        Log::of(folder, Vec::new())
    }

    /// Resumes a file after `steps` steps; later records and a line that was cut off are
    /// dropped.
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

    /// Adds a record, for [`write`](Self::write) to write.
    pub(super) fn add(&mut self, record: Record) -> &Record {
        self.records.push(record);
        self.records.last().expect("one was just added")
    }

    /// Appends the records that are not in the file yet. If that fails, the file is unchanged,
    /// and they are written the next time.
    pub(super) fn write(&mut self) -> Result<(), TrainError> {
        files::append(&self.path, &lines(&self.records[self.written..]))?;
        self.written = self.records.len();
        Ok(())
    }

    /// Writes, then syncs the file to the disk.
    pub(super) fn sync(&mut self) -> Result<(), TrainError> {
        self.write()?;
        files::sync(&self.path)
    }

    pub(super) fn records(&self) -> &[Record] {
        &self.records
    }

    /// The total duration of all logged steps, in seconds.
    pub(super) fn seconds(&self) -> f64 {
        let steps = self.records.iter().rev().find_map(|record| match record {
            Record::Step(step) => Some(step.seconds),
            Record::Evaluation(_) => None,
        });
        steps.unwrap_or(0.0)
    }

    /// The evaluation of the held-out examples after `steps` steps.
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
