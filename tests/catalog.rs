//! Models are found and downloaded: complete, verified, resumed, or not at all.

mod located;

use std::cell::RefCell;
use std::fs;
use std::net::TcpListener;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use incant::catalog::{Cache, Hub, Manifest, Progress, State};
use sha2::{Digest, Sha256};

use crate::support::hub::{FakeHub, Reply};

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

#[test]
fn a_file_is_fetched_once_and_then_needs_no_network() {
    let bytes = file_bytes();
    let server = FakeHub::new(&bytes, &[]);
    let mut place = place(Some(server.hub()));
    let manifest = manifest(&bytes);
    assert_eq!(
        place.cache.state(&manifest).expect("it can look"),
        State::Absent
    );

    let path = place
        .cache
        .fetch(&manifest, &Notes::default())
        .expect("it is fetched");
    assert_eq!(path, place.cache.dir.join("tiny.gguf"));
    assert_eq!(fs::read(&path).expect("it is there"), bytes);
    assert_eq!(place.files(), ["tiny.gguf"], "nothing else is left");
    assert_eq!(
        place.cache.state(&manifest).expect("it can look"),
        State::Present
    );
    assert_eq!(
        server.requests()[0].path,
        "/someone/tiny-gguf/resolve/v1/tiny.gguf"
    );

    place.cache.hub = None;
    let again = place
        .cache
        .fetch(&manifest, &Notes::default())
        .expect("it is here");
    assert_eq!(again, path);
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_lost_connection_goes_on_where_it_was() {
    let bytes = file_bytes();
    let server = FakeHub::new(&bytes, &[Reply::Cut(100_000), Reply::Cut(50_000)]);
    let place = place(Some(server.hub()));
    let notes = Notes::default();
    let path = place
        .cache
        .fetch(&manifest(&bytes), &notes)
        .expect("it is fetched");
    assert_eq!(fs::read(path).expect("it is there"), bytes);
    let ranges = [
        None,
        Some("bytes=100000-".to_owned()),
        Some("bytes=150000-".to_owned()),
    ];
    assert_eq!(server.ranges(), ranges);
    assert!(
        notes.0.borrow()[0].contains("resuming at byte 100000"),
        "{:?}",
        notes.0
    );
}

#[test]
fn a_later_try_goes_on_where_an_earlier_one_ended() {
    let bytes = file_bytes();
    let server = FakeHub::new(
        &bytes,
        &[Reply::Cut(1000), Reply::Status("503 Service Unavailable")],
    );
    let place = place(Some(server.hub()));
    let manifest = manifest(&bytes);
    let error = failure(&place, &manifest);
    assert!(error.contains("503 Service Unavailable"), "{error}");
    assert!(error.contains("1000 bytes are kept"), "{error}");
    assert_eq!(
        place.cache.state(&manifest).expect("it can look"),
        State::Partial { bytes: 1000 }
    );

    let path = place
        .cache
        .fetch(&manifest, &Notes::default())
        .expect("it is fetched");
    assert_eq!(fs::read(path).expect("it is there"), bytes);
    assert_eq!(
        server.ranges().last(),
        Some(&Some("bytes=1000-".to_owned()))
    );
    assert_eq!(place.files(), ["tiny.gguf"]);
}

#[test]
fn a_server_without_ranges_is_asked_for_the_whole_file() {
    let bytes = file_bytes();
    let server = FakeHub::new(&bytes, &[Reply::Cut(1000), Reply::Whole]);
    let place = place(Some(server.hub()));
    let notes = Notes::default();
    let path = place
        .cache
        .fetch(&manifest(&bytes), &notes)
        .expect("it is fetched");
    assert_eq!(fs::read(path).expect("it is there"), bytes);
    assert!(
        notes
            .0
            .borrow()
            .iter()
            .any(|line| line.contains("starting again"))
    );
}

#[test]
fn a_server_that_always_hangs_up_is_given_up() {
    let bytes = file_bytes();
    let server = FakeHub::new(&bytes, &[const { Reply::Cut(10) }; 100]);
    let place = place(Some(server.hub()));
    let error = failure(&place, &manifest(&bytes));
    assert!(error.contains("60 bytes are kept"), "{error}");
    assert_eq!(server.requests().len(), 6);
}

#[test]
fn wrong_data_is_deleted_and_said_so() {
    let bytes = file_bytes();
    let mut wrong = bytes.clone();
    wrong[200_000] ^= 1;
    let server = FakeHub::new(&wrong, &[]);
    let place = place(Some(server.hub()));
    let error = failure(&place, &manifest(&bytes));
    assert!(error.contains(&checksum(&wrong)), "{error}");
    assert!(error.contains(&checksum(&bytes)), "{error}");
    assert!(error.contains("deleted"), "{error}");
    assert_eq!(place.files(), NOTHING);
    assert_eq!(
        server.requests().len(),
        1,
        "the same bytes would come again"
    );
}

#[test]
fn damaged_data_of_an_earlier_try_costs_a_new_start() {
    let bytes = file_bytes();
    let server = FakeHub::new(&bytes, &[]);
    let place = place(Some(server.hub()));
    place.begin(&bytes, &[7; 1000]);
    let notes = Notes::default();
    let path = place
        .cache
        .fetch(&manifest(&bytes), &notes)
        .expect("it is fetched");
    assert_eq!(fs::read(path).expect("it is there"), bytes);
    assert_eq!(server.ranges(), [Some("bytes=1000-".to_owned()), None]);
    assert!(
        notes.0.borrow()[0].contains("starting again"),
        "{:?}",
        notes.0
    );
}

#[test]
fn a_finished_part_needs_only_its_name() {
    let bytes = file_bytes();
    let place = place(None);
    place.begin(&bytes, &bytes);
    // Even without a hub, because nothing needs to be downloaded.
    let closed = Cache {
        hub: Some(nobody()),
        ..place.cache.clone()
    };
    let path = closed
        .fetch(&manifest(&bytes), &Notes::default())
        .expect("it is here");
    assert_eq!(fs::read(path).expect("it is there"), bytes);
}

#[test]
fn answers_that_cannot_be_used_are_refused_before_anything_is_lost() {
    let bytes = file_bytes();
    let other = &bytes[..bytes.len() - 1];
    let wrong = |count| vec![Reply::WrongRange; count];
    for (served, replies, requests, complaint) in [
        (
            &bytes[..],
            wrong(3),
            2,
            "asked for byte 0, it sends bytes 1 to 299999 of 300000",
        ),
        (
            &bytes[..],
            vec![Reply::Unranged; 3],
            2,
            "it sends a part of the file without saying which",
        ),
        (
            &bytes[..],
            vec![Reply::Status("416 Range Not Satisfiable"); 3],
            2,
            "no such byte (416)",
        ),
        (
            &bytes[..],
            vec![Reply::WrongRange, Reply::Status("503 Service Unavailable")],
            2,
            "503 Service Unavailable",
        ),
        (other, vec![], 1, "has 299999 bytes there, not 300000"),
        (
            other,
            vec![Reply::Whole],
            1,
            "has 299999 bytes there, not 300000",
        ),
        (
            &bytes[..],
            vec![Reply::Status("404 Not Found")],
            1,
            "404 Not Found",
        ),
        (
            &bytes[..],
            vec![Reply::Status("401 Unauthorized")],
            1,
            "HF_TOKEN",
        ),
    ] {
        let server = FakeHub::new(served, &replies);
        let place = place(Some(server.hub()));
        place.begin(&bytes, &bytes[..1000]);
        let error = failure(&place, &manifest(&bytes));
        assert!(error.contains(complaint), "{error}");
        assert!(error.contains("1000 bytes are kept"), "{error}");
        assert_eq!(server.requests().len(), requests, "{error}");
    }
}

#[test]
fn an_answer_for_another_range_costs_one_new_start() {
    let bytes = file_bytes();
    for reply in [
        Reply::WrongRange,
        Reply::Unranged,
        Reply::Status("416 Range Not Satisfiable"),
    ] {
        let server = FakeHub::new(&bytes, std::slice::from_ref(&reply));
        let place = place(Some(server.hub()));
        place.begin(&bytes, &bytes[..1000]);
        let notes = Notes::default();
        let path = place
            .cache
            .fetch(&manifest(&bytes), &notes)
            .unwrap_or_else(|error| panic!("{reply:?}: {error}"));
        assert_eq!(fs::read(path).expect("it is there"), bytes);
        assert_eq!(server.ranges(), [Some("bytes=1000-".to_owned()), None]);
        let notes = notes.0.borrow();
        assert!(notes[0].contains("asking for the whole file"), "{notes:?}");
        assert_eq!(place.files(), ["tiny.gguf"]);
    }
}

#[test]
fn a_server_that_sends_pieces_is_asked_for_the_next_one() {
    let bytes = file_bytes();
    let server = FakeHub::new(&bytes, &[const { Reply::Piece(25_000) }; 20]);
    let place = place(Some(server.hub()));
    let path = place
        .cache
        .fetch(&manifest(&bytes), &Notes::default())
        .expect("it is fetched");
    assert_eq!(fs::read(path).expect("it is there"), bytes);
    assert_eq!(server.requests().len(), 12);
}

#[test]
fn a_source_that_fails_says_which_is_next() {
    let bytes = file_bytes();
    let server = FakeHub::new(&bytes, &[Reply::Status("404 Not Found")]);
    let place = place(Some(server.hub()));
    let first = manifest_text(&bytes);
    let (_, source) = first.split_once("[[source]]").expect("it has one");
    let second = source.replace("someone/tiny-gguf", "another/tiny-gguf");
    let manifest = Manifest::parse(&format!("{first}\n[[source]]{second}")).expect("it is good");
    let notes = Notes::default();
    place
        .cache
        .fetch(&manifest, &notes)
        .expect("the second source has it");
    let notes = notes.0.borrow();
    assert!(
        notes[0].contains("404 Not Found; next is Hugging Face (another/tiny-gguf)"),
        "{notes:?}"
    );
}

#[test]
fn a_file_that_is_here_is_believed_by_its_checksum() {
    let bytes = file_bytes();
    let server = FakeHub::new(&bytes, &[]);
    let place = place(Some(server.hub()));
    fs::create_dir(&place.cache.dir).expect("the cache is new");
    let path = place.cache.path("tiny");
    let put = |bytes: &[u8]| {
        fs::write(&path, bytes).expect("it is writable");
        settle();
    };
    let fetch = || {
        let notes = Notes::default();
        let fetched = place.cache.fetch(&manifest(&bytes), &notes);
        assert_eq!(
            fs::read(fetched.expect("it is fetched")).expect("it is there"),
            bytes
        );
        notes.0.into_inner()
    };
    // The right file, put there by hand: it is hashed once.
    put(&bytes);
    assert_eq!(fetch(), ["checking the file of tiny, which is here"]);
    assert_eq!(fetch(), Vec::<String>::new());
    assert!(server.requests().is_empty());
    // Another file of the same size.
    let mut other = bytes.clone();
    other[7] ^= 1;
    put(&other);
    let manifest = manifest(&bytes);
    let holds = || place.cache.holds(&manifest, &Notes::default());
    assert!(!holds().expect("it can be read"));
    let notes = fetch();
    assert!(notes[0].contains("is not the file"), "{notes:?}");
    assert_eq!(server.requests().len(), 1);
    assert!(holds().expect("it can be read"));
}

/// Waits until any further change of a file alters its timestamps.
fn settle() {
    thread::sleep(Duration::from_millis(3100));
}

#[test]
fn a_body_of_unknown_length_is_held_to_the_manifest() {
    let bytes = file_bytes();
    let server = FakeHub::new(&bytes, &[Reply::Unmeasured]);
    let whole = place(Some(server.hub()));
    let path = whole.cache.fetch(&manifest(&bytes), &Notes::default());
    assert_eq!(
        fs::read(path.expect("it is fetched")).expect("it is there"),
        bytes
    );

    // More than was announced: no more than that is written.
    let mut longer = bytes.clone();
    longer.extend([0; 1000]);
    let mut promise = manifest(&longer);
    promise.size = 300_000;
    let server = FakeHub::new(&longer, &[Reply::Unmeasured]);
    let place = place(Some(server.hub()));
    let error = failure(&place, &promise);
    assert!(error.contains(&checksum(&bytes)), "{error}");
    assert_eq!(place.files(), NOTHING);
}

#[test]
fn two_that_want_the_same_model_download_it_once() {
    let bytes = file_bytes();
    let server = FakeHub::new(&bytes, &[]);
    let place = place(Some(server.hub()));
    let cache = Arc::new(place.cache.clone());
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (cache, manifest) = (Arc::clone(&cache), manifest(&bytes));
            thread::spawn(move || cache.fetch(&manifest, &Notes::default()))
        })
        .collect();
    for thread in threads {
        let path = thread
            .join()
            .expect("it does not panic")
            .expect("it is fetched");
        assert_eq!(fs::read(path).expect("it is there"), bytes);
    }
    assert_eq!(server.requests().len(), 1);
    assert_eq!(place.files(), ["tiny.gguf"]);
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

