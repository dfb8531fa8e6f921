//! Server-sent events (SSE), framed as in OpenAI's API: [`Frames`] writes them, [`Events`] parses
//! them from bytes as they arrive, and [`EventReader`] from a blocking reader.
//!
//! Parsing follows the HTML standard: lines end in LF, CR or both, a byte order mark may come
//! first, and other fields and comments are ignored.

use std::collections::VecDeque;
use std::io::{self, BufRead, ErrorKind};

use serde::Serialize;

/// The end of every stream that did not fail.
const DONE: &[u8] = b"data: [DONE]\n\n";

/// Events that are sent together.
#[derive(Debug, Default)]
pub struct Frames(Vec<u8>);

impl Frames {
    /// Adds `data: {json}` and an empty line. JSON has no raw line breaks, so one line is always
    /// enough.
    ///
    /// # Panics
    /// The value cannot be serialized.
    pub fn push(&mut self, data: &impl Serialize) {
        self.0.extend_from_slice(b"data: ");
        serde_json::to_writer(&mut self.0, data)
            .expect("wire types serialize, and a Vec takes everything");
        self.0.extend_from_slice(b"\n\n");
    }

    /// Adds the end marker.
    pub fn done(&mut self) {
        self.0.extend_from_slice(DONE);
    }

    /// Returns whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Frames> for Vec<u8> {
    fn from(frames: Frames) -> Vec<u8> {
        frames.0
    }
}

/// Maximum size in bytes of an event, and of each line. Reading stops if a server exceeds it.
pub const LONGEST: usize = 4 << 20;

/// An event is longer than [`LONGEST`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server sent an event of more than {} MiB", LONGEST >> 20)]
pub struct TooLong;

/// The byte order mark, in UTF-8.
const MARK: &[u8] = "\u{feff}".as_bytes();

/// Collects bytes and returns the data of each complete event. Takes linear time, however small
/// the pieces are.
#[derive(Debug, Default)]
pub struct Events {
    /// The incomplete line.
    line: Vec<u8>,
    /// The data of the incomplete event; `None` if it has none so far.
    data: Option<String>,
    /// Whether a first line was read, before which there may be a byte order mark.
    begun: bool,
    /// Whether the last byte was CR, so that a following LF does not end another line.
    returned: bool,
}

impl Events {
    /// Adds bytes that have arrived; returns the data of the events that they complete.
    ///
    /// # Errors
    /// An event is too long.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<Vec<String>, TooLong> {
        let mut events = Vec::new();
        while let Some(first) = bytes.first() {
            if std::mem::take(&mut self.returned) && *first == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let end = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let part = &bytes[..end.unwrap_or(bytes.len())];
            let held = self.line.len() + self.data.as_ref().map_or(0, String::len);
            if held + part.len() > LONGEST {
                return Err(TooLong);
            }
            self.line.extend_from_slice(part);
            let Some(end) = end else {
                break;
            };
            self.returned = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
            events.extend(self.end_line());
        }
        Ok(events)
    }

    /// Ends the stream and returns an event of whole lines whose final empty line is missing,
    /// which some servers omit.
    pub fn finish(&mut self) -> Option<String> {
        self.data.take()
    }

    /// Handles a complete line; returns the data of the event that it ends.
    fn end_line(&mut self) -> Option<String> {
        let mut line = self.line.as_slice();
        if !std::mem::replace(&mut self.begun, true) {
            line = line.strip_prefix(MARK).unwrap_or(line);
        }
        if line.is_empty() {
            self.line.clear();
            return self.data.take();
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (field, value) = line.split_at(colon.unwrap_or(line.len()));
        if field == b"data" {
            let value = value.strip_prefix(b":").unwrap_or(value);
            let value = value.strip_prefix(b" ").unwrap_or(value);
            let value = String::from_utf8_lossy(value);
            match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(&value);
                }
                none => *none = Some(value.into_owned()),
            }
        }
        self.line.clear();
        None
    }
}

/// Reads the data of events from a blocking reader, each as soon as it is complete.
#[derive(Debug)]
pub struct EventReader<R> {
    reader: R,
    events: Events,
    /// Complete events that were not returned yet.
    ready: VecDeque<String>,
}

impl<R: BufRead> EventReader<R> {
    /// Creates a reader of the events that `reader` yields.
    pub fn new(reader: R) -> EventReader<R> {
        EventReader {
            reader,
            events: Events::default(),
            ready: VecDeque::new(),
        }
    }

