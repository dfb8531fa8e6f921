//! Checks the generation parameters of a request, and fills in defaults.

use std::sync::Arc;
use std::time::Duration;

use incant_compare::Samplers;
use incant_engine::Speculation;
use incant_gguf::printable::excerpt;
use incant_prompt::profile::SamplingDefaults;
use incant_sample::{DryParams, SamplingParams};

use super::biases::biases;
use super::numbers::{in_range, max_tokens, min_tokens, number, repetition_penalty};
use super::tokens::{end_tokens, sequence_breakers, stop_texts, token_limits};
use super::{Controls, Speculate, StreamOptions};
use crate::deadline::time_limit;
use crate::errors::ApiError;
use crate::fields::{BoundedList, Object};
use crate::ranges;
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
