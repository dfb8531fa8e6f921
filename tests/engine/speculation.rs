//! Speculative decoding: drafts change neither tokens nor log-probabilities, to the last bit.

use std::sync::Arc;

use incant::engine::{
    Engine, EngineOptions, Event, GenerateRequest, Generation, JoinRequest, MAX_DRAFT, Request,
    Speculation,
};
use incant::sample::{SamplingParams, TokenLogprobs};

use super::following::{led, scores};
use super::sharing::{engine, little_memory, plain};
use super::together::{guided, requests as requests_of};
use crate::reference::tiny::{self, Tiny};
use crate::support::subjects::{self, Subject};

/// The tokens that an answer reported, and the numbers of drafted and accepted tokens.
#[derive(Debug, Default)]
struct Drafted {
    tokens: Vec<(u32, Option<TokenLogprobs>)>,
    drafted: usize,
    accepted: usize,
}

fn receive(mut generation: Generation) -> Drafted {
    let mut report = Drafted::default();
    while let Some(event) = generation.blocking_next() {
        match event {
            Event::Token { id, logprobs } => report.tokens.push((id, logprobs)),
            Event::Drafted { drafted, accepted } => {
                assert!(accepted <= drafted && drafted <= MAX_DRAFT);
                report.drafted += drafted;
                report.accepted += accepted;
            }
            Event::Finished(_) => return report,
            Event::Started { .. } | Event::Prompt(_) => {}
            other => panic!("an answer says {other:?}"),
        }
    }
    panic!("the engine died");
}

fn answered(engine: &Engine, requests: Vec<GenerateRequest>) -> Vec<Drafted> {
    let generations = engine.submit(requests).expect("there is room");
    generations.into_iter().map(receive).collect()
}

/// Greedy and sampled requests, with penalties that depend on all tokens before.
fn requests() -> Vec<GenerateRequest> {
    let samplings = [
        SamplingParams {
            temperature: 0.0,
            ..SamplingParams::default()
        },
        SamplingParams {
            temperature: 0.7,
            seed: Some(1),
            ..SamplingParams::default()
        },
        SamplingParams {
            temperature: 1.0,
            top_p: 0.9,
            frequency_penalty: 0.5,
            repetition_penalty: 1.1,
            seed: Some(2),
            ..SamplingParams::default()
        },
    ];
    let requests = samplings.into_iter().zip(1..).map(|(sampling, seed)| {
        // Text that repeats itself.
        let text = tiny::tokens(seed, 12).repeat(5);
        GenerateRequest {
            sampling,
            ..plain(&text[..48 + seed as usize], 60)
        }
    });
    requests.collect()
}

/// Predicts an answer, with every ninth token wrong.
fn with_prediction(
    request: GenerateRequest,
    answer: &Drafted,
    speculation: Speculation,
) -> GenerateRequest {
    let mut prediction: Vec<u32> = answer.tokens.iter().map(|(id, _)| *id).collect();
    for token in prediction.iter_mut().skip(5).step_by(9) {
        *token = (*token + 1) % 7;
    }
    GenerateRequest {
        prediction,
        speculation: Some(speculation),
        ..request
    }
}

fn without_drafts(request: GenerateRequest) -> GenerateRequest {
    GenerateRequest {
        speculation: Some(Speculation::OFF),
        ..request
    }
}

#[test]
fn drafts_change_no_bit() {
    for model in [Tiny::gemma3(), Tiny::llama()] {
        for subject in subjects::instruction_sets() {
            let alone = engine(&model, subject, None, EngineOptions::default());
            let plain = requests().into_iter().map(without_drafts);
            let expected: Vec<Drafted> = plain
                .flat_map(|request| answered(&alone, vec![request]))
                .collect();
            assert!(expected.iter().all(|answer| answer.drafted == 0));
            // Alone and together, with much memory and with little.
            for memory in [None, little_memory(&model, subject)] {
                let engine = engine(&model, subject, memory, EngineOptions::default());
                for speculation in [
                    Speculation::UpTo(1),
                    Speculation::UpTo(4),
                    Speculation::UpTo(MAX_DRAFT),
                    Speculation::Auto,
                ] {
                    let predicted = requests().into_iter().zip(&expected);
                    let predicted = predicted
                        .map(|(request, answer)| with_prediction(request, answer, speculation));
                    let answers = answered(&engine, predicted.collect());
                    for (answer, expected) in answers.iter().zip(&expected) {
                        assert_eq!(answer.tokens, expected.tokens, "{subject}, {speculation:?}");
                    }
                    if speculation != Speculation::Auto {
                        let accepted: usize = answers.iter().map(|one| one.accepted).sum();
                        assert!(accepted > 50, "{subject}, {speculation:?}: {accepted}");
                    }
                }
            }
        }
    }
}

