//! Deterministic scheduler tests, step by step and without a clock.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::Worker;
use crate::exec::fake::{self, Fake, Step};
use crate::{
    Client, Engine, EngineOptions, Event, GenerateRequest, Generation, Speculation, SubmitError,
};
use incant_sample::SamplingParams;

/// An engine whose steps are run by the test.
struct Stage {
    engine: Engine,
    worker: Worker,
    steps: Arc<Mutex<Vec<Step>>>,
}

impl Stage {
    /// Creates an engine with `slots` slots, and memory for `memory` tokens.
    fn new(slots: usize, memory: usize) -> Stage {
        Stage::swapping(slots, memory, std::env::temp_dir())
    }

    fn swapping(slots: usize, memory: usize, swap_folder: PathBuf) -> Stage {
        let fake = Fake::new(memory);
        let steps = fake.steps();
        let options = EngineOptions {
            slots,
            queue: 1000,
            swap_folder,
            ..EngineOptions::default()
        };
        let (engine, worker) = Engine::around(Box::new(fake), options);
        Stage {
            engine,
            worker,
            steps,
        }
    }

    /// Sends one request of a client.
    fn send(&self, client: &str, requests: &[GenerateRequest]) -> Vec<Answer> {
        let client = Client::named(client.as_bytes());
        let generations = self.engine.submit_for(client, requests.to_vec());
        let generations = generations.expect("there is room").into_iter();
        let answers = generations.zip(requests);
        let answer = |(generation, request): (Generation, &GenerateRequest)| Answer {
            generation,
            request: request.clone(),
            tokens: Vec::new(),
            has_ended: false,
        };
        answers.map(answer).collect()
    }

    /// Runs steps until all answers have ended; returns the number of steps.
    fn run(&mut self, answers: &mut [Answer]) -> usize {
        for turn in 0..100_000 {
            if answers.iter_mut().all(Answer::is_over) {
                return turn;
            }
            self.turn(1);
        }
        panic!("it does not end");
    }

    fn turn(&mut self, count: usize) {
        for _ in 0..count {
            assert!(self.worker.read_messages());
            self.worker.turn();
        }
    }

    /// Returns the batches computed since the last call.
    fn steps(&self) -> Vec<Step> {
        std::mem::take(&mut self.steps.lock().expect("nobody panicked"))
    }
}

/// An answer, received so far.
struct Answer {
    generation: Generation,
    request: GenerateRequest,
    tokens: Vec<u32>,
    has_ended: bool,
}

impl Answer {
    /// Receives events. Once the answer has ended, checks that it is correct.
    fn is_over(&mut self) -> bool {
        while let Some(event) = self.generation.try_next() {
            match event {
                Event::Token { id, .. } => self.tokens.push(id),
                Event::Finished(_) => {
                    self.has_ended = true;
                    let request = &self.request;
                    let expected = fake::answer(&request.prompt, request.max_tokens);
                    assert_eq!(self.tokens, expected);
                }
                Event::Failed(why) => panic!("{why}"),
                Event::Started { .. }
                | Event::Prompt(_)
                | Event::Scored(_)
                | Event::Drafted { .. } => {}
            }
        }
        self.has_ended
    }

    fn tokens(&mut self) -> usize {
        self.is_over();
        self.tokens.len()
    }
}

fn request(prompt: Vec<u32>, max_tokens: usize) -> GenerateRequest {
    GenerateRequest {
        adapter: None,
        prefix: None,
        prompt,
        max_tokens,
        end_tokens: Arc::from([]),
        sampling: SamplingParams {
            temperature: 0.0,
            ..SamplingParams::default()
        },
        index: 0,
        logprobs: None,
        prompt_logprobs: None,
        feeds: Vec::new(),
        together: None,
        isolated: false,
        speculation: Some(Speculation::OFF),
        prediction: Vec::new(),
    }
}

/// Requests without common prefixes, of 20 tokens each.
fn several(first: usize, count: usize, max_tokens: usize) -> Vec<GenerateRequest> {
    let prompts = (first..first + count).map(|seed| fake::prompt(seed, 20));
    prompts.map(|prompt| request(prompt, max_tokens)).collect()
}

fn scored(request: GenerateRequest) -> GenerateRequest {
    GenerateRequest {
        prompt_logprobs: Some(1),
        ..request
    }
}

