//! Executors run a decoder: token ids and KV in, logits out.
//!
//! An [`Executor`] owns the weights and the KV cache of its sequences. It knows nothing of
//! requests: the engine tells it which tokens to run and which logits are wanted.
//!
//! Sequences share KV: a *fork* begins with the tokens of another sequence, and neither
//! computes nor stores the KV of the common tokens again (copy-on-write). So the KV of a
//! constant prompt, or of the earlier turns of a conversation, is cached by keeping a sequence
//! that ends there, and reused by forking it.

mod adapters;
mod backend;
pub mod device;
#[cfg(test)]
pub(crate) mod fake;
mod ledger;
pub mod native;
mod saved;

pub use backend::{Backend, DeviceChoice, UnknownDevice};

use std::error::Error;

use safetensors::SafeTensors;

use incant_model::DecoderSpec;
pub use incant_model::Footprint;
use incant_model::lora::Lora;

/// The id of a sequence of an executor: tokens and their KV.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(u64);

/// The id of an adapter of an executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdapterId(u64);

/// The rows of a chunk whose logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// No row: more of the prompt follows.
    None,
    /// The last row: the next token will be sampled.
    Last,
    /// No logits yet, but the final hidden state of the last row, from which
    /// [`logits_at`](Executor::logits_at) computes those that turn out to be needed.
    State,
    /// Every row: the prompt is scored, or tokens are drafted.
    All,
    /// The final hidden states of every row.
    States,
}

/// How exactly the rows of a chunk are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// As exactly as the executor can. A row has the same bits in whatever chunks and batches its
    /// sequence was computed, as long as all tokens before it were computed alike.
    Exact,
    /// Possibly faster and less exact: rows of a prompt, of which no logits are wanted.
    Fast,
}

/// Tokens to append to one sequence; a batch holds at most one chunk per sequence.
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'a> {
    /// The sequence to continue.
    pub sequence: SequenceId,
    /// The tokens, at least one.
    pub tokens: &'a [u32],
    /// The logits to compute.
    pub wanted: Wanted,
    /// How exactly they are computed.
    pub precision: Precision,
}

impl Chunk<'_> {
    /// The number of rows of logits that this chunk requests.
    pub fn wanted_rows(&self) -> usize {
        match self.wanted {
            Wanted::None | Wanted::State | Wanted::States => 0,
            Wanted::Last => 1,
            Wanted::All => self.tokens.len(),
        }
    }

    /// The number of states that this chunk requests.
    pub fn wanted_states(&self) -> usize {
        match self.wanted {
            Wanted::None | Wanted::Last | Wanted::All => 0,
            Wanted::State => 1,
            Wanted::States => self.tokens.len(),
        }
    }
}

/// The part of a sequence to swap out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwapOut {
    /// The KV that no other sequence shares: exactly the part whose release certainly frees
    /// memory.
    Own,
    /// Shared KV too. Its memory is freed once no other sequence holds it; swapped in again, it
    /// belongs to the sequence alone.
    All,
}

/// The wanted rows of logits, in the order of the batch's chunks and of the positions within a
/// chunk, and the wanted states, also in the order of the batch.
#[derive(Debug, Default)]
pub struct Logits {
    vocab: usize,
    values: Vec<f32>,
    hidden: usize,
    states: Vec<f32>,
}

/// The buffer is reallocated if its capacity exceeds four times the larger of this number of
/// logits and the needed length.
const MIN_KEPT_LOGITS: usize = 1 << 22;

impl Logits {
    /// Resizes the buffer to `rows` rows of `vocab` logits with unspecified contents, and
    /// returns it.
    fn reset(&mut self, rows: usize, vocab: usize) -> &mut [f32] {
        self.vocab = vocab;
        let len = rows * vocab;
        // Scored prompts need many rows, but only for a short time.
        let kept = self.values.capacity();
        if kept < len || kept > 4 * len.max(MIN_KEPT_LOGITS) {
            self.values = Vec::with_capacity(len);
        }
        // Old contents need not be cleared; only additional elements are initialized.
        self.values.resize(len, 0.0);
        &mut self.values
    }

    /// Resizes the buffer to `count` states of `hidden` values each, and returns it.
    fn reset_states(&mut self, count: usize, hidden: usize) -> &mut [f32] {
        self.hidden = hidden;
        self.states.resize(count * hidden, 0.0);
        &mut self.states
    }

    /// Returns state number `index`: the input of the LM head for a row.
    pub fn state(&self, index: usize) -> &[f32] {
        &self.states[index * self.hidden..][..self.hidden]
    }

