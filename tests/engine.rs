//! The engine on a real model: batching, chunking and the origin of a prefix do not change
//! answers; a client that disconnects frees its slot.

#[cfg(debug_assertions)]
mod faults;
mod following;
mod sharing;
mod speculation;
mod together;

use std::path::Path;
use std::sync::Arc;

use incant::engine::{
    Engine, EngineOptions, Event, FinishReason, GenerateRequest, Generation, Origin, Prefix,
    SubmitError,
};
use incant::gguf::Gguf;
use incant::kv::PrefixStore;
use incant::sample::{SamplingParams, TokenLogprobs};
use incant::text::{Special, Tokenizer};

use crate::support::fixtures::greedy;
use crate::support::subjects::{self, Subject};
use crate::support::{self, wait_until};

const MODEL: &str = "smollm2-135m-instruct";

fn engine(subject: &Subject, prefixes: Option<&Path>, options: EngineOptions) -> Engine {
    let gguf = Gguf::open(&support::model(MODEL)).expect("the model opens");
    let executor = subject.load(&gguf);
    let store =
        prefixes.map(|folder| PrefixStore::new(folder, gguf.fingerprint(), executor.kv_format()));
    let options = EngineOptions {
        prefixes: store,
        ..options
    };
    Engine::start(executor, options).expect("a thread starts")
}

fn encode(text: &str) -> Vec<u32> {
    let gguf = Gguf::open(&support::model(MODEL)).expect("the model opens");
    let tokenizer = Tokenizer::from_gguf(&gguf).expect("the tokenizer loads");
    tokenizer.encode(text, Special::Parse)
}

/// A greedy request that reports everything.
fn request(prefix: Option<&Arc<Prefix>>, prompt: &[u32], max_tokens: usize) -> GenerateRequest {
    GenerateRequest {
        prefix: prefix.cloned(),
        logprobs: Some(3),
        prompt_logprobs: Some(3),
        ..greedy(prompt, max_tokens)
    }
}

/// Everything that one sequence reported.
#[derive(Debug)]
struct Report {
    cached: usize,
    prompt: Vec<Option<TokenLogprobs>>,
    tokens: Vec<(u32, TokenLogprobs)>,
    finish: FinishReason,
}

fn report(mut generation: Generation) -> Report {
    let (mut cached, mut prompt, mut tokens) = (None, Vec::new(), Vec::new());
    while let Some(event) = generation.blocking_next() {
        match event {
            Event::Started { cached_tokens, .. } => cached = Some(cached_tokens),
            Event::Prompt(entries) => prompt = entries,
            Event::Token { id, logprobs } => tokens.push((id, logprobs.expect("asked for"))),
            Event::Finished(finish) => {
                return Report {
                    cached: cached.expect("started comes first"),
                    prompt,
                    tokens,
                    finish,
                };
            }
            Event::Failed(why) => panic!("{why}"),
            Event::Drafted { .. } => {}
            Event::Scored(scored) => panic!("it follows nobody: {scored:?}"),
        }
    }
    panic!("the engine died");
}

fn alone(engine: &Engine, request: GenerateRequest) -> Report {
    let mut generations = engine.submit(vec![request]).expect("there is room");
    report(generations.remove(0))
}

/// Asserts the same tokens and log-probabilities, independent of batching.
fn assert_same(subject: &Subject, a: &Report, b: &Report) {
    let ids = |report: &Report| report.tokens.iter().map(|(id, _)| *id).collect::<Vec<_>>();
    assert_eq!(ids(a), ids(b));
    assert_eq!(a.finish, b.finish);
    assert_eq!(a.prompt.len(), b.prompt.len());
    let generated = |report: &Report| {
        report
            .tokens
            .iter()
            .map(|(_, l)| l.chosen)
            .collect::<Vec<_>>()
    };
    let scored = |report: &Report| {
        let entries = report
            .prompt
            .iter()
            .map(|entry| entry.as_ref().map_or(0.0, |l| l.chosen));
        entries.collect::<Vec<_>>()
    };
    for (x, y) in generated(a)
        .iter()
        .zip(&generated(b))
        .chain(scored(a).iter().zip(&scored(b)))
    {
        let apart = (x - y).abs();
        assert!(apart <= subject.between_batches, "{subject}: {x} and {y}");
    }
}

