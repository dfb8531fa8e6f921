//! Running requests, each a task that can be aborted.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::task::AbortHandle;

use super::Events;
use crate::app::{Effect, Event};
use crate::http::Server;
use crate::wire::{self, Chunk, CompareChunk, Failure};

/// Maximum bytes of an answer's text, or of all answers of a comparison together.
const MAX_TEXT_BYTES: usize = 1 << 20;

/// The server, and the running requests.
pub(super) struct Network {
    server: Server,
    events: Events,
    running: HashMap<u64, AbortHandle>,
    tasks: Option<Runtime>,
}

impl Network {
    pub(super) fn start(url: &str, key: Option<String>, events: Events) -> io::Result<Network> {
        let tasks = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("network")
            .enable_all()
            .build()?;
        tasks.spawn(terminate_on_signal(events.clone()));
        Ok(Network {
            server: Server::new(url, key),
            events,
            running: HashMap::new(),
            tasks: Some(tasks),
        })
    }

    /// Forgets a request that has ended.
    pub(super) fn forget(&mut self, request: u64) {
        self.running.remove(&request);
    }

    pub(super) fn perform(&mut self, effect: Effect) {
        let (server, events) = (self.server.clone(), self.events.clone());
        match effect {
            Effect::FetchArms { after } => _ = self.spawn(fetch_arms(server, events, after)),
            Effect::FetchContext { arm } => _ = self.spawn(fetch_context(server, events, arm)),
            Effect::Chat { request, body } => {
                let task = self.spawn(chat(server, events, request, body));
                self.running.extend(task.map(|task| (request, task)));
            }
            Effect::Compare { request, body } => {
                let task = self.spawn(compare(server, events, request, body));
                self.running.extend(task.map(|task| (request, task)));
            }
            Effect::Stop { request } => {
                if let Some(task) = self.running.remove(&request) {
                    task.abort();
                }
            }
            _ => {}
        }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> Option<AbortHandle> {
        let tasks = self.tasks.as_ref()?;
        Some(tasks.spawn(task).abort_handle())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Quitting does not wait for a server.
        if let Some(tasks) = self.tasks.take() {
            tasks.shutdown_background();
        }
    }
}

async fn fetch_arms(server: Server, events: Events, after: Duration) {
    tokio::time::sleep(after).await;
    let arms = server.get("/v1/models").await;
    let arms = arms.map(|body| wire::arms(&body));
    let knows_profiles = arms.iter().flatten().any(|arm| arm.profile.is_some());
    events.send(Event::Arms(arms));
    if knows_profiles && let Ok(body) = server.get("/v1/profiles").await {
        events.send(Event::Profiles(wire::profiles(&body)));
    }
}

/// Asks for the context length with an empty text: incant and vLLM report it with the tokens.
async fn fetch_context(server: Server, events: Events, arm: String) {
    let body = json!({"model": arm, "prompt": ""});
    let answer = server.post("/tokenize", &body).await;
    let tokens = answer.ok().and_then(|body| body["max_model_len"].as_u64());
    events.send(Event::Context { arm, tokens });
}

async fn chat(server: Server, events: Events, request: u64, body: Value) {
    let mut received = ReceivedAnswer::default();
    let result = async {
        let mut stream = server.stream("/v1/chat/completions", &body).await?;
        while let Some(data) = stream.next().await? {
            let chunk = wire::chunk(&data)?;
            received.finished |= chunk.finish.is_some();
            received.add(&chunk.content)?;
            if chunk != Chunk::default() {
                events.send_in_turn(Event::Chunk { request, chunk }).await;
            }
        }
        Ok::<_, Failure>(())
    };
    let result = result.await;
    let result = received.outcome(result);
    events.send(Event::Ended { request, result });
}

async fn compare(server: Server, events: Events, request: u64, body: Value) {
    const PATH: &str = "/v1/compare";
    let mut received = ReceivedAnswer::default();
    let mut known = false;
    let result = async {
        let mut stream = server.stream(PATH, &body).await?;
        while let Some(data) = stream.next().await? {
            let chunk = wire::compare_chunk(&data)?;
            match &chunk {
                CompareChunk::Delta { content, .. } => received.add(content)?,
                CompareChunk::Summary(_) => received.finished = true,
                CompareChunk::Other => continue,
                _ => {}
            }
            known = true;
            let event = Event::CompareChunk { request, chunk };
            events.send_in_turn(event).await;
        }
        Ok::<_, Failure>(())
    };
    let result = result.await;
    let answered = match &result {
        Ok(()) => true,
        Err(failure) => failure.is_torn(),
    };
    let result = if answered && !known {
        // Some servers answer any request.
        Err(Failure::missing(PATH))
    } else {
        received.outcome(result)
    };
    events.send(Event::Ended { request, result });
}

/// The received part of an answer.
#[derive(Default)]
struct ReceivedAnswer {
    /// Bytes of text.
    bytes: usize,
    /// Whether the server has sent a finish reason for everything.
    finished: bool,
}

impl ReceivedAnswer {
    /// Adds text.
    fn add(&mut self, content: &str) -> Result<(), Failure> {
        self.bytes += content.len();
        if self.bytes > MAX_TEXT_BYTES {
            Err(Failure::local(format!(
                "the answer is longer than {} MiB; the rest was not read",
                MAX_TEXT_BYTES >> 20
            )))
        } else {
            Ok(())
        }
    }

