//! The HTTP protocol around an answer: routes, errors, limits.

use std::sync::Arc;
use std::time::Duration;

use incant::runtime::Runtime;
use incant::server::ServeOptions;
use serde_json::{Value, json};

use crate::server::support::{
    CHAT, COMPLETIONS, MODEL, Server, chat_body, completion_body, shared, with,
};

#[test]
fn health_is_ok_once_loaded() {
    assert_eq!(shared().get("/health").expect(200), json!({"status": "ok"}));
}

#[test]
fn a_server_that_loads_only_describes_itself() {
    let loading = Server::over(Arc::new(Runtime::new()), ServeOptions::default());
    for reply in [
        loading.get("/health"),
        loading.get("/v1/models"),
        loading.get("/nowhere"),
        loading.post(CHAT, &chat_body(&json!({}))),
    ] {
        assert_eq!(reply.error(503)["type"], "service_unavailable");
        assert!(reply.header("retry-after").unwrap().parse::<u64>().unwrap() > 0);
    }
    loading.get("/openapi.json").expect(200);
}

#[test]
fn a_request_has_a_name_and_keeps_the_one_it_brought() {
    let first = shared().get("/health");
    let second = shared().get("/nowhere");
    let (first, second) = (
        first.header("x-request-id").unwrap(),
        second.header("x-request-id").unwrap(),
    );
    assert_ne!(first, second);
    let named = shared().send(
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: mine-1\r\nConnection: close\r\n\r\n",
    );
    assert_eq!(named.header("x-request-id"), Some("mine-1"));
}

#[test]
fn paths_and_methods_that_are_not_there_fail_in_the_same_shape() {
    for path in ["/v1", "/v1/embeddings", "/v1/models/", "/health/"] {
        let error = shared().get(path).error(404);
        assert_eq!(
            (&error["type"], &error["code"]),
            (&json!("invalid_request_error"), &Value::Null),
            "{path}"
        );
        assert!(error["message"].as_str().unwrap().contains(path));
    }
    let reply = shared().get(CHAT);
    reply.error(405);
    assert_eq!(reply.header("allow"), Some("POST"));
    shared().post("/v1/models", &json!({})).error(405);
}

#[test]
fn every_arm_is_a_model_and_answers_to_its_encoded_id() {
    let models = shared().get("/v1/models").expect(200);
    assert_eq!(models["object"], "list");
    let ids: Vec<&str> = models["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| model["id"].as_str().unwrap())
        .collect();
    for id in [
        MODEL.to_owned(),
        format!("{MODEL}@base"),
        format!("{MODEL}@urial"),
    ] {
        assert!(ids.contains(&id.as_str()), "{id} is not among {ids:?}");
    }
    for model in models["data"].as_array().unwrap() {
        let id = model["id"].as_str().unwrap();
        assert_eq!(model["object"], "model");
        assert!(model["created"].is_u64() && model["owned_by"].is_string());
        assert!(model["parent"].is_null() || ids.contains(&model["parent"].as_str().unwrap()));
        for path in [id.to_owned(), id.replace('@', "%40").replace('+', "%2B")] {
            assert_eq!(
                shared().get(&format!("/v1/models/{path}")).expect(200),
                *model
            );
        }
    }
    for missing in ["nothing", &format!("{MODEL}@nothing"), "a/b", "%FF"] {
        let error = shared().get(&format!("/v1/models/{missing}")).error(404);
        assert_eq!(error["code"], "model_not_found", "{missing}");
    }
}

#[test]
fn a_model_profile_or_adapter_that_is_not_there_is_not_found() {
    for model in ["nothing", &format!("{MODEL}@nothing"), ""] {
        for (path, body) in [
            (CHAT, chat_body(&json!({"model": model}))),
            (COMPLETIONS, completion_body(&json!({"model": model}))),
            ("/tokenize", json!({"model": model, "prompt": "x"})),
            ("/detokenize", json!({"model": model, "tokens": []})),
            (
                "/apply-template",
                json!({"model": model, "messages": [{"role": "user", "content": "x"}]}),
            ),
        ] {
            let error = shared().post(path, &body).error(404);
            assert_eq!(error["type"], "invalid_request_error");
            assert_eq!(
                (&error["code"], &error["param"]),
                (&json!("model_not_found"), &json!("model")),
                "{path} {model}"
            );
        }
    }
}

#[test]
fn null_is_the_default_and_other_servers_extensions_are_understood() {
    let nulls = json!({
        "temperature": null, "top_p": null, "top_k": null, "min_p": null, "seed": null, "n": null, "stop": null,
        "presence_penalty": null, "frequency_penalty": null, "logit_bias": null, "stream": null, "user": null,
        "stream_options": null, "logprobs": null, "max_completion_tokens": null, "response_format": null,
        "repetition_penalty": null, "ignore_eos": null, "stop_token_ids": null, "dry_multiplier": null,
        "dry_base": null, "dry_allowed_length": null, "dry_penalty_last_n": null, "dry_sequence_breakers": null,
        "top_n_sigma": null, "typical_p": null, "xtc_probability": null, "xtc_threshold": null,
    });
    let edges = json!({
        "temperature": 2, "top_p": 0, "top_k": -1, "min_p": 1, "seed": -9_223_372_036_854_775_808_i64, "n": 1,
        "presence_penalty": -2, "frequency_penalty": 2, "repetition_penalty": 1.1, "penalize_prompt": true,
        "logit_bias": {"5": -100, "6": 100}, "stop": ["a", "b", "c", "d", "e", "f"], "ignore_eos": true,
        "stop_token_ids": [5], "user": "someone", "max_completion_tokens": 1, "min_tokens": 0,
        "response_format": {"type": "text"}, "metadata": {"a": "b"}, "store": false,
        "dry_multiplier": 100, "dry_base": 10, "dry_allowed_length": 0, "dry_penalty_last_n": -1,
        "dry_sequence_breakers": ["\n", "###", "日本"], "top_n_sigma": 100, "typical_p": 0,
        "xtc_probability": 1, "xtc_threshold": 0,
    });
    let unknown = json!({"a_field_of_tomorrow": {"x": 1}});
    for fields in [nulls, edges, unknown] {
        shared().post(CHAT, &chat_body(&fields)).expect(200);
        shared()
            .post(COMPLETIONS, &completion_body(&fields))
            .expect(200);
    }
    let chat = json!({
        "tools": [], "tool_choice": "auto", "modalities": ["text"], "logprobs": false, "top_logprobs": 0,
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "c", "refusal": null, "tool_calls": null, "function_call": null, "audio": null},
            {"role": "user", "content": "d"},
        ],
    });
    shared().post(CHAT, &chat_body(&chat)).expect(200);
    let completion =
        json!({"suffix": null, "best_of": 1, "echo": false, "add_special_tokens": true});
    shared()
        .post(COMPLETIONS, &completion_body(&completion))
        .expect(200);
}

