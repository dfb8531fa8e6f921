//! Signals to the program while it serves.

use std::io::{Read, Write};

use serde_json::json;

use crate::server::program::Program;
use crate::server::support::{COMPLETIONS, in_company, post};

/// Starts an answer of the maximum length.
fn endless(program: &Program) -> std::net::TcpStream {
    let model = &program.early.last().expect("it serves")["model"];
    let body = json!({
        "model": model, "prompt": "Hi", "max_tokens": 8000, "ignore_eos": true, "stream": true
    });
    let mut client = program.connect();
    client
        .write_all(&post(COMPLETIONS, body.to_string().as_bytes(), ""))
        .expect("it reads");
    let mut first = [0; 16];
    client.read_exact(&mut first).expect("it answers");
    client
}

#[test]
fn a_second_request_to_end_ends_it_at_once() {
    let _company = in_company();
    for (first, second, code) in [("-INT", "-INT", 130), ("-INT", "-TERM", 143)] {
        let mut program = Program::start(&["--drain", "3000"], &[]);
        let client = endless(&program);
        program.signal(first);
        program.lines_until("says what a second one does", |line| {
            let message = line["message"].as_str().unwrap_or_default();
            message.contains("press Ctrl-C again to stop at once")
        });
        program.wait_for("draining");
        program.signal(second);
        assert_eq!(program.exit_code(), Some(code));
        drop(client);
    }
}

#[test]
fn a_server_that_nobody_asks_anything_ends_at_the_first_request_to() {
    let mut program = Program::start(&[], &[]);
    program.signal("-TERM");
    assert_eq!(program.exit_code(), Some(0));
}

#[test]
fn requests_are_served_during_the_shutdown_delay_while_health_checks_fail() {
    let _company = in_company();
    let mut program = Program::start(&["--shutdown-delay", "3", "--drain", "3000"], &[]);
    program.signal("-TERM");
    program.wait_for("new requests are taken for 3 s more, while /health answers 503");
    let health = program.get("/health");
    assert!(health.starts_with("HTTP/1.1 503"), "{health}");
    assert!(health.contains("shutting down"), "{health}");
    let answer = program.ask("late", "/tokenize", &json!({"prompt": "x"}));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let begun = endless(&program);
    program.wait_for("draining");
    assert!(!program.listens(), "its port is still open");
    drop(begun);
    assert_eq!(program.exit_code(), Some(0));
}

#[test]
fn the_shutdown_delay_is_for_supervisors_and_a_second_signal_ends_it() {
    let mut program = Program::start(&["--shutdown-delay", "3000"], &[]);
    program.signal("-INT");
    assert_eq!(program.exit_code(), Some(0));

    let mut program = Program::start(&["--shutdown-delay", "3000"], &[]);
    program.signal("-TERM");
    program.wait_for("new requests are taken for 3000 s more, while /health answers 503");
    program.signal("-TERM");
    assert_eq!(program.exit_code(), Some(143));
}

#[test]
fn sighup_does_not_end_a_server_that_has_nothing_to_reload() {
    let _company = in_company();
    let program = Program::listening(&[], &[]);
    program.send_sighup();
    program.lines_until("says so", |line| {
        let message = line["message"].as_str().unwrap_or_default();
        message.contains("SIGHUP: nothing to reload")
    });
    program.wait_for("serving");
    program.send_sighup();
    let answer = program.ask("after", "/tokenize", &json!({"prompt": "x"}));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}
