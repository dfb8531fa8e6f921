//! Profiles that change while they are served.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use incant::profile::Library;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::server::program::Program;
use crate::server::support::{CHAT, Reply, in_company, post};

/// The file of a profile that writes `mark` before every question, and starts every answer such
/// that a model has to continue it.
fn profile(name: &str, mark: &str) -> String {
    format!(
        "+++\nname = \"{name}\"\ntitle = \"{mark}\"\ndescription = \"For tests\"\n\
         language = \"en\"\nshots = 0\nversion = 1\nmarkers = [\"# Query:\"]\n\
         [sampling]\ntemperature = 0.0\n+++\n\
         {{% block prefix %}}\nWhat follows is about {mark}.\n\n{{% endblock %}}\n\
         {{% block turns %}}\n{{% for message in messages %}}\n\
         # Query:\n{{{{ message.content }}}}\n{{% endfor %}}\n# Answer:\n{mark}, {mark}, {mark}, {mark},{{% endblock %}}\n"
    )
}

/// Replaces a file atomically, as editors and deployments do.
fn put(folder: &TempDir, name: &str, text: &str) {
    let new = folder.path().join("new");
    fs::write(&new, text).expect("it can be written");
    fs::rename(&new, folder.path().join(format!("{name}.jinja"))).expect("it can be renamed");
}

fn names(library: &Library) -> Vec<String> {
    let own = |name: &String| name.starts_with("own");
    library.profiles().into_keys().filter(own).collect()
}

/// Polls until the files are stable; returns whether anything has changed.
fn followed(library: &mut Library) -> bool {
    let looks = [library.follow(), library.follow()];
    looks
        .into_iter()
        .any(|look| look.expect("the folder is there"))
}

#[test]
fn a_library_follows_its_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    put(&folder, "own", &profile("own", "birds"));
    let mut library = Library::open(Some(folder.path())).expect("a sound folder");
    assert!(!followed(&mut library));
    let before = library.profiles();

    put(&folder, "own-too", &profile("own-too", "trees"));
    assert!(followed(&mut library));
    assert_eq!(names(&library), ["own", "own-too"]);
    let same = |name: &str| Arc::ptr_eq(&before[name], &library.profiles()[name]);
    assert!(
        same("own") && same("urial"),
        "what did not change is not read again"
    );

    put(&folder, "own", &profile("own", "fishes"));
    assert!(followed(&mut library));
    assert_eq!(library.profiles()["own"].title(), "fishes");
    fs::remove_file(folder.path().join("own.jinja")).expect("it is there");
    assert!(followed(&mut library));
    assert_eq!(names(&library), ["own-too"]);
}

/// Two variants in one language are ambiguous, until one of them is removed.
#[test]
fn two_variants_in_one_language_are_both_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let variant = |name: &str, mark: &str| {
        let japanese = "language = \"ja\"\nvariant_of = \"own\"";
        profile(name, mark).replace("language = \"en\"", japanese)
    };
    put(&folder, "own", &profile("own", "birds"));
    put(&folder, "own-b", &variant("own-b", "trees"));
    let mut library = Library::open(Some(folder.path())).expect("a sound folder");
    put(&folder, "own-a", &variant("own-a", "stones"));
    assert!(followed(&mut library));
    assert_eq!(names(&library), ["own"]);
    let broken: Vec<String> = library.broken().map(|(name, _)| name).collect();
    assert_eq!(broken, ["own-a", "own-b"]);
    fs::remove_file(folder.path().join("own-a.jinja")).expect("it is there");
    assert!(followed(&mut library));
    assert_eq!(library.broken().count(), 0);
    assert_eq!(names(&library), ["own", "own-b"]);
    // The original profile is broken, not removed.
    put(&folder, "own", "no front matter");
    assert!(followed(&mut library));
    let broken: Vec<String> = library.broken().map(|(name, _)| name).collect();
    assert_eq!(broken, ["own"]);
    fs::remove_file(folder.path().join("own.jinja")).expect("it is there");
    assert!(followed(&mut library));
    let broken: Vec<String> = library
        .broken()
        .map(|(_, error)| error.to_string())
        .collect();
    assert!(
        broken.len() == 1 && broken[0].contains("there is no profile \"own\""),
        "{broken:?}"
    );
}

