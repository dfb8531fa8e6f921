//! Fairness between clients with many requests and clients with few. The tests count tokens,
//! because times would depend on the machine.

use std::io::{Read, Write};

use incant::server::ServeOptions;
use serde_json::{Value, json};

use crate::server::program::Program;
use crate::server::support::{
    COMPLETIONS, MODEL, Server, alone, completion_body, endless, eventually, idle, in_company,
    runtime,
};

/// The number of tokens that a server has generated.
fn generated(server: &Server) -> u64 {
    let reply = server.get("/metrics");
    let counted = reply.text().lines().find_map(|line| {
        let rest = line.strip_prefix("incant_generated_tokens_total{")?;
        let of_arm = rest.starts_with(&format!("arm=\"{MODEL}\"}}"));
        of_arm.then(|| rest.rsplit(' ').next()?.parse().ok())?
    });
    counted.expect("a count of the arm's tokens")
}

#[test]
fn a_short_request_is_answered_while_a_large_one_runs() {
    /// More than all slots can generate while twelve tokens and their prompt are computed, and
    /// far less than the 4,000 tokens after which the first slot would be free.
    const MAX_TOKENS: u64 = 1500;
    let _alone = alone();
    eventually("the engine is idle", idle);
    let server = Server::start(ServeOptions::default());
    let waiting = || runtime().models()[0].engine().load().waiting;
    for stream in [false, true] {
        let mut large = server.connect();
        let body = json!({"n": 128, "stream": true});
        large.write_all(&endless(&body)).unwrap();
        eventually("it has all slots", || waiting() > 0);
        let before = generated(&server);
        let body = json!({
            "prompt": "The sea is", "max_tokens": 12, "ignore_eos": true, "stream": stream,
        });
        let reply = server.post(COMPLETIONS, &completion_body(&body));
        assert_eq!(reply.status, 200, "{}", reply.text());
        let meanwhile = generated(&server) - before;
        assert!(meanwhile < MAX_TOKENS, "{meanwhile} tokens");
        assert!(waiting() > 0, "the large one still has some in the queue");
        drop(large);
        eventually("the engine is idle", idle);
    }
}

#[test]
fn a_short_request_is_answered_while_long_prompts_are_scored() {
    let _alone = alone();
    eventually("the engine is idle", idle);
    let server = Server::start(ServeOptions::default());
    let load = || runtime().models()[0].engine().load();
    let mut scored = Vec::new();
    for first in 0..6 {
        let ids: Vec<u32> = (0..4000).map(|at| 1000 + 7 * first + 10 * at).collect();
        let body = json!({"prompt": ids, "echo": true, "logprobs": 1, "max_tokens": 0});
        let mut stream = server.connect();
        let body = completion_body(&body).to_string();
        let request = crate::server::support::post(COMPLETIONS, body.as_bytes(), "");
        stream.write_all(&request).unwrap();
        scored.push(stream);
    }
    eventually("they are scored", || load().running == 6);
    let body = json!({"prompt": "The sea is", "max_tokens": 12, "ignore_eos": true});
    server.complete(completion_body(&body));
    assert_eq!(load().running, 6, "none of them is done before");
    drop(scored);
    eventually("the engine is idle", idle);
}

/// Returns a server's answers to six requests at once.
fn answers(program: &Program) -> Value {
    let served = program.early.last().expect("it serves");
    let body = json!({
        "model": served["model"], "prompt": "Once upon a time", "n": 6, "seed": 1,
        "max_tokens": 200, "ignore_eos": true,
    });
    let answer = program.ask("six", COMPLETIONS, &body);
    let (head, body) = answer.split_once("\r\n\r\n").expect("a whole answer");
    assert!(head.starts_with("HTTP/1.1 200 "), "{answer}");
    let body: Value = serde_json::from_str(body).expect("JSON");
    body["choices"].clone()
}

/// The number of preemptions.
fn preemptions(program: &Program) -> u64 {
    let mut stream = program.connect();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    let line = answer
        .lines()
        .find(|line| line.starts_with("incant_preemptions_total{"));
    let count = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    count.expect("a count")
}

#[test]
fn where_nothing_can_be_swapped_out_answers_are_what_they_would_be() {
    let _company = in_company();
    let expected = answers(&Program::start(&[], &[]));
    let little = ["--kv-memory", "16MiB"];
    let swapping = Program::start(&little, &[]);
    assert_eq!(answers(&swapping), expected);
    assert!(preemptions(&swapping) > 0);
    // A path through a file: no user can create anything there.
    let file = tempfile::NamedTempFile::new().expect("a file");
    let folder = file.path().join("folder");
    let folder = folder.to_str().expect("UTF-8");
    let nowhere = Program::start(&little, &[("TMPDIR", folder)]);
    let warned = nowhere.early.iter().any(|line| {
        let message = line["message"].as_str().unwrap_or_default();
        line["level"] == "WARN" && message.contains(folder)
    });
    assert!(warned, "it is told at the start: {:?}", nowhere.early);
    assert_eq!(answers(&nowhere), expected);
    assert!(preemptions(&nowhere) > 0);
}

/// As on a full disk: writes end in the middle.
#[cfg(target_os = "linux")]
#[test]
fn where_files_have_a_limit_answers_are_what_they_would_be() {
    let _company = in_company();
    let program = Program::start(&["--kv-memory", "16MiB"], &[]);
    let expected = answers(&program);
    let before = preemptions(&program);
    assert!(before > 0);
    program.limit_files(10_000);
    assert_eq!(answers(&program), expected);
    assert!(preemptions(&program) > before);
    program.lines_until("warns", |line| {
        let message = line["message"].as_str().unwrap_or_default();
        line["level"] == "WARN" && message.starts_with("KV cannot be swapped out to ")
    });
}
