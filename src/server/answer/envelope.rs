//! The outer object of an answer, which chat and completions share.

use std::time::{SystemTime, UNIX_EPOCH};

use schemars::JsonSchema;
use serde::Serialize;

use super::{Answer, Usage};
use crate::runtime::choice::Piece;

/// Names the build, as OpenAI names the configuration behind an answer.
const FINGERPRINT: &str = concat!("incant-", env!("CARGO_PKG_VERSION"));

/// How an endpoint writes answers.
pub(crate) trait Shape: Send + 'static {
    /// What its ids begin with.
    const ID: &'static str;
    /// The `object` of a whole answer.
    const OBJECT: &'static str;
    /// The `object` of a chunk.
    const CHUNK: &'static str;
    /// An element of `choices` in a whole answer.
    type Choice: Serialize + Send;
    /// An element of `choices` in a chunk.
    type Delta: Serialize + Send;

    /// Writes a whole answer.
    fn answer(&self, answer: Answer) -> Self::Choice;

    /// Writes a piece of one, each element in a chunk of its own.
    fn chunks(&self, piece: Piece) -> Vec<Self::Delta>;
}

/// What is the same in every chunk of a response.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    id: String,
    created: u64,
    model: String,
    profile: Option<String>,
    /// Told once: in a whole answer or in the first chunk.
    prompt_token_ids: Option<Vec<u32>>,
}

/// A whole answer or a chunk of one.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "{C}Response")]
pub(crate) struct Envelope<C> {
    /// The same in every chunk of a response.
    id: String,
    /// What this is.
    object: &'static str,
    /// When the answer was begun, in seconds since 1970.
    created: u64,
    /// The id of the arm that answers, as it was asked for.
    model: String,
    /// The profile that rendered the conversation; absent where that was the model's own chat template, and in
    /// completions.
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<String>,
    /// The ids of the prompt's tokens, in chat where `return_token_ids` is true: in a stream only in its first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
    /// Names the server's build.
    system_fingerprint: &'static str,
    /// The answers. Empty in the chunk that carries the usage.
    choices: Vec<C>,
    /// Absent from chunks, unless `stream_options.include_usage` is true: then null in all but the last. With
    /// `continuous_usage_stats` that so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

impl Head {
    /// A new response's head.
    pub(crate) fn new<S: Shape>(
        model: String,
        profile: Option<String>,
        prompt_token_ids: Option<Vec<u32>>,
    ) -> Head {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        Head {
            id: format!("{}{:032x}", S::ID, rand::random::<u128>()),
            // A clock before 1970 is no reason to refuse an answer.
            created: since_1970.map_or(0, |time| time.as_secs()),
            model,
            profile,
            prompt_token_ids,
        }
    }

    fn envelope<C>(
        &mut self,
        object: &'static str,
        choices: Vec<C>,
        usage: Option<Option<Usage>>,
    ) -> Envelope<C> {
        Envelope {
            id: self.id.clone(),
            object,
            created: self.created,
            model: self.model.clone(),
            profile: self.profile.clone(),
            prompt_token_ids: self.prompt_token_ids.take(),
            system_fingerprint: FINGERPRINT,
            choices,
            usage,
        }
    }

    /// The whole answer.
    pub(crate) fn whole<S: Shape>(
        mut self,
        choices: Vec<S::Choice>,
        usage: Usage,
    ) -> Envelope<S::Choice> {
        self.envelope(S::OBJECT, choices, Some(Some(usage)))
    }

    /// A chunk; what its `usage` is, if it has one.
    pub(crate) fn chunk<S: Shape>(
        &mut self,
        choice: S::Delta,
        usage: Option<Option<Usage>>,
    ) -> Envelope<S::Delta> {
        self.envelope(S::CHUNK, vec![choice], usage)
    }

    /// The chunk that carries the usage.
    pub(crate) fn last_chunk<S: Shape>(&mut self, usage: Usage) -> Envelope<S::Delta> {
        self.envelope(S::CHUNK, Vec::new(), Some(Some(usage)))
    }
}
