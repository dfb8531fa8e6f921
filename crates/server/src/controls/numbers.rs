//! Checks the ranges of numbers, and the fields that have two names.

use std::fmt::Display;

use incant_gguf::printable::excerpt;

use crate::errors::ApiError;
use crate::ranges::{self, Float, Range};

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

pub(super) fn max_tokens(
    old: Option<i64>,
    new: Option<i64>,
    least: usize,
) -> Result<Option<usize>, ApiError> {
    let range = Range {
        min: least as i64,
        ..ranges::TOKENS
    };
    let old = in_range("max_tokens", old, range)?;
    let new = in_range("max_completion_tokens", new, range)?;
    let tokens = either(["max_tokens", "max_completion_tokens"], [old, new])?;
    Ok(tokens.map(|tokens| tokens as usize))
}

pub(super) fn repetition_penalty(
    ours: Option<f64>,
    other: Option<f64>,
) -> Result<Option<f32>, ApiError> {
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

pub(super) fn min_tokens(least: Option<i64>, most: Option<usize>) -> Result<usize, ApiError> {
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

#[cfg(test)]
mod tests {
    use super::super::Controls;
    use super::*;

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
}