#[test]
fn a_file_that_is_still_being_written_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut library = Library::open(Some(folder.path())).expect("a sound folder");
    let path = folder.path().join("own.jinja");
    let text = profile("own", "birds");
    for end in [40, 80, 120] {
        fs::write(&path, &text[..end]).expect("it can be written");
        assert!(!library.follow().expect("the folder is there"));
    }
    assert_eq!(library.broken().count(), 0);
    fs::write(&path, &text).expect("it can be written");
    assert!(followed(&mut library));
    assert_eq!(names(&library), ["own"]);
}

#[test]
fn a_folder_that_cannot_be_read_takes_nothing_away() {
    let parent = tempfile::tempdir().expect("a folder");
    let folder = parent.path().join("profiles");
    fs::create_dir(&folder).expect("it can be made");
    fs::write(folder.join("own.jinja"), profile("own", "birds")).expect("it can be written");
    let mut library = Library::open(Some(&folder)).expect("a sound folder");
    let elsewhere = parent.path().join("elsewhere");
    fs::rename(&folder, &elsewhere).expect("it can be renamed");
    for _ in 0..3 {
        let error = library.follow().expect_err("it is gone").to_string();
        assert!(error.contains("cannot read"), "{error}");
    }
    assert_eq!(names(&library), ["own"]);
    fs::rename(&elsewhere, &folder).expect("it can be renamed");
    assert!(!followed(&mut library));
    assert_eq!(names(&library), ["own"]);
}

/// A server with a folder of profiles.
struct Served {
    folder: TempDir,
    program: Program,
}

impl Served {
    /// `files` are names and marks of profiles.
    fn start(files: &[(&str, &str)]) -> Served {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, mark) in files {
            put(&folder, name, &profile(name, mark));
        }
        let path = folder.path().to_str().expect("a path of plain letters");
        let program = Program::start(&["--profile-dir", path], &[]);
        Served { folder, program }
    }

    fn get(&self, path: &str) -> Value {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        send(self.address(), request.as_bytes()).expect(200)
    }

    fn post(&self, path: &str, body: &Value) -> Reply {
        ask(self.address(), path, body)
    }

    fn address(&self) -> SocketAddr {
        let stream = self.program.connect();
        stream.peer_addr().expect("it is connected")
    }

    fn arm(&self, profile: &str) -> String {
        let models = self.get("/v1/models");
        let model = models["data"][0]["root"].as_str().expect("a model");
        format!("{model}@{profile}")
    }

    fn arms(&self) -> Vec<String> {
        let models = self.get("/v1/models");
        let arms = models["data"].as_array().expect("arms");
        let id = |arm: &Value| arm["id"].as_str().expect("an id").to_owned();
        arms.iter().map(id).collect()
    }

    fn profile(&self, id: &str) -> Value {
        let profiles = self.get("/v1/profiles");
        let found = |profile: &&Value| profile["id"] == id;
        let profile = profiles["data"]
            .as_array()
            .expect("a list")
            .iter()
            .find(found);
        profile
            .unwrap_or_else(|| panic!("no {id}: {profiles}"))
            .clone()
    }

    /// Returns the rendered prompt of a chat with an arm.
    fn prompt(&self, arm: &str) -> Value {
        let body = json!({"model": arm, "messages": [{"role": "user", "content": "Hi"}]});
        self.post("/apply-template", &body).expect(200)["prompt"].clone()
    }
}

fn ask(server: SocketAddr, path: &str, body: &Value) -> Reply {
    let body = body.to_string();
    send(
        server,
        &post(path, body.as_bytes(), "Connection: close\r\n"),
    )
}

