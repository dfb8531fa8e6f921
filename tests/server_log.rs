//! What the program logs about requests, for programs to read.

use std::io::{Read, Write};

use serde_json::{Value, json};

use crate::server_program::Program;
use crate::server_support::{CHAT, COMPLETIONS, in_company, post, with};

fn completion(id: &str, more: &Value) -> Value {
    let body = json!({"model": id, "prompt": "One two three", "ignore_eos": true});
    with(body, more)
}

#[test]
fn each_request_has_a_line_with_what_it_cost_and_warnings_carry_its_name() {
    let program = Program::start(&["--request-timeout", "60"], &[]);
    let _company = in_company();
    let models = program.ask("first", "/tokenize", &json!({"prompt": "x"}));
    assert!(models.starts_with("HTTP/1.1 200"), "{models}");
    let line = program.wait_for("ended");
    assert_eq!(line["span"]["id"], "first");
    assert_eq!(
        (&line["path"], &line["method"]),
        (&json!("/tokenize"), &json!("POST"))
    );
    assert_eq!(
        (&line["status"], &line["outcome"]),
        (&json!(200), &json!("finished"))
    );
    assert!(
        line.get("completion_tokens").is_none(),
        "it has none: {line}"
    );
    let arm = line["arm"].as_str().expect("the only model").to_owned();

    let body = completion(&arm, &json!({"max_tokens": 4, "odd": true}));
    let answer = program.ask("whole", COMPLETIONS, &body);
    let (head, answer) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.contains("x-request-id: whole"), "{head}");
    let answer: Value = serde_json::from_str(answer).expect("JSON");
    let warning =
        program.wait_for("a request has a field that incant does not know; it is ignored");
    assert_eq!(
        (&warning["level"], &warning["field"], &warning["span"]["id"]),
        (&json!("WARN"), &json!("odd"), &json!("whole"))
    );
    let line = program.wait_for("ended");
    assert_eq!(line["span"]["id"], "whole");
    assert_eq!(
        (&line["outcome"], &line["arm"]),
        (&json!("finished"), &json!(arm))
    );
    let usage = &answer["usage"];
    assert_eq!(line["prompt_tokens"], usage["prompt_tokens"]);
    assert_eq!(line["completion_tokens"], json!(4));
    assert_eq!(
        line["cached_tokens"],
        usage["prompt_tokens_details"]["cached_tokens"]
    );
    let millis = |key: &str| {
        line[key]
            .as_u64()
            .unwrap_or_else(|| panic!("{key}: {line}"))
    };
    assert!(millis("queue_ms") <= millis("first_token_ms"), "{line}");
    assert!(millis("first_token_ms") <= millis("ms"), "{line}");

    let name = "odd".repeat(1000);
    program.ask(
        "long",
        COMPLETIONS,
        &completion(&arm, &json!({"max_tokens": 1, &name: 1})),
    );
    let warning =
        program.wait_for("a request has a field that incant does not know; it is ignored");
    assert_eq!(warning["field"], json!(name[..100]), "a long name is cut");
    program.wait_for("ended");

    let body = completion(&arm, &json!({"max_tokens": 3, "n": 2, "stream": true}));
    program.ask("streamed", COMPLETIONS, &body);
    let line = program.wait_for("ended");
    assert_eq!(
        (
            &line["span"]["id"],
            &line["completion_tokens"],
            &line["outcome"]
        ),
        (&json!("streamed"), &json!(6), &json!("finished"))
    );

    let body = json!({"model": arm, "messages": [], "max_tokens": 1});
    program.ask("refused", CHAT, &body);
    let line = program.wait_for("ended");
    assert_eq!(
        (
            &line["span"]["id"],
            &line["status"],
            &line["outcome"],
            &line["reason"]
        ),
        (
            &json!("refused"),
            &json!(400),
            &json!("refused"),
            &json!("invalid")
        )
    );

    let body = completion(
        &arm,
        &json!({"max_tokens": 8000, "timeout": 3, "stream": true}),
    );
    program.ask("late", COMPLETIONS, &body);
    let warning = program.wait_for(
        "a stream broke off: The answer was not complete within the request's own `timeout` of 3 s.",
    );
    assert_eq!(warning["span"]["id"], "late");
    let line = program.wait_for("ended");
    assert_eq!(
        (&line["span"]["id"], &line["status"], &line["outcome"]),
        (&json!("late"), &json!(200), &json!("timed_out"))
    );
    assert!(line["completion_tokens"].as_u64().unwrap() > 0, "{line}");

    let mut client = program.connect();
    let body = completion(&arm, &json!({"max_tokens": 8000, "stream": true}));
    let request = post(
        COMPLETIONS,
        body.to_string().as_bytes(),
        "X-Request-Id: gone\r\n",
    );
    client.write_all(&request).unwrap();
    let mut first = [0; 64];
    client.read_exact(&mut first).unwrap();
    drop(client);
    let line = program.wait_for("ended");
    assert_eq!(
        (&line["span"]["id"], &line["outcome"]),
        (&json!("gone"), &json!("left"))
    );
}
