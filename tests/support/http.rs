//! The requests that fake servers receive.

use std::io::{self, BufRead};

/// One request as received.
#[derive(Debug, Default)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
    pub(crate) body: Vec<u8>,
}

/// Reads the next request of a connection; `None` if the client has closed it.
pub(crate) fn next_request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut request = Request::default();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let line = line.trim_end();
        match line.split_once(": ") {
            _ if line.is_empty() => break,
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                request.body = vec![0; value.parse().expect("a number")];
            }
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                request.authorization = Some(value.to_owned());
            }
            Some(_) => {}
            None => request.path = line.split(' ').nth(1).unwrap_or_default().to_owned(),
        }
    }
    reader.read_exact(&mut request.body)?;
    Ok(Some(request))
}
