//! Sharing of KV (prefix cache), and preemption when memory runs out, on tiny models: answers
//! do not change.

use std::sync::Arc;

use incant::engine::{
    Engine, EngineOptions, Event, FinishReason, GenerateRequest, Generation, Prefix, Speculation,
};
use incant::gguf::Gguf;
use incant::kv::PrefixStore;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{assert_same, report, request};
use crate::reference::tiny::{self, Tiny};
use crate::support::subjects::{self, Subject};
use crate::support::wait_until;

/// A model with sliding windows and one without, on both executors.
pub(super) fn cases() -> impl Iterator<Item = (&'static Subject, Tiny)> {
    let models = [Tiny::gemma3(), Tiny::llama()];
    subjects::both().flat_map(move |subject| models.clone().map(|model| (subject, model)))
}

pub(super) fn engine(
    model: &Tiny,
    subject: &Subject,
    kv_memory: Option<usize>,
    options: EngineOptions,
) -> Engine {
    let file = model.written(&model.tensors());
    let gguf = Gguf::open(file.path()).expect("a good file");
    Engine::start(subject.load_with(&gguf, kv_memory), options).expect("a thread starts")
}

/// A KV cache for about 600 tokens.
pub(super) fn little_memory(model: &Tiny, subject: &Subject) -> Option<usize> {
    let token = 2 * model.layers * model.kv_heads * model.head_dim.next_multiple_of(16);
    Some(600 * token * subject.kv_element_size())
}

/// A greedy request that reports the log-probabilities of its tokens.
pub(super) fn plain(prompt: &[u32], max_tokens: usize) -> GenerateRequest {
    GenerateRequest {
        prompt_logprobs: None,
        ..request(None, prompt, max_tokens)
    }
}

/// A plain request without drafts: such sequences grow in step with each other, so it is known
/// when they need all memory.
fn steady(prompt: &[u32], max_tokens: usize) -> GenerateRequest {
    GenerateRequest {
        speculation: Some(Speculation::OFF),
        ..plain(prompt, max_tokens)
    }
}

/// Answers each request by an engine of its own.
fn alone(model: &Tiny, subject: &Subject, requests: &[GenerateRequest]) -> Vec<super::Report> {
    let answers = requests.iter().map(|request| {
        let engine = engine(model, subject, None, EngineOptions::default());
        super::alone(&engine, request.clone())
    });
    answers.collect()
}

fn after(beginning: &[u32], seed: u64, tokens: usize) -> Vec<u32> {
    let own = tiny::tokens(seed, tokens);
    beginning.iter().copied().chain(own).collect()
}

#[test]
fn requests_that_begin_alike_wait_for_one_prefill() {
    for (subject, model) in cases() {
        let shared = tiny::tokens(1, 200);
        let requests: Vec<_> = (0..8)
            .map(|at| plain(&after(&shared, 10 + at, 6 + at as usize), 5))
            .collect();
        let expected = alone(&model, subject, &requests);
        // Chunks that end in the middle of the shared tokens, and one that holds all of them.
        for chunk in [48, 256] {
            let options = EngineOptions {
                chunk,
                ..EngineOptions::default()
            };
            let engine = engine(&model, subject, None, options);
            let together = engine.submit(requests.clone()).expect("there is room");
            let reports: Vec<_> = together.into_iter().map(report).collect();
            for (report, expected) in reports.iter().zip(&expected) {
                assert_same(subject, report, expected);
            }
            let cached: Vec<usize> = reports.iter().map(|report| report.cached).collect();
            assert_eq!(cached[0], 0, "{cached:?}");
            assert!(
                cached[1..].iter().all(|&cached| cached >= 200),
                "{cached:?}"
            );
            // The common prefix is kept.
            let late = plain(&after(&shared, 99, 4), 5);
            let late = super::alone(&engine, late);
            assert!(late.cached >= 200, "{}", late.cached);
        }
    }
}

#[test]
fn a_conversation_goes_on_from_its_earlier_turns() {
    for (subject, model) in cases() {
        let engine = engine(&model, subject, None, EngineOptions::default());
        let mut conversation = tiny::tokens(1, 70);
        for turn in 0..4 {
            let question = after(&conversation, 20 + turn, 5);
            let request = plain(&question, 20);
            let answer = super::alone(&engine, request.clone());
            assert_same(subject, &answer, &alone(&model, subject, &[request])[0]);
            // All tokens except the last of the previous answer, which was never computed.
            let known = conversation.len().saturating_sub(1);
            let cached = if turn == 0 { 0 } else { known };
            assert_eq!(answer.cached, cached, "turn {turn}");
            conversation = question;
            conversation.extend(answer.tokens.iter().map(|(id, _)| *id));
        }
    }
}

