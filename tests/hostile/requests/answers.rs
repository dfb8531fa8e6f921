//! Checks the form of answers, whatever was requested.

use serde_json::Value;

/// Checks all answers on a connection. Returns whether at least one is not a refusal.
pub(super) fn check(mut bytes: &[u8]) -> Result<bool, String> {
    let mut any = false;
    while !bytes.is_empty() {
        let end = bytes
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .ok_or("half a head")?;
        let head = str::from_utf8(&bytes[..end])
            .map_err(|_| "a head that is no text")?
            .to_lowercase();
        bytes = &bytes[end + 4..];
        let status: u16 = head
            .get(9..12)
            .and_then(|status| status.parse().ok())
            .ok_or("no status")?;
        if status == 100 {
            continue;
        }
        let header = |name: &str| {
            let line = head.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim_start_matches(':').trim())
        };
        let body = if header("transfer-encoding") == Some("chunked") {
            let (body, rest) = unchunk(bytes)?;
            bytes = rest;
            body
        } else {
            let length = header("content-length").map_or(Ok(bytes.len()), str::parse);
            let length = length.map_err(|_| "the length is not a number")?;
            // The answer to HEAD has no body, whatever its length.
            let (body, rest) = match bytes.split_at_checked(length) {
                Some(whole) => whole,
                None if bytes.is_empty() => (bytes, bytes),
                None => return Err("half a body".to_owned()),
            };
            bytes = rest;
            body.to_vec()
        };
        // hyper itself answers requests that it cannot parse; our answers have a request id.
        let ours = header("x-request-id").is_some();
        answer(status, header("content-type"), &body, ours)?;
        any |= status < 400;
    }
    Ok(any)
}

fn unchunk(mut bytes: &[u8]) -> Result<(Vec<u8>, &[u8]), String> {
    let mut body = Vec::new();
    loop {
        let end = bytes
            .windows(2)
            .position(|window| window == b"\r\n")
            .ok_or("half a chunk")?;
        let length = str::from_utf8(&bytes[..end])
            .ok()
            .and_then(|hex| usize::from_str_radix(hex, 16).ok());
        let length = length.ok_or("a chunk without a length")?;
        let (chunk, rest) = bytes[end + 2..]
            .split_at_checked(length)
            .ok_or("half a chunk")?;
        bytes = rest.strip_prefix(b"\r\n").ok_or("a chunk without an end")?;
        if length == 0 {
            return Ok((body, bytes));
        }
        body.extend_from_slice(chunk);
    }
}

/// Checks one answer.
fn answer(status: u16, kind: Option<&str>, body: &[u8], ours: bool) -> Result<(), String> {
    if status >= 500 {
        return Err(format!("status {status}"));
    }
    if !ours {
        let known = matches!(status, 400 | 414 | 431) && body.is_empty();
        return if known {
            Ok(())
        } else {
            Err(format!("a nameless answer of status {status}"))
        };
    }
    let json = || serde_json::from_slice::<Value>(body).map_err(|error| error.to_string());
    match kind {
        // The answer to HEAD.
        _ if body.is_empty() => Ok(()),
        Some("application/json") if status < 400 => json().map(|_| ()),
        Some("application/json") => is_error(&json()?),
        Some("text/event-stream") if status == 200 => {
            let text = str::from_utf8(body).map_err(|_| "a stream that is no text")?;
            for frame in text.split_terminator("\n\n") {
                let data = frame.strip_prefix("data: ").ok_or("not a frame")?;
                match data {
                    "[DONE]" => {}
                    data => {
                        _ = serde_json::from_str::<Value>(data)
                            .map_err(|error| error.to_string())?
                    }
                }
            }
            Ok(())
        }
        Some("text/html; charset=utf-8") if status == 200 => Ok(()),
        Some(kind) if status == 200 && kind.contains("openmetrics-text") => Ok(()),
        kind => Err(format!("status {status} with {kind:?}")),
    }
}

/// Checks that a body is an error in OpenAI's format.
fn is_error(body: &Value) -> Result<(), String> {
    let text = |key: &str, nullable: bool| {
        let value = &body["error"][key];
        value.is_string() || (nullable && value.is_null())
    };
    let keys = body["error"].as_object().map_or(0, serde_json::Map::len);
    match keys == 4
        && text("message", false)
        && text("type", false)
        && text("param", true)
        && text("code", true)
    {
        true => Ok(()),
        false => Err("an error of another shape".to_owned()),
    }
}
