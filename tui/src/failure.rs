//! Failed requests: HTTP errors, connection errors and broken streams, with a message that fits
//! a screen.

use incant_api::error_message;
use serde_json::Value;

/// Maximum characters of a failure's message.
const LONGEST_MESSAGE: usize = 1000;

/// The code of a failure if a path is not the expected endpoint.
const NO_ENDPOINT: &str = "no_such_endpoint";

/// The code of a failure if a stream ended early.
const TORN: &str = "torn";

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The HTTP status, if there was a response.
    pub status: Option<u16>,
    /// The server's message, or what is wrong with the connection.
    pub message: String,
    /// The server's machine-readable error code, if there is one.
    pub code: Option<String>,
}

impl Failure {
    /// A failure without a response from a server.
    pub fn local(message: impl Into<String>) -> Failure {
        Failure {
            status: None,
            message: excerpt(message.into()),
            code: None,
        }
    }

    /// A stream that ended before its answer did.
    pub fn torn() -> Failure {
        Failure {
            code: Some(TORN.to_owned()),
            ..Failure::local("the server closed the connection before its answer was done")
        }
    }

    /// Whether a stream ended before its answer did.
    pub fn is_torn(&self) -> bool {
        self.code.as_deref() == Some(TORN)
    }

    /// A response from something that is not the expected endpoint.
    pub fn missing(path: &str) -> Failure {
        Failure {
            code: Some(NO_ENDPOINT.to_owned()),
            ..Failure::local(format!("what the server has at {path} is something else"))
        }
    }

    /// The failure that a response with an error status describes.
    pub fn answered(status: u16, body: &str) -> Failure {
        let json: Value = serde_json::from_str(body).unwrap_or_default();
        let message = match error_message(&json) {
            Some(message) => message,
            None if body.trim().is_empty() => "the answer has no body".to_owned(),
            None => body.trim().to_owned(),
        };
        Failure {
            status: Some(status),
            message: excerpt(message),
            code: json["error"]["code"].as_str().map(str::to_owned),
        }
    }

    /// Whether the server has no such endpoint. An existing endpoint that does not know a model
    /// also answers 404.
    pub fn is_missing(&self) -> bool {
        match self.code.as_deref() {
            Some("model_not_found") => false,
            Some(NO_ENDPOINT) => true,
            _ => matches!(self.status, Some(404 | 405 | 501)),
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.status {
            Some(status) => write!(f, "{status}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// The beginning of a message, if it is long.
pub(crate) fn excerpt(mut message: String) -> String {
    if let Some((end, _)) = message.char_indices().nth(LONGEST_MESSAGE) {
        message.truncate(end);
        message.push('…');
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_shown_in_the_servers_words() {
        let shown = |status, body| Failure::answered(status, body).to_string();
        let body = r#"{"error": {"message": "no such model", "type": "x"}}"#;
        assert_eq!(shown(404, body), "404: no such model");
        assert_eq!(shown(500, r#"{"error": "boom"}"#), "500: boom");
        assert_eq!(
            shown(502, "<h1>Bad gateway</h1>\n"),
            "502: <h1>Bad gateway</h1>"
        );
        assert_eq!(shown(500, ""), "500: the answer has no body");
    }

    #[test]
    fn a_missing_model_is_no_missing_endpoint() {
        let body = r#"{"error": {"message": "x", "code": "model_not_found"}}"#;
        assert!(!Failure::answered(404, body).is_missing());
        let body = r#"{"error": {"message": "File Not Found", "code": 404}}"#;
        assert!(Failure::answered(404, body).is_missing());
    }

    #[test]
    fn a_long_message_is_told_by_its_beginning() {
        let body = "語".repeat(100_000);
        for failure in [Failure::answered(500, &body), Failure::local(body.clone())] {
            assert_eq!(failure.message.chars().count(), LONGEST_MESSAGE + 1);
        }
    }
}
