//! Requests that run, each a task that can be dropped.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::task::AbortHandle;

use super::Events;
use crate::app::{Effect, Event};
use crate::http::Server;
use crate::wire::{self, CompareChunk, Failure};

/// The server, and what is asked of it.
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
        // Whoever leaves does not wait for a server.
        if let Some(tasks) = self.tasks.take() {
            tasks.shutdown_background();
        }
    }
}

async fn fetch_arms(server: Server, events: Events, after: Duration) {
    tokio::time::sleep(after).await;
    let arms = server.get("/v1/models").await;
    events.send(Event::Arms(arms.map(|body| wire::arms(&body))));
}

/// incant and vLLM say it with the tokens of any text.
async fn fetch_context(server: Server, events: Events, arm: String) {
    let body = json!({"model": arm, "prompt": ""});
    let answer = server.post("/tokenize", &body).await;
    let tokens = answer.ok().and_then(|body| body["max_model_len"].as_u64());
    events.send(Event::Context { arm, tokens });
}

async fn chat(server: Server, events: Events, request: u64, body: Value) {
    let mut failure = None;
    let mut finished = false;
    let each = |data: &str| match wire::chunk(data) {
        Ok(chunk) => {
            finished |= chunk.finish.is_some();
            events.send(Event::Chunk { request, chunk });
            true
        }
        Err(error) => {
            failure = Some(error);
            false
        }
    };
    let result = server.stream("/v1/chat/completions", &body, each).await;
    let result = outcome(result, failure, finished);
    events.send(Event::Ended { request, result });
}

async fn compare(server: Server, events: Events, request: u64, body: Value) {
    let mut failure = None;
    let mut finished = false;
    let each = |data: &str| match wire::compare_chunk(data) {
        Ok(chunk) => {
            finished |= matches!(chunk, CompareChunk::Summary(_));
            events.send(Event::CompareChunk { request, chunk });
            true
        }
        Err(error) => {
            failure = Some(error);
            false
        }
    };
    let result = server.stream("/v1/compare", &body, each).await;
    let result = outcome(result, failure, finished);
    events.send(Event::Ended { request, result });
}

/// How a stream ended. Some servers close it without another word when they
/// have said everything.
fn outcome(
    result: Result<(), Failure>,
    failure: Option<Failure>,
    finished: bool,
) -> Result<(), Failure> {
    match (failure, finished) {
        (Some(failure), _) => Err(failure),
        (None, true) => Ok(()),
        (None, false) => result,
    }
}

/// A program that is asked to end restores the terminal before it does.
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
