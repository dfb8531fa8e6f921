//! Checks the generation parameters of a request, and fills in defaults.

use std::collections::HashSet;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use incant_compare::Samplers;
use incant_engine::Speculation;
use incant_gguf::printable::excerpt;
use incant_prompt::profile::{SamplingDefaults, breakers_problem};
use incant_prompt::text::{Special, Tokenizer};
use incant_sample::{self as sample, DryParams, SamplingParams};

use super::biases::biases;
use super::{
    Controls, MAX_BAD_WORD_BYTES, MAX_BAD_WORDS, MAX_STOP_BYTES, MAX_STOPS, Speculate,
    StreamOptions,
};
use crate::deadline::time_limit;
use crate::errors::ApiError;
use crate::fields::{BoundedList, Object, StringOr};
use crate::ranges::{self, Float, Range};
use incant_runtime::{Arm, breakers};

/// Limits that differ between the endpoints.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// The minimum of `max_tokens`.
    pub(crate) least_tokens: usize,
    /// `max_tokens` if neither the request nor the profile sets it; `None` is the context's end.
    pub(crate) default_tokens: Option<usize>,
}

/// The parameters after checks and defaults.
#[derive(Clone, Debug)]
pub(crate) struct Resolved {
    pub(crate) sampling: SamplingParams,
    /// Answers per prompt.
    pub(crate) answers: usize,
    /// Stop strings, which end an answer.
    pub(crate) stop: Vec<String>,
    pub(crate) end_tokens: Arc<[u32]>,
    /// `None` runs to the end of the context.
    pub(crate) max_tokens: Option<usize>,
    /// `max_tokens` as the request itself sets it.
    pub(crate) requested_tokens: Option<usize>,
    /// The time limit that the client set, if any.
    pub(crate) timeout: Option<Duration>,
    /// How many tokens are drafted; `None` is the server's default.
    pub(crate) speculation: Option<Speculation>,
    pub(crate) stream: Stream,
}

/// How an answer is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// As one JSON body.
    No,
    /// As server-sent events.
    Events {
        /// Whether an additional last chunk carries the usage.
        include_usage: bool,
        /// Whether each chunk carries the usage so far.
        continuous_usage: bool,
    },
}

impl Controls {
    /// Returns the number of answers per prompt.
    pub(crate) fn answers(&self) -> Result<usize, ApiError> {
        Ok(in_range("n", self.n, ranges::ANSWERS)?.map_or(1, |n| n as usize))
    }

    /// Returns `max_tokens` as the request sets it.
    pub(crate) fn requested_tokens(&self, limits: Limits) -> Result<Option<usize>, ApiError> {
        max_tokens(
            self.max_tokens,
            self.max_completion_tokens,
            limits.least_tokens,
        )
    }

    /// Returns the time limit that the request sets, if any.
    pub(crate) fn timeout(&self) -> Result<Option<Duration>, ApiError> {
        timeout(self.timeout)
    }

    /// Returns the samplers beyond OpenAI's parameters, as the client set them.
    pub(crate) fn samplers(&self) -> Samplers {
        let narrow = |value: Option<f64>| value.map(|value| value as f32);
        Samplers {
            dry_multiplier: narrow(self.dry_multiplier),
            dry_base: narrow(self.dry_base),
            dry_allowed_length: self.dry_allowed_length.and_then(|n| n.try_into().ok()),
            dry_penalty_last_n: self.dry_penalty_last_n.and_then(|n| n.try_into().ok()),
            dry_sequence_breakers: self
                .dry_sequence_breakers
                .clone()
                .map(|BoundedList(texts)| texts),
            top_n_sigma: narrow(self.top_n_sigma),
            typical_p: narrow(self.typical_p),
            xtc_probability: narrow(self.xtc_probability),
            xtc_threshold: narrow(self.xtc_threshold),
        }
    }

