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
//!   has room. Where the system has none for it, that is an error of this rendering.
//! - **Memory**: the source and what is rendered have a largest length. Values that a
//!   template builds for itself are limited by its fuel alone: whoever chooses a
//!   template is trusted not to fill the memory on purpose.

use std::cell::Cell;
use std::io::{self, Write};
use std::panic::resume_unwind;
use std::thread;

use minijinja::{Error, ErrorKind};

use super::ProfileError;

/// The longest source in bytes. Profiles and chat templates have some ten thousand.
pub(super) const LONGEST_SOURCE: usize = 128 << 10;

/// The longest text in bytes that is rendered: more than any context holds.
pub(super) const LONGEST_TEXT: usize = 16 << 20;

/// The stack that templates are compiled and run on. Only what is used of it takes
/// memory.
const STACK: usize = 256 << 20;

thread_local! {
    static IS_DEEP: Cell<bool> = const { Cell::new(false) };
}

/// Runs what compiles or renders a template where deep nesting is no danger: on a thread of
/// its own, unless this is such a one.
///
/// # Errors
/// The work's own, or the system has no memory for the stack.
pub(super) fn on_deep_stack<T: Send>(
    work: impl FnOnce() -> Result<T, ProfileError> + Send,
) -> Result<T, ProfileError> {
    match IS_DEEP.get() {
        true => work(),
        false => on_stack_of(STACK, work),
    }
}

fn on_stack_of<T: Send>(
    bytes: usize,
    work: impl FnOnce() -> Result<T, ProfileError> + Send,
) -> Result<T, ProfileError> {
    thread::scope(|scope| {
        let deep = thread::Builder::new()
            .name("template".to_owned())
            .stack_size(bytes)
            .spawn_scoped(scope, || {
                IS_DEEP.set(true);
                work()
            });
        let done = deep.map_err(ProfileError::NoStack)?.join();
        done.unwrap_or_else(|panic| resume_unwind(panic))
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_that_the_system_does_not_give_is_an_error() {
        let most = usize::MAX / 4;
        match on_stack_of(most, || Ok(())) {
            Err(ProfileError::NoStack(_)) => {}
            other => panic!("{other:?}"),
        }
        assert!(on_stack_of(1 << 20, || Ok(())).is_ok());
    }

    #[test]
    fn what_runs_on_a_deep_stack_stays_on_it() {
        let threads = on_deep_stack(|| {
            let outer = thread::current().id();
            on_deep_stack(|| Ok((outer, thread::current().id())))
        });
        let (outer, inner) = threads.expect("there is room for a stack");
        assert_eq!(outer, inner);
        assert_ne!(outer, thread::current().id());
    }
}
