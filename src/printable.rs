//! Text of strangers that is shown to people.

use std::borrow::Cow;

/// How many characters of a stranger's value an error or a line of the log repeats.
const EXCERPT: usize = 200;

/// `text`, or where it is long its first 200 characters and an ellipsis: for errors and
/// lines of the log, which are not to grow with what a stranger sends.
pub(crate) fn excerpt(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(EXCERPT) {
        Some((end, _)) => Cow::Owned(format!("{}\u{2026}", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

/// `text` with its control characters, line breaks aside, written as escapes: on a
/// terminal they would be commands.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    let command = |c: char| c.is_control() && c != '\n';
    if !text.contains(command) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match command(c) {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_text_the_beginning_is_told() {
        let (short, long) = ("語".repeat(200), "語".repeat(100_000));
        assert_eq!(excerpt(&short), short);
        assert_eq!(excerpt(&long), short + "\u{2026}");
        assert_eq!(excerpt(""), "");
    }

    #[test]
    fn commands_to_a_terminal_become_escapes() {
        assert_eq!(printable("日本\n語"), "日本\n語");
        assert_eq!(printable("a\u{1b}[2J\tb\u{9b}"), "a\\u{1b}[2J\\tb\\u{9b}");
    }
}