#[test]
fn who_has_to_give_way_goes_on_as_if_nothing_had_been() {
    for (subject, model) in cases() {
        let requests: Vec<_> = (0..6)
            .map(|at| steady(&tiny::tokens(30 + at, 60 + 10 * at as usize), 120))
            .collect();
        let expected = alone(&model, subject, &requests);
        let memory = little_memory(&model, subject);
        let engine = engine(&model, subject, memory, EngineOptions::default());
        let together = engine.submit(requests).expect("there is room");
        for (report, expected) in together.into_iter().map(report).zip(&expected) {
            assert_same(subject, &report, expected);
        }
        let load = engine.load();
        assert!(
            load.preemptions > 0,
            "{subject}, {}: {load:?}",
            model.architecture
        );
        assert!(load.kv_used <= load.kv_capacity, "{load:?}");
    }
}

#[test]
fn those_who_share_and_give_way_go_on_as_if_nothing_had_been() {
    for (subject, model) in cases() {
        let shared = tiny::tokens(1, 150);
        let requests: Vec<_> = (0..6)
            .map(|at| steady(&after(&shared, 40 + at, 5), 110 + 10 * at as usize))
            .collect();
        let expected = alone(&model, subject, &requests);
        let memory = little_memory(&model, subject);
        let engine = engine(&model, subject, memory, EngineOptions::default());
        // More than once, so that there is KV to evict.
        for _ in 0..2 {
            let together = engine.submit(requests.clone()).expect("there is room");
            for (report, expected) in together.into_iter().map(report).zip(&expected) {
                assert_same(subject, &report, expected);
            }
        }
        let load = engine.load();
        assert!(
            load.preemptions > 0,
            "{subject}, {}: {load:?}",
            model.architecture
        );
    }
}

/// KV that only swapped-out sequences share must not block the running one.
#[test]
fn who_runs_alone_gets_what_others_share() {
    for (subject, model) in cases() {
        let shared = tiny::tokens(1, 250);
        let alone_in_the_end = plain(&tiny::tokens(2, 100), 400);
        let others = (0..2).map(|at| plain(&after(&shared, 40 + at, 20), 160));
        let requests: Vec<_> = std::iter::once(alone_in_the_end).chain(others).collect();
        let expected = alone(&model, subject, &requests);
        let memory = little_memory(&model, subject);
        let engine = engine(&model, subject, memory, EngineOptions::default());
        let together = engine.submit(requests).expect("there is room");
        for (report, expected) in together.into_iter().map(report).zip(&expected) {
            assert_same(subject, &report, expected);
        }
    }
}

/// KV outside a sliding window is released while memory is short, even if another request could
/// have reused it.
#[test]
fn a_request_like_one_that_was_trimmed_is_answered_all_the_same() {
    // The other executor never trims, and the other model has no windows.
    let (subject, model) = (subjects::native(), Tiny::gemma3());
    let prompt = tiny::tokens(1, 300);
    let long = plain(&prompt, 150);
    let other = plain(&after(&prompt[..200], 2, 5), 5);
    let expected = alone(&model, subject, &[long.clone(), other.clone()]);
    let token = 2 * model.layers * model.kv_heads * model.head_dim.next_multiple_of(16);
    let memory = Some(380 * token * subject.kv_element_size());
    let engine = engine(&model, subject, memory, EngineOptions::default());
    let mut running = engine.submit(vec![long]).expect("there is room").remove(0);
    let mut tokens = Vec::new();
    while tokens.len() < 100 {
        let event = running.blocking_next().expect("it goes on");
        if let Event::Token { id, .. } = event {
            tokens.push(id);
        }
    }
    let report = super::alone(&engine, other);
    assert_same(subject, &report, &expected[1]);
    while let Some(event) = running.blocking_next() {
        if let Event::Token { id, .. } = event {
            tokens.push(id);
        }
    }
    let all = expected[0].tokens.iter().map(|(id, _)| *id);
    assert!(
        tokens.into_iter().eq(all),
        "{subject}, {}",
        model.architecture
    );
}