const QUESTIONS: [&str; 4] = [
    "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
    "The capital of France is",
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20,",
    "Once upon a time, in a small village at the edge of a dark forest, there lived",
];

#[test]
fn company_and_chunking_change_nothing() {
    for subject in subjects::both() {
        let prompts = QUESTIONS.map(encode);
        let wide = engine(subject, None, EngineOptions::default());
        let expected: Vec<Report> = prompts
            .iter()
            .map(|p| alone(&wide, request(None, p, 12)))
            .collect();
        // Long prompts before short ones, so that some decode while others are still prefilled.
        let together = prompts.iter().map(|p| request(None, p, 12)).collect();
        let together = wide.submit(together).expect("there is room");
        for (expected, generation) in expected.iter().zip(together) {
            assert_same(subject, expected, &report(generation));
        }
        drop(wide);
        let narrow = EngineOptions {
            slots: 3,
            chunk: 5,
            ..EngineOptions::default()
        };
        let narrow = engine(subject, None, narrow);
        let together = prompts.iter().map(|p| request(None, p, 12)).collect();
        let together = narrow.submit(together).expect("there is room");
        for (expected, generation) in expected.iter().zip(together) {
            assert_same(subject, expected, &report(generation));
        }
    }
}

#[test]
fn scoring_a_prompt_is_stepping_through_it() {
    for subject in subjects::both() {
        let engine = engine(subject, None, EngineOptions::default());
        let prompt = encode("The quick brown fox jumps over the lazy dog, and then it rests.");
        let scored = alone(&engine, request(None, &prompt, 0));
        assert!(scored.tokens.is_empty());
        assert_eq!(scored.finish, FinishReason::Length);
        assert_eq!(scored.prompt.len(), prompt.len());
        assert_eq!(scored.prompt[0], None, "nothing precedes the first token");
        for (position, entry) in scored.prompt.iter().enumerate().skip(1) {
            // The logit bias forces one token; its log-probability is that of the raw logits.
            let mut step = request(None, &prompt[..position], 1);
            step.prompt_logprobs = None;
            step.sampling.logit_bias = vec![(prompt[position], 1e6)];
            let stepped = alone(&engine, step);
            assert_eq!(stepped.tokens[0].0, prompt[position]);
            let (scored, stepped) = (entry.as_ref().expect("scored"), &stepped.tokens[0].1);
            let apart = (scored.chosen - stepped.chosen).abs();
            assert!(
                apart <= subject.between_batches,
                "{subject}: {apart:.1e} apart"
            );
            assert_eq!(scored.top[0].0, stepped.top[0].0);
        }
    }
}

