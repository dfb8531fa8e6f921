//! What a template may use up. Templates are programs: one that was written in
//! error, or came with a model's file, must neither hold the server up nor bring
//! it down.
//!
//! - **Files**: an environment has no loader, so a template reaches nothing but
//!   itself.
//! - **Time**: each step costs fuel, minijinja refuses long ranges, and what a single
//!   step may do has bounds of its own ([`super::bounds`]).
//! - **Stack**: minijinja counts how deep statements, expressions in brackets,
//!   blocks, and macros nest. What it does not count (a chain of operators, lists in
//!   lists) is as deep as the source and the fuel allow, for which [`on_deep_stack`]
//!   has room.
//! - **Memory**: the source and what is rendered have a largest length. Values that a
//!   template builds for itself are limited by its fuel alone: whoever chooses a
//!   template is trusted not to fill the memory on purpose.

use std::io::{self, Write};

use minijinja::{Error, ErrorKind};

use super::ProfileError;

/// The longest source in bytes. Profiles and chat templates have some ten thousand.
pub(super) const LONGEST_SOURCE: usize = 128 << 10;

/// The longest text in bytes that is rendered: more than any context holds.
pub(super) const LONGEST_TEXT: usize = 16 << 20;

/// The stack that templates are compiled and run on. Only what is used of it takes
/// memory.
const STACK: usize = 256 << 20;

/// Runs what compiles or renders a template where deep nesting is no danger.
pub(super) fn on_deep_stack<T>(work: impl FnOnce() -> T) -> T {
    // What is on such a stack already has half of it left for more.
    stacker::maybe_grow(STACK / 2, STACK, work)
}

/// Refuses a source that is too long.
pub(super) fn check_source(file: &str, source: &str) -> Result<(), ProfileError> {
    if source.len() <= LONGEST_SOURCE {
        return Ok(());
    }
    let problem = format!(
        "it has {} bytes, more than the {LONGEST_SOURCE} that a template may have",
        source.len()
    );
    Err(ProfileError::broken(file, None, problem))
}

/// Collects what a template writes, up to [`LONGEST_TEXT`].
pub(super) struct Text {
    bytes: Vec<u8>,
    too_long: bool,
}

impl Text {
    /// What `render` writes.
    pub(super) fn of(render: impl FnOnce(&mut Text) -> Result<(), Error>) -> Result<String, Error> {
        let mut text = Text {
            bytes: Vec::new(),
            too_long: false,
        };
        match render(&mut text) {
            Err(_) if text.too_long => {
                let problem = format!("the text is longer than {LONGEST_TEXT} bytes");
                Err(Error::new(ErrorKind::WriteFailure, problem))
            }
            Err(error) => Err(error),
            Ok(()) => String::from_utf8(text.bytes).map_err(|error| {
                Error::new(ErrorKind::WriteFailure, "the text is not UTF-8").with_source(error)
            }),
        }
    }
}

impl Write for Text {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > LONGEST_TEXT - self.bytes.len() {
            self.too_long = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
