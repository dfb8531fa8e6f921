//! Filters, tests and functions of Jinja2 3.1 that minijinja does not have, or implements
//! differently.

use std::fmt::Write as _;

use minijinja::value::{Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, State, Value};
use minijinja_contrib::{filters, globals};

use super::step_limits;
use super::string_methods::{arguments, call_on_text, integer, invalid, string};
use super::urlize::urlize;
use super::wordwrap::Wrapping;

pub(super) fn add(environment: &mut Environment<'static>) {
    for (name, filter) in [
        ("truncate", truncate as Filter),
        ("wordwrap", wordwrap),
        ("urlencode", urlencode),
        ("xmlattr", xmlattr),
        ("urlize", urlize),
        ("escape", escape),
        ("e", escape),
        ("forceescape", force_escape),
    ] {
        environment.add_filter(name, move |value: &Value, args: Rest<ValueOrKwargs>| {
            filter(value, &args.into_values())
        });
    }
    environment.add_filter("center", |text: String, width: Option<Value>| {
        let width = width.unwrap_or_else(|| Value::from(80));
        call_on_text(&text, "center", &[width]).map(Option::unwrap_or_default)
    });
    environment.add_filter("wordcount", |text: String| {
        let is_word = |c: char| c == '_' || c.is_alphanumeric();
        let words = text.split(|c: char| !is_word(c));
        words.filter(|word| !word.is_empty()).count()
    });
    environment.add_filter("striptags", filters::striptags);
    environment.add_filter("filesizeformat", filters::filesizeformat);
    environment.add_filter("random", filters::random);
    environment.add_test("callable", is_callable);
    environment.add_function("cycler", globals::cycler);
    environment.add_function("joiner", globals::joiner);
    environment.add_function("lipsum", |state: &mut State, args: Rest<ValueOrKwargs>| {
        lipsum(state, &args.into_values())
    });
}

type Filter = fn(&Value, &[Value]) -> Result<Value, Error>;

/// The argument, or `default` if it is absent or none.
fn number(argument: Option<Value>, default: i64) -> Result<i64, Error> {
    match argument.filter(|value| !value.is_none()) {
        Some(value) => integer(&value),
        None => Ok(default),
    }
}

/// Jinja2's `truncate(length=255, killwords=False, end='...', leeway=5)`.
fn truncate(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [length, cut_words, end, leeway] =
        arguments(["length", "killwords", "end", "leeway"], args)?;
    let (length, leeway) = (number(length, 255)?, number(leeway, 5)?);
    let end = end.unwrap_or_else(|| Value::from("..."));
    let end = string(&end)?;
    let Some(text) = value.as_str() else {
        return Ok(value.clone());
    };
    let [all, ending] = [text, end].map(|text| text.chars().count() as i64);
    if length < ending || leeway < 0 {
        return Err(invalid(format!(
            "truncate: the length {length} is too short for {end:?}, or the leeway is below 0"
        )));
    }
    if all <= length.saturating_add(leeway) {
        return Ok(value.clone());
    }
    let kept: String = text.chars().take((length - ending) as usize).collect();
    let kept = if cut_words.is_some_and(|cut| cut.is_true()) {
        &*kept
    } else {
        kept.rsplit_once(' ').map_or(&*kept, |(words, _)| words)
    };
    Ok(Value::from(format!("{kept}{end}")))
}

/// Jinja2's `wordwrap(width=79, break_long_words=True, wrapstring=None,
/// break_on_hyphens=True)`.
fn wordwrap(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let names = [
        "width",
        "break_long_words",
        "wrapstring",
        "break_on_hyphens",
    ];
    let [width, long_words, separator, hyphens] = arguments(names, args)?;
    let width = number(width, 79)?;
    let width = usize::try_from(width).ok().filter(|&width| width > 0);
    let width = width.ok_or_else(|| invalid("wordwrap: the width must be at least 1"))?;
    let separator = separator.filter(|separator| !separator.is_none());
    let separator = separator.unwrap_or_else(|| Value::from("\n"));
    let wrapping = Wrapping {
        width,
        break_long_words: long_words.is_none_or(|wanted| wanted.is_true()),
        separator: string(&separator)?,
        break_on_hyphens: hyphens.is_none_or(|wanted| wanted.is_true()),
    };
    let text = string(value)?;
    // Each word may become a line of its own.
    if text.len().saturating_mul(wrapping.separator.len().max(1)) > step_limits::MAX_OUTPUT_BYTES {
        return Err(invalid("wordwrap: the output is too long"));
    }
    Ok(Value::from(wrapping.wrap(text)))
}