#[test]
fn a_strict_server_refuses_fields_it_does_not_know() {
    let strict = Server::start(ServeOptions {
        strict: true,
        ..ServeOptions::default()
    });
    let table = [
        (CHAT, chat_body(&json!({"odd": 1})), "odd"),
        (
            CHAT,
            chat_body(&json!({"messages": [{"role": "user", "content": "x", "odd": 1}]})),
            "messages[].odd",
        ),
        (
            CHAT,
            chat_body(&json!({"stream": true, "stream_options": {"odd": true}})),
            "stream_options.odd",
        ),
        (COMPLETIONS, completion_body(&json!({"odd": 1})), "odd"),
        ("/tokenize", json!({"prompt": "x", "odd": 1}), "odd"),
    ];
    for (path, body, param) in table {
        assert_eq!(strict.post(path, &body).error(400)["param"], param);
    }
    strict
        .post(
            CHAT,
            &chat_body(&json!({"odd": null, "user": "me", "top_k": 1})),
        )
        .expect(200);
}

#[test]
fn a_body_over_the_limit_is_refused_whether_it_says_so_or_not() {
    let small = Server::start(ServeOptions {
        max_body: 2000,
        ..ServeOptions::default()
    });
    let body = completion_body(&json!({"prompt": "a".repeat(100_000)})).to_string();
    assert_eq!(
        small.post_bytes(COMPLETIONS, body.as_bytes()).error(413)["type"],
        "invalid_request_error"
    );
    let head = format!(
        "POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    let chunk = format!("{:x}\r\n{}\r\n0\r\n\r\n", 3000, "a".repeat(3000));
    small.send((head + &chunk).as_bytes()).error(413);
    small
        .post(COMPLETIONS, &completion_body(&json!({})))
        .expect(200);
}

#[test]
fn a_body_that_does_not_come_is_not_waited_for() {
    let hasty = Server::start(ServeOptions {
        client_timeout: Duration::from_millis(100),
        ..ServeOptions::default()
    });
    let request = format!(
        "POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: 100\r\n\r\n{{"
    );
    assert_eq!(
        hasty.send(request.as_bytes()).error(408)["type"],
        "invalid_request_error"
    );
}

#[test]
fn a_prompt_longer_than_the_context_is_told_the_numbers() {
    let known = shared()
        .post("/tokenize", &json!({"prompt": "x", "model": MODEL}))
        .expect(200);
    let context = known["max_model_len"].as_u64().unwrap() as usize;
    let long = vec![5; context + 1];
    for more in [json!({}), json!({"max_tokens": 0, "echo": true})] {
        let body = with(completion_body(&json!({"prompt": long})), &more);
        let error = shared().post(COMPLETIONS, &body).error(400);
        assert_eq!(
            (&error["code"], &error["param"]),
            (&json!("context_length_exceeded"), &json!("prompt"))
        );
        let message = error["message"].as_str().unwrap();
        assert!(
            message.contains(&context.to_string()) && message.contains(&long.len().to_string()),
            "{message}"
        );
    }
    let words = "word ".repeat(context + 1);
    let body = chat_body(&json!({"messages": [{"role": "user", "content": words}]}));
    let error = shared().post(CHAT, &body).error(400);
    assert_eq!(
        (&error["code"], &error["param"]),
        (&json!("context_length_exceeded"), &json!("messages"))
    );
}

#[test]
fn tokens_are_made_of_texts_and_texts_of_tokens() {
    let text = "A naïve 😀 text.";
    let whole = shared()
        .post("/tokenize", &json!({"prompt": text}))
        .expect(200);
    let tokens = whole["tokens"].as_array().unwrap();
    assert_eq!(whole["count"], tokens.len());
    let bare = shared().ids(text);
    assert!(tokens.len() >= bare.len());
    // Both names of each field, separately and together.
    let other = json!({"content": text, "add_special": false, "parse_special": true});
    assert_eq!(
        shared().post("/tokenize", &other).expect(200)["tokens"],
        json!(bare)
    );
    let both = json!({"prompt": text, "content": "not this", "add_special_tokens": false, "add_special": true});
    assert_eq!(
        shared().post("/tokenize", &both).expect(200)["tokens"],
        json!(bare)
    );
    let back = shared()
        .post("/detokenize", &json!({"tokens": bare}))
        .expect(200);
    assert_eq!(back, json!({"prompt": text, "content": text}));
    assert_eq!(
        shared().post("/tokenize", &json!({})).error(400)["param"],
        "prompt"
    );
    assert_eq!(
        shared()
            .post("/detokenize", &json!({"tokens": [4_000_000_000_u32]}))
            .error(400)["param"],
        "tokens"
    );
    assert_eq!(
        shared().post("/detokenize", &json!({})).error(400)["param"],
        "tokens"
    );
}

#[test]
fn a_client_learns_what_it_must_know_of_a_tokenizer() {
    let info = shared().get("/tokenizer_info").expect(200);
    assert_eq!(
        info,
        json!({
            "bos_token": "<bos>", "eos_token": "<eos>", "add_bos_token": true,
            "model_max_length": 4096, "chat_template": null,
        })
    );
    let named = format!("/tokenizer_info?model={MODEL}%40urial");
    assert_eq!(shared().get(&named).expect(200), info);
    // The texts are parsed to a single token each.
    for (key, id) in [("bos_token", 2), ("eos_token", 1)] {
        let text = info[key].as_str().expect("a text");
        assert_eq!(shared().ids(text), [id], "{text}");
    }
    let unknown = shared().get("/tokenizer_info?model=no-such").error(404);
    assert_eq!(unknown["code"], "model_not_found");
    let twice = shared().get("/tokenizer_info?model=a&model=b").error(400);
    assert_eq!(twice["param"], "model");
}

#[test]
fn a_template_shows_what_the_model_reads() {
    let messages = json!([{"role": "user", "content": "What is a naïve 😀?"}]);
    let rendered = |model: &str| {
        shared()
            .post(
                "/apply-template",
                &json!({"model": model, "messages": messages}),
            )
            .expect(200)
    };
    let base = rendered(&format!("{MODEL}@base"));
    let urial = rendered(&format!("{MODEL}@urial"));
    for shown in [&base, &urial] {
        assert!(
            shown["prompt"]
                .as_str()
                .unwrap()
                .contains("What is a naïve 😀?"),
            "{shown}"
        );
        assert_eq!(shown["count"], shown["tokens"].as_array().unwrap().len());
    }
    assert_eq!(base["prefix_tokens"], 0);
    assert!(urial["prefix_tokens"].as_u64().unwrap() > 0);
    assert!(!urial["markers"].as_array().unwrap().is_empty());
    assert!(urial["count"].as_u64() > base["count"].as_u64());
    let chat = shared()
        .chat(json!({"model": format!("{MODEL}@urial"), "messages": messages, "max_tokens": 1}));
    assert_eq!(chat["usage"]["prompt_tokens"], urial["count"]);
}

#[test]
fn profiles_are_listed_with_their_texts() {
    let profiles = shared().get("/v1/profiles").expect(200);
    let urial = profiles["data"]
        .as_array()
        .unwrap()
        .iter()
        .find(|profile| profile["id"] == "urial")
        .unwrap();
    assert!(!urial["prefix"].as_str().unwrap().is_empty());
    assert!(urial["prefix_tokens"][MODEL].as_u64().unwrap() > 0);
}

#[test]
fn the_api_describes_itself() {
    let document = shared().get("/openapi.json").expect(200);
    assert_eq!(document["openapi"], "3.1.0");
    assert!(document["paths"][CHAT]["post"]["requestBody"].is_object());
}
