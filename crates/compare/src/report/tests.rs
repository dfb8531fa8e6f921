use serde_json::json;

use super::*;
use incant_prompt::profile::Role;

/// Two arms, one of which has answered with a whole token and half a character.
fn report() -> Report {
    let divergence = |forward, reverse| Divergence { forward, reverse };
    let same = Score::new(0, -0.25, 1, divergence(0.0, 0.0), Vec::new());
    let other = Score::new(
        0,
        f32::NEG_INFINITY,
        5,
        divergence(f64::INFINITY, 0.5),
        Vec::new(),
    );
    let top = vec![Alternative::new(b"<eos>".to_vec(), -0.5)];
    let tokens = vec![
        Token::new(7, b" Paris".to_vec(), -0.25, 1, top, vec![same]),
        Token::new(9, vec![0xe2, 0x82], -1.5, 2, Vec::new(), vec![other]),
    ];
    let prompts = vec![Prompt {
        messages: Some(vec![Message::new(Role::User, "Where?")]),
        prompt: None,
        answers: vec![Answer {
            arm: 1,
            index: 0,
            temperature: 0.0,
            text: " Paris\u{fffd}".to_owned(),
            finish_reason: FinishReason::Length,
            usage: Usage::new(8, 5, 2),
            tokens: Some(tokens),
        }],
    }];
    let arm = |id: &str, profile: &str| ReportArm {
        id: id.to_owned(),
        model: "m".to_owned(),
        rendered_by: None,
        profile: Some(profile.to_owned()),
        adapter: None,
        guidance: None,
    };
    let settings = Settings {
        reference: 0,
        seed: 123,
        temperature: vec![0.0],
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        repetition_penalty: 1.0,
        samplers: Samplers::default(),
        max_tokens: 2,
        n: 1,
        analysis: true,
        top_logprobs: 1,
        command: None,
    };
    let arms = vec![arm("m@base", "base"), arm("m@urial", "urial")];
    Report::new(1_763_800_000, settings, arms, prompts)
}

#[test]
fn is_written_in_the_form_that_readers_know() {
    let text = serde_json::to_string(&report()).unwrap();
    let written: serde_json::Value = serde_json::from_str(&text).unwrap();
    let expected = json!({
        "format": 1, "incant": env!("CARGO_PKG_VERSION"), "created": 1_763_800_000,
        "settings": {
            "reference": 0, "seed": 123, "temperature": [0.0], "top_p": 1.0, "top_k": 0,
            "min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
            "repetition_penalty": 1.0, "max_tokens": 2, "n": 1, "analysis": true,
            "top_logprobs": 1, "command": null,
        },
        "arms": [
            {"id": "m@base", "model": "m", "profile": "base", "adapter": null, "guidance": null},
            {"id": "m@urial", "model": "m", "profile": "urial", "adapter": null, "guidance": null},
        ],
        "prompts": [{
            "messages": [{"role": "user", "content": "Where?"}],
            "prompt": null,
            "answers": [{
                "arm": 1, "index": 0, "temperature": 0.0, "text": " Paris\u{fffd}",
                "finish_reason": "length",
                "usage": {
                    "prompt_tokens": 8, "completion_tokens": 2, "total_tokens": 10,
                    "prompt_tokens_details": {"cached_tokens": 5},
                },
                "tokens": [
                    {
                        "id": 7, "token": " Paris", "bytes": b" Paris", "logprob": -0.25, "rank": 1,
                        "top_logprobs": [{"token": "<eos>", "logprob": -0.5, "bytes": b"<eos>"}],
                        "scores": [{
                            "arm": 0, "logprob": -0.25, "rank": 1, "class": "unshifted",
                            "kl": 0.0, "kl_reverse": 0.0, "top_logprobs": [],
                        }],
                    },
                    {
                        "id": 9, "token": "bytes:\\xe2\\x82", "bytes": [0xe2, 0x82],
                        "logprob": -1.5, "rank": 2, "top_logprobs": [],
                        "scores": [{
                            "arm": 0, "logprob": -9999.0, "rank": 5, "class": "shifted",
                            "kl": 9999.0, "kl_reverse": 0.5, "top_logprobs": [],
                        }],
                    },
                ],
            }],
        }],
        "summary": {
            "pairs": [{
                "arm": 1, "under": 0, "tokens": 2,
                "shares": {"unshifted": 0.5, "marginal": 0.0, "shifted": 0.5},
                "kl": 4999.5, "kl_reverse": 0.25, "logprob": -4999.625, "own_logprob": -0.875,
                "interval": null,
                "positions": [
                    {
                        "position": 0, "tokens": 1, "unshifted": 1.0, "marginal": 0.0,
                        "shifted": 0.0, "kl": 0.0, "kl_reverse": 0.0,
                        "probability": (-0.25f64).exp(),
                    },
                    {
                        "position": 1, "tokens": 1, "unshifted": 0.0, "marginal": 0.0,
                        "shifted": 1.0, "kl": 9999.0, "kl_reverse": 0.5, "probability": 0.0,
                    },
                ],
                "most_shifted": [{
                    "id": 9, "token": "bytes:\\xe2\\x82", "count": 1, "shifted": 1,
                    "rank": 5.0, "kl": 9999.0,
                }],
            }],
            "removed": [],
        },
        "sampling": [],
    });
    assert_eq!(written, expected);
}

#[test]
fn comes_back_from_json_as_it_was() {
    let report = report();
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
}

#[test]
fn classes_are_by_rank() {
    use ShiftClass::{Marginal, Shifted, Unshifted};
    let classes = [1, 2, 3, 4, 262_144].map(ShiftClass::of);
    assert_eq!(classes, [Unshifted, Marginal, Marginal, Shifted, Shifted]);
}
