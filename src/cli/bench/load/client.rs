//! The client side of the benchmark: streamed completions, with the time at which each piece
//! arrived.

use std::cell::Cell;
use std::io::{self, BufRead, BufReader};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use incant_api::base_url;
use incant_api::sse::EventReader;
use serde::Deserialize;
use serde_json::{Value, json};
use ureq::http::header;

use crate::cli::http::{agent, authorized, first_model, good, message, parse};

/// A server to measure.
pub(super) struct Server {
    /// Without a slash at the end.
    pub(super) url: String,
    pub(super) model: String,
    key: Option<String>,
}

/// One client of a server. It reuses its connection for all its requests (keep-alive).
pub(super) struct Client<'a> {
    server: &'a Server,
    agent: ureq::Agent,
    /// Whether it has sent a request before.
    connected: Cell<bool>,
}

/// One answer, and when it arrived.
pub(super) struct Answer {
    pub(super) started: Instant,
    /// When each event with text arrived.
    pub(super) texts: Vec<Instant>,
    pub(super) ended: Instant,
    /// The server's token counts, if it reports them.
    pub(super) usage: Option<Usage>,
}

/// A server's token counts.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Usage {
    pub(super) prompt_tokens: usize,
    pub(super) completion_tokens: usize,
    prompt_tokens_details: Option<PromptTokens>,
}

/// Details of a prompt's tokens.
#[derive(Clone, Copy, Debug, Deserialize)]
struct PromptTokens {
    cached_tokens: Option<usize>,
}

impl Usage {
    /// Returns the number of cached prompt tokens, if the server reports it.
    pub(super) fn cached_tokens(&self) -> Option<usize> {
        self.prompt_tokens_details?.cached_tokens
    }
}

impl Answer {
    /// Returns the time to the first text, or to the end if there was no text.
    pub(super) fn first(&self) -> Duration {
        let first = self.texts.first().unwrap_or(&self.ended);
        first.duration_since(self.started)
    }

    /// Returns the times between events with text.
    pub(super) fn gaps(&self) -> impl Iterator<Item = Duration> {
        let pairs = self.texts.windows(2);
        pairs.map(|pair| pair[1].duration_since(pair[0]))
    }

    /// Returns the number of tokens: the server's count, or else one for each event.
    pub(super) fn tokens(&self) -> usize {
        let counted = self.usage.map(|usage| usage.completion_tokens);
        counted.unwrap_or(self.texts.len())
    }

    /// Returns the mean time between tokens, independent of the number of tokens per event.
    pub(super) fn per_token(&self) -> Option<Duration> {
        let (first, last) = (self.texts.first()?, self.texts.last()?);
        let steps = self.tokens().checked_sub(1).filter(|&steps| steps > 0)?;
        Some(last.duration_since(*first).div_f64(steps as f64))
    }
}

impl Server {
    /// Opens a server. Without `model`, asks it for its first one.
    pub(super) fn open(
        url: &str,
        model: Option<&str>,
        key: Option<&str>,
    ) -> anyhow::Result<Server> {
        let mut server = Server {
            url: base_url(url),
            model: model.unwrap_or_default().to_owned(),
            key: key.map(str::to_owned),
        };
        if model.is_none() {
            server.model = first_model(&server.client().agent, &server.url, key)?;
        }
        Ok(server)
    }

    /// Returns a client with a connection of its own.
    pub(super) fn client(&self) -> Client<'_> {
        Client {
            server: self,
            // A proxy would distort the measurement.
            agent: agent(true),
            connected: Cell::new(false),
        }
    }
}

impl Client<'_> {
    /// Requests a completion of `prompt` with exactly `tokens` tokens, if the server supports
    /// `ignore_eos`.
    pub(super) fn complete(&self, prompt: &str, tokens: usize) -> anyhow::Result<Answer> {
        let url = format!("{}/v1/completions", self.server.url);
        let body = json!({
            "model": self.server.model,
            "prompt": prompt,
            "max_tokens": tokens,
            "ignore_eos": true,
            "temperature": 0,
            "stream": true,
            "stream_options": {"include_usage": true},
        })
        .to_string();
        let send = || {
            let request = authorized(self.agent.post(&url), self.server.key.as_deref());
            let request = request.header(header::CONTENT_TYPE, "application/json");
            request.send(&body)
        };
        let started = Instant::now();
        let mut result = send();
        // Some servers announce keep-alive and then close the connection. Any client must then
        // reconnect, so the time for that counts.
        if self.connected.replace(true) && result.as_ref().is_err_and(is_closed) {
            result = send();
        }
        let response = good(&url, result)?;
        let reader = BufReader::new(response.into_body().into_reader());
        read(&url, started, EventReader::new(reader))
    }
}

