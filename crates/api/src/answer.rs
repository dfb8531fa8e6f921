//! The parts that all answers have: token usage, and the reason why they ended.

use std::ops::Add;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The reason why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// At an end token, a stop string or a role marker.
    Stop,
    /// At `max_tokens` or the end of the context.
    Length,
}

/// The token counts of a request, or of one answer of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// Tokens of all prompts, including those of the profile; a prompt with several answers counts
    /// once.
    pub prompt_tokens: usize,
    /// Tokens generated in all answers, including end tokens.
    pub completion_tokens: usize,
    /// The sum of both.
    pub total_tokens: usize,
    /// Details of the prompt's tokens.
    pub prompt_tokens_details: PromptTokensDetails,
    /// Absent if no tokens were drafted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_tokens_details: Option<CompletionTokensDetails>,
    /// Absent if neither a guide nor another arm shapes the answer. Not counted in the other
    /// numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance_tokens_details: Option<GuidanceTokensDetails>,
}

/// Details of the prompt's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PromptTokensDetails {
    /// Tokens that were cached and not computed again.
    pub cached_tokens: usize,
}

/// Drafted tokens (speculative decoding): tokens that were computed before it was known whether
/// they are the answer's next ones. They change no answer, only the time it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CompletionTokensDetails {
    /// Drafted tokens that are part of the answers.
    pub accepted_prediction_tokens: usize,
    /// Drafted tokens that were discarded; not counted in the other numbers.
    pub rejected_prediction_tokens: usize,
}

impl Add for CompletionTokensDetails {
    type Output = CompletionTokensDetails;

    fn add(self, other: CompletionTokensDetails) -> CompletionTokensDetails {
        CompletionTokensDetails {
            accepted_prediction_tokens: self.accepted_prediction_tokens
                + other.accepted_prediction_tokens,
            rejected_prediction_tokens: self.rejected_prediction_tokens
                + other.rejected_prediction_tokens,
        }
    }
}

/// Tokens computed for the guide and for the other arms of a mix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GuidanceTokensDetails {
    /// Tokens of all their prompts.
    pub prompt_tokens: usize,
    /// Of these, tokens that were cached and not computed again.
    pub cached_tokens: usize,
    /// Tokens of the answers, counted once for each guide or arm.
    pub completion_tokens: usize,
}

impl Usage {
    /// Returns the usage of an answer of `completion_tokens` to a prompt of `prompt_tokens`, of
    /// which `cached_tokens` were cached, without guidance.
    pub fn new(prompt_tokens: usize, cached_tokens: usize, completion_tokens: usize) -> Usage {
        Usage {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
            completion_tokens_details: None,
            guidance_tokens_details: None,
        }
    }

    /// Adds the numbers of drafted tokens, if there are any.
    pub fn with_drafts(self, drafts: CompletionTokensDetails) -> Usage {
        let drafted = drafts.accepted_prediction_tokens + drafts.rejected_prediction_tokens;
        Usage {
            completion_tokens_details: (drafted > 0).then_some(drafts),
            ..self
        }
    }
}

impl Add for Usage {
    type Output = Usage;

    fn add(self, other: Usage) -> Usage {
        let cached = |usage: &Usage| usage.prompt_tokens_details.cached_tokens;
        let sum = Usage::new(
            self.prompt_tokens + other.prompt_tokens,
            cached(&self) + cached(&other),
            self.completion_tokens + other.completion_tokens,
        );
        let drafts = [
            self.completion_tokens_details,
            other.completion_tokens_details,
        ];
        let details = [self.guidance_tokens_details, other.guidance_tokens_details];
        let details = details.into_iter().flatten();
        Usage {
            completion_tokens_details: drafts.into_iter().flatten().reduce(Add::add),
            guidance_tokens_details: details.reduce(|a, b| GuidanceTokensDetails {
                prompt_tokens: a.prompt_tokens + b.prompt_tokens,
                cached_tokens: a.cached_tokens + b.cached_tokens,
                completion_tokens: a.completion_tokens + b.completion_tokens,
            }),
            ..sum
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn usage_has_openais_form_and_guidance_only_where_there_is_some() {
        let usage = Usage::new(7, 3, 2);
        let form = json!({
            "prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 3}
        });
        assert_eq!(serde_json::to_value(usage).unwrap(), form);
        assert_eq!(serde_json::from_value::<Usage>(form).unwrap(), usage);
    }

    #[test]
    fn usages_add_up_guidance_included() {
        let details = |n| GuidanceTokensDetails {
            prompt_tokens: n,
            cached_tokens: n + 1,
            completion_tokens: n + 2,
        };
        let guided = |n| Usage {
            guidance_tokens_details: Some(details(n)),
            ..Usage::new(7, 3, 2)
        };
        let sum = guided(10) + guided(20) + Usage::new(1, 1, 1);
        assert_eq!((sum.prompt_tokens, sum.completion_tokens), (15, 5));
        assert_eq!(sum.total_tokens, 20);
        assert_eq!(sum.prompt_tokens_details.cached_tokens, 7);
        let expected = GuidanceTokensDetails {
            prompt_tokens: 30,
            cached_tokens: 32,
            completion_tokens: 34,
        };
        assert_eq!(sum.guidance_tokens_details, Some(expected));
        assert_eq!(
            (Usage::new(1, 0, 1) + Usage::new(1, 0, 1)).guidance_tokens_details,
            None
        );
    }
}
