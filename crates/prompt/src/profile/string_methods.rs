//! Python's methods on strings and lists that minijinja's own compatibility layer does not
//! have.
//!
//! Positions are those of characters, as in Python.

use minijinja::value::{Kwargs, Tuple, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use super::step_limits;

/// Calls a method that the value does not have itself.
pub(super) fn call(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String => {
            if method == "format" {
                step_limits::check_widths(value)?;
            }
            let text = value.as_str().unwrap_or_default();
            if let Some(found) = call_on_text(text, method, args)? {
                return Ok(found);
            }
        }
        ValueKind::Seq => {
            if method == "index" {
                let [item, start, end] = arguments(["value", "start", "stop"], args)?;
                let item = required(item)?;
                let items: Vec<Value> = value.try_iter()?.collect();
                let (start, end) = range(items.len(), start, end)?;
                let found = (start..end).find(|&at| items[at] == item);
                return found.map(Value::from).ok_or_else(|| missing(&item));
            }
            if method == "copy" {
                let [] = arguments([], args)?;
                return Ok(value.clone());
            }
        }
        ValueKind::Map if method == "copy" => {
            let [] = arguments([], args)?;
            return Ok(value.clone());
        }
        _ => {}
    }
    // All other methods have no named arguments.
    let named: &[&str] = match (value.kind(), method) {
        (ValueKind::String, "split") => &["sep", "maxsplit"],
        (ValueKind::String, "splitlines") => &["keepends"],
        (ValueKind::String, "replace") => &["old", "new", "count"],
        _ => return pycompat::unknown_method_callback(state, value, method, args),
    };
    let mut args = positional(named, args)?;
    while args.last().is_some_and(Option::is_none) {
        args.pop();
    }
    let args: Vec<Value> = args.into_iter().map(Option::unwrap_or_default).collect();
    pycompat::unknown_method_callback(state, value, method, &args)
}

/// Calls a method of a text; `None` for methods that are implemented elsewhere.
pub(super) fn call_on_text(
    text: &str,
    method: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "rsplit" => {
            let [separator, most] = arguments(["sep", "maxsplit"], args)?;
            let most = match most {
                None => None,
                // Below 0 there is no limit.
                Some(most) => usize::try_from(integer(&most)?).ok(),
            };
            let separator = separator.filter(|separator| !separator.is_none());
            let parts = match separator {
                None => rsplit_whitespace(text, most)
                    .into_iter()
                    .map(Value::from)
                    .collect(),
                Some(separator) => {
                    let separator = string(&separator)?;
                    if separator.is_empty() {
                        return Err(invalid("an empty separator"));
                    }
                    let most = most.map_or(usize::MAX, |most| most.saturating_add(1));
                    let parts = text.rsplitn(most, separator).map(Value::from);
                    let mut parts: Vec<Value> = parts.collect();
                    parts.reverse();
                    parts
                }
            };
            Value::from(parts)
        }
        "partition" | "rpartition" => {
            let [separator] = arguments(["sep"], args)?;
            let separator = required(separator)?;
            let separator = string(&separator)?;
            if separator.is_empty() {
                return Err(invalid("an empty separator"));
            }
            let is_left = method == "partition";
            let found = if is_left {
                text.split_once(separator)
            } else {
                text.rsplit_once(separator)
            };
            let parts = match found {
                Some((before, after)) => [before, separator, after],
                None if is_left => [text, "", ""],
                None => ["", "", text],
            };
            Value::from(Tuple::from(parts.map(Value::from)))
        }
        "removeprefix" => {
            let [prefix] = arguments(["prefix"], args)?;
            let prefix = required(prefix)?;
            Value::from(text.strip_prefix(string(&prefix)?).unwrap_or(text))
        }
        "removesuffix" => {
            let [suffix] = arguments(["suffix"], args)?;
            let suffix = required(suffix)?;
            Value::from(text.strip_suffix(string(&suffix)?).unwrap_or(text))
        }
        "index" | "rindex" | "find" | "rfind" | "count" => {
            let [part, start, end] = arguments(["sub", "start", "end"], args)?;
            let part = required(part)?;
            let places: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
            let (start, end) = range(places.len(), start, end)?;
            let byte = |place: usize| places.get(place).copied().unwrap_or(text.len());
            let within = text.get(byte(start)..byte(end)).unwrap_or_default();
            let part_text = string(&part)?;
            if method == "count" {
                return Ok(Some(Value::from(within.matches(part_text).count())));
            }
            let found = if method.starts_with('r') {
                within.rfind(part_text)
            } else {
                within.find(part_text)
            };
            match found {
                Some(at) => Value::from(start + within[..at].chars().count()),
                None if method.ends_with("find") => Value::from(-1),
                None => return Err(missing(&part)),
            }
        }
        "zfill" => {
            let [width] = arguments(["width"], args)?;
            let missing = missing_to(text, &required(width)?)?;
            let digits = text.trim_start_matches(['+', '-']);
            let (sign, digits) = match text.len() - digits.len() {
                0 => ("", text),
                _ => text.split_at(1),
            };
            Value::from(format!("{sign}{}{digits}", "0".repeat(missing)))
        }
        "ljust" | "rjust" | "center" => {
            let [width, fill] = arguments(["width", "fillchar"], args)?;
            let width = required(width)?;
            let missing = missing_to(text, &width)?;
            let fill = fill.unwrap_or_else(|| Value::from(" "));
            let fill = string(&fill)?;
            if fill.chars().count() != 1 {
                return Err(invalid("the fill character must be one character"));
            }
            let left = match method {
                "ljust" => 0,
                "rjust" => missing,
                // If the padding is odd, CPython puts the extra character to the left where the
                // width is odd too.
                _ => missing / 2 + (missing & (text.chars().count() + missing) & 1),
            };
            let right = missing - left;
            Value::from(format!("{}{text}{}", fill.repeat(left), fill.repeat(right)))
        }
        "swapcase" => {
            let [] = arguments([], args)?;
            let swapped = text.chars().flat_map(|c| -> Vec<char> {
                if c.is_uppercase() {
                    c.to_lowercase().collect()
                } else {
                    c.to_uppercase().collect()
                }
            });
            Value::from(swapped.collect::<String>())
        }
        "casefold" => {
            let [] = arguments([], args)?;
            Value::from(text.to_lowercase().replace('ß', "ss"))
        }
        _ => return Ok(None),
    }))
}

