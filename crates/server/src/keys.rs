//! API keys, required for all endpoints but `/health` and the page.

use std::fmt;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, header};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use super::App;
use super::errors::ApiError;
use super::routes::{health, page};

/// Another header for a key, which clients of llama.cpp use.
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The keys that a server accepts; without any it is open to everyone.
///
/// Only their hashes are kept. Each request is compared with all of them in constant time, so that
/// the time of an answer reveals neither a key's length nor how much of a guess is right.
#[derive(Clone, Default)]
pub struct ApiKeys(Vec<[u8; 32]>);

/// The reason why a text is not a list of keys. Never contains the text itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text has only white space and separators.
    #[error("there is no key in it")]
    None,
    /// A key that no client could send.
    #[error("a key consists of visible ASCII characters, without spaces")]
    Character,
}

impl ApiKeys {
    /// Adds the keys of `text`, separated by commas or line breaks. A byte order mark before the
    /// first key is skipped.
    ///
    /// # Errors
    /// There is no key in it, or one that no client could send.
    pub fn add(&mut self, text: &str) -> Result<(), KeyError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let keys: Vec<&str> = text
            .split([',', '\n'])
            .map(str::trim)
            .filter(|key| !key.is_empty())
            .collect();
        if keys.is_empty() {
            return Err(KeyError::None);
        }
        for key in keys {
            if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(KeyError::Character);
            }
            self.0.push(Sha256::digest(key).into());
        }
        Ok(())
    }

    /// Returns whether the server requires no key.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns whether `key` is one of them.
    fn contains(&self, key: &[u8]) -> bool {
        let hash: [u8; 32] = Sha256::digest(key).into();
        let among = |known: Choice, one: &[u8; 32]| known | one.ct_eq(&hash);
        self.0.iter().fold(Choice::from(0), among).into()
    }
}

/// Shows only their number, since this may end up in a log.
impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKeys({})", self.0.len())
    }
}

/// Refuses requests without a valid key, if the server requires keys. The health check is open,
/// since load balancers send no key, and so is the page, which a browser opens without one.
pub(crate) async fn check(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let keys = &app.options.keys;
    let open = keys.is_empty() || [health::PATH, page::PATH].contains(&request.uri().path());
    if open || key(request.headers()).is_some_and(|key| keys.contains(key)) {
        next.run(request).await
    } else {
        ApiError::Unauthorized.into_response()
    }
}

/// Returns the key that a client sends: its bearer token, or the header of other servers' clients.
pub(crate) fn key(headers: &HeaderMap) -> Option<&[u8]> {
    let other = || headers.get(API_KEY).map(|key| key.as_bytes().trim_ascii());
    bearer(headers).or_else(other)
}

/// Returns the token of `Authorization: Bearer TOKEN`.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    scheme
        .eq_ignore_ascii_case(b"Bearer ")
        .then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn keys(texts: &[&str]) -> ApiKeys {
        let mut keys = ApiKeys::default();
        for text in texts {
            keys.add(text).expect("keys");
        }
        keys
    }

    #[test]
    fn commas_and_line_breaks_separate_keys_and_space_around_them_is_none_of_theirs() {
        let keys = keys(&["one, two\r\n\r\n\tthree \n", "four"]);
        for known in ["one", "two", "three", "four"] {
            assert!(keys.contains(known.as_bytes()), "{known}");
        }
        for unknown in ["", "on", "onee", "One", "one, two", " one"] {
            assert!(!keys.contains(unknown.as_bytes()), "{unknown:?}");
        }
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_key() {
        let keys = keys(&["\u{feff}one\ntwo\n"]);
        assert!(keys.contains(b"one") && keys.contains(b"two"));
        let error = ApiKeys::default().add("\u{feff}\n").unwrap_err();
        assert_eq!(error, KeyError::None);
    }

    #[test]
    fn what_holds_no_key_is_an_error_and_not_an_open_server() {
        let refused = |text| ApiKeys::default().add(text).unwrap_err();
        for text in ["", " ", "\n", ",,", " \r\n, "] {
            assert_eq!(refused(text), KeyError::None, "{text:?}");
        }
        for text in ["two words", "ключ", "a\u{7f}b"] {
            assert_eq!(refused(text), KeyError::Character, "{text:?}");
        }
    }

    #[test]
    fn a_key_is_never_shown() {
        let keys = keys(&["sesame"]);
        assert_eq!(format!("{keys:?}"), "ApiKeys(1)");
        let error = ApiKeys::default().add("open sesame").unwrap_err();
        assert!(!error.to_string().contains("sesame"), "{error}");
    }

    #[test]
    fn only_a_bearers_token_counts() {
        let sent = |value: &[u8]| {
            let value = HeaderValue::from_bytes(value).expect("a value");
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value)]);
            bearer(&headers).map(<[u8]>::to_vec)
        };
        for value in ["Bearer key", "bearer key", "BEARER  key "] {
            assert_eq!(sent(value.as_bytes()).as_deref(), Some(&b"key"[..]));
        }
        for value in [&b"key"[..], b"Basic key", b"Bearerkey", b"Bearer", b"\xff"] {
            assert_eq!(sent(value), None);
        }
        assert_eq!(bearer(&HeaderMap::new()), None);
    }
}
