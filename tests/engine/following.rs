//! Sequences that score what another generates: the results equal a plain recomputation,
//! whatever else the engine runs.

use std::time::Duration;

use incant::engine::{
    Engine, EngineOptions, Event, FollowRequest, GenerateRequest, Generation, Request, Scored,
    Speculation, follow_channel,
};
use incant::exec::{Chunk, Precision, Wanted};
use incant::gguf::Gguf;

use super::sharing::{cases, engine, little_memory, plain};
use crate::reference::tiny::{self, Tiny};
use crate::support::subjects::Subject;
use crate::support::wait_until;

const TOKENS: usize = 24;
const TOP: usize = 3;

/// A leader after `prompt`, and a follower after each of `others`.
pub(super) fn led(prompt: &[u32], others: &[Vec<u32>]) -> (GenerateRequest, Vec<FollowRequest>) {
    let (feeds, followers) = others
        .iter()
        .map(|other| {
            let (feed, follow) = follow_channel();
            let follower = FollowRequest {
                adapter: None,
                prefix: None,
                prompt: other.clone(),
                top: TOP,
                follow,
            };
            (feed, follower)
        })
        .unzip();
    let mut leader = plain(prompt, TOKENS);
    leader.feeds = feeds;
    (leader, followers)
}

pub(super) fn scores(mut follower: Generation) -> Vec<Scored> {
    let mut scores = Vec::new();
    while let Some(event) = follower.blocking_next() {
        match event {
            Event::Started { .. } => {}
            Event::Scored(scored) => scores.push(scored),
            Event::Finished(_) => return scores,
            other => panic!("a follower says {other:?}"),
        }
    }
    panic!("the engine died");
}

/// Returns the leader's tokens, and the scores of each follower.
fn together(engine: &Engine, prompt: &[u32], others: &[Vec<u32>]) -> (Vec<u32>, Vec<Vec<Scored>>) {
    let (leader, followers) = led(prompt, others);
    let mut requests = vec![Request::from(leader)];
    requests.extend(followers.into_iter().map(Request::from));
    let mut generations = engine.submit(requests).expect("there is room");
    let followers = generations.split_off(1);
    let answer = super::report(generations.remove(0));
    let ids = answer.tokens.iter().map(|(id, _)| *id).collect();
    (ids, followers.into_iter().map(scores).collect())
}

/// Computes the log-probabilities of all tokens at each position of `answer` after `prompt`, in
/// double precision, from one plain forward pass.
pub(super) fn distributions(
    model: &Tiny,
    subject: &Subject,
    prompt: &[u32],
    answer: &[u32],
) -> Vec<Vec<f64>> {
    let file = model.written(&model.tensors());
    let gguf = Gguf::open(file.path()).expect("a good file");
    let mut executor = subject.load(&gguf);
    let tokens = [prompt, &answer[..answer.len() - 1]].concat();
    let chunk = Chunk {
        sequence: executor.begin(),
        tokens: &tokens,
        wanted: Wanted::All,
        precision: Precision::Exact,
    };
    let logits = executor.forward(&[chunk]).expect("it runs");
    let rows = (prompt.len() - 1..tokens.len()).map(|row| {
        let row: Vec<f64> = logits.row(row).iter().map(|&l| f64::from(l)).collect();
        let sum: f64 = row.iter().map(|logit| logit.exp()).sum();
        row.iter().map(|logit| logit - sum.ln()).collect()
    });
    rows.collect()
}

fn kl(p: &[f64], q: &[f64]) -> f64 {
    p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum()
}

/// Returns the leader's prompt and three others: a short one, one with a common prefix, and the
/// leader's own.
fn beginnings() -> (Vec<u32>, Vec<Vec<u32>>) {
    let prompt = tiny::tokens(1, 60);
    let shared = [&prompt[..40], &tiny::tokens(2, 90)].concat();
    (prompt.clone(), vec![tiny::tokens(3, 1), shared, prompt])
}

#[test]
fn what_a_follower_says_is_what_a_plain_pass_says() {
    for (subject, model) in cases() {
        let (prompt, others) = beginnings();
        let engine = engine(&model, subject, None, EngineOptions::default());
        let (answer, scores) = together(&engine, &prompt, &others);
        assert_eq!(answer.len(), TOKENS);
        let own = distributions(&model, subject, &prompt, &answer);
        for (other, scores) in others.iter().zip(&scores) {
            let theirs = distributions(&model, subject, other, &answer);
            assert_eq!(scores.len(), answer.len());
            for (place, scored) in scores.iter().enumerate() {
                let (p, q, id) = (&own[place], &theirs[place], answer[place] as usize);
                let near = |found: f64, expected: f64| {
                    let apart = (found - expected).abs();
                    let allowed = 1e-5 + 4.0 * f64::from(subject.between_batches);
                    assert!(apart <= allowed, "{place}: {found} and {expected}");
                };
                near(f64::from(scored.logprob), q[id]);
                near(scored.divergence.forward, kl(p, q));
                near(scored.divergence.reverse, kl(q, p));
                // The number of tokens above it, except those that are practically equal.
                let slack = f64::from(subject.between_batches);
                let above = |slack: f64| q.iter().filter(|&&l| l > q[id] + slack).count();
                assert!((above(slack)..=above(-slack) + 1).contains(&(scored.rank - 1)));
                assert_eq!(scored.top.len(), TOP);
                near(
                    f64::from(scored.top[0].1),
                    q.iter().copied().fold(f64::MIN, f64::max),
                );
            }
        }
        // A follower with the leader's prompt agrees with it completely.
        for scored in &scores[2] {
            assert_eq!(scored.rank, 1);
            let apart = scored.divergence.forward.max(scored.divergence.reverse);
            assert!(
                apart <= 1e-4 * f64::from(subject.between_batches),
                "{apart}"
            );
        }
    }
}

