//! The outer object of an answer, shared by chat and completions.

use schemars::JsonSchema;
use serde::Serialize;

use super::{Answer, Usage};
use incant_runtime::choice::Piece;
use incant_runtime::clock::unix_time;

/// Identifies the build, as OpenAI identifies its backend configuration.
const FINGERPRINT: &str = concat!("incant-", env!("CARGO_PKG_VERSION"));

/// The wire format of an endpoint's answers.
pub(crate) trait Shape: Send + 'static {
    /// The prefix of its response ids.
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

    /// Writes a piece of an answer, each element in a chunk of its own.
    fn chunks(&self, piece: Piece) -> Vec<Self::Delta>;
}

/// The fields that are the same in every chunk of a response.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    id: String,
    created: u64,
    model: String,
    profile: Option<String>,
    /// Sent once: in a whole answer or in the first chunk.
    prompt_token_ids: Option<Vec<u32>>,
}

/// A whole answer or a chunk of one.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "{C}Response")]
pub(crate) struct Envelope<C> {
    /// The id of the response, the same in every chunk.
    id: String,
    /// The type of this object.
    object: &'static str,
    /// When the answer was begun, in seconds since 1970 (Unix time).
    created: u64,
    /// The id of the arm that answers, as requested.
    model: String,
    /// The profile that rendered the conversation. Absent where the model's own chat template did,
    /// and in completions.
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<String>,
    /// The token ids of the prompt, in chat where `return_token_ids` is true: in a stream only in
    /// its first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
    /// Identifies the server's build.
    system_fingerprint: &'static str,
    /// The answers. Empty in the chunk that carries the usage.
    choices: Vec<C>,
    /// Absent from chunks, unless `stream_options.include_usage` is true: then null in all but the
    /// last. With `continuous_usage_stats`, each chunk has the usage so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

impl Head {
    pub(crate) fn new<S: Shape>(
        model: String,
        profile: Option<String>,
        prompt_token_ids: Option<Vec<u32>>,
    ) -> Head {
        Head {
            id: format!("{}{:032x}", S::ID, rand::random::<u128>()),
            created: unix_time(),
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

    /// Returns the whole answer.
    pub(crate) fn whole<S: Shape>(
        mut self,
        choices: Vec<S::Choice>,
        usage: Usage,
    ) -> Envelope<S::Choice> {
        self.envelope(S::OBJECT, choices, Some(Some(usage)))
    }

    /// Returns a chunk. Without a `usage` it has no such field; `Some(None)` is written as null.
    pub(crate) fn chunk<S: Shape>(
        &mut self,
        choice: S::Delta,
        usage: Option<Option<Usage>>,
    ) -> Envelope<S::Delta> {
        self.envelope(S::CHUNK, vec![choice], usage)
    }

    /// Returns the last chunk, which carries the usage.
    pub(crate) fn last_chunk<S: Shape>(&mut self, usage: Usage) -> Envelope<S::Delta> {
        self.envelope(S::CHUNK, Vec::new(), Some(Some(usage)))
    }
}
