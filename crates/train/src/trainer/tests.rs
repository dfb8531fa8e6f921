use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::*;
use crate::data::Place;
use crate::loss::{Distill, Dpo, Sft, Simpo};
use crate::metrics::Preference;
use crate::settings::Length;
use crate::student::{Batch, Sample, Target};
use crate::toy::{Toy, VOCABULARY};

mod interrupted;
mod runner;

use runner::{DPO, Runner, Watcher, files_of, losses, preference, settings, with_targets};

#[test]
fn every_loss_falls_on_examples_that_are_held_out() {
    let simpo = Simpo {
        beta: 2.0,
        gamma_ratio: 0.5,
    };
    for runner in [Runner::new(Sft), Runner::new(DPO), Runner::new(simpo)] {
        let (_, watcher, outcome) = runner.whole();
        // 30 examples are 8 batches; there are two epochs of them, and two batches per step.
        assert_eq!((outcome.step, outcome.steps), (8, 8));
        let [first, last] = losses(&outcome);
        assert!(
            last < first - 0.05,
            "{}: {first} {last}",
            runner.objective.name()
        );
        assert_eq!(watcher.begins, [(0, 8)]);
        // After steps 3, 6 and 8.
        assert_eq!(watcher.saved, 3);
        let evaluated = watcher.records.iter().filter_map(|record| match record {
            Record::Evaluation(evaluation) => Some(evaluation.step),
            Record::Step(_) => None,
        });
        assert_eq!(evaluated.collect::<Vec<_>>(), [0, 4, 8]);
        for name in [
            "report.html",
            "report.json",
            "metrics.jsonl",
            "adapter_config.json",
        ] {
            assert!(runner.has(name), "{name}");
        }
        assert_eq!(
            runner.read("adapter_model.safetensors"),
            runner.read("checkpoint-8/adapter_model.safetensors")
        );
    }
}

#[test]
fn preferences_are_counted_and_all_are_even_before_the_first_step() {
    let runner = Runner::new(DPO);
    let (_, watcher, outcome) = runner.whole();
    assert_eq!(watcher.referenced, 40);
    let (first, _) = outcome.evaluations.clone().unwrap();
    let before = first.preference.unwrap();
    assert_eq!(
        (before.pairs, before.accuracy, before.mean_margin),
        (10, 0.5, 0.0)
    );
    assert_eq!(before.ties, 10);
    assert!((first.loss - f64::ln(2.0)).abs() < 1e-6, "{first:?}");
    let after = preference(&outcome);
    assert!(after.accuracy >= 0.9, "{after:?}");
    assert!(
        after.mean_margin > 0.1 && after.interval[0] > 0.5,
        "{after:?}"
    );
}

#[test]
fn a_student_that_has_drifted_is_taught_back_what_the_frozen_model_knows() {
    // Both sides of an example end with the same answer.
    let mut runner = Runner::new(Distill);
    for example in runner.examples.iter_mut().chain(&mut runner.held_out) {
        let answer = example.sides[0].clone();
        example.sides[1] = answer;
    }
    let student = Toy::new();
    let (_, inputs) = &student.variables()[0];
    inputs.set(&(inputs.as_tensor() * -2.0).unwrap()).unwrap();
    let mut watcher = Watcher::default();
    let outcome = runner.run(&student, false, &mut watcher).unwrap();
    let [first, last] = losses(&outcome);
    assert!(last < 0.8 * first, "{first} {last}");
    assert_eq!(watcher.referenced, 40);
}

#[test]
fn targets_are_learnt_without_a_teachers_side_and_a_stopped_run_goes_on_with_them() {
    let runner = with_targets();
    let (expected, watcher, outcome) = runner.whole();
    let [first, last] = losses(&outcome);
    assert!(last < 0.9 * first, "{first} {last}");
    assert_eq!(watcher.referenced, 0);
    assert!(!runner.has("references.safetensors"));

    let mut runner = with_targets();
    let mut watcher = Watcher {
        stop_after: Some((5, Arc::default())),
        ..Watcher::default()
    };
    runner.run(&Toy::new(), false, &mut watcher).unwrap();
    let student = Toy::new();
    if let Some(targets) = &mut runner.examples[0].targets {
        targets[0][0].1 = 0.7;
    }
    let refused = runner.run(&student, true, &mut Watcher::default());
    let told = refused.unwrap_err().to_string();
    assert!(told.contains("'data' was 30 examples ("), "{told}");
    runner.examples = with_targets().examples;
    runner.run(&student, true, &mut Watcher::default()).unwrap();
    assert_eq!(student.bits(), expected);
}

