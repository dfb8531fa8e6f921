//! The engine: schedules sequences onto an executor (continuous batching, chunked prefill,
//! prefix caching, preemption with swap to disk). It handles token ids, never text or HTTP.
//!
//! One OS thread owns the weights and the KV cache; other threads hold an [`Engine`] handle and
//! communicate through channels. A dropped [`Generation`] (its client disconnected, a stop
//! string matched, a deadline passed) is noticed at the next step. Its KV stays cached until
//! the memory is needed.
//!
//! [`exec`] has the executors for CPUs and GPUs, [`kv`] the prefix tree and saved prefixes. This
//! crate knows no profile, no tokenizer and no wire format.

mod adapter;
mod admission;
mod cache;
mod client;
mod ensemble;
pub mod exec;
mod fairness;
#[cfg(debug_assertions)]
mod fault;
mod follower;
mod handle;
mod heartbeat;
pub mod kv;
mod prefill_budget;
mod sequence;
mod speculation;
mod step_budget;
mod swap;
mod task;
mod wait_estimate;
mod waiting;
mod worker;

use std::sync::Arc;
use std::time::Duration;

pub use adapter::{Adapter, AdapterMemory, AddAdapterError};
pub use client::Client;
pub use ensemble::{EnsembleLead, EnsembleMember, MemberSpec, ensemble};
#[cfg(debug_assertions)]
pub use fault::{Fault, UnknownFault};
pub use follower::{Feed, Follow, follow_channel};
pub use handle::{DEFAULT_ADAPTER_MEMORY, Engine, EngineOptions, Generation, Load};
pub use speculation::{MAX_DRAFT, Speculation};

use incant_sample::{Divergence, SamplingParams, TokenLogprobs};

/// The constant tokens before a prompt, which sequences share.
///
/// The last token is computed with each prompt, because it predicts the prompt's first token;
/// so sequences share the KV of all tokens except the last.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    /// The ids, including BOS if the model requires it.
    pub ids: Vec<u32>,
}

/// The origin of a prefix's KV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The KV was already in memory.
    Memory,
    /// The KV was read from disk.
    Disk,
    /// The KV was computed.
    Computed,
}

/// The result of warming a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Warmed {
    /// The origin of its KV.
    pub origin: Origin,
    /// The number of tokens that sequences share.
    pub tokens: usize,
    /// The time it took.
    pub took: Duration,
}

/// A request for one generated sequence.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// The adapter, if any.
    pub adapter: Option<Adapter>,
    /// The constant tokens at the beginning; their KV is shared.
    pub prefix: Option<Arc<Prefix>>,
    /// The client's own tokens. Prefix and prompt together hold at least one token.
    pub prompt: Vec<u32>,
    /// The maximum number of tokens to generate; 0 only scores the prompt.
    pub max_tokens: usize,
    /// The tokens that end the answer (they are reported, then `FinishReason::Stop`).
    pub end_tokens: Arc<[u32]>,
    /// The sampling parameters.
    pub sampling: SamplingParams,
    /// The index of this answer among the `n` answers of a request; each has its own random
    /// stream.
    pub index: u64,
    /// If set, log-probabilities of generated tokens are reported, with this number of
    /// alternatives.
    pub logprobs: Option<usize>,
    /// If set, log-probabilities of the prompt's tokens (not the prefix's) are reported, with
    /// this number of alternatives.
    pub prompt_logprobs: Option<usize>,
    /// Feeds to the followers that score the answer, each a [`FollowRequest`].
    pub feeds: Vec<Feed>,
    /// The ensemble that chooses the answer's tokens; each member is a [`JoinRequest`].
    pub together: Option<Together>,
    /// Whether the KV is isolated: nothing of it is kept, and only the KV of the constant
    /// prefix is reused, so that response times reveal nothing about the requests of others.
    pub isolated: bool,
    /// How many tokens are drafted; `None` is the default of the engine. If an ensemble with
    /// members in other engines chooses the tokens, there are no drafts.
    pub speculation: Option<Speculation>,
    /// Text that the answer may repeat, from which tokens are drafted too; may be empty.
    pub prediction: Vec<u32>,
}

/// The participation of a generating sequence in an ensemble.
#[derive(Clone, Debug)]
pub struct Together {
    /// Its handle of the ensemble.
    pub lead: EnsembleLead,
    /// Whether the reported log-probabilities of generated tokens are those of the mixture,
    /// over the tokens that could be chosen, instead of the sequence's own.
    pub report_mixture: bool,
}

