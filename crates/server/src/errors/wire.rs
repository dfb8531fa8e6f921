//! The HTTP responses of failures: OpenAI's error object, status, `Retry-After`.
//!
//! Handlers return [`ApiError`]; [`ApiError::wire`] is the only place that knows which status,
//! `type` and `code` belong to which failure. A client's mistake is never a 5xx: the official
//! clients retry those automatically.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use schemars::JsonSchema;
use serde::Serialize;

use super::ApiError;
use incant_gguf::printable::excerpt;

/// Seconds a client should wait while the server is loading or draining.
const UNAVAILABLE_RETRY_AFTER: u64 = 5;

/// The header that the official clients obey before they look at the status.
pub(crate) const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// The response to one failure.
struct Wire {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    retry_after: Option<u64>,
    /// Whether the official clients may retry the request, as they do automatically for some
    /// statuses.
    retryable: bool,
}

/// The reason why a request was refused, in a word: the response carries this to the log and the
/// metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal(pub(crate) &'static str);

impl ApiError {
    fn wire(&self) -> Wire {
        const INVALID: &str = "invalid_request_error";
        const UNAVAILABLE: &str = "service_unavailable";
        let (status, kind, code) = match self {
            ApiError::Invalid { .. } => (StatusCode::BAD_REQUEST, INVALID, None),
            ApiError::Unauthorized => (StatusCode::UNAUTHORIZED, INVALID, Some("invalid_api_key")),
            ApiError::ForeignHost => (StatusCode::FORBIDDEN, INVALID, Some("host_not_allowed")),
            ApiError::ForeignOrigin => (StatusCode::FORBIDDEN, INVALID, Some("origin_not_allowed")),
            ApiError::NotJson | ApiError::Encoded => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID, None)
            }
            ApiError::UnknownModel(_) => (StatusCode::NOT_FOUND, INVALID, Some("model_not_found")),
            ApiError::AdapterMemoryFull(_) => (
                StatusCode::BAD_REQUEST,
                INVALID,
                Some("adapter_memory_exceeded"),
            ),
            ApiError::ContextLength { .. } | ApiError::ContextOverflow { .. } => (
                StatusCode::BAD_REQUEST,
                INVALID,
                Some("context_length_exceeded"),
            ),
            ApiError::BodyTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, INVALID, None),
            ApiError::BodyTimeout { .. } => (StatusCode::REQUEST_TIMEOUT, INVALID, None),
            ApiError::UnknownPath { .. } => (StatusCode::NOT_FOUND, INVALID, None),
            ApiError::MethodNotAllowed { .. } => (StatusCode::METHOD_NOT_ALLOWED, INVALID, None),
            ApiError::QueueFull { .. } => (
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                Some("queue_full"),
            ),
            ApiError::TooManyAnswers { .. } => (StatusCode::BAD_REQUEST, INVALID, None),
            ApiError::Timeout { .. } => (
                StatusCode::REQUEST_TIMEOUT,
                "timeout_error",
                Some("request_timeout"),
            ),
            ApiError::BodyMemoryFull
            | ApiError::OverLimit
            | ApiError::Unhealthy
            | ApiError::Loading
            | ApiError::Draining => (StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, None),
            ApiError::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "server_error", None),
        };
        let retry_after = match self {
            ApiError::QueueFull { retry_after } => Some(*retry_after),
            ApiError::BodyMemoryFull
            | ApiError::OverLimit
            | ApiError::Unhealthy
            | ApiError::Loading
            | ApiError::Draining => Some(UNAVAILABLE_RETRY_AFTER),
            _ => None,
        };
        Wire {
            status,
            kind,
            code,
            retry_after,
            retryable: !matches!(self, ApiError::Timeout { .. }),
        }
    }

    /// Returns why the request was refused; `None` if it was accepted and failed.
    fn refusal(&self) -> Option<Refusal> {
        let word = match self {
            ApiError::Invalid { .. } => "invalid",
            ApiError::Unauthorized => "invalid_api_key",
            ApiError::ForeignHost => "host_not_allowed",
            ApiError::ForeignOrigin => "origin_not_allowed",
            ApiError::NotJson | ApiError::Encoded => "unsupported_media_type",
            ApiError::UnknownModel(_) => "model_not_found",
            ApiError::AdapterMemoryFull(_) => "adapter_memory_exceeded",
            ApiError::ContextLength { .. } | ApiError::ContextOverflow { .. } => {
                "context_length_exceeded"
            }
            ApiError::BodyTooLarge { .. } => "body_too_large",
            ApiError::BodyTimeout { .. } => "body_timeout",
            ApiError::BodyMemoryFull => "no_room",
            ApiError::UnknownPath { .. } => "unknown_path",
            ApiError::MethodNotAllowed { .. } => "method_not_allowed",
            ApiError::QueueFull { .. } => "queue_full",
            ApiError::TooManyAnswers { .. } => "too_many",
            ApiError::OverLimit => "connection_limit",
            ApiError::Unhealthy => "engine_failed",
            ApiError::Loading => "loading",
            ApiError::Draining => "draining",
            ApiError::Timeout { .. } | ApiError::Internal(_) => return None,
        };
        Some(Refusal(word))
    }

    fn param(&self) -> Option<String> {
        match self {
            ApiError::Invalid { param, .. } => param.clone(),
            ApiError::UnknownModel(_) => Some("model".into()),
            ApiError::AdapterMemoryFull(_) => Some("path".into()),
            ApiError::ContextLength { param, .. } | ApiError::ContextOverflow { param, .. } => {
                Some((*param).into())
            }
            ApiError::TooManyAnswers { param, .. } => Some((*param).into()),
            _ => None,
        }
    }

    /// Returns the response body that describes this failure.
    pub(crate) fn body(&self) -> ErrorBody {
        let wire = self.wire();
        ErrorBody {
            error: ErrorDetail {
                message: self.to_string(),
                kind: wire.kind,
                param: self.param().map(|param| excerpt(&param).into_owned()),
                code: wire.code,
            },
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let wire = self.wire();
        // Only internal errors are logged: the log has already said that the server loads or
        // drains.
        if matches!(self, ApiError::Internal(_)) {
            tracing::warn!(
                status = wire.status.as_u16(),
                "{}",
                excerpt(&self.to_string())
            );
        }
        let body = serde_json::to_vec(&self.body()).expect("strings serialize");
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = wire.status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        if let Some(seconds) = wire.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if matches!(self, ApiError::Unauthorized) {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if matches!(self, ApiError::Encoded) {
            // RFC 9110, section 15.5.16: tells the client that the content coding is at fault, not
            // the type.
            headers.insert(
                header::ACCEPT_ENCODING,
                HeaderValue::from_static("identity"),
            );
        }
        if !wire.retryable {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        if let Some(refusal) = self.refusal() {
            response.extensions_mut().insert(refusal);
        }
        response
    }
}

/// The body of every failure.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Error")]
pub(crate) struct ErrorBody {
    error: ErrorDetail,
}

/// A failure. All four keys are always present.
#[derive(Debug, Serialize, JsonSchema)]
struct ErrorDetail {
    /// A message for people.
    message: String,
    /// The class of the failure, such as `invalid_request_error`.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The request field at fault, such as `messages[0].role`, or null.
    param: Option<String>,
    /// A code for programs, such as `model_not_found`, or null.
    code: Option<&'static str>,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::LimitSource;
    use super::*;

    fn response_parts(error: ApiError) -> (u16, Option<String>, serde_json::Value) {
        let body = serde_json::to_value(error.body()).unwrap();
        let response = error.into_response();
        let retry = response.headers().get("retry-after");
        let retry = retry.map(|value| value.to_str().unwrap().to_owned());
        (response.status().as_u16(), retry, body)
    }

    #[test]
    fn all_four_keys_are_always_there() {
        let (status, retry, body) = response_parts(ApiError::malformed("no"));
        assert_eq!((status, retry), (400, None));
        let expected = serde_json::json!({"error": {
            "message": "no", "type": "invalid_request_error", "param": null, "code": null,
        }});
        assert_eq!(body, expected);
    }

    #[test]
    fn only_failures_of_the_server_are_5xx_and_those_worth_repeating_say_when() {
        let context = ApiError::ContextLength {
            context: 8,
            prompt: 9,
            prefix: 4,
            needed: 1,
            param: "prompt",
        };
        let overflow = ApiError::ContextOverflow {
            context: 8,
            at_least: 9,
            prefix: 4,
            param: "messages",
        };
        let unknown_path = ApiError::UnknownPath { path: "/x".into() };
        let method = ApiError::MethodNotAllowed {
            method: "GET".into(),
            path: "/x".into(),
        };
        let timeout = ApiError::Timeout {
            limit: Duration::from_millis(1500),
            limit_source: LimitSource::Server,
        };
        let table = [
            (
                ApiError::invalid("n", "no"),
                400,
                None,
                "invalid_request_error",
                None,
                Some("n"),
            ),
            (
                ApiError::Unauthorized,
                401,
                None,
                "invalid_request_error",
                Some("invalid_api_key"),
                None,
            ),
            (
                ApiError::ForeignHost,
                403,
                None,
                "invalid_request_error",
                Some("host_not_allowed"),
                None,
            ),
            (
                ApiError::ForeignOrigin,
                403,
                None,
                "invalid_request_error",
                Some("origin_not_allowed"),
                None,
            ),
            (
                ApiError::NotJson,
                415,
                None,
                "invalid_request_error",
                None,
                None,
            ),
            (
                ApiError::Encoded,
                415,
                None,
                "invalid_request_error",
                None,
                None,
            ),
            (
                ApiError::UnknownModel("no".into()),
                404,
                None,
                "invalid_request_error",
                Some("model_not_found"),
                Some("model"),
            ),
            (
                context,
                400,
                None,
                "invalid_request_error",
                Some("context_length_exceeded"),
                Some("prompt"),
            ),
            (
                overflow,
                400,
                None,
                "invalid_request_error",
                Some("context_length_exceeded"),
                Some("messages"),
            ),
            (
                ApiError::BodyMemoryFull,
                503,
                Some("5"),
                "service_unavailable",
                None,
                None,
            ),
            (
                ApiError::BodyTooLarge { limit: 1 },
                413,
                None,
                "invalid_request_error",
                None,
                None,
            ),
            (
                ApiError::BodyTimeout {
                    limit: Duration::from_secs(1),
                },
                408,
                None,
                "invalid_request_error",
                None,
                None,
            ),
            (unknown_path, 404, None, "invalid_request_error", None, None),
            (method, 405, None, "invalid_request_error", None, None),
            (
                ApiError::QueueFull { retry_after: 7 },
                429,
                Some("7"),
                "rate_limit_error",
                Some("queue_full"),
                None,
            ),
            (
                ApiError::TooManyAnswers {
                    asked: 9,
                    limit: 8,
                    param: "n",
                },
                400,
                None,
                "invalid_request_error",
                None,
                Some("n"),
            ),
            (
                timeout,
                408,
                None,
                "timeout_error",
                Some("request_timeout"),
                None,
            ),
            (
                ApiError::OverLimit,
                503,
                Some("5"),
                "service_unavailable",
                None,
                None,
            ),
            (
                ApiError::Unhealthy,
                503,
                Some("5"),
                "service_unavailable",
                None,
                None,
            ),
            (
                ApiError::Loading,
                503,
                Some("5"),
                "service_unavailable",
                None,
                None,
            ),
            (
                ApiError::Draining,
                503,
                Some("5"),
                "service_unavailable",
                None,
                None,
            ),
            (
                ApiError::Internal("x".into()),
                500,
                None,
                "server_error",
                None,
                None,
            ),
        ];
        for (error, status, retry, kind, code, param) in table {
            let name = format!("{error:?}");
            let (actual_status, actual_retry, body) = response_parts(error);
            assert_eq!(actual_status, status, "{name}");
            assert_eq!(actual_retry.as_deref(), retry, "{name}");
            assert_eq!(body["error"]["type"], kind, "{name}");
            assert_eq!(body["error"]["code"].as_str(), code, "{name}");
            assert_eq!(body["error"]["param"].as_str(), param, "{name}");
        }
    }
}