#[test]
fn drafts_end_where_the_answer_does() {
    let (model, subject) = (Tiny::llama(), subjects::native());
    let engine = engine(&model, subject, None, EngineOptions::default());
    let [request, ..] = &requests()[..] else {
        panic!("there are three");
    };
    let whole = &answered(&engine, vec![without_drafts(request.clone())])[0];
    for length in 1..20 {
        let short = GenerateRequest {
            max_tokens: length,
            ..with_prediction(request.clone(), whole, Speculation::UpTo(MAX_DRAFT))
        };
        let answer = &answered(&engine, vec![short])[0];
        assert_eq!(answer.tokens, whole.tokens[..length]);
    }
    // The first token of the answer that did not occur before ends it, drafted or not.
    let ids: Vec<u32> = whole.tokens.iter().map(|(id, _)| *id).collect();
    let is_new = |at: &usize| !ids[..*at].contains(&ids[*at]);
    let end = (4..ids.len()).rev().find(is_new).expect("there is one");
    let ended = GenerateRequest {
        end_tokens: Arc::new([ids[end]]),
        prediction: ids.clone(),
        speculation: Some(Speculation::UpTo(MAX_DRAFT)),
        ..request.clone()
    };
    let answer = &answered(&engine, vec![ended])[0];
    assert_eq!(answer.tokens, whole.tokens[..=end]);
    // A conversation that continues finds the KV of the answer.
    let mut longer = request.clone();
    longer.prompt.extend(&ids);
    let after = super::alone(&engine, longer);
    assert!(
        after.cached >= request.prompt.len() + end - 1,
        "{}",
        after.cached
    );
}

#[test]
fn followers_score_drafted_tokens() {
    let (model, subject) = (Tiny::gemma3(), subjects::native());
    let [request, ..] = &requests()[..] else {
        panic!("there are three");
    };
    let others = [tiny::tokens(31, 20), tiny::tokens(32, 3)];
    let engine = engine(&model, subject, None, EngineOptions::default());
    let whole = &answered(&engine, vec![without_drafts(request.clone())])[0];
    let run = |leader: GenerateRequest| {
        let (with_feeds, followers) = led(&leader.prompt, &others);
        let leader = GenerateRequest {
            feeds: with_feeds.feeds,
            ..leader
        };
        let mut requests = vec![Request::from(leader)];
        requests.extend(followers.into_iter().map(Request::from));
        let mut generations = engine.submit(requests).expect("there is room");
        let followers = generations.split_off(1);
        let answer = receive(generations.remove(0));
        (
            answer,
            followers.into_iter().map(scores).collect::<Vec<_>>(),
        )
    };
    let (expected, scored) = run(without_drafts(request.clone()));
    let (answer, found) = run(with_prediction(
        request.clone(),
        whole,
        Speculation::UpTo(15),
    ));
    assert_eq!(answer.tokens, expected.tokens);
    assert!(answer.accepted > 10, "{answer:?}");
    assert_eq!(found, scored);
}

/// Runs a lead with members; returns its answer.
fn guided_answer(engine: &Engine, lead: GenerateRequest, joins: Vec<JoinRequest>) -> Drafted {
    let mut generations = engine
        .submit(requests_of((lead, joins)))
        .expect("there is room");
    let members = generations.split_off(1);
    let answer = receive(generations.remove(0));
    drop(members);
    answer
}

#[test]
fn drafts_under_guidance_change_no_bit() {
    for (model, seed) in [(Tiny::gemma3(), 1), (Tiny::llama(), 2)] {
        for subject in subjects::instruction_sets() {
            let prompt = tiny::tokens(seed, 60);
            let shared = [&prompt[..40], &tiny::tokens(12, 9)].concat();
            let third = tiny::tokens(13, 90);
            let cases: [&[(f32, &[u32])]; 3] = [
                &[(-0.5, &shared)],
                &[(0.5, &third)],
                &[(1.0, &third), (-0.7, &shared)],
            ];
            for members in cases {
                for (temperature, memory) in [(0.0, None), (0.8, little_memory(&model, subject))] {
                    let engine = engine(&model, subject, memory, EngineOptions::default());
                    let run = |answer: Option<(&Drafted, Speculation)>| {
                        let (lead, joins) = guided(&prompt, members, true);
                        let mut lead = GenerateRequest {
                            max_tokens: 50,
                            sampling: SamplingParams {
                                temperature,
                                seed: Some(5),
                                ..SamplingParams::default()
                            },
                            ..without_drafts(lead)
                        };
                        if let Some((answer, speculation)) = answer {
                            lead = with_prediction(lead, answer, speculation);
                        }
                        guided_answer(&engine, lead, joins)
                    };
                    let expected = run(None);
                    for most in [1, 4, MAX_DRAFT] {
                        // Beside other answers with drafts, too.
                        let other = requests().remove(1);
                        let other = engine.submit(vec![other]).expect("there is room");
                        let answer = run(Some((&expected, Speculation::UpTo(most))));
                        assert_eq!(answer.tokens, expected.tokens, "{subject}, {members:?}");
                        assert!(answer.accepted > 10, "{answer:?}");
                        drop(other);
                    }
                }
            }
        }
    }
}

#[test]
fn the_device_executor_drafts_too() {
    let subject: &Subject = subjects::reference();
    let model = Tiny::gemma3();
    let engine = engine(&model, subject, None, EngineOptions::default());
    let request = requests().remove(0);
    let expected = &answered(&engine, vec![without_drafts(request.clone())])[0];
    for most in [3, MAX_DRAFT] {
        let drafted = with_prediction(request.clone(), expected, Speculation::UpTo(most));
        let answer = &answered(&engine, vec![drafted])[0];
        assert!(answer.accepted > 10, "{answer:?}");
        let ids = |answer: &Drafted| answer.tokens.iter().map(|(id, _)| *id).collect::<Vec<_>>();
        assert_eq!(ids(answer), ids(expected));
    }
}
