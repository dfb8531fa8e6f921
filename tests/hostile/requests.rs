//! Requests to every endpoint, changed in head, framing and body.
//!
//! The timeouts of the server are short, so that an incomplete request is answered or dropped
//! quickly.

mod answers;
mod material;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use incant::engine::EngineOptions;
use incant::profile::Profile;
use incant::runtime::{LoadOptions, Model, Runtime};
use incant::server::ServeOptions;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::edits::Material;
use super::{Target, fuzz};
use crate::build::{Builder, Item};
use crate::reference::tiny::Tiny;
use crate::server::support::Server;
use crate::support::fixtures::{load_options, short_profile};
use crate::support::wait_until;

const INPUTS: u64 = 10_000;

/// The number of connections at once. Most of them wait for a server that waits for them.
const CLIENTS: usize = 12;

/// The server's timeout for the head of a request, and for its body.
const SERVER_PATIENCE: Duration = Duration::from_millis(300);

/// No answer takes this long.
const PATIENCE: Duration = Duration::from_secs(15);

/// The longest context, and the number of slots.
const CONTEXT: usize = 160;
const SLOTS: usize = 4;

#[test]
fn requests_do_no_harm() {
    fuzz(
        "hostile::requests::requests_do_no_harm",
        INPUTS,
        Requests::new,
    );
}

struct Requests {
    materials: Vec<Material>,
    runtime: Arc<Runtime>,
    server: Server,
    /// The answer to the ordinary request before any other.
    before: Value,
    /// The folder of adapters, none of them valid.
    _adapters: TempDir,
}

impl Requests {
    fn new() -> Requests {
        let runtime = runtime();
        let adapters = adapters();
        let server = Server::over(
            Arc::clone(&runtime),
            ServeOptions {
                client_timeout: SERVER_PATIENCE,
                max_body: 1 << 20,
                adapter_folder: Some(adapters.path().to_owned()),
                ..ServeOptions::default()
            },
        );
        let before = server.complete(ordinary());
        Requests {
            materials: material::materials(),
            runtime,
            server,
            before,
            _adapters: adapters,
        }
    }

    fn idle(&self) -> bool {
        let load = self.runtime.models()[0].engine().load();
        load.running == 0 && load.waiting == 0
    }
}

/// Creates paths that are not adapters: a pipe, a device, links to other places.
fn adapters() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let made = std::process::Command::new("mkfifo")
        .arg(path("pipe"))
        .status();
    assert!(made.expect("there is such a program").success());
    std::fs::create_dir(path("peft")).expect("a folder");
    for (link, to) in [
        ("zero", "/dev/zero"),
        ("up", ".."),
        ("peft/adapter_config.json", "../pipe"),
    ] {
        std::os::unix::fs::symlink(to, path(link)).expect("a link");
    }
    folder
}

/// A tiny model with a chat template, little memory and a short context.
fn runtime() -> Arc<Runtime> {
    let model = Tiny {
        layers: 1,
        ..Tiny::llama()
    };
    let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
    let file = Builder::new().with("tokenizer.chat_template", Item::Str(template));
    let file = crate::reference::tiny::written(&model.continued(file, &model.tensors()));
    let profile = short_profile(r##"markers = ["# Query:", "# Answer:"]"##);
    let profile = Profile::parse("short.jinja", &profile).expect("a sound profile");
    let options = LoadOptions {
        // Enough for some sequences of maximum length.
        kv_memory: Some(6 * CONTEXT * 2 * 2 * 16 * 2),
        engine: EngineOptions {
            slots: SLOTS,
            queue: 8,
            ..EngineOptions::default()
        },
        context: Some(CONTEXT),
        profiles: BTreeMap::from([("short".to_owned(), Arc::new(profile))]),
        default_profile: Some("short".to_owned()),
        ..load_options()
    };
    let model = Model::load("tiny", file.path(), &options).expect("a sound model");
    let runtime = Runtime::new();
    runtime.loaded(vec![Arc::new(model)]);
    Arc::new(runtime)
}

/// A request that always has the same answer.
fn ordinary() -> Value {
    json!({"model": "tiny", "prompt": "Hello", "max_tokens": 12, "temperature": 0})
}

impl Target for Requests {
    fn materials(&self) -> &[Material] {
        &self.materials
    }

    fn threads(&self) -> usize {
        CLIENTS
    }

    fn take(&self, _: usize, input: &[u8]) -> Result<bool, String> {
        let mut stream = self.server.connect();
        let patience = Some(PATIENCE);
        stream
            .set_read_timeout(patience)
            .and_then(|()| stream.set_write_timeout(patience))
            .expect("timeouts");
        // A server may close the connection before everything is sent, once it has refused the
        // request.
        if let Err(error) = stream.write_all(&material::framed(input)) {
            match error.kind() {
                ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => {}
                _ => return Err(format!("it does not read: {error}")),
            }
        }
        let mut bytes = Vec::new();
        match stream.read_to_end(&mut bytes) {
            Ok(_) => {}
            // If the server closes with unread data, the system resets the connection.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(false),
            Err(error) => return Err(format!("no end: {error}: {}", bytes.escape_ascii())),
        }
        answers::check(&bytes).map_err(|why| format!("{why} in {}", bytes.escape_ascii()))
    }

    fn end(&self) {
        wait_until("the engine is idle", || self.idle());
        let after = self.server.complete(ordinary());
        assert_eq!(
            after["choices"], self.before["choices"],
            "answers as before"
        );
        // All slots and all memory are still available: as many sequences as there are slots,
        // each of the maximum length after a prompt of seven tokens.
        let whole = json!({"max_tokens": CONTEXT - 8, "ignore_eos": true, "n": SLOTS});
        let answer = self
            .server
            .complete(crate::server::support::with(ordinary(), &whole));
        let tokens = answer["usage"]["completion_tokens"]
            .as_u64()
            .expect("a count");
        assert!(tokens as usize > SLOTS * (CONTEXT - 16), "{answer}");
        wait_until("the engine is idle", || self.idle());
    }
}
