//! Fields and paths of other servers' APIs: their effects, and unsupported ones, which are
//! refused by name.

use std::io::{Read, Write};

use serde_json::{Value, json};

use crate::server::support::{
    CHAT, COMPLETIONS, MODEL, alone, chat_body, completion_body, post, shared, with,
};

/// A greedy completion that reports its tokens, with the additional fields `more`.
fn greedy(more: &Value) -> Value {
    let base = json!({
        "prompt": "One two three four", "temperature": 0, "max_tokens": 8, "ignore_eos": true,
        "return_token_ids": true,
    });
    shared().complete(with(with(completion_body(&json!({})), &base), more))
}

fn ids(value: &Value) -> Vec<u64> {
    let list = value.as_array().expect("a list").iter();
    list.map(|id| id.as_u64().expect("an id")).collect()
}

fn token_ids(answer: &Value) -> Vec<u64> {
    ids(&answer["choices"][0]["token_ids"])
}

fn text_of(tokens: &[u64]) -> String {
    let body = json!({"model": MODEL, "tokens": tokens});
    let text = shared().post("/detokenize", &body).expect(200);
    text["content"].as_str().expect("a text").to_owned()
}

#[test]
fn only_allowed_tokens_are_chosen() {
    let allowed = [shared().ids(" red"), shared().ids(" blue")].concat();
    let answer = greedy(&json!({"allowed_token_ids": allowed}));
    let found = token_ids(&answer);
    assert_eq!(found.len(), 8);
    assert!(found.iter().all(|id| allowed.contains(id)), "{found:?}");
    for wrong in [json!([]), json!([4_000_000_000_u32])] {
        let body = completion_body(&json!({"allowed_token_ids": wrong}));
        let error = shared().post(COMPLETIONS, &body).error(400);
        assert_eq!(error["param"], "allowed_token_ids");
    }
    // With only one allowed token and a ban of its repetition, the answer ends after it.
    let one = json!({"allowed_token_ids": [allowed[0]], "bad_words": ["red red"]});
    let short = greedy(&one);
    assert_eq!(token_ids(&short), [allowed[0]]);
    assert_eq!(short["choices"][0]["finish_reason"], "stop");
}

#[test]
fn bad_words_are_not_said() {
    let first = token_ids(&greedy(&json!({})))[0];
    let word = text_of(&[first]);
    let answer = greedy(&json!({"bad_words": [word.trim()]}));
    assert!(!token_ids(&answer).contains(&first), "{word:?}");
    for wrong in [json!([""]), json!([" "]), json!(["x".repeat(20_000)])] {
        let body = completion_body(&json!({"bad_words": wrong}));
        assert_eq!(
            shared().post(COMPLETIONS, &body).error(400)["param"],
            "bad_words"
        );
    }
}

#[test]
fn end_tokens_wait_for_min_tokens() {
    let first = token_ids(&greedy(&json!({})))[0];
    let stopping = json!({"stop_token_ids": [first]});
    let short = greedy(&stopping);
    assert_eq!(token_ids(&short), [first]);
    let longer = greedy(&with(stopping, &json!({"min_tokens": 5})));
    let found = token_ids(&longer);
    assert!(
        found.len() >= 5 && !found[..5].contains(&first),
        "{found:?}"
    );
    let body = completion_body(&json!({"min_tokens": 5, "max_tokens": 4}));
    let error = shared().post(COMPLETIONS, &body).error(400);
    assert_eq!(error["param"], "min_tokens");
}

