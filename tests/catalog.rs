//! Models are found and downloaded: complete, verified, resumed, or not at all.

mod downloads;
mod kept;
mod located;

use std::cell::RefCell;
use std::fs;
use std::net::TcpListener;

use incant::catalog::{Cache, Hub, Manifest, Progress};
use sha2::{Digest, Sha256};

/// The contents of an empty folder.
const NOTHING: [&str; 0] = [];

/// File contents of some size, in which all kilobytes differ.
pub(crate) fn file_bytes() -> Vec<u8> {
    (0..300_000_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

pub(crate) fn checksum(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The text of a manifest for `bytes`, which the hub serves as `tiny.gguf`.
pub(crate) fn manifest_text(bytes: &[u8]) -> String {
    format!(
        r#"
name = "tiny"
title = "Tiny"
architecture = "llama"
parameters = 1000
quantization = "Q4_0"
context = 128
size = {size}

[licence]
id = "MIT"
url = "https://opensource.org/license/mit"
terms = "Do as you like."

[[source]]
kind = "huggingface"
repo = "someone/tiny-gguf"
revision = "v1"
file = "tiny.gguf"
sha256 = "{sha256}"
"#,
        size = bytes.len(),
        sha256 = checksum(bytes),
    )
}

fn manifest(bytes: &[u8]) -> Manifest {
    Manifest::parse(&manifest_text(bytes)).expect("the test's manifest is good")
}

struct Place {
    dir: tempfile::TempDir,
    cache: Cache,
}

/// Creates an empty cache that uses `hub`.
fn place(hub: Option<Hub>) -> Place {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let cache = Cache {
        dir: dir.path().join("models"),
        hub,
    };
    Place { dir, cache }
}

impl Place {
    /// Creates the cache with the remains of an earlier, partial download of `whole`.
    fn begin(&self, whole: &[u8], part: &[u8]) {
        let name = format!("tiny.gguf.{}.part", &checksum(whole)[..8]);
        fs::create_dir(&self.cache.dir).expect("the cache is new");
        fs::write(self.cache.dir.join(name), part).expect("it is writable");
    }

    /// The names of the files in the cache, except its hash records.
    fn files(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(&self.cache.dir)
            .expect("the cache is there")
            .map(|entry| {
                entry
                    .expect("it is readable")
                    .file_name()
                    .display()
                    .to_string()
            })
            .filter(|name| name != ".checksums")
            .collect();
        names.sort();
        names
    }
}

/// Records the progress messages.
#[derive(Default)]
struct Notes(RefCell<Vec<String>>);

impl Progress for Notes {
    fn note(&self, line: &str) {
        self.0.borrow_mut().push(line.to_owned());
    }
    fn begin(&self, _name: &str, _total: u64) {}
    fn position(&self, _bytes: u64) {}
    fn end(&self) {}
}

fn failure(place: &Place, manifest: &Manifest) -> String {
    let outcome = place.cache.fetch(manifest, &Notes::default());
    outcome.expect_err("it cannot be fetched").to_string()
}

/// A hub at a port on which nothing listens.
fn nobody() -> Hub {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    Hub {
        endpoint: format!("http://{address}"),
        token: None,
    }
}