/// Splits a text at white space from the right, at most `most` times, like `str.rsplit`.
fn rsplit_whitespace(text: &str, most: Option<usize>) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text.trim_end();
    while !rest.is_empty() {
        let at = rest
            .rfind(char::is_whitespace)
            .filter(|_| Some(words.len()) != most);
        let Some(at) = at else {
            // The rest, without the white space before it unless the limit was reached.
            words.push(if Some(words.len()) == most {
                rest
            } else {
                rest.trim_start()
            });
            break;
        };
        let space = rest[at..].chars().next().map_or(1, char::len_utf8);
        words.push(&rest[at + space..]);
        rest = rest[..at].trim_end();
    }
    words.reverse();
    words
}

/// The number of characters that a text falls short of a width.
fn missing_to(text: &str, width: &Value) -> Result<usize, Error> {
    step_limits::check_size(width)?;
    let width = usize::try_from(integer(width)?).unwrap_or(0);
    Ok(width.saturating_sub(text.chars().count()))
}

/// The range of a Python slice of `length` items; negative indices count from the end.
fn range(length: usize, start: Option<Value>, end: Option<Value>) -> Result<(usize, usize), Error> {
    let place = |value: Option<Value>, default: usize| -> Result<usize, Error> {
        let value = value.filter(|value| !value.is_none());
        let Some(value) = value else {
            return Ok(default);
        };
        let place = integer(&value)?;
        let from_end = place.unsigned_abs().min(length as u64) as usize;
        Ok(if place < 0 {
            length - from_end
        } else {
            from_end
        })
    };
    let (start, end) = (place(start, 0)?, place(end, length)?);
    Ok((start, end.max(start)))
}

/// Positional or named arguments, in the order of `names`.
pub(super) fn arguments<const N: usize>(
    names: [&str; N],
    args: &[Value],
) -> Result<[Option<Value>; N], Error> {
    let found = positional(&names, args)?;
    Ok(found.try_into().expect("one for each name"))
}

fn positional(names: &[&str], args: &[Value]) -> Result<Vec<Option<Value>>, Error> {
    let (args, named) = match args.split_last() {
        Some((last, args)) if last.is_kwargs() => (args, Some(Kwargs::try_from(last.clone())?)),
        _ => (args, None),
    };
    if args.len() > names.len() {
        return Err(ErrorKind::TooManyArguments.into());
    }
    let mut found: Vec<Option<Value>> = args.iter().cloned().map(Some).collect();
    found.resize(names.len(), None);
    if let Some(named) = named {
        for (name, found) in names.iter().zip(&mut found).skip(args.len()) {
            if named.has(name) {
                *found = Some(named.get(name)?);
            }
        }
        named.assert_all_used()?;
    }
    Ok(found)
}

fn required(argument: Option<Value>) -> Result<Value, Error> {
    argument.ok_or_else(|| ErrorKind::MissingArgument.into())
}

pub(super) fn string(value: &Value) -> Result<&str, Error> {
    value
        .as_str()
        .ok_or_else(|| invalid(format!("a string is needed, not {}", value.kind())))
}

pub(super) fn integer(value: &Value) -> Result<i64, Error> {
    i64::try_from(value.clone())
        .map_err(|_| invalid(format!("an integer is needed, not {}", value.kind())))
}

pub(super) fn invalid(why: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, why)
}

