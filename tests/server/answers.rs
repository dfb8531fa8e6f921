//! The form of answers, complete and streamed. All of it must hold for any model, whatever it
//! generates.

mod logprobs;

use serde_json::{Value, json};

use self::logprobs::check_lists;
use crate::server::support::{CHAT, COMPLETIONS, MODEL, Reply, alone, shared};

const PROMPT: &str = "The quick brown fox jumps over the";

fn greedy(model: &str, more: Value) -> Value {
    let mut body = json!({"model": model, "temperature": 0, "max_tokens": 12});
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    body
}

fn question(more: Value) -> Value {
    let mut body = greedy(&format!("{MODEL}@urial"), more);
    body["messages"] = json!([{"role": "user", "content": "What is the capital of France?"}]);
    body
}

fn text(more: Value) -> Value {
    let mut body = greedy(MODEL, json!({"prompt": PROMPT}));
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    body
}

fn stream(path: &str, mut body: Value) -> (Reply, Vec<Value>) {
    body["stream"] = json!(true);
    let reply = shared().post(path, &body);
    let events = reply.events();
    (reply, events)
}

/// Returns the concatenated text of one choice's chunks.
fn joined(events: &[Value], index: u64) -> String {
    let choices = events
        .iter()
        .flat_map(|event| event["choices"].as_array().unwrap());
    let of_index = choices.filter(|choice| choice["index"] == index);
    let part = |choice: &Value| {
        let part = choice["delta"]["content"]
            .as_str()
            .or(choice["text"].as_str());
        part.unwrap_or_default().to_owned()
    };
    of_index.map(part).collect()
}

#[test]
fn a_chat_answer_has_openais_shape() {
    let answer = shared().chat(question(json!({})));
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], format!("{MODEL}@urial"));
    assert!(answer["created"].as_u64().unwrap() > 1_700_000_000);
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 1);
    assert_eq!(choices[0]["index"], 0);
    assert_eq!(choices[0]["message"]["role"], "assistant");
    assert!(
        !choices[0]["message"]["content"]
            .as_str()
            .unwrap()
            .is_empty()
    );
    assert!(choices[0]["logprobs"].is_null());
    let usage = &answer["usage"];
    let (prompt, completion) = (
        usage["prompt_tokens"].as_u64().unwrap(),
        usage["completion_tokens"].as_u64().unwrap(),
    );
    assert_eq!(usage["total_tokens"], prompt + completion);
    assert!((1..=12).contains(&completion));
    let reason = choices[0]["finish_reason"].as_str().unwrap();
    assert!(
        reason == "stop" || (reason == "length" && completion == 12),
        "{reason} after {completion}"
    );
}

#[test]
fn a_profiles_prefix_is_counted_as_cached() {
    shared().chat(question(json!({"max_tokens": 1})));
    let usage = shared().chat(question(json!({"max_tokens": 1})))["usage"].clone();
    let cached = usage["prompt_tokens_details"]["cached_tokens"]
        .as_u64()
        .unwrap();
    let template =
        json!({"model": format!("{MODEL}@urial"), "messages": [{"role": "user", "content": "x"}]});
    let prefix = shared().post("/apply-template", &template).expect(200)["prefix_tokens"]
        .as_u64()
        .unwrap();
    // The last token of the prefix is recomputed because it predicts the first token of the
    // turn.
    assert!(prefix > 1 && cached + 1 >= prefix, "{cached} of {prefix}");
    assert!(cached < usage["prompt_tokens"].as_u64().unwrap());
}

