//! The HTTP client for servers with OpenAI's REST API, shared by several commands.

use std::io::{self, BufRead, ErrorKind, Read};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::http::{Response, Uri, header};

use super::output::clip;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests may queue for long, but not forever without any data.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(600);
/// The maximum number of characters of an error message that is shown.
pub(super) const MESSAGE: usize = 300;

/// The maximum length of a line in a stream of events, in bytes.
const LONGEST_LINE: u64 = 4 << 20;

/// Returns the address of a server, which may be given with a final slash or `/v1`, and without
/// `http://`.
pub(super) fn base(url: &str) -> String {
    let url = url.trim_end_matches('/');
    let url = url.strip_suffix("/v1").unwrap_or(url);
    match url.contains("://") {
        true => url.to_owned(),
        false => format!("http://{url}"),
    }
}

/// Returns whether the server at `base` is on this machine.
pub(super) fn is_local(base: &str) -> bool {
    let uri = base.parse::<Uri>().ok();
    let host = uri.as_ref().and_then(Uri::host).unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

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

/// A reader of server-sent events (SSE) that ignores all fields but the data.
pub(super) struct Events<R> {
    reader: R,
    line: Vec<u8>,
}

impl<R: BufRead> Events<R> {
    pub(super) fn new(reader: R) -> Events<R> {
        let line = Vec::new();
        Events { reader, line }
    }

    /// Returns the data of the next event as soon as it is complete. The end of the stream
    /// completes an event too.
    pub(super) fn next(&mut self) -> io::Result<Option<String>> {
        let mut data: Option<String> = None;
        loop {
            self.line.clear();
            let mut line = (&mut self.reader).take(LONGEST_LINE);
            let read = line.read_until(b'\n', &mut self.line)?;
            if line.limit() == 0 {
                let endless = "a line of the stream of events has no end";
                return Err(io::Error::new(ErrorKind::InvalidData, endless));
            }
            let line = String::from_utf8_lossy(&self.line);
            let line = line.trim_end_matches(['\r', '\n']);
            if line.is_empty() && (data.is_some() || read == 0) {
                return Ok(data);
            }
            if let Some(value) = line.strip_prefix("data:") {
                let value = value.strip_prefix(' ').unwrap_or(value);
                data = Some(match data {
                    Some(before) => before + "\n" + value,
                    None => value.to_owned(),
                });
            }
        }
    }
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
        let said = json.as_ref().and_then(|json| message(&json["error"]));
        let said = said.unwrap_or_else(|| clip(body.trim(), MESSAGE));
        bail!("{url}: {status}: {said}");
    }
    Ok(response)
}

/// Returns the message of a JSON error: OpenAI's object, or a plain string.
pub(super) fn message(error: &Value) -> Option<String> {
    let text = error["message"].as_str().or(error.as_str())?;
    Some(clip(text, MESSAGE))
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

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    fn events(text: &str) -> Vec<String> {
        // The smallest possible reads.
        let mut events = Events::new(BufReader::with_capacity(1, text.as_bytes()));
        let mut all = Vec::new();
        while let Some(data) = events.next().expect("memory can be read") {
            all.push(data);
        }
        all
    }

    #[test]
    fn only_the_data_of_events_counts() {
        assert_eq!(events(""), [""; 0]);
        assert_eq!(events("data: a\n\ndata:b\n\n"), ["a", "b"]);
        assert_eq!(events("data: a\r\n\r\ndata: b\r\n\r\n"), ["a", "b"]);
        let with_fields = ": hello\n\nevent: x\nid: 1\ndata: a\ndata:  b\n\n\n";
        assert_eq!(events(with_fields), ["a\n b"]);
        assert_eq!(events("data: a\n\ndata: cut"), ["a", "cut"]);
    }

    #[test]
    fn a_line_without_an_end_is_read_so_far_and_no_further() {
        let mut events = Events::new(BufReader::new(io::repeat(b'a')));
        let error = events.next().expect_err("it has no end");
        assert_eq!(error.kind(), ErrorKind::InvalidData);
    }

    #[test]
    fn a_server_on_this_machine_is_known_by_its_address() {
        for url in ["localhost:1", "http://127.0.0.1:8080", "https://[::1]:1/v1"] {
            assert!(is_local(&base(url)), "{url}");
        }
        for url in ["example.org", "http://10.0.0.1", "http://localhost.example"] {
            assert!(!is_local(&base(url)), "{url}");
        }
    }

    #[test]
    fn a_server_is_named_by_its_address_alone() {
        for url in [
            "a:1",
            "http://a:1",
            "http://a:1/",
            "http://a:1/v1",
            "http://a:1/v1/",
        ] {
            assert_eq!(base(url), "http://a:1");
        }
    }
}