#[test]
fn a_prompt_is_cut_to_its_last_tokens() {
    let answer = greedy(&json!({"prompt": [5, 6, 7, 8, 9], "truncate_prompt_tokens": 2}));
    assert_eq!(answer["usage"]["prompt_tokens"], 2);
    assert_eq!(answer["choices"][0]["prompt_token_ids"], json!([8, 9]));
    let echoed =
        greedy(&json!({"prompt": [5, 6, 7, 8, 9], "truncate_prompt_tokens": 2, "echo": true}));
    let text = echoed["choices"][0]["text"].as_str().unwrap();
    assert!(text.starts_with(&text_of(&[8, 9])), "{text:?}");
    let chat = chat_body(&json!({"truncate_prompt_tokens": 3, "return_token_ids": true}));
    let chat = shared().chat(chat);
    assert_eq!(chat["usage"]["prompt_tokens"], 3);
    assert_eq!(ids(&chat["prompt_token_ids"]).len(), 3);
    // The truncated prompt applies to the guiding arms, too.
    let guided = json!({"truncate_prompt_tokens": 3, "guidance": 0.5});
    let guided = shared().chat(chat_body(&guided));
    let guide = &guided["usage"]["guidance_tokens_details"];
    assert_eq!(guide["prompt_tokens"], 3);
    for wrong in [0, -2, 5000] {
        let more = json!({"truncate_prompt_tokens": wrong});
        for (path, body) in [
            (CHAT, chat_body(&more)),
            (COMPLETIONS, completion_body(&more)),
        ] {
            let error = shared().post(path, &body).error(400);
            assert_eq!(error["param"], "truncate_prompt_tokens");
        }
    }
}

#[test]
fn ids_are_told_whole_and_in_a_stream() {
    let _alone = alone();
    let messages = json!([{"role": "user", "content": "Name a colour."}]);
    let more = json!({
        "messages": messages, "temperature": 0, "max_tokens": 6, "return_token_ids": true,
    });
    let whole = shared().chat(chat_body(&more));
    let rendered = json!({"model": MODEL, "messages": messages});
    let rendered = shared().post("/apply-template", &rendered).expect(200);
    assert_eq!(whole["prompt_token_ids"], rendered["tokens"]);
    let all = token_ids(&whole);
    assert_eq!(all.len() as u64, whole["usage"]["completion_tokens"]);
    let streaming = chat_body(&with(more, &json!({"stream": true})));
    let chunks = shared().post(CHAT, &streaming).events();
    assert_eq!(chunks[0]["prompt_token_ids"], whole["prompt_token_ids"]);
    assert!(
        chunks[1..]
            .iter()
            .all(|chunk| chunk.get("prompt_token_ids").is_none())
    );
    let told = chunks.iter().map(|chunk| &chunk["choices"][0]["token_ids"]);
    let told: Vec<u64> = told.filter(|told| told.is_array()).flat_map(ids).collect();
    assert_eq!(told, all);

    let whole = greedy(&json!({"prompt": ["One two", "Three four"], "n": 2}));
    let streaming = json!({
        "model": MODEL, "prompt": ["One two", "Three four"], "n": 2, "temperature": 0, "max_tokens": 8,
        "ignore_eos": true, "return_token_ids": true, "stream": true,
    });
    let chunks = shared().post(COMPLETIONS, &streaming).events();
    for choice in whole["choices"].as_array().unwrap() {
        let own = || {
            let choices = chunks.iter().map(|chunk| &chunk["choices"][0]);
            choices.filter(|told| told["index"] == choice["index"])
        };
        let prompt = own().next().map(|first| &first["prompt_token_ids"]);
        assert_eq!(prompt, Some(&choice["prompt_token_ids"]));
        assert!(!ids(&choice["prompt_token_ids"]).is_empty());
        let told = own().map(|told| &told["token_ids"]);
        let told: Vec<u64> = told.filter(|told| told.is_array()).flat_map(ids).collect();
        assert_eq!(told, ids(&choice["token_ids"]));
    }
    let silent = shared().complete(completion_body(&json!({})));
    assert!(silent["choices"][0].get("token_ids").is_none());
}

#[test]
fn log_probabilities_can_name_tokens_by_their_ids() {
    let answer = greedy(&json!({"logprobs": 2, "return_tokens_as_token_ids": true}));
    let names = token_ids(&answer)
        .into_iter()
        .map(|id| json!(format!("token_id:{id}")));
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], names.collect::<Value>());
    let top = logprobs["top_logprobs"][0].as_object().unwrap();
    assert!(
        top.keys().all(|name| name.starts_with("token_id:")),
        "{top:?}"
    );
    let chat = json!({"logprobs": true, "top_logprobs": 1, "return_tokens_as_token_ids": true});
    let chat = shared().chat(chat_body(&chat));
    let token = &chat["choices"][0]["logprobs"]["content"][0];
    for named in [token, &token["top_logprobs"][0]] {
        assert!(named["token"].as_str().unwrap().starts_with("token_id:"));
    }
}

