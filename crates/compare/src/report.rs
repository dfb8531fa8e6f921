//! The serialized form of a comparison: format 1.

use incant_api::{FinishReason, Usage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::token_json::{ZERO_PROBABILITY, finite, token_name};
use super::{SamplingRow, Summary, sampling, summary};
use incant_prompt::profile::Message;
use incant_sample::Divergence;

#[cfg(test)]
mod tests;

/// The version of the format that [`Report`] describes.
pub const FORMAT: u32 = 1;

/// A comparison of arms: their answers, and each arm's scores of the others' answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Comparison")]
pub struct Report {
    /// The version of this format: 1.
    pub format: u32,
    /// The version of the program that made it.
    pub incant: String,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// The settings that reproduce it.
    pub settings: Settings,
    /// The arms that were compared. Elsewhere an arm is referred to by its index here.
    pub arms: Vec<ReportArm>,
    /// The prompts, with all arms' answers.
    pub prompts: Vec<Prompt>,
    /// Null without analysis.
    pub summary: Option<Summary>,
    /// Diversity of answers; empty unless there are several temperatures, or several answers to
    /// a prompt.
    pub sampling: Vec<SamplingRow>,
}

impl Report {
    /// The report of a comparison that was begun at `created`, in seconds since 1970; computes
    /// the summaries of `prompts`.
    pub fn new(
        created: u64,
        settings: Settings,
        arms: Vec<ReportArm>,
        prompts: Vec<Prompt>,
    ) -> Report {
        let reference = settings.reference;
        let summary = || summary(arms.len(), reference, &prompts);
        Report {
            format: FORMAT,
            incant: env!("CARGO_PKG_VERSION").to_owned(),
            created,
            summary: settings.analysis.then(summary),
            sampling: sampling(&prompts),
            settings,
            arms,
            prompts,
        }
    }
}

/// The settings that reproduce a comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ComparisonSettings")]
pub struct Settings {
    /// The arm that shift is measured against.
    pub reference: usize,
    /// The seed of all answers, below 2^53.
    pub seed: u64,
    /// The temperatures; usually one.
    pub temperature: Vec<f32>,
    /// Nucleus mass.
    pub top_p: f32,
    /// Keep the k most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep tokens at least this likely relative to the most likely one.
    pub min_p: f32,
    /// Subtracted once from each token that was generated before.
    pub presence_penalty: f32,
    /// Subtracted for each time a token was generated before.
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of seen tokens; 1 is off.
    pub repetition_penalty: f32,
    /// Further samplers.
    #[serde(flatten)]
    pub samplers: Samplers,
    /// The maximum number of tokens of an answer.
    pub max_tokens: usize,
    /// Answers of each arm to each prompt at each temperature.
    pub n: usize,
    /// Whether tokens were scored.
    pub analysis: bool,
    /// How many alternatives each token has.
    pub top_logprobs: usize,
    /// The command line that reproduces it; null if it did not come from one.
    pub command: Option<String>,
}

/// Samplers that are off by default; `None` and absent if not requested.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Samplers {
    /// The penalty for a token that would continue a repetition of the allowed length (DRY).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dry_multiplier: Option<f32>,
    /// The factor of that penalty for each further token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dry_base: Option<f32>,
    /// Repetitions of fewer tokens are free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dry_allowed_length: Option<u32>,
    /// How many of the last tokens are searched; −1 searches all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dry_penalty_last_n: Option<i32>,
    /// Texts across which nothing is a repetition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dry_sequence_breakers: Option<Vec<String>>,
    /// Keep tokens whose logit is at most this many standard deviations below the largest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_n_sigma: Option<f32>,
    /// Locally typical sampling: keep this mass of the tokens whose surprise is nearest the
    /// expected one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub typical_p: Option<f32>,
    /// The probability with which XTC removes tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xtc_probability: Option<f32>,
    /// The minimum probability of the tokens that XTC removes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xtc_threshold: Option<f32>,
}

/// An arm that was compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ComparedArm")]
pub struct ReportArm {
    /// `MODEL[@PROFILE][+ADAPTER]`.
    pub id: String,
    /// The model whose weights it uses.
    pub model: String,
    /// The alignment prompt that its id names.
    pub profile: Option<String>,
    /// The profile that rendered the conversation if its id names none; absent if that was the
    /// model's own chat template, for a text, and if questions had several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rendered_by: Option<String>,
    /// The LoRA adapter that its id names.
    pub adapter: Option<String>,
    /// Other arms that influence its answers, such as `guidance=0.5`. Scores are those of the
    /// arm without them.
    #[serde(default)]
    pub guidance: Option<String>,
}

