//! Resource limits of single template operations, because a template may come from a stranger.
//!
//! A template cannot access files, and fuel bounds the number of its steps. But a single step
//! can be expensive: this module bounds operations whose size a template names, and the total
//! output of its expressions.
//!
//! Values that a template builds for itself are bounded by fuel alone: texts joined to ever
//! longer ones, lists nested in lists, a namespace that holds itself. The author of a template
//! can end the process with these (out of memory), but not reach anything outside of it.

use std::fmt::{self, Write as _};

use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs};
use minijinja::{
    Environment, Error, ErrorKind, State, Value, escape_formatter, filters, functions,
};

/// Steps per rendering: enough for thousands of messages, and spent in well under a second if a
/// template never ends.
const FUEL: u64 = 2_000_000;

/// Bytes that all expressions of one rendering may write: more than any context holds.
/// Tokenizing a text takes some hundred times its size in memory.
pub(super) const MAX_OUTPUT_BYTES: usize = 16 << 20;

/// Maximum items of a list that an expression writes. A list that repeats another takes no
/// memory for its items, but a step for each.
const MAX_LIST_ITEMS: usize = 1_000_000;

/// The largest number that `range` counts from or to.
const MAX_RANGE_BOUND: isize = 1 << 40;

/// The maximum indentation or column width, and the maximum number of columns or rows.
const MAX_SIZE: usize = 1000;

/// Limits templates of `environment`, including its filters.
pub(super) fn apply(environment: &mut Environment<'static>) {
    environment.set_fuel(Some(FUEL));
    environment.set_formatter(|out, state, value| {
        let list = matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable);
        if list && value.len().is_some_and(|items| items > MAX_LIST_ITEMS) {
            return Err(refusal("the output is too long"));
        }
        let left = state.get_or_insert_extension(Left(MAX_OUTPUT_BYTES));
        if write!(left, "{value}").is_err() {
            return Err(refusal("the output is too long"));
        }
        escape_formatter(out, state, value)
    });
    environment.add_function(
        "range",
        |first: isize, second: Option<isize>, step: Option<isize>| {
            let given = [Some(first), second, step].into_iter().flatten();
            match given
                .into_iter()
                .find(|n| n.unsigned_abs() > MAX_RANGE_BOUND as usize)
            {
                Some(far) => Err(refusal(format!("range: {far} is too large"))),
                None => functions::range(first, second, step),
            }
        },
    );
    // Filters whose arguments are sizes.
    for (name, filter) in [
        ("batch", Value::from_function(filters::batch)),
        ("indent", Value::from_function(filters::indent)),
        ("slice", Value::from_function(filters::slice)),
        ("tojson", Value::from_function(filters::tojson)),
    ] {
        add_sized_filter(environment, name, filter);
    }
    environment.add_filter(
        "format",
        |state: &mut State, text: &Value, args: Rest<ValueOrKwargs>| {
            check_widths(text)?;
            filters::format(state, text, args)
        },
    );
}

/// Adds a filter whose arguments, except for the filtered value, are sizes.
pub(super) fn add_sized_filter(
    environment: &mut Environment<'static>,
    name: &'static str,
    filter: Value,
) {
    environment.add_filter(
        name,
        move |state: &mut State, args: Rest<ValueOrKwargs>| -> Result<Value, Error> {
            let args = args.into_values();
            args.iter().skip(1).try_for_each(check_size)?;
            filter.call(state, &args)
        },
    );
}

/// Rejects a number that is too large for a size, by itself or among named arguments.
pub(super) fn check_size(argument: &Value) -> Result<(), Error> {
    if argument.is_kwargs() {
        let named = Kwargs::try_from(argument.clone())?;
        let names: Vec<&str> = named.args().collect();
        return names
            .into_iter()
            .try_for_each(|name| check_size(&named.peek::<Value>(name)?));
    }
    let number = argument.kind() == ValueKind::Number;
    if number && argument.as_usize().is_none_or(|size| size > MAX_SIZE) {
        return Err(refusal(format!(
            "{argument} is not a size from 0 to {MAX_SIZE}"
        )));
    }
    Ok(())
}

