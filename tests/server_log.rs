//! What the program logs about requests, for programs to read.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::server_support::{CHAT, COMPLETIONS, in_company, post, with};
use crate::support::model;

/// It brings a chat template, so that nothing is computed before it serves.
const MODEL: &str = "smollm2-135m-instruct";

/// `incant serve`, and the lines that it logs.
struct Program {
    child: Child,
    lines: Receiver<Value>,
    address: String,
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself, which another assertion shows.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

impl Program {
    fn start(args: &[&str]) -> Program {
        let mut child = Command::new(assert_cmd::cargo::cargo_bin!("incant"))
            .args([
                "serve",
                "--port",
                "0",
                "--log-format",
                "json",
                "--device",
                "cpu",
            ])
            .args(["--no-prefix-cache", "--model"])
            .arg(model(MODEL))
            .args(args)
            .env_remove("INCANT_LOG")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("incant starts");
        let stderr = BufReader::new(child.stderr.take().expect("it is piped"));
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or_else(|_| json!({"not": line}));
                // After the test nobody listens.
                _ = sender.send(line);
            }
        });
        let mut program = Program {
            child,
            lines,
            address: String::new(),
        };
        program.address = program.wait_for("listening")["address"]
            .as_str()
            .expect("an address")
            .to_owned();
        program.wait_for("serving");
        program
    }

    /// The next line with this message.
    fn wait_for(&self, message: &str) -> Value {
        loop {
            let line = self
                .lines
                .recv_timeout(Duration::from_secs(120))
                .unwrap_or_else(|_| panic!("no line says {message:?}"));
            assert!(line["not"].is_null(), "not JSON: {line}");
            assert!(line["timestamp"].is_string() && line["level"].is_string());
            if line["message"] == message {
                return line;
            }
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).expect("it listens");
        let patience = Some(Duration::from_secs(120));
        stream.set_read_timeout(patience).expect("a timeout");
        stream
    }

    /// Sends a request that is called `id`; everything that comes back.
    fn ask(&self, id: &str, path: &str, body: &Value) -> String {
        let headers = format!("Connection: close\r\nX-Request-Id: {id}\r\n");
        let mut stream = self.connect();
        stream
            .write_all(&post(path, body.to_string().as_bytes(), &headers))
            .expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        answer
    }
}

fn completion(id: &str, more: &Value) -> Value {
    let body = json!({"model": id, "prompt": "One two three", "ignore_eos": true});
    with(body, more)
}

#[test]
fn each_request_has_a_line_with_what_it_cost_and_warnings_carry_its_name() {
    let program = Program::start(&["--request-timeout", "60"]);
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
