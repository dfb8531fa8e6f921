//! Runs that are stopped, killed, or hit a full disk.

use super::*;
use crate::files::faults::{self, Fault};

/// The steps in a run's log.
fn logged_steps(runner: &Runner) -> Vec<usize> {
    let text = String::from_utf8(runner.read("metrics.jsonl")).unwrap();
    let records = text.lines().map(|line| serde_json::from_str(line).unwrap());
    let steps = records.filter_map(|record| match record {
        Record::Step(step) => Some(step.step),
        Record::Evaluation(_) => None,
    });
    steps.collect()
}

/// Checks that every file in a run's folder is complete.
#[track_caller]
fn is_whole(runner: &Runner, when: &str) {
    for entry in fs::read_dir(runner.folder.path()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(!name.starts_with('.'), "{when}: {name}");
        if name.starts_with("checkpoint-") {
            let files = fs::read_dir(&path).unwrap();
            assert_eq!(files.count(), 3, "{when}: {name}");
        }
    }
}

#[test]
fn a_run_that_is_killed_at_any_moment_goes_on_as_if_it_had_not_been() {
    faults::begin(Fault::None);
    let (expected, ..) = Runner::new(DPO).whole();
    let moments = faults::begin(Fault::None);
    assert!(moments > 60, "{moments}");
    for moment in 0..moments {
        let runner = Runner::new(DPO);
        faults::begin(Fault::KilledAt(moment));
        // The run is killed as far as its files can tell: nothing is written any more.
        let killed = runner.run(&Toy::new(), false, &mut Watcher::default());
        assert!(killed.unwrap_err().to_string().contains("killed"));
        faults::begin(Fault::None);
        let (student, mut watcher) = (Toy::new(), Watcher::default());
        runner.run(&student, true, &mut watcher).unwrap();
        assert_eq!(student.bits(), expected, "killed at {moment}");
        // The log is that of an uninterrupted run.
        assert_eq!(logged_steps(&runner), (1..=8).collect::<Vec<_>>());
        is_whole(&runner, &format!("killed at {moment}"));
    }
}

#[test]
fn a_disk_that_is_full_for_a_while_costs_no_step() {
    faults::begin(Fault::None);
    let runner = Runner::new(DPO);
    let (expected, ..) = runner.whole();
    let adapter = runner.read("adapter_model.safetensors");
    let moments = faults::begin(Fault::None);
    let [mut ended_well, mut went_on] = [0; 2];
    // For an instant, for some writes, and to the end.
    for length in [1, 7, 40, usize::MAX / 2] {
        for moment in (0..moments).step_by(3) {
            let when = format!("full at {moment} for {length}");
            let runner = Runner::new(DPO);
            faults::begin(Fault::Full(moment..moment + length));
            let (student, mut watcher) = (Toy::new(), Watcher::default());
            let ended = runner.run(&student, false, &mut watcher);
            faults::begin(Fault::None);
            is_whole(&runner, &when);
            match ended {
                Ok(_) => {
                    ended_well += 1;
                    assert!(!watcher.failed.is_empty(), "{when}: it is told");
                }
                Err(error) => {
                    let told = error.to_string();
                    if let TrainError::Unsaved { last, .. } = error {
                        went_on += 1;
                        // All steps were made; the message names the last checkpoint that was
                        // written.
                        assert_eq!(student.bits(), expected, "{when}");
                        let last = last.unwrap_or_default();
                        let names = last.is_dir() && told.contains(&*last.to_string_lossy());
                        assert!(names || told.contains("no checkpoint"), "{told}");
                    }
                    let student = Toy::new();
                    let ended = runner.run(&student, true, &mut Watcher::default());
                    if let Err(TrainError::Finished(_)) = ended {
                        // There was space for nothing but the adapter.
                        assert_eq!(runner.read("adapter_model.safetensors"), adapter);
                        continue;
                    }
                    ended.unwrap();
                    assert_eq!(student.bits(), expected, "{when}");
                }
            }
            assert_eq!(runner.read("adapter_model.safetensors"), adapter, "{when}");
            assert_eq!(logged_steps(&runner), (1..=8).collect::<Vec<_>>(), "{when}");
        }
    }
    assert!(ended_well > 20 && went_on > 20, "{ended_well} {went_on}");
}