    /// The outcome of the answer. Some servers close a stream without a final event after they
    /// have sent everything.
    fn outcome(&self, result: Result<(), Failure>) -> Result<(), Failure> {
        match result {
            Err(failure) if failure.is_torn() && self.finished => Ok(()),
            result => result,
        }
    }
}

/// On a signal, ends the program with the terminal restored.
async fn terminate_on_signal(events: Events) {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let signals = (
            signal(SignalKind::terminate()),
            signal(SignalKind::hangup()),
        );
        if let (Ok(mut terminate), Ok(mut hangup)) = signals {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            events.send(Event::Terminate);
        }
    }
    #[cfg(not(unix))]
    if tokio::signal::ctrl_c().await.is_ok() {
        events.send(Event::Terminate);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::sync::mpsc::channel;
    use std::thread;

    use super::super::Message;
    use super::*;

    /// A server that sends a head and then a piece repeatedly, as long as the client reads.
    fn endless(head: &'static str, piece: &'static str) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            _ = client.read(&mut [0; 4096]).unwrap();
            let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{head}");
            client.write_all(head.as_bytes()).unwrap();
            while !piece.is_empty() && client.write_all(piece.as_bytes()).is_ok() {}
        });
        Server::new(&url, None)
    }

    /// The events of a request, received one after the other.
    async fn events_of(
        request: impl Future<Output = ()>,
        inbox: &std::sync::mpsc::Receiver<Message>,
    ) -> Vec<Event> {
        let mut taken = Vec::new();
        let mut request = std::pin::pin!(request);
        loop {
            let ended = tokio::time::timeout(Duration::ZERO, &mut request).await;
            // Handling events makes room for more.
            while let Ok(message) = inbox.try_recv() {
                match message {
                    Message::Event(event, turn) => {
                        drop(turn);
                        taken.push(event);
                    }
                    Message::Fail(why) => panic!("{why}"),
                }
            }
            if ended.is_ok() {
                return taken;
            }
            tokio::task::yield_now().await;
        }
    }

    fn failure(events: &[Event]) -> &Failure {
        match events.last() {
            Some(Event::Ended {
                result: Err(failure),
                ..
            }) => failure,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn an_answer_without_an_end_is_kept_up_to_its_longest() {
        const PIECE: &str =
            "data: {\"choices\": [{\"delta\": {\"content\": \"xxxxxxxxxxxxxxxx\"}}]}\n\n";
        let (sender, inbox) = channel();
        let server = endless("", PIECE);
        let request = chat(server, Events::new(sender), 1, json!({}));
        let events = events_of(request, &inbox).await;
        assert!(failure(&events).message.contains("longer than 1 MiB"));
        let text = events.iter().map(|event| match event {
            Event::Chunk { chunk, .. } => chunk.content.len(),
            _ => 0,
        });
        assert_eq!(text.sum::<usize>(), MAX_TEXT_BYTES);
    }

    #[tokio::test]
    async fn events_that_nobody_takes_are_not_collected() {
        const PIECE: &str = "data: {\"choices\": [{\"delta\": {\"content\": \"x\"}}]}\n\n";
        let (sender, inbox) = channel();
        let events = Events::new(sender);
        let request = chat(endless("", PIECE), events, 1, json!({}));
        let mut request = std::pin::pin!(request);
        for _ in 0..20 {
            let wait = Duration::from_millis(5);
            let ended = tokio::time::timeout(wait, &mut request).await;
            assert!(ended.is_err(), "it waits for its turn");
        }
        let held: Vec<Message> = inbox.try_iter().collect();
        assert!(
            held.len() <= super::super::MAX_QUEUED_EVENTS,
            "{}",
            held.len()
        );
    }

    #[tokio::test]
    async fn a_server_that_answers_whatever_it_is_asked_has_no_comparison() {
        for body in [
            "<!doctype html>\n<p>Welcome",
            "{\"choices\": []}",
            "data: [DONE]\n\n",
        ] {
            let (sender, inbox) = channel();
            let request = compare(endless(body, ""), Events::new(sender), 1, json!({}));
            let events = events_of(request, &inbox).await;
            assert!(failure(&events).is_missing(), "{body}");
        }
    }
}