    /// The number of rows of logits.
    pub fn rows(&self) -> usize {
        self.values.len().checked_div(self.vocab).unwrap_or(0)
    }

    /// Returns row `index`, one logit per token of the vocabulary.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.vocab..][..self.vocab]
    }

    /// Returns row `index`, which the sampler edits in place.
    pub fn row_mut(&mut self, index: usize) -> &mut [f32] {
        &mut self.values[index * self.vocab..][..self.vocab]
    }
}

/// A tensor of saved KV, in the form of a safetensors entry.
#[derive(Debug)]
pub struct SavedTensor {
    /// The name in the file.
    pub name: String,
    /// The shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// The element type.
    pub dtype: safetensors::Dtype,
    /// The elements, little-endian.
    pub bytes: Vec<u8>,
}

/// The default size of the KV cache: [`DEFAULT_KV_MEMORY`], or the size of the longest context
/// at `number` bytes per element if that is larger.
pub fn default_kv_memory(spec: &DecoderSpec, number: usize) -> usize {
    let head = 2 * number * spec.head_dim.next_multiple_of(16);
    let token = head.saturating_mul(spec.kv_heads);
    let layers = spec.layers.iter().map(|layer| {
        // Leaves some pages to spare.
        let seen = layer
            .window
            .map_or(spec.context, |window| 2 * window + 1024);
        seen.min(spec.context) + 64
    });
    DEFAULT_KV_MEMORY.max(token.saturating_mul(layers.sum::<usize>()))
}

/// The default size of the KV cache in bytes; see [`default_kv_memory`].
pub const DEFAULT_KV_MEMORY: usize = 1 << 30;

/// Checks the arguments of [`Executor::logits_at`].
fn check_states(spec: &DecoderSpec, states: &[&[f32]], ids: &[u32]) -> Result<(), ExecError> {
    if states.iter().any(|state| state.len() != spec.hidden) {
        return Err(ExecError::Batch("a state has another width than the model"));
    }
    if ids.iter().any(|&id| id as usize >= spec.vocab) {
        return Err(ExecError::Batch("a token is not in the vocabulary"));
    }
    Ok(())
}

/// The memory of the KV cache, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvMemory {
    /// The size of the KV of all sequences; shared KV counts once.
    pub used: usize,
    /// The maximum size.
    pub capacity: usize,
}

