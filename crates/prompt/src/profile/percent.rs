//! Python's `%` on strings (printf-style formatting), which minijinja supports only for
//! numbers.
//!
//! minijinja has no way to overload an operator, so a template's source is rewritten before it
//! is compiled: every `a % b` becomes a call of a [function](percent), since any name or
//! bracket may hold a text. The operands follow Jinja's grammar, in which filters and tests
//! bind tighter than operators do. Line breaks stay where they are, so that errors name the
//! right lines.

use std::borrow::Cow;

use minijinja::formatting::{FormatStyle, format};
use minijinja::{Error, State, Value, context};

use super::step_limits;

/// Maximum number of rewritten operators: each moves the text after it.
const MAX_OPERATORS: usize = 1000;

/// The function that the operator becomes a call of. No template has a variable of this name.
pub(super) const FUNCTION: &str = "__percent__";

/// `left % right` as in Python. If `left` is a text, it is a format, and `right` is a tuple of
/// its values or its only value. Otherwise it is the remainder.
pub(super) fn percent(state: &mut State, left: &Value, right: &Value) -> Result<Value, Error> {
    let Some(text) = left.as_str() else {
        if left.is_integer()
            && right.is_integer()
            && let (Ok(left), Ok(right)) =
                (i64::try_from(left.clone()), i64::try_from(right.clone()))
            && let Some(remainder) = left.checked_rem(right)
        {
            // Python's remainder has the sign of the divisor.
            let is_below = remainder != 0 && (remainder < 0) != (right < 0);
            return Ok(Value::from(if is_below {
                remainder + right
            } else {
                remainder
            }));
        }
        // Floats, numbers beyond 64 bits, and operands that cannot be divided.
        let remainder = state.env().compile_expression("left % right")?;
        return remainder.eval(context! { left, right });
    };
    step_limits::check_widths(left)?;
    let values = if right.is_tuple() {
        right.try_iter()?.collect()
    } else {
        vec![right.clone()]
    };
    format(FormatStyle::Printf, text, &values).map(Value::from)
}

/// Rewrites the operators of a source. A source that cannot be parsed is returned unchanged, so
/// that the compiler reports the error, as is one with too many operators.
pub(super) fn rewrite(source: &str) -> Cow<'_, str> {
    let mut rewriter = Rewriter {
        rest: source,
        out: String::with_capacity(source.len()),
        calls: 0,
    };
    match rewriter.template() {
        Some(()) if rewriter.calls > 0 => Cow::Owned(rewriter.out),
        _ => Cow::Borrowed(source),
    }
}

struct Rewriter<'a> {
    rest: &'a str,
    out: String,
    /// The number of operators rewritten so far.
    calls: usize,
}

/// An expression, or the contents of a pair of brackets.
#[derive(Default)]
struct Frame {
    /// Where in the output the current chain of `*`, `/`, `//` and `%` begins; `None` before
    /// its first operand.
    chain: Option<usize>,
    /// Whether a call has to be closed after the current operand.
    is_open: bool,
    last: Last,
}

/// The kind of the last item read in a frame.
#[derive(Clone, Copy, Default, PartialEq)]
enum Last {
    /// An item that an operand follows.
    #[default]
    Operator,
    /// A dot or a pipe: a name follows, even if it is a keyword.
    Access,
    /// `is`, perhaps with a `not`: the name of a test follows. In Jinja a test belongs to the
    /// operand before it, as a filter does: `a % b is c` is `a % (b is c)`.
    Is,
    /// The end of an operand, or the name of a test, which an argument may follow.
    Operand,
}

/// Words that stand between operands.
const WORDS: [&str; 9] = [
    "and",
    "or",
    "not",
    "in",
    "if",
    "else",
    "for",
    "recursive",
    "as",
];

