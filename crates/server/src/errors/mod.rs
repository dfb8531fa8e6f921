//! Every way a request can fail; `wire` has the HTTP response of each.

mod wire;

use std::any::Any;
use std::time::Duration;

use axum::response::{IntoResponse, Response};

use super::deadline::LimitSource;
use incant_engine::SubmitError;
use incant_gguf::printable::excerpt;
use incant_runtime::{ArmError, PromptError};

pub(crate) use wire::{ErrorBody, Refusal, SHOULD_RETRY};

/// The reason why a request was not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ApiError {
    /// The request itself is wrong: malformed, mistyped, incomplete, out of range, or asking for an
    /// unsupported feature.
    #[error("{message}")]
    Invalid {
        message: String,
        /// The field at fault, such as `messages[0].role`.
        param: Option<String>,
    },
    /// The server requires an API key, and the request has none or a wrong one.
    #[error("The API key is missing or wrong; send it as `Authorization: Bearer KEY`.")]
    Unauthorized,
    /// The request's `Host` is a name that anyone may own (see DNS rebinding in `hosts`).
    #[error(
        "The request's `Host` is not a name of this server: `--allow-host` adds one. Addresses \
         and `localhost` need none."
    )]
    ForeignHost,
    /// The request comes from a web page of another origin.
    #[error("Web pages of other origins may not use this server: `--cors` names those that may.")]
    ForeignOrigin,
    /// The body has an unsupported content type.
    #[error("The body must be JSON, sent with `Content-Type: application/json`.")]
    NotJson,
    /// The body is compressed.
    #[error("The body must be sent as it is, without a `Content-Encoding`.")]
    Encoded,
    /// No such model, profile or adapter.
    #[error("{0}")]
    UnknownModel(String),
    /// An adapter does not fit into the memory for adapters.
    #[error("{0}")]
    AdapterMemoryFull(String),
    /// The prompt does not fit.
    #[error(
        "This model's maximum context length is {context} tokens, but the prompt has {prompt} tokens{} \
         and must leave room for {needed} more.",
        prefix_note(*.prefix)
    )]
    ContextLength {
        context: usize,
        /// All tokens of the prompt, including the profile's.
        prompt: usize,
        /// The profile's part of them.
        prefix: usize,
        /// Tokens that must be free after the prompt: 1 for an answer, 0 to score.
        needed: usize,
        /// The field that holds the prompt.
        param: &'static str,
    },
    /// The prompt does not fit, and was not counted to its end.
    #[error(
        "This model's maximum context length is {context} tokens, but the prompt has at least \
         {at_least} tokens{}.",
        prefix_note(*.prefix)
    )]
    ContextOverflow {
        context: usize,
        /// The prompt, including the profile's tokens, has at least this many.
        at_least: usize,
        /// The profile's part of them.
        prefix: usize,
        /// The field that holds the prompt.
        param: &'static str,
    },
    /// The body is larger than the limit.
    #[error("The request body is larger than the limit of {limit} bytes.")]
    BodyTooLarge {
        /// In bytes.
        limit: usize,
    },
    /// The body did not arrive in time.
    #[error("The request body did not arrive within {} s.", .limit.as_secs_f64())]
    BodyTimeout {
        /// The time that it could take.
        limit: Duration,
    },
    /// The body waited in vain for memory that other bodies hold.
    #[error("The server has more large requests than it can hold at once.")]
    BodyMemoryFull,
    /// No endpoint has this path.
    #[error("There is no endpoint {path}; /openapi.json lists those there are.")]
    UnknownPath { path: String },
    /// The endpoint does not support this method.
    #[error("{path} does not answer to {method}.")]
    MethodNotAllowed { method: String, path: String },
    /// The engine's queue is full.
    #[error("The server has more requests than it can queue; try again in {retry_after} s.")]
    QueueFull {
        /// Seconds until a slot in the queue is likely.
        retry_after: u64,
    },
    /// The request has more answers than the engine can ever hold.
    #[error("The request asks for {asked} answers, but this server takes {limit} at once.")]
    TooManyAnswers {
        /// The number of answers it asks for.
        asked: usize,
        /// The maximum number of answers.
        limit: usize,
        /// The field that asks for them.
        param: &'static str,
    },
    /// The answer was not complete in time.
    #[error("The answer was not complete within {limit_source} of {} s.", .limit.as_secs_f64())]
    Timeout {
        /// The time that it could take.
        limit: Duration,
        /// The source of the limit.
        limit_source: LimitSource,
    },
    /// Overload: the connection limit is reached.
    #[error("The server has all the connections that it can serve.")]
    OverLimit,
    /// An engine has died, or makes no progress although it has requests.
    #[error("A model's engine has failed.")]
    Unhealthy,
    /// The models are still being loaded.
    #[error("The server is still loading its models.")]
    Loading,
    /// The server is shutting down: it finishes running requests and accepts no new ones.
    #[error("The server is shutting down.")]
    Draining,
    /// An internal error.
    #[error("The server failed: {0}")]
    Internal(String),
}

