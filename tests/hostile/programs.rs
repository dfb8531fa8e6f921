//! `incant inspect` and `incant serve` with invalid files: they give an answer, or one line
//! with the reason.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use tempfile::NamedTempFile;

use super::edits::Material;
use super::{Target, fuzz, gguf};
use crate::reference::tiny::Tiny;

/// The number of inputs; each is a file for two programs.
const INPUTS: u64 = 100;

/// The start of the last line that a server prints before it serves.
const SERVES: &str = "try:";

#[test]
fn programs_say_in_a_line_what_is_wrong_with_a_file() {
    let test = "hostile::programs::programs_say_in_a_line_what_is_wrong_with_a_file";
    fuzz(test, INPUTS, Programs::new);
}

struct Programs {
    materials: Vec<Material>,
    file: NamedTempFile,
}

impl Programs {
    fn new() -> Programs {
        let models = [Tiny::llama(), Tiny::gemma3()];
        Programs {
            materials: models.iter().map(gguf::whole).collect(),
            file: NamedTempFile::with_suffix(".gguf").expect("a temporary file"),
        }
    }

    fn incant(&self, command: &str) -> Command {
        let mut incant = Command::new(assert_cmd::cargo::cargo_bin!("incant"));
        incant
            .arg(command)
            .env("INCANT_LOG", "error")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        incant
    }

    fn inspect(&self) -> Result<(), String> {
        let output = self.incant("inspect").arg(self.file.path()).output();
        let output = output.expect("incant starts");
        let said = String::from_utf8(output.stderr).map_err(|_| "not a text")?;
        let said: Vec<&str> = said.lines().collect();
        match output.status.code() {
            Some(0) if said.is_empty() => Ok(()),
            _ => failed(output.status, &said),
        }
    }

    fn serve(&self) -> Result<bool, String> {
        let mut command = self.incant("serve");
        command.args([
            "--port",
            "0",
            "--threads",
            "1",
            "--kv-memory",
            "8MB",
            "--no-prefix-cache",
            "--model",
        ]);
        let mut server = command
            .arg(self.file.path())
            .spawn()
            .expect("incant starts");
        let errors = BufReader::new(server.stderr.take().expect("a pipe"));
        let mut said = Vec::new();
        for line in errors.lines() {
            let line = line.unwrap_or_else(|error| error.to_string());
            if line == SERVES {
                server.kill().expect("it runs");
                server.wait().expect("it ends");
                return Ok(true);
            }
            said.push(line);
        }
        let status = server.wait().expect("it ends");
        // Log lines precede the error.
        let said: Vec<&str> = said.iter().map(String::as_str).collect();
        failed(status, &said[said.len().saturating_sub(1)..]).map(|()| false)
    }
}

/// Checks that a program failed in the expected way.
fn failed(status: std::process::ExitStatus, said: &[&str]) -> Result<(), String> {
    match (status.code(), said) {
        (Some(1), [line]) if line.starts_with("error: ") && !line.contains(char::is_control) => {
            Ok(())
        }
        (code, said) => Err(format!("{code:?}, signal {:?}: {said:#?}", status.signal())),
    }
}

impl Target for Programs {
    fn materials(&self) -> &[Material] {
        &self.materials
    }

    fn take(&self, _: usize, input: &[u8]) -> Result<bool, String> {
        std::fs::write(self.file.path(), input).expect("written");
        self.inspect().map_err(|why| format!("inspect: {why}"))?;
        self.serve().map_err(|why| format!("serve: {why}"))
    }
}