impl<'a> Rewriter<'a> {
    /// Copies `length` bytes.
    fn copy(&mut self, length: usize) -> &'a str {
        let (copied, rest) = self.rest.split_at(length);
        self.out.push_str(copied);
        self.rest = rest;
        copied
    }

    /// Copies up to the end of the first `mark`.
    fn copy_past(&mut self, mark: &str) -> Option<()> {
        let at = self.rest.find(mark)?;
        self.copy(at + mark.len());
        Some(())
    }

    fn template(&mut self) -> Option<()> {
        while let Some(at) = self.rest.find('{') {
            self.copy(at + 1);
            let mark = self.rest.chars().next();
            if !matches!(mark, Some('{' | '%' | '#')) {
                continue;
            }
            self.copy(1);
            match mark {
                Some('#') => self.copy_past("#}")?,
                Some('{') => self.expression("}}", false)?,
                _ if self.word_ahead() == "raw" => self.raw()?,
                _ => self.expression("%}", true)?,
            }
        }
        self.copy(self.rest.len());
        Some(())
    }

    /// The first word of a block.
    fn word_ahead(&self) -> &'a str {
        let text = self.rest.strip_prefix(['-', '+']).unwrap_or(self.rest);
        let text = text.trim_start();
        let end = text.find(|c: char| !is_name(c)).unwrap_or(text.len());
        &text[..end]
    }

    /// Copies up to the end of `{% endraw %}`.
    fn raw(&mut self) -> Option<()> {
        self.copy_past("%}")?;
        loop {
            self.copy_past("{%")?;
            if self.word_ahead() == "endraw" {
                return self.copy_past("%}");
            }
        }
    }

    /// Rewrites an expression or a block up to its end. The first word of a block is a keyword.
    fn expression(&mut self, end: &str, is_block: bool) -> Option<()> {
        let mut frames = vec![Frame::default()];
        let mut is_keyword = is_block;
        // Directly after the opening mark, these belong to it.
        if self.rest.starts_with(['-', '+']) {
            self.copy(1);
        }
        loop {
            let space = self.rest.len() - self.rest.trim_start().len();
            self.copy(space);
            let is_outermost = frames.len() == 1;
            let frame = frames.last_mut()?;
            if is_outermost {
                let trimmed = self.rest.strip_prefix(['-', '+']).unwrap_or(self.rest);
                if self.rest.starts_with(end) || trimmed.starts_with(end) {
                    frame.close(&mut self.out);
                    let mark = self.rest.len() - trimmed.len();
                    let mark = if self.rest.starts_with(end) { 0 } else { mark };
                    self.copy(mark + end.len());
                    return Some(());
                }
            }
            let first = self.rest.chars().next()?;
            match first {
                '\'' | '"' => {
                    frame.operand(self.out.len());
                    let length = quoted(self.rest)?;
                    self.copy(length);
                    frame.last = Last::Operand;
                }
                '0'..='9' => {
                    frame.operand(self.out.len());
                    let length = number(self.rest);
                    self.copy(length);
                    frame.last = Last::Operand;
                }
                c if is_name(c) => {
                    let length = self.rest.find(|c: char| !is_name(c));
                    let word = &self.rest[..length.unwrap_or(self.rest.len())];
                    let is_name = matches!(frame.last, Last::Access | Last::Is);
                    if std::mem::take(&mut is_keyword) {
                        frame.end(&mut self.out);
                        self.copy(word.len());
                    } else if frame.last == Last::Operand && word == "is" {
                        self.copy(word.len());
                        frame.last = Last::Is;
                    } else if frame.last == Last::Is && word == "not" {
                        self.copy(word.len());
                    } else if !is_name && WORDS.contains(&word) {
                        frame.end(&mut self.out);
                        self.copy(word.len());
                    } else {
                        frame.operand(self.out.len());
                        self.copy(word.len());
                        frame.last = Last::Operand;
                    }
                }
                '(' | '[' | '{' => {
                    frame.operand(self.out.len());
                    self.copy(1);
                    frames.push(Frame::default());
                }
                ')' | ']' | '}' => {
                    frame.close(&mut self.out);
                    frames.pop();
                    // A closing bracket without an opening one is an error.
                    let outer = frames.last_mut()?;
                    self.copy(1);
                    outer.last = Last::Operand;
                }
                '.' | '|' => {
                    self.copy(1);
                    frame.last = Last::Access;
                }
                '*' if self.rest.starts_with("**") => {
                    self.copy(2);
                    frame.last = Last::Operator;
                }
                '*' | '/' => {
                    frame.close(&mut self.out);
                    let double = self.rest.starts_with("//");
                    self.copy(if double { 2 } else { 1 });
                    frame.last = Last::Operator;
                }
                '%' => {
                    frame.close(&mut self.out);
                    let chain = frame.chain?;
                    self.out.insert_str(chain, &format!("{FUNCTION}("));
                    self.out.push(',');
                    self.rest = &self.rest[1..];
                    frame.is_open = true;
                    self.calls += 1;
                    if self.calls > MAX_OPERATORS {
                        return None;
                    }
                    frame.last = Last::Operator;
                }
                '-' | '+' if frame.last == Last::Operator => {
                    frame.operand(self.out.len());
                    self.copy(1);
                    frame.last = Last::Operator;
                }
                // Operators that bind looser, and separators of arguments.
                other => {
                    frame.end(&mut self.out);
                    self.copy(other.len_utf8());
                }
            }
        }
    }
}