#[test]
fn who_comes_later_is_answered_as_if_nobody_else_had_much_to_do() {
    let mut alone = Stage::new(4, 100_000);
    let mut only = alone.send("b", &several(500, 1, 20));
    let turns = alone.run(&mut only);
    // A request of another client, or another request of the same client.
    for other in ["b", "a"] {
        let mut stage = Stage::new(4, 100_000);
        let mut many = stage.send("a", &several(0, 40, 50));
        stage.turn(30);
        assert_eq!(
            stage.steps().last().map(Vec::len),
            Some(4),
            "it has all slots"
        );
        let mut late = stage.send(other, &several(500, 1, 20));
        assert!(stage.run(&mut late) <= turns + 2, "{other}");
        assert!(!many.iter_mut().all(Answer::is_over));
        stage.run(&mut many);
        assert!(stage.steps().iter().all(|step| step.len() <= 4));
        assert!(stage.worker.is_idle() && stage.engine.load().running == 0);
    }
}

#[test]
fn slots_are_shared_evenly_whatever_each_has_queued() {
    let mut stage = Stage::new(6, 100_000);
    let mut answers = [("a", 30), ("b", 12), ("c", 5)]
        .map(|(client, count)| stage.send(client, &several(100 * count, count, 60)));
    stage.turn(100);
    let tokens = answers
        .each_mut()
        .map(|of_client| of_client.iter_mut().map(Answer::tokens).sum::<usize>());
    let (least, most) = (tokens.iter().min(), tokens.iter().max());
    let (least, most) = (
        least.copied().expect("three"),
        most.copied().expect("three"),
    );
    assert!(least > 100 && most - least <= least / 5, "{tokens:?}");
    for of_client in &mut answers {
        stage.run(of_client);
    }
}

#[test]
fn requests_of_one_client_are_let_in_as_they_come() {
    let mut stage = Stage::new(3, 100_000);
    let requests = several(0, 9, 20);
    let mut answers: Vec<Answer> = requests
        .chunks(1)
        .flat_map(|request| stage.send("a", request))
        .collect();
    while !answers.iter_mut().all(Answer::is_over) {
        stage.turn(1);
        let tokens: Vec<usize> = answers.iter_mut().map(Answer::tokens).collect();
        assert!(tokens.is_sorted_by(|a, b| a >= b), "{tokens:?}");
    }
}

#[test]
fn scored_prompts_leave_answers_their_place_in_every_step() {
    for client in ["a", "b"] {
        let mut stage = Stage::new(8, 100_000);
        let prompts = (0..6).map(|seed| scored(request(fake::prompt(seed, 3000), 0)));
        let prompts: Vec<_> = prompts.collect();
        let mut prompts: Vec<Answer> = prompts
            .chunks(1)
            .flat_map(|prompt| stage.send("a", prompt))
            .collect();
        stage.turn(5);
        // It has a common prefix with one of them, but need not wait for that.
        let mut prompt = fake::prompt(5, 200);
        prompt.push(1);
        let mut late = stage.send(client, &[request(prompt, 20)]);
        stage.steps();
        assert!(stage.run(&mut late) <= 100, "{client}");
        for step in stage.steps() {
            let scored = step
                .iter()
                .filter(|(_, wanted)| *wanted == crate::exec::Wanted::All);
            let scored: usize = scored.map(|(tokens, _)| tokens).sum();
            assert!((1..=64).contains(&scored), "{step:?}");
        }
        stage.run(&mut prompts);
    }
}

#[test]
fn memory_that_runs_out_changes_no_answer_and_starves_nobody() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    // Once with swap files, once with a folder that cannot be created.
    for folder in [std::env::temp_dir(), file.path().join("swap")] {
        let mut stage = Stage::swapping(8, 300, folder);
        let mut many = stage.send("a", &several(0, 12, 60));
        stage.turn(60);
        let mut late = stage.send("b", &several(500, 1, 30));
        stage.run(&mut late);
        let done = many
            .iter_mut()
            .filter_map(|one| one.is_over().then_some(()));
        assert!(done.count() <= 8);
        stage.run(&mut many);
        assert!(stage.engine.load().preemptions > 0);
    }
}