fn send(server: SocketAddr, request: &[u8]) -> Reply {
    let mut stream = TcpStream::connect(server).expect("it listens");
    let patience = Some(Duration::from_secs(120));
    stream.set_read_timeout(patience).expect("a timeout");
    stream.write_all(request).expect("it reads");
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("it answers");
    Reply::parse(&bytes)
}

fn chat(arm: &str, tokens: usize) -> Value {
    json!({
        "model": arm, "messages": [{"role": "user", "content": "Tell me of them."}],
        "max_tokens": tokens, "ignore_eos": true, "seed": 1, "stream": true
    })
}

/// Returns the text of a stream, which must be complete.
fn said(reply: &Reply) -> String {
    let events = reply.events();
    let last = &events[events.len() - 1]["choices"][0]["finish_reason"];
    assert!(last == "length" || last == "stop", "{last}");
    let texts = events
        .iter()
        .map(|event| &event["choices"][0]["delta"]["content"]);
    texts.filter_map(Value::as_str).collect()
}

#[test]
fn profiles_change_while_answers_go_on() {
    let _company = in_company();
    let served = Served::start(&[("own", "birds"), ("own-gone", "stones")]);
    let arm = served.arm("own");
    let before = said(&served.post(CHAT, &chat(&arm, 24)));

    // Several clients ask continuously, and one answer is in progress.
    let mut under_way = served.program.connect();
    let long = chat(&arm, 200).to_string();
    under_way
        .write_all(&post(CHAT, long.as_bytes(), "Connection: close\r\n"))
        .expect("it reads");
    let mut first = [0; 256];
    let read = under_way.read(&mut first).expect("it answers");
    let stop = AtomicBool::new(false);
    let (address, body) = (served.address(), chat(&arm, 24));
    let (answers, long) = thread::scope(|scope| {
        let clients: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut answers = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        answers.push(said(&ask(address, CHAT, &body)));
                    }
                    answers
                })
            })
            .collect();
        put(&served.folder, "own", &profile("own", "fishes"));
        put(&served.folder, "own-new", &profile("own-new", "trees"));
        fs::remove_file(served.folder.path().join("own-gone.jinja")).expect("it is there");
        served.program.wait_for("a profile was changed");
        served.program.wait_for("a profile was removed");
        thread::sleep(Duration::from_millis(200));
        stop.store(true, Ordering::Relaxed);
        let answers: Vec<String> = clients
            .into_iter()
            .flat_map(|client| client.join().expect("no request fails"))
            .collect();
        let mut bytes = first[..read].to_vec();
        under_way.read_to_end(&mut bytes).expect("it goes on");
        (answers, said(&Reply::parse(&bytes)))
    });

    let after = said(&served.post(CHAT, &chat(&arm, 24)));
    assert_ne!(before, after, "the answers are those of the new text");
    assert!(!answers.is_empty() && answers.iter().all(|it| *it == before || *it == after));
    assert!(
        long.starts_with(&before),
        "what has begun keeps its version: {long}"
    );
    let prompt = served.prompt(&arm);
    assert!(
        prompt
            .as_str()
            .expect("a text")
            .starts_with("What follows is about fishes.")
    );
    assert_eq!(served.profile("own")["title"], "fishes");
    assert_eq!(served.profile("own")["state"], "current");

    let arms = served.arms();
    let gone = arm.replace("own", "own-gone");
    assert!(arms.contains(&arm.replace("own", "own-new")) && !arms.contains(&gone));
    let error = served.post(CHAT, &chat(&gone, 1)).error(404);
    assert_eq!(error["code"], "model_not_found");
}

