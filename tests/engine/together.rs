//! Groups of sequences that choose their tokens together: the tokens equal a plain
//! recomputation of the mixture, whatever else the engine runs.

use std::time::Duration;

use incant::engine::{
    Engine, EngineOptions, GenerateRequest, JoinRequest, MemberSpec, Request, Together, ensemble,
};

use super::following::distributions;
use super::sharing::{cases, engine, little_memory, plain};
use super::{Report, assert_same, report};
use crate::reference::tiny;
use crate::support::wait_until;

const TOKENS: usize = 24;
const PLAUSIBLE: f32 = 0.1;

/// A lead after `prompt` that reports the log-probabilities of the mixture, and a member for
/// each weight and prompt.
pub(super) fn guided(
    prompt: &[u32],
    members: &[(f32, &[u32])],
    same_engine: bool,
) -> (GenerateRequest, Vec<JoinRequest>) {
    let shares = members.iter().map(|&(weight, _)| MemberSpec {
        weight,
        same_engine,
    });
    let (lead, seats) = ensemble(&shares.collect::<Vec<_>>(), PLAUSIBLE);
    let joins = seats.into_iter().zip(members);
    let joins = joins.map(|(seat, (_, prompt))| JoinRequest {
        adapter: None,
        prefix: None,
        prompt: prompt.to_vec(),
        member: seat,
        keep: false,
        isolated: false,
    });
    let mut request = plain(prompt, TOKENS);
    request.together = Some(Together {
        lead,
        report_mixture: true,
    });
    (request, joins.collect())
}

pub(super) fn requests((lead, joins): (GenerateRequest, Vec<JoinRequest>)) -> Vec<Request> {
    let mut requests = vec![Request::from(lead)];
    requests.extend(joins.into_iter().map(Request::from));
    requests
}

/// Returns the report of a lead whose members are in the same engine.
fn together(engine: &Engine, prompt: &[u32], members: &[(f32, &[u32])]) -> Report {
    let requests = requests(guided(prompt, members, true));
    let mut generations = engine.submit(requests).expect("there is room");
    let members = generations.split_off(1);
    let report = report(generations.remove(0));
    drop(members);
    report
}

fn ids(report: &Report) -> Vec<u32> {
    report.tokens.iter().map(|(id, _)| *id).collect()
}

/// Computes the log-softmax of some scores.
fn normalised(scores: &[f64]) -> Vec<f64> {
    let largest = scores.iter().copied().fold(f64::MIN, f64::max);
    let sum: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
    scores.iter().map(|s| s - largest - sum.ln()).collect()
}

/// Returns a prompt, one with a common prefix, and an unrelated one.
fn beginnings() -> [Vec<u32>; 3] {
    let prompt = tiny::tokens(1, 60);
    let shared = [&prompt[..40], &tiny::tokens(2, 9)].concat();
    [prompt, shared, tiny::tokens(3, 90)]
}

#[test]
fn a_token_is_the_best_of_two_separate_passes_mixed() {
    for (subject, model) in cases() {
        let [prompt, guide, third] = beginnings();
        let engine = engine(&model, subject, None, EngineOptions::default());
        let cases: [&[(f32, &[u32])]; 5] = [
            &[(-0.5, &guide)],
            &[(-3.0, &guide)],
            &[(0.5, &guide)],
            &[(1.0, &third), (-0.7, &guide)],
            &[(0.25, &third), (0.25, &guide)],
        ];
        for members in cases {
            let answer = together(&engine, &prompt, members);
            let tokens = ids(&answer);
            assert_eq!(tokens.len(), TOKENS);
            let own = distributions(&model, subject, &prompt, &tokens);
            let others = members.iter().map(|(weight, prompt)| {
                let theirs = distributions(&model, subject, prompt, &tokens);
                (f64::from(*weight), theirs)
            });
            let others: Vec<_> = others.collect();
            let narrows = members.iter().any(|(weight, _)| *weight < 0.0);
            let slack = 1e-4 + 8.0 * f64::from(subject.between_batches);
            for (place, (id, logprobs)) in answer.tokens.iter().enumerate() {
                let a = &own[place];
                let most = a.iter().copied().fold(f64::MIN, f64::max);
                let bound = most + f64::from(PLAUSIBLE).ln();
                let scores = a.iter().enumerate().map(|(token, &own)| {
                    let mixed = others.iter().map(|(w, l)| w * (l[place][token] - own));
                    match narrows && own < bound {
                        true => f64::NEG_INFINITY,
                        false => own + mixed.sum::<f64>(),
                    }
                });
                let mixed = normalised(&scores.collect::<Vec<_>>());
                let best = mixed.iter().copied().fold(f64::MIN, f64::max);
                let chosen = mixed[*id as usize];
                assert!(best - chosen <= slack, "{place}: {chosen} below {best}");
                let apart = (f64::from(logprobs.chosen) - chosen).abs();
                assert!(apart <= slack, "{place}: {apart}");
                assert_eq!(logprobs.rank, 1, "{place}");
            }
        }
    }
}

