//! Fuzzing with hostile inputs: valid ones, changed at random. Nothing may panic, crash, hang
//! or allocate without bound, whatever a file or a request holds.
//!
//! Each test passes a [`Target`] to [`fuzz`], which feeds it inputs in a process of its own
//! (`process.rs`), so that an abort, an endless loop or a lack of memory is a failed test like
//! any other. An input is derived from a number, its seed (`edits.rs`): a failing input is
//! identified by it, minimized to the edits that matter and saved as a file. `INCANT_FUZZ_SEED`
//! is the first seed (0 by default), and `INCANT_FUZZ_SECONDS` makes each test run for this
//! time instead of for its number of inputs.

mod adapters;
mod edits;
mod gguf;
mod header;
mod prefixes;
mod process;
mod programs;
mod requests;
mod texts;

use edits::Material;
use process::fuzz;

/// A fuzz target.
trait Target: Sync {
    /// The valid inputs from which hostile ones are derived.
    fn materials(&self) -> &[Material];

    /// Processes an input derived from a material. Returns whether it was accepted as valid.
    ///
    /// # Errors
    /// Behaviour that must not occur; a panic counts as well.
    fn take(&self, material: usize, input: &[u8]) -> Result<bool, String>;

    /// The number of inputs processed at once.
    fn threads(&self) -> usize {
        1
    }

    /// Called after the last input.
    fn end(&self) {}
}

/// Reports a refused input. The error message must be safe for a terminal: whatever the input
/// holds, no control characters except line ends and tabs.
fn refused(error: &dyn std::error::Error) -> Result<bool, String> {
    let text = error.to_string();
    match text
        .chars()
        .find(|c| c.is_control() && !matches!(c, '\n' | '\t'))
    {
        Some(control) => Err(format!("{control:?} in an error: {text:?}")),
        None => Ok(false),
    }
}

/// Like [`refused`], for an error that must be a single line.
fn refused_in_a_line(error: &dyn std::error::Error) -> Result<bool, String> {
    match error.to_string().contains('\n') {
        true => Err(format!("an error of several lines: {error}")),
        false => refused(error),
    }
}