    /// Returns the data of the next event, or `None` at the end of the stream.
    ///
    /// # Errors
    /// Reading fails, or an event is too long.
    pub fn next_event(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            let bytes = self.reader.fill_buf()?;
            if bytes.is_empty() {
                return Ok(self.events.finish());
            }
            let events = self.events.push(bytes);
            let read = bytes.len();
            self.reader.consume(read);
            let events = events.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
            self.ready.extend(events);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything that the standard allows, and the data in it.
    const STREAM: &str = "\u{feff}: hello\r\ndata: {\"a\":\"日本\"}\r\n\r\nevent: x\ndata:one\n\
        data: two\ndata:  three\n\nid: 7\rdata\rdata:\r\rretry: 1\n\ndatax: no\ndata: [DONE]\n\n";
    const SAID: [&str; 4] = ["{\"a\":\"日本\"}", "one\ntwo\n three", "\n", "[DONE]"];

    fn read(events: &mut Events, parts: &[&[u8]]) -> Vec<String> {
        let all = parts.iter().flat_map(|part| events.push(part).unwrap());
        all.collect()
    }

    #[test]
    fn it_does_not_matter_where_the_bytes_are_cut() {
        for size in 1..STREAM.len() {
            let parts: Vec<&[u8]> = STREAM.as_bytes().chunks(size).collect();
            let all = read(&mut Events::default(), &parts);
            assert_eq!(all, SAID, "cut by {size}");
        }
    }

    #[test]
    fn lines_end_in_any_way() {
        for end in ["\n", "\r\n", "\r"] {
            let stream = format!("data: a{end}data: b{end}{end}data: c{end}{end}");
            let parts: Vec<&[u8]> = stream.as_bytes().chunks(1).collect();
            let all = read(&mut Events::default(), &parts);
            assert_eq!(all, ["a\nb", "c"], "{end:?}");
        }
    }

    #[test]
    fn an_event_that_is_not_complete_waits() {
        let mut events = Events::default();
        assert_eq!(read(&mut events, &[b"data: {\"a\"", b": 1}\n"]), [""; 0]);
        assert_eq!(read(&mut events, &[b"\n"]), ["{\"a\": 1}"]);
    }

    #[test]
    fn the_last_event_needs_whole_lines_but_no_empty_one() {
        let mut events = Events::default();
        assert_eq!(read(&mut events, &[b"data: a\ndata: b"]), [""; 0]);
        assert_eq!(events.finish().as_deref(), Some("a"));
        assert_eq!(events.finish(), None);
    }

    #[test]
    fn neither_a_line_nor_an_event_without_an_end_is_collected() {
        for piece in [
            &b"data: xxxxxxxxxxxxxxxxxxxxxxxxxx"[..],
            b"data: xxxxxxxxx\n",
            b"data\n",
        ] {
            let mut events = Events::default();
            let mut read = 0;
            // An empty line of data counts with its end.
            while events.push(piece).is_ok() {
                read += piece.len();
                assert!(read <= 6 * LONGEST, "{piece:?}");
            }
            assert!(events.line.capacity() <= 2 * LONGEST);
        }
    }

    #[test]
    fn comments_are_not_collected() {
        let mut events = Events::default();
        for _ in 0..3 {
            let comment = [b":".repeat(LONGEST / 2), b"\n".to_vec()].concat();
            assert_eq!(events.push(&comment), Ok(Vec::new()));
        }
        assert!(events.data.is_none());
    }

    #[test]
    fn a_line_break_in_a_text_does_not_break_the_frame() {
        let mut frames = Frames::default();
        assert!(frames.is_empty());
        frames.push(&serde_json::json!({"text": "a\n\r\n\u{2028}b"}));
        frames.done();
        let expected = "data: {\"text\":\"a\\n\\r\\n\u{2028}b\"}\n\ndata: [DONE]\n\n";
        assert_eq!(Vec::from(frames), expected.as_bytes());
    }

    #[test]
    fn frames_are_read_as_they_were_written() {
        let mut frames = Frames::default();
        let values = ["a", "two\nlines", "日本"];
        for value in values {
            frames.push(&value);
        }
        frames.done();
        let bytes = Vec::from(frames);
        let mut reader = EventReader::new(io::BufReader::with_capacity(1, &*bytes));
        for value in values {
            let event = reader.next_event().unwrap().expect("an event");
            assert_eq!(serde_json::from_str::<String>(&event).unwrap(), value);
        }
        assert_eq!(reader.next_event().unwrap().as_deref(), Some("[DONE]"));
        assert_eq!(reader.next_event().unwrap(), None);
    }

    #[test]
    fn a_reader_returns_every_event_and_the_last_one_without_its_empty_line() {
        let all = |text: &str| {
            let mut reader = EventReader::new(io::BufReader::with_capacity(1, text.as_bytes()));
            let mut events = Vec::new();
            while let Some(event) = reader.next_event().unwrap() {
                events.push(event);
            }
            events
        };
        assert_eq!(all(""), [""; 0]);
        assert_eq!(all("data: a\r\n\r\ndata:b\n\n"), ["a", "b"]);
        assert_eq!(all("data: a\n\ndata: b\n"), ["a", "b"]);
        assert_eq!(all("data: a\n\ndata: cut"), ["a"]);
    }

    #[test]
    fn a_reader_of_a_line_without_an_end_stops_reading() {
        let mut reader = EventReader::new(io::BufReader::new(io::repeat(b'a')));
        let error = reader.next_event().expect_err("it has no end");
        assert_eq!(error.kind(), ErrorKind::InvalidData);
    }
}
