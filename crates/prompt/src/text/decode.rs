//! A UTF-8 streaming decoder: text from the bytes of tokens, as they arrive.
//!
//! A token may end inside a character. An incomplete character waits for the next token; bytes
//! that can no longer become a character are replaced. The concatenation of all returned texts
//! equals [`String::from_utf8_lossy`] of all bytes, however they were split.

/// Decodes a stream of bytes as UTF-8 without splitting a character.
///
/// ```
/// use incant_prompt::text::decode::StreamDecoder;
///
/// let mut decoder = StreamDecoder::new();
/// assert_eq!(decoder.push(b"na\xC3"), "na");
/// assert_eq!(decoder.push(b"\xAFve \xF0\x9F"), "ïve ");
/// assert_eq!(decoder.finish(), "\u{FFFD}");
/// ```
#[derive(Clone, Debug, Default)]
pub struct StreamDecoder {
    /// The beginning of a character: at most three bytes.
    pending: Vec<u8>,
}

impl StreamDecoder {
    /// Creates a decoder.
    pub fn new() -> StreamDecoder {
        StreamDecoder::default()
    }

    /// Takes the next bytes and returns the text they complete, which may be empty.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::with_capacity(self.pending.len());
        let mut rest = self.pending.as_slice();
        let waiting = loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    break 0;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    // The error tells that this part is valid: nothing is replaced here.
                    text.push_str(&String::from_utf8_lossy(valid));
                    match error.error_len() {
                        Some(invalid) => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            rest = &after[invalid..];
                        }
                        None => break after.len(),
                    }
                }
            }
        };
        self.pending.drain(..self.pending.len() - waiting);
        text
    }

    /// The number of bytes that wait for the rest of their character.
    ///
    /// If there are any, the text so far does not contain all of the last token.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Ends the stream: an incomplete character becomes one U+FFFD. The decoder can then be
    /// used for another stream.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Bytes with many whole characters, partial characters and invalid bytes.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            any::<char>().prop_map(|c| c.to_string().into_bytes()),
            (any::<char>(), 1usize..4).prop_map(|(c, n)| {
                let mut cut = c.to_string().into_bytes();
                cut.truncate(n);
                cut
            }),
            vec(prop_oneof![any::<u8>(), 0x80u8..0xC0, 0xE0u8..=0xFF], 0..4),
        ];
        vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn the_pieces_are_the_whole(bytes in bytes(), lengths in vec(0usize..5, 1..20)) {
            let mut decoder = StreamDecoder::new();
            let mut text = String::new();
            let mut rest = bytes.as_slice();
            for &length in lengths.iter().cycle().take(bytes.len() * 20) {
                let (piece, after) = rest.split_at(length.min(rest.len()));
                rest = after;
                text += &decoder.push(piece);
                prop_assert!(decoder.pending() <= 3);
            }
            text += &decoder.push(rest);
            text += &decoder.finish();
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn nothing_waits_that_is_decided(bytes in bytes()) {
            let mut decoder = StreamDecoder::new();
            let mut sent = String::new();
            for (end, byte) in (1..).zip(&bytes) {
                sent += &decoder.push(&[*byte]);
                if std::str::from_utf8(&bytes[..end]).is_ok() {
                    prop_assert_eq!(decoder.pending(), 0);
                    prop_assert_eq!(sent.as_bytes(), &bytes[..end]);
                }
            }
        }
    }

    #[test]
    fn a_character_comes_with_its_last_byte() {
        let mut decoder = StreamDecoder::new();
        let shown: Vec<String> = "é🦀".bytes().map(|b| decoder.push(&[b])).collect();
        assert_eq!(shown, ["", "é", "", "", "", "🦀"]);
        assert_eq!(decoder.finish(), "");
    }

    #[test]
    fn what_cannot_become_a_character_does_not_wait() {
        let mut decoder = StreamDecoder::new();
        assert_eq!(decoder.push(b"\xE3\x81"), "");
        assert_eq!(decoder.push(b"a"), "\u{FFFD}a");
        assert_eq!(decoder.push(b"\xFF"), "\u{FFFD}");
        // A surrogate is not a character; each of its bytes is replaced.
        assert_eq!(decoder.push(b"\xED\xA0"), "\u{FFFD}\u{FFFD}");
        assert_eq!(decoder.push(b"\xE3\x81"), "");
        assert_eq!(decoder.finish(), "\u{FFFD}");
        assert_eq!(decoder.finish(), "");
    }
}
