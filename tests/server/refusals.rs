//! Requests that are refused, each with the faulty field.

use serde_json::{Value, json};

use incant::server::ServeOptions;

use crate::server::support::{
    CHAT, COMPLETIONS, MODEL, Reply, Server, chat_body, completion_body, shared,
};

#[test]
fn a_body_that_is_no_object_is_refused_by_every_endpoint() {
    for path in [
        CHAT,
        COMPLETIONS,
        "/tokenize",
        "/detokenize",
        "/apply-template",
    ] {
        for body in [
            "",
            "{",
            "null",
            "[]",
            "{\"model\": \"x\",}",
            // A byte order mark is skipped, but only one, and only at the start.
            "\u{feff}",
            "\u{feff}[]",
            "\u{feff}\u{feff}{}",
            "{}\u{feff}",
            "{} {}",
        ] {
            let error = shared().post_bytes(path, body.as_bytes()).error(400);
            assert_eq!(
                (&error["type"], &error["param"]),
                (&json!("invalid_request_error"), &Value::Null),
                "{path} {body}"
            );
        }
        assert_eq!(
            shared().post_bytes(path, b"{\"a\": \"\xff\"}").error(400)["code"],
            Value::Null
        );
    }
}

#[test]
fn what_both_endpoints_refuse() {
    let table = [
        (json!({"temperature": 2.01}), "temperature"),
        (json!({"temperature": -0.1}), "temperature"),
        (json!({"temperature": "warm"}), "temperature"),
        (json!({"top_p": 1.1}), "top_p"),
        (json!({"top_p": -0.1}), "top_p"),
        (json!({"top_k": -2}), "top_k"),
        (json!({"top_k": 1.5}), "top_k"),
        (json!({"min_p": 1.5}), "min_p"),
        (json!({"presence_penalty": 2.5}), "presence_penalty"),
        (json!({"frequency_penalty": -2.5}), "frequency_penalty"),
        (json!({"repetition_penalty": 0}), "repetition_penalty"),
        (json!({"repetition_penalty": -1}), "repetition_penalty"),
        (json!({"penalize_prompt": 1}), "penalize_prompt"),
        (json!({"dry_multiplier": 100.5}), "dry_multiplier"),
        (json!({"dry_base": -1}), "dry_base"),
        (json!({"dry_allowed_length": -1}), "dry_allowed_length"),
        (json!({"dry_penalty_last_n": -2}), "dry_penalty_last_n"),
        (
            json!({"dry_sequence_breakers": [""]}),
            "dry_sequence_breakers",
        ),
        (
            json!({"dry_sequence_breakers": vec!["a"; 17]}),
            "dry_sequence_breakers",
        ),
        (
            json!({"dry_sequence_breakers": ["a".repeat(65)]}),
            "dry_sequence_breakers",
        ),
        (json!({"top_n_sigma": -1.5}), "top_n_sigma"),
        (json!({"typical_p": 1.5}), "typical_p"),
        (json!({"xtc_probability": -0.5}), "xtc_probability"),
        (json!({"xtc_threshold": 1.5}), "xtc_threshold"),
        (json!({"seed": 1.5}), "seed"),
        (json!({"seed": "x"}), "seed"),
        (json!({"n": 0}), "n"),
        (json!({"n": 129}), "n"),
        (json!({"max_tokens": -1}), "max_tokens"),
        (json!({"max_tokens": 1.5}), "max_tokens"),
        (json!({"max_completion_tokens": 2}), "max_tokens"),
        (json!({"stop": ""}), "stop"),
        (json!({"stop": ["a", ""]}), "stop"),
        (json!({"stop": 5}), "stop"),
        (json!({"stop": vec!["a"; 65]}), "stop"),
        (json!({"stop": "a".repeat(20_000)}), "stop"),
        (json!({"stop": ["a", 5]}), "stop[1]"),
        (
            json!({"stop_token_ids": [4_000_000_000_u32]}),
            "stop_token_ids",
        ),
        (json!({"stop_token_ids": [-1]}), "stop_token_ids[0]"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias"),
        (json!({"logit_bias": {"4000000000": 1}}), "logit_bias"),
        (json!({"logit_bias": {"5": 101}}), "logit_bias"),
        (json!({"logit_bias": {"5": "much"}}), "logit_bias.5"),
        (json!({"logit_bias": [1]}), "logit_bias"),
        (json!({"timeout": 0}), "timeout"),
        (json!({"timeout": -1.5}), "timeout"),
        (json!({"timeout": 1e300}), "timeout"),
        (json!({"timeout": "soon"}), "timeout"),
        (json!({"timeout": true}), "timeout"),
        (json!({"stream": "yes"}), "stream"),
        (
            json!({"stream_options": {"include_usage": true}}),
            "stream_options",
        ),
        (
            json!({"stream": true, "stream_options": {"include_usage": 1}}),
            "stream_options.include_usage",
        ),
        (
            json!({"stream": true, "stream_options": [true]}),
            "stream_options",
        ),
        (
            json!({"response_format": {"type": "json_object"}}),
            "response_format",
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {}}}),
            "response_format",
        ),
        (json!({"min_tokens": 3}), "min_tokens"),
        (json!({"user": 5}), "user"),
        (json!({"model": null}), "model"),
        (json!({"model": 5}), "model"),
    ];
    for (fields, param) in table {
        for (path, body) in [
            (CHAT, chat_body(&fields)),
            (COMPLETIONS, completion_body(&fields)),
        ] {
            let error = shared().post(path, &body).error(400);
            assert_eq!(error["type"], "invalid_request_error");
            assert_eq!(
                (&error["param"], &error["code"]),
                (&json!(param), &Value::Null),
                "{path} {fields}: {error}"
            );
        }
    }
}

