//! Request bodies: their content type, and a memory budget for those held at once.
//!
//! Small bodies are always read. The others share a memory budget, and each holds a part of it
//! until a prompt has been made of it. One client's bodies take at most half of it and the one
//! body that may always grow, so that there is memory for others'.
//!
//! Bodies cannot deadlock. One that announces its length takes all its memory at once: while it
//! waits it holds none, and once it has memory it depends on its own client alone, whose
//! disconnection is seen because the body is being read. Of bodies whose length is unknown
//! (chunked ones), which grow while they hold memory, one at a time may grow without waiting.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use axum::extract::Request;
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::BodyExt;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

use super::errors::ApiError;
use incant_engine::Client;

/// The maximum size in bytes of a body that is read and processed without waiting for others: some
/// 15,000 tokens of English.
pub(crate) const SMALL: usize = 64 << 10;

/// The size of the budget, in bodies of the maximum size.
const BUDGET_BODIES: usize = 8;

/// The part of the budget that one client may take, in bodies of the maximum size.
const BUDGET_BODIES_PER_CLIENT: usize = BUDGET_BODIES / 2;

/// Bytes per permit.
const UNIT: usize = 64 << 10;

/// The memory budget of bodies that are not small.
#[derive(Debug)]
pub(crate) struct BodyMemory {
    /// One permit for each unit that all bodies share.
    shared: Arc<Semaphore>,
    /// One permit, for a body that may grow to the maximum size.
    overflow: Arc<Semaphore>,
    /// Each client's part of the shared budget, kept while the client holds any of it.
    per_client: Mutex<HashMap<Client, Weak<Semaphore>>>,
    /// The number of permits of such a part.
    part: usize,
}

/// The memory that one body holds, until it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Reservation {
    shared: Option<OwnedSemaphorePermit>,
    /// The permits of its client's part.
    part: Option<OwnedSemaphorePermit>,
    /// Set if the body may grow without waiting, up to the limit of all bodies.
    overflow: Option<OwnedSemaphorePermit>,
}

impl BodyMemory {
    /// Creates a budget of eight bodies of `limit` bytes.
    pub(crate) fn new(limit: usize) -> BodyMemory {
        let largest = limit.div_ceil(UNIT);
        let units = |count| Semaphore::MAX_PERMITS.min(largest.saturating_mul(count));
        BodyMemory {
            shared: Arc::new(Semaphore::new(units(BUDGET_BODIES - 1))),
            overflow: Arc::new(Semaphore::new(1)),
            per_client: Mutex::default(),
            part: units(BUDGET_BODIES_PER_CLIENT),
        }
    }

    /// Returns the part of the budget that `client` may take.
    fn part(&self, client: Client) -> Arc<Semaphore> {
        let mut per_client = self
            .per_client
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(part) = per_client.get(&client).and_then(Weak::upgrade) {
            return part;
        }
        per_client.retain(|_, part| part.strong_count() > 0);
        let part = Arc::new(Semaphore::new(self.part));
        per_client.insert(client, Arc::downgrade(&part));
        part
    }

    /// Waits until a body of `bytes` bytes, sent by `client`, fits into the budget.
    async fn grow(&self, client: Client, reservation: &mut Reservation, bytes: usize) {
        let held = reservation
            .shared
            .as_ref()
            .map_or(0, OwnedSemaphorePermit::num_permits);
        let more = bytes.div_ceil(UNIT).saturating_sub(held);
        if more == 0 || reservation.overflow.is_some() {
            return;
        }
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        let permits = async {
            let part = self.part(client).acquire_many_owned(more).await?;
            let shared = Arc::clone(&self.shared).acquire_many_owned(more).await?;
            Ok::<_, AcquireError>((part, shared))
        };
        tokio::select! {
            biased;
            Ok((part, shared)) = permits => {
                add(&mut reservation.part, part);
                add(&mut reservation.shared, shared);
            }
            Ok(overflow) = Arc::clone(&self.overflow).acquire_owned() => reservation.overflow = Some(overflow),
            // Neither semaphore is ever closed.
            else => {}
        }
    }
}

