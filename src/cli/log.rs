//! Logging: text or JSON, to the standard error or a file, including panics.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fs::File;
use std::io::{self, IsTerminal};
use std::panic;
use std::path::Path;
use std::sync::{Mutex, OnceLock};
use std::thread;

use tracing::Level;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::output::eprint_safe;

/// The format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Lines for people
    Text,
    /// A JSON object per line, for programs
    Json,
}

/// The format of the log on the standard error, if there is one.
static ON_STDERR: OnceLock<Format> = OnceLock::new();

/// Logs to the standard error, including panics: by default at the level that suits a person who
/// started a server, otherwise with the filter in `INCANT_LOG` (`debug`, `warn`,
/// `incant::engine=debug`…).
pub(crate) fn to_stderr(format: Format) {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter())
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false);
    match format {
        Format::Text => builder.init(),
        Format::Json => builder
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .init(),
    }
    // This is the first call: a second subscriber would have panicked.
    _ = ON_STDERR.set(format);
    log_panics();
}

/// Reports why the program ends, in the format of its log.
pub(crate) fn failure(error: &anyhow::Error) {
    match ON_STDERR.get() {
        // The filter must allow errors.
        Some(Format::Json) if tracing::enabled!(Level::ERROR) => {
            tracing::error!("{}", error_chain(error))
        }
        _ => eprint_safe(&format!("error: {}", error_chain(error))),
    }
}

/// Formats an error with its causes, in a line. Many errors include the text of their cause, which
/// is not repeated then.
pub(crate) fn error_chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Logs panics of all threads: a program that parses the log expects no other lines.
fn log_panics() {
    let unlogged = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        // The filter would drop the log entry.
        if !tracing::enabled!(Level::ERROR) {
            return unlogged(panic);
        }
        let backtrace = Backtrace::capture();
        let captured = backtrace.status() == BacktraceStatus::Captured;
        tracing::error!(
            cause = panic.payload_as_str().unwrap_or("no message"),
            location = panic.location().map(tracing::field::display),
            thread = thread::current().name(),
            backtrace = captured.then(|| backtrace.to_string()),
            "panicked"
        );
    }));
}

/// Logs text lines to a file, appending to it.
pub(crate) fn to_file(path: &Path) -> io::Result<()> {
    let file = File::options().create(true).append(true).open(path)?;
    tracing_subscriber::fmt()
        .with_env_filter(filter())
        .with_writer(Mutex::new(file))
        .with_ansi(false)
        .with_target(false)
        .init();
    Ok(())
}

fn filter() -> EnvFilter {
    EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .with_env_var("INCANT_LOG")
        .from_env_lossy()
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let error = anyhow!("no such file");
        let error = error.context("cannot read a.jinja: no such file");
        assert_eq!(error_chain(&error), "cannot read a.jinja: no such file");
        let error = Err::<(), _>(error).context("--profile-dir").unwrap_err();
        let expected = "--profile-dir: cannot read a.jinja: no such file";
        assert_eq!(error_chain(&error), expected);
    }
}
