//! How many of a text's tokens somebody wants, and whether anybody still does.
//!
//! To encode a text takes many times its size in memory and time. Where it is known that more
//! tokens than a context holds are of no use, or that a client has left, encoding ends early:
//! before it begins if the text's length alone says so, else at the end of a word.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Merges between two looks at whether the tokens are still wanted.
const MERGES_PER_LOOK: usize = 4096;

/// Tells work that its result is of no use any more. Clones are one and the same.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Tells it.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether that was told.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a text's tokens are wanted for. The default is all tokens of any text.
#[derive(Clone, Debug, Default)]
pub struct Bounds {
    /// The most tokens that are of use; `None` for any number.
    pub most: Option<usize>,
    /// Whether somebody still wants them.
    pub cancel: Cancel,
}

/// Why encoding ended before the text did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Halt {
    /// There are more tokens than are of use.
    #[error("the text has at least {at_least} tokens")]
    TooLong {
        /// A number that the text's tokens are not below.
        at_least: usize,
    },
    /// Nobody wants the tokens any more.
    #[error("nobody waits for the tokens")]
    Cancelled,
}

/// Decides whether encoding goes on.
pub(super) trait Demand {
    /// Why it does not.
    type Halt;

    /// Looks at a number of tokens that the whole text has at least.
    fn check(&self, at_least: usize) -> Result<(), Self::Halt>;
}

/// Wants all tokens.
pub(super) struct All;

impl Demand for All {
    type Halt = Infallible;

    fn check(&self, _: usize) -> Result<(), Infallible> {
        Ok(())
    }
}

impl Bounds {
    /// Whether a text that has at least so many tokens is still of use.
    ///
    /// # Errors
    /// It has too many, or nobody wants them any more.
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

/// How long texts and tokens are. For a SentencePiece vocabulary that is in characters, for a
/// byte-level one in bytes; bytes that the vocabulary lacks have no token and do not count. No
/// token stands for more than [`longest`](Self::longest).
#[derive(Debug)]
pub(super) struct Measure {
    /// By byte: how much it adds to a text's length.
    pub(super) lengths: Box<[u8; 256]>,
    /// The length of the longest token, at least 1.
    pub(super) longest: usize,
}

impl Measure {
    /// How long a text is.
    pub(super) fn of(&self, text: &str) -> usize {
        text.bytes()
            .map(|byte| usize::from(self.lengths[usize::from(byte)]))
            .sum()
    }

    /// How many tokens a text of this length has at least.
    pub(super) fn least_tokens(&self, length: usize) -> usize {
        length.div_ceil(self.longest)
    }
}

/// Tokens as they come, and how much text is left.
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

    /// Takes note that the tokens of `text`, the next part, are among [`ids`](Self::ids).
    pub(super) fn advance(&mut self, text: &str) -> Result<(), D::Halt> {
        self.left = self.left.saturating_sub(self.measure.of(text));
        self.check()
    }

    /// Takes note of a merge.
    pub(super) fn merged(&mut self) -> Result<(), D::Halt> {
        self.merges += 1;
        match self.merges.is_multiple_of(MERGES_PER_LOOK) {
            true => self.check(),
            false => Ok(()),
        }
    }

    fn check(&self) -> Result<(), D::Halt> {
        let rest = self.measure.least_tokens(self.left);
        self.demand.check(self.ids.len() + rest)
    }
}
