//! Parameters of vLLM's API that chat and completions share, other than sampling parameters.

use schemars::JsonSchema;
use serde::Deserialize;

use super::controls::in_range;
use super::errors::ApiError;
use super::fields::integer;
use super::ranges::Range;
use incant_runtime::Prompt;

/// Parameters for prompt truncation, reported token ids and KV isolation.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(rename = "ExtraParameters")]
pub(crate) struct Extras {
    /// Truncate the prompt to this number of last tokens, and the prompts of a guide or other arms
    /// too; -1 keeps as many as leave room for `max_tokens`, or for one token without it.
    #[serde(deserialize_with = "integer::option")]
    #[schemars(range(min = -1))]
    truncate_prompt_tokens: Option<i64>,
    /// Report the token ids of the prompt and the answers.
    return_token_ids: Option<bool>,
    /// Write the tokens of log-probabilities as `token_id:ID`.
    return_tokens_as_token_ids: Option<bool>,
    /// Share the KV of the prompt and the answers with no other request, so that the time of an
    /// answer does not reveal other requests. The value of the salt does not matter.
    #[schemars(length(min = 1))]
    cache_salt: Option<String>,
}

impl Extras {
    /// Returns whether token ids are reported.
    pub(crate) fn token_ids(&self) -> bool {
        self.return_token_ids.unwrap_or(false)
    }

    /// Returns whether log-probabilities name tokens by their ids.
    pub(crate) fn names_by_ids(&self) -> bool {
        self.return_tokens_as_token_ids.unwrap_or(false)
    }

    /// Returns whether KV is shared with no other request.
    pub(crate) fn isolated(&self) -> bool {
        self.cache_salt.is_some()
    }

    /// Returns whether a prompt that is too long may be truncated.
    pub(crate) fn truncates(&self) -> bool {
        self.truncate_prompt_tokens.is_some()
    }

    /// Checks ranges before there is a prompt.
    pub(crate) fn check(&self, context: usize) -> Result<(), ApiError> {
        let most = i64::try_from(context).unwrap_or(i64::MAX);
        let truncated = self.truncate_prompt_tokens.filter(|tokens| *tokens != -1);
        in_range(
            "truncate_prompt_tokens",
            truncated,
            Range::integers(1, most),
        )?;
        match self.cache_salt.as_deref() {
            Some("") => Err(ApiError::invalid(
                "cache_salt",
                "`cache_salt` must not be empty.",
            )),
            _ => Ok(()),
        }
    }

    /// Truncates a prompt to its last tokens, if requested, so that `context` has room for
    /// `max_tokens` after it.
    pub(crate) fn truncate(&self, prompt: &mut Prompt, context: usize, max_tokens: Option<usize>) {
        let Some(kept) = self.truncate_prompt_tokens else {
            return;
        };
        let room = max_tokens.unwrap_or(1);
        // A prompt that would become empty is kept, and refused for its length.
        let kept = usize::try_from(kept).unwrap_or(context.saturating_sub(room));
        if kept == 0 || prompt.token_count() <= kept {
            return;
        }
        let mut ids = prompt.all_ids();
        prompt.prefix = None;
        prompt.ids = ids.split_off(ids.len() - kept);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use incant_engine::Prefix;

    fn left(kept: i64, max_tokens: Option<usize>) -> (usize, Vec<u32>) {
        let extras = Extras {
            truncate_prompt_tokens: Some(kept),
            ..Extras::default()
        };
        let mut prompt = Prompt {
            prefix: Some(Arc::new(Prefix { ids: vec![1, 2, 3] })),
            ids: vec![4, 5, 6],
            text: String::new(),
            markers: Vec::new(),
        };
        extras.truncate(&mut prompt, 6, max_tokens);
        (prompt.token_count() - prompt.ids.len(), prompt.ids)
    }

    #[test]
    fn the_last_tokens_of_a_prompt_are_kept() {
        assert_eq!(left(2, None), (0, vec![5, 6]));
        assert_eq!(left(4, None), (0, vec![3, 4, 5, 6]));
        assert_eq!(left(6, None), (3, vec![4, 5, 6]), "it is all there");
        assert_eq!(left(-1, None), (0, vec![2, 3, 4, 5, 6]));
        assert_eq!(left(-1, Some(4)), (0, vec![5, 6]));
        assert_eq!(left(-1, Some(0)), (3, vec![4, 5, 6]));
        assert_eq!(
            left(-1, Some(6)),
            (3, vec![4, 5, 6]),
            "nothing would be left"
        );
    }

    #[test]
    fn what_is_out_of_range_is_refused() {
        let refused = |truncate_prompt_tokens: Option<i64>, cache_salt: Option<&str>| {
            let extras = Extras {
                truncate_prompt_tokens,
                cache_salt: cache_salt.map(str::to_owned),
                ..Extras::default()
            };
            extras.check(10).is_err()
        };
        assert!(refused(Some(0), None) && refused(Some(-2), None) && refused(Some(11), None));
        assert!(refused(None, Some("")));
        assert!(!refused(Some(-1), None) && !refused(Some(10), Some("s")));
    }
}
