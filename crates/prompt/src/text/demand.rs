//! Early end of encoding: token limits and cancellation.
//!
//! Encoding a text takes many times its size in memory and time. If it is known that more
//! tokens than a context holds are useless, or that the client has disconnected, encoding ends
//! early: before it begins if the text's length alone tells, otherwise at the end of a word.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Merges between two checks of the limit and of cancellation.
const MERGES_PER_LOOK: usize = 4096;

/// A cancellation flag. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Cancels the work.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the work was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Limits of an encoding. The default is unlimited.
#[derive(Clone, Debug, Default)]
pub struct Bounds {
    /// The maximum number of tokens; `None` if unlimited.
    pub most: Option<usize>,
    /// The cancellation flag.
    pub cancel: Cancel,
}

/// Why encoding ended before the text did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Halt {
    /// There are more tokens than the limit.
    #[error("the text has at least {at_least} tokens")]
    TooLong {
        /// A lower bound of the number of tokens.
        at_least: usize,
    },
    /// The work was cancelled.
    #[error("nobody waits for the tokens")]
    Cancelled,
}

/// Decides whether encoding continues.
pub(super) trait Demand {
    /// The reason not to.
    type Halt;

    /// Checks a lower bound of the number of tokens in the whole text.
    fn check(&self, at_least: usize) -> Result<(), Self::Halt>;
}

/// No limit.
pub(super) struct All;

impl Demand for All {
    type Halt = Infallible;

    fn check(&self, _: usize) -> Result<(), Infallible> {
        Ok(())
    }
}

impl Bounds {
    /// Checks the limits for a text with at least `at_least` tokens.
    ///
    /// # Errors
    /// There are too many tokens, or the work was cancelled.
    pub fn check(&self, at_least: usize) -> Result<(), Halt> {
        if self.cancel.is_cancelled() {
            return Err(Halt::Cancelled);
        }
        match self.most {
            Some(most) if at_least > most => Err(Halt::TooLong { at_least }),
            _ => Ok(()),
        }
    }
}

impl Demand for Bounds {
    type Halt = Halt;

    fn check(&self, at_least: usize) -> Result<(), Halt> {
        Bounds::check(self, at_least)
    }
}

/// Lengths of texts and tokens: in characters for a SentencePiece vocabulary, in bytes for a
/// byte-level one. Bytes without a token in the vocabulary do not count. No token stands for
/// more than [`longest`](Self::longest).
#[derive(Debug)]
pub(super) struct Measure {
    /// The length that each byte adds to a text.
    pub(super) lengths: Box<[u8; 256]>,
    /// The length of the longest token, at least 1.
    pub(super) longest: usize,
}

impl Measure {
    /// The length of a text.
    pub(super) fn of(&self, text: &str) -> usize {
        text.bytes()
            .map(|byte| usize::from(self.lengths[usize::from(byte)]))
            .sum()
    }

    /// A lower bound of the number of tokens in a text of this length.
    pub(super) fn least_tokens(&self, length: usize) -> usize {
        length.div_ceil(self.longest)
    }
}

/// The tokens so far, and the length of the remaining text.
pub(super) struct Output<'a, D> {
    pub(super) ids: Vec<u32>,
    measure: &'a Measure,
    left: usize,
    demand: &'a D,
    merges: usize,
}

impl<'a, D: Demand> Output<'a, D> {
    /// For the tokens of `text`.
    pub(super) fn new(
        text: &str,
        measure: &'a Measure,
        demand: &'a D,
    ) -> Result<Output<'a, D>, D::Halt> {
        let output = Output {
            ids: Vec::new(),
            left: measure.of(text),
            measure,
            demand,
            merges: 0,
        };
        output.check()?;
        Ok(output)
    }

    /// Notes that the tokens of `text`, the next part, are among [`ids`](Self::ids).
    pub(super) fn advance(&mut self, text: &str) -> Result<(), D::Halt> {
        self.left = self.left.saturating_sub(self.measure.of(text));
        self.check()
    }

    /// Notes a merge.
    pub(super) fn merged(&mut self) -> Result<(), D::Halt> {
        self.merges += 1;
        if self.merges.is_multiple_of(MERGES_PER_LOOK) {
            self.check()
        } else {
            Ok(())
        }
    }

    fn check(&self) -> Result<(), D::Halt> {
        let rest = self.measure.least_tokens(self.left);
        self.demand.check(self.ids.len() + rest)
    }
}