/// Rejects a format whose columns are too wide, or whose numbers have too many digits.
pub(super) fn check_widths(format: &Value) -> Result<(), Error> {
    let text = format.as_str().unwrap_or_default();
    // `%-08.3f`, `%(name)5d`: the text between the sign, or the name, and the type.
    let named = text.contains("%(");
    let printf = text
        .match_indices(|c| c == '%' || (named && c == ')'))
        .map(|(at, _)| &text[at + 1..])
        .map(|rest| {
            let end = rest.find(|c: char| !c.is_ascii_digit() && !"#- +.*".contains(c));
            &rest[..end.unwrap_or(rest.len())]
        });
    // `{name:>8}`: all between the braces.
    let braces = text.match_indices('{').map(|(at, _)| &text[at + 1..]);
    let braces = braces.map(|rest| rest.split('}').next().unwrap_or(rest));
    let numbers = printf
        .chain(braces)
        .flat_map(|field| field.split(|c: char| !c.is_ascii_digit()));
    let wide = |digits: &&str| {
        let digits = digits.trim_start_matches('0');
        !digits.is_empty() && digits.parse().map_or(true, |width: usize| width > MAX_SIZE)
    };
    match numbers.into_iter().find(wide) {
        Some(width) => Err(refusal(format!("{width} is wider than {MAX_SIZE}"))),
        None => Ok(()),
    }
}

fn refusal(why: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, why)
}

/// Bytes that a rendering may still write.
struct Left(usize);

impl fmt::Write for Left {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 = self.0.checked_sub(text.len()).ok_or(fmt::Error)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, Error> {
        let mut environment = Environment::new();
        apply(&mut environment);
        environment.render_str(source, ())
    }

    #[test]
    fn sizes_beyond_reason_are_refused() {
        for source in [
            "{{ 'a\nb' | indent(18446744073709551615) }}",
            "{{ 'a\nb' | indent(width=1001) }}",
            "{{ [1] | tojson(indent=18446744073709551615) }}",
            "{{ [1] | tojson(1001) }}",
            "{{ [1] | batch(99999999999, 0) }}",
            "{{ [1] | slice(99999999999) }}",
            "{{ '%999999999999d' | format(1) }}",
            "{{ '%.99999999999999999999f' | format(1.5) }}",
            "{{ 'in 2024: %-9999d' | format(1) }}",
            "{{ '%(a)9999d' | format(a=1) }}",
            "{{ range(9223372036854775807, -9223372036854775808, -9223372036854775808) }}",
        ] {
            let error = render(source).expect_err(source);
            assert_eq!(error.kind(), ErrorKind::InvalidOperation, "{error}");
        }
    }

    #[test]
    fn sizes_within_reason_are_as_ever() {
        for (source, expected) in [
            ("{{ 'a\nb' | indent(2) }}", "a\n  b"),
            ("{{ 'a\nb' | indent(width=1, first=true) }}", " a\n b"),
            ("{{ 99999999 | tojson }}", "99999999"),
            ("{{ [1, 2, 3] | batch(2, 0) }}", "[[1, 2], [3, 0]]"),
            ("{{ [1, 2] | slice(2) }}", "[[1], [2]]"),
            (
                "{{ range(3) | list }}{{ range(3, 1, -1) | list }}",
                "[0, 1, 2][3, 2]",
            ),
            ("{{ '%05d %s' | format(123456789, 'x') }}", "123456789 x"),
            (
                "{{ 'December 2023, (%s) 2024' | format('x') }}",
                "December 2023, (x) 2024",
            ),
        ] {
            assert_eq!(render(source).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn what_is_written_has_an_end() {
        for source in [
            "{% for a in range(10) %}{{ 'x' * 99999999 }}{% endfor %}",
            "{% set x %}{% for a in range(10) %}{{ 'x' * 99999999 }}{% endfor %}{% endset %}",
            "{{ [1] * 99999999 }}",
            "{{ 'x' * 99999999 }}",
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        ] {
            assert!(render(source).is_err(), "{source}");
        }
        let long = render("{{ 'x' * 10000000 }}").unwrap();
        assert_eq!(long.len(), 10_000_000);
    }
}
