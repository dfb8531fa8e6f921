//! The program itself as a server, with its log lines.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::server::support::post;
use crate::support::model;

/// A model with a chat template, so that nothing is computed before it is served.
const MODEL: &str = "smollm2-135m-instruct";

/// `incant serve`, and its log lines.
pub(crate) struct Program {
    child: Child,
    lines: Receiver<Value>,
    /// The lines that it logged before it served.
    pub(crate) early: Vec<Value>,
    address: String,
}

impl Drop for Program {
    fn drop(&mut self) {
        // The program may have exited by itself; another assertion checks that.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

impl Program {
    /// Starts the program with a small model on a free port, and waits until it serves.
    pub(crate) fn start(args: &[&str], environment: &[(&str, &str)]) -> Program {
        let mut program = Program::listening(args, environment);
        let loading = program.lines_to("serving");
        program.early.extend(loading);
        program
    }

    /// Starts the program and waits until it listens, which is before the model is loaded.
    pub(crate) fn listening(args: &[&str], environment: &[(&str, &str)]) -> Program {
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
            .env_remove("INCANT_API_KEY")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("incant starts");
        let stderr = BufReader::new(child.stderr.take().expect("it is piped"));
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or_else(|_| json!({"not": line}));
                // After the test, nothing receives the lines.
                _ = sender.send(line);
            }
        });
        let mut program = Program {
            child,
            lines,
            early: Vec::new(),
            address: String::new(),
        };
        program.early = program.lines_to("listening");
        let listening = program.early.last().expect("a line");
        let address = listening["address"].as_str().expect("an address");
        program.address = address.replace("0.0.0.0", "127.0.0.1");
        program
    }

    /// Returns the next line with this message.
    pub(crate) fn wait_for(&self, message: &str) -> Value {
        self.lines_to(message).pop().expect("the last one")
    }

    /// Returns the next warning that a profile was not reloaded.
    pub(crate) fn wait_for_warning(&self, profile: &str) -> String {
        let lines = self.lines_until(&format!("warns of {profile}"), |line| {
            line["level"] == "WARN" && line["profile"] == profile
        });
        let line = &lines[lines.len() - 1]["message"];
        line.as_str().expect("a message").to_owned()
    }

    /// Returns all lines up to the next one with this message.
    pub(crate) fn lines_to(&self, message: &str) -> Vec<Value> {
        self.lines_until(&format!("says {message:?}"), |line| {
            line["message"] == message
        })
    }

    /// Returns all lines up to the next one that is `found`, which `what` describes.
    pub(crate) fn lines_until(&self, what: &str, found: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut lines = Vec::new();
        loop {
            let line = self
                .lines
                .recv_timeout(Duration::from_secs(120))
                .unwrap_or_else(|_| panic!("no line {what}"));
            assert!(line["not"].is_null(), "not JSON: {line}");
            assert!(line["timestamp"].is_string() && line["level"].is_string());
            let found = found(&line);
            lines.push(line);
            if found {
                return lines;
            }
        }
    }

    /// The peak memory of the process so far, in bytes.
    #[cfg(target_os = "linux")]
    pub(crate) fn peak_memory(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let size = line.and_then(|line| line.trim().strip_suffix(" kB"));
        let size: u64 = size.and_then(|size| size.parse().ok()).expect("a size");
        size << 10
    }

    /// Sends SIGHUP, which makes the program reload its files.
    #[cfg(unix)]
    pub(crate) fn send_sighup(&self) {
        self.signal("-HUP");
    }

    /// Sends a signal.
    #[cfg(unix)]
    pub(crate) fn signal(&self, signal: &str) {
        let kill = Command::new("kill")
            .args([signal, &self.child.id().to_string()])
            .status();
        assert!(kill.expect("there is a kill").success());
    }

    /// Limits the size of files that the process writes from now on, in bytes.
    #[cfg(target_os = "linux")]
    pub(crate) fn limit_files(&self, bytes: u64) {
        let id = self.child.id().try_into().expect("an id");
        let limit = Some((bytes, bytes));
        let limited = rlimit::prlimit(id, rlimit::Resource::FSIZE, limit, None);
        limited.expect("its own child can be limited");
    }

    /// Waits until the program has exited; there is no exit code after a signal.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        self.child.wait().expect("it ends").code()
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).expect("it listens");
        let patience = Some(Duration::from_secs(120));
        stream.set_read_timeout(patience).expect("a timeout");
        stream
    }

    /// Sends a request with the id `id`; returns the raw answer.
    pub(crate) fn ask(&self, id: &str, path: &str, body: &Value) -> String {
        let headers = format!("Connection: close\r\nX-Request-Id: {id}\r\n");
        self.exchange(&post(path, body.to_string().as_bytes(), &headers))
    }

    /// Requests a path without a body; returns the raw answer.
    pub(crate) fn get(&self, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        self.exchange(request.as_bytes())
    }

    /// Whether its port still accepts connections.
    pub(crate) fn listens(&self) -> bool {
        TcpStream::connect(&self.address).is_ok()
    }

    fn exchange(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(request).expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        answer
    }
}
