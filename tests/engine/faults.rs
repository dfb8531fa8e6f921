//! An engine whose thread panics or hangs: fault injection, which only builds with debug
//! assertions support.

use std::time::Duration;

use incant::engine::{Engine, EngineOptions, Event, Generation, SubmitError};

use super::{QUESTIONS, encode, engine, request};
use crate::support::{subjects, wait_until};

fn faulty(fault: &str, options: EngineOptions) -> Engine {
    let options = EngineOptions {
        fault: Some(fault.parse().expect("a fault")),
        ..options
    };
    engine(subjects::exact(), None, options)
}

fn last(mut generation: Generation) -> Event {
    std::iter::from_fn(|| generation.blocking_next())
        .last()
        .expect("it is told something")
}

#[test]
fn all_that_an_engine_has_accepted_fails_when_it_panics_and_nothing_more_is_queued() {
    let options = EngineOptions {
        slots: 2,
        queue: 2,
        ..EngineOptions::default()
    };
    let engine = faulty("panic:2", options);
    let prompt = encode(QUESTIONS[1]);
    let four = vec![request(None, &prompt, 50); 4];
    let generations = engine.submit(four.clone()).expect("there is room");
    // Two run and two wait.
    for generation in generations {
        let last = last(generation);
        assert_eq!(last, Event::Failed("the engine has failed".to_owned()));
    }
    let tokio = tokio::runtime::Builder::new_current_thread();
    let tokio = { tokio }.build().expect("a thread will do");
    tokio.block_on(engine.died());
    assert!(!engine.is_healthy());
    for _ in 0..6 {
        let refused = engine.submit(four.clone());
        assert!(
            matches!(refused, Err(SubmitError::Unhealthy)),
            "{refused:?}"
        );
    }
    let load = engine.load();
    assert_eq!((load.running, load.waiting), (0, 0));
}

#[test]
fn an_engine_that_stands_still_with_work_is_ill_and_one_that_rests_is_well() {
    let options = EngineOptions {
        stall_timeout: Duration::from_millis(200),
        ..EngineOptions::default()
    };
    // The fault precedes any step, because on a busy machine a step could take that long: then
    // the engine would seem unhealthy, and recover.
    let engine = faulty("hang:0", options);
    std::thread::sleep(Duration::from_millis(400));
    assert!(engine.is_healthy());
    let prompt = encode(QUESTIONS[1]);
    let running = engine.submit(vec![request(None, &prompt, 50)]);
    let running = running.expect("it rested");
    wait_until("the engine is ill", || !engine.is_healthy());
    let refused = engine.submit(vec![request(None, &prompt, 50)]);
    assert!(
        matches!(refused, Err(SubmitError::Unhealthy)),
        "{refused:?}"
    );
    drop(running);
}
