//! The structured log of requests.

use std::io::{Read, Write};

use serde_json::{Value, json};

use crate::server::program::Program;
use crate::server::support::{CHAT, COMPLETIONS, in_company, post, with};

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
    let cut = format!("{}\u{2026}", &name[..200]);
    assert_eq!(warning["field"], json!(cut), "a long name is cut");
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

#[test]
fn a_line_tells_who_asked_and_repeats_little_of_what_was_asked() {
    let program = Program::start(&[], &[]);
    let _company = in_company();
    let ask = |line: &str, headers: &str| {
        let mut stream = program.connect();
        let head = format!("{line}\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        (program.wait_for("ended"), answer)
    };
    let (line, _) = ask("GET /health HTTP/1.1", "X-Request-Id: mine\r\n");
    let client = line["client"].as_str().expect("a client");
    let client: std::net::SocketAddr = client.parse().expect("an address");
    assert!(client.ip().is_loopback() && client.port() > 0);
    assert!(line.get("forwarded_for").is_none(), "{line}");
    let (line, _) = ask(
        "GET /health HTTP/1.1",
        "X-Forwarded-For: 10.1.2.3, 10.4.5.6\r\n",
    );
    assert_eq!(line["forwarded_for"], "10.1.2.3, 10.4.5.6");

    let forged = r#"x}: ended method=GET path="/forged" status=200 outcome="finished""#;
    let (line, answer) = ask(
        "GET /health HTTP/1.1",
        &format!("X-Request-Id: {forged}\r\n"),
    );
    let id = line["span"]["id"].as_str().expect("an id");
    assert!(id.starts_with("req-"), "{id}");
    assert!(answer.contains(&format!("x-request-id: {id}")), "{answer}");

    let long = "x".repeat(20_000);
    let headers = format!("X-Forwarded-For: {long}\r\n");
    let (line, _) = ask(&format!("{long} /{long} HTTP/1.1"), &headers);
    for field in ["method", "path", "forwarded_for"] {
        let told = line[field].as_str().expect(field).chars().count();
        assert_eq!(told, 201, "{field}");
    }
}
