//! Text of strangers that is shown to people.

use std::borrow::Cow;

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
    fn commands_to_a_terminal_become_escapes() {
        assert_eq!(printable("日本\n語"), "日本\n語");
        assert_eq!(printable("a\u{1b}[2J\tb\u{9b}"), "a\\u{1b}[2J\\tb\\u{9b}");
    }
}