#[test]
fn a_streamed_chat_is_the_whole_one_in_pieces() {
    let _alone = alone();
    for body in [
        question(json!({})),
        question(json!({"logprobs": true, "top_logprobs": 2})),
    ] {
        let whole = shared().chat(body.clone());
        let (reply, events) = stream(CHAT, body);
        assert_eq!(reply.header("cache-control"), Some("no-cache"));
        assert_eq!(
            events[0]["choices"][0]["delta"],
            json!({"role": "assistant", "content": ""})
        );
        let last = events.last().unwrap();
        assert_eq!(last["choices"][0]["delta"], json!({}));
        assert_eq!(
            last["choices"][0]["finish_reason"],
            whole["choices"][0]["finish_reason"]
        );
        for event in &events {
            assert_eq!(event["object"], "chat.completion.chunk");
            assert_eq!(
                (&event["id"], &event["created"]),
                (&events[0]["id"], &events[0]["created"])
            );
            assert_eq!(event["model"], whole["model"]);
            assert!(event.get("usage").is_none(), "nobody asked for it");
        }
        for event in &events[..events.len() - 1] {
            assert!(event["choices"][0]["finish_reason"].is_null());
        }
        assert_eq!(
            joined(&events, 0),
            whole["choices"][0]["message"]["content"].as_str().unwrap()
        );
        let streamed: Vec<Value> = events
            .iter()
            .filter_map(|event| {
                event["choices"][0]["logprobs"]["content"]
                    .as_array()
                    .cloned()
            })
            .flatten()
            .collect();
        let expected = whole["choices"][0]["logprobs"]["content"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        assert_eq!(streamed, expected);
    }
}

#[test]
fn with_include_usage_every_chunk_has_the_key_and_the_last_the_numbers() {
    let _alone = alone();
    for (path, body) in [
        (CHAT, question(json!({}))),
        (COMPLETIONS, text(json!({"n": 2}))),
    ] {
        let whole = shared().post(path, &body).expect(200);
        let mut body = body;
        body["stream_options"] = json!({"include_usage": true});
        let (_, events) = stream(path, body);
        let (last, rest) = events.split_last().unwrap();
        assert_eq!(last["choices"], json!([]));
        for key in ["prompt_tokens", "completion_tokens", "total_tokens"] {
            assert_eq!(last["usage"][key], whole["usage"][key]);
        }
        for event in rest {
            assert!(event.as_object().unwrap().contains_key("usage") && event["usage"].is_null());
            assert_eq!(event["choices"].as_array().unwrap().len(), 1);
        }
    }
}

#[test]
fn a_completion_has_openais_shape_and_sixteen_tokens_by_default() {
    let answer = shared().complete(json!({"model": MODEL, "prompt": PROMPT, "ignore_eos": true}));
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 16);
    let whole = shared()
        .post("/tokenize", &json!({"prompt": PROMPT}))
        .expect(200);
    assert_eq!(answer["usage"]["prompt_tokens"], whole["count"]);
}

#[test]
fn a_streamed_completion_is_the_whole_one_in_pieces() {
    let _alone = alone();
    for body in [
        text(json!({})),
        text(json!({"logprobs": 2, "echo": true})),
        text(json!({"echo": true, "max_tokens": 0})),
    ] {
        let whole = shared().complete(body.clone());
        let (_, events) = stream(COMPLETIONS, body);
        let choice = &whole["choices"][0];
        assert_eq!(joined(&events, 0), choice["text"].as_str().unwrap());
        let last = &events.last().unwrap()["choices"][0];
        assert_eq!(
            (&last["text"], &last["finish_reason"]),
            (&json!(""), &choice["finish_reason"])
        );
        for key in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            let lists = events
                .iter()
                .filter_map(|event| event["choices"][0]["logprobs"][key].as_array().cloned());
            let streamed: Vec<Value> = lists.flatten().collect();
            assert_eq!(
                streamed,
                choice["logprobs"][key]
                    .as_array()
                    .cloned()
                    .unwrap_or_default(),
                "{key}"
            );
        }
    }
}

#[test]
fn each_prompt_of_a_list_has_n_answers() {
    let _alone = alone();
    let prompts = ["The sky is", "Once upon a time"];
    let body = json!({"prompt": prompts, "n": 2, "temperature": 0, "max_tokens": 6});
    let answer = shared().complete(text(body));
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4);
    let single =
        prompts.map(|prompt| shared().complete(text(json!({"prompt": prompt, "max_tokens": 6}))));
    for (at, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], at);
    }
    for (prompt, alone) in single.iter().enumerate() {
        assert_eq!(choices[prompt * 2]["text"], alone["choices"][0]["text"]);
    }
    let prompt_tokens: u64 = single
        .iter()
        .map(|alone| alone["usage"]["prompt_tokens"].as_u64().unwrap())
        .sum();
    assert_eq!(
        answer["usage"]["prompt_tokens"], prompt_tokens,
        "a prompt counts once"
    );
    let ids: Vec<Vec<u64>> = prompts.iter().map(|prompt| shared().ids(prompt)).collect();
    let of_ids = shared().complete(text(json!({"prompt": ids, "max_tokens": 1})));
    assert_eq!(of_ids["choices"].as_array().unwrap().len(), 2);
}

