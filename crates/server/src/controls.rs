//! The sampling parameters that chat and completions share: how tokens are chosen, how many answers
//! there are, and where they end (stop strings, end tokens, `max_tokens`).
//!
//! [`Controls`] is the wire format. [`Controls::resolve`] checks each range and fills in absent
//! values from the arm's profile, then from the model's manifest, then from OpenAI's own defaults. A value out of range is refused,
//! never clamped.

mod biases;
mod numbers;
mod resolve;
mod tokens;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde_json::json;

use biases::{Biases, biases_schema};
use incant_prompt::profile::{MAX_BREAKER_BYTES, MAX_BREAKERS};

use super::deadline::MAX_SECONDS;
use super::fields::{BoundedList, Object, StringOr, integer};
use super::ranges;
pub(crate) use numbers::in_range;
pub(crate) use resolve::{Limits, Resolved, Stream};
pub(crate) use tokens::check_ids;

/// The maximum number of stop strings, and of their bytes in total: each answer has a matcher of
/// its own, which compares every byte with each of them.
const MAX_STOPS: usize = 64;
const MAX_STOP_BYTES: usize = 16 << 10;

/// The maximum number of texts in `bad_words`, and of their bytes in total: each is looked for
/// before every token.
const MAX_BAD_WORDS: usize = 256;
const MAX_BAD_WORD_BYTES: usize = 16 << 10;

/// Generation parameters. An absent or null one takes the profile's default, then OpenAI's.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(rename = "GenerationParameters")]
pub(crate) struct Controls {
    /// 0 always takes the most likely token; 1 samples from the model's own distribution.
    #[schemars(range(min = ranges::TEMPERATURE.min, max = ranges::TEMPERATURE.max))]
    temperature: Option<f64>,
    /// Nucleus sampling: sample among the most likely tokens that together hold this mass; 0 keeps
    /// only the top one.
    #[schemars(range(min = ranges::TOP_P.min, max = ranges::TOP_P.max))]
    top_p: Option<f64>,
    /// Sample among the k most likely tokens; 0 or -1 keeps all.
    #[serde(deserialize_with = "integer::option")]
    #[schemars(range(min = ranges::TOP_K.min, max = ranges::TOP_K.max))]
    top_k: Option<i64>,
    /// Drop tokens less likely than this share of the most likely one.
    #[schemars(range(min = ranges::MIN_P.min, max = ranges::MIN_P.max))]
    min_p: Option<f64>,
    /// Subtracted once from every token that was generated before.
    #[schemars(range(min = ranges::PENALTY.min, max = ranges::PENALTY.max))]
    presence_penalty: Option<f64>,
    /// Subtracted for every time a token was generated before.
    #[schemars(range(min = ranges::PENALTY.min, max = ranges::PENALTY.max))]
    frequency_penalty: Option<f64>,
    /// Divides the positive and multiplies the negative logits of generated tokens; 1 is off.
    #[schemars(range(min = ranges::REPETITION_PENALTY.min, max = ranges::REPETITION_PENALTY.max))]
    repetition_penalty: Option<f64>,
    /// The name of `repetition_penalty` in llama.cpp.
    #[schemars(range(min = ranges::REPETITION_PENALTY.min, max = ranges::REPETITION_PENALTY.max))]
    repeat_penalty: Option<f64>,
    /// Whether `repetition_penalty` counts the prompt's tokens too.
    penalize_prompt: Option<bool>,
    /// DRY: the penalty of a token that would continue a repetition of the allowed length; 0 is
    /// off.
    #[schemars(range(min = ranges::DRY_MULTIPLIER.min, max = ranges::DRY_MULTIPLIER.max))]
    dry_multiplier: Option<f64>,
    /// DRY: the factor of that penalty for each further repeated token; below 1 is off.
    #[schemars(range(min = ranges::DRY_BASE.min, max = ranges::DRY_BASE.max))]
    dry_base: Option<f64>,
    /// DRY: repetitions of fewer tokens than this have no penalty.
    #[serde(deserialize_with = "integer::option")]
    #[schemars(range(min = ranges::DRY_ALLOWED_LENGTH.min, max = ranges::DRY_ALLOWED_LENGTH.max))]
    dry_allowed_length: Option<i64>,
    /// DRY: how many of the last tokens of the client's text and the answer are searched for
    /// repetitions; -1 searches all, 0 is off.
    #[serde(deserialize_with = "integer::option")]
    #[schemars(range(min = ranges::DRY_PENALTY_LAST_N.min, max = ranges::DRY_PENALTY_LAST_N.max))]
    dry_penalty_last_n: Option<i64>,
    /// DRY: texts that no repetition extends across; if absent, newline, colon, double quote and
    /// asterisk.
    #[schemars(schema_with = "breakers_schema")]
    dry_sequence_breakers: Option<BoundedList<String, MAX_BREAKERS>>,
    /// Top-n-sigma: keep tokens whose logit is at most this many standard deviations below the
    /// largest; 0 and below keep all.
    #[schemars(range(min = ranges::TOP_N_SIGMA.min, max = ranges::TOP_N_SIGMA.max))]
    top_n_sigma: Option<f64>,
    /// Locally typical sampling: sample among the tokens with this mass whose surprise is nearest
    /// the expected one; 1 keeps all.
    #[schemars(range(min = ranges::TYPICAL_P.min, max = ranges::TYPICAL_P.max))]
    typical_p: Option<f64>,
    /// XTC: how often all tokens that reach `xtc_threshold` are left out, except the least likely
    /// of them; 0 is off.
    #[schemars(range(min = ranges::XTC_PROBABILITY.min, max = ranges::XTC_PROBABILITY.max))]
    xtc_probability: Option<f64>,
    /// XTC: the probability from which on tokens are left out; above 0.5 it is off.
    #[schemars(range(min = ranges::XTC_THRESHOLD.min, max = ranges::XTC_THRESHOLD.max))]
    xtc_threshold: Option<f64>,
    /// Maps token ids (as strings) to numbers that are added to their logits.
    #[schemars(schema_with = "biases_schema")]
    logit_bias: Option<Biases>,
    /// The only tokens that may be chosen; end tokens too must be among them.
    #[serde(deserialize_with = "integer::optional_list")]
    #[schemars(length(min = 1))]
    allowed_token_ids: Option<Vec<u32>>,
    /// Texts that the answer must not contain, as far as it is made of their own tokens, with a
    /// space before them or without.
    #[schemars(schema_with = "bad_words_schema")]
    bad_words: Option<BoundedList<String, MAX_BAD_WORDS>>,
    /// The same request with the same seed gives the same answer; -1 draws one.
    #[serde(deserialize_with = "integer::option")]
    seed: Option<i64>,
    /// How many answers to generate.
    #[serde(deserialize_with = "integer::option")]
    #[schemars(range(min = ranges::ANSWERS.min, max = ranges::ANSWERS.max))]
    n: Option<i64>,
    /// Stop strings: texts that end the answer and are not part of it.
    #[schemars(schema_with = "stop_schema")]
    stop: Option<StringOr<BoundedList<String, MAX_STOPS>>>,
    /// Ids of tokens that end the answer, besides the model's own end tokens.
    #[serde(deserialize_with = "integer::optional_list")]
    stop_token_ids: Option<Vec<u32>>,
    /// Do not end at the model's end tokens.
    ignore_eos: Option<bool>,
    /// The minimum number of tokens of an answer: before that, no end token and none of
    /// `stop_token_ids` is chosen. Stop strings and role markers still end an answer.
    #[serde(deserialize_with = "integer::option")]
    #[schemars(range(min = ranges::TOKENS.min, max = ranges::TOKENS.max))]
    min_tokens: Option<i64>,
    /// The maximum number of tokens of an answer.
    #[serde(deserialize_with = "integer::option")]
    #[schemars(range(min = ranges::TOKENS.min, max = ranges::TOKENS.max))]
    max_tokens: Option<i64>,
    /// The newer name of `max_tokens`.
    #[serde(deserialize_with = "integer::option")]
    #[schemars(range(min = ranges::TOKENS.min, max = ranges::TOKENS.max))]
    max_completion_tokens: Option<i64>,
    /// Seconds that the answer may take, including the time in the queue; the server's own limit
    /// may be shorter.
    #[schemars(extend("exclusiveMinimum" = 0), range(max = MAX_SECONDS))]
    timeout: Option<f64>,
    /// Speculative decoding: how many tokens are drafted at once for an answer, from text that
    /// occurred before; `auto` as many as save time, `off` none. It changes no token of the answer.
    #[schemars(schema_with = "speculate_schema")]
    speculate: Option<Speculate>,
    /// Send the answer as server-sent events while it is generated.
    stream: Option<bool>,
    /// Only with `stream`.
    stream_options: Option<Object<StreamOptions>>,
}

