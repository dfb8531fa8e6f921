//! Features of Python that chat templates rely on and that minijinja does not have, or
//! implements differently: `json.dumps` for `tojson`, and `strftime`.

use std::fmt::Write;

use jiff::Zoned;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};

/// The filter `tojson` as transformers defines it: `json.dumps` with `ensure_ascii=False`, its
/// other arguments as keywords, and no HTML escapes.
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let ascii_only = options
        .get::<Option<bool>>("ensure_ascii")?
        .unwrap_or(false);
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let indent = options.get::<Option<usize>>("indent")?;
    let separators = options.get::<Option<Vec<String>>>("separators")?;
    options.assert_all_used()?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                "tojson: separators must be a pair",
            ));
        }
        // As in Python, an indented list has no space after its commas.
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let mut dump = Dump {
        out: String::new(),
        ascii_only,
        sort_keys,
        indent,
        item,
        key,
    };
    dump.value(value, 0)?;
    Ok(dump.out)
}

struct Dump {
    out: String,
    ascii_only: bool,
    sort_keys: bool,
    indent: Option<usize>,
    item: String,
    key: String,
}

impl Dump {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self
                .out
                .push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.list(['[', ']'], &items, depth, |dump, item| {
                    dump.value(item, depth + 1)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.list(['{', '}'], &keys, depth, |dump, key| {
                    match key.kind() {
                        ValueKind::String => dump.string(key.as_str().unwrap_or_default()),
                        ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                            dump.out.push('"');
                            dump.value(key, depth + 1)?;
                            dump.out.push('"');
                        }
                        kind => return Err(not_json(kind)),
                    }
                    dump.out.push_str(&dump.key.clone());
                    dump.value(&value.get_item(key)?, depth + 1)
                })?;
            }
            kind => return Err(not_json(kind)),
        }
        Ok(())
    }

    fn list(
        &mut self,
        [open, close]: [char; 2],
        items: &[Value],
        depth: usize,
        mut write: impl FnMut(&mut Dump, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                self.out.push_str(&self.item.clone());
            }
            self.new_line(depth + 1);
            write(self, item)?;
        }
        if !items.is_empty() {
            self.new_line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ascii_only && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        // Writing to a string cannot fail.
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// A number as Python prints it: `1e+16` where Rust writes `1e16`.
fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    let Ok(float) = f64::try_from(value.clone()) else {
        return value.to_string();
    };
    if float.is_nan() {
        return "NaN".to_owned();
    }
    if float.is_infinite() {
        let sign = if float < 0.0 { "-" } else { "" };
        return format!("{sign}Infinity");
    }
    // Rust's debug format switches to an exponent where Python's repr does.
    let shortest = format!("{float:?}");
    match shortest.split_once('e') {
        Some((mantissa, exponent)) => match exponent.strip_prefix('-') {
            Some(digits) => format!("{mantissa}e-{digits:0>2}"),
            None => format!("{mantissa}e+{exponent:0>2}"),
        },
        None => shortest,
    }
}

fn not_json(kind: ValueKind) -> Error {
    Error::new(
        ErrorKind::InvalidOperation,
        format!("tojson: {kind} is not JSON serializable"),
    )
}

/// The function `strftime_now`: a moment in Python's `strftime` notation, which is C's.
pub(super) fn strftime(format: &str, moment: &Zoned) -> Result<String, Error> {
    jiff::fmt::strtime::format(format, moment).map_err(|error| {
        Error::new(
            ErrorKind::InvalidOperation,
            format!("strftime_now({format:?}): {error}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::Environment;

    fn render(expression: &str) -> String {
        let mut environment = Environment::new();
        environment.add_filter("tojson", tojson);
        environment.render_str(expression, ()).unwrap()
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        for (expression, expected) in [
            (
                r#"{{ {"role": "user", "content": "<é> & 'x' \"y\"\n"} | tojson }}"#,
                r#"{"role": "user", "content": "<é> & 'x' \"y\"\n"}"#,
            ),
            (
                "{{ [1, 2.0, true, none, []] | tojson }}",
                "[1, 2.0, true, null, []]",
            ),
            (
                r#"{{ "é🙂" | tojson(ensure_ascii=true) }}"#,
                r#""\u00e9\ud83d\ude42""#,
            ),
            (
                r#"{{ {"b": 1, "a": {}} | tojson(sort_keys=true) }}"#,
                r#"{"a": {}, "b": 1}"#,
            ),
            (
                r#"{{ {"b": [1, 2]} | tojson(indent=2) }}"#,
                "{\n  \"b\": [\n    1,\n    2\n  ]\n}",
            ),
            (
                r#"{{ [1, {"a": 2}] | tojson(separators=(",", ":")) }}"#,
                r#"[1,{"a":2}]"#,
            ),
        ] {
            assert_eq!(render(expression), expected, "{expression}");
        }
    }

    #[test]
    fn floats_have_pythons_exponents() {
        for (float, expected) in [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e16, "1e+16"),
            (1e-5, "1e-05"),
            (-2.5e-300, "-2.5e-300"),
            (f64::INFINITY, "Infinity"),
        ] {
            assert_eq!(number(&Value::from(float)), expected);
        }
    }

    #[test]
    fn what_is_not_defined_is_not_json() {
        let mut environment = Environment::new();
        environment.add_filter("tojson", tojson);
        assert!(
            environment
                .render_str("{{ missing | tojson }}", ())
                .is_err()
        );
    }

    #[test]
    fn dates_are_written_in_c_notation() {
        let moment = jiff::civil::date(2024, 7, 5)
            .at(16, 3, 9, 0)
            .in_tz("UTC")
            .unwrap();
        assert_eq!(strftime("%d %b %Y", &moment).unwrap(), "05 Jul 2024");
        assert_eq!(
            strftime("%A, %B %-d, %Y, %H:%M:%S %p", &moment).unwrap(),
            "Friday, July 5, 2024, 16:03:09 PM"
        );
        assert!(strftime("%!", &moment).is_err());
    }
}