/// A request for one member of an ensemble: a sequence that contributes to the choice of another's
/// tokens by its own logits for the same answer after another prompt. It reports only its start
/// and its end, which is that of the lead.
#[derive(Debug)]
pub struct JoinRequest {
    /// The adapter, if any.
    pub adapter: Option<Adapter>,
    /// The constant tokens at the beginning; their KV is shared.
    pub prefix: Option<Arc<Prefix>>,
    /// The tokens before the lead's answer. Prefix and prompt together hold at least one token.
    pub prompt: Vec<u32>,
    /// Its handle of the ensemble.
    pub member: EnsembleMember,
    /// Whether a later prompt is likely to continue where this sequence ends.
    pub keep: bool,
    /// See [`GenerateRequest::isolated`].
    pub isolated: bool,
}

/// A request for one sequence that scores what another generates. It reports [`Event::Scored`]
/// for each token, and ends when the other has ended.
#[derive(Debug)]
pub struct FollowRequest {
    /// The adapter, if any.
    pub adapter: Option<Adapter>,
    /// The constant tokens at the beginning; their KV is shared.
    pub prefix: Option<Arc<Prefix>>,
    /// The tokens before the leader's answer. Prefix and prompt together hold at least one
    /// token.
    pub prompt: Vec<u32>,
    /// The number of alternatives to report.
    pub top: usize,
    /// The leader's tokens.
    pub follow: Follow,
}

/// A request for one sequence of any kind.
#[derive(Debug)]
pub enum Request {
    /// A sequence that generates.
    Generate(Box<GenerateRequest>),
    /// A sequence that scores what another generates.
    Follow(FollowRequest),
    /// A sequence that contributes to the choice of another's tokens.
    Join(JoinRequest),
}

impl From<GenerateRequest> for Request {
    fn from(request: GenerateRequest) -> Request {
        Request::Generate(Box::new(request))
    }
}

impl From<JoinRequest> for Request {
    fn from(request: JoinRequest) -> Request {
        Request::Join(request)
    }
}

impl From<FollowRequest> for Request {
    fn from(request: FollowRequest) -> Request {
        Request::Follow(request)
    }
}

/// The reason why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An end token was generated.
    Stop,
    /// `max_tokens` or the end of the context was reached.
    Length,
}

/// An event of a running sequence.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The sequence was given a slot. This is the first event and occurs once.
    Started {
        /// The number of tokens whose KV was cached.
        cached_tokens: usize,
        /// Whether cached KV was read from disk for this sequence.
        from_disk: bool,
    },
    /// The log-probabilities of the prompt's tokens, one entry each, in order; sent once,
    /// before the first token. An entry is `None` only if nothing precedes the token.
    Prompt(Vec<Option<TokenLogprobs>>),
    /// A generated token.
    Token {
        /// The id.
        id: u32,
        /// The log-probabilities, if requested.
        logprobs: Option<TokenLogprobs>,
    },
    /// Some tokens were drafted (see [`Speculation`]); comes before the tokens that were chosen in
    /// the same step.
    Drafted {
        /// The number of drafted tokens.
        drafted: usize,
        /// The number of these that became tokens of the answer.
        accepted: usize,
    },
    /// The score of the leader's next token.
    Scored(Scored),
    /// The sequence has ended; the last event.
    Finished(FinishReason),
    /// The executor failed; the last event.
    Failed(String),
}

/// The score of a token that another sequence generated.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// The log-probability of the token in this sequence.
    pub logprob: f32,
    /// The 1-based rank of the token in this sequence.
    pub rank: usize,
    /// The most likely tokens in this sequence, best first.
    pub top: Vec<(u32, f32)>,
    /// The divergences between the distributions of the two sequences, in both directions.
    pub divergence: Divergence,
}

/// The reasons why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The queue is full; retry after the given number of seconds.
    #[error("the queue is full")]
    QueueFull {
        /// Seconds until the sequences are likely to fit.
        retry_after: u64,
    },
    /// The request has more sequences than slots and queue can ever hold.
    #[error("the request asks for {asked} answers, this server takes {limit} at once")]
    TooMany {
        /// The number of sequences of the request.
        asked: usize,
        /// The maximum number of sequences.
        limit: usize,
    },
    /// The engine's thread has panicked, or is stuck.
    #[error("the engine has failed")]
    Unhealthy,
    /// The engine is draining and refuses requests.
    #[error("the server is shutting down")]
    Draining,
}

/// The reasons why a prefix cannot be warmed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WarmError {
    /// The engine refuses requests.
    #[error(transparent)]
    Refused(#[from] SubmitError),
    /// The executor failed, with this message.
    #[error("{0}")]
    Failed(String),
    /// The engine's thread has panicked.
    #[error("the engine's thread has died")]
    Died,
}