#[test]
fn what_chat_refuses() {
    let image =
        json!([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}]);
    let table = [
        (json!({"messages": []}), "messages"),
        (json!({"messages": null}), "messages"),
        (json!({"messages": "hi"}), "messages"),
        (json!({"messages": ["hi"]}), "messages[0]"),
        (json!({"messages": [["user", "hi"]]}), "messages[0]"),
        (json!({"messages": [{"content": "hi"}]}), "messages[0].role"),
        (
            json!({"messages": [{"role": "robot", "content": "hi"}]}),
            "messages[0].role",
        ),
        (
            json!({"messages": [{"role": "tool", "content": "hi"}]}),
            "messages[0].role",
        ),
        (
            json!({"messages": [{"role": "user", "content": "hi"}, {"role": "user"}]}),
            "messages[1].content",
        ),
        (
            json!({"messages": [{"role": "user", "content": null}]}),
            "messages[0].content",
        ),
        (
            json!({"messages": [{"role": "user", "content": 5}]}),
            "messages[0].content",
        ),
        (
            json!({"messages": [{"role": "user", "content": image}]}),
            "messages[0].content[1].type",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
            "messages[0].content[0].text",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"text": "a"}]}]}),
            "messages[0].content[0].type",
        ),
        (
            json!({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}),
            "messages[0].tool_calls",
        ),
        (json!({"max_tokens": 0}), "max_tokens"),
        (
            json!({"max_tokens": null, "max_completion_tokens": 0}),
            "max_completion_tokens",
        ),
        (json!({"logprobs": 1}), "logprobs"),
        (
            json!({"logprobs": true, "top_logprobs": 21}),
            "top_logprobs",
        ),
        (
            json!({"logprobs": true, "top_logprobs": -1}),
            "top_logprobs",
        ),
        (json!({"top_logprobs": 3}), "top_logprobs"),
        (
            json!({"tools": [{"type": "function", "function": {"name": "f"}}]}),
            "tools",
        ),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"functions": [{"name": "f"}]}), "functions"),
        (json!({"modalities": ["audio"]}), "modalities"),
    ];
    for (fields, param) in table {
        let error = shared().post(CHAT, &chat_body(&fields)).error(400);
        assert_eq!(
            (&error["param"], &error["code"]),
            (&json!(param), &Value::Null),
            "{fields}: {error}"
        );
    }
}

