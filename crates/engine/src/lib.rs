//! Schedules sequences onto an executor. Sees token ids, never text or HTTP.
//!
//! One OS thread owns the weights and the KV; everything else holds an
//! [`Engine`] handle and talks to it through channels. A [`Generation`] that is
//! dropped (its client left, a stop string matched, a deadline passed) is
//! noticed at the next step. What it computed stays until its memory is needed.

mod adapter;
mod cache;
mod client;
pub mod exec;
mod fair;
#[cfg(debug_assertions)]
mod fault;
mod follow;
mod group;
mod handle;
pub mod kv;
mod outlook;
mod pace;
mod places;
mod pulse;
mod sequence;
mod share;
mod swap;
mod waiting;
mod work;
mod worker;

use std::sync::Arc;
use std::time::Duration;

pub use adapter::{Adapter, AdapterMemory, AddAdapterError};
pub use client::Client;
#[cfg(debug_assertions)]
pub use fault::Fault;
pub use follow::{Feed, Follow, lead};
pub use group::{Lead, Seat, Share, group};
pub use handle::{DEFAULT_ADAPTER_MEMORY, Engine, EngineOptions, Generation, Load};

use incant_sample::{Divergence, SamplingParams, TokenLogprobs};

/// The constant tokens before a prompt, shared by every sequence that has them.
///
/// The last of them is computed with each prompt: it predicts the prompt's
/// first token, so all but the last are what sequences share.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    /// The ids, BOS included where the model asks for one.
    pub ids: Vec<u32>,
}

/// Where a prefix's KV came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was in memory already.
    Memory,
    /// It was read from disk.
    Disk,
    /// It was computed.
    Computed,
}

/// How a prefix came into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Warmed {
    /// Where its KV came from.
    pub origin: Origin,
    /// How many tokens it shares.
    pub tokens: usize,
    /// How long that took.
    pub took: Duration,
}

/// One sequence to generate.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// The adapter to compute it under.
    pub adapter: Option<Adapter>,
    /// Constant tokens that come first; their KV is shared.
    pub prefix: Option<Arc<Prefix>>,
    /// The client's own tokens. Prefix and prompt together hold at least one.
    pub prompt: Vec<u32>,
    /// How many tokens to generate at the most; 0 only scores the prompt.
    pub max_tokens: usize,
    /// Tokens that end the answer (they are reported, then `FinishReason::Stop`).
    pub end_tokens: Arc<[u32]>,
    /// How each token is chosen.
    pub sampling: SamplingParams,
    /// Which of a request's `n` answers this is: each has its own random stream.
    pub index: u64,
    /// Report log-probabilities of generated tokens, with so many alternatives.
    pub logprobs: Option<usize>,
    /// The same for the prompt's tokens (not the prefix's).
    pub prompt_logprobs: Option<usize>,
    /// Who scores the answer under another beginning, each by a [`FollowRequest`].
    pub feeds: Vec<Feed>,
    /// Who chooses the answer's tokens with this one, each by a [`JoinRequest`].
    pub together: Option<Together>,
    /// Whether its KV is its own: nothing is kept of it, and it finds nothing but the KV of
    /// its constant prefix, so that no time it takes tells what others have asked.
    pub isolated: bool,
}

/// How a sequence chooses its tokens with others.
#[derive(Clone, Debug)]
pub struct Together {
    /// Its place among them.
    pub lead: Lead,
    /// Whether the log-probabilities of generated tokens are those of the mixture, over
    /// the tokens that could be chosen, instead of the sequence's own.
    pub report_mixture: bool,
}

/// One sequence that chooses with another which tokens that one's answer has, by its own
/// logits for the same answer after another beginning. It reports only that it started,
/// and ends when the other has.
#[derive(Debug)]
pub struct JoinRequest {
    /// The adapter to compute it under.
    pub adapter: Option<Adapter>,
    /// Constant tokens that come first; their KV is shared.
    pub prefix: Option<Arc<Prefix>>,
    /// What comes before the other's answer here. Prefix and prompt together hold at
    /// least one token.
    pub prompt: Vec<u32>,
    /// Its place among those that choose.
    pub seat: Seat,
    /// Whether a later prompt is likely to go on where this one ends.
    pub keep: bool,
    /// See [`GenerateRequest::isolated`].
    pub isolated: bool,
}

/// One sequence that scores what another generates. It reports [`Event::Scored`] for each
/// token, and ends when the other has.
#[derive(Debug)]
pub struct FollowRequest {
    /// The adapter to compute it under.
    pub adapter: Option<Adapter>,
    /// Constant tokens that come first; their KV is shared.
    pub prefix: Option<Arc<Prefix>>,
    /// What comes before the other's answer here. Prefix and prompt together hold at
    /// least one token.
    pub prompt: Vec<u32>,
    /// Report so many alternatives.
    pub top: usize,
    /// Whom to follow.
    pub follow: Follow,
}

/// One sequence of either kind.
#[derive(Debug)]
pub enum Request {
    /// One that generates.
    Generate(GenerateRequest),
    /// One that scores what another generates.
    Follow(FollowRequest),
    /// One that chooses with another what that one generates.
    Join(JoinRequest),
}

impl From<GenerateRequest> for Request {
    fn from(request: GenerateRequest) -> Request {
        Request::Generate(request)
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

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An end token was generated.
    Stop,
    /// `max_tokens` or the context's end was reached.
    Length,
}

/// What a running sequence reports.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The sequence was given a slot. Comes first, once.
    Started {
        /// Tokens whose KV was already there.
        cached_tokens: usize,
        /// Whether it was read from disk for this sequence.
        from_disk: bool,
    },
    /// Log-probabilities of the prompt's tokens, one entry each, in order; sent
    /// once, before the first token. `None` only where nothing precedes the token.
    Prompt(Vec<Option<TokenLogprobs>>),
    /// A generated token.
    Token {
        /// Its id.
        id: u32,
        /// Present if the request asked for log-probabilities.
        logprobs: Option<TokenLogprobs>,
    },
    /// The next token that the sequence follows, scored.
    Scored(Scored),
    /// The end; nothing follows.
    Finished(FinishReason),
    /// The executor failed; nothing follows.
    Failed(String),
}

/// A token that another sequence generated, as this one sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// Its log-probability here.
    pub logprob: f32,
    /// Its 1-based place by likelihood here.
    pub rank: usize,
    /// The most likely tokens here, best first.
    pub top: Vec<(u32, f32)>,
    /// Of the other's distribution from this one, and back.
    pub divergence: Divergence,
}

/// Why a request was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The queue is full; retry after so many seconds.
    #[error("the queue is full")]
    QueueFull {
        /// Seconds until a place is likely.
        retry_after: u64,
    },
    /// The request has more sequences than slots and queue can ever hold.
    #[error("the request asks for {asked} answers, this server takes {limit} at once")]
    TooMany {
        /// How many it asks for.
        asked: usize,
        /// The most there is room for.
        limit: usize,
    },
    /// The engine's thread has ended by a panic, or stands still with work to do.
    #[error("the engine has failed")]
    Ill,
    /// The engine is draining and takes no new work.
    #[error("the server is shutting down")]
    Draining,
}