    /// Checks every range and fills in absent values.
    pub(crate) fn resolve(
        self,
        arm: &Arm,
        defaults: &SamplingDefaults,
        limits: Limits,
    ) -> Result<Resolved, ApiError> {
        let profile = defaults.sampling();
        let answers = self.answers()?;
        let requested_tokens = self.requested_tokens(limits)?;
        let vocabulary = arm.tokenizer().vocab_size();
        let mut sampling = SamplingParams {
            temperature: number("temperature", self.temperature, ranges::TEMPERATURE)?
                .unwrap_or(profile.temperature),
            top_p: number("top_p", self.top_p, ranges::TOP_P)?.unwrap_or(profile.top_p),
            top_k: in_range("top_k", self.top_k, ranges::TOP_K)?
                .map(|k| usize::try_from(k).unwrap_or(0)) // -1 keeps all, like 0
                .unwrap_or(profile.top_k),
            min_p: number("min_p", self.min_p, ranges::MIN_P)?.unwrap_or(profile.min_p),
            presence_penalty: number("presence_penalty", self.presence_penalty, ranges::PENALTY)?
                .unwrap_or(profile.presence_penalty),
            frequency_penalty: number(
                "frequency_penalty",
                self.frequency_penalty,
                ranges::PENALTY,
            )?
            .unwrap_or(profile.frequency_penalty),
            repetition_penalty: repetition_penalty(self.repetition_penalty, self.repeat_penalty)?
                .unwrap_or(profile.repetition_penalty),
            dry: Box::new(DryParams {
                multiplier: number(
                    "dry_multiplier",
                    self.dry_multiplier,
                    ranges::DRY_MULTIPLIER,
                )?
                .unwrap_or(profile.dry.multiplier),
                base: number("dry_base", self.dry_base, ranges::DRY_BASE)?
                    .unwrap_or(profile.dry.base),
                allowed_length: in_range(
                    "dry_allowed_length",
                    self.dry_allowed_length,
                    ranges::DRY_ALLOWED_LENGTH,
                )?
                .map_or(profile.dry.allowed_length, |length| length as usize),
                penalty_last_n: in_range(
                    "dry_penalty_last_n",
                    self.dry_penalty_last_n,
                    ranges::DRY_PENALTY_LAST_N,
                )?
                .map_or(profile.dry.penalty_last_n, |last| {
                    usize::try_from(last).ok() // -1 looks at everything
                }),
                breakers: profile.dry.breakers,
            }),
            top_n_sigma: number("top_n_sigma", self.top_n_sigma, ranges::TOP_N_SIGMA)?
                .unwrap_or(profile.top_n_sigma),
            typical_p: number("typical_p", self.typical_p, ranges::TYPICAL_P)?
                .unwrap_or(profile.typical_p),
            xtc_probability: number(
                "xtc_probability",
                self.xtc_probability,
                ranges::XTC_PROBABILITY,
            )?
            .unwrap_or(profile.xtc_probability),
            xtc_threshold: number("xtc_threshold", self.xtc_threshold, ranges::XTC_THRESHOLD)?
                .unwrap_or(profile.xtc_threshold),
            penalize_prompt: self.penalize_prompt.unwrap_or(profile.penalize_prompt),
            logit_bias: biases(self.logit_bias.unwrap_or_default(), vocabulary)?,
            limits: Default::default(),
            // A seed identifies a random stream: negative seeds are as good as others, except -1,
            // which other servers take for no seed.
            seed: self.seed.filter(|seed| *seed != -1).map(i64::cast_unsigned),
        };
        let texts = sequence_breakers(self.dry_sequence_breakers.map(|BoundedList(texts)| texts))?;
        if sampling.dry.is_on() {
            let texts = texts.as_deref();
            let texts = texts.or(defaults.dry_sequence_breakers.as_deref());
            sampling.dry.breakers = breakers(arm.tokenizer(), texts);
        }
        let end_tokens = end_tokens(
            arm.end_tokens(),
            self.ignore_eos,
            self.stop_token_ids,
            vocabulary,
        )?;
        let max_tokens = requested_tokens
            .or(defaults.max_tokens)
            .or(limits.default_tokens);
        *sampling.limits = token_limits(
            arm.tokenizer(),
            self.allowed_token_ids,
            self.bad_words.map(|BoundedList(words)| words),
            min_tokens(self.min_tokens, max_tokens)?,
            &end_tokens,
        )?;
        Ok(Resolved {
            sampling,
            answers,
            stop: stop_texts(self.stop)?,
            end_tokens,
            max_tokens,
            requested_tokens,
            timeout: timeout(self.timeout)?,
            speculation: self.speculate.map(speculation).transpose()?,
            stream: stream(self.stream, self.stream_options)?,
        })
    }
}

/// Checks the range of a number; engines compute in `f32`.
pub(super) fn number(
    name: &str,
    value: Option<f64>,
    range: Range<Float>,
) -> Result<Option<f32>, ApiError> {
    match value {
        Some(value) if !range.contains(value) => Err(out_of_range(name, value, range)),
        value => Ok(value.map(|value| value as f32)),
    }
}

/// Checks the range of an integer.
pub(crate) fn in_range(
    name: &str,
    value: Option<i64>,
    range: Range<i64>,
) -> Result<Option<i64>, ApiError> {
    match value {
        Some(value) if !range.contains(value) => Err(out_of_range(name, value, range)),
        value => Ok(value),
    }
}

fn out_of_range<T: Display>(name: &str, value: impl Display, range: Range<T>) -> ApiError {
    let Range { min, max } = range;
    let value = value.to_string();
    let value = excerpt(&value);
    ApiError::invalid(
        name,
        format!("`{name}` is {value}, but must be between {min} and {max}."),
    )
}

