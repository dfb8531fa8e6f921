//! Guidance and mixes through the API, on the real model.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use incant::runtime::{LoadOptions, Model, Runtime};
use incant::server::ServeOptions;
use serde_json::{Value, json};

use crate::server::support::{
    CHAT, COMPLETIONS, MODEL, Server, alone, eventually, idle, load_options, shared, with,
};

fn asked(profile: &str, more: &Value) -> Value {
    let body = json!({
        "model": format!("{MODEL}{profile}"),
        "temperature": 0,
        "max_tokens": 24,
        // The profiles have different defaults.
        "repetition_penalty": 1,
        "dry_multiplier": 0,
        "messages": [{"role": "user", "content": "Name three birds of the sea."}],
    });
    with(body, more)
}

fn said(body: Value) -> String {
    let answer = shared().chat(body);
    let text = answer["choices"][0]["message"]["content"].as_str();
    text.expect("a text").to_owned()
}

#[test]
fn nothing_that_weighs_nothing_changes_anything() {
    let _alone = alone();
    let plain = said(asked("@urial", &json!({})));
    for more in [
        json!({"guidance": 0}),
        json!({"guidance": {"weight": 0, "against": format!("{MODEL}@turn")}}),
        json!({"guidance": null, "mix": []}),
        json!({"mix": [{"model": format!("{MODEL}@turn"), "weight": 0}]}),
        json!({"mix": [{"model": format!("{MODEL}@urial"), "weight": 0.5}]}),
    ] {
        assert_eq!(said(asked("@urial", &more)), plain, "{more}");
    }
    let guided = said(asked("@urial", &json!({"guidance": 2})));
    assert_ne!(guided, plain);
    // The same markers end its answers.
    let other = said(asked("@urial-1", &json!({})));
    let mix = json!({"mix": [{"model": format!("{MODEL}@urial-1"), "weight": 1}]});
    assert_eq!(said(asked("@urial", &mix)), other);
}

#[test]
fn a_guided_answer_is_the_same_however_it_is_asked_for() {
    let _alone = alone();
    let guided = said(asked("@urial", &json!({"guidance": 0.5})));
    let long = json!({"guidance": {"weight": 0.5, "against": "question", "plausible": 0.1}});
    assert_eq!(said(asked("@urial", &long)), guided);
    assert_eq!(said(asked("@urial guidance=0.5", &json!({}))), guided);
    let body = asked("@urial", &json!({"guidance": 0.5, "stream": true}));
    let events = shared().post(CHAT, &body).events();
    let streamed: String = events
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(streamed, guided);
    // In a batch, one of several, twice from the same seed.
    let body = asked("@urial", &json!({"guidance": 0.5, "n": 5}));
    let answers = shared().chat(body);
    for choice in answers["choices"].as_array().unwrap() {
        assert_eq!(choice["message"]["content"], guided);
    }
    let sampled = json!({"guidance": 0.5, "temperature": 1, "seed": 7});
    assert_eq!(
        said(asked("@urial", &sampled)),
        said(asked("@urial", &sampled))
    );
}

#[test]
fn usage_and_logprobs_say_that_others_had_a_say() {
    // Penalties are applied after the mixture.
    let more = json!({
        "guidance": 0.5, "logprobs": true, "top_logprobs": 5, "n": 2, "repetition_penalty": 1,
    });
    let answer = shared().chat(asked("@urial", &more));
    assert_eq!(answer["profile"], "urial");
    let usage = &answer["usage"];
    let details = &usage["guidance_tokens_details"];
    assert_eq!(details["completion_tokens"], usage["completion_tokens"]);
    let (prompt, guide) = (&usage["prompt_tokens"], &details["prompt_tokens"]);
    assert!(guide.as_u64() < prompt.as_u64(), "{usage}");
    // The profile's text is shared, whichever request computed it first.
    assert!(details["cached_tokens"].as_u64().unwrap() > 700, "{usage}");
    for choice in answer["choices"].as_array().unwrap() {
        let logprobs = &choice["logprobs"];
        assert_eq!(logprobs["measured"], "with guidance");
        for token in logprobs["content"].as_array().unwrap() {
            // Over the tokens that could be chosen, whose probabilities sum to 1.
            let top = token["top_logprobs"].as_array().unwrap();
            let sum: f64 = top
                .iter()
                .map(|t| t["logprob"].as_f64().unwrap().exp())
                .sum();
            assert!(sum <= 1.0001 && (top.len() == 5 || sum > 0.999), "{token}");
            assert_eq!(token["logprob"], top[0]["logprob"]);
        }
    }
    let plain = shared().chat(asked("@urial", &json!({"logprobs": true})));
    assert!(plain["usage"]["guidance_tokens_details"].is_null());
    assert!(plain["choices"][0]["logprobs"]["measured"].is_null());
}

#[test]
fn completions_are_guided_against_the_profile_or_another_arm() {
    let body = |more: &Value| {
        let body = json!({
            "model": format!("{MODEL}@urial"), "prompt": "The best thing about cheese is",
            "max_tokens": 12, "temperature": 0,
        });
        with(body, more)
    };
    let text = |more: &Value| shared().complete(body(more))["choices"][0]["text"].clone();
    let plain = text(&json!({}));
    assert_eq!(text(&json!({"guidance": 0})), plain);
    assert_ne!(text(&json!({"guidance": 3})), plain);
    let itself = json!({"guidance": {"weight": 3, "against": format!("{MODEL}@urial")}});
    assert_eq!(text(&itself), plain);
}

