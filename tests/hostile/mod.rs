//! Hostile inputs: real ones, changed at random. Nothing may panic, crash, hang
//! or take memory without bound, whatever a file or a request holds.
//!
//! Each test hands a [`Target`] to [`fuzz`], which feeds it inputs in a process of
//! its own (`process.rs`), so that an abort, an endless loop or a lack of memory
//! is a failed test like any other. An input follows from a number, its seed
//! (`edits.rs`): what failed is named by it, cut down to the edits that matter and
//! kept as a file. `INCANT_FUZZ_SEED` is the first seed (0 by default), and
//! `INCANT_FUZZ_SECONDS` lets a test run for so long instead of for the number of
//! inputs that it asks for.

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

/// What takes hostile inputs.
trait Target: Sync {
    /// What inputs are made of.
    fn materials(&self) -> &[Material];

    /// Takes an input that was made of a material. Returns whether it was taken for a
    /// sound one.
    ///
    /// # Errors
    /// What should not have happened; a panic says as much.
    fn take(&self, material: usize, input: &[u8]) -> Result<bool, String>;

    /// How many inputs are taken at once.
    fn threads(&self) -> usize {
        1
    }

    /// Called after the last input.
    fn end(&self) {}
}

/// An input was refused. What the error tells must be fit for a terminal: whatever the
/// input holds, no control characters but for line ends and tabs.
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

/// The same of an error that must be one line.
fn refused_in_a_line(error: &dyn std::error::Error) -> Result<bool, String> {
    match error.to_string().contains('\n') {
        true => Err(format!("an error of several lines: {error}")),
        false => refused(error),
    }
}