#[test]
fn a_scored_prompt_whose_kv_is_lost_is_scored_once() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let mut stage = Stage::swapping(8, 300, file.path().join("swap"));
    let requests = (0..5).map(|seed| scored(request(fake::prompt(seed, 70), 40)));
    let mut answers = stage.send("a", &requests.collect::<Vec<_>>());
    let mut entries = [0; 5];
    while !answers.iter().all(|answer| answer.has_ended) {
        stage.turn(1);
        for (answer, entries) in answers.iter_mut().zip(&mut entries) {
            while let Some(event) = answer.generation.try_next() {
                match event {
                    Event::Prompt(prompt) => *entries += prompt.len(),
                    Event::Token { id, .. } => answer.tokens.push(id),
                    Event::Finished(_) => answer.has_ended = true,
                    Event::Failed(why) => panic!("{why}"),
                    _ => {}
                }
            }
        }
    }
    assert_eq!(entries, [70; 5]);
    for answer in answers {
        assert_eq!(answer.tokens, fake::answer(&answer.request.prompt, 40));
    }
    assert!(stage.engine.load().preemptions > 0);
}

#[test]
fn a_full_queue_has_room_for_another_client_and_tells_how_long_it_takes() {
    let mut stage = Stage::new(2, 100_000);
    let mut many = stage.send("a", &several(0, 1002, 40));
    stage.turn(10);
    let more = |client: &str| {
        let client = Client::named(client.as_bytes());
        stage.engine.submit_for(client, several(2000, 1, 1))
    };
    let full = more("a").expect_err("its own places are taken");
    assert!(
        matches!(
            full,
            SubmitError::QueueFull {
                retry_after: 1..=60
            }
        ),
        "{full:?}"
    );
    assert_eq!(more("b").expect("a spare place").len(), 1);
    many.truncate(0);
    stage.turn(1);
    assert_eq!(stage.engine.load().waiting, 0);
}

/// Requests whose answers are predicted, except for every ninth token.
fn predicted(requests: Vec<GenerateRequest>, speculation: Speculation) -> Vec<GenerateRequest> {
    let predict = |request: GenerateRequest| {
        let mut prediction = fake::answer(&request.prompt, request.max_tokens);
        prediction
            .iter_mut()
            .skip(4)
            .step_by(9)
            .for_each(|token| *token ^= 1);
        GenerateRequest {
            speculation: Some(speculation),
            prediction,
            ..request
        }
    };
    requests.into_iter().map(predict).collect()
}

#[test]
fn drafts_save_steps_and_change_no_answer() {
    for speculation in [
        Speculation::UpTo(5),
        Speculation::UpTo(15),
        Speculation::Auto,
    ] {
        let mut stage = Stage::new(4, 100_000);
        let mut answers = stage.send("a", &predicted(several(0, 1, 200), speculation));
        let (mut drafted_in_all, mut accepted_in_all) = (0, 0);
        let mut turns = 0;
        while !answers[0].has_ended {
            stage.turn(1);
            turns += 1;
            while let Some(event) = answers[0].generation.try_next() {
                match event {
                    Event::Token { id, .. } => answers[0].tokens.push(id),
                    Event::Drafted { drafted, accepted } => {
                        assert!(accepted <= drafted && !answers[0].has_ended);
                        drafted_in_all += drafted;
                        accepted_in_all += accepted;
                    }
                    Event::Finished(_) => answers[0].has_ended = true,
                    _ => {}
                }
            }
        }
        let prompt = &answers[0].request.prompt;
        assert_eq!(answers[0].tokens, fake::answer(prompt, 200));
        if speculation != Speculation::Auto {
            assert!(
                turns < 90,
                "{turns} steps, {accepted_in_all} of {drafted_in_all} accepted"
            );
        }
        // Each accepted token has saved a step.
        assert!(turns + accepted_in_all <= 203 && turns + accepted_in_all >= 200);
    }
}

#[test]
fn drafts_and_memory_that_runs_out_change_no_answer() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    for folder in [std::env::temp_dir(), file.path().join("swap")] {
        let mut stage = Stage::swapping(8, 300, folder);
        let requests = predicted(several(0, 12, 60), Speculation::UpTo(7));
        let mut many = stage.send("a", &requests);
        stage.run(&mut many);
        assert!(stage.engine.load().preemptions > 0);
        assert!(stage.worker.is_idle());
    }
}

#[test]
fn drafts_take_no_more_rows_of_logits_than_may_be_held() {
    let mut stage = Stage::new(32, 100_000);
    let requests = predicted(several(0, 32, 60), Speculation::UpTo(15));
    let mut many = stage.send("a", &requests);
    stage.run(&mut many);
    let rows = stage.steps().into_iter().map(|step| {
        let wanted = step
            .iter()
            .filter(|(_, wanted)| *wanted == crate::exec::Wanted::All);
        wanted.map(|(tokens, _)| tokens).sum::<usize>()
    });
    let most = rows.max();
    assert!(
        most.is_some_and(|rows| (33..=64).contains(&rows)),
        "{most:?}"
    );
}