#[test]
fn a_run_of_which_only_the_report_cannot_be_written_is_not_called_unsaved() {
    let runner = Runner::new(Sft);
    let report = runner.folder.path().join("report.html");
    // No file can replace a folder.
    fs::create_dir(&report).unwrap();
    let (student, mut watcher) = (Toy::new(), Watcher::default());
    let error = runner.run(&student, false, &mut watcher).unwrap_err();
    assert!(matches!(error, TrainError::Unreported { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("checkpoint-8 is complete"), "{text}");
    assert!(text.contains("report.html"), "{text}");
    assert!(runner.has("adapter_model.safetensors"));
    // Each save is told as what it is: the checkpoint saved, the report not.
    assert_eq!(watcher.saved, 3);
    assert_eq!(watcher.failed.len(), 2, "{:?}", watcher.failed);
    for (text, step) in watcher.failed.iter().zip([3, 6]) {
        let expected = format!("checkpoint-{step} is complete");
        assert!(text.contains(&expected), "{text}");
    }

    fs::remove_dir(&report).unwrap();
    runner
        .run(&Toy::new(), true, &mut Watcher::default())
        .unwrap();
    assert!(report.is_file());
}

#[test]
fn a_checkpoint_that_is_not_whole_is_passed_over_and_told() {
    let (expected, ..) = Runner::new(Sft).whole();
    let runner = Runner::new(Sft);
    let mut watcher = Watcher {
        stop_after: Some((5, Arc::default())),
        ..Watcher::default()
    };
    runner.run(&Toy::new(), false, &mut watcher).unwrap();
    let state = runner
        .folder
        .path()
        .join("checkpoint-5/trainer.safetensors");
    let bytes = fs::read(&state).unwrap();
    fs::write(&state, &bytes[..bytes.len() - 9]).unwrap();
    fs::create_dir(runner.folder.path().join("checkpoint-7")).unwrap();
    let (student, mut watcher) = (Toy::new(), Watcher::default());
    runner.run(&student, true, &mut watcher).unwrap();
    assert_eq!(watcher.begins, [(3, 8)]);
    assert_eq!(watcher.failed.len(), 2, "{:?}", watcher.failed);
    assert!(watcher.failed[0].contains("checkpoint-7"));
    assert_eq!(student.bits(), expected);
}

#[test]
fn where_no_checkpoint_is_whole_nothing_is_written_over() {
    let runner = Runner::new(Sft);
    let mut watcher = Watcher {
        stop_after: Some((2, Arc::default())),
        ..Watcher::default()
    };
    runner.run(&Toy::new(), false, &mut watcher).unwrap();
    let before = runner.read("metrics.jsonl");
    for step in 1..=2 {
        let checkpoint = runner.folder.path().join(format!("checkpoint-{step}"));
        _ = fs::write(checkpoint.join("trainer.safetensors"), "no");
    }
    let resumed = runner.run(&Toy::new(), true, &mut Watcher::default());
    let error = resumed.unwrap_err().to_string();
    assert!(error.contains("checkpoint-"), "{error}");
    assert_eq!(runner.read("metrics.jsonl"), before);
}

#[test]
fn a_run_that_is_told_to_stop_saves_and_can_go_on() {
    let (expected, ..) = Runner::new(Sft).whole();
    // Step 4 is one after which the held-out examples would be evaluated.
    for told_at in [0, 3, 4, 5] {
        let runner = Runner::new(Sft);
        let mut watcher = Watcher {
            stop_after: Some((told_at, Arc::default())),
            ..Watcher::default()
        };
        let outcome = runner.run(&Toy::new(), false, &mut watcher).unwrap();
        assert_eq!((outcome.step, outcome.steps), (told_at, 8));
        assert!(runner.has(&format!("checkpoint-{told_at}/adapter_model.safetensors")));
        assert!(!runner.has("adapter_model.safetensors"));

        let (student, mut watcher) = (Toy::new(), Watcher::default());
        let outcome = runner.run(&student, true, &mut watcher).unwrap();
        assert_eq!(watcher.begins, [(told_at, 8)]);
        assert_eq!(student.bits(), expected);
        let evaluations = String::from_utf8(runner.read("metrics.jsonl")).unwrap();
        assert_eq!(
            evaluations.matches("evaluation").count(),
            3,
            "{evaluations}"
        );
        let (first, last) = outcome.evaluations.unwrap();
        assert_eq!((first.step, last.step), (0, 8));
    }
}
