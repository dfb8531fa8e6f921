//! The HTTP client of the examples, which uses the server's public API.

use anyhow::{Context, bail};
use serde_json::{Map, Value, json};

/// The seed of every request, so that a table with a temperature can be reproduced.
const SEED: u64 = 1;

/// The server's address, and the fields of every request.
pub(crate) struct Client {
    agent: ureq::Agent,
    url: String,
    key: Option<String>,
    fields: Map<String, Value>,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) answer: String,
    /// The finish reason.
    pub(crate) finish: String,
    /// The number of its tokens.
    pub(crate) tokens: u64,
}

/// A message of a conversation.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) role: &'static str,
    pub(crate) content: String,
}

impl Client {
    /// Creates a client whose chat requests have this temperature, and these further fields.
    pub(crate) fn new(
        url: String,
        key: Option<String>,
        temperature: f64,
        fields: &[(String, Value)],
    ) -> Client {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .build()
            .new_agent();
        let mut every = Map::new();
        every.insert("temperature".into(), temperature.into());
        every.insert("seed".into(), SEED.into());
        every.extend(fields.iter().cloned());
        Client {
            agent,
            url,
            key,
            fields: every,
        }
    }

    /// Returns the fields of every chat request.
    pub(crate) fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// Requests a list from the server.
    pub(crate) fn get(&self, path: &str) -> anyhow::Result<Value> {
        let request = self.agent.get(format!("{}{path}", self.url));
        let response = self.authorized(request).call();
        read(response).with_context(|| path.to_owned())
    }

    /// Requests a chat completion.
    pub(crate) fn chat(
        &self,
        arm: &str,
        messages: &[Message],
        max_tokens: usize,
    ) -> anyhow::Result<Reply> {
        let messages: Vec<Value> = messages
            .iter()
            .map(|it| json!({"role": it.role, "content": it.content}))
            .collect();
        let mut body = self.fields.clone();
        body.insert("model".into(), arm.into());
        body.insert("messages".into(), messages.into());
        body.entry("max_tokens").or_insert(max_tokens.into());
        let request = self
            .agent
            .post(format!("{}/v1/chat/completions", self.url))
            .header("content-type", "application/json");
        let response = self
            .authorized(request)
            .send(Value::Object(body).to_string());
        let reply = read(response)?;
        let choice = &reply["choices"][0];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Ok(Reply {
            answer: text(&choice["message"]["content"]).context("no content in the reply")?,
            finish: text(&choice["finish_reason"]).context("no finish_reason in the reply")?,
            tokens: reply["usage"]["completion_tokens"].as_u64().unwrap_or(0),
        })
    }

    fn authorized<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.key {
            Some(key) => request.header("authorization", format!("Bearer {key}")),
            None => request,
        }
    }
}

/// Parses the body of a response, which must be a success.
fn read(response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> anyhow::Result<Value> {
    let mut response = response?;
    let text = response.body_mut().read_to_string()?;
    if !response.status().is_success() {
        bail!("{}: {text}", response.status());
    }
    Ok(serde_json::from_str(&text)?)
}
