//! The program itself as a server, with the lines that it logs.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::server_support::post;
use crate::support::model;

/// It brings a chat template, so that nothing is computed before it serves.
const MODEL: &str = "smollm2-135m-instruct";

/// `incant serve`, and the lines that it logs.
pub(crate) struct Program {
    child: Child,
    lines: Receiver<Value>,
    /// What it logged until it served.
    pub(crate) early: Vec<Value>,
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
    /// Starts it with a small model on a free port, and waits until it serves.
    pub(crate) fn start(args: &[&str], environment: &[(&str, &str)]) -> Program {
        let mut program = Program::listening(args, environment);
        let loading = program.lines_to("serving");
        program.early.extend(loading);
        program
    }

    /// Starts it so, and waits until it listens, which is before the model is there.
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
                // After the test nobody listens.
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

    /// The next line with this message.
    pub(crate) fn wait_for(&self, message: &str) -> Value {
        self.lines_to(message).pop().expect("the last one")
    }

    /// The next warning that a profile stays as it was.
    pub(crate) fn wait_for_warning(&self, profile: &str) -> String {
        let lines = self.lines_until(&format!("warns of {profile}"), |line| {
            line["level"] == "WARN" && line["profile"] == profile
        });
        let line = &lines[lines.len() - 1]["message"];
        line.as_str().expect("a message").to_owned()
    }

    /// All lines up to the next one with this message.
    pub(crate) fn lines_to(&self, message: &str) -> Vec<Value> {
        self.lines_until(&format!("says {message:?}"), |line| {
            line["message"] == message
        })
    }

    /// All lines up to the next one that is `found`, which `what` describes.
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

    /// The most memory that it has held so far, in bytes.
    #[cfg(target_os = "linux")]
    pub(crate) fn peak_memory(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let size = line.and_then(|line| line.trim().strip_suffix(" kB"));
        let size: u64 = size.and_then(|size| size.parse().ok()).expect("a size");
        size << 10
    }

    /// Tells it to read its files again.
    #[cfg(unix)]
    pub(crate) fn hang_up(&self) {
        self.signal("-HUP");
    }

    /// Sends it a signal.
    #[cfg(unix)]
    pub(crate) fn signal(&self, signal: &str) {
        let kill = Command::new("kill")
            .args([signal, &self.child.id().to_string()])
            .status();
        assert!(kill.expect("there is a kill").success());
    }

    /// Has it write files of so many bytes at the most from now on.
    #[cfg(target_os = "linux")]
    pub(crate) fn limit_files(&self, bytes: u64) {
        let id = self.child.id().try_into().expect("an id");
        let limit = Some((bytes, bytes));
        let limited = rlimit::prlimit(id, rlimit::Resource::FSIZE, limit, None);
        limited.expect("its own child can be limited");
    }

    /// Waits until it has ended by itself; by a signal there is no code.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        self.child.wait().expect("it ends").code()
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).expect("it listens");
        let patience = Some(Duration::from_secs(120));
        stream.set_read_timeout(patience).expect("a timeout");
        stream
    }

    /// Sends a request that is called `id`; everything that comes back.
    pub(crate) fn ask(&self, id: &str, path: &str, body: &Value) -> String {
        let headers = format!("Connection: close\r\nX-Request-Id: {id}\r\n");
        self.exchange(&post(path, body.to_string().as_bytes(), &headers))
    }

    /// Gets a path without a body; everything that comes back.
    pub(crate) fn get(&self, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        self.exchange(request.as_bytes())
    }

    /// Whether its port still takes connections.
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