#[test]
fn a_stream_can_tell_its_usage_as_it_goes() {
    let streaming = json!({
        "max_tokens": 5, "ignore_eos": true, "stream": true,
        "stream_options": {"include_usage": true, "continuous_usage_stats": true},
    });
    let chunks = shared()
        .post(COMPLETIONS, &completion_body(&streaming))
        .events();
    let told = chunks
        .iter()
        .map(|chunk| chunk["usage"]["completion_tokens"].as_u64());
    let told: Vec<u64> = told.map(|told| told.expect("a number")).collect();
    assert!(told.is_sorted() && told[0] >= 1, "{told:?}");
    assert_eq!(told.last(), Some(&5));
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk["usage"]["prompt_tokens"].as_u64() > Some(0))
    );
}

#[test]
fn tokens_come_with_their_pieces() {
    let text = "A naïve 😀 text \u{1F9D9}\u{200D}\u{2642}.";
    let body = json!({"model": MODEL, "content": text, "with_pieces": true});
    let told = shared().post("/tokenize", &body).expect(200);
    let mut joined = Vec::new();
    let mut found = Vec::new();
    for token in told["tokens"].as_array().unwrap() {
        found.push(token["id"].as_u64().unwrap());
        match &token["piece"] {
            Value::String(piece) => joined.extend_from_slice(piece.as_bytes()),
            bytes => joined.extend(ids(bytes).into_iter().map(|byte| byte as u8)),
        }
    }
    assert_eq!(String::from_utf8(joined).unwrap(), text);
    assert_eq!(found, shared().ids(text));
}