#[test]
fn several_answers_share_one_stream() {
    let _alone = alone();
    let body = question(json!({"n": 3, "temperature": 1, "seed": 7}));
    let whole = shared().chat(body.clone());
    let (_, events) = stream(CHAT, body);
    for index in 0..3 {
        let of_index: Vec<&Value> = events
            .iter()
            .map(|event| &event["choices"][0])
            .filter(|choice| choice["index"] == index)
            .collect();
        assert_eq!(
            of_index[0]["delta"],
            json!({"role": "assistant", "content": ""})
        );
        assert!(of_index.last().unwrap()["finish_reason"].is_string());
        assert_eq!(
            of_index
                .iter()
                .filter(|choice| choice["finish_reason"].is_string())
                .count(),
            1
        );
        let content = &whole["choices"][index as usize]["message"]["content"];
        assert_eq!(
            joined(&events, index),
            content.as_str().unwrap(),
            "the same seed says the same"
        );
    }
}

#[test]
fn a_stop_text_ends_the_answer_and_is_not_in_it() {
    let _alone = alone();
    let free = shared().complete(text(json!({"max_tokens": 20, "ignore_eos": true})));
    let said: Vec<char> = free["choices"][0]["text"]
        .as_str()
        .unwrap()
        .chars()
        .collect();
    assert!(said.len() > 8, "{said:?}");
    // In the middle of the text, most likely across tokens.
    let stop: String = said[said.len() / 2..said.len() / 2 + 3].iter().collect();
    let whole: String = said.iter().collect();
    let expected = &whole[..whole.find(&stop).unwrap()];
    for stops in [json!(stop), json!(["never said, ever", stop])] {
        let body =
            text(json!({"max_tokens": 20, "ignore_eos": true, "stop": stops, "logprobs": 1}));
        let answer = shared().complete(body.clone());
        let choice = &answer["choices"][0];
        assert_eq!(
            (&choice["text"], &choice["finish_reason"]),
            (&json!(expected), &json!("stop"))
        );
        check_lists(choice, 1);
        let (reply, events) = stream(COMPLETIONS, body);
        assert_eq!(joined(&events, 0), expected);
        let tokens = events.iter().filter_map(|event| {
            event["choices"][0]["logprobs"]["tokens"]
                .as_array()
                .cloned()
        });
        let tokens: String = tokens
            .flatten()
            .map(|token| token.as_str().unwrap().to_owned())
            .collect();
        assert!(
            tokens.contains("bytes:") || tokens == expected,
            "{}",
            reply.text()
        );
    }
}

#[test]
fn a_stop_token_ends_the_answer_without_a_trace() {
    let id = shared().ids("x")[0];
    let forced = json!({"logit_bias": {id.to_string(): 100}, "logprobs": 1});
    let free = shared().complete(text(forced.clone()));
    assert_eq!(free["choices"][0]["finish_reason"], "length");
    let mut body = text(forced);
    body["stop_token_ids"] = json!([id]);
    let stopped = shared().complete(body);
    let choice = &stopped["choices"][0];
    assert_eq!(
        (&choice["text"], &choice["finish_reason"]),
        (&json!(""), &json!("stop"))
    );
    assert_eq!(
        choice["logprobs"]["tokens"],
        json!([""]),
        "an end token has an entry of its own"
    );
    assert_eq!(stopped["usage"]["completion_tokens"], 1);
}

#[test]
fn the_same_seed_says_the_same_and_greedy_is_repeatable() {
    let _alone = alone();
    for more in [
        json!({"temperature": 1, "seed": 42}),
        json!({"temperature": 1, "seed": -42}),
        json!({"temperature": 0}),
    ] {
        let body = text(more);
        let (first, second) = (shared().complete(body.clone()), shared().complete(body));
        assert_eq!(first["choices"], second["choices"]);
        assert_ne!(first["id"], second["id"]);
    }
}