fn missing(part: &Value) -> Error {
    invalid(format!("{part:?} is not in it"))
}

#[cfg(test)]
mod tests {
    use minijinja::Environment;

    use super::*;
    use crate::profile::jinja;

    fn render(expression: &str) -> Result<String, Error> {
        let mut environment = Environment::new();
        environment.set_unknown_method_callback(call);
        jinja::add(&mut environment);
        environment.render_str(&format!("{{{{ {expression} }}}}"), ())
    }

    /// The results of CPython 3.12 and Jinja2 3.1.
    #[test]
    fn texts_have_the_methods_of_python() {
        for (expression, expected) in [
            ("'a,b,c'.rsplit(',')|join('|')", "a|b|c"),
            ("'a,b,c'.rsplit(',', 1)|join('|')", "a,b|c"),
            ("'a,b,c'.rsplit(sep=',', maxsplit=0)|join('|')", "a,b,c"),
            ("'a,b,c'.rsplit(',', -1)|length", "3"),
            ("' a  b c '.rsplit()|join('|')", "a|b|c"),
            ("' a  b c '.rsplit(none, 1)|join('|')", " a  b|c"),
            ("' a  b c '.rsplit(maxsplit=2)|join('|')", " a|b|c"),
            ("' a b'.rsplit(maxsplit=2)|join('|')", "a|b"),
            ("''.rsplit()|length", "0"),
            ("'a=b=c'.partition('=')|join('|')", "a|=|b=c"),
            ("'a=b=c'.rpartition('=')|join('|')", "a=b|=|c"),
            ("'abc'.partition('=')|join('|')", "abc||"),
            ("'abc'.rpartition('=')|join('|')", "||abc"),
            ("'<s>a'.removeprefix('<s>') ~ 'a'.removeprefix('b')", "aa"),
            ("'a</s>'.removesuffix('</s>') ~ 'a'.removesuffix('b')", "aa"),
            ("'häää'.index('ä') ~ 'häää'.rindex('ä')", "13"),
            (
                "'häää'.find('ä', 2) ~ 'häää'.rfind('ä', 0, -1) ~ 'a'.find('b')",
                "22-1",
            ),
            ("'häää'.count('ä') ~ 'häää'.count('ä', -2)", "32"),
            (
                "'42'.zfill(5) ~ '-42'.zfill(5) ~ '42'.zfill(1)",
                "00042-004242",
            ),
            ("'ä'.ljust(3, '.') ~ 'ä'.rjust(3) ~ '|'", "ä..  ä|"),
            ("'ab'.center(5, '*') ~ 'a'.center(4, '*')", "**ab**a**"),
            ("'aBß'.swapcase() ~ 'Straße'.casefold()", "AbSSstrasse"),
            ("'a b c'.split(maxsplit=1)|join('|')", "a|b c"),
            ("'a\\nb'.splitlines(keepends=true)|length", "2"),
            ("'aaa'.replace('a', 'b', count=1)", "baa"),
            ("[3, 1, 3].index(3) ~ [3, 1, 3].index(3, 1)", "02"),
            ("[1].copy()[0] ~ {'a': 2}.copy()['a']", "12"),
            ("'Xy'.lower().upper() ~ {'a': 1}.get('b', 7)", "XY7"),
        ] {
            let found = render(expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
            assert_eq!(found, expected, "{expression}");
        }
    }

    #[test]
    fn filters_of_jinja_are_there() {
        for (expression, expected) in [
            ("'one two three four'|truncate(9)", "one..."),
            ("'one two three four'|truncate(9, true)", "one tw..."),
            ("'one two three'|truncate(9)", "one two three"),
            ("'one two three'|truncate(9, true, '…', 0)", "one two …"),
            (
                "'one two three'|truncate(length=7, killwords=true, end='', leeway=0)",
                "one two",
            ),
            ("'short'|truncate", "short"),
            ("'ab'|center(6) ~ '|'", "  ab  |"),
            ("'two words, or four'|wordcount", "4"),
            ("'<b>x</b>'|striptags", "x"),
        ] {
            let found = render(expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
            assert_eq!(found, expected, "{expression}");
        }
    }

    #[test]
    fn what_python_turns_down_is_turned_down() {
        for expression in [
            "'a'.index('b')",
            "'a'.rindex('b')",
            "[1].index(2)",
            "'a'.rsplit('')",
            "'a'.partition('')",
            "'a'.removeprefix()",
            "'a'.removeprefix('a', 'b')",
            "'a'.removeprefix(prefixes='a')",
            "'a'.ljust(3, 'ab')",
            "'a'.zfill('b')",
            "'a'.zfill(999999999)",
            "'a'.center(1001)",
            "'a'|center(1001)",
            "'a b c d e f'|truncate(2)",
            "'a'.no_such_method()",
            "[1].append(2)",
        ] {
            assert!(render(expression).is_err(), "{expression}");
        }
    }
}