fn prefix_note(prefix: usize) -> String {
    match prefix {
        0 => String::new(),
        tokens => format!(" ({tokens} of them the profile's)"),
    }
}

impl ApiError {
    /// A client's mistake in the field `param`.
    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError::Invalid {
            message: message.into(),
            param: Some(param.into()),
        }
    }

    /// A client's mistake that no single field is to blame for.
    pub(crate) fn malformed(message: impl Into<String>) -> ApiError {
        ApiError::Invalid {
            message: message.into(),
            param: None,
        }
    }

    /// Refuses a request with `answers` to each element of the list in the field `param`. If the
    /// request asks for one answer each, the list is too long.
    pub(crate) fn too_many_answers(
        error: SubmitError,
        answers: usize,
        param: &'static str,
    ) -> ApiError {
        match ApiError::from(error) {
            ApiError::TooManyAnswers { asked, limit, .. } if answers == 1 => {
                ApiError::TooManyAnswers {
                    asked,
                    limit,
                    param,
                }
            }
            other => other,
        }
    }

    /// Refuses the value of the field `param`, which could not be turned into a prompt.
    pub(crate) fn from_prompt_error(error: PromptError, param: &'static str) -> ApiError {
        match error {
            PromptError::TooLong {
                context,
                at_least,
                prefix,
            } => ApiError::ContextOverflow {
                context,
                at_least,
                prefix,
                param,
            },
            error if error.is_server_error() => ApiError::Internal(error.to_string()),
            // A client that cancels gets no answer.
            PromptError::Refused(_) | PromptError::Cancelled => {
                ApiError::invalid(param, excerpt(&error.to_string()))
            }
        }
    }

    /// Answers a request whose handler panicked.
    pub(crate) fn from_panic(panic: Box<dyn Any + Send>) -> Response {
        let cause = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        tracing::error!(cause, "a request handler panicked");
        ApiError::Internal("an unexpected error, see the server's log".into()).into_response()
    }
}

impl From<ArmError> for ApiError {
    fn from(error: ArmError) -> ApiError {
        ApiError::UnknownModel(error.to_string())
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> ApiError {
        match error {
            SubmitError::QueueFull { retry_after } => ApiError::QueueFull { retry_after },
            SubmitError::TooMany { asked, limit } => ApiError::TooManyAnswers {
                asked,
                limit,
                param: "n",
            },
            SubmitError::Unhealthy => ApiError::Unhealthy,
            SubmitError::Draining => ApiError::Draining,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_context_error_gives_its_numbers() {
        let error = ApiError::ContextLength {
            context: 8192,
            prompt: 9000,
            prefix: 1300,
            needed: 1,
            param: "messages",
        };
        let text = error.to_string();
        for number in ["8192", "9000", "1300"] {
            assert!(text.contains(number), "{text}");
        }
    }
}