/// A prompt for all arms, with their answers. Exactly one of `messages` and `prompt` is not
/// null.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ComparedPrompt")]
pub struct Prompt {
    /// A conversation, which each arm renders in its own way.
    pub messages: Option<Vec<Message>>,
    /// A text that each arm continues as it is.
    pub prompt: Option<String>,
    /// Arm by arm, and for each arm temperature by temperature.
    pub answers: Vec<Answer>,
}

/// An answer of one arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ComparedAnswer")]
pub struct Answer {
    /// The arm that answered.
    pub arm: usize,
    /// The index among the `n` answers.
    pub index: usize,
    /// The sampling temperature.
    pub temperature: f32,
    /// Its text.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Token usage.
    pub usage: Usage,
    /// Its tokens with their scores; null without analysis.
    pub tokens: Option<Vec<Token>>,
}

/// A token of an answer. The concatenated `bytes` of all tokens are the answer's text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ComparedToken")]
pub struct Token {
    /// Its id in the vocabulary.
    pub id: u32,
    /// Its text, or `bytes:\x..` if it is only part of a character. Empty for an end token, and
    /// for space that was trimmed.
    pub token: String,
    /// The bytes it contributed to the text.
    pub bytes: Vec<u8>,
    /// Its log-probability under the arm that generated it: log-softmax of the raw logits,
    /// before penalties and temperature; −9999 for a probability of zero.
    pub logprob: f32,
    /// Its rank by likelihood under the arm that generated it: 1 for the most likely.
    pub rank: usize,
    /// The tokens that this arm found most likely, best first.
    pub top_logprobs: Vec<Alternative>,
    /// Scores by the other arms of the same tokenizer.
    pub scores: Vec<Score>,
}

impl Token {
    /// A token that contributed `bytes` to an answer.
    pub fn new(
        id: u32,
        bytes: Vec<u8>,
        logprob: f32,
        rank: usize,
        top_logprobs: Vec<Alternative>,
        scores: Vec<Score>,
    ) -> Token {
        Token {
            id,
            token: token_name(&bytes),
            bytes,
            logprob: finite(logprob),
            rank,
            top_logprobs,
            scores,
        }
    }

    /// The score by `arm`, if there is one.
    pub fn score(&self, arm: usize) -> Option<&Score> {
        self.scores.iter().find(|score| score.arm == arm)
    }
}

/// One arm's score of a token that another arm generated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ComparedScore")]
pub struct Score {
    /// The arm that scores.
    pub arm: usize,
    /// The token's log-probability under this arm; −9999 for a probability of zero.
    pub logprob: f32,
    /// Its rank by likelihood under this arm.
    pub rank: usize,
    /// The shift class of that rank.
    pub class: ShiftClass,
    /// KL(arm that generated it ‖ this arm) over the whole vocabulary, in nats, at most 9999.
    pub kl: f32,
    /// KL(this arm ‖ arm that generated it).
    pub kl_reverse: f32,
    /// The tokens that this arm found most likely, best first.
    pub top_logprobs: Vec<Alternative>,
}

impl Score {
    /// The score of a token by `arm`. `divergence` is from the arm that generated it (forward)
    /// to this one.
    pub fn new(
        arm: usize,
        logprob: f32,
        rank: usize,
        divergence: Divergence,
        top_logprobs: Vec<Alternative>,
    ) -> Score {
        // JSON has no infinity: use the value that stands for a probability of zero.
        let finite_kl = |kl: f64| (kl as f32).min(-ZERO_PROBABILITY);
        Score {
            arm,
            logprob: finite(logprob),
            rank,
            class: ShiftClass::of(rank),
            kl: finite_kl(divergence.forward),
            kl_reverse: finite_kl(divergence.reverse),
            top_logprobs,
        }
    }
}

/// How far down an arm ranks a token that another arm generated.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "ShiftClass")]
pub enum ShiftClass {
    /// First: it would have generated the same.
    Unshifted,
    /// Second or third.
    Marginal,
    /// Below the third place.
    Shifted,
}

impl ShiftClass {
    /// The class of a 1-based rank.
    pub fn of(rank: usize) -> ShiftClass {
        match rank {
            ..=1 => ShiftClass::Unshifted,
            2..=3 => ShiftClass::Marginal,
            _ => ShiftClass::Shifted,
        }
    }
}

/// An alternative token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ComparedAlternative")]
pub struct Alternative {
    /// Its text, or `bytes:\x..` if it is only part of a character; a control token is
    /// represented by its name.
    pub token: String,
    /// Its log-probability.
    pub logprob: f32,
    /// The bytes of `token`.
    pub bytes: Vec<u8>,
}

impl Alternative {
    /// The token whose text is `bytes`.
    pub fn new(bytes: Vec<u8>, logprob: f32) -> Alternative {
        Alternative {
            token: token_name(&bytes),
            logprob: finite(logprob),
            bytes,
        }
    }
}
