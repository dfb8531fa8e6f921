//! Adapters over HTTP: loaded, replaced and unloaded while the server runs.

#[cfg(unix)]
mod files;
mod memory;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use incant::engine::EngineOptions;
use incant::runtime::{LoadOptions, Model, Runtime};
use incant::server::ServeOptions;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::lora::fixtures::Fixture;
use crate::server::support::{CHAT, Reply, Server, eventually};
use crate::support::fixtures::load_options;

/// A served tiny model, and the folder from which adapters are loaded.
struct Served {
    server: Server,
    runtime: Arc<Runtime>,
    folder: TempDir,
    // Held because its file is mapped.
    _fixture: Fixture,
}

impl Served {
    /// Starts a server with copies of the adapters `plain` and `patterns` in the folder.
    fn new() -> Served {
        Served::with(EngineOptions::default())
    }

    fn with(engine: EngineOptions) -> Served {
        let fixture = Fixture::new("llama");
        let options = LoadOptions {
            engine,
            ..load_options()
        };
        let model = Model::load("tiny", fixture.file(), &options).expect("a sound model");
        let runtime = Arc::new(Runtime::new());
        runtime.loaded(vec![Arc::new(model)]);
        let folder = tempfile::tempdir().expect("a folder");
        for adapter in ["plain", "patterns"] {
            copy(&fixture.path(adapter), &folder.path().join(adapter));
        }
        let options = ServeOptions {
            adapter_folder: Some(folder.path().to_owned()),
            ..ServeOptions::default()
        };
        Served {
            server: Server::over(Arc::clone(&runtime), options),
            runtime,
            folder,
            _fixture: fixture,
        }
    }

    fn load(&self, name: &str, path: &str) -> Reply {
        let body = json!({"name": name, "path": path});
        self.server.post("/v1/adapters", &body)
    }

