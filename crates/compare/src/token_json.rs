//! Token JSON: tokens and their log-probabilities as JSON can represent them.

/// Stands for the log-probability of a probability of zero: JSON has no infinity.
pub const ZERO_PROBABILITY: f32 = -9999.0;

/// Clamps a log-probability to a number that JSON can represent.
pub fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() {
        logprob.max(ZERO_PROBABILITY)
    } else {
        ZERO_PROBABILITY
    }
}

/// Returns a token's bytes as a string. Bytes that are only part of a character are written as
/// `bytes:\xf0\x9f`, as OpenAI does; plain ASCII among them stays.
pub fn token_name(bytes: &[u8]) -> String {
    use std::fmt::Write;
    match str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |mut name, byte| {
            match byte {
                b'\\' | ..b' ' | 0x7f.. => {
                    write!(name, "\\x{byte:02x}").expect("a String takes everything")
                }
                _ => name.push(char::from(*byte)),
            }
            name
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_character_is_named_by_its_bytes() {
        assert_eq!(token_name("né".as_bytes()), "né");
        assert_eq!(token_name(b""), "");
        assert_eq!(token_name(b"\xf0\x9f"), "bytes:\\xf0\\x9f");
        assert_eq!(token_name(b" a\\\n\xe2"), "bytes: a\\x5c\\x0a\\xe2");
    }

    #[test]
    fn json_never_sees_an_infinity() {
        for impossible in [f32::NEG_INFINITY, f32::NAN, f32::INFINITY, -1e30] {
            assert_eq!(finite(impossible), -9999.0);
        }
        assert_eq!(finite(-0.25), -0.25);
    }
}
