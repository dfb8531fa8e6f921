//! What the commands share that ask servers of OpenAI's REST API.

use std::io::{self, BufRead};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::http::{Response, header};

use super::output::clip;

pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Many requests may wait for one another, but something must come some time.
pub(super) const SILENCE_TIMEOUT: Duration = Duration::from_secs(600);
/// A message of an error has its point before this many characters.
pub(super) const MESSAGE: usize = 300;

/// The address of a server, which may have been given with a slash or `/v1` behind it.
pub(super) fn base(url: &str) -> &str {
    let url = url.trim_end_matches('/');
    url.strip_suffix("/v1").unwrap_or(url)
}

/// The request with the key, if there is one.
pub(super) fn authorized<B>(
    request: ureq::RequestBuilder<B>,
    key: Option<&str>,
) -> ureq::RequestBuilder<B> {
    match key {
        Some(key) => request.header(header::AUTHORIZATION, format!("Bearer {key}")),
        None => request,
    }
}

/// The id of the first model that the server at `base` lists.
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

/// Server-sent events, of which only the data matters here.
pub(super) struct Events<R> {
    reader: R,
    line: Vec<u8>,
}

impl<R: BufRead> Events<R> {
    pub(super) fn new(reader: R) -> Events<R> {
        let line = Vec::new();
        Events { reader, line }
    }

    /// The data of the next event as soon as it is complete. The end of the
    /// stream completes one too.
    pub(super) fn next(&mut self) -> io::Result<Option<String>> {
        let mut data: Option<String> = None;
        loop {
            self.line.clear();
            let read = self.reader.read_until(b'\n', &mut self.line)?;
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

/// A response that is no failure.
pub(super) fn good(
    url: &str,
    result: Result<Response<ureq::Body>, ureq::Error>,
) -> anyhow::Result<Response<ureq::Body>> {
    let mut response = result.map_err(|error| anyhow!("{url}: {}", plainly(error)))?;
    let status = response.status();
    if !status.is_success() {
        // A body that cannot be read says no more than the status.
        let body = response.body_mut().read_to_string().unwrap_or_default();
        let json: Option<Value> = serde_json::from_str(&body).ok();
        let said = json.as_ref().and_then(|json| message(&json["error"]));
        let said = said.unwrap_or_else(|| clip(body.trim(), MESSAGE));
        bail!("{url}: {status}: {said}");
    }
    Ok(response)
}

/// What an error's JSON says: OpenAI's object, or just a text.
pub(super) fn message(error: &Value) -> Option<String> {
    let text = error["message"].as_str().or(error.as_str())?;
    Some(clip(text, MESSAGE))
}

pub(super) fn parse<T: DeserializeOwned>(url: &str, text: &str) -> anyhow::Result<T> {
    serde_json::from_str(text)
        .map_err(|error| anyhow!("{url}: {error} in {:?}", clip(text, MESSAGE)))
}

/// The library's errors lead with the name of a category; a person needs the rest.
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
        // As small as reads can be.
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
    fn a_server_is_named_by_its_address_alone() {
        for url in [
            "http://a:1",
            "http://a:1/",
            "http://a:1/v1",
            "http://a:1/v1/",
        ] {
            assert_eq!(base(url), "http://a:1");
        }
    }
}
