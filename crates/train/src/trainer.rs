//! The training loop: accumulate the gradients of some batches, take an optimizer step, repeat.
//!
//! Everything a step depends on is in the student's variables, the optimizer's moments and the
//! step's number, which a checkpoint holds. So a run that is killed at any moment and resumed
//! from its last checkpoint ends with the same weights, to the last bit.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use candle_core::Tensor;

use super::batches::Batches;
use super::checkpoint::{self, Latest, State};
use super::evaluate::{evaluate, scalar, weight_of};
use super::loss::Objective;
use super::metrics::{Evaluation, Event, Log, Observer, Record, Step};
use super::notes;
use super::optimizer::{self, AdamW, Schedule};
use super::references::{self, References};
use super::report::{Report, RunFacts};
use super::samples::Example;
use super::settings::{Identity, Settings};
use super::student::Student;
use super::{RunFolder, TrainError};

/// The inputs of a training run.
pub struct Training<'a> {
    /// The student.
    pub student: &'a dyn Student,
    /// The objective to minimise.
    pub objective: &'a dyn Objective,
    /// The training examples.
    pub examples: &'a [Example],
    /// The held-out examples, for evaluation only.
    pub held_out: &'a [Example],
    /// The settings.
    pub settings: &'a Settings,
    /// The output folder, which also determines whether the run is resumed.
    pub folder: &'a RunFolder,
    /// Facts that the report shows beyond the settings.
    pub facts: &'a RunFacts,
    /// Set to `true` to make the run save a checkpoint and return.
    pub stop: &'a AtomicBool,
}

/// The outcome of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Steps made.
    pub step: usize,
    /// Total steps of the run: more than were made if it was told to stop.
    pub steps: usize,
    /// The first and the last evaluation of the held-out examples.
    pub evaluations: Option<(Evaluation, Evaluation)>,
    /// The report; `None` if it was told to stop before it began.
    pub report: Option<Report>,
}

/// Trains until the end, or until told to stop.
///
/// At the end the folder is itself a PEFT directory. It also holds checkpoints,
/// `metrics.jsonl`, `report.html`, `report.json` and, where the loss needs them, references.
/// The same training writes the same files, to the last bit, except for the times in the log
/// and in the reports.
///
/// If something cannot be written after the run has begun, as on a full disk, the observer is
/// told, the run continues, and the write is retried at the next checkpoint.
///
/// # Errors
/// See [`TrainError`]. [`TrainError::Unsaved`] means that the final write failed too,
/// [`TrainError::Unreported`] that it failed for the report only. Resuming the run writes what is
/// missing.
pub fn train(training: &Training<'_>, observer: &mut dyn Observer) -> Result<Outcome, TrainError> {
    if training.examples.is_empty() {
        return Err(TrainError::NoExamples);
    }
    match Run::begin(training, observer)? {
        Some(mut run) => {
            run.run_steps(observer)?;
            run.outcome()
        }
        None => Ok(Outcome {
            step: 0,
            steps: steps(training),
            evaluations: None,
            report: None,
        }),
    }
}

fn steps(training: &Training<'_>) -> usize {
    let settings = training.settings;
    let per_epoch = training.examples.len().div_ceil(settings.batch_size);
    settings.batches(per_epoch).div_ceil(settings.accumulate)
}

/// A run in progress.
struct Run<'a> {
    training: &'a Training<'a>,
    identity: Identity,
    batches: Batches,
    schedule: Schedule,
    references: References,
    optimizer: AdamW,
    log: Log,
    /// Steps made, and the time they took.
    step: usize,
    seconds: f64,
    /// Whether the last write of the log failed.
    is_log_behind: bool,
    /// The variables before the first step.
    initial: Vec<Tensor>,
}

