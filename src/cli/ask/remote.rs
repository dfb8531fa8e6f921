//! A server that answers instead of a model that is loaded here.

use std::io::BufReader;

use anyhow::{Context, anyhow, bail};
use serde::Deserialize;
use serde_json::{Map, Value};
use ureq::http::header;

use crate::cli::http::{
    CONNECT_TIMEOUT, Events, MESSAGE, SILENCE_TIMEOUT, authorized, base, first_model, good,
    message, parse,
};
use crate::cli::output::{Pieces, clip, json, print};

/// A server of OpenAI's REST API.
pub(super) struct Server {
    /// Without a slash at the end.
    base: String,
    key: Option<String>,
    agent: ureq::Agent,
}

impl Server {
    pub(super) fn new(url: &str, key: Option<&str>) -> Server {
        let agent = ureq::Agent::config_builder()
            .user_agent(concat!("incant/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .timeout_resolve(Some(CONNECT_TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(SILENCE_TIMEOUT))
            .timeout_per_read(Some(SILENCE_TIMEOUT))
            .build()
            .new_agent();
        Server {
            base: base(url).to_owned(),
            key: key.map(str::to_owned),
            agent,
        }
    }

    /// The id of the first model that it lists.
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

    /// Prints the answer as it comes.
    pub(super) fn streamed(&self, mut body: Map<String, Value>) -> anyhow::Result<()> {
        #[derive(Deserialize)]
        struct Delta {
            content: Option<String>,
        }
        #[derive(Deserialize)]
        struct Choice {
            delta: Delta,
        }
        #[derive(Deserialize)]
        struct Chunk {
            #[serde(default)]
            choices: Vec<Choice>,
            error: Option<Value>,
        }
        body.insert("stream".to_owned(), Value::Bool(true));
        let (url, response) = self.post(body)?;
        let mut events = Events::new(BufReader::new(response.into_body().into_reader()));
        let mut out = Pieces::stdout();
        let mut any = false;
        while let Some(data) = events.next().with_context(|| url.clone())? {
            any = true;
            if data == "[DONE]" {
                break;
            }
            let chunk: Chunk = parse(&url, &data)?;
            if let Some(error) = chunk.error {
                bail!("{url}: {}", message(&error).unwrap_or(clip(&data, MESSAGE)));
            }
            for choice in chunk.choices {
                out.push(&choice.delta.content.unwrap_or_default())?;
            }
        }
        if !any {
            bail!("{url}: the answer is not a stream of events");
        }
        out.push("\n")?;
        Ok(out.end()?)
    }

    /// Asks for a chat; the address that was asked, and its response, which is no failure.
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
