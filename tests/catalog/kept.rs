//! The files that the cache keeps: they are verified, completed or replaced, and downloaded once.

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use incant::catalog::{Cache, State};

use super::{Notes, failure, file_bytes, manifest, nobody, place};
use crate::support::hub::FakeHub;

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
