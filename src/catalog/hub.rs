//! Downloads a file from the Hugging Face hub, over HTTP with range requests.

use std::ops::Range;
use std::thread;
use std::time::Duration;

use http::{StatusCode, header};

use super::Hub;
use super::download::{Failure, Job, Part};

/// Short, so that a person need not wait for an unreachable hub.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The time without data after which a connection counts as lost.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);
/// The number of lost connections after which the source is given up.
const MAX_LOSSES: u32 = 5;

/// Completes `part` with a file of a repository.
pub(super) fn fill(
    job: &Job<'_>,
    repo: &str,
    revision: &str,
    file: &str,
    part: &mut Part,
) -> Result<(), Failure> {
    let Some(hub) = &job.cache.hub else {
        let reason = "skipped, the hub is switched off (HF_HUB_OFFLINE)";
        return Err(Failure::Source(reason.to_owned()));
    };
    let download = Download {
        job,
        hub,
        agent: agent(),
        url: format!("{}/{repo}/resolve/{revision}/{file}", hub.endpoint),
    };
    let mut losses = 0;
    let mut may_restart = true;
    let mut from = part.len();
    while part.len() < job.manifest.size {
        match download.attempt(from, part) {
            Ok(()) => {}
            // Data had arrived: the connection is lost, not the source.
            Err(AttemptError::Lost(reason)) if losses < MAX_LOSSES => {
                losses += 1;
                let kept = part.len();
                job.progress
                    .note(&format!("{reason}; resuming at byte {kept}"));
                thread::sleep(Duration::from_millis(200) * losses);
            }
            // A request without a range is less ambiguous. Downloaded bytes are kept until the
            // server begins to send the whole file.
            Err(AttemptError::Misfit(reason)) if may_restart => {
                may_restart = false;
                job.progress
                    .note(&format!("{reason}; asking for the whole file"));
                from = 0;
                continue;
            }
            Err(AttemptError::Lost(reason) | AttemptError::Misfit(reason)) => {
                return Err(Failure::Source(reason));
            }
            Err(AttemptError::Failed(failure)) => return Err(failure),
        }
        from = part.len();
    }
    Ok(())
}

/// The reason why one request did not complete the file.
enum AttemptError {
    /// The connection was lost after data had arrived.
    Lost(String),
    /// The answer does not match the requested range.
    Misfit(String),
    /// Another request would not help.
    Failed(Failure),
}

impl AttemptError {
    fn source(reason: String) -> AttemptError {
        AttemptError::Failed(Failure::Source(reason))
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .user_agent(concat!("incant/", env!("CARGO_PKG_VERSION")))
        .http_status_as_error(false)
        .timeout_resolve(Some(CONNECT_TIMEOUT))
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(SILENCE_TIMEOUT))
        .timeout_per_read(Some(SILENCE_TIMEOUT))
        .build()
        .new_agent()
}

struct Download<'a> {
    job: &'a Job<'a>,
    hub: &'a Hub,
    agent: ureq::Agent,
    url: String,
}