/// Asserts the same scores, except for differences between batches.
fn assert_same(subject: &Subject, a: &[Vec<Scored>], b: &[Vec<Scored>]) {
    let (a, b) = (a.concat(), b.concat());
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(&b) {
        if subject.between_batches == 0.0 {
            assert_eq!(a, b);
        }
        let apart = (a.logprob - b.logprob).abs();
        assert!(apart <= 2.0 * subject.between_batches, "{apart}");
    }
}

#[test]
fn one_slot_and_little_memory_are_enough_for_all() {
    for (subject, model) in cases() {
        let (prompt, others) = beginnings();
        let wide = engine(&model, subject, None, EngineOptions::default());
        let (answer, expected) = together(&wide, &prompt, &others);
        for (slots, memory) in [(1, None), (2, None), (32, little_memory(&model, subject))] {
            let options = EngineOptions {
                slots,
                queue: 200,
                chunk: 32,
                ..EngineOptions::default()
            };
            let engine = engine(&model, subject, memory, options);
            // Several groups at once, each of which waits for its own followers.
            let groups: Vec<_> = (0..6).map(|_| led(&prompt, &others)).collect();
            let groups: Vec<_> = groups
                .into_iter()
                .map(|(leader, followers)| {
                    let mut requests = vec![Request::from(leader)];
                    requests.extend(followers.into_iter().map(Request::from));
                    engine.submit(requests).expect("there is room")
                })
                .collect();
            for mut group in groups {
                let followers = group.split_off(1);
                let report = super::report(group.remove(0));
                let ids: Vec<u32> = report.tokens.iter().map(|(id, _)| *id).collect();
                assert_eq!(ids, answer);
                let found: Vec<_> = followers.into_iter().map(scores).collect();
                assert_same(subject, &found, &expected);
            }
            wait_until("all have ended", || {
                let load = engine.load();
                load.running == 0 && load.waiting == 0
            });
        }
    }
}

#[test]
fn a_follower_can_be_in_another_engine() {
    for (subject, model) in cases() {
        let (prompt, others) = beginnings();
        let one = engine(&model, subject, None, EngineOptions::default());
        let (answer, expected) = together(&one, &prompt, &others);
        let other = engine(&model, subject, None, EngineOptions::default());
        let (leader, followers) = led(&prompt, &others);
        let mut leader = one.submit(vec![leader]).expect("there is room");
        // The leader starts long before.
        std::thread::sleep(Duration::from_millis(100));
        let followers = other.submit(followers).expect("there is room");
        let report = super::report(leader.remove(0));
        let ids: Vec<u32> = report.tokens.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, answer);
        let found: Vec<_> = followers.into_iter().map(scores).collect();
        assert_same(subject, &found, &expected);
    }
}

#[test]
fn a_leader_waits_for_who_is_behind_and_not_for_who_has_left() {
    for (subject, model) in cases() {
        let (prompt, _) = beginnings();
        let engine = engine(&model, subject, None, EngineOptions::default());
        let (feed, follow) = follow_channel();
        let mut leader = plain(&prompt, 200);
        leader.speculation = Some(Speculation::OFF);
        leader.feeds = vec![feed];
        let mut leader = engine
            .submit(vec![leader])
            .expect("there is room")
            .remove(0);
        let mut tokens = 0;
        let mut count = |leader: &mut Generation, up_to: usize| {
            while tokens < up_to {
                match leader.blocking_next() {
                    Some(Event::Token { .. }) => tokens += 1,
                    Some(Event::Started { .. } | Event::Finished(_)) => {}
                    other => panic!("{other:?}"),
                }
            }
        };
        count(&mut leader, 8);
        // Other requests are not delayed meanwhile, and the leader reports nothing more.
        super::alone(&engine, plain(&tiny::tokens(9, 20), 30));
        assert!(leader.try_next().is_none(), "it goes on by itself");
        drop(follow);
        count(&mut leader, 200);
    }
}

#[test]
fn a_follower_ends_with_a_leader_whose_client_has_left() {
    for (subject, model) in cases() {
        let (prompt, others) = beginnings();
        let engine = engine(&model, subject, None, EngineOptions::default());
        let (mut leader, followers) = led(&prompt, &others[..1]);
        leader.max_tokens = 100_000;
        let mut requests = vec![Request::from(leader)];
        requests.extend(followers.into_iter().map(Request::from));
        let mut generations = engine.submit(requests).expect("there is room");
        let follower = generations.remove(1);
        let mut leader = generations.remove(0);
        while !matches!(leader.blocking_next(), Some(Event::Token { .. })) {}
        drop(leader);
        assert!(!scores(follower).is_empty());
        wait_until("nothing runs", || engine.load().running == 0);
    }
}