#[test]
fn a_run_that_changes_nothing_says_so() {
    let mut runner = Runner::new(Sft);
    let (.., outcome) = runner.whole();
    assert_eq!(outcome.report.unwrap().notes, [""; 0]);
    runner = Runner::new(Sft);
    runner.settings.learning_rate = 0.0;
    let (.., outcome) = runner.whole();
    let [note] = &outcome.report.unwrap().notes[..] else {
        panic!("one note");
    };
    assert!(note.starts_with("Nothing was learnt"), "{note}");
    assert!(
        String::from_utf8(runner.read("report.json"))
            .unwrap()
            .contains(note)
    );
    // A resumed run measures from the same initial weights.
    let again = runner.run(&Toy::new(), true, &mut Watcher::default());
    assert_eq!(again.unwrap().report.unwrap().notes, [note.as_str()]);
}

#[test]
fn a_run_does_not_write_over_another() {
    let runner = Runner::new(Sft);
    runner.whole();
    let refused = runner.run(&Toy::new(), false, &mut Watcher::default());
    let told = refused.unwrap_err().to_string();
    assert!(told.contains("--resume"), "{told}");
}

#[test]
fn what_differs_from_the_run_to_go_on_with_is_named() {
    let mut runner = Runner::new(DPO);
    runner.whole();
    let told = |runner: &Runner| {
        let refused = runner.run(&Toy::new(), true, &mut Watcher::default());
        refused.unwrap_err().to_string()
    };
    runner.settings.learning_rate = 0.1;
    assert!(
        told(&runner).ends_with("'learning-rate' was 0.05 and is 0.1"),
        "{}",
        told(&runner)
    );
    runner.settings = settings();
    runner.settings.origin.insert("rank".to_owned(), 16.into());
    assert!(told(&runner).ends_with("'rank' was not set and is 16"));
    runner.settings = settings();
    let weights = |weights: &str| ("weights".to_owned(), weights.into());
    runner.settings.origin.extend([weights("0123")]);
    runner
        .run(&Toy::new(), true, &mut Watcher::default())
        .expect(
            "a run of an older version, which does not say what weights it is of, is gone on with",
        );
    runner.settings = settings();
    runner.objective = Box::new(Dpo { beta: 0.1 });
    assert!(told(&runner).ends_with("'beta' was 0.5 and is 0.1"));
    runner.objective = Box::new(DPO);
    runner.examples[3].sides[0][0].tokens[2] ^= 1;
    assert!(told(&runner).contains("'data' was 30 examples ("));
}

#[test]
fn the_same_training_writes_the_same_files() {
    let runners = [(); 2].map(|()| Runner::new(DPO));
    let files = runners.each_ref().map(|runner| {
        runner.whole();
        let files = files_of(runner.folder.path()).into_iter();
        let files = files.map(|(path, bytes)| {
            let name = path.strip_prefix(runner.folder.path()).unwrap();
            (name.to_owned(), bytes)
        });
        files.collect::<Vec<_>>()
    });
    assert!(files[0].len() > 8, "checkpoints, references, log, adapter");
    for (one, other) in files[0].iter().zip(&files[1]) {
        assert!(
            one == other,
            "{} and {}",
            one.0.display(),
            other.0.display()
        );
    }
    assert_eq!(files[0].len(), files[1].len());
}

/// Two models of the same name may be different files.
#[test]
fn a_run_of_other_weights_is_not_gone_on_with() {
    let mut runner = Runner::new(DPO);
    let weights = |weights: &str| [("weights".to_owned(), weights.into())];
    runner.settings.origin.extend(weights("0123"));
    runner.whole();
    runner.settings.origin.extend(weights("4567"));
    let refused = runner.run(&Toy::new(), true, &mut Watcher::default());
    let told = refused.unwrap_err().to_string();
    assert!(told.ends_with("'weights' was 0123 and is 4567"), "{told}");
}

