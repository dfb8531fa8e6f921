//! Checks the texts and tokens of a request: where an answer ends, and which tokens it may have.

use std::collections::HashSet;
use std::sync::Arc;

use incant_prompt::profile::breakers_problem;
use incant_prompt::text::{Special, Tokenizer};
use incant_sample as sample;

use super::{MAX_BAD_WORD_BYTES, MAX_BAD_WORDS, MAX_STOP_BYTES, MAX_STOPS};
use crate::errors::ApiError;
use crate::fields::{BoundedList, StringOr};

/// Checks the number of texts and their lengths.
pub(super) fn sequence_breakers(
    texts: Option<Vec<String>>,
) -> Result<Option<Vec<String>>, ApiError> {
    match texts.as_deref().and_then(breakers_problem) {
        Some(problem) => {
            let name = "dry_sequence_breakers";
            Err(ApiError::invalid(name, format!("`{name}` {problem}.")))
        }
        None => Ok(texts),
    }
}

pub(super) fn stop_texts(
    stop: Option<StringOr<BoundedList<String, MAX_STOPS>>>,
) -> Result<Vec<String>, ApiError> {
    let texts = match stop {
        None => Vec::new(),
        Some(StringOr::Text(text)) => vec![text],
        Some(StringOr::List(BoundedList(texts))) => texts,
    };
    let refuse = |message: String| Err(ApiError::invalid("stop", message));
    if texts.iter().any(String::is_empty) {
        return refuse("`stop` must not hold an empty text: every answer begins with it.".into());
    }
    let bytes: usize = texts.iter().map(String::len).sum();
    if texts.len() > MAX_STOPS || bytes > MAX_STOP_BYTES {
        return refuse(format!(
            "`stop` may hold at most {MAX_STOPS} texts, of {MAX_STOP_BYTES} bytes together."
        ));
    }
    Ok(texts)
}

pub(super) fn end_tokens(
    own: Arc<[u32]>,
    ignore_eos: Option<bool>,
    more: Option<Vec<u32>>,
    vocabulary: usize,
) -> Result<Arc<[u32]>, ApiError> {
    let mut more = more.unwrap_or_default();
    check_ids("stop_token_ids", &more, vocabulary)?;
    // Every generated token is looked up among them.
    more.sort_unstable();
    more.dedup();
    match (ignore_eos.unwrap_or(false), more.is_empty()) {
        (false, true) => Ok(own),
        (false, false) => Ok(own.iter().copied().chain(more).collect()),
        (true, _) => Ok(more.into()),
    }
}

/// Refuses ids that are not in the vocabulary.
pub(crate) fn check_ids(param: &str, ids: &[u32], vocabulary: usize) -> Result<(), ApiError> {
    match ids.iter().find(|id| **id as usize >= vocabulary) {
        Some(id) => {
            let message = format!(
                "`{param}` holds the token {id}, but ids run from 0 to {}.",
                vocabulary - 1
            );
            Err(ApiError::invalid(param, message))
        }
        None => Ok(()),
    }
}

/// Returns which tokens may be chosen; at least one must remain for the first position.
pub(super) fn token_limits(
    tokenizer: &Tokenizer,
    allowed: Option<Vec<u32>>,
    bad_words: Option<Vec<String>>,
    min_tokens: usize,
    end_tokens: &Arc<[u32]>,
) -> Result<sample::Limits, ApiError> {
    let banned = banned(tokenizer, bad_words.unwrap_or_default())?;
    let allowed = match allowed {
        None => None,
        Some(mut ids) => {
            let name = "allowed_token_ids";
            check_ids(name, &ids, tokenizer.vocab_size())?;
            ids.sort_unstable();
            ids.dedup();
            let ends = end_tokens.iter().filter(|_| min_tokens > 0);
            let single = banned.iter().filter(|run| run.len() == 1).flatten();
            let out: HashSet<u32> = ends.chain(single).copied().collect();
            let is_out = |id: &u32| out.contains(id);
            if ids.iter().all(is_out) {
                let message = format!(
                    "`{name}` leaves no token to begin with; `bad_words` and `min_tokens` count too."
                );
                return Err(ApiError::invalid(name, message));
            }
            Some(ids.into())
        }
    };
    Ok(sample::Limits {
        allowed,
        banned: banned.into(),
        min_tokens,
        end_tokens: Arc::clone(end_tokens),
    })
}

/// Returns the tokens of words that an answer must not contain, each with a space before it, as
/// within a text, and without. The space that some tokenizers put before a text is left out: it
/// would be a second one.
fn banned(tokenizer: &Tokenizer, words: Vec<String>) -> Result<Vec<Vec<u32>>, ApiError> {
    let name = "bad_words";
    let bytes: usize = words.iter().map(String::len).sum();
    if words.len() > MAX_BAD_WORDS || bytes > MAX_BAD_WORD_BYTES {
        let message = format!(
            "`{name}` may hold at most {MAX_BAD_WORDS} texts, of {MAX_BAD_WORD_BYTES} bytes together."
        );
        return Err(ApiError::invalid(name, message));
    }
    let mut runs = Vec::new();
    for word in &words {
        let word = word.trim_start();
        for text in [word.to_owned(), format!(" {word}")] {
            let run = tokenizer.encode_inside(&text, Special::Parse);
            if word.is_empty() || run.is_empty() {
                let message = format!("`{name}` must not hold a text without words.");
                return Err(ApiError::invalid(name, message));
            }
            if !runs.contains(&run) {
                runs.push(run);
            }
        }
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use incant_prompt::profile::MAX_BREAKERS;

    use super::*;

    #[test]
    fn an_end_token_counts_once_however_often_it_is_named() {
        let ends = end_tokens([1].into(), None, Some(vec![7, 5, 7, 7, 5]), 10);
        assert_eq!(*ends.unwrap(), [1, 5, 7]);
    }

    #[test]
    fn sequence_breakers_are_absent_or_few_and_short() {
        let checked = |texts: &[&str]| {
            let texts = texts.iter().map(|&text| text.to_owned()).collect();
            sequence_breakers(Some(texts))
        };
        assert_eq!(sequence_breakers(None).unwrap(), None);
        assert_eq!(checked(&[]).unwrap(), Some(Vec::new()));
        assert_eq!(checked(&["\n"]).unwrap(), Some(vec!["\n".to_owned()]));
        for wrong in [&[""][..], &["x"; MAX_BREAKERS + 1], &[&"x".repeat(65)]] {
            match checked(wrong) {
                Err(ApiError::Invalid { param, .. }) => {
                    assert_eq!(param.as_deref(), Some("dry_sequence_breakers"));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn stop_texts_have_a_number_and_a_size() {
        let texts = |count: usize, bytes: usize| {
            let texts = vec!["x".repeat(bytes); count];
            stop_texts(Some(StringOr::List(BoundedList(texts)))).is_ok()
        };
        assert!(texts(MAX_STOPS, 1) && texts(1, MAX_STOP_BYTES));
        assert!(!texts(MAX_STOPS + 1, 1) && !texts(1, MAX_STOP_BYTES + 1));
        assert!(!texts(2, MAX_STOP_BYTES / 2 + 1));
    }
}