#[test]
fn a_salted_request_shares_its_kv_with_no_other() {
    let _alone = alone();
    let cached = |prompt: &str, more: Value| {
        let answer = greedy(&with(
            json!({"prompt": prompt.repeat(20), "max_tokens": 1}),
            &more,
        ));
        answer["usage"]["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap()
    };
    let salted = || json!({"cache_salt": "mine"});
    assert_eq!(cached("alpha beta ", json!({})), 0);
    assert!(cached("alpha beta ", json!({})) > 16, "it is kept");
    assert_eq!(cached("alpha beta ", salted()), 0, "it finds nothing");
    assert_eq!(cached("gamma delta ", salted()), 0);
    assert_eq!(cached("gamma delta ", salted()), 0, "nothing is kept of it");
    assert_eq!(cached("gamma delta ", json!({})), 0);
    // In a chat the profile's text is cached nevertheless, and nothing else is; this applies to
    // guiding arms, too.
    let chat = |more: &Value| {
        let messages = json!([{"role": "user", "content": "epsilon zeta ".repeat(20)}]);
        let body = json!({"messages": messages, "guidance": 0.5});
        let usage = &shared().chat(chat_body(&with(body, more)))["usage"];
        let own = usage["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap();
        (
            own,
            usage["guidance_tokens_details"]["cached_tokens"].clone(),
        )
    };
    let (first, second) = (chat(&salted()), chat(&salted()));
    assert_eq!(first, second);
    chat(&json!({}));
    assert_eq!(chat(&salted()), first);
    assert!(chat(&json!({})).0 > first.0);
    let body = completion_body(&json!({"cache_salt": ""}));
    assert_eq!(
        shared().post(COMPLETIONS, &body).error(400)["param"],
        "cache_salt"
    );
}

#[test]
fn what_would_silently_be_missing_is_refused_by_name() {
    let table = [
        json!({"prompt_embeds": "AAAA"}),
        json!({"structural_tag": {"triggers": []}}),
        json!({"mirostat": 2}),
        json!({"dynatemp_range": 0.5}),
        json!({"samplers": ["top_k", "temperature"]}),
        json!({"length_penalty": 1.5}),
        json!({"thinking_token_budget": 10}),
        json!({"t_max_predict_ms": 100}),
        json!({"n_predict": 10}),
        json!({"lora": [{"id": 0, "scale": 1.0}]}),
        json!({"n_probs": 5}),
        json!({"post_sampling_probs": true}),
        json!({"logprob_token_ids": [5]}),
        json!({"return_token_strs": true}),
        json!({"repeat_last_n": 64}),
        json!({"no_repeat_ngram_size": 3}),
        json!({"guidance_scale": 1.5}),
        json!({"priority": 1}),
    ];
    for more in &table {
        let field = more.as_object().unwrap().keys().next().unwrap();
        for (path, body) in [
            (CHAT, chat_body(more)),
            (COMPLETIONS, completion_body(more)),
            (
                "/v1/compare",
                with(json!({"arms": [MODEL], "prompt": "x"}), more),
            ),
        ] {
            let error = shared().post(path, &body).error(400);
            assert_eq!(error["param"], json!(field), "{path}");
            assert!(error["message"].as_str().unwrap().contains(field.as_str()));
        }
    }
    for more in [
        json!({"return_token_ids": true}),
        json!({"truncate_prompt_tokens": 5}),
        json!({"cache_salt": "x"}),
    ] {
        let field = more.as_object().unwrap().keys().next().unwrap();
        let body = with(json!({"arms": [MODEL], "prompt": "x"}), &more);
        assert_eq!(
            shared().post("/v1/compare", &body).error(400)["param"],
            json!(field)
        );
    }
    let strings = json!({"model": MODEL, "prompt": "x", "return_token_strs": true});
    let error = shared().post("/tokenize", &strings).error(400);
    assert_eq!(error["param"], "return_token_strs");
    let closed = json!({
        "model": MODEL, "messages": [{"role": "user", "content": "x"}], "add_generation_prompt": false,
    });
    for path in [CHAT, "/apply-template"] {
        let error = shared().post(path, &closed).error(400);
        assert_eq!(error["param"], "add_generation_prompt");
    }
    let nothing = json!({
        "mirostat": 0, "dynatemp_range": 0, "length_penalty": 1.0, "n_predict": -1, "lora": [], "n_probs": 0,
        "post_sampling_probs": false, "t_max_predict_ms": 0, "repeat_last_n": -1,
    });
    shared().chat(chat_body(&nothing));
}

#[test]
fn an_integer_may_be_written_as_other_languages_write_it() {
    let more = json!({
        "max_tokens": 2.0, "n": 1.0, "seed": 5.0, "top_k": 40.0, "min_tokens": 0.0, "ignore_eos": true,
        "stop_token_ids": [5.0], "allowed_token_ids": [6.0, 7.0], "dry_allowed_length": 2.0,
        "dry_penalty_last_n": -1.0, "truncate_prompt_tokens": 50.0,
    });
    let chat = with(
        more.clone(),
        &json!({"logprobs": true, "top_logprobs": 1.0}),
    );
    let chat = shared().chat(chat_body(&chat));
    assert_eq!(chat["usage"]["completion_tokens"], 2);
    let completion = json!({"prompt": [5.0, 6.0], "logprobs": 1.0, "best_of": 1.0});
    let completion = shared().complete(completion_body(&with(more, &completion)));
    assert_eq!(completion["usage"]["prompt_tokens"], 2);
    let lists = json!({"prompt": [[5.0, 6.0], [7.0]]});
    shared().complete(completion_body(&lists));
    let tokens = json!({"model": MODEL, "tokens": [5.0]});
    shared().post("/detokenize", &tokens).expect(200);
    for (more, param) in [
        (json!({"max_tokens": 2.5}), "max_tokens"),
        (json!({"n": 1.5}), "n"),
        (json!({"top_k": 1e300}), "top_k"),
        (json!({"stop_token_ids": [5, 6.5]}), "stop_token_ids[1]"),
        (json!({"prompt": [5, 6.5]}), "prompt[1]"),
        (json!({"prompt": [5, -1]}), "prompt[1]"),
    ] {
        let error = shared()
            .post(COMPLETIONS, &completion_body(&more))
            .error(400);
        assert_eq!(error["param"], param);
    }
}

#[test]
fn a_seed_of_minus_one_is_none() {
    let drawn = |seed: i64| {
        let more = json!({"seed": seed, "temperature": 1.5, "max_tokens": 12});
        token_ids(&greedy(&more))
    };
    assert_eq!(drawn(7), drawn(7));
    assert_eq!(drawn(-2), drawn(-2));
    assert_ne!(drawn(-1), drawn(-1));
}

#[test]
fn one_field_under_two_names_has_one_value() {
    for path in [CHAT, COMPLETIONS] {
        let asked = |more: Value| match path {
            CHAT => shared().post(path, &chat_body(&more)),
            _ => shared().post(path, &completion_body(&more)),
        };
        asked(json!({"repetition_penalty": 1.1, "repeat_penalty": 1.1})).expect(200);
        asked(json!({"repetition_penalty": 1.1, "repeat_penalty": null})).expect(200);
        asked(json!({"repetition_penalty": null, "repeat_penalty": 1.1})).expect(200);
        let differ = asked(json!({"repetition_penalty": 1.1, "repeat_penalty": 1.2})).error(400);
        assert_eq!(differ["param"], "repetition_penalty");
    }
}

#[test]
fn too_many_answers_are_the_fault_of_what_asks_for_them() {
    let prompts = |prompts: usize, n: usize| {
        let body = completion_body(&json!({"prompt": vec!["x"; prompts], "n": n}));
        shared().post(COMPLETIONS, &body).error(400)["param"].clone()
    };
    assert_eq!(prompts(200, 1), "prompt");
    assert_eq!(prompts(10, 20), "n");
    let compared = json!({"arms": vec![MODEL; 16], "prompt": "x", "analysis": true});
    assert_eq!(
        shared().post("/v1/compare", &compared).error(400)["param"],
        "arms"
    );
}

#[test]
fn each_name_of_a_text_has_its_own_servers_default() {
    let told = |more: Value| {
        let body = with(json!({"model": MODEL}), &more);
        ids(&shared().post("/tokenize", &body).expect(200)["tokens"])
    };
    let bare = shared().ids("Hi there");
    let whole = [&[2], &bare[..]].concat();
    assert_eq!(told(json!({"prompt": "Hi there"})), whole);
    assert_eq!(told(json!({"content": "Hi there"})), bare);
    assert_eq!(
        told(json!({"content": "Hi there", "add_special": true})),
        whole
    );
    assert_eq!(
        told(json!({"prompt": "Hi there", "add_special": false})),
        bare
    );
}

#[test]
fn a_completion_is_not_promised_more_than_the_context_holds() {
    let asked = |max_tokens: usize| {
        let body = json!({"prompt": [5, 6, 7], "max_tokens": max_tokens, "ignore_eos": false});
        let ending = json!({"allowed_token_ids": [8], "stop_token_ids": [8]});
        shared().post(COMPLETIONS, &completion_body(&with(body, &ending)))
    };
    asked(4093).expect(200);
    let error = asked(4094).error(400);
    assert_eq!(
        (&error["code"], &error["param"]),
        (&json!("context_length_exceeded"), &json!("max_tokens"))
    );
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("4096") && message.contains("4094"),
        "{message}"
    );
}

#[test]
fn paths_are_known_without_v1() {
    let models = shared().get("/models").expect(200);
    assert_eq!(models, shared().get("/v1/models").expect(200));
    shared().get(&format!("/models/{MODEL}")).expect(200);
    let chat = shared()
        .post("/chat/completions", &chat_body(&json!({})))
        .expect(200);
    assert_eq!(chat["object"], "chat.completion");
    let completion = shared()
        .post("/completions", &completion_body(&json!({})))
        .expect(200);
    assert_eq!(completion["object"], "text_completion");
}

#[test]
fn a_key_may_come_as_other_clients_send_it() {
    let locked = crate::server::support::Server::start(incant::server::ServeOptions {
        keys: crate::server::keys::keys("sesame"),
        ..Default::default()
    });
    let status = |headers: &str| {
        let body = json!({"model": MODEL, "prompt": "x"}).to_string();
        let headers = format!("Connection: close\r\n{headers}");
        let mut stream = locked.connect();
        stream
            .write_all(&post("/tokenize", body.as_bytes(), &headers))
            .expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        answer[9..12].to_owned()
    };
    assert_eq!(status("X-Api-Key: sesame\r\n"), "200");
    assert_eq!(status("x-api-key:  sesame \r\n"), "200");
    assert_eq!(status("X-Api-Key: other\r\n"), "401");
    assert_eq!(status(""), "401");
}