/// The value of `speculate`.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "`auto`, `off` or an integer")]
enum Speculate {
    /// `auto` or `off`.
    Word(String),
    /// The maximum number of drafted tokens.
    #[serde(deserialize_with = "integer::of")]
    Number(i64),
}

/// The JSON schema of the values that `resolve::speculation` accepts.
fn speculate_schema(_: &mut SchemaGenerator) -> Schema {
    let ranges::Range { min, max } = ranges::SPECULATE;
    json_schema!({"anyOf": [
        {"enum": ["auto", "off"]},
        {"type": "integer", "minimum": min, "maximum": max},
        {"type": "null"},
    ]})
}

/// The JSON schema of the values that `tokens::stop_texts` accepts.
fn stop_schema(_: &mut SchemaGenerator) -> Schema {
    let text = json!({"type": "string", "minLength": 1});
    json_schema!({"anyOf": [text, {"type": "array", "items": text}, {"type": "null"}]})
}

/// The JSON schema of the values that `bad_words` accepts.
fn bad_words_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": ["array", "null"],
        "maxItems": MAX_BAD_WORDS,
        "items": {"type": "string", "pattern": "\\S"},
    })
}

/// The JSON schema of the values that `tokens::sequence_breakers` accepts.
fn breakers_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": ["array", "null"],
        "maxItems": MAX_BREAKERS,
        "items": {"type": "string", "minLength": 1, "maxLength": MAX_BREAKER_BYTES},
    })
}

/// Additions to a streamed answer.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct StreamOptions {
    /// Add a `usage` to every chunk, null in all but an additional last one.
    include_usage: Option<bool>,
    /// Add the `usage` so far to every chunk.
    continuous_usage_stats: Option<bool>,
}
