//! Adapters in the engine: KV computed with one adapter is never reused for another, and an
//! adapter stays loaded as long as it is in use.

use std::sync::Arc;

use incant::engine::{Adapter, Engine, EngineOptions, Event, GenerateRequest, Prefix};
use incant::kv::PrefixStore;

use super::fixtures::{ADAPTERS, Fixture};
use crate::reference::tiny;
use crate::support::fixtures::greedy;
use crate::support::subjects::{self, Subject};

fn engine(fixture: &Fixture, subject: &Subject, options: EngineOptions) -> Engine {
    let executor = subject.load(&fixture.gguf());
    Engine::start(executor, options).expect("a thread starts")
}

fn request(adapter: Option<&Adapter>, prompt: &[u32], max_tokens: usize) -> GenerateRequest {
    GenerateRequest {
        adapter: adapter.cloned(),
        ..greedy(prompt, max_tokens)
    }
}

/// Returns the number of cached tokens, and the generated tokens.
fn run(engine: &Engine, request: GenerateRequest) -> (usize, Vec<u32>) {
    let mut generation = engine
        .submit(vec![request])
        .expect("there is room")
        .remove(0);
    let (mut cached, mut tokens) = (0, Vec::new());
    while let Some(event) = generation.blocking_next() {
        match event {
            Event::Started { cached_tokens, .. } => cached = cached_tokens,
            Event::Token { id, .. } => tokens.push(id),
            Event::Finished(_) => return (cached, tokens),
            Event::Prompt(_) | Event::Scored(_) | Event::Drafted { .. } => {}
            Event::Failed(why) => panic!("{why}"),
        }
    }
    panic!("the engine died");
}

/// Returns the answers of fresh engines with each adapter, and last without one.
fn cold(fixture: &Fixture, subject: &Subject, prompt: &[u32]) -> Vec<Vec<u32>> {
    let arms = ADAPTERS.iter().map(Some).chain([None]);
    let answers = arms.map(|name| {
        let engine = engine(fixture, subject, EngineOptions::default());
        let adapter = name.map(|name| engine.add_adapter(fixture.lora(name)).expect("taken in"));
        run(&engine, request(adapter.as_ref(), prompt, 12)).1
    });
    answers.collect()
}

#[test]
fn what_was_computed_under_one_adapter_serves_no_other() {
    let fixture = Fixture::new("llama");
    let prompt = tiny::tokens(5, 60);
    for subject in subjects::both() {
        let expected = cold(&fixture, subject, &prompt);
        assert!(
            expected
                .iter()
                .enumerate()
                .all(|(at, a)| !expected[..at].contains(a)),
            "the adapters differ"
        );
        let engine = engine(&fixture, subject, EngineOptions::default());
        let adapters = ADAPTERS.map(|name| {
            let adapter = engine.add_adapter(fixture.lora(name));
            adapter.expect("taken in")
        });
        let arms = || adapters.iter().map(Some).chain([None]);
        for turn in 0..2 {
            for (adapter, expected) in arms().zip(&expected) {
                let (cached, answer) = run(&engine, request(adapter, &prompt, 12));
                assert_eq!(&answer, expected);
                // The second time, all tokens except the last are cached.
                assert_eq!(cached, if turn == 0 { 0 } else { 59 });
            }
        }
        // All at once, where one sequence computes tokens for others with the same prompt.
        let long = tiny::tokens(6, 90);
        let expected = super::cached::cold(&fixture, subject, &long);
        let requests = arms().flat_map(|adapter| [(); 2].map(|()| request(adapter, &long, 12)));
        let together = engine.submit(requests.collect()).expect("there is room");
        for (index, mut generation) in together.into_iter().enumerate() {
            let mut tokens = Vec::new();
            while let Some(event) = generation.blocking_next() {
                if let Event::Token { id, .. } = event {
                    tokens.push(id);
                }
            }
            assert_eq!(tokens, expected[index / 2]);
        }
    }
}

#[test]
fn a_prefix_is_kept_once_for_each_adapter_also_on_disk() {
    let fixture = Fixture::new("llama");
    let prefix = Arc::new(Prefix {
        ids: tiny::tokens(1, 40),
    });
    for subject in subjects::both() {
        let folder = tempfile::tempdir().expect("a folder");
        let start = || {
            let store = PrefixStore::new(folder.path(), [0; 32], "tiny".to_owned());
            let options = EngineOptions {
                prefixes: Some(store),
                ..EngineOptions::default()
            };
            engine(&fixture, subject, options)
        };
        let with_prefix = |adapter: Option<&Adapter>| GenerateRequest {
            prefix: Some(Arc::clone(&prefix)),
            ..request(adapter, &tiny::tokens(2, 5), 10)
        };
        let is_whole = |entry: &std::io::Result<std::fs::DirEntry>| {
            let path = entry.as_ref().expect("an entry").path();
            path.extension().is_some_and(|kind| kind == "safetensors")
        };
        let files = || {
            let entries = std::fs::read_dir(folder.path()).expect("a folder");
            entries.filter(is_whole).count()
        };
        let first = start();
        let adapter = first.add_adapter(fixture.lora("plain")).expect("taken in");
        let arms = [None, Some(&adapter)];
        let answers = arms.map(|adapter| run(&first, with_prefix(adapter)));
        assert_eq!([answers[0].0, answers[1].0], [0, 0]);
        assert_ne!(answers[0].1, answers[1].1);
        crate::support::wait_until("both are saved", || files() == 2);
        drop(adapter);
        drop(first);

        let second = start();
        let same = second.add_adapter(fixture.lora("plain")).expect("taken in");
        let other = second
            .add_adapter(fixture.lora("patterns"))
            .expect("taken in");
        for (adapter, expected) in [None, Some(&same)].into_iter().zip(&answers) {
            assert_eq!(run(&second, with_prefix(adapter)), (39, expected.1.clone()));
        }
        assert_eq!(run(&second, with_prefix(Some(&other))).0, 0);
    }
}

#[test]
fn an_adapter_stays_as_long_as_it_is_in_use_and_leaves_no_kv_behind() {
    let fixture = Fixture::new("llama");
    let prompt = tiny::tokens(5, 60);
    for subject in subjects::both() {
        let expected = cold(&fixture, subject, &prompt);
        let options = EngineOptions {
            // One slot, so that one request waits.
            slots: 1,
            ..EngineOptions::default()
        };
        let engine = engine(&fixture, subject, options);
        let empty = engine.load().kv_used;
        for _ in 0..20 {
            let adapter = engine
                .add_adapter(fixture.lora(ADAPTERS[0]))
                .expect("taken in");
            let requests = [(); 2].map(|()| request(Some(&adapter), &prompt, 12));
            let together = engine.submit(requests.into()).expect("there is room");
            drop(adapter);
            for mut generation in together {
                let mut tokens = Vec::new();
                while let Some(event) = generation.blocking_next() {
                    if let Event::Token { id, .. } = event {
                        tokens.push(id);
                    }
                }
                assert_eq!(tokens, expected[0]);
            }
            crate::support::wait_until("its KV is free", || engine.load().kv_used == empty);
        }
    }
}
