//! Runs a decoder: token ids and KV in, logits out.
//!
//! An [`Executor`] owns the weights and the KV of the sequences it was asked
//! to begin. It never sees a request: the engine tells it which tokens to run
//! and which logits are wanted.
//!
//! KV lives in two places. A *segment* is read-only and shared: any number of
//! sequences may stand on the same chain of segments. A sequence's own tokens
//! go into its private *suffix*, which [`Executor::freeze`] turns into a new
//! segment.

mod backend;
pub mod device;
mod ledger;
pub mod native;
mod saved;

pub use backend::{Backend, DeviceChoice};

use safetensors::SafeTensors;

use crate::model::DecoderSpec;

/// A running sequence of an executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(u64);

/// A shared, read-only stretch of KV.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentId(u64);

/// Which of a chunk's rows want logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// None: more of the prompt follows.
    None,
    /// The last row's: the next token is to be chosen.
    Last,
    /// Every row's: the prompt is scored.
    All,
}

/// Tokens to append to one sequence; a batch holds at most one chunk of each.
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'a> {
    /// The sequence that the tokens continue.
    pub sequence: SequenceId,
    /// At least one token.
    pub tokens: &'a [u32],
    /// Which logits to compute.
    pub wanted: Wanted,
}

impl Chunk<'_> {
    /// How many rows of logits this chunk asks for.
    pub fn wanted_rows(&self) -> usize {
        match self.wanted {
            Wanted::None => 0,
            Wanted::Last => 1,
            Wanted::All => self.tokens.len(),
        }
    }
}

/// The wanted rows of logits: chunk by chunk in the batch's order, position by
/// position within one.
#[derive(Debug)]
pub struct Logits {
    vocab: usize,
    values: Vec<f32>,
}

impl Logits {
    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.values.len() / self.vocab
    }

    /// Row `index`, one logit per token of the vocabulary.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.vocab..][..self.vocab]
    }

    /// Row `index`, to be edited in place by the sampler.
    pub fn row_mut(&mut self, index: usize) -> &mut [f32] {
        &mut self.values[index * self.vocab..][..self.vocab]
    }
}

/// A tensor of saved KV, in the form a safetensors file takes.
#[derive(Debug)]
pub struct SavedTensor {
    /// Its name in the file.
    pub name: String,
    /// Its shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Its type.
    pub dtype: safetensors::Dtype,
    /// Its values, little endian.
    pub bytes: Vec<u8>,
}

/// What a model's weights take in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Bytes of all weights as they are held.
    pub resident: usize,
    /// Of those, bytes that every step reads: all but an embedding that is not
    /// the head too.
    pub streamed: usize,
    /// Of those, bytes of matrices that were expanded to f32…
    pub expanded: usize,
    /// …and what these took in the file.
    pub expanded_from: usize,
}

/// The executor could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The tensor library failed: out of memory, a lost device.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// The weights cannot be run.
    #[error(transparent)]
    Model(#[from] crate::model::ModelError),
    /// The system has no room for something.
    #[error("{0}")]
    Memory(String),
    /// The named device is not there, or not compiled in.
    #[error("{0}")]
    Device(String),
    /// Saved KV that does not fit this model.
    #[error("saved KV does not fit: {0}")]
    Saved(String),
    /// A sequence or segment that was never begun, or has ended.
    #[error("unknown {0}")]
    Unknown(String),
    /// A batch that breaks the executor's rules.
    #[error("bad batch: {0}")]
    Batch(&'static str),
}

/// Runs one model.
pub trait Executor: Send {
    /// What is run.
    fn spec(&self) -> &DecoderSpec;

    /// What its weights take in memory.
    fn footprint(&self) -> Footprint;

    /// Names the layout and precision of saved KV: part of a saved prefix's key.
    fn kv_format(&self) -> String;

    /// Begins an empty sequence on a chain of segments, the first one outermost.
    /// Each must have been made on exactly those before it.
    fn begin(&mut self, chain: &[SegmentId]) -> Result<SequenceId, ExecError>;

    /// How many tokens a sequence holds, its segments' included.
    fn len(&self, sequence: SequenceId) -> Result<usize, ExecError>;

    /// Appends each chunk to its sequence and computes the wanted logits. On an
    /// error no sequence has grown.
    fn forward(&mut self, batch: &[Chunk<'_>]) -> Result<Logits, ExecError>;

    /// Ends a sequence and makes its own tokens a segment, which continues the
    /// chain the sequence stood on.
    fn freeze(&mut self, sequence: SequenceId) -> Result<SegmentId, ExecError>;

    /// Ends a sequence and frees its KV. Unknown ids are ignored.
    fn end(&mut self, sequence: SequenceId);

    /// Forgets a segment; its KV is freed with the last sequence on it.
    fn release(&mut self, segment: SegmentId);

    /// The KV of a segment that begins at position 0, to be written to disk.
    fn save(&self, segment: SegmentId) -> Result<Vec<SavedTensor>, ExecError>;

    /// A segment of `tokens` tokens that begins at position 0, out of what
    /// [`save`](Executor::save) gave.
    fn restore(&mut self, tokens: usize, saved: &SafeTensors<'_>) -> Result<SegmentId, ExecError>;
}