impl Download<'_> {
    /// Sends one request for the file from byte `from` on, which is either the length of `part`, or
    /// 0 to download the file again.
    fn attempt(&self, from: u64, part: &mut Part) -> Result<(), AttemptError> {
        let url = &self.url;
        let size = self.job.manifest.size;
        let mut request = self
            .agent
            .get(url)
            // Ranges and sizes must be those of the file, not of a compressed form.
            .header(header::ACCEPT_ENCODING, "identity");
        if let Some(token) = &self.hub.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if from > 0 {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        let response = request
            .call()
            .map_err(|error| AttemptError::source(format!("{url}: {}", error_text(error))))?;

        let answer = Answer::read(&response, size)
            .map_err(|reason| AttemptError::source(format!("{url}: {reason}")))?;
        if let Some(total) = answer.total.filter(|&total| total != size) {
            return Err(AttemptError::source(format!(
                "{url}: the file has {total} bytes there, not {size}"
            )));
        }
        let misfit = |reason: &str| AttemptError::Misfit(format!("{url}: {reason}"));
        let Some(range) = answer.range else {
            return Err(misfit(&format!(
                "asked for byte {from}, {}",
                answer.why_no_range
            )));
        };
        // An answer from byte 0 must be the whole file, or downloads could restart forever.
        let begins_anew = range.start == 0 && range.end == size;
        if range.start != from && !begins_anew || range.end > size {
            return Err(misfit(&format!(
                "asked for byte {from}, it sends bytes {} to {} of {size}",
                range.start,
                range.end - 1
            )));
        }
        if range.start < from {
            self.job
                .progress
                .note("the server cannot resume the download; starting again");
        }
        part.cut(range.start).map_err(AttemptError::Failed)?;
        let before = part.len();
        let watch = |len| self.job.progress.position(len);
        let mut body = response.into_body().into_reader();
        let appended = part.append(&mut body, range.end, &watch);
        appended.map_err(|failure| match failure {
            Failure::Source(reason) if part.len() > before => {
                AttemptError::Lost(format!("{url}: {reason}"))
            }
            Failure::Source(reason) => AttemptError::source(format!("{url}: {reason}")),
            local => AttemptError::Failed(local),
        })
    }
}

/// Returns the text of an error without the category that the client puts first.
fn error_text(error: ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) => error.to_string(),
        ureq::Error::Timeout(phase) => format!("no answer in time ({phase})"),
        error => error.to_string(),
    }
}

/// The range that a response will send.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    /// The range of the file's bytes; `None` if it sends or states none.
    range: Option<Range<u64>>,
    /// A description of the response if it has no range.
    why_no_range: &'static str,
    /// The file's size in bytes, if the server reports it.
    total: Option<u64>,
}

impl Answer {
    /// Parses the head of a response for a file of `size` bytes.
    fn read<B>(response: &http::Response<B>, size: u64) -> Result<Answer, String> {
        let text = |name| {
            let value = response.headers().get(name)?;
            value.to_str().ok()
        };
        let range = || text(header::CONTENT_RANGE);
        match response.status() {
            StatusCode::OK => Ok(Answer {
                range: Some(0..size),
                why_no_range: "",
                total: text(header::CONTENT_LENGTH).and_then(|length| length.parse().ok()),
            }),
            StatusCode::PARTIAL_CONTENT => {
                let (range, total) = range().and_then(sent_range).unzip();
                Ok(Answer {
                    range,
                    why_no_range: "it sends a part of the file without saying which",
                    total: total.flatten(),
                })
            }
            StatusCode::RANGE_NOT_SATISFIABLE => Ok(Answer {
                range: None,
                why_no_range: "it says that there is no such byte (416)",
                total: range().and_then(unsatisfied_range),
            }),
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => Err(format!(
                "{status}: there is no such file, or it needs a login (HF_TOKEN)"
            )),
            status => Err(status.to_string()),
        }
    }
}

/// Parses `bytes FIRST-LAST/TOTAL`, where the total may be `*` (RFC 9110, section 14.4).
fn sent_range(text: &str) -> Option<(Range<u64>, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let total = match total {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    let end = last.checked_add(1).filter(|_| first <= last)?;
    Some((first..end, total))
}

/// Parses `bytes */TOTAL`, as sent with status 416.
fn unsatisfied_range(text: &str) -> Option<u64> {
    text.strip_prefix("bytes */")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read() {
        assert_eq!(sent_range("bytes 5-9/10"), Some((5..10, Some(10))));
        assert_eq!(sent_range("bytes 0-9/*"), Some((0..10, None)));
        for wrong in [
            "",
            "bytes */10",
            "5-9/10",
            "bytes 5-9",
            "bytes x-9/10",
            "bytes 5-x/10",
            "bytes 5-4/10",
            "bytes 5-18446744073709551615/10",
            "bytes 5-9/ten",
        ] {
            assert_eq!(sent_range(wrong), None, "{wrong:?}");
        }
        assert_eq!(unsatisfied_range("bytes */10"), Some(10));
        assert_eq!(unsatisfied_range("bytes */*"), None);
    }
}
