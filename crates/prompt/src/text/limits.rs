//! Early end of encoding: token limits and cancellation.
//!
//! Encoding a text takes many times its size in memory and time. If it is known that more
//! tokens than a context holds are useless, or that the client has disconnected, encoding ends
//! early: before it begins if the text's length alone tells, otherwise at the end of a word.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Merges between two checks of the limit and of cancellation.
const MERGES_PER_CHECK: usize = 4096;

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
pub struct EncodeLimits {
    /// The maximum number of tokens; `None` if unlimited.
    pub max_tokens: Option<usize>,
    /// The cancellation flag.
    pub cancel: Cancel,
}

/// Why encoding ended before the text did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// There are more tokens than the limit.
    #[error("the text has at least {at_least} tokens")]
    TooLong {
        /// A lower bound of the number of tokens.
        at_least: usize,
    },
    /// The work was cancelled.
    #[error("the request was cancelled")]
    Cancelled,
}

/// Decides whether encoding continues.
pub(super) trait LimitCheck {
    /// The reason not to.
    type Error;

    /// Checks a lower bound of the number of tokens in the whole text.
    fn check(&self, at_least: usize) -> Result<(), Self::Error>;
}

/// No limit.
pub(super) struct Unlimited;

impl LimitCheck for Unlimited {
    type Error = Infallible;

    fn check(&self, _: usize) -> Result<(), Infallible> {
        Ok(())
    }
}

impl EncodeLimits {
    /// Checks the limits for a text with at least `at_least` tokens.
    ///
    /// # Errors
    /// There are too many tokens, or the work was cancelled.
    pub fn check(&self, at_least: usize) -> Result<(), EncodeError> {
        if self.cancel.is_cancelled() {
            return Err(EncodeError::Cancelled);
        }
        match self.max_tokens {
            Some(max_tokens) if at_least > max_tokens => Err(EncodeError::TooLong { at_least }),
            _ => Ok(()),
        }
    }
}

impl LimitCheck for EncodeLimits {
    type Error = EncodeError;

    fn check(&self, at_least: usize) -> Result<(), EncodeError> {
        EncodeLimits::check(self, at_least)
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
pub(super) struct Output<'a, L> {
    pub(super) ids: Vec<u32>,
    measure: &'a Measure,
    left: usize,
    limits: &'a L,
    merges: usize,
}

impl<'a, L: LimitCheck> Output<'a, L> {
    /// For the tokens of `text`.
    pub(super) fn new(
        text: &str,
        measure: &'a Measure,
        limits: &'a L,
    ) -> Result<Output<'a, L>, L::Error> {
        let output = Output {
            ids: Vec::new(),
            left: measure.of(text),
            measure,
            limits,
            merges: 0,
        };
        output.check()?;
        Ok(output)
    }

    /// Notes that the tokens of `text`, the next part, are among [`ids`](Self::ids).
    pub(super) fn advance(&mut self, text: &str) -> Result<(), L::Error> {
        self.left = self.left.saturating_sub(self.measure.of(text));
        self.check()
    }

    /// Notes a merge.
    pub(super) fn merged(&mut self) -> Result<(), L::Error> {
        self.merges += 1;
        if self.merges.is_multiple_of(MERGES_PER_CHECK) {
            self.check()
        } else {
            Ok(())
        }
    }

    fn check(&self) -> Result<(), L::Error> {
        let rest = self.measure.least_tokens(self.left);
        self.limits.check(self.ids.len() + rest)
    }
}
