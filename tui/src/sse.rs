//! A parser of server-sent events (SSE) from bytes as they arrive, following the HTML standard:
//! lines end in LF, CR or both, a byte order mark may come first, and other fields and comments
//! are ignored.

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
}