/// Reads a streamed completion to its end.
fn read<R: BufRead>(
    url: &str,
    started: Instant,
    mut events: EventReader<R>,
) -> anyhow::Result<Answer> {
    #[derive(Deserialize)]
    struct Choice {
        text: Option<String>,
    }
    #[derive(Deserialize)]
    struct Chunk {
        #[serde(default)]
        choices: Vec<Choice>,
        usage: Option<Usage>,
        error: Option<Value>,
    }
    let mut answer = Answer {
        started,
        texts: Vec::new(),
        ended: started,
        usage: None,
    };
    let mut any = false;
    let mut ended = None;
    while let Some(data) = events.next_event().with_context(|| url.to_owned())? {
        let now = Instant::now();
        // Data after the end is read too: only then can the connection serve the next request.
        if ended.is_some() {
            continue;
        }
        any = true;
        if data == "[DONE]" {
            ended = Some(now);
            continue;
        }
        let chunk: Chunk = parse(url, &data)?;
        if let Some(error) = chunk.error {
            bail!("{url}: {}", message(&error));
        }
        let mut texts = chunk
            .choices
            .iter()
            .filter_map(|choice| choice.text.as_ref());
        if texts.any(|text| !text.is_empty()) {
            answer.texts.push(now);
        }
        answer.usage = chunk.usage.or(answer.usage);
    }
    if !any {
        bail!("{url}: the answer is not a stream of events");
    }
    answer.ended = ended.unwrap_or_else(Instant::now);
    Ok(answer)
}

/// Returns whether the server closed the connection before it answered.
fn is_closed(error: &ureq::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    match error {
        ureq::Error::Io(error) => matches!(
            error.kind(),
            BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
        ),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str) -> anyhow::Result<Answer> {
        read("there", Instant::now(), EventReader::new(text.as_bytes()))
    }

    #[test]
    fn tokens_are_those_of_the_usage_and_events_only_without_one() {
        let text = "data: {\"choices\":[{\"text\":\"a\"}]}\n\n";
        let empty = "data: {\"choices\":[{\"text\":\"\",\"finish_reason\":\"length\"}]}\n\n";
        let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":5,\"prompt_tokens_details\":{\"cached_tokens\":7}}}\n\n";
        let done = "data: [DONE]\n\n";

        let whole = answer(&[text, text, empty, usage, done].concat()).expect("it is whole");
        assert_eq!((whole.texts.len(), whole.tokens()), (2, 5));
        assert_eq!(whole.gaps().count(), 1);
        let usage = whole.usage.expect("it is there");
        assert_eq!((usage.prompt_tokens, usage.cached_tokens()), (9, Some(7)));

        let short = answer(&[text, empty, text, text].concat()).expect("no end is needed");
        assert_eq!((short.texts.len(), short.tokens()), (3, 3));
        assert!(short.first() <= short.ended - short.started);
    }

    #[test]
    fn an_answer_of_one_token_has_no_time_per_token() {
        let one = answer("data: {\"choices\":[{\"text\":\"a\"}]}\n\n").expect("it is one");
        assert!(one.per_token().is_none());
    }

    #[test]
    fn what_is_no_answer_is_an_error_that_names_the_server() {
        let said = |text: &str| answer(text).err().expect("it is an error").to_string();
        assert_eq!(
            said("data: {\"error\":{\"message\":\"out of\\nmemory\"}}\n\n"),
            "there: out of\\nmemory"
        );
        assert_eq!(
            said("{\"choices\":[]}"),
            "there: the answer is not a stream of events"
        );
        assert!(said("data: {\"cho\n\n").starts_with("there: EOF while parsing"));
    }
}