/// Errors of an executor.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The tensor library failed: out of memory, a lost device.
    #[error(transparent)]
    Tensor(Box<dyn Error + Send + Sync>),
    /// The weights cannot be run.
    #[error(transparent)]
    Model(#[from] incant_model::ModelError),
    /// The system is out of memory.
    #[error("{0}")]
    Memory(String),
    /// The chosen device is not available, or not compiled in.
    #[error("{0}")]
    Device(String),
    /// Saved KV does not match this model.
    #[error("saved KV does not fit: {0}")]
    Saved(String),
    /// A sequence or an adapter does not exist, or no longer exists.
    #[error("unknown {0}")]
    Unknown(String),
    /// A batch violates the rules of the executor.
    #[error("bad batch: {0}")]
    Batch(&'static str),
    /// The KV cache is full; see [`Executor::fits`].
    #[error("there is no room for more KV")]
    OutOfKvMemory,
}

/// Runs the forward passes of one model.
pub trait Executor: Send {
    /// The spec of the model.
    fn spec(&self) -> &DecoderSpec;

    /// The memory that the weights take.
    fn footprint(&self) -> Footprint;

    /// Returns the name of the layout and precision of saved KV, which is part of the key of a
    /// saved prefix.
    fn kv_format(&self) -> String;

    /// The size that an adapter will have in memory, in bytes.
    fn adapter_bytes(&self, lora: &Lora) -> usize;

    /// Adds an adapter.
    ///
    /// # Errors
    /// The device is out of memory.
    fn add_adapter(&mut self, lora: &Lora) -> Result<AdapterId, ExecError>;

    /// Removes an adapter. Sequences that were begun with it can continue. Unknown ids are
    /// ignored.
    fn remove_adapter(&mut self, adapter: AdapterId);

    /// Whether [`Precision::Fast`] differs from [`Precision::Exact`]. If so, recomputed KV has
    /// the same bits only if each token is computed with the precision that it had before.
    fn has_fast_precision(&self) -> bool {
        false
    }

    /// Begins an empty sequence of the base model.
    fn begin(&mut self) -> SequenceId;

    /// Begins an empty sequence with an adapter, if one is given.
    ///
    /// # Errors
    /// There is no such adapter.
    fn begin_with_adapter(&mut self, adapter: Option<AdapterId>) -> Result<SequenceId, ExecError>;

    /// Begins a sequence with the first `tokens` tokens of another sequence, with the same
    /// adapter. The other sequence is not affected.
    ///
    /// # Errors
    /// The other sequence has fewer tokens, or [`can_fork`](Executor::can_fork) returns false.
    fn fork(&mut self, from: SequenceId, tokens: usize) -> Result<SequenceId, ExecError>;

    /// Whether a sequence still holds all KV needed to continue after its first `tokens`
    /// tokens: layers with a sliding window may have released some.
    fn can_fork(&self, from: SequenceId, tokens: usize) -> bool;

    /// Takes back the last tokens of a sequence, so that it has its first `tokens` tokens. It
    /// continues as if the others had never been appended. Sequences that were forked from it keep
    /// all of theirs.
    ///
    /// # Errors
    /// The sequence has fewer tokens, or [`can_fork`](Executor::can_fork) returns false.
    fn truncate(&mut self, sequence: SequenceId, tokens: usize) -> Result<(), ExecError>;

    /// The number of tokens of a sequence.
    fn len(&self, sequence: SequenceId) -> Result<usize, ExecError>;

    /// Appends each chunk to its sequence and overwrites `logits` with the wanted logits. On
    /// error, no sequence has grown.
    ///
    /// # Errors
    /// The batch is invalid, the KV cache is full, or the device failed.
    fn forward_into(&mut self, batch: &[Chunk<'_>], logits: &mut Logits) -> Result<(), ExecError>;

    /// Like [`forward_into`](Executor::forward_into), with new logits.
    ///
    /// # Errors
    /// See [`forward_into`](Executor::forward_into).
    fn forward(&mut self, batch: &[Chunk<'_>]) -> Result<Logits, ExecError> {
        let mut logits = Logits::default();
        self.forward_into(batch, &mut logits)?;
        Ok(logits)
    }

    /// Computes the logits of the tokens `ids` for each of some states from a forward pass: bit
    /// for bit the same as in a whole row of logits of a decoded token, without the cost of the
    /// other tokens' logits.
    ///
    /// # Errors
    /// A state has the wrong width, a token is not in the vocabulary, or the device failed.
    fn logits_at(&mut self, states: &[&[f32]], ids: &[u32]) -> Result<Vec<Vec<f32>>, ExecError>;

    /// Ends a sequence and frees the KV that no other sequence shares. Unknown ids are ignored.
    fn end(&mut self, sequence: SequenceId);

    /// The used and the maximum memory of the KV cache.
    fn kv_memory(&self) -> KvMemory;

    /// The maximum number of tokens of a sequence that has the KV cache to itself.
    fn max_tokens(&self) -> usize;

    /// Whether each of these sequences can grow by the given number of tokens, including the
    /// memory to swap it in if it is swapped out.
    fn fits(&self, growth: &[(SequenceId, usize)]) -> bool;

    /// Releases KV outside the sliding windows that is not needed to continue this sequence at
    /// its end, or a few tokens before. Returns whether any was released.
    fn trim(&mut self, sequence: SequenceId) -> bool;

    /// Releases the KV of a sequence and returns it. Until it is swapped in again, the sequence
    /// must not be used. More of the remaining KV can be swapped out later; the caller must
    /// append it to the first part.
    ///
    /// # Errors
    /// There is no such sequence.
    fn swap_out(&mut self, sequence: SequenceId, part: SwapOut) -> Result<Vec<u8>, ExecError>;

    /// Restores, bit for bit, all KV that [`swap_out`](Executor::swap_out) returned.
    ///
    /// # Errors
    /// The KV cache is full, or the bytes do not belong to this sequence. The sequence then
    /// stays swapped out.
    fn swap_in(&mut self, sequence: SequenceId, kv: &[u8]) -> Result<(), ExecError>;

    /// Returns the KV needed to continue a sequence at its end, to be written to disk.
    fn save(&self, sequence: SequenceId) -> Result<Vec<SavedTensor>, ExecError>;

    /// Restores a sequence of `tokens` tokens from the result of [`save`](Executor::save) for a
    /// sequence with the same adapter.
    ///
    /// # Errors
    /// The data does not match, the KV cache is full, or there is no such adapter.
    fn restore(
        &mut self,
        adapter: Option<AdapterId>,
        tokens: usize,
        saved: &SafeTensors<'_>,
    ) -> Result<SequenceId, ExecError>;
}
