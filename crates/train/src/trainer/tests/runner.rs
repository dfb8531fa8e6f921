//! Runs of the toy student: their examples, settings, observer and files.

use super::*;

/// An observer that records what it is told, and asks to stop after some steps.
#[derive(Default)]
pub(super) struct Watcher {
    pub(super) records: Vec<Record>,
    pub(super) begins: Vec<(usize, usize)>,
    pub(super) saved: usize,
    pub(super) referenced: usize,
    pub(super) stop_after: Option<(usize, Arc<AtomicBool>)>,
    pub(super) failed: Vec<String>,
}

impl Observer for Watcher {
    fn on(&mut self, event: &Event<'_>) {
        match *event {
            Event::Wrote(record) => {
                self.records.push(record.clone());
                if let Some((step, stop)) = &self.stop_after {
                    stop.store(record.step() >= *step, Ordering::Relaxed);
                }
            }
            Event::Begins { done, steps } => self.begins.push((done, steps)),
            Event::Saved(_) => self.saved += 1,
            Event::Referencing { done, .. } => self.referenced = done,
            Event::Failed(error) => self.failed.push(error.to_string()),
            Event::Evaluating { .. } => {}
        }
    }
}

/// A sequence of `length` tokens, each `step` above the one before; all after the second count.
fn sample(first: usize, step: usize, length: usize) -> Sample {
    Sample {
        tokens: (0..length)
            .map(|at| ((first + at * step) % VOCABULARY) as u32)
            .collect(),
        counts: (0..length).map(|at| at > 1).collect(),
    }
}

/// Preference pairs: counting up by one is chosen, by five is rejected.
fn pairs(count: usize) -> Vec<Example> {
    let file = Arc::new(PathBuf::from("toy.jsonl"));
    let examples = (0..count).map(|number| Example {
        place: Place {
            file: Arc::clone(&file),
            line: number + 1,
        },
        sides: vec![
            vec![sample(number, 1, 4 + number % 5)],
            vec![sample(number, 5, 3 + number % 3)],
        ],
        targets: None,
    });
    examples.collect()
}

pub(super) fn settings() -> Settings {
    Settings {
        learning_rate: 0.05,
        warmup: 0.1,
        weight_decay: 0.01,
        clip: 1.0,
        length: Length::Epochs(2),
        batch_size: 4,
        accumulate: 2,
        seed: 7,
        save_every: Some(3),
        eval_every: Some(4),
        origin: [("model".to_owned(), "toy".into())].into(),
    }
}

/// A run over 30 pairs, with 10 more held out.
pub(super) struct Runner {
    pub(super) objective: Box<dyn Objective>,
    pub(super) examples: Vec<Example>,
    pub(super) held_out: Vec<Example>,
    pub(super) settings: Settings,
    pub(super) folder: tempfile::TempDir,
}

impl Runner {
    pub(super) fn new(objective: impl Objective + 'static) -> Runner {
        let mut examples = pairs(40);
        let held_out = examples.split_off(30);
        Runner {
            objective: Box::new(objective),
            examples,
            held_out,
            settings: settings(),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    pub(super) fn run(
        &self,
        student: &Toy,
        resume: bool,
        watcher: &mut Watcher,
    ) -> Result<Outcome, TrainError> {
        let stop = match &watcher.stop_after {
            Some((_, stop)) => Arc::clone(stop),
            None => Arc::default(),
        };
        let folder = RunFolder::open(self.folder.path(), resume)?;
        let training = Training {
            student,
            objective: &*self.objective,
            examples: &self.examples,
            held_out: &self.held_out,
            settings: &self.settings,
            folder: &folder,
            facts: &RunFacts::default(),
            stop: &stop,
        };
        train(&training, watcher)
    }

    /// The weights, events and outcome of an uninterrupted run.
    pub(super) fn whole(&self) -> (Vec<u32>, Watcher, Outcome) {
        let (student, mut watcher) = (Toy::new(), Watcher::default());
        let outcome = self.run(&student, false, &mut watcher).unwrap();
        (student.bits(), watcher, outcome)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.folder.path().join(name).exists()
    }

    pub(super) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.folder.path().join(name)).unwrap()
    }
}

pub(super) fn losses(outcome: &Outcome) -> [f64; 2] {
    let (first, last) = outcome.evaluations.as_ref().unwrap();
    [first.loss, last.loss]
}

pub(super) fn preference(outcome: &Outcome) -> Preference {
    let (_, last) = outcome.evaluations.as_ref().unwrap();
    last.preference.unwrap()
}

pub(super) const DPO: Dpo = Dpo { beta: 0.5 };

/// A run whose examples have targets: most of the probability on the answer's token, the rest
/// on its neighbour.
pub(super) fn with_targets() -> Runner {
    let mut runner = Runner::new(Distill);
    for example in runner.examples.iter_mut().chain(&mut runner.held_out) {
        example.sides.truncate(1);
        let Sample { tokens, counts } = &example.sides[0][0];
        let counted = tokens.iter().zip(counts).filter(|(_, counts)| **counts);
        let target = |token: u32| vec![(token, 0.75), ((token + 1) % VOCABULARY as u32, 0.25)];
        example.targets = Some(counted.map(|(&token, _)| target(token)).collect());
    }
    runner
}

/// All files of a run, without the times in its log.
pub(super) fn files_of(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_of(&path));
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        let bytes = match path.extension().and_then(|kind| kind.to_str()) {
            // The page shows the contents of the log.
            Some("html") => continue,
            Some("json") if path.ends_with("report.json") => {
                let mut report: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
                report["seconds"].take();
                report.to_string().into_bytes()
            }
            Some("jsonl") => {
                let text = String::from_utf8(bytes).unwrap();
                let lines = text.lines().map(|line| {
                    let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
                    for time in ["seconds", "tokens_per_second"] {
                        line.as_object_mut().unwrap().remove(time);
                    }
                    format!("{line}\n")
                });
                lines.collect::<String>().into_bytes()
            }
            _ => bytes,
        };
        found.push((path, bytes));
    }
    found.sort();
    found
}
