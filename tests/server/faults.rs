//! A server whose engine panics or hangs: fault injection, which only builds with debug
//! assertions support.

use std::io::{Read, Write};

use serde_json::{Value, json};

use crate::server::program::Program;
use crate::server::support::{COMPLETIONS, in_company, post};
use crate::support::wait_until;

fn completion(program: &Program) -> Value {
    let served = program.early.last().expect("it serves");
    json!({"model": served["model"], "prompt": "One two three", "max_tokens": 50, "ignore_eos": true})
}

/// Returns the status of `/health`.
fn health(program: &Program) -> String {
    let mut stream = program.connect();
    stream
        .write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    answer[9..12].to_owned()
}

#[test]
fn a_server_whose_engine_panics_says_so_in_its_log_and_ends() {
    let mut program = Program::start(&[], &[("INCANT_FAULT", "panic:3")]);
    let _company = in_company();
    let answer = program.ask("unlucky", COMPLETIONS, &completion(&program));
    assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
    // Every line is checked to be JSON.
    let line = program.wait_for("panicked");
    assert_eq!(
        (&line["level"], &line["thread"], &line["cause"]),
        (
            &json!("ERROR"),
            &json!("engine"),
            &json!("a fault that a test asked for")
        )
    );
    let location = line["location"].as_str().expect("a location");
    assert!(location.contains("fault.rs"), "{location}");
    let lines = program.lines_until("says why it ends", |line| {
        let message = line["message"].as_str().unwrap_or_default();
        message.starts_with("the engine of ") && message.ends_with(" has panicked")
    });
    assert_eq!(lines.last().expect("the line")["level"], "ERROR");
    assert_eq!(program.exit_code(), Some(1));
}

#[test]
fn a_server_whose_engine_hangs_is_ill_and_takes_nothing_new() {
    // The fault precedes any step, because on a busy machine a step could take that long: then
    // the server would seem unhealthy, and recover.
    let program = Program::start(&["--stall-timeout", "0.5"], &[("INCANT_FAULT", "hang:0")]);
    let _company = in_company();
    assert_eq!(health(&program), "200");
    let body = completion(&program);
    let mut waiting = program.connect();
    waiting
        .write_all(&post(COMPLETIONS, body.to_string().as_bytes(), ""))
        .expect("it reads");
    wait_until("it is ill", || health(&program) == "503");
    let answer = program.ask("second", COMPLETIONS, &body);
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    let line = program.lines_until("tells of the second", |line| line["span"]["id"] == "second");
    assert_eq!(line.last().expect("a line")["reason"], "engine_failed");
}
