//! The client for `--url`: a server answers instead of a model in this process.

use std::io::{BufReader, StdoutLock};

use anyhow::{Context, anyhow, bail};
use incant_api::sse::EventReader;
use incant_api::{base_url, is_local};
use serde::Deserialize;
use serde_json::{Map, Value};
use ureq::http::header;

use crate::cli::http::{agent, authorized, first_model, good, message, parse};
use crate::cli::output::{Pieces, json, print};

/// A server of OpenAI's REST API.
pub(super) struct Server {
    /// Without a slash at the end.
    base: String,
    key: Option<String>,
    agent: ureq::Agent,
}

impl Server {
    pub(super) fn new(url: &str, key: Option<&str>) -> Server {
        let base = base_url(url);
        Server {
            agent: agent(is_local(&base)),
            base,
            key: key.map(str::to_owned),
        }
    }

    /// Returns the id of the first model that it lists.
    pub(super) fn first_model(&self) -> anyhow::Result<String> {
        first_model(&self.agent, &self.base, self.key.as_deref())
    }

    /// Prints the whole response to a chat.
    pub(super) fn whole(&self, body: Map<String, Value>) -> anyhow::Result<()> {
        let (url, mut response) = self.post(body)?;
        let text = response.body_mut().read_to_string();
        let text = text.map_err(|error| anyhow!("{url}: {error}"))?;
        let response: Value = parse(&url, &text)?;
        Ok(print(&json(&response)?)?)
    }

    /// Prints the answer as it is streamed, or as a whole if the server does not stream.
    pub(super) fn streamed(&self, mut body: Map<String, Value>) -> anyhow::Result<()> {
        body.insert("stream".to_owned(), Value::Bool(true));
        let (url, mut response) = self.post(body)?;
        let mut out = Pieces::stdout();
        let kind = response.headers().get(header::CONTENT_TYPE);
        let is_json = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
        if is_json {
            let text = response.body_mut().read_to_string();
            let text = text.map_err(|error| anyhow!("{url}: {error}"))?;
            print_event(&mut out, &url, &text)?;
            return Ok(out.end_line()?);
        }
        let mut events = EventReader::new(BufReader::new(response.into_body().into_reader()));
        let mut is_complete = false;
        while let Some(data) = events.next_event().with_context(|| url.clone())? {
            if data == "[DONE]" {
                is_complete = true;
                break;
            }
            is_complete |= print_event(&mut out, &url, &data)?;
            if out.reader_has_left() {
                return Ok(());
            }
        }
        out.end_line()?;
        if is_complete {
            Ok(())
        } else {
            bail!("{url}: the connection ended before the answer was complete")
        }
    }

    /// Sends a chat request; returns its URL and the successful response.
    fn post(
        &self,
        body: Map<String, Value>,
    ) -> anyhow::Result<(String, ureq::http::Response<ureq::Body>)> {
        let url = format!("{}/v1/chat/completions", self.base);
        let request = authorized(self.agent.post(&url), self.key.as_deref());
        let request = request.header(header::CONTENT_TYPE, "application/json");
        let response = good(&url, request.send(Value::Object(body).to_string()))?;
        Ok((url, response))
    }
}

/// Prints the text of a chunk, or of a whole answer. Returns whether it is the last.
fn print_event(
    out: &mut Pieces<StdoutLock<'static>>,
    url: &str,
    json: &str,
) -> anyhow::Result<bool> {
    #[derive(Deserialize)]
    struct Said {
        content: Option<String>,
    }
    #[derive(Deserialize)]
    struct Choice {
        #[serde(alias = "message")]
        delta: Said,
        finish_reason: Option<String>,
    }
    #[derive(Deserialize)]
    struct Part {
        #[serde(default)]
        choices: Vec<Choice>,
        error: Option<Value>,
    }
    let part: Part = parse(url, json)?;
    if let Some(error) = part.error {
        bail!("{url}: {}", message(&error));
    }
    let mut is_last = false;
    for choice in part.choices {
        out.push(&choice.delta.content.unwrap_or_default())?;
        is_last |= choice.finish_reason.is_some();
    }
    Ok(is_last)
}
