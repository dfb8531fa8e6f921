//! The HTTP client for servers with OpenAI's REST API, shared by several commands.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use incant_api::error_message;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use ureq::http::{Response, header};

use super::output::clip;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests may queue for long, but not forever without any data.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(600);
/// The maximum number of characters of an error message that is shown.
const MESSAGE: usize = 300;

/// Returns an HTTP agent. It uses the proxy that the environment names, unless `directly` is set.
pub(super) fn agent(directly: bool) -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .user_agent(concat!("incant/", env!("CARGO_PKG_VERSION")))
        .http_status_as_error(false)
        .timeout_resolve(Some(CONNECT_TIMEOUT))
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(SILENCE_TIMEOUT))
        .timeout_per_read(Some(SILENCE_TIMEOUT));
    let config = match directly {
        true => config.proxy(None),
        false => config,
    };
    config.build().new_agent()
}

/// Adds the key to a request, if there is one.
pub(super) fn authorized<B>(
    request: ureq::RequestBuilder<B>,
    key: Option<&str>,
) -> ureq::RequestBuilder<B> {
    match key {
        Some(key) => request.header(header::AUTHORIZATION, format!("Bearer {key}")),
        None => request,
    }
}

/// Returns the id of the first model that the server at `base` lists.
pub(super) fn first_model(
    agent: &ureq::Agent,
    base: &str,
    key: Option<&str>,
) -> anyhow::Result<String> {
    #[derive(Deserialize)]
    struct Model {
        id: String,
    }
    #[derive(Deserialize)]
    struct List {
        data: Vec<Model>,
    }
    let url = format!("{base}/v1/models");
    let mut response = good(&url, authorized(agent.get(&url), key).call())?;
    let text = response.body_mut().read_to_string();
    let text = text.map_err(|error| anyhow!("{url}: {}", plainly(error)))?;
    let list: List = parse(&url, &text)?;
    let first = list.data.into_iter().next();
    let first = first.with_context(|| format!("{url}: the server lists no model"))?;
    Ok(first.id)
}

/// Returns a successful response, or the error that the server reports.
pub(super) fn good(
    url: &str,
    result: Result<Response<ureq::Body>, ureq::Error>,
) -> anyhow::Result<Response<ureq::Body>> {
    let mut response = result.map_err(|error| anyhow!("{url}: {}", plainly(error)))?;
    let status = response.status();
    if !status.is_success() {
        // If the body cannot be read, the status must suffice.
        let body = response.body_mut().read_to_string().unwrap_or_default();
        let json: Option<Value> = serde_json::from_str(&body).ok();
        let said = json.as_ref().and_then(error_message);
        let said = said.unwrap_or_else(|| body.trim().to_owned());
        let said = clip(&said, MESSAGE);
        bail!("{url}: {status}: {said}");
    }
    Ok(response)
}

/// Returns the message of the value of the field `error`, cut short.
pub(super) fn message(error: &Value) -> String {
    let message = error_message(&json!({"error": error}));
    clip(&message.unwrap_or_default(), MESSAGE)
}

pub(super) fn parse<T: DeserializeOwned>(url: &str, text: &str) -> anyhow::Result<T> {
    serde_json::from_str(text)
        .map_err(|error| anyhow!("{url}: {error} in {:?}", clip(text, MESSAGE)))
}

/// Returns the text of an error without the category that the library puts first.
pub(super) fn plainly(error: ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) => error.to_string(),
        ureq::Error::Timeout(phase) => format!("no answer in time ({phase})"),
        error => error.to_string(),
    }
}
