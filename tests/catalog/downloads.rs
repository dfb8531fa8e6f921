//! Sources and downloads: lost connections, wrong answers, and the hub's token.

use std::fs;
use std::time::{Duration, Instant};

use incant::catalog::{Manifest, State};

use super::{
    NOTHING, Notes, checksum, failure, file_bytes, manifest, manifest_text, nobody, place,
};
use crate::support::hub::{FakeHub, Reply};

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
