//! A fake Hugging Face hub on a local port: it serves one file, well or badly, and records its
//! requests.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use incant::catalog::Hub;

/// The reply to a request.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// As requested, including ranges.
    Good,
    /// The whole file, whatever the range.
    Whole,
    /// As requested, but the connection closes after this number of bytes.
    Cut(usize),
    /// As requested, but nothing comes after this number of bytes; the connection stays open.
    Stall(usize),
    /// A range that was not requested.
    WrongRange,
    /// A part of the file, without its range.
    Unranged,
    /// At most this number of bytes of the requested range, as a range of their own.
    Piece(usize),
    /// The whole file without its length.
    Unmeasured,
    /// Only a status line.
    Status(&'static str),
    /// A redirect to another address.
    Redirect(String),
}

/// One request as received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) authorization: Option<String>,
}

pub(crate) struct FakeHub {
    pub(crate) endpoint: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl FakeHub {
    /// Serves `file`: with the given replies in order, then with good ones.
    pub(crate) fn new(file: &[u8], replies: &[Reply]) -> FakeHub {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let requests: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (file, replies) = (file.to_vec(), replies.to_vec());
        let record = Arc::clone(&requests);
        // The thread ends with the test binary.
        thread::spawn(move || {
            let mut replies = replies.into_iter();
            for stream in listener.incoming().flatten() {
                let reply = replies.next().unwrap_or(Reply::Good);
                // Some tests disconnect intentionally.
                let _ = answer(stream, &file, reply, &record);
            }
        });
        FakeHub {
            endpoint: format!("http://{address}"),
            requests,
        }
    }

    pub(crate) fn hub(&self) -> Hub {
        Hub {
            endpoint: self.endpoint.clone(),
            token: None,
        }
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("no test holds it").clone()
    }

    /// The requested ranges, in order.
    pub(crate) fn ranges(&self) -> Vec<Option<String>> {
        self.requests()
            .into_iter()
            .map(|request| request.range)
            .collect()
    }
}

fn answer(
    mut stream: TcpStream,
    file: &[u8],
    reply: Reply,
    record: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    let request = read_request(&stream)?;
    let asked: Option<usize> = request.range.as_deref().and_then(|range| {
        range
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse()
            .ok()
    });
    record.lock().expect("no test holds it").push(request);

    let total = file.len();
    let (first, limit) = match reply {
        Reply::Status(status) => {
            return write!(
                stream,
                "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
        }
        Reply::Redirect(to) => {
            return write!(
                stream,
                "HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
        }
        Reply::Unmeasured => {
            write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")?;
            return stream.write_all(file);
        }
        Reply::Unranged => {
            let body = &file[asked.unwrap_or(0)..];
            let length = body.len();
            write!(
                stream,
                "HTTP/1.1 206 Partial Content\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
            )?;
            return stream.write_all(body);
        }
        Reply::Whole => (None, total),
        Reply::WrongRange => (Some(asked.unwrap_or(0) + 1), total),
        Reply::Piece(_) => (Some(asked.unwrap_or(0)), total),
        Reply::Good => (asked, total),
        Reply::Cut(limit) | Reply::Stall(limit) => (asked, limit),
    };
    let start = first.unwrap_or(0);
    let end = match reply {
        Reply::Piece(limit) => total.min(start + limit),
        _ => total,
    };
    match first {
        None => write!(stream, "HTTP/1.1 200 OK\r\n")?,
        Some(_) => write!(
            stream,
            "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes {start}-{}/{total}\r\n",
            end - 1
        )?,
    }
    let body = &file[start..end];
    write!(
        stream,
        "content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    )?;
    stream.write_all(&body[..limit.min(body.len())])?;
    stream.flush()?;
    if let Reply::Stall(_) = reply {
        thread::sleep(Duration::from_secs(20));
    }
    Ok(())
}

fn read_request(stream: &TcpStream) -> std::io::Result<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let mut request = Request {
        path: first.split(' ').nth(1).unwrap_or_default().to_owned(),
        range: None,
        authorization: None,
    };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else {
            break;
        };
        match name.to_lowercase().as_str() {
            "range" => request.range = Some(value.to_owned()),
            "authorization" => request.authorization = Some(value.to_owned()),
            _ => {}
        }
    }
    Ok(request)
}
