//! Explains command-line arguments that are not a number, size or time where one is expected: the
//! flag, the value, and the expected form. The parsers' own messages have none of this.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::time::Duration;

use bytesize::ByteSize;
use clap::builder::ValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command, Error, value_parser};

/// The forms of values that are not plain text.
enum Form {
    /// A whole number from the first to the second.
    Whole(i128, i128),
    Number,
    Size,
    Seconds,
}

impl Form {
    /// Returns the form of the values of `arg`, by their type.
    fn of(arg: &Arg) -> Option<Form> {
        let is = |parser: ValueParser| arg.get_value_parser().type_id() == parser.type_id();
        if is(value_parser!(usize).into()) {
            Some(Form::Whole(0, usize::MAX as i128))
        } else if is(value_parser!(NonZeroUsize).into()) {
            Some(Form::Whole(1, usize::MAX as i128))
        } else if is(value_parser!(u64).into()) {
            Some(Form::Whole(0, u64::MAX.into()))
        } else if is(value_parser!(u32).into()) {
            Some(Form::Whole(0, u32::MAX.into()))
        } else if is(value_parser!(i32).into()) {
            Some(Form::Whole(i32::MIN.into(), i32::MAX.into()))
        } else if is(value_parser!(u16).into()) {
            Some(Form::Whole(0, u16::MAX.into()))
        } else if is(value_parser!(f32).into()) || is(value_parser!(f64).into()) {
            Some(Form::Number)
        } else if is(value_parser!(ByteSize).into()) {
            Some(Form::Size)
        } else if is(ValueParser::from(|_: &str| Ok::<_, String>(Duration::ZERO))) {
            Some(Form::Seconds)
        } else {
            None
        }
    }

    /// Returns why `value` does not have this form, with the expected one, such as `example`.
    /// `None` if it has the form, and something else is wrong with it.
    fn refusal(&self, value: &str, example: Option<&str>) -> Option<String> {
        let such_as =
            |expected: &str, example: &str| Some(format!("expected {expected}, such as {example}"));
        match self {
            Form::Whole(least, most) => match value.parse::<i128>() {
                Ok(number) if number < *least => Some(format!("it must be at least {least}")),
                Ok(number) if number > *most => Some(format!("it must be at most {most}")),
                Ok(_) => None,
                Err(_) => such_as("a whole number", example.unwrap_or("8")),
            },
            Form::Number => match value.parse::<f64>() {
                Ok(_) => None,
                Err(_) => such_as("a number", example.unwrap_or("0.5")),
            },
            Form::Size => match value.parse::<ByteSize>() {
                Ok(_) => None,
                Err(_) => such_as("a size in bytes", "512MiB or 4GiB"),
            },
            Form::Seconds => match value.parse::<f64>() {
                Ok(_) => None,
                Err(_) => such_as("a number of seconds", example.unwrap_or("30")),
            },
        }
    }
}

/// Rewrites `error`, the result of parsing `words` with `command`, in plain words.
pub(super) fn explain(error: Error, command: &Command, words: &[OsString]) -> Error {
    explanation(&error, command, words).unwrap_or(error)
}

fn explanation(error: &Error, command: &Command, words: &[OsString]) -> Option<Error> {
    if error.kind() != ErrorKind::ValueValidation {
        return None;
    }
    let text = |kind| match error.get(kind)? {
        ContextValue::String(text) => Some(text),
        _ => None,
    };
    let (flag, value) = (
        text(ContextKind::InvalidArg)?,
        text(ContextKind::InvalidValue)?,
    );
    let mut command = command;
    for word in words.iter().skip(1) {
        match word.to_str().and_then(|word| command.find_subcommand(word)) {
            Some(inner) => command = inner,
            None => break,
        }
    }
    let arg = command
        .get_arguments()
        .find(|arg| arg.to_string() == *flag)?;
    let default = arg.get_default_values().first();
    let default = default.and_then(|default| default.to_str());
    let example = default.and_then(|default| default.split(',').next());
    let refusal = Form::of(arg)?.refusal(value, example)?;
    let message = format!(
        "invalid value '{value}' for '{flag}': {refusal}\n\nFor more information, try '--help'.\n"
    );
    Some(Error::raw(ErrorKind::ValueValidation, message))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    fn message(words: &str) -> String {
        let words: Vec<OsString> = words.split(' ').map(OsString::from).collect();
        let mut command = Cli::command();
        command.build();
        let error = command.clone().try_get_matches_from(&words).unwrap_err();
        explain(error, &command, &words).to_string()
    }

    #[test]
    fn what_has_the_wrong_form_is_told_with_the_right_one() {
        for (words, flag, form) in [
            (
                "incant serve --kv-memory lots",
                "--kv-memory <SIZE>",
                "a size in bytes, such as 512MiB or 4GiB",
            ),
            (
                "incant serve --max-body=8Mebi?",
                "--max-body <SIZE>",
                "a size in bytes, such as 512MiB or 4GiB",
            ),
            (
                "incant serve --stall-timeout soon",
                "--stall-timeout <SECONDS>",
                "a number of seconds, such as 30",
            ),
            (
                "incant serve --drain 1s",
                "--drain <SECONDS>",
                "a whole number, such as 30",
            ),
            (
                "incant serve --parallel 1.5",
                "--parallel <N>",
                "a whole number, such as 32",
            ),
            (
                "incant serve --port http",
                "--port <PORT>",
                "a whole number, such as 8080",
            ),
            (
                "incant ask x --temperature warm",
                "--temperature <TEMPERATURE>",
                "a number, such as 0.5",
            ),
            (
                "incant bench --batch 1,two",
                "--batch <N>",
                "a whole number, such as 1",
            ),
            (
                "incant train sft --data a --out b --rank many",
                "--rank <N>",
                "a whole number, such as 16",
            ),
        ] {
            let message = message(words);
            let value = words.rsplit([' ', '=', ',']).next().unwrap();
            let expected =
                format!("error: invalid value '{value}' for '{flag}': expected {form}\n");
            assert!(message.starts_with(&expected), "{words}: {message}");
        }
    }

    #[test]
    fn what_is_out_of_range_is_told_with_the_bound() {
        for (words, reason) in [
            ("incant serve --port 99999", "it must be at most 65535"),
            ("incant serve --threads 0", "it must be at least 1"),
            ("incant serve --parallel=-1", "it must be at least 0"),
            (
                "incant train sft --data a --out b --rank 0",
                "it must be 1 to 1024",
            ),
        ] {
            let message = message(words);
            assert!(message.contains(reason), "{words}: {message}");
        }
    }
}
