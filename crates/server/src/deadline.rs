//! Request timeouts: an answer must be complete by the server's limit or by the request's own,
//! whichever ends first.

use std::fmt;
use std::future::pending;
use std::pin::Pin;
use std::time::{Duration, Instant};

use tokio::time::{Sleep, sleep_until};

use super::errors::ApiError;

/// The maximum limit in seconds, a year: a larger number is a mistake.
pub(crate) const MAX_SECONDS: u32 = 31_536_000;

/// Returns the time limit of this number of seconds.
///
/// # Errors
/// The number is not above 0, or above the maximum.
pub fn time_limit(seconds: f64) -> Result<Duration, TimeLimitError> {
    if seconds > 0.0 && seconds <= f64::from(MAX_SECONDS) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(TimeLimitError)
    }
}

/// The number of seconds is not a time limit. The message has no subject: the limit's name goes
/// before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a number of seconds above 0 and at most {MAX_SECONDS}")]
pub struct TimeLimitError;

/// The source of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LimitSource {
    /// `--request-timeout`.
    Server,
    /// The field `timeout`.
    Request,
}

impl fmt::Display for LimitSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LimitSource::Server => "this server's limit",
            LimitSource::Request => "the request's own `timeout`",
        })
    }
}

/// The time by which one request's answer must be complete, if there is any.
#[derive(Debug)]
pub(crate) struct Deadline(Option<Limit>);

#[derive(Debug)]
struct Limit {
    limit_source: LimitSource,
    limit: Duration,
    sleep: Pin<Box<Sleep>>,
}

impl Deadline {
    /// Returns the deadline of a request that arrived at `arrived`: the shorter limit counts.
    pub(crate) fn new(
        arrived: Instant,
        server: Option<Duration>,
        request: Option<Duration>,
    ) -> Deadline {
        let server = server.map(|limit| (limit, LimitSource::Server));
        let request = request.map(|limit| (limit, LimitSource::Request));
        let shorter = server.into_iter().chain(request).min_by_key(|set| set.0);
        Deadline(shorter.map(|(limit, limit_source)| Limit {
            limit_source,
            limit,
            sleep: Box::pin(sleep_until((arrived + limit).into())),
        }))
    }

    /// Resolves when the deadline has passed, to the error for the client.
    pub(crate) async fn passed(&mut self) -> ApiError {
        match &mut self.0 {
            Some(Limit {
                limit_source,
                limit,
                sleep,
            }) => {
                // The timer wakes up to a millisecond late.
                if sleep.deadline().into_std() > Instant::now() {
                    sleep.as_mut().await;
                }
                ApiError::Timeout {
                    limit: *limit,
                    limit_source: *limit_source,
                }
            }
            None => pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeout_message(server: Option<f64>, request: Option<f64>) -> String {
        let limit = |seconds: Option<f64>| seconds.map(|seconds| time_limit(seconds).unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(async {
            let long_ago = Instant::now() - Duration::from_secs(60);
            let mut deadline = Deadline::new(long_ago, limit(server), limit(request));
            deadline.passed().await.to_string()
        })
    }

    #[test]
    fn the_shorter_limit_counts_and_the_message_says_whose_it_was() {
        let servers = "The answer was not complete within this server's limit of 1.5 s.";
        let requests = "The answer was not complete within the request's own `timeout` of 0.5 s.";
        assert_eq!(timeout_message(Some(1.5), None), servers);
        assert_eq!(timeout_message(Some(1.5), Some(20.0)), servers);
        assert_eq!(timeout_message(Some(1.5), Some(0.5)), requests);
        assert_eq!(timeout_message(None, Some(0.5)), requests);
    }

    #[test]
    fn only_a_number_of_seconds_is_a_limit() {
        assert_eq!(time_limit(0.25), Ok(Duration::from_millis(250)));
        assert!(time_limit(f64::from(MAX_SECONDS)).is_ok());
        for seconds in [0.0, -0.0, -1.0, f64::NAN, f64::INFINITY, 1e300, 1e-400] {
            assert!(time_limit(seconds).is_err(), "{seconds}");
        }
    }
}