#[test]
fn an_arm_with_itself_says_what_it_says_and_weight_one_is_the_other() {
    for (subject, model) in cases() {
        let [prompt, other, _] = beginnings();
        let engine = engine(&model, subject, None, EngineOptions::default());
        let own = super::alone(&engine, plain(&prompt, TOKENS));
        let others = super::alone(&engine, plain(&other, TOKENS));
        for weight in [-0.5, 0.0, 0.3, 1.0] {
            let itself = together(&engine, &prompt, &[(weight, &prompt)]);
            assert_eq!(ids(&itself), ids(&own), "{weight}");
        }
        let whole = together(&engine, &prompt, &[(1.0, &other)]);
        assert_eq!(ids(&whole), ids(&others));
        assert_ne!(ids(&own), ids(&others));
        if subject.between_batches == 0.0 {
            assert_same(subject, &whole, &others);
        }
    }
}

#[test]
fn company_chunks_slots_and_memory_change_nothing() {
    for (subject, model) in cases() {
        let [prompt, guide, third] = beginnings();
        let kinds: [&[(f32, &[u32])]; 3] = [
            &[(-0.5, &guide)],
            &[(0.5, &third)],
            &[(0.4, &third), (-0.4, &guide)],
        ];
        let wide = engine(&model, subject, None, EngineOptions::default());
        let expected = kinds.map(|members| together(&wide, &prompt, members));
        let variants = [
            (32, 256, None),
            (1, 32, None),
            (3, 7, None),
            (32, 32, little_memory(&model, subject)),
        ];
        for (slots, chunk, memory) in variants {
            let options = EngineOptions {
                slots,
                queue: 200,
                chunk,
                ..EngineOptions::default()
            };
            let engine = engine(&model, subject, memory, options);
            let groups = (0..12).map(|at| {
                let requests = requests(guided(&prompt, kinds[at % 3], true));
                engine.submit(requests).expect("there is room")
            });
            let groups: Vec<_> = groups.collect();
            for (at, mut group) in groups.into_iter().enumerate() {
                let members = group.split_off(1);
                assert_same(subject, &report(group.remove(0)), &expected[at % 3]);
                drop(members);
            }
            wait_until("all have ended", || {
                let load = engine.load();
                load.running == 0 && load.waiting == 0
            });
            let preempted = engine.load().preemptions > 0;
            assert_eq!(preempted, memory.is_some());
        }
    }
}

#[test]
fn a_member_can_be_in_another_engine_and_come_late() {
    for (subject, model) in cases() {
        let [prompt, guide, third] = beginnings();
        let one = engine(&model, subject, None, EngineOptions::default());
        let other = engine(&model, subject, None, EngineOptions::default());
        for members in [
            &[(-0.5, &guide[..])][..],
            &[(0.5, &guide)],
            &[(0.5, &third), (-0.5, &guide)],
        ] {
            let expected = together(&one, &prompt, members);
            let (lead, joins) = guided(&prompt, members, false);
            let mut lead = one.submit(vec![lead]).expect("there is room");
            std::thread::sleep(Duration::from_millis(50));
            let joins = other.submit(joins).expect("there is room");
            assert_same(subject, &report(lead.remove(0)), &expected);
            drop(joins);
            wait_until("both are idle", || {
                one.load().running + other.load().running == 0
            });
        }
    }
}

#[test]
fn a_group_ends_with_its_lead_and_fails_with_a_member() {
    for (subject, model) in cases() {
        let [prompt, guide, _] = beginnings();
        for same_engine in [true, false] {
            let one = engine(&model, subject, None, EngineOptions::default());
            let other = match same_engine {
                true => one.clone(),
                false => engine(&model, subject, None, EngineOptions::default()),
            };
            let begin = || {
                let (mut lead, joins) = guided(&prompt, &[(-0.5, &guide)], same_engine);
                lead.max_tokens = 100_000;
                let lead = one.submit(vec![lead]).expect("there is room").remove(0);
                let join = other.submit(joins).expect("there is room").remove(0);
                (lead, join)
            };
            let idle = || one.load().running + other.load().running == 0;
            let token = |event| matches!(event, Some(incant::engine::Event::Token { .. }));

            let (mut lead, member) = begin();
            while !token(lead.blocking_next()) {}
            drop(lead);
            wait_until("the member has ended", idle);
            drop(member);

            let (mut lead, member) = begin();
            while !token(lead.blocking_next()) {}
            drop(member);
            let mut last = None;
            while let Some(event) = lead.blocking_next() {
                last = Some(event);
            }
            assert!(
                matches!(last, Some(incant::engine::Event::Failed(_))),
                "{last:?}"
            );
            wait_until("the lead has ended", idle);
        }
    }
}

#[test]
fn what_is_banned_stays_out_and_something_is_always_left() {
    for (subject, model) in cases() {
        let [prompt, guide, _] = beginnings();
        let engine = engine(&model, subject, None, EngineOptions::default());
        let free = together(&engine, &prompt, &[(-0.5, &guide)]);
        let banned: Vec<(u32, f32)> = ids(&free).iter().map(|&id| (id, -100.0)).collect();
        let (mut lead, joins) = guided(&prompt, &[(-0.5, &guide)], true);
        lead.sampling.logit_bias = banned.clone();
        let mut generations = engine.submit(requests((lead, joins))).expect("room");
        let answer = report(generations.remove(0));
        assert_eq!(answer.tokens.len(), TOKENS);
        let said = ids(&answer);
        assert!(said.iter().all(|id| banned.iter().all(|(b, _)| b != id)));
    }
}
