//! Every way a request can fail; `wire` has what each looks like on the wire.

mod wire;

use std::any::Any;
use std::time::Duration;

use axum::response::{IntoResponse, Response};

use super::deadline::Whose;
use crate::runtime::{ArmError, PromptError};
use incant_engine::SubmitError;
use incant_gguf::printable::excerpt;

pub(crate) use wire::{ErrorBody, Refusal, SHOULD_RETRY};

/// Why a request was not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ApiError {
    /// The request itself is wrong: malformed, mistyped, incomplete, out of
    /// range, or asking for what incant does not have.
    #[error("{message}")]
    Invalid {
        message: String,
        /// The field at fault, such as `messages[0].role`.
        param: Option<String>,
    },
    /// The server wants a key, and got none or another.
    #[error("The API key is missing or wrong; send it as `Authorization: Bearer KEY`.")]
    Unauthorized,
    /// The server is addressed by a name that may be anyone's.
    #[error(
        "The request's `Host` is not a name of this server: `--allow-host` adds one. Addresses \
         and `localhost` need none."
    )]
    ForeignHost,
    /// A web page of another origin asks.
    #[error("Web pages of other origins may not use this server: `--cors` names those that may.")]
    ForeignOrigin,
    /// The body is of a kind that is not read.
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
    NoAdapterRoom(String),
    /// The prompt does not fit.
    #[error(
        "This model's maximum context length is {context} tokens, but the prompt has {prompt} tokens{} \
         and must leave room for {room} more.",
        prefix_note(*.prefix)
    )]
    ContextLength {
        /// The context in tokens.
        context: usize,
        /// All tokens of the prompt, the profile's included.
        prompt: usize,
        /// How many of them are the profile's.
        prefix: usize,
        /// Tokens that must be free after the prompt: 1 for an answer, 0 to score.
        room: usize,
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
        /// The context in tokens.
        context: usize,
        /// What the tokens of the prompt, the profile's included, are not below.
        at_least: usize,
        /// How many of them are the profile's.
        prefix: usize,
        /// The field that holds the prompt.
        param: &'static str,
    },
    /// The body is larger than the server reads.
    #[error("The request body is larger than the limit of {limit} bytes.")]
    BodyTooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// The body did not arrive in time.
    #[error("The request body did not arrive within {} s.", .limit.as_secs_f64())]
    BodyTimeout {
        /// How long it could take.
        limit: Duration,
    },
    /// The body waited in vain for others to leave it room.
    #[error("The server has more large requests than it can hold at once.")]
    NoRoom,
    /// No endpoint has this path.
    #[error("There is no endpoint {path}; /openapi.json lists those there are.")]
    UnknownPath { path: String },
    /// The endpoint has other methods.
    #[error("{path} does not answer to {method}.")]
    MethodNotAllowed { method: String, path: String },
    /// The engine's queue has no place.
    #[error("The server has more requests than it can queue; try again in {retry_after} s.")]
    QueueFull {
        /// Seconds until a place is likely.
        retry_after: u64,
    },
    /// The request has more answers than the engine could ever hold.
    #[error("The request asks for {asked} answers, but this server takes {limit} at once.")]
    TooMany {
        /// How many it asks for.
        asked: usize,
        /// The most there is room for.
        limit: usize,
        /// The field that asks for so many.
        param: &'static str,
    },
    /// The answer was not complete in time.
    #[error("The answer was not complete within {whose} of {} s.", .limit.as_secs_f64())]
    Timeout {
        /// How long it could take.
        limit: Duration,
        /// Who set that.
        whose: Whose,
    },
    /// All places for connections are taken.
    #[error("The server has all the connections that it can serve.")]
    Crowded,
    /// An engine has died, or stands still with work to do.
    #[error("A model's engine has failed.")]
    Ill,
    /// The models are still being loaded.
    #[error("The server is still loading its models.")]
    Loading,
    /// The server finishes what it has and takes nothing new.
    #[error("The server is shutting down.")]
    Draining,
    /// The server's own fault.
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

    /// The refusal of a request with `answers` to each of what the field `param` lists: where
    /// nobody asked for several, the list is too long.
    pub(crate) fn too_many(error: SubmitError, answers: usize, param: &'static str) -> ApiError {
        match ApiError::from(error) {
            ApiError::TooMany { asked, limit, .. } if answers == 1 => ApiError::TooMany {
                asked,
                limit,
                param,
            },
            other => other,
        }
    }

    /// The refusal of what the field `param` holds, of which there is no prompt.
    pub(crate) fn no_prompt(error: PromptError, param: &'static str) -> ApiError {
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
            error if error.is_servers() => ApiError::Internal(error.to_string()),
            // A client that cancels gets no answer.
            PromptError::Refused(_) | PromptError::Cancelled => {
                ApiError::invalid(param, excerpt(&error.to_string()))
            }
        }
    }

    /// What the panic handler answers with.
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
            SubmitError::TooMany { asked, limit } => ApiError::TooMany {
                asked,
                limit,
                param: "n",
            },
            SubmitError::Ill => ApiError::Ill,
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
            room: 1,
            param: "messages",
        };
        let text = error.to_string();
        for number in ["8192", "9000", "1300"] {
            assert!(text.contains(number), "{text}");
        }
    }
}