#[test]
fn a_prefix_is_read_into_memory_that_is_full() {
    for (subject, model) in cases() {
        let folder = tempfile::tempdir().expect("a folder");
        let prefix = Arc::new(Prefix {
            ids: tiny::tokens(1, 100),
        });
        let with_prefix = GenerateRequest {
            prefix: Some(Arc::clone(&prefix)),
            ..plain(&tiny::tokens(2, 5), 3)
        };
        let start = || {
            let store = PrefixStore::new(folder.path(), [0; 32], "tiny".to_owned());
            let options = EngineOptions {
                prefixes: Some(store.clone()),
                ..EngineOptions::default()
            };
            let memory = little_memory(&model, subject);
            (store, engine(&model, subject, memory, options))
        };
        let (store, first) = start();
        super::alone(&first, with_prefix.clone());
        wait_until("the prefix is saved", || store.has(&prefix.ids[..99]));
        drop(first);
        let (_, second) = start();
        for seed in 100..120 {
            super::alone(&second, plain(&tiny::tokens(seed, 90), 3));
        }
        assert_eq!(super::alone(&second, with_prefix).cached, 99);
    }
}

#[test]
fn who_has_nowhere_to_go_is_computed_again_as_it_was() {
    for (subject, model) in cases() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let options = EngineOptions {
            // No folder can be created there.
            swap_folder: file.path().join("swap"),
            ..EngineOptions::default()
        };
        let engine = engine(&model, subject, little_memory(&model, subject), options);
        // Some have a common prefix, one is isolated, and one is scored.
        let shared = tiny::tokens(1, 60);
        let mut requests: Vec<_> = (0..6)
            .map(|at| match at % 2 {
                0 => steady(&tiny::tokens(30 + at, 100), 120),
                _ => steady(&after(&shared, 30 + at, 40), 120),
            })
            .collect();
        requests[4].isolated = true;
        requests[5].prompt_logprobs = Some(2);
        let expected = alone(&model, subject, &requests);
        let together = engine.submit(requests).expect("there is room");
        for (report, expected) in together.into_iter().map(report).zip(&expected) {
            assert_same(subject, &report, expected);
        }
        assert!(engine.load().preemptions > 0, "{subject}");
    }
}

#[test]
fn what_was_used_least_recently_goes_first_and_prefixes_never() {
    for (subject, model) in cases() {
        let memory = little_memory(&model, subject);
        let engine = engine(&model, subject, memory, EngineOptions::default());
        let prefix = Arc::new(Prefix {
            ids: tiny::tokens(1, 80),
        });
        let with_prefix = |seed| GenerateRequest {
            prefix: Some(Arc::clone(&prefix)),
            ..plain(&tiny::tokens(seed, 5), 3)
        };
        super::alone(&engine, with_prefix(2));
        let first = plain(&tiny::tokens(3, 90), 3);
        super::alone(&engine, first.clone());
        assert_eq!(super::alone(&engine, first.clone()).cached, 89);
        // Far more than fits in the KV cache.
        for seed in 100..160 {
            let report = super::alone(&engine, plain(&tiny::tokens(seed, 90), 3));
            assert_eq!(report.cached, 0);
            let load = engine.load();
            assert!(load.kv_used <= load.kv_capacity, "{load:?}");
        }
        assert_eq!(super::alone(&engine, first).cached, 0, "it has gone");
        assert_eq!(super::alone(&engine, with_prefix(4)).cached, 79);
    }
}

/// As when a profile has changed and the last request that used its prefix is done.
#[test]
fn a_prefix_that_nobody_holds_any_more_goes_with_the_rest() {
    for (subject, model) in cases() {
        let memory = little_memory(&model, subject);
        let engine = engine(&model, subject, memory, EngineOptions::default());
        let prefix = |seed| {
            let ids = tiny::tokens(seed, 80);
            Arc::new(Prefix { ids })
        };
        let cached = |prefix: &Arc<Prefix>, seed| {
            let request = GenerateRequest {
                prefix: Some(Arc::clone(prefix)),
                ..plain(&tiny::tokens(seed, 5), 3)
            };
            super::alone(&engine, request).cached
        };
        // Two of the prefixes have the same tokens.
        let [dropped, held, twin] = [1, 2, 2].map(prefix);
        for (at, prefix) in [&dropped, &held, &twin].into_iter().enumerate() {
            cached(prefix, 10 + at as u64);
        }
        drop((dropped, twin));
        // Far more than fits in the KV cache.
        for seed in 100..160 {
            super::alone(&engine, plain(&tiny::tokens(seed, 90), 3));
        }
        assert_eq!(cached(&prefix(1), 30), 0, "it has gone");
        assert_eq!(cached(&held, 31), 79);
    }
}

