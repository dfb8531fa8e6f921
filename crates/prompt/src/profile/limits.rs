//! Resource limits for templates. Templates are programs: one that has a mistake, or came with
//! a model's file, must neither block the server nor crash it.
//!
//! - **Files**: an environment has no loader, so a template can access nothing but itself.
//! - **Time**: each step costs fuel, minijinja refuses long ranges, and single steps have
//!   limits of their own ([`super::step_limits`]).
//! - **Stack**: minijinja counts the nesting depth of statements, expressions in brackets,
//!   blocks, and macros. Nesting that it does not count (a chain of operators, lists in lists)
//!   is limited by the source and the fuel, for which [`on_deep_stack`] has enough stack. If
//!   the system has no memory for that stack, the rendering fails.
//! - **Memory**: the source and the rendered text have a maximum length. Values that a template
//!   builds for itself are limited by its fuel alone: the person who chooses a template is
//!   trusted not to exhaust memory on purpose.

use std::cell::Cell;
use std::io::{self, Write};
use std::panic::resume_unwind;
use std::thread;

use minijinja::{Error, ErrorKind};

use super::ProfileError;

/// The maximum source length in bytes. Profiles and chat templates have some ten thousand.
pub(super) const MAX_SOURCE_BYTES: usize = 128 << 10;

/// The maximum length of a rendered text in bytes: more than any context holds.
pub(super) const MAX_TEXT_BYTES: usize = 16 << 20;

/// Stack size for compiling and running templates. Only the used part takes memory.
const STACK: usize = 256 << 20;

thread_local! {
    static IS_DEEP: Cell<bool> = const { Cell::new(false) };
}

/// Compiles or renders a template safely despite deep nesting: on a thread with a large stack,
/// unless this already is one.
///
/// # Errors
/// The work's own, or the system has no memory for the stack.
pub(super) fn on_deep_stack<T: Send>(
    work: impl FnOnce() -> Result<T, ProfileError> + Send,
) -> Result<T, ProfileError> {
    if IS_DEEP.get() {
        work()
    } else {
        on_stack_of(STACK, work)
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

/// Rejects a source that is too long.
pub(super) fn check_source(file: &str, source: &str) -> Result<(), ProfileError> {
    if source.len() <= MAX_SOURCE_BYTES {
        return Ok(());
    }
    let problem = format!(
        "it has {} bytes, more than the {MAX_SOURCE_BYTES} that a template may have",
        source.len()
    );
    Err(ProfileError::broken(file, None, problem))
}

/// Collects a template's output, up to [`MAX_TEXT_BYTES`].
pub(super) struct Text {
    bytes: Vec<u8>,
    too_long: bool,
}

impl Text {
    /// The output of `render`.
    pub(super) fn of(render: impl FnOnce(&mut Text) -> Result<(), Error>) -> Result<String, Error> {
        let mut text = Text {
            bytes: Vec::new(),
            too_long: false,
        };
        match render(&mut text) {
            Err(_) if text.too_long => {
                let problem = format!("the text is longer than {MAX_TEXT_BYTES} bytes");
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
        if bytes.len() > MAX_TEXT_BYTES - self.bytes.len() {
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
