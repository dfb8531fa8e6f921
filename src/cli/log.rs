//! Where the log goes.

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

use super::output::tell;

/// What the log looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Lines for people
    Text,
    /// A JSON object per line, for programs
    Json,
}

/// What the log on the standard error looks like, if there is one.
static ON_STDERR: OnceLock<Format> = OnceLock::new();

/// Logs to the standard error, panics too: by default what a person who started a server
/// wants to see, otherwise what `INCANT_LOG` asks for (`debug`, `warn`,
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
    // Nothing is logged twice: a second subscriber would have panicked.
    _ = ON_STDERR.set(format);
    log_panics();
}

/// Says why the program ends, in the form that its log has.
pub(crate) fn failure(error: &anyhow::Error) {
    match ON_STDERR.get() {
        // With a filter that lets it through.
        Some(Format::Json) if tracing::enabled!(Level::ERROR) => tracing::error!("{}", told(error)),
        _ => tell(&format!("error: {}", told(error))),
    }
}

/// An error with its causes, in a line. Many errors tell their cause themselves: it is not
/// repeated.
pub(crate) fn told(error: &anyhow::Error) -> String {
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

/// Has panics told in the log, in whatever thread they are: a program that reads it knows
/// no other lines.
fn log_panics() {
    let unlogged = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        // With such a filter the log would keep them to itself.
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

/// Logs lines for people to a file, behind what is there.
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
        assert_eq!(told(&error), "cannot read a.jinja: no such file");
        let error = Err::<(), _>(error).context("--profile-dir").unwrap_err();
        let expected = "--profile-dir: cannot read a.jinja: no such file";
        assert_eq!(told(&error), expected);
    }
}
