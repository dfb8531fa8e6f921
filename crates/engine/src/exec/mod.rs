//! Runs a decoder: token ids and KV in, logits out.
//!
//! An [`Executor`] owns the weights and the KV of the sequences it was asked
//! to begin. It never sees a request: the engine tells it which tokens to run
//! and which logits are wanted.
//!
//! Sequences share KV: a *fork* begins with tokens of another sequence, and
//! nothing of what both have is computed or kept twice. So what was computed
//! once, a constant prompt or a conversation's earlier turns, is kept by keeping
//! a sequence that ends there, and used by forking it.

mod adapters;
mod backend;
pub mod device;
#[cfg(test)]
pub(crate) mod fake;
mod ledger;
pub mod native;
mod saved;

pub use backend::{Backend, DeviceChoice};

use safetensors::SafeTensors;

use incant_model::DecoderSpec;
pub use incant_model::Footprint;
use incant_model::lora::Lora;

/// A sequence of an executor: tokens and their KV.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(u64);

/// An adapter of an executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdapterId(u64);

/// Which of a chunk's rows want logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// None: more of the prompt follows.
    None,
    /// The last row's: the next token is to be chosen.
    Last,
    /// No logits yet, but the last row's state, out of which
    /// [`logits_at`](Executor::logits_at) computes those that turn out to be needed.
    State,
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
            Wanted::None | Wanted::State => 0,
            Wanted::Last => 1,
            Wanted::All => self.tokens.len(),
        }
    }
}

/// How much of a sequence is swapped out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwapOut {
    /// What it shares with none: all that is sure to free memory.
    Own,
    /// What it shares too. That is free once nobody else holds it, and comes back as
    /// the sequence's own.
    All,
}

/// The wanted rows of logits: chunk by chunk in the batch's order, position by
/// position within one. And the wanted states, in the batch's order too.
#[derive(Debug, Default)]
pub struct Logits {
    vocab: usize,
    values: Vec<f32>,
    hidden: usize,
    states: Vec<f32>,
}

/// So many logits may be kept for the next step, and four times as many.
const KEPT_LOGITS: usize = 1 << 22;

impl Logits {
    /// So many rows of `vocab` logits, whatever is in them, to be written.
    fn reset(&mut self, rows: usize, vocab: usize) -> &mut [f32] {
        self.vocab = vocab;
        let len = rows * vocab;
        // Scored prompts take many rows, and only for a while.
        let kept = self.values.capacity();
        if kept < len || kept > 4 * len.max(KEPT_LOGITS) {
            self.values = Vec::with_capacity(len);
        }
        // What was there need not be cleared, only what is new.
        self.values.resize(len, 0.0);
        &mut self.values
    }

    /// Resizes the buffer to `count` states of `hidden` values each and returns it.
    fn reset_states(&mut self, count: usize, hidden: usize) -> &mut [f32] {
        self.hidden = hidden;
        self.states.resize(count * hidden, 0.0);
        &mut self.states
    }