    fn unload(&self, id: &str) -> Reply {
        let request = format!(
            "DELETE /v1/adapters/{id} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        );
        self.server.send(request.as_bytes())
    }

    fn ask(&self, arm: &str) -> Reply {
        let messages = json!([{"role": "user", "content": "hello"}]);
        let body = json!({"model": arm, "messages": messages, "max_tokens": 12, "logprobs": true,
            "temperature": 0, "repetition_penalty": 1});
        self.server.post(CHAT, &body)
    }

    /// Returns the log-probabilities of an arm's answer.
    fn answer(&self, arm: &str) -> Value {
        self.ask(arm).expect(200)["choices"][0]["logprobs"].take()
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a folder");
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(from.join(file), to.join(file)).expect("copied");
    }
}

#[test]
fn an_adapter_is_loaded_replaced_and_unloaded_while_the_server_runs() {
    let served = Served::new();
    let base = served.answer("tiny@urial-1");
    let error = served.ask("tiny@urial-1+mine").error(404);
    assert_eq!(error["code"], "model_not_found");

    let loaded = served.load("mine", "plain").expect(200);
    assert_eq!(loaded["id"], "tiny+mine");
    assert_eq!(loaded["ranks"], json!([4]));
    assert_eq!(loaded["profile"], Value::Null);
    let plain = served.answer("tiny@urial-1+mine");
    assert_ne!(plain, base);
    assert_eq!(served.answer("tiny@urial-1"), base, "the base is as it was");

    let replaced = served.load("mine", "./patterns").expect(200);
    assert_eq!(replaced["ranks"], json!([2, 3, 5]));
    let patterns = served.answer("tiny@urial-1+mine");
    assert!(patterns != plain && patterns != base);

    let listed = served.server.get("/v1/adapters").expect(200);
    assert_eq!(listed["data"], json!([replaced]));
    let models = served.server.get("/v1/models").expect(200);
    let models = models["data"].as_array().expect("a list");
    let find = |id: &str| {
        models
            .iter()
            .find(|model| model["id"] == id)
            .expect("is listed")
    };
    assert_eq!(find("tiny+mine")["parent"], "tiny");
    assert_eq!(find("tiny@urial+mine")["parent"], "tiny@urial");
    assert_eq!(find("tiny@urial+mine")["adapter"], "mine");

    let deleted = served.unload("tiny%2Bmine").expect(200);
    assert_eq!(
        deleted,
        json!({"id": "tiny+mine", "object": "adapter", "deleted": true})
    );
    served.ask("tiny@urial-1+mine").error(404);
    served.unload("tiny+mine").error(404);
    assert_eq!(served.answer("tiny@urial-1"), base);
}

/// A chat with only the adapter is a chat with the profile that its file names.
#[test]
fn an_adapter_brings_its_profile() {
    let served = Served::new();
    let named = |profile: &str| {
        let path = served.folder.path().join("plain/adapter_model.safetensors");
        let bytes = fs::read(&path).expect("a fixture");
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let metadata = [("incant.profile".to_owned(), profile.to_owned())].into();
        let bytes = safetensors::serialize(file.iter(), Some(metadata)).expect("serializes");
        fs::write(&path, bytes).expect("written");
    };
    served.load("bare", "plain").expect(200);
    named("urial-1-ja");
    let loaded = served.load("mine", "plain").expect(200);
    assert_eq!(loaded["profile"], "urial-1-ja");
    let mine = served.answer("tiny+mine");
    assert_eq!(mine, served.answer("tiny@urial-1-ja+bare"));
    assert_ne!(mine, served.answer("tiny+bare"));
    let other = served.answer("tiny@base+mine");
    assert_eq!(
        other,
        served.answer("tiny@base+bare"),
        "a named profile counts"
    );
    named("missing");
    let error = served.load("mine", "plain").error(400);
    let message = error["message"].as_str().expect("a text");
    assert!(message.contains("the profile 'missing'"), "{message}");
    assert_eq!(served.answer("tiny+mine"), mine);
}

#[test]
fn what_cannot_be_loaded_is_refused_and_changes_nothing() {
    let served = Served::new();
    served.load("mine", "plain").expect(200);
    let before = served.answer("tiny+mine");
    let elsewhere = tempfile::tempdir().expect("a folder");
    copy(
        &served.folder.path().join("plain"),
        &elsewhere.path().join("plain"),
    );
    #[cfg(unix)]
    std::os::unix::fs::symlink(elsewhere.path(), served.folder.path().join("link"))
        .expect("a link");
    let outside = elsewhere.path().join("plain");
    let outside = outside.to_str().expect("a plain path");
    let escape = format!("..{outside}");
    for path in [
        outside,
        &escape,
        "../plain",
        "link/plain",
        "plain/../../plain",
    ] {
        let error = served.load("mine", path).error(400);
        assert_eq!(error["param"], "path", "{path}");
        let message = error["message"].as_str().expect("a text");
        assert!(message.contains("lie within it"), "{message}");
    }
    let tensors = served
        .folder
        .path()
        .join("patterns/adapter_model.safetensors");
    fs::write(&tensors, "not tensors").expect("written");
    for (name, path, param) in [
        ("mine", "patterns", "path"),
        ("mine", "missing", "path"),
        ("a b", "plain", "name"),
        ("a+b", "plain", "name"),
        ("", "plain", "name"),
    ] {
        let error = served.load(name, path).error(400);
        assert_eq!(error["param"], param, "{name}, {path}: {error}");
    }
    let unknown = json!({"name": "a", "path": "plain", "model": "other"});
    served.server.post("/v1/adapters", &unknown).error(404);
    served
        .server
        .post("/v1/adapters", &json!({"path": "plain"}))
        .error(400);
    assert_eq!(served.answer("tiny+mine"), before);

    let closed = Server::over(Arc::clone(&served.runtime), ServeOptions::default());
    let error = closed
        .post("/v1/adapters", &json!({"name": "a", "path": "plain"}))
        .error(400);
    let message = error["message"].as_str().expect("a text");
    assert!(message.contains("--adapter-dir"), "{message}");
}

#[test]
fn adapters_come_and_go_under_load() {
    let served = Served::new();
    served.load("stays", "plain").expect(200);
    let arms = ["tiny", "tiny+stays", "tiny@urial-1+stays", "tiny+goes"];
    let stays = served.answer("tiny+stays");
    let done = AtomicBool::new(false);
    let asked = thread::scope(|scope| {
        let clients: Vec<_> = arms
            .iter()
            .map(|arm| {
                let (served, stays, done) = (&served, &stays, &done);
                scope.spawn(move || {
                    let mut asked = 0;
                    while !done.load(Ordering::Relaxed) {
                        let reply = served.ask(arm);
                        match (*arm, reply.status) {
                            // The adapter may have been unloaded, or loaded again.
                            ("tiny+goes", 200 | 404) => {}
                            ("tiny+stays", _) => {
                                let answer = &reply.expect(200)["choices"][0]["logprobs"];
                                assert_eq!(answer, stays);
                            }
                            _ => drop(reply.expect(200)),
                        }
                        asked += 1;
                    }
                    asked
                })
            })
            .collect();
        for cycle in 0..100 {
            let path = ["plain", "patterns"][cycle % 2];
            served.load("goes", path).expect(200);
            if cycle % 3 != 0 {
                served.unload("tiny+goes").expect(200);
            }
        }
        done.store(true, Ordering::Relaxed);
        let asked = clients
            .into_iter()
            .map(|client| client.join().expect("no panic"));
        asked.sum::<usize>()
    });
    assert!(asked > arms.len());
    eventually("the engine is idle", || {
        let load = served.runtime.models()[0].engine().load();
        load.running == 0 && load.waiting == 0
    });
}