#[test]
fn what_cannot_be_meant_is_refused_and_named() {
    let cases = [
        ("@urial", json!({"guidance": -0.5}), "guidance.weight"),
        ("@urial", json!({"guidance": 11}), "guidance.weight"),
        ("@urial", json!({"guidance": "much"}), "guidance"),
        ("@urial", json!({"guidance": {}}), "guidance.weight"),
        (
            "@urial",
            json!({"guidance": {"weight": 1, "plausible": 0}}),
            "guidance.plausible",
        ),
        (
            "@urial",
            json!({"guidance": {"weight": 1, "plausible": 1.5}}),
            "guidance.plausible",
        ),
        (
            "@urial",
            json!({"guidance": {"weight": 1, "against": "nobody"}}),
            "guidance.against",
        ),
        (
            "@urial",
            json!({"mix": [{"model": MODEL, "weight": 11}]}),
            "mix[0].weight",
        ),
        (
            "@urial",
            json!({"mix": [{"model": format!("{MODEL}@nothing"), "weight": 1}]}),
            "mix[0].model",
        ),
        ("@urial", json!({"mix": [{"weight": 1}]}), "mix[0].model"),
        (
            "@urial",
            json!({"mix": [{"model": MODEL}]}),
            "mix[0].weight",
        ),
        ("@urial", json!({"mix": MODEL}), "mix"),
        ("@base", json!({"guidance": 1}), "guidance"),
        (
            "@urial",
            json!({"guidance": 1, "messages": [{"role": "system", "content": "hi"}]}),
            "guidance",
        ),
    ];
    for (profile, more, field) in cases {
        let body = asked(profile, &more);
        let error = shared().post(CHAT, &body).error(400);
        assert_eq!(error["param"], field, "{more}: {error}");
    }
    let huge = asked("@urial", &json!({"mix": [{"model": MODEL, "weight": 0}]}));
    let huge = huge.to_string().replace("\"weight\":0", "\"weight\":1e999");
    assert_eq!(shared().post_bytes(CHAT, huge.as_bytes()).status, 400);
    let raw = json!({"model": MODEL, "prompt": "a", "guidance": 1});
    let error = shared().post(COMPLETIONS, &raw).error(400);
    assert_eq!(error["param"], "guidance");
    let echo = json!({
        "model": format!("{MODEL}@urial"), "prompt": "a", "guidance": 1,
        "echo": true, "logprobs": 1,
    });
    assert_eq!(
        shared().post(COMPLETIONS, &echo).error(400)["param"],
        "echo"
    );
    for id in ["@urial guidance=a", "@urial guidance=1 x=2", "@urial mix=1"] {
        let error = shared().post(CHAT, &asked(id, &json!({}))).error(404);
        assert_eq!(error["param"], "model", "{error}");
    }
}

#[test]
fn a_default_profile_follows_the_first_questions_language() {
    let profile = |model: &str, text: &str| {
        let body = json!({
            "model": model, "max_tokens": 1,
            "messages": [
                {"role": "user", "content": text},
                {"role": "assistant", "content": "ok"},
                {"role": "user", "content": "Go on."},
            ],
        });
        shared().chat(body)["profile"].as_str().unwrap().to_owned()
    };
    let english = profile(MODEL, "How high is Mount Fuji?");
    assert_eq!(profile(MODEL, "富士山の高さは？"), format!("{english}-ja"));
    let pinned = format!("{MODEL}@{english}");
    assert_eq!(profile(&pinned, "富士山の高さは？"), english);
}

#[test]
fn who_leaves_ends_the_guide_too() {
    use std::io::{Read, Write};
    let body = asked(
        "@urial",
        &json!({"guidance": 0.5, "max_tokens": 3000, "ignore_eos": true, "stream": true}),
    );
    {
        let bytes = crate::server::support::post(CHAT, body.to_string().as_bytes(), "");
        let mut stream = shared().connect();
        stream.write_all(&bytes).unwrap();
        let mut some = [0; 200];
        stream.read_exact(&mut some).unwrap();
    }
    eventually("nothing runs", idle);
}

/// A server with a runtime of its own over the default model, which saves prefixes in `folder`.
fn server_over(folder: Option<PathBuf>) -> Server {
    let options = LoadOptions {
        prefix_folder: folder,
        ..load_options()
    };
    let model = Model::load(MODEL, &crate::support::model(MODEL), &options);
    let runtime = Runtime::new();
    runtime.loaded(vec![Arc::new(model.expect("a sound model"))]);
    Server::over(Arc::new(runtime), ServeOptions::default())
}

#[test]
fn a_guided_answer_is_the_same_wherever_the_prefix_comes_from() {
    let folder = tempfile::tempdir().unwrap();
    let body = || {
        let more = json!({"guidance": 0.7, "logprobs": true, "top_logprobs": 3});
        asked("@assistant", &more)
    };
    let choice = |answer: Value| answer["choices"][0].clone();
    let written = || {
        let files = std::fs::read_dir(folder.path()).unwrap();
        let times = files.map(|file| file.unwrap().metadata().unwrap().modified().unwrap());
        times.collect::<Vec<SystemTime>>()
    };

    let server = server_over(None);
    let computed = choice(server.chat(body()));
    server.stop().wait();

    let server = server_over(Some(folder.path().to_owned()));
    assert_eq!(choice(server.chat(body())), computed, "computed and kept");
    assert_eq!(choice(server.chat(body())), computed, "from memory");
    server.stop().wait();
    let kept = written();
    assert!(!kept.is_empty());

    let server = server_over(Some(folder.path().to_owned()));
    assert_eq!(choice(server.chat(body())), computed, "from disk");
    server.stop().wait();
    // The prefix was not recomputed.
    assert_eq!(written(), kept);
}
