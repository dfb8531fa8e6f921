//! A file from the Hugging Face hub, over HTTP with ranges.

use std::thread;
use std::time::Duration;

use http::{StatusCode, header};

use super::Hub;
use super::download::{Failure, Job, Part};

/// A hub that cannot be reached must not be what a person waits for.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that says nothing for so long is taken for lost.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a connection may be lost before the source is given up.
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
    while part.len() < job.manifest.size {
        let before = part.len();
        match download.attempt(part) {
            Ok(()) => {}
            // It was going well: what is lost is the connection, not the source.
            Err(Failure::Source(reason)) if part.len() > before && losses < MAX_LOSSES => {
                losses += 1;
                let kept = part.len();
                job.progress
                    .note(&format!("{reason}; going on from byte {kept}"));
                thread::sleep(Duration::from_millis(200) * losses);
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(())
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
    /// One request for what is missing.
    fn attempt(&self, part: &mut Part) -> Result<(), Failure> {
        let url = &self.url;
        let size = self.job.manifest.size;
        let mut request = self
            .agent
            .get(url)
            // Ranges and sizes are those of the file, not of a compressed form.
            .header(header::ACCEPT_ENCODING, "identity");
        if let Some(token) = &self.hub.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if part.len() > 0 {
            request = request.header(header::RANGE, format!("bytes={}-", part.len()));
        }
        let response = request
            .call()
            .map_err(|error| Failure::Source(format!("{url}: {}", plainly(error))))?;

        let answer = Answer::read(&response)
            .map_err(|reason| Failure::Source(format!("{url}: {reason}")))?;
        if let Some(total) = answer.total.filter(|&total| total != size) {
            return Err(Failure::Source(format!(
                "{url}: the file has {total} bytes there, not {size}"
            )));
        }
        if answer.start != part.len() {
            if answer.start != 0 {
                let start = answer.start;
                return Err(Failure::Source(format!(
                    "{url}: asked for byte {}, it answers from byte {start}",
                    part.len()
                )));
            }
            self.job
                .progress
                .note("the server cannot go on where a download ended; starting again");
            part.cut(0)?;
        }
        let watch = |len| self.job.progress.position(len);
        part.append(&mut response.into_body().into_reader(), size, &watch)
            .map_err(|failure| match failure {
                Failure::Source(reason) => Failure::Source(format!("{url}: {reason}")),
                local => local,
            })
    }
}

/// The client's errors lead with the name of a category; a person needs the rest.
fn plainly(error: ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) => error.to_string(),
        ureq::Error::Timeout(phase) => format!("no answer in time ({phase})"),
        error => error.to_string(),
    }
}

/// What a response is about to send.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    /// The first byte's place in the file.
    start: u64,
    /// The file's size in bytes, if the server tells.
    total: Option<u64>,
}

impl Answer {
    fn read<B>(response: &http::Response<B>) -> Result<Answer, String> {
        let text = |name| {
            let value = response.headers().get(name)?;
            value.to_str().ok()
        };
        match response.status() {
            StatusCode::OK => Ok(Answer {
                start: 0,
                total: text(header::CONTENT_LENGTH).and_then(|length| length.parse().ok()),
            }),
            StatusCode::PARTIAL_CONTENT => text(header::CONTENT_RANGE)
                .and_then(Answer::from_range)
                .ok_or_else(|| "it sends a part of the file without saying which".to_owned()),
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => Err(format!(
                "{status}: there is no such file, or it needs a login (HF_TOKEN)"
            )),
            StatusCode::RANGE_NOT_SATISFIABLE => {
                Err("the file is shorter there than what is here already".to_owned())
            }
            status => Err(status.to_string()),
        }
    }

    /// Reads `bytes FIRST-LAST/TOTAL`, where the total may be `*` (RFC 9110,
    /// section 14.4).
    fn from_range(text: &str) -> Option<Answer> {
        let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
        let (first, _last) = range.split_once('-')?;
        Some(Answer {
            start: first.parse().ok()?,
            total: match total {
                "*" => None,
                total => Some(total.parse().ok()?),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read() {
        let answer = |start, total| Some(Answer { start, total });
        assert_eq!(Answer::from_range("bytes 5-9/10"), answer(5, Some(10)));
        assert_eq!(Answer::from_range("bytes 0-9/*"), answer(0, None));
        for wrong in [
            "",
            "bytes */10",
            "5-9/10",
            "bytes 5-9",
            "bytes x-9/10",
            "bytes 5-9/ten",
        ] {
            assert_eq!(Answer::from_range(wrong), None, "{wrong:?}");
        }
    }
}
