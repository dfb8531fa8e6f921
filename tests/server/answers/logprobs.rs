//! Log-probabilities in answers.

use serde_json::{Value, json};

use super::{PROMPT, question, text};
use crate::server::support::{MODEL, shared};

#[test]
fn chat_log_probabilities_spell_the_content() {
    let answer = shared().chat(question(json!({"logprobs": true, "top_logprobs": 3})));
    let choice = &answer["choices"][0];
    let entries = choice["logprobs"]["content"].as_array().unwrap();
    let bytes = entries
        .iter()
        .flat_map(|entry| entry["bytes"].as_array().unwrap());
    let bytes: Vec<u8> = bytes.map(|byte| byte.as_u64().unwrap() as u8).collect();
    // The answer may end in the middle of a character.
    assert_eq!(
        String::from_utf8_lossy(&bytes),
        choice["message"]["content"].as_str().unwrap()
    );
    assert!(entries.len() as u64 <= answer["usage"]["completion_tokens"].as_u64().unwrap());
    for entry in entries {
        assert!(entry["logprob"].as_f64().unwrap() <= 0.0);
        let top = entry["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        assert_eq!(
            top[0]["logprob"], entry["logprob"],
            "greedy takes the most likely"
        );
        let falls = top
            .windows(2)
            .all(|pair| pair[0]["logprob"].as_f64() >= pair[1]["logprob"].as_f64());
        assert!(falls, "{top:?}");
    }
    let bare = shared().chat(question(json!({"logprobs": true})));
    assert_eq!(
        bare["choices"][0]["logprobs"]["content"][0]["top_logprobs"],
        json!([])
    );
}

/// Checks the invariants of the four lists, and returns their length.
pub(super) fn check_lists(choice: &Value, top: usize) -> usize {
    let list = |key: &str| choice["logprobs"][key].as_array().unwrap();
    let tokens = list("tokens");
    let offsets = list("text_offset");
    let text: Vec<char> = choice["text"].as_str().unwrap().chars().collect();
    let mut joined = String::new();
    for (at, token) in tokens.iter().enumerate() {
        let token = token.as_str().unwrap();
        let logprob = &list("token_logprobs")[at];
        let alternatives = &list("top_logprobs")[at];
        let offset = offsets[at].as_u64().unwrap() as usize;
        if !token.starts_with("bytes:") {
            let shown: String = text[offset..].iter().take(token.chars().count()).collect();
            assert_eq!(shown, token, "the offset points at the token");
        }
        joined += token;
        if logprob.is_null() {
            assert!(alternatives.is_null());
        } else {
            assert_eq!(
                alternatives[token], *logprob,
                "the chosen token has the identical float"
            );
            assert!((1..=top + 1).contains(&alternatives.as_object().unwrap().len()));
        }
    }
    if !joined.contains("bytes:") {
        assert_eq!(joined, choice["text"].as_str().unwrap());
    }
    for key in ["token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(list(key).len(), tokens.len(), "{key}");
    }
    tokens.len()
}

#[test]
fn completion_log_probabilities_are_lists_that_spell_the_text() {
    for top in [0, 1, 5] {
        let answer = shared().complete(text(json!({"logprobs": top})));
        let tokens = check_lists(&answer["choices"][0], top);
        assert_eq!(answer["usage"]["completion_tokens"], tokens);
    }
}

#[test]
fn echo_scores_the_prompt() {
    let answer = shared().complete(text(json!({"logprobs": 1, "echo": true, "max_tokens": 0})));
    let choice = &answer["choices"][0];
    assert_eq!(
        choice["text"], PROMPT,
        "a BOS that the client did not write is not its text"
    );
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    let tokens = check_lists(choice, 1);
    assert_eq!(answer["usage"]["prompt_tokens"], tokens);
    let scores = choice["logprobs"]["token_logprobs"].as_array().unwrap();
    assert!(scores[0].is_null(), "nothing precedes the first token");
    assert!(
        scores[1..]
            .iter()
            .all(|score| score.as_f64().unwrap() <= 0.0)
    );
}

#[test]
fn ids_are_a_prompt_without_a_bos_of_ours() {
    let ids = shared().ids(PROMPT);
    let answer = shared().complete(text(
        json!({"prompt": ids, "logprobs": 1, "echo": true, "max_tokens": 1, "ignore_eos": true}),
    ));
    assert_eq!(answer["usage"]["prompt_tokens"], ids.len());
    assert_eq!(check_lists(&answer["choices"][0], 1), ids.len() + 1);
    assert!(
        answer["choices"][0]["text"]
            .as_str()
            .unwrap()
            .starts_with(PROMPT)
    );
    let plain = shared().complete(text(json!({"add_special_tokens": false})));
    assert_eq!(plain["usage"]["prompt_tokens"], ids.len());
}

#[test]
fn after_a_profile_every_token_of_the_client_is_scored() {
    let mut body = text(json!({"logprobs": 1, "echo": true, "max_tokens": 0}));
    body["model"] = json!(format!("{MODEL}@urial"));
    let answer = shared().complete(body);
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], PROMPT, "the profile's text is not echoed");
    let scored = check_lists(choice, 1) as u64;
    assert!(
        choice["logprobs"]["token_logprobs"]
            .as_array()
            .unwrap()
            .iter()
            .all(Value::is_number)
    );
    assert!(
        answer["usage"]["prompt_tokens"].as_u64().unwrap() > scored,
        "usage counts the prefix"
    );
}

#[test]
fn scoring_a_prompt_gives_the_numbers_of_stepping_through_it() {
    let ids = shared().ids("One two three four.");
    let echoed = shared().complete(text(
        json!({"prompt": ids, "logprobs": 0, "echo": true, "max_tokens": 0}),
    ));
    let scored = echoed["choices"][0]["logprobs"]["token_logprobs"]
        .as_array()
        .unwrap();
    for at in 1..ids.len() {
        // The bias forces the token; its log-probability is that of the raw logits.
        let force = json!({ids[at].to_string(): 100});
        let step =
            json!({"prompt": ids[..at], "logprobs": 0, "max_tokens": 1, "logit_bias": force});
        let step = shared().complete(text(step));
        let stepped = step["choices"][0]["logprobs"]["token_logprobs"][0]
            .as_f64()
            .unwrap();
        let difference = (stepped - scored[at].as_f64().unwrap()).abs();
        assert!(
            difference < 0.02,
            "token {at}: {stepped} against {}",
            scored[at]
        );
    }
}