/// Jinja2's `urlencode`: of a text, or of a mapping or a list of pairs as a query.
fn urlencode(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [] = arguments([], args)?;
    let pairs: Vec<(Value, Value)> = match value.kind() {
        ValueKind::Map => {
            let keys = value.try_iter()?;
            let pairs = keys.map(|key| Ok((key.clone(), value.get_item(&key)?)));
            pairs.collect::<Result<_, Error>>()?
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let pairs = value.try_iter()?;
            let pairs = pairs.map(|pair| {
                let parts: Vec<Value> = pair.try_iter()?.collect();
                match <[Value; 2]>::try_from(parts) {
                    Ok([key, value]) => Ok((key, value)),
                    Err(_) => Err(invalid("urlencode: a list must hold pairs")),
                }
            });
            pairs.collect::<Result<_, Error>>()?
        }
        _ => return Ok(Value::from(quoted(value, false))),
    };
    let pairs: Vec<String> = pairs
        .iter()
        .map(|(key, value)| format!("{}={}", quoted(key, true), quoted(value, true)))
        .collect();
    Ok(Value::from(pairs.join("&")))
}

/// `jinja2.utils.url_quote`: in a query spaces become `+`, elsewhere slashes stay.
fn quoted(value: &Value, in_query: bool) -> String {
    let text = python_text(value);
    let bytes = value.as_bytes().unwrap_or(text.as_bytes());
    let mut quoted = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => {
                quoted.push(char::from(byte));
            }
            b'/' if !in_query => quoted.push('/'),
            b' ' if in_query => quoted.push('+'),
            // Writing to a string cannot fail.
            _ => _ = write!(quoted, "%{byte:02X}"),
        }
    }
    quoted
}

/// A value as Python's `str` formats it.
fn python_text(value: &Value) -> String {
    if value.is_undefined() {
        String::new()
    } else {
        value.to_string()
    }
}

/// Jinja2's `xmlattr(autospace=True)`: the attributes of an XML element, without those that are
/// none or undefined.
fn xmlattr(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [space] = arguments(["autospace"], args)?;
    if value.kind() != ValueKind::Map {
        return Err(invalid(format!(
            "xmlattr: a mapping is needed, not {}",
            value.kind()
        )));
    }
    let mut attributes = Vec::new();
    for key in value.try_iter()? {
        let attribute = value.get_item(&key)?;
        if attribute.is_none() || attribute.is_undefined() {
            continue;
        }
        let name = string(&key)?;
        let is_bad = |c: char| c.is_whitespace() || matches!(c, '/' | '>' | '=');
        if name.contains(is_bad) {
            return Err(invalid(format!(
                "xmlattr: {name:?} is not the name of an attribute"
            )));
        }
        attributes.push(format!("{}=\"{}\"", escaped(&key), escaped(&attribute)));
    }
    let text = attributes.join(" ");
    let is_spaced = space.is_none_or(|space| space.is_true()) && !text.is_empty();
    Ok(Value::from(if is_spaced {
        format!(" {text}")
    } else {
        text
    }))
}

/// Jinja2's `escape`, which leaves values marked as safe unchanged.
fn escape(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [] = arguments([], args)?;
    Ok(Value::from_safe_string(escaped(value)))
}

/// Jinja2's `forceescape`.
fn force_escape(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [] = arguments([], args)?;
    Ok(Value::from_safe_string(escape_text(&python_text(value))))
}

pub(super) fn escaped(value: &Value) -> String {
    let text = python_text(value);
    if value.is_safe() {
        text
    } else {
        escape_text(&text)
    }
}

/// Escapes like markupsafe.
pub(super) fn escape_text(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&#39;"),
            '"' => escaped.push_str("&#34;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Whether a value is callable: a function or macro, or undefined, which counts as callable in
/// Jinja2.
fn is_callable(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Plain | ValueKind::Undefined)
}

/// Jinja2's `lipsum(n=5, html=True, min=20, max=100)`: placeholder text.
fn lipsum(state: &mut State, args: &[Value]) -> Result<Value, Error> {
    for argument in args {
        step_limits::check_size(argument)?;
    }
    let [paragraphs, html, least, most] = arguments(["n", "html", "min", "max"], args)?;
    let (paragraphs, least, most) = (
        number(paragraphs, 5)?,
        number(least, 20)?,
        number(most, 100)?,
    );
    if least >= most {
        return Err(invalid("lipsum: min must be below max"));
    }
    let html = html.is_none_or(|html| html.is_true());
    let options = [
        ("n", Value::from(paragraphs)),
        ("min", Value::from(least)),
        ("max", Value::from(most)),
        ("html", Value::from(html)),
    ];
    let text = globals::lipsum(state, None, options.into_iter().collect())?;
    // Jinja2 separates paragraphs by one line break in HTML and by two elsewhere, and writes
    // none at the end.
    let text = text.to_string();
    let text = text.trim_end();
    Ok(if html {
        Value::from_safe_string(text.replace("\n\n", "\n"))
    } else {
        Value::from(text)
    })
}

#[cfg(test)]
mod tests;