fn add(held: &mut Option<OwnedSemaphorePermit>, more: OwnedSemaphorePermit) {
    match held {
        Some(held) => held.merge(more),
        None => *held = Some(more),
    }
}

/// Refuses a body that is not JSON, or that is compressed. A page cannot send JSON to another
/// origin unless its browser has asked first (CORS preflight).
pub(crate) fn check_kind(headers: &HeaderMap) -> Result<(), ApiError> {
    let mut kinds = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(kind), None) = (kinds.next(), kinds.next()) else {
        return Err(ApiError::NotJson);
    };
    // A charset parameter is ignored: JSON is UTF-8.
    let essence = kind.as_bytes().split(|byte| *byte == b';').next();
    let essence = essence.unwrap_or_default().trim_ascii();
    if !essence.eq_ignore_ascii_case(b"application/json") {
        return Err(ApiError::NotJson);
    }
    let codings = headers.get_all(header::CONTENT_ENCODING).iter();
    let mut codings = codings.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let is_identity = |coding: &[u8]| {
        let coding = coding.trim_ascii();
        coding.is_empty() || coding.eq_ignore_ascii_case(b"identity")
    };
    if codings.all(is_identity) {
        Ok(())
    } else {
        Err(ApiError::Encoded)
    }
}

/// Reads a body of at most `limit` bytes. A client has `client_timeout` to send it, not counting the time
/// that the body waits for memory, which has the same limit.
pub(crate) async fn read(
    request: Request,
    client: Client,
    memory: &BodyMemory,
    limit: usize,
    client_timeout: Duration,
) -> Result<(Bytes, Reservation), ApiError> {
    let announced = request.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(ApiError::BodyTooLarge { limit });
    }
    let announced = announced.map_or(0, |length| length as usize);
    let mut body = request.into_body();
    let mut bytes = Vec::new();
    let mut reservation = Reservation::default();
    let mut deadline = Instant::now() + client_timeout;
    loop {
        let frame = match timeout_at(deadline, body.frame()).await {
            Err(_) => {
                return Err(ApiError::BodyTimeout {
                    limit: client_timeout,
                });
            }
            Ok(None) => return Ok((Bytes::from(bytes), reservation)),
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => {
                let message = format!("The body could not be read: {error}.");
                return Err(ApiError::malformed(message));
            }
        };
        // Trailers are ignored.
        let Ok(data) = frame.into_data() else {
            continue;
        };
        let length = bytes.len() + data.len();
        if length > limit {
            return Err(ApiError::BodyTooLarge { limit });
        }
        if length > SMALL {
            let since = Instant::now();
            if timeout(
                client_timeout,
                memory.grow(client, &mut reservation, length.max(announced)),
            )
            .await
            .is_err()
            {
                return Err(ApiError::BodyMemoryFull);
            }
            deadline += since.elapsed();
            // Nothing is allocated for the announced length before there is memory for it.
            bytes.reserve_exact(announced.saturating_sub(bytes.len()));
        }
        bytes.extend_from_slice(&data);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use axum::body::Body;
    use http::HeaderName;

    use super::*;

    fn verdict(headers: &[(HeaderName, &'static str)]) -> Result<(), ApiError> {
        let headers = headers.iter().cloned();
        let headers = headers.map(|(name, value)| (name, value.parse().expect("a value")));
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, value);
        }
        check_kind(&map)
    }

    #[test]
    fn a_body_is_json_and_says_so_whatever_its_parameters() {
        let kind = |kind| verdict(&[(header::CONTENT_TYPE, kind)]);
        for json in [
            "application/json",
            "Application/JSON",
            "application/json; charset=utf-8",
            "application/json;charset=\"UTF-8\"",
            " application/json ;",
        ] {
            assert_eq!(kind(json), Ok(()), "{json}");
        }
        for other in [
            "",
            "text/plain",
            "text/plain; application/json",
            "text/plain, application/json",
            "application/json, text/plain",
            "application/jsonp",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=application/json",
            "application/octet-stream",
            "*/*",
        ] {
            assert_eq!(kind(other), Err(ApiError::NotJson), "{other}");
        }
        assert_eq!(verdict(&[]), Err(ApiError::NotJson));
        let json = (header::CONTENT_TYPE, "application/json");
        let text = (header::CONTENT_TYPE, "text/plain");
        assert_eq!(verdict(&[json.clone(), text]), Err(ApiError::NotJson));
    }

    #[test]
    fn a_body_is_sent_as_it_is() {
        let coding = |coding| {
            let json = (header::CONTENT_TYPE, "application/json");
            verdict(&[json, (header::CONTENT_ENCODING, coding)])
        };
        for none in ["identity", "Identity", "", "identity, identity"] {
            assert_eq!(coding(none), Ok(()), "{none}");
        }
        for some in ["gzip", "deflate", "br", "zstd", "identity, gzip", "x"] {
            assert_eq!(coding(some), Err(ApiError::Encoded), "{some}");
        }
    }

    /// Polls a future once.
    fn ready<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    fn client(name: &str) -> Client {
        Client::named(name.as_bytes())
    }

    #[test]
    fn bodies_that_grow_at_the_same_time_all_complete() {
        const LIMIT: usize = 4 * UNIT;
        let memory = BodyMemory::new(LIMIT);
        let names = ["a", "b"].map(client).into_iter().cycle();
        // Each holds half of the memory it needs: none of the shared budget is left.
        let mut bodies: Vec<_> = names
            .take(14)
            .map(|name| (name, Reservation::default()))
            .collect();
        for (client, reservation) in &mut bodies {
            assert!(ready(pin!(memory.grow(*client, reservation, LIMIT / 2))).is_some());
        }
        // The first that asks for more may have all of it; the others wait until it is done.
        let (client, mut first) = bodies.pop().expect("there are some");
        for bytes in [3 * UNIT, LIMIT] {
            assert!(ready(pin!(memory.grow(client, &mut first, bytes))).is_some());
        }
        for (client, reservation) in &mut bodies {
            assert!(ready(pin!(memory.grow(*client, reservation, LIMIT))).is_none());
        }
        drop(first);
        while let Some((client, mut reservation)) = bodies.pop() {
            assert!(ready(pin!(memory.grow(client, &mut reservation, LIMIT))).is_some());
        }
        assert_eq!(
            memory.shared.available_permits(),
            28,
            "all memory is free again"
        );
        assert_eq!(memory.overflow.available_permits(), 1);
    }

    #[test]
    fn one_client_leaves_memory_for_others() {
        const LIMIT: usize = 4 * UNIT;
        let memory = BodyMemory::new(LIMIT);
        let (greedy, other) = (client("greedy"), client("other"));
        let mut held: Vec<Reservation> = Vec::new();
        let mut take = |client| {
            let mut reservation = Reservation::default();
            let fits = ready(pin!(memory.grow(client, &mut reservation, LIMIT))).is_some();
            held.extend(fits.then_some(reservation));
            fits
        };
        // The client's part, and the one body that may grow without waiting.
        for _ in 0..=BUDGET_BODIES_PER_CLIENT {
            assert!(take(greedy));
        }
        assert!(!take(greedy));
        for _ in 0..BUDGET_BODIES - 1 - BUDGET_BODIES_PER_CLIENT {
            assert!(take(other));
        }
        assert!(!take(other), "all memory is taken");
        held.clear();
        // Parts that nobody holds are removed when another client arrives.
        let mut reservation = Reservation::default();
        assert!(ready(pin!(memory.grow(client("third"), &mut reservation, LIMIT))).is_some());
        assert_eq!(memory.per_client.lock().expect("no panic").len(), 1);
    }

    /// A body of which parts arrive when they are sent.
    fn arriving(length: usize) -> (tokio::sync::mpsc::Sender<Option<Bytes>>, Request) {
        let (sender, mut receiver) = tokio::sync::mpsc::channel(8);
        let frames =
            http_body_util::StreamBody::new(futures_util::stream::poll_fn(move |context| {
                receiver
                    .poll_recv(context)
                    .map(|part: Option<Option<Bytes>>| {
                        let lost = || std::io::Error::other("the client has disconnected");
                        Some(part?.map(http_body::Frame::data).ok_or_else(lost))
                    })
            }));
        let request = Request::builder().header(header::CONTENT_LENGTH, length);
        (sender, request.body(Body::new(frames)).expect("a request"))
    }

    #[tokio::test]
    async fn clients_that_disconnect_while_bodies_wait_for_memory_keep_none_of_it() {
        const LIMIT: usize = 4 * UNIT;
        let memory = BodyMemory::new(LIMIT);
        let clients = ["one", "two", "three"].map(client).into_iter().cycle();
        let mut bodies: Vec<_> = clients
            .take(12)
            .map(|client| {
                let (sender, request) = arriving(LIMIT);
                let read = super::read(request, client, &memory, LIMIT, Duration::from_secs(60));
                (sender, Box::pin(read))
            })
            .collect();
        let part = || Some(Bytes::from_static(&[b'x'; UNIT]));
        // Three parts of four arrive, in turns: more than there is memory for.
        for _ in 0..3 {
            for (sender, read) in &mut bodies {
                sender.try_send(part()).expect("there is space");
                assert!(ready(read.as_mut()).is_none());
            }
        }
        let mut lost = bodies.split_off(6);
        for (sender, _) in &lost {
            sender.try_send(None).expect("there is space");
        }
        // Each of the others completes although those after it do not send their last part.
        for (sender, mut read) in bodies {
            sender.try_send(part()).expect("there is space");
            drop(sender);
            let mut read_whole = false;
            for _ in 0..10 {
                lost.retain_mut(|(_, read)| ready(read.as_mut()).is_none());
                if let Some(outcome) = ready(read.as_mut()) {
                    assert_eq!(outcome.expect("a body").0.len(), LIMIT);
                    read_whole = true;
                    break;
                }
            }
            assert!(read_whole, "it waits for memory that nobody frees");
        }
        assert_eq!(memory.shared.available_permits(), 28);
        assert_eq!(memory.overflow.available_permits(), 1);
    }

    #[tokio::test]
    async fn a_body_waits_for_memory_and_is_refused_when_there_is_none() {
        const LIMIT: usize = 2 * UNIT;
        const LONG: Duration = Duration::from_secs(60);
        let memory = BodyMemory::new(LIMIT);
        let read = |name, length: usize, client_timeout| {
            let request = Request::new(Body::from(vec![b'x'; length]));
            super::read(request, client(name), &memory, LIMIT, client_timeout)
        };
        let mut held = Vec::new();
        for name in ["a", "b"].into_iter().cycle().take(BUDGET_BODIES) {
            let (bytes, reservation) = read(name, LIMIT, LONG).await.expect("there is memory");
            assert_eq!(bytes.len(), LIMIT);
            held.push(reservation);
        }
        let short = Duration::from_millis(20);
        assert_eq!(
            read("a", LIMIT, short).await.err(),
            Some(ApiError::BodyMemoryFull)
        );
        // Small bodies are read all the same, and too large ones are refused as such.
        assert!(read("a", SMALL, LONG).await.is_ok());
        let over = read("a", LIMIT + 1, LONG).await.err();
        assert_eq!(over, Some(ApiError::BodyTooLarge { limit: LIMIT }));
        let mut waiting = pin!(read("c", LIMIT, LONG));
        assert!(ready(waiting.as_mut()).is_none());
        held.pop();
        assert!(waiting.await.is_ok(), "one has left meanwhile");
    }
}