#[test]
fn what_completions_refuse() {
    let table = [
        (json!({"prompt": null}), "prompt"),
        (json!({"prompt": 5}), "prompt"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": [[]]}), "prompt"),
        (json!({"prompt": ["a", 5]}), "prompt"),
        (json!({"prompt": [5, [5]]}), "prompt"),
        (json!({"prompt": [-1]}), "prompt[0]"),
        (json!({"prompt": [5.5]}), "prompt[0]"),
        (json!({"prompt": [[5, "a"]]}), "prompt[0][1]"),
        (json!({"prompt": [4_000_000_000_u32]}), "prompt"),
        (json!({"prompt": [5_000_000_000_u64]}), "prompt[0]"),
        (json!({"logprobs": 6}), "logprobs"),
        (json!({"logprobs": -1}), "logprobs"),
        (json!({"logprobs": true}), "logprobs"),
        (json!({"echo": "yes"}), "echo"),
        (json!({"best_of": 3}), "best_of"),
        (json!({"suffix": "the end"}), "suffix"),
    ];
    for (fields, param) in table {
        let error = shared()
            .post(COMPLETIONS, &completion_body(&fields))
            .error(400);
        assert_eq!(
            (&error["param"], &error["code"]),
            (&json!(param), &Value::Null),
            "{fields}: {error}"
        );
    }
}

#[test]
fn more_answers_than_could_ever_be_are_refused_before_prompts_are_looked_at() {
    let mut prompts = vec![json!("a"); 1000];
    prompts.push(json!([4_000_000_000_u32]));
    let body = completion_body(&json!({"prompt": prompts, "n": 128}));
    let error = shared().post(COMPLETIONS, &body).error(400);
    assert_eq!(error["param"], "n", "{error}");
    assert!(
        error["message"].as_str().unwrap().contains("128128"),
        "{error}"
    );
}

#[test]
fn an_error_repeats_little_of_what_was_sent() {
    let huge = "x".repeat(1 << 20);
    let is_short = |what: &str, reply: Reply| {
        assert!(
            (400..500).contains(&reply.status),
            "{what}: {}",
            reply.status
        );
        let error = reply.error(reply.status);
        let longest = error["message"].as_str().unwrap();
        let longest = longest.split(|c| c != 'x').map(str::len).max();
        assert!(longest <= Some(200), "{what}: {longest:?}");
        assert!(reply.body.len() < 2000, "{what}: {}", reply.body.len());
    };
    let models = [
        huge.clone(),
        format!("{MODEL}@{huge}"),
        format!("{MODEL}+{huge}"),
        format!("{MODEL} {huge}"),
        format!("{MODEL} mix={huge}*1"),
        format!("{MODEL} guidance=1 against={huge}"),
    ];
    for model in &models {
        let model = json!({"model": model});
        is_short("chat's model", shared().post(CHAT, &chat_body(&model)));
        is_short(
            "a model",
            shared().post(COMPLETIONS, &completion_body(&model)),
        );
        let rendered =
            json!({"messages": [{"role": "user", "content": "x"}], "model": model["model"]});
        // Arms that would take part in the choice are not looked up for endpoints without an
        // answer.
        if !rendered["model"].as_str().unwrap().contains('=') {
            is_short(
                "a template's model",
                shared().post("/apply-template", &rendered),
            );
        }
        let compare = json!({"arms": [model["model"]], "prompt": "x"});
        is_short("an arm", shared().post("/v1/compare", &compare));
    }
    let both = [
        json!({"temperature": huge}),
        json!({"temperature": 1e308}),
        json!({"stream": huge}),
        json!({"stop": {&huge: 1}}),
        json!({"stop": [{&huge: 1}]}),
        json!({"logit_bias": {&huge: 1}}),
        json!({"logit_bias": {&huge: &huge}}),
        json!({"logit_bias": huge}),
        json!({"stop_token_ids": [&huge]}),
        json!({"stream_options": huge}),
        json!({"mix": [{"model": huge, "weight": 1}]}),
        json!({"mix": [{"model": MODEL, "weight": huge}]}),
        json!({"guidance": {"weight": 1, "against": huge}}),
        json!({"guidance": huge}),
        json!({"user": [&huge]}),
        json!({"response_format": {"type": huge}}),
        json!({"grammar": huge}),
    ];
    for more in &both {
        let what = more.as_object().unwrap().keys().next().unwrap();
        is_short(what, shared().post(CHAT, &chat_body(more)));
        is_short(what, shared().post(COMPLETIONS, &completion_body(more)));
    }
    for messages in [
        json!(huge),
        json!([huge]),
        json!([{"role": huge, "content": "x"}]),
        json!([{"role": "user", "content": {&huge: 1}}]),
        json!([{"role": "user", "content": [{"type": huge}]}]),
    ] {
        let body = chat_body(&json!({"messages": messages}));
        is_short("messages", shared().post(CHAT, &body));
    }
    let prompt = completion_body(&json!({"prompt": {&huge: 1}}));
    is_short("prompt", shared().post(COMPLETIONS, &prompt));
    let reference = json!({"arms": [MODEL], "prompt": "x", "reference": huge});
    is_short("reference", shared().post("/v1/compare", &reference));
    let tokens = json!({"model": MODEL, "tokens": huge});
    is_short("tokens", shared().post("/detokenize", &tokens));
    let strict = Server::start(ServeOptions {
        strict: true,
        ..ServeOptions::default()
    });
    for more in [
        json!({&huge: 1}),
        json!({"stream": true, "stream_options": {&huge: 1}}),
    ] {
        is_short("a field", strict.post(CHAT, &chat_body(&more)));
    }
    let folder = tempfile::tempdir().unwrap();
    let loading = Server::start(ServeOptions {
        adapter_folder: Some(folder.path().to_owned()),
        ..ServeOptions::default()
    });
    for body in [
        json!({"name": huge, "path": "."}),
        json!({"name": "a", "path": huge}),
        json!({"name": "a", "path": ".", "model": huge}),
    ] {
        is_short("an adapter", loading.post("/v1/adapters", &body));
    }
    let long = &huge[..20_000];
    for line in [
        format!("GET /{long}"),
        format!("GET /v1/models/{long}"),
        format!("DELETE /v1/adapters/{long}"),
        format!("GET /tokenizer_info?model={long}"),
        format!("GET /tokenizer_info?model=a&model={long}"),
        format!("{long} /health"),
    ] {
        let head = format!("{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        is_short(&line[..20], shared().send(head.as_bytes()));
    }
}