impl Frame {
    /// An operand, or a continuation of one, begins at `at` in the output.
    fn operand(&mut self, at: usize) {
        self.chain.get_or_insert(at);
    }

    /// Closes the call whose second operand has ended.
    fn close(&mut self, out: &mut String) {
        if std::mem::take(&mut self.is_open) {
            // Before the white space that follows the operand, which may contain a line break.
            let end = out.trim_end().len();
            out.insert(end, ')');
        }
    }

    /// Ends a chain.
    fn end(&mut self, out: &mut String) {
        self.close(out);
        *self = Frame::default();
    }
}

fn is_name(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

/// The length of the string literal at the beginning of a text, including its quotes.
fn quoted(text: &str) -> Option<usize> {
    let quote = text.chars().next()?;
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => _ = chars.next(),
            c if c == quote => return Some(at + c.len_utf8()),
            _ => {}
        }
    }
    None
}

/// The length of the number at the beginning of a text.
fn number(text: &str) -> usize {
    let digits = |at: usize| {
        let rest = &text[at..];
        at + rest.find(|c: char| !is_name(c)).unwrap_or(rest.len())
    };
    let begins = |at: usize, mark: &[char]| {
        let rest = text[at..].strip_prefix(mark);
        rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    let mut end = digits(0);
    if begins(end, &['.']) {
        end = digits(end + 1);
    }
    // `1e-5`, but not `0xe-5`, which is a difference.
    let is_decimal = !text.starts_with("0x") && !text.starts_with("0X");
    if is_decimal && text[..end].ends_with(['e', 'E']) && begins(end, &['+', '-']) {
        end = digits(end + 1);
    }
    end
}

#[cfg(test)]
mod tests {
    use minijinja::Environment;
    use proptest::prelude::*;

    use super::*;

    fn render(source: &str) -> Result<String, Error> {
        let mut environment = Environment::new();
        environment.add_function(FUNCTION, percent);
        let context = context! { n => 7, two => 2, name => "Ann", form => "<%s>", items => [1, 2] };
        environment.render_str(&rewrite(source), context)
    }

    #[test]
    fn texts_are_formats() {
        for (source, expected) in [
            ("{{ '%s: %d' % (name, n) }}", "Ann: 7"),
            ("{{ \"%s\"%name }}", "Ann"),
            ("{{ '%02d' % two }}-{{ '%5.1f|' % 1.25 }}", "02-  1.2|"),
            ("{{ form % n }}", "<7>"),
            ("{{ form % 'x' ~ '!' }}", "<x>!"),
            ("{{ ('<' ~ '%s>') % name | upper }}", "<ANN>"),
            ("{{ '%s' % name if n % two else 'no' }}", "Ann"),
            ("{{ ['%s' % n, form % -two] | join(' ') }}", "7 <-2>"),
            ("{{ '%(a)s%%' % {'a': n * 2} }}", "14%"),
            ("{% set x = '%s' % (name,) %}{{ x }}", "Ann"),
            ("{% if '%s' % n == '7' %}seven{% endif %}", "seven"),
            // From left to right, as in Python.
            ("{%- set x = form % form % n -%}{{ x }}", "<<7>>"),
            ("{{ '%s' % items[n - 6] }}{{ '%s' % name[0] }}", "2A"),
            ("{{ '%s|%s' % ('a' % (), 'b') }}", "a|b"),
            ("{{ '%s\n' % name }}\n{{ 1 }}", "Ann\n\n1"),
            ("{% for i in ['%s' % n] %}{{ i }}{% endfor %}", "7"),
            // With a number on the right, and the format in any kind of expression.
            (
                "{{ form % 7 }}{{ (form) % 7 }}{{ ('%d' ~ '!') % 7 }}",
                "<7><7>7!",
            ),
            ("{{ form % 1.5e-3 }}{{ form|trim % 7 }}", "<0.0015><7>"),
            (
                "{{ {'a': form}.a % 7 }}{{ [form][0] % 7 if n else 1 }}",
                "<7><7>",
            ),
            // A test belongs to the operand before it.
            (
                "{{ form % 7 is string }}{{ form % (7 is number) }}",
                "<False><True>",
            ),
            ("{{ form % n is not divisibleby 7 ~ '!' }}", "<False>!"),
            ("{{ form % n is in [7] == '<True>' }}", "True"),
            ("{{ (form % 7) is string and form is string }}", "True"),
            ("{{ form % 'x' if name is defined else form % 'y' }}", "<x>"),
            (
                "{{ form % n is divisibleby(7) }}{{ form % x is none }}",
                "<True><False>",
            ),
        ] {
            let found = render(source).unwrap_or_else(|error| panic!("{source}: {error:#}"));
            assert_eq!(found, expected, "{source} as {}", rewrite(source));
        }
        assert!(render("{{ '%99999d' % n }}").is_err());
        assert!(render("{{ '%d' % name }}").is_err());
        assert!(render("{{ '%s %s' % n }}").is_err());
    }

    #[test]
    fn numbers_have_remainders_as_before() {
        for source in [
            "{{ n % 4 }}{{ (n + 1) % 3 }}{{ n * 2 % 5 }}{{ n // 2 % 2 == 1 }}",
            "{{ -7 % 3 }}{{ 7 % -3 }}{{ -7 % -3 }}{{ 6 % -3 }}{{ 7.0 % 2 }}{{ n % two }}{{ n * two % (n - 4) }}{{ -n % two }}{{ n % two * 3 }}{{ 100 % n % two }}",
            "{{ 2 ** two % n }}{{ n % two ** 2 }}{{ n - n % two }}{{ 7.5 % two }}",
            "{% if n % two == 1 and not n % two == 0 %}odd{% endif %}",
            "{{ items[n % two] }}{{ (n % two, [n % two]) }}",
            "{# {{ a % b }} #}{% raw %}{{ a % b }}{% endraw %}100% {{ '%' }}",
            "{{ 1.5e1 % 4 }}{{ 0x1e - 3 % 2 }}{{ (n % 2) is odd }}{{ n is odd }}{{ n % 4 - 1 }}",
        ] {
            let mut environment = Environment::new();
            environment.add_function(FUNCTION, percent);
            let context = || context! { n => 7, two => 2, items => [1, 2] };
            let plain = environment.render_str(source, context()).unwrap();
            let found = environment.render_str(&rewrite(source), context());
            assert_eq!(found.unwrap(), plain, "{source} as {}", rewrite(source));
        }
    }

    #[test]
    fn what_needs_no_change_has_none() {
        for source in [
            "{% if loop.index0 == 2 %}{{ x is divisibleby 3 }}{% endif %}",
            "{%- for m in messages -%}{{ m['%'] }}{%- endfor -%}",
            "{# % #}{% raw %}{{ a % b }}{% endraw %}",
            "{{ a % ",
            "{{ 'a % b }}",
            "{% raw %}{{ a % b }}",
            "{{ a) % b }}",
            "{{ % b }}",
            "{",
            "a { b } %",
        ] {
            assert_eq!(rewrite(source), source);
        }
        let many = format!("{{{{ a{} }}}}", " % a".repeat(30_000));
        assert_eq!(rewrite(&many), many);
    }

    proptest! {
        #[test]
        fn whatever_it_is_given_it_changes_no_more_than_that(
            parts in prop::collection::vec(prop::sample::select(vec![
                "{{", "}}", "{%", "%}", "{#", "#}", "'", "\"", "\\", "%", "*", "/", "(", ")", "[", "]",
                "a", "1", ".", "|", "-", "is", "é", "\n", " ", "raw", "endraw", ",", "é",
            ]), 0..40),
        ) {
            let source: String = parts.concat();
            let rewritten = rewrite(&source);
            prop_assert_eq!(rewritten.matches('\n').count(), source.matches('\n').count());
            let calls = rewritten.matches(FUNCTION).count();
            let extra = calls * (FUNCTION.len() + 2);
            prop_assert_eq!(rewritten.len(), source.len() + extra);
        }
    }
}