#[test]
fn what_does_not_change_the_weights_may_differ() {
    let (expected, ..) = Runner::new(Sft).whole();
    let mut runner = Runner::new(Sft);
    let mut watcher = Watcher {
        stop_after: Some((5, Arc::default())),
        ..Watcher::default()
    };
    runner.run(&Toy::new(), false, &mut watcher).unwrap();
    runner.settings.save_every = None;
    runner.settings.eval_every = Some(1);
    let student = Toy::new();
    runner.run(&student, true, &mut Watcher::default()).unwrap();
    assert_eq!(student.bits(), expected);
}

#[test]
fn batches_that_are_added_up_are_one_batch() {
    let gradient = |batch_size, accumulate| {
        let mut runner = Runner::new(Sft);
        // One step over all examples, in any order.
        runner.examples.truncate(8);
        runner.settings.length = Length::Epochs(1);
        (runner.settings.batch_size, runner.settings.accumulate) = (batch_size, accumulate);
        let (_, watcher, _) = runner.whole();
        let step = watcher.records.iter().find_map(|record| match record {
            Record::Step(step) => Some((step.loss, step.grad_norm, step.tokens)),
            Record::Evaluation(_) => None,
        });
        step.unwrap()
    };
    let (loss, norm, tokens) = gradient(8, 1);
    let added = gradient(2, 4);
    assert!((loss - added.0).abs() < 1e-6 && (norm - added.1).abs() < 1e-6);
    assert_eq!(tokens, added.2);
}

#[test]
fn a_loss_that_is_no_number_stops_and_names_the_examples() {
    let mut runner = Runner::new(Sft);
    runner.held_out.clear();
    let student = Toy::new();
    student.spoil();
    let stopped = runner.run(&student, false, &mut Watcher::default());
    let told = stopped.unwrap_err().to_string();
    assert!(
        told.starts_with("the loss of step 1 is NaN; its examples: toy.jsonl:"),
        "{told}"
    );
    assert_eq!(told.matches("toy.jsonl:").count(), 4, "{told}");
}

#[test]
fn an_adapter_that_the_loss_does_not_reach_is_named() {
    struct Aloof(Toy, Vec<(String, candle_core::Var)>);
    impl Student for Aloof {
        fn variables(&self) -> &[(String, candle_core::Var)] {
            &self.1
        }
        fn logprobs(&self, batch: &Batch) -> Result<Tensor, TrainError> {
            self.0.logprobs(batch)
        }
        fn unadapted(&self, batch: &Batch) -> Result<Tensor, TrainError> {
            self.0.unadapted(batch)
        }
        fn divergences(&self, batch: &Batch, teacher: &Tensor) -> Result<Tensor, TrainError> {
            self.0.divergences(batch, teacher)
        }
        fn sparse_divergences(
            &self,
            batch: &Batch,
            targets: &[&Target],
        ) -> Result<Tensor, TrainError> {
            self.0.sparse_divergences(batch, targets)
        }
        fn without_gradients(&self) -> Box<dyn Student + '_> {
            self.0.without_gradients()
        }
        fn save(&self, folder: &Path) -> Result<(), TrainError> {
            self.0.save(folder)
        }
    }
    let alone = candle_core::Var::new(&[1f32], &candle_core::Device::Cpu).unwrap();
    let student = Aloof(Toy::new(), vec![("alone".to_owned(), alone)]);
    let runner = Runner::new(Sft);
    let training = Training {
        student: &student,
        objective: &Sft,
        examples: &runner.examples,
        held_out: &[],
        settings: &runner.settings,
        folder: &RunFolder::open(runner.folder.path(), false).unwrap(),
        facts: &RunFacts::default(),
        stop: &AtomicBool::new(false),
    };
    let told = train(&training, &mut Watcher::default()).unwrap_err();
    assert_eq!(told.to_string(), "'alone' has no gradient");
}