impl<'a> Run<'a> {
    /// Starts a run, or resumes it from its last checkpoint. Returns `None` if told to stop
    /// before it could begin.
    fn begin(
        training: &'a Training<'a>,
        observer: &mut dyn Observer,
    ) -> Result<Option<Run<'a>>, TrainError> {
        let Training {
            student,
            objective,
            examples,
            held_out,
            settings,
            folder,
            ..
        } = *training;
        let identity = Identity::new(settings, objective, examples, held_out);
        let path = folder.path();
        let mut last = if folder.is_resumed() {
            checkpoint::latest(path)?
        } else {
            Latest::default()
        };
        // Starting anew would overwrite the broken checkpoint.
        if last.found.is_none()
            && let Some(error) = last.broken.pop()
        {
            return Err(error);
        }
        for error in &last.broken {
            observer.on(&Event::Failed(error));
        }
        // Taken before a checkpoint is restored, so these are also the initial values of the
        // run to resume.
        let initial = student.variables().iter();
        let initial = initial.map(|(_, variable)| variable.as_tensor().copy());
        let initial = initial.collect::<candle_core::Result<_>>()?;
        let decay = settings.weight_decay;
        let (references, optimizer, log, step) = match last.found {
            Some((last, state)) => {
                state.identity.check(&identity, path)?;
                (
                    References::load(training, &identity)?,
                    checkpoint::restore(&last, student, decay, state.step)?,
                    Log::resume(path, state.step)?,
                    state.step,
                )
            }
            None => {
                let Some(references) = References::compute(training, observer)? else {
                    return Ok(None);
                };
                references.save(path, &identity)?;
                let optimizer = AdamW::new(student.variables(), decay)?;
                (references, optimizer, Log::begin(path)?, 0)
            }
        };
        let lengths = examples.iter().map(Example::length).collect();
        let steps = steps(training);
        observer.on(&Event::Begins { done: step, steps });
        Ok(Some(Run {
            training,
            identity,
            batches: Batches::new(lengths, settings.batch_size, settings.seed),
            schedule: Schedule::new(settings.learning_rate, settings.warmup, steps),
            references,
            optimizer,
            step,
            seconds: log.seconds(),
            log,
            is_log_behind: false,
            initial,
        }))
    }

    fn run_steps(&mut self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let Settings {
            save_every,
            eval_every,
            ..
        } = *self.training.settings;
        let is_due = |every: Option<usize>, step: usize| {
            every.is_some_and(|every| step.is_multiple_of(every))
        };
        while self.step < self.schedule.steps {
            if self.step == 0 || is_due(eval_every, self.step) {
                self.evaluate(observer)?;
            }
            // The evaluation is then in the log of a run that resumes from this checkpoint.
            if self.step > 0
                && is_due(save_every, self.step)
                && let Err(error) = self.save(observer)
            {
                observer.on(&Event::Failed(&error));
            }
            if self.training.stop.load(Ordering::Relaxed) {
                return self
                    .save(observer)
                    .map_err(|error| self.unsaved(error, false));
            }
            self.make_step(observer)?;
        }
        self.evaluate(observer)?;
        let saved = self.save(observer);
        // There may be disk space for the adapter even if there is none for a checkpoint.
        let published = checkpoint::publish(self.training.folder.path(), self.training.student);
        let has_adapter = published.is_ok();
        let ended = match saved {
            // A missing adapter matters more than a missing report.
            Err(TrainError::Unreported { .. }) if !has_adapter => published,
            saved => saved.and(published),
        };
        ended.map_err(|error| self.unsaved(error, has_adapter))
    }

    /// The error of a run that ended and could not be saved completely. If only the report is
    /// missing, there is nothing to continue from a checkpoint.
    fn unsaved(&self, error: TrainError, has_adapter: bool) -> TrainError {
        if let TrainError::Unreported { .. } = error {
            return error;
        }
        let last = checkpoint::latest(self.training.folder.path());
        TrainError::Unsaved {
            error: Box::new(error),
            has_adapter,
            last: last.ok().and_then(|last| last.found).map(|(path, _)| path),
        }
    }

    /// Records an event in the log.
    fn record(&mut self, record: Record, observer: &mut dyn Observer) {
        observer.on(&Event::Wrote(self.log.add(record)));
        let written = self.log.write();
        // Reported once, not at every record.
        if let Err(error) = &written
            && !self.is_log_behind
        {
            observer.on(&Event::Failed(error));
        }
        self.is_log_behind = written.is_err();
    }

    fn make_step(&mut self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let began = Instant::now();
        let Training {
            student,
            objective,
            examples,
            settings,
            ..
        } = *self.training;
        let all = settings.batches(self.batches.per_epoch());
        let first = self.step * settings.accumulate;
        let numbers = first..all.min(first + settings.accumulate);
        let batches: Vec<Vec<usize>> = numbers
            .map(|number| self.batches.get(number).to_vec())
            .collect();
        let seen: Vec<&Example> = batches
            .iter()
            .flatten()
            .map(|&place| &examples[place])
            .collect();
        let weight = weight_of(self.training, &seen) as f64;

        let mut loss = 0.0;
        let mut gradients: Option<Vec<Tensor>> = None;
        for batch in &batches {
            let (part, added) = self.gradients(batch, weight)?;
            loss += part;
            gradients = Some(match gradients {
                None => added,
                Some(before) => before
                    .iter()
                    .zip(&added)
                    .map(|(before, added)| before + added)
                    .collect::<candle_core::Result<_>>()?,
            });
        }
        let mut gradients = gradients.unwrap_or_default();
        let norm = optimizer::norm(&gradients)?;
        if !norm.is_finite() {
            return Err(self.not_finite("gradient", norm, &seen));
        }
        optimizer::clip(&mut gradients, norm, settings.clip)?;
        let learning_rate = self.schedule.at(self.step);
        self.optimizer
            .step(student.variables(), &gradients, learning_rate)?;

        self.step += 1;
        let seconds = began.elapsed().as_secs_f64();
        self.seconds += seconds;
        let tokens = seen.iter().map(|example| objective.tokens(example));
        let tokens = tokens.sum();
        let record = Record::Step(Step {
            step: self.step,
            loss,
            learning_rate,
            grad_norm: norm,
            tokens,
            tokens_per_second: tokens as f64 / seconds,
            seconds: self.seconds,
        });
        self.record(record, observer);
        Ok(())
    }

    /// The loss of a batch divided by `weight`, and its gradient with respect to each variable.
    fn gradients(&self, batch: &[usize], weight: f64) -> Result<(f64, Vec<Tensor>), TrainError> {
        let Training {
            student,
            objective,
            examples,
            ..
        } = *self.training;
        let seen: Vec<&Example> = batch.iter().map(|&place| &examples[place]).collect();
        let references = references::of_batch(self.references.of_examples(), batch);
        let loss = objective.loss(student, &seen, &references)?;
        let loss = (loss.sum / weight)?;
        let value = scalar(&loss)?;
        if !value.is_finite() {
            return Err(self.not_finite("loss", value, &seen));
        }
        let store = loss.backward()?;
        let gradients = student.variables().iter().map(|(name, variable)| {
            let found = store.get(variable.as_tensor()).map(Tensor::detach);
            found.ok_or_else(|| TrainError::NoGradient { name: name.clone() })
        });
        Ok((value, gradients.collect::<Result<_, _>>()?))
    }

    fn not_finite(&self, what: &'static str, value: f64, seen: &[&Example]) -> TrainError {
        TrainError::NotFinite {
            what,
            step: self.step + 1,
            value,
            places: seen.iter().map(|example| example.place.clone()).collect(),
        }
    }

    /// Evaluates the held-out examples, if there are any and this step's evaluation is not in
    /// the log. If told to stop, it leaves the evaluation to the resumed run.
    fn evaluate(&mut self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        if self.training.held_out.is_empty() || self.log.evaluation(self.step).is_some() {
            return Ok(());
        }
        let found = evaluate(self.training, &self.references, self.step, observer)?;
        if let Some(found) = found {
            self.record(Record::Evaluation(found), observer);
        }
        Ok(())
    }

    /// Saves a checkpoint, and the reports, which may fit on a disk that has no space for a
    /// checkpoint. The log is synced before the checkpoint, because a run resumes from both. If
    /// only the reports cannot be written, the error is [`TrainError::Unreported`].
    fn save(&mut self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let Training {
            student, folder, ..
        } = *self.training;
        let state = State {
            step: self.step,
            identity: self.identity.clone(),
        };
        self.log.sync()?;
        let saved = checkpoint::save(folder.path(), student, &self.optimizer, &state);
        let reported = self.report().and_then(|report| report.write(folder));
        let checkpoint = saved?;
        observer.on(&Event::Saved(&checkpoint));
        reported.map_err(|error| TrainError::Unreported {
            error: Box::new(error),
            checkpoint,
        })
    }

    fn outcome(&self) -> Result<Outcome, TrainError> {
        let mut evaluations = self.log.records().iter().filter_map(|record| match record {
            Record::Evaluation(evaluation) => Some(evaluation.clone()),
            Record::Step(_) => None,
        });
        let first = evaluations.next();
        Ok(Outcome {
            step: self.step,
            steps: self.schedule.steps,
            evaluations: first.map(|first| {
                let last = evaluations.next_back().unwrap_or_else(|| first.clone());
                (first, last)
            }),
            report: Some(self.report()?),
        })
    }

    fn report(&self) -> Result<Report, TrainError> {
        let variables = self.training.student.variables();
        Ok(Report {
            facts: self.training.facts.clone(),
            settings: self.identity.settings().clone(),
            unit: self.training.objective.unit().name(),
            step: self.step,
            steps: self.schedule.steps,
            records: self.log.records().to_vec(),
            notes: notes::notes(&self.initial, variables, self.log.records(), self.step)?,
        })
    }
}

#[cfg(test)]
mod tests;
