//! The ranges of parameters: one source for the checks of requests, for their JSON schemas, and for
//! the flags of commands.

use std::fmt::{self, Display, Formatter};

use incant_prompt::profile::MAX_DRY_TOKENS;
use incant_sample::MAX_WEIGHT;
use serde_json::Value;

/// A range of numbers that includes both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range<T> {
    /// The minimum.
    pub min: T,
    /// The maximum.
    pub max: T,
}

/// An end of a range of floats. A JSON schema has it as an integer if it is one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Float(f64);

impl Range<Float> {
    /// Creates a range of floats.
    pub const fn floats(min: f64, max: f64) -> Range<Float> {
        Range {
            min: Float(min),
            max: Float(max),
        }
    }

    /// Returns whether `value` is within the range; NaN is out of any.
    pub fn contains(&self, value: f64) -> bool {
        (self.min.0..=self.max.0).contains(&value)
    }

    /// Returns whether `value` is within the range, whose ends are rounded as `value` was.
    pub fn contains_f32(&self, value: f32) -> bool {
        (self.min.0 as f32..=self.max.0 as f32).contains(&value)
    }
}

impl Range<i64> {
    /// Creates a range of integers.
    pub const fn integers(min: i64, max: i64) -> Range<i64> {
        Range { min, max }
    }

    /// Returns whether `value` is within the range.
    pub fn contains(&self, value: i64) -> bool {
        (self.min..=self.max).contains(&value)
    }
}

impl Display for Float {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<Float> for Value {
    fn from(Float(value): Float) -> Value {
        if value.fract() == 0.0 && value.abs() <= f64::from(u32::MAX) {
            Value::from(value as i64)
        } else {
            Value::from(value)
        }
    }
}

/// The maximum number of tokens that a parameter can name.
const MAX_TOKENS: i64 = u32::MAX as i64;

/// `speculate`, as a number.
pub const SPECULATE: Range<i64> = Range::integers(0, incant_engine::MAX_DRAFT as i64);
/// `temperature`.
pub const TEMPERATURE: Range<Float> = Range::floats(0.0, 2.0);
/// `top_p`.
pub const TOP_P: Range<Float> = Range::floats(0.0, 1.0);
/// `top_k`; 0 and -1 keep all tokens.
pub const TOP_K: Range<i64> = Range::integers(-1, MAX_TOKENS);
/// `min_p`.
pub const MIN_P: Range<Float> = Range::floats(0.0, 1.0);
/// `presence_penalty` and `frequency_penalty`.
pub const PENALTY: Range<Float> = Range::floats(-2.0, 2.0);
/// `repetition_penalty`.
pub const REPETITION_PENALTY: Range<Float> = Range::floats(0.01, 100.0);
/// `dry_multiplier`.
pub const DRY_MULTIPLIER: Range<Float> = Range::floats(0.0, 100.0);
/// `dry_base`.
pub const DRY_BASE: Range<Float> = Range::floats(0.0, 10.0);
/// `dry_allowed_length`.
pub const DRY_ALLOWED_LENGTH: Range<i64> = Range::integers(0, MAX_DRY_TOKENS as i64);
/// `dry_penalty_last_n`; -1 searches all tokens.
pub const DRY_PENALTY_LAST_N: Range<i64> = Range::integers(-1, MAX_DRY_TOKENS as i64);
/// `top_n_sigma`.
pub const TOP_N_SIGMA: Range<Float> = Range::floats(-1.0, 100.0);
/// `typical_p`.
pub const TYPICAL_P: Range<Float> = Range::floats(0.0, 1.0);
/// `xtc_probability`.
pub const XTC_PROBABILITY: Range<Float> = Range::floats(0.0, 1.0);
/// `xtc_threshold`.
pub const XTC_THRESHOLD: Range<Float> = Range::floats(0.0, 1.0);
/// The numbers of `logit_bias`.
pub const LOGIT_BIAS: Range<Float> = Range::floats(-100.0, 100.0);
/// `n`, the number of answers per prompt, as in OpenAI's API.
pub const ANSWERS: Range<i64> = Range::integers(1, 128);
/// `max_tokens` and `min_tokens`.
pub const TOKENS: Range<i64> = Range::integers(0, MAX_TOKENS);
/// `top_logprobs`, the number of alternatives per token, as in OpenAI's API.
pub const TOP_LOGPROBS: Range<i64> = Range::integers(0, 20);
/// `logprobs` of completions, as in OpenAI's API.
pub const LOGPROBS: Range<i64> = Range::integers(0, 5);
/// The weight of guidance.
pub const GUIDANCE_WEIGHT: Range<Float> = Range::floats(0.0, MAX_WEIGHT as f64);
/// The weight of an arm of a mix.
pub const MIX_WEIGHT: Range<Float> = Range::floats(-(MAX_WEIGHT as f64), MAX_WEIGHT as f64);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn whole_ends_are_integers_in_a_schema() {
        assert_eq!(Value::from(TEMPERATURE.max), json!(2));
        assert_eq!(Value::from(REPETITION_PENALTY.min), json!(0.01));
        let shown = [TEMPERATURE.max, REPETITION_PENALTY.min].map(|end| end.to_string());
        assert_eq!(shown, ["2", "0.01"]);
    }

    #[test]
    fn both_ends_are_within_and_nan_is_not() {
        assert!(REPETITION_PENALTY.contains(0.01) && REPETITION_PENALTY.contains_f32(0.01));
        assert!(TOP_P.contains(1.0) && !TOP_P.contains(1.0 + f64::EPSILON));
        assert!(!TOP_P.contains(f64::NAN) && !TOP_P.contains_f32(f32::NAN));
        assert!(TOP_K.contains(-1) && !TOP_K.contains(-2));
    }
}