    /// State number `index`: what the head takes of a row.
    pub fn state(&self, index: usize) -> &[f32] {
        &self.states[index * self.hidden..][..self.hidden]
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.values.len().checked_div(self.vocab).unwrap_or(0)
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

/// The memory for KV where nobody says how much: [`DEFAULT_KV_MEMORY`], or what
/// the longest context takes at so many bytes a number, if that is more.
pub fn default_kv_memory(spec: &DecoderSpec, number: usize) -> usize {
    let head = 2 * number * spec.head_dim.next_multiple_of(16);
    let token = head.saturating_mul(spec.kv_heads);
    let layers = spec.layers.iter().map(|layer| {
        // With some pages to spare.
        let seen = layer
            .window
            .map_or(spec.context, |window| 2 * window + 1024);
        seen.min(spec.context) + 64
    });
    DEFAULT_KV_MEMORY.max(token.saturating_mul(layers.sum::<usize>()))
}

/// See [`default_kv_memory`].
pub const DEFAULT_KV_MEMORY: usize = 1 << 30;

/// Checks what [`Executor::logits_at`] is asked for.
fn check_states(spec: &DecoderSpec, states: &[&[f32]], ids: &[u32]) -> Result<(), ExecError> {
    if states.iter().any(|state| state.len() != spec.hidden) {
        return Err(ExecError::Batch("a state has another width than the model"));
    }
    if ids.iter().any(|&id| id as usize >= spec.vocab) {
        return Err(ExecError::Batch("a token is not in the vocabulary"));
    }
    Ok(())
}

/// Memory for KV, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvMemory {
    /// What sequences hold; what they share counts once.
    pub used: usize,
    /// The most they may hold.
    pub capacity: usize,
}

/// The executor could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The tensor library failed: out of memory, a lost device.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// The weights cannot be run.
    #[error(transparent)]
    Model(#[from] incant_model::ModelError),
    /// The system has no room for something.
    #[error("{0}")]
    Memory(String),
    /// The named device is not there, or not compiled in.
    #[error("{0}")]
    Device(String),
    /// Saved KV that does not fit this model.
    #[error("saved KV does not fit: {0}")]
    Saved(String),
    /// A sequence or an adapter that is not there, or not any more.
    #[error("unknown {0}")]
    Unknown(String),
    /// A batch that breaks the executor's rules.
    #[error("bad batch: {0}")]
    Batch(&'static str),
    /// The memory for KV is used up; see [`Executor::has_room`].
    #[error("there is no room for more KV")]
    NoRoom,
}

/// Runs one model.
pub trait Executor: Send {
    /// What is run.
    fn spec(&self) -> &DecoderSpec;

    /// What its weights take in memory.
    fn footprint(&self) -> Footprint;

    /// Names the layout and precision of saved KV: part of a saved prefix's key.
    fn kv_format(&self) -> String;

    /// The bytes that an adapter takes once it is taken in.
    fn adapter_bytes(&self, lora: &Lora) -> usize;

    /// Takes in an adapter.
    ///
    /// # Errors
    /// The device has no room for it.
    fn add_adapter(&mut self, lora: &Lora) -> Result<AdapterId, ExecError>;

    /// Lets go of an adapter. Sequences that were begun under it go on. Unknown ids
    /// are ignored.
    fn remove_adapter(&mut self, adapter: AdapterId);

    /// Whether rows of chunks of several tokens are computed with another precision than
    /// those of one token each: then KV that is computed again has the same bits only if its
    /// chunks are of the same kind.
    fn computes_prompts_otherwise(&self) -> bool {
        false
    }

    /// Begins an empty sequence of the model as it is.
    fn begin(&mut self) -> SequenceId;

    /// Begins an empty sequence under an adapter, or none.
    ///
    /// # Errors
    /// There is no such adapter.
    fn begin_under(&mut self, adapter: Option<AdapterId>) -> Result<SequenceId, ExecError>;

    /// Begins a sequence with the first `tokens` tokens of another, which goes on
    /// as before, under the same adapter.
    ///
    /// # Errors
    /// The other sequence has fewer tokens, or [`can_fork`](Executor::can_fork)
    /// says no.
    fn fork(&mut self, from: SequenceId, tokens: usize) -> Result<SequenceId, ExecError>;

    /// Whether a sequence still has all KV that its first `tokens` tokens need to
    /// be continued: layers with a sliding window may have let go of some.
    fn can_fork(&self, from: SequenceId, tokens: usize) -> bool;

    /// How many tokens a sequence holds.
    fn len(&self, sequence: SequenceId) -> Result<usize, ExecError>;

    /// Appends each chunk to its sequence and computes the wanted logits into
    /// `logits`, whatever it held. On an error no sequence has grown.
    ///
    /// # Errors
    /// The batch is bad, there is no room, or the device failed.
    fn forward_into(&mut self, batch: &[Chunk<'_>], logits: &mut Logits) -> Result<(), ExecError>;

    /// [`forward_into`](Executor::forward_into) logits of their own.
    ///
    /// # Errors
    /// The same.
    fn forward(&mut self, batch: &[Chunk<'_>]) -> Result<Logits, ExecError> {
        let mut logits = Logits::default();
        self.forward_into(batch, &mut logits)?;
        Ok(logits)
    }

    /// The logits of the tokens `ids` for each of some states that a forward pass gave:
    /// the same ones, to the bit, as a whole row of logits has for its decoded tokens.
    /// What other tokens' would have cost is not spent.
    ///
    /// # Errors
    /// A state of another width, a token that is not in the vocabulary, or the device
    /// failed.
    fn logits_at(&mut self, states: &[&[f32]], ids: &[u32]) -> Result<Vec<Vec<f32>>, ExecError>;

    /// Ends a sequence and frees what KV it shares with none. Unknown ids are
    /// ignored.
    fn end(&mut self, sequence: SequenceId);

    /// How much memory KV takes, and how much it may.
    fn kv_memory(&self) -> KvMemory;

    /// The most tokens that one sequence can have, were it the only one.
    fn longest(&self) -> usize;

    /// Whether there is memory for each of these sequences to grow by so many
    /// tokens, and to come back if it was swapped out.
    fn has_room(&self, growth: &[(SequenceId, usize)]) -> bool;

    /// Lets go of KV of sliding windows that nothing needs which continues this
    /// sequence at its end, or a few tokens before. Returns whether there was any.
    fn trim(&mut self, sequence: SequenceId) -> bool;

    /// Lets go of a sequence's KV, and returns it. Until it is swapped in again, the
    /// sequence must not be used. Of what is left, more can be swapped out later; that
    /// belongs behind the first.
    ///
    /// # Errors
    /// There is no such sequence.
    fn swap_out(&mut self, sequence: SequenceId, part: SwapOut) -> Result<Vec<u8>, ExecError>;

    /// Takes back all that [`swap_out`](Executor::swap_out) gave, bit for bit.
    ///
    /// # Errors
    /// There is no room, or the bytes are not those of this sequence. Then it is
    /// still swapped out.
    fn swap_in(&mut self, sequence: SequenceId, kv: &[u8]) -> Result<(), ExecError>;

    /// The KV of a sequence, to be written to disk: what continuing it at its end
    /// takes.
    fn save(&self, sequence: SequenceId) -> Result<Vec<SavedTensor>, ExecError>;

    /// A sequence of `tokens` tokens out of what [`save`](Executor::save) gave for one
    /// under the same adapter.
    ///
    /// # Errors
    /// It does not fit, there is no room, or no such adapter.
    fn restore(
        &mut self,
        adapter: Option<AdapterId>,
        tokens: usize,
        saved: &SafeTensors<'_>,
    ) -> Result<SequenceId, ExecError>;
}