fn speculation(asked: Speculate) -> Result<Speculation, ApiError> {
    let number = match asked {
        Speculate::Word(word) => match word.as_str() {
            "auto" => return Ok(Speculation::Auto),
            "off" => return Ok(Speculation::OFF),
            _ => {
                let word = format!("{:?}", excerpt(&word));
                let max = ranges::SPECULATE.max;
                return Err(ApiError::invalid(
                    "speculate",
                    format!("`speculate` is {word}, but must be `auto`, `off` or 0 to {max}."),
                ));
            }
        },
        Speculate::Number(number) => number,
    };
    let number = in_range("speculate", Some(number), ranges::SPECULATE)?;
    Ok(Speculation::UpTo(number.unwrap_or(0) as usize))
}

/// Checks the number of texts and their lengths.
fn sequence_breakers(texts: Option<Vec<String>>) -> Result<Option<Vec<String>>, ApiError> {
    match texts.as_deref().and_then(breakers_problem) {
        Some(problem) => {
            let name = "dry_sequence_breakers";
            Err(ApiError::invalid(name, format!("`{name}` {problem}.")))
        }
        None => Ok(texts),
    }
}

fn stop_texts(
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

fn end_tokens(
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

fn max_tokens(old: Option<i64>, new: Option<i64>, least: usize) -> Result<Option<usize>, ApiError> {
    let range = Range {
        min: least as i64,
        ..ranges::TOKENS
    };
    let old = in_range("max_tokens", old, range)?;
    let new = in_range("max_completion_tokens", new, range)?;
    let tokens = either(["max_tokens", "max_completion_tokens"], [old, new])?;
    Ok(tokens.map(|tokens| tokens as usize))
}

fn repetition_penalty(ours: Option<f64>, other: Option<f64>) -> Result<Option<f32>, ApiError> {
    let names = ["repetition_penalty", "repeat_penalty"];
    let ours = number(names[0], ours, ranges::REPETITION_PENALTY)?;
    let other = number(names[1], other, ranges::REPETITION_PENALTY)?;
    either(names, [ours, other])
}

/// Returns the value of a field that has two names.
fn either<T: PartialEq>(
    names: [&'static str; 2],
    values: [Option<T>; 2],
) -> Result<Option<T>, ApiError> {
    match values {
        [Some(one), Some(other)] if one != other => {
            let [one, other] = names;
            let message = format!("`{one}` and `{other}` mean the same and must not differ.");
            Err(ApiError::invalid(one, message))
        }
        [one, other] => Ok(one.or(other)),
    }
}

fn min_tokens(least: Option<i64>, most: Option<usize>) -> Result<usize, ApiError> {
    let least = in_range("min_tokens", least, ranges::TOKENS)?;
    let least = least.map_or(0, |least| least as usize);
    match most {
        Some(most) if least > most => {
            let message = format!("`min_tokens` is {least}, but `max_tokens` is {most}.");
            Err(ApiError::invalid("min_tokens", message))
        }
        _ => Ok(least),
    }
}

/// Returns which tokens may be chosen; at least one must remain for the first position.
fn token_limits(
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

fn timeout(seconds: Option<f64>) -> Result<Option<Duration>, ApiError> {
    let refuse = |error| ApiError::invalid("timeout", format!("`timeout` {error}."));
    seconds.map(time_limit).transpose().map_err(refuse)
}

fn stream(
    stream: Option<bool>,
    options: Option<Object<StreamOptions>>,
) -> Result<Stream, ApiError> {
    match (stream.unwrap_or(false), options) {
        (false, Some(_)) => Err(ApiError::invalid(
            "stream_options",
            "`stream_options` needs `stream` to be true.",
        )),
        (false, None) => Ok(Stream::No),
        (true, options) => {
            let StreamOptions {
                include_usage,
                continuous_usage_stats,
            } = options.map_or_else(Default::default, |Object(options)| options);
            Ok(Stream::Events {
                include_usage: include_usage.unwrap_or(false),
                continuous_usage: continuous_usage_stats.unwrap_or(false),
            })
        }
    }
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
    fn a_field_may_be_given_under_both_its_names_with_one_value() {
        let read = |text: &str| -> Result<Option<f32>, ApiError> {
            let mut fields = crate::fields::Fields::parse(text.as_bytes())?;
            let controls: Controls = fields.view()?;
            assert_eq!(fields.unknown().count(), 0);
            repetition_penalty(controls.repetition_penalty, controls.repeat_penalty)
        };
        for both in [
            r#"{"repetition_penalty": 1.5, "repeat_penalty": 1.5}"#,
            r#"{"repetition_penalty": 1.5, "repeat_penalty": null}"#,
            r#"{"repetition_penalty": null, "repeat_penalty": 1.5}"#,
            r#"{"repeat_penalty": 1.5}"#,
        ] {
            assert_eq!(read(both), Ok(Some(1.5)), "{both}");
        }
        assert!(read(r#"{"repetition_penalty": 1.5, "repeat_penalty": 2}"#).is_err());
        assert!(read(r#"{"repetition_penalty": 1.5, "repeat_penalty": 0}"#).is_err());
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
