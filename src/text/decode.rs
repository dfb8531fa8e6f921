//! Stand-in.

/// Stand-in.
#[derive(Debug, Default)]
pub struct StreamDecoder {
    waiting: Vec<u8>,
}

impl StreamDecoder {
    /// New.
    pub fn new() -> StreamDecoder {
        StreamDecoder::default()
    }

    /// Bytes in, whole characters out.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.waiting.extend_from_slice(bytes);
        let mut out = String::new();
        loop {
            match std::str::from_utf8(&self.waiting) {
                Ok(text) => {
                    out.push_str(text);
                    self.waiting.clear();
                    return out;
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    out.push_str(&String::from_utf8_lossy(&self.waiting[..valid]));
                    let bad = error.error_len();
                    self.waiting.drain(..valid + bad.unwrap_or(0));
                    match bad {
                        Some(_) => out.push('\u{fffd}'),
                        None => return out,
                    }
                }
            }
        }
    }

    /// What waits becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.waiting)).into_owned()
    }
}