#[test]
fn prefixes_make_room_where_nothing_else_can() {
    for (subject, model) in cases() {
        let folder = tempfile::tempdir().expect("a folder");
        let prefixes = PrefixStore::new(folder.path(), [0; 32], "tiny".to_owned());
        let options = EngineOptions {
            prefixes: Some(prefixes),
            ..EngineOptions::default()
        };
        let engine = engine(&model, subject, little_memory(&model, subject), options);
        // Each prefix fits, but not both together with a request.
        let prefixes = [1, 2].map(|seed| {
            Arc::new(Prefix {
                ids: tiny::tokens(seed, 230),
            })
        });
        for turn in 0..3 {
            for (at, prefix) in prefixes.iter().enumerate() {
                let request = GenerateRequest {
                    prefix: Some(Arc::clone(prefix)),
                    ..plain(&tiny::tokens(10 * turn + at as u64, 20), 5)
                };
                let expected = &alone(&model, subject, std::slice::from_ref(&request))[0];
                assert_same(subject, &super::alone(&engine, request), expected);
            }
            let long = plain(&tiny::tokens(90 + turn, 300), 5);
            let expected = &alone(&model, subject, std::slice::from_ref(&long))[0];
            assert_same(subject, &super::alone(&engine, long), expected);
        }
    }
}

#[test]
fn a_request_that_no_memory_would_hold_fails_by_itself() {
    for (subject, model) in cases() {
        let memory = little_memory(&model, subject);
        let engine = engine(&model, subject, memory, EngineOptions::default());
        let huge = plain(&tiny::tokens(1, 20_000), 3);
        let mut generation = engine.submit(vec![huge]).expect("there is room").remove(0);
        let failed = loop {
            match generation.blocking_next() {
                Some(Event::Failed(why)) => break why,
                Some(Event::Started { .. }) => {}
                other => panic!("{other:?}"),
            }
        };
        assert!(failed.contains("--kv-memory"), "{failed}");
        let request = plain(&tiny::tokens(2, 40), 8);
        let expected = &alone(&model, subject, std::slice::from_ref(&request))[0];
        assert_same(subject, &super::alone(&engine, request), expected);
    }
}

/// Hundreds of requests of all kinds, many of which disconnect early, with little memory: any
/// leak would show at the end.
#[test]
fn nothing_is_lost_in_a_crowd() {
    for (subject, model) in cases() {
        let options = EngineOptions {
            slots: 5,
            queue: 1000,
            chunk: 24,
            ..EngineOptions::default()
        };
        let engine = engine(&model, subject, little_memory(&model, subject), options);
        let mut random = StdRng::seed_from_u64(7);
        let prefix = Arc::new(Prefix {
            ids: tiny::tokens(1, 40),
        });
        let mut kept: Vec<(GenerateRequest, Generation)> = Vec::new();
        for _ in 0..160 {
            // Some prompts have common prefixes, some do not.
            let beginning = tiny::tokens(random.random_range(0..6), random.random_range(0..80));
            let seed = random.random_range(0..1000);
            let prompt = after(&beginning, seed, random.random_range(1..30));
            let request = GenerateRequest {
                prefix: random.random_bool(0.3).then(|| Arc::clone(&prefix)),
                prompt_logprobs: random.random_bool(0.1).then_some(1),
                feeds: Vec::new(),
                together: None,
                isolated: false,
                ..plain(&prompt, random.random_range(1..60))
            };
            let generations = engine.submit(vec![request.clone()]);
            let mut generation = generations.expect("there is room").remove(0);
            match random.random_range(0..4) {
                // Disconnects before it begins.
                0 => {}
                1 => {
                    // Disconnects in the middle.
                    generation.blocking_next();
                    generation.blocking_next();
                }
                _ => kept.push((request, generation)),
            }
        }
        let every = kept.len() / 12;
        for (index, (request, generation)) in kept.into_iter().enumerate() {
            let report = report(generation);
            assert_eq!(report.finish, FinishReason::Length);
            assert_eq!(report.tokens.len(), request.max_tokens);
            if index % every == 0 {
                assert_same(subject, &report, &alone(&model, subject, &[request])[0]);
            }
        }
        wait_until("everything is free", || {
            let load = engine.load();
            load.running == 0 && load.waiting == 0
        });
        // A sequence of the maximum length still fits.
        let long = plain(&tiny::tokens(2000, 450), 40);
        let expected = &alone(&model, subject, std::slice::from_ref(&long))[0];
        assert_same(subject, &super::alone(&engine, long), expected);
    }
}
