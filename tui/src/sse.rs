//! Server-sent events out of bytes as they arrive.

/// Collects bytes and gives out the data of each event that is complete.
#[derive(Debug, Default)]
pub struct Events {
    buffer: Vec<u8>,
    data: String,
}

impl Events {
    /// Adds what has arrived; returns the data of the events that it completes.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        self.buffer.extend_from_slice(bytes);
        let mut events = Vec::new();
        let mut from = 0;
        while let Some(length) = self.buffer[from..].iter().position(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(&self.buffer[from..from + length]).into_owned();
            from += length + 1;
            let line = line.strip_suffix('\r').unwrap_or(&line);
            if let Some(value) = line.strip_prefix("data:") {
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(value.strip_prefix(' ').unwrap_or(value));
            } else if line.is_empty() && !self.data.is_empty() {
                events.push(std::mem::take(&mut self.data));
            }
        }
        self.buffer.drain(..from);
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = ": hello\r\ndata: {\"a\":\"日本\"}\r\n\r\nevent: x\ndata:one\ndata: two\n\ndata: [DONE]\n\n";

    #[test]
    fn it_does_not_matter_where_the_bytes_are_cut() {
        for size in 1..STREAM.len() {
            let mut events = Events::default();
            let parts = STREAM.as_bytes().chunks(size);
            let all: Vec<String> = parts.flat_map(|part| events.push(part)).collect();
            assert_eq!(
                all,
                ["{\"a\":\"日本\"}", "one\ntwo", "[DONE]"],
                "cut by {size}"
            );
        }
    }

    #[test]
    fn an_event_that_is_not_complete_waits() {
        let mut events = Events::default();
        assert!(events.push(b"data: {\"a\"").is_empty());
        assert!(events.push(b": 1}\n").is_empty());
        assert_eq!(events.push(b"\n"), ["{\"a\": 1}"]);
    }
}