#[test]
fn a_hub_that_cannot_be_reached_fails_at_once() {
    let place = place(Some(nobody()));
    let start = Instant::now();
    let error = failure(&place, &manifest(&file_bytes()));
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    assert!(
        error.starts_with("no source delivered the model tiny:\n"),
        "{error}"
    );
    assert!(
        error.contains("Hugging Face (someone/tiny-gguf): http://127.0.0.1"),
        "{error}"
    );
    assert_eq!(place.files(), NOTHING, "neither a lock nor an empty part");
}

#[test]
fn the_token_goes_to_the_hub_and_not_where_it_redirects() {
    let bytes = file_bytes();
    let store = FakeHub::new(&bytes, &[]);
    let front = FakeHub::new(
        &bytes,
        &[Reply::Redirect(format!("{}/blob", store.endpoint))],
    );
    let mut hub = front.hub();
    hub.token = Some("secret".to_owned());
    let place = place(Some(hub));
    place
        .cache
        .fetch(&manifest(&bytes), &Notes::default())
        .expect("it is fetched");
    assert_eq!(
        front.requests()[0].authorization.as_deref(),
        Some("Bearer secret")
    );
    assert_eq!(store.requests()[0].path, "/blob");
    assert_eq!(store.requests()[0].authorization, None);
}

#[test]
fn a_file_of_another_size_is_replaced() {
    let bytes = file_bytes();
    let server = FakeHub::new(&bytes, &[]);
    let place = place(Some(server.hub()));
    fs::create_dir(&place.cache.dir).expect("the cache is new");
    fs::write(place.cache.dir.join("tiny.gguf"), b"GGUF").expect("it is writable");
    let path = place
        .cache
        .fetch(&manifest(&bytes), &Notes::default())
        .expect("it is fetched");
    assert_eq!(fs::read(path).expect("it is there"), bytes);
}

#[test]
fn a_cache_that_cannot_be_made_is_named() {
    let mut place = place(Some(nobody()));
    let file = place.dir.path().join("file");
    fs::write(&file, b"").expect("it is writable");
    place.cache.dir = file.join("models");
    let error = failure(&place, &manifest(&file_bytes()));
    assert!(
        error.contains(&place.cache.dir.display().to_string()),
        "{error}"
    );
}