#[test]
fn a_prefix_is_the_same_from_memory_disk_and_recomputed() {
    for subject in subjects::both() {
        let folder = tempfile::tempdir().expect("a folder");
        let text =
            "# Instruction\nAnswer briefly and kindly.\n\n# Query:\nHi\n\n# Answer:\nHello!\n\n";
        let prefix = Arc::new(Prefix { ids: encode(text) });
        let prompt = encode("# Query:\nWhat is two plus two?\n\n# Answer:\n");
        let whole: Vec<u32> = prefix.ids.iter().chain(&prompt).copied().collect();

        let first = engine(subject, Some(folder.path()), EngineOptions::default());
        let mut plain = request(None, &whole, 12);
        plain.prompt_logprobs = None;
        let recomputed = alone(
            &engine(subject, None, EngineOptions::default()),
            plain.clone(),
        );
        assert_eq!(recomputed.cached, 0);
        let cold = alone(&first, request(Some(&prefix), &prompt, 12));
        let sent = alone(&first, plain);
        // A prefix that a client sends as part of its prompt is shared, too; and so is the
        // rest.
        assert_eq!(sent.cached, whole.len() - 1);
        let warm = alone(&first, request(Some(&prefix), &prompt, 12));
        assert_eq!(cold.cached, 0, "the first one computed it");
        assert_eq!(warm.cached, prefix.ids.len() - 1);
        assert!(
            warm.prompt[0].is_some(),
            "the prefix precedes the first token"
        );
        assert_same(subject, &cold, &warm);
        let tokens = |report: &Report| report.tokens.iter().map(|(id, _)| *id).collect::<Vec<_>>();
        assert_eq!(tokens(&recomputed), tokens(&warm));
        assert_eq!(tokens(&recomputed), tokens(&sent));
        drop(first);

        // The prefix is saved on a thread of its own.
        let saved = || {
            std::fs::read_dir(folder.path())
                .expect("the folder")
                .flatten()
                .find(|entry| {
                    entry
                        .path()
                        .extension()
                        .is_some_and(|extension| extension == "safetensors")
                })
        };
        wait_until("the prefix is saved", || saved().is_some());
        let second = engine(subject, Some(folder.path()), EngineOptions::default());
        let warmed = second.warm(Arc::clone(&prefix)).expect("it loads");
        assert_eq!(warmed.origin, Origin::Disk);
        let disk = alone(&second, request(Some(&prefix), &prompt, 12));
        assert_eq!(disk.cached, prefix.ids.len() - 1);
        assert_same(subject, &disk, &warm);
        drop(second);
        let unwarmed = engine(subject, Some(folder.path()), EngineOptions::default());
        let found = alone(&unwarmed, request(Some(&prefix), &prompt, 12));
        assert_eq!(found.cached, prefix.ids.len() - 1, "the first one finds it");
        assert_same(subject, &found, &warm);
        drop(unwarmed);

        // A corrupt file is treated like a missing one.
        let path = saved().expect("it is there").path();
        let mut bytes = std::fs::read(&path).expect("it can be read");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, &bytes).expect("it can be written");
        let third = engine(subject, Some(folder.path()), EngineOptions::default());
        let warmed = third.warm(Arc::clone(&prefix)).expect("it is computed");
        assert_eq!(warmed.origin, Origin::Computed);
        assert_same(
            subject,
            &alone(&third, request(Some(&prefix), &prompt, 12)),
            &warm,
        );
    }
}

#[test]
fn a_client_that_leaves_frees_its_slot_and_a_full_queue_refuses() {
    for subject in subjects::both() {
        let options = EngineOptions {
            slots: 1,
            queue: 2,
            ..EngineOptions::default()
        };
        let engine = engine(subject, None, options);
        let prompt = encode("Once upon a time");
        let long = || {
            let mut long = request(None, &prompt, 4000);
            long.prompt_logprobs = None;
            long
        };
        let mut first = engine.submit(vec![long()]).expect("a free slot").remove(0);
        // The sequence runs once it has generated a token.
        while !matches!(first.blocking_next(), Some(Event::Token { .. })) {}
        let waiting = engine.submit(vec![long(), long()]).expect("two may wait");
        assert!(matches!(
            engine.submit(vec![long()]),
            Err(SubmitError::QueueFull { retry_after: 1.. })
        ));
        assert!(matches!(
            engine.submit(vec![long(), long(), long(), long()]),
            Err(SubmitError::TooMany { asked: 4, limit: 3 })
        ));
        drop(first);
        drop(waiting);
        wait_until("everything is free", || {
            let load = engine.load();
            load.running == 0 && load.waiting == 0
        });
        let report = alone(&engine, request(None, &prompt, 3));
        assert_eq!(report.tokens.len(), 3);

        engine.drain();
        assert!(matches!(
            engine.submit(vec![long()]),
            Err(SubmitError::Draining)
        ));
    }
}

#[test]
fn a_seed_repeats_an_answer_and_each_index_has_its_own() {
    for subject in subjects::both() {
        let engine = engine(subject, None, EngineOptions::default());
        let prompt = encode("My favourite animal is the");
        let sampled = |seed, index| {
            let mut sampled = request(None, &prompt, 12);
            sampled.sampling = SamplingParams {
                seed: Some(seed),
                ..SamplingParams::default()
            };
            sampled.index = index;
            let report = alone(&engine, sampled);
            report.tokens.iter().map(|(id, _)| *id).collect::<Vec<_>>()
        };
        let once = sampled(7, 0);
        assert_eq!(once, sampled(7, 0));
        assert_ne!(once, sampled(7, 1));
        assert_ne!(once, sampled(8, 0));
    }
}