#[test]
fn a_broken_profile_stays_as_it_was_and_says_why() {
    let _company = in_company();
    let served = Served::start(&[("own", "birds")]);
    let arm = served.arm("own");
    let prompt = served.prompt(&arm);
    let broken = profile("own", "fishes").replace("{% endfor %}", "");
    put(&served.folder, "own", &broken);
    put(&served.folder, "own-new", "no front matter");
    let warning = served.program.wait_for_warning("own");
    assert!(
        warning.contains("own.jinja:") && warning.contains("syntax error"),
        "{warning}"
    );
    served.program.wait_for_warning("own-new");

    assert_eq!(served.prompt(&arm), prompt);
    let shown = served.profile("own");
    assert_eq!(
        (&shown["title"], &shown["state"]),
        (&json!("birds"), &json!("outdated"))
    );
    assert!(
        warning.ends_with(shown["error"].as_str().expect("a text")),
        "{shown}"
    );
    let new = served.get("/v1/profiles")["broken"].clone();
    assert_eq!(
        (new.as_array().map(Vec::len), &new[0]["id"]),
        (Some(1), &json!("own-new"))
    );
    assert!(
        new[0]["error"]
            .as_str()
            .expect("a text")
            .contains("front matter")
    );
    assert!(!served.arms().iter().any(|arm| arm.ends_with("@own-new")));

    put(&served.folder, "own", &profile("own", "fishes"));
    served.program.wait_for("a profile was changed");
    let shown = served.profile("own");
    assert_eq!(
        (&shown["title"], &shown["state"]),
        (&json!("fishes"), &json!("current"))
    );
    assert!(shown["error"].is_null());
}

/// A built-in profile reappears when the file that overrides it is removed; a profile that a
/// model chats with cannot be removed.
#[test]
fn a_removed_profile_leaves_what_it_stood_before_or_was_needed_for() {
    let _company = in_company();
    let served = Served::start(&[("urial", "birds"), ("urial-1", "stones")]);
    let remove = |name: &str| {
        fs::remove_file(served.folder.path().join(format!("{name}.jinja"))).expect("it is there");
    };
    assert_eq!(served.profile("urial")["title"], "birds");
    remove("urial");
    served.program.wait_for("a profile was changed");
    assert_eq!(served.profile("urial")["title"], "In-context assistant");
    assert_eq!(served.profile("urial-1")["title"], "stones");
}

#[test]
fn a_default_profile_outlives_its_file() {
    let _company = in_company();
    let folder = tempfile::tempdir().expect("a folder");
    put(&folder, "own", &profile("own", "birds"));
    let path = folder.path().to_str().expect("a path of plain letters");
    let arguments = ["--profile-dir", path, "--default-profile", "own"];
    let program = Program::start(&arguments, &[]);
    let served = Served { folder, program };
    fs::remove_file(served.folder.path().join("own.jinja")).expect("it is there");
    let warning = served.program.wait_for_warning("own");
    assert!(
        warning.contains("its file is gone, but it is the default of smollm2-135m-instruct"),
        "{warning}"
    );
    assert_eq!(served.profile("own")["state"], "outdated");
    served.prompt(&served.arm("turn"));
}

#[cfg(unix)]
#[test]
fn a_hangup_reads_everything_at_once() {
    let _company = in_company();
    let served = Served::start(&[("own", "birds")]);
    let path = served.folder.path().join("own.jinja");
    let modified = |path: &Path| fs::metadata(path).and_then(|it| it.modified());
    let before = modified(&path).expect("a time");
    // Same length and modification time, so that only reading the file shows the change.
    fs::write(&path, profile("own", "trees")).expect("it can be written");
    let file = fs::File::options()
        .append(true)
        .open(&path)
        .expect("it is there");
    file.set_modified(before).expect("it can be set");
    served.program.send_sighup();
    let line = served.program.wait_for("profiles were read again");
    assert_eq!(line["changed"], true);
    served.program.wait_for("a profile was changed");
    assert_eq!(served.profile("own")["title"], "trees");
}

/// As soon as others can find the server, SIGHUP does not end it.
#[cfg(unix)]
#[test]
fn a_hangup_while_models_load_is_heard() {
    let _company = in_company();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_str().expect("a path of plain letters");
    let program = Program::listening(&["--profile-dir", path], &[]);
    program.send_sighup();
    program.wait_for("profiles were read again");
}
